//! What the mirror costs: reads compared at once, writes with and without a history, fingerprints, whole-image
//! comparison.
//!
//! `cargo run --release -p blkproof-verify --example speed`; with two files, `… --example speed A B [THREADS]`, it
//! compares those instead.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

use std::hint::black_box;
use std::time::Instant;

use blkproof_block::nodes::file::{File, FileOptions};
use blkproof_block::nodes::memory::Memory;
use blkproof_block::{BlockDevice, ByteRange, WriteFlags};
use blkproof_verify::compare::{CompareOptions, compare, split};
use blkproof_verify::{Fingerprint, OnMismatch, Verify, VerifyOptions};
use futures_lite::future::block_on;

const SIZE: u64 = 256 << 20;

fn disk() -> Memory {
    let disk = Memory::new(SIZE);
    let data: Vec<u8> = (0..1u32 << 20).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    for at in (0..SIZE).step_by(data.len()) {
        block_on(disk.write(at, &data, WriteFlags::empty())).unwrap();
    }
    disk
}

/// Nanoseconds for each of `count` calls with a place on the disk, the best of five rounds.
fn time(what: &str, bytes: u64, count: u64, mut call: impl FnMut(u64)) {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        for step in 0..count {
            call(step.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (SIZE / bytes) * bytes);
        }
        best = best.min(start.elapsed().as_nanos() as f64 / count as f64);
    }
    println!("{what:<46} {best:>10.0} ns {:>8.2} GB/s", bytes as f64 / best);
}

/// Compares two files five times, in as many parts as there are threads.
fn compare_files(a: &str, b: &str, threads: usize) {
    let size = std::fs::metadata(a).unwrap().len();
    for _ in 0..5 {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for range in split(size, threads, 1 << 20) {
                scope.spawn(move || {
                    let open =
                        |path| File::open(path, FileOptions { read_only: true, ..FileOptions::default() }).unwrap();
                    let report = block_on(compare(&open(a), &open(b), range, CompareOptions::default()));
                    assert!(report.identical(), "{report:?}");
                });
            }
        });
        let seconds = start.elapsed().as_secs_f64();
        println!("{threads} threads: {seconds:.3} s, {:.2} GB/s of each file", size as f64 / seconds / 1e9);
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [a, b, rest @ ..] = args.as_slice() {
        let threads = rest.first().map_or(1, |threads| threads.parse().unwrap());
        return compare_files(a, b, threads);
    }
    let sector = [7u8; 512];
    time("fingerprint of a sector", 512, 100_000, |_| {
        black_box(Fingerprint::of(black_box(&sector)));
    });
    let plain = disk();
    let mut buf = vec![0; 4096];
    time("4 KiB read_now, memory alone", 4096, 100_000, |at| assert!(plain.read_now(at, &mut buf)));
    time("4 KiB write, memory alone", 4096, 100_000, |at| {
        block_on(plain.write(at, &buf, WriteFlags::empty())).unwrap();
    });
    for history in [0, 64 << 20] {
        let options = VerifyOptions::new(OnMismatch::Report).history(history);
        let verify = Verify::new(disk(), disk(), options).unwrap();
        let title = |what: &str| format!("{what}, mirrored, {} MiB history", history >> 20);
        time(&title("4 KiB read_now"), 4096, 100_000, |at| assert!(verify.read_now(at, &mut buf)));
        time(&title("4 KiB read"), 4096, 100_000, |at| block_on(verify.read(at, &mut buf)).unwrap());
        time(&title("4 KiB write"), 4096, 100_000, |at| {
            block_on(verify.write(at, &buf, WriteFlags::empty())).unwrap();
        });
    }
    let (a, b) = (disk(), disk());
    let whole = ByteRange { start: 0, end: SIZE };
    time("compare of 256 MiB", SIZE, 1, |_| {
        assert!(block_on(compare(&a, &b, whole, CompareOptions::default())).identical());
    });
}
