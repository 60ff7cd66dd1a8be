//! Defects in the small drivers: each misbehaves in its schedule, and the driver without it does not.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::pin::pin;
use std::rc::Rc;

use blkproof_block::testing::{Action, DrainPolicy, Executor, OpKind, Rule, TestDisk, block_on};
use blkproof_block::{BlockDevice, Errno, IoError, WriteFlags};
use blkproof_gallery::Mutant;
use blkproof_gallery::drivers::{Cache, Merge, Pad, Pieces, Retry};
use support::small::{disk, log_disk, open};
use support::{cut, cut_now, fail_nth, finish, holds, poll, read, shows, write};

const LEN: usize = 4096;

fn held(kind: OpKind, times: u64) -> Rule {
    Rule::new(Action::HoldBefore).kind(kind).times(times)
}

async fn put<D: BlockDevice>(device: Rc<D>, at: u64, byte: u8, len: usize) {
    device.write(at, &vec![byte; len], WriteFlags::empty()).await.unwrap();
}

/// Reads enough lines to have all others evicted.
fn evict<D: BlockDevice>(device: &D) {
    for line in 4..16 {
        read(device, line * 4096, 512).unwrap();
    }
}

/// Write A; write B over it with FUA fails; read B; let the line be evicted; read again.
#[test]
fn m6() {
    shows(Mutant::M6, || {
        let disk = disk();
        let cache = Cache::new(disk.clone());
        write(&cache, 0, 1, 512);
        block_on(cache.flush()).unwrap();
        fail_nth(&disk, OpKind::Write, 1);
        block_on(cache.write(0, &[2; 512], WriteFlags::FUA)).unwrap_err();
        disk.clear_rules();
        let pinned = read(&cache, 0, 512)?;
        evict(&cache);
        if read(&cache, 0, 512)? == pinned { Ok(()) } else { Err("a read went back".into()) }
    });
}

/// Write A, slow; its second try completes; write B over it; the first try lands; read.
#[test]
fn m8() {
    shows(Mutant::M8, || {
        let disk = disk();
        disk.set_drain_policy(DrainPolicy::Land);
        let retry = Rc::new(Retry::new(disk.clone()));
        disk.add_rule(held(OpKind::Write, 1));
        let mut executor = Executor::new();
        executor.spawn(put(Rc::clone(&retry), 0, 1, 512));
        executor.run_until_stalled();
        for at in [4096, 8192] {
            executor.spawn(put(Rc::clone(&retry), at, 3, 512));
        }
        executor.run(0).map_err(|stuck| stuck.to_string())?;
        write(&*retry, 0, 2, 512);
        disk.orphans().iter().for_each(|orphan| disk.land(orphan.id));
        holds(&*retry, 0, 2, 512)
    });
}

/// A record lands with its first sector alone where an older one of that length stood; recover; read.
#[test]
fn m11() {
    shows(Mutant::M11, || {
        let disk = log_disk();
        let log = open(&disk)?;
        // A failed write leaves its record where the next one goes.
        disk.add_rule(Rule::new(Action::DoThenFail(IoError::new(Errno::IO))).kind(OpKind::Write).nth(1));
        block_on(log.write(0, &[1; 512], WriteFlags::empty())).unwrap_err();
        disk.clear_rules();
        block_on(log.flush()).unwrap();
        write(&*log, 4096, 2, 512);
        cut_now(&disk, |disk| {
            let log = open(&disk)?;
            match read(&*log, 4096, 512)? {
                found if found == [0; 512] || found == [2; 512] => Ok(()),
                _ => Err("data of another address".into()),
            }
        })
    });
}

/// A read that comes in more than two pieces.
#[test]
fn m12() {
    shows(Mutant::M12, || {
        let pieces = Pieces::new(disk());
        let data: Vec<u8> = (0..8u8).flat_map(|unit| [unit + 1; 512]).collect();
        block_on(pieces.write(0, &data, WriteFlags::empty())).unwrap();
        if read(&pieces, 0, LEN)? == data { Ok(()) } else { Err("pieces of the wrong places".into()) }
    });
}

/// Writes A [0, 8) and B [2, 4) in one batch; read [4, 8).
#[test]
fn m15() {
    shows(Mutant::M15, || {
        let disk = disk();
        let merge = Rc::new(Merge::new(disk.clone()));
        disk.add_rule(held(OpKind::Write, 1));
        let mut executor = Executor::new();
        for (at, byte, len) in [(32768, 9, 512), (0, 1, 8 * 512), (1024, 2, 1024)] {
            executor.spawn(put(Rc::clone(&merge), at, byte, len));
            executor.run_until_stalled();
        }
        finish(&disk, executor)?;
        holds(&*merge, 0, 1, 1024)?;
        holds(&*merge, 4 * 512, 1, 4 * 512)
    });
}

