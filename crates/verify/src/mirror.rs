//! The node: every request to both sides, side by side, outcomes and data compared.
//!
//! # Agreement
//! Between requests, RAW and TEST hold the same bytes everywhere but on *unsettled* ranges (`unsettled.rs`). Three
//! things keep that true:
//! - A request that changes data holds its range exclusively on both sides until both are done, so that overlapping
//!   writes arrive in the same order on both; a read holds it shared, so that it never meets a write half done on one
//!   side. Requests that do not overlap run side by side. The lock works on whole sectors, the unit of the history.
//! - A change that fails, or whose future is dropped, leaves its range unsettled *before* it releases the lock: a guard
//!   does it, at whatever await point the drop falls.
//! - The first request that touches an unsettled range drains what may still land and settles it (`settle.rs`).
//!
//! # Both nodes take any request
//! The children are used as they are: whoever needs padding or splitting stands behind
//! [`Aligned`](blkproof_block::align) already. A side without native FUA is flushed after a FUA write.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use blkproof_block::buffer::is_zero;
use blkproof_block::device::check_bounds;
use blkproof_block::range_lock::{RangeGuard, RangeLock};
use blkproof_block::{
    BlockDevice, BlockStatus, Breakpoints, ByteRange, Capabilities, DeviceInfo, Errno, Event, IoError, Limits, Node,
    Preallocation, Result, WriteFlags, ZeroFlags,
};
use futures_lite::future::zip;

use crate::buffers::Buffers;
use crate::diagnose;
use crate::history::{self, Entry, History, Outcome, Payload};
use crate::mismatch::{Difference, Mismatch, Request};
use crate::policy::OnMismatch;
use crate::request::RequestKind;
use crate::unsettled::{Candidate, Unsettled};
use crate::{SECTOR, len_of};

/// Who is told of a mismatch.
pub type Sink = Rc<dyn Fn(&Mismatch)>;

/// Nanoseconds since some beginning.
pub type Clock = Rc<dyn Fn() -> u64>;

/// How to mirror.
#[derive(Clone)]
pub struct VerifyOptions {
    on_mismatch: OnMismatch,
    history: u64,
    sink: Option<Sink>,
    clock: Option<Clock>,
    range_lock: bool,
}

impl std::fmt::Debug for VerifyOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { on_mismatch, history, .. } = self;
        f.debug_struct("VerifyOptions")
            .field("on_mismatch", on_mismatch)
            .field("history", history)
            .finish_non_exhaustive()
    }
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self::new(OnMismatch::Report)
    }
}

impl VerifyOptions {
    /// A history of [64 MiB](history::DEFAULT_SIZE), nobody to tell, no clock.
    pub fn new(on_mismatch: OnMismatch) -> Self {
        Self { on_mismatch, history: history::DEFAULT_SIZE, sink: None, clock: None, range_lock: true }
    }

    /// What is done about a mismatch.
    #[must_use]
    pub fn on_mismatch(mut self, on_mismatch: OnMismatch) -> Self {
        self.on_mismatch = on_mismatch;
        self
    }

    /// Bytes of memory for the [`History`]; 0 for none.
    #[must_use]
    pub fn history(mut self, size: u64) -> Self {
        self.history = size;
        self
    }

    /// Tells `sink` of every mismatch.
    #[must_use]
    pub fn sink(mut self, sink: impl Fn(&Mismatch) + 'static) -> Self {
        self.sink = Some(Rc::new(sink));
        self
    }

    /// Dates operations by `clock`, in nanoseconds since some beginning.
    #[must_use]
    pub fn clock(mut self, clock: impl Fn() -> u64 + 'static) -> Self {
        self.clock = Some(Rc::new(clock));
        self
    }

