//! The disks a power cut may leave (CM 5.1 to 5.4, profile `block`).
//!
//! A write is *durable* at a position if it completed and either carried FUA, or a flush that was sent after its
//! completion has completed. Every other write that was submitted is *volatile*: in flight, acknowledged but only
//! cached, failed, or dropped. Each block of 512 bytes holds its newest durable content or that of any volatile write
//! that the disk did not order before a durable one; blocks choose independently. The size of the disk is one more
//! block: an extension can be lost while a write behind it survives.
//!
//! A failed or dropped write stays in doubt, flushed or not, until a durable write covers it or a read of a whole block,
//! sent after the failure or the drain, has shown how it ended (CM 4.3). From that read on it counts as completed, or as
//! never sent.
//!
//! The order of overlapping writes is that of their effects, and within a block content accumulates in that order, as
//! it does in a cache of whole blocks. A discard is a write of zeroes here, where it took effect.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::disk::put;
use super::log::{Log, Op, OpId, OpKind, Step};
use crate::choice::{Choices, hash};
use crate::nodes::memory::SparseBytes;
use crate::units::ByteRange;

const BLOCK: u64 = 512;

/// One disk a power cut may leave.
#[derive(Clone, Debug)]
pub struct CrashState {
    /// What is on it.
    pub image: SparseBytes,
    /// How it was chosen, for messages: "all old", "drop #12 Write 0x0..0x200".
    pub how: String,
}

/// Positions at which a crash is worth trying: just before each completion of a flush or of a request with FUA, and the
/// end. At any other position every state recurs at one of these (CM 5.3), as far as what the client was promised does
/// not change in between; add the positions at which it does.
pub fn interesting_points(log: &Log) -> Vec<usize> {
    let mut points: Vec<_> = log
        .entries()
        .iter()
        .enumerate()
        .filter(|(_, entry)| matches!(entry.step, Step::Complete(_)))
        .filter(|(_, entry)| log.op(entry.op).kind == OpKind::Flush || log.op(entry.op).fua)
        .map(|(position, _)| position)
        .collect();
    points.push(log.end());
    points
}

/// Disks a power cut at `position` of `log` may leave, none twice, at most `budget`; all there are if they are so few.
///
/// `initial` is the content before the first entry of the log. The order is that of CM 5.4: all old, all new, one
/// request dropped, one request kept, prefixes by completion and by submission, then random subsets by `seed`, half of
/// them by request and half by block.
pub fn crash_states(log: &Log, initial: &SparseBytes, position: usize, budget: usize, seed: u64) -> CrashStates {
    let point = Point::new(log, initial, position);
    let total = point.total();
    let exhaustive = total <= budget as u64;
    let plan = if exhaustive { Vec::new() } else { point.plan() };
    CrashStates {
        point,
        plan,
        next: 0,
        exhaustive,
        total,
        left: budget,
        attempts: (budget as u64).saturating_mul(4).saturating_add(64),
        seen: BTreeSet::new(),
        choices: Choices::new(hash(seed, position as u64)),
    }
}

/// The iterator behind [`crash_states`].
#[derive(Debug)]
pub struct CrashStates {
    point: Point,
    plan: Vec<Pick>,
    next: u64,
    exhaustive: bool,
    total: u64,
    left: usize,
    /// Random picks still to be tried; many of them may be old acquaintances.
    attempts: u64,
    /// Choices already handed out, hashed: a collision would skip one state in 2^64.
    seen: BTreeSet<(u64, u64)>,
    choices: Choices,
}

impl CrashStates {
    /// How many states there are, as a product of the choices of all blocks; saturates. Equal contents count as often
    /// as they are written.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Whether all states are among those handed out.
    pub fn is_exhaustive(&self) -> bool {
        self.exhaustive
    }

    /// The volatile requests at this position.
    pub fn volatile(&self) -> &[Rc<Op>] {
        &self.point.volatile
    }

