//! Tests that need the mutants: the same judge must pass the driver and catch each planted defect.

/// A defect planted in the driver (numbers: bug gallery).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mutant {
    /// V1, M1: the map in memory is set before the data write, and stays set if that fails.
    MapBeforeWrite,
    /// V3, M13, M19: allocations of one block do not exclude each other.
    PadsWithoutLock,
    /// V4: a block that was used before is not zeroed around the data.
    KeepsStaleBytes,
    /// M39: the map reaches the disk before the data it exposes.
    MapBeforeData,
    /// M42: a failed flush forgets what was dirty.
    ForgetsDirty,
    /// M44: the header switches to a map that is not durable.
    SwitchesBeforeFlush,
    /// M4: space that a header may name is free after a resize that failed.
    FreesWhatHeaderNames,
    /// The map is shorter before the blocks above its new length have moved down.
    ShortensMapFirst,
    /// Blocks move behind the last index the map has room for, although the map could be longer.
    MovesBehindMap,
}

mod bugs;
mod hostile;
mod resize;
mod sweep;
mod workload;

use std::collections::BTreeSet;
use std::rc::Rc;

use blkproof_block::nodes::memory::SparseBytes;
use blkproof_block::testing::{TestDisk, block_on};
use blkproof_block::{BlockDevice, Capabilities};
use zerocopy::{FromZeros, IntoBytes};

use super::Vdi;
use super::bmap::FREE;
use super::header::{Header, Layout, RawHeader, SIGNATURE, VERSION};

/// What an image for a test is like. Small blocks make many allocations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) block_size: u32,
    pub(super) size: u64,
    /// Entries for which the map has room before the data begins.
    pub(super) room: u32,
    pub(super) fixed: bool,
    /// The file grows by being written to. Otherwise it is as long as the whole image, and full of old bytes.
    pub(super) grows: bool,
}

impl Setup {
    pub(super) const fn small() -> Self {
        Self { block_size: 4096, size: 100 * 1024 + 512, room: 128, fixed: false, grows: true }
    }

    pub(super) fn blocks(&self) -> u32 {
        u32::try_from(self.size.div_ceil(self.block_size.into())).unwrap()
    }

    /// An image as a disk in memory.
    pub(super) fn disk(&self) -> TestDisk {
        let blocks = self.blocks();
        let data = 512 + (u64::from(self.room.max(blocks)) * 4).next_multiple_of(512);
        let mut header = RawHeader::new_zeroed();
        header.signature = SIGNATURE.into();
        header.version = VERSION.into();
        header.header_size = 0x180.into();
        header.image_type = if self.fixed { 2 } else { 1 }.into();
        header.offset_bmap = 512.into();
        header.offset_data = u32::try_from(data).unwrap().into();
        header.sector_size = 512.into();
        header.disk_size = self.size.into();
        header.block_size = self.block_size.into();
        header.blocks_in_image = blocks.into();
        header.blocks_allocated = if self.fixed { blocks } else { 0 }.into();
        let mut bytes = SparseBytes::new(0);
        bytes.write(0, header.as_bytes());
        for entry in 0..blocks {
            let value = if self.fixed { entry } else { FREE };
            bytes.write(512 + u64::from(entry) * 4, &value.to_le_bytes());
        }
        let end = data + u64::from(blocks) * u64::from(self.block_size);
        bytes.set_size(if self.fixed { end } else { data });
        if self.grows {
            return TestDisk::growing_from_bytes(bytes);
        }
        if !self.fixed {
            bytes.write(data, &vec![0xee; usize::try_from(end - data).unwrap()]);
        }
        let disk = TestDisk::from_bytes(bytes);
        disk.with_capabilities(Capabilities::FUA | Capabilities::DISCARD)
    }
}

pub(super) fn open(disk: &TestDisk) -> Result<Vdi<TestDisk>, String> {
    block_on(Vdi::open(disk.clone(), false)).map_err(|error| format!("open: {error}"))
}

/// Everything the guest sees.
pub(super) fn content(image: &Vdi<TestDisk>) -> Result<Vec<u8>, String> {
    let mut buf = vec![0; usize::try_from(image.info().size).unwrap()];
    block_on(image.read(0, &mut buf)).map_err(|error| format!("read: {error}"))?;
    let mut now = vec![1; buf.len()];
    if image.try_read(0, &mut now) && now != buf {
        return Err("read_now differs from read".into());
    }
    Ok(buf)
}

/// Looks at the bytes of an image as a checker does: `clean` demands what `qemu-img check` does, otherwise leaks are
/// allowed. Independent of the driver, but for the parsing of the header.
pub(super) fn check_image(bytes: &SparseBytes, clean: bool) -> Result<Layout, String> {
    let mut head = [0; 512];
    bytes.read(0, &mut head);
    let header = Header::parse(&head, bytes.size()).map_err(|error| error.to_string())?;
    let layout = header.layout;
    let count = header.raw.blocks_allocated.get();
    let mut seen = BTreeSet::new();
    for block in 0..layout.blocks {
        let mut word = [0; 4];
        bytes.read(layout.map_offset + u64::from(block) * 4, &mut word);
        let index = u32::from_le_bytes(word);
        if index >= 0xffff_fffe {
            continue;
        }
        if index >= count {
            return Err(format!("block {block} is at {index}, blocks_allocated is {count}"));
        }
        if layout.place(index) >= bytes.size() {
            return Err(format!("block {block} is at {index}, behind the end of the file"));
        }
        if !seen.insert(index) {
            return Err(format!("block {block} is at {index}, where another one is"));
        }
        if index >= layout.blocks {
            return Err(format!("block {block} is at {index}, too large for {} blocks", layout.blocks));
        }
    }
    if clean && seen.len() != count as usize {
        return Err(format!("blocks_allocated is {count}, {} are mapped", seen.len()));
    }
    Ok(layout)
}

/// Checks what a power cut left, opens it and reads all of it; then closes cleanly, and reads again.
pub(super) fn recover(bytes: &SparseBytes, grows: bool) -> Result<Vec<u8>, String> {
    check_image(bytes, false)?;
    reopen(bytes, grows)
}

/// [`recover`] for an image in which a checker may find fault before it is closed.
pub(super) fn reopen(bytes: &SparseBytes, grows: bool) -> Result<Vec<u8>, String> {
    let disk = match grows {
        true => TestDisk::growing_from_bytes(bytes.clone()),
        false => TestDisk::from_bytes(bytes.clone()),
    };
    let image = open(&disk)?;
    let found = content(&image)?;
    block_on(image.close()).map_err(|error| format!("close: {error}"))?;
    check_image(&disk.image(), true).map_err(|error| format!("after a clean close: {error}"))?;
    let again = content(&open(&disk)?)?;
    if again != found {
        return Err("a clean close changed the content".into());
    }
    Ok(found)
}

/// A driver over `disk`, shared as requests in flight need it.
pub(super) fn shared(disk: &TestDisk, mutant: Option<Mutant>) -> Rc<Vdi<TestDisk>> {
    let image = open(disk).unwrap();
    image.mutant.set(mutant);
    Rc::new(image)
}
