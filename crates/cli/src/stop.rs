//! The wish to stop: the first signal asks for it, the second one ends the program at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Whether somebody wished that this ends.
#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<State>);

#[derive(Default)]
struct State {
    asked: AtomicBool,
    /// Nothing is going on that could heed a wish.
    calm: AtomicBool,
}

impl Stop {
    /// Starts to listen for SIGINT and SIGTERM, on a thread of its own.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let stop = Self::default();
        let heard = stop.clone();
        // Without it Ctrl-C ends the program as it always does: nothing to say. No runtime: a check has no use for one,
        // and its memory is measured.
        let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return Ok(stop) };
        std::thread::Builder::new().name("signals".to_owned()).stack_size(64 << 10).spawn(move || {
            for _ in signals.forever() {
                if heard.0.calm.load(Ordering::Acquire) || heard.0.asked.swap(true, Ordering::AcqRel) {
                    std::process::exit(INTERRUPTED);
                }
                eprintln!("stopping: what is known so far follows; another signal ends at once");
            }
        })?;
        Ok(stop)
    }

    /// Whether somebody asked.
    pub(crate) fn asked(&self) -> bool {
        self.0.asked.load(Ordering::Acquire)
    }

    /// Something begins that heeds the wish.
    pub(crate) fn busy(&self) {
        self.0.calm.store(false, Ordering::Release);
    }

    /// It is over; until the next begins, a signal ends the program at once.
    pub(crate) fn calm(&self) {
        self.0.calm.store(true, Ordering::Release);
    }
}

/// Exit status of a program that SIGINT ended, as shells say it.
const INTERRUPTED: i32 = 130;