    /// Hands out the state of these choices, unless it was handed out before.
    fn build(&mut self, picks: &[usize], how: String) -> Option<CrashState> {
        let sum = |start| picks.iter().fold(start, |sum, &pick| hash(sum, pick as u64));
        self.seen.insert((sum(1), sum(2))).then(|| CrashState { image: self.point.image(picks), how })
    }
}

impl Iterator for CrashStates {
    type Item = CrashState;

    fn next(&mut self) -> Option<CrashState> {
        while self.left > 0 {
            let (picks, how) = if self.exhaustive {
                if self.next == self.total {
                    return None;
                }
                // The number of the state, written in the mixed radix of the blocks' choices.
                let mut rest = self.next;
                let digit = |len: usize| {
                    let digit = rest % len as u64;
                    rest /= len as u64;
                    digit as usize
                };
                let picks: Vec<_> = self.point.radices().map(digit).collect();
                let how = match self.next {
                    0 => Pick::AllOld.to_string(),
                    number => format!("state {number} of {}", self.total),
                };
                (picks, how)
            } else if let Some(pick) = self.plan.get(self.next as usize) {
                (self.point.picks(pick, &mut self.choices), pick.to_string())
            } else if self.attempts > 0 {
                self.attempts -= 1;
                let keep = [20, 100, 500, 900, 980][self.choices.index(5)];
                let pick = match self.choices.chance(500) {
                    true => Pick::RandomRequests { keep, seed: self.choices.next() },
                    false => Pick::RandomBlocks { keep, seed: self.choices.next() },
                };
                (self.point.picks(&pick, &mut self.choices), pick.to_string())
            } else {
                return None;
            };
            self.next += 1;
            if let Some(state) = self.build(&picks, how) {
                self.left -= 1;
                return Some(state);
            }
        }
        None
    }
}

/// A way to choose.
#[derive(Clone, Debug)]
enum Pick {
    AllOld,
    AllNew,
    Drop(Rc<Op>),
    Keep(Rc<Op>),
    /// The first so many requests in this order.
    Prefix(&'static str, Rc<Vec<OpId>>, usize),
    RandomRequests {
        keep: u32,
        seed: u64,
    },
    RandomBlocks {
        keep: u32,
        seed: u64,
    },
}

impl std::fmt::Display for Pick {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AllOld => f.write_str("all old"),
            Self::AllNew => f.write_str("all new"),
            Self::Drop(op) => write!(f, "all but {op}"),
            Self::Keep(op) => write!(f, "only {op}"),
            Self::Prefix(order, _, count) => write!(f, "the first {count} by {order}"),
            Self::RandomRequests { keep, seed } => write!(f, "requests kept with {keep}/1000 by seed {seed:#x}"),
            Self::RandomBlocks { keep, seed } => write!(f, "blocks kept with {keep}/1000 by seed {seed:#x}"),
        }
    }
}

/// What one volatile request would leave in one block.
#[derive(Debug)]
struct Version {
    op: OpId,
    content: Box<[u8]>,
}

/// A block with a choice. Versions are in the order of their effects, those without effect last; choice 0 is the old
/// content, choice k the version k-1.
#[derive(Debug)]
struct Block {
    at: u64,
    versions: Vec<Version>,
}

/// Everything that may be on the disk at one position.
#[derive(Debug)]
struct Point {
    /// The newest durable content.
    base: SparseBytes,
    base_size: u64,
    blocks: Vec<Block>,
    /// Sizes that volatile requests would give the disk, in the order of their effects.
    sizes: Vec<(OpId, u64)>,
    /// Requests that have a version somewhere, by number.
    volatile: Vec<Rc<Op>>,
    by_completion: Rc<Vec<OpId>>,
    by_submission: Rc<Vec<OpId>>,
}

/// What is known of one write-class request at the position.
struct Write {
    op: Rc<Op>,
    submit: usize,
    /// Position of the effect and where it changed something.
    effect: Option<(usize, Rc<[ByteRange]>)>,
    /// Completed successfully at this position.
    complete: Option<usize>,
    /// Failed, or dropped and then drained, at this position: it will not change any more.
    settled: Option<usize>,
    in_doubt: bool,
}

