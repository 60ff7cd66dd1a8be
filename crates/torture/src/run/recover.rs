//! What a power cut leaves, opened and judged (CM 5.6, 5.7).

use std::collections::BTreeSet;
use std::rc::Rc;

use blkproof_block::nodes::raw;
use blkproof_block::{BlockDevice, Node};
use blkproof_fault::disk::name::Order;
use blkproof_fault::disk::{State, StateName};
use blkproof_sim::disk::{Content, Crash, DiskOptions};
use blkproof_sim::{IoKey, SimDisk};

use super::finding::Finding;
use super::panics::caught;
use super::touched::Touched;
use super::{Stats, now};
use crate::oracle::AfterCrash;
use crate::plan::{CutPoint, CutState, TargetSpec};
use crate::target::{Checked, Files, Promises, Target};

/// A moment at which the power may go, and who is to cope with it.
pub(super) struct Scene<'a> {
    pub(super) target: &'a dyn Target,
    pub(super) spec: &'a TargetSpec,
    pub(super) promises: Promises,
    pub(super) base: Option<Rc<Content>>,
    pub(super) crash: Crash,
    pub(super) after: AfterCrash,
    pub(super) check: bool,
    pub(super) touched: Rc<Touched>,
}

/// Goes through the states of one moment after the other.
#[derive(Debug)]
pub(super) struct Explorer {
    states: u32,
    depth: u8,
    seed: u64,
}

impl Explorer {
    pub(super) fn new(states: u32, depth: u8, seed: u64) -> Self {
        Self { states, depth, seed }
    }

    /// Looks into the states of a moment; the first that is not coped with, if there is one.
    pub(super) fn explore(
        &mut self,
        scene: Scene<'_>,
        point: CutPoint,
        stats: &mut Stats,
    ) -> Option<(Finding, CutState)> {
        let count = scene.crash.count();
        stats.points = stats.points.saturating_add(1);
        stats.possible = stats.possible.saturating_add(count.count);
        if count.count <= u64::from(self.states) {
            stats.exhausted = stats.exhausted.saturating_add(1);
        }
        let budget = usize::try_from(self.states).unwrap_or(usize::MAX);
        let seed = blkproof_block::choice::hash(self.seed, number_of(point));
        let mut seen = BTreeSet::new();
        for name in scene.crash.names(budget, seed) {
            let Ok(state) = scene.crash.state(&name) else { continue };
            stats.states = stats.states.saturating_add(1);
            if !seen.insert(shape(&state)) {
                continue;
            }
            if let Some(finding) = scene.judge(&state, self.depth, stats) {
                return Some((finding, cut_state(&scene.crash, &name)));
            }
        }
        None
    }

    /// Looks into one state.
    pub(super) fn one(
        scene: Scene<'_>,
        state: &CutState,
        _again: Option<&(CutPoint, CutState)>,
        stats: &mut Stats,
    ) -> Option<Finding> {
        stats.states = stats.states.saturating_add(1);
        match name_of(&scene.crash, state).and_then(|name| scene.crash.state(&name).map_err(|error| error.to_string()))
        {
            Ok(state) => scene.judge(&state, 0, stats),
            Err(text) => Some(Finding::new("plan", "cut", text)),
        }
    }
}

impl Scene<'_> {
    /// Opens a state, and judges what the client sees.
    fn judge(&self, state: &State, depth: u8, stats: &mut Stats) -> Option<Finding> {
        stats.distinct = stats.distinct.saturating_add(1);
        let content = self.crash.lay(state);
        match caught(|| self.recover(content, depth, stats)) {
            Ok(finding) => finding,
            Err(panic) => {
                let text = format!("the driver panicked after a power cut: {} ({})", panic.text, panic.site);
                let mut finding = Finding::new("panic", "recovery", text);
                finding.signature.site = panic.site;
                Some(finding)
            }
        }
    }

    fn recover(&self, content: Content, _depth: u8, stats: &mut Stats) -> Option<Finding> {
        if self.check {
            stats.checks = stats.checks.saturating_add(1);
            let verdict = self.target.check(&content);
            if let Some(finding) = judge_check(verdict, self.promises.leaks_after_crash, "recovery") {
                return Some(Finding { text: format!("after a power cut {}", finding.text), ..finding });
            }
        }
        let options = DiskOptions { grows: self.target.grows(), ..DiskOptions::new(content) };
        let disk = SimDisk::instant(options);
        let base = self.base.as_ref().map(|base| {
            let content = Content::over(Rc::clone(base));
            Node::new(raw::Raw::new(SimDisk::instant(DiskOptions { read_only: true, ..DiskOptions::new(content) })))
        });
        let files = Files { image: Node::new(disk.clone()), base };
        let node = match now(self.target.open(files, self.spec)) {
            Some(Ok(node)) => node,
            Some(Err(error)) => {
                return Some(Finding::new(
                    "I1",
                    "recovery",
                    format!("after a power cut the image does not open: {error}"),
                ));
            }
            None => return Some(Finding::new("I1", "recovery", "after a power cut opening the image does not end")),
        };
        let size = node.info().size;
        if let Err(violation) = self.after.judge_size(size) {
            return Some(Finding::new("I9", "recovery", format!("after a power cut {violation}")));
        }
        for part in self.touched.pieces(size) {
            let mut data = vec![0xcc; usize::try_from(part.len()).unwrap_or(0)];
            match now(node.read(part.start, &mut data)) {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    let text = format!("after a power cut a read of {part} failed with '{error}'");
                    return Some(Finding::new("I3", "recovery", text));
                }
                None => return Some(Finding::new("I1", "recovery", format!("a read of {part} does not end"))),
            }
            stats.judged = stats.judged.saturating_add(part.len());
            if let Err(violation) = self.after.judge(part, &data) {
                let text = format!("after a power cut {violation}");
                let mut finding = Finding::new(violation.code.name(), "recovery", text);
                finding.range = Some(violation.range);
                finding.allowed = violation.allowed;
                return Some(finding);
            }
        }
        None
    }
}

