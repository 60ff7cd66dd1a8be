//! What a damaged header meant, found out from the refcount structure alone.
//!
//! A refcount block counts its own cluster, the refcount table's and the header's: a wrong cluster size or width of
//! counts hardly ever makes all of these come out as 1. Nothing is searched here: only places are looked at where a
//! header points, or where programs put the first tables of a new image (header, refcount table, refcount block, L1
//! table: clusters 0 to 3).

use std::collections::BTreeSet;

use crate::bytes::be_u64;
use crate::context::Context;

use super::header::{CLUSTER_BITS_MAX, Geometry, Header};

/// L1 entries looked at to guess how long the table is.
const L1_LOOK: u64 = 8192;

/// Replaces fields that can not be right (and that the user did not state) with what fits best, and says so.
pub(crate) fn fill(cx: &mut Context<'_>, header: &mut Header, dead: bool, replaced: &mut BTreeSet<&'static str>) {
    if !dead && Geometry::of(header).is_some_and(|geometry| geometry.cluster_bits <= CLUSTER_BITS_MAX) {
        return;
    }
    let known_bits =
        replaced.contains("cluster_bits") || (!dead && (9..=CLUSTER_BITS_MAX).contains(&header.cluster_bits));
    let known_order = replaced.contains("refcount_order") || (!dead && header.refcount_order <= 6);
    let mut best: Option<(u32, Header)> = None;
    let mut ties = 0u32;
    for bits in 9..=CLUSTER_BITS_MAX {
        for order in 0..=6u32 {
            if known_bits && bits != header.cluster_bits || known_order && order != header.refcount_order {
                continue;
            }
            let mut candidate = Header { cluster_bits: bits, refcount_order: order, ..header.clone() };
            if dead {
                new_image_layout(&mut candidate, replaced);
            }
            let score = score(cx, &candidate);
            match &best {
                Some((most, _)) if score < *most => {}
                Some((most, _)) if score == *most => ties = ties.saturating_add(1),
                _ => {
                    ties = 0;
                    best = Some((score, candidate));
                }
            }
        }
    }
    let Some((score, mut found)) = best.filter(|(score, _)| *score >= 3 && ties == 0) else { return };
    let mut names = Vec::new();
    let mut told = |name: &'static str, is: u64, changed: bool| {
        if changed {
            replaced.insert(name);
            names.push(if name.ends_with("offset") { format!("{name}={is:#x}") } else { format!("{name}={is}") });
        }
    };
    told("cluster_bits", u64::from(found.cluster_bits), found.cluster_bits != header.cluster_bits);
    told("refcount_order", u64::from(found.refcount_order), found.refcount_order != header.refcount_order || dead);
    if dead {
        if found.l1_size == 0 && found.l1_offset != 0 {
            found.l1_size = l1_entries(cx, &found);
        }
        if found.size == 0
            && let Some(geometry) = Geometry::of(&found)
        {
            found.size = u64::from(found.l1_size).saturating_mul(geometry.l2_window());
        }
        told(
            "refcount_table_offset",
            found.refcount_table_offset,
            found.refcount_table_offset != header.refcount_table_offset,
        );
        let clusters = u64::from(found.refcount_table_clusters);
        told("refcount_table_clusters", clusters, found.refcount_table_clusters != header.refcount_table_clusters);
        told("l1_offset", found.l1_offset, found.l1_offset != header.l1_offset);
        told("l1_size", u64::from(found.l1_size), found.l1_size != header.l1_size);
        told("size", found.size, found.size != header.size);
    }
    *header = found;
    let sure = if score >= 5 { "likely" } else { "possible" };
    let names = names.join(",");
    cx.could_not(format!(
        "whether {names} is right: found out from the reference counts ({sure}), since the header can not be believed; \
         state better values with --assume"
    ));
    cx.fact("guessed", names);
}

/// Where programs put the tables of a new image.
fn new_image_layout(header: &mut Header, stated: &BTreeSet<&'static str>) {
    let cluster = 1u64 << header.cluster_bits.min(CLUSTER_BITS_MAX);
    if !stated.contains("refcount_table_offset") {
        header.refcount_table_offset = cluster;
    }
    if !stated.contains("refcount_table_clusters") {
        header.refcount_table_clusters = 1;
    }
    if !stated.contains("l1_offset") {
        header.l1_offset = cluster.saturating_mul(3);
    }
}

