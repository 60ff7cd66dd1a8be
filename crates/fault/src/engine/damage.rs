//! Damaged data: what a sector reads as instead of what it holds.

use std::time::Duration;

use blkproof_block::ByteRange;
use blkproof_block::choice::hash;

use super::Engine;
use super::armed::Armed;
use super::draw::{Draw, Stream};
use super::fate::wrap;
use super::plan::{Damage, RuleKey};
use crate::request::Operation;
use crate::rule::{Action, Corruption};

impl Engine {
    /// Rules that damage.
    pub(super) fn corrupting(&self) -> impl Iterator<Item = &Armed> {
        self.corrupting.iter().filter_map(|&at| self.rules.get(at))
    }

    /// Notes whether there is damage at all.
    pub(super) fn look_for_damage(&mut self) {
        let damage = self.corrupting().any(Armed::has_hurt);
        self.damage = damage;
    }

    /// Whether a request may have to do with damage that was done: read it, or take it away.
    pub(super) fn concerns_damage(&self, operation: Operation, range: ByteRange) -> bool {
        let meets =
            matches!(operation, Operation::Read | Operation::Write | Operation::WriteZeroes | Operation::Discard);
        meets && self.corrupting().any(|armed| armed.hurts(range))
    }

    /// The damage to be laid over what a read of `range` returned on which rules of `fired` fired, in the order of the
    /// rules, sector by sector.
    pub(super) fn damaged(&self, range: ByteRange, fired: &[RuleKey], now: Duration) -> Vec<Damage> {
        let mut all = Vec::new();
        for armed in self.corrupting() {
            let Action::Corrupt { how, .. } = armed.rule.action else { continue };
            let fires = fired.contains(&armed.key);
            for stretch in armed.stretches(range, fires, now) {
                let stretch = ByteRange { start: stretch.start, end: stretch.end };
                all.extend(armed.hits(stretch).map(|range| Damage { key: armed.key, how, range }));
            }
        }
        all
    }

    /// The first stretch of `range` where a read may return damaged data, so that it can not be said to read as zeroes.
    pub fn may_damage(&self, range: ByteRange, now: Duration) -> Option<ByteRange> {
        self.corrupting().filter_map(|armed| armed.first_doubt(range, now)).min_by_key(|stretch| stretch.start)
    }

    /// Lays one damage over `data`, the bytes of its range. [`Corruption::Stale`] and [`Corruption::Foreign`] are the
    /// caller's, who has the data.
    pub fn spoil(&self, damage: &Damage, data: &mut [u8]) {
        let Some(armed) = self.corrupting().find(|armed| armed.key == damage.key) else { return };
        let lba = u64::from(self.lba_size.max(1));
        let skip = u32::try_from(damage.range.start % lba).unwrap_or(0);
        spoil(damage.how, armed.draw, damage.range.start / lba, self.lba_size, skip, data);
    }

    /// Where the bytes of a damage with [`Corruption::Foreign`] come from, on a device of `size` bytes.
    pub fn foreign(&self, damage: &Damage, size: u64) -> u64 {
        let lba = u64::from(self.lba_size.max(1));
        let sectors = (size / lba).max(1);
        let sector = damage.range.start / lba;
        let armed = self.corrupting().find(|armed| armed.key == damage.key);
        let other = match (damage.how, armed) {
            (Corruption::Foreign { distance: Some(distance) }, _) => wrap(sector, distance, sectors),
            (_, Some(armed)) => {
                // Any but its own.
                let step = armed.draw.below(Stream::Damage, sector, sectors.saturating_sub(1)).saturating_add(1);
                sector.wrapping_add(step) % sectors
            }
            (_, None) => sector,
        };
        other.saturating_mul(lba).saturating_add(damage.range.start % lba)
    }

    /// Rules that want to know what `range` held before it is written: those that serve stale versions.
    pub fn keeps_versions(&self, range: ByteRange, now: Duration) -> Vec<(RuleKey, ByteRange)> {
        let parts =
            |armed: &Armed| armed.parts(range, now).into_iter().map(|part| (armed.key, part)).collect::<Vec<_>>();
        self.corrupting().filter(|armed| armed.keeps_versions()).flat_map(parts).collect()
    }
}

