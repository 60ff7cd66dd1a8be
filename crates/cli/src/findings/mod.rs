//! `blkproof findings`: what `torture --out` kept.

use std::path::PathBuf;
use std::process::ExitCode;

use blkproof_torture::store::{Kept, Standing, Store};
use serde_json::{Value, json};

use crate::messages::print_error;
use crate::replay::{Case, Verdict, judge};
use crate::torture::{FINDING, Format, USAGE, finding_words, plan_words, print, today};

/// List, show and replay what torture found and kept
///
/// `torture --out DIR` keeps each finding in DIR: one folder for each signature, in it the plan (.toml) and what was
/// found (.json), named by the hash of the plan. A file known.toml there says what is known already:
///
/// `[[known]]` signature = "read:L2:reopen:", target = "qcow2", until = 2027-01-31, why = "issue 12", each on a line of
/// its own, below schema = "blkproof.known/1". Until that day is over such a finding fails no run.
///
/// Example: `blkproof findings replay findings`
#[derive(clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    List(ListArgs),
    Show(ShowArgs),
    Replay(ReplayArgs),
}

/// List the findings of a folder
///
/// Example: `blkproof findings list findings`
#[derive(clap::Args)]
struct ListArgs {
    /// The folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// human readable, or one JSON object
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    format: Format,
}

/// Show a finding, with its plan
///
/// Example: `blkproof findings show findings read-07f3`
#[derive(clap::Args)]
struct ShowArgs {
    /// The folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// The beginning of its name, or of the name of its plan
    #[arg(value_name = "NAME")]
    name: String,

    /// human readable, or the JSON that is kept
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    format: Format,
}

/// Run the plans of all findings again: which of them are there still?
///
/// Exit status: 0 none, or only known ones, 1 some fail, 2 something could not be read or run.
///
/// Example: `blkproof findings replay findings`
#[derive(clap::Args)]
struct ReplayArgs {
    /// The folder
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// human readable, or one JSON object
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    format: Format,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let done = match &args.command {
        Command::List(args) => list(args),
        Command::Show(args) => show(args),
        Command::Replay(args) => replay(args),
    };
    ExitCode::from(done.unwrap_or_else(|error| {
        print_error(&error);
        USAGE
    }))
}

/// The findings of a folder, and how each stands on this day.
fn read(store: &Store) -> anyhow::Result<Vec<(Kept, Standing)>> {
    let known = store.known()?;
    let today = today();
    let standing = |kept: &Kept| known.standing(&kept.record.plan.target.name, &kept.record.finding.signature, today);
    Ok(store.list()?.into_iter().map(|kept| (standing(&kept), kept)).map(|(standing, kept)| (kept, standing)).collect())
}

fn list(args: &ListArgs) -> anyhow::Result<u8> {
    let all = read(&Store::open(&args.dir)?)?;
    if args.format == Format::Json {
        let findings: Vec<Value> = all
            .iter()
            .map(|(kept, standing)| json!({"name": kept.name, "standing": standing.name(), "finding": kept.record.json()}))
            .collect();
        print(&format!("{:#}\n", json!({"schema": "blkproof.findings/1", "findings": findings})))?;
        return Ok(0);
    }
    for (kept, standing) in &all {
        let finding = &kept.record.finding;
        let ops = kept.record.plan.ops.len();
        print(&format!(
            "{}  {}  {}  {} op{}  {}\n    {}\n",
            short(&kept.name),
            kept.record.plan.target.name,
            finding.signature,
            ops,
            if ops == 1 { "" } else { "s" },
            standing.name(),
            finding.text
        ))?;
    }
    Ok(0)
}

/// As much of a name as is enough to tell it from others, in practice.
fn short(name: &str) -> &str {
    let end = name.find('/').map_or(name.len(), |slash| slash.saturating_add(9));
    name.get(..end).unwrap_or(name)
}

fn show(args: &ShowArgs) -> anyhow::Result<u8> {
    let store = Store::open(&args.dir)?;
    let kept = store.find(&args.name)?;
    if args.format == Format::Json {
        print(&format!("{:#}\n", kept.record.json()))?;
        return Ok(0);
    }
    let signature = &kept.record.finding.signature;
    let standing = store.known()?.standing(&kept.record.plan.target.name, signature, today());
    print(&finding_words(&kept.record, &standing))?;
    print(&format!("\n{}{}\n", plan_words(&kept.record), store.plan_path(&kept.name).display()))?;
    Ok(0)
}

fn replay(args: &ReplayArgs) -> anyhow::Result<u8> {
    let store = Store::open(&args.dir)?;
    let mut code = 0;
    let mut cases = Vec::new();
    for (kept, standing) in read(&store)? {
        let name = kept.name.clone();
        let verdict = match judge(Case::of(kept.name, kept.record)) {
            Ok(verdict) => verdict,
            Err(error) => {
                print_error(&error.context(format!("'{name}' can not be replayed")));
                code = code.max(USAGE);
                continue;
            }
        };
        // A known finding that shows itself in another way is another finding.
        let fails = verdict.found.is_some() && (standing.fails() || verdict.is_other());
        code = if fails && code == 0 { FINDING } else { code };
        if args.format == Format::Human {
            let until = match &standing {
                Standing::New => String::new(),
                Standing::Known(issue) => format!(" (known until {}: {})", issue.until, issue.why),
                Standing::Expired(issue) => format!(" (known, but only until {}: {})", issue.until, issue.why),
            };
            print(&format!("{}: {}{until}\n", short(&name), verdict.words()))?;
        }
        cases.push((verdict, standing));
    }
    if args.format == Format::Json {
        let cases: Vec<Value> = cases.iter().map(|(verdict, standing)| with_standing(verdict, standing)).collect();
        print(&format!("{:#}\n", json!({"schema": "blkproof.replay/1", "cases": cases})))?;
    }
    Ok(code)
}

fn with_standing(verdict: &Verdict, standing: &Standing) -> Value {
    let mut json = verdict.json();
    if let Value::Object(map) = &mut json {
        map.insert("standing".to_owned(), standing.name().into());
    }
    json
}
