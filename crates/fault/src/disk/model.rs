//! The volatile write cache, as a structure without I/O: what a node or a simulator of a disk has to know.
//!
//! The cache takes a request when it *arrives*: at that moment it takes effect for readers, gets its number, and so
//! its place in the order of overlapping requests. It is *open* until it completes. What becomes of it:
//! - *settled*: it is on the medium, and with it every older version of the blocks it touches. The owner of the model
//!   writes the [`batch`](Model::batch) first, and then says [`settle`](Model::settle). A flush of an honest disk
//!   settles what had completed before the flush was sent, FUA the one request, eviction what makes room.
//! - *forgotten*: it never was (a failed flush that forgets, CM 4.7 (3)).
//! - lost or kept, block by block, by a power cut: [`Model::state`] tells what is left, and changes nothing;
//!   [`Model::reset`] begins the next life.
//!
//! # Invariants
//! - With nothing settled early, the states are exactly those of CM 5.1: per block the medium's content, or the
//!   version of any request in the cache that is not older than a settled one; the size is one more block. Settling
//!   early only takes states away, if it is settled what the profile lets survive alone: of the profile `block` that is
//!   anything, of others what [`evict`](Model::evict) chooses.
//! - What is settled is in every later state. An honest owner settles what a flush covers before it acknowledges the
//!   flush, so nothing flushed is ever lost; a liar only [promises](Model::promise), so that what it lost can be
//!   counted.
//! - What readers see is the newest version of every block, whatever is settled.
//! - Memory is what [`Model::bytes`] says, give or take a constant factor: requests cost their data and a fixed
//!   amount, whatever the size of the disk and of their ranges.
//! - Every decision is a function of the seed and of numbers of requests and blocks (CM 8.1).

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use blkproof_block::ByteRange;

use super::piece::{Content, Piece, cut_off};
use super::runs::{Run, Runs};
use super::size::Sizes;

/// A request's number in the cache, in the order of effects; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ChangeId(pub u64);

impl std::fmt::Display for ChangeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A moment in the order of arrivals and completions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Moment(u64);

/// A write-class request, as it was sent.
#[derive(Clone, Debug)]
pub enum Request {
    /// A write to `at`. One beyond the end extends the disk; the gap reads as zeroes.
    Write {
        /// First byte.
        at: u64,
        /// What is written.
        data: Rc<[u8]>,
    },
    /// A write zeroes or a discard; for this cache a discard is zeroes that give their space back (CM 5.1).
    Zeroes {
        /// Which bytes. Beyond the end, as for a write.
        range: ByteRange,
        /// The space may be given back.
        unmap: bool,
    },
    /// A change of the size. What it cuts off reads as zeroes for ever; what it adds, too.
    Resize {
        /// The new size in bytes.
        size: u64,
    },
}

/// A request in the cache.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) id: ChangeId,
    pub(super) range: ByteRange,
    data: Option<Rc<[u8]>>,
    unmap: bool,
    /// The end of the data that needs a size to be found; 0 for a resize, whose range is what it cut off.
    end: u64,
}

impl Change {
    /// What it leaves in `range`, as far as it touches it.
    pub(super) fn piece(&self, range: ByteRange) -> Option<Piece> {
        let content = match &self.data {
            Some(bytes) => Content::Data { bytes: Rc::clone(bytes), from: 0 },
            None => Content::Zeroes { unmap: self.unmap },
        };
        Piece { range: self.range, content }.clipped(range)
    }

    pub(super) fn data_len(&self) -> u64 {
        self.data.as_ref().map_or(0, |data| data.len() as u64)
    }
}

/// Where a request in the cache stands.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) change: Rc<Change>,
    pub(super) completed: Option<Moment>,
    /// A liar has acknowledged a flush that covers it, or its FUA.
    pub(super) promised: bool,
    /// Its caller lost interest before it completed.
    pub(super) dropped: bool,
}

impl Entry {
    /// Where it stands in the order of completion; what is open comes last.
    pub(super) fn end_key(&self) -> (bool, Option<Moment>) {
        (self.completed.is_none(), self.completed)
    }
}

/// Some requests.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Covered {
    /// None.
    #[default]
    Nothing,
    /// What completed before: what a flush sent at that moment covers (CM 4.6).
    CompletedBefore(Moment),
    /// These.
    These(BTreeSet<ChangeId>),
    /// All.
    Everything,
}

