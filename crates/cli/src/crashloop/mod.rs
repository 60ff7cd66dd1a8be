//! `blkproof crashloop`: a program works on a disk, the power goes, the program's own check says what is left; so
//! often.
//!
//! - [`cut`]: one power cut from beginning to end. [`mod@bench`]: the disk, the rule that cuts, the server.
//! - [`witness`] and [`betrayal`]: what the disk promised, and which of it was kept.
//! - [`program`]: the user's programs. [`workload`]: those that come with this one. [`report`]: what was found.
//!
//! # Invariants
//! - Each cut begins with the same disk, and everything about it follows from the seed and its number: it can be made
//!   again alone, and cuts made at the same time know nothing of each other.
//! - The check sees exactly the disk that the cut left; nothing of the program reaches it later.
//! - No program outlives its cut, however this one ends, except if it leaves its process group.

mod bench;
mod betrayal;
mod cut;
mod program;
mod report;
mod witness;
mod workload;

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use blkproof_block::Node;
use blkproof_block::nodes::memory::Memory;
use blkproof_fault::disk::{DiskOptions, StateName, parse_options};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::cut::{Cut, Plan};
use self::report::Report;
use self::workload::{BuiltIn, Workload};
use crate::graph::{ImageArgs, parse_size, registry};
use crate::messages::{print_error, shell_word};
use crate::runtime::{self, stop_signal};

/// Cut the power under a program again and again, and check what is left
///
/// A program writes to a disk over NBD, the disk loses its power in the middle of a request, and a check looks at what
/// came back: everything that was acknowledged has to be there. An honest disk loses only what was not flushed, so
/// whatever is lost there is the program's fault; a liar acknowledges flushes and does nothing. The report says of each
/// loss which it was, and which flush was betrayed.
///
/// The program writes a line to standard output for everything it holds to be safe; the check finds these lines in the
/// file {acknowledged}, and ends with status 0 if all is well and 1 if something is lost. Both are command lines for
/// the shell, in which {uri}, {socket}, {acknowledged}, {dir}, {seed} and {cut} are replaced. If the last line of the
/// check is a JSON object, it goes into the report; "acknowledged" and "lost" are added up, "words" are shown.
///
/// Exit status: 0 everything was survived, 1 something was lost, 2 usage, 4 a program could not do its work, 5 ended
/// before all cuts were made.
///
/// Example: `blkproof crashloop --workload sqlite --disk liar --cuts 200`
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["workload", "run"])))]
pub(crate) struct Args {
    /// A workload that comes with this program: sqlite, sqlite-truncate, sqlite-persist or sqlite-wal
    ///
    /// Numbered transactions in a SQLite database whose files lie on the disk itself, by kind of journal. sqlite-full
    /// and sqlite-off have a wrong setting for such a disk, to show that it is seen: synchronous=FULL with a journal
    /// that is deleted may lose the last transaction, and synchronous=OFF never flushes. They need python3-apsw and
    /// python3-libnbd.
    #[arg(long, value_name = "NAME", value_parser = BuiltIn::parse)]
    workload: Option<BuiltIn>,

    /// Program that works on the disk, such as 'fio --ioengine=nbd --uri={uri} …'
    #[arg(long, value_name = "CMD", requires = "check")]
    run: Option<String>,

    /// Program that checks what the cut left
    #[arg(long, value_name = "CMD", requires = "run", conflicts_with = "workload")]
    check: Option<String>,

    /// Program that prepares the disk, once, with the power on
    #[arg(long, value_name = "CMD")]
    setup: Option<String>,

    /// The disk: honest or liar, with options of the node disk behind a colon
    ///
    /// Such as liar:profile=torn,block-size=4k.
    #[arg(long, value_name = "KIND[:OPTIONS]", default_value = "honest", value_parser = parse_disk)]
    disk: DiskOptions,

    /// Power cuts, each at a request that the seed chooses
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    cuts: u64,

    /// Only the cuts of these numbers, from 1
    #[arg(long, value_name = "NUMBER", value_delimiter = ',')]
    only: Vec<u64>,

    /// The state the disk comes back in after the cut, instead of one that the seed picks
    ///
    /// A name as `power-cut` takes it, such as drop:17; for one cut, named with --only.
    #[arg(long, value_name = "NAME", requires = "only", value_parser = parse_state)]
    state: Option<String>,

