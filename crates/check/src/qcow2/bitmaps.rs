//! Persistent dirty bitmaps: directory, tables, the clusters with their bits (Q-X5, Q-B1..Q-B3).
//!
//! qcow2 spec, section "Bitmaps". Order: the extension's fields, the directory (entries of variable length, one behind
//! the other), then each bitmap's table (one entry per cluster of bits), then the bits behind the disk's end.
//!
//! With autoclear bit 0 clear, another program wrote to the image since: nothing here can be believed, the pointers
//! least of all (their clusters may have been given to somebody else). They are not followed then, as QEMU does not.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::bytes::{be_u16, be_u32, be_u64, is_zero, printable};
use crate::code::Severity;
use crate::context::Context;
use crate::finding::Finding;
use crate::map::Class;

use super::codes::structure as codes;
use super::extensions::{BitmapsExtension, Extensions};
use super::header::{BITMAPS, Geometry, Head, place};
use super::side::{Claims, Runs, Table, Window, size_text};

/// QEMU's limits: bitmaps, bytes of the directory, entries of a table, granularity, bytes of a name.
const COUNT_MAX: u32 = 65_535;
const DIRECTORY_MAX: u64 = 1024 * 65_535;
const TABLE_MAX: u64 = 0x800_0000;
const GRANULARITY: std::ops::RangeInclusive<u8> = 9..=31;
const NAME_MAX: u64 = 1023;
/// Bytes of a bitmap's clusters QEMU loads.
const BITS_MAX: u64 = 0x2000_0000;

/// Bytes of a directory entry before its extra data.
const FIXED: usize = 24;
const IN_USE: u32 = 1;
const AUTO: u32 = 1 << 1;
const EXTRA_COMPATIBLE: u32 = 1 << 2;
/// The only type there is.
const DIRTY_TRACKING: u8 = 1;

/// Entries of tables read in all; more is no image somebody made.
const WORK_MAX: u64 = 1 << 28;
/// Entries of a table read at a time.
const ENTRIES_AT_ONCE: u64 = 4096;
/// Bitmaps listed as a fact.
const LISTED: usize = 32;

/// Walks directory and tables; a fact for a person.
pub(crate) fn judge(cx: &mut Context<'_>, head: &Head, extensions: &Extensions, claims: &mut Claims) -> Option<String> {
    let (extension, geometry) = (extensions.bitmaps?, head.geometry?);
    if head.header.autoclear & BITMAPS == 0 {
        let words = format!("{} bitmaps, but autoclear bit 0 (bitmaps consistent) is clear", extension.count);
        cx.find(Finding::new(codes::BITMAP_STALE, words).host(88..96));
        return Some(format!("{}, none of them valid", extension.count));
    }
    judge_extension(cx, &extension);
    let start = extension.directory_offset;
    let file_len = cx.file_len();
    let len = extension.directory_len.min(DIRECTORY_MAX);
    let flaw = match place(file_len, start, len / 8, geometry.cluster_size()) {
        Err(why) => Some(format!("the offset of the bitmap directory, {start:#x}, {}", why.words(file_len))),
        Ok(table) if table.entries < table.stored_entries => Some(format!(
            "the bitmap directory {start:#x}..{:#x} reaches past the end of the file ({file_len:#x})",
            start.saturating_add(len)
        )),
        Ok(_) => None,
    };
    if let Some(words) = flaw {
        let at = extension.at.saturating_add(16);
        cx.find(Finding::new(codes::BITMAP_DIRECTORY, words).host(at..at.saturating_add(16)));
        if start == 0 || !start.is_multiple_of(geometry.cluster_size()) || start >= file_len {
            claims.complete = false;
            return Some(format!("{}, not found", extension.count));
        }
    }
    let mut walk = Walk {
        geometry,
        runs: Runs::new("bitmap"),
        names: BTreeSet::new(),
        tables: BTreeMap::new(),
        work: 0,
        taken: 0,
        listed: Vec::new(),
        window: Window::new("the bitmap directory"),
    };
    walk.directory(cx, &extension, start..start.saturating_add(len).min(file_len), claims);
    claims.add(cx, start, len, Class::BitmapDirectory, 0);
    cx.budget.give(walk.taken);
    let listed = walk.listed.join(", ");
    Some(match u64::from(extension.count).saturating_sub(walk.listed.len() as u64) {
        0 => format!("{}: {listed}", extension.count),
        more => format!("{}: {listed} and {more} more", extension.count),
    })
}

