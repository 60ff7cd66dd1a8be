//! The QED header: whatever is wrong becomes a finding, and what can be used is.

use crate::bytes::{le_u32, le_u64};
use crate::context::Context;
use crate::finding::Finding;
use crate::qed::codes;
use crate::report::Reference;

/// Bytes of all fields.
const LEN: usize = 64;
const MAGIC: u32 = 0x0044_4551;
const CLUSTER: std::ops::RangeInclusive<u64> = 1 << 12..=1 << 26;
const TABLE: std::ops::RangeInclusive<u64> = 1..=16;
/// QEMU's limit of the name.
const NAME_MAX: u64 = 1023;

pub(super) const F_BACKING: u64 = 1;
pub(super) const F_NEED_CHECK: u64 = 2;
pub(super) const F_NO_PROBE: u64 = 4;

/// What the rest of the analysis needs; sizes and counts are in the format's limits, `l1` lies in the file or is
/// `None`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) cluster: u64,
    /// Bytes of a table.
    pub(super) table: u64,
    /// Bytes of the header with its clusters.
    pub(super) header: u64,
    pub(super) features: u64,
    pub(super) l1: Option<u64>,
    pub(super) size: u64,
}

impl Header {
    /// Entries of a table.
    pub(super) fn entries(&self) -> u64 {
        self.table / 8
    }

    /// Bytes of the disk behind one L2 table. At most 2^27 entries of 2^26 bytes.
    pub(super) fn window(&self) -> u64 {
        self.entries().saturating_mul(self.cluster)
    }
}

/// Reads the header. `None` if no table can be found with it.
pub(super) fn read(cx: &mut Context<'_>) -> Option<Header> {
    let bytes = cx.read(0, LEN, "the header");
    if bytes.len() < LEN {
        let words = format!("the file is {:#x} bytes long, the header takes {LEN:#x}", bytes.len());
        cx.find(Finding::new(codes::CUT, words).host(0..bytes.len() as u64));
        cx.could_not("everything behind the header: the file ends inside it");
        return None;
    }
    if le_u32(&bytes, 0) != MAGIC {
        let words = format!("magic {:#010x} at 0, must be {MAGIC:#010x}", le_u32(&bytes, 0));
        cx.find(Finding::new(codes::MAGIC, words).host(0..4));
    }
    let assume = &cx.options.assume;
    let field = |name: &str, at: usize| assume.value(name).unwrap_or_else(|| u64::from(le_u32(&bytes, at)));
    let (cluster, table_size, header_size) =
        (field("cluster_size", 4), field("table_size", 8), field("header_size", 12));
    let l1 = assume.value("l1_offset").unwrap_or_else(|| le_u64(&bytes, 0x28));
    let size = assume.value("size").unwrap_or_else(|| le_u64(&bytes, 0x30));
    let features = le_u64(&bytes, 0x10);
    cx.fact("cluster size", cluster.to_string());
    cx.fact("table size", format!("{table_size} clusters"));
    cx.fact("header size", format!("{header_size} clusters"));
    cx.fact("features", format!("{features:#x}"));
    cx.fact("compatible features", format!("{:#x}", le_u64(&bytes, 0x18)));
    cx.fact("autoclear features", format!("{:#x}", le_u64(&bytes, 0x20)));
    cx.fact("L1 table", format!("{l1:#x}"));
    cx.fact("virtual size", size.to_string());
    if !CLUSTER.contains(&cluster)
        || !cluster.is_power_of_two()
        || !TABLE.contains(&table_size)
        || !table_size.is_power_of_two()
    {
        let words = format!(
            "clusters of {cluster} bytes, tables of {table_size} clusters: powers of two from {} to {} and from 1 to 16 can be",
            CLUSTER.start(),
            CLUSTER.end()
        );
        cx.find(Finding::new(codes::GEOMETRY, words).host(4..12));
        cx.could_not("all tables: cluster and table size are not known (`--assume cluster_size=64K,table_size=4`)");
        return None;
    }
    let table = cluster.saturating_mul(table_size);
    let mut header = Header { cluster, table, header: cluster, features, l1: None, size };
    flags(cx, &header, &bytes);
    header.l1 = l1_place(cx, &header, l1);
    header_clusters(cx, &mut header, header_size);
    disk_size(cx, &mut header);
    backing(cx, &header, header_size.saturating_mul(cluster), &bytes);
    Some(header)
}

