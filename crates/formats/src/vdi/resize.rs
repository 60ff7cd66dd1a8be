//! Changing the size, closing gaps, and closing the image: all that needs the image for itself.
//!
//! # Growing
//! New map entries are written behind the old ones and flushed; then the header makes them count. Where the map has no
//! room to grow, the first data blocks make place for a new one:
//!
//! 1. The blocks at indices below `k` are copied behind the last one, the map entries follow in a commit. From then on
//!    nothing durable refers to the space of the first `k` blocks. If that takes indices at or above
//!    `blocks_in_image`, the map is made longer first, as far as there is room.
//! 2. A whole new map is written into that space, with every index less by `k`, and flushed.
//! 3. The header, one sector, switches to the new map, to data that begins `k` blocks later, and to the new size.
//!
//! Before step 3 is durable the disk holds the old image, afterwards the new one, and guest data is at the same place
//! in both. If step 3 fails, nobody knows which of the two it is: the indices below `k` stay retired until a commit has
//! rewritten the header.
//!
//! # Shrinking
//! 1. The header, one sector, changes the size and nothing else: the map stays as long as it was.
//! 2. The entries behind the new end become unallocated, in a commit. Then their blocks are free, and the blocks that
//!    remain move into the gaps.
//! 3. The header says that the map is shorter.
//!
//! A power cut behind step 1 leaves a map that is longer than the disk needs, and blocks that nobody can reach. Growing
//! zeroes what is mapped behind the old end.
//!
//! # Indices after a power cut
//! QEMU's check calls an index at or above `blocks_in_image` too large (reading does not mind; opening for writing
//! takes such indices as they are, and close moves their blocks down). The orders above never leave one on disk, with
//! one exception: a full image whose map has no room for even `k` more entries, cut between the commit of step 1 and
//! the header of step 3 of a moving grow. There are then `k` blocks more in use than entries, so no numbering could
//! avoid it; a second copy of the map would, at the end of the file, where other programs do not expect one.

use blkproof_block::{BlockDevice, ByteRange, Errno, Event, IoError, Preallocation, Result, WriteFlags, ZeroFlags};

use super::alloc::Reservation;
use super::bmap::{Entry, GuestBlock, HostBlock, PER_SECTOR};
use super::header::{BLOCKS_MAX, Layout, SIZE_MAX};
use super::{MAP_CHUNK, Vdi};

const EVERYTHING: ByteRange = ByteRange { start: 0, end: u64::MAX };

/// Offsets of map and data are 32-bit fields.
pub(super) fn too_far() -> IoError {
    IoError::new(Errno::FBIG).detail("the VDI block map can not grow: the data would begin at 4 GiB or later")
}

impl<D: BlockDevice> Vdi<D> {
    pub(super) async fn change_size(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        let _guard = self.ranges.exclusive(EVERYTHING).await;
        // Dropped writes may land in blocks that are about to move or to be freed.
        self.settle(true).await?;
        let layout = self.layout.get();
        let size = size.checked_next_multiple_of(512).unwrap_or(u64::MAX);
        let blocks = layout.blocks_for(size);
        if size > SIZE_MAX || blocks > u64::from(BLOCKS_MAX) {
            return Err(IoError::new(Errno::FBIG).detail(format!(
                "a VDI image holds at most {SIZE_MAX:#x} bytes in {BLOCKS_MAX} blocks, not {size:#x}"
            )));
        }
        let blocks = u32::try_from(blocks).unwrap_or(BLOCKS_MAX);
        if size >= layout.size {
            // A map may be longer than the disk needs.
            let first_new = u32::try_from(layout.blocks_for(layout.size)).unwrap_or(BLOCKS_MAX);
            self.grow(Layout { size, blocks: blocks.max(layout.blocks), ..layout }).await?;
            if self.is_static() || preallocation != Preallocation::Off {
                self.preallocate(first_new, preallocation).await?;
                self.commit(true).await?;
            }
            return Ok(());
        }
        self.shrink(Layout { size, blocks, ..layout }).await
    }

