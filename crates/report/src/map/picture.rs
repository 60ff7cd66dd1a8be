//! The model behind all pictures: two maps in cells, what is marked in them, and the places causes and findings point
//! to.

use std::ops::Range;

use blkproof_check::Report;
use blkproof_check::code::Severity;
use blkproof_check::finding::Finding;
use blkproof_check::map::{Claim, Class, Grid};
use blkproof_check::report::{Cause, Verdict};

use super::palette::{Kind, classes, states};
use super::text;

/// How a cell is marked. The worst is greatest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    /// Nothing was found here.
    #[default]
    None,
    /// A leak or a warning.
    Mild,
    /// Corruption, conflict, loss.
    Severe,
}

/// Bytes of one kind in a cell.
pub(crate) type Part = (u8, u64);

/// What a cell looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// The kind whose colour it has; `None` where nothing is in use.
    pub(crate) kind: Option<u8>,
    /// Hundredths of it that are in use.
    pub(crate) share: u8,
    /// Metadata among something else.
    pub(crate) dot: Option<u8>,
    /// What was found here.
    pub(crate) mark: Mark,
}

/// One of the two maps.
#[derive(Clone, Debug)]
pub(crate) struct Panel {
    /// `Image file` or `Guest disk`.
    pub(crate) title: &'static str,
    /// What it is drawn by.
    pub(crate) by: &'static str,
    /// Bytes mapped.
    pub(crate) len: u64,
    /// Cluster size, where it is known.
    pub(crate) unit: Option<u64>,
    /// The kinds of this map.
    pub(crate) kinds: Vec<Kind>,
    /// Bytes per kind, and what is not mapped.
    pub(crate) totals: Vec<u64>,
    /// Bytes of the length that no kind accounts for.
    pub(crate) unmapped: u64,
    /// Bytes in a cell.
    pub(crate) cell_len: u64,
    /// What is in each cell; empty without a picture.
    pub(crate) cells: Vec<Vec<Part>>,
    /// How each cell is marked.
    pub(crate) marks: Vec<Mark>,
    /// Whether the report has a grid at all (else only the totals are known).
    pub(crate) drawn: bool,
}

impl Panel {
    fn new<const N: usize>(
        titles: (&'static str, &'static str),
        len: u64,
        totals: &[u64; N],
        grid: Option<&Grid<N>>,
        kinds: Vec<Kind>,
    ) -> Self {
        let known = totals.iter().fold(0u64, |all, bytes| all.saturating_add(*bytes));
        let mut panel = Self {
            title: titles.0,
            by: titles.1,
            len,
            unit: None,
            kinds,
            totals: totals.to_vec(),
            unmapped: len.saturating_sub(known),
            cell_len: grid.map_or(1, |grid| grid.cell_len.max(1)),
            cells: grid.map_or_else(Vec::new, |grid| grid.cells.iter().map(|cell| parts(cell)).collect()),
            marks: Vec::new(),
            drawn: grid.is_some(),
        };
        panel.marks = vec![Mark::None; panel.cells.len()];
        for (mark, cell) in panel.marks.iter_mut().zip(&panel.cells) {
            if cell.iter().any(|(kind, _)| panel.kinds.get(usize::from(*kind)).is_some_and(|kind| kind.alarm)) {
                *mark = Mark::Severe;
            }
        }
        panel
    }

    fn mark(&mut self, ranges: &[Range<u64>], mark: Mark) {
        for range in ranges {
            if let Some((first, last)) = self.cells_of(range) {
                for cell in self.marks.iter_mut().take(last + 1).skip(first) {
                    *cell = (*cell).max(mark);
                }
            }
        }
    }

    /// First and last cell that a range touches. An empty range is a place; what lies past the end is in no cell.
    pub(crate) fn cells_of(&self, range: &Range<u64>) -> Option<(usize, usize)> {
        let cell = |at: u64| usize::try_from(at / self.cell_len).ok();
        let last = self.cells.len().checked_sub(1)?;
        let first = cell(range.start).filter(|first| *first <= last && range.start < self.len)?;
        let end = cell(range.end.saturating_sub(1).max(range.start)).unwrap_or(last);
        Some((first, end.clamp(first, last)))
    }

    /// The cells of several ranges as runs (first, last), sorted and apart: at most `max`, and whether that was enough.
    pub(crate) fn runs_of(&self, ranges: &[Range<u64>], max: usize) -> (Vec<(usize, usize)>, bool) {
        let mut all: Vec<(usize, usize)> = ranges.iter().filter_map(|range| self.cells_of(range)).collect();
        all.sort_unstable();
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (first, last) in all {
            match runs.last_mut() {
                Some(run) if first <= run.1 + 1 => run.1 = run.1.max(last),
                _ => runs.push((first, last)),
            }
        }
        let complete = runs.len() <= max;
        runs.truncate(max);
        (runs, complete)
    }

    /// First and last byte (half-open) of a run of cells.
    pub(crate) fn bytes_of(&self, first: usize, last: usize) -> Range<u64> {
        let start = self.cell_len.saturating_mul(first as u64).min(self.len);
        start..self.cell_len.saturating_mul(last as u64 + 1).min(self.len)
    }

