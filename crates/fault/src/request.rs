//! What a node is asked to do, as rules and records see it.

use bitflags::bitflags;
use blkproof_block::ByteRange;

/// The kind of a request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Operation {
    /// `read`
    Read,
    /// `write`
    Write,
    /// `write-zeroes`
    WriteZeroes,
    /// `discard`
    Discard,
    /// `flush`
    Flush,
    /// `block-status`
    BlockStatus,
    /// `resize`
    Resize,
}

impl Operation {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Read, Self::Write, Self::WriteZeroes, Self::Discard, Self::Flush, Self::BlockStatus, Self::Resize];

    /// Its name in rules and records; QEMU's word where it has one.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write-zeroes",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::BlockStatus => "block-status",
            Self::Resize => "resize",
        }
    }

    /// The operation of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.name() == name)
    }

    /// The set of this one alone.
    pub const fn set(self) -> Operations {
        match self {
            Self::Read => Operations::READ,
            Self::Write => Operations::WRITE,
            Self::WriteZeroes => Operations::WRITE_ZEROES,
            Self::Discard => Operations::DISCARD,
            Self::Flush => Operations::FLUSH,
            Self::BlockStatus => Operations::BLOCK_STATUS,
            Self::Resize => Operations::RESIZE,
        }
    }

    /// Whether it changes what the disk holds.
    pub const fn changes(self) -> bool {
        matches!(self, Self::Write | Self::WriteZeroes | Self::Discard | Self::Resize)
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

bitflags! {
    /// Kinds of requests.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Operations: u8 {
        #[allow(missing_docs)]
        const READ = 1;
        #[allow(missing_docs)]
        const WRITE = 2;
        #[allow(missing_docs)]
        const WRITE_ZEROES = 4;
        #[allow(missing_docs)]
        const DISCARD = 8;
        #[allow(missing_docs)]
        const FLUSH = 16;
        #[allow(missing_docs)]
        const BLOCK_STATUS = 32;
        #[allow(missing_docs)]
        const RESIZE = 64;
        /// What a rule means that names none: everything a client asks of the data.
        const DATA = 1 | 2 | 4 | 8 | 16;
    }
}

/// One request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Its number at this node, from 0, in order of arrival.
    pub id: u64,
    /// What it asks for.
    pub operation: Operation,
    /// Its bytes; empty for a flush and a resize.
    pub range: ByteRange,
    /// Whether it has to be durable when it completes.
    pub fua: bool,
}
