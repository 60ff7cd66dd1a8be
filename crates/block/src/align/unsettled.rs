//! What dropped requests left open: the ranges where something may still land.

use std::cell::{Cell, RefCell};

use crate::units::ByteRange;

/// More notes than this are folded into one that covers them all: more draining, no loss.
const NOTES_MAX: usize = 256;

/// Ranges where a dropped request may still land, until the device has been drained.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    notes: RefCell<Vec<Note>>,
    next: Cell<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Note {
    number: u64,
    range: ByteRange,
    /// It would write bytes its caller did not give.
    padded: bool,
}

impl Unsettled {
    /// Whether a request that is going to change `range` has to drain first.
    ///
    /// Of two requests that are not padded neither minds the other landing late.
    pub(super) fn concerns(&self, range: ByteRange, padded: bool) -> bool {
        self.notes.borrow().iter().any(|note| (note.padded || padded) && note.range.overlaps(range))
    }

    /// Everything noted so far; to be taken before draining.
    pub(super) fn mark(&self) -> u64 {
        self.next.get()
    }

    /// Forgets what was noted before `mark`, as the device has been drained since.
    pub(super) fn forget_until(&self, mark: u64) {
        self.notes.borrow_mut().retain(|note| note.number >= mark);
    }

    /// Watches over requests that change `range`.
    pub(super) fn watch(&self, range: ByteRange, padded: bool) -> Watch<'_> {
        Watch { unsettled: self, range, padded }
    }

    fn note(&self, range: ByteRange, padded: bool) {
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        let mut notes = self.notes.borrow_mut();
        notes.push(Note { number, range, padded });
        if notes.len() > NOTES_MAX {
            let fold = |all: Note, note: &Note| Note {
                // The newest number: a drain that began earlier does not settle all of it.
                number: all.number.max(note.number),
                range: ByteRange {
                    start: all.range.start.min(note.range.start),
                    end: all.range.end.max(note.range.end),
                },
                padded: all.padded || note.padded,
            };
            let all = notes.iter().fold(Note { number, range, padded }, fold);
            notes.clear();
            notes.push(all);
        }
    }
}

/// Notes what its requests leave open.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    unsettled: &'a Unsettled,
    range: ByteRange,
    padded: bool,
}

impl<'a> Watch<'a> {
    /// A request is about to be sent.
    pub(super) fn open(&self) -> Open<'a> {
        Open { unsettled: self.unsettled, range: self.range, padded: self.padded, answered: false }
    }
}

/// A request that has been sent. Dropped without [`close`](Self::close), it was cancelled, and is noted.
#[derive(Debug)]
pub(super) struct Open<'a> {
    unsettled: &'a Unsettled,
    range: ByteRange,
    padded: bool,
    answered: bool,
}

impl Open<'_> {
    /// The device has answered: the request will change nothing any more.
    pub(super) fn close(mut self) {
        self.answered = true;
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.unsettled.note(self.range, self.padded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange { start, end }
    }

    #[test]
    fn only_unanswered_requests_are_noted() {
        let unsettled = Unsettled::default();
        unsettled.watch(range(0, 8), true).open().close();
        assert!(!unsettled.concerns(range(0, 8), true));
        drop(unsettled.watch(range(0, 8), true).open());
        assert!(unsettled.concerns(range(7, 9), false));
        assert!(!unsettled.concerns(range(8, 9), true));
        let mark = unsettled.mark();
        drop(unsettled.watch(range(8, 16), false).open());
        unsettled.forget_until(mark);
        assert!(!unsettled.concerns(range(0, 8), true), "drained");
        assert!(unsettled.concerns(range(8, 9), true), "dropped after the drain was sent");
        assert!(!unsettled.concerns(range(8, 9), false), "neither is padded");
    }

    #[test]
    fn notes_are_bounded_and_nothing_is_forgotten() {
        let unsettled = Unsettled::default();
        for block in 0..10_000 {
            drop(unsettled.watch(range(block * 8, block * 8 + 8), block == 3).open());
            assert!(unsettled.notes.borrow().len() <= NOTES_MAX);
        }
        for block in 0..10_000 {
            assert!(unsettled.concerns(range(block * 8, block * 8 + 1), true), "block {block}");
        }
        unsettled.forget_until(unsettled.mark());
        assert!(unsettled.notes.borrow().is_empty());
    }
}
