//! Compressed grains: each is a marker (place on the disk, length) and a zlib stream. In a true stream (directory at
//! the end) markers follow each other from the overhead to the end of the file, those of tables and footer among them;
//! QEMU writes the same grains behind tables at the front (VMDK-7, VMDK-8).
//!
//! Grains are not inflated unless asked for, and then through a small buffer: what a grain would become is never held.

use std::ops::Range;

use rangemap::RangeSet;

use crate::bytes::{le_u32, le_u64};
use crate::code::{Code, Severity};
use crate::context::Context;
use crate::finding::{Finding, Findings};
use crate::layout::Layout;
use crate::map::{Claim, Class, GuestState};
use crate::tally::in_windows;

use super::codes;
use super::geometry::{Geometry, SECTOR};
use super::header::Hosted;
use super::metadata::{MARKER, Metadata};
use super::share::{each_grain, tell_shared};
use super::survey::{Judge, Sums};
use super::tables::Halt;

/// Bytes of a grain's marker in front of its data.
const GRAIN_MARKER: u64 = 12;
/// Types of markers that are not grains.
mod marker {
    pub(super) const END_OF_STREAM: u32 = 0;
    pub(super) const GRAIN_TABLE: u32 = 1;
    pub(super) const GRAIN_DIRECTORY: u32 = 2;
    pub(super) const FOOTER: u32 = 3;
}
/// Separate guest ranges kept while a stream without tables is read.
const FOUND_MAX: usize = 1 << 17;

/// One marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marker {
    /// Data for the guest's disk at `guest`, `size` bytes of it.
    Grain {
        guest: u64,
        size: u64,
    },
    /// A grain table, a directory or a footer of `len` bytes.
    Part {
        kind: u32,
        len: u64,
    },
    End,
    /// Neither.
    Strange {
        value: u64,
        size: u32,
        kind: u32,
    },
}

/// The most bytes a grain may have in the file: zlib adds little to what can not be compressed.
fn longest(geo: &Geometry) -> u64 {
    geo.grain.saturating_mul(2)
}

fn parse(geo: &Geometry, bytes: &[u8]) -> Marker {
    let (value, size, kind) = (le_u64(bytes, 0), le_u32(bytes, 8), le_u32(bytes, 12));
    let strange = Marker::Strange { value, size, kind };
    if size != 0 {
        let guest = value.checked_mul(SECTOR).filter(|guest| *guest < geo.capacity);
        return match guest {
            Some(guest) if guest.checked_rem(geo.grain) == Some(0) && u64::from(size) <= longest(geo) => {
                Marker::Grain { guest, size: u64::from(size) }
            }
            _ => strange,
        };
    }
    let len = value.saturating_mul(SECTOR);
    let sectors = |bytes: u64| bytes.next_multiple_of(SECTOR);
    match kind {
        marker::END_OF_STREAM if value == 0 => Marker::End,
        marker::GRAIN_TABLE if len == sectors(geo.table_len()) => Marker::Part { kind, len },
        marker::GRAIN_DIRECTORY
            if len >= sectors(geo.gd_len()) && len <= sectors(geo.gd_len()).saturating_add(4096) =>
        {
            Marker::Part { kind, len }
        }
        marker::FOOTER if value == 1 => Marker::Part { kind, len },
        _ => strange,
    }
}

/// Place and end of a grain of `size` bytes, padding included.
fn extent(start: u64, size: u64, file: u64) -> Range<u64> {
    let end = start.saturating_add(GRAIN_MARKER).saturating_add(size);
    start..end.checked_next_multiple_of(SECTOR).unwrap_or(end).min(file.max(start))
}

/// Where the footer was found.
pub(super) struct Footer {
    pub(super) header: Hosted,
    /// Where its marker stands; the header is a sector behind it.
    pub(super) at: u64,
    /// Bytes behind the end marker.
    pub(super) behind: u64,
}

