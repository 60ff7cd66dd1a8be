//! The header: whatever is wrong becomes a finding, and what can be used is.

use crate::bytes::{le_u32, le_u64};
use crate::context::Context;
use crate::finding::Finding;
use crate::parallels::codes;

/// Bytes of all fields; the BAT follows.
pub(super) const LEN: u64 = 64;
const LEN_BUF: usize = 64;
const SECTOR: u64 = 512;
const PLAIN: &[u8] = b"WithoutFreeSpace";
const EXTENDED: &[u8] = b"WithouFreSpacExt";
const CLOSED: u32 = 0x312e_3276;
const OPEN: u32 = 0x746f_6e59;
/// QEMU's limits: a cluster below 2 GiB, a BAT below 2 GiB.
const TRACKS_MAX: u64 = i32::MAX as u64 / SECTOR;
const ENTRIES_MAX: u64 = i32::MAX as u64 / 4;

/// What the rest of the analysis needs; `cluster` is not 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// Bytes.
    pub(super) cluster: u64,
    /// What a BAT entry counts in, bytes.
    pub(super) unit: u64,
    /// Entries of the BAT.
    pub(super) entries: u64,
    /// Of the disk, bytes.
    pub(super) size: u64,
    /// Where the data area begins, bytes.
    pub(super) data: u64,
    /// Where the extension is, bytes; 0 if there is none.
    pub(super) extension: u64,
    /// The flag that says that nothing is in it.
    pub(super) empty: bool,
}

impl Header {
    pub(super) fn bat_end(&self) -> u64 {
        LEN.saturating_add(self.entries.saturating_mul(4))
    }
}

/// Reads the header. `None` if no cluster can be found with it.
pub(super) fn read(cx: &mut Context<'_>) -> Option<Header> {
    let bytes = cx.read(0, LEN_BUF, "the header");
    if bytes.len() < LEN_BUF {
        let words = format!("the file is {:#x} bytes long, the header takes {LEN:#x}", bytes.len());
        cx.find(Finding::new(codes::CUT, words).host(0..bytes.len() as u64));
        cx.could_not("everything behind the header: the file ends inside it");
        return None;
    }
    let magic = bytes.get(..16).unwrap_or_default();
    let extended = magic != PLAIN;
    if extended && magic != EXTENDED {
        let shown = magic.escape_ascii();
        let words =
            format!("magic \"{shown}\" at 0; read as an image of the newer kind, \"{}\"", EXTENDED.escape_ascii());
        cx.find(Finding::new(codes::MAGIC, words).host(0..16));
    }
    let version = le_u32(&bytes, 0x10);
    if version != 2 {
        cx.find(Finding::new(codes::VERSION, format!("version {version} at 0x10, must be 2")).host(0x10..0x14));
    }
    let assume = &cx.options.assume;
    let field = |name: &str, value: u64| assume.value(name).unwrap_or(value);
    let tracks = field("tracks", le_u32(&bytes, 0x1c).into());
    let entries = field("entries", le_u32(&bytes, 0x20).into());
    let raw_sectors = le_u64(&bytes, 0x24);
    let sectors = if extended { raw_sectors } else { raw_sectors & u64::from(u32::MAX) };
    let size = field("size", sectors.saturating_mul(SECTOR));
    let data_off = field("data_off", le_u32(&bytes, 0x30).into());
    let (in_use, flags, ext_off) = (le_u32(&bytes, 0x2c), le_u32(&bytes, 0x34), le_u64(&bytes, 0x38));
    cx.fact("kind", if extended { "WithouFreSpacExt" } else { "WithoutFreeSpace" });
    cx.fact("geometry", format!("{} heads, {} cylinders", le_u32(&bytes, 0x14), le_u32(&bytes, 0x18)));
    cx.fact("cluster size", tracks.saturating_mul(SECTOR).to_string());
    cx.fact("BAT entries", entries.to_string());
    cx.fact("virtual size", size.to_string());
    cx.fact("in use", format!("{in_use:#010x}"));
    cx.fact("data offset", format!("{:#x}", data_off.saturating_mul(SECTOR)));
    cx.fact("flags", format!("{flags:#x}"));
    cx.fact("extension", format!("{:#x}", ext_off.saturating_mul(SECTOR)));
    if !extended && raw_sectors > u64::from(u32::MAX) {
        let words = format!("size of {raw_sectors:#x} sectors, of which the lower 32 bits count");
        cx.find(Finding::new(codes::SIZE_HIGH, words).host(0x28..0x2c));
    }
    usage(cx, in_use, flags, ext_off);
    if tracks == 0 || tracks > TRACKS_MAX {
        let words = format!("clusters of {tracks} sectors at 0x1c, from 1 to {TRACKS_MAX} can be");
        cx.find(Finding::new(codes::CLUSTER, words).host(0x1c..0x20));
        cx.could_not("the BAT and all clusters: the cluster size is not known (`--assume tracks=2048`)");
        return None;
    }
    let cluster = tracks.saturating_mul(SECTOR);
    let unit = if extended { cluster } else { SECTOR };
    let extension = ext_off.saturating_mul(SECTOR);
    let mut header = Header { cluster, unit, entries, size, data: 0, extension, empty: flags & 1 != 0 };
    sizes(cx, &mut header, data_off.saturating_mul(SECTOR));
    data_area(cx, &mut header, data_off, tracks, extended);
    Some(header)
}

