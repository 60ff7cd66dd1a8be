//! VirtualBox VDI: a header, one map of 32-bit block numbers, and blocks of 1 MiB.
//!
//! ```text
//! 0       header, 512 bytes, little-endian: type, disk size, block size, number of blocks, number allocated, offsets
//! map     one u32 for each block of the disk: 0xffffffff free, 0xfffffffe zero, else the number of a block in the file
//! data    block n at data + n * (extra + block size), its data behind the extra bytes
//! ```
//!
//! New blocks are put behind the last one, so that numbers count up in the order of first writing, and the header's
//! count of allocated blocks is the number the next one gets: what lies at or above it will be overwritten.
//!
//! Order: header; map, entry by entry; who lies where in the file; counts against the header.

pub(crate) mod codes;

mod block_map;
mod header;

use crate::context::Context;
use crate::extents::lay_out;

use block_map::BlockMap;

pub(crate) fn analyse(cx: &mut Context<'_>) {
    let Some(header) = header::read(cx) else { return };
    let mut map = BlockMap::new(header);
    let claims = map.fixed_claims(cx.file_len());
    cx.map_host(header.stride(), claims);
    cx.map_guest(header.size, header.block);
    lay_out(cx, header.stride(), header.data_offset, &mut map);
    map.compare_counts(cx);
    cx.damage_guest();
    cx.not_checked("guest data: the format keeps no checksums of it");
}
