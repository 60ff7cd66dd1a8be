//! Power cuts where they hurt most: while refcounts are rebuilt after an earlier power cut, while an image is closed,
//! while it changes its size, and between an external data file and the map that exposes it.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod qcow2_support;
#[path = "qcow2_support/walker.rs"]
mod walker;

use std::rc::Rc;

use blkproof_block::nodes::memory::SparseBytes;
use blkproof_block::testing::{
    Choices, Executor, OpKind, TestDisk, block_on, crash_states, hash, interesting_points, stamp,
};
use blkproof_block::{BlockDevice, Event, Preallocation, WriteFlags, ZeroFlags};
use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};
use qcow2_support::memory_node;

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

fn content(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.info().size as usize];
    block_on(image.read(0, &mut bytes)).unwrap();
    bytes
}

fn open(disk: &TestDisk, backing: Option<u64>) -> Image {
    let backing = backing.map(|len| memory_node(&stamp::bytes(0, len as usize, 99)));
    // The smallest caches: tables are written back in the middle of everything.
    let options = OpenOptions { backing, l2_cache_size: 0, refcount_cache_size: 0, ..OpenOptions::default() };
    block_on(Image::open(disk.clone(), options)).unwrap_or_else(|error| panic!("does not open: {error}"))
}

/// Writes, zeroes and discards all over the disk, unflushed.
async fn scribble(image: &Image, choices: &mut Choices, requests: u64) {
    let size = image.info().size;
    for op in 0..requests {
        let at = choices.below(size);
        let len = (1 + choices.below(9000)).min(size - at);
        match choices.below(6) {
            0 => image.write_zeroes(at, len, ZeroFlags::MAY_UNMAP).await.unwrap(),
            1 => image.discard(at, len).await.unwrap(),
            _ => image.write(at, &stamp::bytes(at, len as usize, op), WriteFlags::empty()).await.unwrap(),
        }
    }
}

/// States of the disk at up to `points` positions from `from` on.
fn states(
    disk: &TestDisk,
    from: usize,
    points: usize,
    budget: usize,
    seed: u64,
    mut each: impl FnMut(SparseBytes, &str),
) {
    let log = disk.log();
    let positions: Vec<usize> = interesting_points(&log).into_iter().filter(|&at| at >= from).collect();
    let count = points.min(positions.len());
    for index in 0..count {
        let at = positions[(index + 1) * positions.len() / count - 1];
        for state in crash_states(&log, &disk.initial(), at, budget, seed) {
            each(state.image, &format!("power cut at {at}, {}", state.how));
        }
    }
}

/// Flushed content survives a power cut, a recovery that loses power too, and the recovery of that.
#[test]
fn a_power_cut_while_refcounts_are_rebuilt() {
    let (mut dirty, mut second) = (0, 0);
    for seed in 0..6u64 {
        let (cluster_size, refcount_bits) = [(512, 16), (512, 1), (4096, 64)][seed as usize % 3];
        let options = CreateOptions {
            size: 400_384,
            cluster_size,
            refcount_bits,
            lazy_refcounts: true,
            ..CreateOptions::default()
        };
        let disk = new_disk(&options);
        let image = open(&disk, None);
        let mut choices = Choices::new(hash(0xdead, seed));
        block_on(async {
            scribble(&image, &mut choices, 40).await;
            image.flush().await.unwrap();
        });
        let want = content(&image);
        let flushed = disk.position();
        // Nothing a client could see: content that is written again, as it was.
        block_on(async {
            image.write(0, &want[..100_000], WriteFlags::empty()).await.unwrap();
            image.close().await.unwrap();
        });
        states(&disk, flushed, 3, 3, seed, |bytes, first| {
            let found = walker::walk(&all(&bytes));
            assert!(found.dirty || found.damage.is_empty(), "{seed}: {first}: {found:?}");
            dirty += u64::from(found.dirty);
            let disk = TestDisk::growing_from_bytes(bytes);
            let image = open(&disk, None);
            // Allocates at once: in what the rebuilt counts call free.
            block_on(image.write(200_000, &want[200_000..300_000], WriteFlags::empty())).unwrap();
            block_on(image.flush()).unwrap();
            states(&disk, 0, 6, 4, seed, |bytes, then| {
                second += 1;
                let what = format!("{seed}: {first}; then {then}");
                let found = walker::walk(&all(&bytes));
                assert!(found.dirty || found.damage.is_empty(), "{what}: {found:?}");
                let disk = TestDisk::growing_from_bytes(bytes);
                let image = open(&disk, None);
                assert!(content(&image) == want, "{what}: flushed content is lost");
                block_on(image.close()).unwrap();
                let found = walker::walk(&all(&disk.image()));
                assert!(found.damage.is_empty() && !found.dirty, "{what}: after close: {found:?}");
            });
        });
    }
    assert!(dirty > 10 && second > 100, "the set-up bites: {dirty} dirty images, {second} second power cuts");
}

