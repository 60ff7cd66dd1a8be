//! The BAT, entry by entry, and the clusters it names.

use std::ops::Range;

use crate::bytes::le_u32;
use crate::context::Context;
use crate::extents::{Tables, claimed_twice};
use crate::finding::Finding;
use crate::fold::{Fold, Stretch};
use crate::holes;
use crate::map::{Claim, Class, GuestState, Owner};
use crate::parallels::codes;
use crate::parallels::extension::Extension;
use crate::parallels::header::{self, Header};

/// Bytes of the BAT in memory at a time.
const CHUNK: u64 = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flaw {
    Unread,
    PastEnd,
    BeforeData,
    Again,
    Unaligned,
    Stray,
    Short,
}

pub(super) struct Bat {
    header: Header,
    extension: Extension,
    flaws: Fold<Option<Flaw>>,
    states: Fold<GuestState>,
    allocated: u64,
    fragmented: u64,
    last: Option<u64>,
    /// Behind the last cluster anything refers to.
    end: u64,
    /// Clusters nobody refers to, before that.
    free: u64,
    /// Whether entries are lost: clusters that nothing refers to may be theirs then.
    broken: bool,
}

impl Bat {
    pub(super) fn new(header: Header, extension: Extension) -> Self {
        let end = extension.claims.iter().fold(header.data, |end, claim| {
            let cluster_end = claim.start.saturating_add(header.cluster);
            end.max(cluster_end)
        });
        Self {
            broken: extension.unsure,
            header,
            extension,
            flaws: Fold::new(),
            states: Fold::new(),
            allocated: 0,
            fragmented: 0,
            last: None,
            end,
            free: 0,
        }
    }

    /// Header, BAT and extension, cut at the end of the file.
    pub(super) fn fixed_claims(&self, file_len: u64) -> Vec<Claim> {
        let bat = self.header.bat_end().saturating_sub(header::LEN);
        let parts = [(0, header::LEN, Class::Header), (header::LEN, bat, Class::BlockMap)];
        let cut = parts.into_iter().map(|(start, len, class)| {
            let len = len.min(file_len.saturating_sub(start));
            Claim { start, len, class, index: 0 }
        });
        let mut all: Vec<Claim> = cut.filter(|claim| claim.len > 0).collect();
        all.extend_from_slice(&self.extension.claims);
        all.sort_unstable();
        all
    }

    pub(super) fn conclude(&self, cx: &mut Context<'_>) {
        let some = |number: u64| (number > 0).then_some(number);
        cx.numbers.total_clusters = some(self.header.entries);
        cx.numbers.allocated_clusters = some(self.allocated);
        cx.numbers.fragmented_clusters = some(self.fragmented);
        cx.numbers.image_end_offset = some(self.end);
        cx.fact("clusters mapped", self.allocated.to_string());
        cx.fact("clusters free inside the file", self.free.to_string());
        if self.header.empty && self.allocated > 0 {
            let words = format!("flag bit 0 (empty) at 0x34, and {} clusters are mapped", self.allocated);
            cx.find(Finding::new(codes::EMPTY, words).host(0x34..0x38));
        }
    }

    fn guest(&self, index: u64) -> Range<u64> {
        let start = index.saturating_mul(self.header.cluster).min(self.header.size);
        start..start.saturating_add(self.header.cluster).min(self.header.size)
    }

    fn entry(&mut self, cx: &mut Context<'_>, index: u64, entry: u32, again: bool, unread: bool) {
        let guest = self.guest(index);
        let lost = entry == 0 && unread;
        let flaw = if lost {
            cx.lose(guest.clone());
            self.broken = true;
            Some(Flaw::Unread)
        } else if entry == 0 {
            self.last = None;
            None
        } else {
            self.placed(cx, &guest, u64::from(entry), again)
        };
        if let Some(run) = self.flaws.push(flaw, index, entry.into(), guest.clone()) {
            self.tell(cx, &run);
        }
        let state = if entry == 0 && !lost { GuestState::Unallocated } else { GuestState::Data };
        if let Some(run) = self.states.push(state, index, entry.into(), guest) {
            cx.add_guest(run.guest, run.kind);
        }
    }

    /// Entries in a hole of the file: not allocated.
    fn zeroes(&mut self, cx: &mut Context<'_>, entries: Range<u64>) {
        self.last = None;
        let guest = self.guest(entries.start).start..self.guest(entries.end.saturating_sub(1)).end;
        if let Some(run) = self.flaws.push_all(None, entries.clone(), 0, guest.clone()) {
            self.tell(cx, &run);
        }
        if let Some(run) = self.states.push_all(GuestState::Unallocated, entries, 0, guest) {
            cx.add_guest(run.guest, run.kind);
        }
    }

