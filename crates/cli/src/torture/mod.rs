//! `blkproof torture`: random work, faults and power cuts against a driver, until it breaks; and the least that breaks it.
//!
//! - [`campaign`]: one target, and what came of it. [`watcher`]: progress, time, signals. [`targets`]: the drivers there
//!   are. [`gallery`]: all planted bugs, and how fast each is found.
//! - [`threads`]: the same by threads, for drivers that allow it.
//! - [`told`]: a finding with all that is said of it. [`output`], [`outputs`]: where which report goes. The reports
//!   themselves are `blkproof_report::torture`'s.

mod campaign;
#[cfg(feature = "gallery")]
mod gallery;
mod numbers;
mod output;
mod outputs;
mod targets;
mod threads;
mod told;
mod watcher;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use blkproof_report::torture::text::write_suite;
use blkproof_report::torture::{Suite, json};
use blkproof_torture::campaign::Campaign;
use blkproof_torture::run::Settings;
use blkproof_torture::shrink::Budget;
use blkproof_torture::store::{Known, Store};
use blkproof_torture::workload::Profile;

use self::campaign::{Done, Setting};
use self::numbers::{parse_seed, parse_time};
use crate::messages::print_error;
use crate::stop::Stop;

pub(crate) use self::campaign::today;
pub(crate) use self::numbers::counted;
pub(crate) use self::output::{Output, Pages};
pub(crate) use self::targets::{find as find_target, parse as parse_target};
pub(crate) use self::threads::{find as find_threaded, replay as replay_threaded};
pub(crate) use self::told::{Told, run_told};

/// Find a driver's bug, repeat it exactly, and shrink it to a few lines
///
/// Each seed makes a plan: requests of several queues at odd places, in an order of its own, failing requests below,
/// cancelled ones, closing and opening, power cuts at every moment worth it. The plan runs against the driver over a
/// simulated disk, in this process, without threads and clocks; an oracle knows what a client may see at each moment, and
/// the format's check judges every image that is closed or cut. What breaks a rule is shrunk to the least plan that still
/// breaks it, and shown with the command that repeats it.
///
/// The same seed, profile and program do the same. Without --seed the first seed is drawn, and the command line that does
/// it again is printed before anything else.
///
/// Exit status: 0 nothing was found, or only what known.toml has, 1 a finding, 2 usage, 4 the driver would not start,
/// 5 too little was done to say anything.
///
/// Example: `blkproof torture --target qcow2 --time 60s --out findings`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The driver, as --list-targets has it; may be given several times [default: each of this project's own]
    #[arg(short, long, value_name = "TARGET", value_parser = parse_target)]
    target: Vec<String>,

    /// The first seed; without --runs and --time, the only one
    ///
    /// In decimal or, after 0x, in hexadecimal.
    #[arg(long, value_name = "N", value_parser = parse_seed)]
    seed: Option<u64>,

    /// How many seeds [default: 500 of profile quick, 2000 of ci, 20000 of deep]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    runs: Option<u64>,

    /// For how long, for each target: 60s, 5m, 8h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    time: Option<Duration>,

    /// How much is spent on a seed: quick, ci or deep
    #[arg(long, value_name = "PROFILE", default_value = "quick", value_parser = parse_profile)]
    profile: Profile,

    /// End a target after so many different findings that are not known yet; 0 goes on to the end
    #[arg(long, value_name = "K", default_value_t = 1)]
    until_findings: usize,

    /// Threads; as many as there are processors if left out. What is found is the same
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,

    /// Let every request below fail, one after the other, instead of some here and there
    ///
    /// Each seed makes a short plan in which nothing fails of itself. It is run once untouched; then the first request
    /// below fails, then the second, and so on to the last: refused or failing later, with nothing, all or a half of it
    /// done, once and from it on until the image is opened again.
    #[arg(long)]
    sweep: bool,

    /// Send requests by so many threads, to a driver that takes them from several at once
    ///
    /// What two threads do to each other shows only now and then: a finding comes with the rate at which its plan fails,
    /// and is not repeated exactly. --list-targets says which drivers can be asked so.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64),
          conflicts_with_all = ["sweep", "jobs", "out", "junit", "html", "github"])]
    threads: Option<u8>,

    /// Show what was found as it was found
    #[arg(long)]
    no_shrink: bool,

    /// Keep findings in this folder, and look up there what is known already (known.toml)
    ///
    /// `blkproof findings` lists, shows and replays what is in it.
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    output: Output,

    #[command(flatten)]
    pages: Pages,

    /// Write a report for continuous integration to this file too
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,

    /// Print annotations for GitHub Actions too
    #[arg(long)]
    github: bool,

    /// List the drivers, and end
    #[arg(long)]
    list_targets: bool,

    /// Measure the tester itself: torture copies of the drivers with a bug of another project planted in each
    ///
    /// Each is tortured from several first seeds, for --time (10 s of one processor if left out) or --runs from each. A
    /// table tells how often the bug was found, after how many operations and seconds, and how small its plan became.
    /// The copies without a bug are tortured as long as the slowest of theirs took, and have to be clean. Exit status 5
    /// means that some bug was not found.
    #[arg(long, conflicts_with_all = ["out", "junit", "github"])]
    #[cfg(feature = "gallery")]
    gallery: bool,

    /// First seeds of each driver with --gallery
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    #[cfg(feature = "gallery")]
    gallery_starts: u64,
}

