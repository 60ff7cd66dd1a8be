//! Large images: the same answer in one pass or in many, on one thread or on several, within the memory allowed.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::single_range_in_vec_init
)]

mod qcow2_mapping_support;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use blkproof_check::source::{FileSource, MemorySource, Source};
use blkproof_check::watch::{Progress, Silent, Watch};
use blkproof_check::{Options, Report, Verdict, check};
use qcow2_mapping_support::{Bench, Bytes, COPIED, OFFSET, check_file, codes, consistent};

/// A file that counts what is read from it.
struct Counted {
    inner: FileSource,
    bytes: AtomicU64,
    reads: AtomicU64,
}

impl Counted {
    fn open(path: &Path) -> Self {
        Self { inner: FileSource::open(path).unwrap(), bytes: AtomicU64::new(0), reads: AtomicU64::new(0) }
    }
}

impl Source for Counted {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.read_at(at, buf)
    }
}

/// Permutes the L2 entries of an image, as random writes leave them.
fn shuffle(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let word = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let cluster = 1u64 << (word(20) >> 32);
    let tables: Vec<u64> = (0..word(36) >> 32).map(|index| word(word(40) + index * 8) & OFFSET).collect();
    let mut entries: Vec<[u8; 8]> = Vec::new();
    for table in &tables {
        let mut bytes = vec![0; cluster as usize];
        file.read_exact_at(&mut bytes, *table).unwrap();
        entries.extend(bytes.as_chunks::<8>().0);
    }
    let mapped: Vec<usize> = (0..entries.len()).filter(|index| entries[*index] != [0; 8]).collect();
    let mut state = 3u64;
    for last in (1..mapped.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        entries.swap(mapped[last], mapped[(state >> 33) as usize % (last + 1)]);
    }
    for (table, entries) in tables.iter().zip(entries.chunks(cluster as usize / 8)) {
        file.write_all_at(&entries.concat(), *table).unwrap();
    }
}

fn summary(report: &Report) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        report.verdict,
        report.lost.clone(),
        report.numbers,
        report.host.as_ref().map(|map| map.totals),
        report.guest.as_ref().map(|map| map.totals),
        report.sums.iter().map(|(name, severity, sum)| (*name, *severity, sum.errors)).collect::<Vec<_>>(),
    )
}

#[test]
fn one_window_or_many_give_the_same_answer() {
    let bench = Bench::new();
    // Clusters of 512 bytes, with a snapshot (which takes a key for each cluster), shuffled, then damaged.
    let path = bench.image("big", &["create -o preallocation=metadata,cluster_size=512 64M"]);
    shuffle(&path);
    bench.image_again(&path, &["snapshot -c old", "io write -P 1 0 500k; write 30M 500k"]);
    let sound = check_file(&path, &Options::default());
    assert_eq!(sound.verdict, Verdict::Healthy, "{:?}", sound.findings.first());

    let file = File::options().read(true).write(true).open(&path).unwrap();
    let word = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let set = |at: u64, value: u64| file.write_all_at(&value.to_be_bytes(), at).unwrap();
    let table = |index: u64| word(word(40) + index * 8) & OFFSET;
    // Two guests of one cluster, entries that point nowhere, entries that are gone, a table named twice, counts that
    // lie.
    set(table(107), word(table(1000)) & !COPIED);
    set(table(109) + 8, COPIED | 1 << 50);
    for entry in 0..30 {
        set(table(500) + 8 * entry, 0);
    }
    set(word(40) + 8 * 1500, word(word(40) + 8 * 1501));
    let block = word(word(48) + 8 * 300) & OFFSET;
    file.write_all_at(&[0; 100], block).unwrap();

    let mut before = None;
    for (memory, threads) in [(64 << 20, 1), (64 << 20, 2), (1 << 20, 1), (1 << 20, 2), (700 << 10, 1)] {
        let report = check_file(&path, &Options { memory, threads, ..Options::default() });
        consistent(&report, "damaged");
        assert_eq!(report.verdict, Verdict::Damaged);
        assert!(!report.not_checked.iter().any(|line| line.contains("memory")), "{:?}", report.not_checked);
        let got = summary(&report);
        if let Some(before) = &before {
            assert_eq!(&got, before, "memory {memory}, {threads} threads");
        }
        before = Some(got);
    }
}

#[test]
fn metadata_of_a_sound_image_is_read_once() {
    let bench = Bench::new();
    let path = bench.image("large", &["create -o preallocation=metadata 64G"]);
    let source = Counted::open(&path);
    let report = check(&source, &Options::default(), &Silent);
    assert_eq!(report.verdict, Verdict::Healthy);
    let host = report.host.unwrap();
    let metadata = host.totals.iter().sum::<u64>() - host.bytes(blkproof_check::map::Class::Data);
    let (bytes, reads) = (source.bytes.into_inner(), source.reads.into_inner());
    assert!(bytes < metadata * 9 / 8, "{bytes} bytes read of {metadata} bytes of metadata");
    // Tables lie apart in such an image, each before the data it maps.
    let tables = host.claims.len() as u64;
    assert!(reads < tables + 32, "{reads} reads for {tables} tables");
}

