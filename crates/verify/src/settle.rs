//! Bringing the two sides back into step.
//!
//! # Why copying TEST's content to RAW is right
//! On an unsettled range, after the drain, each side holds in each sector one of the values the clients' requests
//! allow: the last settled content, or what one of the unsettled requests wrote (zeroes, for a discard). Nothing lands
//! any more and the caller holds the range exclusively, so the contents stand still. The client was told nothing about
//! which value it will read (its request failed, was cancelled, or was a discard), so any of them is right, and once
//! read it must stay. TEST is the device under test and its choice can not be questioned as long as it is an allowed
//! value, so it becomes the truth: RAW is overwritten with it. RAW then holds a value a client asked for, in a place
//! where a client asked for it; no other byte is touched.
//!
//! A value that is *not* allowed is not copied: the range counts as settled with its sides apart, and the read that
//! follows finds the difference and tells it.
//!
//! What is allowed is known by fingerprints. The last settled content is the history's business; where the history has
//! forgotten it, TEST's claim to hold it is believed unless RAW proves otherwise, and counted as unverified.
//!
//! # Being dropped
//! The copy to RAW is a write like any other and may land late if this future is dropped. It carries TEST's content,
//! one of the allowed values; the range is settled only after it arrived, and a guard marks it as dropped otherwise, so
//! that the next one to touch it drains first.

use blkproof_block::{BlockDevice, ByteRange, Preallocation, Result, WriteFlags};

use crate::history::{Entry, Outcome, Payload};
use crate::mirror::{CHUNK, SizeInDoubt, Verify, count};
use crate::mismatch::Difference;
use crate::unsettled::{Match, State};
use crate::{SECTOR, SECTOR_LEN, len_of};

/// What to do with one piece of a sector in which the sides differ.
enum Verdict {
    /// TEST's content is one of the allowed values.
    Adopt,
    /// The same, for want of proof to the contrary.
    AdoptUnverified,
    /// TEST holds something else.
    Violation,
}

impl<R: BlockDevice + 'static, T: BlockDevice + 'static> Verify<R, T> {
    /// Settles what is unsettled in `range`, which the caller holds exclusively and has drained. What can not be read,
    /// or not be copied, stays unsettled.
    pub(crate) async fn settle(&self, range: ByteRange) {
        let pieces = self.shared.unsettled.borrow().pieces_in(range);
        for (piece, state) in pieces {
            let mut start = piece.start;
            while start < piece.end {
                // Chunks end on sector boundaries, so that sectors are judged whole.
                let end = piece.end.min((start + CHUNK) / SECTOR * SECTOR);
                let skipped = self.settle_chunk(ByteRange { start, end }, piece.end, &state).await;
                start = end.max(skipped);
            }
        }
    }

    /// Settles a chunk and returns where to go on.
    async fn settle_chunk(&self, chunk: ByteRange, end: u64, state: &State) -> u64 {
        let Some(zero) = self.zero_on_both(chunk.start, end).await else { return chunk.end };
        if zero > 0 {
            let range = ByteRange::at(chunk.start, zero);
            self.shared.unsettled.borrow_mut().remove(range);
            self.pinned_as_zeroes(range, state);
            return range.end;
        }
        let len = len_of(chunk.len());
        let (mut raw, mut test) = (self.shared.buffers.take(len), self.shared.buffers.take(len));
        let (Ok(()), Ok(())) = self.read_both(chunk.start, &mut raw, &mut test).await else { return chunk.end };
        let sectors: Vec<ByteRange> = sectors_of(chunk).collect();
        let bytes = |range: ByteRange| len_of(range.start - chunk.start)..len_of(range.end - chunk.start);
        let size = self.shared.test.info().size;

        // The history is walked once for all sectors that need it.
        let asked: Vec<u64> = sectors
            .iter()
            .filter(|&&sector| raw[bytes(sector)] != test[bytes(sector)] && is_whole(sector, size))
            .map(|sector| sector.start / SECTOR)
            .collect();
        let settled = if asked.is_empty() { Vec::new() } else { self.shared.history.borrow().settled(&asked) };

        let mut copy: Option<ByteRange> = None;
        for sector in sectors {
            let (r, t) = (&raw[bytes(sector)], &test[bytes(sector)]);
            if r == t {
                self.pin(sector.start, t);
                continue;
            }
            let index = asked.binary_search(&(sector.start / SECTOR)).ok();
            let old = index.and_then(|index| settled.get(index).copied().flatten());
            match judge(state, sector.start, r, t, old) {
                Verdict::Violation => self.shared.unsettled.borrow_mut().remove(sector),
                verdict => {
                    if matches!(verdict, Verdict::AdoptUnverified) {
                        count(&self.shared.counters.bytes_unverified, sector.len());
                    }
                    match &mut copy {
                        Some(run) if run.end == sector.start => run.end = sector.end,
                        _ => {
                            if let Some(run) = copy.replace(sector) {
                                self.copy_to_raw(run, &test[bytes(run)]).await;
                            }
                        }
                    }
                }
            }
        }
        if let Some(run) = copy {
            self.copy_to_raw(run, &test[bytes(run)]).await;
        }
        chunk.end
    }

