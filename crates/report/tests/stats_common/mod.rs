//! Made-up figures, from a real node over a disk whose clock is told what to say.
#![allow(missing_docs, dead_code, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use blkproof_block::choice::Choices;
use blkproof_block::nodes::memory::Memory;
use blkproof_block::{
    BlockDevice, BlockStatus, DeviceError, DeviceInfo, Errno, IoError, LocalBoxFuture, Preallocation, Result, RuleId,
    WriteFlags, ZeroFlags,
};
use blkproof_fault::clock::Clock;
use blkproof_fault::stats::{Snapshot, Stats, StatsNode, StatsOptions};
use futures_lite::future::block_on;

struct Told(Rc<Cell<u64>>);

impl Clock for Told {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.get())
    }
    fn unix(&self) -> Duration {
        Duration::from_secs(1_700_000_000) + self.now()
    }
    fn sleep(&self, _: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Takes every request, moves no data, and fails in one place.
struct Device {
    memory: Memory,
    clock: Rc<Cell<u64>>,
    ns: Rc<Cell<u64>>,
    bad: u64,
}

impl Device {
    fn work(&self, at: u64, len: u64) -> Result<()> {
        self.clock.set(self.clock.get() + self.ns.get());
        if at <= self.bad && self.bad < at + len {
            return Err(IoError {
                device: Some(DeviceError::Scsi { key: 3, asc: 0x11, ascq: 1 }),
                injected_by: Some(RuleId("bad-<spot>".into())),
                ..IoError::new(Errno::IO).at(self.bad).detail("unrecovered read error & more")
            });
        }
        Ok(())
    }
}

impl BlockDevice for Device {
    fn info(&self) -> DeviceInfo {
        self.memory.info()
    }
    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.work(at, buf.len() as u64)
    }
    async fn write(&self, at: u64, data: &[u8], _: WriteFlags) -> Result<()> {
        self.work(at, data.len() as u64)
    }
    async fn write_zeroes(&self, at: u64, len: u64, _: ZeroFlags) -> Result<()> {
        self.work(at, len)
    }
    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.work(at, len)
    }
    async fn flush(&self) -> Result<()> {
        self.work(u64::MAX, 0)
    }
    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        self.memory.block_status(at, len).await
    }
    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        self.memory.resize(size, preallocation).await
    }
    async fn drain(&self) -> Result<()> {
        Ok(())
    }
}

/// The figures of a disk of `size` bytes after `requests` requests.
pub fn snapshot(name: &str, size: u64, requests: u64) -> Snapshot {
    let (clock, ns) = (Rc::<Cell<u64>>::default(), Rc::<Cell<u64>>::default());
    let bad = size / 3;
    let device = Device { memory: Memory::new(size), clock: Rc::clone(&clock), ns: Rc::clone(&ns), bad };
    let stats = Stats::new(name, size, Rc::new(Told(Rc::clone(&clock))), StatsOptions::default());
    let node = StatsNode::new(device, Rc::clone(&stats));
    let mut choices = Choices::new(2010);
    let mut stream = 0;
    for number in 0..requests {
        let len = (512 << choices.below(9)).min(size);
        let room = size - len;
        let at = match choices.below(10) {
            // A few hot places, a stream, and anywhere.
            0..5 => (room / 7 * choices.below(4) + choices.below(room / 200 + 1)) / 512 * 512,
            5..8 => stream,
            8 => (bad / 4096 * 4096).min(room),
            _ => choices.below(room / 512 + 1) * 512,
        };
        let at = at.min(room);
        stream = if at + len < room { at + len } else { 0 };
        // Most take some tens of microseconds, some wait for a turn of the disk.
        let base = if choices.chance(100) { 4_000_000 } else { 30_000 };
        ns.set(base / 2 + choices.below(base) * (1 + choices.below(3)));
        clock.set(clock.get() + choices.below(100_000));
        block_on(async {
            let _ = match number % 16 {
                0..9 => node.read(at, &mut vec![0; len as usize]).await,
                9..14 => node.write(at, &vec![0; len as usize], WriteFlags::empty()).await,
                14 => node.write_zeroes(at, len * 4, ZeroFlags::empty()).await,
                _ => node.flush().await,
            };
        });
    }
    stats.snapshot()
}
