//! Watching a campaign: figures on a terminal, its time, and signals.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use blkproof_report::torture::summary::share;
use blkproof_torture::campaign::Watch;
use blkproof_torture::finding::Signature;
use blkproof_torture::run::{Finding, Stats};
use blkproof_torture::shrink::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::numbers::{counted, grouped};
use crate::stop::Stop;

/// What ends a campaign besides itself.
pub(super) struct Watcher<'a> {
    stop: &'a Stop,
    time: Option<Duration>,
    started: Instant,
    bar: ProgressBar,
    sums: Mutex<Sums>,
}

#[derive(Default)]
struct Sums {
    seeds: u64,
    stats: Stats,
    findings: BTreeSet<Signature>,
}

impl Sums {
    /// A figure each, what matters most first: a narrow terminal cuts the end off. What tells whether going on is worth it
    /// (how much is seen for the first time) belongs here as well.
    fn words(&self) -> String {
        let Stats { ops, states, .. } = self.stats;
        let found = match self.findings.len() {
            0 => "nothing found".to_owned(),
            found => counted(found as u64, "finding"),
        };
        let states = format!("{} ({} distinct)", counted(states, "crash state"), share(&self.stats));
        [found, counted(ops, "operation"), states, counted(self.seeds, "seed")].join(", ")
    }
}

impl<'a> Watcher<'a> {
    /// Of a campaign of so many seeds, or of that time, against this target.
    pub(super) fn new(stop: &'a Stop, target: &str, runs: Option<u64>, time: Option<Duration>) -> Self {
        let length = match (runs, time) {
            (Some(runs), None) => Some(runs),
            (_, Some(time)) => u64::try_from(time.as_millis()).ok(),
            (None, None) => None,
        };
        let template = match length {
            Some(_) => "{prefix} {percent:>3}%, {eta} left: {wide_msg}",
            None => "{prefix}, {elapsed}: {wide_msg}",
        };
        let bar = bar(target, length, template);
        Self { stop, time, started: Instant::now(), bar, sums: Mutex::default() }
    }

    /// Whether its time is over.
    pub(super) fn late(&self) -> bool {
        self.time.is_some_and(|time| self.started.elapsed() >= time)
    }

    /// How long it took so far.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// A bar on standard error, if that is a terminal.
pub(super) fn bar(name: &str, length: Option<u64>, template: &str) -> ProgressBar {
    let seen = std::io::stderr().is_terminal();
    let draw = if seen { ProgressDrawTarget::stderr_with_hz(5) } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(length, draw).with_prefix(name.to_owned());
    let bar = bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    if seen {
        // Time goes on while a slow seed is under way.
        bar.enable_steady_tick(Duration::from_millis(500));
    }
    bar
}

impl Watch for Watcher<'_> {
    fn stop(&self) -> bool {
        self.stop.asked() || self.late()
    }

    fn stop_shrinking(&self) -> bool {
        self.stop.asked()
    }

    fn seed(&self, _seed: u64, stats: &Stats, finding: Option<&Finding>) {
        if self.bar.is_hidden() {
            return;
        }
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.seeds = sums.seeds.saturating_add(1);
        sums.stats += *stats;
        if let Some(finding) = finding {
            sums.findings.insert(finding.signature.clone());
        }
        let position = match self.time {
            Some(_) => u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            None => sums.seeds,
        };
        self.bar.set_position(position);
        self.bar.set_message(sums.words());
    }

    fn shrinking(&self, progress: &Progress<'_>) {
        if self.bar.is_hidden() {
            return;
        }
        if self.bar.length().is_some() {
            self.bar.unset_length();
            if let Ok(style) = ProgressStyle::with_template("{prefix}, {elapsed}: {wide_msg}") {
                self.bar.set_style(style);
            }
        }
        self.bar.set_message(format!(
            "shrinking what was found: {} of {} parts left after {} runs, {}",
            grouped(progress.size as u64),
            grouped(progress.original as u64),
            grouped(progress.runs as u64),
            progress.pass.name()
        ));
    }
}
