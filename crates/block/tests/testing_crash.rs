//! Which disks a power cut may leave: small logs whose states can be counted by hand, and drivers judged by them.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::collections::BTreeSet;

use blkproof_block::nodes::memory::SparseBytes;
use blkproof_block::testing::{
    Action, DrainPolicy, Executor, OpKind, Rule, TestDisk, block_on, crash_states, interesting_points,
};
use blkproof_block::{BlockDevice, Errno, IoError, Preallocation, Result, WriteFlags, ZeroFlags};

async fn put(disk: &TestDisk, block: u64, value: u8) {
    let _ = disk.write(block * 512, &[value; 512], WriteFlags::empty()).await;
}

/// Size in blocks and first byte of each of the first four blocks, for every state at the end of the log.
fn states(disk: &TestDisk) -> BTreeSet<(u64, [u8; 4])> {
    states_at(disk, disk.position())
}

fn states_at(disk: &TestDisk, position: usize) -> BTreeSet<(u64, [u8; 4])> {
    let states = crash_states(&disk.log(), &disk.initial(), position, 10_000, 0);
    assert!(states.is_exhaustive());
    states.map(|state| (state.image.size() / 512, firsts(&state.image))).collect()
}

fn firsts(image: &SparseBytes) -> [u8; 4] {
    [0, 1, 2, 3].map(|block| {
        let mut byte = [0];
        image.read(block * 512, &mut byte);
        byte[0]
    })
}

fn set(size: u64, states: &[[u8; 4]]) -> BTreeSet<(u64, [u8; 4])> {
    states.iter().map(|&state| (size, state)).collect()
}

#[test]
fn a_flush_covers_what_completed_before_it_was_sent() {
    // The example of CM 4.6 (3): submit W1 W2 W3, complete W3 W2, submit F, complete W1, complete F.
    let disk = TestDisk::new(2048);
    disk.hold_all();
    let mut executor = Executor::new();
    for value in 1..=3 {
        let disk = disk.clone();
        executor.spawn(async move { put(&disk, u64::from(value), value).await });
    }
    executor.run_until_stalled();
    let ids: Vec<_> = disk.parked().iter().map(|op| op.id).collect();
    disk.release(ids[2]);
    disk.release(ids[1]);
    let handle = disk.clone();
    executor.spawn(async move { handle.flush().await });
    executor.run_until_stalled();
    disk.release(ids[0]);
    let before = disk.position();
    disk.release_all();
    executor.run_until_stalled();
    assert_eq!(states(&disk), set(4, &[[0, 0, 2, 3], [0, 1, 2, 3]]));
    assert_eq!(states_at(&disk, before).len(), 8, "before the flush completed anything goes");
    let log = disk.log();
    assert_eq!(interesting_points(&log), [before, log.end()]);
}

#[test]
fn blocks_choose_independently() {
    let disk = TestDisk::new(2048);
    block_on(disk.write(0, &[1; 1024], WriteFlags::empty())).unwrap();
    block_on(put(&disk, 1, 2));
    let want = [[0, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 2, 0, 0]];
    assert_eq!(states(&disk), set(4, &want));
}

#[test]
fn fua_makes_durable_what_carries_it_and_nothing_else() {
    let disk = TestDisk::new(2048);
    block_on(put(&disk, 0, 1));
    block_on(disk.write(512, &[2; 512], WriteFlags::FUA)).unwrap();
    block_on(disk.write_zeroes(1024, 512, ZeroFlags::FUA)).unwrap();
    assert_eq!(states(&disk), set(4, &[[0, 2, 0, 0], [1, 2, 0, 0]]));
}

#[test]
fn what_a_durable_write_replaced_does_not_come_back() {
    let disk = TestDisk::new(2048);
    for value in 1..=3 {
        block_on(put(&disk, 0, value));
    }
    block_on(disk.flush()).unwrap();
    block_on(put(&disk, 0, 4));
    assert_eq!(states(&disk), set(4, &[[3, 0, 0, 0], [4, 0, 0, 0]]));
}

