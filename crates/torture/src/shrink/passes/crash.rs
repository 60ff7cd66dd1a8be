//! (b) Random crash states replaced by their named relatives, and crash points by plainer ones.

use blkproof_sim::IoKey;
use blkproof_sim::Owner;

use super::super::remove::states_mut;
use super::super::search::{Edit, Search};
use super::change;
use crate::plan::{Act, CrashPlan, CutPoint, CutState, Op, Plan};

/// Requests guessed of each op, if the judge does not know.
const GUESSES: u32 = 4;

pub(super) fn run(search: &mut Search<'_>) {
    points(search);
    let mut plan = search.best().clone();
    let states: Vec<CutState> = states_mut(&mut plan).iter().map(|state| (**state).clone()).collect();
    let plain = |state: &CutState| matches!(state, CutState::AllOld);
    if states.iter().all(plain) {
        return;
    }
    let mut edits: Vec<Edit> = Vec::new();
    for (index, state) in states.iter().enumerate().filter(|(_, state)| !plain(state)) {
        let ios = match state {
            CutState::Seed(_) | CutState::Number(_) => search.pending().unwrap_or_else(|| guess(&plan)),
            CutState::Drop(ios) | CutState::Keep(ios) => ios.clone(),
            CutState::Tear { io, .. } => vec![*io],
            CutState::AllOld | CutState::AllNew => Vec::new(),
        };
        // Passes do not change how many states there are, so that an index will do.
        edits.extend(relatives(&ios).into_iter().map(|relative| {
            change(move |plan| match states_mut(plan).into_iter().nth(index) {
                Some(state) => {
                    *state = relative.clone();
                    true
                }
                None => false,
            })
        }));
    }
    search.sweep(&edits);
}

/// In the order of CM 5.4: all-old, all-new, keep-one, drop-one, prefixes, tears of one block.
fn relatives(ios: &[IoKey]) -> Vec<CutState> {
    let mut list = vec![CutState::AllOld, CutState::AllNew];
    list.extend(ios.iter().map(|io| CutState::Keep(vec![*io])));
    list.extend(ios.iter().map(|io| CutState::Drop(vec![*io])));
    list.extend((2..ios.len()).map(|count| CutState::Keep(ios.iter().take(count).copied().collect())));
    let tear = |io: &IoKey| [true, false].map(|first| CutState::Tear { io: *io, first, blocks: 1 });
    list.extend(ios.iter().flat_map(tear));
    list
}

/// The first requests of whatever may write.
fn guess(plan: &Plan) -> Vec<IoKey> {
    let writes = |op: &&Op| !matches!(op.act, Act::Read { .. } | Act::Status { .. } | Act::Drain);
    let ios = |op: &Op| {
        let owner = Owner(op.id);
        (1..=GUESSES).map(move |nth| IoKey { owner, nth })
    };
    plan.ops.iter().filter(writes).flat_map(ios).collect()
}

/// At the end, after a request, before one.
fn points(search: &mut Search<'_>) {
    let CrashPlan::At { .. } = search.best().crash else { return };
    let ids: Vec<_> = search.best().ops.iter().map(|op| op.id).collect();
    let after = ids.iter().map(|&id| CutPoint::AfterOp(id));
    let before = ids.iter().map(|&id| CutPoint::BeforeOp(id));
    let points = std::iter::once(CutPoint::End).chain(after).chain(before);
    let edits: Vec<Edit> = points
        .map(|new| {
            change(move |plan| match &mut plan.crash {
                CrashPlan::At { point, .. } => std::mem::replace(point, new) != new,
                _ => false,
            })
        })
        .collect();
    search.sweep(&edits);
}
