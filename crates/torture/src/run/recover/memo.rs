//! What states of one moment have in common, judged once.
//!
//! Thousands of states differ in a few blocks each, and so do the answers of the driver. What a client may see is the same
//! in all of them: equal bytes in an equal place are judged equally, as long as nothing is learnt from them.

use std::collections::BTreeMap;

/// Answers kept of one place: new, old, and what a few requests leave between them.
const KEPT: usize = 4;

/// Answers that were found to be right.
#[derive(Debug, Default)]
pub(in crate::run) struct Memo {
    right: BTreeMap<u64, Vec<Box<[u8]>>>,
    /// A buffer, to be used again and again.
    pub(super) scratch: Vec<u8>,
}

impl Memo {
    /// Whether these bytes were found at `at` before, and were right.
    pub(super) fn knows(&self, at: u64, bytes: &[u8]) -> bool {
        self.right.get(&at).is_some_and(|kept| kept.iter().any(|kept| **kept == *bytes))
    }

    /// These bytes were found at `at`, and are right.
    pub(super) fn learn(&mut self, at: u64, bytes: &[u8]) {
        let kept = self.right.entry(at).or_default();
        if kept.len() < KEPT {
            kept.push(bytes.into());
        }
    }
}

/// Makes every sector of a buffer look like nobody's, so that one which a driver leaves alone is seen.
pub(super) fn poison(buf: &mut [u8]) {
    for sector in buf.chunks_mut(512) {
        let len = sector.len().min(8);
        if let Some(head) = sector.get_mut(..len) {
            head.fill(0xcc);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_same_is_known() {
        let mut memo = Memo::default();
        memo.learn(512, &[1, 2]);
        assert!(memo.knows(512, &[1, 2]));
        assert!(!memo.knows(512, &[1, 3]) && !memo.knows(512, &[1]) && !memo.knows(0, &[1, 2]));
        let mut buf = [0; 1030];
        poison(&mut buf);
        assert!([0, 7, 512, 1024, 1029].iter().all(|&at| buf[at] == 0xcc) && buf[8] == 0);
    }
}
