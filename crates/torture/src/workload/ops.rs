//! Ops, one after the other.

use blkproof_block::ByteRange;

use super::dice::{Dice, Stream};
use super::geometry::{Geometry, size};
use super::motif::{self, Spot, Step};
use super::place::Place;
use super::subject;
use super::swarm::{Kind, Swarm};
use crate::plan::{Act, CutState, OP_MAX, Op, OpId, REQUEST_MAX};

/// Sites of decisions about an op.
mod site {
    pub(super) const KIND: u64 = 1;
    pub(super) const QUEUE: u64 = 2;
    pub(super) const FUA: u64 = 3;
    pub(super) const UNMAP: u64 = 4;
    pub(super) const NO_FALLBACK: u64 = 5;
    pub(super) const COMPRESSED: u64 = 6;
    pub(super) const VECTOR: u64 = 7;
    pub(super) const DROP: u64 = 8;
    pub(super) const MOVES: u64 = 9;
    pub(super) const AFTER: u64 = 10;
    pub(super) const EARLIER: u64 = 11;
    pub(super) const STATE: u64 = 12;
    pub(super) const WAIT: u64 = 13;
    pub(super) const LATE: u64 = 14;
    pub(super) const MOTIF: u64 = 15;
    pub(super) const WHICH: u64 = 16;
    pub(super) const LANES: u64 = 17;
    pub(super) const HURT: u64 = 18;
    pub(super) const IN_TURN: u64 = 19;
    pub(super) const BESIDE: u64 = 20;
    pub(super) const OTHER: u64 = 0x100;
    pub(super) const PIECE: u64 = 0x200;
}

/// The ops of a seed, and those among them that a motif would have fail.
pub(super) fn draw(seed: u64, geometry: &Geometry, swarm: &Swarm) -> (Vec<Op>, Vec<OpId>) {
    let mut writer = Writer {
        seed,
        geometry,
        swarm,
        queues: vec![Queue { last: None, limit: geometry.size, reach: 0 }; usize::from(swarm.queues.max(1))],
        size: geometry.size,
        may_be: ByteRange { start: geometry.size, end: geometry.size },
        resize: None,
        life: 0,
        ops: Vec::new(),
        hurt: Vec::new(),
    };
    let (mut id, last) = (1, swarm.ops.min(OP_MAX - 1));
    while id <= last {
        id = match writer.motif(id, last) {
            Some(next) => next,
            None => {
                writer.add(id);
                id + 1
            }
        };
    }
    (writer.ops, writer.hurt)
}

/// What a motif says of one of its requests.
#[derive(Clone, Copy, Debug)]
struct Fixed {
    step: Step,
    unit: u64,
    queue: u8,
    /// It waits for this one.
    behind: Option<OpId>,
    /// It is the one that fails, or is dropped.
    hurt: bool,
}

/// Requests of one queue follow each other.
#[derive(Clone, Copy, Debug)]
struct Queue {
    last: Option<OpId>,
    /// Bytes of the disk that its next request can count on.
    limit: u64,
    /// End of its requests in this life.
    reach: u64,
}

struct Writer<'a> {
    seed: u64,
    geometry: &'a Geometry,
    swarm: &'a Swarm,
    queues: Vec<Queue>,
    /// Bytes of the disk when all that was asked is done.
    size: u64,
    /// The smallest and the largest size that the disk may have, if resizes are lost.
    may_be: ByteRange,
    /// The last resize of this life.
    resize: Option<OpId>,
    /// Where in `ops` this life begins: what was before has ended.
    life: usize,
    ops: Vec<Op>,
    hurt: Vec<OpId>,
}

