//! A disk in memory that does what a test tells it to.
//!
//! A request arrives (*submit*), its data moves (*effect*), its caller hears of it (*completion*). Left alone, all
//! three happen at the first poll. A rule or script may hold a request before its effect or before its completion, or
//! make it fail with nothing, all or a part of it done. Under an [`Executor`](super::Executor) every request parks
//! before both, and the seed decides what moves when.
//!
//! A write whose future is dropped before its effect becomes an *orphan*: it may still land, until a drain decides its
//! fate. A dropped read or flush leaves nothing behind.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::log::{Entry, Log, Op, OpId, OpKind, Step};
use crate::choice::{Choices, hash};
use crate::device::{BlockDevice, Preallocation, WriteFlags, ZeroFlags, check_bounds};
use crate::nodes::memory::SparseBytes;
use crate::units::ByteRange;
use crate::{BlockStatus, Capabilities, DeviceInfo, Event, IoError, Limits, Result, RuleId};

/// What happens to one request. Errors gain the rule id `testing` unless they name a rule already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// What was asked for.
    Pass,
    /// Nothing is done, and the caller hears an error.
    FailBefore(IoError),
    /// All of it is done, and yet the caller hears an error.
    DoThenFail(IoError),
    /// The first `bytes` are done; then the error.
    PartThenFail {
        /// How many bytes from the start of the request.
        bytes: u64,
        /// What the caller hears.
        error: IoError,
    },
    /// Waits before its effect until [released](TestDisk::release); dropped meanwhile, a write becomes an orphan.
    HoldBefore,
    /// Its effect happens; its caller hears of it when [released](TestDisk::release).
    HoldAfter,
}

/// An action for the requests that match.
///
/// Counting begins when the rule is [added](TestDisk::add_rule). Events and drains match only a rule that names their
/// kind, so that adding events to a driver does not shift a sweep over its I/O.
#[derive(Clone, Debug)]
pub struct Rule {
    action: Action,
    kinds: Vec<OpKind>,
    range: Option<ByteRange>,
    event: Option<Event>,
    skip: u64,
    times: u64,
}

impl Rule {
    /// `action` for every request.
    pub const fn new(action: Action) -> Self {
        Self { action, kinds: Vec::new(), range: None, event: None, skip: 0, times: u64::MAX }
    }

    /// Only requests of this kind; called again, of one of these kinds.
    #[must_use]
    pub fn kind(mut self, kind: OpKind) -> Self {
        self.kinds.push(kind);
        self
    }

    /// Only requests that touch this range.
    #[must_use]
    pub fn range(mut self, range: ByteRange) -> Self {
        self.range = Some(range);
        self
    }

    /// Only announcements of this event.
    #[must_use]
    pub fn event(mut self, event: Event) -> Self {
        self.event = Some(event);
        self.kind(OpKind::Event)
    }

    /// Only the `n`-th matching request, counted from 1; with [`from`](Self::from) it and all that follow.
    #[must_use]
    pub fn nth(mut self, n: u64) -> Self {
        self.skip = n.saturating_sub(1);
        self.times = 1;
        self
    }

    /// The `n`-th matching request, counted from 1, and all that follow.
    #[must_use]
    pub fn from(mut self, n: u64) -> Self {
        self.skip = n.saturating_sub(1);
        self.times = u64::MAX;
        self
    }

    /// At most `times` requests.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    fn fires(&mut self, op: &Op) -> bool {
        let kind = match self.kinds.is_empty() {
            true => !matches!(op.kind, OpKind::Event | OpKind::Drain),
            false => self.kinds.contains(&op.kind),
        };
        let matches = kind
            && self.range.is_none_or(|range| range.overlaps(op.range))
            && self.event.is_none_or(|event| op.event == Some(event));
        if !matches || self.times == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.times = if self.times == u64::MAX { u64::MAX } else { self.times - 1 };
        true
    }
}

/// What a drain does with an orphan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DrainPolicy {
    /// It lands whole.
    Land,
    /// It never lands.
    Forget,
    /// Whole, never, or some of its sectors: by this seed and its number.
    BySeed(u64),
}

/// What a discard does to the content. A device may choose for every piece (see [`BlockDevice::discard`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiscardEffect {
    /// The range reads as zeroes.
    Zero,
    /// The range reads as before.
    Keep,
    /// Each sector of 512 bytes either way, by this seed, its number and the sector.
    Mixed(u64),
}