/// Q-X5.
fn judge_extension(cx: &mut Context<'_>, extension: &BitmapsExtension) {
    let words = if extension.count == 0 {
        "there are 0 bitmaps".to_owned()
    } else if extension.count > COUNT_MAX {
        format!("there are {} bitmaps, {COUNT_MAX} at most can be opened", extension.count)
    } else if extension.reserved != 0 {
        format!("the reserved field is {:#x}", extension.reserved)
    } else if extension.directory_len > DIRECTORY_MAX {
        format!("the directory has {} bytes, {DIRECTORY_MAX} at most can be opened", extension.directory_len)
    } else {
        return;
    };
    let range = extension.at..extension.at.saturating_add(32);
    cx.find(
        Finding::new(codes::BITMAP_EXTENSION, format!("bitmaps extension at {:#x}: {words}", extension.at)).host(range),
    );
}

/// An entry of the directory.
struct Entry {
    index: u64,
    /// Where it stands in the file.
    range: Range<u64>,
    name: String,
    table_offset: u64,
    table_size: u64,
    flags: u32,
    granularity_bits: u8,
}

struct Walk {
    geometry: Geometry,
    runs: Runs,
    names: BTreeSet<Vec<u8>>,
    /// Tables seen: first byte to end and bitmap.
    tables: BTreeMap<u64, (u64, u64)>,
    work: u64,
    /// Bytes of the budget `names` and `tables` have.
    taken: u64,
    listed: Vec<String>,
    window: Window,
}

impl Walk {
    fn directory(&mut self, cx: &mut Context<'_>, extension: &BitmapsExtension, area: Range<u64>, claims: &mut Claims) {
        let mut at = area.start;
        let mut index = 0u64;
        let count = u64::from(extension.count.min(COUNT_MAX));
        while index < count {
            if cx.stopped() {
                claims.complete = false;
                break;
            }
            let Some((entry, end)) = self.entry(cx, at, index, &area) else { break };
            self.table(cx, &entry, claims);
            at = end;
            index = index.saturating_add(1);
        }
        self.runs.end(cx);
        if index < count && !cx.stopped() {
            let words = format!("of {count} bitmaps {index} are in the directory, which ends at {at:#x}");
            cx.find(
                Finding::new(codes::BITMAP_DIRECTORY, words)
                    .host(at..area.end.max(at))
                    .count(count.saturating_sub(index)),
            );
            claims.complete = false;
        } else if at != area.end {
            let words = format!(
                "the entries of the bitmap directory have {} bytes, the extension says {}",
                at.saturating_sub(area.start),
                extension.directory_len
            );
            cx.find(Finding::new(codes::BITMAP_DIRECTORY, words).host(area));
        }
    }

    /// Judges the entry at `at`; where the next one begins, or `None` if there is none here.
    fn entry(&mut self, cx: &mut Context<'_>, at: u64, index: u64, area: &Range<u64>) -> Option<(Entry, u64)> {
        let fixed = self.window.get(cx, at, FIXED);
        if fixed.len() < FIXED || is_zero(fixed) {
            return None;
        }
        let (table_offset, table_size, flags) = (be_u64(fixed, 0), u64::from(be_u32(fixed, 8)), be_u32(fixed, 12));
        let kind = fixed.get(16).copied().unwrap_or(0);
        let granularity_bits = fixed.get(17).copied().unwrap_or(0);
        let (name_len, extra_len) = (u64::from(be_u16(fixed, 18)), u64::from(be_u32(fixed, 20)));
        let name_at = at.saturating_add(FIXED as u64).saturating_add(extra_len);
        let unpadded = name_at.saturating_add(name_len);
        let end = unpadded.checked_next_multiple_of(8)?;
        if end > area.end {
            return None;
        }
        let raw_name = self.window.get(cx, name_at, usize::try_from(name_len).unwrap_or(0)).to_vec();
        let name = printable(&raw_name, 64);
        let padding = self.window.get(cx, unpadded, usize::try_from(end.saturating_sub(unpadded)).unwrap_or(0));
        let padded = !is_zero(padding);
        let range = at..end;

        let flaw = if flags & !(IN_USE | AUTO | EXTRA_COMPATIBLE) != 0 {
            Some(format!("has unknown flags ({flags:#x})"))
        } else if kind != DIRTY_TRACKING {
            Some(format!("has type {kind}, only 1 exists"))
        } else if !GRANULARITY.contains(&granularity_bits) {
            Some(format!("has a granularity of 2^{granularity_bits} bytes; 2^9 to 2^31 can be opened"))
        } else if name_len == 0 || name_len > NAME_MAX {
            Some(format!("has a name of {name_len} bytes; 1 to {NAME_MAX} can be"))
        } else if extra_len != 0 && flags & EXTRA_COMPATIBLE == 0 {
            Some(format!("has {extra_len} bytes of extra data that nobody may ignore"))
        } else {
            None
        };
        if padded {
            let words = format!("bitmap {index} ('{name}') has padding that is not zero");
            cx.find(Finding::new(codes::BITMAP_ENTRY, words).severity(Severity::Warning).host(range.clone()));
        }
        if let Some(flaw) = flaw {
            self.runs
                .hit(cx, codes::BITMAP_ENTRY, index, range.clone(), || format!("bitmap {index} ('{name}') {flaw}"));
        }
        if flags & IN_USE != 0 {
            self.runs.hit(cx, codes::BITMAP_IN_USE, index, range.clone(), || {
                format!("bitmap {index} ('{name}') is marked as in use: it was not saved")
            });
        }
        // What the sets of names and tables may cost, 65,535 bitmaps at most; without memory for it nothing is
        // compared.
        let cost = (raw_name.len() as u64).saturating_add(128);
        let compare = cx.budget.left() > (cx.options.memory / 2).saturating_add(cost) && cx.budget.take(cost).is_ok();
        self.taken = self.taken.saturating_add(if compare { cost } else { 0 });
        if compare && !self.names.insert(raw_name) {
            self.runs.hit(cx, codes::BITMAP_NAME, index, range.clone(), || {
                format!("bitmap {index} has the name of an earlier one, '{name}'")
            });
        }
        if self.listed.len() < LISTED {
            let granularity = match 1u64.checked_shl(u32::from(granularity_bits)) {
                Some(bytes) => size_text(bytes),
                None => format!("2^{granularity_bits} bytes"),
            };
            let auto = if flags & AUTO != 0 { ", auto" } else { "" };
            let in_use = if flags & IN_USE != 0 { ", in use" } else { "" };
            self.listed.push(format!("'{name}' (granularity {granularity}{auto}{in_use})"));
        }
        Some((Entry { index, range, name, table_offset, table_size, flags, granularity_bits }, end))
    }

