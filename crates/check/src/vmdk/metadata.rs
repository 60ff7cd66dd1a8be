//! Where everything but grains lies: header, descriptor, both directories, both sets of tables. Parts of it that claim
//! the same bytes are told here, with both owners (VMDK-3).

use std::ops::Range;

use crate::budget::Full;
use crate::code::Severity;
use crate::context::Context;
use crate::finding::Finding;
use crate::layout::Layout;
use crate::map::{Claim, Class, Owner};

use super::codes;
use super::geometry::Geometry;
use super::header::SE_AREAS;
use super::tables::{Halt, Table, Visit, Walk, walk};

/// Index of the redundant directory among copies; redundant tables have the index of their entry.
pub(super) const RGD: u64 = u64::MAX;
/// Index of a stream's footer among copies.
pub(super) const FOOTER: u64 = u64::MAX - 1;
/// Index of a stream's markers among other metadata.
pub(super) const MARKER: u64 = u64::MAX;
/// Pairs that overlap, kept to be told; more are only counted.
const PAIRS: usize = 10_000;

pub(super) struct Metadata<'b> {
    pub(super) layout: Layout<'b>,
    /// Merged, by start.
    ranges: Vec<Range<u64>>,
    /// Stretches of one class each, by start.
    pub(super) pieces: Vec<(Range<u64>, Class)>,
}

impl<'b> Metadata<'b> {
    /// Nothing yet.
    pub(super) fn new(cx: &Context<'b>) -> Self {
        Self { layout: Layout::new(cx.budget), ranges: Vec::new(), pieces: Vec::new() }
    }

    /// Adds a part; what lies behind the end of the file is no claim.
    pub(super) fn add(&mut self, file: u64, range: Range<u64>, class: Class, index: u64) -> Result<(), Full> {
        let end = range.end.min(file);
        self.layout.add(range.start, end.saturating_sub(range.start), class, index)
    }

    /// Adds the directories and all tables they name, each table once for all its neighbours.
    pub(super) fn add_tables(&mut self, cx: &mut Context<'_>, geo: &Geometry) -> Result<(), Halt> {
        let file = cx.file_len();
        let len = geo.gd_len();
        self.add(file, geo.gd..geo.gd.saturating_add(len), Class::L1, 0)?;
        if let Some(rgd) = geo.rgd {
            self.add(file, rgd..rgd.saturating_add(len), Class::Copy, RGD)?;
        }
        let mut collect = Collect { to: self, file, len: geo.table_len(), runs: [None, None], left_out: false };
        walk(cx, geo, Walk { phase: "grain directory", first: false, copies: false, contents: false }, &mut collect)?;
        let (runs, left_out) = (std::mem::take(&mut collect.runs), collect.left_out);
        if left_out {
            cx.could_not("whether redundant tables overlap anything: there are too many in too much disorder");
        }
        for run in runs.into_iter().flatten() {
            self.add(file, run.range(), run.class, run.index)?;
        }
        Ok(())
    }

    /// Tells overlaps, and makes lookups possible. Called once, when all is added.
    pub(super) fn finish(&mut self, cx: &mut Context<'_>, geo: &Geometry) {
        let file = cx.file_len();
        let mut pairs = Vec::new();
        let mut left_out = 0u64;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut pieces: Vec<(Range<u64>, Class)> = Vec::new();
        self.layout.sweep(
            0..file,
            |first, second, shared| {
                if pairs.len() < PAIRS {
                    pairs.push((*first, *second, shared));
                } else {
                    left_out = left_out.saturating_add(1);
                }
            },
            |range, class| {
                let Some(class) = class else { return };
                match ranges.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => ranges.push(range.clone()),
                }
                pieces.push((range, class));
            },
        );
        (self.ranges, self.pieces) = (ranges, pieces);
        for (first, second, shared) in pairs {
            tell_overlap(cx, geo, &first, &second, shared);
        }
        if left_out > 0 {
            let words = format!("{left_out} more pairs of metadata that claim the same bytes");
            cx.find(Finding::new(codes::OVERLAP, words).count(left_out));
        }
    }

    /// The stretch without metadata around `at`, or the metadata that covers it.
    pub(super) fn around(&self, at: u64) -> Result<Range<u64>, Range<u64>> {
        let next = self.ranges.partition_point(|range| range.end <= at);
        match self.ranges.get(next) {
            Some(range) if range.start <= at => Err(range.clone()),
            found => {
                let before = next.checked_sub(1).and_then(|index| self.ranges.get(index)).map_or(0, |range| range.end);
                Ok(before..found.map_or(u64::MAX, |range| range.start))
            }
        }
    }

    /// Whether any metadata lies in `range`.
    pub(super) fn overlaps(&self, range: &Range<u64>) -> bool {
        self.around(range.start).map_or(true, |free| free.end < range.end)
    }

    /// End of the last part.
    pub(super) fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.end)
    }

    /// Who claims bytes of `range`, the first few.
    pub(super) fn owners(&self, geo: &Geometry, range: &Range<u64>) -> Vec<Owner> {
        let touches = |claim: &Claim| claim.start < range.end && claim.range().end > range.start;
        self.layout.metadata().iter().filter(|claim| touches(claim)).take(4).map(|claim| owner(geo, claim)).collect()
    }
}

