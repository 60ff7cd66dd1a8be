//! Many requests in flight on a disk that fails, drops and loses power: the map stays right, nothing flushed is lost,
//! and nothing leaks after a clean close.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod qcow2_support;
#[path = "qcow2_support/walker.rs"]
mod walker;

use std::cell::RefCell;
use std::rc::Rc;

use blkproof_block::nodes::memory::SparseBytes;
use blkproof_block::testing::{
    Action, ChangeId, Choices, Executor, JoinHandle, Model, TestDisk, block_on, crash_states, hash, interesting_points,
    stamp,
};
use blkproof_block::{BlockDevice, Errno, IoError, Preallocation, WriteFlags, ZeroFlags};
use blkproof_formats::qcow2::{CreateOptions, OpenOptions, Qcow2, create};
use qcow2_support::{assert_clean, memory_node};
use walker::walk;

type Image = Qcow2<TestDisk>;

/// The change that a request made known to the model, once it did.
type Known = Rc<RefCell<Option<ChangeId>>>;

/// What one run is like; everything follows from the seed.
#[derive(Clone, Debug)]
struct Setup {
    seed: u64,
    create: CreateOptions,
    /// Length of the backing file.
    backing: Option<usize>,
    l2_cache_size: u64,
    faults: bool,
    cancels: bool,
    operations: u64,
}

const SIZE: u64 = 300_032;

/// The writer of the backing file.
const BASE: u64 = 0xbacc;

fn setup(seed: u64) -> Setup {
    let mut choices = Choices::new(hash(0x71c0_0002, seed));
    let (cluster_size, refcount_bits, extended_l2, version) = [
        (512, 16, false, 3),
        (512, 64, false, 3),
        (1024, 1, false, 3),
        (4096, 16, false, 2),
        (4096, 8, false, 3),
        (16384, 16, true, 3),
        (16384, 2, true, 3),
        (65536, 16, false, 3),
    ][choices.index(8)];
    let backing = choices.chance(500).then(|| [100_000, 200_704, 400_000][choices.index(3)]);
    Setup {
        seed,
        create: CreateOptions {
            size: SIZE,
            cluster_size,
            version,
            refcount_bits,
            extended_l2,
            lazy_refcounts: version == 3 && choices.chance(200),
            backing_file: backing.as_ref().map(|_| "base.raw".into()),
            backing_format: backing.as_ref().map(|_| "raw".into()),
            preallocation: if backing.is_none() && choices.chance(150) {
                Preallocation::Metadata
            } else {
                Preallocation::Off
            },
            ..CreateOptions::default()
        },
        backing,
        l2_cache_size: if choices.chance(500) { 0 } else { 1 << 20 },
        faults: choices.chance(400),
        cancels: choices.chance(600),
        operations: 60 + choices.below(60),
    }
}

fn options(setup: &Setup) -> OpenOptions<TestDisk> {
    OpenOptions {
        backing: setup.backing.map(|len| memory_node(&stamp::bytes(0, len, BASE))),
        l2_cache_size: setup.l2_cache_size,
        refcount_cache_size: setup.l2_cache_size,
        pass_discard_other: setup.seed.is_multiple_of(2),
        ..OpenOptions::default()
    }
}

fn initial_content(setup: &Setup) -> SparseBytes {
    let mut content = SparseBytes::new(SIZE);
    if let Some(len) = setup.backing {
        content.write(0, &stamp::bytes(0, len, BASE));
        content.set_size(SIZE);
    }
    content
}

fn all(bytes: &SparseBytes) -> Vec<u8> {
    let mut buf = vec![0; bytes.size() as usize];
    bytes.read(0, &mut buf);
    buf
}

/// A run that is over: the log of its disk and what its client was promised.
struct Run {
    setup: Setup,
    disk: TestDisk,
    model: Rc<RefCell<Model>>,
}

