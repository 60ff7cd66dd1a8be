//! Fail I/O 1, 2, 3, … of a fixed sequence until it runs untouched, once for that one request and once for all that
//! follow until the disk recovers; then nothing acknowledged may be missing, and the image must be clean after a close.
//! And the same with the n-th request dropped instead of failed.

use std::cell::Cell;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use blkproof_block::testing::{Action, ChangeId, DrainPolicy, Model, OpKind, Rule, TestDisk, block_on, stamp};
use blkproof_block::{BlockDevice, Errno, IoError, WriteFlags, ZeroFlags};

use super::{Setup, check_image, open, shared};
use crate::vdi::Vdi;

const BLOCK: u64 = 4096;

/// One step of the sequence.
#[derive(Clone, Copy, Debug)]
enum Do {
    Write(u64, u64, bool),
    Zero(u64, u64),
    Discard(u64, u64),
    Flush,
}

const SEQUENCE: &[Do] = &[
    Do::Write(100, 50, false),
    Do::Write(BLOCK + 512, 1024, false),
    Do::Flush,
    Do::Write(3 * BLOCK - 700, 2 * BLOCK, false),
    Do::Write(200, 3000, false),
    Do::Zero(BLOCK, 1000),
    Do::Write(9 * BLOCK, BLOCK, true),
    Do::Discard(9 * BLOCK, 512),
    // V1: another sector of a block whose allocation may have failed.
    Do::Write(3 * BLOCK + 2048, 512, false),
    Do::Write(24 * BLOCK + 600, 1000, false),
    Do::Zero(11 * BLOCK, BLOCK),
    Do::Flush,
    Do::Write(10 * BLOCK + 1, 5000, true),
];

async fn step(image: &Vdi<TestDisk>, model: &mut Model, open: &Cell<Option<ChangeId>>, number: u64, what: Do) -> bool {
    let (change, result) = match what {
        Do::Write(at, len, fua) => {
            let data = stamp::bytes(at, usize::try_from(len).unwrap(), number + 1);
            let change = model.submit_write(at, &data, fua);
            open.set(Some(change));
            let flags = if fua { WriteFlags::FUA } else { WriteFlags::empty() };
            (change, image.write(at, &data, flags).await)
        }
        Do::Zero(at, len) => {
            let change = model.submit_zeroes(at, len, false);
            open.set(Some(change));
            (change, image.write_zeroes(at, len, ZeroFlags::MAY_UNMAP).await)
        }
        Do::Discard(at, len) => {
            let change = model.submit_discard(at, len);
            open.set(Some(change));
            (change, image.discard(at, len).await)
        }
        Do::Flush => return image.flush().await.is_ok(),
    };
    match result {
        Ok(()) => model.complete(change),
        Err(_) => model.fail(change),
    }
    result.is_ok()
}

fn judge(image: &impl BlockDevice, model: &mut Model, what: &str) {
    let mut buf = vec![0; usize::try_from(image.info().size).unwrap()];
    block_on(image.read(0, &mut buf)).unwrap_or_else(|error| panic!("{what}: {error}"));
    model.check_now(0, &buf).unwrap_or_else(|violation| panic!("{what}: {violation}"));
}

