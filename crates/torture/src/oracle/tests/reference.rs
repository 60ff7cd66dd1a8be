//! The definitions of CM 4 and 5.6, word by word over the whole history, byte by byte, and the oracle beside them.

use std::collections::BTreeSet;

use blkproof_block::choice::Choices;
use blkproof_block::{ByteRange, choice};

use super::super::{Ending, Oracle, Promises};
use super::{bytes, discard, read, write, zeroes};
use crate::plan::{Act, OpId};

const NEVER: u64 = u64::MAX;
const GRAIN: u64 = 128;
const UNITS: u64 = 3;

#[derive(Clone, Debug)]
struct Op {
    id: OpId,
    act: Act,
    submit: u64,
    ended: u64,
    ending: Option<Ending>,
    dropped: u64,
    life: u32,
}

#[derive(Clone, Debug)]
struct Pin {
    grain: u64,
    ended: u64,
    life: u32,
    values: BTreeSet<OpId>,
}

#[derive(Clone, Debug)]
struct Flush {
    submit: u64,
    ended: u64,
    life: u32,
    failed: bool,
}

/// Everything that happened.
#[derive(Clone, Debug)]
struct Reference {
    now: u64,
    life: u32,
    promises: Promises,
    ops: Vec<Op>,
    flushes: Vec<Flush>,
    pins: Vec<Pin>,
}

impl Reference {
    fn new(promises: Promises) -> Self {
        let initial = Op {
            id: 0,
            act: write(0, UNITS * 512, true),
            submit: 0,
            ended: 0,
            ending: Some(Ending::Done),
            dropped: NEVER,
            life: 0,
        };
        Self { now: 0, life: 0, promises, ops: vec![initial], flushes: Vec::new(), pins: Vec::new() }
    }

    fn range(op: &Op) -> ByteRange {
        match op.act {
            Act::Write { range, .. } | Act::Zeroes { range, .. } | Act::Discard { range } => range,
            _ => ByteRange { start: 0, end: 0 },
        }
    }

    fn zero(op: &Op) -> bool {
        matches!(op.act, Act::Zeroes { .. } | Act::Discard { .. })
    }

    fn touching(&self, grain: u64) -> impl Iterator<Item = &Op> {
        self.ops.iter().filter(move |op| Self::range(op).contains(grain * GRAIN))
    }

    fn settled(&self, op: &Op) -> u64 {
        if self.promises.strict_late_landing { op.ended.min(op.dropped) } else { op.ended }
    }

    fn covered(&self, op: &Op) -> bool {
        self.flushes.iter().any(|flush| {
            let lost = |failed: &Flush| failed.failed && op.ended < failed.ended && failed.ended < flush.ended;
            let exempt = self.promises.failed_flush_forgets && self.flushes.iter().any(lost);
            !flush.failed && flush.life == op.life && op.ended < flush.submit && flush.ended != NEVER && !exempt
        })
    }

    fn durable(&self, op: &Op) -> bool {
        let fua = matches!(op.act, Act::Write { fua: true, .. } | Act::Zeroes { fua: true, .. });
        op.ending == Some(Ending::Done)
            && !matches!(op.act, Act::Discard { .. })
            && (fua || self.promises.write_through || self.covered(op))
    }

    fn excludes(&self, op: &Op) -> bool {
        op.ending == Some(Ending::Done)
            && !matches!(op.act, Act::Discard { .. })
            && (op.life == self.life || self.durable(op))
    }

    /// CM 4.2 (1).
    fn unreplaced(&self, grain: u64, start: u64) -> impl Iterator<Item = &Op> {
        self.touching(grain).filter(move |op| {
            let replaces = |other: &Op| self.excludes(other) && self.settled(op) < other.submit && other.ended < start;
            !self.touching(grain).any(replaces)
        })
    }

    fn quiet(&self, grain: u64, start: u64) -> bool {
        self.unreplaced(grain, start).all(|op| op.ended < start)
    }

    /// CM 4.2, 4.3 (2).
    fn allowed(&self, grain: u64, start: u64) -> BTreeSet<OpId> {
        let quiet = self.quiet(grain, start);
        let agrees = |op: &&Op| {
            let binds = |pin: &&Pin| {
                let ordered = quiet || pin.ended < start;
                pin.grain == grain && pin.life == self.life && ordered && op.submit < pin.ended
            };
            self.pins.iter().filter(binds).all(|pin| pin.values.contains(&op.id))
        };
        let lost = |op: &&Op| op.life < self.life && self.overtaken(grain, op);
        self.unreplaced(grain, start).filter(agrees).filter(|op| !lost(op)).map(|op| op.id).collect()
    }

