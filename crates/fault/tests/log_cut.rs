//! Cutting the power behind an entry of a log: every state, and no other.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod log_common;

use std::collections::BTreeSet;
use std::rc::Rc;

use blkproof_block::nodes::memory::Memory;
use blkproof_block::testing::{Choices, Executor, OpKind, TestDisk, block_on, crash_states};
use blkproof_block::{BlockDevice as _, Node, WriteFlags, ZeroFlags};
use blkproof_fault::disk::config::Profile;
use blkproof_fault::disk::name::StateName;
use blkproof_fault::log_writes::cut::{Cut, CutError, How};
use blkproof_fault::log_writes::read::{Extent, Log, Writer};
use log_common::{content, device, how, node};

const SIZE: u64 = 2048;

fn cut_how() -> How {
    How { extent: Extent::All, ..How::default() }
}

/// Every image that the log allows behind `at` entries.
fn images(log: &Node, at: u64) -> (BTreeSet<Vec<u8>>, Cut) {
    block_on(async {
        let log = Log::open(log.clone()).await.unwrap();
        let base = Memory::new(SIZE);
        let cut = Cut::new(&log, at, Some(&base), cut_how()).await.unwrap();
        let mut durable = vec![0; SIZE as usize];
        base.read(0, &mut durable).await.unwrap();
        let mut images = BTreeSet::new();
        for name in cut.names(Profile::Block, 1 << 16, 0) {
            let image = Memory::with_content(&durable);
            cut.write(&cut.state(&name, Profile::Block).unwrap(), &image).await.unwrap();
            let mut bytes = vec![0; SIZE as usize];
            image.read(0, &mut bytes).await.unwrap();
            images.insert(bytes);
        }
        (images, cut)
    })
}

#[test]
fn the_states_are_those_of_the_disk_below() {
    let mut compared = 0;
    for seed in 0..30 {
        let details = seed % 2 == 0;
        let (disk, log) = (TestDisk::new(SIZE), TestDisk::growing(0));
        let node = node(Node::new(disk.clone()), Node::new(log.clone()), how(512, details));
        let mut choices = Choices::new(seed);
        let mut moments = vec![disk.position()];
        for step in 0..8_u8 {
            let at = choices.below(4) * 512;
            let len = (choices.below(3) + 1) * 512;
            let len = len.min(SIZE - at);
            let fua = choices.chance(150);
            block_on(async {
                match choices.below(8) {
                    0 => node.flush().await.unwrap(),
                    1 => node.write_zeroes(at, len, ZeroFlags::empty()).await.unwrap(),
                    2 => node.discard(at, len).await.unwrap(),
                    _ => {
                        let data = vec![step + 1; len as usize];
                        let flags = if fua { WriteFlags::FUA } else { WriteFlags::empty() };
                        node.write(at, &data, flags).await.unwrap();
                    }
                }
            });
            moments.push(disk.position());
        }
        let image = device(&log.image());
        for (at, &position) in moments.iter().enumerate() {
            // With details the next request is known to be under way, until just before it completes; without them it
            // is not.
            let position = match moments.get(at + 1) {
                Some(next) if details => next - 1,
                _ => position,
            };
            let states = crash_states(&disk.log(), &disk.initial(), position, 1 << 16, 0);
            assert!(states.is_exhaustive(), "seed {seed}: the budget is too small for a comparison");
            let want: BTreeSet<Vec<u8>> = states.map(|state| content(&state.image)).collect();
            let (got, _) = images(&image, at as u64);
            assert!(got == want, "seed {seed}, entry {at}: {} states, wanted {}", got.len(), want.len());
            compared += want.len();
        }
    }
    assert!(compared > 4000, "{compared}");
}

