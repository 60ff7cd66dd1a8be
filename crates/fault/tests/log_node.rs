//! The filter `blklogwrites`: what it logs, in which order, and what it does when the disk or the log fails.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod log_common;

use std::cell::RefCell;
use std::rc::Rc;

use blkproof_block::align::Aligned;
use blkproof_block::testing::workload::{self, Config};
use blkproof_block::testing::{
    Action, DrainPolicy, Executor, OpKind, Rule, Step, TestDisk, block_on, crash_states, interesting_points,
};
use blkproof_block::{BlockDevice, Errno, IoError, Node, Preallocation, WriteFlags, ZeroFlags};
use blkproof_fault::log_writes::format::{Flags, Superblock};
use blkproof_fault::log_writes::node::{LogWrites, MarkError};
use blkproof_fault::log_writes::read::{Extent, Log};
use blkproof_fault::log_writes::replay::Until;
use log_common::{content, device, entries, how, lines, node, replayed};

const SIZE: u64 = 64 << 10;

struct Rig {
    disk: TestDisk,
    log: TestDisk,
    node: Rc<LogWrites>,
}

fn rig(details: bool) -> Rig {
    rig_with(TestDisk::new(SIZE), TestDisk::growing(0), 512, details)
}

fn rig_with(disk: TestDisk, log: TestDisk, sector: u64, details: bool) -> Rig {
    let node = Rc::new(node(Node::new(disk.clone()), Node::new(log.clone()), how(sector, details)));
    Rig { disk, log, node }
}

impl Rig {
    fn lines(&self) -> Vec<String> {
        lines(&entries(&device(&self.log.image()), Extent::All))
    }
}

#[test]
fn every_operation_has_its_entry() {
    for details in [false, true] {
        let rig = rig(details);
        block_on(async {
            let node = &rig.node;
            node.write(0, &[1; 1024], WriteFlags::empty()).await.unwrap();
            node.write(512, &[2; 512], WriteFlags::FUA).await.unwrap();
            node.flush().await.unwrap();
            node.write_zeroes(4096, 8192, ZeroFlags::MAY_UNMAP).await.unwrap();
            node.write_zeroes(0, 512, ZeroFlags::FUA).await.unwrap();
            node.discard(8192, 4096).await.unwrap();
            node.log().mark("half").await.unwrap();
            node.read(0, &mut [0; 512]).await.unwrap();
            node.write(0, &[], WriteFlags::empty()).await.unwrap();
            node.close().await.unwrap();
        });
        let want = [
            "write 0x0..0x400",
            "write 0x200..0x400 FUA",
            "flush",
            "write 0x1000..0x3000",
            "write 0x0..0x200 FUA",
            "discard 0x2000..0x3000",
            "mark 'half'",
        ];
        assert_eq!(rig.lines(), want);
        let all = entries(&device(&rig.log.image()), Extent::Counted);
        assert_eq!(all.len(), want.len(), "the superblock counts them all after close");
        assert!(all.iter().all(|entry| entry.details.is_some() == details));
        assert_eq!(replayed(&device(&rig.log.image()), Extent::Counted, &Until::End, SIZE), content(&rig.disk.image()));
    }
}

#[test]
fn without_details_the_padding_is_zero_and_the_file_ends_with_the_last_entry() {
    let rig = rig(false);
    block_on(async {
        rig.node.write(1024, &[7; 512], WriteFlags::empty()).await.unwrap();
        rig.node.flush().await.unwrap();
        rig.node.close().await.unwrap();
    });
    let log = content(&rig.log.image());
    let mut want = Superblock { entries: 2, sector: how(512, false).sector }.encode();
    let header = |words: [u64; 4]| {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(512, 0);
        bytes
    };
    want.extend(header([2, 1, 0, 0]));
    want.extend([7; 512]);
    want.extend(header([0, 0, 1, 0]));
    assert!(log == want, "{} bytes, wanted {}", log.len(), want.len());
}

