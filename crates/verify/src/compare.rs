//! Two whole images against each other, once.
//!
//! [`compare`] looks at one range of two nodes. A program that wants to use several processors [splits](split) the
//! images, gives each thread its own graph and its own range, and [merges](Report::merge) the reports.
//!
//! Extents that both sides call zero are not read; where one side does, the other alone is read and must hold zeroes.
//! Data is read in [`CHUNK`]s, the next one on its way while the last one is compared, or at once where both nodes can
//! ([`read_now`](BlockDevice::read_now)), in pieces small enough to be compared while they are in the processor's
//! cache.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use blkproof_block::buffer::is_zero;
use blkproof_block::{BlockDevice, BlockStatus, ByteRange, IoError};
use futures_lite::future::{poll_fn, zip};

use crate::diagnose::differing;
use crate::{SECTOR, len_of};

/// Bytes of one read that has to wait for its device.
pub const CHUNK: u64 = 1 << 20;

/// Bytes of one read that is answered at once.
const CHUNK_NOW: u64 = 128 << 10;

/// Failures after which a comparison gives up.
const ERRORS: usize = 1000;

/// How to compare.
#[derive(Clone, Copy, Default)]
pub struct CompareOptions<'a> {
    /// Different sizes, and extents that are allocated or zero on one side only, count as differences.
    pub strict: bool,
    /// Called with the number of bytes done since the last call.
    pub on_progress: Option<&'a dyn Fn(u64)>,
    /// Asked between chunks; `true` ends the comparison with what was found so far.
    pub stop: Option<&'a dyn Fn() -> bool>,
}

impl std::fmt::Debug for CompareOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompareOptions").field("strict", &self.strict).finish_non_exhaustive()
    }
}

/// Which of the two.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    /// The first image.
    A,
    /// The second image.
    B,
}

/// What was being done when it failed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Step {
    /// Asking for extents.
    BlockStatus,
    /// Reading.
    Read,
}

/// A range that could not be compared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CompareError {
    /// Which side failed.
    pub side: Side,
    /// At what.
    pub step: Step,
    /// The range asked for.
    pub range: ByteRange,
    /// The failure.
    pub error: IoError,
}

/// What a comparison found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Bytes of the first image.
    pub size_a: u64,
    /// Bytes of the second image.
    pub size_b: u64,
    /// Every range of 512-byte sectors that differ, merged where they touch, in order. Where one image has ended the
    /// other must hold zeroes.
    pub differing: Vec<ByteRange>,
    /// Strict: every range that is data on one side and not on the other, or zero on one side only.
    pub status_differing: Vec<ByteRange>,
    /// What could not be compared, in order.
    pub errors: Vec<CompareError>,
    /// Bytes whose content was looked at.
    pub bytes_read: u64,
    /// Bytes both sides said are zero.
    pub bytes_zero: u64,
    /// Bytes left out because the comparison was stopped.
    pub bytes_left: u64,
    /// Whether sizes and allocation count.
    pub strict: bool,
}

impl Report {
    /// Whether the images are the same, as far as was asked.
    pub fn identical(&self) -> bool {
        self.exit_status() == 0 && self.bytes_left == 0
    }

    /// Whether the images are of different size.
    pub fn sizes_differ(&self) -> bool {
        self.size_a != self.size_b
    }

    /// Bytes in [`differing`](Self::differing).
    pub fn bytes_differing(&self) -> u64 {
        self.differing.iter().map(|range| range.len()).sum()
    }

    /// The status `qemu-img compare` exits with: 0 identical, 1 different, 3 an extent query failed, 4 a read failed. A
    /// difference that was found outranks a place that could not be looked at.
    pub fn exit_status(&self) -> u8 {
        let strict = self.strict && (self.sizes_differ() || !self.status_differing.is_empty());
        if strict || !self.differing.is_empty() {
            return 1;
        }
        match self.errors.first().map(|error| error.step) {
            None => 0,
            Some(Step::BlockStatus) => 3,
            Some(Step::Read) => 4,
        }
    }

