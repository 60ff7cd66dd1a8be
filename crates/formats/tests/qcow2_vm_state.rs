//! The VM state of a qcow2 image, beside the disk and beside snapshots: QEMU reads ours and we read QEMU's, it costs
//! the disk nothing, and it keeps what was flushed through power cuts, failures and dropped requests.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, clippy::expect_used)]

mod qcow2_support;
#[path = "qcow2_support/walker.rs"]
mod walker;

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use blkproof_block::nodes::memory::{Memory, SparseBytes};
use blkproof_block::testing::{
    Action, Executor, OpKind, Rule, TestDisk, block_on, crash_states, interesting_points, stamp,
};
use blkproof_block::{BlockDevice, Errno, Event, IoError, Node, Preallocation, WriteFlags, ZeroFlags};
use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};
use qcow2_support::{Random, assert_clean, assert_same, load, memory_node, ok, run, store};

type Image = Qcow2<TestDisk>;

fn all(bytes: &SparseBytes) -> Vec<u8> {
    let mut buf = vec![0; bytes.size() as usize];
    bytes.read(0, &mut buf);
    buf
}

fn new_disk(options: &CreateOptions) -> TestDisk {
    let fresh = Rc::new(TestDisk::growing(0));
    block_on(create(Rc::clone(&fresh), None, options)).unwrap();
    TestDisk::growing_from_bytes(fresh.image())
}

fn open(disk: &TestDisk) -> Image {
    // The smallest caches: tables are written back in the middle of everything.
    let options = OpenOptions { l2_cache_size: 0, refcount_cache_size: 0, ..OpenOptions::default() };
    block_on(Image::open(disk.clone(), options)).unwrap_or_else(|error| panic!("does not open: {error}"))
}

async fn vm_state(image: &impl BlockDevice, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    image.read_vm_state(at, &mut bytes).await.unwrap();
    bytes
}

fn assert_consistent(disk: &TestDisk, what: &str) {
    let found = walker::walk(&all(&disk.image()));
    assert!(found.damage.is_empty() && found.leaks.is_empty() && !found.dirty, "{what}: {found:?}");
}

/// What QEMU reads from the VM state of an image.
fn qemu_vm_state(path: &Path, at: u64, len: u64) -> Vec<u8> {
    let command = format!("read -b -v {at} {len}");
    let text = ok("qemu-io", &["-r", "-f", "qcow2", "-c", &command, path.to_str().unwrap()]);
    let rows = text.lines().filter_map(|line| line.split_once(":  "));
    rows.flat_map(|(_, row)| row.split(' ').take(16).map(|byte| u8::from_str_radix(byte, 16).unwrap())).collect()
}

/// Options of `qemu-img create`.
const KINDS: &[&str] = &[
    "compat=1.1",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=4k,refcount_bits=2",
    "cluster_size=512,refcount_bits=64,lazy_refcounts=on",
    "extended_l2=on,cluster_size=16k",
    "cluster_size=2M",
];

/// Bytes compared, from the beginning of the VM state.
const LEN: usize = 200 << 10;

