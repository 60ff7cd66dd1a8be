//! Figures over the last so many seconds (`timed_stats` of `query-blockstats`).
//!
//! Each interval has two windows of its length that begin half a length apart. The older one is asked, so an answer
//! covers between a half and the whole of the interval; memory and cost do not depend on how much happens in it.

/// Kinds of requests that intervals tell apart: reads, writes (write zeroes too) and flushes.
pub(super) const KINDS: usize = 3;

/// The last so many seconds, as plain data.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Timed {
    /// Its length in seconds.
    pub interval_s: u64,
    /// Reads.
    pub read: TimedKind,
    /// Writes and write zeroes.
    pub write: TimedKind,
    /// Flushes.
    pub flush: TimedKind,
}

/// One kind of request in the last so many seconds.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct TimedKind {
    /// Shortest request, in nanoseconds; 0 without requests.
    pub min_ns: u64,
    /// Longest.
    pub max_ns: u64,
    /// Mean.
    pub avg_ns: u64,
    /// Requests under way at a time, on average; of flushes not known, as in QEMU.
    pub queue_depth: f64,
}

#[derive(Clone, Copy, Debug)]
struct Sums {
    count: u64,
    sum: u128,
    min: u64,
    max: u64,
}

const NOTHING: Sums = Sums { count: 0, sum: 0, min: u64::MAX, max: 0 };

#[derive(Clone, Copy, Debug)]
struct Window {
    begins: u64,
    ends: u64,
    kinds: [Sums; KINDS],
}

#[derive(Debug)]
pub(super) struct Interval {
    seconds: u64,
    windows: [Window; 2],
}

impl Interval {
    /// An interval of `seconds`, which is not 0, at `now` ns.
    pub(super) fn new(seconds: u64, now: u64) -> Self {
        let length = Self::length(seconds);
        let window = |ends: u64| Window { begins: now, ends, kinds: [NOTHING; KINDS] };
        // The first turn of the second window is a short one, so that the two stay half a length apart.
        Self { seconds, windows: [window(now.saturating_add(length)), window(now.saturating_add(length / 2))] }
    }

    const fn length(seconds: u64) -> u64 {
        seconds.saturating_mul(1_000_000_000)
    }

    /// Begins anew every window whose time is over.
    fn turn(&mut self, now: u64) {
        let length = Self::length(self.seconds).max(1);
        for window in &mut self.windows {
            if let Some(late) = now.checked_sub(window.ends) {
                window.begins = window.ends.saturating_add(late / length * length);
                window.ends = window.begins.saturating_add(length);
                window.kinds = [NOTHING; KINDS];
            }
        }
    }

    pub(super) fn record(&mut self, kind: usize, ns: u64, now: u64) {
        self.turn(now);
        for window in &mut self.windows {
            if let Some(sums) = window.kinds.get_mut(kind) {
                sums.count += 1;
                sums.sum += u128::from(ns);
                sums.min = sums.min.min(ns);
                sums.max = sums.max.max(ns);
            }
        }
    }

    pub(super) fn snapshot(&mut self, now: u64) -> Timed {
        self.turn(now);
        let [a, b] = &self.windows;
        let oldest = if (a.begins, a.ends) <= (b.begins, b.ends) { a } else { b };
        let age = now.saturating_sub(oldest.begins);
        let kind = |sums: Sums| {
            if sums.count == 0 {
                return TimedKind::default();
            }
            let avg_ns = u64::try_from(sums.sum / u128::from(sums.count)).unwrap_or(u64::MAX);
            // By Little's law: time spent waiting, of all requests together, by time.
            let queue_depth = if age == 0 { 0.0 } else { super::millionths(sums.sum as f64 / age as f64) };
            TimedKind { min_ns: sums.min, max_ns: sums.max, avg_ns, queue_depth }
        };
        let [read, write, flush] = oldest.kinds.map(kind);
        let flush = TimedKind { queue_depth: 0.0, ..flush };
        Timed { interval_s: self.seconds, read, write, flush }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let mut interval = Interval::new(10, 0);
        interval.record(0, 1000, S);
        let seen = interval.snapshot(2 * S);
        assert_eq!((seen.read.min_ns, seen.read.max_ns, seen.read.avg_ns), (1000, 1000, 1000));
        for second in 3..60 {
            interval.record(0, 50 + second % 3, second * S);
            let seen = interval.snapshot(second * S).read;
            assert!(second <= 10 || seen.max_ns <= 52, "second {second}: {seen:?}");
            assert!(seen.min_ns >= 50 && seen.avg_ns >= seen.min_ns && seen.avg_ns <= seen.max_ns, "{seen:?}");
        }
        assert_eq!(interval.snapshot(59 * S).write, TimedKind::default());
        assert_eq!(interval.snapshot(600 * S).read, TimedKind::default());
    }

    #[test]
    fn an_answer_covers_at_least_half_of_the_interval() {
        let mut interval = Interval::new(10, 0);
        for tenth in 0..2000_u64 {
            // One request under way at all times.
            let now = (tenth + 1) * S / 10;
            interval.record(1, S / 10, now);
            let seen = interval.snapshot(now).write;
            if tenth >= 50 {
                assert!((seen.queue_depth - 1.0).abs() < 0.03, "at {now}: {seen:?}");
            }
        }
    }
}
