//! Whatever bytes there are, there is a verdict: no panic, no memory beyond what was allowed, no reading beyond what
//! the metadata justifies. And one test for each row of the table of published parser bugs (image-check.md 6.1, 6.2).
//!
//! `BLKPROOF_SEED` is the first seed of the random part, `BLKPROOF_HOSTILE` their number for each base.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod generate;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{io, os::unix::net::UnixListener};

use blkproof_check::source::{FileSource, Source};
use blkproof_check::{Format, Options, Report, Verdict};
use generate::dice::Dice;
use generate::judge::{judge, options};
use generate::sparse::Sparse;
use generate::{Base, bases, keep, mutate, qcow2, seal};
use peak_alloc::PeakAlloc;

/// Live bytes of this process are counted, so only one test may run at a time.
#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;
static ALONE: Mutex<()> = Mutex::new(());

/// Beyond `Options::memory`: findings (50 of some hundred bytes), sentences, the report, what the inflaters keep, and
/// up to 100 000 lost ranges, which are in memory twice while they are handed on.
const SLACK: usize = 8 << 20;

/// Counts what is read.
struct Counted<'s> {
    of: &'s Sparse,
    bytes: AtomicU64,
    reads: AtomicU64,
}

impl<'s> Counted<'s> {
    fn new(of: &'s Sparse) -> Self {
        Self { of, bytes: AtomicU64::new(0), reads: AtomicU64::new(0) }
    }
}

impl Source for Counted<'_> {
    fn name(&self) -> String {
        self.of.name()
    }

    fn len(&self) -> u64 {
        self.of.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.of.read_at(at, buf)
    }

    fn next_data(&self, at: u64) -> Option<Range<u64>> {
        self.of.next_data(at)
    }
}

/// Each test begins with it.
fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A verdict within the bounds on memory and reading.
fn bounded(image: &Sparse, options: &Options, what: &str) -> Report {
    let source = Counted::new(image);
    HEAP.reset_peak_usage();
    let before = HEAP.current_usage();
    let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| judge(&source, options)));
    let peak = HEAP.peak_usage().saturating_sub(before);
    let fail = |why: String| -> ! {
        let name = format!("hostile-{:016x}", image.len ^ image.sectors().count() as u64);
        panic!("{what}: {why}; {}", keep(&name, image))
    };
    let Ok(report) = judged else { fail("a panic".to_owned()) };
    let memory = usize::try_from(options.memory).unwrap() + SLACK;
    if peak > memory {
        fail(format!("{peak} bytes of memory, {memory} are allowed"));
    }
    // All of a small file may be read several times over (tables, counts, owners, causes, orphans); of a large one only
    // tables.
    let held = image.sectors().count() as u64 * 512;
    let (bytes, reads) = (source.bytes.into_inner(), source.reads.into_inner());
    let allowed = 64 * (held + (1 << 20)) + 8 * image.len.min(64 << 20);
    if bytes > allowed {
        fail(format!("{bytes} bytes were read; the file is {} long and holds {held}", image.len));
    }
    if reads > 20_000 + held / 16 {
        fail(format!("{reads} reads"));
    }
    report
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// Small ones of our own, of every kind, and one or two of every other format.
fn all_bases() -> Vec<Base> {
    let own = [0, 3, 6, 7, 13, 20, 30, 42].into_iter().map(qcow2::generate);
    own.chain(bases::all()).collect()
}

#[test]
fn valid_images_of_every_kind() {
    let _alone = alone();
    for seed in 0..300 {
        let base = qcow2::generate(seed);
        let report = bounded(&base.image, &options(None), &format!("seed {seed}"));
        assert_eq!(report.verdict, Verdict::Healthy, "seed {seed}: {}: {:?}", base.name, report.findings);
    }
    for base in bases::all() {
        let report = bounded(&base.image, &options(None), &base.name);
        assert_eq!(report.verdict, Verdict::Healthy, "{}: {:?}", base.name, report.findings);
        assert_eq!(report.format, Some(base.format), "{}", base.name);
    }
}

