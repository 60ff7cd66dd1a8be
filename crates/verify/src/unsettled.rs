//! The byte ranges on which the two sides may rightly differ, and what each may hold there.
//!
//! Three things make a range unsettled:
//! - a **discard** that succeeded: each side reads, piece by piece, as before or as zeroes, and stays so (CM 4.10,
//!   level `image`);
//! - a write that **failed** on a side: sector by sector old or new, and nothing lands any more (CM 4.3);
//! - a write that was **dropped**: the same, but it may still land until both sides were drained (CM 4.5); until then
//!   the range is *open*.
//!
//! A write that succeeds on both sides settles what it covers; otherwise the first request that touches the range does
//! (`settle.rs`). The values a sector may hold are kept as fingerprints, so that a third value is recognised.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use blkproof_block::ByteRange;
use blkproof_block::buffer::is_zero;

use crate::fingerprint::Fingerprint;
use crate::history::{Entry, Payload};
use crate::{SECTOR, SECTOR_LEN, len_of};

/// Values kept for one range; with more, any content is accepted there (and counted as unverified).
const CANDIDATES: usize = 16;

/// Memory for the values of one write; beyond it (64 MiB of data in one request) any content is accepted.
const FINGERPRINTS: usize = 128 << 10;

/// Memory for the values of all of them together, in bytes: those of 4 GiB of data. Beyond it any content is accepted
/// where a write failed or was dropped, until some of the others are settled.
const VALUES: usize = 128 << 20;

/// What one request may have left behind.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) entry: Entry,
    value: Value,
    /// What the value takes of [`VALUES`].
    held: Held,
}

/// Memory in use, given back when dropped.
#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    all: Rc<Cell<usize>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.set(self.all.get().saturating_sub(self.bytes));
    }
}

#[derive(Debug)]
enum Value {
    Zeroes,
    /// Whole sectors from `first` on, and the bytes of sectors covered in part.
    Data {
        range: ByteRange,
        first: u64,
        sectors: Box<[Fingerprint]>,
        head: Box<[u8]>,
        tail: Box<[u8]>,
    },
    Unknown,
}

/// Whether some content is a candidate's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Match {
    Yes,
    No,
    Unknown,
}

impl Candidate {
    pub(crate) fn new(entry: Entry, at: u64, payload: Payload<'_>) -> Self {
        let value = match payload {
            Payload::Zeroes(_) => Value::Zeroes,
            Payload::Unknown(_) => Value::Unknown,
            Payload::Data(data) if data.len() / SECTOR_LEN > FINGERPRINTS => Value::Unknown,
            Payload::Data(data) => {
                let head = len_of(at.next_multiple_of(SECTOR) - at).min(data.len());
                let (head, rest) = data.split_at(head);
                let (sectors, tail) = rest.as_chunks::<SECTOR_LEN>();
                Value::Data {
                    range: ByteRange::at(at, data.len() as u64),
                    first: at.div_ceil(SECTOR),
                    sectors: sectors.iter().map(|sector| Fingerprint::of(sector)).collect(),
                    head: head.into(),
                    tail: tail.into(),
                }
            }
        };
        Self { entry, value, held: Held::default() }
    }

    /// Bytes of memory the value takes.
    fn size(&self) -> usize {
        match &self.value {
            Value::Data { sectors, head, tail, .. } => size_of_val(&**sectors) + head.len() + tail.len(),
            Value::Zeroes | Value::Unknown => 0,
        }
    }

    pub(crate) fn is_zeroes(&self) -> bool {
        matches!(self.value, Value::Zeroes)
    }

    /// Whether `content`, which lies at `at` inside one sector, is what this request wrote there.
    pub(crate) fn matches(&self, at: u64, content: &[u8]) -> Match {
        let yes = |yes| if yes { Match::Yes } else { Match::No };
        match &self.value {
            Value::Zeroes => yes(is_zero(content)),
            Value::Unknown => Match::Unknown,
            Value::Data { range, first, sectors, head, tail } => {
                let sector = at / SECTOR;
                let whole = sector.checked_sub(*first).and_then(|index| sectors.get(len_of(index)));
                if let Some(fingerprint) = whole {
                    return match content.len() {
                        SECTOR_LEN => yes(Fingerprint::of(content) == *fingerprint),
                        _ => Match::Unknown,
                    };
                }
                let (start, bytes) =
                    if sector < *first { (range.start, head) } else { (range.end - tail.len() as u64, tail) };
                let kept = at.checked_sub(start).map(len_of).and_then(|skip| bytes.get(skip..skip + content.len()));
                kept.map_or(Match::Unknown, |kept| yes(kept == content))
            }
        }
    }
}

/// What is allowed on one range.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) candidates: Vec<Rc<Candidate>>,
    /// Whether TEST may still hold what was there before the first candidate.
    pub(crate) old: bool,
    /// Anything goes: too many candidates were open at once.
    pub(crate) any: bool,
    /// The drop after which only a drain makes the content stand still; 0 if none.
    pub(crate) drop: u64,
}

