//! The client: an export of some server as a block device.
//!
//! [`Client::connect`] negotiates and returns two halves: the device, and a [`Connection`] that moves bytes and has to
//! be polled beside it (spawned on the same thread). Requests are pipelined; replies come in any order.
//!
//! # Cancelling
//! A request belongs to the connection once it is sent: dropping its future only gives up the answer. Its cookie stays
//! taken until the server has answered, and [`drain`](BlockDevice::drain) waits for exactly that.
//!
//! # Losing the connection
//! Everything in flight fails with `ESHUTDOWN`, and so does every later request, `drain` included: what the server still
//! does with requests it has received can not be known. A client does not connect again; the node that does,
//! [`Reconnecting`](crate::reconnect::Reconnecting), is made of one client after another.

mod connection;
mod state;

use std::cell::Cell;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;

use blkproof_block::device::check_bounds;
use blkproof_block::{
    BlockDevice, BlockStatus, Capabilities, DeviceInfo, Errno, IoError, Limits, Preallocation, Result, WriteFlags,
    ZeroFlags,
};
use tokio::io::{AsyncRead, AsyncWrite};

pub use self::connection::Connection;
pub(crate) use self::state::{Failure, Fate};
use self::state::{Reply, Shared};
use crate::handshake::client::{Handshake, NegotiationError, Progress, Wanted};
use crate::handshake::{Agreed, BlockSize, Mode};
use crate::transmission::request::Request;
use crate::wire::{CommandFlags, TransmissionFlags, allocation, command};

/// Zeroes are written in pieces of this size where the server has no command for them.
const ZERO_STEP: usize = 1 << 20;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The stream failed.
    #[error("connection lost during negotiation: {0}")]
    Io(#[source] io::Error),
    /// The server does not want to, or is no server.
    #[error(transparent)]
    Negotiation(#[from] NegotiationError),
}

/// One export of a server.
#[derive(Debug)]
pub struct Client {
    shared: Rc<Shared>,
    agreed: Agreed,
    read_only: bool,
}

impl Client {
    /// Negotiates with the server at the other end of `stream`.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        mut stream: S,
        wanted: Wanted,
    ) -> Result<(Self, Connection<S>), ConnectError> {
        let mut handshake = Handshake::new(wanted);
        let mut input = Vec::new();
        let mut out = Vec::new();
        let mut chunk = vec![0; 4096];
        loop {
            let (consumed, progress) = handshake.feed(&input, &mut out)?;
            input.drain(..consumed);
            if !out.is_empty() {
                send_all(&mut stream, &out).await.map_err(ConnectError::Io)?;
                out.clear();
            }
            match progress {
                Progress::Done(agreed) => {
                    let read_only = agreed.flags.contains(TransmissionFlags::READ_ONLY);
                    let shared = Rc::new(Shared::default());
                    let connection = Connection::new(stream, &input, agreed.mode, Rc::clone(&shared));
                    return Ok((Self { shared, agreed, read_only }, connection));
                }
                Progress::Continue if consumed > 0 => {}
                Progress::Continue => {
                    let mut buf = tokio::io::ReadBuf::new(&mut chunk);
                    let read = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_read(cx, &mut buf));
                    read.await.map_err(ConnectError::Io)?;
                    if buf.filled().is_empty() {
                        return Err(ConnectError::Io(io::ErrorKind::UnexpectedEof.into()));
                    }
                    input.extend_from_slice(buf.filled());
                }
            }
        }
    }

    /// Refuses writes from now on.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// What was negotiated.
    pub fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// Whether the server offers all of `flag`.
    pub(crate) fn offers(&self, flag: TransmissionFlags) -> bool {
        self.agreed.flags.contains(flag)
    }

    fn block_size(&self) -> BlockSize {
        self.agreed.block_size.unwrap_or_default()
    }

    /// Sends one request and waits for its success.
    async fn ask(&self, kind: u16, flags: CommandFlags, at: u64, len: u64, data: &[u8]) -> Result<Reply, Failure> {
        let reply = self.send(kind, flags, at, len, data).await?;
        match reply.error {
            Some(error) => Err(error.into()),
            None => Ok(reply),
        }
    }

    /// Sends one request and waits for its answer.
    async fn send(&self, kind: u16, flags: CommandFlags, at: u64, len: u64, data: &[u8]) -> Result<Reply, Failure> {
        if self.agreed.mode != Mode::Extended && len > u64::from(u32::MAX) {
            let words = format!("{len} bytes are more than one request can name");
            return Err(IoError::new(Errno::INVAL).detail(words).into());
        }
        let payload = data.len() as u64;
        let request = Request { kind, flags, cookie: 0, offset: at, length: len, payload };
        let cookie = self.shared.send(self.agreed.mode, request, data)?;
        self.shared.answer(cookie).await
    }

    /// Reads, and says how many bytes are valid if that failed.
    async fn read_once(&self, at: u64, buf: &mut [u8]) -> Result<Option<(u64, IoError)>, Failure> {
        let reply = self.send(command::READ, CommandFlags::empty(), at, buf.len() as u64, &[]).await?;
        if reply.data.len() == buf.len() {
            buf.copy_from_slice(&reply.data);
        }
        Ok(reply.error.map(|error| (reply.valid, error)))
    }

    fn check_write(&self, at: u64, len: u64) -> Result<()> {
        if self.read_only {
            return Err(IoError::read_only());
        }
        check_bounds(at, len, self.agreed.size)
    }

    fn check_payload(&self, len: usize) -> Result<()> {
        let maximum = self.block_size().maximum;
        if len > maximum as usize {
            let words = format!("{len} bytes are more than the server takes at once ({maximum})");
            return Err(IoError::new(Errno::INVAL).detail(words));
        }
        Ok(())
    }

    /// The flag for a durable request, and whether a flush has to follow because the server has none.
    fn durable(&self, wanted: bool) -> (CommandFlags, bool) {
        match (wanted, self.offers(TransmissionFlags::FUA)) {
            (false, _) => (CommandFlags::empty(), false),
            (true, true) => (CommandFlags::FUA, false),
            (true, false) => (CommandFlags::empty(), true),
        }
    }

    /// Whether no request is taken any more: the connection is lost, or about to be closed.
    pub(crate) fn is_over(&self) -> bool {
        self.shared.is_over()
    }

    /// Why the connection is lost, if it is.
    pub(crate) fn loss(&self) -> Option<IoError> {
        self.shared.loss()
    }

    /// Whether the server has answered any request of the transmission phase, by more than `NBD_ESHUTDOWN`.
    pub(crate) fn has_answered(&self) -> bool {
        self.shared.has_answered()
    }

    /// Counts in `open` every request that changes the disk, whose future was dropped, and that was unanswered when the
    /// connection was lost.
    pub(crate) fn share_open(&self, open: &Rc<Cell<u64>>) {
        self.shared.share_open(open);
    }

    /// Closes the connection once everything is answered.
    pub(crate) fn hang_up(&self) {
        self.shared.hang_up();
    }
}

