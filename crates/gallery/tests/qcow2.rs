//! Defects in the copy of the qcow2 driver: each misbehaves in its schedule, and the driver without it does not.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod support;

use std::pin::pin;
use std::rc::Rc;

use blkproof_block::testing::{Action, Executor, OpKind, Rule, TestDisk, block_on};
use blkproof_block::{BlockDevice, ByteRange, Errno, IoError, Preallocation, WriteFlags, ZeroFlags};
use blkproof_check::Format;
use blkproof_gallery::Mutant;
use blkproof_gallery::formats::qcow2::{CreateOptions, OpenOptions, Qcow2};
use support::qcow2::{CLUSTER, base, image, open, open_with, options, over, reopen, with};
use support::{Verdict, check, cut, fail_nth, finish, hold_nth, holds, parked, poll, read, shows, write};

const LEN: usize = 4096;

fn held(kind: OpKind, times: u64) -> Rule {
    Rule::new(Action::HoldBefore).kind(kind).times(times)
}

async fn put(qcow2: Rc<Qcow2<TestDisk>>, at: u64, byte: u8, len: usize) {
    qcow2.write(at, &vec![byte; len], WriteFlags::empty()).await.unwrap();
}

async fn flushed(qcow2: Rc<Qcow2<TestDisk>>) {
    qcow2.flush().await.unwrap();
}

fn flush(qcow2: &Qcow2<TestDisk>) {
    block_on(qcow2.flush()).unwrap();
}

fn zero(qcow2: &Qcow2<TestDisk>, at: u64, len: u64, flags: ZeroFlags) {
    block_on(qcow2.write_zeroes(at, len, flags)).unwrap();
}

/// A read across the end of a shorter base.
#[test]
fn q1_and_m30() {
    for mutant in [Mutant::Q1, Mutant::M30] {
        shows(mutant, || {
            let (_, qcow2) = over(&base(6000), &options());
            let found = read(&qcow2, 0, 8192)?;
            if found[..6000] != [0xbb; 6000] || found[6000..] != [0; 2192] {
                return Err("not what the base holds, with zeroes behind it".into());
            }
            Ok(())
        });
    }
}

/// A read of the base is refused when it is sent, and succeeds.
#[test]
fn q2() {
    shows(Mutant::Q2, || {
        let base = base(8192);
        let (_, qcow2) = over(&base, &options());
        fail_nth(&base, OpKind::Read, 1);
        match read(&qcow2, 0, 512) {
            Ok(found) if found != [0xbb; 512] => Err("success without the data".into()),
            _ => Ok(()),
        }
    });
}

/// Write A fails, write B to the same cluster, flush, reopen, read B.
#[test]
fn m1() {
    shows(Mutant::M1, || {
        let (disk, qcow2) = image();
        write(&qcow2, 5 * CLUSTER, 9, LEN);
        flush(&qcow2);
        fail_nth(&disk, OpKind::Write, 1);
        block_on(qcow2.write(0, &[1; 512], WriteFlags::empty())).unwrap_err();
        disk.clear_rules();
        write(&qcow2, 1024, 2, 512);
        flush(&qcow2);
        let qcow2 = reopen(&disk, qcow2)?;
        holds(&qcow2, 1024, 2, 512)
    });
}

/// Allocate X and zero it in the map; write X fails; write Y; write X; read Y.
#[test]
fn m3() {
    shows(Mutant::M3, || {
        let (disk, qcow2) = image();
        write(&qcow2, 0, 1, LEN);
        zero(&qcow2, 0, CLUSTER, ZeroFlags::empty());
        fail_nth(&disk, OpKind::Write, 1);
        block_on(qcow2.write(0, &[2; 512], WriteFlags::empty())).unwrap_err();
        disk.clear_rules();
        flush(&qcow2);
        write(&qcow2, 2 * CLUSTER, 3, LEN);
        write(&qcow2, 0, 4, LEN);
        holds(&qcow2, 2 * CLUSTER, 3, LEN)
    });
}

/// Grow, the header can not be written; go on; close; check.
#[test]
fn m4() {
    shows(Mutant::M4, || {
        let (disk, qcow2) = with(&CreateOptions { cluster_size: 512, ..options() }, None);
        write(&qcow2, 0, 1, 512);
        let header = ByteRange { start: 0, end: 512 };
        let no = Action::FailBefore(IoError::new(Errno::NOSPC));
        disk.add_rule(Rule::new(no).kind(OpKind::Write).range(header).nth(1));
        block_on(qcow2.resize(8 << 20, Preallocation::Off)).unwrap_err();
        disk.clear_rules();
        write(&qcow2, 4096, 2, 512);
        let _ = reopen(&disk, qcow2)?;
        check(&disk, Format::Qcow2)
    });
}

/// Write, the refcounts can not be written; flush; close; check.
#[test]
fn m5() {
    shows(Mutant::M5, || {
        let (disk, qcow2) = image();
        write(&qcow2, 0, 1, LEN);
        fail_nth(&disk, OpKind::Write, 1);
        block_on(qcow2.flush()).unwrap_err();
        disk.clear_rules();
        let _ = reopen(&disk, qcow2)?;
        check(&disk, Format::Qcow2)
    });
}

