//! The least of a plan that still fails in the same way (CM 10).
//!
//! ```text
//! round: (a) cut after the failure -> (b) name the crash state -> (c) delta debugging -> (d) merge queues
//!        -> (e) fewest, shortest holds -> (f) lower values -> (g) remove each remaining element singly
//! rounds until one changes nothing; then (h) the result is run three times more
//! ```
//!
//! A pass is a list of edits (`search::Edit`), each a function from the best plan so far to a smaller one. They are
//! tried in order; the first that fails with an equal signature becomes the best plan, and the rest of the list goes on
//! from there. Edits name what they change by id or value, never by index, so that they mean the same after others were
//! taken.
//!
//! # Invariants
//! - Each accepted plan is strictly less than the one before in a well-founded order (`cost`), so every shrink ends.
//! - A plan that fails with another signature is never shrunk to; it is reported ([`Shrunk::others`]).
//! - Whoever judges may judge several candidates at a time ([`Budget::batch`]). What was judged ahead and turned out
//!   not to be needed is neither counted nor reported, so that results, runs and progress are the same for every batch
//!   size.
//! - No clock is read and no thread started: a caller that has no more time says so through `watch`.

mod cost;
mod element;
mod judge;
mod key;
mod passes;
mod remove;
mod report;
mod search;

use std::ops::ControlFlow;

pub use self::judge::{Judge, Verdict};
pub use self::passes::Pass;
pub use self::report::{Budget, Checkpoint, Limit, Progress, Shrunk};

use self::search::Search;
use crate::finding::Signature;
use crate::plan::Plan;

/// Shrinks a plan that fails with this signature.
///
/// The plan should be explicit: faults by name, the plain order with holds, one crash point or none. Chance that is
/// left in it is taken out if the failure can do without, and kept otherwise. `watch` hears of each run, and stops the
/// shrink by breaking.
pub fn shrink(
    plan: &Plan,
    signature: &Signature,
    budget: &Budget,
    judge: &dyn Judge,
    watch: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> Shrunk {
    resume(&Checkpoint::new(plan), signature, budget, judge, watch)
}

/// Goes on from where a shrink stopped; the budget counts anew, the report from the beginning.
///
/// Which plans passed is not kept: to end at a fixpoint, the last piece needs the runs of one whole round.
pub fn resume(
    checkpoint: &Checkpoint,
    signature: &Signature,
    budget: &Budget,
    judge: &dyn Judge,
    watch: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
) -> Shrunk {
    let mut search = Search::new(checkpoint, signature, budget, judge, watch);
    if search.start() {
        while search.round() {}
        search.verify();
    }
    search.report()
}
