//! Random concurrent workloads with faults, dropped requests and power cuts on images as others make them, judged by
//! QEMU: what a close leaves is clean, and what a power cut leaves reads the same in QEMU as it does here.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use blkproof_block::align::Aligned;
use blkproof_block::nodes::memory::SparseBytes;
use blkproof_block::testing::workload::{Config, run};
use blkproof_block::testing::{TestDisk, block_on, crash_states, stamp};
use blkproof_block::{BlockDevice, Limits};
use blkproof_formats::vdi::{CreateOptions, Vdi, create};

const SIZE: u64 = (5 << 20) + 512;

fn qemu_img(args: &[&str]) -> (i32, String) {
    let output = Command::new("qemu-img").args(args).output();
    let output = output.unwrap_or_else(|error| panic!("these tests need qemu-img: {error}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap_or(-1), text)
}

fn store(bytes: &SparseBytes, path: &Path) {
    let mut buf = vec![0; bytes.size() as usize];
    bytes.read(0, &mut buf);
    std::fs::write(path, buf).unwrap();
}

/// Reads `bytes` as an image and has QEMU compare what it finds there.
fn same_in_qemu(bytes: &SparseBytes, dir: &Path, what: &str) {
    let (image, raw) = (dir.join("image.vdi"), dir.join("image.raw"));
    store(bytes, &image);
    let disk = TestDisk::growing_from_bytes(bytes.clone());
    let mut found = vec![0; SIZE as usize];
    block_on(async { Vdi::open(disk, true).await.unwrap().read(0, &mut found).await.unwrap() });
    std::fs::write(&raw, found).unwrap();
    let args = ["compare", "-f", "vdi", "-F", "raw", image.to_str().unwrap(), raw.to_str().unwrap()];
    let (status, said) = qemu_img(&args);
    assert_eq!(status, 0, "{what}: {said}");
}

fn check_status(bytes: &SparseBytes, dir: &Path) -> (i32, String) {
    let path = dir.join("checked.vdi");
    store(bytes, &path);
    qemu_img(&["check", "-f", "vdi", path.to_str().unwrap()])
}

#[test]
fn qemu_agrees_after_every_workload() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..8 {
        let disk = TestDisk::growing(0);
        let fixed = seed % 4 == 3;
        block_on(create(&disk, &CreateOptions { size: SIZE, fixed, ..CreateOptions::default() })).unwrap();
        let image = Rc::new(block_on(Vdi::open(disk.clone(), false)).unwrap());
        let config = Config { seed, ops: 60, max_len: 400_000, ..Config::default() };
        let outcome = run(config.hostile(), Rc::clone(&image), &disk);
        outcome.assert_clean();
        block_on(image.close()).unwrap();
        let (status, said) = check_status(&disk.image(), dir.path());
        assert_eq!(status, 0, "seed {seed}: {said}");
        same_in_qemu(&disk.image(), dir.path(), &format!("seed {seed}"));

        let points = outcome.crash_points();
        let position = points[points.len() / 2];
        for state in crash_states(&outcome.log, &outcome.initial, position, 2, seed) {
            let what = format!("seed {seed}, power cut at {position} with {}", state.how);
            same_in_qemu(&state.image, dir.path(), &what);
            let (_, said) = check_status(&state.image, dir.path());
            // A count above what is mapped is a leak, which QEMU has no other word for; anything else is damage.
            for line in said.lines().filter(|line| line.starts_with("ERROR")) {
                assert!(line.starts_with("ERROR: allocated blocks mismatch"), "{what}: {said}");
            }
        }
    }
}

/// The same over a device that takes whole blocks of 4 KiB alone, as `O_DIRECT` has it: header, map and data share
/// blocks, and the node in between reads, modifies and writes them.
#[test]
fn a_device_with_limits_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..4 {
        let limits = Limits { alignment: 4096, memory_alignment: 512, max_transfer: 256 << 10, ..Limits::NONE };
        let plain = TestDisk::growing(0);
        block_on(create(&plain, &CreateOptions { size: SIZE, ..CreateOptions::default() })).unwrap();
        let mut bytes = plain.image();
        let disk = if seed % 2 == 0 {
            // A device that does not grow, of whole blocks, with room for every block of the image.
            bytes.set_size(4096 + (6 << 20));
            TestDisk::from_bytes(bytes)
        } else {
            TestDisk::growing_from_bytes(bytes)
        };
        let disk = disk.with_limits(limits);
        let aligned = Rc::new(Aligned::new(disk.clone()));
        let image = Rc::new(block_on(Vdi::open(Rc::clone(&aligned), false)).unwrap());
        let config = Config { seed, ops: 60, max_len: 300_000, ..Config::default() };
        let mut outcome = run(config.hostile(), Rc::clone(&image), &disk);
        outcome.assert_clean();
        block_on(image.close()).unwrap();
        let (status, said) = check_status(&disk.image(), dir.path());
        assert_eq!(status, 0, "seed {seed}: {said}");
        let again = block_on(Vdi::open(TestDisk::from_bytes(disk.image()), false)).unwrap();
        block_on(outcome.check_reopened(&again)).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        same_in_qemu(&disk.image(), dir.path(), &format!("seed {seed}"));
    }
}

/// The judge above is not deaf.
#[test]
fn qemu_finds_a_block_that_two_entries_name() {
    let dir = tempfile::tempdir().unwrap();
    let disk = TestDisk::growing(0);
    block_on(create(&disk, &CreateOptions { size: SIZE, fixed: true, ..CreateOptions::default() })).unwrap();
    let image = block_on(Vdi::open(disk.clone(), false)).unwrap();
    block_on(image.write(0, &stamp::bytes(0, 512, 1), blkproof_block::WriteFlags::empty())).unwrap();
    block_on(image.close()).unwrap();
    disk.tamper(|bytes| bytes.write(512, &1u32.to_le_bytes()));
    let (status, said) = check_status(&disk.image(), dir.path());
    assert_eq!(status, 2, "{said}");
    assert!(said.contains("ERROR: block index 1 also used by 1"), "{said}");
    let error = block_on(Vdi::open(disk, false)).unwrap_err().to_string();
    assert_eq!(error, "corrupt VDI image: block map entry 1 at 0x204 names block 1, which entry 0 names too");
}
