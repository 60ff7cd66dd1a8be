//! Seen: after a power cut a sector that nobody had written held the data of another request, which had failed long
//! before (random workload, seed 433). Why: a cluster past the end of the file is not padded with zeroes, for it reads
//! as zeroes. But a write to it had failed, and the cluster was given out again: what a failed write left on the disk
//! is not known. Must hold: only what no write ever reached for is taken to be zero.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::rc::Rc;

use blkproof_block::testing::{Action, OpKind, Rule, TestDisk, block_on, crash_states, interesting_points};
use blkproof_block::{BlockDevice, Errno, IoError, WriteFlags};
use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};

#[test]
fn a_cluster_that_a_failed_write_reached_for_is_padded() {
    let options = CreateOptions { size: 1 << 20, cluster_size: 4096, ..CreateOptions::default() };
    let fresh = Rc::new(TestDisk::growing(0));
    block_on(create(Rc::clone(&fresh), None, &options)).unwrap();
    let disk = TestDisk::growing_from_bytes(fresh.image());
    let image = block_on(Qcow2::open(disk.clone(), OpenOptions::default())).unwrap();
    block_on(async {
        image.write(0, &[1; 4096], WriteFlags::empty()).await.unwrap();
        image.flush().await.unwrap();
        let error = IoError::new(Errno::IO);
        disk.add_rule(Rule::new(Action::FailBefore(error)).kind(OpKind::Write).nth(1));
        image.write(4096, &[0xf3; 4096], WriteFlags::empty()).await.unwrap_err();
        disk.clear_rules();
        image.flush().await.unwrap();
        image.write(8192, &[2; 512], WriteFlags::empty()).await.unwrap();
        image.flush().await.unwrap();
    });
    let log = disk.log();
    let mut states = 0;
    for point in interesting_points(&log) {
        for state in crash_states(&log, &disk.initial(), point, 20, 1) {
            states += 1;
            let disk = TestDisk::growing_from_bytes(state.image);
            let image = block_on(Qcow2::open(disk, OpenOptions::default())).unwrap();
            let mut sectors = [0xee; 4096];
            block_on(image.read(8192, &mut sectors)).unwrap();
            assert!(sectors[512..].iter().all(|&byte| byte == 0), "power cut at {point}, {}: foreign bytes", state.how);
        }
    }
    assert!(states > 20, "{states} states");
}
