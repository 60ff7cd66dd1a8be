//! The entries of L2 tables: each one judged by itself, and counted as a reference to what it points at (image-check.md
//! 2.5).
//!
//! A flawed entry is still a reference. Where most of a table makes no sense as entries, the table was overwritten:
//! that is one finding, whose entries count as references all the same.

use std::ops::Range;

use crate::budget::Full;
use crate::code::{Code, Severity, general};
use crate::finding::Finding;
use crate::map::GuestState;

use super::codes::mapping as codes;
use super::compressed;
use super::found::Found;
use super::l1::TableRef;
use super::l2::{self, OFFSET, RESERVED, Run, Shape};
use super::scan::Visit;
use super::scope::{Outcome, Scope};
use super::stored::Stored;

/// Runs of flaws of one table told apart; more are summed up.
const FLAWS_MAX: usize = 64;

/// Bits 0..31 and 32..63 of a subcluster bitmap.
const ALLOCATED: u64 = 0xffff_ffff;

pub(crate) struct Mapping<'s> {
    scope: &'s Scope<'s>,
    found: &'s Found<'s>,
    stored: &'s Stored<'s>,
    /// Whether to tell what is wrong with entries themselves, which is the same in every window.
    first_window: bool,
    pub(crate) out: Outcome,
    /// Of the current table: flaws, where the next cluster would follow its predecessor, and whether it was
    /// overwritten.
    flaws: Vec<Flaw>,
    unlisted: Vec<(&'static Code, u64)>,
    follows: u64,
    shape: Shape,
    state: Option<(GuestState, Range<u64>)>,
}

/// Entries with the same flaw.
struct Flaw {
    code: &'static Code,
    entries: Range<u64>,
    /// The first one.
    raw: u64,
}

impl<'s> Mapping<'s> {
    pub(crate) fn new(scope: &'s Scope<'s>, found: &'s Found<'s>, stored: &'s Stored<'s>, first_window: bool) -> Self {
        Self {
            scope,
            found,
            stored,
            first_window,
            out: scope.outcome(),
            flaws: Vec::new(),
            unlisted: Vec::new(),
            follows: 0,
            shape: Shape::Table,
            state: None,
        }
    }

    fn flaw(&mut self, code: &'static Code, entries: Range<u64>, raw: u64) {
        // What needs the counts is seen in the window the counts are of; everything else once.
        if !self.first_window && code != codes::L2_COPIED {
            return;
        }
        if let Some(last) = self.flaws.iter_mut().rev().take(4).find(|flaw| flaw.code == code)
            && last.entries.end == entries.start
        {
            last.entries.end = entries.end;
        } else if self.flaws.len() < FLAWS_MAX {
            self.flaws.push(Flaw { code, entries, raw });
        } else {
            let more = entries.end.saturating_sub(entries.start);
            match self.unlisted.iter_mut().find(|(of, _)| *of == code) {
                Some((_, count)) => *count = count.saturating_add(more),
                None => self.unlisted.push((code, more)),
            }
        }
    }

    /// The guest's bytes some entries map, on the active disk; empty for VM state and what only snapshots have.
    fn guest(&self, table: &TableRef, entries: Range<u64>) -> Range<u64> {
        if table.active == 0 || table.vm {
            return 0..0;
        }
        let base = u64::from(table.l1_index).saturating_mul(self.scope.geometry.l2_window());
        let at = |index: u64| {
            let at = index.saturating_mul(self.scope.geometry.cluster_size());
            base.saturating_add(at).min(self.scope.geometry.size)
        };
        at(entries.start)..at(entries.end)
    }

    fn lose(&mut self, table: &TableRef, entries: Range<u64>) {
        let guest = self.guest(table, entries);
        if self.first_window {
            self.out.lost.add(guest);
        }
    }

    fn state(&mut self, table: &TableRef, entries: Range<u64>, state: GuestState) {
        // Who maps one table at two places of the disk has neither.
        if !self.first_window || table.several || self.shape != Shape::Table {
            return;
        }
        let guest = self.guest(table, entries);
        match &mut self.state {
            Some((of, range)) if *of == state && range.end == guest.start => range.end = guest.end,
            _ => {
                if let Some((state, range)) = self.state.replace((state, guest)) {
                    self.out.guest.add(range, state);
                }
            }
        }
    }

    fn run(&mut self, table: &TableRef, run: Run) -> Result<(), Full> {
        let entries = run.index..run.index.saturating_add(run.len);
        if run.raw == 0 && run.bitmap == 0 {
            return Ok(());
        }
        if entries.end > u64::from(table.limit) {
            self.flaw(codes::L2_STRAY, run.index.max(u64::from(table.limit))..entries.end, run.raw);
        }
        if run.is_compressed() { self.stream(table, run, entries) } else { self.standard(table, run, entries) }
    }