    fn placed(&mut self, cx: &mut Context<'_>, guest: &Range<u64>, entry: u64, again: bool) -> Option<Flaw> {
        let header = self.header;
        let place = entry.saturating_mul(header.unit);
        self.allocated = self.allocated.saturating_add(1);
        if self.last.is_some_and(|last| last.checked_add(header.cluster) != Some(place)) {
            self.fragmented = self.fragmented.saturating_add(1);
        }
        self.last = Some(place);
        let there = cx.file_len().saturating_sub(place);
        let needed = guest.end.saturating_sub(guest.start);
        if there > 0 {
            self.end = self.end.max(place.saturating_add(header.cluster));
        }
        if there < needed || there == 0 {
            cx.lose(guest.start.saturating_add(there).min(guest.end)..guest.end);
            return Some(Flaw::PastEnd);
        }
        if again {
            return Some(Flaw::Again);
        }
        let Some(from_data) = place.checked_sub(header.data) else { return Some(Flaw::BeforeData) };
        if from_data.checked_rem(header.cluster) != Some(0) {
            Some(Flaw::Unaligned)
        } else if needed == 0 {
            Some(Flaw::Stray)
        } else if there < header.cluster {
            Some(Flaw::Short)
        } else {
            None
        }
    }

    fn tell(&mut self, cx: &mut Context<'_>, run: &Stretch<Option<Flaw>>) {
        let Some(flaw) = run.kind else { return };
        let header = self.header;
        let words = run.words();
        let place = |entry: u64| entry.saturating_mul(header.unit);
        let (code, what) = match flaw {
            Flaw::Unread => return,
            Flaw::PastEnd => {
                let file_len = cx.file_len();
                self.broken |= place(run.most) >= file_len;
                let words = format!(
                    "BAT {words}: clusters there, from {:#x} on, reach past the end of the file ({file_len:#x})",
                    place(run.least)
                );
                (codes::PAST_END, words)
            }
            Flaw::BeforeData => {
                let words = format!(
                    "BAT {words}: clusters there, from {:#x} on, lie before the data offset {:#x}",
                    place(run.least),
                    header.data
                );
                (codes::BEFORE_DATA, words)
            }
            Flaw::Again => {
                self.broken = true;
                let before = run.entries.start.saturating_sub(1);
                cx.lose(self.guest(before).start..run.guest.end);
                (codes::TWICE, format!("BAT {words}: each names the same cluster as the entry before it, {before}"))
            }
            Flaw::Unaligned => {
                let words = format!(
                    "BAT {words}: clusters there do not lie on the grid of {:#x} from {:#x} on",
                    header.cluster, header.data
                );
                (codes::UNALIGNED, words)
            }
            Flaw::Stray => (codes::STRAY, format!("BAT {words}: the disk ends at {:#x}", header.size)),
            Flaw::Short => {
                (codes::SHORT, format!("BAT {words}: the file ends inside the cluster, behind the disk's end"))
            }
        };
        let at = |index: u64| header::LEN.saturating_add(index.saturating_mul(4));
        let mut finding = Finding::new(code, what).host(at(run.entries.start)..at(run.entries.end)).count(run.count());
        if !run.guest.is_empty() {
            finding = finding.guest(run.guest.clone());
        }
        cx.find(finding);
    }

    /// The part of the BAT that the file does not reach.
    fn missing_entries(&mut self, cx: &mut Context<'_>, there: u64) {
        let header = self.header;
        if there >= header.entries {
            return;
        }
        self.broken = true;
        let file_len = cx.file_len();
        let guest = self.guest(there).start..header.size.min(header.entries.saturating_mul(header.cluster));
        let words = format!("BAT entries {there}..{} are past the end of the file ({file_len:#x})", header.entries);
        let mut finding = Finding::new(codes::BAT_CUT, words).count(header.entries.saturating_sub(there));
        finding = finding.host(file_len.min(header.bat_end())..header.bat_end());
        if !guest.is_empty() {
            finding = finding.guest(guest.clone());
            cx.lose(guest.clone());
            cx.add_guest(guest, GuestState::Data);
        }
        cx.find(finding);
    }

