//! Sizes that the device may have (CM 4.12, 5.1): one more thing that requests change and that a power cut may lose.

use std::cmp::Reverse;

use blkproof_block::ByteRange;

use super::ops::{Ops, Time, What};
use crate::plan::OpId;

#[derive(Clone, Debug)]
pub(super) struct Sizes {
    /// Those with which this life began, in order, and when each was decided.
    first: Vec<(u64, Time)>,
    /// Resizes of this life, in order of submission.
    pub(super) resizes: Vec<OpId>,
    /// What the device said when nothing was under way, and when.
    pin: Option<(Time, u64)>,
}

impl Sizes {
    pub(super) fn new(size: u64) -> Self {
        Self { first: vec![(size, 0)], resizes: Vec::new(), pin: None }
    }

    /// Those allowed to an answer to a question asked at `start`, in order.
    pub(super) fn allowed(&self, ops: &Ops, start: Time) -> Vec<u64> {
        let done = self.resizes.iter().filter(|&&op| ops.at(op).succeeded() && ops.ended(op) < start);
        let floor = done.map(|&op| ops.at(op).submit).max();
        let since = self.pin.map_or(0, |(since, _)| since);
        let resizes = self
            .resizes
            .iter()
            .filter(|&&op| floor.is_none_or(|floor| ops.ended(op) >= floor) && ops.at(op).submit >= since);
        // A pin is what remains of all that came before.
        let replaced = floor.is_some_and(|floor| floor > since);
        let before = match self.pin {
            _ if replaced => Vec::new(),
            Some((_, size)) => vec![size],
            None => self.first.iter().map(|&(size, _)| size).collect(),
        };
        in_order(before.into_iter().chain(resizes.filter_map(|&op| target(ops, op))))
    }

    /// What a resize to `size` adds or cuts off, and whether that is certain.
    pub(super) fn changed_by(&self, ops: &Ops, now: Time, size: u64) -> (ByteRange, bool) {
        let before = self.allowed(ops, now);
        let all = before.iter().copied().chain([size]);
        let range = ByteRange { start: all.clone().min().unwrap_or(size), end: all.max().unwrap_or(size) };
        (range, before.len() == 1)
    }

    pub(super) fn pin(&mut self, ops: &Ops, now: Time, size: u64) {
        if self.resizes.iter().all(|&op| ops.ended(op) < now) {
            self.pin = Some((now, size));
        }
    }

    /// Leaves those that may be there after a power cut.
    pub(super) fn cut(&mut self, ops: &Ops) {
        let durable = |op: &&OpId| ops.stable(**op);
        let floor = self.resizes.iter().filter(durable).map(|&op| ops.at(op).submit).max();
        let first = self.first.iter().copied().filter(|_| floor.is_none());
        let resizes = self
            .resizes
            .iter()
            .filter(|&&op| floor.is_none_or(|floor| ops.ended(op) >= floor) && (ops.sent(op) || ops.stable(op)));
        let resizes = resizes.filter_map(|&op| Some((target(ops, op)?, ops.ended(op))));
        let mut all: Vec<_> = first.chain(resizes).collect();
        // Of one size, decided twice, the later decision: what was promised before it does not speak against it.
        all.sort_unstable_by_key(|&(size, since)| (size, Reverse(since)));
        all.dedup_by_key(|(size, _)| *size);
        // Whoever was promised data behind a size, after that size was decided, was promised another size.
        let outgrown = |size: u64, since: Time| {
            ops.all().any(|(op, record)| {
                let behind = record.range.end > size && record.submit > since;
                behind && !matches!(record.what, What::Resize { .. }) && ops.durable(op)
            })
        };
        let single = all.len() == 1;
        all.retain(|&(size, since)| single || !outgrown(size, since));
        self.first = all;
        self.resizes.clear();
        self.pin = None;
    }
}

fn target(ops: &Ops, op: OpId) -> Option<u64> {
    match ops.at(op).what {
        What::Resize { to, .. } => Some(to),
        _ => None,
    }
}

fn in_order(sizes: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut sizes: Vec<_> = sizes.collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}
