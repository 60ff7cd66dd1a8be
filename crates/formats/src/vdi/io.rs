//! Requests of the guest.
//!
//! A request is served piece by piece: a piece is a run of blocks that lie next to each other in the file, or a run of
//! unallocated ones. Where a piece lies is looked up again once its range is locked.

use blkproof_block::device::check_bounds;
use blkproof_block::range_lock::RangeGuard;
use blkproof_block::{
    BlockDevice, BlockStatus, ByteOffset, ByteRange, Capabilities, Errno, Event, IoError, Result, WriteFlags, ZeroFlags,
};

use super::Vdi;
use super::alloc::Reservation;
use super::bmap::{Entry, GuestBlock, HostBlock, entry_place};

const SECTOR: u64 = 512;

/// The start of a guest range that lies in one piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Piece {
    len: u64,
    /// Where it lies in the file; `None`: nowhere.
    place: Option<u64>,
}

/// Puts an error of a piece into the guest's terms: `place` in the file is `at` of the guest's disk, and `done` bytes
/// of the request were served before.
fn in_guest_terms(error: IoError, place: u64, at: u64, done: u64) -> IoError {
    let mut error = error.rebase(place, at);
    error.transferred = error.transferred.saturating_add(done);
    error
}

impl<D: BlockDevice> Vdi<D> {
    fn block_of(&self, at: u64) -> (GuestBlock, u64) {
        let size = self.layout.get().block_size.max(1);
        (GuestBlock(u32::try_from(at / size).unwrap_or(u32::MAX)), at % size)
    }

    /// The guest range of the block that holds `at`.
    fn block_range(&self, at: u64) -> ByteRange {
        let size = self.layout.get().block_size;
        ByteRange::at(at.saturating_sub(at % size.max(1)), size)
    }

    /// The first piece of a range inside the disk, which is not empty.
    fn lookup(&self, at: u64, len: u64) -> Result<Piece> {
        check_bounds(at, len, self.size())?;
        let layout = self.layout.get();
        let map = self.map.borrow();
        let (first, offset) = self.block_of(at);
        let entry = |block| map.get(block).ok_or_else(|| IoError::past_end(at, len, self.size()));
        let start = entry(first)?;
        let mut piece = Piece {
            len: layout.block_size.saturating_sub(offset),
            place: match start {
                Entry::Unallocated => None,
                Entry::Mapped(index) => {
                    if self.read_only && map.is_shared(index) {
                        let place = entry_place(&layout, first.0);
                        return Err(IoError::new(Errno::IO).at(at).detail(format!(
                            "block map entry {} at {place:#x} names block {}, which another entry names too",
                            first.0, index.0
                        )));
                    }
                    Some(layout.place(index.0).saturating_add(offset))
                }
            },
        };
        let mut expected = start;
        let mut block = first;
        while piece.len < len {
            block = GuestBlock(block.0.saturating_add(1));
            expected = match expected {
                Entry::Mapped(index) => Entry::Mapped(HostBlock(index.0.saturating_add(1))),
                Entry::Unallocated => Entry::Unallocated,
            };
            let shared = matches!(expected, Entry::Mapped(index) if self.read_only && map.is_shared(index));
            if entry(block)? != expected || shared {
                break;
            }
            piece.len = piece.len.saturating_add(layout.block_size);
        }
        piece.len = piece.len.min(len);
        Ok(piece)
    }

    /// The first piece of a range, kept where it is by a lock if it is anywhere.
    async fn locked(&self, at: u64, len: u64) -> Result<(Piece, Option<RangeGuard<'_>>)> {
        loop {
            let piece = self.lookup(at, len)?;
            if piece.place.is_none() {
                return Ok((piece, None));
            }
            let guard = self.ranges.shared(ByteRange::at(at, piece.len)).await;
            // A resize may have come first.
            if self.lookup(at, piece.len)? == piece {
                return Ok((piece, Some(guard)));
            }
        }
    }

