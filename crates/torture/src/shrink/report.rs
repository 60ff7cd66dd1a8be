//! What a shrink may spend, how far it is, and what came of it.

use std::collections::BTreeMap;

use super::Pass;
use crate::finding::Signature;
use crate::plan::Plan;

/// What a shrink may spend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Budget {
    /// Runs in all, those of the original and of the verification included.
    pub runs: usize,
    /// Runs of one pass in one round; what is left of it is done in the next.
    pub pass_runs: usize,
    /// Candidates given to the judge at a time; changes nothing but the time it takes. At least 1.
    pub batch: usize,
    /// Each candidate is run so often, and
    pub repeats: usize,
    /// accepted if it fails at least so often (CM 10.3): 1 of 1 for a target that is deterministic.
    pub fails: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { runs: 20_000, pass_runs: 4_000, batch: 1, repeats: 1, fails: 1 }
    }
}

/// How far a shrink is; told after each run.
#[derive(Debug)]
pub struct Progress<'a> {
    /// The pass it is in.
    pub pass: Pass,
    /// The round, from 1.
    pub round: usize,
    /// Runs so far.
    pub runs: usize,
    /// Size of the original.
    pub original: usize,
    /// Size of the best plan.
    pub size: usize,
    /// The best plan so far, to be kept in case the program is stopped.
    pub best: &'a Plan,
}

/// What ended a shrink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// Nothing could be made smaller.
    Fixpoint,
    /// The runs were spent.
    Runs,
    /// The one who watched stopped it.
    Stopped,
    /// The plan it was given does not fail with that signature.
    NotFailing,
}

impl Limit {
    /// Its words in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fixpoint => "nothing could be made smaller",
            Self::Runs => "the runs were spent",
            Self::Stopped => "stopped",
            Self::NotFailing => "the plan does not fail",
        }
    }
}

/// From where a shrink goes on.
#[derive(Clone, PartialEq, Debug)]
pub struct Checkpoint {
    /// The best plan so far.
    pub plan: Plan,
    /// Size of the original.
    pub original: usize,
    /// Runs so far.
    pub runs: usize,
    /// What failed with another signature so far.
    pub others: BTreeMap<Signature, Plan>,
}

impl Checkpoint {
    /// The beginning.
    pub fn new(plan: &Plan) -> Self {
        Self { plan: plan.clone(), original: plan.size(), runs: 0, others: BTreeMap::new() }
    }
}

/// What came of a shrink.
#[derive(Clone, PartialEq, Debug)]
pub struct Shrunk {
    /// The smallest plan that fails with an equal signature.
    pub plan: Plan,
    /// Size of the original.
    pub original: usize,
    /// Size of the plan.
    pub size: usize,
    /// Runs that were needed.
    pub runs: usize,
    /// Runs of this shrink that were made, those ahead of need included: what [`Budget::batch`] changes.
    pub judged: usize,
    /// Rounds.
    pub rounds: usize,
    /// What ended it.
    pub limit: Limit,
    /// Each single element was removed from this very plan, and it failed no more.
    pub minimal: bool,
    /// Of so many further runs of the plan (`.1`), so many (`.0`) failed with an equal signature: the repeat rate.
    pub verified: (usize, usize),
    /// What failed with another signature on the way: of each, the smallest plan met.
    pub others: BTreeMap<Signature, Plan>,
}

impl Shrunk {
    /// To go on from here with [`resume`](super::resume).
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint { plan: self.plan.clone(), original: self.original, runs: self.runs, others: self.others.clone() }
    }
}
