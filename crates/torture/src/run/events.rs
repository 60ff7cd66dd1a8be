//! What happened in a run, event by event, for reports; kept only if somebody asks for it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use blkproof_block::Errno;
use blkproof_sim::{IoInfo, IoKey, MoveKey, Step};

use crate::plan::{CutPoint, CutState, FaultSpec, OpId};

/// What [`What::Begins`] says when the plan is done: nothing fails any more from here on.
pub(crate) const QUIET: &str = "faults stop; all is drained and read";

/// One thing that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// The move it happened in, from 1; 0 is before the first. Several events may share a move.
    pub at: u64,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// A client's request was sent to the driver.
    Sent(OpId),
    /// The client heard of its end, and whether it failed.
    Answered(OpId, Option<Errno>),
    /// The client dropped it.
    Dropped(OpId),
    /// The driver sent a request to the disk below.
    Below(IoInfo),
    /// It fails, or will; called by its name, whatever the plan calls it.
    Fault(FaultSpec),
    /// The data of a request below moved.
    Moved(IoKey),
    /// The driver heard of its end.
    Heard(IoKey),
    /// The power went.
    Cut {
        /// When.
        point: CutPoint,
        /// What was left.
        state: CutState,
        /// The requests below that this decides over, in the order of their effects.
        undecided: Vec<IoKey>,
    },
    /// A part of the run begins, in words: `opens the image`.
    Begins(&'static str),
}

/// Whoever has something to tell writes here.
#[derive(Debug, Default)]
pub(super) struct Log {
    on: Cell<bool>,
    now: Cell<u64>,
    events: RefCell<Vec<Event>>,
}

impl Log {
    pub(super) fn new(on: bool) -> Rc<Self> {
        Rc::new(Self { on: on.into(), ..Self::default() })
    }

    /// The move that is taken now.
    pub(super) fn set_now(&self, now: u64) {
        self.now.set(now);
    }

    /// Takes note, if somebody asked for that.
    pub(super) fn note(&self, what: impl FnOnce() -> What) {
        if self.on.get() {
            self.events.borrow_mut().push(Event { at: self.now.get(), what: what() });
        }
    }

    /// Takes note of what a move did for the disk.
    pub(super) fn moved(&self, key: MoveKey) {
        if let Some(io) = key.io() {
            self.note(|| if key.step == Step::Effect { What::Moved(io) } else { What::Heard(io) });
        }
    }

    /// Whether notes are taken; says what it was before.
    pub(super) fn switch(&self, on: bool) -> bool {
        self.on.replace(on)
    }

    pub(super) fn take(&self) -> Vec<Event> {
        self.events.take()
    }
}
