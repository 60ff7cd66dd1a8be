//! The region tables at 192 and 256 KiB: where block table and metadata are.

use std::ops::Range;

use super::codes;
use super::header::{checksum_right, guid};
use super::log::place_right;
use super::replay::Replayed;
use crate::bytes::{le_u32, le_u64};
use crate::context::Context;
use crate::finding::Finding;
use crate::source::Source as _;

/// Where the tables are.
pub(super) const PLACES: [u64; 2] = [192 << 10, 256 << 10];
/// Bytes of a table.
pub(super) const LEN: usize = 64 << 10;
/// Entries a table can have.
const ENTRIES_MAX: u32 = 2047;
/// Where the first megabyte, which belongs to the headers, ends.
pub(super) const HEADERS_END: u64 = 1 << 20;

/// 2dc27766-f623-4200-9d64-115e9bfd4a08
const BLOCK_TABLE: [u8; 16] =
    [0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08];
/// 8b7ca206-4790-4b9a-b8fe-575f050f886e
const METADATA: [u8; 16] =
    [0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e];

/// What lies where.
#[derive(Default)]
pub(super) struct Regions {
    pub(super) block_table: Option<Range<u64>>,
    pub(super) metadata: Option<Range<u64>>,
    pub(super) unknown: Vec<Range<u64>>,
    /// Whether the tables said so, rather than a search.
    pub(super) certain: bool,
}

/// A GUID as it is written, its first three parts little endian.
pub(super) fn guid_text(guid: [u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = guid;
    let tail: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    let (first, last) = tail.split_at(4);
    format!("{d:02x}{c:02x}{b:02x}{a:02x}-{f:02x}{e:02x}-{h:02x}{g:02x}-{first}-{last}")
}

fn intact(bytes: &[u8]) -> Result<(), &'static str> {
    if !bytes.starts_with(b"regi") || bytes.len() < LEN {
        Err("there is no region table")
    } else if !checksum_right(bytes) {
        Err("its checksum does not match its bytes")
    } else if le_u32(bytes, 8) > ENTRIES_MAX {
        Err("it has more than 2047 entries")
    } else {
        Ok(())
    }
}

/// Reads both tables, says what is wrong with them, and finds the regions by the one that counts.
pub(super) fn regions(cx: &mut Context<'_>, view: &Replayed<'_>) -> Regions {
    let tables = PLACES.map(|at| cx.read_from(view, at, LEN, "a region table"));
    let place = |at: u64| at..at.saturating_add(LEN as u64);
    let [place_1, place_2] = PLACES.map(place);
    let [first, second] = &tables;
    match (intact(first), intact(second)) {
        (Ok(()), Ok(())) => {
            if first != second {
                let words = "both region tables are intact and differ; the first one counts";
                cx.find(Finding::new(codes::REGION_DIFFERS, words).host(place_1.clone()).host(place_2));
            }
            entries(cx, view, first, &place_1)
        }
        (Ok(()), Err(why)) => {
            copy_bad(cx, &place_2, why, &place_1);
            entries(cx, view, first, &place_1)
        }
        (Err(why), Ok(())) => {
            copy_bad(cx, &place_1, why, &place_2);
            entries(cx, view, second, &place_2)
        }
        (Err(why_1), Err(why_2)) => {
            let words = format!("region table 1 at {:#x}: {why_1}; 2 at {:#x}: {why_2}", place_1.start, place_2.start);
            cx.find(Finding::new(codes::REGION_NONE, words).host(place_1).host(place_2).count(2));
            Regions::default()
        }
    }
}

fn copy_bad(cx: &mut Context<'_>, bad: &Range<u64>, why: &str, good: &Range<u64>) {
    let words = format!("the region table at {:#x}: {why}; the one at {:#x} counts", bad.start, good.start);
    cx.find(Finding::new(codes::REGION_COPY, words).host(bad.clone()));
}

fn entries(cx: &mut Context<'_>, view: &Replayed<'_>, bytes: &[u8], place: &Range<u64>) -> Regions {
    let len = view.len();
    let mut regions = Regions { certain: true, ..Regions::default() };
    let count = usize::try_from(le_u32(bytes, 8)).unwrap_or(0);
    for (index, entry) in bytes.get(16..).unwrap_or_default().chunks_exact(32).take(count).enumerate() {
        let id = guid(entry, 0);
        let range = le_u64(entry, 16)..le_u64(entry, 16).saturating_add(u64::from(le_u32(entry, 24)));
        let name = match id {
            BLOCK_TABLE => "block table".to_owned(),
            METADATA => "metadata".to_owned(),
            _ => guid_text(id),
        };
        if range.start < HEADERS_END || range.is_empty() || !place_right(&range) || range.end > len {
            let words = format!(
                "region {index} ({name}) is {:#x}..{:#x} in a file of {:#x} bytes",
                range.start, range.end, len
            );
            cx.find(Finding::new(codes::REGION_PLACE, words).host(place.clone()));
        }
        let slot = match id {
            BLOCK_TABLE => &mut regions.block_table,
            METADATA => &mut regions.metadata,
            _ => {
                if le_u32(entry, 28) & 1 == 1 {
                    let words = format!("region {index} ({name}) is required and not known");
                    cx.find(Finding::new(codes::REGION_UNKNOWN, words).host(place.clone()));
                    cx.could_not(format!("region {name}: a reader that does not know it may not open the image"));
                }
                regions.unknown.push(range);
                continue;
            }
        };
        if slot.is_some() {
            let words = format!("region {index}: a second {name} region at {:#x}", range.start);
            cx.find(Finding::new(codes::REGION_TWICE, words).host(place.clone()));
        } else {
            *slot = Some(range);
        }
    }
    for (what, there) in [("block table", regions.block_table.is_some()), ("metadata", regions.metadata.is_some())] {
        if !there {
            let words = format!("the region table at {:#x} names no {what} region", place.start);
            cx.find(Finding::new(codes::REGION_MISSING, words).host(place.clone()));
        }
    }
    regions
}