#[test]
fn either_side_reads_what_the_other_wrote() {
    for (number, kind) in KINDS.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.qcow2");
        let name = path.to_str().unwrap();
        ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", kind, name, "100000"]);
        let (mut disk, mut state) = (vec![0u8; 100_352], vec![0u8; LEN]);
        let mut random = Random(0x5a7e + number as u64);
        for round in 0..3u8 {
            // Ours: any bytes at any place, and the disk in between.
            let file = load(&path);
            let image = block_on(Qcow2::open(Rc::clone(&file), OpenOptions::default())).unwrap();
            block_on(async {
                assert_same(&vm_state(&image, 0, LEN).await, &state, &format!("{kind}, round {round}: we read"));
                for op in 0..12 {
                    let target = if random.one_in(3) { &mut disk } else { &mut state };
                    let at = random.below(target.len() as u64 - 1);
                    let len = (1 + random.below(20_000)).min(target.len() as u64 - at) as usize;
                    let data = stamp::bytes(at, len, op);
                    target[at as usize..][..len].copy_from_slice(&data);
                    if target.len() == LEN {
                        image.write_vm_state(at, &data).await.unwrap();
                    } else {
                        image.write(at, &data, WriteFlags::empty()).await.unwrap();
                    }
                }
                assert_same(&vm_state(&image, 0, LEN).await, &state, &format!("{kind}: we read our own"));
                image.close().await.unwrap();
                store(&file, &path).await;
            });
            assert_clean(&path, kind);
            assert_same(&qemu_vm_state(&path, 0, LEN as u64), &state, &format!("{kind}, round {round}: QEMU reads"));
            assert_same(&qcow2_support::qemu_content(&path, dir.path()), &disk, &format!("{kind}: the disk"));
            // A snapshot shares every cluster; round by round, what is written next is copied away from it.
            if round == 0 {
                ok("qemu-img", &["snapshot", "-c", "kept", name]);
                std::fs::write(dir.path().join("kept"), &state).unwrap();
            }
            // Theirs: sectors.
            for pattern in 0..4 {
                let at = random.below(LEN as u64 / 512 - 40) * 512;
                let len = (1 + random.below(40)) * 512;
                let byte = 0x10 * (round + 1) + pattern;
                state[at as usize..][..len as usize].fill(byte);
                ok("qemu-io", &["-f", "qcow2", "-c", &format!("write -b -P {byte} {at} {len}"), name]);
            }
            assert_clean(&path, kind);
        }
        ok("qemu-img", &["snapshot", "-a", "kept", name]);
        let kept = std::fs::read(dir.path().join("kept")).unwrap();
        assert_same(&qemu_vm_state(&path, 0, LEN as u64), &kept, &format!("{kind}: the snapshot, by QEMU"));
        let image = block_on(Qcow2::open(load(&path), OpenOptions::default())).unwrap();
        assert_same(&block_on(vm_state(&image, 0, LEN)), &kept, &format!("{kind}: the snapshot, by us"));
        ok("qemu-img", &["snapshot", "-d", "kept", name]);
        assert_clean(&path, kind);
    }
}

