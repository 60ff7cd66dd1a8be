//! [`imago`](https://docs.rs/imago) 0.2: `Raw` and `Qcow2`.
//!
//! # What the adapter adds
//! - A flush is [`flush`](::imago::FormatAccess::flush) and then [`sync`](::imago::FormatAccess::sync), as its documentation
//!   has it; closing is the same. A durable write is a write and a flush.
//! - Requests that the crate wants to be alone (those that take `&mut self`, "guarantees nobody has concurrent data
//!   mappings") are: discarding, zeroing that may unmap, and shrinking take a lock that all others share. None of the
//!   crate's `unsafe` variants is called.
//! - A drain is one of the device below: the crate has no request for it, and needs none, since it waits itself
//!   (`Storage::settle_writes`) where it gives space to someone else.
//!
//! # What is asked of it
//! Everything the crate has a request for. It does not write compressed clusters.

mod below;
mod node;
mod target;

pub use self::target::{Qcow2, Qcow2Cut, Raw};
