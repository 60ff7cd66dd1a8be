//! The block table and what it points at: twice read, once entry by entry in guest order, once block by block in file
//! order.

use std::ops::Range;

use super::overwritten::Overwritten;
use super::{FREE, codes, confidence, entries};
use crate::budget::Full;
use crate::bytes::is_zero;
use crate::context::Context;
use crate::finding::{Confidence, Finding};
use crate::holes;
use crate::layout::{Layout, window_by_window};
use crate::map::{Claim, Class, GuestState, Owner};

/// Bytes of the table read at once.
const CHUNK: u64 = 1 << 20;

/// So many sector bitmaps are listed as metadata of their own: memory is not asked for a million of them.
const BITMAPS_LISTED: usize = 1 << 16;

/// The block table, with everything that gives its entries a meaning.
pub(super) struct Table {
    pub(super) at: u64,
    /// Entries that are in the file.
    pub(super) entries: u64,
    /// Bytes of a block; a power of two of at least 512.
    pub(super) block: u64,
    /// Bytes of the sector bitmap before each block.
    pub(super) bitmap: u64,
    /// Bytes of the guest's disk.
    pub(super) size: u64,
    /// Whether it is all there and where the header says.
    pub(super) whole: bool,
    pub(super) differencing: bool,
}

impl Table {
    fn len(&self) -> u64 {
        self.entries.saturating_mul(4)
    }

    /// Blocks of the disk.
    fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block)
    }

    /// The block that holds a byte of the disk.
    fn block_at(&self, guest: u64) -> u64 {
        guest.checked_div(self.block).unwrap_or(0)
    }

    /// Bytes of the disk that a block holds.
    fn guest(&self, index: u64) -> Range<u64> {
        let start = index.saturating_mul(self.block);
        start.min(self.size)..start.saturating_add(self.block).min(self.size)
    }

    /// Where an entry is in the file.
    fn place(&self, index: u64) -> u64 {
        self.at.saturating_add(index.saturating_mul(4))
    }

    /// Bitmap and block together, in the file.
    fn extent(&self, entry: u32) -> Range<u64> {
        let start = u64::from(entry).saturating_mul(512);
        start..start.saturating_add(self.bitmap).saturating_add(self.block)
    }

    /// What an entry is by itself.
    fn judge(&self, index: u64, entry: u32, len: u64) -> Judged {
        let extent = self.extent(entry);
        match entry {
            FREE => Judged::Free,
            _ if index >= self.blocks() => Judged::Stray,
            _ if extent.start < self.at.saturating_add(self.len()) => Judged::Inside,
            _ if extent.start >= len => Judged::Outside,
            _ if extent.end > len => Judged::Cut,
            _ => Judged::Sound,
        }
    }

    /// Whether an entry names a place that no block can be at.
    fn flawed(&self, cx: &mut Context<'_>) -> bool {
        let (len, mut flawed) = (cx.file_len(), false);
        let _ = self.read(cx, |_, piece| {
            flawed |= match piece {
                Piece::Entries(first, bytes) => {
                    (first..).zip(entries(bytes)).any(|(index, entry)| self.judge(index, entry, len).flawed())
                }
                Piece::Zeroes(range) => self.judge(range.start, 0, len).flawed(),
            };
            Ok(())
        });
        flawed
    }

    /// Calls `each` with every piece of the table.
    fn read(
        &self,
        cx: &mut Context<'_>,
        mut each: impl FnMut(&mut Context<'_>, Piece<'_>) -> Result<(), Full>,
    ) -> Result<(), Full> {
        let mut start = 0;
        while start < self.entries && !cx.stopped() {
            let stretch = holes::stretch(cx.image, self.at, 4, start..self.entries, CHUNK / 4);
            start = stretch.entries.end;
            if stretch.hole {
                each(cx, Piece::Zeroes(stretch.entries))?;
                continue;
            }
            let first = stretch.entries.start;
            let len = usize::try_from(start.saturating_sub(first).saturating_mul(4)).unwrap_or(0);
            let bytes = cx.read(self.place(first), len, "the block table");
            each(cx, Piece::Entries(first, &bytes))?;
        }
        Ok(())
    }
}

