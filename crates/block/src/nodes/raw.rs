//! `raw`: the format that is none, over a whole device or a window of it.
//!
//! The disk begins at `offset` and has `size` bytes, or as many as there are. It never grows by writing: a disk that a
//! guest sees has a size. It follows [`resize`](BlockDevice::resize) unless its size was stated.

use std::rc::Rc;

use crate::device::{BlockDevice, Preallocation, WriteFlags, ZeroFlags, check_bounds};
use crate::graph::{Driver, DriverKind, OpenContext, OpenError, OptionError, Options};
use crate::node::{LocalBoxFuture, Node};
use crate::unflushed::Unflushed;
use crate::{BlockStatus, Breakpoints, Capabilities, DeviceInfo, Event, IoError, Result};

/// A window onto a device.
#[derive(Clone, Debug)]
pub struct Raw<D> {
    below: D,
    offset: u64,
    size: Option<u64>,
    unflushed: Rc<Unflushed>,
}

/// A window that does not fit the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RawError {
    /// It begins behind the end.
    #[error("raw: offset {offset:#x} lies past the end of the device below ({below:#x} bytes)")]
    OffsetPastEnd {
        /// Where the window begins.
        offset: u64,
        /// Size of the device.
        below: u64,
    },
    /// It ends behind the end.
    #[error("raw: offset {offset:#x} plus size {size:#x} reaches past the end of the device below ({below:#x} bytes)")]
    SizePastEnd {
        /// Where the window begins.
        offset: u64,
        /// Bytes in the window.
        size: u64,
        /// Size of the device.
        below: u64,
    },
    /// The device below can not be addressed at this offset.
    #[error("raw: {what} {value:#x} is not a multiple of {alignment}, the alignment of the device below")]
    Unaligned {
        /// `offset` or `size`.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What it should be a multiple of.
        alignment: u32,
    },
}

impl From<RawError> for OpenError {
    fn from(error: RawError) -> Self {
        Self::Image(error.to_string())
    }
}

impl<D: BlockDevice> Raw<D> {
    /// The whole device.
    pub fn new(below: D) -> Self {
        Self { below, offset: 0, size: None, unflushed: Rc::default() }
    }

    /// `size` bytes from `offset`; without a size, all that follow.
    ///
    /// # Errors
    /// If the window does not fit, or lies where the device can not be addressed.
    pub fn window(below: D, offset: u64, size: Option<u64>) -> Result<Self, RawError> {
        let info = below.info();
        if offset > info.size {
            return Err(RawError::OffsetPastEnd { offset, below: info.size });
        }
        if let Some(size) = size
            && check_bounds(offset, size, info.size).is_err()
        {
            return Err(RawError::SizePastEnd { offset, size, below: info.size });
        }
        let limits = info.limits;
        let alignment = limits.alignment.max(limits.zero_alignment).max(limits.discard_alignment);
        for (what, value) in [("offset", offset), ("size", size.unwrap_or(0))] {
            if value % u64::from(alignment.max(1)) != 0 {
                return Err(RawError::Unaligned { what, value, alignment });
            }
        }
        Ok(Self { below, offset, size, unflushed: Rc::default() })
    }

    fn size(&self) -> u64 {
        self.size.unwrap_or_else(|| self.below.info().size.saturating_sub(self.offset))
    }

    /// Offset below of `len` bytes from `at`. Inside the window the sum can not overflow: the window fits the device.
    fn translate(&self, at: u64, len: u64) -> Result<u64> {
        check_bounds(at, len, self.size())?;
        at.checked_add(self.offset).ok_or_else(|| IoError::past_end(at, len, self.size()))
    }

    async fn announce(&self, event: Event) {
        if self.below.listens(event) {
            self.below.event(event).await;
        }
    }

    fn rebase<T>(&self, below: u64, at: u64, done: Result<T>) -> Result<T> {
        done.map_err(|error| error.rebase(below, at))
    }
}

impl<D: BlockDevice> BlockDevice for Raw<D> {
    fn info(&self) -> DeviceInfo {
        let below = self.below.info();
        let mut hidden = Capabilities::GROWS;
        if self.size.is_some() {
            hidden |= Capabilities::RESIZE;
        }
        DeviceInfo {
            driver: "raw",
            size: self.size(),
            capabilities: below.capabilities.difference(hidden),
            cluster_size: 0,
            ..below
        }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let below = self.translate(at, buf.len() as u64)?;
        self.announce(Event::ReadAio).await;
        self.rebase(below, at, self.below.read(below, buf).await)
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        if self.below.listens(Event::ReadAio) {
            return false;
        }
        // No error is made here: that would allocate.
        let end = at.checked_add(buf.len() as u64);
        let below = at.checked_add(self.offset);
        end.is_some_and(|end| end <= self.size()) && below.is_some_and(|below| self.below.read_now(below, buf))
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let below = self.translate(at, data.len() as u64)?;
        self.announce(Event::WriteAio).await;
        let _change = self.unflushed.change();
        let done = self.below.write(below, data, flags).await;
        self.rebase(below, at, done)
    }

