//! Dropping a mirrored request at any point leaves both sides in step, and so does any mix of overlapping requests,
//! faults and drops. Without the range lock it does not: the tests can tell.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation, clippy::type_complexity)]

mod common;

use std::rc::Rc;

use blkproof_block::testing::{Action, Choices, DiscardEffect, DrainPolicy, Executor, OpKind, TestDisk, hash};
use blkproof_block::{BlockDevice, Errno, IoError, Preallocation, Result, WriteFlags, ZeroFlags};
use blkproof_verify::{OnMismatch, Verify, VerifyOptions};
use common::{Bench, assert_same};

type Mirror = Rc<Verify<TestDisk, TestDisk>>;

const SIZE: u64 = 16 * 512;

/// The requests that are cut off.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Aligned,
    Unaligned,
    Inside,
    Zeroes,
    Discard,
    Shrink,
    Grow,
    /// A read that has to settle what a cancelled write left.
    Settling,
}

impl Cut {
    const ALL: [Self; 8] = [
        Self::Aligned,
        Self::Unaligned,
        Self::Inside,
        Self::Zeroes,
        Self::Discard,
        Self::Shrink,
        Self::Grow,
        Self::Settling,
    ];

    async fn send(self, verify: Mirror) -> Result<()> {
        let data = [0xbb; 2048];
        match self {
            Self::Aligned => verify.write(1024, &data, WriteFlags::empty()).await,
            Self::Unaligned => verify.write(1000, &data, WriteFlags::empty()).await,
            Self::Inside => verify.write(1100, &data[..50], WriteFlags::FUA).await,
            Self::Zeroes => verify.write_zeroes(1024, 2048, ZeroFlags::empty()).await,
            Self::Discard => verify.discard(1024, 2048).await,
            Self::Shrink => verify.resize(SIZE / 2, Preallocation::Off).await,
            Self::Grow => verify.resize(SIZE * 2, Preallocation::Off).await,
            Self::Settling => verify.read(512, &mut [0; 3000]).await,
        }
    }

    /// What a byte at `at` may read as afterwards.
    fn allowed(self, at: usize) -> &'static [u8] {
        match self {
            Self::Aligned if (1024..3072).contains(&at) => &[0xaa, 0xbb],
            Self::Unaligned | Self::Settling if (1000..3048).contains(&at) => &[0xaa, 0xbb],
            Self::Inside if (1100..1150).contains(&at) => &[0xaa, 0xbb],
            Self::Zeroes | Self::Discard if (1024..3072).contains(&at) => &[0xaa, 0],
            _ if at >= SIZE as usize => &[0],
            _ => &[0xaa],
        }
    }
}

fn bench(seed: u64) -> (Bench, Executor, Choices) {
    let bench = Bench::new(SIZE, OnMismatch::Report);
    for (disk, salt) in [(&bench.raw, 1), (&bench.test, 2)] {
        disk.set_drain_policy(DrainPolicy::BySeed(hash(seed, salt)));
        disk.set_discard_effect(DiscardEffect::Mixed(hash(seed, salt + 2)));
    }
    let mut executor = Executor::new();
    executor.attach(&bench.raw);
    executor.attach(&bench.test);
    (bench, executor, Choices::new(seed))
}

/// Runs `future` for at most `steps` steps, then drops it. Whether it was dropped.
fn cut_off(
    executor: &mut Executor,
    choices: &mut Choices,
    steps: u64,
    future: impl Future<Output = Result<()>> + 'static,
) -> bool {
    let task = executor.spawn(future);
    for _ in 0..steps {
        if !executor.is_running(task.id()) {
            break;
        }
        assert!(executor.step(choices), "{}", executor.deadlock());
    }
    let dropped = executor.is_running(task.id());
    executor.cancel(task.id());
    dropped
}

fn read_all(executor: &mut Executor, seed: u64, verify: &Mirror) -> Vec<u8> {
    let verify = verify.clone();
    let read = async move {
        verify.read(0, &mut [0]).await?; // the size may be in doubt as well
        let mut buf = vec![0; verify.info().size as usize];
        verify.read(0, &mut buf).await.map(|()| buf)
    };
    executor.block_on(seed, read).unwrap().unwrap()
}