    /// Leaves overlapping requests to themselves. Wrong, and here for the test that shows it.
    #[doc(hidden)]
    #[must_use]
    pub fn without_range_lock(mut self) -> Self {
        self.range_lock = false;
        self
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What was done so far.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Default)]
        pub(crate) struct Cells {
            $(pub(crate) $name: Cell<u64>,)*
        }

        impl Cells {
            fn snapshot(&self) -> Counters {
                Counters { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Reads whose data was compared.
    reads,
    /// Bytes of them.
    bytes_compared,
    /// Requests that change data or size.
    changes,
    /// Flushes.
    flushes,
    /// Mismatches found.
    mismatches,
    /// Ranges settled in TEST's favour after a discard, a failed or a dropped request, in bytes copied to RAW.
    bytes_settled,
    /// Bytes of them whose content could not be checked against the values allowed, because those were forgotten.
    bytes_unverified,
}

pub(crate) fn count(cell: &Cell<u64>, more: u64) {
    cell.set(cell.get().wrapping_add(more));
}

/// Unsettled ranges kept; a request that would add to more settles the first one.
const UNSETTLED: usize = 16384;

/// Longest range that one block status request answers for.
const STATUS_RANGE: u64 = 256 << 20;

/// Bytes of RAW read at most to check one zero extent of TEST.
const STATUS_READ: u64 = 16 << 20;

/// Bytes compared at once where the mirror reads on its own account.
pub(crate) const CHUNK: u64 = 1 << 20;

const EVERYTHING: ByteRange = ByteRange { start: 0, end: u64::MAX };

/// The mirror. See the head of this file.
pub struct Verify<R, T> {
    pub(crate) shared: Rc<Shared<R, T>>,
    client: u16,
}

pub(crate) struct Shared<R, T> {
    pub(crate) raw: R,
    pub(crate) test: T,
    options: VerifyOptions,
    lock: RangeLock,
    pub(crate) unsettled: RefCell<Unsettled>,
    /// Number of the last drop, and of the last one known to be drained.
    drops: Cell<u64>,
    drained: Cell<u64>,
    /// A resize that failed or was dropped: the sizes may differ.
    pub(crate) size_in_doubt: Cell<Option<SizeInDoubt>>,
    pub(crate) history: RefCell<History>,
    operations: Cell<u64>,
    pub(crate) counters: Cells,
    pub(crate) buffers: Buffers,
    scratch: RefCell<Vec<u8>>,
}

/// What a resize that did not end well tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SizeInDoubt {
    pub(crate) entry: Entry,
    pub(crate) old: u64,
    pub(crate) new: u64,
}

impl<R, T> std::fmt::Debug for Verify<R, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verify").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl<R: BlockDevice + 'static, T: BlockDevice + 'static> Verify<R, T> {
    /// Mirrors `raw`, the reference, and `test`. Neither may declare [`Limits`] that need help, and nobody else may
    /// write to either.
    ///
    /// # Errors
    /// If the sizes differ and the policy is [`Fail`](OnMismatch::Fail). Otherwise the sink is told and the mirror goes
    /// on: the device is as long as TEST, and requests beyond the end of RAW differ in their outcome.
    pub fn new(raw: R, test: T, options: VerifyOptions) -> Result<Self, Box<Mismatch>> {
        let (raw_size, test_size) = (raw.info().size, test.info().size);
        let history = RefCell::new(History::new(options.history));
        let shared = Shared {
            raw,
            test,
            options,
            lock: RangeLock::new(),
            unsettled: RefCell::default(),
            drops: Cell::new(0),
            drained: Cell::new(0),
            size_in_doubt: Cell::new(None),
            history,
            operations: Cell::new(0),
            counters: Cells::default(),
            buffers: Buffers::default(),
            scratch: RefCell::default(),
        };
        let verify = Self { shared: Rc::new(shared), client: 0 };
        if raw_size != test_size {
            let entry = Entry { op: 0, time_ns: 0, client: 0, kind: RequestKind::Open, outcome: Outcome::Done };
            let request = verify.request(&entry, 0, test_size);
            let mismatch = verify.tell(request, Difference::Size { test: test_size, raw: raw_size });
            if verify.shared.options.on_mismatch == OnMismatch::Fail {
                return Err(Box::new(mismatch));
            }
        }
        Ok(verify)
    }

    /// The reference.
    pub fn raw(&self) -> &R {
        &self.shared.raw
    }

    /// The device under test.
    pub fn test(&self) -> &T {
        &self.shared.test
    }

    /// What was done so far, by all clients.
    pub fn counters(&self) -> Counters {
        self.shared.counters.snapshot()
    }

    /// Looks at the history.
    pub fn with_history<U>(&self, look: impl FnOnce(&History) -> U) -> U {
        look(&self.shared.history.borrow())
    }

    /// The same mirror for requests of the client `name`.
    #[must_use]
    pub fn client(&self, name: &str) -> Self {
        let client = self.shared.history.borrow_mut().client(name);
        Self { shared: self.shared.clone(), client }
    }

    /// Brings both sides into step everywhere, as the first touch of each unsettled range would.
    ///
    /// # Errors
    /// If a side can not be drained.
    pub async fn settle_all(&self) -> Result<()> {
        self.settle_size().await?;
        loop {
            let Some(first) = self.shared.unsettled.borrow().first() else { return Ok(()) };
            let _lock = self.exclusive(first.aligned_out(SECTOR)).await;
            self.drain_if_open(first).await?;
            self.settle(first).await;
            // What could not be settled (a side that fails its reads) is left to whoever reads it.
            if self.shared.unsettled.borrow().first().is_some_and(|left| left.start < first.end) {
                return Ok(());
            }
        }
    }

    fn start(&self, kind: RequestKind) -> Entry {
        let op = self.shared.operations.get() + 1;
        self.shared.operations.set(op);
        let time_ns = self.shared.options.clock.as_ref().map_or(0, |clock| clock());
        Entry { op, time_ns, client: self.client, kind, outcome: Outcome::Done }
    }

    pub(crate) fn request(&self, entry: &Entry, at: u64, len: u64) -> Request {
        let client = self.shared.history.borrow().client_name(entry.client);
        Request { kind: entry.kind, at, len, op: entry.op, time_ns: entry.time_ns, client }
    }

    pub(crate) fn tell(&self, request: Request, difference: Difference) -> Mismatch {
        count(&self.shared.counters.mismatches, 1);
        let on_mismatch = self.shared.options.on_mismatch;
        let history_begins_at = self.shared.history.borrow().begins_at();
        let mismatch = Mismatch { request, difference, on_mismatch, history_begins_at };
        if let Some(sink) = &self.shared.options.sink {
            sink(&mismatch);
        }
        mismatch
    }

    pub(crate) async fn exclusive(&self, range: ByteRange) -> Option<RangeGuard<'_>> {
        if self.shared.options.range_lock { Some(self.shared.lock.exclusive(range).await) } else { None }
    }

    async fn shared(&self, range: ByteRange) -> Option<RangeGuard<'_>> {
        if self.shared.options.range_lock { Some(self.shared.lock.shared(range).await) } else { None }
    }

    /// Takes the lock of a request of `len` bytes at `at`, which waits for whoever holds some of its sectors.
    ///
    /// That may have been a resize, so only what is seen *under the lock* counts: a request that looked before could
    /// find the sides of different lengths where a resize was dropped, and one beyond the new end would make a side
    /// that grows grow again. Nobody can begin a resize while any lock is held.
    async fn enter(&self, at: u64, len: u64, exclusive: bool) -> Result<Option<RangeGuard<'_>>> {
        let sectors = ByteRange::at(at, len).aligned_out(SECTOR);
        loop {
            self.settle_size().await?;
            check_bounds(at, len, self.info().size)?;
            let lock = if exclusive { self.exclusive(sectors).await } else { self.shared(sectors).await };
            if self.shared.size_in_doubt.get().is_none() {
                check_bounds(at, len, self.info().size)?;
                return Ok(lock);
            }
        }
    }

    pub(crate) fn is_unsettled(&self, range: ByteRange) -> bool {
        let unsettled = self.shared.unsettled.borrow();
        !unsettled.is_empty() && unsettled.overlaps(range)
    }

    /// Waits until no dropped request can land in `range` any more. The caller holds `range` exclusively, so no further
    /// one can be dropped there meanwhile.
    async fn drain_if_open(&self, range: ByteRange) -> Result<()> {
        let newest = self.shared.unsettled.borrow().newest_drop(range);
        if newest > self.shared.drained.get() { self.drain_sides().await } else { Ok(()) }
    }

    pub(crate) async fn drain_sides(&self) -> Result<()> {
        let until = self.shared.drops.get();
        let (raw, test) = zip(self.shared.raw.drain(), self.shared.test.drain()).await;
        test.and(raw)?;
        self.shared.drained.set(self.shared.drained.get().max(until));
        Ok(())
    }

    pub(crate) fn next_drop(&self) -> u64 {
        let drop = self.shared.drops.get() + 1;
        self.shared.drops.set(drop);
        drop
    }

    /// Compares two outcomes and says what the client gets. After two successes, whatever the data, `Ok`.
    fn judge(&self, entry: &Entry, at: u64, len: u64, raw: Result<()>, test: Result<()>) -> Result<()> {
        match (&raw, &test) {
            (Ok(()), Ok(())) => return test,
            // The same fault on both sides is what a mirror of a faulty disk should see. Where it struck may rightly
            // differ: a format meets its own metadata.
            (Err(a), Err(b)) if a.errno == b.errno => return test,
            _ => {}
        }
        self.tell(self.request(entry, at, len), Difference::Outcome { test: test.clone(), raw: raw.clone() });
        match self.shared.options.on_mismatch {
            OnMismatch::Report | OnMismatch::Exit => test,
            OnMismatch::RepairView => raw,
            OnMismatch::Fail => {
                let words =
                    |outcome: &Result<()>| outcome.as_ref().err().map_or("success".to_owned(), ToString::to_string);
                let detail = format!("mirror mismatch: test said {}, raw said {}", words(&test), words(&raw));
                let place = test.err().or(raw.err()).and_then(|error| error.first_bad);
                let error = IoError::new(Errno::IO).detail(detail);
                Err(place.map_or(error.clone(), |place| error.at(place.0)))
            }
        }
    }

    /// Every change of data passes here.
    async fn change(&self, entry: Entry, at: u64, payload: Payload<'_>, how: How) -> Result<()> {
        let len = payload.len();
        if len == 0 {
            return Ok(());
        }
        self.settle_size().await?;
        let info = self.info();
        if info.read_only {
            return Err(IoError::read_only());
        }
        check_bounds(at, len, info.size)?;
        self.relieve().await?;
        let range = ByteRange::at(at, len);
        let lock = self.enter(at, len, true).await?;
        if self.is_unsettled(range.aligned_out(SECTOR)) {
            // A late landing after this write would be a change nobody asked for.
            self.drain_if_open(range.aligned_out(SECTOR)).await?;
            if range.aligned_out(SECTOR) != range {
                // Values are kept by the sector; a part of one can not be taken out of an unsettled sector.
                self.settle(range.aligned_out(SECTOR)).await;
            }
        }
        count(&self.shared.counters.changes, 1);
        // From here to `finish` a drop leaves the range unsettled, before `lock` goes.
        let mut pending = Pending { verify: self, entry, at, payload, size: self.info().size, armed: true };
        let (raw, test) = self.change_both(at, payload, how).await;
        pending.finish(&raw, &test);
        drop(pending);
        drop(lock);
        self.judge(&entry, at, len, raw, test)
    }

    async fn change_both(&self, at: u64, payload: Payload<'_>, how: How) -> (Result<()>, Result<()>) {
        let Shared { raw, test, .. } = &*self.shared;
        match (how, payload) {
            // Requests that TEST may refuse for what it is, not for what it holds. RAW follows if TEST took it.
            (How::Write(flags), Payload::Data(data)) if flags.contains(WriteFlags::COMPRESSED) => {
                match write(test, at, data, flags).await {
                    Ok(()) => (write(raw, at, data, flags - WriteFlags::COMPRESSED).await, Ok(())),
                    Err(error) => (Err(error.clone()), Err(error)),
                }
            }
            (How::Zeroes(flags), _) if flags.contains(ZeroFlags::NO_FALLBACK) => {
                match zero(test, at, payload.len(), flags).await {
                    Ok(()) => (zero(raw, at, payload.len(), flags - ZeroFlags::NO_FALLBACK).await, Ok(())),
                    Err(error) => (Err(error.clone()), Err(error)),
                }
            }
            (How::Write(flags), Payload::Data(data)) => {
                zip(write(raw, at, data, flags), write(test, at, data, flags)).await
            }
            (How::Zeroes(flags), _) => {
                zip(zero(raw, at, payload.len(), flags), zero(test, at, payload.len(), flags)).await
            }
            (How::Discard | How::Write(_), _) => {
                match zip(raw.discard(at, payload.len()), test.discard(at, payload.len())).await {
                    // A side that has no discard does nothing, which is one of the things a discard may do.
                    (Ok(()), Err(error)) | (Err(error), Ok(())) if error.errno == Errno::NOTSUP => (Ok(()), Ok(())),
                    outcomes => outcomes,
                }
            }
        }
    }

    /// Keeps the map of unsettled ranges bounded.
    async fn relieve(&self) -> Result<()> {
        while self.shared.unsettled.borrow().len() > UNSETTLED {
            let Some(first) = self.shared.unsettled.borrow().first() else { break };
            let _lock = self.exclusive(first.aligned_out(SECTOR)).await;
            self.drain_if_open(first).await?;
            self.settle(first).await;
            if self.is_unsettled(first) {
                // It can not be read; forget it and let the next read tell.
                self.shared.unsettled.borrow_mut().remove(first);
            }
        }
        Ok(())
    }

    /// Reads both sides, RAW into `raw` and TEST into `test`.
    pub(crate) async fn read_both(&self, at: u64, raw: &mut [u8], test: &mut [u8]) -> (Result<()>, Result<()>) {
        zip(self.shared.raw.read(at, raw), self.shared.test.read(at, test)).await
    }

    /// Both reads succeeded and the bytes differ. The caller holds the sectors of the range.
    async fn content_mismatch(&self, entry: &Entry, at: u64, raw: &[u8], test: &mut [u8]) -> Result<()> {
        let Some((mut first_bad, mut ranges)) = diagnose::differing(at, raw, test) else { return Ok(()) };
        // A range whose sides could not be brought into step (RAW failed to be written) is known to differ.
        if self.is_unsettled(ByteRange::at(at, test.len() as u64)) {
            let unsettled = self.shared.unsettled.borrow();
            let differs = |byte: u64| {
                let index = len_of(byte - at);
                raw[index] != test[index] && !unsettled.overlaps(ByteRange::at(byte, 1))
            };
            let sectors = ranges.iter().flat_map(|range| pieces(*range));
            let mut kept: Vec<ByteRange> = Vec::new();
            let mut first = None;
            for sector in sectors {
                let Some(byte) = (sector.start..sector.end).find(|&byte| differs(byte)) else { continue };
                first.get_or_insert(byte);
                match kept.last_mut() {
                    Some(last) if last.end == sector.start => last.end = sector.end,
                    _ => kept.push(sector),
                }
            }
            let Some(first) = first else { return Ok(()) };
            (first_bad, ranges) = (first, kept);
        }
        let sectors = self.stories(at, raw, test, &ranges).await;
        let difference = Difference::Content { first_bad, ranges: ranges.clone(), sectors };
        self.tell(self.request(entry, at, test.len() as u64), difference);
        match self.shared.options.on_mismatch {
            OnMismatch::Report | OnMismatch::Exit => Ok(()),
            OnMismatch::RepairView => {
                test.copy_from_slice(raw);
                Ok(())
            }
            OnMismatch::Fail => {
                let start = ranges.first().map_or(at, |range| range.start);
                let mut error = IoError::new(Errno::IO).at(start);
                error.transferred = start - at;
                Err(error.detail(format!("mirror mismatch: contents differ at offset {first_bad}")))
            }
        }
    }

    /// Tells the sectors in `ranges`; a request that covers a sector in part has the rest of it read for that.
    async fn stories(&self, at: u64, raw: &[u8], test: &[u8], ranges: &[ByteRange]) -> Vec<crate::Sector> {
        let end = at + raw.len() as u64;
        let size = self.shared.raw.info().size.min(self.shared.test.info().size).max(end);
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { return Vec::new() };
        let mut needed = ByteRange { start: first.start, end: last.end }.aligned_out(SECTOR);
        needed.end = needed.end.min(size);
        if needed.start < at || needed.end > end {
            let len = len_of(needed.len());
            let (mut whole_raw, mut whole_test) = (self.shared.buffers.take(len), self.shared.buffers.take(len));
            if let (Ok(()), Ok(())) = self.read_both(needed.start, &mut whole_raw, &mut whole_test).await {
                let history = self.shared.history.borrow();
                return diagnose::sectors(&history, needed.start, &whole_raw, &whole_test, ranges);
            }
        }
        diagnose::sectors(&self.shared.history.borrow(), at, raw, test, ranges)
    }

    /// Checks that RAW reads as zeroes where TEST says it does. Returns how far that was looked at, and the place of
    /// the first byte that is none, with the sectors around it.
    async fn check_zeroes(&self, entry: &Entry, at: u64, len: u64) -> (u64, Option<ByteRange>) {
        let end = at + len;
        let mut here = at;
        let mut read = 0;
        while here < end && read < STATUS_READ {
            let Ok(status) = self.shared.raw.block_status(here, end - here).await else { break };
            if status.zero {
                here += status.len.min(end - here);
                continue;
            }
            let piece = status.len.min(end - here).min(CHUNK);
            let mut buffer = self.shared.buffers.take(len_of(piece));
            if self.shared.raw.read(here, &mut buffer).await.is_err() {
                break; // a read of that place will say so
            }
            read += piece;
            for (range, _) in self.shared.unsettled.borrow().pieces_in(ByteRange::at(here, piece)) {
                buffer[len_of(range.start - here)..len_of(range.end - here)].fill(0);
            }
            if !is_zero(&buffer) {
                let zeroes = self.shared.buffers.take(buffer.len());
                let mut zeroes = zeroes;
                zeroes.fill(0);
                let Some((first_bad, ranges)) = diagnose::differing(here, &buffer, &zeroes) else { break };
                let sectors = diagnose::sectors(&self.shared.history.borrow(), here, &buffer, &zeroes, &ranges);
                let bad = ranges.first().copied();
                self.tell(self.request(entry, at, len), Difference::Content { first_bad, ranges, sectors });
                return (here - at, bad);
            }
            here += piece;
        }
        (here - at, None)
    }

    async fn resize_locked(&self, entry: &Entry, size: u64, preallocation: Preallocation) -> Result<()> {
        if self.shared.drops.get() > self.shared.drained.get() {
            self.drain_sides().await?;
        }
        let old = self.shared.test.info().size;
        // If this future is dropped or a side fails, the sizes stay in doubt and the next request clears that up.
        let doubt = SizeInDoubt { entry: *entry, old, new: size };
        self.shared.size_in_doubt.set(Some(doubt));
        let Shared { raw, test, .. } = &*self.shared;
        let (raw, test) = zip(raw.resize(size, preallocation), test.resize(size, preallocation)).await;
        if raw.is_ok() && test.is_ok() {
            self.shared.size_in_doubt.set(None);
            self.resized(entry, old, size);
        }
        self.judge(entry, size, 0, raw, test)
    }

    /// Notes that the size changed on both sides: what lies between the sizes reads as zeroes, if at all.
    pub(crate) fn resized(&self, entry: &Entry, old: u64, new: u64) {
        let between = ByteRange { start: old.min(new), end: old.max(new) };
        self.shared.unsettled.borrow_mut().remove(ByteRange { start: new, end: u64::MAX });
        self.shared.history.borrow_mut().record(entry, between.start, Payload::Zeroes(between.len()), old.max(new));
    }
}

