//! One run of a plan by threads.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use blkproof_block::choice::hash;

use super::conduct::conduct;
use super::disk::Disk;
use super::driver::Target;
use super::judge::Judge;
use super::machine;
use super::record::Record;
use crate::oracle;
use crate::plan::{Act, CrashPlan, Faults, Plan, RandomFaults};
use crate::run::{Finding, Stats};

/// Bounds of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// For so long nothing was answered: the run hangs. It has to be beyond all doubt, as nothing else here depends on how
    /// busy the machine is.
    pub patience: Duration,
    /// Have images checked whenever no driver has them open.
    pub check: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { patience: Duration::from_secs(20), check: true }
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What is wrong first, in the order of the record.
    pub finding: Option<Finding>,
    /// What was done.
    pub stats: Stats,
    /// The plan, with the faults that happened by name instead of by chance.
    pub explicit: Plan,
    /// What was done to the 512 bytes around the first wrong byte, in the order in which it was asked and answered.
    pub history: Vec<oracle::Event>,
}

/// The plan's requests dealt out to so many threads, at least one.
#[must_use]
pub fn spread(mut plan: Plan, threads: u8) -> Plan {
    for op in plan.ops.iter_mut().filter(|op| !matches!(op.act, Act::Reopen | Act::Cut { .. })) {
        let queue = hash(hash(plan.seed, 0x7175_6575), u64::from(op.id)) % u64::from(threads.max(1));
        op.queue = u8::try_from(queue).unwrap_or(0);
    }
    plan
}

/// What a run's threads share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) plan: Plan,
    pub(super) number: u64,
    pub(super) check: bool,
    pub(super) record: Record,
    pub(super) disk: OnceLock<Arc<Disk>>,
}

/// Runs a plan by as many threads as it has queues. The disk's pauses depend on the number of the run: that of the same
/// plan with another number differs in them.
pub fn run(plan: &Plan, target: &Arc<dyn Target>, settings: &Settings, number: u64) -> Outcome {
    let mut outcome = Outcome { finding: None, stats: Stats::default(), explicit: plan.clone(), history: Vec::new() };
    if let Some(text) = unfit(plan) {
        outcome.finding = Some(Finding::new("plan", "plan", text));
        return outcome;
    }
    let shared = Arc::new(Shared {
        plan: plan.clone(),
        number,
        check: settings.check,
        record: Record::default(),
        disk: OnceLock::new(),
    });
    let (theirs, drives) = (Arc::clone(&shared), Arc::clone(target));
    let thread = match machine::start(move || conduct(&theirs, &*drives)) {
        Ok(thread) => thread,
        Err(error) => {
            outcome.finding = Some(Finding::new("create", "create", format!("no thread could be started: {error}")));
            return outcome;
        }
    };
    let ended = shared.record.ends(settings.patience);
    if ended {
        // It has nothing left to do.
        let _ = thread.join();
    } else if let Some(disk) = shared.disk.get() {
        disk.give_up();
    }
    let mut judge = Judge::new(plan, target.promises(&plan.target));
    judge.hear(shared.record.take());
    if !ended {
        judge.hangs(settings.patience);
    }
    if let Some(disk) = shared.disk.get() {
        judge.stats.ios = disk.sent();
        judge.stats.faults = disk.faults() as u64;
        outcome.explicit.faults = Faults { named: disk.fired(), random: RandomFaults::default() };
    }
    outcome.history = judge.history();
    (outcome.finding, outcome.stats) = (judge.finding, judge.stats);
    outcome
}

/// Why a plan is none for threads.
fn unfit(plan: &Plan) -> Option<String> {
    if let Err(error) = plan.validate() {
        return Some(error.to_string());
    }
    if plan.crash != CrashPlan::None {
        return Some("threads know no power cuts; leave 'crash' out".to_owned());
    }
    if plan.target.base.is_some() {
        return Some("threads know no base images; leave 'base' out".to_owned());
    }
    plan.ops.iter().find_map(|op| match op.act {
        Act::Status { .. } | Act::Resize { .. } | Act::Cut { .. } => {
            Some(format!("op {}: threads know no {}; leave it out", op.id, op.act.name()))
        }
        _ if op.drop_at.is_some() => Some(format!("op {}: threads drop no requests; leave 'drop@' out", op.id)),
        _ => None,
    })
}
