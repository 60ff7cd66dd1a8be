//! The VM state: guest offsets behind the disk, from the first one that the disk's last L1 entry does not describe.
//!
//! Nothing on disk says where it begins or how long it is: the beginning follows from the size of the disk, the length
//! is written in a snapshot when one is made (specification, "Snapshots"). So it lives in clusters and tables like any
//! others, which the snapshot that is made next shares. L1 and L2 tables of the disk and of the VM state have no entry
//! in common, and no cluster of one is ever a neighbour of the other.
//!
//! # Differences from the disk
//! - It has no end but that of the L1 table, which grows when a write needs it. Behind the table, zeroes are read.
//! - It has no backing file. What the one of the disk may have at these offsets belongs to a larger disk.
//! - Its beginning moves when a resize crosses an L1 entry. What was written before has no meaning there, so such a
//!   resize gives it up, and so does every shrinking one, as in QEMU.

use blkproof_block::{BlockDevice, ByteRange, Errno, IoError, Result};

use super::Qcow2;
use super::header::L1_BYTES_MAX;
use super::units::index;

/// One past the last guest offset QEMU works with: the last one of a file, less the room for rounding up.
const OFFSET_END: u64 = (1 << 63) - (1 << 30);

impl<D: BlockDevice> Qcow2<D> {
    /// Where the VM state of a disk of `size` bytes begins.
    pub(crate) fn vm_state_of(&self, size: u64) -> u64 {
        self.geometry.l1_entries(size) << self.geometry.l1_shift()
    }

    /// Where the VM state begins.
    pub(crate) fn vm_state_start(&self) -> u64 {
        self.vm_state_of(self.size.get())
    }

    /// One past the last guest offset that has an L1 entry.
    pub(crate) fn l1_end(&self) -> u64 {
        u64::from(self.header.borrow().l1_entries) << self.geometry.l1_shift()
    }

    /// Guest offsets of `len` bytes of VM state from `at`, as the size of the disk is now.
    pub(crate) fn vm_state_range(&self, at: u64, len: u64) -> Result<ByteRange> {
        let start = self.vm_state_start().checked_add(at);
        let end = start.and_then(|start| start.checked_add(len)).filter(|&end| end <= OFFSET_END);
        match start.zip(end) {
            Some((start, end)) => Ok(ByteRange { start, end }),
            None => Err(IoError::new(Errno::IO).detail(format!("no guest offset is left for VM state at {at:#x}"))),
        }
    }

    /// Serves a read of the VM state.
    pub(crate) async fn vm_state_read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        loop {
            let range = self.vm_state_range(at, len)?;
            let _range = self.requests.shared(range.aligned_out(self.geometry.cluster_size())).await;
            self.check_usable()?;
            if self.vm_state_range(at, len)? != range {
                continue; // A resize came first.
            }
            let mapped = index(self.l1_end().saturating_sub(range.start)).min(buf.len());
            let (stored, behind) = buf.split_at_mut(mapped);
            behind.fill(0);
            return self.read_locked(range.start, stored).await.map_err(|error| error.rebase(range.start, at));
        }
    }

    /// Serves a write to the VM state.
    pub(crate) async fn vm_state_write(&self, at: u64, data: &[u8]) -> Result<()> {
        let len = data.len() as u64;
        // Clusters that hold an external data file's VM state lie in that file at their guest offset.
        if self.geometry.raw_external {
            let words = "the VM state would lie behind the disk in a data file that is to read as the disk does";
            return Err(IoError::unsupported().detail(words));
        }
        loop {
            let range = self.vm_state_range(at, len)?;
            if range.end > self.l1_end() {
                self.make_l1_reach(at, len).await?;
                continue;
            }
            let _range = self.requests.exclusive(range.aligned_out(self.geometry.cluster_size())).await;
            self.check_usable()?;
            if self.vm_state_range(at, len)? != range {
                continue; // A resize came first. The L1 table never becomes shorter.
            }
            return self.write_locked(range.start, data).await.map_err(|error| error.rebase(range.start, at));
        }
    }

    /// Grows the L1 table for `len` bytes of VM state at `at`, while nobody else uses it.
    async fn make_l1_reach(&self, at: u64, len: u64) -> Result<()> {
        let _all = self.requests.exclusive(ByteRange { start: 0, end: u64::MAX }).await;
        self.check_usable()?;
        // Anew: the disk may have been resized, or the table grown, while we waited.
        let needed = self.geometry.l1_entries(self.vm_state_range(at, len)?.end);
        let entries = u64::from(self.header.borrow().l1_entries);
        if needed <= entries {
            return Ok(());
        }
        // Half as much again: a VM state is written from its beginning to its end, and with small clusters each L1
        // entry is no more than a few of those writes.
        let ample = entries.saturating_add(entries / 2).min(L1_BYTES_MAX / 8);
        self.grow_l1(needed.max(ample)).await
    }
}