fn pieces(range: ByteRange) -> impl Iterator<Item = ByteRange> {
    let whole = range.aligned_out(SECTOR);
    let starts = (whole.start..whole.end).step_by(crate::SECTOR_LEN);
    starts.filter_map(move |start| ByteRange::at(start, SECTOR).intersection(range))
}

/// How a change is to be done.
#[derive(Clone, Copy)]
enum How {
    Write(WriteFlags),
    Zeroes(ZeroFlags),
    Discard,
}

/// A write, followed by a flush where FUA is asked for and not native.
async fn write(side: &impl BlockDevice, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
    let emulate = flags.contains(WriteFlags::FUA) && !side.info().capabilities.contains(Capabilities::FUA);
    if emulate {
        side.write(at, data, flags - WriteFlags::FUA).await?;
        return side.flush().await;
    }
    side.write(at, data, flags).await
}

async fn zero(side: &impl BlockDevice, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
    let emulate = flags.contains(ZeroFlags::FUA) && !side.info().capabilities.contains(Capabilities::FUA);
    if emulate {
        side.write_zeroes(at, len, flags - ZeroFlags::FUA).await?;
        return side.flush().await;
    }
    side.write_zeroes(at, len, flags).await
}

/// A change that was sent and has not been accounted for. Dropping it says: both sides hold, sector by sector, old or
/// new, and what is missing may still land.
struct Pending<'a, R: BlockDevice + 'static, T: BlockDevice + 'static> {
    verify: &'a Verify<R, T>,
    entry: Entry,
    at: u64,
    payload: Payload<'a>,
    size: u64,
    armed: bool,
}

