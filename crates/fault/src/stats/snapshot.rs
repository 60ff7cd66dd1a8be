//! What was counted, as plain data: for JSON, for Prometheus, for pictures.

use super::errors::Merged;
use super::heat::Cell;
use super::interval::Timed;
use super::latency::{Boundaries, Latency};
use crate::request::Operation;

/// The figures of one node at one moment.
///
/// For each operation `submitted = done + failed + invalid + cancelled + in_flight`, and `latency.count = done +
/// failed`.
#[derive(Clone, PartialEq, Debug)]
pub struct Snapshot {
    /// The node's name.
    pub node: String,
    /// Whether requests are being counted.
    pub running: bool,
    /// Time since 1970-01-01 UTC, in nanoseconds.
    pub unix_ns: u64,
    /// Time counted, since the start or the last reset, in nanoseconds.
    pub elapsed_ns: u64,
    /// Bytes of the disk.
    pub size: u64,
    /// Every operation, in the order of [`Operation::ALL`].
    pub operations: Vec<PerOperation>,
    /// Requests under way.
    pub queue: Queue,
    /// Where requests went.
    pub heat: HeatMap,
    /// Failures by kind, the most frequent first.
    pub errors: Vec<Merged>,
    /// Failures of kinds that were too many to be kept.
    pub errors_more: u64,
    /// End of the highest byte written.
    pub wr_highest_offset: u64,
    /// Time since the last request; `None` before the first.
    pub idle_ns: Option<u64>,
    /// Whether failed requests count as time spent and as access.
    pub account_failed: bool,
    /// Whether invalid requests count as access.
    pub account_invalid: bool,
    /// Figures over the last so many seconds.
    pub timed: Vec<Timed>,
    /// Histograms with bounds of the user's own.
    pub histograms: Histograms,
}

/// The figures of one operation.
#[derive(Clone, PartialEq, Debug)]
pub struct PerOperation {
    /// Which.
    pub operation: Operation,
    /// Requests that came.
    pub submitted: u64,
    /// Those that succeeded.
    pub done: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that could not be done as they were: past the end of the disk, or writing to a read-only one.
    pub invalid: u64,
    /// Those whose client gave up waiting.
    pub cancelled: u64,
    /// Those under way.
    pub in_flight: u64,
    /// Those that had to be durable when they completed.
    pub fua: u64,
    /// Those that began where one of the last [`STREAMS`](super::shape::STREAMS) of this operation ended.
    pub sequential: u64,
    /// Time spent on those done, and on those that failed where that is wanted; in nanoseconds.
    pub total_time_ns: u64,
    /// How long they took.
    pub latency: Latency,
    /// By size; see [`SIZES`](super::shape::SIZES). Without the classes behind the last one that has any.
    pub sizes: Vec<u64>,
    /// By alignment; see [`ALIGNMENTS`](super::shape::ALIGNMENTS). Without the classes behind the last one that has
    /// any.
    pub alignments: Vec<u64>,
}

/// Requests under way.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Queue {
    /// Now.
    pub in_flight: u64,
    /// At most, at one time.
    pub max: u64,
    /// On average over the time counted, idle or not.
    pub average: f64,
    /// Time with at least one, in nanoseconds.
    pub busy_ns: u64,
}

/// Where requests went.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HeatMap {
    /// Bytes of a cell, a power of two.
    pub cell_size: u64,
    /// The cells from the start of the disk to the last that was touched.
    pub cells: Vec<Cell>,
}

/// Histograms with bounds of the user's own, as `block-latency-histogram-set` sets them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Histograms {
    /// Reads.
    pub read: Option<Boundaries>,
    /// Writes and write zeroes.
    pub write: Option<Boundaries>,
    /// Appends to a zone. There are none here; kept because it can be set.
    pub zone_append: Option<Boundaries>,
    /// Flushes.
    pub flush: Option<Boundaries>,
}

impl Snapshot {
    /// The figures of one operation; zeroes if the snapshot came from elsewhere and lacks it.
    pub fn of(&self, operation: Operation) -> PerOperation {
        let found = self.operations.iter().find(|per| per.operation == operation);
        found.cloned().unwrap_or_else(|| PerOperation::none(operation))
    }
}

impl PerOperation {
    /// Nothing counted.
    pub fn none(operation: Operation) -> Self {
        Self {
            operation,
            submitted: 0,
            done: 0,
            bytes: 0,
            failed: 0,
            invalid: 0,
            cancelled: 0,
            in_flight: 0,
            fua: 0,
            sequential: 0,
            total_time_ns: 0,
            latency: Latency::default(),
            sizes: Vec::new(),
            alignments: Vec::new(),
        }
    }
}
