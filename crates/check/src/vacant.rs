//! Stretches of the file that nothing refers to, as the map of the file is drawn: where lost tables and their data are.

use std::ops::Range;

use crate::budget::Budget;
use crate::map::Class;

/// Stretches kept at most; and a share of the memory they may take.
const MAX: usize = 1 << 16;
const STEP: usize = 1024;

/// A stretch that nothing refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) range: Range<u64>,
    /// Whether the format counts it as in use, or its count is not known.
    pub(crate) counted: bool,
}

/// Stretches in the order of the file, apart.
#[derive(Debug, Default)]
pub(crate) struct Vacant {
    runs: Vec<Run>,
    /// Whether some were left out.
    pub(crate) cut: bool,
}

impl Vacant {
    /// Takes note of a stretch; called in order.
    pub(crate) fn note(&mut self, range: &Range<u64>, class: Class, memory: u64, budget: &Budget) {
        let counted = match class {
            Class::Free => false,
            Class::Leaked | Class::Unknown => true,
            _ => return,
        };
        if let Some(last) = self.runs.last_mut()
            && last.range.end == range.start
            && last.counted == counted
        {
            last.range.end = range.end;
            return;
        }
        if self.runs.len() == self.runs.capacity() {
            let bytes = (STEP as u64).saturating_mul(size_of::<Run>() as u64);
            let held = (self.runs.len() as u64).saturating_mul(size_of::<Run>() as u64);
            if self.runs.len() >= MAX || held.saturating_add(bytes) > memory / 16 || budget.take(bytes).is_err() {
                self.cut = true;
                return;
            }
            self.runs.reserve_exact(STEP);
        }
        self.runs.push(Run { range: range.clone(), counted });
    }

    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The stretch a place is in.
    pub(crate) fn at(&self, place: u64) -> Option<&Run> {
        let index = self.runs.partition_point(|run| run.range.end <= place);
        self.runs.get(index).filter(|run| run.range.contains(&place))
    }

    /// Bytes of a range that are counted as in use, and that nothing refers to.
    pub(crate) fn counted_within(&self, range: &Range<u64>) -> u64 {
        self.sum(range, |run| run.counted)
    }

    /// Bytes of a range that nothing refers to.
    pub(crate) fn within(&self, range: &Range<u64>) -> u64 {
        self.sum(range, |_| true)
    }

    fn sum(&self, range: &Range<u64>, of: impl Fn(&Run) -> bool) -> u64 {
        let first = self.runs.partition_point(|run| run.range.end <= range.start);
        let runs = self.runs.iter().skip(first).take_while(|run| run.range.start < range.end);
        runs.filter(|run| of(run)).fold(0, |all, run| {
            let (start, end) = (run.range.start.max(range.start), run.range.end.min(range.end));
            all.saturating_add(end.saturating_sub(start))
        })
    }

    /// All bytes that are counted as in use, and that nothing refers to.
    pub(crate) fn counted(&self) -> u64 {
        self.counted_within(&(0..u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_kept_apart_and_found() {
        let budget = Budget::new(1 << 20);
        let mut vacant = Vacant::default();
        for (range, class) in [
            (0..10, Class::Header),
            (10..20, Class::Leaked),
            (20..30, Class::Leaked),
            (30..40, Class::Free),
            (40..50, Class::Data),
            (50..60, Class::Unknown),
        ] {
            vacant.note(&range, class, 1 << 20, &budget);
        }
        let run = |range, counted| Run { range, counted };
        assert_eq!(vacant.runs(), [run(10..30, true), run(30..40, false), run(50..60, true)]);
        assert_eq!(vacant.at(29), Some(&run(10..30, true)));
        assert_eq!(vacant.at(9), None);
        assert_eq!(vacant.at(60), None);
        assert_eq!((vacant.counted(), vacant.counted_within(&(25..55))), (30, 10));
        let mut small = Vacant::default();
        for at in 0..5000u64 {
            small.note(&(at * 10..at * 10 + 5), Class::Free, 1 << 20, &budget);
        }
        let bytes = size_of_val(small.runs());
        assert!(small.cut && bytes <= 1 << 16 && bytes > 1 << 15, "{bytes}");
    }
}
