//! The filter: forwards everything to `file`, and logs what changed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use blkproof_block::device::check_bounds;
use blkproof_block::range_lock::RangeLock;
use blkproof_block::{
    BlockDevice, BlockStatus, Breakpoints, ByteRange, Capabilities, DeviceInfo, Errno, Event, IoError, Limits, Node,
    Preallocation, Result, WriteFlags, ZeroFlags,
};
use tokio::sync::Semaphore;

use super::append::{Appender, BACKLOG_MAX, Content};
use super::format::Flags;
use crate::clock::SharedClock;
use crate::lab::Registered;

/// The driver's name.
pub const NAME: &str = "blklogwrites";

/// How the marks begin that this node makes of its own accord.
pub const OWN_MARK: &str = "blkproof: ";

/// Bytes read back at a time.
const CHUNK: u64 = 1 << 20;

/// Granularity at which a failed write is looked for on the disk: a device does its sectors, or not (CM 4.3).
const SECTOR_MIN: usize = 512;

/// A disk whose changes are logged. See the [module above](super). Requests are whole log sectors, as its limits say.
#[derive(Debug)]
pub struct LogWrites {
    file: Node,
    log: WriteLog,
    /// Says goodbye when the last view of the node goes.
    owner: Option<Rc<Registered>>,
}

/// A handle on the log of a running node. It may outlive the node.
#[derive(Clone)]
pub struct WriteLog(Rc<Core>);

struct Core {
    appender: Appender,
    locks: RangeLock,
    /// Bytes that changes in flight may add to what waits for the log.
    room: Semaphore,
    unsettled: RefCell<Unsettled>,
    clock: SharedClock,
    read_only: bool,
}

impl std::fmt::Debug for WriteLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WriteLog({} entries)", self.0.appender.pushed())
    }
}

/// Ranges whose content is not what the log says, perhaps: a request was dropped there, and may land until the next
/// drain, or failed, and the disk could not be read.
#[derive(Debug, Default)]
struct Unsettled {
    ranges: VecDeque<Doubt>,
    next: u64,
}

#[derive(Clone, Copy, Debug)]
struct Doubt {
    id: u64,
    range: ByteRange,
    /// It was a resize between these two sizes.
    resize: bool,
}

/// A request on its way through the disk below; noted as unsettled if it is dropped there.
struct Open<'a> {
    core: &'a Core,
    range: ByteRange,
    resize: bool,
    open: bool,
}

impl Open<'_> {
    fn close(mut self) {
        self.open = false;
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if self.open {
            self.core.note(self.range, self.resize);
        }
    }
}

/// A mark that can not be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MarkError {
    /// It does not fit behind a header.
    #[error("a mark of this log has at most {max} bytes, this one has {len}")]
    TooLong {
        /// Bytes it has.
        len: usize,
        /// Bytes it may have.
        max: usize,
    },
    /// It would pass for one that the node makes of its own accord.
    #[error(
        "a mark that begins with '{OWN_MARK}' is one that blkproof makes of its own accord, and would be read as such"
    )]
    Reserved,
    /// The node is open for reading alone.
    #[error("the node is read-only, and so is its log")]
    ReadOnly,
    /// The log could not be written.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Whether a user may make this mark, on a log whose marks have at most `max` bytes.
///
/// # Errors
/// [`MarkError`].
pub fn check_mark(text: &str, max: usize) -> Result<(), MarkError> {
    if text.starts_with(OWN_MARK) {
        return Err(MarkError::Reserved);
    }
    if text.len() > max {
        return Err(MarkError::TooLong { len: text.len(), max });
    }
    Ok(())
}

impl WriteLog {
    /// Appends a mark, and the superblock that counts it. Both are durable when this returns.
    ///
    /// # Errors
    /// [`MarkError`].
    pub async fn mark(&self, text: &str) -> Result<(), MarkError> {
        let core = &self.0;
        if core.read_only {
            return Err(MarkError::ReadOnly);
        }
        let how = core.appender.how();
        check_mark(text, how.sector.mark_max(how.details))?;
        let entries = core.push(Content::Mark(text.as_bytes()), Flags::empty(), core.appender.pushed());
        Ok(core.appender.sync(entries).await?)
    }

