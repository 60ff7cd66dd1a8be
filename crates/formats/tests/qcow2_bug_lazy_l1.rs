//! Seen: review of the growth of the L1 table; with lazy refcounts a power cut after a resize left an image that was
//! not marked dirty and whose L1 table counted as free, so that the next writer would have put data over it. Why: the
//! counts of the new table were left to a commit, which with lazy refcounts does not write counts, and marks the image
//! dirty only when it writes an L2 or L1 table.
//! Must hold: whatever the header names is counted, or the image is marked dirty.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

#[path = "qcow2_support/walker.rs"]
mod walker;

use std::rc::Rc;

use blkproof_block::testing::{TestDisk, block_on, crash_states, interesting_points};
use blkproof_block::{BlockDevice, Preallocation};
use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};

#[test]
fn the_counts_of_a_grown_l1_table_are_durable_before_the_header_names_it() {
    for lazy_refcounts in [false, true] {
        let options = CreateOptions { size: 65_536, cluster_size: 512, lazy_refcounts, ..CreateOptions::default() };
        let fresh = Rc::new(TestDisk::growing(0));
        block_on(create(Rc::clone(&fresh), None, &options)).unwrap();
        let disk = TestDisk::growing_from_bytes(fresh.image());
        let image = block_on(Qcow2::open(disk.clone(), OpenOptions::default())).unwrap();
        // 1 MiB needs 32 L1 entries, 4 MiB 128: more than the one cluster of the first table.
        for size in [1 << 20, 4 << 20, 16 << 20] {
            block_on(image.resize(size, Preallocation::Off)).unwrap();
        }
        let log = disk.log();
        for point in interesting_points(&log) {
            for state in crash_states(&log, &disk.initial(), point, 16, 5) {
                let mut bytes = vec![0; state.image.size() as usize];
                state.image.read(0, &mut bytes);
                let found = walker::walk(&bytes);
                let what = format!("lazy {lazy_refcounts}, power cut at {point}, {}", state.how);
                assert!(found.dirty || found.damage.is_empty(), "{what}: {found:?}");
                let disk = TestDisk::growing_from_bytes(state.image);
                block_on(Qcow2::open(disk, OpenOptions::default())).unwrap_or_else(|e| panic!("{what}: {e}"));
            }
        }
    }
}
