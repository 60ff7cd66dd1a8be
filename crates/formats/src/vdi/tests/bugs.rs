//! Bugs of other VDI drivers, each with the sequence that shows it (numbers: bug gallery). Every test also runs the
//! sequence on a mutant with that bug, where there is one, and demands that it fails.

use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use blkproof_block::testing::{
    Action, DrainPolicy, Executor, OpKind, Rule, TestDisk, block_on, crash_states, interesting_points,
};
use blkproof_block::{BlockDevice, ByteRange, Errno, Event, IoError, WriteFlags};

use super::{Mutant, Setup, check_image, content, open, recover, shared};
use crate::vdi::Vdi;

const BLOCK: u64 = 4096;
/// Where the data of a small image begins.
const DATA: u64 = 1024;

fn write(image: &Vdi<TestDisk>, at: u64, byte: u8, len: usize) -> blkproof_block::Result<()> {
    block_on(image.write(at, &vec![byte; len], WriteFlags::empty()))
}

fn poll_once<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn holds(image: &Vdi<TestDisk>, at: u64, byte: u8, len: usize) -> Result<(), String> {
    let found = content(image)?;
    let start = usize::try_from(at).unwrap();
    match found[start..start + len].iter().find(|&&found| found != byte) {
        Some(found) => Err(format!("{found:#x} instead of {byte:#x} at {at:#x}")),
        None => Ok(()),
    }
}

/// V1, M1 (FVD's tool, 2011; in QEMU to this day): the map in memory is set before the data write. Write A fails, write
/// B to the same block finds it mapped, succeeds, is flushed, and is gone after a reopen.
#[test]
fn v1_a_failed_allocation_does_not_swallow_the_next_write() {
    let sequence = |mutant| -> Result<(), String> {
        let disk = Setup::small().disk();
        let image = shared(&disk, mutant);
        disk.add_rule(Rule::new(Action::FailBefore(IoError::new(Errno::IO))).kind(OpKind::Write).nth(1));
        let error = write(&image, BLOCK, 1, 512).unwrap_err();
        assert_eq!(error.first_bad, None, "the disk named no place: {error}");
        disk.clear_rules();
        write(&image, BLOCK + 1024, 2, 512).unwrap();
        block_on(image.flush()).unwrap();
        block_on(image.close()).unwrap();
        holds(&open(&disk)?, BLOCK + 1024, 2, 512)?;
        check_image(&disk.image(), true).map(|_| ())
    };
    sequence(None).unwrap();
    sequence(Some(Mutant::MapBeforeWrite)).unwrap_err();
}

/// V1b: only the allocating request writes the map. B, to a block that A has just allocated, completes and is flushed;
/// the power fails before A's map write; B is unreachable.
#[test]
fn v1b_a_flush_covers_entries_that_another_request_made() {
    let disk = Setup::small().disk();
    let image = shared(&disk, None);
    write(&image, BLOCK, 1, 512).unwrap();
    write(&image, BLOCK + 1024, 2, 512).unwrap();
    block_on(image.flush()).unwrap();
    let log = disk.log();
    for state in crash_states(&log, &disk.initial(), log.end(), 100, 0) {
        let found = recover(&state.image, true).unwrap();
        assert_eq!(found[5120..5632], [2; 512], "{}", state.how);
    }
}

/// V2: cancel or fail each sub-step of an allocating write in turn, then send another request. QEMU leaked buffers,
/// left the map only in memory, or failed later requests. The sweep does this for every request; here it is by name of
/// the step.
#[test]
fn v2_an_allocation_dropped_at_each_step_leaves_nothing_behind() {
    for event in [Event::VdiBlockAlloc, Event::VdiBlockWrite, Event::VdiHeaderUpdate, Event::VdiBmapUpdate] {
        let disk = Setup::small().disk();
        let image = shared(&disk, None);
        disk.add_rule(Rule::new(Action::HoldBefore).event(event));
        {
            let mut future = pin!(image.write(0, &[1; 512], WriteFlags::FUA));
            assert!(poll_once(future.as_mut()).is_pending(), "{event}");
        }
        disk.clear_rules();
        write(&image, 512, 2, 512).unwrap();
        block_on(image.close()).unwrap();
        check_image(&disk.image(), true).unwrap_or_else(|error| panic!("{event}: {error}"));
        holds(&open(&disk).unwrap(), 512, 2, 512).unwrap();
    }
}

