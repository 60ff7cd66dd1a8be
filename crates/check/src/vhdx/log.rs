//! The log: which of its entries are the active sequence, and what they put into the file.
//!
//! The log is a ring of 4 KiB sectors. An entry begins on one of them with a header and descriptors, and its data
//! sectors follow. Entries of one opening of the file share a GUID, which the current header names, and are numbered
//! one by one. Each entry names the oldest one that is still needed, its tail. The active sequence is the valid one
//! that ends with the highest number; from the tail of its last entry on, everything is replayed in order ([MS-VHDX]
//! 2.3.2).
//!
//! An entry is whole if its checksum is right. One that is not is either *torn* (a sector of it is not there yet: the
//! writer was stopped, nothing of it was needed) or *rotten* (all sectors are there: a bit has changed since).

use std::collections::BTreeMap;
use std::ops::Range;

use super::codes;
use super::header::{Header, guid};
use super::replay::{Replayed, SECTOR, SECTOR_LEN};
use crate::budget::Full;
use crate::bytes::{le_u32, le_u64};
use crate::context::Context;
use crate::finding::Finding;

/// Memory an entry takes while the search goes on.
const ENTRY_COST: u64 = 256;
/// Sectors looked at per sector of the log, and once: entries that reach over each other would cost the square
/// otherwise.
const WORK: u64 = 64;
const WORK_MIN: u64 = 1 << 16;

/// An entry whose checksum is right.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u64,
    len: u64,
    tail: u64,
    sequence: u64,
    flushed: u64,
    last: u64,
    descriptors: u32,
}

/// What begins at a sector of the log.
#[derive(Clone, Copy, Debug)]
enum There {
    /// No entry, or one of another opening of the file.
    Nothing,
    Whole(Entry),
    Torn(u64),
    Rotten(u64),
}

/// What the log turned out to be.
pub(super) struct Outcome {
    /// Entries replayed.
    pub(super) entries: u64,
}

/// The ring.
struct Ring {
    range: Range<u64>,
    guid: [u8; 16],
    seen: BTreeMap<u64, There>,
    work: u64,
}

/// Why a search ended early.
enum Stop {
    Memory,
    Work,
}

impl From<Full> for Stop {
    fn from(_: Full) -> Self {
        Self::Memory
    }
}

impl Ring {
    fn len(&self) -> u64 {
        self.range.end.saturating_sub(self.range.start)
    }

    /// Byte of the file of a place in the ring; beyond the end it goes on at the start.
    fn place(&self, at: u64) -> u64 {
        self.range.start.saturating_add(at.checked_rem(self.len()).unwrap_or(0))
    }

    fn sector(&self, cx: &mut Context<'_>, at: u64) -> Vec<u8> {
        cx.read(self.place(at), SECTOR_LEN, "the log")
    }

    fn pay(&mut self) -> Result<(), Stop> {
        self.work = self.work.checked_sub(1).ok_or(Stop::Work)?;
        Ok(())
    }

    /// What begins at `at`; looked at once.
    fn entry(&mut self, cx: &mut Context<'_>, at: u64) -> Result<There, Stop> {
        self.pay()?;
        if let Some(there) = self.seen.get(&at) {
            return Ok(*there);
        }
        let there = self.judge(cx, at)?;
        cx.budget.take(ENTRY_COST)?;
        self.seen.insert(at, there);
        Ok(there)
    }

    fn judge(&mut self, cx: &mut Context<'_>, at: u64) -> Result<There, Stop> {
        let first = self.sector(cx, at);
        let len = u64::from(le_u32(&first, 8));
        let entry = Entry {
            at,
            len,
            tail: u64::from(le_u32(&first, 12)),
            sequence: le_u64(&first, 16),
            descriptors: le_u32(&first, 24),
            flushed: le_u64(&first, 48),
            last: le_u64(&first, 56),
        };
        if !first.starts_with(b"loge") || guid(&first, 32) != self.guid || entry.sequence == 0 {
            return Ok(There::Nothing);
        }
        let heads = u64::from(entry.descriptors).saturating_mul(32).saturating_add(64).div_ceil(SECTOR);
        let sectors = len / SECTOR;
        let shaped = len.is_multiple_of(SECTOR) && len > 0 && len <= self.len() && heads <= sectors;
        if !shaped || !entry.tail.is_multiple_of(SECTOR) || entry.tail >= self.len() {
            return Ok(There::Torn(entry.sequence));
        }
        let (mut crc, mut data, mut left, mut there) = (0u32, 0u64, entry.descriptors, true);
        for index in 0..sectors {
            self.pay()?;
            let mut sector = self.sector(cx, at.saturating_add(index.saturating_mul(SECTOR)));
            if index == 0
                && let Some(field) = sector.get_mut(4..8)
            {
                field.fill(0);
            }
            crc = crc32c::crc32c_append(crc, &sector);
            if index < heads {
                let skip = if index == 0 { 64 } else { 0 };
                for descriptor in sector.get(skip..).unwrap_or_default().chunks_exact(32) {
                    if left == 0 {
                        break;
                    }
                    left = left.saturating_sub(1);
                    let known = descriptor.starts_with(b"desc") || descriptor.starts_with(b"zero");
                    there &= known && le_u64(descriptor, 24) == entry.sequence;
                    data = data.saturating_add(u64::from(descriptor.starts_with(b"desc")));
                }
            } else if index < heads.saturating_add(data) {
                let number = u64::from(le_u32(&sector, 4)) << 32 | u64::from(le_u32(&sector, 4092));
                there &= sector.starts_with(b"data") && number == entry.sequence;
            }
        }
        there &= heads.saturating_add(data) <= sectors;
        Ok(match (crc == le_u32(&first, 4), there) {
            (true, true) => There::Whole(entry),
            (_, false) => There::Torn(entry.sequence),
            (false, true) => There::Rotten(entry.sequence),
        })
    }