#[test]
fn every_field_with_every_value() {
    let _alone = alone();
    // All of it takes minutes: by default every value meets some of the fields alike, and every field a part of the
    // values.
    let whole = number("BLKPROOF_HOSTILE", 0) >= 1000;
    for base in all_bases() {
        // Of fields alike (a table's entries) the first and the last ones stand for all.
        let mut fields = base.fields.clone();
        fields.dedup_by_key(|field| field.at);
        let alike = |index: usize| {
            let what = fields[index].what;
            let before = fields[..index].iter().filter(|field| field.what == what).count();
            let after = fields[index..].iter().filter(|field| field.what == what).count();
            whole || before < 3 || after <= 2
        };
        let chosen: Vec<_> = (0..fields.len()).filter(|index| alike(*index)).map(|index| fields[index]).collect();
        for field in chosen {
            let part =
                |index: usize| whole || (index + usize::try_from(field.at).unwrap() / field.width).is_multiple_of(4);
            let values = mutate::values(&base, &field).into_iter().enumerate();
            for value in values.filter(|(index, _)| part(*index)).map(|(_, value)| value) {
                let mut image = base.image.clone();
                image.set_number(field.at, field.width, base.big, value);
                for sealed in [false, true] {
                    if sealed {
                        let before = image.clone();
                        seal::seal(&mut image);
                        if before == image {
                            break;
                        }
                    }
                    let what = format!("{}: {} at {:#x} = {value:#x}", base.name, field.what, field.at);
                    bounded(&image, &options(Some(base.format)), &what);
                }
            }
        }
    }
}

#[test]
fn changed_spliced_and_cut_images() {
    let _alone = alone();
    let first = number("BLKPROOF_SEED", 0);
    let count = number("BLKPROOF_HOSTILE", 60);
    let bases = all_bases();
    println!("seeds {first}..{}", first + count);
    for base in &bases {
        for seed in first..first + count {
            let mut dice = Dice::new(seed);
            let other = dice.of(&bases).clone();
            let (mut image, what) = mutate::mutate(base, &other, &mut dice);
            if dice.percent(70) {
                seal::seal(&mut image);
            }
            bounded(&image, &options(Some(base.format)), &format!("{} seed {seed}: {what}", base.name));
        }
    }
}

#[test]
fn every_image_as_every_format() {
    let _alone = alone();
    for base in all_bases() {
        for format in Format::ALL {
            bounded(&base.image, &options(Some(*format)), &format!("{} as {}", base.name, format.name()));
        }
    }
}

#[test]
fn every_length() {
    let _alone = alone();
    for base in all_bases() {
        let step = (base.image.len / 24).max(1);
        let lengths = (0..520).step_by(13).chain((520..base.image.len).step_by(usize::try_from(step).unwrap()));
        for len in lengths {
            let mut image = base.image.clone();
            image.set_len(len);
            bounded(&image, &options(Some(base.format)), &format!("{} cut to {len}", base.name));
        }
    }
}

// The rows of image-check.md 6.1.

fn base_of(format: Format) -> Base {
    bases::all().into_iter().find(|base| base.format == format).unwrap()
}

/// An image of one format with numbers set, its checksums right; refused, without a panic.
fn damaged(format: Format, numbers: &[(u64, usize, u64)]) -> Report {
    let base = if format == Format::Qcow2 { plain_qcow2() } else { base_of(format) };
    let mut image = base.image.clone();
    for (at, width, value) in numbers {
        image.set_number(*at, *width, base.big, *value);
    }
    seal::seal(&mut image);
    let what = format!("{} {numbers:x?}", format.name());
    let report = bounded(&image, &options(Some(format)), &what);
    assert_eq!(report.verdict, Verdict::Damaged, "{what}: {:?}", report.findings);
    report
}

/// A qcow2 image without anything unusual: 512-byte clusters, version 3, one snapshot.
fn plain_qcow2() -> Base {
    let plan = qcow2::Plan {
        version: 3,
        cluster_bits: 9,
        refcount_order: 4,
        extended: false,
        zeroes: true,
        compressed: true,
        zstd: false,
        snapshots: 1,
        vm_state: false,
        external: false,
        raw_external: false,
        bitmaps: 1,
        backing: false,
        feature_names: false,
        unknown_extension: false,
        long_header: true,
        lazy: false,
        dirty: false,
        size: 60 << 10,
        spare_l1: 0,
    };
    qcow2::build(&plan, &mut Dice::new(1))
}