#[test]
fn dropping_at_every_await_point_leaves_both_sides_in_step() {
    for cut in Cut::ALL {
        let mut points = 0;
        for seed in 0..30 {
            for steps in 0.. {
                let case = format!("{cut:?}, seed {seed}, dropped after {steps} steps");
                let (bench, mut executor, mut choices) = bench(seed);
                let verify = bench.verify.clone();
                executor
                    .block_on(seed, async move { verify.write(0, &[0xaa; SIZE as usize], WriteFlags::empty()).await })
                    .unwrap()
                    .unwrap();
                if matches!(cut, Cut::Settling) {
                    let cut_steps = 1 + choices.below(3);
                    cut_off(&mut executor, &mut choices, cut_steps, Cut::Unaligned.send(bench.verify.clone()));
                }
                let dropped = cut_off(&mut executor, &mut choices, steps, cut.send(bench.verify.clone()));
                points = points.max(steps);

                // The first reader pins every byte, whatever may still be on its way.
                let first = read_all(&mut executor, seed, &bench.verify);
                for (at, byte) in first.iter().enumerate() {
                    let allowed = if dropped { cut.allowed(at) } else { &[0xaa, 0xbb, 0] };
                    assert!(allowed.contains(byte), "{case}: {byte:#x} at {at}");
                }
                let second = read_all(&mut executor, seed + 1, &bench.verify);
                assert!(first == second, "{case}: pinned");
                assert_same(&bench);
                assert_eq!(bench.seen(), [], "{case}");
                if !dropped {
                    break;
                }
            }
        }
        assert!(points >= 4, "{cut:?} was dropped at {points} points only");
    }
}

#[test]
fn a_write_that_fails_on_one_side_is_settled_by_what_test_holds() {
    let table = [
        (Action::FailBefore(IoError::new(Errno::IO)), Action::FailBefore(IoError::new(Errno::IO)), false),
        (Action::DoThenFail(IoError::new(Errno::IO)), Action::FailBefore(IoError::new(Errno::IO)), false),
        (part_then_fail(1024), part_then_fail(512), false),
        (part_then_fail(512), Action::DoThenFail(IoError::new(Errno::IO)), false),
        (Action::Pass, part_then_fail(512), true),
        (Action::Pass, Action::DoThenFail(IoError::new(Errno::NOSPC)), true),
        (part_then_fail(512), Action::Pass, true),
    ];
    for (on_test, on_raw, told) in table {
        for at in [0u64, 512, 100] {
            let case = format!("test {on_test:?}, raw {on_raw:?} at {at}");
            let bench = Bench::new(SIZE, OnMismatch::Report);
            blkproof_block::testing::block_on(async {
                bench.verify.write(0, &[0xaa; SIZE as usize], WriteFlags::empty()).await.unwrap();
                let whole_sectors = |action: &Action| match action {
                    Action::PartThenFail { bytes, .. } => part_then_fail(bytes - at % 512),
                    other => other.clone(),
                };
                let rule = |action: &Action| {
                    blkproof_block::testing::Rule::new(whole_sectors(action)).kind(OpKind::Write).nth(1)
                };
                bench.test.add_rule(rule(&on_test));
                bench.raw.add_rule(rule(&on_raw));
                let _ = bench.verify.write(at, &[0xbb; 2048], WriteFlags::empty()).await;
                assert_eq!(bench.seen().len(), usize::from(told), "{case}");
                let want = bench.test.bytes(0, SIZE as usize);
                let mut got = [0; SIZE as usize];
                bench.verify.read(0, &mut got).await.unwrap();
                assert!(got == *want, "{case}");
                assert_same(&bench);
                assert_eq!(bench.seen(), [], "{case}");
            });
        }
    }
}

fn part_then_fail(bytes: u64) -> Action {
    Action::PartThenFail { bytes, error: IoError::new(Errno::IO) }
}

