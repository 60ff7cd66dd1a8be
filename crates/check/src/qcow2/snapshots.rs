//! The snapshot table: entries of variable length, one behind the other, each 8-aligned (Q-S1..Q-S3, Q-H9).
//!
//! qcow2 spec, section "Snapshots". Read in one pass through a window, never whole: 65,536 snapshots cost what is kept
//! of them. The L1 tables are only placed here; walking them is mapping.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hasher as _};

use crate::bytes::{be_u16, be_u32, be_u64, is_zero, printable};
use crate::context::Context;
use crate::finding::Finding;
use crate::map::Class;

use super::codes::structure as codes;
use super::header::{Geometry, Head, place};
use super::side::{Claims, Runs, SnapshotL1, Window};

/// QEMU's limits: snapshots, bytes of the table, of an entry's extra data, of an L1 table.
const COUNT_MAX: u64 = 65_536;
const TABLE_LEN_MAX: u64 = 64 << 20;
const EXTRA_MAX: u64 = 1024;
const L1_ENTRIES_MAX: u64 = (32 << 20) / 8;

/// Where the walk ends at the latest: an entry that says it is longer is no entry.
const WALK_MAX: u64 = 2 * TABLE_LEN_MAX;

/// Bytes of an entry before its extra data.
const FIXED: usize = 40;
/// Characters kept of a name.
const NAME_SHOWN: usize = 64;
/// Snapshots listed as a fact.
const LISTED: usize = 32;

/// The snapshots found.
#[derive(Default)]
pub(crate) struct Snapshots {
    pub(crate) list: Vec<SnapshotL1>,
    /// For a person: number, names, sizes, dates.
    pub(crate) fact: Option<String>,
}

/// Walks the table.
pub(crate) fn read(cx: &mut Context<'_>, head: &Head, claims: &mut Claims) -> Snapshots {
    let mut found = Snapshots::default();
    let (header, Some(geometry)) = (&head.header, &head.geometry) else { return found };
    if header.nb_snapshots == 0 {
        return found;
    }
    let stated = u64::from(header.nb_snapshots);
    if stated > COUNT_MAX {
        let words = format!("the header says there are {stated} snapshots, QEMU opens {COUNT_MAX} at most");
        cx.find(Finding::new(codes::HEADER_TOO_LARGE, words).host(60..64));
        cx.could_not(format!("snapshots behind the first {COUNT_MAX}"));
        claims.complete = false;
    }
    let start = header.snapshots_offset;
    if let Err(why) = place(cx.file_len(), start, stated, geometry.cluster_size()) {
        let file_len = cx.file_len();
        let words = format!("the offset of the snapshot table, {start:#x}, {}", why.words(file_len));
        cx.find(Finding::new(codes::SNAPSHOT_TABLE, words).host(64..72));
        cx.could_not("snapshots: their table was not found");
        claims.complete = false;
        found.fact = Some(format!("{stated}, not found"));
        return found;
    }
    let mut walk = Walk::new(*geometry, start);
    let mut at = start;
    for index in 0..stated.min(COUNT_MAX) {
        if cx.stopped() {
            claims.complete = false;
            break;
        }
        match walk.entry(cx, at, index, &mut found.list) {
            Some(end) => at = end,
            None => {
                let words = format!("of {stated} snapshots {index} are in the table, which ends at {at:#x}");
                cx.find(
                    Finding::new(codes::SNAPSHOT_CUT, words)
                        .host(at..at.saturating_add(FIXED as u64))
                        .count(stated.saturating_sub(index)),
                );
                claims.complete = false;
                break;
            }
        }
    }
    walk.runs.end(cx);
    if at.saturating_sub(start) > TABLE_LEN_MAX {
        let words = format!("the snapshot table has {} bytes", at.saturating_sub(start));
        cx.find(Finding::new(codes::HEADER_TOO_LARGE, words).host(start..at));
    }
    if walk.left_out > 0 {
        cx.could_not(format!("{} snapshots, for want of memory (raise --memory)", walk.left_out));
        claims.complete = false;
    }
    claims.add(cx, start, at.saturating_sub(start), Class::SnapshotTable, 0);
    found.fact = Some(walk.fact(stated));
    cx.budget.give(walk.taken);
    found
}

