//! Puts together what a device hands out in pieces.
//!
//! The device below is read through an interface that may give less than was asked for, as system calls do: here, never
//! past the next multiple of a piece. The rest is asked for until there is none.

use blkproof_block::device::check_bounds;
use blkproof_block::{BlockDevice, BlockStatus, DeviceInfo, IoError, Preallocation, Result, WriteFlags, ZeroFlags};

use super::{index, refuse_fast};
use crate::{Mutant, planted};

/// Bytes of a piece.
const PIECE: u64 = 3 * 512;
/// Bytes of zeroes written at once.
const ZEROES: u64 = 1 << 20;

/// Reads a device piece by piece.
#[derive(Debug)]
pub struct Pieces<D> {
    below: D,
}

impl<D: BlockDevice> Pieces<D> {
    /// Over `below`.
    pub fn new(below: D) -> Self {
        Self { below }
    }

    /// Reads the beginning of a range: how many bytes, at least one.
    async fn read_some(&self, at: u64, buf: &mut [u8]) -> Result<usize> {
        let len = buf.len().min(index(PIECE.saturating_sub(at % PIECE)));
        match buf.get_mut(..len) {
            Some(start) => self.below.read(at, start).await.map(|()| len),
            None => Ok(len),
        }
    }
}

impl<D: BlockDevice> BlockDevice for Pieces<D> {
    fn info(&self) -> DeviceInfo {
        super::info("pieces", &self.below, self.below.info().size)
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        check_bounds(at, buf.len() as u64, self.below.info().size)?;
        let mut done = 0;
        let mut here = at;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let len = self.read_some(here, rest).await?;
            done = done.saturating_add(len);
            // With the defect, where to go on is counted from the start by the last piece alone.
            let from = if planted(Mutant::M12) { len } else { done };
            here = at.saturating_add(from as u64);
        }
        Ok(())
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        check_bounds(at, data.len() as u64, self.below.info().size)?;
        if flags.contains(WriteFlags::COMPRESSED) {
            return Err(IoError::unsupported());
        }
        self.below.write(at, data, flags).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        check_bounds(at, len, self.below.info().size)?;
        refuse_fast(flags)?;
        let fua = if flags.contains(ZeroFlags::FUA) { WriteFlags::FUA } else { WriteFlags::empty() };
        let mut done = 0;
        while done < len {
            let here = len.saturating_sub(done).min(ZEROES);
            self.below.write(at.saturating_add(done), &vec![0; index(here)], fua).await?;
            done = done.saturating_add(here);
        }
        Ok(())
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        check_bounds(at, len, self.below.info().size)
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
