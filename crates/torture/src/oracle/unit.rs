//! What may be in a unit: now, and after a power cut.
//!
//! A unit is one piece, or several where requests began or ended inside it. A piece knows the requests that touched it,
//! as far as they matter: `live` are those a read may return, or may come to, and `older` are those no read returns any
//! more but which a power cut may bring back, because nothing durable has replaced them yet.

use std::rc::Rc;

use super::ops::{INITIAL, Ops, Time};
use crate::plan::OpId;
use crate::stamp::SLICE;

/// A request that a power cut may bring back, and those before it.
#[derive(Debug)]
pub(super) struct Older {
    op: OpId,
    /// A read found this one when both had ended, so of two durable ones this is the later. `INITIAL`: none did.
    passed: OpId,
    /// When the last of this and those below was settled.
    settled: Time,
    depth: u32,
    below: Option<Rc<Older>>,
}

impl Drop for Older {
    /// One by one, as a chain of a hundred thousand would not fit the stack.
    fn drop(&mut self) {
        let mut next = self.below.take();
        while let Some(Ok(mut older)) = next.map(Rc::try_unwrap) {
            next = older.below.take();
        }
    }
}

/// What a read made certain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Pin {
    /// The end of that read.
    pub(super) since: Time,
    /// What it may have found; more than one only where the bytes do not tell.
    pub(super) values: Vec<OpId>,
}

impl Pin {
    fn rules_out(&self, op: OpId, ops: &Ops) -> bool {
        ops.at(op).submit < self.since && !self.values.contains(&op)
    }

    /// What it found, if that is certain; else `INITIAL`.
    fn only(&self) -> OpId {
        match self.values[..] {
            [only] => only,
            _ => INITIAL,
        }
    }
}

/// Some bytes of a unit.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// Bytes of the unit, from and to.
    pub(super) from: u16,
    pub(super) to: u16,
    /// In order of submission.
    pub(super) live: Vec<OpId>,
    /// In order of time; those not yet turned into what `live` is, for the sake of a read in flight.
    pub(super) pins: Vec<Pin>,
    /// What the latest read to tell found while something was under way, and when it ended.
    pub(super) glimpse: Option<(Time, OpId)>,
    older: Option<Rc<Older>>,
}

/// A unit, or rather all that have been through the same.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// They tile the unit.
    pub(super) pieces: Vec<Piece>,
    life: u32,
}

/// Bytes of a unit.
#[allow(clippy::cast_possible_truncation, reason = "it is 512")]
pub(super) const UNIT: u16 = SLICE as u16;
/// Chains are looked through whenever they have grown by this.
const SWEEP: u32 = 32;

impl State {
    /// A unit that nothing has touched.
    pub(super) fn untouched(ops: &Ops) -> Self {
        let whole = Piece { from: 0, to: UNIT, live: vec![INITIAL], pins: Vec::new(), glimpse: None, older: None };
        Self { pieces: vec![whole], life: ops.life() }
    }

    /// Whether a power cut has come since the unit was last looked at.
    pub(super) fn is_past(&self, ops: &Ops) -> bool {
        self.life != ops.life()
    }

    /// The unit after the power cut that ended the life in which it was last touched.
    pub(super) fn after_cut(&self, ops: &Ops) -> Self {
        let after = |piece: &Piece| {
            let mut live = Vec::new();
            piece.survivors(ops, &mut live);
            Piece { live, pins: Vec::new(), glimpse: None, older: None, from: piece.from, to: piece.to }
        };
        Self { pieces: self.pieces.iter().map(after).collect(), life: ops.life() }
    }

    /// A request touches the bytes from `from` to before `to`.
    pub(super) fn touched(&self, from: u16, to: u16, op: OpId, ops: &Ops, horizon: Time) -> Self {
        if let ([whole], 0, UNIT) = (&self.pieces[..], from, to) {
            // By far the most frequent case; a plain copy would have no room for one more.
            let mut live = Vec::with_capacity(whole.live.len() + 1);
            live.extend_from_slice(&whole.live);
            let (pins, older) = (whole.pins.clone(), whole.older.clone());
            let mut piece = Piece { from, to, live, pins, older, glimpse: whole.glimpse };
            piece.push(op, ops, horizon);
            return Self { pieces: vec![piece], life: self.life };
        }
        let mut state = self.cut_at(from, to);
        let inside = state.pieces.iter_mut().filter(|piece| from <= piece.from && piece.to <= to);
        inside.for_each(|piece| piece.push(op, ops, horizon));
        state
    }

    /// The same, with pieces that end at these bytes.
    pub(super) fn cut_at(&self, from: u16, to: u16) -> Self {
        let mut state = self.clone();
        for cut in [from, to] {
            let inside = |piece: &Piece| piece.from < cut && cut < piece.to;
            if let Some(index) = state.pieces.iter().position(inside) {
                let tail = Piece { from: cut, ..state.pieces[index].clone() };
                state.pieces[index].to = cut;
                state.pieces.insert(index + 1, tail);
            }
        }
        state
    }
}

