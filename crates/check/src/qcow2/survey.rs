//! A second look at the tables of a damaged image: not what their entries say, but what lies there now.
//!
//! Order: L1 table, L2 tables by place in the file, refcount blocks by place. Sectors that hold something else are
//! recognised ([`super::shape`]); sectors of an L2 table that are zero are compared with the clusters nothing refers
//! to: where these are the very ones that would follow the entries beside, the entries were there.
//!
//! Only damaged images are looked at twice, so a sound one pays nothing.

use std::ops::Range;

use crate::budget::Full;
use crate::bytes::{be_u64, is_zero};
use crate::context::Context;
use crate::finding::Confidence;
use crate::vacant::Vacant;

use super::header::Geometry;
use super::l1::{self, Target};
use super::l2::{COMPRESSED, OFFSET, RESERVED};
use super::reader::Reader;
use super::refcount;
use super::shape::{self, Look, SECTOR};
use super::side::Side;

/// Damaged places of one kind kept apart.
const PLACES_MAX: usize = 4096;

/// A table of which something else holds a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overwritten {
    pub(crate) part: Part,
    /// The bytes of the file that are not its own any more.
    pub(crate) host: Range<u64>,
    /// What the bytes mapped of the active disk; empty for counts and tables that only snapshots use.
    pub(crate) guest: Range<u64>,
    pub(crate) look: Look,
    pub(crate) sure: Confidence,
}

/// Whose a damaged place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    L1,
    /// Of this L1 index, at this place.
    L2 {
        index: u64,
        table: u64,
    },
    /// This one of the refcount table, at this place.
    Block {
        index: u64,
        block: u64,
    },
}

/// Sectors of zeroes where entries were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Zeroed {
    /// Of the L2 table of this L1 index.
    pub(crate) l1_index: u64,
    pub(crate) table: u64,
    /// The sectors' entries; of a table that is all zeroes, every one: where in it the lost ones were is not known.
    pub(crate) entries: Range<u64>,
    /// How many were lost.
    pub(crate) count: u64,
    pub(crate) host: Range<u64>,
    pub(crate) guest: Range<u64>,
    /// The clusters that would be theirs; empty where they are somewhere among all clusters without an owner
    /// (`scattered`).
    pub(crate) data: Range<u64>,
}

/// Sectors of zeroes in a refcount block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ZeroCounts {
    pub(crate) index: u64,
    pub(crate) host: Range<u64>,
    /// The bytes of the file they count.
    pub(crate) covers: Range<u64>,
    pub(crate) whole: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Entries of the active L1 table that are not 0.
    pub(crate) l1: Vec<(u64, u64)>,
    pub(crate) overwritten: Vec<Overwritten>,
    pub(crate) zeroed: Vec<Zeroed>,
    pub(crate) zero_counts: Vec<ZeroCounts>,
    /// How many there are, looked at.
    pub(crate) tables: u64,
    pub(crate) blocks: u64,
    /// The farthest end of anything the tables name past the end of the file, and how many entries name such.
    pub(crate) past_end: u64,
    pub(crate) past: u64,
    /// L1 indices of tables that are zero from first to last.
    pub(crate) empty: Vec<u64>,
}

/// Looks at it all; `None` if there is not enough memory.
pub(crate) fn look(cx: &mut Context<'_>, side: &Side, geometry: &Geometry) -> Option<Survey> {
    let mut all = Survey::default();
    let memory = cx.budget.left() / 2;
    let cap = geometry.cluster_size().max(1 << 18).min(memory / 2);
    let cap = usize::try_from(cap).ok().filter(|cap| *cap as u64 >= geometry.cluster_size())?;
    cx.budget.take(cap as u64).ok()?;
    let mut reader = Reader::new(cx.image, cx.file_len(), cap);
    let mut taken = 0u64;
    let done = l1_tables(cx, side, geometry, &mut reader, &mut all, &mut taken)
        .and_then(|mut tables| l2_tables(cx, geometry, &mut reader, &mut tables, &mut all))
        .and_then(|()| blocks(cx, side, geometry, &mut reader, &mut all, &mut taken));
    cx.budget.give(taken.saturating_add(cap as u64));
    done.ok().map(|()| all)
}

