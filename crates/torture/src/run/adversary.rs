//! Which requests below fail, and what of it has to be excused (CM 6).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use blkproof_block::choice::hash;
use blkproof_block::{Errno, IoError, RuleId};
use blkproof_sim::disk::Adversary;
use blkproof_sim::{Fault, FaultDone, IoInfo, IoKind, Owner};

use super::events::{Log, What};
use crate::plan::{FaultAt, FaultSpec, Faults, RandomFaults};

/// Streams of decisions under one seed.
mod stream {
    pub(super) const FAILS: u64 = 0x6661_696c;
    pub(super) const HOW: u64 = 0x686f_7700;
}

/// The faults of a plan at work; shared by the disk and whoever judges.
#[derive(Debug, Default)]
pub(super) struct Damage {
    plan: Faults,
    /// Those of a lasting fault that has begun.
    lasting: RefCell<Vec<(IoKind, FaultSpec)>>,
    fired: RefCell<Vec<FaultSpec>>,
    sent: Cell<u64>,
    by_kind: RefCell<BTreeMap<IoKind, u64>>,
    /// Something was sent since this was last asked.
    reached: Cell<bool>,
    /// Nothing fails any more.
    quiet: Cell<bool>,
    /// The image is being opened or closed.
    opening: Cell<bool>,
    log: Rc<Log>,
}

impl Damage {
    pub(super) fn new(plan: &Faults, log: Rc<Log>) -> Rc<Self> {
        Rc::new(Self { plan: plan.clone(), log, ..Self::default() })
    }

    /// How many requests have failed so far.
    pub(super) fn count(&self) -> usize {
        self.fired.borrow().len()
    }

    /// How many requests were sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Whether any request was sent since this was last asked.
    pub(super) fn take_reached(&self) -> bool {
        self.reached.take()
    }

    /// Those that have failed, by name.
    pub(super) fn fired(&self) -> Vec<FaultSpec> {
        self.fired.borrow().clone()
    }

    /// Whether faults have stopped.
    pub(super) fn set_quiet(&self, quiet: bool) {
        self.quiet.set(quiet);
    }

    pub(super) fn set_opening(&self, opening: bool) {
        self.opening.set(opening);
    }

    /// The image is opened anew: what lasted has ended.
    pub(super) fn lift(&self) {
        self.lasting.borrow_mut().clear();
    }

    /// What the disk asks.
    pub(super) fn adversary(self: &Rc<Self>) -> Adversary {
        let damage = Rc::clone(self);
        Box::new(move |info| damage.judge(info))
    }

    fn judge(&self, info: &IoInfo) -> Option<Fault> {
        let sent = self.sent.get().saturating_add(1);
        self.sent.set(sent);
        self.reached.set(true);
        self.log.note(|| What::Below(info.clone()));
        let of_kind = {
            let mut kinds = self.by_kind.borrow_mut();
            let count = kinds.entry(info.kind).or_default();
            *count = count.saturating_add(1);
            *count
        };
        if self.quiet.get() || matches!(info.kind, IoKind::Status | IoKind::Drain) {
            return None;
        }
        let named = self.plan.named.iter().find(|spec| match spec.at {
            FaultAt::Io(key) => key == info.key,
            FaultAt::Nth(nth) => nth == sent,
            FaultAt::NthOf(kind, nth) => kind == info.kind && nth == of_kind,
        });
        if let Some(spec) = named
            && spec.lasting
        {
            self.lasting.borrow_mut().push((info.kind, spec.clone()));
        }
        let lasting =
            || self.lasting.borrow().iter().find(|(kind, _)| *kind == info.kind).map(|(_, spec)| spec.clone());
        let spec = named.cloned().or_else(lasting).or_else(|| self.at_random(&self.plan.random, info))?;
        // By name from now on, whatever it was called by.
        let named = FaultSpec { at: FaultAt::Io(info.key), lasting: false, ..spec.clone() };
        self.log.note(|| What::Fault(named.clone()));
        self.fired.borrow_mut().push(named);
        let mut error = IoError::new(spec.errno);
        error.injected_by = Some(RuleId(info.key.to_string().into()));
        Some(Fault { immediate: spec.immediate, done: spec.done, error })
    }

    fn at_random(&self, random: &RandomFaults, info: &IoInfo) -> Option<FaultSpec> {
        let name = info.key.number();
        let draw = |stream: u64| hash(hash(random.seed, stream), name);
        if random.rate == 0 || draw(stream::FAILS) % 1000 >= u64::from(random.rate) {
            return None;
        }
        if random.spare_open && (self.opening.get() || info.key.owner == Owner::default()) {
            return None;
        }
        let how = draw(stream::HOW);
        let immediate = how % 1000 < u64::from(random.immediate);
        let partial = (how >> 10) % 1000 < u64::from(random.partial);
        let sectors = info.range.len().div_ceil(512).max(1);
        let cut = (how >> 24) % sectors * 512;
        let done = match (immediate, info.kind) {
            (false, IoKind::Write | IoKind::Zeroes) if partial => match (how >> 20) & 3 {
                0 => FaultDone::All,
                1 => FaultDone::From(cut),
                _ => FaultDone::First(cut),
            },
            _ => FaultDone::Nothing,
        };
        let full = matches!(info.kind, IoKind::Write | IoKind::Zeroes | IoKind::Resize) && (how >> 22) & 3 == 0;
        let errno = if full { Errno::NOSPC } else { Errno::IO };
        Some(FaultSpec { at: FaultAt::Io(info.key), lasting: false, immediate, done, errno })
    }
}
