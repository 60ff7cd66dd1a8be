//! The first pass over all tables: every entry judged, both copies compared, the guest's disk mapped.
//!
//! What an entry means is decided by [`Judge`] alone, from the bytes of both copies: later passes ask it again and get
//! the same answer, so nothing has to be remembered between passes.

use std::ops::Range;

use crate::bytes::is_zero;
use crate::code::Code;
use crate::context::Context;
use crate::finding::{Confidence, Finding};
use crate::map::{Class, GuestState, Owner};
use crate::watch::{Event, Wants};

use super::codes;
use super::geometry::{Geometry, Pointer};
use super::metadata::Metadata;
use super::tables::{Flaw, Halt, Table, Visit};

/// Flawed entries from which on a table may be something else altogether.
const GARBAGE: u64 = 8;

/// Where a grain lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Fine,
    Before,
    PastEnd,
    Cut,
    Metadata,
}

/// Which of its two copies a table is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The first; where an entry leads nowhere and the copy's is sound, that one.
    Both,
    /// The copy: the first holds something else.
    Copy,
    /// Neither.
    Neither,
}

/// Judges entries.
#[derive(Clone, Copy)]
pub(super) struct Judge<'j, 'b> {
    pub(super) geo: &'j Geometry,
    pub(super) meta: &'j Metadata<'b>,
    pub(super) file: u64,
}

impl Judge<'_, '_> {
    /// Entries of this table that lie on the disk.
    fn entries(&self, table: u64) -> usize {
        let left = self.geo.capacity.saturating_sub(self.geo.guest(table, 0)).div_ceil(self.geo.grain.max(1));
        usize::try_from(left.min(self.geo.gtes)).unwrap_or(0)
    }

    fn place(&self, start: u64, guest: u64) -> Place {
        if start >= self.file {
            return Place::PastEnd;
        }
        let (len, used) = if self.geo.compressed { (512, 1) } else { (self.geo.grain, self.geo.used(guest)) };
        let end = start.saturating_add(len);
        if self.meta.overlaps(&(start..end)) {
            Place::Metadata
        } else if start.saturating_add(used) > self.file {
            Place::Cut
        } else if start < self.geo.overhead {
            Place::Before
        } else {
            Place::Fine
        }
    }

    /// Whether an entry leads to a grain that is there.
    fn sound(&self, pointer: Pointer, guest: u64) -> bool {
        match pointer {
            Pointer::None | Pointer::Bad => false,
            Pointer::Zero => true,
            Pointer::At(start) => matches!(self.place(start, guest), Place::Fine | Place::Before),
        }
    }

    /// Entries that are not 0, and how many of them lead nowhere.
    fn score(&self, bytes: &[u8], table: u64) -> (u64, u64) {
        let (mut used, mut bad, mut gap) = (0u64, 0u64, 0..0);
        for index in 0..self.entries(table) {
            let pointer = self.geo.entry(bytes, index);
            if pointer == Pointer::None {
                continue;
            }
            used = used.saturating_add(1);
            let wrong = match pointer {
                Pointer::At(start) => {
                    let guest = self.geo.guest(table, index as u64);
                    matches!(self.place_near(start, guest, &mut gap), Place::PastEnd | Place::Metadata)
                }
                _ => pointer == Pointer::Bad,
            };
            bad = bad.saturating_add(u64::from(wrong));
        }
        (used, bad)
    }

    /// As [`place`](Self::place). Grains follow each other between the metadata: the stretch the last one lay in is
    /// looked at first.
    fn place_near(&self, start: u64, guest: u64, gap: &mut Range<u64>) -> Place {
        if start >= gap.start && start.saturating_add(self.geo.grain) <= gap.end {
            return Place::Fine;
        }
        let place = self.place(start, guest);
        if place == Place::Fine {
            let free = self.meta.around(start).unwrap_or(start..start);
            *gap = free.start.max(self.geo.overhead)..free.end.min(self.file);
        }
        place
    }