    fn stream(&mut self, table: &TableRef, run: Run, entries: Range<u64>) -> Result<(), Full> {
        let region = compressed::region(run.raw, &self.scope.geometry);
        let mut bad = false;
        if run.copied() {
            self.flaw(codes::L2_COMPRESSED_COPIED, entries.clone(), run.raw);
        }
        if self.scope.geometry.external_data {
            self.flaw(codes::L2_COMPRESSED_EXTERNAL, entries.clone(), run.raw);
            bad = true;
        }
        if run.bitmap != 0 {
            self.flaw(codes::L2_COMPRESSED_BITMAP, entries.clone(), run.raw);
        }
        if self.first_window && table.active > 0 && !bad && run.bitmap == 0 {
            let counts = &mut self.out.counts;
            let more = u64::from(table.active).saturating_mul(run.len);
            counts.allocated = counts.allocated.saturating_add(more);
            counts.compressed = counts.compressed.saturating_add(more);
            counts.fragmented = counts.fragmented.saturating_add(more);
        }
        if region.start >= self.scope.file_len && !bad {
            self.flaw(codes::L2_COMPRESSED_PAST_END, entries.clone(), run.raw);
            bad = true;
        } else if !bad {
            let beyond = region.end.saturating_sub(self.scope.file_len.min(region.end));
            if beyond >= self.scope.geometry.cluster_size() {
                self.flaw(codes::L2_COMPRESSED_PAST_END, entries.clone(), run.raw);
            }
            let first = self.scope.cluster_of(region.start);
            let last = self.scope.cluster_of(region.end.saturating_sub(1)).min(self.scope.clusters().saturating_sub(1));
            for _ in 0..run.len {
                self.found.stream(table, first..last.saturating_add(1))?;
            }
        }
        let state = if bad { GuestState::Damaged } else { GuestState::Compressed };
        if bad {
            self.lose(table, entries.clone());
        }
        self.state(table, entries, state);
        Ok(())
    }

    fn standard(&mut self, table: &TableRef, run: Run, entries: Range<u64>) -> Result<(), Full> {
        let geometry = self.scope.geometry;
        let zero_flag = run.zero() && !geometry.extended_l2;
        if run.raw & RESERVED != 0 {
            self.flaw(codes::L2_RESERVED, entries.clone(), run.raw);
        }
        let mut bad = false;
        if run.zero() && geometry.extended_l2 {
            self.flaw(codes::L2_ZERO_FLAG_EXTENDED, entries.clone(), run.raw);
        } else if run.zero() && geometry.version < 3 {
            self.flaw(codes::L2_ZERO_FLAG_V2, entries.clone(), run.raw);
            bad = true;
        }
        if geometry.external_data {
            return self.external(table, run, entries, zero_flag);
        }
        if run.offset() == 0 {
            if run.copied() {
                self.flaw(codes::L2_COPIED_NOTHING, entries.clone(), run.raw);
            }
            if run.bitmap & ALLOCATED != 0 {
                self.flaw(codes::L2_SUBCLUSTERS_NOWHERE, entries.clone(), run.raw);
                bad = true;
            }
            self.finish(table, run, entries, zero_flag, bad);
            return Ok(());
        }
        if run.bitmap & run.bitmap >> 32 & ALLOCATED != 0 {
            self.flaw(codes::L2_SUBCLUSTERS_BOTH, entries.clone(), run.raw);
            bad = true;
        }
        self.fragments(table, run);
        let cluster = geometry.cluster_size();
        let first = self.scope.cluster_of(run.offset());
        let guest = u64::from(table.l1_index).saturating_mul(geometry.l2_entries()).saturating_add(run.index);
        let misaligned = run.offset() & cluster.wrapping_sub(1) != 0;
        // How many of the run lie in the file: these are its first ones.
        let there = self.scope.file_len.saturating_sub(run.offset()).div_ceil(cluster).min(run.len);
        if misaligned {
            self.flaw(codes::L2_MISALIGNED, entries.clone(), run.raw);
            bad = true;
        }
        if there > 0 {
            self.found.data(table, first..first.saturating_add(there), guest)?;
            if !misaligned {
                self.copied(table, run, first..first.saturating_add(there));
            }
        }
        let split = run.index.saturating_add(there);
        if there < run.len {
            let raw = run.raw.wrapping_add(there.wrapping_mul(cluster));
            self.flaw(codes::L2_PAST_END, split..entries.end, raw);
            let beyond = Run { index: split, len: run.len.saturating_sub(there), ..run };
            self.finish(table, beyond, split..entries.end, zero_flag, true);
        }
        if there > 0 {
            self.finish(table, Run { len: there, ..run }, entries.start..split, zero_flag, bad);
        }
        Ok(())
    }