    pub(super) async fn read_range(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        check_bounds(at, buf.len() as u64, self.size())?;
        let (mut here, mut rest) = (at, buf);
        while !rest.is_empty() {
            let (piece, _guard) = self.locked(here, rest.len() as u64).await?;
            let (now, later) = rest.split_at_mut(usize::try_from(piece.len).unwrap_or(usize::MAX));
            match piece.place {
                None => now.fill(0),
                Some(place) => self
                    .read_file(place, now)
                    .await
                    .map_err(|error| in_guest_terms(error, place, here, here.saturating_sub(at)))?,
            }
            here = here.saturating_add(piece.len);
            rest = later;
        }
        Ok(())
    }

    pub(super) fn try_read(&self, at: u64, buf: &mut [u8]) -> bool {
        if check_bounds(at, buf.len() as u64, self.size()).is_err() {
            return false;
        }
        let (mut here, mut rest) = (at, buf);
        while !rest.is_empty() {
            let Ok(piece) = self.lookup(here, rest.len() as u64) else { return false };
            let (now, later) = rest.split_at_mut(usize::try_from(piece.len).unwrap_or(usize::MAX));
            match piece.place {
                None => now.fill(0),
                Some(place) => {
                    if !self.file.read_now(place, now) {
                        return false;
                    }
                }
            }
            here = here.saturating_add(piece.len);
            rest = later;
        }
        true
    }

    /// Reads from the file; what lies behind its end reads as zeroes, except that a block must begin before it.
    pub(super) async fn read_file(&self, place: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        let file_len = self.file.info().size;
        if place.saturating_add(len) <= file_len {
            return self.file.read(place, buf).await;
        }
        let layout = self.layout.get();
        let into = place.saturating_sub(layout.data_offset) % layout.block_size.max(1);
        // The start of the last block touched; only blocks of a damaged image begin past the end.
        let last = place.saturating_add(len).saturating_sub(1);
        let back = place.saturating_sub(into);
        let last_block = last.saturating_sub(last.saturating_sub(back) % layout.block_size.max(1));
        if last_block >= file_len {
            return Err(IoError::new(Errno::IO).at(file_len.max(place)).detail(format!(
                "corrupt VDI image: the block map names the block at {last_block:#x}, past end of file ({file_len:#x})"
            )));
        }
        let inside = usize::try_from(file_len.saturating_sub(place)).unwrap_or(usize::MAX).min(buf.len());
        let (inside, outside) = buf.split_at_mut(inside);
        outside.fill(0);
        if inside.is_empty() { Ok(()) } else { self.file.read(place, inside).await }
    }

    pub(super) async fn write_range(&self, at: u64, data: &[u8], fua: bool) -> Result<()> {
        // A write to a block whose entry is durable can carry FUA itself; any other needs the map on disk.
        let native = fua && self.file.info().capabilities.contains(Capabilities::FUA);
        let mut needs_commit = fua && !native;
        let (mut here, mut rest) = (at, data);
        while !rest.is_empty() {
            let done = here.saturating_sub(at);
            let (piece, guard) = self.locked(here, rest.len() as u64).await?;
            let written = match piece.place {
                Some(place) => {
                    let (now, _) = rest.split_at(usize::try_from(piece.len).unwrap_or(usize::MAX));
                    let durable = self.is_durable(here, piece.len);
                    needs_commit |= fua && !durable;
                    let flags = if native && durable { WriteFlags::FUA } else { WriteFlags::empty() };
                    let result = self.file.write(place, now, flags).await;
                    drop(guard);
                    result.map_err(|error| in_guest_terms(error, place, here, done))?;
                    piece.len
                }
                None => {
                    needs_commit |= fua;
                    self.write_unallocated(here, rest).await.map_err(|mut error| {
                        error.transferred = done;
                        error
                    })?
                }
            };
            here = here.saturating_add(written);
            rest = rest.get(usize::try_from(written).unwrap_or(usize::MAX)..).unwrap_or_default();
        }
        if needs_commit { self.make_durable().await } else { Ok(()) }
    }

    /// Whether the disk durably holds all it takes to find a guest range: every entry, and a header that counts them.
    /// After a resize that failed, the header on disk may be one that does not.
    fn is_durable(&self, at: u64, len: u64) -> bool {
        if self.is_header_unsure() {
            return false;
        }
        let (first, _) = self.block_of(at);
        let (last, _) = self.block_of(at.saturating_add(len).saturating_sub(1));
        let map = self.map.borrow();
        (first.0..=last.0).all(|block| map.is_durable(GuestBlock(block)))
    }

