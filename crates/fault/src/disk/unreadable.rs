//! Blocks that a power cut left unreadable (profile `garbage`, CM 5.2), until they are written again.
//!
//! Byte by byte: a write of a part of such a block makes that part readable, and no more.

use blkproof_block::ByteRange;
use rangemap::RangeSet;

use super::piece::Piece;

/// Places on the medium that can not be read.
#[derive(Clone, Debug, Default)]
pub(super) struct Unreadable(RangeSet<u64>);

impl Unreadable {
    /// The first byte of the range that can not be read.
    pub(super) fn first(&self, range: ByteRange) -> Option<u64> {
        if range.is_empty() {
            return None;
        }
        self.0.overlapping(&(range.start..range.end)).next().map(|bad| bad.start.max(range.start))
    }

    /// The medium has `size` bytes, and these pieces were written to it.
    pub(super) fn written(&mut self, pieces: &[Piece], size: u64) {
        if self.0.is_empty() {
            return;
        }
        for range in pieces.iter().map(|piece| piece.range).filter(|range| !range.is_empty()) {
            self.0.remove(range.start..range.end);
        }
        if size < u64::MAX {
            self.0.remove(size..u64::MAX);
        }
    }

    /// A power cut left these.
    pub(super) fn add(&mut self, ranges: &[ByteRange]) {
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            self.0.insert(range.start..range.end);
        }
    }

    /// All of them, sorted, apart.
    pub(super) fn ranges(&self) -> Vec<ByteRange> {
        self.0.iter().map(|range| ByteRange { start: range.start, end: range.end }).collect()
    }
}
