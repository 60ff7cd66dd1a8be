//! The ends of every graph, and the format that is none.

pub mod file;
pub mod memory;
pub mod null;
pub mod raw;

pub use file::{File, FileOptions};
pub use memory::Memory;
pub use null::Null;
pub use raw::Raw;

use crate::graph::Registry;

/// Adds the drivers of this crate: `file`, `memory`, `null-co`, `raw`.
pub fn register(registry: &mut Registry) {
    registry.add(file::FileDriver);
    registry.add(memory::MemoryDriver);
    registry.add(null::NullDriver);
    registry.add(raw::RawDriver);
}
