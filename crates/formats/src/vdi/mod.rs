//! VDI, the disk image format of VirtualBox, version 1.1, dynamic and fixed.
//!
//! # Model
//! A header of one sector, a map with one 32-bit entry for each guest block of 1 MiB, and the data blocks. An entry is
//! free (0xffffffff), zero (0xfffffffe), both of which read as zeroes, or the index of a data block. Once allocated, a
//! block stays allocated until the disk shrinks: discard and write zeroes act inside the file below.
//!
//! # The ordering argument
//! The claim: cut the power at any point, keep any subset of the sectors written since the last flush of the file, and
//! the image opens, has at worst leaked blocks, and holds every write that the guest flushed.
//!
//! 1. **Data before the entry, in memory.** An allocation owns its block index (`alloc`) until everything it writes to
//!    the block has completed. Only then does the map in memory change, in one step without an await, so a failed,
//!    cancelled or half-done allocation never leaves a block that memory believes in. The rest of the block reads as
//!    zeroes by then: fresh space behind the end of the file does so by itself, anything else is zeroed first.
//! 2. **Data before the entry, on disk.** `commit` copies the dirty sectors of the map *at one moment*, then flushes
//!    the file, then writes the copies, then flushes again. The first flush makes the data of every copied entry
//!    durable, as rule 1 says it had been written.
//! 3. **The count before the entry.** `blocks_allocated` is where QEMU puts the next block. It is raised, and the first
//!    flush of rule 2 makes that durable, before an entry at or above the old value is written. It is lowered only when
//!    all entries are durable. So after a cut it may be too high (a leak), never too low.
//! 4. **Entries gone before reuse.** An index that the disk may still name is *retired*: it becomes free when a commit
//!    that wrote the new entry, or the new header, has succeeded.
//! 5. **One sector decides.** A resize changes size, number of blocks and the places of map and data by writing the
//!    header, one sector, behind a flush of everything it then refers to (`resize`).
//!
//! A flush is a commit, so an acknowledged flush covers the entries of every completed write, whoever allocated the
//! block. A commit that fails or is dropped leaves its sectors dirty and its indices retired; the next one does all of
//! it again.
//!
//! QEMU counts mapped entries and expects as many as `blocks_allocated`, with indices below it and no gaps. Gaps come
//! from failed and cancelled allocations and from shrinking; they are reused first, and `Vdi::close` moves the
//! last blocks into those that remain.
//!
//! # Cancelling
//! A dropped data write may land later: its index is quarantined until `Vdi::settle` has drained the file. A
//! dropped write of map or header may land later: the next commit settles before it writes there.
//!
//! # Concurrency
//! Requests lock guest ranges: shared for whatever touches a mapped block, exclusive, by whole blocks, for an
//! allocation, everything for a resize and close. An allocation therefore never pads over a neighbour (Launchpad
//! 1422307), and two never allocate the same block. Reads of unallocated blocks need no lock. Locks are taken in this
//! order: guest range, commit, settle.

mod alloc;
mod bits;
mod bmap;
mod commit;
mod create;
mod driver;
mod header;
mod io;
mod resize;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use blkproof_block::device::check_bounds;
use blkproof_block::graph::OpenError;
use blkproof_block::range_lock::RangeLock;
use blkproof_block::unflushed::Unflushed;
use blkproof_block::{
    BlockDevice, BlockStatus, Breakpoints, Capabilities, DeviceInfo, Event, IoError, Preallocation, Result, WriteFlags,
    ZeroFlags,
};

pub use bmap::MapError;
pub use create::{CreateOptions, create};
pub use driver::VdiDriver;
pub use header::HeaderError;

use alloc::Allocator;
use bmap::BlockMap;
use commit::Commits;
use header::{HEADER_LEN, Header, Kind, Layout};

/// Bytes of the map read or written at once.
const MAP_CHUNK: u64 = 1 << 20;

/// A VDI image in the device `file`.
///
/// ```
/// use blkproof_block::{BlockDevice, WriteFlags};
/// use blkproof_formats::vdi::{CreateOptions, Vdi, create};
/// # use blkproof_block::testing::{TestDisk, block_on};
///
/// let file = TestDisk::growing(0);
/// block_on(async {
///     create(&file, &CreateOptions { size: 10_000_000, ..CreateOptions::default() }).await.unwrap();
///     let disk = Vdi::open(file.clone(), false).await.unwrap();
///     assert_eq!(disk.info().size, 10_000_384, "whole sectors");
///     disk.write(5_000_000, b"hello", WriteFlags::empty()).await.unwrap();
///     disk.close().await.unwrap();
/// });
/// ```
#[derive(Debug)]
pub struct Vdi<D> {
    file: D,
    read_only: bool,
    /// The header as it was read; [`Layout`] holds what changes.
    header: Header,
    layout: Cell<Layout>,
    map: RefCell<BlockMap>,
    allocator: Allocator,
    /// Nothing was ever written to the file from here on, and it grows by being written to: new space reads as zeroes.
    fresh_from: Cell<u64>,
    commits: Commits,
    unflushed: Unflushed,
    ranges: RangeLock,
    #[cfg(test)]
    mutant: Cell<Option<tests::Mutant>>,
}