    /// Data in a file of its own: at the guest's own offset, always with COPIED, never counted (Q-L9).
    fn external(&mut self, table: &TableRef, run: Run, entries: Range<u64>, zero_flag: bool) -> Result<(), Full> {
        let geometry = self.scope.geometry;
        let cluster = geometry.cluster_size();
        let base = u64::from(table.l1_index).saturating_mul(geometry.l2_entries()).saturating_add(run.index);
        let place = base.saturating_mul(cluster);
        let allocated = run.offset() != 0 || run.copied();
        if !allocated {
            let nowhere = run.bitmap & ALLOCATED != 0;
            if nowhere {
                self.flaw(codes::L2_SUBCLUSTERS_NOWHERE, entries.clone(), run.raw);
            }
            self.finish(table, run, entries, zero_flag, nowhere);
            return Ok(());
        }
        let mut bad = false;
        if run.bitmap & run.bitmap >> 32 & ALLOCATED != 0 {
            self.flaw(codes::L2_SUBCLUSTERS_BOTH, entries.clone(), run.raw);
            bad = true;
        }
        self.fragments(table, run);
        if run.offset() & cluster.wrapping_sub(1) != 0 {
            self.flaw(codes::L2_MISALIGNED, entries.clone(), run.raw);
            bad = true;
        } else if run.offset() != place || run.offset() == 0 && run.len > 1 {
            // A zero cluster that keeps no place has none to be wrong.
            if run.offset() != 0 || !zero_flag {
                self.flaw(codes::L2_EXTERNAL_OFFSET, entries.clone(), run.raw);
                bad = true;
            }
        }
        if !run.copied() && table.active > 0 {
            self.flaw(codes::L2_COPIED, entries.clone(), run.raw);
        }
        self.finish(table, run, entries, zero_flag, bad);
        Ok(())
    }

    /// Counts as `qemu-img check` does: within one table, a cluster that is not right behind its predecessor.
    fn fragments(&mut self, table: &TableRef, run: Run) {
        if table.active == 0 || !self.first_window {
            return;
        }
        let weight = u64::from(table.active);
        let counts = &mut self.out.counts;
        counts.allocated = counts.allocated.saturating_add(weight.saturating_mul(run.len));
        if self.follows != 0 && self.follows != run.offset() {
            counts.fragmented = counts.fragmented.saturating_add(weight);
        }
        self.follows = run.offset().saturating_add(run.len.saturating_mul(self.scope.geometry.cluster_size()));
    }

    /// COPIED says that the count is exactly 1, in the active tables (Q-L2). A count of 0 is told by itself.
    fn copied(&mut self, table: &TableRef, run: Run, clusters: Range<u64>) {
        if table.active == 0 || self.shape != Shape::Table {
            return;
        }
        let window = &self.found.window;
        let mut cluster = clusters.start.max(window.start);
        let end = clusters.end.min(window.end);
        while cluster < end {
            let (count, mut to) = if end.saturating_sub(cluster) == 1 {
                (self.stored.count(cluster), end)
            } else {
                self.stored.run_at(cluster)
            };
            to = to.min(end);
            if count != 0 && (count == 1) != run.copied() {
                let (unknown, known_to) = self.stored.unknown_at(cluster);
                to = to.min(known_to);
                if !unknown {
                    let index = run.index.saturating_add(cluster.saturating_sub(clusters.start));
                    let step = cluster.saturating_sub(clusters.start).wrapping_mul(self.scope.geometry.cluster_size());
                    let len = to.saturating_sub(cluster);
                    self.flaw(codes::L2_COPIED, index..index.saturating_add(len), run.raw.wrapping_add(step));
                }
            }
            cluster = to;
        }
    }

    /// The guest's view of a run: its state, and what is lost.
    fn finish(&mut self, table: &TableRef, run: Run, entries: Range<u64>, zero_flag: bool, bad: bool) {
        // A cluster that reads as zeroes has nothing to lose by a wrong place.
        let zeroes = zero_flag && self.scope.geometry.version >= 3
            || self.scope.geometry.extended_l2 && run.bitmap & ALLOCATED == 0;
        if bad && !zeroes {
            self.lose(table, entries.clone());
            self.state(table, entries, GuestState::Damaged);
            return;
        }
        if !self.scope.geometry.extended_l2 {
            let allocated = run.offset() != 0 || self.scope.geometry.external_data && run.copied();
            let state = match () {
                () if zero_flag => GuestState::Zero,
                () if allocated => GuestState::Data,
                () => GuestState::Unallocated,
            };
            if state != GuestState::Unallocated {
                self.state(table, entries, state);
            }
            return;
        }
        self.subclusters(table, run, entries);
    }

