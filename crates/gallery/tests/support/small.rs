//! The small drivers over a disk of 64 KiB.

use std::rc::Rc;

use blkproof_block::testing::{TestDisk, block_on};
use blkproof_gallery::drivers::Log;

pub fn disk() -> TestDisk {
    TestDisk::new(64 << 10)
}

/// A disk for the log, with 64 KiB for the guest.
pub fn log_disk() -> TestDisk {
    TestDisk::new(Log::<TestDisk>::OVERHEAD + (64 << 10))
}

pub fn open(disk: &TestDisk) -> Result<Rc<Log<TestDisk>>, String> {
    block_on(Log::open(disk.clone())).map(Rc::new).map_err(|error| format!("open: {error}"))
}