/// Division by zero: Parallels' cluster size, VHD's block size; ours in the other formats too.
#[test]
fn h1_divisors_of_zero() {
    let _alone = alone();
    damaged(Format::Parallels, &[(0x1c, 4, 0)]);
    damaged(Format::Vhd, &[(512 + 32, 4, 0)]);
    damaged(Format::Vdi, &[(0x178, 4, 0)]);
    damaged(Format::Vmdk, &[(20, 8, 0)]);
    damaged(Format::Vmdk, &[(44, 4, 0)]);
    damaged(Format::Qed, &[(4, 4, 0)]);
    damaged(Format::Qed, &[(8, 4, 0)]);
    damaged(Format::Vhdx, &[((3 << 20) + (64 << 10), 4, 0)]);
    damaged(Format::Qcow2, &[(20, 4, 0)]);
}

/// Overflow: catalogue sizes, L1 sizes of snapshots, cluster indices.
#[test]
fn h2_products_that_overflow() {
    let _alone = alone();
    damaged(Format::Parallels, &[(0x20, 4, 0xffff_ffff)]);
    damaged(Format::Parallels, &[(0x1c, 4, 0xffff_ffff)]);
    damaged(Format::Qcow2, &[(36, 4, 0xffff_ffff)]);
    let base = plain_qcow2();
    let table = base.image.number(64, 8, true);
    damaged(Format::Qcow2, &[(table + 8, 4, 0xffff_ffff)]);
    damaged(Format::Qcow2, &[(24, 8, u64::MAX)]);
    damaged(Format::Qed, &[(48, 8, u64::MAX - 511)]);
    damaged(Format::Vdi, &[(0x170, 8, u64::MAX)]);
    damaged(Format::Vmdk, &[(12, 8, u64::MAX)]);
}

/// Sizes of tables that memory is asked for.
#[test]
fn h3_tables_larger_than_the_file() {
    let _alone = alone();
    for numbers in [[(100, 4, 0xffff_fff8)], [(8, 8, u64::MAX)], [(56, 4, 0xffff_ffff)], [(60, 4, 0xffff_ffff)]] {
        damaged(Format::Qcow2, &numbers);
    }
    damaged(Format::Vdi, &[(0x180, 4, 0xffff_ffff)]);
    damaged(Format::Vdi, &[(0x180, 4, 0x1fff_ffff)]);
    damaged(Format::Vhd, &[(512 + 28, 4, 0xffff_ffff)]);
}

/// The same for secondary tables: L1 of a snapshot.
#[test]
fn h4_secondary_tables_larger_than_the_file() {
    let _alone = alone();
    let table = plain_qcow2().image.number(64, 8, true);
    for entries in [1 << 20, 1 << 22, 1 << 31] {
        damaged(Format::Qcow2, &[(table + 8, 4, entries)]);
    }
}

/// Early returns: a snapshot table that stops anywhere.
#[test]
fn h5_snapshot_fields_half_there() {
    let _alone = alone();
    let base = plain_qcow2();
    let table = base.image.number(64, 8, true);
    for at in (0..56).step_by(2) {
        for value in [0, 0xffff, 0x8000] {
            let mut image = base.image.clone();
            image.set_number(table + at, 2, true, value);
            bounded(&image, &options(None), &format!("snapshot table at {at}: {value:#x}"));
        }
        let mut image = base.image.clone();
        image.set_number(64, 8, true, base.image.len - 512);
        image.put(base.image.len - at.min(40), &vec![0xff; usize::try_from(at.min(40)).unwrap()]);
        bounded(&image, &options(None), "snapshot table at the end of the file");
    }
}

/// Signed sizes, and counts that say more than there is.
#[test]
fn h6_sizes_with_the_top_bit() {
    let _alone = alone();
    damaged(Format::Qcow2, &[(40, 8, 1 << 63)]);
    damaged(Format::Qcow2, &[(48, 8, 1 << 63)]);
    damaged(Format::Qed, &[(40, 8, 1 << 63)]);
    damaged(Format::Parallels, &[(0x24, 4, 0x8000_0000), (0x28, 4, 0x8000_0000)]);
    damaged(Format::Vmdk, &[(56, 8, 1 << 63), (48, 8, 1 << 63)]);
}

