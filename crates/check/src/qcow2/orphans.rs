//! Tables nothing refers to, found by their look, and the windows of the disk they fit.
//!
//! Searched are the clusters the map of the file left without an owner: one pass over those that hold data, reading the
//! first sector of each and the rest only of those that begin like a table. Then each candidate is weighed: do the
//! clusters it names lack an owner as well; which L1 entries are missing; which of them do its neighbours in the file
//! suggest (programs that fill a disk in order put its tables into the file in order); does an older L1 table say.
//!
//! Candidates are offered, never used.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::bytes::{be_u64, is_zero};
use crate::context::Context;
use crate::finding::{Confidence, Finding};
use crate::map::{Class, Owner};
use crate::shape as general;

use super::codes::recover as codes;
use super::header::Geometry;
use super::l1::{self, Target};
use super::l2::{COMPRESSED, OFFSET};
use super::shape::{Entries, SECTOR};
use super::survey::Survey;

/// Candidates kept.
const KEPT_MAX: usize = 4096;
/// Candidates told one by one.
const TOLD_MAX: usize = 64;
/// Clusters whose first sector is read.
const LOOKS_MAX: u64 = 1 << 24;

/// An L2 table without an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Orphan {
    pub(crate) host: u64,
    /// Entries that name something, and of these how many name clusters that have no owner either.
    pub(crate) entries: u64,
    pub(crate) ownerless: u64,
    /// Whether its own cluster is counted as in use.
    pub(crate) counted: bool,
    /// Whether an L1 table that is counted as in use names it: that of a snapshot whose deletion was not finished.
    given_up: bool,
    /// Hull of the clusters it names.
    pub(crate) data: Range<u64>,
    /// What it maps, in entries, in runs.
    runs: Vec<Range<u64>>,
    /// Whether what its first entry names begins like a disk.
    begins_disk: bool,
    pub(crate) sure: Confidence,
    /// The L1 entry it belongs to, and how sure that is.
    pub(crate) slot: Option<(u64, Confidence)>,
    /// If that is not known: L1 entries between which it lies in the file.
    pub(crate) between: Range<u64>,
}

impl Orphan {
    /// Whether it is a table that was lost, not one that was given up: what it names has no owner either.
    pub(crate) fn is_lost(&self) -> bool {
        !self.given_up
            && self.sure >= Confidence::Likely
            && self.entries >= 8
            && self.ownerless.saturating_mul(10) >= self.entries.saturating_mul(9)
    }
}

/// An L1 table without an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OrphanL1 {
    pub(crate) host: u64,
    pub(crate) counted: bool,
    /// The L2 tables it names among the candidates, with their indices.
    names: BTreeMap<u64, u64>,
}

/// What the search found.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    pub(crate) l2: Vec<Orphan>,
    /// L1 tables without an owner.
    pub(crate) l1: Vec<OrphanL1>,
    /// L1 entries without a table: empty or damaged.
    pub(crate) missing: u64,
    /// Bytes of the disk whose L1 entries are gone though their tables are there.
    pub(crate) lost: Vec<Range<u64>>,
    /// Clusters counted as in use that are the lost tables and their data.
    pub(crate) clusters: u64,
}

