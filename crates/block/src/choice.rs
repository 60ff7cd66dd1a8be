//! Decisions that a seed determines for ever.
//!
//! Counter-based, after the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
//! generators", 2014): the decision for one counter does not depend on how many others were taken (CM 8).

/// 64 well-mixed bits for `counter` under `seed`.
pub const fn hash(seed: u64, counter: u64) -> u64 {
    mix(mix(seed.wrapping_add(GOLDEN)) ^ counter.wrapping_mul(GOLDEN).wrapping_add(1))
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream of decisions under one seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choices {
    seed: u64,
    counter: u64,
}

impl Choices {
    /// The stream of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self { seed, counter: 0 }
    }

    /// An independent stream for one subject, say one operation: its draws shift nobody else's.
    pub const fn stream(&self, subject: u64) -> Self {
        Self::new(hash(self.seed ^ 0x5354_5245_414d, subject))
    }

    /// The next 64 bits.
    #[allow(clippy::should_implement_trait, reason = "an endless stream is no iterator")]
    pub const fn next(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(1);
        hash(self.seed, self.counter)
    }

    /// A number below `bound`; 0 if `bound` is 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        let wide = (self.next() as u128).wrapping_mul(bound as u128);
        (wide >> 64) as u64
    }

    /// An index into something of `len` elements.
    #[allow(clippy::cast_possible_truncation, reason = "the number is below a usize")]
    pub const fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True `per_mille` times out of a thousand.
    pub const fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1000) < per_mille as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seed must mean the same for ever: these numbers never change.
    #[test]
    fn test_vectors() {
        let table = [
            (0, 0, 0x9e01_6029_3a33_aaf7),
            (0, 1, 0x4870_e329_6270_82a1),
            (1, 0, 0x5c52_bd40_54e9_58c9),
            (0x0123_4567_89ab_cdef, 42, 0x91bd_0a34_8c0f_245b),
            (u64::MAX, u64::MAX, 0x842e_b0ca_acfc_b7f6),
        ];
        for (seed, counter, want) in table {
            assert_eq!(hash(seed, counter), want, "hash({seed:#x}, {counter}) = {:#x}", hash(seed, counter));
        }
    }

    #[test]
    fn below_stays_below_and_reaches_everything() {
        let mut choices = Choices::new(7);
        let mut seen = [0; 5];
        for _ in 0..1000 {
            seen[choices.index(5)] += 1;
        }
        assert!(seen.iter().all(|&n| n > 150), "{seen:?}");
        assert_eq!(choices.below(0), 0);
        assert!((0..100).all(|_| !choices.chance(0) && choices.chance(1000)));
    }
}
