//! What a client may see once the device works again after a power cut (CM 5.6).

use blkproof_block::ByteRange;

use super::Oracle;
use super::judge::Found;
use super::violation::Violation;
use crate::plan::OpId;

/// The judge of what survived a power cut.
///
/// It stays as it is while many states of the disk are looked at; what a read found in one of them binds later reads
/// only in the life that [`into_oracle`](Self::into_oracle) begins.
#[derive(Clone, Debug)]
pub struct AfterCrash {
    oracle: Oracle,
}

impl AfterCrash {
    pub(super) fn new(mut oracle: Oracle) -> Self {
        oracle.cut();
        Self { oracle }
    }

    /// The sizes that the device may have, in order.
    pub fn sizes(&self) -> Vec<u64> {
        self.oracle.sizes()
    }

    /// Judges the size of the device.
    ///
    /// # Errors
    /// If a size was promised, and it is another one.
    pub fn judge_size(&self, size: u64) -> Result<(), Violation> {
        let allowed = self.sizes();
        allowed.contains(&size).then_some(()).ok_or_else(|| Violation::size(size, &allowed))
    }

    /// Judges what a read of `range` found.
    ///
    /// # Errors
    /// The first violation: foreign bytes, or content that something durable had replaced.
    pub fn judge(&self, range: ByteRange, buf: &[u8]) -> Result<(), Violation> {
        let found = Found::Bytes { at: range.start, bytes: buf };
        self.oracle.judge(range, found, self.oracle.now + 1, None).map(drop)
    }

    /// A(x): the requests whose content the byte at `at` may have, in the order in which they were sent; 0 is the
    /// initial content.
    pub fn candidates(&self, at: u64) -> Vec<OpId> {
        self.oracle.candidates(at)
    }

    /// The judge of the life that begins, in which the first read pins. [`Oracle::sized`] is to be told first.
    pub fn into_oracle(self) -> Oracle {
        self.oracle
    }
}
