//! An open image of the crate as a node of ours.

use std::cell::Cell;

use blkproof_block::device::check_bounds;
use blkproof_block::{
    BlockDevice, BlockStatus, Capabilities, DeviceInfo, IoError, Node, Preallocation, Result, WriteFlags, ZeroFlags,
};
use imago::format::PreallocateMode;
use imago::{FormatAccess, Mapping};
use tokio::sync::RwLock;

use super::below::Below;
use crate::errors::up;

/// An open image of the crate as a node of ours.
#[derive(Debug)]
pub(super) struct Image {
    driver: &'static str,
    image: RwLock<FormatAccess<Below>>,
    /// Its size, for when it can not be asked.
    size: Cell<u64>,
    /// What it lies on.
    below: Node,
}

impl Image {
    pub(super) fn new(driver: &'static str, image: FormatAccess<Below>, below: Node) -> Self {
        Self { driver, size: Cell::new(image.size()), image: RwLock::new(image), below }
    }

    fn size(&self) -> u64 {
        if let Ok(image) = self.image.try_read() {
            self.size.set(image.size());
        }
        self.size.get()
    }
}

impl BlockDevice for Image {
    fn info(&self) -> DeviceInfo {
        let capabilities =
            Capabilities::ZEROES | Capabilities::DISCARD | Capabilities::RESIZE | Capabilities::ZERO_ON_GROWTH;
        DeviceInfo { capabilities, ..DeviceInfo::new(self.driver, self.size()) }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        // The crate reads zeroes beyond the end, which a node refuses.
        check_bounds(at, buf.len() as u64, self.size())?;
        self.image.read().await.read(buf, at).await.map_err(|error| up(&error))
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        if flags.contains(WriteFlags::COMPRESSED) {
            return Err(IoError::unsupported());
        }
        self.image.read().await.write(data, at).await.map_err(|error| up(&error))?;
        if flags.contains(WriteFlags::FUA) { self.flush().await } else { Ok(()) }
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        if flags.contains(ZeroFlags::NO_FALLBACK) {
            return Err(IoError::unsupported());
        }
        match flags.contains(ZeroFlags::MAY_UNMAP) {
            true => self.image.write().await.discard_to_zero(at, len).await,
            false => self.image.read().await.write_zeroes(at, len).await,
        }
        .map_err(|error| up(&error))?;
        if flags.contains(ZeroFlags::FUA) { self.flush().await } else { Ok(()) }
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.image.write().await.discard_to_any(at, len).await.map_err(|error| up(&error))
    }

    async fn flush(&self) -> Result<()> {
        let image = self.image.read().await;
        image.flush().await.map_err(|error| up(&error))?;
        image.sync().await.map_err(|error| up(&error))
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        let image = self.image.read().await;
        let (mapping, found) = image.get_mapping(at, len).await.map_err(|error| up(&error))?;
        let found = found.min(len);
        Ok(match mapping {
            // The storage may be that of the backing image, and an offset there says nothing here.
            Mapping::Raw { writable, offset, .. } => BlockStatus::data(found, writable.then_some(offset)),
            Mapping::Zero { explicit: true, .. } => BlockStatus::zero(found),
            Mapping::Zero { .. } => BlockStatus::unallocated(found),
            Mapping::Eof { .. } => return Err(IoError::past_end(at, len, image.size())),
            _ => BlockStatus { compressed: true, ..BlockStatus::data(found, None) },
        })
    }

    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        let mode = match preallocation {
            // New space reads as zeroes, also of an overlay whose backing image is longer.
            Preallocation::Off => PreallocateMode::Zero,
            Preallocation::Metadata => PreallocateMode::FormatAllocate,
            Preallocation::Falloc => PreallocateMode::FullAllocate,
            Preallocation::Full => PreallocateMode::WriteData,
        };
        self.image.write().await.resize(size, mode).await.map_err(|error| up(&error))
    }

    async fn drain(&self) -> Result<()> {
        self.below.drain().await
    }
}
