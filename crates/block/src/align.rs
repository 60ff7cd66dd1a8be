//! The one place where requests are padded and split.
//!
//! [`Aligned`] takes any byte range and asks the device below only for what its [`Limits`] allow. The part that can
//! lose data is *padding*: a write that covers half a block reads the block, puts its own bytes in, and writes the
//! whole block back, the neighbours' bytes as it read them. Three invariants keep the neighbours' bytes fresh; below,
//! a *block* is the device's alignment, and a *padded* write is one that writes bytes its caller did not give.
//!
//! 1. **Between the read and the end of the write of a padded request, nobody else changes its blocks.** A padded
//!    request holds its blocks exclusively; every other request that changes content holds its range shared. Shared
//!    holders never wait for each other (what overlapping writes leave is their callers' affair, CM 4.4), so aligned
//!    traffic is not slowed down.
//! 2. **A dropped padded write may land late, and then restores what it once read.** Its blocks are therefore noted as
//!    *unsettled* before its lock is released, and whoever changes content there next drains the device first. A
//!    dropped request that was not padded can land late only inside its own bytes, which its caller gave up; a padded
//!    write beside it still drains first, or it could take back bytes somebody has seen land.
//! 3. **The end of the device does not move under a request that is cut there.** A device whose size is no multiple of
//!    its alignment has a short last block; a request may end there, at the odd byte, and only there. Requests that
//!    depend on the end hold everything behind them too, and look at the size again once they hold it.
//!
//! Reads take no lock: beside a padded write they see bytes that are either the neighbours' own, unchanged, or of the
//! write, old or new (CM 4.2).
//!
//! The alternative, to let every format and filter pad for itself, is how the same bug was made many times over
//! (bug-gallery.md G24, V3).
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod geometry;
mod unsettled;

use std::rc::Rc;

use self::geometry::{Geometry, add};
use self::unsettled::{Unsettled, Watch};
use crate::buffer::AlignedBuffer;
use crate::device::{BlockDevice, Preallocation, WriteFlags, ZeroFlags, check_bounds};
use crate::range_lock::{RangeGuard, RangeLock};
use crate::units::{ByteOffset, ByteRange};
use crate::{BlockStatus, Breakpoints, Capabilities, DeviceInfo, Errno, Event, IoError, Limits, Node, Result};

/// Lets any byte request through to a device with [`Limits`]. See the [module](self).
///
/// What it does beyond splitting and padding:
/// - FUA becomes one flush after the write where the device has none of its own
///   ([`Capabilities::FUA`]); otherwise every piece carries it.
/// - Write zeroes: edges finer than the device's granularity are written as data. Where the device answers `ENOTSUP`,
///   zeroes are written, in pieces of at most 1 MiB, unless `NO_FALLBACK` forbids it.
/// - Discard: edges finer than the granularity are dropped, and `ENOTSUP` counts as done.
/// - The granularity of zeroes and discards is never below that of reads and writes.
/// - Errors keep their place, and `transferred` counts from the caller's first byte. A bad byte in the padding has no
///   place in the caller's request and becomes its first byte.
/// - `pwritev`, `pwritev_zero`, `pwritev_done` and the four `pwritev_rmw_…` events are announced to the device
///   (block-layer.md 1.5).
///
/// A device without limits needs none of this; [`Aligned::wrap`] leaves it alone.
#[derive(Debug)]
pub struct Aligned<D> {
    device: D,
    shared: Rc<Shared>,
}

/// What all views on one device share ([`BlockDevice::for_client`] makes more of them).
#[derive(Debug, Default)]
struct Shared {
    locks: RangeLock,
    unsettled: Unsettled,
    sabotage: Option<Sabotage>,
}

/// Bugs on purpose, to show that the tests would find them.
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sabotage {
    /// Nobody waits for anybody (breaks invariant 1).
    NoLock,
    /// Dropped requests are forgotten (breaks invariant 2).
    NoDrain,
}

impl Aligned<Node> {
    /// Puts an [`Aligned`] in front of `node` if its limits need help.
    pub fn wrap(node: Node) -> Node {
        if node.info().limits.needs_help() { Node::new(Self::new(node)) } else { node }
    }
}