    /// What everything random follows from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Cut the power a second time while the check recovers, then check again
    #[arg(long)]
    during_recovery: bool,

    /// Bytes of the disk, which is empty at first
    #[arg(long, value_name = "BYTES", default_value = "16M", value_parser = parse_size, conflicts_with = "image")]
    size: u64,

    /// What the disk holds at first: a copy in memory of what this image or graph holds
    #[arg(long, value_name = "GRAPH")]
    image: Option<String>,

    #[command(flatten)]
    how: ImageArgs,

    /// Cuts made at the same time; as many as there are processors if left out
    #[arg(short, long, value_name = "N")]
    jobs: Option<usize>,

    /// Seconds that a program may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,

    /// Write the report as JSON to this file too
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// The report on standard output: human readable, or one JSON object
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    format: Format,

    /// List every cut
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Human,
    Json,
}

fn parse_disk(text: &str) -> Result<DiskOptions, String> {
    let options = parse_options(text).map_err(|error| error.to_string())?;
    if options.seed != 0 {
        return Err("what the disk draws follows from --seed; leave seed= away".to_owned());
    }
    if options.stay_off {
        return Err("the disk has to come back after a power cut: leave stay-off away".to_owned());
    }
    Ok(options)
}

fn parse_state(text: &str) -> Result<String, String> {
    let name: Result<StateName, _> = text.parse();
    name.map(|name| name.to_string()).map_err(|error| error.to_string())
}

/// A program did not do its work.
const COULD_NOT_RUN: u8 = 4;

/// The user ended the run.
const ENDED_EARLY: u8 = 5;

/// The command line makes no sense.
const USAGE: u8 = 2;

pub(crate) fn run(args: &Args) -> ExitCode {
    let numbers = match numbers(args) {
        Ok(numbers) => numbers,
        Err(error) => {
            print_error(&error);
            return ExitCode::from(USAGE);
        }
    };
    match runtime::block_on(crashloop(args, &numbers)).flatten() {
        Ok(code) => code,
        Err(error) => {
            print_error(&error);
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}

async fn crashloop(args: &Args, numbers: &[u64]) -> anyhow::Result<ExitCode> {
    let given: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    eprintln!("{}", again(&given, args.seed));
    // Before there is anything that a signal could leave behind.
    let mut stop = pin!(stop_signal()?);
    let scratch = tempfile::Builder::new().prefix("crashloop-").tempdir().context("making a scratch directory")?;
    let prepared = async {
        let mut plan = plan(args, scratch.path()).await?;
        cut::rehearse(&mut plan, scratch.path()).await?;
        anyhow::Ok(plan)
    };
    let plan = tokio::select! {
        biased;
        () = &mut stop => return Ok(ExitCode::from(ENDED_EARLY)),
        plan = prepared => plan?,
    };
    let mut cuts = BTreeMap::new();
    let made = {
        let mut all = pin!(make_all(args, &plan, numbers, scratch.path(), &mut cuts));
        tokio::select! {
            biased;
            () = &mut stop => Ok(()),
            made = &mut all => made,
        }
    };
    let cuts: Vec<Cut> = cuts.into_values().collect();
    let again = |cut: &Cut| again(&alone(&given, cut), args.seed);
    let report = Report { plan: &plan, cuts: &cuts, wanted: numbers.len(), again: &again };
    // What was found before something went wrong is told, too.
    if made.is_ok() || !cuts.is_empty() {
        tell(args, &report)?;
    }
    made?;
    Ok(match () {
        () if report.is_finding() => ExitCode::FAILURE,
        () if report.is_unclear() => ExitCode::from(COULD_NOT_RUN),
        () if cuts.len() < numbers.len() => ExitCode::from(ENDED_EARLY),
        () => ExitCode::SUCCESS,
    })
}

/// The command line that does the same again.
fn again(given: &[String], seed: u64) -> String {
    let words: Vec<_> = given.iter().map(|word| shell_word(word)).collect();
    let has_seed = given.iter().any(|word| word == "--seed" || word.starts_with("--seed="));
    let seed = if has_seed { String::new() } else { format!(" --seed {seed}") };
    format!("blkproof {}{seed}", words.join(" "))
}

/// The words that make one cut alone, in the state it had.
fn alone(given: &[String], cut: &Cut) -> Vec<String> {
    let mut words = Vec::with_capacity(given.len());
    let mut rest = given.iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "--only" | "--state" => drop(rest.next()),
            word if word.starts_with("--only=") || word.starts_with("--state=") => {}
            _ => words.push(word.clone()),
        }
    }
    words.extend(["--only".to_owned(), cut.number.to_string(), "--state".to_owned(), cut.loss.state.clone()]);
    words
}

