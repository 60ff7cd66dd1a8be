//! Address spaces and geometry of an image.
//!
//! Guest and host addresses meet in every function of this driver, so both have types where they are stored or passed
//! on; arithmetic inside one function may use plain numbers of one space.

use std::fmt;

/// A byte offset in the image file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct HostOffset(pub(crate) u64);

impl fmt::Display for HostOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Bits 9..55 of L1, L2 and refcount table entries: the host offset (specification, "Cluster mapping").
pub(crate) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// Turns a number that is bounded by memory already into an index.
pub(crate) fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// What never changes while an image is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Geometry {
    /// 2 or 3.
    pub(crate) version: u32,
    /// log2 of the cluster size, 9..=21.
    pub(crate) cluster_bits: u32,
    /// log2 of the width of a reference count in bits, 0..=6.
    pub(crate) refcount_order: u32,
    /// L2 entries are 16 bytes and describe 32 subclusters.
    pub(crate) extended: bool,
    /// Guest data lies in another file, at its guest offset.
    pub(crate) external_data: bool,
    /// The external file must read as a raw image by itself.
    pub(crate) raw_external: bool,
}

impl Geometry {
    /// Bytes of a cluster.
    pub(crate) const fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// log2 of the bytes of an L2 entry.
    pub(crate) const fn entry_bits(&self) -> u32 {
        if self.extended { 4 } else { 3 }
    }

    /// log2 of the entries of an L2 table.
    pub(crate) const fn l2_bits(&self) -> u32 {
        self.cluster_bits.saturating_sub(self.entry_bits())
    }

    /// log2 of the counts in a refcount block.
    pub(crate) const fn block_bits(&self) -> u32 {
        self.cluster_bits.saturating_add(3).saturating_sub(self.refcount_order)
    }

    /// log2 of the guest bytes one L2 table describes.
    pub(crate) const fn l1_shift(&self) -> u32 {
        self.cluster_bits.saturating_add(self.l2_bits())
    }

    /// Bytes of a subcluster.
    pub(crate) const fn subcluster_size(&self) -> u64 {
        if self.extended { self.cluster_size() >> 5 } else { self.cluster_size() }
    }

    /// A mask with the bits of all subclusters.
    pub(crate) const fn all_subclusters(&self) -> u32 {
        if self.extended { u32::MAX } else { 1 }
    }

    /// The mask of the subclusters that hold bytes `start..end` of a cluster; `start < end <= cluster_size`.
    pub(crate) fn touched(&self, start: u64, end: u64) -> u32 {
        let size = self.subcluster_size();
        bit_run(start / size, end.saturating_sub(1) / size)
    }

    /// The start of the cluster that holds `offset`.
    pub(crate) const fn cluster_start(&self, offset: u64) -> u64 {
        offset & !(self.cluster_size() - 1)
    }

    /// `offset` inside its cluster.
    pub(crate) const fn in_cluster(&self, offset: u64) -> u64 {
        offset & (self.cluster_size() - 1)
    }

    /// Number of clusters that hold `len` bytes.
    pub(crate) const fn clusters(&self, len: u64) -> u64 {
        len.div_ceil(self.cluster_size())
    }

    /// L1 entries needed for `size` guest bytes.
    pub(crate) const fn l1_entries(&self, size: u64) -> u64 {
        size.div_ceil(1 << self.l1_shift())
    }

    /// `offset` rounded up to a cluster, `None` past 2^64.
    pub(crate) fn round_up(&self, offset: u64) -> Option<u64> {
        offset.checked_next_multiple_of(self.cluster_size())
    }
}

/// A mask with the bits `first..=last`.
pub(crate) fn bit_run(first: u64, last: u64) -> u32 {
    let upto = |n: u64| if n >= 32 { u32::MAX } else { (1u32 << n).wrapping_sub(1) };
    upto(last.saturating_add(1)) & !upto(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_of_subclusters() {
        let geometry = Geometry {
            version: 3,
            cluster_bits: 16,
            refcount_order: 4,
            extended: true,
            external_data: false,
            raw_external: false,
        };
        for (start, end, want) in [
            (0, 1, 1),
            (0, 2048, 1),
            (0, 2049, 3),
            (2047, 2049, 3),
            (63 << 10, 64 << 10, 1 << 31),
            (0, 65536, u32::MAX),
        ] {
            let want = if start == 63 << 10 { 1 << 31 } else { want };
            assert_eq!(geometry.touched(start, end), want, "{start}..{end}");
        }
        assert_eq!((geometry.l2_bits(), geometry.block_bits()), (12, 15));
    }
}
