//! What nodes tell whoever listens: a rule fired, a request is parked, the power is gone.
//!
//! Nobody waits for a listener. Each has a queue of [`QUEUE`] notices; one that does not keep up loses the oldest and is
//! told how many. Where nobody listens, nothing is made.

use std::rc::Rc;
use std::time::Duration;

use blkproof_block::{ByteRange, Event, IoError, RuleId};
use tokio::sync::broadcast;

use crate::ask::Asked;
use crate::clock::SharedClock;
use crate::request::Operation;

/// Notices a slow listener may be behind.
pub const QUEUE: usize = 4096;

/// Something that happened at a node.
#[derive(Clone, Debug)]
pub struct Notice {
    /// When, since 1970-01-01 UTC.
    pub time: Duration,
    /// The node's name.
    pub node: Rc<str>,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum What {
    /// A rule matched a request or an event, and did what it does.
    Fired {
        /// The rule.
        rule: RuleId,
        /// The request's number at this node; `None` if an event fired the rule.
        request: Option<u64>,
        /// What was asked for.
        operation: Option<Operation>,
        /// The request's bytes.
        range: ByteRange,
        /// The event that armed or fired it.
        event: Option<Event>,
        /// The name of the action: `fail`, `torn`, …
        action: &'static str,
        /// The error the client gets, or would get from a device that can report success and sense together.
        error: Option<IoError>,
        /// The engine's state afterwards.
        state: Rc<str>,
    },
    /// A request waits for an answer from outside. Its data, if the rule wants it shown, is not in here, for listeners may be
    /// far behind: whoever is asked takes it ([`Asks::take_shown`](crate::ask::Asks::take_shown)).
    Ask {
        /// The question's number, for the answer.
        ask: u64,
        /// Who is asked.
        to: Asked,
        /// The rule that asks.
        rule: RuleId,
        /// What the request is for.
        operation: Operation,
        /// The request's bytes.
        range: ByteRange,
        /// Whether it has to be durable when it completes.
        fua: bool,
        /// How long the request waits.
        timeout: Duration,
    },
    /// An answer came too late, or its client is gone: the rule's default was taken.
    AskOver {
        /// The question; `None` if there was nobody to ask.
        ask: Option<u64>,
        /// The rule.
        rule: RuleId,
        /// Why: `timeout`, `nobody-listens`, `client-gone`, `cancelled`.
        why: &'static str,
    },
    /// A request was parked under a tag.
    Suspended {
        /// The tag.
        tag: Rc<str>,
    },
    /// A parked request goes on.
    Resumed {
        /// The tag.
        tag: Rc<str>,
    },
    /// The power of a disk was cut; it is in its new state when this is said.
    PowerCut {
        /// How many cuts this disk has had, this one included.
        cut: u64,
        /// The name of the state it came back in, which asks for the same state again.
        state: Rc<str>,
        /// Bytes acknowledged and lost: not flushed, or flushed in vain by a liar.
        lost: u64,
        /// Acknowledged as flushed, and lost all the same: what only a liar does.
        betrayed: u64,
    },
    /// A mirror's sides differ.
    Mismatch {
        /// In words.
        words: Rc<str>,
        /// Where.
        range: ByteRange,
    },
    /// A request that does not keep to the limits a node states: a mistake of the driver above.
    OutsideLimits {
        /// What the request is for.
        operation: Operation,
        /// Its bytes.
        range: ByteRange,
        /// In words.
        words: Rc<str>,
    },
    /// The description of the exports was read again.
    Reloaded {
        /// What has changed; nothing, if there was an error.
        words: Rc<str>,
        /// Why nothing has, or what went wrong on the way.
        error: Option<Rc<str>>,
    },
    /// A client came.
    ClientConnected {
        /// Its name.
        client: Rc<str>,
        /// The export it uses.
        export: Rc<str>,
    },
    /// A client left.
    ClientDisconnected {
        /// Its name.
        client: Rc<str>,
    },
}

/// Where notices go.
#[derive(Clone)]
pub struct Notices {
    sender: broadcast::Sender<Rc<Notice>>,
    clock: SharedClock,
}

impl std::fmt::Debug for Notices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Notices({} listeners)", self.sender.receiver_count())
    }
}

impl Notices {
    /// Nobody listens yet.
    pub fn new(clock: SharedClock) -> Self {
        Self { sender: broadcast::Sender::new(QUEUE), clock }
    }

    /// Whether anybody listens: asked before a notice is put together.
    pub fn wanted(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    /// Tells everybody.
    pub fn tell(&self, node: &Rc<str>, what: What) {
        if self.wanted() {
            let notice = Notice { time: self.clock.unix(), node: Rc::clone(node), what };
            // An error means that the last listener has just left.
            let _ = self.sender.send(Rc::new(notice));
        }
    }

    /// Everything told from now on.
    pub fn listen(&self) -> broadcast::Receiver<Rc<Notice>> {
        self.sender.subscribe()
    }
}