    /// Makes TEST's content RAW's. On failure the range stays unsettled.
    async fn copy_to_raw(&self, range: ByteRange, content: &[u8]) {
        let mut copy = Copy { verify: self, range, armed: true };
        let copied = self.shared.raw.write(range.start, content, WriteFlags::empty()).await;
        copy.armed = false;
        if copied.is_ok() {
            count(&self.shared.counters.bytes_settled, range.len());
            self.pin(range.start, content);
        }
    }

    /// Both sides hold `content` at `at`: whatever was unsettled there is settled, and the history learns which value
    /// it became.
    pub(crate) fn pin(&self, at: u64, content: &[u8]) {
        let range = ByteRange::at(at, content.len() as u64);
        let bytes = |range: ByteRange| &content[len_of(range.start - at)..len_of(range.end - at)];
        let pieces = self.shared.unsettled.borrow().pieces_in(range);
        self.shared.unsettled.borrow_mut().remove(range);
        let size = self.shared.test.info().size;
        let mut history = self.shared.history.borrow_mut();
        let mut record = |run: Option<(Entry, Became, ByteRange)>| {
            let Some((entry, became, range)) = run else { return };
            let payload = match became {
                Became::Data => Payload::Data(bytes(range)),
                Became::Zeroes => Payload::Zeroes(range.len()),
                Became::Unknown => Payload::Unknown(range.len()),
            };
            history.record(&entry, range.start, payload, size);
        };
        // Neighbours that became the same by the same operation make one entry.
        let mut run: Option<(Entry, Became, ByteRange)> = None;
        for (piece, state) in pieces {
            for sector in sectors_of(piece) {
                let Some((entry, became)) = became(&state, sector, bytes(sector), size) else { continue };
                match &mut run {
                    Some((last, as_what, range))
                        if (last.op, *as_what, range.end) == (entry.op, became, sector.start) =>
                    {
                        range.end = sector.end;
                    }
                    _ => record(run.replace((entry, became, sector))),
                }
            }
        }
        record(run);
    }

    fn pinned_as_zeroes(&self, range: ByteRange, state: &State) {
        let zeroes = state.candidates.iter().rev().find(|candidate| candidate.is_zeroes());
        if let Some(candidate) = zeroes.or(state.candidates.last()) {
            let size = self.shared.test.info().size;
            let payload = Payload::Zeroes(range.len());
            self.shared.history.borrow_mut().record(&settled(candidate.entry), range.start, payload, size);
        }
    }

    /// How many bytes from `at` read as zeroes on both sides without looking at data. `None` if a side can not say.
    async fn zero_on_both(&self, at: u64, end: u64) -> Option<u64> {
        let mut zero = 0;
        while at + zero < end {
            let here = at + zero;
            let test = self.shared.test.block_status(here, end - here).await.ok()?;
            if !test.zero {
                break;
            }
            let raw = self.shared.raw.block_status(here, test.len.min(end - here)).await.ok()?;
            if !raw.zero {
                break;
            }
            zero += raw.len.min(test.len);
        }
        // Whole sectors, so that the rest is judged by the sector.
        Some(if at + zero == end { zero } else { ((at + zero) / SECTOR * SECTOR).saturating_sub(at) })
    }

