//! The header's fields as they stand in the file, what is wrong with them, and the geometry that follows.
//!
//! Order: the fields are read; `Options::assume` replaces those the user knows better; if something else lies at the
//! start of the file, nothing of it is believed (`guess` may find out more). Each field is judged as it is stored, so
//! that an image whose header had to be helped is never called healthy.
//!
//! qcow2 spec, sections "Header" and "Additional fields". All fields are big endian.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::bytes::{be_u32, be_u64, is_zero, printable};
use crate::code::Severity;
use crate::context::Context;
use crate::finding::Finding;
use crate::options::Assume;
use crate::probe::Format;

use super::codes::structure as codes;
use super::guess;
use super::side::Table;

/// `QFI\xfb`.
pub(crate) const MAGIC: u32 = 0x5146_49fb;
/// Bytes of the version 2 header.
pub(crate) const V2_LEN: u32 = 72;
/// Bytes a version 3 header has at least.
const V3_LEN: u32 = 104;
/// Header bytes read at first: all fixed fields are there, whatever the cluster size.
const READ_LEN: usize = 512;
/// Of the first cluster no more is looked at. Clusters are not larger anywhere.
const FIRST_LEN: u64 = 2 << 20;

/// QEMU's limits (not the format's): cluster bits, bytes of the tables.
pub(crate) const CLUSTER_BITS_MAX: u32 = 21;
const L1_LEN_MAX: u64 = 32 << 20;
const REFTABLE_LEN_MAX: u64 = 8 << 20;

pub(crate) const DIRTY: u64 = 1;
pub(crate) const CORRUPT: u64 = 1 << 1;
pub(crate) const EXTERNAL_DATA: u64 = 1 << 2;
pub(crate) const COMPRESSION: u64 = 1 << 3;
pub(crate) const EXTENDED_L2: u64 = 1 << 4;
/// Compatible: counts may lag behind.
pub(crate) const LAZY: u64 = 1;
/// Autoclear: the bitmaps are consistent.
pub(crate) const BITMAPS: u64 = 1;
/// Autoclear: the data file read alone is the disk.
pub(crate) const RAW_DATA: u64 = 1 << 1;

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
        Self::parse_as(bytes, be_u32(bytes, 4) >= 3)
    }

    fn parse_as(bytes: &[u8], v3: bool) -> Self {
        let field = |at| if v3 { be_u64(bytes, at) } else { 0 };
        let header_length = if v3 { be_u32(bytes, 100) } else { V2_LEN };
        Self {
            magic: be_u32(bytes, 0),
            version: be_u32(bytes, 4),
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
            compression_type: if header_length > V3_LEN { bytes.get(104).copied().unwrap_or(0) } else { 0 },
        }
    }

    /// A header of which nothing is known.
    fn unknown() -> Self {
        let mut header = Self::parse_as(&[], true);
        header.version = 3;
        header.refcount_order = 4;
        header.header_length = V3_LEN;
        header
    }

    /// Whether the fields are such that somebody may have written them, the magic apart.
    fn is_plausible(&self) -> bool {
        let aligned = |offset: u64| self.cluster_bits < 64 && offset.trailing_zeros() >= self.cluster_bits;
        (2..=3).contains(&self.version)
            && (9..=CLUSTER_BITS_MAX).contains(&self.cluster_bits)
            && aligned(self.l1_offset)
            && aligned(self.refcount_table_offset)
            && self.refcount_table_offset != 0
    }

    /// Replaces a field; whether there is one of that name. A value that does not fit becomes the largest that does.
    fn set(&mut self, name: &str, value: u64) -> Option<u64> {
        let small = u32::try_from(value).unwrap_or(u32::MAX);
        let swap = |field: &mut u32| u64::from(std::mem::replace(field, small));
        let bit = |field: &mut u64, bit: u64| {
            let before = u64::from(*field & bit != 0);
            *field = if value == 0 { *field & !bit } else { *field | bit };
            before
        };
        Some(match name {
            "version" => swap(&mut self.version),
            "cluster_bits" => swap(&mut self.cluster_bits),
            "size" => std::mem::replace(&mut self.size, value),
            "crypt_method" => swap(&mut self.crypt_method),
            "l1_size" => swap(&mut self.l1_size),
            "l1_offset" => std::mem::replace(&mut self.l1_offset, value),
            "refcount_table_offset" => std::mem::replace(&mut self.refcount_table_offset, value),
            "refcount_table_clusters" => swap(&mut self.refcount_table_clusters),
            "nb_snapshots" => swap(&mut self.nb_snapshots),
            "snapshots_offset" => std::mem::replace(&mut self.snapshots_offset, value),
            "refcount_order" => swap(&mut self.refcount_order),
            "compression_type" => {
                let kind = u8::try_from(value).unwrap_or(u8::MAX);
                u64::from(std::mem::replace(&mut self.compression_type, kind))
            }
            "external_data" => bit(&mut self.incompatible, EXTERNAL_DATA),
            "extended_l2" => bit(&mut self.incompatible, EXTENDED_L2),
            _ => return None,
        })
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
    /// Incompatible bit 4, where clusters are large enough for it.
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
            // Smaller clusters can not have them: the bit is what is wrong then.
            extended_l2: header.incompatible & EXTENDED_L2 != 0 && header.cluster_bits >= 14,
            external_data: header.incompatible & EXTERNAL_DATA != 0,
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
        self.l1_needed_for(self.size)
    }

    /// L1 entries a disk of this size needs.
    pub(crate) fn l1_needed_for(&self, size: u64) -> u64 {
        size.div_ceil(self.l2_window().max(1))
    }
}