    async fn grow(&self, wanted: Layout) -> Result<()> {
        let layout = self.layout.get();
        if wanted == layout {
            return Ok(());
        }
        // Every entry is durable from here on: nobody else changes the map, as we hold every lock.
        self.commit(false).await?;
        self.zero_behind_end(&layout, wanted.size).await?;
        if wanted.map_offset.saturating_add(wanted.map_len()) > wanted.data_offset {
            return self.grow_by_moving(wanted).await;
        }
        self.grow_in_place(wanted).await
    }

    /// Grows to a map that ends before the data begins.
    async fn grow_in_place(&self, wanted: Layout) -> Result<()> {
        let layout = self.layout.get();
        let _turn = self.metadata_turn().await?;
        if wanted.blocks > layout.blocks {
            self.write_future_map(layout.blocks / PER_SECTOR, wanted, 0).await?;
        }
        self.file.flush().await?;
        let count = self.count().max(self.allocator.end());
        self.write_header(&wanted, count).await?;
        self.file.flush().await?;
        self.header_is_sure(count);
        self.layout.set(wanted);
        self.map.borrow_mut().extend(wanted.blocks);
        self.allocator.set_limit(wanted.blocks);
        Ok(())
    }

    /// Makes what lies behind the end of the disk zero up to `size`, in blocks that are mapped: another program may
    /// have left anything there, a shrink leaves what was cut off.
    async fn zero_behind_end(&self, layout: &Layout, size: u64) -> Result<()> {
        let mut at = layout.size;
        let end = layout.block_size.saturating_mul(layout.blocks.into()).min(size.next_multiple_of(layout.block_size));
        while at < end {
            let offset = at % layout.block_size;
            let len = layout.block_size.saturating_sub(offset);
            let block = GuestBlock(u32::try_from(at / layout.block_size).unwrap_or(u32::MAX));
            let entry = self.map.borrow().get(block);
            if let Some(Entry::Mapped(index)) = entry {
                let place = layout.place(index.0).saturating_add(offset);
                let inside = self.file.info().size.saturating_sub(place).min(len);
                if inside > 0 {
                    self.file.write_zeroes(place, inside, ZeroFlags::MAY_UNMAP).await?;
                }
            }
            at = at.saturating_add(len);
        }
        Ok(())
    }

    /// Writes the map of `wanted` from sector `first` on, with every index less by `by`.
    async fn write_future_map(&self, first: u32, wanted: Layout, by: u32) -> Result<()> {
        let sectors = wanted.blocks.div_ceil(PER_SECTOR);
        let per_chunk = u32::try_from(MAP_CHUNK / 512).unwrap_or(1);
        let mut from = first;
        while from < sectors {
            let to = sectors.min(from.saturating_add(per_chunk));
            let bytes: Vec<u8> = {
                let map = self.map.borrow();
                (from..to).flat_map(|sector| map.future_sector(sector, wanted.blocks, by)).collect()
            };
            let at = wanted.map_offset.saturating_add(u64::from(from).saturating_mul(512));
            self.write_metadata(at, &bytes).await?;
            from = to;
        }
        Ok(())
    }

