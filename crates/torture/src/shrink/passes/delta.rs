//! (c) Delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002): everything at
//! once, then halves, then quarters, … each time going on with what is left.

use super::super::element::{self, Element};
use super::super::remove::Referrers;
use super::super::search::{Edit, Search};
use super::removal;
use crate::plan::Plan;

pub(super) fn run(search: &mut Search<'_>) {
    groups(search, element::lives);
    groups(search, element::queues);
    ddmin(search, element::ops);
    ddmin(search, element::faults);
    ddmin(search, element::holds);
    ddmin(search, element::drops);
    ddmin(search, element::events);
    ddmin(search, element::waits);
    ddmin(search, element::survivors);
    ddmin(search, element::image);
}

/// Whole lives and whole queues.
fn groups(search: &mut Search<'_>, list: impl Fn(&Plan) -> Vec<Vec<Element>>) {
    let groups = list(search.best());
    if groups.len() > 1 {
        let edits: Vec<Edit> = groups.into_iter().map(|group| removal(group, Referrers::Bridge)).collect();
        search.sweep(&edits);
    }
}

/// Removes what it can of a list, in ever smaller pieces.
pub(super) fn ddmin(search: &mut Search<'_>, list: impl Fn(&Plan) -> Vec<Element>) {
    let mut piece = list(search.best()).len();
    while piece > 0 {
        let elements = list(search.best());
        let edits: Vec<Edit> = elements.chunks(piece).map(|piece| removal(piece.to_vec(), Referrers::Bridge)).collect();
        search.sweep(&edits);
        piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
    }
}
