//! Bringing map and header to the disk.
//!
//! The order is argued in the [parent](super). Only one commit runs at a time. A flush that waited for one which began
//! after the flush was sent has nothing left to do: that commit copied the map after everything the flush must cover.

use std::cell::Cell;

use blkproof_block::unflushed::Mark;
use blkproof_block::{BlockDevice, Event, Result, WriteFlags};
use tokio::sync::{Mutex, MutexGuard};
use zerocopy::IntoBytes;

use super::Vdi;
use super::bmap::Sector;
use super::header::Layout;

/// What commits know of each other and of the header.
#[derive(Debug)]
pub(super) struct Commits {
    lock: Mutex<()>,
    settling: Mutex<()>,
    begun: Cell<u64>,
    /// The number of the last commit that succeeded.
    succeeded: Cell<u64>,
    /// `blocks_allocated` on disk is at most this, and at least the end of the entries on disk.
    count: Cell<u32>,
    /// The header on disk may differ from what we hold: a write of it failed, was dropped, or is not flushed.
    header_unsure: Cell<bool>,
    /// Metadata writes that were dropped and may land late, and how many of them a drain has settled.
    dropped: Cell<u64>,
    settled: Cell<u64>,
}

impl Commits {
    pub(super) fn new(count: u32, end: u32) -> Self {
        Self {
            lock: Mutex::new(()),
            settling: Mutex::new(()),
            begun: Cell::new(0),
            succeeded: Cell::new(0),
            count: Cell::new(count.max(end)),
            header_unsure: Cell::new(count < end),
            dropped: Cell::new(0),
            settled: Cell::new(0),
        }
    }
}

/// Counts a metadata write as dropped unless it completes.
struct MayLandLate<'a>(&'a Cell<u64>);

impl Drop for MayLandLate<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().wrapping_add(1));
    }
}

/// Makes the sectors of a commit dirty again, and its indices retired, unless it succeeds.
struct Unfinished<'a, D> {
    image: &'a Vdi<D>,
    retired: Vec<u32>,
    durable: bool,
}

impl<D> Drop for Unfinished<'_, D> {
    fn drop(&mut self) {
        self.image.map.borrow_mut().end_commit(self.durable);
        self.image.allocator.end_retirement(std::mem::take(&mut self.retired), self.durable);
    }
}

impl<D: BlockDevice> Vdi<D> {
    /// Makes everything that completed before durable: data, map and count.
    ///
    /// `exact` also lowers `blocks_allocated` to what is in use, once the entries are durable.
    pub(super) async fn commit(&self, exact: bool) -> Result<()> {
        self.commit_for(exact, false).await
    }

    /// A commit that the guest asked for, which is announced as a flush.
    pub(super) async fn make_durable(&self) -> Result<()> {
        self.commit_for(false, true).await
    }

    async fn commit_for(&self, exact: bool, guest: bool) -> Result<()> {
        let commits = &self.commits;
        let sent = commits.begun.get();
        let _turn = commits.lock.lock().await;
        if !exact && commits.succeeded.get() > sent {
            return Ok(());
        }
        let number = commits.begun.get().saturating_add(1);
        commits.begun.set(number);
        self.settle(false).await?;

        let sectors = self.map.borrow_mut().begin_commit();
        let mut unfinished = Unfinished { image: self, retired: self.allocator.take_retired(), durable: false };
        #[cfg(test)]
        if self.mutated(super::tests::Mutant::ForgetsDirty) {
            unfinished.durable = true;
        }
        #[cfg(test)]
        if self.mutated(super::tests::Mutant::MapBeforeData) {
            self.write_map(&sectors).await?;
        }
        let end = self.allocator.end();
        if commits.header_unsure.get() || end > commits.count.get() {
            let count = end.max(commits.count.get());
            self.write_header(&self.layout.get(), count).await?;
        }
        let mark = self.unflushed.mark();
        if sectors.is_empty() && guest {
            self.announce_flush(mark).await;
        }
        self.file.flush().await?;
        commits.header_unsure.set(false);
        if !sectors.is_empty() {
            self.write_map(&sectors).await?;
            if guest {
                self.announce_flush(mark).await;
            }
            self.file.flush().await?;
        }
        self.unflushed.flushed(mark);
        unfinished.durable = true;
        drop(unfinished);
        commits.succeeded.set(number);

        let end = self.allocator.end();
        if exact && end < commits.count.get() {
            self.write_header(&self.layout.get(), end).await?;
            self.file.flush().await?;
            commits.header_unsure.set(false);
            commits.count.set(end);
        }
        Ok(())
    }