    /// Whether entries look like those of a table whose grains are gone, as those of a truncated file do: grains at
    /// equal distances, or in the order of the file, and not all the same.
    fn regular(&self, bytes: &[u8]) -> bool {
        let count = usize::try_from(self.geo.gtes).unwrap_or(0);
        let mut places = (0..count).filter_map(|index| match self.geo.entry(bytes, index) {
            Pointer::At(start) => Some(start),
            _ => None,
        });
        let Some(first) = places.next() else { return false };
        let rest = |start: u64| start.checked_rem(self.geo.grain);
        let (mut spaced, mut rising, mut equal, mut last) = (true, true, true, first);
        for start in places {
            spaced &= rest(start) == rest(first);
            rising &= start > last;
            equal &= start == first;
            last = start;
        }
        (spaced || rising) && !equal
    }

    /// Whether the grain that begins at `start` covers metadata: told as that, and no matter of other grains there.
    pub(super) fn on_metadata(&self, start: u64, guest: u64) -> bool {
        self.place(start, guest) == Place::Metadata
    }

    /// Which copy to read. A table most of whose entries lead nowhere is none.
    pub(super) fn choose(&self, table: &Table<'_>) -> Choice {
        let destroyed = table.unreadable || {
            let (used, bad) = self.score(table.bytes, table.index);
            bad >= GARBAGE && bad.saturating_mul(2) > used && !self.regular(table.bytes)
        };
        if !destroyed {
            return Choice::Both;
        }
        match table.copy {
            Some((_, copy)) => {
                let (used, bad) = self.score(copy, table.index);
                if bad.saturating_mul(4) <= used && (used > 0 || table.unreadable) {
                    Choice::Copy
                } else {
                    Choice::Neither
                }
            }
            None => Choice::Neither,
        }
    }

    /// Where the grain of an entry is.
    fn effective(&self, table: &Table<'_>, choice: Choice, index: usize) -> Pointer {
        let copy = || table.copy.map_or(Pointer::None, |(_, copy)| self.geo.entry(copy, index));
        match choice {
            Choice::Neither => Pointer::None,
            Choice::Copy => copy(),
            Choice::Both => {
                let first = self.geo.entry(table.bytes, index);
                let guest = self.geo.guest(table.index, index as u64);
                // Almost always true, and cheap to see: the copy is asked only where it matters.
                if table.copy.is_none() || first != Pointer::None && self.sound(first, guest) {
                    return first;
                }
                let second = copy();
                if self.sound(second, guest) { second } else { first }
            }
        }
    }

    /// Calls `each` with guest offset and place of every grain that begins inside the file, flawed or not: who points
    /// at a place refers to it.
    pub(super) fn grains(
        &self,
        table: &Table<'_>,
        mut each: impl FnMut(u64, u64) -> Result<(), Halt>,
    ) -> Result<(), Halt> {
        if table.again || table.hole {
            return Ok(());
        }
        let choice = self.choose(table);
        for index in 0..self.entries(table.index) {
            if let Pointer::At(start) = self.effective(table, choice, index)
                && start < self.file
            {
                each(self.geo.guest(table.index, index as u64), start)?;
            }
        }
        Ok(())
    }
}

/// Kinds of errors that are folded.
const KINDS: usize = 9;

const PAST_END: usize = 0;
const CUT: usize = 1;
const IN_METADATA: usize = 2;
const BEFORE: usize = 3;
const BAD: usize = 4;
const STRAY: usize = 5;
const LACKS: usize = 6;
const STALE: usize = 7;
const DIFFER: usize = 8;

/// What is said of a run of equal errors: `n entries … point …`.
fn kind(which: usize) -> (&'static Code, &'static str) {
    match which {
        PAST_END => (codes::GTE_PAST_END, "past the end of the file"),
        CUT => (codes::GTE_CUT, "at grains that the end of the file cuts off"),
        IN_METADATA => (codes::GTE_METADATA, "at metadata"),
        BEFORE => (codes::GTE_BEFORE, "in front of where the header says grains begin"),
        BAD => (codes::GTE_TYPE, "nowhere: their type does not exist"),
        STRAY => (codes::GTE_STRAY, "somewhere, though they are about places behind the end of the disk"),
        LACKS => (codes::COPY_HAS_IT, "nowhere; the redundant tables map these grains"),
        STALE => (codes::COPY_STALE, "at sound grains; the redundant tables do not"),
        _ => (codes::COPY_DIFFERS, "elsewhere than the redundant tables do, and both places are possible"),
    }
}

