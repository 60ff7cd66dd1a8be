//! Random decisions as functions of seed, rule, and sector, or how many requests the rule has seen: deleting one rule leaves
//! the fate of the others.
//!
//! Distributions are computed with whole numbers, so that they are the same on every machine.

use std::time::Duration;

use blkproof_block::choice::hash;

use crate::rule::{Delay, Rot};

/// What a decision is about; each has a stream of its own.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    Fire = 1,
    Tear = 2,
    Delay = 3,
    Sectors = 4,
    Rot = 5,
    Damage = 6,
}

/// How many sectors rot spreads to either side, and into how many parts that divides half a life.
const SPREAD_MAX: u32 = 8;

/// How much longer than [`Rot::half`] it takes half of all sectors to fall by themselves.
const ALONE: u32 = 6;

/// The decisions of one rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draw(u64);

impl Draw {
    /// Of the rule named `id`, under `seed`.
    pub(super) fn new(seed: u64, id: &str) -> Self {
        Self(id.bytes().fold(hash(seed, id.len() as u64), |key, byte| hash(key, u64::from(byte))))
    }

    /// 64 bits for `subject`: a sector, or which of the requests a rule has seen.
    pub(super) fn bits(self, stream: Stream, subject: u64) -> u64 {
        hash(hash(self.0, stream as u64), subject)
    }

    /// True in `part` of 2^32 cases.
    pub(super) fn chance(self, stream: Stream, subject: u64, part: u32) -> bool {
        (self.bits(stream, subject) >> 32) < u64::from(part)
    }

    /// Below `bound`; 0 if that is 0.
    pub(super) fn below(self, stream: Stream, subject: u64, bound: u64) -> u64 {
        scale(self.bits(stream, subject), bound)
    }

    /// How long the `nth` request waits.
    pub(super) fn delay(self, delay: Delay, nth: u64) -> Duration {
        match delay {
            Delay::Fixed(time) => time,
            Delay::Uniform(from, to) => {
                let spread = nanos(to.saturating_sub(from));
                from + Duration::from_nanos(self.below(Stream::Delay, nth, spread.saturating_add(1)))
            }
            Delay::Normal(mean, deviation) => {
                // The sum of twelve uniform draws has a variance of 1 and lies within 6 deviations.
                let sum: u64 = (0..12).map(|part| self.bits(Stream::Delay, hash(nth, part)) >> 32).sum();
                let off = (u128::from(sum.abs_diff(6 << 32)) * u128::from(nanos(deviation))) >> 32;
                let off = Duration::from_nanos(u64::try_from(off).unwrap_or(u64::MAX));
                if sum < 6 << 32 { mean.saturating_sub(off) } else { mean.saturating_add(off) }
            }
            Delay::Exponential(mean) => {
                // -ln u = -log2 u * ln 2.
                times(mean, (log2_inverse(self.bits(Stream::Delay, nth)) * 0xb172_17f7) >> 32)
            }
        }
    }

    /// Whether `sector` has fallen at this age: half of all sectors have when the age is `rot.half`.
    ///
    /// Few sectors rot by themselves, within [`ALONE`] times as long; from such a one the rot spreads, a sector further to
    /// either side in an equal part of `rot.half`, [`SPREAD_MAX`] sectors far. Nothing of that is kept:
    /// a sector asks its neighbours for the ages at which they fall.
    //
    // At the age h a sector stands if it and its 16 neighbours do. One that is d away has had the time w = h - d * h/8 to
    // fall, and has done so with a probability of w / (2 * ALONE * h), as log2_inverse is linear here. The product of the
    // others over all d is 0.504.
    pub(super) fn has_fallen(self, rot: Rot, sector: u64, age: Duration) -> bool {
        let step = rot.half / SPREAD_MAX;
        let alone = rot.half.saturating_mul(ALONE);
        let fell = |sector: u64, within: Duration| times(alone, log2_inverse(self.bits(Stream::Rot, sector))) <= within;
        (0..=SPREAD_MAX).any(|distance| {
            let Some(within) = age.checked_sub(step.saturating_mul(distance)) else { return false };
            let distance = u64::from(distance);
            sector.checked_sub(distance).is_some_and(|left| fell(left, within))
                || sector.checked_add(distance).is_some_and(|right| fell(right, within))
        })
    }
}