/// An L2 table to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    cluster: u64,
    snapshot: bool,
    index: u64,
}

fn grown<T>(list: &mut Vec<T>, cx: &Context<'_>, taken: &mut u64) -> Result<(), Full> {
    if list.len() == list.capacity() {
        let more = list.len().max(256);
        let bytes = (more as u64).saturating_mul(size_of::<T>() as u64);
        cx.budget.take(bytes)?;
        *taken = taken.saturating_add(bytes);
        list.reserve_exact(more);
    }
    Ok(())
}

fn l1_tables(
    cx: &Context<'_>,
    side: &Side,
    geometry: &Geometry,
    reader: &mut Reader<'_>,
    all: &mut Survey,
    taken: &mut u64,
) -> Result<Vec<Named>, Full> {
    let (roots, _) = l1::roots(side, geometry, cx.file_len());
    let mut tables: Vec<Named> = Vec::new();
    for root in &roots {
        let active = root.tree == 0;
        l1::each_entry(reader, root, |index, raw| {
            if active {
                grown(&mut all.l1, cx, taken)?;
                all.l1.push((index, raw));
            }
            if raw & OFFSET >= cx.file_len() {
                past(raw & OFFSET, geometry, all);
            }
            if let Target::Table(cluster) = l1::target(raw, geometry, cx.file_len()) {
                grown(&mut tables, cx, taken)?;
                tables.push(Named { cluster, snapshot: !active, index });
            }
            Ok(())
        })?;
    }
    tables.sort_unstable();
    tables.dedup_by_key(|named| named.cluster);
    if let Some(table) = side.l1 {
        let end = table.offset.saturating_add(table.entries.saturating_mul(8));
        let mut at = table.offset;
        while at < end {
            let piece = reader.get(at, end.saturating_sub(at).min(1 << 16), end);
            if piece.is_empty() {
                break;
            }
            let len = piece.len() as u64;
            // An L1 table is looked at as an L2 table of plain entries: neither may have much else.
            let plain = Geometry { extended_l2: false, external_data: false, ..*geometry };
            for part in shape::foreign_in_table(piece, &plain, cx.file_len()) {
                let (look, sure) = shape::look(piece.get(part.clone()).unwrap_or_default(), geometry, cx.file_len());
                let host = at.saturating_add(part.start as u64)..at.saturating_add(part.end as u64);
                let first = host.start.saturating_sub(table.offset) / 8;
                let last = host.end.saturating_sub(table.offset).div_ceil(8);
                let window = |index: u64| index.saturating_mul(geometry.l2_window()).min(geometry.size);
                let guest = window(first)..window(last);
                note(&mut all.overwritten, Overwritten { part: Part::L1, host, guest, look, sure });
            }
            at = at.saturating_add(len);
        }
    }
    Ok(tables)
}

fn past(offset: u64, geometry: &Geometry, all: &mut Survey) {
    // What can not be an offset was not cut off.
    if offset < 1 << 47 && offset & geometry.cluster_size().wrapping_sub(1) == 0 {
        all.past = all.past.saturating_add(1);
        all.past_end = all.past_end.max(offset.saturating_add(geometry.cluster_size()));
    }
}

fn note<T>(list: &mut Vec<T>, one: T) {
    if list.len() < PLACES_MAX {
        list.push(one);
    }
}

