//! An open device of the crate as a node of ours.

use std::cell::Cell;
use std::rc::Rc;

use blkproof_block::device::check_bounds;
use blkproof_block::{
    BlockDevice, BlockStatus, Capabilities, DeviceInfo, Errno, IoError, Limits, Preallocation, Result, WriteFlags,
    ZeroFlags,
};
use qcow2_rs::dev::Qcow2Dev;
use qcow2_rs::error::Qcow2Error;
use qcow2_rs::meta::MappingSource;

use super::below::Below;
use super::off::{Kept, Power};
use crate::errors::up;

/// An open device of the crate as a node of ours.
pub(super) struct Image {
    /// `None`: it is being dropped.
    device: Option<Box<Qcow2Dev<Below>>>,
    /// What it lies on, shared with the device.
    power: Rc<Power>,
    closed: Cell<bool>,
    /// Requests may be dropped.
    droppable: bool,
}

impl Image {
    pub(super) fn new(device: Qcow2Dev<Below>, power: Rc<Power>, droppable: bool) -> Self {
        Self { device: Some(Box::new(device)), power, closed: Cell::new(false), droppable }
    }

    fn device(&self) -> Result<&Qcow2Dev<Below>> {
        self.device.as_deref().ok_or(IoError::gone())
    }

    fn kept<F: Future>(&self, request: F) -> Kept<F> {
        Kept::new(request, self.droppable)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if !self.closed.get() {
            self.power.off();
            std::mem::forget(self.device.take());
        }
    }
}

fn error(error: Qcow2Error) -> IoError {
    up(&error.into_inner())
}

impl BlockDevice for Image {
    fn info(&self) -> DeviceInfo {
        let (size, cluster) =
            self.device.as_ref().map_or((0, 0), |device| (device.info.virtual_size(), device.info.cluster_size()));
        DeviceInfo {
            limits: Limits { alignment: 512, ..Limits::NONE },
            capabilities: Capabilities::empty(),
            cluster_size: u32::try_from(cluster).unwrap_or(0),
            ..DeviceInfo::new("qcow2-rs", size)
        }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let device = self.device()?;
        check_bounds(at, buf.len() as u64, device.info.virtual_size())?;
        if buf.is_empty() {
            return Ok(());
        }
        let len = buf.len();
        match self.kept(async { device.read_at(buf, at).await.map_err(error) }).await {
            Ok(read) if read == len => Ok(()),
            Ok(read) => Err(IoError::new(Errno::IO).detail(format!("{read} of {len} bytes were read"))),
            Err(failure) => Err(failure),
        }
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        if flags.contains(WriteFlags::COMPRESSED) {
            return Err(IoError::unsupported());
        }
        if data.is_empty() {
            return Ok(());
        }
        let device = self.device()?;
        self.kept(async { device.write_at(data, at).await.map_err(error) }).await?;
        if flags.contains(WriteFlags::FUA) { self.flush().await } else { Ok(()) }
    }

    async fn write_zeroes(&self, _at: u64, _len: u64, _flags: ZeroFlags) -> Result<()> {
        Err(IoError::unsupported())
    }

    async fn discard(&self, _at: u64, _len: u64) -> Result<()> {
        Err(IoError::unsupported())
    }

    async fn flush(&self) -> Result<()> {
        let device = self.device()?;
        let flush = async {
            device.flush_meta().await.map_err(error)?;
            device.fsync_range(0, usize::MAX).await.map_err(error)
        };
        self.kept(flush).await
    }

    /// A cluster at a time.
    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        let device = self.device()?;
        let mapping = self.kept(async { device.get_mapping(at).await.map_err(error) }).await?;
        let within = device.info.in_cluster_offset(at) as u64;
        let len = len.min((device.info.cluster_size() as u64).saturating_sub(within));
        let place = mapping.cluster_offset.and_then(|offset| offset.checked_add(within));
        Ok(match mapping.source {
            MappingSource::DataFile => BlockStatus::data(len, place),
            MappingSource::Zero => BlockStatus::zero(len),
            MappingSource::Compressed => BlockStatus { compressed: true, ..BlockStatus::data(len, None) },
            MappingSource::Backing => BlockStatus { allocated: false, depth: 1, ..BlockStatus::data(len, None) },
            MappingSource::Unallocated => BlockStatus::unallocated(len),
        })
    }

    async fn resize(&self, _size: u64, _preallocation: Preallocation) -> Result<()> {
        Err(IoError::unsupported())
    }

    async fn drain(&self) -> Result<()> {
        match self.power.node() {
            Some(node) => node.drain().await,
            None => Ok(()),
        }
    }

    async fn close(&self) -> Result<()> {
        self.flush().await?;
        self.closed.set(true);
        Ok(())
    }
}