    async fn grow_by_moving(&self, wanted: Layout) -> Result<()> {
        let layout = self.layout.get();
        let by = wanted.map_len().div_ceil(layout.block_size);
        let wanted = Layout {
            map_offset: layout.data_offset,
            data_offset: layout.data_offset.saturating_add(by.saturating_mul(layout.block_size)),
            ..wanted
        };
        let by = u32::try_from(by).map_err(|_| too_far())?;
        if self.header.encode(&wanted, 0).is_none() {
            return Err(too_far());
        }
        let moving = self.map.borrow().owners().range(..HostBlock(by)).count();
        let end = self.allocator.end().max(by).saturating_add(u32::try_from(moving).unwrap_or(u32::MAX));
        if end > layout.blocks {
            let room = layout.data_offset.saturating_sub(layout.map_offset) / 4;
            let room = u32::try_from(room).unwrap_or(u32::MAX).min(BLOCKS_MAX);
            #[cfg(test)]
            let room = if self.mutated(super::tests::Mutant::MovesBehindMap) { 0 } else { room };
            let blocks = end.min(room);
            if blocks > layout.blocks {
                self.grow_in_place(Layout { blocks, ..layout }).await?;
            }
        }
        // Every index below `by` is ours, either at once or when its block has moved.
        let mut vacated: Vec<Reservation<'_>> = Vec::new();
        if self.allocator.has_retired() {
            self.commit(false).await?;
        }
        vacated.extend((0..by).filter_map(|index| self.allocator.reserve_exactly(index)));
        let first: Vec<_> =
            self.map.borrow().owners().range(..HostBlock(by)).map(|(&from, &owner)| (from, owner)).collect();
        let mut left = Vec::new();
        for (from, owner) in first {
            let to = self.allocator.reserve_at_end(by).ok_or_else(too_far)?;
            self.move_block(owner, from, to).await?;
            left.push(from);
        }
        // The moved blocks are retired, which this commit ends; nobody else can take them, as we hold every lock.
        self.commit(false).await?;
        vacated.extend(left.into_iter().filter_map(|from| self.allocator.reserve_exactly(from.0)));
        if vacated.len() != usize::try_from(by).unwrap_or(usize::MAX) {
            return Err(IoError::new(Errno::NOTSUP).detail("blocks at the start of the VDI image can not be moved"));
        }
        // From here on a header that names this space may reach the disk. A dropped write of the map lands here too.
        #[cfg(test)]
        let retire = !self.mutated(super::tests::Mutant::FreesWhatHeaderNames);
        #[cfg(not(test))]
        let retire = true;
        if retire {
            vacated.iter_mut().for_each(Reservation::retire_if_dropped);
        }
        self.fresh_from.set(self.fresh_from.get().max(wanted.data_offset));
        let _turn = self.metadata_turn().await?;
        self.write_future_map(0, wanted, by).await?;
        #[cfg(test)]
        if self.mutated(super::tests::Mutant::SwitchesBeforeFlush) {
            self.write_header(&wanted, self.allocator.end().saturating_sub(by)).await?;
        }
        self.file.flush().await?;
        let count = self.allocator.end().saturating_sub(by);
        self.write_header(&wanted, count).await?;
        self.file.flush().await?;
        self.header_is_sure(count);
        self.layout.set(wanted);
        let mut map = self.map.borrow_mut();
        map.rebase(by);
        map.extend(wanted.blocks);
        self.allocator.rebase(by, wanted.blocks);
        vacated.into_iter().for_each(Reservation::keep);
        Ok(())
    }

    async fn shrink(&self, wanted: Layout) -> Result<()> {
        self.commit(false).await?;
        // The map keeps its length for now.
        let smaller = Layout { blocks: self.layout.get().blocks, ..wanted };
        let turn = self.metadata_turn().await?;
        let count = self.count().max(self.allocator.end());
        self.write_header(&smaller, count).await?;
        self.file.flush().await?;
        self.header_is_sure(count);
        self.layout.set(smaller);
        drop(turn);
        // The size has changed, whatever becomes of the rest: close closes what gaps there are, and a map that is too
        // long costs four bytes for each entry.
        let _ = self.shorten_map(wanted).await;
        Ok(())
    }

    /// Gives up the blocks behind the end of the disk, and the entries that named them.
    async fn shorten_map(&self, wanted: Layout) -> Result<()> {
        #[cfg(test)]
        if self.mutated(super::tests::Mutant::ShortensMapFirst) {
            self.shorten_header(wanted).await?;
        }
        let freed = self.map.borrow_mut().unmap_from(wanted.blocks);
        freed.iter().for_each(|&block| self.allocator.retire(block));
        self.commit(false).await?;
        for block in freed {
            // Nobody else can take it, as we hold every lock.
            let Some(mut block) = self.allocator.reserve_exactly(block.0) else { continue };
            self.file.event(Event::VdiBlockFree).await;
            let place = wanted.place(block.block().0);
            let inside = self.file.info().size.saturating_sub(place).min(wanted.block_size);
            if inside > 0 {
                // Giving the space back is a courtesy; the block is free in any case.
                let _ = block.sending(self.file.discard(place, inside)).await;
            }
        }
        self.close_gaps().await?;
        if self.allocator.end() > wanted.blocks {
            return Ok(());
        }
        self.shorten_header(wanted).await?;
        self.layout.set(wanted);
        self.map.borrow_mut().truncate(wanted.blocks);
        self.allocator.set_limit(wanted.blocks);
        Ok(())
    }