/// A read that completed successfully.
struct Seen {
    range: ByteRange,
    submit: usize,
    complete: usize,
}

impl Point {
    fn new(log: &Log, initial: &SparseBytes, position: usize) -> Self {
        let (writes, reads, flushed) = scan(log, position);

        // The order of effects; what had none comes last, in order of submission.
        let mut order: Vec<&Write> = writes.values().collect();
        order.sort_by_key(|write| (write.effect.as_ref().map_or(usize::MAX, |(at, _)| *at), write.submit));

        let covered = |completed: usize| flushed.is_some_and(|submit| completed < submit);
        let durable = |write: &Write, block: ByteRange| match write.complete {
            Some(completed) => write.op.fua || covered(completed),
            None => pinned(write, block, &reads).is_some_and(covered),
        };

        // Contents of every block a request touched, in the order of effects.
        let mut now = initial.clone();
        let mut base = initial.clone();
        let mut base_size = initial.size();
        let mut sizes: Vec<(OpId, u64)> = Vec::new();
        let mut blocks: BTreeMap<u64, Vec<Version>> = BTreeMap::new();
        for write in order.iter().filter(|write| write.effect.is_some()) {
            let Some((_, parts)) = &write.effect else { continue };
            let before = now.size();
            match write.op.size {
                Some(size) if !parts.is_empty() => now.set_size(size),
                _ => parts.iter().for_each(|&part| put(&mut now, &write.op, part)),
            }
            // What a shrink cut off reads as zeroes.
            let cut = ByteRange { start: now.size(), end: before };
            for block in parts.iter().chain([&cut]).filter(|part| !part.is_empty()).flat_map(|&part| blocks_of(part)) {
                let mut content = vec![0; BLOCK as usize].into_boxed_slice();
                now.read(block.start, &mut content);
                let versions = blocks.entry(block.start).or_default();
                if durable(write, block) {
                    // Everything the disk ordered before it can not come back.
                    versions.clear();
                    set_block(&mut base, block.start, &content);
                } else {
                    versions.push(Version { op: write.op.id, content });
                }
            }
            let end = parts.iter().map(|part| part.end).max().unwrap_or(0);
            let whole = write.op.range;
            match (write.op.size, durable(write, whole)) {
                (Some(size), true) if !parts.is_empty() => {
                    sizes.clear();
                    base_size = size;
                }
                (Some(size), false) if !parts.is_empty() => sizes.push((write.op.id, size)),
                (Some(_), _) => {}
                (None, true) => base_size = base_size.max(end),
                (None, false) => sizes.push((write.op.id, end)),
            }
        }
        // What did not happen yet, or failed without a trace, may have happened all the same.
        for write in &order {
            let undone = |block: &ByteRange| {
                let touched = |part: &ByteRange| part.overlaps(*block);
                !write.effect.as_ref().is_some_and(|(_, parts)| parts.iter().any(touched))
            };
            // What completed did what it did (a discard may do less than asked); what was refused can do nothing.
            if write.complete.is_some() || write.op.refused {
                continue;
            }
            let no_effect = write.effect.as_ref().is_none_or(|(_, parts)| parts.is_empty());
            if let Some(size) = write.op.size
                && no_effect
            {
                sizes.push((write.op.id, size));
            }
            let mut possible = false;
            let later = |other: &&&Write| write.settled.is_some_and(|settled| settled < other.submit);
            for block in blocks_of(write.op.range).filter(undone) {
                let overruled = order.iter().filter(later).any(|other| touches(other, block) && durable(other, block));
                if overruled || (write.in_doubt && pinned(write, block, &reads).is_some()) {
                    continue;
                }
                let Some(part) = write.op.range.intersection(block) else { continue };
                let mut content = vec![0; BLOCK as usize].into_boxed_slice();
                now.read(block.start, &mut content);
                let (from, to) = ((part.start - block.start) as usize, (part.end - block.start) as usize);
                if let Some(content) = content.get_mut(from..to) {
                    write.op.content(part, content);
                }
                blocks.entry(block.start).or_default().push(Version { op: write.op.id, content });
                possible = true;
            }
            if possible {
                sizes.push((write.op.id, write.op.range.end));
            }
        }
        sizes.retain(|&(id, size)| log.op(id).size.is_some() || size > base_size);
        sizes.dedup();
        blocks.retain(|_, versions| !versions.is_empty());

        let involved: BTreeSet<OpId> =
            blocks.values().flatten().map(|version| version.op).chain(sizes.iter().map(|&(op, _)| op)).collect();
        let volatile: Vec<_> = involved.iter().map(|&id| log.op(id).clone()).collect();
        let by_submission: Vec<_> = involved.iter().copied().collect();
        let mut by_completion = by_submission.clone();
        by_completion.sort_by_key(|id| writes.get(id).and_then(|write| write.complete).unwrap_or(usize::MAX));
        Self {
            base,
            base_size,
            blocks: blocks.into_iter().map(|(at, versions)| Block { at, versions }).collect(),
            sizes,
            volatile,
            by_completion: Rc::new(by_completion),
            by_submission: Rc::new(by_submission),
        }
    }

