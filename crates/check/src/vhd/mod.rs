//! VHD: the format of Virtual PC and of the first Hyper-V. Big endian, counted in sectors of 512 bytes.
//!
//! ```text
//! fixed                 data of the whole disk | footer
//! dynamic, differencing copy of the footer | dynamic header | block table | sector bitmap, block | … | footer
//! ```
//!
//! The block table has an entry of 32 bits per block: the sector of the block's bitmap, which the block itself follows,
//! or `ffffffff`. A new block is written over the old footer and a new footer behind it, so a killed writer leaves a
//! file without one; the copy at the start is there for that.
//!
//! Order of the analysis: both footers, and which of them counts; its fields; then either the length of a fixed disk,
//! or the dynamic header, the parent's locators, and the block table with everything it points at.

pub(crate) mod codes;

mod blocks;
mod dynamic;
mod footer;
pub(crate) mod overwritten;

use std::ops::Range;

use dynamic::Dynamic;
use footer::{DIFFERENCING, DYNAMIC, FIXED, Footer};

use crate::bytes::{be_u32, printable};
use crate::code::Severity;
use crate::context::Context;
use crate::finding::{Confidence, Finding};
use crate::map::{Claim, Class, GuestState};
use crate::report::Reference;

/// The most that 32-bit sector numbers are used for: 2040 GiB.
const SIZE_MAX: u64 = 2040 << 30;
/// How far before the end a footer is searched that something was put behind of.
const SEARCH: u64 = 64 << 10;

/// A footer and where it was found.
#[derive(Clone, Debug)]
struct Found {
    range: Range<u64>,
    footer: Footer,
}

pub(crate) fn analyse(cx: &mut Context<'_>) {
    let front = footer_at(cx, 0, footer::LEN as u64, "the footer's copy");
    let end = end_footer(cx).filter(|end| end.range.start > 0 || front.is_none());
    // A file of one sector is all footer.
    let front = front.filter(|_| cx.file_len() > footer::LEN as u64);

    let fixed = end.as_ref().is_some_and(|end| end.footer.kind == FIXED && end.footer.checksum_right);
    match (front, end) {
        (front, Some(end)) if fixed => {
            if let Some(front) = front {
                ambiguous(cx, &front);
            }
            judge_place(cx, &end, FIXED);
            judge_fields(cx, &end);
            facts(cx, &end.footer);
            analyse_fixed(cx, &end);
        }
        (None, Some(end)) if end.footer.kind == FIXED => {
            judge_place(cx, &end, FIXED);
            judge_checksum(cx, &end, codes::FOOTER_CHECKSUM);
            judge_fields(cx, &end);
            facts(cx, &end.footer);
            analyse_fixed(cx, &end);
        }
        (front, end) => analyse_dynamic(cx, front, end),
    }
}

fn footer_at(cx: &mut Context<'_>, at: u64, len: u64, what: &str) -> Option<Found> {
    let bytes = cx.read(at, usize::try_from(len).unwrap_or(footer::LEN), what);
    Some(Found { range: at..at.saturating_add(len), footer: Footer::parse(&bytes)? })
}

/// The footer at the end: in the last 512 or 511 bytes, else the last intact one a little before that.
fn end_footer(cx: &mut Context<'_>) -> Option<Found> {
    let len = cx.file_len();
    let short = footer::LEN.saturating_sub(1) as u64;
    for size in [footer::LEN as u64, short] {
        if let Some(at) = len.checked_sub(size)
            && let Some(found) = footer_at(cx, at, size, "the footer")
        {
            return Some(found);
        }
    }
    // Footers lie on sectors; the first sector is the copy.
    let from = len.saturating_sub(SEARCH).next_multiple_of(512).max(512);
    let tail = cx.read(from, usize::try_from(len.saturating_sub(from)).unwrap_or(0), "the end of the file");
    let sectors = tail.chunks_exact(footer::LEN).enumerate();
    let (index, footer) = sectors
        .filter_map(|(index, sector)| Some((index, Footer::parse(sector)?)))
        .rfind(|(_, footer)| footer.checksum_right)?;
    let at = from.saturating_add((index as u64).saturating_mul(512));
    Some(Found { range: at..at.saturating_add(512), footer })
}

