//! The half of the client that moves bytes.
#![deny(clippy::indexing_slicing)]

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::state::Shared;
use crate::handshake::Mode;
use crate::transmission::reply::ReplyDecoder;
use crate::transmission::request::Request;
use crate::wire::{CommandFlags, command};

const INPUT: usize = 256 << 10;
/// Rounds of one poll before others get their turn.
const ROUNDS: u32 = 8;
/// Why the connection ends after the server has answered `NBD_ESHUTDOWN`.
const DISMISSED: &str = "the server is shutting down";

/// Sends requests and receives replies until the [`Client`](super::Client) is dropped or closed, or the connection is
/// lost.
///
/// Dropping it loses the connection.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    shared: Rc<Shared>,
    mode: Mode,
    decoder: ReplyDecoder,
    input: Vec<u8>,
    filled: usize,
    out: Vec<u8>,
    sent: usize,
    /// `NBD_CMD_DISC` is on its way.
    leaving: bool,
    unflushed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn new(stream: S, early: &[u8], mode: Mode, shared: Rc<Shared>) -> Self {
        let mut input = early.to_vec();
        input.resize(INPUT.max(early.len()), 0);
        Self {
            stream,
            shared,
            mode,
            decoder: ReplyDecoder::new(mode),
            input,
            filled: early.len(),
            out: Vec::new(),
            sent: 0,
            leaving: false,
            unflushed: false,
        }
    }

    /// Waits until the server wants us to leave.
    pub(crate) fn dismissal(&self) -> Dismissal {
        Dismissal(Rc::clone(&self.shared))
    }

    /// `Ok(true)` if bytes went, an error once the connection is of no use.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<bool, String> {
        let mut progress = false;
        loop {
            if self.sent == self.out.len() {
                self.sent = 0;
                match self.shared.take_out() {
                    Some(out) => self.out = out,
                    None if !self.leaving && self.shared.may_leave() => {
                        self.leaving = true;
                        self.out.clear();
                        let goodbye = Request {
                            kind: command::DISC,
                            flags: CommandFlags::empty(),
                            cookie: 0,
                            offset: 0,
                            length: 0,
                            payload: 0,
                        };
                        goodbye.encode(self.mode, &mut self.out);
                    }
                    None => {
                        self.out.clear();
                        break;
                    }
                }
            }
            match Pin::new(&mut self.stream).poll_write(cx, self.out.get(self.sent..).unwrap_or_default()) {
                Poll::Ready(Ok(0)) => return Err("nothing can be sent".to_owned()),
                Poll::Ready(Ok(sent)) => {
                    self.note_sent(sent);
                    self.sent += sent;
                    self.unflushed = true;
                    progress = true;
                }
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => {
                    // A stream that encrypts may have sent a part of what it failed with.
                    self.note_sent(self.out.len() - self.sent);
                    return Err(error.to_string());
                }
                Poll::Pending => return Ok(progress),
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Err(error.to_string()),
                Poll::Pending => {}
            }
        }
        Ok(progress)
    }

    /// The goodbye is none of the bytes that were queued.
    fn note_sent(&self, bytes: usize) {
        if !self.leaving {
            self.shared.sent(bytes);
        }
    }

    fn receive(&mut self, cx: &mut Context<'_>) -> Result<bool, String> {
        let mut buf = ReadBuf::new(self.input.get_mut(self.filled..).unwrap_or_default());
        match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Poll::Ready(Err(error)) => return Err(error.to_string()),
            Poll::Ready(Ok(())) if buf.filled().is_empty() => return Err("the server closed it".to_owned()),
            Poll::Ready(Ok(())) => self.filled += buf.filled().len(),
        }
        self.decode()?;
        Ok(true)
    }

    fn decode(&mut self) -> Result<(), String> {
        let mut consumed = 0;
        loop {
            let input = self.input.get(consumed..self.filled).unwrap_or_default();
            let fed = self.decoder.feed(input, |cookie| self.shared.expect(cookie));
            let (here, event) = fed.map_err(|error| error.to_string())?;
            consumed += here;
            let idle = here == 0 && event.is_none();
            if let Some(event) = event {
                self.shared.apply(&event).map_err(|error| error.to_string())?;
            }
            if idle {
                break;
            }
        }
        // Less than one head is left over.
        self.input.copy_within(consumed..self.filled, 0);
        self.filled -= consumed;
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Connection<S> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.shared.register(cx.waker());
        for _ in 0..ROUNDS {
            let step = (|| {
                let sent = this.send(cx)?;
                if this.leaving && this.out.is_empty() && !this.unflushed {
                    return Ok(None);
                }
                let received = if this.leaving { false } else { this.receive(cx)? };
                Ok(Some(sent || received))
            })();
            match step {
                Ok(Some(true)) => {}
                Ok(Some(false)) => return Poll::Pending,
                Ok(None) => {
                    let _ = Pin::new(&mut this.stream).poll_shutdown(cx);
                    this.shared.die(if this.shared.is_dismissed() { DISMISSED } else { "it was closed" });
                    return Poll::Ready(());
                }
                Err::<_, String>(words) => {
                    this.shared.die(&words);
                    return Poll::Ready(());
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.shared.die("its task was dropped");
    }
}

/// The server's wish that we leave, which it utters by answering `NBD_ESHUTDOWN`.
#[derive(Debug)]
pub(crate) struct Dismissal(Rc<Shared>);

impl Dismissal {
    /// Waits for it.
    pub(crate) async fn wait(&self) {
        self.0.dismissed.notified().await;
    }

    /// Leaves although not everything is answered.
    pub(crate) fn leave(&self) {
        self.0.die(DISMISSED);
    }
}
