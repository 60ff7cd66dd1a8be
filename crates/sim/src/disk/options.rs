//! What kind of disk it is.

use blkproof_fault::disk::{FlushError, Kind, Profile};

use super::content::Content;

/// Everything about a disk that its user chooses.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// What it holds, durably.
    pub content: Content,
    /// A write beyond the end extends it, as it does a file.
    pub grows: bool,
    /// Refuses changes.
    pub read_only: bool,
    /// Bytes written whole or not at all: a power of two from 512 on.
    pub block_size: u32,
    /// Which states a power cut may leave.
    pub profile: Profile,
    /// Whether it keeps its word.
    pub kind: Kind,
    /// What a flush that is made to fail does to its data.
    pub flush_error: FlushError,
    /// Decides what becomes of dropped requests at a drain.
    pub seed: u64,
    /// Requests are done when they are sent, without any move: for what happens while nothing else does.
    pub instant: bool,
}

impl DiskOptions {
    /// An honest disk of blocks of 512 bytes, of fixed size.
    pub fn new(content: Content) -> Self {
        Self {
            content,
            grows: false,
            read_only: false,
            block_size: 512,
            profile: Profile::Block,
            kind: Kind::Honest,
            flush_error: FlushError::Keep,
            seed: 0,
            instant: false,
        }
    }

    /// Grows like a file.
    #[must_use]
    pub fn growing(self) -> Self {
        Self { grows: true, ..self }
    }
}
