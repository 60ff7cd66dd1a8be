//! The block device contract of blkproof, and the graph of nodes built on it.
//!
//! Everything that stores bytes is a [`BlockDevice`]: a file, a disk image format over a file, a filter over either, a
//! network client. Nodes are stacked by plain generics where the stack is known when compiling (a driver over a
//! simulated disk in a test), and through [`Node`], the boxed twin, where a user names the graph at run time.
//!
//! This crate knows no image format and no protocol. It owns the contract ([`device`]), the errors ([`error`]), the one
//! place where requests are padded and split ([`align`]), the lock that keeps overlapping requests apart
//! ([`range_lock`]), the syntax of graphs ([`graph`]) and the ends every graph has ([`nodes`]).

pub mod breakpoint;
pub mod choice;
pub mod device;
pub mod error;
pub mod event;
pub mod info;
pub mod status;
pub mod units;

pub mod align;
pub mod buffer;
pub mod range_lock;
pub mod unflushed;

pub mod graph;
pub mod node;
pub mod nodes;

#[cfg(feature = "testing")]
pub mod testing;

pub use breakpoint::Breakpoints;
pub use device::{BlockDevice, Preallocation, WriteFlags, ZeroFlags};
pub use error::{DeviceError, Errno, IoError, RuleId};
pub use event::Event;
pub use info::{Capabilities, DeviceInfo, Limits};
pub use node::{LocalBoxFuture, Node};
pub use status::BlockStatus;
pub use units::{ByteOffset, ByteRange};

/// What every request returns.
pub type Result<T, E = IoError> = std::result::Result<T, E>;
