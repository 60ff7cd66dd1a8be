//! The engine: rules in, decisions out. Pure: time comes as an argument, randomness from the seed, data is the caller's.
//!
//! # Use
//! For each request [`concerns`](Engine::concerns) is asked first: one branch where no rule is, a binary search where
//! rules are elsewhere. Only then [`submit`](Engine::submit) says what is to be done, and whoever does it reports back
//! with [`complete`](Engine::complete). A read that succeeded gets its damage from [`damaged`](Engine::damaged).
//! Announced events go to [`event`](Engine::event).
//!
//! # Order
//! Rules are examined in their order; those that decide end the examination. All of them see the state as it was
//! before; of several that change it, the first one's change holds.
//!
//! # Media
//! What a medium holds is never touched: damage is laid over what is read, and goes away with its rule. Which sectors are
//! damaged, and how, follows from seed, rule and sector, so a retry reads the same. A sector leaves a rule's reach by
//! what its life says, whole sectors only, and only when the write that does it has *succeeded*.
#![deny(clippy::indexing_slicing)]

mod armed;
mod damage;
mod draw;
mod fate;
mod index;
mod plan;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use blkproof_block::{ByteRange, Event, RuleId};

use self::armed::Armed;
use self::draw::Stream;
use self::fate::{fate, tag_of, wrap};
use self::index::Index;
pub use self::plan::{Fate, Fired, Pause, Plan, RuleKey, Share};
use crate::request::{Operation, Request};
use crate::rule::{Action, Corruption, RULES_MAX, Rule, RuleSet, StateName, Until};

/// Rules at work on one node.
#[derive(Debug)]
pub struct Engine {
    lba_size: u32,
    seed: u64,
    state: StateName,
    initial: StateName,
    /// In their order, which is that of their keys.
    rules: Vec<Armed>,
    /// The keys of `rules`, by id.
    ids: BTreeMap<Box<str>, RuleKey>,
    /// Rules that go some time after they are spent, the oldest first.
    passing: Vec<RuleKey>,
    next_key: u64,
    index: Index,
    /// Bit by event: whether any rule has to do with it.
    events: Vec<bool>,
    /// Some rule is judged when a request has been done.
    late: bool,
    /// Some sector is damaged.
    damage: Cell<bool>,
}

/// Why rules can not be added.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddError {
    /// Two of one id.
    #[error("there is a rule '{0}' already; remove it first, or give this one another id")]
    IdTaken(RuleId),
    /// More than [`RULES_MAX`].
    #[error("a node has {RULES_MAX} rules at most, and there would be {0}")]
    TooMany(usize),
}

/// What a rule has done so far.
#[derive(Clone, Debug)]
pub struct RuleStatus {
    /// The rule as it was added.
    pub rule: Rc<Rule>,
    /// Whether it can fire.
    pub armed: bool,
    /// Whether the event it waits for has come.
    pub primed: bool,
    /// Requests that matched all but `nth`, `every`, `probability` and `times`.
    pub seen: u64,
    /// How often it fired.
    pub fired: u64,
    /// Sectors that are bad now, if that is a number.
    pub bad: Option<u64>,
    /// Sectors it has damaged.
    pub damaged: u64,
}

/// What an announced event leads to.
#[derive(Clone, Debug, Default)]
pub struct OnEvent {
    /// Rules that fired, in order.
    pub fired: Vec<Fired>,
    /// Waits before the step goes on.
    pub pauses: Vec<Pause>,
    /// The power of a disk is cut.
    pub power_cut: Option<Cut>,
}

/// A power cut that a rule wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    /// The disk's node name; the nearest below if not given.
    pub disk: Option<Rc<str>>,
    /// The state to come back in; by the disk's seed if not given.
    pub state: Option<Rc<str>>,
}

/// A damaged stretch of a sector, to be laid over what was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The rule whose damage it is.
    pub key: RuleKey,
    /// How.
    pub how: Corruption,
    /// The bytes, within one sector.
    pub range: ByteRange,
}

