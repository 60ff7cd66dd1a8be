//! VHDX: the format of Hyper-V since 2012. Little endian, laid out in megabytes.
//!
//! ```text
//! 0         file identifier, headers 1 and 2, region tables 1 and 2
//! 1 MiB …   log, block table, metadata: where header and region tables say
//! …         blocks, each on a multiple of 1 MiB
//! ```
//!
//! Tables and metadata are changed through the log only; a file that was not closed must be read with its log replayed.
//! Here that is done in memory ([`replay`]): the file stays as it is.
//!
//! The block table holds an entry of 64 bits for each block, and after each *chunk* of them (as many blocks as one
//! sector bitmap of 1 MiB describes) one for that bitmap, which only disks with a parent use.
//!
//! Order of the analysis: identifier and headers; the log, which is laid over the file; from then on through that view:
//! region tables, metadata, block table; then, in the order of the file, who lies where.

pub(crate) mod codes;

mod bat;
mod header;
mod log;
mod metadata;
mod region;
mod replay;

use std::ops::Range;

use header::Header;
use region::Regions;
use replay::Replayed;

use crate::bytes::{le_u16, printable};
use crate::context::Context;
use crate::finding::{Confidence, Finding};
use crate::map::{Claim, Class};
use crate::report::Reference;

pub(crate) fn analyse(cx: &mut Context<'_>) {
    let creator = identifier(cx);
    let header = header::current(cx);
    let mut view = Replayed::new(cx.image, cx.budget);
    let mut pending = 0;
    if let Some(header) = &header {
        cx.fact("header", format!("at {:#x}, sequence number {}", header.at, header.sequence));
        cx.fact("file written", region::guid_text(header.file_write));
        cx.fact("data written", region::guid_text(header.data_write));
        judge_log_place(cx, header);
        pending = log::replay(cx, header, &mut view).entries;
        cx.fact("log", log_fact(header, pending));
    } else {
        cx.could_not("the log: without a header nobody knows whether something is pending in it");
    }
    let mut regions = region::regions(cx, &view);
    assumed(cx, &mut regions);
    search(cx, &view, &mut regions);
    let meta = match &regions.metadata {
        Some(range) if range.start < view_len(&view) => metadata::read(cx, &view, range),
        _ => metadata::Metadata::default(),
    };
    for (name, value) in &meta.parent {
        if matches!(&**name, "relative_path" | "volume_path" | "absolute_win32_path") {
            let name = printable(value.as_bytes(), 1024);
            cx.references.push(Reference { role: "parent", name, format: Some("vhdx".to_owned()) });
        } else if name == "parent_linkage" {
            cx.fact("parent linkage", printable(value.as_bytes(), 64));
        }
    }
    let log = header.as_ref().map(|header| header.log.clone()).filter(|log| !log.is_empty());
    let Some(mut table) = table(cx, &meta, &regions, creator) else {
        region_overlaps_only(cx, &regions, log.as_ref());
        return;
    };
    table.log_known = header.is_some();
    cx.fact("size", format!("{} bytes", table.size));
    cx.fact("block size", format!("{} bytes", table.block));
    cx.fact("logical sector", format!("{} bytes", table.sector));
    cx.fact(
        "kind",
        if table.parent {
            "differencing"
        } else if meta.fixed {
            "fixed"
        } else {
            "dynamic"
        },
    );
    cx.fact("block table", format!("{} entries at {:#x}", table.entries, table.at));
    let current = header.as_ref().map_or(header::PLACES[0], |header| header.at);
    bat::analyse(cx, &view, &table, &fixed_claims(current, log.as_ref(), &regions));
    cx.not_checked("guest data: this format has no checksums for it");
    if table.parent {
        cx.not_checked("the parent disk: not opened");
    }
    if pending > 0 {
        cx.next.push("the log must be replayed before other tools read the image: let Hyper-V, or `qemu-img check -r all`, do it on a copy".to_owned());
    }
}

fn view_len(view: &Replayed<'_>) -> u64 {
    crate::source::Source::len(view)
}

fn log_fact(header: &Header, pending: u64) -> String {
    let place = format!("{:#x}..{:#x}", header.log.start, header.log.end);
    match (header.log_guid == [0; 16], pending) {
        (true, _) => format!("{place}, empty: the file was closed"),
        (false, 0) => format!("{place}, in use, nothing to replay"),
        (false, count) => format!("{place}, in use, {count} entries replayed in memory"),
    }
}

/// The first 64 KiB: magic and creator. The version of QEMU that made the file, if it did.
fn identifier(cx: &mut Context<'_>) -> String {
    let bytes = cx.read(0, 520, "the file identifier");
    if !bytes.starts_with(b"vhdxfile") {
        cx.find(Finding::new(codes::IDENT, "the file does not begin with \"vhdxfile\"").host(0..8));
    }
    let units =
        bytes.get(8..).unwrap_or_default().chunks_exact(2).map(|pair| le_u16(pair, 0)).take_while(|unit| *unit != 0);
    let creator: String = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    let creator = printable(creator.as_bytes(), 256);
    cx.fact("creator", creator.clone());
    creator
}

