//! Which of two plans is smaller.

use std::collections::{BTreeMap, BTreeSet};

use blkproof_block::Errno;
use blkproof_fault::disk::{FlushError, Kind, Profile};
use blkproof_sim::{FaultDone, Step, Strategy};

use super::passes::granule;
use crate::plan::{Act, CrashPlan, CutPoint, CutState, Op, OpId, Plan};

impl Plan {
    /// What a reader has to take in: ops, faults, holds, drops, and one for the power cut.
    pub fn size(&self) -> usize {
        let drops = self.ops.iter().filter(|op| op.drop_at.is_some()).count();
        let cut = usize::from(self.crash != CrashPlan::None);
        self.ops.len() + self.faults.named.len() + self.schedule.holds.len() + drops + cut
    }
}

/// The order in which plans are preferred: the shortest, then the smallest (CM 10.2). Compared from the first field on.
///
/// Every field is a natural number, so no sequence of ever smaller plans goes on for ever.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Cost {
    size: usize,
    /// Things left to chance.
    chance: usize,
    /// How hard the power cuts are to describe.
    cuts: u64,
    queues: usize,
    /// Requests outside of the first queue, further ones weighing more.
    lanes: u64,
    waits: usize,
    /// Options of the target, its base image, and of the disk what is not as usual.
    options: usize,
    /// Flags of requests, pieces of vectors, and whatever of a fault is not the plainest.
    flags: usize,
    drops: u64,
    bytes: u128,
    disk: u128,
    /// Requests at places that are nothing special.
    places: u64,
    starts: u128,
    /// How late the moves come that others are held until.
    holds: u128,
}

impl Cost {
    pub(super) fn of(plan: &Plan) -> Self {
        let queues: BTreeSet<u8> = plan.ops.iter().filter(|op| !barrier(op)).map(|op| op.queue).collect();
        let ranges = || plan.ops.iter().filter_map(|op| op.act.range());
        let unit = granule(plan);
        let resizes = plan.ops.iter().filter_map(|op| match op.act {
            Act::Resize { size } => Some(u128::from(size)),
            _ => None,
        });
        let sizes = u128::from(plan.target.size) + u128::from(plan.target.base.unwrap_or(0));
        Self {
            size: plan.size(),
            chance: usize::from(plan.faults.random.rate > 0)
                + usize::from(plan.schedule.strategy != Strategy::Fifo)
                + usize::from(matches!(plan.crash, CrashPlan::Explore { .. })),
            cuts: cuts(plan),
            queues: queues.len(),
            lanes: plan.ops.iter().map(|op| u64::from(op.queue)).sum(),
            waits: plan.ops.iter().map(|op| op.after.len()).sum(),
            options: options(plan),
            flags: plan.ops.iter().map(|op| flags(&op.act)).sum::<usize>() + fault_flags(plan),
            drops: plan.ops.iter().filter_map(|op| op.drop_at).map(u64::from).sum(),
            bytes: ranges().map(|range| u128::from(range.len())).sum(),
            disk: sizes + resizes.sum::<u128>(),
            places: ranges().map(|range| place(range, unit, plan.target.size)).sum(),
            starts: ranges().map(|range| u128::from(range.start)).sum(),
            holds: holds(plan),
        }
    }
}

pub(super) fn barrier(op: &Op) -> bool {
    matches!(op.act, Act::Reopen | Act::Cut { .. })
}

/// 0 for the start of the disk, then of an allocation unit, then the end of the disk, then anywhere.
fn place(range: blkproof_block::ByteRange, unit: u64, size: u64) -> u64 {
    match range.start {
        0 => 0,
        start if start % unit == 0 => 1,
        _ if range.end == size => 2,
        start if start % 512 == 0 && range.end % 512 == 0 => 3,
        _ => 4,
    }
}

