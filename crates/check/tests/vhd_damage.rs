//! VHD images that QEMU made, damaged one thing at a time: what is found, the verdict, what of the guest is lost, and
//! whether QEMU still opens the image (it has no check of its own for this format).

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]
#![allow(clippy::single_range_in_vec_init)]

mod patched;

use std::collections::BTreeSet;
use std::ops::Range;
use std::process::Command;
use std::sync::OnceLock;

use blkproof_check::catalogue;
use blkproof_check::code::Severity;
use blkproof_check::source::{MemorySource, Source};
use blkproof_check::watch::Silent;
use blkproof_check::{Format, Options, Report, Verdict, check};
use patched::Patched;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 2 * MIB;
const SIZE: u64 = 20 * MIB;
const BITMAP: u64 = 512;
const TABLE: usize = 0x600;
/// Blocks that hold data, in the order they were written: that is their order in the file.
const WRITTEN: [u64; 4] = [0, 3, 4, 9];

fn run(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn make(create: &[&str], size: &str, writes: &[String]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhd");
    let name = path.to_str().unwrap();
    run("qemu-img", &[&["create", "-q", "-f", "vpc"], create, &[name, size]].concat());
    for write in writes {
        run("qemu-io", &["-f", "vpc", "-c", write, name]);
    }
    std::fs::read(&path).unwrap()
}

fn dynamic() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let writes: Vec<_> = WRITTEN.map(|block| format!("write -q -P {} {} 64k", block + 1, block * BLOCK)).into();
        make(&["-o", "force_size=on"], "20M", &writes)
    })
}

/// A disk whose readers go by the geometry.
fn by_geometry() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| make(&[], "20M", &[]))
}

fn fixed() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| make(&["-o", "subformat=fixed,force_size=on"], "2M", &["write -q -P 7 0 64k".to_owned()]))
}