fn judge_log_place(cx: &mut Context<'_>, header: &Header) {
    let log = &header.log;
    let right = log.start >= region::HEADERS_END && log::place_right(log) && log.end <= cx.file_len();
    if !right || log.is_empty() {
        let words = format!("the log is {:#x}..{:#x} in a file of {:#x} bytes", log.start, log.end, cx.file_len());
        cx.find(Finding::new(codes::LOG_PLACE, words).host(header.at..header.at.saturating_add(header::LEN as u64)));
    }
}

/// What the caller says about places.
fn assumed(cx: &Context<'_>, regions: &mut Regions) {
    let assume = |name: &str| cx.options.assume.value(name);
    if let Some(at) = assume("metadata_offset") {
        regions.metadata = Some(at..at.saturating_add(1 << 20));
    }
    if let Some(at) = assume("table_offset") {
        let len = assume("table_length").unwrap_or(1 << 20);
        regions.block_table = Some(at..at.saturating_add(len));
    }
}

/// Regions that no table names any more: the metadata are found by their magic, the block table by its shape.
fn search(cx: &mut Context<'_>, view: &Replayed<'_>, regions: &mut Regions) {
    // Every writer puts both into the first megabytes; a search of the whole file would take guest data for tables.
    const MEGABYTES: u64 = 64;
    let last = (cx.file_len() >> 20).min(MEGABYTES);
    if regions.metadata.is_none() {
        let at = (1..last)
            .map(|mib| mib << 20)
            .find(|at| cx.read_from(view, *at, 8, "a search for metadata") == b"metadata");
        if let Some(at) = at {
            cx.could_not(format!("the metadata region: found by its magic at {at:#x}, not by a region table"));
            regions.metadata = Some(at..at.saturating_add(1 << 20));
        }
    }
    if regions.block_table.is_none() {
        let taken = regions.metadata.as_ref().map(|range| range.start);
        let at =
            (1..last).map(|mib| mib << 20).filter(|at| Some(*at) != taken).find(|at| bat::looks_like(cx, view, *at));
        if let Some(at) = at {
            let words = format!("a block table by its shape at {at:#x}; no region table names it");
            let finding = Finding::new(codes::BAT_FOUND, words).host(at..at.saturating_add(1 << 20));
            cx.find(finding.confidence(Confidence::Likely));
            regions.block_table = Some(at..at.saturating_add(1 << 20));
            regions.certain = false;
        }
    }
}

/// Everything about the block table, if enough of it is known.
fn table(cx: &mut Context<'_>, meta: &metadata::Metadata, regions: &Regions, creator: String) -> Option<bat::Table> {
    let assume = |name: &str| cx.options.assume.value(name);
    let block = assume("block_size").filter(|block| block.is_power_of_two() && (1 << 20..=256 << 20).contains(block));
    let block = block.or(meta.block);
    let size = assume("size").or(meta.size);
    let sector = assume("sector_size").filter(|sector| matches!(sector, 512 | 4096)).or(meta.sector).unwrap_or(512);
    let (Some(block), Some(size), Some(region)) = (block, size, regions.block_table.clone()) else {
        let mut gone = Vec::new();
        for (name, gone_one) in
            [("block_size", block.is_none()), ("size", size.is_none()), ("table_offset", regions.block_table.is_none())]
        {
            if gone_one {
                gone.push(name);
            }
        }
        cx.could_not(format!("the block table: not known any more: {}; state it with --assume", gone.join(", ")));
        return None;
    };
    Some(bat::Table::new(region, block, sector, size, meta, regions.certain, creator))
}

/// What lies at fixed places or where header and region tables say.
fn fixed_claims(current: u64, log: Option<&Range<u64>>, regions: &Regions) -> Vec<Claim> {
    let claim = |range: &Range<u64>, class, index| Claim {
        start: range.start,
        len: range.end.saturating_sub(range.start),
        class,
        index,
    };
    let mut all = vec![claim(&(0..region::HEADERS_END), Class::Header, current)];
    all.extend(log.map(|range| claim(range, Class::Log, 0)));
    all.extend(regions.block_table.iter().map(|range| claim(range, Class::BlockMap, 0)));
    all.extend(regions.metadata.iter().map(|range| claim(range, Class::Metadata, 0)));
    all.extend((1u64..).zip(&regions.unknown).map(|(index, range)| claim(range, Class::Metadata, index)));
    all
}

/// The parts of the first megabyte, in order.
fn header_parts(current: u64) -> [(Range<u64>, Class); 8] {
    let class = |at: u64| if at == current { Class::Header } else { Class::Copy };
    let [one, two] = header::PLACES;
    let kib = |from: u64, to: u64| from << 10..to << 10;
    [
        (kib(0, 64), Class::Header),
        (kib(64, 68), class(one)),
        (kib(68, 128), Class::Reserved),
        (kib(128, 132), class(two)),
        (kib(132, 192), Class::Reserved),
        (kib(192, 256), Class::Header),
        (kib(256, 320), Class::Copy),
        (kib(320, 1024), Class::Reserved),
    ]
}

/// Without a block table the places of the regions are all that can be compared.
fn region_overlaps_only(cx: &mut Context<'_>, regions: &Regions, log: Option<&Range<u64>>) {
    let claims = fixed_claims(header::PLACES[0], log, regions);
    bat::place_regions(cx, &claims);
}
