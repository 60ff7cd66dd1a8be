//! Creating images.

use std::rc::Rc;

use blkproof_block::graph::{OpenError, Options};
use blkproof_block::{BlockDevice, Preallocation, WriteFlags};
use zerocopy::IntoBytes;
use zerocopy::byteorder::big_endian::{U32, U64};

use super::header::{
    COMPRESSION, Compression, EXT_BACKING_FORMAT, EXT_DATA_FILE, EXT_FEATURE_NAMES, EXTENDED_L2, EXTERNAL_DATA,
    L1_BYTES_MAX, LAZY_REFCOUNTS, MAGIC, RAW_EXTERNAL, REFTABLE_BYTES_MAX, RawHeader, RawHeaderV3,
};
use super::refcount::Width;
use super::units::{Geometry, index};
use super::{OpenOptions, Qcow2};

/// What a new image is to be like; the names are those of `qemu-img create -o`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreateOptions {
    /// Virtual size in bytes.
    pub size: u64,
    /// 512 bytes to 2 MiB, a power of two.
    pub cluster_size: u64,
    /// 2 (`compat=0.10`) or 3 (`compat=1.1`).
    pub version: u32,
    /// 1, 2, 4, 8, 16, 32 or 64.
    pub refcount_bits: u32,
    /// Refcounts are written late, and rebuilt after a crash.
    pub lazy_refcounts: bool,
    /// Subclusters.
    pub extended_l2: bool,
    /// `compression_type=zstd` instead of `zlib`.
    pub zstd: bool,
    /// Name of the backing file, as it is to stand in the image.
    pub backing_file: Option<String>,
    /// Format of the backing file.
    pub backing_format: Option<String>,
    /// Name of the external data file, as it is to stand in the image.
    pub data_file: Option<String>,
    /// The data file is to read as a raw image by itself.
    pub data_file_raw: bool,
    /// What is allocated ahead.
    pub preallocation: Preallocation,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            size: 0,
            cluster_size: 65536,
            version: 3,
            refcount_bits: 16,
            lazy_refcounts: false,
            extended_l2: false,
            zstd: false,
            backing_file: None,
            backing_format: None,
            data_file: None,
            data_file_raw: false,
            preallocation: Preallocation::Off,
        }
    }
}

fn usage(words: impl Into<String>) -> OpenError {
    OpenError::Usage(words.into())
}

impl CreateOptions {
    /// Takes the creation options out of `options`; `size` is left at 0 and the rest of the tree to the caller.
    ///
    /// # Errors
    /// [`OpenError::Option`] for a value of the wrong shape.
    pub fn take(options: &mut Options) -> Result<Self, OpenError> {
        let defaults = Self::default();
        let compat = [("0.10", 2), ("1.1", 3), ("v2", 2), ("v3", 3)];
        let preallocation = [
            ("off", Preallocation::Off),
            ("metadata", Preallocation::Metadata),
            ("falloc", Preallocation::Falloc),
            ("full", Preallocation::Full),
        ];
        let bits = options.take_u64("refcount_bits")?;
        let zstd = options.take_choice("compression_type", &[("zlib", false), ("zstd", true)])?;
        Ok(Self {
            size: 0,
            extended_l2: options.take_bool("extended_l2")?.unwrap_or(false),
            cluster_size: options.take_size("cluster_size")?.unwrap_or(defaults.cluster_size),
            version: options.take_choice("compat", &compat)?.unwrap_or(defaults.version),
            refcount_bits: bits.map_or(defaults.refcount_bits, |bits| u32::try_from(bits).unwrap_or(0)),
            lazy_refcounts: options.take_bool("lazy_refcounts")?.unwrap_or(false),
            zstd: zstd.unwrap_or(false),
            backing_file: options.take_text("backing_file")?,
            backing_format: options.take_text("backing_fmt")?,
            data_file: options.take_text("data_file")?,
            data_file_raw: options.take_bool("data_file_raw")?.unwrap_or(false),
            preallocation: options.take_choice("preallocation", &preallocation)?.unwrap_or_default(),
        })
    }

