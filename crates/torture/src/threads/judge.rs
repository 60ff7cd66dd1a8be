//! What was heard, judged by the oracle in the order in which it was heard.

use std::time::Duration;

use super::record::{Failure, Heard};
use crate::oracle::{self, Ending, Oracle, Violation};
use crate::plan::{Act, Op, OpId, Plan};
use crate::run::{Finding, Stats, judge_check};
use crate::target::Promises;
use blkproof_block::Errno;

/// The judge of one run. It stops at the first finding: what comes after it may come from it.
pub(super) struct Judge<'a> {
    plan: &'a Plan,
    promises: Promises,
    oracle: Oracle,
    phase: &'static str,
    /// A flush has failed: later ones may go on failing (CM 4.7 (2)).
    flush_failed: bool,
    /// Requests sent and not answered.
    under_way: Vec<OpId>,
    /// Something failed below, so that leaks are excused where they may be.
    failed: bool,
    pub(super) finding: Option<Finding>,
    pub(super) stats: Stats,
}

impl<'a> Judge<'a> {
    pub(super) fn new(plan: &'a Plan, promises: Promises) -> Self {
        Self {
            plan,
            promises,
            oracle: Oracle::with_promises(plan.target.size, None, promises.of_client()),
            phase: "open",
            flush_failed: false,
            under_way: Vec::new(),
            failed: false,
            finding: None,
            stats: Stats::default(),
        }
    }

    pub(super) fn hear(&mut self, mut all: Vec<Heard>) {
        // A thread that panics with a lock in its hands makes others panic that come for the lock, and they may be heard
        // before it is: it is the one to be told of.
        let poisoned = |heard: &Heard| matches!(heard, Heard::Panicked(_, panic) if panic.text.contains("PoisonError"));
        if all.iter().any(|heard| matches!(heard, Heard::Panicked(..)) && !poisoned(heard)) {
            all.retain(|heard| !poisoned(heard));
        }
        for (step, heard) in all.into_iter().enumerate() {
            if self.finding.is_some() {
                // Who else was at work is no more than a figure.
                if let Heard::Sent(..) = heard {
                    self.stats.ops = self.stats.ops.saturating_add(1);
                }
                continue;
            }
            self.one(heard);
            if let Some(finding) = &mut self.finding {
                finding.step = step as u64;
            }
        }
    }

    /// Nothing was answered for so long.
    pub(super) fn hangs(&mut self, patience: Duration) {
        let names: Vec<_> = self.under_way.iter().map(|id| self.name(*id)).collect();
        let waiting = match names.as_slice() {
            [] => "opening, closing or reading the image".to_owned(),
            names => names.join(", "),
        };
        let mut finding =
            Finding::new("hang", self.phase, format!("nothing was answered for {patience:?}: {waiting} does not end"));
        finding.op = self.under_way.first().copied();
        self.finding.get_or_insert(finding);
    }

    /// What was done to the unit that the finding is about.
    pub(super) fn history(&self) -> Vec<oracle::Event> {
        let range = self.finding.as_ref().and_then(|finding| finding.range).filter(|range| !range.is_empty());
        range.map(|range| self.oracle.history(range.start / 512)).unwrap_or_default()
    }