#[test]
fn a_disk_that_fails_leaves_in_the_log_what_it_did() {
    let fail = || IoError::new(Errno::IO);
    let table: [(Action, &[&str]); 3] = [
        (Action::FailBefore(fail()), &[]),
        (Action::DoThenFail(fail()), &["write 0x0..0x800"]),
        (Action::PartThenFail { bytes: 1024, error: fail() }, &["write 0x0..0x400"]),
    ];
    for (action, want) in table {
        let rig = rig(false);
        block_on(rig.node.write(0, &[9; 512], WriteFlags::empty())).unwrap();
        rig.disk.add_rule(Rule::new(action.clone()).kind(OpKind::Write).nth(1));
        let error = block_on(rig.node.write(0, &[1; 2048], WriteFlags::empty())).unwrap_err();
        assert_eq!(error.errno, Errno::IO);
        block_on(rig.node.close()).unwrap();
        let lines = rig.lines();
        assert_eq!(lines[1..], *want, "{action:?}");
        assert_eq!(replayed(&device(&rig.log.image()), Extent::All, &Until::End, SIZE), content(&rig.disk.image()));
    }
}

#[test]
fn details_name_what_failed() {
    let rig = rig(true);
    rig.disk.add_rule(Rule::new(Action::FailBefore(IoError::new(Errno::NOSPC))).kind(OpKind::Write).nth(1));
    block_on(rig.node.write(512, &[1; 512], WriteFlags::empty())).unwrap_err();
    assert_eq!(rig.lines(), ["mark 'blkproof: write of 512 bytes at 512 failed with errno 28'"]);
}

#[test]
fn a_flush_that_fails_is_no_entry_and_a_refused_request_neither() {
    let rig = rig(false);
    rig.disk.add_rule(Rule::new(Action::FailBefore(IoError::new(Errno::IO))).kind(OpKind::Flush).nth(1));
    rig.disk.add_rule(Rule::new(Action::FailBefore(IoError::unsupported())).kind(OpKind::WriteZeroes).nth(1));
    block_on(async {
        rig.node.flush().await.unwrap_err();
        rig.node.write_zeroes(0, 512, ZeroFlags::NO_FALLBACK).await.unwrap_err();
        assert_eq!(rig.node.write(7, &[1], WriteFlags::empty()).await.unwrap_err().errno, Errno::INVAL);
    });
    assert!(rig.lines().is_empty());
}

#[test]
fn a_flush_says_what_it_covers() {
    // W1 completes, a flush is sent, W2 completes, the flush completes: W1 is durable, W2 is not (CM 4.6).
    let rig = rig(true);
    let mut executor = Executor::new();
    block_on(rig.node.write(0, &[1; 512], WriteFlags::empty())).unwrap();
    rig.disk.hold_kind(OpKind::Flush);
    let node = rig.node.clone();
    let flush = executor.spawn(async move { node.flush().await });
    executor.run_until_stalled();
    let node = rig.node.clone();
    executor.spawn(async move { node.write(512, &[2; 512], WriteFlags::empty()).await });
    executor.run_until_stalled();
    rig.disk.release_all();
    executor.run_until_stalled();
    assert_eq!(flush.take().unwrap(), Ok(()));
    let all = entries(&device(&rig.log.image()), Extent::All);
    assert_eq!(lines(&all), ["write 0x0..0x200", "write 0x200..0x400", "flush"]);
    assert_eq!(all.iter().map(|entry| entry.details.unwrap().submitted).collect::<Vec<_>>(), [0, 1, 1]);
}