    /// Entries so far, those that are still on their way to the log included.
    pub fn entries(&self) -> u64 {
        self.0.appender.pushed()
    }

    /// Entries that are on the log.
    pub fn written(&self) -> u64 {
        self.0.appender.written()
    }
}

impl Core {
    fn push(&self, content: Content<'_>, flags: Flags, submitted: u64) -> u64 {
        let time_ns = u64::try_from(self.clock.unix().as_nanos()).unwrap_or(u64::MAX);
        self.appender.push(content, flags, submitted, time_ns)
    }

    /// Whether a mark of our own fits the log's sectors.
    fn has_own_mark(&self, words: &str) -> bool {
        let how = self.appender.how();
        OWN_MARK.len().saturating_add(words.len()) <= how.sector.mark_max(how.details)
    }

    /// A mark of our own; left out where the sectors are too small for it.
    fn own_mark(&self, words: &str) {
        if self.has_own_mark(words) {
            let text = format!("{OWN_MARK}{words}");
            self.push(Content::Mark(text.as_bytes()), Flags::empty(), self.appender.pushed());
        }
    }

    fn note(&self, range: ByteRange, resize: bool) {
        let mut unsettled = self.unsettled.borrow_mut();
        let id = unsettled.next;
        unsettled.next = id.wrapping_add(1);
        unsettled.ranges.push_back(Doubt { id, range, resize });
    }

    /// The first doubt noted before `mark`, but not before `from`.
    fn unsettled(&self, from: u64, mark: u64) -> Option<Doubt> {
        self.unsettled.borrow().ranges.iter().find(|doubt| (from..mark).contains(&doubt.id)).copied()
    }

    fn settled(&self, id: u64) {
        self.unsettled.borrow_mut().ranges.retain(|doubt| doubt.id != id);
    }
}

impl LogWrites {
    /// Logs what changes on `file`.
    pub fn new(file: Node, appender: Appender, clock: SharedClock) -> Self {
        let read_only = file.info().read_only;
        let (locks, unsettled) = (RangeLock::new(), RefCell::default());
        let room = Semaphore::new(usize::try_from(BACKLOG_MAX).unwrap_or(Semaphore::MAX_PERMITS));
        let core = Core { appender, locks, room, unsettled, clock, read_only };
        Self { file, log: WriteLog(Rc::new(core)), owner: None }
    }

    /// Drops `owner` with the last view of this node.
    #[must_use]
    pub fn owned_by(mut self, owner: Rc<Registered>) -> Self {
        self.owner = Some(owner);
        self
    }

    /// The handle on its log.
    pub fn log(&self) -> WriteLog {
        self.log.clone()
    }

    /// Refuses what can not be logged as it is; `Some` if there is nothing to do.
    fn refuse(&self, at: u64, len: u64) -> Result<()> {
        let core = &self.log.0;
        if core.read_only {
            return Err(IoError::read_only());
        }
        if at & (core.appender.how().sector.bytes().saturating_sub(1)) != 0 {
            let words =
                format!("{at:#x} is not a multiple of {}, the log's sector", core.appender.how().sector.bytes());
            return Err(IoError::new(Errno::INVAL).detail(words));
        }
        if at.checked_add(len).is_none() {
            return Err(IoError::past_end(at, len, self.file.info().size));
        }
        core.appender.check_room()
    }