#[test]
fn the_nth_request_fails() {
    for setup in [Setup::small(), Setup { grows: false, ..Setup::small() }] {
        for (name, rule) in [
            ("nothing done", Action::FailBefore(IoError::new(Errno::NOSPC))),
            ("all done", Action::DoThenFail(IoError::new(Errno::IO))),
            ("part done", Action::PartThenFail { bytes: 512, error: IoError::new(Errno::IO) }),
        ] {
            for persistent in [false, true] {
                let mut n = 1;
                loop {
                    let what = format!("request {n} fails ({name}, persistent: {persistent})");
                    let disk = setup.disk();
                    let image = shared(&disk, None);
                    let mut model = Model::new(blkproof_block::nodes::memory::SparseBytes::new(setup.size));
                    let (count, rule) = (Cell::new(0), rule.clone());
                    disk.script(move |op| {
                        if matches!(op.kind, OpKind::Event | OpKind::Drain) {
                            return Action::Pass;
                        }
                        count.set(count.get() + 1);
                        match (&rule, count.get() == n || (persistent && count.get() > n)) {
                            (_, false) => Action::Pass,
                            // A sector is atomic: the cut falls on its end.
                            (Action::PartThenFail { error, .. }, true) => {
                                Action::PartThenFail { bytes: 512 - op.range.start % 512, error: error.clone() }
                            }
                            (rule, true) => rule.clone(),
                        }
                    });
                    for (number, what) in (0..).zip(SEQUENCE) {
                        block_on(step(&image, &mut model, &Cell::new(None), number, *what));
                    }
                    let closed = persistent.then(|| block_on(image.close()).is_ok());
                    let bitten = disk.faults() > 0;
                    disk.clear_rules();
                    judge(&*image, &mut model, &what);
                    if closed != Some(true) {
                        block_on(image.close()).unwrap_or_else(|error| panic!("{what}: close: {error}"));
                    }
                    check_image(&disk.image(), true).unwrap_or_else(|error| panic!("{what}: {error}"));
                    judge(&open(&disk).unwrap(), &mut model, &format!("{what}, reopened"));
                    if !bitten {
                        break;
                    }
                    n += 1;
                }
                assert!(n > 20, "{n} requests are too few to be this sequence");
            }
        }
    }
}

/// V2, M9, M10: every sub-step of every request is the one at which its future is dropped; what was dropped lands at
/// the next drain, or never.
#[test]
fn the_nth_request_is_dropped() {
    for policy in [DrainPolicy::Land, DrainPolicy::Forget] {
        let mut n = 1;
        loop {
            let what = format!("request {n} is dropped ({policy:?})");
            let disk = Setup::small().disk();
            disk.set_drain_policy(policy);
            let image = shared(&disk, None);
            let mut model = Model::new(blkproof_block::nodes::memory::SparseBytes::new(Setup::small().size));
            disk.add_rule(Rule::new(Action::HoldBefore).nth(n));
            let mut dropped = false;
            for (number, todo) in (0..).zip(SEQUENCE) {
                let open = Cell::new(None);
                let held = {
                    let mut future = pin!(step(&image, &mut model, &open, number, *todo));
                    let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                    matches!(polled, Poll::Pending)
                };
                if held {
                    assert!(!std::mem::replace(&mut dropped, true), "{what}: only one request is held");
                    if let Some(change) = open.get() {
                        model.drop_request(change);
                    }
                }
            }
            disk.clear_rules();
            let at = model.now();
            block_on(image.drain()).unwrap();
            model.drained(at);
            judge(&*image, &mut model, &what);
            block_on(image.close()).unwrap();
            check_image(&disk.image(), true).unwrap_or_else(|error| panic!("{what}: {error}"));
            judge(&open(&disk).unwrap(), &mut model, &format!("{what}, reopened"));
            if !dropped {
                break;
            }
            n += 1;
        }
        assert!(n > 20, "{n} requests are too few to be this sequence");
    }
}

#[test]
fn the_sequence_needs_every_kind_of_request() {
    let disk = Setup { grows: false, ..Setup::small() }.disk();
    let image = shared(&disk, None);
    let mut model = Model::new(blkproof_block::nodes::memory::SparseBytes::new(Setup::small().size));
    for (number, what) in (0..).zip(SEQUENCE) {
        assert!(block_on(step(&image, &mut model, &Cell::new(None), number, *what)));
    }
    for kind in [OpKind::Write, OpKind::WriteZeroes, OpKind::Discard, OpKind::Flush] {
        assert!(disk.log().of_kind(kind).next().is_some(), "{kind:?}");
    }
}
