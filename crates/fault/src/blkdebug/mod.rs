//! QEMU's blkdebug: errors for the requests that follow a step of the driver above (block-layer.md 1).
//!
//! The rules run on the [`engine`](crate::engine), with blkdebug's semantics: an *event* selects the rules that are
//! active from then on, a later *request* takes the first active one that matches it ([`rule_set`]). What blkdebug can
//! not say (probabilities, ranges, damage) is said to the same node at run time, or to the node `fault`.
//!
//! # Invariants
//! - An injected failure comes before the child is touched: nothing of the request is done.
//! - `pwritev`, `pwritev_zero` and `pwritev_done` are raised once for each request on this node, by this node itself
//!   where it states no limits, else by [`Aligned`](blkproof_block::align::Aligned) above it; `flush_to_os` and
//!   `flush_to_disk` by whatever stands above ([`Unflushed`](blkproof_block::unflushed::Unflushed)).
//! - Limits are stated, and kept by what stands above. A request outside them fails and is told of; it is never an
//!   assertion, as in QEMU.
//! - A parked request that is dropped is no longer parked.
//!
//! # What QEMU does otherwise
//! `docs/blkdebug.md` has the list.

pub mod breaks;
pub mod config;
mod driver;
mod limits;
mod node;
mod rules;

pub use self::driver::{BlkdebugDriver, ConfigReader};
pub use self::limits::LimitOptions;
pub use self::node::{Blkdebug, Handle};
pub use self::rules::rule_set;
