//! What a client may read (CM 4.2 to 4.5, 4.10, 4.11), and what after a crash (CM 5.6).
//!
//! The model hears of every request a client sends and of its end, in order; it never looks at the device. Content is
//! judged in units of 512 bytes, split where a request begins or ends inside one: each piece must be, whole, what one
//! of its candidates holds.
//!
//! A candidate is any write-class request sent before the read ended, and the initial content, unless a *successful*
//! request came in between: sent after the candidate had ended, completed before the read began. Failed requests
//! remain candidates, dropped ones have not ended before a drain. A discard is its range's old content or zeroes, so
//! it excludes nothing. A resize zeroes what it adds or cuts off. A read made while nothing is under way settles what a
//! later read may see.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;

use super::disk::TestDisk;
use super::stamp::{self, Stamp};
use crate::nodes::memory::SparseBytes;
use crate::units::{ByteOffset, ByteRange};

const UNIT: u64 = stamp::SECTOR as u64;

/// A write, write zeroes or discard known to a [`Model`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChangeId(pub usize);

/// A flush known to a [`Model`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlushId(usize);

/// A moment in a model's order of events.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Instant(u64);

/// Something a client must not see.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The bytes that are wrong.
    pub range: ByteRange,
    /// What they are, and what else they hold.
    pub found: String,
    /// What they may be.
    pub expected: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}: found {}, allowed: {}", self.range, self.found, self.expected.join("; "))
    }
}

impl std::error::Error for Violation {}

#[derive(Clone, Debug)]
enum Content {
    Data(Rc<[u8]>),
    Zeroes,
    /// Old content or zeroes.
    Discard,
    /// What a change to this size adds or cuts off, which reads as zeroes for good (CM 4.12).
    Resize(u64),
}

#[derive(Clone, Debug)]
struct Change {
    range: ByteRange,
    content: Content,
    fua: bool,
    submit: Instant,
    /// When it completed, failed, or was drained after a drop; open if never.
    ended: Option<Instant>,
    succeeded: bool,
    dropped: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Flush {
    submit: Instant,
    succeeded: Option<Instant>,
}

/// What may be in one piece of a unit. Pieces tile a unit.
#[derive(Clone, Debug)]
struct Piece {
    range: ByteRange,
    /// Requests that touch it, in order of submission.
    changes: Vec<ChangeId>,
    /// What a read found when nothing was under way, and when it began to be certain.
    seen: Option<(Instant, Vec<Option<ChangeId>>)>,
}

/// The oracle.
///
/// ```
/// use blkproof_block::testing::{Model, stamp};
/// use blkproof_block::nodes::memory::SparseBytes;
///
/// let mut model = Model::new(SparseBytes::new(4096));
/// let first = model.submit_write(0, &stamp::bytes(0, 512, 1), false);
/// model.complete(first);
/// let failed = model.submit_write(0, &stamp::bytes(0, 512, 2), false);
/// model.fail(failed);
/// // Either may be there, but once seen, it stays.
/// model.check_now(0, &stamp::bytes(0, 512, 2)).unwrap();
/// model.check_now(0, &stamp::bytes(0, 512, 1)).unwrap_err();
/// ```
#[derive(Clone, Debug)]
pub struct Model {
    initial: SparseBytes,
    changes: Vec<Change>,
    flushes: Vec<Flush>,
    units: BTreeMap<u64, Vec<Piece>>,
    /// The position in the disk's log at each instant.
    positions: Vec<u64>,
    disk: Option<TestDisk>,
}

impl Model {
    /// A client's view of a device that holds `initial`, durably.
    pub fn new(initial: SparseBytes) -> Self {
        let positions = Vec::new();
        Self { initial, changes: Vec::new(), flushes: Vec::new(), units: BTreeMap::new(), positions, disk: None }
    }

    /// Notes with every event the position in the log of `disk`, so that [`after_crash`](Self::after_crash) knows what
    /// the client had been promised.
    #[must_use]
    pub fn with_disk(mut self, disk: &TestDisk) -> Self {
        self.disk = Some(disk.clone());
        self
    }

