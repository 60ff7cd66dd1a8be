//! The workload, its oracle and the crash states, tested on drivers whose bugs are known.
//!
//! A right driver must survive every seed; each planted bug must be found within a few.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use blkproof_block::nodes::memory::SparseBytes;
use blkproof_block::range_lock::RangeLock;
use blkproof_block::testing::workload::{Config, Finding, Outcome, run};
use blkproof_block::testing::{TestDisk, hash};
use blkproof_block::units::ByteRange;
use blkproof_block::{
    BlockDevice, BlockStatus, Capabilities, DeviceInfo, Preallocation, Result, WriteFlags, ZeroFlags,
};

const SIZE: u64 = (64 << 10) + 700;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bug {
    None,
    /// Every 40th write is acknowledged and forgotten.
    LostWrite,
    /// An unaligned write restores stale bytes beside it: read, modify, write without a lock.
    StalePadding,
    /// Flush is acknowledged without being sent.
    NoFlush,
    /// Every other flush is acknowledged without being sent.
    HalfFlush,
    /// FUA is not passed on.
    NoFua,
    /// A failed write is tried again behind the caller's back, at the next flush.
    LateRetry,
    /// Drain does not reach the disk.
    NoDrain,
    /// Every 30th write goes one sector further.
    Misdirected,
    /// An error below is not reported.
    SwallowedError,
    /// Write zeroes reports success and skips the last sector.
    ShortZero,
    /// Every 20th read is answered from the content at the beginning.
    StaleRead,
    /// A lock is never given back.
    LeakedLock,
    /// Block status says that everything is zero.
    WrongMap,
    /// Every other resize is acknowledged and forgotten.
    LostResize,
    /// What a shrink cut off is there again when the device grows.
    Resurrects,
    /// Every write is two, under a range lock. Not a bug.
    SplitWrite,
}

/// Passes everything on, except for its bug.
struct Driver {
    disk: TestDisk,
    bug: Bug,
    count: Cell<u64>,
    lock: RangeLock,
    late: RefCell<Vec<(u64, Vec<u8>)>>,
    first: SparseBytes,
}

impl Driver {
    fn new(disk: &TestDisk, bug: Bug) -> Self {
        Self {
            disk: disk.clone(),
            bug,
            count: Cell::new(0),
            lock: RangeLock::new(),
            late: RefCell::default(),
            first: disk.image(),
        }
    }

    fn every(&self, n: u64) -> bool {
        self.count.set(self.count.get() + 1);
        self.count.get().is_multiple_of(n)
    }
}

impl BlockDevice for Driver {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { capabilities: Capabilities::all(), ..DeviceInfo::new("driver", self.disk.info().size) }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        if self.bug == Bug::StaleRead && self.every(20) {
            self.first.read(at, buf);
            return Ok(());
        }
        self.disk.read(at, buf).await
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        match self.bug {
            Bug::LostWrite if self.every(40) => Ok(()),
            Bug::StalePadding => {
                let start = at / 512 * 512;
                let end = (at + data.len() as u64).next_multiple_of(512).min(self.info().size);
                let mut whole = vec![0; (end - start) as usize];
                self.disk.read(start, &mut whole).await?;
                whole[(at - start) as usize..][..data.len()].copy_from_slice(data);
                self.disk.write(start, &whole, flags).await
            }
            Bug::NoFua => self.disk.write(at, data, WriteFlags::empty()).await,
            Bug::LateRetry => {
                let result = self.disk.write(at, data, flags).await;
                if result.is_err() {
                    self.late.borrow_mut().push((at, data.to_vec()));
                }
                result
            }
            Bug::Misdirected if self.every(30) => {
                let at = (at + 512).min(self.info().size - data.len() as u64);
                self.disk.write(at, data, flags).await
            }
            Bug::SwallowedError => {
                let _ = self.disk.write(at, data, flags).await;
                Ok(())
            }
            Bug::LeakedLock => {
                std::mem::forget(self.lock.exclusive(ByteRange::at(at, data.len() as u64)).await);
                self.disk.write(at, data, flags).await
            }
            Bug::SplitWrite => {
                let _guard = self.lock.exclusive(ByteRange::at(at, data.len() as u64)).await;
                let cut = ((at / 512 + 1) * 512 - at).min(data.len() as u64) as usize;
                self.disk.write(at, &data[..cut], flags).await?;
                self.disk.write(at + cut as u64, &data[cut..], flags).await
            }
            _ => self.disk.write(at, data, flags).await,
        }
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let len = if self.bug == Bug::ShortZero && len > 512 { len - 512 } else { len };
        self.disk.write_zeroes(at, len, flags).await
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.disk.discard(at, len).await
    }

    async fn flush(&self) -> Result<()> {
        match self.bug {
            Bug::NoFlush => return Ok(()),
            Bug::HalfFlush if self.every(2) => return Ok(()),
            Bug::LateRetry => {
                let late = self.late.take();
                for (at, data) in late {
                    self.disk.write(at, &data, WriteFlags::empty()).await?;
                }
            }
            _ => {}
        }
        self.disk.flush().await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        match self.bug {
            Bug::WrongMap => Ok(BlockStatus::zero(len)),
            _ => self.disk.block_status(at, len).await,
        }
    }

    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        let old = self.disk.info().size;
        match self.bug {
            Bug::LostResize if self.every(2) => return Ok(()),
            Bug::Resurrects if size < old => {
                let mut cut = vec![0; (old - size) as usize];
                self.disk.read(size, &mut cut).await?;
                self.late.borrow_mut().push((size, cut));
            }
            _ => {}
        }
        self.disk.resize(size, preallocation).await?;
        if self.bug == Bug::Resurrects && size > old {
            let cut = self.late.take();
            for (at, data) in cut.into_iter().filter(|(at, data)| *at >= old && at + data.len() as u64 <= size) {
                self.disk.write(at, &data, WriteFlags::empty()).await?;
            }
        }
        // A FUA write in the new space relies on it.
        if self.bug == Bug::NoFlush { Ok(()) } else { self.disk.flush().await }
    }

    async fn drain(&self) -> Result<()> {
        match self.bug {
            Bug::NoDrain => Ok(()),
            _ => self.disk.drain().await,
        }
    }
}