/// A request of the client, as one task.
async fn request(image: Rc<Image>, model: Rc<RefCell<Model>>, op: u64, mut choices: Choices, id: Known) {
    let hot = [0, 65_000, 131_072, 262_144][choices.index(4)];
    let at = if choices.chance(600) { hot + choices.below(9_000) } else { choices.below(SIZE) };
    let at = if choices.chance(400) { at / 512 * 512 } else { at }.min(SIZE - 1);
    let max = if choices.chance(150) { 70_000 } else { 5_000 };
    let len = 1 + choices.below(max.min(SIZE - at));
    let fua = choices.chance(100);
    match choices.below(100) {
        0..45 => {
            let data = stamp::bytes(at, len as usize, op);
            let change = model.borrow_mut().submit_write(at, &data, fua);
            *id.borrow_mut() = Some(change);
            let flags = if fua { WriteFlags::FUA } else { WriteFlags::empty() };
            let result = image.write(at, &data, flags).await;
            end(&model, change, &result);
        }
        45..58 => {
            let change = model.borrow_mut().submit_zeroes(at, len, fua);
            *id.borrow_mut() = Some(change);
            let mut flags = if fua { ZeroFlags::FUA } else { ZeroFlags::empty() };
            flags.set(ZeroFlags::MAY_UNMAP, choices.chance(500));
            let result = image.write_zeroes(at, len, flags).await;
            end(&model, change, &result);
        }
        58..68 => {
            let change = model.borrow_mut().submit_discard(at, len);
            *id.borrow_mut() = Some(change);
            let result = image.discard(at, len).await;
            end(&model, change, &result);
        }
        68..80 => {
            let flush = model.borrow_mut().submit_flush();
            if image.flush().await.is_ok() {
                model.borrow_mut().complete_flush(flush);
            }
        }
        80..83 => {
            let started = model.borrow_mut().now();
            if image.drain().await.is_ok() {
                model.borrow_mut().drained(started);
            }
        }
        83..88 => {
            if let Ok(status) = image.block_status(at, len).await {
                assert!(status.len > 0 && status.len <= len);
            }
        }
        _ => {
            let started = model.borrow_mut().now();
            let mut buf = vec![0xee; len as usize];
            if image.read(at, &mut buf).await.is_ok() {
                let verdict = model.borrow_mut().check_read(at, &buf, started);
                verdict.unwrap_or_else(|wrong| panic!("op {op}: read {at:#x}+{len:#x}: {wrong}"));
            }
        }
    }
}

fn end(model: &RefCell<Model>, change: ChangeId, result: &blkproof_block::Result<()>) {
    match result {
        Ok(()) => model.borrow_mut().complete(change),
        Err(error) => {
            assert!(error.injected_by.is_some(), "an error nobody injected: {error}");
            model.borrow_mut().fail(change);
        }
    }
}

fn torture(setup: Setup) -> Run {
    let fresh = Rc::new(TestDisk::growing(0));
    block_on(create(Rc::clone(&fresh), None, &setup.create)).unwrap();
    let disk = TestDisk::growing_from_bytes(fresh.image());
    let image = Rc::new(block_on(Image::open(disk.clone(), options(&setup))).unwrap());
    let model = Rc::new(RefCell::new(Model::new(initial_content(&setup)).with_disk(&disk)));
    let mut executor = Executor::new();
    executor.attach(&disk);
    if setup.faults {
        let mut faults = Choices::new(hash(setup.seed, 77));
        disk.script(move |op| {
            if !faults.chance(25) {
                return Action::Pass;
            }
            let error = IoError::new(if faults.chance(500) { Errno::NOSPC } else { Errno::IO });
            match faults.below(3) {
                0 => Action::FailBefore(error),
                1 => {
                    // A sector is atomic: the cut falls between two.
                    let cut = (op.range.start + faults.below(op.range.len() + 1)) / 512 * 512;
                    Action::PartThenFail { bytes: cut.saturating_sub(op.range.start), error }
                }
                _ => Action::DoThenFail(error),
            }
        });
    }
    let mut choices = Choices::new(hash(setup.seed, 1));
    let mut running: Vec<(JoinHandle<()>, Known)> = Vec::new();
    let mut sent = 0;
    let mut steps = 0u64;
    while sent < setup.operations || !running.is_empty() {
        steps += 1;
        assert!(steps < 4_000_000, "{setup:?}: no end");
        running.retain(|(task, _)| !task.is_done() && executor.is_running(task.id()));
        if sent < setup.operations && running.len() < 8 && choices.chance(60) {
            sent += 1;
            let id = Rc::new(RefCell::new(None));
            let op = request(Rc::clone(&image), Rc::clone(&model), sent, choices.stream(sent), Rc::clone(&id));
            running.push((executor.spawn_named(format!("op {sent}"), op), id));
        }
        if setup.cancels && !running.is_empty() && choices.chance(4) {
            let (task, id) = running.swap_remove(choices.index(running.len()));
            if !task.is_done() {
                executor.cancel(task.id());
                if let Some(change) = *id.borrow() {
                    model.borrow_mut().drop_request(change);
                }
            }
        }
        if !executor.step(&mut choices) && !running.is_empty() && sent >= setup.operations {
            running.retain(|(task, _)| !task.is_done() && executor.is_running(task.id()));
            assert!(running.is_empty(), "{setup:?}: {:?}", executor.deadlock());
        }
    }
    // Quiet end: no more faults, everything is drained, checked, closed.
    disk.clear_rules();
    disk.set_scheduled(false);
    block_on(async {
        let started = model.borrow_mut().now();
        image.drain().await.unwrap();
        model.borrow_mut().drained(started);
        check_content(&image, &mut model.borrow_mut(), &format!("{setup:?}: at the end"));
        let flush = model.borrow_mut().submit_flush();
        image.flush().await.unwrap_or_else(|e| panic!("{setup:?}: flush: {e}"));
        model.borrow_mut().complete_flush(flush);
        image.close().await.unwrap_or_else(|e| panic!("{setup:?}: close: {e}"));
    });
    let found = walk(&all(&disk.image()));
    assert!(found.damage.is_empty() && found.leaks.is_empty() && !found.dirty, "{setup:?}: after close: {found:?}");
    // A second life sees the same.
    let again = TestDisk::growing_from_bytes(disk.image());
    let image = block_on(Image::open(again, options(&setup))).unwrap();
    check_content(&image, &mut model.borrow_mut(), &format!("{setup:?}: reopened"));
    Run { setup, disk, model }
}