    /// How many choices each block has, and at last the size.
    fn radices(&self) -> impl Iterator<Item = usize> {
        let blocks = self.blocks.iter().map(|block| block.versions.len() + 1);
        blocks.chain([self.sizes.len() + 1])
    }

    fn total(&self) -> u64 {
        self.radices().fold(1, |total, radix| total.saturating_mul(radix as u64))
    }

    fn plan(&self) -> Vec<Pick> {
        let mut plan = vec![Pick::AllOld, Pick::AllNew];
        plan.extend(self.volatile.iter().cloned().map(Pick::Drop));
        plan.extend(self.volatile.iter().cloned().map(Pick::Keep));
        let count = self.volatile.len();
        plan.extend((1..count).map(|len| Pick::Prefix("completion", self.by_completion.clone(), len)));
        plan.extend((1..count).map(|len| Pick::Prefix("submission", self.by_submission.clone(), len)));
        plan
    }

    fn picks(&self, pick: &Pick, choices: &mut Choices) -> Vec<usize> {
        match pick {
            Pick::AllOld => self.keep(|_| false),
            Pick::AllNew => self.keep(|_| true),
            Pick::Drop(op) => self.keep(|id| id != op.id),
            Pick::Keep(op) => self.keep(|id| id == op.id),
            Pick::Prefix(_, order, len) => {
                let kept: BTreeSet<_> = order.iter().take(*len).collect();
                self.keep(|id| kept.contains(&id))
            }
            Pick::RandomRequests { keep, seed } => self.keep(|id| hash(*seed, id.0) % 1000 < u64::from(*keep)),
            Pick::RandomBlocks { keep, seed } => {
                let mut draws = choices.stream(*seed);
                self.radices()
                    .map(|radix| match draws.chance(*keep) && radix > 1 {
                        true => 1 + draws.index(radix - 1),
                        false => 0,
                    })
                    .collect()
            }
        }
    }

    /// Every block takes the newest version of a request that is kept.
    fn keep(&self, kept: impl Fn(OpId) -> bool) -> Vec<usize> {
        let newest = |block: &Block| block.versions.iter().rposition(|version| kept(version.op));
        let mut picks: Vec<_> = self.blocks.iter().map(|block| newest(block).map_or(0, |index| index + 1)).collect();
        // Extensions add up: the largest that is kept wins, unless a resize came after it.
        let mut best = (0, self.base_size);
        for (index, &(op, size)) in self.sizes.iter().enumerate().filter(|(_, (op, _))| kept(*op)) {
            let resizes = self.volatile.iter().any(|other| other.id == op && other.size.is_some());
            if resizes || size > best.1 {
                best = (index + 1, size);
            }
        }
        picks.push(best.0);
        picks
    }

