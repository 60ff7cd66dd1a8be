//! A write-back cache of a few lines, with some lines to each of several queues.
//!
//! A write changes lines in memory; they go below when they are evicted or flushed, or at once for FUA. A line is
//! locked by whoever changes it or sends it below, so there is never more than one write of it under way. A request locks
//! the lines that it touches, and evicts before it locks, never in between.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use blkproof_block::device::check_bounds;
use blkproof_block::range_lock::{RangeGuard, RangeLock};
use blkproof_block::{
    BlockDevice, BlockStatus, ByteRange, DeviceInfo, IoError, Preallocation, Result, WriteFlags, ZeroFlags,
};

use super::late::Late;
use super::{index, refuse_fast};
use crate::{Mutant, planted};

/// Bytes of a line.
const LINE: u64 = 4096;
/// Lines held at most, but for those of requests under way.
const LINES: usize = 8;
/// Queues; a line belongs to one by its number.
const QUEUES: u64 = 4;

#[derive(Debug)]
struct Line {
    bytes: Vec<u8>,
    dirty: bool,
    used: u64,
}

/// The cache over a device.
#[derive(Debug)]
pub struct Cache<D> {
    below: D,
    lines: RefCell<BTreeMap<u64, Line>>,
    clock: Cell<u64>,
    locks: RangeLock,
    late: Late,
}

impl<D: BlockDevice> Cache<D> {
    /// An empty cache.
    pub fn new(below: D) -> Self {
        let (lines, clock, locks, late) = Default::default();
        Self { below, lines, clock, locks, late }
    }

    fn size(&self) -> u64 {
        self.below.info().size
    }

    fn line_range(number: u64) -> ByteRange {
        ByteRange::at(number.saturating_mul(LINE), LINE)
    }

    /// Evicts until there is room for one more line. What can not be written stays.
    async fn make_room(&self) {
        for _ in 0..LINES {
            let oldest = {
                let lines = self.lines.borrow();
                if lines.len() < LINES {
                    return;
                }
                lines.iter().min_by_key(|(_, line)| line.used).map(|(number, _)| *number)
            };
            let Some(number) = oldest else { return };
            let guard = self.locks.exclusive(Self::line_range(number)).await;
            if self.write_back(number, guard, WriteFlags::empty()).await.is_err() {
                return;
            }
            let mut lines = self.lines.borrow_mut();
            if lines.get(&number).is_some_and(|line| !line.dirty) && !self.locks.is_busy(Self::line_range(number)) {
                lines.remove(&number);
            }
        }
    }

    /// Sends a line below if it is dirty.
    async fn write_back(&self, number: u64, guard: RangeGuard<'_>, flags: WriteFlags) -> Result<()> {
        self.late.settle(&self.below).await?;
        let Some(bytes) = self.lines.borrow().get(&number).filter(|line| line.dirty).map(|line| line.bytes.clone())
        else {
            return Ok(());
        };
        let at = number.saturating_mul(LINE);
        let guard = if planted(Mutant::M17) {
            // The line is on its way, and may change again.
            self.set_dirty(number, false);
            drop(guard);
            None
        } else {
            Some(guard)
        };
        let written = self.late.sending(self.below.write(at, &bytes, flags)).await;
        match (&written, &guard) {
            (Ok(()), Some(_)) => self.set_dirty(number, false),
            (Err(_), None) => self.set_dirty(number, true),
            _ => {}
        }
        written
    }

    fn set_dirty(&self, number: u64, dirty: bool) {
        if let Some(line) = self.lines.borrow_mut().get_mut(&number) {
            line.dirty = dirty;
        }
    }

    /// Loads what is missing of the lines of a range that the caller has locked.
    async fn load(&self, range: ByteRange) -> Result<()> {
        self.late.settle(&self.below).await?;
        for number in range.start / LINE..range.end.div_ceil(LINE) {
            let used = self.clock.get().saturating_add(1);
            self.clock.set(used);
            if let Some(line) = self.lines.borrow_mut().get_mut(&number) {
                line.used = used;
                continue;
            }
            let at = number.saturating_mul(LINE);
            let mut bytes = vec![0; index(LINE.min(self.size().saturating_sub(at)))];
            self.below.read(at, &mut bytes).await?;
            self.lines.borrow_mut().insert(number, Line { bytes, dirty: false, used });
        }
        Ok(())
    }