fn ambiguous(cx: &mut Context<'_>, front: &Found) {
    let words = format!(
        "the footer says fixed, but the guest's first sector is a footer of a {} disk of {} bytes",
        front.footer.kind_name(),
        front.footer.size
    );
    cx.find(Finding::new(codes::TYPE_AMBIGUOUS, words).host(front.range.clone()).guest(0..512));
}

/// Whether the footer is the very end, and has all of its bytes.
fn judge_place(cx: &mut Context<'_>, end: &Found, kind: u32) {
    let len = cx.file_len();
    let behind = len.saturating_sub(end.range.end);
    if behind > 0 {
        let words = format!("the footer at {:#x} is followed by {behind} bytes", end.range.start);
        // A dynamic disk is still known by the copy at its start.
        let severity = if kind == FIXED { Severity::Corruption } else { Severity::Warning };
        cx.find(Finding::new(codes::FOOTER_TRAILING, words).severity(severity).host(end.range.end..len));
    }
    if end.range.end.saturating_sub(end.range.start) < footer::LEN as u64 {
        let words = format!("the footer at {:#x} has 511 bytes", end.range.start);
        cx.find(Finding::new(codes::FOOTER_511, words).host(end.range.clone()));
    }
}

fn judge_checksum(cx: &mut Context<'_>, found: &Found, code: &'static crate::code::Code) -> bool {
    if !found.footer.checksum_right {
        let words = format!("the checksum of the footer at {:#x} does not match its bytes", found.range.start);
        cx.find(Finding::new(code, words).host(found.range.clone()));
    }
    found.footer.checksum_right
}

/// What the footer that counts says.
fn judge_fields(cx: &mut Context<'_>, found: &Found) {
    let footer = &found.footer;
    let mut find = |finding: Finding| cx.find(finding.host(found.range.clone()));
    if footer.version >> 16 != 1 {
        let words = format!("the footer's file format version is {:#010x}, not 0x00010000", footer.version);
        find(Finding::new(codes::FOOTER_VERSION, words));
    }
    if !matches!(footer.kind, FIXED | DYNAMIC | DIFFERENCING) {
        find(Finding::new(codes::FOOTER_TYPE, format!("the footer's disk type is {}", footer.kind)));
    }
    if !footer.reserved_clear {
        let words =
            format!("reserved bytes of the footer are set, or unknown bits of its features {:#x}", footer.features);
        find(Finding::new(codes::FOOTER_RESERVED, words));
    }
    if footer.saved_state != 0 {
        let words = format!("the footer's saved state byte is {}", footer.saved_state);
        find(Finding::new(codes::FOOTER_SAVED_STATE, words));
    }
    if footer.size > SIZE_MAX {
        let words = format!("the footer states a disk of {} bytes, more than {SIZE_MAX}", footer.size);
        find(Finding::new(codes::SIZE_LIMIT, words));
    }
    if !footer.size.is_multiple_of(512) {
        find(Finding::new(codes::SIZE_ODD, format!("the footer states a disk of {} bytes", footer.size)));
    }
    let by_geometry = footer.geometry_size();
    if footer.goes_by_geometry() && by_geometry != footer.size {
        let words = format!(
            "the size is {}, the geometry {}/{}/{} gives {by_geometry}: this creator's readers go by the geometry",
            footer.size, footer.geometry.0, footer.geometry.1, footer.geometry.2
        );
        // Rounding to whole cylinders is what Virtual PC always did.
        let rounding = footer.size.abs_diff(by_geometry) < footer.cylinder();
        let severity = if rounding { Severity::Note } else { Severity::Warning };
        let between = by_geometry.min(footer.size)..by_geometry.max(footer.size);
        find(Finding::new(codes::SIZE_GEOMETRY, words).severity(severity).guest(between));
    }
}

