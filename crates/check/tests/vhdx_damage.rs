//! VHDX images that QEMU made, damaged one thing at a time: what is found, the verdict, what of the guest is lost, and
//! what `qemu-img check` says about the same file.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]
#![allow(clippy::single_range_in_vec_init)]

mod patched;
mod vhdx_image;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::OnceLock;

use blkproof_check::catalogue;
use blkproof_check::code::Severity;
use blkproof_check::map::GuestState;
use blkproof_check::source::{FileSource, Source};
use blkproof_check::watch::Silent;
use blkproof_check::{Assume, Format, Options, Report, Verdict, check};
use patched::Patched;
use vhdx_image::*;

/// First bytes of the identifiers of metadata items.
const PARAMETERS: u32 = 0xcaa1_6737;
const DISK_SIZE: u32 = 0x2fa5_4224;

/// 40 blocks of 1 MiB, four of them written.
fn dynamic() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let writes = ["write -q -P 1 0 64k", "write -q -P 2 3M 64k", "write -q -P 3 4M 64k", "write -q -P 4 39M 64k"];
        Image::make("block_size=1M,log_size=1M", "40M", &writes)
    })
}

/// Every block in the file.
fn fixed() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| Image::make("block_size=1M,log_size=1M,subformat=fixed", "4M", &[]))
}

/// The same disk with one more block whose entry is in the log only.
fn dirty() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| Image::copy(&dynamic().path).crash(&["write -q -P 9 7M 64k"]))
}

/// As [`dirty`], with three entries in the log, all of them needed; `at` is where the second one begins in the ring.
fn log_of_three(at: u64) -> Image {
    let image = Image::copy(&dirty().path);
    let mut page = image.read(LOG + 4096, 4096);
    let descriptor = image.read(LOG + 64, 32);
    page[..8].copy_from_slice(&descriptor[8..16]);
    page[4092..].copy_from_slice(&descriptor[4..8]);
    assert_eq!(image.log_entries(), [LOG], "QEMU begins each opening at the start of the log");
    let first = (at + MIB - 8192) % MIB;
    image.write_log(first, 1, first, TABLE, &page);
    if first > 0 {
        image.put(LOG, &[0; 8]);
    }
    image.log_block(at, 2, first, &mut page, 8);
    image.log_block((at + 8192) % MIB, 3, first, &mut page, 9);
    image
}

fn dirty_3() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| log_of_three(8192))
}

/// The same log, its second entry over the end of the ring.
fn dirty_around() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| log_of_three(MIB - 4096))
}

/// 512 blocks of 16 MiB: there is a sector bitmap entry after 256 of them. Blocks 254 and 255 were written before
/// block 0.
fn chunks() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let writes = ["write -q -P 1 4064M 64k", "write -q -P 2 4080M 64k", "write -q -P 3 0 64k"];
        Image::make("block_size=16M,log_size=1M", "8G", &writes)
    })
}

/// What QEMU before 8.0 made of the table's first sector when block 0 was written.
fn shift(image: &Image) {
    let mut page = image.read(TABLE, 4096);
    let first = page[..8].to_vec();
    page[..8].copy_from_slice(&2u64.to_le_bytes());
    page.truncate(4088);
    image.put(TABLE, &first);
    image.put(TABLE + 8, &page);
}

struct Case {
    name: &'static str,
    base: fn() -> &'static Image,
    damage: fn(&Image),
    /// Codes that are found, with their severity, and no others.
    codes: &'static [(&'static str, Severity)],
    verdict: Verdict,
    lost: &'static [Range<u64>],
    /// What `qemu-img check` exits with.
    qemu: i32,
    /// Why it says something else, where it does.
    differs: &'static str,
}

const CORRUPTION: Severity = Severity::Corruption;
const WARNING: Severity = Severity::Warning;
const NOTE: Severity = Severity::Note;
const NONE: &[Range<u64>] = &[];

const fn block(index: u64) -> Range<u64> {
    index * MIB..(index + 1) * MIB
}

/// Says nothing against the image, but will not open it.
const READ_ONLY: &str = "QEMU replays a log in the file only, and check opens it for reading";
const ONE_COPY: &str = "QEMU reads the other copy and says nothing";