/// Searches, weighs and tells. `survey` knows the L1 table.
pub(crate) fn search(cx: &mut Context<'_>, geometry: &Geometry, survey: &Survey) -> Orphans {
    let mut all = Orphans::default();
    let cluster = geometry.cluster_size();
    let kept = (KEPT_MAX as u64).saturating_mul(256);
    let room = cluster.saturating_add(kept);
    let paid = cx.budget.take(room).is_ok();
    if !paid {
        cx.not_checked("whether lost L2 tables are still in the file: there is not enough memory to search it");
        return all;
    }
    let mut buf = vec![0u8; usize::try_from(cluster).unwrap_or(0)];
    let mut l1s: Vec<(u64, bool, Vec<u64>)> = Vec::new();
    let mut looks = 0u64;
    // Counted clusters first: a free one is a table that was given up, or has lost its count too.
    for counted in [true, false] {
        scan(cx, geometry, counted, &mut buf, &mut looks, |cx, at, bytes| {
            candidate(cx, geometry, at, counted, bytes, &mut all.l2, &mut l1s);
        });
    }
    if looks >= LOOKS_MAX {
        cx.not_checked(format!(
            "whether lost L2 tables are in the rest of the file: {LOOKS_MAX} clusters were searched"
        ));
    }
    if cx.vacant.cut {
        cx.not_checked(
            "whether lost L2 tables are in the rest of the file: it is in too many pieces to be searched whole",
        );
    }
    cx.budget.give(room);
    all.l2.sort_by_key(|orphan| orphan.host);
    all.l2.truncate(KEPT_MAX);
    for (host, counted, names) in l1s {
        let names: BTreeMap<u64, u64> = (0u64..)
            .zip(names)
            .filter(|(_, table)| all.l2.binary_search_by_key(table, |orphan| orphan.host).is_ok())
            .map(|(index, table)| (table, index))
            .collect();
        if !names.is_empty() {
            // It is no L2 table then.
            all.l2.retain(|orphan| orphan.host != host);
            all.l1.push(OrphanL1 { host, counted, names });
        }
    }
    fit(geometry, survey, cx.file_len(), &mut all);
    tell(cx, geometry, &mut all);
    all
}

