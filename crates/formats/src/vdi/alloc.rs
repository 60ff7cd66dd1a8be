//! Who owns which block of the file.
//!
//! A block index is *used* from its reservation until it is released. A [`Reservation`] owns it while data is written;
//! then either the map takes it over ([`Reservation::keep`]) or it is given back:
//!
//! - nothing of ours is in flight to it: it is free at once;
//! - a write to it was dropped and may still land: it is *quarantined* until a drain;
//! - the disk may still name it (a map entry moved away, or a header that may have landed): it is *retired* until a
//!   commit has succeeded.
//!
//! The smallest free index is taken first: programs that allocate at `blocks_allocated`, as QEMU does, need indices
//! without gaps, and so gaps are closed before the file grows. Indices stay below the number of blocks in the image:
//! there are as many indices as guest blocks, and a guest block owns at most one reservation or mapping, so one that is
//! not free can only be quarantined or retired.

use std::cell::RefCell;

use super::bits::Bits;
use super::bmap::HostBlock;

#[derive(Debug, Default)]
pub(super) struct Allocator {
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    used: Bits,
    /// No index below this one is free.
    hint: u32,
    /// Blocks in the image.
    limit: u32,
    quarantine: Vec<u32>,
    retired: Vec<u32>,
    /// Retired indices that a running commit will free or put back.
    in_commit: usize,
}

impl State {
    fn release(&mut self, index: u32) {
        self.used.remove(index);
        self.hint = self.hint.min(index);
    }
}

impl Allocator {
    pub(super) fn new(used: Bits, limit: u32) -> Self {
        Self { state: RefCell::new(State { used, limit, ..State::default() }) }
    }

    /// Takes the smallest free index; `None` if all are in use, quarantined or retired.
    pub(super) fn reserve(&self) -> Option<Reservation<'_>> {
        let index = {
            let mut state = self.state.borrow_mut();
            let index = state.used.first_missing(state.hint);
            state.hint = index;
            if index >= state.limit {
                return None;
            }
            let limit = state.limit;
            state.used.insert(index, limit);
            index
        };
        Some(Reservation::new(self, index))
    }

    /// Takes `index` if it is free.
    pub(super) fn reserve_exactly(&self, index: u32) -> Option<Reservation<'_>> {
        let mut state = self.state.borrow_mut();
        if state.used.contains(index) {
            return None;
        }
        let limit = state.limit;
        state.used.insert(index, limit);
        Some(Reservation::new(self, index))
    }

    /// Takes the index behind all that are in use, at least `from`. It may exceed the limit.
    pub(super) fn reserve_at_end(&self, from: u32) -> Option<Reservation<'_>> {
        let index = self.end().max(from);
        // The two largest numbers mean "unallocated" in the map.
        if index >= u32::MAX - 1 { None } else { self.reserve_exactly(index) }
    }

    /// One more than the largest index in use, in whatever way.
    pub(super) fn end(&self) -> u32 {
        self.state.borrow().used.end()
    }

    pub(super) fn set_limit(&self, limit: u32) {
        self.state.borrow_mut().limit = limit;
    }

    /// The disk may name `block` until the next commit.
    pub(super) fn retire(&self, block: HostBlock) {
        self.state.borrow_mut().retired.push(block.0);
    }

    /// Takes the list of retired indices; they stay used.
    pub(super) fn take_retired(&self) -> Vec<u32> {
        let mut state = self.state.borrow_mut();
        state.in_commit = state.retired.len();
        std::mem::take(&mut state.retired)
    }

    /// Puts back what [`take_retired`](Self::take_retired) took, or makes it free if the disk has forgotten it.
    pub(super) fn end_retirement(&self, indices: Vec<u32>, forgotten: bool) {
        let mut state = self.state.borrow_mut();
        state.in_commit = 0;
        match forgotten {
            true => indices.into_iter().for_each(|index| state.release(index)),
            false => state.retired.extend(indices),
        }
    }

    /// Whether a commit, a running one included, may free indices.
    pub(super) fn has_retired(&self) -> bool {
        let state = self.state.borrow();
        state.in_commit > 0 || !state.retired.is_empty()
    }

    /// How many indices await a drain. Later ones are added behind them.
    pub(super) fn quarantined(&self) -> usize {
        self.state.borrow().quarantine.len()
    }

    /// Frees the first `count` quarantined indices: a drain that began after they were dropped has returned.
    pub(super) fn end_quarantine(&self, count: usize) {
        let mut state = self.state.borrow_mut();
        let count = count.min(state.quarantine.len());
        let indices: Vec<u32> = state.quarantine.drain(..count).collect();
        indices.into_iter().for_each(|index| state.release(index));
    }

    /// The data begins `by` blocks later: every index is less by as much, the first ones are gone.
    pub(super) fn rebase(&self, by: u32, limit: u32) {
        let mut state = self.state.borrow_mut();
        state.used = state.used.rebase(by, limit);
        state.limit = limit;
        state.hint = 0;
    }
}

