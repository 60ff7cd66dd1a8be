//! QMP for the nodes of a running graph: the wire, the commands and their schema. Sockets belong to whoever uses it.
//!
//! - [`wire`]: messages and sessions, sans I/O.
//! - [`schema`]: every command, declared once; [`events`]: what clients hear unasked.
//! - [`Server`]: clients on streams of any kind. It runs on the thread of the graphs and shares it with their I/O: it has no
//!   queue without a bound, and leaves clients behind that do not read.
//! - [`Host`]: what the process around the graphs does for commands.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod arguments;
mod commands;
mod error;
pub mod events;
mod host;
mod outbox;
pub mod schema;
mod server;
mod voice;
pub mod wire;

pub use self::error::{Class, Error};
pub use self::host::{Draft, Host, NewImage, OVERLAY_SECTOR};
pub use self::server::{Ended, Server};
