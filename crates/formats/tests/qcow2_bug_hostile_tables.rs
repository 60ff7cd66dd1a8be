//! Seen: review of what an image can make us allocate. Why: the clusters of every snapshot's L1 table were listed one
//! by one, for a read-only open too and whether or not the table lay inside the file: 65,536 snapshots of 32 MiB each
//! were four billion entries, for a file of 3 MiB.
//! Must hold: a read-only open lists nothing, a writable one only what lies inside the file.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::rc::Rc;

use blkproof_block::testing::{TestDisk, block_on};
use blkproof_block::{BlockDevice, WriteFlags};
use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};

const SNAPSHOTS: u32 = 64;

#[test]
fn snapshots_that_lie_outside_of_the_file_cost_nothing() {
    let options = CreateOptions { size: 1 << 20, cluster_size: 512, ..CreateOptions::default() };
    let disk = Rc::new(TestDisk::growing(0));
    block_on(create(Rc::clone(&disk), None, &options)).unwrap();
    let at = disk.info().size.next_multiple_of(512);
    let mut table = Vec::new();
    for number in 0..SNAPSHOTS {
        table.extend_from_slice(&((1u64 << 40) + (u64::from(number) << 30)).to_be_bytes());
        table.extend_from_slice(&(4u32 << 20).to_be_bytes()); // entries: 32 MiB
        table.resize(40 * (number as usize + 1), 0);
    }
    block_on(disk.write(at, &table, WriteFlags::empty())).unwrap();
    disk.tamper(|bytes| {
        bytes.write(60, &SNAPSHOTS.to_be_bytes());
        bytes.write(64, &at.to_be_bytes());
    });
    let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
    let image = block_on(Qcow2::open(TestDisk::clone(&disk), read_only)).unwrap();
    block_on(image.read(0, &mut [0; 512])).unwrap();
    let error = block_on(Qcow2::open(TestDisk::clone(&disk), OpenOptions::default())).unwrap_err();
    assert!(error.to_string().contains("L1 table of snapshot 0 at 0x10000000000 reaches past end of file"), "{error}");
}
