//! The header: wire format, extensions, and what makes an image unreadable for us (specification, "Header").
//!
//! The image is input. Every length is bounded before anything is allocated, every offset checked for alignment, and
//! what we do not understand is refused by name.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use blkproof_block::graph::OpenError;
use blkproof_block::{BlockDevice, IoError, Result};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::units::Geometry;

/// `QFI\xfb`.
pub(crate) const MAGIC: u32 = 0x5146_49fb;
/// Incompatible bit 0: refcounts may be stale.
pub(crate) const DIRTY: u64 = 1;
/// Incompatible bit 1: some structure is damaged; not to be written.
pub(crate) const CORRUPT: u64 = 1 << 1;
/// Incompatible bit 2: guest data lies in an external file.
pub(crate) const EXTERNAL_DATA: u64 = 1 << 2;
/// Incompatible bit 3: a compression type other than zlib.
pub(crate) const COMPRESSION: u64 = 1 << 3;
/// Incompatible bit 4: extended L2 entries.
pub(crate) const EXTENDED_L2: u64 = 1 << 4;
/// Compatible bit 0.
pub(crate) const LAZY_REFCOUNTS: u64 = 1;
/// Autoclear bit 1: the external data file is a raw image by itself.
pub(crate) const RAW_EXTERNAL: u64 = 1 << 1;

/// Extension: format name of the backing file.
pub(crate) const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
/// Extension: feature name table.
pub(crate) const EXT_FEATURE_NAMES: u32 = 0x6803_f857;
/// Extension: bitmaps.
pub(crate) const EXT_BITMAPS: u32 = 0x2385_2875;
/// Extension: full disk encryption header.
pub(crate) const EXT_CRYPTO: u32 = 0x0537_be77;
/// Extension: external data file name.
pub(crate) const EXT_DATA_FILE: u32 = 0x4441_5441;

/// Limits that are QEMU's, not the format's; they bound what an image can make us allocate.
pub(crate) const L1_BYTES_MAX: u64 = 32 << 20;
/// Largest refcount table in bytes.
pub(crate) const REFTABLE_BYTES_MAX: u64 = 8 << 20;
/// Most internal snapshots.
pub(crate) const SNAPSHOTS_MAX: u32 = 65_536;

/// The header as of version 2, 72 bytes, big endian.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawHeader {
    pub(crate) magic: U32,                 // "QFI\xfb"
    pub(crate) version: U32,               // 2 or 3
    pub(crate) backing_file_offset: U64,   // of the name, inside cluster 0; 0: no backing file
    pub(crate) backing_file_size: U32,     // length of the name in bytes, at most 1023
    pub(crate) cluster_bits: U32,          // 9..=21
    pub(crate) size: U64,                  // virtual size in bytes
    pub(crate) crypt_method: U32,          // 0 none, 1 AES, 2 LUKS
    pub(crate) l1_size: U32,               // entries
    pub(crate) l1_table_offset: U64,       // cluster aligned
    pub(crate) refcount_table_offset: U64, // cluster aligned
    pub(crate) refcount_table_clusters: U32,
    pub(crate) nb_snapshots: U32,
    pub(crate) snapshots_offset: U64, // cluster aligned
}
const _: () = assert!(size_of::<RawHeader>() == 72);

/// What version 3 adds, bytes 72..112.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawHeaderV3 {
    pub(crate) incompatible_features: U64,
    pub(crate) compatible_features: U64,
    pub(crate) autoclear_features: U64,
    pub(crate) refcount_order: U32,  // log2 of the width in bits
    pub(crate) header_length: U32,   // multiple of 8, at least 104
    pub(crate) compression_type: u8, // absent (0) in a header of 104 bytes
    pub(crate) padding: [u8; 7],
}
const _: () = assert!(size_of::<RawHeaderV3>() == 40);

/// How clusters are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Compression {
    /// Raw deflate; QEMU writes it with a window of 4 KiB.
    Zlib,
    /// One zstd frame, or several.
    Zstd,
}

/// A header that has been checked.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) geometry: Geometry,
    pub(crate) size: u64,
    pub(crate) l1_entries: u32,
    pub(crate) l1_offset: u64,
    pub(crate) reftable_offset: u64,
    pub(crate) reftable_clusters: u32,
    pub(crate) snapshots: u32,
    pub(crate) snapshots_offset: u64,
    pub(crate) incompatible: u64,
    pub(crate) compatible: u64,
    pub(crate) autoclear: u64,
    pub(crate) compression: Compression,
    pub(crate) backing_name: Option<String>,
    pub(crate) backing_format: Option<String>,
    pub(crate) data_file_name: Option<String>,
    pub(crate) bitmaps: Option<BitmapsExtension>,
    /// The first 512 bytes as they are on disk; what we change is patched in, all else is kept.
    pub(crate) sector: Vec<u8>,
}