impl<D: BlockDevice> Aligned<D> {
    /// Takes any request for `device`. Every other user of `device` has to come through here too.
    pub fn new(device: D) -> Self {
        Self { device, shared: Rc::default() }
    }

    /// A broken one, for tests of tests.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn sabotaged(device: D, sabotage: Sabotage) -> Self {
        Self { device, shared: Rc::new(Shared { sabotage: Some(sabotage), ..Shared::default() }) }
    }

    /// The device below.
    pub fn device(&self) -> &D {
        &self.device
    }

    async fn announce(&self, event: Event) {
        if self.device.listens(event) {
            self.device.event(event).await;
        }
    }

    /// Takes the lock that a change of `range` needs, and drains if something dropped may still land there.
    ///
    /// `geometry` looks at the device as it is; it is asked again once the lock is held, since the end may have moved
    /// while waiting (invariant 3).
    async fn enter(&self, range: ByteRange, kind: Change) -> Result<Option<Entered<'_>>> {
        loop {
            let geometry = Geometry::of(&self.device.info());
            if !geometry.pads() {
                return Ok(None);
            }
            let claim = geometry.claim(range, kind);
            let locks = &self.shared.locks;
            let guard = match self.shared.sabotage {
                Some(Sabotage::NoLock) => None,
                _ if claim.exclusive => Some(locks.exclusive(claim.range).await),
                _ => Some(locks.shared(claim.range).await),
            };
            let now = Geometry::of(&self.device.info());
            if now.claim(range, kind) != claim {
                continue;
            }
            if self.shared.unsettled.concerns(claim.range, claim.exclusive)
                && self.shared.sabotage != Some(Sabotage::NoDrain)
            {
                self.settle().await?;
                continue; // The end may have moved again, if what landed moved it.
            }
            let watch = self.shared.unsettled.watch(claim.range, claim.exclusive);
            return Ok(Some(Entered { watch, _guard: guard }));
        }
    }

    /// Waits until nothing dropped before can land any more.
    async fn settle(&self) -> Result<()> {
        let mark = self.shared.unsettled.mark();
        self.device.drain().await?;
        self.shared.unsettled.forget_until(mark);
        Ok(())
    }

    /// Changes `range` to `source`, under a lock that is held already, and announces it.
    async fn write_pieces(
        &self,
        range: ByteRange,
        source: Source<'_>,
        flags: WriteFlags,
        entered: Option<&Entered<'_>>,
    ) -> Result<()> {
        let geometry = Geometry::of(&self.device.info());
        let padded = geometry.pad_write(range);
        let (head, tail) = self.read_padding(&geometry, range, padded).await?;
        let padding = Padding { range, padded, head, tail };
        self.announce(Event::Pwritev).await;
        let done = self.write_padded(&geometry, &padding, source, flags, entered).await;
        self.announce(Event::PwritevDone).await;
        done
    }

    async fn write_padded(
        &self,
        geometry: &Geometry,
        padding: &Padding,
        source: Source<'_>,
        flags: WriteFlags,
        entered: Option<&Entered<'_>>,
    ) -> Result<()> {
        let Padding { range, padded, .. } = *padding;
        let mut at = padded.start;
        while at < padded.end {
            let direct = source.direct(range, at, geometry.memory);
            let piece = geometry.piece(at, range, padded, direct);
            let given = source.slice(range, piece).filter(|_| direct && !padding.touches(piece));
            let bounced;
            let data = match given {
                Some(data) => data,
                None => {
                    let mut buffer = AlignedBuffer::zeroed(length(piece), geometry.memory);
                    source.copy_to(range, piece, &mut buffer);
                    padding.copy_to(piece, &mut buffer);
                    bounced = buffer;
                    &*bounced
                }
            };
            // From here until it has returned, a drop leaves a write open that may land late.
            let open = entered.map(|entered| entered.watch.open());
            let done = self.device.write(piece.start, data, flags).await;
            if let Some(open) = open {
                open.close();
            }
            done.map_err(|error| place(error, piece.start, range))?;
            at = piece.end;
        }
        Ok(())
    }

    /// Reads the bytes around `range` that a padded write gives back as they are, announcing each step.
    async fn read_padding(
        &self,
        geometry: &Geometry,
        range: ByteRange,
        padded: ByteRange,
    ) -> Result<(Option<Block>, Option<Block>)> {
        let head = padded.start < range.start;
        let tail = range.end < padded.end;
        let first = geometry.block_at(padded.start, padded.end);
        let last = geometry.block_before(padded.end);
        if head && tail && (first.end >= last.start) {
            // One block, or two neighbours: one read brings both.
            self.announce(Event::PwritevRmwHead).await;
            self.announce(Event::PwritevRmwTail).await;
            let both = self.read_block(geometry, ByteRange { start: first.start, end: last.end }, range).await?;
            self.announce(Event::PwritevRmwAfterHead).await;
            self.announce(Event::PwritevRmwAfterTail).await;
            return Ok((Some(both), None));
        }
        let mut blocks = (None, None);
        if head {
            self.announce(Event::PwritevRmwHead).await;
            blocks.0 = Some(self.read_block(geometry, first, range).await?);
            self.announce(Event::PwritevRmwAfterHead).await;
        }
        if tail {
            self.announce(Event::PwritevRmwTail).await;
            blocks.1 = Some(self.read_block(geometry, last, range).await?);
            self.announce(Event::PwritevRmwAfterTail).await;
        }
        Ok(blocks)
    }

    /// Reads whole blocks; what lies behind the end of a growing device is zero.
    async fn read_block(&self, geometry: &Geometry, block: ByteRange, request: ByteRange) -> Result<Block> {
        let mut buffer = AlignedBuffer::zeroed(length(block), geometry.memory);
        let mut at = block.start;
        let end = block.end.min(geometry.size);
        while at < end {
            let piece = ByteRange { start: at, end: end.min(add(at, geometry.transfer_max)) };
            // A piece of a buffer at the memory alignment is at it too, if the piece before it was whole blocks.
            let done = match within(block, piece).and_then(|bytes| buffer.get_mut(bytes)) {
                Some(target) if geometry.fits_memory(target) => self.device.read(at, target).await,
                Some(target) => {
                    let mut bounce = AlignedBuffer::zeroed(target.len(), geometry.memory);
                    let done = self.device.read(at, &mut bounce).await;
                    target.copy_from_slice(&bounce);
                    done
                }
                None => break,
            };
            done.map_err(|error| IoError { transferred: 0, ..place(error, at, request) })?;
            at = piece.end;
        }
        Ok(Block { range: block, bytes: buffer })
    }

    /// The flags for the device, and whether a flush has to follow.
    fn durably(&self, fua: bool) -> bool {
        fua && !self.device.info().capabilities.contains(Capabilities::FUA)
    }

    /// Zeroes a range: edges as data, whole granules as zeroes.
    async fn zero_range(&self, range: ByteRange, flags: ZeroFlags) -> Result<()> {
        let data_flags = if flags.contains(ZeroFlags::FUA) { WriteFlags::FUA } else { WriteFlags::empty() };
        let entered = self.enter(range, Change::Write).await?;
        changed_range(&self.device.info(), range.start, range.len())?; // A resize may have come first.
        let entered = entered.as_ref();
        let geometry = Geometry::of(&self.device.info());
        let whole = geometry.granules(range, geometry.zero);
        let only = |part: ByteRange| if part.is_empty() { None } else { Some(part) };
        let (head, middle, tail) = match whole {
            Some(whole) => (
                only(ByteRange { start: range.start, end: whole.start }),
                Some(whole),
                only(ByteRange { start: whole.end, end: range.end }),
            ),
            None => (Some(range), None, None),
        };
        if flags.contains(ZeroFlags::NO_FALLBACK) && (head.is_some() || tail.is_some()) {
            return Err(IoError::unsupported()
                .detail(format!("{range} does not begin and end on the {} bytes the device can zero", geometry.zero)));
        }
        if let Some(head) = head {
            self.write_pieces(head, Source::Zeroes, data_flags, entered).await?;
        }
        if let Some(middle) = middle {
            self.zero_granules(middle, flags, range, entered).await?;
        }
        if let Some(tail) = tail {
            self.write_pieces(tail, Source::Zeroes, data_flags, entered)
                .await
                .map_err(|error| shift_transferred(error, tail.start, range))?;
        }
        Ok(())
    }

    /// Zeroes whole granules, as zeroes if the device can, else as data.
    async fn zero_granules(
        &self,
        range: ByteRange,
        flags: ZeroFlags,
        request: ByteRange,
        entered: Option<&Entered<'_>>,
    ) -> Result<()> {
        self.announce(Event::PwritevZero).await;
        let geometry = Geometry::of(&self.device.info());
        let mut at = range.start;
        let mut done = Ok(());
        while at < range.end {
            let len = geometry.zero_max.min(range.end.saturating_sub(at));
            let open = entered.map(|entered| entered.watch.open());
            done = self.device.write_zeroes(at, len, flags).await;
            if let Some(open) = open {
                open.close();
            }
            if done.is_err() {
                break;
            }
            at = add(at, len);
        }
        self.announce(Event::PwritevDone).await;
        match done {
            Ok(()) => Ok(()),
            // Nothing is done yet and nothing may be written: the caller decides.
            Err(error)
                if error.errno == Errno::NOTSUP && flags.contains(ZeroFlags::NO_FALLBACK) && at == request.start =>
            {
                Err(error)
            }
            // Part of the range is zero already, so "the content is as it was" can no longer be said; "done" can.
            Err(error) if error.errno == Errno::NOTSUP => {
                let rest = ByteRange { start: at, end: range.end };
                let flags = if flags.contains(ZeroFlags::FUA) { WriteFlags::FUA } else { WriteFlags::empty() };
                self.write_pieces(rest, Source::Zeroes, flags, entered)
                    .await
                    .map_err(|error| shift_transferred(error, rest.start, request))
            }
            Err(error) => Err(place(error, at, request)),
        }
    }
}

