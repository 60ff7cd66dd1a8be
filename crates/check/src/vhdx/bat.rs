//! The block table (BAT) and what it points at: entry by entry in guest order, and block by block in file order.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use super::metadata::Metadata;
use super::replay::{Replayed, SECTOR_LEN};
use super::{codes, header_parts, view_len};
use crate::budget::Full;
use crate::bytes::{is_zero, le_u64};
use crate::code::{Code, Severity};
use crate::context::Context;
use crate::finding::{Confidence, Finding};
use crate::layout::{Layout, window_by_window};
use crate::map::{Claim, Class, GuestState, Owner};
use crate::source::Source as _;
use crate::vhd::overwritten::Overwritten;

const MIB: u64 = 1 << 20;
/// Bytes of the table read at once.
const CHUNK: u64 = 1 << 20;
/// Entries that the log of QEMU before 8.0 shifted together: those of one logged sector.
const PAGE: u64 = 512;
const ZEROES: [u8; SECTOR_LEN] = [0; SECTOR_LEN];
/// Suspicious entries remembered.
const SLOTS_MAX: usize = 4096;
/// Overlaps of one window that are told apart.
const OVERLAPS_MAX: usize = 10_000;

/// States of an entry ([MS-VHDX] 2.5.1).
mod state {
    pub(super) const ZERO: u64 = 2;
    pub(super) const UNMAPPED_OLD: u64 = 5;
    pub(super) const PRESENT: u64 = 6;
    pub(super) const PARTIAL: u64 = 7;
}

/// An entry's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    fn state(self) -> u64 {
        self.0 & 7
    }

    /// Where the block is.
    fn offset(self) -> u64 {
        self.0 & !(MIB.wrapping_sub(1))
    }

    fn reserved(self) -> u64 {
        self.0 & 0xf_fff8
    }

    /// Whether the block is in the file, all or part of it.
    fn present(self) -> bool {
        matches!(self.state(), state::PRESENT | state::PARTIAL)
    }
}

/// What an entry of the table is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Block(u64),
    /// The sector bitmap of this chunk.
    Bitmap(u64),
    /// Behind the last entry there should be.
    Stray,
}

/// The block table, with everything that gives its entries a meaning.
pub(super) struct Table {
    pub(super) at: u64,
    region: Range<u64>,
    /// Entries that the disk needs.
    pub(super) entries: u64,
    /// Bytes of a block; a power of two from 1 to 256 MiB.
    pub(super) block: u64,
    /// Bytes of a logical sector, 512 or 4096.
    pub(super) sector: u64,
    /// Bytes of the guest's disk.
    pub(super) size: u64,
    /// Whether it is read over a parent.
    pub(super) parent: bool,
    /// Whether every block is in the file.
    fixed: bool,
    /// Whether the place of the log is known: if not, it lies where nobody seems to be.
    pub(super) log_known: bool,
    /// Blocks that one sector bitmap describes.
    chunk: u64,
    /// Whether the table's place is stated, rather than guessed.
    certain: bool,
    creator: String,
}

impl Table {
    pub(super) fn new(
        region: Range<u64>,
        block: u64,
        sector: u64,
        size: u64,
        meta: &Metadata,
        certain: bool,
        creator: String,
    ) -> Self {
        let (parent, fixed) = (meta.has_parent, meta.fixed);
        // 2^23 sectors to a bitmap of 1 MiB: with the bounds of both values from 16 to 32,768.
        let chunk = (sector << 23).checked_div(block).unwrap_or(1).max(1);
        let blocks = size.div_ceil(block);
        let entries = if parent {
            blocks.div_ceil(chunk).saturating_mul(chunk.saturating_add(1))
        } else {
            blocks.saturating_add(blocks.saturating_sub(1).checked_div(chunk).unwrap_or(0))
        };
        Self {
            at: region.start,
            region,
            entries,
            block,
            sector,
            size,
            parent,
            fixed,
            log_known: true,
            chunk,
            certain,
            creator,
        }
    }

    fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block)
    }

    fn slot(&self, index: u64) -> Slot {
        if index >= self.entries {
            return Slot::Stray;
        }
        let group = self.chunk.saturating_add(1);
        let chunk = index.checked_div(group).unwrap_or(0);
        let of = index.checked_rem(group).unwrap_or(0);
        if of == self.chunk {
            Slot::Bitmap(chunk)
        } else {
            Slot::Block(chunk.saturating_mul(self.chunk).saturating_add(of))
        }
    }

    /// The chunk a block belongs to.
    fn chunk_of(&self, block: u64) -> u64 {
        block.checked_div(self.chunk).unwrap_or(0)
    }

    /// The entry of a block.
    fn index(&self, block: u64) -> u64 {
        block.saturating_add(block.checked_div(self.chunk).unwrap_or(0))
    }

    /// The first block whose entry is at or after this one.
    fn block_from(&self, index: u64) -> u64 {
        match self.slot(index) {
            Slot::Block(block) => block,
            Slot::Bitmap(chunk) => chunk.saturating_add(1).saturating_mul(self.chunk),
            Slot::Stray => self.blocks(),
        }
    }

    /// Bytes of the disk in these blocks.
    fn guest(&self, blocks: Range<u64>) -> Range<u64> {
        let at = |block: u64| block.saturating_mul(self.block).min(self.size);
        at(blocks.start)..at(blocks.end)
    }

    fn place(&self, entries: Range<u64>) -> Range<u64> {
        let at = |index: u64| self.at.saturating_add(index.saturating_mul(8));
        at(entries.start)..at(entries.end)
    }

    fn confidence(&self) -> Confidence {
        if self.certain { Confidence::Certain } else { Confidence::Likely }
    }

    /// Entries of the table that are in the file.
    fn there(&self, view: &Replayed<'_>) -> u64 {
        self.region.end.min(view_len(view)).saturating_sub(self.at) / 8
    }

    /// Calls `each` for every entry that is in the file and not all zero bits, with its index.
    fn read(
        &self,
        cx: &mut Context<'_>,
        view: &Replayed<'_>,
        mut each: impl FnMut(&mut Context<'_>, u64, Entry) -> Result<(), Full>,
    ) -> Result<(), Full> {
        let end = self.at.saturating_add(self.there(view).saturating_mul(8));
        let mut at = self.at;
        while at < end && !cx.stopped() {
            // Holes are not read: their entries are zero. They begin and end on sectors, and so on entries.
            let Some(data) = view.next_data(at).filter(|data| data.start < end) else { break };
            at = at.max(data.start.saturating_sub(data.start.saturating_sub(self.at) % 8));
            let there = data.end.min(end).saturating_sub(at).next_multiple_of(8).clamp(8, CHUNK);
            let bytes = cx.read_from(view, at, usize::try_from(there).unwrap_or(8), "the block table");
            for page in bytes.chunks(SECTOR_LEN) {
                // Most of a table of a large disk was never written to.
                if ZEROES.get(..page.len()) != Some(page) {
                    let first = at.saturating_sub(self.at) / 8;
                    for (index, entry) in (first..).zip(page.chunks_exact(8)) {
                        let entry = Entry(le_u64(entry, 0));
                        if entry.0 != 0 {
                            each(cx, index, entry)?;
                        }
                    }
                }
                at = at.saturating_add(page.len() as u64);
            }
            if bytes.is_empty() {
                break;
            }
            cx.progress("block table", at.saturating_sub(self.at), end.saturating_sub(self.at));
        }
        Ok(())
    }

    /// What an entry claims in the file: data, a bitmap, or room that a block without content keeps.
    fn claim(&self, view: &Replayed<'_>, index: u64, entry: Entry) -> Option<Claim> {
        let start = entry.offset();
        let len = view_len(view);
        match self.slot(index) {
            Slot::Block(block) if entry.present() && start < len => {
                Some(Claim { start, len: self.block, class: Class::Data, index: block.saturating_mul(self.block) })
            }
            Slot::Block(block) if start >= MIB && start < len => {
                Some(Claim { start, len: self.block, class: Class::Reserved, index: block })
            }
            Slot::Bitmap(chunk) if self.parent && entry.state() == state::PRESENT && start < len => {
                Some(Claim { start, len: MIB, class: Class::BitmapData, index: chunk })
            }
            _ => None,
        }
    }
}

/// Whether something at this place can be a block table: some blocks in the file, no two alike, nothing impossible.
pub(super) fn looks_like(cx: &mut Context<'_>, view: &Replayed<'_>, at: u64) -> bool {
    let bytes = cx.read_from(view, at, 64 << 10, "a search for the block table");
    let len = view_len(view);
    let mut blocks = Vec::new();
    for entry in bytes.chunks_exact(8).map(|entry| Entry(le_u64(entry, 0))) {
        let known = matches!(entry.state(), 0..=3 | state::PRESENT | state::PARTIAL);
        let inside = !entry.present() || (entry.offset() >= MIB && entry.offset() < len && entry.offset() != at);
        if !known || !inside || entry.reserved() != 0 {
            return false;
        }
        if entry.present() {
            blocks.push(entry.offset());
        }
    }
    let count = blocks.len();
    blocks.sort_unstable();
    blocks.dedup();
    count > 0 && blocks.len() == count
}

