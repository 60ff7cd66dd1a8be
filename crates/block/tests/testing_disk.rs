//! The scripted disk and the executor: hold, fail, drop, land; deadlocks and busy loops are named.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use blkproof_block::testing::{Action, DiscardEffect, Executor, OpKind, Rule, Stage, Step, Stuck, TestDisk, block_on};
use blkproof_block::units::ByteRange;
use blkproof_block::{BlockDevice, Errno, Event, IoError, Limits, WriteFlags, ZeroFlags};

fn error() -> IoError {
    IoError::new(Errno::NOSPC)
}

fn write(disk: &TestDisk, at: u64, value: u8, len: usize) -> Result<(), IoError> {
    block_on(disk.write(at, &vec![value; len], WriteFlags::empty()))
}

#[test]
fn actions_do_what_they_say() {
    let table = [
        (Action::Pass, true, [1, 1]),
        (Action::FailBefore(error()), false, [0, 0]),
        (Action::DoThenFail(error()), false, [1, 1]),
        (Action::PartThenFail { bytes: 512, error: error() }, false, [1, 0]),
    ];
    for (action, ok, want) in table {
        let disk = TestDisk::new(1024);
        disk.script({
            let action = action.clone();
            move |_| action.clone()
        });
        let result = write(&disk, 0, 1, 1024);
        assert_eq!(result.is_ok(), ok, "{action:?}");
        assert_eq!([disk.bytes(0, 1)[0], disk.bytes(512, 1)[0]], want, "{action:?}");
        assert_eq!(disk.faults(), u64::from(!ok));
        if let Err(error) = result {
            assert_eq!(error.errno, Errno::NOSPC);
            assert_eq!(error.injected_by.unwrap().to_string(), "testing");
        }
    }
}

#[test]
fn rules_count_and_choose() {
    let fails = |rule: Rule| {
        let disk = TestDisk::new(4096);
        disk.add_rule(rule);
        let mut failed = Vec::new();
        for number in 0..4 {
            block_on(disk.event(Event::ClusterAlloc));
            if write(&disk, number * 512, 1, 512).is_err() {
                failed.push(number * 2);
            }
            if block_on(disk.flush()).is_err() {
                failed.push(number * 2 + 1);
            }
            block_on(disk.drain()).unwrap();
        }
        failed
    };
    let rule = || Rule::new(Action::FailBefore(error()));
    let table = [
        ("every", rule(), vec![0, 1, 2, 3, 4, 5, 6, 7]),
        ("third", rule().nth(3), vec![2]),
        ("from the sixth", rule().from(6), vec![5, 6, 7]),
        ("second flush", rule().kind(OpKind::Flush).nth(2), vec![3]),
        ("two writes", rule().kind(OpKind::Write).times(2), vec![0, 2]),
        ("range", rule().range(ByteRange { start: 1000, end: 1025 }), vec![2, 4]),
        ("reads", rule().kind(OpKind::Read), vec![]),
    ];
    for (name, rule, want) in table {
        assert_eq!(fails(rule), want, "{name}");
    }
}

#[test]
fn a_held_request_waits_for_its_release() {
    for (action, stage, landed) in
        [(Action::HoldBefore, Stage::BeforeEffect, 0), (Action::HoldAfter, Stage::BeforeCompletion, 1)]
    {
        let disk = TestDisk::new(512);
        disk.add_rule(Rule::new(action.clone()).nth(1));
        let mut executor = Executor::new();
        let handle = disk.clone();
        let task = executor.spawn(async move { handle.write(0, &[1; 512], WriteFlags::empty()).await });
        executor.run_until_stalled();
        let id = disk.parked()[0].id;
        assert_eq!((disk.stage(id), disk.bytes(0, 1)[0], task.is_done()), (Some(stage), landed, false));
        disk.release(id);
        executor.run_until_stalled();
        assert_eq!((disk.bytes(0, 1)[0], task.take()), (1, Some(Ok(()))), "{action:?}");
        assert!(disk.parked().is_empty());
    }
}

#[test]
fn a_parked_request_can_be_failed() {
    for (action, landed) in [(Action::HoldBefore, 0), (Action::HoldAfter, 1)] {
        let disk = TestDisk::new(512);
        disk.add_rule(Rule::new(action));
        let mut executor = Executor::new();
        let handle = disk.clone();
        let task = executor.spawn(async move { handle.write(0, &[1; 512], WriteFlags::empty()).await });
        executor.run_until_stalled();
        disk.fail(disk.parked()[0].id, error());
        executor.run_until_stalled();
        assert_eq!(task.take().unwrap().unwrap_err().errno, Errno::NOSPC);
        assert_eq!(disk.bytes(0, 1)[0], landed);
    }
}

