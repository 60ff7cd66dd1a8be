//! Refcount table and blocks: what the image says about how often each host cluster is referred to (qcow2 spec, section
//! "Host cluster management").

use std::ops::Range;

use crate::budget::Full;
use crate::bytes::is_zero;
use crate::code::general;
use crate::finding::Finding;

use super::codes::mapping as codes;
use super::reader::Reader;
use super::scope::{Outcome, Scope};
use super::side::Table;
use super::stored::{Stored, count_at, counts_in};

/// Bits 0..8 of an entry of the refcount table.
const RESERVED: u64 = 0x1ff;
/// Refcount blocks past the end of the file that are read to see whether they hold anything.
const BEYOND_MAX: u64 = 4096;

/// Goes over the entries of the refcount table that are not 0, within a range of indices.
pub(crate) fn each_entry<E>(
    reader: &mut Reader<'_>,
    table: &Table,
    range: Range<u64>,
    mut each: impl FnMut(u64, u64) -> Result<(), E>,
) -> Result<(), E> {
    let range = range.start.min(table.entries)..range.end.min(table.entries);
    reader.entries(table.offset, range, &mut each)
}

/// Where a refcount block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    /// In this cluster.
    At(u64),
    /// Nowhere it could be read from; if the place is in the file, its cluster is referred to all the same.
    Broken(Option<u64>),
}

pub(crate) fn block(scope: &Scope<'_>, raw: u64) -> Block {
    let offset = raw & !RESERVED;
    if offset == 0 || offset >= scope.file_len {
        Block::Broken(None)
    } else if offset & scope.geometry.cluster_size().wrapping_sub(1) != 0 {
        Block::Broken(Some(scope.cluster_of(offset)))
    } else {
        Block::At(scope.cluster_of(offset))
    }
}

/// The entries of the refcount table, each by itself; and counts for clusters the file does not have.
pub(crate) fn judge(scope: &Scope<'_>, out: &mut Outcome) -> Result<(), Full> {
    let Some(table) = scope.side.refcount_table else { return Ok(()) };
    let mut reader = scope.reader();
    let per_block = scope.geometry.refcounts_per_block().max(1);
    let covered = |index: u64| {
        let first = index.saturating_mul(per_block);
        scope.bytes_of(&(first..first.saturating_add(per_block)))
    };
    let at = |index: u64| {
        let at = table.offset.saturating_add(index.saturating_mul(8));
        at..at.saturating_add(8)
    };
    let mut misplaced: Option<(Range<u64>, u64, bool)> = None;
    let tell = |(run, raw, misaligned): (Range<u64>, u64, bool), out: &mut Outcome| {
        let which = match run.end.saturating_sub(run.start) {
            1 => format!("entry {} of the refcount table ({raw:#018x})", run.start),
            _ => format!("entries {}..{} of the refcount table (the first is {raw:#018x})", run.start, run.end),
        };
        let offset = raw & !RESERVED;
        let point = if run.end.saturating_sub(run.start) == 1 { "points" } else { "point" };
        let (code, words) = if misaligned {
            (codes::REFTABLE_MISALIGNED, format!("{point} at {offset:#x}, where no cluster begins"))
        } else {
            (
                codes::REFTABLE_PAST_END,
                format!("{point} at {offset:#x}, past the end of the file ({:#x})", scope.file_len),
            )
        };
        let last = run.end.saturating_sub(1);
        let of = covered(run.start).start..covered(last).end;
        let words =
            format!("{which} {words}: how often {:#x}..{:#x} is in use is not known", of.start, of.end.max(of.start));
        let finding = Finding::new(code, words).count(run.end.saturating_sub(run.start));
        out.find(finding.host(at(run.start).start..at(last).end));
    };
    let clusters = scope.clusters();
    // Blocks all of whose clusters lie past the end of the file, in the order of the table.
    let mut beyond: Vec<(u64, u64)> = Vec::new();
    let mut beyond_more = 0u64;
    each_entry(&mut reader, &table, 0..table.entries, |index, raw| {
        if raw & RESERVED != 0 {
            let words = format!("entry {index} of the refcount table ({raw:#018x}) has bits set that are reserved");
            out.find(Finding::new(codes::REFTABLE_RESERVED, words).host(at(index)));
        }
        match block(scope, raw) {
            Block::At(cluster) => {
                let start = index.saturating_mul(per_block);
                if start.saturating_add(per_block) > clusters {
                    if (beyond.len() as u64) < BEYOND_MAX {
                        beyond.push((cluster, index));
                    } else {
                        beyond_more = beyond_more.saturating_add(1);
                    }
                }
            }
            Block::Broken(inside) if raw & !RESERVED != 0 => {
                let misaligned =
                    inside.is_some() || raw & scope.geometry.cluster_size().wrapping_sub(1) & !RESERVED != 0;
                match &mut misplaced {
                    Some((run, _, same)) if run.end == index && *same == misaligned => {
                        run.end = index.saturating_add(1)
                    }
                    _ => {
                        if let Some(done) = misplaced.replace((index..index.saturating_add(1), raw, misaligned)) {
                            tell(done, out);
                        }
                    }
                }
            }
            Block::Broken(_) => {}
        }
        Ok::<(), Full>(())
    })?;
    if let Some(done) = misplaced {
        tell(done, out);
    }
    for bad in std::mem::take(&mut reader.bad) {
        out.check_errors = out.check_errors.saturating_add(1);
        let words = format!("the refcount table could not be read at {:#x}..{:#x}", bad.start, bad.end);
        out.find(Finding::new(general::UNREADABLE, words).host(bad));
    }
    if beyond_more > 0 {
        out.could_not
            .push(format!("{beyond_more} refcount blocks for clusters past the end of the file were not read"));
    }
    counts_beyond(scope, &mut reader, beyond, out);
    Ok(())
}