pub(super) fn analyse(cx: &mut Context<'_>, view: &Replayed<'_>, table: &Table, fixed: &[Claim]) {
    cx.map_guest(table.size, table.block);
    let there = table.there(view);
    if there < table.entries {
        let first = table.block_from(there);
        let words = format!(
            "the block table at {:#x} has room for {there} entries, a disk of {} bytes needs {}",
            table.at, table.size, table.entries
        );
        let guest = table.guest(first..table.blocks());
        cx.find(Finding::new(codes::BAT_SHORT, words).host(table.region.clone()).guest(guest.clone()));
        cx.lose(guest);
    }
    let mut slots = slots(cx, view, table);
    place(cx, view, table, fixed, &mut slots);
    shifted(cx, table, &slots);
    zeroed(cx, view, table);
    let lost = cx.lost().ranges;
    walk(cx, view, table, &lost);
}

/// Entries that no block owns but that name a block all the same, by the block's place.
///
/// A disk without a parent has no sector bitmaps: its bitmap entries are zero, and so is what follows the last entry.
/// QEMU before 8.0 wrote a table sector to its log shifted by one entry when its first entry changed, which puts blocks
/// there.
fn slots(cx: &mut Context<'_>, view: &Replayed<'_>, table: &Table) -> BTreeMap<u64, u64> {
    let mut slots = BTreeMap::new();
    if table.parent {
        return slots;
    }
    let len = view_len(view);
    let _ = table.read(cx, view, |_, index, entry| {
        let ours = match table.slot(index) {
            Slot::Bitmap(_) => true,
            Slot::Stray => index == table.entries,
            Slot::Block(_) => false,
        };
        let block = entry.state() == state::PRESENT && entry.reserved() == 0;
        let end = entry.offset().saturating_add(table.block);
        if ours && block && entry.offset() >= MIB && end <= len && slots.len() < SLOTS_MAX {
            slots.insert(entry.offset(), index);
        }
        Ok(())
    });
    slots
}

/// Blocks that only such an entry names any more: their table sector was shifted.
fn shifted(cx: &mut Context<'_>, table: &Table, slots: &BTreeMap<u64, u64>) {
    let old_qemu = old_qemu(&table.creator);
    for (offset, index) in slots {
        let page = index.saturating_sub(index % PAGE);
        let first = table.block_from(page.saturating_add(1));
        let end = table.block_from(page.saturating_add(PAGE)).min(table.blocks());
        let guest = table.guest(first..end);
        let words = format!(
            "entry {index} is no block's but names one at {offset:#x} that no other entry names: entries {}..{} were shifted by one",
            page.saturating_add(1),
            page.saturating_add(PAGE)
        );
        let entries = table.place(page..page.saturating_add(PAGE));
        let finding =
            Finding::new(codes::BAT_SHIFTED, words).host(entries).host(*offset..offset.saturating_add(table.block));
        let confidence = if old_qemu { Confidence::Certain } else { Confidence::Likely };
        cx.find(finding.guest(guest.clone()).confidence(confidence.min(table.confidence())));
        cx.lose(guest);
    }
}

