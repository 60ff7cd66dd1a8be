//! The handle on a `fault` node: its engine, and everything that waits there.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use blkproof_block::{ByteRange, Event, IoError, RuleId};
use tokio::sync::Notify;

use super::versions::Versions;
use crate::ask::Asks;
use crate::clock::SharedClock;
use crate::engine::{AddError, Engine, Fired, OnEvent, Pause, Plan, RuleStatus};
use crate::lab::Lab;
use crate::notice::{Notices, What};
use crate::parked::{Parked, Which};
use crate::power::Switch;
use crate::request::{Operation, Request};
use crate::rule::{Action, Rule, RuleSet};

/// Spent rules of [`add_passing`](Faults::add_passing) that are kept.
pub const SPENT: usize = 16;

/// What is shared between a `fault` node and those who control it.
///
/// No call here waits for I/O, except where it says so.
#[derive(Debug)]
pub struct Faults {
    name: Rc<str>,
    engine: RefCell<Engine>,
    /// The number of the last id that was made up, by what stands before it.
    generated: RefCell<BTreeMap<Box<str>, u64>>,
    clock: Clocked,
    notices: Notices,
    asks: Rc<Asks>,
    next_request: Cell<u64>,
    pub(super) parked: Parked,
    pub(super) versions: Versions,
    /// `None`: nobody has said which there are.
    disks: RefCell<Option<Vec<Switch>>>,
    /// Whether requests are held back, all of them.
    stopped: Cell<bool>,
    /// Told when [`stopped`](Self::stopped) ends.
    go_on: Notify,
    /// Told when any rule has fired.
    has_fired: Notify,
    /// The process ends, or the node goes: nothing waits any more.
    leaving: Cell<bool>,
    /// Told when [`leaving`](Self::leaving) begins.
    leave: Notify,
}

/// Why rules are not armed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ArmError {
    /// Two of one id, or too many.
    #[error(transparent)]
    Add(#[from] AddError),
    /// A rule is to cut the power of a disk that is not there.
    #[error("rule '{rule}': {why}")]
    NoDisk {
        /// The rule.
        rule: RuleId,
        /// What is there instead.
        why: String,
    },
}

struct Clocked(SharedClock);

impl std::fmt::Debug for Clocked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl Faults {
    /// A node's state, with these rules armed.
    ///
    /// # Errors
    /// If two rules have one id, or there are too many.
    pub fn new(name: Rc<str>, rules: RuleSet, lab: &Lab) -> Result<Rc<Self>, AddError> {
        let clock = lab.clock();
        Ok(Rc::new(Self {
            name,
            generated: RefCell::default(),
            engine: RefCell::new(Engine::new(rules, clock.now())?),
            clock: Clocked(clock),
            notices: lab.notices().clone(),
            asks: lab.asks(),
            next_request: Cell::new(0),
            parked: Parked::default(),
            versions: Versions::default(),
            disks: RefCell::default(),
            stopped: Cell::new(false),
            go_on: Notify::new(),
            has_fired: Notify::new(),
            leaving: Cell::new(false),
            leave: Notify::new(),
        }))
    }

    /// The node's name.
    pub fn name(&self) -> &Rc<str> {
        &self.name
    }

    /// The disks whose power its rules may cut, the nearest first.
    ///
    /// # Errors
    /// If a rule that is there already cuts the power of another.
    pub fn set_disks(&self, disks: Vec<Switch>) -> Result<(), ArmError> {
        *self.disks.borrow_mut() = Some(disks);
        self.list().iter().try_for_each(|status| self.find_disks(&status.rule))
    }

    /// Whether the disk is there whose power the rule cuts, if that can be known.
    fn find_disks(&self, rule: &Rule) -> Result<(), ArmError> {
        let (Action::PowerCut { disk, .. }, true) = (&rule.action, self.disks.borrow().is_some()) else {
            return Ok(());
        };
        self.disk(disk.as_deref()).map(drop).map_err(|why| ArmError::NoDisk { rule: rule.id.clone(), why })
    }