    async fn shorten_header(&self, wanted: Layout) -> Result<()> {
        let _turn = self.metadata_turn().await?;
        let count = self.count().max(self.allocator.end());
        self.write_header(&wanted, count).await?;
        self.file.flush().await?;
        self.header_is_sure(count);
        Ok(())
    }

    /// Allocates every unallocated block from `first` on.
    async fn preallocate(&self, first: u32, preallocation: Preallocation) -> Result<()> {
        let zero = match preallocation {
            Preallocation::Off | Preallocation::Metadata => ZeroFlags::MAY_UNMAP,
            Preallocation::Falloc | Preallocation::Full => ZeroFlags::empty(),
        };
        let layout = self.layout.get();
        let end = u32::try_from(layout.blocks_for(layout.size)).unwrap_or(layout.blocks);
        for block in first..end {
            let entry = self.map.borrow().get(GuestBlock(block));
            if entry == Some(Entry::Unallocated) {
                self.allocate(u64::from(block).saturating_mul(layout.block_size), None, zero).await?;
            }
        }
        Ok(())
    }

    /// Moves the last blocks into gaps until indices are dense, and lowers the count to what is mapped. The caller
    /// holds every lock.
    async fn close_gaps(&self) -> Result<()> {
        if self.allocator.has_retired() {
            self.commit(false).await?;
        }
        let mut moved = false;
        let owners = self.map.borrow().owners();
        let dense = u32::try_from(owners.len()).unwrap_or(u32::MAX);
        if self.allocator.end() > dense {
            let gaps = (0..dense).filter(|&index| !owners.contains_key(&HostBlock(index)));
            for (gap, (&from, &owner)) in gaps.zip(owners.range(HostBlock(dense)..).rev()) {
                let Some(to) = self.allocator.reserve_exactly(gap) else { continue };
                self.move_block(owner, from, to).await?;
                moved = true;
            }
        }
        if moved {
            // The places left behind are free, and the end is where it belongs, only when the entries are durable.
            self.commit(false).await?;
        }
        self.commit(true).await
    }

    /// Copies the block `from` of `owner` to `to` and maps it there; `from` is free after the next commit. The caller
    /// holds every lock, and nothing can land late.
    async fn move_block(&self, owner: GuestBlock, from: HostBlock, mut to: Reservation<'_>) -> Result<()> {
        let layout = self.layout.get();
        self.file.event(Event::VdiBlockAlloc).await;
        let (target, _) = self.claim(&to)?;
        let source = layout.place(from.0);
        let mut buf = vec![0; usize::try_from(layout.block_size.min(1 << 20)).unwrap_or(512)];
        let step = buf.len() as u64;
        let mut done = 0;
        while done < layout.block_size {
            self.read_file(source.saturating_add(done), &mut buf).await?;
            self.file.event(Event::VdiBlockWrite).await;
            to.sending(self.file.write(target.saturating_add(done), &buf, WriteFlags::empty())).await?;
            done = done.saturating_add(step);
        }
        self.map.borrow_mut().set(owner, to.block());
        to.keep();
        self.allocator.retire(from);
        self.file.event(Event::VdiBlockFree).await;
        Ok(())
    }

    /// Everything `close` does, except closing the file.
    pub(super) async fn finish(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let _guard = self.ranges.exclusive(EVERYTHING).await;
        self.settle(true).await?;
        self.close_gaps().await
    }
}
