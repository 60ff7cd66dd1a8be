//! The metadata region: a table of items, and the items (block size, disk size, sector sizes, parent).

use std::ops::Range;

use super::codes;
use super::header::guid;
use super::region::guid_text;
use super::replay::Replayed;
use crate::bytes::{le_u16, le_u32, le_u64};
use crate::context::Context;
use crate::finding::Finding;

const TABLE_LEN: usize = 64 << 10;
const ENTRIES_MAX: u16 = 2047;
/// The largest disk: 64 TiB.
const SIZE_MAX: u64 = 64 << 40;

/// Items this reader knows: identifier, name, bytes.
const KNOWN: [([u8; 16], &str, u32); 6] = [
    (
        [0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b],
        "file parameters",
        8,
    ),
    (
        [0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8],
        "virtual disk size",
        8,
    ),
    (
        [0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f],
        "logical sector size",
        4,
    ),
    (
        [0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44, 0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56],
        "physical sector size",
        4,
    ),
    (
        [0xab, 0x12, 0xca, 0xbe, 0xe6, 0xb2, 0x23, 0x45, 0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46],
        "virtual disk id",
        16,
    ),
    (
        [0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c],
        "parent locator",
        20,
    ),
];
const PARAMETERS: usize = 0;
const SIZE: usize = 1;
const LOGICAL: usize = 2;
const PHYSICAL: usize = 3;
const DISK_ID: usize = 4;
const PARENT: usize = 5;

/// What the items say; checked where it can be.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    pub(super) block: Option<u64>,
    pub(super) size: Option<u64>,
    pub(super) sector: Option<u64>,
    pub(super) has_parent: bool,
    pub(super) fixed: bool,
    /// Keys and values of the parent locator.
    pub(super) parent: Vec<(String, String)>,
}

/// Reads the metadata region.
pub(super) fn read(cx: &mut Context<'_>, view: &Replayed<'_>, region: &Range<u64>) -> Metadata {
    let table = cx.read_from(view, region.start, TABLE_LEN, "the metadata table");
    let place = region.start..region.start.saturating_add(TABLE_LEN as u64);
    if !table.starts_with(b"metadata") {
        let words = format!("there is no metadata table at {:#x}", region.start);
        cx.find(Finding::new(codes::META_TABLE, words).host(place));
        return Metadata::default();
    }
    let count = le_u16(&table, 10);
    if count > ENTRIES_MAX {
        let words = format!("the metadata table at {:#x} has {count} entries, more than {ENTRIES_MAX}", region.start);
        cx.find(Finding::new(codes::META_TABLE, words).host(place.clone()));
    }
    let mut found: [Option<Vec<u8>>; KNOWN.len()] = Default::default();
    let mut taken: Vec<(Range<u64>, String)> = Vec::new();
    let entries = table.get(32..).unwrap_or_default().chunks_exact(32);
    for (index, entry) in entries.take(usize::from(count.min(ENTRIES_MAX))).enumerate() {
        item(cx, view, region, index, entry, &mut found, &mut taken);
    }
    taken.sort_by_key(|(range, _)| (range.start, range.end));
    for pair in taken.windows(2) {
        if let [(first, one), (second, other)] = pair
            && second.start < first.end
        {
            let words =
                format!("metadata items {one} and {other} share {:#x}..{:#x}", second.start, first.end.min(second.end));
            cx.find(Finding::new(codes::META_ITEM, words).host(second.clone()));
        }
    }
    values(cx, &found, &place)
}

fn item(
    cx: &mut Context<'_>,
    view: &Replayed<'_>,
    region: &Range<u64>,
    index: usize,
    entry: &[u8],
    found: &mut [Option<Vec<u8>>; KNOWN.len()],
    taken: &mut Vec<(Range<u64>, String)>,
) {
    let id = guid(entry, 0);
    let (offset, len, flags) = (u64::from(le_u32(entry, 16)), le_u32(entry, 20), le_u32(entry, 24));
    let at = region.start.saturating_add((index as u64).saturating_mul(32)).saturating_add(32);
    let place = at..at.saturating_add(32);
    let known = KNOWN.iter().position(|(known, _, _)| *known == id);
    let name =
        known.and_then(|known| KNOWN.get(known)).map_or_else(|| guid_text(id), |(_, name, _)| (*name).to_owned());
    let start = region.start.saturating_add(offset);
    let range = start..start.saturating_add(u64::from(len));
    let inside = offset >= TABLE_LEN as u64 && range.end <= region.end;
    if len > 0 && !inside || len == 0 && offset != 0 {
        let words = format!(
            "metadata item {index} ({name}): {len} bytes at {offset:#x} of a region of {:#x} bytes, items begin at 0x10000",
            region.end.saturating_sub(region.start)
        );
        cx.find(Finding::new(codes::META_ITEM, words).host(place));
        return;
    }
    if len > 0 {
        taken.push((range.clone(), name.clone()));
    }
    let Some((known, (_, _, needed))) = known.and_then(|known| Some((known, KNOWN.get(known)?))) else {
        // Bit 2: a reader that does not know the item may not open the file. Bit 0: a user's item, which is never
        // needed.
        if flags & 4 != 0 {
            let words = format!("metadata item {index} ({name}) is required and not known");
            cx.find(Finding::new(codes::META_UNKNOWN, words).host(place));
            cx.could_not(format!("metadata item {name}: a reader that does not know it may not open the image"));
        }
        return;
    };
    if len < *needed {
        let words = format!("metadata item {index} ({name}) has {len} bytes, it needs {needed}");
        cx.find(Finding::new(codes::META_ITEM, words).host(place));
        return;
    }
    let Some(slot) = found.get_mut(known) else { return };
    if slot.is_some() {
        let words = format!("metadata item {index} ({name}) is there a second time; the first one counts");
        cx.find(Finding::new(codes::META_ITEM, words).host(place));
        return;
    }
    // The longest is a parent locator: paths of at most 64 KiB each, a handful of them.
    let bytes = usize::try_from(len).unwrap_or(0).min(1 << 20);
    *slot = Some(cx.read_from(view, range.start, bytes, "a metadata item"));
}

