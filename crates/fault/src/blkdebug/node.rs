//! The node.

use std::collections::BTreeSet;
use std::rc::Rc;

use blkproof_block::unflushed::Unflushed;
use blkproof_block::{
    BlockDevice, BlockStatus, Breakpoints, ByteRange, DeviceInfo, Errno, Event, IoError, Limits, Node, Preallocation,
    Result, WriteFlags, ZeroFlags,
};

use super::breaks::Breaks;
use super::limits::{LimitOptions, breach};
use crate::filter::{Fault, Faults};
use crate::lab::Registered;
use crate::notice::What;
use crate::request::Operation;

/// Zeroes written at once where a write of zeroes has to become one of data.
const ZERO_PIECE: usize = 1 << 20;

/// What is shared between a blkdebug node and those who control it.
#[derive(Clone, Debug)]
pub struct Handle {
    /// Its rules, which can be listed, added to and removed as those of a `fault` node.
    pub faults: Rc<Faults>,
    /// Its breakpoints.
    pub breaks: Rc<Breaks>,
}

/// QEMU's blkdebug over a child.
#[derive(Clone, Debug)]
pub struct Blkdebug {
    child: Node,
    /// The rules at work: what a request meets once its events are raised.
    fault: Fault,
    handle: Rc<Handle>,
    limits: LimitOptions,
    /// What it says of itself; the child's do not change.
    stated: Limits,
    /// Rules whose error comes without a turn of the event loop.
    immediate: Rc<BTreeSet<Box<str>>>,
    /// Nobody above raises the events of the generic layer.
    announces: bool,
    /// Flushes end above the disk (`cache.no-flush`).
    no_flush: bool,
    unflushed: Rc<Unflushed>,
    /// The node is known to its lab for as long as it is there.
    _registered: Option<Rc<Registered>>,
}

impl Blkdebug {
    /// Puts rules and breakpoints in front of `child`.
    pub fn new(child: Node, handle: Rc<Handle>, limits: LimitOptions, immediate: BTreeSet<Box<str>>) -> Self {
        let stated = limits.stated(child.limits());
        Self {
            fault: Fault::new(child.clone(), Rc::clone(&handle.faults)),
            child,
            handle,
            limits,
            stated,
            immediate: Rc::new(immediate),
            announces: !stated.needs_help(),
            no_flush: false,
            unflushed: Rc::default(),
            _registered: None,
        }
    }

    pub(super) fn no_flush(self, no_flush: bool) -> Self {
        Self { no_flush, ..self }
    }

    pub(super) fn registered(self, registered: Registered) -> Self {
        Self { _registered: Some(Rc::new(registered)), ..self }
    }

    /// Raises an event at this node, and waits as its rules and breakpoints say.
    pub(super) async fn raise(&self, event: Event) {
        let Handle { faults, breaks } = &*self.handle;
        if faults.listens(event) {
            let on = faults.announce(event);
            // Rules that can pause or cut are not blkdebug's; they were added at run time.
            faults.follow(on).await;
        }
        breaks.stop(event).await;
    }

    async fn raise_own(&self, event: Event) {
        if self.announces {
            self.raise(event).await;
        }
    }

    /// Refuses a request that does not keep to what this node says of itself, and tells of it.
    fn check(&self, operation: Operation, range: ByteRange) -> Result<()> {
        if self.announces {
            return Ok(()); // There are no limits to keep to.
        }
        let Some(words) = breach(&self.info(), operation, range) else { return Ok(()) };
        let words = format!("{words}: a request outside the limits of the node '{}'", self.handle.faults.name());
        self.handle.faults.say(What::OutsideLimits { operation, range, words: Rc::from(words.as_str()) });
        Err(IoError::new(Errno::INVAL).detail(words))
    }

    /// Passes a result on; an injected error takes a turn of the event loop first, unless its rule says otherwise.
    async fn finish(&self, done: Result<()>) -> Result<()> {
        if let Err(IoError { injected_by: Some(rule), .. }) = &done
            && !self.immediate.contains(&rule.0)
        {
            futures_lite::future::yield_now().await;
        }
        done
    }

    async fn zero(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.check(Operation::WriteZeroes, ByteRange::at(at, len))?;
        // Before any rule is looked at, so that fallbacks are run through too.
        if len < self.limits.smallest_zero(&self.stated) {
            return Err(IoError::unsupported());
        }
        let done = self.fault.write_zeroes(at, len, flags).await;
        self.finish(done).await
    }