    /// Adds rules, armed: all of them or none.
    ///
    /// # Errors
    /// If an id is taken, there are too many, or a disk is not there.
    pub fn add(&self, rules: Vec<Rule>) -> Result<(), ArmError> {
        rules.iter().try_for_each(|rule| self.find_disks(rule))?;
        Ok(self.engine.borrow_mut().add(rules, self.now())?)
    }

    /// Adds rules as [`add`](Self::add) does. Those at the places `unnamed` get ids that are free: `PREFIX-1`, `PREFIX-2`, ….
    /// Returns the ids of all, in order.
    ///
    /// # Errors
    /// As for [`add`](Self::add).
    pub fn add_naming(
        &self,
        mut rules: Vec<Rule>,
        unnamed: &BTreeSet<usize>,
        prefix: &str,
    ) -> Result<Vec<RuleId>, ArmError> {
        let named = rules.iter().enumerate().filter(|(at, _)| !unnamed.contains(at));
        let named: BTreeSet<Box<str>> = named.map(|(_, rule)| rule.id.0.clone()).collect();
        let mut last = self.generated.borrow().get(prefix).copied().unwrap_or(0);
        for (_, rule) in rules.iter_mut().enumerate().filter(|(at, _)| unnamed.contains(at)) {
            rule.id = loop {
                last = last.saturating_add(1);
                let id = format!("{prefix}-{last}");
                if self.engine.borrow().key(&id).is_none() && !named.contains(&*id) {
                    break RuleId(id.into());
                }
            };
        }
        let ids = rules.iter().map(|rule| rule.id.clone()).collect();
        self.add(rules)?;
        self.generated.borrow_mut().insert(prefix.into(), last);
        Ok(ids)
    }

    /// Adds a rule, with an id as [`add_naming`](Self::add_naming) makes them up, that is forgotten some time after it has
    /// fired as often as it may: of such rules the last [`SPENT`] are still there to be asked about.
    ///
    /// # Errors
    /// As for [`add`](Self::add).
    pub fn add_passing(&self, rule: Rule, prefix: &str) -> Result<Vec<RuleId>, ArmError> {
        for key in self.engine.borrow_mut().forget_spent(SPENT) {
            self.versions.forget(Some(key));
        }
        let ids = self.add_naming(vec![rule], &BTreeSet::from([0]), prefix)?;
        let mut engine = self.engine.borrow_mut();
        for key in ids.iter().filter_map(|id| engine.key(&id.0)).collect::<Vec<_>>() {
            engine.set_passing(key);
        }
        Ok(ids)
    }

    /// Removes every rule and its damage, and lets go whatever they hold.
    pub fn clear(&self) {
        self.engine.borrow_mut().clear();
        self.versions.forget(None);
        self.parked.release(Which::Any, usize::MAX);
        self.has_fired.notify_waiters();
    }

    /// Removes a rule and its damage, and lets go whatever it holds; `false` if there is none of that id.
    pub fn remove(&self, id: &str) -> bool {
        let removed = self.engine.borrow_mut().remove(id);
        if let Some(key) = removed {
            self.versions.forget(Some(key));
            self.parked.release(Which::Rule(key), usize::MAX);
        }
        // Whoever waits for it to fire waits in vain.
        self.has_fired.notify_waiters();
        removed.is_some()
    }

    /// Replaces every rule, as when a rule file is read again. Counters and damage begin anew, and whatever is held goes on.
    ///
    /// # Errors
    /// If two rules have one id, or a disk is not there; nothing has changed then.
    pub fn replace(&self, rules: RuleSet) -> Result<(), ArmError> {
        rules.rules.iter().try_for_each(|rule| self.find_disks(rule))?;
        let engine = self.engine.borrow().successor(rules, self.now())?;
        *self.engine.borrow_mut() = engine;
        self.versions.forget(None);
        self.parked.release(Which::Any, usize::MAX);
        self.has_fired.notify_waiters();
        Ok(())
    }

