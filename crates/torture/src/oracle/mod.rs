//! What a client may see (CM 4), and after a power cut (CM 5.6).
//!
//! The oracle hears of every request a client sends and of its end, in order; it never looks at the driver or its disk.
//! Content is judged in units of 512 bytes, split where a request begins or ends inside one: each piece must be, whole,
//! what one of its candidates holds.
//!
//! ```text
//! submit(W1) end(W1) submit(W2) submit(R) .. read_end(R)   candidates of a unit that all three touch: W1, W2
//!                                  end(W2) failed          still: it was done or not
//! read_end(R')  finds W2, nothing under way                pinned: W2, until something else is sent
//! ```
//!
//! A candidate is any write-class request sent before the read ended, and the initial content, unless a *success* came
//! in between: sent after the candidate had ended, completed before the read was sent. Failed requests remain
//! candidates, dropped ones have not ended before a drain. A discard is its range's old content or zeroes, so it
//! excludes nothing. A resize zeroes what it adds or cuts off. A read pins only if nothing was under way during it.
//!
//! After a power cut the same holds with *durable* in place of *success*: completed with FUA, or seen to complete
//! before a flush was sent that succeeded. What was pinned is forgotten; the first read pins anew.
//!
//! # Cost
//! A unit takes the eight bytes of one pointer, to what is known of all units that have been through the same; long
//! runs of those take less. A request costs time linear in the units it touches, its end none. A copy costs nothing to
//! speak of, so that each of many states after a power cut may have a life of its own.

mod crash;
mod history;
mod judge;
mod ops;
mod size;
#[cfg(test)]
mod tests;
mod tree;
mod unit;
mod violation;

use std::rc::Rc;

use blkproof_block::ByteRange;

pub use self::crash::AfterCrash;
pub use self::history::Event;
pub use self::ops::Ending;
pub use self::violation::{Code, Violation};

use self::judge::Found;
use self::ops::{NEVER, Ops, Record, Time, What};
use self::size::Sizes;
use self::tree::Tree;
use self::unit::State;
use crate::plan::{Act, OpId};
use crate::stamp::{Body, SLICE};

const UNIT: u64 = SLICE as u64;
/// Notes kept; more of them tell no more.
const NOTES_MAX: usize = 16;

/// What a target promises beyond, or short of, the default.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Promises {
    /// A flush that succeeds settles what was dropped before it was sent, as a drain does (CM 2).
    pub flush_is_drain: bool,
    /// What was dropped never lands over what was sent later and completed (CM 4.5 (4)).
    pub strict_late_landing: bool,
    /// Every completed request is durable (CM 4.8 (4)).
    pub write_through: bool,
    /// After a flush that failed, what had completed before may stay lost though later flushes succeed (CM 4.7 (3)).
    pub failed_flush_forgets: bool,
    /// What was discarded is undefined until it is overwritten (CM 4.10 (1)), instead of old or zero.
    pub discard_undefined: bool,
}

/// The judge of what a client sees.
///
/// ```
/// use blkproof_block::ByteRange;
/// use blkproof_torture::oracle::{Ending, Oracle};
/// use blkproof_torture::{plan::Act, stamp};
///
/// let range = ByteRange::at(0, 512);
/// let write = Act::Write { range, fua: false, compressed: false };
/// let read = Act::Read { range, vector: vec![] };
/// let mut oracle = Oracle::new(4096, None);
/// oracle.submit(1, &write);
/// oracle.end(1, Ending::Done);
/// oracle.submit(2, &write);
/// oracle.end(2, Ending::Failed);
/// // Either may be there, but once seen, it stays.
/// let mut found = vec![0; 512];
/// stamp::fill(&mut found, 0, 2);
/// oracle.submit(3, &read);
/// oracle.read_end(3, range, &found).unwrap();
/// oracle.end(3, Ending::Done);
/// stamp::fill(&mut found, 0, 1);
/// oracle.submit(4, &read);
/// assert_eq!(oracle.read_end(4, range, &found).unwrap_err().code.name(), "failed-write");
/// ```
#[derive(Clone, Debug)]
pub struct Oracle {
    promises: Promises,
    now: Time,
    ops: Ops,
    units: Tree<State>,
    /// What units without an entry are.
    untouched: Rc<State>,
    /// Bytes that show the base image at first.
    base: u64,
    sizes: Sizes,
    /// Reads in flight.
    reading: Vec<OpId>,
    /// Write-class requests and resizes in flight or dropped, none of them drained.
    open: Vec<OpId>,
    /// When the image was last opened again.
    reopened: Time,
    /// When a flush last failed that forgot what it had to write.
    forgotten: Time,
    /// Such a flush was in this life: what had completed may be gone, for readers too, and come back older.
    lost: bool,
    notes: Vec<Violation>,
}

