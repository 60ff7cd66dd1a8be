//! L1 and L2 entries (specification, "Cluster mapping", "Extended L2 Entries").
//!
//! An L2 entry is parsed once into a [`Mapping`], which says the same for plain and extended entries: which host
//! cluster belongs to the guest cluster, and for each subcluster whether its bytes are there, are zero, or come from
//! below. A plain entry has one subcluster.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::units::{Geometry, OFFSET_MASK};

/// Bit 63: the reference count of the target is exactly one.
pub(crate) const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry.
pub(crate) const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a plain L2 entry, version 3.
pub(crate) const ZERO: u64 = 1;
/// Bits 0..8 and 56..62 of an L1 entry are reserved.
pub(crate) const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;

/// Where a compressed cluster lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CompressedExtent {
    /// First byte.
    pub(crate) offset: u64,
    /// Bytes up to the end of the last 512-byte sector it may use.
    pub(crate) len: u64,
}

impl CompressedExtent {
    /// Parses a compressed cluster descriptor.
    pub(crate) fn parse(raw: u64, geometry: &Geometry) -> Self {
        // x = 62 - (cluster_bits - 8) splits offset and count of additional sectors.
        let shift = 70u32.saturating_sub(geometry.cluster_bits);
        let low = (1u64 << shift).wrapping_sub(1);
        let offset = raw & low & 0x00ff_ffff_ffff_ffff;
        let sectors = (raw & !(COPIED | COMPRESSED)) >> shift;
        let len = sectors.saturating_add(1).saturating_mul(512).saturating_sub(offset & 511);
        Self { offset, len }
    }

    /// The descriptor, `None` if the extent is out of a descriptor's reach.
    pub(crate) fn encode(self, geometry: &Geometry) -> Option<u64> {
        let shift = 70u32.saturating_sub(geometry.cluster_bits);
        let low = (1u64 << shift).wrapping_sub(1);
        let last = self.offset.checked_add(self.len)?.checked_sub(1)?;
        let sectors = (last >> 9).checked_sub(self.offset >> 9)?;
        let fits = self.offset <= low & 0x00ff_ffff_ffff_ffff && sectors < 1u64 << 62u32.saturating_sub(shift);
        fits.then_some(COMPRESSED | sectors << shift | self.offset)
    }
}

/// What a guest cluster is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Mapping {
    /// The host cluster that belongs to it, whether or not its bytes count.
    pub(crate) host: Option<u64>,
    /// The host cluster is ours alone and may be written in place.
    pub(crate) copied: bool,
    /// The whole cluster is stored compressed; then nothing else is set.
    pub(crate) compressed: Option<CompressedExtent>,
    /// Subclusters whose bytes are in the host cluster.
    pub(crate) allocated: u32,
    /// Subclusters that read as zeroes.
    pub(crate) zero: u32,
}

/// An L2 entry that says nothing sensible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BadEntry {
    /// The host offset is not cluster aligned.
    Unaligned(u64),
    /// The zero flag in a version 2 image.
    ZeroInV2,
    /// A subcluster is both allocated and zero, or allocated nowhere.
    Bitmap(u64),
    /// Data in the image file although the data file is external, or at another offset.
    External(u64),
}

impl Mapping {
    /// Parses an entry. `guest` is the guest offset of the cluster.
    pub(crate) fn parse(raw: u64, bitmap: u64, guest: u64, geometry: &Geometry) -> Result<Self, BadEntry> {
        if raw & COMPRESSED != 0 {
            if geometry.external_data {
                return Err(BadEntry::External(raw));
            }
            return Ok(Self { compressed: Some(CompressedExtent::parse(raw, geometry)), ..Self::default() });
        }
        let offset = raw & OFFSET_MASK;
        if geometry.in_cluster(offset) != 0 {
            return Err(BadEntry::Unaligned(offset));
        }
        let copied = raw & COPIED != 0;
        // Offset 0 is "none", except for guest offset 0 of an external data file, which COPIED tells apart.
        let present = offset != 0 || (geometry.external_data && copied);
        if present && geometry.external_data && offset != guest {
            return Err(BadEntry::External(offset));
        }
        let host = present.then_some(offset);
        let (allocated, zero) = if geometry.extended {
            let (zero, allocated) = halves(bitmap);
            if zero & allocated != 0 || (allocated != 0 && !present) {
                return Err(BadEntry::Bitmap(bitmap));
            }
            (allocated, zero)
        } else if raw & ZERO != 0 {
            if geometry.version < 3 {
                return Err(BadEntry::ZeroInV2);
            }
            (0, 1)
        } else {
            (u32::from(present), 0)
        };
        Ok(Self { host, copied, compressed: None, allocated, zero })
    }

