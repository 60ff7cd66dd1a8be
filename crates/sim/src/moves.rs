//! What can move next.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use blkproof_block::choice::hash;

use crate::key::{IoKey, MoveKey, Owner, Step};

/// One thing that can happen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Move {
    pub(crate) key: MoveKey,
    pub(crate) what: What,
}

/// Where it happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    /// This task is polled.
    Poll(usize),
    /// This request of this disk moves.
    Disk { disk: usize, slot: usize },
}

/// What the executor and the disks of one simulation share.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// Oldest first.
    moves: RefCell<Vec<Move>>,
    /// Whose task is being polled.
    owner: Cell<Owner>,
    /// Polls and requests so far, by owner.
    counts: RefCell<Vec<(u32, u32)>>,
    /// Of everything that was decided and came back.
    digest: Cell<u64>,
    disks: Cell<usize>,
}

impl Board {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self::default())
    }

    pub(crate) fn set_owner(&self, owner: Owner) {
        self.owner.set(owner);
    }

    /// The number of one more disk.
    pub(crate) fn add_disk(&self) -> usize {
        self.disks.replace(self.disks.get().saturating_add(1))
    }

    /// The key of the next request of whoever is being polled.
    pub(crate) fn next_io(&self) -> IoKey {
        let owner = self.owner.get();
        IoKey { owner, nth: self.count(owner, |(_, ios)| ios) }
    }

    /// The key of the owner's next poll.
    pub(crate) fn next_poll(&self, owner: Owner) -> MoveKey {
        MoveKey { owner, nth: self.count(owner, |(polls, _)| polls), step: Step::Poll }
    }

    fn count(&self, owner: Owner, which: impl Fn(&mut (u32, u32)) -> &mut u32) -> u32 {
        let mut counts = self.counts.borrow_mut();
        let index = owner.0 as usize;
        if counts.len() <= index {
            counts.resize(index.saturating_add(1), (0, 0));
        }
        match counts.get_mut(index) {
            Some(counts) => {
                let count = which(counts);
                *count = count.saturating_add(1);
                *count
            }
            None => 0,
        }
    }

    pub(crate) fn push(&self, key: MoveKey, what: What) {
        self.moves.borrow_mut().push(Move { key, what });
    }

    /// Takes the move that `choose` picks out of those there are; `None` if there is none.
    pub(crate) fn take(&self, choose: impl FnOnce(&[Move]) -> usize) -> Option<Move> {
        let mut moves = self.moves.borrow_mut();
        if moves.is_empty() {
            return None;
        }
        let index = choose(&moves);
        let taken = moves.remove(index);
        drop(moves);
        self.note(taken.key.number());
        Some(taken)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.moves.borrow().is_empty()
    }

    /// Takes moves away.
    pub(crate) fn retract(&self, gone: impl Fn(&What) -> bool) {
        self.moves.borrow_mut().retain(|one| !gone(&one.what));
    }

    pub(crate) fn keys(&self) -> Vec<MoveKey> {
        self.moves.borrow().iter().map(|one| one.key).collect()
    }

    /// Mixes a number into the digest of the run.
    pub(crate) fn note(&self, number: u64) {
        self.digest.set(hash(self.digest.get(), number));
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest.get()
    }
}
