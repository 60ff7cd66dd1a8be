//! Sweeps: every request below of a plan fails, one after the other (CM 6 (3)).
//!
//! ```text
//! plan -> untouched run: requests below 1 .. N -> for each, in each way it can fail: run, quiet end, verdict
//! ```
//!
//! A plan is run untouched first, which tells how many requests it sends below until faults stop, and what they are. Then
//! request `n` fails, for `n` = 1, 2, 3, …: refused at once or failing later, with nothing, all, or a part of it done
//! (`faults`), that one alone or from it on every one of its kind until the image is opened again. A run is the same as
//! the untouched one up to where its request fails, so no run reaches a request that the untouched one did not have: the
//! sweep is over when the operation completes untouched. A fault that does not come to pass where it has to is told as
//! what it is, a driver that does different things in two runs.
//!
//! What a plan has of faults already stays: sweeping such a plan looks into what a second failure does.
//!
//! # Invariants
//! - Of findings with one signature the one of the earliest request, and of its first way to fail, is kept: what a sweep
//!   reports does not depend on how many threads worked on it.
//! - A swept plan is a plan: its findings are repeated, shrunk and kept like all others.

mod faults;
mod untouched;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use blkproof_sim::IoKey;

use self::faults::ways;
use self::untouched::Untouched;
use crate::plan::{Act, FaultAt, FaultSpec, Faults, Op, Plan};
use crate::run::{Finding, Outcome, Settings, Stats, run};
use crate::target::Target;

/// What came of sweeping one plan.
#[derive(Clone, Debug, Default)]
pub struct Swept {
    /// Figures of all its runs.
    pub stats: Stats,
    /// Requests below that failed in turn.
    pub requests: u64,
    /// Runs, the untouched one among them.
    pub runs: u64,
    /// One finding for each signature, by the number of the request that failed; and the plan that shows it, without
    /// chance.
    pub found: Vec<(Finding, Plan)>,
    /// It was stopped before all was tried.
    pub stopped: bool,
}

impl Swept {
    fn keep(&mut self, finding: Finding, plan: Plan) {
        if !self.found.iter().any(|(known, _)| known.signature == finding.signature) {
            self.found.push((finding, plan));
        }
    }
}

/// The plan of a seed as it is swept: nothing fails of itself, and it ends with a reopening, so that closing and opening
/// are swept too.
#[must_use]
pub fn plain(mut plan: Plan) -> Plan {
    plan.faults = Faults::default();
    if plan.ops.last().is_none_or(|op| op.act != Act::Reopen) {
        let id = plan.ops.iter().map(|op| op.id).max().unwrap_or(0).saturating_add(1);
        plan.ops.push(Op { id, queue: 0, act: Act::Reopen, after: Vec::new(), drop_at: None });
    }
    plan
}

/// Sweeps a plan, by so many threads, until all is tried or `stop` says so.
///
/// A plan that fails untouched is not swept: each of its runs would say the same.
pub fn sweep(
    plan: &Plan,
    target: &dyn Target,
    settings: &Settings,
    jobs: usize,
    stop: &(dyn Fn() -> bool + Sync),
) -> Swept {
    let mut swept = Swept::default();
    let untouched = Untouched::run(plan, target, settings);
    swept.runs = 1;
    swept.stats = untouched.outcome.stats;
    if let Some(finding) = untouched.outcome.findings.first() {
        let again = run(plan, target, settings);
        let finding = if again.digest == untouched.outcome.digest { finding.clone() } else { strays(NOT_REPEATED) };
        swept.keep(finding, untouched.outcome.explicit);
        return swept;
    }
    let requests = untouched.requests;
    swept.requests = requests.len() as u64;
    let tries: Vec<Try> =
        requests.iter().flat_map(|request| ways(request).into_iter().map(|fault| (request.key, fault))).collect();
    let next = AtomicUsize::new(0);
    let ends = Mutex::new(vec![None; tries.len()]);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(attempt) = tries.get(index) else { return };
            if stop() {
                return;
            }
            let end = one(plan, attempt, target, settings);
            let mut ends = ends.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(place) = ends.get_mut(index) {
                *place = Some(end);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs.max(1).min(tries.len()) {
            scope.spawn(work);
        }
        work();
    });
    for end in ends.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let Some((stats, found)) = end else {
            swept.stopped = true;
            continue;
        };
        swept.runs = swept.runs.saturating_add(1);
        swept.stats += stats;
        if let Some((finding, plan)) = found {
            swept.keep(finding, plan);
        }
    }
    swept
}

/// A fault, and the request that has to have it.
type Try = (IoKey, FaultSpec);
type End = (Stats, Option<(Finding, Plan)>);

/// The plan with one more fault.
fn one(plan: &Plan, (key, fault): &Try, target: &dyn Target, settings: &Settings) -> End {
    let mut plan = plan.clone();
    plan.faults.named.push(fault.clone());
    let Outcome { findings, stats, digest, explicit, .. } = run(&plan, target, settings);
    let happened = explicit.faults.named.iter().any(|fault| fault.at == FaultAt::Io(*key));
    let found = match findings.into_iter().next() {
        _ if !happened => Some(strays("untouched, this plan sent a request below that it did not send again")),
        Some(_) if run(&plan, target, settings).digest != digest => Some(strays(NOT_REPEATED)),
        found => found,
    };
    (stats, found.map(|finding| (finding, explicit)))
}

const NOT_REPEATED: &str = "the same plan made another run";

fn strays(what: &str) -> Finding {
    let text = format!("{what}: the driver depends on something that is not its input");
    Finding::new("nondeterminism", "run", text)
}