#[test]
fn a_failed_flush_promises_nothing_and_the_next_covers() {
    let disk = TestDisk::new(2048);
    disk.add_rule(Rule::new(Action::FailBefore(IoError::new(Errno::IO))).kind(OpKind::Flush).times(1));
    block_on(put(&disk, 0, 1));
    block_on(disk.flush()).unwrap_err();
    assert_eq!(states(&disk).len(), 2);
    block_on(disk.flush()).unwrap();
    assert_eq!(states(&disk), set(4, &[[1, 0, 0, 0]]));
}

#[test]
fn a_failed_write_is_in_doubt_until_it_is_seen_or_replaced() {
    let error = || IoError::new(Errno::IO);
    let both: &[[u8; 4]] = &[[0; 4], [1, 0, 0, 0]];
    let table = [
        (Action::FailBefore(error()), [0, 0, 0, 0]),
        (Action::DoThenFail(error()), [1, 0, 0, 0]),
        (Action::PartThenFail { bytes: 512, error: error() }, [1, 0, 0, 0]),
    ];
    for (action, after) in table {
        let disk = TestDisk::new(2048);
        disk.add_rule(Rule::new(action.clone()).nth(1));
        block_on(put(&disk, 0, 1));
        block_on(disk.flush()).unwrap();
        assert_eq!(states(&disk), set(4, both), "{action:?}: a flush does not tell how a failed write ended");
        block_on(disk.read(0, &mut [0; 512])).unwrap();
        block_on(disk.flush()).unwrap();
        assert_eq!(states(&disk), set(4, &[after]), "{action:?}: a read does");

        let disk = TestDisk::new(2048);
        disk.add_rule(Rule::new(action.clone()).nth(1));
        block_on(put(&disk, 0, 1));
        block_on(put(&disk, 0, 2));
        block_on(disk.flush()).unwrap();
        assert_eq!(states(&disk), set(4, &[[2, 0, 0, 0]]), "{action:?}: so does a durable successor");
    }
}

#[test]
fn a_dropped_write_may_land_until_drained() {
    for (policy, after) in [(DrainPolicy::Land, [1, 0, 0, 0]), (DrainPolicy::Forget, [0; 4])] {
        let disk = TestDisk::new(2048);
        disk.set_drain_policy(policy);
        disk.hold_all();
        let mut executor = Executor::new();
        let handle = disk.clone();
        let task = executor.spawn(async move { put(&handle, 0, 1).await });
        executor.run_until_stalled();
        executor.cancel(task.id());
        disk.clear_rules();
        assert_eq!(disk.orphans().len(), 1);
        assert_eq!(firsts(&disk.image()), [0; 4]);
        assert_eq!(states(&disk).len(), 2, "it may land");
        block_on(disk.drain()).unwrap();
        assert_eq!(disk.orphans().len(), 0);
        assert_eq!(firsts(&disk.image()), after);
        block_on(disk.flush()).unwrap();
        assert_eq!(states(&disk).len(), 2, "nobody has looked");
        block_on(disk.read(0, &mut [0; 512])).unwrap();
        block_on(disk.flush()).unwrap();
        assert_eq!(states(&disk), set(4, &[after]));
    }
}

#[test]
fn the_size_is_one_more_block() {
    let disk = TestDisk::growing(512);
    block_on(put(&disk, 1, 1));
    block_on(put(&disk, 2, 2));
    // Data beyond the surviving size is gone with it; a gap that survives reads as zeroes.
    let mut want = set(1, &[[0; 4]]);
    want.extend(set(2, &[[0; 4], [0, 1, 0, 0]]));
    want.extend(set(3, &[[0; 4], [0, 1, 0, 0], [0, 0, 2, 0], [0, 1, 2, 0]]));
    assert_eq!(states(&disk), want);
    block_on(disk.flush()).unwrap();
    assert_eq!(states(&disk), set(3, &[[0, 1, 2, 0]]));
    block_on(disk.resize(1024, Preallocation::Off)).unwrap();
    assert!(states(&disk).contains(&(2, [0, 1, 0, 0])) && states(&disk).contains(&(3, [0, 1, 2, 0])));
    block_on(disk.flush()).unwrap();
    assert_eq!(states(&disk), set(2, &[[0, 1, 0, 0]]));
}

