//! L1 and L2 tables, and who refers to which cluster.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::bytes::le_u64;
use crate::context::Context;
use crate::extents::{Tables, claimed_twice};
use crate::finding::{Confidence, Finding};
use crate::fold::{Fold, Stretch};
use crate::holes;
use crate::map::{Claim, Class, GuestState, Owner};
use crate::qed::codes;
use crate::qed::header::{F_NEED_CHECK, Header};

/// Bytes of a table in memory at a time.
const CHUNK: u64 = 1 << 20;
/// What an entry of the set of tables seen is taken to cost.
const SEEN_BYTES: u64 = 64;
/// Places where an orphan table is looked for, in all.
const PROBES_MAX: u64 = 1 << 16;
const ZERO: u64 = 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flaw {
    Unaligned,
    PastEnd,
    Stray,
}

/// What a table says, in its order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Item {
    Entry(u64),
    /// The medium gave nothing, or the file ends before it.
    Lost,
    /// This entry and all up to that one lie in a hole of the file: not allocated.
    ZeroesTo(u64),
}

/// Flaws of one table: which one, and where it is.
type Flaws = Fold<Option<(Flaw, u64)>>;

pub(super) struct Walker {
    header: Header,
    l1_flaws: Flaws,
    l2_flaws: Flaws,
    state: Option<(Range<u64>, GuestState)>,
    /// Offsets of the L2 tables followed in this walk: each is read once, however many entries name it.
    seen: BTreeSet<u64>,
    seen_full: bool,
    claims: Vec<Claim>,
    claims_full: bool,
    allocated: u64,
    fragmented: u64,
    last: Option<u64>,
    /// Whether entries are lost: clusters that nothing refers to may be theirs then.
    broken: bool,
    probes: u64,
    /// Whether a table shares its place: all of its window is lost then, also what it does not map.
    table_shared: bool,
    /// Whether everything has been said, and only the disk's map is made anew, with what is lost known.
    again: bool,
}

impl Walker {
    pub(super) fn new(header: Header) -> Self {
        Self {
            header,
            l1_flaws: Fold::new(),
            l2_flaws: Fold::new(),
            state: None,
            seen: BTreeSet::new(),
            seen_full: false,
            claims: Vec::new(),
            claims_full: false,
            allocated: 0,
            fragmented: 0,
            last: None,
            broken: false,
            probes: 0,
            table_shared: false,
            again: false,
        }
    }

    /// The map of the disk, figures, and the list of metadata, after everything was walked.
    pub(super) fn conclude(mut self, cx: &mut Context<'_>) {
        if self.table_shared {
            cx.map_guest(self.header.size, self.header.cluster);
            self.again = true;
            self.walk(cx, true, &mut |_| true);
        } else {
            cx.damage_guest();
        }
        let total = self.header.size.div_ceil(self.header.cluster.max(1));
        let some = |number: u64| (number > 0).then_some(number);
        cx.numbers.total_clusters = some(total);
        cx.numbers.allocated_clusters = some(self.allocated);
        cx.numbers.fragmented_clusters = some(self.fragmented);
        self.claims.sort_unstable();
        cx.budget.give((self.claims.capacity() as u64).saturating_mul(size_of::<Claim>() as u64));
        if let Some(map) = &mut cx.host {
            map.claims = self.claims;
        }
        if self.seen_full {
            cx.could_not("some L2 tables: there are more of them than memory holds");
        }
    }

    /// The part of the disk that lies in `range`.
    fn within(&self, range: Range<u64>) -> Range<u64> {
        range.start.min(self.header.size)..range.end.min(self.header.size)
    }

    /// Adds to the map of the disk, in order; neighbours in one state go together.
    fn add_state(&mut self, cx: &mut Context<'_>, range: Range<u64>, state: GuestState) {
        if range.is_empty() {
            return;
        }
        match &mut self.state {
            Some((open, of)) if *of == state && open.end == range.start => open.end = range.end,
            open => {
                if let Some((range, state)) = open.replace((range, state)) {
                    self.map_state(cx, range, state);
                }
            }
        }
    }

    fn map_state(&self, cx: &mut Context<'_>, range: Range<u64>, state: GuestState) {
        if self.again {
            cx.add_guest_unless_lost(range, state);
        } else {
            cx.add_guest(range, state);
        }
    }