fn facts(cx: &mut Context<'_>, footer: &Footer) {
    let (cylinders, heads, sectors) = footer.geometry;
    cx.fact("disk type", footer.kind_name());
    cx.fact("size", format!("{} bytes", footer.size));
    cx.fact("geometry", format!("{cylinders}/{heads}/{sectors} ({} bytes)", footer.geometry_size()));
    cx.fact("size by", if footer.goes_by_geometry() { "geometry (this creator)" } else { "current size" });
    let version = (footer.creator_version >> 16, footer.creator_version & 0xffff);
    cx.fact("creator", format!("{} {}.{}", ascii(footer.creator), version.0, version.1));
    cx.fact("time stamp", format!("{} s after the start of 2000", footer.time));
    cx.fact("identifier", uuid(footer.uuid));
}

fn ascii(word: [u8; 4]) -> String {
    let end = word.iter().position(|byte| *byte == 0).unwrap_or(4);
    printable(word.get(..end).unwrap_or_default().trim_ascii_end(), 4)
}

fn uuid(bytes: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

fn analyse_fixed(cx: &mut Context<'_>, end: &Found) {
    let (footer, len) = (&end.footer, cx.file_len());
    let there = end.range.start;
    let size = cx.options.assume.value("size").unwrap_or(footer.size);
    let missing = there.min(size)..size;
    if !missing.is_empty() {
        let words = format!("a fixed disk of {size} bytes with {there} bytes before its footer at {there:#x}");
        cx.find(Finding::new(codes::FIXED_SHORT, words).host(there..len).guest(missing.clone()));
        cx.lose(missing.clone());
    } else if there > size {
        let words =
            format!("{} bytes lie between the disk's end at {size:#x} and its footer", there.saturating_sub(size));
        cx.find(Finding::new(codes::FIXED_LONG, words).host(size..there));
    }
    cx.map_host(512, vec![claim(&end.range, Class::Header)]);
    cx.add_host(0..there.min(size), Class::Data);
    cx.add_host(there.min(size)..there, Class::Free);
    cx.add_host(end.range.clone(), Class::Header);
    cx.add_host(end.range.end..len, Class::Unknown);
    cx.map_guest(size, 512);
    cx.add_guest(0..there.min(size), GuestState::Data);
    cx.add_guest(missing, GuestState::Damaged);
    cx.numbers.image_end_offset = Some(end.range.end);
    cx.not_checked("guest data: this format has no checksums for it");
}

fn claim(range: &Range<u64>, class: Class) -> Claim {
    Claim { start: range.start, len: range.end.saturating_sub(range.start), class, index: 0 }
}

fn analyse_dynamic(cx: &mut Context<'_>, front: Option<Found>, end: Option<Found>) {
    let Some(main) = choose(cx, front.as_ref(), end.as_ref()) else {
        let words = "no footer, neither in the first sector nor at the end of the file";
        cx.find(Finding::new(codes::FOOTER_NONE, words).host(0..cx.file_len().min(512)));
        analyse_without_footer(cx);
        return;
    };
    judge_fields(cx, &main);
    facts(cx, &main.footer);
    let offset = header_offset(cx, &main.footer);
    let header = read_header(cx, offset);
    if header.is_none() {
        let words = format!("there is no dynamic disk header at {offset:#x}");
        cx.find(Finding::new(codes::HEADER_MISSING, words).host(main.range.clone()));
    }
    let image = Image {
        front: front.map(|found| found.range),
        end: end.map(|found| found.range),
        offset,
        size: cx.options.assume.value("size").unwrap_or(main.footer.size),
        differencing: main.footer.kind == DIFFERENCING,
    };
    analyse_tables(cx, &image, header.as_ref());
}

/// What is known before the tables are.
struct Image {
    front: Option<Range<u64>>,
    end: Option<Range<u64>>,
    /// Where the dynamic header is, or should be.
    offset: u64,
    size: u64,
    differencing: bool,
}

/// Says what is wrong with either footer, and which of them counts.
fn choose(cx: &mut Context<'_>, front: Option<&Found>, end: Option<&Found>) -> Option<Found> {
    let len = cx.file_len();
    if let Some(end) = end {
        judge_place(cx, end, DYNAMIC);
    }
    let front_right = front.is_some_and(|found| judge_checksum(cx, found, codes::COPY_CHECKSUM));
    let end_right = end.is_some_and(|found| judge_checksum(cx, found, codes::FOOTER_CHECKSUM));
    match (front, end) {
        (Some(front), Some(end)) if front_right && end_right => Some(choose_intact(cx, front, end)),
        (Some(front), Some(end)) => Some(if end_right { end } else { front }.clone()),
        (Some(front), None) => {
            let at = len.saturating_sub(footer::LEN as u64);
            let words = format!("the last 512 bytes of the file, at {at:#x}, are no footer; the copy at 0x0 counts");
            cx.find(Finding::new(codes::FOOTER_MISSING, words).host(at..len));
            Some(front.clone())
        }
        (None, Some(end)) => {
            let words = format!("the first sector is no footer; the one at {:#x} counts", end.range.start);
            cx.find(Finding::new(codes::COPY_MISSING, words).host(0..512));
            Some(end.clone())
        }
        (None, None) => None,
    }
}

/// Of two intact footers: the one that fits the dynamic header; the one at the end if both do, or none.
fn choose_intact(cx: &mut Context<'_>, front: &Found, end: &Found) -> Found {
    let differences = front.footer.differences(&end.footer);
    if differences.is_empty() {
        return end.clone();
    }
    let fits = |cx: &mut Context<'_>, footer: &Footer| {
        matches!(footer.kind, DYNAMIC | DIFFERENCING)
            && read_header(cx, footer.data_offset).is_some_and(|header| {
                let blocks = footer.size.div_ceil(u64::from(header.block).max(1));
                u64::from(header.entries) == blocks
            })
    };
    let copy = fits(cx, &front.footer) && !fits(cx, &end.footer);
    let weighty = differences.iter().any(|(_, weighty)| *weighty);
    let names: Vec<_> = differences.iter().map(|(name, _)| *name).collect();
    let words = format!(
        "copy and footer differ in {}; {} (sizes: copy {}, footer {})",
        names.join(", "),
        if copy { "the copy fits the dynamic header and counts" } else { "the footer counts" },
        front.footer.size,
        end.footer.size
    );
    let severity = if weighty { Severity::Corruption } else { Severity::Warning };
    let finding = Finding::new(codes::COPY_DIFFERS, words).severity(severity);
    cx.find(finding.host(front.range.clone()).host(end.range.clone()));
    if copy { front.clone() } else { end.clone() }
}