/// A run of equal errors: entries of tables that follow each other.
#[derive(Clone, Debug)]
struct Run {
    /// First and last table.
    tables: Range<u64>,
    /// Places of the entries, hull.
    host: Range<u64>,
    guest: Range<u64>,
    count: u64,
    sample: u64,
    other: u64,
}

/// What the first pass found, beyond findings.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub(super) allocated: u64,
    pub(super) fragmented: u64,
    /// Grains that are where the first one's place, modulo the grain size, does not lead.
    pub(super) outliers: u64,
    /// The first grain's place modulo the grain size.
    pub(super) phase: Option<u64>,
    /// End of the last grain inside the file.
    pub(super) end: u64,
    /// End of the last grain that is not there, wholly or in part.
    pub(super) beyond: u64,
    /// Tables nothing is known of: nobody may be called leaked.
    pub(super) unknown: u64,
    /// Something differs between the copies, or could not be read: later passes need both.
    pub(super) mixed: bool,
}

pub(super) struct Survey<'j, 'b> {
    judge: Judge<'j, 'b>,
    /// Added to guest offsets for the map: where this extent begins on the disk.
    base: u64,
    pub(super) sums: Sums,
    runs: [Option<Run>; KINDS],
    flaws: Vec<(Flaw, bool, Range<u64>, u64)>,
    guest: Option<(Range<u64>, GuestState)>,
    /// The table before this one: its place, and which entry named it first.
    table: (u64, u64),
    /// Entries that name that table too: the first and last of them, and how many.
    again: Option<(u64, u64, u64)>,
    previous: u64,
    wants: Wants,
}

impl<'j, 'b> Survey<'j, 'b> {
    pub(super) fn new(judge: Judge<'j, 'b>, base: u64, wants: Wants) -> Self {
        Self {
            judge,
            base,
            sums: Sums::default(),
            runs: [const { None }; KINDS],
            flaws: Vec::new(),
            guest: None,
            table: (0, 0),
            again: None,
            previous: 0,
            wants,
        }
    }

    /// Tells what is still being folded.
    pub(super) fn finish(&mut self, cx: &mut Context<'_>) -> Sums {
        for which in 0..KINDS {
            self.tell(cx, which);
        }
        self.tell_flaws(cx);
        self.tell_again(cx);
        if let Some((range, state)) = self.guest.take() {
            cx.add_guest(range, state);
        }
        self.sums
    }

    fn state(&mut self, cx: &mut Context<'_>, guest: Range<u64>, state: GuestState) {
        let guest = guest.start.saturating_add(self.base)..guest.end.saturating_add(self.base);
        match &mut self.guest {
            Some((run, of)) if *of == state && run.end == guest.start => run.end = guest.end,
            _ => {
                if let Some((run, of)) = self.guest.replace((guest, state)) {
                    cx.add_guest(run, of);
                }
            }
        }
    }

    /// One more error of a kind.
    fn error(&mut self, cx: &mut Context<'_>, which: usize, table: &Table<'_>, index: usize, values: (u64, u64)) {
        let geo = self.judge.geo;
        let guest = geo.guest(table.index, index as u64);
        let guest = guest..guest.saturating_add(geo.used(guest).max(u64::from(which == STRAY)));
        let at = table.at.saturating_add((index as u64).saturating_mul(geo.entry_len()));
        let host = at..at.saturating_add(geo.entry_len());
        if matches!(which, PAST_END | CUT | IN_METADATA | BAD | DIFFER) {
            let lost = match (which, values.0) {
                (CUT, start) => guest.start.saturating_add(self.judge.file.saturating_sub(start))..guest.end,
                _ => guest.clone(),
            };
            cx.lose(lost);
        }
        let slot = self.runs.get_mut(which);
        if let Some(Some(run)) = slot
            && (run.tables.end == table.index || run.tables.end == table.index.saturating_add(1))
        {
            run.tables.end = table.index.saturating_add(1);
            run.host = run.host.start.min(host.start)..run.host.end.max(host.end);
            run.guest.end = run.guest.end.max(guest.end);
            run.count = run.count.saturating_add(1);
            return;
        }
        self.tell(cx, which);
        if let Some(slot) = self.runs.get_mut(which) {
            let tables = table.index..table.index.saturating_add(1);
            *slot = Some(Run { tables, host, guest, count: 1, sample: values.0, other: values.1 });
        }
    }