    /// After a resize that failed or was dropped: makes RAW as long as TEST, which holds the old or the new size.
    pub(crate) async fn settle_size(&self) -> Result<()> {
        if self.shared.size_in_doubt.get().is_none() {
            return Ok(());
        }
        let _lock = self.exclusive(ByteRange { start: 0, end: u64::MAX }).await;
        let Some(SizeInDoubt { entry, old, new }) = self.shared.size_in_doubt.get() else { return Ok(()) };
        self.drain_sides().await?;
        let (raw, test) = (self.shared.raw.info().size, self.shared.test.info().size);
        if test != old && test != new {
            self.tell(self.request(&entry, new, 0), Difference::Size { test, raw });
        }
        if raw != test && self.shared.raw.resize(test, Preallocation::Off).await.is_err() {
            // RAW can not follow. That is said once; beyond the shorter one's end the outcomes differ from now on.
            self.tell(self.request(&entry, new, 0), Difference::Size { test, raw });
        }
        self.shared.size_in_doubt.set(None);
        self.shared.unsettled.borrow_mut().remove(ByteRange { start: test, end: u64::MAX });
        // RAW may have lost what lies between the sizes while TEST kept it, or the other way round.
        let between = ByteRange { start: old.min(new).min(raw), end: test };
        if !between.is_empty() {
            let candidate = crate::unsettled::Candidate::new(entry, between.start, Payload::Zeroes(between.len()));
            self.shared.unsettled.borrow_mut().add(between, candidate, false, 0);
        }
        Ok(())
    }
}

/// A copy to RAW that was sent and has not arrived. Dropping it says that it may still land.
struct Copy<'a, R: BlockDevice + 'static, T: BlockDevice + 'static> {
    verify: &'a Verify<R, T>,
    range: ByteRange,
    armed: bool,
}

impl<R: BlockDevice + 'static, T: BlockDevice + 'static> Drop for Copy<'_, R, T> {
    fn drop(&mut self) {
        if self.armed {
            let drop = self.verify.next_drop();
            self.verify.shared.unsettled.borrow_mut().touch(self.range, drop);
        }
    }
}

/// What an unsettled sector turned out to hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Became {
    Data,
    Zeroes,
    Unknown,
}

/// Which operation's value `content` is. `None`: the value from before, about which there is nothing new to say.
fn became(state: &State, sector: ByteRange, content: &[u8], size: u64) -> Option<(Entry, Became)> {
    let found = state.candidates.iter().rev().find(|candidate| candidate.matches(sector.start, content) == Match::Yes);
    let discards_only = !state.any && state.candidates.iter().all(|candidate| candidate.is_zeroes());
    let whole = is_whole(sector, size);
    match found {
        Some(candidate) if !whole => Some((settled(candidate.entry), Became::Unknown)),
        Some(candidate) if candidate.is_zeroes() => Some((settled(candidate.entry), Became::Zeroes)),
        Some(candidate) => Some((settled(candidate.entry), Became::Data)),
        None if discards_only => None,
        // The old content, most likely; where writes are among the candidates that is not for certain.
        None => state.candidates.last().map(|candidate| (settled(candidate.entry), Became::Unknown)),
    }
}

fn settled(entry: Entry) -> Entry {
    Entry { outcome: Outcome::Settled, ..entry }
}

/// Judges one piece of a sector in which RAW's bytes `r` and TEST's bytes `t` differ. `old` is what the whole sector
/// held before, if the history knows.
fn judge(state: &State, at: u64, r: &[u8], t: &[u8], old: Option<crate::Fingerprint>) -> Verdict {
    let matching = |bytes: &[u8]| {
        let found: Vec<Match> = state.candidates.iter().map(|candidate| candidate.matches(at, bytes)).collect();
        (found.contains(&Match::Yes), found.contains(&Match::Unknown))
    };
    let (known, perhaps) = matching(t);
    if known {
        return Verdict::Adopt;
    }
    if state.any || perhaps {
        return Verdict::AdoptUnverified;
    }
    if !state.old {
        return Verdict::Violation;
    }
    // TEST claims to hold what was there before.
    if let Some(old) = old {
        return if crate::Fingerprint::of(t) == old { Verdict::Adopt } else { Verdict::Violation };
    }
    match matching(r) {
        // RAW holds none of the new values either, so it holds the old one, and TEST does not.
        (false, false) => Verdict::Violation,
        _ => Verdict::AdoptUnverified,
    }
}

/// `range` cut at sector boundaries.
fn sectors_of(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let whole = range.aligned_out(SECTOR);
    (whole.start..whole.end)
        .step_by(SECTOR_LEN)
        .filter_map(move |start| ByteRange::at(start, SECTOR).intersection(range))
}

/// Whether `sector` covers a sector, or what the end of the device leaves of one.
fn is_whole(sector: ByteRange, size: u64) -> bool {
    sector.start.is_multiple_of(SECTOR) && (sector.len() == SECTOR || sector.end == size)
}