impl<R: BlockDevice + 'static, T: BlockDevice + 'static> Pending<'_, R, T> {
    fn finish(&mut self, raw: &Result<()>, test: &Result<()>) {
        self.armed = false;
        let Self { verify, ref mut entry, at, payload, size, .. } = *self;
        let range = ByteRange::at(at, payload.len());
        match (raw, test) {
            (Ok(()), Ok(())) if entry.kind == RequestKind::Discard => self.leave_unsettled(false, 0),
            (Ok(()), Ok(())) => {
                if verify.is_unsettled(range) {
                    verify.shared.unsettled.borrow_mut().remove(range);
                }
                verify.shared.history.borrow_mut().record(entry, at, payload, size);
            }
            // A refusal that promises to leave the content as it was (NO_FALLBACK, no discard).
            (Err(a), Err(b)) if a.errno == Errno::NOTSUP && b.errno == Errno::NOTSUP => {}
            _ => {
                entry.outcome = Outcome::Failed;
                let test_holds_it = test.is_ok() && entry.kind != RequestKind::Discard;
                self.leave_unsettled(test_holds_it, 0);
            }
        }
    }

    fn leave_unsettled(&self, settles: bool, drop: u64) {
        let Self { verify, entry, at, payload, size, .. } = self;
        let range = ByteRange::at(*at, payload.len());
        let candidate = Candidate::new(*entry, *at, *payload);
        verify.shared.unsettled.borrow_mut().add(range, candidate, settles, drop);
        verify.shared.history.borrow_mut().record(entry, *at, *payload, *size);
    }
}

