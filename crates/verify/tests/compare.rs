//! Whole-image comparison: what is found, what is skipped, what the parts of a split comparison add up to, and that
//! `qemu-img compare` agrees.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, clippy::type_complexity)]

use std::cell::Cell;
use std::process::Command;

use blkproof_block::nodes::memory::Memory;
use blkproof_block::testing::{Action, Executor, OpKind, Rule, TestDisk, block_on, hash};
use blkproof_block::{BlockDevice, ByteRange, Errno, IoError, WriteFlags};
use blkproof_verify::compare::{CompareOptions, Report, Side, Step, compare, split};

const ALL: ByteRange = ByteRange { start: 0, end: u64::MAX };

fn image(size: u64, pieces: &[(u64, &[u8])]) -> Memory {
    let disk = Memory::new(size);
    for (at, bytes) in pieces {
        block_on(disk.write(*at, bytes, WriteFlags::empty())).unwrap();
    }
    disk
}

fn run(a: &impl BlockDevice, b: &impl BlockDevice, strict: bool) -> Report {
    block_on(compare(a, b, ALL, CompareOptions { strict, ..CompareOptions::default() }))
}

fn ranges(ranges: &[ByteRange]) -> Vec<(u64, u64)> {
    ranges.iter().map(|range| (range.start, range.end)).collect()
}

#[test]
fn differing_sectors_are_listed_whatever_the_extents() {
    const M: u64 = 1 << 20;
    type Pieces = &'static [(u64, &'static [u8])];
    // Size and content of either image; differing ranges.
    let table: [(&str, (u64, Pieces), (u64, Pieces), &[(u64, u64)]); 12] = [
        ("empty", (0, &[]), (0, &[]), &[]),
        ("holes", (4 * M, &[]), (4 * M, &[]), &[]),
        ("same", (M, &[(0, b"x")]), (M, &[(0, b"x")]), &[]),
        ("one byte", (M, &[(1000, b"x")]), (M, &[(1000, b"y")]), &[(512, 1024)]),
        ("data and hole", (4 * M, &[(3 * M + 5, b"x")]), (4 * M, &[]), &[(3 * M, 3 * M + 512)]),
        ("hole and data", (4 * M, &[]), (4 * M, &[(3 * M - 1, b"x")]), &[(3 * M - 512, 3 * M)]),
        ("zero data and hole", (M, &[(0, &[0; 70000])]), (M, &[]), &[]),
        ("last byte of an odd size", (M + 7, &[(M + 6, b"x")]), (M + 7, &[]), &[(M, M + 7)]),
        ("longer by zeroes", (M + 700, &[]), (M + 7, &[]), &[]),
        ("longer by data", (M + 700, &[(M + 8, b"x")]), (M + 7, &[]), &[(M, M + 512)]),
        ("longer by data, other side", (M + 7, &[]), (M + 700, &[(M + 699, b"x")]), &[(M + 512, M + 700)]),
        (
            "neighbours merge",
            (M, &[(0, b"x"), (512, b"x"), (65535, b"x"), (65536, b"x")]),
            (M, &[]),
            &[(0, 1024), (65024, 66048)],
        ),
    ];
    for (name, (size_a, a), (size_b, b), want) in table {
        let (a, b) = (image(size_a, a), image(size_b, b));
        let report = run(&a, &b, false);
        assert_eq!(ranges(&report.differing), want, "{name}");
        assert_eq!(report.exit_status(), u8::from(!want.is_empty()), "{name}");
        assert_eq!(report.identical(), want.is_empty(), "{name}");
        assert_eq!(report.bytes_read + report.bytes_zero, size_a.max(size_b), "{name}: every byte is accounted for");
        assert_eq!(report.sizes_differ(), size_a != size_b);

        // The same through reads that have to wait, split over three ranges, and merged in the wrong order.
        let (a, b) = (Slow(&a), Slow(&b));
        let mut merged = Report::default();
        let mut parts = split(size_a.max(size_b), 3, 4096);
        parts.reverse();
        for part in parts {
            let strict = CompareOptions::default();
            merged.merge(block_on(compare(&a, &b, part, strict)));
        }
        assert_eq!(merged.differing, report.differing, "{name}, split");
        assert_eq!(merged.bytes_read + merged.bytes_zero, size_a.max(size_b), "{name}, split");
    }
}

