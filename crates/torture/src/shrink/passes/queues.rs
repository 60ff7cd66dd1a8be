//! (d) Fewer queues, down to one.

use std::collections::{BTreeMap, BTreeSet};

use super::super::cost::barrier;
use super::super::search::{Edit, Search};
use super::change;
use crate::plan::Plan;

pub(super) fn run(search: &mut Search<'_>) {
    let queues: BTreeSet<u8> = search.best().ops.iter().filter(|op| !barrier(op)).map(|op| op.queue).collect();
    let mut edits: Vec<Edit> = vec![merge(queues.clone(), 0), change(dense)];
    for &from in queues.iter().rev() {
        edits.extend(queues.iter().filter(|&&to| to < from).map(|&to| merge(BTreeSet::from([from]), to)));
    }
    // Single requests.
    for op in search.best().ops.iter().filter(|op| op.queue > 0) {
        let id = op.id;
        edits.extend(queues.iter().filter(|&&to| to < op.queue).map(|&to| {
            change(move |plan| match plan.ops.iter_mut().find(|op| op.id == id) {
                Some(op) => std::mem::replace(&mut op.queue, to) != to && dense(plan) | true,
                None => false,
            })
        }));
    }
    search.sweep(&edits);
}

/// All requests of these queues go to that one.
fn merge(from: BTreeSet<u8>, to: u8) -> Edit {
    change(move |plan| {
        let mut changed = false;
        for op in plan.ops.iter_mut().filter(|op| from.contains(&op.queue)) {
            changed |= std::mem::replace(&mut op.queue, to) != to;
        }
        changed && dense(plan) | true
    })
}

/// Numbers queues from 0 on, in the order in which they are first used. Says whether that changed anything.
fn dense(plan: &mut Plan) -> bool {
    let mut names = BTreeMap::<u8, u8>::new();
    let mut changed = false;
    for op in &mut plan.ops {
        let next = u8::try_from(names.len()).unwrap_or(u8::MAX);
        // Reopens and power cuts are of no queue.
        let name = if barrier(op) { 0 } else { *names.entry(op.queue).or_insert(next) };
        changed |= std::mem::replace(&mut op.queue, name) != name;
    }
    changed
}
