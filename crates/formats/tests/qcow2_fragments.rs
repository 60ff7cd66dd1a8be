//! A read of a fragmented range asks for its pieces side by side, and reports the first bad byte all the same.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::rc::Rc;

use blkproof_block::testing::{Executor, OpKind, TestDisk, block_on};
use blkproof_block::{BlockDevice, ByteOffset, Errno, IoError, WriteFlags};
use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};

const CLUSTER: u64 = 4096;

#[test]
fn pieces_of_a_read_are_in_flight_together() {
    let options = CreateOptions { size: 1 << 20, cluster_size: CLUSTER, ..CreateOptions::default() };
    let fresh = Rc::new(TestDisk::growing(0));
    block_on(create(Rc::clone(&fresh), None, &options)).unwrap();
    let disk = TestDisk::growing_from_bytes(fresh.image());
    let image = Rc::new(block_on(Qcow2::open(disk.clone(), OpenOptions::default())).unwrap());
    // Written from behind, so that no two neighbours are adjacent in the file; one hole.
    for cluster in (0..40u64).rev().filter(|&cluster| cluster != 5) {
        block_on(image.write(cluster * CLUSTER, &[cluster as u8 + 1; CLUSTER as usize], WriteFlags::empty())).unwrap();
    }
    disk.hold_kind(OpKind::Read);
    let mut executor = Executor::new();
    for fails in [false, true] {
        let image = Rc::clone(&image);
        let read = executor.spawn(async move {
            let mut buf = vec![0xee; 40 * CLUSTER as usize];
            image.read(0, &mut buf).await.map(|()| buf)
        });
        executor.run_until_stalled();
        let together = disk.parked().len();
        assert!((2..=16).contains(&together), "{together} reads at a time");
        if fails {
            // The eighth piece fails first, then the third.
            for number in [7, 2] {
                let op = disk.parked()[number].id;
                disk.fail(op, IoError::new(Errno::IO).at(disk.parked()[number].range.start));
            }
        }
        while !disk.parked().is_empty() {
            // The youngest first.
            disk.release(disk.parked().last().unwrap().id);
            executor.run_until_stalled();
        }
        match read.take().unwrap() {
            Ok(buf) => {
                assert!(!fails);
                for (cluster, bytes) in buf.chunks(CLUSTER as usize).enumerate() {
                    let want = if cluster == 5 { 0 } else { cluster as u8 + 1 };
                    assert!(bytes.iter().all(|&byte| byte == want), "cluster {cluster}");
                }
            }
            Err(error) => {
                assert!(fails, "{error}");
                assert_eq!(error.first_bad, Some(ByteOffset(2 * CLUSTER)), "{error}");
            }
        }
    }
}
