//! `blkproof replay`: a plan once more.

mod other;
mod source;
mod verdict;

use std::process::ExitCode;

use blkproof_report::torture::Suite;
use blkproof_report::torture::text::report;
use serde_json::{Value, json};

use crate::messages::print_error;
use crate::torture::{FINDING, NOT_STARTED, Output, Pages, USAGE, print};

pub(crate) use self::source::Case;
pub(crate) use self::verdict::{Verdict, judge};

/// Run a plan of torture again, exactly
///
/// The file is a plan, a finding as `torture --out` keeps it, or what `torture --format json` printed; - is standard
/// input. A plan says everything about a run: it fails in the same way wherever and however often it is run, as long as
/// the driver is the same. With --target it is run against another driver, such as one that has been mended.
///
/// Exit status: 0 nothing is wrong, 1 a finding, 2 usage, or a plan that can not be read, 4 the driver would not start.
/// With --bisect: 0 nothing is wrong, 1 it fails as it did, 125 (for `git bisect skip`) if this program can not tell.
///
/// That finds the change that broke a driver:
/// `git bisect run sh -c 'cargo build --release || exit 125; target/release/blkproof replay --bisect plan.toml'`
///
/// Example: `blkproof replay --target vdi plan.toml`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A plan or a finding
    #[arg(value_name = "PLAN|FINDING")]
    file: String,

    /// Run it against this driver instead of the one it names
    #[arg(short, long, value_name = "TARGET", value_parser = crate::torture::parse_target)]
    target: Option<String>,

    /// Exit status for `git bisect run`: 125 where a plan does not fit this program, or fails in another way
    #[arg(long)]
    bisect: bool,

    /// Let every request below of the plan fail, one after the other, instead of running it once
    ///
    /// Each fails in every way it can: refused or later, with nothing, all or a half of it done, once and from it on.
    #[arg(long, conflicts_with_all = ["bisect", "explicit"])]
    sweep: bool,

    /// Show the plan of the run without anything left to chance
    #[arg(long)]
    explicit: bool,

    #[command(flatten)]
    output: Output,

    #[command(flatten)]
    pages: Pages,
}

/// Exit status by which `git bisect run` is told that a version can not be judged.
const SKIP: u8 = 125;

impl Args {
    fn is_json(&self) -> bool {
        self.output.is_json()
    }
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let code = match replay(args) {
        Ok(code) => code,
        Err(error) => {
            print_error(&error);
            if args.bisect { SKIP } else { USAGE }
        }
    };
    ExitCode::from(code)
}

fn replay(args: &Args) -> anyhow::Result<u8> {
    if let Some(code) = other::replay(args)? {
        return Ok(code);
    }
    let mut verdicts = Vec::new();
    for mut case in source::read(&args.file)? {
        if let Some(target) = &args.target {
            case.plan.target.name.clone_from(target);
            // Neither the file nor the seed is about this driver: what repeats it is the plan itself.
            (case.file, case.origin) = (None, None);
        }
        let verdict = judge(case)?;
        if !args.output.is_json() {
            print(&human(&verdict, args))?;
        }
        verdicts.push(verdict);
    }
    if args.output.is_json() {
        let cases: Vec<Value> = verdicts.iter().map(Verdict::json).collect();
        print(&format!("{:#}\n", json!({"schema": "blkproof.replay/1", "cases": cases})))?;
    }
    let suites: Vec<Suite<'_>> = verdicts.iter().map(Verdict::suite).collect();
    args.pages.write(&suites)?;
    Ok(verdicts.iter().map(|verdict| code(verdict, args.bisect)).max_by_key(|code| severity(*code)).unwrap_or(0))
}

fn code(verdict: &Verdict, bisect: bool) -> u8 {
    let Some(found) = verdict.record() else { return 0 };
    match () {
        () if bisect && (!verdict.fits() || verdict.is_other()) => SKIP,
        () if !verdict.fits() && found.finding.signature.code == "create" => NOT_STARTED,
        () if !verdict.fits() => USAGE,
        () => FINDING,
    }
}

/// Of several plans, the worst news is the exit status.
fn severity(code: u8) -> u8 {
    match code {
        0 => 0,
        FINDING => 2,
        _ => 1,
    }
}

fn human(verdict: &Verdict, args: &Args) -> String {
    let mut text = String::new();
    if let Some(told) = verdict.found.as_ref().filter(|_| verdict.fits()) {
        text.push_str(&report(&told.entry(), &args.pages.show()));
        text.push('\n');
    }
    if args.explicit {
        text.push_str(&format!("the plan of this run, with nothing left to chance:\n{}\n", verdict.explicit_plan()));
    }
    text.push_str(&format!("{}: {}\n", verdict.case.name, verdict.words()));
    text
}