/// The interval map.
#[derive(Default, Debug)]
pub(crate) struct Unsettled {
    /// Start of each range → its end and state. Ranges do not overlap.
    pieces: BTreeMap<u64, (u64, Rc<State>)>,
    /// Bytes that the values of all candidates take.
    held: Rc<Cell<usize>>,
}

impl Unsettled {
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.pieces.len()
    }

    pub(crate) fn first(&self) -> Option<ByteRange> {
        self.pieces.first_key_value().map(|(&start, &(end, _))| ByteRange { start, end })
    }

    pub(crate) fn overlaps(&self, range: ByteRange) -> bool {
        // Ranges do not overlap, so the last one that begins before the end of `range` also ends last.
        !range.is_empty() && self.pieces.range(..range.end).next_back().is_some_and(|(_, (end, _))| *end > range.start)
    }

    /// The newest drop that touches `range`; 0 if none.
    pub(crate) fn newest_drop(&self, range: ByteRange) -> u64 {
        self.pieces_in(range).iter().map(|(_, state)| state.drop).max().unwrap_or(0)
    }

    /// The pieces inside `range`, cut at its ends, in order.
    pub(crate) fn pieces_in(&self, range: ByteRange) -> Vec<(ByteRange, Rc<State>)> {
        let before = self.pieces.range(..range.start).next_back();
        before
            .into_iter()
            .chain(self.pieces.range(range.start..range.end.max(range.start)))
            .filter_map(|(&start, (end, state))| Some((range.intersection(ByteRange { start, end: *end })?, state)))
            .map(|(piece, state)| (piece, state.clone()))
            .collect()
    }

    /// Forgets `range`: the sides agree there.
    pub(crate) fn remove(&mut self, range: ByteRange) {
        for (piece, _) in self.pieces_in(range) {
            self.split(piece.start);
            self.split(piece.end);
            self.pieces.remove(&piece.start);
        }
    }

    /// Adds what a request may have left in `range`. With `settles`, TEST is known to hold exactly that.
    pub(crate) fn add(&mut self, range: ByteRange, candidate: Candidate, settles: bool, drop: u64) {
        if range.is_empty() {
            return;
        }
        let candidate = Rc::new(self.charged(candidate, VALUES));
        let known = self.pieces_in(range);
        self.remove(range);
        let fresh = Rc::new(State { candidates: vec![candidate.clone()], old: !settles, any: false, drop });
        let mut at = range.start;
        for (piece, state) in known {
            self.insert(ByteRange { start: at, end: piece.start }, fresh.clone());
            let drop = drop.max(state.drop);
            let state = if settles {
                State { drop, ..State::clone(&fresh) }
            } else {
                let mut state = State::clone(&state);
                if state.candidates.len() < CANDIDATES {
                    state.candidates.push(candidate.clone());
                } else {
                    state.any = true;
                }
                State { drop, ..state }
            };
            self.insert(piece, Rc::new(state));
            at = piece.end;
        }
        self.insert(ByteRange { start: at, end: range.end }, fresh);
    }

    /// The candidate with its value paid for, or without it if that would be more than `limit` for all of them.
    fn charged(&self, mut candidate: Candidate, limit: usize) -> Candidate {
        let bytes = candidate.size();
        let sum = self.held.get().saturating_add(bytes);
        if sum > limit {
            candidate.value = Value::Unknown;
        } else {
            self.held.set(sum);
            candidate.held = Held { bytes, all: self.held.clone() };
        }
        candidate
    }

    /// Notes that a copy is on its way to `range`, which lies inside unsettled ranges, and may land late if dropped.
    pub(crate) fn touch(&mut self, range: ByteRange, drop: u64) {
        for (piece, state) in self.pieces_in(range) {
            self.remove(piece);
            self.insert(piece, Rc::new(State { drop, ..State::clone(&state) }));
        }
    }

    fn insert(&mut self, range: ByteRange, state: Rc<State>) {
        if !range.is_empty() {
            self.pieces.insert(range.start, (range.end, state));
        }
    }

    /// Makes `at` a boundary.
    fn split(&mut self, at: u64) {
        let Some((&start, (end, state))) = self.pieces.range_mut(..at).next_back() else { return };
        if *end > at {
            let (tail, state) = (*end, state.clone());
            *end = at;
            debug_assert!(start < at);
            self.pieces.insert(at, (tail, state));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange { start, end }
    }

    fn entry(op: u64) -> Entry {
        Entry { op, time_ns: 0, client: 0, kind: crate::RequestKind::Write, outcome: crate::Outcome::Failed }
    }

    fn zeroes(op: u64) -> Candidate {
        Candidate::new(entry(op), 0, Payload::Zeroes(1))
    }

    /// Start, end and the operations of each piece.
    fn shape(map: &Unsettled) -> Vec<(u64, u64, Vec<u64>)> {
        let pieces = map.pieces_in(range(0, u64::MAX));
        pieces.iter().map(|(r, s)| (r.start, r.end, s.candidates.iter().map(|c| c.entry.op).collect())).collect()
    }

    #[test]
    fn ranges_are_cut_and_stacked() {
        let mut map = Unsettled::default();
        map.add(range(10, 20), zeroes(1), false, 0);
        map.add(range(15, 30), zeroes(2), false, 7);
        assert_eq!(shape(&map), [(10, 15, vec![1]), (15, 20, vec![1, 2]), (20, 30, vec![2])]);
        assert_eq!((map.newest_drop(range(0, 15)), map.newest_drop(range(0, 16))), (0, 7));
        map.remove(range(12, 17));
        assert_eq!(shape(&map), [(10, 12, vec![1]), (17, 20, vec![1, 2]), (20, 30, vec![2])]);
        for (start, end, want) in [
            (0, 10, false),
            (0, 11, true),
            (12, 17, false),
            (16, 18, true),
            (29, 99, true),
            (30, 99, false),
            (18, 18, false),
        ] {
            assert_eq!(map.overlaps(range(start, end)), want, "{start}..{end}");
        }
        map.add(range(0, 40), zeroes(3), true, 0);
        let ops: Vec<_> = shape(&map).into_iter().flat_map(|piece| piece.2).collect();
        assert!(ops.iter().all(|&op| op == 3), "{ops:?}");
        map.remove(range(0, 40));
        assert!(map.is_empty());
    }

    #[test]
    fn a_model_of_single_bytes_agrees() {
        let mut map = Unsettled::default();
        let mut model: [Vec<u64>; 64] = std::array::from_fn(|_| Vec::new());
        let mut state = 7u64;
        let mut next = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        for op in 1..2000 {
            let start = next(64);
            let end = start + next(64 - start + 1);
            let bytes = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
            match next(3) {
                0 => {
                    map.add(range(start, end), zeroes(op), false, 0);
                    model[bytes].iter_mut().filter(|ops| ops.len() < CANDIDATES).for_each(|ops| ops.push(op));
                }
                1 => {
                    map.add(range(start, end), zeroes(op), true, 0);
                    model[bytes].iter_mut().for_each(|ops| *ops = vec![op]);
                }
                _ => {
                    map.remove(range(start, end));
                    model[bytes].iter_mut().for_each(Vec::clear);
                }
            }
            let mut got: [Vec<u64>; 64] = std::array::from_fn(|_| Vec::new());
            for (start, end, ops) in shape(&map) {
                for byte in start..end {
                    got[usize::try_from(byte).unwrap()].clone_from(&ops);
                }
            }
            assert_eq!(got, model, "operation {op}");
        }
    }

    #[test]
    fn values_are_bounded_in_memory_and_given_back() {
        let mut map = Unsettled::default();
        let data = vec![1; 10 * SECTOR_LEN];
        let write = || Candidate::new(entry(1), 0, Payload::Data(&data));
        let one = write().size();
        assert!(one >= 10 * size_of::<Fingerprint>());
        let kept: Vec<Candidate> = (0..5).map(|_| map.charged(write(), 3 * one)).collect();
        let known = |candidate: &Candidate| candidate.matches(0, &data[..SECTOR_LEN]);
        assert_eq!(
            kept.iter().map(known).collect::<Vec<_>>(),
            [Match::Yes, Match::Yes, Match::Yes, Match::Unknown, Match::Unknown]
        );
        assert_eq!(map.held.get(), 3 * one);
        drop(kept);
        assert_eq!(map.held.get(), 0);
        map.add(range(0, 5120), write(), false, 0);
        map.add(range(0, 512), zeroes(2), true, 0);
        assert_eq!(map.held.get(), one, "still the value of most of it");
        map.remove(range(0, 5120));
        assert_eq!(map.held.get(), 0);
    }

    #[test]
    fn candidates_know_their_own_data() {
        let data: Vec<u8> = (0..1500).map(|i: u32| (i % 251).to_le_bytes()[0]).collect();
        let candidate = Candidate::new(entry(1), 700, Payload::Data(&data)); // 700..2200: head, 1024..2048, tail
        let slice = |start: usize, end: usize| &data[start - 700..end - 700];
        assert_eq!(candidate.matches(1024, slice(1024, 1536)), Match::Yes);
        assert_eq!(candidate.matches(1024, slice(1025, 1537)), Match::No);
        assert_eq!(candidate.matches(1024, slice(1024, 1100)), Match::Unknown, "a part of a whole sector");
        assert_eq!(candidate.matches(700, slice(700, 1024)), Match::Yes);
        assert_eq!(candidate.matches(800, slice(800, 900)), Match::Yes);
        assert_eq!(candidate.matches(800, slice(801, 901)), Match::No);
        assert_eq!(candidate.matches(2048, slice(2048, 2200)), Match::Yes);
        assert_eq!(candidate.matches(2048, &[0; 300]), Match::Unknown, "beyond what it wrote");
        let inside = Candidate::new(entry(1), 700, Payload::Data(&data[..100]));
        assert_eq!(inside.matches(700, &data[..100]), Match::Yes);
    }
}
