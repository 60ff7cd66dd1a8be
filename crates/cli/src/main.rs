//! The blkproof binary.
fn main() {}
