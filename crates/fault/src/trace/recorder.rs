//! Writes a line when a request is over.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use blkproof_block::{IoError, Result};

use super::format::{Head, Outcome, Record, TraceFlags, write_dropped, write_head, write_paused, write_request};
use super::sink::Sink;
use crate::clock::SharedClock;
use crate::request::Operation;

/// What stands in the lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceOptions {
    /// Write lines from the beginning, without being started.
    pub start: bool,
    /// Checksums of what is read and written.
    pub hash: bool,
    /// What is written, whole.
    pub data: bool,
}

impl Default for TraceOptions {
    fn default() -> Self {
        Self { start: true, hash: true, data: false }
    }
}

/// The trace of one node, shared by the node and whoever controls it.
pub struct Trace {
    name: Rc<str>,
    clock: SharedClock,
    sink: Rc<dyn Sink>,
    options: TraceOptions,
    running: Cell<bool>,
    /// The head is written.
    headed: Cell<bool>,
    size: u64,
    began: u64,
    submitted: Cell<u64>,
    done: Cell<u64>,
    lines: Cell<u64>,
    dropped: Cell<u64>,
    /// Lines lost since the last that was taken.
    gap: Cell<u64>,
    buffer: RefCell<String>,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trace").field("name", &self.name).field("lines", &self.lines).finish_non_exhaustive()
    }
}

/// Longest buffer kept from one line to the next.
const BUFFER_KEPT: usize = 64 << 10;

impl Trace {
    /// Writes to `sink` for the node `name` of a disk of `size` bytes, nothing before a [node](super::TraceNode) is made
    /// for it: what is in the sink already stays as long as opening the graph may still fail.
    pub fn new(
        name: impl Into<Rc<str>>,
        size: u64,
        clock: SharedClock,
        sink: Rc<dyn Sink>,
        options: TraceOptions,
    ) -> Rc<Self> {
        Rc::new(Self {
            name: name.into(),
            size,
            began: nanoseconds(clock.now()),
            sink,
            options,
            running: Cell::new(options.start),
            headed: Cell::new(false),
            submitted: Cell::new(0),
            done: Cell::new(0),
            lines: Cell::new(0),
            dropped: Cell::new(0),
            gap: Cell::new(0),
            buffer: RefCell::default(),
            clock,
        })
    }

    /// Writes the head, the first time.
    pub(super) fn write_head(&self) {
        if self.headed.replace(true) {
            return;
        }
        let (unix_ns, TraceOptions { hash, data, .. }) = (nanoseconds(self.clock.unix()), self.options);
        let head = Head { node: self.name.to_string(), size: self.size, unix_ns, hash, data };
        self.put(|out| write_head(&head, out));
        if !self.is_running() {
            self.put(write_paused);
        }
    }

    /// The node's name.
    pub fn name(&self) -> &Rc<str> {
        &self.name
    }

    /// Whether lines are written.
    pub fn is_running(&self) -> bool {
        self.running.get()
    }

    /// Writes lines from now on. Requests under way have one if they began while lines were written.
    pub fn start(&self) {
        self.running.set(true);
    }

    /// Writes no further lines but those of requests under way, and a line that says so: what is read from now on may be
    /// what nobody wrote as far as the trace knows.
    pub fn stop(&self) {
        if self.running.replace(false) && self.headed.get() {
            self.put(write_paused);
        }
    }

    /// Lines that were taken, the head among them.
    pub fn lines(&self) -> u64 {
        self.lines.get()
    }

    /// Lines that were lost.
    pub fn dropped(&self) -> u64 {
        self.dropped.get()
    }

    /// Lets the sink write out what it holds.
    pub(super) fn finish(&self) {
        self.tell_gap();
        self.sink.finish();
    }

    /// A request came; `None` if no line is wanted.
    pub(super) fn begin<'a>(
        &'a self,
        client: Option<&'a str>,
        operation: Operation,
        offset: u64,
        bytes: u64,
        flags: TraceFlags,
    ) -> Option<Going<'a>> {
        if !self.running.get() {
            return None;
        }
        let seq = self.submitted.get();
        self.submitted.set(seq + 1);
        let record = Record {
            seq,
            done: 0,
            after: self.done.get(),
            operation,
            offset,
            bytes,
            flags,
            submit_ns: self.now(),
            complete_ns: 0,
            outcome: Outcome::Cancelled,
            crc32c: None,
        };
        Some(Going { trace: self, client, record, data: None })
    }

    fn now(&self) -> u64 {
        nanoseconds(self.clock.now()).saturating_sub(self.began)
    }

    fn put(&self, write: impl FnOnce(&mut String)) {
        self.tell_gap();
        let mut buffer = self.buffer.borrow_mut();
        buffer.clear();
        write(&mut buffer);
        buffer.push('\n');
        if self.gap.get() == 0 && self.sink.line(&buffer) {
            self.lines.set(self.lines.get() + 1);
        } else {
            self.gap.set(self.gap.get() + 1);
            self.dropped.set(self.dropped.get() + 1);
        }
        if buffer.capacity() > BUFFER_KEPT {
            *buffer = String::new();
        }
    }

    /// Says where lines are missing, once there is room to say it.
    fn tell_gap(&self) {
        let gap = self.gap.get();
        if gap > 0 {
            let mut line = String::new();
            write_dropped(gap, &mut line);
            line.push('\n');
            if self.sink.line(&line) {
                self.gap.set(0);
            }
        }
    }
}

fn nanoseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A request under way; its line is written when this is dropped.
pub(super) struct Going<'a> {
    trace: &'a Trace,
    client: Option<&'a str>,
    record: Record,
    data: Option<&'a [u8]>,
}

impl<'a> Going<'a> {
    /// What is written, for the line that wants it.
    pub(super) fn writing(&mut self, data: &'a [u8]) {
        let TraceOptions { hash, data: whole, .. } = self.trace.options;
        self.record.crc32c = hash.then(|| crc32c::crc32c(data));
        self.data = whole.then_some(data);
    }

    /// The request is over.
    pub(super) fn end<T>(mut self, result: &Result<T>) {
        self.record.outcome = match result {
            Ok(_) => Outcome::Done,
            Err(error) => Outcome::Failed(Box::new(IoError::clone(error))),
        };
    }

    /// The read is over, and this is what it brought.
    pub(super) fn end_read(mut self, result: &Result<()>, data: &[u8]) {
        if result.is_ok() && self.trace.options.hash {
            self.record.crc32c = Some(crc32c::crc32c(data));
        }
        self.end(result);
    }

    /// There was no such request: nothing is written, and its number is the next one's.
    pub(super) fn never_was(self) {
        self.trace.submitted.set(self.record.seq);
        std::mem::forget(self);
    }
}

impl Drop for Going<'_> {
    fn drop(&mut self) {
        let trace = self.trace;
        self.record.complete_ns = trace.now();
        self.record.done = trace.done.get();
        trace.done.set(self.record.done + 1);
        trace.put(|out| write_request(&self.record, self.client, self.data, out));
    }
}
