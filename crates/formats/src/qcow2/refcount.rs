//! Reference counts of any width in a refcount block (specification, "Host cluster management").
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

/// log2 of the width in bits, 0..=6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Width(pub(crate) u32);

impl Width {
    /// The largest count.
    pub(crate) fn max(self) -> u64 {
        match self.0 {
            6.. => u64::MAX,
            order => (1u64 << (1u32 << order)).wrapping_sub(1),
        }
    }

    /// The bytes that hold count `index`.
    pub(crate) fn place(self, index: usize) -> (usize, usize) {
        match self.0 {
            order @ 0..3 => (index >> 3u32.saturating_sub(order), 1),
            order => {
                let bytes = 1usize << order.saturating_sub(3).min(3);
                (index.saturating_mul(bytes), bytes)
            }
        }
    }

    /// Count `index`; 0 past the end of the block.
    pub(crate) fn get(self, block: &[u8], index: usize) -> u64 {
        let (at, len) = self.place(index);
        let Some(bytes) = block.get(at..at.saturating_add(len)) else { return 0 };
        let word = bytes.iter().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
        if self.0 < 3 { word >> self.shift(index) & self.max() } else { word }
    }

    /// Replaces count `index`; `value` is at most [`max`](Self::max).
    pub(crate) fn set(self, block: &mut [u8], index: usize, value: u64) {
        let (at, len) = self.place(index);
        let Some(bytes) = block.get_mut(at..at.saturating_add(len)) else { return };
        if self.0 < 3 {
            // Counts narrower than a byte are packed least significant bit first.
            let shift = self.shift(index);
            if let [byte] = bytes {
                let mask = self.max() << shift;
                let word = u64::from(*byte) & !mask | (value & self.max()) << shift;
                *byte = u8::try_from(word & 0xff).unwrap_or(0);
            }
        } else if let Some(low) = value.to_be_bytes().get(8usize.saturating_sub(len)..) {
            bytes.copy_from_slice(low);
        }
    }

    fn shift(self, index: usize) -> u32 {
        let per_byte_mask = (8usize >> self.0.min(3)).saturating_sub(1);
        u32::try_from(index & per_byte_mask).unwrap_or(0) << self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_width_stay_apart() {
        for order in 0..=6 {
            let width = Width(order);
            let count = (512 * 8) >> order;
            let mut block = vec![0u8; 512];
            let value = |i: usize| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) & width.max();
            for i in (0..count).rev() {
                width.set(&mut block, i, value(i));
            }
            for i in 0..count {
                assert_eq!(width.get(&block, i), value(i), "width {} count {i}", 1 << order);
            }
            assert_eq!(width.get(&block, count), 0);
        }
    }

    #[test]
    fn narrow_counts_begin_at_the_least_significant_bit() {
        let mut block = vec![0u8; 8];
        Width(0).set(&mut block, 1, 1);
        Width(1).set(&mut block, 4, 3);
        Width(4).set(&mut block, 2, 0x1234);
        assert_eq!(block, [2, 3, 0, 0, 0x12, 0x34, 0, 0]);
    }
}