    fn tell(&mut self, cx: &mut Context<'_>, which: usize) {
        let Some(run) = self.runs.get_mut(which).and_then(Option::take) else { return };
        let (code, text) = kind(which);
        let entries = match run.count {
            1 => "an entry".to_owned(),
            count => format!("{count} entries"),
        };
        let tables = match run.tables.end.saturating_sub(run.tables.start) {
            1 => format!("grain table {}", run.tables.start),
            _ => format!("grain tables {}..{}", run.tables.start, run.tables.end),
        };
        let verb = if run.count == 1 { "points" } else { "point" };
        let mut words = format!("{entries} of {tables} at {:#x}..{:#x} {verb} {text}", run.host.start, run.host.end);
        match which {
            PAST_END => words.push_str(&format!(" ({:#x}), the first at {:#x}", self.judge.file, run.sample)),
            CUT => words.push_str(&format!(" ({:#x}), the first at {:#x}", self.judge.file, run.sample)),
            IN_METADATA | BEFORE | STRAY => words.push_str(&format!(", the first at {:#x}", run.sample)),
            BAD => words.push_str(&format!(", the first is {:#x}", run.sample)),
            LACKS | DIFFER | STALE => {
                words.push_str(&format!(" (first entry: {:#x}, in the copy {:#x})", run.sample, run.other));
            }
            _ => {}
        }
        if which == IN_METADATA && run.sample == 512 {
            words.push_str("; entry 1 means zeroes only with flag bit 2");
        }
        let mut finding = Finding::new(code, words).host(run.host.clone()).guest(run.guest.clone()).count(run.count);
        if which == IN_METADATA {
            let target = run.sample..run.sample.saturating_add(self.judge.geo.grain);
            for owner in self.judge.meta.owners(self.judge.geo, &target) {
                finding = finding.owner(owner);
            }
        }
        cx.find(finding);
    }

    /// Directory entries with the same flaw, told together.
    fn tell_flaws(&mut self, cx: &mut Context<'_>) {
        for (flaw, replaced, tables, raw) in std::mem::take(&mut self.flaws) {
            let geo = self.judge.geo;
            let guest = geo.windows(tables.clone());
            let count = tables.end.saturating_sub(tables.start);
            let entry = |directory: u64| {
                let at = |index: u64| directory.saturating_add(index.saturating_mul(geo.entry_len()));
                at(tables.start)..at(tables.end)
            };
            let entries = if count == 1 { "entry" } else { "entries" };
            let which = if count == 1 { tables.start.to_string() } else { format!("{}..{}", tables.start, tables.end) };
            let host = entry(if flaw == Flaw::Copy { geo.rgd.unwrap_or(geo.gd) } else { geo.gd });
            let what = match flaw {
                Flaw::Outside => format!("leading nowhere inside the file (the first is {raw:#x})"),
                Flaw::Cut => format!("leading to tables that the end of the file cuts off (the first is {raw:#x})"),
                Flaw::Lacks => "being 0, though the redundant directory has tables there".to_owned(),
                Flaw::Copy => "leading to no table inside the file, unlike the directory's".to_owned(),
            };
            let of = if flaw == Flaw::Copy { "redundant grain directory" } else { "grain directory" };
            let instead = if replaced { "; the redundant directory's tables are used instead" } else { "" };
            let code = if flaw == Flaw::Copy { codes::RGD } else { codes::GDE };
            let words = format!("{entries} {which} of the {of} at {:#x}: {what}{instead}", host.start);
            let mut finding = Finding::new(code, words).host(host).count(count);
            if flaw != Flaw::Copy {
                finding = finding.guest(guest.clone());
                if !replaced && flaw == Flaw::Outside {
                    cx.lose(guest);
                }
            }
            cx.find(finding);
        }
    }

