//! What was found, for people.
//!
//! One place, so that a richer telling can take it over: [`finding`] gets all there is.

use std::fmt::Write as _;

use blkproof_torture::store::{Record, Standing};

use super::campaign::Done;
use super::numbers::{counted, grouped};
use super::watcher::share;

/// A finding: what it is, and the least plan that shows it.
pub(crate) fn finding(record: &Record, standing: &Standing) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let mut line = |words: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{words}");
    };
    let finding = &record.finding;
    line(format_args!("FINDING {}  (in {})", finding.signature.code, record.plan.target.name));
    line(format_args!("  {}", finding.text));
    let op = finding.op.and_then(|id| record.plan.ops.iter().find(|op| op.id == id));
    if let Some(op) = op {
        line(format_args!("  seen by op {}: {}", op.id, op.describe()));
    }
    if let Some(range) = finding.range {
        line(format_args!("  guest {:#x}..{:#x}", range.start, range.end));
    }
    if !finding.allowed.is_empty() {
        line(format_args!("  allowed there: {}", finding.allowed.join("; or ")));
    }
    if let Some((point, state)) = &finding.cut {
        line(format_args!("  after a power cut {} that leaves {}", point.describe(), state.describe()));
    }
    line(format_args!("  signature {}", finding.signature));
    match standing {
        Standing::New => {}
        Standing::Known(issue) => line(format_args!("  known until {}: {}", issue.until, issue.why)),
        Standing::Expired(issue) => {
            line(format_args!("  known, but only until {}, which is over: {}", issue.until, issue.why));
        }
    }
    if let Some(origin) = &record.origin {
        let times =
            if origin.times > 1 { format!(", and {} more", origin.times.saturating_sub(1)) } else { String::new() };
        line(format_args!("  found by seed {:#x}{times}, after {}", origin.seed, counted(origin.ops, "operation")));
        if !origin.shrunk.is_empty() {
            let ops = record.plan.ops.len() as u64;
            line(format_args!("  shrunk from {} to {}, in {}", origin.plan_ops, counted(ops, "op"), origin.shrunk));
        }
    }
    line(format_args!(""));
    if !record.plan.ops.is_empty() {
        line(format_args!("  The plan in words:"));
    }
    for op in &record.plan.ops {
        let queue = if op.queue == 0 { String::new() } else { format!(", in queue {}", op.queue) };
        line(format_args!("  {:>4}  {}{queue}", op.id, op.describe()));
    }
    for fault in &record.plan.faults.named {
        line(format_args!("        {}", fault.describe()));
    }
    text
}

/// A plan, to be saved and replayed.
pub(crate) fn plan(record: &Record) -> String {
    format!(
        "--- plan: save what is between these lines, and 'blkproof replay FILE' shows it again\n{}---\n",
        record.plan
    )
}

/// What a campaign did.
pub(super) fn summary(done: &Done) -> String {
    let stats = &done.results.stats;
    let found = match done.findings.len() {
        0 => "nothing found".to_owned(),
        count => counted(count as u64, "finding"),
    };
    let states = match stats.states {
        0 => "no crash states".to_owned(),
        states => format!("{}, {} of them distinct", counted(states, "crash state"), share(stats)),
    };
    let mut text = format!(
        "{}: {found} in {} ({}, {} made to fail, {states}, {:.1} s)",
        done.target,
        counted(done.results.seeds, "seed"),
        counted(stats.ops, "operation"),
        counted(stats.faults, "request"),
        done.seconds,
    );
    if done.ended.is_early() {
        let _ = write!(text, "; {}", done.ended.words());
    }
    if stats.points > 0 {
        let _ = write!(
            text,
            "\n  of {} at which the power was cut {} were looked into whole",
            counted(stats.points, "moment"),
            grouped(stats.exhausted)
        );
    }
    text.push('\n');
    text
}
