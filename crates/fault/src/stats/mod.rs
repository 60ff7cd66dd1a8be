//! The node `stats`: passes every request on to `file`, and counts it.
//!
//! What is counted, by operation: requests, bytes, failures, invalid and cancelled requests, durations, sizes,
//! alignments, how many went on where another ended. Beside that: requests under way over time, failures merged by
//! kind, a heat map of the disk, and figures over the last so many seconds. QEMU's figures are those of
//! `query-blockstats` (QEMU's schema `BlockDeviceStats`), counted here at the node and not at the guest's device.
//!
//! - [`Stats`] is the handle: start, stop, reset, [`snapshot`](Stats::snapshot); [`StatsNode`] is the device.
//! - [`Snapshot`] is plain data; [`snapshot_json`] and [`prometheus_text`] write it, [`snapshot_from_json`] reads it.
//!
//! # Invariants
//! - No data and no outcome is changed.
//! - For each operation, `submitted = done + failed + invalid + cancelled + in_flight` at any time, because a guard
//!   ends every request that was begun, however its future ends, and a reset forgets those under way altogether.
//! - Memory is fixed: about 400 KiB a node, whatever is sent through it.
//! - While stopped, a request costs one branch.

pub mod counters;
pub mod driver;
pub mod errors;
pub mod heat;
pub mod interval;
pub mod json;
pub mod latency;
pub mod node;
pub mod prometheus;
pub mod shape;
pub mod snapshot;

pub use self::counters::{Stats, StatsOptions};
pub use self::driver::StatsDriver;
pub use self::json::{NotSnapshot, snapshot_from_json, snapshot_json};
pub use self::latency::BadBoundaries;
pub use self::node::StatsNode;
pub use self::prometheus::prometheus_text;
pub use self::snapshot::{PerOperation, Snapshot};

/// The driver's name.
const NAME: &str = "stats";

/// A figure to six places: what is more is noise, and would not survive JSON.
fn millionths(figure: f64) -> f64 {
    (figure * 1e6).round() / 1e6
}