    /// QEMU's description, as `qemu-img create` prints it behind `fmt=qcow2 `.
    pub fn describe(&self) -> String {
        self.describe_with((self.version == 2).then_some("0.10"))
    }

    /// The same with `compat` in the words it was given in, which QEMU repeats.
    pub(super) fn describe_with(&self, compat: Option<&str>) -> String {
        let on = |flag: bool| if flag { "on" } else { "off" };
        let mut text = format!("cluster_size={} extended_l2={}", self.cluster_size, on(self.extended_l2));
        match self.preallocation {
            Preallocation::Off => {}
            Preallocation::Metadata => text.push_str(" preallocation=metadata"),
            Preallocation::Falloc => text.push_str(" preallocation=falloc"),
            Preallocation::Full => text.push_str(" preallocation=full"),
        }
        let kind = if self.zstd { "zstd" } else { "zlib" };
        text.push_str(&format!(" compression_type={kind} size={}", self.size));
        if let Some(compat) = compat {
            text.push_str(&format!(" compat={compat}"));
        }
        for (name, value) in [
            ("backing_file", &self.backing_file),
            ("backing_fmt", &self.backing_format),
            ("data_file", &self.data_file),
        ] {
            if let Some(value) = value {
                text.push_str(&format!(" {name}={value}"));
            }
        }
        if self.data_file_raw {
            text.push_str(" data_file_raw=on");
        }
        text.push_str(&format!(" lazy_refcounts={} refcount_bits={}", on(self.lazy_refcounts), self.refcount_bits));
        text
    }

    fn geometry(&self) -> Result<Geometry, OpenError> {
        if !self.cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&self.cluster_size) {
            return Err(usage("cluster size must be a power of two between 512 and 2048k"));
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return Err(usage("refcount width must be a power of two and may not exceed 64 bits"));
        }
        let old = self.version < 3;
        if old && self.refcount_bits != 16 {
            return Err(usage(
                "different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)",
            ));
        }
        for (asked, what) in [
            (self.lazy_refcounts, "lazy refcounts"),
            (self.extended_l2, "extended L2 entries"),
            (self.zstd, "non-zlib compression types"),
            (self.data_file.is_some(), "external data files"),
        ] {
            if asked && old {
                return Err(usage(format!(
                    "{what} only supported with compatibility level 1.1 and above (use version=v3 or greater)"
                )));
            }
        }
        if self.extended_l2 && self.cluster_size < 16 << 10 {
            return Err(usage("extended L2 entries are only supported with cluster sizes of at least 16384 bytes"));
        }
        if self.data_file_raw && self.data_file.is_none() {
            return Err(usage("data-file-raw requires data-file"));
        }
        if self.data_file_raw && self.backing_file.is_some() {
            return Err(usage("backing file and data-file-raw cannot be used at the same time"));
        }
        if self.preallocation != Preallocation::Off && self.backing_file.is_some() && !self.extended_l2 {
            return Err(usage(
                "backing file and preallocation can only be used at the same time if extended_l2 is enabled",
            ));
        }
        if self.backing_file.as_ref().is_some_and(|name| name.len() > 1023) {
            return Err(usage("backing file name too long"));
        }
        if self.backing_format.is_some() && self.backing_file.is_none() {
            return Err(usage("backing format cannot be used without backing file"));
        }
        Ok(Geometry {
            version: self.version,
            cluster_bits: self.cluster_size.trailing_zeros(),
            refcount_order: self.refcount_bits.trailing_zeros(),
            extended: self.extended_l2,
            external_data: self.data_file.is_some(),
            raw_external: self.data_file_raw,
        })
    }
}