    /// Writes the part of `data` that lies in the block of `at`, which was unallocated a moment ago; returns its
    /// length.
    async fn write_unallocated(&self, at: u64, data: &[u8]) -> Result<u64> {
        let range = self.block_range(at);
        let len = range.end.saturating_sub(at).min(data.len() as u64);
        let data = data.get(..usize::try_from(len).unwrap_or(usize::MAX)).unwrap_or(data);
        #[cfg(test)]
        let _guard = if self.mutated(super::tests::Mutant::PadsWithoutLock) {
            self.ranges.shared(range).await
        } else {
            self.ranges.exclusive(range).await
        };
        #[cfg(not(test))]
        let _guard = self.ranges.exclusive(range).await;
        match self.lookup(at, len)?.place {
            // Somebody else was first.
            Some(place) => {
                let written = self.file.write(place, data, WriteFlags::empty()).await;
                written.map_err(|error| error.rebase(place, at))?;
            }
            None => self.allocate(at, Some(data), ZeroFlags::MAY_UNMAP).await?,
        }
        Ok(len)
    }

    /// Gives the unallocated block of `at` a place, with `data` at `at` and zeroes around it; without data, zeroes
    /// throughout. The caller holds the whole block exclusively.
    pub(super) async fn allocate(&self, at: u64, data: Option<&[u8]>, zero: ZeroFlags) -> Result<()> {
        let (block, offset) = self.block_of(at);
        let block_size = self.layout.get().block_size;
        let outside = |error: IoError| {
            // What failed lies beside the request: its place is the start of the request.
            let first_bad = error.first_bad.map(|_| ByteOffset(at));
            IoError { first_bad, ..error }
        };
        let mut reservation = self.reserve().await.map_err(outside)?;
        self.file.event(Event::VdiBlockAlloc).await;
        let (start, fresh) = self.claim(&reservation).map_err(outside)?;
        let data = data.unwrap_or_default();
        let tail = offset.saturating_add(data.len() as u64);
        #[cfg(test)]
        if self.mutated(super::tests::Mutant::MapBeforeWrite) {
            self.map.borrow_mut().set_in_memory_only(block, reservation.block());
        }
        // Zeroes first, so that nothing is written beside the data once it can be seen. A real zeroing is asked for if
        // the caller wants the space reserved.
        let by_itself = fresh && zero.contains(ZeroFlags::MAY_UNMAP);
        #[cfg(test)]
        let by_itself = by_itself || self.mutated(super::tests::Mutant::KeepsStaleBytes);
        if !by_itself {
            for (from, to) in [(0, offset), (tail, block_size)] {
                if from < to {
                    let (place, len) = (start.saturating_add(from), to.saturating_sub(from));
                    reservation.sending(self.file.write_zeroes(place, len, zero)).await.map_err(outside)?;
                }
            }
        }
        self.file.event(Event::VdiBlockWrite).await;
        if !data.is_empty() {
            let place = start.saturating_add(offset);
            let written = reservation.sending(self.file.write(place, data, WriteFlags::empty())).await;
            #[cfg(test)]
            if self.mutated(super::tests::Mutant::MapBeforeWrite) && written.is_err() {
                reservation.keep();
                return written.map_err(|error| error.rebase(place, at));
            }
            written.map_err(|error| error.rebase(place, at))?;
        }
        if by_itself && tail < block_size {
            // One sector of zeroes makes the file long enough for the whole block; the gap reads as zeroes.
            let from = tail.max(block_size.saturating_sub(SECTOR));
            let (place, len) = (start.saturating_add(from), block_size.saturating_sub(from));
            let zeroes = [0; 512];
            let zeroes = zeroes.get(..usize::try_from(len).unwrap_or(0)).unwrap_or(&zeroes);
            let written = reservation.sending(self.file.write(place, zeroes, WriteFlags::empty())).await;
            written.map_err(outside)?;
        }
        // Everything has completed: from here to the end there is no await.
        self.map.borrow_mut().set(block, reservation.block());
        reservation.keep();
        Ok(())
    }

