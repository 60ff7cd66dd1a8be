//! [`qcow2-rs`](https://docs.rs/qcow2-rs) 0.1: `Qcow2Dev`.
//!
//! # What the adapter adds
//! - A flush is [`flush_meta`](::qcow2_rs::dev::Qcow2Dev::flush_meta) and then
//!   [`fsync_range`](::qcow2_rs::dev::Qcow2Dev::fsync_range) of everything; closing is the same. A durable write is a write
//!   and a flush.
//! - A read that returns fewer bytes than were asked for has failed: that is how the crate says that a part of it did.
//! - A device that was not closed is forgotten, not dropped: after a power cut there is nobody to run a destructor, and the
//!   crate's asserts that nothing is unwritten (`off.rs`). What was closed in order is dropped.
//! - `fallocate` makes a range read as zeroes, whatever its flags say: the crate's own engines fall back to writing zeroes
//!   for both of its uses, since Linux takes neither combination of flags that they ask it for.
//!
//! # What is asked of it
//! Reads and writes of whole blocks of 512 bytes, flushes, the mapping of a place. The crate has no request for zeroing,
//! discarding or resizing. Its documentation says nothing of errors, of dropped futures or of power cuts, and each of these
//! is therefore a [target](TARGETS) of its own.

mod below;
mod node;
mod off;
mod target;
mod view;

pub use self::target::{Qcow2, TARGETS};
