//! VDI images with small blocks, which make many allocations.

use blkproof_block::BlockDevice;
use blkproof_block::nodes::memory::SparseBytes;
use blkproof_block::testing::{TestDisk, block_on};
use blkproof_gallery::formats::vdi::Vdi;

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// Guest blocks of an image.
pub const BLOCKS: u32 = 300;
/// Where the data begins.
pub const DATA: u64 = 2048;

/// An empty image, grown by being written to.
pub fn image() -> (TestDisk, Vdi<TestDisk>) {
    let disk = TestDisk::growing_from_bytes(bytes());
    let vdi = open(&disk).unwrap();
    (disk, vdi)
}

/// The bytes of an empty image.
pub fn bytes() -> SparseBytes {
    let mut head = [0; 512];
    let fields: [(usize, u32); 12] = [
        (0x40, 0xbeda_107f),
        (0x44, 0x0001_0001),
        (0x48, 0x180),
        (0x4c, 1),
        (0x154, 512),
        (0x158, u32::try_from(DATA).unwrap()),
        (0x168, 512),
        (0x170, BLOCKS * 4096),
        (0x178, 4096),
        (0x180, BLOCKS),
        (0x184, 0),
        (0x188, 0x1234_5678),
    ];
    for (at, value) in fields {
        head[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let mut bytes = SparseBytes::new(0);
    bytes.write(0, &head);
    bytes.write(512, &[0xff; BLOCKS as usize * 4]);
    bytes.set_size(DATA);
    bytes
}

/// Opens what `disk` holds.
pub fn open(disk: &TestDisk) -> Result<Vdi<TestDisk>, String> {
    block_on(Vdi::open(disk.clone(), false)).map_err(|error| format!("open: {error}"))
}

/// Closes and opens again.
pub fn reopen(disk: &TestDisk, vdi: Vdi<TestDisk>) -> Result<Vdi<TestDisk>, String> {
    block_on(vdi.close()).map_err(|error| format!("close: {error}"))?;
    drop(vdi);
    open(disk)
}