/// V3, M13 (QEMU f0ab6f1096, Launchpad 1422307): A allocates and pads the block; B, to another sector of it, completes
/// meanwhile; A's padding wipes B out.
#[test]
fn v3_an_allocation_does_not_pad_over_a_neighbour() {
    let sequence = |mutant| -> Result<(), String> {
        let disk = Setup { grows: false, ..Setup::small() }.disk();
        let image = shared(&disk, mutant);
        let mut executor = Executor::new();
        disk.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::WriteZeroes).nth(1));
        for (at, byte) in [(512, 1), (2048, 2)] {
            let image = Rc::clone(&image);
            executor.spawn(async move { image.write(at, &[byte; 512], WriteFlags::empty()).await.unwrap() });
            executor.run_until_stalled();
        }
        disk.release_all();
        executor.run(0).map_err(|stuck| stuck.to_string())?;
        holds(&image, 512, 1, 512)?;
        holds(&image, 2048, 2, 512)?;
        holds(&image, 0, 0, 512)?;
        block_on(image.close()).unwrap();
        check_image(&disk.image(), true).map(|_| ())
    };
    sequence(None).unwrap();
    sequence(Some(Mutant::PadsWithoutLock)).unwrap_err();
}

/// V4 (QEMU 641543b76b, Launchpad 919242): one request allocates two blocks, the last in part, and stale bytes show in
/// the rest of it. Here the stale bytes are those of a failed write to the same place.
#[test]
fn v4_a_new_block_shows_no_stale_bytes() {
    let sequence = |mutant| -> Result<(), String> {
        let disk = Setup::small().disk();
        let image = shared(&disk, mutant);
        disk.add_rule(Rule::new(Action::DoThenFail(IoError::new(Errno::IO))).kind(OpKind::Write).nth(1));
        write(&image, 0, 7, 4096).unwrap_err();
        disk.clear_rules();
        write(&image, 8 * BLOCK + 512, 1, 4096).unwrap();
        holds(&image, 8 * BLOCK, 0, 512)?;
        holds(&image, 8 * BLOCK + 512, 1, 4096)?;
        holds(&image, 9 * BLOCK + 512, 0, 3584)
    };
    sequence(None).unwrap();
    sequence(Some(Mutant::KeepsStaleBytes)).unwrap_err();
}

/// M9: a dropped write to a reserved block lands after the block was given to another guest block.
#[test]
fn m9_a_late_landing_never_hits_a_block_given_to_others() {
    let disk = Setup::small().disk();
    let image = shared(&disk, None);
    disk.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write).nth(1));
    {
        let mut future = pin!(image.write(0, &[0xdd; 4096], WriteFlags::empty()));
        assert!(poll_once(future.as_mut()).is_pending());
    }
    for block in 1..6 {
        write(&image, block * BLOCK, 1, 4096).unwrap();
    }
    let orphan = disk.orphans()[0].id;
    disk.land(orphan);
    for block in 1..6 {
        holds(&image, block * BLOCK, 1, 4096).unwrap();
    }
    holds(&image, 0, 0, 4096).unwrap();
    block_on(image.close()).unwrap();
    check_image(&disk.image(), true).unwrap();
}

/// The same when the image is so full that the quarantined block is the last one: it is taken only after a drain.
#[test]
fn a_full_image_drains_before_it_reuses_a_block() {
    let disk = Setup { size: 2 * BLOCK, ..Setup::small() }.disk();
    disk.set_drain_policy(DrainPolicy::Land);
    let image = shared(&disk, None);
    disk.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write).nth(1));
    {
        let mut future = pin!(image.write(0, &[0xdd; 4096], WriteFlags::empty()));
        assert!(poll_once(future.as_mut()).is_pending());
    }
    write(&image, 0, 1, 100).unwrap();
    assert_eq!(disk.log().of_kind(OpKind::Drain).count(), 0);
    write(&image, BLOCK, 2, 100).unwrap();
    assert_eq!(disk.log().of_kind(OpKind::Drain).count(), 1);
    holds(&image, 0, 1, 100).unwrap();
    holds(&image, 100, 0, 3996).unwrap();
    holds(&image, BLOCK, 2, 100).unwrap();
    holds(&image, BLOCK + 100, 0, 3996).unwrap();
}

/// M10: a dropped allocation keeps its lock, and the next write to the block never completes.
#[test]
fn m10_a_dropped_allocation_gives_its_lock_back() {
    let disk = Setup::small().disk();
    let image = shared(&disk, None);
    disk.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write).nth(1));
    {
        let mut future = pin!(image.write(0, &[1; 512], WriteFlags::empty()));
        assert!(poll_once(future.as_mut()).is_pending());
    }
    write(&image, 0, 2, 512).unwrap();
    holds(&image, 0, 2, 512).unwrap();
}