    /// The generic layer's fallback: zero bytes, as writes of their own, under the events of the first request.
    async fn zero_by_data(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let zeroes = vec![0; usize::try_from(len).map_or(ZERO_PIECE, |len| len.min(ZERO_PIECE))];
        let mut flag = WriteFlags::empty();
        flag.set(WriteFlags::FUA, flags.contains(ZeroFlags::FUA));
        let mut done = 0;
        while done < len {
            let piece = usize::try_from(len.saturating_sub(done)).map_or(zeroes.len(), |left| left.min(zeroes.len()));
            let written = self.fault.write(at.saturating_add(done), zeroes.get(..piece).unwrap_or(&zeroes), flag).await;
            self.finish(written).await?;
            done = done.saturating_add(piece as u64);
        }
        Ok(())
    }
}

/// Events that each node raises for the one below it, and that are nobody else's.
const fn is_local(event: Event) -> bool {
    matches!(
        event,
        Event::Pwritev
            | Event::PwritevZero
            | Event::PwritevDone
            | Event::PwritevRmwHead
            | Event::PwritevRmwAfterHead
            | Event::PwritevRmwTail
            | Event::PwritevRmwAfterTail
            | Event::FlushToOs
            | Event::FlushToDisk
            | Event::CorWrite
            | Event::None
    )
}

impl BlockDevice for Blkdebug {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { driver: "blkdebug", limits: self.stated, ..self.child.info() }
    }

    fn limits(&self) -> Limits {
        self.stated
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        self.check(Operation::Read, ByteRange::at(at, buf.len() as u64))?;
        let done = self.fault.read(at, buf).await;
        self.finish(done).await
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        self.announces && self.fault.read_now(at, buf)
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.check(Operation::Write, ByteRange::at(at, data.len() as u64))?;
        let _change = self.unflushed.change();
        let plain = !flags.contains(WriteFlags::COMPRESSED);
        if plain {
            self.raise_own(Event::Pwritev).await;
        }
        let done = self.fault.write(at, data, flags).await;
        let done = self.finish(done).await;
        if plain {
            self.raise_own(Event::PwritevDone).await;
        }
        done
    }

    async fn read_vm_state(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.child.read_vm_state(at, buf).await
    }

    async fn write_vm_state(&self, at: u64, data: &[u8]) -> Result<()> {
        let _change = self.unflushed.change();
        self.child.write_vm_state(at, data).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let _change = self.unflushed.change();
        self.raise_own(Event::PwritevZero).await;
        let done = match self.zero(at, len, flags).await {
            Err(error) if error.errno == Errno::NOTSUP && self.announces && !flags.contains(ZeroFlags::NO_FALLBACK) => {
                self.zero_by_data(at, len, flags).await
            }
            done => done,
        };
        self.raise_own(Event::PwritevDone).await;
        done
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let range = ByteRange::at(at, len);
        self.check(Operation::Discard, range)?;
        let _change = self.unflushed.change();
        let done = if len < u64::from(self.stated.alignment) {
            Ok(()) // not supported, which counts as done
        } else {
            let done = self.fault.discard(at, len).await;
            self.finish(done).await
        };
        match done {
            // Advice that can not be taken has been followed.
            Err(error) if error.errno == Errno::NOTSUP => Ok(()),
            done => done,
        }
    }

    async fn flush(&self) -> Result<()> {
        let mark = self.unflushed.mark();
        self.child.event(Event::FlushToOs).await;
        if mark.is_some() && !self.no_flush {
            self.child.event(Event::FlushToDisk).await;
            let done = self.fault.flush().await;
            self.finish(done).await?;
        } else {
            // Nothing was written here since the last flush: no rule hears of this one, the child does.
            self.child.flush().await?;
        }
        self.unflushed.flushed(mark);
        Ok(())
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        self.fault.block_status(at, len).await
    }

    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        let _change = self.unflushed.change();
        self.fault.resize(size, preallocation).await
    }

    async fn drain(&self) -> Result<()> {
        self.child.drain().await
    }

    async fn close(&self) -> Result<()> {
        self.child.close().await
    }

    fn listens(&self, event: Event) -> bool {
        let Handle { faults, breaks } = &*self.handle;
        faults.listens(event) || breaks.waits_for(event) || (!is_local(event) && self.child.listens(event))
    }

    async fn event(&self, event: Event) {
        self.raise(event).await;
        if !is_local(event) {
            // In QEMU the steps of a driver go to the node directly below; here also to those beneath.
            self.child.event(event).await;
        }
    }

    fn breakpoints(&self) -> Option<Rc<dyn Breakpoints>> {
        Some(Rc::clone(&self.handle.breaks) as Rc<dyn Breakpoints>)
    }

    fn format_details(&self) -> Vec<(&'static str, String)> {
        self.child.format_details()
    }

    fn for_client(&self, client: &str) -> Option<Node> {
        let child = self.child.for_client(client)?;
        let fault = Fault::new(child.clone(), Rc::clone(&self.handle.faults));
        Some(Node::new(Self { child, fault, ..self.clone() }))
    }
}
