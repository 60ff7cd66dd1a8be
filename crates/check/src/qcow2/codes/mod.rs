//! Codes of qcow2 findings, in three parts: what the header and the side tables say (`structure`), what maps and counts
//! clusters (`mapping`), and what a second look at a damaged image finds (`recover`).

pub mod mapping;
pub mod recover;
pub mod structure;
