//! Holes of a sparse file are zeroes that need not be read. Skipping them changes nothing of what is said, and a table
//! of gigabytes in a hole costs no more than the bytes that are really there.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod generate;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use blkproof_check::source::Source;
use blkproof_check::watch::Silent;
use blkproof_check::{Format, Options, Report, check};
use generate::dice::Dice;
use generate::judge::options;
use generate::sparse::Sparse;
use generate::{Base, bases, mutate, seal};

/// An image that counts what is asked of it, and knows of its holes or does not.
struct Asked<'s> {
    image: &'s Sparse,
    holes: bool,
    bytes: AtomicU64,
    calls: AtomicU64,
}

impl<'s> Asked<'s> {
    fn new(image: &'s Sparse, holes: bool) -> Self {
        Self { image, holes, bytes: AtomicU64::new(0), calls: AtomicU64::new(0) }
    }
}

impl Source for Asked<'_> {
    fn name(&self) -> String {
        "asked".to_owned()
    }

    fn len(&self) -> u64 {
        self.image.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.image.read_at(at, buf)
    }

    fn next_data(&self, at: u64) -> Option<Range<u64>> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.holes { self.image.next_data(at) } else { (at < self.len()).then(|| at..self.len()) }
    }
}

/// Everything a report says.
fn said(report: &Report) -> String {
    let maps = (report.host.as_ref().map(|map| map.totals), report.guest.as_ref().map(|map| map.totals));
    format!(
        "{:#?}",
        (
            (report.verdict, &report.sums, &report.findings, &report.causes),
            (&report.lost, &report.numbers, &report.facts, &report.not_checked, maps)
        )
    )
}

fn bases() -> Vec<Base> {
    bases::all().into_iter().filter(|base| !matches!(base.format, Format::Qcow2 | Format::Raw)).collect()
}

fn same_with_and_without(image: &Sparse, options: &Options, what: &str) {
    let with = said(&check(&Asked::new(image, true), options, &Silent));
    let without = said(&check(&Asked::new(image, false), options, &Silent));
    if with != without {
        let differs = with.lines().zip(without.lines()).find(|(a, b)| a != b);
        panic!("{what}: with holes, and read as zeroes: {differs:#?}\n{with}\n{without}");
    }
}

#[test]
fn a_hole_says_what_zeroes_say() {
    for base in bases() {
        let data = Options { data: true, ..options(Some(base.format)) };
        same_with_and_without(&base.image, &data, &base.name);
        // Sectors of metadata that are gone: holes inside of tables, of any size, at any place.
        let sectors: Vec<u64> = base.without_data().image.sectors().map(|(at, _)| at).collect();
        for (index, first) in sectors.iter().enumerate().skip(1) {
            for count in [1, 2, 7] {
                let mut image = base.image.clone();
                for at in sectors.iter().skip(index).take(count) {
                    image.clear(*at);
                }
                same_with_and_without(&image, &data, &format!("{}: {count} sectors gone at {first:#x}", base.name));
            }
        }
        for seed in 0..200 {
            let mut dice = Dice::new(seed);
            let (mut image, what) = mutate::mutate(&base, &base, &mut dice);
            seal::seal(&mut image);
            same_with_and_without(&image, &data, &format!("{} seed {seed}: {what}", base.name));
        }
    }
}

/// A base with the numbers of a huge table set, the table's first entries as they are and the rest in a hole.
fn huge(format: Format, len: u64, numbers: &[(u64, usize, u64)]) -> Report {
    let base = bases().into_iter().find(|base| base.format == format).unwrap();
    let mut image = base.without_data().image;
    image.set_len(len);
    for (at, width, value) in numbers {
        image.set_number(*at, *width, base.big, *value);
    }
    seal::seal(&mut image);
    bounded(&image, format)
}

/// The bound bites: whoever does not know of the holes reads all of a table.
#[test]
fn tables_read_as_zeroes_are_out_of_bounds() {
    let base = bases().into_iter().find(|base| base.format == Format::Parallels).unwrap();
    let mut image = base.without_data().image;
    image.set_len(LONG);
    image.set_number(0x20, 4, false, 1 << 24);
    image.set_number(0x30, 4, false, 1 << 18);
    let source = Asked::new(&image, false);
    check(&source, &options(Some(Format::Parallels)), &Silent);
    assert!(source.bytes.into_inner() > 64 * image.sectors().count() as u64 * 512 + (4 << 20));
    bounded(&image, Format::Parallels);
}

/// Reads and questions about holes stay in proportion to what the file holds.
fn bounded(image: &Sparse, format: Format) -> Report {
    let held = image.sectors().count() as u64 * 512;
    let source = Asked::new(image, true);
    let report = check(&source, &options(Some(format)), &Silent);
    let (bytes, calls) = (source.bytes.into_inner(), source.calls.into_inner());
    assert!(bytes <= 64 * held + (4 << 20), "{}: {bytes} bytes were read, {held} are there", format.name());
    assert!(calls <= 4 * held / 512 + 4096, "{}: {calls} reads and questions for {held} bytes", format.name());
    report
}