    /// Several entries of the directory name one table: at most one of their windows is what it maps.
    fn tell_again(&mut self, cx: &mut Context<'_>) {
        let Some((from, to, count)) = self.again.take() else { return };
        let geo = self.judge.geo;
        let (at, first) = self.table;
        let host = at..at.saturating_add(geo.table_len());
        let guest = geo.windows(first..first.saturating_add(1));
        let others = geo.windows(from..to.saturating_add(1));
        cx.lose(guest.clone());
        let more = if count == 1 { format!("entry {from}") } else { format!("{count} more ({from}..={to})") };
        let words = format!("entry {first} of the grain directory and {more} name the same grain table at {at:#x}");
        let owner = |label: String, guest: &Range<u64>| Owner {
            class: Class::L2,
            host: host.clone(),
            guest: Some(guest.clone()),
            label,
        };
        let finding = Finding::new(codes::OVERLAP, words).host(host.clone()).guest(guest.clone()).guest(others.clone());
        let finding = finding.owner(owner(format!("grain table {first}"), &guest));
        cx.find(finding.owner(owner(format!("grain table {from}"), &others)).count(count));
    }

    /// A table that holds something else.
    fn destroyed(&mut self, cx: &mut Context<'_>, table: &Table<'_>, choice: Choice) {
        let geo = self.judge.geo;
        let host = table.at..table.at.saturating_add(geo.table_len());
        let guest = geo.windows(table.index..table.index.saturating_add(1));
        let why = if table.unreadable {
            "can not be read".to_owned()
        } else {
            let (used, bad) = self.judge.score(table.bytes, table.index);
            format!("holds {}: {bad} of {used} entries lead nowhere", describe(table.bytes))
        };
        let rest = match (choice, table.copy) {
            (Choice::Copy, Some((at, copy))) => {
                let (used, _) = self.judge.score(copy, table.index);
                format!("; its redundant copy at {at:#x} is sound and maps {used} grains")
            }
            (_, Some((at, _))) => format!("; its redundant copy at {at:#x} is no better"),
            _ => "; there is no redundant copy of it".to_owned(),
        };
        let words = format!("grain table {} at {:#x} {why}{rest}", table.index, table.at);
        cx.find(
            Finding::new(codes::GT_DESTROYED, words).confidence(Confidence::Likely).host(host).guest(guest.clone()),
        );
        self.sums.mixed = true;
        if choice == Choice::Neither {
            self.sums.unknown = self.sums.unknown.saturating_add(1);
            cx.lose(guest.clone());
            self.state(cx, guest, GuestState::Damaged);
        }
    }

    /// Both copies of an entry, where they differ.
    fn compare(&mut self, cx: &mut Context<'_>, table: &Table<'_>, copy: &[u8], index: usize) {
        let geo = self.judge.geo;
        let (first, second) = (geo.raw(table.bytes, index), geo.raw(copy, index));
        if first == second {
            return;
        }
        self.sums.mixed = true;
        let guest = geo.guest(table.index, index as u64);
        let (one, other) = (geo.entry(table.bytes, index), geo.entry(copy, index));
        let (good, good_copy) = (self.judge.sound(one, guest), self.judge.sound(other, guest));
        let which = match (one, good, good_copy) {
            (Pointer::None, _, true) => LACKS,
            (Pointer::None, ..) | (_, true, false) => STALE,
            (_, true, true) => DIFFER,
            // The entry's own flaw is told with it; here only that the copy is better.
            (_, false, true) => LACKS,
            (_, false, false) => return,
        };
        self.error(cx, which, table, index, (first, second));
    }

