//! Watching a campaign: figures on a terminal, its time, and signals.

use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use blkproof_torture::campaign::Watch;
use blkproof_torture::run::{Finding, Stats};
use blkproof_torture::shrink::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::numbers::grouped;
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
    findings: u64,
    stats: Stats,
}

impl<'a> Watcher<'a> {
    /// Of a campaign of so many seeds, or of that time, against this target.
    pub(super) fn new(stop: &'a Stop, target: &str, runs: Option<u64>, time: Option<Duration>) -> Self {
        let seen = std::io::stderr().is_terminal();
        let length = match (runs, time) {
            (Some(runs), None) => Some(runs),
            (_, Some(time)) => u64::try_from(time.as_millis()).ok(),
            (None, None) => None,
        };
        let draw = if seen { ProgressDrawTarget::stderr_with_hz(5) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(length, draw).with_prefix(target.to_owned());
        let style = ProgressStyle::with_template("{prefix} {bar:20} {percent}% {msg} {eta} left");
        let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
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
        sums.findings = sums.findings.saturating_add(finding.is_some().into());
        sums.stats += *stats;
        let position = match self.time {
            Some(_) => u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            None => sums.seeds,
        };
        let Stats { ops, states, .. } = sums.stats;
        self.bar.set_position(position);
        self.bar.set_message(format!(
            "{} operations, {} crash states ({} distinct), {} failed,",
            grouped(ops),
            grouped(states),
            share(&sums.stats),
            grouped(sums.findings),
        ));
    }

    fn shrinking(&self, progress: &Progress<'_>) {
        if self.bar.is_hidden() {
            return;
        }
        if self.bar.length().is_some() {
            self.bar.unset_length();
            if let Ok(style) = ProgressStyle::with_template("{prefix} {spinner} {msg}") {
                self.bar.set_style(style);
            }
        }
        self.bar.set_message(format!(
            "shrinking: {} of {} parts left, {} runs, {}",
            progress.size,
            progress.original,
            progress.runs,
            progress.pass.name()
        ));
        self.bar.tick();
    }
}

/// Of the states built, those that were unlike the others of their moment.
pub(super) fn share(stats: &Stats) -> String {
    match (stats.distinct.saturating_mul(100)).checked_div(stats.states) {
        Some(percent) => format!("{percent} %"),
        None => "none".to_owned(),
    }
}
