//! The nodes of a process that can be controlled while it runs, by name.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::ask::Asks;
use crate::blkdebug;
use crate::clock::SharedClock;
use crate::disk::Disk;
use crate::filter::Faults;
use crate::log_writes::node::WriteLog;
use crate::notice::Notices;
use crate::power::Switch;
use crate::stats::Stats;
use crate::trace::Trace;

/// A node that can be controlled.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Part {
    /// blkdebug: rules and breakpoints.
    Blkdebug(Rc<blkdebug::Handle>),
    /// A disk with a write cache.
    Disk(Disk),
    /// Rules.
    Fault(Rc<Faults>),
    /// A write log.
    Log(WriteLog),
    /// Statistics.
    Stats(Rc<Stats>),
    /// A trace.
    Trace(Rc<Trace>),
}

impl Part {
    /// Its driver, as graphs name it.
    pub const fn driver(&self) -> &'static str {
        match self {
            Self::Blkdebug(_) => "blkdebug",
            Self::Disk(_) => "disk",
            Self::Fault(_) => "fault",
            Self::Log(_) => "blklogwrites",
            Self::Stats(_) => "stats",
            Self::Trace(_) => "trace",
        }
    }

    /// Its rules, if it is a node that has any: `fault`, or blkdebug.
    pub fn faults(&self) -> Option<&Rc<Faults>> {
        match self {
            Self::Blkdebug(handle) => Some(&handle.faults),
            Self::Fault(faults) => Some(faults),
            _ => None,
        }
    }

    /// Makes everything end that waits at its rules and breakpoints, now and later, because the node is about to go.
    pub fn let_go(&self) {
        if let Some(faults) = self.faults() {
            faults.let_go();
        }
        if let Self::Blkdebug(handle) = self {
            handle.breaks.let_go();
        }
    }
}

/// Every controllable node, and what all of them share. Lives on the thread of its graphs.
#[derive(Debug)]
pub struct Lab {
    clock: Clocked,
    notices: Notices,
    asks: Rc<Asks>,
    switches: RefCell<Vec<Switch>>,
    parts: RefCell<BTreeMap<Rc<str>, Part>>,
}

struct Clocked(SharedClock);

impl std::fmt::Debug for Clocked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// Two nodes of one name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("two nodes are named '{0}'; give one of them another 'node-name'")]
pub struct NameTaken(pub Rc<str>);

impl Lab {
    /// An empty one.
    pub fn new(clock: SharedClock) -> Rc<Self> {
        let notices = Notices::new(Rc::clone(&clock));
        Rc::new(Self {
            clock: Clocked(clock),
            notices,
            asks: Rc::default(),
            switches: RefCell::default(),
            parts: RefCell::default(),
        })
    }

    /// The clock of every node.
    pub fn clock(&self) -> SharedClock {
        Rc::clone(&self.clock.0)
    }

    /// Where nodes tell what happens.
    pub fn notices(&self) -> &Notices {
        &self.notices
    }

    /// Who answers questions, and which are open.
    pub fn asks(&self) -> Rc<Asks> {
        Rc::clone(&self.asks)
    }

    /// Makes a disk's power switch known. A disk does so after everything below it is open.
    pub fn add_switch(&self, switch: Switch) {
        self.switches.borrow_mut().push(switch);
    }

    /// Every disk whose power can be cut, in the order in which they were opened.
    pub fn switches(&self) -> Vec<Switch> {
        self.switches.borrow().clone()
    }

    /// The name a new node gets: what its user calls it, or `driver0`, `driver1`, ….
    pub fn name(&self, driver: &str, wanted: Option<String>) -> Rc<str> {
        if let Some(wanted) = wanted {
            return Rc::from(wanted);
        }
        let parts = self.parts.borrow();
        let free = (0_u64..).map(|number| format!("{driver}{number}")).find(|name| !parts.contains_key(name.as_str()));
        Rc::from(free.unwrap_or_default())
    }

    /// Makes a node known.
    ///
    /// # Errors
    /// If there is one of that name.
    pub fn add(&self, name: &Rc<str>, part: Part) -> Result<(), NameTaken> {
        let mut parts = self.parts.borrow_mut();
        if parts.contains_key(name) {
            return Err(NameTaken(Rc::clone(name)));
        }
        parts.insert(Rc::clone(name), part);
        Ok(())
    }

    /// Makes a node known as long as what this returns is kept.
    ///
    /// # Errors
    /// If there is one of that name.
    pub fn register(self: &Rc<Self>, name: &Rc<str>, part: Part) -> Result<Registered, NameTaken> {
        self.add(name, part)?;
        Ok(Registered { lab: Rc::clone(self), name: Rc::clone(name) })
    }

    /// Forgets a node.
    pub fn remove(&self, name: &str) {
        // What a part holds may be the graph below it, whose nodes come back here when it is dropped.
        let part = self.parts.borrow_mut().remove(name);
        let (gone, kept): (Vec<_>, Vec<_>) = self.switches.take().into_iter().partition(|switch| &*switch.name == name);
        self.switches.replace(kept);
        drop((part, gone));
    }

    /// The node of that name.
    pub fn get(&self, name: &str) -> Option<Part> {
        self.parts.borrow().get(name).cloned()
    }

    /// Every node, by name.
    pub fn parts(&self) -> Vec<(Rc<str>, Part)> {
        self.parts.borrow().iter().map(|(name, part)| (Rc::clone(name), part.clone())).collect()
    }
}

/// A node's place in the lab; given up when dropped.
#[derive(Debug)]
pub struct Registered {
    lab: Rc<Lab>,
    name: Rc<str>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.lab.remove(&self.name);
    }
}