    fn entry_event(&self, cx: &Context<'_>, table: &Table<'_>, index: usize, pointer: Pointer, flawed: bool) {
        let value = match pointer {
            Pointer::At(start) => start,
            _ => 0,
        };
        cx.watch.event(&Event::Entry {
            class: Class::L2,
            table: table.at,
            index: index as u64,
            cluster: self.judge.geo.guest(table.index, index as u64).checked_div(self.judge.geo.grain).unwrap_or(0),
            raw: self.judge.geo.raw(table.bytes, index),
            value,
            flags: if pointer == Pointer::Zero { "+ZERO" } else { "-ZERO" },
            flawed,
        });
    }

    fn entry(&mut self, cx: &mut Context<'_>, table: &Table<'_>, choice: Choice, index: usize, gap: &mut Range<u64>) {
        let judge = self.judge;
        let geo = judge.geo;
        let at = geo.guest(table.index, index as u64);
        let guest = at..at.saturating_add(geo.used(at));
        let pointer = judge.effective(table, choice, index);
        let mut flawed = false;
        let state = match pointer {
            Pointer::None => GuestState::Unallocated,
            Pointer::Zero => GuestState::Zero,
            Pointer::Bad => {
                self.error(cx, BAD, table, index, (geo.raw(table.bytes, index), 0));
                GuestState::Damaged
            }
            Pointer::At(start) => {
                let end = start.saturating_add(geo.grain);
                let place = judge.place_near(start, at, gap);
                let which = match place {
                    Place::Fine => None,
                    Place::Before => Some(BEFORE),
                    Place::PastEnd => Some(PAST_END),
                    Place::Cut => Some(CUT),
                    Place::Metadata => Some(IN_METADATA),
                };
                if let Some(which) = which {
                    self.error(cx, which, table, index, (start, 0));
                    flawed = true;
                }
                if place != Place::PastEnd {
                    self.grain(start, end);
                }
                if matches!(place, Place::PastEnd | Place::Cut) {
                    self.sums.beyond = self.sums.beyond.max(end);
                }
                match place {
                    Place::Fine | Place::Before if geo.compressed => GuestState::Compressed,
                    Place::Fine | Place::Before => GuestState::Data,
                    _ => GuestState::Damaged,
                }
            }
        };
        if self.wants.contains(Wants::L2) && pointer != Pointer::None || flawed && self.wants.contains(Wants::PROBLEMS)
        {
            self.entry_event(cx, table, index, pointer, flawed || state == GuestState::Damaged);
        }
        self.state(cx, guest, state);
    }

    /// Counts a grain that is in the file.
    fn grain(&mut self, start: u64, end: u64) {
        self.sums.allocated = self.sums.allocated.saturating_add(1);
        if self.previous != 0 && self.previous != start {
            self.sums.fragmented = self.sums.fragmented.saturating_add(1);
        }
        self.previous = end;
        self.sums.end = self.sums.end.max(end.min(self.judge.file));
        let phase = start.checked_rem(self.judge.geo.grain).unwrap_or(0);
        if *self.sums.phase.get_or_insert(phase) != phase {
            self.sums.outliers = self.sums.outliers.saturating_add(1);
        }
    }
}

impl Visit for Survey<'_, '_> {
    fn absent(&mut self, cx: &mut Context<'_>, tables: Range<u64>) {
        let guest = self.judge.geo.windows(tables);
        self.state(cx, guest, GuestState::Unallocated);
    }

    fn unreadable(&mut self, cx: &mut Context<'_>, tables: Range<u64>) {
        let geo = self.judge.geo;
        let entry = geo.entry_len();
        let per_sector = geo.entries_in(512).max(1);
        let mut index = tables.start;
        while index < tables.end {
            let end = index.saturating_add(per_sector).min(tables.end);
            let at = geo.gd.saturating_add(index.saturating_mul(entry));
            if geo.rgd.is_none() && cx.image.read_at(at, &mut [0u8; 512]).is_err() {
                cx.lose(geo.windows(index..end));
                self.sums.unknown = self.sums.unknown.saturating_add(1);
            }
            index = end;
        }
    }

