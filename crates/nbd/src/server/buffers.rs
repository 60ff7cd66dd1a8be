//! The bytes of a connection on their way in and out.
//!
//! All memory here stays initialised and is used again, so that the fast path neither allocates nor clears.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::budget::Charge;

/// Bytes received ahead of being looked at.
const INPUT: usize = 256 << 10;
/// Size of the buffers replies are composed in: a fast read of [`FAST_READ`] bytes and its head just fit.
const PIECE: usize = FAST_READ + 64;
/// Largest read that is answered inside a shared buffer.
pub(super) const FAST_READ: usize = 256 << 10;
/// Size of a buffer begun behind a reply that brought its own: what follows is most often small, and with a whole
/// [`PIECE`] for each such pair, replies that nobody takes would hold far more memory than bytes.
const SMALL_PIECE: usize = 4 << 10;
/// Replies up to this size are copied into shared buffers, not sent from their own: it bounds how many pieces there
/// are.
pub(super) const COPY_MAX: usize = SMALL_PIECE;
/// Replies are not composed any more once this many bytes wait for the peer.
const HIGH_WATER: usize = 1 << 20;
/// Buffers kept for later.
const KEPT: usize = 5;

/// What was received and not yet consumed.
#[derive(Debug)]
pub(super) struct Input {
    buf: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    /// Goes on with bytes that were received before.
    pub(super) fn new(early: &[u8]) -> Self {
        let mut buf = early.to_vec();
        buf.resize(INPUT.max(early.len()), 0);
        Self { buf, start: 0, end: early.len() }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.buf.get(self.start..self.end).unwrap_or_default()
    }

    pub(super) fn consume(&mut self, len: usize) {
        self.start += len;
        assert!(self.start <= self.end, "nobody consumes what was not received");
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Receives once; 0 bytes mean that the peer has ended its side.
    pub(super) fn poll_receive<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.end == self.buf.len() {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let received = poll_read_into(stream, self.buf.get_mut(self.end..).unwrap_or_default(), cx);
        if let Poll::Ready(Ok(received)) = received {
            self.end += received;
        }
        received
    }

    /// Whether there is room to receive into.
    pub(super) fn has_room(&self) -> bool {
        self.end - self.start < self.buf.len()
    }
}

/// Receives straight into `buf`.
pub(super) fn poll_read_into<S: AsyncRead + Unpin>(
    stream: &mut S,
    buf: &mut [u8],
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let mut buf = ReadBuf::new(buf);
    match Pin::new(stream).poll_read(cx, &mut buf) {
        Poll::Ready(Ok(())) => Poll::Ready(Ok(buf.filled().len())),
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Pending => Poll::Pending,
    }
}

#[derive(Debug)]
struct Piece {
    buf: Vec<u8>,
    start: usize,
    end: usize,
    /// Held until the bytes are sent.
    charge: Charge,
}

/// What waits to be sent.
#[derive(Debug, Default)]
pub(super) struct Output {
    queue: VecDeque<Piece>,
    kept: Vec<Vec<u8>>,
    queued: usize,
}

impl Output {
    pub(super) fn is_empty(&self) -> bool {
        self.queued == 0
    }

    /// Bytes that wait to be sent.
    pub(super) fn len(&self) -> usize {
        self.queued
    }

    /// Whether the peer is so far behind that nothing more should be composed for it.
    pub(super) fn is_full(&self) -> bool {
        self.queued >= HIGH_WATER
    }

    /// Room for `len` bytes, at most [`PIECE`]. They count only once [`commit`](Self::commit) says so.
    pub(super) fn reserve(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= PIECE, "larger answers bring their own buffer");
        if self.queue.back().is_none_or(|piece| piece.buf.len() - piece.end < len) {
            let behind_own = self.queue.back().is_some_and(|piece| piece.buf.len() != PIECE);
            let buf = match behind_own && len <= SMALL_PIECE {
                true => vec![0; SMALL_PIECE],
                false => self.kept.pop().unwrap_or_else(|| vec![0; PIECE]),
            };
            self.queue.push_back(Piece { buf, start: 0, end: 0, charge: Charge::Free });
        }
        let piece = self.queue.back_mut().expect("one was just pushed if there was none");
        let free = piece.buf.get_mut(piece.end..).and_then(|free| free.get_mut(..len));
        free.expect("the piece had room or was begun for this")
    }

    /// Sends the first `len` bytes of what was reserved last.
    pub(super) fn commit(&mut self, len: usize) {
        if let Some(piece) = self.queue.back_mut() {
            piece.end += len;
            assert!(piece.end <= piece.buf.len(), "no more is committed than was reserved");
            self.queued += len;
        }
    }

    /// What was reserved last is not used: a piece begun for it would wait among others for nothing.
    pub(super) fn give_back(&mut self) {
        if self.queue.back().is_none_or(|piece| piece.start < piece.end) {
            return;
        }
        if let Some(Piece { buf, .. }) = self.queue.pop_back() {
            self.keep(buf);
        }
    }

    fn keep(&mut self, buf: Vec<u8>) {
        if buf.len() == PIECE && self.kept.len() < KEPT {
            self.kept.push(buf);
        }
    }

    /// Sends a copy of `bytes`.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(FAST_READ));
            self.reserve(now.len()).copy_from_slice(now);
            self.commit(now.len());
            bytes = later;
        }
    }

    /// Sends `buf` from `start`, without copying it.
    pub(super) fn push_owned(&mut self, buf: Vec<u8>, start: usize, charge: Charge) {
        let end = buf.len();
        self.queued += end - start;
        self.queue.push_back(Piece { buf, start, end, charge });
    }

    /// Forgets everything: there is nobody left to read it.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.queued = 0;
    }

    /// Sends as much as goes at once; `true` if some went.
    pub(super) fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> io::Result<bool> {
        let mut progress = false;
        while self.queued > 0 {
            let mut slices = [IoSlice::new(&[]); 8];
            let mut used = 0;
            let waiting = self.queue.iter().filter(|piece| piece.start < piece.end);
            for (slot, piece) in slices.iter_mut().zip(waiting) {
                *slot = IoSlice::new(piece.buf.get(piece.start..piece.end).unwrap_or_default());
                used += 1;
            }
            let sent = if used > 1 && stream.is_write_vectored() {
                Pin::new(&mut *stream).poll_write_vectored(cx, slices.get(..used).unwrap_or(&slices))
            } else {
                Pin::new(&mut *stream).poll_write(cx, &slices[0])
            };
            match sent {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(sent)) => {
                    progress = true;
                    self.sent(sent);
                }
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        Ok(progress)
    }

    fn sent(&mut self, mut sent: usize) {
        self.queued = self.queued.saturating_sub(sent);
        while let Some(piece) = self.queue.front_mut() {
            let here = sent.min(piece.end - piece.start);
            piece.start += here;
            sent -= here;
            if piece.start < piece.end {
                break;
            }
            if let Some(Piece { buf, charge, .. }) = self.queue.pop_front() {
                drop(charge);
                self.keep(buf);
            }
        }
    }
}
