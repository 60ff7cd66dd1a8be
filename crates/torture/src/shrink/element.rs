//! What a plan consists of and can do without.

use blkproof_sim::{Hold, IoKey, Strategy};

use super::cost::barrier;
use crate::plan::{Act, CrashPlan, CutState, FaultSpec, OpId, Plan};

/// One thing that can be removed, named so that it is found again after others were.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Element {
    Op(OpId),
    Fault(FaultSpec),
    Hold(Hold),
    /// The op is not dropped.
    Drop(OpId),
    /// The first does not wait for the second.
    After(OpId, OpId),
    /// One of the requests by which crash states are named.
    Survivor(IoKey),
    Crash,
    /// The power cut during the recovery.
    Again,
    RandomFaults,
    Strategy,
    Base,
    Option(String),
}

/// The plan's ops.
pub(super) fn ops(plan: &Plan) -> Vec<Element> {
    plan.ops.iter().map(|op| Element::Op(op.id)).collect()
}

/// The ops between one reopen or power cut and the next, with that one.
pub(super) fn lives(plan: &Plan) -> Vec<Vec<Element>> {
    plan.ops.split_inclusive(barrier).map(|life| life.iter().map(|op| Element::Op(op.id)).collect()).collect()
}

/// The ops of each queue.
pub(super) fn queues(plan: &Plan) -> Vec<Vec<Element>> {
    let mut queues = std::collections::BTreeMap::<u8, Vec<Element>>::new();
    for op in plan.ops.iter().filter(|op| !barrier(op)) {
        queues.entry(op.queue).or_default().push(Element::Op(op.id));
    }
    queues.into_values().collect()
}

pub(super) fn faults(plan: &Plan) -> Vec<Element> {
    plan.faults.named.iter().cloned().map(Element::Fault).collect()
}

pub(super) fn holds(plan: &Plan) -> Vec<Element> {
    plan.schedule.holds.iter().copied().map(Element::Hold).collect()
}

pub(super) fn drops(plan: &Plan) -> Vec<Element> {
    plan.ops.iter().filter(|op| op.drop_at.is_some()).map(|op| Element::Drop(op.id)).collect()
}

pub(super) fn waits(plan: &Plan) -> Vec<Element> {
    plan.ops.iter().flat_map(|op| op.after.iter().map(|&after| Element::After(op.id, after))).collect()
}

/// The power cut, and what is left to chance.
pub(super) fn events(plan: &Plan) -> Vec<Element> {
    let mut list = Vec::new();
    match &plan.crash {
        CrashPlan::None => (),
        CrashPlan::At { again: Some(_), .. } => list.extend([Element::Crash, Element::Again]),
        CrashPlan::At { .. } | CrashPlan::Explore { .. } => list.push(Element::Crash),
    }
    if plan.faults.random.rate > 0 {
        list.push(Element::RandomFaults);
    }
    if plan.schedule.strategy != Strategy::Fifo {
        list.push(Element::Strategy);
    }
    list
}

/// The requests by which crash states are named, each once.
pub(super) fn survivors(plan: &Plan) -> Vec<Element> {
    let mut ios = std::collections::BTreeSet::new();
    for_states(plan, &mut |state| {
        if let CutState::Drop(list) | CutState::Keep(list) = state {
            ios.extend(list.iter().copied());
        }
    });
    ios.into_iter().map(Element::Survivor).collect()
}

fn for_states(plan: &Plan, visit: &mut dyn FnMut(&CutState)) {
    for op in &plan.ops {
        if let Act::Cut { state } = &op.act {
            visit(state);
        }
    }
    if let CrashPlan::At { state, again, .. } = &plan.crash {
        visit(state);
        if let Some(again) = again {
            visit(&again.1);
        }
    }
}

/// The base image and the target's options.
pub(super) fn image(plan: &Plan) -> Vec<Element> {
    let options = plan.target.options.iter().map(|(name, _)| Element::Option(name.clone()));
    plan.target.base.iter().map(|_| Element::Base).chain(options).collect()
}

/// Everything.
pub(super) fn all(plan: &Plan) -> Vec<Element> {
    [ops, faults, holds, drops, events, waits, survivors, image].iter().flat_map(|list| list(plan)).collect()
}
