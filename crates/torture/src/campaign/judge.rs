//! Judging candidates of the shrinker by running them.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use blkproof_sim::IoKey;

use crate::plan::Plan;
use crate::run::{Settings, run_until};
use crate::shrink::{Judge, Verdict};
use crate::target::Target;

/// Runs every candidate, several at a time.
pub struct Replays<'a> {
    /// Against this.
    pub target: &'a dyn Target,
    /// Within these bounds.
    pub settings: Settings,
    /// By so many threads.
    pub jobs: usize,
    /// Whether to end: candidates that are under way then count as unfit.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

impl std::fmt::Debug for Replays<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replays").field("target", &self.target.name()).field("jobs", &self.jobs).finish()
    }
}

impl Judge for Replays<'_> {
    fn judge(&self, candidates: &[Plan]) -> Vec<Verdict> {
        let next = AtomicUsize::new(0);
        let verdicts = Mutex::new(vec![None; candidates.len()]);
        let work = || {
            while let Some((index, plan)) = {
                let index = next.fetch_add(1, Ordering::Relaxed);
                candidates.get(index).map(|plan| (index, plan))
            } {
                let verdict = self.one(plan);
                let mut verdicts = verdicts.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(place) = verdicts.get_mut(index) {
                    *place = Some(verdict);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.jobs.min(candidates.len()) {
                scope.spawn(work);
            }
            work();
        });
        let verdicts = verdicts.into_inner().unwrap_or_else(PoisonError::into_inner);
        verdicts.into_iter().map(|verdict| verdict.unwrap_or(Verdict::Invalid)).collect()
    }

    fn pending(&self, plan: &Plan) -> Option<Vec<IoKey>> {
        run_until(plan, self.target, &self.settings, self.stop)?.undecided
    }
}

impl Replays<'_> {
    /// Runs one candidate.
    fn one(&self, plan: &Plan) -> Verdict {
        if plan.validate().is_err() {
            return Verdict::Invalid;
        }
        let Some(outcome) = run_until(plan, self.target, &self.settings, self.stop) else { return Verdict::Invalid };
        match outcome.findings.into_iter().next() {
            None => Verdict::Passes,
            // The plan asks for something that is not there.
            Some(finding) if finding.signature.code == "plan" || finding.signature.code == "create" => Verdict::Invalid,
            Some(finding) => Verdict::Fails(finding.signature, finding.op),
        }
    }
}