/// The bitmaps extension.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BitmapsExtension {
    pub(crate) count: u32,
    pub(crate) directory_size: u64,
    pub(crate) directory_offset: u64,
}

fn image(words: impl Into<String>) -> OpenError {
    OpenError::Image(words.into())
}

/// Fills `buf` from `at`; what lies past the end of the file reads as zeroes.
pub(crate) async fn read_padded<D: BlockDevice>(file: &D, at: u64, buf: &mut [u8]) -> Result<()> {
    let size = file.info().size;
    let inside = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX).min(buf.len());
    let Some((head, tail)) = buf.split_at_mut_checked(inside) else { return Err(IoError::past_end(at, 0, size)) };
    tail.fill(0);
    if head.is_empty() { Ok(()) } else { file.read(at, head).await }
}

impl Header {
    /// Reads and checks the header of `file`.
    pub(crate) async fn load<D: BlockDevice>(file: &D) -> Result<Self, OpenError> {
        let mut head = vec![0; 4096];
        read_padded(file, 0, &mut head).await.map_err(|e| OpenError::io("could not read the qcow2 header", e))?;
        let (raw, _) = RawHeader::read_from_prefix(&head).map_err(|_| image("image is not in qcow2 format"))?;
        if raw.magic.get() != MAGIC {
            return Err(image("image is not in qcow2 format"));
        }
        let bits = raw.cluster_bits.get();
        if !(9..=21).contains(&bits) {
            return Err(image(format!("unsupported cluster size: 2^{bits}")));
        }
        let cluster = 1usize << bits;
        if cluster > head.len() {
            // Names and extensions lie anywhere in the first cluster.
            head.resize(cluster, 0);
            read_padded(file, 0, &mut head).await.map_err(|e| OpenError::io("could not read the qcow2 header", e))?;
        }
        head.truncate(cluster);
        Self::parse(&head)
    }

    /// Checks a header; `cluster` is the first cluster of the file.
    pub(crate) fn parse(cluster: &[u8]) -> Result<Self, OpenError> {
        let (raw, rest) = RawHeader::read_from_prefix(cluster).map_err(|_| image("image is not in qcow2 format"))?;
        if raw.magic.get() != MAGIC {
            return Err(image("image is not in qcow2 format"));
        }
        let version = raw.version.get();
        if !(2..=3).contains(&version) {
            return Err(image(format!("unsupported qcow2 version {version}")));
        }
        let cluster_bits = raw.cluster_bits.get();
        if !(9..=21).contains(&cluster_bits) || cluster.len() != 1usize << cluster_bits {
            return Err(image(format!("unsupported cluster size: 2^{cluster_bits}")));
        }
        let mut v3 = RawHeaderV3::new_zeroed();
        v3.refcount_order = U32::new(4);
        let mut header_length = 72;
        if version == 3 {
            let (found, _) = RawHeaderV3::read_from_prefix(rest).map_err(|_| image("qcow2 header too short"))?;
            header_length = found.header_length.get();
            let length = usize::try_from(header_length).unwrap_or(usize::MAX);
            if header_length < 104 || length > cluster.len() || header_length % 8 != 0 {
                return Err(image(format!(
                    "qcow2 header length {header_length} is not a multiple of 8 between 104 and the cluster size"
                )));
            }
            v3 = found;
            if header_length <= 104 {
                v3.compression_type = 0;
            }
        }
        // Wrong even if the name is empty: it also ends the extensions.
        let backing_offset = raw.backing_file_offset.get();
        if usize::try_from(backing_offset).map_or(true, |offset| offset > cluster.len()) {
            return Err(image(format!("invalid backing file offset {backing_offset:#x}: past the first cluster")));
        }
        let extensions = Extensions::parse(cluster, header_length, raw.backing_file_offset.get())?;
        let incompatible = v3.incompatible_features.get();
        extensions.refuse_unknown(incompatible)?;
        if extensions.crypto || raw.crypt_method.get() != 0 {
            let method = match raw.crypt_method.get() {
                1 => "AES-CBC",
                2 => "LUKS",
                _ => "unknown",
            };
            return Err(image(format!("encrypted images are not supported (encryption method: {method})")));
        }
        let refcount_order = v3.refcount_order.get();
        if refcount_order > 6 {
            return Err(image("reference count entry width too large; may not exceed 64 bits"));
        }
        let compression = match (v3.compression_type, incompatible & COMPRESSION != 0) {
            (0, false) => Compression::Zlib,
            (1, true) => Compression::Zstd,
            (kind, true) => return Err(image(format!("unsupported qcow2 compression type {kind}"))),
            (kind, false) => {
                return Err(image(format!("compression type {kind} without the incompatible feature bit")));
            }
        };
        let extended = incompatible & EXTENDED_L2 != 0;
        if extended && cluster_bits < 14 {
            return Err(image("extended L2 entries need clusters of at least 16 KiB"));
        }
        let external_data = incompatible & EXTERNAL_DATA != 0;
        let geometry = Geometry {
            version,
            cluster_bits,
            refcount_order,
            extended,
            external_data,
            raw_external: external_data && v3.autoclear_features.get() & RAW_EXTERNAL != 0,
        };
        let header = Self {
            geometry,
            size: raw.size.get(),
            l1_entries: raw.l1_size.get(),
            l1_offset: raw.l1_table_offset.get(),
            reftable_offset: raw.refcount_table_offset.get(),
            reftable_clusters: raw.refcount_table_clusters.get(),
            snapshots: raw.nb_snapshots.get(),
            snapshots_offset: raw.snapshots_offset.get(),
            incompatible,
            compatible: v3.compatible_features.get(),
            autoclear: v3.autoclear_features.get(),
            compression,
            backing_name: backing_name(cluster, &raw)?,
            backing_format: extensions.backing_format,
            data_file_name: if external_data { extensions.data_file } else { None },
            bitmaps: extensions.bitmaps,
            sector: cluster.get(..512).unwrap_or_default().to_vec(),
        };
        header.check_tables()?;
        Ok(header)
    }

