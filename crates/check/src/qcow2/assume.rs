//! What a dead header said, found out by searching the file for its tables, and offered as `--assume`.
//!
//! Other than `guess`, which tries the places where new images have their tables, this finds tables that moved (the
//! disk grew, the file grew, snapshots were reverted to). One pass over the data of the file keeps the sectors that
//! hold nothing but pointers. Then:
//! - the cluster size is the alignment of the pointers: of many, half have no greater one;
//! - the refcount table is the one whose first block counts its own cluster, the table's and the header's as 1, which
//!   also says how wide counts are;
//! - the L1 table is the one whose pointers lead to tables of pointers;
//! - the size of the disk is what its own GPT says, else as much as the L1 table can map.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::bytes::be_u64;
use crate::context::Context;
use crate::shape as general;

use super::header::{CLUSTER_BITS_MAX, EXTENDED_L2, Geometry, Header};
use super::l2::{COMPRESSED, COPIED, OFFSET};
use super::shape::{Entries, SECTOR};
use super::side::Side;
use super::stored::count_at;

/// Sectors of pointers kept.
const KEPT_MAX: usize = 1 << 17;
/// Bytes read at once.
const READ: usize = 1 << 18;
/// Candidates for the L1 table whose targets are read.
const L1_MAX: usize = 16;

/// Entries of an L1 table that are 0, one after the other, beyond its first cluster.
const L1_GAP: usize = 1 << 16;

/// What was found out; `None`: not found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) cluster_bits: Option<u32>,
    pub(crate) extended_l2: bool,
    pub(crate) refcount_order: Option<u32>,
    pub(crate) refcount_table: Option<(u64, u64)>,
    /// Offset, entries.
    pub(crate) l1: Option<(u64, u64)>,
    pub(crate) size: Option<u64>,
    /// Whether the size is the disk's own, not the most that can be.
    pub(crate) size_known: bool,
}

/// Searches, and says which `--assume` to try; nothing if nothing better than the header's own was found.
pub(crate) fn suggest(cx: &mut Context<'_>, side: &Side) {
    if !cx.options.orphans || cx.stopped() {
        return;
    }
    let Some(found) = search(cx, side) else { return };
    let words = words(&found, &side.header, side.geometry.is_some());
    if words.is_empty() {
        return;
    }
    let assumed: Vec<String> = cx
        .options
        .assume
        .names()
        .filter_map(|name| {
            let value = cx.options.assume.value(name)?;
            (!words.iter().any(|word| word.starts_with(&format!("{name}=")))).then(|| format!("{name}={value}"))
        })
        .collect();
    let all = assumed.into_iter().chain(words).collect::<Vec<_>>().join(",");
    let size =
        if found.size_known || found.size.is_none() { "" } else { "; the size is the most the L1 table can map" };
    cx.next.push(format!("try --assume {all} (found by searching the file for its tables{size})"));
}

/// What differs from the header, as `--assume` takes it.
fn words(found: &Found, header: &Header, usable: bool) -> Vec<String> {
    let mut words = Vec::new();
    let mut say = |name: &str, is: Option<u64>, was: u64, hex: bool| {
        if let Some(is) = is.filter(|is| *is != was || !usable) {
            words.push(if hex { format!("{name}={is:#x}") } else { format!("{name}={is}") });
        }
    };
    say("cluster_bits", found.cluster_bits.map(u64::from), u64::from(header.cluster_bits), false);
    let extended = u64::from(header.incompatible & EXTENDED_L2 != 0);
    say("extended_l2", found.extended_l2.then_some(1), extended, false);
    say("refcount_order", found.refcount_order.map(u64::from), u64::from(header.refcount_order), false);
    say("refcount_table_offset", found.refcount_table.map(|table| table.0), header.refcount_table_offset, true);
    let clusters = u64::from(header.refcount_table_clusters);
    // A table longer than what of it is in use can not be told from its look.
    let longer =
        found.refcount_table.filter(|table| !usable || table.1 > clusters || table.0 != header.refcount_table_offset);
    say("refcount_table_clusters", longer.map(|table| table.1), clusters, false);
    say("l1_offset", found.l1.map(|l1| l1.0), header.l1_offset, true);
    let entries = u64::from(header.l1_size);
    let more = found.l1.filter(|l1| !usable || l1.1 > entries || l1.0 != header.l1_offset);
    say("l1_size", more.map(|l1| l1.1), entries, false);
    let better = found.size.filter(|size| !usable || found.size_known || *size > header.size);
    say("size", better, header.size, false);
    words
}

