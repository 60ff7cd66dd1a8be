//! What is planted, where, after which real bug, and what must fire.

mod entries;

use crate::Mutant;

/// What a tester must be able to do to find a defect (the codes of the bug gallery).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Cap {
    /// Plain random requests.
    R,
    /// Requests in flight together, in an order it controls.
    C,
    /// Failing requests below.
    E,
    /// Power cuts.
    X,
    /// Dropping requests.
    K,
    /// Closing and opening again.
    O,
    /// A base image with a pattern.
    B,
    /// Requests that are not aligned.
    U,
    /// Discards and zeroes.
    Z,
    /// Resizes or snapshots.
    N,
    /// Block status.
    M,
    /// Transfers that come in pieces.
    S,
    /// Flushes and FUA.
    F,
}

/// The driver a defect lives in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Driver {
    /// [`formats::qcow2`](crate::formats::qcow2).
    Qcow2,
    /// [`formats::vdi`](crate::formats::vdi).
    Vdi,
    /// [`drivers::Cache`](crate::drivers::Cache).
    Cache,
    /// [`drivers::Log`](crate::drivers::Log).
    Log,
    /// [`drivers::Merge`](crate::drivers::Merge).
    Merge,
    /// [`drivers::Pad`](crate::drivers::Pad).
    Pad,
    /// [`drivers::Pieces`](crate::drivers::Pieces).
    Pieces,
    /// [`drivers::Retry`](crate::drivers::Retry).
    Retry,
}

impl Driver {
    /// All of them.
    pub const ALL: &'static [Self] =
        &[Self::Qcow2, Self::Vdi, Self::Cache, Self::Log, Self::Merge, Self::Pad, Self::Pieces, Self::Retry];
}

/// What a defect needs besides the driver's options to be reachable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// A base image with data in it: one that is shorter than the overlay and ends in the middle of a cluster, or, for
    /// growing, one that is longer.
    Base,
    /// A disk of more than 4 GiB.
    Beyond4GiB,
    /// An image with a snapshot (the option `snapshot=on` of this crate's targets).
    Snapshot,
}

/// What must fire: the code of a finding and the rule or invariant of the correctness model it points to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Codes of CM 5.7 that tell of this defect, the nearest first. Another one may come first, by the way it is found.
    pub codes: &'static [&'static str],
    /// The section or invariant of CM: `4.3(4)`, `I3`.
    pub rule: &'static str,
}

/// One planted defect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Which one.
    pub mutant: Mutant,
    /// What to call it on a command line: `v1-map-before-data`.
    pub name: &'static str,
    /// The real bug it copies: project, commit or report, and words.
    pub copies: &'static str,
    /// Where it lives.
    pub driver: Driver,
    /// How the image has to be created and opened for it to be reachable, in the driver's own words; nothing: any way.
    pub options: &'static [(&'static str, &'static str)],
    /// What else it takes.
    pub need: Need,
    /// What it takes to find it.
    pub caps: &'static [Cap],
    /// What must fire.
    pub found: Found,
    /// What is wrong, in a sentence.
    pub what: &'static str,
}

/// Everything that is planted, by the order of [`Mutant`].
pub fn catalogue() -> &'static [Entry] {
    entries::ENTRIES
}

impl Mutant {
    /// What the catalogue says of it.
    pub fn entry(self) -> &'static Entry {
        let found = catalogue().iter().find(|entry| entry.mutant == self);
        found.expect("a test holds that each mutant has an entry")
    }
}