struct Collect<'m, 'b> {
    to: &'m mut Metadata<'b>,
    file: u64,
    len: u64,
    runs: [Option<Claim>; 2],
    /// Copies in such disorder that there is no room for their places: the disk does not depend on them.
    left_out: bool,
}

impl Collect<'_, '_> {
    fn take(&mut self, which: usize, class: Class, at: u64, index: u64) -> Result<(), Full> {
        let Some(slot) = self.runs.get_mut(which) else { return Ok(()) };
        if slot.is_some_and(|run| run.start == at && run.len == self.len) {
            // One table named again and again is one claim (H19); who names it is told by the first pass over tables.
            return Ok(());
        }
        if let Some(run) = slot
            && run.range().end == at
            && run.len.checked_div(self.len).and_then(|tables| run.index.checked_add(tables)) == Some(index)
        {
            run.len = run.len.saturating_add(self.len);
            return Ok(());
        }
        match slot.replace(Claim { start: at, len: self.len, class, index }) {
            Some(run) => self.to.add(self.file, run.range(), run.class, run.index),
            None => Ok(()),
        }
    }
}

impl Visit for Collect<'_, '_> {
    fn table(&mut self, _cx: &mut Context<'_>, table: &Table<'_>) -> Result<(), Halt> {
        self.take(0, Class::L2, table.at, table.index)?;
        if let Some((at, _)) = table.copy
            && self.take(1, Class::Copy, at, table.index).is_err()
        {
            self.left_out = true;
        }
        Ok(())
    }
}

fn tell_overlap(cx: &mut Context<'_>, geo: &Geometry, first: &Claim, second: &Claim, shared: Range<u64>) {
    let (one, other) = (owner(geo, first), owner(geo, second));
    let words = format!("{} and {} both claim {:#x}..{:#x}", one.label, other.label, shared.start, shared.end);
    let mut finding = Finding::new(codes::OVERLAP, words).host(shared.clone());
    if first.class == Class::Copy || second.class == Class::Copy {
        // The tables themselves are judged by their entries; a copy alone costs nothing.
        finding = finding.severity(Severity::Warning);
    } else {
        for claim in [first, second].into_iter().filter(|claim| claim.class == Class::L2) {
            let guest = geo.windows(tables_in(geo, claim, &shared));
            finding = finding.guest(guest.clone());
            cx.lose(guest);
        }
    }
    cx.find(finding.owner(one).owner(other));
}

/// Which tables of a run of them lie in `range`.
fn tables_in(geo: &Geometry, claim: &Claim, range: &Range<u64>) -> Range<u64> {
    let len = geo.table_len().max(1);
    let first = range.start.saturating_sub(claim.start).checked_div(len).unwrap_or(0);
    let last = range.end.saturating_sub(claim.start).div_ceil(len);
    claim.index.saturating_add(first)..claim.index.saturating_add(last)
}

/// A part in words, with what of the guest's disk depends on it.
fn owner(geo: &Geometry, claim: &Claim) -> Owner {
    let count = claim.len.div_ceil(geo.table_len().max(1)).max(1);
    let tables = claim.index..claim.index.saturating_add(count);
    let numbers = match count {
        1 => claim.index.to_string(),
        _ => format!("{}..{}", tables.start, tables.end),
    };
    let (label, guest) = match claim.class {
        Class::Header => ("header".to_owned(), Some(0..geo.capacity)),
        Class::Descriptor => ("descriptor".to_owned(), None),
        Class::L1 => ("grain directory".to_owned(), Some(0..geo.capacity)),
        Class::L2 => (format!("grain table {numbers}"), Some(geo.windows(tables))),
        Class::Copy if claim.index == RGD => ("redundant grain directory".to_owned(), None),
        Class::Copy if claim.index == FOOTER => ("footer".to_owned(), None),
        Class::Copy => (format!("redundant grain table {numbers}"), Some(geo.windows(tables))),
        Class::Metadata if claim.index == MARKER => ("marker".to_owned(), None),
        Class::Metadata => {
            let name = usize::try_from(claim.index).ok().and_then(|index| SE_AREAS.get(index));
            (name.map_or("metadata", |(name, _)| name).to_owned(), None)
        }
        other => (other.name().to_owned(), None),
    };
    Owner { class: claim.class, host: claim.range(), guest, label }
}
