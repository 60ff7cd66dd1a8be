//! A filter above the disk that remembers what the disk was told, and what it answered.
//!
//! It counts the requests that change or flush, as the rule that cuts the power does, and knows of each change which
//! answer promised that it is durable: that of its own FUA, or of the first flush that was sent after the change had
//! completed (CM 4.6, 4.8). After a power cut the [judge](super::betrayal) compares this with what is there. The disk
//! is not asked what it believes: an honest one is found honest, not taken for it.

use std::cell::RefCell;
use std::rc::Rc;

use blkproof_block::choice::hash;
use blkproof_block::{
    BlockDevice, BlockStatus, Breakpoints, ByteRange, DeviceInfo, Event, Node, Preallocation, Result, WriteFlags,
    ZeroFlags,
};

/// Bytes that are compared as one. The nodes above see to it that no request has less.
pub(super) const BLOCK: u64 = 512;

/// The fingerprint of zeroes.
pub(super) const ZEROES: u64 = 0;

/// A change that was sent.
#[derive(Debug)]
pub(super) struct Change {
    /// The request's number, from 1.
    pub(super) request: u64,
    /// Where; whole blocks.
    pub(super) range: ByteRange,
    pub(super) content: Content,
    completed: bool,
    /// The [`Promise`] that it is durable, by its place in the list.
    pub(super) promise: Option<usize>,
}

/// What a change leaves.
#[derive(Debug)]
pub(super) enum Content {
    /// Fingerprints of the blocks.
    Data(Box<[u64]>),
    /// Zeroes.
    Zeroes,
    /// Zeroes, or what was there before: never promised, always allowed.
    Discarded,
}

impl Change {
    /// What the change left in the block at `at`, which is one of its own.
    pub(super) fn fingerprint(&self, at: u64) -> u64 {
        match &self.content {
            Content::Data(blocks) => {
                let index = usize::try_from(at.saturating_sub(self.range.start) / BLOCK).unwrap_or(usize::MAX);
                blocks.get(index).copied().unwrap_or(ZEROES)
            }
            Content::Zeroes | Content::Discarded => ZEROES,
        }
    }
}

/// An answer that made changes durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Promise {
    /// The number of the request that was answered.
    pub(super) request: u64,
    /// A write with FUA, which promised only itself; else a flush.
    pub(super) fua: bool,
}

/// What was sent and answered.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) requests: u64,
    /// In the order in which they were sent.
    pub(super) changes: Vec<Change>,
    /// In the order of the answers.
    pub(super) promises: Vec<Promise>,
    /// Changes before this one are promised, or can not be.
    settled: usize,
}

impl Log {
    fn count(&mut self) -> u64 {
        self.requests = self.requests.saturating_add(1);
        self.requests
    }

    fn begin(&mut self, range: ByteRange, content: Content) -> usize {
        let request = self.count();
        self.changes.push(Change { request, range, content, completed: false, promise: None });
        self.changes.len().saturating_sub(1)
    }

    fn end(&mut self, index: usize, fua: bool) {
        let promise = self.promises.len();
        let Some(change) = self.changes.get_mut(index) else { return };
        change.completed = true;
        if fua {
            change.promise = Some(promise);
            let request = change.request;
            self.promises.push(Promise { request, fua });
        }
    }

    /// What a flush that is sent now covers.
    fn covered(&self) -> Vec<usize> {
        let open = self.changes.iter().enumerate().skip(self.settled);
        let wanted = |change: &Change| {
            change.completed && change.promise.is_none() && !matches!(change.content, Content::Discarded)
        };
        open.filter(|(_, change)| wanted(change)).map(|(index, _)| index).collect()
    }

    fn flushed(&mut self, request: u64, covered: Vec<usize>) {
        let promise = self.promises.len();
        self.promises.push(Promise { request, fua: false });
        for index in covered {
            // Another flush may have been quicker.
            if let Some(change) = self.changes.get_mut(index) {
                change.promise.get_or_insert(promise);
            }
        }
        let waits = |change: &&Change| change.promise.is_none() && !matches!(change.content, Content::Discarded);
        let done = self.changes.iter().skip(self.settled).take_while(|change| !waits(change)).count();
        self.settled = self.settled.saturating_add(done);
    }
}

/// The filter. Clients share its log.
pub(super) struct Witness {
    child: Node,
    log: Rc<RefCell<Log>>,
}

impl Witness {
    pub(super) fn new(child: Node) -> Self {
        Self { child, log: Rc::default() }
    }

    pub(super) fn log(&self) -> Rc<RefCell<Log>> {
        Rc::clone(&self.log)
    }
}

/// The fingerprint of a block; that of zeroes is [`ZEROES`].
pub(super) fn fingerprint(block: &[u8]) -> u64 {
    if blkproof_block::buffer::is_zero(block) {
        return ZEROES;
    }
    let (words, _) = block.as_chunks();
    words.iter().fold(1, |state, word| hash(state, u64::from_le_bytes(*word))).max(1)
}

impl BlockDevice for Witness {
    fn info(&self) -> DeviceInfo {
        self.child.info()
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.child.read(at, buf).await
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        self.child.read_now(at, buf)
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        let blocks = data.chunks(usize::try_from(BLOCK).unwrap_or(usize::MAX)).map(fingerprint).collect();
        let change = self.log.borrow_mut().begin(ByteRange::at(at, data.len() as u64), Content::Data(blocks));
        self.child.write(at, data, flags).await?;
        self.log.borrow_mut().end(change, flags.contains(WriteFlags::FUA));
        Ok(())
    }

    async fn read_vm_state(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.child.read_vm_state(at, buf).await
    }

    async fn write_vm_state(&self, at: u64, data: &[u8]) -> Result<()> {
        self.child.write_vm_state(at, data).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let change = self.log.borrow_mut().begin(ByteRange::at(at, len), Content::Zeroes);
        self.child.write_zeroes(at, len, flags).await?;
        self.log.borrow_mut().end(change, flags.contains(ZeroFlags::FUA));
        Ok(())
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        let change = self.log.borrow_mut().begin(ByteRange::at(at, len), Content::Discarded);
        self.child.discard(at, len).await?;
        self.log.borrow_mut().end(change, false);
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        let (request, covered) = {
            let mut log = self.log.borrow_mut();
            (log.count(), log.covered())
        };
        self.child.flush().await?;
        self.log.borrow_mut().flushed(request, covered);
        Ok(())
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        self.child.block_status(at, len).await
    }

    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.child.resize(size, preallocation).await
    }

    async fn drain(&self) -> Result<()> {
        self.child.drain().await
    }

    async fn close(&self) -> Result<()> {
        self.child.close().await
    }

    fn listens(&self, event: Event) -> bool {
        self.child.listens(event)
    }

    async fn event(&self, event: Event) {
        self.child.event(event).await;
    }

    fn breakpoints(&self) -> Option<Rc<dyn Breakpoints>> {
        self.child.breakpoints()
    }

    fn format_details(&self) -> Vec<(&'static str, String)> {
        self.child.format_details()
    }

    fn for_client(&self, client: &str) -> Option<Node> {
        let child = self.child.for_client(client)?;
        Some(Node::new(Self { child, log: Rc::clone(&self.log) }))
    }
}