/// The requests, with the fate of those that fail.
impl Client {
    pub(crate) async fn try_read(&self, at: u64, buf: &mut [u8]) -> Result<(), Failure> {
        check_bounds(at, buf.len() as u64, self.agreed.size)?;
        self.check_payload(buf.len())?;
        if buf.is_empty() {
            return Ok(());
        }
        let Some((valid, error)) = self.read_once(at, buf).await? else { return Ok(()) };
        let Some(wanted) = error.first_bad.and_then(|bad| bad.0.checked_sub(at)).filter(|&wanted| wanted > valid)
        else {
            return Err(error.into());
        };
        // The server told where the failure is, but did not send what comes before it: that has to be asked for.
        let prefix = usize::try_from(wanted).ok().and_then(|wanted| buf.get_mut(..wanted)).unwrap_or_default();
        match self.read_once(at, prefix).await? {
            None => Err(error.into()),
            Some((_, error)) => Err(IoError { first_bad: None, transferred: 0, ..error }.into()),
        }
    }

    pub(crate) async fn try_write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<(), Failure> {
        self.check_write(at, data.len() as u64)?;
        self.check_payload(data.len())?;
        if data.is_empty() {
            return Ok(());
        }
        let (fua, flush) = self.durable(flags.contains(WriteFlags::FUA));
        self.ask(command::WRITE, fua, at, data.len() as u64, data).await?;
        if flush { self.try_flush().await } else { Ok(()) }
    }

    pub(crate) async fn try_write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<(), Failure> {
        self.check_write(at, len)?;
        if len == 0 {
            return Ok(());
        }
        let quick = flags.contains(ZeroFlags::NO_FALLBACK);
        if quick && !self.offers(TransmissionFlags::FAST_ZERO) {
            return Err(IoError::unsupported().into());
        }
        let (mut how, flush) = self.durable(flags.contains(ZeroFlags::FUA));
        if self.offers(TransmissionFlags::WRITE_ZEROES) {
            how.set(CommandFlags::NO_HOLE, !flags.contains(ZeroFlags::MAY_UNMAP));
            how.set(CommandFlags::FAST_ZERO, quick);
            self.ask(command::WRITE_ZEROES, how, at, len, &[]).await?;
        } else {
            let BlockSize { minimum, maximum, .. } = self.block_size();
            let zeroes = vec![0; ZERO_STEP.min((maximum & !(minimum - 1)) as usize)];
            let mut done = 0;
            while done < len {
                let step = (len - done).min(zeroes.len() as u64);
                let part = zeroes.get(..usize::try_from(step).unwrap_or(0)).unwrap_or_default();
                self.ask(command::WRITE, how, at + done, step, part).await?;
                done += step;
            }
        }
        if flush { self.try_flush().await } else { Ok(()) }
    }

