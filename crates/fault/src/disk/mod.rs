//! A disk with a volatile write cache, whose power can be cut at any moment.
//!
//! Node `disk` over `file`, the medium. Writes, zeroes, discards and changes of the size stay in the cache; a flush
//! takes what completed before it was sent to the medium. `honest` loses at a power cut only what was not flushed;
//! `liar` acknowledges flushes and makes nothing durable. Which part of the cache survives a cut is chosen by seed or
//! by name among the states that the profile allows (CM 5.1 to 5.4).
//!
//! - [`model`]: the cache without any I/O, for simulators too. [`state`]: what a cut leaves of it; [`name`]: how one
//!   asks for that; [`config`]: what kind of disk it is; [`piece`]: bytes at a place.
//! - [`DiskNode`]: the node. [`Disk`]: the handle of whoever controls it. [`DiskDriver`]: the driver `disk`.
//!
//! # Invariants
//! - Readers see the newest version of everything, whatever is cached, on its way, or written back (CM 4.2).
//! - When a flush of an honest disk returns, what completed before it was sent is on the medium, which was flushed;
//!   when a FUA write returns, that write is (CM 4.6, 4.8). No state of a later cut is without it.
//! - At every moment the states of a cut are those of CM 5.1, minus what eviction made certain early: also in the
//!   middle of a flush, each of whose requests can still be lost.
//! - A cut leaves the medium in exactly the state it reports, and nothing from before the cut reaches the medium
//!   later.
//! - A request that is not answered before the cut is never answered but with `ENOTCONN`, and neither is anything
//!   that a [client](blkproof_block::BlockDevice::for_client) asks afterwards who was there before.
//! - A dropped request is open, in the cache or not in it at all; from the next drain on it counts as ended (CM 4.5).
//!   Nothing else waits for it.
//! - If the process ends without closing the node, the medium is as it is: a cut to what was flushed or evicted.

pub mod config;
mod driver;
mod evict;
mod jobs;
mod medium;
pub mod model;
pub mod name;
mod names;
mod node;
mod patience;
pub mod piece;
mod plan;
mod power;
mod runs;
mod size;
pub mod state;
mod unreadable;

pub use self::config::{DiskOptions, FlushError, Kind, Profile, WriteBack};
pub use self::driver::{DiskDriver, parse_options, take_options};
pub use self::name::{StateName, UnknownState};
pub use self::node::DiskNode;
pub use self::power::{CutError, CutReport, Disk, DiskState, Extent, FlushesHold};
pub use self::state::{Estimate, State};
