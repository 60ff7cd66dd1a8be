//! The power switch of a driver that may not be dropped.
//!
//! A power cut, and a finding, end a driver in the middle of what it does. The crate's caches assert, when they are
//! dropped, that nothing in them is unwritten, which is fair for a process that goes on and says nothing about one that is
//! gone. So what the crate holds is forgotten then: the device, and requests in flight, unless dropping requests is what
//! is tried. What it asked of the disk is kept here and dropped with the switch, so that little is lost by it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use blkproof_block::{IoError, Node, Result};

/// The answer of the disk: the bytes that were read.
type Asked = Pin<Box<dyn Future<Output = Result<Vec<u8>>>>>;

/// The disk of a driver, and what it is being asked.
#[derive(Default)]
pub(super) struct Power {
    node: RefCell<Option<Node>>,
    asked: RefCell<BTreeMap<u64, Asked>>,
    next: RefCell<u64>,
}

impl Power {
    pub(super) fn on(node: Node) -> Rc<Self> {
        Rc::new(Self { node: RefCell::new(Some(node)), ..Self::default() })
    }

    /// Takes the disk away, and drops everything that it is being asked.
    pub(super) fn off(&self) {
        let node = self.node.borrow_mut().take();
        let asked = std::mem::take(&mut *self.asked.borrow_mut());
        drop((node, asked));
    }

    pub(super) fn node(&self) -> Option<Node> {
        self.node.borrow().clone()
    }

    /// Asks the disk; once the power is off, the answer is that it is gone.
    pub(super) fn ask<F: Future<Output = Result<Vec<u8>>> + 'static>(
        self: &Rc<Self>,
        request: impl FnOnce(Node) -> F,
    ) -> Ticket {
        let mut next = self.next.borrow_mut();
        *next = next.wrapping_add(1);
        if let Some(node) = self.node() {
            self.asked.borrow_mut().insert(*next, Box::pin(request(node)));
        }
        Ticket { power: Rc::clone(self), number: *next }
    }
}

/// A question to the disk.
pub(super) struct Ticket {
    power: Rc<Power>,
    number: u64,
}

impl Future for Ticket {
    type Output = Result<Vec<u8>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Out of the table while it is polled: it may look at the table itself.
        let request = self.power.asked.borrow_mut().remove(&self.number);
        let Some(mut request) = request else { return Poll::Ready(Err(IoError::gone())) };
        let answer = request.as_mut().poll(cx);
        if answer.is_pending() {
            self.power.asked.borrow_mut().insert(self.number, request);
        }
        answer
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let request = self.power.asked.borrow_mut().remove(&self.number);
        drop(request);
    }
}

/// A request of the driver.
pub(super) struct Kept<F> {
    /// `None` when it is done.
    request: Option<Pin<Box<F>>>,
    droppable: bool,
}

impl<F: Future> Kept<F> {
    /// Unless it is `droppable`, dropping it in the middle forgets it.
    pub(super) fn new(request: F, droppable: bool) -> Self {
        Self { request: Some(Box::pin(request)), droppable }
    }
}

impl<T, F: Future<Output = Result<T>>> Future for Kept<F> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(request) = self.request.as_mut() else { return Poll::Ready(Err(IoError::gone())) };
        let answer = request.as_mut().poll(cx);
        if answer.is_ready() {
            self.request = None;
        }
        answer
    }
}

impl<F> Drop for Kept<F> {
    fn drop(&mut self) {
        if !self.droppable {
            std::mem::forget(self.request.take());
        }
    }
}
