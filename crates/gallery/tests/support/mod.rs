//! What the schedules of defects are made of.
#![allow(dead_code, unreachable_pub, reason = "each test file uses some of it")]

pub mod vdi;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use blkproof_block::testing::{Action, OpKind, Rule, TestDisk, block_on};
use blkproof_block::{BlockDevice, Errno, IoError, WriteFlags};
use blkproof_gallery::{Mutant, Planted};

/// What a schedule says: fine, or what was wrong.
pub type Verdict = Result<(), String>;

/// The schedule is fine with nothing planted, and not with `mutant`.
pub fn shows(mutant: Mutant, schedule: impl Fn() -> Verdict) {
    schedule().unwrap_or_else(|error| panic!("without {mutant}: {error}"));
    let planted = Planted::new(mutant);
    let verdict = schedule();
    drop(planted);
    verdict.expect_err(&format!("{mutant} did not show"));
}

/// The `nth` request of this kind from now fails, with nothing done.
pub fn fail_nth(disk: &TestDisk, kind: OpKind, nth: u64) {
    disk.add_rule(Rule::new(Action::FailBefore(IoError::new(Errno::IO))).kind(kind).nth(nth));
}

/// The `nth` request of this kind from now waits before its effect.
pub fn hold_nth(disk: &TestDisk, kind: OpKind, nth: u64) {
    disk.add_rule(Rule::new(Action::HoldBefore).kind(kind).nth(nth));
}

/// Writes `len` times `byte`.
pub fn write(device: &impl BlockDevice, at: u64, byte: u8, len: usize) {
    block_on(device.write(at, &vec![byte; len], WriteFlags::empty())).unwrap();
}

/// Reads `len` bytes.
pub fn read(device: &impl BlockDevice, at: u64, len: usize) -> Result<Vec<u8>, String> {
    let mut buf = vec![0xaa; len];
    block_on(device.read(at, &mut buf)).map_err(|error| format!("reading {at:#x}: {error}"))?;
    Ok(buf)
}

/// All of the range is `byte`.
pub fn holds(device: &impl BlockDevice, at: u64, byte: u8, len: usize) -> Verdict {
    let found = read(device, at, len)?;
    match found.iter().enumerate().find(|(_, found)| **found != byte) {
        Some((place, found)) => Err(format!("{found:#x} instead of {byte:#x} at {:#x}", at + place as u64)),
        None => Ok(()),
    }
}

/// Polls once.
pub fn poll<T>(future: Pin<&mut (impl Future<Output = T> + ?Sized)>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}