/// A sector that begins with a pointer and holds nothing else.
#[derive(Clone, Copy, Debug)]
struct Pointers {
    copied: bool,
    extended: bool,
    first: u64,
}

fn search(cx: &mut Context<'_>, side: &Side) -> Option<Found> {
    let cost = (KEPT_MAX as u64).saturating_mul(64).min(cx.budget.left() / 4);
    let kept = usize::try_from(cost / 64).unwrap_or(0);
    let paid = cost.saturating_add(READ as u64);
    if kept < 256 || cx.budget.take(paid).is_err() {
        cx.not_checked("where the tables of the image are: there is not enough memory to search it");
        return None;
    }
    let (sectors, aligned) = pointers(cx, kept);
    let mut found = Found { cluster_bits: cluster_bits(&aligned), ..Found::default() };
    if let Some(bits) = found.cluster_bits {
        let extended = sectors.values().filter(|sector| sector.extended).count();
        found.extended_l2 =
            bits >= 14 && extended.saturating_mul(2) > sectors.values().filter(|sector| sector.copied).count();
        let geometry = Geometry {
            cluster_bits: bits,
            refcount_order: 4,
            size: u64::MAX,
            extended_l2: found.extended_l2,
            external_data: false,
            version: 3,
            zstd: side.header.compression_type == 1,
        };
        refcount_table(cx, &geometry, &sectors, &mut found);
        l1(cx, &geometry, &sectors, &mut found);
    }
    cx.budget.give(paid);
    (found.l1.is_some() || found.refcount_table.is_some()).then_some(found)
}

/// Sectors of pointers by place, and how many pointers with COPIED have which alignment.
fn pointers(cx: &mut Context<'_>, kept: usize) -> (BTreeMap<u64, Pointers>, [u64; 64]) {
    let file_len = cx.file_len();
    let plain = Geometry {
        cluster_bits: 9,
        refcount_order: 4,
        size: u64::MAX,
        extended_l2: false,
        external_data: false,
        version: 3,
        zstd: false,
    };
    let extended = Geometry { extended_l2: true, ..plain };
    let mut sectors = BTreeMap::new();
    let mut aligned = [0u64; 64];
    let mut buf = vec![0u8; READ];
    let mut at = 0u64;
    while at < file_len && !cx.stopped() {
        let Some(data) = cx.image.next_data(at) else { break };
        at = at.max(data.start & !((SECTOR as u64).wrapping_sub(1)));
        let end = data.end.min(file_len).max(at.saturating_add(1));
        while at < end {
            let len = usize::try_from(end.saturating_sub(at)).unwrap_or(READ).min(READ);
            let read = buf.get_mut(..len).and_then(|buf| cx.image.read_at(at, buf).ok()).unwrap_or(0);
            cx.progress("tables", at, file_len);
            let mut place = at;
            let mut before = false;
            for sector in buf.get(..read).unwrap_or_default().chunks_exact(SECTOR) {
                let here = place;
                place = place.saturating_add(SECTOR as u64);
                let raw = be_u64(sector, 0);
                let first = raw & OFFSET;
                // Told apart by its first entry, nearly always.
                let begins = raw & !(OFFSET | COPIED) == 0 && first != 0 && first < file_len && here != 0;
                if !begins {
                    before = false;
                    continue;
                }
                let entries = Entries::of(sector, &plain, file_len);
                let by_pairs = Entries::of(sector, &extended, file_len);
                let sound = |entries: &Entries| {
                    entries.sound == entries.nonzero && entries.inside > 0 && entries.past == 0 && entries.repeated == 0
                };
                let is_extended = !sound(&entries);
                if is_extended && !sound(&by_pairs) {
                    before = false;
                    continue;
                }
                let copied = raw & COPIED != 0;
                if copied {
                    let step = if is_extended { 16 } else { 8 };
                    for entry in sector.chunks_exact(step) {
                        let raw = be_u64(entry, 0);
                        let offset = raw & OFFSET;
                        if raw & COPIED != 0
                            && raw & COMPRESSED == 0
                            && offset != 0
                            && let Some(count) = aligned.get_mut(offset.trailing_zeros() as usize)
                        {
                            *count = count.saturating_add(1);
                        }
                    }
                }
                if (!before || here.is_multiple_of(4096)) && sectors.len() < kept {
                    sectors.insert(here, Pointers { copied, extended: is_extended, first });
                }
                before = true;
            }
            at = at.saturating_add((read as u64).max(SECTOR as u64));
        }
    }
    (sectors, aligned)
}

