//! Growing, with and without room for the map, shrinking, and closing gaps: with faults at every request, and power cuts
//! at every point that matters.

use blkproof_block::nodes::memory::SparseBytes;
use blkproof_block::testing::{TestDisk, block_on, crash_states, interesting_points, stamp};
use blkproof_block::{BlockDevice, Errno, IoError, Preallocation, WriteFlags, ZeroFlags};

use super::{Setup, check_image, content, open, recover};

/// From, to, and the setup before.
fn table() -> Vec<(&'static str, Setup, u64)> {
    let small = Setup::small();
    let tight = Setup { block_size: 512, size: 128 * 512, room: 128, ..small };
    vec![
        ("grow inside the last block", small, 101 * 1024),
        ("grow inside the map's room", small, 120 * 4096),
        ("grow past the map's room: the first blocks move", small, 200 * 4096),
        ("grow past the room of small blocks: several move", tight, 600 * 512),
        ("grow a fixed image", Setup { fixed: true, ..small }, 60 * 4096),
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

#[test]
fn a_resize_with_a_failing_request_keeps_every_byte() {
    for (what, setup, size) in table() {
        let (bytes, want) = filled(setup);
        let mut n = 1;
        loop {
            let what = format!("{what}, request {n} fails");
            let disk = TestDisk::growing_from_bytes(bytes.clone());
            let image = open(&disk).unwrap();
            disk.fail_nth(n, IoError::new(Errno::IO));
            let result = block_on(image.resize(size, Preallocation::Off));
            let bitten = disk.faults() > 0;
            disk.clear_rules();
            assert!(result.is_ok() || bitten, "{what}");
            // Old or new; what the running driver says is what the next one finds.
            let now = content(&image).unwrap();
            same_up_to_size(&now, &want, [setup.size, size]).unwrap_or_else(|error| panic!("{what}: {error}"));
            // A write to every unallocated block reuses whatever the failure gave back.
            let mut now = now;
            for (index, chunk) in now.chunks_mut(setup.block_size as usize).enumerate() {
                if chunk.iter().all(|&byte| byte == 0) {
                    chunk.fill(9);
                    let at = index as u64 * u64::from(setup.block_size);
                    block_on(image.write(at, chunk, WriteFlags::empty()))
                        .unwrap_or_else(|error| panic!("{what}: {error}"));
                }
            }
            block_on(image.close()).unwrap_or_else(|error| panic!("{what}: close: {error}"));
            check_image(&disk.image(), true).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(content(&open(&disk).unwrap()).unwrap() == now, "{what}: content after reopening");
            if !bitten {
                break;
            }
            // Hundreds of copied blocks are all alike.
            n += if n < 60 { 1 } else { 37 };
        }
    }
}

#[test]
fn a_power_cut_during_a_resize_leaves_the_old_or_the_new_image() {
    for (what, setup, size) in table() {
        let (bytes, want) = filled(setup);
        let disk = TestDisk::growing_from_bytes(bytes);
        let image = open(&disk).unwrap();
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