    /// A read without open writes found something durable later than this.
    fn overtaken(&self, grain: u64, op: &Op) -> bool {
        let durable = |id: &OpId| self.ops.iter().any(|other| other.id == *id && other.id != 0 && self.durable(other));
        let rules_out = |pin: &&Pin| {
            let past = pin.grain == grain && pin.life < self.life && op.submit < pin.ended;
            past && pin.values.len() == 1 && !pin.values.contains(&op.id) && pin.values.iter().all(durable)
        };
        self.durable(op) && self.pins.iter().any(|pin| rules_out(&pin))
    }

    /// CM 5.6, without regard to reads.
    fn survivors(&self, grain: u64) -> BTreeSet<OpId> {
        let kept = |op: &&Op| !self.touching(grain).any(|other| self.durable(other) && self.settled(op) < other.submit);
        self.touching(grain).filter(kept).map(|op| op.id).collect()
    }

    fn cut(&mut self) {
        self.now += 1;
        for op in self.ops.iter_mut().filter(|op| op.ended == NEVER) {
            op.ended = self.now;
        }
        self.life += 1;
    }
}

/// Both, told the same.
struct Pair {
    reference: Reference,
    oracle: Oracle,
    reads: Vec<(OpId, ByteRange, u64)>,
    flushes: Vec<(OpId, u64)>,
    drains: Vec<(OpId, u64)>,
    next: OpId,
}

impl Pair {
    fn new(promises: Promises) -> Self {
        let oracle = Oracle::with_promises(UNITS * 512, None, promises);
        let reference = Reference::new(promises);
        Self { reference, oracle, reads: Vec::new(), flushes: Vec::new(), drains: Vec::new(), next: 1 }
    }

    fn submit(&mut self, act: &Act) -> OpId {
        let id = self.next;
        self.next += 1;
        self.oracle.submit(id, act);
        self.reference.now += 1;
        let (submit, life) = (self.reference.now, self.reference.life);
        match act {
            Act::Read { range, .. } => self.reads.push((id, *range, submit)),
            Act::Flush => self.flushes.push((id, submit)),
            Act::Drain => self.drains.push((id, submit)),
            _ => self.reference.ops.push(Op {
                id,
                act: act.clone(),
                submit,
                ended: NEVER,
                ending: None,
                dropped: NEVER,
                life,
            }),
        }
        id
    }

    fn end(&mut self, id: OpId, ending: Ending) {
        self.oracle.end(id, ending);
        self.reference.now += 1;
        let now = self.reference.now;
        if let Some(op) = self.reference.ops.iter_mut().find(|op| op.id == id) {
            (op.ended, op.ending) = (now, Some(ending));
        }
        if let Some(index) = self.flushes.iter().position(|flush| flush.0 == id) {
            let (_, submit) = self.flushes.remove(index);
            let failed = ending != Ending::Done;
            self.reference.flushes.push(Flush { submit, ended: now, life: self.reference.life, failed });
            if self.reference.promises.flush_is_drain && !failed {
                self.settle(submit, now);
            }
        }
        if let Some(index) = self.drains.iter().position(|drain| drain.0 == id) {
            let (_, submit) = self.drains.remove(index);
            if ending == Ending::Done {
                self.settle(submit, now);
            }
        }
    }

    fn settle(&mut self, submit: u64, now: u64) {
        for op in self.reference.ops.iter_mut().filter(|op| op.ended == NEVER && op.dropped < submit) {
            op.ended = now;
        }
    }

    fn dropped(&mut self, id: OpId) {
        self.oracle.dropped(id);
        self.reference.now += 1;
        let now = self.reference.now;
        if let Some(op) = self.reference.ops.iter_mut().find(|op| op.id == id) {
            op.dropped = now;
        }
        self.reads.retain(|read| read.0 != id);
        self.flushes.retain(|flush| flush.0 != id);
    }