    fn check_tables(&self) -> Result<(), OpenError> {
        let geometry = &self.geometry;
        if self.size > i64::MAX.unsigned_abs().saturating_sub(1 << 21) {
            return Err(image(format!("virtual size {:#x} is too large", self.size)));
        }
        table(geometry, "active L1 table", self.l1_offset, u64::from(self.l1_entries).saturating_mul(8), L1_BYTES_MAX)?;
        if u64::from(self.l1_entries) < geometry.l1_entries(self.size) {
            return Err(image(format!(
                "L1 table is too small: {} entries for a disk of {:#x} bytes",
                self.l1_entries, self.size
            )));
        }
        if self.reftable_clusters == 0 {
            return Err(image("image does not contain a reference count table"));
        }
        let bytes = u64::from(self.reftable_clusters).saturating_mul(geometry.cluster_size());
        table(geometry, "reference count table", self.reftable_offset, bytes, REFTABLE_BYTES_MAX)?;
        if self.reftable_offset == 0 {
            return Err(image("reference count table at offset 0"));
        }
        if self.snapshots > SNAPSHOTS_MAX {
            let (found, max) = (self.snapshots, SNAPSHOTS_MAX);
            return Err(image(format!("snapshot table too large: {found} snapshots, at most {max} are supported")));
        }
        // Without snapshots too: whoever makes the first one trusts the offset.
        let bytes = u64::from(self.snapshots).saturating_mul(40);
        table(geometry, "snapshot table", self.snapshots_offset, bytes, 64 << 20)?;
        if geometry.external_data && self.snapshots > 0 {
            return Err(image("an external data file and internal snapshots exclude each other"));
        }
        Ok(())
    }

    /// Whether refcounts may be stale.
    pub(crate) fn is_dirty(&self) -> bool {
        self.incompatible & DIRTY != 0
    }

    /// Whether the image was marked damaged.
    pub(crate) fn is_corrupt(&self) -> bool {
        self.incompatible & CORRUPT != 0
    }

    /// The first sector with every field we change put in. All of them lie in it, so one sector write switches them
    /// together: a power cut leaves the old header or the new one.
    pub(crate) fn to_sector(&self) -> Vec<u8> {
        let mut sector = self.sector.clone();
        if let Ok((raw, rest)) = RawHeader::mut_from_prefix(&mut sector) {
            raw.size = U64::new(self.size);
            raw.l1_size = U32::new(self.l1_entries);
            raw.l1_table_offset = U64::new(self.l1_offset);
            raw.refcount_table_offset = U64::new(self.reftable_offset);
            raw.refcount_table_clusters = U32::new(self.reftable_clusters);
            if self.geometry.version >= 3
                && let Ok((v3, _)) = RawHeaderV3::mut_from_prefix(rest)
            {
                v3.incompatible_features = U64::new(self.incompatible);
                v3.compatible_features = U64::new(self.compatible);
                v3.autoclear_features = U64::new(self.autoclear);
            }
        }
        sector
    }
}

/// Bounds a table that the header points at.
pub(crate) fn table(geometry: &Geometry, what: &str, offset: u64, bytes: u64, max: u64) -> Result<(), OpenError> {
    if bytes > max {
        return Err(image(format!("{what} too large: {bytes} bytes, at most {max} are supported")));
    }
    if geometry.in_cluster(offset) != 0 {
        return Err(image(format!("invalid {what} offset {offset:#x}: not cluster aligned")));
    }
    match offset.checked_add(bytes) {
        Some(end) if end <= i64::MAX.unsigned_abs() => {}
        _ => return Err(image(format!("invalid {what} offset {offset:#x}: past the largest file"))),
    }
    if bytes > 0 && offset == 0 {
        return Err(image(format!("invalid {what} offset 0: that is the header")));
    }
    Ok(())
}