#[test]
fn after_a_failed_write_a_third_value_is_a_mismatch() {
    // What TEST makes of the failed write, and whether TEST itself had said it succeeded.
    let table: [(&str, u8, bool, bool); 5] = [
        ("old", 0xaa, false, true),
        ("new", 0xbb, false, true),
        ("third", 0xcc, false, false),
        ("new, promised", 0xbb, true, true),
        ("old, though promised new", 0xaa, true, false),
    ];
    for (name, fill, promised, fine) in table {
        let bench = Bench::new(SIZE, OnMismatch::Report);
        blkproof_block::testing::block_on(async {
            bench.verify.write(0, &[0xaa; SIZE as usize], WriteFlags::empty()).await.unwrap();
            bench.raw.fail_nth(1, IoError::new(Errno::IO));
            if !promised {
                bench.test.fail_nth(1, IoError::new(Errno::IO));
            }
            let _ = bench.verify.write(512, &[0xbb; 512], WriteFlags::empty()).await;
            bench.seen();
            bench.raw.tamper(|bytes| bytes.write(512, &[if fill == 0xaa { 0xbb } else { 0xaa }; 512]));
            bench.test.tamper(|bytes| bytes.write(512, &[fill; 512]));
            bench.verify.read(0, &mut [0; 4096]).await.unwrap();
        });
        assert_eq!(bench.seen().is_empty(), fine, "{name}");
    }
}

#[test]
fn a_write_to_a_part_of_an_unsettled_sector_leaves_the_rest_of_it_checked() {
    for spoil in [false, true] {
        let bench = Bench::new(SIZE, OnMismatch::Report);
        blkproof_block::testing::block_on(async {
            bench.verify.write(0, &[0xaa; SIZE as usize], WriteFlags::empty()).await.unwrap();
            for disk in [&bench.raw, &bench.test] {
                disk.fail_nth(1, IoError::new(Errno::IO));
            }
            bench.verify.write(512, &[0xbb; 512], WriteFlags::empty()).await.unwrap_err();
            bench.verify.write(600, &[0xcc; 10], WriteFlags::empty()).await.unwrap();
            if spoil {
                bench.test.tamper(|bytes| bytes.write(700, &[0xdd]));
            }
            bench.verify.read(0, &mut [0; 4096]).await.unwrap();
        });
        assert_eq!(
            bench.seen().iter().filter_map(|m| m.first_bad()).collect::<Vec<_>>(),
            if spoil { vec![700] } else { vec![] }
        );
        assert_eq!(bench.verify.counters().bytes_unverified, 0);
    }
}

#[test]
fn a_write_after_a_dropped_one_is_not_undone_by_it() {
    for seed in 0..20 {
        let (bench, mut executor, mut choices) = bench(seed);
        let verify = bench.verify.clone();
        cut_off(
            &mut executor,
            &mut choices,
            1,
            async move { verify.write(512, &[1; 1024], WriteFlags::empty()).await },
        );
        let verify = bench.verify.clone();
        executor
            .block_on(seed, async move { verify.write(0, &[2; 2048], WriteFlags::empty()).await })
            .unwrap()
            .unwrap();
        for disk in [&bench.raw, &bench.test] {
            assert!(disk.orphans().is_empty(), "drained before the write");
            assert_eq!(disk.bytes(0, 2048), [2; 2048]);
        }
    }
}

#[test]
fn a_copy_to_the_reference_that_was_cut_off_does_not_undo_a_later_write() {
    let bench = Bench::new(SIZE, OnMismatch::Report);
    let block_on = blkproof_block::testing::block_on::<Result<()>>;
    bench.raw.fail_nth(1, IoError::new(Errno::IO));
    block_on(bench.verify.write(512, &[1; 1024], WriteFlags::empty())).unwrap();
    bench.raw.clear_rules();
    bench.raw.hold_kind(OpKind::Write);
    let mut executor = Executor::new();
    let verify = bench.verify.clone();
    let reader = executor.spawn(async move { verify.read(0, &mut [0; 2048]).await });
    executor.run_until_stalled();
    assert_eq!(bench.raw.parked().len(), 1, "the copy is on its way");
    executor.cancel(reader.id());
    assert_eq!(bench.raw.orphans().len(), 1);
    bench.raw.clear_rules();
    block_on(bench.verify.write(512, &[2; 1024], WriteFlags::empty())).unwrap();
    for late in bench.raw.orphans() {
        bench.raw.land(late.id);
    }
    assert_same(&bench);
}

#[test]
fn closing_brings_the_sides_into_step() {
    for seed in 0..20 {
        let (bench, mut executor, mut choices) = bench(seed);
        let verify = bench.verify.clone();
        let before = async move {
            verify.write(0, &[1; 4096], WriteFlags::empty()).await?;
            verify.discard(512, 2000).await
        };
        executor.block_on(seed, before).unwrap().unwrap();
        let verify = bench.verify.clone();
        cut_off(
            &mut executor,
            &mut choices,
            2,
            async move { verify.write(3000, &[2; 1024], WriteFlags::empty()).await },
        );
        let verify = bench.verify.clone();
        executor.block_on(seed, async move { verify.close().await }).unwrap().unwrap();
        assert_same(&bench);
        assert_eq!(bench.seen(), []);
    }
}

