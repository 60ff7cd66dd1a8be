//! Small drivers, each correct with nothing planted, for the defects that no image format of ours could have.
//!
//! - [`Cache`]: a write-back cache.
//! - [`Log`]: a disk with a write-ahead log and its recovery.
//! - [`Merge`]: sends neighbouring and overlapping writes as one.
//! - [`Pad`]: reads and rewrites whole blocks for a device that wants them.
//! - [`Pieces`]: puts together what a device hands out in pieces.
//! - [`Retry`]: sends a slow write again.
//! - [`Thin`]: a disk that grows as it is written, for several threads; what is wrong with it is a [`Race`].
//!
//! All of them have a fixed size and no image to be created: zeroes are an empty one. All but the last take discards as
//! advice and leave them, and write zeroes byte by byte.

mod cache;
mod late;
mod log;
mod merge;
mod pad;
mod pieces;
mod retry;
mod thin;

use blkproof_block::{BlockDevice, Capabilities, DeviceInfo, IoError, Result, ZeroFlags};

pub use cache::Cache;
pub use log::Log;
pub use merge::Merge;
pub use pad::Pad;
pub use pieces::Pieces;
pub use retry::Retry;
pub(crate) use thin::CLUSTER;
pub use thin::{Race, Thin};

/// What such a driver says of itself.
fn info(name: &'static str, below: &impl BlockDevice, size: u64) -> DeviceInfo {
    let below = below.info();
    let capabilities = Capabilities::ZEROES | Capabilities::DISCARD | Capabilities::FUA;
    DeviceInfo { read_only: below.read_only, capabilities, ..DeviceInfo::new(name, size) }
}

/// Zeroes are written, so a request that does not want that is refused.
fn refuse_fast(flags: ZeroFlags) -> Result<()> {
    match flags.contains(ZeroFlags::NO_FALLBACK) {
        true => Err(IoError::unsupported().detail("zeroes are written byte by byte here")),
        false => Ok(()),
    }
}

/// A place in a buffer. Buffers are lengths of requests, far below what an address can hold.
fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
