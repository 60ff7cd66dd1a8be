//! Random concurrent requests against any driver over a [`TestDisk`], judged by a [`Model`].
//!
//! [`run`] reads the whole device, flushes it, and then keeps up to [`Config::queue_depth`] requests in flight while
//! the seed decides their kinds, places and order, which disk request moves next, which one fails, and which client
//! request is dropped at which of its await points. Half of the requests go near others in flight. Every read is
//! judged; errors nobody injected, deadlocks and busy loops are findings too. The size changes on the way, if
//! [`Config::resizes`] says so. At the end faults stop, everything is
//! drained, and the whole device is read again.
//!
//! The crash side comes after the run: [`Outcome::check_crashes`] takes states of the disk at the interesting positions,
//! has the driver open each, and judges what it reads.
//!
//! ```
//! use std::rc::Rc;
//! use blkproof_block::testing::{TestDisk, workload};
//!
//! let disk = TestDisk::new(64 << 10);
//! let driver = Rc::new(disk.clone()); // a real test puts its format here
//! let outcome = workload::run(workload::Config { seed: 1, ops: 50, ..Default::default() }, driver, &disk);
//! outcome.assert_clean();
//! let found = outcome.check_crashes(10, 4, |image| {
//!     let mut bytes = vec![0; 64 << 10];
//!     image.read(0, &mut bytes);
//!     Ok(bytes)
//! });
//! assert_eq!(found, []);
//! ```

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use super::crash::{crash_states, interesting_points};
use super::disk::{Action, DiscardEffect, DrainPolicy, TestDisk};
use super::executor::{Executor, Stuck, TaskId};
use super::log::{Log, Op, OpKind};
use super::model::{ChangeId, Model};
use super::stamp;
use crate::choice::{Choices, hash};
use crate::device::{BlockDevice, Preallocation, WriteFlags, ZeroFlags};
use crate::nodes::memory::SparseBytes;
use crate::units::ByteRange;
use crate::{Capabilities, Errno, IoError, Result};

/// Findings after which a run stops.
const FINDINGS_MAX: usize = 8;
/// Steps without a request beginning or ending that count as a busy loop.
const STEPS_MAX: u64 = 200_000;
/// Bytes of one request when the whole device is read.
const CHUNK: u64 = 64 << 10;

/// What to do to a driver. Rates are per thousand; weights are shares of their sum.
#[derive(Clone, Debug)]
pub struct Config {
    /// Determines everything.
    pub seed: u64,
    /// Client requests to send.
    pub ops: u64,
    /// Longest request in bytes.
    pub max_len: u64,
    /// Offsets and lengths are multiples of this; 1 for any byte, which is mixed with sector-sized ones.
    pub align: u64,
    /// Requests in flight at most.
    pub queue_depth: usize,
    /// Weight of reads.
    pub reads: u32,
    /// Weight of writes.
    pub writes: u32,
    /// Weight of write zeroes.
    pub zeroes: u32,
    /// Weight of discards.
    pub discards: u32,
    /// Weight of flushes.
    pub flushes: u32,
    /// Weight of drains.
    pub drains: u32,
    /// Weight of block status requests, whose zeroes are judged as if read.
    pub statuses: u32,
    /// Weight of changes of the size, if the device [can](Capabilities::RESIZE): to whole sectors, between a quarter and
    /// twice what it was, one at a time and never dropped. Other requests go on below the smaller of the two sizes.
    pub resizes: u32,
    /// Writes and write zeroes that carry FUA.
    pub fua_rate: u32,
    /// Disk requests that fail: with nothing, all or a part done.
    pub fault_rate: u32,
    /// Client requests that are dropped before they end.
    pub cancel_rate: u32,
    /// Whether reads must work again once faults have stopped. A driver that gives up for good after some error says
    /// no here.
    pub quiet_end: bool,
}

