//! The oracle, rule by rule: what a read may see, and what it may see after a crash.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use blkproof_block::nodes::memory::SparseBytes;
use blkproof_block::testing::{Model, TestDisk, block_on, stamp};
use blkproof_block::{BlockDevice, Preallocation, WriteFlags};

/// A sector at 0 as written by `op`; 0 for zeroes.
fn sector(op: u64) -> Vec<u8> {
    if op == 0 { vec![0; 512] } else { stamp::bytes(0, 512, op) }
}

/// Which of the sectors 0..5 a read that begins and ends now may see. Each is tried on a copy of the model.
fn readable(model: &Model) -> Vec<u64> {
    (0..5).filter(|&op| model.clone().check_now(0, &sector(op)).is_ok()).collect()
}

#[test]
fn reads_by_state_of_the_writes() {
    let mut model = Model::new(SparseBytes::new(512));
    assert_eq!(readable(&model), [0], "initial content");
    let first = model.submit_write(0, &sector(1), false);
    assert_eq!(readable(&model), [0, 1], "a write in flight is old or new");
    model.complete(first);
    assert_eq!(readable(&model), [1], "a completed write is new");
    let second = model.submit_write(0, &sector(2), false);
    let third = model.submit_write(0, &sector(3), false);
    model.complete(third);
    assert_eq!(readable(&model), [2, 3], "a completed write excludes what was before it, not what is beside it");
    model.complete(second);
    assert_eq!(readable(&model), [2, 3], "concurrent writes end either way");
    model.check_now(0, &sector(2)).unwrap();
    assert_eq!(readable(&model), [2], "until a read has shown which");
    let zeroes = model.submit_zeroes(0, 512, false);
    model.fail(zeroes);
    assert_eq!(readable(&model), [0, 2], "a failed request is done or not");
    let discard = model.submit_discard(0, 512);
    model.complete(discard);
    assert_eq!(readable(&model), [0, 2], "a discard excludes nothing");
    let dropped = model.submit_write(0, &sector(4), false);
    model.drop_request(dropped);
    let last = model.submit_write(0, &sector(1), false);
    model.complete(last);
    assert_eq!(readable(&model), [1, 4], "a dropped write lands over a later one");
    let now = model.now();
    model.drained(now);
    let last = model.submit_write(0, &sector(3), false);
    model.complete(last);
    assert_eq!(readable(&model), [3], "but not after a drain");
}

#[test]
fn a_read_in_flight_may_see_what_was_replaced_meanwhile() {
    let mut model = Model::new(SparseBytes::new(512));
    let started = model.now();
    let write = model.submit_write(0, &sector(1), false);
    model.complete(write);
    for (op, ok) in [(0, true), (1, true), (2, false)] {
        assert_eq!(model.clone().check_read(0, &sector(op), started).is_ok(), ok, "{op}");
    }
}

#[test]
fn a_mix_is_fine_across_sectors_and_foreign_inside_one() {
    let mut model = Model::new(SparseBytes::new(1024));
    model.submit_write(0, &stamp::bytes(0, 1024, 1), false);
    let mut mixed = stamp::bytes(0, 1024, 1);
    mixed[512..].fill(0);
    model.check_now(0, &mixed).unwrap();
    mixed[256..].fill(0);
    let violation = model.check_now(0, &mixed).unwrap_err();
    assert_eq!((violation.range.start, violation.range.end), (0, 512));
    assert_eq!(violation.found, "foreign: Torn { op: 1, from: 0 }");
    assert_eq!(violation.expected, ["the initial content", "op 1 (write 0x0..0x400, in flight)"]);
}

#[test]
fn the_floor_after_a_crash_is_what_a_flush_covered() {
    let disk = TestDisk::new(512);
    let mut model = Model::new(SparseBytes::new(512)).with_disk(&disk);
    let mut put = |op: u64, fua: bool, flush: bool| {
        let id = model.submit_write(0, &sector(op), fua);
        block_on(disk.write(0, &sector(op), if fua { WriteFlags::FUA } else { WriteFlags::empty() })).unwrap();
        model.complete(id);
        if flush {
            let id = model.submit_flush();
            block_on(disk.flush()).unwrap();
            model.complete_flush(id);
        }
        disk.position()
    };
    let table = [
        (0, vec![0]),
        (put(1, false, false), vec![0, 1]),
        (put(2, false, true), vec![2]),
        (put(3, false, false), vec![2, 3]),
        (put(4, true, false), vec![4]),
        (put(1, false, false), vec![1, 4]),
    ];
    for (position, want) in table {
        let judge = model.after_crash(position);
        let got: Vec<_> = (0..5).filter(|&op| judge.check(0, &sector(op)).is_ok()).collect();
        assert_eq!(got, want, "power cut at {position}");
    }
    let violation = model.after_crash(disk.position()).check(0, &sector(2)).unwrap_err();
    assert_eq!(violation.found, "superseded content of op 2 (write 0x0..0x200, completed)");
}

