//! Putting entries onto an image.

use blkproof_block::{BlockDevice, ByteRange, Capabilities, IoError, Preallocation, Result, WriteFlags, ZeroFlags};

use super::format::Flags;
use super::read::{Entries, Entry, Log, LogError, Writer};

/// Bytes copied at a time.
const CHUNK: u64 = 1 << 20;

/// Zeroes shorter than this are written as they are.
const HOLE: usize = 4 << 10;

/// What is done with discards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Discards {
    /// The range reads as zeroes.
    #[default]
    Zero,
    /// The range reads as before.
    Keep,
}

/// An entry that could not be put onto an image.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReplayError {
    /// The log is at fault.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The payload could not be read.
    #[error("reading the data of entry {index} at {payload:#x} of the log: {source}")]
    Payload {
        /// The entry.
        index: u64,
        /// Where its payload stands.
        payload: u64,
        /// Why.
        source: IoError,
    },
    /// The image could not be written.
    #[error("writing entry {index} to {range} of the image: {source}")]
    Image {
        /// The entry.
        index: u64,
        /// What it changes.
        range: ByteRange,
        /// Why.
        source: IoError,
    },
}

/// Puts `entry` onto `image`, which grows as far as it has to.
///
/// # Errors
/// [`ReplayError`], naming the entry.
pub async fn apply(log: &Log, entry: &Entry, image: &impl BlockDevice, discards: Discards) -> Result<(), ReplayError> {
    if let Some(size) = entry.size_mark() {
        let done = image.resize(size, Preallocation::Off).await;
        return done.map_err(|source| failed(entry, ByteRange { start: size, end: size }, source));
    }
    match entry.change() {
        Some(range) => apply_part(log, entry, range, image, discards).await,
        None => Ok(()),
    }
}

fn failed(entry: &Entry, range: ByteRange, source: IoError) -> ReplayError {
    ReplayError::Image { index: entry.index, range, source }
}

/// Puts onto `image` what `entry` changes in `part`, which lies inside its change.
///
/// # Errors
/// As [`apply`].
pub async fn apply_part(
    log: &Log,
    entry: &Entry,
    part: ByteRange,
    image: &impl BlockDevice,
    discards: Discards,
) -> Result<(), ReplayError> {
    let image_failed = |source| failed(entry, part, source);
    if entry.flags.contains(Flags::DISCARD) {
        // What lies behind the end is zero as it is.
        let part = ByteRange { end: part.end.min(image.info().size), ..part };
        return match discards {
            Discards::Zero if !part.is_empty() => {
                image.write_zeroes(part.start, part.len(), ZeroFlags::MAY_UNMAP).await.map_err(image_failed)
            }
            _ => Ok(()),
        };
    }
    let Some(payload) = entry.payload else { return Ok(()) };
    make_room(image, part.end).await.map_err(image_failed)?;
    let mut buffer = vec![0; usize::try_from(CHUNK.min(part.len())).unwrap_or(0)];
    let mut at = part.start;
    while at < part.end {
        let len = CHUNK.min(part.end.saturating_sub(at));
        let from = payload.saturating_add(at.saturating_sub(entry.range.start));
        // Holes of the log are zeroes that need not be read.
        let status = log.device().block_status(from, len).await.map_err(|source| unread(entry, from, source))?;
        if status.zero {
            image.write_zeroes(at, status.len.min(len), ZeroFlags::MAY_UNMAP).await.map_err(image_failed)?;
            at = at.saturating_add(status.len.min(len));
            continue;
        }
        let piece = buffer.get_mut(..usize::try_from(len).unwrap_or(0)).unwrap_or_default();
        log.device().read(from, piece).await.map_err(|source| unread(entry, from, source))?;
        write_sparse(image, at, piece).await.map_err(image_failed)?;
        at = at.saturating_add(len);
    }
    Ok(())
}

fn unread(entry: &Entry, payload: u64, source: IoError) -> ReplayError {
    ReplayError::Payload { index: entry.index, payload, source }
}

async fn make_room(image: &impl BlockDevice, end: u64) -> Result<()> {
    let info = image.info();
    if end <= info.size || info.capabilities.contains(Capabilities::GROWS) {
        return Ok(());
    }
    image.resize(end, Preallocation::Off).await
}

/// Writes `data`, long stretches of zeroes as such.
async fn write_sparse(image: &impl BlockDevice, at: u64, data: &[u8]) -> Result<()> {
    let zero = |piece: &[u8]| piece.len() == HOLE && piece.iter().all(|byte| *byte == 0);
    let mut rest = data;
    let mut at = at;
    while let Some(first) = rest.chunks(HOLE).next() {
        let kind = zero(first);
        let same: usize = rest.chunks(HOLE).take_while(|piece| zero(piece) == kind).map(<[u8]>::len).sum();
        let (run, behind) = rest.split_at_checked(same).unwrap_or((rest, &[]));
        if kind {
            image.write_zeroes(at, run.len() as u64, ZeroFlags::MAY_UNMAP).await?;
        } else {
            image.write(at, run, WriteFlags::empty()).await?;
        }
        at = at.saturating_add(run.len() as u64);
        rest = behind;
    }
    Ok(())
}

/// Where a replay ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Until {
    /// Behind the last entry.
    End,
    /// Behind the first so many entries.
    Entries(u64),
    /// At the first mark of this text: everything before it.
    Mark(String),
    /// Behind the first flush that is not before this entry.
    Flush(u64),
    /// Behind the first FUA entry that is not before this entry.
    Fua(u64),
}

/// What a replay came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replayed {
    /// Entries that were put onto the image, flushes and marks included.
    pub entries: u64,
    /// Whether the place it was to end at was found; always, for the end of the log.
    pub found: bool,
    /// Who wrote the log, as far as these entries tell.
    pub writer: Writer,
}

/// Puts entries onto `image` until `until`.
///
/// What comes before a fault of the log is on the image when this fails.
///
/// # Errors
/// As [`apply`], and [`ReplayError::Log`].
pub async fn replay(
    log: &Log,
    entries: &mut Entries<'_>,
    until: &Until,
    image: &impl BlockDevice,
    discards: Discards,
) -> Result<Replayed, ReplayError> {
    let mut done = Replayed { entries: entries.index(), found: *until == Until::End, writer: Writer::Unknown };
    loop {
        if matches!(until, Until::Entries(most) if done.entries >= *most) {
            return Ok(Replayed { found: true, ..done });
        }
        let Some(entry) = entries.next().await? else { return Ok(done) };
        if matches!((until, &entry.text), (Until::Mark(wanted), Some(text)) if wanted == text) {
            return Ok(Replayed { found: true, ..done });
        }
        apply(log, &entry, image, discards).await?;
        done.entries = entries.index();
        done.writer = done.writer.seen(&entry);
        let last = match until {
            Until::Flush(from) => entry.index >= *from && entry.flags.contains(Flags::FLUSH),
            Until::Fua(from) => entry.index >= *from && entry.flags.contains(Flags::FUA),
            _ => false,
        };
        if last {
            return Ok(Replayed { found: true, ..done });
        }
    }
}