impl Default for Config {
    /// 200 requests of up to 16 KiB at any byte, eight in flight; no faults, no cancels.
    fn default() -> Self {
        Self {
            seed: 0,
            ops: 200,
            max_len: 16 << 10,
            align: 1,
            queue_depth: 8,
            reads: 30,
            writes: 45,
            zeroes: 8,
            discards: 6,
            flushes: 7,
            drains: 2,
            statuses: 2,
            resizes: 0,
            fua_rate: 100,
            fault_rate: 0,
            cancel_rate: 0,
            quiet_end: true,
        }
    }
}

impl Config {
    /// The same with faults and cancels.
    #[must_use]
    pub fn hostile(self) -> Self {
        Self { fault_rate: 30, cancel_rate: 80, ..self }
    }
}

/// Something wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What kind: `read`, `map`, `resize`, `error-contract`, `hang`, `crash`.
    pub code: &'static str,
    /// What was seen, where, and what was allowed.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.text)
    }
}

/// What a run was.
#[derive(Debug)]
pub struct Outcome {
    /// What it was asked for.
    pub config: Config,
    /// What went wrong; empty is good.
    pub findings: Vec<Finding>,
    /// What clients may read, at the end and after any crash.
    pub model: Model,
    /// What happened on the disk since it was made.
    pub log: Log,
    /// The disk's content before the log.
    pub initial: SparseBytes,
    /// Position in the log where the workload began; what was there before it is durable.
    pub begin: usize,
    /// Position in the log where it ended, before whatever came after [`run`].
    pub end: usize,
    /// The device's size at the end.
    pub size: u64,
    /// Client requests that succeeded, failed and were dropped.
    pub ended: [u64; 3],
    /// Two runs of the same seed have the same number here, or the driver is not deterministic.
    pub fingerprint: u64,
}

impl Outcome {
    /// Panics with all findings, the seed, and how it came to this.
    ///
    /// # Panics
    /// If there is a finding.
    #[track_caller]
    pub fn assert_clean(&self) {
        let texts: Vec<_> = self.findings.iter().map(ToString::to_string).collect();
        assert!(texts.is_empty(), "{:?}:\n  {}", self.config, texts.join("\n  "));
    }

    /// Positions at which a crash is worth trying: those of the disk and those of the client.
    pub fn crash_points(&self) -> Vec<usize> {
        let mut points = interesting_points(&self.log);
        points.extend(self.model.interesting_points());
        points.retain(|&point| self.begin <= point && point <= self.end);
        points.push(self.end);
        points.sort_unstable();
        points.dedup();
        points
    }

    /// Crashes at up to `points` positions, spread evenly, into up to `states` disks each; `recover` opens such a disk,
    /// as often and as strictly as it likes, and gives the whole content of the device, or says what is wrong.
    /// Stops at the eighth finding.
    pub fn check_crashes(
        &self,
        points: usize,
        states: usize,
        mut recover: impl FnMut(&SparseBytes) -> Result<Vec<u8>, String>,
    ) -> Vec<Finding> {
        let mut findings = Vec::new();
        let all = self.crash_points();
        let count = points.min(all.len());
        for index in 0..count {
            // The last position is always among them.
            let position = all[(index + 1) * all.len() / count - 1];
            let judge = self.model.after_crash(position);
            for state in crash_states(&self.log, &self.initial, position, states, self.config.seed) {
                let verdict = recover(&state.image).and_then(|content| {
                    let sizes: Vec<_> = judge.sizes().collect();
                    match sizes.contains(&(content.len() as u64)) {
                        true => judge.check(0, &content).map_err(|violation| violation.to_string()),
                        false => Err(format!("the device has {} bytes, allowed: {sizes:?}", content.len())),
                    }
                });
                if let Err(text) = verdict {
                    let seed = self.config.seed;
                    let text = format!("seed {seed}, power cut at {position} with {}: {text}", state.how);
                    findings.push(Finding { code: "crash", text });
                    if findings.len() == FINDINGS_MAX {
                        return findings;
                    }
                }
            }
        }
        findings
    }

