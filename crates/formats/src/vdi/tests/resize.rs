//! Growing, with and without room for the map, shrinking, and closing gaps: with faults at every request, and power
//! cuts at every point that matters.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use blkproof_block::nodes::memory::SparseBytes;
use blkproof_block::testing::{
    Action, Choices, DrainPolicy, Executor, Model, OpKind, Rule, TestDisk, block_on, crash_states, hash,
    interesting_points, stamp,
};
use blkproof_block::{BlockDevice, ByteRange, Errno, IoError, Preallocation, WriteFlags, ZeroFlags};

use super::{Mutant, Setup, check_image, content, open, recover, reopen, shared};
use crate::vdi::Vdi;

/// From, to, and the setup before.
fn table() -> Vec<(&'static str, Setup, u64)> {
    let small = Setup::small();
    let tight = Setup { block_size: 512, size: 128 * 512, room: 128, ..small };
    vec![
        ("grow inside the last block", small, 101 * 1024),
        ("grow inside the map's room", small, 120 * 4096),
        ("grow past the map's room: the first blocks move", small, 140 * 4096),
        ("grow past the room of small blocks: several move", tight, 300 * 512),
        ("grow a fixed image", Setup { fixed: true, ..small }, 40 * 4096),
        ("grow a full image past the map's room: the first blocks move", Setup { fixed: true, ..small }, 132 * 4096),
        ("shrink", small, 40 * 1024 + 512),
        ("shrink to nothing", small, 0),
        ("shrink a fixed image", Setup { fixed: true, ..small }, 5 * 4096),
        ("a size that stays", small, small.size),
    ]
}

/// An image with data in every other block, the last among them, in an order that is not the guest's.
fn filled(setup: Setup) -> (SparseBytes, Vec<u8>) {
    let disk = setup.disk();
    let image = open(&disk).unwrap();
    let size = usize::try_from(setup.size).unwrap();
    let mut want = vec![0; size];
    let block = setup.block_size as usize;
    let starts: Vec<usize> = (0..size).step_by(block).collect();
    for &start in starts.iter().rev().step_by(2) {
        let end = (start + block).min(size);
        stamp::fill(&mut want[start..end], start as u64, 7);
        block_on(image.write(start as u64, &want[start..end], WriteFlags::empty())).unwrap();
    }
    block_on(image.close()).unwrap();
    check_image(&disk.image(), true).unwrap();
    (disk.image(), want)
}

fn same_up_to_size(found: &[u8], want: &[u8], sizes: [u64; 2]) -> Result<(), String> {
    if !sizes.map(|size| usize::try_from(size).unwrap()).contains(&found.len()) {
        return Err(format!("{} bytes, neither old nor new size {sizes:?}", found.len()));
    }
    let common = found.len().min(want.len());
    if let Some(at) = (0..common).find(|&at| found[at] != want[at]) {
        return Err(format!("byte {at:#x} has changed"));
    }
    match found[common..].iter().position(|&byte| byte != 0) {
        Some(at) => Err(format!("byte {:#x} of the new space is not zero", common + at)),
        None => Ok(()),
    }
}

#[test]
fn content_stays_and_new_space_is_zero() {
    for (what, setup, size) in table() {
        let (bytes, want) = filled(setup);
        let disk = TestDisk::growing_from_bytes(bytes);
        let image = open(&disk).unwrap();
        block_on(image.resize(size, Preallocation::Off)).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(image.info().size, size, "{what}");
        let same = |image: &_, what: &str| {
            same_up_to_size(&content(image).unwrap(), &want, [size, size])
                .unwrap_or_else(|error| panic!("{what}: {error}"));
        };
        same(&image, what);
        // The image still takes writes: the whole of it, so that every index is used.
        let fill = vec![0x5a; usize::try_from(size).unwrap()];
        let reopened = open(&disk).unwrap();
        same(&reopened, what);
        block_on(reopened.write(0, &fill, WriteFlags::empty())).unwrap_or_else(|error| panic!("{what}: {error}"));
        block_on(reopened.close()).unwrap();
        check_image(&disk.image(), true).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(content(&open(&disk).unwrap()).unwrap(), fill, "{what}");
    }
}