    /// Sends a change of `range` to the disk, and logs it: `wanted` is what it brings, `flags` how.
    async fn change(
        &self,
        range: ByteRange,
        wanted: Wanted<'_>,
        flags: Flags,
        request: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let core = &*self.log.0;
        // As many at once as may wait for the log together; what is longer than that goes alone.
        let bytes = if let Wanted::Data(data) = wanted { data.len() as u64 } else { 0 };
        let bytes = u32::try_from(bytes.min(BACKLOG_MAX)).unwrap_or(u32::MAX);
        let room = core.room.acquire_many(bytes).await.map_err(|_| IoError::new(Errno::IO))?;
        core.appender.check_room()?;
        // Invariant 2: overlapping changes one after the other.
        let guard = core.locks.exclusive(range).await;
        let submitted = core.appender.pushed();
        let open = Open { core, range, resize: false, open: true };
        let done = request.await;
        match done {
            Ok(()) => {
                let content = match wanted {
                    Wanted::Data(data) => Content::Data(range.start, data),
                    Wanted::Zeroes | Wanted::QuickZeroes => Content::Zeroes(range.start, range.len()),
                    Wanted::Discard => Content::Discard(range.start, range.len()),
                };
                let entries = core.push(content, flags, submitted);
                open.close();
                drop(guard);
                let logged = core.appender.commit(entries).await;
                drop(room);
                logged
            }
            // Refused, with nothing done: that is promised of quick zeroes alone.
            Err(error) if error.errno == Errno::NOTSUP && matches!(wanted, Wanted::QuickZeroes) => {
                open.close();
                Err(error)
            }
            Err(error) => {
                if core.appender.how().details {
                    let what = match wanted {
                        Wanted::Data(_) => "write",
                        Wanted::Zeroes | Wanted::QuickZeroes => "write-zeroes",
                        Wanted::Discard => "discard",
                    };
                    let (start, len, errno) = (range.start, range.len(), error.errno.0);
                    core.own_mark(&format!("{what} of {len} bytes at {start} failed with errno {errno}"));
                }
                if self.log_what_landed(range, wanted, submitted).await.is_ok() {
                    open.close();
                }
                drop(guard);
                // What the disk said matters more than what the log says; the entries stay in line.
                let _ = core.appender.commit(core.appender.pushed()).await;
                Err(error)
            }
        }
    }

    /// Invariant 1, after a failure: of the sectors that were to be changed, logs those that have the new content.
    async fn log_what_landed(&self, range: ByteRange, wanted: Wanted<'_>, submitted: u64) -> Result<()> {
        let core = &self.log.0;
        let range = ByteRange { end: range.end.min(self.file.info().size), ..range };
        let sector = core.appender.how().sector.size();
        let grain = sector.min(SECTOR_MIN);
        let mut at = range.start;
        while at < range.end {
            let len = CHUNK.max(sector as u64).min(range.end.saturating_sub(at));
            let mut found = vec![0; usize::try_from(len).unwrap_or(0)];
            self.file.read(at, &mut found).await?;
            let from = usize::try_from(at.saturating_sub(range.start)).unwrap_or(usize::MAX);
            let landed = |index: usize, sector_found: &[u8]| match wanted {
                Wanted::Data(data) => {
                    let start = from.saturating_add(index.saturating_mul(sector));
                    let new = data.get(start..).unwrap_or_default();
                    sector_found.chunks(grain).zip(new.chunks(grain)).any(|(a, b)| a == b.get(..a.len()).unwrap_or(b))
                }
                Wanted::Zeroes | Wanted::QuickZeroes | Wanted::Discard => {
                    sector_found.chunks(grain).any(|part| part.iter().all(|byte| *byte == 0))
                }
            };
            // Runs of sectors that landed, an entry each.
            let mut run: Option<(usize, usize)> = None;
            for (index, piece) in found.chunks(sector).enumerate() {
                let start = index.saturating_mul(sector);
                if landed(index, piece) {
                    let begin = run.map_or(start, |(begin, _)| begin);
                    run = Some((begin, start.saturating_add(piece.len())));
                } else if let Some((begin, end)) = run.take() {
                    self.push_found(at, begin, end, &found, submitted);
                }
            }
            if let Some((begin, end)) = run {
                self.push_found(at, begin, end, &found, submitted);
            }
            at = at.saturating_add(len);
        }
        Ok(())
    }

