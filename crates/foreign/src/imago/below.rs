//! A node of ours as storage of the crate.

use std::fmt::{self, Display, Formatter};
use std::io;

use blkproof_block::{BlockDevice as _, Node, Preallocation, WriteFlags, ZeroFlags};
use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;

use crate::bridge::Handle;
use crate::errors::down;

/// A node of ours as storage of the crate.
#[derive(Debug)]
pub(super) struct Below {
    node: Handle,
    helper: CommonStorageHelper,
}

impl Below {
    pub(super) fn new(node: Node) -> Self {
        Self { node: Handle::new(node), helper: CommonStorageHelper::default() }
    }
}

impl Display for Below {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("blkproof")
    }
}

/// The part of a range that the device has.
fn inside(at: u64, len: u64, size: u64) -> u64 {
    size.saturating_sub(at).min(len)
}

fn length(len: u64) -> io::Result<usize> {
    usize::try_from(len).map_err(io::Error::other)
}

#[allow(unsafe_code, reason = "the trait's functions are declared so; nothing here does anything unsafe")]
impl Storage for Below {
    fn size(&self) -> io::Result<u64> {
        Ok(self.node.node()?.info().size)
    }

    /// Reads, with zeroes beyond the end.
    async unsafe fn pure_readv(&self, mut bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let node = self.node.node()?;
        let mut data = vec![0; length(bufv.len())?];
        let there = length(inside(offset, bufv.len(), node.info().size))?;
        if let Some(part) = data.get_mut(..there)
            && !part.is_empty()
        {
            node.read(offset, part).await.map_err(|error| down(&error))?;
        }
        bufv.copy_from_slice(&data);
        Ok(())
    }

    async unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        let node = self.node.node()?;
        let mut data = vec![0; length(bufv.len())?];
        bufv.copy_into_slice(&mut data);
        node.write(offset, &data, WriteFlags::empty()).await.map_err(|error| down(&error))
    }

    async unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        let node = self.node.node()?;
        node.write_zeroes(offset, length, ZeroFlags::MAY_UNMAP).await.map_err(|error| down(&error))
    }

    async unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        let node = self.node.node()?;
        node.write_zeroes(offset, length, ZeroFlags::empty()).await.map_err(|error| down(&error))
    }

    async unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let node = self.node.node()?;
        let length = inside(offset, length, node.info().size);
        node.discard(offset, length).await.map_err(|error| down(&error))
    }

    /// There is nothing between this and the device.
    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        self.node.node()?.flush().await.map_err(|error| down(&error))
    }

    async fn settle_writes(&self) -> io::Result<()> {
        self.node.node()?.drain().await.map_err(|error| down(&error))
    }

    /// There is nothing between this and the device.
    async unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    /// New space reads as zeroes, which is more than the least that any mode asks for; none asks for space that is there.
    async fn resize(&self, new_size: u64, _mode: PreallocateMode) -> io::Result<()> {
        self.node.node()?.resize(new_size, Preallocation::Off).await.map_err(|error| down(&error))
    }
}