/// A write to two places, of which the second fails.
#[test]
fn m7() {
    shows(Mutant::M7, || {
        let (disk, qcow2) = image();
        write(&qcow2, CLUSTER, 1, LEN);
        write(&qcow2, 0, 1, LEN);
        fail_nth(&disk, OpKind::Write, 2);
        match block_on(qcow2.write(0, &[2; 2 * LEN], WriteFlags::empty())) {
            Ok(()) => holds(&qcow2, 0, 2, 2 * LEN),
            Err(_) => Ok(()),
        }
    });
}

/// Write A, park it, drop it; flush; write Y takes its cluster; A lands; read Y.
#[test]
fn m9() {
    shows(Mutant::M9, || {
        let (disk, qcow2) = image();
        write(&qcow2, 5 * CLUSTER, 9, LEN);
        hold_nth(&disk, OpKind::Write, 1);
        assert!(poll(pin!(qcow2.write(0, &[1; LEN], WriteFlags::empty()))).is_pending());
        disk.clear_rules();
        flush(&qcow2);
        write(&qcow2, 2 * CLUSTER, 2, LEN);
        disk.orphans().iter().for_each(|orphan| disk.land(orphan.id));
        holds(&qcow2, 2 * CLUSTER, 2, LEN)
    });
}

/// Writes A and B to the same fresh cluster, parked; release; read both.
#[test]
fn m13() {
    shows(Mutant::M13, || {
        let (disk, qcow2) = image();
        write(&qcow2, 5 * CLUSTER, 9, LEN);
        disk.add_rule(held(OpKind::Write, 2));
        let mut executor = Executor::new();
        executor.spawn(put(Rc::clone(&qcow2), 0, 1, 512));
        executor.spawn(put(Rc::clone(&qcow2), 1024, 2, 512));
        executor.run_until_stalled();
        disk.clear_rules();
        finish(&disk, executor)?;
        holds(&qcow2, 0, 1, 512)?;
        holds(&qcow2, 1024, 2, 512)
    });
}

/// Write X, park its table on the way to the disk, touch other tables, read X.
#[test]
fn m14() {
    shows(Mutant::M14, || {
        let (disk, qcow2) = with(&CreateOptions { cluster_size: 512, ..options() }, None);
        for at in [16 << 10, 32 << 10, 64 << 10, 96 << 10] {
            write(&qcow2, at, 9, 512);
        }
        block_on(qcow2.close()).unwrap();
        let qcow2 = open_with(&disk, OpenOptions { l2_cache_size: 1024, ..OpenOptions::default() })?;
        write(&qcow2, 0, 1, 512);
        let executor = parked(&disk, held(OpKind::Write, 1), flushed(Rc::clone(&qcow2)));
        for at in [32 << 10, 64 << 10, 96 << 10] {
            holds(&qcow2, at, 9, 512)?;
        }
        holds(&qcow2, 0, 1, 512)?;
        finish(&disk, executor)
    });
}

/// Write X, discard it, park the punch, write Y; release; read Y.
#[test]
fn m20() {
    shows(Mutant::M20, || {
        let (disk, qcow2) = image();
        write(&qcow2, 0, 1, LEN);
        flush(&qcow2);
        block_on(qcow2.discard(0, CLUSTER)).unwrap();
        let executor = parked(&disk, held(OpKind::Discard, 1), flushed(Rc::clone(&qcow2)));
        write(&qcow2, 2 * CLUSTER, 2, LEN);
        finish(&disk, executor)?;
        holds(&qcow2, 2 * CLUSTER, 2, LEN)
    });
}

/// Write, and ask where data is.
#[test]
fn m22() {
    shows(Mutant::M22, || {
        let (_, qcow2) = image();
        write(&qcow2, 0, 1, LEN);
        match block_on(qcow2.block_status(0, CLUSTER)).unwrap() {
            status if status.zero => Err(format!("{status:?} of what was written")),
            _ => Ok(()),
        }
    });
}

/// The base has data in the first part of a cluster; zero the last; read the first.
#[test]
fn m23() {
    shows(Mutant::M23, || {
        let (_, qcow2) = over(&base(10_240), &CreateOptions { cluster_size: 65536, ..options() });
        zero(&qcow2, 20_480, 65_536 - 20_480, ZeroFlags::empty());
        holds(&qcow2, 0, 0xbb, 10_240)
    });
}

/// Write X, flush, zero it with unmap, flush, write Y, reopen, read X.
#[test]
fn m24() {
    shows(Mutant::M24, || {
        let (disk, qcow2) = image();
        write(&qcow2, 0, 1, LEN);
        flush(&qcow2);
        zero(&qcow2, 0, CLUSTER, ZeroFlags::MAY_UNMAP);
        flush(&qcow2);
        write(&qcow2, 100 * CLUSTER, 2, LEN);
        let qcow2 = reopen(&disk, qcow2)?;
        holds(&qcow2, 0, 0, LEN)
    });
}

