//! Seen: requests that waited for a resize to end went on with what they had seen before it. A read behind a resize
//! that was dropped found the sides of different lengths and called it a mismatch; a write behind a shrink that
//! succeeded made a reference that grows (a file) grow again, and TEST refuse; a resize behind a dropped one was undone
//! on one side when the first landed late.
//!
//! Why: sizes were looked at, and doubts about them cleared up, before the lock was awaited and not after. What must
//! hold: under its lock a request knows the size and both sides have it.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod common;

use std::rc::Rc;

use blkproof_block::testing::{Choices, DrainPolicy, Executor, JoinHandle, OpKind, TestDisk, hash};
use blkproof_block::{BlockDevice, Preallocation, Result, WriteFlags, ZeroFlags};
use blkproof_verify::{OnMismatch, Verify, VerifyOptions};
use common::{Bench, Seen, assert_same};

const SIZE: u64 = 8192;

/// Sends `first` and then `second` while a resize to the same size is under way, and lets `first` begin. `second` has
/// seen the device as it was before `first`, and waits for it. The disk in `held` keeps the resize `first` makes.
fn queue<A: 'static, B: 'static>(
    executor: &mut Executor,
    (verify, raw, test): (&Mirror, &TestDisk, &TestDisk),
    held: &TestDisk,
    first: impl Future<Output = A> + 'static,
    second: impl Future<Output = B> + 'static,
) -> (JoinHandle<A>, JoinHandle<B>) {
    test.hold_kind(OpKind::Resize);
    let before = verify.clone();
    let before = executor.spawn(async move { before.resize(SIZE, Preallocation::Off).await });
    executor.run_until_stalled();
    let first = executor.spawn(first);
    executor.run_until_stalled();
    let second = executor.spawn(second);
    executor.run_until_stalled();
    test.clear_rules();
    held.hold_kind(OpKind::Resize);
    for disk in [raw, test] {
        disk.release_all();
    }
    executor.run_until_stalled();
    before.take().unwrap().unwrap();
    assert!(!first.is_done() && !second.is_done());
    assert_eq!(held.parked().len(), 1);
    (first, second)
}

type Mirror = Rc<Verify<TestDisk, TestDisk>>;

#[derive(Clone, Copy, Debug)]
enum Waiting {
    Read,
    Write,
    Zeroes,
    Status,
}

async fn send(verify: Mirror, what: Waiting) -> Result<()> {
    match what {
        Waiting::Read => verify.read(6144, &mut [0; 1024]).await,
        Waiting::Write => verify.write(6144, &[1; 1024], WriteFlags::empty()).await,
        Waiting::Zeroes => verify.write_zeroes(6144, 1024, ZeroFlags::empty()).await,
        Waiting::Status => verify.block_status(6144, 1024).await.map(|_| ()),
    }
}

#[test]
fn a_request_behind_a_resize_that_was_dropped_sees_one_size() {
    for what in [Waiting::Read, Waiting::Write, Waiting::Zeroes, Waiting::Status] {
        let bench = Bench::new(SIZE, OnMismatch::Report);
        let mut executor = Executor::new();
        let verify = bench.verify.clone();
        let (resize, waiting) = queue(
            &mut executor,
            (&bench.verify, &bench.raw, &bench.test),
            &bench.test,
            async move { verify.resize(SIZE / 2, Preallocation::Off).await },
            send(bench.verify.clone(), what),
        );
        assert_eq!((bench.raw.image().size(), bench.test.image().size()), (SIZE / 2, SIZE));
        executor.cancel(resize.id());
        bench.test.clear_rules();
        executor.run_until_stalled();
        assert!(waiting.is_done(), "{what:?}");
        assert_eq!(bench.seen(), [], "{what:?}");
        assert_same(&bench);
    }
}

