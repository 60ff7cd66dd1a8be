//! The node `trace`: passes every request on to `file`, and writes a line of JSON when it is over.
//!
//! A trace says enough to send the same requests again with the same overlaps: see [`mod@format`], [`mod@plan`] and
//! [`mod@replay`].
//!
//! # Invariants
//! - No data and no outcome is changed, and no request waits for its line: the [`Sink`] takes it at once or loses it.
//! - A request has one line, in the order in which requests end; what is lost is counted, and said where it is missing.
//! - `after` of a request is the number of requests that were over when it came, so that a replay that waits for
//!   exactly those keeps every order that the recorded client could rely on (CM 4.2, 4.4).

pub mod driver;
pub mod format;
pub mod node;
pub mod plan;
pub mod recorder;
pub mod replay;
pub mod sink;

pub use self::driver::TraceDriver;
pub use self::format::{Head, Line, Outcome, Record, TraceError, TraceFlags, parse};
pub use self::node::TraceNode;
pub use self::plan::{Plan, PlanError, PlanReader};
pub use self::recorder::{Trace, TraceOptions};
pub use self::replay::{Difference, Speed, Summary, replay};
pub use self::sink::{Sink, Sinks};

/// The driver's name.
const NAME: &str = "trace";
