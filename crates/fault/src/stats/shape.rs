//! What requests look like: size, alignment, and whether one goes on where another ended.

/// Classes of sizes: class `k` holds requests of more than 2^(k-1) and at most 2^k bytes; the last one all that are
/// longer.
pub const SIZES: usize = 34;

/// Classes of alignments: class `k` holds requests of which 2^k is the largest power of two that divides offset and
/// length; the last one all that are aligned better.
pub const ALIGNMENTS: usize = 22;

/// Streams told apart: a request that begins where one of the last so many ended is sequential.
pub const STREAMS: usize = 8;

#[derive(Debug)]
pub(super) struct Shape {
    pub(super) sizes: [u64; SIZES],
    pub(super) alignments: [u64; ALIGNMENTS],
    pub(super) sequential: u64,
    /// Where the last requests ended; `u64::MAX` for none.
    ends: [u64; STREAMS],
    oldest: usize,
}

impl Shape {
    pub(super) const fn new() -> Self {
        Self { sizes: [0; SIZES], alignments: [0; ALIGNMENTS], sequential: 0, ends: [u64::MAX; STREAMS], oldest: 0 }
    }

    pub(super) fn count(&mut self, at: u64, len: u64) {
        if let Some(size) = self.sizes.get_mut(size_class(len)) {
            *size += 1;
        }
        if let Some(alignment) = self.alignments.get_mut(alignment_class(at, len)) {
            *alignment += 1;
        }
        let end = at.saturating_add(len);
        if let Some(stream) = self.ends.iter_mut().find(|end| **end == at) {
            *stream = end;
            self.sequential += 1;
        } else if let Some(stream) = self.ends.get_mut(self.oldest) {
            *stream = end;
            self.oldest = (self.oldest + 1) % STREAMS;
        }
    }
}

fn size_class(len: u64) -> usize {
    ((u64::BITS - len.max(1).saturating_sub(1).leading_zeros()) as usize).min(SIZES - 1)
}

fn alignment_class(at: u64, len: u64) -> usize {
    ((at | len).trailing_zeros() as usize).min(ALIGNMENTS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        for (len, want) in [
            (0, 0),
            (1, 0),
            (2, 1),
            (3, 2),
            (4, 2),
            (512, 9),
            (513, 10),
            (4096, 12),
            (4097, 13),
            (1 << 32, 32),
            ((1 << 32) + 1, 33),
            (u64::MAX, 33),
        ] {
            assert_eq!(size_class(len), want, "{len} bytes");
        }
        for (at, len, want) in [
            (0, 512, 9),
            (512, 4096, 9),
            (4096, 4096, 12),
            (1 << 30, 4096, 12),
            (1, 4096, 0),
            (0, 1 << 30, 21),
            (0, 0, 21),
        ] {
            assert_eq!(alignment_class(at, len), want, "{len} bytes at {at}");
        }
    }

    #[test]
    fn streams_beside_each_other_are_sequential_and_random_requests_are_not() {
        let mut shape = Shape::new();
        for block in 0..100 {
            for stream in 0..STREAMS as u64 {
                shape.count((stream << 30) + block * 4096, 4096);
            }
        }
        assert_eq!(shape.sequential, 99 * STREAMS as u64);
        let mut shape = Shape::new();
        for block in 0..1000 {
            shape.count(blkproof_block::choice::hash(1, block) >> 12 << 12, 4096);
        }
        assert_eq!(shape.sequential, 0);
    }
}