    fn image(&self, picks: &[usize]) -> SparseBytes {
        let mut image = self.base.clone();
        for (block, &pick) in self.blocks.iter().zip(picks) {
            if let Some(version) = pick.checked_sub(1).and_then(|index| block.versions.get(index)) {
                set_block(&mut image, block.at, &version.content);
            }
        }
        let size = picks.last().and_then(|pick| pick.checked_sub(1)).and_then(|index| self.sizes.get(index));
        image.set_size(size.map_or(self.base_size, |&(_, size)| size));
        image
    }
}

/// Sorts the log up to `position` into writes and reads, and finds the latest submission of a flush that succeeded.
fn scan(log: &Log, position: usize) -> (BTreeMap<OpId, Write>, Vec<Seen>, Option<usize>) {
    let mut writes: BTreeMap<OpId, Write> = BTreeMap::new();
    let mut reads = Vec::new();
    let mut submits: BTreeMap<OpId, usize> = BTreeMap::new();
    let mut dropped: BTreeMap<OpId, usize> = BTreeMap::new();
    let mut flushed: Option<usize> = None;
    for (at, entry) in log.entries().iter().enumerate().take(position) {
        let op = log.op(entry.op);
        match &entry.step {
            Step::Submit => {
                submits.insert(op.id, at);
                if op.kind.writes() {
                    let op = op.clone();
                    let write = Write { op, submit: at, effect: None, complete: None, settled: None, in_doubt: false };
                    writes.insert(entry.op, write);
                }
            }
            Step::Effect(parts) => {
                if let Some(write) = writes.get_mut(&op.id) {
                    write.effect = Some((at, parts.clone()));
                }
            }
            Step::Complete(Ok(())) => {
                let Some(&submit) = submits.get(&op.id) else { continue };
                match op.kind {
                    OpKind::Read => reads.push(Seen { range: op.range, submit, complete: at }),
                    OpKind::Flush => flushed = flushed.max(Some(submit)),
                    OpKind::Drain => {
                        for (id, _) in dropped.iter().filter(|(_, dropped)| **dropped < submit) {
                            if let Some(write) = writes.get_mut(id) {
                                write.settled.get_or_insert(at);
                            }
                        }
                    }
                    _ => {
                        if let Some(write) = writes.get_mut(&op.id) {
                            write.complete = Some(at);
                        }
                    }
                }
            }
            Step::Complete(Err(_)) => {
                if let Some(write) = writes.get_mut(&op.id) {
                    write.settled = Some(at);
                    write.in_doubt = true;
                }
            }
            Step::Drop => {
                dropped.insert(op.id, at);
                if let Some(write) = writes.get_mut(&op.id) {
                    write.in_doubt = true;
                }
            }
            Step::Gone => {}
        }
    }
    (writes, reads, flushed)
}

/// When a read first showed how a write in doubt ended in `block`.
fn pinned(write: &Write, block: ByteRange, reads: &[Seen]) -> Option<usize> {
    let settled = write.settled?;
    let mine = write.op.range.intersection(block)?;
    reads
        .iter()
        .find(|read| read.submit > settled && read.range.intersection(mine) == Some(mine))
        .map(|read| read.complete)
}

fn touches(write: &Write, block: ByteRange) -> bool {
    write.effect.as_ref().is_some_and(|(_, parts)| parts.iter().any(|part| part.overlaps(block)))
}

fn blocks_of(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let first = range.start / BLOCK;
    let last = if range.is_empty() { first } else { range.end.div_ceil(BLOCK) };
    (first..last).map(|index| ByteRange::at(index * BLOCK, BLOCK))
}

/// Replaces one block. May grow `image` to a whole block; its size is set last.
fn set_block(image: &mut SparseBytes, at: u64, content: &[u8]) {
    image.write(at, content);
}
