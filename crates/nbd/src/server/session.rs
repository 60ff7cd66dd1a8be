//! The transmission phase of one connection.
//!
//! One poll takes everything that is there: finished requests, as many new ones as the receive buffer holds, one write
//! for each [`SEND_AT`] bytes of replies composed, one read. A read the device can answer at once goes straight into
//! the send buffer; what has to wait becomes a future among the connection's own.
//!
//! Invariants:
//! - A reply is composed after its request is carried out, so no success is ever announced and then taken back.
//! - A request is begun only if its memory is paid for and the peer keeps up with the replies (back-pressure); until
//!   then it stays in the receive buffer, and the socket fills up instead of this process.
//! - Once begun, a request is carried out to its end, also if the client goes away.
//! - From the first error that says the device is gone on, nothing is sent: neither what else was asked, nor replies that wait.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use blkproof_block::buffer::is_zero;
use blkproof_block::{BlockDevice as _, ByteOffset, Errno, IoError, LocalBoxFuture, Node};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::budget::{Budget, Charge};
use super::buffers::{COPY_MAX, FAST_READ, Input, Output, poll_read_into};
use super::execute::{Answer, CACHE_STEP, HEAD_ROOM, Job, execute};
use super::{Ended, Stream, Summary};
use crate::errors;
use crate::handshake::{Agreed, Mode};
use crate::transmission::reply::{Head, encode_error, encode_status};
use crate::transmission::request::Request;
use crate::wire::{CommandFlags, Fields, MAX_PAYLOAD, ProtocolError, TransmissionFlags, command, errno};

/// Rounds of one poll before other connections get their turn.
const ROUNDS: u32 = 8;
/// Bytes of work one poll begins before other connections get their turn; a request without data counts as
/// [`REQUEST_WORK`]. Rounds do not bound it: a receive buffer holds 9000 requests, and a hole answers 256 KiB by 32
/// bytes.
const WORK: u64 = 4 << 20;
const REQUEST_WORK: u64 = 1 << 10;
/// Holes are told apart from data in pieces of this size, in reads of at least [`SPARSE_READ`] bytes.
const HOLE_GRAIN: usize = 64 << 10;
const SPARSE_READ: usize = 2 * HOLE_GRAIN;
/// Replies are sent once this many bytes of them are there, though more requests could still be answered: the peer
/// works on the first ones meanwhile. With one send for all of them, server and client would wait for each other in
/// turns (a fifth to two thirds more small reads a second, on two processors). Much smaller, and the sends themselves
/// cost what is gained.
const SEND_AT: usize = 32 << 10;
/// A payload that is too long is read and forgotten up to this size; a longer one ends the connection.
const SKIP_MAX: u64 = 2 * MAX_PAYLOAD as u64;

struct Finished {
    request: Request,
    outcome: Result<Answer, IoError>,
    charge: Charge,
}

/// A payload on its way.
struct Receiving {
    request: Request,
    buf: Vec<u8>,
    filled: usize,
    charge: Charge,
}

enum State {
    Running,
    /// Nothing more is read; what is in flight is finished.
    Ending(Ended),
    /// As above, because of the peer's mistake.
    Failing(ProtocolError),
    /// The device is gone: so is the connection.
    Severed,
}

pub(super) struct Session<S> {
    stream: S,
    node: Node,
    agreed: Agreed,
    input: Input,
    output: Output,
    tasks: FuturesUnordered<LocalBoxFuture<'static, Finished>>,
    tasks_max: usize,
    budget: Budget,
    receiving: Option<Receiving>,
    /// Bytes of payload nobody wants.
    skip: u64,
    /// What this poll has begun, in bytes.
    work: u64,
    shutting_down: bool,
    /// The peer takes no replies any more.
    deaf: bool,
    /// The stream holds bytes of ours that it may not have passed on yet (TLS).
    unflushed: bool,
    state: State,
    scratch: Vec<u8>,
    summary: Summary,
}