    // As in QEMU the VM state is that of the device below, whatever the window.
    async fn read_vm_state(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read_vm_state(at, buf).await
    }

    async fn write_vm_state(&self, at: u64, data: &[u8]) -> Result<()> {
        let _change = self.unflushed.change();
        self.below.write_vm_state(at, data).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let below = self.translate(at, len)?;
        let _change = self.unflushed.change();
        let done = self.below.write_zeroes(below, len, flags).await;
        self.rebase(below, at, done)
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let below = self.translate(at, len)?;
        let _change = self.unflushed.change();
        let done = self.below.discard(below, len).await;
        self.rebase(below, at, done)
    }

    async fn flush(&self) -> Result<()> {
        self.unflushed.flush(&self.below).await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        let below = self.translate(at, len)?;
        // The host offset is one in the file that stores the bytes: it already counts from that file's start.
        self.rebase(below, at, self.below.block_status(below, len).await)
    }

    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        if self.size.is_some() {
            return Err(IoError::unsupported().detail("Cannot resize fixed-size raw disks"));
        }
        let Some(size) = size.checked_add(self.offset) else {
            return Err(IoError::new(crate::Errno::FBIG));
        };
        let _change = self.unflushed.change();
        self.below.resize(size, preallocation).await
    }

    async fn drain(&self) -> Result<()> {
        self.below.drain().await
    }

    async fn close(&self) -> Result<()> {
        self.below.close().await
    }

    fn listens(&self, event: Event) -> bool {
        self.below.listens(event)
    }

    async fn event(&self, event: Event) {
        self.below.event(event).await;
    }

    fn breakpoints(&self) -> Option<Rc<dyn Breakpoints>> {
        self.below.breakpoints()
    }

    fn for_client(&self, client: &str) -> Option<Node> {
        let Self { below, offset, size, unflushed } = self;
        let (offset, size, unflushed) = (*offset, *size, Rc::clone(unflushed));
        below.for_client(client).map(|below| Node::new(Raw { below, offset, size, unflushed }))
    }
}

/// The driver `raw`.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawDriver;

impl Driver for RawDriver {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    fn open<'a>(
        &'a self,
        mut options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
        Box::pin(async move {
            let offset = options.take_size("offset")?.unwrap_or(0);
            let size = options.take_size("size")?;
            let child = options
                .take_child("file")
                .ok_or_else(|| OptionError::Missing { option: options.full_name("file"), driver: "raw".to_owned() })?;
            options.finish("raw")?;
            let below = context.open(child).await?;
            Ok(Node::new(Raw::window(below, offset, size)?))
        })
    }

    fn create<'a>(
        &'a self,
        filename: &'a str,
        size: Option<u64>,
        mut options: Options,
        _context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<String, OpenError>> {
        Box::pin(async move {
            let option_size = options.take_size("size")?;
            let nocow = options.take_bool("nocow")?;
            let modes = [
                ("off", ("off", Preallocation::Off)),
                ("falloc", ("falloc", Preallocation::Falloc)),
                ("full", ("full", Preallocation::Full)),
            ];
            let preallocation = options.take_choice("preallocation", &modes)?;
            options.finish("raw")?;
            let size = size
                .or(option_size)
                .ok_or_else(|| OpenError::Usage("Image creation needs a size parameter".to_owned()))?;
            if size > i64::MAX as u64 {
                return Err(OpenError::Usage(format!("an image of {size} bytes is too large for a file")));
            }
            let mode = preallocation.map_or(Preallocation::Off, |(_, mode)| mode);
            // Off the caller's thread: reserving or writing space takes as long as it takes.
            let name = filename.to_owned();
            blocking::unblock(move || super::file::create(&name, size, mode, nocow.unwrap_or(false))).await?;
            let mut description = format!("size={size}");
            if let Some(nocow) = nocow {
                description.push_str(if nocow { " nocow=on" } else { " nocow=off" });
            }
            if let Some((word, _)) = preallocation {
                description.push_str(" preallocation=");
                description.push_str(word);
            }
            Ok(description)
        })
    }
}
