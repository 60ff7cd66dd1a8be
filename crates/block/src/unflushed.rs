//! Whether anything was written since the last flush, and the events a flush announces to the node below.
//!
//! QEMU's generic layer flushes nothing that was not written, and tells the node below of the two halves of a flush:
//! `flush_to_os` always, `flush_to_disk` only if something was written (block-layer.md 1.4, 1.5). A node that stands
//! above another announces them like this, so that blkdebug's rules on them fire under every format.

use std::cell::Cell;

use crate::device::BlockDevice;
use crate::{Event, Result};

/// Counts changes, and remembers the count that the last flush covered.
#[derive(Debug, Default)]
pub struct Unflushed {
    changes: Cell<u64>,
    flushed: Cell<u64>,
}

/// A moment between changes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Mark(u64);

/// A change under way. It counts when this is dropped: a request that nobody waits for any more may have changed
/// something, or may yet.
#[derive(Debug)]
#[must_use = "the change counts when this is dropped"]
pub struct Change<'a>(&'a Unflushed);

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.0.changed();
    }
}

impl Unflushed {
    /// A write, write zeroes, discard or resize begins; it counts when what this returns is dropped.
    pub fn change(&self) -> Change<'_> {
        Change(self)
    }

    /// A write, write zeroes, discard or resize has ended, successfully or not.
    pub fn changed(&self) {
        self.changes.set(self.changes.get().wrapping_add(1));
    }

    /// This moment, if there is anything to flush at it.
    pub fn mark(&self) -> Option<Mark> {
        (self.changes.get() != self.flushed.get()).then(|| Mark(self.changes.get()))
    }

    /// A flush sent at `mark` has succeeded.
    pub fn flushed(&self, mark: Option<Mark>) {
        if let Some(Mark(changes)) = mark {
            self.flushed.set(self.flushed.get().max(changes));
        }
    }

    /// Flushes `below` for a node that holds nothing back itself, and announces it.
    ///
    /// # Errors
    /// Those of the flush.
    pub async fn flush(&self, below: &impl BlockDevice) -> Result<()> {
        let mark = self.mark();
        announce(below, Event::FlushToOs).await;
        if mark.is_some() {
            announce(below, Event::FlushToDisk).await;
        }
        below.flush().await?;
        self.flushed(mark);
        Ok(())
    }
}

/// Announces an event to a node if it listens.
async fn announce(below: &impl BlockDevice, event: Event) {
    if below.listens(event) {
        below.event(event).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_when_it_ends_or_is_dropped() {
        let unflushed = Unflushed::default();
        let change = unflushed.change();
        assert_eq!(unflushed.mark(), None, "it is under way");
        drop(change);
        assert!(unflushed.mark().is_some());
    }

    #[test]
    fn a_flush_covers_what_was_written_before_it() {
        let unflushed = Unflushed::default();
        assert_eq!(unflushed.mark(), None, "nothing was written");
        unflushed.changed();
        let first = unflushed.mark();
        assert!(first.is_some());
        unflushed.changed();
        unflushed.flushed(first);
        assert!(unflushed.mark().is_some(), "the second change came after the flush was sent");
        unflushed.flushed(unflushed.mark());
        assert_eq!(unflushed.mark(), None);
        unflushed.flushed(first);
        assert_eq!(unflushed.mark(), None, "an older flush takes nothing back");
    }
}