/// What became of the next request in the receive buffer.
enum Taken {
    Yes,
    /// It is not complete.
    Incomplete,
    /// It has to wait until something in flight is done, or the peer takes replies.
    NotNow,
}

impl<S: Stream> Session<S> {
    pub(super) fn new(
        stream: S,
        early: &[u8],
        node: Node,
        agreed: Agreed,
        budget: Budget,
        tasks_max: usize,
        summary: Summary,
    ) -> Self {
        Self {
            stream,
            node,
            agreed,
            input: Input::new(early),
            output: Output::default(),
            tasks: FuturesUnordered::new(),
            tasks_max: tasks_max.max(1),
            budget,
            receiving: None,
            skip: 0,
            work: 0,
            shutting_down: false,
            deaf: false,
            unflushed: false,
            state: State::Running,
            scratch: Vec::new(),
            summary,
        }
    }

    pub(super) fn is_shutting_down(&self) -> bool {
        self.shutting_down
    }

    pub(super) fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// Whether the client takes no more part: it has left, or is being sent away for a mistake.
    pub(super) fn is_over(&self) -> bool {
        !matches!(self.state, State::Running)
    }

    /// Ends at once: what is in flight is dropped, and nothing is answered.
    pub(super) fn sever(&mut self) -> Summary {
        self.forget_all();
        self.summary.ended = Ended::Severed;
        self.summary.clone()
    }

    /// Ends although requests of a client that has left are still under way.
    pub(super) fn abandon(&mut self) -> Summary {
        if let State::Ending(ended) = self.state {
            self.summary.ended = ended;
        }
        self.forget_all();
        self.summary.clone()
    }

    fn forget_all(&mut self) {
        self.state = State::Severed;
        self.output.clear();
        self.receiving = None;
        self.tasks.clear();
    }