fn header_offset(cx: &Context<'_>, footer: &Footer) -> u64 {
    let usual = footer::LEN as u64;
    let plausible = footer.data_offset >= usual && footer.data_offset < cx.file_len();
    if plausible { footer.data_offset } else { usual }
}

fn read_header(cx: &mut Context<'_>, offset: u64) -> Option<Dynamic> {
    if offset >= cx.file_len() {
        return None;
    }
    Dynamic::parse(&cx.read(offset, dynamic::LEN, "the dynamic disk header"))
}

/// Both footers are gone: the dynamic header alone says how large the disk can be at most.
fn analyse_without_footer(cx: &mut Context<'_>) {
    let offset = footer::LEN as u64;
    let header = read_header(cx, offset);
    let by_header = header.as_ref().map(|header| u64::from(header.entries).saturating_mul(u64::from(header.block)));
    let Some(size) = cx.options.assume.value("size").or(by_header) else {
        cx.could_not(
            "neither a footer nor a dynamic header is left: state size (and block_size, table_offset) with --assume",
        );
        return;
    };
    let differencing = header.as_ref().is_some_and(|header| header.parent_uuid != [0; 16]);
    cx.could_not(format!("the size of the disk: taken to be {size} bytes"));
    analyse_tables(cx, &Image { front: None, end: None, offset, size, differencing }, header.as_ref());
}