    /// The bytes of a range in its lines, piece by piece: what is in the line, and where in the range it begins.
    fn pieces(&self, range: ByteRange, mut piece: impl FnMut(&mut Line, std::ops::Range<usize>, usize)) {
        let mut lines = self.lines.borrow_mut();
        let mut at = range.start;
        while at < range.end {
            let end = (at / LINE).saturating_add(1).saturating_mul(LINE).min(range.end);
            if let Some(line) = lines.get_mut(&(at / LINE)) {
                let from = index(at % LINE);
                piece(
                    line,
                    from..from.saturating_add(index(end.saturating_sub(at))),
                    index(at.saturating_sub(range.start)),
                );
            }
            at = end;
        }
    }

    async fn change(&self, range: ByteRange, data: Option<&[u8]>, fua: bool) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.make_room().await;
        {
            let _guard = self.locks.exclusive(range.aligned_out(LINE)).await;
            self.load(range).await?;
            // In one step, so that a request that fails or is dropped has done nothing.
            self.pieces(range, |line, place, from| {
                line.dirty = true;
                let len = place.len();
                match (line.bytes.get_mut(place), data.and_then(|data| data.get(from..from.saturating_add(len)))) {
                    (Some(bytes), Some(data)) => bytes.copy_from_slice(data),
                    (Some(bytes), None) => bytes.fill(0),
                    _ => {}
                }
            });
        }
        if !fua {
            return Ok(());
        }
        for number in range.start / LINE..range.end.div_ceil(LINE) {
            let guard = self.locks.exclusive(Self::line_range(number)).await;
            let through = self.write_back(number, guard, WriteFlags::FUA).await;
            if through.is_err() && planted(Mutant::M6) {
                self.set_dirty(number, false);
            }
            through?;
        }
        // A line may have been clean by then, written by somebody else without FUA.
        self.below.flush().await
    }

    /// Sends everything dirty below.
    async fn write_all(&self) -> Result<()> {
        let last = if planted(Mutant::M36) { QUEUES.saturating_sub(1) } else { QUEUES };
        for queue in 0..last {
            let dirty: Vec<u64> = {
                let lines = self.lines.borrow();
                let mine = lines.iter().filter(|(number, line)| *number % QUEUES == queue && line.dirty);
                mine.map(|(number, _)| *number).collect()
            };
            for number in dirty {
                let guard = self.locks.exclusive(Self::line_range(number)).await;
                self.write_back(number, guard, WriteFlags::empty()).await?;
            }
        }
        Ok(())
    }
}

impl<D: BlockDevice> BlockDevice for Cache<D> {
    fn info(&self) -> DeviceInfo {
        super::info("cache", &self.below, self.size())
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let range = ByteRange::at(at, buf.len() as u64);
        check_bounds(at, range.len(), self.size())?;
        if buf.is_empty() {
            return Ok(());
        }
        self.make_room().await;
        let _guard = self.locks.exclusive(range.aligned_out(LINE)).await;
        self.load(range).await?;
        self.pieces(range, |line, place, from| {
            let len = place.len();
            if let (Some(out), Some(bytes)) = (buf.get_mut(from..from.saturating_add(len)), line.bytes.get(place)) {
                out.copy_from_slice(bytes);
            }
        });
        Ok(())
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        check_bounds(at, data.len() as u64, self.size())?;
        if flags.contains(WriteFlags::COMPRESSED) {
            return Err(IoError::unsupported());
        }
        self.change(ByteRange::at(at, data.len() as u64), Some(data), flags.contains(WriteFlags::FUA)).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        check_bounds(at, len, self.size())?;
        refuse_fast(flags)?;
        // Line by line, so that a large request does not fill the cache.
        let (mut at, end) = (at, at.saturating_add(len));
        while at < end {
            let stop = (at / LINE).saturating_add(1).saturating_mul(LINE).min(end);
            self.change(ByteRange { start: at, end: stop }, None, flags.contains(ZeroFlags::FUA)).await?;
            at = stop;
        }
        Ok(())
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        check_bounds(at, len, self.size())
    }

    async fn flush(&self) -> Result<()> {
        self.write_all().await?;
        self.below.flush().await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        check_bounds(at, len, self.size())?;
        Ok(BlockStatus::data(len, None))
    }

    async fn resize(&self, _size: u64, _preallocation: Preallocation) -> Result<()> {
        Err(IoError::unsupported())
    }

    async fn drain(&self) -> Result<()> {
        self.below.drain().await
    }

    async fn close(&self) -> Result<()> {
        let unwritten = planted(Mutant::M21);
        if !unwritten {
            self.write_all().await?;
            self.below.flush().await?;
        }
        self.below.close().await
    }
}
