//! What the disk holds, and what is on its way.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::task::Waker;

use blkproof_block::choice::hash;
use blkproof_block::{BlockStatus, ByteRange};
use blkproof_fault::disk::model::{ChangeId, Covered, Model, Request};
use blkproof_fault::disk::piece::{Content as Bytes, Piece};
use blkproof_fault::disk::{FlushError, Kind, Profile};

use super::content::Content;
use super::crash::Crash;
use super::io::{Answer, FaultDone, Io, IoKind, Stage};
use super::options::DiskOptions;
use crate::key::{IoKey, MoveKey};

pub(super) struct State {
    /// What readers see.
    pub(super) content: Content,
    /// What no power cut can take away.
    base: Rc<Content>,
    cache: Model,
    /// Whose each version in the cache is.
    names: Vec<(ChangeId, IoKey)>,
    slots: Vec<Option<Io>>,
    free: Vec<usize>,
    pub(super) grows: bool,
    pub(super) read_only: bool,
    pub(super) instant: bool,
    profile: Profile,
    kind: Kind,
    flush_error: FlushError,
    seed: u64,
}

/// What a move led to.
pub(super) struct Outcome {
    /// The request's next move.
    pub(super) next: Option<MoveKey>,
    /// Who waits for it.
    pub(super) waker: Option<Waker>,
    /// Dropped requests whose moves are no more.
    pub(super) ended: Vec<usize>,
    /// Of what came out.
    pub(super) digest: u64,
}

impl State {
    pub(super) fn new(options: DiskOptions) -> Self {
        let base = Rc::new(options.content);
        Self {
            content: Content::over(Rc::clone(&base)),
            cache: Model::new(base.size(), options.block_size),
            base,
            names: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            grows: options.grows,
            read_only: options.read_only,
            instant: options.instant,
            profile: options.profile,
            kind: options.kind,
            flush_error: options.flush_error,
            seed: options.seed,
        }
    }

    pub(super) fn ios(&self) -> impl Iterator<Item = &Io> {
        self.slots.iter().flatten()
    }

    pub(super) fn io(&self, slot: usize) -> Option<&Io> {
        self.slots.get(slot)?.as_ref()
    }

    pub(super) fn io_mut(&mut self, slot: usize) -> Option<&mut Io> {
        self.slots.get_mut(slot)?.as_mut()
    }

    /// Takes a request in.
    pub(super) fn insert(&mut self, mut io: Io) -> usize {
        if io.info.kind == IoKind::Flush {
            io.moment = Some(self.cache.begin_flush());
        }
        match self.free.pop() {
            Some(slot) => {
                if let Some(place) = self.slots.get_mut(slot) {
                    *place = Some(io);
                }
                slot
            }
            None => {
                self.slots.push(Some(io));
                self.slots.len().saturating_sub(1)
            }
        }
    }

    /// Forgets a request that nobody waits for.
    pub(super) fn remove(&mut self, slot: usize) -> Option<Io> {
        let io = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(io)
    }

    /// Moves a request's data, or lets its caller hear of it.
    pub(super) fn advance(&mut self, slot: usize) -> Option<Outcome> {
        let stage = self.io(slot)?.stage;
        match stage {
            Stage::Sent => Some(self.effect(slot)),
            Stage::Moved => Some(self.complete(slot)),
            Stage::Done => None,
        }
    }