    /// Makes one rule, or all and the state, as they were at first; `false` if there is no such rule.
    pub fn reset(&self, id: Option<&str>) -> bool {
        let mut engine = self.engine.borrow_mut();
        match id {
            None => self.versions.forget(None),
            Some(id) => {
                if let Some(key) = engine.key(id) {
                    self.versions.forget(Some(key));
                }
            }
        }
        engine.reset(id, self.now())
    }

    /// Makes a rule able to fire, or not; `false` if there is no such rule.
    pub fn set_armed(&self, id: &str, armed: bool) -> bool {
        self.engine.borrow_mut().set_armed(id, armed)
    }

    /// Every rule with what it has done, in order.
    pub fn list(&self) -> Vec<RuleStatus> {
        self.engine.borrow().list(self.now())
    }

    /// How many rules there are.
    pub fn count(&self) -> usize {
        self.engine.borrow().count()
    }

    /// How often the rule has fired; `None` if there is no such rule.
    pub fn fired(&self, id: &str) -> Option<u64> {
        self.engine.borrow().fired(id)
    }

    /// The engine's state.
    pub fn state(&self) -> Rc<str> {
        Rc::clone(self.engine.borrow().state())
    }

    /// Changes the engine's state.
    pub fn set_state(&self, state: Rc<str>) {
        self.engine.borrow_mut().set_state(state);
    }

    /// Bytes of a sector.
    pub fn lba_size(&self) -> u32 {
        self.engine.borrow().lba_size()
    }

    /// Reassigns sectors; how many rules had any of them.
    pub fn reassign(&self, range: ByteRange) -> usize {
        self.engine.borrow_mut().reassign(range, self.now())
    }

    /// Waits until the rule has fired so often, counted from when it was added or reset; `false` if there is no such rule,
    /// or not any more.
    pub async fn wait_fired(&self, id: &str, count: u64) -> bool {
        loop {
            let mut fired = pin!(self.has_fired.notified());
            fired.as_mut().enable();
            match self.engine.borrow().fired(id) {
                None => return false,
                Some(already) if already >= count => return true,
                Some(_) => {}
            }
            fired.await;
        }
    }

    /// Lets the oldest `count` requests parked under `tag` go on; how many did.
    pub fn release(&self, tag: &str, count: usize) -> usize {
        self.parked.release(Which::Tag(tag), count)
    }

    /// Tags under which requests are parked, with how many.
    pub fn held(&self) -> Vec<(Rc<str>, usize)> {
        self.parked.list()
    }

    /// Holds back every request that arrives from now on; those in flight go on.
    pub fn stop(&self) {
        self.stopped.set(true);
    }

    /// Lets requests through again.
    pub fn cont(&self) {
        self.stopped.set(false);
        self.go_on.notify_waiters();
    }

    /// Whether requests are held back.
    pub fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Whether a request may have to do with any rule: what the fast path pays.
    pub(super) fn concerns(&self, operation: Operation, range: ByteRange) -> bool {
        self.stopped.get() || self.engine.borrow().concerns(operation, range)
    }

    /// Waits while requests are held back.
    pub(super) async fn admitted(&self) {
        while self.stopped.get() {
            let mut go_on = pin!(self.go_on.notified());
            go_on.as_mut().enable();
            if self.stopped.get() {
                go_on.await;
            }
        }
    }

    pub(crate) fn listens(&self, event: Event) -> bool {
        self.engine.borrow().listens(event)
    }

    pub(super) fn number(&self) -> u64 {
        let id = self.next_request.get();
        self.next_request.set(id.wrapping_add(1));
        id
    }

    pub(super) fn now(&self) -> Duration {
        self.clock.0.now()
    }

    pub(super) fn engine(&self) -> &RefCell<Engine> {
        &self.engine
    }

    pub(super) fn asks(&self) -> &Asks {
        &self.asks
    }

