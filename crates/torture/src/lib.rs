//! Finds the bug in a block driver, repeats it exactly, and shrinks it to a few lines.
//!
//! ```text
//! seed -> workload -> Plan -> run (target over a simulated disk) -> oracle -> Finding -> shrink -> a smaller Plan
//! ```
//!
//! - [`plan`]: what is done to a driver, written down: requests, faults, cancels, the order of moves, the power cut. The
//!   plan, not the seed, is what is kept, repeated and shrunk.
//! - [`workload`]: plans from seeds.
//! - [`target`]: drivers, and what they promise.
//! - [`oracle`]: what a client may see (CM 4), and after a power cut (CM 5.6).
//! - [`run`]: a plan against a target, judged.
//! - [`mod@shrink`]: the least of a plan that still fails in the same way.
//! - [`sweep`]: one plan, each of whose requests below fails in turn.
//! - [`threads`]: the same plans by real threads, for drivers that allow it.
//! - [`campaign`]: many seeds. [`store`]: what they found, kept.
//!
//! # Invariants
//! - A run is a function of its plan and the build; by [`threads`] alone it is not, and a rate says so. No decision depends
//!   on how many others were taken (CM 8.1).
//! - Whatever a run decides by seed, its outcome names: [`run::Outcome::explicit`] is a plan without chance that runs the
//!   same.
//! - The oracle knows what was asked and answered, and nothing else; it never looks at the driver or its disk.

pub mod campaign;
mod check;
pub mod finding;
pub mod oracle;
pub mod plan;
pub mod run;
pub mod shrink;
pub mod stamp;
pub mod store;
pub mod sweep;
pub mod target;
pub mod threads;
pub mod workload;

pub use self::check::{Check, check};
