//! What the device and its connection share: requests by cookie, and bytes to send.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use blkproof_block::{Errno, IoError};
use tokio::sync::Notify;

use crate::errors;
use crate::handshake::Mode;
use crate::transmission::reply::ReplyEvent;
use crate::transmission::request::Request;
use crate::wire::{ProtocolError, command};

/// Messages smaller than this are joined into one buffer.
const JOIN: usize = 64 << 10;

/// Pieces of one read that may have come with gaps between them. A server may fragment as it likes, but each piece takes
/// memory of ours.
const PIECES_MAX: usize = 32 << 10;

/// What became of a request that failed, as far as the server is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// The server answered, or it was never meant to be asked.
    Settled,
    /// There was no connection to send it over, or it was lost before the whole of the request's head had left: the server
    /// can not know of it.
    Unsent,
    /// The connection was lost before the answer came: the server may carry it out at any time, or never.
    Unanswered,
}

/// An error, and what is known of the request.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: IoError,
    pub(crate) fate: Fate,
}

impl From<IoError> for Failure {
    fn from(error: IoError) -> Self {
        Self { error, fate: Fate::Settled }
    }
}

impl From<Failure> for IoError {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

/// What a server answered.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// Data of a read.
    pub(super) data: Vec<u8>,
    /// Extents of a block status, by context: only the first of each.
    pub(super) extents: Vec<(u32, (u64, u64))>,
    /// Bytes from the start of the data that came, if not all did.
    pub(super) valid: u64,
    /// The failure, if it is one.
    pub(super) error: Option<IoError>,
}

/// A request the server has not answered completely.
#[derive(Debug)]
struct Pending {
    request: Request,
    reply: Reply,
    /// Ranges of the buffer that came, in order; none overlap.
    covered: BTreeMap<u64, u64>,
    /// Whoever waits; `None` before it first did.
    waker: Option<Waker>,
    /// Nobody waits any more.
    abandoned: bool,
    done: bool,
    /// What became of it when the connection was lost before the answer came.
    lost: Option<Fate>,
    /// Where its head ends among all bytes ever queued.
    head_end: u64,
}

#[derive(Debug, Default)]
struct State {
    pending: BTreeMap<u64, Pending>,
    next_cookie: u64,
    out: VecDeque<Vec<u8>>,
    /// Bytes ever put into `out`.
    queued: u64,
    /// The first so many of them may have left.
    sent: u64,
    abandoned: usize,
    /// Set once the connection is of no use any more.
    dead: Option<IoError>,
    /// The device is gone, or the server wants us to be.
    hanging_up: bool,
    /// It is the server that wants us to be gone.
    dismissed: bool,
    /// A request was answered by more than the wish that we leave.
    has_answered: bool,
    /// Requests that change the disk, that nobody waits for, and whose answer will never come: they stay open for ever
    /// (CM 4.5). Shared with later connections to the same export.
    open: Rc<Cell<u64>>,
    connection: Option<Waker>,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    state: RefCell<State>,
    /// Told whenever an abandoned request is answered, and when the connection is lost.
    pub(super) answered: Notify,
    /// Told when the server wants us to leave.
    pub(super) dismissed: Notify,
}

/// Gives up a request when its future is dropped.
struct Guard<'a> {
    shared: &'a Shared,
    cookie: u64,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let state = &mut *self.shared.state.borrow_mut();
        let Some(pending) = state.pending.get_mut(&self.cookie) else { return };
        if pending.done {
            if pending.lost == Some(Fate::Unanswered) && pending.writes() {
                state.open.set(state.open.get().saturating_add(1));
            }
            state.pending.remove(&self.cookie);
        } else {
            pending.abandoned = true;
            pending.waker = None;
            state.abandoned += 1;
        }
    }
}

impl Shared {
    /// Queues a request; it will be sent even if nobody waits for it.
    pub(super) fn send(&self, mode: Mode, mut request: Request, data: &[u8]) -> Result<u64, Failure> {
        let state = &mut *self.state.borrow_mut();
        if let Some(error) = &state.dead {
            return Err(Failure { error: error.clone(), fate: Fate::Unsent });
        }
        if state.hanging_up {
            let error = IoError::new(Errno::SHUTDOWN).detail("the connection was closed");
            return Err(Failure { error, fate: Fate::Unsent });
        }
        let cookie = state.next_cookie;
        state.next_cookie = cookie.wrapping_add(1);
        request.cookie = cookie;
        let data_len = if request.kind == command::READ { usize::try_from(request.length).unwrap_or(0) } else { 0 };
        if state.out.back().is_none_or(|last| last.len() + data.len() > JOIN) {
            state.out.push_back(Vec::new());
        }
        let mut head_end = state.queued;
        if let Some(last) = state.out.back_mut() {
            let before = last.len();
            request.encode(mode, last);
            head_end = head_end.saturating_add((last.len() - before) as u64);
            last.extend_from_slice(data);
        }
        state.queued = head_end.saturating_add(data.len() as u64);
        let pending = Pending {
            request,
            reply: Reply { data: vec![0; data_len], ..Reply::default() },
            covered: BTreeMap::new(),
            waker: None,
            abandoned: false,
            done: false,
            lost: None,
            head_end,
        };
        state.pending.insert(cookie, pending);
        if let Some(waker) = state.connection.take() {
            waker.wake();
        }
        Ok(cookie)
    }