    /// Reads all of `device`, say after closing and reopening it, and judges it against what clients were promised.
    /// Everything dropped must have been settled by a drain or close, which this notes.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn check_reopened(&mut self, device: &impl BlockDevice) -> Result<(), String> {
        let now = self.model.now();
        self.model.drained(now);
        let size = device.info().size;
        if self.config.resizes > 0 && size != self.size {
            return Err(format!("the device has {size} bytes instead of {}", self.size));
        }
        for range in chunks(self.size) {
            let mut buf = vec![0; range.len() as usize];
            device.read(range.start, &mut buf).await.map_err(|error| format!("reading {range}: {error}"))?;
            self.model.check_now(range.start, &buf).map_err(|violation| violation.to_string())?;
        }
        Ok(())
    }
}

/// What all tasks of a run share.
struct Shared {
    model: RefCell<Model>,
    findings: RefCell<Vec<Finding>>,
    /// Whether disk requests are made to fail.
    faulty: Cell<bool>,
    faults_before: u64,
    /// Requests stay below: the device's size, or while that changes the smaller of old and new.
    limit: Cell<u64>,
    resizing: Cell<bool>,
    disks: Vec<TestDisk>,
    ended: Cell<[u64; 3]>,
}

impl Shared {
    fn find(&self, code: &'static str, text: impl fmt::Display) {
        self.findings.borrow_mut().push(Finding { code, text: text.to_string() });
    }

    fn count(&self, which: usize) {
        let mut ended = self.ended.get();
        ended[which] += 1;
        self.ended.set(ended);
    }

    /// Notes how a request ended. An error is a finding unless a fault was injected before it.
    fn judge_error(&self, what: impl fmt::Display, result: &Result<()>) {
        match result {
            Ok(()) => self.count(0),
            Err(error) => {
                self.count(1);
                if self.disks.iter().map(TestDisk::faults).sum::<u64>() == self.faults_before {
                    self.find("error-contract", format!("{what}: {error}, and no fault was injected"));
                }
            }
        }
    }
}

/// What one client request is.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write,
    Zeroes,
    Discard,
    Flush,
    Drain,
    Status,
    /// To this size.
    Resize(u64),
}

/// A request in flight, as the controller sees it.
struct InFlight {
    task: TaskId,
    range: ByteRange,
    /// The change it announced to the model, once it has.
    change: Rc<Cell<Option<ChangeId>>>,
    /// Dropped at the first chance after so many polls and so many further steps.
    cancel: Option<(u64, u64)>,
}

/// Tortures `device`, which lies over `disk`. See the [module](self).
pub fn run<D: BlockDevice + 'static>(config: Config, device: Rc<D>, disk: &TestDisk) -> Outcome {
    run_over(config, device, &[disk])
}