    /// What a cell looks like. Conflict and damage prevail over everything, then the largest part in use.
    pub(crate) fn look(&self, index: usize) -> Look {
        let parts = self.cells.get(index).map(Vec::as_slice).unwrap_or_default();
        let range = self.bytes_of(index, index);
        let len = range.end.saturating_sub(range.start).max(1);
        let kind = |part: &Part| self.kinds.get(usize::from(part.0)).copied();
        let used = || parts.iter().filter(|part| kind(part).is_some_and(|kind| kind.used));
        let sum = used().fold(0u64, |all, part| all.saturating_add(part.1));
        let main = used()
            .find(|part| kind(part).is_some_and(|kind| kind.alarm))
            .or_else(|| used().max_by_key(|part| (part.1, std::cmp::Reverse(part.0))));
        let metadata = |part: &&Part| kind(part).is_some_and(|kind| kind.metadata);
        let dot = used().filter(metadata).max_by_key(|part| (part.1, std::cmp::Reverse(part.0)));
        let share = u128::from(sum.min(len)) * 100 / u128::from(len);
        Look {
            kind: main.map(|part| part.0),
            share: u8::try_from(share).unwrap_or(100),
            dot: dot.filter(|_| !main.as_ref().is_some_and(metadata)).map(|part| part.0),
            mark: self.marks.get(index).copied().unwrap_or_default(),
        }
    }

    /// The same map in cells `factor` times as long.
    pub(crate) fn coarser(&self, factor: usize) -> Self {
        if factor <= 1 {
            return self.clone();
        }
        let mut kinds = vec![0u64; self.kinds.len()];
        let join = |cells: &[Vec<Part>]| {
            kinds.fill(0);
            for (kind, bytes) in cells.iter().flatten() {
                if let Some(sum) = kinds.get_mut(usize::from(*kind)) {
                    *sum = sum.saturating_add(*bytes);
                }
            }
            parts(&kinds)
        };
        Self {
            cell_len: self.cell_len.saturating_mul(factor as u64),
            cells: self.cells.chunks(factor).map(join).collect(),
            marks: self.marks.chunks(factor).map(|marks| marks.iter().copied().max().unwrap_or_default()).collect(),
            ..self.clone()
        }
    }

    /// `1 cell = 6.25 MiB (100 clusters)`.
    pub(crate) fn scale(&self) -> String {
        let mut out = format!("1 cell = {}", text::human(self.cell_len));
        if let Some(unit) = self.unit.filter(|unit| *unit > 1 && self.cell_len.is_multiple_of(*unit)) {
            let count = text::plural(self.cell_len / unit, "cluster");
            out.push_str(&format!(" ({count} of {})", text::human(unit)));
        }
        out
    }

    /// Rows of the legend: kinds that occur (index in `kinds`, bytes), largest first, what is not in use last.
    pub(crate) fn legend(&self) -> Vec<(usize, u64)> {
        let mut rows: Vec<(usize, u64)> =
            self.totals.iter().copied().enumerate().filter(|(_, bytes)| *bytes > 0).collect();
        let idle = |index: usize| self.kinds.get(index).is_some_and(|kind| !kind.used);
        rows.sort_by_key(|(index, bytes)| (idle(*index), std::cmp::Reverse(*bytes), *index));
        rows
    }
}

/// The parts of a cell that are not nothing.
fn parts(cell: &[u64]) -> Vec<Part> {
    let all = cell.iter().enumerate().filter(|(_, bytes)| **bytes > 0);
    all.filter_map(|(kind, bytes)| Some((u8::try_from(kind).ok()?, *bytes))).collect()
}

/// Everything a picture shows.
pub(crate) struct Picture<'a> {
    /// What it is made of.
    pub(crate) report: &'a Report,
    /// The image file, if it could be mapped.
    pub(crate) host: Option<Panel>,
    /// The guest's disk, if it could be mapped.
    pub(crate) guest: Option<Panel>,
    /// The findings, worst first, then by place; their numbers count from 1 in this order.
    pub(crate) findings: Vec<&'a Finding>,
}

impl<'a> Picture<'a> {
    pub(crate) fn new(report: &'a Report) -> Self {
        let mut findings: Vec<&Finding> = report.findings.iter().collect();
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        let mut host = report.host.as_ref().map(|map| {
            let mut panel = Panel::new(("Image file", "by owner"), map.len, &map.totals, map.grid.as_ref(), classes());
            panel.unit = Some(map.unit);
            panel
        });
        let mut guest = report
            .guest
            .as_ref()
            .map(|map| Panel::new(("Guest disk", "by state"), map.size, &map.totals, map.grid.as_ref(), states()));
        for finding in &findings {
            let mark = match finding.severity {
                Severity::Corruption => Mark::Severe,
                Severity::Leak | Severity::Warning => Mark::Mild,
                Severity::Note => continue,
            };
            if let Some(panel) = &mut host {
                panel.mark(&finding.host, mark);
            }
            if let Some(panel) = &mut guest {
                panel.mark(&finding.guest, mark);
            }
        }
        if let Some(panel) = &mut guest {
            panel.mark(&report.lost.ranges, Mark::Severe);
        }
        Self { report, host, guest, findings }
    }

