//! Negotiation, sans IO: bytes in, bytes and a decision out.
//!
//! [`server`] answers options until the client goes into transmission, upgrades to TLS or leaves; [`client`] asks for
//! everything it can use and takes what it gets.

pub mod client;
pub mod server;

use crate::wire::TransmissionFlags;

/// What replies look like in the transmission phase.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Mode {
    /// Simple replies only.
    #[default]
    Simple,
    /// Structured replies.
    Structured,
    /// Extended headers: structured replies with 64-bit lengths.
    Extended,
}

/// What both sides agreed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// Layout of requests and replies.
    pub mode: Mode,
    /// Bytes of the export.
    pub size: u64,
    /// What the export offers.
    pub flags: TransmissionFlags,
    /// Identifier of `base:allocation`, if it may be asked for.
    pub allocation: Option<u32>,
    /// Size constraints, if they were told; the client then has to keep them.
    pub block_size: Option<BlockSize>,
}

/// Size constraints of an export (section "Size constraints").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockSize {
    /// Offsets and lengths are multiples of this power of two, at most 64 KiB.
    pub minimum: u32,
    /// Requests of this size and alignment are efficient; a power of two, at least 512.
    pub preferred: u32,
    /// Largest payload in bytes.
    pub maximum: u32,
}

impl Default for BlockSize {
    fn default() -> Self {
        Self { minimum: 1, preferred: 4096, maximum: crate::wire::MAX_PAYLOAD }
    }
}
