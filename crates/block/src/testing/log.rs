//! What happened on a disk, in order.

use std::rc::Rc;

use crate::device::{WriteFlags, ZeroFlags};
use crate::units::ByteRange;
use crate::{Event, IoError};

/// A request's number, in order of arrival, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OpId(pub u64);

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs, reason = "the names are those of the operations of `BlockDevice`")]
pub enum OpKind {
    Read,
    Write,
    WriteZeroes,
    Discard,
    Flush,
    Resize,
    BlockStatus,
    Event,
    Drain,
}

impl OpKind {
    /// Whether it changes content or size.
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::WriteZeroes | Self::Discard | Self::Resize)
    }
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Op {
    /// Its number.
    pub id: OpId,
    /// What it asks for.
    pub kind: OpKind,
    /// The bytes it is about; empty for flush, drain, event and resize.
    pub range: ByteRange,
    /// What a write brings.
    pub data: Option<Rc<[u8]>>,
    /// Whether it must be durable when it completes.
    pub fua: bool,
    /// Flags of a write.
    pub write_flags: WriteFlags,
    /// Flags of a write zeroes.
    pub zero_flags: ZeroFlags,
    /// The step announced by an event.
    pub event: Option<Event>,
    /// The size a resize asks for.
    pub size: Option<u64>,
    /// It reached past the end of the disk: no part of it can ever be done.
    pub refused: bool,
}

impl Op {
    /// Copies what this request wants in `range`, a piece of its own, over `buf`. Zeroes and discards want zeroes.
    pub(crate) fn content(&self, range: ByteRange, buf: &mut [u8]) {
        let from = range.start.saturating_sub(self.range.start) as usize;
        match self.data.as_ref().and_then(|data| data.get(from..from + buf.len())) {
            Some(data) => buf.copy_from_slice(data),
            None => buf.fill(0),
        }
    }
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "#{} {:?}", self.id.0, self.kind)?;
        if !self.range.is_empty() {
            write!(f, " {}", self.range)?;
        }
        if let Some(event) = self.event {
            write!(f, " {event}")?;
        }
        if let Some(size) = self.size {
            write!(f, " to {size:#x}")?;
        }
        if self.fua {
            f.write_str(" fua")?;
        }
        Ok(())
    }
}

/// One thing that happened to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// It arrived.
    Submit,
    /// Its data moved, in these ranges: all of it, a part, or nothing. After [`Step::Drop`]: it landed late.
    Effect(Rc<[ByteRange]>),
    /// Its caller was told.
    Complete(Result<(), IoError>),
    /// Its future was dropped.
    Drop,
    /// A drain decided that the dropped request will never land.
    Gone,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Which request.
    pub op: OpId,
    /// What happened.
    pub step: Step,
}

/// Everything that happened on a disk. Positions are indices into [`entries`](Self::entries): a crash *at* position `p`
/// happens when the entries before `p` have happened and the others have not.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub(crate) entries: Vec<Entry>,
    pub(crate) ops: Vec<Rc<Op>>,
}

impl Log {
    /// What happened, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The requests by number.
    pub fn ops(&self) -> &[Rc<Op>] {
        &self.ops
    }

    /// The request of that number.
    ///
    /// # Panics
    /// If the log has no such request.
    pub fn op(&self, id: OpId) -> &Rc<Op> {
        &self.ops[id.0 as usize]
    }

    /// The position behind the last entry.
    pub fn end(&self) -> usize {
        self.entries.len()
    }

    /// The requests of one kind.
    pub fn of_kind(&self, kind: OpKind) -> impl Iterator<Item = &Rc<Op>> {
        self.ops.iter().filter(move |op| op.kind == kind)
    }

    /// The events announced, with the position of each.
    pub fn events(&self) -> impl Iterator<Item = (usize, Event)> {
        self.entries.iter().enumerate().filter_map(|(position, entry)| match entry.step {
            Step::Submit => self.op(entry.op).event.map(|event| (position, event)),
            _ => None,
        })
    }

    /// The position of the first step of `id` that `wanted` accepts.
    pub fn position(&self, id: OpId, wanted: impl Fn(&Step) -> bool) -> Option<usize> {
        self.entries.iter().position(|entry| entry.op == id && wanted(&entry.step))
    }

    /// A number that tells two different histories apart.
    pub fn fingerprint(&self) -> u64 {
        let mut sum = 0;
        for entry in &self.entries {
            let step = match &entry.step {
                Step::Submit => 0,
                Step::Effect(done) => 1 + done.iter().map(|range| range.len()).sum::<u64>(),
                Step::Complete(result) => u64::MAX - u64::from(result.is_ok()),
                Step::Drop => u64::MAX - 2,
                Step::Gone => u64::MAX - 3,
            };
            let op = self.op(entry.op);
            sum = super::hash(sum ^ op.range.start, super::hash(step, op.range.end ^ op.kind as u64));
            for word in op.data.iter().flat_map(|data| data.chunks(8)).take(4) {
                sum = super::hash(sum, word.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)));
            }
        }
        sum
    }
}

impl std::fmt::Display for Log {
    /// One line per entry.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (position, entry) in self.entries.iter().enumerate() {
            let op = self.op(entry.op);
            match &entry.step {
                Step::Submit => writeln!(f, "{position:5} submit   {op}")?,
                Step::Effect(done) if done.is_empty() => writeln!(f, "{position:5} nothing  {op}")?,
                Step::Effect(done) => writeln!(f, "{position:5} effect   {op} in {done:?}")?,
                Step::Complete(Ok(())) => writeln!(f, "{position:5} complete {op}")?,
                Step::Complete(Err(error)) => writeln!(f, "{position:5} fail     {op}: {error}")?,
                Step::Drop => writeln!(f, "{position:5} drop     {op}")?,
                Step::Gone => writeln!(f, "{position:5} gone     {op}")?,
            }
        }
        Ok(())
    }
}
