//! Which requests have a version of which blocks.
//!
//! Blocks with the same versions form a *run*. Content accumulates within a block, in the order of the requests, as it
//! does in a cache of whole blocks: version `k` of a block is what the medium holds with the first `k` requests of its
//! run done on top of it. Version 0 is the medium's own.
//!
//! # Invariants
//! - Runs are sorted, apart, not empty, and begin and end between blocks.
//! - The requests of a run have ascending numbers.
//! - A request touches either every byte of a run, or the run is one block: requests that begin or end inside a block
//!   have a run of their own there.
//! - `places` holds in how many runs each request stands, and nothing else.

use std::collections::BTreeMap;
use std::rc::Rc;

use blkproof_block::ByteRange;

use super::model::{Change, ChangeId};
use super::piece::Piece;

/// Blocks that the same requests touch.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) range: ByteRange,
    pub(super) versions: Vec<Rc<Change>>,
}

impl Run {
    /// What version `version` holds in `range`, as far as it is not the medium's; sorted, apart.
    pub(super) fn content(&self, version: usize, range: ByteRange, pieces: &mut Vec<Piece>) {
        let Some(range) = range.intersection(self.range) else { return };
        let newest = version.checked_sub(1).and_then(|index| self.versions.get(index));
        let Some(newest) = newest else { return };
        if newest.range.start <= range.start && range.end <= newest.range.end {
            // All but the blocks at the ends of unaligned requests.
            newest.piece(range).into_iter().for_each(|piece| super::piece::append(pieces, piece));
            return;
        }
        let mut missing = vec![range];
        let mut found: Vec<Piece> = Vec::new();
        for change in self.versions.iter().take(version).rev() {
            if missing.is_empty() {
                break;
            }
            let mut left = Vec::new();
            for gap in missing {
                match change.piece(gap) {
                    None => left.push(gap),
                    Some(piece) => {
                        let before = ByteRange { start: gap.start, end: piece.range.start };
                        let after = ByteRange { start: piece.range.end, end: gap.end };
                        left.extend([before, after].into_iter().filter(|rest| !rest.is_empty()));
                        found.push(piece);
                    }
                }
            }
            missing = left;
        }
        found.sort_by_key(|piece| piece.range.start);
        for piece in found {
            super::piece::append(pieces, piece);
        }
    }

    /// The newest version that `wanted` says yes to; 0 if there is none.
    pub(super) fn newest(&self, wanted: impl Fn(ChangeId) -> bool) -> usize {
        self.versions.iter().rposition(|change| wanted(change.id)).map_or(0, |index| index.saturating_add(1))
    }
}

/// Runs by their first byte.
#[derive(Clone, Debug)]
pub(super) struct Runs {
    block: u64,
    map: BTreeMap<u64, Run>,
    places: BTreeMap<ChangeId, usize>,
    slots: usize,
}

impl Runs {
    /// None yet; `block` is a power of two.
    pub(super) fn new(block: u64) -> Self {
        Self { block, map: BTreeMap::new(), places: BTreeMap::new(), slots: 0 }
    }

    /// Bytes of a block.
    pub(super) fn block(&self) -> u64 {
        self.block
    }

    /// Versions of all runs together: the measure of what bookkeeping costs.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// Whether the request has a version anywhere.
    pub(super) fn holds(&self, id: ChangeId) -> bool {
        self.places.contains_key(&id)
    }

    /// Every run, by place.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Run> {
        self.map.values()
    }

    /// The runs that share a byte with `range`.
    pub(super) fn over(&self, range: ByteRange) -> impl Iterator<Item = &Run> {
        let before = self.map.range(..range.start).next_back().map(|(_, run)| run);
        let before = before.filter(|run| run.range.end > range.start && !range.is_empty());
        let end = range.end.max(range.start);
        before.into_iter().chain(self.map.range(range.start..end).map(|(_, run)| run))
    }

    /// The request, newer than all others, takes effect.
    pub(super) fn insert(&mut self, change: &Rc<Change>) {
        if change.range.is_empty() {
            return;
        }
        let outer = change.range.aligned_out(self.block);
        let mask = self.block.saturating_sub(1);
        let inner = ByteRange { start: change.range.start.saturating_add(mask) & !mask, end: change.range.end & !mask };
        if inner.start >= inner.end {
            // One or two blocks, none of them whole; the border between them is the inner one.
            let border = inner.start.min(outer.end);
            self.add(ByteRange { start: outer.start, end: border }, change);
            self.add(ByteRange { start: border, end: outer.end }, change);
        } else {
            self.add(ByteRange { start: outer.start, end: inner.start }, change);
            self.add(inner, change);
            self.add(ByteRange { start: inner.end, end: outer.end }, change);
        }
    }

    fn add(&mut self, range: ByteRange, change: &Rc<Change>) {
        if range.is_empty() {
            return;
        }
        self.split(range.start);
        self.split(range.end);
        let mut added: usize = 0;
        let mut gaps = Vec::new();
        let mut from = range.start;
        for (&start, run) in self.map.range_mut(range.start..range.end) {
            if from < start {
                gaps.push(ByteRange { start: from, end: start });
            }
            run.versions.push(Rc::clone(change));
            added = added.saturating_add(1);
            from = run.range.end;
        }
        if from < range.end {
            gaps.push(ByteRange { start: from, end: range.end });
        }
        for gap in gaps {
            self.map.insert(gap.start, Run { range: gap, versions: vec![Rc::clone(change)] });
            added = added.saturating_add(1);
        }
        let places = self.places.entry(change.id).or_default();
        *places = places.saturating_add(added);
        self.slots = self.slots.saturating_add(added);
    }

    /// Makes a run end at `at`, if one reaches across it.
    fn split(&mut self, at: u64) {
        let Some((_, run)) = self.map.range_mut(..at).next_back() else { return };
        if run.range.end <= at {
            return;
        }
        let tail = Run { range: ByteRange { start: at, end: run.range.end }, versions: run.versions.clone() };
        run.range.end = at;
        for change in &tail.versions {
            let places = self.places.entry(change.id).or_default();
            *places = places.saturating_add(1);
        }
        self.slots = self.slots.saturating_add(tail.versions.len());
        self.map.insert(at, tail);
    }

    /// Drops versions in `span`, which no run crosses the ends of: `keep` thins them run by run. Returns the requests
    /// that have none left.
    pub(super) fn thin(&mut self, span: ByteRange, mut keep: impl FnMut(&mut Vec<Rc<Change>>)) -> Vec<ChangeId> {
        let mut gone = Vec::new();
        let mut empty = Vec::new();
        let (places, slots) = (&mut self.places, &mut self.slots);
        for (&start, run) in self.map.range_mut(span.start..span.end.max(span.start)) {
            let before = run.versions.clone();
            keep(&mut run.versions);
            if run.versions.len() != before.len() {
                let mut kept = run.versions.iter().map(|change| change.id).peekable();
                for change in &before {
                    if kept.next_if_eq(&change.id).is_some() {
                        continue;
                    }
                    *slots = slots.saturating_sub(1);
                    if let Some(count) = places.get_mut(&change.id) {
                        *count = count.saturating_sub(1);
                        if *count == 0 {
                            places.remove(&change.id);
                            gone.push(change.id);
                        }
                    }
                }
            }
            if run.versions.is_empty() {
                empty.push(start);
            }
        }
        for start in empty {
            self.map.remove(&start);
        }
        gone
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.map.clear();
        self.places.clear();
        self.slots = 0;
    }
}