#[test]
fn what_was_cut_off_does_not_come_back() {
    let (bytes, want) = filled(Setup::small());
    let disk = TestDisk::growing_from_bytes(bytes);
    disk.set_discard_effect(blkproof_block::testing::DiscardEffect::Keep);
    let image = open(&disk).unwrap();
    for size in [1024, 8192 + 512, 100 * 1024 + 512, 600, 300 * 4096] {
        block_on(image.resize(size, Preallocation::Off)).unwrap();
    }
    let found = content(&image).unwrap();
    assert_eq!(found[..512], want[..512]);
    assert!(found[1024..].iter().all(|&byte| byte == 0));
}

#[test]
fn preallocation_maps_every_new_block() {
    for preallocation in [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full] {
        let (bytes, _) = filled(Setup::small());
        let disk = TestDisk::growing_from_bytes(bytes);
        let image = open(&disk).unwrap();
        block_on(image.resize(60 * 4096, preallocation)).unwrap();
        for block in 26..60u64 {
            let status = block_on(image.block_status(block * 4096, 4096)).unwrap();
            assert!(status.host_offset.is_some(), "{preallocation:?}, block {block}");
        }
        block_on(image.close()).unwrap();
        check_image(&disk.image(), true).unwrap();
    }
}

/// What a request of a resize meets.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Fails,
    /// It is done, and yet fails: for a header, nobody knows which image the disk holds.
    DoneButFails,
    /// The resize is dropped while the request is in flight; it lands, or never.
    Dropped(DrainPolicy),
}

impl Fate {
    fn number(self) -> u64 {
        match self {
            Self::Fails => 0,
            Self::DoneButFails => 1,
            Self::Dropped(_) => 2,
        }
    }
}

