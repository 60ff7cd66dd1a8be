//! What two threads can do to each other, planted one by one.

/// Something wrong with the locks of a [`Thin`](super::Thin). None shows with a single queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Race {
    /// M19: a place is looked for, and marked as taken only when its data is written.
    EarlyTest,
    /// G46: reads fill the cache without the cluster's lock.
    UnlockedFill,
    /// M16: a write of a part of a cluster reads, merges and writes without the cluster's lock.
    UnlockedMerge,
    /// G39: two flushes write the map at once, and an older entry may land last.
    UnlockedFlush,
    /// G51: a discard does not wait for who works on the cluster, and its place is given out at once.
    EarlyReuse,
    /// A discard takes the map's lock before the cluster's: two threads wait for each other.
    LockOrder,
    /// A flush takes it for granted that nobody else flushes, and panics if somebody does.
    LonelyFlush,
}

impl Race {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::EarlyTest,
        Self::UnlockedFill,
        Self::UnlockedMerge,
        Self::UnlockedFlush,
        Self::EarlyReuse,
        Self::LockOrder,
        Self::LonelyFlush,
    ];

    /// What to call a driver with it on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EarlyTest => "thin-early-test",
            Self::UnlockedFill => "thin-unlocked-fill",
            Self::UnlockedMerge => "thin-unlocked-merge",
            Self::UnlockedFlush => "thin-unlocked-flush",
            Self::EarlyReuse => "thin-early-reuse",
            Self::LockOrder => "thin-lock-order",
            Self::LonelyFlush => "thin-lonely-flush",
        }
    }

    /// The real bug it copies.
    pub const fn copies(self) -> &'static str {
        match self {
            Self::EarlyTest => "SPDK 2020-07 db3d1201a4: an allocation tested before a concurrent one (M19, G39)",
            Self::UnlockedFill => "cloud-hypervisor 2026-02 9bc367a27: queues share a cache without a lock (G46)",
            Self::UnlockedMerge => "a stale read-modify-write of an unaligned write (M16, G24)",
            Self::UnlockedFlush => "SPDK 2025-11 453faf0158: two updates of one map page land in wrong order (G39)",
            Self::EarlyReuse => "cloud-hypervisor 2026-07 64c1bb3bf: space reused under a request in flight (G51)",
            Self::LockOrder => "two locks taken in either order",
            Self::LonelyFlush => "an assertion that there is one queue",
        }
    }
}
