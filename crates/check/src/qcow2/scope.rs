//! What every pass over the tables shares, and what a pass has to say.
//!
//! A pass looks at one window of host clusters. When memory ends before the pass does, it is begun again with a smaller
//! window: so it tells nobody anything until it is complete, but gathers it in an [`Outcome`].

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::Options;
use crate::budget::Budget;
use crate::finding::{Finding, Findings};
use crate::map::{Grid, GuestState};
use crate::source::Source;
use crate::watch::{Progress, Watch};

use super::header::Geometry;
use super::l1::Root;
use super::owners::Leaks;
use super::reader::Reader;
use super::side::Side;

/// Lost ranges a pass keeps apart.
const LOST_MAX: usize = 20_000;

pub(crate) struct Scope<'a> {
    pub(crate) image: &'a dyn Source,
    pub(crate) file_len: u64,
    pub(crate) options: &'a Options,
    pub(crate) watch: &'a dyn Watch,
    pub(crate) budget: &'a Budget,
    pub(crate) side: &'a Side,
    pub(crate) geometry: Geometry,
    /// Every L1 table, the active one first.
    pub(crate) roots: &'a [Root],
    pub(crate) threads: usize,
    /// Bytes of a reading buffer. One for each thread and one more are paid for.
    pub(crate) buffer: usize,
    /// Stretches whose owners are named in one pass.
    pub(crate) suspects: usize,
    /// Bytes of metadata read so far, and expected.
    pub(crate) done: AtomicU64,
    pub(crate) total: AtomicU64,
    pub(crate) stopped: AtomicBool,
}

impl<'a> Scope<'a> {
    pub(crate) fn reader(&self) -> Reader<'a> {
        Reader::new(self.image, self.file_len, self.buffer)
    }

    /// For L1 and refcount tables, which are gone over in short pieces.
    pub(crate) fn small_reader(&self) -> Reader<'a> {
        Reader::new(self.image, self.file_len, self.buffer.min(1 << 16))
    }

    /// Clusters of the file; the last one may be cut.
    pub(crate) fn clusters(&self) -> u64 {
        self.file_len.div_ceil(self.geometry.cluster_size())
    }

    pub(crate) fn cluster_of(&self, offset: u64) -> u64 {
        offset >> self.geometry.cluster_bits
    }

    /// The bytes of a range of clusters, as far as the file goes.
    pub(crate) fn bytes_of(&self, clusters: &Range<u64>) -> Range<u64> {
        let cluster = self.geometry.cluster_size();
        let start = clusters.start.saturating_mul(cluster);
        start..clusters.end.saturating_mul(cluster).min(self.file_len).max(start)
    }

    /// Whether the disk has snapshots, which is when clusters may be shared.
    pub(crate) fn shares(&self) -> bool {
        !self.side.snapshots.is_empty()
    }

    /// Tells how far it is; whether to stop.
    pub(crate) fn tick(&self, phase: &'static str, bytes: u64) -> bool {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        self.watch.progress(Progress { phase, done, total: self.total.load(Ordering::Relaxed).max(done) });
        if self.watch.stop() {
            self.stopped.store(true, Ordering::Relaxed);
        }
        self.is_stopped()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    pub(crate) fn outcome(&self) -> Outcome {
        let cells = self.options.cells;
        let size = self.geometry.size;
        Outcome {
            findings: Findings::new(self.options.max_findings),
            lost: Losses::default(),
            counts: Counts::default(),
            guest: Guest {
                totals: [0; GuestState::COUNT],
                grid: (cells > 0).then(|| Grid::new(size, self.geometry.cluster_size(), cells)),
                size,
            },
            tables_lost: false,
            could_not: Vec::new(),
            not_checked: Vec::new(),
            check_errors: 0,
            leaks: Leaks::default(),
            damaged: Losses::default(),
        }
    }

    /// Bytes an [`Outcome`]'s picture takes.
    pub(crate) fn outcome_bytes(&self) -> u64 {
        (self.options.cells as u64).saturating_mul(size_of::<[u64; GuestState::COUNT]>() as u64)
    }
}

/// The part of `qemu-img check`'s figures that the L2 tables of the active disk give.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) allocated: u64,
    pub(crate) fragmented: u64,
    pub(crate) compressed: u64,
}

/// Bytes of the guest's disk by state. What no table mentions is not allocated, and not counted here.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) totals: [u64; GuestState::COUNT],
    pub(crate) grid: Option<Grid<{ GuestState::COUNT }>>,
    size: u64,
}

impl Guest {
    pub(crate) fn add(&mut self, range: Range<u64>, state: GuestState) {
        let range = range.start..range.end.min(self.size);
        if range.is_empty() {
            return;
        }
        if let Some(bytes) = self.totals.get_mut(state as usize) {
            *bytes = bytes.saturating_add(range.end.saturating_sub(range.start));
        }
        if let Some(grid) = &mut self.grid {
            grid.add(range, state as usize);
        }
    }
}

