//! Damaged data: what a sector reads as instead of what it holds.

use blkproof_block::choice::hash;

use super::draw::{Draw, Stream};
use crate::rule::Corruption;

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
