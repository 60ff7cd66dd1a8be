//! What a power cut left (CM 12.2 (6)).

use blkproof_sim::IoKey;
use blkproof_torture::plan::CutState;

use super::Case;
use super::model::{Cut, Run};

/// What became of a request below at the power cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    Kept,
    Lost,
    /// So many blocks of it, the first or the last ones.
    Torn(bool, u64),
    /// A seed or a number decides.
    Unknown,
}

impl Fate {
    pub(crate) fn words(self) -> String {
        match self {
            Self::Kept => "kept".to_owned(),
            Self::Lost => "lost".to_owned(),
            Self::Torn(first, blocks) => {
                let end = if first { "first" } else { "last" };
                format!("torn: its {end} {} kept", crate::text::plural(blocks, "block"))
            }
            Self::Unknown => "in part".to_owned(),
        }
    }

    /// For programs.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Lost => "lost",
            Self::Torn(..) => "torn",
            Self::Unknown => "unknown",
        }
    }
}

/// What became of one.
pub(crate) fn fate(state: &CutState, io: IoKey) -> Fate {
    let kept = |kept: bool| if kept { Fate::Kept } else { Fate::Lost };
    match state {
        CutState::AllOld => Fate::Lost,
        CutState::AllNew => Fate::Kept,
        CutState::Drop(ios) => kept(!ios.contains(&io)),
        CutState::Keep(ios) => kept(ios.contains(&io)),
        CutState::Tear { io: torn, first, blocks } if *torn == io => Fate::Torn(*first, *blocks),
        CutState::Tear { .. } => Fate::Kept,
        CutState::Seed(_) | CutState::Number(_) => Fate::Unknown,
    }
}

/// The power cut that the finding is about, or else the last one.
pub(crate) fn cut<'a>(case: &Case<'_>, run: &Run<'a>) -> Option<Cut<'a>> {
    let wanted = case.finding.cut.as_ref().map(|(point, _)| *point);
    let of_finding = run.cuts.iter().rfind(|cut| wanted.is_none_or(|point| point == cut.point));
    of_finding.copied()
}

/// Requests that the cut decided over, in words, and what became of each.
pub(crate) fn fates(run: &Run<'_>, cut: &Cut<'_>) -> Vec<(IoKey, String, Fate)> {
    let words = |io| run.io(io).map_or_else(|| "?".to_owned(), super::model::Below::words);
    cut.undecided.iter().map(|&io| (io, words(io), fate(cut.state, io))).collect()
}
