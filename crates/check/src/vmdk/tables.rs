//! The walk over grain directory and grain tables: in large sorted reads, a slice of the directory at a time, so that
//! memory does not grow with the disk. Every pass of the analysis is such a walk with another visitor.

use std::ops::Range;

use crate::budget::Full;
use crate::context::Context;
use crate::holes;

use super::geometry::{Geometry, Pointer};

/// Directory entries looked at together.
const SLICE: u64 = 1 << 16;
/// Bytes of tables held at a time, per copy.
const BATCH: u64 = 2 << 20;
/// A gap between two tables that is read over rather than skipped.
const GAP: u64 = 64 << 10;

/// Why a walk ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    /// Memory is used up: smaller windows are needed.
    Full,
    /// Somebody asked to stop.
    Stopped,
}

impl From<Full> for Halt {
    fn from(_: Full) -> Self {
        Self::Full
    }
}

/// What is wrong with an entry of the grain directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Flaw {
    /// It points past the end of the file, or means nothing.
    Outside,
    /// The table begins in the file and ends behind it.
    Cut,
    /// It is 0 and the redundant directory has a table.
    Lacks,
    /// It is fine; the redundant directory's entry is not.
    Copy,
}

/// A grain table and its copy.
pub(super) struct Table<'t> {
    /// Which entry of the directory names it.
    pub(super) index: u64,
    /// First byte.
    pub(super) at: u64,
    /// What stands there; zeroes behind the end of the file.
    pub(super) bytes: &'t [u8],
    /// The redundant table's place and bytes.
    pub(super) copy: Option<(u64, &'t [u8])>,
    /// An entry before this one names the same table; `bytes` is empty.
    pub(super) again: bool,
    /// The medium did not give all of it.
    pub(super) unreadable: bool,
    /// It lies in a hole of the file, and so does its copy, if it has one: nothing but zeroes. `bytes` is empty.
    pub(super) hole: bool,
}