/// What a format check says, as a finding.
pub(super) fn judge_check(verdict: Checked, leaks: bool, phase: &str) -> Option<Finding> {
    match verdict {
        Checked::Sound | Checked::Unchecked => None,
        Checked::Leaks(_) if leaks => None,
        Checked::Leaks(text) => Some(Finding::new("leak", phase, format!("the image has leaks: {text}"))),
        Checked::Damaged { code, text } => {
            let mut finding = Finding::new("I2", phase, format!("the image is damaged: {text} ({code})"));
            finding.signature.class = code;
            Some(finding)
        }
    }
}

/// The disk in a state that a plan names.
pub(super) fn content_of(crash: &Crash, state: &CutState) -> Result<Content, String> {
    crash.content(&name_of(crash, state)?).map_err(|error| error.to_string())
}

fn name_of(crash: &Crash, state: &CutState) -> Result<StateName, String> {
    let change = |io: &IoKey| {
        let there = || crash.ios().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        crash
            .change(*io)
            .ok_or_else(|| format!("request {io} is not among those that this cut decides over: {}", there()))
    };
    let all = |ios: &[IoKey]| ios.iter().map(change).collect::<Result<BTreeSet<_>, String>>();
    Ok(match state {
        CutState::AllOld => StateName::AllOld,
        CutState::AllNew => StateName::AllNew,
        CutState::Drop(ios) => StateName::Drop(all(ios)?),
        CutState::Keep(ios) => StateName::Keep(all(ios)?),
        CutState::Tear { io, first, blocks } => StateName::Tear { id: change(io)?, first: *first, blocks: *blocks },
        CutState::Seed(seed) => StateName::Seed(*seed),
        CutState::Number(number) => StateName::Number(*number),
    })
}

/// A state by the names that plans use.
fn cut_state(crash: &Crash, name: &StateName) -> CutState {
    let io = |id| crash.io(id).unwrap_or(IoKey { owner: blkproof_sim::Owner(0), nth: 0 });
    match name {
        StateName::AllOld => CutState::AllOld,
        StateName::AllNew => CutState::AllNew,
        StateName::Drop(ids) => CutState::Drop(ids.iter().map(|id| io(*id)).collect()),
        StateName::Keep(ids) => CutState::Keep(ids.iter().map(|id| io(*id)).collect()),
        StateName::Prefix(order, count) => {
            let ios = crash.ios();
            let count = usize::try_from(*count).unwrap_or(usize::MAX);
            match order {
                Order::Submission => CutState::Keep(ios.into_iter().take(count).collect()),
                Order::Completion => CutState::Keep(crash.completed().into_iter().take(count).collect()),
            }
        }
        StateName::Tear { id, first, blocks } => CutState::Tear { io: io(*id), first: *first, blocks: *blocks },
        StateName::Shear { id, .. } => CutState::Tear { io: io(*id), first: true, blocks: 0 },
        StateName::Number(number) => CutState::Number(*number),
        StateName::Seed(seed) => CutState::Seed(*seed),
    }
}

/// Equal for states that consist of the same bytes of the same requests.
fn shape(state: &State) -> Vec<(u64, u64, u64)> {
    use blkproof_fault::disk::piece::Content as Bytes;
    let mut shape = Vec::with_capacity(state.pieces.len().saturating_add(1));
    shape.push((state.size, 0, 0));
    for piece in &state.pieces {
        let what = match &piece.content {
            Bytes::Data { bytes, from } => (Rc::as_ptr(bytes).addr() as u64).wrapping_add(*from as u64),
            Bytes::Zeroes { .. } => 0,
            Bytes::Noise(seed) => *seed,
        };
        shape.push((piece.range.start, piece.range.end, what));
    }
    shape
}

fn number_of(point: CutPoint) -> u64 {
    match point {
        CutPoint::Before(key) => key.number() << 2,
        CutPoint::BeforeOp(op) => u64::from(op) << 2 | 1,
        CutPoint::AfterOp(op) => u64::from(op) << 2 | 2,
        CutPoint::End => 3,
    }
}