/// Counts that are not 0 for clusters past the end of the file (Q-R3).
fn counts_beyond(scope: &Scope<'_>, reader: &mut Reader<'_>, mut blocks: Vec<(u64, u64)>, out: &mut Outcome) {
    let cluster_size = scope.geometry.cluster_size();
    let order = scope.geometry.refcount_order;
    let per_block = scope.geometry.refcounts_per_block();
    let clusters = scope.clusters();
    blocks.sort_unstable();
    blocks.dedup_by_key(|(cluster, _)| *cluster);
    let (mut count, mut first, mut places) = (0u64, u64::MAX, None);
    for (cluster, index) in blocks {
        let start = cluster.saturating_mul(cluster_size);
        let end = start.saturating_add(cluster_size).min(scope.file_len);
        let mut at = start;
        let mut of = index.saturating_mul(per_block);
        while at < end {
            let piece = reader.get(at, end.saturating_sub(at), end);
            if piece.is_empty() {
                break;
            }
            let counts = counts_in(piece.len() as u64, order);
            if !is_zero(piece) {
                for within in clusters.saturating_sub(of).min(counts)..counts {
                    if count_at(piece, within, order) > 0 {
                        count = count.saturating_add(1);
                        first = first.min(of.saturating_add(within));
                        places = places.or(Some(start..end));
                    }
                }
            }
            at = at.saturating_add(piece.len() as u64);
            of = of.saturating_add(counts);
        }
    }
    if let Some(place) = places {
        let words = format!(
            "{count} clusters past the end of the file ({:#x}) are counted as in use, the first at {:#x}",
            scope.file_len,
            first.saturating_mul(cluster_size)
        );
        out.find(Finding::new(codes::REFCOUNT_PAST_END, words).host(place).count(count));
    }
}