    /// Announces the flush that makes a commit durable. Before the commit's last flush and not at its beginning: what is
    /// armed is about that flush.
    async fn announce_flush(&self, mark: Option<Mark>) {
        self.file.event(Event::FlushToOs).await;
        if mark.is_some() {
            self.file.event(Event::FlushToDisk).await;
        }
    }

    /// Keeps commits away while a resize writes metadata: nothing of ours may land late when it begins, and no commit
    /// may write another header in between.
    pub(super) async fn metadata_turn(&self) -> Result<MutexGuard<'_, ()>> {
        let turn = self.commits.lock.lock().await;
        self.settle(false).await?;
        Ok(turn)
    }

    /// Writes the header sector. It is durable after a flush; the caller then says so, and updates the count if it
    /// lowers it.
    pub(super) async fn write_header(&self, layout: &Layout, count: u32) -> Result<()> {
        let raw = self.header.encode(layout, count).ok_or_else(super::resize::too_far)?;
        let commits = &self.commits;
        self.file.event(Event::VdiHeaderUpdate).await;
        commits.header_unsure.set(true);
        commits.count.set(commits.count.get().max(count));
        let late = MayLandLate(&commits.dropped);
        let result = self.file.write(0, raw.as_bytes(), WriteFlags::empty()).await;
        std::mem::forget(late);
        result.map_err(|error| error.context("writing the VDI header"))
    }

    /// The header on disk is durably what was written last, with this count.
    pub(super) fn header_is_sure(&self, count: u32) {
        self.commits.header_unsure.set(false);
        self.commits.count.set(count);
    }

    /// Whether the header on disk may differ from what we hold, in any field.
    pub(super) fn is_header_unsure(&self) -> bool {
        self.commits.header_unsure.get()
    }

    /// `blocks_allocated` as it may stand on disk.
    pub(super) fn count(&self) -> u32 {
        self.commits.count.get()
    }

    /// Writes sectors of the map, neighbours together.
    async fn write_map(&self, sectors: &[Sector]) -> Result<()> {
        let offset = self.layout.get().map_offset;
        for run in sectors.chunk_by(|(a, _), (b, _)| a.checked_add(1) == Some(*b)) {
            let Some((first, _)) = run.first() else { continue };
            let bytes: Vec<u8> = run.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
            self.write_metadata(offset.saturating_add(u64::from(*first).saturating_mul(512)), &bytes).await?;
        }
        Ok(())
    }

    /// Writes a piece of a map.
    pub(super) async fn write_metadata(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.file.event(Event::VdiBmapUpdate).await;
        let late = MayLandLate(&self.commits.dropped);
        let result = self.file.write(at, bytes, WriteFlags::empty()).await;
        std::mem::forget(late);
        result.map_err(|error| error.context(format_args!("writing the VDI block map at {at:#x}")))
    }

    /// Waits until nothing that was dropped can land any more, if anything was (or if `always`); frees quarantined
    /// blocks.
    pub(super) async fn settle(&self, always: bool) -> Result<()> {
        let commits = &self.commits;
        let needed = || commits.dropped.get() != commits.settled.get() || self.allocator.quarantined() > 0;
        if !always && !needed() {
            return Ok(());
        }
        let _turn = commits.settling.lock().await;
        if !always && !needed() {
            return Ok(());
        }
        // What is dropped while this drain runs is not covered by it.
        let (dropped, quarantined) = (commits.dropped.get(), self.allocator.quarantined());
        self.file.drain().await?;
        commits.settled.set(dropped);
        self.allocator.end_quarantine(quarantined);
        Ok(())
    }
}
