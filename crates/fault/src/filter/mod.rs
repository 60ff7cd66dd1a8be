//! The node `fault`: does to each request what the [`engine`](crate::engine) says.
//!
//! # The way of a request
//! Unless some rule may be about it, a request goes straight on: `read_now` stays what it is, nothing is counted. Else
//! 1. it waits while the node is stopped, is numbered, and is examined: from here on its plan stands;
//! 2. it waits as the plan says (delays, holds), before anything is done;
//! 3. its fate: done, done in part, elsewhere, not at all, or decided by somebody who is asked;
//! 4. what was done is reported to the engine: sectors written are cured or damaged *now*, not before;
//! 5. rules that want to know how long it took are examined;
//! 6. damage is laid over what a read returned.
//!
//! Invariants:
//! - What the device holds is changed by requests alone, never by damage.
//! - Every failure that a rule causes carries the rule's id; a failure of the device below is passed on as it is, also from
//!   within the part of a request that a rule lets through.
//! - Dropping a request at any point leaves nothing parked, asked or locked. A rule that fired on it has fired.
//! - The node takes whole sectors only, so that a sector is either written or not: requests that are not, are padded above
//!   it ([`Aligned`](blkproof_block::align::Aligned)), and a bad sector then fails the read that padding needs, as in a drive.

mod driver;
mod faults;
mod versions;
mod work;

use std::rc::Rc;

use blkproof_block::{
    BlockDevice, BlockStatus, Breakpoints, ByteRange, DeviceInfo, Event, IoError, Limits, Node, Preallocation, Result,
    WriteFlags, ZeroFlags,
};

pub use self::driver::{FaultDriver, RuleReader};
pub use self::faults::{ArmError, Faults, SPENT};
use self::versions::Staged;
pub use self::versions::VERSIONS_MAX;
use self::work::Work;
use crate::ask::Answer;
use crate::engine::{Completed, Damage, Fate, Plan, Share};
use crate::lab::Registered;
use crate::notice::What;
use crate::request::{Operation, Request};
use crate::rule::{AskDefault, Corruption};

/// A device that fails as its rules say.
#[derive(Clone, Debug)]
pub struct Fault {
    child: Node,
    /// The child's, which do not change.
    limits: Limits,
    faults: Rc<Faults>,
    /// The node is known to its lab for as long as it is there.
    _registered: Option<Rc<Registered>>,
}

impl Fault {
    /// Puts rules in front of `child`. `faults` stays the caller's too, to control the node.
    pub fn new(child: Node, faults: Rc<Faults>) -> Self {
        Self { limits: child.limits(), child, faults, _registered: None }
    }

    /// Takes a request through its rules.
    async fn run(&self, operation: Operation, range: ByteRange, fua: bool, mut work: Work<'_>) -> Result<()> {
        self.faults.admitted().await;
        let request = Request { id: self.faults.number(), operation, range, fua };
        let mut plan = self.faults.submit(&request, self.child.info().size);
        for pause in std::mem::take(&mut plan.pauses) {
            self.faults.pause(pause).await;
        }
        match std::mem::take(&mut plan.fate) {
            Fate::Proceed => self.perform(&request, &plan, &mut work, range).await,
            Fate::Fail { done, error } => {
                self.part(&request, &plan, &mut work, done).await?;
                Err(error)
            }
            Fate::Torn { done } => self.part(&request, &plan, &mut work, done).await,
            Fate::Phantom => {
                work.pretend(range.len());
                Ok(())
            }
            Fate::Misdirect { to } => self.perform(&request, &plan, &mut work, ByteRange::at(to, range.len())).await,
            Fate::Hang { rule } => Err(self.faults.hang(rule).await),
            Fate::Ask { rule, timeout, default, data } => {
                let asked = Asked { rule: &rule, timeout, default, data };
                self.ask(&request, &plan, &mut work, asked).await
            }
            Fate::PowerCut { done, disk, state, error } => {
                self.part(&request, &plan, &mut work, done).await?;
                self.cut(disk.as_deref(), state.as_deref(), error).await
            }
        }
    }