/// Reads the counts of a window of clusters.
pub(crate) fn load<'b>(
    scope: &Scope<'b>,
    window: &Range<u64>,
    tell: bool,
    out: &mut Outcome,
) -> Result<Stored<'b>, Full> {
    let mut stored = Stored::new(window.clone(), scope.budget)?;
    let Some(table) = scope.side.refcount_table else {
        stored.set_unknown(window.clone());
        return Ok(stored);
    };
    let order = scope.geometry.refcount_order;
    let cluster_size = scope.geometry.cluster_size();
    let per_block = scope.geometry.refcounts_per_block().max(1);
    let indices = window.start.checked_div(per_block).unwrap_or(0)..window.end.div_ceil(per_block);
    let expected = indices.end.min(table.entries).saturating_sub(indices.start.min(table.entries));
    let bytes = expected.saturating_mul(16);
    scope.budget.take(bytes)?;
    let filled = fill(scope, &table, indices, order, cluster_size, per_block, &mut stored, tell, out);
    scope.budget.give(bytes);
    filled.map(|()| stored)
}

#[allow(clippy::too_many_arguments)]
fn fill(
    scope: &Scope<'_>,
    table: &Table,
    indices: Range<u64>,
    order: u32,
    cluster_size: u64,
    per_block: u64,
    stored: &mut Stored<'_>,
    tell: bool,
    out: &mut Outcome,
) -> Result<(), Full> {
    let mut reader = scope.reader();
    let mut blocks: Vec<(u64, u64)> = Vec::new();
    let mut unknown: Vec<u64> = Vec::new();
    each_entry(&mut reader, table, indices, |index, raw| {
        match block(scope, raw) {
            Block::At(cluster) => blocks.push((cluster, index)),
            // Flags alone are no block: its clusters are free.
            Block::Broken(None) if raw & !RESERVED == 0 => {}
            Block::Broken(_) => unknown.push(index),
        }
        Ok::<(), Full>(())
    })?;
    let bad_table = std::mem::take(&mut reader.bad);
    blocks.sort_unstable();
    let mut before: Option<u64> = None;
    let mut rest = blocks.as_slice();
    let mut until = 0u64;
    while let Some(((cluster, index), tail)) = rest.split_first().map(|(first, tail)| (*first, tail)) {
        rest = tail;
        if before == Some(cluster) {
            // One block can not count for two: which of the two it belongs to is not known, and it is read once.
            unknown.push(index);
            continue;
        }
        before = Some(cluster);
        let start = cluster.saturating_mul(cluster_size);
        let end = start.saturating_add(cluster_size).min(scope.file_len);
        if until <= start {
            // How far blocks follow each other without a gap.
            until = end;
            for (next, _) in tail {
                let next = next.saturating_mul(cluster_size);
                if next > until || until.saturating_sub(start) > reader.cap() {
                    break;
                }
                until = next.saturating_add(cluster_size);
            }
        }
        let mut at = start;
        let mut first = index.saturating_mul(per_block);
        while at < end {
            let piece = reader.get(at, end.saturating_sub(at), until.max(end));
            if piece.is_empty() {
                break;
            }
            stored.fill(first, piece, order)?;
            first = first.saturating_add(counts_in(piece.len() as u64, order));
            at = at.saturating_add(piece.len() as u64);
        }
        if !reader.bad.is_empty() && reader.is_bad(&(start..end)) {
            unknown.push(index);
        }
        if scope.tick("reference counts", cluster_size) {
            break;
        }
    }
    for bad in &bad_table {
        let first = bad.start.saturating_sub(table.offset) / 8;
        unknown.extend(first..bad.end.saturating_sub(table.offset).div_ceil(8).min(table.entries));
    }
    if tell {
        for bad in &reader.bad {
            out.check_errors = out.check_errors.saturating_add(1);
            let words = format!("refcount blocks could not be read at {:#x}..{:#x}", bad.start, bad.end);
            out.find(Finding::new(general::UNREADABLE, words).host(bad.clone()));
        }
    }
    unknown.sort_unstable();
    unknown.dedup();
    for index in unknown {
        let first = index.saturating_mul(per_block);
        stored.set_unknown(first..first.saturating_add(per_block));
    }
    Ok(())
}