/// W1, a flush is sent, W2 completes, the flush completes, W3 is under way.
fn with_a_flush_under_way(details: bool) -> Node {
    let (disk, log) = (TestDisk::new(SIZE), TestDisk::growing(0));
    let node = Rc::new(node(Node::new(disk.clone()), Node::new(log.clone()), how(512, details)));
    let mut executor = Executor::new();
    block_on(node.write(0, &[1; 512], WriteFlags::empty())).unwrap();
    disk.hold_kind(OpKind::Flush);
    let other = node.clone();
    executor.spawn(async move { other.flush().await.unwrap() });
    executor.run_until_stalled();
    disk.hold_kind(OpKind::WriteZeroes);
    let other = node.clone();
    executor.spawn(async move { other.write_zeroes(1024, 512, ZeroFlags::empty()).await.unwrap() });
    executor.run_until_stalled();
    block_on(node.write(512, &[2; 512], WriteFlags::empty())).unwrap();
    disk.release_all();
    executor.run_until_stalled();
    device(&log.image())
}

#[test]
fn only_details_tell_what_a_flush_covered_and_what_was_under_way() {
    // Entries: W1, W2, flush, W3 or W3, flush: the executor decides; W2 is covered by neither.
    let (states, cut) = images(&with_a_flush_under_way(true), 3);
    assert_eq!(cut.writer, Writer::Ours);
    assert_eq!((cut.covered, cut.under_way + cut.volatile), (1, 2), "{cut:?}");
    assert!(states.iter().any(|image| image[512] == 0), "W2 can be lost");
    assert!(states.iter().all(|image| image[0] == 1), "W1 can not");
    let (states, cut) = images(&with_a_flush_under_way(false), 3);
    assert_eq!(cut.writer, Writer::Completion);
    assert!(states.iter().all(|image| image[512] == 2), "without details W2 passes for covered: {cut:?}");
}

#[test]
fn states_have_the_names_of_entries() {
    let (disk, log) = (TestDisk::new(SIZE), TestDisk::growing(0));
    let node = node(Node::new(disk), Node::new(log.clone()), how(512, false));
    block_on(async {
        node.write(0, &[1; 512], WriteFlags::empty()).await.unwrap();
        node.flush().await.unwrap();
        node.write(0, &[2; 1024], WriteFlags::empty()).await.unwrap();
        node.log().mark("between").await.unwrap();
        node.write(1024, &[3; 512], WriteFlags::empty()).await.unwrap();
    });
    let log = device(&log.image());
    type Row = (&'static str, Profile, Result<[u8; 3], &'static str>);
    let table: [Row; 9] = [
        ("all-old", Profile::Block, Ok([1, 0, 0])),
        ("all-new", Profile::Block, Ok([2, 2, 3])),
        ("drop:2", Profile::Block, Ok([1, 0, 3])),
        ("keep:2", Profile::Block, Ok([2, 2, 0])),
        ("keep:4", Profile::Block, Ok([1, 0, 3])),
        ("prefix:completion:1", Profile::Ordered, Ok([2, 2, 0])),
        ("tear:2:first:1", Profile::Torn, Ok([2, 0, 3])),
        ("tear:2:first:1", Profile::Block, Err("takes profile 'torn'")),
        ("drop:0", Profile::Block, Err("no request 0 is in the cache")),
    ];
    for (name, profile, want) in table {
        block_on(async {
            let log = Log::open(log.clone()).await.unwrap();
            let image = Memory::new(SIZE);
            let cut = Cut::new(&log, 5, Some(&image), cut_how()).await.unwrap();
            match (cut.state(&name.parse::<StateName>().unwrap(), profile), want) {
                (Ok(state), Ok(want)) => {
                    cut.write(&state, &image).await.unwrap();
                    let mut bytes = [0; 1536];
                    image.read(0, &mut bytes).await.unwrap();
                    assert_eq!([bytes[0], bytes[512], bytes[1024]], want, "{name}");
                }
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
                (got, want) => panic!("{name}: {got:?}, wanted {want:?}"),
            }
        });
    }
    block_on(async {
        let log = Log::open(log.clone()).await.unwrap();
        let error = Cut::new(&log, 6, None::<&Memory>, cut_how()).await.unwrap_err();
        assert_eq!(error, CutError::Entry { at: 6, entries: 5 });
        let tight = How { memory: 100, ..cut_how() };
        let error = Cut::new(&log, 5, None::<&Memory>, tight).await.unwrap_err();
        assert!(matches!(error, CutError::Memory { .. }), "{error}");
    });
}
