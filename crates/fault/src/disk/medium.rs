//! What all handles of one disk share, and how the cache reaches the medium: the node below.
//!
//! # Invariants
//! - One job at a time writes to the medium, under its lock, and pieces of one job do not overlap: nothing overtakes.
//! - A job that was dropped in the middle may land late. The next one drains the node below before it writes.
//! - What a job began is under way until a job has settled it: one that failed, or was dropped, has written some of it,
//!   and nobody knows which. Until then a power cut treats it as if the job still ran.
//! - What is written is settled, and so leaves the cache, only afterwards; until then readers are served by the
//!   cache, and a late landing is hidden by it.
//! - A flush that is under way can still be lost. What the medium held before is read first, and a power cut writes it
//!   back where the state says so: at every moment of a flush each of its requests can be kept or lost. Where that is
//!   too much to hold, or the disk shrinks, the flush's requests survive the cut, as evicted ones do.
//! - What was on the medium before means: before the first job that is not settled. A later job over the same bytes
//!   takes over what the earlier one had read.
//! - A block that a power cut left unreadable stays so until a write of it is settled; the cache hides it earlier.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use blkproof_block::{
    BlockDevice, ByteRange, Capabilities, Errno, IoError, Node, Preallocation, Result, WriteFlags, ZeroFlags,
};
use futures_util::TryStreamExt as _;
use futures_util::stream;
use tokio::sync::Mutex;

use super::config::{DiskOptions, FlushError};
use super::jobs::{Jobs, no_power};
use super::model::{Batch, ChangeId, Covered, Model, Sabotage};
use super::piece::{Content, Piece, gaps, without};
use super::power::Pending;
use super::unreadable::Unreadable;
use crate::lab::Lab;

/// Pieces on their way to the medium together.
const DEPTH: usize = 16;

/// Bytes of noise made at once.
const NOISE: u64 = 1 << 20;

/// One disk.
pub(super) struct Shared {
    pub(super) name: Rc<str>,
    pub(super) lab: Option<Rc<Lab>>,
    pub(super) child: Node,
    pub(super) options: DiskOptions,
    pub(super) model: RefCell<Model>,
    pub(super) on: Cell<bool>,
    /// Grows with every loss of power: what began before it and ends after it has no answer.
    pub(super) life: Cell<u64>,
    pub(super) jobs: Jobs,
    pub(super) medium: Mutex<()>,
    /// Held by whoever switches the power.
    pub(super) switch: Mutex<()>,
    pub(super) underway: RefCell<Option<Underway>>,
    /// A job was dropped in the middle.
    late: Cell<bool>,
    /// Grows with everything the medium has done.
    pub(super) steps: Cell<u64>,
    pub(super) unreadable: RefCell<Unreadable>,
    /// A change of the medium's size did not end well: it is done again, whatever the size looks like (CM 4.3 (3)).
    size_in_doubt: Cell<bool>,
    /// A state that does not stand on the medium yet.
    pub(super) pending: RefCell<Option<Pending>>,
    pub(super) cuts: Cell<u64>,
    /// Flushes that are to fail.
    pub(super) fail_flushes: Cell<u64>,
}

/// Requests that a job is writing, or began to write and did not end.
pub(super) struct Underway {
    pub(super) covered: BTreeSet<ChangeId>,
    /// What the medium held there before, sorted and apart; `None`: it can not be brought back.
    pub(super) undo: Option<Vec<Piece>>,
}

/// Why something is written back.
pub(super) enum Why {
    /// To be durable.
    Durable(Covered),
    /// So that the cache holds at most so many bytes.
    Room(u64),
}

impl Shared {
    pub(super) fn new(child: Node, options: DiskOptions, name: Rc<str>, lab: Option<Rc<Lab>>) -> Self {
        let model = Model::new(child.info().size, options.block_size);
        Self {
            name,
            lab,
            child,
            options,
            model: RefCell::new(model),
            on: Cell::new(true),
            life: Cell::new(0),
            jobs: Jobs::default(),
            medium: Mutex::new(()),
            switch: Mutex::new(()),
            underway: RefCell::new(None),
            late: Cell::new(false),
            steps: Cell::new(0),
            unreadable: RefCell::default(),
            size_in_doubt: Cell::new(false),
            pending: RefCell::new(None),
            cuts: Cell::new(0),
            fail_flushes: Cell::new(0),
        }
    }

    /// Fails without power.
    pub(super) fn powered(&self) -> Result<()> {
        if self.on.get() { Ok(()) } else { Err(no_power()) }
    }