fn be32(image: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(image[at..at + 4].try_into().unwrap())
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Sets the checksum at `field` right for these bytes.
fn seal(image: &mut [u8], range: Range<usize>, field: usize) {
    put(image, field, &[0; 4]);
    let sum = image[range].iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    put(image, field, &(!sum).to_be_bytes());
}

/// Changes footer and copy alike, checksums right.
fn edit_footers(image: &mut [u8], at: usize, bytes: &[u8]) {
    edit_copy(image, at, bytes);
    edit_end(image, at, bytes);
}

fn edit_copy(image: &mut [u8], at: usize, bytes: &[u8]) {
    put(image, at, bytes);
    seal(image, 0..512, 64);
}

fn edit_end(image: &mut [u8], at: usize, bytes: &[u8]) {
    let start = image.len() - 512;
    put(image, start + at, bytes);
    seal(image, start..start + 512, start + 64);
}

fn edit_header(image: &mut [u8], at: usize, bytes: &[u8]) {
    put(image, 512 + at, bytes);
    seal(image, 512..1536, 512 + 36);
}

fn entry(image: &[u8], block: u64) -> u32 {
    be32(image, TABLE + block as usize * 4)
}

fn set_entry(image: &mut [u8], block: u64, sector: u32) {
    put(image, TABLE + block as usize * 4, &sector.to_be_bytes());
}

/// Where a block's bitmap is in the file.
fn place(image: &[u8], block: u64) -> usize {
    entry(image, block) as usize * 512
}

/// Bytes put between the last block and the footer; where they are.
fn insert_before_footer(image: &mut Vec<u8>, bytes: &[u8]) -> usize {
    let at = image.len() - 512;
    image.splice(at..at, bytes.iter().copied());
    at
}

fn utf16_be(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// Makes it a differencing disk with a parent of this name, and one locator.
fn differencing(image: &mut Vec<u8>, locator_at: Option<u64>) {
    edit_footers(image, 60, &4u32.to_be_bytes());
    let path: Vec<u8> = "C:\\vm\\base.vhd".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut sector = path.clone();
    sector.resize(512, 0);
    let at = insert_before_footer(image, &sector) as u64;
    edit_header(image, 40, &[0x5a; 16]);
    edit_header(image, 64, &utf16_be("base.vhd"));
    let mut locator = b"W2ku".to_vec();
    locator.extend(512u32.to_be_bytes());
    locator.extend((path.len() as u32).to_be_bytes());
    locator.extend([0; 4]);
    locator.extend(locator_at.unwrap_or(at).to_be_bytes());
    edit_header(image, 576, &locator);
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Qemu {
    Opens,
    Refuses,
}
use Qemu::{Opens, Refuses};

struct Case {
    name: &'static str,
    base: fn() -> &'static [u8],
    damage: fn(&mut Vec<u8>),
    /// Codes that are found, with their severity, and no others.
    codes: &'static [(&'static str, Severity)],
    verdict: Verdict,
    lost: &'static [Range<u64>],
    qemu: Qemu,
    /// Why our verdict is another than whether QEMU opens the image, where it is.
    differs: &'static str,
}

const CORRUPTION: Severity = Severity::Corruption;
const WARNING: Severity = Severity::Warning;
const NOTE: Severity = Severity::Note;
const LEAK: Severity = Severity::Leak;
const NONE: &[Range<u64>] = &[];

const fn block(index: u64) -> Range<u64> {
    index * BLOCK..(index + 1) * BLOCK
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    Case { name: "sound, dynamic", base: dynamic, damage: |_| {}, codes: &[], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "sound, fixed", base: fixed, damage: |_| {}, codes: &[], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "sound, by geometry", base: by_geometry, damage: |_| {}, codes: &[], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "fixed with a footer of 511 bytes", base: fixed, damage: |image| { image.pop(); },
        codes: &[("VHD-FOOTER-511", NOTE)], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "dynamic with a footer of 511 bytes", base: dynamic, damage: |image| { image.pop(); },
        codes: &[("VHD-FOOTER-511", NOTE)], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "footer zeroed", base: dynamic, damage: |image| { let end = image.len(); image[end - 512..].fill(0); },
        codes: &[("VHD-FOOTER-MISSING", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: Opens,
        differs: "QEMU reads the copy and never looks at the end" },
    Case { name: "footer cut off", base: dynamic, damage: |image| { let end = image.len(); image.truncate(end - 512); },
        codes: &[("VHD-FOOTER-MISSING", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: Opens,
        differs: "QEMU reads the copy and never looks at the end" },
    Case { name: "killed while it grew: a new block over the footer", base: dynamic,
        damage: |image| { let end = image.len(); image[end - 512..].fill(0xff); image.resize(end + BLOCK as usize, 0); },
        codes: &[("VHD-FOOTER-MISSING", CORRUPTION), ("VHD-BLOCK-LEAKED", LEAK)], verdict: Verdict::Damaged, lost: NONE, qemu: Opens,
        differs: "QEMU reads the copy and never looks at the end" },
    Case { name: "copy zeroed", base: dynamic, damage: |image| image[..512].fill(0),
        codes: &[("VHD-COPY-MISSING", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: Refuses, differs: "" },
    Case { name: "footer and copy zeroed", base: dynamic, damage: |image| { image[..512].fill(0); let end = image.len(); image[end - 512..].fill(0); },
        codes: &[("VHD-FOOTER-NONE", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: Refuses, differs: "" },
    Case { name: "the first 1.5 KiB and the footer zeroed", base: dynamic, damage: |image| { image[..TABLE].fill(0); let end = image.len(); image[end - 512..].fill(0); },
        codes: &[("VHD-FOOTER-NONE", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: Refuses, differs: "" },
    Case { name: "a bit of the footer", base: dynamic, damage: |image| { let end = image.len(); image[end - 400] ^= 1; },
        codes: &[("VHD-FOOTER-CHECKSUM", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: Opens,
        differs: "QEMU reads the copy and never looks at the end" },
    Case { name: "a bit of the copy", base: dynamic, damage: |image| image[30] ^= 1,
        codes: &[("VHD-COPY-CHECKSUM", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: Refuses, differs: "" },
    Case { name: "a bit of a fixed disk's footer", base: fixed, damage: |image| { let end = image.len(); image[end - 512 + 30] ^= 1; },
        codes: &[("VHD-FOOTER-CHECKSUM", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: Refuses, differs: "" },
    Case { name: "the copy has another size", base: dynamic, damage: |image| edit_copy(image, 48, &(18 * MIB).to_be_bytes()),
        codes: &[("VHD-COPY-DIFFERS", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: Opens,
        differs: "QEMU shows the 18 MiB of the copy, others 20" },
    Case { name: "the copy has another time", base: dynamic, damage: |image| edit_copy(image, 24, &[0, 0, 0, 1]),
        codes: &[("VHD-COPY-DIFFERS", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "a dynamic disk with bytes behind its footer", base: dynamic, damage: |image| image.extend([0; 1024]),
        codes: &[("VHD-FOOTER-TRAILING", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "a fixed disk with bytes behind its footer", base: fixed, damage: |image| image.extend([0; 1024]),
        codes: &[("VHD-FOOTER-TRAILING", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: Refuses, differs: "" },
    Case { name: "version 2", base: dynamic, damage: |image| edit_footers(image, 12, &[0, 2, 0, 0]),
        codes: &[("VHD-FOOTER-VERSION", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "disk type 5", base: dynamic, damage: |image| edit_footers(image, 60, &5u32.to_be_bytes()),
        codes: &[("VHD-FOOTER-TYPE", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: Opens,
        differs: "QEMU takes every type for dynamic" },
    Case { name: "a reserved byte", base: dynamic, damage: |image| edit_footers(image, 85, &[1]),
        codes: &[("VHD-FOOTER-RESERVED", NOTE)], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "saved state", base: dynamic, damage: |image| edit_footers(image, 84, &[1]),
        codes: &[("VHD-FOOTER-SAVED-STATE", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "the guest of a fixed disk wrote a footer", base: fixed, damage: |image| put(image, 0, &dynamic()[..1536]),
        codes: &[("VHD-TYPE-AMBIGUOUS", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: Refuses,
        differs: "the disk is sound; QEMU takes what its guest wrote for a dynamic disk" },
    Case { name: "the geometry says 10 MiB less", base: by_geometry, damage: |image| edit_footers(image, 56, &[1, 46, 4, 17]),
        codes: &[("VHD-SIZE-GEOMETRY", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "3 TiB", base: dynamic, damage: |image| edit_footers(image, 48, &(3u64 << 40).to_be_bytes()),
        codes: &[("VHD-SIZE-LIMIT", CORRUPTION), ("VHD-TABLE-SHORT", CORRUPTION)], verdict: Verdict::Damaged, lost: &[SIZE..3 << 40], qemu: Refuses, differs: "" },
    Case { name: "half a sector", base: dynamic, damage: |image| edit_footers(image, 48, &(SIZE - 100).to_be_bytes()),
        codes: &[("VHD-SIZE-ODD", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "a fixed disk without its last 64 KiB", base: fixed,
        damage: |image| { let end = image.len() - 512; image.drain(end - 65_536..end); },
        codes: &[("VHD-FIXED-SHORT", CORRUPTION)], verdict: Verdict::Damaged, lost: &[2 * MIB - 65_536..2 * MIB], qemu: Opens,
        differs: "QEMU shows the size of the footer; reading its end fails" },
    Case { name: "a fixed disk with room before its footer", base: fixed, damage: |image| { insert_before_footer(image, &[0; 4096]); },
        codes: &[("VHD-FIXED-LONG", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "no dynamic header", base: dynamic, damage: |image| image[512..1536].fill(0),
        codes: &[("VHD-HEADER-MISSING", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: Refuses, differs: "" },
    Case { name: "a bit of the dynamic header", base: dynamic, damage: |image| image[512 + 900] ^= 1,
        codes: &[("VHD-HEADER-CHECKSUM", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: Opens,
        differs: "QEMU does not verify this checksum" },
    Case { name: "dynamic header of version 2", base: dynamic, damage: |image| edit_header(image, 24, &[0, 2, 0, 0]),
        codes: &[("VHD-HEADER-VERSION", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "block size 0", base: dynamic, damage: |image| edit_header(image, 32, &[0; 4]),
        codes: &[("VHD-BLOCK-SIZE", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: Refuses, differs: "" },
    Case { name: "block size 3 MiB", base: dynamic, damage: |image| edit_header(image, 32, &(3u32 << 20).to_be_bytes()),
        codes: &[("VHD-BLOCK-SIZE", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: Refuses, differs: "" },
    Case { name: "a table that begins in the middle of a sector", base: by_geometry, damage: |image| edit_header(image, 16, &(TABLE as u64 + 4).to_be_bytes()),
        codes: &[("VHD-TABLE-ALIGNMENT", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "a table past the end", base: dynamic, damage: |image| edit_header(image, 16, &(1u64 << 40).to_be_bytes()),
        codes: &[("VHD-TABLE-OUTSIDE", CORRUPTION)], verdict: Verdict::Damaged, lost: &[0..SIZE], qemu: Refuses, differs: "" },
    Case { name: "2 entries", base: dynamic, damage: |image| edit_header(image, 28, &2u32.to_be_bytes()),
        codes: &[("VHD-TABLE-SHORT", CORRUPTION)], verdict: Verdict::Damaged, lost: &[2 * BLOCK..SIZE], qemu: Refuses, differs: "" },
    Case { name: "4 billion entries", base: by_geometry, damage: |image| edit_header(image, 28, &[0xff; 4]),
        codes: &[("VHD-BAT-STRAY", WARNING), ("VHD-BAT-OVERLAP", CORRUPTION)], verdict: Verdict::Damaged, lost: NONE, qemu: Refuses, differs: "" },
    Case { name: "an entry past the end", base: dynamic, damage: |image| set_entry(image, 3, 0x0070_0000),
        codes: &[("VHD-BAT-PAST-END", CORRUPTION), ("VHD-BLOCK-ORPHAN", NOTE)], verdict: Verdict::Damaged, lost: &[block(3)], qemu: Refuses, differs: "" },
    Case { name: "cut in the last block", base: dynamic, damage: |image| { let at = place(image, 9) + (BITMAP + MIB) as usize; image.truncate(at); },
        codes: &[("VHD-FOOTER-MISSING", CORRUPTION), ("VHD-BAT-PAST-END", CORRUPTION)], verdict: Verdict::Damaged,
        lost: &[9 * BLOCK + MIB..SIZE], qemu: Refuses, differs: "" },
    Case { name: "two blocks in one place", base: dynamic, damage: |image| { let other = entry(image, 0); set_entry(image, 4, other); },
        codes: &[("VHD-BAT-OVERLAP", CORRUPTION), ("VHD-BLOCK-LEAKED", LEAK)], verdict: Verdict::Damaged, lost: &[block(0), block(4)], qemu: Opens,
        differs: "QEMU never compares entries with each other" },
    Case { name: "a block over headers and table", base: dynamic, damage: |image| set_entry(image, 4, 0),
        codes: &[("VHD-BAT-INSIDE", CORRUPTION), ("VHD-BLOCK-ORPHAN", NOTE)], verdict: Verdict::Damaged, lost: &[block(4)], qemu: Opens,
        differs: "QEMU never compares entries with its own structures" },
    Case { name: "a block over the footer", base: dynamic, damage: |image| { let other = entry(image, 9); set_entry(image, 9, other + 1); },
        codes: &[("VHD-BAT-OVERLAP", CORRUPTION)], verdict: Verdict::Damaged, lost: &[SIZE - 512..SIZE], qemu: Opens,
        differs: "QEMU counts the footer's place as room for blocks" },
    Case { name: "the table zeroed", base: dynamic, damage: |image| image[TABLE..TABLE + 40].fill(0),
        codes: &[("VHD-BAT-INSIDE", CORRUPTION), ("VHD-BLOCK-ORPHAN", NOTE)], verdict: Verdict::Damaged, lost: &[0..SIZE], qemu: Opens,
        differs: "QEMU never compares entries with its own structures" },
    Case { name: "the disk made smaller, a block left behind", base: dynamic, damage: |image| edit_footers(image, 48, &(10 * MIB).to_be_bytes()),
        codes: &[("VHD-BAT-STRAY", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "an entry freed, its block left behind", base: dynamic, damage: |image| set_entry(image, 3, u32::MAX),
        codes: &[("VHD-BLOCK-LEAKED", LEAK)], verdict: Verdict::Leaks, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "a bitmap that hides data", base: dynamic, damage: |image| { let at = place(image, 3); image[at] = 0x7f; },
        codes: &[("VHD-BITMAP-HIDES-DATA", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "a differencing disk", base: dynamic, damage: |image| differencing(image, None),
        codes: &[("VHD-PARENT-STANDALONE", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "a parent locator past the end", base: dynamic, damage: |image| differencing(image, Some(1 << 50)),
        codes: &[("VHD-PARENT-STANDALONE", WARNING), ("VHD-PARENT-LOCATOR", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
    Case { name: "a differencing disk without a parent", base: dynamic, damage: |image| edit_footers(image, 60, &4u32.to_be_bytes()),
        codes: &[("VHD-PARENT-STANDALONE", WARNING), ("VHD-PARENT-NONE", WARNING)], verdict: Verdict::Healthy, lost: NONE, qemu: Opens, differs: "" },
];

fn options() -> Options {
    Options { format: Some(Format::Vhd), data: true, cells: 64, ..Options::default() }
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

fn qemu_opens(image: &[u8]) -> Qemu {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhd");
    std::fs::write(&path, image).unwrap();
    let done = Command::new("qemu-img").args(["info", "-f", "vpc"]).arg(&path).output().unwrap();
    if done.status.success() { Opens } else { Refuses }
}

#[test]
fn each_damage_is_named() {
    let mut raised = BTreeSet::new();
    for case in CASES {
        let mut image = (case.base)().to_vec();
        (case.damage)(&mut image);
        let report = checked(&MemorySource(image.clone()), &options(), case.name);
        let mut got: Vec<_> = report.sums.iter().map(|(name, severity, _)| (*name, *severity)).collect();
        let mut want = case.codes.to_vec();
        got.sort_unstable();
        want.sort_unstable();
        assert_eq!(got, want, "{}: {:#?}", case.name, report.findings);
        assert_eq!(report.verdict, case.verdict, "{}", case.name);
        assert_eq!(report.lost.ranges, case.lost, "{}", case.name);
        raised.extend(got.into_iter().map(|(name, _)| name));
        let qemu = qemu_opens(&image);
        assert_eq!(qemu, case.qemu, "{}: what QEMU makes of it", case.name);
        let agree = (qemu == Opens) == matches!(case.verdict, Verdict::Healthy | Verdict::Leaks);
        assert_ne!(agree, !case.differs.is_empty(), "{}: a difference has a reason, and only that", case.name);
    }
    let all: BTreeSet<_> = catalogue::all().map(|code| code.name).filter(|name| name.starts_with("VHD-")).collect();
    assert_eq!(raised, all, "every code is raised by some case");
}

/// The words of the findings people see most.
#[test]
fn findings_say_what_where_and_whose() {
    let mut image = dynamic().to_vec();
    let shared = entry(&image, 0);
    set_entry(&mut image, 4, shared);
    set_entry(&mut image, 5, 0x0070_0000);
    set_entry(&mut image, 6, 0x0070_1000);
    let report = checked(&MemorySource(image), &options(), "words");
    let words: Vec<_> = report.findings.iter().map(|finding| finding.what.as_str()).collect();
    let start = u64::from(shared) * 512 + BITMAP;
    assert_eq!(
        words,
        [
            "block table entries 5..7 (2 entries, the first is sector 0x700000): past the end of the file (0x801200)"
                .to_owned(),
            format!("block 0 and block 4 both claim {start:#x}..{:#x}", start + BLOCK),
            "no entry names 0x400c00..0x600e00: room for one block".to_owned(),
        ]
    );
    let owners: Vec<_> = report.findings[1].owners.iter().map(|owner| owner.guest.clone()).collect();
    assert_eq!(owners, [Some(block(0)), Some(block(4))]);
}

#[test]
fn a_parent_is_a_reference_and_never_opened() {
    let mut image = dynamic().to_vec();
    differencing(&mut image, None);
    let report = checked(&MemorySource(image), &options(), "parent");
    let names: Vec<_> = report.references.iter().map(|reference| (reference.role, reference.name.as_str())).collect();
    assert_eq!(names, [("parent", "base.vhd"), ("parent", "C:\\vm\\base.vhd")]);
    assert!(report.not_checked.iter().any(|line| line.contains("parent")));
}

/// What lies in the table now is named as the cause, and the blocks are offered.
#[test]
fn an_overwritten_table_is_told_by_what_lies_there() {
    let log = "Nov 21 17:20:58 host kernel: usb 1-1: new device\n".repeat(2);
    for (bytes, word) in [(vec![0; 40], "zeroes"), (log.as_bytes()[..40].to_vec(), "text")] {
        let mut image = dynamic().to_vec();
        put(&mut image, TABLE, &bytes);
        let report = checked(&MemorySource(image), &options(), word);
        let cause = &report.causes[0];
        assert!(cause.what.contains("overwritten") && cause.what.contains(word), "{:#?}", report.causes);
        assert!(cause.errors > 3);
        let orphan = report.findings.iter().find(|finding| finding.code.name == "VHD-BLOCK-ORPHAN").unwrap();
        assert_eq!(orphan.count, WRITTEN.len() as u64, "{}", orphan.what);
    }
}

/// What a header can not say any more is taken from the caller.
#[test]
fn assumptions_replace_what_is_gone() {
    let mut image = dynamic().to_vec();
    let end = image.len();
    image[..TABLE].fill(0);
    image[end - 512..].fill(0);
    let lost = checked(&MemorySource(image.clone()), &options(), "nothing assumed");
    assert!(lost.guest.is_none(), "without a size nothing can be mapped");
    let assume = blkproof_check::Assume::parse("size=20M,block_size=2M,table_offset=0x600").unwrap();
    let report = checked(&MemorySource(image), &Options { assume, ..options() }, "assumed");
    let guest = report.guest.unwrap();
    assert_eq!(guest.bytes(blkproof_check::map::GuestState::Data), WRITTEN.len() as u64 * BLOCK);
}

/// Every field of footer, copy, dynamic header and table, with every extreme value: a verdict each, within little
/// memory.
#[test]
fn hostile_fields_end_in_a_verdict() {
    let options = Options { memory: 1 << 20, data: true, cells: 16, ..options() };
    let mut images = 0;
    // The empty disk is all metadata; in the other one there is something to point at.
    for (base, values) in [(by_geometry(), 4), (dynamic(), 1)] {
        let end = base.len() as u64;
        let starts: &[u64] = if values > 1 { &[0, 512, 1024, 1536, end - 512] } else { &[512] };
        for at in starts.iter().flat_map(|start| (*start..start + 512).step_by(4)) {
            for value in [u64::MAX, 0, 0x7fff_ffff_0000_0002, u64::MAX - 511].into_iter().take(values) {
                let bytes = [value.to_be_bytes().to_vec(), (value as u32).to_be_bytes().to_vec()];
                for bytes in bytes.into_iter().filter(|bytes| at + bytes.len() as u64 <= end) {
                    let mut edits = vec![(at, bytes)];
                    // Once as it is, once with its checksum right.
                    for sealed in [false, true] {
                        if sealed {
                            seal_edits(base, &mut edits);
                        }
                        let image = Patched { base, edits: edits.clone(), len: end };
                        let report = checked(&image, &options, &image.name());
                        assert!(report.format.is_some());
                        images += 1;
                    }
                }
            }
        }
    }
    assert!(images > 4000, "{images}");
}

/// Puts right checksums behind edits of the first 1.5 KiB and of the footer.
fn seal_edits(base: &[u8], edits: &mut Vec<(u64, Vec<u8>)>) {
    for (start, len, field) in [(0, 512, 64), (512, 1024, 36), (base.len() - 512, 512, 64)] {
        let image = Patched { base, edits: edits.clone(), len: base.len() as u64 };
        let mut bytes = vec![0; len];
        image.read_at(start as u64, &mut bytes).unwrap();
        seal(&mut bytes, 0..len, field);
        edits.push(((start + field) as u64, bytes[field..field + 4].to_vec()));
    }
}

/// A table of a million entries that all name one place: bounded memory, and still called what it is.
#[test]
fn a_table_of_equal_entries_needs_no_memory_for_each() {
    let entries = 1u32 << 20;
    let mut image = dynamic()[..TABLE].to_vec();
    edit_header(&mut image, 28, &entries.to_be_bytes());
    edit_copy(&mut image, 48, &(u64::from(entries) * BLOCK).to_be_bytes());
    let place = (TABLE as u32 + entries * 4) / 512;
    image.extend((0..entries).flat_map(|_| place.to_be_bytes()));
    image.resize(image.len() + (BLOCK + BITMAP) as usize, 1);
    let footer = image[..512].to_vec();
    image.extend(footer);
    let options = Options { memory: 2 << 20, ..options() };
    let report = checked(&MemorySource(image), &Options { data: false, ..options }, "equal entries");
    assert_eq!(report.verdict, Verdict::Damaged);
    assert!(report.sums.iter().any(|(name, ..)| *name == "VHD-BAT-OVERLAP"), "{:?}", report.sums);
    assert!(report.findings.len() <= 1000);
}

/// A file cut anywhere, or of nothing: a verdict, and never "healthy".
#[test]
fn cut_files_end_in_a_verdict() {
    let base = dynamic();
    let len = base.len() as u64;
    for edge in [0, 1, 8, 511, 512, 513, 1024, 1536, 1576, 2048, 2560].into_iter().chain((0..len - 2).step_by(100_003))
    {
        for len in [edge.max(1) - 1, edge, edge + 1] {
            let image = Patched { base, edits: Vec::new(), len };
            let report = checked(&image, &options(), &format!("{len} bytes"));
            assert_ne!(report.verdict, Verdict::Healthy, "{len} bytes: {:?}", report.findings);
        }
    }
}
