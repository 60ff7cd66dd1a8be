//! The images that a power cut at an entry may leave.
//!
//! The cut comes when the first `at` entries are in the log and no others. What was durable then is put onto the image;
//! the rest goes into the cache of the simulated disk ([`crate::disk::model`]), request numbers being entry numbers, so
//! that states have the names they have there: `drop:17` is the image without entry 17.
//!
//! What is durable (CM 5.1), by how the log was written ([`Writer::model`]):
//! - *details*: entries with FUA, and entries that stood in the log when a flush was sent that is in it. Entries after
//!   the cut whose requests had been sent before it were under way: they may be in the image, too.
//! - *the kernel's log*: entries with FUA, and entries before a flush. The kernel holds entries back until they are
//!   just that.
//! - *completion order* (QEMU): the same; what completed while a flush was under way passes for durable, though it is
//!   not. No state is made up, some are missed, as are those with requests that were under way.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeSet;
use std::rc::Rc;

use blkproof_block::{BlockDevice, ByteRange, Capabilities, IoError, Preallocation, WriteFlags, ZeroFlags};

use super::format::Flags;
use super::read::{Entry, Extent, Log, LogError, Writer};
use super::replay::{Discards, ReplayError, apply};
use crate::disk::config::Profile;
use crate::disk::model::{ChangeId, Covered, Model, Request};
use crate::disk::name::{StateName, UnknownState};
use crate::disk::piece::{Content, Piece};
use crate::disk::state::{Estimate, State};

/// Bytes written at a time.
const CHUNK: u64 = 1 << 20;

/// How to cut.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Which entries count.
    pub extent: Extent,
    /// Bytes a disk writes whole or not at all; a power of two.
    pub block: u32,
    /// Bytes of volatile data to hold in memory at most.
    pub memory: u64,
    /// What discards do.
    pub discards: Discards,
    /// Bytes the disk had when the log began, where there is no image to tell; 0 if that is not known either.
    pub size: Option<u64>,
}

impl Default for How {
    /// Blocks of 512 bytes, discards are zeroes, 1 GiB of memory.
    fn default() -> Self {
        Self { extent: Extent::default(), block: 512, memory: 1 << 30, discards: Discards::default(), size: None }
    }
}

/// A cut that can not be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CutError {
    /// The log, or the image.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// There are not so many entries.
    #[error("the log has {entries} entries, and can not be cut at entry {at}")]
    Entry {
        /// Where it was to be cut.
        at: u64,
        /// Entries there are.
        entries: u64,
    },
    /// Too much would have to be held in memory.
    #[error(
        "from entry {from} on nothing was flushed: more than the {memory} bytes of data that may be held in memory"
    )]
    Memory {
        /// The first entry that is not durable.
        from: u64,
        /// Bytes that may be held.
        memory: u64,
    },
    /// No such state.
    #[error(transparent)]
    State(#[from] UnknownState),
    /// The image could not be written.
    #[error("writing state '{name}' to {at:#x} of the image: {source}")]
    Image {
        /// The state.
        name: String,
        /// Where.
        at: u64,
        /// Why.
        source: IoError,
    },
}

impl From<LogError> for CutError {
    fn from(error: LogError) -> Self {
        Self::Replay(error.into())
    }
}

/// A log that was cut.
#[derive(Debug)]
pub struct Cut {
    model: Model,
    /// Changes that the log says are a file system's metadata: the kernel does.
    metadata: BTreeSet<ChangeId>,
    /// Behind how many entries.
    pub at: u64,
    /// Who wrote the log, and so what is known of it.
    pub writer: Writer,
    /// Entries before this one are durable, whatever they are.
    pub covered: u64,
    /// Changes that were complete and not durable.
    pub volatile: u64,
    /// Changes that were under way.
    pub under_way: u64,
    /// Requests since `covered` that failed: what they left, beyond what the log says, is not in any state.
    pub failed: u64,
}

/// What the entries say of durability, before any is applied.
struct Survey {
    writer: Writer,
    covered: u64,
    entries: u64,
}