/// Goes over the clusters without an owner that may hold something.
fn scan(
    cx: &mut Context<'_>,
    geometry: &Geometry,
    counted: bool,
    buf: &mut [u8],
    looks: &mut u64,
    mut each: impl FnMut(&Context<'_>, u64, &[u8]),
) {
    let (cluster, file_len) = (geometry.cluster_size(), cx.file_len());
    let runs: Vec<Range<u64>> =
        cx.vacant.runs().iter().filter(|run| run.counted == counted).map(|run| run.range.clone()).collect();
    let total = runs.iter().fold(0u64, |all, run| all.saturating_add(run.end.saturating_sub(run.start)));
    let mut done = 0u64;
    for run in runs {
        let mut at = run.start;
        while at < run.end {
            // Holes hold nothing.
            let Some(data) = cx.image.next_data(at).filter(|data| data.start < run.end) else { break };
            at = at.max(data.start & !cluster.wrapping_sub(1));
            let end = run.end.min(data.end.max(at.saturating_add(1)));
            while at < end && *looks < LOOKS_MAX {
                *looks = looks.saturating_add(1);
                if looks.is_multiple_of(4096) {
                    cx.progress("lost tables", done.saturating_add(at.saturating_sub(run.start)), total);
                    if cx.stopped() {
                        return;
                    }
                }
                if begins_like_a_table(cx, geometry, at, buf) {
                    let there = usize::try_from(file_len.saturating_sub(at).min(cluster)).unwrap_or(0);
                    let bytes = buf.get_mut(..there).unwrap_or_default();
                    if cx.image.read_at(at, bytes).is_ok_and(|read| read == there) {
                        each(cx, at, bytes);
                    }
                }
                at = at.saturating_add(cluster);
            }
            if *looks >= LOOKS_MAX {
                return;
            }
        }
        done = done.saturating_add(run.end.saturating_sub(run.start));
    }
}

/// Looks at one sector only: most clusters are data, and are told apart by that.
fn begins_like_a_table(cx: &Context<'_>, geometry: &Geometry, at: u64, buf: &mut [u8]) -> bool {
    let Some(sector) = buf.get_mut(..SECTOR) else { return false };
    if !cx.image.read_at(at, sector).is_ok_and(|read| read == SECTOR) {
        return false;
    }
    let entries = Entries::of(sector, geometry, cx.file_len());
    // A table may begin with entries that are 0; so does nearly everything else, and is told apart by reading it.
    entries.sound == entries.nonzero
}

fn candidate(
    cx: &Context<'_>,
    geometry: &Geometry,
    at: u64,
    counted: bool,
    bytes: &[u8],
    l2: &mut Vec<Orphan>,
    l1s: &mut Vec<(u64, bool, Vec<u64>)>,
) {
    if is_zero(bytes) {
        return;
    }
    let entries = Entries::of(bytes, geometry, cx.file_len());
    let plain = Geometry { extended_l2: false, external_data: false, ..*geometry };
    let as_l1 = if geometry.extended_l2 { Entries::of(bytes, &plain, cx.file_len()) } else { entries };
    if as_l1.is_l1() && as_l1.inside <= 4096 && l1s.len() < 64 {
        let mut names: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|entry| be_u64(entry, 0) & OFFSET).collect();
        names.truncate(usize::try_from(as_l1.end).unwrap_or(0));
        l1s.push((at, counted, names));
    }
    let Some(sure) = entries.is_l2() else { return };
    if l2.len() >= KEPT_MAX.saturating_mul(2) {
        return;
    }
    let step = usize::try_from(geometry.l2_entry_len()).unwrap_or(8);
    let (mut named, mut ownerless) = (0u64, 0u64);
    let (mut least, mut most) = (u64::MAX, 0u64);
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut first = None;
    for (index, entry) in (0u64..).zip(bytes.chunks_exact(step)) {
        let raw = be_u64(entry, 0);
        let offset = if raw & COMPRESSED != 0 { super::compressed::region(raw, geometry).start } else { raw & OFFSET };
        if raw == 0 || offset == 0 {
            continue;
        }
        named = named.saturating_add(1);
        (least, most) = (least.min(offset), most.max(offset.saturating_add(geometry.cluster_size())));
        ownerless = ownerless.saturating_add(u64::from(cx.vacant.at(offset).is_some()));
        if index == 0 && raw & COMPRESSED == 0 {
            first = Some(offset);
        }
        match runs.last_mut() {
            Some(last) if last.end == index => last.end = index.saturating_add(1),
            _ => runs.push(index..index.saturating_add(1)),
        }
        if runs.len() > 8 {
            // Beyond that the hull is near enough.
            let end = runs.pop().map_or(0, |run| run.end);
            if let Some(last) = runs.last_mut() {
                last.end = end;
            }
        }
    }
    // What it names has owners: an older version of a table that is in use, or a table given up whose clusters were
    // reused.
    if ownerless.saturating_mul(2) < named {
        return;
    }
    let mut head = vec![0u8; 4096];
    let begins_disk = first.is_some_and(|first| {
        let read = cx.image.read_at(first, &mut head).unwrap_or(0);
        let magic = general::magic(head.get(..read).unwrap_or_default());
        magic.is_some_and(|(name, _)| {
            name.contains("boot sector") || name.contains("partition") || name.contains("ext4 file")
        })
    });
    l2.push(Orphan {
        host: at,
        entries: named,
        ownerless,
        counted,
        given_up: false,
        data: least..most.max(least),
        runs,
        begins_disk,
        sure: if ownerless.saturating_mul(10) >= named.saturating_mul(9) { sure } else { Confidence::Possible },
        slot: None,
        between: 0..0,
    });
}

