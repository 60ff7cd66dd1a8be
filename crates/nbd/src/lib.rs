//! The NBD protocol: a codec, a server and a client.
//!
//! The codec is sans-IO: [`handshake`] and [`transmission`] turn bytes into values and back and can be fuzzed or
//! simulated like anything else. [`server`] runs connections over any stream for any [`Node`](blkproof_block::Node);
//! [`client`] is a block device over any stream. This crate opens no socket.

pub mod client;
pub mod connect;
pub mod driver;
pub mod errors;
pub mod handshake;
pub mod reconnect;
pub mod server;
#[cfg(feature = "tls")]
pub mod tls;
pub mod transmission;
pub mod uri;
pub mod wire;