    fn effect(&mut self, slot: usize) -> Outcome {
        let mut outcome = Outcome { next: None, waker: None, ended: Vec::new(), digest: 0 };
        let Some(mut io) = self.slots.get_mut(slot).and_then(Option::take) else { return outcome };
        let part = io.part();
        match io.info.kind {
            IoKind::Read => {
                let mut data = vec![0xee; usize::try_from(io.info.range.len()).unwrap_or(0)];
                let len = usize::try_from(part.len()).unwrap_or(0);
                // What an error leaves in the buffer is nobody's data, and looks like it.
                if let Some(there) = data.get_mut(..len) {
                    self.content.read(io.info.range.start, there);
                }
                outcome.digest = digest(&data);
                io.answer = Answer::Data(data);
            }
            IoKind::Status => {
                let range = io.info.range;
                let (data, len) = self.content.extent(range.start, range.len());
                let host_offset = Some(range.start);
                io.answer = Answer::Status(match data {
                    true => BlockStatus::data(len, host_offset),
                    false => BlockStatus { host_offset, ..BlockStatus::zero(len) },
                });
            }
            IoKind::Drain => outcome.ended = self.settle_orphans(),
            IoKind::Flush => {}
            IoKind::Write | IoKind::Zeroes | IoKind::Discard | IoKind::Resize => {
                let nothing = io.info.kind != IoKind::Resize && part.is_empty();
                let refused = io.info.kind == IoKind::Resize
                    && io
                        .fault
                        .as_ref()
                        .is_some_and(|fault| fault.done.part(ByteRange { start: 0, end: 1 }).is_empty());
                if !nothing && !refused {
                    io.change = Some(self.apply(&io, part));
                }
            }
        }
        if io.orphan {
            if let Some(change) = io.change {
                self.cache.drop_request(change);
            }
            self.free.push(slot);
            return outcome;
        }
        io.stage = Stage::Moved;
        outcome.next = Some(io.info.key.done());
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(io);
        }
        outcome
    }

    /// Lets a write-class request, or this part of it, take effect.
    fn apply(&mut self, io: &Io, part: ByteRange) -> ChangeId {
        let request = match (&io.data, io.info.kind) {
            (Some(data), _) => {
                let from = usize::try_from(part.start.saturating_sub(io.info.range.start)).unwrap_or(0);
                let to = from.saturating_add(usize::try_from(part.len()).unwrap_or(0));
                let bytes = data.get(from..to).unwrap_or_default();
                self.content.write(part.start, bytes);
                let data = if bytes.len() == data.len() { Rc::clone(data) } else { bytes.into() };
                Request::Write { at: part.start, data }
            }
            (None, IoKind::Resize) => {
                self.content.set_size(io.info.range.end);
                Request::Resize { size: io.info.range.end }
            }
            (None, _) => {
                self.content.zero(part);
                Request::Zeroes { range: part, unmap: io.unmap }
            }
        };
        let change = self.cache.submit(request);
        self.names.push((change, io.info.key));
        change
    }

    fn complete(&mut self, slot: usize) -> Outcome {
        let mut outcome = Outcome { next: None, waker: None, ended: Vec::new(), digest: 0 };
        let Some(io) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return outcome };
        io.stage = Stage::Done;
        io.result = io.outcome();
        outcome.waker = io.waker.take();
        outcome.digest = u64::from(io.result.is_err());
        let (succeeded, change, fua, moment) = (io.result.is_ok(), io.change, io.info.fua, io.moment);
        if let Some(change) = change {
            self.cache.complete(change);
            if fua && succeeded {
                self.make_durable(&Covered::one(change));
            }
        }
        if let Some(moment) = moment {
            match (succeeded, self.flush_error) {
                (true, _) => self.make_durable(&Covered::CompletedBefore(moment)),
                (false, FlushError::Forget) => self.forget(&Covered::CompletedBefore(moment)),
                (false, _) => {}
            }
        }
        outcome
    }

    fn make_durable(&mut self, covered: &Covered) {
        if self.kind == Kind::Liar {
            self.cache.promise(covered);
            return;
        }
        let batch = self.cache.batch(covered);
        let base = Rc::make_mut(&mut self.base);
        base.set_size(batch.size);
        for piece in &batch.pieces {
            put(base, piece);
        }
        self.cache.settle(covered);
        if self.cache.is_empty() {
            self.names.clear();
        }
    }

    /// The disk has lost what it had acknowledged, and readers see that it has (CM 4.7 (3)).
    fn forget(&mut self, covered: &Covered) {
        self.cache.forget(covered);
        let mut content = Content::over(Rc::clone(&self.base));
        content.set_size(self.cache.size());
        for piece in self.cache.look(ByteRange { start: 0, end: u64::MAX }) {
            put(&mut content, &piece);
        }
        self.content = content;
    }

    /// A drain ends all doubt about dropped requests.
    fn settle_orphans(&mut self) -> Vec<usize> {
        let orphans: Vec<_> = self
            .slots
            .iter()
            .enumerate()
            .filter(|(_, io)| io.as_ref().is_some_and(|io| io.orphan))
            .map(|(slot, _)| slot)
            .collect();
        for &slot in &orphans {
            let Some(io) = self.remove(slot) else { continue };
            let fate = hash(self.seed ^ 0x6472_6169_6e00, io.info.key.number());
            let range = io.part();
            // Whole, not at all, or as far as some sector.
            let part = match (fate % 3, io.info.kind) {
                (0, _) => range,
                (1, _) | (_, IoKind::Resize) => continue,
                _ => {
                    let sectors = range.len().div_ceil(512).max(1);
                    FaultDone::First((fate >> 8) % sectors * 512).part(range)
                }
            };
            if io.info.kind == IoKind::Resize || !part.is_empty() {
                self.apply(&io, part);
            }
        }
        // What had moved and was dropped before its completion was heard has ended, too; and what lands now has.
        let landed: BTreeSet<_> = self.names.iter().map(|(change, _)| *change).collect();
        for change in landed {
            if !self.ios().any(|io| io.change == Some(change)) {
                self.cache.complete(change);
            }
        }
        orphans
    }

    /// The caller of a request is gone. Whether the request's move is gone with it.
    pub(super) fn dropped(&mut self, slot: usize) -> bool {
        let Some(io) = self.io_mut(slot) else { return true };
        match io.stage {
            Stage::Sent if io.info.kind.writes() => {
                io.orphan = true;
                io.waker = None;
                return false;
            }
            Stage::Moved => {
                if let Some(change) = io.change {
                    self.cache.drop_request(change);
                }
            }
            Stage::Sent | Stage::Done => {}
        }
        self.remove(slot);
        true
    }

    pub(super) fn crash(&self) -> Crash {
        let mut cache = self.cache.clone();
        let mut names = self.names.clone();
        let mut sent: Vec<_> = self.ios().filter(|io| io.stage == Stage::Sent && io.info.kind.writes()).collect();
        sent.sort_by_key(|io| io.info.key);
        for io in sent {
            let part = io.part();
            let request = match (&io.data, io.info.kind) {
                (_, IoKind::Resize) => Request::Resize { size: io.info.range.end },
                _ if part.is_empty() => continue,
                (Some(data), _) => {
                    let from = usize::try_from(part.start.saturating_sub(io.info.range.start)).unwrap_or(0);
                    let to = from.saturating_add(usize::try_from(part.len()).unwrap_or(0));
                    Request::Write { at: part.start, data: data.get(from..to).unwrap_or_default().into() }
                }
                (None, _) => Request::Zeroes { range: part, unmap: io.unmap },
            };
            let change = cache.submit(request);
            names.push((change, io.info.key));
        }
        Crash::new(Rc::clone(&self.base), cache, names, self.profile)
    }
}

