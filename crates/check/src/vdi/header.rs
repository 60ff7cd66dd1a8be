//! The VDI header, read field by field: whatever is wrong becomes a finding, and what can be used is.

use crate::bytes::{is_zero, le_u32, le_u64};
use crate::context::Context;
use crate::finding::Finding;
use crate::report::Reference;
use crate::vdi::codes;

/// Bytes that hold every field of version 1.1.
pub(super) const LEN: u64 = 512;
const LEN_BUF: usize = 512;
const SIGNATURE: u32 = 0xbeda_107f;
const VERSION: u32 = 0x0001_0001;
/// The size field counts from itself on.
const COUNTED_FROM: u64 = 0x48;
const SIZE_MIN: u32 = 0x180;
/// QEMU's limit; VirtualBox has entries of 32 bits with two values taken.
const BLOCKS_MAX: u64 = 0x1fff_ff80;
const USUAL_BLOCK: u64 = 1 << 20;

/// What the rest of the analysis needs. `block` is at least 512.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) kind: u32,
    pub(super) map_offset: u64,
    pub(super) data_offset: u64,
    pub(super) size: u64,
    pub(super) block: u64,
    pub(super) extra: u64,
    pub(super) blocks: u64,
    pub(super) allocated: u64,
}

impl Header {
    /// Bytes from one block to the next.
    pub(super) fn stride(&self) -> u64 {
        self.block.saturating_add(self.extra)
    }

    /// Where a block's data begins.
    pub(super) fn place(&self, index: u64) -> u64 {
        index.saturating_mul(self.stride()).saturating_add(self.data_offset).saturating_add(self.extra)
    }

    pub(super) fn map_len(&self) -> u64 {
        self.blocks.saturating_mul(4)
    }

    pub(super) fn map_end(&self) -> u64 {
        self.map_offset.saturating_add(self.map_len())
    }
}

/// Reads the header. `None` if too little of it can be used to find anything.
pub(super) fn read(cx: &mut Context<'_>) -> Option<Header> {
    let bytes = cx.read(0, LEN_BUF, "the header");
    if (bytes.len() as u64) < LEN {
        let words = format!("the file is {:#x} bytes long, the header takes {LEN:#x}", bytes.len());
        cx.find(Finding::new(codes::CUT, words).host(0..bytes.len() as u64));
        cx.could_not("everything behind the header: the file ends inside it");
        return None;
    }
    let u32_at = |at| le_u32(&bytes, at);
    let (signature, version) = (u32_at(0x40), u32_at(0x44));
    if signature != SIGNATURE {
        let words = format!("signature {signature:#010x} at 0x40, must be {SIGNATURE:#010x}");
        cx.find(Finding::new(codes::SIGNATURE, words).host(0x40..0x44));
    }
    cx.fact("version", format!("{}.{}", version >> 16, version & 0xffff));
    if version == 0 && signature == SIGNATURE {
        cx.could_not("everything behind the header: images of version 0.0 (before VirtualBox 1.0) have another header");
        return None;
    }
    if version != VERSION {
        let words = format!("version {}.{} at 0x44, must be 1.1", version >> 16, version & 0xffff);
        cx.find(Finding::new(codes::VERSION, words).host(0x44..0x48));
    }
    let header_size = u32_at(0x48);
    if header_size < SIZE_MIN {
        let words = format!("header size {header_size:#x} at 0x48, must be at least {SIZE_MIN:#x}");
        cx.find(Finding::new(codes::HEADER_SIZE, words).host(0x48..0x4c));
    }

    let assume = &cx.options.assume;
    let field = |name: &str, at: usize| assume.value(name).unwrap_or_else(|| u64::from(u32_at(at)));
    let mut header = Header {
        kind: u32_at(0x4c),
        map_offset: field("map_offset", 0x154),
        data_offset: field("data_offset", 0x158),
        size: assume.value("size").unwrap_or_else(|| le_u64(&bytes, 0x170)),
        block: field("block_size", 0x178),
        extra: u64::from(u32_at(0x17c)),
        blocks: field("blocks", 0x180),
        allocated: u64::from(u32_at(0x184)),
    };
    facts(cx, &header, &bytes);
    chain(cx, &header, &bytes);
    let sector = u32_at(0x168);
    if sector != 512 {
        cx.find(Finding::new(codes::SECTOR, format!("sector size {sector} at 0x168, must be 512")).host(0x168..0x16c));
    }
    if !blocks(cx, &mut header) {
        return None;
    }
    offsets(cx, &mut header, header_size);
    Some(header)
}

fn facts(cx: &mut Context<'_>, header: &Header, bytes: &[u8]) {
    let kind = match header.kind {
        1 => "dynamic".to_owned(),
        2 => "fixed".to_owned(),
        3 => "undo".to_owned(),
        4 => "differencing".to_owned(),
        other => format!("unknown ({other})"),
    };
    cx.fact("type", kind);
    cx.fact("virtual size", header.size.to_string());
    cx.fact("block size", header.block.to_string());
    cx.fact("extra bytes per block", header.extra.to_string());
    cx.fact("blocks", header.blocks.to_string());
    cx.fact("blocks allocated", header.allocated.to_string());
    cx.fact("map offset", format!("{:#x}", header.map_offset));
    cx.fact("data offset", format!("{:#x}", header.data_offset));
    cx.fact("image flags", format!("{:#x}", le_u32(bytes, 0x50)));
    for (name, at) in [("UUID", 0x188), ("last snapshot UUID", 0x198), ("link UUID", 0x1a8), ("parent UUID", 0x1b8)] {
        cx.fact(name, uuid(bytes, at));
    }
}

