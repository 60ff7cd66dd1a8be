//! Two rules of the ordering argument that random runs rarely put to the test.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod qcow2_support;

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use blkproof_block::nodes::memory::SparseBytes;
use blkproof_block::testing::{OpKind, TestDisk, block_on, crash_states, interesting_points};
use blkproof_block::{BlockDevice, WriteFlags};
use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};
use qcow2_support::ok;

/// Rule 3: the copy of an L2 table shared with a snapshot is durable before L1 names it. Without the flush in between a
/// power cut leaves L1 pointing at an empty table, and everything the old one mapped is gone.
#[test]
fn a_copied_l2_table_is_durable_before_l1_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let name = path.to_str().unwrap();
    ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", name, "1M"]);
    ok("qemu-io", &["-c", "write -P 1 0 200k", name]);
    ok("qemu-img", &["snapshot", "-c", "one", name]);
    let mut content = SparseBytes::new(0);
    content.write(0, &std::fs::read(&path).unwrap());
    let disk = TestDisk::growing_from_bytes(content);
    block_on(async {
        let image = Qcow2::open(disk.clone(), OpenOptions::default()).await.unwrap();
        image.write(8192, &[2; 512], WriteFlags::empty()).await.unwrap();
        image.flush().await.unwrap();
    });
    let (log, mut states) = (disk.log(), 0);
    for point in interesting_points(&log) {
        for state in crash_states(&log, &disk.initial(), point, 64, 1) {
            states += 1;
            let next = TestDisk::growing_from_bytes(state.image);
            let image = block_on(Qcow2::open(next, OpenOptions::default())).unwrap();
            let mut buf = vec![0; 200 << 10];
            block_on(image.read(0, &mut buf)).unwrap();
            let new = buf[8192];
            assert!(new == 1 || new == 2);
            assert!(buf[8192..8704].iter().all(|&b| b == new), "{}", state.how);
            buf[8192..8704].fill(1);
            assert!(buf.iter().all(|&b| b == 1), "power cut at {point}, {}: flushed bytes are lost", state.how);
        }
    }
    assert!(states > 8, "only {states} states");
}

/// Rule 4 and dropped writes: a cluster is not given out again while a dropped write may still land in it.
#[test]
fn a_dropped_write_never_lands_in_a_cluster_that_was_given_away() {
    let fresh = Rc::new(TestDisk::growing(0));
    let options = CreateOptions { size: 1 << 20, ..CreateOptions::default() };
    block_on(create(Rc::clone(&fresh), None, &options)).unwrap();
    let disk = TestDisk::growing_from_bytes(fresh.image());
    let image = block_on(Qcow2::open(disk.clone(), OpenOptions::default())).unwrap();
    block_on(async {
        image.write(0, &[1; 65536], WriteFlags::empty()).await.unwrap();
        image.flush().await.unwrap();
    });
    let first = block_on(image.block_status(0, 65536)).unwrap().host_offset;
    disk.hold_kind(OpKind::Write);
    {
        let mut dropped = pin!(image.write(0, &[9; 4096], WriteFlags::empty()));
        assert!(dropped.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    disk.clear_rules();
    assert_eq!(disk.orphans().len(), 1, "the write waits to land");
    block_on(async {
        image.discard(0, 65536).await.unwrap();
        image.flush().await.unwrap();
        image.write(524_288, &[2; 65536], WriteFlags::empty()).await.unwrap();
        let place = image.block_status(524_288, 65536).await.unwrap().host_offset;
        assert_eq!(place, first, "the freed cluster is used again");
        for orphan in disk.orphans() {
            disk.land(orphan.id);
        }
        let mut buf = vec![0; 65536];
        image.read(524_288, &mut buf).await.unwrap();
        assert!(buf.iter().all(|&b| b == 2), "a dropped write landed in somebody else's cluster");
    });
}