/// [`run`] for a device over several disks. The log is that of the first; crash states know only it.
///
/// # Panics
/// If `disks` is empty, or the device can not be read and flushed to begin with.
pub fn run_over<D: BlockDevice + 'static>(config: Config, device: Rc<D>, disks: &[&TestDisk]) -> Outcome {
    let disk = disks[0];
    let size = device.info().size;
    let choices = Choices::new(config.seed);
    let mut executor = Executor::new();
    for (index, disk) in disks.iter().enumerate() {
        executor.attach(disk);
        let seed = hash(config.seed, 0x6469_736b + index as u64);
        disk.set_drain_policy(DrainPolicy::BySeed(seed));
        disk.set_discard_effect(DiscardEffect::Mixed(seed));
    }
    let guest = executor
        .block_on(hash(config.seed, 0), load(device.clone(), size))
        .unwrap_or_else(|stuck| panic!("reading the device before the workload: {stuck}"))
        .unwrap_or_else(|error| panic!("reading the device before the workload: {error}"));
    let begin = disk.position();
    let shared = Rc::new(Shared {
        model: RefCell::new(Model::new(guest).with_disk(disk)),
        findings: RefCell::default(),
        faulty: Cell::new(config.fault_rate > 0),
        faults_before: disks.iter().map(|disk| disk.faults()).sum(),
        limit: Cell::new(size),
        resizing: Cell::new(false),
        disks: disks.iter().map(|&disk| disk.clone()).collect(),
        ended: Cell::default(),
    });
    if config.fault_rate > 0 {
        for (index, disk) in disks.iter().enumerate() {
            let (shared, rate) = (shared.clone(), config.fault_rate);
            let stream = choices.stream(0x6661_756c + index as u64);
            disk.script(move |op| if shared.faulty.get() { fault(&stream, op, rate) } else { Action::Pass });
        }
    }

    let stuck = control(&config, &device, size, &choices, &mut executor, &shared);
    match stuck {
        Some(stuck) => shared.find("hang", stuck),
        None => {
            shared.faulty.set(false);
            let last = finish(shared.clone(), device.clone(), config.quiet_end);
            if let Err(stuck) = executor.block_on(hash(config.seed, u64::MAX), last) {
                shared.find("hang", format!("after the workload: {stuck}"));
            }
        }
    }
    if config.fault_rate > 0 {
        disks.iter().for_each(|disk| disk.clear_rules());
    }
    disks.iter().for_each(|disk| disk.set_scheduled(false));
    let log = disk.log();
    let fingerprint = hash(executor.trace(), log.fingerprint());
    let model = shared.model.borrow().clone();
    let findings = shared.findings.borrow().clone();
    let (end, initial, ended, size) = (log.end(), disk.initial(), shared.ended.get(), shared.limit.get());
    Outcome { config, findings, model, log, initial, begin, end, size, ended, fingerprint }
}