fn check_content(image: &Image, model: &mut Model, what: &str) {
    let mut buf = vec![0xee; SIZE as usize];
    block_on(image.read(0, &mut buf)).unwrap_or_else(|e| panic!("{what}: {e}"));
    model.check_now(0, &buf).unwrap_or_else(|wrong| panic!("{what}: {wrong}"));
    let mut at = 0;
    while at < SIZE {
        let status = block_on(image.block_status(at, SIZE - at)).unwrap();
        let range = at as usize..(at + status.len) as usize;
        assert!(!status.zero || buf[range].iter().all(|&b| b == 0), "{what}: {status:?} at {at:#x} is not zero");
        at += status.len;
    }
}

/// Every state of every point: it opens, has at worst leaks, and holds what was promised; and the next life is clean.
fn crash(run: &Run, points_max: usize, budget: usize) -> usize {
    let log = run.disk.log();
    let initial = run.disk.initial();
    let model = run.model.borrow();
    let mut points = interesting_points(&log);
    points.extend(model.interesting_points());
    points.sort_unstable();
    points.dedup();
    let mut choices = Choices::new(hash(run.setup.seed, 3));
    while points.len() > points_max {
        points.swap_remove(choices.index(points.len()));
    }
    let mut states = 0;
    for point in points {
        let after = model.after_crash(point);
        for state in crash_states(&log, &initial, point, budget, run.setup.seed) {
            states += 1;
            let what = format!("{:?}: power cut at {point}, {}", run.setup, state.how);
            let found = walk(&all(&state.image));
            assert!(found.damage.is_empty() || found.dirty, "{what}: {found:?}");
            let disk = TestDisk::growing_from_bytes(state.image);
            let image = block_on(Image::open(disk.clone(), options(&run.setup)));
            let image = image.unwrap_or_else(|e| panic!("{what}: does not open: {e}"));
            let mut buf = vec![0xee; SIZE as usize];
            block_on(image.read(0, &mut buf)).unwrap_or_else(|e| panic!("{what}: {e}"));
            after.check(0, &buf).unwrap_or_else(|wrong| panic!("{what}: {wrong}"));
            if states % 4 == 0 {
                // Still writable, and sound after that.
                let data = stamp::bytes(1000, 90_000, 0xffff);
                block_on(image.write(1000, &data, WriteFlags::empty())).unwrap();
                buf[1000..91_000].copy_from_slice(&data);
                block_on(image.close()).unwrap();
                let found = walk(&all(&disk.image()));
                assert!(found.damage.is_empty() && !found.dirty, "{what}: after writing on: {found:?}");
                let image = block_on(Image::open(disk.clone(), options(&run.setup))).unwrap();
                let mut now = vec![0; SIZE as usize];
                block_on(image.read(0, &mut now)).unwrap();
                assert!(now == buf, "{what}: content changed by writing on");
            }
        }
    }
    states
}