/// Looks for the footer: in the last three sectors, else a little in front of them.
pub(super) fn footer(cx: &mut Context<'_>) -> Option<Footer> {
    let file = cx.file_len();
    let start = (file / SECTOR).saturating_sub(128).saturating_mul(SECTOR);
    let bytes = cx.read(start, usize::try_from(file.saturating_sub(start)).unwrap_or(0), "the end of the stream");
    let sectors = bytes.len() / 512;
    for back in 3..=sectors {
        let from = sectors.saturating_sub(back).saturating_mul(512);
        let Some(part) = bytes.get(from..from.saturating_add(1536)) else { continue };
        let (marker, rest) = part.split_at_checked(512)?;
        let (header, end) = rest.split_at_checked(512)?;
        let is_marker = le_u32(marker, 8) == 0 && le_u32(marker, 12) == marker::FOOTER;
        let is_end = le_u64(end, 0) == 0 && le_u32(end, 8) == 0 && le_u32(end, 12) == marker::END_OF_STREAM;
        if is_marker && is_end && header.starts_with(b"KDMV") {
            let at = start.saturating_add(from as u64);
            return Some(Footer {
                header: Hosted::parse(header),
                at,
                behind: file.saturating_sub(at).saturating_sub(1536),
            });
        }
    }
    None
}

/// Follows the markers of a true stream; those that are not grains become claims. Says where they break off.
pub(super) fn follow(cx: &mut Context<'_>, geo: &Geometry, to: u64, meta: &mut Metadata<'_>) -> Result<(), Halt> {
    let file = cx.file_len();
    let (mut at, mut tables, mut directory) = (geo.overhead, 0u64, None);
    let mut broken = None;
    let mut steps = 0u64;
    while at < to {
        steps = steps.wrapping_add(1);
        if steps.is_multiple_of(1 << 14) {
            cx.progress("markers", at, to);
            if cx.stopped() {
                return Err(Halt::Stopped);
            }
        }
        let mut bytes = [0u8; 16];
        if cx.image.read_at(at, &mut bytes).is_err() {
            broken = Some("can not be read".to_owned());
            break;
        }
        match parse(geo, &bytes) {
            Marker::Grain { size, .. } => at = extent(at, size, u64::MAX).end,
            Marker::Part { kind, len } => {
                let place = at.saturating_add(SECTOR);
                meta.add(file, at..place, Class::Metadata, MARKER)?;
                match kind {
                    marker::GRAIN_TABLE => tables = tables.saturating_add(1),
                    marker::GRAIN_DIRECTORY => directory = Some(place),
                    _ => {
                        broken = Some("is a footer's, in the middle of the stream".to_owned());
                        break;
                    }
                }
                at = place.saturating_add(len);
            }
            Marker::End => {
                broken = Some("ends the stream in front of the footer".to_owned());
                break;
            }
            Marker::Strange { value, size, kind } => {
                broken = Some(format!("is none: value {value:#x}, size {size}, type {kind}"));
                break;
            }
        }
    }
    if let Some(why) = broken {
        let words = format!("the marker at {at:#x} {why}; up to {to:#x} nothing follows from the markers");
        cx.find(Finding::new(codes::MARKER, words).host(at..at.saturating_add(SECTOR)));
    } else if at != to {
        let words = format!("the last grain or table reaches to {at:#x}, the footer begins at {to:#x}");
        cx.find(Finding::new(codes::MARKER, words).host(to..to.saturating_add(SECTOR)));
    } else if directory != Some(geo.gd) {
        let words = match directory {
            Some(there) => format!("the directory's marker is in front of {there:#x}, the footer says {:#x}", geo.gd),
            None => format!("no marker announces the directory at {:#x} ({tables} tables were announced)", geo.gd),
        };
        cx.find(Finding::new(codes::MARKER, words).host(geo.gd.saturating_sub(SECTOR)..geo.gd));
    }
    Ok(())
}