    /// Waits for the answer to a request, success or not.
    ///
    /// An unanswered one is the business of whoever gets that failure: it is no longer counted as open here.
    pub(super) async fn answer(&self, cookie: u64) -> Result<Reply, Failure> {
        let _guard = Guard { shared: self, cookie };
        poll_fn(|cx| {
            let state = &mut *self.state.borrow_mut();
            let Some(pending) = state.pending.get_mut(&cookie) else {
                return Poll::Ready(Err(lost("its request is unknown").into()));
            };
            if !pending.done {
                pending.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let pending = state.pending.remove(&cookie);
            Poll::Ready(match pending {
                Some(Pending { lost: Some(fate), reply: Reply { error: Some(error), .. }, .. }) => {
                    Err(Failure { error, fate })
                }
                Some(pending) => Ok(pending.reply),
                None => Err(lost("its request is unknown").into()),
            })
        })
        .await
    }

    /// Whether no abandoned request is unanswered.
    pub(super) fn is_drained(&self) -> Result<bool, IoError> {
        let state = self.state.borrow();
        match &state.dead {
            Some(error) => Err(error.clone()),
            None => Ok(state.abandoned == 0),
        }
    }

    /// Why the connection is of no use any more, if it is.
    pub(super) fn loss(&self) -> Option<IoError> {
        self.state.borrow().dead.clone()
    }

    /// Whether no request is taken any more.
    pub(super) fn is_over(&self) -> bool {
        let state = self.state.borrow();
        state.hanging_up || state.dead.is_some()
    }

    /// Whether any request was ever answered, by more than `NBD_ESHUTDOWN`.
    pub(super) fn has_answered(&self) -> bool {
        self.state.borrow().has_answered
    }

    /// Whether the server wants us to leave.
    pub(super) fn is_dismissed(&self) -> bool {
        self.state.borrow().dismissed
    }

    /// Counts requests that stay open for ever in `open` from now on.
    pub(super) fn share_open(&self, open: &Rc<Cell<u64>>) {
        self.state.borrow_mut().open = Rc::clone(open);
    }

    /// Ends the connection once everything is answered.
    pub(super) fn hang_up(&self) {
        let state = &mut *self.state.borrow_mut();
        state.hanging_up = true;
        if let Some(waker) = state.connection.take() {
            waker.wake();
        }
    }

    /// Remembers whom to wake when there is something to send.
    pub(super) fn register(&self, waker: &Waker) {
        let state = &mut *self.state.borrow_mut();
        if !state.connection.as_ref().is_some_and(|old| old.will_wake(waker)) {
            state.connection = Some(waker.clone());
        }
    }

    /// The next bytes to send.
    pub(super) fn take_out(&self) -> Option<Vec<u8>> {
        self.state.borrow_mut().out.pop_front()
    }

    /// So many of the bytes that were taken out have left, or may have.
    pub(super) fn sent(&self, bytes: usize) {
        let state = &mut *self.state.borrow_mut();
        state.sent = state.sent.saturating_add(bytes as u64);
    }

    /// Whether the connection may say goodbye: it should end, and nothing is sent or awaited any more.
    pub(super) fn may_leave(&self) -> bool {
        let state = self.state.borrow();
        state.hanging_up && state.out.is_empty() && state.pending.values().all(|pending| pending.done)
    }

    /// Offset and length of the read with this cookie, as the decoder asks for it.
    pub(super) fn expect(&self, cookie: u64) -> Option<(u64, u64)> {
        let state = self.state.borrow();
        let pending = state.pending.get(&cookie).filter(|pending| !pending.done)?;
        Some((pending.request.offset, pending.reply.data.len() as u64))
    }

    /// Fails everything in flight and to come.
    pub(super) fn die(&self, words: &str) {
        let error = lost(words);
        let state = &mut *self.state.borrow_mut();
        state.dead.get_or_insert_with(|| error.clone());
        state.out.clear();
        state.abandoned = 0;
        let sent = state.sent;
        let fate = |pending: &Pending| if pending.head_end > sent { Fate::Unsent } else { Fate::Unanswered };
        let is_open = |pending: &Pending| pending.abandoned && pending.writes() && fate(pending) == Fate::Unanswered;
        let open = state.pending.values().filter(|pending| is_open(pending)).count() as u64;
        state.open.set(state.open.get().saturating_add(open));
        state.pending.retain(|_, pending| !pending.abandoned);
        for pending in state.pending.values_mut().filter(|pending| !pending.done) {
            pending.lost = Some(fate(pending));
            pending.reply.error = Some(error.clone());
            pending.finish();
        }
        self.answered.notify_waiters();
    }

    /// Applies one event of the decoder, which has checked that the cookie is in flight.
    pub(super) fn apply(&self, event: &ReplyEvent<'_>) -> Result<(), ProtocolError> {
        let state = &mut *self.state.borrow_mut();
        let (ReplyEvent::Data { cookie, .. }
        | ReplyEvent::Hole { cookie, .. }
        | ReplyEvent::Status { cookie, .. }
        | ReplyEvent::Error { cookie, .. }
        | ReplyEvent::Done { cookie }) = *event;
        let Some(pending) = state.pending.get_mut(&cookie) else {
            return Err(ProtocolError::broken("a reply to no request"));
        };
        match event {
            ReplyEvent::Data { at, bytes, .. } => {
                let slot = pending.cover(*at, bytes.len() as u64)?;
                slot.copy_from_slice(bytes);
            }
            ReplyEvent::Hole { at, len, .. } => pending.cover(*at, u64::from(*len))?.fill(0),
            ReplyEvent::Status { context, extents, .. } => {
                if pending.request.kind != command::BLOCK_STATUS {
                    return Err(ProtocolError::broken("extents in reply to something else"));
                }
                // The only context there is to ask for has been agreed on; it is answered by one chunk.
                if !pending.reply.extents.is_empty() {
                    return Err(ProtocolError::broken("more than one chunk of extents in a reply"));
                }
                pending.reply.extents.extend(extents.first().map(|&extent| (*context, extent)));
            }
            ReplyEvent::Error { error, message, place, .. } => {
                let (error, place) = (errors::from_wire(*error), *place);
                if error == Errno::SHUTDOWN {
                    // Such a server has to be left (section "Terminating the transmission phase").
                    state.hanging_up = true;
                    state.dismissed = true;
                    self.dismissed.notify_one();
                }
                pending.fail(error, message, place);
            }
            ReplyEvent::Done { .. } => {
                pending.check_complete()?;
                pending.finish();
                state.has_answered |= pending.reply.error.as_ref().is_none_or(|error| error.errno != Errno::SHUTDOWN);
                if pending.abandoned {
                    state.pending.remove(&cookie);
                    state.abandoned = state.abandoned.saturating_sub(1);
                    self.answered.notify_waiters();
                }
            }
        }
        Ok(())
    }
}

impl Pending {
    /// Whether it changes the disk.
    fn writes(&self) -> bool {
        matches!(self.request.kind, command::WRITE | command::WRITE_ZEROES | command::TRIM)
    }

