//! Writes below that were dropped and may land late.

use std::cell::Cell;

use blkproof_block::{BlockDevice, Result};

/// Knows whether there are any.
#[derive(Debug, Default)]
pub(super) struct Late {
    dropped: Cell<u64>,
    settled: Cell<u64>,
}

/// Counts a write as dropped unless it ends.
struct Sent<'a>(&'a Cell<u64>);

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_add(1));
    }
}

impl Late {
    /// A write below, watched.
    pub(super) async fn sending<T>(&self, write: impl Future<Output = T>) -> T {
        let sent = Sent(&self.dropped);
        let result = write.await;
        std::mem::forget(sent);
        result
    }

    /// Returns when nothing that was dropped before can land any more.
    pub(super) async fn settle(&self, below: &impl BlockDevice) -> Result<()> {
        let seen = self.dropped.get();
        if self.settled.get() < seen {
            below.drain().await?;
            self.settled.set(self.settled.get().max(seen));
        }
        Ok(())
    }
}