/// A request may need no request below, such as zeroes where there are none but zeroes: sent and completed between two
/// entries of the log, it is a promise nonetheless, and its content is what is there.
#[test]
fn a_promise_that_needed_no_disk_is_kept_by_what_was_there() {
    let disk = TestDisk::new(512);
    for flushed in [false, true] {
        let mut model = Model::new(SparseBytes::new(512)).with_disk(&disk);
        let zeroes = model.submit_zeroes(0, 512, !flushed);
        model.complete(zeroes);
        if flushed {
            let flush = model.submit_flush();
            model.complete_flush(flush);
        }
        let judge = model.after_crash(disk.position());
        judge.check(0, &sector(0)).unwrap_or_else(|violation| panic!("flushed: {flushed}: {violation}"));
        judge.check(0, &sector(1)).unwrap_err();
    }

    // It reached no disk, so it does not excuse the zeroes of somebody else unless it was a promise.
    let mut model = Model::new(SparseBytes::new(512)).with_disk(&disk);
    let write = model.submit_write(0, &sector(1), true);
    block_on(disk.write(0, &sector(1), WriteFlags::FUA)).unwrap();
    model.complete(write);
    let zeroes = model.submit_zeroes(0, 512, false);
    model.complete(zeroes);
    model.after_crash(disk.position()).check(0, &sector(0)).unwrap_err();
}

/// Sizes after a power cut, and what the new space holds: a shrink, then a grow, of a disk full of data.
#[test]
fn a_resize_is_a_candidate_until_another_is_durable() {
    let disk = TestDisk::new(1024);
    let mut initial = SparseBytes::new(1024);
    initial.write(0, &stamp::bytes(0, 1024, 1));
    let mut model = Model::new(initial).with_disk(&disk);
    let mut steps = Vec::new();
    let shrink = model.submit_resize(1024, 512);
    block_on(disk.resize(512, Preallocation::Off)).unwrap();
    model.complete(shrink);
    steps.push((disk.position(), vec![512, 1024], [true, true]));
    let grow = model.submit_resize(512, 1536);
    block_on(disk.resize(1536, Preallocation::Off)).unwrap();
    steps.push((disk.position(), vec![512, 1024, 1536], [true, true]));
    model.complete(grow);
    // What was cut off does not come back for those who read.
    assert!(model.clone().check_now(512, &stamp::bytes(512, 512, 1)).is_err());
    model.check_now(512, &[0; 1024]).unwrap();
    let write = model.submit_write(1024, &stamp::bytes(1024, 512, 2), true);
    block_on(disk.write(1024, &stamp::bytes(1024, 512, 2), WriteFlags::FUA)).unwrap();
    model.complete(write);
    // A promise behind the smaller sizes rules them out.
    steps.push((disk.position(), vec![1536], [true, true]));
    let flush = model.submit_flush();
    block_on(disk.flush()).unwrap();
    model.complete_flush(flush);
    steps.push((disk.position(), vec![1536], [false, true]));
    let shrink = model.submit_resize(1536, 0);
    model.fail(shrink);
    block_on(disk.flush()).unwrap();
    steps.push((disk.position(), vec![0, 1536], [false, true]));
    for (position, sizes, [old, zero]) in steps {
        let judge = model.after_crash(position);
        assert_eq!(judge.sizes().collect::<Vec<_>>(), sizes, "power cut at {position}");
        assert_eq!(judge.check(512, &stamp::bytes(512, 512, 1)).is_ok(), old, "power cut at {position}");
        assert_eq!(judge.check(512, &[0; 512]).is_ok(), zero, "power cut at {position}");
    }
}