    fn subclusters(&mut self, table: &TableRef, run: Run, entries: Range<u64>) {
        let whole = match run.bitmap {
            0 => return,
            ALLOCATED => Some(GuestState::Data),
            0xffff_ffff_0000_0000 => Some(GuestState::Zero),
            _ => None,
        };
        if let Some(state) = whole {
            self.state(table, entries, state);
            return;
        }
        if !self.first_window || table.several || self.shape != Shape::Table {
            return;
        }
        let sub = self.scope.geometry.cluster_size() / 32;
        for index in entries {
            let guest = self.guest(table, index..index.saturating_add(1));
            for bit in 0..32u32 {
                let state = match (run.bitmap >> bit & 1, run.bitmap >> bit.saturating_add(32) & 1) {
                    (1, _) => GuestState::Data,
                    (_, 1) => GuestState::Zero,
                    _ => continue,
                };
                let start = guest.start.saturating_add(sub.saturating_mul(u64::from(bit)));
                self.out.guest.add(start..start.saturating_add(sub).min(guest.end), state);
            }
        }
    }

    fn tell(&mut self, table: &TableRef, flaw: &Flaw) {
        let geometry = &self.scope.geometry;
        let at = table.cluster.saturating_mul(geometry.cluster_size());
        let place = |index: u64| at.saturating_add(index.saturating_mul(geometry.l2_entry_len()));
        let count = flaw.entries.end.saturating_sub(flaw.entries.start);
        let raw = flaw.raw;
        let which = match count {
            1 => format!("L2 entry {} of the table at {at:#x} ({raw:#018x})", flaw.entries.start),
            _ => format!(
                "L2 entries {}..{} of the table at {at:#x} (the first is {raw:#018x})",
                flaw.entries.start, flaw.entries.end
            ),
        };
        let words = self.words(flaw);
        let guest = self.guest(table, flaw.entries.clone());
        let mut finding = Finding::new(flaw.code, format!("{which} {words}"))
            .count(count)
            .host(place(flaw.entries.start)..place(flaw.entries.end));
        if !guest.is_empty() {
            finding = finding.guest(guest);
        }
        if flaw.code == codes::L2_COPIED && self.scope.side.dirty {
            finding = finding.severity(Severity::Warning);
        }
        self.out.find(finding);
    }

    fn words(&self, flaw: &Flaw) -> String {
        let offset = flaw.raw & OFFSET;
        let file_len = self.scope.file_len;
        let code = flaw.code;
        let one = flaw.entries.end.saturating_sub(flaw.entries.start) == 1;
        let verb = |single: &'static str, many: &'static str| if one { single } else { many };
        let (point, have, map) = (verb("points", "point"), verb("has", "have"), verb("maps", "map"));
        if code == codes::L2_PAST_END {
            format!("{point} past the end of the file ({file_len:#x}), at {offset:#x}")
        } else if code == codes::L2_MISALIGNED {
            format!("{point} at {offset:#x}, where no cluster begins")
        } else if code == codes::L2_RESERVED {
            format!("{have} reserved bits set ({:#x})", flaw.raw & RESERVED)
        } else if code == codes::L2_COPIED {
            let flag = if flaw.raw & l2::COPIED != 0 {
                format!("{have} COPIED")
            } else {
                verb("lacks", "lack").to_owned() + " COPIED"
            };
            if self.scope.geometry.external_data {
                format!("{flag}, which allocated entries of an image with a data file must have")
            } else {
                let cluster = self.scope.cluster_of(offset);
                format!("{flag}, and the count of the cluster at {offset:#x} is {}", self.stored.count(cluster))
            }
        } else if code == codes::L2_COMPRESSED_PAST_END {
            let region = compressed::region(flaw.raw, &self.scope.geometry);
            format!(
                "{have} compressed data at {:#x}..{:#x}, past the end of the file ({file_len:#x})",
                region.start, region.end
            )
        } else if code == codes::L2_COPIED_NOTHING {
            format!("{have} COPIED but no offset")
        } else if code == codes::L2_STRAY {
            format!("{map} what lies beyond the end of the disk ({:#x})", self.scope.geometry.size)
        } else if code == codes::L2_ZERO_FLAG_V2 || code == codes::L2_ZERO_FLAG_EXTENDED {
            format!("{have} the zero flag (bit 0), which is reserved in this image")
        } else if code == codes::L2_COMPRESSED_COPIED {
            format!("{} compressed and {have} COPIED", verb("is", "are"))
        } else if code == codes::L2_COMPRESSED_EXTERNAL {
            format!("{} compressed, in an image with a data file", verb("is", "are"))
        } else if code == codes::L2_COMPRESSED_BITMAP {
            format!("{} compressed and {have} subclusters", verb("is", "are"))
        } else if code == codes::L2_SUBCLUSTERS_BOTH {
            format!("{have} subclusters that are allocated and zero at once")
        } else if code == codes::L2_SUBCLUSTERS_NOWHERE {
            format!("{have} allocated subclusters but no offset")
        } else {
            format!("{point} at {offset:#x} of the data file, not at the guest's own offset")
        }
    }
}