    pub(crate) async fn try_discard(&self, at: u64, len: u64) -> Result<(), Failure> {
        self.check_write(at, len)?;
        if len > 0 && self.offers(TransmissionFlags::TRIM) {
            self.ask(command::TRIM, CommandFlags::empty(), at, len, &[]).await?;
        }
        Ok(())
    }

    pub(crate) async fn try_flush(&self) -> Result<(), Failure> {
        // A server without flush says that there is nothing to flush.
        if self.offers(TransmissionFlags::FLUSH) {
            self.ask(command::FLUSH, CommandFlags::empty(), 0, 0, &[]).await?;
        }
        Ok(())
    }

    pub(crate) async fn try_block_status(&self, at: u64, len: u64) -> Result<BlockStatus, Failure> {
        check_bounds(at, len, self.agreed.size)?;
        let Some(context) = self.agreed.allocation else { return Ok(BlockStatus::data(len, Some(at))) };
        // The question has to keep to the server's blocks, ours need not.
        let mask = u64::from(self.block_size().minimum) - 1;
        let start = at & !mask;
        let end = at.saturating_add(len).saturating_add(mask) & !mask;
        let asked = end.min(self.agreed.size) - start;
        let asked = if self.agreed.mode == Mode::Extended { asked } else { asked.min(u64::from(u32::MAX) & !0xffff) };
        let reply = self.ask(command::BLOCK_STATUS, CommandFlags::REQ_ONE, start, asked, &[]).await?;
        let broken = || IoError::new(Errno::IO).detail("the server answered a block status without an extent");
        let (_, (extent, flags)) = reply.extents.iter().find(|&&(id, _)| id == context).ok_or_else(broken)?;
        let extent = extent.checked_sub(at - start).filter(|&extent| extent > 0).ok_or_else(broken)?;
        let is = |flag: u32| flags & u64::from(flag) != 0;
        Ok(BlockStatus {
            data: !is(allocation::HOLE),
            zero: is(allocation::ZERO),
            ..BlockStatus::data(extent.min(len), Some(at))
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.hang_up();
    }
}

impl BlockDevice for Client {
    fn info(&self) -> DeviceInfo {
        let BlockSize { minimum, preferred, maximum } = self.block_size();
        let wide = self.agreed.mode == Mode::Extended;
        // The longest effect a 32-bit request can name, a multiple of every allowed block size.
        let effect = if wide { 0 } else { u64::from(u32::MAX) & !0xffff };
        let mut capabilities = Capabilities::MULTI_CONN;
        for (flag, capability) in [
            (TransmissionFlags::WRITE_ZEROES, Capabilities::ZEROES),
            (TransmissionFlags::FAST_ZERO, Capabilities::FAST_ZERO),
            (TransmissionFlags::TRIM, Capabilities::DISCARD),
            (TransmissionFlags::FUA, Capabilities::FUA),
            (TransmissionFlags::ROTATIONAL, Capabilities::ROTATIONAL),
        ] {
            capabilities.set(capability, self.offers(flag));
        }
        DeviceInfo {
            read_only: self.read_only,
            // Everybody who holds this node shares its one connection, so a flush covers them all.
            capabilities,
            limits: Limits {
                alignment: minimum,
                max_transfer: maximum & !(minimum - 1),
                preferred_transfer: preferred,
                zero_alignment: minimum,
                max_zero: effect,
                discard_alignment: minimum,
                max_discard: effect,
                ..Limits::NONE
            },
            ..DeviceInfo::new("nbd", self.agreed.size)
        }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        Ok(self.try_read(at, buf).await?)
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        Ok(self.try_write(at, data, flags).await?)
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        Ok(self.try_write_zeroes(at, len, flags).await?)
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        Ok(self.try_discard(at, len).await?)
    }

    async fn flush(&self) -> Result<()> {
        Ok(self.try_flush().await?)
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        Ok(self.try_block_status(at, len).await?)
    }

    async fn resize(&self, _size: u64, _preallocation: Preallocation) -> Result<()> {
        Err(IoError::unsupported())
    }

    async fn drain(&self) -> Result<()> {
        loop {
            let mut answered = pin!(self.shared.answered.notified());
            answered.as_mut().enable();
            if self.shared.is_drained()? {
                return Ok(());
            }
            answered.await;
        }
    }

    async fn close(&self) -> Result<()> {
        let flushed = self.flush().await;
        self.shared.hang_up();
        flushed
    }
}

async fn send_all<S: AsyncWrite + Unpin>(stream: &mut S, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_write(cx, bytes)).await?;
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = bytes.get(sent..).unwrap_or_default();
    }
    std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_flush(cx)).await
}
