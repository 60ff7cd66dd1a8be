//! What is wrong, in words.

use std::fmt;

use blkproof_block::{ByteOffset, ByteRange};

use super::judge::Found;
use super::ops::{Ending, INITIAL, NEVER, Time, What};
use super::unit::Piece;
use super::{Oracle, UNIT};
use crate::plan::OpId;
use crate::stamp::{self, SLICE, Stamp};

/// The rule that is broken (CM 5.7, codes of findings).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Code {
    /// CM 3.2: nobody wrote this here.
    Foreign,
    /// CM 4.2: replaced, or lost.
    Read,
    /// CM 4.2 (2): an earlier read had found something newer, or another of two.
    Inversion,
    /// CM 4.3: a failed write came, or went, after a later read or write.
    FailedWrite,
    /// CM 4.4: of several that overlap, none of the last is there.
    Overlap,
    /// CM 4.5: the same of a cancelled or dropped one.
    Cancel,
    /// CM 4.6, 4.7: a flush had promised it.
    Flush,
    /// CM 4.8: FUA had promised it.
    Fua,
    /// CM 4.10: a discard shows neither old nor zero, or not the same twice.
    Discard,
    /// CM 4.11: what was zeroed shows through.
    Zero,
    /// CM 4.12: what was cut off shows through, or the size is wrong.
    Resize,
    /// CM 4.13: said to be zero, and is not.
    Map,
    /// CM 4.14: it was there before the image was closed.
    Reopen,
}

impl Code {
    /// As it is written in reports and signatures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Read => "read",
            Self::Inversion => "inversion",
            Self::FailedWrite => "failed-write",
            Self::Overlap => "overlap",
            Self::Cancel => "cancel",
            Self::Flush => "flush",
            Self::Fua => "fua",
            Self::Discard => "discard",
            Self::Zero => "zero",
            Self::Resize => "resize",
            Self::Map => "map",
            Self::Reopen => "reopen",
        }
    }
}

/// Something a client must not see.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which rule.
    pub code: Code,
    /// The bytes that are wrong: the first piece of a unit; empty if it is the size that is.
    pub range: ByteRange,
    /// What they are.
    pub found: String,
    /// Requests known to have put that somewhere; 0 is the initial content.
    pub found_ops: Vec<OpId>,
    /// What they may be.
    pub allowed: Vec<String>,
    /// Whose content that is, in the order in which they were sent; 0 is the initial content.
    pub allowed_ops: Vec<OpId>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.range.is_empty() {
            write!(f, "bytes {}: ", self.range)?;
        }
        write!(f, "found {}, allowed: {}", self.found, self.allowed.join("; "))
    }
}

impl std::error::Error for Violation {}

impl Violation {
    pub(super) fn size(size: u64, allowed: &[u64]) -> Self {
        Self {
            code: Code::Resize,
            range: ByteRange { start: 0, end: 0 },
            found: format!("a device of {size} bytes"),
            found_ops: Vec::new(),
            allowed: allowed.iter().map(|size| format!("{size} bytes")).collect(),
            allowed_ops: Vec::new(),
        }
    }
}