fn scale(bits: u64, bound: u64) -> u64 {
    u64::try_from((u128::from(bits) * u128::from(bound)) >> 64).unwrap_or(0)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// `-log2(bits / 2^64)` as 32.32 fixed point, with the logarithm between powers of two taken as linear (error < 0.09).
fn log2_inverse(bits: u64) -> u128 {
    let bits = bits.max(1);
    let zeros = bits.leading_zeros();
    // The bits behind the leading one, as a fraction.
    let fraction = (u128::from(bits << zeros) & u128::from(u64::MAX >> 1)) >> 31;
    ((u128::from(zeros) + 1) << 32) - fraction
}

/// `time` times a 32.32 fixed point number.
fn times(time: Duration, factor: u128) -> Duration {
    let nanos = (u128::from(nanos(time)) * factor) >> 32;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn draws(delay: Delay) -> Vec<Duration> {
        let draw = Draw::new(7, "rule");
        let mut all: Vec<_> = (0..20_000).map(|id| draw.delay(delay, id)).collect();
        all.sort();
        all
    }

    fn mean(all: &[Duration]) -> f64 {
        all.iter().map(Duration::as_secs_f64).sum::<f64>() / 20_000.0
    }

    #[test]
    fn delays_have_their_distributions() {
        let uniform = draws(Delay::Uniform(SECOND, 3 * SECOND));
        assert!(uniform[0] >= SECOND && uniform[19_999] <= 3 * SECOND);
        assert!((mean(&uniform) - 2.0).abs() < 0.02, "{}", mean(&uniform));
        let normal = draws(Delay::Normal(5 * SECOND, SECOND));
        assert!((mean(&normal) - 5.0).abs() < 0.03, "{}", mean(&normal));
        let within = normal.iter().filter(|time| (4.0..6.0).contains(&time.as_secs_f64())).count();
        assert!((13_200..14_100).contains(&within), "68 % lie within a deviation, not {within} of 20000");
        let exponential = draws(Delay::Exponential(SECOND));
        assert!((mean(&exponential) - 1.0).abs() < 0.06, "{}", mean(&exponential));
        assert!((exponential[10_000].as_secs_f64() - 0.693).abs() < 0.05, "{:?}", exponential[10_000]);
    }

    #[test]
    fn half_of_the_sectors_fall_in_half_the_life() {
        let draw = Draw::new(1, "rot");
        let fallen = |age| (0..20_000).filter(|&sector| draw.has_fallen(Rot { half: 8 * SECOND }, sector, age)).count();
        assert_eq!(fallen(Duration::ZERO), 0);
        assert!((300..2_000).contains(&fallen(2 * SECOND)), "{}", fallen(2 * SECOND));
        assert!((9_500..10_500).contains(&fallen(8 * SECOND)), "{}", fallen(8 * SECOND));
        assert!((17_200..18_200).contains(&fallen(16 * SECOND)), "{}", fallen(16 * SECOND));
    }

    #[test]
    fn rot_spreads_from_a_sector_to_its_neighbours() {
        let draw = Draw::new(1, "rot");
        let rot = Rot { half: 8 * SECOND };
        let ages = || (0..64).map(|quarter| SECOND * quarter / 4);
        let fell = |sector| ages().find(|&age| draw.has_fallen(rot, sector, age)).unwrap_or(16 * SECOND);
        let falls: Vec<Duration> = (0..500).map(fell).collect();
        let mut alone = 0;
        for (sector, trio) in (1..).zip(falls.windows(3)) {
            let [left, mine, right] = [trio[0], trio[1], trio[2]];
            alone += u32::from(mine < left.min(right));
            // A second is an eighth of the half-life; where rot came from too far it comes no further.
            let near = left.max(right) <= mine + SECOND;
            assert!(near || mine > left.min(right), "{sector}: {left:?} {mine:?} {right:?}");
            for age in ages().filter(|&age| age > mine) {
                assert!(draw.has_fallen(rot, sector, age), "what has fallen stays so");
            }
        }
        assert!((10..60).contains(&alone), "there are {alone} centres");
    }

    #[test]
    fn rules_draw_apart() {
        let (a, b) = (Draw::new(1, "a"), Draw::new(1, "b"));
        assert_ne!(a.bits(Stream::Fire, 0), b.bits(Stream::Fire, 0));
        assert_ne!(a.bits(Stream::Fire, 0), a.bits(Stream::Tear, 0));
        assert_eq!(a.bits(Stream::Fire, 9), Draw::new(1, "a").bits(Stream::Fire, 9));
    }
}
