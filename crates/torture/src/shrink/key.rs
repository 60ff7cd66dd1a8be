//! Plans told apart by 128 bits.

use std::fmt::{self, Write as _};

use blkproof_block::choice::hash;

use crate::plan::Plan;

/// Stands for a plan. Two different ones have equal keys with a probability of 2^-128, times the pairs there are.
pub(super) type PlanKey = (u64, u64);

/// The key of a plan: of everything that is printed for debugging, and so of everything there is.
pub(super) fn key(plan: &Plan) -> PlanKey {
    let mut digest = Digest::new();
    // Writing into a digest does not fail.
    let _ = write!(digest, "{plan:?}");
    digest.key()
}

struct Digest {
    lanes: (u64, u64),
    /// The last bytes, up to eight.
    word: u64,
    len: u64,
}

impl Digest {
    const fn new() -> Self {
        Self { lanes: (1, 2), word: 0, len: 0 }
    }

    const fn key(&self) -> PlanKey {
        let end = hash(self.word, self.len);
        (hash(self.lanes.0, end), hash(self.lanes.1, end))
    }
}

impl fmt::Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.word = self.word << 8 | u64::from(byte);
            self.len = self.len.wrapping_add(1);
            if self.len.is_multiple_of(8) {
                self.lanes = (hash(self.lanes.0, self.word), hash(self.lanes.1, self.word));
                self.word = 0;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_counts_and_pieces_do_not() {
        let of = |pieces: &[&str]| {
            let mut digest = Digest::new();
            pieces.iter().for_each(|piece| digest.write_str(piece).unwrap());
            digest.key()
        };
        let texts = ["", "a", "b", "\0", "\0\0", "12345678", "12345679", "123456789", "12345678\0", "1234567812345678"];
        let keys: std::collections::BTreeSet<_> = texts.iter().map(|text| of(&[text])).collect();
        assert_eq!(keys.len(), texts.len());
        assert_eq!(of(&["123", "", "45678", "9"]), of(&["123456789"]));
    }
}