impl Guest {
    /// What was taken for `was` turned out to be damaged.
    pub(crate) fn damage(&mut self, range: Range<u64>, was: GuestState) {
        let range = range.start..range.end.min(self.size);
        if range.is_empty() || was == GuestState::Damaged {
            return;
        }
        let bytes = range.end.saturating_sub(range.start);
        if let Some(sum) = self.totals.get_mut(was as usize) {
            *sum = sum.saturating_sub(bytes);
        }
        if let Some(grid) = &mut self.grid {
            let cell_len = grid.cell_len.max(1);
            let mut at = range.start;
            while at < range.end {
                let index = at.checked_div(cell_len).unwrap_or(0);
                let next = index.saturating_add(1).saturating_mul(cell_len).min(range.end);
                let cell = usize::try_from(index).ok().and_then(|index| grid.cells.get_mut(index));
                if let Some(sum) = cell.and_then(|cell| cell.get_mut(was as usize)) {
                    *sum = sum.saturating_sub(next.saturating_sub(at));
                }
                at = next;
            }
        }
        self.add(range, GuestState::Damaged);
    }

    /// What nothing was said about is not allocated.
    pub(crate) fn complete(&mut self) {
        let said = self.totals.iter().fold(0u64, |all, bytes| all.saturating_add(*bytes));
        let rest = GuestState::Unallocated as usize;
        if let Some(sum) = self.totals.get_mut(rest) {
            *sum = sum.saturating_add(self.size.saturating_sub(said));
        }
        if let Some(grid) = &mut self.grid {
            let mut start = 0u64;
            for cell in &mut grid.cells {
                let len = grid.cell_len.min(self.size.saturating_sub(start));
                let said = cell.iter().fold(0u64, |all, bytes| all.saturating_add(*bytes));
                if let Some(sum) = cell.get_mut(rest) {
                    *sum = sum.saturating_add(len.saturating_sub(said));
                }
                start = start.saturating_add(grid.cell_len);
            }
        }
    }
}

/// Ranges of the guest's disk, gathered in any order.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    pub(crate) ranges: Vec<Range<u64>>,
    /// Those there was no room for: how many, and their bytes.
    pub(crate) more: (u64, u64),
}

impl Losses {
    pub(crate) fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let room = self.ranges.len() < LOST_MAX;
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if room => self.ranges.push(range),
            _ => {
                let bytes = range.end.saturating_sub(range.start);
                self.more = (self.more.0.saturating_add(1), self.more.1.saturating_add(bytes));
            }
        }
    }

    /// Sorts the ranges and joins those that touch.
    pub(crate) fn tidy(&mut self) {
        self.ranges.sort_unstable_by_key(|range| range.start);
        self.ranges.dedup_by(|next, kept| {
            let touches = next.start <= kept.end;
            if touches {
                kept.end = kept.end.max(next.end);
            }
            touches
        });
    }

    /// The parts of a range that are not among these, which are tidy.
    pub(crate) fn without(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let first = self.ranges.partition_point(|lost| lost.end <= range.start);
        let mut at = range.start;
        let mut parts = Vec::new();
        for lost in self.ranges.get(first..).unwrap_or_default().iter().take_while(|lost| lost.start < range.end) {
            if at < lost.start {
                parts.push(at..lost.start);
            }
            at = lost.end;
        }
        if at < range.end {
            parts.push(at..range.end);
        }
        parts
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for range in other.ranges {
            self.add(range);
        }
        self.more = (self.more.0.saturating_add(other.more.0), self.more.1.saturating_add(other.more.1));
    }
}

/// What a pass found.
pub(crate) struct Outcome {
    pub(crate) findings: Findings,
    pub(crate) lost: Losses,
    pub(crate) counts: Counts,
    pub(crate) guest: Guest,
    /// Whether tables are missing: what they referred to looks like a leak.
    pub(crate) tables_lost: bool,
    pub(crate) could_not: Vec<String>,
    pub(crate) not_checked: Vec<String>,
    pub(crate) check_errors: u64,
    /// Clusters that are counted for nothing.
    pub(crate) leaks: Leaks,
    /// Clusters that were taken for compressed ones and do not inflate.
    pub(crate) damaged: Losses,
}

impl Outcome {
    pub(crate) fn find(&mut self, finding: Finding) {
        self.findings.add(finding);
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.findings.merge(other.findings);
        self.lost.merge(other.lost);
        self.damaged.merge(other.damaged);
        self.counts.allocated = self.counts.allocated.saturating_add(other.counts.allocated);
        self.counts.fragmented = self.counts.fragmented.saturating_add(other.counts.fragmented);
        self.counts.compressed = self.counts.compressed.saturating_add(other.counts.compressed);
        for (sum, more) in self.guest.totals.iter_mut().zip(other.guest.totals) {
            *sum = sum.saturating_add(more);
        }
        if let (Some(grid), Some(more)) = (&mut self.guest.grid, &other.guest.grid) {
            grid.merge(more);
        }
        self.tables_lost |= other.tables_lost;
        for sentence in other.could_not {
            if !self.could_not.contains(&sentence) {
                self.could_not.push(sentence);
            }
        }
        self.not_checked.extend(other.not_checked);
        self.check_errors = self.check_errors.saturating_add(other.check_errors);
    }
}
