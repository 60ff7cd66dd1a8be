//! The largest disks, in sparse files: what a check of them reads, and that little memory changes nothing of its
//! answer.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use blkproof_check::source::{FileSource, Source};
use blkproof_check::watch::Silent;
use blkproof_check::{Options, Report, Verdict, check};

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
}

fn run(tool: &str, args: &[&str]) {
    let output = Command::new(tool).args(args).output().unwrap_or_else(|error| panic!("{tool} is needed: {error}"));
    assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn make(dir: &Path, name: &str, options: &str, size: &str, writes: &[&str]) -> std::path::PathBuf {
    let path = dir.join(name);
    let file = path.to_str().unwrap();
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, file, size]);
    let commands = writes.iter().flat_map(|write| ["-c", write]);
    if !writes.is_empty() {
        run("qemu-io", &[&["-f", "qcow2", "-t", "unsafe"][..], &commands.collect::<Vec<_>>(), &[file]].concat());
    }
    path
}

/// A folder in memory, where there is one: files are sparse and soon written.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn look(path: &Path, memory: u64) -> (Report, u64) {
    let image = Counted(FileSource::open(path).unwrap(), AtomicU64::new(0));
    let report = check(&image, &Options { memory, threads: 2, ..Options::default() }, &Silent);
    (report, image.1.into_inner())
}

#[test]
fn sixty_four_tebibytes_mostly_empty() {
    let dir = folder();
    let writes = ["write -q 0 64k", "write -q 1T 1M", "write -q 40T 64k", "write -q 63T 3M"];
    for (name, options) in [("v3", "compat=1.1"), ("v2", "compat=0.10"), ("extended", "extended_l2=on")] {
        let path = make(dir.path(), name, options, "64T", &writes);
        let metadata = 2 * (64u64 << 40) / (8192 << 16) * 8;
        let (report, read) = look(&path, 4 << 20);
        assert_eq!(report.verdict, Verdict::Healthy, "{name}: {:?}", report.findings.first());
        assert_eq!(report.numbers.allocated_clusters, Some(1 + 16 + 1 + 48), "{name}");
        assert!(read < metadata + (8 << 20), "{name}: {read} bytes were read");
    }
}

#[test]
fn a_tebibyte_of_metadata_in_four_mebibytes() {
    let dir = folder();
    let path = make(dir.path(), "full", "preallocation=metadata,cluster_size=256k", "1T", &["write -q 5G 1M"]);
    let (want, read) = look(&path, 64 << 20);
    assert_eq!(want.verdict, Verdict::Healthy, "{:?}", want.findings.first());
    assert_eq!(want.numbers.allocated_clusters, Some(1 << 22));
    // 32 MiB of L2 tables, and 8 MiB of counts in whole blocks.
    assert!(read < 44 << 20, "{read} bytes were read for 40 MiB of metadata");
    let (got, _) = look(&path, 4 << 20);
    let host = |report: &Report| report.host.as_ref().map(|map| map.totals);
    let guest = |report: &Report| report.guest.as_ref().map(|map| map.totals);
    assert_eq!(
        (got.verdict, got.numbers, host(&got), guest(&got)),
        (want.verdict, want.numbers, host(&want), guest(&want))
    );
    assert_eq!((got.findings, got.not_checked, got.facts), (want.findings, want.not_checked, want.facts));
}

/// 8 Mi entries in tables of 2 MiB each: memory for two of them.
#[test]
fn sixteen_tebibytes_fully_mapped_with_large_clusters() {
    let dir = folder();
    let path = make(dir.path(), "large", "preallocation=metadata,cluster_size=2M", "16T", &[]);
    let (report, read) = look(&path, 4 << 20);
    assert_eq!(report.verdict, Verdict::Healthy, "{:?}", report.findings.first());
    assert_eq!(report.numbers.allocated_clusters, Some(1 << 23));
    assert!(!report.not_checked.iter().any(|line| line.contains("memory")), "{:?}", report.not_checked);
    assert!(read < 512 << 20, "{read}");
}