/// The least alignment that more than one in twenty pointers has.
fn cluster_bits(aligned: &[u64; 64]) -> Option<u32> {
    let all = aligned.iter().fold(0u64, |all, count| all.saturating_add(*count));
    let least = aligned.iter().position(|count| *count > 0 && count.saturating_mul(20) >= all)?;
    u32::try_from(least).ok().filter(|bits| (9..=CLUSTER_BITS_MAX).contains(bits))
}

fn refcount_table(cx: &Context<'_>, geometry: &Geometry, sectors: &BTreeMap<u64, Pointers>, found: &mut Found) {
    let cluster = geometry.cluster_size();
    let aligned = |place: u64| place & cluster.wrapping_sub(1) == 0;
    let mut best: Option<(u32, u64, u32)> = None;
    for (place, sector) in
        sectors.iter().filter(|(place, sector)| !sector.copied && aligned(**place) && aligned(sector.first))
    {
        for order in 0..=6u32 {
            let geometry = Geometry { refcount_order: order, ..*geometry };
            let counts = [0, *place, sector.first].map(|at| count(cx, &geometry, sector.first, at));
            // A moved table's cluster may be counted by another block; what is counted has to be counted once.
            let right = counts.iter().all(|count| matches!(count, Some(1) | None)) && counts.first() == Some(&Some(1));
            let score = counts.iter().filter(|count| **count == Some(1)).count();
            let score = u32::try_from(score).unwrap_or(0);
            if right && score >= 2 && best.is_none_or(|(most, _, _)| score > most) {
                best = Some((score, *place, order));
            }
        }
    }
    let Some((_, place, order)) = best else { return };
    let mut clusters = 1u64;
    while clusters < 4096 {
        let next = place.saturating_add(clusters.saturating_mul(cluster));
        if sectors.get(&next).is_none_or(|sector| sector.copied) {
            break;
        }
        clusters = clusters.saturating_add(1);
    }
    found.refcount_order = Some(order);
    found.refcount_table = Some((place, clusters));
}

/// The count of the cluster at `of` in the block at `block`, the first one of its image; `None` if another block has
/// it.
fn count(cx: &Context<'_>, geometry: &Geometry, block: u64, of: u64) -> Option<u64> {
    let index = of >> geometry.cluster_bits;
    if index >= geometry.refcounts_per_block() {
        return None;
    }
    // Counts narrower than a byte share one.
    let narrow = 3u32.saturating_sub(geometry.refcount_order);
    let len = 1usize << geometry.refcount_order.saturating_sub(3);
    let at = block.checked_add((index >> narrow).checked_mul(len as u64)?)?;
    let mut bytes = [0u8; 8];
    let read = cx.image.read_at(at, bytes.get_mut(..len)?).ok()?;
    let within = index & (1u64 << narrow).wrapping_sub(1);
    (read == len).then(|| count_at(&bytes, within, geometry.refcount_order))
}

