//! How long requests took: percentiles, and histograms whose bounds a user sets.
//!
//! Durations are kept with two significant digits (an error below 1 %) from 1 ns to one hour; what takes longer counts
//! as one hour, and says so in `max` alone. Count, sum, smallest and largest are exact.

use hdrhistogram::Histogram;

/// Longest duration told apart, in nanoseconds.
pub const LONGEST_NS: u64 = 3_600_000_000_000;

/// Percentiles of a snapshot.
pub const PERCENTILES: [f64; 6] = [50.0, 90.0, 95.0, 99.0, 99.9, 99.99];

/// Bins of one doubling of the duration in a snapshot.
const BINS_PER_OCTAVE: u64 = 4;

/// Durations of one kind of request.
#[derive(Debug)]
pub(super) struct Durations {
    histogram: Histogram<u64>,
    sum_ns: u128,
    min_ns: u64,
    max_ns: u64,
}

/// Durations of one kind of request, as plain data.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Latency {
    /// Requests measured.
    pub count: u64,
    /// Sum of all durations, in nanoseconds.
    pub total_ns: u64,
    /// Shortest; 0 without requests.
    pub min_ns: u64,
    /// Longest; 0 without requests.
    pub max_ns: u64,
    /// Duration that so many per cent of the requests did not exceed, for each of [`PERCENTILES`]; empty without
    /// requests.
    pub percentiles: Vec<(f64, u64)>,
    /// Requests by duration, four bins for each doubling; bins without requests are left out.
    pub bins: Vec<Bin>,
}

/// Requests that took at least `from_ns` and less than `to_ns`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bin {
    /// Lower bound, included.
    pub from_ns: u64,
    /// Upper bound, not included.
    pub to_ns: u64,
    /// Requests.
    pub count: u64,
}

impl Latency {
    /// Mean duration in nanoseconds; 0 without requests.
    pub fn mean_ns(&self) -> u64 {
        self.total_ns.checked_div(self.count).unwrap_or(0)
    }

    /// The duration that `percent` of the requests did not exceed, if a snapshot has it.
    pub fn percentile(&self, percent: f64) -> Option<u64> {
        self.percentiles.iter().find(|(of, _)| (of - percent).abs() < 1e-9).map(|(_, value)| *value)
    }
}

impl Durations {
    pub(super) fn new() -> Self {
        let histogram =
            Histogram::new_with_bounds(1, LONGEST_NS, 2).expect("1 .. an hour with 2 digits is a valid range");
        Self { histogram, sum_ns: 0, min_ns: u64::MAX, max_ns: 0 }
    }

    pub(super) fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns);
        self.sum_ns += u128::from(ns);
        self.min_ns = self.min_ns.min(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    pub(super) fn total_ns(&self) -> u64 {
        u64::try_from(self.sum_ns).unwrap_or(u64::MAX)
    }

    pub(super) fn snapshot(&self) -> Latency {
        let count = self.histogram.len();
        if count == 0 {
            return Latency::default();
        }
        let value_at = |percent: f64| {
            // What the histogram answers is the upper end of a bucket, which may lie beyond anything seen.
            let value = self.histogram.value_at_percentile(percent);
            (percent, value.clamp(self.min_ns, self.max_ns))
        };
        let mut bins: Vec<Bin> = Vec::new();
        for recorded in self.histogram.iter_recorded() {
            let (from_ns, to_ns) = bin_of(recorded.value_iterated_to());
            match bins.last_mut() {
                Some(last) if last.from_ns == from_ns => last.count += recorded.count_since_last_iteration(),
                _ => bins.push(Bin { from_ns, to_ns, count: recorded.count_since_last_iteration() }),
            }
        }
        Latency {
            count,
            total_ns: self.total_ns(),
            min_ns: self.min_ns,
            max_ns: self.max_ns,
            percentiles: PERCENTILES.into_iter().map(value_at).collect(),
            bins,
        }
    }
}

/// The bin of a duration. Bounds of bins are bounds of the histogram's own buckets, so that no bucket is torn apart.
fn bin_of(ns: u64) -> (u64, u64) {
    let octave = 1_u64 << ns.max(1).ilog2();
    let step = (octave / BINS_PER_OCTAVE).max(1);
    let from = if ns == 0 { 0 } else { octave + (ns - octave) / step * step };
    (from, if ns == 0 { 1 } else { from + step })
}

/// A histogram with bounds of the user's own, as `block-latency-histogram-set` sets them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Boundaries {
    /// Bounds between bins, in nanoseconds, ascending.
    pub boundaries: Vec<u64>,
    /// Requests of each bin; one bin more than there are bounds. A bound belongs to the bin above it.
    pub bins: Vec<u64>,
}

/// Bounds that are none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadBoundaries {
    /// Nothing between bins.
    #[error("a latency histogram needs at least one boundary")]
    Empty,
    /// Not ascending.
    #[error("latency boundaries must ascend: {after} ns stands behind {before} ns")]
    Order {
        /// The bound before.
        before: u64,
        /// The bound that is not greater.
        after: u64,
    },
    /// More than anybody looks at.
    #[error("{0} latency boundaries are too many; at most 1024 are kept")]
    Many(usize),
}

