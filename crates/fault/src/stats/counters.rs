//! The counting itself.
//!
//! A request costs two looks at the clock and a few additions: no allocation, no formatting. Everything that is shared
//! is borrowed for the length of one addition and never across an await.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use blkproof_block::Result;

use super::errors::Errors;
use super::heat::{Heat, Touch};
use super::interval::Interval;
use super::latency::{BadBoundaries, Boundaries, Durations};
use super::shape::Shape;
use super::snapshot::{HeatMap, Histograms, PerOperation, Queue, Snapshot};
use crate::clock::SharedClock;
use crate::request::Operation;

/// Intervals kept at most.
pub const INTERVALS_MAX: usize = 16;

/// How to count; the defaults are QEMU's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StatsOptions {
    /// Count from the beginning, without being started.
    pub start: bool,
    /// Failed requests count as time spent and as access.
    pub account_failed: bool,
    /// Invalid requests count as access.
    pub account_invalid: bool,
    /// Lengths, in seconds, of the intervals that `timed_stats` tells of; none is 0, and the first
    /// [`INTERVALS_MAX`] are kept.
    pub intervals: Vec<u64>,
}

impl Default for StatsOptions {
    fn default() -> Self {
        Self { start: true, account_failed: true, account_invalid: true, intervals: Vec::new() }
    }
}

/// The figures of one node, shared by the node and whoever asks.
pub struct Stats {
    name: Rc<str>,
    clock: SharedClock,
    options: StatsOptions,
    running: Cell<bool>,
    /// Counts resets: a request that began before one is not counted when it ends.
    epoch: Cell<u64>,
    size: Cell<u64>,
    state: RefCell<State>,
}

impl std::fmt::Debug for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stats").field("name", &self.name).field("running", &self.running).finish_non_exhaustive()
    }
}

struct State {
    operations: [Counters; Operation::ALL.len()],
    depth: Depth,
    heat: Heat,
    errors: Errors,
    intervals: Vec<Interval>,
    histograms: Histograms,
    wr_highest_offset: u64,
    last_access: Option<u64>,
}

struct Counters {
    submitted: u64,
    done: u64,
    bytes: u64,
    failed: u64,
    invalid: u64,
    cancelled: u64,
    in_flight: u64,
    fua: u64,
    accounted_ns: u64,
    durations: Durations,
    shape: Shape,
}

impl Counters {
    fn new() -> Self {
        Self {
            submitted: 0,
            done: 0,
            bytes: 0,
            failed: 0,
            invalid: 0,
            cancelled: 0,
            in_flight: 0,
            fua: 0,
            accounted_ns: 0,
            durations: Durations::new(),
            shape: Shape::new(),
        }
    }

    fn snapshot(&self, operation: Operation) -> PerOperation {
        PerOperation {
            operation,
            submitted: self.submitted,
            done: self.done,
            bytes: self.bytes,
            failed: self.failed,
            invalid: self.invalid,
            cancelled: self.cancelled,
            in_flight: self.in_flight,
            fua: self.fua,
            sequential: self.shape.sequential,
            total_time_ns: self.accounted_ns,
            latency: self.durations.snapshot(),
            sizes: used(&self.shape.sizes),
            alignments: used(&self.shape.alignments),
        }
    }
}

/// Requests under way, over time.
struct Depth {
    current: u64,
    max: u64,
    /// Requests times nanoseconds, while counting.
    integral: u128,
    busy_ns: u64,
    elapsed_ns: u64,
    /// When the above was brought up to date.
    last: u64,
}

impl Depth {
    const fn new(now: u64) -> Self {
        Self { current: 0, max: 0, integral: 0, busy_ns: 0, elapsed_ns: 0, last: now }
    }

    /// Adds what passed since the last time, with `current` requests under way.
    fn settle(&mut self, now: u64, running: bool) {
        let passed = now.saturating_sub(self.last);
        self.last = self.last.max(now);
        if running {
            self.elapsed_ns = self.elapsed_ns.saturating_add(passed);
            self.integral += u128::from(self.current) * u128::from(passed);
            if self.current > 0 {
                self.busy_ns = self.busy_ns.saturating_add(passed);
            }
        }
    }