fn usage(cx: &mut Context<'_>, in_use: u32, flags: u32, ext_off: u64) {
    match in_use {
        OPEN => cx.find(Finding::new(codes::IN_USE, format!("{OPEN:#010x} (in use) at 0x2c")).host(0x2c..0x30)),
        0 if ext_off != 0 => {
            cx.find(Finding::new(codes::EXT_STALE, "0 at 0x2c, beside an extension").host(0x2c..0x30).host(0x38..0x40));
        }
        CLOSED | 0 => {}
        other => {
            let words = format!("{other:#010x} at 0x2c, {CLOSED:#010x}, {OPEN:#010x} and 0 can be");
            cx.find(Finding::new(codes::IN_USE_VALUE, words).host(0x2c..0x30));
        }
    }
    if flags & !1 != 0 {
        cx.find(
            Finding::new(codes::FLAGS, format!("flags {flags:#x} at 0x34, only bit 0 is defined")).host(0x34..0x38),
        );
    }
}

fn sizes(cx: &mut Context<'_>, header: &mut Header, data: u64) {
    let needed = header.size.div_ceil(header.cluster.max(1));
    let needed_end = LEN.saturating_add(needed.saturating_mul(4));
    // A count that the disk does not need and the file has no room for is a wrong count, not a BAT of that size.
    let no_room = header.bat_end() > data && data != 0 && needed_end <= data;
    if header.entries > needed && (no_room || header.entries > ENTRIES_MAX) {
        let words = format!(
            "{} BAT entries, which would end at {:#x}, behind the data offset {data:#x}; the disk needs {needed}, which is what was looked at",
            header.entries,
            header.bat_end()
        );
        cx.find(Finding::new(codes::ENTRIES, words).host(0x20..0x24));
        header.entries = needed;
    } else if header.entries > ENTRIES_MAX {
        let words = format!("{} BAT entries, at most {ENTRIES_MAX} can be", header.entries);
        cx.find(Finding::new(codes::ENTRIES, words).host(0x20..0x24));
    }
    let room = header.entries.saturating_mul(header.cluster);
    if header.size > room {
        let words = format!("the disk has {} bytes, its {} BAT entries map {room}", header.size, header.entries);
        cx.find(Finding::new(codes::SIZE, words).host(0x20..0x2c).guest(room..header.size));
        cx.lose(room..header.size);
    }
}

fn data_area(cx: &mut Context<'_>, header: &mut Header, data_off: u64, tracks: u64, extended: bool) {
    let (bat_end, file_len) = (header.bat_end(), cx.file_len());
    let data = data_off.saturating_mul(SECTOR);
    let behind_bat = bat_end.checked_next_multiple_of(header.unit).unwrap_or(bat_end);
    if data_off == 0 && !extended {
        header.data = behind_bat;
        return;
    }
    let trouble = if data < bat_end {
        format!("lies before the end of the BAT, {bat_end:#x}")
    } else if extended && data_off.checked_rem(tracks) != Some(0) {
        "is no multiple of the cluster size".to_owned()
    } else if data > file_len {
        format!("lies past the end of the file, {file_len:#x}")
    } else {
        header.data = data;
        return;
    };
    cx.find(Finding::new(codes::DATA_OFFSET, format!("data offset {data:#x} {trouble}")).host(0x30..0x34));
    header.data = behind_bat;
}
