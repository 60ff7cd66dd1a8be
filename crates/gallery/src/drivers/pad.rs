//! Reads, changes and rewrites whole blocks, for a device that takes nothing else.
//!
//! A write locks the blocks that it touches until it has ended, so bytes that it only carries along are never older than
//! what somebody else wrote. A write that was dropped may land on such bytes later: whoever writes next waits for a drain.

use blkproof_block::device::check_bounds;
use blkproof_block::range_lock::RangeLock;
use blkproof_block::{
    BlockDevice, BlockStatus, ByteRange, DeviceInfo, IoError, Preallocation, Result, WriteFlags, ZeroFlags,
};

use super::late::Late;
use super::{index, refuse_fast};
use crate::{Mutant, planted};

/// Bytes of a block.
const BLOCK: u64 = 4096;
/// Bytes of zeroes written at once.
const ZEROES: u64 = 1 << 20;

/// Writes whole blocks to a device.
#[derive(Debug)]
pub struct Pad<D> {
    below: D,
    blocks: RangeLock,
    late: Late,
}

impl<D: BlockDevice> Pad<D> {
    /// Over `below`.
    pub fn new(below: D) -> Self {
        Self { below, blocks: RangeLock::new(), late: Late::default() }
    }

    fn size(&self) -> u64 {
        self.below.info().size
    }

    async fn put(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        let range = ByteRange::at(at, data.len() as u64);
        if range.is_empty() {
            return Ok(());
        }
        let whole = range.aligned_out(BLOCK);
        let whole = ByteRange { end: whole.end.min(self.size()), ..whole };
        if whole == range && planted(Mutant::M16) {
            // Nothing is carried along, so there is nothing to protect.
            return self.late.sending(self.below.write(at, data, flags)).await;
        }
        let _guard = self.blocks.exclusive(range.aligned_out(BLOCK)).await;
        self.late.settle(&self.below).await?;
        if whole == range {
            return self.late.sending(self.below.write(at, data, flags)).await;
        }
        let mut bytes = vec![0; index(whole.len())];
        // Only the blocks at the edges have bytes that are carried along.
        let first = BLOCK.min(whole.len());
        if let Some(block) = bytes.get_mut(..index(first)) {
            self.below.read(whole.start, block).await?;
        }
        let last = whole.end.saturating_sub(1) / BLOCK * BLOCK;
        if last > whole.start
            && let Some(block) = bytes.get_mut(index(last.saturating_sub(whole.start))..)
        {
            self.below.read(last, block).await?;
        }
        let from = index(at.saturating_sub(whole.start));
        if let Some(middle) = bytes.get_mut(from..from.saturating_add(data.len())) {
            middle.copy_from_slice(data);
        }
        let written = self.late.sending(self.below.write(whole.start, &bytes, flags)).await;
        written.map_err(|error| IoError { first_bad: None, transferred: 0, ..error })
    }
}

impl<D: BlockDevice> BlockDevice for Pad<D> {
    fn info(&self) -> DeviceInfo {
        super::info("pad", &self.below, self.size())
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read(at, buf).await
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        check_bounds(at, data.len() as u64, self.size())?;
        if flags.contains(WriteFlags::COMPRESSED) {
            return Err(IoError::unsupported());
        }
        self.put(at, data, flags).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        check_bounds(at, len, self.size())?;
        refuse_fast(flags)?;
        let fua = if flags.contains(ZeroFlags::FUA) { WriteFlags::FUA } else { WriteFlags::empty() };
        let mut done = 0;
        while done < len {
            let here = len.saturating_sub(done).min(ZEROES);
            self.put(at.saturating_add(done), &vec![0; index(here)], fua).await?;
            done = done.saturating_add(here);
        }
        Ok(())
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        check_bounds(at, len, self.size())
    }

    async fn flush(&self) -> Result<()> {
        self.below.flush().await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        self.below.block_status(at, len).await
    }

    async fn resize(&self, _size: u64, _preallocation: Preallocation) -> Result<()> {
        Err(IoError::unsupported())
    }

    async fn drain(&self) -> Result<()> {
        self.below.drain().await
    }

    async fn close(&self) -> Result<()> {
        self.below.flush().await?;
        self.below.close().await
    }
}
