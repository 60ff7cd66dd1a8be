//! The header's fields as they stand in the file, and the geometry that follows from them once they have been checked.
//!
//! qcow2 spec, sections "Header" and "Additional fields". All fields are big endian.

use crate::bytes::{be_u32, be_u64};

/// Bytes of the version 2 header.
pub(crate) const V2_LEN: u32 = 72;

/// The fields as stored; nothing is checked yet. Fields a version 2 header does not have hold what version 2 means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) magic: u32,
    pub(crate) version: u32,
    pub(crate) backing_offset: u64,
    pub(crate) backing_len: u32,
    pub(crate) cluster_bits: u32,
    pub(crate) size: u64,
    pub(crate) crypt_method: u32,
    pub(crate) l1_size: u32,
    pub(crate) l1_offset: u64,
    pub(crate) refcount_table_offset: u64,
    pub(crate) refcount_table_clusters: u32,
    pub(crate) nb_snapshots: u32,
    pub(crate) snapshots_offset: u64,
    pub(crate) incompatible: u64,
    pub(crate) compatible: u64,
    pub(crate) autoclear: u64,
    pub(crate) refcount_order: u32,
    pub(crate) header_length: u32,
    /// Absent, and then 0, when `header_length` is not above 104.
    pub(crate) compression_type: u8,
}

impl Header {
    /// Takes the fields out of the first bytes of the file; missing bytes read as zeroes.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let version = be_u32(bytes, 4);
        let v3 = version >= 3;
        let field = |at| if v3 { be_u64(bytes, at) } else { 0 };
        let header_length = if v3 { be_u32(bytes, 100) } else { V2_LEN };
        Self {
            magic: be_u32(bytes, 0),
            version,
            backing_offset: be_u64(bytes, 8),
            backing_len: be_u32(bytes, 16),
            cluster_bits: be_u32(bytes, 20),
            size: be_u64(bytes, 24),
            crypt_method: be_u32(bytes, 32),
            l1_size: be_u32(bytes, 36),
            l1_offset: be_u64(bytes, 40),
            refcount_table_offset: be_u64(bytes, 48),
            refcount_table_clusters: be_u32(bytes, 56),
            nb_snapshots: be_u32(bytes, 60),
            snapshots_offset: be_u64(bytes, 64),
            incompatible: field(72),
            compatible: field(80),
            autoclear: field(88),
            refcount_order: if v3 { be_u32(bytes, 96) } else { 4 },
            header_length,
            compression_type: if header_length > 104 { bytes.get(104).copied().unwrap_or(0) } else { 0 },
        }
    }
}

/// What every later step computes with. Made only of checked values: shifts by its bits can not overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// 9..=30.
    pub(crate) cluster_bits: u32,
    /// 0..=6.
    pub(crate) refcount_order: u32,
    /// Size of the guest's disk.
    pub(crate) size: u64,
    /// Incompatible bit 4.
    pub(crate) extended_l2: bool,
    /// Incompatible bit 2.
    pub(crate) external_data: bool,
    /// 2 or 3.
    pub(crate) version: u32,
    /// Compression type 1.
    pub(crate) zstd: bool,
}

impl Geometry {
    /// The geometry these fields mean; `None` if clusters can not be computed with them.
    pub(crate) fn of(header: &Header) -> Option<Self> {
        let usable = (9..=30).contains(&header.cluster_bits) && header.refcount_order <= 6;
        usable.then_some(Self {
            cluster_bits: header.cluster_bits,
            refcount_order: header.refcount_order,
            size: header.size,
            extended_l2: header.incompatible & 1 << 4 != 0,
            external_data: header.incompatible & 1 << 2 != 0,
            version: header.version.clamp(2, 3),
            zstd: header.compression_type == 1,
        })
    }

    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of an L2 entry.
    pub(crate) fn l2_entry_len(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Entries of an L2 table.
    pub(crate) fn l2_entries(&self) -> u64 {
        self.cluster_size() >> if self.extended_l2 { 4 } else { 3 }
    }

    /// Bytes of the guest's disk one L2 table maps.
    pub(crate) fn l2_window(&self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    /// Width of a reference count.
    pub(crate) fn refcount_bits(&self) -> u32 {
        1 << self.refcount_order
    }

    /// Reference counts in a refcount block.
    pub(crate) fn refcounts_per_block(&self) -> u64 {
        self.cluster_size().saturating_mul(8) >> self.refcount_order
    }

    /// L1 entries the disk needs; entries beyond are for VM state.
    pub(crate) fn l1_needed(&self) -> u64 {
        self.size.div_ceil(self.l2_window().max(1))
    }
}
