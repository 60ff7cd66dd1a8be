//! (e) The plain order with the fewest holds, each until the earliest move that will do.

use blkproof_sim::{Hold, MoveKey, Owner, Step};

use super::super::cost::{move_rank, positions};
use super::super::element;
use super::super::search::{Edit, Search};
use super::change;
use super::delta::ddmin;
use crate::plan::Plan;

/// Requests below of one op that holds are tried until, unless they are known to have more.
const MOVES: u32 = 4;

pub(super) fn run(search: &mut Search<'_>) {
    ddmin(search, element::holds);
    for hold in search.best().schedule.holds.clone() {
        // The earliest that works is accepted first, and those after it are no improvement then: they cost nothing.
        let edits: Vec<Edit> = earlier(search.best(), hold).into_iter().map(|until| replace(hold, until)).collect();
        search.sweep(&edits);
    }
}

/// The moves before the one it is held until, in the order in which they may come.
fn earlier(plan: &Plan, hold: Hold) -> Vec<MoveKey> {
    let places = positions(plan);
    let rank = move_rank(&places, hold.until);
    let mut moves = Vec::new();
    for op in &plan.ops {
        let owner = Owner(op.id);
        let most = if owner == hold.until.owner { hold.until.nth } else { MOVES };
        let steps = [Step::Poll, Step::Effect, Step::Done];
        let keys = (1..=most).flat_map(|nth| steps.map(|step| MoveKey { owner, nth, step }));
        moves.extend(keys.filter(|key| *key != hold.what && move_rank(&places, *key) < rank));
    }
    moves
}

fn replace(hold: Hold, until: MoveKey) -> Edit {
    change(move |plan| match plan.schedule.holds.iter_mut().find(|one| **one == hold) {
        Some(one) => {
            one.until = until;
            true
        }
        None => false,
    })
}
