//! Memory an analysis may hold.

use std::sync::atomic::{AtomicU64, Ordering};

/// Asking for more than there is left. The work is to be done in smaller parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// A bound on memory, shared by the threads of a check.
#[derive(Debug)]
pub(crate) struct Budget {
    left: AtomicU64,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { left: AtomicU64::new(bytes) }
    }

    /// Takes `bytes` out of what is left; nothing is taken if that is not there.
    pub(crate) fn take(&self, bytes: u64) -> Result<(), Full> {
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes))
            .map(|_| ())
            .map_err(|_| Full)
    }

    /// Gives back what [`take`](Self::take) took.
    pub(crate) fn give(&self, bytes: u64) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }
}
