//! The boxed twin of [`BlockDevice`], for graphs that are built at run time.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use crate::device::{BlockDevice, Preallocation, WriteFlags, ZeroFlags};
use crate::{BlockStatus, Breakpoints, DeviceInfo, Event, Limits, Result};

/// A boxed future that stays on its thread.
pub type LocalBoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// A shared handle on any device.
///
/// Costs one allocation and one indirect call per request and layer, except for [`read_now`](BlockDevice::read_now)
/// and for events nobody listens to, which cost a call.
#[derive(Clone)]
pub struct Node(Rc<dyn DynBlockDevice>);

impl Node {
    /// Boxes `device`.
    pub fn new(device: impl BlockDevice + 'static) -> Self {
        Self(Rc::new(device))
    }

    /// Shares a device somebody else holds too, for example to look at its state later.
    pub fn from_rc<D: BlockDevice + 'static>(device: Rc<D>) -> Self {
        Self(device)
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let info = self.0.info();
        write!(f, "Node({}, {:#x} bytes)", info.driver, info.size)
    }
}

/// [`BlockDevice`] with boxed futures; implemented for every device, never by hand.
trait DynBlockDevice {
    fn info(&self) -> DeviceInfo;
    fn limits(&self) -> Limits;
    fn read<'a>(&'a self, at: u64, buf: &'a mut [u8]) -> LocalBoxFuture<'a, Result<()>>;
    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool;
    fn write<'a>(&'a self, at: u64, data: &'a [u8], flags: WriteFlags) -> LocalBoxFuture<'a, Result<()>>;
    fn read_vm_state<'a>(&'a self, at: u64, buf: &'a mut [u8]) -> LocalBoxFuture<'a, Result<()>>;
    fn write_vm_state<'a>(&'a self, at: u64, data: &'a [u8]) -> LocalBoxFuture<'a, Result<()>>;
    fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> LocalBoxFuture<'_, Result<()>>;
    fn discard(&self, at: u64, len: u64) -> LocalBoxFuture<'_, Result<()>>;
    fn flush(&self) -> LocalBoxFuture<'_, Result<()>>;
    fn block_status(&self, at: u64, len: u64) -> LocalBoxFuture<'_, Result<BlockStatus>>;
    fn resize(&self, size: u64, preallocation: Preallocation) -> LocalBoxFuture<'_, Result<()>>;
    fn drain(&self) -> LocalBoxFuture<'_, Result<()>>;
    fn close(&self) -> LocalBoxFuture<'_, Result<()>>;
    fn listens(&self, event: Event) -> bool;
    fn event(&self, event: Event) -> LocalBoxFuture<'_, ()>;
    fn breakpoints(&self) -> Option<Rc<dyn Breakpoints>>;
    fn format_details(&self) -> Vec<(&'static str, String)>;
    fn for_client(&self, client: &str) -> Option<Node>;
}

impl<D: BlockDevice> DynBlockDevice for D {
    fn info(&self) -> DeviceInfo {
        BlockDevice::info(self)
    }

    fn limits(&self) -> Limits {
        BlockDevice::limits(self)
    }

    fn read<'a>(&'a self, at: u64, buf: &'a mut [u8]) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(BlockDevice::read(self, at, buf))
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        BlockDevice::read_now(self, at, buf)
    }