impl Cut {
    /// Cuts `log` behind its first `at` entries. What is durable then goes to `image`, which holds what the disk held
    /// when the log began; without an image the cut can be looked at, but not written.
    ///
    /// # Errors
    /// [`CutError`].
    pub async fn new<D: BlockDevice>(log: &Log, at: u64, image: Option<&D>, how: How) -> Result<Self, CutError> {
        let survey = survey(log, at, how.extent).await?;
        if survey.entries < at {
            return Err(CutError::Entry { at, entries: survey.entries });
        }
        let mut cut = Self {
            model: Model::new(image.map_or(how.size.unwrap_or(0), |image| image.info().size), how.block),
            metadata: BTreeSet::new(),
            at,
            writer: survey.writer,
            covered: survey.covered,
            volatile: 0,
            under_way: 0,
            failed: 0,
        };
        let mut entries = log.entries(how.extent);
        while let Some(entry) = next(&mut entries, at).await? {
            let before = entry.index < at;
            if !before && entry.details.is_none_or(|details| details.submitted > at) {
                cut.skip();
                continue;
            }
            if before && entry.index < cut.covered {
                if let Some(image) = image {
                    apply(log, &entry, image, how.discards).await?;
                }
                cut.settle_size(&entry, image.map(|image| image.info().size));
                continue;
            }
            cut.failed = cut.failed.saturating_add(u64::from(entry.is_failure()));
            cut.take(log, &entry, before, image, how).await?;
        }
        Ok(cut)
    }

    /// An entry that is none of the disk's: its number is used up all the same.
    fn skip(&mut self) {
        self.model.submit(Request::Zeroes { range: ByteRange::default(), unmap: false });
    }

    /// A durable entry: its number is used up, and the size of the disk may have changed.
    fn settle_size(&mut self, entry: &Entry, image: Option<u64>) {
        let end = entry.change().filter(|_| !entry.flags.contains(Flags::DISCARD)).map_or(0, |range| range.end);
        let size = image.or(entry.size_mark()).unwrap_or_else(|| self.model.size().max(end));
        if size == self.model.size() {
            return self.skip();
        }
        let id = self.model.submit(Request::Resize { size });
        self.model.settle(&Covered::one(id));
    }

    /// A change that is in the cache, or with FUA on the medium.
    async fn take<D: BlockDevice>(
        &mut self,
        log: &Log,
        entry: &Entry,
        before: bool,
        image: Option<&D>,
        how: How,
    ) -> Result<(), CutError> {
        let Some(request) = request(log, entry, self.model.size(), how).await? else {
            self.skip();
            return Ok(());
        };
        let id = self.model.submit(request);
        if before {
            self.model.complete(id);
        }
        if entry.flags.contains(Flags::METADATA) {
            self.metadata.insert(id);
        }
        if before && entry.flags.contains(Flags::FUA) {
            let covered = Covered::one(id);
            let batch = self.model.batch(&covered);
            if let Some(image) = image {
                let failed = |at, source| CutError::Image { name: format!("FUA entry {}", entry.index), at, source };
                write(image, batch.size, &batch.pieces).await.map_err(|(at, source)| failed(at, source))?;
            }
            self.model.settle(&covered);
        } else if before {
            self.volatile = self.volatile.saturating_add(1);
        } else {
            self.under_way = self.under_way.saturating_add(1);
        }
        if self.model.bytes() > how.memory {
            return Err(CutError::Memory { from: self.covered, memory: how.memory });
        }
        Ok(())
    }

    /// How many states the profile has.
    pub fn count(&self, profile: Profile) -> Estimate {
        self.model.count(profile)
    }

    /// Names of states in the order in which they are worth trying (CM 5.4).
    pub fn names(&self, profile: Profile, budget: usize, seed: u64) -> Vec<StateName> {
        self.model.names_with(profile, budget, seed, (!self.metadata.is_empty()).then_some(&self.metadata))
    }

    /// The state of that name.
    ///
    /// # Errors
    /// If the profile has none.
    pub fn state(&self, name: &StateName, profile: Profile) -> Result<State, UnknownState> {
        self.model.state(name, profile, &Covered::Nothing)
    }