impl Piece {
    /// What a read may return that was sent at `start` and ends now, in order of submission (CM 4.2): what no success
    /// replaced before the read was sent, and no earlier read has ruled out. Nor has another read at the same time, if
    /// nothing was under way during either: nothing changed between what the two looked at.
    pub(super) fn allowed<'a>(&'a self, ops: &'a Ops, start: Time) -> impl DoubleEndedIterator<Item = OpId> + 'a {
        let floor = self.floor(ops, start);
        let quiet = !self.pins.is_empty() && self.is_quiet(ops, start);
        self.live.iter().copied().filter(move |&op| {
            let forgotten = self.pins.iter().any(|pin| (quiet || pin.since < start) && pin.rules_out(op, ops));
            ops.settled(op) >= floor && !forgotten
        })
    }

    /// When the latest request was sent that rules out what was settled before, for a read sent at `start`.
    fn floor(&self, ops: &Ops, start: Time) -> Time {
        let excluding = self.live.iter().filter(|&&op| ops.excludes(op) && ops.ended(op) < start);
        excluding.map(|&op| ops.at(op).submit).max().unwrap_or(0)
    }

    /// Whether nothing that counts was under way at any moment since `start`. What was dropped and may no longer land
    /// does not count.
    pub(super) fn is_quiet(&self, ops: &Ops, start: Time) -> bool {
        let floor = self.floor(ops, start);
        self.live.iter().filter(|&&op| ops.settled(op) >= floor).all(|&op| ops.ended(op) < start)
    }

    /// A read that ended at `now` found one of `values`, nothing being under way. No read in flight was sent before
    /// `horizon`.
    pub(super) fn settle(&mut self, values: Vec<OpId>, now: Time, ops: &Ops, horizon: Time) {
        self.glimpse = None;
        self.pins.push(Pin { since: now, values });
        self.absorb(ops, horizon);
    }

    /// Forgets what reads have ruled out, unless a read in flight may have seen what was there before.
    fn absorb(&mut self, ops: &Ops, horizon: Time) {
        while self.pins.first().is_some_and(|pin| pin.since < horizon) {
            let pin = self.pins.remove(0);
            let mut live = std::mem::take(&mut self.live);
            live.retain(|&op| {
                let gone = pin.rules_out(op, ops);
                if gone {
                    self.retire(op, pin.only(), ops);
                }
                !gone
            });
            self.live = live;
        }
    }

    fn push(&mut self, op: OpId, ops: &Ops, horizon: Time) {
        self.absorb(ops, horizon);
        let floor = self.floor(ops, horizon);
        if self.live.iter().any(|&op| ops.settled(op) < floor) {
            let mut live = std::mem::take(&mut self.live);
            live.retain(|&op| {
                let kept = ops.settled(op) >= floor;
                if !kept {
                    self.retire(op, INITIAL, ops);
                }
                kept
            });
            self.live = live;
        }
        let durable = self.live.iter().filter(|&&op| ops.durable(op)).map(|&op| ops.at(op).submit).max();
        self.older = self.older.take_if(|older| durable.is_none_or(|durable| older.settled >= durable));
        self.sweep(ops);
        self.live.push(op);
    }

    fn retire(&mut self, op: OpId, passed: OpId, ops: &Ops) {
        let below = self.older.take();
        let settled = ops.settled(op).max(below.as_ref().map_or(0, |below| below.settled));
        let depth = below.as_ref().map_or(0, |below| below.depth) + 1;
        self.older = Some(Rc::new(Older { op, passed, settled, depth, below }));
    }

    /// Forgets what something durable has replaced, now and then.
    fn sweep(&mut self, ops: &Ops) {
        if self.older.as_ref().is_none_or(|older| older.depth % SWEEP != 0) {
            return;
        }
        let floor = self.durable_floor(ops);
        let kept: Vec<_> =
            self.chain().filter(|older| ops.settled(older.op) >= floor).map(|older| (older.op, older.passed)).collect();
        self.older = None;
        for (op, passed) in kept.into_iter().rev() {
            self.retire(op, passed, ops);
        }
    }

    fn chain(&self) -> impl Iterator<Item = &Older> {
        std::iter::successors(self.older.as_deref(), |older| older.below.as_deref())
    }

    fn durable_floor(&self, ops: &Ops) -> Time {
        let all = self.chain().map(|older| older.op).chain(self.live.iter().copied());
        all.filter(|&op| ops.durable(op)).map(|op| ops.at(op).submit).max().unwrap_or(0)
    }

    /// What may be there after a power cut (CM 5.6), in order of submission: whatever was not settled when something
    /// durable was sent, nor was found by a read to be older than something durable.
    pub(super) fn survivors(&self, ops: &Ops, survivors: &mut Vec<OpId>) {
        let floor = self.durable_floor(ops);
        let overtaken = |older: &&Older| older.passed != INITIAL && ops.durable(older.op) && ops.durable(older.passed);
        let older = self.chain().filter(|older| !overtaken(older)).map(|older| older.op);
        let pinned = |op: &OpId| {
            let only = self.pins.iter().find(|pin| pin.rules_out(*op, ops)).map_or(INITIAL, Pin::only);
            only == INITIAL || !ops.durable(*op) || !ops.durable(only)
        };
        let live = self.live.iter().copied().filter(pinned);
        survivors.extend(older.chain(live).filter(|&op| ops.settled(op) >= floor && ops.sent(op)));
        survivors.sort_unstable_by_key(|&op| ops.at(op).submit);
    }
}
