//! What the history remembers of a sector's content: 64 bits that identify it, and 8 bits for each 64-byte piece.
//!
//! The 64 bits recognise a whole sector (an old version, a misdirected write). The piece tags recognise a *part* of
//! one: when a sector begins with new bytes and ends with others, the tags of its last pieces tell whether those are
//! the bytes of an older version, which is what a torn write leaves.
//!
//! The function multiplies 64-bit words to 128 bits and folds the halves. It is fast (tens of nanoseconds a sector),
//! not secure, and fixed for ever by the vectors below, so that a dump of fingerprints keeps its meaning.

use crate::SECTOR_LEN;

/// Bytes covered by one tag.
pub const PIECE: usize = 64;

/// Number of tags.
pub const PIECES: usize = SECTOR_LEN / PIECE;

/// The fingerprint of one sector's content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Fingerprint {
    /// Identifies the content of the whole sector.
    pub hash: u64,
    /// One tag for each 64-byte piece, in order.
    pub tags: [u8; PIECES],
}

/// Odd constants from the fractional digits of pi, as in Blowfish's tables.
const K: [u64; 8] = [
    0x243f_6a88_85a3_08d3,
    0x1319_8a2e_0370_7345,
    0xa409_3822_299f_31d1,
    0x082e_fa98_ec4e_6c89,
    0x4528_21e6_38d0_1377,
    0xbe54_66cf_34e9_0c6d,
    0xc0ac_29b7_c97c_50dd,
    0x3f84_d5b5_b547_0917,
];

/// The high and the low half of the product, folded.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    #[allow(clippy::cast_possible_truncation, reason = "each half of a 128-bit product is 64 bits")]
    let (low, high) = (product as u64, (product >> 64) as u64);
    low ^ high
}

#[inline(always)]
fn piece(bytes: &[u8; PIECE]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    let word = |i: usize| u64::from_le_bytes(words[i]) ^ K[i];
    // Four independent products: the processor runs them side by side. The rotations keep equal pairs from cancelling.
    let sum = fold(word(0), word(1))
        ^ fold(word(2), word(3)).rotate_left(13)
        ^ fold(word(4), word(5)).rotate_left(29)
        ^ fold(word(6), word(7)).rotate_left(43);
    fold(sum ^ K[2], K[5])
}

impl Fingerprint {
    /// Of up to one sector; a shorter one (the odd end of a disk) counts as followed by zeroes.
    pub fn of(content: &[u8]) -> Self {
        if let Ok(sector) = <&[u8; SECTOR_LEN]>::try_from(content) {
            return Self::of_sector(sector);
        }
        let mut sector = [0; SECTOR_LEN];
        let len = content.len().min(SECTOR_LEN);
        sector[..len].copy_from_slice(&content[..len]);
        Self::of_sector(&sector)
    }

    fn of_sector(sector: &[u8; SECTOR_LEN]) -> Self {
        let (pieces, _) = sector.as_chunks::<PIECE>();
        let mut tags = [0; PIECES];
        let mut hash = K[0];
        for ((bytes, tag), key) in pieces.iter().zip(&mut tags).zip(K) {
            let value = piece(bytes);
            *tag = value.to_be_bytes()[0];
            hash = fold(hash ^ value, key).wrapping_add(value);
        }
        Self { hash: fold(hash ^ K[1], K[7]), tags }
    }

    /// Of a sector of zeroes.
    pub fn zero() -> Self {
        Self::of_sector(&[0; SECTOR_LEN])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The vectors hold the function still: change them and every stored fingerprint loses its meaning.
    #[test]
    fn vectors() {
        let mut counting = [0u8; SECTOR_LEN];
        counting.iter_mut().zip(0u64..).for_each(|(byte, i)| *byte = (i * 7 % 251).to_le_bytes()[0]);
        let table = [
            ("zero", Fingerprint::zero(), VECTOR_ZERO),
            ("ff", Fingerprint::of(&[0xff; SECTOR_LEN]), VECTOR_FF),
            ("counting", Fingerprint::of(&counting), VECTOR_COUNTING),
        ];
        for (name, got, want) in table {
            assert_eq!(got.hash, want, "{name}: {:#018x}", got.hash);
        }
    }

    const VECTOR_ZERO: u64 = 0xdfc9_a716_6675_a04d;
    const VECTOR_FF: u64 = 0x128e_d767_bca5_5268;
    const VECTOR_COUNTING: u64 = 0x77ce_3df0_970e_3992;

    #[test]
    fn every_bit_matters_and_only_to_its_own_piece() {
        let mut sector = [0x5a; SECTOR_LEN];
        let base = Fingerprint::of(&sector);
        let mut seen = BTreeSet::from([base.hash]);
        for bit in 0..SECTOR_LEN * 8 {
            sector[bit / 8] ^= 1 << (bit % 8);
            let flipped = Fingerprint::of(&sector);
            sector[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(flipped.hash), "bit {bit}");
            for piece in 0..PIECES {
                assert!(
                    piece == bit / 8 / PIECE || flipped.tags[piece] == base.tags[piece],
                    "bit {bit}, piece {piece}"
                );
            }
        }
    }

    #[test]
    fn a_short_sector_is_one_that_ends_in_zeroes() {
        let mut sector = [0; SECTOR_LEN];
        sector[..100].fill(7);
        assert_eq!(Fingerprint::of(&sector[..100]), Fingerprint::of(&sector));
        assert_eq!(Fingerprint::of(&[]), Fingerprint::zero());
    }

    #[test]
    fn tags_are_spread_evenly() {
        let mut counts = [0u32; 256];
        for i in 0u64..8192 {
            let mut sector = [0; SECTOR_LEN];
            sector[..8].copy_from_slice(&i.to_le_bytes());
            counts[usize::from(Fingerprint::of(&sector).tags[0])] += 1;
        }
        // 32 expected in each of 256 bins; a bin beyond five standard deviations would be a defect.
        assert!(counts.iter().all(|&n| (4..=64).contains(&n)), "{counts:?}");
    }
}
