//! Who looks on.

use crate::run::{Finding, Stats};
use crate::shrink::Progress;

/// Hears of what a campaign does, from whichever thread does it.
pub trait Watch: Sync {
    /// Whether it is to end: no seed is begun any more, and those under way are given up. Asked often, by every thread.
    fn stop(&self) -> bool {
        false
    }

    /// Whether shrinking is to end with what it has. Asked as often.
    fn stop_shrinking(&self) -> bool {
        false
    }

    /// A seed was run.
    fn seed(&self, seed: u64, stats: &Stats, finding: Option<&Finding>) {
        let _ = (seed, stats, finding);
    }

    /// A finding is being shrunk.
    fn shrinking(&self, progress: &Progress<'_>) {
        let _ = progress;
    }
}

/// Nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Watch for Silent {}