/// VHDX: block and sector sizes bound every loop.
#[test]
fn h7_vhdx_block_and_sector_sizes() {
    let _alone = alone();
    let items = (3 << 20) + (64 << 10);
    let base = base_of(Format::Vhdx);
    for at in (0..64).step_by(4) {
        for value in [0, 1, 3, 511, 0x8000_0000, 0xffff_ffff] {
            let mut image = base.image.clone();
            image.set_number(items + at, 4, false, value);
            bounded(&image, &options(None), &format!("metadata item word {at}: {value:#x}"));
        }
    }
}

/// qcow version 1 is named, not half understood.
#[test]
fn h8_qcow_version_1() {
    let _alone = alone();
    let mut image = plain_qcow2().image;
    image.set_number(4, 4, true, 1);
    let report = bounded(&image, &options(None), "version 1");
    assert_eq!((report.verdict, report.format), (Verdict::Unsupported, None));
}

/// Memory and work stay within bounds, however much the image asks for.
#[test]
fn h9_bounds_hold_at_little_memory() {
    let _alone = alone();
    for memory in [64 << 10, 1 << 20] {
        for seed in 0..60 {
            let base = qcow2::generate(seed);
            let (image, what) = mutate::mutate(&base, &base, &mut Dice::new(seed));
            bounded(&image, &Options { memory, ..options(None) }, &format!("{memory} bytes, seed {seed}: {what}"));
        }
    }
}

/// A huge disk in a tiny file, and a stream that would inflate to a gigabyte.
#[test]
fn h10_huge_disks_and_bombs() {
    let _alone = alone();
    let mut image = plain_qcow2().image;
    image.set_number(24, 8, true, 1 << 60);
    bounded(&image, &options(None), "an exbibyte in a few clusters");
    let base =
        qcow2::build(&qcow2::Plan { cluster_bits: 21, size: 64 << 21, ..plain_plan_compressed() }, &mut Dice::new(5));
    let report = bounded(&base.image, &Options { memory: 16 << 20, ..options(None) }, "streams of 2 MiB");
    assert_eq!(report.verdict, Verdict::Healthy);
}

fn plain_plan_compressed() -> qcow2::Plan {
    let mut dice = Dice::new(0);
    qcow2::Plan {
        version: 3,
        refcount_order: 4,
        extended: false,
        compressed: true,
        zstd: false,
        external: false,
        snapshots: 0,
        bitmaps: 0,
        backing: false,
        dirty: false,
        ..qcow2::Plan::draw(&mut dice)
    }
}

/// Names are data: a pseudo-protocol and a host file are reported and never opened.
#[test]
fn h11_h12_h14_names_open_nothing() {
    let _alone = alone();
    for name in ["json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}", "/etc/passwd", "nbd://evil/", "a\u{1b}[2Jb"]
    {
        let mut image = plain_qcow2().image;
        // Right behind the end mark of the extensions, where the first cluster has room.
        let at = 400;
        image.put(at, name.as_bytes());
        image.set_number(8, 8, true, at);
        image.set_number(16, 4, true, name.len() as u64);
        let report = bounded(&image, &Options { allow_backing: true, ..options(None) }, name);
        assert_eq!(report.references.len(), 1, "{name}");
        assert!(report.not_checked.iter().any(|line| line.contains("not opened")), "{:?}", report.not_checked);
        assert!(report.sums.iter().any(|(code, ..)| *code == "QCOW2-POLICY-REFERENCE"), "{:?}", report.sums);
    }
}

/// A VMDK descriptor that names any file of the host.
#[test]
fn h13_extents_outside_the_folder() {
    let _alone = alone();
    for name in ["/etc/passwd", "../secret", "a/../../b", "/dev/sda"] {
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
             RW 2048 FLAT \"{name}\" 0\n"
        );
        let image = Sparse::from_bytes(text.as_bytes());
        let report = bounded(&image, &Options { allow_backing: true, ..options(None) }, name);
        assert_ne!(report.verdict, Verdict::Healthy, "{name}");
        assert!(report.sums.iter().any(|(code, ..)| *code == "VMDK-EXTENT-PATH"), "{name}: {:?}", report.sums);
    }
}