    /// A free block index.
    pub(super) async fn reserve(&self) -> Result<Reservation<'_>> {
        loop {
            if let Some(reservation) = self.allocator.reserve() {
                return Ok(reservation);
            }
            // There are as many indices as guest blocks: the missing ones wait for a drain or a commit.
            if self.allocator.quarantined() > 0 {
                self.settle(false).await?;
            } else if self.allocator.has_retired() {
                self.commit(false).await?;
            } else {
                return Err(IoError::new(Errno::NOSPC).detail("no free block index in the VDI image"));
            }
        }
    }

    /// Where a reserved block lies, and whether it reads as zeroes because nothing was ever written there. It is not
    /// fresh a second time.
    pub(super) fn claim(&self, reservation: &Reservation<'_>) -> Result<(u64, bool)> {
        let layout = self.layout.get();
        let start = layout.place(reservation.block().0);
        let end = start.saturating_add(layout.block_size);
        let info = self.file.info();
        if !info.capabilities.contains(Capabilities::GROWS) && end > info.size {
            return Err(IoError::new(Errno::NOSPC).detail(format!(
                "the next VDI block would end at {end:#x}, and the device below holds {:#x} bytes",
                info.size
            )));
        }
        let fresh = start >= self.fresh_from.get();
        self.fresh_from.set(self.fresh_from.get().max(end));
        Ok((start, fresh))
    }

    pub(super) async fn zero_range(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let capabilities = self.file.info().capabilities;
        let mut needs_commit = false;
        let mut done = 0;
        while done < len {
            let here = at.saturating_add(done);
            let (piece, _guard) = self.locked(here, len.saturating_sub(done)).await?;
            // An unallocated block reads as zeroes, on disk as well: there is nothing to do, nor to make durable,
            // unless the disk holds a header of another size.
            needs_commit |= flags.contains(ZeroFlags::FUA) && self.is_header_unsure();
            if let Some(place) = piece.place {
                if flags.contains(ZeroFlags::NO_FALLBACK) && !capabilities.contains(Capabilities::FAST_ZERO) {
                    return Err(IoError::unsupported());
                }
                let native = capabilities.contains(Capabilities::FUA) && self.is_durable(here, piece.len);
                needs_commit |= flags.contains(ZeroFlags::FUA) && !native;
                let flags = if native { flags } else { flags.difference(ZeroFlags::FUA) };
                let result = self.file.write_zeroes(place, piece.len, flags).await;
                result.map_err(|error| in_guest_terms(error, place, here, done))?;
            }
            done = done.saturating_add(piece.len);
        }
        if needs_commit { self.make_durable().await } else { Ok(()) }
    }

    pub(super) async fn discard_range(&self, at: u64, len: u64) -> Result<()> {
        if !self.file.info().capabilities.contains(Capabilities::DISCARD) {
            return Ok(());
        }
        let mut done = 0;
        while done < len {
            let here = at.saturating_add(done);
            let (piece, _guard) = self.locked(here, len.saturating_sub(done)).await?;
            if let Some(place) = piece.place {
                let inside = self.file.info().size.saturating_sub(place).min(piece.len);
                if inside > 0 {
                    let result = self.file.discard(place, inside).await;
                    result.map_err(|error| in_guest_terms(error, place, here, done))?;
                }
            }
            done = done.saturating_add(piece.len);
        }
        Ok(())
    }

    pub(super) async fn status_of(&self, at: u64, len: u64) -> Result<BlockStatus> {
        let (piece, _guard) = self.locked(at, len).await?;
        let Some(place) = piece.place else { return Ok(BlockStatus::zero(piece.len)) };
        let inside = self.file.info().size.saturating_sub(place).min(piece.len);
        if inside == 0 {
            return Ok(BlockStatus { host_offset: Some(place), ..BlockStatus::zero(piece.len) });
        }
        // The file knows which parts of a block are holes.
        let below = self.file.block_status(place, inside).await.map_err(|error| in_guest_terms(error, place, at, 0))?;
        let len = below.len.min(inside);
        Ok(BlockStatus { data: below.data || !below.zero, zero: below.zero, ..BlockStatus::data(len, Some(place)) })
    }
}
