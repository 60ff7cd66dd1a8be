//! An image with some bytes replaced, without a copy of it for each set of them.

#![allow(unreachable_pub, clippy::cast_possible_truncation)]

use blkproof_check::source::Source;

/// Its bytes, zeroes behind them up to its length.
pub struct Patched<'a> {
    pub base: &'a [u8],
    pub edits: Vec<(u64, Vec<u8>)>,
    pub len: u64,
}

impl Source for Patched<'_> {
    fn name(&self) -> String {
        format!("{:x?}", self.edits)
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        let there = (self.len.saturating_sub(at) as usize).min(buf.len());
        let from = self.base.get(at as usize..).unwrap_or_default();
        let copied = from.len().min(there);
        buf[..copied].copy_from_slice(&from[..copied]);
        buf[copied..there].fill(0);
        for (start, bytes) in &self.edits {
            for (place, byte) in (*start..).zip(bytes).filter(|(place, _)| (at..at + there as u64).contains(place)) {
                buf[(place - at) as usize] = *byte;
            }
        }
        Ok(there)
    }
}
