//! Codes of qcow2 findings, in three parts: what the header and the side tables say (`structure`), what maps and counts
//! clusters (`mapping`), and what a second look at a damaged image finds (`recover`).

pub(crate) mod mapping;
pub(crate) mod recover;
pub(crate) mod structure;

use crate::code::Code;

/// Every code of this format.
pub(crate) fn all() -> impl Iterator<Item = &'static Code> {
    [structure::ALL, mapping::ALL, recover::ALL].into_iter().flatten().copied()
}