/// Reads a stream whose end is gone: every grain is found by its marker, and the rest of the disk is lost.
pub(super) fn salvage(cx: &mut Context<'_>, geo: &Geometry, base: u64, front: Vec<Claim>) {
    let file = cx.file_len();
    let start = if geo.overhead == 0 { 128 * SECTOR } else { geo.overhead };
    cx.map_host(geo.grain, front.clone());
    let mut drawn = 0u64;
    let mut draw = |cx: &mut Context<'_>, range: Range<u64>, class: Class| {
        cx.add_host(drawn..range.start, Class::Free);
        cx.add_host(range.start.max(drawn)..range.end, class);
        drawn = drawn.max(range.end);
    };
    for claim in front {
        draw(cx, claim.range(), claim.class);
    }
    let mut found: RangeSet<u64> = RangeSet::new();
    let (mut at, mut grains, mut whole) = (start, 0u64, true);
    while at < file && !cx.stopped() {
        let mut bytes = [0u8; 16];
        if cx.image.read_at(at, &mut bytes).unwrap_or(0) < 16 {
            break;
        }
        match parse(geo, &bytes) {
            Marker::Grain { guest, size } => {
                let place = extent(at, size, u64::MAX);
                let range = guest..guest.saturating_add(geo.used(guest));
                if at.saturating_add(GRAIN_MARKER).saturating_add(size) > file {
                    let words = format!("the file ends within the grain at {at:#x}, which is {size} bytes long");
                    cx.find(Finding::new(codes::GRAIN_LENGTH, words).host(at..file).guest(range));
                    draw(cx, at..file, Class::Compressed);
                    break;
                }
                let good = !cx.options.data || {
                    let result = inflate(cx, geo, at.saturating_add(GRAIN_MARKER), size, guest);
                    if let Err(why) = &result {
                        let words = format!("the grain at {at:#x} {why}");
                        cx.find(Finding::new(codes::GRAIN_INFLATE, words).host(place.clone()).guest(range.clone()));
                    }
                    result.is_ok()
                };
                if good {
                    grains = grains.saturating_add(1);
                    if found.len() < FOUND_MAX || found.overlaps(&range) {
                        found.insert(range);
                    } else {
                        whole = false;
                    }
                }
                draw(cx, place.clone(), Class::Compressed);
                at = place.end;
            }
            Marker::Part { kind, len } => {
                let end = at.saturating_add(SECTOR).saturating_add(len);
                draw(cx, at..at.saturating_add(SECTOR), Class::Metadata);
                let class = match kind {
                    marker::GRAIN_TABLE => Class::L2,
                    marker::GRAIN_DIRECTORY => Class::L1,
                    _ => Class::Copy,
                };
                draw(cx, at.saturating_add(SECTOR)..end, class);
                at = end;
            }
            Marker::End => break,
            Marker::Strange { value, size, kind } => {
                let words = format!("the marker at {at:#x} is none: value {value:#x}, size {size}, type {kind}");
                cx.find(Finding::new(codes::MARKER, words).host(at..at.saturating_add(SECTOR)));
                break;
            }
        }
    }
    draw(cx, file..file, Class::Free);
    if !whole {
        cx.could_not("guest ranges of the stream: there are too many separate ones to keep apart");
    }
    let last = found.iter().next_back().map_or(0, |range| range.end);
    for range in found.iter() {
        cx.add_guest(range.start.saturating_add(base)..range.end.saturating_add(base), GuestState::Compressed);
    }
    // What the stream did not get to is lost; in between, what has no grain was never allocated (streams are written in
    // the order of the disk).
    for gap in found.gaps(&(0..last)) {
        cx.add_guest(gap.start.saturating_add(base)..gap.end.saturating_add(base), GuestState::Unallocated);
    }
    cx.add_guest(last.saturating_add(base)..geo.capacity.saturating_add(base), GuestState::Damaged);
    cx.lose(last..geo.capacity);
    cx.numbers.allocated_clusters = Some(grains);
    cx.numbers.compressed_clusters = Some(grains);
    let bytes = found.iter().fold(0u64, |sum, range| sum.saturating_add(range.end.saturating_sub(range.start)));
    let words = format!(
        "no footer at the end of the stream; its markers still give {grains} grains, {bytes} bytes up to guest offset \
         {last:#x}; nothing is known of {last:#x}..{:#x}",
        geo.capacity
    );
    cx.find(Finding::new(codes::FOOTER, words).host(file.saturating_sub(1536)..file).guest(last..geo.capacity));
}

/// What is wrong with single grains, folded: neighbours on the disk with the same flaw are one finding.
struct Flaws {
    found: Findings,
    run: Option<(&'static Code, Finding)>,
    lost: Vec<Range<u64>>,
}

impl Flaws {
    fn add(&mut self, code: &'static Code, host: Range<u64>, guest: Range<u64>, words: String) {
        match self.lost.last_mut() {
            Some(last) if last.end == guest.start => last.end = guest.end,
            _ => self.lost.push(guest.clone()),
        }
        if let Some((of, run)) = &mut self.run
            && *of == code
            && let Some(last) = run.guest.last_mut()
            && last.end == guest.start
        {
            last.end = guest.end;
            run.count = run.count.saturating_add(1);
            return;
        }
        self.flush();
        self.run = Some((code, Finding::new(code, words).host(host).guest(guest)));
    }

