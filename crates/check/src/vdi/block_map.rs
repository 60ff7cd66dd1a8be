//! The block map, entry by entry, and the blocks it names.

use std::ops::Range;

use crate::bytes::le_u32;
use crate::context::Context;
use crate::extents::{Tables, claimed_twice};
use crate::finding::{Confidence, Finding};
use crate::fold::{Fold, Stretch};
use crate::holes;
use crate::map::{Claim, Class, GuestState, Owner};
use crate::vdi::codes;
use crate::vdi::header::{self, Header};

/// Bytes of the map in memory at a time.
const CHUNK: u64 = 1 << 20;
const FREE: u32 = 0xffff_ffff;
const ZERO: u32 = 0xffff_fffe;

/// What is wrong with an entry. Entries of 0 are looked at as a run: a single one is sound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flaw {
    Unread,
    Range,
    PastEnd,
    ShortBlock,
    Unallocated,
    Stray,
    BlockZero,
    Again,
}

pub(super) struct BlockMap {
    header: Header,
    flaws: Fold<Option<Flaw>>,
    states: Fold<GuestState>,
    /// Entries that name a block, and those that say zero.
    mapped: u64,
    zero: u64,
    /// Whether entries are lost: blocks that nothing names may be theirs then.
    broken: bool,
    cut: bool,
}

impl BlockMap {
    pub(super) fn new(header: Header) -> Self {
        let (flaws, states) = (Fold::new(), Fold::new());
        Self { header, flaws, states, mapped: 0, zero: 0, broken: false, cut: false }
    }

    /// Header and map, cut at the end of the file.
    pub(super) fn fixed_claims(&self, file_len: u64) -> Vec<Claim> {
        let map = (self.header.map_offset, self.header.map_len(), Class::BlockMap);
        let parts = [(0, header::LEN, Class::Header), map];
        let cut = parts.into_iter().map(|(start, len, class)| {
            let len = len.min(file_len.saturating_sub(start));
            Claim { start, len, class, index: 0 }
        });
        cut.filter(|claim| claim.len > 0).collect()
    }

    /// Bytes of the disk behind an entry; empty past its end.
    fn guest(&self, index: u64) -> Range<u64> {
        let start = index.saturating_mul(self.header.block).min(self.header.size);
        start..start.saturating_add(self.header.block).min(self.header.size)
    }

    /// Where a mapped block lies, extra bytes included.
    fn claim(&self, index: u64, entry: u32, file_len: u64) -> Option<Claim> {
        if entry >= ZERO {
            return None;
        }
        let header = &self.header;
        let start = header.place(u64::from(entry)).saturating_sub(header.extra);
        let len = header.stride().min(file_len.saturating_sub(start));
        (len > 0).then_some(Claim { start, len, class: Class::Data, index: index.saturating_mul(header.block) })
    }

    fn entry(&mut self, cx: &mut Context<'_>, index: u64, entry: u32, again: bool, unread: bool) {
        let header = self.header;
        let guest = self.guest(index);
        let value = u64::from(entry);
        let state = match entry {
            FREE => GuestState::Unallocated,
            ZERO => GuestState::Zero,
            _ => GuestState::Data,
        };
        let flaw = if unread && entry == 0 {
            cx.lose(guest.clone());
            Some(Flaw::Unread)
        } else if entry >= ZERO {
            self.zero = self.zero.saturating_add(u64::from(entry == ZERO));
            None
        } else if value >= header.blocks {
            Some(Flaw::Range)
        } else {
            self.mapped = self.mapped.saturating_add(1);
            self.placed(cx, &guest, value, again)
        };
        if let Some(run) = self.flaws.push(flaw, index, value, guest.clone()) {
            self.tell(cx, &run);
        }
        if let Some(run) = self.states.push(state, index, value, guest) {
            cx.add_guest(run.guest, run.kind);
        }
    }

    /// Entries in a hole of the file. Zero is no sign of absence here: each of them names block 0, so they are folded
    /// by what is behind them on the disk, and of each part one entry speaks for all.
    fn zeroes(&mut self, cx: &mut Context<'_>, entries: &Range<u64>, again: bool) {
        let header = self.header;
        let whole = header.size.checked_div(header.block).unwrap_or(0).clamp(entries.start, entries.end);
        let used = header.size.div_ceil(header.block.max(1)).clamp(entries.start, entries.end);
        for part in [entries.start..whole, whole..used, used..entries.end] {
            if part.is_empty() {
                continue;
            }
            let first = self.guest(part.start);
            let guest = first.start..self.guest(part.end.saturating_sub(1)).end;
            let count = part.end.saturating_sub(part.start);
            self.mapped = self.mapped.saturating_add(count);
            let flaw = self.placed(cx, &first, 0, again);
            if flaw == Some(Flaw::PastEnd) && count > 1 {
                // As for every run of one number, also where it goes on with another.
                cx.lose(guest.clone());
            }
            if let Some(run) = self.flaws.push_all(flaw, part.clone(), 0, guest.clone()) {
                self.tell(cx, &run);
            }
            if let Some(run) = self.states.push_all(GuestState::Data, part, 0, guest) {
                cx.add_guest(run.guest, run.kind);
            }
        }
    }

