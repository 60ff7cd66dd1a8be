//! Comparing what was found with what may be there.

#![allow(clippy::cast_possible_truncation, reason = "differences of addresses inside a buffer")]

use std::borrow::Cow;
use std::rc::Rc;

use blkproof_block::ByteRange;

use super::ops::{NEVER, Time, What};
use super::unit::{Piece, State};
use super::violation::Violation;
use super::{Oracle, UNIT, part_of_unit, units_of};
use crate::plan::OpId;
use crate::stamp::{self, SLICE};

/// What a client was told of a range.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found<'a> {
    /// Its bytes, from byte `at` of the disk.
    Bytes { at: u64, bytes: &'a [u8] },
    /// That it reads as zeroes.
    Zeroes,
}

impl<'a> Found<'a> {
    /// The part of it that is in `range`.
    pub(super) fn part(self, range: ByteRange) -> Self {
        match self {
            Self::Bytes { at, bytes } => {
                let (from, to) = (range.start.saturating_sub(at) as usize, range.end.saturating_sub(at) as usize);
                let part = bytes.get(from.min(bytes.len())..to.min(bytes.len())).unwrap_or(&[]);
                Self::Bytes { at: range.start, bytes: part }
            }
            Self::Zeroes => Self::Zeroes,
        }
    }
}

/// What an answer taught.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    /// Units, from and to, and what they are now known to be.
    pub(super) states: Vec<(u64, u64, Rc<State>)>,
    pub(super) notes: Vec<Violation>,
}

/// One piece of the units of a run, and what a read may find there.
struct Row {
    piece: usize,
    from: u16,
    to: u16,
    allowed: Vec<OpId>,
    /// Nothing was under way.
    quiet: bool,
    /// What the unit before had there.
    matching: Vec<OpId>,
}

impl Row {
    fn is_whole(&self) -> bool {
        (self.from, self.to) == (0, super::unit::UNIT)
    }
}

impl Oracle {
    /// Judges what was found in `range` by a request sent at `start`. With `now` and the horizon, says what is learnt.
    pub(super) fn judge(
        &self,
        range: ByteRange,
        found: Found<'_>,
        start: Time,
        learn: Option<(Time, Time)>,
    ) -> Result<Learnt, Violation> {
        let mut learnt = Learnt::default();
        let mut verdict = Ok(());
        if let Found::Bytes { bytes, .. } = found {
            assert!(bytes.len() as u64 == range.len(), "{range} has {} bytes", bytes.len());
        }
        let (first, last) = if range.is_empty() { (0, 0) } else { units_of(range) };
        self.units.visit(first, last, |unit, len, state| {
            if verdict.is_ok() {
                verdict = self.judge_run(range, found, start, learn, (unit, unit + len), state, &mut learnt);
            }
        });
        verdict.map(|()| learnt)
    }

    #[allow(clippy::too_many_arguments, reason = "the loop's body")]
    fn judge_run(
        &self,
        range: ByteRange,
        found: Found<'_>,
        start: Time,
        learn: Option<(Time, Time)>,
        (mut unit, end): (u64, u64),
        state: Option<&Rc<State>>,
        learnt: &mut Learnt,
    ) -> Result<(), Violation> {
        let state = self.present(state);
        let mut rows = Vec::new();
        let mut part = (0, 0);
        while unit < end {
            let next = part_of_unit(range, unit);
            if next != part {
                part = next;
                rows = self.rows(&state, part, start);
            }
            let stride = match part == (0, super::unit::UNIT) {
                true => self.alike(range, found, unit, end, &rows),
                false => unit + 1,
            };
            let mut fresh = false;
            for row in &mut rows {
                let bytes =
                    ByteRange { start: unit * UNIT + u64::from(row.from), end: unit * UNIT + u64::from(row.to) };
                let here = found.part(bytes);
                if self.matches_only(&row.matching, bytes, here) {
                    continue;
                }
                fresh = true;
                row.matching = row.allowed.iter().copied().filter(|&op| self.matches(op, bytes, here)).collect();
                if row.matching.is_empty() {
                    return Err(self.violation(&state.pieces[row.piece], bytes, found, start, &row.allowed));
                }
            }
            if let Some((now, horizon)) = learn {
                if fresh {
                    let changed = self.learn(&state, &rows, part, now, horizon);
                    learnt.states.extend(changed.map(|changed| (unit, stride, Rc::new(changed))));
                    self.remark(&state, &rows, unit, start, &mut learnt.notes);
                } else if let Some((_, to, _)) = learnt.states.last_mut().filter(|(_, to, _)| *to == unit) {
                    // As the unit before, which was the first of its kind to teach something.
                    *to = stride;
                }
            }
            unit = stride;
        }
        Ok(())
    }

    /// The end of the units from `unit` on for which what holds for this one holds too: where nobody's bytes are to be
    /// compared, units of a run differ only by what the base shows.
    fn alike(&self, range: ByteRange, found: Found<'_>, unit: u64, end: u64, rows: &[Row]) -> u64 {
        let whole = (range.end / UNIT).min(end);
        match found {
            Found::Zeroes => {
                let until = if unit * UNIT < self.base { (self.base / UNIT).min(whole) } else { whole };
                until.max(unit + 1)
            }
            // A few bytes of a stamp may be zero, in one unit and not in the next; all 512 never are.
            Found::Bytes { at, bytes } if unit * UNIT >= self.base && matches!(rows, [row] if row.is_whole()) => {
                let from = (unit * UNIT).saturating_sub(at) as usize;
                let slices = bytes.get(from..).unwrap_or(&[]).chunks(SLICE).take((whole.saturating_sub(unit)) as usize);
                let zeroes = slices.take_while(|slice| stamp::is_zero(slice)).count();
                unit + (zeroes as u64).max(1)
            }
            Found::Bytes { .. } => unit + 1,
        }
    }