    /// A read comes back with what `pick` says each piece holds. Judged by both.
    fn read_end(&mut self, id: OpId, mut pick: impl FnMut(&[OpId]) -> OpId) {
        let index = self.reads.iter().position(|read| read.0 == id).unwrap();
        let (_, range, start) = self.reads.remove(index);
        self.reference.now += 1;
        let now = self.reference.now;
        let mut found = vec![0; range.len() as usize];
        let mut cuts: BTreeSet<_> = (0..=UNITS).map(|unit| unit * 512).collect();
        cuts.extend(self.reference.ops.iter().flat_map(|op| [Reference::range(op).start, Reference::range(op).end]));
        cuts.extend([range.start, range.end]);
        let cuts: Vec<_> = cuts.into_iter().filter(|cut| range.start <= *cut && *cut <= range.end).collect();
        let mut right = true;
        let mut pins = Vec::new();
        for piece in cuts.windows(2) {
            let touching: Vec<_> = self.reference.touching(piece[0] / GRAIN).map(|op| op.id).collect();
            let value = pick(&touching);
            let writer = self.reference.ops.iter().find(|op| op.id == value).unwrap();
            let zero = value == 0 || Reference::zero(writer);
            if !zero {
                let part = &mut found[(piece[0] - range.start) as usize..(piece[1] - range.start) as usize];
                part.copy_from_slice(&bytes(piece[0], piece[1] - piece[0], value));
            }
            for grain in piece[0] / GRAIN..piece[1] / GRAIN {
                let same = |id: &OpId| {
                    let op = self.reference.ops.iter().find(|op| op.id == *id).unwrap();
                    if zero { *id == 0 || Reference::zero(op) } else { *id == value }
                };
                let values: BTreeSet<_> = self.reference.allowed(grain, start).into_iter().filter(same).collect();
                right &= !values.is_empty();
                if self.reference.quiet(grain, start) {
                    pins.push(Pin { grain, ended: now, life: self.reference.life, values });
                }
            }
        }
        let verdict = self.oracle.read_end(id, range, &found);
        assert_eq!(verdict.is_ok(), right, "op {id} {range}: {verdict:?}\n{:#?}", self.reference);
        if right {
            self.reference.pins.extend(pins);
        }
        self.end(id, Ending::Done);
    }

    fn compare(&self) {
        for grain in 0..UNITS * 512 / GRAIN {
            let at = grain * GRAIN;
            let got: BTreeSet<_> = self.oracle.candidates(at).into_iter().collect();
            let want = self.reference.allowed(grain, self.reference.now + 1);
            assert_eq!(got, want, "candidates at {at}\n{:#?}", self.reference);
            let mut cut = self.reference.clone();
            cut.cut();
            let got: BTreeSet<_> = self.oracle.after_crash().candidates(at).into_iter().collect();
            let (least, most) = (cut.allowed(grain, cut.now + 1), self.reference.survivors(grain));
            assert!(
                got.is_superset(&least) && got.is_subset(&most),
                "{got:?} at {at} after a cut\n{:#?}",
                self.reference
            );
            assert!(!got.is_empty() || most.is_empty());
            // Reads apart, what remains is exact.
            if self.reference.pins.iter().all(|pin| pin.grain != grain) {
                assert_eq!(got, most, "after a cut, at {at}\n{:#?}", self.reference);
            }
        }
    }
}

fn run(seed: u64, steps: u64) {
    let mut draw = Choices::new(seed);
    let promises = Promises {
        flush_is_drain: draw.chance(300),
        strict_late_landing: draw.chance(200),
        write_through: draw.chance(50),
        failed_flush_forgets: draw.chance(200),
        discard_undefined: false,
    };
    let mut pair = Pair::new(promises);
    let mut open: Vec<OpId> = Vec::new();
    let honest = draw.chance(600);
    for _ in 0..steps {
        let grains = UNITS * 512 / GRAIN;
        let (from, to) = match draw.chance(600) {
            true => {
                let first = draw.below(UNITS);
                (first * 512, (first + 1 + draw.below(UNITS - first)) * 512)
            }
            false => {
                let first = draw.below(grains);
                (first * GRAIN, (first + 1 + draw.below(grains - first)) * GRAIN)
            }
        };
        match draw.below(16) {
            0..=2 => open.push(pair.submit(&write(from, to, draw.chance(200)))),
            3 => open.push(pair.submit(&zeroes(from, to))),
            4 => open.push(pair.submit(&discard(from, to))),
            5 => open.push(pair.submit(&Act::Flush)),
            6 => open.push(pair.submit(&Act::Drain)),
            7 | 8 => open.push(pair.submit(&read(from, to))),
            15 if draw.chance(300) => {
                pair.oracle.cut();
                pair.reference.cut();
                open.clear();
                pair.reads.clear();
                pair.flushes.clear();
                pair.drains.clear();
            }
            _ if !open.is_empty() => {
                let id = open.remove(draw.index(open.len()));
                if pair.reads.iter().any(|read| read.0 == id) {
                    if draw.chance(100) {
                        pair.dropped(id);
                        continue;
                    }
                    // Mostly what may be there, lest every run ends at its first read.
                    let start = pair.reads.iter().find(|read| read.0 == id).unwrap().2;
                    let reference = pair.reference.clone();
                    pair.read_end(id, |touching| {
                        let op = touching[draw.index(touching.len())];
                        let grain = |op: OpId| Reference::range(reference.ops.iter().find(|o| o.id == op).unwrap());
                        let shared = touching.iter().map(|&op| grain(op)).fold(
                            ByteRange { start: 0, end: UNITS * 512 },
                            |all, range| ByteRange { start: all.start.max(range.start), end: all.end.min(range.end) },
                        );
                        let allowed: Vec<_> = reference.allowed(shared.start / GRAIN, start).into_iter().collect();
                        if honest && !allowed.is_empty() { allowed[draw.index(allowed.len())] } else { op }
                    });
                } else if draw.chance(150) && pair.drains.iter().all(|drain| drain.0 != id) {
                    pair.dropped(id);
                } else {
                    let ending = match draw.below(8) {
                        0 => Ending::Failed,
                        1 => Ending::Cancelled,
                        _ => Ending::Done,
                    };
                    pair.end(id, ending);
                }
            }
            _ => {}
        }
        pair.compare();
    }
}

