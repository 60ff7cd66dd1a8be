//! Seen: after a power cut a sector held the first 57 bytes of one write and then what was there before (`torture`, an
//! image that was filled up to an odd byte). Why: a write of 57 bytes to a new cluster was the last one of the file, which
//! then ended within a sector; the next write to that sector made the file longer, and the power cut kept its data and
//! lost the new length. Must hold: what is written to a new cluster at the end of the file ends with a sector.
#![allow(missing_docs, clippy::unwrap_used)]

use std::rc::Rc;

use blkproof_block::testing::{TestDisk, block_on, crash_states, interesting_points};
use blkproof_block::{BlockDevice, WriteFlags};
use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};

#[test]
fn a_file_does_not_end_within_a_sector() {
    let options = CreateOptions { size: 1 << 20, cluster_size: 4096, ..CreateOptions::default() };
    let mut states = 0;
    for (at, len) in [(0, 57), (100, 1), (511, 1), (4096 - 512, 57), (512, 512), (1000, 3000)] {
        let fresh = Rc::new(TestDisk::growing(0));
        block_on(create(Rc::clone(&fresh), None, &options)).unwrap();
        let disk = TestDisk::growing_from_bytes(fresh.image());
        let image = block_on(Qcow2::open(disk.clone(), OpenOptions::default())).unwrap();
        let sector = at / 512 * 512;
        block_on(async {
            image.write(at, &vec![1; len], WriteFlags::empty()).await.unwrap();
            image.flush().await.unwrap();
            assert_eq!(disk.info().size % 512, 0, "{len} bytes at {at}");
            image.write(sector, &[2; 512], WriteFlags::empty()).await.unwrap();
        });
        let log = disk.log();
        for point in interesting_points(&log) {
            for state in crash_states(&log, &disk.initial(), point, 20, 1) {
                let disk = TestDisk::growing_from_bytes(state.image);
                let image = block_on(Qcow2::open(disk, OpenOptions::default())).unwrap();
                let mut found = [0xee; 512];
                block_on(image.read(sector, &mut found)).unwrap();
                let twos = found.iter().filter(|&&byte| byte == 2).count();
                assert!([0, 512].contains(&twos), "{len} bytes at {at}, cut at {point}, {}: {twos}", state.how);
                states += 1;
            }
        }
    }
    assert!(states > 20, "{states} states");
}