    /// A table's entries: calls `each` with every entry that may be anything, once for each hole of the file, and once
    /// more, with [`Item::Lost`], for all that the file does not reach. Stops when it says so.
    fn entries(
        &mut self,
        cx: &mut Context<'_>,
        table: u64,
        what: &str,
        mut each: impl FnMut(&mut Self, &mut Context<'_>, u64, Item) -> bool,
    ) -> bool {
        let there = self.header.table.min(cx.file_len().saturating_sub(table)) / 8;
        let mut start = 0u64;
        while start < there {
            if cx.stopped() {
                return false;
            }
            let stretch = holes::stretch(cx.image, table, 8, start..there, CHUNK / 8);
            let end = stretch.entries.end;
            if stretch.hole {
                if !each(self, cx, start, Item::ZeroesTo(end)) {
                    return false;
                }
                start = end;
                continue;
            }
            let len = usize::try_from(end.saturating_sub(start).saturating_mul(8)).unwrap_or(0);
            let errors = cx.numbers.check_errors;
            let bytes = cx.read(table.saturating_add(start.saturating_mul(8)), len, what);
            let unread = cx.numbers.check_errors != errors;
            for (entry, index) in bytes.chunks_exact(8).zip(start..) {
                let entry = le_u64(entry, 0);
                let item = if unread && entry == 0 { Item::Lost } else { Item::Entry(entry) };
                if !each(self, cx, index, item) {
                    return false;
                }
            }
            start = end;
        }
        // What the file does not reach is as good as not read: said once, for all of it.
        if there < self.header.entries() {
            return each(self, cx, there, Item::Lost);
        }
        true
    }

    /// The rest of a table, from `index` on, can not be read.
    fn rest_lost(&mut self, cx: &mut Context<'_>, guest: Range<u64>) {
        self.broken = true;
        let guest = self.within(guest);
        cx.lose(guest.clone());
        self.add_state(cx, guest, GuestState::Data);
    }

    fn l1(&mut self, cx: &mut Context<'_>, at: u64, report: bool, add: &mut dyn FnMut(Claim) -> bool) {
        let header = self.header;
        let file_len = cx.file_len();
        let there = header.table.min(file_len.saturating_sub(at)) / 8;
        self.entries(cx, at, "the L1 table", |this, cx, index, item| {
            let start = index.saturating_mul(header.window());
            let whole = start..start.saturating_add(header.window());
            let window = this.within(whole.clone());
            let entry = match item {
                Item::Entry(entry) => entry,
                Item::Lost => {
                    if report {
                        let end = if index < there { whole.end } else { header.size };
                        this.rest_lost(cx, start..end);
                    }
                    return true;
                }
                Item::ZeroesTo(end) => {
                    if report {
                        let range = this.within(start..end.saturating_mul(header.window()));
                        this.add_state(cx, range, GuestState::Unallocated);
                    }
                    return true;
                }
            };
            if report && !this.again {
                let flaw = if entry == 0 {
                    None
                } else if entry.checked_rem(header.cluster) != Some(0) {
                    Some(Flaw::Unaligned)
                } else if entry.saturating_add(header.table) > file_len {
                    Some(Flaw::PastEnd)
                } else {
                    None
                };
                let run = this.l1_flaws.push(flaw.map(|flaw| (flaw, at)), index, entry, window.clone());
                this.tell_l1(cx, run);
                cx.progress("L1 and L2 tables", index.saturating_mul(8), header.table);
            }
            if entry == 0 {
                if report {
                    this.add_state(cx, window, GuestState::Unallocated);
                }
                return true;
            }
            // A flawed pointer is still a reference, to whatever of the file it reaches.
            let len = header.table.min(file_len.saturating_sub(entry));
            let claim = Claim { start: entry, len, class: Class::L2, index };
            if len > 0 {
                if report {
                    this.keep(cx, claim);
                }
                if !add(claim) {
                    return false;
                }
            }
            if len > 0 && this.may_follow(cx, entry) {
                return this.l2(cx, entry, whole, report, add);
            }
            if report {
                // Nothing of it can be found; a table named twice is lost for both, which its overlap will say.
                this.rest_lost(cx, whole);
            }
            true
        });
        if report {
            let run = self.l1_flaws.finish();
            self.tell_l1(cx, run);
            if let Some((range, state)) = self.state.take() {
                self.map_state(cx, range, state);
            }
            // What no table can map has been called lost with the header.
            let reach = header.entries().saturating_mul(header.window());
            self.map_state(cx, reach..header.size, GuestState::Data);
        }
    }

    /// Whether an L2 table can be read from there: each one once, and none that is the header's or the L1 table's.
    fn may_follow(&mut self, cx: &Context<'_>, table: u64) -> bool {
        let header = self.header;
        let end = table.saturating_add(header.table);
        let on_l1 = header.l1.is_some_and(|l1| table < l1.saturating_add(header.table) && l1 < end);
        if table.checked_rem(header.cluster) != Some(0) || table < header.header || on_l1 || self.seen.contains(&table)
        {
            return false;
        }
        if cx.budget.take(SEEN_BYTES).is_err() {
            self.seen_full = true;
            return false;
        }
        self.seen.insert(table)
    }

    fn l2(
        &mut self,
        cx: &mut Context<'_>,
        table: u64,
        window: Range<u64>,
        report: bool,
        add: &mut dyn FnMut(Claim) -> bool,
    ) -> bool {
        let header = self.header;
        let file_len = cx.file_len();
        let there = header.table.min(file_len.saturating_sub(table)) / 8;
        // As QEMU counts: what begins a table is not called fragmented.
        self.last = None;
        let goes_on = self.entries(cx, table, "an L2 table", |this, cx, index, item| {
            let at = |index: u64| window.start.saturating_add(index.saturating_mul(header.cluster));
            let start = at(index);
            let guest = this.within(start..start.saturating_add(header.cluster));
            let entry = match item {
                Item::Entry(entry) => entry,
                Item::Lost => {
                    if report {
                        let end = if index < there { guest.end } else { window.end };
                        this.rest_lost(cx, start..end);
                    }
                    return true;
                }
                Item::ZeroesTo(end) => {
                    if report {
                        let range = this.within(start..at(end));
                        this.add_state(cx, range, GuestState::Unallocated);
                    }
                    return true;
                }
            };
            if report {
                this.l2_entry(cx, table, index, entry, &guest);
            }
            let len = header.cluster.min(file_len.saturating_sub(entry));
            entry <= ZERO || len == 0 || add(Claim { start: entry, len, class: Class::Data, index: start })
        });
        if report {
            let run = self.l2_flaws.finish();
            self.tell_l2(cx, run);
        }
        goes_on
    }

    fn l2_entry(&mut self, cx: &mut Context<'_>, table: u64, index: u64, entry: u64, guest: &Range<u64>) {
        let header = self.header;
        let state = match entry {
            0 => GuestState::Unallocated,
            ZERO => GuestState::Zero,
            _ => GuestState::Data,
        };
        self.add_state(cx, guest.clone(), state);
        if self.again {
            return;
        }
        let flaw = if entry <= ZERO {
            None
        } else if entry.checked_rem(header.cluster) != Some(0) {
            cx.lose(guest.clone());
            self.broken = true;
            Some(Flaw::Unaligned)
        } else {
            let there = cx.file_len().saturating_sub(entry);
            if there < header.cluster {
                cx.lose(guest.start.saturating_add(there).min(guest.end)..guest.end);
                Some(Flaw::PastEnd)
            } else {
                self.allocated = self.allocated.saturating_add(1);
                if self.last.is_some_and(|last| last.checked_add(header.cluster) != Some(entry)) {
                    self.fragmented = self.fragmented.saturating_add(1);
                }
                self.last = Some(entry);
                guest.is_empty().then_some(Flaw::Stray)
            }
        };
        let run = self.l2_flaws.push(flaw.map(|flaw| (flaw, table)), index, entry, guest.clone());
        self.tell_l2(cx, run);
    }

    fn tell_l1(&mut self, cx: &mut Context<'_>, run: Option<Stretch<Option<(Flaw, u64)>>>) {
        let Some(run) = run else { return };
        let Some((flaw, at)) = run.kind else { return };
        self.broken = true;
        let (code, what) = match flaw {
            Flaw::PastEnd => {
                let words = format!(
                    "L1 {}: L2 tables there reach past the end of the file ({:#x})",
                    run.words(),
                    cx.file_len()
                );
                (codes::L1_PAST_END, words)
            }
            _ => (codes::L1_UNALIGNED, format!("L1 {}: no multiple of the cluster size", run.words())),
        };
        cx.find(place(Finding::new(code, what), at, &run));
    }

    fn tell_l2(&mut self, cx: &mut Context<'_>, run: Option<Stretch<Option<(Flaw, u64)>>>) {
        let Some(run) = run else { return };
        let Some((flaw, table)) = run.kind else { return };
        let of = format!("L2 {} of the table at {table:#x}", run.words());
        let (code, what) = match flaw {
            Flaw::Unaligned => (codes::L2_UNALIGNED, format!("{of}: no multiple of the cluster size")),
            Flaw::PastEnd => (
                codes::L2_PAST_END,
                format!("{of}: clusters there reach past the end of the file ({:#x})", cx.file_len()),
            ),
            Flaw::Stray => (codes::STRAY, format!("{of}: the disk ends at {:#x}", self.header.size)),
        };
        cx.find(place(Finding::new(code, what), table, &run));
    }

    /// Keeps a stretch of metadata for the map, as long as there is memory.
    fn keep(&mut self, cx: &Context<'_>, claim: Claim) {
        if self.claims_full || self.again {
            return;
        }
        if self.claims.len() == self.claims.capacity() {
            let more = self.claims.len().clamp(16, 4096);
            // A quarter of what is left at most: the walk needs it more than the picture.
            let bytes = (more as u64).saturating_mul(size_of::<Claim>() as u64);
            if bytes > cx.budget.left() / 4 || cx.budget.take(bytes).is_err() {
                self.claims_full = true;
                return;
            }
            self.claims.reserve_exact(more);
        }
        self.claims.push(claim);
    }

    fn owner(&self, claim: &Claim, shared: &Range<u64>) -> Owner {
        let header = &self.header;
        let from = shared.start.saturating_sub(claim.start);
        let to = shared.end.saturating_sub(claim.start);
        let (label, guest) = match claim.class {
            Class::Header => ("the header".to_owned(), None),
            Class::L1 => ("the L1 table".to_owned(), Some(self.within(0..u64::MAX))),
            Class::L2 => {
                let start = claim.index.saturating_mul(header.window());
                let at = |bytes: u64| start.saturating_add(bytes.div_ceil(8).saturating_mul(header.cluster));
                (format!("the L2 table of l1[{}]", claim.index), Some(self.within(at(from)..at(to))))
            }
            _ => {
                let guest = self.within(claim.index.saturating_add(from)..claim.index.saturating_add(to));
                (format!("guest data of {:#x}..{:#x}", guest.start, guest.end), Some(guest))
            }
        };
        Owner { class: claim.class, host: shared.clone(), guest, label }
    }

    /// Tables among clusters nobody refers to: aligned offsets into the file, and nothing that can not be an entry.
    fn orphan_tables(&mut self, cx: &mut Context<'_>, clusters: Range<u64>) {
        let header = self.header;
        let mut at = clusters.start;
        let mut data = 0..0;
        while at.saturating_add(header.table) <= clusters.end && self.probes < PROBES_MAX && !cx.stopped() {
            // A hole holds no table, however long it is.
            if !data.contains(&at) {
                data = match cx.image.next_data(at) {
                    Some(next) => next,
                    None => break,
                };
                let skipped = data.start.saturating_sub(at);
                at = at.saturating_add(skipped.saturating_sub(skipped.checked_rem(header.cluster).unwrap_or(0)));
                if skipped >= header.cluster {
                    continue;
                }
            }
            self.probes = self.probes.saturating_add(1);
            let mut named = 0u64;
            let mut start = 0u64;
            let mut sound = true;
            while start < header.entries() && sound {
                let stretch = holes::stretch(cx.image, at, 8, start..header.entries(), CHUNK / 8);
                if stretch.hole {
                    start = stretch.entries.end;
                    continue;
                }
                let len = usize::try_from(stretch.entries.end.saturating_sub(start).saturating_mul(8)).unwrap_or(0);
                let bytes = cx.read(at.saturating_add(start.saturating_mul(8)), len, "unreferenced clusters");
                for entry in bytes.chunks_exact(8).map(|entry| le_u64(entry, 0)).filter(|entry| *entry > ZERO) {
                    let whole = entry.saturating_add(header.cluster) <= cx.file_len();
                    sound &= whole && entry >= header.header && entry.checked_rem(header.cluster) == Some(0);
                    named = named.saturating_add(1);
                    if !sound {
                        break;
                    }
                }
                start = stretch.entries.end;
            }
            if !sound || named == 0 {
                at = at.saturating_add(header.cluster);
                continue;
            }
            let range = at..at.saturating_add(header.table);
            let words = format!(
                "{:#x}..{:#x} looks like an L2 table of {named} clusters, and no L1 entry names it",
                range.start, range.end
            );
            let mut finding = Finding::new(codes::ORPHAN_L2, words).host(range.clone()).confidence(Confidence::Likely);
            if header.features & F_NEED_CHECK != 0 {
                // After a crash it may be a table that had never been linked: nothing acknowledged is in it then.
                finding = finding.severity(crate::code::Severity::Warning).confidence(Confidence::Possible);
            }
            cx.find(finding);
            at = range.end;
        }
    }
}

fn place(finding: Finding, table: u64, run: &Stretch<Option<(Flaw, u64)>>) -> Finding {
    let at = |index: u64| table.saturating_add(index.saturating_mul(8));
    let finding = finding.host(at(run.entries.start)..at(run.entries.end)).count(run.count());
    if run.guest.is_empty() { finding } else { finding.guest(run.guest.clone()) }
}

impl Tables for Walker {
    fn walk(&mut self, cx: &mut Context<'_>, report: bool, add: &mut dyn FnMut(Claim) -> bool) {
        let header = self.header;
        let Some(l1) = header.l1 else { return };
        for (start, len, class) in [(0, header.header, Class::Header), (l1, header.table, Class::L1)] {
            let len = len.min(cx.file_len().saturating_sub(start));
            let claim = Claim { start, len, class, index: 0 };
            if report {
                self.keep(cx, claim);
            }
            if !add(claim) {
                return;
            }
        }
        self.l1(cx, l1, report, add);
        cx.budget.give((self.seen.len() as u64).saturating_mul(SEEN_BYTES));
        self.seen.clear();
    }

