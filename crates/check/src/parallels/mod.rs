//! Parallels HDD images: a header, one table (the BAT) of 32-bit cluster offsets, and clusters.
//!
//! ```text
//! 0        header, 64 bytes, little-endian: kind, cluster size in sectors, BAT entries, disk size, in-use mark, data
//!          offset
//! 64       BAT: 0 not allocated, else the place of a cluster, in clusters ("WithouFreSpacExt") or sectors
//! data     clusters of guest data; one of them may be the extension, which names clusters of dirty bitmaps
//! ```
//!
//! There is no count of clusters in use: a free one in the middle is legal and used again, and what lies behind the
//! last one in use is leaked. Clusters of dirty bitmaps are in use, though `qemu-img check` calls them leaked.
//!
//! Order: header; extension with its checksum and bitmaps; BAT; who lies where in the file.

pub(crate) mod codes;

mod bat;
mod extension;
mod header;

use crate::context::Context;
use crate::extents::lay_out;
use crate::report::Reference;

use bat::Bat;

pub(crate) fn analyse(cx: &mut Context<'_>) {
    if descriptor(cx) {
        return;
    }
    let Some(header) = header::read(cx) else { return };
    let extension = extension::read(cx, &header);
    let mut bat = Bat::new(header, extension);
    let claims = bat.fixed_claims(cx.file_len());
    cx.map_host(header.cluster, claims);
    cx.map_guest(header.size, header.cluster);
    lay_out(cx, header.cluster, header.data, &mut bat);
    bat.conclude(cx);
    cx.damage_guest();
    cx.not_checked("guest data: the format keeps no checksums of it");
    cx.not_checked("DiskDescriptor.xml beside the image: snapshots and further parts of the disk would be named there");
}

/// Whether the file is a `DiskDescriptor.xml` and not an image: the images it names are said, and not opened.
fn descriptor(cx: &mut Context<'_>) -> bool {
    let bytes = cx.read(0, 1 << 20, "the descriptor");
    let text = String::from_utf8_lossy(&bytes);
    if !text.trim_start_matches('\u{feff}').trim_start().starts_with("<?xml") {
        return false;
    }
    for part in text.split("<File>").skip(1).take(1000) {
        let name = part.split('<').next().unwrap_or_default().trim();
        let name = name.chars().take(1024).collect::<String>().escape_debug().to_string();
        cx.references.push(Reference { role: "extent", name, format: Some("parallels".to_owned()) });
    }
    cx.could_not("the images of this disk: this is its descriptor; check the .hds files it names");
    true
}