/// A piece of the table.
enum Piece<'b> {
    /// The index of its first entry, and its bytes.
    Entries(u64, &'b [u8]),
    /// Entries in a hole of the file. Zero is not free here: it is sector 0, which is the footer's copy.
    Zeroes(Range<u64>),
}

/// Whether a table read where it usually is makes sense: something is mapped, and nothing outside the file.
pub(super) fn plausible(cx: &mut Context<'_>, table: &Table) -> bool {
    let len = cx.file_len();
    let (mut mapped, mut bad) = (0u64, 0u64);
    let _ = table.read(cx, |_, piece| {
        let bytes = match piece {
            Piece::Entries(_, bytes) => bytes,
            Piece::Zeroes(_) => {
                bad = bad.saturating_add(1);
                return Ok(());
            }
        };
        for entry in entries(bytes).filter(|entry| *entry != FREE) {
            let extent = table.extent(entry);
            let fits = extent.start >= table.at.saturating_add(table.len()) && extent.end <= len;
            let count = if fits { &mut mapped } else { &mut bad };
            *count = count.saturating_add(1);
        }
        Ok(())
    });
    mapped > 0 && bad == 0
}

pub(super) fn analyse(cx: &mut Context<'_>, table: &Table, end: Option<&Range<u64>>, mut fixed: Vec<Claim>) {
    fixed.push(Claim { start: table.at, len: table.len(), class: Class::BlockMap, index: 0 });
    cx.map_guest(table.size, table.block);
    // Who lies where comes first: it says which blocks are not their own any more.
    place(cx, table, end, &fixed);
    let lost = cx.lost().ranges;
    walk(cx, table, &lost);
    if cx.options.data && !table.differencing {
        hidden(cx, table, &lost);
    }
}

/// What an entry is, apart from what others are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Judged {
    Free,
    Sound,
    /// Not a byte of the block is in the file.
    Outside,
    /// The block's end is not in the file.
    Cut,
    /// In the headers or in the table.
    Inside,
    /// Of no block of the disk.
    Stray,
}

impl Judged {
    fn flawed(self) -> bool {
        matches!(self, Self::Outside | Self::Cut | Self::Inside)
    }
}

/// Equal entries that follow each other.
struct Run {
    judged: Judged,
    first: u64,
    count: u64,
    /// The first entry's value.
    entry: u32,
}

/// Entry by entry, in the order of the guest's disk.
fn walk(cx: &mut Context<'_>, table: &Table, lost: &[Range<u64>]) {
    let len = cx.file_len();
    let blocks = table.blocks();
    let mut run: Option<Run> = None;
    let mut overwritten = Overwritten::new();
    let (mut allocated, mut fragmented, mut before) = (0u64, 0u64, None);
    let mut image_end = table.at.saturating_add(table.len());
    let next = |cx: &mut Context<'_>, open: &mut Option<Run>, more: Run| match open {
        Some(run) if run.judged == more.judged => run.count = run.count.saturating_add(more.count),
        _ => {
            if let Some(done) = open.replace(more) {
                close(cx, table, &done, lost);
            }
        }
    };
    let _ = table.read(cx, |cx, piece| {
        let (first, bytes) = match piece {
            Piece::Entries(first, bytes) => (first, bytes),
            Piece::Zeroes(range) => {
                let disk_end = blocks.clamp(range.start, range.end);
                for part in [range.start..disk_end, disk_end..range.end] {
                    if part.is_empty() {
                        continue;
                    }
                    let judged = table.judge(part.start, 0, len);
                    overwritten.add_all(table.at, 4, part.clone(), judged.flawed(), |index| table.guest(index));
                    next(
                        cx,
                        &mut run,
                        Run { judged, first: part.start, count: part.end.saturating_sub(part.start), entry: 0 },
                    );
                }
                return Ok(());
            }
        };
        for (index, entry) in (first..).zip(entries(bytes)) {
            let extent = table.extent(entry);
            let judged = table.judge(index, entry, len);
            if entry != FREE {
                let at = table.place(index);
                overwritten.add(at..at.saturating_add(4), judged.flawed(), table.guest(index));
            }
            if matches!(judged, Judged::Sound | Judged::Cut) {
                allocated = allocated.saturating_add(1);
                if before.is_some_and(|end| end != extent.start) {
                    fragmented = fragmented.saturating_add(1);
                }
                before = Some(extent.end);
                image_end = image_end.max(extent.end);
            }
            if judged == Judged::Cut {
                // The bitmap comes first: what is there of the rest is the start of the block.
                let there = len.saturating_sub(extent.start.saturating_add(table.bitmap));
                let guest = table.guest(index);
                cx.lose(guest.start.saturating_add(there).min(guest.end)..guest.end);
            }
            next(cx, &mut run, Run { judged, first: index, count: 1, entry });
        }
        cx.progress("block table", first.saturating_mul(4), table.len());
        Ok(())
    });
    if let Some(done) = run {
        close(cx, table, &done, lost);
    }
    let image = cx.image;
    overwritten.tell(cx, image, &[codes::BAT_INSIDE.name, codes::BAT_PAST_END.name]);
    // What the table has no entry for any more.
    cx.add_guest(table.guest(table.entries).start..table.size, GuestState::Damaged);
    cx.numbers.total_clusters = Some(blocks);
    cx.numbers.allocated_clusters = Some(allocated);
    cx.numbers.fragmented_clusters = Some(fragmented);
    cx.numbers.image_end_offset = Some(image_end.min(len).div_ceil(512).saturating_add(1).saturating_mul(512).min(len));
}