/// Unaligned write U, park it after its read; aligned write A over the block; release U; read A.
#[test]
fn m16() {
    shows(Mutant::M16, || {
        let disk = disk();
        let pad = Rc::new(Pad::new(disk.clone()));
        disk.add_rule(held(OpKind::Write, 1));
        let mut executor = Executor::new();
        executor.spawn(put(Rc::clone(&pad), 512, 1, 512));
        executor.run_until_stalled();
        executor.spawn(put(Rc::clone(&pad), 0, 2, LEN));
        executor.run_until_stalled();
        finish(&disk, executor)?;
        holds(&*pad, 0, 2, 512)?;
        holds(&*pad, 1024, 2, LEN - 1024)
    });
}

/// Write A, park its way to the disk; write B over it; release B, then A; evict, read.
#[test]
fn m17() {
    shows(Mutant::M17, || {
        let disk = disk();
        let cache = Rc::new(Cache::new(disk.clone()));
        write(&*cache, 0, 1, 512);
        disk.add_rule(held(OpKind::Write, 1));
        let flush = Rc::clone(&cache);
        let mut executor = Executor::new();
        executor.spawn(async move { flush.flush().await.unwrap() });
        executor.run_until_stalled();
        executor.spawn(put(Rc::clone(&cache), 0, 2, 512));
        let flush = Rc::clone(&cache);
        executor.run_until_stalled();
        executor.spawn(async move { flush.flush().await.unwrap() });
        executor.run_until_stalled();
        finish(&disk, executor)?;
        evict(&*cache);
        holds(&*cache, 0, 2, 512)
    });
}

/// Write A, close, open, read A.
#[test]
fn m21() {
    shows(Mutant::M21, || {
        let disk = disk();
        let cache = Cache::new(disk.clone());
        write(&cache, 0, 1, 512);
        block_on(cache.close()).unwrap();
        holds(&Cache::new(disk), 0, 1, 512)
    });
}

/// Write A to the last queue, flush, cut the power, read A.
#[test]
fn m36() {
    shows(Mutant::M36, || {
        let disk = disk();
        let cache = Cache::new(disk.clone());
        write(&cache, 0, 1, 512);
        write(&cache, 3 * 4096, 2, 512);
        block_on(cache.flush()).unwrap();
        cut_now(&disk, |disk| {
            let cache = Cache::new(disk);
            holds(&cache, 0, 1, 512)?;
            holds(&cache, 3 * 4096, 2, 512)
        })
    });
}

/// Cut the power while a header is rewritten; open.
#[test]
fn m41() {
    shows(Mutant::M41, || {
        let disk = log_disk();
        let log = open(&disk)?;
        write(&*log, 0, 1, 512);
        block_on(log.close()).unwrap();
        cut(&disk, 0..=disk.position(), |disk| open(&disk).map(|_| ()))
    });
}

/// Write A, flush, cut the power; open, cut the power inside; open, read A.
#[test]
fn m45() {
    shows(Mutant::M45, || {
        let disk = log_disk();
        let log = open(&disk)?;
        write(&*log, 0, 1, 512);
        block_on(log.flush()).unwrap();
        drop(log);
        let disk = TestDisk::from_bytes(disk.image());
        open(&disk)?;
        cut(&disk, 0..=disk.position(), |disk| holds(&*open(&disk)?, 0, 1, 512))
    });
}

/// Write A, flush, cut the power; open, read A.
#[test]
fn m46() {
    shows(Mutant::M46, || {
        let disk = log_disk();
        let log = open(&disk)?;
        write(&*log, 0, 1, 512);
        write(&*log, 0, 2, 512);
        block_on(log.flush()).unwrap();
        cut_now(&disk, |disk| holds(&*open(&disk)?, 0, 2, 512))
    });
}

/// A merged write of which the sender is dropped is sent again for those that wait.
#[test]
fn merging_survives_a_dropped_leader() {
    let disk = disk();
    let merge = Rc::new(Merge::new(disk.clone()));
    disk.add_rule(held(OpKind::Write, 1));
    let mut executor = Executor::new();
    let leader = executor.spawn(put(Rc::clone(&merge), 0, 1, 512));
    executor.spawn(put(Rc::clone(&merge), 512, 2, 512));
    executor.run_until_stalled();
    executor.cancel(leader.id());
    executor.run(0).unwrap();
    holds(&*merge, 512, 2, 512).unwrap();
    let mut late = pin!(merge.drain());
    assert!(poll(late.as_mut()).is_ready());
}
