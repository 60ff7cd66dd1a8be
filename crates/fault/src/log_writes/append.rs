//! How entries get onto a log: in order, without gaps, and the superblock last.
//!
//! [`Appender::push`] takes an entry at once, without waiting, and thereby settles its place. [`Appender::commit`]
//! waits until it is on the log: whoever comes first writes everything that waits, in one piece where it can, and the
//! others find theirs done. So there is one write to the log at a time, and what a kill cuts off is a tail.
//!
//! A writer that is dropped half-way leaves its entries in the queue, and the next one writes the same bytes to the
//! same place, after a drain: what the dropped one left under way ends with a zero sector, perhaps, and would land on a
//! later entry (CM 4.5). A write that fails leaves the queue as it is, too.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use blkproof_block::{
    BlockDevice as _, Capabilities, Errno, IoError, Node, Preallocation, Result, WriteFlags, ZeroFlags,
};

use super::format::{Details, Flags, Header, SectorSize, Superblock};

/// Entries between two superblocks, unless the user says something else.
pub const INTERVAL_DEFAULT: u64 = 4096;

/// Bytes that may wait for a log that can not be written; beyond that, changes are refused. Changes in flight are as
/// many bytes at most, and are added to it once they are done: twice this is never exceeded.
pub const BACKLOG_MAX: u64 = 64 << 20;

/// Bytes of entries that go to the log in one write.
const PIECE: usize = 1 << 20;

/// How a log is written.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Size of its sectors.
    pub sector: SectorSize,
    /// Entries between two superblocks; at least 1.
    pub interval: u64,
    /// Whether entries carry [`Details`].
    pub details: bool,
}

/// Where a log goes on.
#[derive(Clone, Copy, Debug)]
pub struct Resume {
    /// Entries it has.
    pub entries: u64,
    /// The byte behind the last of them.
    pub end: u64,
    /// The chain of the last one with details.
    pub chain: u32,
    /// Whether the last of them has details.
    pub details: bool,
}

