//! `blkproof findings`: what `torture --out` kept.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use blkproof_report::torture::text::report;
use blkproof_report::torture::{json, known_words};
use blkproof_torture::store::{Kept, Standing, Store};
use serde_json::{Value, json};

use crate::messages::print_error;
use crate::replay::{Case, Verdict, judge};
use crate::torture::{FINDING, Output, Pages, Told, USAGE, counted, find_target, print, run_told, today};

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

    #[command(flatten)]
    output: Output,
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

    #[command(flatten)]
    output: Output,

    #[command(flatten)]
    pages: Pages,
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

    #[command(flatten)]
    output: Output,
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
    if args.output.is_json() {
        let findings: Vec<Value> = all
            .iter()
            .map(|(kept, standing)| json!({"name": kept.name, "standing": standing.name(), "finding": kept.record.json()}))
            .collect();
        print(&format!("{:#}\n", json!({"schema": "blkproof.findings/1", "findings": findings})))?;
        return Ok(0);
    }
    for (kept, standing) in &all {
        let finding = &kept.record.finding;
        print(&format!(
            "{}  {}  {}  {}  {}\n    {}\n",
            short(&kept.name),
            kept.record.plan.target.name,
            finding.signature,
            counted(kept.record.plan.ops.len() as u64, "op"),
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
    let standing = store.known()?.standing(&kept.record.plan.target.name, &kept.record.finding.signature, today());
    let told = tell(&store, kept, standing)?;
    let shown = match args.output.is_json() {
        true => format!("{:#}\n", json::entry(&told.entry())),
        false => report(&told.entry(), &args.pages.show()),
    };
    print(&shown)?;
    args.pages.write(&[told.suite()])?;
    Ok(0)
}

/// What the report of a finding needs besides what is kept: a run of its plan.
fn tell(store: &Store, kept: Kept, standing: Standing) -> anyhow::Result<Told> {
    let plan = &kept.record.plan;
    let target = find_target(&plan.target.name).with_context(|| {
        let (name, path) = (&plan.target.name, kept.path.display());
        format!("this program has no driver '{name}', and can not run the plan; '{path}' has what was found")
    })?;
    plan.validate().with_context(|| format!("'{}' can not be run", kept.path.display()))?;
    let outcome = run_told(&kept.record, target.get());
    let mut told = Told::of(kept.record, outcome, &target, &|| false).kept(&store.plan_path(&kept.name));
    told.standing = standing;
    Ok(told)
}

fn replay(args: &ReplayArgs) -> anyhow::Result<u8> {
    let store = Store::open(&args.dir)?;
    let mut code = 0;
    let mut cases = Vec::new();
    for (kept, standing) in read(&store)? {
        let name = kept.name.clone();
        let file = store.plan_path(&kept.name);
        let verdict = match judge(Case::of(kept.name, Some(file), kept.record)) {
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
        if !args.output.is_json() {
            let until = known_words(&standing).map(|words| format!(" ({words})")).unwrap_or_default();
            print(&format!("{}: {}{until}\n", short(&name), verdict.words()))?;
        }
        cases.push((verdict, standing));
    }
    if args.output.is_json() {
        let cases: Vec<Value> = cases.iter().map(|(verdict, standing)| with_standing(verdict, standing)).collect();
        print(&format!("{:#}\n", json!({"schema": "blkproof.replay/1", "cases": cases})))?;
    }
    Ok(code)
}

fn with_standing(verdict: &Verdict, standing: &Standing) -> Value {
    let mut json = verdict.json();
    if let Value::Object(map) = &mut json {
        map.insert("standing".to_owned(), standing.name().into());
        map.insert("known".to_owned(), json::known(standing));
    }
    json
}