    /// Adds what another part of the same two images showed; parts may come in any order.
    pub fn merge(&mut self, other: Self) {
        let Self { size_a, size_b, differing, status_differing, errors, bytes_read, bytes_zero, bytes_left, strict } =
            other;
        self.size_a = self.size_a.max(size_a);
        self.size_b = self.size_b.max(size_b);
        self.bytes_read += bytes_read;
        self.bytes_zero += bytes_zero;
        self.bytes_left += bytes_left;
        self.strict |= strict;
        merge_ranges(&mut self.differing, differing);
        merge_ranges(&mut self.status_differing, status_differing);
        self.errors.extend(errors);
        self.errors.sort_by_key(|error| (error.range.start, error.side));
    }
}

fn merge_ranges(ranges: &mut Vec<ByteRange>, more: Vec<ByteRange>) {
    if more.is_empty() {
        return;
    }
    ranges.extend(more);
    ranges.sort_unstable();
    let mut merged = Vec::with_capacity(ranges.len());
    for range in ranges.drain(..) {
        push_range(&mut merged, range);
    }
    *ranges = merged;
}

/// Appends a range that begins at or after the last one.
fn push_range(ranges: &mut Vec<ByteRange>, range: ByteRange) {
    match ranges.last_mut() {
        Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
        _ if range.is_empty() => {}
        _ => ranges.push(range),
    }
}

/// Cuts `size` bytes into at most `parts` ranges of about the same length, on multiples of `unit`, a power of two (1
/// MiB is a good one; at least a sector).
pub fn split(size: u64, parts: usize, unit: u64) -> Vec<ByteRange> {
    let unit = unit.max(SECTOR);
    let share = size.div_ceil(u64::try_from(parts.max(1)).unwrap_or(u64::MAX)).div_ceil(unit).max(1) * unit;
    let count = size.div_ceil(share);
    (0..count).map(|part| ByteRange { start: part * share, end: size.min((part + 1) * share) }).collect()
}

/// One side with the extent last asked for.
struct Extents<'a, D> {
    device: &'a D,
    side: Side,
    size: u64,
    known: Option<(ByteRange, BlockStatus)>,
}

impl<D: BlockDevice> Extents<'_, D> {
    /// The extent at `at`: its end, at most `end`, and its status. Beyond the device everything is zero.
    async fn at(&mut self, at: u64, end: u64) -> Result<(u64, BlockStatus), CompareError> {
        if at >= self.size {
            return Ok((end, BlockStatus::unallocated(end - at)));
        }
        if let Some((range, status)) = self.known.filter(|(range, _)| range.contains(at)) {
            return Ok((range.end.min(end), status));
        }
        let asked = ByteRange { start: at, end: end.min(self.size) };
        match self.device.block_status(at, asked.len()).await {
            Ok(status) => {
                let range = ByteRange::at(at, status.len.clamp(1, asked.len()));
                self.known = Some((range, status));
                Ok((range.end, status))
            }
            Err(error) => Err(CompareError { side: self.side, step: Step::BlockStatus, range: asked, error }),
        }
    }
}

/// What is to be looked at, in extents on which both sides are of one kind.
#[derive(Clone, Copy)]
struct Piece {
    range: ByteRange,
    read_a: bool,
    read_b: bool,
}

struct Comparison<'a, A, B> {
    a: Extents<'a, A>,
    b: Extents<'a, B>,
    options: CompareOptions<'a>,
    report: Report,
    start: u64,
    end: u64,
}

/// Compares `range` of two nodes; bytes beyond the end of the shorter one are held against zeroes.
///
/// Never fails as a whole: what could not be looked at is in [`Report::errors`].
pub async fn compare<A: BlockDevice, B: BlockDevice>(
    a: &A,
    b: &B,
    range: ByteRange,
    options: CompareOptions<'_>,
) -> Report {
    let (size_a, size_b) = (a.info().size, b.info().size);
    let end = range.end.min(size_a.max(size_b));
    let report = Report { size_a, size_b, strict: options.strict, ..Report::default() };
    let a = Extents { device: a, side: Side::A, size: size_a, known: None };
    let b = Extents { device: b, side: Side::B, size: size_b, known: None };
    let mut comparison = Comparison { a, b, options, report, start: range.start, end };
    comparison.run().await;
    comparison.report
}