/// What an entry says.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// Data at a byte offset, which is a multiple of the sector; padded with zeroes to whole sectors.
    Data(u64, &'a [u8]),
    /// Explicit zeroes; the log may store them as a hole.
    Zeroes(u64, u64),
    /// A discard, by offset and length in bytes.
    Discard(u64, u64),
    /// A flush.
    Flush,
    /// A mark.
    Mark(&'a [u8]),
}

/// One entry as it waits.
#[derive(Debug)]
struct Entry {
    /// The header and the payload, as far as it is not zeroes.
    bytes: Box<[u8]>,
    /// Zero bytes behind them.
    zeroes: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Entries that are not on the log yet.
    queue: VecDeque<Rc<Entry>>,
    /// Their bytes in memory.
    queued: u64,
    /// Where the first of them goes.
    end: u64,
    /// Entries taken so far.
    pushed: u64,
    /// Entries on the log.
    written: u64,
    /// Entries the superblock counts, once it has been written; `None` before.
    counted: Option<u64>,
    chain: u32,
}

/// The writing end of a log.
#[derive(Debug)]
pub struct Appender {
    log: Node,
    how: How,
    state: RefCell<State>,
    turn: tokio::sync::Mutex<()>,
    /// A write to the log was dropped, and may land.
    unsettled: Cell<bool>,
    /// What stands behind the entries below this offset may be an earlier log's.
    stale_until: u64,
    /// Why the log could not be written last.
    trouble: RefCell<Option<IoError>>,
}

impl Appender {
    /// Begins a log, or goes on with one, and writes its superblock.
    ///
    /// # Errors
    /// As the log's node says.
    pub async fn open(log: Node, how: How, resume: Option<Resume>) -> Result<Self> {
        let info = log.info();
        let first = how.sector.bytes();
        let resume = resume.unwrap_or(Resume { entries: 0, end: first, chain: 0, details: false });
        let can_cut = info.capabilities.contains(Capabilities::RESIZE);
        // What an earlier log left behind the last entry would read as more of this one.
        if can_cut && info.size > resume.end {
            log.resize(resume.end, Preallocation::Off).await?;
        }
        let state = State {
            end: resume.end,
            pushed: resume.entries,
            written: resume.entries,
            chain: resume.chain,
            ..State::default()
        };
        let appender = Self {
            how,
            state: RefCell::new(state),
            turn: tokio::sync::Mutex::default(),
            unsettled: Cell::new(false),
            stale_until: if can_cut { 0 } else { info.size },
            trouble: RefCell::default(),
            log,
        };
        if resume.end.saturating_add(first) <= appender.stale_until {
            appender.log.write(resume.end, &vec![0; how.sector.size()], WriteFlags::empty()).await?;
        }
        let turn = appender.turn.lock().await;
        appender.superblock().await?;
        drop(turn);
        Ok(appender)
    }

    /// An end that nothing is given to: of a node that is open for reading alone.
    pub fn idle(log: Node, how: How) -> Self {
        Self {
            log,
            how,
            state: RefCell::default(),
            turn: tokio::sync::Mutex::default(),
            unsettled: Cell::new(false),
            stale_until: 0,
            trouble: RefCell::default(),
        }
    }

    /// How it writes.
    pub fn how(&self) -> How {
        self.how
    }

    /// The log.
    pub fn log(&self) -> &Node {
        &self.log
    }

    /// Entries taken so far: what a request that is sent now finds in the log.
    pub fn pushed(&self) -> u64 {
        self.state.borrow().pushed
    }

    /// Entries on the log.
    pub fn written(&self) -> u64 {
        self.state.borrow().written
    }

    /// Refuses changes while too much waits for a log that can not be written.
    ///
    /// # Errors
    /// What the log said last.
    pub fn check_room(&self) -> Result<()> {
        if self.state.borrow().queued <= BACKLOG_MAX {
            return Ok(());
        }
        match &*self.trouble.borrow() {
            Some(error) => Err(error.clone().context("too much waits for the write log")),
            None => Ok(()),
        }
    }

    /// Takes an entry; returns the number of entries with it, for [`commit`](Self::commit).
    ///
    /// `submitted` is what [`pushed`](Self::pushed) said when the request was sent, `time_ns` when this is.
    pub fn push(&self, content: Content<'_>, flags: Flags, submitted: u64, time_ns: u64) -> u64 {
        let sector = self.how.sector;
        let (header, text, data, zeroes, bytes): (_, &[u8], &[u8], _, _) = match content {
            Content::Data(at, data) => (self.header(at, data.len() as u64, flags), &[], data, 0, data.len() as u64),
            Content::Zeroes(at, len) => (self.header(at, len, flags), &[], &[], len, len),
            Content::Discard(at, len) => (self.header(at, len, flags | Flags::DISCARD), &[], &[], 0, len),
            Content::Flush => (self.header(0, 0, flags | Flags::FLUSH), &[], &[], 0, 0),
            Content::Mark(text) => {
                let text = text.get(..sector.mark_max(self.how.details)).unwrap_or(text);
                let header = self.header(0, 0, flags | Flags::MARK);
                (Header { data_len: text.len() as u64, ..header }, text, &[], 0, 0)
            }
        };
        let mut entry = header.encode(text, sector);
        let padding =
            sector.sectors(data.len() as u64).saturating_mul(sector.bytes()).saturating_sub(data.len() as u64);
        let padding = usize::try_from(padding).unwrap_or(0);
        entry.reserve_exact(data.len().saturating_add(padding));
        let head = entry.len();
        entry.extend_from_slice(data);
        entry.extend(std::iter::repeat_n(0, padding));
        let mut state = self.state.borrow_mut();
        if self.how.details {
            let details = Details { submitted, bytes, time_ns, chain: 0, payload_covered: false };
            let (head, payload) = entry.split_at_mut(head);
            state.chain = details.seal(head, (zeroes == 0).then_some(payload), state.chain);
        }
        let zeroes = sector.sectors(zeroes).saturating_mul(sector.bytes());
        state.queued = state.queued.saturating_add(entry.len() as u64);
        state.queue.push_back(Rc::new(Entry { bytes: entry.into_boxed_slice(), zeroes }));
        state.pushed = state.pushed.saturating_add(1);
        state.pushed
    }

    fn header(&self, at: u64, len: u64, flags: Flags) -> Header {
        let sector = self.how.sector;
        let first = at.checked_div(sector.bytes()).unwrap_or(0);
        Header { sector: first, sectors: sector.sectors(len), flags: flags.bits(), data_len: 0 }
    }

    /// Waits until the first `entries` entries are on the log.
    ///
    /// # Errors
    /// As the log's node says; the entries stay in line.
    pub async fn commit(&self, entries: u64) -> Result<()> {
        if self.written() >= entries {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        if self.written() >= entries {
            return Ok(());
        }
        self.write_out().await
    }

    /// Waits until the first `entries` entries are on the log, durable, and counted by its superblock.
    ///
    /// # Errors
    /// As the log's node says.
    pub async fn sync(&self, entries: u64) -> Result<()> {
        let counted = |state: &State| state.counted.is_some_and(|counted| counted >= entries);
        if counted(&self.state.borrow()) {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        if counted(&self.state.borrow()) {
            return Ok(());
        }
        self.write_out().await?;
        self.noted(self.superblock().await)
    }

    /// Writes what waits; the caller has the turn.
    async fn write_out(&self) -> Result<()> {
        self.noted(self.write_queue().await)?;
        let uncounted = self.uncounted();
        if uncounted >= self.how.interval { self.noted(self.superblock().await) } else { Ok(()) }
    }

    fn uncounted(&self) -> u64 {
        let state = self.state.borrow();
        state.written.saturating_sub(state.counted.unwrap_or(0))
    }

    async fn write_queue(&self) -> Result<()> {
        loop {
            let (end, batch) = self.next_batch();
            if batch.is_empty() {
                return Ok(());
            }
            if self.unsettled.get() {
                self.log.drain().await?;
                self.unsettled.set(false);
            }
            let (bytes, zeroes) = (joined(&batch), batch.last().map_or(0, |entry| entry.zeroes));
            let len = (bytes.len() as u64).saturating_add(zeroes);
            let new_end = end.checked_add(len).ok_or_else(|| IoError::new(Errno::FBIG))?;
            self.write_at(end, bytes, zeroes, new_end).await?;
            let mut state = self.state.borrow_mut();
            let memory: u64 = batch.iter().map(|entry| entry.bytes.len() as u64).sum();
            // Only whoever has the turn takes away from the front.
            batch.iter().for_each(|_| drop(state.queue.pop_front()));
            state.queued = state.queued.saturating_sub(memory);
            state.written = state.written.saturating_add(batch.len() as u64);
            state.end = new_end;
        }
    }

    /// The entries that go to the log next, in one write and perhaps zeroes behind it.
    fn next_batch(&self) -> (u64, Vec<Rc<Entry>>) {
        let state = self.state.borrow();
        let (mut batch, mut len) = (Vec::new(), 0_usize);
        for entry in &state.queue {
            if !batch.is_empty() && len.saturating_add(entry.bytes.len()) > PIECE {
                break;
            }
            len = len.saturating_add(entry.bytes.len());
            batch.push(Rc::clone(entry));
            if entry.zeroes > 0 {
                break;
            }
        }
        (state.end, batch)
    }

    async fn write_at(&self, at: u64, mut bytes: Vec<u8>, zeroes: u64, end: u64) -> Result<()> {
        self.make_room(end).await?;
        // A header of zeroes behind the last entry, where something else may stand.
        let stop = end < self.stale_until;
        self.unsettled.set(true);
        if zeroes == 0 {
            if stop {
                bytes.extend(std::iter::repeat_n(0, self.how.sector.size()));
            }
            self.log.write(at, &bytes, WriteFlags::empty()).await?;
        } else {
            // The header last: where it stands, its payload does.
            let behind = at.saturating_add(bytes.len() as u64);
            let stop = if stop { self.how.sector.bytes() } else { 0 };
            self.log.write_zeroes(behind, zeroes.saturating_add(stop), ZeroFlags::MAY_UNMAP).await?;
            self.log.write(at, &bytes, WriteFlags::empty()).await?;
        }
        self.unsettled.set(false);
        Ok(())
    }

    /// Makes the log as long as it has to be, where writing alone does not.
    async fn make_room(&self, end: u64) -> Result<()> {
        let info = self.log.info();
        if end <= info.size || info.capabilities.contains(Capabilities::GROWS) {
            return Ok(());
        }
        if info.capabilities.contains(Capabilities::RESIZE) {
            return self.log.resize(end, Preallocation::Off).await;
        }
        Err(IoError::new(Errno::NOSPC).detail(format!("the write log is full: it has {:#x} bytes", info.size)))
    }

    /// Invariant 4: what is counted is durable before it is. The caller has the turn.
    async fn superblock(&self) -> Result<()> {
        let entries = self.written();
        if self.unsettled.get() {
            self.log.drain().await?;
            self.unsettled.set(false);
        }
        self.log.flush().await?;
        self.make_room(self.how.sector.bytes()).await?;
        let block = Superblock { entries, sector: self.how.sector }.encode();
        self.unsettled.set(true);
        if self.log.info().capabilities.contains(Capabilities::FUA) {
            self.log.write(0, &block, WriteFlags::FUA).await?;
        } else {
            self.log.write(0, &block, WriteFlags::empty()).await?;
            self.log.flush().await?;
        }
        self.unsettled.set(false);
        self.state.borrow_mut().counted = Some(entries);
        Ok(())
    }

    /// Says that it is the log that failed, and remembers it.
    fn noted(&self, done: Result<()>) -> Result<()> {
        let done = done.map_err(|error| {
            // The place is one on the log, which means nothing to whoever asked.
            let error = IoError { first_bad: None, transferred: 0, ..error };
            error.context("writing the write log")
        });
        *self.trouble.borrow_mut() = done.clone().err();
        done
    }

    /// Writes what waits, and the superblock, and closes the log.
    ///
    /// # Errors
    /// As the log's node says.
    pub async fn close(&self) -> Result<()> {
        let entries = self.pushed();
        self.sync(entries).await?;
        self.log.close().await
    }
}

fn joined(batch: &[Rc<Entry>]) -> Vec<u8> {
    let len = batch.iter().map(|entry| entry.bytes.len()).fold(0, usize::saturating_add);
    let mut bytes = Vec::with_capacity(len);
    batch.iter().for_each(|entry| bytes.extend_from_slice(&entry.bytes));
    bytes
}