fn backing_name(cluster: &[u8], raw: &RawHeader) -> Result<Option<String>, OpenError> {
    if raw.backing_file_offset.get() == 0 {
        return Ok(None);
    }
    let len = usize::try_from(raw.backing_file_size.get()).unwrap_or(usize::MAX);
    if len > 1023 {
        return Err(image("backing file name too long"));
    }
    let start = usize::try_from(raw.backing_file_offset.get()).unwrap_or(usize::MAX);
    let name = start.checked_add(len).and_then(|end| cluster.get(start..end));
    let name = name.ok_or_else(|| image("backing file name reaches past the first cluster"))?;
    if name.is_empty() {
        return Ok(None);
    }
    String::from_utf8(name.to_vec()).map(Some).map_err(|_| image("backing file name is not valid text"))
}

#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    data_file: Option<String>,
    bitmaps: Option<BitmapsExtension>,
    crypto: bool,
    /// Type, bit, name.
    names: Vec<(u8, u8, String)>,
}

impl Extensions {
    fn parse(cluster: &[u8], start: u32, backing_offset: u64) -> Result<Self, OpenError> {
        let mut found = Self::default();
        let end = match usize::try_from(backing_offset) {
            Ok(0) | Err(_) => cluster.len(),
            Ok(offset) => offset.min(cluster.len()),
        };
        let mut rest = usize::try_from(start).ok().and_then(|start| cluster.get(start..end)).unwrap_or_default();
        while let Ok((kind, after)) = U32::read_from_prefix(rest) {
            let Ok((len, after)) = U32::read_from_prefix(after) else { break };
            if kind.get() == 0 {
                break;
            }
            let len = usize::try_from(len.get()).unwrap_or(usize::MAX);
            let Some((data, after)) = after.split_at_checked(len) else {
                return Err(image(format!("header extension {:#x} reaches past the extension area", kind.get())));
            };
            match kind.get() {
                EXT_BACKING_FORMAT => found.backing_format = Some(text(data, "backing format")?),
                EXT_DATA_FILE => found.data_file = Some(text(data, "data file name")?),
                EXT_CRYPTO => found.crypto = true,
                EXT_FEATURE_NAMES => found.names = feature_names(data),
                EXT_BITMAPS => found.bitmaps = Some(bitmaps(data)?),
                _ => {} // not ours to understand, and kept where it is
            }
            let padding = len.wrapping_neg() & 7;
            rest = after.get(padding..).unwrap_or_default();
        }
        Ok(found)
    }

    fn refuse_unknown(&self, incompatible: u64) -> Result<(), OpenError> {
        let known = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2;
        let names: Vec<String> = (0..64u8)
            .filter(|bit| (incompatible & !known) >> bit & 1 == 1)
            .map(|bit| {
                let name = self.names.iter().find(|(kind, number, _)| (*kind, *number) == (0, bit));
                name.map_or_else(|| format!("unknown incompatible feature, bit {bit}"), |(_, _, name)| name.clone())
            })
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        Err(image(format!("unsupported qcow2 feature(s): {}", names.join(", "))))
    }
}

fn text(data: &[u8], what: &str) -> Result<String, OpenError> {
    if data.len() > 1023 {
        return Err(image(format!("{what} too long")));
    }
    String::from_utf8(data.to_vec()).map_err(|_| image(format!("{what} is not valid text")))
}

fn feature_names(data: &[u8]) -> Vec<(u8, u8, String)> {
    let entries = data.chunks_exact(48).take(192);
    entries
        .filter_map(|entry| match entry {
            [kind, bit, name @ ..] => {
                let name = name.split(|&b| b == 0).next().unwrap_or_default();
                Some((*kind, *bit, String::from_utf8_lossy(name).into_owned()))
            }
            _ => None,
        })
        .collect()
}

fn bitmaps(data: &[u8]) -> Result<BitmapsExtension, OpenError> {
    let fields = U32::read_from_prefix(data).ok().and_then(|(count, rest)| {
        let (_reserved, rest) = U32::read_from_prefix(rest).ok()?;
        let (size, rest) = U64::read_from_prefix(rest).ok()?;
        let (offset, _) = U64::read_from_prefix(rest).ok()?;
        Some(BitmapsExtension { count: count.get(), directory_size: size.get(), directory_offset: offset.get() })
    });
    fields.ok_or_else(|| image("bitmaps extension too short"))
}