    fn overlap(&mut self, cx: &mut Context<'_>, first: &Claim, second: &Claim, shared: Range<u64>) {
        let data = first.class == Class::Data && second.class == Class::Data;
        let code = if data { codes::DATA_TWICE } else { codes::TABLE_TWICE };
        let owners = [first, second].map(|claim| self.owner(claim, &shared));
        self.table_shared |= first.class == Class::L2 || second.class == Class::L2;
        // Of a shared L1 table only the entries in question would be lost, and what they say is told on its own.
        claimed_twice(cx, code, owners, shared, self.header.cluster, |owner| owner.class == Class::L1);
    }

    fn vacant(&mut self, cx: &mut Context<'_>, range: Range<u64>) {
        let header = self.header;
        let whole = |at: u64| at.checked_div(header.cluster).unwrap_or(0).saturating_mul(header.cluster);
        let start = range.start.checked_next_multiple_of(header.cluster).unwrap_or(range.end).min(range.end);
        let end = whole(range.end).max(start);
        cx.add_host(range.start..start, Class::Free);
        if start < end {
            let count = end.saturating_sub(start).checked_div(header.cluster).unwrap_or(0);
            let (code, class) =
                if self.broken { (codes::ORPHAN, Class::Unknown) } else { (codes::LEAKED, Class::Leaked) };
            let words = format!("{start:#x}..{end:#x}, {count} clusters, are referred to by nothing");
            cx.find(Finding::new(code, words).host(start..end).count(count));
            cx.add_host(start..end, class);
            if cx.options.orphans {
                self.orphan_tables(cx, start..end);
            }
        }
        cx.add_host(end..range.end, Class::Free);
    }
}