    /// The entry and its bitmap. A compressed mapping is not encoded here.
    pub(crate) fn encode(&self, geometry: &Geometry) -> (u64, u64) {
        let mut raw = self.host.unwrap_or(0);
        if self.copied && self.host.is_some() {
            raw |= COPIED;
        }
        if geometry.extended {
            (raw, u64::from(self.zero) << 32 | u64::from(self.allocated))
        } else {
            (if self.zero != 0 { raw | ZERO } else { raw }, 0)
        }
    }

    /// Whether nothing of the cluster is determined here.
    pub(crate) fn is_unallocated(&self) -> bool {
        self.compressed.is_none() && self.allocated == 0 && self.zero == 0
    }

    /// Whether bytes may be written to the host cluster as it is.
    pub(crate) fn writable_in_place(&self) -> bool {
        self.compressed.is_none() && self.host.is_some() && self.copied
    }
}

fn halves(bitmap: u64) -> (u32, u32) {
    let high = u32::try_from(bitmap >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(bitmap & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    (high, low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(cluster_bits: u32, extended: bool) -> Geometry {
        Geometry { version: 3, cluster_bits, refcount_order: 4, extended, external_data: false, raw_external: false }
    }

    #[test]
    fn compressed_descriptors_round_trip() {
        for bits in [9, 12, 16, 21] {
            let geometry = geometry(bits, false);
            for (offset, len) in [(0x50000, 512), (0x50001, 511), (0x501ff, 1), (0x50010, (1u64 << bits) - 16)] {
                let extent = CompressedExtent { offset, len };
                let raw = extent.encode(&geometry).unwrap();
                let back = CompressedExtent::parse(raw, &geometry);
                assert_eq!(back.offset, offset, "2^{bits}");
                assert!(back.len >= len && back.len < len + 512, "2^{bits}: {back:?} for {extent:?}");
                assert_eq!((back.offset + back.len) % 512, 0);
            }
        }
    }

    #[test]
    fn entries_round_trip_and_bad_ones_are_named() {
        let plain = geometry(16, false);
        for (raw, allocated, zero) in [(0, 0, 0), (1, 0, 1), (COPIED | 0x50000, 1, 0), (COPIED | 0x50001, 0, 1)] {
            let mapping = Mapping::parse(raw, 0, 0, &plain).unwrap();
            assert_eq!((mapping.allocated, mapping.zero), (allocated, zero), "{raw:#x}");
            assert_eq!(mapping.encode(&plain), (raw, 0));
        }
        assert_eq!(Mapping::parse(0x52a00, 0, 0, &plain), Err(BadEntry::Unaligned(0x52a00)));
        assert_eq!(Mapping::parse(1, 0, 0, &Geometry { version: 2, ..plain }), Err(BadEntry::ZeroInV2));
        let extended = geometry(16, true);
        let bitmap = 0x8000_0000_0000_0001;
        assert_eq!(Mapping::parse(COPIED | 0x50000, bitmap, 0, &extended).unwrap().encode(&extended).1, bitmap);
        assert_eq!(Mapping::parse(0, 1, 0, &extended), Err(BadEntry::Bitmap(1)));
        let external = Geometry { external_data: true, ..plain };
        assert_eq!(Mapping::parse(COPIED, 0, 0, &external).unwrap().allocated, 1);
        assert_eq!(Mapping::parse(COPIED | 0x10000, 0, 0x20000, &external), Err(BadEntry::External(0x10000)));
    }
}
