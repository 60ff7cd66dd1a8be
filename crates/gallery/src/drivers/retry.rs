//! Sends a slow write again.
//!
//! There is no clock: a write is slow when two other requests have ended since it was sent. Its first try is dropped, and
//! may land until a drain; so the second is sent after one.

use std::cell::Cell;

use blkproof_block::device::check_bounds;
use blkproof_block::{BlockDevice, BlockStatus, DeviceInfo, IoError, Preallocation, Result, WriteFlags, ZeroFlags};
use tokio::sync::Notify;

use super::{index, refuse_fast};
use crate::{Mutant, planted};

/// Requests that end meanwhile make a write slow.
const PATIENCE: u64 = 2;
/// Bytes of zeroes written at once.
const ZEROES: u64 = 1 << 20;

/// Sends slow writes again.
#[derive(Debug)]
pub struct Retry<D> {
    below: D,
    ended: Cell<u64>,
    news: Notify,
}

impl<D: BlockDevice> Retry<D> {
    /// Over `below`.
    pub fn new(below: D) -> Self {
        Self { below, ended: Cell::new(0), news: Notify::new() }
    }

    fn end<T>(&self, result: T) -> T {
        self.ended.set(self.ended.get().saturating_add(1));
        self.news.notify_waiters();
        result
    }

    /// Ends when so many requests have ended that one sent at `begin` is slow.
    async fn slow(&self, begin: u64) {
        while self.ended.get().saturating_sub(begin) < PATIENCE {
            self.news.notified().await;
        }
    }

    async fn put(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        let begin = self.ended.get();
        let first = async { Some(self.below.write(at, data, flags).await) };
        let slow = async {
            self.slow(begin).await;
            None
        };
        if let Some(done) = futures_lite::future::or(first, slow).await {
            return self.end(done);
        }
        if !planted(Mutant::M8) {
            self.below.drain().await?;
        }
        let again = self.below.write(at, data, flags).await;
        self.end(again)
    }
}

impl<D: BlockDevice> BlockDevice for Retry<D> {
    fn info(&self) -> DeviceInfo {
        super::info("retry", &self.below, self.below.info().size)
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let done = self.below.read(at, buf).await;
        self.end(done)
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        check_bounds(at, data.len() as u64, self.below.info().size)?;
        if flags.contains(WriteFlags::COMPRESSED) {
            return Err(IoError::unsupported());
        }
        self.put(at, data, flags).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        check_bounds(at, len, self.below.info().size)?;
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
        check_bounds(at, len, self.below.info().size)
    }

    async fn flush(&self) -> Result<()> {
        let done = self.below.flush().await;
        self.end(done)
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
