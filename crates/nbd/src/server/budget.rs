//! Memory that peers can make us hold.
//!
//! Every connection may hold one request's payload of its own, whatever the others do, so that a peer which is slow
//! to send its data or to take ours never stops another. Whatever a connection wants to hold besides comes out of one
//! budget shared by all. Nothing waits for the shared budget: a connection that gets none has its own request in
//! flight, and goes on when that one is done.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One connection's way to memory.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    own_taken: Rc<Cell<bool>>,
    shared: Arc<Semaphore>,
}

/// Memory held; given back when dropped.
#[derive(Debug)]
pub(super) enum Charge {
    /// Too little to count.
    Free,
    /// The connection's own.
    Own(Rc<Cell<bool>>),
    /// Out of the shared budget.
    Shared(#[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit),
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Self::Own(taken) = self {
            taken.set(false);
        }
    }
}

impl Budget {
    pub(super) fn new(shared: Arc<Semaphore>) -> Self {
        Self { own_taken: Rc::new(Cell::new(false)), shared }
    }

    /// Takes `bytes`, `None` if this has to wait for a request of this connection.
    pub(super) fn take(&self, bytes: u64) -> Option<Charge> {
        if bytes == 0 {
            return Some(Charge::Free);
        }
        let permit =
            u32::try_from(bytes).ok().and_then(|bytes| Arc::clone(&self.shared).try_acquire_many_owned(bytes).ok());
        match permit {
            Some(permit) => Some(Charge::Shared(permit)),
            None if self.own_taken.replace(true) => None,
            None => Some(Charge::Own(Rc::clone(&self.own_taken))),
        }
    }
}