fn flags(cx: &mut Context<'_>, header: &Header, bytes: &[u8]) {
    let unknown = header.features & !(F_BACKING | F_NEED_CHECK | F_NO_PROBE);
    if unknown != 0 {
        let words =
            format!("feature bits {unknown:#x} at 0x10 are not known; tables were read as if they were not set");
        cx.find(Finding::new(codes::FEATURES, words).host(0x10..0x18));
    }
    if header.features & F_NEED_CHECK != 0 {
        cx.find(Finding::new(codes::NEED_CHECK, "feature bit 0x2 (need check) is set").host(0x10..0x18));
    }
    let (compatible, autoclear) = (le_u64(bytes, 0x18), le_u64(bytes, 0x20));
    if compatible != 0 || autoclear != 0 {
        let words = format!("compatible features {compatible:#x}, autoclear features {autoclear:#x}; none is defined");
        cx.find(Finding::new(codes::UNKNOWN_BITS, words).host(0x18..0x28));
    }
}

fn l1_place(cx: &mut Context<'_>, header: &Header, l1: u64) -> Option<u64> {
    let file_len = cx.file_len();
    let trouble = if l1.checked_rem(header.cluster) != Some(0) {
        "is no multiple of the cluster size".to_owned()
    } else if l1 < header.cluster {
        "is inside the header".to_owned()
    } else if l1 >= file_len {
        format!("is past the end of the file ({file_len:#x})")
    } else if l1.saturating_add(header.table) > file_len {
        let words = format!("the L1 table at {l1:#x} reaches past the end of the file ({file_len:#x})");
        cx.find(Finding::new(codes::L1_PLACE, words).host(l1..file_len));
        return Some(l1);
    } else {
        return Some(l1);
    };
    cx.find(Finding::new(codes::L1_PLACE, format!("the offset of the L1 table, {l1:#x}, {trouble}")).host(0x28..0x30));
    cx.could_not("all tables: the place of the L1 table is not known (`--assume l1_offset=64K`)");
    cx.lose(0..header.size);
    None
}

fn header_clusters(cx: &mut Context<'_>, header: &mut Header, header_size: u64) {
    let end = header_size.saturating_mul(header.cluster);
    let limit = header.l1.unwrap_or(u64::MAX).min(cx.file_len().max(header.cluster));
    if header_size == 0 {
        cx.find(Finding::new(codes::HEADER_SIZE, "the header has 0 clusters at 0xc").host(12..16));
    } else if end > limit {
        let words = format!("the header has {header_size} clusters at 0xc and would end at {end:#x}, past {limit:#x}");
        cx.find(Finding::new(codes::HEADER_SIZE, words).host(12..16));
    } else {
        header.header = end;
    }
}

fn disk_size(cx: &mut Context<'_>, header: &mut Header) {
    let reach = header.entries().saturating_mul(header.window());
    if !header.size.is_multiple_of(512) {
        let words = format!("the disk has {} bytes, which are not whole sectors", header.size);
        cx.find(Finding::new(codes::DISK_SIZE, words).host(0x30..0x38));
    }
    if header.size > reach {
        let words = format!("the disk has {} bytes, its tables reach {reach}", header.size);
        cx.find(Finding::new(codes::DISK_SIZE, words).host(0x30..0x38).guest(reach..header.size));
        cx.lose(reach..header.size);
    }
}

fn backing(cx: &mut Context<'_>, header: &Header, header_end: u64, bytes: &[u8]) {
    if header.features & F_BACKING == 0 {
        return;
    }
    let (at, len) = (u64::from(le_u32(bytes, 0x38)), u64::from(le_u32(bytes, 0x3c)));
    let end = at.saturating_add(len);
    if end > header_end.max(header.header) || len > NAME_MAX || len == 0 || at < LEN as u64 {
        let words = format!(
            "the backing file's name is said to lie at {at:#x}..{end:#x}; the header has 0x40..{header_end:#x} for it"
        );
        cx.find(Finding::new(codes::BACKING, words).host(0x38..0x40));
        return;
    }
    let name = cx.read(at, usize::try_from(len).unwrap_or(0), "the backing file's name");
    let name = String::from_utf8_lossy(&name).escape_debug().to_string();
    let format = (header.features & F_NO_PROBE != 0).then(|| "raw".to_owned());
    cx.references.push(Reference { role: "backing file", name, format });
    cx.not_checked("the backing file: what is not allocated here is read from it");
}
