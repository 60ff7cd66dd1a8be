//! What the engine says is to be done with a request.

use std::rc::Rc;
use std::time::Duration;

use blkproof_block::{ByteRange, IoError, RuleId};

use crate::rule::{Action, AskDefault, Corruption};

/// What is to be done with one request, in the order of the fields.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Rules that fired, in order, for whoever is told of it.
    pub fired: Vec<Fired>,
    /// Waits before anything is done.
    pub pauses: Vec<Pause>,
    /// What becomes of it.
    pub fate: Fate,
    /// Rules that damage what a read reads or a write writes; to be handed back when it is done.
    pub damages: Vec<RuleKey>,
}

/// Stands for a rule as long as the engine lives, whatever is added or removed around it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleKey(pub(super) u64);

/// What follows from a request that has been done.
#[derive(Clone, Debug, Default)]
pub struct Completed {
    /// What rules want that look at how long it took. Only what can still be done is in it.
    pub late: Plan,
    /// To be laid over what a read returned, in the order of the rules, sector by sector.
    pub damage: Vec<Damage>,
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

/// A rule that fired.
#[derive(Clone, Debug)]
pub struct Fired {
    /// The rule.
    pub rule: RuleId,
    /// What it does.
    pub action: Action,
    /// The bytes of the request that it is about; the whole request for a rule without a place.
    pub place: ByteRange,
    /// The error it injects, if it does.
    pub error: Option<IoError>,
}

/// A wait.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pause {
    /// So long.
    Delay(Duration),
    /// Until released.
    Hold {
        /// The rule that holds it, which lets it go when it is removed.
        key: RuleKey,
        /// The tag it is released by.
        tag: Rc<str>,
    },
}

/// How much of a request is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    /// So many bytes from its start; nothing at all if that is 0.
    Bytes(u64),
    /// All of it, also of a request without bytes.
    All,
}

/// What becomes of a request.
#[derive(Clone, Debug, Default)]
pub enum Fate {
    /// It is done.
    #[default]
    Proceed,
    /// A part from its start is done, then it fails.
    Fail {
        /// How much is done.
        done: Share,
        /// With this.
        error: IoError,
    },
    /// A part from its start is done, and it succeeds.
    Torn {
        /// How much is done.
        done: Share,
    },
    /// Nothing is done, and it succeeds.
    Phantom,
    /// It is done from this offset on instead.
    Misdirect {
        /// The offset.
        to: u64,
    },
    /// It is never answered.
    Hang {
        /// The rule that wants it so.
        rule: RuleId,
    },
    /// Somebody decides.
    Ask {
        /// The rule that asks.
        rule: RuleId,
        /// For how long.
        timeout: Duration,
        /// Without an answer.
        default: AskDefault,
        /// Whether the data is shown.
        data: bool,
    },
    /// A part from its start is done, the power of a disk is cut, and the request is cut off.
    PowerCut {
        /// How much is done.
        done: Share,
        /// The disk.
        disk: Option<Rc<str>>,
        /// The state to come back in.
        state: Option<Rc<str>>,
        /// With this.
        error: IoError,
    },
}