impl Covered {
    /// One request.
    pub fn one(id: ChangeId) -> Self {
        Self::These(BTreeSet::from([id]))
    }

    fn has(&self, id: ChangeId, completed: Option<Moment>) -> bool {
        match self {
            Self::Nothing => false,
            Self::CompletedBefore(moment) => completed.is_some_and(|completed| completed < *moment),
            Self::These(these) => these.contains(&id),
            Self::Everything => true,
        }
    }
}

/// What has to be on the medium before some requests are settled.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The medium's size. It comes first: no piece lies beyond it, and what a shrink cuts off is not in the pieces.
    pub size: u64,
    /// Sorted by place, apart from each other.
    pub pieces: Vec<Piece>,
}

/// A mistake built in on purpose, for the tests that show that it is found.
#[doc(hidden)]
#[allow(missing_docs, reason = "nobody is to use them")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sabotage {
    FlushSkipsZeroes,
    FlushCoversOpen,
    SettledVersionsStay,
    SettlingTakesNewer,
    BatchHoldsNewestOnly,
    ReadersMissNewest,
    SizeIsForgotten,
    FuaIsNotWritten,
    NoUndo,
    NoDrain,
    MediumIsReadFirst,
    JobsOutliveCut,
    RoomWithoutWriting,
}

/// What the cache costs apart from data: bytes for a request, for a version of a run, for a size.
pub(super) const REQUEST_COST: u64 = 256;
const VERSION_COST: u64 = 16;

/// The write cache. See the head of this file.
#[derive(Clone, Debug)]
pub struct Model {
    pub(super) runs: Runs,
    pub(super) sizes: Sizes,
    pub(super) entries: BTreeMap<ChangeId, Entry>,
    data: u64,
    next: u64,
    now: u64,
    /// Where the elevator stands.
    pub(super) head: u64,
    /// A liar has promised something in this life.
    promised: bool,
    sabotage: Option<Sabotage>,
}

impl Model {
    /// An empty cache over a medium of `size` bytes with atomic blocks of `block` bytes, a power of two.
    pub fn new(size: u64, block: u32) -> Self {
        Self {
            runs: Runs::new(u64::from(block.max(1))),
            sizes: Sizes::new(size),
            entries: BTreeMap::new(),
            data: 0,
            next: 0,
            now: 0,
            head: 0,
            promised: false,
            sabotage: None,
        }
    }

    /// Builds a mistake in.
    #[doc(hidden)]
    pub fn sabotage(&mut self, sabotage: Sabotage) {
        self.sabotage = Some(sabotage);
    }

    pub(super) fn is_sabotaged(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }

    fn tick(&mut self) -> Moment {
        self.now = self.now.saturating_add(1);
        Moment(self.now)
    }

    // Requests.

    /// A request arrives and takes effect. It may lie beyond the end: whether it may is not decided here.
    pub fn submit(&mut self, request: Request) -> ChangeId {
        let id = ChangeId(self.next);
        self.next = self.next.saturating_add(1);
        self.tick();
        let size = self.sizes.now();
        let (range, data, unmap, end, new_size) = match request {
            Request::Write { at, data } => {
                let range = ByteRange::at(at, data.len() as u64);
                (range, Some(data), false, range.end, size.max(range.end))
            }
            Request::Zeroes { range, unmap } => (range, None, unmap, range.end, size.max(range.end)),
            Request::Resize { size: new } => (ByteRange { start: new.min(size), end: size }, None, true, 0, new),
        };
        let change = Rc::new(Change { id, range, data, unmap, end });
        self.runs.insert(&change);
        if new_size != size {
            self.sizes.push(id, new_size);
        }
        if self.is_live(id) {
            self.data = self.data.saturating_add(change.data_len());
            self.entries.insert(id, Entry { change, completed: None, promised: false, dropped: false });
        }
        id
    }