/// A device that never answers at once.
struct Slow<'a>(&'a Memory);

impl BlockDevice for Slow<'_> {
    fn info(&self) -> blkproof_block::DeviceInfo {
        self.0.info()
    }
    async fn read(&self, at: u64, buf: &mut [u8]) -> blkproof_block::Result<()> {
        futures_lite::future::yield_now().await;
        self.0.read(at, buf).await
    }
    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> blkproof_block::Result<()> {
        self.0.write(at, data, flags).await
    }
    async fn write_zeroes(&self, at: u64, len: u64, flags: blkproof_block::ZeroFlags) -> blkproof_block::Result<()> {
        self.0.write_zeroes(at, len, flags).await
    }
    async fn discard(&self, at: u64, len: u64) -> blkproof_block::Result<()> {
        self.0.discard(at, len).await
    }
    async fn flush(&self) -> blkproof_block::Result<()> {
        self.0.flush().await
    }
    async fn block_status(&self, at: u64, len: u64) -> blkproof_block::Result<blkproof_block::BlockStatus> {
        // Extents shorter than they need to be, and not on sector boundaries.
        futures_lite::future::yield_now().await;
        self.0.block_status(at, len.min(100_001)).await
    }
    async fn resize(&self, size: u64, preallocation: blkproof_block::Preallocation) -> blkproof_block::Result<()> {
        self.0.resize(size, preallocation).await
    }
    async fn drain(&self) -> blkproof_block::Result<()> {
        self.0.drain().await
    }
}

#[test]
fn strict_counts_sizes_and_allocation() {
    let table = [
        ("same", image(4096, &[]), image(4096, &[]), 0),
        ("sizes", image(4096, &[]), image(8192, &[]), 1),
        ("allocation", image(4096, &[(0, &[0])]), image(4096, &[]), 1),
    ];
    for (name, a, b, want) in table {
        assert_eq!(run(&a, &b, true).exit_status(), want, "{name}");
        assert_eq!(run(&a, &b, false).exit_status(), 0, "{name}, not strict");
    }
}

#[test]
fn failures_are_listed_and_the_rest_is_compared() {
    let (a, b) = (TestDisk::new(4 << 20), TestDisk::new(4 << 20));
    for disk in [&a, &b] {
        disk.tamper(|bytes| bytes.write(0, &vec![1; 4 << 20]));
    }
    b.tamper(|bytes| bytes.write((3 << 20) + 1, &[2]));
    a.add_rule(
        Rule::new(Action::FailBefore(IoError::new(Errno::IO)))
            .kind(OpKind::Read)
            .range(ByteRange { start: 1 << 20, end: 2 << 20 }),
    );
    let report = run(&a, &b, false);
    assert_eq!(ranges(&report.differing), [(3 << 20, (3 << 20) + 512)]);
    let errors: Vec<_> = report.errors.iter().map(|error| (error.side, error.step, error.range)).collect();
    assert_eq!(errors, [(Side::A, Step::Read, ByteRange { start: 1 << 20, end: 2 << 20 })]);
    assert_eq!(report.exit_status(), 1, "a difference outranks a failure");
    b.tamper(|bytes| bytes.write((3 << 20) + 1, &[1]));
    assert_eq!(run(&a, &b, false).exit_status(), 4);
    b.fail_kind(OpKind::BlockStatus, IoError::new(Errno::IO));
    let report = run(&a, &b, false);
    assert_eq!((report.exit_status(), report.errors.len()), (3, 4));
}

