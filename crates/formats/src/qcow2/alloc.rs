//! Host clusters: giving them out and taking them back.
//!
//! A cluster is given out by raising its count in memory, inside one step without an await, so nobody else can get it.
//! The [`Reservation`] that results gives it back unless it is kept: that is what happens to the clusters of a write
//! that failed or was dropped. What is given back, or no longer referred to, waits in the list of freed clusters for
//! the next commit (rule 4 of the [module](super)).

use std::rc::Rc;

use blkproof_block::{BlockDevice, ByteRange, Errno, Event, IoError, Result};

use super::Qcow2;
use super::cache::Table;
use super::refcount::Width;
use super::units::{HostOffset, OFFSET_MASK, index};

/// Freed clusters that may wait before an allocation commits to get at them.
const FREED_MAX: usize = 1024;

/// One count less for each cluster of a run, once no durable entry refers to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Freed {
    /// First cluster.
    pub(crate) start: u64,
    /// Number of clusters.
    pub(crate) count: u64,
    /// The space goes back to the file system if nothing else refers to it.
    pub(crate) punch: bool,
}

/// Clusters that were given out and are not referred to yet. Dropped, they are freed again.
#[derive(Debug)]
pub(crate) struct Reservation<'a, D: BlockDevice> {
    qcow2: &'a Qcow2<D>,
    start: u64,
    count: u64,
    kept: bool,
    /// The clusters lie past the end of the file and were never written: what is not written to them reads as zeroes.
    pub(crate) fresh: bool,
}

impl<D: BlockDevice> Reservation<'_, D> {
    /// Where the first cluster lies.
    pub(crate) fn offset(&self) -> u64 {
        self.start << self.qcow2.geometry.cluster_bits
    }

    /// Number of clusters.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// They are referred to from now on.
    pub(crate) fn keep(mut self) -> u64 {
        self.kept = true;
        self.offset()
    }
}

impl<D: BlockDevice> Drop for Reservation<'_, D> {
    fn drop(&mut self) {
        if !self.kept {
            self.qcow2.push_freed(Freed { start: self.start, count: self.count, punch: false });
        }
    }
}

impl<D: BlockDevice> Qcow2<D> {
    pub(crate) fn width(&self) -> Width {
        Width(self.geometry.refcount_order)
    }

    /// Gives `count` clusters from `offset` back after the next commit.
    pub(crate) fn free_clusters(&self, offset: u64, count: u64, request: bool) {
        let punch = if request { self.pass_discard_request } else { self.pass_discard_other };
        self.push_freed(Freed { start: offset >> self.geometry.cluster_bits, count, punch });
    }

    pub(crate) fn push_freed(&self, new: Freed) {
        if new.count == 0 {
            return;
        }
        // A compressed cluster must not be put behind another one in a host cluster that is going away.
        if let Some(tail) = self.compressed_tail.get()
            && ByteRange::at(new.start, new.count).contains(tail >> self.geometry.cluster_bits)
        {
            self.compressed_tail.set(None);
        }
        let mut freed = self.freed.borrow_mut();
        match freed.last_mut() {
            Some(last) if last.start + last.count == new.start && last.punch == new.punch => last.count += new.count,
            _ => freed.push(new),
        }
    }