fn parse_profile(name: &str) -> Result<Profile, String> {
    Profile::named(name).ok_or_else(|| "the profiles are quick, ci and deep".to_owned())
}

/// Something is broken.
pub(crate) const FINDING: u8 = 1;

/// The command line makes no sense.
pub(crate) const USAGE: u8 = 2;

/// The driver could not make or open its image at all.
pub(crate) const NOT_STARTED: u8 = 4;

/// Too little was done to say anything.
pub(crate) const TOO_LITTLE: u8 = 5;

pub(crate) fn run(args: &Args) -> ExitCode {
    let done = if args.list_targets { list(args) } else { torture(args) };
    done.unwrap_or_else(|error| {
        print_error(&error);
        ExitCode::from(USAGE)
    })
}

fn torture(args: &Args) -> anyhow::Result<ExitCode> {
    let store = args.out.as_deref().map(Store::create).transpose()?;
    let known = store.as_ref().map_or(Ok(Known::default()), Store::known)?;
    let stop = Stop::listen().context("listening for signals")?;
    #[cfg(feature = "gallery")]
    if args.gallery {
        eprintln!("{}", args.again(args.seed.unwrap_or(0)));
        return gallery::run(args, &stop);
    }
    if let Some(count) = args.threads {
        return threads::run(args, count, &stop);
    }
    let first = args.seed.unwrap_or_else(drawn);
    // Before anything can go wrong that somebody may want to see again.
    eprintln!("{}", args.again(first));
    let setting =
        Setting { campaign: args.campaign(first), time: args.time, known: &known, store: store.as_ref(), stop: &stop };
    let mut all = Vec::new();
    for name in args.targets() {
        // The command line was looked through: it names no others.
        let Some(target) = targets::find(&name) else {
            bail!("'{name}' is a driver for several threads: say by how many it is to be asked, as in --threads 4")
        };
        let done = setting.torture(&target)?;
        if !args.output.is_json() {
            let mut text = String::new();
            write_suite(&mut text, &done.suite(), &args.pages.show())?;
            print(&text)?;
        }
        all.push(done);
        if stop.asked() {
            break;
        }
    }
    stop.calm();
    let complete = all.len() == args.targets().len();
    let code = code(&all, complete);
    let suites: Vec<Suite<'_>> = all.iter().map(Done::suite).collect();
    if args.output.is_json() {
        print(&format!("{:#}\n", json::suites(&suites, &args.again(first), code)))?;
    }
    outputs::write(args, &suites)?;
    Ok(ExitCode::from(code))
}