    /// Entries that follow each other from `at` on, numbered one by one.
    fn sequence(&mut self, cx: &mut Context<'_>, at: u64) -> Result<Vec<Entry>, Stop> {
        let mut all: Vec<Entry> = Vec::new();
        let (mut at, mut covered) = (at, 0u64);
        while let There::Whole(entry) = self.entry(cx, at)? {
            covered = covered.saturating_add(entry.len);
            let follows = all.last().is_none_or(|last| last.sequence.checked_add(1) == Some(entry.sequence));
            if !follows || covered > self.len() {
                break;
            }
            all.push(entry);
            at = at.saturating_add(entry.len).checked_rem(self.len()).unwrap_or(0);
        }
        Ok(all)
    }

    /// The active sequence, from the tail of its last entry on; empty if there is none.
    fn active(&mut self, cx: &mut Context<'_>) -> Result<Vec<Entry>, Stop> {
        let mut best: Vec<Entry> = Vec::new();
        let mut at = 0u64;
        while at < self.len() && !cx.stopped() {
            let sequence = self.sequence(cx, at)?;
            let last = sequence.last().copied();
            let tail = last.and_then(|last| sequence.iter().position(|entry| entry.at == last.tail));
            let (Some(last), Some(tail)) = (last, tail) else {
                at = at.saturating_add(SECTOR);
                continue;
            };
            if best.last().is_none_or(|before| before.sequence < last.sequence) {
                best = sequence.get(tail..).unwrap_or_default().to_vec();
            }
            let end = last.at.saturating_add(last.len);
            if last.at < at || end >= self.len() {
                break;
            }
            at = end;
        }
        Ok(best)
    }
}

/// Finds what is pending and puts it into `view`.
pub(super) fn replay(cx: &mut Context<'_>, header: &Header, view: &mut Replayed<'_>) -> Outcome {
    let none = Outcome { entries: 0 };
    if header.log_guid == [0; 16] {
        return none;
    }
    let range = header.log.clone();
    if header.log_version != 0 {
        let words = format!("the log's version is {}; only version 0 is known", header.log_version);
        cx.find(Finding::new(codes::LOG_VERSION, words).host(header.at..header.at.saturating_add(4096)));
        cx.could_not("the log: something is pending in it that can not be read");
        return none;
    }
    if range.is_empty() || range.end > cx.file_len() || !place_right(&range) {
        // Told by who judged the header.
        cx.could_not("the log: something is pending in it, and it is not where the header says");
        return none;
    }
    let sectors = range.end.saturating_sub(range.start) / SECTOR;
    let work = sectors.saturating_mul(WORK).saturating_add(WORK_MIN);
    let mut ring = Ring { range: range.clone(), guid: header.log_guid, seen: BTreeMap::new(), work };
    let active = ring.active(cx);
    cx.budget.give((ring.seen.len() as u64).saturating_mul(ENTRY_COST));
    let active = match active {
        Ok(active) => active,
        Err(stop) => {
            let why = match stop {
                Stop::Memory => "more entries than memory allows; allow more with --memory",
                Stop::Work => "its entries reach over each other again and again, as no writer leaves them",
            };
            cx.could_not(format!("the log: {why}"));
            return none;
        }
    };
    judge(cx, &ring, &active);
    let Some(last) = active.last() else { return none };
    if last.flushed > cx.file_len() {
        let words = format!(
            "log entry {} was written when the file had {:#x} safe bytes; it has {:#x} now",
            last.sequence,
            last.flushed,
            cx.file_len()
        );
        cx.find(Finding::new(codes::LOG_TRUNCATED, words).host(cx.file_len()..last.flushed));
    }
    if last.last > cx.file_len() {
        let words = format!("the replay makes the file {:#x} bytes long; it has {:#x} now", last.last, cx.file_len());
        cx.find(Finding::new(codes::LOG_GROWS, words).host(entry_range(&ring, last)));
        view.grow(last.last);
    }
    let mut done = 0u64;
    for entry in &active {
        if apply(cx, &ring, entry, view).is_err() {
            cx.could_not("the log: replaying it needs more memory than allowed; allow more with --memory");
            break;
        }
        done = done.saturating_add(1);
    }
    let first = active.first().map_or(0, |entry| entry.sequence);
    let words =
        format!("the log holds entries {first}..{} that are not in the file yet", last.sequence.saturating_add(1));
    cx.find(Finding::new(codes::LOG_PENDING, words).host(range));
    Outcome { entries: done }
}

