//! Bugs that real drivers had, planted in copies of ours, to measure whether and how fast a tester finds them.
//!
//! - [`formats`]: `qcow2` and `vdi`, copied when this crate is built, with the defects of `mutants/*.patch` in them. The
//!   drivers themselves know nothing of it and stay readable.
//! - [`drivers`]: small drivers for the defects that no format of ours could have: caches, queues, logs.
//! - [`Threaded`]: a driver for several threads, and what can be wrong with its locks.
//! - [`Mutant`] names a defect, [`Planted`] switches one on for this thread, [`catalogue()`] says of each what it is, where
//!   it lives and which rule must fire.
//!
//! # Invariants
//! - With nothing switched on, everything here is correct: the copies do what the originals do, byte for byte.
//! - At most one defect is on in a thread, and threads do not see each other's.
//! - Each defect is reachable through the block contract by ordinary requests, faults, cancels and power cuts, and none
//!   shows at once: a driver with it passes a plain write and read.

mod catalogue;
pub mod drivers;
mod mutant;
mod targets;
mod threaded;

/// Copies of our format drivers, with defects in them.
#[allow(
    clippy::all,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::large_futures,
    unreachable_pub,
    dead_code,
    reason = "the originals are linted where they are; what is planted is meant to be wrong"
)]
pub mod formats {
    include!(concat!(env!("OUT_DIR"), "/formats/lib.rs"));
}

pub use catalogue::{Cap, Driver, Entry, Found, Need, catalogue};
pub use mutant::{Mutant, Planted, planted};
pub use targets::{Planting, find, targets};
pub use threaded::{Threaded, find_threaded, threaded_targets};