    /// Reserves between 1 and `want` adjacent clusters.
    pub(crate) async fn allocate(&self, want: u64) -> Result<Reservation<'_, D>> {
        if self.freed.borrow().len() > FREED_MAX {
            self.commit().await?;
        }
        self.file.event(Event::ClusterAlloc).await;
        let _turn = self.alloc_lock.lock().await;
        let block_bits = self.geometry.block_bits();
        loop {
            let known = self.free_clusters.borrow().first().copied();
            let from_known = known.is_some();
            let cluster = known.unwrap_or(self.scan_from.get());
            self.check_reach(cluster)?;
            let slot = cluster >> block_bits;
            let block = self.refcount_block_or_new(slot).await?;
            // From here to the end of the loop nothing waits: search and claim are one step.
            let first = index(cluster & ((1 << block_bits) - 1));
            let run = block.with(|bytes| self.free_run(bytes, first, want, from_known));
            let Some((first, count)) = run else {
                if from_known {
                    self.free_clusters.borrow_mut().remove(&cluster);
                } else {
                    self.scan_from.set((slot + 1) << block_bits);
                }
                continue;
            };
            let start = (slot << block_bits) + first as u64;
            {
                let mut free = self.free_clusters.borrow_mut();
                for cluster in start..start + count {
                    free.remove(&cluster);
                }
            }
            if !from_known {
                self.scan_from.set(start + count);
            }
            return self.claim(&block, start, count).await;
        }
    }

    /// Reserves exactly `count` adjacent clusters, behind everything else.
    pub(crate) async fn allocate_contiguous(&self, count: u64) -> Result<Reservation<'_, D>> {
        let _turn = self.alloc_lock.lock().await;
        let bits = self.geometry.block_bits();
        let mut start = self.geometry.clusters(self.file.info().size).max(self.scan_from.get());
        let mut at = start;
        // Refcount blocks that this creates land inside the run at worst; then the run begins behind them.
        while at < start + count {
            self.check_reach(at)?;
            let block = self.refcount_block_or_new(at >> bits).await?;
            let first = index(at & ((1 << bits) - 1));
            let end = index(((at >> bits) + 1).saturating_mul(1 << bits).min(start + count) - ((at >> bits) << bits));
            let used = block.with(|bytes| (first..end).rev().find(|&i| self.width().get(bytes, i) != 0));
            match used {
                Some(used) => {
                    start = ((at >> bits) << bits) + used as u64 + 1;
                    at = start;
                }
                None => at = ((at >> bits) << bits) + end as u64,
            }
        }
        // The blocks are looked up again one by one. Nobody else allocates while we hold the lock, so the run stays
        // free.
        let fresh = self.is_untouched(start << self.geometry.cluster_bits);
        let mut reserved = Reservation { qcow2: self, start, count: 0, kept: false, fresh };
        while reserved.count < count {
            let at = start + reserved.count;
            let block = self.refcount_block_or_new(at >> bits).await?;
            let end = (((at >> bits) + 1) << bits).min(start + count);
            self.check_not_metadata(at, end - at).await?;
            self.set_counts(&block, at, end - at, 1);
            reserved.count += end - at;
        }
        Ok(reserved)
    }

    fn check_reach(&self, cluster: u64) -> Result<()> {
        if cluster >= 1 << (56 - self.geometry.cluster_bits) {
            return Err(IoError::new(Errno::FBIG).detail("no host cluster is left within the reach of the format"));
        }
        Ok(())
    }

    /// The first run of free clusters at or after `first`; only at `first` if `exact`.
    fn free_run(&self, bytes: &[u8], first: usize, want: u64, exact: bool) -> Option<(usize, u64)> {
        let width = self.width();
        let counts = 1usize << self.geometry.block_bits();
        let last = if exact { first + 1 } else { counts };
        let first = (first..last).find(|&i| width.get(bytes, i) == 0)?;
        let end = counts.min(first.saturating_add(index(want.max(1))));
        let stop = (first..end).find(|&i| width.get(bytes, i) != 0).unwrap_or(end);
        Some((first, (stop - first) as u64))
    }

    async fn claim(&self, block: &Table, start: u64, count: u64) -> Result<Reservation<'_, D>> {
        let fresh = self.is_untouched(start << self.geometry.cluster_bits);
        self.set_counts(block, start, count, 1);
        let reserved = Reservation { qcow2: self, start, count, kept: false, fresh };
        if let Err(error) = self.check_not_metadata(start, count).await {
            reserved.keep(); // a leak, in an image that is disabled now
            return Err(error);
        }
        Ok(reserved)
    }

    fn set_counts(&self, block: &Table, start: u64, count: u64, value: u64) {
        let width = self.width();
        let first = index(start & ((1 << self.geometry.block_bits()) - 1));
        let last = first + index(count);
        let (from, _) = width.place(first);
        let (to, len) = width.place(last - 1);
        block.change(from, to + len - from, |bytes| {
            for i in first..last {
                width.set(bytes, i, value);
            }
        });
    }

    /// A cluster that counts as free but holds metadata must not be given out: the counts are damaged.
    pub(crate) async fn check_not_metadata(&self, start: u64, count: u64) -> Result<()> {
        let hit = self.metadata.borrow().range(start..start + count).next().map(|(_, what)| *what);
        match hit {
            None => Ok(()),
            Some("qcow2_header") => {
                Err(self.corrupt("preventing invalid allocation of a cluster at offset 0".to_owned()).await)
            }
            Some(what) => {
                Err(self.corrupt(format!("preventing invalid write on metadata (overlaps with {what})")).await)
            }
        }
    }

    /// The refcount block of `slot`, made if there is none.
    async fn refcount_block_or_new(&self, slot: u64) -> Result<Rc<Table>> {
        // As in QEMU, whether or not a new one is needed. Here, and not once the block is at hand: nothing may wait between
        // finding a block in the cache and changing it.
        self.file.event(Event::RefblockAlloc).await;
        if slot >= self.reftable.borrow().len() as u64 / 8 {
            self.grow_reftable(slot).await?;
        }
        if let Some(block) = self.refcount_block(slot).await? {
            return Ok(block);
        }
        // A range without a block has no cluster in use, so the block takes the first one of its own range and
        // counts itself. Nothing on disk refers to it before its content is durable (rule 1).
        self.make_room_for_block().await?;
        let start = slot << self.geometry.block_bits();
        let mut at = start;
        while self.metadata.borrow().contains_key(&at) {
            at += 1; // only in a damaged image, or one whose counts were never written
        }
        let offset = at << self.geometry.cluster_bits;
        self.check_reach(at)?;
        let mut bytes = vec![0; index(self.geometry.cluster_size())];
        self.width().set(&mut bytes, index(at - start), 1);
        let block = self.block_cache.insert(Table::new(offset, bytes));
        self.reftable.borrow().set_word(slot, offset);
        self.metadata.borrow_mut().insert(at, "refcount block");
        Ok(block)
    }

    /// The refcount block of `slot`; `None` if all its counts are zero and it does not exist.
    pub(crate) async fn refcount_block(&self, slot: u64) -> Result<Option<Rc<Table>>> {
        let raw = self.reftable.borrow().word(slot);
        let offset = raw & OFFSET_MASK;
        if offset == 0 {
            return Ok(None);
        }
        if self.geometry.in_cluster(offset) != 0 || raw != offset {
            return Err(self.corrupt(format!("refblock offset {raw:#x} unaligned (reftable index: {slot:#x})")).await);
        }
        if let Some(block) = self.block_cache.get(offset) {
            return Ok(Some(block));
        }
        self.make_room_for_block().await?;
        let _turn = self.block_cache.loads.exclusive(ByteRange::at(offset, 1)).await;
        if let Some(block) = self.block_cache.get(offset) {
            return Ok(Some(block));
        }
        self.file.event(Event::RefblockLoad).await;
        let size = self.file.info().size;
        if offset.saturating_add(self.geometry.cluster_size()) > size {
            let words = format!("refcount block at {offset:#x} reaches past end of file ({size:#x})");
            return Err(self.corrupt(words).await);
        }
        let mut bytes = vec![0; index(self.geometry.cluster_size())];
        let read = self.file.read(offset, &mut bytes).await;
        read.map_err(|e| e.context(format_args!("reading the refcount block at {offset:#x}")))?;
        Ok(Some(self.block_cache.insert(Table::clean(offset, bytes))))
    }

    async fn make_room_for_block(&self) -> Result<()> {
        if !self.block_cache.make_room() && self.block_cache.any_dirty() {
            self.write_back_blocks().await?;
            self.block_cache.make_room();
        }
        Ok(())
    }

    /// The count of a cluster; 0 where no block exists.
    pub(crate) async fn count_of(&self, cluster: u64) -> Result<u64> {
        let slot = cluster >> self.geometry.block_bits();
        if slot >= self.reftable.borrow().len() as u64 / 8 {
            return Ok(0);
        }
        let Some(block) = self.refcount_block(slot).await? else { return Ok(0) };
        let at = index(cluster & ((1 << self.geometry.block_bits()) - 1));
        Ok(block.with(|bytes| self.width().get(bytes, at)))
    }

    /// Adds one to the count of a cluster that is in use (a compressed cluster joins others), if `still` says so at
    /// that moment; `false` if it does not, or if the count is at its maximum.
    pub(crate) async fn raise_if(&self, cluster: u64, still: impl Fn() -> bool) -> Result<bool> {
        let Some(block) = self.refcount_block(cluster >> self.geometry.block_bits()).await? else { return Ok(false) };
        let at = index(cluster & ((1 << self.geometry.block_bits()) - 1));
        let count = block.with(|bytes| self.width().get(bytes, at));
        if !still() || count == 0 || count >= self.width().max() {
            return Ok(false);
        }
        self.set_counts(&block, cluster, 1, count + 1);
        Ok(true)
    }

    /// Lowers the counts of `freed`, of which no durable entry is left. `left` always says what is still to be done,
    /// should this be dropped.
    pub(crate) async fn lower(&self, left: &mut Freed) -> Result<()> {
        let bits = self.geometry.block_bits();
        while left.count > 0 {
            let cluster = left.start;
            let slot = cluster >> bits;
            let here = left.count.min(((slot + 1) << bits) - cluster);
            self.file.event(Event::ClusterFree).await;
            if left.punch {
                self.punch(cluster, here).await;
            }
            let block =
                if slot < self.reftable.borrow().len() as u64 / 8 { self.refcount_block(slot).await? } else { None };
            if let Some(block) = block {
                for cluster in cluster..cluster + here {
                    let at = index(cluster & ((1 << bits) - 1));
                    // A count of 0 here is damage that the check reports; lowering it further would make it worse.
                    let count = block.with(|bytes| self.width().get(bytes, at)).saturating_sub(1);
                    self.set_counts(&block, cluster, 1, count);
                    if count == 0 && !self.metadata.borrow().contains_key(&cluster) && cluster < self.scan_from.get() {
                        self.free_clusters.borrow_mut().insert(cluster);
                    }
                }
            }
            left.start += here;
            left.count -= here;
        }
        Ok(())
    }

    /// Gives the space of those clusters back that nobody else refers to. Before they can be reused: a discard that
    /// lands later would erase its new owner's data.
    async fn punch(&self, start: u64, count: u64) {
        let mut at = start;
        while at < start + count {
            let mut run = 0;
            while at + run < start + count && matches!(self.count_of(at + run).await, Ok(1)) {
                run += 1;
            }
            if run > 0 {
                let offset = at << self.geometry.cluster_bits;
                let len = (run << self.geometry.cluster_bits).min(self.file.info().size.saturating_sub(offset));
                if len > 0 {
                    let flight = self.in_flight(0);
                    // Advice: whether it is taken does not matter.
                    let _ = flight.over(self.file.discard(offset, len).await);
                }
            }
            at += run.max(1);
        }
    }

    /// Replaces the refcount table by one that has room for `slot` and more.
    ///
    /// The new table and the refcount blocks for the area they lie in are put behind everything the old table can
    /// describe, where every count is 0 by definition. They are written and flushed before the header names them.
    async fn grow_reftable(&self, slot: u64) -> Result<()> {
        self.file.event(Event::ReftableGrow).await;
        let _turn = self.commit_lock.lock().await;
        self.settle().await?;
        if self.header_uncertain.get() {
            // The disk may name a table that an earlier attempt left in the very area we are about to write.
            self.change_header(|_| {}).await?;
        }
        let geometry = self.geometry;
        let old = Rc::clone(&self.reftable.borrow());
        if slot < old.len() as u64 / 8 {
            return Ok(());
        }
        let old_slots = old.len() as u64 / 8;
        let block_bits = geometry.block_bits();
        let first = old_slots << block_bits;
        // Half as much again, and room for itself: the area needs a block for every 2^block_bits of its clusters.
        let wanted = (old_slots + old_slots / 2).max(slot + 1) + 1;
        let mut blocks = 1;
        let (table_clusters, blocks) = loop {
            let slots = wanted.max(old_slots + blocks);
            let table_clusters = geometry.clusters(slots * 8);
            let needed = (table_clusters + blocks).div_ceil(1 << block_bits);
            if needed <= blocks {
                break (table_clusters, blocks);
            }
            blocks = needed;
        };
        let table_bytes = table_clusters << geometry.cluster_bits;
        if table_bytes > super::header::REFTABLE_BYTES_MAX {
            return Err(IoError::new(Errno::FBIG).detail("the refcount table would be larger than 8 MiB"));
        }
        let area = blocks + table_clusters;
        self.check_reach(first + area)?;
        self.check_not_metadata(first, area).await?;

        // Everything the old table names in memory has to be durable before the new one names it.
        self.write_blocks_locked().await?;
        self.file.event(Event::RefblockAllocWriteBlocks).await;
        let mut new_blocks = Vec::new();
        for number in 0..blocks {
            let mut bytes = vec![0; index(geometry.cluster_size())];
            let base = number << block_bits;
            for i in 0..(area - base.min(area)).min(1 << block_bits) {
                self.width().set(&mut bytes, index(i), 1);
            }
            let offset = (first + number) << geometry.cluster_bits;
            self.file_write(offset, &bytes).await.map_err(|e| e.context("writing a new refcount block"))?;
            new_blocks.push((offset, bytes));
        }
        self.file.event(Event::RefblockAllocWriteTable).await;
        let mut content = old.copy();
        content.resize(index(table_bytes), 0);
        for (number, (offset, _)) in new_blocks.iter().enumerate() {
            let at = index(old_slots) * 8 + number * 8;
            if let Some(place) = content.get_mut(at..at + 8) {
                place.copy_from_slice(&offset.to_be_bytes());
            }
        }
        let table_offset = (first + blocks) << geometry.cluster_bits;
        self.file_write(table_offset, &content).await.map_err(|e| e.context("writing the new refcount table"))?;
        self.file.flush().await?;

        self.file.event(Event::RefblockAllocSwitchTable).await;
        let switched = self.change_header(|header| {
            header.reftable_offset = table_offset;
            header.reftable_clusters = u32::try_from(table_clusters).unwrap_or(u32::MAX);
        });
        switched.await?;
        *self.reftable.borrow_mut() = Rc::new(Table::clean(table_offset, content));
        for (offset, bytes) in new_blocks {
            self.block_cache.insert(Table::clean(offset, bytes));
            self.metadata.borrow_mut().insert(offset >> geometry.cluster_bits, "refcount block");
        }
        let old_bytes = old.len() as u64;
        self.move_metadata((old.offset, old_bytes), (table_offset, table_bytes), "refcount table");
        self.free_clusters(old.offset, geometry.clusters(old_bytes), false);
        Ok(())
    }

    /// Where a table or data cluster was put.
    pub(crate) fn host(&self, reserved: &Reservation<'_, D>) -> HostOffset {
        HostOffset(reserved.offset())
    }
}