    /// Cuts the power, and fails with `error`; also the failure to cut it is the rule's.
    async fn cut(&self, disk: Option<&str>, state: Option<&str>, error: IoError) -> Result<()> {
        let IoError { injected_by, .. } = error.clone();
        match self.faults.cut(disk, state).await {
            Ok(()) => Err(error),
            Err(failed) => Err(IoError { injected_by: failed.injected_by.clone().or(injected_by), ..failed }),
        }
    }

    /// Does a part of a request, if that is anything.
    async fn part(&self, request: &Request, plan: &Plan, work: &mut Work<'_>, done: Share) -> Result<()> {
        let place = match done {
            Share::Bytes(0) => return Ok(()),
            Share::Bytes(len) => ByteRange::at(request.range.start, len),
            Share::All => request.range,
        };
        self.perform(request, plan, work, place).await
    }

    /// Does a request on `place` (its own range, a part of it, or another place), and what follows from that.
    async fn perform(&self, request: &Request, plan: &Plan, work: &mut Work<'_>, place: ByteRange) -> Result<()> {
        let faults = &self.faults;
        let old = if request.operation.changes() { Some(self.read_versions(place).await) } else { None };
        let timed = faults.engine().borrow().times_requests();
        let before = timed.then(|| faults.now());
        let done = work.perform(&self.child, place.start, place.len()).await;
        let took = before.map(|before| faults.now().saturating_sub(before));
        let succeeded = done.is_ok().then_some(place);
        let size = self.child.info().size;
        let Completed { mut late, damage } = {
            let mut engine = faults.engine().borrow_mut();
            engine.complete(request, &plan.damages, succeeded, took, size, faults.now())
        };
        done?;
        if let Some(old) = old {
            old.commit(|key| faults.engine().borrow().has(key));
        }
        faults.tell(&late.fired, Some(request), None);
        for pause in std::mem::take(&mut late.pauses) {
            faults.pause(pause).await;
        }
        if let Work::Read(buf) = work {
            let len = usize::try_from(place.len()).unwrap_or(usize::MAX).min(buf.len());
            self.lay_damage(damage, place, buf.get_mut(..len).unwrap_or_default()).await?;
        }
        match late.fate {
            Fate::Fail { error, .. } => Err(error),
            Fate::Hang { rule } => Err(self.faults.hang(rule).await),
            Fate::PowerCut { disk, state, error, .. } => self.cut(disk.as_deref(), state.as_deref(), error).await,
            // The request is done: nothing else can be decided about it.
            _ => Ok(()),
        }
    }

