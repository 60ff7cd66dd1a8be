//! Plans without some of their elements.

use std::collections::{BTreeMap, BTreeSet};

use blkproof_sim::{IoKey, Strategy};

use super::cost::barrier;
use super::element::Element;
use crate::plan::{Act, CrashPlan, CutPoint, CutState, FaultAt, OpId, Plan, RandomFaults};

/// What becomes of those that refer to an op that is removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Referrers {
    /// They refer to what stood behind it: who waited for it waits for what it waited for, and the power goes before the
    /// next op. Without this, an op that only passes on an order could not be removed.
    Bridge,
    /// They go too.
    Cut,
}

/// The plan without these elements; `None` if it has none of them.
pub(super) fn without(plan: &Plan, elements: &[Element], referrers: Referrers) -> Option<Plan> {
    let mut plan = plan.clone();
    let mut changed = false;
    let mut gone = BTreeSet::new();
    for element in elements {
        changed |= match element {
            Element::Op(id) => plan.ops.iter().any(|op| op.id == *id) && gone.insert(*id),
            Element::Fault(fault) => remove(&mut plan.faults.named, |one| one == fault),
            Element::Hold(hold) => remove(&mut plan.schedule.holds, |one| one == hold),
            Element::Drop(id) => {
                plan.ops.iter_mut().find(|op| op.id == *id).is_some_and(|op| op.drop_at.take().is_some())
            }
            Element::After(id, after) => {
                let op = plan.ops.iter_mut().find(|op| op.id == *id);
                op.is_some_and(|op| remove(&mut op.after, |one| one == after))
            }
            Element::Survivor(io) => forget(&mut plan, |one| one == *io),
            Element::Crash => std::mem::take(&mut plan.crash) != CrashPlan::None,
            Element::Again => match &mut plan.crash {
                CrashPlan::At { again, .. } => again.take().is_some(),
                _ => false,
            },
            Element::RandomFaults => std::mem::take(&mut plan.faults.random) != RandomFaults::default(),
            Element::Strategy => std::mem::take(&mut plan.schedule.strategy) != Strategy::Fifo,
            Element::Base => plan.target.base.take().is_some(),
            Element::Option(name) => remove(&mut plan.target.options, |(one, _)| one == name),
        };
    }
    if !gone.is_empty() {
        remove_ops(&mut plan, &gone, referrers);
    }
    changed.then_some(plan)
}

/// Removes the first that matches.
fn remove<T>(list: &mut Vec<T>, matches: impl Fn(&T) -> bool) -> bool {
    match list.iter().position(matches) {
        Some(index) => {
            list.remove(index);
            true
        }
        None => false,
    }
}

fn remove_ops(plan: &mut Plan, gone: &BTreeSet<OpId>, referrers: Referrers) {
    if referrers == Referrers::Bridge {
        bridge_waits(plan, gone);
        bridge_crash(plan, gone);
    }
    plan.ops.retain(|op| !gone.contains(&op.id));
    for op in &mut plan.ops {
        op.after.retain(|id| !gone.contains(id));
    }
    plan.faults.named.retain(|fault| !matches!(fault.at, FaultAt::Io(io) if gone.contains(&io.owner.0)));
    let stays = |key: blkproof_sim::MoveKey| !gone.contains(&key.owner.0);
    plan.schedule.holds.retain(|hold| stays(hold.what) && stays(hold.until));
    forget(plan, |io| gone.contains(&io.owner.0));
    if let CrashPlan::At { point, again, .. } = &mut plan.crash {
        let lost = |point: CutPoint| owner(point).is_some_and(|id| gone.contains(&id));
        if again.as_ref().is_some_and(|again| lost(again.0)) {
            *again = None;
        }
        if lost(*point) {
            plan.crash = CrashPlan::None;
        }
    }
}

/// Who waited for an op that goes waits for what that one waited for.
fn bridge_waits(plan: &mut Plan, gone: &BTreeSet<OpId>) {
    let queue_of: BTreeMap<OpId, u8> = plan.ops.iter().map(|op| (op.id, op.queue)).collect();
    let mut instead = BTreeMap::<OpId, BTreeSet<OpId>>::new();
    let mut last = BTreeMap::<u8, OpId>::new();
    for op in &mut plan.ops {
        let resolve = |id: OpId| match instead.get(&id) {
            Some(others) => others.clone(),
            None => BTreeSet::from([id]),
        };
        if barrier(op) {
            // Everything before has ended; nobody needs to wait for it by name.
            last.clear();
        }
        if gone.contains(&op.id) {
            let before = last.get(&op.queue).filter(|_| !barrier(op));
            let waits = op.after.iter().chain(before).flat_map(|&id| resolve(id)).collect();
            instead.insert(op.id, waits);
        } else {
            let new = op.after.iter().filter(|id| gone.contains(id)).flat_map(|&id| resolve(id));
            let new: BTreeSet<OpId> = new.filter(|id| queue_of.get(id) != Some(&op.queue)).collect();
            let new: Vec<OpId> = new.into_iter().filter(|id| !op.after.contains(id)).collect();
            op.after.extend(new);
        }
        if !barrier(op) {
            last.insert(op.queue, op.id);
        }
    }
}

/// A power cut at an op that goes comes before the next that stays.
fn bridge_crash(plan: &mut Plan, gone: &BTreeSet<OpId>) {
    let next = |point: CutPoint| {
        let id = owner(point).filter(|id| gone.contains(id))?;
        let from = plan.ops.iter().position(|op| op.id == id)?;
        let next = plan.ops.iter().skip(from).find(|op| !gone.contains(&op.id));
        Some(next.map_or(CutPoint::End, |op| CutPoint::BeforeOp(op.id)))
    };
    if let CrashPlan::At { point, .. } = &plan.crash {
        let moved = next(*point).unwrap_or(*point);
        if let CrashPlan::At { point, .. } = &mut plan.crash {
            *point = moved;
        }
    }
}

/// The op a crash point is named by.
const fn owner(point: CutPoint) -> Option<OpId> {
    match point {
        CutPoint::Before(key) => Some(key.owner.0),
        CutPoint::BeforeOp(id) | CutPoint::AfterOp(id) => Some(id),
        CutPoint::End => None,
    }
}

/// Crash states no longer name these requests.
fn forget(plan: &mut Plan, which: impl Fn(IoKey) -> bool) -> bool {
    let mut changed = false;
    for state in states_mut(plan) {
        let less = match state {
            CutState::Drop(ios) | CutState::Keep(ios) => {
                let before = ios.len();
                ios.retain(|io| !which(*io));
                changed |= ios.len() < before;
                ios.is_empty()
            }
            CutState::Tear { io, .. } => which(*io),
            _ => false,
        };
        if less {
            changed = true;
            *state = if matches!(state, CutState::Keep(_)) { CutState::AllOld } else { CutState::AllNew };
        }
    }
    changed
}

/// Every crash state of the plan.
pub(super) fn states_mut(plan: &mut Plan) -> Vec<&mut CutState> {
    let mut states: Vec<&mut CutState> = plan
        .ops
        .iter_mut()
        .filter_map(|op| match &mut op.act {
            Act::Cut { state } => Some(state),
            _ => None,
        })
        .collect();
    if let CrashPlan::At { state, again, .. } = &mut plan.crash {
        states.push(state);
        if let Some(again) = again {
            states.push(&mut again.1);
        }
    }
    states
}