impl<D: BlockDevice> BlockDevice for Aligned<D> {
    fn info(&self) -> DeviceInfo {
        let info = self.device.info();
        let limits = info.limits;
        let preferred = limits.preferred_transfer.max(if limits.alignment > 1 { limits.alignment } else { 0 });
        DeviceInfo {
            limits: Limits { preferred_transfer: preferred, ..Limits::NONE },
            capabilities: info.capabilities | Capabilities::FUA,
            ..info
        }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let range = ByteRange::at(at, buf.len() as u64);
        check_bounds(at, range.len(), self.device.info().size)?;
        let mut here = at;
        while here < range.end {
            // Looked at again for every piece: a read holds no lock, and a device that has grown meanwhile is no
            // longer to be cut at its old end.
            let geometry = Geometry::of(&self.device.info());
            let padded = geometry.pad_read(range);
            here = if here == at { padded.start } else { here };
            let direct = within(range, ByteRange { start: here, end: range.end })
                .and_then(|bytes| buf.get(bytes))
                .is_some_and(|target| geometry.fits_memory(target));
            let piece = geometry.piece(here, range, padded, direct);
            let inside = piece.intersection(range).unwrap_or(ByteRange { start: at, end: at });
            let Some(target) = within(range, inside).and_then(|bytes| buf.get_mut(bytes)) else { break };
            if direct && inside == piece {
                self.device.read(piece.start, target).await.map_err(|error| place(error, piece.start, range))?;
            } else {
                let mut bounce = AlignedBuffer::zeroed(length(piece), geometry.memory);
                let done = self.device.read(piece.start, &mut bounce).await;
                // After an error too: what lies before the bad byte is the caller's.
                if let Some(bytes) = within(piece, inside).and_then(|bytes| bounce.get(bytes)) {
                    target.copy_from_slice(bytes);
                }
                done.map_err(|error| place(error, piece.start, range))?;
            }
            here = piece.end;
        }
        Ok(())
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        // The device knows its end; a request that is cut there at an odd byte takes the long way.
        let limits = self.device.limits();
        let (len, block) = (buf.len() as u64, u64::from(limits.alignment.max(1)));
        at.is_multiple_of(block)
            && len.is_multiple_of(block)
            && (limits.max_transfer == 0 || len <= u64::from(limits.max_transfer))
            && buf.as_ptr().addr().is_multiple_of(limits.memory_alignment.max(1) as usize)
            && self.device.read_now(at, buf)
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let range = changed_range(&self.device.info(), at, data.len() as u64)?;
        let flush = self.durably(flags.contains(WriteFlags::FUA));
        let flags = if flush { flags.difference(WriteFlags::FUA) } else { flags };
        let entered = self.enter(range, Change::Write).await?;
        changed_range(&self.device.info(), range.start, range.len())?; // A resize may have come first.
        let geometry = Geometry::of(&self.device.info());
        if flags.contains(WriteFlags::COMPRESSED) && geometry.pad_write(range) != range {
            return Err(IoError::new(Errno::INVAL).detail("a compressed write covers whole clusters"));
        }
        self.write_pieces(range, Source::Given(data), flags, entered.as_ref()).await?;
        drop(entered);
        if flush { self.device.flush().await } else { Ok(()) }
    }

