//! How bad sectors come and go.

use std::time::Duration;

/// The life of a rule's sectors. Sectors are cured one by one.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Life {
    /// What makes a sector good again.
    pub until: Until,
    /// Sectors that go bad as time passes, beside those bad from the start.
    pub growth: Option<Growth>,
    /// Sectors of the range are good at first, and fall one by one.
    pub rot: Option<Rot>,
}

/// What cures a sector.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Until {
    /// Nothing.
    #[default]
    Never,
    /// A write or write zeroes that covers the whole sector and succeeds (a pending sector, rewritten).
    Rewrite,
    /// A reassignment: the front end's REASSIGN BLOCKS, or control.
    Reassign,
    /// So many failed accesses: a sector that a drive reads at last.
    Accesses(u64),
}

/// A defect list that grows: from time to time the next sector after the rule's bad ones goes bad too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Growth {
    /// The time from one to the next.
    pub each: Duration,
    /// So many at most.
    pub limit: u64,
}

/// Bit rot: few sectors fall by themselves, at moments that seed and sector decide, and from them it spreads to their
/// neighbours. Nothing of it is stored: rewriting a sector refreshes that one, and stops nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rot {
    /// When half of the sectors have fallen.
    pub half: Duration,
}