    /// Goes on until nothing more can be done now. Ready when the connection is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Summary, ProtocolError>> {
        self.work = 0;
        for _ in 0..ROUNDS {
            let mut progress = self.poll_tasks(cx);
            progress |= self.take_requests(cx);
            if matches!(self.state, State::Severed) {
                return Poll::Ready(Ok(self.sever()));
            }
            progress |= self.poll_send(cx);
            progress |= self.poll_receive(cx);
            if let Poll::Ready(result) = self.poll_end(cx, progress) {
                return Poll::Ready(result);
            }
            if !progress {
                return Poll::Pending;
            }
            if self.work >= WORK {
                break;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_tasks(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while let Poll::Ready(Some(finished)) = self.tasks.poll_next_unpin(cx) {
            self.answer(finished);
            self.send_early(cx);
            progress = true;
        }
        progress
    }

    /// Sends what is there if it is worth a system call by itself.
    fn send_early(&mut self, cx: &mut Context<'_>) {
        if self.output.len() >= SEND_AT {
            self.poll_send(cx);
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> bool {
        if self.deaf {
            self.output.clear();
            return false;
        }
        let sent = match self.output.is_empty() {
            true => Ok(false),
            false => self.output.poll_send(&mut self.stream, cx),
        };
        self.unflushed |= matches!(sent, Ok(true));
        let flushed = match sent {
            // Plain sockets have nothing to flush; TLS does.
            Ok(_) if self.unflushed && self.output.is_empty() => Pin::new(&mut self.stream).poll_flush(cx),
            _ => Poll::Pending,
        };
        match (sent, flushed) {
            (Err(_), _) | (_, Poll::Ready(Err(_))) => {
                self.lose();
                true
            }
            (Ok(progress), Poll::Ready(Ok(()))) => {
                self.unflushed = false;
                progress
            }
            (Ok(progress), Poll::Pending) => progress,
        }
    }

    fn lose(&mut self) {
        self.deaf = true;
        self.output.clear();
        if matches!(self.state, State::Running) {
            self.state = State::Ending(Ended::Broken);
        }
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> bool {
        if !matches!(self.state, State::Running) {
            return false;
        }
        let received = match &mut self.receiving {
            Some(Receiving { buf, filled, .. }) => {
                // Complete, and left for the next poll (`WORK`). Nothing received into no room would look like the end.
                let Some(rest) = buf.get_mut(*filled..).filter(|rest| !rest.is_empty()) else { return false };
                let received = poll_read_into(&mut self.stream, rest, cx);
                if let Poll::Ready(Ok(received)) = received {
                    *filled += received;
                }
                received
            }
            None if self.input.has_room() => self.input.poll_receive(&mut self.stream, cx),
            None => return false,
        };
        match received {
            Poll::Pending => false,
            Poll::Ready(Ok(0)) => {
                self.state = State::Ending(Ended::Closed);
                true
            }
            Poll::Ready(Ok(_)) => true,
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => true,
            Poll::Ready(Err(_)) => {
                self.lose();
                true
            }
        }
    }

    fn poll_end(&mut self, cx: &mut Context<'_>, progress: bool) -> Poll<Result<Summary, ProtocolError>> {
        let idle = self.tasks.is_empty() && self.output.is_empty() && (self.deaf || !self.unflushed);
        if !idle {
            return Poll::Pending;
        }
        match &self.state {
            State::Running => {
                // Everything received has been answered, and nothing in flight is left: no task, and no data of a
                // request whose head was accepted.
                if !self.shutting_down || progress || self.receiving.is_some() {
                    return Poll::Pending;
                }
                self.summary.ended = Ended::Shutdown;
            }
            State::Ending(ended) => self.summary.ended = *ended,
            State::Severed => return Poll::Ready(Ok(self.sever())),
            State::Failing(error) => {
                let error = error.clone();
                let _ = Pin::new(&mut self.stream).poll_shutdown(cx);
                return Poll::Ready(Err(error));
            }
        }
        if !self.deaf && Pin::new(&mut self.stream).poll_shutdown(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(Ok(self.summary.clone()))
    }

    /// Begins as many requests as there are, up to what memory and the peer allow.
    fn take_requests(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while matches!(self.state, State::Running) && self.work < WORK {
            match self.take_request(cx) {
                Ok(Taken::Yes) => {
                    self.send_early(cx);
                    progress = true;
                }
                Ok(Taken::Incomplete | Taken::NotNow) => break,
                Err(error) => {
                    self.state = State::Failing(error);
                    progress = true;
                }
            }
        }
        progress
    }

    fn take_request(&mut self, cx: &mut Context<'_>) -> Result<Taken, ProtocolError> {
        if self.skip > 0 {
            let here = usize::try_from(self.skip).unwrap_or(usize::MAX).min(self.input.bytes().len());
            self.input.consume(here);
            self.skip -= here as u64;
            return Ok(if here > 0 { Taken::Yes } else { Taken::Incomplete });
        }
        if let Some(receiving) = self.receiving.take() {
            if receiving.filled < receiving.buf.len() {
                self.receiving = Some(receiving);
                return Ok(Taken::Incomplete);
            }
            self.work = self.work.saturating_add(receiving.request.payload);
            self.begin_with_payload(receiving, cx);
            return Ok(Taken::Yes);
        }
        if self.output.is_full() || self.tasks.len() >= self.tasks_max {
            return Ok(Taken::NotNow);
        }
        let Some((request, head_len)) = Request::decode(self.agreed.mode, self.input.bytes())? else {
            return Ok(Taken::Incomplete);
        };
        let data = if request.kind == command::READ { request.length.min(MAX_PAYLOAD.into()) } else { 0 };
        self.work = self.work.saturating_add(data).saturating_add(REQUEST_WORK);
        if request.kind == command::DISC {
            self.input.consume(head_len);
            self.state = State::Ending(Ended::Disconnect);
            return Ok(Taken::Yes);
        }
        match self.check(&request) {
            Ok(()) if request.payload > 0 => Ok(self.receive_payload(request, head_len)),
            Ok(()) => Ok(self.begin(request, head_len, cx)),
            Err(error) => {
                if request.payload > SKIP_MAX {
                    return Err(ProtocolError::TooLong {
                        what: "a payload",
                        length: request.payload,
                        limit: MAX_PAYLOAD.into(),
                    });
                }
                self.input.consume(head_len);
                self.skip = request.payload;
                self.refuse(&request, &error);
                Ok(Taken::Yes)
            }
        }
    }

    /// Whether the request may be asked at all (sections "Request types" and "Size constraints").
    fn check(&self, request: &Request) -> Result<(), IoError> {
        use TransmissionFlags as Offers;
        let invalid = |words: &str| Err(IoError::new(Errno::INVAL).detail(words));
        let offers = |offer: Offers| self.agreed.flags.contains(offer);
        if self.shutting_down {
            return Err(IoError::new(Errno::SHUTDOWN).detail("the server is shutting down"));
        }
        let mut allowed = CommandFlags::empty();
        allowed.set(CommandFlags::FUA, offers(Offers::FUA));
        let (writes, known) = match request.kind {
            command::READ => {
                allowed.set(CommandFlags::DF, offers(Offers::DF));
                (false, true)
            }
            command::WRITE => {
                allowed.set(CommandFlags::PAYLOAD_LEN, self.agreed.mode == Mode::Extended);
                (true, true)
            }
            command::FLUSH => (false, offers(Offers::FLUSH)),
            command::TRIM => (true, offers(Offers::TRIM) || offers(Offers::READ_ONLY)),
            command::CACHE => (false, offers(Offers::CACHE)),
            command::WRITE_ZEROES => {
                allowed |= CommandFlags::NO_HOLE;
                allowed.set(CommandFlags::FAST_ZERO, offers(Offers::FAST_ZERO));
                (true, offers(Offers::WRITE_ZEROES) || offers(Offers::READ_ONLY))
            }
            command::BLOCK_STATUS => {
                allowed |= CommandFlags::REQ_ONE;
                allowed.set(CommandFlags::PAYLOAD_LEN, offers(Offers::BLOCK_STATUS_PAYLOAD));
                (false, self.agreed.allocation.is_some())
            }
            _ => (false, false),
        };
        if !known {
            return invalid("this command is unknown, or was not negotiated");
        }
        if writes && offers(Offers::READ_ONLY) {
            return Err(IoError::read_only());
        }
        if !request.flags.difference(allowed).is_empty() {
            return invalid("a flag this command does not take");
        }
        if request.kind == command::FLUSH {
            // Offset and length are reserved.
            return if (request.offset, request.length) == (0, 0) { Ok(()) } else { invalid("a flush of a range") };
        }
        if request.payload > u64::from(MAX_PAYLOAD) {
            return invalid("more payload than is allowed");
        }
        match request.kind {
            command::READ if request.length > u64::from(MAX_PAYLOAD) => {
                return invalid("a longer read than is allowed");
            }
            command::BLOCK_STATUS if request.payload > 0 => return Ok(()),
            command::BLOCK_STATUS if request.flags.contains(CommandFlags::PAYLOAD_LEN) => {
                return invalid("a list of metadata contexts without a length");
            }
            _ => {}
        }
        self.check_range(request)
    }

    fn check_range(&self, request: &Request) -> Result<(), IoError> {
        let Request { offset, length, .. } = *request;
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.agreed.size);
        if !inside {
            let errno = match request.kind {
                command::WRITE | command::WRITE_ZEROES => Errno::NOSPC,
                _ => Errno::INVAL,
            };
            return Err(IoError { errno, ..IoError::past_end(offset, length, self.agreed.size) });
        }
        let minimum = self.agreed.block_size.map_or(1, |constraints| u64::from(constraints.minimum));
        if offset & (minimum - 1) != 0 || length & (minimum - 1) != 0 {
            return Err(IoError::new(Errno::INVAL).detail(format!("not a multiple of {minimum} bytes")));
        }
        Ok(())
    }

    /// Makes room for a payload and moves there what has come of it; the rest is received into it directly.
    fn receive_payload(&mut self, request: Request, head_len: usize) -> Taken {
        let Some(charge) = self.budget.take(request.payload) else { return Taken::NotNow };
        self.input.consume(head_len);
        let len = usize::try_from(request.payload).unwrap_or(0);
        // Zeroed memory of this size is not touched before data comes: a peer that only announces takes nothing.
        let mut buf = vec![0; len];
        let early = self.input.bytes();
        let filled = early.len().min(len);
        if let (Some(slot), Some(early)) = (buf.get_mut(..filled), early.get(..filled)) {
            slot.copy_from_slice(early);
        }
        self.input.consume(filled);
        self.receiving = Some(Receiving { request, buf, filled, charge });
        Taken::Yes
    }

    fn begin_with_payload(&mut self, receiving: Receiving, cx: &mut Context<'_>) {
        let Receiving { mut request, buf, charge, .. } = receiving;
        if request.kind == command::WRITE {
            return self.start(request, Job::Write(buf), charge, cx);
        }
        // The only other payload that passed the check: block status with a list of contexts.
        let job = self.filtered_status(&mut request, &buf);
        match job.and_then(|job| self.check_range(&request).map(|()| job)) {
            Ok(job) => self.start(request, job, charge, cx),
            Err(error) => self.answer(Finished { request, outcome: Err(error), charge }),
        }
    }

    /// Reads the payload of a block status: the length, and the contexts that are wanted.
    fn filtered_status(&self, request: &mut Request, payload: &[u8]) -> Result<Job, IoError> {
        let invalid = || IoError::new(Errno::INVAL).detail("a malformed list of metadata contexts");
        let mut fields = Fields(payload);
        // An answer has at least one extent, so there is none to a question about nothing.
        request.length = fields.u64().filter(|&length| length > 0).ok_or_else(invalid)?;
        let mut context = None;
        while !fields.is_empty() {
            let id = fields.u32().ok_or_else(invalid)?;
            // There is one context; a second mention is a duplicate.
            if self.agreed.allocation != Some(id) || context.replace(id).is_some() {
                return Err(invalid());
            }
        }
        Ok(self.status_job(context))
    }

    fn status_job(&self, context: Option<u32>) -> Job {
        let minimum = self.agreed.block_size.map_or(1, |constraints| constraints.minimum);
        Job::Status { context, minimum, wide: self.agreed.mode == Mode::Extended }
    }

    /// Begins a request without payload.
    fn begin(&mut self, request: Request, head_len: usize, cx: &mut Context<'_>) -> Taken {
        if request.length == 0 && request.kind != command::FLUSH {
            self.input.consume(head_len);
            self.answer(Finished { request, outcome: Ok(Answer::Done), charge: Charge::Free });
            return Taken::Yes;
        }
        match request.kind {
            command::READ => self.begin_read(request, head_len, cx),
            kind => {
                // Warming a cache needs a buffer; nothing else here does.
                let memory = if kind == command::CACHE { CACHE_STEP } else { 0 };
                let Some(charge) = self.budget.take(memory) else { return Taken::NotNow };
                self.input.consume(head_len);
                let job =
                    if kind == command::BLOCK_STATUS { self.status_job(self.agreed.allocation) } else { Job::Plain };
                self.start(request, job, charge, cx);
                Taken::Yes
            }
        }
    }

    fn begin_read(&mut self, request: Request, head_len: usize, cx: &mut Context<'_>) -> Taken {
        let len = usize::try_from(request.length).unwrap_or(usize::MAX);
        if len <= FAST_READ && self.read_at_once(&request, len) {
            self.input.consume(head_len);
            return Taken::Yes;
        }
        let Some(charge) = self.budget.take(request.length) else { return Taken::NotNow };
        self.input.consume(head_len);
        let mut buf = vec![0; HEAD_ROOM + len];
        let data = buf.get_mut(HEAD_ROOM..).unwrap_or_default();
        if len > FAST_READ && self.node.read_now(request.offset, data) {
            self.answer(Finished { request, outcome: Ok(Answer::Data(buf)), charge });
        } else {
            self.start(request, Job::Read(buf), charge, cx);
        }
        Taken::Yes
    }

    /// The fast path: from the device into the send buffer, with the head written in front afterwards.
    fn read_at_once(&mut self, request: &Request, len: usize) -> bool {
        let mode = self.agreed.mode;
        let head_len = Head::data_len(mode);
        let slot = self.output.reserve(head_len + len);
        let Some(data) = slot.get_mut(head_len..).filter(|data| data.len() == len) else { return false };
        if !self.node.read_now(request.offset, data) {
            self.output.give_back();
            return false;
        }
        let Request { cookie, offset, .. } = *request;
        let wire_len = u32::try_from(len).unwrap_or(u32::MAX);
        let zero = mode != Mode::Simple && is_zero(data);
        let hole = zero.then(|| Head::hole(mode, cookie, offset, offset, wire_len, true));
        // A hole's head is longer than data's by its length field: a few zero bytes are sent as data, and the space
        // reserved for them would not hold it.
        let hole = hole.filter(|hole| hole.len() <= slot.len());
        let sent = hole.as_ref().map_or(slot.len(), |hole| hole.len());
        let head = hole.unwrap_or_else(|| Head::data(mode, cookie, offset, offset, wire_len, true));
        slot.get_mut(..head.len()).expect("each head was measured against the slot").copy_from_slice(&head);
        self.output.commit(sent);
        self.summary.requests += 1;
        self.summary.read_bytes += len as u64;
        true
    }

    /// Carries a request out, at once if it does not have to wait.
    fn start(&mut self, request: Request, job: Job, charge: Charge, cx: &mut Context<'_>) {
        let node = self.node.clone();
        let mut task: LocalBoxFuture<'static, Finished> = Box::pin(async move {
            let outcome = execute(&node, request, job).await;
            Finished { request, outcome, charge }
        });
        match task.as_mut().poll(cx) {
            Poll::Ready(finished) => self.answer(finished),
            // The set polls it once more and registers its own waker.
            Poll::Pending => self.tasks.push(task),
        }
    }

    /// Composes the reply to a request that was carried out.
    fn answer(&mut self, finished: Finished) {
        let Finished { request, outcome, charge } = finished;
        let mode = self.agreed.mode;
        let Request { cookie, offset, .. } = request;
        if let Err(error) | Ok(Answer::PartialData(_, error)) = &outcome
            && error.gone
        {
            return self.forget_all();
        }
        self.summary.requests += 1;
        match outcome {
            Ok(Answer::Done) => {
                match request.kind {
                    command::WRITE => self.summary.written_bytes += request.length,
                    command::READ | command::BLOCK_STATUS if mode != Mode::Simple => {
                        return self.output.push(&Head::none(mode, cookie, offset));
                    }
                    _ => {}
                }
                self.output.push(&Head::done(mode, cookie, offset));
            }
            Ok(Answer::Data(buf)) => {
                self.summary.read_bytes += request.length;
                self.answer_data(&request, buf, true, charge);
            }
            Ok(Answer::PartialData(buf, error)) => {
                if mode != Mode::Simple {
                    self.answer_data(&request, buf, false, charge);
                }
                self.answer_error(&request, &error);
            }
            Ok(Answer::Status { context, extents }) => {
                self.scratch.clear();
                encode_status(mode, (cookie, offset), context, &extents, &mut self.scratch);
                self.output.push(&self.scratch);
            }
            Err(error) => self.answer_error(&request, &error),
        }
    }

    /// Answers a request that is not carried out, for a reason of our own.
    fn refuse(&mut self, request: &Request, error: &IoError) {
        self.summary.requests += 1;
        // The one error a device can not cause: it tells the client to leave for good.
        let number = match error.errno {
            Errno::SHUTDOWN => errno::ESHUTDOWN,
            other => errors::to_wire(other, request.flags),
        };
        self.answer_number(request, number, error);
    }

    fn answer_error(&mut self, request: &Request, error: &IoError) {
        self.answer_number(request, errors::to_wire(error.errno, request.flags), error);
    }

    fn answer_number(&mut self, request: &Request, number: u32, error: &IoError) {
        self.summary.errors += 1;
        let range = request.offset..request.offset.saturating_add(request.length);
        let takes_place = !matches!(request.kind, command::FLUSH);
        let place = error.first_bad.map(|ByteOffset(at)| at).filter(|at| takes_place && range.contains(at));
        let words = if self.agreed.mode == Mode::Simple { String::new() } else { errors::message(error) };
        self.scratch.clear();
        let names = (request.cookie, request.offset);
        encode_error(self.agreed.mode, names, number, &words, place, &mut self.scratch);
        self.output.push(&self.scratch);
    }

    /// Sends data that stands behind [`HEAD_ROOM`], and zeroes as holes where the client can take them.
    fn answer_data(&mut self, request: &Request, mut buf: Vec<u8>, done: bool, charge: Charge) {
        let mode = self.agreed.mode;
        let Request { cookie, offset, .. } = *request;
        let data = buf.get(HEAD_ROOM..).unwrap_or_default();
        let len = data.len();
        let wire_len = u32::try_from(len).unwrap_or(u32::MAX);
        let small = len <= COPY_MAX;
        if mode != Mode::Simple {
            if is_zero(data) {
                return self.output.push(&Head::hole(mode, cookie, offset, offset, wire_len, done));
            }
            let fragment = !request.flags.contains(CommandFlags::DF);
            if fragment && len >= SPARSE_READ && data.chunks(HOLE_GRAIN).any(is_zero) {
                return self.answer_sparse(request, data, done, charge);
            }
        }
        let head = Head::data(mode, cookie, offset, offset, wire_len, done);
        if small {
            self.output.push(&head);
            return self.output.push(data);
        }
        let start = HEAD_ROOM - head.len();
        buf.get_mut(start..HEAD_ROOM).expect("read data stands behind room for a head").copy_from_slice(&head);
        self.output.push_owned(buf, start, charge);
    }

    fn answer_sparse(&mut self, request: &Request, data: &[u8], done: bool, charge: Charge) {
        let mode = self.agreed.mode;
        let Request { cookie, offset, .. } = *request;
        let mut pieces = data.chunks(HOLE_GRAIN).map(|piece| (piece.len(), is_zero(piece))).peekable();
        let mut reply = Vec::with_capacity(data.len());
        let mut at = 0;
        while let Some((mut len, zero)) = pieces.next() {
            while let Some((more, _)) = pieces.next_if(|&(_, next)| next == zero) {
                len += more;
            }
            let last = done && pieces.peek().is_none();
            let place = offset + at as u64;
            let wire_len = u32::try_from(len).unwrap_or(u32::MAX);
            if zero {
                reply.extend_from_slice(&Head::hole(mode, cookie, offset, place, wire_len, last));
            } else {
                reply.extend_from_slice(&Head::data(mode, cookie, offset, place, wire_len, last));
                reply.extend_from_slice(data.get(at..at + len).expect("pieces are cut from the data"));
            }
            at += len;
        }
        if reply.len() <= COPY_MAX {
            return self.output.push(&reply);
        }
        // The memory stays paid for until the peer has taken it.
        self.output.push_owned(reply, 0, charge);
    }
}
