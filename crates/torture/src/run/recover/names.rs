//! States of a power cut by the names that plans use, and back.

use std::collections::BTreeSet;

use blkproof_fault::disk::StateName;
use blkproof_fault::disk::model::ChangeId;
use blkproof_fault::disk::name::Order;
use blkproof_sim::IoKey;
use blkproof_sim::disk::{Content, Crash};

use crate::plan::CutState;

/// The disk in a state that a plan names.
pub(in crate::run) fn content_of(crash: &Crash, state: &CutState) -> Result<Content, String> {
    crash.content(&name_of(crash, state)?).map_err(|error| error.to_string())
}

pub(super) fn name_of(crash: &Crash, state: &CutState) -> Result<StateName, String> {
    let change = |io: &IoKey| {
        let there = || crash.ios().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        crash
            .change(*io)
            .ok_or_else(|| format!("request {io} is not among those that this cut decides over: {}", there()))
    };
    let all = |ios: &[IoKey]| ios.iter().map(change).collect::<Result<BTreeSet<_>, String>>();
    Ok(match state {
        CutState::AllOld => StateName::AllOld,
        CutState::AllNew => StateName::AllNew,
        CutState::Drop(ios) => StateName::Drop(all(ios)?),
        CutState::Keep(ios) => kept(crash, ios, all(ios)?),
        CutState::Tear { io, first, blocks } => StateName::Tear { id: change(io)?, first: *first, blocks: *blocks },
        CutState::Seed(seed) => StateName::Seed(*seed),
        CutState::Number(number) => StateName::Number(*number),
    })
}

/// The state in which these survive. A disk that keeps an order has it by another name, since they are the first in one.
fn kept(crash: &Crash, ios: &[IoKey], changes: BTreeSet<ChangeId>) -> StateName {
    let (keep, wanted) = (StateName::Keep(changes), ios.iter().collect::<BTreeSet<_>>());
    let orders = [(Order::Completion, crash.completed()), (Order::Submission, crash.ios())];
    let first = |all: &[IoKey]| all.iter().take(wanted.len()).collect::<BTreeSet<_>>() == wanted;
    let mut prefixes =
        orders.iter().filter(|(_, all)| first(all)).map(|(order, _)| StateName::Prefix(*order, wanted.len() as u64));
    let is_a_state = |name: &StateName| crash.state(name).is_ok();
    if is_a_state(&keep) { keep } else { prefixes.find(is_a_state).unwrap_or(keep) }
}

/// A state by the names that plans use.
pub(super) fn cut_state(crash: &Crash, name: &StateName) -> CutState {
    let io = |id| crash.io(id).unwrap_or(IoKey { owner: blkproof_sim::Owner(0), nth: 0 });
    match name {
        StateName::AllOld => CutState::AllOld,
        StateName::AllNew => CutState::AllNew,
        StateName::Drop(ids) => CutState::Drop(ids.iter().map(|id| io(*id)).collect()),
        StateName::Keep(ids) => CutState::Keep(ids.iter().map(|id| io(*id)).collect()),
        StateName::Prefix(order, count) => {
            let ios = crash.ios();
            let count = usize::try_from(*count).unwrap_or(usize::MAX);
            match order {
                Order::Submission => CutState::Keep(ios.into_iter().take(count).collect()),
                Order::Completion => CutState::Keep(crash.completed().into_iter().take(count).collect()),
            }
        }
        StateName::Tear { id, first, blocks } => CutState::Tear { io: io(*id), first: *first, blocks: *blocks },
        StateName::Shear { id, .. } => CutState::Tear { io: io(*id), first: true, blocks: 0 },
        StateName::Number(number) => CutState::Number(*number),
        StateName::Seed(seed) => CutState::Seed(*seed),
    }
}