/// The header with what has been made of it.
pub(crate) struct Head {
    /// The fields to go by.
    pub(crate) header: Header,
    pub(crate) geometry: Option<Geometry>,
    /// Nothing of the first cluster is believed.
    pub(crate) dead: bool,
    /// A table's size is not believed: what its further entries refer to is not known.
    pub(crate) cut: bool,
    /// The first cluster, at most 2 MiB of it.
    pub(crate) first: Vec<u8>,
    pub(crate) l1: Option<Table>,
    pub(crate) refcount_table: Option<Table>,
}

/// Reads the header and says what is wrong with it.
pub(crate) fn read(cx: &mut Context<'_>) -> Head {
    let mut first = cx.read(0, READ_LEN, "the header");
    let stored = Header::parse(&first);

    let dead = judge_start(cx, &stored, &first);
    let mut header = if dead { Header::unknown() } else { stored.clone() };
    let mut replaced = BTreeSet::new();
    assume(cx, &mut header, dead, &mut replaced);
    if cx.options.orphans {
        guess::fill(cx, &mut header, dead, &mut replaced);
    }
    let geometry = Geometry::of(&header);
    if geometry.is_none() {
        cx.could_not(
            "nothing behind the header: its cluster size or its refcount width is not known (state them with --assume)",
        );
    }
    if !dead {
        judge_numbers(cx, &stored);
        judge_length(cx, &stored, &first);
        judge_compression(cx, &stored, &first);
    }
    if let Some(geometry) = &geometry {
        let len = geometry.cluster_size().min(FIRST_LEN).min(cx.budget.left() / 4);
        if len > READ_LEN as u64 && !dead {
            first = cx.read(0, usize::try_from(len).unwrap_or(READ_LEN), "the first cluster");
        }
        if !dead {
            judge_tables(cx, &stored, geometry);
        }
    }
    let (mut l1, mut refcount_table, mut cut) = (None, None, false);
    if let Some(geometry) = &geometry {
        let (file_len, cluster_size) = (cx.file_len(), geometry.cluster_size());
        // Of a table larger than any program reads, its size is what is wrong: as much is taken as disk and file need.
        let bounded = |entries: u64, max_len: u64, needed: u64| {
            if entries.saturating_mul(8) > max_len { entries.min(needed) } else { entries }
        };
        let stated = u64::from(header.l1_size);
        let entries = bounded(stated, L1_LEN_MAX, geometry.l1_needed());
        cut |= entries < stated;
        l1 = place(file_len, header.l1_offset, entries, cluster_size).ok();
        let stated = reftable_entries(&header, geometry);
        let blocks = file_len.div_ceil(cluster_size).div_ceil(geometry.refcounts_per_block().max(1));
        let entries =
            bounded(stated, REFTABLE_LEN_MAX, blocks.checked_next_multiple_of(cluster_size / 8).unwrap_or(blocks));
        cut |= entries < stated;
        refcount_table = place(file_len, header.refcount_table_offset, entries, cluster_size).ok();
    }
    if cut {
        cx.could_not("entries of the L1 or refcount table behind those the disk and the file need: the table's size is not believed");
    }
    if let Some(geometry) = &geometry {
        lose_unmapped(cx, &header, geometry, l1.as_ref());
    }
    Head { header, geometry, dead, cut, first, l1, refcount_table }
}

