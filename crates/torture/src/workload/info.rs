//! What the generator has to know of a target.

use blkproof_fault::disk::{FlushError, Profile};

/// A target, as the generator sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetInfo {
    /// Its name, for [`TargetSpec::name`](crate::plan::TargetSpec::name).
    pub name: String,
    /// The images it is tried with, each as likely as the others; at least one.
    pub variants: Vec<Variant>,
    /// What a power cut may leave on a disk that it promises to survive; none: [`Profile::Block`].
    pub profiles: Vec<Profile>,
    /// Sizes of a disk's block that it promises to survive; none: 512.
    pub blocks: Vec<u32>,
    /// What a failed flush may do to the disk's data; none: it keeps it.
    pub flush_errors: Vec<FlushError>,
}

/// One way to make an image, and what follows from it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Variant {
    /// Options, for [`TargetSpec::options`](crate::plan::TargetSpec::options); sorted by name.
    pub options: Vec<(String, String)>,
    /// Bytes of the guest's disk, at most; the seed draws something odd up to it.
    pub size: u64,
    /// Sizes of the guest's disk are multiples of this.
    pub size_alignment: u64,
    /// Offsets and lengths of requests are multiples of this; 1: any.
    pub alignment: u64,
    /// Bytes of an allocation unit.
    pub cluster: u64,
    /// Bytes of the guest's disk that one table covers (L2 table, refcount block): each multiple is a boundary.
    pub spans: Vec<u64>,
    /// Further boundaries, such as 2^32, in bytes.
    pub hot: Vec<u64>,
    /// The image has a backing file; the seed draws its size, shorter, equal or longer, with an odd end.
    pub base: bool,
    /// What can be asked of it.
    pub features: Features,
}

/// What can be asked of a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Features {
    /// Durable requests.
    pub fua: bool,
    /// Writing zeroes.
    pub zeroes: bool,
    /// Giving space back while writing zeroes.
    pub unmap: bool,
    /// Writing zeroes only if that is quick.
    pub no_fallback: bool,
    /// Discarding.
    pub discard: bool,
    /// Status of ranges.
    pub status: bool,
    /// Growing.
    pub grow: bool,
    /// Shrinking.
    pub shrink: bool,
    /// Writing compressed, a cluster at a time.
    pub compressed: bool,
    /// Draining in between.
    pub drain: bool,
    /// Closing and opening again.
    pub reopen: bool,
    /// Dropping requests.
    pub drops: bool,
    /// Power cuts.
    pub cut: bool,
    /// Errors below.
    pub faults: bool,
}

impl Features {
    /// All of them.
    pub const ALL: Self = Self {
        fua: true,
        zeroes: true,
        unmap: true,
        no_fallback: true,
        discard: true,
        status: true,
        grow: true,
        shrink: true,
        compressed: true,
        drain: true,
        reopen: true,
        drops: true,
        cut: true,
        faults: true,
    };

    /// None: reads, writes and flushes.
    pub const NONE: Self = Self {
        fua: false,
        zeroes: false,
        unmap: false,
        no_fallback: false,
        discard: false,
        status: false,
        grow: false,
        shrink: false,
        compressed: false,
        drain: false,
        reopen: false,
        drops: false,
        cut: false,
        faults: false,
    };
}