fn l2_tables(
    cx: &Context<'_>,
    geometry: &Geometry,
    reader: &mut Reader<'_>,
    tables: &mut [Named],
    all: &mut Survey,
) -> Result<(), Full> {
    let (cluster, file_len) = (geometry.cluster_size(), cx.file_len());
    let lost_data = cx.vacant.counted() >= cluster.saturating_mul(8);
    let mut holes: Vec<Zeroed> = Vec::new();
    all.tables = tables.len() as u64;
    for (done, named) in tables.iter().enumerate() {
        if cx.stopped() {
            break;
        }
        let table = named.cluster.saturating_mul(cluster);
        // Neighbours are read together.
        let until = table.saturating_add(cluster.saturating_mul(8));
        let bytes = reader.get(table, cluster, until);
        cx.progress(
            "what lies in the tables",
            (done as u64).saturating_mul(cluster),
            all.tables.saturating_mul(cluster),
        );
        let per_entry = geometry.l2_entry_len();
        let base = named.index.saturating_mul(geometry.l2_window());
        let guest_of = |entries: &Range<u64>| {
            let at = |entry: u64| base.saturating_add(entry.saturating_mul(cluster)).min(geometry.size);
            if named.snapshot { 0..0 } else { at(entries.start)..at(entries.end) }
        };
        let mut foreign = false;
        for part in shape::foreign_in_table(bytes, geometry, file_len) {
            foreign = true;
            let (look, sure) = shape::look(bytes.get(part.clone()).unwrap_or_default(), geometry, file_len);
            let entry_at = |byte: usize| (byte as u64).checked_div(per_entry).unwrap_or(0);
            let entries = entry_at(part.start)..entry_at(part.end);
            let host = table.saturating_add(part.start as u64)..table.saturating_add(part.end as u64);
            let part = Part::L2 { index: named.index, table };
            note(&mut all.overwritten, Overwritten { part, host, guest: guest_of(&entries), look, sure });
        }
        if !foreign {
            for entry in bytes.chunks_exact(usize::try_from(per_entry).unwrap_or(8)) {
                let raw = be_u64(entry, 0);
                if raw & COMPRESSED == 0 && raw & OFFSET >= file_len && raw & RESERVED == 0 && !geometry.external_data {
                    past(raw & OFFSET, geometry, all);
                }
            }
        }
        if is_zero(bytes) && !named.snapshot {
            note(&mut all.empty, named.index);
        }
        // Clusters that lost their owner to what lies in the table now are explained by that.
        if lost_data && !named.snapshot && !foreign {
            let limit = geometry.size.saturating_sub(base).div_ceil(cluster).min(geometry.l2_entries());
            for (entries, data, count) in zeroed_in(bytes, table, limit, geometry, &cx.vacant, file_len) {
                let at = |entry: u64| table.saturating_add(entry.saturating_mul(per_entry));
                let host = at(entries.start)..at(entries.end);
                let guest = guest_of(&entries);
                note(&mut all.zeroed, Zeroed { l1_index: named.index, table, entries, count, host, guest, data });
            }
            for entries in holes_in(bytes, per_entry, limit) {
                let at = |entry: u64| table.saturating_add(entry.saturating_mul(per_entry));
                let (host, guest) = (at(entries.start)..at(entries.end), guest_of(&entries));
                let count = entries.end.saturating_sub(entries.start);
                note(&mut holes, Zeroed { l1_index: named.index, table, entries, count, host, guest, data: 0..0 });
            }
        }
    }
    scattered(cx, geometry, holes, all);
    Ok(())
}

/// Sectors of zeroes in the midst of sectors without one: entries. What a guest never wrote does not end at sectors of
/// the table, all but by chance.
fn holes_in(bytes: &[u8], per_entry: u64, limit: u64) -> Vec<Range<u64>> {
    let per_sector = (SECTOR as u64).checked_div(per_entry).unwrap_or(1).max(1);
    let entry_len = usize::try_from(per_entry).unwrap_or(8);
    // Zero, full, or neither.
    let kinds: Vec<(bool, bool)> = bytes
        .chunks(SECTOR)
        .map(|sector| (is_zero(sector), sector.chunks(entry_len).all(|entry| be_u64(entry, 0) != 0)))
        .collect();
    let kind = |at: usize| kinds.get(at).copied();
    let mut found = Vec::new();
    let mut first = 0usize;
    while first < kinds.len() {
        let zero = kinds.iter().skip(first).take_while(|(zero, _)| *zero).count();
        let next = first.saturating_add(zero);
        let entries = (first as u64).saturating_mul(per_sector)..(next as u64).saturating_mul(per_sector);
        let before = first.checked_sub(1).map(|at| kind(at).is_some_and(|(_, full)| full));
        let after = kind(next).map(|(_, full)| full);
        // At an end of the table one neighbour has to do; a table without any is another matter.
        let amid = before.unwrap_or(true) && after.unwrap_or(true) && (before, after) != (None, None);
        if zero > 0 && amid && entries.end <= limit {
            found.push(entries);
        }
        first = next.max(first).saturating_add(1);
    }
    found
}