    /// Fails if the power went since `life`.
    pub(super) fn alive(&self, life: u64) -> Result<()> {
        if self.on.get() && self.life.get() == life { Ok(()) } else { Err(no_power()) }
    }

    /// Runs a write-back that a power cut stops.
    pub(super) async fn write_back(self: &Rc<Self>, why: Why) -> Result<()> {
        self.powered()?;
        self.jobs.run(write_back(Rc::clone(self), why)).await
    }

    /// Makes room for a request with `len` bytes of data.
    pub(super) async fn make_room(self: &Rc<Self>, len: u64) -> Result<()> {
        let limit = self.options.cache_size.saturating_sub(Model::cost(len));
        loop {
            self.powered()?;
            {
                let model = self.model.borrow();
                if model.bytes() <= limit || !model.can_evict() {
                    return Ok(());
                }
            }
            // A little more than needed, so that not every request has to choose anew.
            let room = Why::Room(limit.saturating_sub(limit / 16));
            self.write_back(room).await.map_err(|mut error| {
                // Its place is another request's.
                error.first_bad = None;
                error.transferred = 0;
                error.context("writing back what the disk's cache holds")
            })?;
        }
    }

    /// Makes a flush fail that does nothing. Under the medium's lock: what another job is writing is not forgotten.
    pub(super) async fn fail_flush(self: &Rc<Self>, covered: Covered) -> Result<()> {
        let shared = Rc::clone(self);
        let fail = async move {
            let _medium = shared.medium.lock().await;
            if shared.options.flush_error == FlushError::Forget {
                shared.model.borrow_mut().forget(&covered);
                shared.forget_underway(&[]);
            }
            Err(IoError::new(Errno::IO).detail("the disk was told to fail this flush"))
        };
        self.jobs.run(fail).await
    }

    /// What the medium held where `batch` is going to be written, and where a job was that did not end, if that can be
    /// known and held.
    async fn undo_of(&self, batch: &Batch) -> Result<Option<Vec<Piece>>> {
        let size = self.child.info().size;
        let left = match &*self.underway.borrow() {
            None => Vec::new(),
            Some(Underway { undo: Some(undo), .. }) => undo.clone(),
            Some(Underway { undo: None, .. }) => return Ok(None),
        };
        let bytes = batch.pieces.iter().chain(&left).fold(0_u64, |sum, piece| sum.saturating_add(piece.range.len()));
        if batch.size < size || bytes > self.options.cache_size {
            return Ok(None);
        }
        let mut undo = left.clone();
        for piece in &batch.pieces {
            let known = left.partition_point(|known| known.range.end <= piece.range.start);
            let known = left.get(known..).unwrap_or_default();
            let known = known.get(..known.partition_point(|known| known.range.start < piece.range.end));
            for ByteRange { start, end } in gaps(piece.range, known.unwrap_or_default()) {
                let old = ByteRange { start, end: end.min(size) };
                if !old.is_empty() {
                    let mut bytes = vec![0; usize::try_from(old.len()).unwrap_or(usize::MAX)];
                    self.child.read(old.start, &mut bytes).await?;
                    undo.push(Piece { range: old, content: Content::Data { bytes: bytes.into(), from: 0 } });
                }
                let new = ByteRange { start: start.max(size), end };
                if !new.is_empty() {
                    undo.push(Piece { range: new, content: Content::Zeroes { unmap: true } });
                }
            }
        }
        undo.sort_by_key(|piece| piece.range.start);
        Ok(Some(undo))
    }

    /// A job begins to write.
    fn begin(&self, covered: &Covered, undo: Option<Vec<Piece>>) {
        let mut underway = self.underway.borrow_mut();
        let left = underway.take().map(|left| left.covered).unwrap_or_default();
        let covered = self.model.borrow().ids(covered).into_iter().chain(left).collect();
        *underway = Some(Underway { covered, undo });
    }

    /// These pieces are what the medium holds, or requests were forgotten: what is not in the cache any more is no
    /// longer under way.
    fn forget_underway(&self, settled: &[Piece]) {
        let mut underway = self.underway.borrow_mut();
        let Some(left) = &mut *underway else { return };
        let model = self.model.borrow();
        left.covered.retain(|id| model.is_cached(*id));
        if left.covered.is_empty() {
            *underway = None;
        } else if let Some(undo) = &mut left.undo {
            *undo = without(undo, settled);
        }
    }

    /// Nothing that was dropped lands any more. The caller has the medium.
    pub(super) async fn drain_late(&self) -> Result<()> {
        if self.late.get() && !self.model.borrow().is_sabotaged(Sabotage::NoDrain) {
            self.child.drain().await?;
            self.late.set(false);
        }
        Ok(())
    }

