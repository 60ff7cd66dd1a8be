//! Which requests of the plan may be sent.

use std::collections::BTreeMap;

use crate::plan::{Act, Op};

/// The requests of each queue, one after the other, and the reopenings and power cuts that all of them wait for.
///
/// Only the first of a queue that has not ended can be on its way or be sent, so that a look at all of them costs as many
/// steps as there are queues, however long the plan is.
#[derive(Debug)]
pub(super) struct Queues {
    /// By number of queue: indices into the plan, and how many of them have ended.
    queues: BTreeMap<u8, (Vec<usize>, usize)>,
    /// Indices of what is of no queue.
    barriers: Vec<usize>,
    passed: usize,
    /// Something has ended since this was last asked.
    changed: bool,
}

impl Queues {
    pub(super) fn new(ops: &[Op]) -> Self {
        let mut new = Self { queues: BTreeMap::new(), barriers: Vec::new(), passed: 0, changed: true };
        for (index, op) in ops.iter().enumerate() {
            match op.act {
                Act::Reopen | Act::Cut { .. } => new.barriers.push(index),
                _ => new.queues.entry(op.queue).or_default().0.push(index),
            }
        }
        new
    }

    /// A request has ended, or what all wait for is over.
    pub(super) fn ended(&mut self, index: usize, op: &Op) {
        self.changed = true;
        if matches!(op.act, Act::Reopen | Act::Cut { .. }) {
            self.passed = self.passed.saturating_add(1);
        } else if let Some((_, done)) = self.queues.get_mut(&op.queue) {
            debug_assert!(self.barriers.get(self.passed).is_none_or(|&barrier| index < barrier));
            *done = done.saturating_add(1);
        }
    }

    /// The first of each queue, in the order of the plan, if anything has ended since this was last asked.
    pub(super) fn heads(&mut self) -> Vec<usize> {
        if !std::mem::take(&mut self.changed) {
            return Vec::new();
        }
        let barrier = self.barriers.get(self.passed).copied().unwrap_or(usize::MAX);
        let heads = self.queues.values().filter_map(|(ops, done)| ops.get(*done).copied());
        let mut heads: Vec<_> = heads.filter(|&index| index < barrier).collect();
        heads.sort_unstable();
        heads
    }

    /// What all wait for, if it is its turn: nothing that comes before it is left.
    pub(super) fn barrier(&self) -> Option<usize> {
        let barrier = self.barriers.get(self.passed).copied()?;
        let left = |(ops, done): &(Vec<usize>, usize)| ops.get(*done).is_some_and(|&index| index < barrier);
        (!self.queues.values().any(left)).then_some(barrier)
    }

    /// Whether everything has ended.
    pub(super) fn done(&self) -> bool {
        self.passed >= self.barriers.len() && self.queues.values().all(|(ops, done)| *done >= ops.len())
    }
}
