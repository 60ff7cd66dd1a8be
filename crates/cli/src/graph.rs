//! The drivers this program knows, and the arguments by which a user names a graph.

use blkproof_block::graph::Registry;

/// Every driver.
pub(crate) fn registry() -> Registry {
    Registry::new()
}