    /// An entry that names a block the image can have.
    fn placed(&mut self, cx: &mut Context<'_>, guest: &Range<u64>, value: u64, again: bool) -> Option<Flaw> {
        let header = self.header;
        let place = header.place(value);
        let there = cx.file_len().saturating_sub(place);
        let needed = guest.end.saturating_sub(guest.start);
        if there < needed {
            cx.lose(guest.start.saturating_add(there)..guest.end);
            Some(Flaw::PastEnd)
        } else if value == 0 {
            Some(Flaw::BlockZero)
        } else if again {
            Some(Flaw::Again)
        } else if value >= header.allocated {
            Some(Flaw::Unallocated)
        } else if needed == 0 {
            Some(Flaw::Stray)
        } else if there < header.block {
            Some(Flaw::ShortBlock)
        } else {
            None
        }
    }

    /// Makes a finding of a run of equal flaws.
    fn tell(&mut self, cx: &mut Context<'_>, run: &Stretch<Option<Flaw>>) {
        let Some(flaw) = run.kind else { return };
        let header = self.header;
        let words = run.words();
        let count = run.count();
        let (code, what) = match flaw {
            Flaw::Unread => {
                self.broken = true;
                return;
            }
            Flaw::Range => {
                self.broken = true;
                cx.lose(run.guest.clone());
                (codes::MAP_RANGE, format!("map {words}: the image has {} blocks only", header.blocks))
            }
            Flaw::PastEnd => {
                if count > 1 && run.least == run.most {
                    // One block can not be all of theirs, whatever of it is in the file.
                    cx.lose(run.guest.clone());
                }
                let place = header.place(run.least);
                let words = format!(
                    "map {words}: the blocks, from {place:#x} on, reach past the end of the file ({:#x})",
                    cx.file_len()
                );
                (codes::MAP_PAST_END, words)
            }
            Flaw::ShortBlock => {
                (codes::SHORT_BLOCK, format!("map {words}: the file ends inside the block, behind the disk's end"))
            }
            Flaw::Unallocated => {
                let words = format!("map {words}: the header counts {} blocks as allocated", header.allocated);
                (codes::MAP_UNALLOCATED, words)
            }
            Flaw::Stray => (codes::STRAY, format!("map {words}: the disk ends at {:#x}", header.size)),
            Flaw::BlockZero if count < 2 => return,
            Flaw::BlockZero => {
                self.broken = true;
                cx.lose(run.guest.clone());
                let at = header.map_offset.saturating_add(run.entries.start.saturating_mul(4));
                (codes::MAP_ZEROED, format!("map {words} at {at:#x} are zero, which maps each of them to block 0"))
            }
            Flaw::Again => {
                self.broken = true;
                let before = run.entries.start.saturating_sub(1);
                cx.lose(self.guest(before).start..run.guest.end);
                (codes::BLOCK_TWICE, format!("map {words}: each names the same block as the entry before it, {before}"))
            }
        };
        let at = |index: u64| header.map_offset.saturating_add(index.saturating_mul(4));
        let mut finding = Finding::new(code, what).host(at(run.entries.start)..at(run.entries.end)).count(count);
        if !run.guest.is_empty() {
            finding = finding.guest(run.guest.clone());
        }
        cx.find(finding);
    }

    /// The part of the map that the file does not reach.
    fn missing_entries(&mut self, cx: &mut Context<'_>, there: u64) {
        let header = self.header;
        let guest = self.guest(there).start..header.size.min(header.blocks.saturating_mul(header.block));
        if there >= header.blocks {
            return;
        }
        self.cut = true;
        self.broken = true;
        let words =
            format!("map entries {there}..{} are past the end of the file ({:#x})", header.blocks, cx.file_len());
        let mut finding = Finding::new(codes::MAP_CUT, words).count(header.blocks.saturating_sub(there));
        finding = finding.host(cx.file_len().min(header.map_end())..header.map_end());
        if !guest.is_empty() {
            finding = finding.guest(guest.clone());
            cx.lose(guest.clone());
            cx.add_guest(guest, GuestState::Data);
        }
        cx.find(finding);
    }

    /// What the map has against what the header counts.
    pub(super) fn compare_counts(&self, cx: &mut Context<'_>) {
        let header = self.header;
        cx.fact("blocks mapped", self.mapped.to_string());
        cx.fact("blocks zero", self.zero.to_string());
        if self.cut || cx.stopped() {
            return;
        }
        if self.mapped != header.allocated {
            let words =
                format!("{} blocks are mapped, the header counts {} as allocated", self.mapped, header.allocated);
            let count = self.mapped.abs_diff(header.allocated);
            let mut finding = Finding::new(codes::ALLOCATED, words).host(0x184..0x188).count(count);
            if self.mapped < header.allocated {
                // Nothing is in danger: unless entries were lost, only space is. QEMU calls it an error all the same.
                finding = finding.confidence(Confidence::Likely);
            }
            cx.find(finding);
        }
        if header.kind == 2 && self.mapped < header.blocks {
            let free = header.blocks.saturating_sub(self.mapped);
            let words = format!("{free} of {} blocks of a fixed image are not allocated", header.blocks);
            cx.find(Finding::new(codes::FIXED_FREE, words).host(0x4c..0x50).count(free));
        }
    }