    /// Reads what sectors hold before they are changed, for rules that serve it later.
    async fn read_versions(&self, range: ByteRange) -> Staged<'_> {
        let wanted = self.faults.engine().borrow().keeps_versions(range, self.faults.now());
        self.faults.versions.stage(&self.child, wanted, u64::from(self.limits().alignment)).await
    }

    /// Lays damage over what was read from `range`.
    async fn lay_damage(&self, damages: Vec<Damage>, range: ByteRange, buf: &mut [u8]) -> Result<()> {
        for damage in damages {
            let from = usize::try_from(damage.range.start.saturating_sub(range.start)).unwrap_or(usize::MAX);
            let len = usize::try_from(damage.range.len()).unwrap_or(0);
            let Some(data) = buf.get_mut(from..).and_then(|rest| rest.get_mut(..len)) else { continue };
            let lba = u64::from(self.faults.lba_size());
            match damage.how {
                Corruption::Stale => {
                    let start = damage.range.start / lba * lba;
                    self.faults.versions.put(damage.key, start, damage.range, data);
                }
                Corruption::Foreign { .. } => {
                    let from = self.faults.engine().borrow().foreign(&damage, self.child.info().size);
                    self.child.read(from, data).await?;
                }
                _ => self.faults.engine().borrow().spoil(&damage, data),
            }
        }
        Ok(())
    }

    /// What may be read damaged does not read as zeroes: the extent ends there, or is data.
    fn doubted(&self, at: u64, status: BlockStatus) -> BlockStatus {
        if !status.zero {
            return status;
        }
        match self.faults.engine().borrow().may_damage(ByteRange::at(at, status.len), self.faults.now()) {
            None => status,
            Some(doubt) if doubt.start > at => BlockStatus { len: doubt.start.saturating_sub(at), ..status },
            Some(doubt) => BlockStatus::data(doubt.len(), None),
        }
    }

    /// Parks a request until somebody has decided.
    async fn ask(&self, request: &Request, plan: &Plan, work: &mut Work<'_>, asked: Asked<'_>) -> Result<()> {
        let faults = &self.faults;
        let reads = matches!(work, Work::Read(_));
        let answered = match self.question(request, plan, work, &asked).await {
            Ok(answer) => answer,
            Err(error) => return Err(error),
        };
        let range = request.range;
        let answer = answered.unwrap_or(match asked.default {
            AskDefault::Proceed => Answer::Proceed,
            AskDefault::Fail(failure) => Answer::Fail(failure),
        });
        match answer {
            // What a read returned has been read already, if the question showed it.
            Answer::Proceed if reads && asked.data => Ok(()),
            Answer::Proceed => self.perform(request, plan, work, range).await,
            Answer::Data(data) => match work {
                Work::Read(buf) => {
                    for (byte, new) in buf.iter_mut().zip(&data) {
                        *byte = *new;
                    }
                    Ok(())
                }
                Work::Write(_, flags) => {
                    let mut other = Work::Write(&data, *flags);
                    self.perform(request, plan, &mut other, range).await
                }
                _ => self.perform(request, plan, work, range).await,
            },
            Answer::Fail(failure) => Err(failure
                .error(asked.rule, None)
                .detail(format!("decided by the program that '{}' asks", faults.name()))),
            Answer::Succeed => {
                work.pretend(range.len());
                Ok(())
            }
        }
    }

    /// Asks, and waits. `None`: the default is to be taken.
    async fn question(
        &self,
        request: &Request,
        plan: &Plan,
        work: &mut Work<'_>,
        asked: &Asked<'_>,
    ) -> Result<Option<Answer>> {
        let faults = &self.faults;
        let range = request.range;
        let data = if work.has_data() { Ok(range.len()) } else { Err(request.operation.name()) };
        if asked.data && matches!(work, Work::Read(_)) {
            self.perform(request, plan, work, range).await?;
        }
        let Some(mut question) = faults.asks().ask(faults.name(), &asked.rule.0, data) else {
            faults.say(What::AskOver { ask: None, rule: asked.rule.clone(), why: "nobody-listens" });
            return Ok(None);
        };
        let shown: Option<Rc<[u8]>> = match work {
            _ if !asked.data => None,
            Work::Read(buf) => Some(Rc::from(&**buf)),
            Work::Write(data, _) => Some(Rc::from(*data)),
            _ => None,
        };
        if let Some(shown) = shown {
            question.show(shown);
        }
        faults.say(What::Ask {
            ask: question.number,
            to: question.to,
            rule: asked.rule.clone(),
            operation: request.operation,
            range,
            fua: request.fua,
            timeout: asked.timeout,
        });
        let mut over = Over { faults, ask: question.number, rule: asked.rule, why: Some("cancelled") };
        let late = async {
            faults.sleep(asked.timeout).await;
            Err("timeout")
        };
        let answer = async { question.answered().await.ok_or("client-gone") };
        match futures_lite::future::or(answer, late).await {
            Ok(answer) => {
                over.why = None;
                Ok(Some(answer))
            }
            Err(why) => {
                over.why = Some(why);
                Ok(None)
            }
        }
    }
}

/// A question a rule asks.
struct Asked<'a> {
    rule: &'a blkproof_block::RuleId,
    timeout: std::time::Duration,
    default: AskDefault,
    data: bool,
}

