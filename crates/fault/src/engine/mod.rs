//! The engine: rules in, decisions out. Pure: time comes as an argument, randomness from the seed, data is the caller's.
//!
//! # Use
//! For each request [`concerns`](Engine::concerns) is asked first: one branch where no rule is, a binary search where
//! rules are elsewhere. Only then [`submit`](Engine::submit) says what is to be done, and whoever does it reports back
//! with [`complete`](Engine::complete), which also says what damage a read that succeeded gets.
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
//!
//! # Cost
//! A request that is elsewhere costs the search, and one more in what each rule has damaged. One that a rule may be about
//! costs a look at each rule. The index is made anew only when a rule begins or ends to be at work: armed, not exhausted, not
//! cured of all its sectors.
#![deny(clippy::indexing_slicing)]

mod armed;
mod damage;
mod draw;
mod fate;
mod index;
mod judge;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use blkproof_block::{ByteRange, Event, RuleId};

use self::armed::Armed;
use self::index::Index;
pub use self::plan::{Completed, Cut, Damage, Fate, Fired, OnEvent, Pause, Plan, RuleKey, Share};
use crate::request::Operation;
use crate::rule::{Action, RULES_MAX, Rule, RuleSet, StateName, Until};

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
    /// Rules that damage, by their place among the rules.
    corrupting: Vec<usize>,
    /// Some sector is damaged.
    damage: bool,
    /// blkdebug's [`Event::None`] was announced: what it made active is active again after a reset.
    begun: bool,
    /// How often the index was made.
    #[cfg(test)]
    indexed: u32,
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
            corrupting: Vec::new(),
            damage: false,
            begun: false,
            #[cfg(test)]
            indexed: 0,
        };
        engine.add(set.rules, now)?;
        Ok(engine)
    }

    /// Another one in its place: keys of its rules stand for none of this one's.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn successor(&self, set: RuleSet, now: Duration) -> Result<Self, AddError> {
        let (rules, set) = (set.rules, RuleSet { rules: Vec::new(), ..set });
        let mut engine = Self { next_key: self.next_key, ..Self::new(set, now)? };
        engine.add(rules, now)?;
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

    /// Removes a rule, and the damage it did. What it was known by; `None` if there is none of that id.
    pub fn remove(&mut self, id: &str) -> Option<RuleKey> {
        let key = self.ids.remove(id)?;
        self.rules.retain(|armed| armed.key != key);
        self.reindex();
        Some(key)
    }

    /// Removes every rule, and the damage they did.
    pub fn clear(&mut self) {
        self.rules.clear();
        self.ids.clear();
        self.passing.clear();
        self.reindex();
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

    /// What the rule of that id is known by.
    pub fn key(&self, id: &str) -> Option<RuleKey> {
        self.ids.get(id).copied()
    }

    /// Whether the rule is still there.
    pub fn has(&self, key: RuleKey) -> bool {
        self.rules.binary_search_by_key(&key, |armed| armed.key).is_ok()
    }

    /// Makes one rule, or all of them and the state, as they were at first. `false` if there is no such rule.
    ///
    /// At first means: after the node was opened, which made blkdebug's rules on `none` active.
    pub fn reset(&mut self, id: Option<&str>, now: Duration) -> bool {
        let mut found = id.is_none();
        for armed in self.rules.iter_mut().filter(|armed| id.is_none_or(|id| &*armed.rule.id.0 == id)) {
            armed.reset(now);
            let on = &armed.rule.on;
            if self.begun && on.sticky && on.event == Some(Event::None) {
                armed.primed = on.state.as_deref().is_none_or(|wanted| *wanted == *self.initial);
            }
            found = true;
        }
        if id.is_none() {
            self.state = Rc::clone(&self.initial);
        }
        self.reindex();
        if id.is_none() && self.begun {
            // For the states that follow from it. Whoever listens has been told when it came.
            self.event(Event::None, now);
        }
        found
    }

    /// Makes a rule able to fire, or not, without forgetting what it has counted. One that is not sees nothing, not even that
    /// its sectors are rewritten. `false` if there is no such rule.
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
            if cures && armed.reaches(range, now) {
                armed.cure(range);
                rules += 1;
            }
        }
        self.reindex();
        rules
    }

    /// Whether a request may have to do with any rule. If not, nothing else here need be called for it.
    pub fn concerns(&self, operation: Operation, range: ByteRange) -> bool {
        self.index.concerns(operation, range) || self.damage && self.concerns_damage(operation, range)
    }

    /// Whether requests have to be timed: some rule wants to know how long they took.
    pub fn times_requests(&self) -> bool {
        self.late
    }

    /// Whether any rule has to do with `event`.
    pub fn listens(&self, event: Event) -> bool {
        self.events.get(event as usize).copied().unwrap_or(false)
    }

    /// Has to follow whatever changes which rules are [at work](Armed::is_at_work), and any change to their list.
    fn reindex(&mut self) {
        #[cfg(test)]
        {
            self.indexed += 1;
        }
        self.index = Index::build(self.rules.iter().flat_map(Armed::interests));
        self.late = self.rules.iter().any(|armed| armed.is_at_work() && armed.is_late());
        let corrupts = |armed: &Armed| matches!(armed.rule.action, Action::Corrupt { .. });
        self.corrupting =
            self.rules.iter().enumerate().filter(|(_, armed)| corrupts(armed)).map(|(at, _)| at).collect();
        self.look_for_damage();
        self.events.fill(false);
        for armed in self.rules.iter().filter(|armed| armed.armed) {
            if let Some(listens) = armed.rule.on.event.and_then(|event| self.events.get_mut(event as usize)) {
                *listens = true;
            }
        }
    }
}
