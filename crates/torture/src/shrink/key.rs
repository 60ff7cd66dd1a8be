//! Plans told apart by 128 bits.

use std::fmt::{self, Write as _};

use blkproof_block::choice::hash;

use crate::plan::Plan;

/// Stands for a plan. Two different ones have equal keys with a probability of 2^-128, times the pairs there are.
pub(super) type PlanKey = (u64, u64);

/// The key of a plan: of everything that is printed for debugging, and so of everything there is.
pub(super) fn key(plan: &Plan) -> PlanKey {
    let mut digest = Digest { lanes: (1, 2), word: 0, len: 0 };
    // Writing into a digest does not fail.
    let _ = write!(digest, "{plan:?}");
    let end = hash(digest.word, digest.len);
    (hash(digest.lanes.0, end), hash(digest.lanes.1, end))
}

struct Digest {
    lanes: (u64, u64),
    /// The last bytes, up to eight.
    word: u64,
    len: u64,
}

impl fmt::Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.word = self.word << 8 | u64::from(byte);
            self.len = self.len.wrapping_add(1);
            if self.len % 8 == 0 {
                self.lanes = (hash(self.lanes.0, self.word), hash(self.lanes.1, self.word));
                self.word = 0;
            }
        }
        Ok(())
    }
}