    // Limits are those of the disk. Nothing is padded, so no neighbour has to be protected.
    async fn read_vm_state(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.device.read_vm_state(at, buf).await
    }

    async fn write_vm_state(&self, at: u64, data: &[u8]) -> Result<()> {
        self.device.write_vm_state(at, data).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let range = changed_range(&self.device.info(), at, len)?;
        let flush = self.durably(flags.contains(ZeroFlags::FUA));
        let flags = if flush { flags.difference(ZeroFlags::FUA) } else { flags };
        self.zero_range(range, flags).await?;
        if flush { self.device.flush().await } else { Ok(()) }
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let info = self.device.info();
        check_bounds(at, len, info.size)?;
        if info.read_only {
            return Err(IoError::read_only());
        }
        let range = ByteRange::at(at, len);
        let entered = self.enter(range, Change::Discard).await?;
        check_bounds(at, len, self.device.info().size)?;
        let geometry = Geometry::of(&self.device.info());
        let Some(whole) = geometry.granules(range, geometry.discard) else { return Ok(()) };
        let mut at = whole.start;
        while at < whole.end {
            let len = geometry.discard_max.min(whole.end.saturating_sub(at));
            let open = entered.as_ref().map(|entered| entered.watch.open());
            let done = self.device.discard(at, len).await;
            if let Some(open) = open {
                open.close();
            }
            match done {
                // Discarding is advice; a device that can not take it has followed it.
                Err(error) if error.errno == Errno::NOTSUP => return Ok(()),
                done => done.map_err(|error| place(error, at, range))?,
            }
            at = add(at, len);
        }
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        self.device.flush().await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        self.device.block_status(at, len).await
    }

    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        // Held from the nearer of both ends: nobody may be cut at one of them meanwhile (invariant 3).
        let start = size.min(self.device.info().size);
        let entered = self.enter(ByteRange { start, end: u64::MAX }, Change::Resize).await?;
        let open = entered.as_ref().map(|entered| entered.watch.open());
        let done = self.device.resize(size, preallocation).await;
        if let Some(open) = open {
            open.close();
        }
        done
    }

    async fn drain(&self) -> Result<()> {
        self.settle().await
    }

    async fn close(&self) -> Result<()> {
        self.device.close().await
    }

    fn listens(&self, event: Event) -> bool {
        self.device.listens(event)
    }

    async fn event(&self, event: Event) {
        self.device.event(event).await;
    }

    fn breakpoints(&self) -> Option<Rc<dyn Breakpoints>> {
        self.device.breakpoints()
    }

    fn format_details(&self) -> Vec<(&'static str, String)> {
        self.device.format_details()
    }

    fn for_client(&self, client: &str) -> Option<Node> {
        let device = self.device.for_client(client)?;
        Some(Node::new(Aligned { device, shared: self.shared.clone() }))
    }
}