/// How well the first refcount block agrees with these fields; 0: not at all.
fn score(cx: &Context<'_>, header: &Header) -> u32 {
    let Some(geometry) = Geometry::of(header) else { return 0 };
    let cluster = geometry.cluster_size();
    let aligned = |offset: u64| offset != 0 && offset.is_multiple_of(cluster) && offset < cx.file_len();
    if !aligned(header.refcount_table_offset) {
        return 0;
    }
    let mut entry = [0u8; 8];
    let block = match cx.image.read_at(header.refcount_table_offset, &mut entry) {
        Ok(8) => be_u64(&entry, 0),
        _ => return 0,
    };
    if !aligned(block) || block == header.refcount_table_offset {
        return 0;
    }
    let mut score = 0u32;
    for offset in [0, header.refcount_table_offset, block] {
        match count(cx, &geometry, block, offset) {
            Some(1) => score = score.saturating_add(1),
            // A count elsewhere says nothing.
            None => {}
            Some(_) => return 0,
        }
    }
    if aligned(header.l1_offset) && count(cx, &geometry, block, header.l1_offset) == Some(1) {
        score = score.saturating_add(1);
    }
    // The file ends where the counts end.
    let end = cx.file_len();
    if count(cx, &geometry, block, end.saturating_sub(1)).is_some_and(|count| count > 0) {
        let behind = count(cx, &geometry, block, end.saturating_add(cluster).saturating_sub(1));
        score = score.saturating_add(if behind.unwrap_or(0) == 0 { 2 } else { 1 });
    }
    if header.l1_size != 0 && geometry.l1_needed() == u64::from(header.l1_size) {
        score = score.saturating_add(1);
    }
    score
}

/// The count the first refcount block has for the cluster at `offset`, if it is one of its.
fn count(cx: &Context<'_>, geometry: &Geometry, block: u64, offset: u64) -> Option<u64> {
    let index = offset >> geometry.cluster_bits;
    if index >= geometry.refcounts_per_block() {
        return None;
    }
    let mut bytes = [0u8; 8];
    if geometry.refcount_order < 3 {
        let per_byte = 8u64 >> geometry.refcount_order;
        let at = block.checked_add(index.checked_div(per_byte)?)?;
        cx.image.read_at(at, bytes.get_mut(..1)?).ok()?;
        let shift = index.checked_rem(per_byte)?.checked_mul(u64::from(geometry.refcount_bits()))?;
        let mask = (1u64 << geometry.refcount_bits()).wrapping_sub(1);
        return Some((u64::from(*bytes.first()?) >> shift) & mask);
    }
    let width = usize::try_from(geometry.refcount_bits() / 8).ok()?;
    let at = block.checked_add(index.checked_mul(width as u64)?)?;
    cx.image.read_at(at, bytes.get_mut(8usize.checked_sub(width)?..)?).ok()?;
    Some(u64::from_be_bytes(bytes))
}

/// How far the entries of an L1 table go: up to the last one that looks like one.
fn l1_entries(cx: &mut Context<'_>, header: &Header) -> u32 {
    let cluster = 1u64 << header.cluster_bits.min(CLUSTER_BITS_MAX);
    let len = usize::try_from((cluster / 8).min(L1_LOOK).saturating_mul(8)).unwrap_or(0);
    let file_len = cx.file_len();
    let bytes = cx.read(header.l1_offset, len, "the L1 table");
    let mut entries = 0u32;
    for (index, entry) in bytes.chunks_exact(8).enumerate() {
        let entry = be_u64(entry, 0);
        let offset = entry & 0x00ff_ffff_ffff_fe00;
        if entry == 0 {
            continue;
        }
        if entry & 0x7f00_0000_0000_01ff != 0 || !offset.is_multiple_of(cluster) || offset >= file_len {
            break;
        }
        entries = u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1);
    }
    entries
}