    /// Clusters of bits the disk needs at a granularity.
    fn needed(&self, entry: &Entry) -> u64 {
        self.bits(entry).div_ceil(8).div_ceil(self.geometry.cluster_size().max(1))
    }

    fn bits(&self, entry: &Entry) -> u64 {
        match 1u64.checked_shl(u32::from(entry.granularity_bits)) {
            Some(granularity) => self.geometry.size.div_ceil(granularity.max(1)),
            None => u64::from(self.geometry.size > 0),
        }
    }

    /// Judges the place and the length of a bitmap's table, and walks it.
    fn table(&mut self, cx: &mut Context<'_>, entry: &Entry, claims: &mut Claims) {
        let (index, name, range) = (entry.index, &entry.name, entry.range.clone());
        let file_len = cx.file_len();
        let needed = self.needed(entry);
        let size = entry.table_size;
        let in_use = entry.flags & IN_USE != 0;
        // Without a granularity that can be (said already) nobody knows how long the table should be.
        let free = in_use || !GRANULARITY.contains(&entry.granularity_bits);
        let bits_len = size.saturating_mul(self.geometry.cluster_size());
        let flaw = if size == 0
            || size > TABLE_MAX
            || bits_len > BITS_MAX.max(needed.saturating_mul(self.geometry.cluster_size()))
        {
            Some(format!("has a table of {size} entries, {needed} are needed"))
        } else if size != needed && !free {
            Some(format!("has a table of {size} entries, a disk of {} bytes needs {needed}", self.geometry.size))
        } else {
            None
        };
        if let Some(flaw) = flaw {
            self.runs
                .hit(cx, codes::BITMAP_TABLE, index, range.clone(), || format!("bitmap {index} ('{name}') {flaw}"));
        }
        if size == 0 {
            return;
        }
        let table = match place(file_len, entry.table_offset, size, self.geometry.cluster_size()) {
            Ok(table) => table,
            Err(why) => {
                self.runs.hit(cx, codes::BITMAP_TABLE, index, range, || {
                    format!(
                        "the table's offset of bitmap {index} ('{name}'), {:#x}, {}",
                        entry.table_offset,
                        why.words(file_len)
                    )
                });
                claims.complete = false;
                return;
            }
        };
        if table.entries < size {
            self.runs.hit(cx, codes::BITMAP_TABLE, index, range.clone(), || {
                format!(
                    "the table of bitmap {index} ('{name}') at {:#x} has {size} entries, of which {} are inside the file ({file_len:#x})",
                    table.offset, table.entries
                )
            });
        }
        let end = table.offset.saturating_add(table.entries.saturating_mul(8));
        claims.add(cx, table.offset, end.saturating_sub(table.offset), Class::BitmapTable, index);
        // Tables do not overlap: those behind the last one that begins before this one's end are behind it.
        let before = self.tables.range(..end).next_back().filter(|(_, (before_end, _))| *before_end > table.offset);
        if let Some((_, (_, other))) = before {
            let other = *other;
            self.runs.hit(cx, codes::BITMAP_TABLE, index, range, || {
                format!("the table of bitmap {index} ('{name}') at {:#x} lies on that of bitmap {other}", table.offset)
            });
            return;
        }
        self.tables.insert(table.offset, (end, index));
        self.entries(cx, entry, table, claims);
    }

