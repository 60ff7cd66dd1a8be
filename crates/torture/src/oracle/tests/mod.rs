//! The oracle against the definitions, and against plants.

#![allow(clippy::cast_possible_truncation, reason = "disks are small here")]

mod reference;
mod rules;

use blkproof_block::ByteRange;

use super::Oracle;
use crate::plan::{Act, OpId};
use crate::stamp;

fn write(from: u64, to: u64, fua: bool) -> Act {
    Act::Write { range: ByteRange { start: from, end: to }, fua, compressed: false }
}

fn zeroes(from: u64, to: u64) -> Act {
    Act::Zeroes { range: ByteRange { start: from, end: to }, fua: false, unmap: true, no_fallback: false }
}

fn discard(from: u64, to: u64) -> Act {
    Act::Discard { range: ByteRange { start: from, end: to } }
}

fn read(from: u64, to: u64) -> Act {
    Act::Read { range: ByteRange { start: from, end: to }, vector: Vec::new() }
}

fn bytes(at: u64, len: u64, op: OpId) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    stamp::fill(&mut bytes, at, op);
    bytes
}

/// The candidates of a byte after a power cut now.
fn after(oracle: &Oracle, at: u64) -> Vec<OpId> {
    oracle.after_crash().candidates(at)
}
