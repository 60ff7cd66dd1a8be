//! What a node says of itself: size, limits, capabilities.

use bitflags::bitflags;

/// A snapshot of a node's properties; cheap to copy and to ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// The driver's name in QEMU's words: `file`, `raw`, `qcow2`, `blkverify`.
    pub driver: &'static str,
    /// Bytes the device holds; any number, not only multiples of a sector.
    pub size: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The requests the node takes without help.
    pub limits: Limits,
    /// What the node promises beyond plain reads and writes.
    pub capabilities: Capabilities,
    /// Allocation unit of a format in bytes; 0 where there is none.
    pub cluster_size: u32,
}

impl DeviceInfo {
    /// A writable device of `size` bytes without limits, promises or clusters.
    pub const fn new(driver: &'static str, size: u64) -> Self {
        Self {
            driver,
            size,
            read_only: false,
            limits: Limits::NONE,
            capabilities: Capabilities::empty(),
            cluster_size: 0,
        }
    }
}

/// The requests a node takes as they are. [`Aligned`](crate::align::Aligned) splits and pads everything else.
///
/// A size need not be a multiple of the alignments: a request may also end exactly at the end of the device, or, on a
/// node that [`GROWS`](Capabilities::GROWS), beyond it. Its offset is aligned even then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Offsets and lengths of reads and writes are multiples of this power of two.
    pub alignment: u32,
    /// Memory alignment of buffers, a power of two (`O_DIRECT`).
    pub memory_alignment: u32,
    /// Largest read or write in bytes, a multiple of `alignment`; 0 means any.
    pub max_transfer: u32,
    /// Preferred size of a request in bytes; 0 means no preference.
    pub preferred_transfer: u32,
    /// Offsets and lengths of write zeroes are multiples of this power of two.
    pub zero_alignment: u32,
    /// Largest write zeroes in bytes; 0 means any.
    pub max_zero: u64,
    /// Offsets and lengths of discards are multiples of this power of two; smaller pieces are dropped.
    pub discard_alignment: u32,
    /// Largest discard in bytes; 0 means any.
    pub max_discard: u64,
}

impl Limits {
    /// Any request is taken.
    pub const NONE: Self = Self {
        alignment: 1,
        memory_alignment: 1,
        max_transfer: 0,
        preferred_transfer: 0,
        zero_alignment: 1,
        max_zero: 0,
        discard_alignment: 1,
        max_discard: 0,
    };

    /// Whether some request needs to be split or padded.
    pub fn needs_help(&self) -> bool {
        let Self {
            alignment,
            memory_alignment,
            max_transfer,
            preferred_transfer: _,
            zero_alignment,
            max_zero,
            discard_alignment,
            max_discard,
        } = *self;
        alignment > 1
            || memory_alignment > 1
            || max_transfer > 0
            || zero_alignment > 1
            || max_zero > 0
            || discard_alignment > 1
            || max_discard > 0
    }
}

bitflags! {
    /// What a node promises. A filter passes on only what it keeps itself.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Capabilities: u32 {
        /// Write zeroes is cheaper than writing zero bytes.
        const ZEROES = 1;
        /// `NO_FALLBACK` is answered quickly: done cheaply or refused with ENOTSUP.
        const FAST_ZERO = 2;
        /// Discards reach something that can use them.
        const DISCARD = 4;
        /// FUA is native; without it the caller pays a whole flush.
        const FUA = 8;
        /// A flush covers writes completed through any handle on this node.
        const MULTI_CONN = 16;
        /// `resize` works.
        const RESIZE = 32;
        /// Rotating medium, or one that wants sequential access.
        const ROTATIONAL = 64;
        /// New space of a grown device reads as zeroes.
        const ZERO_ON_GROWTH = 128;
        /// A write or write zeroes beyond the end extends the device, as it does a file; the gap reads as zeroes.
        /// Without it such a request fails. Formats allocate by it; front ends never send such a request.
        const GROWS = 256;
    }
}
