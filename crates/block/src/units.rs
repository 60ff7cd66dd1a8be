//! Places on a device.
//!
//! Requests carry plain `u64` byte offsets: the trait is what authors of other drivers implement, and one node has one
//! address space. Inside a format, where guest and host addresses meet, each has a type of its own. Values that are
//! kept, compared or printed (places in errors, ranges in locks and findings) use the types below.

use std::fmt;

/// A byte offset, printed in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteOffset(pub u64);

impl fmt::Display for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A half-open range of bytes, `start..end`; empty if `end <= start`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl ByteRange {
    /// The `len` bytes from `at`; the end saturates at 2^64 - 1, which no device reaches.
    pub const fn at(at: u64, len: u64) -> Self {
        Self { start: at, end: at.saturating_add(len) }
    }

    /// Number of bytes.
    pub const fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether no byte lies inside.
    pub const fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// Whether some byte lies in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Whether `offset` lies inside.
    pub const fn contains(self, offset: u64) -> bool {
        self.start <= offset && offset < self.end
    }

    /// The smallest range with both ends on multiples of `alignment` that covers this one.
    ///
    /// `alignment` is a power of two. The end saturates at the largest multiple below 2^64.
    pub const fn aligned_out(self, alignment: u64) -> Self {
        let mask = alignment.saturating_sub(1);
        let end = match self.end.checked_add(mask) {
            Some(end) => end & !mask,
            None => !mask,
        };
        Self { start: self.start & !mask, end }
    }

    /// The bytes in both, `None` if there are none.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let both = Self { start: self.start.max(other.start), end: self.end.min(other.end) };
        (!both.is_empty()).then_some(both)
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