fn cuts(plan: &Plan) -> u64 {
    let ops = plan.ops.iter().map(|op| match &op.act {
        Act::Cut { state } => state_rank(state),
        _ => 0,
    });
    let ops: u64 = ops.sum();
    match &plan.crash {
        CrashPlan::None => ops,
        CrashPlan::Explore { states, depth, .. } => ops + (1 << 40) + (u64::from(*depth) << 33) + u64::from(*states),
        CrashPlan::At { point, state, again } => {
            let second = again.as_ref().map_or(0, |again| (1 << 32) + point_rank(again.0) + state_rank(&again.1));
            ops + point_rank(*point) + state_rank(state) + second
        }
    }
}

const fn point_rank(point: CutPoint) -> u64 {
    match point {
        CutPoint::End => 0,
        CutPoint::AfterOp(_) => 1,
        CutPoint::BeforeOp(_) => 2,
        CutPoint::Before(_) => 3,
    }
}

fn state_rank(state: &CutState) -> u64 {
    let some = |count: usize| u64::try_from(count).unwrap_or(u64::MAX).min(1 << 20) << 4;
    match state {
        CutState::AllOld => 0,
        CutState::AllNew => 4,
        CutState::Keep(ios) => some(ios.len()) + 4,
        CutState::Drop(ios) => some(ios.len()) + 8,
        CutState::Tear { blocks, .. } => 64 + (*blocks).min(1 << 20),
        CutState::Number(_) => 1 << 26,
        CutState::Seed(_) => 1 << 27,
    }
}

fn options(plan: &Plan) -> usize {
    let disk = &plan.disk;
    let odd = [
        disk.block != 512,
        disk.profile != Profile::default(),
        disk.kind != Kind::default(),
        disk.flush_error != FlushError::default(),
        disk.seed != 0,
        plan.target.base.is_some(),
        plan.schedule.seed != 0,
    ];
    plan.target.options.len() + odd.iter().filter(|&&odd| odd).count()
}

fn flags(act: &Act) -> usize {
    match act {
        Act::Read { vector, .. } => vector.len(),
        Act::Write { fua, compressed, .. } => usize::from(*fua) + usize::from(*compressed),
        Act::Zeroes { fua, unmap, no_fallback, .. } => {
            usize::from(*fua) + usize::from(*unmap) + usize::from(*no_fallback)
        }
        _ => 0,
    }
}

fn fault_flags(plan: &Plan) -> usize {
    let one = |fault: &crate::plan::FaultSpec| {
        let done = match fault.done {
            FaultDone::Nothing => 0,
            FaultDone::All => 1,
            FaultDone::First(bytes) | FaultDone::From(bytes) => {
                2 + usize::try_from(bytes).unwrap_or(1 << 30).min(1 << 30)
            }
        };
        usize::from(fault.lasting) + usize::from(fault.immediate) + usize::from(fault.errno != Errno::IO) + done
    };
    plan.faults.named.iter().map(one).sum()
}

/// Where each hold's `until` comes: by request, then by number, then by step.
fn holds(plan: &Plan) -> u128 {
    if plan.schedule.holds.is_empty() {
        return 0;
    }
    let places = positions(plan);
    plan.schedule.holds.iter().map(|hold| move_rank(&places, hold.until)).sum()
}

/// Where each op stands in the plan, from 1.
pub(super) fn positions(plan: &Plan) -> BTreeMap<OpId, u64> {
    plan.ops.iter().map(|op| op.id).zip(1..).collect()
}

/// How late a move comes, as far as the plan tells.
pub(super) fn move_rank(places: &BTreeMap<OpId, u64>, key: blkproof_sim::MoveKey) -> u128 {
    let place = match key.owner.0 {
        0 => 0,
        id => places.get(&id).copied().unwrap_or(1 << 32),
    };
    let step = match key.step {
        Step::Poll => 0,
        Step::Effect => 1,
        Step::Done => 2,
    };
    u128::from(place) << 40 | u128::from(key.nth) << 2 | step
}

/// The smaller of two, and of two equally small ones always the same.
pub(super) fn smaller(one: &Plan, other: &Plan) -> bool {
    (Cost::of(one), super::key::key(one)) < (Cost::of(other), super::key::key(other))
}