fn stamped_disk() -> TestDisk {
    let mut content = SparseBytes::new(SIZE);
    content.write(0, &blkproof_block::testing::stamp::bytes(0, SIZE as usize, 1 << 40));
    TestDisk::from_bytes(content)
}

fn torture(bug: Bug, config: Config) -> Outcome {
    let disk = stamped_disk();
    run(config, Rc::new(Driver::new(&disk, bug)), &disk)
}

fn crashes(outcome: &Outcome) -> Vec<Finding> {
    outcome.check_crashes(25, 30, |image| {
        let mut content = vec![0; image.size() as usize];
        image.read(0, &mut content);
        Ok(content)
    })
}

#[test]
fn a_right_driver_survives() {
    for seed in 0..6 {
        for bug in [Bug::None, Bug::SplitWrite] {
            let config = Config { seed, ops: 150, ..Config::default() };
            let resizing = Config { resizes: 5, ..config.clone() };
            let hostile = Config { align: 512, ..config.clone().hostile() };
            for config in [config.clone(), config.hostile(), hostile, resizing.clone(), resizing.hostile()] {
                let outcome = torture(bug, config);
                outcome.assert_clean();
                if seed % 3 == 0 {
                    assert_eq!(crashes(&outcome), [], "{bug:?}, seed {seed}");
                }
                assert!(outcome.ended[0] > 50, "seed {seed}: most requests succeed: {:?}", outcome.ended);
            }
        }
    }
}

#[test]
fn hostile_means_hostile() {
    let outcome = torture(Bug::None, Config { seed: 3, ops: 400, ..Config::default() }.hostile());
    assert!(outcome.ended[1] > 4 && outcome.ended[2] > 8, "failed and dropped: {:?}", outcome.ended);
}

/// Which bug, under which workload, whether by a crash, within how many seeds.
#[test]
fn every_planted_bug_is_found() {
    let plain = Config { ops: 200, ..Config::default() };
    let hostile = plain.clone().hostile();
    let resizing = Config { resizes: 10, ..plain.clone() };
    let table = [
        (Bug::LostWrite, &plain, false),
        (Bug::StalePadding, &plain, false),
        (Bug::NoFlush, &plain, true),
        (Bug::HalfFlush, &plain, true),
        (Bug::NoFua, &plain, true),
        (Bug::LateRetry, &hostile, false),
        (Bug::NoDrain, &hostile, false),
        (Bug::Misdirected, &plain, false),
        (Bug::SwallowedError, &hostile, false),
        (Bug::ShortZero, &plain, false),
        (Bug::StaleRead, &plain, false),
        (Bug::LeakedLock, &plain, false),
        (Bug::WrongMap, &plain, false),
        (Bug::LostResize, &resizing, false),
        (Bug::Resurrects, &resizing, false),
        (Bug::NoFlush, &resizing, true),
    ];
    for (bug, config, by_crash) in table {
        let mut caught = None;
        for seed in 0..8 {
            let outcome = torture(bug, Config { seed, ..config.clone() });
            let findings = if by_crash {
                assert_eq!(outcome.findings, [], "{bug:?} shows only after a crash");
                crashes(&outcome)
            } else {
                outcome.findings
            };
            if let Some(first) = findings.into_iter().next() {
                caught = Some((seed, first));
                break;
            }
        }
        let Some((seed, finding)) = caught else { panic!("{bug:?} was not found in 8 seeds") };
        println!("{bug:?}: seed {seed}: {finding}");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..4 {
        let config = Config { seed, ..Config::default() }.hostile();
        let prints = [0, 1].map(|_| torture(Bug::SplitWrite, config.clone()).fingerprint);
        assert_eq!(prints[0], prints[1], "seed {seed}");
    }
    let other = torture(Bug::None, Config { seed: hash(1, 1), ..Config::default() }).fingerprint;
    assert_ne!(other, torture(Bug::None, Config { seed: hash(1, 2), ..Config::default() }).fingerprint);
}
