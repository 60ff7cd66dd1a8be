//! What leaves a full cache: which requests are written back although nobody flushed.
//!
//! # Invariant
//! - What is written back is in every later state. So it has to be a set that the profile lets survive without anything
//!   else in the cache: eviction takes states away, and adds none.
//!   - `ordered`: the first so many requests, by completion and by submission both, for a later state is a prefix of
//!     either order of what is left.
//!   - `request`: with a request that fills a block only in part also the older ones whose bytes its version of that
//!     block has: those bytes are written with it, and so must the rest of these requests be.
//!   - `block` and beyond: anything.

use std::collections::BTreeSet;

use blkproof_block::ByteRange;
use blkproof_block::choice::hash;

use super::config::{Profile, WriteBack};
use super::model::{ChangeId, Covered, Entry, Model, REQUEST_COST};

impl Model {
    /// Requests to be written back so that the cache holds at most `limit` bytes: chosen in that order, and whatever
    /// `profile` says goes with them. Profile `ordered` knows one order alone. None, if all that is left is open.
    pub fn evict(&mut self, limit: u64, order: WriteBack, seed: u64, profile: Profile) -> Covered {
        let mut excess = self.bytes().saturating_sub(limit);
        let mut chosen: Vec<(ChangeId, &Entry)> =
            self.entries.iter().filter(|(_, entry)| entry.is_over()).map(|(&id, entry)| (id, entry)).collect();
        let place = |entry: &Entry| entry.change.range.start;
        match order {
            _ if profile == Profile::Ordered => chosen.sort_by_key(|(_, entry)| entry.end_key()),
            WriteBack::Fifo => {}
            WriteBack::Lifo => chosen.reverse(),
            WriteBack::Elevator => chosen.sort_by_key(|(_, entry)| (place(entry) < self.head, place(entry))),
            WriteBack::Random => chosen.sort_by_key(|(id, _)| hash(seed ^ 0x6576_6963_7400, id.0)),
        }
        let (mut these, mut head) = (BTreeSet::new(), self.head);
        for (id, entry) in chosen {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(entry.change.data_len().saturating_add(REQUEST_COST));
            head = place(entry);
            these.insert(id);
        }
        self.head = head;
        match profile {
            Profile::Ordered => self.close_over_order(&mut these),
            Profile::Request => self.close_over_blocks(&mut these),
            _ => {}
        }
        if these.is_empty() { Covered::Nothing } else { Covered::These(these) }
    }

    /// Whether some request could be [evicted](Self::evict).
    pub fn can_evict(&self) -> bool {
        self.entries.values().any(Entry::is_over)
    }

    /// Adds what comes before any of them in either order. An open request that came earlier comes with all that has
    /// completed; it is written before its answer, as it may be.
    fn close_over_order(&self, these: &mut BTreeSet<ChangeId>) {
        let by_completion = self.by_completion();
        loop {
            let before = these.len();
            if let Some(&newest) = these.last() {
                these.extend(self.entries.range(..newest).map(|(&id, _)| id));
            }
            if let Some(last) = by_completion.iter().rposition(|id| these.contains(id)) {
                these.extend(by_completion.iter().take(last));
            }
            if these.len() == before {
                return;
            }
        }
    }

    /// Adds the older requests whose bytes are in the blocks that these fill in part.
    fn close_over_blocks(&self, these: &mut BTreeSet<ChangeId>) {
        let mut unseen: Vec<_> = these.iter().copied().collect();
        while let Some(id) = unseen.pop() {
            let Some(entry) = self.entries.get(&id) else { continue };
            let range = entry.change.range;
            let mask = self.block().saturating_sub(1);
            for edge in [range.start, range.end].into_iter().filter(|edge| edge & mask != 0) {
                for run in self.runs.over(ByteRange::at(edge & !mask, self.block())) {
                    let older = run.versions.iter().rev().skip_while(|change| change.id != id);
                    for change in older {
                        if these.insert(change.id) {
                            unseen.push(change.id);
                        }
                        if change.range.start <= run.range.start && run.range.end <= change.range.end {
                            break;
                        }
                    }
                }
            }
        }
    }
}

impl Entry {
    /// Whether nobody waits for it any more.
    fn is_over(&self) -> bool {
        self.completed.is_some() || self.dropped
    }
}