#[rustfmt::skip]
const CASES: &[Case] = &[
    Case { name: "sound, dynamic", base: dynamic, damage: |_| {}, codes: &[], verdict: Verdict::Healthy, lost: NONE, qemu: 0, differs: "" },
    Case { name: "sound, fixed", base: fixed, damage: |_| {}, codes: &[], verdict: Verdict::Healthy, lost: NONE, qemu: 0, differs: "" },
    Case { name: "sound, with sector bitmap entries", base: chunks, damage: |_| {}, codes: &[], verdict: Verdict::Healthy, lost: NONE, qemu: 0, differs: "" },
    Case { name: "identifier", base: dynamic, damage: |image| image.put(0, &[0; 8]),
        codes: &[("VHDX-IDENT", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: 1, differs: "" },
    // Headers.
    Case { name: "a bit of the older header", base: dynamic, damage: |image| image.flip(image.headers().1 + 100),
        codes: &[("VHDX-HEADER-COPY", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: 0, differs: "" },
    Case { name: "a bit of the current header", base: dynamic, damage: |image| image.flip(image.headers().0 + 100),
        codes: &[("VHDX-HEADER-COPY", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: 0, differs: "" },
    Case { name: "a header of version 2", base: dynamic, damage: |image| { let (_, old) = image.headers(); image.put(old + 66, &[2]); image.seal(old, 4096); },
        codes: &[("VHDX-HEADER-COPY", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: 0, differs: "" },
    Case { name: "both headers", base: dynamic, damage: |image| for at in HEADERS { image.put(at, &[0; 4096]) },
        codes: &[("VHDX-HEADER-NONE", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: 1, differs: "" },
    Case { name: "two different headers of one number", base: dynamic,
        damage: |image| { let number = image.read(image.headers().1 + 8, 8); image.edit_header(8, &number); },
        codes: &[("VHDX-HEADER-AMBIGUOUS", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: 1, differs: "" },
    Case { name: "two equal headers of one number", base: dynamic,
        damage: |image| { let (current, other) = image.headers(); let bytes = image.read(current, 4096); image.put(other, &bytes); },
        codes: &[], verdict: Verdict::Healthy, lost: NONE, qemu: 0, differs: "" },
    // Log.
    Case { name: "a log in the middle of a megabyte", base: dynamic, damage: |image| image.edit_header(72, &(MIB + 4096).to_le_bytes()),
        codes: &[("VHDX-LOG-PLACE", CORRUPTION), ("VHDX-REGION-OVERLAP", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: 1, differs: "" },
    Case { name: "a log of version 1 in use", base: dirty, damage: |image| image.edit_header(64, &[1]),
        codes: &[("VHDX-LOG-VERSION", CORRUPTION), ("VHDX-BLOCK-ORPHAN", NOTE)], verdict: Verdict::Damaged, lost: NONE, qemu: 1, differs: "" },
    Case { name: "a log in use without an entry", base: dynamic, damage: |image| image.edit_header(48, &[7; 16]),
        codes: &[("VHDX-LOG-EMPTY", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: 0, differs: "" },
    Case { name: "a pending log", base: dirty, damage: |_| {},
        codes: &[("VHDX-LOG-PENDING", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: 1, differs: READ_ONLY },
    Case { name: "a pending log of three entries", base: dirty_3, damage: |_| {},
        codes: &[("VHDX-LOG-PENDING", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: 1, differs: READ_ONLY },
    Case { name: "a pending log that goes on at the start of the ring", base: dirty_around, damage: |_| {},
        codes: &[("VHDX-LOG-PENDING", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: 1, differs: READ_ONLY },
    Case { name: "a pending log that lost its data sector", base: dirty, damage: |image| { let at = image.log_entries()[0]; image.put(at + 4096, &[0; 4096]); },
        codes: &[("VHDX-LOG-TORN", NOTE), ("VHDX-BLOCK-ORPHAN", NOTE)], verdict: Verdict::Healthy, lost: NONE, qemu: 0, differs: "" },
    Case { name: "a bit of a pending entry", base: dirty, damage: |image| { let at = image.log_entries()[0]; image.flip(at + 4096 + 500); },
        codes: &[("VHDX-LOG-ENTRY", CORRUPTION), ("VHDX-BLOCK-ORPHAN", NOTE)], verdict: Verdict::Damaged, lost: NONE, qemu: 0, differs: "QEMU takes every entry it can not verify for none" },
    Case { name: "a gap in the log", base: dirty_3,
        damage: |image| {
            // The first entry needs itself only: a replay stops there.
            image.put(image.log_entries()[1] + 4096, &[0; 4096]);
        },
        codes: &[("VHDX-LOG-GAP", CORRUPTION), ("VHDX-LOG-PENDING", WARNING)], verdict: Verdict::Damaged, lost: NONE, qemu: 1, differs: "" },
    Case { name: "a file that lost its end after it was logged", base: dirty, damage: |image| { let at = image.log_entries()[0]; image.edit_log(at, 48, &(64 * MIB).to_le_bytes()); },
        codes: &[("VHDX-LOG-PENDING", WARNING), ("VHDX-LOG-TRUNCATED", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: 1, differs: "" },
    Case { name: "a log that makes the file longer", base: dirty, damage: |image| { let at = image.log_entries()[0]; image.edit_log(at, 56, &(64 * MIB).to_le_bytes()); },
        codes: &[("VHDX-LOG-PENDING", WARNING), ("VHDX-LOG-GROWS", NOTE)], verdict: Verdict::Healthy, lost: NONE, qemu: 1, differs: READ_ONLY },
    Case { name: "a log that replaces a header", base: dirty, damage: |image| { let at = image.log_entries()[0]; image.edit_log(at, 64 + 16, &HEADERS[0].to_le_bytes()); },
        codes: &[("VHDX-LOG-PENDING", WARNING), ("VHDX-LOG-TARGET", CORRUPTION), ("VHDX-BLOCK-ORPHAN", NOTE)], verdict: Verdict::Damaged, lost: NONE, qemu: 1, differs: "" },
    // Region tables.
    Case { name: "the first region table", base: dynamic, damage: |image| image.flip(REGIONS[0] + 40),
        codes: &[("VHDX-REGION-COPY", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: 1, differs: "" },
    Case { name: "the second region table", base: dynamic, damage: |image| image.flip(REGIONS[1] + 40),
        codes: &[("VHDX-REGION-COPY", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: 0, differs: ONE_COPY },
    Case { name: "both region tables", base: dynamic, damage: |image| for at in REGIONS { image.put(at, &[0; 4096]) },
        codes: &[("VHDX-REGION-NONE", CORRUPTION), ("VHDX-BAT-FOUND", WARNING)], verdict: Verdict::Damaged, lost: NONE, qemu: 1, differs: "" },
    Case { name: "two different region tables", base: dynamic, damage: |image| { image.put(REGIONS[1] + 16 + 28, &[1]); image.seal(REGIONS[1], 65_536); },
        codes: &[("VHDX-REGION-DIFFERS", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: 0, differs: ONE_COPY },
    Case { name: "a region that is no whole megabyte", base: dynamic, damage: |image| image.edit_regions(16 + 24, &(MIB as u32 - 4096).to_le_bytes()),
        codes: &[("VHDX-REGION-PLACE", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: 0, differs: "QEMU does not look at the length of regions" },
    Case { name: "the block table reaches into the metadata", base: dynamic, damage: |image| image.edit_regions(16 + 24, &(2 * MIB as u32).to_le_bytes()),
        codes: &[("VHDX-REGION-OVERLAP", CORRUPTION), ("VHDX-BAT-STRAY", WARNING)], verdict: Verdict::Damaged, lost: NONE, qemu: 1, differs: "" },
    Case { name: "a region named twice", base: dynamic,
        damage: |image| { let entry = image.read(REGIONS[0] + 16, 32); image.edit_regions(16 + 64, &entry); image.edit_regions(8, &[3]); },
        codes: &[("VHDX-REGION-TWICE", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: 1, differs: "QEMU refuses what the specification forbids and nothing depends on" },
    Case { name: "one region only", base: dynamic, damage: |image| image.edit_regions(8, &[1]),
        codes: &[("VHDX-REGION-MISSING", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: 1, differs: "" },
    Case { name: "an unknown region that is required", base: dynamic,
        damage: |image| {
            let at = image.len();
            image.set_len(at + MIB);
            image.edit_regions(16 + 64, &[5; 16]);
            image.edit_regions(16 + 64 + 16, &at.to_le_bytes());
            image.edit_regions(16 + 64 + 24, &[0, 0, 16, 0, 1]);
            image.edit_regions(8, &[3]);
        },
        codes: &[("VHDX-REGION-UNKNOWN", WARNING)], verdict: Verdict::Undecided, lost: NONE, qemu: 1, differs: "" },
    // Metadata.
    Case { name: "no metadata table", base: dynamic, damage: |image| image.put(META, &[0; 8]),
        codes: &[("VHDX-META-TABLE", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: 1, differs: "" },
    Case { name: "an item inside the table", base: dynamic, damage: |image| image.put(image.item(DISK_SIZE).0 + 16, &16u32.to_le_bytes()),
        codes: &[("VHDX-META-ITEM", CORRUPTION), ("VHDX-META-MISSING", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: 1, differs: "" },
    Case { name: "an item with another name", base: dynamic, damage: |image| image.flip(image.item(DISK_SIZE).0),
        codes: &[("VHDX-META-UNKNOWN", WARNING), ("VHDX-META-MISSING", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: 1, differs: "" },
    Case { name: "blocks of 3 MiB", base: dynamic, damage: |image| image.put(image.item(PARAMETERS).1, &(3 * MIB as u32).to_le_bytes()),
        codes: &[("VHDX-META-VALUE", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: 1, differs: "" },
    Case { name: "blocks of 0 bytes", base: dynamic, damage: |image| image.put(image.item(PARAMETERS).1, &[0; 4]),
        codes: &[("VHDX-META-VALUE", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: 1, differs: "" },
    Case { name: "a parent without a locator", base: dynamic, damage: |image| image.put(image.item(PARAMETERS).1 + 4, &[2]),
        codes: &[("VHDX-META-PARENT", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: 1, differs: "QEMU does not read disks with a parent" },
    // Block table.
    Case { name: "a disk larger than its table", base: dynamic, damage: |image| image.put(image.item(DISK_SIZE).1, &(1u64 << 40).to_le_bytes()),
        codes: &[("VHDX-BAT-SHORT", CORRUPTION)], verdict: Verdict::Damaged, lost: &[131_041 * MIB..1 << 40], qemu: 1, differs: "" },
    Case { name: "state 4", base: dynamic, damage: |image| image.set_entry(5, 4),
        codes: &[("VHDX-BAT-STATE", CORRUPTION)], verdict: Verdict::Damaged, lost: &[block(5)], qemu: 0, differs: "QEMU looks at entries of state 6 only" },
    Case { name: "state 5", base: dynamic, damage: |image| image.set_entry(5, 5),
        codes: &[("VHDX-BAT-STATE-OLD", NOTE)], verdict: Verdict::Healthy, lost: NONE, qemu: 0, differs: "" },
    Case { name: "state 7 without a parent", base: dynamic, damage: |image| image.set_entry(3, image.entry(3) | 7),
        codes: &[("VHDX-BAT-STATE", CORRUPTION)], verdict: Verdict::Damaged, lost: &[block(3)], qemu: 0, differs: "QEMU looks at entries of state 6 only" },
    Case { name: "reserved bits", base: dynamic, damage: |image| image.set_entry(3, image.entry(3) | 0x100),
        codes: &[("VHDX-BAT-RESERVED", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: 0, differs: "" },
    Case { name: "entries past the end", base: dynamic, damage: |image| for index in 10..12 { image.set_entry(index, 1 << 40 | 6) },
        codes: &[("VHDX-BAT-PAST-END", CORRUPTION)], verdict: Verdict::Damaged, lost: &[10 * MIB..12 * MIB], qemu: 2, differs: "" },
    Case { name: "cut in the last block", base: dynamic, damage: |image| image.set_len((image.entry(39) & !7) + MIB / 4),
        codes: &[("VHDX-BAT-PAST-END", CORRUPTION)], verdict: Verdict::Damaged, lost: &[39 * MIB + MIB / 4..40 * MIB], qemu: 2, differs: "" },
    Case { name: "two blocks in one place", base: dynamic, damage: |image| image.set_entry(4, image.entry(3)),
        codes: &[("VHDX-BAT-OVERLAP", CORRUPTION), ("VHDX-BLOCK-ORPHAN", NOTE)], verdict: Verdict::Damaged, lost: &[3 * MIB..5 * MIB], qemu: 0, differs: "QEMU never compares entries with each other" },
    Case { name: "a block in the headers", base: dynamic, damage: |image| image.set_entry(4, 6),
        codes: &[("VHDX-BAT-OVERLAP", CORRUPTION), ("VHDX-BLOCK-ORPHAN", NOTE)], verdict: Verdict::Damaged, lost: &[block(4)], qemu: 0, differs: "QEMU compares blocks with regions, not with the header section" },
    Case { name: "a block in the log", base: dynamic, damage: |image| image.set_entry(4, LOG | 6),
        codes: &[("VHDX-BAT-OVERLAP", CORRUPTION), ("VHDX-BLOCK-ORPHAN", NOTE)], verdict: Verdict::Damaged, lost: &[block(4)], qemu: 2, differs: "" },
    Case { name: "room kept where another block is", base: dynamic, damage: |image| image.set_entry(5, image.entry(3) & !7 | 3),
        codes: &[("VHDX-BAT-STALE", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: 0, differs: "" },
    Case { name: "an entry behind the last one", base: dynamic, damage: |image| image.set_entry(60, image.entry(3)),
        codes: &[("VHDX-BAT-STRAY", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: 0, differs: "" },
    Case { name: "the table zeroed under a fixed disk", base: fixed, damage: |image| image.put(TABLE, &[0; 16]),
        codes: &[("VHDX-BAT-ZEROED", CORRUPTION)], verdict: Verdict::Damaged, lost: &[0..2 * MIB], qemu: 0, differs: "zero is a legal entry" },
    Case { name: "a sector of the table zeroed", base: chunks, damage: |image| image.put(TABLE + 1536, &[0; 512]),
        codes: &[("VHDX-BAT-ZEROED", CORRUPTION), ("VHDX-BLOCK-ORPHAN", NOTE)], verdict: Verdict::Damaged, lost: &[192 * 16 * MIB..256 * 16 * MIB], qemu: 0, differs: "zero is a legal entry" },
    Case { name: "a sector of the table zeroed that named no block", base: chunks, damage: |image| image.put(TABLE + 2560, &[0; 512]),
        codes: &[("VHDX-BAT-ZEROED", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: 0, differs: "" },
    Case { name: "shifted as QEMU before 8.0 did", base: chunks, damage: shift,
        codes: &[("VHDX-BAT-SHIFTED", CORRUPTION), ("VHDX-BITMAP-STATE", WARNING), ("VHDX-BLOCK-ORPHAN", NOTE)], verdict: Verdict::Damaged,
        lost: &[16 * MIB..511 * 16 * MIB], qemu: 0, differs: "QEMU does not look at sector bitmap entries" },
    Case { name: "a bitmap entry of state 3", base: chunks, damage: |image| image.set_entry(256, 3),
        codes: &[("VHDX-BITMAP-STATE", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: 0, differs: "" },
    Case { name: "partly in the parent, without a bitmap", base: dynamic,
        damage: |image| { image.put(image.item(PARAMETERS).1 + 4, &[2]); image.set_entry(3, image.entry(3) | 7); },
        codes: &[("VHDX-META-PARENT", WARNING), ("VHDX-BITMAP-MISSING", CORRUPTION)], verdict: Verdict::Damaged, lost: &[block(3)], qemu: 1, differs: "" },
];

fn options() -> Options {
    Options { format: Some(Format::Vhdx), cells: 64, ..Options::default() }
}

/// A check, with what holds of each report whatever is wrong with the image.
fn checked(image: &dyn Source, options: &Options, name: &str) -> Report {
    let report = check(image, options, &Silent);
    if let Some(host) = &report.host {
        assert_eq!(host.totals.iter().sum::<u64>(), host.len, "{name}: every byte of the file has one class: {host:?}");
        let grid = host.grid.as_ref().map(|grid| grid.cells.iter().flatten().sum::<u64>());
        assert!(grid.is_none_or(|sum| sum == host.len), "{name}: the picture shows the file");
    }
    if let Some(guest) = &report.guest {
        assert_eq!(
            guest.totals.iter().sum::<u64>(),
            guest.size,
            "{name}: every byte of the disk has one state: {guest:?}"
        );
    }
    for pair in report.lost.ranges.windows(2) {
        assert!(pair[0].end < pair[1].start, "{name}: lost ranges are sorted and apart");
    }
    report
}

fn check_file(image: &Image, name: &str) -> Report {
    checked(&FileSource::open(&image.path).unwrap(), &options(), name)
}

#[test]
fn each_damage_is_named() {
    let mut raised = BTreeSet::new();
    let mut wrong = Vec::new();
    for case in CASES {
        let image = Image::copy(&(case.base)().path);
        (case.damage)(&image);
        let report = check_file(&image, case.name);
        let mut got: Vec<_> = report.sums.iter().map(|(name, severity, _)| (*name, *severity)).collect();
        let mut want = case.codes.to_vec();
        got.sort_unstable();
        want.sort_unstable();
        let qemu = image.qemu_check(&[]);
        if (&got, report.verdict, &report.lost.ranges[..], qemu) != (&want, case.verdict, case.lost, case.qemu) {
            let words: Vec<_> = report.findings.iter().map(|finding| &finding.what).collect();
            wrong.push(format!(
                "{}: {got:?} {:?} {:x?} qemu {qemu} {words:#?}",
                case.name, report.verdict, report.lost.ranges
            ));
        }
        let same = match qemu {
            0 => case.verdict == Verdict::Healthy,
            _ => matches!(case.verdict, Verdict::Damaged | Verdict::Undecided),
        };
        if same != case.differs.is_empty() {
            wrong.push(format!("{}: qemu {qemu}: a difference has a reason, and only that", case.name));
        }
        raised.extend(got.into_iter().map(|(name, _)| name));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let all: BTreeSet<_> = catalogue::all().map(|code| code.name).filter(|name| name.starts_with("VHDX-")).collect();
    assert_eq!(raised, all, "every code is raised by some case");
}

/// What a disk looks like with its log replayed in memory is what it looks like after QEMU replayed it in the file.
#[test]
fn a_log_replayed_in_memory_is_a_log_replayed() {
    for (name, base, blocks) in
        [("one entry", dirty(), 5), ("three", dirty_3(), 7), ("over the ring's end", dirty_around(), 7)]
    {
        let ours = check_file(base, name);
        let unreplayed = Image::copy(&base.path);
        unreplayed.edit_header(48, &[0; 16]);
        let ignored = check_file(&unreplayed, name).numbers.allocated_clusters;
        assert_eq!(ignored, Some(4), "{name}: the table itself knows nothing of the new blocks");
        assert_eq!(ours.numbers.allocated_clusters, Some(blocks), "{name}");

        let replayed = Image::copy(&base.path);
        assert_eq!(replayed.qemu_check(&["-r", "all"]), 0, "{name}: QEMU replays it");
        let theirs = check_file(&replayed, name);
        assert_eq!((theirs.verdict, theirs.findings.len()), (Verdict::Healthy, 0), "{name}: {:?}", theirs.findings);
        assert_eq!(theirs.numbers.allocated_clusters, Some(blocks), "{name}");
        let totals = |report: &Report| report.guest.as_ref().map(|guest| (guest.totals, guest.grid.clone()));
        assert_eq!(totals(&ours), totals(&theirs), "{name}: the same disk");
    }
}

/// Entries of another opening, and whole ones that are older than the active sequence, are not replayed.
#[test]
fn stale_entries_stay_where_they_are() {
    let image = Image::copy(&dirty_3().path);
    let [first, second, third] = image.log_entries()[..] else { panic!("three entries") };
    // The last one needs itself only: then it alone is replayed, which holds the same page anyway.
    image.edit_log(third, 12, &((third - LOG) as u32).to_le_bytes());
    let report = check_file(&image, "tail");
    assert!(
        report.facts.iter().any(|(name, value)| *name == "log" && value.contains("1 entries replayed")),
        "{:?}",
        report.facts
    );
    assert_eq!(report.numbers.allocated_clusters, Some(7));
    // The last two belong to another opening: only the first counts.
    for entry in [second, third] {
        image.edit_log(entry, 32, &[0x77; 16]);
    }
    let report = check_file(&image, "other opening");
    assert_eq!((report.verdict, report.numbers.allocated_clusters), (Verdict::Healthy, Some(5)));
    // None does.
    image.edit_log(first, 32, &[0x77; 16]);
    let report = check_file(&image, "no entry");
    assert_eq!(report.numbers.allocated_clusters, Some(4));
    assert!(report.sums.iter().any(|(name, ..)| *name == "VHDX-LOG-EMPTY"));
}

/// The words of the findings people see most.
#[test]
fn findings_say_what_where_and_whose() {
    let image = Image::copy(&dynamic().path);
    let shared = image.entry(3);
    for (index, entry) in [(4, shared), (10, 1 << 40 | 6), (11, 1 << 41 | 6)] {
        image.set_entry(index, entry);
    }
    let report = check_file(&image, "words");
    let words: Vec<_> = report.findings.iter().map(|finding| finding.what.as_str()).collect();
    let start = shared & !7;
    assert_eq!(
        words,
        [
            "block table entries 10..12 (blocks 10..12, the first is 0x0000010000000006): past the end of the file (0xc00000)"
                .to_owned(),
            format!("block 3 and block 4 both claim {start:#x}..{:#x}", start + MIB),
            "no block's entry names 0xa00000..0xb00000, which holds data up to 0xa00000 or farther".to_owned(),
        ]
    );
    let owners: Vec<_> = report.findings[1].owners.iter().map(|owner| owner.guest.clone()).collect();
    assert_eq!(owners, [Some(block(3)), Some(block(4))]);
    let guest = report.guest.unwrap();
    assert_eq!(guest.bytes(GuestState::Damaged), 4 * MIB);
}

/// What lies in the table now is named as the cause.
#[test]
fn an_overwritten_table_is_told_by_what_lies_there() {
    let image = Image::copy(&dynamic().path);
    image.put(TABLE, &"Nov 21 17:20:58 host kernel: usb 1-1: new device\n".as_bytes().repeat(6)[..288]);
    let report = check_file(&image, "text");
    let cause = &report.causes[0];
    assert!(cause.what.contains("overwritten") && cause.what.contains("text"), "{:#?}", report.causes);
    assert_eq!((cause.errors, &cause.host[..], report.lost.bytes >= 4 * MIB), (36, &[TABLE..TABLE + 288][..], true));
}

/// The shifted sector, told as what it is.
#[test]
fn a_shifted_sector_is_recognised() {
    let image = Image::copy(&chunks().path);
    shift(&image);
    // As a QEMU that had the fault names itself.
    let creator: Vec<u8> = "QEMU v7.2.0\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
    image.put(8, &creator);
    let report = check_file(&image, "shifted");
    let finding = report.findings.iter().find(|finding| finding.code.name == "VHDX-BAT-SHIFTED").unwrap();
    assert_eq!(finding.confidence, blkproof_check::finding::Confidence::Certain);
    assert!(finding.what.starts_with("entry 256 is no block's but names one at 0x"), "{}", finding.what);
    assert!(report.causes.iter().any(|cause| cause.what.contains("QEMU before 8.0")), "{:?}", report.causes);
}

/// What header and tables can not say any more is found, or taken from the caller.
#[test]
fn lost_regions_are_found_and_lost_values_assumed() {
    let sound = check_file(dynamic(), "sound").guest.unwrap().totals;
    let image = Image::copy(&dynamic().path);
    image.put(0, &vec![0; MIB as usize]);
    let report = check_file(&image, "the first megabyte is gone");
    assert_eq!(report.verdict, Verdict::Damaged);
    assert_eq!(report.guest.map(|guest| guest.totals), Some(sound), "the disk is found by its shape");

    image.put(META, &[0; 128]);
    let report = check_file(&image, "the metadata are gone too");
    assert!(report.guest.is_none(), "without block size and size nothing can be mapped");
    let assume = Assume::parse("block_size=1M,size=40M,table_offset=0x200000").unwrap();
    let options = Options { assume, ..options() };
    let report = checked(&FileSource::open(&image.path).unwrap(), &options, "assumed");
    assert_eq!(report.guest.map(|guest| guest.totals), Some(sound));
}

/// Every field of every structure with extreme values, checksums wrong and right: a verdict each, within little memory.
#[test]
fn hostile_fields_end_in_a_verdict() {
    let image = dirty();
    let base = image.read(0, 4 * MIB as usize);
    let (header, other) = image.headers();
    let entry = image.log_entries()[0];
    let structures = [
        (header, 80, 4096),
        (other, 80, 4096),
        (REGIONS[0], 16 + 64, 65_536),
        (entry, 64 + 32, image.u32(entry + 8) as usize),
        (META, 32 + 5 * 32, 0),
        (META + 65_536, 48, 0),
        (TABLE, 64, 0),
    ];
    let options = Options { memory: 2 << 20, cells: 16, ..options() };
    let mut images = 0;
    for (start, len, sealed) in structures {
        for at in (start..start + len).step_by(4) {
            for value in [0u64, 0x7fff_ffff_0000_0003, u64::MAX, u64::MAX << 20 | 6] {
                let (wide, narrow) = (value.to_le_bytes().to_vec(), (value as u32).to_le_bytes().to_vec());
                for bytes in [wide, narrow].into_iter().skip(usize::from(at % 8 != 0)) {
                    let mut image = Patched { base: &base, edits: vec![(at, bytes)], len: image.len() };
                    let report = checked(&image, &options, &image.name());
                    assert!(report.format.is_some());
                    images += 1;
                    if sealed == 0 {
                        continue;
                    }
                    let mut whole = vec![0; sealed];
                    image.read_at(start, &mut whole).unwrap();
                    whole[4..8].fill(0);
                    image.edits.push((start + 4, crc32c::crc32c(&whole).to_le_bytes().to_vec()));
                    if start == REGIONS[0] {
                        // The other one out of the way.
                        image.edits.push((REGIONS[1], vec![0; 4]));
                    }
                    checked(&image, &options, &image.name());
                    images += 1;
                }
            }
        }
    }
    assert!(images > 1200, "{images}");
}

/// Single bytes of the metadata changed at random: where QEMU says that the image is damaged, so do we.
#[test]
fn whatever_qemu_calls_damaged_we_call_damaged() {
    let count: u64 = std::env::var("BLKPROOF_CHECK_IMAGES").ok().and_then(|count| count.parse().ok()).unwrap_or(150);
    let image = Image::copy(&dynamic().path);
    let mut state = 0x51f0_u64;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let places = [
        (0, 8),
        (HEADERS[0], 80),
        (HEADERS[1], 80),
        (REGIONS[0], 80),
        (REGIONS[1], 80),
        (TABLE, 320),
        (TABLE, 320),
        (META, 192),
        (META + 65_536, 40),
    ];
    for _ in 0..count {
        let (start, len) = places[next(places.len() as u64) as usize];
        let width = 1 << next(4);
        let at = start + next(len) / width * width;
        let old = image.read(at, width as usize);
        let new: Vec<u8> = (0..width).map(|_| [0, 1, 6, 0xff, 0x80, next(256) as u8][next(6) as usize]).collect();
        image.put(at, &new);
        let sealed = next(2) == 0 && HEADERS.iter().chain(&REGIONS).any(|place| *place == start);
        let crc = image.read(start + 4, 4);
        if sealed {
            image.seal(start, if HEADERS.contains(&start) { 4096 } else { 65_536 });
        }
        let name = format!("{old:x?} at {at:#x} became {new:x?}, sealed: {sealed}");
        let report = check_file(&image, &name);
        // QEMU's own refusals and findings; an exit by a signal is its own fault.
        let qemu = image.qemu_check(&[]);
        let excused = ["VHDX-REGION-TWICE", "VHDX-META-PARENT", "VHDX-LOG-PENDING"];
        let reason = report.sums.iter().any(|(name, ..)| excused.contains(name));
        assert!(
            qemu == 0 || report.verdict != Verdict::Healthy || reason,
            "{name}: QEMU exits {qemu}: {:?}",
            report.sums
        );
        if sealed {
            image.put(start + 4, &crc);
        }
        image.put(at, &old);
    }
    assert_eq!(image.qemu_check(&[]), 0, "everything was put back");
}

/// A table of many entries that all name one block, in a file that claims to be huge: bounded memory and time.
#[test]
fn a_table_of_equal_entries_needs_no_memory_for_each() {
    let image = Image::copy(&dynamic().path);
    let size = 20_000 * MIB;
    image.put(image.item(DISK_SIZE).1, &size.to_le_bytes());
    let mut base = image.read(0, 4 * MIB as usize);
    let shared = image.entry(3);
    for entry in base[TABLE as usize..].chunks_exact_mut(8).take(20_000 + 4) {
        entry.copy_from_slice(&shared.to_le_bytes());
    }
    let sparse = Patched { base: &base, edits: Vec::new(), len: 1 << 62 };
    let options = Options { memory: 512 << 10, ..options() };
    let report = checked(&sparse, &options, "equal entries");
    assert_eq!(report.verdict, Verdict::Damaged);
    assert!(report.sums.iter().any(|(name, ..)| *name == "VHDX-BAT-OVERLAP"), "{:?}", report.sums);
    assert!(report.findings.len() <= 1000);
}

/// A file cut anywhere, or of nothing: a verdict, and never "healthy" where blocks are missing.
#[test]
fn cut_files_end_in_a_verdict() {
    let image = dirty();
    let base = image.read(0, image.len() as usize);
    let edges = [
        0,
        1,
        8,
        520,
        65_536,
        69_632,
        131_072,
        196_608,
        262_144,
        MIB,
        2 * MIB,
        3 * MIB,
        3 * MIB + 65_536,
        4 * MIB,
        8 * MIB,
    ];
    for edge in edges.into_iter().chain((0..image.len()).step_by(700_001)) {
        for len in [edge.saturating_sub(1), edge, edge + 1] {
            let report = checked(&Patched { base: &base, edits: Vec::new(), len }, &options(), &format!("{len} bytes"));
            assert_ne!(report.verdict, Verdict::Healthy, "{len} bytes: {:?}", report.findings);
        }
    }
}

/// Parts that the medium does not give are found to be so, and the rest is still checked.
#[test]
fn unreadable_parts_do_not_end_the_check() {
    struct Failing<'a>(&'a FileSource, Range<u64>);
    impl Source for Failing<'_> {
        fn name(&self) -> String {
            self.0.name()
        }
        fn len(&self) -> u64 {
            self.0.len()
        }
        fn read_at(&self, at: u64, buf: &mut [u8]) -> std::io::Result<usize> {
            if at < self.1.end && at + buf.len() as u64 > self.1.start {
                return Err(std::io::Error::other("medium error"));
            }
            self.0.read_at(at, buf)
        }
    }
    let file = FileSource::open(&dirty().path).unwrap();
    for (start, len) in [
        (0, 512),
        (HEADERS[0], 512),
        (HEADERS[1], 512),
        (REGIONS[0], 512),
        (LOG, 8192),
        (TABLE, 512),
        (META, 512),
        (0, 4 * MIB),
    ] {
        let report = checked(&Failing(&file, start..start + len), &options(), &format!("{len} bytes at {start:#x}"));
        assert_eq!(report.verdict, Verdict::Damaged, "{len} bytes at {start:#x}");
        assert!(report.sums.iter().any(|(name, ..)| *name == "IMAGE-UNREADABLE"), "{:?}", report.sums);
        assert!(report.numbers.check_errors > 0);
    }
}
