//! The disk's adversary in a run on one thread: faults, and what is noted of them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use blkproof_sim::disk::Adversary;
use blkproof_sim::{Fault, IoInfo};

use super::events::{Log, What};
use super::failing::Failing;
use crate::plan::{FaultSpec, Faults};

/// The faults of a plan at work; shared by the disk and whoever judges.
#[derive(Debug, Default)]
pub(super) struct Damage {
    failing: RefCell<Failing>,
    /// Something was sent since this was last asked.
    reached: Cell<bool>,
    log: Rc<Log>,
}

impl Damage {
    pub(super) fn new(plan: &Faults, log: Rc<Log>) -> Rc<Self> {
        Rc::new(Self { failing: Failing::new(plan).into(), log, ..Self::default() })
    }

    /// How many requests have failed so far.
    pub(super) fn count(&self) -> usize {
        self.failing.borrow().count()
    }

    /// How many requests were sent.
    pub(super) fn sent(&self) -> u64 {
        self.failing.borrow().sent()
    }

    /// Whether any request was sent since this was last asked.
    pub(super) fn take_reached(&self) -> bool {
        self.reached.take()
    }

    /// Those that have failed, by name.
    pub(super) fn fired(&self) -> Vec<FaultSpec> {
        self.failing.borrow().fired().to_vec()
    }

    /// Whether faults have stopped.
    pub(super) fn set_quiet(&self, quiet: bool) {
        self.failing.borrow_mut().set_quiet(quiet);
    }

    pub(super) fn set_opening(&self, opening: bool) {
        self.failing.borrow_mut().set_opening(opening);
    }

    /// The image is opened anew: what lasted has ended.
    pub(super) fn lift(&self) {
        self.failing.borrow_mut().lift();
    }

    /// What the disk asks.
    pub(super) fn adversary(self: &Rc<Self>) -> Adversary {
        let damage = Rc::clone(self);
        Box::new(move |info| damage.judge(info))
    }

    fn judge(&self, info: &IoInfo) -> Option<Fault> {
        self.reached.set(true);
        self.log.note(|| What::Below(info.clone()));
        let (named, fault) = self.failing.borrow_mut().judge(info)?;
        self.log.note(|| What::Fault(named));
        Some(fault)
    }
}
