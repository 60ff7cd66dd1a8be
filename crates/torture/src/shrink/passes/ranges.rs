//! Lower values of what requests are about: one block, at a plain place, with the relations between requests kept.

use std::collections::BTreeSet;

use blkproof_block::ByteRange;

use super::super::search::Edit;
use super::{change, granule};
use crate::plan::{Act, Op, Plan};

const BLOCK: u64 = 512;

/// So few ops that each may be given the range of each other.
const PAIRS: usize = 24;

/// All edits of ranges.
pub(super) fn edits(plan: &Plan) -> Vec<Edit> {
    let mut edits: Vec<Edit> = Vec::new();
    edits.extend([2 << 20, 1 << 20, granule(plan), 4096, BLOCK].map(compact));
    edits.push(squeeze());
    // Requests about the same bytes stay so; then those that overlap; then each alone.
    let ranges: BTreeSet<(u64, u64)> =
        plan.ops.iter().filter_map(range_of).map(|range| (range.start, range.end)).collect();
    for &(start, end) in &ranges {
        let range = ByteRange { start, end };
        edits.extend(shorter(range).into_iter().map(|new| map(move |_, one| if one == range { new } else { one })));
    }
    for whole in overlapping(&ranges) {
        for start in plain_starts(plan, whole) {
            edits.push(map(move |_, one| if whole.overlaps(one) { moved(one, whole.start, start) } else { one }));
        }
    }
    for op in &plan.ops {
        let Some(range) = range_of(op) else { continue };
        let id = op.id;
        let mut new = shorter(range);
        new.extend(plain_starts(plan, range).into_iter().map(|start| moved(range, range.start, start)));
        if plan.ops.len() <= PAIRS {
            new.extend(
                ranges.iter().map(|&(start, end)| ByteRange { start, end }).filter(|one| one.len() < range.len()),
            );
        }
        edits.extend(new.into_iter().map(|new| map(move |op, one| if op.id == id { new } else { one })));
    }
    edits
}

fn range_of(op: &Op) -> Option<ByteRange> {
    op.act.range()
}

/// Ranges inside of this one, the shortest first.
fn shorter(range: ByteRange) -> Vec<ByteRange> {
    let half = (range.len() / 2).next_multiple_of(BLOCK);
    let first = |len: u64| ByteRange { start: range.start, end: range.end.min(range.start.saturating_add(len)) };
    let last = |len: u64| ByteRange { start: range.start.max(range.end.saturating_sub(len)), end: range.end };
    let mut list = vec![first(BLOCK), last(BLOCK)];
    if let Some(start) = range.start.checked_next_multiple_of(BLOCK) {
        list.push(ByteRange { start, end: start.saturating_add(BLOCK) });
        list.push(ByteRange { start, end: (range.end / BLOCK).saturating_mul(BLOCK) });
    }
    list.extend([first(half), last(half)]);
    let inside = |one: &ByteRange| !one.is_empty() && one.start >= range.start && one.end <= range.end;
    list.retain(|one| inside(one) && *one != range);
    list
}

/// The start of the disk, of its first units, the same place in them as now, and the end of the disk.
fn plain_starts(plan: &Plan, range: ByteRange) -> Vec<u64> {
    let unit = granule(plan);
    let within = range.start % unit;
    let aligned = (range.start / BLOCK).saturating_mul(BLOCK);
    let end = plan.target.size.checked_sub(range.len());
    let mut list = vec![0, unit, within, unit.saturating_add(within), aligned];
    list.extend(end);
    list.retain(|&start| start != range.start);
    list
}

/// The union of all ranges, as its connected pieces.
fn overlapping(ranges: &BTreeSet<(u64, u64)>) -> Vec<ByteRange> {
    let mut pieces: Vec<ByteRange> = Vec::new();
    for &(start, end) in ranges {
        match pieces.last_mut() {
            Some(last) if start < last.end => last.end = last.end.max(end),
            _ => pieces.push(ByteRange { start, end }),
        }
    }
    pieces
}

fn moved(range: ByteRange, from: u64, to: u64) -> ByteRange {
    ByteRange::at(range.start.saturating_sub(from).saturating_add(to), range.len())
}

/// Units that nobody touches are left out; what is in one unit stays in one.
fn compact(unit: u64) -> Edit {
    change(move |plan| {
        let ranges: BTreeSet<(u64, u64)> =
            plan.ops.iter().filter_map(range_of).map(|one| (one.start / unit, one.end.div_ceil(unit))).collect();
        let pieces = overlapping(&ranges);
        let new = |one: ByteRange| {
            let first = one.start / unit;
            let before = pieces.iter().take_while(|piece| piece.end <= first);
            let used: u64 = before.map(|piece| piece.len()).sum();
            let within = pieces.iter().find(|piece| piece.contains(first)).map_or(0, |piece| first - piece.start);
            moved(one, first.saturating_mul(unit), (used + within).saturating_mul(unit))
        };
        apply(plan, |_, one| new(one))
    })
}

/// Between one edge of a range and the next there is one block: all overlaps stay, all lengths are small.
fn squeeze() -> Edit {
    change(|plan| {
        let edges: BTreeSet<u64> = plan.ops.iter().filter_map(range_of).flat_map(|one| [one.start, one.end]).collect();
        let place = |edge: u64| {
            let index = edges.range(..edge).count();
            u64::try_from(index).unwrap_or(0).saturating_mul(BLOCK)
        };
        apply(plan, |_, one| ByteRange { start: place(one.start), end: place(one.end) })
    })
}

fn map(new: impl Fn(&Op, ByteRange) -> ByteRange + 'static) -> Edit {
    change(move |plan| apply(plan, &new))
}

/// Gives each request its new range; vectors are cut or stretched to it.
fn apply(plan: &mut Plan, new: impl Fn(&Op, ByteRange) -> ByteRange) -> bool {
    let mut changed = false;
    for op in &mut plan.ops {
        let Some(old) = op.act.range() else { continue };
        let new = new(op, old);
        if new == old {
            continue;
        }
        changed = true;
        match &mut op.act {
            Act::Read { range, vector } => {
                *range = new;
                fit(vector, new.len());
            }
            Act::Write { range, .. } | Act::Zeroes { range, .. } | Act::Discard { range } | Act::Status { range } => {
                *range = new;
            }
            _ => (),
        }
    }
    changed
}

/// Pieces whose sum is `len`, as many as there were if there is a byte for each.
fn fit(vector: &mut Vec<u32>, len: u64) {
    if vector.is_empty() {
        return;
    }
    let pieces = u64::try_from(vector.len()).unwrap_or(u64::MAX);
    if len < pieces || u32::try_from(len).is_err() {
        vector.clear();
        return;
    }
    let mut left = len;
    let mut behind = pieces;
    for piece in vector.iter_mut() {
        behind -= 1;
        // Each of those behind gets a byte at least, and the last one all that is left.
        let most = left - behind;
        let take = if behind == 0 { left } else { u64::from(*piece).clamp(1, most) };
        *piece = u32::try_from(take).unwrap_or(u32::MAX);
        left -= take;
    }
}