    /// Something was done on the medium.
    pub(super) fn step(&self) {
        self.steps.set(self.steps.get().wrapping_add(1));
    }

    /// Gives the medium this size, and then these pieces, which lie inside it.
    pub(super) async fn put(&self, size: u64, pieces: &[Piece]) -> Result<()> {
        self.put_size(size).await?;
        let write = async |piece| {
            put(&self.child, piece).await?;
            self.step();
            Ok(())
        };
        stream::iter(pieces.iter().map(Ok)).try_for_each_concurrent(DEPTH, write).await
    }

    async fn put_size(&self, size: u64) -> Result<()> {
        let info = self.child.info();
        if info.size == size && !self.size_in_doubt.get() {
            return Ok(());
        }
        self.size_in_doubt.set(true);
        if info.capabilities.contains(Capabilities::RESIZE) {
            self.child.resize(size, Preallocation::Off).await?;
        } else if info.size < size {
            // A medium that grows by writes alone.
            let added = size.saturating_sub(info.size);
            self.child.write_zeroes(info.size, added, ZeroFlags::MAY_UNMAP).await?;
        }
        // Should the host lose its power too: data without the size would be a file of a length that nobody asked for.
        self.child.flush().await?;
        self.size_in_doubt.set(false);
        Ok(())
    }
}

/// Writes one piece to a device.
pub(super) async fn put(to: &impl BlockDevice, piece: &Piece) -> Result<()> {
    let ByteRange { start, end } = piece.range;
    match &piece.content {
        Content::Data { .. } => match piece.data() {
            Some(data) => to.write(start, data, WriteFlags::empty()).await,
            None => Err(IoError::new(blkproof_block::Errno::IO).detail("a piece is longer than its data")),
        },
        Content::Zeroes { unmap } => {
            let flags = if *unmap { ZeroFlags::MAY_UNMAP } else { ZeroFlags::empty() };
            to.write_zeroes(start, piece.range.len(), flags).await
        }
        Content::Noise(_) => {
            let mut at = start;
            while at < end {
                let len = end.saturating_sub(at).min(NOISE);
                let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
                piece.copy_to(at, &mut bytes);
                to.write(at, &bytes, WriteFlags::empty()).await?;
                at = at.saturating_add(len);
            }
            Ok(())
        }
    }
}

/// The job. See the head of this file.
async fn write_back(shared: Rc<Shared>, why: Why) -> Result<()> {
    let _medium = shared.medium.lock().await;
    shared.drain_late().await?;
    let (covered, durable) = match why {
        Why::Durable(covered) => (covered, true),
        Why::Room(limit) => {
            let DiskOptions { write_back, seed, profile, .. } = shared.options;
            (shared.model.borrow_mut().evict(limit, write_back, seed, profile), false)
        }
    };
    let batch = shared.model.borrow().batch(&covered);
    let done = write_batch(&shared, &covered, &batch, durable).await;
    match done {
        Ok(()) => {
            shared.model.borrow_mut().settle(&covered);
            shared.unreadable.borrow_mut().written(&batch.pieces, batch.size);
            shared.forget_underway(&batch.pieces);
        }
        // What the medium took before it failed is on it; the rest stays, or never was (CM 4.7).
        Err(_) if durable && shared.options.flush_error == FlushError::Forget => {
            shared.model.borrow_mut().forget(&covered);
            shared.forget_underway(&[]);
        }
        Err(_) => {}
    }
    done
}

async fn write_batch(shared: &Shared, covered: &Covered, batch: &Batch, durable: bool) -> Result<()> {
    // What is evicted survives, whatever becomes of the job; unless it writes over what a flush left in doubt.
    let in_doubt = shared.underway.borrow().is_some();
    let mut undo = if durable || in_doubt { shared.undo_of(batch).await? } else { None };
    if shared.model.borrow().is_sabotaged(Sabotage::NoUndo) {
        undo = Some(Vec::new());
    }
    if !durable && shared.model.borrow().is_sabotaged(Sabotage::RoomWithoutWriting) {
        return Ok(());
    }
    shared.begin(covered, undo);
    let guard = Guard(shared);
    shared.put(batch.size, &batch.pieces).await?;
    if durable {
        shared.child.flush().await?;
    }
    // Settled in the same poll: no cut can come between.
    std::mem::forget(guard);
    Ok(())
}

/// A job that ends before its end: something may land late.
struct Guard<'a>(&'a Shared);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.late.set(true);
    }
}