/// Whether there is a header at all; whether something else lies in its place is answered with "dead".
fn judge_start(cx: &mut Context<'_>, stored: &Header, bytes: &[u8]) -> bool {
    let needed = if stored.magic == MAGIC && stored.version == 2 { V2_LEN } else { V3_LEN };
    if (bytes.len() as u64) < u64::from(needed) {
        let words = format!("the file has {} bytes, a header has {needed}", bytes.len());
        cx.find(Finding::new(codes::HEADER_TRUNCATED, words).host(0..bytes.len() as u64));
        return true;
    }
    if stored.magic == MAGIC {
        return false;
    }
    let magic = bytes.get(..4).unwrap_or_default();
    if stored.is_plausible() {
        let words =
            format!("bytes 0x0..0x4 are {magic:02x?} instead of 51 46 49 fb; the fields behind them make sense");
        cx.find(Finding::new(codes::HEADER_MAGIC, words).host(0..4));
        return false;
    }
    let words = format!("at 0x0, where the header should be, there is {}", recognise(bytes));
    cx.find(Finding::new(codes::HEADER_OVERWRITTEN, words).host(0..READ_LEN as u64));
    true
}

/// What somebody else may have written there.
fn recognise(bytes: &[u8]) -> String {
    let text = |bytes: &[u8]| bytes.iter().all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~'));
    if is_zero(bytes) {
        "nothing but zeroes".to_owned()
    } else if bytes.get(510..512) == Some(&[0x55, 0xaa]) {
        "a boot sector or partition table".to_owned()
    } else if bytes.iter().all(|byte| Some(byte) == bytes.first()) {
        format!("one byte repeated ({:#04x})", bytes.first().copied().unwrap_or(0))
    } else if bytes.get(..64).is_some_and(text) {
        format!("text: \"{}\"", printable(bytes.get(..64).unwrap_or_default(), 40))
    } else {
        format!("something else (bytes {:02x?} …)", bytes.get(..8).unwrap_or_default())
    }
}

fn assume(cx: &mut Context<'_>, header: &mut Header, dead: bool, replaced: &mut BTreeSet<&'static str>) {
    let assumed: &Assume = &cx.options.assume;
    let assumable = Assume::known(Format::Qcow2);
    for name in assumable {
        let Some(value) = assumed.value(name) else { continue };
        let Some(before) = header.set(name, value) else { continue };
        replaced.insert(*name);
        let hex = name.ends_with("offset");
        let show = |value: u64| if hex { format!("{value:#x}") } else { value.to_string() };
        let stands = if dead { "is gone".to_owned() } else { format!("says {}", show(before)) };
        cx.fact("assumed", format!("{name}={} (the header {stands})", show(value)));
        if dead || before != value {
            cx.could_not(format!("whether {name} is {}: it was assumed, the header {stands}", show(value)));
        }
    }
    let unknown: Vec<&str> = assumed.names().filter(|name| !assumable.contains(name)).collect();
    for name in unknown {
        cx.not_checked(format!("'{}' was assumed, which means nothing for qcow2", printable(name.as_bytes(), 40)));
    }
}