/// Says what a run of equal entries is.
fn close(cx: &mut Context<'_>, table: &Table, run: &Run, lost: &[Range<u64>]) {
    let last = run.first.saturating_add(run.count);
    let guest = table.guest(run.first).start..table.guest(last.saturating_sub(1)).end;
    let host = table.place(run.first)..table.place(last);
    let which = match run.count {
        1 => format!("block table entry {} is sector {:#x}", run.first, run.entry),
        count => {
            format!("block table entries {}..{last} ({count} entries, the first is sector {:#x})", run.first, run.entry)
        }
    };
    let found = |code, words: String, guest: Range<u64>| {
        Finding::new(code, words).host(host.clone()).guest(guest).count(run.count).confidence(confidence(table))
    };
    let len = cx.file_len();
    match run.judged {
        Judged::Free => cx.add_guest(guest, GuestState::Unallocated),
        Judged::Sound => add_data(cx, guest, lost),
        Judged::Outside => {
            cx.find(found(codes::BAT_PAST_END, format!("{which}: past the end of the file ({len:#x})"), guest.clone()));
            cx.lose(guest.clone());
            cx.add_guest(guest, GuestState::Damaged);
        }
        Judged::Cut => {
            let words = format!("{which}: the block's end is past the end of the file ({len:#x})");
            cx.find(found(codes::BAT_PAST_END, words, guest.clone()));
            cx.add_guest(guest, GuestState::Damaged);
        }
        Judged::Inside => {
            let words = format!(
                "{which}: in the headers or the table, which ends at {:#x}",
                table.at.saturating_add(table.len())
            );
            cx.find(found(codes::BAT_INSIDE, words, guest.clone()));
            cx.lose(guest.clone());
            cx.add_guest(guest, GuestState::Damaged);
        }
        Judged::Stray => {
            let words = format!("{which}: the disk has {} blocks only", table.blocks());
            let finding = Finding::new(codes::BAT_STRAY, words).host(host).count(run.count);
            cx.find(finding.confidence(confidence(table)));
        }
    }
}

/// Data, but for what somebody else claims too.
fn add_data(cx: &mut Context<'_>, guest: Range<u64>, lost: &[Range<u64>]) {
    let mut at = guest.start;
    let from = lost.partition_point(|range| range.end <= guest.start);
    for range in lost.get(from..).unwrap_or_default().iter().take_while(|range| range.start < guest.end) {
        cx.add_guest(at..range.start.max(at), GuestState::Data);
        cx.add_guest(range.start.max(at)..range.end.min(guest.end), GuestState::Damaged);
        at = range.end.min(guest.end);
    }
    cx.add_guest(at..guest.end, GuestState::Data);
}