    fn push_found(&self, at: u64, begin: usize, end: usize, found: &[u8], submitted: u64) {
        if let Some(data) = found.get(begin..end) {
            self.log.0.push(Content::Data(at.saturating_add(begin as u64), data), Flags::empty(), submitted);
        }
    }

    /// Invariant 1, after a drain: logs what is on the disk wherever a request was dropped before `mark`.
    async fn settle(&self, mark: u64) {
        let core = &self.log.0;
        let mut from = 0;
        while let Some(Doubt { id, range, resize }) = core.unsettled(from, mark) {
            let _guard = core.locks.exclusive(range).await;
            // What can not be read stays in line for the next drain.
            if self.log_as_found(range).await.is_ok() {
                if resize {
                    self.log_size(range.end);
                }
                core.settled(id);
            }
            from = id.saturating_add(1);
        }
    }

    async fn log_as_found(&self, range: ByteRange) -> Result<()> {
        let core = &self.log.0;
        let submitted = core.appender.pushed();
        let end = range.end.min(self.file.info().size);
        let mut at = range.start;
        while at < end {
            let sector = core.appender.how().sector.bytes();
            let status = self.file.block_status(at, end.saturating_sub(at)).await?;
            // Whole sectors of zeroes; what is less is read.
            let zero = if status.zero { status.len & !sector.saturating_sub(1) } else { 0 };
            if zero > 0 {
                core.push(Content::Zeroes(at, zero), Flags::empty(), submitted);
                at = at.saturating_add(zero);
                continue;
            }
            let len = CHUNK.max(sector).min(end.saturating_sub(at));
            let mut found = vec![0; usize::try_from(len).unwrap_or(0)];
            self.file.read(at, &mut found).await?;
            core.push(Content::Data(at, &found), Flags::empty(), submitted);
            at = at.saturating_add(len);
        }
        Ok(())
    }

    /// Says how long the disk is, which had `before` bytes: the format knows no sizes, so what is cut off is discarded,
    /// and a mark says the rest.
    fn log_size(&self, before: u64) {
        let core = &self.log.0;
        let size = self.file.info().size;
        let sector = core.appender.how().sector.bytes();
        let start = size.div_ceil(sector).saturating_mul(sector);
        let cut = ByteRange { start, end: ByteRange { start: 0, end: before }.aligned_out(sector).end };
        if !cut.is_empty() {
            core.push(Content::Discard(cut.start, cut.len()), Flags::empty(), core.appender.pushed());
        }
        core.own_mark(&size_mark(size));
    }

    fn mark_of_unsettled(&self) -> u64 {
        self.log.0.unsettled.borrow().next
    }
}

/// The mark that says how long the disk is.
fn size_mark(size: u64) -> String {
    format!("size {size}")
}

/// What a change brings.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    Data(&'a [u8]),
    Zeroes,
    /// Zeroes that are cheap, or refused (`NO_FALLBACK`).
    QuickZeroes,
    Discard,
}

impl BlockDevice for LogWrites {
    fn info(&self) -> DeviceInfo {
        let info = self.file.info();
        let appender = &self.log.0.appender;
        let sector = appender.how().sector.get();
        let limits = info.limits;
        let whole = |max: u32, unit: u32| if max == 0 { 0 } else { (max & !unit.saturating_sub(1)).max(unit) };
        let alignment = limits.alignment.max(sector);
        // Zeroes that are quick on the disk may still have to be written to the log.
        let quick_log = appender.log().info().capabilities.contains(Capabilities::ZEROES);
        let hidden = if quick_log { Capabilities::empty() } else { Capabilities::FAST_ZERO };
        DeviceInfo {
            driver: NAME,
            limits: Limits {
                alignment,
                max_transfer: whole(limits.max_transfer, alignment),
                zero_alignment: limits.zero_alignment.max(sector),
                discard_alignment: limits.discard_alignment.max(sector),
                ..limits
            },
            capabilities: info.capabilities.difference(hidden),
            ..info
        }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.file.read(at, buf).await
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        self.file.read_now(at, buf)
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let len = data.len() as u64;
        self.refuse(at, len)?;
        let fua = if flags.contains(WriteFlags::FUA) { Flags::FUA } else { Flags::empty() };
        let request = self.file.write(at, data, flags);
        self.change(ByteRange::at(at, len), Wanted::Data(data), fua, request).await
    }

