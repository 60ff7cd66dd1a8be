//! A node of ours as an I/O engine of the crate.

use std::rc::Rc;

use blkproof_block::{BlockDevice as _, WriteFlags, ZeroFlags};
use qcow2_rs::error::{Qcow2Error, Qcow2Result};
use qcow2_rs::ops::Qcow2IoOps;

use super::off::Power;
use super::view::View;
use crate::errors::down;

/// What a device of the crate lies on.
pub(super) enum Below {
    /// The image.
    Image(Rc<Power>),
    /// The disk below an overlay.
    Base(View),
}

impl Below {
    fn power(&self) -> Qcow2Result<&Rc<Power>> {
        match self {
            Self::Image(power) => Ok(power),
            Self::Base(_) => Err("the base is not written to".into()),
        }
    }
}

fn wrong(error: blkproof_block::IoError) -> Qcow2Error {
    down(&error).into()
}

impl Qcow2IoOps for Below {
    /// As `pread` does: what there is, up to the end of the file.
    async fn read_to(&self, offset: u64, buf: &mut [u8]) -> Qcow2Result<usize> {
        if let Self::Base(view) = self {
            return view.read(offset, buf).await.map_err(wrong);
        }
        let len = buf.len();
        let read = self.power()?.ask(move |node| async move {
            let there = node.info().size.saturating_sub(offset);
            let mut data = vec![0; usize::try_from(there).unwrap_or(usize::MAX).min(len)];
            if !data.is_empty() {
                node.read(offset, &mut data).await?;
            }
            Ok(data)
        });
        let data = read.await.map_err(wrong)?;
        if let Some(buf) = buf.get_mut(..data.len()) {
            buf.copy_from_slice(&data);
        }
        Ok(data.len())
    }

    async fn write_from(&self, offset: u64, buf: &[u8]) -> Qcow2Result<()> {
        let data = buf.to_vec();
        let write = self.power()?.ask(move |node| async move {
            node.write(offset, &data, WriteFlags::empty()).await?;
            Ok(Vec::new())
        });
        write.await.map(drop).map_err(wrong)
    }

    async fn fallocate(&self, offset: u64, len: usize, _flags: u32) -> Qcow2Result<()> {
        let zeroes = self.power()?.ask(move |node| async move {
            node.write_zeroes(offset, len as u64, ZeroFlags::MAY_UNMAP).await?;
            Ok(Vec::new())
        });
        zeroes.await.map(drop).map_err(wrong)
    }

    async fn fsync(&self, _offset: u64, _len: usize, _flags: u32) -> Qcow2Result<()> {
        let flush = self.power()?.ask(|node| async move {
            node.flush().await?;
            Ok(Vec::new())
        });
        flush.await.map(drop).map_err(wrong)
    }
}