#[test]
fn overlapping_writes_are_logged_in_the_order_of_their_effects() {
    let rig = rig(false);
    let mut executor = Executor::new();
    rig.disk.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write).nth(1));
    for byte in [1, 2] {
        let node = rig.node.clone();
        executor.spawn(async move { node.write(0, &[byte; 512], WriteFlags::empty()).await });
        executor.run_until_stalled();
    }
    assert_eq!(rig.disk.log().of_kind(OpKind::Write).count(), 1, "the second waits for the first");
    let node = rig.node.clone();
    executor.spawn(async move { node.write(512, &[3; 512], WriteFlags::empty()).await });
    executor.run_until_stalled();
    assert_eq!(rig.lines(), ["write 0x200..0x400"], "what does not overlap waits for nobody");
    rig.disk.release_all();
    executor.run_until_stalled();
    assert_eq!(replayed(&device(&rig.log.image()), Extent::All, &Until::End, SIZE), content(&rig.disk.image()));
}

#[test]
fn what_was_dropped_is_logged_as_it_landed() {
    for (policy, landed) in [(DrainPolicy::Land, true), (DrainPolicy::Forget, false)] {
        let rig = rig(false);
        rig.disk.set_drain_policy(policy);
        let mut executor = Executor::new();
        rig.disk.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write).nth(1));
        let node = rig.node.clone();
        let task = executor.spawn(async move { node.write(0, &[1; 512], WriteFlags::empty()).await });
        executor.run_until_stalled();
        executor.cancel(task.id());
        block_on(rig.node.write(0, &[2; 512], WriteFlags::empty())).unwrap();
        block_on(rig.node.drain()).unwrap();
        assert_eq!(rig.disk.bytes(0, 1), [if landed { 1 } else { 2 }]);
        assert_eq!(replayed(&device(&rig.log.image()), Extent::All, &Until::End, SIZE), content(&rig.disk.image()));
    }
}

#[test]
fn a_log_that_can_not_be_written_fails_requests_and_loses_nothing() {
    let rig = rig(false);
    rig.log.add_rule(Rule::new(Action::FailBefore(IoError::new(Errno::NOSPC))).kind(OpKind::Write).times(2));
    block_on(async {
        for byte in [1, 2] {
            let error = rig.node.write(0, &[byte; 512], WriteFlags::empty()).await.unwrap_err();
            assert_eq!((error.errno, error.first_bad), (Errno::NOSPC, None));
            assert!(error.to_string().contains("write log"), "{error}");
        }
        rig.node.write(512, &[3; 512], WriteFlags::empty()).await.unwrap();
    });
    assert_eq!(rig.lines(), ["write 0x0..0x200", "write 0x0..0x200", "write 0x200..0x400"]);
    assert_eq!(replayed(&device(&rig.log.image()), Extent::All, &Until::End, SIZE), content(&rig.disk.image()));
}

#[test]
fn a_log_that_stays_broken_does_not_eat_the_memory() {
    let rig = rig_with(TestDisk::new(SIZE), TestDisk::growing(0), 512, false);
    rig.log.add_rule(Rule::new(Action::FailBefore(IoError::new(Errno::IO))).kind(OpKind::Write));
    let data = vec![1; SIZE as usize];
    let mut refused = 0;
    for _ in 0..1100 {
        let before = rig.disk.log().ops().len();
        block_on(rig.node.write(0, &data, WriteFlags::empty())).unwrap_err();
        refused += u32::from(rig.disk.log().ops().len() == before);
    }
    assert!((50..100).contains(&refused), "{refused} of 1100 writes of 64 KiB never reached the disk");
}

#[test]
fn a_full_log_says_so() {
    let small = TestDisk::new(2048).with_capabilities(blkproof_block::Capabilities::empty());
    let rig = rig_with(TestDisk::new(SIZE), small, 512, false);
    block_on(rig.node.write(0, &[1; 512], WriteFlags::empty())).unwrap();
    let error = block_on(rig.node.write(0, &[1; 512], WriteFlags::empty())).unwrap_err();
    assert_eq!(error.errno, Errno::NOSPC);
    assert!(error.to_string().contains("the write log is full: it has 0x800 bytes"), "{error}");
}