/// M9 for metadata: a dropped map write lands after a newer one and takes entries back.
#[test]
fn a_late_map_write_does_not_undo_a_newer_one() {
    for policy in [DrainPolicy::Land, DrainPolicy::Forget] {
        let disk = Setup::small().disk();
        disk.set_drain_policy(policy);
        let image = shared(&disk, None);
        write(&image, 0, 1, 512).unwrap();
        let map = ByteRange { start: 512, end: DATA };
        disk.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write).range(map).nth(1));
        {
            let mut flush = pin!(image.flush());
            assert!(poll_once(flush.as_mut()).is_pending());
        }
        write(&image, BLOCK, 2, 512).unwrap();
        block_on(image.flush()).unwrap();
        assert!(disk.orphans().is_empty(), "the second flush had to drain the first one's write");
        let again = open(&disk).unwrap();
        holds(&again, 0, 1, 512).unwrap();
        holds(&again, BLOCK, 2, 512).unwrap();
    }
}

/// M19 (G39): allocation state is tested, then a wait, then acted upon: two guest blocks get one place.
#[test]
fn m19_two_allocations_in_flight_get_two_blocks() {
    let disk = Setup::small().disk();
    let image = shared(&disk, None);
    let mut executor = Executor::new();
    disk.hold_kind(OpKind::Write);
    for block in 0..4u64 {
        for half in 0..2 {
            let image = Rc::clone(&image);
            let byte = u8::try_from(block * 2 + half + 1).unwrap();
            executor.spawn(async move {
                image.write(block * BLOCK + half * 2048, &[byte; 2048], WriteFlags::empty()).await.unwrap();
            });
        }
    }
    executor.run_until_stalled();
    disk.clear_rules();
    while !disk.parked().is_empty() {
        disk.release_all();
        executor.run_until_stalled();
    }
    executor.run(0).unwrap();
    for block in 0..4u64 {
        for half in 0..2 {
            let byte = u8::try_from(block * 2 + half + 1).unwrap();
            holds(&image, block * BLOCK + half * 2048, byte, 2048).unwrap();
        }
    }
}

/// M39: the map entry reaches the disk before the data it exposes.
#[test]
fn m39_no_power_cut_exposes_bytes_that_were_not_written() {
    let sequence = |mutant| -> Result<(), String> {
        // A device of fixed length, full of old bytes.
        let disk = Setup { grows: false, ..Setup::small() }.disk();
        let image = shared(&disk, mutant);
        write(&image, 512, 1, 512).unwrap();
        block_on(image.flush()).unwrap();
        let log = disk.log();
        for position in interesting_points(&log) {
            for state in crash_states(&log, &disk.initial(), position, 200, 3) {
                let found = recover(&state.image, false)?;
                if found.contains(&0xee) {
                    return Err(format!("old bytes show after {}", state.how));
                }
            }
        }
        Ok(())
    };
    sequence(None).unwrap();
    sequence(Some(Mutant::MapBeforeData)).unwrap_err();
}

/// M42 (G18): a flush fails, the next one succeeds, and the map never reached the disk.
#[test]
fn m42_a_failed_flush_is_made_up_for_by_the_next() {
    let sequence = |mutant| -> Result<(), String> {
        for n in 1..=5 {
            let disk = Setup::small().disk();
            let image = shared(&disk, mutant);
            write(&image, 0, 1, 512).unwrap();
            disk.fail_nth(n, IoError::new(Errno::IO));
            let failed = block_on(image.flush()).is_err();
            assert!(failed || n == 5, "a flush makes four requests");
            disk.clear_rules();
            block_on(image.flush()).unwrap();
            holds(&open(&disk)?, 0, 1, 512)?;
            check_image(&disk.image(), true)?;
        }
        Ok(())
    };
    sequence(None).unwrap();
    sequence(Some(Mutant::ForgetsDirty)).unwrap_err();
}

/// M37: FUA of an allocating write must make the map entry durable too; of a write in place it needs no flush at all.
#[test]
fn m37_fua_covers_what_is_needed_to_find_the_data() {
    let disk = Setup::small().disk();
    let image = shared(&disk, None);
    block_on(image.write(0, &[1; 512], WriteFlags::FUA)).unwrap();
    let flushes = disk.log().of_kind(OpKind::Flush).count();
    block_on(image.write(0, &[2; 512], WriteFlags::FUA)).unwrap();
    let log = disk.log();
    assert_eq!(log.of_kind(OpKind::Flush).count(), flushes, "the entry is durable: FUA goes to the file");
    for state in crash_states(&log, &disk.initial(), log.end(), 100, 0) {
        let found = recover(&state.image, true).unwrap();
        assert_eq!(found[..512], [2; 512], "{}", state.how);
    }
}

