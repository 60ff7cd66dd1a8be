//! The kinds of request a mirror sees.

/// What was asked of the mirror.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum RequestKind {
    /// Not a request: the two nodes were put together.
    Open,
    /// A read.
    Read,
    /// A write.
    Write,
    /// A write zeroes.
    WriteZeroes,
    /// A discard.
    Discard,
    /// A flush.
    Flush,
    /// A change of size.
    Resize,
    /// A question for the extents.
    BlockStatus,
    /// The end.
    Close,
}

impl RequestKind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Open,
        Self::Read,
        Self::Write,
        Self::WriteZeroes,
        Self::Discard,
        Self::Flush,
        Self::Resize,
        Self::BlockStatus,
        Self::Close,
    ];

    /// The word used in messages: `read`, `write`, `write_zeroes`, …
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "write_zeroes",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::Resize => "resize",
            Self::BlockStatus => "block_status",
            Self::Close => "close",
        }
    }

    pub(crate) fn code(self) -> u8 {
        Self::ALL.iter().zip(0u8..).find(|(kind, _)| **kind == self).map_or(0, |(_, code)| code)
    }

    pub(crate) fn from_code(code: u8) -> Self {
        Self::ALL.get(usize::from(code)).copied().unwrap_or(Self::Open)
    }
}
