//! Where the bytes of a range come from.

/// One extent at the start of the range that was asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockStatus {
    /// Length of the extent: at least 1, at most what was asked for.
    pub len: u64,
    /// The bytes are stored as data in this node or below it.
    pub data: bool,
    /// The bytes read as zeroes. May be missing although they do; is never set if they do not (CM 4.13).
    pub zero: bool,
    /// The content is determined by this layer and not by a backing image.
    pub allocated: bool,
    /// The bytes are stored compressed.
    pub compressed: bool,
    /// Where the first byte lies in the file that stores it, if it lies there as it is.
    pub host_offset: Option<u64>,
    /// How many backing images down the content was found; 0 for the top layer.
    pub depth: u32,
}

impl BlockStatus {
    /// Stored data at `host_offset`, in this layer.
    pub const fn data(len: u64, host_offset: Option<u64>) -> Self {
        Self { len, data: true, zero: false, allocated: true, compressed: false, host_offset, depth: 0 }
    }

    /// Zeroes that this layer determines.
    pub const fn zero(len: u64) -> Self {
        Self { len, data: false, zero: true, allocated: true, compressed: false, host_offset: None, depth: 0 }
    }

    /// Nothing in this layer; reads as zeroes if there is no backing image.
    pub const fn unallocated(len: u64) -> Self {
        Self { len, data: false, zero: true, allocated: false, compressed: false, host_offset: None, depth: 0 }
    }

    /// Whether `next`, which begins where this extent ends, is more of the same.
    pub fn continues_as(&self, next: &Self) -> bool {
        let contiguous = match (self.host_offset, next.host_offset) {
            (Some(here), Some(there)) => here.checked_add(self.len) == Some(there),
            (None, None) => true,
            _ => false,
        };
        contiguous
            && (self.data, self.zero, self.allocated, self.compressed, self.depth)
                == (next.data, next.zero, next.allocated, next.compressed, next.depth)
    }
}
