//! Who says whether a candidate fails.

use blkproof_sim::IoKey;

use crate::finding::Signature;
use crate::plan::{OpId, Plan};

/// What became of a candidate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It fails with this signature; the request that showed it, if it was one.
    Fails(Signature, Option<OpId>),
    /// Nothing is wrong.
    Passes,
    /// It cannot be run.
    Invalid,
}

/// Runs candidates.
pub trait Judge {
    /// One verdict for each candidate, in their order. They are independent of each other, so that they may be judged in
    /// parallel. One that is missing counts as [`Verdict::Invalid`].
    fn judge(&self, candidates: &[Plan]) -> Vec<Verdict>;

    /// The requests below that may or may not have survived the plan's power cuts, in the order of their effects: what
    /// replaces a random crash state is named by them. `None` if that is not known; the names are guessed then.
    fn pending(&self, plan: &Plan) -> Option<Vec<IoKey>> {
        let _ = plan;
        None
    }
}
