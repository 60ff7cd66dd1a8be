//! Time, from outside: a server passes the real clock in, a simulator its own.

use std::rc::Rc;
use std::time::Duration;

use blkproof_block::LocalBoxFuture;

/// What nodes know of time.
pub trait Clock {
    /// Time since some beginning; never goes back.
    fn now(&self) -> Duration;

    /// Time since 1970-01-01 UTC, for records that people and other programs read.
    fn unix(&self) -> Duration;

    /// Completes once `time` has passed.
    fn sleep(&self, time: Duration) -> LocalBoxFuture<'static, ()>;
}

/// A clock that everything in a process shares.
pub type SharedClock = Rc<dyn Clock>;

/// A clock that stands still: for graphs without delays and without figures in seconds, and for tests.
///
/// A sleep on it never ends, unless it is empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn unix(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep(&self, time: Duration) -> LocalBoxFuture<'static, ()> {
        if time.is_zero() { Box::pin(std::future::ready(())) } else { Box::pin(std::future::pending()) }
    }
}