/// Which L1 entry each candidate belongs to.
fn fit(geometry: &Geometry, survey: &Survey, file_len: u64, all: &mut Orphans) {
    let needed = geometry.l1_needed();
    // Sound entries: place in the file by index. Everything else is missing.
    let sound: BTreeMap<u64, u64> = survey
        .l1
        .iter()
        .filter(|(index, _)| *index < needed)
        .filter_map(|(index, raw)| match l1::target(*raw, geometry, file_len) {
            Target::Table(_) => Some((*index, raw & OFFSET)),
            Target::Broken(_) => None,
        })
        .collect();
    all.missing = needed.saturating_sub(sound.len() as u64);
    let places: Vec<(u64, u64)> = sound.iter().map(|(index, place)| (*index, *place)).collect();
    let rising = places.windows(2).filter(|two| matches!(two, [before, after] if before.1 < after.1)).count();
    let in_order = places.len() < 2 || rising.saturating_mul(10) >= places.len().saturating_sub(1).saturating_mul(9);

    // What an older L1 table or the data itself says goes first.
    let mut taken: BTreeMap<u64, usize> = BTreeMap::new();
    let hints: BTreeMap<u64, u64> =
        all.l1.iter().flat_map(|old| &old.names).map(|(table, index)| (*table, *index)).collect();
    if !sound.is_empty() {
        let of_snapshots: Vec<&OrphanL1> = all.l1.iter().filter(|old| old.counted).collect();
        for orphan in &mut all.l2 {
            orphan.given_up = of_snapshots.iter().any(|old| old.names.contains_key(&orphan.host));
        }
    }
    for (at, orphan) in all.l2.iter_mut().enumerate() {
        let hint = hints.get(&orphan.host).copied().or(orphan.begins_disk.then_some(0));
        if let Some(index) =
            hint.filter(|index| *index < needed && !sound.contains_key(index) && !taken.contains_key(index))
        {
            orphan.slot = Some((index, Confidence::Likely));
            taken.insert(index, at);
        }
    }
    if !in_order {
        return;
    }
    // Neighbours in the file, those just placed among them: between which indices a table at this place belongs.
    let mut around: BTreeMap<u64, u64> = sound.iter().map(|(index, place)| (*place, *index)).collect();
    around.extend(all.l2.iter().filter_map(|orphan| orphan.slot.map(|(index, _)| (orphan.host, index))));
    let mut groups: BTreeMap<(u64, u64), Vec<usize>> = BTreeMap::new();
    for (at, orphan) in all.l2.iter_mut().enumerate() {
        if orphan.slot.is_some() || orphan.sure < Confidence::Likely {
            continue;
        }
        let low = around.range(..orphan.host).next_back().map_or(0, |(_, index)| index.saturating_add(1));
        let high = around.range(orphan.host..).next().map_or(needed, |(_, index)| *index);
        orphan.between = low..high.max(low);
        groups.entry((low, high)).or_default().push(at);
    }
    for ((low, high), members) in groups {
        // No more indices than a person could look at: beyond that the count decides nothing.
        let free: Vec<u64> = (low..high.min(low.saturating_add(KEPT_MAX as u64)))
            .filter(|index| !sound.contains_key(index) && !taken.contains_key(index))
            .collect();
        let ends = high < needed || free.len() < KEPT_MAX;
        if free.len() == members.len() && ends {
            let sure = if sound.is_empty() && needed > 1 { Confidence::Possible } else { Confidence::Likely };
            for (at, index) in members.iter().zip(&free) {
                if let Some(orphan) = all.l2.get_mut(*at) {
                    orphan.slot = Some((*index, sure));
                }
            }
        } else if members.len() < free.len() {
            // The first ones are as good a guess as any: disks are filled from their start.
            for (at, index) in members.iter().zip(&free) {
                if let Some(orphan) = all.l2.get_mut(*at) {
                    orphan.slot = Some((*index, Confidence::Possible));
                }
            }
        }
    }
}