/// Holes whose clusters can not be told from each other, since data lies in the file in the order of a guest's writes:
/// if there are about as many clusters without an owner as there are entries in all holes together, these were the
/// owners.
fn scattered(cx: &Context<'_>, geometry: &Geometry, mut holes: Vec<Zeroed>, all: &mut Survey) {
    let room = PLACES_MAX.saturating_sub(all.zeroed.len());
    let told = |hole: &Zeroed| {
        all.zeroed.iter().any(|other| other.host.start < hole.host.end && hole.host.start < other.host.end)
    };
    // More holes than are kept: their sum is not known.
    let known = holes.len() < PLACES_MAX;
    holes.retain(|hole| !told(hole));
    let entries = holes.iter().fold(0u64, |sum, hole| sum.saturating_add(hole.count));
    let found = all.zeroed.iter().fold(0u64, |sum, zeroed| sum.saturating_add(zeroed.count));
    let clusters = (cx.vacant.counted() >> geometry.cluster_bits).saturating_sub(found);
    let fits = clusters >= entries.saturating_sub(entries / 4) && clusters <= entries.saturating_add(entries / 4);
    if known && entries > 0 && fits {
        all.zeroed.extend(holes.into_iter().take(room));
    }
}

/// Sectors of zeroes in a table whose clusters are in the file without an owner: entries, clusters, how many.
///
/// The clusters must lie where the entries beside put them: right behind the last entry before, right before the first
/// entry after, or (nothing but zeroes) right behind the table. Programs that crash leave clusters of that kind at the
/// end of what they wrote, which is no damage; so behind the clusters there must be something that was allocated later
/// and is in use.
fn zeroed_in(
    bytes: &[u8],
    table: u64,
    limit: u64,
    geometry: &Geometry,
    vacant: &Vacant,
    file_len: u64,
) -> Vec<(Range<u64>, Range<u64>, u64)> {
    let cluster = geometry.cluster_size();
    let per_entry = usize::try_from(geometry.l2_entry_len()).unwrap_or(8);
    let offset_of = |entry: u64| {
        let at = usize::try_from(entry).ok()?.checked_mul(per_entry)?;
        let raw = be_u64(bytes.get(at..at.checked_add(8)?)?, 0);
        let offset = raw & OFFSET;
        (raw & COMPRESSED == 0 && offset != 0).then_some(offset)
    };
    let mut found = Vec::new();
    let sectors: Vec<bool> = bytes.chunks(SECTOR).map(is_zero).collect();
    let per_sector = (SECTOR as u64).checked_div(per_entry as u64).unwrap_or(1).max(1);
    let mut first = 0usize;
    while first < sectors.len() {
        let zero = sectors.get(first).copied().unwrap_or(false);
        let len = sectors.iter().skip(first).take_while(|other| **other == zero).count().max(1);
        let entries =
            (first as u64).saturating_mul(per_sector)..(first.saturating_add(len) as u64).saturating_mul(per_sector);
        first = first.saturating_add(len);
        let entries = entries.start..entries.end.min(limit);
        if !zero || entries.is_empty() {
            continue;
        }
        let count = entries.end.saturating_sub(entries.start);
        let span = count.saturating_mul(cluster);
        let before = entries.start.checked_sub(1).and_then(offset_of).map(|offset| offset.saturating_add(cluster));
        let after = offset_of(entries.end);
        let mostly = |data: &Range<u64>| {
            let bytes = vacant.counted_within(data).saturating_mul(4);
            bytes >= data.end.saturating_sub(data.start).saturating_mul(3)
        };
        if let Some(after) = after {
            let data = after.saturating_sub(span)..after;
            if after >= span && mostly(&data) {
                found.push((entries, data, count));
            }
            continue;
        }
        let whole = is_zero(bytes);
        let Some(start) = before.or(whole.then(|| table.saturating_add(cluster))) else { continue };
        let Some(run) = vacant.at(start).filter(|run| run.counted && run.range.start == start) else { continue };
        let data = start..run.range.end.min(start.saturating_add(span));
        let behind = run.range.end..file_len;
        let used_behind = vacant.within(&behind) < behind.end.saturating_sub(behind.start);
        let clusters = data.end.saturating_sub(data.start) >> geometry.cluster_bits;
        // A handful of clusters is what a crash leaves; a whole sector of entries and more is not.
        if used_behind && clusters >= if whole { 8 } else { per_sector.min(count) } {
            let entries = if whole { entries } else { entries.start..entries.start.saturating_add(clusters) };
            found.push((entries, data, clusters));
        }
    }
    found
}