    fn flawed(&mut self, cx: &mut Context<'_>, index: u64, raw: u64, flaw: Flaw, copy: Option<u64>) {
        let replaced = copy.is_some() && flaw != Flaw::Cut;
        let geo = self.judge.geo;
        if matches!(flaw, Flaw::Outside) && !replaced {
            let guest = geo.windows(index..index.saturating_add(1));
            self.state(cx, guest, GuestState::Damaged);
            self.sums.unknown = self.sums.unknown.saturating_add(1);
        }
        if flaw == Flaw::Cut {
            let at = geo.directory_entry(&raw.to_le_bytes(), 0);
            if let Pointer::At(at) = at {
                let there = self.judge.file.saturating_sub(at).checked_div(geo.entry_len()).unwrap_or(0);
                if copy.is_none() {
                    let end = geo.windows(index..index.saturating_add(1)).end;
                    cx.lose(geo.guest(index, there)..end);
                }
            }
        }
        self.sums.mixed = true;
        let run =
            self.flaws.last_mut().filter(|(of, with, run, _)| *of == flaw && *with == replaced && run.end == index);
        match run {
            Some((_, _, run, _)) => run.end = index.saturating_add(1),
            None => {
                // A few are kept so that runs of two kinds that alternate still fold; the rest is told as it comes.
                if self.flaws.len() >= 64 {
                    self.tell_flaws(cx);
                }
                self.flaws.push((flaw, replaced, index..index.saturating_add(1), raw));
            }
        }
    }

    fn table(&mut self, cx: &mut Context<'_>, table: &Table<'_>) -> Result<(), Halt> {
        let geo = self.judge.geo;
        if self.wants.contains(Wants::L1) {
            cx.watch.event(&Event::Entry {
                class: Class::L1,
                table: geo.gd,
                index: table.index,
                cluster: geo.guest(table.index, 0).checked_div(geo.grain).unwrap_or(0),
                raw: table.at / 512,
                value: table.at,
                flags: "",
                flawed: table.again || table.unreadable,
            });
        }
        if table.again {
            let guest = geo.windows(table.index..table.index.saturating_add(1));
            cx.lose(guest.clone());
            self.state(cx, guest, GuestState::Damaged);
            match &mut self.again {
                Some((_, last, count)) => (*last, *count) = (table.index, count.saturating_add(1)),
                None => self.again = Some((table.index, table.index, 1)),
            }
            return Ok(());
        }
        self.tell_again(cx);
        self.table = (table.at, table.index);
        if table.hole {
            let guest = geo.windows(table.index..table.index.saturating_add(1));
            self.state(cx, guest, GuestState::Unallocated);
            return Ok(());
        }
        let choice = self.judge.choose(table);
        if choice != Choice::Both {
            self.destroyed(cx, table, choice);
            if choice == Choice::Neither {
                return Ok(());
            }
        }
        let entries = self.judge.entries(table.index);
        let mut gap = 0..0;
        let differs = table.copy.filter(|(_, copy)| choice == Choice::Both && *copy != table.bytes);
        for index in 0..entries {
            if let Some((_, copy)) = differs {
                self.compare(cx, table, copy, index);
            }
            self.entry(cx, table, choice, index, &mut gap);
        }
        for index in entries..usize::try_from(geo.gtes).unwrap_or(0) {
            if let Pointer::At(start) = geo.entry(table.bytes, index) {
                self.error(cx, STRAY, table, index, (start, 0));
            }
        }
        Ok(())
    }
}

/// What lies where a table should be, in a word or two.
fn describe(bytes: &[u8]) -> &'static str {
    let text = bytes.iter().filter(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\r' | b'\t')).count();
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    if is_zero(bytes) {
        "zeroes"
    } else if text.saturating_mul(10) >= bytes.len().saturating_mul(9) {
        "text"
    } else if starts(b"KDMV") || starts(b"COWD") {
        "another image's header"
    } else if bytes.get(510..512) == Some(&[0x55, 0xaa]) {
        "a boot sector"
    } else if bytes.chunks_exact(4).all(|word| bytes.get(..4) == Some(word)) {
        "one repeated value"
    } else {
        "no grain table"
    }
}
