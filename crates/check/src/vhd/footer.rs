//! The footer: 512 bytes at the end of the file, and once more at the start of a dynamic or differencing disk.

use crate::bytes::{be_u16, be_u32, be_u64, is_zero};

/// Bytes of a footer; programs older than Virtual PC 2004 left the last one out.
pub(super) const LEN: usize = 512;
/// What [`Footer::kind`] is of a fixed disk.
pub(super) const FIXED: u32 = 2;
/// ... of a dynamic one.
pub(super) const DYNAMIC: u32 = 3;
/// ... of one that is read over its parent.
pub(super) const DIFFERENCING: u32 = 4;
/// Cylinders, heads and sectors beyond which a geometry says nothing about the size.
const GEOMETRY_MAX: u64 = 65_535 * 16 * 255 * 512;
const CHECKSUM: std::ops::Range<usize> = 64..68;

/// The fields ("Hard Disk Footer Format").
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) features: u32,
    pub(super) version: u32,
    /// Where the dynamic header is; all ones for a fixed disk.
    pub(super) data_offset: u64,
    /// Seconds since the start of 2000.
    pub(super) time: u32,
    pub(super) creator: [u8; 4],
    pub(super) creator_version: u32,
    pub(super) original_size: u64,
    pub(super) size: u64,
    pub(super) geometry: (u16, u8, u8),
    pub(super) kind: u32,
    pub(super) uuid: [u8; 16],
    pub(super) saved_state: u8,
    pub(super) reserved_clear: bool,
    pub(super) checksum_right: bool,
}

impl Footer {
    /// `None` if it does not begin as a footer does. A last byte that is not there counts as zero.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(b"conectix") || bytes.len() < LEN.saturating_sub(1) {
            return None;
        }
        let features = be_u32(bytes, 8);
        let field = |at: usize| bytes.get(at).copied().unwrap_or(0);
        let mut uuid = [0; 16];
        uuid.copy_from_slice(bytes.get(68..84)?);
        let mut creator = [0; 4];
        creator.copy_from_slice(bytes.get(28..32)?);
        Some(Self {
            features,
            version: be_u32(bytes, 12),
            data_offset: be_u64(bytes, 16),
            time: be_u32(bytes, 24),
            creator,
            creator_version: be_u32(bytes, 32),
            original_size: be_u64(bytes, 40),
            size: be_u64(bytes, 48),
            geometry: (be_u16(bytes, 56), field(58), field(59)),
            kind: be_u32(bytes, 60),
            uuid,
            saved_state: field(84),
            // Bit 0 is "temporary", bit 1 is always set.
            reserved_clear: features & !3 == 0 && is_zero(bytes.get(85..).unwrap_or_default()),
            checksum_right: checksum(bytes, CHECKSUM) == be_u32(bytes, CHECKSUM.start),
        })
    }

    /// Bytes by cylinders, heads and sectors.
    pub(super) fn geometry_size(&self) -> u64 {
        let (cylinders, heads, sectors) = self.geometry;
        // At most 2^16 * 2^8 * 2^8 * 2^9.
        u64::from(cylinders).saturating_mul(u64::from(heads)).saturating_mul(u64::from(sectors)).saturating_mul(512)
    }

    /// Bytes of one cylinder: a geometry can not be nearer to a size than that.
    pub(super) fn cylinder(&self) -> u64 {
        u64::from(self.geometry.1).saturating_mul(u64::from(self.geometry.2)).saturating_mul(512)
    }

    /// Whether readers go by the geometry: Virtual PC does, and QEMU for disks of Virtual PC and of itself, unless the
    /// geometry is at its maximum.
    pub(super) fn goes_by_geometry(&self) -> bool {
        matches!(&self.creator, b"vpc " | b"qemu") && self.geometry_size() != GEOMETRY_MAX
    }

    /// The kind in a word.
    pub(super) fn kind_name(&self) -> &'static str {
        match self.kind {
            FIXED => "fixed",
            DYNAMIC => "dynamic",
            DIFFERENCING => "differencing",
            _ => "unknown",
        }
    }

    /// Names of the fields in which two differ; those that change how the disk is read come with `true`.
    pub(super) fn differences(&self, other: &Self) -> Vec<(&'static str, bool)> {
        let fields = [
            ("size", true, self.size != other.size),
            ("disk type", true, self.kind != other.kind),
            ("data offset", true, self.data_offset != other.data_offset),
            ("geometry", self.goes_by_geometry() || other.goes_by_geometry(), self.geometry != other.geometry),
            ("identifier", true, self.uuid != other.uuid),
            ("creator", false, self.creator != other.creator || self.creator_version != other.creator_version),
            ("original size", false, self.original_size != other.original_size),
            ("time stamp", false, self.time != other.time),
            ("version", false, self.version != other.version),
            ("features", false, self.features != other.features),
            ("saved state", false, self.saved_state != other.saved_state),
        ];
        fields.into_iter().filter(|(_, _, differ)| *differ).map(|(name, weighty, _)| (name, weighty)).collect()
    }
}

/// One's complement of the sum of all bytes, those of the checksum itself counted as zero.
pub(super) fn checksum(bytes: &[u8], field: std::ops::Range<usize>) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    !sum(bytes).wrapping_sub(sum(bytes.get(field).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_leaves_its_own_field_out() {
        let mut bytes = [0u8; LEN];
        bytes[..8].copy_from_slice(b"conectix");
        bytes[511] = 7;
        let right = !(b"conectix".iter().map(|byte| u32::from(*byte)).sum::<u32>() + 7);
        assert_eq!(checksum(&bytes, CHECKSUM), right);
        bytes[CHECKSUM].copy_from_slice(&right.to_be_bytes());
        assert_eq!(checksum(&bytes, CHECKSUM), right, "with the field filled in");
        assert!(Footer::parse(&bytes).is_some_and(|footer| footer.checksum_right));
        bytes[511] = 8;
        assert!(Footer::parse(&bytes).is_some_and(|footer| !footer.checksum_right));
        assert!(Footer::parse(&bytes[..511]).is_some(), "511 bytes are enough");
        assert!(Footer::parse(&bytes[..510]).is_none());
    }
}