#[test]
fn a_drop_leaves_an_orphan_only_of_a_write_before_its_effect() {
    let table = [
        (OpKind::Write, Action::HoldBefore, 1),
        (OpKind::Write, Action::HoldAfter, 0),
        (OpKind::WriteZeroes, Action::HoldBefore, 1),
        (OpKind::Discard, Action::HoldBefore, 1),
        (OpKind::Resize, Action::HoldBefore, 1),
        (OpKind::Read, Action::HoldBefore, 0),
        (OpKind::Flush, Action::HoldBefore, 0),
    ];
    for (kind, action, orphans) in table {
        let disk = TestDisk::new(512);
        disk.add_rule(Rule::new(action.clone()));
        let mut executor = Executor::new();
        let handle = disk.clone();
        let task = executor.spawn(async move {
            match kind {
                OpKind::Write => handle.write(0, &[1; 512], WriteFlags::empty()).await,
                OpKind::WriteZeroes => handle.write_zeroes(0, 512, ZeroFlags::empty()).await,
                OpKind::Discard => handle.discard(0, 512).await,
                OpKind::Resize => handle.resize(1024, blkproof_block::Preallocation::Off).await,
                OpKind::Read => handle.read(0, &mut [0; 512]).await,
                _ => handle.flush().await,
            }
        });
        executor.run_until_stalled();
        executor.cancel(task.id());
        assert_eq!(disk.orphans().len(), orphans, "{kind:?} {action:?}");
        assert!(disk.parked().is_empty());
        assert!(disk.log().entries().iter().any(|entry| entry.step == Step::Drop));
        for orphan in disk.orphans() {
            disk.land(orphan.id);
        }
        assert!(disk.orphans().is_empty());
    }
}

#[test]
fn a_script_may_use_the_disk_it_is_asked_about() {
    let disk = TestDisk::new(512);
    let handle = disk.clone();
    disk.script(move |op| {
        // The content just before a flush, as a crash consistency test would want it.
        if op.kind == OpKind::Flush && handle.bytes(0, 1)[0] == 1 {
            return Action::FailBefore(error());
        }
        Action::Pass
    });
    block_on(disk.flush()).unwrap();
    write(&disk, 0, 1, 512).unwrap();
    block_on(disk.flush()).unwrap_err();
}

#[test]
fn an_event_can_be_a_breakpoint() {
    let disk = TestDisk::new(512);
    disk.add_rule(Rule::new(Action::HoldBefore).event(Event::L2Update));
    let mut executor = Executor::new();
    executor.attach(&disk);
    let handle = disk.clone();
    let task = executor.spawn_named("updater", async move {
        handle.event(Event::L2Load).await;
        handle.event(Event::L2Update).await;
    });
    let stuck = executor.run(0).unwrap_err();
    assert_eq!(stuck.to_string(), "deadlock: waiting: updater; held in disks: #1 Event l2_update");
    disk.release_all();
    executor.run(0).unwrap();
    assert!(task.is_done() || !executor.is_running(task.id()));
    let events: Vec<_> = disk.log().events().map(|(_, event)| event).collect();
    assert_eq!(events, [Event::L2Load, Event::L2Update]);
}

#[test]
fn a_task_that_waits_for_nothing_and_one_that_never_ends_are_named() {
    let mut executor = Executor::new();
    executor.spawn_named("lost", std::future::pending::<()>());
    let Err(Stuck::Deadlock { tasks, parked }) = executor.run(1) else { panic!() };
    assert_eq!((tasks, parked), (vec!["lost".to_owned()], vec![]));
}

#[test]
fn seeds_reach_every_interleaving_of_two_overlapping_writes() {
    let seen = Rc::new(RefCell::new(BTreeSet::new()));
    for seed in 0..200 {
        let disk = TestDisk::new(1024);
        let mut executor = Executor::new();
        executor.attach(&disk);
        let order = Rc::new(RefCell::new(Vec::new()));
        for value in [1, 2] {
            let (disk, order) = (disk.clone(), order.clone());
            executor.spawn(async move {
                disk.write(0, &[value; 512], WriteFlags::empty()).await.unwrap();
                order.borrow_mut().push(value);
            });
        }
        executor.run(seed).unwrap();
        let order = order.borrow().clone();
        seen.borrow_mut().insert((disk.bytes(0, 1)[0], order));
    }
    assert_eq!(seen.borrow().len(), 4, "who wins and who hears first are independent: {:?}", seen.borrow());
}

#[test]
fn the_same_seed_makes_the_same_choices() {
    let run = |seed| {
        let disk = TestDisk::new(4096);
        let mut executor = Executor::new();
        executor.attach(&disk);
        for value in 0..6_u8 {
            let disk = disk.clone();
            executor.spawn(async move {
                disk.write(u64::from(value) * 512, &[value; 512], WriteFlags::empty()).await.unwrap();
                disk.flush().await.unwrap();
            });
        }
        executor.run(seed).unwrap();
        (executor.trace(), disk.log().fingerprint(), disk.log().to_string())
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3).2, run(4).2);
}