    // No part of the disk, and nothing the format could say.
    async fn read_vm_state(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.file.read_vm_state(at, buf).await
    }

    async fn write_vm_state(&self, at: u64, data: &[u8]) -> Result<()> {
        self.file.write_vm_state(at, data).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.refuse(at, len)?;
        let fua = if flags.contains(ZeroFlags::FUA) { Flags::FUA } else { Flags::empty() };
        let quick = flags.contains(ZeroFlags::NO_FALLBACK);
        let wanted = if quick { Wanted::QuickZeroes } else { Wanted::Zeroes };
        let request = self.file.write_zeroes(at, len, flags);
        self.change(ByteRange::at(at, len), wanted, fua, request).await
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.refuse(at, len)?;
        check_bounds(at, len, self.file.info().size)?;
        let request = self.file.discard(at, len);
        self.change(ByteRange::at(at, len), Wanted::Discard, Flags::empty(), request).await
    }

    async fn flush(&self) -> Result<()> {
        let core = &self.log.0;
        if core.read_only {
            return self.file.flush().await;
        }
        let submitted = core.appender.pushed();
        self.file.flush().await?;
        let entries = core.push(Content::Flush, Flags::empty(), submitted);
        core.appender.sync(entries).await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        self.file.block_status(at, len).await
    }

    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        let core = &self.log.0;
        if core.read_only {
            return Err(IoError::read_only());
        }
        core.appender.check_room()?;
        let before = self.file.info().size;
        // Either size may be what there is afterwards.
        if [size, before].iter().any(|size| !core.has_own_mark(&size_mark(*size))) {
            let sector = core.appender.how().sector.bytes();
            let words = format!("the write log's sectors of {sector} bytes are too small to say how long the disk is");
            return Err(IoError::unsupported().detail(words));
        }
        let _guard = core.locks.exclusive(ByteRange { start: size.min(before), end: u64::MAX }).await;
        let before = self.file.info().size;
        let open = Open {
            core,
            range: ByteRange { start: size.min(before), end: size.max(before) },
            resize: true,
            open: true,
        };
        let done = self.file.resize(size, preallocation).await;
        self.log_size(before.max(size));
        open.close();
        let committed = core.appender.commit(core.appender.pushed()).await;
        done.and(committed)
    }

    async fn drain(&self) -> Result<()> {
        let core = &self.log.0;
        let mark = self.mark_of_unsettled();
        self.file.drain().await?;
        if core.read_only {
            return Ok(());
        }
        self.settle(mark).await;
        core.appender.commit(core.appender.pushed()).await
    }

    async fn close(&self) -> Result<()> {
        let core = &self.log.0;
        if core.read_only {
            self.file.close().await?;
            return core.appender.log().close().await;
        }
        self.drain().await?;
        let left: Vec<ByteRange> = core.unsettled.borrow().ranges.iter().map(|doubt| doubt.range).collect();
        for range in left {
            core.own_mark(&format!("what {} bytes at {} hold is not known", range.len(), range.start));
        }
        self.file.close().await?;
        core.appender.close().await
    }

    fn listens(&self, event: Event) -> bool {
        self.file.listens(event)
    }

    async fn event(&self, event: Event) {
        self.file.event(event).await;
    }

    fn breakpoints(&self) -> Option<Rc<dyn Breakpoints>> {
        self.file.breakpoints()
    }

    fn format_details(&self) -> Vec<(&'static str, String)> {
        self.file.format_details()
    }

    fn for_client(&self, client: &str) -> Option<Node> {
        let file = self.file.for_client(client)?;
        Some(Node::new(Self { file, log: self.log.clone(), owner: self.owner.clone() }))
    }
}