    fn flush(&mut self) {
        if let Some((_, mut run)) = self.run.take() {
            if run.count > 1 {
                run.what = format!("{} grains in a row: {}", run.count, run.what);
            }
            self.found.add(run);
        }
    }
}

/// Reads the marker of every grain, tells what is wrong, and draws the map of the file.
pub(super) fn inspect(cx: &mut Context<'_>, judge: Judge<'_, '_>, sums: &Sums) -> Result<(), Halt> {
    let file = judge.file;
    let geo = judge.geo;
    let budget = cx.budget;
    let reach = longest(geo).saturating_add(2 * SECTOR);
    let mut halt = None;
    let done = in_windows(file.div_ceil(SECTOR), |window| {
        if halt.is_some() {
            return Ok(());
        }
        let bytes = window.start.saturating_mul(SECTOR)..window.end.saturating_mul(SECTOR).min(file);
        let mut layout = Layout::new(budget);
        for (range, class) in &judge.meta.pieces {
            let piece = range.start.max(bytes.start)..range.end.min(bytes.end);
            layout.add(piece.start, piece.end.saturating_sub(piece.start), *class, 0)?;
        }
        let mut flaws = Flaws { found: Findings::new(cx.options.max_findings), run: None, lost: Vec::new() };
        let result = each_grain(cx, judge, sums, "grains", |cx, guest, start| {
            // A grain that began in front of the window may reach into it.
            if start >= bytes.end || start.saturating_add(reach) < bytes.start {
                return Ok(());
            }
            let place = grain(cx, geo, guest, start, bytes.contains(&start).then_some(&mut flaws));
            if let Some(place) = place {
                layout.add(place.start, place.end.saturating_sub(place.start), Class::Compressed, guest)?;
            }
            Ok(())
        });
        match result {
            Ok(()) => {}
            Err(Halt::Full) => return Err(crate::budget::Full),
            Err(Halt::Stopped) => {
                halt = Some(Halt::Stopped);
                return Ok(());
            }
        }
        flaws.flush();
        cx.findings.merge(flaws.found);
        for range in flaws.lost {
            cx.lose(range);
        }
        let (mut pairs, mut pieces) = (Vec::new(), Vec::new());
        layout.sweep(
            bytes.clone(),
            |first, second, shared| {
                if bytes.contains(&shared.start) {
                    pairs.push((*first, *second, shared));
                }
            },
            |range, class| pieces.push((range, class.unwrap_or(Class::Free))),
        );
        for (range, class) in pieces {
            cx.add_host(range, class);
        }
        for (first, second, shared) in pairs {
            tell_pair(cx, judge, &first, &second, shared);
        }
        Ok(())
    });
    match halt {
        Some(halt) => Err(halt),
        None => Ok(done?),
    }
}

/// Two grains, or a grain and metadata, that share bytes.
fn tell_pair(cx: &mut Context<'_>, judge: Judge<'_, '_>, first: &Claim, second: &Claim, shared: Range<u64>) {
    let geo = judge.geo;
    let mut lost = Vec::new();
    match (first.class.is_data(), second.class.is_data()) {
        (true, true) => lost = tell_shared(cx, geo, first, second, shared),
        (false, false) => {}
        _ => {
            let data = if first.class.is_data() { first } else { second };
            let guest = data.index..data.index.saturating_add(geo.used(data.index));
            let words = format!(
                "the compressed grain of guest {:#x}..{:#x} shares {:#x}..{:#x} with metadata",
                guest.start, guest.end, shared.start, shared.end
            );
            let mut finding = Finding::new(codes::GTE_METADATA, words).host(shared.clone()).guest(guest.clone());
            finding.owners = judge.meta.owners(geo, &shared);
            // A marker's table is announced in front of it: begun there by mistake, the entry itself was told already.
            if judge.meta.around(data.start).is_err() {
                finding = finding.severity(Severity::Warning);
            }
            cx.find(finding);
            lost.push(guest);
        }
    }
    for range in lost {
        cx.lose(range);
    }
}

/// Looks at one grain; its place if its marker can be believed.
fn grain(
    cx: &mut Context<'_>,
    geo: &Geometry,
    guest: u64,
    start: u64,
    flaws: Option<&mut Flaws>,
) -> Option<Range<u64>> {
    let range = guest..guest.saturating_add(geo.used(guest));
    let file = cx.file_len();
    if !geo.markers {
        // Without a marker the length is known to zlib alone.
        if cx.options.data
            && let Some(flaws) = flaws
            && let Err(why) = inflate(cx, geo, start, longest(geo), guest)
        {
            let words = format!("the grain at {start:#x} {why}");
            flaws.add(codes::GRAIN_INFLATE, start..start.saturating_add(SECTOR), range, words);
        }
        return Some(start..start.saturating_add(SECTOR));
    }
    let mut bytes = [0u8; 12];
    let read = cx.image.read_at(start, &mut bytes);
    let (lba, size) = (le_u64(&bytes, 0), u64::from(le_u32(&bytes, 8)));
    let here = start..start.saturating_add(SECTOR);
    let wrong = match read {
        Err(error) => Some((codes::GRAIN_LENGTH, format!("the grain marker at {start:#x} can not be read: {error}"))),
        Ok(_) if size == 0 || size > longest(geo) => {
            let words = format!("the grain at {start:#x} is {size} bytes long where a grain has {}", geo.grain);
            Some((codes::GRAIN_LENGTH, words))
        }
        Ok(_) if start.saturating_add(GRAIN_MARKER).saturating_add(size) > file => {
            let words = format!("the file ({file:#x}) ends within the grain at {start:#x}, which is {size} bytes long");
            Some((codes::GRAIN_LENGTH, words))
        }
        Ok(_) if lba.checked_mul(SECTOR) != Some(guest) => {
            let words = format!(
                "the marker at {start:#x} says sector {lba}, the table that points at it says sector {}",
                guest / SECTOR
            );
            Some((codes::GRAIN_LBA, words))
        }
        Ok(_) => None,
    };
    match (wrong, flaws) {
        (Some((code, words)), Some(flaws)) => {
            flaws.add(code, here, range, words);
            None
        }
        (Some(_), None) => None,
        (None, flaws) => {
            if cx.options.data
                && let Some(flaws) = flaws
                && let Err(why) = inflate(cx, geo, start.saturating_add(GRAIN_MARKER), size, guest)
            {
                let words = format!("the grain at {start:#x} {why}");
                flaws.add(codes::GRAIN_INFLATE, extent(start, size, file), range, words);
            }
            Some(extent(start, size, file))
        }
    }
}

/// Inflates a grain and throws the bytes away: whether it becomes one grain. Never more than one grain is inflated.
fn inflate(cx: &Context<'_>, geo: &Geometry, at: u64, size: u64, guest: u64) -> Result<(), String> {
    let mut zlib = flate2::Decompress::new(true);
    let (mut input, mut output) = (vec![0u8; 32 << 10], vec![0u8; 64 << 10]);
    let end = at.saturating_add(size).min(cx.file_len());
    let (mut from, mut there) = (0usize, 0usize);
    let mut next = at;
    loop {
        if from == there && next < end {
            let want = usize::try_from(end.saturating_sub(next)).unwrap_or(usize::MAX).min(input.len());
            let buf = input.get_mut(..want).unwrap_or_default();
            there = cx.image.read_at(next, buf).map_err(|error| format!("can not be read: {error}"))?;
            from = 0;
            next = next.saturating_add(there as u64);
        }
        let (before_in, before_out) = (zlib.total_in(), zlib.total_out());
        let piece = input.get(from..there).unwrap_or_default();
        let status = zlib
            .decompress(piece, &mut output, flate2::FlushDecompress::None)
            .map_err(|error| format!("does not inflate: {error}"))?;
        let taken = zlib.total_in().saturating_sub(before_in);
        from = from.saturating_add(usize::try_from(taken).unwrap_or(0));
        let total = zlib.total_out();
        if total > geo.grain {
            return Err(format!("inflates to more than a grain ({} bytes)", geo.grain));
        }
        if status == flate2::Status::StreamEnd {
            // The last grain may end where the disk does.
            let used = geo.used(guest);
            return match (used..=geo.grain).contains(&total) {
                true => Ok(()),
                false => Err(format!("inflates to {total} bytes instead of {}", geo.grain)),
            };
        }
        if taken == 0 && total == before_out && (from < there || next >= end) {
            return Err(format!("ends within its compressed data, after {total} bytes"));
        }
    }
}