    fn owner(&self, claim: &Claim, shared: &Range<u64>) -> Owner {
        let (label, guest) = match claim.class {
            Class::Header => ("the header".to_owned(), None),
            Class::BlockMap => ("the block map".to_owned(), None),
            _ => {
                let guest = if self.header.extra > 0 {
                    claim.index..claim.index.saturating_add(self.header.block)
                } else {
                    let shift = |at: u64| at.saturating_sub(claim.start).saturating_add(claim.index);
                    shift(shared.start)..shift(shared.end)
                };
                let guest = guest.start.min(self.header.size)..guest.end.min(self.header.size);
                (format!("guest data of {:#x}..{:#x}", guest.start, guest.end), Some(guest))
            }
        };
        Owner { class: claim.class, host: shared.clone(), guest, label }
    }
}

impl Tables for BlockMap {
    fn walk(&mut self, cx: &mut Context<'_>, report: bool, add: &mut dyn FnMut(Claim) -> bool) {
        let header = self.header;
        let file_len = cx.file_len();
        for claim in self.fixed_claims(file_len) {
            if !add(claim) {
                return;
            }
        }
        let there = header.map_len().min(file_len.saturating_sub(header.map_offset)) / 4;
        let mut start = 0;
        let mut before = None;
        while start < there && !cx.stopped() {
            let stretch = holes::stretch(cx.image, header.map_offset, 4, start..there, CHUNK / 4);
            let end = stretch.entries.end;
            if stretch.hole {
                let again = before == Some(0);
                before = Some(0);
                if report {
                    self.zeroes(cx, &stretch.entries, again);
                }
                if !again
                    && let Some(claim) = self.claim(start, 0, file_len)
                    && !add(claim)
                {
                    return;
                }
                start = end;
                continue;
            }
            let at = header.map_offset.saturating_add(start.saturating_mul(4));
            let len = usize::try_from(end.saturating_sub(start).saturating_mul(4)).unwrap_or(0);
            let errors = cx.numbers.check_errors;
            let bytes = cx.read(at, len, "the block map");
            let unread = cx.numbers.check_errors != errors;
            for (entry, index) in bytes.chunks_exact(4).zip(start..) {
                let entry = le_u32(entry, 0);
                // A run of one block number is one claim: the entries that follow add nothing but a finding.
                let again = before == Some(entry);
                before = Some(entry);
                if report {
                    self.entry(cx, index, entry, again, unread);
                }
                if !again
                    && (!unread || entry != 0)
                    && let Some(claim) = self.claim(index, entry, file_len)
                    && !add(claim)
                {
                    return;
                }
            }
            if report {
                cx.progress("block map", end.saturating_mul(4), header.map_len());
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
            cx.add_guest(header.blocks.saturating_mul(header.block)..header.size, GuestState::Data);
        }
    }

    fn overlap(&mut self, cx: &mut Context<'_>, first: &Claim, second: &Claim, shared: Range<u64>) {
        let code = match (first.class, second.class) {
            (Class::Data, Class::Data) => codes::BLOCK_TWICE,
            (Class::Data, _) | (_, Class::Data) => codes::BLOCK_ON_METADATA,
            // Header and map: the header's offsets say it.
            _ => return,
        };
        let owners = [first, second].map(|claim| self.owner(claim, &shared));
        claimed_twice(cx, code, owners, shared, self.header.stride(), |_| false);
    }

    fn vacant(&mut self, cx: &mut Context<'_>, range: Range<u64>) {
        let header = self.header;
        let stride = header.stride().max(1);
        let data = range.start.max(header.data_offset).min(range.end);
        cx.add_host(range.start..data, Class::Reserved);
        let allocated_end = header.allocated.saturating_mul(stride).saturating_add(header.data_offset);
        let end = range.end.min(allocated_end).max(data);
        let blocks = end.saturating_sub(data).checked_div(stride).unwrap_or(0);
        if blocks == 0 {
            cx.add_host(data..range.end, Class::Free);
            return;
        }
        let first = data.saturating_sub(header.data_offset).checked_div(stride).unwrap_or(0);
        let last = first.saturating_add(blocks);
        let (code, class) = if self.broken { (codes::ORPHAN, Class::Unknown) } else { (codes::LEAKED, Class::Leaked) };
        let words =
            format!("blocks {first}..{last} ({data:#x}..{end:#x}) are counted as allocated and mapped by nothing");
        cx.find(Finding::new(code, words).host(data..end).count(blocks));
        cx.add_host(data..end, class);
        cx.add_host(end..range.end, Class::Free);
    }
}