/// Stretches of zeroes where the writer leaves none: a fixed disk has every block in the file, and QEMU makes the
/// entries of a dynamic one say "zero" (2) before the first write. Other writers leave zeroes everywhere, where this
/// can not be told.
fn zeroed(cx: &mut Context<'_>, view: &Replayed<'_>, table: &Table) {
    let mut gaps: Vec<Range<u64>> = Vec::new();
    let (mut next, mut said_zero, mut present) = (0u64, false, false);
    let end = table.entries.min(table.there(view));
    let _ = table.read(cx, view, |_, index, entry| {
        if index < end && matches!(table.slot(index), Slot::Block(_)) {
            said_zero |= entry.0 == state::ZERO;
            present |= entry.present();
            if index > next && gaps.len() < SLOTS_MAX {
                gaps.push(next..index);
            }
            next = index.saturating_add(1);
        }
        Ok(())
    });
    if next < end {
        gaps.push(next..end);
    }
    let qemu = table.creator.starts_with("QEMU v") && said_zero && !table.parent;
    // With a wrong size what lies behind the table's end is no table.
    let sized = table.there(view) >= table.entries;
    if !sized || !(qemu || table.fixed && present) || cx.stopped() {
        return;
    }
    let orphaned = cx.findings.errors_of(codes::BLOCK_ORPHAN) > 0;
    for gap in gaps {
        let blocks = table.block_from(gap.start)..table.block_from(gap.end).min(table.blocks());
        // The medium loses sectors; what is behind the last entry is zero anyway.
        let first = table.place(gap.clone()).start.div_ceil(512);
        let last = if gap.end == table.entries {
            table.place(gap.clone()).end.div_ceil(512)
        } else {
            table.place(gap.clone()).end / 512
        };
        if blocks.is_empty() || first >= last && !table.fixed {
            continue;
        }
        let guest = table.guest(blocks.clone());
        let words = format!(
            "block table entries {}..{} (blocks {}..{}) are all zero, which {} never leaves",
            gap.start,
            gap.end,
            blocks.start,
            blocks.end,
            if table.fixed { "a fixed disk" } else { "QEMU" }
        );
        let count = blocks.end.saturating_sub(blocks.start);
        let finding = Finding::new(codes::BAT_ZEROED, words).host(table.place(gap)).guest(guest.clone()).count(count);
        if table.fixed || orphaned {
            cx.find(finding.confidence(Confidence::Likely));
            cx.lose(guest);
        } else {
            // Nothing is missing: the entries named no block, or another program than QEMU made the disk larger.
            cx.find(finding.confidence(Confidence::Possible).severity(Severity::Warning));
        }
    }
}

/// Whether the creator is a QEMU that had the fault; what opened the file later is not known.
fn old_qemu(creator: &str) -> bool {
    let version = creator.strip_prefix("QEMU v").and_then(|rest| rest.split('.').next());
    version.and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major < 8)
}

/// What a block's entry is, apart from what others are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Judged {
    Unallocated,
    Zero,
    Sound,
    Outside,
    Cut,
    BadState,
    OldState,
}

/// Equal entries of blocks that follow each other.
struct Run {
    judged: Judged,
    blocks: Range<u64>,
    /// The first entry's value.
    entry: Entry,
}

/// Entries with one flaw, as one finding: the first of them, and how many.
#[derive(Default)]
struct Flawed {
    first: Option<(u64, Entry)>,
    last: u64,
    count: u64,
}

impl Flawed {
    fn add(&mut self, index: u64, entry: Entry) {
        self.first.get_or_insert((index, entry));
        self.last = index;
        self.count = self.count.saturating_add(1);
    }

    fn tell(&self, cx: &mut Context<'_>, table: &Table, code: &'static Code, why: &str) {
        let Some((first, entry)) = self.first else { return };
        let words = format!(
            "{} block table entries from {first} to {}: {why} (the first is {:#018x})",
            self.count, self.last, entry.0
        );
        let host = table.place(first..self.last.saturating_add(1));
        cx.find(Finding::new(code, words).host(host).count(self.count).confidence(table.confidence()));
    }
}