    fn snapshot(&self) -> Queue {
        let average = if self.elapsed_ns == 0 { 0.0 } else { self.integral as f64 / self.elapsed_ns as f64 };
        let average = super::millionths(average);
        Queue { in_flight: self.current, max: self.max, average, busy_ns: self.busy_ns }
    }
}

impl State {
    fn new(now: u64, size: u64, options: &StatsOptions) -> Self {
        let intervals = options.intervals.iter().take(INTERVALS_MAX).filter(|seconds| **seconds > 0);
        Self {
            operations: std::array::from_fn(|_| Counters::new()),
            depth: Depth::new(now),
            heat: Heat::new(size),
            errors: Errors::default(),
            intervals: intervals.map(|seconds| Interval::new(*seconds, now)).collect(),
            histograms: Histograms::default(),
            wr_highest_offset: 0,
            last_access: None,
        }
    }

    fn of(&mut self, operation: Operation) -> &mut Counters {
        let [read, write, zeroes, discard, flush, status, resize] = &mut self.operations;
        match operation {
            Operation::Read => read,
            Operation::Write => write,
            Operation::WriteZeroes => zeroes,
            Operation::Discard => discard,
            Operation::Flush => flush,
            Operation::BlockStatus => status,
            Operation::Resize => resize,
        }
    }

    fn submitted(&mut self, operation: Operation, at: u64, len: u64, fua: bool) {
        let counters = self.of(operation);
        counters.submitted += 1;
        counters.fua += u64::from(fua);
        if has_range(operation) {
            counters.shape.count(at, len);
        }
    }

    fn done(&mut self, operation: Operation, at: u64, len: u64) {
        let counters = self.of(operation);
        counters.done += 1;
        let touch = match operation {
            Operation::Read => Touch::Read,
            Operation::Write | Operation::WriteZeroes => {
                self.wr_highest_offset = self.wr_highest_offset.max(at.saturating_add(len));
                Touch::Write
            }
            Operation::Discard => Touch::Write,
            Operation::Flush | Operation::BlockStatus | Operation::Resize => return,
        };
        let counters = self.of(operation);
        counters.bytes = counters.bytes.saturating_add(len);
        self.heat.touch(at, len, touch);
    }

    /// Counts the time of a request that was done or failed.
    fn took(&mut self, operation: Operation, ns: u64, now: u64, accounted: bool) {
        let counters = self.of(operation);
        counters.durations.record(ns);
        let (kind, histogram) = match operation {
            Operation::Read => (0, &mut self.histograms.read),
            Operation::Write | Operation::WriteZeroes => (1, &mut self.histograms.write),
            Operation::Flush => (2, &mut self.histograms.flush),
            Operation::Discard | Operation::BlockStatus | Operation::Resize => (usize::MAX, &mut None),
        };
        if let Some(histogram) = histogram {
            histogram.record(ns);
        }
        if accounted {
            let counters = self.of(operation);
            counters.accounted_ns = counters.accounted_ns.saturating_add(ns);
            self.last_access = Some(now);
            self.intervals.iter_mut().for_each(|interval| interval.record(kind, ns, now));
        }
    }
}

/// Whether the operation is about bytes of the disk, whose size and place are worth counting.
const fn has_range(operation: Operation) -> bool {
    matches!(operation, Operation::Read | Operation::Write | Operation::WriteZeroes | Operation::Discard)
}

impl Stats {
    /// Counts for the node `name` of a disk of `size` bytes.
    pub fn new(name: impl Into<Rc<str>>, size: u64, clock: SharedClock, options: StatsOptions) -> Rc<Self> {
        let state = State::new(nanoseconds(&clock), size, &options);
        Rc::new(Self {
            name: name.into(),
            running: Cell::new(options.start),
            epoch: Cell::new(0),
            size: Cell::new(size),
            state: RefCell::new(state),
            clock,
            options,
        })
    }