#[test]
fn the_next_read_is_on_its_way_while_the_last_is_compared() {
    let (a, b) = (TestDisk::new(4 << 20), TestDisk::new(4 << 20));
    for disk in [&a, &b] {
        disk.tamper(|bytes| bytes.write(0, &vec![1; 4 << 20]));
        disk.hold_kind(OpKind::Read);
    }
    let mut executor = Executor::new();
    let (first, second) = (a.clone(), b.clone());
    executor.spawn(async move { compare(&first, &second, ALL, CompareOptions::default()).await });
    executor.run_until_stalled();
    let held = |disk: &TestDisk| disk.parked().iter().map(|op| op.range.start).collect::<Vec<_>>();
    assert_eq!((held(&a), held(&b)), (vec![0], vec![0]), "both sides are read at the same time");
    for step in 1..4u64 {
        a.release_all();
        b.release_all();
        executor.run_until_stalled();
        assert_eq!((held(&a), held(&b)), (vec![step << 20], vec![step << 20]));
    }
}

#[test]
fn progress_adds_up_and_a_comparison_can_be_stopped() {
    let (a, b) = (image(9 << 20, &[(5 << 20, &[1; 100])]), image(9 << 20, &[(1 << 20, &[1; 100])]));
    let done = Cell::new(0);
    let on_progress = |bytes| done.set(done.get() + bytes);
    block_on(compare(&a, &b, ALL, CompareOptions { on_progress: Some(&on_progress), ..CompareOptions::default() }));
    assert_eq!(done.get(), 9 << 20);
    let stop = || true;
    let report = block_on(compare(&a, &b, ALL, CompareOptions { stop: Some(&stop), ..CompareOptions::default() }));
    assert_eq!(report.bytes_left, 9 << 20);
    assert!(!report.identical());
}

#[test]
fn parts_cover_the_whole_once() {
    for (size, parts, unit) in [(0, 4, 512), (1, 4, 512), (512 * 7, 3, 512), ((1 << 40) + 5, 7, 1 << 20), (100, 0, 1)] {
        let ranges = split(size, parts, unit);
        assert!(ranges.len() <= parts.max(1));
        let mut at = 0;
        for range in &ranges {
            assert_eq!(range.start, at, "{size} bytes in {parts} parts");
            assert!(!range.is_empty());
            at = range.end;
        }
        assert_eq!(at, size);
    }
}

/// The first differing sector and the exit status are `qemu-img compare`'s own, over random pairs of raw images.
#[test]
fn qemu_img_agrees() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..24 {
        let draw = |what| hash(seed, what);
        let bytes = |salt: u64| {
            let mut bytes = vec![0u8; (draw(salt) % 4 * 65536 + 131_072 + draw(salt + 1) % 2 * 512) as usize];
            for write in 0..draw(99) % 4 {
                let at = (draw(write + 10) % 131_072) as usize;
                bytes[at] = 1;
            }
            if draw(salt + 2) % 3 == 0 {
                let last = bytes.len() - 1;
                bytes[last] = 7;
            }
            bytes
        };
        let (a, b) = (bytes(1000), bytes(2000));
        let paths = [dir.path().join("a.raw"), dir.path().join("b.raw")];
        for (path, bytes) in paths.iter().zip([&a, &b]) {
            std::fs::write(path, bytes).unwrap();
        }
        for strict in [false, true] {
            let mut command = Command::new("qemu-img");
            command.args(["compare", "-f", "raw", "-F", "raw"]);
            if strict {
                command.arg("-s");
            }
            let output = command.args(&paths).output().expect("qemu-img is installed");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            // Fully written files: extents are data on both sides, as they are here.
            let report = run(&Memory::with_content(&a), &Memory::with_content(&b), strict);
            assert_eq!(
                Some(i32::from(report.exit_status())),
                output.status.code(),
                "seed {seed}, strict {strict}: {said}"
            );
            let place =
                said.lines().find_map(|line| line.strip_prefix("Content mismatch at offset ")?.strip_suffix('!'));
            match place {
                Some(place) => assert_eq!(report.differing[0].start.to_string(), place, "seed {seed}"),
                None => assert_eq!(said.contains("size mismatch"), report.sizes_differ(), "seed {seed}: {said}"),
            }
        }
    }
}
