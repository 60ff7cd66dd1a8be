//! A run, from the creation of the image to its last comparison.

mod cuts;
mod end;
mod image;
mod queues;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use blkproof_block::Node;
use blkproof_sim::disk::{Content, DiskOptions};
use blkproof_sim::{IoKey, MoveKey, Owner, Schedule, SimDisk, Simulation, Strategy, Stuck, TaskId};

use crate::oracle::{self, Oracle};
use crate::plan::{Act, CrashPlan, CutPoint, Faults, Op, OpId, Plan, RandomFaults};
use crate::run::adversary::Damage;
use crate::run::client::{self, Client};
use crate::run::events::{Log, What};
use crate::run::finding::Finding;
use crate::run::halt::Halt;
use crate::run::life::queues::Queues;
use crate::run::panics::{Panic, caught};
use crate::run::recover::Explorer;
use crate::run::touched::Touched;
use crate::run::{Outcome, Settings, Stats};
use crate::target::{Promises, Target, base_image};

pub(super) fn go(plan: &Plan, target: &dyn Target, settings: &Settings, halt: &Halt<'_>) -> Outcome {
    let mut run = match Run::new(plan, target, *settings, halt) {
        Ok(run) => run,
        Err(text) => {
            let finding = Finding::new("create", "create", text);
            return Outcome {
                findings: vec![finding],
                stats: Stats::default(),
                digest: 0,
                undecided: None,
                explicit: plan.clone(),
                events: Vec::new(),
                history: Vec::new(),
            };
        }
    };
    if let Err(panic) = caught(|| run.go()) {
        run.panicked(&panic);
        // A driver that panicked may do so again when it is dropped.
        let _ = caught(|| run.forget());
    }
    run.outcome()
}

/// Where a request of the plan stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Waits,
    Runs(TaskId),
    Ended,
}