    /// Judges each entry of a table, and claims the clusters of bits.
    fn entries(&mut self, cx: &mut Context<'_>, entry: &Entry, table: Table, claims: &mut Claims) {
        let cluster = self.geometry.cluster_size();
        let file_len = cx.file_len();
        let (bitmap, needed) = (entry.index, self.needed(entry));
        let mut runs = Runs::new("entry");
        let mut first = 0u64;
        while first < table.entries {
            let at = table.offset.saturating_add(first.saturating_mul(8));
            // A hole holds zeroes: no bits. It costs nothing to pass over.
            if let Some(data) = cx.image.next_data(at).filter(|data| data.start >= at.saturating_add(8)) {
                first = first.saturating_add(data.start.saturating_sub(at) / 8);
                continue;
            } else if cx.image.next_data(at).is_none() {
                break;
            }
            let count = table.entries.saturating_sub(first).min(ENTRIES_AT_ONCE);
            self.work = self.work.saturating_add(count);
            if self.work > WORK_MAX || cx.stopped() {
                cx.could_not(format!("the tables of bitmaps from bitmap {bitmap} on"));
                claims.complete = false;
                break;
            }
            let bytes = cx.read(at, usize::try_from(count.saturating_mul(8)).unwrap_or(0), "a bitmap table");
            for (index, bytes) in (first..).zip(bytes.chunks_exact(8)) {
                let raw = be_u64(bytes, 0);
                if raw == 0 {
                    continue;
                }
                let offset = raw & 0x00ff_ffff_ffff_fe00;
                let reserved = raw & 0xff00_0000_0000_01fe != 0 || (raw & 1 != 0 && offset != 0);
                let why = if reserved {
                    "has reserved bits set"
                } else if !offset.is_multiple_of(cluster) {
                    "points to no cluster's start"
                } else if offset >= file_len {
                    "points past the end of the file"
                } else {
                    ""
                };
                let place = table.offset.saturating_add(index.saturating_mul(8));
                if !why.is_empty() {
                    runs.hit(cx, codes::BITMAP_POINTER, index, place..place.saturating_add(8), || {
                        format!(
                            "entry {index} of the table of bitmap {bitmap} ('{}') at {:#x}, {raw:#018x}, {why}",
                            entry.name, table.offset
                        )
                    });
                }
                if offset != 0 {
                    // A flawed pointer is still a reference.
                    claims.add(cx, offset & !cluster.wrapping_sub(1), cluster, Class::BitmapData, bitmap);
                    let known = GRANULARITY.contains(&entry.granularity_bits);
                    if why.is_empty() && known && index.saturating_add(1) == needed {
                        self.tail(cx, entry, offset);
                    }
                }
            }
            first = first.saturating_add(count);
        }
        runs.end(cx);
    }

    /// Bits behind the end of the disk, in the last cluster, are zero.
    fn tail(&mut self, cx: &mut Context<'_>, entry: &Entry, last: u64) {
        let cluster = self.geometry.cluster_size();
        let bits = self.bits(entry);
        let before = self.needed(entry).saturating_sub(1).saturating_mul(cluster).saturating_mul(8);
        let here = bits.saturating_sub(before);
        let mut window = Window::new("a bitmap");
        let mut at = last.saturating_add(here / 8);
        let end = last.saturating_add(cluster);
        let mut skip = here % 8;
        while at < end {
            let len = end.saturating_sub(at).min(4096);
            let bytes = window.get(cx, at, usize::try_from(len).unwrap_or(0));
            let first = u64::from(bytes.first().copied().unwrap_or(0)) >> skip != 0;
            if first || !is_zero(bytes.get(1..).unwrap_or_default()) {
                let words = format!(
                    "bitmap {} ('{}') has bits behind bit {bits}, the end of the disk",
                    entry.index, entry.name
                );
                cx.find(Finding::new(codes::BITMAP_TAIL, words).host(last..end));
                return;
            }
            if (bytes.len() as u64) < len {
                return;
            }
            skip = 0;
            at = at.saturating_add(len);
        }
    }
}
