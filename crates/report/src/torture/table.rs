//! The plan as a table (CM 12.2 (3)).

use blkproof_torture::plan::{Act, OpId, size_text};

use super::Case;
use super::model::{End, Run};

/// One line of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    pub(crate) op: OpId,
    pub(crate) queue: Option<u8>,
    pub(crate) what: String,
    /// Moves from the first to the last, as far as it got.
    pub(crate) moves: String,
    pub(crate) outcome: String,
    /// What failed below it, in words.
    pub(crate) faults: Vec<String>,
    /// It touches the bytes that are wrong.
    pub(crate) guilty: bool,
}

/// All ops.
pub(crate) fn rows(case: &Case<'_>, run: &Run<'_>) -> Vec<Row> {
    let all = run.requests.iter().map(|request| {
        let op = request.op;
        let moves = match (request.sent, request.ended) {
            (Some(sent), Some(ended)) if sent == ended => sent.to_string(),
            (Some(sent), Some(ended)) => format!("{sent}–{ended}"),
            (Some(sent), None) => format!("{sent}–"),
            (None, _) => String::new(),
        };
        let outcome = match (run.known, request.end, &op.act) {
            (false, ..) => String::new(),
            (true, End::Done, Act::Cut { .. }) => "the power went".to_owned(),
            (true, end, _) => end.words(),
        };
        let own = |fault: &&(OpId, String)| fault.0 == op.id;
        Row {
            op: op.id,
            queue: (!matches!(op.act, Act::Reopen | Act::Cut { .. })).then_some(op.queue),
            what: op.describe(),
            moves,
            outcome,
            faults: faults(run).iter().filter(own).map(|(_, words)| words.clone()).collect(),
            guilty: is_guilty(case, &op.act),
        }
    });
    all.collect()
}

/// Whether it touches the bytes that are wrong.
pub(crate) fn is_guilty(case: &Case<'_>, act: &Act) -> bool {
    let wrong = case.finding.range.filter(|range| !range.is_empty());
    matches!((wrong, act.range()), (Some(wrong), Some(range)) if range.overlaps(wrong))
}

/// What failed below, by owner: `1#2, write 0x200..0x400: fails with "Input/output error"`.
pub(crate) fn faults(run: &Run<'_>) -> Vec<(OpId, String)> {
    let mut faults = Vec::new();
    for below in &run.below {
        if let Some(fault) = below.fault {
            let words = format!("{} ({})", fault.describe(), below.words());
            faults.push((below.info.key.owner.0, words));
        }
    }
    faults
}

/// What the plan is done to: `vdi, disk of 1M, over a base of 3M; cluster_size=4K`.
pub(crate) fn subject(case: &Case<'_>) -> String {
    let target = &case.plan.target;
    let mut words = format!("{}, a disk of {}", target.name, size_text(target.size));
    if let Some(base) = target.base {
        words.push_str(&format!(" over a base of {}", size_text(base)));
    }
    for (name, value) in &target.options {
        words.push_str(&format!(", {name}={value}"));
    }
    let disk = &case.plan.disk;
    words.push_str(&format!("; below it blocks of {}, power cuts by profile {}", disk.block, disk.profile.name()));
    words
}