/// Bounds kept at most.
const BOUNDARIES_MAX: usize = 1024;

impl Boundaries {
    /// Empty bins between these bounds.
    ///
    /// # Errors
    /// If there are none, or they do not ascend from above 0.
    pub fn new(boundaries: Vec<u64>) -> Result<Self, BadBoundaries> {
        if boundaries.is_empty() {
            return Err(BadBoundaries::Empty);
        }
        if boundaries.len() > BOUNDARIES_MAX {
            return Err(BadBoundaries::Many(boundaries.len()));
        }
        let mut before = 0;
        for &after in &boundaries {
            if after <= before {
                return Err(BadBoundaries::Order { before, after });
            }
            before = after;
        }
        let bins = vec![0; boundaries.len() + 1];
        Ok(Self { boundaries, bins })
    }

    pub(super) fn record(&mut self, ns: u64) {
        let bin = self.boundaries.partition_point(|&bound| bound <= ns);
        if let Some(bin) = self.bins.get_mut(bin) {
            *bin += 1;
        }
    }

    pub(super) fn clear(&mut self) {
        self.bins.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same figures by the plainest way there is: sort everything.
    fn plain_percentile(sorted: &[u64], percent: f64) -> u64 {
        let index =
            sorted.iter().zip(1_u32..).position(|(_, rank)| f64::from(rank) >= percent / 100.0 * sorted.len() as f64);
        sorted[index.unwrap_or(sorted.len() - 1)]
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_list() {
        let mut choices = blkproof_block::choice::Choices::new(4);
        for (name, bound) in [("ns", 200), ("us", 90_000), ("ms", 80_000_000), ("s", 30_000_000_000_u64)] {
            let mut durations = Durations::new();
            let mut all: Vec<u64> =
                (0..20_000).map(|_| 1 + choices.below(bound) * choices.below(1000) / 1000).collect();
            all.iter().for_each(|&ns| durations.record(ns));
            all.sort_unstable();
            let seen = durations.snapshot();
            assert_eq!((seen.count, seen.min_ns), (20_000, all[0]), "{name}");
            assert_eq!((seen.max_ns, seen.total_ns), (all[19_999], all.iter().sum()), "{name}");
            for (percent, got) in seen.percentiles {
                let want = plain_percentile(&all, percent);
                assert!(got.abs_diff(want) * 100 <= want.max(100), "{name}: p{percent} is {got}, not {want}");
            }
            assert_eq!(seen.bins.iter().map(|bin| bin.count).sum::<u64>(), 20_000, "{name}");
            for bin in seen.bins {
                let want = all.iter().filter(|&&ns| (bin.from_ns..bin.to_ns).contains(&ns)).count() as u64;
                assert_eq!(bin.count, want, "{name}: {bin:?}");
            }
        }
    }

    #[test]
    fn the_check_of_percentiles_sees_a_wrong_one() {
        // Planted: a percentile taken from the other end, as a wrong sign would.
        let mut durations = Durations::new();
        let all: Vec<u64> = (1..=1000).collect();
        all.iter().for_each(|&ns| durations.record(ns));
        let wrong = durations.histogram.value_at_percentile(100.0 - 99.0);
        let want = plain_percentile(&all, 99.0);
        assert!(wrong.abs_diff(want) * 100 > want.max(100), "p99 {wrong} would pass for {want}");
    }

    #[test]
    fn what_takes_hours_is_kept_as_an_hour() {
        let mut durations = Durations::new();
        for ns in [0, u64::MAX, LONGEST_NS + 1] {
            durations.record(ns);
        }
        let seen = durations.snapshot();
        assert_eq!((seen.count, seen.min_ns, seen.max_ns, seen.total_ns), (3, 0, u64::MAX, u64::MAX));
        assert_eq!(seen.bins.iter().map(|bin| bin.count).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(Durations::new().snapshot(), Latency::default());
    }

    #[test]
    fn bins_join_without_gap_or_overlap() {
        let mut end = 0;
        while end < LONGEST_NS {
            let (from, to) = bin_of(end);
            assert_eq!(from, end);
            assert!(to > from && bin_of(to - 1) == (from, to), "{from}..{to}");
            end = to;
        }
    }

    #[test]
    fn a_bound_belongs_to_the_bin_above_it() {
        let mut bins = Boundaries::new(vec![10, 50, 100]).unwrap();
        for ns in [0, 9, 10, 49, 50, 99, 100, u64::MAX] {
            bins.record(ns);
        }
        assert_eq!(bins.bins, [2, 2, 2, 2]);
        for (list, want) in [
            (vec![], BadBoundaries::Empty),
            (vec![0], BadBoundaries::Order { before: 0, after: 0 }),
            (vec![5, 5], BadBoundaries::Order { before: 5, after: 5 }),
            (vec![5, 4], BadBoundaries::Order { before: 5, after: 4 }),
            ((1..2000).collect(), BadBoundaries::Many(1999)),
        ] {
            assert_eq!(Boundaries::new(list).unwrap_err(), want);
        }
    }
}
