//! The format extension: one cluster with a checksum, sections in it, and the clusters of dirty bitmaps.

use std::ops::Range;

use md5::{Digest as _, Md5};

use crate::bytes::{le_u32, le_u64};
use crate::context::Context;
use crate::finding::Finding;
use crate::map::{Claim, Class};
use crate::parallels::codes;
use crate::parallels::header::Header;

const MAGIC: u64 = 0xab23_4cef_23dc_ea87;
const BITMAP: u64 = 0x2038_5fae_252c_b34a;
/// Magic and checksum; what follows is summed.
const HEAD: u64 = 24;
const SECTION_HEAD: u64 = 24;
/// Size, id, granularity, entries; the table follows.
const BITMAP_HEAD: u64 = 32;
const CHUNK: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// What the extension lays claim to.
#[derive(Debug, Default)]
pub(super) struct Extension {
    pub(super) claims: Vec<Claim>,
    /// Whether `claims` may not be all of it.
    pub(super) unsure: bool,
}

/// Reads the extension, if there is one.
pub(super) fn read(cx: &mut Context<'_>, header: &Header) -> Extension {
    let mut extension = Extension::default();
    let (at, file_len) = (header.extension, cx.file_len());
    if at == 0 {
        return extension;
    }
    let off_grid = at.checked_sub(header.data).is_none_or(|from| from.checked_rem(header.cluster) != Some(0));
    if at >= file_len || off_grid {
        let words = format!(
            "extension at {at:#x}; clusters lie from {:#x} to {file_len:#x}, {:#x} apart",
            header.data, header.cluster
        );
        cx.find(Finding::new(codes::EXT_PLACE, words).host(0x38..0x40));
        extension.unsure = true;
        if at >= file_len {
            return extension;
        }
    }
    // A flawed pointer is still a reference.
    let end = at.saturating_add(header.cluster);
    let claim = Claim { start: at, len: end.min(file_len).saturating_sub(at), class: Class::Metadata, index: 0 };
    extension.claims.push(claim);
    let head = cx.read(at, 24, "the extension");
    if le_u64(&head, 0) != MAGIC {
        let words = format!("the extension at {at:#x} begins with {:#018x}, not with {MAGIC:#018x}", le_u64(&head, 0));
        cx.find(Finding::new(codes::EXT_MAGIC, words).host(at..at.saturating_add(8)));
        extension.unsure = true;
        return extension;
    }
    let sum = checksum(cx, at.saturating_add(HEAD)..end);
    if head.get(8..24) != Some(&sum[..]) {
        let words =
            format!("the extension at {at:#x}: MD5 {}, stored {}", hex(&sum), hex(head.get(8..24).unwrap_or_default()));
        cx.find(Finding::new(codes::EXT_CHECKSUM, words).host(at..end));
    }
    sections(cx, header, &mut extension, at.saturating_add(HEAD)..end);
    extension
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// MD5 of a stretch; what the file does not reach reads as zeroes, as it does for every reader.
fn checksum(cx: &mut Context<'_>, range: Range<u64>) -> [u8; 16] {
    let mut md5 = Md5::new();
    let mut at = range.start;
    while at < range.end && !cx.stopped() {
        let len = usize::try_from(range.end.saturating_sub(at).min(CHUNK)).unwrap_or(0);
        let mut bytes = cx.read(at, len, "the extension");
        bytes.resize(len, 0);
        md5.update(&bytes);
        at = at.saturating_add(CHUNK);
    }
    md5.finalize().into()
}

fn sections(cx: &mut Context<'_>, header: &Header, extension: &mut Extension, range: Range<u64>) {
    let mut at = range.start;
    let mut bitmaps = 0u64;
    loop {
        let data = at.saturating_add(SECTION_HEAD);
        let head = cx.read(at, 24, "a section of the extension");
        let (magic, flags, len) = (le_u64(&head, 0), le_u64(&head, 8), u64::from(le_u32(&head, 16)));
        if data <= range.end && magic == 0 {
            break;
        }
        let end = data.saturating_add(len);
        if end > range.end || head.len() < 24 || cx.stopped() {
            let words =
                format!("the section at {at:#x} would end at {end:#x}, behind the extension's end {:#x}", range.end);
            cx.find(Finding::new(codes::EXT_SECTION, words).host(at..range.end.max(at)));
            extension.unsure = true;
            break;
        }
        if magic == BITMAP {
            bitmaps = bitmaps.saturating_add(1);
            bitmap(cx, header, extension, data..end);
        } else {
            let necessary = if flags & 1 == 0 { "" } else { ", marked as necessary" };
            let words = format!("section {magic:#018x} at {at:#x}{necessary}");
            cx.find(Finding::new(codes::EXT_UNKNOWN, words).host(at..end));
            cx.not_checked(format!("section {magic:#018x} of the extension: what it means is not known"));
            extension.unsure = true;
        }
        at = end.checked_next_multiple_of(8).unwrap_or(u64::MAX);
    }
    cx.fact("dirty bitmaps", bitmaps.to_string());
}

fn bitmap(cx: &mut Context<'_>, header: &Header, extension: &mut Extension, range: Range<u64>) {
    let head = cx.read(range.start, 32, "a dirty bitmap");
    let (sectors, granularity, entries) =
        (le_u64(&head, 0), u64::from(le_u32(&head, 24)), u64::from(le_u32(&head, 28)));
    let disk = header.size / SECTOR;
    let table = range.start.saturating_add(BITMAP_HEAD);
    let bytes = disk
        .checked_div(granularity)
        .map_or(0, |bits| bits.saturating_add(u64::from(disk.checked_rem(granularity) != Some(0))).div_ceil(8));
    let needed = bytes.div_ceil(header.cluster.max(1));
    let mut wrong = |words: String| {
        cx.find(
            Finding::new(codes::BITMAP_SHAPE, format!("the dirty bitmap at {:#x} {words}", range.start))
                .host(range.clone()),
        );
    };
    if sectors != disk {
        wrong(format!("is of {sectors} sectors, the disk has {disk}"));
    }
    if !granularity.is_power_of_two() {
        wrong(format!("has a bit for every {granularity} sectors, which is no power of two"));
    } else if entries != needed {
        wrong(format!("has {entries} table entries, {needed} are needed"));
    }
    let room = range.end.saturating_sub(table) / 8;
    if entries > room {
        wrong(format!("has {entries} table entries, its section has room for {room}"));
        extension.unsure = true;
    }
    clusters(cx, header, extension, table, entries.min(room));
}

fn clusters(cx: &mut Context<'_>, header: &Header, extension: &mut Extension, table: u64, entries: u64) {
    let file_len = cx.file_len();
    let mut start = 0u64;
    while start < entries && !cx.stopped() {
        let end = start.saturating_add(CHUNK / 8).min(entries);
        let len = usize::try_from(end.saturating_sub(start).saturating_mul(8)).unwrap_or(0);
        let bytes = cx.read(table.saturating_add(start.saturating_mul(8)), len, "a dirty bitmap's table");
        for (entry, index) in bytes.chunks_exact(8).zip(start..) {
            let entry = le_u64(entry, 0);
            if entry <= 1 {
                continue;
            }
            let place = entry.saturating_mul(SECTOR);
            let there = file_len.saturating_sub(place).min(header.cluster);
            let off_grid =
                place.checked_sub(header.data).is_none_or(|from| from.checked_rem(header.cluster) != Some(0));
            if there < header.cluster || off_grid {
                let words = format!(
                    "entry {index} of the dirty bitmap's table at {table:#x} names {place:#x}, where no cluster is"
                );
                let at = table.saturating_add(index.saturating_mul(8));
                cx.find(Finding::new(codes::BITMAP_CLUSTER, words).host(at..at.saturating_add(8)));
            }
            if there == 0 {
                continue;
            }
            if extension.claims.len() == extension.claims.capacity() {
                let more = extension.claims.len().max(64);
                if cx.budget.take((more as u64).saturating_mul(size_of::<Claim>() as u64)).is_err() {
                    extension.unsure = true;
                    cx.could_not("all clusters of the dirty bitmaps: there are more of them than memory holds");
                    return;
                }
                extension.claims.reserve_exact(more);
            }
            extension.claims.push(Claim { start: place, len: there, class: Class::BitmapData, index });
        }
        start = end;
    }
}
