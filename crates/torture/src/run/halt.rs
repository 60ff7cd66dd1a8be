//! Ending a run before its end, for a clock or a person who will not wait.
//!
//! # Invariants
//! - Once it was heard, it stays so: everything unwinds to the end of the run, however often somebody asks on the way.
//! - A run that heard it has no outcome ([`run_until`](super::run_until)): half of a run is not judged.

use std::cell::Cell;

/// Moves between two questions. A move takes about a microsecond, and asking reads a clock.
const MOVES: u32 = 256;

/// Whether somebody wants a run to end.
pub(super) struct Halt<'a> {
    asked: &'a dyn Fn() -> bool,
    heard: Cell<bool>,
    /// Moves until it is asked again.
    left: Cell<u32>,
}

impl std::fmt::Debug for Halt<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Halt").field("heard", &self.heard).finish_non_exhaustive()
    }
}

impl<'a> Halt<'a> {
    pub(super) fn new(asked: &'a dyn Fn() -> bool) -> Self {
        Self { asked, heard: Cell::new(false), left: Cell::new(MOVES) }
    }

    /// Whether it was heard already.
    pub(super) fn heard(&self) -> bool {
        self.heard.get()
    }

    /// After a move: asks now and then.
    pub(super) fn moved(&self) -> bool {
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => {
                self.left.set(MOVES);
                return self.ask();
            }
        }
        self.heard()
    }

    /// Before something that takes as long as many moves: asks at once.
    pub(super) fn ask(&self) -> bool {
        if !self.heard.get() && (self.asked)() {
            self.heard.set(true);
        }
        self.heard.get()
    }
}
