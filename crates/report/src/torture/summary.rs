//! What a campaign did, in a line.

use blkproof_torture::run::Stats;

use super::{Ended, Suite};
use crate::text::{count, plural};

/// `2 findings`, `nothing found`, `nothing new, 1 known`; with the seeds it took.
#[must_use]
pub fn verdict(suite: &Suite<'_>) -> String {
    let known = suite.entries.len().saturating_sub(suite.failures());
    let also = if known > 0 { format!(", {} known", count(known as u64)) } else { String::new() };
    let found = match (suite.failures(), known) {
        (0, 0) => "nothing found".to_owned(),
        (0, _) => format!("nothing new{also}"),
        (failures, _) => format!("{}{also}", plural(failures as u64, "finding")),
    };
    let runs = if suite.first.is_some() { "seed" } else { "plan" };
    format!("{found} in {}", plural(suite.seeds, runs))
}

/// The figures, in brackets, and why it ended if nobody would think so.
#[must_use]
pub fn figures(suite: &Suite<'_>) -> String {
    let Stats { ops, faults, states, points, exhausted, .. } = suite.stats;
    let states = match states {
        0 => "no crash states".to_owned(),
        states => format!(
            "{} at {}, {} of them distinct, {} looked into whole",
            plural(states, "crash state"),
            plural(points, "moment"),
            share(&suite.stats),
            plural(exhausted, "moment"),
        ),
    };
    let failed = plural(faults, "request");
    let time = suite.seconds.map(|seconds| format!(", {seconds:.1} s")).unwrap_or_default();
    let mut text = format!("({}, {failed} below made to fail, {states}{time})", plural(ops, "operation"));
    if suite.ended == Ended::Signal {
        text.push_str("; ");
        text.push_str(suite.ended.words());
    }
    text
}

/// Of the states built, those that were unlike the others of their moment.
#[must_use]
pub fn share(stats: &Stats) -> String {
    match stats.distinct.saturating_mul(100).checked_div(stats.states) {
        Some(percent) => format!("{percent} %"),
        None => "none".to_owned(),
    }
}
