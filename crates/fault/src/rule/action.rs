//! What a rule does to a request: exactly what happens to the data, and what the client hears.

use std::rc::Rc;
use std::time::Duration;

use super::Failure;

/// What happens to a request that a rule fires on.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Nothing: the rule counts, and changes the state.
    None,
    /// Nothing, and the rules behind are not looked at: what fires it is exempt from them.
    Pass,
    /// The request fails.
    Fail {
        /// With what.
        error: Failure,
        /// How much of it is done all the same.
        done: Done,
        /// How long it takes to fail: a drive that tries for seconds before it gives up.
        wait: Option<Delay>,
    },
    /// A part is transferred, the client hears of an error at the first byte that was not: a short transfer.
    Short {
        /// How much is transferred.
        tear: Tear,
        /// The error.
        error: Failure,
    },
    /// A part of a write is done, the rest keeps its old content, and the client hears of success.
    Torn {
        /// Which part is done.
        tear: Tear,
    },
    /// Success without doing anything: a write that never happens, a flush that is not passed on; a read leaves zeroes.
    Phantom,
    /// The data is changed. On reads the damage is laid over what the device holds; on writes the sectors written are
    /// damaged from then on. What the device holds stays as it was, and the damage is the same at every read,
    /// until the sector is written, or the rule does not fire on the read any more for which it always did.
    Corrupt {
        /// How.
        how: Corruption,
        /// Sectors of the request that are hit: all, or as many of 2^32 as this, chosen by seed and sector.
        sectors: Option<u32>,
    },
    /// The request goes to another place and succeeds.
    Misdirect(Place),
    /// The request waits, then goes on.
    Delay(Delay),
    /// The request waits until it is released by its tag (control: `fault-release`).
    Hold {
        /// The tag; without one the rule's id.
        tag: Option<Rc<str>>,
    },
    /// The request is never answered. It is not done either, unless it was done before the rule looked at it.
    Hang,
    /// The client's connection is cut instead of an answer.
    Disconnect {
        /// Whether the request is done first.
        done: Done,
    },
    /// Somebody outside decides.
    Ask {
        /// How long the request waits.
        timeout: Duration,
        /// What happens where nobody answers.
        default: AskDefault,
        /// Whether the question carries the data: of a write as it came, of a read as the device returned it.
        data: bool,
    },
    /// The power of the disk below is cut; the request is cut off with it.
    PowerCut {
        /// The disk's node name; the nearest below if not given.
        disk: Option<Rc<str>>,
        /// The state to come back in, as `power-cut` takes it; by the disk's seed if not given.
        state: Option<Rc<str>>,
        /// How much of the request reaches the disk first.
        done: Done,
    },
    /// The request is done and succeeds, and the device reports how it got there (SCSI RECOVERED ERROR).
    Recovered(Failure),
}

/// How much of a failing request is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Done {
    /// Nothing. A read that names its first bad byte has what lies before that all the same: naming it says so.
    None,
    /// What lies before the first bad byte; nothing if the failure has no place.
    #[default]
    Prefix,
    /// All of it: the client is told of a failure that was none.
    All,
}

/// Where a request is cut in two. The first part is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tear {
    /// After so many units.
    After(u64, Unit),
    /// At a boundary of these units that the seed chooses, for each request the rule has seen; never all of it.
    Random(Unit),
    /// Before the first byte that the rule's ranges and the request share.
    AtRange,
}

/// In what a tear is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Whole sectors, which a device writes whole or not at all.
    Sector,
    /// Bytes: tears inside a sector, which no device should show.
    Byte,
}

/// How data is changed. All of it is a function of seed, rule and sector: a retry sees the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Corruption {
    /// So many bits of each sector are inverted.
    Flip {
        /// How many.
        bits: u32,
    },
    /// One bit of each sector reads as this, whatever is written.
    Stuck {
        /// Bit number in the sector; chosen by seed and sector if not given.
        bit: Option<u32>,
        /// The value.
        value: bool,
    },
    /// Zeroes.
    Zero,
    /// What the sector held before the last write to it that the rule has seen.
    Stale,
    /// What another sector holds: this one's plus so many sectors, around the end of the disk.
    Foreign {
        /// The distance in sectors; chosen by seed and sector if not given.
        distance: Option<i64>,
    },
    /// Noise.
    Random,
}

/// Where a misdirected request goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// So many bytes away, around the end of the disk.
    By(i64),
    /// There.
    At(u64),
}

/// How long a request waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delay {
    /// Always so long.
    Fixed(Duration),
    /// Anything from the first to the second.
    Uniform(Duration, Duration),
    /// Around the first with the second as standard deviation, never below zero.
    Normal(Duration, Duration),
    /// Exponentially distributed around this mean: mostly short, sometimes very long.
    Exponential(Duration),
}

/// What a question is answered with where nobody does.
#[derive(Clone, PartialEq, Debug)]
pub enum AskDefault {
    /// As if there were no rule.
    Proceed,
    /// With a failure.
    Fail(Failure),
}

impl Action {
    /// Its name in rule files, lists and notices.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Pass => "pass",
            Self::Fail { .. } => "fail",
            Self::Short { .. } => "short",
            Self::Torn { .. } => "torn",
            Self::Phantom => "phantom",
            Self::Corrupt { .. } => "corrupt",
            Self::Misdirect(_) => "misdirect",
            Self::Delay(_) => "delay",
            Self::Hold { .. } => "hold",
            Self::Hang => "hang",
            Self::Disconnect { .. } => "disconnect",
            Self::Ask { .. } => "ask",
            Self::PowerCut { .. } => "power-cut",
            Self::Recovered(_) => "recovered",
        }
    }

    /// Whether the rules behind it are still looked at.
    pub const fn goes_on(&self) -> bool {
        matches!(self, Self::None | Self::Delay(_) | Self::Hold { .. } | Self::Corrupt { .. } | Self::Recovered(_))
    }
}
