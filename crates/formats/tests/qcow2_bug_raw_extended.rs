//! Seen: an image with extended L2 entries and a raw external data file read zeroes where its data file, read by
//! itself, held bytes of a write that had failed half way (random workload). Why: creation mapped the clusters but left
//! their subclusters unallocated, so the map kept saying "zero" after the failure.
//! Must hold: a raw data file and the disk read the same, whatever fails.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::rc::Rc;

use blkproof_block::testing::{Action, OpKind, Rule, TestDisk, block_on};
use blkproof_block::{BlockDevice, Errno, IoError, Preallocation, WriteFlags};
use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};

#[test]
fn the_raw_file_and_the_disk_agree_after_a_write_that_failed_half_way() {
    for grown in [false, true] {
        let options = CreateOptions {
            size: if grown { 16 << 10 } else { 256 << 10 },
            cluster_size: 16 << 10,
            extended_l2: true,
            data_file: Some("data.raw".into()),
            data_file_raw: true,
            ..CreateOptions::default()
        };
        let (file, data) = (Rc::new(TestDisk::growing(0)), Rc::new(TestDisk::growing(0)));
        block_on(create(Rc::clone(&file), Some(Rc::clone(&data)), &options)).unwrap();
        let open = OpenOptions { data_file: Some(TestDisk::clone(&data)), ..OpenOptions::default() };
        let image = block_on(Qcow2::open(TestDisk::clone(&file), open)).unwrap();
        if grown {
            block_on(image.resize(256 << 10, Preallocation::Off)).unwrap();
        }
        let error = IoError::new(Errno::IO);
        data.add_rule(Rule::new(Action::PartThenFail { bytes: 1024, error }).kind(OpKind::Write).nth(1));
        block_on(image.write(40_960, &[5; 4096], WriteFlags::empty())).unwrap_err();
        let mut disk = vec![0; 256 << 10];
        block_on(image.read(0, &mut disk)).unwrap();
        assert!(disk == data.bytes(0, 256 << 10), "grown {grown}: the raw data file reads differently");
    }
}