impl Oracle {
    /// A disk of `size` bytes that reads as a stamped base image of `base` bytes, cut off at `size`, and as zeroes
    /// behind it. All of that is durable.
    pub fn new(size: u64, base: Option<u64>) -> Self {
        Self::with_promises(size, base, Promises::default())
    }

    /// The same, of a target with other promises.
    pub fn with_promises(size: u64, base: Option<u64>, promises: Promises) -> Self {
        let mut ops = Ops::new(size);
        ops.strict = promises.strict_late_landing;
        ops.write_through = promises.write_through;
        let untouched = Rc::new(State::untouched(&ops));
        Self {
            promises,
            now: 0,
            ops,
            units: Tree::new(),
            untouched,
            base: base.unwrap_or(0).min(size),
            sizes: Sizes::new(size),
            reading: Vec::new(),
            open: Vec::new(),
            reopened: 0,
            forgotten: 0,
            lost: false,
            notes: Vec::new(),
        }
    }

    fn tick(&mut self) -> Time {
        self.now += 1;
        self.now
    }

    // Requests.

    /// A request is about to be sent. Each number is given once.
    pub fn submit(&mut self, op: OpId, act: &Act) {
        let now = self.tick();
        let nothing = ByteRange { start: 0, end: 0 };
        let (what, range, fua) = match *act {
            Act::Write { range, fua, compressed: false } => (What::Write(Body::Plain), range, fua),
            Act::Write { range, fua, compressed: true } => (What::Write(Body::Compressible), range, fua),
            Act::Zeroes { range, fua, .. } => (What::Zeroes, range, fua),
            Act::Discard { range } => (What::Discard, range, false),
            Act::Resize { size } => {
                let (range, certain) = self.sizes.changed_by(&self.ops, now, size);
                (What::Resize { to: size, certain }, range, false)
            }
            Act::Read { range, .. } | Act::Status { range } => (What::Nothing, range, false),
            Act::Flush | Act::Drain | Act::Reopen | Act::Cut { .. } => (What::Nothing, nothing, false),
        };
        let life = self.ops.life();
        let record = self.ops.at_mut(op);
        assert!(record.act.is_none() && op != 0, "op {op} is sent once");
        *record = Record { act: Some(act.clone()), what, range, fua, life, submit: now, ..Record::EMPTY };
        match act {
            Act::Read { .. } | Act::Status { .. } => self.reading.push(op),
            Act::Write { .. } | Act::Zeroes { .. } | Act::Discard { .. } => {
                self.open.push(op);
                self.touch(range, op);
            }
            Act::Resize { .. } => {
                self.open.push(op);
                self.sizes.resizes.push(op);
                self.touch(range, op);
            }
            Act::Flush | Act::Drain | Act::Reopen | Act::Cut { .. } => {}
        }
    }

    fn touch(&mut self, range: ByteRange, op: OpId) {
        let horizon = self.horizon(op);
        let mut changed: Vec<(u64, u64, Rc<State>)> = Vec::new();
        for (from, to, whole) in whole_and_edges(range) {
            let (ops, untouched) = (&self.ops, &self.untouched);
            self.units.visit(from, to, |start, len, state| {
                let state = state.unwrap_or(untouched);
                let (first, last) = match whole {
                    true => (0, unit::UNIT),
                    false => part_of_unit(range, start),
                };
                let touched = match state.is_past(ops) {
                    true => state.after_cut(ops).touched(first, last, op, ops, horizon),
                    false => state.touched(first, last, op, ops, horizon),
                };
                changed.push((start, start + len, Rc::new(touched)));
            });
        }
        for (from, to, state) in changed {
            self.units.set(from, to, &state);
        }
    }