impl<D: BlockDevice> Vdi<D> {
    /// Opens the image in `file`. It is opened for reading alone if `read_only` says so or `file` is read-only.
    ///
    /// A damaged map is refused, unless the image is opened for reading alone: then requests that touch a bad entry
    /// fail.
    ///
    /// # Errors
    /// [`OpenError::Image`] with the text of a [`HeaderError`] or [`MapError`]; [`OpenError::Io`] if reading fails.
    pub async fn open(file: D, read_only: bool) -> Result<Self, OpenError> {
        let info = file.info();
        let read_only = read_only || info.read_only;
        file.event(Event::VdiHeaderLoad).await;
        let mut bytes = [0; 512];
        if info.size < HEADER_LEN {
            return Err(OpenError::Image(HeaderError::TooShort { file_len: info.size }.to_string()));
        }
        file.read(0, &mut bytes).await.map_err(|error| OpenError::io("reading the VDI header", error))?;
        let header = Header::parse(&bytes, info.size).map_err(|error| OpenError::Image(error.to_string()))?;
        let layout = header.layout;

        file.event(Event::VdiBmapLoad).await;
        let mut entries = Vec::with_capacity(usize::try_from(layout.blocks).unwrap_or(0));
        let mut done = 0;
        while done < layout.map_len() {
            let len = MAP_CHUNK.min(layout.map_len().saturating_sub(done));
            let mut chunk = vec![0; usize::try_from(len).unwrap_or(0)];
            let at = layout.map_offset.saturating_add(done);
            file.read(at, &mut chunk).await.map_err(|error| OpenError::io("reading the VDI block map", error))?;
            BlockMap::decode(&chunk, &mut entries);
            done = done.saturating_add(len);
        }
        let mut map = BlockMap::new(entries);
        let (used, bad) = map.check(&layout, info.size);
        if let (Some(bad), false) = (bad, read_only) {
            return Err(OpenError::Image(bad.to_string()));
        }
        let grows = info.capabilities.contains(Capabilities::GROWS);
        let allocator = Allocator::new(used, layout.blocks);
        // A count that does not match, as a crash may leave it, is written anew by the first commit.
        let commits = Commits::new(header.raw.blocks_allocated.get(), allocator.end());
        Ok(Self {
            read_only,
            layout: Cell::new(layout),
            map: RefCell::new(map),
            allocator,
            fresh_from: Cell::new(if grows { info.size } else { u64::MAX }),
            commits,
            unflushed: Unflushed::default(),
            ranges: RangeLock::new(),
            header,
            file,
            #[cfg(test)]
            mutant: Cell::new(None),
        })
    }

    /// The device below.
    pub fn file(&self) -> &D {
        &self.file
    }

    fn size(&self) -> u64 {
        self.layout.get().size
    }

    fn check_write(&self, at: u64, len: u64) -> Result<()> {
        if self.read_only {
            return Err(IoError::read_only());
        }
        check_bounds(at, len, self.size())
    }

    fn is_static(&self) -> bool {
        self.header.kind == Kind::Static
    }

    #[cfg(test)]
    fn mutated(&self, mutant: tests::Mutant) -> bool {
        self.mutant.get() == Some(mutant)
    }
}

/// A request that changes content; counted at its end, after the flush it may contain, as QEMU does.
struct Changing<'a>(&'a Unflushed);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.changed();
    }
}

impl<D: BlockDevice> BlockDevice for Vdi<D> {
    fn info(&self) -> DeviceInfo {
        let below = self.file.info().capabilities;
        let passed = Capabilities::ZEROES | Capabilities::FAST_ZERO | Capabilities::DISCARD | Capabilities::FUA;
        let own = Capabilities::MULTI_CONN | Capabilities::RESIZE | Capabilities::ZERO_ON_GROWTH;
        DeviceInfo {
            read_only: self.read_only,
            capabilities: below.intersection(passed) | own,
            cluster_size: u32::try_from(self.layout.get().block_size).unwrap_or(0),
            ..DeviceInfo::new("vdi", self.size())
        }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.read_range(at, buf).await
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        self.try_read(at, buf)
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        self.check_write(at, data.len() as u64)?;
        if flags.contains(WriteFlags::COMPRESSED) {
            return Err(IoError::unsupported().detail("VDI has no compression"));
        }
        let _changing = Changing(&self.unflushed);
        self.write_range(at, data, flags.contains(WriteFlags::FUA)).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.check_write(at, len)?;
        let _changing = Changing(&self.unflushed);
        self.zero_range(at, len, flags).await
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.check_write(at, len)?;
        let _changing = Changing(&self.unflushed);
        self.discard_range(at, len).await
    }

    async fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.make_durable().await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        check_bounds(at, len, self.size())?;
        self.status_of(at, len).await
    }

    /// Sizes are rounded up to whole sectors of 512 bytes, as QEMU has them. New blocks of a fixed image are allocated.
    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        if self.read_only {
            return Err(IoError::read_only());
        }
        let _changing = Changing(&self.unflushed);
        self.change_size(size, preallocation).await
    }

    fn breakpoints(&self) -> Option<Rc<dyn Breakpoints>> {
        self.file.breakpoints()
    }

    async fn drain(&self) -> Result<()> {
        self.settle(true).await
    }

    async fn close(&self) -> Result<()> {
        self.finish().await?;
        self.file.close().await
    }
}