impl Writer<'_> {
    fn add(&mut self, id: OpId) {
        let dice = Dice::new(self.seed, Stream::Op, subject(id));
        let kind = dice.weigh(site::KIND, &self.swarm.kinds).unwrap_or(Kind::Write);
        self.put(id, kind, None);
    }

    /// A motif from `id` on, if one begins here: the number of the op behind it.
    fn motif(&mut self, id: OpId, last: OpId) -> Option<OpId> {
        let dice = Dice::new(self.seed, Stream::Motif, subject(id));
        if !dice.chance(site::MOTIF, self.swarm.motifs) {
            return None;
        }
        let steps = dice.weigh(site::WHICH, &self.swarm.motif_kinds)?;
        let place = Dice::new(self.seed, Stream::Place, subject(id));
        let near = Place { dice: place, geometry: self.geometry, swarm: self.swarm, limit: self.size, data: true };
        let start = near.range(None).start;
        let unit = start - start % self.geometry.variant.cluster.max(1);
        let queues = self.queues.len() as u64;
        // All in one queue, one beside the other, or as it comes.
        let first = dice.below(site::LANES, queues);
        let lanes = dice.below(site::LANES | 0x100, 4);
        let hurt = (0..steps.len()).filter(|&index| steps.get(index).is_some_and(|step| step.hurt));
        let hurt = hurt.max_by_key(|&index| dice.bits(site::HURT | (index as u64) << 8));
        let mut next = id;
        for (index, step) in steps.iter().enumerate() {
            let dice = Dice::new(self.seed, Stream::Motif, subject(next));
            let able = self.swarm.able(step.kind, &self.geometry.variant.features);
            if next > last || !able || !dice.chance(site::KIND, step.of) {
                continue;
            }
            let lane = if lanes == 0 { 0 } else { u64::from(step.lane) };
            let queue = u8::try_from((first + lane) % queues.max(1)).unwrap_or(0);
            // Behind the one before; or behind that one's own, to be in flight together with it.
            let back = match (dice.chance(site::IN_TURN, self.swarm.in_turn), dice.chance(site::BESIDE, 500)) {
                (true, _) => 1,
                (false, true) => 2,
                (false, false) => 0,
            };
            let behind = (back > 0 && next >= id + back).then(|| next - back);
            let hurt = hurt == Some(index);
            self.put(next, step.kind, Some(Fixed { step: *step, unit, queue, behind, hurt }));
            if hurt {
                self.hurt.push(next);
            }
            next += 1;
        }
        (next > id).then_some(next)
    }

    fn put(&mut self, id: OpId, kind: Kind, fixed: Option<Fixed>) {
        let dice = Dice::new(self.seed, Stream::Op, subject(id));
        let op = match kind {
            Kind::Reopen => self.barrier(id, Act::Reopen),
            Kind::Cut => {
                let state = match dice.below(site::STATE, 4) {
                    0 => CutState::AllOld,
                    1 => CutState::AllNew,
                    _ => CutState::Seed(dice.bits(site::STATE | 0x1000)),
                };
                self.barrier(id, Act::Cut { state })
            }
            _ => self.request(id, kind, dice, fixed),
        };
        self.ops.push(op);
        if matches!(kind, Kind::Reopen | Kind::Cut) {
            self.life = self.ops.len();
        }
    }

    fn barrier(&mut self, id: OpId, act: Act) -> Op {
        for queue in &mut self.queues {
            *queue = Queue { last: None, limit: self.size, reach: 0 };
        }
        self.resize = None;
        Op { id, queue: 0, act, after: Vec::new(), drop_at: None }
    }

    fn request(&mut self, id: OpId, kind: Kind, dice: Dice, fixed: Option<Fixed>) -> Op {
        let queue = u8::try_from(dice.below(site::QUEUE, self.queues.len() as u64)).unwrap_or(0);
        let queue = fixed.map_or(queue, |fixed| fixed.queue);
        let mut after = Vec::new();
        let act = match kind {
            Kind::Resize => self.resize(id, queue, &mut after),
            _ => {
                self.wait_for_resize(queue, dice, &mut after);
                self.act(id, kind, queue, dice, fixed)
            }
        };
        let life = self.ops.get(self.life..).unwrap_or_default();
        let behind = fixed.and_then(|fixed| fixed.behind);
        after.extend(behind.filter(|id| !after.contains(id) && life.iter().any(|op| op.id == *id)));
        if dice.chance(site::AFTER, self.swarm.after) {
            // Of the last few: a request waits for what may still be in flight.
            let back = dice.below(site::EARLIER, 8.min(life.len() as u64));
            let earlier = usize::try_from(back).ok().and_then(|back| life.iter().rev().nth(back)).map(|op| op.id);
            after.extend(earlier.filter(|earlier| !after.contains(earlier)));
        }
        // Who drops a resize does not know the size any more: that is for the seeds that count on none.
        let often = match fixed {
            Some(fixed) if fixed.hurt && self.swarm.drops > 0 => self.swarm.drops.max(400),
            _ => self.swarm.drops,
        };
        let drops = (kind != Kind::Resize || self.swarm.unsure) && dice.chance(site::DROP, often);
        let moves = if dice.chance(site::LATE, 250) { 60 } else { 8 };
        let drop_at = drops.then(|| u32::try_from(dice.below(site::MOVES, moves)).unwrap_or(0));
        if let Some(place) = self.queues.get_mut(usize::from(queue)) {
            place.last = Some(id);
            place.reach = place.reach.max(act.range().map_or(0, |range| range.end));
        }
        Op { id, queue, act, after, drop_at }
    }

    /// A queue behind a resize of another one knows only that the disk has one size or the other, until it waits.
    fn wait_for_resize(&mut self, queue: u8, dice: Dice, after: &mut Vec<OpId>) {
        let (size, resize) = (self.size, self.resize);
        let Some(place) = self.queues.get_mut(usize::from(queue)) else { return };
        let unit = self.geometry.variant.alignment.max(1);
        // Nothing can be said to a disk of no unit but by waiting for one.
        if let Some(resize) = resize
            && place.limit != size
            && (place.limit < unit || dice.chance(site::WAIT, 400))
        {
            after.push(resize);
            place.limit = size;
        }
    }

    fn act(&self, id: OpId, kind: Kind, queue: u8, dice: Dice, fixed: Option<Fixed>) -> Act {
        let limit = self.queues.get(usize::from(queue)).map_or(self.size, |queue| queue.limit);
        let range = || {
            let data = matches!(kind, Kind::Read | Kind::Write);
            let dice = Dice::new(self.seed, Stream::Place, subject(id));
            let place = Place { dice, geometry: self.geometry, swarm: self.swarm, limit, data };
            let fixed = fixed.and_then(|fixed| motif::range(fixed.step.spot, fixed.unit, dice, self.geometry, limit));
            match fixed {
                Some(range) => place.fit(range.start, range.end),
                None => place.range(self.other(queue, dice)),
            }
        };
        match kind {
            Kind::Read => {
                let range = range();
                let vector = match dice.chance(site::VECTOR, self.swarm.vector) {
                    true => pieces(dice, range, self.geometry.variant.alignment),
                    false => Vec::new(),
                };
                Act::Read { range, vector }
            }
            Kind::Zeroes => Act::Zeroes {
                range: range(),
                fua: dice.chance(site::FUA, self.swarm.fua),
                // Space that a motif wants back is given back.
                unmap: match fixed {
                    Some(fixed) if fixed.step.spot == Spot::Whole && self.geometry.variant.features.unmap => true,
                    _ => dice.chance(site::UNMAP, self.swarm.unmap),
                },
                no_fallback: dice.chance(site::NO_FALLBACK, self.swarm.no_fallback),
            },
            Kind::Discard => Act::Discard { range: range() },
            Kind::Flush => Act::Flush,
            Kind::Drain => Act::Drain,
            Kind::Status => Act::Status { range: range() },
            Kind::Write | Kind::Resize | Kind::Reopen | Kind::Cut => {
                let range = range();
                let whole = self.compressible(range, limit);
                match whole.filter(|_| dice.chance(site::COMPRESSED, self.swarm.compressed)) {
                    Some(range) => Act::Write { range, fua: false, compressed: true },
                    None => Act::Write { range, fua: dice.chance(site::FUA, self.swarm.fua), compressed: false },
                }
            }
        }
    }

    /// The cluster that a range begins in, if the disk has all of it and memory too: what can be written compressed.
    fn compressible(&self, range: ByteRange, limit: u64) -> Option<ByteRange> {
        let cluster = self.geometry.variant.cluster.max(1);
        let start = range.start - range.start % cluster;
        let end = start.saturating_add(cluster);
        (end <= limit && cluster <= REQUEST_MAX).then_some(ByteRange { start, end })
    }

    /// A request that may be in flight with the next one of this queue.
    fn other(&self, queue: u8, dice: Dice) -> Option<ByteRange> {
        let life = self.ops.get(self.life..).unwrap_or_default();
        let window = self.queues.len().saturating_mul(2).max(4).min(life.len());
        let recent = life.get(life.len().saturating_sub(window)..)?;
        let mut own = None;
        for attempt in 0..4 {
            let index = usize::try_from(dice.below(site::OTHER | attempt, recent.len() as u64)).ok()?;
            let op = recent.get(index)?;
            match op.act.range() {
                Some(range) if op.queue != queue => return Some(range),
                Some(range) => own = Some(range),
                None => {}
            }
        }
        own
    }

    /// Resizes come one after the other, and none takes away what a request in flight is about.
    fn resize(&mut self, id: OpId, queue: u8, after: &mut Vec<OpId>) -> Act {
        let (variant, old) = (&self.geometry.variant, self.size);
        let dice = Dice::new(self.seed, Stream::Place, subject(id));
        let wanted = size(dice, variant, variant.size);
        let new = match (variant.features.grow, variant.features.shrink) {
            (true, false) => wanted.max(self.may_be.end),
            (false, true) => wanted.min(self.may_be.start),
            _ => wanted,
        };
        self.may_be = ByteRange { start: self.may_be.start.min(new), end: self.may_be.end.max(new) };
        // Where a resize may be dropped, nobody counts on what it adds.
        let sure = if self.swarm.unsure { new.min(old) } else { new };
        for (number, other) in self.queues.iter_mut().enumerate() {
            let own = number == usize::from(queue);
            if !own && other.reach > new {
                after.extend(other.last);
            }
            other.limit = if own { sure } else { other.limit.min(sure) };
            if !own && new < old {
                other.reach = other.reach.min(new);
            }
        }
        after.extend(self.resize.filter(|earlier| !after.contains(earlier)));
        self.size = sure;
        self.resize = Some(id);
        Act::Resize { size: new }
    }
}

/// Two to six pieces of a range, some of them tiny; none if it is too short.
fn pieces(dice: Dice, range: ByteRange, alignment: u64) -> Vec<u32> {
    let unit = alignment.max(1);
    let units = range.len() / unit;
    let count = dice.below(site::PIECE, 5).saturating_add(2).min(units);
    if count < 2 || !range.len().is_multiple_of(unit) {
        return Vec::new();
    }
    let mut left = units;
    let mut pieces = Vec::new();
    for rest in (1..count).rev() {
        // Every later piece gets at least one unit.
        let room = left.saturating_sub(rest);
        let site = site::PIECE | rest << 4;
        let most = if dice.chance(site | 1, 400) { room.min(3) } else { room };
        let len = dice.below(site | 2, most).saturating_add(1);
        pieces.push(len);
        left = left.saturating_sub(len);
    }
    pieces.push(left);
    pieces.into_iter().filter_map(|len| u32::try_from(len.saturating_mul(unit)).ok()).collect()
}
