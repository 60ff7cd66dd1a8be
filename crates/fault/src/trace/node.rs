//! The node: passes everything on, and lets the recorder know.

use std::rc::Rc;

use blkproof_block::{
    BlockDevice, BlockStatus, Breakpoints, DeviceInfo, Event, Node, Preallocation, Result, WriteFlags, ZeroFlags,
};

use super::format::TraceFlags;
use super::recorder::Trace;
use crate::lab::Registered;
use crate::request::Operation;

/// A device whose requests are written down.
#[derive(Clone, Debug)]
pub struct TraceNode<D> {
    child: D,
    trace: Rc<Trace>,
    client: Option<Rc<str>>,
    /// Keeps the name taken until the last client's node is gone.
    registered: Option<Rc<Registered>>,
}

impl<D: BlockDevice> TraceNode<D> {
    /// Writes to `trace` what `child` is asked.
    pub fn new(child: D, trace: Rc<Trace>) -> Self {
        trace.write_head();
        Self { child, trace, client: None, registered: None }
    }

    /// The same, known by name as long as it lives.
    #[must_use]
    pub fn registered(mut self, registered: Registered) -> Self {
        self.registered = Some(Rc::new(registered));
        self
    }

    /// The handle.
    pub fn trace(&self) -> &Rc<Trace> {
        &self.trace
    }

    fn begin(&self, operation: Operation, at: u64, len: u64, flags: TraceFlags) -> Option<super::recorder::Going<'_>> {
        self.trace.begin(self.client.as_deref(), operation, at, len, flags)
    }
}

/// Makes a request of which a line is written.
macro_rules! traced {
    ($going:expr, $request:expr) => {{
        let going = $going;
        let result = $request.await;
        if let Some(going) = going {
            going.end(&result);
        }
        result
    }};
}

impl<D: BlockDevice + Clone + 'static> BlockDevice for TraceNode<D> {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { driver: super::NAME, ..self.child.info() }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let going = self.begin(Operation::Read, at, buf.len() as u64, TraceFlags::empty());
        let result = self.child.read(at, buf).await;
        if let Some(going) = going {
            going.end_read(&result, buf);
        }
        result
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        let Some(going) = self.begin(Operation::Read, at, buf.len() as u64, TraceFlags::empty()) else {
            return self.child.read_now(at, buf);
        };
        let served = self.child.read_now(at, buf);
        match served {
            true => going.end_read(&Ok(()), buf),
            false => going.never_was(),
        }
        served
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        let mut how = TraceFlags::empty();
        how.set(TraceFlags::FUA, flags.contains(WriteFlags::FUA));
        how.set(TraceFlags::COMPRESSED, flags.contains(WriteFlags::COMPRESSED));
        let mut going = self.begin(Operation::Write, at, data.len() as u64, how);
        if let Some(going) = &mut going {
            going.writing(data);
        }
        traced!(going, self.child.write(at, data, flags))
    }

    async fn read_vm_state(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.child.read_vm_state(at, buf).await
    }

    async fn write_vm_state(&self, at: u64, data: &[u8]) -> Result<()> {
        self.child.write_vm_state(at, data).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let mut how = TraceFlags::empty();
        how.set(TraceFlags::FUA, flags.contains(ZeroFlags::FUA));
        how.set(TraceFlags::MAY_UNMAP, flags.contains(ZeroFlags::MAY_UNMAP));
        how.set(TraceFlags::NO_FALLBACK, flags.contains(ZeroFlags::NO_FALLBACK));
        traced!(self.begin(Operation::WriteZeroes, at, len, how), self.child.write_zeroes(at, len, flags))
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        traced!(self.begin(Operation::Discard, at, len, TraceFlags::empty()), self.child.discard(at, len))
    }

    async fn flush(&self) -> Result<()> {
        traced!(self.begin(Operation::Flush, 0, 0, TraceFlags::empty()), self.child.flush())
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        traced!(self.begin(Operation::BlockStatus, at, len, TraceFlags::empty()), self.child.block_status(at, len))
    }

    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        traced!(self.begin(Operation::Resize, 0, size, TraceFlags::empty()), self.child.resize(size, preallocation))
    }

    async fn drain(&self) -> Result<()> {
        self.child.drain().await
    }

    async fn close(&self) -> Result<()> {
        let result = self.child.close().await;
        self.trace.finish();
        result
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
        let child = self.child.for_client(client).unwrap_or_else(|| Node::new(self.child.clone()));
        let (trace, registered) = (Rc::clone(&self.trace), self.registered.clone());
        Some(Node::new(TraceNode { child, trace, client: Some(client.into()), registered }))
    }
}