/// The comparison above has teeth: one changed byte in the file is seen.
#[test]
fn a_wrong_byte_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    ok("qemu-img", &["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "1M"]);
    let file = load(&path);
    let data = stamp::bytes(0, 4096, 1);
    block_on(async {
        let image = Qcow2::open(Rc::clone(&file), OpenOptions::default()).await.unwrap();
        image.write_vm_state(0, &data).await.unwrap();
        image.close().await.unwrap();
        store(&file, &path).await;
    });
    assert_eq!(qemu_vm_state(&path, 0, 4096), data);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(512).position(|window| window == &data[1024..1536]).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_ne!(qemu_vm_state(&path, 0, 4096), data);
}

#[test]
fn far_away_and_with_a_longer_l1_table() {
    let dir = tempfile::tempdir().unwrap();
    // The options, and a place far behind what the table reaches.
    for (kind, far) in [("compat=1.1", 3u64 << 40), ("cluster_size=512", 40 << 20), ("cluster_size=4k", 300 << 30)] {
        let path = dir.path().join("a.qcow2");
        let name = path.to_str().unwrap();
        ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", kind, name, "1M"]);
        let file = load(&path);
        block_on(async {
            let image = Qcow2::open(Rc::clone(&file), OpenOptions::default()).await.unwrap();
            image.write(0, &[5; 1 << 20], WriteFlags::empty()).await.unwrap();
            assert_eq!(vm_state(&image, far, 8192).await, [0; 8192], "{kind}: nothing was written");
            image.write_vm_state(far + 100, &[7; 5000]).await.unwrap();
            image.write_vm_state(0, &[8; 512]).await.unwrap();
            let mut want = vec![0; 8192];
            want[100..5100].fill(7);
            assert_same(&vm_state(&image, far, 8192).await, &want, kind);
            assert_eq!(vm_state(&image, u64::MAX >> 2, 512).await, [0; 512], "{kind}: behind the table");
            image.close().await.unwrap();
            store(&file, &path).await;
        });
        assert_clean(&path, kind);
        let mut want = vec![0; 8192];
        want[100..5100].fill(7);
        assert_same(&qemu_vm_state(&path, far, 8192), &want, &format!("{kind}: QEMU reads"));
        ok("qemu-io", &["-r", "-f", "qcow2", "-c", "read -P 5 0 1M", "-c", "read -b -P 8 0 512", name]);
    }
}

/// The rest of the L1 table's cluster is nobody's, whatever it holds: the table ends where the header says.
#[test]
fn bytes_behind_the_l1_table_are_no_entries() {
    let disk = new_disk(&CreateOptions { size: 32_768, cluster_size: 512, ..CreateOptions::default() });
    block_on(async {
        let image = open(&disk);
        image.write(0, &[9; 32_768], WriteFlags::empty()).await.unwrap();
        image.close().await.unwrap();
    });
    let table = u64::from_be_bytes(disk.bytes(40, 8).try_into().unwrap());
    let entry = disk.bytes(table, 8);
    assert_ne!(entry, [0; 8]);
    disk.tamper(|bytes| bytes.write(table + 8, &entry.repeat(63)));
    block_on(async {
        let image = open(&disk);
        assert_eq!(vm_state(&image, 0, 4096).await, [0; 4096], "the disk's own clusters");
        image.write_vm_state(100, &[1; 10]).await.unwrap();
        assert_eq!(vm_state(&image, 0, 100).await, [0; 100]);
        assert_eq!(vm_state(&image, 32_768, 4096).await, [0; 4096]);
        image.close().await.unwrap();
        let mut guest = vec![0; 32_768];
        open(&disk).read(0, &mut guest).await.unwrap();
        assert!(guest.iter().all(|&byte| byte == 9), "the disk is as it was");
    });
    assert_consistent(&disk, "closed");
}

/// Cluster size, size, new size, and whether the VM state survives the resize.
const RESIZES: &[(u64, u64, u64, bool)] = &[
    (65_536, 1 << 20, 2 << 20, true),
    (65_536, 1 << 20, 512 << 20, true),
    (65_536, 1 << 20, (512 << 20) + 512, false),
    (65_536, 0, 512, false),
    (65_536, 2 << 20, 1 << 20, false),
    (65_536, 600 << 20, 1 << 20, false),
    (65_536, 512, 0, false),
    (512, 32_768, 32_768, true),
    (512, 100, 32_768, true),
    (512, 32_768, 32_769, false),
    (512, 100_000, 2 << 20, false),
    (512, 98_305, 98_304, false),
];

#[test]
fn a_resize_keeps_the_vm_state_or_gives_all_of_it_up() {
    for &(cluster_size, old, new, kept) in RESIZES {
        let what = format!("{cluster_size}: {old} to {new}");
        let disk = new_disk(&CreateOptions { size: old, cluster_size, ..CreateOptions::default() });
        let image = open(&disk);
        let places = [0u64, 5000, 33_000, 100_000, 3 << 20];
        let edge = old.saturating_sub(300);
        block_on(async {
            for at in places {
                image.write_vm_state(at, &stamp::bytes(at, 3000, 1)).await.unwrap();
            }
            image.write(edge, &vec![9; (old - edge) as usize], WriteFlags::empty()).await.unwrap();
            image.resize(new, Preallocation::Off).await.unwrap();
            for at in places {
                let want = if kept { stamp::bytes(at, 3000, 1) } else { vec![0; 3000] };
                assert_same(&vm_state(&image, at, 3000).await, &want, &format!("{what}, at {at}"));
            }
            // The disk: what it had, then zeroes, as far as the old VM state could reach.
            let len = new.saturating_sub(old).min(4 << 20) as usize;
            let mut fresh = vec![1; len];
            image.read(new.min(old), &mut fresh).await.unwrap();
            assert!(fresh.iter().all(|&byte| byte == 0), "{what}: the new space is not zero");
            let mut before = vec![0; old.min(new).saturating_sub(edge) as usize];
            image.read(edge.min(new), &mut before).await.unwrap();
            assert!(before.iter().all(|&byte| byte == 9), "{what}: the disk has changed");
            // Back again: nothing returns.
            image.resize(old.max(new) + (5 << 20), Preallocation::Off).await.unwrap();
            let mut grown = vec![1; 5 << 20];
            image.read(old.max(new), &mut grown).await.unwrap();
            assert!(grown.iter().all(|&byte| byte == 0), "{what}: old bytes came back");
            image.close().await.unwrap();
        });
        assert_consistent(&disk, &what);
    }
}

/// A backing file longer than the disk has bytes where the overlay's VM state lies. They are not the VM state's.
#[test]
fn a_longer_backing_file_does_not_shine_through() {
    for (cluster_size, extended_l2) in [(512, false), (16 << 10, true)] {
        let options = CreateOptions {
            size: 10_000,
            cluster_size,
            extended_l2,
            backing_file: Some("base.raw".into()),
            backing_format: Some("raw".into()),
            ..CreateOptions::default()
        };
        let disk = new_disk(&options);
        let start = if extended_l2 { 16 << 20 } else { 32 << 10 };
        let options =
            OpenOptions { backing: Some(memory_node(&vec![3; start + (64 << 10)])), ..OpenOptions::default() };
        block_on(async {
            let image = Qcow2::open(disk.clone(), options).await.unwrap();
            assert_eq!(vm_state(&image, 0, 4096).await, [0; 4096]);
            image.write_vm_state(700, &[4; 100]).await.unwrap();
            let mut want = vec![0; 40_000];
            want[700..800].fill(4);
            assert_same(&vm_state(&image, 0, 40_000).await, &want, "zeroes around the write");
            let mut guest = vec![0; 10_000];
            image.read(0, &mut guest).await.unwrap();
            assert!(guest.iter().all(|&byte| byte == 3), "the disk still has its backing file");
            image.resize(start as u64 + 10_000, Preallocation::Off).await.unwrap();
            let mut grown = vec![1; 10_000];
            image.read(start as u64, &mut grown).await.unwrap();
            assert!(grown.iter().all(|&byte| byte == 0), "neither the VM state nor the backing file");
            image.close().await.unwrap();
        });
        assert_consistent(&disk, "backed");
    }
}

#[test]
fn an_external_data_file_holds_it_unless_the_file_is_the_disk() {
    for raw in [false, true] {
        let options = CreateOptions {
            size: 32_768,
            cluster_size: 512,
            data_file: Some("data.raw".into()),
            data_file_raw: raw,
            ..CreateOptions::default()
        };
        let (file, data) = (Rc::new(TestDisk::growing(0)), Rc::new(TestDisk::growing(0)));
        block_on(create(Rc::clone(&file), Some(Rc::clone(&data)), &options)).unwrap();
        let open = OpenOptions { data_file: Some(TestDisk::clone(&data)), ..OpenOptions::default() };
        block_on(async {
            let image = Image::open(TestDisk::clone(&file), open).await.unwrap();
            assert_eq!(vm_state(&image, 0, 512).await, [0; 512]);
            let written = image.write_vm_state(100, &[6; 50]).await;
            if raw {
                assert_eq!(written.unwrap_err().errno, Errno::NOTSUP);
                assert_eq!(data.info().size, 32_768, "the file is as long as the disk");
            } else {
                written.unwrap();
                assert_eq!(vm_state(&image, 100, 50).await, [6; 50]);
                assert_eq!(data.bytes(32_768 + 100, 50), [6; 50], "at its guest offset");
                assert_eq!(vm_state(&image, 0, 100).await, [0; 100]);
            }
            image.close().await.unwrap();
        });
        assert_consistent(&file, "external data");
    }
}

#[test]
fn what_can_not_be_is_refused() {
    let disk = new_disk(&CreateOptions { size: 1 << 20, cluster_size: 512, ..CreateOptions::default() });
    let image = open(&disk);
    block_on(async {
        let before = disk.position();
        // 4 Mi L1 entries of 32 KiB each are the longest table.
        for (at, read, write) in [
            (128u64 << 30, None, Errno::FBIG),
            (3000 << 30, None, Errno::FBIG),
            (1 << 62, None, Errno::FBIG),
            ((1 << 63) - (1 << 30), Some(Errno::IO), Errno::IO),
            (u64::MAX - 511, Some(Errno::IO), Errno::IO),
            (u64::MAX, Some(Errno::IO), Errno::IO),
        ] {
            assert_eq!(image.read_vm_state(at, &mut [1; 512]).await.err().map(|e| e.errno), read, "{at:#x}");
            assert_eq!(image.write_vm_state(at, &[1; 512]).await.unwrap_err().errno, write, "{at:#x}");
        }
        assert_eq!(image.read_vm_state(u64::MAX, &mut []).await.unwrap_err().errno, Errno::IO);
        assert_eq!(image.write_vm_state(u64::MAX, &[]).await.unwrap_err().errno, Errno::IO);
        image.write_vm_state(1 << 62, &[]).await.unwrap();
        let wrote = disk.log().entries()[before..].iter().any(|entry| disk.log().op(entry.op).kind == OpKind::Write);
        assert!(!wrote, "a refusal writes nothing");
        image.close().await.unwrap();
        let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
        let image = Image::open(disk.clone(), read_only).await.unwrap();
        assert_eq!(image.write_vm_state(0, &[1]).await.unwrap_err().errno, Errno::PERM);
        assert_eq!(image.write_vm_state(0, &[]).await.unwrap_err().errno, Errno::PERM);
        assert_eq!(vm_state(&image, 0, 512).await, [0; 512]);
        let memory = Node::new(Memory::new(1 << 20));
        assert_eq!(memory.read_vm_state(0, &mut [0]).await.unwrap_err().errno, Errno::NOTSUP);
        assert_eq!(memory.write_vm_state(0, &[]).await.unwrap_err().errno, Errno::NOTSUP);
    });
}

#[test]
fn its_steps_are_announced_by_their_names() {
    let disk = new_disk(&CreateOptions { size: 1 << 20, ..CreateOptions::default() });
    let image = Node::new(open(&disk));
    let heard = || {
        let wanted = [Event::VmstateSave, Event::VmstateLoad, Event::L1GrowActivateTable, Event::WriteAio];
        disk.log().events().map(|(_, event)| event).filter(|event| wanted.contains(event)).collect::<Vec<_>>()
    };
    block_on(async {
        image.write_vm_state(0, &[]).await.unwrap();
        image.read_vm_state(0, &mut []).await.unwrap();
        assert_eq!(heard(), []);
        image.write_vm_state(0, &[1]).await.unwrap();
        image.read_vm_state(0, &mut [1]).await.unwrap();
    });
    assert_eq!(heard(), [Event::VmstateSave, Event::L1GrowActivateTable, Event::WriteAio, Event::VmstateLoad]);
}

/// Blocks of VM state, each at its own place, flushed one by one while the disk changes too; at any cut all those that
/// were flushed are there, and so is the disk. The L1 table grows on the way.
#[test]
fn a_power_cut_keeps_what_was_flushed() {
    let (mut cuts, mut unflushed_lost) = (0, 0);
    for (cluster_size, lazy_refcounts, refcount_bits) in [(512, false, 16), (512, true, 1), (4096, false, 64)] {
        let options =
            CreateOptions { size: 40_000, cluster_size, lazy_refcounts, refcount_bits, ..CreateOptions::default() };
        let disk = new_disk(&options);
        let image = open(&disk);
        // Positions at which a block is flushed, by its place.
        let mut flushed = BTreeMap::new();
        let step = if cluster_size == 512 { 23_000 } else { 1_700_000 };
        block_on(async {
            for block in 0..8u64 {
                let at = block * step;
                image.write_vm_state(at, &stamp::bytes(at, 1700, 1)).await.unwrap();
                image.write(block * 5000, &stamp::bytes(block * 5000, 1500, 2), WriteFlags::empty()).await.unwrap();
                if block == 4 {
                    image.write_zeroes(0, 1500, ZeroFlags::MAY_UNMAP).await.unwrap();
                    image.write(0, &stamp::bytes(0, 1500, 2), WriteFlags::empty()).await.unwrap();
                }
                image.flush().await.unwrap();
                flushed.insert(block, disk.position());
            }
            image.close().await.unwrap();
        });
        assert_consistent(&disk, "closed");
        let log = disk.log();
        for point in interesting_points(&log) {
            for cut in crash_states(&log, &disk.initial(), point, 8, 3) {
                cuts += 1;
                let what = format!("{cluster_size} {lazy_refcounts}: power cut at {point}, {}", cut.how);
                let found = walker::walk(&all(&cut.image));
                assert!(found.dirty || found.damage.is_empty(), "{what}: {found:?}");
                let image = open(&TestDisk::growing_from_bytes(cut.image));
                for (&block, &position) in &flushed {
                    let got = block_on(vm_state(&image, block * step, 1700));
                    let mut guest = vec![0; 1500];
                    block_on(image.read(block * 5000, &mut guest)).unwrap();
                    let there = got == stamp::bytes(block * step, 1700, 1);
                    if position <= point {
                        assert!(there, "{what}: block {block} is lost");
                        let again = block == 0 && flushed[&3] <= point && point < flushed[&4];
                        assert!(again || guest == stamp::bytes(block * 5000, 1500, 2), "{what}: disk block {block}");
                    } else {
                        unflushed_lost += u64::from(!there);
                    }
                }
            }
        }
    }
    assert!(cuts > 100 && unflushed_lost > 100, "the set-up bites: {cuts} cuts, {unflushed_lost} blocks lost");
}

/// A resize cut off leaves the old disk or the new one, and never the VM state in its new space. What a resize keeps is
/// kept at every cut.
#[test]
fn a_power_cut_while_the_size_changes() {
    let (mut sizes_seen, mut kept) = ([0, 0], 0);
    for (cluster_size, old, new) in [
        (512, 40_000, 60_000),
        (512, 40_000, 100_000),
        (512, 100_000, 40_000),
        (512, 32_768, 5_000),
        (4096, 8192, 3 << 20),
    ] {
        let disk = new_disk(&CreateOptions { size: old, cluster_size, ..CreateOptions::default() });
        let image = open(&disk);
        let (guest, state) = (stamp::bytes(0, old as usize, 1), stamp::bytes(0, 90_000, 2));
        let begin = block_on(async {
            image.write(0, &guest, WriteFlags::empty()).await.unwrap();
            image.write_vm_state(0, &state).await.unwrap();
            image.flush().await.unwrap();
            let begin = disk.position();
            image.resize(new, Preallocation::Off).await.unwrap();
            image.flush().await.unwrap();
            begin
        });
        let covered = 1 << (2 * u64::from(cluster_size.trailing_zeros()) - 3);
        let keeps = old < new && old.div_ceil(covered) == new.div_ceil(covered);
        let log = disk.log();
        for point in interesting_points(&log).into_iter().filter(|&point| point >= begin) {
            for cut in crash_states(&log, &disk.initial(), point, 12, 4) {
                let what = format!("{cluster_size}: {old} to {new}: power cut at {point}, {}", cut.how);
                let found = walker::walk(&all(&cut.image));
                assert!(found.dirty || found.damage.is_empty(), "{what}: {found:?}");
                let image = open(&TestDisk::growing_from_bytes(cut.image));
                let size = image.info().size;
                assert!(size == old || size == new, "{what}: {size}");
                sizes_seen[usize::from(size == new)] += 1;
                block_on(async {
                    if keeps {
                        kept += 1;
                        assert_same(&vm_state(&image, 0, 90_000).await, &state, &what);
                    }
                    // As it is, and with what a later growth would uncover.
                    image.resize(size + 200_000, Preallocation::Off).await.unwrap();
                    let mut want = guest.clone();
                    want.resize(old.min(size) as usize, 0);
                    want.resize(size as usize + 200_000, 0);
                    let mut got = vec![1; want.len()];
                    image.read(0, &mut got).await.unwrap();
                    assert_same(&got, &want, &what);
                });
            }
        }
    }
    assert!(sizes_seen.iter().all(|&n| n > 20) && kept > 5, "the set-up bites: {sizes_seen:?}, {kept}");
}

/// I/O 1, 2, 3, … fails, once each; the write is sent again, and image and content are as if nothing had happened.
#[test]
fn a_failed_write_can_be_sent_again() {
    let mut failures = 0;
    for nth in 1.. {
        let disk = new_disk(&CreateOptions { size: 40_000, cluster_size: 512, ..CreateOptions::default() });
        let image = open(&disk);
        let what = format!("failure of request {nth}");
        let old = stamp::bytes(0, 30_000, 1);
        let new = stamp::bytes(20_000, 60_000, 2);
        let failed = block_on(async {
            image.write_vm_state(0, &old).await.unwrap();
            image.flush().await.unwrap();
            disk.fail_nth(nth, IoError::new(Errno::IO));
            let mut failed = image.write_vm_state(20_000, &new).await.is_err();
            failed |= image.flush().await.is_err();
            disk.clear_rules();
            image.write_vm_state(20_000, &new).await.unwrap();
            image.flush().await.unwrap();
            assert_same(&vm_state(&image, 0, 20_000).await, &old[..20_000], &what);
            assert_same(&vm_state(&image, 20_000, 60_000).await, &new, &what);
            image.close().await.unwrap();
            let image = open(&disk);
            assert_same(&vm_state(&image, 20_000, 60_000).await, &new, &what);
            failed
        });
        assert_consistent(&disk, &what);
        if !failed {
            break;
        }
        failures += 1;
    }
    assert!(failures > 10, "the set-up bites: {failures} failures");
}

/// The write is dropped while request 1, 2, 3, … of it waits; what it left behind lands when it likes.
#[test]
fn a_dropped_write_leaves_everything_else_as_it_was() {
    let mut drops = 0;
    for nth in 1.. {
        let what = format!("dropped at request {nth}");
        let disk = new_disk(&CreateOptions { size: 40_000, cluster_size: 512, ..CreateOptions::default() });
        let image = Rc::new(open(&disk));
        let old = stamp::bytes(0, 30_000, 1);
        block_on(async {
            image.write_vm_state(0, &old).await.unwrap();
            image.write(0, &old, WriteFlags::empty()).await.unwrap();
            image.flush().await.unwrap();
        });
        let mut executor = Executor::new();
        disk.add_rule(Rule::new(Action::HoldBefore).nth(nth));
        let same = Rc::clone(&image);
        let task = executor.spawn(async move {
            same.write_vm_state(20_100, &stamp::bytes(20_100, 60_000, 2)).await.unwrap();
        });
        executor.run_until_stalled();
        if task.is_done() {
            break;
        }
        drops += 1;
        executor.cancel(task.id());
        disk.clear_rules();
        if nth % 2 == 0 {
            disk.orphans().iter().for_each(|op| disk.land(op.id));
        }
        block_on(async {
            // Beside the dropped write at once, in its own range when it can not land there any more.
            image.write_vm_state(80_100, &[8; 3000]).await.unwrap();
            image.flush().await.unwrap();
            image.drain().await.unwrap();
            image.write_vm_state(25_000, &[7; 3000]).await.unwrap();
            image.flush().await.unwrap();
            assert_same(&vm_state(&image, 80_100, 3000).await, &[8; 3000], &what);
            assert_same(&vm_state(&image, 0, 20_100).await, &old[..20_100], &what);
            assert_same(&vm_state(&image, 25_000, 3000).await, &[7; 3000], &what);
            let mut guest = vec![0; 30_000];
            image.read(0, &mut guest).await.unwrap();
            assert_same(&guest, &old, &what);
            image.close().await.unwrap();
        });
        assert_consistent(&disk, &what);
    }
    assert!(drops > 10, "the set-up bites: {drops} drops");
}

/// A write that waits behind a resize is a write to the VM state as it is then, never to the disk that grew over its
/// place.
#[test]
fn a_write_that_waited_for_a_resize_meets_the_moved_vm_state() {
    let disk = new_disk(&CreateOptions { size: 32_768, cluster_size: 512, ..CreateOptions::default() });
    let image = Rc::new(open(&disk));
    block_on(image.write_vm_state(0, &[1; 512])).unwrap();
    let mut executor = Executor::new();
    disk.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Flush).nth(1));
    let same = Rc::clone(&image);
    let resized = executor.spawn(async move { same.resize(40_000, Preallocation::Off).await.unwrap() });
    executor.run_until_stalled();
    assert!(!resized.is_done());
    let same = Rc::clone(&image);
    let written = executor.spawn(async move { same.write_vm_state(1024, &[2; 512]).await.unwrap() });
    let same = Rc::clone(&image);
    let read = executor.spawn(async move { vm_state(&same, 0, 512).await });
    executor.run_until_stalled();
    assert!(!written.is_done() && !read.is_done(), "both wait for the resize");
    disk.release_all();
    executor.run_until_stalled();
    assert!(resized.is_done() && written.is_done());
    assert_eq!(read.take().unwrap(), [0; 512]);
    block_on(async {
        assert_eq!(vm_state(&image, 1024, 512).await, [2; 512]);
        let mut grown = vec![1; 40_000 - 32_768];
        image.read(32_768, &mut grown).await.unwrap();
        assert!(grown.iter().all(|&byte| byte == 0), "the disk has no VM state in it");
        image.close().await.unwrap();
    });
    assert_consistent(&disk, "after the resize");
}

