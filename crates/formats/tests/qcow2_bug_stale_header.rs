//! Seen: review of how the header is changed. Why: whoever marked the image as corrupt took a copy of the header,
//! waited for its turn, and wrote the copy; a refcount table that was switched in the meantime was undone on disk,
//! while tables that rely on the new one were still being written.
//! Must hold: each change of the header is made to the header as it is when it is written.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::rc::Rc;

use blkproof_block::nodes::memory::SparseBytes;
use blkproof_block::testing::{Action, Executor, OpKind, Rule, TestDisk, block_on};
use blkproof_block::{BlockDevice, ByteRange, WriteFlags};
use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};

fn word(disk: &TestDisk, at: u64) -> u64 {
    u64::from_be_bytes(disk.bytes(at, 8).try_into().unwrap())
}

const INCOMPATIBLE: u64 = 72;
const REFTABLE: u64 = 48;

async fn fill(image: &Qcow2<TestDisk>, from: u64, to: u64) {
    for cluster in from..to {
        image.write(cluster * 512, &[7; 512], WriteFlags::empty()).await.unwrap();
    }
}

#[test]
fn marking_an_image_corrupt_does_not_undo_a_table_that_is_being_switched() {
    // One refcount table of 64 blocks of 64 counts: 2 MiB of file.
    let options = CreateOptions { size: 4 << 20, cluster_size: 512, refcount_bits: 64, ..CreateOptions::default() };
    let fresh = Rc::new(TestDisk::growing(0));
    block_on(create(Rc::clone(&fresh), None, &options)).unwrap();
    let old = word(&fresh, REFTABLE);
    // How many clusters fit before the table grows?
    let image = block_on(Qcow2::open(TestDisk::clone(&fresh), OpenOptions::default())).unwrap();
    let empty: SparseBytes = fresh.image();
    let mut clusters = 1;
    while word(&fresh, REFTABLE) == old {
        block_on(fill(&image, clusters, clusters + 1));
        clusters += 1;
    }
    let disk = TestDisk::growing_from_bytes(empty);
    let image = block_on(Qcow2::open(disk.clone(), OpenOptions::default())).unwrap();
    block_on(fill(&image, 0, clusters - 4));
    block_on(image.close()).unwrap();
    assert_eq!(word(&disk, REFTABLE), old);
    // The first L1 entry has a reserved bit.
    let l1 = word(&disk, 40);
    let l2 = word(&disk, l1) & 0x00ff_ffff_ffff_fe00;
    disk.tamper(|bytes| bytes.write(l1, &(l2 | 1 << 63 | 0x100).to_be_bytes()));

    let image = Rc::new(block_on(Qcow2::open(disk.clone(), OpenOptions::default())).unwrap());
    let mut executor = Executor::new();
    disk.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write).range(ByteRange::at(0, 512)).nth(1));
    let writer = Rc::clone(&image);
    executor.spawn(async move {
        for cluster in clusters - 4..clusters + 8 {
            if writer.write(cluster * 512, &[7; 512], WriteFlags::empty()).await.is_err() {
                break;
            }
        }
    });
    executor.run_until_stalled();
    assert_eq!(disk.parked().len(), 1, "the header is about to name the new table");
    let reader = Rc::clone(&image);
    let read = executor.spawn(async move { reader.read(0, &mut [0; 512]).await });
    executor.run_until_stalled();
    disk.release_all();
    executor.run_until_stalled();
    assert!(read.take().unwrap().is_err());
    assert_eq!(word(&disk, INCOMPATIBLE) & 2, 2, "marked corrupt");
    assert_ne!(word(&disk, REFTABLE), old, "the switch was undone");
}
