//! Requests to a simulated disk, and what may go wrong with them.

use std::rc::Rc;
use std::task::Waker;

use blkproof_block::{BlockStatus, ByteRange, IoError, Result};
use blkproof_fault::disk::model::{ChangeId, Moment};

use crate::key::IoKey;

/// What a request to the disk does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum IoKind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Writes zeroes.
    Zeroes,
    /// Discards.
    Discard,
    /// Makes what completed durable.
    Flush,
    /// Asks what a range is.
    Status,
    /// Changes the size.
    Resize,
    /// Waits for dropped requests.
    Drain,
}

impl IoKind {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Read, Self::Write, Self::Zeroes, Self::Discard, Self::Flush, Self::Status, Self::Resize, Self::Drain];

    /// Its word in plans and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Zeroes => "zeroes",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::Status => "status",
            Self::Resize => "resize",
            Self::Drain => "drain",
        }
    }

    /// Whether it changes what the disk holds.
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Zeroes | Self::Discard | Self::Resize)
    }
}

/// A request to the disk, as it was sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IoInfo {
    /// Its name.
    pub key: IoKey,
    /// What it does.
    pub kind: IoKind,
    /// The bytes it is about; of a resize, from nothing to the new size.
    pub range: ByteRange,
    /// Durable when it completes.
    pub fua: bool,
}

/// What goes wrong with a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The request is refused when it is sent: the driver hears of it without waiting (CM 4.2 (5)).
    pub immediate: bool,
    /// What is done all the same.
    pub done: FaultDone,
    /// What the driver hears.
    pub error: IoError,
}

/// How much of a failing request is done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FaultDone {
    /// Nothing.
    Nothing,
    /// Everything.
    All,
    /// The sectors that end at this byte or before it, counted from the request's first.
    First(u64),
    /// What [`First`](Self::First) would have left undone.
    From(u64),
}

impl FaultDone {
    /// The bytes of `range` that are done.
    ///
    /// They begin and end where the request does, or between two sectors of the disk: a failed write may leave some
    /// sectors new and some old, but none that is neither (CM 4.3 (1)).
    pub fn part(self, range: ByteRange) -> ByteRange {
        let split = |len: u64| match range.start.saturating_add(len) {
            at if at >= range.end => range.end,
            at => (at - at % SECTOR).max(range.start),
        };
        match self {
            Self::Nothing => ByteRange { start: range.start, end: range.start },
            Self::All => range,
            Self::First(len) => ByteRange { start: range.start, end: split(len) },
            Self::From(len) => ByteRange { start: split(len), end: range.end },
        }
    }
}

/// The least that a disk does whole.
const SECTOR: u64 = 512;

/// Where a request stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// It arrived; its data has not moved.
    Sent,
    /// Its data moved; its caller has not heard of it.
    Moved,
    /// Its caller may take the answer.
    Done,
}

/// What the caller gets.
#[derive(Debug)]
pub(super) enum Answer {
    Nothing,
    Data(Vec<u8>),
    Status(BlockStatus),
}

/// A request on its way.
#[derive(Debug)]
pub(super) struct Io {
    pub(super) info: IoInfo,
    pub(super) data: Option<Rc<[u8]>>,
    pub(super) unmap: bool,
    pub(super) fault: Option<Fault>,
    pub(super) stage: Stage,
    /// Its caller is gone; it may still land.
    pub(super) orphan: bool,
    /// Its number in the cache, once its data has moved.
    pub(super) change: Option<ChangeId>,
    /// Of a flush: when it was sent.
    pub(super) moment: Option<Moment>,
    pub(super) answer: Answer,
    pub(super) result: Result<()>,
    pub(super) waker: Option<Waker>,
}

impl Io {
    /// The bytes of it that take effect.
    pub(super) fn part(&self) -> ByteRange {
        self.fault.as_ref().map_or(self.info.range, |fault| fault.done.part(self.info.range))
    }

    pub(super) fn outcome(&self) -> Result<()> {
        match &self.fault {
            Some(Fault { error, .. }) => Err(IoError::clone(error)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use blkproof_block::ByteRange;

    use super::FaultDone;

    #[test]
    fn parts_end_between_sectors() {
        let range = ByteRange { start: 302, end: 1326 };
        let cases = [
            (FaultDone::First(0), 302, 302),
            (FaultDone::First(209), 302, 302),
            (FaultDone::First(210), 302, 512),
            (FaultDone::First(512), 302, 512),
            (FaultDone::First(1023), 302, 1024),
            (FaultDone::First(1024), 302, 1326),
            (FaultDone::First(u64::MAX), 302, 1326),
            (FaultDone::From(0), 302, 1326),
            (FaultDone::From(512), 512, 1326),
            (FaultDone::From(1024), 1326, 1326),
        ];
        for (done, start, end) in cases {
            assert_eq!(done.part(range), ByteRange { start, end }, "{done:?}");
        }
    }
}
