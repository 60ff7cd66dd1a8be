//! A set of block indices: a bit for each below a limit, a tree for the few above it.
//!
//! A hostile map may name any index below 2^32. One bit each would cost 512 MiB; this costs a bit for each entry of the
//! map, which lies in the file, and a tree node for each entry that exceeds the map's length.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeSet;

/// A set of numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Bits {
    words: Vec<u64>,
    rest: BTreeSet<u32>,
}

fn split(index: u32) -> (usize, u64) {
    (usize::try_from(index >> 6).unwrap_or(usize::MAX), 1u64.wrapping_shl(index & 63))
}

impl Bits {
    /// Adds `index`, as a bit if it is below `limit`; whether it is new.
    pub(super) fn insert(&mut self, index: u32, limit: u32) -> bool {
        let (word, bit) = split(index);
        if word >= self.words.len() && index < limit {
            self.words.resize(word.saturating_add(1), 0);
            // What was added under a smaller limit moves over.
            let end = u32::try_from(self.words.len()).unwrap_or(u32::MAX).saturating_mul(64);
            let above = self.rest.split_off(&end);
            for index in std::mem::replace(&mut self.rest, above) {
                let (word, bit) = split(index);
                if let Some(word) = self.words.get_mut(word) {
                    *word |= bit;
                }
            }
        }
        match self.words.get_mut(word) {
            Some(word) => {
                let new = *word & bit == 0;
                *word |= bit;
                new
            }
            None => self.rest.insert(index),
        }
    }

    pub(super) fn remove(&mut self, index: u32) {
        let (word, bit) = split(index);
        match self.words.get_mut(word) {
            Some(word) => *word &= !bit,
            None => {
                self.rest.remove(&index);
            }
        }
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        let (word, bit) = split(index);
        self.words.get(word).map_or_else(|| self.rest.contains(&index), |word| word & bit != 0)
    }

    /// The smallest number from `from` on that is not in the set.
    pub(super) fn first_missing(&self, from: u32) -> u32 {
        let mut index = from;
        while let Some(&word) = self.words.get(split(index).0) {
            let free = !word & u64::MAX.wrapping_shl(index & 63);
            if free != 0 {
                return (index & !63).saturating_add(free.trailing_zeros());
            }
            index = (index | 63).saturating_add(1);
        }
        while self.rest.contains(&index) {
            index = index.saturating_add(1);
        }
        index
    }

    /// One more than the largest number; 0 if there is none.
    pub(super) fn end(&self) -> u32 {
        if let Some(&last) = self.rest.last() {
            return last.saturating_add(1);
        }
        let Some(word) = self.words.iter().rposition(|word| *word != 0) else { return 0 };
        let bits = self.words.get(word).map_or(0, |word| 64u32.saturating_sub(word.leading_zeros()));
        u32::try_from(word).unwrap_or(u32::MAX).saturating_mul(64).saturating_add(bits)
    }

    /// Takes `by` off every number and drops those below.
    pub(super) fn rebase(&self, by: u32, limit: u32) -> Self {
        let mut moved = Self::default();
        for index in by..self.end() {
            if self.contains(index) {
                moved.insert(index.saturating_sub(by), limit);
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_plain_set() {
        let mut plain = BTreeSet::new();
        let mut bits = Bits::default();
        let mut state = 7u64;
        for step in 0..4000u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let index = u32::try_from(state >> 33).unwrap() % 400;
            let limit = 100 + step / 20;
            if state >> 20 & 3 == 0 {
                plain.remove(&index);
                bits.remove(index);
            } else {
                assert_eq!(bits.insert(index, limit), plain.insert(index), "step {step}");
            }
            assert_eq!(bits.end(), plain.last().map_or(0, |last| last + 1), "step {step}");
            let first = (index..).find(|index| !plain.contains(index)).unwrap();
            assert_eq!(bits.first_missing(index), first, "step {step}");
            assert_eq!(bits.contains(index), plain.contains(&index), "step {step}");
        }
        let moved = bits.rebase(50, 200);
        for index in 0..400 {
            assert_eq!(moved.contains(index), plain.contains(&(index + 50)), "{index}");
        }
    }
}