    /// What is known of a unit, in this life.
    fn present<'a>(&'a self, state: Option<&'a Rc<State>>) -> Cow<'a, State> {
        let state = state.unwrap_or(&self.untouched);
        match state.is_past(&self.ops) {
            true => Cow::Owned(state.after_cut(&self.ops)),
            false => Cow::Borrowed(state),
        }
    }

    fn rows(&self, state: &State, (first, last): (u16, u16), start: Time) -> Vec<Row> {
        let inside = state.pieces.iter().enumerate().filter(|(_, piece)| piece.from < last && first < piece.to);
        inside
            .map(|(index, piece)| Row {
                piece: index,
                from: piece.from.max(first),
                to: piece.to.min(last),
                allowed: piece.allowed(&self.ops, start).collect(),
                quiet: piece.is_quiet(&self.ops, start),
                matching: Vec::new(),
            })
            .collect()
    }

    /// The unit with what a read of its bytes in `part` made certain, if anything.
    fn learn(&self, state: &State, rows: &[Row], part: (u16, u16), now: Time, horizon: Time) -> Option<State> {
        let tells = |row: &&Row| row.matching.len() < row.allowed.len();
        rows.iter().find(tells)?;
        let mut changed = state.cut_at(part.0, part.1);
        for row in rows.iter().filter(tells) {
            for piece in changed.pieces.iter_mut().filter(|piece| row.from <= piece.from && piece.to <= row.to) {
                match row.matching[..] {
                    _ if row.quiet => piece.settle(row.matching.clone(), now, &self.ops, horizon),
                    [only] => piece.glimpse = Some((now, only)),
                    _ => {}
                }
            }
        }
        Some(changed)
    }

    /// Notes what is allowed but odd.
    fn remark(&self, state: &State, rows: &[Row], unit: u64, start: Time, notes: &mut Vec<Violation>) {
        for row in rows {
            let &[only] = &row.matching[..] else { continue };
            let bytes = ByteRange { start: unit * UNIT + u64::from(row.from), end: unit * UNIT + u64::from(row.to) };
            let before = |one: OpId, two: OpId| self.ops.ended(one) < self.ops.at(two).submit;
            let glimpse = state.pieces[row.piece].glimpse.filter(|(at, newer)| *at < start && before(only, *newer));
            if let Some((_, newer)) = glimpse {
                notes.push(self.note_inversion(bytes, only, newer, &row.allowed));
            }
            let dropped = self.ops.at(only).dropped;
            let over = |&&op: &&OpId| {
                dropped != NEVER
                    && dropped < self.ops.at(op).submit
                    && self.ops.excludes(op)
                    && self.ops.ended(op) < start
            };
            if let Some(&over) = row.allowed.iter().find(over) {
                notes.push(self.note_late(bytes, only, over, &row.allowed));
            }
        }
    }

    /// What the byte at `at` may hold, in order of submission.
    pub(super) fn candidates(&self, at: u64) -> Vec<OpId> {
        let mut candidates = Vec::new();
        self.units.visit(at / UNIT, at / UNIT + 1, |_, _, state| {
            let state = self.present(state);
            let (from, _) = part_of_unit(ByteRange::at(at, 1), at / UNIT);
            let piece = state.pieces.iter().find(|piece| piece.from <= from && from < piece.to);
            candidates.extend(
                piece.into_iter().flat_map(|piece: &Piece| piece.allowed(&self.ops, self.now + 1).collect::<Vec<_>>()),
            );
        });
        candidates
    }

    /// Whether `ops` is one request that wrote, whole, the unit that was found: no other could have.
    fn matches_only(&self, ops: &[OpId], bytes: ByteRange, found: Found<'_>) -> bool {
        match ops {
            [op] if bytes.len() == UNIT => {
                matches!(self.ops.at(*op).what, What::Write(_)) && self.matches(*op, bytes, found)
            }
            _ => false,
        }
    }

    /// Whether what was found in `bytes` is what `op` put there.
    pub(super) fn matches(&self, op: OpId, bytes: ByteRange, found: Found<'_>) -> bool {
        match (self.ops.at(op).what, found) {
            (What::Write(body), Found::Bytes { at, bytes: found }) => {
                let other = found.len() == SLICE && stamp::claimed_writer(found) != Some(op);
                !other && stamp::is_written(found, at, op, body)
            }
            (What::Write(_), Found::Zeroes) => false,
            (What::Discard, _) if self.promises.discard_undefined => true,
            (What::Zeroes | What::Discard | What::Resize { .. }, Found::Bytes { bytes, .. }) => stamp::is_zero(bytes),
            (What::Zeroes | What::Discard | What::Resize { .. }, Found::Zeroes) => true,
            (What::Initial, Found::Bytes { at, bytes }) => {
                let (base, zero) = bytes.split_at((self.base.saturating_sub(at) as usize).min(bytes.len()));
                stamp::is_base(base, at) && stamp::is_zero(zero)
            }
            (What::Initial, Found::Zeroes) => bytes.start >= self.base,
            (What::Nothing, _) => false,
        }
    }
}