/// Block by block, in the order of the file: who shares bytes with whom, and what nobody claims.
fn place(cx: &mut Context<'_>, table: &Table, end: Option<&Range<u64>>, fixed: &[Claim]) {
    let len = cx.file_len();
    let budget = cx.budget;
    let mut claims: Vec<_> = fixed.iter().filter(|claim| claim.start < len).copied().collect();
    claims.sort_unstable();
    cx.map_host(table.block, claims);
    let tail = end.map_or(len, |range| range.start);
    let flawed = table.flawed(cx);
    let mut bitmaps = Bitmaps::default();
    let fill =
        |cx: &mut Context<'_>, window: &Range<u64>, layout: &mut Layout<'_>| fill(cx, table, fixed, window, layout);
    let done = window_by_window(budget, len, 512, cx, fill, |cx, window, layout, complete| {
        let whole = table.whole && complete && !cx.stopped();
        if !complete {
            cx.could_not(format!(
                "all claims between {:#x} and {:#x}: more than memory holds",
                window.start, window.end
            ));
        }
        sweep(cx, table, window, layout, Rest { whole, flawed, tail });
        bitmaps.list(cx, window, layout);
    });
    if let Some(map) = &mut cx.host {
        map.claims.sort_unstable();
    }
    bitmaps.tell(cx);
    if done.is_err() {
        cx.could_not("who lies where in the file: not enough memory; allow more with --memory");
    }
}

/// Everything that reaches into the window.
fn fill(
    cx: &mut Context<'_>,
    table: &Table,
    fixed: &[Claim],
    window: &Range<u64>,
    layout: &mut Layout<'_>,
) -> Result<(), Full> {
    let reaches = |range: &Range<u64>| range.start < window.end && range.end > window.start;
    for claim in fixed.iter().filter(|claim| reaches(&claim.range())) {
        layout.add(claim.start, claim.len, claim.class, claim.index)?;
    }
    table.read(cx, |_, piece| {
        // What is zero lies in the headers: so for holes, and for entries below.
        let Piece::Entries(first, bytes) = piece else { return Ok(()) };
        for (index, entry) in (first..).zip(entries(bytes)).filter(|(_, entry)| *entry != FREE) {
            let extent = table.extent(entry);
            // What lies in the headers is told by itself; a stray entry may say anything.
            if !reaches(&extent) || extent.start < table.at.saturating_add(table.len()) {
                continue;
            }
            let data = extent.start.saturating_add(table.bitmap);
            layout.add(extent.start, table.bitmap, Class::BitmapData, index)?;
            layout.add(data, table.block, Class::Data, index.saturating_mul(table.block))?;
        }
        Ok(())
    })
}

/// What is known of stretches that nobody claims.
#[derive(Clone, Copy)]
struct Rest {
    /// Whether every claim is known.
    whole: bool,
    /// Whether entries are damaged: their blocks may be in such a stretch.
    flawed: bool,
    /// What lies behind this is no room for blocks.
    tail: u64,
}

/// An overlap that may go on with the next block.
struct Shared {
    first: Claim,
    second: Claim,
    host: Range<u64>,
    guest: [Option<Range<u64>>; 2],
    count: u64,
}

fn sweep(cx: &mut Context<'_>, table: &Table, window: &Range<u64>, layout: &mut Layout<'_>, rest: Rest) {
    let mut overlaps: Vec<Shared> = Vec::new();
    let mut more = 0u64;
    let cell = std::cell::RefCell::new(&mut *cx);
    layout.sweep(
        window.clone(),
        |first, second, host| {
            // Bitmaps share a place where their blocks do. What began in the window before was told there.
            let bitmaps = first.class == Class::BitmapData && second.class == Class::BitmapData;
            if bitmaps || host.is_empty() || !window.contains(&host.start) {
                return;
            }
            let guest = [guest_of(table, first, &host), guest_of(table, second, &host)];
            for lost in guest.iter().flatten() {
                cell.borrow_mut().lose(lost.clone());
            }
            if let Some(last) = overlaps.last_mut()
                && last.first.class == first.class
                && last.second.class == second.class
                && host.start.saturating_sub(last.host.end) <= table.bitmap
                && last.guest.iter().zip(&guest).all(|(a, b)| joins(a.as_ref(), b.as_ref()))
            {
                last.host.end = host.end;
                last.count = last.count.saturating_add(1);
                for (all, one) in last.guest.iter_mut().zip(guest) {
                    if let (Some(all), Some(one)) = (all, one) {
                        all.end = one.end;
                    }
                }
                return;
            }
            if overlaps.len() >= 10_000 {
                more = more.saturating_add(1);
                return;
            }
            overlaps.push(Shared { first: *first, second: *second, host, guest, count: 1 });
        },
        |range, class| {
            let cx = &mut **cell.borrow_mut();
            match class {
                Some(class) => cx.add_host(range, class),
                None if range.start >= rest.tail => cx.add_host(range, Class::Unknown),
                None => hole(cx, table, range, rest),
            }
        },
    );
    for shared in overlaps {
        report(cx, table, shared);
    }
    if more > 0 {
        cx.find(Finding::new(codes::BAT_OVERLAP, format!("{more} more overlaps in {window:x?}")).count(more));
    }
}