    /// No read in flight besides `op` was sent before.
    fn horizon(&self, op: OpId) -> Time {
        let others = self.reading.iter().filter(|&&other| other != op);
        others.map(|&other| self.ops.at(other).submit).min().unwrap_or(NEVER)
    }

    /// The request was answered. What a read brought is told before, by [`read_end`](Self::read_end).
    pub fn end(&mut self, op: OpId, ending: Ending) {
        let now = self.tick();
        let record = self.ops.at(op);
        let (submit, flush) = (record.submit, matches!(record.act, Some(Act::Flush)));
        let drain = matches!(record.act, Some(Act::Drain)) || flush && self.promises.flush_is_drain;
        assert!(record.act.is_some() && self.ops.ended(op) == NEVER, "op {op} was sent and ends once");
        self.ops.end(op, now, Some(ending));
        self.reading.retain(|&other| other != op);
        self.open.retain(|&other| other != op);
        match ending {
            Ending::Done => {
                if flush {
                    self.cover(submit);
                }
                if drain {
                    self.drain(submit, now);
                }
            }
            Ending::Failed | Ending::Cancelled => {
                if flush && self.promises.failed_flush_forgets {
                    self.forgotten = now;
                    self.lost = true;
                }
            }
        }
    }

    /// What was seen to complete before `submit` is durable.
    fn cover(&mut self, submit: Time) {
        let from = self.forgotten;
        let covered = &mut self.ops.this_life().covered;
        match covered.last_mut() {
            Some((last, to)) if *last == from => *to = submit.max(*to),
            _ => covered.push((from, submit)),
        }
    }

    /// What was dropped before `submit` is settled.
    fn drain(&mut self, submit: Time, now: Time) {
        let ops = &mut self.ops;
        self.open.retain(|&op| {
            let open = ops.at(op).dropped >= submit;
            if !open {
                ops.end(op, now, None);
            }
            open
        });
    }

    /// The request's future was dropped: it may take effect at any time until a drain (CM 4.5 (2)).
    pub fn dropped(&mut self, op: OpId) {
        let now = self.tick();
        if self.ops.ended(op) == NEVER {
            self.ops.at_mut(op).dropped = now;
            self.reading.retain(|&other| other != op);
        }
    }

    /// The client's image was closed, when nothing was in flight, and opened again. Closing drains. If it failed, only
    /// what was durable is promised (CM 4.14).
    pub fn reopened(&mut self, clean: bool) {
        let now = self.tick();
        self.drain(NEVER, now);
        if clean {
            self.reopened = now;
        } else {
            self.cut();
        }
    }

    /// The power went, and the image was opened again.
    pub(crate) fn cut(&mut self) {
        let now = self.tick();
        self.sizes.cut(&self.ops);
        self.ops.cut(now);
        self.untouched = Rc::new(State::untouched(&self.ops));
        self.reading.clear();
        self.open.clear();
        self.notes.clear();
        self.forgotten = now;
        self.lost = false;
    }

    /// The driver sent its disk something, or is about to send its first. Once this was called, requests that were sent
    /// after its last call have not reached the disk: their zeroes excuse nobody else's after a power cut.
    pub fn disk_reached(&mut self) {
        let now = self.tick();
        self.ops.this_life().reached = Some(now);
    }

    // Answers.

    /// Judges what a read brought for a part of its range, or all of it, just when it comes.
    ///
    /// # Errors
    /// The first violation.
    pub fn read_end(&mut self, op: OpId, range: ByteRange, buf: &[u8]) -> Result<(), Violation> {
        self.answer(op, range, Found::Bytes { at: range.start, bytes: buf })
    }