    /// The node's name.
    pub fn name(&self) -> &Rc<str> {
        &self.name
    }

    /// Whether requests are counted.
    pub fn is_running(&self) -> bool {
        self.running.get()
    }

    /// Counts from now on what is submitted; figures go on where they were.
    pub fn start(&self) {
        self.set_running(true);
    }

    /// Counts nothing more than the end of what was submitted before. Costs a request one branch.
    pub fn stop(&self) {
        self.set_running(false);
    }

    fn set_running(&self, running: bool) {
        let now = self.now();
        self.state.borrow_mut().depth.settle(now, self.running.get());
        self.running.set(running);
    }

    /// Forgets every figure, but not the bounds of histograms. Requests under way are not counted when they end.
    pub fn reset(&self) {
        self.epoch.set(self.epoch.get().wrapping_add(1));
        let fresh = State::new(self.now(), self.size.get(), &self.options);
        let mut state = self.state.borrow_mut();
        let mut histograms = std::mem::take(&mut state.histograms);
        let Histograms { read, write, zone_append, flush } = &mut histograms;
        [read, write, zone_append, flush].into_iter().flatten().for_each(Boundaries::clear);
        *state = State { histograms, ..fresh };
    }

    /// Sets or removes the histograms with bounds of the user's own, as `block-latency-histogram-set` does: `every`
    /// holds for each kind that has no bounds of its own here; with nothing given, all are removed; otherwise a kind
    /// that is not named keeps its histogram. One that is set begins empty.
    ///
    /// # Errors
    /// If bounds do not ascend. Nothing is changed then.
    pub fn set_histograms(
        &self,
        every: Option<Vec<u64>>,
        read: Option<Vec<u64>>,
        write: Option<Vec<u64>>,
        zone_append: Option<Vec<u64>>,
        flush: Option<Vec<u64>>,
    ) -> Result<(), BadBoundaries> {
        let none_named = [&every, &read, &write, &zone_append, &flush].into_iter().all(Option::is_none);
        let wanted = |own: Option<Vec<u64>>| own.or_else(|| every.clone()).map(Boundaries::new).transpose();
        let (read, write, zone_append, flush) = (wanted(read)?, wanted(write)?, wanted(zone_append)?, wanted(flush)?);
        let old = &mut self.state.borrow_mut().histograms;
        if none_named {
            *old = Histograms::default();
            return Ok(());
        }
        let Histograms { read: old_read, write: old_write, zone_append: old_append, flush: old_flush } = old;
        for (old, new) in [(old_read, read), (old_write, write), (old_append, zone_append), (old_flush, flush)] {
            if new.is_some() {
                *old = new;
            }
        }
        Ok(())
    }

    /// Every figure as it is now.
    pub fn snapshot(&self) -> Snapshot {
        let now = self.now();
        let mut state = self.state.borrow_mut();
        state.depth.settle(now, self.running.get());
        let timed = state.intervals.iter_mut().map(|interval| interval.snapshot(now)).collect();
        let (errors, errors_more) = state.errors.snapshot();
        Snapshot {
            node: self.name.to_string(),
            running: self.running.get(),
            unix_ns: u64::try_from(self.clock.unix().as_nanos()).unwrap_or(u64::MAX),
            elapsed_ns: state.depth.elapsed_ns,
            size: self.size.get(),
            operations: Operation::ALL.into_iter().map(|operation| state.of(operation).snapshot(operation)).collect(),
            queue: state.depth.snapshot(),
            heat: HeatMap { cell_size: state.heat.cell_size(), cells: state.heat.cells() },
            errors,
            errors_more,
            wr_highest_offset: state.wr_highest_offset,
            idle_ns: state.last_access.map(|last| now.saturating_sub(last)),
            account_failed: self.options.account_failed,
            account_invalid: self.options.account_invalid,
            timed,
            histograms: state.histograms.clone(),
        }
    }

    /// Bytes of the disk, as far as is known here.
    pub(super) fn size(&self) -> u64 {
        self.size.get()
    }