/// Multiples of 1 MiB.
pub(super) fn place_right(range: &Range<u64>) -> bool {
    range.start.is_multiple_of(1 << 20) && range.end.is_multiple_of(1 << 20)
}

fn entry_range(ring: &Ring, entry: &Entry) -> Range<u64> {
    let start = ring.place(entry.at);
    start..start.saturating_add(entry.len).min(ring.range.end)
}

/// What is in the log besides the active sequence.
fn judge(cx: &mut Context<'_>, ring: &Ring, active: &[Entry]) {
    let last = active.last().map_or(0, |entry| entry.sequence);
    let (mut torn, mut rotten, mut beyond) = (Vec::new(), Vec::new(), Vec::new());
    for (at, there) in &ring.seen {
        let place = ring.place(*at);
        match there {
            There::Torn(sequence) if *sequence > last => torn.push((place, *sequence)),
            There::Rotten(sequence) if *sequence > last => rotten.push((place, *sequence)),
            There::Whole(entry) if entry.sequence > last => beyond.push((place, entry.sequence)),
            _ => {}
        }
    }
    // A gap: what comes after it was written when what is missing was there.
    if let Some((place, sequence)) = beyond.first() {
        let words = format!(
            "{} whole log entries from {sequence} at {place:#x} on come after the active sequence, which ends with {last}",
            beyond.len()
        );
        cx.find(
            Finding::new(codes::LOG_GAP, words).host(*place..place.saturating_add(SECTOR)).count(beyond.len() as u64),
        );
    }
    for (place, sequence) in rotten.iter().take(16) {
        let words = format!("log entry {sequence} at {place:#x} is all there, but its checksum does not match");
        cx.find(Finding::new(codes::LOG_ENTRY, words).host(*place..place.saturating_add(SECTOR)));
    }
    // One before a whole one is part of the gap.
    let newest = beyond.iter().map(|(_, sequence)| *sequence).max().unwrap_or(0);
    for (place, sequence) in torn.iter().filter(|(_, sequence)| *sequence > newest).take(16) {
        let words = format!("log entry {sequence} at {place:#x} was not written to its end");
        cx.find(Finding::new(codes::LOG_TORN, words).host(*place..place.saturating_add(SECTOR)));
    }
    if active.is_empty() && torn.is_empty() && rotten.is_empty() && beyond.is_empty() {
        let words = "the header says that the log is in use, but no entry of that opening of the file is in it";
        cx.find(Finding::new(codes::LOG_EMPTY, words).host(ring.range.clone()));
    }
}

fn apply(cx: &mut Context<'_>, ring: &Ring, entry: &Entry, view: &mut Replayed<'_>) -> Result<(), Full> {
    let heads = u64::from(entry.descriptors).saturating_mul(32).saturating_add(64).div_ceil(SECTOR);
    let mut left = entry.descriptors;
    let mut data = 0u64;
    for head in 0..heads {
        let sector = ring.sector(cx, entry.at.saturating_add(head.saturating_mul(SECTOR)));
        let skip = if head == 0 { 64 } else { 0 };
        for descriptor in sector.get(skip..).unwrap_or_default().chunks_exact(32) {
            if left == 0 {
                return Ok(());
            }
            left = left.saturating_sub(1);
            if le_u64(descriptor, 24) != entry.sequence {
                continue;
            }
            let target = le_u64(descriptor, 16);
            if descriptor.starts_with(b"zero") {
                let range = target..target.saturating_add(le_u64(descriptor, 8));
                judge_target(cx, ring, entry, &range);
                view.zero(range)?;
            } else if descriptor.starts_with(b"desc") {
                judge_target(cx, ring, entry, &(target..target.saturating_add(SECTOR)));
                let at = entry.at.saturating_add(heads.saturating_add(data).saturating_mul(SECTOR));
                data = data.saturating_add(1);
                let field = |range: Range<usize>| descriptor.get(range).unwrap_or_default();
                let first = field(8..16).try_into().unwrap_or([0; 8]);
                let last = field(4..8).try_into().unwrap_or([0; 4]);
                view.sector(target, ring.place(at), first, last)?;
            }
        }
    }
    Ok(())
}

