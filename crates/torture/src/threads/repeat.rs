//! How often a plan fails, and the least plan that fails now and then.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::driver::Target;
use super::run::{Settings, run};
use crate::finding::Signature;
use crate::plan::Plan;
use crate::run::Finding;
use crate::shrink::{self, Budget, Judge, Progress, Shrunk, Verdict};

/// Of so many runs of a plan, so many failed in the same way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rate {
    /// Failed.
    pub failed: u32,
    /// Runs.
    pub runs: u32,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} runs", self.failed, self.runs)
    }
}

/// Runs of a plan that hangs are dear, and each leaves its threads behind.
const HANGS: u32 = 3;
/// A shrink of a plan that hangs tries so many others.
const HANGING: usize = 40;
/// And waits for so much less.
const HURRY: u32 = 10;

/// Runs a plan so often, and counts what fails with this signature; without one, what fails. With what the first of those
/// runs said.
pub fn rate(
    plan: &Plan,
    target: &Arc<dyn Target>,
    settings: &Settings,
    signature: Option<&Signature>,
    runs: u32,
) -> (Rate, Option<Finding>) {
    let mut rate = Rate::default();
    let (mut first, mut hangs) = (None, 0);
    while rate.runs < runs && hangs < HANGS {
        let found = run(plan, target, settings, u64::from(rate.runs)).finding;
        rate.runs = rate.runs.saturating_add(1);
        let Some(found) = found.filter(|found| signature.is_none_or(|wanted| found.signature == *wanted)) else {
            continue;
        };
        rate.failed = rate.failed.saturating_add(1);
        hangs += u32::from(found.signature.code == "hang");
        first.get_or_insert(found);
    }
    (rate, first)
}

/// Judges candidates of the shrinker by running each until it fails, but not more often than so many times (CM 10.3).
#[derive(Debug)]
pub struct Repeats<'a> {
    target: &'a Arc<dyn Target>,
    settings: Settings,
    signature: &'a Signature,
    runs: u32,
    /// Of the next run: the pauses of each are others.
    number: AtomicU64,
}

impl fmt::Debug for dyn Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.name()).finish()
    }
}

impl<'a> Repeats<'a> {
    /// A plan fails if one of so many runs of it has this signature.
    pub fn new(target: &'a Arc<dyn Target>, settings: &Settings, signature: &'a Signature, runs: u32) -> Self {
        Self { target, settings: *settings, signature, runs, number: AtomicU64::new(0) }
    }

    fn one(&self, plan: &Plan) -> Verdict {
        let mut other = Verdict::Passes;
        for _ in 0..self.runs {
            let number = self.number.fetch_add(1, Ordering::Relaxed);
            let Some(finding) = run(plan, self.target, &self.settings, number).finding else { continue };
            match finding.signature.code.as_str() {
                "plan" | "create" => return Verdict::Invalid,
                _ if finding.signature == *self.signature => return Verdict::Fails(finding.signature, finding.op),
                _ => other = Verdict::Fails(finding.signature, finding.op),
            }
        }
        other
    }
}

impl Judge for Repeats<'_> {
    fn judge(&self, candidates: &[Plan]) -> Vec<Verdict> {
        candidates.iter().map(|plan| self.one(plan)).collect()
    }
}

/// The least of a plan that still fails with this signature in one of so many runs, how often it does, and what it then
/// said first.
///
/// A plan that fails seldom may be taken for one that does not, so the result is small, and no claim is made that nothing
/// could be left away ([`Shrunk::minimal`] is false); [`Shrunk::verified`] is the rate.
pub fn shrink(
    plan: &Plan,
    signature: &Signature,
    target: &Arc<dyn Target>,
    settings: &Settings,
    runs: u32,
    budget: &Budget,
    watch: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> (Shrunk, Option<Finding>) {
    let hangs = signature.code == "hang";
    let (hurried, budget) = match hangs {
        true => {
            let patience = (settings.patience / HURRY).max(Duration::from_secs(1)).min(settings.patience);
            (Settings { patience, ..*settings }, Budget { runs: budget.runs.min(HANGING), ..budget.clone() })
        }
        false => (*settings, budget.clone()),
    };
    let judge = Repeats::new(target, &hurried, signature, runs);
    let mut shrunk = shrink::shrink(plan, signature, &budget, &judge, watch);
    let (rate, first) = rate(&shrunk.plan, target, settings, Some(signature), runs);
    shrunk.minimal = false;
    shrunk.verified = (index(rate.failed), index(rate.runs));
    (shrunk, first)
}

fn index(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
