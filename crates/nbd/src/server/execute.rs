//! Carrying a request out: from a checked request to what has to be answered.

use blkproof_block::{BlockDevice, ByteOffset, Capabilities, Errno, IoError, Node, WriteFlags, ZeroFlags};

use crate::transmission::request::Request;
use crate::wire::{CommandFlags, allocation, command};

/// Bytes in front of read data, where the head of the reply goes.
pub(super) const HEAD_ROOM: usize = crate::transmission::reply::HEAD_MAX;
/// Most extents in one answer. The client asks again for the rest.
const EXTENTS_MAX: usize = 2048;
/// Bytes read at a time to warm a cache, and the most that are read for one request.
pub(super) const CACHE_STEP: u64 = 1 << 20;
const CACHE_MAX: u64 = 64 << 20;

/// What a request needs besides its head.
#[derive(Debug)]
pub(super) enum Job {
    /// A read into this buffer behind [`HEAD_ROOM`].
    Read(Vec<u8>),
    /// A write of these bytes.
    Write(Vec<u8>),
    /// A block status; `None` if the client asked for no context at all.
    Status { context: Option<u32>, minimum: u32, wide: bool },
    /// Everything else.
    Plain,
}

/// What there is to answer.
#[derive(Debug)]
pub(super) enum Answer {
    /// Success without data.
    Done,
    /// Data behind [`HEAD_ROOM`].
    Data(Vec<u8>),
    /// A read that failed, with what is valid before the place of the failure.
    PartialData(Vec<u8>, IoError),
    /// Extents.
    Status { context: u32, extents: Vec<(u64, u32)> },
}

pub(super) async fn execute(node: &Node, request: Request, job: Job) -> Result<Answer, IoError> {
    let Request { kind, flags, offset, length, .. } = request;
    match (kind, job) {
        (command::READ, Job::Read(mut buf)) => {
            match node.read(offset, buf.get_mut(HEAD_ROOM..).unwrap_or_default()).await {
                Ok(()) => Ok(Answer::Data(buf)),
                Err(error) => match valid_bytes(&error, offset, length) {
                    Some(valid) => {
                        buf.truncate(HEAD_ROOM + valid);
                        Ok(Answer::PartialData(buf, error))
                    }
                    None => Err(error),
                },
            }
        }
        (command::WRITE, Job::Write(data)) => {
            let (native, flush) = durable(node, flags);
            node.write(offset, &data, if native { WriteFlags::FUA } else { WriteFlags::empty() }).await?;
            if flush {
                node.flush().await?;
            }
            Ok(Answer::Done)
        }
        (command::FLUSH, _) => node.flush().await.map(|()| Answer::Done),
        (command::TRIM, _) => {
            node.discard(offset, length).await?;
            if flags.contains(CommandFlags::FUA) {
                node.flush().await?;
            }
            Ok(Answer::Done)
        }
        (command::WRITE_ZEROES, _) => {
            let mut how = ZeroFlags::empty();
            let (native, flush) = durable(node, flags);
            how.set(ZeroFlags::FUA, native);
            how.set(ZeroFlags::MAY_UNMAP, !flags.contains(CommandFlags::NO_HOLE));
            how.set(ZeroFlags::NO_FALLBACK, flags.contains(CommandFlags::FAST_ZERO));
            node.write_zeroes(offset, length, how).await?;
            if flush {
                node.flush().await?;
            }
            Ok(Answer::Done)
        }
        (command::CACHE, _) => cache(node, offset, length).await,
        (command::BLOCK_STATUS, Job::Status { context: None, .. }) => Ok(Answer::Done),
        (command::BLOCK_STATUS, Job::Status { context: Some(context), minimum, wide }) => {
            let one = flags.contains(CommandFlags::REQ_ONE);
            let extents = extents(node, offset, length, one, minimum.into(), wide).await?;
            Ok(Answer::Status { context, extents })
        }
        _ => Err(IoError::new(Errno::INVAL)),
    }
}

/// Whether FUA is handed down, and whether a flush has to follow: FUA is offered on every export, and a device that has
/// none of its own is flushed by whoever wants it.
fn durable(node: &Node, flags: CommandFlags) -> (bool, bool) {
    let wanted = flags.contains(CommandFlags::FUA);
    let native = wanted && node.info().capabilities.contains(Capabilities::FUA);
    (native, wanted && !native)
}

