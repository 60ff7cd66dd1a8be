//! The power switch, and everything else that control does to a disk.
//!
//! # A power cut, step by step
//! 1. In one go, without waiting: the state is chosen, the power is off, every job that writes to the medium is
//!    dropped, the cache is empty. From here on requests in flight and later ones hear `ENOTCONN`.
//! 2. The node below is drained: what was dropped has landed, or never will.
//! 3. The state is written to the medium, size first, and flushed. What a flush under way had written over is put
//!    back.
//! 4. The cut is told, and the power is on again, unless the disk stays off.
//!
//! A cut waits for nothing that another request would have to do, so a filter above may ask for it in the middle of a
//! request. A cut that is abandoned, or whose medium fails, in 2 or 3 leaves the disk off; the next `power_on` or cut
//! goes on with the same state. So does one that a [rule below holds](super::patience).

use std::rc::Rc;

use blkproof_block::choice::hash;
use blkproof_block::{BlockDevice, ByteRange, Errno, IoError, LocalBoxFuture};

use super::config::{DiskOptions, FlushError};
use super::medium::{Shared, Underway, put};
use super::model::{Covered, Sabotage};
use super::name::{StateName, UnknownState};
use super::patience::unless_stuck;
use super::piece::{Piece, cut_off, gaps, laid_over};
use super::state::{Estimate, State};
use super::unreadable::Unreadable;
use crate::notice::What;
use crate::power::Power;

/// Bytes copied at once where a state is saved whole.
const CHUNK: u64 = 1 << 20;

/// The handle of a disk: for control, and for rules that cut the power. Cloning gives another one.
#[derive(Clone)]
pub struct Disk(pub(super) Rc<Shared>);

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("name", &self.0.name).field("cuts", &self.0.cuts.get()).finish_non_exhaustive()
    }
}

/// A state that is being put on the medium.
pub(super) struct Pending {
    report: CutReport,
    pieces: Rc<[Piece]>,
    unreadable: Unreadable,
}

/// What a power cut did.
#[derive(Clone, PartialEq, Debug)]
pub struct CutReport {
    /// How many cuts this disk has had, this one included.
    pub cut: u64,
    /// The name of the state, which would have asked for it.
    pub state: Rc<str>,
    /// Bytes of the disk.
    pub size: u64,
    /// Requests that were in the cache.
    pub requests: usize,
    /// Of how many states this is one.
    pub states: Estimate,
    /// Bytes that were acknowledged and are not there.
    pub lost: u64,
    /// Bytes of these that a liar had said were durable.
    pub betrayed: u64,
}

/// Why the power was not cut, or the state does not stand.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CutError {
    /// No such state; the power is as it was.
    #[error(transparent)]
    State(#[from] UnknownState),
    /// There is no power to cut.
    #[error("the disk is off already")]
    Off,
    /// The last cut is not over: its state does not stand yet, and the disk is off.
    #[error("the state that the last power cut left does not stand on the medium yet; power-on goes on with it")]
    Unfinished,
    /// The medium failed; the disk stays off until it can be [switched on](Disk::power_on).
    #[error("the state could not be written to the medium, and the disk stays off: {0}")]
    Medium(IoError),
}

/// What a disk looks like from outside.
#[derive(Clone, Debug)]
pub struct DiskState {
    /// Its node's name.
    pub name: Rc<str>,
    /// Whether it has power.
    pub on: bool,
    /// What it is.
    pub options: DiskOptions,
    /// Bytes of the disk as clients see it.
    pub size: u64,
    /// Power cuts so far.
    pub cuts: u64,
    /// Requests in the cache.
    pub requests: usize,
    /// Of these, not acknowledged yet.
    pub open: usize,
    /// Bytes in the cache, bookkeeping included.
    pub cached: u64,
    /// Bytes in the cache that a liar said were durable.
    pub promised: u64,
    /// How many states a cut at this moment could leave.
    pub states: Estimate,
    /// Names of some of them, in the order in which they are worth trying.
    pub names: Vec<StateName>,
}

/// What is saved of a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// What differs from the medium. The target shows the medium where nothing is written to it, as an image with the
    /// medium for its backing file does; it is good as long as nobody writes to the medium.
    Overlay,
    /// All of it. The target is new and reads as zeroes, which are not written to it.
    Image,
}

/// Flushes of this disk do not fail on demand (option `flush-error`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("flushes of this disk do not fail; open it with flush-error=keep or flush-error=forget")]
pub struct FlushesHold;

impl Disk {
    /// The name of its node.
    pub fn name(&self) -> &Rc<str> {
        &self.0.name
    }

    /// What its user chose.
    pub fn options(&self) -> DiskOptions {
        self.0.options
    }