/// Says that a question is over without an answer, also when its request is dropped.
struct Over<'a> {
    faults: &'a Faults,
    ask: u64,
    rule: &'a blkproof_block::RuleId,
    why: Option<&'static str>,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        if let Some(why) = self.why {
            self.faults.say(What::AskOver { ask: Some(self.ask), rule: self.rule.clone(), why });
        }
    }
}

impl BlockDevice for Fault {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { driver: "fault", limits: self.limits(), ..self.child.info() }
    }

    fn limits(&self) -> Limits {
        Limits { alignment: self.limits.alignment.max(self.faults.lba_size()), ..self.limits }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let range = ByteRange::at(at, buf.len() as u64);
        if !self.faults.concerns(Operation::Read, range) {
            return self.child.read(at, buf).await;
        }
        self.run(Operation::Read, range, false, Work::Read(buf)).await
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        !self.faults.concerns(Operation::Read, ByteRange::at(at, buf.len() as u64)) && self.child.read_now(at, buf)
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        let range = ByteRange::at(at, data.len() as u64);
        if !self.faults.concerns(Operation::Write, range) {
            return self.child.write(at, data, flags).await;
        }
        self.run(Operation::Write, range, flags.contains(WriteFlags::FUA), Work::Write(data, flags)).await
    }

    async fn read_vm_state(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.child.read_vm_state(at, buf).await
    }

    async fn write_vm_state(&self, at: u64, data: &[u8]) -> Result<()> {
        self.child.write_vm_state(at, data).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let range = ByteRange::at(at, len);
        if !self.faults.concerns(Operation::WriteZeroes, range) {
            return self.child.write_zeroes(at, len, flags).await;
        }
        self.run(Operation::WriteZeroes, range, flags.contains(ZeroFlags::FUA), Work::WriteZeroes(flags)).await
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        let range = ByteRange::at(at, len);
        if !self.faults.concerns(Operation::Discard, range) {
            return self.child.discard(at, len).await;
        }
        self.run(Operation::Discard, range, false, Work::Discard).await
    }

    async fn flush(&self) -> Result<()> {
        let range = ByteRange::at(0, 0);
        if !self.faults.concerns(Operation::Flush, range) {
            return self.child.flush().await;
        }
        self.run(Operation::Flush, range, false, Work::Flush).await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        let range = ByteRange::at(at, len);
        if !self.faults.concerns(Operation::BlockStatus, range) {
            return self.child.block_status(at, len).await.map(|status| self.doubted(at, status));
        }
        let mut status = None;
        self.run(Operation::BlockStatus, range, false, Work::BlockStatus(&mut status)).await?;
        let status = status.map(|status| self.doubted(at, status));
        status.ok_or_else(|| IoError::new(blkproof_block::Errno::IO).detail("a rule left no block status"))
    }

    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        let range = ByteRange::at(0, 0);
        if !self.faults.concerns(Operation::Resize, range) {
            return self.child.resize(size, preallocation).await;
        }
        self.run(Operation::Resize, range, false, Work::Resize(size, preallocation)).await
    }

    async fn drain(&self) -> Result<()> {
        self.child.drain().await
    }

    async fn close(&self) -> Result<()> {
        self.child.close().await
    }

    fn listens(&self, event: Event) -> bool {
        self.faults.listens(event) || self.child.listens(event)
    }

    async fn event(&self, event: Event) {
        if self.faults.listens(event) {
            let on = self.faults.announce(event);
            self.faults.follow(on).await;
        }
        self.child.event(event).await;
    }

    fn breakpoints(&self) -> Option<Rc<dyn Breakpoints>> {
        self.child.breakpoints()
    }

    fn format_details(&self) -> Vec<(&'static str, String)> {
        self.child.format_details()
    }

    fn for_client(&self, client: &str) -> Option<Node> {
        let child = self.child.for_client(client)?;
        Some(Node::new(Self { child, ..self.clone() }))
    }
}