/// An error is reported at the guest's offset, with what was done before it.
#[test]
fn errors_name_the_guest_offset() {
    let disk = Setup::small().disk();
    let image = shared(&disk, None);
    write(&image, 5 * BLOCK, 1, 4096).unwrap();
    write(&image, 4 * BLOCK, 1, 4096).unwrap();
    // Guest block 5 is host block 0.
    let bad = DATA + 1024;
    disk.add_rule(
        Rule::new(Action::FailBefore(IoError::new(Errno::IO).at(bad)))
            .kind(OpKind::Read)
            .range(ByteRange::at(bad, 512)),
    );
    let mut buf = vec![0; 2 * 4096];
    let error = block_on(image.read(4 * BLOCK, &mut buf)).unwrap_err();
    assert_eq!(error.first_bad.map(|at| at.0), Some(5 * BLOCK + 1024));
    assert_eq!(error.transferred, 4096);
}

/// A damaged map: no writing; reading fails where the damage is, and nowhere else.
#[test]
fn a_damaged_map_is_refused_for_writing_and_named_when_read() {
    let disk = Setup::small().disk();
    let image = shared(&disk, None);
    for block in 0..4 {
        write(&image, block * BLOCK, 1, 4096).unwrap();
    }
    block_on(image.close()).unwrap();
    disk.tamper(|bytes| {
        bytes.write(512 + 4, &0u32.to_le_bytes());
        bytes.write(512 + 12, &0x00ff_ffffu32.to_le_bytes());
    });
    let error = open(&disk).unwrap_err();
    assert_eq!(error, "open: corrupt VDI image: block map entry 1 at 0x204 names block 0, which entry 0 names too");
    let image = block_on(Vdi::open(disk.clone(), true)).unwrap();
    let read = |block: u64| block_on(image.read(block * BLOCK, &mut [0; 512])).map_err(|error| error.to_string());
    assert_eq!(read(2), Ok(()));
    assert_eq!(
        read(1).unwrap_err(),
        "Input/output error at 0x1000: block map entry 1 at 0x204 names block 0, which another entry names too"
    );
    let error = read(3).unwrap_err();
    assert!(error.contains("past end of file (0x4400)"), "{error}");
    assert_eq!(block_on(image.write(0, &[1], WriteFlags::empty())).unwrap_err().errno, Errno::PERM);
}

/// A count that is too low, as QEMU leaves it when the power fails between header and map: the next block must not be
/// given out twice, and a close repairs the count.
#[test]
fn a_count_that_is_too_low_is_repaired() {
    let disk = Setup::small().disk();
    let image = shared(&disk, None);
    write(&image, 0, 1, 4096).unwrap();
    block_on(image.close()).unwrap();
    disk.tamper(|bytes| bytes.write(0x184, &[0; 4]));
    let image = open(&disk).unwrap();
    write(&image, BLOCK, 2, 4096).unwrap();
    block_on(image.close()).unwrap();
    check_image(&disk.image(), true).unwrap();
    let image = open(&disk).unwrap();
    holds(&image, 0, 1, 4096).unwrap();
    holds(&image, BLOCK, 2, 4096).unwrap();
}

/// An image opened for reading alone is not touched, whatever a power cut left in it.
#[test]
fn a_read_only_open_changes_nothing() {
    let disk = Setup::small().disk();
    disk.tamper(|bytes| bytes.write(0x184, &[9, 0, 0, 0]));
    let image = block_on(Vdi::open(disk.clone(), true)).unwrap();
    block_on(async {
        image.read(0, &mut [0; 512]).await.unwrap();
        image.flush().await.unwrap();
        image.close().await.unwrap();
    });
    assert_eq!(disk.log().of_kind(OpKind::Write).count(), 0);
}

/// The steps a fault rule can aim at, in their order.
#[test]
fn every_step_is_announced() {
    let disk = Setup::small().disk();
    let image = shared(&disk, None);
    block_on(image.write(0, &[1; 512], WriteFlags::FUA)).unwrap();
    block_on(image.resize(0, blkproof_block::Preallocation::Off)).unwrap();
    let events: Vec<_> = disk.log().events().map(|(_, event)| event.name()).collect();
    let want = [
        "vdi_header_load",
        "vdi_bmap_load",
        "vdi_block_alloc",
        "vdi_block_write",
        "vdi_header_update",
        "vdi_bmap_update",
        "flush_to_os",
        // The size, the entry behind it, its block, the count, and the length of the map.
        "vdi_header_update",
        "vdi_bmap_update",
        "vdi_block_free",
        "vdi_header_update",
        "vdi_header_update",
    ];
    assert_eq!(events, want);
}