    fn finish(&mut self) {
        self.done = true;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The part of the buffer that a chunk is for, which no chunk was for before.
    fn cover(&mut self, at: u64, len: u64) -> Result<&mut [u8], ProtocolError> {
        let outside = || ProtocolError::broken(format!("{len} bytes at {at:#x}, which is not what was read"));
        let start = at.checked_sub(self.request.offset).ok_or_else(outside)?;
        let end = start.checked_add(len).ok_or_else(outside)?;
        let before = self.covered.range(..end).next_back().map(|(&start, &end)| (start, end));
        match before {
            Some((_, before_end)) if before_end > start => {
                return Err(ProtocolError::broken(format!("the bytes at {at:#x} twice")));
            }
            // Data of one chunk comes in many pieces: they are one range.
            Some((before_start, before_end)) if before_end == start => {
                self.covered.insert(before_start, end);
            }
            _ if self.covered.len() >= PIECES_MAX => {
                return Err(ProtocolError::broken(format!("a read in more than {PIECES_MAX} pieces")));
            }
            _ => {
                self.covered.insert(start, end);
            }
        }
        let range = usize::try_from(start).ok().zip(usize::try_from(end).ok()).map(|(start, end)| start..end);
        range.and_then(|range| self.reply.data.get_mut(range)).ok_or_else(outside)
    }

    fn fail(&mut self, errno: Errno, message: &str, place: Option<u64>) {
        let inside = place
            .filter(|at| at.checked_sub(self.request.offset).is_some_and(|delta| delta < self.request.length.max(1)));
        // Of several places the first one counts; a plain error takes all places back.
        if let Some(error) = &mut self.reply.error {
            error.first_bad = error.first_bad.zip(inside).map(|(first, at)| first.min(blkproof_block::ByteOffset(at)));
            return;
        }
        let mut error = IoError::new(errno);
        if !message.is_empty() {
            error = error.detail(message);
        }
        if let Some(at) = inside {
            error = error.at(at);
        }
        self.reply.error = Some(error);
    }

    /// Whether a reply that says it is complete is.
    fn check_complete(&mut self) -> Result<(), ProtocolError> {
        let from_start = self.covered.first_key_value().filter(|&(&start, _)| start == 0);
        self.reply.valid = from_start.map_or(0, |(_, &end)| end);
        if let Some(error) = &mut self.reply.error {
            if let Some(place) = error.first_bad {
                error.transferred = place.0.saturating_sub(self.request.offset);
            }
            return Ok(());
        }
        let came: u64 = self.covered.iter().map(|(start, end)| end - start).sum();
        if came != self.reply.data.len() as u64 {
            return Err(ProtocolError::broken(format!("{came} bytes of a read of {}", self.reply.data.len())));
        }
        Ok(())
    }
}

fn lost(words: &str) -> IoError {
    IoError::new(Errno::SHUTDOWN).detail(format!("the NBD connection is lost: {words}"))
}
