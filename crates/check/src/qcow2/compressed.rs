//! Descriptors of compressed clusters (qcow2 spec, section "Cluster mapping").
//!
//! With `x = 62 - (cluster_bits - 8)`: bits 0..x-1 are the offset in bytes, bits x..61 the number of 512-byte sectors
//! after the one the stream begins in. The stream's real length is not stored, only this upper bound.

use std::ops::Range;

use super::header::Geometry;

/// The bytes of the file a descriptor says its stream lies within.
pub(crate) fn region(raw: u64, geometry: &Geometry) -> Range<u64> {
    // cluster_bits is 9..=30, so x is 40..=61.
    let x = 70u32.saturating_sub(geometry.cluster_bits).clamp(9, 61);
    let start = raw & (1u64 << x).wrapping_sub(1);
    let sectors = (raw & (1u64 << 62).wrapping_sub(1)) >> x;
    let end = (start & !511).saturating_add(sectors.saturating_add(1).saturating_mul(512));
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_end_with_a_sector() {
        let geometry = |cluster_bits| Geometry {
            cluster_bits,
            refcount_order: 4,
            size: 1 << 30,
            extended_l2: false,
            external_data: false,
            version: 3,
            zstd: false,
        };
        for (bits, raw, want) in [
            (16, 0x4000_0000_0005_0000, 0x50000..0x50200),
            (16, 0x4000_0000_0005_01ff, 0x501ff..0x50200),
            (16, 1 << 62 | 3 << 54 | 0x5_0200, 0x50200..0x50a00),
            (9, 1 << 62 | 1 << 61 | 0x1400, 0x1400..0x1800),
            (21, 1 << 62 | 0xfff << 49 | 0x20_0000, 0x20_0000..0x40_0000),
        ] {
            assert_eq!(region(raw, &geometry(bits)), want, "{bits} {raw:#x}");
        }
    }
}