#[test]
fn a_huge_empty_disk_in_a_small_file() {
    let bench = Bench::new();
    let path = bench.image("huge", &["create 64T", "io write 1T 64k; write 63T 1M"]);
    let source = Counted::open(&path);
    let report = check(&source, &Options { memory: 4 << 20, ..Options::default() }, &Silent);
    assert_eq!(report.verdict, Verdict::Healthy, "{:?}", codes(&report));
    assert!(source.bytes.into_inner() < 8 << 20, "no more is read than there is");
}

/// All entries of the L1 table, and all snapshots, name one L2 table: it is read once.
#[test]
fn tables_named_often_are_read_once() {
    let bench = Bench::new();
    let path =
        bench.image("many", &["create -o cluster_size=512 20M", "io write 0 32k", "snapshot -c a", "snapshot -c b"]);
    let mut image = Bytes::read(&path);
    let table = image.u64(image.l1());
    let entries = image.u32(36);
    for index in 0..entries {
        image.set(image.l1() + index * 8, table);
    }
    std::fs::write(&path, &image.0).unwrap();
    let source = Counted::open(&path);
    let report = check(&source, &Options::default(), &Silent);
    consistent(&report, "many");
    assert_eq!(report.verdict, Verdict::Damaged);
    assert_eq!(report.lost.ranges, [0..20 << 20]);
    assert!(source.bytes.into_inner() < 20 * image.0.len() as u64);
}

struct Stops(AtomicU64);

impl Watch for Stops {
    fn progress(&self, progress: Progress) {
        assert!(progress.done <= progress.total, "{progress:?}");
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn stop(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 3
    }
}

#[test]
fn a_stopped_check_says_what_it_knows() {
    let bench = Bench::new();
    let path = bench.image("stopped", &["create -o preallocation=metadata 64G"]);
    let file = File::options().write(true).open(&path).unwrap();
    let mut l1 = Bytes(vec![0; 1 << 20]);
    File::open(&path).unwrap().read_exact_at(&mut l1.0, 0).unwrap();
    file.write_all_at(&(COPIED | 1 << 50).to_be_bytes(), l1.l1() + 80).unwrap();
    let report = check(&FileSource::open(&path).unwrap(), &Options::default(), &Stops(AtomicU64::new(0)));
    consistent(&report, "stopped");
    assert!(report.stopped);
    assert_eq!(report.verdict, Verdict::Damaged, "the L1 tables come first");
    assert!(report.not_checked.iter().any(|line| line.contains("stopped")), "{:?}", report.not_checked);
    assert!(!codes(&report).iter().any(|(code, _)| code.contains("LEAKED")), "{:?}", codes(&report));
}

/// A medium with sectors that can not be read.
struct Failing(MemorySource, std::ops::Range<u64>);

impl Source for Failing {
    fn name(&self) -> String {
        "failing".to_owned()
    }

    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        if at < self.1.end && self.1.start < at + buf.len() as u64 {
            return Err(std::io::Error::other("medium error"));
        }
        self.0.read_at(at, buf)
    }
}

#[test]
fn unreadable_sectors_cost_what_lies_in_them() {
    let bench = Bench::new();
    let image = Bytes::read(&bench.image("failing", &["create 1G", "io write 0 1M; write 600M 1M"]));
    const M: u64 = 1 << 20;
    let (l1, l2, block) = (image.l1(), image.l2(1), image.refblock(0));
    for (name, bad, lost) in [
        // A sector of the second L2 table: 64 entries of a cluster each.
        ("l2", l2 + 512..l2 + 1024, vec![516 * M..520 * M]),
        ("l1", l1..l1 + 16, vec![0..1024 * M]),
        ("counts", block..block + 512, vec![]),
    ] {
        let report = check(&Failing(MemorySource(image.0.clone()), bad.clone()), &Options::default(), &Silent);
        consistent(&report, name);
        assert_eq!(report.verdict, Verdict::Damaged, "{name}");
        assert_eq!(report.lost.ranges, lost, "{name}");
        let unreadable = report.findings.iter().find(|finding| finding.code.name == "IMAGE-UNREADABLE");
        assert_eq!(unreadable.unwrap().host, [bad], "{name}");
        let others: Vec<_> = codes(&report)
            .into_iter()
            // Where the L1 table can not be read, its tables are found by their look.
            .filter(|(code, _)| !["UNREADABLE", "UNCLAIMED", "ORPHAN"].iter().any(|part| code.contains(part)))
            .collect();
        assert_eq!(others, [], "{name}");
    }
}