async fn plan(args: &Args, dir: &Path) -> anyhow::Result<Plan> {
    let workload = match (args.workload, &args.run, &args.check) {
        (Some(built_in), ..) => {
            std::fs::write(dir.join("sqlite.py"), workload::SQLITE).context("writing the workload")?;
            Workload::built_in(built_in, args.setup.clone(), dir)
        }
        (None, Some(run), Some(check)) => {
            Workload { name: format!("'{run}'"), setup: args.setup.clone(), run: run.clone(), check: check.clone() }
        }
        _ => bail!("neither --workload nor --run and --check are given"),
    };
    let image = match &args.image {
        Some(name) => args.how.open(&registry(), name, args.how.reading()).await?,
        None => Node::new(Memory::new(args.size)),
    };
    Ok(Plan {
        workload,
        disk: args.disk,
        seed: args.seed,
        patience: Duration::from_secs(args.timeout),
        during_recovery: args.during_recovery,
        state: args.state.clone(),
        image,
        requests: 0,
    })
}

fn numbers(args: &Args) -> anyhow::Result<Vec<u64>> {
    if args.only.is_empty() {
        return Ok((1..=args.cuts).collect());
    }
    if let Some(wrong) = args.only.iter().find(|number| !(1..=args.cuts).contains(number)) {
        bail!("--only {wrong}: there are cuts 1 to {}", args.cuts);
    }
    let mut numbers = args.only.clone();
    numbers.sort_unstable();
    numbers.dedup();
    if args.state.is_some() && numbers.len() > 1 {
        bail!("--state names the state of one cut; --only has {}", numbers.len());
    }
    Ok(numbers)
}

/// Makes the cuts, several at a time, and puts them into `made` as they end.
async fn make_all(
    args: &Args,
    plan: &Plan,
    numbers: &[u64],
    dir: &Path,
    made: &mut BTreeMap<u64, Cut>,
) -> anyhow::Result<()> {
    let jobs = args.jobs.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1).max(1);
    let progress = progress(numbers.len());
    let mut waiting = numbers.iter();
    let mut running: FuturesUnordered<_> = waiting.by_ref().take(jobs).map(|&number| one(plan, number, dir)).collect();
    while let Some(cut) = running.next().await {
        let cut = cut?;
        progress.inc(1);
        made.insert(cut.number, cut);
        running.extend(waiting.next().map(|&number| one(plan, number, dir)));
    }
    progress.finish_and_clear();
    Ok(())
}

/// Makes one cut in a directory of its own.
async fn one(plan: &Plan, number: u64, dir: &Path) -> anyhow::Result<Cut> {
    let dir = tempfile::Builder::new().prefix("cut-").tempdir_in(dir).context("making a directory for a cut")?;
    cut::make(plan, number, dir.path()).await
}

fn progress(cuts: usize) -> ProgressBar {
    let shown = std::io::stderr().is_terminal();
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{pos}/{len} cuts {wide_bar} {eta}");
    ProgressBar::with_draw_target(Some(cuts as u64), target)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn tell(args: &Args, report: &Report<'_>) -> anyhow::Result<()> {
    let json = report.json();
    if let Some(path) = &args.report {
        let text = serde_json::to_string_pretty(&json)? + "\n";
        std::fs::write(path, text).with_context(|| format!("writing the report to '{}'", path.display()))?;
    }
    let text = match args.format {
        Format::Human => report.human(args.verbose),
        Format::Json => serde_json::to_string_pretty(&json)? + "\n",
    };
    std::io::stdout().write_all(text.as_bytes()).context("writing the report")
}

#[cfg(test)]
mod tests {
    use super::again;

    #[test]
    fn a_command_line_is_for_the_shell() {
        for (given, want) in [
            (&["crashloop", "--run", "it's {uri}"][..], r"blkproof crashloop --run 'it'\''s {uri}' --seed 7"),
            (&["crashloop", "--seed=8", ""], "blkproof crashloop --seed=8 ''"),
            (&["crashloop", "--seed", "8"], "blkproof crashloop --seed 8"),
        ] {
            let given: Vec<String> = given.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(again(&given, 7), want);
        }
    }
}