fn analyse_tables(cx: &mut Context<'_>, image: &Image, header: Option<&Dynamic>) {
    let mut fixed = Vec::new();
    fixed.extend(image.front.as_ref().map(|range| claim(range, Class::Copy)));
    fixed.extend(image.end.as_ref().map(|range| claim(range, Class::Header)));
    if let Some(header) = header {
        let range = image.offset..image.offset.saturating_add(dynamic::LEN as u64);
        fixed.push(claim(&range, Class::Header));
        judge_header(cx, &range, header);
        if image.differencing {
            parent(cx, &range, header, &mut fixed);
        }
    }
    let Some(table) = table(cx, image, header) else { return };
    cx.fact("block size", format!("{} bytes", table.block));
    cx.fact("block table", format!("{} entries at {:#x}", table.entries, table.at));
    blocks::analyse(cx, &table, image.end.as_ref(), fixed);
    cx.not_checked("guest data: this format has no checksums for it");
    if !cx.options.data {
        cx.not_checked("sector bitmaps: whether they hide data (--data looks)");
    }
    if image.differencing {
        cx.not_checked("the parent disk: not opened");
    }
}

fn judge_header(cx: &mut Context<'_>, range: &Range<u64>, header: &Dynamic) {
    if !header.checksum_right {
        let words = format!("the checksum of the dynamic disk header at {:#x} does not match its bytes", range.start);
        cx.find(Finding::new(codes::HEADER_CHECKSUM, words).host(range.clone()));
    }
    if header.version >> 16 != 1 {
        let words = format!("the dynamic disk header's version is {:#010x}, not 0x00010000", header.version);
        cx.find(Finding::new(codes::HEADER_VERSION, words).host(range.clone()));
    }
}

/// What the disk is read over. Names are shown, never opened.
fn parent(cx: &mut Context<'_>, range: &Range<u64>, header: &Dynamic, fixed: &mut Vec<Claim>) {
    let words = "this differencing disk is read as a stand-alone one by QEMU: zeroes where it has nothing of its own";
    cx.find(Finding::new(codes::PARENT_STANDALONE, words).host(range.clone()));
    cx.fact("parent identifier", uuid(header.parent_uuid));
    cx.fact("parent time stamp", format!("{} s after the start of 2000", header.parent_time));
    let mut names = Vec::new();
    if !header.parent_name.is_empty() {
        names.push(header.parent_name.clone());
    }
    let len = cx.file_len();
    for locator in &header.locators {
        let text = locator.offset..locator.offset.saturating_add(u64::from(locator.len));
        if text.end > len || text.start < 512 {
            let words = format!(
                "parent locator {} ({}) names {:#x}..{:#x}, which is not within the file's {len:#x} bytes",
                locator.index,
                ascii(locator.code),
                text.start,
                text.end
            );
            cx.find(Finding::new(codes::PARENT_LOCATOR, words).host(range.clone()));
            continue;
        }
        // A path has no more than 32 Ki characters.
        let bytes = cx.read(text.start, usize::try_from(locator.len).unwrap_or(0).min(1 << 16), "a parent locator");
        names.extend(locator.text(&bytes).filter(|name| !name.is_empty()));
        let space = u64::from(locator.len).max(locator.space).min(len.saturating_sub(text.start));
        fixed.push(Claim { start: text.start, len: space, class: Class::Metadata, index: locator.index as u64 });
    }
    if header.parent_uuid == [0; 16] || names.is_empty() {
        let words =
            if names.is_empty() { "no name of the parent is stored" } else { "the parent's identifier is zero" };
        cx.find(Finding::new(codes::PARENT_NONE, words).host(range.clone()));
    }
    names.dedup();
    for name in names {
        cx.references.push(Reference {
            role: "parent",
            name: printable(name.as_bytes(), 1024),
            format: Some("vpc".to_owned()),
        });
    }
}

