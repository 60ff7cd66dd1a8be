//! What was in flight when (CM 12.2 (4)).
//!
//! Time is counted in the moves in which something begins or ends; the others are left out, so that a run of a thousand
//! moves of which twelve matter takes twelve columns. Only the last [`SPAN_MAX`] of them are shown: those that led to
//! the finding. A short one leaves out what the driver does below while it opens and closes the image, unless that failed
//! or a power cut decided over it.

mod svg;
mod text;

pub use self::svg::svg;
pub use self::text::text;

use blkproof_sim::IoKind;
use blkproof_torture::plan::Act;

use super::Case;
use super::crash::{self, Fate};
use super::model::{Below, End, Run};
use super::table::is_guilty;
use super::text::Detail;

/// Columns, at most.
pub const SPAN_MAX: usize = 96;
/// The same of a short one.
const SPAN_SHORT: usize = 40;
/// Lines of a short one, at most.
const BARS_SHORT: usize = 24;

/// What a bar stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lane {
    /// Of the client's requests of this queue.
    Queue(u8),
    /// Of what concerns all queues: reopenings, power cuts.
    Image,
    /// Of requests below.
    Disk,
}

/// What a bar does to what was done before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    Read,
    Write,
    Flush,
    Other,
}

/// One request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Bar {
    pub(super) lane: Lane,
    pub(super) class: Class,
    /// `3`, `3#1`.
    pub(super) name: String,
    pub(super) what: String,
    pub(super) how: String,
    /// Columns: where it begins, where its data moves, where it ends.
    pub(super) from: usize,
    pub(super) moved: Option<usize>,
    pub(super) to: Option<usize>,
    pub(super) failed: bool,
    pub(super) dropped: bool,
    pub(super) guilty: bool,
    /// What the power cut made of it.
    pub(super) fate: Option<Fate>,
}

/// All of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Timeline {
    /// The move of each column.
    pub(super) moves: Vec<u64>,
    /// In the order in which they begin.
    pub(super) bars: Vec<Bar>,
    /// Columns at which the power went.
    pub(super) cuts: Vec<usize>,
    /// Columns from which parts of the run go on.
    pub(super) parts: Vec<(usize, &'static str)>,
    /// Requests that were over before the first column.
    pub(super) before: usize,
    /// Requests below that a short one leaves out.
    pub(super) hidden: usize,
}

pub(super) fn timeline(case: &Case<'_>, detail: Detail) -> Option<Timeline> {
    let mut run = case.run();
    let mut hidden = 0;
    if detail == Detail::Brief {
        let all = run.below.len();
        let cut = crash::cut(case, &run);
        let matters = |below: &Below<'_>| {
            let decided = cut.is_some_and(|cut| cut.undecided.contains(&below.info.key) && below.sent <= cut.at);
            below.info.key.owner.0 != 0 || below.fault.is_some() || decided
        };
        run.below.retain(matters);
        hidden = all.saturating_sub(run.below.len());
    }
    run.known.then(|| Timeline { hidden, ..Timeline::new(case, &run, detail) })
}

