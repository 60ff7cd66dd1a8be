//! The ends of every graph, and the format that is none.

pub mod memory;
