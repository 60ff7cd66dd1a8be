//! Block drivers of other projects as targets of torture, as they are found on crates.io.
//!
//! ```text
//! torture -> [adapter: our Node] -> the crate -> [adapter: its storage trait] -> our simulated disk
//! ```
//!
//! An adapter adds nothing that a user of the crate would not have to add, and leaves out nothing that its documentation
//! asks for; where it has to choose, its module says what and why. Nothing here is part of the `blkproof` program.
//!
//! # Determinism (CM 9.4)
//! Both crates keep caches in `std`'s `HashMap`, whose order hangs on numbers from the operating system, and write them
//! back in that order. A binary that repeats runs pins the numbers as `tests/pinned/mod.rs` does, and begins each run on a
//! thread of its own: [`Target::own_thread`].
#![deny(unsafe_code)]

mod bridge;
mod errors;
pub mod imago;
pub mod qcow2_rs;

use blkproof_torture::target::Target;

/// Every target of this crate.
pub fn targets() -> Vec<&'static dyn Target> {
    let mut all: Vec<&'static dyn Target> = vec![&imago::Raw, &imago::Qcow2, &imago::Qcow2Cut];
    all.extend(qcow2_rs::TARGETS.iter().map(|target| target as &dyn Target));
    all
}

/// The target of that name.
pub fn find(name: &str) -> Option<&'static dyn Target> {
    targets().into_iter().find(|target| target.name() == name)
}