#[test]
fn an_older_log_that_can_not_be_cut_off_does_not_show_through() {
    let fixed = || blkproof_block::Capabilities::empty();
    let log = TestDisk::new(16 << 10).with_capabilities(fixed());
    let first = rig_with(TestDisk::new(SIZE), log.clone(), 512, false);
    block_on(async {
        for at in 0..10 {
            first.node.write(at * 512, &[1; 512], WriteFlags::empty()).await.unwrap();
        }
        first.node.close().await.unwrap();
    });
    let second = rig_with(TestDisk::new(SIZE), log, 512, false);
    assert!(second.lines().is_empty(), "right after open");
    for count in 1..=3 {
        block_on(second.node.write(0, &[2; 512], WriteFlags::empty())).unwrap();
        assert_eq!(second.lines().len(), count, "entries of the same length, and yet none of the older log");
    }
}

#[test]
fn a_dropped_write_to_the_log_does_not_land_on_later_entries() {
    let log = TestDisk::new(16 << 10).with_capabilities(blkproof_block::Capabilities::empty());
    let rig = rig_with(TestDisk::new(SIZE), log, 512, false);
    let mut executor = Executor::new();
    rig.log.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write).nth(1));
    let node = rig.node.clone();
    let task = executor.spawn(async move { node.write(0, &[1; 512], WriteFlags::empty()).await });
    executor.run_until_stalled();
    executor.cancel(task.id());
    for at in 1..4 {
        block_on(rig.node.write(at * 512, &[2; 512], WriteFlags::empty())).unwrap();
    }
    for late in rig.log.orphans() {
        rig.log.land(late.id);
    }
    assert_eq!(rig.lines().len(), 4, "the zero sector behind the first entry would hide the others");
}

#[test]
fn sizes_are_marked_and_what_is_cut_off_is_discarded() {
    let rig = rig(false);
    block_on(async {
        rig.node.write(0, &[1; 8192], WriteFlags::empty()).await.unwrap();
        rig.node.resize(1000, Preallocation::Off).await.unwrap();
        rig.node.resize(4096, Preallocation::Off).await.unwrap();
        rig.node.close().await.unwrap();
    });
    assert_eq!(
        rig.lines(),
        ["write 0x0..0x2000", "discard 0x400..0x10000", "mark 'blkproof: size 1000'", "mark 'blkproof: size 4096'"]
    );
    assert_eq!(replayed(&device(&rig.log.image()), Extent::All, &Until::End, 0), content(&rig.disk.image()));
}

#[test]
fn marks_have_a_length_and_a_writable_node() {
    let rig = rig(false);
    block_on(async {
        rig.node.log().mark(&"x".repeat(479)).await.unwrap();
        let error = rig.node.log().mark(&"x".repeat(480)).await.unwrap_err();
        assert_eq!(error, MarkError::TooLong { len: 480, max: 479 });
    });
    assert_eq!(rig.lines().len(), 1);
    let counted = entries(&device(&rig.log.image()), Extent::Counted);
    assert_eq!(counted.len(), 1, "a mark is counted when it is said");
}

fn hostile(seed: u64, details: bool) -> (TestDisk, TestDisk) {
    let disk = TestDisk::new(SIZE);
    let rig = rig_with(disk, TestDisk::growing(0), 512, details);
    // Discards are left out: this disk does them in part, and the log says zeroes.
    let config = Config { seed, ops: 60, discards: 0, resizes: 2, quiet_end: false, ..Config::default() }.hostile();
    let device = Rc::new(Aligned::new(Node::from_rc(rig.node.clone())));
    let outcome = workload::run_over(config, device.clone(), &[&rig.disk, &rig.log]);
    outcome.assert_clean();
    for disk in [&rig.disk, &rig.log] {
        disk.clear_rules();
        disk.script(|_| Action::Pass);
        disk.set_scheduled(false);
    }
    block_on(device.drain()).unwrap();
    block_on(device.close()).unwrap();
    (rig.disk, rig.log)
}

