//! The disk as a device.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use blkproof_block::device::check_bounds;
use blkproof_block::{
    BlockDevice, BlockStatus, ByteRange, Capabilities, DeviceInfo, IoError, Preallocation, Result, WriteFlags,
    ZeroFlags,
};

use super::SimDisk;
use super::io::{Answer, FaultDone, Io, IoInfo, IoKind, Stage};

/// A request as its caller sees it.
struct Request<'a> {
    disk: &'a SimDisk,
    stage: RequestStage,
}

enum RequestStage {
    /// Refused when it was sent.
    Refused(IoError),
    /// On its way.
    Slot(usize),
    /// Answered.
    Over,
}

#[allow(clippy::panic, reason = "a driver that polls a request again has a bug, which whoever runs it catches")]
impl Future for Request<'_> {
    type Output = Result<Answer>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match std::mem::replace(&mut self.stage, RequestStage::Over) {
            RequestStage::Refused(error) => Poll::Ready(Err(error)),
            RequestStage::Slot(slot) => {
                let mut state = self.disk.0.state.borrow_mut();
                match state.io_mut(slot) {
                    Some(io) if io.stage != Stage::Done => {
                        io.waker = Some(cx.waker().clone());
                        drop(state);
                        self.stage = RequestStage::Slot(slot);
                        Poll::Pending
                    }
                    _ => match state.remove(slot) {
                        Some(io) => Poll::Ready(io.result.map(|()| io.answer)),
                        None => Poll::Ready(Err(IoError::unsupported())),
                    },
                }
            }
            RequestStage::Over => panic!("a request to a disk was polled after it had completed"),
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        let RequestStage::Slot(slot) = self.stage else { return };
        if self.disk.0.state.borrow_mut().dropped(slot) {
            let gone = self.disk.what(slot);
            self.disk.0.board.retract(|what| *what == gone);
        }
    }
}

/// A request that is not sent yet.
struct Draft {
    kind: IoKind,
    range: ByteRange,
    fua: bool,
    unmap: bool,
    data: Option<Rc<[u8]>>,
}

impl Draft {
    fn new(kind: IoKind, range: ByteRange) -> Self {
        Self { kind, range, fua: false, unmap: false, data: None }
    }
}

impl SimDisk {
    /// Sends a request. Nothing of it happens before the first poll, as with any future.
    async fn send(&self, draft: Draft) -> Result<Answer> {
        self.check(&draft)?;
        self.submit(draft).await
    }

    fn check(&self, draft: &Draft) -> Result<()> {
        let state = self.0.state.borrow();
        if state.read_only && draft.kind.writes() {
            return Err(IoError::read_only());
        }
        match draft.kind {
            IoKind::Write | IoKind::Zeroes if state.grows => Ok(()),
            IoKind::Resize | IoKind::Flush | IoKind::Drain => Ok(()),
            _ => check_bounds(draft.range.start, draft.range.len(), state.content.size()),
        }
    }

    fn submit(&self, draft: Draft) -> Request<'_> {
        let key = self.0.board.next_io();
        let info = IoInfo { key, kind: draft.kind, range: draft.range, fua: draft.fua };
        let fault = self.0.adversary.borrow_mut().as_mut().and_then(|adversary| adversary(&info));
        if let Some(fault) = &fault
            && fault.immediate
            && fault.done == FaultDone::Nothing
        {
            self.0.board.note(key.number());
            return Request { disk: self, stage: RequestStage::Refused(fault.error.clone()) };
        }
        let io = Io {
            info,
            data: draft.data,
            unmap: draft.unmap,
            fault,
            stage: Stage::Sent,
            orphan: false,
            change: None,
            moment: None,
            answer: Answer::Nothing,
            result: Ok(()),
            waker: None,
        };
        let mut state = self.0.state.borrow_mut();
        let slot = state.insert(io);
        if state.instant {
            state.advance(slot);
            state.advance(slot);
        } else {
            drop(state);
            self.0.board.push(key.effect(), self.what(slot));
        }
        Request { disk: self, stage: RequestStage::Slot(slot) }
    }

    /// What a read brings that nobody can hold up: the same as by way of a request, without one. Whether it was done.
    fn read_instantly(&self, at: u64, buf: &mut [u8]) -> Result<bool> {
        if !self.0.state.borrow().instant || self.0.adversary.borrow().is_some() {
            return Ok(false);
        }
        let state = self.0.state.borrow();
        check_bounds(at, buf.len() as u64, state.content.size())?;
        // Requests keep their numbers.
        self.0.board.next_io();
        state.content.read(at, buf);
        Ok(true)
    }

    async fn change(&self, draft: Draft) -> Result<()> {
        if draft.range.is_empty() && draft.kind != IoKind::Resize {
            return Ok(());
        }
        self.send(draft).await.map(|_| ())
    }
}

impl BlockDevice for SimDisk {
    fn info(&self) -> DeviceInfo {
        let state = self.0.state.borrow();
        let mut capabilities = Capabilities::all().difference(Capabilities::ROTATIONAL | Capabilities::GROWS);
        capabilities.set(Capabilities::GROWS, state.grows);
        DeviceInfo { read_only: state.read_only, capabilities, ..DeviceInfo::new("simulated", state.content.size()) }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        if self.read_instantly(at, buf)? {
            return Ok(());
        }
        let answer = self.send(Draft::new(IoKind::Read, ByteRange::at(at, buf.len() as u64))).await?;
        if let Answer::Data(data) = answer {
            buf.copy_from_slice(&data);
        }
        Ok(())
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        let draft = Draft::new(IoKind::Write, ByteRange::at(at, data.len() as u64));
        self.change(Draft { fua: flags.contains(WriteFlags::FUA), data: Some(data.into()), ..draft }).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let draft = Draft::new(IoKind::Zeroes, ByteRange::at(at, len));
        let unmap = flags.contains(ZeroFlags::MAY_UNMAP);
        self.change(Draft { fua: flags.contains(ZeroFlags::FUA), unmap, ..draft }).await
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.change(Draft { unmap: true, ..Draft::new(IoKind::Discard, ByteRange::at(at, len)) }).await
    }

    async fn flush(&self) -> Result<()> {
        self.send(Draft::new(IoKind::Flush, ByteRange::default())).await.map(|_| ())
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        match self.send(Draft::new(IoKind::Status, ByteRange::at(at, len))).await? {
            Answer::Status(status) => Ok(status),
            Answer::Nothing | Answer::Data(_) => Ok(BlockStatus::data(len, Some(at))),
        }
    }

    async fn resize(&self, size: u64, _preallocation: Preallocation) -> Result<()> {
        self.change(Draft::new(IoKind::Resize, ByteRange { start: 0, end: size })).await
    }

    async fn drain(&self) -> Result<()> {
        self.send(Draft::new(IoKind::Drain, ByteRange::default())).await.map(|_| ())
    }
}