struct Walk {
    geometry: Geometry,
    /// Where the table begins.
    start: u64,
    window: Window,
    runs: Runs,
    ids: BTreeSet<u64>,
    names: BTreeSet<u64>,
    /// Entries walked.
    walked: u64,
    /// Bytes of the budget `ids` and `names` have.
    taken: u64,
    left_out: u64,
    listed: Vec<String>,
}

/// Bytes an id and a name cost in their sets.
const SET_COST: u64 = 64;

impl Walk {
    fn new(geometry: Geometry, start: u64) -> Self {
        Self {
            geometry,
            start,
            window: Window::new("the snapshot table"),
            runs: Runs::new("snapshot"),
            ids: BTreeSet::new(),
            names: BTreeSet::new(),
            walked: 0,
            taken: 0,
            left_out: 0,
            listed: Vec::new(),
        }
    }

    /// Judges the entry at `at`; where the next one begins, or `None` if there is none here.
    fn entry(&mut self, cx: &mut Context<'_>, at: u64, index: u64, list: &mut Vec<SnapshotL1>) -> Option<u64> {
        let fixed = self.window.get(cx, at, FIXED);
        if fixed.len() < FIXED || is_zero(fixed) {
            return None;
        }
        let l1_offset = be_u64(fixed, 0);
        let l1_size = u64::from(be_u32(fixed, 8));
        let (id_len, name_len) = (u64::from(be_u16(fixed, 12)), u64::from(be_u16(fixed, 14)));
        let (seconds, nanoseconds) = (be_u32(fixed, 16), be_u32(fixed, 20));
        let vm_state_32 = u64::from(be_u32(fixed, 32));
        let extra_len = u64::from(be_u32(fixed, 36));

        let extra_at = at.saturating_add(FIXED as u64);
        let id_at = extra_at.saturating_add(extra_len);
        let name_at = id_at.saturating_add(id_len);
        let end = name_at.saturating_add(name_len);
        if end > cx.file_len() || end.saturating_sub(self.start) > WALK_MAX {
            return None;
        }
        let extra = self.window.get(cx, extra_at, usize::try_from(extra_len.min(24)).unwrap_or(0));
        let vm_state_64 = (extra_len >= 8).then(|| be_u64(extra, 0));
        let disk_size = (extra_len >= 16).then(|| be_u64(extra, 8));
        let id = self.window.get(cx, id_at, usize::try_from(id_len).unwrap_or(0));
        let (id_hash, id_text) = (hash(id), printable(id, NAME_SHOWN));
        let name = self.window.get(cx, name_at, usize::try_from(name_len).unwrap_or(0));
        let (name_hash, name) = (hash(name), printable(name, NAME_SHOWN));

        // Without memory for it nothing is compared; the entry is left out below and said to be.
        let compare = cx.budget.left() > cx.options.memory / 4 && cx.budget.take(SET_COST).is_ok();
        self.taken = self.taken.saturating_add(if compare { SET_COST } else { 0 });
        self.walked = self.walked.saturating_add(1);
        let range = at..end;
        let shown = || format!("snapshot {index} ('{name}')");
        let (runs, version) = (&mut self.runs, self.geometry.version);
        if (version >= 3 && extra_len < 16) || extra_len > EXTRA_MAX {
            runs.hit(cx, codes::SNAPSHOT_EXTRA, index, range.clone(), || {
                format!("{} has {extra_len} bytes of extra data; 16 to {EXTRA_MAX} can be", shown())
            });
        }
        if id_len == 0 || compare && !self.ids.insert(id_hash) {
            runs.hit(cx, codes::SNAPSHOT_ID, index, range.clone(), || {
                if id_len == 0 {
                    format!("{} has no id", shown())
                } else {
                    format!("{} has the id '{id_text}' of an earlier one", shown())
                }
            });
        }
        if compare && !self.names.insert(name_hash) {
            runs.hit(cx, codes::SNAPSHOT_NAME, index, range.clone(), || {
                format!("{} has the name of an earlier one", shown())
            });
        }
        if nanoseconds >= 1_000_000_000 {
            runs.hit(cx, codes::SNAPSHOT_FIELDS, index, range.clone(), || {
                format!("{} was taken at {nanoseconds} ns of a second", shown())
            });
        }
        if let Some(wide) = vm_state_64
            && vm_state_32 != 0
            && vm_state_32 != wide & 0xffff_ffff
        {
            runs.hit(cx, codes::SNAPSHOT_FIELDS, index, range.clone(), || {
                format!("{} has a VM state of {wide} bytes in one field, of {vm_state_32} in the other", shown())
            });
        }
        let vm_state_size = vm_state_64.unwrap_or(vm_state_32);
        if self.listed.len() < LISTED {
            let size = disk_size.map_or(String::new(), |size| format!(", disk {size} bytes"));
            let state = if vm_state_size > 0 { format!(", VM state {vm_state_size} bytes") } else { String::new() };
            self.listed.push(format!("'{name}' (id {id_text}, {}{size}{state})", date(seconds)));
        }
        let snapshot = SnapshotL1 {
            index,
            name,
            l1_offset,
            l1_size,
            l1: self.place_l1(cx, index, at, l1_offset, l1_size),
            disk_size: disk_size.unwrap_or(self.geometry.size),
            vm_state_size,
        };
        self.judge_l1_size(cx, &snapshot, disk_size, at);
        let bytes = (size_of::<SnapshotL1>() as u64)
            .saturating_mul(2)
            .saturating_add(snapshot.name.len() as u64)
            .saturating_add(64);
        if cx.budget.left() > cx.options.memory / 4 && cx.budget.take(bytes).is_ok() {
            list.push(snapshot);
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
        Some(end.checked_next_multiple_of(8).unwrap_or(end))
    }

    fn place_l1(
        &mut self,
        cx: &mut Context<'_>,
        index: u64,
        at: u64,
        offset: u64,
        entries: u64,
    ) -> Option<super::side::Table> {
        if entries == 0 {
            return None;
        }
        let file_len = cx.file_len();
        let range = at..at.saturating_add(12);
        let table = match place(file_len, offset, entries, self.geometry.cluster_size()) {
            Ok(table) => table,
            Err(why) => {
                self.runs.hit(cx, codes::SNAPSHOT_L1, index, range, || {
                    format!("the L1 table's offset of snapshot {index}, {offset:#x}, {}", why.words(file_len))
                });
                return None;
            }
        };
        if table.entries < entries || entries > L1_ENTRIES_MAX {
            self.runs.hit(cx, codes::SNAPSHOT_L1, index, range, || {
                format!(
                    "the L1 table of snapshot {index} at {offset:#x} has {entries} entries, of which {} are inside the file \
                     ({file_len:#x}); {L1_ENTRIES_MAX} at most can be opened",
                    table.entries
                )
            });
        }
        Some(table)
    }

    /// Q-S3. Without a stored disk size it is not known how many entries there should be.
    fn judge_l1_size(&mut self, cx: &mut Context<'_>, snapshot: &SnapshotL1, disk_size: Option<u64>, at: u64) {
        let Some(disk_size) = disk_size else { return };
        let disk = self.geometry.l1_needed_for(disk_size);
        let state = self.geometry.l1_needed_for(snapshot.vm_state_size);
        let needed = disk.saturating_add(state);
        if snapshot.l1_size < needed {
            let (index, entries) = (snapshot.index, snapshot.l1_size);
            self.runs.hit(cx, codes::SNAPSHOT_L1_SHORT, index, at..at.saturating_add(12), || {
                format!(
                    "the L1 table of snapshot {index} ('{}') has {entries} entries; {disk} are needed for its disk, {state} \
                     for its VM state",
                    snapshot.name
                )
            });
        }
    }

    fn fact(&self, stated: u64) -> String {
        let listed = self.listed.join(", ");
        let number =
            if self.walked == stated { stated.to_string() } else { format!("{} found of {stated}", self.walked) };
        match self.walked.saturating_sub(self.listed.len() as u64) {
            _ if self.walked == 0 => number,
            0 => format!("{number}: {listed}"),
            more => format!("{number}: {listed} and {more} more"),
        }
    }
}

/// Equal texts have equal hashes, in every run.
fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Seconds since 1970 as a date in UTC.
fn date(seconds: u32) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (mut year, mut day) = (1970u32, days);
    let leap = |year: u32| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // 136 years at most fit into 32 bits.
    loop {
        let length = if leap(year) { 366 } else { 365 };
        let Some(left) = day.checked_sub(length) else { break };
        day = left;
        year = year.saturating_add(1);
    }
    let mut month = 1u32;
    for length in [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        let Some(left) = day.checked_sub(length) else { break };
        day = left;
        month = month.saturating_add(1);
    }
    let day = day.saturating_add(1);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, want) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (u32::MAX, "2106-02-07 06:28:15 UTC"),
        ] {
            assert_eq!(date(seconds), want);
        }
    }
}