/// How many sector bitmaps were listed, and how many there was no room for.
#[derive(Default)]
struct Bitmaps {
    listed: usize,
    left_out: u64,
}

impl Bitmaps {
    /// Lists those that begin in the window.
    fn list(&mut self, cx: &mut Context<'_>, window: &Range<u64>, layout: &Layout<'_>) {
        let Some(map) = &mut cx.host else { return };
        let ours = |claim: &Claim| claim.class == Class::BitmapData && window.contains(&claim.start);
        for claim in layout.metadata().into_iter().filter(ours) {
            if self.listed < BITMAPS_LISTED {
                map.claims.push(claim);
                self.listed = self.listed.saturating_add(1);
            } else {
                self.left_out = self.left_out.saturating_add(1);
            }
        }
    }

    fn tell(&self, cx: &mut Context<'_>) {
        if self.left_out > 0 {
            let all = self.left_out.saturating_add(self.listed as u64);
            cx.not_checked(format!(
                "{} of the {all} sector bitmaps are counted in the map, but not listed one by one: a metadump lacks them",
                self.left_out
            ));
        }
    }
}

/// Bytes of the disk that lie in a part of what somebody claims.
fn guest_of(table: &Table, claim: &Claim, host: &Range<u64>) -> Option<Range<u64>> {
    match claim.class {
        Class::Data => {
            let at = |host: u64| claim.index.saturating_add(host.saturating_sub(claim.start)).min(table.size);
            Some(at(host.start)..at(host.end.min(claim.range().end)))
        }
        Class::BitmapData => Some(table.guest(claim.index)),
        _ => None,
    }
}

fn joins(all: Option<&Range<u64>>, one: Option<&Range<u64>>) -> bool {
    match (all, one) {
        (Some(all), Some(one)) => all.end == one.start,
        (None, None) => true,
        _ => false,
    }
}

fn owner(table: &Table, claim: &Claim, guest: Option<Range<u64>>) -> Owner {
    let label = match claim.class {
        Class::Data => format!("block {}", table.block_at(guest.as_ref().map_or(0, |guest| guest.start))),
        Class::BitmapData => format!("sector bitmap of block {}", claim.index),
        Class::BlockMap => "the block table".to_owned(),
        Class::Copy => "the footer's copy".to_owned(),
        Class::Metadata => format!("parent locator {}", claim.index),
        _ if claim.len == super::dynamic::LEN as u64 => "the dynamic disk header".to_owned(),
        _ => "the footer".to_owned(),
    };
    Owner { class: claim.class, host: claim.range(), guest, label }
}

fn report(cx: &mut Context<'_>, table: &Table, shared: Shared) {
    let [of_first, of_second] = shared.guest;
    let first = owner(table, &shared.first, of_first.clone());
    let second = owner(table, &shared.second, of_second.clone());
    let words =
        format!("{} and {} both claim {:#x}..{:#x}", first.label, second.label, shared.host.start, shared.host.end);
    let mut finding = Finding::new(codes::BAT_OVERLAP, words).host(shared.host).count(shared.count);
    finding.guest.extend([of_first, of_second].into_iter().flatten().filter(|guest| !guest.is_empty()));
    cx.find(finding.owner(first).owner(second).confidence(confidence(table)));
}

