//! Which flushes a power cut betrayed: what the disk had promised, against what is there.
//!
//! A block may hold any version that is not older than the newest one promised (CM 5.1), also one that was still on its
//! way. If it holds an older one, or something nobody wrote, then every promise about a version newer than what it
//! holds is broken. Equal contents count for the newest version that has them, so that nobody is accused for nothing.

use std::collections::BTreeSet;

use blkproof_block::{BlockDevice, ByteRange, Result};

use super::witness::{BLOCK, Change, Content, Log, Promise, fingerprint};

/// Bytes read at once.
const CHUNK: u64 = 64 << 10;

/// What became of a disk's promises.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Betrayal {
    /// Promises made.
    pub(super) promises: usize,
    /// Those broken, by their place among all, from 0.
    pub(super) broken: BTreeSet<usize>,
    /// Bytes that are not what was promised.
    pub(super) bytes: u64,
    /// The earliest one broken.
    pub(super) first: Option<Broken>,
}

/// A broken promise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Broken {
    /// Its place among all, from 0.
    pub(super) index: usize,
    pub(super) promise: Promise,
    /// The number of a write that it was about and that is not there.
    pub(super) write: u64,
    /// The first of its blocks found missing.
    pub(super) at: u64,
}

/// Compares what `log` says with what `disk` holds.
///
/// # Errors
/// If the disk can not be read.
pub(super) async fn judge(log: &Log, disk: &impl BlockDevice) -> Result<Betrayal> {
    let mut found = Betrayal { promises: log.promises.len(), ..Betrayal::default() };
    let mut active = BTreeSet::new();
    let mut edges: Vec<(u64, bool, usize)> = Vec::new();
    for (index, change) in log.changes.iter().enumerate().filter(|(_, change)| !change.range.is_empty()) {
        edges.push((change.range.start, true, index));
        edges.push((change.range.end, false, index));
    }
    edges.sort_unstable();
    let mut edges = edges.into_iter().peekable();
    // Between two edges lies a run of blocks with the same changes.
    while let Some((start, begins, index)) = edges.next() {
        if begins {
            active.insert(index);
        } else {
            active.remove(&index);
        }
        let Some(&(end, ..)) = edges.peek() else { break };
        let versions: Vec<(usize, &Change)> =
            active.iter().filter_map(|&index| log.changes.get(index).map(|change| (index, change))).collect();
        if start < end && versions.iter().any(|(_, change)| change.promise.is_some()) {
            judge_run(log, disk, ByteRange { start, end }, &versions, &mut found).await?;
        }
    }
    Ok(found)
}

/// Compares the blocks of a run, all of which have these versions, the oldest first.
async fn judge_run(
    log: &Log,
    disk: &impl BlockDevice,
    run: ByteRange,
    versions: &[(usize, &Change)],
    found: &mut Betrayal,
) -> Result<()> {
    let wanted = versions.iter().rposition(|(_, change)| change.promise.is_some()).unwrap_or(0);
    let may_be_zero = versions.iter().skip(wanted).any(|(_, change)| !matches!(change.content, Content::Data(_)));
    let mut buf = Vec::new();
    let mut at = run.start;
    while at < run.end {
        let left = run.end.saturating_sub(at);
        if may_be_zero {
            let status = disk.block_status(at, left).await?;
            if status.zero {
                at = at.saturating_add(status.len.max(BLOCK) / BLOCK * BLOCK);
                continue;
            }
        }
        buf.resize(usize::try_from(left.min(CHUNK)).unwrap_or(0), 0);
        disk.read(at, &mut buf).await?;
        for block in buf.chunks(usize::try_from(BLOCK).unwrap_or(usize::MAX)) {
            let here = fingerprint(block);
            let holds = versions.iter().rposition(|(_, change)| change.fingerprint(at) == here);
            if holds.is_none_or(|holds| holds < wanted) {
                let newer = versions.get(holds.map_or(0, |holds| holds.saturating_add(1))..).unwrap_or_default();
                blame(log, newer, at, found);
            }
            at = at.saturating_add(BLOCK);
        }
    }
    Ok(())
}

