//! What was asked and answered, in one order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use blkproof_block::{ByteRange, IoError};

use super::disk::lock;
use super::machine::{self, Progress};
use crate::plan::{Act, OpId};
use crate::run::Panic;
use crate::target::Checked;

/// One thing that was heard.
#[derive(Debug)]
pub(super) enum Heard {
    /// From here on findings are of this phase.
    Phase(&'static str),
    /// A request is about to be sent.
    Sent(OpId, Act),
    /// A read, or a piece of it, brought these bytes.
    Read(OpId, ByteRange, Vec<u8>),
    /// It was answered.
    Ended(OpId, Result<(), Failure>),
    /// The image was opened: the size of the guest's disk.
    Opened(Result<u64, Failure>),
    /// It was closed.
    Closed(Result<(), Failure>),
    /// The format check's verdict.
    Checked(Checked),
    /// The driver panicked, at work on this request or none.
    Panicked(Option<OpId>, Panic),
    /// Nothing can be said of this plan: it asks for what there is not.
    Unfit(String),
}

/// An error, and what excuses it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    pub(super) error: IoError,
    /// Something failed below since the request was sent, or the error says so itself.
    pub(super) injected: bool,
    /// The range ends beyond the disk.
    pub(super) beyond: bool,
}

#[derive(Debug, Default)]
struct Pages {
    heard: Vec<Heard>,
    over: bool,
}

impl Progress for Pages {
    fn steps(&self) -> usize {
        self.heard.len()
    }

    fn is_over(&self) -> bool {
        self.over
    }
}

/// The one order of events of a run.
#[derive(Debug, Default)]
pub(super) struct Record {
    pages: Mutex<Pages>,
    over: Condvar,
    stopped: AtomicBool,
}

impl Record {
    pub(super) fn note(&self, heard: Heard) {
        lock(&self.pages).heard.push(heard);
    }

    /// Nothing more is to be begun.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(super) fn close(&self) {
        lock(&self.pages).over = true;
        self.over.notify_all();
    }

    /// Waits for the end; false if there is none.
    pub(super) fn ends(&self, patience: Duration) -> bool {
        machine::ends(&self.pages, &self.over, patience)
    }

    /// What was heard so far.
    pub(super) fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut lock(&self.pages).heard)
    }
}
