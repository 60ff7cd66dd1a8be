//! A plan against a target, judged.
//!
//! One run is one [`Simulation`](blkproof_sim::Simulation) for each life of the image between power cuts. The client's
//! requests are its tasks; the oracle hears of each at its first poll and at its end, so that its order of events is the
//! order in which the driver was asked and answered. When all requests have ended, faults stop, everything is drained, and
//! what was touched is read again; then the image is closed, checked, opened, and read once more (CM 4.15).
//!
//! Power cuts are looked into *beside* the run: at each moment worth it the run stands still, states of its disk are
//! opened and judged, and the run goes on as if nothing had been (CM 5.3, 5.4).

mod adversary;
mod client;
mod events;
mod failing;
mod finding;
mod halt;
mod life;
mod now;
mod panics;
mod recover;
mod stats;
mod touched;

use blkproof_sim::IoKey;

use crate::oracle;
use crate::plan::Plan;
use crate::target::Target;

pub(crate) use self::events::QUIET;
pub use self::events::{Event, What};
pub(crate) use self::failing::Failing;
pub use self::finding::Finding;
pub(crate) use self::now::now;
pub(crate) use self::panics::{Panic, caught};
pub(crate) use self::recover::judge_check;
pub use self::stats::Stats;
pub(crate) use self::touched::Touched;

/// Bounds of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Moves after which a run counts as endless.
    pub steps: u64,
    /// Findings after which a run stops.
    pub findings: usize,
    /// Have images checked whenever no driver has them open.
    pub check: bool,
    /// Keep what happened, for a report: [`Outcome::events`] and [`Outcome::history`].
    pub events: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { steps: 1_000_000, findings: 1, check: true, events: false }
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What is wrong, in the order in which it was seen.
    pub findings: Vec<Finding>,
    /// What was done.
    pub stats: Stats,
    /// Two runs with one digest made the same moves, and their disks gave the same answers.
    pub digest: u64,
    /// The requests below that the plan's own power cut decided over, in the order of their effects; `None` if there was
    /// none.
    pub undecided: Option<Vec<IoKey>>,
    /// The plan without chance: every fault that happened, and the order of the run, by name.
    pub explicit: Plan,
    /// What happened, in order; empty unless [`Settings::events`] asks for it.
    pub events: Vec<Event>,
    /// What was done to the 512 bytes around the first wrong byte of the first finding, if it has one, as the oracle
    /// had it then; empty unless [`Settings::events`] asks for it. Numbers that the plan does not have are of requests
    /// that the run makes at its end.
    pub history: Vec<oracle::Event>,
}

/// Runs a plan.
pub fn run(plan: &Plan, target: &dyn Target, settings: &Settings) -> Outcome {
    life::go(plan, target, settings, &halt::Halt::new(&|| false))
}

/// Runs a plan, unless it has to stop before its end: then there is no outcome, for half of a run says nothing.
///
/// `stop` is asked every few hundred moves and before each state after a power cut, by the thread that calls; once it
/// says so, it is not asked again. A driver that never gives the thread back is not interrupted.
pub fn run_until(plan: &Plan, target: &dyn Target, settings: &Settings, stop: &dyn Fn() -> bool) -> Option<Outcome> {
    let halt = halt::Halt::new(stop);
    let outcome = life::go(plan, target, settings, &halt);
    (!halt.heard()).then_some(outcome)
}