impl Engine {
    /// An engine with these rules, which are armed at once.
    ///
    /// # Errors
    /// If two rules have one id, or there are too many.
    pub fn new(set: RuleSet, now: Duration) -> Result<Self, AddError> {
        let mut engine = Self {
            lba_size: set.lba_size,
            seed: set.seed,
            state: Rc::clone(&set.state),
            initial: set.state,
            rules: Vec::new(),
            ids: BTreeMap::new(),
            passing: Vec::new(),
            next_key: 0,
            index: Index::default(),
            events: vec![false; Event::ALL.len()],
            late: false,
            damage: Cell::new(false),
        };
        engine.add(set.rules, now)?;
        Ok(engine)
    }

    /// Adds rules behind those there are: all of them or none.
    ///
    /// # Errors
    /// If an id is taken, or there would be more than [`RULES_MAX`].
    pub fn add(&mut self, rules: Vec<Rule>, now: Duration) -> Result<(), AddError> {
        let count = self.rules.len().saturating_add(rules.len());
        if count > RULES_MAX {
            return Err(AddError::TooMany(count));
        }
        let mut new = BTreeSet::new();
        if let Some(twice) = rules.iter().find(|rule| self.ids.contains_key(&rule.id.0) || !new.insert(&rule.id.0)) {
            return Err(AddError::IdTaken(twice.id.clone()));
        }
        for rule in rules {
            let key = RuleKey(self.next_key);
            self.next_key = self.next_key.saturating_add(1);
            self.ids.insert(rule.id.0.clone(), key);
            self.rules.push(Armed::new(key, Rc::new(rule), self.seed, self.lba_size, now));
        }
        self.reindex();
        Ok(())
    }

    /// Removes a rule, and the damage it did. `false` if there is none of that id.
    pub fn remove(&mut self, id: &str) -> bool {
        let Some(key) = self.ids.remove(id) else { return false };
        self.rules.retain(|armed| armed.key != key);
        self.reindex();
        true
    }

    /// What the rule of that id is known by.
    pub fn key(&self, id: &str) -> Option<RuleKey> {
        self.ids.get(id).copied()
    }

    /// Has the rule go some time after it has fired as often as it may.
    pub fn set_passing(&mut self, key: RuleKey) {
        self.passing.push(key);
    }

    /// Removes the passing rules that are spent, all but the newest `keep`; what they were known by.
    pub fn forget_spent(&mut self, keep: usize) -> BTreeSet<RuleKey> {
        let rules = &self.rules;
        let find = |key: &RuleKey| rules.binary_search_by_key(key, |armed| armed.key).ok().and_then(|at| rules.get(at));
        self.passing.retain(|key| find(key).is_some());
        let is_spent = |key: &&RuleKey| find(key).is_some_and(Armed::is_exhausted);
        let spent: BTreeSet<RuleKey> = self.passing.iter().rev().filter(is_spent).skip(keep).copied().collect();
        if !spent.is_empty() {
            self.passing.retain(|key| !spent.contains(key));
            self.rules.retain(|armed| !spent.contains(&armed.key));
            self.ids.retain(|_, key| !spent.contains(key));
            self.reindex();
        }
        spent
    }

    /// Removes every rule, and the damage they did.
    pub fn clear(&mut self) {
        self.rules.clear();
        self.ids.clear();
        self.passing.clear();
        self.reindex();
    }

    /// Makes one rule, or all of them and the state, as they were at first. `false` if there is no such rule.
    pub fn reset(&mut self, id: Option<&str>, now: Duration) -> bool {
        let mut found = id.is_none();
        for armed in self.rules.iter_mut().filter(|armed| id.is_none_or(|id| &*armed.rule.id.0 == id)) {
            armed.reset(now);
            found = true;
        }
        if id.is_none() {
            self.state = Rc::clone(&self.initial);
        }
        self.reindex();
        found
    }

