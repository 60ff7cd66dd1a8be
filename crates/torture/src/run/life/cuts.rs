//! Power cuts: those of the plan, and those looked into beside the run.

use std::cell::RefCell;
use std::rc::Rc;

use blkproof_sim::{IoKey, MoveKey, Owner, Simulation, Step};

use super::Run;
use crate::plan::{CrashPlan, CutPoint, CutState, OpId};
use crate::run::events::What;
use crate::run::finding::Finding;
use crate::run::recover::{self, Explorer};

impl<'a> Run<'a> {
    /// Cuts the power now, and begins the next life.
    pub(super) fn cut(&mut self, id: OpId, state: &CutState) -> bool {
        let crash = self.disk.crash();
        let content = match recover::content_of(&crash, state) {
            Ok(content) => content,
            Err(text) => {
                self.report(Finding::new("plan", "cut", text));
                return false;
            }
        };
        self.note_cut(CutPoint::BeforeOp(id), state, || crash.ios());
        let after = self.client.oracle().after_crash().into_oracle();
        self.node = None;
        self.keep_order();
        self.lives = self.lives.saturating_add(1);
        self.simulation = Simulation::new(&self.plan.schedule);
        self.disk = self.simulation.disk(Self::options(self.plan, self.target, content.flattened()));
        self.disk.set_adversary(Some(self.client.damage.adversary()));
        *self.client.oracle.borrow_mut() = after;
        self.open(Owner(id), "recovery")
    }

    pub(super) fn keep_order(&mut self) {
        self.holds.extend(self.simulation.holds());
        self.steps = self.steps.saturating_add(self.simulation.steps());
        self.digest = blkproof_block::choice::hash(self.digest, self.simulation.digest());
    }

    /// Looks into power cuts just before a move. Whether the run is over.
    pub(super) fn look_before(&mut self, key: MoveKey) -> bool {
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
    pub(super) fn look_after(&mut self) -> bool {
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
    pub(super) fn is_planned(&mut self, point: CutPoint) -> bool {
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
        self.over = true;
        true
    }

    pub(super) fn explore(&mut self, point: CutPoint) {
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

    pub(super) fn scene(&self) -> recover::Scene<'a> {
        recover::Scene {
            halt: self.halt,
            target: self.target,
            spec: &self.plan.target,
            promises: self.promises,
            base: self.base.clone(),
            crash: self.disk.crash(),
            after: self.client.oracle().after_crash(),
            touched: Rc::clone(&self.touched_quickly),
            check: self.settings.check,
            ids: self.own,
            memo: RefCell::default(),
        }
    }
}
