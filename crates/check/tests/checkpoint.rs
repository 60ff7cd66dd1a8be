//! A check that is stopped anywhere and begun again with its checkpoint says what a check says that was never stopped.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use blkproof_check::checkpoint::{MemoryStore, Resumed};
use blkproof_check::source::{FileSource, Source, Stamp};
use blkproof_check::watch::{Silent, Watch};
use blkproof_check::{Options, Report, check};

/// An image that counts the bytes read from it.
struct Counted(FileSource, AtomicU64);

impl Source for Counted {
    fn name(&self) -> String {
        self.0.name()
    }

    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.1.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.0.read_at(at, buf)
    }

    fn next_data(&self, at: u64) -> Option<std::ops::Range<u64>> {
        self.0.next_data(at)
    }

    fn stamp(&self) -> Option<Stamp> {
        self.0.stamp()
    }
}

impl Counted {
    fn open(path: &Path) -> Self {
        Self(FileSource::open(path).unwrap(), AtomicU64::new(0))
    }

    fn read(&self) -> u64 {
        self.1.swap(0, Ordering::Relaxed)
    }
}

/// Wants to stop when it is asked for the n-th time.
struct StopAt(AtomicU64);

impl Watch for StopAt {
    fn stop(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(1))) == Ok(0)
    }
}

fn run(tool: &str, args: &[&str]) {
    let output = Command::new(tool).args(args).output().unwrap_or_else(|error| panic!("{tool} is needed: {error}"));
    assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Everything of a report.
fn all(report: &Report) -> String {
    format!("{report:#?}")
}

#[test]
fn wherever_a_check_is_stopped_it_goes_on_to_the_same_report() {
    let dir = tempfile::tempdir().unwrap();
    for (format, options, size) in [
        ("qcow2", "cluster_size=512,preallocation=metadata", "16M"),
        ("qed", "cluster_size=4k", "256M"),
        ("vhdx", "block_size=1M", "256M"),
        ("vdi", "static=off", "256M"),
    ] {
        let path = dir.path().join(format);
        let name = path.to_str().unwrap();
        run("qemu-img", &["create", "-q", "-f", format, "-o", options, name, size]);
        run("qemu-io", &["-f", format, "-c", "write -q 0 300k", "-c", "write -q 9M 3M", name]);
        // What something wrote over the end is there to be found.
        let mut bytes = std::fs::read(&path).unwrap();
        let len = bytes.len();
        bytes[len / 2..len / 2 + 700].fill(b'!');
        std::fs::write(&path, bytes).unwrap();

        let image = Counted::open(&path);
        for memory in [64 << 20, 1 << 20] {
            let options = Options { memory, ..Options::default() };
            let want = all(&check(&image, &options, &Silent));
            let total = image.read();
            let (mut at, mut stopped_once, mut saved_once) = (0u64, false, false);
            loop {
                let mut store = MemoryStore::default();
                let source = Resumed::new(&image, &mut store).unwrap();
                let stopped = check(&source, &options, &StopAt(AtomicU64::new(at))).stopped;
                drop(source);
                stopped_once |= stopped;
                // Goes on once with other options, which find in it what they need.
                let source = Resumed::new(&image, &mut store).unwrap();
                let found = source.found();
                check(
                    &source,
                    &Options { memory: 8 << 20, threads: 2, ..Options::default() },
                    &StopAt(AtomicU64::new(at)),
                );
                drop(source);
                image.read();
                let source = Resumed::new(&image, &mut store).unwrap();
                assert_eq!(all(&check(&source, &options, &Silent)), want, "{format}, stopped at {at}");
                let after = image.read();
                saved_once |= stopped && after < total && found > 0;
                if !stopped {
                    // Only its beginning, by which it is known, was read again.
                    assert!(after <= 64 << 10, "{format}: {after} bytes were read again");
                    break;
                }
                at = at + 1 + at / 3;
            }
            assert!(stopped_once, "{format}: a check asks whether to stop");
            assert!(format != "qcow2" || saved_once, "what was read is not read again");
        }
    }
}