/// How a request changes content, as far as locking goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    Write,
    Discard,
    Resize,
}

/// The right to change a range. The watch goes first when dropped: what a drop left open is noted while the range is
/// still locked.
struct Entered<'a> {
    watch: Watch<'a>,
    _guard: Option<RangeGuard<'a>>,
}

/// What is to be written.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// The caller's bytes, all of the request's range.
    Given(&'a [u8]),
    /// Zero bytes, as many as it takes.
    Zeroes,
}

impl<'a> Source<'a> {
    /// The bytes of `piece`, if it lies inside the request and is in memory.
    fn slice(self, request: ByteRange, piece: ByteRange) -> Option<&'a [u8]> {
        match self {
            Self::Given(data) => data.get(within(request, piece)?),
            Self::Zeroes => None,
        }
    }

    /// Whether the bytes from `at` on lie in memory as the device wants them.
    fn direct(self, request: ByteRange, at: u64, memory: usize) -> bool {
        self.slice(request, ByteRange { start: at, end: request.end })
            .is_some_and(|data| data.as_ptr().addr().checked_rem(memory) == Some(0))
    }

    /// Copies what lies in `piece` into a zeroed buffer of that piece.
    fn copy_to(self, request: ByteRange, piece: ByteRange, buffer: &mut [u8]) {
        copy_common(self.slice(request, request), request, buffer, piece);
    }
}