#[test]
fn a_request_behind_a_shrink_is_held_to_the_new_end() {
    for what in [Waiting::Read, Waiting::Write, Waiting::Zeroes, Waiting::Status] {
        let (raw, test) = (TestDisk::growing(SIZE), TestDisk::new(SIZE));
        let seen = Seen::default();
        let options = VerifyOptions::default().sink(seen.sink());
        let verify = Rc::new(Verify::new(raw.clone(), test.clone(), options).unwrap());
        let mut executor = Executor::new();
        let shrinking = verify.clone();
        let (resize, waiting) = queue(
            &mut executor,
            (&verify, &raw, &test),
            &test,
            async move { shrinking.resize(SIZE / 2, Preallocation::Off).await },
            send(verify.clone(), what),
        );
        test.clear_rules();
        test.release_all();
        executor.run_until_stalled();
        resize.take().unwrap().unwrap();
        waiting.take().unwrap().unwrap_err();
        assert_eq!(seen.take(), [], "{what:?}");
        assert_eq!((raw.image().size(), test.image().size()), (SIZE / 2, SIZE / 2), "{what:?}");
    }
}

#[test]
fn a_resize_behind_a_dropped_one_is_not_undone_by_it() {
    for held_on_raw in [true, false] {
        let bench = Bench::new(SIZE, OnMismatch::Report);
        let held = if held_on_raw { &bench.raw } else { &bench.test };
        let mut executor = Executor::new();
        let resize = |size| {
            let verify = bench.verify.clone();
            async move { verify.resize(size, Preallocation::Off).await }
        };
        let sides = (&bench.verify, &bench.raw, &bench.test);
        let (first, second) = queue(&mut executor, sides, held, resize(SIZE / 2), resize(SIZE + 512));
        executor.cancel(first.id());
        held.clear_rules();
        executor.run_until_stalled();
        second.take().unwrap().unwrap();
        for late in held.orphans() {
            held.land(late.id);
        }
        assert_same(&bench);
        assert_eq!(bench.test.image().size(), SIZE + 512);
        assert_eq!(bench.seen(), []);
    }
}

/// Clients that read, write and resize at random, some of them cut off.
#[test]
fn resizes_among_other_requests_are_no_mismatch() {
    for seed in 0..300 {
        let (raw, test) = (TestDisk::growing(SIZE), TestDisk::new(SIZE));
        let seen = Seen::default();
        let options = VerifyOptions::default().history(1 << 16).sink(seen.sink());
        let verify = Rc::new(Verify::new(raw.clone(), test.clone(), options).unwrap());
        raw.set_drain_policy(DrainPolicy::BySeed(hash(seed, 1)));
        test.set_drain_policy(DrainPolicy::BySeed(hash(seed, 2)));
        let mut executor = Executor::new();
        executor.attach(&raw);
        executor.attach(&test);
        let mut choices = Choices::new(seed);
        let mut tasks = Vec::new();
        for client in 0..5u64 {
            let verify = verify.clone();
            let mut choices = choices.stream(client);
            tasks.push(executor.spawn(async move {
                for step in 0..8u8 {
                    let fill = client as u8 * 16 + step + 1;
                    let at = choices.below(SIZE);
                    let len = 1 + choices.below((SIZE - at).min(3000));
                    let _ = match choices.below(8) {
                        0..3 => verify.write(at, &vec![fill; len as usize], WriteFlags::empty()).await,
                        3 => verify.resize(1 + choices.below(SIZE * 3 / 2), Preallocation::Off).await,
                        4 => verify.block_status(at, len).await.map(|_| ()),
                        5 => verify.discard(at, len).await,
                        _ => verify.read(at, &mut vec![0; len as usize]).await,
                    };
                }
            }));
        }
        while !executor.running().is_empty() {
            assert!(executor.step(&mut choices), "seed {seed}: {}", executor.deadlock());
            if choices.chance(30) {
                let victim = &tasks[choices.index(tasks.len())];
                executor.cancel(victim.id());
            }
        }
        let all = verify.clone();
        let read = async move {
            all.read(0, &mut [0]).await?;
            let mut buf = vec![0; all.info().size as usize];
            all.read(0, &mut buf).await
        };
        executor.block_on(seed, read).unwrap().unwrap();
        assert_eq!(seen.take(), [], "seed {seed}");
        let size = test.image().size();
        assert_eq!(raw.image().size(), size, "seed {seed}");
        assert!(raw.bytes(0, size as usize) == test.bytes(0, size as usize), "seed {seed}");
    }
}
