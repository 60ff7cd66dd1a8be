//! QED: clusters, an L1 table and L2 tables of 64-bit offsets; no reference counts.
//!
//! ```text
//! 0        header, little-endian: cluster size, table size in clusters, features, offset of the L1 table, disk size,
//!          backing file's name; `header_size` clusters
//! L1       entries: 0 not allocated, else the offset of an L2 table
//! L2       entries: 0 not allocated (backing file or zeroes), 1 zeroes, else the offset of a data cluster
//! ```
//!
//! All offsets are multiples of the cluster size. Every cluster of the file is referred to exactly once; one that is
//! not, is leaked. Nothing but the NEED_CHECK bit protects against a crash between allocating and linking.
//!
//! Order: header; L1, each L2 table as its entry names it; who lies where in the file; the clusters nobody refers to,
//! and among them tables whose L1 entry was lost.

pub(crate) mod codes;

mod header;
mod tables;

use crate::context::Context;
use crate::extents::lay_out;
use crate::map::{Class, GuestState};

use tables::Walker;

pub(crate) fn analyse(cx: &mut Context<'_>) {
    let Some(header) = header::read(cx) else { return };
    cx.map_guest(header.size, header.cluster);
    cx.map_host(header.cluster, Vec::new());
    if header.l1.is_none() {
        cx.add_host(0..header.header, Class::Header);
        cx.add_host(header.header..cx.file_len(), Class::Unknown);
        cx.add_guest(0..header.size, GuestState::Damaged);
    } else {
        let mut walker = Walker::new(header);
        lay_out(cx, header.cluster, 0, &mut walker);
        walker.conclude(cx);
    }
    cx.not_checked("guest data: the format keeps no checksums of it");
}