/// Begins, steps and drops requests until all are done.
fn control<D: BlockDevice + 'static>(
    config: &Config,
    device: &Rc<D>,
    size: u64,
    choices: &Choices,
    executor: &mut Executor,
    shared: &Rc<Shared>,
) -> Option<Stuck> {
    let mut schedule = choices.stream(0x7363_6865);
    let mut in_flight: Vec<InFlight> = Vec::new();
    let mut sent = 0;
    let mut steps = 0;
    loop {
        let before = in_flight.len();
        in_flight.retain(|request| executor.is_running(request.task));
        if in_flight.len() != before {
            steps = 0;
        }
        if shared.findings.borrow().len() >= FINDINGS_MAX {
            in_flight.iter().for_each(|request| executor.cancel(request.task));
            return None;
        }
        for index in (0..in_flight.len()).rev() {
            let polled = executor.polls(in_flight[index].task);
            let due = match &mut in_flight[index].cancel {
                Some((polls, delay)) if polled >= *polls => {
                    let due = *delay == 0;
                    *delay = delay.saturating_sub(1);
                    due
                }
                _ => false,
            };
            if due {
                let request = in_flight.swap_remove(index);
                executor.cancel(request.task);
                shared.count(2);
                if let Some(change) = request.change.get() {
                    shared.model.borrow_mut().drop_request(change);
                }
            }
        }
        if in_flight.is_empty() && sent == config.ops {
            return None;
        }
        let room = in_flight.len() < config.queue_depth && sent < config.ops;
        if room && (in_flight.is_empty() || schedule.chance(300)) {
            let mut draws = choices.stream(sent);
            let busy: Vec<_> = in_flight.iter().map(|request| request.range).collect();
            let request = begin(config, device, size, sent, &mut draws, &busy, executor, shared);
            in_flight.push(request);
            sent += 1;
            steps = 0;
        } else if !executor.step(&mut schedule) && !room {
            // A request that waits for one that is about to be dropped is not stuck.
            let Some(request) = in_flight.iter_mut().find(|request| request.cancel.is_some()) else {
                return Some(executor.deadlock());
            };
            request.cancel = Some((0, 0));
        }
        steps += 1;
        if steps > STEPS_MAX {
            return Some(Stuck::BusyLoop { steps, tasks: executor.running() });
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "one request needs to know of all of it")]
fn begin<D: BlockDevice + 'static>(
    config: &Config,
    device: &Rc<D>,
    size: u64,
    number: u64,
    draws: &mut Choices,
    busy: &[ByteRange],
    executor: &mut Executor,
    shared: &Rc<Shared>,
) -> InFlight {
    let mut kind = pick_kind(config, draws);
    if let Kind::Resize(to) = &mut kind {
        *to = pick_size(size, draws, busy);
        let able = device.info().capabilities.contains(Capabilities::RESIZE);
        if shared.resizing.get() || !able {
            kind = Kind::Flush;
        }
    }
    let range = match kind {
        Kind::Flush | Kind::Drain => ByteRange::default(),
        Kind::Resize(to) => {
            shared.resizing.set(true);
            let from = shared.limit.replace(shared.limit.get().min(to));
            ByteRange { start: from, end: from }
        }
        _ => pick_range(config, shared.limit.get(), draws, busy),
    };
    let fua = draws.chance(config.fua_rate);
    let unmap = draws.chance(500);
    // A simple driver is polled twice, one that allocates a dozen times; whoever ends earlier is not dropped.
    let polls = if draws.chance(600) { 1 } else { draws.below(14) };
    let cancel = (draws.chance(config.cancel_rate) && !matches!(kind, Kind::Resize(_)))
        .then(|| (polls, draws.below(4) * draws.below(8)));
    let change = Rc::new(Cell::new(None));
    let request = Request {
        shared: shared.clone(),
        device: device.clone(),
        change: change.clone(),
        range,
        fua,
        unmap,
        name: format!("request {number}: {kind:?} {range}{}", if fua { " fua" } else { "" }),
    };
    let handle = executor.spawn_named(request.name.clone(), request.send(kind));
    InFlight { task: handle.id(), range, change, cancel }
}

fn pick_kind(config: &Config, draws: &mut Choices) -> Kind {
    let table = [
        (config.reads, Kind::Read),
        (config.writes, Kind::Write),
        (config.zeroes, Kind::Zeroes),
        (config.discards, Kind::Discard),
        (config.flushes, Kind::Flush),
        (config.drains, Kind::Drain),
        (config.statuses, Kind::Status),
        (config.resizes, Kind::Resize(0)),
    ];
    let mut left = draws.below(table.iter().map(|&(weight, _)| u64::from(weight)).sum());
    for (weight, kind) in table {
        match left.checked_sub(u64::from(weight)) {
            Some(rest) => left = rest,
            None => return kind,
        }
    }
    Kind::Read
}

/// A new size: not below a request in flight. `size` is the device's first one.
fn pick_size(size: u64, draws: &mut Choices, busy: &[ByteRange]) -> u64 {
    let least = busy.iter().map(|range| range.end).max().unwrap_or(0).max(size / 4).div_ceil(512);
    let most = (size * 2).div_ceil(512).max(least);
    (least + draws.below(most - least + 1)) * 512
}

/// Half the places are anywhere, half beside or over a request in flight. Never empty, unless the device is.
fn pick_range(config: &Config, size: u64, draws: &mut Choices, busy: &[ByteRange]) -> ByteRange {
    let align = match config.align {
        0 | 1 if draws.chance(400) => 512,
        align => align.max(1),
    };
    let align = if size < align { 1 } else { align };
    let max = config.max_len.min(size).max(align);
    let len = match draws.below(4) {
        0 => max,
        1 => align,
        _ => 1 + draws.below(max),
    };
    let len = (len.div_ceil(align) * align).min(size);
    let at = match busy.get(draws.index(busy.len() * 2)) {
        Some(other) => (other.start + draws.below(other.len() + len + 1)).saturating_sub(len),
        None => draws.below(size),
    };
    // The last bytes of a device are reached too, also if its size is odd.
    let at = (at / align * align).min((size - len) / align * align);
    let len = if draws.chance(20) && config.align <= 1 { size - at } else { len }.min(max);
    ByteRange::at(at, len)
}