#[test]
fn whatever_happened_the_log_replays_to_the_disk() {
    for seed in 0..150 {
        let (disk, log) = hostile(seed, seed % 2 == 0);
        let log = device(&log.image());
        let replayed = replayed(&log, Extent::Counted, &Until::End, SIZE);
        assert!(replayed == content(&disk.image()), "seed {seed}: {:#?}", lines(&entries(&log, Extent::Counted)));
    }
}

#[test]
fn a_superblock_never_counts_what_is_not_there() {
    // Every disk that a power cut may leave of the log, at many positions of a hostile run.
    let mut states = 0;
    for seed in 0..12 {
        let (_, log) = hostile(seed, false);
        let history = log.log();
        let points = interesting_points(&history);
        for position in points.iter().step_by(points.len().div_ceil(12)) {
            for state in crash_states(&history, &log.initial(), *position, 24, seed) {
                states += 1;
                let image = device(&state.image);
                block_on(async {
                    let Ok(log) = Log::open(image.clone()).await else {
                        // Before the first superblock was durable there is no log yet.
                        assert!(*position < history.end() / 4, "seed {seed}, position {position}: {}", state.how);
                        return;
                    };
                    let mut cursor = log.entries(Extent::Counted);
                    let counted = log.superblock().entries;
                    loop {
                        match cursor.next().await {
                            Ok(Some(_)) => {}
                            Ok(None) => break,
                            Err(error) => panic!("seed {seed}, position {position}, {}: {error}", state.how),
                        }
                    }
                    assert_eq!(cursor.index(), counted, "seed {seed}");
                });
            }
        }
    }
    assert!(states > 1000, "{states}");
}

#[test]
fn killed_at_any_moment_the_log_ends_with_its_last_complete_entry() {
    // A killed process loses what it did not say to the kernel, and nothing else: a prefix of the effects.
    let rig = rig(false);
    block_on(async {
        for at in 0..6 {
            rig.node.write(at * 1024, &vec![at as u8 + 1; 1024], WriteFlags::empty()).await.unwrap();
            rig.node.write_zeroes(at * 1024, 512, ZeroFlags::empty()).await.unwrap();
        }
        rig.node.flush().await.unwrap();
    });
    let complete = rig.lines();
    let history = rig.log.log();
    let mut log = content(&rig.log.initial());
    let mut longest = 0;
    for entry in history.entries() {
        let op = history.op(entry.op);
        if !matches!(entry.step, Step::Effect(_)) || op.range.is_empty() {
            continue;
        }
        let (from, to) = (op.range.start as usize, op.range.end as usize);
        let zeroes = vec![0; to - from];
        let new = op.data.as_deref().unwrap_or(&zeroes);
        // Half of a write, then all of it.
        for part in [new.len() / 2, new.len()] {
            log.resize(log.len().max(from + part), 0);
            log[from..from + part].copy_from_slice(&new[..part]);
            let image = Node::new(blkproof_block::nodes::memory::Memory::with_content(&log));
            if block_on(Log::open(image.clone())).is_err() {
                continue;
            }
            let found = lines(&entries(&image, Extent::All));
            assert_eq!(found, complete[..found.len()]);
            longest = longest.max(found.len());
            assert!(found.len() >= longest, "an entry was there, and is gone");
        }
    }
    assert_eq!(longest, complete.len());
}

