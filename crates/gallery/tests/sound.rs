//! With nothing planted, the copies do what the originals do, byte for byte, and the small drivers keep the contract.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::rc::Rc;

use blkproof_block::align::Aligned;
use blkproof_block::testing::workload::{Config, run};
use blkproof_block::testing::{Log as DiskLog, TestDisk, block_on};
use blkproof_block::{BlockDevice, Node};
use blkproof_gallery::drivers::{Cache, Log, Merge, Pad, Pieces, Retry};
use blkproof_gallery::{Mutant, planted};

const SIZE: u64 = (1 << 20) + 512;

/// What a disk was asked for, and what it holds.
fn trace(log: &DiskLog, disk: &TestDisk) -> (Vec<String>, Vec<u8>) {
    let image = disk.image();
    let mut bytes = vec![0; usize::try_from(image.size()).unwrap()];
    image.read(0, &mut bytes);
    (log.ops().iter().map(|op| op.to_string()).collect(), bytes)
}

/// A hostile workload of many requests on an image in memory, and its close; the seed decides all of it.
fn tortured<D: BlockDevice + 'static>(seed: u64, disk: &TestDisk, image: Rc<D>) -> (Vec<String>, Vec<u8>) {
    let config = Config { seed, ops: 400, max_len: 40_000, resizes: 3, ..Config::default() };
    let outcome = run(config.hostile(), Rc::clone(&image), disk);
    outcome.assert_clean();
    block_on(image.close()).unwrap();
    trace(&disk.log(), disk)
}

fn same(seed: u64, original: (Vec<String>, Vec<u8>), copy: (Vec<String>, Vec<u8>)) {
    for (number, (original, copy)) in original.0.iter().zip(&copy.0).enumerate() {
        assert_eq!(original, copy, "seed {seed}: request {number} to the disk");
    }
    assert_eq!(original.0.len(), copy.0.len(), "seed {seed}: requests to the disk");
    assert!(original.1 == copy.1, "seed {seed}: the images differ");
}

#[test]
fn the_copy_of_qcow2_does_what_the_original_does() {
    assert!(Mutant::ALL.iter().all(|&mutant| !planted(mutant)));
    for seed in 0..6 {
        let cluster_size = [512, 4096, 65536][seed as usize % 3];
        let (version, lazy_refcounts) = (if seed == 3 { 2 } else { 3 }, seed == 4);
        let original = {
            use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};
            let options =
                CreateOptions { size: SIZE, cluster_size, version, lazy_refcounts, ..CreateOptions::default() };
            let disk = TestDisk::growing(0);
            block_on(create(Rc::new(disk.clone()), None, &options)).unwrap();
            let open = OpenOptions { l2_cache_size: 4096, ..OpenOptions::default() };
            let image = Rc::new(block_on(Qcow2::open(disk.clone(), open)).unwrap());
            tortured(seed, &disk, image)
        };
        let copy = {
            use blkproof_gallery::formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};
            let options =
                CreateOptions { size: SIZE, cluster_size, version, lazy_refcounts, ..CreateOptions::default() };
            let disk = TestDisk::growing(0);
            block_on(create(Rc::new(disk.clone()), None, &options)).unwrap();
            let open = OpenOptions { l2_cache_size: 4096, ..OpenOptions::default() };
            let image = Rc::new(block_on(Qcow2::open(disk.clone(), open)).unwrap());
            tortured(seed, &disk, image)
        };
        same(seed, original, copy);
    }
}

#[test]
fn the_copy_of_vdi_does_what_the_original_does() {
    for seed in 0..4 {
        let fixed = seed == 3;
        let original = {
            use blkproof_formats::vdi::{CreateOptions, Vdi, create};
            let disk = TestDisk::growing(0);
            let options = CreateOptions { size: 3 * SIZE, fixed, uuid: Some([7; 16]), ..CreateOptions::default() };
            block_on(create(&disk, &options)).unwrap();
            tortured(seed, &disk, Rc::new(block_on(Vdi::open(disk.clone(), false)).unwrap()))
        };
        let copy = {
            use blkproof_gallery::formats::vdi::{CreateOptions, Vdi, create};
            let disk = TestDisk::growing(0);
            let options = CreateOptions { size: 3 * SIZE, fixed, uuid: Some([7; 16]), ..CreateOptions::default() };
            block_on(create(&disk, &options)).unwrap();
            tortured(seed, &disk, Rc::new(block_on(Vdi::open(disk.clone(), false)).unwrap()))
        };
        same(seed, original, copy);
    }
}

/// Faults, dropped requests and power cuts.
fn keeps_the_contract(overhead: u64, open: impl Fn(TestDisk) -> Node) {
    let size = 64 << 10;
    for seed in 0..24 {
        let disk = TestDisk::new(size + overhead);
        let config = Config { seed, ops: 150, max_len: 9000, ..Config::default() };
        let config = if seed % 3 == 0 { config } else { config.hostile() };
        let outcome = run(config, Rc::new(open(disk.clone())), &disk);
        outcome.assert_clean();
        let found = outcome.check_crashes(12, 4, |image| {
            let device = open(TestDisk::from_bytes(image.clone()));
            let mut bytes = vec![0; usize::try_from(size).unwrap()];
            block_on(device.read(0, &mut bytes)).map_err(|error| error.to_string())?;
            Ok(bytes)
        });
        assert_eq!(found, [], "seed {seed}");
    }
}

#[test]
fn the_cache_keeps_the_contract() {
    keeps_the_contract(0, |disk| Node::new(Cache::new(disk)));
}

#[test]
fn the_log_keeps_the_contract() {
    keeps_the_contract(Log::<TestDisk>::OVERHEAD, |disk| Node::new(Aligned::new(block_on(Log::open(disk)).unwrap())));
}

#[test]
fn the_merger_keeps_the_contract() {
    keeps_the_contract(0, |disk| Node::new(Merge::new(disk)));
}

#[test]
fn the_padder_keeps_the_contract() {
    keeps_the_contract(0, |disk| Node::new(Pad::new(disk)));
}

#[test]
fn the_piecewise_reader_keeps_the_contract() {
    keeps_the_contract(0, |disk| Node::new(Pieces::new(disk)));
}

#[test]
fn the_retrier_keeps_the_contract() {
    keeps_the_contract(0, |disk| Node::new(Retry::new(disk)));
}