/// Entry by entry, in the order of the guest's disk.
fn walk(cx: &mut Context<'_>, view: &Replayed<'_>, table: &Table, lost: &[Range<u64>]) {
    let len = view_len(view);
    let mut walk = Walk { run: None, next: 0, partial: None };
    let (mut reserved, mut strays, mut bitmaps) = (Flawed::default(), Flawed::default(), Flawed::default());
    let (mut allocated, mut fragmented, mut before) = (0u64, 0u64, None);
    let mut overwritten = Overwritten::new();
    let mut image_end = table.region.end;
    let _ = table.read(cx, view, |cx, index, entry| {
        let slot = table.slot(index);
        if entry.reserved() != 0 && slot != Slot::Stray {
            reserved.add(index, entry);
        }
        let block = match slot {
            Slot::Block(block) => block,
            Slot::Bitmap(chunk) => {
                if table.parent && entry.state() == state::PRESENT {
                    bitmap_inside(cx, view, table, index, chunk, entry);
                    walk.partial = None;
                } else {
                    bitmaps.add(index, entry);
                }
                return Ok(());
            }
            Slot::Stray => {
                strays.add(index, entry);
                return Ok(());
            }
        };
        // Partial blocks of chunks before this one, whose bitmap entry was all zero bits.
        walk.close_chunk(cx, table, table.chunk_of(block));
        let (start, end) = (entry.offset(), entry.offset().saturating_add(table.block));
        let judged = match entry.state() {
            state::PARTIAL if !table.parent => Judged::BadState,
            state::PRESENT | state::PARTIAL if start >= len => Judged::Outside,
            state::PRESENT | state::PARTIAL if end > len => Judged::Cut,
            state::PRESENT | state::PARTIAL => Judged::Sound,
            state::ZERO => Judged::Zero,
            state::UNMAPPED_OLD => Judged::OldState,
            4 => Judged::BadState,
            _ => Judged::Unallocated,
        };
        if entry.state() == state::PARTIAL && table.parent {
            walk.partial = Some(
                walk.partial.take().map_or(block..block.saturating_add(1), |all| all.start..block.saturating_add(1)),
            );
        }
        if matches!(judged, Judged::Sound | Judged::Cut) {
            allocated = allocated.saturating_add(1);
            if before.is_some_and(|before| before != start) {
                fragmented = fragmented.saturating_add(1);
            }
            before = Some(end);
            image_end = image_end.max(end.min(len));
        }
        let flawed = matches!(judged, Judged::Outside | Judged::Cut | Judged::BadState) || entry.reserved() != 0;
        overwritten.add(
            table.place(index..index.saturating_add(1)),
            flawed,
            table.guest(block..block.saturating_add(1)),
        );
        if judged == Judged::Cut {
            let guest = table.guest(block..block.saturating_add(1));
            cx.lose(guest.start.saturating_add(len.saturating_sub(start)).min(guest.end)..guest.end);
        }
        walk.add(cx, table, block, judged, entry, lost);
        Ok(())
    });
    walk.close_chunk(cx, table, u64::MAX);
    let missing = table.block_from(table.there(view)).min(table.blocks());
    walk.finish(cx, table, missing, lost);
    let explained =
        [codes::BAT_PAST_END.name, codes::BAT_STATE.name, codes::BAT_RESERVED.name, codes::BAT_OVERLAP.name];
    overwritten.tell(cx, view, &explained);
    reserved.tell(cx, table, codes::BAT_RESERVED, "reserved bits are set");
    strays.tell(cx, table, codes::BAT_STRAY, "they are behind the last block of the disk");
    let why = if table.parent {
        "they are of sector bitmaps, whose state is 0 or 6"
    } else {
        "they are of sector bitmaps, which a disk without a parent has not"
    };
    bitmaps.tell(cx, table, codes::BITMAP_STATE, why);
    cx.numbers.total_clusters = Some(table.blocks());
    cx.numbers.allocated_clusters = Some(allocated);
    cx.numbers.fragmented_clusters = Some(fragmented);
    cx.numbers.image_end_offset = Some(image_end.min(cx.file_len()));
}

struct Walk {
    run: Option<Run>,
    /// The first block not told yet.
    next: u64,
    /// Blocks of the current chunk that need its bitmap.
    partial: Option<Range<u64>>,
}

impl Walk {
    /// Takes one block's entry; blocks in between had entries of all zero bits: they are not allocated.
    fn add(
        &mut self,
        cx: &mut Context<'_>,
        table: &Table,
        block: u64,
        judged: Judged,
        entry: Entry,
        lost: &[Range<u64>],
    ) {
        let end = block.saturating_add(1);
        let joins = self.run.as_ref().is_some_and(|run| run.judged == judged && run.blocks.end == block);
        if joins {
            if let Some(run) = &mut self.run {
                run.blocks.end = end;
            }
        } else if let Some(done) = self.run.replace(Run { judged, blocks: block..end, entry }) {
            close(cx, table, &done, lost);
        }
        add_state(cx, table.guest(self.next..block), GuestState::Unallocated, lost);
        self.next = end;
    }

    /// The end: what the table has no entry for, from block `missing` on, is not known.
    fn finish(&mut self, cx: &mut Context<'_>, table: &Table, missing: u64, lost: &[Range<u64>]) {
        if let Some(done) = self.run.take() {
            close(cx, table, &done, lost);
        }
        add_state(cx, table.guest(self.next..missing), GuestState::Unallocated, lost);
        cx.add_guest(table.guest(missing.max(self.next)..table.blocks()), GuestState::Damaged);
    }

