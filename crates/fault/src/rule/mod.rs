//! A rule: *on* what it fires, what it *does*, and what *then* changes.
//!
//! Rules are examined in their order. Every rule that matches a request fires. Those that only slow it down or change
//! its data (`delay`, `hold`, `corrupt`, `none`) let the examination go on; the first one that decides the request's fate
//! ends it. This module is data; `engine` is what runs it, `file` is how it is written down.

mod action;
mod failure;
mod life;

use std::rc::Rc;
use std::time::Duration;

use blkproof_block::{ByteRange, Event, RuleId};

pub use self::action::{Action, AskDefault, Corruption, Delay, Done, Place, Tear, Unit};
pub use self::failure::{Failure, FailureError};
pub use self::life::{Growth, Life, Rot, Until};
use crate::request::Operations;

/// Rules of one node, at most: looking at all of them takes no time that a client would notice.
pub const RULES_MAX: usize = 10_000;

/// Rules, and what holds for all of them.
#[derive(Clone, PartialEq, Debug)]
pub struct RuleSet {
    /// Bytes of a sector, a power of two from 512 to 64 KiB: the unit in which media go bad and are cured.
    pub lba_size: u32,
    /// What every random decision depends on.
    pub seed: u64,
    /// The state things begin in.
    pub state: StateName,
    /// In the order in which they are examined. Their ids differ.
    pub rules: Vec<Rule>,
}

/// A state of the engine, which all rules share. blkdebug's states are numbers, ours are words; `1` is a word too.
pub type StateName = Rc<str>;

impl Default for RuleSet {
    fn default() -> Self {
        Self { lba_size: 512, seed: 0, state: Rc::from("1"), rules: Vec::new() }
    }
}

/// One rule.
#[derive(Clone, PartialEq, Debug)]
pub struct Rule {
    /// Its name, unique in its engine; goes with every error it injects.
    pub id: RuleId,
    /// When it fires.
    pub on: On,
    /// What happens to the request.
    pub action: Action,
    /// What changes when it has fired.
    pub then: Then,
    /// How the sectors it is about fall ill and recover; `None`: the range is as it is, for ever.
    pub life: Option<Life>,
}

/// When a rule fires. Everything given has to hold.
#[derive(Clone, PartialEq, Debug)]
pub struct On {
    /// Kinds of requests.
    ///
    /// Empty for a rule with an event alone: it fires when the event is announced, and can only `hold`, `delay`, cut the
    /// power, or change the state. With operations *and* an event, the event arms the rule for one request: the first
    /// that matches the rest (the step itself follows its announcement).
    pub operations: Operations,
    /// A step of the driver above.
    pub event: Option<Event>,
    /// blkdebug's way with operations and an event: the event makes the rules it matches the *active* ones instead of those
    /// before, and an active rule stays so until another event of this kind (block-layer.md 1.4). Not in rule files.
    pub sticky: bool,
    /// Bytes; a request that overlaps any of them matches. Empty: any place, and requests without one (flush).
    /// Sorted, apart from each other, made of whole sectors where the rule has a [`Life`].
    pub ranges: Vec<ByteRange>,
    /// Only the n-th request (from 1) of those that match everything above.
    pub nth: Option<u64>,
    /// Only each n-th of those that match everything above, counted from `nth` if both are given.
    pub every: Option<u64>,
    /// In how many of 2^32 cases it fires, decided by seed, rule, and how many such requests it has seen; `None`: always.
    pub probability: Option<u32>,
    /// At most so often.
    pub times: Option<u64>,
    /// Only in this state.
    pub state: Option<StateName>,
    /// Only from this time after the rule was added.
    pub after: Option<Duration>,
    /// Only until this time after the rule was added.
    pub before: Option<Duration>,
    /// Only requests that took at least so long below. Looked at when the request has been done; `do` then can not undo it.
    pub slower_than: Option<Duration>,
    /// Only requests that took less than this below; as [`slower_than`](Self::slower_than).
    pub faster_than: Option<Duration>,
}

impl Default for On {
    /// Any request for data.
    fn default() -> Self {
        Self {
            operations: Operations::DATA,
            event: None,
            sticky: false,
            ranges: Vec::new(),
            nth: None,
            every: None,
            probability: None,
            times: None,
            state: None,
            after: None,
            before: None,
            slower_than: None,
            faster_than: None,
        }
    }
}

/// What changes when a rule has fired.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Then {
    /// The engine's new state.
    pub state: Option<StateName>,
    /// The rule does not fire again until it is reset.
    pub disarm: bool,
    /// The sectors of the request are no longer this rule's: its damage there is gone. What damages a read is cured behind
    /// it: that one read is bad.
    pub cure: bool,
}