impl Oracle {
    /// What is wrong with `bytes`, a part of one unit, of what was found by a request sent at `start`.
    #[cold]
    pub(super) fn violation(
        &self,
        piece: &Piece,
        bytes: ByteRange,
        found: Found<'_>,
        start: Time,
        allowed: &[OpId],
    ) -> Violation {
        let here = found.part(bytes);
        let touched = self.touched(bytes);
        let holders: Vec<_> = touched.iter().copied().filter(|&op| self.matches(op, bytes, here)).collect();
        let (text, found_ops, foreign) = match here {
            Found::Zeroes => ("a status that says zeroes".to_owned(), holders.clone(), false),
            Found::Bytes { .. } if !holders.is_empty() => {
                let names: Vec<_> = holders.iter().map(|&op| self.name(op)).collect();
                (format!("superseded content of {}", names.join(" or ")), holders.clone(), false)
            }
            Found::Bytes { at, bytes: part } => {
                let unit = ByteRange::at(at / UNIT * UNIT, UNIT);
                match found.part(unit) {
                    // More tells more: the whole unit, if it was read, names its writer.
                    Found::Bytes { bytes: whole, .. } if whole.len() == SLICE => {
                        self.describe(whole, unit.start, bytes)
                    }
                    _ => self.describe(part, at, bytes),
                }
            }
        };
        let code = match (found, foreign) {
            (Found::Zeroes, _) => Code::Map,
            (_, true) => Code::Foreign,
            _ => self.code(piece, &touched, holders.last().copied(), start, allowed),
        };
        self.report(code, bytes, text, found_ops, allowed)
    }

    pub(super) fn note_inversion(&self, bytes: ByteRange, older: OpId, newer: OpId, allowed: &[OpId]) -> Violation {
        let text = format!("{} after an earlier read found {}", self.name(older), self.name(newer));
        self.report(Code::Inversion, bytes, text, vec![older, newer], allowed)
    }

    pub(super) fn note_late(&self, bytes: ByteRange, late: OpId, over: OpId, allowed: &[OpId]) -> Violation {
        let text = format!("{}, which landed over {}", self.name(late), self.name(over));
        self.report(Code::Cancel, bytes, text, vec![late, over], allowed)
    }

    fn report(&self, code: Code, range: ByteRange, found: String, found_ops: Vec<OpId>, allowed: &[OpId]) -> Violation {
        let names = allowed.iter().map(|&op| self.name(op)).collect();
        Violation { code, range, found, found_ops, allowed: names, allowed_ops: allowed.to_vec() }
    }

    /// Requests whose content some of these bytes had or could have, and the initial content, in order of submission.
    fn touched(&self, bytes: ByteRange) -> Vec<OpId> {
        let touched = self.ops.all().filter(|(_, record)| record.range.overlaps(bytes));
        let mut touched: Vec<_> =
            touched.filter(|(_, record)| record.what != What::Nothing).map(|(op, _)| op).collect();
        touched.push(INITIAL);
        touched.sort_unstable_by_key(|&op| self.ops.at(op).submit);
        touched
    }

    /// Which rule was broken by `holder`'s content, or what nobody put there, where `allowed` were allowed.
    fn code(&self, piece: &Piece, touched: &[OpId], holder: Option<OpId>, start: Time, allowed: &[OpId]) -> Code {
        let ops = &self.ops;
        let excluders: Vec<_> =
            touched.iter().copied().filter(|&op| op != INITIAL && ops.excludes(op) && ops.ended(op) < start).collect();
        let before = |one: OpId, two: OpId| ops.settled(one) < ops.at(two).submit;
        let winner = excluders.iter().copied().filter(|&op| holder.is_none_or(|holder| before(holder, op))).last();
        // Nothing of this life replaced it: what a power cut had to leave is gone.
        if let Some(winner) = winner.filter(|&op| ops.at(op).life < ops.life()) {
            let flushed = excluders.iter().any(|&op| ops.flushed(op) && holder.is_none_or(|holder| before(holder, op)));
            return if flushed || !ops.at(winner).fua { Code::Flush } else { Code::Fua };
        }
        let last = touched.iter().map(|&op| ops.ended(op)).max().unwrap_or(0);
        if self.reopened != 0 && last < self.reopened {
            return Code::Reopen;
        }
        let involved = || holder.into_iter().chain(allowed.iter().copied());
        let any = |test: &dyn Fn(OpId) -> bool| involved().any(test);
        let Some(winner) = winner else {
            // A read ruled it out.
            return match piece.live.len() {
                _ if any(&|op| ops.at(op).ending == Some(Ending::Failed)) => Code::FailedWrite,
                _ if any(&|op| ops.at(op).ending != Some(Ending::Done)) => Code::Cancel,
                _ if any(&|op| ops.at(op).what == What::Discard) => Code::Discard,
                _ if holder.is_some() => Code::Inversion,
                _ => Code::Read,
            };
        };
        let concurrent = |op: OpId| op != winner && !before(op, winner) && !before(winner, op);
        match (holder.map(|op| ops.at(op).ending), ops.at(winner).what) {
            (Some(Some(Ending::Failed)), _) => Code::FailedWrite,
            (Some(None | Some(Ending::Cancelled)), _) => Code::Cancel,
            _ if allowed.iter().any(|&op| ops.at(op).what == What::Discard) => Code::Discard,
            (_, What::Zeroes) => Code::Zero,
            (_, What::Resize { .. }) => Code::Resize,
            _ if touched.iter().any(|&op| concurrent(op)) => Code::Overlap,
            _ => Code::Read,
        }
    }

