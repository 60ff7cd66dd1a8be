//! Codes of qcow2 findings, in two halves: what the header and the side tables say (`structure`), and what maps and counts
//! clusters (`mapping`).

pub mod mapping;
pub mod structure;
