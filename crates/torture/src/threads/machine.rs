//! Everything that this mode takes from the machine: threads, and a time that is waited for.
//!
//! Elsewhere in this crate nothing depends on either, so that runs repeat (`cargo xtask rules`). Here they are the point. Time
//! decides one thing only: when nothing has been answered for as long as nobody would believe, the run counts as hanging.

use std::sync::{Condvar, Mutex};
use std::thread::{self, JoinHandle, Scope};
use std::time::Duration;

use super::disk::lock;

/// Starts a thread that may never end, and so belongs to nobody.
pub(super) fn start(work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    thread::Builder::new().name("torture".to_owned()).spawn(work)
}

/// Starts a thread for each of `all`. They begin to work together, and only if there could be one for each.
pub(super) fn crew<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    gate: &'scope Gate,
    all: impl IntoIterator<Item = T>,
    work: impl Fn(T) + Copy + Send + 'scope,
) -> std::io::Result<()> {
    for one in all {
        let job = move || {
            if gate.pass() {
                work(one);
            }
        };
        if let Err(error) = thread::Builder::new().name("queue".to_owned()).spawn_scoped(scope, job) {
            gate.open(false);
            return Err(error);
        }
    }
    gate.open(true);
    Ok(())
}

/// Where threads wait until all of them are there.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<Option<bool>>, Condvar);

impl Gate {
    fn open(&self, go: bool) {
        *lock(&self.0) = Some(go);
        self.1.notify_all();
    }

    /// Whether to go.
    fn pass(&self) -> bool {
        let mut open = lock(&self.0);
        loop {
            match *open {
                Some(go) => return go,
                None => open = self.1.wait(open).unwrap_or_else(std::sync::PoisonError::into_inner),
            }
        }
    }
}

/// Something that gets on, and ends.
pub(super) trait Progress {
    /// How far it is: grows with every step.
    fn steps(&self) -> usize;
    fn is_over(&self) -> bool;
}

/// Waits until it is over; false if it made no step for `patience`, and up to twice that.
pub(super) fn ends<T: Progress>(state: &Mutex<T>, over: &Condvar, patience: Duration) -> bool {
    let mut state = lock(state);
    loop {
        let before = state.steps();
        let (next, timeout) = over
            .wait_timeout_while(state, patience, |state| !state.is_over())
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        state = next;
        if state.is_over() {
            return true;
        }
        if timeout.timed_out() && state.steps() == before {
            return false;
        }
    }
}