impl<R: BlockDevice + 'static, T: BlockDevice + 'static> Drop for Pending<'_, R, T> {
    fn drop(&mut self) {
        if self.armed {
            self.entry.outcome = Outcome::Dropped;
            let drop = self.verify.next_drop();
            self.leave_unsettled(false, drop);
        }
    }
}

impl<R: BlockDevice + 'static, T: BlockDevice + 'static> BlockDevice for Verify<R, T> {
    fn info(&self) -> DeviceInfo {
        let (raw, test) = (self.shared.raw.info(), self.shared.test.info());
        let both = raw.capabilities & test.capabilities;
        let either = raw.capabilities | test.capabilities;
        // Discards and FUA are done, or made up for, on each side by itself. NO_FALLBACK is TEST's to refuse.
        let capabilities = (both & (Capabilities::MULTI_CONN | Capabilities::RESIZE | Capabilities::ZERO_ON_GROWTH))
            | (either & Capabilities::DISCARD)
            | (test.capabilities & (Capabilities::ZEROES | Capabilities::FAST_ZERO | Capabilities::ROTATIONAL))
            | Capabilities::FUA;
        DeviceInfo {
            driver: "blkverify",
            size: test.size,
            read_only: raw.read_only || test.read_only,
            limits: Limits { preferred_transfer: test.limits.preferred_transfer, ..Limits::NONE },
            capabilities,
            cluster_size: test.cluster_size,
        }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let entry = self.start(RequestKind::Read);
        let range = ByteRange::at(at, buf.len() as u64);
        let sectors = range.aligned_out(SECTOR);
        let mut lock = self.enter(at, range.len(), false).await?;
        let mut unsettled = self.is_unsettled(range);
        if unsettled {
            drop(lock.take());
            lock = self.enter(at, range.len(), true).await?;
            unsettled = self.is_unsettled(range);
            self.drain_if_open(sectors).await?;
        }
        let mut other = self.shared.buffers.take(buf.len());
        let (mut raw, mut test) = self.read_both(at, &mut other, buf).await;
        if unsettled && raw.is_ok() && test.is_ok() {
            if *other == *buf {
                self.pin(at, buf);
            } else {
                self.settle(sectors).await;
                (raw, test) = self.read_both(at, &mut other, buf).await;
            }
        }
        let result = if raw.is_ok() && test.is_ok() {
            count(&self.shared.counters.reads, 1);
            count(&self.shared.counters.bytes_compared, buf.len() as u64);
            if *other == *buf { Ok(()) } else { self.content_mismatch(&entry, at, &other, buf).await }
        } else {
            let result = self.judge(&entry, at, buf.len() as u64, raw, test);
            if self.shared.options.on_mismatch == OnMismatch::RepairView && result.is_ok() {
                buf.copy_from_slice(&other);
            }
            result
        };
        drop(lock);
        result
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        let Shared { raw, test, lock, size_in_doubt, scratch, counters, .. } = &*self.shared;
        let range = ByteRange::at(at, buf.len() as u64);
        if buf.is_empty() || size_in_doubt.get().is_some() || self.is_unsettled(range) {
            return false;
        }
        // Nothing is awaited while the guard is held: it only asks whether a writer is in the range.
        let Some(_lock) = lock.try_shared(range.aligned_out(SECTOR)) else { return false };
        if !test.read_now(at, buf) {
            return false;
        }
        let mut scratch = scratch.borrow_mut();
        if scratch.len() < buf.len() {
            scratch.resize(buf.len(), 0);
        }
        let other = &mut scratch[..buf.len()];
        if !raw.read_now(at, other) || *other != *buf {
            return false; // the slow path tells the story
        }
        self.shared.operations.set(self.shared.operations.get() + 1);
        count(&counters.reads, 1);
        count(&counters.bytes_compared, buf.len() as u64);
        true
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        self.change(self.start(RequestKind::Write), at, Payload::Data(data), How::Write(flags)).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.change(self.start(RequestKind::WriteZeroes), at, Payload::Zeroes(len), How::Zeroes(flags)).await
    }