    fn tick(&mut self) -> Instant {
        self.positions.push(self.disk.as_ref().map_or(0, |disk| disk.position() as u64));
        Instant(self.positions.len() as u64 - 1)
    }

    // Requests.

    /// A write is about to be sent.
    pub fn submit_write(&mut self, at: u64, data: &[u8], fua: bool) -> ChangeId {
        self.submit(ByteRange::at(at, data.len() as u64), Content::Data(data.into()), fua)
    }

    /// A write zeroes is about to be sent.
    pub fn submit_zeroes(&mut self, at: u64, len: u64, fua: bool) -> ChangeId {
        self.submit(ByteRange::at(at, len), Content::Zeroes, fua)
    }

    /// A discard is about to be sent.
    pub fn submit_discard(&mut self, at: u64, len: u64) -> ChangeId {
        self.submit(ByteRange::at(at, len), Content::Discard, false)
    }

    /// A change of the size from `from` to `to` is about to be sent; one at a time, and nothing else under way between
    /// the two sizes. Of a request that fails, the device says which size it has; after a power cut it may be either.
    pub fn submit_resize(&mut self, from: u64, to: u64) -> ChangeId {
        self.submit(ByteRange { start: from.min(to), end: from.max(to) }, Content::Resize(to), false)
    }

    fn submit(&mut self, range: ByteRange, content: Content, fua: bool) -> ChangeId {
        let id = ChangeId(self.changes.len());
        let submit = self.tick();
        self.changes.push(Change { range, content, fua, submit, ended: None, succeeded: false, dropped: None });
        self.touch(range, |piece| piece.changes.push(id));
        id
    }

    /// The request succeeded.
    pub fn complete(&mut self, id: ChangeId) {
        self.end(id, true);
    }

    /// The request failed: done or not done, unit by unit, for good.
    pub fn fail(&mut self, id: ChangeId) {
        self.end(id, false);
    }

    fn end(&mut self, id: ChangeId, succeeded: bool) {
        let now = self.tick();
        let change = &mut self.changes[id.0];
        assert!(change.ended.is_none() && change.dropped.is_none(), "{id:?} ends once");
        change.ended = Some(now);
        change.succeeded = succeeded;
    }

    /// The request's future was dropped: it may take effect at any time until a drain.
    pub fn drop_request(&mut self, id: ChangeId) {
        let now = self.tick();
        let change = &mut self.changes[id.0];
        if change.ended.is_none() {
            change.dropped.get_or_insert(now);
        }
    }

    /// The present moment, to be noted before a read or a drain is sent.
    pub fn now(&mut self) -> Instant {
        self.tick()
    }

    /// A drain that was sent at `started` completed: what was dropped before is settled.
    pub fn drained(&mut self, started: Instant) {
        let now = self.tick();
        for change in &mut self.changes {
            if change.ended.is_none() && change.dropped.is_some_and(|dropped| dropped < started) {
                change.ended = Some(now);
            }
        }
    }

    /// A flush is about to be sent.
    pub fn submit_flush(&mut self) -> FlushId {
        let submit = self.tick();
        self.flushes.push(Flush { submit, succeeded: None });
        FlushId(self.flushes.len() - 1)
    }

    /// The flush succeeded. One that failed or was dropped promised nothing and need not be mentioned again.
    pub fn complete_flush(&mut self, id: FlushId) {
        let now = self.tick();
        self.flushes[id.0].succeeded = Some(now);
    }

    /// Requests known so far.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether no request is known.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    // Judgement.

    /// Judges a read that was sent at `started` and has just completed with `buf`.
    ///
    /// # Errors
    /// The first violation.
    pub fn check_read(&mut self, at: u64, buf: &[u8], started: Instant) -> Result<(), Violation> {
        let ended = self.tick();
        let range = ByteRange::at(at, buf.len() as u64);
        self.touch(range, |_| {}); // Pieces end where the read ends.
        for unit in units_of(range) {
            let Some(mut pieces) = self.units.remove(&unit) else { continue };
            let mut verdict = Ok(());
            for piece in pieces.iter_mut().filter(|piece| piece.range.overlaps(range)) {
                let found = slice(buf, at, piece.range);
                verdict = self.check_piece(piece, found, started, ended);
                if verdict.is_err() {
                    break;
                }
            }
            self.units.insert(unit, pieces);
            verdict?;
        }
        Ok(())
    }