    fn one(&mut self, heard: Heard) {
        match heard {
            Heard::Phase(phase) => self.phase = phase,
            Heard::Sent(_, Act::Reopen) => {}
            Heard::Sent(id, act) => {
                self.oracle.submit(id, &act);
                self.under_way.push(id);
                if self.op(id).is_some() {
                    self.stats.ops = self.stats.ops.saturating_add(1);
                }
            }
            Heard::Read(id, range, data) => {
                self.stats.judged = self.stats.judged.saturating_add(range.len());
                if let Err(violation) = self.oracle.read_end(id, range, &data) {
                    self.violated(Some(id), violation);
                }
            }
            Heard::Ended(id, result) => self.ended(id, result),
            Heard::Opened(Ok(size)) => {
                self.flush_failed = false;
                if let Err(violation) = self.oracle.sized(size) {
                    self.violated(None, violation);
                }
            }
            Heard::Opened(Err(failure)) => {
                self.report("open", format!("the image does not open: {}", failure.error), None);
            }
            Heard::Closed(result) => {
                self.stats.reopens = self.stats.reopens.saturating_add(1);
                self.oracle.reopened(result.is_ok());
                if let Err(failure) = result {
                    self.failed = true;
                    self.judge_error("closing the image", &failure, None);
                }
            }
            Heard::Checked(verdict) => {
                self.stats.checks = self.stats.checks.saturating_add(1);
                let leaks = self.failed && self.promises.leaks_after_error;
                self.finding = judge_check(verdict, leaks, "close");
            }
            Heard::Panicked(id, panic) => {
                let at_work = id.map_or_else(String::new, |id| format!(" in {}", self.name(id)));
                self.report("panic", format!("the driver panicked{at_work}: {} ({})", panic.text, panic.site), id);
                if let Some(finding) = &mut self.finding {
                    finding.signature.site = panic.site;
                }
            }
            Heard::Unfit(text) => self.finding = Some(Finding::new("create", "create", text)),
        }
    }

    fn ended(&mut self, id: OpId, result: Result<(), Failure>) {
        self.under_way.retain(|other| *other != id);
        let op = self.op(id);
        if op.is_some_and(|op| op.act == Act::Reopen) {
            return;
        }
        let failure = match result {
            Ok(()) => return self.oracle.end(id, Ending::Done),
            Err(failure) => failure,
        };
        self.oracle.end(id, Ending::Failed);
        let Some(op) = op else {
            // A read of the run's own, after faults have stopped. An image that was opened since has to be readable.
            let again = self.stats.reopens > self.planned_reopens();
            if self.promises.recovers || again {
                let text = format!("a read failed with '{}', although faults have stopped", failure.error);
                self.report("error-contract", text, None);
            }
            return;
        };
        self.failed |= failure.injected;
        let refused = matches!(op.act, Act::Zeroes { no_fallback: true, .. } | Act::Write { compressed: true, .. })
            && failure.error.errno == Errno::NOTSUP;
        let flushes = match op.act {
            Act::Flush => true,
            Act::Write { fua, .. } | Act::Zeroes { fua, .. } => fua,
            _ => false,
        };
        if !(refused || failure.beyond || flushes && self.flush_failed) {
            let what = self.name(id);
            self.judge_error(&what, &failure, Some(id));
        }
        self.flush_failed |= flushes;
    }

    fn planned_reopens(&self) -> u64 {
        self.plan.ops.iter().filter(|op| op.act == Act::Reopen).count() as u64
    }

    /// Judges an error: whether anything that was done to the driver explains it (CM 4.2 (5)).
    fn judge_error(&mut self, what: &str, failure: &Failure, id: Option<OpId>) {
        if !failure.injected {
            let text = format!("{what} failed with '{}', although nothing had failed below", failure.error);
            self.report("error-contract", text, id);
        }
    }

    fn violated(&mut self, id: Option<OpId>, violation: Violation) {
        let mut finding = Finding::new(violation.code.name(), self.phase, violation.to_string());
        finding.op = id;
        finding.range = Some(violation.range);
        finding.allowed = violation.allowed;
        self.finding = Some(finding);
    }

    fn report(&mut self, code: &str, text: String, id: Option<OpId>) {
        let mut finding = Finding::new(code, self.phase, text);
        finding.op = id;
        self.finding = Some(finding);
    }

    fn op(&self, id: OpId) -> Option<&'a Op> {
        self.plan.ops.iter().find(|op| op.id == id)
    }

    fn name(&self, id: OpId) -> String {
        let what = self.op(id).map_or("read", |op| op.act.name());
        format!("op {id} ({what})")
    }
}