impl<A: BlockDevice, B: BlockDevice> Comparison<'_, A, B> {
    async fn run(&mut self) {
        // Two pairs of buffers: one is filled while the other is compared.
        let mut buffers: [Vec<u8>; 4] = std::array::from_fn(|_| Vec::new());
        let [a0, b0, a1, b1] = &mut buffers;
        let (mut current, mut next) = ((a0, b0), (a1, b1));
        let mut waiting: Option<Piece> = None;
        let mut at = self.start;
        loop {
            let gives_up = self.report.errors.len() >= ERRORS || self.options.stop.is_some_and(|stop| stop());
            let piece = if gives_up { None } else { self.next_piece(&mut at, waiting.is_some()).await };
            if let Some(piece) = piece {
                grow(next.0, piece.range);
                grow(next.1, piece.range);
            }
            match (waiting.take(), piece) {
                (None, None) => {
                    self.report.bytes_left = self.end.saturating_sub(at);
                    return;
                }
                (None, Some(piece)) => {
                    let read = self.read(piece, next.0, next.1).await;
                    if self.noted(piece, read) {
                        waiting = Some(piece);
                    }
                }
                (Some(done), None) => self.judge(done, current.0, current.1),
                (Some(done), Some(piece)) => {
                    let read = {
                        let mut reading = pin!(self.read(piece, next.0, next.1));
                        // The first poll sends the reads; the comparison runs while they are on their way.
                        let first = poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))).await;
                        let differing = verdict(done, current.0, current.1);
                        let read = match first {
                            Poll::Ready(read) => read,
                            Poll::Pending => reading.await,
                        };
                        (read, differing)
                    };
                    let (read, differing) = read;
                    self.note(done, differing);
                    if self.noted(piece, read) {
                        waiting = Some(piece);
                    }
                }
            }
            std::mem::swap(&mut current, &mut next);
        }
    }

    /// The next piece that has to be read by waiting; what can be settled without is settled on the way. With `hurry`,
    /// something is ready to be compared, and no more than extents is looked at.
    async fn next_piece(&mut self, at: &mut u64, hurry: bool) -> Option<Piece> {
        let mut now: (Vec<u8>, Vec<u8>) = Default::default();
        while *at < self.end {
            let (end_a, a) = match self.a.at(*at, self.end).await {
                Ok(extent) => extent,
                Err(error) => {
                    self.skip(at, error);
                    continue;
                }
            };
            let (end_b, b) = match self.b.at(*at, self.end).await {
                Ok(extent) => extent,
                Err(error) => {
                    self.skip(at, error);
                    continue;
                }
            };
            let mut extent = ByteRange { start: *at, end: end_a.min(end_b) };
            if (a.data, a.zero) != (b.data, b.zero) && self.report.strict {
                push_range(&mut self.report.status_differing, extent);
            }
            // Pieces end on sector boundaries, so that a sector is found to differ once.
            let cut = extent.end / SECTOR * SECTOR;
            if cut > extent.start {
                extent.end = cut;
            }
            if a.zero && b.zero {
                self.report.bytes_zero += extent.len();
                self.progress(extent.len());
                *at = extent.end;
                continue;
            }
            let whole = Piece { range: extent, read_a: !a.zero, read_b: !b.zero };
            if !hurry {
                self.compare_now(whole, at, &mut now);
                if *at >= whole.range.end || self.options.stop.is_some_and(|stop| stop()) {
                    if self.options.stop.is_some_and(|stop| stop()) {
                        return None;
                    }
                    continue;
                }
            }
            // An end of a device inside the piece is an end of its extent, so a side that is read has all of it.
            let range = ByteRange { start: *at, end: extent.end.min(at.saturating_add(CHUNK)) };
            *at = range.end;
            return Some(Piece { range, ..whole });
        }
        None
    }

    /// Compares as much of `piece` as both sides can read at once.
    fn compare_now(&mut self, piece: Piece, at: &mut u64, (a, b): &mut (Vec<u8>, Vec<u8>)) {
        while *at < piece.range.end {
            let range = ByteRange { start: *at, end: piece.range.end.min(at.saturating_add(CHUNK_NOW)) };
            let part = Piece { range, ..piece };
            grow(a, range);
            grow(b, range);
            let len = len_of(range.len());
            let read = (!part.read_a || self.a.device.read_now(range.start, &mut a[..len]))
                && (!part.read_b || self.b.device.read_now(range.start, &mut b[..len]));
            if !read {
                return;
            }
            self.judge(part, a, b);
            *at = range.end;
            if self.options.stop.is_some_and(|stop| stop()) {
                return;
            }
        }
    }

    fn skip(&mut self, at: &mut u64, error: CompareError) {
        // Nothing is known of how far the failure reaches; the next chunk may be fine.
        let range = ByteRange { start: *at, end: self.end.min(at.saturating_add(CHUNK)) };
        self.report.errors.push(CompareError { range, ..error });
        self.progress(range.len());
        *at = if self.report.errors.len() >= ERRORS { self.end } else { range.end };
    }

    async fn read(&self, piece: Piece, a: &mut [u8], b: &mut [u8]) -> (Result<(), IoError>, Result<(), IoError>) {
        let len = len_of(piece.range.len());
        let at = piece.range.start;
        zip(async { if piece.read_a { self.a.device.read(at, &mut a[..len]).await } else { Ok(()) } }, async {
            if piece.read_b { self.b.device.read(at, &mut b[..len]).await } else { Ok(()) }
        })
        .await
    }

    /// Notes failures; whether there is something to compare.
    fn noted(&mut self, piece: Piece, (a, b): (Result<(), IoError>, Result<(), IoError>)) -> bool {
        let before = self.report.errors.len();
        for (side, outcome) in [(Side::A, a), (Side::B, b)] {
            if let Err(error) = outcome {
                self.report.errors.push(CompareError { side, step: Step::Read, range: piece.range, error });
            }
        }
        let fine = self.report.errors.len() == before;
        if !fine {
            self.progress(piece.range.len());
        }
        fine
    }

    fn judge(&mut self, piece: Piece, a: &[u8], b: &[u8]) {
        let differing = verdict(piece, a, b);
        self.note(piece, differing);
    }

    fn note(&mut self, piece: Piece, differing: Vec<ByteRange>) {
        self.report.bytes_read += piece.range.len();
        for range in differing {
            // A device may end inside a sector, and a piece with it.
            let sectors = range.aligned_out(SECTOR);
            let range = ByteRange { start: sectors.start.max(self.start), end: sectors.end.min(self.end) };
            push_range(&mut self.report.differing, range);
        }
        self.progress(piece.range.len());
    }

    fn progress(&self, bytes: u64) {
        if let Some(on_progress) = self.options.on_progress {
            on_progress(bytes);
        }
    }
}

/// Makes room for a piece.
fn grow(buffer: &mut Vec<u8>, range: ByteRange) {
    let len = len_of(range.len());
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
}

/// The sectors of a piece that differ.
fn verdict(piece: Piece, a: &[u8], b: &[u8]) -> Vec<ByteRange> {
    let len = len_of(piece.range.len());
    let at = piece.range.start;
    let (a, b) = (&a[..len], &b[..len]);
    let found = match (piece.read_a, piece.read_b) {
        (true, true) if a == b => None,
        (true, true) => differing(at, a, b),
        (true, false) if is_zero(a) => None,
        (false, true) if is_zero(b) => None,
        (true, false) => differing(at, a, &vec![0; len]),
        (false, true) => differing(at, &vec![0; len], b),
        (false, false) => None,
    };
    found.map_or_else(Vec::new, |(_, ranges)| ranges)
}