fn l1(cx: &Context<'_>, geometry: &Geometry, sectors: &BTreeMap<u64, Pointers>, found: &mut Found) {
    let cluster = geometry.cluster_size();
    let plain = Geometry { extended_l2: false, ..*geometry };
    let aligned = |place: u64| place & cluster.wrapping_sub(1) == 0;
    // Those whose first entry leads to a table that begins with a pointer go first: of data clusters hardly any does.
    let mut candidates: Vec<(bool, u64)> = sectors
        .iter()
        .filter(|(place, sector)| sector.copied && aligned(**place) && aligned(sector.first))
        .map(|(place, sector)| (!sectors.contains_key(&sector.first), *place))
        .collect();
    candidates.sort_unstable();
    let mut best: Option<(u64, u64, u64)> = None;
    for (_, place) in candidates.into_iter().take(L1_MAX) {
        let entries = l1_entries(cx, &plain, place);
        let mut leads = 0u64;
        let mut wrong = 0u64;
        for offset in entries.iter().filter(|offset| **offset != 0).take(64) {
            let mut bytes = vec![0u8; usize::try_from(cluster.min(1 << 16)).unwrap_or(0)];
            let read = cx.image.read_at(*offset, &mut bytes).unwrap_or(0);
            let look = Entries::of(bytes.get(..read).unwrap_or_default(), geometry, cx.file_len());
            match look.nonzero {
                // A table whose clusters were all given back.
                0 => {}
                nonzero if look.sound.saturating_mul(8) >= nonzero.saturating_mul(7) && look.inside > 0 => {
                    leads = leads.saturating_add(1)
                }
                _ => wrong = wrong.saturating_add(1),
            }
        }
        let count = entries.len() as u64;
        if leads > wrong && best.is_none_or(|(most, entries, _)| (leads, count) > (most, entries)) {
            best = Some((leads, count, place));
        }
    }
    let Some((_, entries, place)) = best else { return };
    found.l1 = Some((place, entries));
    found.size = entries.checked_mul(geometry.l2_window());
    if let Some(size) = disk_size(cx, geometry, place) {
        found.size = Some(size);
        found.size_known = true;
        found.l1 = Some((place, entries.max(size.div_ceil(geometry.l2_window().max(1)))));
    }
}

/// The offsets an L1 table at this place has, up to the last one that looks like one.
fn l1_entries(cx: &Context<'_>, geometry: &Geometry, place: u64) -> Vec<u64> {
    let mut offsets: Vec<u64> = Vec::new();
    let mut end = 0usize;
    let mut sector = [0u8; SECTOR];
    let mut at = place;
    while offsets.len() < 1 << 17 {
        let read = cx.image.read_at(at, &mut sector).unwrap_or(0);
        let entries = Entries::of(sector.get(..read).unwrap_or_default(), geometry, cx.file_len());
        if read < SECTOR || entries.sound != entries.nonzero || entries.flags_only > 0 || entries.past > 0 {
            break;
        }
        let within = at.wrapping_sub(place) & geometry.cluster_size().wrapping_sub(1);
        if within == 0 && at != place && entries.nonzero > 0 {
            // The next cluster goes on with the table only if it leads to tables too: an L2 table may lie there.
            let raw = sector.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).find(|raw| *raw != 0);
            let mut target = [0u8; SECTOR];
            let read = cx.image.read_at(raw.unwrap_or(0) & OFFSET, &mut target).unwrap_or(0);
            let look = Entries::of(target.get(..read).unwrap_or_default(), geometry, cx.file_len());
            if look.sound != look.nonzero || look.inside == 0 {
                break;
            }
        }
        offsets.extend(sector.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry) & OFFSET));
        if entries.nonzero > 0 {
            end = offsets.iter().rposition(|offset| *offset != 0).map_or(end, |last| last.saturating_add(1));
        }
        at = at.saturating_add(SECTOR as u64);
        // A long stretch of nothing is the end of any table.
        if offsets.len().saturating_sub(end) > L1_GAP && at.wrapping_sub(place) >= geometry.cluster_size() {
            break;
        }
    }
    offsets.truncate(end);
    offsets
}

/// What the disk's own partition table says of its size.
fn disk_size(cx: &Context<'_>, geometry: &Geometry, l1: u64) -> Option<u64> {
    let pointer = |at: u64| {
        let mut entry = [0u8; 8];
        let read = cx.image.read_at(at, &mut entry).ok()?;
        let raw = u64::from_be_bytes(entry);
        (read == 8 && raw & COMPRESSED == 0 && raw & OFFSET != 0).then_some(raw & OFFSET)
    };
    let at = 512u64;
    let table = pointer(l1)?;
    let index = at >> geometry.cluster_bits;
    let data = pointer(table.checked_add(index.checked_mul(geometry.l2_entry_len())?)?)?;
    let mut sector = [0u8; SECTOR];
    let within: Range<u64> = at & geometry.cluster_size().wrapping_sub(1)..geometry.cluster_size();
    cx.image.read_at(data.checked_add(within.start)?, &mut sector).ok()?;
    general::gpt_sectors(&sector)?.checked_mul(512)
}
