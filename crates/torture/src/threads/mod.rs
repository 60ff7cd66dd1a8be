//! Real threads against a driver that takes requests from several at once (CM 7.5).
//!
//! The simulator runs one task at a time, and changes from one to another only where a driver waits. What two threads do
//! to each other between two such places it can not show: a lock that is taken too late, a cache filled by two at once, a
//! count read before it is written. Here each queue of a plan is a thread of its own, over one disk that all share.
//!
//! ```text
//! plan -> queue threads -> driver (&self) -> disk: takes its time at each request, fails as the plan says
//!   |          \-> record: sent, answered, in one order -> oracle -> finding, and of how many runs
//!   \-> watchdog: nothing was answered for very long -> hang
//! ```
//!
//! Plans, workload, oracle, signatures and the shrinker are those of the simulator. What differs is what is promised: the
//! order in which threads move is the machine's, so **a plan is repeated often, and not exactly**. What comes with a
//! finding is a *rate*: of so many runs of this plan so many failed in this way. The disk's pauses are drawn from the
//! plan's schedule and the number of the run, and make it likely that threads meet; they decide nothing. A rate of
//! nothing does not say that a driver is right.
//!
//! - [`Driver`] and [`Target`]: what is tortured. [`Disk`]: what it stands on. [`block_on`]: for drivers with futures.
//! - [`run()`]: one run of a plan. [`rate()`]: many. [`shrink()`]: the least that fails now and then. [`campaign()`]: many
//!   seeds.
//!
//! # Invariants
//! - What is judged is the order of the record alone: a request is written down before the driver is called and its answer
//!   after the call has returned, so no request is taken for shorter than it was, and nothing right is called wrong.
//! - The record's lock is never held while the driver is called.
//! - A thread of a run that hangs can not be stopped; it is left behind, and ends at its next request to the disk, if it
//!   makes one.
//!
//! # What is not looked into
//! Power cuts, dropped requests, block status, resizes and compression: none of them needs threads to be found, and the
//! simulator finds them better.

mod campaign;
mod conduct;
mod disk;
mod driver;
mod judge;
mod machine;
mod pauses;
mod perform;
mod record;
mod repeat;
mod run;
mod wait;

pub use self::campaign::{Found, Results, Wanted, campaign, plan_of};
pub use self::disk::Disk;
pub use self::driver::{Driver, FEATURES, Target};
pub use self::repeat::{Rate, Repeats, rate, shrink};
pub use self::run::{Outcome, Settings, run, spread};
pub use self::wait::block_on;