    /// The disk has another size now.
    pub(super) fn set_size(&self, size: u64) {
        if size > self.size.replace(size) {
            self.state.borrow_mut().heat.make_room(size);
        }
    }

    /// The time to begin with; `None` if nothing is counted.
    pub(super) fn clock_if_running(&self) -> Option<u64> {
        self.running.get().then(|| self.now())
    }

    /// Counts a read that was served at once, from `start` to now.
    pub(super) fn served(&self, at: u64, len: u64, start: u64) {
        let now = self.now();
        let ns = now.saturating_sub(start);
        let running = self.running.get();
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        state.depth.settle(start, running);
        state.depth.current += 1;
        state.depth.max = state.depth.max.max(state.depth.current);
        state.depth.settle(now, running);
        state.depth.current -= 1;
        state.submitted(Operation::Read, at, len, false);
        state.done(Operation::Read, at, len);
        state.took(Operation::Read, ns, now, true);
    }

    /// A request begins; `None` if nothing is counted.
    pub(super) fn begin(&self, operation: Operation, at: u64, len: u64, fua: bool) -> Option<Going<'_>> {
        let start = self.clock_if_running()?;
        let mut state = self.state.borrow_mut();
        state.depth.settle(start, true);
        state.depth.current += 1;
        state.depth.max = state.depth.max.max(state.depth.current);
        state.submitted(operation, at, len, fua);
        state.of(operation).in_flight += 1;
        Some(Going { stats: self, epoch: self.epoch.get(), operation, at, len, start, ended: false })
    }

    fn now(&self) -> u64 {
        nanoseconds(&self.clock)
    }
}

fn nanoseconds(clock: &SharedClock) -> u64 {
    let now = clock.now();
    now.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(now.subsec_nanos()))
}

/// A list without the zeroes at its end.
fn used(list: &[u64]) -> Vec<u64> {
    let used = list.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
    list.get(..used).unwrap_or_default().to_vec()
}

/// A request under way. Dropped before it [ended](Self::end), it counts as cancelled.
pub(super) struct Going<'a> {
    stats: &'a Stats,
    epoch: u64,
    operation: Operation,
    at: u64,
    len: u64,
    start: u64,
    ended: bool,
}

impl Going<'_> {
    /// The request is over. `invalid` is asked about a failure only.
    pub(super) fn end<T>(mut self, result: &Result<T>, invalid: impl FnOnce() -> bool) {
        self.ended = true;
        let Some(now) = self.over() else { return };
        let Self { stats, operation, at, len, start, .. } = self;
        let ns = now.saturating_sub(start);
        let mut state = stats.state.borrow_mut();
        match result {
            Ok(_) => {
                state.done(operation, at, len);
                state.took(operation, ns, now, true);
            }
            Err(error) if invalid() => {
                state.of(operation).invalid += 1;
                state.errors.count(operation, at, error);
                if stats.options.account_invalid {
                    state.last_access = Some(now);
                }
            }
            Err(error) => {
                state.of(operation).failed += 1;
                state.errors.count(operation, at, error);
                state.took(operation, ns, now, stats.options.account_failed);
                if has_range(operation) {
                    state.heat.touch(error.first_bad.map_or(at, |bad| bad.0), 1, Touch::Error);
                }
            }
        }
    }

    /// Takes the request out of the queue and returns the time; `None` if a reset came in between.
    fn over(&self) -> Option<u64> {
        if self.epoch != self.stats.epoch.get() {
            return None;
        }
        let now = self.stats.now();
        let mut state = self.stats.state.borrow_mut();
        state.depth.settle(now, self.stats.running.get());
        state.depth.current = state.depth.current.saturating_sub(1);
        let counters = state.of(self.operation);
        counters.in_flight = counters.in_flight.saturating_sub(1);
        Some(now)
    }
}

impl Drop for Going<'_> {
    fn drop(&mut self) {
        if !self.ended && self.over().is_some() {
            self.stats.state.borrow_mut().of(self.operation).cancelled += 1;
        }
    }
}
