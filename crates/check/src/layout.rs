//! Who lies where, for formats without reference counts: every extent once, sorted, and the places two of them share.
//!
//! Extents that follow each other in the file and on the guest's disk are kept as one. Memory is paid for; a caller
//! with more extents than that works in windows of the file (`tally::in_windows`), adding only what begins inside the
//! window.

use std::ops::Range;

use crate::budget::{Budget, Full};
use crate::map::{Claim, Class};
use crate::tally::in_windows;

/// Below this number of units a window is not split any more: as many references to it as memory holds must overlap.
const WINDOW_MIN: u64 = 1 << 15;

const STEP: usize = 4096;

pub(crate) struct Layout<'b> {
    extents: Vec<Claim>,
    budget: &'b Budget,
    taken: u64,
}

impl<'b> Layout<'b> {
    pub(crate) fn new(budget: &'b Budget) -> Self {
        Self { extents: Vec::new(), budget, taken: 0 }
    }

    /// Adds `len` bytes from `start`. `index` is the guest offset for data, else which one of its class it is.
    pub(crate) fn add(&mut self, start: u64, len: u64, class: Class, index: u64) -> Result<(), Full> {
        if len == 0 {
            return Ok(());
        }
        if let Some(last) = self.extents.last_mut()
            && class.is_data()
            && last.class == class
            && last.range().end == start
            && last.index.checked_add(last.len) == Some(index)
        {
            last.len = last.len.saturating_add(len);
            return Ok(());
        }
        if self.extents.len() == self.extents.capacity() {
            // Grown in steps that are paid for, old and new part together while it is copied.
            let more = STEP.max(self.extents.len() / 2);
            let bytes = (more as u64).saturating_mul(size_of::<Claim>() as u64);
            self.budget.take(bytes)?;
            self.taken = self.taken.saturating_add(bytes);
            self.extents.reserve_exact(more);
        }
        self.extents.push(Claim { start, len, class, index });
        Ok(())
    }

    /// Sorts, and goes over `within`: `piece` gets every stretch in order, with its class or `None` where nobody is;
    /// `overlap` gets each pair that shares bytes (with the earlier claimant that reaches farthest, so that the number
    /// of pairs stays below the number of extents).
    pub(crate) fn sweep(
        &mut self,
        within: Range<u64>,
        mut overlap: impl FnMut(&Claim, &Claim, Range<u64>),
        mut piece: impl FnMut(Range<u64>, Option<Class>),
    ) {
        self.extents.sort_unstable();
        let mut line = SweepLine { at: within.start, farthest: None, shared_to: 0 };
        for claim in &self.extents {
            line.advance(claim.start.min(within.end), &mut piece);
            let end = claim.range().end;
            match line.farthest.filter(|before| before.range().end > claim.start) {
                Some(before) => {
                    overlap(&before, claim, claim.start..end.min(before.range().end));
                    line.shared_to = line.shared_to.max(end.min(before.range().end));
                    if end > before.range().end {
                        line.farthest = Some(*claim);
                    }
                }
                None => line.farthest = Some(*claim),
            }
        }
        line.advance(within.end, &mut piece);
    }

    /// The metadata among the extents, by start.
    pub(crate) fn metadata(&self) -> Vec<Claim> {
        let mut all: Vec<Claim> = self.extents.iter().filter(|claim| !claim.class.is_data()).copied().collect();
        all.sort_unstable();
        all
    }
}

impl Drop for Layout<'_> {
    fn drop(&mut self) {
        self.budget.give(self.taken);
    }
}

/// Where the sweep is. Of all extents that cover a place, the one that reaches farthest is enough to know what lies
/// there: below `shared_to` there are two or more.
struct SweepLine {
    at: u64,
    farthest: Option<Claim>,
    shared_to: u64,
}

impl SweepLine {
    fn advance(&mut self, to: u64, piece: &mut impl FnMut(Range<u64>, Option<Class>)) {
        while self.at < to {
            let (end, class) = match self.farthest {
                _ if self.shared_to > self.at => (self.shared_to, Some(Class::Conflict)),
                Some(one) if one.range().end > self.at => (one.range().end, Some(one.class)),
                _ => (to, None),
            };
            let end = end.min(to);
            piece(self.at..end, class);
            self.at = end;
        }
    }
}

/// Goes over a file of `len` bytes in as few windows of whole units as memory allows. `fill` adds everything that reaches into a
/// window; then `each` gets the layout, and whether it is complete: where even in the smallest window too many claim the same
/// place, some of them are missing. `state` is what both work on.
pub(crate) fn window_by_window<S>(
    budget: &Budget,
    len: u64,
    unit: u64,
    state: &mut S,
    mut fill: impl FnMut(&mut S, &Range<u64>, &mut Layout<'_>) -> Result<(), Full>,
    mut each: impl FnMut(&mut S, &Range<u64>, &mut Layout<'_>, bool),
) -> Result<(), Full> {
    in_windows(len.div_ceil(unit.max(1)), |units| {
        let smallest = units.end.saturating_sub(units.start) <= WINDOW_MIN;
        let window = units.start.saturating_mul(unit)..units.end.saturating_mul(unit).min(len);
        let mut layout = Layout::new(budget);
        let filled = fill(state, &window, &mut layout);
        // Claims that do not overlap fit into the smallest window.
        if filled.is_err() && !smallest {
            return Err(Full);
        }
        each(state, &window, &mut layout, filled.is_ok());
        Ok(())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn shared_stretches_are_told_and_shown() {
        let budget = Budget::new(1 << 20);
        let mut layout = Layout::new(&budget);
        for (start, len, class, index) in [
            (100, 50, Class::Data, 0),
            (150, 50, Class::Data, 50),
            (0, 64, Class::Header, 0),
            (120, 10, Class::BlockMap, 0),
            (190, 30, Class::Data, 900),
        ] {
            layout.add(start, len, class, index).unwrap();
        }
        let (mut pairs, mut pieces) = (Vec::new(), Vec::new());
        layout.sweep(
            10..300,
            |first, second, shared| pairs.push((first.start, second.start, shared)),
            |range, class| pieces.push((range, class)),
        );
        assert_eq!(pairs, [(100, 120, 120..130), (100, 190, 190..200)]);
        assert_eq!(
            pieces,
            [
                (10..64, Some(Class::Header)),
                (64..100, None),
                (100..120, Some(Class::Data)),
                (120..130, Some(Class::Conflict)),
                (130..190, Some(Class::Data)),
                (190..200, Some(Class::Conflict)),
                (200..220, Some(Class::Data)),
                (220..300, None),
            ]
        );
        assert_eq!(layout.metadata().len(), 2);
    }
}