impl Visit for Mapping<'_> {
    fn begin(&mut self, _table: &TableRef) {
        self.follows = 0;
        self.shape = Shape::Table;
        self.flaws.clear();
        self.unlisted.clear();
    }

    fn piece(&mut self, table: &TableRef, first: u64, bytes: &[u8]) -> Result<(), Full> {
        if first == 0 {
            self.shape = l2::judge(bytes, &self.scope.geometry, self.scope.file_len);
        }
        let geometry = self.scope.geometry;
        l2::each_run(bytes, first, &geometry, |run| self.run(table, run))
    }

    fn missing(&mut self, table: &TableRef, entries: Range<u64>, host: Range<u64>, unreadable: bool) {
        if !self.first_window {
            return;
        }
        self.out.tables_lost = true;
        let guest = self.guest(table, entries.clone());
        self.lose(table, entries.clone());
        self.state(table, entries.clone(), GuestState::Damaged);
        let at = table.cluster.saturating_mul(self.scope.geometry.cluster_size());
        let which = format!("L2 entries {}..{} of the table at {at:#x}", entries.start, entries.end);
        let mut finding = if unreadable {
            self.out.check_errors = self.out.check_errors.saturating_add(1);
            Finding::new(general::UNREADABLE, format!("{which} could not be read")).host(host)
        } else {
            let words = format!("{which} are cut off by the end of the file ({:#x})", self.scope.file_len);
            Finding::new(codes::L2_CUT, words).host(at..self.scope.file_len)
        };
        if !guest.is_empty() {
            finding = finding.guest(guest);
        }
        self.out.find(finding);
    }

    fn end(&mut self, table: &TableRef) {
        if let Some((state, range)) = self.state.take() {
            self.out.guest.add(range, state);
        }
        let flaws = std::mem::take(&mut self.flaws);
        let unlisted = std::mem::take(&mut self.unlisted);
        if let Shape::Overwritten { flawed, nonzero } = self.shape {
            if self.first_window {
                self.overwritten(table, flawed, nonzero);
            }
            return;
        }
        for flaw in &flaws {
            self.tell(table, flaw);
        }
        for (code, count) in unlisted {
            let at = table.cluster.saturating_mul(self.scope.geometry.cluster_size());
            let words = format!("{count} more L2 entries of the table at {at:#x}: {}", code.title);
            let end = at.saturating_add(self.scope.geometry.cluster_size());
            let mut finding = Finding::new(code, words).count(count).host(at..end);
            if code == codes::L2_COPIED && self.scope.side.dirty {
                finding = finding.severity(Severity::Warning);
            }
            self.out.find(finding);
        }
        self.flaws = flaws;
    }
}

impl Mapping<'_> {
    fn overwritten(&mut self, table: &TableRef, flawed: u64, nonzero: u64) {
        self.out.tables_lost = true;
        let at = table.cluster.saturating_mul(self.scope.geometry.cluster_size());
        let entries = 0..self.scope.geometry.l2_entries();
        let guest = self.guest(table, entries.clone());
        let words = format!(
            "the L2 table at {at:#x} was overwritten: {flawed} of its {nonzero} entries that are not 0 make no sense"
        );
        let mut finding = Finding::new(codes::L2_OVERWRITTEN, words)
            .count(flawed)
            .host(at..at.saturating_add(self.scope.geometry.cluster_size()));
        if !guest.is_empty() {
            finding = finding.guest(guest.clone());
            // The windows of a table that several L1 entries name are counted where the others are found (`owners`).
            if !table.several {
                self.out.guest.add(guest, GuestState::Damaged);
            }
        }
        self.lose(table, entries);
        self.out.find(finding);
    }
}
