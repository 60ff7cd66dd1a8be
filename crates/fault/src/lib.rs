//! Faults, and everything around them that stands in a block graph as a filter.
//!
//! - [`rule`]: what a rule is; [`mod@file`]: how it is written down, read and converted.
//! - [`engine`]: what runs rules. Pure: no I/O, no clock of its own, no randomness but its seed.
//! - [`filter`]: the node `fault`, which does to requests what the engine says. [`blkdebug`]: QEMU's filter on the same
//!   engine.
//! - [`disk`]: a medium with a volatile write cache that can lose its power.
//! - [`log_writes`]: the write log of dm-log-writes. [`stats`]: what went through. [`trace`]: every request, a line each.
//! - [`lab`]: all of them by name, for whoever controls a running graph; [`notice`]: what they tell.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod ask;
pub mod blkdebug;
pub mod clock;
pub mod disk;
pub mod engine;
pub mod file;
pub mod filter;
pub mod lab;
pub mod log_writes;
pub mod notice;
mod parked;
pub mod power;
pub mod request;
pub mod rule;
pub mod stats;
pub mod trace;