/// Closing writes back what is left and forgets what was freed; nothing of it may cost a byte.
#[test]
fn a_power_cut_while_an_image_is_closed() {
    for seed in 0..12u64 {
        let (cluster_size, extended_l2) = [(512, false), (4096, false), (16384, true)][seed as usize % 3];
        let backing = (seed % 4 == 1).then_some(150_001);
        let options = CreateOptions {
            size: 300_032,
            cluster_size,
            extended_l2,
            lazy_refcounts: seed % 2 == 0,
            backing_file: backing.map(|_| "base.raw".into()),
            backing_format: backing.map(|_| "raw".into()),
            ..CreateOptions::default()
        };
        let disk = new_disk(&options);
        let image = open(&disk, backing);
        let mut choices = Choices::new(hash(0xc105e, seed));
        block_on(async {
            scribble(&image, &mut choices, 30).await;
            image.flush().await.unwrap();
            // Pointers that go away, and nothing the guest would notice: zeroes over what is zero, data over data.
            image.write_zeroes(100_000, 100_000, ZeroFlags::MAY_UNMAP).await.unwrap();
            image.flush().await.unwrap();
        });
        let want = content(&image);
        block_on(async {
            image.write_zeroes(100_000, 100_000, ZeroFlags::MAY_UNMAP).await.unwrap();
            image.write(0, &want[..50_000], WriteFlags::empty()).await.unwrap();
        });
        let begin = disk.position();
        block_on(image.close()).unwrap();
        states(&disk, begin, 8, 6, seed, |bytes, cut| {
            let found = walker::walk(&all(&bytes));
            assert!(found.dirty || found.damage.is_empty(), "{seed}: {cut}: {found:?}");
            assert!(content(&open(&TestDisk::growing_from_bytes(bytes), backing)) == want, "{seed}: {cut}");
        });
    }
}

/// A disk that loses power while it changes its size has the old content or the new one, with nothing in between.
#[test]
fn a_power_cut_while_the_size_changes() {
    let mut sizes_seen = [0, 0];
    for seed in 0..12u64 {
        let (cluster_size, refcount_bits, extended_l2, version) =
            [(512, 16, false, 2), (512, 64, false, 3), (4096, 16, false, 3), (16384, 16, true, 3)][seed as usize % 4];
        let backing = (seed % 3 == 1).then_some(1_000_001);
        let options = CreateOptions {
            size: 100_352,
            version,
            cluster_size,
            refcount_bits,
            extended_l2,
            lazy_refcounts: version == 3 && seed % 5 == 0,
            backing_file: backing.map(|_| "base.raw".into()),
            backing_format: backing.map(|_| "raw".into()),
            ..CreateOptions::default()
        };
        let disk = new_disk(&options);
        let image = open(&disk, backing);
        let mut choices = Choices::new(hash(0x512e, seed));
        for _ in 0..6 {
            block_on(scribble(&image, &mut choices, 12));
            block_on(image.flush()).unwrap();
            let old = content(&image);
            let begin = disk.position();
            let size = (1 + choices.below(1400)) * 512 + choices.below(2) * choices.below(512);
            block_on(image.resize(size, Preallocation::Off)).unwrap();
            let new = content(&image);
            let mut want = old.clone();
            want.resize(size as usize, 0);
            assert!(new == want, "{seed}: {} to {size}: the new space is not zero", old.len());
            block_on(image.flush()).unwrap();
            states(&disk, begin, 5, 4, seed, |bytes, cut| {
                let what = format!("{seed}: {} to {size}: {cut}", old.len());
                let found = walker::walk(&all(&bytes));
                assert!(found.dirty || found.damage.is_empty(), "{what}: {found:?}");
                let disk = TestDisk::growing_from_bytes(bytes);
                let image = open(&disk, backing);
                let now = content(&image);
                assert!(now == old || now == new, "{what}: neither the old disk nor the new one");
                sizes_seen[usize::from(now.len() == new.len())] += 1;
                // Whatever the cut left behind the end does not come back.
                let longer = now.len() as u64 + 200_000;
                block_on(image.resize(longer, Preallocation::Off)).unwrap();
                let grown = content(&image);
                assert!(grown[..now.len()] == now[..], "{what}: growing changed what was there");
                assert!(grown[now.len()..].iter().all(|&byte| byte == 0), "{what}: old bytes came back");
            });
        }
    }
    assert!(sizes_seen.iter().all(|&n| n > 50), "the set-up bites: {sizes_seen:?}");
}

/// The data file has its own cache: a flush of the image says nothing about it.
#[test]
fn external_data_is_durable_before_the_map_names_it() {
    let options = CreateOptions { size: 1 << 20, data_file: Some("data.raw".into()), ..CreateOptions::default() };
    let (file, data) = (Rc::new(TestDisk::growing(0)), Rc::new(TestDisk::growing(0)));
    block_on(create(Rc::clone(&file), Some(Rc::clone(&data)), &options)).unwrap();
    let open = OpenOptions { data_file: Some(TestDisk::clone(&data)), ..OpenOptions::default() };
    let image = Rc::new(block_on(Image::open(TestDisk::clone(&file), open)).unwrap());
    let mut executor = Executor::new();
    for fua in [false, true] {
        let at = if fua { 65_536 } else { 0 };
        let updates = || file.log().events().filter(|(_, event)| *event == Event::L2Update).count();
        let before = updates();
        data.hold_kind(OpKind::Flush);
        let image = Rc::clone(&image);
        let task = executor.spawn(async move {
            let flags = if fua { WriteFlags::FUA } else { WriteFlags::empty() };
            image.write(at, &[3; 4096], flags).await.unwrap();
            image.flush().await.unwrap();
        });
        executor.run_until_stalled();
        assert_eq!(data.parked().len(), 1, "fua {fua}: the data file is being flushed");
        assert_eq!(updates(), before, "fua {fua}: the map was written before the data was durable");
        data.clear_rules();
        data.release_all();
        executor.run_until_stalled();
        assert!(task.is_done());
        assert!(updates() > before, "fua {fua}");
    }
}