fn values(cx: &mut Context<'_>, found: &[Option<Vec<u8>>; KNOWN.len()], place: &Range<u64>) -> Metadata {
    let get = |index: usize| found.get(index).and_then(Option::as_deref);
    for index in [PARAMETERS, SIZE, LOGICAL, PHYSICAL, DISK_ID] {
        if get(index).is_none() {
            let name = KNOWN.get(index).map_or("", |(_, name, _)| *name);
            let words = format!("the metadata item {name} is missing");
            cx.find(Finding::new(codes::META_MISSING, words).host(place.clone()));
        }
    }
    let mut bad = |words: String| cx.find(Finding::new(codes::META_VALUE, words).host(place.clone()));
    let mut meta = Metadata::default();
    if let Some(bytes) = get(PARAMETERS) {
        let (block, flags) = (le_u32(bytes, 0), le_u32(bytes, 4));
        if block.is_power_of_two() && (1 << 20..=256 << 20).contains(&block) {
            meta.block = Some(u64::from(block));
        } else {
            bad(format!("the block size is {block}, not a power of two from 1 to 256 MiB"));
        }
        meta.fixed = flags & 1 != 0;
        meta.has_parent = flags & 2 != 0;
    }
    if let Some(bytes) = get(LOGICAL) {
        match le_u32(bytes, 0) {
            sector @ (512 | 4096) => meta.sector = Some(u64::from(sector)),
            other => bad(format!("the logical sector size is {other}, neither 512 nor 4096")),
        }
    }
    if let Some(bytes) = get(PHYSICAL)
        && !matches!(le_u32(bytes, 0), 512 | 4096)
    {
        bad(format!("the physical sector size is {}, neither 512 nor 4096", le_u32(bytes, 0)));
    }
    if let Some(bytes) = get(SIZE) {
        let size = le_u64(bytes, 0);
        if size > SIZE_MAX {
            bad(format!("the disk has {size} bytes, more than 64 TiB"));
        } else {
            meta.size = Some(size);
            if !size.is_multiple_of(meta.sector.unwrap_or(512)) {
                bad(format!("the disk has {size} bytes, which is no whole number of its sectors"));
            }
        }
    }
    match (meta.has_parent, get(PARENT)) {
        (true, Some(bytes)) => meta.parent = locator(bytes),
        (true, None) => {
            let words = "the disk has a parent, but there is no parent locator";
            cx.find(Finding::new(codes::META_PARENT, words).host(place.clone()));
        }
        (false, Some(_)) => {
            let words = "there is a parent locator, but the disk says that it has no parent";
            cx.find(Finding::new(codes::META_PARENT, words).host(place.clone()));
        }
        (false, None) => {}
    }
    if meta.has_parent && get(PARENT).is_some() && meta.parent.is_empty() {
        let words = "the parent locator holds no entry that can be read";
        cx.find(Finding::new(codes::META_PARENT, words).host(place.clone()));
    }
    if let Some(bytes) = get(DISK_ID) {
        cx.fact("identifier", guid_text(guid(bytes, 0)));
    }
    if let Some(bytes) = get(PHYSICAL) {
        cx.fact("physical sector", format!("{} bytes", le_u32(bytes, 0)));
    }
    meta
}

/// Keys and values of a parent locator ([MS-VHDX] 2.6.2.6), those that lie inside of it.
fn locator(bytes: &[u8]) -> Vec<(String, String)> {
    let count = usize::from(le_u16(bytes, 18)).min(64);
    let text = |offset: u32, len: u16| {
        let start = usize::try_from(offset).ok()?;
        let units = bytes.get(start..start.checked_add(usize::from(len))?)?.chunks_exact(2);
        let units = units.map(|pair| le_u16(pair, 0)).take_while(|unit| *unit != 0);
        Some(char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect::<String>())
    };
    let entries = bytes.get(20..).unwrap_or_default().chunks_exact(12).take(count);
    entries
        .filter_map(|entry| {
            let key = text(le_u32(entry, 0), le_u16(entry, 8))?;
            Some((key, text(le_u32(entry, 4), le_u16(entry, 10))?))
        })
        .collect()
}