    /// Blocks that are partly in this file and partly in the parent, without the bitmap that says which part is where.
    fn close_chunk(&mut self, cx: &mut Context<'_>, table: &Table, now: u64) {
        let Some(partial) = self.partial.clone() else { return };
        let chunk = table.chunk_of(partial.start);
        if chunk == now {
            return;
        }
        self.partial = None;
        let index = table.index(chunk.saturating_mul(table.chunk)).saturating_add(table.chunk);
        let words = format!(
            "blocks {}..{} are partly in the parent, and entry {index}, their sector bitmap's, is not present",
            partial.start, partial.end
        );
        let guest = table.guest(partial);
        let host = table.place(index..index.saturating_add(1));
        cx.find(Finding::new(codes::BITMAP_MISSING, words).host(host).guest(guest.clone()));
        cx.lose(guest);
    }
}

/// A sector bitmap that is not in the file is as good as none.
fn bitmap_inside(cx: &mut Context<'_>, view: &Replayed<'_>, table: &Table, index: u64, chunk: u64, entry: Entry) {
    if entry.offset().saturating_add(MIB) <= view_len(view) {
        return;
    }
    let blocks = chunk.saturating_mul(table.chunk)..chunk.saturating_add(1).saturating_mul(table.chunk);
    let guest = table.guest(blocks);
    let words = format!(
        "entry {index}: the sector bitmap of chunk {chunk} is at {:#x}, past the end of the file ({:#x})",
        entry.offset(),
        view_len(view)
    );
    cx.find(
        Finding::new(codes::BITMAP_MISSING, words)
            .host(table.place(index..index.saturating_add(1)))
            .guest(guest.clone()),
    );
    cx.lose(guest);
}

/// Says what a run of equal entries is.
fn close(cx: &mut Context<'_>, table: &Table, run: &Run, lost: &[Range<u64>]) {
    let guest = table.guest(run.blocks.clone());
    let count = run.blocks.end.saturating_sub(run.blocks.start);
    let first = table.index(run.blocks.start);
    let last = table.index(run.blocks.end.saturating_sub(1));
    let which = match count {
        1 => format!("block table entry {first} (block {}, {:#018x})", run.blocks.start, run.entry.0),
        _ => format!(
            "block table entries {first}..{} (blocks {}..{}, the first is {:#018x})",
            last.saturating_add(1),
            run.blocks.start,
            run.blocks.end,
            run.entry.0
        ),
    };
    let found = |code, why: &str| {
        let finding = Finding::new(code, format!("{which}: {why}")).host(table.place(first..last.saturating_add(1)));
        finding.guest(guest.clone()).count(count).confidence(table.confidence())
    };
    let len = cx.file_len();
    let state = match run.judged {
        Judged::Unallocated => GuestState::Unallocated,
        Judged::Zero => GuestState::Zero,
        Judged::Sound => return add_state(cx, guest, GuestState::Data, lost),
        Judged::OldState => {
            cx.find(found(codes::BAT_STATE_OLD, "state 5, which meant unmapped before the format was released"));
            GuestState::Unallocated
        }
        Judged::BadState => {
            let why = format!(
                "state {} has no meaning{}",
                run.entry.state(),
                if table.parent { "" } else { " without a parent" }
            );
            cx.find(found(codes::BAT_STATE, &why));
            cx.lose(guest.clone());
            GuestState::Damaged
        }
        Judged::Outside => {
            cx.find(found(codes::BAT_PAST_END, &format!("past the end of the file ({len:#x})")));
            cx.lose(guest.clone());
            GuestState::Damaged
        }
        Judged::Cut => {
            cx.find(found(codes::BAT_PAST_END, &format!("the block's end is past the end of the file ({len:#x})")));
            GuestState::Damaged
        }
    };
    cx.add_guest(guest, state);
}

/// A stretch of the disk in a state, but for what is known to be lost.
fn add_state(cx: &mut Context<'_>, guest: Range<u64>, state: GuestState, lost: &[Range<u64>]) {
    let mut at = guest.start;
    let from = lost.partition_point(|range| range.end <= guest.start);
    for range in lost.get(from..).unwrap_or_default().iter().take_while(|range| range.start < guest.end) {
        cx.add_guest(at..range.start.max(at), state);
        cx.add_guest(range.start.max(at)..range.end.min(guest.end), GuestState::Damaged);
        at = range.end.min(guest.end);
    }
    cx.add_guest(at..guest.end, state);
}