fn errors(report: &Report, code: &str) -> u64 {
    report.sums.iter().filter(|(name, ..)| *name == code).map(|(.., sum)| sum.errors).sum()
}

const LONG: u64 = 1 << 34;

/// An entry of 0 names block 0: half a milliard of entries that all name it.
#[test]
fn a_vdi_map_of_two_gibibytes() {
    let blocks = 0x1fff_ff80u64;
    let data = (blocks * 4 + 4096).next_multiple_of(512);
    for size in [blocks << 20, (blocks << 20) - 512, (blocks << 20) / 2 + 4096, 3 << 20] {
        let report =
            huge(Format::Vdi, LONG, &[(0x180, 4, blocks), (0x158, 4, data), (0x170, 8, size), (0x154, 4, 512)]);
        assert!(errors(&report, "VDI-MAP-ZEROED") > blocks - 4096, "{size:#x}: {:?}", report.sums);
        assert!(report.lost.bytes >= size / 3, "{:#x} of {size:#x} are lost", report.lost.bytes);
    }
    // The data begins past the end of the file: every entry leads there.
    let report = huge(
        Format::Vdi,
        1 << 31,
        &[(0x180, 4, blocks), (0x158, 4, 0xffff_fe00), (0x170, 8, blocks << 20), (0x154, 4, 512)],
    );
    assert!(errors(&report, "VDI-MAP-PAST-END") > (1 << 29) - 4096, "{:?}", report.sums);
}

/// An entry of 0 is sector 0: the headers.
#[test]
fn a_vhd_table_of_gibibytes() {
    for (entries, size) in [(0xf000_0000u64, 2040u64 << 30), (0xf000_0000, 0xf000_0000 << 9)] {
        let base = bases().into_iter().find(|base| base.format == Format::Vhd).unwrap();
        let header = base.image.number(16, 8, true);
        let mut image = base.without_data().image;
        let old = image.len - 512;
        let footer = image.bytes(old, 512);
        image.put(old, &[0; 512]);
        image.set_len(LONG);
        for at in [0, LONG - 512] {
            image.put(at, &footer);
            image.set_number(at + 48, 8, true, size);
        }
        image.set_number(header + 28, 4, true, entries);
        image.set_number(header + 32, 4, true, 512);
        seal::seal(&mut image);
        let report = bounded(&image, Format::Vhd);
        let inside = errors(&report, "VHD-BAT-INSIDE");
        let used = (size / 512).min(entries);
        assert!(inside > used - 4096 && inside <= used, "{inside} of {used}: {:?}", report.sums);
        assert_eq!(errors(&report, "VHD-BAT-STRAY") > 0, entries > used, "{:?}", report.sums);
        // The last hole of the table is one stretch of the cause, however long it is.
        let stretches = report.causes.iter().filter(|cause| cause.what.contains("overwritten"));
        let most = stretches.map(|cause| cause.errors).max().unwrap();
        assert!(most > used - (4 << 20), "{:#?}", report.causes);
    }
}

/// Not allocated, all of them.
#[test]
fn a_parallels_bat_of_two_gibibytes() {
    let entries = (1u64 << 29) - 1;
    let report = huge(Format::Parallels, LONG, &[(0x20, 4, entries), (0x30, 4, 0x40_0000), (0x24, 8, entries * 128)]);
    assert!(report.guest.unwrap().totals.iter().sum::<u64>() > 0);
}

/// Tables of a gibibyte, in clusters of 64 MiB.
#[test]
fn qed_tables_of_a_gibibyte() {
    let mut image = bases().into_iter().find(|base| base.format == Format::Qed).unwrap().without_data().image;
    let cluster = 64u64 << 20;
    for at in image.sectors().map(|(at, _)| at).filter(|at| *at > 0).collect::<Vec<_>>() {
        image.clear(at);
    }
    image.set_len(1 << 42);
    for (at, width, value) in [(4, 4, cluster), (8, 4, 16), (12, 4, 1), (40, 8, cluster), (48, 8, 1 << 60)] {
        image.set_number(at, width, false, value);
    }
    // 512 tables that overlap, none of which was ever written to.
    for index in 0..512u64 {
        image.set_number(cluster + index * 8, 8, false, cluster * (17 + index));
    }
    bounded(&image, Format::Qed);
}

/// A directory full of tables in holes, as every new image of a large disk has it.
#[test]
fn vmdk_tables_in_holes() {
    let base = bases().into_iter().find(|base| base.format == Format::Vmdk && base.image.number(44, 4, false) == 512);
    let mut image = base.unwrap().without_data().image;
    let (tables, first) = (1u64 << 18, 1u64 << 30);
    let directory = image.len.next_multiple_of(1 << 20);
    image.set_len(LONG);
    for index in 0..tables {
        image.set_number(directory + index * 4, 4, false, (first + index * 2048) / 512);
    }
    let grain = image.number(20, 8, false);
    image.set_number(12, 8, false, tables * 512 * grain);
    image.set_number(56, 8, false, directory / 512);
    image.set_number(48, 8, false, 0);
    image.set_number(8, 4, false, 1);
    bounded(&image, Format::Vmdk);
}