    /// Whether it has power.
    pub fn is_on(&self) -> bool {
        self.0.on.get()
    }

    /// Power cuts so far.
    pub fn cuts(&self) -> u64 {
        self.0.cuts.get()
    }

    /// Cuts the power; the disk comes back in the [state](StateName) of that name, or in one that its seed and the
    /// number of the cut pick (`seed:…`).
    ///
    /// Returns when the state stands and, unless the disk stays off, the power is back. Of two cuts at once the second
    /// begins when the first is done.
    ///
    /// # Errors
    /// [`CutError`]. A name is looked at before anything else happens.
    pub async fn power_cut(&self, state: Option<&str>) -> Result<CutReport, CutError> {
        let name = state.map(str::parse).transpose()?;
        let shared = &self.0;
        let _switch = shared.switch.lock().await;
        if shared.pending.borrow().is_none() {
            if !shared.on.get() {
                return Err(CutError::Off);
            }
            shared.lose_power(name)?;
        }
        let report = unless_stuck(shared, shared.stand()).await.map_err(CutError::Medium)?.ok_or(CutError::Off)?;
        shared.on.set(!shared.options.stay_off);
        Ok(report)
    }

    /// Switches the power on; does nothing if it is on.
    ///
    /// # Errors
    /// If the state of a cut that did not come to its end can not be written to the medium now either.
    pub async fn power_on(&self) -> Result<(), IoError> {
        let shared = &self.0;
        let _switch = shared.switch.lock().await;
        unless_stuck(shared, shared.stand()).await?;
        shared.on.set(true);
        Ok(())
    }

    /// What the disk looks like, with up to `names` names of states.
    pub fn state(&self, names: usize) -> DiskState {
        let shared = &self.0;
        let model = shared.model.borrow();
        let DiskOptions { profile, seed, .. } = shared.options;
        let (requests, open) = model.pending();
        DiskState {
            name: Rc::clone(&shared.name),
            on: shared.on.get(),
            options: shared.options,
            size: model.size(),
            cuts: shared.cuts.get(),
            requests,
            open,
            cached: model.bytes(),
            promised: model.promised(),
            states: model.count(profile),
            names: model.names(profile, names, hash(seed, shared.cuts.get())),
        }
    }

    /// The state that a cut at this moment would leave, as what is to be written over the medium. Nothing changes.
    ///
    /// # Errors
    /// If there is no such state.
    pub fn preview(&self, state: &str) -> Result<State, UnknownState> {
        self.0.choose(&state.parse()?)
    }

    /// Writes that state to `to`, which gets its size. The disk goes on; what arrives meanwhile is not part of the
    /// state. The medium's content is read only for [`Extent::Image`], and holes in it are skipped.
    ///
    /// # Errors
    /// If there is no such state, or a node fails.
    pub async fn save_state(&self, state: &str, to: &impl BlockDevice, extent: Extent) -> Result<State, CutError> {
        let name = state.parse()?;
        // As long as this is held, the medium does not change.
        let _medium = self.0.medium.lock().await;
        if self.0.pending.borrow().is_some() {
            return Err(CutError::Unfinished);
        }
        // Nor by what a job left on its way.
        self.0.drain_late().await.map_err(CutError::Medium)?;
        let state = self.0.choose(&name)?;
        save(&self.0, &state, to, extent).await.map_err(CutError::Medium)?;
        Ok(state)
    }

    /// Makes the next `count` flushes fail, without doing anything. Option `flush-error` says what becomes of the
    /// data.
    ///
    /// # Errors
    /// With `flush-error=none`.
    pub fn fail_flushes(&self, count: u64) -> Result<(), FlushesHold> {
        if self.0.options.flush_error == FlushError::None {
            return Err(FlushesHold);
        }
        self.0.fail_flushes.set(count);
        Ok(())
    }
}

impl Power for Disk {
    fn cut<'a>(&'a self, state: Option<&'a str>) -> LocalBoxFuture<'a, Result<(), IoError>> {
        Box::pin(async move {
            match self.power_cut(state).await {
                Ok(_) => Ok(()),
                Err(CutError::Medium(error)) => Err(error),
                Err(CutError::Off) => Err(super::jobs::no_power()),
                Err(error @ (CutError::State(_) | CutError::Unfinished)) => {
                    Err(IoError::new(Errno::INVAL).detail(error.to_string()))
                }
            }
        })
    }
}