/// Block by block, in the order of the file. Blocks that some other entry names too are taken out of `slots`.
fn place(cx: &mut Context<'_>, view: &Replayed<'_>, table: &Table, fixed: &[Claim], slots: &mut BTreeMap<u64, u64>) {
    let budget = cx.budget;
    let len = cx.file_len();
    cx.map_host(table.block, Vec::new());
    let fill = |cx: &mut Context<'_>, window: &Range<u64>, layout: &mut Layout<'_>| {
        let reaches = |claim: &Claim| claim.start < window.end && claim.range().end > window.start;
        for claim in fixed.iter().filter(|claim| reaches(claim)) {
            layout.add(claim.start, claim.len, claim.class, claim.index)?;
        }
        table.read(cx, view, |_, index, entry| {
            let Some(claim) = table.claim(view, index, entry) else { return Ok(()) };
            if claim.class == Class::Data {
                slots.remove(&claim.start);
            }
            if reaches(&claim) {
                layout.add(claim.start, claim.len, claim.class, claim.index)?;
            }
            Ok(())
        })
    };
    let done = window_by_window(budget, len, MIB, cx, fill, |cx, window, layout, complete| {
        if !complete {
            cx.could_not(format!(
                "all claims between {:#x} and {:#x}: more than memory holds",
                window.start, window.end
            ));
        }
        let known = table.certain && table.log_known && table.there(view) >= table.entries;
        let whole = complete && known && !cx.stopped();
        sweep(cx, Some(table), window, layout, whole);
    });
    if done.is_err() {
        cx.could_not("who lies where in the file: not enough memory; allow more with --memory");
    }
}

/// The regions alone, where the block table is gone.
pub(super) fn place_regions(cx: &mut Context<'_>, fixed: &[Claim]) {
    let mut layout = Layout::new(cx.budget);
    for claim in fixed {
        if layout.add(claim.start, claim.len, claim.class, claim.index).is_err() {
            return cx.could_not("who lies where in the file: not enough memory; allow more with --memory");
        }
    }
    cx.map_host(MIB, Vec::new());
    let window = 0..cx.file_len();
    sweep(cx, None, &window, &mut layout, false);
}

/// An overlap that may go on with the next block.
struct Shared {
    first: Claim,
    second: Claim,
    host: Range<u64>,
    guest: [Option<Range<u64>>; 2],
    count: u64,
}

impl Shared {
    /// Whether `other` is the same thing one block further.
    fn goes_on(&self, other: &Self) -> bool {
        let joins = |all: &Option<Range<u64>>, one: &Option<Range<u64>>| match (all, one) {
            (Some(all), Some(one)) => all.end == one.start,
            (None, None) => true,
            _ => false,
        };
        self.first.class == other.first.class
            && self.second.class == other.second.class
            && self.host.end == other.host.start
            && self.guest.iter().zip(&other.guest).all(|(all, one)| joins(all, one))
    }
}

fn sweep(cx: &mut Context<'_>, table: Option<&Table>, window: &Range<u64>, layout: &mut Layout<'_>, whole: bool) {
    // The header's claim carries which of the two headers counts.
    let header = |claim: &Claim| (claim.class == Class::Header).then_some(claim.index);
    let current = layout.metadata().iter().find_map(header).unwrap_or(super::header::PLACES[0]);
    let mut overlaps: Vec<Shared> = Vec::new();
    let mut more = 0u64;
    let shared_cx = RefCell::new(&mut *cx);
    layout.sweep(
        window.clone(),
        |first, second, host| {
            // What began in the window before was told there.
            if host.is_empty() || !window.contains(&host.start) {
                return;
            }
            let guest = [guest_of(table, first, &host), guest_of(table, second, &host)];
            if first.class != Class::Reserved && second.class != Class::Reserved {
                for lost in guest.iter().flatten() {
                    shared_cx.borrow_mut().lose(lost.clone());
                }
            }
            let shared = Shared { first: *first, second: *second, host, guest, count: 1 };
            let full = overlaps.len() >= OVERLAPS_MAX;
            match overlaps.last_mut() {
                Some(last) if last.goes_on(&shared) => {
                    last.host.end = shared.host.end;
                    last.count = last.count.saturating_add(1);
                    for (all, one) in last.guest.iter_mut().flatten().zip(shared.guest.into_iter().flatten()) {
                        all.end = one.end;
                    }
                }
                _ if full => more = more.saturating_add(1),
                _ => overlaps.push(shared),
            }
        },
        |range, class| {
            let cx = &mut **shared_cx.borrow_mut();
            match class {
                Some(Class::Header) => {
                    for (part, class) in header_parts(current) {
                        cx.add_host(part.start.max(range.start)..part.end.min(range.end), class);
                    }
                }
                Some(class) => cx.add_host(range, class),
                None => {
                    if whole && let Some(table) = table {
                        orphans(cx, table, &range);
                    }
                    cx.add_host(range, if whole { Class::Free } else { Class::Unknown });
                }
            }
        },
    );
    for shared in overlaps {
        report(cx, table, shared);
    }
    if more > 0 {
        let words = format!("{more} more overlaps between {:#x} and {:#x}", window.start, window.end);
        cx.find(Finding::new(codes::BAT_OVERLAP, words).host(window.clone()).count(more));
    }
    let parts = |claim: Claim| match claim.class {
        Class::Header => header_parts(claim.index)
            .into_iter()
            .filter(|(_, class)| *class != Class::Reserved)
            .map(|(part, class)| Claim { start: part.start, len: part.end.saturating_sub(part.start), class, index: 0 })
            .collect(),
        _ => vec![claim],
    };
    if let Some(map) = &mut cx.host {
        let claims = layout.metadata().into_iter().filter(|claim| window.contains(&claim.start));
        map.claims.extend(claims.flat_map(parts));
    }
}

