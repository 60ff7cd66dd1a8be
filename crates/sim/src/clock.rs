//! Virtual time: it stands still while anything can move, and then goes to the next moment somebody waits for.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use blkproof_block::LocalBoxFuture;
use blkproof_fault::clock::Clock;

/// A clock that a [`Simulation`](crate::Simulation) moves. Cloning gives another handle on the same one.
#[derive(Clone, Debug, Default)]
pub struct SimClock(Rc<State>);

#[derive(Debug, Default)]
struct State {
    now: Cell<Duration>,
    next: Cell<u64>,
    sleepers: RefCell<BTreeMap<(Duration, u64), Waker>>,
}

impl SimClock {
    /// Goes to the next moment somebody waits for, and wakes whoever waits for it; `false` if nobody does.
    pub(crate) fn advance(&self) -> bool {
        let first = self.0.sleepers.borrow().keys().next().map(|&(at, _)| at);
        let Some(at) = first else { return false };
        self.0.now.set(self.0.now.get().max(at));
        loop {
            let waker = {
                let mut sleepers = self.0.sleepers.borrow_mut();
                match sleepers.first_entry() {
                    Some(entry) if entry.key().0 <= at => entry.remove(),
                    _ => return true,
                }
            };
            waker.wake();
        }
    }
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        self.0.now.get()
    }

    /// Time since 1970 is the clock's own: a run is the same on every day.
    fn unix(&self) -> Duration {
        self.0.now.get()
    }

    fn sleep(&self, time: Duration) -> LocalBoxFuture<'static, ()> {
        let number = self.0.next.get();
        self.0.next.set(number.saturating_add(1));
        let at = self.0.now.get().saturating_add(time);
        Box::pin(Sleep { clock: self.clone(), key: (at, number) })
    }
}

struct Sleep {
    clock: SimClock,
    key: (Duration, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let state = &self.clock.0;
        if self.key.0 <= state.now.get() {
            return Poll::Ready(());
        }
        state.sleepers.borrow_mut().insert(self.key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.clock.0.sleepers.borrow_mut().remove(&self.key);
    }
}
