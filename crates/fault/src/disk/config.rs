//! What kind of disk it is.

/// Whether the disk keeps its word about flushes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Kind {
    /// Loses at a power cut only what was not flushed (CM 5.1).
    #[default]
    Honest,
    /// Acknowledges flushes and FUA, and makes nothing durable (CM 5.2, `lying-flush`).
    Liar,
}

impl Kind {
    /// The words of option `kind`.
    pub const NAMES: &'static [(&'static str, Self)] = &[("honest", Self::Honest), ("liar", Self::Liar)];

    /// Its word.
    pub fn name(self) -> &'static str {
        name_in(Self::NAMES, self)
    }
}

/// Which states one power cut may leave; each allows what those before it allow (CM 5.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Profile {
    /// Requests survive in order: the first so many, by completion or by submission.
    Ordered,
    /// Any of the requests, each whole.
    Request,
    /// Any version of any block.
    #[default]
    Block,
    /// And of one request only its beginning or its end.
    Torn,
    /// And one block is cut at a sector of 512 bytes: old behind it. Nothing more than `Torn` with blocks of 512
    /// bytes.
    Shorn,
    /// And blocks that were on their way to the medium may hold noise, or not be readable until they are written again.
    Garbage,
}

impl Profile {
    /// The words of option `profile`.
    pub const NAMES: &'static [(&'static str, Self)] = &[
        ("ordered", Self::Ordered),
        ("request", Self::Request),
        ("block", Self::Block),
        ("torn", Self::Torn),
        ("shorn", Self::Shorn),
        ("garbage", Self::Garbage),
    ];

    /// Its word.
    pub fn name(self) -> &'static str {
        name_in(Self::NAMES, self)
    }
}

/// What a failed flush does to the data it was to make durable (CM 4.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FlushError {
    /// Only the node below makes flushes fail; the data is kept.
    #[default]
    None,
    /// Flushes can be [made to fail](super::Disk::fail_flushes); the data is kept, and the next flush covers it too.
    Keep,
    /// Flushes can be made to fail; the data is gone, and the next flush succeeds.
    Forget,
}

impl FlushError {
    /// The words of option `flush-error`.
    pub const NAMES: &'static [(&'static str, Self)] =
        &[("none", Self::None), ("keep", Self::Keep), ("forget", Self::Forget)];

    /// Its word.
    pub fn name(self) -> &'static str {
        name_in(Self::NAMES, self)
    }
}

/// Which request leaves a full cache first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WriteBack {
    /// The oldest.
    #[default]
    Fifo,
    /// The newest.
    Lifo,
    /// The next by place, upwards from the last one.
    Elevator,
    /// Any; the seed decides.
    Random,
}

impl WriteBack {
    /// The words of option `write-back`.
    pub const NAMES: &'static [(&'static str, Self)] =
        &[("fifo", Self::Fifo), ("lifo", Self::Lifo), ("elevator", Self::Elevator), ("random", Self::Random)];

    /// Its word.
    pub fn name(self) -> &'static str {
        name_in(Self::NAMES, self)
    }
}

fn name_in<T: Copy + PartialEq>(names: &[(&'static str, T)], wanted: T) -> &'static str {
    names.iter().find(|(_, value)| *value == wanted).map_or("", |(name, _)| name)
}

/// Everything about a disk that its user chooses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskOptions {
    /// Whether it keeps its word.
    pub kind: Kind,
    /// Which states a power cut may leave.
    pub profile: Profile,
    /// What a failed flush does to its data.
    pub flush_error: FlushError,
    /// Bytes of the write cache, bookkeeping included. One request that is longer is taken alone.
    pub cache_size: u64,
    /// Which request leaves a full cache first. Profile `ordered` knows one order alone, whatever this says.
    pub write_back: WriteBack,
    /// Determines every state that is not asked for by name, and the write-back order `random`.
    pub seed: u64,
    /// Bytes the medium writes whole or not at all: a power of two from [`BLOCK_MIN`](Self::BLOCK_MIN) to
    /// [`BLOCK_MAX`](Self::BLOCK_MAX).
    pub block_size: u32,
    /// After a power cut the disk stays off until [`power_on`](super::Disk::power_on).
    pub stay_off: bool,
}

impl DiskOptions {
    /// Smallest block.
    pub const BLOCK_MIN: u32 = 512;
    /// Largest block.
    pub const BLOCK_MAX: u32 = 64 << 10;
}

impl Default for DiskOptions {
    /// An honest disk of blocks of 512 bytes with a cache of 64 MiB, written back in order of arrival.
    fn default() -> Self {
        Self {
            kind: Kind::default(),
            profile: Profile::default(),
            flush_error: FlushError::default(),
            cache_size: 64 << 20,
            write_back: WriteBack::default(),
            seed: 0,
            block_size: Self::BLOCK_MIN,
            stay_off: false,
        }
    }
}