/// Whole blocks read for the sake of their edge.
struct Block {
    range: ByteRange,
    bytes: AlignedBuffer,
}

/// A request and what surrounds it inside its blocks.
struct Padding {
    range: ByteRange,
    padded: ByteRange,
    head: Option<Block>,
    tail: Option<Block>,
}

impl Padding {
    /// Whether `piece` holds bytes of the padding.
    fn touches(&self, piece: ByteRange) -> bool {
        piece.start < self.range.start || self.range.end < piece.end
    }

    /// Puts the bytes around the request into the buffer of `piece`, and none of the request's own.
    fn copy_to(&self, piece: ByteRange, buffer: &mut [u8]) {
        let before = ByteRange { start: self.padded.start, end: self.range.start };
        let after = ByteRange { start: self.range.end, end: self.padded.end };
        for block in [&self.head, &self.tail].into_iter().flatten() {
            for edge in [before, after] {
                let Some(part) = edge.intersection(block.range) else { continue };
                copy_common(within(block.range, part).and_then(|bytes| block.bytes.get(bytes)), part, buffer, piece);
            }
        }
    }
}

/// Copies the bytes both ranges have in common.
fn copy_common(from: Option<&[u8]>, from_range: ByteRange, to: &mut [u8], to_range: ByteRange) {
    let Some((from, common)) = from.zip(from_range.intersection(to_range)) else { return };
    let source = within(from_range, common).and_then(|bytes| from.get(bytes));
    let target = within(to_range, common).and_then(|bytes| to.get_mut(bytes));
    if let Some((source, target)) = source.zip(target) {
        target.copy_from_slice(source);
    }
}

/// Where `part` lies in a buffer that holds `whole`; `None` if it does not lie inside.
fn within(whole: ByteRange, part: ByteRange) -> Option<std::ops::Range<usize>> {
    if part.end > whole.end {
        return None;
    }
    let start = usize::try_from(part.start.checked_sub(whole.start)?).ok()?;
    let end = usize::try_from(part.end.checked_sub(whole.start)?).ok()?;
    Some(start..end)
}

/// The length of a range that a buffer is made for; those are bounded.
fn length(range: ByteRange) -> usize {
    usize::try_from(range.len()).unwrap_or(usize::MAX)
}

/// The range of a request that changes content, if it may.
fn changed_range(info: &DeviceInfo, at: u64, len: u64) -> Result<ByteRange> {
    if !info.capabilities.contains(Capabilities::GROWS) || at.checked_add(len).is_none() {
        check_bounds(at, len, info.size)?;
    }
    if info.read_only {
        return Err(IoError::read_only());
    }
    Ok(ByteRange::at(at, len))
}

/// Moves the error of a piece that began at `piece` into the request.
fn place(mut error: IoError, piece: u64, request: ByteRange) -> IoError {
    if let Some(ByteOffset(bad)) = error.first_bad
        && !request.contains(bad)
    {
        error.first_bad = Some(ByteOffset(request.start));
    }
    let reached = add(piece, error.transferred).min(request.end);
    error.transferred = reached.saturating_sub(request.start);
    error
}

/// Counts what a part of `request` that began at `part` had transferred from the start of the request.
fn shift_transferred(mut error: IoError, part: u64, request: ByteRange) -> IoError {
    error.transferred = error.transferred.saturating_add(part.saturating_sub(request.start)).min(request.len());
    error
}