/// Where a request stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// It arrived; its data has not moved.
    BeforeEffect,
    /// Its data moved; its caller has not heard of it.
    BeforeCompletion,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Gate {
    Open,
    /// Until released.
    Held,
    /// Until an executor steps.
    Scheduled,
}

#[derive(Debug)]
enum Answer {
    Nothing,
    Data(Vec<u8>),
    Status(BlockStatus),
}

#[derive(Debug)]
struct Pending {
    op: Rc<Op>,
    action: Action,
    stage: Stage,
    before_effect: Gate,
    before_completion: Gate,
    answer: Answer,
    done: Option<Result<()>>,
    waker: Option<Waker>,
}

impl Pending {
    fn gate(&mut self) -> &mut Gate {
        match self.stage {
            Stage::BeforeEffect => &mut self.before_effect,
            Stage::BeforeCompletion => &mut self.before_completion,
        }
    }
}

type Script = Box<dyn FnMut(&Op) -> Action>;

struct State {
    content: SparseBytes,
    initial: SparseBytes,
    limits: Limits,
    capabilities: Capabilities,
    live: BTreeMap<OpId, Pending>,
    orphans: BTreeMap<OpId, Pending>,
    rules: Vec<Rule>,
    script: Option<Script>,
    scheduled: bool,
    drain_policy: DrainPolicy,
    discard_effect: DiscardEffect,
    faults: u64,
    log: Log,
}

/// The scripted disk. Cloning gives another handle on the same disk.
///
/// ```
/// use blkproof_block::testing::{Action, Executor, OpKind, Rule, TestDisk};
/// use blkproof_block::{BlockDevice, WriteFlags};
///
/// // A write dropped in flight lands after a later one, because nobody drained.
/// let disk = TestDisk::new(512);
/// disk.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write).nth(1));
/// let mut executor = Executor::new();
/// let handle = disk.clone();
/// let task = executor.spawn(async move { handle.write(0, &[1; 512], WriteFlags::empty()).await });
/// executor.run_until_stalled();
/// let late = disk.parked()[0].id;
/// executor.cancel(task.id());
///
/// blkproof_block::testing::block_on(disk.write(0, &[2; 512], WriteFlags::empty())).unwrap();
/// disk.land(late);
/// assert_eq!(disk.bytes(0, 2), [1, 1]);
/// ```
#[derive(Clone)]
pub struct TestDisk(Rc<RefCell<State>>);

impl std::fmt::Debug for TestDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.0.borrow();
        f.debug_struct("TestDisk")
            .field("size", &state.content.size())
            .field("parked", &state.live.len())
            .field("orphans", &state.orphans.len())
            .field("log", &state.log.end())
            .finish_non_exhaustive()
    }
}

impl TestDisk {
    /// A disk of `size` zero bytes.
    pub fn new(size: u64) -> Self {
        Self::from_bytes(SparseBytes::new(size))
    }

    /// A disk of `size` zero bytes that a write beyond its end extends, like a file.
    pub fn growing(size: u64) -> Self {
        Self::growing_from_bytes(SparseBytes::new(size))
    }

    /// A disk that holds `content`, with an empty log: the next life of a disk that crashed.
    pub fn from_bytes(content: SparseBytes) -> Self {
        Self(Rc::new(RefCell::new(State {
            initial: content.clone(),
            content,
            limits: Limits::NONE,
            capabilities: Capabilities::all().difference(Capabilities::ROTATIONAL.union(Capabilities::GROWS)),
            live: BTreeMap::new(),
            orphans: BTreeMap::new(),
            rules: Vec::new(),
            script: None,
            scheduled: false,
            drain_policy: DrainPolicy::BySeed(0),
            discard_effect: DiscardEffect::Zero,
            faults: 0,
            log: Log::default(),
        })))
    }

    /// [`from_bytes`](Self::from_bytes), growing.
    pub fn growing_from_bytes(content: SparseBytes) -> Self {
        let disk = Self::from_bytes(content);
        disk.0.borrow_mut().capabilities.insert(Capabilities::GROWS);
        disk
    }