    /// Judges a read that began and ended now, with nothing of the client's own under way in between.
    ///
    /// # Errors
    /// The first violation.
    pub fn check_now(&mut self, at: u64, buf: &[u8]) -> Result<(), Violation> {
        let now = self.tick();
        self.check_read(at, buf, now)
    }

    fn check_piece(&self, piece: &mut Piece, found: &[u8], started: Instant, ended: Instant) -> Result<(), Violation> {
        // The latest submission of a request that excludes what had ended before it.
        let floor = self
            .changes_of(piece)
            .filter(|(_, change)| change.excludes() && change.ended.is_some_and(|end| end < started))
            .map(|(_, change)| change.submit)
            .max();
        let seen = piece.seen.as_ref().filter(|(since, _)| *since < started);
        let allowed = |id: Option<ChangeId>| {
            let (submit, end) = match id {
                Some(id) => (Some(self.changes[id.0].submit), self.changes[id.0].ended),
                None => (None, None),
            };
            let excluded = match (id, floor) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some(_), Some(floor)) => end.is_some_and(|end| end < floor),
            };
            let forgotten = seen
                .is_some_and(|(since, values)| submit.is_none_or(|submit| submit < *since) && !values.contains(&id));
            submit.is_none_or(|submit| submit < ended) && !excluded && !forgotten
        };
        let candidates: Vec<_> =
            std::iter::once(None).chain(piece.changes.iter().map(|&id| Some(id))).filter(|&id| allowed(id)).collect();
        let matching: Vec<_> =
            candidates.iter().rev().copied().filter(|&id| self.matches(id, piece.range, found)).collect();
        if matching.is_empty() {
            return Err(self.violation(piece, found, &candidates));
        }
        // Certain only if nothing was under way at any moment of the read.
        let quiet = self.changes_of(piece).all(|(_, change)| change.ended.is_some_and(|end| end < started));
        if quiet {
            piece.seen = Some((ended, matching));
        }
        Ok(())
    }

    /// What a client may read once the device works again after a power cut at `position` of the disk's log.
    pub fn after_crash(&self, position: usize) -> AfterCrash<'_> {
        // The promises made to the client. One between two entries of the log was made before a cut between them.
        let happened = self.positions.partition_point(|&at| at <= position as u64) as u64;
        let flushed = self
            .flushes
            .iter()
            .filter(|flush| flush.succeeded.is_some_and(|at| at.0 < happened))
            .map(|flush| flush.submit)
            .max();
        let happened = |at: Option<Instant>| at.filter(|at| at.0 < happened);
        let durable = |change: &Change| {
            let covered = |end: Instant| change.fua || flushed.is_some_and(|flushed| end < flushed);
            change.excludes() && happened(change.ended).is_some_and(covered)
        };
        // What was sent between two entries of the log has not reached the disk at a cut between them. This matters for
        // zeroes, which would excuse the zeroes of somebody else. It may be a promise all the same, one that needed
        // no disk because its content was there already; as such it rules out others, and is what they are ruled out
        // for.
        let sent = |change: &Change| self.positions[change.submit.0 as usize] < position as u64 || durable(change);
        let candidates = |piece: &Piece| {
            let floor = self.changes_of(piece).filter(|(_, c)| durable(c)).map(|(_, c)| c.submit).max();
            self.changes_of(piece)
                .filter(|(_, change)| sent(change))
                .filter(|(_, change)| floor.is_none_or(|floor| happened(change.ended).is_none_or(|end| end >= floor)))
                .map(|(id, _)| Some(id))
                .chain(floor.is_none().then_some(None))
                .collect()
        };
        let resized = |change: &Change| match change.content {
            Content::Resize(to) => Some((to, change.clone())),
            _ => None,
        };
        let resizes: Vec<_> = self.changes.iter().filter_map(resized).collect();
        let floor = resizes.iter().filter(|(_, change)| durable(change)).map(|(_, change)| change.submit).max();
        // Whoever was promised data behind a size, after that size was decided, was promised another size.
        let outgrown = |size: u64, since: Option<Instant>| {
            let promised = |change: &&Change| !matches!(change.content, Content::Resize(_)) && durable(change);
            let behind = |change: &Change| change.range.end > size && since.is_none_or(|since| since < change.submit);
            self.changes.iter().filter(promised).any(behind)
        };
        let sizes = resizes
            .iter()
            .filter(|(_, change)| sent(change))
            .filter(|(_, change)| floor.is_none_or(|floor| happened(change.ended).is_none_or(|end| end >= floor)))
            .filter(|(size, change)| happened(change.ended).is_none_or(|end| !outgrown(*size, Some(end))))
            .map(|(size, _)| *size)
            .chain(Some(self.initial.size()).filter(|&size| floor.is_none() && !outgrown(size, None)))
            .collect();
        let judged = |pieces: &Vec<Piece>| pieces.iter().map(|piece| (piece.range, candidates(piece))).collect();
        AfterCrash {
            model: self,
            sizes,
            units: self.units.iter().map(|(&unit, pieces)| (unit, judged(pieces))).collect(),
        }
    }

    /// Positions in the disk's log just after a promise of durability reached the client, or before a request whose
    /// content is not unique was sent (CM 5.3 (2) and (4)).
    pub fn interesting_points(&self) -> Vec<usize> {
        let promises = self.flushes.iter().filter_map(|flush| flush.succeeded);
        let fua = self.changes.iter().filter(|change| change.fua && change.succeeded).filter_map(|change| change.ended);
        let vague = self.changes.iter().filter(|change| !matches!(change.content, Content::Data(_)));
        let mut points: Vec<_> = promises
            .chain(fua)
            .chain(vague.map(|change| change.submit))
            .map(|at| self.positions[at.0 as usize] as usize)
            .collect();
        points.sort_unstable();
        points.dedup();
        points
    }

    fn changes_of(&self, piece: &Piece) -> impl Iterator<Item = (ChangeId, &Change)> {
        piece.changes.iter().map(|&id| (id, &self.changes[id.0]))
    }

    /// Whether `found`, the bytes of `range`, are what the request put there; `None` is the initial content.
    fn matches(&self, id: Option<ChangeId>, range: ByteRange, found: &[u8]) -> bool {
        match id.map(|id| &self.changes[id.0]) {
            Some(Change { content: Content::Data(data), range: whole, .. }) => slice(data, whole.start, range) == found,
            Some(_) => crate::buffer::is_zero(found),
            None => {
                let mut initial = vec![0; found.len()];
                self.initial.read(range.start, &mut initial);
                initial == found
            }
        }
    }

    fn violation(&self, piece: &Piece, found: &[u8], candidates: &[Option<ChangeId>]) -> Violation {
        let also: Vec<_> = std::iter::once(None)
            .chain(piece.changes.iter().map(|&id| Some(id)))
            .filter(|&id| self.matches(id, piece.range, found))
            .map(|id| self.name(id))
            .collect();
        let found = match (also.is_empty(), stamp::decode(found, piece.range.start)) {
            (false, _) => format!("superseded content of {}", also.join(" or ")),
            (true, Stamp::Garbage) => {
                format!("foreign bytes {:02x?}", found.get(..found.len().min(16)).unwrap_or(found))
            }
            (true, Stamp::Misplaced { op, from }) => {
                format!("misplaced: what op {op} wrote at {}", ByteOffset(from))
            }
            (true, Stamp::Zero) => "zeroes".to_owned(),
            (true, stamp) => format!("foreign: {stamp:?}"),
        };
        Violation { range: piece.range, found, expected: candidates.iter().map(|&id| self.name(id)).collect() }
    }

    fn name(&self, id: Option<ChangeId>) -> String {
        let Some(id) = id else { return "the initial content".to_owned() };
        let change = &self.changes[id.0];
        let kind = match change.content {
            Content::Data(_) => "write",
            Content::Zeroes => "write zeroes",
            Content::Discard => "discard",
            Content::Resize(_) => "resize",
        };
        let end = match (change.ended, change.succeeded, change.dropped) {
            (Some(_), true, _) => "completed",
            (Some(_), false, None) => "failed",
            (Some(_), false, Some(_)) => "dropped and drained",
            (None, _, Some(_)) => "dropped",
            (None, ..) => "in flight",
        };
        format!("op {} ({kind} {}, {end})", id.0 + 1, change.range)
    }

    /// Splits pieces at the ends of `range` and visits those inside.
    fn touch(&mut self, range: ByteRange, mut visit: impl FnMut(&mut Piece)) {
        for unit in units_of(range) {
            let whole = ByteRange::at(unit * UNIT, UNIT);
            let pieces =
                self.units.entry(unit).or_insert_with(|| vec![Piece { range: whole, changes: Vec::new(), seen: None }]);
            for cut in [range.start, range.end] {
                let Some(index) = pieces.iter().position(|piece| piece.range.start < cut && cut < piece.range.end)
                else {
                    continue;
                };
                let mut tail = pieces[index].clone();
                tail.range.start = cut;
                pieces[index].range.end = cut;
                pieces.insert(index + 1, tail);
            }
            pieces.iter_mut().filter(|piece| piece.range.overlaps(range)).for_each(&mut visit);
        }
    }
}