/// The log is for tables and metadata: not for headers and not for itself.
fn judge_target(cx: &mut Context<'_>, ring: &Ring, entry: &Entry, range: &Range<u64>) {
    let headers = 0..192 << 10;
    let meets = |other: &Range<u64>| range.start < other.end && other.start < range.end;
    let what = if meets(&headers) {
        "the headers"
    } else if meets(&ring.range) {
        "the log itself"
    } else if !range.start.is_multiple_of(SECTOR) || !range.end.is_multiple_of(SECTOR) {
        "parts of sectors"
    } else {
        return;
    };
    let words = format!("log entry {} replaces {:#x}..{:#x}: {what}", entry.sequence, range.start, range.end);
    cx.find(Finding::new(codes::LOG_TARGET, words).host(entry_range(ring, entry)));
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use super::super::header;
    use super::*;
    use crate::Options;
    use crate::budget::Budget;
    use crate::source::{FileSource, Source};
    use crate::watch::Silent;

    fn run(program: &str, args: &[&str]) -> bool {
        let done = Command::new(program).args(args).output();
        done.unwrap_or_else(|error| panic!("{program} is needed: {error}")).status.success()
    }

    /// An image that QEMU left with its log in use, since no write to its block table succeeded.
    fn crashed(dir: &Path) -> PathBuf {
        let path = dir.join("crashed.vhdx");
        let name = path.to_str().unwrap();
        assert!(run("qemu-img", &["create", "-q", "-f", "vhdx", "-o", "block_size=1M,log_size=1M", name, "40M"]));
        assert!(run("qemu-io", &["-f", "vhdx", "-c", "write -q -P 1 0 64k", name]));
        let options = format!(
            "driver=vhdx,file.driver=blkdebug,file.image.driver=file,file.image.filename={name},file.inject-error.0.event=none,\
             file.inject-error.0.iotype=write,file.inject-error.0.errno=5,file.inject-error.0.sector=4096"
        );
        assert!(!run("qemu-io", &["--image-opts", &options, "-c", "write -q -P 9 7M 64k", "-c", "abort"]));
        path
    }

    /// Byte for byte, but for the headers and the log, what QEMU leaves when it replays the log in a copy of the file.
    #[test]
    fn the_view_is_the_file_after_a_replay() {
        let dir = tempfile::tempdir().unwrap();
        let mut images = vec![crashed(dir.path())];
        match std::env::var_os("BLKPROOF_SAMPLE_IMAGES") {
            Some(samples) => {
                for name in ["qemu-iotests/iotest-dirtylog-10G-4M.vhdx.bz2", "discutils/vhdx-log-replay.vhdx.gz"] {
                    let program = if name.ends_with("gz") { "gzip" } else { "bzip2" };
                    let file = Path::new(&samples).join(name);
                    let bytes = Command::new(program).arg("-dc").arg(file).output().unwrap().stdout;
                    let path = dir.path().join(images.len().to_string());
                    std::fs::write(&path, bytes).unwrap();
                    images.push(path);
                }
            }
            None => println!("BLKPROOF_SAMPLE_IMAGES is not set: only an image made here was looked at"),
        }
        for path in images {
            let image = FileSource::open(&path).unwrap();
            let (options, budget) = (Options::default(), Budget::new(1 << 20));
            let mut cx = Context::new(&image, &options, &Silent, &budget);
            let header = header::current(&mut cx).unwrap();
            let mut view = Replayed::new(&image, &budget);
            assert!(replay(&mut cx, &header, &mut view).entries > 0, "{}: something is pending", path.display());

            let after = dir.path().join("after.vhdx");
            std::fs::copy(&path, &after).unwrap();
            assert!(run("qemu-img", &["check", "-q", "-f", "vhdx", "-r", "all", after.to_str().unwrap()]));
            let theirs = std::fs::read(&after).unwrap();
            assert_eq!(view.len(), theirs.len() as u64, "{}", path.display());
            let mut ours = vec![0; theirs.len()];
            view.read_at(0, &mut ours).unwrap();
            let before = std::fs::read(&path).unwrap();
            let mut changed = 0;
            for at in (192 << 10..theirs.len()).step_by(512).filter(|at| !header.log.contains(&(*at as u64))) {
                let range = at..(at + 512).min(theirs.len());
                assert!(ours[range.clone()] == theirs[range.clone()], "{} at {at:#x}", path.display());
                changed += usize::from(before.get(range.clone()) != Some(&theirs[range]));
            }
            assert!(changed > 0, "{}: the replay changes something", path.display());
        }
    }
}