    /// Both maps, as far as they are there.
    pub(crate) fn panels(&self) -> impl Iterator<Item = &Panel> {
        self.host.iter().chain(&self.guest)
    }

    /// What there is to say in one sentence.
    pub(crate) fn sentence(&self) -> String {
        let lost = &self.report.lost;
        let leaked = self.report.host.as_ref().map_or(0, |map| map.bytes(Class::Leaked));
        let size = self.report.guest.as_ref().map_or(0, |map| map.size);
        match self.report.verdict {
            Verdict::Healthy => "Nothing is wrong with what was checked.".to_owned(),
            Verdict::Leaks if leaked > 0 => {
                format!("{} of the file are in use by nothing. No data is affected.", text::human(leaked))
            }
            Verdict::Leaks => "Space is wasted. No data is affected.".to_owned(),
            Verdict::Damaged if lost.bytes > 0 => {
                let count = (lost.ranges.len() as u64).saturating_add(lost.left_out);
                let share = if size > 0 { format!(" ({})", text::percent(lost.bytes, size)) } else { String::new() };
                format!(
                    "{}{share} of the guest\u{2019}s disk are lost or not its own any more, in {}.",
                    text::human(lost.bytes),
                    text::plural(count, "range")
                )
            }
            Verdict::Damaged => "Data is in danger; no byte of the guest is known to be lost yet.".to_owned(),
            Verdict::Undecided => "Too much could not be checked to say.".to_owned(),
            Verdict::Unsupported => "This format has no structure that could be checked.".to_owned(),
        }
    }

    /// What limits the picture: an early stop, an image in use, findings left out.
    pub(crate) fn notices(&self) -> Vec<String> {
        let mut out = Vec::new();
        if self.report.stopped {
            out.push("The check was stopped before its end: the maps show what was known by then.".to_owned());
        }
        if self.report.live {
            out.push("The image was in use while it was read: findings may be of that making.".to_owned());
        }
        let all = self.report.sums.iter().fold(0u64, |all, (_, _, sum)| all.saturating_add(sum.findings));
        let shown = self.findings.len() as u64;
        if all > shown {
            out.push(format!(
                "{} of {} are listed, those at the lowest offsets; all are counted.",
                text::grouped(shown),
                text::plural(all, "finding")
            ));
        }
        out
    }

    /// Single errors per severity, worst first, those that occur.
    pub(crate) fn counts(&self) -> Vec<(Severity, u64)> {
        let mut out = Vec::new();
        for severity in [Severity::Corruption, Severity::Leak, Severity::Warning, Severity::Note] {
            let sums = self.report.sums.iter().filter(|(_, of, _)| *of == severity);
            let errors = sums.fold(0u64, |all, (_, _, sum)| all.saturating_add(sum.errors));
            if errors > 0 {
                out.push((severity, errors));
            }
        }
        out
    }

    /// The format and figures of the head: name and value.
    pub(crate) fn head(&self) -> Vec<(&'static str, String)> {
        let mut out = Vec::new();
        let format = self.report.format.map_or("not recognised", |format| match format.name() {
            "vpc" => "vhd",
            name => name,
        });
        out.push(("format", format.to_owned()));
        if let Some(map) = &self.report.guest {
            out.push(("guest disk", text::human(map.size)));
        }
        if let Some(map) = &self.report.host {
            out.push(("file", text::human(map.len)));
            if map.unit > 1 {
                out.push(("cluster", text::human(map.unit)));
            }
        }
        out
    }
}

/// Letters for causes (`A`, `B`, … `Z`, `A1`, …): findings have numbers.
pub(crate) fn cause_label(index: usize) -> String {
    let letter = char::from(b'A' + u8::try_from(index % 26).unwrap_or(0));
    if index < 26 { letter.to_string() } else { format!("{letter}{}", index / 26) }
}

/// How many errors a cause stands for and how sure it is, in words.
pub(crate) fn cause_note(cause: &Cause) -> String {
    format!("{}, {}", text::plural(cause.errors, "error"), cause.confidence)
}

/// A stretch of metadata as it is called: one claim, or several that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) claim: Claim,
    pub(crate) count: u64,
}

/// Claims that follow each other in the file and in their table, as one.
pub(crate) fn stretches(claims: &[Claim]) -> Vec<Stretch> {
    let mut out: Vec<Stretch> = Vec::new();
    for claim in claims {
        if let Some(last) = out.last_mut()
            && last.claim.class == claim.class
            && last.claim.range().end == claim.start
            && last.claim.index.checked_add(last.count) == Some(claim.index)
        {
            last.claim.len = last.claim.len.saturating_add(claim.len);
            last.count += 1;
        } else {
            out.push(Stretch { claim: *claim, count: 1 });
        }
    }
    out
}