    /// Makes a rule able to fire, or not, without forgetting what it has counted. `false` if there is no such rule.
    pub fn set_armed(&mut self, id: &str, armed: bool) -> bool {
        let Some(rule) = self.rules.iter_mut().find(|rule| &*rule.rule.id.0 == id) else { return false };
        rule.armed = armed;
        self.reindex();
        true
    }

    /// The state.
    pub fn state(&self) -> &StateName {
        &self.state
    }

    /// Changes the state.
    pub fn set_state(&mut self, state: StateName) {
        self.state = state;
    }

    /// Bytes of a sector.
    pub fn lba_size(&self) -> u32 {
        self.lba_size
    }

    /// How many rules there are.
    pub fn count(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are no rules at all.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Every rule in order, with what it has done.
    pub fn list(&self, now: Duration) -> Vec<RuleStatus> {
        let status = |armed: &Armed| {
            let (bad, damaged) = armed.counts(now);
            RuleStatus {
                rule: Rc::clone(&armed.rule),
                armed: armed.armed && armed.rule.on.times.is_none_or(|times| armed.fired < times),
                primed: armed.primed,
                seen: armed.seen,
                fired: armed.fired,
                bad,
                damaged,
            }
        };
        self.rules.iter().map(status).collect()
    }

    /// How often the rule has fired; `None` if there is no such rule.
    pub fn fired(&self, id: &str) -> Option<u64> {
        let key = self.ids.get(id)?;
        let at = self.rules.binary_search_by_key(key, |armed| armed.key).ok()?;
        self.rules.get(at).map(|armed| armed.fired)
    }

    /// Takes sectors out of the reach of rules that reassignment cures. Returns how many rules had any of them.
    pub fn reassign(&mut self, range: ByteRange, now: Duration) -> usize {
        let mut rules = 0;
        for armed in &mut self.rules {
            let cures =
                armed.rule.life.as_ref().is_some_and(|life| matches!(life.until, Until::Reassign | Until::Rewrite));
            if cures && !armed.parts(range, now).is_empty() {
                armed.cure(range);
                rules += 1;
            }
        }
        self.reindex();
        rules
    }

    /// Whether a request may have to do with any rule. If not, nothing else here need be called for it.
    pub fn concerns(&self, operation: Operation, range: ByteRange) -> bool {
        self.index.concerns(operation, range)
    }

    /// Whether requests have to be timed: some rule wants to know how long they took.
    pub fn times_requests(&self) -> bool {
        self.late
    }

    /// Whether any rule has to do with `event`.
    pub fn listens(&self, event: Event) -> bool {
        self.events.get(event as usize).copied().unwrap_or(false)
    }

    /// A step is announced.
    pub fn event(&mut self, event: Event, now: Duration) -> OnEvent {
        let mut all = OnEvent::default();
        if !self.listens(event) {
            return all;
        }
        let state = Rc::clone(&self.state);
        let here = |armed: &Armed| {
            armed.armed
                && armed.rule.on.event == Some(event)
                && armed.rule.on.state.as_deref().is_none_or(|wanted| *wanted == *state)
        };
        let selects = |armed: &Armed| armed.rule.on.sticky && !armed.is_exhausted() && here(armed);
        // One that fires makes the active list anew; if none does, the old list stays.
        if self.rules.iter().any(selects) {
            for armed in self.rules.iter_mut().filter(|armed| armed.rule.on.sticky) {
                armed.primed = selects(armed);
            }
        }
        let mut next_state = None;
        for armed in self.rules.iter_mut().filter(|armed| here(armed) && !armed.rule.on.sticky) {
            if armed.takes_requests() {
                armed.primed = true;
                continue;
            }
            if !armed.announced(&state, now) {
                continue;
            }
            let action = armed.rule.action.clone();
            match &action {
                Action::Delay(delay) => all.pauses.push(Pause::Delay(armed.draw.delay(*delay, armed.seen))),
                Action::Hold { tag } => all.pauses.push(Pause::Hold(tag_of(tag.as_ref(), &armed.rule))),
                Action::PowerCut { disk, state, .. } => {
                    all.power_cut.get_or_insert_with(|| Cut { disk: disk.clone(), state: state.clone() });
                }
                _ => {}
            }
            let nowhere = ByteRange::at(0, 0);
            all.fired.push(Fired { rule: armed.rule.id.clone(), action, place: nowhere, error: None });
            then(armed, &mut next_state, nowhere);
        }
        self.advance(next_state);
        all
    }

    /// A request arrives on a device of `size` bytes. What is to be done with it?
    pub fn submit(&mut self, request: &Request, size: u64, now: Duration) -> Plan {
        let mut plan = Plan::default();
        self.examine(request, size, now, None, &mut plan);
        plan
    }

    /// A request has been done: it took so long, and succeeded on `range` (a misdirected one elsewhere than it was sent), or
    /// failed. What else is to be done with it? Only the parts of the plan that can still be done are in it.
    pub fn complete(
        &mut self,
        request: &Request,
        damages: &[RuleKey],
        succeeded: Option<ByteRange>,
        took: Option<Duration>,
        size: u64,
        now: Duration,
    ) -> Plan {
        let mut changed = false;
        if let Some(range) = succeeded
            && request.operation.changes()
        {
            for armed in &mut self.rules {
                changed |= !armed.damaged.is_empty() || armed.rule.life.is_some();
                armed.rewritten(request.operation, range);
            }
            for key in damages {
                let Some(armed) = self.rules.iter_mut().find(|armed| armed.key == *key) else { continue };
                let Action::Corrupt { sectors, .. } = armed.rule.action else { continue };
                let parts = armed.parts(range, now);
                armed.hurt(&parts, sectors);
                changed = true;
            }
        }
        if changed {
            self.reindex();
        }
        let mut plan = Plan::default();
        if let Some(took) = took.filter(|_| self.late && succeeded.is_some()) {
            self.examine(request, size, now, Some(took), &mut plan);
        }
        plan
    }

    fn examine(&mut self, request: &Request, size: u64, now: Duration, took: Option<Duration>, plan: &mut Plan) {
        let state = Rc::clone(&self.state);
        let mut next_state = None;
        let mut changed = false;
        for armed in &mut self.rules {
            let Some(parts) = armed.fires(request, &state, now, took) else { continue };
            let rule = Rc::clone(&armed.rule);
            let has_place = !rule.on.ranges.is_empty() || rule.life.is_some();
            let place = parts.first().copied().unwrap_or(request.range);
            let first_bad = has_place.then_some(place.start);
            let error = fate(armed, request, size, first_bad, &parts, plan);
            if matches!(rule.action, Action::Fail { .. } | Action::Short { .. }) {
                armed.accessed(place.start);
            }
            if let Action::Corrupt { sectors, .. } = rule.action {
                if request.operation == Operation::Read {
                    armed.hurt(&parts, sectors);
                } else {
                    plan.damages.push(armed.key);
                }
            }
            changed |= then(armed, &mut next_state, request.range)
                || rule.on.times.is_some()
                || rule.life.is_some()
                || matches!(rule.action, Action::Corrupt { .. });
            plan.fired.push(Fired { rule: rule.id.clone(), action: rule.action.clone(), place, error });
            if !rule.action.goes_on() {
                break;
            }
        }
        self.advance(next_state);
        if changed {
            self.reindex();
        }
    }

    /// The damage to be laid over what a read of `range` returned, in the order of the rules, sector by sector.
    pub fn damaged(&self, range: ByteRange) -> Vec<Damage> {
        let mut all = Vec::new();
        if !self.damage.get() || range.is_empty() {
            return all;
        }
        let lba = u64::from(self.lba_size.max(1));
        for armed in self.rules.iter().filter(|armed| !armed.damaged.is_empty()) {
            let Action::Corrupt { how, .. } = armed.rule.action else { continue };
            for hit in armed.damaged.overlapping(&(range.start..range.end)) {
                let Some(hit) = ByteRange { start: hit.start, end: hit.end }.intersection(range) else { continue };
                for sector in hit.start / lba..hit.end.div_ceil(lba) {
                    if let Some(part) = ByteRange::at(sector.saturating_mul(lba), lba).intersection(hit) {
                        all.push(Damage { key: armed.key, how, range: part });
                    }
                }
            }
        }
        all
    }

    /// Lays one damage over `data`, the bytes of its range. [`Corruption::Stale`] and [`Corruption::Foreign`] are the
    /// caller's, who has the data.
    pub fn spoil(&self, damage: &Damage, data: &mut [u8]) {
        let Some(armed) = self.rules.iter().find(|armed| armed.key == damage.key) else { return };
        let lba = u64::from(self.lba_size.max(1));
        let skip = u32::try_from(damage.range.start % lba).unwrap_or(0);
        damage::spoil(damage.how, armed.draw, damage.range.start / lba, self.lba_size, skip, data);
    }

    /// Where the bytes of a damage with [`Corruption::Foreign`] come from, on a device of `size` bytes.
    pub fn foreign(&self, damage: &Damage, size: u64) -> u64 {
        let lba = u64::from(self.lba_size.max(1));
        let sectors = (size / lba).max(1);
        let sector = damage.range.start / lba;
        let armed = self.rules.iter().find(|armed| armed.key == damage.key);
        let other = match (damage.how, armed) {
            (Corruption::Foreign { distance: Some(distance) }, _) => wrap(sector, distance, sectors),
            (_, Some(armed)) => {
                // Any but its own.
                let step = armed.draw.below(Stream::Damage, sector, sectors.saturating_sub(1)).saturating_add(1);
                sector.wrapping_add(step) % sectors
            }
            (_, None) => sector,
        };
        other.saturating_mul(lba).saturating_add(damage.range.start % lba)
    }

    /// Rules that want to know what `range` held before it is written: those that serve stale versions.
    pub fn keeps_versions(&self, range: ByteRange, now: Duration) -> Vec<(RuleKey, ByteRange)> {
        let stale = |armed: &&Armed| matches!(armed.rule.action, Action::Corrupt { how: Corruption::Stale, .. });
        let parts =
            |armed: &Armed| armed.parts(range, now).into_iter().map(|part| (armed.key, part)).collect::<Vec<_>>();
        self.rules.iter().filter(stale).flat_map(parts).collect()
    }

    fn advance(&mut self, next: Option<StateName>) {
        if let Some(next) = next {
            self.state = next;
        }
    }

    fn reindex(&mut self) {
        self.index = Index::build(self.rules.iter().flat_map(Armed::interests));
        self.late = self.rules.iter().any(|armed| armed.armed && armed.is_late());
        self.damage.set(self.rules.iter().any(|armed| !armed.damaged.is_empty()));
        self.events.fill(false);
        for armed in self.rules.iter().filter(|armed| armed.armed) {
            if let Some(listens) = armed.rule.on.event.and_then(|event| self.events.get_mut(event as usize)) {
                *listens = true;
            }
        }
    }
}

/// Applies what follows from a rule that fired; whether it changed what the rule is about.
fn then(armed: &mut Armed, next_state: &mut Option<StateName>, range: ByteRange) -> bool {
    let rule = Rc::clone(&armed.rule);
    if let Some(state) = &rule.then.state {
        next_state.get_or_insert_with(|| Rc::clone(state));
    }
    if rule.then.disarm {
        armed.armed = false;
    }
    if rule.then.cure {
        armed.cure(range);
        if !range.is_empty() {
            armed.damaged.remove(range.start..range.end);
        }
    }
    rule.then.disarm || rule.then.cure
}
