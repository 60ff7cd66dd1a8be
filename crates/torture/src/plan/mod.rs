//! Plans: what is done to a driver, as people and programs read and edit it.
//!
//! Requests have ids that survive the deletion of others, and whatever else a plan says of a moment or a request below
//! it says by those ids ([`IoKey`], [`MoveKey`]). Where it says nothing, the order is first in, first out, nothing fails,
//! and nothing is dropped.

mod describe;
mod text;
mod validate;

use blkproof_block::{ByteRange, Errno};
use blkproof_fault::disk::{FlushError, Kind, Profile};
use blkproof_sim::{FaultDone, IoKey, IoKind, MoveKey, Schedule};

pub use self::describe::errno_words;
pub use self::text::{PlanError, SCHEMA, size_text};
pub use self::validate::{BLOCK_MAX, REQUEST_MAX, SIZE_MAX, VECTOR_MAX};

/// A client request's number: from 1, below [`OP_MAX`], given once.
pub type OpId = u32;

/// Ids are below this.
pub const OP_MAX: OpId = 1 << 20;

/// Everything that determines a run.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// What made it; for information.
    pub seed: u64,
    /// Which driver.
    pub target: TargetSpec,
    /// The disk below.
    pub disk: DiskSpec,
    /// What is done, in the order in which it is begun.
    pub ops: Vec<Op>,
    /// What fails below.
    pub faults: Faults,
    /// In which order things move.
    pub schedule: Schedule,
    /// Power cuts to look into, besides those among the ops.
    pub crash: CrashPlan,
}

/// A driver and its image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetSpec {
    /// The target's name: `qcow2`, `vdi`, `raw`, or a mutant's or a foreign one's.
    pub name: String,
    /// Options of creating and opening the image, by name, in the target's own words; sorted by name.
    pub options: Vec<(String, String)>,
    /// Bytes of the guest's disk.
    pub size: u64,
    /// The image below an overlay: stamped all over, of this size. `None`: no backing file.
    pub base: Option<u64>,
}

/// The simulated disk that holds the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskSpec {
    /// Bytes written whole or not at all.
    pub block: u32,
    /// What a power cut may leave.
    pub profile: Profile,
    /// Whether it keeps its word about flushes.
    pub kind: Kind,
    /// What a failed flush does to its data.
    pub flush_error: FlushError,
    /// Decides what becomes of dropped requests at a drain.
    pub seed: u64,
}

impl Default for DiskSpec {
    /// An honest disk of blocks of 512 bytes, whose failed flushes keep the data.
    fn default() -> Self {
        Self { block: 512, profile: Profile::Block, kind: Kind::Honest, flush_error: FlushError::Keep, seed: 0 }
    }
}

/// One thing a client does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Op {
    /// Its number.
    pub id: OpId,
    /// Requests of one queue follow each other; those of different queues are in flight together. [`Act::Reopen`] and
    /// [`Act::Cut`] are of no queue.
    pub queue: u8,
    /// What is done.
    pub act: Act,
    /// Besides the one before it in its queue, these have ended before it is sent.
    pub after: Vec<OpId>,
    /// It is dropped right after so many moves of its own (polls, effects, completions) were taken.
    pub drop_at: Option<u32>,
}

/// What a client does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    /// Reads; in one request to the driver for each piece of the vector, all sent together, or in one if there is none.
    Read {
        /// Which bytes.
        range: ByteRange,
        /// Lengths of the pieces; their sum is the range's.
        vector: Vec<u32>,
    },
    /// Writes what [`stamp`](crate::stamp) says this op writes there.
    Write {
        /// Which bytes.
        range: ByteRange,
        /// Durable when it completes.
        fua: bool,
        /// Stored compressed, with bytes that can be.
        compressed: bool,
    },
    /// Writes zeroes.
    Zeroes {
        /// Which bytes.
        range: ByteRange,
        /// Durable when it completes.
        fua: bool,
        /// The space may be given back.
        unmap: bool,
        /// Refused rather than written byte by byte.
        no_fallback: bool,
    },
    /// Discards.
    Discard {
        /// Which bytes.
        range: ByteRange,
    },
    /// Flushes.
    Flush,
    /// Drains.
    Drain,
    /// Asks for the status of a range, extent by extent, and compares.
    Status {
        /// Which bytes.
        range: ByteRange,
    },
    /// Changes the size of the guest's disk.
    Resize {
        /// The new size.
        size: u64,
    },
    /// Waits for all that is in flight, closes the image, has it checked, opens it again.
    Reopen,
    /// The power goes, whatever is in flight; the image is opened again, checked, and read whole.
    Cut {
        /// What is left of the disk.
        state: CutState,
    },
}

/// What a power cut leaves, with requests named by whom they belong to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CutState {
    /// Nothing of what was not durable.
    AllOld,
    /// All of it.
    AllNew,
    /// All but these.
    Drop(Vec<IoKey>),
    /// Only these.
    Keep(Vec<IoKey>),
    /// All, but of one request only so many of its first, or its last, blocks.
    Tear {
        /// Which request.
        io: IoKey,
        /// The first blocks survive; else the last.
        first: bool,
        /// How many.
        blocks: u64,
    },
    /// What this seed picks.
    Seed(u64),
    /// The so-manieth of all.
    Number(u64),
}

/// What fails below.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// By name.
    pub named: Vec<FaultSpec>,
    /// By seed.
    pub random: RandomFaults,
}

/// One request below, or more, that fail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FaultSpec {
    /// Which.
    pub at: FaultAt,
    /// This request alone, or from it on every one of its kind until the image is opened again.
    pub lasting: bool,
    /// It is refused when it is sent.
    pub immediate: bool,
    /// What is done all the same.
    pub done: FaultDone,
    /// What the driver hears.
    pub errno: Errno,
}

/// Which request below.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FaultAt {
    /// The one of that name.
    Io(IoKey),
    /// The so-manieth of the run, from 1, in the order they are sent: for sweeps.
    Nth(u64),
    /// The so-manieth of its kind, from 1.
    NthOf(IoKind, u64),
}

/// Faults by seed: each request below fails or not by its name alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RandomFaults {
    /// Decides.
    pub seed: u64,
    /// Of a thousand requests; 0: none.
    pub rate: u32,
    /// Of a thousand failing ones, refused when they are sent.
    pub immediate: u32,
    /// Of a thousand failing writes, with a part of them done.
    pub partial: u32,
    /// Opening and closing are spared.
    pub spare_open: bool,
}

/// Power cuts to look into.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum CrashPlan {
    /// None.
    #[default]
    None,
    /// At every moment worth it (CM 5.3), states in the order of CM 5.4.
    Explore {
        /// States of one moment, at most.
        states: u32,
        /// Cuts during the recovery from a cut.
        depth: u8,
        /// Decides the random ones.
        seed: u64,
    },
    /// This one.
    At {
        /// When.
        point: CutPoint,
        /// What is left.
        state: CutState,
        /// A second cut during the recovery.
        again: Option<Box<(CutPoint, CutState)>>,
    },
}

/// A moment at which the power may go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum CutPoint {
    /// Just before this move.
    Before(MoveKey),
    /// Just before this op is sent.
    BeforeOp(OpId),
    /// Just after this op's success was heard.
    AfterOp(OpId),
    /// When everything is done and the image is closed.
    End,
}