/// Writes a new image to `file`, which is empty (or whose content does not matter: nothing of it will be referred to).
///
/// `data_file` is the external data file, if the options name one.
///
/// # Errors
/// [`OpenError::Usage`] for options that exclude each other, [`OpenError::Io`] for a failure below.
pub async fn create<D: BlockDevice>(
    file: Rc<D>,
    data_file: Option<Rc<D>>,
    options: &CreateOptions,
) -> Result<(), OpenError> {
    let geometry = options.geometry()?;
    let cluster = geometry.cluster_size();
    if options.size > i64::MAX.unsigned_abs() - (1 << 21) {
        return Err(usage("the disk would be too large"));
    }
    let l1_entries = geometry.l1_entries(options.size);
    let l1_bytes = l1_entries.saturating_mul(8);
    if l1_bytes > L1_BYTES_MAX {
        return Err(usage("the image is too large for file format 'qcow2' (try using a larger cluster size)"));
    }
    // A disk of no bytes has no L1 table at all.
    let l1_clusters = geometry.clusters(l1_bytes);

    // Cluster 0 header, then the refcount table, its blocks, the L1 table.
    let (mut table_clusters, mut blocks) = (1, 1);
    loop {
        let total = 1 + table_clusters + blocks + l1_clusters;
        let needed = total.div_ceil(1 << geometry.block_bits());
        let needed_table = geometry.clusters(needed * 8);
        if needed <= blocks && needed_table <= table_clusters {
            break;
        }
        (blocks, table_clusters) = (needed.max(blocks), needed_table.max(table_clusters));
    }
    if table_clusters * cluster > REFTABLE_BYTES_MAX {
        return Err(usage("the image is too large for file format 'qcow2' (try using a larger cluster size)"));
    }
    let total = 1 + table_clusters + blocks + l1_clusters;
    let l1_offset = if l1_clusters == 0 { 0 } else { (1 + table_clusters + blocks) * cluster };
    let header = header_cluster(options, &geometry, l1_entries, table_clusters, l1_offset)?;

    let mut tables = vec![0u8; index((total - 1) * cluster)];
    for number in 0..blocks {
        let offset = (1 + table_clusters + number) * cluster;
        if let Some(entry) = tables.get_mut(index(number * 8)..index(number * 8 + 8)) {
            entry.copy_from_slice(&offset.to_be_bytes());
        }
        let at = index(offset - cluster);
        let block = tables.get_mut(at..at + index(cluster)).unwrap_or_default();
        let base = number << geometry.block_bits();
        for i in 0..total.saturating_sub(base).min(1 << geometry.block_bits()) {
            Width(geometry.refcount_order).set(block, index(i), 1);
        }
    }
    let info = file.info();
    if !info.capabilities.contains(blkproof_block::Capabilities::GROWS) && info.size < total * cluster {
        let grown = file.resize(total * cluster, Preallocation::Off).await;
        grown.map_err(|e| OpenError::io("could not resize the file", e))?;
    }
    // The header comes last: until it is there the file is no image.
    let failed = |e| OpenError::io("could not write the qcow2 image", e);
    file.write(cluster, &tables, WriteFlags::empty()).await.map_err(failed)?;
    file.flush().await.map_err(failed)?;
    file.write(0, &header, WriteFlags::empty()).await.map_err(failed)?;
    file.flush().await.map_err(failed)?;

    if let Some(data) = data_file.as_ref().filter(|data| data.info().size < options.size) {
        let grown = data.resize(options.size, Preallocation::Off).await;
        grown.map_err(|e| OpenError::io("could not resize the data file", e))?;
    }
    let mut preallocation = options.preallocation;
    if options.data_file_raw && preallocation == Preallocation::Off {
        // The map must say "data" everywhere, or zeroes of the map could differ from what the file holds.
        preallocation = Preallocation::Metadata;
    }
    if preallocation != Preallocation::Off && options.size > 0 {
        let image = Qcow2::open(file, OpenOptions { data_file, ..OpenOptions::default() }).await?;
        let failed = |e| OpenError::io("could not preallocate", e);
        image.preallocate(0, options.size, preallocation).await.map_err(failed)?;
        image.commit_for_close().await.map_err(failed)?;
    }
    Ok(())
}