    fn write<'a>(&'a self, at: u64, data: &'a [u8], flags: WriteFlags) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(BlockDevice::write(self, at, data, flags))
    }

    fn read_vm_state<'a>(&'a self, at: u64, buf: &'a mut [u8]) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(BlockDevice::read_vm_state(self, at, buf))
    }

    fn write_vm_state<'a>(&'a self, at: u64, data: &'a [u8]) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(BlockDevice::write_vm_state(self, at, data))
    }

    fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(BlockDevice::write_zeroes(self, at, len, flags))
    }

    fn discard(&self, at: u64, len: u64) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(BlockDevice::discard(self, at, len))
    }

    fn flush(&self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(BlockDevice::flush(self))
    }

    fn block_status(&self, at: u64, len: u64) -> LocalBoxFuture<'_, Result<BlockStatus>> {
        Box::pin(BlockDevice::block_status(self, at, len))
    }

    fn resize(&self, size: u64, preallocation: Preallocation) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(BlockDevice::resize(self, size, preallocation))
    }

    fn drain(&self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(BlockDevice::drain(self))
    }

    fn close(&self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(BlockDevice::close(self))
    }

    fn listens(&self, event: Event) -> bool {
        BlockDevice::listens(self, event)
    }

    fn event(&self, event: Event) -> LocalBoxFuture<'_, ()> {
        Box::pin(BlockDevice::event(self, event))
    }

    fn breakpoints(&self) -> Option<Rc<dyn Breakpoints>> {
        BlockDevice::breakpoints(self)
    }

    fn format_details(&self) -> Vec<(&'static str, String)> {
        BlockDevice::format_details(self)
    }

    fn for_client(&self, client: &str) -> Option<Node> {
        BlockDevice::for_client(self, client)
    }
}

impl BlockDevice for Node {
    fn info(&self) -> DeviceInfo {
        self.0.info()
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read(at, buf).await
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        self.0.read_now(at, buf)
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        self.0.write(at, data, flags).await
    }

    async fn read_vm_state(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_vm_state(at, buf).await
    }

    async fn write_vm_state(&self, at: u64, data: &[u8]) -> Result<()> {
        self.0.write_vm_state(at, data).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.0.write_zeroes(at, len, flags).await
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.0.discard(at, len).await
    }

    async fn flush(&self) -> Result<()> {
        self.0.flush().await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        self.0.block_status(at, len).await
    }

    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.0.resize(size, preallocation).await
    }

    async fn drain(&self) -> Result<()> {
        self.0.drain().await
    }

    async fn close(&self) -> Result<()> {
        self.0.close().await
    }

    fn listens(&self, event: Event) -> bool {
        self.0.listens(event)
    }

    async fn event(&self, event: Event) {
        if self.0.listens(event) {
            self.0.event(event).await;
        }
    }

    fn breakpoints(&self) -> Option<Rc<dyn Breakpoints>> {
        self.0.breakpoints()
    }

    fn format_details(&self) -> Vec<(&'static str, String)> {
        self.0.format_details()
    }

    fn for_client(&self, client: &str) -> Option<Node> {
        self.0.for_client(client)
    }
}

/// Shared ownership of a device is a device.
impl<D: BlockDevice> BlockDevice for Rc<D> {
    fn info(&self) -> DeviceInfo {
        D::info(self)
    }

    fn limits(&self) -> Limits {
        D::limits(self)
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        D::read(self, at, buf).await
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        D::read_now(self, at, buf)
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        D::write(self, at, data, flags).await
    }

    async fn read_vm_state(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        D::read_vm_state(self, at, buf).await
    }

    async fn write_vm_state(&self, at: u64, data: &[u8]) -> Result<()> {
        D::write_vm_state(self, at, data).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        D::write_zeroes(self, at, len, flags).await
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        D::discard(self, at, len).await
    }

    async fn flush(&self) -> Result<()> {
        D::flush(self).await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        D::block_status(self, at, len).await
    }

    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        D::resize(self, size, preallocation).await
    }

    async fn drain(&self) -> Result<()> {
        D::drain(self).await
    }

    async fn close(&self) -> Result<()> {
        D::close(self).await
    }

    fn listens(&self, event: Event) -> bool {
        D::listens(self, event)
    }

    async fn event(&self, event: Event) {
        D::event(self, event).await;
    }

    fn breakpoints(&self) -> Option<Rc<dyn Breakpoints>> {
        D::breakpoints(self)
    }

    fn format_details(&self) -> Vec<(&'static str, String)> {
        D::format_details(self)
    }

    fn for_client(&self, client: &str) -> Option<Node> {
        D::for_client(self, client)
    }
}
