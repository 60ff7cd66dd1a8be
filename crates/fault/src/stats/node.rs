//! The node: passes everything on, and counts it.

use std::rc::Rc;

use blkproof_block::device::check_bounds;
use blkproof_block::{
    BlockDevice, BlockStatus, Breakpoints, Capabilities, DeviceInfo, Event, Node, Preallocation, Result, WriteFlags,
    ZeroFlags,
};

use super::counters::Stats;
use crate::lab::Registered;
use crate::request::Operation;

/// A device whose requests are counted.
#[derive(Clone, Debug)]
pub struct StatsNode<D> {
    child: D,
    stats: Rc<Stats>,
    /// Keeps the name taken until the last client's node is gone.
    registered: Option<Rc<Registered>>,
}

impl<D: BlockDevice> StatsNode<D> {
    /// Counts in `stats` what `child` is asked.
    pub fn new(child: D, stats: Rc<Stats>) -> Self {
        stats.set_size(child.info().size);
        Self { child, stats, registered: None }
    }

    /// The same, known by name as long as it lives.
    #[must_use]
    pub fn registered(mut self, registered: Registered) -> Self {
        self.registered = Some(Rc::new(registered));
        self
    }

    /// The figures.
    pub fn stats(&self) -> &Rc<Stats> {
        &self.stats
    }

    /// Before a request is counted that may have made the disk longer, so that it has its place in the heat map.
    fn look_at_size(&self, at: u64, len: u64) {
        if at.saturating_add(len) > self.stats.size() {
            self.stats.set_size(self.child.info().size);
        }
    }

    /// Whether a request that failed could not have been done at all. Costs something, and is asked after failures
    /// only.
    fn is_invalid(&self, operation: Operation, at: u64, len: u64) -> bool {
        let info = self.child.info();
        let grows = operation.changes() && info.capabilities.contains(Capabilities::GROWS);
        (info.read_only && operation.changes()) || (!grows && check_bounds(at, len, info.size).is_err())
    }
}

/// Makes a request that is counted. A macro, because a request of the child is a future of its own kind for each
/// method.
macro_rules! counted {
    ($self:ident, $operation:expr, $at:expr, $len:expr, $fua:expr, $request:expr) => {{
        let going = $self.stats.begin($operation, $at, $len, $fua);
        let result = $request.await;
        $self.look_at_size($at, $len);
        if let Some(going) = going {
            going.end(&result, || $self.is_invalid($operation, $at, $len));
        }
        result
    }};
}

impl<D: BlockDevice> BlockDevice for StatsNode<D> {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { driver: super::NAME, ..self.child.info() }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        counted!(self, Operation::Read, at, len, false, self.child.read(at, buf))
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        let Some(start) = self.stats.clock_if_running() else { return self.child.read_now(at, buf) };
        let served = self.child.read_now(at, buf);
        if served {
            self.stats.served(at, buf.len() as u64, start);
        }
        served
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        let fua = flags.contains(WriteFlags::FUA);
        counted!(self, Operation::Write, at, data.len() as u64, fua, self.child.write(at, data, flags))
    }

    async fn read_vm_state(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.child.read_vm_state(at, buf).await
    }

    async fn write_vm_state(&self, at: u64, data: &[u8]) -> Result<()> {
        self.child.write_vm_state(at, data).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let fua = flags.contains(ZeroFlags::FUA);
        counted!(self, Operation::WriteZeroes, at, len, fua, self.child.write_zeroes(at, len, flags))
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        counted!(self, Operation::Discard, at, len, false, self.child.discard(at, len))
    }

    async fn flush(&self) -> Result<()> {
        counted!(self, Operation::Flush, 0, 0, false, self.child.flush())
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        counted!(self, Operation::BlockStatus, at, len, false, self.child.block_status(at, len))
    }

    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        let result = counted!(self, Operation::Resize, 0, 0, false, self.child.resize(size, preallocation));
        self.stats.set_size(self.child.info().size);
        result
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
        Some(Node::new(StatsNode { child, stats: Rc::clone(&self.stats), registered: self.registered.clone() }))
    }
}