fn header_cluster(
    options: &CreateOptions,
    geometry: &Geometry,
    l1_entries: u64,
    table_clusters: u64,
    l1_offset: u64,
) -> Result<Vec<u8>, OpenError> {
    let cluster = index(geometry.cluster_size());
    let narrow = |value: u64| U32::new(u32::try_from(value).unwrap_or(u32::MAX));
    let mut raw = RawHeader {
        magic: U32::new(MAGIC),
        version: U32::new(options.version),
        backing_file_offset: U64::new(0),
        backing_file_size: U32::new(0),
        cluster_bits: U32::new(geometry.cluster_bits),
        size: U64::new(options.size),
        crypt_method: U32::new(0),
        l1_size: narrow(l1_entries),
        l1_table_offset: U64::new(l1_offset),
        refcount_table_offset: U64::new(geometry.cluster_size()),
        refcount_table_clusters: narrow(table_clusters),
        nb_snapshots: U32::new(0),
        snapshots_offset: U64::new(0),
    };
    let bit = |flag: bool, bit: u64| if flag { bit } else { 0 };
    let v3 = RawHeaderV3 {
        incompatible_features: U64::new(
            bit(geometry.external_data, EXTERNAL_DATA)
                | bit(options.zstd, COMPRESSION)
                | bit(geometry.extended, EXTENDED_L2),
        ),
        compatible_features: U64::new(bit(options.lazy_refcounts, LAZY_REFCOUNTS)),
        autoclear_features: U64::new(bit(options.data_file_raw, RAW_EXTERNAL)),
        refcount_order: U32::new(geometry.refcount_order),
        header_length: U32::new(112),
        compression_type: if options.zstd { compression_byte(Compression::Zstd) } else { 0 },
        padding: [0; 7],
    };
    let mut extensions = Vec::new();
    if let Some(format) = &options.backing_format {
        extension(&mut extensions, EXT_BACKING_FORMAT, format.as_bytes());
    }
    if let Some(name) = &options.data_file {
        extension(&mut extensions, EXT_DATA_FILE, name.as_bytes());
    }
    let fixed = if options.version >= 3 { 112 } else { 72 };
    let name_len = options.backing_file.as_ref().map_or(0, String::len);
    if options.version >= 3 {
        let mut with_names = extensions.clone();
        extension(&mut with_names, EXT_FEATURE_NAMES, &feature_names());
        // The table is a courtesy; in tiny clusters it gives way to the backing file's name.
        if fixed + with_names.len() + 8 + name_len <= cluster {
            extensions = with_names;
        }
    }
    extension(&mut extensions, 0, &[]);
    if let Some(name) = &options.backing_file {
        raw.backing_file_offset = U64::new((fixed + extensions.len()) as u64);
        raw.backing_file_size = narrow(name.len() as u64);
    }
    let mut bytes = raw.as_bytes().to_vec();
    if options.version >= 3 {
        bytes.extend_from_slice(v3.as_bytes());
    }
    bytes.extend_from_slice(&extensions);
    bytes.extend_from_slice(options.backing_file.as_deref().unwrap_or_default().as_bytes());
    if bytes.len() > cluster {
        return Err(usage("the names do not fit into the first cluster (try using a larger cluster size)"));
    }
    bytes.resize(cluster, 0);
    Ok(bytes)
}

fn compression_byte(kind: Compression) -> u8 {
    match kind {
        Compression::Zlib => 0,
        Compression::Zstd => 1,
    }
}

fn extension(out: &mut Vec<u8>, kind: u32, data: &[u8]) {
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// The names of all feature bits of the specification: kind (0 incompatible, 1 compatible, 2 autoclear), bit, name.
fn feature_names() -> Vec<u8> {
    let names: [(u8, u8, &str); 8] = [
        (0, 0, "dirty bit"),
        (0, 1, "corrupt bit"),
        (0, 2, "external data file"),
        (0, 3, "compression type"),
        (0, 4, "extended L2 entries"),
        (1, 0, "lazy refcounts"),
        (2, 0, "bitmaps"),
        (2, 1, "raw external data"),
    ];
    let mut table = Vec::new();
    for (kind, bit, name) in names {
        let end = table.len() + 48;
        table.push(kind);
        table.push(bit);
        table.extend_from_slice(name.as_bytes());
        table.resize(end, 0);
    }
    table
}