/// One client request.
struct Request<D> {
    shared: Rc<Shared>,
    device: Rc<D>,
    change: Rc<Cell<Option<ChangeId>>>,
    range: ByteRange,
    fua: bool,
    unmap: bool,
    name: String,
}

impl<D: BlockDevice> Request<D> {
    async fn send(self, kind: Kind) {
        if self.range.is_empty() && !matches!(kind, Kind::Flush | Kind::Drain | Kind::Resize(_)) {
            return;
        }
        match kind {
            Kind::Read => self.read().await,
            Kind::Write | Kind::Zeroes | Kind::Discard => self.change(kind).await,
            Kind::Flush => self.flush().await,
            Kind::Drain => drain(&self.shared, &*self.device).await,
            Kind::Status => self.status().await,
            Kind::Resize(to) => self.resize(to).await,
        }
    }

    async fn read(self) {
        let started = self.shared.model.borrow_mut().now();
        let mut buf = vec![0xdd; self.range.len() as usize];
        let result = self.device.read(self.range.start, &mut buf).await;
        self.shared.judge_error(&self.name, &result);
        if result.is_ok() {
            let verdict = self.shared.model.borrow_mut().check_read(self.range.start, &buf, started);
            if let Err(violation) = verdict {
                self.shared.find("read", format!("{}: {violation}", self.name));
            }
        }
    }

    async fn change(self, kind: Kind) {
        let (at, len, fua) = (self.range.start, self.range.len(), self.fua);
        let shared = &self.shared;
        let (id, result) = match kind {
            Kind::Write => {
                let op = shared.model.borrow().len() as u64 + 1;
                let data = stamp::bytes(at, len as usize, op);
                let id = shared.model.borrow_mut().submit_write(at, &data, fua);
                self.change.set(Some(id));
                let flags = if fua { WriteFlags::FUA } else { WriteFlags::empty() };
                (id, self.device.write(at, &data, flags).await)
            }
            Kind::Zeroes => {
                let id = shared.model.borrow_mut().submit_zeroes(at, len, fua);
                self.change.set(Some(id));
                let mut flags = ZeroFlags::empty();
                flags.set(ZeroFlags::FUA, fua);
                flags.set(ZeroFlags::MAY_UNMAP, self.unmap);
                (id, self.device.write_zeroes(at, len, flags).await)
            }
            _ => {
                let id = shared.model.borrow_mut().submit_discard(at, len);
                self.change.set(Some(id));
                (id, self.device.discard(at, len).await)
            }
        };
        shared.judge_error(&self.name, &result);
        match result {
            Ok(()) => shared.model.borrow_mut().complete(id),
            Err(_) => shared.model.borrow_mut().fail(id),
        }
    }

    async fn flush(self) {
        let id = self.shared.model.borrow_mut().submit_flush();
        let result = self.device.flush().await;
        self.shared.judge_error(&self.name, &result);
        if result.is_ok() {
            self.shared.model.borrow_mut().complete_flush(id);
        }
    }