    pub(super) fn submit(&self, request: &Request, size: u64) -> Plan {
        let plan = self.engine.borrow_mut().submit(request, size, self.now());
        self.tell(&plan.fired, Some(request), None);
        plan
    }

    pub(crate) fn announce(&self, event: Event) -> OnEvent {
        let on = self.engine.borrow_mut().event(event, self.now());
        self.tell(&on.fired, None, Some(event));
        on
    }

    /// Tells of rules that fired.
    pub(super) fn tell(&self, fired: &[Fired], request: Option<&Request>, event: Option<Event>) {
        if fired.is_empty() {
            return;
        }
        self.has_fired.notify_waiters();
        if !self.notices.wanted() {
            return;
        }
        for one in fired {
            let what = What::Fired {
                rule: one.rule.clone(),
                request: request.map(|request| request.id),
                operation: request.map(|request| request.operation),
                range: request.map_or(one.place, |request| request.range),
                event,
                action: one.action.name(),
                error: one.error.clone(),
                state: self.state(),
            };
            self.notices.tell(&self.name, what);
        }
    }

    pub(crate) fn say(&self, what: What) {
        self.notices.tell(&self.name, what);
    }

    /// Makes everything end that waits here, now and later, because the node is about to go: requests held or delayed go
    /// on, questions have their default, and requests that hang fail.
    pub fn let_go(&self) {
        self.leaving.set(true);
        self.leave.notify_waiters();
        self.cont();
        self.parked.release(Which::Any, usize::MAX);
    }

    /// Completes when nothing is to wait any more.
    async fn left(&self) {
        let mut leave = pin!(self.leave.notified());
        leave.as_mut().enable();
        if !self.leaving.get() {
            leave.await;
        }
    }

    /// Waits for ever, as a request does that a rule never has answered.
    pub(super) async fn hang(&self, rule: RuleId) -> IoError {
        self.left().await;
        let error = IoError::new(blkproof_block::Errno::IO).detail("this request hung until the server stopped");
        IoError { injected_by: Some(rule), ..error }
    }

    pub(super) async fn sleep(&self, time: Duration) {
        futures_lite::future::or(self.clock.0.sleep(time), self.left()).await;
    }

    /// Waits as a rule says.
    pub(super) async fn pause(&self, pause: Pause) {
        match pause {
            Pause::Delay(time) => self.sleep(time).await,
            // Nobody would let it go: the node goes, or the rule has gone while the request waited for something else.
            Pause::Hold { key, .. } if self.leaving.get() || !self.engine.borrow().has(key) => {}
            Pause::Hold { key, tag } => {
                let stay = self.parked.park(Some(key), Rc::clone(&tag));
                self.say(What::Suspended { tag: Rc::clone(&tag) });
                stay.over().await;
                self.say(What::Resumed { tag });
            }
        }
    }

    /// Waits, and cuts the power, as rules say that fired on an event.
    pub(crate) async fn follow(&self, on: OnEvent) {
        for pause in on.pauses {
            self.pause(pause).await;
        }
        if let Some(cut) = on.power_cut {
            // A step can not fail; the requests it consists of will.
            let _ = self.cut(cut.disk.as_deref(), cut.state.as_deref()).await;
        }
    }

    /// Cuts the power of the disk of that name, or of the nearest.
    pub(super) async fn cut(&self, disk: Option<&str>, state: Option<&str>) -> Result<(), IoError> {
        let switch = self.disk(disk).map_err(|words| IoError::new(blkproof_block::Errno::IO).detail(words))?;
        switch.power.cut(state).await
    }

    /// The disk of that name, or the nearest; in words why there is none.
    fn disk(&self, name: Option<&str>) -> Result<Switch, String> {
        let disks = self.disks.borrow();
        let mut disks = disks.iter().flatten();
        let found = disks.find(|switch| name.is_none_or(|name| *switch.name == *name));
        found.cloned().ok_or_else(|| match name {
            Some(name) => format!("no disk below is named '{name}'"),
            None => "there is no disk below whose power could be cut".to_owned(),
        })
    }
}