    fn owner(&self, claim: &Claim, shared: &Range<u64>) -> Owner {
        let (label, guest) = match claim.class {
            Class::Header => ("the header".to_owned(), None),
            Class::BlockMap => ("the BAT".to_owned(), None),
            Class::Metadata => ("the extension".to_owned(), None),
            Class::BitmapData => (format!("cluster {} of a dirty bitmap", claim.index), None),
            _ => {
                let shift = |at: u64| at.saturating_sub(claim.start).saturating_add(claim.index).min(self.header.size);
                let guest = shift(shared.start)..shift(shared.end);
                (format!("guest data of {:#x}..{:#x}", guest.start, guest.end), Some(guest))
            }
        };
        Owner { class: claim.class, host: shared.clone(), guest, label }
    }
}

impl Tables for Bat {
    fn walk(&mut self, cx: &mut Context<'_>, report: bool, add: &mut dyn FnMut(Claim) -> bool) {
        let header = self.header;
        let file_len = cx.file_len();
        for claim in self.fixed_claims(file_len) {
            if !add(claim) {
                return;
            }
        }
        let there = header.entries.min(file_len.saturating_sub(header::LEN) / 4);
        let mut start = 0;
        let mut before = 0;
        while start < there && !cx.stopped() {
            let stretch = holes::stretch(cx.image, header::LEN, 4, start..there, CHUNK / 4);
            let end = stretch.entries.end;
            if stretch.hole {
                before = 0;
                if report {
                    self.zeroes(cx, stretch.entries);
                }
                start = end;
                continue;
            }
            let at = header::LEN.saturating_add(start.saturating_mul(4));
            let len = usize::try_from(end.saturating_sub(start).saturating_mul(4)).unwrap_or(0);
            let errors = cx.numbers.check_errors;
            let bytes = cx.read(at, len, "the BAT");
            let unread = cx.numbers.check_errors != errors;
            for (entry, index) in bytes.chunks_exact(4).zip(start..) {
                let entry = le_u32(entry, 0);
                // A run of one place is one claim: the entries that follow add nothing but a finding.
                let again = entry != 0 && before == entry;
                before = entry;
                if report {
                    self.entry(cx, index, entry, again, unread);
                }
                let place = u64::from(entry).saturating_mul(header.unit);
                let len = header.cluster.min(file_len.saturating_sub(place));
                let claim =
                    Claim { start: place, len, class: Class::Data, index: index.saturating_mul(header.cluster) };
                if entry != 0 && !again && len > 0 && !add(claim) {
                    return;
                }
            }
            if report {
                cx.progress("BAT", end.saturating_mul(4), header.entries.saturating_mul(4));
            }
            start = end;
        }
        if report {
            if let Some(run) = self.flaws.finish() {
                self.tell(cx, &run);
            }
            if let Some(run) = self.states.finish() {
                cx.add_guest(run.guest, run.kind);
            }
            if !cx.stopped() {
                self.missing_entries(cx, there);
            }
            // What no entry can map has been called lost with the header.
            cx.add_guest(header.entries.saturating_mul(header.cluster)..header.size, GuestState::Data);
        }
    }

    fn overlap(&mut self, cx: &mut Context<'_>, first: &Claim, second: &Claim, shared: Range<u64>) {
        let data = [first, second].iter().filter(|claim| claim.class == Class::Data).count();
        let code = match data {
            2 => codes::TWICE,
            1 => codes::ON_METADATA,
            _ => codes::METADATA_TWICE,
        };
        let owners = [first, second].map(|claim| self.owner(claim, &shared));
        claimed_twice(cx, code, owners, shared, self.header.cluster, |_| false);
    }

    fn vacant(&mut self, cx: &mut Context<'_>, range: Range<u64>) {
        let header = self.header;
        let data = range.start.max(header.data).min(range.end);
        cx.add_host(range.start..data, Class::Reserved);
        let tail = range.end.min(self.end).max(data);
        let clusters = |range: Range<u64>| range.end.saturating_sub(range.start).div_ceil(header.cluster.max(1));
        self.free = self.free.saturating_add(clusters(data..tail));
        let free = if self.broken { Class::Unknown } else { Class::Free };
        cx.add_host(data..tail, free);
        if tail < range.end {
            let count = clusters(tail..range.end);
            let words = format!(
                "{tail:#x}..{:#x}, {count} clusters at the end of the file, are referred to by nothing",
                range.end
            );
            let (code, class) =
                if self.broken { (codes::ORPHAN, Class::Unknown) } else { (codes::LEAKED, Class::Leaked) };
            cx.find(Finding::new(code, words).host(tail..range.end).count(count));
            cx.add_host(tail..range.end, class);
        }
    }
}