/// Room for blocks that nobody claims and that is not all zero, as far as a look at four places in each megabyte tells.
fn orphans(cx: &mut Context<'_>, table: &Table, range: &Range<u64>) {
    const LOOKS: usize = 256;
    let start = range.start.checked_next_multiple_of(MIB).unwrap_or(range.end);
    if range.end.saturating_sub(start) < table.block {
        return;
    }
    let places = (start..range.end).step_by(256 << 10).take(LOOKS);
    let holds = |at: &u64| !is_zero(&cx.read(*at, SECTOR_LEN, "room that nobody claims"));
    let Some(first) = places.filter(holds).last() else { return };
    let words = format!(
        "no block's entry names {:#x}..{:#x}, which holds data up to {first:#x} or farther",
        range.start, range.end
    );
    let finding = Finding::new(codes::BLOCK_ORPHAN, words).host(range.clone());
    cx.find(finding.confidence(Confidence::Possible));
}

/// Bytes of the disk that lie in a part of what somebody claims.
fn guest_of(table: Option<&Table>, claim: &Claim, host: &Range<u64>) -> Option<Range<u64>> {
    let table = table?;
    match claim.class {
        Class::Data => {
            let at = |host: u64| claim.index.saturating_add(host.saturating_sub(claim.start)).min(table.size);
            Some(at(host.start)..at(host.end.min(claim.range().end)))
        }
        Class::Reserved => Some(table.guest(claim.index..claim.index.saturating_add(1))),
        Class::BitmapData => {
            let first = claim.index.saturating_mul(table.chunk);
            Some(table.guest(first..first.saturating_add(table.chunk)))
        }
        _ => None,
    }
}

fn owner(table: Option<&Table>, claim: &Claim, guest: Option<Range<u64>>) -> Owner {
    let block = |at: u64| table.map_or(0, |table| at.checked_div(table.block).unwrap_or(0));
    let label = match claim.class {
        Class::Data => format!("block {}", block(guest.as_ref().map_or(0, |guest| guest.start))),
        Class::Reserved => format!("room kept by block {}", claim.index),
        Class::BitmapData => format!("sector bitmap of chunk {}", claim.index),
        Class::Header => "the header section".to_owned(),
        Class::Log => "the log".to_owned(),
        Class::BlockMap => "the block table".to_owned(),
        Class::Metadata if claim.index > 0 => format!("unknown region {}", claim.index),
        _ => "the metadata region".to_owned(),
    };
    Owner { class: claim.class, host: claim.range(), guest, label }
}

fn report(cx: &mut Context<'_>, table: Option<&Table>, shared: Shared) {
    let [of_first, of_second] = shared.guest;
    let first = owner(table, &shared.first, of_first.clone());
    let second = owner(table, &shared.second, of_second.clone());
    let words =
        format!("{} and {} both claim {:#x}..{:#x}", first.label, second.label, shared.host.start, shared.host.end);
    let kept = shared.first.class == Class::Reserved || shared.second.class == Class::Reserved;
    let code = match (kept, of_first.is_some() || of_second.is_some()) {
        (true, _) => codes::BAT_STALE,
        (false, true) => codes::BAT_OVERLAP,
        (false, false) => codes::REGION_OVERLAP,
    };
    let mut finding = Finding::new(code, words).host(shared.host).count(shared.count);
    finding.guest.extend([of_first, of_second].into_iter().flatten().filter(|guest| !guest.is_empty()));
    let confidence = table.map_or(Confidence::Certain, Table::confidence);
    cx.find(finding.owner(first).owner(second).confidence(confidence));
}