impl Timeline {
    fn new(case: &Case<'_>, run: &Run<'_>, detail: Detail) -> Self {
        let mut moves: Vec<u64> = run.cuts.iter().map(|cut| cut.at).collect();
        for request in &run.requests {
            moves.extend([request.sent, request.ended].into_iter().flatten());
        }
        for below in &run.below {
            moves.extend([Some(below.sent), below.moved, below.heard].into_iter().flatten());
        }
        moves.sort_unstable();
        moves.dedup();
        let span = if detail == Detail::Brief { SPAN_SHORT } else { SPAN_MAX };
        let moves = moves.split_off(moves.len().saturating_sub(span));
        let first = moves.first().copied().unwrap_or(0);
        let column = |at: u64| moves.partition_point(|&other| other < at);
        let mut all = Vec::new();
        for request in &run.requests {
            let (Some(sent), op) = (request.sent, request.op) else { continue };
            let barrier = matches!(op.act, Act::Reopen | Act::Cut { .. });
            let class = match op.act {
                Act::Read { .. } | Act::Status { .. } => Class::Read,
                Act::Flush => Class::Flush,
                Act::Drain | Act::Reopen | Act::Cut { .. } => Class::Other,
                Act::Write { .. } | Act::Zeroes { .. } | Act::Discard { .. } | Act::Resize { .. } => Class::Write,
            };
            let bar = Bar {
                lane: if barrier { Lane::Image } else { Lane::Queue(op.queue) },
                class,
                name: op.id.to_string(),
                what: op.act.describe(),
                how: if matches!(op.act, Act::Cut { .. }) { "the power went".to_owned() } else { request.end.words() },
                from: column(sent),
                moved: None,
                to: request.ended.map(column),
                failed: matches!(request.end, End::Failed(_)),
                dropped: request.end == End::Dropped,
                guilty: is_guilty(case, &op.act),
                fate: None,
            };
            all.push((sent, 0, request.ended, bar));
        }
        let guilty =
            |op: u32| run.requests.iter().any(|request| request.op.id == op && is_guilty(case, &request.op.act));
        let cut = crash::cut(case, run);
        for below in &run.below {
            let info = below.info;
            let class = match info.kind {
                IoKind::Read | IoKind::Status => Class::Read,
                IoKind::Flush => Class::Flush,
                IoKind::Drain => Class::Other,
                IoKind::Write | IoKind::Zeroes | IoKind::Discard | IoKind::Resize => Class::Write,
            };
            let at_cut = cut.filter(|cut| cut.undecided.contains(&info.key) && below.sent <= cut.at);
            let fate = at_cut.map(|cut| crash::fate(cut.state, info.key));
            let mut how = match (below.fault, below.heard, below.moved) {
                (Some(fault), ..) => format!("fails: {}", blkproof_torture::plan::errno_words(fault.errno)),
                (None, Some(_), _) => "done".to_owned(),
                (None, None, Some(_)) => "took effect, not answered".to_owned(),
                (None, None, None) => "not answered".to_owned(),
            };
            if let Some(fate) = fate {
                how.push_str("; ");
                how.push_str(&fate.words());
            }
            let bar = Bar {
                fate,
                lane: Lane::Disk,
                class,
                name: info.key.to_string(),
                what: below.words(),
                how,
                from: column(below.sent),
                moved: below.moved.map(column),
                to: below.heard.map(column),
                failed: below.fault.is_some(),
                dropped: false,
                guilty: class == Class::Write && guilty(info.key.owner.0),
            };
            all.push((below.sent, 1, below.heard, bar));
        }
        // A request of the client comes before what it led to.
        all.sort_by_key(|(sent, below, ..)| (*sent, *below));
        let count = all.len();
        all.retain(|(_, _, ended, _)| ended.is_none_or(|ended| ended >= first));
        if detail == Detail::Brief {
            let more = all.len().saturating_sub(BARS_SHORT);
            all.drain(..more);
        }
        Self {
            hidden: 0,
            before: count.saturating_sub(all.len()),
            bars: all.into_iter().map(|(.., bar)| bar).collect(),
            cuts: run.cuts.iter().map(|cut| column(cut.at)).collect(),
            parts: run
                .parts
                .iter()
                .filter(|(at, _)| at.saturating_add(1) >= first)
                .map(|(at, part)| (column(at.saturating_add(1)), *part))
                .collect(),
            moves,
        }
    }

    /// The last column of a bar: what was not answered goes on to the power cut, or to the end.
    fn end(&self, bar: &Bar) -> usize {
        let cut = self.cuts.iter().copied().find(|cut| *cut >= bar.from);
        bar.to.or(cut).unwrap_or(self.width().saturating_sub(1)).max(bar.from)
    }

    /// How many columns.
    fn width(&self) -> usize {
        self.moves.len().max(1)
    }
}
