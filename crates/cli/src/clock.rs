//! The clock of this machine, for nodes that wait or measure.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use blkproof_block::LocalBoxFuture;
use blkproof_fault::clock::Clock;

/// Time since the program began, and waiting on tokio's timers.
pub(crate) struct MachineClock(Instant);

impl MachineClock {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }
}

impl Clock for MachineClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn unix(&self) -> Duration {
        // A clock set before 1970 reads as 1970.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn sleep(&self, time: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }
}
