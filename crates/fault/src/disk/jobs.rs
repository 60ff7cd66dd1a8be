//! Work on the medium that a power cut can stop.
//!
//! A job is a future that writes to the node below. The request that needs it polls it, but does not own it: a power
//! cut drops all jobs at once, whoever was about to poll them, and wakes their requests, which find their job gone.
//! After that and a drain nothing more reaches the medium.
//!
//! # Invariants
//! - A job runs only while its request is polled, and is dropped with it: nothing runs on its own.
//! - No borrow of the table is held while a job is polled or dropped: it may come back here.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use blkproof_block::{IoError, LocalBoxFuture, Result};

type Job = LocalBoxFuture<'static, Result<()>>;

/// The jobs of a disk.
#[derive(Default)]
pub(super) struct Jobs {
    next: Cell<u64>,
    slots: RefCell<BTreeMap<u64, Slot>>,
}

#[derive(Default)]
struct Slot {
    /// Taken out while it is polled.
    job: Option<Job>,
    waker: Option<Waker>,
}

impl Jobs {
    /// Runs a job; `ENOTCONN` if the power was cut before its end.
    pub(super) fn run(&self, job: impl Future<Output = Result<()>> + 'static) -> Running<'_> {
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        let job: Job = Box::pin(job);
        self.slots.borrow_mut().insert(number, Slot { job: Some(job), waker: None });
        Running { jobs: self, number }
    }

    /// Ends all jobs where they stand.
    pub(super) fn cut(&self) {
        let slots = self.slots.take();
        for slot in slots.into_values() {
            drop(slot.job);
            if let Some(waker) = slot.waker {
                waker.wake();
            }
        }
    }
}

/// What a request without power hears: its connection is gone.
pub(super) fn no_power() -> IoError {
    IoError::gone().detail("the disk has no power")
}

/// A job in progress.
pub(super) struct Running<'a> {
    jobs: &'a Jobs,
    number: u64,
}

impl Future for Running<'_> {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let job = self.jobs.slots.borrow_mut().get_mut(&self.number).and_then(|slot| slot.job.take());
        let Some(mut job) = job else { return Poll::Ready(Err(no_power())) };
        let done = job.as_mut().poll(cx);
        if done.is_ready() {
            drop(job);
            self.jobs.slots.borrow_mut().remove(&self.number);
            return done;
        }
        {
            let mut slots = self.jobs.slots.borrow_mut();
            if let Some(slot) = slots.get_mut(&self.number) {
                slot.job = Some(job);
                slot.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        // The power went while the job was polled.
        drop(job);
        Poll::Ready(Err(no_power()))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let slot = self.jobs.slots.borrow_mut().remove(&self.number);
        drop(slot);
    }
}
