//! What is damaged, subject by subject.

pub mod descriptors;
mod header;
mod tables;
mod variants;

use blkproof_check::Verdict;

use super::vmdk_image::{Base, Image};

/// An image, what is done to it, and what must be said of it.
pub struct Row {
    pub name: &'static str,
    pub base: Base,
    pub damage: fn(&mut Image),
    /// Codes that must be found; others of severity above note must not.
    pub codes: &'static [&'static str],
    pub verdict: Verdict,
    pub lost: &'static [std::ops::Range<u64>],
    /// Exit status of qemu-img check; `None` where it can not open that variant by itself.
    pub qemu: Option<i32>,
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Row> {
    [header::ROWS, tables::ROWS, variants::ROWS].into_iter().flatten()
}
