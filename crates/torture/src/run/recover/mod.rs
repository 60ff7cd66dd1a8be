//! What a power cut leaves, opened and judged (CM 5.6, 5.7).

mod memo;
mod moments;
mod names;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use blkproof_block::nodes::raw;
use blkproof_block::{BlockDevice, ByteRange, Node, WriteFlags};
use blkproof_fault::disk::State;
use blkproof_sim::SimDisk;
use blkproof_sim::disk::{Content, Crash, DiskOptions};

use crate::finding::Signature;
use crate::oracle::{AfterCrash, Ending, Oracle, Violation};
use crate::plan::{Act, CutPoint, CutState, OpId, TargetSpec};
use crate::run::finding::Finding;
use crate::run::halt::Halt;
use crate::run::panics::caught;
use crate::run::touched::Touched;
use crate::run::{Stats, now};
use crate::stamp;
use crate::target::{Checked, Files, Promises, Target};

use self::memo::{Memo, poison};
use self::moments::Moments;
pub(in crate::run) use self::names::content_of;
use self::names::{cut_state, name_of};

/// States looked at for each moment during one recovery at which the power goes again.
const STATES_OF_RECOVERY: usize = 8;

/// A moment at which the power may go, and who is to cope with it.
pub(in crate::run) struct Scene<'a> {
    pub(in crate::run) halt: &'a Halt<'a>,
    pub(in crate::run) target: &'a dyn Target,
    pub(in crate::run) spec: &'a TargetSpec,
    pub(in crate::run) promises: Promises,
    pub(in crate::run) base: Option<Rc<Content>>,
    pub(in crate::run) crash: Crash,
    pub(in crate::run) after: AfterCrash,
    pub(in crate::run) check: bool,
    pub(in crate::run) touched: Rc<Touched>,
    /// Ids above this are not the plan's.
    pub(in crate::run) ids: OpId,
    pub(in crate::run) memo: RefCell<Memo>,
}

/// Goes through the states of one moment after the other.
#[derive(Debug)]
pub(in crate::run) struct Explorer {
    states: u32,
    depth: u8,
    seed: u64,
}

impl Explorer {
    pub(in crate::run) fn new(states: u32, depth: u8, seed: u64) -> Self {
        Self { states, depth, seed }
    }