/// Q-H1, Q-H2, Q-H3, Q-H8 and the size.
fn judge_numbers(cx: &mut Context<'_>, stored: &Header) {
    let mut find =
        |code, at: u64, len: u64, words: String| cx.find(Finding::new(code, words).host(at..at.saturating_add(len)));
    if !(2..=3).contains(&stored.version) {
        find(codes::HEADER_VERSION, 4, 4, format!("the version is {}, only 2 and 3 exist", stored.version));
    }
    let bits = stored.cluster_bits;
    if !(9..=CLUSTER_BITS_MAX).contains(&bits) {
        let words = format!("cluster_bits is {bits}; 9 (512 bytes) to {CLUSTER_BITS_MAX} (2 MiB) can be opened");
        find(codes::HEADER_CLUSTER_BITS, 20, 4, words);
    } else if bits < 14 && stored.incompatible & EXTENDED_L2 != 0 {
        let words = format!("cluster_bits is {bits}; extended L2 entries need 14 (16 KiB) at least");
        find(codes::HEADER_CLUSTER_BITS, 20, 4, words);
    }
    if stored.refcount_order > 6 {
        let words = format!("refcount_order is {}; 0 (1 bit) to 6 (64 bits) can be", stored.refcount_order);
        find(codes::HEADER_REFCOUNT_ORDER, 96, 4, words);
    }
    if !stored.size.is_multiple_of(512) {
        find(codes::HEADER_SIZE, 24, 8, format!("the disk has {} bytes", stored.size));
    }
    match stored.crypt_method {
        0 | 2 => {}
        1 => find(codes::HEADER_AES, 32, 4, "crypt_method is 1 (AES-CBC)".to_owned()),
        other => find(codes::HEADER_CRYPT, 32, 4, format!("crypt_method is {other}; 0, 1 and 2 exist")),
    }
}

/// The header's own length, its padding and what it has that is not known here (Q-H1, Q-H10).
fn judge_length(cx: &mut Context<'_>, stored: &Header, bytes: &[u8]) {
    if stored.version < 3 {
        return;
    }
    let length = stored.header_length;
    // A cluster size that can not be says nothing of the header's length.
    let bits = stored.cluster_bits;
    let cluster = 1u64 << if (9..=CLUSTER_BITS_MAX).contains(&bits) { bits } else { CLUSTER_BITS_MAX };
    if length < V3_LEN || u64::from(length) > cluster {
        let words = format!("header_length is {length}; {V3_LEN} to {cluster} (the cluster size) can be");
        cx.find(Finding::new(codes::HEADER_LENGTH, words).host(100..104));
        return;
    }
    if !length.is_multiple_of(8) {
        let words = format!("header_length is {length}, no multiple of 8");
        cx.find(Finding::new(codes::HEADER_LENGTH, words).severity(Severity::Warning).host(100..104));
    }
    let end = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
    let padding = bytes.get(105..end.min(112)).unwrap_or_default();
    if !is_zero(padding) {
        let words = format!("bytes 0x69..0x70 are {padding:02x?} instead of zeroes");
        cx.find(Finding::new(codes::HEADER_PADDING, words).host(105..112));
    }
    let unknown = bytes.get(112..end).unwrap_or_default();
    if !is_zero(unknown) {
        let words = format!("bytes 0x70..{length:#x} of the header are not zero and mean nothing here");
        cx.find(Finding::new(codes::HEADER_UNKNOWN_FIELDS, words).host(112..u64::from(length)));
    }
}

/// Q-F5.
fn judge_compression(cx: &mut Context<'_>, stored: &Header, bytes: &[u8]) {
    if stored.version < 3 {
        return;
    }
    let bit = stored.incompatible & COMPRESSION != 0;
    // Without the field the type is 0; what stands at its place belongs to something else.
    let kind = if stored.header_length > V3_LEN { bytes.get(104).copied().unwrap_or(0) } else { 0 };
    let words = match (kind, bit) {
        (0, false) | (1, true) => return,
        (0, true) => "incompatible bit 3 is set, but the compression type is 0 (deflate) or absent".to_owned(),
        (1, false) => "the compression type is 1 (zstd), but incompatible bit 3 is clear".to_owned(),
        (other, _) => format!("the compression type is {other}; 0 (deflate) and 1 (zstd) exist"),
    };
    cx.find(Finding::new(codes::HEADER_COMPRESSION, words).host(104..105));
}

/// Why a table can not be where it is said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misplaced {
    Zero,
    Misaligned,
    PastEnd,
}

impl Misplaced {
    pub(crate) fn words(self, file_len: u64) -> String {
        match self {
            Self::Zero => "is 0, where the header is".to_owned(),
            Self::Misaligned => "is no multiple of the cluster size".to_owned(),
            Self::PastEnd => format!("is past the end of the file ({file_len:#x})"),
        }
    }
}

