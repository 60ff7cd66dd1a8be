//! L1 entries, and growing the L1 table.

use std::rc::Rc;

use blkproof_block::{BlockDevice, Event, IoError, Result};

use super::Qcow2;
use super::cache::Table;
use super::entry::{COPIED, L1_RESERVED};
use super::units::{HostOffset, OFFSET_MASK, index};

/// An L1 entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct L1Entry {
    /// The L2 table; `None`: nothing of this range is mapped.
    pub(crate) table: Option<HostOffset>,
    /// The table is ours alone and may be changed in place.
    pub(crate) copied: bool,
}

/// An L1 entry that says nothing sensible: its words.
pub(crate) struct BadL1Entry(pub(crate) String);

impl<D: BlockDevice> Qcow2<D> {
    /// The entry at `slot`, a slot inside the disk.
    pub(crate) fn l1_entry(&self, slot: u64) -> Result<L1Entry, BadL1Entry> {
        let raw = self.l1.borrow().word(slot);
        let offset = raw & OFFSET_MASK;
        if self.geometry.in_cluster(offset) != 0 {
            return Err(BadL1Entry(format!("L2 table offset {offset:#x} unaligned (L1 index: {slot:#x})")));
        }
        if raw & L1_RESERVED != 0 {
            return Err(BadL1Entry(format!("reserved bits set in L1 entry {raw:#x} (L1 index: {slot:#x})")));
        }
        let table = (offset != 0).then_some(HostOffset(offset));
        Ok(L1Entry { table, copied: table.is_some() && raw & COPIED != 0 })
    }

    /// Makes `slot` point at a table of our own. Rule 3: the sector is written after the table.
    pub(crate) fn set_l1_entry(&self, slot: u64, table: HostOffset) {
        self.l1.borrow().set_word(slot, table.0 | COPIED);
    }

    /// Makes the L1 table large enough for `entries` entries.
    ///
    /// The new table is written and flushed before the header names it; the old one is freed after that. All requests
    /// are locked out by the caller, and everything is committed.
    pub(crate) async fn grow_l1(&self, entries: u64) -> Result<()> {
        let old = Rc::clone(&self.l1.borrow());
        let old_entries = u64::from(self.header.borrow().l1_entries);
        if entries <= old_entries {
            return Ok(());
        }
        let bytes = entries.saturating_mul(8);
        let new_entries = u32::try_from(entries).ok().filter(|_| bytes <= super::header::L1_BYTES_MAX);
        let Some(new_entries) = new_entries else {
            return Err(IoError::new(blkproof_block::Errno::FBIG).detail("the L1 table would be larger than 32 MiB"));
        };
        self.file.event(Event::L1GrowAllocTable).await;
        let clusters = self.geometry.clusters(bytes);
        let reserved = self.allocate_contiguous(clusters).await?;
        let mut content = old.copy();
        content.truncate(index(old_entries.saturating_mul(8)));
        content.resize(index(clusters << self.geometry.cluster_bits), 0);

        // Counts first: a header that names a table whose clusters count as free would be damage (rule 1). With lazy
        // refcounts a commit does not write them, and without a changed table the dirty bit is not set either.
        self.commit().await?;
        {
            let _turn = self.commit_lock.lock().await;
            self.settle().await?;
            self.write_blocks_locked().await?;
            self.file.event(Event::L1GrowWriteTable).await;
            self.file_write(reserved.offset(), &content).await.map_err(|e| e.context("writing the new L1 table"))?;
            self.file.flush().await?;
            self.file.event(Event::L1GrowActivateTable).await;
            let new_offset = reserved.offset();
            // If the header write fails or is dropped, the disk may hold either header. The next commit writes the
            // old one again before it frees the clusters of the new table.
            let switched = self.change_header(|header| {
                header.l1_entries = new_entries;
                header.l1_offset = new_offset;
            });
            switched.await?;
            let offset = reserved.keep();
            content.truncate(index(bytes).next_multiple_of(512));
            *self.l1.borrow_mut() = Rc::new(Table::clean(offset, content));
            let old_bytes = old_entries.saturating_mul(8);
            self.move_metadata((old.offset, old_bytes), (offset, bytes), "active L1 table");
            self.free_clusters(old.offset, self.geometry.clusters(old_bytes), false);
        }
        Ok(())
    }

    pub(crate) fn move_metadata(&self, old: (u64, u64), new: (u64, u64), what: &'static str) {
        let mut metadata = self.metadata.borrow_mut();
        let clusters = |(offset, bytes): (u64, u64)| {
            let first = offset >> self.geometry.cluster_bits;
            first..first + self.geometry.clusters(bytes)
        };
        for cluster in clusters(old) {
            metadata.remove(&cluster);
        }
        for cluster in clusters(new) {
            metadata.insert(cluster, what);
        }
    }
}