/// How many bytes of a failed read are valid; `None` if there are none.
fn valid_bytes(error: &IoError, offset: u64, length: u64) -> Option<usize> {
    let ByteOffset(bad) = error.first_bad?;
    let valid = bad.checked_sub(offset).filter(|&valid| valid > 0 && valid < length)?;
    usize::try_from(valid).ok()
}

/// Reads and forgets. More than [`CACHE_MAX`] is not warmed: the command is a hint.
async fn cache(node: &Node, offset: u64, length: u64) -> Result<Answer, IoError> {
    let length = length.min(CACHE_MAX);
    let mut buf = vec![0; usize::try_from(length.min(CACHE_STEP)).unwrap_or(0)];
    let mut done = 0;
    while done < length {
        let step = (length - done).min(CACHE_STEP);
        let part = buf.get_mut(..usize::try_from(step).unwrap_or(0)).unwrap_or_default();
        node.read(offset + done, part).await?;
        done += step;
        futures_lite::future::yield_now().await;
    }
    Ok(Answer::Done)
}

/// Collects extents from `offset`: like neighbours joined, no border inside a minimum block, the sum at most `length`.
async fn extents(
    node: &Node,
    offset: u64,
    length: u64,
    one: bool,
    minimum: u64,
    wide: bool,
) -> Result<Vec<(u64, u32)>, IoError> {
    // A 32-bit extent has to stay below 4 GiB, and on a block boundary.
    let length = if wide { length } else { length.min(u64::from(u32::MAX) & !(minimum - 1)) };
    let mut runs = Runs { list: Vec::new(), minimum };
    let mut done = 0;
    let mut steps = 0_u32;
    while done < length {
        let status = node.block_status(offset + done, length - done).await?;
        let len = status.len.clamp(1, length - done);
        let mut flags = 0;
        if !status.data {
            flags |= allocation::HOLE;
        }
        if status.zero {
            flags |= allocation::ZERO;
        }
        runs.add(offset + done, len, flags);
        done += len;
        // The first run is final once a second one follows it.
        if (one && runs.list.len() > 1) || runs.list.len() > EXTENTS_MAX {
            // The last one may still grow or lose a block: it is left for the next request.
            runs.list.truncate(if one { 1 } else { runs.list.len() - 1 });
            break;
        }
        steps += 1;
        if steps.is_multiple_of(64) {
            futures_lite::future::yield_now().await;
        }
    }
    Ok(runs.list)
}

struct Runs {
    list: Vec<(u64, u32)>,
    minimum: u64,
}

impl Runs {
    /// Adds an extent behind those there are. A block in which two of them meet gets the flags both have.
    fn add(&mut self, at: u64, len: u64, flags: u32) {
        let into_block = at & (self.minimum - 1);
        let mut rest = len;
        if into_block > 0 && self.list.last().is_some_and(|&(_, before)| before != flags) {
            let shared = (self.minimum - into_block).min(len);
            if let Some((before_len, before)) = self.list.pop() {
                let both = before & flags;
                let whole = before_len.saturating_sub(into_block);
                self.push(whole, before);
                self.push((before_len - whole) + shared, both);
            }
            rest -= shared;
        }
        self.push(rest, flags);
    }

    fn push(&mut self, len: u64, flags: u32) {
        match self.list.last_mut() {
            _ if len == 0 => {}
            Some((last, same)) if *same == flags => *last += len,
            _ => self.list.push((len, flags)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_meet_on_block_borders() {
        type Extents = &'static [(u64, u32)];
        let cases: [(u64, Extents, Extents); 5] = [
            (1, &[(10, 0), (5, 0), (1, 3)], &[(15, 0), (1, 3)]),
            (512, &[(512, 0), (512, 3)], &[(512, 0), (512, 3)]),
            (512, &[(100, 0), (924, 3)], &[(512, 0), (512, 3)]),
            (512, &[(612, 3), (412, 2)], &[(512, 3), (512, 2)]),
            (512, &[(100, 3), (100, 2), (312, 1), (512, 1)], &[(512, 0), (512, 1)]),
        ];
        for (minimum, pieces, want) in cases {
            let mut runs = Runs { list: Vec::new(), minimum };
            let mut at = 0;
            for &(len, flags) in pieces {
                runs.add(at, len, flags);
                at += len;
            }
            assert_eq!(runs.list, want, "{pieces:?} in blocks of {minimum}");
        }
    }
}
