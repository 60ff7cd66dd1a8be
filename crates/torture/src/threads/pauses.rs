//! How long a request below takes, so that threads meet.
//!
//! Whoever is between a question and what it does with the answer is interrupted there, if he asks the disk something: the
//! disk lets others go on. Pauses are drawn from a seed, the run's number and the request's name; they change how likely
//! threads are to meet, and decide nothing.

use blkproof_block::choice::hash;
use blkproof_sim::{IoKey, Schedule, Strategy};

/// Where in a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Site {
    /// Before anything is done.
    Before,
    /// Between two sectors.
    Between(u64),
    /// When all is done, before the driver hears of it.
    After,
}

impl Site {
    const fn number(self) -> u64 {
        match self {
            Self::Before => 0,
            Self::After => 1,
            Self::Between(sector) => sector.saturating_add(2),
        }
    }
}

/// Times that others are let go on, at most, is this power of two.
const ROUNDS: u64 = 8;

#[derive(Clone, Copy, Debug)]
pub(super) struct Pauses {
    seed: u64,
    /// Of a thousand sites.
    rate: u64,
}

impl Pauses {
    /// As a schedule has it. First in, first out is a disk that takes no time.
    pub(super) fn new(schedule: &Schedule, run: u64) -> Self {
        let rate = match schedule.strategy {
            Strategy::Fifo => 0,
            Strategy::Random => 500,
            Strategy::Delays { rate } => u64::from(rate),
            Strategy::Pct { .. } => 250,
        };
        Self { seed: hash(schedule.seed, run), rate }
    }

    pub(super) fn at(self, key: IoKey, site: Site) {
        let draw = hash(hash(self.seed, key.number()), site.number());
        // Between two sectors seldom: there are many of them.
        let rate = if let Site::Between(_) = site { self.rate / 16 } else { self.rate };
        if draw % 1000 >= rate {
            return;
        }
        let rounds = 1_u64 << ((draw >> 16) % ROUNDS);
        for _ in 0..rounds {
            match draw >> 32 & 1 {
                0 => std::thread::yield_now(),
                _ => (0..64).for_each(|_| std::hint::spin_loop()),
            }
        }
    }
}
