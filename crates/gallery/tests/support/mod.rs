//! What the schedules of defects are made of.
#![allow(dead_code, unreachable_pub, reason = "each test file uses some of it")]

pub mod qcow2;
pub mod small;
pub mod vdi;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use blkproof_block::testing::{Action, Executor, OpKind, Rule, TestDisk, block_on, crash_states};
use blkproof_block::{BlockDevice, Errno, IoError, WriteFlags};
use blkproof_check::source::MemorySource;
use blkproof_check::watch::Silent;
use blkproof_check::{Format, Options, Verdict as CheckVerdict};
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

/// A request in flight: holds what `rule` says, begins `work`, and lets it come to rest.
pub fn parked(disk: &TestDisk, rule: Rule, work: impl Future<Output = ()> + 'static) -> Executor {
    disk.add_rule(rule);
    let mut executor = Executor::new();
    executor.spawn(work);
    executor.run_until_stalled();
    disk.clear_rules();
    executor
}

/// Lets go of what is held, and runs to the end.
pub fn finish(disk: &TestDisk, mut executor: Executor) -> Verdict {
    disk.release_all();
    executor.run(0).map_err(|stuck| stuck.to_string())
}

/// Every disk that a power cut may leave at one of these positions of the log passes.
pub fn cut(
    disk: &TestDisk,
    positions: impl IntoIterator<Item = usize>,
    judge: impl Fn(TestDisk) -> Verdict,
) -> Verdict {
    let log = disk.log();
    for position in positions {
        for state in crash_states(&log, &disk.initial(), position, 100, 0) {
            let how = state.how;
            judge(TestDisk::growing_from_bytes(state.image))
                .map_err(|error| format!("cut at {position}, {how}: {error}"))?;
        }
    }
    Ok(())
}

/// What a power cut now may leave passes.
pub fn cut_now(disk: &TestDisk, judge: impl Fn(TestDisk) -> Verdict) -> Verdict {
    cut(disk, [disk.position()], judge)
}

/// The format check finds no damage; leaks are no damage.
pub fn check(disk: &TestDisk, format: Format) -> Verdict {
    let bytes = disk.image();
    let mut copy = vec![0; usize::try_from(bytes.size()).unwrap()];
    bytes.read(0, &mut copy);
    let options = Options { format: Some(format), threads: 1, ..Options::default() };
    let report = blkproof_check::check(&MemorySource(copy), &options, &Silent);
    match report.verdict {
        CheckVerdict::Healthy | CheckVerdict::Leaks => Ok(()),
        verdict => {
            let words: Vec<_> = report.findings.iter().map(|finding| finding.what.clone()).collect();
            Err(format!("{verdict:?}: {}", words.join("; ")))
        }
    }
}