/// A stretch that nobody claims: padding, or whole blocks that are lost to everybody.
fn hole(cx: &mut Context<'_>, table: &Table, range: Range<u64>, rest: Rest) {
    let size = range.end.saturating_sub(range.start);
    let blocks = size.checked_div(table.bitmap.saturating_add(table.block)).unwrap_or(0);
    if !rest.whole {
        return cx.add_host(range, Class::Unknown);
    }
    if blocks == 0 {
        return cx.add_host(range, Class::Reserved);
    }
    let room = if blocks == 1 { "one block".to_owned() } else { format!("{blocks} blocks") };
    let words = format!("no entry names {:#x}..{:#x}: room for {room}", range.start, range.end);
    if rest.flawed {
        let finding = Finding::new(codes::BLOCK_ORPHAN, words).host(range.clone()).count(blocks);
        cx.find(finding.confidence(Confidence::Likely));
        return cx.add_host(range, Class::Unknown);
    }
    cx.find(Finding::new(codes::BLOCK_LEAKED, words).host(range.clone()).count(blocks));
    cx.add_host(range, Class::Leaked);
}

/// Data in sectors that the sector bitmap calls unused; it needs every bitmap, and the blocks of those that are not
/// full.
fn hidden(cx: &mut Context<'_>, table: &Table, lost: &[Range<u64>]) {
    let len = cx.file_len();
    let size = usize::try_from(table.bitmap).unwrap_or(0);
    // A bitmap of the largest block there can be has half a megabyte.
    if cx.budget.left() < table.bitmap.saturating_add(CHUNK) {
        return cx.not_checked("sector bitmaps: not enough memory");
    }
    let mut known = None;
    let _ = table.read(cx, |cx, piece| {
        let Piece::Entries(first, bytes) = piece else { return Ok(()) };
        for (index, entry) in (first..).zip(entries(bytes)) {
            let extent = table.extent(entry);
            let guest = table.guest(index);
            let next = lost.get(lost.partition_point(|range| range.end <= guest.start));
            // A bitmap somebody else claims too says nothing.
            let ours = next.is_none_or(|range| range.start >= guest.end);
            let sound = table.judge(index, entry, len) == Judged::Sound;
            // A block in a hole has no data that could be hidden.
            if !sound || !ours || cx.stopped() || holes::is_hole(cx.image, &extent, &mut known) {
                continue;
            }
            let bitmap = cx.read(extent.start, size, "a sector bitmap");
            let used = usize::try_from(table.block / 4096).unwrap_or(0);
            if bitmap.get(..used).unwrap_or(&bitmap).iter().all(|byte| *byte == 0xff) {
                continue;
            }
            let found = hidden_in(cx, table, extent.start.saturating_add(table.bitmap), &bitmap);
            if let Some((count, sector)) = found {
                let start = table.guest(index).start.saturating_add(sector.saturating_mul(512));
                let words = format!(
                    "block {index}: {count} sectors hold data though its sector bitmap at {:#x} says none",
                    extent.start
                );
                let end = extent.start.saturating_add(table.bitmap);
                let finding = Finding::new(codes::BITMAP_HIDES, words).host(extent.start..end).count(count);
                cx.find(finding.guest(start..table.guest(index).end.max(start)).confidence(Confidence::Certain));
            }
        }
        Ok(())
    });
}

/// How many sectors with a clear bit hold data, and the first of them.
fn hidden_in(cx: &mut Context<'_>, table: &Table, data: u64, bitmap: &[u8]) -> Option<(u64, u64)> {
    let sectors = table.block / 512;
    let mut sector = 0u64;
    let mut found: Option<(u64, u64)> = None;
    while sector < sectors {
        let stretch = holes::stretch(cx.image, data, 512, sector..sectors, 128);
        if stretch.hole {
            sector = stretch.entries.end;
            continue;
        }
        let count = stretch.entries.end.saturating_sub(sector);
        let at = data.saturating_add(sector.saturating_mul(512));
        let bytes = cx.read(at, usize::try_from(count.saturating_mul(512)).unwrap_or(0), "a block");
        for (of, bytes) in (sector..).zip(bytes.chunks(512)) {
            // The first sector is the highest bit of the first byte.
            let byte = usize::try_from(of / 8).ok().and_then(|at| bitmap.get(at)).copied().unwrap_or(0xff);
            if byte & (0x80 >> (of % 8)) == 0 && !is_zero(bytes) {
                let (all, first) = found.unwrap_or((0, of));
                found = Some((all.saturating_add(1), first));
            }
        }
        sector = sector.saturating_add(count);
    }
    found
}
