//! Decisions that do not shift each other (CM 8.1).
//!
//! What is decided for one subject, an op say, at one site of the generator depends on the seed, the stream, the subject
//! and the site, and on nothing else: no decision is "the next number".

use blkproof_block::choice::hash;

/// What is being decided about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stream {
    Geometry = 1,
    Swarm = 2,
    Op = 3,
    Place = 4,
    Disk = 5,
    Fault = 6,
    Schedule = 7,
    Crash = 8,
    Motif = 9,
}

/// The decisions about one subject.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) const fn new(seed: u64, stream: Stream, subject: u64) -> Self {
        Self(hash(hash(seed, 0x776f_726b_0000 | stream as u64), subject))
    }

    pub(super) const fn bits(self, site: u64) -> u64 {
        hash(self.0, site)
    }

    /// A number below `bound`; 0 if `bound` is 0.
    pub(super) const fn below(self, site: u64, bound: u64) -> u64 {
        ((self.bits(site) as u128 * bound as u128) >> 64) as u64
    }

    /// True `of` times in a thousand.
    pub(super) const fn chance(self, site: u64, of: u32) -> bool {
        self.below(site, 1000) < of as u64
    }

    /// One of these; the list has at least one.
    pub(super) fn pick<T: Copy>(self, site: u64, list: &[T]) -> Option<T> {
        let index = self.below(site, list.len() as u64);
        list.get(usize::try_from(index).ok()?).copied()
    }

    /// One of these by weight; `None` if nothing has any.
    pub(super) fn weigh<T: Copy>(self, site: u64, list: &[(T, u64)]) -> Option<T> {
        let total: u64 = list.iter().map(|(_, weight)| weight).sum();
        let mut left = self.below(site, total);
        for (value, weight) in list {
            match left.checked_sub(*weight) {
                Some(less) => left = less,
                None => return Some(*value),
            }
        }
        None
    }
}