#[test]
fn a_durable_write_keeps_the_size_it_needs() {
    let disk = TestDisk::growing(512);
    block_on(disk.write(1024, &[1; 512], WriteFlags::empty())).unwrap();
    block_on(disk.write(512, &[2; 512], WriteFlags::FUA)).unwrap();
    let mut want = set(2, &[[0, 2, 0, 0]]);
    want.extend(set(3, &[[0, 2, 0, 0], [0, 2, 1, 0]]));
    assert_eq!(states(&disk), want);
}

#[test]
fn a_request_past_the_end_leaves_nothing() {
    let disk = TestDisk::new(512);
    block_on(disk.write(256, &[1; 512], WriteFlags::empty())).unwrap_err();
    assert_eq!(states(&disk), set(1, &[[0; 4]]));
}

#[test]
fn a_small_budget_takes_the_telling_states_first_and_none_twice() {
    let disk = TestDisk::new(64 << 10);
    for value in 1..=20 {
        block_on(disk.write(u64::from(value) * 2048, &[value; 2048], WriteFlags::empty())).unwrap();
    }
    let states = || crash_states(&disk.log(), &disk.initial(), disk.position(), 300, 9);
    assert!(!states().is_exhaustive() && states().total() == u64::MAX && states().volatile().len() == 20);
    let all: Vec<_> = states().collect();
    assert_eq!(all.len(), 300);
    assert_eq!(all[0].image, disk.initial());
    assert_eq!((all[0].how.as_str(), all[1].how.as_str()), ("all old", "all new"));
    assert_eq!(all[1].image, disk.image());
    assert_eq!(all[2].how, "all but #0 Write 0x800..0x1000");
    assert_eq!(all[22].how, "only #0 Write 0x800..0x1000");
    let again: Vec<_> = states().map(|state| state.how).collect();
    assert_eq!(again, all.iter().map(|state| state.how.clone()).collect::<Vec<_>>(), "the seed decides");
    let mut distinct: Vec<&SparseBytes> = Vec::new();
    for state in &all {
        assert!(!distinct.contains(&&state.image), "{} was there before", state.how);
        distinct.push(&state.image);
    }
}

/// Writes data to block 1 and then, as the pointer to it, 1 to block 0.
async fn publish(disk: TestDisk, barrier: bool) -> Result<()> {
    disk.write(512, &[7; 512], WriteFlags::empty()).await?;
    if barrier {
        disk.flush().await?;
    }
    disk.write(0, &[1; 512], WriteFlags::empty()).await?;
    disk.flush().await
}

#[test]
fn a_missing_barrier_is_caught_and_a_present_one_is_not() {
    for (barrier, dangling) in [(true, false), (false, true)] {
        let disk = TestDisk::new(2048);
        let mut executor = Executor::new();
        executor.attach(&disk);
        executor.block_on(5, publish(disk.clone(), barrier)).unwrap().unwrap();
        let log = disk.log();
        let bad = (0..=log.end())
            .flat_map(|position| crash_states(&log, &disk.initial(), position, 100, 0))
            .filter(|state| matches!(firsts(&state.image), [1, 0, ..]))
            .count();
        assert_eq!(bad > 0, dangling, "barrier: {barrier}");
        // The interesting positions are enough to see it.
        let bad = interesting_points(&log)
            .into_iter()
            .flat_map(|position| crash_states(&log, &disk.initial(), position, 100, 0))
            .any(|state| matches!(firsts(&state.image), [1, 0, ..]));
        assert_eq!(bad, dangling, "barrier: {barrier}, interesting positions only");
    }
}
