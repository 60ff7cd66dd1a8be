//! What happened to one unit, for reports.

use blkproof_block::ByteRange;

use super::ops::{Ending, NEVER};
use super::{Oracle, UNIT};
use crate::plan::{Act, OpId};

/// A request that touched a unit. Positions are those of one order of all events of the run, from 1.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// Its number.
    pub op: OpId,
    /// What it was.
    pub act: Act,
    /// When it was sent.
    pub submit: u64,
    /// When its end was seen, or it was settled by a drain or a power cut.
    pub ended: Option<u64>,
    /// How it ended; `None` if it is open, or was never answered.
    pub ending: Option<Ending>,
    /// When it was dropped.
    pub dropped: Option<u64>,
    /// The power cuts before it.
    pub life: u32,
    /// A power cut now must leave what it did, or something later (CM 4.6, 4.8).
    pub durable: bool,
}

impl Oracle {
    /// All requests that touched the 512-byte unit of this number, in the order in which they were sent; and those that
    /// touch no bytes but decide what is promised of them: flushes, drains, reopenings.
    pub fn history(&self, unit: u64) -> Vec<Event> {
        let unit = ByteRange::at(unit.saturating_mul(UNIT), UNIT);
        let mut events: Vec<_> = self
            .ops
            .all()
            .filter(|(_, record)| record.range.overlaps(unit) || record.range.is_empty())
            .filter_map(|(op, record)| {
                let known = |time: u64| (time != NEVER).then_some(time);
                Some(Event {
                    op,
                    act: record.act.clone()?,
                    submit: record.submit,
                    ended: known(self.ops.ended(op)),
                    ending: record.ending,
                    dropped: known(record.dropped),
                    life: record.life,
                    durable: self.ops.durable(op),
                })
            })
            .collect();
        events.sort_unstable_by_key(|event| event.submit);
        events
    }
}