    /// The request is acknowledged, or has failed for good: from now on flushes cover it.
    pub fn complete(&mut self, id: ChangeId) {
        let now = self.tick();
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.completed.get_or_insert(now);
        }
    }

    /// The caller is gone before the request completed: it stays open until a [`drain`](Self::drain) (CM 4.5).
    pub fn drop_request(&mut self, id: ChangeId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.dropped = entry.completed.is_none();
        }
    }

    /// What was dropped counts as ended now.
    pub fn drain(&mut self) {
        let now = self.tick();
        for entry in self.entries.values_mut().filter(|entry| entry.dropped) {
            entry.completed.get_or_insert(now);
            entry.dropped = false;
        }
    }

    /// A flush arrives; it covers what completed before this moment.
    pub fn begin_flush(&mut self) -> Moment {
        self.tick()
    }

    // What becomes of them.

    /// What the medium has to hold before `covered` can be settled.
    pub fn batch(&self, covered: &Covered) -> Batch {
        let mut sizes = self.sizes.clone();
        self.settle_sizes(&mut sizes, covered);
        let mut pieces = Vec::new();
        for run in self.runs.over(self.span(covered)) {
            let version = run.newest(|id| self.has(covered, id));
            match version.checked_sub(1).and_then(|newest| run.versions.get(newest)) {
                Some(newest) if self.is_sabotaged(Sabotage::BatchHoldsNewestOnly) => {
                    pieces.extend(newest.piece(run.range));
                }
                _ => run.content(version, run.range, &mut pieces),
            }
        }
        cut_off(&mut pieces, sizes.base());
        Batch { size: sizes.base(), pieces }
    }

    /// The medium holds the [`batch`](Self::batch) of `covered`: no power cut can bring older versions back.
    pub fn settle(&mut self, covered: &Covered) {
        let mut sizes = self.sizes.clone();
        self.settle_sizes(&mut sizes, covered);
        let dropped: Vec<_> = self.sizes.versions().iter().map(|version| version.id).collect();
        self.sizes = sizes;
        let settled = self.ids(covered);
        let sabotage = self.sabotage;
        let gone = self.runs.thin(self.span(covered), |versions| {
            let newest = versions.iter().rposition(|change| settled.contains(&change.id));
            match (newest, sabotage) {
                (None, _) => {}
                (Some(_), Some(Sabotage::SettlingTakesNewer)) => versions.clear(),
                (Some(_), Some(Sabotage::SettledVersionsStay)) => versions.retain(|one| !settled.contains(&one.id)),
                (Some(newest), _) => {
                    versions.drain(..=newest);
                }
            }
        });
        self.bury(gone.into_iter().chain(dropped));
    }

    /// The requests never were. Newer ones stay; what readers see may go back to what it was before.
    pub fn forget(&mut self, covered: &Covered) {
        let ids = self.ids(covered);
        self.sizes.forget(|id| ids.contains(&id));
        let gone = self.runs.thin(self.span(covered), |versions| versions.retain(|change| !ids.contains(&change.id)));
        self.bury(gone.into_iter().chain(ids));
    }

    /// A liar says that the requests are durable.
    pub fn promise(&mut self, covered: &Covered) {
        self.promised = true;
        for (&id, entry) in &mut self.entries {
            entry.promised |= covered.has(id, entry.completed);
        }
    }

    /// The power is back: nothing is cached, and the medium has `size` bytes. Numbers go on.
    pub fn reset(&mut self, size: u64) {
        self.runs.clear();
        self.entries.clear();
        self.sizes.reset(size);
        self.data = 0;
        self.promised = false;
    }

    // What there is.

    /// The size clients see.
    pub fn size(&self) -> u64 {
        self.sizes.now()
    }

    /// Bytes of a block.
    pub fn block(&self) -> u64 {
        self.runs.block()
    }

    /// Bytes in the cache, bookkeeping included.
    pub fn bytes(&self) -> u64 {
        let requests = (self.entries.len() as u64).saturating_mul(REQUEST_COST);
        let versions =
            (self.runs.slots().saturating_add(self.sizes.versions().len()) as u64).saturating_mul(VERSION_COST);
        self.data.saturating_add(requests).saturating_add(versions)
    }

    /// What a request with `len` bytes of data would add to [`bytes`](Self::bytes), at least.
    pub fn cost(len: u64) -> u64 {
        len.saturating_add(REQUEST_COST)
    }

    /// Requests in the cache, and how many of them are open.
    pub fn pending(&self) -> (usize, usize) {
        (self.entries.len(), self.entries.values().filter(|entry| entry.completed.is_none()).count())
    }

    /// Whether a liar has promised anything since the power came.
    pub(super) fn has_promised(&self) -> bool {
        self.promised
    }

    /// Bytes in the cache that a liar said were durable; of overlapping requests each counts.
    pub fn promised(&self) -> u64 {
        let promised = self.entries.values().filter(|entry| entry.promised);
        promised.fold(0, |sum, entry| sum.saturating_add(entry.change.range.len()))
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What readers see of `range` that is not on the medium; sorted, apart.
    pub fn look(&self, range: ByteRange) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for run in self.runs.over(range) {
            let hidden = usize::from(self.is_sabotaged(Sabotage::ReadersMissNewest));
            run.content(run.versions.len().saturating_sub(hidden), range, &mut pieces);
        }
        pieces
    }

    /// Whether no byte of `range` is cached.
    pub fn is_clean(&self, range: ByteRange) -> bool {
        self.runs.over(range).next().is_none()
    }

    /// The covered requests that are in the cache.
    pub(super) fn ids(&self, covered: &Covered) -> BTreeSet<ChangeId> {
        self.covered(covered).map(|(id, _)| id).collect()
    }

    /// Whether the request is in the cache.
    pub fn is_cached(&self, id: ChangeId) -> bool {
        self.entries.contains_key(&id)
    }

    fn is_live(&self, id: ChangeId) -> bool {
        self.runs.holds(id) || self.sizes.holds(id)
    }

    pub(super) fn has(&self, covered: &Covered, id: ChangeId) -> bool {
        self.entries.get(&id).is_some_and(|entry| self.entry_has(covered, id, entry))
    }

    /// Every covered request, in order.
    fn covered<'a>(&'a self, covered: &'a Covered) -> Box<dyn Iterator<Item = (ChangeId, &'a Entry)> + 'a> {
        match covered {
            // A few of very many: what each FUA write asks for.
            Covered::These(ids) => {
                Box::new(ids.iter().filter_map(|&id| self.entries.get(&id).map(|entry| (id, entry))))
            }
            _ => {
                let all = self.entries.iter().map(|(&id, entry)| (id, entry));
                Box::new(all.filter(|&(id, entry)| self.entry_has(covered, id, entry)))
            }
        }
    }

    /// Bytes beyond which no covered request has a version.
    fn span(&self, covered: &Covered) -> ByteRange {
        match covered {
            Covered::These(_) => {
                let ranges = self.covered(covered).map(|(_, entry)| entry.change.range.aligned_out(self.block()));
                let both =
                    |a: ByteRange, b: ByteRange| ByteRange { start: a.start.min(b.start), end: a.end.max(b.end) };
                ranges.filter(|range| !range.is_empty()).reduce(both).unwrap_or_default()
            }
            _ => ByteRange { start: 0, end: u64::MAX },
        }
    }

    fn entry_has(&self, covered: &Covered, id: ChangeId, entry: &Entry) -> bool {
        let flush = matches!(covered, Covered::CompletedBefore(_));
        match self.sabotage {
            Some(Sabotage::FlushSkipsZeroes) if flush && entry.change.data.is_none() => false,
            Some(Sabotage::FlushCoversOpen) if flush && entry.completed.is_none() => true,
            _ => covered.has(id, entry.completed),
        }
    }

    fn settle_sizes(&self, sizes: &mut Sizes, covered: &Covered) {
        for (id, entry) in self.covered(covered) {
            let end = match self.is_sabotaged(Sabotage::SizeIsForgotten) {
                true => 0,
                // What lies behind the size that the disk had then was cut off.
                false => entry.change.end.max(self.end_beside(&entry.change).min(sizes.as_of(id))),
            };
            sizes.settle(id, end);
        }
    }

    /// The end of the data of older requests that goes to the medium with `change`, since it lies in the blocks at the
    /// change's ends. It has no other way there any more, so it needs a size that holds it now.
    fn end_beside(&self, change: &Change) -> u64 {
        let beside = |run: &Run| {
            let older = run.versions.iter().take_while(|version| version.id < change.id);
            let whole = change.range.start <= run.range.start && run.range.end <= change.range.end;
            older.filter(|_| !whole).map(|version| version.end.min(run.range.end)).max().unwrap_or(0)
        };
        self.runs.over(change.range).map(beside).max().unwrap_or(0)
    }

    /// Removes those of the requests that have no version left.
    fn bury(&mut self, ids: impl Iterator<Item = ChangeId>) {
        for id in ids {
            if !self.is_live(id)
                && let Some(entry) = self.entries.remove(&id)
            {
                self.data = self.data.saturating_sub(entry.change.data_len());
            }
        }
    }
}