#[test]
fn discards_may_be_patchy() {
    let count = |effect| {
        let disk = TestDisk::new(64 * 512);
        disk.set_discard_effect(effect);
        write(&disk, 0, 1, 64 * 512).unwrap();
        block_on(disk.discard(100, 62 * 512)).unwrap();
        disk.bytes(0, 64 * 512).iter().filter(|&&byte| byte == 0).count()
    };
    assert_eq!(count(DiscardEffect::Zero), 62 * 512);
    assert_eq!(count(DiscardEffect::Keep), 0);
    assert!((10 * 512..50 * 512).contains(&count(DiscardEffect::Mixed(1))));
}

#[test]
fn the_end_of_a_disk_holds_and_that_of_a_growing_one_gives() {
    for grows in [false, true] {
        let disk = if grows { TestDisk::growing(700) } else { TestDisk::new(700) };
        assert_eq!(write(&disk, 600, 1, 200).is_ok(), grows);
        assert_eq!(block_on(disk.write_zeroes(1000, 24, ZeroFlags::empty())).is_ok(), grows);
        assert_eq!(disk.info().size, if grows { 1024 } else { 700 });
        assert!(block_on(disk.read(1000, &mut [0; 25])).is_err());
        assert!(block_on(disk.discard(1000, 25)).is_err());
        assert_eq!(disk.faults(), 0, "a refusal is no injected fault");
        let log = disk.log();
        assert_eq!(log.of_kind(OpKind::Write).next().unwrap().refused, !grows);
    }
}

/// What `Limits` allows at the end of a device whose size is odd, and nothing else: row by row, on a disk of 1000
/// bytes.
#[test]
fn a_breach_of_limits_is_a_bug_above() {
    use OpKind::{Discard, Read, Write, WriteZeroes};
    // Kind, offset, length; whether a disk may be asked for it if it does not grow, and if it does.
    let table = [
        (Write, 0, 512, [true, true]),
        (Write, 0, 1000, [true, true]),
        (Write, 512, 488, [true, true]),
        (Write, 512, 487, [false, false]),
        (Write, 1, 512, [false, false]),
        (Write, 1, 999, [false, false]),
        (Write, 512, 512, [true, true]),
        (Write, 512, 489, [false, true]),
        (Write, 1024, 1, [false, true]),
        (Write, 1025, 511, [false, false]),
        (Read, 512, 488, [true, true]),
        (Read, 512, 100, [false, false]),
        (Read, 500, 500, [false, false]),
        (WriteZeroes, 512, 488, [true, true]),
        (WriteZeroes, 512, 100, [false, false]),
        (WriteZeroes, 512, 1000, [false, true]),
        (Discard, 0, 1000, [true, true]),
        (Discard, 0, 999, [false, false]),
    ];
    for (kind, at, len, allowed) in table {
        for (grows, allowed) in [false, true].into_iter().zip(allowed) {
            let limits = Limits { alignment: 512, zero_alignment: 512, discard_alignment: 512, ..Limits::NONE };
            let disk = if grows { TestDisk::growing(1000) } else { TestDisk::new(1000) }.with_limits(limits);
            let mut buf = vec![0; len];
            let ask = || match kind {
                Read => drop(block_on(disk.read(at, &mut buf))),
                Write => drop(write(&disk, at, 1, len)),
                WriteZeroes => drop(block_on(disk.write_zeroes(at, len as u64, ZeroFlags::empty()))),
                _ => drop(block_on(disk.discard(at, len as u64))),
            };
            let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(ask));
            let said = asked.map_err(|panic| panic.downcast::<String>().map_or_else(|_| String::new(), |text| *text));
            match said {
                Ok(()) => assert!(allowed, "{kind:?} {at} {len}, grows: {grows}: not noticed"),
                Err(said) => {
                    assert!(!allowed, "{kind:?} {at} {len}, grows: {grows}: {said}");
                    assert!(said.contains("is not aligned to 512 bytes"), "{said}");
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "is not at a multiple of 4096 bytes in memory")]
fn a_buffer_in_the_wrong_place_is_a_bug_above() {
    let disk = TestDisk::new(4096).with_limits(Limits { memory_alignment: 4096, ..Limits::NONE });
    let buf = vec![0; 512 + 1];
    let odd = buf.as_ptr().addr().is_multiple_of(2);
    let _ = block_on(disk.write(0, &buf[usize::from(odd)..][..512], WriteFlags::empty()));
}

#[test]
fn a_failed_read_leaves_garbage_behind() {
    let disk = TestDisk::new(1024);
    write(&disk, 0, 1, 1024).unwrap();
    disk.add_rule(Rule::new(Action::PartThenFail { bytes: 512, error: error() }).kind(OpKind::Read));
    let mut buf = [0; 1024];
    block_on(disk.read(0, &mut buf)).unwrap_err();
    assert_eq!((buf[511], buf[512]), (1, 0xee));
}
