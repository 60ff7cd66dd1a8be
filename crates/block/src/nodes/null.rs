//! `null-co`: swallows what is written; QEMU's measure of everything above the end of a graph.

use crate::device::{BlockDevice, Preallocation, WriteFlags, ZeroFlags, check_bounds};
use crate::graph::{Driver, DriverKind, OpenContext, OpenError, Options};
use crate::node::{LocalBoxFuture, Node};
use crate::{BlockStatus, Capabilities, DeviceInfo, IoError, Result};

/// Size where none is given, as in QEMU.
const DEFAULT_SIZE: u64 = 1 << 30;

/// A disk that forgets.
#[derive(Clone, Copy, Debug)]
pub struct Null {
    size: u64,
    read_zeroes: bool,
    read_only: bool,
}

impl Null {
    /// A disk of `size` bytes. Reads leave the buffer as it was unless `read_zeroes`.
    pub const fn new(size: u64, read_zeroes: bool) -> Self {
        Self { size, read_zeroes, read_only: false }
    }

    fn check_change(&self, at: u64, len: u64) -> Result<()> {
        if self.read_only {
            return Err(IoError::read_only());
        }
        if len == 0 { Ok(()) } else { check_bounds(at, len, self.size) }
    }
}

impl BlockDevice for Null {
    fn info(&self) -> DeviceInfo {
        let capabilities = Capabilities::ZEROES
            | Capabilities::FAST_ZERO
            | Capabilities::DISCARD
            | Capabilities::FUA
            | Capabilities::MULTI_CONN;
        DeviceInfo { read_only: self.read_only, capabilities, ..DeviceInfo::new("null-co", self.size) }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        if !buf.is_empty() {
            check_bounds(at, buf.len() as u64, self.size)?;
        }
        if self.read_zeroes {
            buf.fill(0);
        }
        Ok(())
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        let inside = buf.is_empty() || check_bounds(at, buf.len() as u64, self.size).is_ok();
        if inside && self.read_zeroes {
            buf.fill(0);
        }
        inside
    }

    async fn write(&self, at: u64, data: &[u8], _flags: WriteFlags) -> Result<()> {
        self.check_change(at, data.len() as u64)
    }

    async fn write_zeroes(&self, at: u64, len: u64, _flags: ZeroFlags) -> Result<()> {
        self.check_change(at, len)
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.check_change(at, len)
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        check_bounds(at, len, self.size)?;
        // Zero only where that is what a read says; otherwise the content is whatever it was.
        let data = BlockStatus::data(len, Some(at));
        Ok(BlockStatus { zero: self.read_zeroes, ..data })
    }

    async fn resize(&self, _size: u64, _preallocation: Preallocation) -> Result<()> {
        Err(IoError::unsupported())
    }

    async fn drain(&self) -> Result<()> {
        Ok(())
    }
}

/// The driver `null-co`.
#[derive(Clone, Copy, Debug, Default)]
pub struct NullDriver;

impl Driver for NullDriver {
    fn name(&self) -> &'static str {
        "null-co"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    fn parse_filename(&self, filename: &str) -> Option<Result<Options, crate::graph::OptionError>> {
        (filename == "null-co://").then(|| Ok(Options::new()))
    }

    fn open<'a>(
        &'a self,
        mut options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
        Box::pin(async move {
            let size = options.take_size("size")?.unwrap_or(DEFAULT_SIZE);
            let read_zeroes = options.take_bool("read-zeroes")?.unwrap_or(false);
            let latency = options.take_u64("latency-ns")?.unwrap_or(0);
            options.finish("null-co")?;
            if latency != 0 {
                return Err(OpenError::Usage(format!(
                    "null-co can not wait: latency-ns={latency} was given, and nodes have no clock"
                )));
            }
            Ok(Node::new(Null { size, read_zeroes, read_only: context.flags.read_only }))
        })
    }
}