    /// Declares limits. A request that breaks them is a bug of the layer above and panics.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        self.0.borrow_mut().limits = limits;
        self
    }

    /// Promises exactly this.
    #[must_use]
    pub fn with_capabilities(self, capabilities: Capabilities) -> Self {
        self.0.borrow_mut().capabilities = capabilities;
        self
    }

    /// What a drain does with orphans; by seed 0 unless told.
    pub fn set_drain_policy(&self, policy: DrainPolicy) {
        self.0.borrow_mut().drain_policy = policy;
    }

    /// What a discard does; it zeroes unless told.
    pub fn set_discard_effect(&self, effect: DiscardEffect) {
        self.0.borrow_mut().discard_effect = effect;
    }

    /// A copy of the content as a reader sees it now.
    pub fn image(&self) -> SparseBytes {
        self.0.borrow().content.clone()
    }

    /// The content at creation, before the first entry of the log.
    pub fn initial(&self) -> SparseBytes {
        self.0.borrow().initial.clone()
    }

    /// `len` bytes of the content from `at`, outside of any request.
    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.0.borrow().content.read(at, &mut buf);
        buf
    }

    /// Changes the content behind everybody's back: no request, no log. Crash states do not know of it.
    pub fn tamper(&self, change: impl FnOnce(&mut SparseBytes)) {
        change(&mut self.0.borrow_mut().content);
    }

    /// A copy of what happened so far.
    pub fn log(&self) -> Log {
        self.0.borrow().log.clone()
    }

    /// The position behind the last log entry.
    pub fn position(&self) -> usize {
        self.0.borrow().log.end()
    }

    /// How many requests were made to fail by a rule, a script or [`fail`](Self::fail).
    pub fn faults(&self) -> u64 {
        self.0.borrow().faults
    }

    // What happens to requests.

    /// Asks `script` about every request that no rule has matched. It may use this disk.
    pub fn script(&self, script: impl FnMut(&Op) -> Action + 'static) {
        self.0.borrow_mut().script = Some(Box::new(script));
    }

    /// Adds a rule; the first that matches decides.
    pub fn add_rule(&self, rule: Rule) {
        self.0.borrow_mut().rules.push(rule);
    }

    /// Forgets all rules and the script. What is held stays held.
    pub fn clear_rules(&self) {
        let mut state = self.0.borrow_mut();
        state.rules.clear();
        state.script = None;
    }

    /// The `n`-th request from now (from 1) fails with nothing done: for sweeps over every I/O of a driver.
    pub fn fail_nth(&self, n: u64, error: IoError) {
        self.add_rule(Rule::new(Action::FailBefore(error)).nth(n));
    }

    /// The `n`-th request from now (from 1) and all later ones fail with nothing done.
    pub fn fail_from(&self, n: u64, error: IoError) {
        self.add_rule(Rule::new(Action::FailBefore(error)).from(n));
    }

    /// Every request of this kind fails with nothing done.
    pub fn fail_kind(&self, kind: OpKind, error: IoError) {
        self.add_rule(Rule::new(Action::FailBefore(error)).kind(kind));
    }

    /// Every request from now on is held before its effect.
    pub fn hold_all(&self) {
        self.add_rule(Rule::new(Action::HoldBefore));
    }

    /// Every request of this kind is held before its effect.
    pub fn hold_kind(&self, kind: OpKind) {
        self.add_rule(Rule::new(Action::HoldBefore).kind(kind));
    }

    // What is on its way.

    /// Requests whose callers wait, in order of arrival.
    pub fn parked(&self) -> Vec<Rc<Op>> {
        let state = self.0.borrow();
        state.live.values().filter(|pending| pending.done.is_none()).map(|pending| pending.op.clone()).collect()
    }

    /// Where a parked request stands.
    pub fn stage(&self, id: OpId) -> Option<Stage> {
        let state = self.0.borrow();
        state.live.get(&id).filter(|pending| pending.done.is_none()).map(|pending| pending.stage)
    }

    /// Lets a held request go on: to its end, or under an executor back into its hands.
    ///
    /// # Panics
    /// If it is not parked.
    pub fn release(&self, id: OpId) {
        {
            let mut state = self.0.borrow_mut();
            let scheduled = state.scheduled;
            let pending = state.live.get_mut(&id).filter(|pending| pending.done.is_none());
            let pending = pending.unwrap_or_else(|| panic!("request {id:?} is not parked"));
            let steps = scheduled && pending.op.kind != OpKind::Event;
            *pending.gate() = if steps { Gate::Scheduled } else { Gate::Open };
        }
        self.advance(id);
    }

    /// [Releases](Self::release) everything parked, in order of arrival.
    pub fn release_all(&self) {
        for op in self.parked() {
            if self.stage(op.id).is_some() {
                self.release(op.id);
            }
        }
    }

    /// Takes exactly one step of a parked request, whatever holds it: its effect, or else its completion.
    ///
    /// # Panics
    /// If it is not parked.
    pub fn step(&self, id: OpId) {
        let stage = self.stage(id).unwrap_or_else(|| panic!("request {id:?} is not parked"));
        let waker = {
            let mut state = self.0.borrow_mut();
            match stage {
                Stage::BeforeEffect => {
                    state.effect(id);
                    None
                }
                Stage::BeforeCompletion => state.complete(id),
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Completes a parked request with an error; before its effect, that means with nothing done.
    ///
    /// # Panics
    /// If it is not parked.
    pub fn fail(&self, id: OpId, error: IoError) {
        let waker = {
            let mut state = self.0.borrow_mut();
            state.faults += 1;
            let pending = state.live.get_mut(&id).filter(|pending| pending.done.is_none());
            let pending = pending.unwrap_or_else(|| panic!("request {id:?} is not parked"));
            pending.action = match pending.stage {
                Stage::BeforeEffect => Action::FailBefore(error),
                Stage::BeforeCompletion => Action::DoThenFail(error),
            };
            if pending.stage == Stage::BeforeEffect {
                state.effect(id);
            }
            state.complete(id)
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Dropped writes that may still land, in order of arrival.
    pub fn orphans(&self) -> Vec<Rc<Op>> {
        self.0.borrow().orphans.values().map(|pending| pending.op.clone()).collect()
    }

    /// Lands an orphan.
    ///
    /// # Panics
    /// If there is no such orphan.
    pub fn land(&self, id: OpId) {
        let mut state = self.0.borrow_mut();
        assert!(state.orphans.contains_key(&id), "request {id:?} is no orphan");
        state.land(id, None);
    }

    // For the executor.

    /// Whether every request parks before its effect and before its completion, for an executor to step. Requests
    /// parked for an executor go on by themselves when this is switched off.
    pub fn set_scheduled(&self, scheduled: bool) {
        self.0.borrow_mut().scheduled = scheduled;
        if !scheduled {
            for id in self.steps() {
                if self.stage(id).is_some() {
                    self.release(id);
                }
            }
        }
    }

    /// Parked requests that an executor may step.
    pub fn steps(&self) -> Vec<OpId> {
        let mut state = self.0.borrow_mut();
        state
            .live
            .iter_mut()
            .filter(|(_, pending)| pending.done.is_none())
            .filter_map(|(&id, pending)| (*pending.gate() == Gate::Scheduled).then_some(id))
            .collect()
    }

    // The life of a request.

    fn submit(&self, draft: Draft) -> Request<'_> {
        let (op, refused) = {
            let mut state = self.0.borrow_mut();
            let id = OpId(state.log.ops.len() as u64);
            let mut op = draft.into_op(id);
            state.check_limits(&op);
            let refused = state.check_end(&op);
            op.refused = refused.is_err();
            let op = Rc::new(op);
            state.log.ops.push(op.clone());
            state.note(id, Step::Submit);
            (op, refused)
        };
        let action = match refused {
            Err(error) => Action::FailBefore(error),
            Ok(()) => self.decide(&op),
        };
        {
            let mut state = self.0.borrow_mut();
            // An event is an announcement and no I/O; it takes a step only if somebody wants to hold it.
            let usual = match state.scheduled && op.kind != OpKind::Event {
                true => Gate::Scheduled,
                false => Gate::Open,
            };
            let pending = Pending {
                op: op.clone(),
                stage: Stage::BeforeEffect,
                before_effect: if action == Action::HoldBefore { Gate::Held } else { usual },
                before_completion: if action == Action::HoldAfter { Gate::Held } else { usual },
                action,
                answer: Answer::Nothing,
                done: None,
                waker: None,
            };
            state.live.insert(op.id, pending);
        }
        let request = Request { disk: self, id: op.id };
        self.advance(op.id);
        request
    }

    /// What the rules, else the script, say about `op`.
    fn decide(&self, op: &Op) -> Action {
        let (fired, script) = {
            let mut state = self.0.borrow_mut();
            let fired = state.rules.iter_mut().find_map(|rule| rule.fires(op).then(|| rule.action.clone()));
            let script = if fired.is_none() { state.script.take() } else { None };
            (fired, script)
        };
        let mut action = fired.unwrap_or(Action::Pass);
        if let Some(mut script) = script {
            // Outside of any borrow, because the script may use this disk, even give it another script.
            action = script(op);
            self.0.borrow_mut().script.get_or_insert(script);
        }
        let fails = match &mut action {
            Action::FailBefore(error) | Action::DoThenFail(error) | Action::PartThenFail { error, .. } => {
                error.injected_by.get_or_insert_with(|| RuleId("testing".into()));
                true
            }
            _ => false,
        };
        self.0.borrow_mut().faults += u64::from(fails);
        action
    }

    /// Takes steps until a gate is closed or the request is done.
    fn advance(&self, id: OpId) {
        let waker = {
            let mut state = self.0.borrow_mut();
            let mut waker = None;
            while let Some(pending) = state.live.get_mut(&id)
                && pending.done.is_none()
                && *pending.gate() == Gate::Open
            {
                match pending.stage {
                    Stage::BeforeEffect => state.effect(id),
                    Stage::BeforeCompletion => waker = state.complete(id),
                }
            }
            waker
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The caller of `id` lost interest.
    fn dropped(&self, id: OpId) {
        let mut state = self.0.borrow_mut();
        let Some(pending) = state.live.remove(&id) else { return };
        if pending.done.is_some() {
            return; // Completed, though its caller never looked.
        }
        state.note(id, Step::Drop);
        if pending.stage == Stage::BeforeEffect && pending.op.kind.writes() {
            state.orphans.insert(id, pending);
        }
    }
}

impl State {
    fn note(&mut self, op: OpId, step: Step) {
        self.log.entries.push(Entry { op, step });
    }

    fn grows(&self) -> bool {
        self.capabilities.contains(Capabilities::GROWS)
    }

    fn check_end(&self, op: &Op) -> Result<()> {
        match op.kind {
            OpKind::Write | OpKind::WriteZeroes if self.grows() => Ok(()),
            _ => check_bounds(op.range.start, op.range.len(), self.content.size()),
        }
    }

    /// Whoever talks to a node with limits keeps them, so a breach is a bug of the layer above.
    ///
    /// Only the end of a request may be odd, and only where [`Limits`] has it: at the end of the disk, or beyond it if
    /// the disk grows.
    fn check_limits(&self, op: &Op) {
        let (alignment, max) = match op.kind {
            OpKind::Read | OpKind::Write => (self.limits.alignment, u64::from(self.limits.max_transfer)),
            OpKind::WriteZeroes => (self.limits.zero_alignment, self.limits.max_zero),
            OpKind::Discard => (self.limits.discard_alignment, self.limits.max_discard),
            _ => return,
        };
        let alignment = u64::from(alignment.max(1));
        let size = self.content.size();
        let at_end = op.range.end == size || (op.range.end > size && self.grows());
        assert!(
            op.range.start.is_multiple_of(alignment) && (op.range.len().is_multiple_of(alignment) || at_end),
            "{op} is not aligned to {alignment} bytes"
        );
        assert!(max == 0 || op.range.len() <= max, "{op} is longer than {max} bytes");
    }

    fn check_memory(&self, kind: OpKind, buf: &[u8]) {
        let alignment = self.limits.memory_alignment.max(1);
        let at = buf.as_ptr().addr() as u64;
        assert!(
            at.is_multiple_of(u64::from(alignment)),
            "the buffer of a {kind:?} is not at a multiple of {alignment} bytes in memory"
        );
    }

    /// Which parts of a request an action lets through.
    fn parts(&self, op: &Op, action: &Action) -> Vec<ByteRange> {
        match action {
            Action::FailBefore(_) => Vec::new(),
            Action::PartThenFail { bytes, .. } => {
                vec![ByteRange::at(op.range.start, (*bytes).min(op.range.len()))]
            }
            _ if op.kind == OpKind::Discard => match self.discard_effect {
                DiscardEffect::Zero => vec![op.range],
                DiscardEffect::Keep => Vec::new(),
                DiscardEffect::Mixed(seed) => some_sectors(op, hash(seed, op.id.0)),
            },
            _ => vec![op.range],
        }
    }

    fn effect(&mut self, id: OpId) {
        let Some(pending) = self.live.get(&id) else { return };
        let (op, action) = (pending.op.clone(), pending.action.clone());
        let parts = self.parts(&op, &action);
        let fails = matches!(action, Action::FailBefore(_));
        let mut answer = Answer::Nothing;
        match op.kind {
            OpKind::Read => {
                // What an error leaves in the buffer is nobody's data, and looks like it.
                let mut data = vec![0xee; op.range.len() as usize];
                for part in parts {
                    if let Some(data) = data.get_mut(..part.len() as usize) {
                        self.content.read(part.start, data);
                    }
                }
                answer = Answer::Data(data);
            }
            OpKind::BlockStatus if !fails => {
                let (data, len) = self.content.extent(op.range.start, op.range.len());
                let host_offset = Some(op.range.start);
                answer = Answer::Status(match data {
                    true => BlockStatus::data(len, host_offset),
                    false => BlockStatus { host_offset, ..BlockStatus::zero(len) },
                });
            }
            OpKind::Drain if !fails => self.settle_orphans(),
            kind if kind.writes() => self.apply(&op, parts, fails),
            _ => {}
        }
        if let Some(pending) = self.live.get_mut(&id) {
            pending.answer = answer;
            pending.stage = Stage::BeforeCompletion;
        }
    }

    /// Moves the data of a write-class request, in `parts` of it.
    fn apply(&mut self, op: &Op, parts: Vec<ByteRange>, fails: bool) {
        if let Some(size) = op.size
            && !fails
        {
            self.content.set_size(size);
        }
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        for &part in &parts {
            put(&mut self.content, op, part);
        }
        // A resize has no range of its own; an empty one says that it took effect.
        let parts = if op.kind == OpKind::Resize && !fails { vec![op.range] } else { parts };
        self.note(op.id, Step::Effect(parts.into()));
    }

    fn complete(&mut self, id: OpId) -> Option<Waker> {
        let pending = self.live.get_mut(&id)?;
        let result = match &pending.action {
            Action::FailBefore(error) | Action::DoThenFail(error) | Action::PartThenFail { error, .. } => {
                Err(error.clone())
            }
            _ => Ok(()),
        };
        pending.done = Some(result.clone());
        let waker = pending.waker.take();
        self.note(id, Step::Complete(result));
        waker
    }

    fn land(&mut self, id: OpId, parts: Option<Vec<ByteRange>>) {
        let Some(pending) = self.orphans.remove(&id) else { return };
        let parts = parts.unwrap_or_else(|| self.parts(&pending.op, &pending.action));
        let fails = matches!(pending.action, Action::FailBefore(_));
        self.apply(&pending.op, parts, fails);
    }

    fn settle_orphans(&mut self) {
        let ids: Vec<_> = self.orphans.keys().copied().collect();
        for id in ids {
            let Some(op) = self.orphans.get(&id).map(|pending| pending.op.clone()) else { continue };
            let mut choices = match self.drain_policy {
                DrainPolicy::Land => {
                    self.land(id, None);
                    continue;
                }
                DrainPolicy::Forget => {
                    self.orphans.remove(&id);
                    self.note(id, Step::Gone);
                    continue;
                }
                DrainPolicy::BySeed(seed) => Choices::new(hash(seed, id.0)),
            };
            match choices.below(4) {
                0 | 1 => self.land(id, None),
                2 if op.kind != OpKind::Resize => self.land(id, Some(some_sectors(&op, choices.next()))),
                _ => {
                    self.orphans.remove(&id);
                    self.note(id, Step::Gone);
                }
            }
        }
    }
}

/// Does what `op` wants to the bytes of `part`, a piece of its range.
pub(super) fn put(content: &mut SparseBytes, op: &Op, part: ByteRange) {
    match &op.data {
        Some(data) => {
            let from = (part.start - op.range.start) as usize;
            if let Some(data) = data.get(from..from + part.len() as usize) {
                content.write(part.start, data);
            }
        }
        None => {
            if op.kind == OpKind::WriteZeroes && part.end > content.size() {
                content.set_size(part.end);
            }
            content.zero(part.start, part.len());
        }
    }
}

/// About half of the sectors of a request.
fn some_sectors(op: &Op, seed: u64) -> Vec<ByteRange> {
    let mut parts: Vec<ByteRange> = Vec::new();
    let mut at = op.range.start;
    while at < op.range.end {
        let end = (at / 512 + 1).saturating_mul(512).min(op.range.end);
        if hash(seed, at) & 1 == 1 {
            match parts.last_mut() {
                Some(last) if last.end == at => last.end = end,
                _ => parts.push(ByteRange { start: at, end }),
            }
        }
        at = end;
    }
    parts
}

/// A request before it has a number.
struct Draft {
    kind: OpKind,
    range: ByteRange,
    data: Option<Rc<[u8]>>,
    write_flags: WriteFlags,
    zero_flags: ZeroFlags,
    event: Option<Event>,
    size: Option<u64>,
}

impl Draft {
    fn new(kind: OpKind, range: ByteRange) -> Self {
        Self {
            kind,
            range,
            data: None,
            write_flags: WriteFlags::empty(),
            zero_flags: ZeroFlags::empty(),
            event: None,
            size: None,
        }
    }

    fn into_op(self, id: OpId) -> Op {
        let Self { kind, range, data, write_flags, zero_flags, event, size } = self;
        let fua = write_flags.contains(WriteFlags::FUA) || zero_flags.contains(ZeroFlags::FUA);
        Op { id, kind, range, data, fua, write_flags, zero_flags, event, size, refused: false }
    }
}

/// The caller's side of a request.
struct Request<'a> {
    disk: &'a TestDisk,
    id: OpId,
}

impl Future for Request<'_> {
    type Output = (Result<()>, Answer);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.disk.0.borrow_mut();
        let Some(pending) = state.live.get_mut(&self.id) else { panic!("{:?} polled after completion", self.id) };
        match pending.done.take() {
            Some(result) => {
                let answer = std::mem::replace(&mut pending.answer, Answer::Nothing);
                state.live.remove(&self.id);
                Poll::Ready((result, answer))
            }
            None => {
                pending.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.disk.dropped(self.id);
    }
}

impl BlockDevice for TestDisk {
    fn info(&self) -> DeviceInfo {
        let state = self.0.borrow();
        DeviceInfo {
            limits: state.limits,
            capabilities: state.capabilities,
            ..DeviceInfo::new("testdisk", state.content.size())
        }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        self.0.borrow().check_memory(OpKind::Read, buf);
        let (result, answer) = self.submit(Draft::new(OpKind::Read, ByteRange::at(at, buf.len() as u64))).await;
        if let Answer::Data(data) = answer
            && data.len() == buf.len()
        {
            buf.copy_from_slice(&data);
        }
        result
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.0.borrow().check_memory(OpKind::Write, data);
        let range = ByteRange::at(at, data.len() as u64);
        let draft = Draft { data: Some(data.into()), write_flags: flags, ..Draft::new(OpKind::Write, range) };
        self.submit(draft).await.0
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let draft = Draft { zero_flags: flags, ..Draft::new(OpKind::WriteZeroes, ByteRange::at(at, len)) };
        self.submit(draft).await.0
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.submit(Draft::new(OpKind::Discard, ByteRange::at(at, len))).await.0
    }

    async fn flush(&self) -> Result<()> {
        self.submit(Draft::new(OpKind::Flush, ByteRange::default())).await.0
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        let (result, answer) = self.submit(Draft::new(OpKind::BlockStatus, ByteRange::at(at, len))).await;
        result?;
        match answer {
            Answer::Status(status) => Ok(status),
            _ => panic!("a block status that succeeds has an answer"),
        }
    }

    async fn resize(&self, size: u64, _preallocation: Preallocation) -> Result<()> {
        let draft = Draft { size: Some(size), ..Draft::new(OpKind::Resize, ByteRange::default()) };
        self.submit(draft).await.0
    }

    async fn drain(&self) -> Result<()> {
        self.submit(Draft::new(OpKind::Drain, ByteRange::default())).await.0
    }

    fn listens(&self, _event: Event) -> bool {
        true
    }

    async fn event(&self, event: Event) {
        let draft = Draft { event: Some(event), ..Draft::new(OpKind::Event, ByteRange::default()) };
        let (_, _) = self.submit(draft).await;
    }
}