    /// What was dropped may land where the new size has no place, so it is settled first.
    async fn resize(self, to: u64) {
        let (shared, from) = (&self.shared, self.range.start);
        drain(shared, &*self.device).await;
        let id = shared.model.borrow_mut().submit_resize(from, to);
        let result = self.device.resize(to, Preallocation::Off).await;
        shared.judge_error(&self.name, &result);
        let size = self.device.info().size;
        let fits = match result {
            Ok(()) => size == to,
            Err(_) => size == to || size == from,
        };
        if !fits {
            shared.find("resize", format!("{}: {result:?}, and the device has {size} bytes", self.name));
        }
        match result {
            Ok(()) => shared.model.borrow_mut().complete(id),
            Err(_) => shared.model.borrow_mut().fail(id),
        }
        shared.limit.set(size);
        shared.resizing.set(false);
    }

    async fn status(self) {
        let started = self.shared.model.borrow_mut().now();
        let (at, len) = (self.range.start, self.range.len());
        match self.device.block_status(at, len).await {
            Err(error) => self.shared.judge_error(&self.name, &Err(error)),
            Ok(status) => {
                self.shared.count(0);
                if status.len == 0 || status.len > len {
                    self.shared.find("map", format!("{}: answers about {} bytes", self.name, status.len));
                } else if status.zero {
                    let zeroes = vec![0; status.len as usize];
                    let verdict = self.shared.model.borrow_mut().check_read(at, &zeroes, started);
                    if let Err(violation) = verdict {
                        self.shared.find("map", format!("{}: said to be zero: {violation}", self.name));
                    }
                }
            }
        }
    }
}

async fn drain(shared: &Shared, device: &impl BlockDevice) {
    let started = shared.model.borrow_mut().now();
    let result = device.drain().await;
    shared.judge_error("drain", &result);
    if result.is_ok() {
        shared.model.borrow_mut().drained(started);
    }
}

/// The end: nothing is in flight, faults have stopped.
async fn finish<D: BlockDevice>(shared: Rc<Shared>, device: Rc<D>, quiet_end: bool) {
    drain(&shared, &*device).await;
    let size = shared.limit.get();
    // Twice, so that what one read has shown must be there for the next (CM 4.3 (2)).
    for range in chunks(size).chain(chunks(size)) {
        let mut buf = vec![0; range.len() as usize];
        let started = shared.model.borrow_mut().now();
        match device.read(range.start, &mut buf).await {
            Ok(()) => {
                let verdict = shared.model.borrow_mut().check_read(range.start, &buf, started);
                if let Err(violation) = verdict {
                    shared.find("read", format!("at the end: {violation}"));
                }
            }
            Err(error) if quiet_end => shared.find("error-contract", format!("reading {range} at the end: {error}")),
            Err(_) => {}
        }
    }
}

async fn load<D: BlockDevice>(device: Rc<D>, size: u64) -> Result<SparseBytes> {
    let mut content = SparseBytes::new(size);
    for range in chunks(size) {
        let mut buf = vec![0; range.len() as usize];
        device.read(range.start, &mut buf).await?;
        content.write(range.start, &buf);
    }
    device.flush().await?;
    Ok(content)
}

fn chunks(size: u64) -> impl Iterator<Item = ByteRange> {
    (0..size.div_ceil(CHUNK)).map(move |index| ByteRange { start: index * CHUNK, end: ((index + 1) * CHUNK).min(size) })
}

/// What goes wrong with one disk request. Depends on nothing but the seed and its number.
fn fault(stream: &Choices, op: &Op, rate: u32) -> Action {
    let mut draws = stream.stream(op.id.0);
    if matches!(op.kind, OpKind::Event | OpKind::Drain) || !draws.chance(rate) {
        return Action::Pass;
    }
    let error = IoError::new(if draws.chance(200) { Errno::NOSPC } else { Errno::IO });
    match draws.below(4) {
        0 | 1 => Action::FailBefore(error),
        2 => Action::DoThenFail(error),
        _ => {
            // A sector is atomic: the cut falls between two.
            let (first, last) = (op.range.start / 512, op.range.end / 512);
            let cut = (first + draws.below(last - first + 1)) * 512;
            Action::PartThenFail { bytes: cut.saturating_sub(op.range.start), error }
        }
    }
}