#[test]
fn concurrent_requests_with_faults_and_cancels() {
    for seed in 0..48 {
        torture(setup(seed));
    }
}

#[test]
fn power_cuts_lose_nothing_that_was_flushed() {
    let mut states = 0;
    for seed in 1000..1016 {
        states += crash(&torture(setup(seed)), 8, 6);
    }
    assert!(states > 300, "only {states} states: the workload does not bite");
}

#[test]
fn qemu_agrees_with_a_sample() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 2000..2008 {
        let run = torture(setup(seed));
        let path = dir.path().join("image.qcow2");
        std::fs::write(dir.path().join("base.raw"), stamp::bytes(0, run.setup.backing.unwrap_or(512), BASE)).unwrap();
        std::fs::write(&path, all(&run.disk.image())).unwrap();
        assert_clean(&path, &format!("{:?}", run.setup));
    }
}

/// The n-th request to the disk fails, for every n, once and for good; then the image is sound and closes clean.
#[test]
fn whichever_request_fails_the_image_stays_sound() {
    for (cluster_size, persistent) in [(512, false), (512, true), (65536, false), (65536, true)] {
        let setup = Setup {
            seed: 0,
            create: CreateOptions { size: SIZE, cluster_size, ..CreateOptions::default() },
            backing: None,
            l2_cache_size: 0,
            faults: true,
            cancels: false,
            operations: 0,
        };
        let fresh = Rc::new(TestDisk::growing(0));
        block_on(create(Rc::clone(&fresh), None, &setup.create)).unwrap();
        let mut n = 0;
        loop {
            n += 1;
            let disk = TestDisk::growing_from_bytes(fresh.image());
            let image = block_on(Image::open(disk.clone(), options(&setup))).unwrap();
            let error = IoError::new(Errno::IO);
            if persistent {
                disk.fail_from(n, error)
            } else {
                disk.fail_nth(n, error)
            }
            let mut model = Model::new(initial_content(&setup));
            block_on(async {
                for (op, at, len) in [(1, 1000, 40_000), (2, 200_000, 3000), (3, 20_000, 90_000), (4, 0, 512)] {
                    let data = stamp::bytes(at, len, op);
                    let change = model.submit_write(at, &data, false);
                    match image.write(at, &data, WriteFlags::empty()).await {
                        Ok(()) => model.complete(change),
                        Err(_) => model.fail(change),
                    }
                    if op % 2 == 0 {
                        let _ = image.flush().await;
                        let change = model.submit_discard(at, 30_000);
                        match image.discard(at, 30_000).await {
                            Ok(()) => model.complete(change),
                            Err(_) => model.fail(change),
                        }
                    }
                }
                let size = 400_384;
                let _ = image.resize(size, Preallocation::Off).await;
                let _ = image.resize(SIZE, Preallocation::Off).await;
                let _ = image.flush().await;
            });
            let faults = disk.faults();
            disk.clear_rules();
            let what = format!("clusters of {cluster_size}, request {n}, persistent: {persistent}");
            assert!(image.info().size == SIZE || image.info().size == 400_384, "{what}");
            let mut buf = vec![0; SIZE as usize];
            block_on(image.read(0, &mut buf)).unwrap_or_else(|e| panic!("{what}: {e}"));
            model.check_now(0, &buf).unwrap_or_else(|wrong| panic!("{what}: {wrong}"));
            block_on(image.close()).unwrap_or_else(|e| panic!("{what}: close: {e}"));
            let found = walk(&all(&disk.image()));
            assert!(found.damage.is_empty() && found.leaks.is_empty(), "{what}: {found:?}");
            let image = block_on(Image::open(disk, options(&setup))).unwrap();
            block_on(image.read(0, &mut buf)).unwrap();
            model.check_now(0, &buf).unwrap_or_else(|wrong| panic!("{what}: reopened: {wrong}"));
            if faults == 0 {
                break;
            }
        }
        assert!(n > 20, "only {n} requests: the workload does not bite");
    }
}

