//! The filter `blklogwrites` at its limits: what it refuses, what it makes wait, and what it can not take on trust.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod log_common;

use std::rc::Rc;

use blkproof_block::nodes::memory::Memory;
use blkproof_block::testing::{Action, Executor, OpKind, Rule, TestDisk, block_on};
use blkproof_block::{BlockDevice, Errno, IoError, Node, Preallocation, WriteFlags, ZeroFlags};
use blkproof_fault::log_writes::append::BACKLOG_MAX;
use blkproof_fault::log_writes::node::{LogWrites, MarkError};
use blkproof_fault::log_writes::read::Extent;
use log_common::{device, entries, how, lines, node};

fn rig(size: u64, sector: u64, details: bool) -> (TestDisk, TestDisk, Rc<LogWrites>) {
    let (disk, log) = (TestDisk::new(size), TestDisk::growing(0));
    let node = Rc::new(node(Node::new(disk.clone()), Node::new(log.clone()), how(sector, details)));
    (disk, log, node)
}

fn logged(log: &TestDisk) -> Vec<String> {
    lines(&entries(&device(&log.image()), Extent::All))
}

/// A user's mark is never one of ours: `size` marks change what a replay makes.
#[test]
fn a_mark_that_would_pass_for_one_of_ours() {
    let (_, log, node) = rig(4096, 512, false);
    block_on(async {
        for text in ["blkproof: size 512", "blkproof: ", "blkproof: anything"] {
            assert_eq!(node.log().mark(text).await, Err(MarkError::Reserved), "{text}");
        }
        node.log().mark("blkproof").await.unwrap();
        node.log().mark("after blkproof: size 1").await.unwrap();
    });
    assert_eq!(logged(&log), ["mark 'blkproof'", "mark 'after blkproof: size 1'"]);
}

/// `ENOTSUP` means that nothing was done of quick zeroes alone: whatever else fails so is looked at on the disk.
#[test]
fn not_supported_is_not_nothing_done() {
    let unsupported = || Action::DoThenFail(IoError::unsupported());
    for (kind, want) in [
        (OpKind::Write, "write 0x0..0x400"),
        (OpKind::WriteZeroes, "write 0x800..0xc00"),
        (OpKind::Discard, "write 0x800..0xc00"),
    ] {
        let (disk, log, node) = rig(4096, 512, false);
        block_on(disk.write(2048, &[9; 1024], WriteFlags::empty())).unwrap();
        disk.add_rule(Rule::new(unsupported()).kind(kind).times(1));
        let error = block_on(async {
            match kind {
                OpKind::Write => node.write(0, &[1; 1024], WriteFlags::empty()).await,
                OpKind::Discard => node.discard(2048, 1024).await,
                _ => node.write_zeroes(2048, 1024, ZeroFlags::empty()).await,
            }
        });
        assert_eq!(error.unwrap_err().errno, Errno::NOTSUP);
        assert_eq!(logged(&log), [want], "{kind:?}");
    }
    let (disk, log, node) = rig(4096, 512, false);
    disk.add_rule(Rule::new(Action::FailBefore(IoError::unsupported())).kind(OpKind::WriteZeroes).times(1));
    block_on(node.write_zeroes(0, 512, ZeroFlags::NO_FALLBACK)).unwrap_err();
    assert!(logged(&log).is_empty());
    assert_eq!(disk.log().of_kind(OpKind::Read).count(), 0, "nobody had to look");
}

/// A log that has no room to say how long the disk is: the disk keeps its size.
#[test]
fn a_size_that_the_log_can_not_say() {
    for (sector, small, large) in [(32, false, false), (64, true, true), (512, true, true)] {
        let (disk, log, node) = rig(4096, sector, false);
        for (size, fits) in [(2048, small), (8192, large)] {
            let before = disk.info().size;
            let done = block_on(node.resize(size, Preallocation::Off));
            assert_eq!(done.is_ok(), fits, "{size}, sectors of {sector}: {done:?}");
            assert_eq!(disk.info().size, if fits { size } else { before });
            if let Err(error) = done {
                assert_eq!(error.errno, Errno::NOTSUP);
                assert!(error.to_string().contains("sectors of 32 bytes are too small"), "{error}");
            }
        }
        let marks = logged(&log).iter().filter(|line| line.starts_with("mark 'blkproof: size ")).count();
        assert_eq!(marks, if small { 2 } else { 0 });
    }
}

/// A log that does not answer: what waits for it is bounded, and the disk is not asked to do what could not be logged.
#[test]
fn a_log_that_hangs_does_not_eat_the_memory() {
    const LEN: u64 = 8 << 20;
    let disk = Node::new(Memory::new(LEN * 32));
    let log = TestDisk::growing(0);
    let node = Rc::new(node(disk.clone(), Node::new(log.clone()), how(512, false)));
    log.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write));
    let mut executor = Executor::new();
    let data: Rc<[u8]> = vec![1; LEN as usize].into();
    let writes: Vec<_> = (0..20)
        .map(|i| {
            let (node, data) = (Rc::clone(&node), Rc::clone(&data));
            executor.spawn(async move { node.write(i * LEN, &data, WriteFlags::empty()).await })
        })
        .collect();
    executor.run_until_stalled();
    let taken = BACKLOG_MAX / LEN;
    assert_eq!(node.log().entries(), taken, "entries of {LEN} bytes that wait");
    let mut byte = [0];
    block_on(disk.read(taken * LEN, &mut byte)).unwrap();
    assert_eq!(byte, [0], "the next one has not reached the disk");
    log.clear_rules();
    log.release_all();
    executor.run_until_stalled();
    for write in writes {
        write.take().unwrap().unwrap();
    }
    assert_eq!(node.log().written(), 20);
}