fn blocks(
    cx: &Context<'_>,
    side: &Side,
    geometry: &Geometry,
    reader: &mut Reader<'_>,
    all: &mut Survey,
    taken: &mut u64,
) -> Result<(), Full> {
    let Some(table) = side.refcount_table else { return Ok(()) };
    let (cluster, file_len) = (geometry.cluster_size(), cx.file_len());
    let mut places: Vec<(u64, u64)> = Vec::new();
    refcount::each_entry(reader, &table, 0..table.entries, |index, raw| {
        let block = raw & !0x1ff;
        if block != 0 && block < file_len && block & cluster.wrapping_sub(1) == 0 {
            grown(&mut places, cx, taken)?;
            places.push((block, index));
        }
        Ok(())
    })?;
    places.sort_unstable();
    places.dedup_by_key(|(block, _)| *block);
    all.blocks = places.len() as u64;
    let per_sector = (SECTOR as u64).saturating_mul(8) >> geometry.refcount_order;
    for (block, index) in places {
        if cx.stopped() {
            break;
        }
        let bytes = reader.get(block, cluster, block.saturating_add(cluster));
        let covered = |sectors: Range<u64>| {
            let first = index.saturating_mul(geometry.refcounts_per_block());
            let at = |sector: u64| {
                first.saturating_add(sector.saturating_mul(per_sector)).saturating_mul(cluster).min(file_len)
            };
            at(sectors.start)..at(sectors.end)
        };
        for part in shape::foreign_in_block(bytes, geometry) {
            let (look, sure) = shape::look(bytes.get(part.clone()).unwrap_or_default(), geometry, file_len);
            let host = block.saturating_add(part.start as u64)..block.saturating_add(part.end as u64);
            note(
                &mut all.overwritten,
                Overwritten { part: Part::Block { index, block }, host, guest: 0..0, look, sure },
            );
        }
        let mut run: Option<Range<u64>> = None;
        let sectors = (bytes.len() / SECTOR) as u64;
        for (at, sector) in (0u64..).zip(bytes.chunks(SECTOR)) {
            let covers = covered(at..at.saturating_add(1));
            let zero = is_zero(sector) && !covers.is_empty();
            match &mut run {
                Some(open) if zero => open.end = at.saturating_add(1),
                None if zero => run = Some(at..at.saturating_add(1)),
                _ => {}
            }
            let last = at.saturating_add(1) == sectors;
            if let Some(open) = run.clone().filter(|_| !zero || last) {
                run = None;
                let host = block.saturating_add(open.start.saturating_mul(SECTOR as u64))
                    ..block.saturating_add(open.end.saturating_mul(SECTOR as u64));
                let whole = is_zero(bytes);
                note(&mut all.zero_counts, ZeroCounts { index, host, covers: covered(open), whole });
            }
        }
    }
    Ok(())
}