    /// As the contract has it: afterwards each side reads, piece by piece, as before or as zeroes, whichever side does
    /// which. The first read of a piece settles it for good.
    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.change(self.start(RequestKind::Discard), at, Payload::Zeroes(len), How::Discard).await
    }

    async fn flush(&self) -> Result<()> {
        let entry = self.start(RequestKind::Flush);
        count(&self.shared.counters.flushes, 1);
        let (raw, test) = zip(self.shared.raw.flush(), self.shared.test.flush()).await;
        self.judge(&entry, 0, 0, raw, test)
    }

    /// TEST's answer. Where it says that bytes read as zeroes, RAW is held to it; an answer is cut short (256 MiB, or
    /// 16 MiB of data in RAW) so that it never promises more than was checked.
    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        let entry = self.start(RequestKind::BlockStatus);
        let asked = len;
        let len = len.min(STATUS_RANGE);
        let _lock = self.enter(at, len, false).await?;
        check_bounds(at, asked, self.info().size)?;
        let mut status = self.shared.test.block_status(at, len).await?;
        if !status.zero {
            return Ok(status);
        }
        let (checked, bad) = self.check_zeroes(&entry, at, status.len.min(len)).await;
        match (bad, self.shared.options.on_mismatch) {
            (Some(bad), OnMismatch::Fail) => {
                return Err(IoError::new(Errno::IO)
                    .at(bad.start)
                    .detail("mirror mismatch: a zero extent holds data in raw"));
            }
            (Some(bad), OnMismatch::RepairView) if bad.start > at => status.len = bad.start - at,
            (Some(bad), OnMismatch::RepairView) => status = BlockStatus::data(bad.end - at, None),
            (None, _) if checked > 0 => status.len = status.len.min(checked),
            _ => {}
        }
        Ok(status)
    }

    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        if self.info().read_only {
            return Err(IoError::read_only());
        }
        let entry = self.start(RequestKind::Resize);
        let _lock = loop {
            self.settle_size().await?;
            let lock = self.exclusive(EVERYTHING).await;
            // The one waited for may have been another resize, dropped half done.
            if self.shared.size_in_doubt.get().is_none() {
                break lock;
            }
        };
        count(&self.shared.counters.changes, 1);
        self.resize_locked(&entry, size, preallocation).await
    }

    async fn drain(&self) -> Result<()> {
        self.drain_sides().await
    }

    /// Brings the sides into step, so that they can be compared later, and closes both.
    async fn close(&self) -> Result<()> {
        let settled = if self.info().read_only { Ok(()) } else { self.settle_all().await };
        let entry = self.start(RequestKind::Close);
        let (raw, test) = zip(self.shared.raw.close(), self.shared.test.close()).await;
        settled.and(self.judge(&entry, 0, 0, raw, test))
    }

    fn listens(&self, event: Event) -> bool {
        self.shared.raw.listens(event) || self.shared.test.listens(event)
    }

    async fn event(&self, event: Event) {
        zip(self.shared.raw.event(event), self.shared.test.event(event)).await;
    }

    /// Those of the raw side, which is the primary child in QEMU.
    fn breakpoints(&self) -> Option<Rc<dyn Breakpoints>> {
        self.shared.raw.breakpoints()
    }

    fn for_client(&self, client: &str) -> Option<Node> {
        Some(Node::new(self.client(client)))
    }
}