    /// Looks into the states of a moment; the first that is not coped with, if there is one.
    pub(in crate::run) fn explore(
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
            if scene.halt.ask() {
                return None;
            }
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
    pub(in crate::run) fn one(
        scene: Scene<'_>,
        state: &CutState,
        _again: Option<&(CutPoint, CutState)>,
        stats: &mut Stats,
    ) -> Option<Finding> {
        stats.states = stats.states.saturating_add(1);
        match name_of(&scene.crash, state).and_then(|name| scene.crash.state(&name).map_err(|error| error.to_string()))
        {
            Ok(state) => scene.judge(&state, 1, stats),
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

    /// Opens what the power cut left, and everything that a cut during that leaves in turn.
    fn recover(&self, content: Content, depth: u8, stats: &mut Stats) -> Option<Finding> {
        if self.check {
            stats.checks = stats.checks.saturating_add(1);
            let verdict = self.target.check(&content);
            let damaged = judge_check(verdict, self.promises.leaks_after_crash, "recovery");
            let found = damaged.or_else(|| judge_intact(self.target, &content, self.spec, "recovery"));
            if let Some(finding) = found {
                return Some(Finding { text: format!("after a power cut {}", finding.text), ..finding });
            }
        }
        let disk = SimDisk::instant(DiskOptions { grows: self.target.grows(), ..DiskOptions::new(content) });
        let moments = Moments::of(&disk, depth);
        let opened = self.open(&disk);
        let moments = moments.end(&disk);
        let node = match opened {
            Ok(node) => node,
            Err(finding) => return Some(*finding),
        };
        let size = node.info().size;
        if let Err(violation) = self.after.judge_size(size) {
            return Some(Finding::new("I9", "recovery", format!("after a power cut {violation}")));
        }
        if depth == 0 {
            return self.glance(&node, stats);
        }
        let mut oracle = self.after.clone().into_oracle();
        let mut ids = self.ids;
        if let Some(finding) = self.compare(&node, &mut oracle, &mut ids, "after a power cut", stats) {
            return Some(finding);
        }
        // The power goes again while the image is opened: nobody was promised anything in between.
        for (index, crash) in moments.iter().enumerate() {
            for name in crash.names(STATES_OF_RECOVERY, index as u64) {
                if self.halt.ask() {
                    return None;
                }
                let Ok(state) = crash.state(&name) else { continue };
                stats.states = stats.states.saturating_add(1);
                stats.distinct = stats.distinct.saturating_add(1);
                if let Some(finding) = self.recover(crash.lay(&state), depth.saturating_sub(1), stats) {
                    let text = format!("after a second power cut, while the image was opened, {}", finding.text);
                    return Some(Finding { text, ..finding });
                }
            }
        }
        self.go_on(&disk, node, oracle, ids, stats)
    }

    fn open(&self, disk: &SimDisk) -> Result<Node, Box<Finding>> {
        let base = self.base.as_ref().map(|base| {
            let content = Content::over(Rc::clone(base));
            Node::new(raw::Raw::new(SimDisk::instant(DiskOptions { read_only: true, ..DiskOptions::new(content) })))
        });
        let files = Files { image: Node::new(disk.clone()), base };
        match now(self.target.open(files, self.spec)) {
            Some(Ok(node)) => Ok(node),
            Some(Err(error)) => Err(Box::new(Finding::new(
                "I1",
                "recovery",
                format!("after a power cut the image does not open: {error}"),
            ))),
            None => Err(Box::new(Finding::new("I1", "recovery", "after a power cut opening the image does not end"))),
        }
    }

    /// Reads what was touched, once: nobody comes after who would have to find the same.
    fn glance(&self, node: &Node, stats: &mut Stats) -> Option<Finding> {
        let when = "after a power cut";
        let mut memo = self.memo.borrow_mut();
        let mut data = std::mem::take(&mut memo.scratch);
        for part in self.touched.pieces(node.info().size) {
            data.resize(usize::try_from(part.len()).unwrap_or(0), 0);
            poison(&mut data);
            if let Some(finding) = Self::read(node, part, &mut data, when) {
                return Some(finding);
            }
            stats.judged = stats.judged.saturating_add(part.len());
            if memo.knows(part.start, &data) {
                continue;
            }
            if let Err(violation) = self.after.judge(part, &data) {
                return Some(Self::violated(violation, when));
            }
            memo.learn(part.start, &data);
        }
        memo.scratch = data;
        None
    }

    fn read(node: &Node, part: ByteRange, data: &mut [u8], when: &str) -> Option<Finding> {
        match now(node.read(part.start, data)) {
            Some(Ok(())) => None,
            Some(Err(error)) => {
                Some(Finding::new("I3", "recovery", format!("{when} a read of {part} failed with '{error}'")))
            }
            None => Some(Finding::new("I1", "recovery", format!("{when} a read of {part} does not end"))),
        }
    }

    fn violated(violation: Violation, when: &str) -> Finding {
        let mut finding = Finding::new(violation.code.name(), "recovery", format!("{when} {violation}"));
        finding.range = Some(violation.range);
        finding.allowed = violation.allowed;
        finding
    }

    /// Reads what was touched; the first read of each byte settles what it is (CM 5.6).
    fn compare(
        &self,
        node: &Node,
        oracle: &mut Oracle,
        ids: &mut OpId,
        when: &str,
        stats: &mut Stats,
    ) -> Option<Finding> {
        let size = node.info().size;
        *ids = ids.saturating_add(1);
        let id = *ids;
        oracle.submit(id, &Act::Read { range: ByteRange { start: 0, end: size }, vector: Vec::new() });
        for part in self.touched.pieces(size) {
            let mut data = vec![0xcc; usize::try_from(part.len()).unwrap_or(0)];
            if let Some(finding) = Self::read(node, part, &mut data, when) {
                return Some(finding);
            }
            stats.judged = stats.judged.saturating_add(part.len());
            if let Err(violation) = oracle.read_end(id, part, &data) {
                return Some(Self::violated(violation, when));
            }
        }
        oracle.end(id, Ending::Done);
        None
    }

    /// The device still takes a write and a flush, closes cleanly, and needs no repair when it is opened again (CM 5.7,
    /// I6 to I8).
    fn go_on(
        &self,
        disk: &SimDisk,
        node: Node,
        mut oracle: Oracle,
        mut ids: OpId,
        stats: &mut Stats,
    ) -> Option<Finding> {
        let broken = |code: &str, text: String| Some(Finding::new(code, "recovery", text));
        let size = node.info().size;
        let at = self.touched.pieces(size).last().map_or(0, |part| part.start);
        let range = ByteRange { start: at, end: at.saturating_add(512).min(size) };
        for act in [Act::Write { range, fua: false, compressed: false }, Act::Flush] {
            ids = ids.saturating_add(1);
            oracle.submit(ids, &act);
            let result = match act {
                Act::Flush => now(node.flush()),
                _ => {
                    let mut data = vec![0; usize::try_from(range.len()).unwrap_or(0)];
                    stamp::fill(&mut data, range.start, ids);
                    now(async { node.write(range.start, &data, WriteFlags::empty()).await })
                }
            };
            let name = act.name();
            match result {
                Some(Ok(())) => oracle.end(ids, Ending::Done),
                Some(Err(error)) => return broken("I8", format!("after a power cut a {name} failed with '{error}'")),
                None => return broken("I8", format!("after a power cut a {name} does not end")),
            }
        }
        match now(node.close()) {
            Some(Ok(())) => oracle.reopened(true),
            Some(Err(error)) => return broken("I8", format!("after a power cut closing failed with '{error}'")),
            None => return broken("I8", "after a power cut closing does not end".to_owned()),
        }
        drop(node);
        if self.check {
            stats.checks = stats.checks.saturating_add(1);
            // What leaked at the cut may stay leaked.
            let content = disk.content();
            let verdict = self.target.check(&content);
            let damaged = judge_check(verdict, self.promises.leaks_after_crash, "recovery");
            let found = damaged.or_else(|| judge_intact(self.target, &content, self.spec, "recovery"));
            if let Some(finding) = found {
                return Some(Finding { text: format!("closed after a power cut, {}", finding.text), ..finding });
            }
        }
        match self.open(disk) {
            Ok(node) => self.compare(&node, &mut oracle, &mut ids, "closed after a power cut and opened again,", stats),
            Err(finding) => {
                let finding = *finding;
                Some(Finding { signature: Signature { code: "I7".to_owned(), ..finding.signature }, ..finding })
            }
        }
    }
}

/// What became of what nobody may change, as a finding (CM 5.7, I9).
pub(in crate::run) fn judge_intact(
    target: &dyn Target,
    image: &Content,
    spec: &TargetSpec,
    phase: &str,
) -> Option<Finding> {
    let text = target.intact(image, spec).err()?;
    Some(Finding::new("I9", phase, format!("what nobody may change is not as it was: {text}")))
}

/// What a format check says, as a finding.
pub(crate) fn judge_check(verdict: Checked, leaks: bool, phase: &str) -> Option<Finding> {
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