/// What becomes of a reserved index that is not kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Free,
    Quarantine,
    Retire,
    Keep,
}

/// A block index that belongs to one request. Dropping it gives it back.
#[derive(Debug)]
#[must_use = "dropping the reservation gives the block back"]
pub(super) struct Reservation<'a> {
    allocator: &'a Allocator,
    index: u32,
    fate: Fate,
}

impl<'a> Reservation<'a> {
    fn new(allocator: &'a Allocator, index: u32) -> Self {
        Self { allocator, index, fate: Fate::Free }
    }

    pub(super) fn block(&self) -> HostBlock {
        HostBlock(self.index)
    }

    /// Runs a write to the block. Dropped inside, it may land late, so the block goes into quarantine.
    pub(super) async fn sending<T>(&mut self, write: impl Future<Output = T>) -> T {
        let before = std::mem::replace(&mut self.fate, Fate::Quarantine);
        let result = write.await;
        self.fate = before;
        result
    }

    /// From here on the disk may name what lies in this block, until a commit says otherwise.
    pub(super) fn retire_if_dropped(&mut self) {
        self.fate = Fate::Retire;
    }

    /// The map owns the block now.
    pub(super) fn keep(mut self) {
        self.fate = Fate::Keep;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut state = self.allocator.state.borrow_mut();
        match self.fate {
            Fate::Free => state.release(self.index),
            Fate::Quarantine => state.quarantine.push(self.index),
            Fate::Retire => state.retired.push(self.index),
            Fate::Keep => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn index(reservation: &Option<Reservation<'_>>) -> Option<u32> {
        reservation.as_ref().map(|reservation| reservation.block().0)
    }

    #[test]
    fn gaps_are_filled_before_the_file_grows() {
        let mut used = Bits::default();
        for index in [0, 2] {
            used.insert(index, 4);
        }
        let allocator = Allocator::new(used, 4);
        let (first, second) = (allocator.reserve(), allocator.reserve());
        assert_eq!((index(&first), index(&second), allocator.end()), (Some(1), Some(3), 4));
        assert_eq!(index(&allocator.reserve()), None);
        drop(second);
        assert_eq!(allocator.end(), 3, "a failed allocation leaves no gap");
        first.unwrap().keep();
        assert_eq!(index(&allocator.reserve()), Some(3));
    }

    #[test]
    fn a_dropped_write_keeps_its_block_until_a_drain() {
        let allocator = Allocator::new(Bits::default(), 2);
        {
            let mut reservation = allocator.reserve().unwrap();
            let mut write = pin!(reservation.sending(std::future::pending::<()>()));
            assert!(matches!(write.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
        }
        assert_eq!(index(&allocator.reserve()), Some(1));
        assert_eq!(allocator.quarantined(), 1);
        allocator.end_quarantine(1);
        assert_eq!(index(&allocator.reserve()), Some(0));
    }
}
