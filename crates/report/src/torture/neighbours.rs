//! Other states after the same power cut, and whether they show the same (CM 12.2 (6)): what a reader asks first of a
//! finding that one lost request makes.

use blkproof_torture::finding::Signature;
use blkproof_torture::plan::{CrashPlan, CutState, Plan};
use blkproof_torture::run::{Outcome, Settings, run_until};
use blkproof_torture::target::Target;

/// Requests whose loss is tried, at most.
const TRIED_MAX: usize = 24;

/// Another state, and what it showed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// What is left of the disk.
    pub state: CutState,
    /// It shows the finding.
    pub fails: bool,
}

/// Runs the plan with its power cut left as it is, but with all of what was not durable lost, with all of it kept, and
/// with each single request lost or kept. Empty for a plan without a cut to look into. When `stop` says so, it ends with
/// what it has.
#[must_use]
pub fn look(
    plan: &Plan,
    outcome: &Outcome,
    signature: &Signature,
    target: &dyn Target,
    stop: &dyn Fn() -> bool,
) -> Vec<Neighbour> {
    let CrashPlan::At { point, state, again } = &plan.crash else { return Vec::new() };
    let ios = outcome.undecided.as_deref().unwrap_or_default();
    let mut states = vec![CutState::AllOld, CutState::AllNew];
    if ios.len() > 1 {
        states.extend(ios.iter().take(TRIED_MAX).map(|&io| CutState::Drop(vec![io])));
    }
    if ios.len() > 2 {
        states.extend(ios.iter().take(TRIED_MAX).map(|&io| CutState::Keep(vec![io])));
    }
    states.retain(|other| other != state);
    let settings = Settings::default();
    let judge = |state: CutState| {
        let crash = CrashPlan::At { point: *point, state: state.clone(), again: again.clone() };
        let outcome = run_until(&Plan { crash, ..plan.clone() }, target, &settings, stop)?;
        let fails = outcome.findings.iter().any(|finding| finding.signature == *signature);
        Some(Neighbour { state, fails })
    };
    states.into_iter().map_while(judge).collect()
}

/// In words, a line for those that fail and one for those that pass.
pub(crate) fn lines(neighbours: &[Neighbour]) -> Vec<String> {
    let line = |fails: bool, words: &str| {
        let states: Vec<_> =
            neighbours.iter().filter(|other| other.fails == fails).map(|other| other.state.describe()).collect();
        (!states.is_empty()).then(|| format!("{words}: {}", states.join("; ")))
    };
    [line(true, "The same shows if the cut leaves"), line(false, "It does not show if the cut leaves")]
        .into_iter()
        .flatten()
        .map(|line| format!("{line}."))
        .collect()
}