fn code(all: &[Done], complete: bool) -> u8 {
    match () {
        () if all.iter().any(|done| done.failed() && !done.not_started()) => FINDING,
        () if all.iter().any(Done::not_started) => NOT_STARTED,
        () if !complete || all.iter().any(Done::too_little) => TOO_LITTLE,
        () => 0,
    }
}

impl Args {
    fn targets(&self) -> Vec<String> {
        if self.target.is_empty() {
            return blkproof_torture::target::names().map(str::to_owned).collect();
        }
        self.target.clone()
    }

    fn jobs(&self) -> usize {
        let jobs = self.jobs.map(usize::from);
        jobs.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1)
    }

    /// Seeds of each target; `None`: until its time is over.
    fn seeds(&self) -> Option<u64> {
        match (self.runs, self.time, self.seed) {
            (Some(runs), ..) => Some(runs),
            (None, Some(_), _) => None,
            (None, None, Some(_)) => Some(1),
            (None, None, None) => Some(match self.profile.name {
                "deep" => 20_000,
                "ci" => 2_000,
                _ => 500,
            }),
        }
    }

    fn campaign(&self, first: u64) -> Campaign {
        let jobs = self.jobs();
        Campaign {
            profile: self.profile,
            sweep: self.sweep,
            first,
            runs: self.seeds(),
            until_findings: self.until_findings,
            jobs,
            settings: Settings::default(),
            shrink: (!self.no_shrink).then(|| Budget { batch: jobs, ..Budget::default() }),
            ..Campaign::default()
        }
    }

    /// The command line that does the same again, however many threads it is given.
    fn again(&self, first: u64) -> String {
        let mut words = "blkproof torture".to_owned();
        let mut add = |word: String| {
            words.push(' ');
            words.push_str(&word);
        };
        for name in self.targets_said() {
            add(format!("--target {name}"));
        }
        add(format!("--profile {} --seed {first:#x}", self.profile.name));
        if let Some(time) = self.time {
            add(format!("--time {}ms", time.as_millis()));
        }
        match self.seeds() {
            Some(runs) if self.runs.is_some() || (runs != 1 && !self.is_gallery()) => add(format!("--runs {runs}")),
            _ => {}
        }
        if self.until_findings != 1 {
            add(format!("--until-findings {}", self.until_findings));
        }
        if self.no_shrink {
            add("--no-shrink".to_owned());
        }
        if self.sweep {
            add("--sweep".to_owned());
        }
        if let Some(threads) = self.threads {
            add(format!("--threads {threads}"));
        }
        #[cfg(feature = "gallery")]
        if self.gallery {
            add(format!("--gallery --gallery-starts {}", self.gallery_starts));
        }
        words
    }

    fn is_json(&self) -> bool {
        self.output.is_json()
    }

    fn is_gallery(&self) -> bool {
        #[cfg(feature = "gallery")]
        return self.gallery;
        #[cfg(not(feature = "gallery"))]
        false
    }

    fn targets_said(&self) -> Vec<String> {
        if self.is_gallery() { self.target.clone() } else { self.targets() }
    }
}

/// A first seed that differs from run to run, short enough to be typed.
fn drawn() -> u64 {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos().into());
    blkproof_block::choice::hash(nanos, u64::from(std::process::id())) >> 32
}

fn list(args: &Args) -> anyhow::Result<ExitCode> {
    let all = targets::list();
    if args.output.is_json() {
        let all: Vec<_> =
            all.iter().map(|listed| serde_json::json!({"name": listed.name, "words": listed.words})).collect();
        let json = serde_json::json!({"schema": "blkproof.torture-targets/1", "targets": all});
        print(&format!("{json:#}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let width = all.iter().map(|listed| listed.name.len()).max().unwrap_or(0);
    let lines: Vec<_> = all.iter().map(|listed| format!("{:width$}  {}\n", listed.name, listed.words)).collect();
    print(&lines.concat())?;
    Ok(ExitCode::SUCCESS)
}

/// To standard output. That nobody reads on is no mistake.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("writing to standard output"))
        }
        _ => Ok(()),
    }
}