/// A UUID of VirtualBox: the first three parts are little-endian.
fn uuid(bytes: &[u8], at: usize) -> String {
    let at_offset = |offset: usize| at.saturating_add(offset);
    let first = le_u32(bytes, at);
    let second = crate::bytes::le_u16(bytes, at_offset(4));
    let third = crate::bytes::le_u16(bytes, at_offset(6));
    let fourth = crate::bytes::be_u16(bytes, at_offset(8));
    let last = crate::bytes::be_u64(bytes, at_offset(8)) & 0xffff_ffff_ffff;
    format!("{first:08x}-{second:04x}-{third:04x}-{fourth:04x}-{last:012x}")
}

/// Type and parent: an image of type 4, and only that, has a parent.
fn chain(cx: &mut Context<'_>, header: &Header, bytes: &[u8]) {
    let linked = !is_zero(bytes.get(0x1a8..0x1b8).unwrap_or_default());
    let parent = !is_zero(bytes.get(0x1b8..0x1c8).unwrap_or_default());
    match header.kind {
        1 | 2 if linked || parent => {
            let which = if linked { "link" } else { "parent" };
            let words = format!("type {} has no parent, but the {which} UUID is not zero", header.kind);
            cx.find(Finding::new(codes::CHAIN, words).host(0x4c..0x50).host(0x1a8..0x1c8));
        }
        4 if !linked => {
            let words = "type 4 (differencing) needs a parent, but the link UUID is zero";
            cx.find(Finding::new(codes::CHAIN, words).host(0x4c..0x50).host(0x1a8..0x1b8));
        }
        1..=4 => {}
        other => {
            let words = format!("type {other} at 0x4c, must be 1 (dynamic), 2 (fixed), 3 (undo) or 4 (differencing)");
            cx.find(Finding::new(codes::TYPE, words).host(0x4c..0x50));
        }
    }
    if linked {
        cx.references.push(Reference { role: "parent", name: uuid(bytes, 0x1a8), format: Some("vdi".to_owned()) });
        cx.not_checked("the parent image: free blocks are read from it");
    }
}

/// Sizes and counts; `false` if no block can be found with them.
fn blocks(cx: &mut Context<'_>, header: &mut Header) -> bool {
    let block = header.block;
    if block < 512 || !block.is_power_of_two() {
        let words = format!(
            "block size {block} at 0x178, must be a power of two of at least 512, and is {USUAL_BLOCK} everywhere"
        );
        cx.find(Finding::new(codes::BLOCK_SIZE, words).host(0x178..0x17c));
        if block < 512 {
            cx.could_not("the block map and all blocks: the block size is not known (`--assume block_size=1M`)");
            return false;
        }
    } else if block != USUAL_BLOCK || header.extra != 0 {
        let words = format!("blocks of {block} bytes with {} extra bytes in front of each", header.extra);
        cx.find(Finding::new(codes::UNUSUAL_BLOCK, words).host(0x178..0x180));
    }
    if header.blocks > BLOCKS_MAX {
        let words = format!("{} blocks at 0x180, at most {BLOCKS_MAX} can be", header.blocks);
        cx.find(Finding::new(codes::BLOCKS, words).host(0x180..0x184));
    }
    let room = header.blocks.saturating_mul(block);
    if header.size > room {
        let words = format!("the disk has {} bytes, its {} blocks hold {room}", header.size, header.blocks);
        cx.find(Finding::new(codes::DISK_SIZE, words).host(0x170..0x184).guest(room..header.size));
        cx.lose(room..header.size);
    }
    true
}

fn offsets(cx: &mut Context<'_>, header: &mut Header, header_size: u32) {
    let end = COUNTED_FROM.saturating_add(u64::from(header_size).min(LEN)).max(u64::from(SIZE_MIN));
    let (map, data) = (header.map_offset, header.data_offset);
    for (name, offset, at) in [("block map", map, 0x154), ("data", data, 0x158)] {
        if offset % 512 != 0 {
            say(cx, format!("{name} offset {offset:#x} is no multiple of 512"), at);
        } else if offset < end {
            say(cx, format!("{name} offset {offset:#x} lies inside the header, which ends at {end:#x}"), at);
        }
    }
    // A count of blocks that the disk does not need and the map has no room for is a wrong count, not a map of that
    // size.
    let needed = header.size.div_ceil(header.block.max(1));
    let needed_end = map.saturating_add(needed.saturating_mul(4));
    if header.map_end() > data && needed < header.blocks && needed_end <= data {
        let words = format!(
            "{} blocks, whose map would end at {:#x}, behind the data offset {data:#x}; the disk needs {needed}, which is what was looked at",
            header.blocks,
            header.map_end()
        );
        cx.find(Finding::new(codes::BLOCKS, words).host(0x180..0x184));
        header.blocks = needed;
    } else if header.map_end() > data {
        say(cx, format!("the block map ends at {:#x}, behind the data offset {data:#x}", header.map_end()), 0x158);
    }
}

fn say(cx: &mut Context<'_>, words: String, at: u64) {
    cx.find(Finding::new(codes::OFFSETS, words).host(at..at.saturating_add(4)));
}