    /// What these bytes of the unit at `unit`, or the unit itself, are, if nobody put them there; and whether they are
    /// foreign (CM 3.2).
    fn describe(&self, found: &[u8], at: u64, bytes: ByteRange) -> (String, Vec<OpId>, bool) {
        let part = Found::Bytes { at, bytes: found }.part(bytes);
        if matches!(part, Found::Bytes { bytes, .. } if stamp::is_zero(bytes)) {
            return ("zeroes".to_owned(), Vec::new(), false);
        }
        match stamp::decode(found, at) {
            Stamp::Written { op, .. } => (format!("what op {op} never wrote here"), vec![op], true),
            Stamp::Misplaced { op, from } => (format!("what op {op} wrote at {}", ByteOffset(from)), vec![op], true),
            Stamp::Base => ("what the base image holds here, where it does not show".to_owned(), vec![INITIAL], true),
            Stamp::MisplacedBase { from } => {
                (format!("what the base image holds at {}", ByteOffset(from)), vec![INITIAL], true)
            }
            Stamp::Torn { op, from, until } => {
                let rest = Found::Bytes { at: at + until as u64, bytes: found.get(until..).unwrap_or(&[]) };
                let range = ByteRange { start: at + until as u64, end: at + found.len() as u64 };
                let other = self.touched(range).into_iter().find(|&op| self.matches(op, range, rest));
                let then = other.map_or_else(|| "something else".to_owned(), |op| format!("that of {}", self.name(op)));
                let first = match (op, from == at) {
                    (INITIAL, _) => format!("the base image at {}", ByteOffset(from)),
                    (op, true) => format!("what op {op} wrote"),
                    (op, false) => format!("what op {op} wrote at {}", ByteOffset(from)),
                };
                (format!("a torn unit: {until} bytes of {first}, then {then}"), vec![op], true)
            }
            Stamp::Zero => ("zeroes".to_owned(), Vec::new(), false),
            Stamp::Garbage => (format!("garbage {:02x?}", found.get(..16).unwrap_or(found)), Vec::new(), true),
        }
    }

    fn name(&self, op: OpId) -> String {
        let record = self.ops.at(op);
        let kind = match record.what {
            What::Initial => return "the initial content".to_owned(),
            What::Nothing => "request",
            What::Write(_) => "write",
            What::Zeroes => "write zeroes",
            What::Discard => "discard",
            What::Resize { .. } => "resize",
        };
        let end = match (record.ending, record.dropped, self.ops.ended(op)) {
            (Some(Ending::Done), ..) => "completed",
            (Some(Ending::Failed), ..) => "failed",
            (Some(Ending::Cancelled), ..) => "cancelled",
            (None, NEVER, NEVER) => "in flight",
            (None, _, NEVER) => "dropped",
            (None, NEVER, _) => "in flight when the power went",
            (None, ..) => "dropped, settled since",
        };
        format!("op {op} ({kind} {}, {end})", record.range)
    }
}
