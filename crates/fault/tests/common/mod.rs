//! What the tests share: a clock that moves when told, rules in few words, a disk whose every sector says where it is.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use blkproof_block::align::Aligned;
use blkproof_block::nodes::memory::Memory;
use blkproof_block::{ByteRange, LocalBoxFuture, Node, RuleId};
use blkproof_fault::clock::Clock;
use blkproof_fault::filter::{Fault, Faults};
use blkproof_fault::lab::Lab;
use blkproof_fault::request::Operations;
use blkproof_fault::rule::{Action, Failure, Life, On, Rule, RuleSet, Then};

/// Time as a test wants it.
#[derive(Default)]
pub struct TestClock {
    now: Cell<Duration>,
    sleepers: RefCell<Vec<Waker>>,
}

impl TestClock {
    pub fn advance(&self, time: Duration) {
        self.now.set(self.now.get() + time);
        self.sleepers.borrow_mut().drain(..).for_each(Waker::wake);
    }
}

pub struct Shared(pub Rc<TestClock>);

impl Clock for Shared {
    fn now(&self) -> Duration {
        self.0.now.get()
    }
    fn unix(&self) -> Duration {
        self.0.now.get()
    }
    fn sleep(&self, time: Duration) -> LocalBoxFuture<'static, ()> {
        let (clock, end) = (Rc::clone(&self.0), self.0.now.get() + time);
        Box::pin(poll_fn(move |cx| {
            if clock.now.get() >= end {
                return Poll::Ready(());
            }
            clock.sleepers.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        }))
    }
}

pub const SECTOR: u64 = 512;
pub const SECTORS: u64 = 256;

/// Every sector is filled with its number.
pub fn numbered() -> Vec<u8> {
    (0..SECTORS).flat_map(|sector| [u8::try_from(sector).unwrap(); SECTOR as usize]).collect()
}

/// A `fault` node over a numbered disk in memory, with everything around it.
pub struct Bench {
    pub node: Node,
    pub below: Node,
    pub faults: Rc<Faults>,
    pub lab: Rc<Lab>,
    pub clock: Rc<TestClock>,
}

pub fn bench(rules: Vec<Rule>) -> Bench {
    seeded(rules, 0)
}

pub fn seeded(rules: Vec<Rule>, seed: u64) -> Bench {
    let clock = Rc::new(TestClock::default());
    let lab = Lab::new(Rc::new(Shared(Rc::clone(&clock))));
    let below = Node::new(Memory::with_content(&numbered()));
    let set = RuleSet { rules, seed, ..RuleSet::default() };
    let faults = Faults::new(Rc::from("f"), set, &lab).unwrap();
    let node = Aligned::wrap(Node::new(Fault::new(below.clone(), Rc::clone(&faults))));
    Bench { node, below, faults, lab, clock }
}

/// A rule for any request, to be narrowed down.
pub fn rule(id: &str, action: Action) -> Rule {
    Rule { id: RuleId(id.into()), on: On::default(), action, then: Then::default(), life: None }
}

pub fn fail(error: &str) -> Action {
    Action::Fail { error: Failure::parse(error).unwrap(), done: blkproof_fault::rule::Done::default(), wait: None }
}

pub trait Narrow {
    fn on(self, operations: Operations) -> Self;
    fn sectors(self, from: u64, to: u64) -> Self;
    fn life(self, life: Life) -> Self;
    fn with(self, change: impl FnOnce(&mut Rule)) -> Self;
}

impl Narrow for Rule {
    fn on(mut self, operations: Operations) -> Self {
        self.on.operations = operations;
        self
    }
    fn sectors(mut self, from: u64, to: u64) -> Self {
        self.on.ranges.push(ByteRange { start: from * SECTOR, end: to * SECTOR });
        self
    }
    fn life(mut self, life: Life) -> Self {
        self.life = Some(life);
        self
    }
    fn with(mut self, change: impl FnOnce(&mut Rule)) -> Self {
        change(&mut self);
        self
    }
}