/// Somebody who looks at tables. Entries come slice by slice, within a slice by place in the file.
pub(super) trait Visit {
    /// Directory entries that are 0.
    fn absent(&mut self, _cx: &mut Context<'_>, _tables: Range<u64>) {}

    /// A directory entry with a flaw; whether the redundant one is used in its place.
    fn flawed(&mut self, _cx: &mut Context<'_>, _index: u64, _raw: u64, _flaw: Flaw, _copy: Option<u64>) {}

    /// A part of the directory could not be read and is taken for 0.
    fn unreadable(&mut self, _cx: &mut Context<'_>, _tables: Range<u64>) {}

    /// A table.
    fn table(&mut self, cx: &mut Context<'_>, table: &Table<'_>) -> Result<(), Halt>;
}

/// What a walk reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    /// What is being done, for the progress line.
    pub(super) phase: &'static str,
    /// Whether parts that can not be read become findings: once is enough.
    pub(super) first: bool,
    /// Whether redundant tables are read too.
    pub(super) copies: bool,
    /// Whether tables are read at all, or only named.
    pub(super) contents: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ref {
    at: u64,
    index: u64,
    copy: u64,
}

pub(super) fn walk(cx: &mut Context<'_>, geo: &Geometry, how: Walk, visit: &mut dyn Visit) -> Result<(), Halt> {
    let entry = geo.entry_len();
    // Only what is in the file is an entry; the rest was reported with the directory's place.
    let there = geo.entries_in(cx.file_len().saturating_sub(geo.gd)).min(geo.gd_entries);
    let mut start = 0u64;
    while start < there {
        if cx.stopped() {
            return Err(Halt::Stopped);
        }
        // Holes hold no tables. Whole slices of them are skipped, so that a directory of nothing costs nothing.
        let at = |index: u64| geo.gd.saturating_add(index.saturating_mul(entry));
        let data = next_index(cx, geo.gd, start, there, entry);
        let data = geo.rgd.map_or(data, |rgd| data.min(next_index(cx, rgd, start, there, entry)));
        if data > start {
            visit.absent(cx, start..data);
            start = data;
            continue;
        }
        let end = start.saturating_add(SLICE).min(there);
        let len = usize::try_from(end.saturating_sub(start).saturating_mul(entry)).unwrap_or(0);
        let (directory, lost) = read(cx, at(start), len, how.first, "the grain directory");
        let copy = geo.rgd.map(|rgd| {
            let at = rgd.saturating_add(start.saturating_mul(entry));
            read(cx, at, len, how.first, "the redundant grain directory").0
        });
        if lost {
            visit.unreadable(cx, start..end);
        }
        let tables = decode(cx, geo, start..end, &directory, copy.as_deref(), visit);
        if how.contents {
            contents(cx, geo, how, &tables, visit)?;
        } else {
            for one in &tables {
                let copy = (one.copy != 0).then_some((one.copy, &[][..]));
                let again = false;
                let (unreadable, hole) = (false, false);
                visit.table(cx, &Table { index: one.index, at: one.at, bytes: &[], copy, again, unreadable, hole })?;
            }
        }
        start = end;
        cx.progress(how.phase, start.saturating_mul(geo.table_len()), there.saturating_mul(geo.table_len()));
    }
    Ok(())
}

/// The first entry at or behind `start` that may be something: what lies in a hole is 0.
fn next_index(cx: &Context<'_>, directory: u64, start: u64, end: u64, entry: u64) -> u64 {
    let at = directory.saturating_add(start.saturating_mul(entry));
    let Some(data) = cx.image.next_data(at) else { return end };
    let skipped = data.start.saturating_sub(at).checked_div(entry).unwrap_or(0);
    start.saturating_add(skipped).min(end)
}

/// The directory's entries: those that lead to a table, by place.
fn decode(
    cx: &mut Context<'_>,
    geo: &Geometry,
    entries: Range<u64>,
    directory: &[u8],
    copy: Option<&[u8]>,
    visit: &mut dyn Visit,
) -> Vec<Ref> {
    let file = cx.file_len();
    let inside = |at: u64| at != 0 && at.checked_add(geo.table_len()).is_some_and(|end| end <= file);
    let mut tables = Vec::new();
    let mut absent: Option<Range<u64>> = None;
    for (offset, index) in entries.enumerate() {
        let raw = geo.raw(directory, offset);
        let second = copy.map(|copy| geo.directory_entry(copy, offset));
        let sound = match second {
            Some(Pointer::At(at)) if inside(at) => Some(at),
            _ => None,
        };
        let mut push = |at: u64, copy: u64| tables.push(Ref { at, index, copy });
        match geo.directory_entry(directory, offset) {
            Pointer::None | Pointer::Zero => match sound {
                Some(at) => {
                    visit.flawed(cx, index, raw, Flaw::Lacks, sound);
                    push(at, 0);
                }
                None => {
                    match &mut absent {
                        Some(run) if run.end == index => run.end = index.saturating_add(1),
                        _ => {
                            if let Some(run) = absent.replace(index..index.saturating_add(1)) {
                                visit.absent(cx, run);
                            }
                        }
                    }
                    if second.is_some_and(|second| second != Pointer::None) {
                        visit.flawed(cx, index, raw, Flaw::Copy, None);
                    }
                }
            },
            Pointer::At(at) if at < file => {
                if !inside(at) {
                    visit.flawed(cx, index, raw, Flaw::Cut, sound);
                }
                if copy.is_some() && sound.is_none() {
                    visit.flawed(cx, index, raw, Flaw::Copy, None);
                }
                push(at, sound.unwrap_or(0));
            }
            _ => {
                visit.flawed(cx, index, raw, Flaw::Outside, sound);
                if let Some(at) = sound {
                    push(at, 0);
                }
            }
        }
    }
    if let Some(run) = absent {
        visit.absent(cx, run);
    }
    tables.sort_unstable();
    tables
}

/// Reads the tables, a batch at a time, and hands them over.
fn contents(
    cx: &mut Context<'_>,
    geo: &Geometry,
    how: Walk,
    tables: &[Ref],
    visit: &mut dyn Visit,
) -> Result<(), Halt> {
    let len = geo.table_len();
    let per_batch = usize::try_from(BATCH.checked_div(len).unwrap_or(1).max(1)).unwrap_or(1);
    let step = usize::try_from(len).unwrap_or(0).max(1);
    let (mut before, mut known, mut known_copy) = (None, None, None);
    for batch in tables.chunks(per_batch) {
        if cx.stopped() {
            return Err(Halt::Stopped);
        }
        // Writers make all tables at once, and most of a sparse disk's are never written to.
        let is_hole = |at: u64, known: &mut _| holes::is_hole(cx.image, &(at..at.saturating_add(len)), known);
        let empty: Vec<bool> = batch
            .iter()
            .map(|one| {
                let copied = how.copies && one.copy != 0;
                is_hole(one.at, &mut known) && (!copied || is_hole(one.copy, &mut known_copy))
            })
            .collect();
        let full = || batch.iter().enumerate().zip(&empty).filter(|(_, empty)| !**empty).map(|(one, _)| one);
        let places: Vec<(u64, usize)> = full().map(|(slot, one)| (one.at, slot)).collect();
        let (first, bad) = gather(cx, &places, len, how.first, "grain tables");
        let mut places: Vec<(u64, usize)> = Vec::new();
        if how.copies {
            places = full().map(|(slot, one)| (one.copy, slot)).filter(|(at, _)| *at != 0).collect();
            places.sort_unstable();
        }
        let (second, bad_copy) = gather(cx, &places, len, how.first, "redundant grain tables");
        for ((slot, one), hole) in batch.iter().enumerate().zip(empty) {
            let start = slot.saturating_mul(step);
            let of = |all: &[u8]| -> Range<usize> { start.min(all.len())..start.saturating_add(step).min(all.len()) };
            let again = before == Some(one.at);
            before = Some(one.at);
            let bytes = if again { &[][..] } else { first.get(of(&first)).unwrap_or_default() };
            let copy = (how.copies && one.copy != 0 && !bad_copy.contains(&slot))
                .then(|| (one.copy, second.get(of(&second)).unwrap_or_default()))
                .filter(|(_, bytes)| !bytes.is_empty());
            let unreadable = bad.contains(&slot);
            visit.table(cx, &Table { index: one.index, at: one.at, bytes, copy, again, unreadable, hole })?;
        }
    }
    Ok(())
}

/// Reads pieces of `len` bytes from sorted places into their slots, neighbours together. Also the slots that could not
/// be read wholly.
fn gather(cx: &mut Context<'_>, places: &[(u64, usize)], len: u64, first: bool, what: &str) -> (Vec<u8>, Vec<usize>) {
    let step = usize::try_from(len).unwrap_or(0);
    let slots = places.iter().map(|(_, slot)| slot.saturating_add(1)).max().unwrap_or(0);
    let mut out = vec![0u8; slots.saturating_mul(step)];
    let mut bad = Vec::new();
    let mut rest = places;
    while let Some((start, _)) = rest.first().copied() {
        let mut end = start.saturating_add(len);
        let mut count = 1usize;
        while let Some((next, _)) = rest.get(count) {
            let reach = next.saturating_add(len);
            if *next > end.saturating_add(GAP) || reach.saturating_sub(start) > BATCH {
                break;
            }
            end = end.max(reach);
            count = count.saturating_add(1);
        }
        let (group, behind) = rest.split_at_checked(count).unwrap_or((rest, &[]));
        rest = behind;
        let (bytes, failed) = read(cx, start, usize::try_from(end.saturating_sub(start)).unwrap_or(0), first, what);
        for (at, slot) in group {
            let from = usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
            let piece =
                bytes.get(from.min(bytes.len())..from.saturating_add(step).min(bytes.len())).unwrap_or_default();
            let to = slot.saturating_mul(step);
            if let Some(to) = out.get_mut(to..to.saturating_add(piece.len())) {
                to.copy_from_slice(piece);
            }
            if failed && cx.image.read_at(*at, &mut vec![0u8; piece.len()]).is_err() {
                bad.push(*slot);
            }
        }
    }
    (out, bad)
}

/// As [`Context::read`], and whether all of it could be read; later passes do not tell again what the first one told.
fn read(cx: &mut Context<'_>, at: u64, len: usize, first: bool, what: &str) -> (Vec<u8>, bool) {
    if first {
        let errors = cx.numbers.check_errors;
        let bytes = cx.read(at, len, what);
        return (bytes, cx.numbers.check_errors != errors);
    }
    let there = usize::try_from(cx.file_len().saturating_sub(at)).unwrap_or(usize::MAX).min(len);
    let mut buf = vec![0u8; there];
    let failed = cx.image.read_at(at, &mut buf).is_err();
    if failed {
        for (index, sector) in buf.chunks_mut(512).enumerate() {
            let start = at.saturating_add((index as u64).saturating_mul(512));
            if cx.image.read_at(start, sector).is_err() {
                sector.fill(0);
            }
        }
    }
    (buf, failed)
}