fn tell(cx: &mut Context<'_>, geometry: &Geometry, all: &mut Orphans) {
    let (cluster, window) = (geometry.cluster_size(), geometry.l2_window());
    for OrphanL1 { host: place, names, .. } in &all.l1 {
        let words = format!(
            "the cluster at {place:#x}, to which nothing refers, looks like an L1 table: it names {} of the L2 tables that have \
             lost their owner",
            names.len()
        );
        let owner = Owner {
            class: Class::L1,
            host: *place..place.saturating_add(cluster),
            guest: None,
            label: "an older L1 table".to_owned(),
        };
        let range = owner.host.clone();
        cx.find(Finding::new(codes::ORPHAN_L1, words).host(range).confidence(Confidence::Likely).owner(owner));
    }
    for orphan in all.l2.iter().take(TOLD_MAX) {
        let place = orphan.host..orphan.host.saturating_add(cluster);
        let bytes = |index: u64| index.saturating_mul(window).min(geometry.size);
        let (label, guest) = match orphan.slot {
            Some((index, sure)) => {
                (format!("L2 table of l1[{index}] ({sure})"), Some(bytes(index)..bytes(index.saturating_add(1))))
            }
            None if !orphan.between.is_empty() => {
                let Range { start, end } = orphan.between;
                (format!("L2 table of one of l1[{start}..{end}]"), None)
            }
            None => ("L2 table of an L1 entry that is not known".to_owned(), None),
        };
        let words = format!(
            "the cluster at {:#x}, to which nothing refers, looks like an L2 table of {} entries, {} of which name clusters \
             without an owner: {label}",
            orphan.host, orphan.entries, orphan.ownerless
        );
        let mut finding = Finding::new(codes::ORPHAN_L2, words).host(place.clone()).confidence(orphan.sure);
        if let Some(guest) = &guest {
            finding = finding.guest(guest.clone());
        }
        cx.find(finding.owner(Owner { class: Class::L2, host: place, guest, label }));
    }
    if let Some(more) = all.l2.len().checked_sub(TOLD_MAX).filter(|more| *more > 0) {
        let words = format!("{more} more clusters to which nothing refers look like L2 tables");
        cx.find(Finding::new(codes::ORPHAN_L2, words).count(more as u64).confidence(Confidence::Possible));
    }
    lost(cx, geometry, all);
}

/// Empty L1 entries whose tables are there: a disk that reads as zeroes where it has data.
fn lost(cx: &mut Context<'_>, geometry: &Geometry, all: &mut Orphans) {
    let (cluster, window) = (geometry.cluster_size(), geometry.l2_window());
    let tables: Vec<&Orphan> = all.l2.iter().filter(|orphan| orphan.is_lost()).collect();
    if tables.is_empty() || all.missing == 0 {
        return;
    }
    let mut guest: Vec<Range<u64>> = Vec::new();
    let mut windows: Vec<Range<u64>> = Vec::new();
    for orphan in &tables {
        all.clusters = all.clusters.saturating_add(1).saturating_add(orphan.ownerless);
        let Some((index, _)) = orphan.slot else { continue };
        let base = index.saturating_mul(window);
        windows.push(base.min(geometry.size)..base.saturating_add(window).min(geometry.size));
        for run in &orphan.runs {
            let at = |entry: u64| base.saturating_add(entry.saturating_mul(cluster)).min(geometry.size);
            guest.push(at(run.start)..at(run.end));
        }
    }
    let (count, entries) =
        (tables.len() as u64, tables.iter().fold(0u64, |all, orphan| all.saturating_add(orphan.entries)));
    let known = windows.len() as u64;
    let mut words = format!(
        "{count} L2 tables ({entries} entries) are in the file without an owner, and {} of the L1 entries the disk needs are \
         empty or damaged",
        all.missing
    );
    if known < count {
        words += &format!("; where {} of them belong is not known", count.saturating_sub(known));
    }
    windows.sort_by_key(|window| window.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for window in windows {
        match joined.last_mut() {
            Some(last) if last.end >= window.start => last.end = last.end.max(window.end),
            _ => joined.push(window),
        }
    }
    let mut finding = Finding::new(codes::L1_LOST, words).count(count).confidence(Confidence::Likely);
    if let Some(first) = tables.first() {
        finding = finding.host(first.host..first.host.saturating_add(cluster));
    }
    for window in joined.iter().take(256) {
        finding = finding.guest(window.clone());
    }
    all.lost = joined;
    // Entries that can not be read or make no sense have been told, and what they map is known to be lost.
    let known = cx.lost();
    let told = |run: &Range<u64>| known.ranges.iter().any(|lost| lost.start <= run.start && run.end <= lost.end);
    if guest.is_empty() || !guest.iter().all(told) {
        cx.find(finding);
    }
    for range in guest {
        if let Some(map) = &mut cx.guest {
            map.turn(range.clone(), crate::map::GuestState::Unallocated, crate::map::GuestState::Damaged);
        }
        cx.lose(range);
    }
}