impl Shared {
    /// The state of that name if the power went now, over what the medium holds now.
    fn choose(&self, name: &StateName) -> Result<State, UnknownState> {
        let underway = self.underway.borrow();
        let profile = self.options.profile;
        let model = self.model.borrow();
        let mut unreadable = self.unreadable.borrow().clone();
        let (mut state, lower) = match &*underway {
            None => (model.state(name, profile, &Covered::Nothing)?, Vec::new()),
            // What the medium held before the flush lies beneath whatever survives of it.
            Some(Underway { covered, undo: Some(undo) }) => {
                (model.state(name, profile, &Covered::These(covered.clone()))?, undo.clone())
            }
            // Nobody knows which of it the medium has: it all survives, and is written again.
            Some(Underway { covered, undo: None }) => {
                let covered = Covered::These(covered.clone());
                let batch = model.batch(&covered);
                let mut settled = model.clone();
                settled.settle(&covered);
                unreadable.written(&batch.pieces, batch.size);
                (settled.state(name, profile, &Covered::Nothing)?, batch.pieces)
            }
        };
        unreadable.written(&state.pieces, state.size);
        unreadable.add(&state.unreadable);
        state.unreadable = unreadable.ranges();
        if !lower.is_empty() {
            state.pieces = laid_over(&state.pieces, &lower);
            cut_off(&mut state.pieces, state.size);
        }
        Ok(state)
    }

    /// Step 1 of a cut.
    fn lose_power(&self, name: Option<StateName>) -> Result<(), UnknownState> {
        let cut = self.cuts.get().saturating_add(1);
        let name = name.unwrap_or_else(|| StateName::Seed(hash(self.options.seed, cut)));
        let state = self.choose(&name)?;
        let mut unreadable = Unreadable::default();
        unreadable.add(&state.unreadable);
        let report = {
            let mut model = self.model.borrow_mut();
            let (requests, _) = model.pending();
            let states = model.count(self.options.profile);
            model.reset(state.size);
            let State { size, lost, betrayed, .. } = state;
            CutReport { cut, state: Rc::from(name.to_string()), size, requests, states, lost, betrayed }
        };
        self.pending.replace(Some(Pending { report, pieces: state.pieces.into(), unreadable }));
        self.cuts.set(cut);
        self.life.set(self.life.get().wrapping_add(1));
        self.on.set(false);
        if !self.model.borrow().is_sabotaged(Sabotage::JobsOutliveCut) {
            self.jobs.cut();
        }
        // What they had written over is in the pieces.
        self.underway.replace(None);
        Ok(())
    }

    /// Steps 2 and 3, and the telling: makes a chosen state stand on the medium. `None` if there is none to.
    async fn stand(&self) -> Result<Option<CutReport>, IoError> {
        let Some((report, pieces)) =
            self.pending.borrow().as_ref().map(|pending| (pending.report.clone(), Rc::clone(&pending.pieces)))
        else {
            return Ok(None);
        };
        {
            let _medium = self.medium.lock().await;
            self.step();
            self.child.drain().await?;
            self.step();
            self.put(report.size, &pieces).await?;
            self.child.flush().await?;
        }
        if let Some(pending) = self.pending.take() {
            self.unreadable.replace(pending.unreadable);
        }
        if let Some(lab) = &self.lab {
            let CutReport { cut, lost, betrayed, .. } = report;
            lab.notices().tell(&self.name, What::PowerCut { cut, state: Rc::clone(&report.state), lost, betrayed });
        }
        Ok(Some(report))
    }
}

async fn save(shared: &Shared, state: &State, to: &impl BlockDevice, extent: Extent) -> Result<(), IoError> {
    if to.info().size != state.size {
        to.resize(state.size, blkproof_block::Preallocation::Off).await?;
    }
    let whole = ByteRange { start: 0, end: state.size };
    if extent == Extent::Image {
        let medium = shared.child.info().size;
        for gap in gaps(whole, &state.pieces) {
            copy(&shared.child, to, ByteRange { start: gap.start, end: gap.end.min(medium) }).await?;
        }
    }
    for piece in &state.pieces {
        let zero = matches!(piece.content, super::piece::Content::Zeroes { .. });
        if extent == Extent::Overlay || !zero {
            put(to, piece).await?;
        }
    }
    to.flush().await
}

/// Copies what is not zero.
async fn copy(from: &impl BlockDevice, to: &impl BlockDevice, range: ByteRange) -> Result<(), IoError> {
    let mut at = range.start;
    let mut buf = Vec::new();
    while at < range.end {
        let left = range.end.saturating_sub(at);
        let status = from.block_status(at, left).await?;
        if status.zero || (!status.data && !status.allocated) {
            at = at.saturating_add(status.len.max(1));
            continue;
        }
        let len = status.len.clamp(1, CHUNK.min(left));
        buf.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
        from.read(at, &mut buf).await?;
        if !blkproof_block::buffer::is_zero(&buf) {
            to.write(at, &buf, blkproof_block::WriteFlags::empty()).await?;
        }
        at = at.saturating_add(len);
    }
    Ok(())
}