/// Clients that write, zero, discard and read a few sectors at random, some of them cut off, some requests failing the
/// same way on both sides; then everything is read. Returns what went wrong.
fn storm(seed: u64, options: VerifyOptions, faults: bool, drops: bool) -> Option<String> {
    let bench = Bench::with(SIZE, options);
    let mut choices = Choices::new(seed);
    for (disk, salt) in [(&bench.raw, 1), (&bench.test, 2)] {
        disk.set_drain_policy(DrainPolicy::BySeed(hash(seed, salt)));
        disk.set_discard_effect(DiscardEffect::Mixed(hash(seed, salt + 2)));
        if faults {
            // Which write fails depends on its bytes, so it is the same one on both sides; how far it got is not.
            let salt = salt + 4;
            disk.script(move |op| {
                let Some(data) = op.data.as_ref().filter(|_| op.kind == OpKind::Write) else { return Action::Pass };
                let what = hash(seed, hash(op.range.start, data.first().copied().unwrap_or(0).into()));
                match what % 8 {
                    0 => {
                        // Sector by sector done or not done: it ends where a sector does.
                        let end = (op.range.start + hash(what, salt) % (op.range.len() + 1)) / 512 * 512;
                        part_then_fail(end.saturating_sub(op.range.start))
                    }
                    _ => Action::Pass,
                }
            });
        }
    }
    let mut executor = Executor::new();
    executor.attach(&bench.raw);
    executor.attach(&bench.test);
    let mut tasks = Vec::new();
    for client in 0..6u64 {
        let verify = bench.verify.client("storm");
        let mut choices = choices.stream(client);
        tasks.push(executor.spawn(async move {
            for step in 0..8u8 {
                let fill = (client as u8 + 1) * 16 + step;
                let at = choices.below(SIZE);
                let len = 1 + choices.below((SIZE - at).min(3000));
                let (at, len) = if choices.chance(600) { (at / 512 * 512, len.div_ceil(512) * 512) } else { (at, len) };
                let len = len.min(SIZE - at);
                let _ = match choices.below(10) {
                    0..5 => verify.write(at, &vec![fill; len as usize], WriteFlags::empty()).await,
                    5 => verify.write_zeroes(at, len, ZeroFlags::empty()).await,
                    6 => verify.discard(at, len).await,
                    7 => verify.block_status(at, len).await.map(|_| ()),
                    _ => verify.read(at, &mut vec![0; len as usize]).await,
                };
            }
        }));
    }
    while !executor.running().is_empty() {
        if !executor.step(&mut choices) {
            return Some(executor.deadlock().to_string());
        }
        if drops && choices.chance(15) {
            let victim = &tasks[choices.index(tasks.len())];
            executor.cancel(victim.id());
        }
    }
    for disk in [&bench.raw, &bench.test] {
        disk.clear_rules();
    }
    let verify = bench.verify.clone();
    let all = async move { verify.read(0, &mut [0; SIZE as usize]).await };
    if let Err(stuck) = executor.block_on(seed, all) {
        return Some(stuck.to_string());
    }
    let seen = bench.seen();
    if let Some(mismatch) = seen.first() {
        return Some(mismatch.to_string());
    }
    let differ = bench.raw.image() != bench.test.image()
        && bench.raw.bytes(0, SIZE as usize) != bench.test.bytes(0, SIZE as usize);
    differ.then(|| "the sides differ after everything was read".to_owned())
}

#[test]
fn random_overlapping_requests_keep_both_sides_the_same() {
    for (faults, drops) in [(false, false), (true, false), (false, true), (true, true)] {
        for seed in 0..150 {
            let wrong = storm(seed, VerifyOptions::default(), faults, drops);
            assert_eq!(wrong, None, "seed {seed}, faults: {faults}, drops: {drops}");
        }
    }
}

#[test]
fn without_the_range_lock_the_same_requests_go_wrong() {
    let found =
        (0..20).filter(|&seed| storm(seed, VerifyOptions::default().without_range_lock(), false, false).is_some());
    assert!(found.count() > 10, "the test has to see what the lock prevents");
}