/// A guest wrote an image header into its raw disk.
#[test]
fn h15_raw_disks_that_begin_with_a_magic() {
    let _alone = alone();
    let image = plain_qcow2().image;
    let report = bounded(&image, &options(Some(Format::Raw)), "raw");
    assert_eq!(report.verdict, Verdict::Unsupported);
    assert!(report.sums.iter().any(|(code, ..)| *code == "RAW-LOOKS-LIKE-IMAGE"), "{:?}", report.sums);
    assert!(bounded(&image, &options(None), "probed").probed);
}

/// Backing file and data file stand in one list.
#[test]
fn h16_all_references_in_one_list() {
    let _alone = alone();
    let plan = qcow2::Plan { external: true, compressed: false, ..plain_plan_compressed() };
    let mut image = qcow2::build(&plan, &mut Dice::new(2)).image;
    image.set_number(8, 8, true, 480);
    image.set_number(16, 4, true, 4);
    image.put(480, b"base");
    let report = bounded(&image, &options(None), "two files");
    let roles: Vec<_> = report.references.iter().map(|reference| reference.role).collect();
    assert!(roles.contains(&"backing file") && roles.contains(&"data file"), "{roles:?}");
}

/// Offset 0 is the header's, never a table's.
#[test]
fn h17_tables_at_offset_zero() {
    let _alone = alone();
    damaged(Format::Qcow2, &[(48, 8, 0)]);
    damaged(Format::Qcow2, &[(40, 8, 0)]);
    let table = plain_qcow2().image.number(48, 8, true);
    damaged(Format::Qcow2, &[(table, 8, 0)]);
    damaged(Format::Qed, &[(40, 8, 0)]);
}

/// Shifts by what the file says; entries past every end.
#[test]
fn h18_shifts_and_entries_past_the_end() {
    let _alone = alone();
    for bits in [0, 8, 22, 31, 32, 63, 64, 0xffff_ffff] {
        damaged(Format::Qcow2, &[(20, 4, bits)]);
    }
    for order in [7, 31, 32, 63, 64, 0xffff_ffff] {
        damaged(Format::Qcow2, &[(96, 4, order)]);
    }
    damaged(Format::Parallels, &[(0x40, 4, 0xffff_ffff)]);
}

/// A listing of megabytes out of a full snapshot table of equal entries.
#[test]
fn h19_output_is_capped() {
    let _alone = alone();
    let base = plain_qcow2();
    let mut image = base.image.clone();
    let entry = image.bytes(image.number(64, 8, true), 72);
    let table = image.len.next_multiple_of(512);
    for index in 0..10_000 {
        image.put(table + index * 72, &entry);
    }
    image.set_len(image.len.next_multiple_of(512));
    image.set_number(60, 4, true, 10_000);
    image.set_number(64, 8, true, table);
    let report = bounded(&image, &options(None), "ten thousand snapshots with one L1 table");
    assert_ne!(report.verdict, Verdict::Healthy);
    let text: usize = report.findings.iter().map(|finding| finding.what.len()).sum();
    assert!(text < 100_000, "{text} bytes of findings");
}

// The shapes of image-check.md 6.2.

#[test]
fn an_l1_whose_entries_all_name_one_l2() {
    let _alone = alone();
    let base = plain_qcow2();
    let mut image = base.image.clone();
    let l1 = image.number(40, 8, true);
    let entry = (0..).map(|index| image.number(l1 + index * 8, 8, true)).find(|entry| *entry != 0).unwrap();
    let table = image.len.next_multiple_of(512);
    let entries = 100_000u64;
    for index in 0..entries {
        image.set_len(image.len.max(table + index * 8 + 8));
        image.set_number(table + index * 8, 8, true, entry);
    }
    image.set_len(image.len.next_multiple_of(512));
    image.set_number(36, 4, true, entries);
    image.set_number(40, 8, true, table);
    image.set_number(24, 8, true, entries * 32768);
    let report = bounded(&image, &options(None), "one L2 table, a hundred thousand times");
    assert_eq!(report.verdict, Verdict::Damaged);
}