impl Change {
    /// Whether its success rules out what had ended before it.
    fn excludes(&self) -> bool {
        self.succeeded && !matches!(self.content, Content::Discard)
    }
}

/// Requests, and as `None` the initial content, whose content a piece may hold.
type Candidates = Vec<Option<ChangeId>>;

/// The judge of what survived a power cut.
#[derive(Debug)]
pub struct AfterCrash<'a> {
    model: &'a Model,
    /// Sizes that the device may have.
    sizes: BTreeSet<u64>,
    /// What each piece of a unit that was ever touched may hold.
    units: BTreeMap<u64, Vec<(ByteRange, Candidates)>>,
}

impl AfterCrash<'_> {
    /// The sizes that the device may have after recovery, in order.
    pub fn sizes(&self) -> impl Iterator<Item = u64> {
        self.sizes.iter().copied()
    }

    /// Judges what a read of `buf.len()` bytes at `at` found after recovery.
    ///
    /// # Errors
    /// The first violation: foreign bytes, or content that something durable had replaced.
    pub fn check(&self, at: u64, buf: &[u8]) -> Result<(), Violation> {
        let range = ByteRange::at(at, buf.len() as u64);
        for unit in units_of(range) {
            let untouched = [(ByteRange::at(unit * UNIT, UNIT), vec![None])];
            for (piece, candidates) in self.units.get(&unit).map_or(&untouched[..], Vec::as_slice) {
                let Some(part) = piece.intersection(range) else { continue };
                let found = slice(buf, at, part);
                if candidates.iter().rev().any(|&id| self.model.matches(id, part, found)) {
                    continue;
                }
                let pieces = self.model.units.get(&unit).map_or(&[][..], Vec::as_slice);
                let whole = pieces.iter().find(|whole| whole.range == *piece);
                let changes = whole.map_or_else(Vec::new, |whole| whole.changes.clone());
                return Err(self.model.violation(&Piece { range: part, changes, seen: None }, found, candidates));
            }
        }
        Ok(())
    }
}

fn units_of(range: ByteRange) -> impl Iterator<Item = u64> {
    let first = range.start / UNIT;
    let last = if range.is_empty() { first } else { range.end.div_ceil(UNIT) };
    first..last
}

/// The bytes of `range` in `bytes`, which begin at `at` and contain it.
fn slice(bytes: &[u8], at: u64, range: ByteRange) -> &[u8] {
    &bytes[(range.start - at) as usize..(range.end - at) as usize]
}
