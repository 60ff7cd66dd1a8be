//! What was done to the sector that is wrong (CM 12.2 (5)).

use blkproof_torture::oracle::{Ending, Event};
use blkproof_torture::plan::{Act, OpId};

use super::Case;
use super::model::Run;

/// Bytes of a sector: the oracle's unit.
pub(crate) const SECTOR: u64 = 512;

/// One line of a sector's history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Line {
    /// `None`: not of the plan, but of the end of every run.
    pub(crate) op: Option<OpId>,
    pub(crate) what: String,
    pub(crate) outcome: String,
    /// It, or something later, survives a power cut.
    pub(crate) durable: bool,
    /// It touches the sector's bytes: otherwise it only decides what is promised of them.
    pub(crate) touches: bool,
}

/// The number of the guilty sector, if bytes are wrong.
pub(crate) fn sector(case: &Case<'_>) -> Option<u64> {
    let range = case.finding.range.filter(|range| !range.is_empty())?;
    Some(range.start / SECTOR)
}

/// The requests that touched the guilty sector, and the flushes between them, in the order in which they were sent.
pub(crate) fn lines(case: &Case<'_>) -> Vec<Line> {
    let run = case.run();
    let lines = case.outcome.history.iter().map(|event| line(case, &run, event));
    // That all is drained before it is read again goes without saying.
    lines.filter(|line| line.op.is_some() || line.touches).collect()
}

fn line(case: &Case<'_>, run: &Run<'_>, event: &Event) -> Line {
    let ours = case.plan.ops.iter().any(|op| op.id == event.op);
    let what = match (&event.act, ours) {
        (Act::Read { .. }, false) => "everything is read at the end".to_owned(),
        (act, _) => act.describe(),
    };
    let outcome = match (event.ending, event.dropped, event.ended) {
        (Some(Ending::Done), ..) => "done".to_owned(),
        (Some(Ending::Failed), ..) => {
            let told = run.requests.iter().find(|request| request.op.id == event.op);
            told.map_or_else(|| "failed".to_owned(), |request| request.end.words())
        }
        (Some(Ending::Cancelled), ..) => "cancelled".to_owned(),
        (None, Some(_), Some(_)) => "dropped, settled since".to_owned(),
        (None, Some(_), None) => "dropped, may still land".to_owned(),
        (None, None, _) => "in flight".to_owned(),
    };
    let touches = !matches!(event.act, Act::Flush | Act::Drain | Act::Reopen);
    Line {
        op: ours.then_some(event.op),
        what,
        outcome,
        durable: event.durable && touches && event.act.writes(),
        touches,
    }
}

/// What the wrong bytes hold, in the oracle's words.
pub(crate) fn found<'a>(case: &Case<'a>) -> Option<&'a str> {
    let (_, rest) = case.finding.text.split_once("found ")?;
    Some(rest.split_once(", allowed: ").map_or(rest, |(found, _)| found))
}

/// What had promised the content that is missing: `flush 3, sent after op 2 had completed, had succeeded`.
pub(crate) fn promise(case: &Case<'_>) -> Option<String> {
    let history = &case.outcome.history;
    let done = |event: &&Event| event.ending == Some(Ending::Done);
    let last = history.iter().filter(done).rfind(|event| {
        let writes = matches!(event.act, Act::Write { .. } | Act::Zeroes { .. });
        writes && case.finding.allowed.iter().any(|words| words.starts_with(&format!("op {} ", event.op)))
    })?;
    let ended = last.ended?;
    if let Act::Write { fua: true, .. } | Act::Zeroes { fua: true, .. } = last.act {
        return Some(format!("op {} had completed, and was durable by itself", last.op));
    }
    let flush = history.iter().filter(done).find(|event| event.act == Act::Flush && event.submit > ended);
    Some(match flush {
        Some(flush) => format!("flush {}, sent after op {} had completed, had succeeded", flush.op, last.op),
        None => format!("op {} had completed", last.op),
    })
}