/// A power cut at any point of growing, shrinking and replacing tables, in an image with tiny clusters.
#[test]
fn power_cuts_while_tables_grow() {
    let create_options =
        CreateOptions { size: 20_480, cluster_size: 512, refcount_bits: 64, ..CreateOptions::default() };
    let setup = Setup {
        seed: 5,
        create: create_options,
        backing: None,
        l2_cache_size: 0,
        faults: false,
        cancels: false,
        operations: 0,
    };
    let fresh = Rc::new(TestDisk::growing(0));
    block_on(create(Rc::clone(&fresh), None, &setup.create)).unwrap();
    let disk = TestDisk::growing_from_bytes(fresh.image());
    let image = block_on(Image::open(disk.clone(), options(&setup))).unwrap();
    // What is flushed at each position: sizes that are allowed, and bytes that must be there.
    let mut promises: Vec<(usize, Vec<u64>, u64)> = vec![(0, vec![20_480], 0)];
    block_on(async {
        // The refcount table (64 blocks of 64 clusters) is too small for 2 MiB of file, the L1 table for every growth.
        for size in [100_352u64, 1_500_160, 2_600_448, 2_400_256] {
            let (_, sizes, written) = promises.last().unwrap().clone();
            promises.push((disk.position(), vec![sizes[0], size], written.min(size)));
            image.resize(size, Preallocation::Off).await.unwrap();
            promises.push((disk.position(), vec![size], written.min(size)));
            let at = written.min(size);
            image.write(at, &stamp::bytes(at, (size - at) as usize, 1), WriteFlags::empty()).await.unwrap();
            image.flush().await.unwrap();
            promises.push((disk.position(), vec![size], size));
        }
    });
    let log = disk.log();
    let mut points = interesting_points(&log);
    let step = points.len().div_ceil(60);
    points = points.into_iter().rev().step_by(step).collect();
    for point in points {
        let (_, sizes, written) = promises.iter().rev().find(|(at, ..)| *at <= point).unwrap();
        for state in crash_states(&log, &disk.initial(), point, 5, 9) {
            let what = format!("power cut at {point}, {}", state.how);
            let found = walk(&all(&state.image));
            assert!(found.damage.is_empty(), "{what}: {found:?}");
            let next = TestDisk::growing_from_bytes(state.image);
            let image = block_on(Image::open(next, options(&setup))).unwrap_or_else(|e| panic!("{what}: {e}"));
            let size = image.info().size;
            assert!(sizes.contains(&size), "{what}: size {size}, not one of {sizes:?}");
            let mut buf = vec![0; *written as usize];
            block_on(image.read(0, &mut buf)).unwrap();
            assert!(buf == stamp::bytes(0, buf.len(), 1), "{what}: flushed bytes are lost");
        }
    }
}

/// What a flush costs: nothing but the file's own flush when the map did not change.
#[test]
fn a_plain_overwrite_costs_one_flush() {
    use blkproof_block::testing::OpKind;
    let create_options = CreateOptions { size: SIZE, ..CreateOptions::default() };
    let fresh = Rc::new(TestDisk::growing(0));
    block_on(create(Rc::clone(&fresh), None, &create_options)).unwrap();
    let disk = TestDisk::growing_from_bytes(fresh.image());
    block_on(async {
        let image = Image::open(disk.clone(), OpenOptions::default()).await.unwrap();
        image.write(0, &[1; 4096], WriteFlags::empty()).await.unwrap();
        let count = |kind: OpKind| disk.log().of_kind(kind).count();
        // A fresh cluster past the end of the file is not padded with zeroes.
        assert_eq!(count(OpKind::Write), 1, "one data write, no copy");
        let before = count(OpKind::Flush);
        image.flush().await.unwrap();
        let first = count(OpKind::Flush) - before;
        assert!(first <= 3, "allocating: {first} flushes (counts, table, L1)");
        let (writes, flushes) = (count(OpKind::Write), count(OpKind::Flush));
        image.write(512, &[2; 4096], WriteFlags::empty()).await.unwrap();
        image.flush().await.unwrap();
        assert_eq!((count(OpKind::Write) - writes, count(OpKind::Flush) - flushes), (1, 1));
        // A read of adjacent clusters is one read.
        image.write(0, &vec![3; 200_000], WriteFlags::empty()).await.unwrap();
        let reads = count(OpKind::Read);
        image.read(100, &mut vec![0; 190_000]).await.unwrap();
        assert_eq!(count(OpKind::Read) - reads, 1);
    });
}
