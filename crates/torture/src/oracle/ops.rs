//! What was asked and how it ended, in one order of events.

use std::rc::Rc;

use blkproof_block::ByteRange;

use crate::plan::{Act, OpId};
use crate::stamp::Body;

/// A position in the one order of events of a run; 0 is before everything.
pub(super) type Time = u64;

/// It has not happened.
pub(super) const NEVER: Time = Time::MAX;

/// The op that stands for what was there before everything.
pub(super) const INITIAL: OpId = 0;

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Ending {
    /// With success.
    Done,
    /// With an error.
    Failed,
    /// With the answer that it was cancelled.
    Cancelled,
}

/// What a request does to the bytes of its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    /// Nothing.
    Nothing,
    /// Those were there before.
    Initial,
    Write(Body),
    Zeroes,
    /// Old content or zeroes.
    Discard,
    /// What it adds or cuts off reads as zeroes (CM 4.12). `certain` if the size before was known.
    Resize {
        to: u64,
        certain: bool,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) act: Option<Act>,
    pub(super) what: What,
    pub(super) range: ByteRange,
    pub(super) fua: bool,
    /// The life in which it was sent; those before ended with a power cut.
    pub(super) life: u32,
    pub(super) submit: Time,
    pub(super) ended: Time,
    pub(super) ending: Option<Ending>,
    /// When it was dropped.
    pub(super) dropped: Time,
}

impl Record {
    pub(super) const EMPTY: Self = Self {
        act: None,
        what: What::Nothing,
        range: ByteRange { start: 0, end: 0 },
        fua: false,
        life: 0,
        submit: NEVER,
        ended: NEVER,
        ending: None,
        dropped: NEVER,
    };

    /// Whether success rules out what had ended before. A discard is its range's old content or zeroes, so it rules out
    /// nothing (CM 4.10).
    fn replaces(&self) -> bool {
        match self.what {
            What::Write(_) | What::Zeroes | What::Initial => true,
            What::Resize { certain, .. } => certain,
            What::Nothing | What::Discard => false,
        }
    }

    pub(super) fn succeeded(&self) -> bool {
        self.ending == Some(Ending::Done)
    }
}

/// What flushes of one life have covered, and how the life ended.
#[derive(Clone, Debug)]
pub(super) struct Life {
    /// Successful requests that ended between these are durable; several pieces only where a failed flush forgets.
    pub(super) covered: Vec<(Time, Time)>,
    /// The power cut.
    pub(super) end: Time,
    /// When the disk was last sent something, if that is told: what the client sent later has not reached it.
    pub(super) reached: Option<Time>,
}

impl Life {
    pub(super) const fn new() -> Self {
        Self { covered: Vec::new(), end: NEVER, reached: None }
    }
}

const CHUNK: usize = 256;

/// All requests, by number, and lives. A copy shares what it can.
#[derive(Clone, Debug)]
pub(super) struct Ops {
    chunks: Vec<Option<Rc<Vec<Record>>>>,
    lives: Vec<Life>,
    /// Late landings count as before what was sent after the drop.
    pub(super) strict: bool,
    /// Every success is durable at once.
    pub(super) write_through: bool,
}

impl Ops {
    pub(super) fn new(size: u64) -> Self {
        let mut ops = Self { chunks: Vec::new(), lives: vec![Life::new()], strict: false, write_through: false };
        *ops.at_mut(INITIAL) = Record {
            what: What::Initial,
            range: ByteRange::at(0, size),
            submit: 0,
            ended: 0,
            ending: Some(Ending::Done),
            fua: true,
            ..Record::EMPTY
        };
        ops
    }

    pub(super) fn at(&self, op: OpId) -> &Record {
        const EMPTY: &Record = &Record::EMPTY;
        let chunk = self.chunks.get(op as usize / CHUNK).and_then(Option::as_ref);
        chunk.and_then(|chunk| chunk.get(op as usize % CHUNK)).unwrap_or(EMPTY)
    }

    pub(super) fn at_mut(&mut self, op: OpId) -> &mut Record {
        let index = op as usize / CHUNK;
        if self.chunks.len() <= index {
            self.chunks.resize(index + 1, None);
        }
        let chunk = self.chunks[index].get_or_insert_with(|| Rc::new(vec![Record::EMPTY; CHUNK]));
        &mut Rc::make_mut(chunk)[op as usize % CHUNK]
    }

    /// All that were sent, by number.
    pub(super) fn all(&self) -> impl Iterator<Item = (OpId, &Record)> {
        let numbered = |(index, chunk): (usize, &'_ Option<Rc<Vec<Record>>>)| chunk.as_ref().map(|_| index);
        let chunks = self.chunks.iter().enumerate().filter_map(numbered);
        let ids = chunks.flat_map(|index| index * CHUNK..(index + 1) * CHUNK);
        ids.filter_map(|id| OpId::try_from(id).ok())
            .map(|op| (op, self.at(op)))
            .filter(|(_, record)| record.act.is_some())
    }

    pub(super) fn life(&self) -> u32 {
        u32::try_from(self.lives.len() - 1).unwrap_or(u32::MAX)
    }

    pub(super) fn this_life(&mut self) -> &mut Life {
        let last = self.lives.len() - 1;
        &mut self.lives[last]
    }

    pub(super) fn life_at(&self, life: u32) -> &Life {
        &self.lives[life as usize]
    }

    /// The power goes.
    pub(super) fn cut(&mut self, now: Time) {
        let told = self.this_life().reached.is_some();
        self.this_life().end = now;
        self.lives.push(Life { reached: told.then_some(now), ..Life::new() });
    }

    pub(super) fn end(&mut self, op: OpId, now: Time, ending: Option<Ending>) {
        let record = self.at_mut(op);
        record.ended = now;
        record.ending = ending;
    }

    /// When it ended: at the latest with the power.
    pub(super) fn ended(&self, op: OpId) -> Time {
        let record = self.at(op);
        record.ended.min(self.life_at(record.life).end)
    }

    /// From when on it is out of the way of requests sent later.
    pub(super) fn settled(&self, op: OpId) -> Time {
        match self.strict {
            true => self.ended(op).min(self.at(op).dropped),
            false => self.ended(op),
        }
    }

    /// Whether a power cut leaves what it did: it succeeded with FUA, or a flush that succeeded was sent after its end
    /// was seen (CM 4.6, 4.8). A request of an earlier life whose effect was not durable then never becomes so: nobody
    /// knows what was left of it.
    pub(super) fn durable(&self, op: OpId) -> bool {
        self.at(op).replaces() && self.stable(op)
    }

    /// The same of any request, also of one that replaces nothing.
    pub(super) fn stable(&self, op: OpId) -> bool {
        let record = self.at(op);
        record.succeeded() && (record.fua || self.write_through || self.flushed(op))
    }

    /// Whether a flush of its life covered it.
    pub(super) fn flushed(&self, op: OpId) -> bool {
        let record = self.at(op);
        let covers = |(from, to): &(Time, Time)| *from < record.ended && record.ended < *to;
        self.life_at(record.life).covered.iter().any(covers)
    }

    /// Whether it rules out what was settled before it was sent: it succeeded, and no power cut has come since or left
    /// it.
    pub(super) fn excludes(&self, op: OpId) -> bool {
        let record = self.at(op);
        record.succeeded() && record.replaces() && (record.life == self.life() || self.durable(op))
    }

    /// Whether it may have reached the disk of its life.
    pub(super) fn sent(&self, op: OpId) -> bool {
        let record = self.at(op);
        self.life_at(record.life).reached.is_none_or(|reached| record.submit < reached) || self.durable(op)
    }
}