#[test]
fn the_largest_disk_of_the_smallest_clusters() {
    let _alone = alone();
    let mut image = plain_qcow2().image;
    image.set_number(24, 8, true, !511);
    image.set_number(36, 4, true, 4 << 20);
    bounded(&image, &options(None), "the largest disk");
}

#[test]
fn compressed_entries_that_all_span_two_clusters() {
    let _alone = alone();
    let base = plain_qcow2();
    let mut image = base.image.clone();
    let l1 = image.number(40, 8, true);
    let l2 = (0..).map(|index| image.number(l1 + index * 8, 8, true)).find(|entry| *entry != 0).unwrap() & !(1 << 63);
    for index in 0..64 {
        image.set_number(l2 + index * 8, 8, true, (1 << 62) | (1 << 61) | (index * 513 + 511));
    }
    bounded(&image, &options(None), "streams over two clusters");
}

#[test]
fn empty_and_tiny_files() {
    let _alone = alone();
    for len in 0..2u64 {
        for format in Format::ALL.iter().copied().map(Some).chain([None]) {
            let report = bounded(&Sparse::new(len), &options(format), &format!("{len} bytes, {format:?}"));
            assert_ne!(report.verdict, Verdict::Healthy, "{len} bytes, {format:?}");
        }
    }
}

/// A length without any content: what claims to be there is bounded by what is.
#[test]
fn huge_files_of_holes() {
    let _alone = alone();
    for base in all_bases() {
        let mut image = base.without_data().image;
        image.set_len(1 << 34);
        bounded(&image, &options(Some(base.format)), &format!("{} of 16 GiB", base.name));
    }
}

#[test]
fn what_is_no_file_is_refused_by_name() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for (path, name) in
        [(dir.path(), "directory"), (&pipe, "pipe"), (&socket, "socket"), ("/dev/null".as_ref(), "device")]
    {
        let error = FileSource::open(path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(error.to_string().contains(name), "{error}");
    }
}

/// A file that becomes shorter while it is read.
#[test]
fn a_file_that_shrinks() {
    let _alone = alone();
    struct Shrinking<'s>(&'s Sparse, AtomicU64, u64);
    impl Source for Shrinking<'_> {
        fn name(&self) -> String {
            "shrinking".to_owned()
        }
        fn len(&self) -> u64 {
            self.0.len()
        }
        fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
            let end = if self.1.fetch_add(1, Ordering::Relaxed) < self.2 { self.0.len() } else { self.0.len() / 3 };
            let len = usize::try_from(end.saturating_sub(at)).unwrap().min(buf.len());
            self.0.read_at(at, &mut buf[..len])
        }
        fn next_data(&self, at: u64) -> Option<Range<u64>> {
            self.0.next_data(at)
        }
    }
    for base in all_bases() {
        for reads in [0, 1, 2, 3, 5, 8, 13, 21] {
            let source = Shrinking(&base.image, AtomicU64::new(0), reads);
            judge(&source, &options(Some(base.format)));
        }
    }
}

/// The medium gives an error for the n-th read, for every n: a finding, not the end.
#[test]
fn every_read_fails_once() {
    let _alone = alone();
    struct Failing<'s>(&'s Sparse, AtomicU64, u64);
    impl Source for Failing<'_> {
        fn name(&self) -> String {
            "failing".to_owned()
        }
        fn len(&self) -> u64 {
            self.0.len()
        }
        fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
            if self.1.fetch_add(1, Ordering::Relaxed) == self.2 {
                return Err(io::Error::from_raw_os_error(5));
            }
            self.0.read_at(at, buf)
        }
        fn next_data(&self, at: u64) -> Option<Range<u64>> {
            self.0.next_data(at)
        }
    }
    for base in all_bases() {
        for nth in 0..60 {
            let source = Failing(&base.image, AtomicU64::new(0), nth);
            judge(&source, &options(Some(base.format)));
            if source.1.into_inner() <= nth {
                break;
            }
        }
    }
}