impl Io {
    /// Whether its next move makes something durable, or forgets it: the moment before is one at which a cut has most to
    /// choose from.
    pub(super) fn settles(&self) -> bool {
        let durable = self.info.fua && self.fault.is_none();
        self.stage == Stage::Moved && (self.info.kind == IoKind::Flush || durable)
    }
}

/// Writes a piece of the cache.
pub(super) fn put(content: &mut Content, piece: &Piece) {
    match &piece.content {
        Bytes::Data { .. } => content.write(piece.range.start, piece.data().unwrap_or_default()),
        Bytes::Zeroes { .. } => content.zero(piece.range),
        Bytes::Noise(_) => {
            let mut noise = vec![0; usize::try_from(piece.range.len()).unwrap_or(0)];
            piece.copy_to(piece.range.start, &mut noise);
            content.write(piece.range.start, &noise);
        }
    }
}

/// Of some bytes; cheap, for two runs are compared by it.
fn digest(data: &[u8]) -> u64 {
    let (words, rest) = data.as_chunks::<8>();
    let sum = words.iter().fold(data.len() as u64, |sum, word| {
        sum.rotate_left(5).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from_le_bytes(*word)
    });
    rest.iter().fold(sum, |sum, &byte| sum.rotate_left(8) ^ u64::from(byte))
}