/// Changes one sector. `data` begins at byte `skip` of the sector, which has `lba_size` bytes.
///
/// [`Stale`](Corruption::Stale) and [`Foreign`](Corruption::Foreign) need data from elsewhere and are left to the caller.
pub(super) fn spoil(how: Corruption, draw: Draw, sector: u64, lba_size: u32, skip: u32, data: &mut [u8]) {
    let mut put = |bit: u32, change: &dyn Fn(u8, u8) -> u8| {
        let byte = (bit / 8).checked_sub(skip).and_then(|at| data.get_mut(at as usize));
        if let Some(byte) = byte {
            *byte = change(*byte, 1 << (bit % 8));
        }
    };
    let bits = lba_size.saturating_mul(8).max(1);
    let chosen = |nth: u64| {
        let draw = hash(draw.bits(Stream::Damage, sector), nth);
        u32::try_from(draw % u64::from(bits)).unwrap_or(0)
    };
    match how {
        Corruption::Flip { bits: count } => {
            // Different bits: two flips of one would leave it as it was.
            let step = chosen(1) | 1;
            for nth in 0..count.min(bits) {
                let bit = chosen(0).wrapping_add(step.wrapping_mul(nth)) % bits;
                put(bit, &|byte, mask| byte ^ mask);
            }
        }
        Corruption::Stuck { bit, value } => {
            let bit = bit.unwrap_or_else(|| chosen(0)) % bits;
            put(bit, &|byte, mask| if value { byte | mask } else { byte & !mask });
        }
        Corruption::Zero => data.fill(0),
        Corruption::Random => {
            let key = draw.bits(Stream::Damage, sector);
            for (at, byte) in (u64::from(skip)..).zip(data.iter_mut()) {
                let word = hash(key, at / 8).to_le_bytes();
                *byte = word.get((at % 8) as usize).copied().unwrap_or(0);
            }
        }
        Corruption::Stale | Corruption::Foreign { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spoiled(how: Corruption, sector: u64) -> Vec<u8> {
        let mut data = vec![0x55; 512];
        spoil(how, Draw::new(3, "r"), sector, 512, 0, &mut data);
        data
    }

    fn differing_bits(data: &[u8]) -> u32 {
        data.iter().map(|byte| (byte ^ 0x55).count_ones()).sum()
    }

    #[test]
    fn as_many_bits_flip_as_were_asked_for() {
        for bits in [1, 2, 7, 100, 4096, 9999] {
            assert_eq!(differing_bits(&spoiled(Corruption::Flip { bits }, 11)), bits.min(4096), "{bits}");
        }
    }

    #[test]
    fn damage_is_the_same_every_time_and_in_every_cut() {
        for how in [Corruption::Flip { bits: 9 }, Corruption::Random, Corruption::Stuck { bit: None, value: true }] {
            let whole = spoiled(how, 5);
            assert_eq!(whole, spoiled(how, 5));
            if !matches!(how, Corruption::Stuck { .. }) {
                assert_ne!(whole, spoiled(how, 6), "another sector is damaged in another way: {how:?}");
            }
            for (from, to) in [(0, 1), (100, 300), (511, 512)] {
                let mut part = vec![0x55; to - from];
                spoil(how, Draw::new(3, "r"), 5, 512, u32::try_from(from).unwrap(), &mut part);
                assert_eq!(part, whole[from..to], "{how:?} {from}..{to}");
            }
        }
    }

    #[test]
    fn a_stuck_bit_is_stuck() {
        let data = spoiled(Corruption::Stuck { bit: Some(8 * 3 + 1), value: true }, 0);
        assert_eq!(data[3], 0x57);
        let data = spoiled(Corruption::Stuck { bit: Some(8 * 3), value: false }, 0);
        assert_eq!(data[3], 0x54);
        assert!(spoiled(Corruption::Zero, 1).iter().all(|&byte| byte == 0));
    }
}