struct Run<'a> {
    plan: &'a Plan,
    target: &'a dyn Target,
    settings: Settings,
    halt: &'a Halt<'a>,
    promises: Promises,
    simulation: Simulation,
    disk: SimDisk,
    base: Option<Rc<Content>>,
    /// The disk that the base lies on while the image is open.
    base_disk: Option<SimDisk>,
    client: Rc<Client>,
    node: Option<Node>,
    places: Vec<Place>,
    /// Where each request stands in the plan.
    index: BTreeMap<OpId, usize>,
    /// Moves of each request so far.
    moves: Vec<u32>,
    queues: Queues,
    /// No more of the plan is done.
    over: bool,
    explorer: Option<Explorer>,
    stats: Stats,
    /// Of the lives before this one.
    holds: Vec<blkproof_sim::Hold>,
    digest: u64,
    /// Moves of earlier lives.
    steps: u64,
    /// Lives so far, between power cuts.
    lives: u32,
    /// What is read again at the end of a life, and after each power cut that is looked into.
    touched: Rc<Touched>,
    touched_quickly: Rc<Touched>,
    undecided: Option<Vec<IoKey>>,
    /// The next id of a request that the plan does not have.
    own: OpId,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan, target: &'a dyn Target, settings: Settings, halt: &'a Halt<'a>) -> Result<Self, String> {
        let image = target.create(&plan.target)?;
        let base = plan.target.base.map(|size| Rc::new(base_image(size)));
        let mut simulation = Simulation::new(&plan.schedule);
        let promises = target.promises(&plan.target);
        let log = Log::new(settings.events);
        let damage = Damage::new(&plan.faults, Rc::clone(&log));
        let disk = simulation.disk(Self::options(plan, target, image));
        disk.set_adversary(Some(damage.adversary()));
        let client = Rc::new(Client {
            oracle: RefCell::new(Oracle::with_promises(plan.target.size, plan.target.base, promises.of_client())),
            damage,
            log,
            findings: RefCell::default(),
            ended: RefCell::default(),
            settled: RefCell::default(),
            judged: 0.into(),
            phase: "run".into(),
            flush_failed: false.into(),
        });
        let explorer = match &plan.crash {
            CrashPlan::Explore { states, depth, seed } if promises.crash_safe => {
                Some(Explorer::new(*states, *depth, *seed))
            }
            _ => None,
        };
        Ok(Self {
            plan,
            target,
            settings,
            halt,
            promises,
            simulation,
            disk,
            base,
            base_disk: None,
            client,
            node: None,
            places: vec![Place::Waits; plan.ops.len()],
            index: plan.ops.iter().enumerate().map(|(index, op)| (op.id, index)).collect(),
            moves: vec![0; plan.ops.len()],
            queues: Queues::new(&plan.ops),
            over: false,
            explorer,
            stats: Stats::default(),
            holds: Vec::new(),
            digest: 0,
            steps: 0,
            lives: 1,
            touched: Rc::new(Touched::closely(plan)),
            touched_quickly: Rc::new(Touched::quickly(plan)),
            undecided: None,
            own: plan.ops.iter().map(|op| op.id).max().unwrap_or(0),
        })
    }

    fn options(plan: &Plan, target: &dyn Target, content: Content) -> DiskOptions {
        DiskOptions {
            grows: target.grows(),
            block_size: plan.disk.block,
            profile: plan.disk.profile,
            kind: plan.disk.kind,
            flush_error: plan.disk.flush_error,
            seed: plan.disk.seed,
            ..DiskOptions::new(content)
        }
    }

    fn go(&mut self) {
        if !self.open(Owner::default(), "open") {
            return;
        }
        while !self.done() {
            self.launch();
            // The plan's own power cut was just before a request that was to be sent.
            if self.over {
                return;
            }
            let Some(key) = self.simulation.choose() else {
                if self.done() {
                    break;
                }
                if self.launch_barrier() {
                    continue;
                }
                return self.stuck();
            };
            if self.look_before(key) {
                return;
            }
            self.take(key);
            self.after(key);
            if self.look_after() || self.halt.moved() {
                return;
            }
            if self.simulation.steps() >= self.settings.steps {
                return self.stuck_with(&Stuck::BusyLoop { steps: self.settings.steps, owners: Vec::new() });
            }
        }
        self.end();
    }

    fn take(&mut self, key: MoveKey) {
        self.client.log.set_now(self.steps.saturating_add(self.simulation.steps()).saturating_add(1));
        self.client.log.moved(key);
        self.simulation.take();
    }

    fn done(&self) -> bool {
        self.over || self.queues.done() || self.full()
    }

    /// Whether there is no use in going on.
    fn full(&self) -> bool {
        self.halt.heard() || self.client.findings.borrow().len() >= self.settings.findings
    }

    // Requests.

    /// Sends the requests that wait for nothing any more.
    fn launch(&mut self) {
        for index in self.queues.heads() {
            let Some(op) = self.plan.ops.get(index) else { break };
            if self.over {
                return;
            }
            if self.places.get(index) == Some(&Place::Waits) && self.is_free(op) {
                self.send(index);
            }
            if self.over {
                break;
            }
        }
    }

    fn ended(&mut self, index: usize) {
        let plan = self.plan;
        let (Some(place), Some(op)) = (self.places.get_mut(index), plan.ops.get(index)) else { return };
        if std::mem::replace(place, Place::Ended) != Place::Ended {
            self.queues.ended(index, op);
        }
    }

    fn is_free(&self, op: &Op) -> bool {
        op.after.iter().all(|id| match self.index.get(id).and_then(|&index| self.places.get(index)) {
            Some(place) => *place == Place::Ended,
            None => true,
        })
    }

    fn send(&mut self, index: usize) {
        let plan = self.plan;
        let (Some(op), Some(node)) = (plan.ops.get(index), self.node.clone()) else { return };
        if self.is_planned(CutPoint::BeforeOp(op.id)) {
            return;
        }
        if self.explorer.is_some() && Oracle::cut_before(&op.act) {
            self.explore(CutPoint::BeforeOp(op.id));
        }
        let work = client::perform(Rc::clone(&self.client), node, op.clone());
        let task = self.simulation.spawn(Owner(op.id), work);
        self.stats.ops = self.stats.ops.saturating_add(1);
        if let Some(place) = self.places.get_mut(index) {
            *place = Place::Runs(task);
        }
    }

    /// Nothing moves any more: a reopening or a power cut may be next. Whether one was.
    fn launch_barrier(&mut self) -> bool {
        if self.simulation.is_busy() {
            return false;
        }
        let plan = self.plan;
        let Some(index) = self.queues.barrier() else { return false };
        let Some(op) = plan.ops.get(index) else { return false };
        self.client.log.note(|| What::Sent(op.id));
        let went = match &op.act {
            Act::Reopen => self.reopen(op.id),
            Act::Cut { state } => self.cut(op.id, state),
            _ => return false,
        };
        self.ended(index);
        if went {
            self.client.log.note(|| What::Answered(op.id, None));
        } else {
            self.over = true;
        }
        true
    }

    /// Takes note of a move, drops whom the plan drops now, and those who have ended.
    fn after(&mut self, key: MoveKey) {
        let ended = std::mem::take(&mut *self.client.ended.borrow_mut());
        for id in ended {
            if let Some(&index) = self.index.get(&id) {
                self.ended(index);
            }
        }
        let Some(&index) = self.index.get(&key.owner.0) else { return };
        let (Some(op), Some(moves)) = (self.plan.ops.get(index), self.moves.get_mut(index)) else { return };
        *moves = moves.saturating_add(1);
        if op.drop_at != Some(*moves) {
            return;
        }
        if let Some(&Place::Runs(task)) = self.places.get(index) {
            self.simulation.cancel(task);
            self.client.oracle().dropped(op.id);
            self.client.log.note(|| What::Dropped(op.id));
            self.stats.drops = self.stats.drops.saturating_add(1);
            self.ended(index);
        }
    }

    fn stuck(&mut self) {
        let stuck = self.simulation.stuck();
        self.stuck_with(&stuck);
    }

    fn stuck_with(&mut self, stuck: &Stuck) {
        let waiting: Vec<_> = stuck.owners().iter().filter(|owner| owner.0 > 0).map(|owner| owner.0).collect();
        let ops: Vec<_> =
            waiting.iter().filter_map(|id| self.op(*id)).map(|op| format!("{} ({})", op.id, op.act.name())).collect();
        let mut finding = Finding::new("hang", self.client.phase.get(), format!("{stuck}; ops {}", ops.join(", ")));
        finding.op = waiting.first().copied();
        self.report(finding);
        self.over = true;
    }

    fn op(&self, id: OpId) -> Option<&'a Op> {
        self.index.get(&id).and_then(|&index| self.plan.ops.get(index))
    }

    fn report(&self, mut finding: Finding) {
        finding.step = self.steps.saturating_add(self.simulation.steps());
        self.client.report(finding);
    }

    fn panicked(&self, panic: &Panic) {
        let text = format!("the driver panicked: {} ({})", panic.text, panic.site);
        let mut finding = Finding::new("panic", self.client.phase.get(), text);
        finding.signature.site = panic.site.clone();
        self.report(finding);
    }

    fn forget(&mut self) {
        self.node = None;
        self.simulation = Simulation::new(&Schedule::default());
    }

    fn next_id(&mut self) -> OpId {
        self.own = self.own.saturating_add(1);
        self.own
    }

    fn outcome(mut self) -> Outcome {
        self.keep_order();
        self.stats.moves = self.steps;
        self.stats.ios = self.client.damage.sent();
        self.stats.faults = self.client.damage.count() as u64;
        self.stats.judged = self.client.judged.get();
        let mut explicit = self.plan.clone();
        explicit.faults = Faults { named: self.client.damage.fired(), random: RandomFaults::default() };
        explicit.schedule = Schedule { strategy: Strategy::Fifo, seed: 0, holds: std::mem::take(&mut self.holds) };
        let findings: Vec<_> = self.client.findings.borrow_mut().drain(..).collect();
        if let CrashPlan::Explore { .. } = explicit.crash {
            explicit.crash = match findings.first().and_then(|finding| finding.cut.clone()) {
                Some((point, state)) => CrashPlan::At { point, state, again: None },
                None => CrashPlan::None,
            };
        }
        let history = self.history(&findings);
        // A finding ends a run with requests on their way, and a driver may panic when it is dropped so. What there is to
        // say has been said.
        let _ = caught(|| self.forget());
        let (events, undecided) = (self.client.log.take(), self.undecided);
        Outcome { findings, stats: self.stats, digest: self.digest, undecided, explicit, events, history }
    }

    /// What was done to the unit that the first finding is about. Power cuts are looked into beside the run, so that
    /// the oracle stands where it stood when the power went.
    fn history(&self, findings: &[Finding]) -> Vec<oracle::Event> {
        let range = findings.first().and_then(|finding| finding.range).filter(|range| !range.is_empty());
        let oracle = self.client.oracle.try_borrow();
        match (range, oracle) {
            (Some(range), Ok(oracle)) if self.settings.events => oracle.history(range.start / 512),
            _ => Vec::new(),
        }
    }
}