/// `ORACLE_SEEDS` asks for more of them.
#[test]
fn the_oracle_keeps_to_the_definitions() {
    let seeds = std::env::var("ORACLE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    // Once it did not.
    run(3_300_389_151_720_455_308, 46);
    for number in 0..seeds {
        run(blkproof_block::choice::hash(0x6f72_6163_6c65, number), 1 + number % 59);
    }
}

/// Three requests, each of any kind and end, and a flush, in every order in which they can begin and end.
#[test]
fn every_order_of_three_requests_and_a_flush() {
    type Kind = (fn() -> Act, Option<Ending>);
    let kinds: [Kind; 6] = [
        (|| write(0, 512, false), Some(Ending::Done)),
        (|| write(0, 512, true), Some(Ending::Done)),
        (|| write(0, 512, false), Some(Ending::Failed)),
        (|| write(0, 512, false), None),
        (|| zeroes(0, 512), Some(Ending::Done)),
        (|| discard(0, 512), Some(Ending::Done)),
    ];
    let mut orders = Vec::new();
    arrange(&mut Vec::new(), &mut orders);
    assert_eq!(orders.len(), 420);
    let mut done = 0u64;
    for (number, order) in orders.iter().enumerate() {
        for combination in 0..216usize {
            // Each order with a twelfth of the kinds, each kind with all orders' shapes.
            if !choice::hash(number as u64, combination as u64).is_multiple_of(12) {
                continue;
            }
            let mut pair = Pair::new(Promises::default());
            let mut ids = [0; 4];
            for &event in order {
                let (who, begins) = (event / 2, event % 2 == 0);
                let (act, ending): Kind = match who {
                    3 => (|| Act::Flush, Some(Ending::Done)),
                    _ => kinds[combination / 6usize.pow(who as u32) % 6],
                };
                match (begins, ending) {
                    (true, _) => ids[who] = pair.submit(&act()),
                    (false, Some(ending)) => pair.end(ids[who], ending),
                    (false, None) => pair.dropped(ids[who]),
                }
            }
            pair.compare();
            done += 1;
            // Each thing that a read may find, and each that it may not.
            let touching: Vec<_> = pair.reference.touching(0).map(|op| op.id).collect();
            let value = touching[done as usize % touching.len()];
            let allowed = pair.reference.allowed(0, pair.reference.now + 1).contains(&value);
            let id = pair.submit(&read(0, 512));
            pair.read_end(id, |_| value);
            if allowed {
                pair.compare();
            }
        }
    }
    assert!(done > 7_000, "{done}");
}

/// Orders of eight events, two for each of four, where the first three are sent in their order.
fn arrange(order: &mut Vec<usize>, orders: &mut Vec<Vec<usize>>) {
    if order.len() == 8 {
        orders.push(order.clone());
        return;
    }
    for event in 0..8 {
        let begun = |who: usize| order.contains(&(2 * who));
        let possible = match (event / 2, event % 2) {
            (who, 1) => begun(who),
            (0 | 3, _) => true,
            (who, _) => begun(who - 1),
        };
        if possible && !order.contains(&event) {
            order.push(event);
            arrange(order, orders);
            order.pop();
        }
    }
}