/// The block at `at` has none of these versions.
fn blame(log: &Log, missing: &[(usize, &Change)], at: u64, found: &mut Betrayal) {
    found.bytes = found.bytes.saturating_add(BLOCK);
    for (_, change) in missing {
        let Some(index) = change.promise else { continue };
        found.broken.insert(index);
        let earlier = found.first.is_none_or(|first| index < first.index);
        if let (true, Some(&promise)) = (earlier, log.promises.get(index)) {
            found.first = Some(Broken { index, promise, write: change.request, at });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use blkproof_block::nodes::memory::Memory;
    use blkproof_block::{BlockDevice as _, Node, WriteFlags, ZeroFlags};
    use futures_lite::future::block_on;

    use super::super::witness::{Witness, ZEROES};
    use super::*;

    const NONE: WriteFlags = WriteFlags::empty();

    fn block(byte: u8) -> [u8; 512] {
        [byte; 512]
    }

    /// Changes a disk under a witness, then the disk behind its back, and judges.
    fn after(sent: impl AsyncFnOnce(&Witness), lost: impl AsyncFnOnce(&Node)) -> Betrayal {
        block_on(async {
            let disk = Node::new(Memory::new(1 << 20));
            let witness = Witness::new(disk.clone());
            sent(&witness).await;
            lost(&disk).await;
            let log = witness.log().take();
            judge(&log, &disk).await.unwrap()
        })
    }

    fn broken(found: &Betrayal) -> Vec<usize> {
        found.broken.iter().copied().collect()
    }

    #[test]
    fn what_was_not_flushed_may_be_lost() {
        let sent = async |disk: &Witness| {
            disk.write(0, &block(1), NONE).await.unwrap();
            disk.flush().await.unwrap();
            disk.write(0, &block(2), NONE).await.unwrap();
        };
        for byte in [1, 2] {
            let found = after(sent, async |disk: &Node| disk.write(0, &block(byte), NONE).await.unwrap());
            assert_eq!((found.promises, found.bytes, broken(&found)), (1, 0, vec![]), "{byte}");
        }
        let found = after(sent, async |disk: &Node| disk.write(0, &block(0), NONE).await.unwrap());
        assert_eq!((found.bytes, broken(&found)), (512, vec![0]));
        let first = found.first.unwrap();
        assert_eq!((first.promise, first.write, first.at), (Promise { request: 2, fua: false }, 1, 0));
    }

    #[test]
    fn every_flush_about_what_is_missing_is_broken_and_no_other() {
        let sent = async |disk: &Witness| {
            for byte in 1..=3 {
                disk.write(4096, &[block(byte), block(byte)].concat(), NONE).await.unwrap();
                disk.flush().await.unwrap();
            }
            disk.flush().await.unwrap();
        };
        let lost = async |disk: &Node| disk.write(4608, &block(1), NONE).await.unwrap();
        let found = after(sent, lost);
        assert_eq!((found.promises, found.bytes, broken(&found)), (4, 512, vec![1, 2]));
        assert_eq!(found.first.map(|first| (first.promise.request, first.write, first.at)), Some((4, 3, 4608)));
    }

    #[test]
    fn fua_promises_itself_alone() {
        let sent = async |disk: &Witness| {
            disk.write(0, &block(1), NONE).await.unwrap();
            disk.write(512, &block(1), WriteFlags::FUA).await.unwrap();
        };
        let lost = async |disk: &Node| disk.write_zeroes(0, 4096, ZeroFlags::empty()).await.unwrap();
        let found = after(sent, lost);
        assert_eq!((found.bytes, broken(&found)), (512, vec![0]));
        assert!(found.first.unwrap().promise.fua);
    }

    #[test]
    fn zeroes_are_promised_and_discards_are_not() {
        let lost = async |disk: &Node| disk.write(65536, &block(9), NONE).await.unwrap();
        let zeroes = async |disk: &Witness| {
            disk.write_zeroes(0, 1 << 20, ZeroFlags::empty()).await.unwrap();
            disk.flush().await.unwrap();
        };
        assert_eq!(after(zeroes, lost).bytes, 512);
        assert_eq!(after(zeroes, async |_| ()).bytes, 0);
        let discard = async |disk: &Witness| {
            disk.write(65536, &block(9), NONE).await.unwrap();
            disk.flush().await.unwrap();
            disk.discard(0, 1 << 20).await.unwrap();
            disk.flush().await.unwrap();
        };
        assert_eq!(after(discard, lost).bytes, 0, "a discard need not have done anything");
        assert_eq!(after(discard, async |_| ()).bytes, 0, "and may have");
        let other = async |disk: &Node| disk.write(65536, &block(8), NONE).await.unwrap();
        assert_eq!(after(discard, other).bytes, 512, "but nothing else");
    }

    #[test]
    fn a_write_that_was_never_answered_is_promised_by_nobody() {
        let sent = async |disk: &Witness| {
            let late = disk.write(2 << 20, &block(1), NONE).await;
            assert!(late.is_err());
            disk.flush().await.unwrap();
        };
        let found = after(sent, async |_| ());
        assert_eq!((found.promises, found.bytes), (1, 0));
    }

    #[test]
    fn zero_blocks_have_the_fingerprint_of_zeroes() {
        assert_eq!(fingerprint(&block(0)), ZEROES);
        assert_ne!(fingerprint(&block(1)), ZEROES);
    }
}
