//! Which requests below fail (CM 6), and what of it has happened.

use std::collections::BTreeMap;

use blkproof_block::choice::hash;
use blkproof_block::{Errno, IoError, RuleId};
use blkproof_sim::{Fault, FaultDone, IoInfo, IoKind, Owner};

use crate::plan::{FaultAt, FaultSpec, Faults, RandomFaults};

/// Streams of decisions under one seed.
mod stream {
    pub(super) const FAILS: u64 = 0x6661_696c;
    pub(super) const HOW: u64 = 0x686f_7700;
}

/// The faults of a plan at work.
#[derive(Debug, Default)]
pub(crate) struct Failing {
    plan: Faults,
    /// Those of a lasting fault that has begun.
    lasting: Vec<(IoKind, FaultSpec)>,
    fired: Vec<FaultSpec>,
    sent: u64,
    by_kind: BTreeMap<IoKind, u64>,
    /// Nothing fails any more.
    quiet: bool,
    /// The image is being opened or closed.
    opening: bool,
}

impl Failing {
    pub(crate) fn new(plan: &Faults) -> Self {
        Self { plan: plan.clone(), ..Self::default() }
    }

    /// How many requests have failed so far.
    pub(crate) fn count(&self) -> usize {
        self.fired.len()
    }

    /// How many requests were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Those that have failed, by name.
    pub(crate) fn fired(&self) -> &[FaultSpec] {
        &self.fired
    }

    /// Whether faults have stopped.
    pub(crate) fn set_quiet(&mut self, quiet: bool) {
        self.quiet = quiet;
    }

    pub(crate) fn set_opening(&mut self, opening: bool) {
        self.opening = opening;
    }

    /// The image is opened anew: what lasted has ended.
    pub(crate) fn lift(&mut self) {
        self.lasting.clear();
    }

    /// A request is sent: whether it fails, and what that fault is called by its name.
    pub(crate) fn judge(&mut self, info: &IoInfo) -> Option<(FaultSpec, Fault)> {
        self.sent = self.sent.saturating_add(1);
        let of_kind = self.by_kind.entry(info.kind).or_default();
        *of_kind = of_kind.saturating_add(1);
        let (sent, of_kind) = (self.sent, *of_kind);
        if self.quiet || matches!(info.kind, IoKind::Status | IoKind::Drain) {
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
            self.lasting.push((info.kind, spec.clone()));
        }
        let lasting = || self.lasting.iter().find(|(kind, _)| *kind == info.kind).map(|(_, spec)| spec.clone());
        let spec = named.cloned().or_else(lasting).or_else(|| self.at_random(&self.plan.random, info))?;
        // By name from now on, whatever it was called by.
        let named = FaultSpec { at: FaultAt::Io(info.key), lasting: false, ..spec };
        self.fired.push(named.clone());
        let mut error = IoError::new(spec.errno);
        error.injected_by = Some(RuleId(info.key.to_string().into()));
        Some((named, Fault { immediate: spec.immediate, done: spec.done, error }))
    }

    fn at_random(&self, random: &RandomFaults, info: &IoInfo) -> Option<FaultSpec> {
        let name = info.key.number();
        let draw = |stream: u64| hash(hash(random.seed, stream), name);
        if random.rate == 0 || draw(stream::FAILS) % 1000 >= u64::from(random.rate) {
            return None;
        }
        if random.spare_open && (self.opening || info.key.owner == Owner::default()) {
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