/// The part of a table of `entries` 8-byte entries that is inside the file.
pub(crate) fn place(file_len: u64, offset: u64, entries: u64, cluster_size: u64) -> Result<Table, Misplaced> {
    let there = file_len.saturating_sub(offset) / 8;
    if offset == 0 {
        Err(Misplaced::Zero)
    } else if !offset.is_multiple_of(cluster_size) {
        Err(Misplaced::Misaligned)
    } else if there == 0 && entries > 0 {
        Err(Misplaced::PastEnd)
    } else {
        Ok(Table { offset, entries: entries.min(there), stored_entries: entries })
    }
}

fn reftable_entries(header: &Header, geometry: &Geometry) -> u64 {
    u64::from(header.refcount_table_clusters).saturating_mul(geometry.cluster_size() / 8)
}

/// Q-H4, Q-H5, Q-H6: the two tables the header names, as it is stored.
fn judge_tables(cx: &mut Context<'_>, stored: &Header, geometry: &Geometry) {
    let (file_len, cluster_size) = (cx.file_len(), geometry.cluster_size());
    let mut find = |code, fields: Range<u64>, words: String| cx.find(Finding::new(code, words).host(fields));

    let entries = u64::from(stored.l1_size);
    let needed = geometry.l1_needed_for(stored.size);
    if entries < needed {
        let words = format!("the L1 table has {entries} entries, a disk of {} bytes needs {needed}", stored.size);
        find(codes::HEADER_L1_SHORT, 36..40, words);
    }
    if entries > 0 {
        match place(file_len, stored.l1_offset, entries, cluster_size) {
            Err(why) => {
                let words = format!("the L1 table's offset, {:#x}, {}", stored.l1_offset, why.words(file_len));
                find(codes::HEADER_L1, 40..48, words);
            }
            Ok(table) if table.entries < entries => {
                let words = format!(
                    "the L1 table at {:#x} has {entries} entries, of which {} are inside the file ({file_len:#x})",
                    table.offset, table.entries
                );
                find(codes::HEADER_L1_END, table.offset..table.offset.saturating_add(entries.saturating_mul(8)), words);
            }
            Ok(_) => {}
        }
        if entries.saturating_mul(8) > L1_LEN_MAX {
            let words = format!("the L1 table has {entries} entries ({} bytes)", entries.saturating_mul(8));
            find(codes::HEADER_TOO_LARGE, 36..40, words);
        }
    }

    let clusters = u64::from(stored.refcount_table_clusters);
    let entries = reftable_entries(stored, geometry);
    let offset = stored.refcount_table_offset;
    if clusters == 0 {
        find(codes::HEADER_REFTABLE, 56..60, "the refcount table has no clusters".to_owned());
        return;
    }
    match place(file_len, offset, entries, cluster_size) {
        Err(why) => {
            let words = format!("the refcount table's offset, {offset:#x}, {}", why.words(file_len));
            find(codes::HEADER_REFTABLE, 48..56, words);
        }
        Ok(table) if table.entries < entries => {
            let words = format!(
                "the refcount table at {offset:#x} has {entries} entries, of which {} are inside the file ({file_len:#x})",
                table.entries
            );
            find(codes::HEADER_REFTABLE_END, offset..offset.saturating_add(entries.saturating_mul(8)), words);
        }
        Ok(_) => {}
    }
    if clusters.saturating_mul(cluster_size) > REFTABLE_LEN_MAX {
        let words =
            format!("the refcount table has {clusters} clusters ({} bytes)", clusters.saturating_mul(cluster_size));
        find(codes::HEADER_TOO_LARGE, 56..60, words);
    }
}

/// What no L1 entry maps any more.
fn lose_unmapped(cx: &mut Context<'_>, header: &Header, geometry: &Geometry, l1: Option<&Table>) {
    let raw = geometry.external_data && header.autoclear & RAW_DATA != 0;
    if raw {
        // Each byte of the disk is at the same place of the data file.
        return;
    }
    let entries = l1.map_or(0, |table| table.entries);
    if entries < geometry.l1_needed() {
        cx.lose(entries.saturating_mul(geometry.l2_window())..geometry.size);
    }
}