/// Writes 9 to every block that reads as zeroes: whatever the resize gave back is used again.
fn fill_gaps(image: &Vdi<TestDisk>, block_size: u32, what: &str) -> Vec<u8> {
    let mut now = content(image).unwrap();
    for (index, chunk) in now.chunks_mut(block_size as usize).enumerate() {
        if chunk.iter().all(|&byte| byte == 0) {
            chunk.fill(9);
            let at = index as u64 * u64::from(block_size);
            block_on(image.write(at, chunk, WriteFlags::empty())).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
    now
}

/// A resize that fails or is dropped at request n, for nearly every n: content stays, the image takes writes
/// everywhere, no power cut after those writes hurts what was there before, and after a close all is clean.
#[test]
fn a_resize_that_fails_or_is_dropped_keeps_every_byte() {
    fail_every_request(&table(), None);
}

fn fail_every_request(table: &[(&str, Setup, u64)], mutant: Option<Mutant>) {
    let fates = [Fate::Fails, Fate::DoneButFails, Fate::Dropped(DrainPolicy::Land), Fate::Dropped(DrainPolicy::Forget)];
    for &(what, setup, size) in table {
        let (bytes, want) = filled(setup);
        for fate in fates {
            let mut n = 1;
            loop {
                let what = format!("{what}, request {n}: {fate:?}");
                let disk = TestDisk::growing_from_bytes(bytes.clone());
                let image = shared(&disk, mutant);
                let error = IoError::new(Errno::IO);
                let bitten = match fate {
                    Fate::Dropped(policy) => {
                        disk.set_drain_policy(policy);
                        disk.add_rule(Rule::new(Action::HoldBefore).nth(n));
                        let mut resize = pin!(image.resize(size, Preallocation::Off));
                        resize.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
                    }
                    fate => {
                        let action = match fate {
                            Fate::Fails => Action::FailBefore(error),
                            _ => Action::DoThenFail(error),
                        };
                        disk.add_rule(Rule::new(action).nth(n));
                        let result = block_on(image.resize(size, Preallocation::Off));
                        assert!(result.is_ok() || disk.faults() > 0, "{what}");
                        disk.faults() > 0
                    }
                };
                disk.clear_rules();
                let now = content(&image).unwrap();
                same_up_to_size(&now, &want, [setup.size, size]).unwrap_or_else(|error| panic!("{what}: {error}"));
                let now = fill_gaps(&image, setup.block_size, &what);
                let log = disk.log();
                // Every third request, and not the same ones for each fate.
                let budget = if (n + fate.number()).is_multiple_of(3) { 2 } else { 0 };
                for state in crash_states(&log, &disk.initial(), log.end(), budget, n) {
                    let found =
                        recover(&state.image, true).unwrap_or_else(|e| panic!("{what}, cut, {}: {e}", state.how));
                    let wrong =
                        found.iter().zip(&want).position(|(&found, &want)| found != want && (found, want) != (9, 0));
                    assert_eq!(wrong, None, "{what}, power cut with {}", state.how);
                }
                block_on(image.close()).unwrap_or_else(|error| panic!("{what}: close: {error}"));
                check_image(&disk.image(), true).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(content(&open(&disk).unwrap()).unwrap() == now, "{what}: content after reopening");
                if !bitten {
                    break;
                }
                // All that differ come first; behind them is block after block of a fixed image.
                n += 1 + n / 24 * 8;
            }
        }
    }
}

/// Requests beside a resize, in any order, some of them dropped: what completed is there, across sizes and power cuts.
#[test]
fn requests_go_on_while_the_size_changes() {
    const KEPT: u64 = 8 * 4096;
    for seed in 0..16u64 {
        let setup = Setup { size: 40 * 4096, ..Setup::small() };
        let disk = setup.disk();
        disk.set_drain_policy(DrainPolicy::BySeed(seed));
        let image = Rc::new(open(&disk).unwrap());
        let model = Rc::new(RefCell::new(Model::new(SparseBytes::new(KEPT)).with_disk(&disk)));
        let mut executor = Executor::new();
        executor.attach(&disk);
        let mut choices = Choices::new(hash(0x7e51_2e00, seed));
        let mut cancel = Vec::new();
        for op in 1..40u64 {
            let (image, model) = (Rc::clone(&image), Rc::clone(&model));
            let change = Rc::new(Cell::new(None));
            let slot = Rc::clone(&change);
            let mut draw = choices.stream(op);
            let task = executor.spawn(async move {
                match op % 5 {
                    0 => {
                        let size = [KEPT, 30 * 4096, 100 * 4096, 200 * 4096, 600 * 4096][draw.index(5)];
                        image.resize(size, Preallocation::Off).await.unwrap();
                    }
                    1 => {
                        let flush = model.borrow_mut().submit_flush();
                        image.flush().await.unwrap();
                        model.borrow_mut().complete_flush(flush);
                    }
                    _ => {
                        let at = draw.below(KEPT - 600);
                        let data = stamp::bytes(at, 1 + draw.index(600), op);
                        let fua = draw.chance(300);
                        let id = model.borrow_mut().submit_write(at, &data, fua);
                        slot.set(Some(id));
                        let flags = if fua { WriteFlags::FUA } else { WriteFlags::empty() };
                        image.write(at, &data, flags).await.unwrap();
                        model.borrow_mut().complete(id);
                    }
                }
            });
            if choices.chance(200) {
                cancel.push((task.id(), change));
            }
        }
        let mut steps = 0;
        while executor.step(&mut choices) {
            steps += 1;
            if steps % 30 == 0
                && let Some((task, change)) = cancel.pop()
            {
                executor.cancel(task);
                if let Some(id) = change.get() {
                    model.borrow_mut().drop_request(id);
                }
            }
            assert!(steps < 100_000, "seed {seed}: no end in sight");
        }
        executor.run(seed).unwrap_or_else(|stuck| panic!("seed {seed}: {stuck}"));
        disk.set_scheduled(false);
        let end = disk.position();
        let at = model.borrow_mut().now();
        block_on(image.close()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        model.borrow_mut().drained(at);
        check_image(&disk.image(), true).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let mut found = content(&open(&disk).unwrap()).unwrap();
        found.truncate(usize::try_from(KEPT).unwrap());
        let verdict = model.borrow_mut().check_now(0, &found);
        verdict.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        let log = disk.log();
        let mut points = interesting_points(&log);
        points.extend(model.borrow().interesting_points());
        points.retain(|&point| point <= end);
        for position in points.into_iter().step_by(1 + usize::try_from(seed % 5).unwrap()) {
            for state in crash_states(&log, &disk.initial(), position, 6, seed) {
                let where_ = format!("seed {seed}, power cut at {position} with {}", state.how);
                let mut found = recover(&state.image, true).unwrap_or_else(|error| panic!("{where_}: {error}"));
                found.truncate(usize::try_from(KEPT).unwrap());
                let verdict = model.borrow().after_crash(position).check(0, &found);
                verdict.unwrap_or_else(|violation| panic!("{where_}: {violation}"));
            }
        }
    }
}

#[test]
fn a_power_cut_during_a_resize_leaves_the_old_or_the_new_image() {
    cut_everywhere(&table(), None);
}

/// The same judges on drivers that are wrong.
#[test]
fn every_mutant_of_resize_is_found() {
    let moving: Vec<_> = table().into_iter().filter(|(what, ..)| what.contains("move")).collect();
    assert_eq!(moving.len(), 3);
    let found = |judge: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(judge)).is_err();
    assert!(found(&|| fail_every_request(&moving, Some(Mutant::FreesWhatHeaderNames))));
    assert!(found(&|| cut_everywhere(&moving, Some(Mutant::SwitchesBeforeFlush))));
    assert!(found(&|| cut_everywhere(&moving, Some(Mutant::MovesBehindMap))));
    let shrinking: Vec<_> = table().into_iter().filter(|(what, ..)| *what == "shrink").collect();
    assert!(found(&|| cut_everywhere(&shrinking, Some(Mutant::ShortensMapFirst))));
}

fn cut_everywhere(table: &[(&str, Setup, u64)], mutant: Option<Mutant>) {
    for &(what, setup, size) in table {
        let (bytes, want) = filled(setup);
        let disk = TestDisk::growing_from_bytes(bytes);
        let image = shared(&disk, mutant);
        block_on(image.resize(size, Preallocation::Off)).unwrap();
        block_on(image.close()).unwrap();
        let log = disk.log();
        for position in interesting_points(&log) {
            for state in crash_states(&log, &disk.initial(), position, 12, 1) {
                let verdict =
                    recover(&state.image, true).and_then(|found| same_up_to_size(&found, &want, [setup.size, size]));
                verdict.unwrap_or_else(|error| panic!("{what}, power cut at {position}, {}: {error}", state.how));
            }
        }
    }
}

/// The exception in the head of the module, asserted as it is: no entry is free and the map has no room. QEMU's check
/// would complain of the indices; nothing is lost, and a close repairs it.
#[test]
fn a_full_map_without_room_leaves_large_indices_at_a_power_cut() {
    let setup = Setup { block_size: 512, size: 128 * 512, room: 128, fixed: true, ..Setup::small() };
    let (bytes, want) = filled(setup);
    let size = 300 * 512;
    let disk = TestDisk::growing_from_bytes(bytes);
    let image = shared(&disk, None);
    block_on(image.resize(size, Preallocation::Off)).unwrap();
    let log = disk.log();
    let mut large = 0;
    for position in interesting_points(&log) {
        for state in crash_states(&log, &disk.initial(), position, 6, 1) {
            if let Err(said) = check_image(&state.image, false) {
                assert!(said.contains("too large for 128 blocks"), "{said}");
                large += 1;
            }
            reopen(&state.image, true)
                .and_then(|found| same_up_to_size(&found, &want, [setup.size, size]))
                .unwrap_or_else(|error| panic!("power cut at {position}, {}: {error}", state.how));
        }
    }
    assert!(large > 0, "the exception is gone: say so in the head of the module");
}

/// A shrink whose header may have landed although it failed: the next FUA write behind that end is durable only with
/// the old header, or the device has no such place after a power cut.
#[test]
fn fua_after_a_shrink_that_failed_brings_the_size_back() {
    let (bytes, _) = filled(Setup::small());
    for zeroes in [false, true] {
        let disk = TestDisk::growing_from_bytes(bytes.clone());
        let image = shared(&disk, None);
        let header = ByteRange::at(0, 512);
        let error = IoError::new(Errno::IO);
        disk.add_rule(Rule::new(Action::DoThenFail(error)).kind(OpKind::Write).range(header).nth(1));
        block_on(image.resize(4096, Preallocation::Off)).unwrap_err();
        disk.clear_rules();
        assert_eq!(image.info().size, Setup::small().size);
        // In the last block, which is mapped; zeroes also in the one before it, which is not.
        let at = 25 * 4096;
        if zeroes {
            block_on(image.write_zeroes(at - 4096, 4096 + 512, ZeroFlags::FUA)).unwrap();
        } else {
            block_on(image.write(at, &[9; 512], WriteFlags::FUA)).unwrap();
        }
        let log = disk.log();
        for state in crash_states(&log, &disk.initial(), log.end(), 20, 0) {
            let found = recover(&state.image, true).unwrap();
            assert_eq!(found.len() as u64, Setup::small().size, "zeroes: {zeroes}, {}", state.how);
            let want = if zeroes { 0 } else { 9 };
            assert!(found[25 * 4096..][..512].iter().all(|&byte| byte == want), "zeroes: {zeroes}, {}", state.how);
        }
    }
}

#[test]
fn gaps_are_closed_by_close_and_survive_power_cuts() {
    // Shrinking leaves a file in which the last blocks must move down.
    let setup = Setup { size: 12 * 4096, ..Setup::small() };
    let disk = setup.disk();
    let image = open(&disk).unwrap();
    for block in (0..12u64).rev() {
        block_on(image.write(block * 4096, &stamp::bytes(block * 4096, 4096, 3), WriteFlags::empty())).unwrap();
    }
    block_on(image.flush()).unwrap();
    let begin = disk.position();
    block_on(image.resize(5 * 4096, Preallocation::Off)).unwrap();
    block_on(image.write_zeroes(0, 512, ZeroFlags::empty())).unwrap();
    block_on(image.close()).unwrap();
    let layout = check_image(&disk.image(), true).unwrap();
    assert_eq!(layout.blocks, 5);
    let log = disk.log();
    for position in interesting_points(&log).into_iter().filter(|&position| position >= begin) {
        for state in crash_states(&log, &disk.initial(), position, 20, 2) {
            let found =
                recover(&state.image, true).unwrap_or_else(|error| panic!("{position}, {}: {error}", state.how));
            let want = stamp::bytes(0, 5 * 4096, 3);
            assert!(found[512..5 * 4096] == want[512..], "{position}, {}", state.how);
        }
    }
}

#[test]
fn sizes_beyond_the_format_are_refused() {
    let disk = Setup::small().disk();
    let image = open(&disk).unwrap();
    for size in [u64::MAX, 0x1fff_ff81 * 4096] {
        let error = block_on(image.resize(size, Preallocation::Off)).unwrap_err();
        assert_eq!(error.errno, Errno::FBIG, "{size:#x}: {error}");
    }
    assert_eq!(image.info().size, Setup::small().size);
}