/// Each snapshot has the VM state behind a disk of its own size; none of them moves with the next resize.
#[test]
fn snapshots_keep_their_vm_state_when_the_disk_grows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    let name = path.to_str().unwrap();
    ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", name, "32k"]);
    let grow = |size: u64, byte: u8| {
        let file = load(&path);
        block_on(async {
            let image = Qcow2::open(Rc::clone(&file), OpenOptions::default()).await.unwrap();
            image.resize(size, Preallocation::Off).await.unwrap();
            image.write_vm_state(0, &[byte; 2000]).await.unwrap();
            image.close().await.unwrap();
            store(&file, &path).await;
        });
        assert_clean(&path, "grown");
    };
    grow(32 << 10, 1);
    ok("qemu-img", &["snapshot", "-c", "one", name]);
    grow(90 << 10, 2);
    ok("qemu-img", &["snapshot", "-c", "two", name]);
    grow(200 << 10, 3);
    for (snapshot, byte) in [("one", 1), ("two", 2)] {
        let (status, text) = run("qemu-img", &["snapshot", "-a", snapshot, name]);
        assert_eq!(status, 0, "{snapshot}: {text}");
        assert_eq!(qemu_vm_state(&path, 0, 1536), vec![byte; 1536], "{snapshot}");
        // Leaks at worst: to go back to a smaller disk QEMU shrinks this one, and forgets the clusters of its VM state.
        let (status, text) = run("qemu-img", &["check", "-f", "qcow2", name]);
        assert!(matches!(status, 0 | 3), "{snapshot}: {text}");
        let image = block_on(Qcow2::open(load(&path), OpenOptions::default())).unwrap();
        assert_eq!(block_on(vm_state(&image, 0, 2000)), vec![byte; 2000], "{snapshot}, by us");
    }
}
