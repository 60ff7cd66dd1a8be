//! A deterministic simulator for block drivers.
//!
//! One thread, a virtual clock, and a [`Simulation`] that moves one thing at a time: it polls a task that was woken, lets
//! the data of one request of a [`SimDisk`] move (*effect*), or tells the driver that the request is done
//! (*completion*). Effect and completion of a request are two moves, freely ordered among those of all others, as in
//! FVD's tester of 2011. Which move comes next is the only source of variety, and a [`Schedule`] decides it: a strategy
//! with a seed, or an explicit list of what was held back for how long.
//!
//! # Invariants
//! - Nothing here reads a clock, starts a thread, or draws a number that a seed does not determine (CM 8.1).
//! - A move is known by a [`MoveKey`]: whose it is, and the how-manieth of its kind. Deleting one client request leaves
//!   the keys of all others alone, so what was decided for them still holds (CM 8.1, 10).
//! - Any run, whatever its strategy, is repeated exactly by the first-in-first-out order together with the
//!   [holds](Simulation::holds) it reports.
//! - The disk is the model of `blkproof_fault::disk`: after a power cut it may be in exactly the states of CM 5.1.
//! - Dropping a future cancels it. A dropped write stays open, and may land until a drain has ended (CM 4.5).

mod clock;
pub mod disk;
mod executor;
mod key;
mod moves;
pub mod schedule;

pub use self::clock::SimClock;
pub use self::disk::{Crash, Fault, FaultDone, IoInfo, IoKind, SimDisk};
pub use self::executor::{Simulation, Stuck, TaskId};
pub use self::key::{IoKey, KeyError, MoveKey, Owner, Step};
pub use self::schedule::{Hold, Schedule, Strategy};
