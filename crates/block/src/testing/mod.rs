//! The disk that driver authors test against, and what judges their drivers on it.
//!
//! - [`TestDisk`]: a disk in memory whose requests can be held, failed, half done, dropped and landed late, step by
//!   step or by a seed, and which writes down everything that happened.
//! - [`Executor`] and [`block_on`]: run futures on one thread; with a seed, every ready task and every parked disk
//!   step is a choice, and the same seed makes the same choices.
//! - [`crash_states`]: the disks a power cut may leave behind (CM 5).
//! - [`Model`]: what a client may read, during a run and after a crash (CM 4, 5.6).
//! - [`workload::run`]: all of the above against any driver: random concurrent requests, faults, cancels, judged.
//!
//! ```
//! use blkproof_block::testing::{Action, OpKind, Rule, TestDisk, block_on};
//! use blkproof_block::{BlockDevice, Errno, IoError, WriteFlags};
//!
//! let disk = TestDisk::new(4096);
//! disk.add_rule(Rule::new(Action::FailBefore(IoError::new(Errno::NOSPC))).kind(OpKind::Write).nth(2));
//! block_on(async {
//!     disk.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
//!     assert_eq!(disk.write(0, &[2; 512], WriteFlags::empty()).await.unwrap_err().errno, Errno::NOSPC);
//! });
//! assert_eq!(disk.log().ops().len(), 2);
//! ```
//!
//! Nothing here reads a clock, starts a thread or draws a number that the seed does not determine.
#![allow(clippy::cast_possible_truncation, reason = "test support: sizes are those of images held in memory")]
#![allow(clippy::panic, reason = "test support: misuse by a test ends that test, with words")]

mod crash;
mod disk;
mod executor;
mod log;
mod model;
pub mod stamp;
pub mod workload;

pub use crate::choice::{Choices, hash};
pub use crash::{CrashState, CrashStates, crash_states, interesting_points};
pub use disk::{Action, DiscardEffect, DrainPolicy, Rule, Stage, TestDisk};
pub use executor::{Executor, JoinHandle, Stuck, TaskId, block_on};
pub use log::{Entry, Log, Op, OpId, OpKind, Step};
pub use model::{AfterCrash, ChangeId, FlushId, Instant, Model, Violation};