#[test]
fn dropped_at_every_await_nothing_is_lost() {
    for held in ["disk", "log"] {
        for nth in 1..4 {
            let rig = rig(false);
            let mut executor = Executor::new();
            executor.attach(&rig.disk);
            executor.attach(&rig.log);
            let disk = if held == "disk" { &rig.disk } else { &rig.log };
            disk.add_rule(Rule::new(Action::HoldBefore).nth(nth));
            let node = rig.node.clone();
            let task = executor.spawn(async move {
                node.write(0, &[1; 1024], WriteFlags::empty()).await?;
                node.flush().await?;
                node.write_zeroes(512, 1024, ZeroFlags::empty()).await
            });
            executor.run_until_stalled();
            executor.cancel(task.id());
            for disk in [&rig.disk, &rig.log] {
                disk.clear_rules();
                disk.set_scheduled(false);
            }
            block_on(async {
                rig.node.write(2048, &[3; 512], WriteFlags::empty()).await.unwrap();
                rig.node.drain().await.unwrap();
                rig.node.close().await.unwrap();
            });
            let log = device(&rig.log.image());
            let replayed = replayed(&log, Extent::Counted, &Until::End, SIZE);
            assert!(replayed == content(&rig.disk.image()), "{held} {nth}: {:?}", rig.lines());
        }
    }
}

#[test]
fn fua_and_limits_are_those_of_the_disk() {
    let rig = rig_with(TestDisk::new(SIZE), TestDisk::growing(0), 4096, false);
    let info = rig.node.info();
    assert_eq!((info.driver, info.size, info.limits.alignment), ("blklogwrites", SIZE, 4096));
    assert_eq!((info.limits.zero_alignment, info.limits.discard_alignment), (4096, 4096));
    // An unaligned write is logged after padding, whole sectors.
    let aligned = Aligned::new(Node::from_rc(rig.node.clone()));
    block_on(aligned.write(100, &[1; 10], WriteFlags::FUA)).unwrap();
    let all = entries(&device(&rig.log.image()), Extent::All);
    assert_eq!(lines(&all), ["write 0x0..0x1000 FUA"]);
    assert_eq!(all[0].flags, Flags::FUA);
    // A disk without FUA of its own gets a flush, and so does the log.
    let plain = TestDisk::new(SIZE).with_capabilities(blkproof_block::Capabilities::empty());
    let rig = rig_with(plain, TestDisk::growing(0), 4096, false);
    let aligned = Aligned::new(Node::from_rc(rig.node.clone()));
    block_on(aligned.write(0, &[1; 4096], WriteFlags::FUA)).unwrap();
    assert_eq!(rig.lines(), ["write 0x0..0x1000", "flush"]);
}

#[test]
fn the_odd_end_of_a_disk_is_padded_on_the_log_and_not_on_the_image() {
    for details in [false, true] {
        let rig = rig_with(TestDisk::new(1000), TestDisk::growing(0), 512, details);
        block_on(rig.node.write(512, &[5; 488], WriteFlags::empty())).unwrap();
        let log = device(&rig.log.image());
        assert_eq!(rig.lines(), ["write 0x200..0x400"]);
        let image = replayed(&log, Extent::All, &Until::End, 1000);
        assert_eq!(image.len(), if details { 1000 } else { 1024 }, "only the details know the length");
        assert_eq!(image[..1000], content(&rig.disk.image()));
    }
}

#[test]
fn many_writers_share_one_write_to_the_log() {
    let rig = rig(false);
    let mut executor = Executor::new();
    rig.log.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write).nth(1));
    let before = rig.log.log().of_kind(OpKind::Write).count();
    let done = Rc::new(RefCell::new(0));
    for at in 0..8_u64 {
        let (node, done) = (rig.node.clone(), done.clone());
        executor.spawn(async move {
            node.write(at * 512, &[1; 512], WriteFlags::empty()).await.unwrap();
            *done.borrow_mut() += 1;
        });
    }
    executor.run_until_stalled();
    assert_eq!(*done.borrow(), 0, "a request completes when its entry is on the log");
    rig.log.release_all();
    executor.run_until_stalled();
    assert_eq!(*done.borrow(), 8);
    assert_eq!(rig.log.log().of_kind(OpKind::Write).count() - before, 2);
}