    /// Judges what a status answer said of a part of its range: that it reads as zeroes, or nothing (CM 4.13).
    ///
    /// # Errors
    /// The first violation.
    pub fn status_end(&mut self, op: OpId, range: ByteRange, zero: bool) -> Result<(), Violation> {
        match zero {
            true => self.answer(op, range, Found::Zeroes),
            false => Ok(()),
        }
    }

    fn answer(&mut self, op: OpId, range: ByteRange, found: Found<'_>) -> Result<(), Violation> {
        let now = self.tick();
        let start = self.ops.at(op).submit;
        let horizon = self.horizon(op);
        let learnt = match self.judge(range, found, start, Some((now, horizon))) {
            // Of a disk that forgot, only what is durable is promised, as after a power cut (CM 4.7 (3)).
            Err(_) if self.lost => {
                let mut after = self.clone();
                after.cut();
                return after.judge(range, found, after.now + 1, None).map(drop);
            }
            judged => judged?,
        };
        for (from, to, state) in learnt.states {
            self.units.set(from, to, &state);
        }
        let room = NOTES_MAX.saturating_sub(self.notes.len());
        self.notes.extend(learnt.notes.into_iter().take(room));
        Ok(())
    }

    /// Judges the size that the device says it has; to be told after every resize that did not succeed, and after every
    /// opening.
    ///
    /// # Errors
    /// If it may not be.
    pub fn sized(&mut self, size: u64) -> Result<(), Violation> {
        let now = self.tick();
        let allowed = self.sizes.allowed(&self.ops, now);
        if !allowed.contains(&size) {
            return Err(Violation::size(size, &allowed));
        }
        self.sizes.pin(&self.ops, now, size);
        Ok(())
    }

    /// Sizes that the device may have now, in order; one, unless a resize is open, or failed and [`sized`](Self::sized)
    /// was not called since.
    pub fn sizes(&self) -> Vec<u64> {
        self.sizes.allowed(&self.ops, self.now + 1)
    }

    /// Things worth a remark that are no violation, since the last call: reads that went back in time while something
    /// was open (CM 4.2 (2)), and late landings (CM 4.5 (4)).
    pub fn take_notes(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.notes)
    }

    // The power.

    /// What a client may see if the power goes now.
    pub fn after_crash(&self) -> AfterCrash {
        AfterCrash::new(self.clone())
    }

    /// Whether a power cut just before this is sent is worth looking at: its content is not unique, so it could excuse
    /// what is not its doing (CM 5.3 (4)).
    pub const fn cut_before(act: &Act) -> bool {
        matches!(act, Act::Zeroes { .. } | Act::Discard { .. } | Act::Resize { .. })
    }

    /// Whether a power cut just after the end of this op is worth looking at: it promised that something is durable
    /// (CM 5.3 (2)).
    pub fn cut_after(&self, op: OpId) -> bool {
        let record = self.ops.at(op);
        let flush = record.succeeded() && matches!(record.act, Some(Act::Flush));
        flush || self.ops.durable(op) && (record.fua || self.promises.write_through)
    }
}

/// The unit that `range` begins in the middle of, those inside it, and the unit it ends in the middle of.
fn whole_and_edges(range: ByteRange) -> impl Iterator<Item = (u64, u64, bool)> {
    let (first, last) = units_of(range);
    let (head, tail) = (range.start.div_ceil(UNIT), range.end / UNIT);
    let parts = match head <= tail {
        true => [(first, head, false), (head, tail, true), (tail, last, false)],
        false => [(first, last, false), (last, last, true), (last, last, false)],
    };
    parts.into_iter().filter(move |(from, to, _)| !range.is_empty() && from < to)
}

/// The first unit that has bytes of `range`, and the one behind the last.
fn units_of(range: ByteRange) -> (u64, u64) {
    (range.start / UNIT, range.end.div_ceil(UNIT))
}

/// The bytes of unit `unit` that lie in `range`, from and to.
#[allow(clippy::cast_possible_truncation, reason = "both are at most 512")]
fn part_of_unit(range: ByteRange, unit: u64) -> (u16, u16) {
    let start = unit * UNIT;
    ((range.start.max(start) - start) as u16, (range.end.min(start + UNIT).max(start) - start) as u16)
}
