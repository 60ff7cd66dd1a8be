//! A run, from the creation of the image to its last comparison.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use blkproof_block::graph::OpenError;
use blkproof_block::nodes::raw;
use blkproof_block::{BlockDevice, ByteRange, Node};
use blkproof_sim::disk::{Content, DiskOptions};
use blkproof_sim::{IoKey, MoveKey, Owner, Schedule, SimDisk, Simulation, Step, Strategy, Stuck, TaskId};

use super::adversary::Damage;
use super::client::{self, Client};
use super::events::{Log, What};
use super::finding::Finding;
use super::panics::{Panic, caught};
use super::recover::{self, Explorer};
use super::touched::Touched;
use super::{Outcome, Settings, Stats, now};
use crate::oracle::{self, Ending, Oracle};
use crate::plan::{Act, CrashPlan, CutPoint, CutState, Faults, Op, OpId, Plan, RandomFaults};
use crate::target::{Files, Promises, Target, base_image};

/// Times that an open is tried again after a fault, before faults stop.
const OPENS_MAX: u32 = 4;

pub(super) fn go(plan: &Plan, target: &dyn Target, settings: &Settings) -> Outcome {
    let mut run = match Run::new(plan, target, *settings) {
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

/// What opening or closing came to, put there by the task that did it.
type Slot<T> = Rc<RefCell<Option<T>>>;

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
    promises: Promises,
    simulation: Simulation,
    disk: SimDisk,
    base: Option<Rc<Content>>,
    client: Rc<Client>,
    node: Option<Node>,
    places: Vec<Place>,
    /// Where each request stands in the plan.
    index: BTreeMap<OpId, usize>,
    /// Moves of each request so far.
    moves: Vec<u32>,
    /// The first request that has not ended: nothing before it has to be looked at.
    first: usize,
    explorer: Option<Explorer>,
    stats: Stats,
    /// Of the lives before this one.
    holds: Vec<blkproof_sim::Hold>,
    digest: u64,
    /// Moves of earlier lives.
    steps: u64,
    touched: Rc<Touched>,
    undecided: Option<Vec<IoKey>>,
    /// The next id of a request that the plan does not have.
    own: OpId,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan, target: &'a dyn Target, settings: Settings) -> Result<Self, String> {
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
            promises,
            simulation,
            disk,
            base,
            client,
            node: None,
            places: vec![Place::Waits; plan.ops.len()],
            index: plan.ops.iter().enumerate().map(|(index, op)| (op.id, index)).collect(),
            moves: vec![0; plan.ops.len()],
            first: 0,
            explorer,
            stats: Stats::default(),
            holds: Vec::new(),
            digest: 0,
            steps: 0,
            touched: Rc::new(Touched::by(plan)),
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
            if self.look_after() {
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
        self.first >= self.plan.ops.len() || self.full()
    }

    fn full(&self) -> bool {
        self.client.findings.borrow().len() >= self.settings.findings
    }

    // Requests.

    /// Sends the requests that wait for nothing any more.
    fn launch(&mut self) {
        while self.places.get(self.first) == Some(&Place::Ended) {
            self.first = self.first.saturating_add(1);
        }
        // Queues that have a request on its way, or one that has to come first.
        let mut busy = [false; 256];
        for index in self.first..self.plan.ops.len() {
            let Some(op) = self.plan.ops.get(index) else { break };
            if matches!(op.act, Act::Reopen | Act::Cut { .. }) {
                break;
            }
            let queue = usize::from(op.queue);
            match self.places.get(index) {
                Some(Place::Ended) => continue,
                Some(Place::Waits) if busy.get(queue) == Some(&false) && self.is_free(op) => self.send(index),
                _ => {}
            }
            if let Some(busy) = busy.get_mut(queue) {
                *busy = true;
            }
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
        let Some(op) = self.plan.ops.get(self.first) else { return false };
        let op = op.clone();
        if let Act::Reopen | Act::Cut { .. } = op.act {
            self.client.log.note(|| What::Sent(op.id));
        }
        let went = match &op.act {
            Act::Reopen => self.reopen(op.id),
            Act::Cut { state } => self.cut(op.id, state),
            _ => return false,
        };
        if let Some(place) = self.places.get_mut(self.first) {
            *place = Place::Ended;
        }
        self.first = self.first.saturating_add(1);
        if went {
            self.client.log.note(|| What::Answered(op.id, None));
        } else {
            self.first = self.plan.ops.len();
        }
        true
    }

    /// Takes note of a move, drops whom the plan drops now, and those who have ended.
    fn after(&mut self, key: MoveKey) {
        for id in self.client.ended.borrow_mut().drain(..) {
            if let Some(place) = self.index.get(&id).and_then(|&index| self.places.get_mut(index)) {
                *place = Place::Ended;
            }
        }
        let Some(&index) = self.index.get(&key.owner.0) else { return };
        let (Some(op), Some(moves)) = (self.plan.ops.get(index), self.moves.get_mut(index)) else { return };
        *moves = moves.saturating_add(1);
        if op.drop_at != Some(*moves) {
            return;
        }
        if let Some(place) = self.places.get_mut(index)
            && let Place::Runs(task) = *place
        {
            self.simulation.cancel(task);
            self.client.oracle().dropped(op.id);
            self.client.log.note(|| What::Dropped(op.id));
            self.stats.drops = self.stats.drops.saturating_add(1);
            *place = Place::Ended;
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
        self.first = self.plan.ops.len();
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

    // Opening and closing.

    fn base_node(&self) -> Option<Node> {
        let content = Content::over(Rc::clone(self.base.as_ref()?));
        let disk = SimDisk::instant(DiskOptions { read_only: true, ..DiskOptions::new(content) });
        Some(Node::new(raw::Raw::new(disk)))
    }

    /// Runs `work` as a task of `owner` while nothing else is going on.
    fn alone<T: 'static>(&mut self, owner: Owner, work: impl Future<Output = T> + 'static) -> Option<T> {
        let slot: Slot<T> = Rc::default();
        let into = Rc::clone(&slot);
        self.simulation.spawn(owner, async move {
            let value = work.await;
            *into.borrow_mut() = Some(value);
        });
        while self.simulation.is_busy() {
            let Some(key) = self.simulation.choose() else { break };
            if self.look_before(key) || self.simulation.steps() >= self.settings.steps {
                break;
            }
            self.take(key);
        }
        let value = slot.borrow_mut().take();
        if value.is_none() && !self.full() {
            self.stuck();
        }
        value
    }

    /// Opens the image; a fault may make that fail, and then it is tried again.
    fn open(&mut self, owner: Owner, phase: &'static str) -> bool {
        let before = self.client.phase.replace(phase);
        let opened = self.try_open(owner);
        self.client.phase.set(before);
        opened
    }

    fn try_open(&mut self, owner: Owner) -> bool {
        self.client.log.note(|| What::Begins("opens the image"));
        self.client.damage.set_opening(true);
        self.client.flush_failed.set(false);
        for tries in 0.. {
            self.client.damage.lift();
            if tries == OPENS_MAX {
                self.client.damage.set_quiet(true);
            }
            let faults_before = self.client.damage.count();
            let files = Files { image: Node::new(self.disk.clone()), base: self.base_node() };
            let work = self.target.open(files, &self.plan.target);
            let result = self.alone(owner, work);
            match result {
                Some(Ok(node)) => {
                    self.client.sized(None, &node);
                    self.node = Some(node);
                    break;
                }
                Some(Err(error)) if self.client.damage.count() > faults_before || injected(&error) => {}
                Some(Err(error)) => {
                    let text = format!("the image does not open: {error}");
                    self.report(Finding::new("open", self.client.phase.get(), text));
                    break;
                }
                None => break,
            }
        }
        self.client.damage.set_quiet(false);
        self.client.damage.set_opening(false);
        self.node.is_some()
    }

    /// Closes the image, and has it checked. Whether a driver is left to go on with.
    fn close(&mut self, owner: Owner) -> bool {
        let Some(node) = self.node.take() else { return false };
        self.client.log.note(|| What::Begins("closes the image"));
        self.client.damage.set_opening(true);
        let faults_before = self.client.damage.count();
        let result = self.alone(owner, async move { node.close().await });
        self.client.damage.set_opening(false);
        let Some(result) = result else { return false };
        if let Err(error) = &result {
            self.client.judge_error(None, "closing the image", error, faults_before);
        }
        // What of dropped requests has not landed by now lands or does not: the process is gone.
        let disk = self.disk.clone();
        self.alone(owner, async move {
            let _ = disk.drain().await;
        });
        self.client.oracle().reopened(result.is_ok());
        self.check(result.is_ok());
        !self.full()
    }

    fn check(&mut self, clean: bool) {
        if !self.settings.check {
            return;
        }
        self.stats.checks = self.stats.checks.saturating_add(1);
        let trouble = self.client.damage.count() > 0 || self.stats.drops > 0 || !clean;
        let verdict = self.target.check(&self.disk.content());
        if let Some(finding) = recover::judge_check(verdict, trouble && self.promises.leaks_after_error, "close") {
            self.report(finding);
        }
    }

    fn reopen(&mut self, id: OpId) -> bool {
        self.stats.reopens = self.stats.reopens.saturating_add(1);
        self.close(Owner(id)) && self.open(Owner(id), "reopen")
    }

    // Power cuts.

    /// Cuts the power now, and begins the next life.
    fn cut(&mut self, id: OpId, state: &CutState) -> bool {
        let crash = self.disk.crash();
        let content = match recover::content_of(&crash, state) {
            Ok(content) => content,
            Err(text) => {
                self.report(Finding::new("plan", "cut", text));
                return false;
            }
        };
        let undecided = || crash.ios();
        self.note_cut(CutPoint::BeforeOp(id), state, undecided);
        let after = self.client.oracle().after_crash().into_oracle();
        self.node = None;
        self.keep_order();
        self.simulation = Simulation::new(&self.plan.schedule);
        self.disk = self.simulation.disk(Self::options(self.plan, self.target, content.flattened()));
        self.disk.set_adversary(Some(self.client.damage.adversary()));
        *self.client.oracle.borrow_mut() = after;
        self.open(Owner(id), "recovery")
    }

    fn keep_order(&mut self) {
        self.holds.extend(self.simulation.holds());
        self.steps = self.steps.saturating_add(self.simulation.steps());
        self.digest = blkproof_block::choice::hash(self.digest, self.simulation.digest());
    }

    /// Looks into power cuts just before a move. Whether the run is over.
    fn look_before(&mut self, key: MoveKey) -> bool {
        if key.step != Step::Done {
            return false;
        }
        let Some(io) = key.io() else { return false };
        if self.is_planned(CutPoint::Before(key)) {
            return true;
        }
        if self.explorer.is_some() && self.disk.settles(io) {
            self.explore(CutPoint::Before(key));
        }
        self.full()
    }

    /// The same just after something became certain to the client.
    fn look_after(&mut self) -> bool {
        let settled: Vec<_> = self.client.settled.borrow_mut().drain(..).collect();
        for id in settled {
            if self.is_planned(CutPoint::AfterOp(id)) {
                return true;
            }
            if self.explorer.is_some() {
                self.explore(CutPoint::AfterOp(id));
            }
        }
        self.full()
    }

    /// Whether the plan's own power cut is now: it is judged, and the run is over.
    fn is_planned(&mut self, point: CutPoint) -> bool {
        let CrashPlan::At { point: planned, state, again } = &self.plan.crash else { return false };
        if *planned != point {
            return false;
        }
        let scene = self.scene();
        self.undecided = Some(scene.crash.ios());
        self.note_cut(point, state, || scene.crash.ios());
        let found = Explorer::one(scene, state, again.as_deref(), &mut self.stats);
        if let Some(mut finding) = found {
            finding.cut = Some((point, state.clone()));
            self.report(finding);
        }
        self.first = self.plan.ops.len();
        true
    }

    fn explore(&mut self, point: CutPoint) {
        let Some(mut explorer) = self.explorer.take() else { return };
        let found = explorer.explore(self.scene(), point, &mut self.stats);
        self.explorer = Some(explorer);
        if let Some((mut finding, state)) = found {
            self.note_cut(point, &state, || self.disk.crash().ios());
            finding.cut = Some((point, state));
            self.report(finding);
        }
    }

    fn note_cut(&self, point: CutPoint, state: &CutState, undecided: impl FnOnce() -> Vec<IoKey>) {
        self.client.log.note(|| What::Cut { point, state: state.clone(), undecided: undecided() });
    }

    fn scene(&self) -> recover::Scene<'a> {
        recover::Scene {
            target: self.target,
            spec: &self.plan.target,
            promises: self.promises,
            base: self.base.clone(),
            crash: self.disk.crash(),
            after: self.client.oracle().after_crash(),
            touched: Rc::clone(&self.touched),
            check: self.settings.check,
        }
    }

    // The end.

    /// Faults stop; everything is drained, read, closed, checked, opened, and read again.
    fn end(&mut self) {
        if self.full() || self.node.is_none() {
            return;
        }
        self.client.damage.set_quiet(true);
        self.client.phase.set("end");
        self.client.log.note(|| What::Begins("faults stop; all is drained and read"));
        if !self.compare(false) {
            return;
        }
        let planned = self.is_planned(CutPoint::End);
        if planned || !self.close(Owner::default()) {
            return;
        }
        if self.explorer.is_some() {
            self.explore(CutPoint::End);
        }
        if !self.full() && self.open(Owner::default(), "end") {
            self.client.damage.set_quiet(true);
            self.client.phase.set("end");
            self.client.log.note(|| What::Begins("all is read again"));
            self.compare(true);
            self.node = None;
        }
    }

    /// Drains, and reads what was touched. Whether the driver still works.
    fn compare(&mut self, again: bool) -> bool {
        let Some(node) = self.node.clone() else { return false };
        let works = |run: &Self, what: &str, error: &blkproof_block::IoError| {
            if run.promises.recovers || again {
                let text = format!("{what} failed with '{error}', although faults have stopped");
                run.report(Finding::new("error-contract", "end", text));
            }
        };
        let drain = self.next_id();
        self.client.oracle().submit(drain, &Act::Drain);
        let draining = node.clone();
        match self.alone(Owner::default(), async move { draining.drain().await }) {
            Some(Ok(())) => self.client.oracle().end(drain, Ending::Done),
            Some(Err(error)) => {
                works(self, "a drain", &error);
                return true;
            }
            None => return false,
        }
        self.disk.set_instant(true);
        // These reads take no moves, and are many.
        let noted = self.client.log.switch(false);
        let size = node.info().size;
        let read = self.next_id();
        let whole = ByteRange { start: 0, end: size };
        self.client.oracle().submit(read, &Act::Read { range: whole, vector: Vec::new() });
        let touched = Rc::clone(&self.touched);
        for part in touched.pieces(size) {
            if self.full() {
                break;
            }
            let mut data = vec![0xcc; usize::try_from(part.len()).unwrap_or(0)];
            match now(node.read(part.start, &mut data)) {
                Some(Ok(())) => client::judge_read(&self.client, read, part, &data),
                Some(Err(error)) => {
                    works(self, &format!("a read of {part}"), &error);
                    break;
                }
                None => {
                    self.report(Finding::new("hang", "end", format!("a read of {part} does not end")));
                    return false;
                }
            }
        }
        self.client.oracle().end(read, Ending::Done);
        self.disk.set_instant(false);
        self.client.log.switch(noted);
        !self.full()
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

fn injected(error: &OpenError) -> bool {
    matches!(error, OpenError::Io { source, .. } if source.injected_by.is_some())
}