/// The block table: as the header says, as is assumed, or, where both fail, as nearly every writer lays it out.
fn table(cx: &mut Context<'_>, image: &Image, header: Option<&Dynamic>) -> Option<blocks::Table> {
    let len = cx.file_len();
    let assume = |name: &str| cx.options.assume.value(name);
    let guessed = header.is_none() && assume("block_size").is_none();
    let block = assume("block_size").or_else(|| header.map(|header| u64::from(header.block))).unwrap_or(2 << 20);
    let at = assume("table_offset").or_else(|| header.map(|header| header.table_offset)).unwrap_or(0x600);
    let place = image.offset..image.offset.saturating_add(dynamic::LEN as u64).min(len);
    if !block.is_power_of_two() || block < 512 {
        let words = format!("the block size is {block}, not a power of two of at least 512");
        cx.find(Finding::new(codes::BLOCK_SIZE, words).host(place));
        cx.could_not(
            "the block table: without a block size no entry has a meaning; state it with --assume block_size=2M",
        );
        return None;
    }
    let needed = image.size.div_ceil(block);
    let stated = assume("entries").or_else(|| header.map(|header| u64::from(header.entries))).unwrap_or(needed);
    if !at.is_multiple_of(512) {
        let words = format!("the block table begins at {at:#x}, which is not a multiple of 512");
        cx.find(Finding::new(codes::TABLE_ALIGNMENT, words).host(place.clone()));
    }
    let there = stated.min(len.saturating_sub(at) / 4);
    // The part of a table behind the last block of the disk is spare: it may be cut off.
    if there < stated.min(needed) {
        let words = format!(
            "the block table of {stated} entries at {at:#x} ends past the end of the file ({len:#x}): {there} are there"
        );
        let gone = there.saturating_mul(block)..image.size;
        cx.find(Finding::new(codes::TABLE_OUTSIDE, words).host(place.clone()).guest(gone.clone()));
        cx.lose(gone);
    }
    if stated < needed {
        let words = format!("the block table has {stated} entries, a disk of {} bytes needs {needed}", image.size);
        let gone = stated.saturating_mul(block)..image.size;
        cx.find(Finding::new(codes::TABLE_SHORT, words).host(place).guest(gone.clone()));
        cx.lose(gone);
    }
    let table = blocks::Table {
        at,
        entries: there,
        block,
        bitmap: (block / 512).div_ceil(8).next_multiple_of(512),
        size: image.size,
        whole: there == stated && stated >= needed && !guessed,
        differencing: image.differencing,
    };
    if guessed && !blocks::plausible(cx, &table) {
        cx.could_not(
            "the block table: the usual layout does not fit this file; state table_offset and block_size with --assume",
        );
        return None;
    }
    if guessed {
        let words = format!(
            "the block table was read at {at:#x} with blocks of {block} bytes, as is usual and as fits the file"
        );
        cx.could_not(words);
    }
    Some(table)
}

/// The entry of a block that was never written.
const FREE: u32 = u32::MAX;

/// The entries in a piece of the table.
fn entries(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.chunks_exact(4).map(|entry| be_u32(entry, 0))
}

/// How sure a finding is that rests on the table being where it was taken to be.
fn confidence(table: &blocks::Table) -> Confidence {
    if table.whole { Confidence::Certain } else { Confidence::Likely }
}