/// Write two clusters, zero a range that ends inside the second, read its halves.
#[test]
fn m25() {
    shows(Mutant::M25, || {
        let (_, qcow2) = image();
        write(&qcow2, 0, 1, 2 * LEN);
        zero(&qcow2, 0, CLUSTER + 512, ZeroFlags::empty());
        holds(&qcow2, 0, 0, LEN + 512)?;
        holds(&qcow2, CLUSTER + 512, 1, LEN - 512)
    });
}

/// Write X, zero a part of it with unmap, read.
#[test]
fn m26() {
    shows(Mutant::M26, || {
        let (_, qcow2) = image();
        write(&qcow2, 0, 1, LEN);
        zero(&qcow2, 0, 512, ZeroFlags::MAY_UNMAP);
        holds(&qcow2, 0, 0, 512)
    });
}

/// Write X, discard it, flush, write Y, read X.
#[test]
fn m27() {
    shows(Mutant::M27, || {
        let (_, qcow2) = image();
        write(&qcow2, 0, 1, LEN);
        flush(&qcow2);
        block_on(qcow2.discard(0, CLUSTER)).unwrap();
        flush(&qcow2);
        write(&qcow2, 2 * CLUSTER, 2, LEN);
        holds(&qcow2, 0, 0, LEN)
    });
}

/// Over a base: write X, zero it with unmap, read.
#[test]
fn m28() {
    shows(Mutant::M28, || {
        let (_, qcow2) = over(&base(65_536), &options());
        write(&qcow2, 0, 1, LEN);
        zero(&qcow2, 0, CLUSTER, ZeroFlags::MAY_UNMAP);
        holds(&qcow2, 0, 0, LEN)
    });
}

/// Grow an overlay that is shorter than its base.
#[test]
fn m29() {
    shows(Mutant::M29, || {
        let (_, qcow2) = over(&base(65_536), &CreateOptions { size: 2 * CLUSTER, ..options() });
        block_on(qcow2.resize(4 * CLUSTER, Preallocation::Off)).unwrap();
        holds(&qcow2, 0, 0xbb, 2 * LEN)?;
        holds(&qcow2, 2 * CLUSTER, 0, 2 * LEN)
    });
}

/// Write A, take a snapshot, write B; check.
#[test]
fn m33() {
    shows(Mutant::M33, || {
        let (disk, qcow2) = image();
        write(&qcow2, 0, 1, LEN);
        block_on(qcow2.close()).unwrap();
        let mut bytes = vec![0; usize::try_from(disk.image().size()).unwrap()];
        disk.image().read(0, &mut bytes);
        blkproof_torture::target::add_snapshot(&mut bytes)?;
        let disk = TestDisk::growing(0);
        disk.tamper(|content| content.write(0, &bytes));
        check(&disk, Format::Qcow2)?;
        let qcow2 = open(&disk, None)?;
        holds(&qcow2, 0, 1, LEN)?;
        write(&qcow2, 0, 2, LEN);
        let qcow2 = reopen(&disk, qcow2)?;
        holds(&qcow2, 0, 2, LEN)?;
        check(&disk, Format::Qcow2)
    });
}

/// Write; cut the power anywhere in the flush; check.
#[test]
fn m40() {
    shows(Mutant::M40, || {
        let (disk, qcow2) = image();
        write(&qcow2, 5 * CLUSTER, 9, LEN);
        flush(&qcow2);
        write(&qcow2, 0, 1, LEN);
        let from = disk.position();
        flush(&qcow2);
        cut(&disk, from..=disk.position(), |disk| check(&disk, Format::Qcow2))
    });
}

/// With lazy refcounts: write, flush; closing, the counts can not be written; open, close, check.
#[test]
fn m43() {
    shows(Mutant::M43, || {
        let (disk, qcow2) = with(&CreateOptions { lazy_refcounts: true, ..options() }, None);
        write(&qcow2, 0, 1, LEN);
        flush(&qcow2);
        fail_nth(&disk, OpKind::Write, 1);
        let _ = block_on(qcow2.close());
        disk.clear_rules();
        drop(qcow2);
        let _ = reopen(&disk, open(&disk, None)?)?;
        check(&disk, Format::Qcow2)
    });
}

/// Write X, flush; park the next flush, discard X, release; reopen, write Y, read X.
#[test]
fn m47() {
    shows(Mutant::M47, || -> Verdict {
        let (disk, qcow2) = image();
        write(&qcow2, 0, 1, LEN);
        flush(&qcow2);
        write(&qcow2, CLUSTER, 3, LEN);
        let executor = parked(&disk, held(OpKind::Write, 1), flushed(Rc::clone(&qcow2)));
        block_on(qcow2.discard(0, CLUSTER)).unwrap();
        finish(&disk, executor)?;
        let qcow2 = reopen(&disk, qcow2)?;
        write(&qcow2, 2 * CLUSTER, 2, LEN);
        holds(&qcow2, 0, 0, LEN)
    });
}