    /// Puts a state onto the image that [`new`](Self::new) was given.
    ///
    /// # Errors
    /// [`CutError::Image`].
    pub async fn write(&self, state: &State, image: &impl BlockDevice) -> Result<(), CutError> {
        let failed = |(at, source)| CutError::Image { name: state.name.to_string(), at, source };
        write(image, state.size, &state.pieces).await.map_err(failed)
    }
}

/// The next entry; what is wrong with one behind the cut is of no concern.
async fn next(entries: &mut super::read::Entries<'_>, at: u64) -> Result<Option<Entry>, CutError> {
    let index = entries.index();
    match entries.next().await {
        Err(_) if index >= at => Ok(None),
        entry => Ok(entry?),
    }
}

async fn survey(log: &Log, at: u64, extent: Extent) -> Result<Survey, CutError> {
    let mut survey = Survey { writer: Writer::Unknown, covered: 0, entries: 0 };
    let mut entries = log.entries(extent);
    while let Some(entry) = next(&mut entries, at).await? {
        survey.entries = entries.index();
        survey.writer = survey.writer.seen(&entry);
        if entry.index < at && entry.flags.contains(Flags::FLUSH) {
            let covers = entry.details.map_or(entry.index, |details| details.submitted.min(entry.index));
            survey.covered = survey.covered.max(covers);
        }
    }
    Ok(survey)
}

/// The request that an entry was, on a disk of `size` bytes; `None` if it changes nothing.
async fn request(log: &Log, entry: &Entry, size: u64, how: How) -> Result<Option<Request>, CutError> {
    if let Some(size) = entry.size_mark() {
        return Ok(Some(Request::Resize { size }));
    }
    let Some(range) = entry.change() else { return Ok(None) };
    if entry.flags.contains(Flags::DISCARD) {
        // What lies behind the end is zero as it is.
        let range = ByteRange { end: range.end.min(size), ..range };
        let zeroes = Request::Zeroes { range, unmap: true };
        return Ok((how.discards == Discards::Zero && !range.is_empty()).then_some(zeroes));
    }
    let Some(payload) = entry.payload else { return Ok(None) };
    let unread = |source| ReplayError::Payload { index: entry.index, payload, source };
    // Explicit zeroes of any length are a hole of the log.
    let status = log.device().block_status(payload, range.len()).await.map_err(unread)?;
    if status.zero && status.len >= range.len() {
        return Ok(Some(Request::Zeroes { range, unmap: false }));
    }
    if range.len() > how.memory {
        return Err(CutError::Memory { from: entry.index, memory: how.memory });
    }
    let mut data = vec![0; usize::try_from(range.len()).unwrap_or(0)];
    log.device().read(payload, &mut data).await.map_err(unread)?;
    Ok(Some(Request::Write { at: range.start, data: Rc::from(data) }))
}

/// Makes `image` have `size` bytes, with `pieces` on it; says where it failed.
async fn write(image: &impl BlockDevice, size: u64, pieces: &[Piece]) -> Result<(), (u64, IoError)> {
    let info = image.info();
    if info.size != size && info.capabilities.contains(Capabilities::RESIZE) {
        image.resize(size, Preallocation::Off).await.map_err(|source| (size, source))?;
    }
    for piece in pieces {
        let range = piece.range;
        if let Content::Zeroes { .. } = piece.content {
            let done = image.write_zeroes(range.start, range.len(), ZeroFlags::MAY_UNMAP).await;
            done.map_err(|source| (range.start, source))?;
            continue;
        }
        let mut at = range.start;
        while at < range.end {
            let part = ByteRange { start: at, end: range.end.min(at.saturating_add(CHUNK)) };
            let mut bytes = vec![0; usize::try_from(part.len()).unwrap_or(0)];
            piece.copy_to(at, &mut bytes);
            image.write(at, &bytes, WriteFlags::empty()).await.map_err(|source| (at, source))?;
            at = part.end;
        }
    }
    Ok(())
}
