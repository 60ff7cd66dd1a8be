//! The node: what clients see, before, during and after a power cut.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::rc::Rc;

use blkproof_block::nodes::memory::{Memory, SparseBytes};
use blkproof_block::testing::{Action, DrainPolicy, Executor, OpKind, Rule, Stage, TestDisk, block_on};
use blkproof_block::{
    BlockDevice, Capabilities, Errno, IoError, Limits, Node, Preallocation, Result, WriteFlags, ZeroFlags,
};
use blkproof_fault::clock::Stopped;
use blkproof_fault::disk::model::Sabotage;
use blkproof_fault::disk::{CutError, Disk, DiskNode, DiskOptions, Extent, FlushError, Kind, Profile};
use blkproof_fault::lab::{Lab, Part};
use blkproof_fault::notice::What;

const NONE: WriteFlags = WriteFlags::empty();

fn over(child: &TestDisk, options: DiskOptions) -> (Rc<DiskNode>, Disk) {
    let node = Rc::new(DiskNode::new(Node::new(child.clone()), options));
    let disk = node.handle();
    (node, disk)
}

/// First byte of each sector, as a client reads it.
fn seen(node: &DiskNode) -> Vec<u8> {
    let mut bytes = vec![0xdd; node.info().size as usize];
    block_on(node.read(0, &mut bytes)).unwrap();
    bytes.chunks(512).map(|sector| sector[0]).collect()
}

/// First byte of each sector, as the medium has it.
fn stored(child: &TestDisk) -> Vec<u8> {
    let len = child.info().size as usize;
    child.bytes(0, len).chunks(512).map(|sector| sector[0]).collect()
}

async fn fill(node: &DiskNode, sector: u64, byte: u8) {
    node.write(sector * 512, &[byte; 512], NONE).await.unwrap();
}

#[test]
fn an_honest_disk_loses_what_was_not_flushed() {
    let child = TestDisk::new(2048);
    let (node, disk) = over(&child, DiskOptions::default());
    block_on(async {
        fill(&node, 0, 1).await;
        fill(&node, 1, 1).await;
        assert_eq!((seen(&node), stored(&child)), (vec![1, 1, 0, 0], vec![0; 4]));
        node.flush().await.unwrap();
        assert_eq!(stored(&child), [1, 1, 0, 0]);
        fill(&node, 1, 2).await;
        node.write(1024, &[3; 512], WriteFlags::FUA).await.unwrap();
        node.write_zeroes(0, 512, ZeroFlags::empty()).await.unwrap();
        assert_eq!((seen(&node), stored(&child)), (vec![0, 2, 3, 0], vec![1, 1, 3, 0]));
        let report = disk.power_cut(Some("all-old")).await.unwrap();
        assert_eq!((report.cut, &*report.state, report.requests), (1, "all-old", 2));
        assert_eq!((report.states.count, report.lost, report.betrayed), (4, 1024, 0));
        assert_eq!((seen(&node), stored(&child)), (vec![1, 1, 3, 0], vec![1, 1, 3, 0]));
        // The numbers of requests go on, and the next cut is another one.
        fill(&node, 3, 4).await;
        let report = disk.power_cut(Some("all-new")).await.unwrap();
        assert_eq!((report.cut, report.lost), (2, 0));
        assert_eq!(stored(&child), [1, 1, 3, 4]);
    });
}

#[test]
fn a_liar_loses_what_was_flushed_and_says_how_much() {
    let child = TestDisk::new(2048);
    let (node, disk) = over(&child, DiskOptions { kind: Kind::Liar, ..DiskOptions::default() });
    block_on(async {
        fill(&node, 0, 1).await;
        node.flush().await.unwrap();
        node.write(512, &[2; 512], WriteFlags::FUA).await.unwrap();
        fill(&node, 2, 3).await;
        assert_eq!(child.log().ops().len(), 0, "nothing of all this reached the medium");
        assert_eq!(disk.state(0).promised, 1024);
        let report = disk.power_cut(Some("all-old")).await.unwrap();
        assert_eq!((report.lost, report.betrayed), (1536, 1024));
        assert_eq!(stored(&child), [0; 4]);
        // Even a liar puts everything away when it is shut down.
        fill(&node, 0, 5).await;
        node.close().await.unwrap();
        assert_eq!(stored(&child), [5, 0, 0, 0]);
    });
}

/// CM 5.3 (1): just before a flush completes everything is still open, also what it has written already.
#[test]
fn a_cut_in_the_middle_of_a_flush() {
    for (hold, name, want) in [
        (OpKind::Flush, "all-old", [9, 9, 9]),
        (OpKind::Flush, "keep:1", [9, 2, 9]),
        (OpKind::Flush, "all-new", [1, 2, 3]),
        (OpKind::Write, "all-old", [9, 9, 9]),
        (OpKind::Write, "drop:0", [9, 2, 3]),
    ] {
        for stage in [Stage::BeforeEffect, Stage::BeforeCompletion] {
            let mut content = SparseBytes::new(1536);
            content.write(0, &[9; 1536]);
            let child = TestDisk::from_bytes(content);
            child.set_drain_policy(DrainPolicy::BySeed(hold as u64));
            let (node, disk) = over(&child, DiskOptions::default());
            block_on(async {
                fill(&node, 0, 1).await;
                fill(&node, 1, 2).await;
            });
            let action = match stage {
                Stage::BeforeEffect => Action::HoldBefore,
                Stage::BeforeCompletion => Action::HoldAfter,
            };
            child.add_rule(Rule::new(action).kind(hold).times(2));
            let mut executor = Executor::new();
            let flushing = Rc::clone(&node);
            let flush = executor.spawn(async move { flushing.flush().await });
            executor.run_until_stalled();
            assert!(!flush.is_done());
            block_on(fill(&node, 2, 3));
            child.clear_rules();
            let cutting = disk.clone();
            let cut = executor.spawn(async move { cutting.power_cut(Some(name)).await });
            executor.run_until_stalled();
            let report = cut.take().expect("the cut waits for nobody").unwrap();
            assert_eq!(&*report.state, name);
            assert_eq!(stored(&child), want, "{name} with a {hold:?} held {stage:?}");
            let error = flush.take().expect("whoever waited for the flush hears of it").unwrap_err();
            assert_eq!((error.errno, error.gone), (Errno::NOTCONN, true));
            assert_eq!(seen(&node), want);
            // Nothing of the old life is left.
            block_on(node.flush()).unwrap();
            assert_eq!(stored(&child), want);
        }
    }
}

/// A flush whose owner does not poll it can not stand in the way of a cut, nor of the next flush.
#[test]
fn a_cut_waits_for_nobody() {
    let child = TestDisk::new(1024);
    let (node, disk) = over(&child, DiskOptions::default());
    block_on(fill(&node, 0, 1));
    child.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write).times(1));
    let mut flush = Box::pin(node.flush());
    block_on(async {
        assert!(futures_lite::future::poll_once(&mut flush).await.is_none());
        assert_eq!(disk.power_cut(Some("all-old")).await.unwrap().lost, 512);
        assert_eq!(stored(&child), [0, 0]);
        fill(&node, 1, 2).await;
        node.flush().await.unwrap();
        assert_eq!(stored(&child), [0, 2]);
        assert_eq!(flush.await.unwrap_err().errno, Errno::NOTCONN);
    });
}

#[test]
fn off_until_it_is_switched_on() {
    let child = TestDisk::new(2048);
    let (node, disk) = over(&child, DiskOptions { stay_off: true, ..DiskOptions::default() });
    block_on(async {
        fill(&node, 0, 1).await;
        disk.power_cut(Some("all-new")).await.unwrap();
        assert!(!disk.is_on());
        let gone = |result: Result<()>| assert_eq!(result.unwrap_err().errno, Errno::NOTCONN);
        gone(node.read(0, &mut [0; 4]).await);
        gone(node.write(0, &[0; 4], NONE).await);
        gone(node.write_zeroes(0, 4, ZeroFlags::empty()).await);
        gone(node.discard(0, 4).await);
        gone(node.flush().await);
        gone(node.block_status(0, 4).await.map(drop));
        gone(node.resize(512, Preallocation::Off).await);
        assert!(!node.read_now(0, &mut [0; 4]));
        assert_eq!(disk.power_cut(None).await, Err(CutError::Off));
        node.drain().await.unwrap();
        disk.power_on().await.unwrap();
        disk.power_on().await.unwrap();
        assert_eq!(seen(&node), [1, 0, 0, 0]);
        disk.power_cut(None).await.unwrap();
        node.close().await.unwrap();
    });
}

/// A medium that fails while the state is put on it: the disk stays off, and goes on with the same state.
#[test]
fn a_cut_whose_medium_fails() {
    for nth in 1..4 {
        let child = TestDisk::new(2048);
        let (node, disk) = over(&child, DiskOptions::default());
        block_on(async {
            fill(&node, 0, 1).await;
            fill(&node, 2, 1).await;
            child.fail_nth(nth, IoError::new(Errno::IO));
            let error = disk.power_cut(Some("keep:1")).await;
            if nth == 3 {
                // One write, one flush.
                assert!(error.is_ok());
                return;
            }
            let Err(CutError::Medium(error)) = error else { panic!("{error:?}") };
            assert_eq!(error.errno, Errno::IO);
            assert!(!disk.is_on());
            if nth == 1 {
                disk.power_on().await.unwrap();
            } else {
                assert_eq!(&*disk.power_cut(Some("all-old")).await.unwrap().state, "keep:1");
            }
            assert_eq!(seen(&node), [0, 0, 1, 0]);
            assert_eq!(disk.state(0).cuts, 1);
        });
    }
}

/// Dropped at every await, a cut is finished by whoever comes next.
#[test]
fn a_cut_that_is_dropped() {
    for steps in 0..8 {
        let child = TestDisk::new(2048);
        child.set_drain_policy(DrainPolicy::BySeed(steps));
        let (node, disk) = over(&child, DiskOptions::default());
        block_on(async {
            fill(&node, 0, 1).await;
            fill(&node, 2, 1).await;
        });
        let mut executor = Executor::new();
        executor.attach(&child);
        let cutting = disk.clone();
        let task = executor.spawn(async move { cutting.power_cut(Some("keep:0")).await });
        let mut choices = blkproof_block::testing::Choices::new(steps);
        for _ in 0..steps {
            executor.step(&mut choices);
        }
        executor.cancel(task.id());
        let cuts = disk.state(0).cuts;
        let resumed = disk.clone();
        let end = executor.block_on(steps, async move { resumed.power_on().await }).unwrap();
        end.unwrap();
        assert!(disk.is_on());
        let reader = Rc::clone(&node);
        let bytes = executor
            .block_on(steps, async move {
                let mut bytes = vec![0; 2048];
                reader.read(0, &mut bytes).await.map(|()| bytes)
            })
            .unwrap()
            .unwrap();
        let want = if cuts == 0 { [1, 0, 1, 0] } else { [1, 0, 0, 0] };
        assert_eq!(bytes.chunks(512).map(|sector| sector[0]).collect::<Vec<_>>(), want, "after {steps} steps");
    }
}

#[test]
fn a_name_that_is_none_changes_nothing() {
    let child = TestDisk::new(1024);
    let (node, disk) = over(&child, DiskOptions { profile: Profile::Ordered, ..DiskOptions::default() });
    block_on(async {
        fill(&node, 0, 1).await;
        for name in ["all", "drop:0", "number:0"] {
            assert!(matches!(disk.power_cut(Some(name)).await, Err(CutError::State(_))), "{name}");
        }
        assert_eq!((seen(&node), disk.state(0).cuts, disk.is_on()), (vec![1, 0], 0, true));
    });
}

/// Two cuts at once, and the second finds a disk that has just come back.
#[test]
fn two_cuts() {
    let child = TestDisk::new(1024);
    let (node, disk) = over(&child, DiskOptions::default());
    block_on(async {
        fill(&node, 0, 1).await;
        let (a, b) = futures_lite::future::zip(disk.power_cut(Some("all-new")), disk.power_cut(Some("all-old"))).await;
        assert_eq!((a.unwrap().cut, b.unwrap().cut), (1, 2));
        assert_eq!(seen(&node), [1, 0]);
    });
}

/// The same seed, the same states; another cut, another state.
#[test]
fn states_by_seed() {
    let run = |seed| {
        let child = TestDisk::new(32 << 10);
        let (node, disk) = over(&child, DiskOptions { seed, ..DiskOptions::default() });
        block_on(async {
            let mut states = Vec::new();
            for round in 1..4 {
                for sector in 0..64 {
                    fill(&node, sector, round).await;
                }
                let report = disk.power_cut(None).await.unwrap();
                assert!(report.state.starts_with("seed:0x"));
                states.push((report.state, stored(&child)));
            }
            states
        })
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn the_cache_is_bounded() {
    for cache_size in [0, 600, 4096, 64 << 10] {
        let child = TestDisk::new(1 << 20);
        let (node, disk) = over(&child, DiskOptions { cache_size, ..DiskOptions::default() });
        block_on(async {
            for i in 0..300_u64 {
                let sector = i * 7 % 2048;
                fill(&node, sector, i as u8 | 1).await;
                // One request may be longer than the cache.
                assert!(disk.state(0).cached <= cache_size.max(800), "{}", disk.state(0).cached);
                let mut read = [0];
                node.read(sector * 512, &mut read).await.unwrap();
                assert_eq!(read, [i as u8 | 1]);
            }
            node.write(4096, &[7; 200 << 10], NONE).await.unwrap();
            fill(&node, 0, 3).await;
            assert!(disk.state(0).cached <= cache_size.max(800));
            // What left the cache is there, whatever the state.
            let early = stored(&child).iter().filter(|byte| **byte != 0).count();
            assert!(early > 400, "{early}");
            let report = disk.power_cut(Some("all-old")).await.unwrap();
            assert!(report.lost <= cache_size.max(800), "{report:?}");
        });
    }
}

/// Full of requests that were written back in vain: the new one fails, with words, and nothing is lost.
#[test]
fn a_medium_that_fails_eviction() {
    let child = TestDisk::new(1 << 20);
    let (node, _) = over(&child, DiskOptions { cache_size: 2000, ..DiskOptions::default() });
    block_on(async {
        fill(&node, 0, 1).await;
        fill(&node, 1, 1).await;
        child.fail_kind(OpKind::Write, IoError::new(Errno::NOSPC).at(512));
        let error = node.write(1024, &[2; 512], NONE).await.unwrap_err();
        assert_eq!((error.errno, error.first_bad), (Errno::NOSPC, None));
        assert!(error.to_string().contains("writing back what the disk's cache holds"), "{error}");
        child.clear_rules();
        fill(&node, 2, 3).await;
        assert_eq!(seen(&node)[..4], [1, 1, 3, 0]);
    });
}

#[test]
fn flushes_that_fail() {
    for (flush_error, want_seen, want_stored) in
        [(FlushError::Keep, [1, 2, 0, 0], [1, 2, 0, 0]), (FlushError::Forget, [0, 2, 0, 0], [0, 2, 0, 0])]
    {
        // The disk's own failure, and one of the medium before anything was written.
        for own in [true, false] {
            let child = TestDisk::new(2048);
            let (node, disk) = over(&child, DiskOptions { flush_error, ..DiskOptions::default() });
            block_on(async {
                fill(&node, 0, 1).await;
                if own {
                    disk.fail_flushes(1).unwrap();
                } else {
                    child.add_rule(Rule::new(Action::FailBefore(IoError::new(Errno::IO))).kind(OpKind::Write).times(1));
                }
                assert_eq!(node.flush().await.unwrap_err().errno, Errno::IO);
                fill(&node, 1, 2).await;
                assert_eq!(seen(&node), want_seen, "{flush_error:?}");
                node.flush().await.unwrap();
                assert_eq!(stored(&child), want_stored, "{flush_error:?}");
            });
        }
    }
    let (_, disk) = over(&TestDisk::new(512), DiskOptions::default());
    assert!(disk.fail_flushes(1).is_err());
}

/// Any byte range, an odd end, zeroes, discards, growth by a write and by a resize, and a shrink.
#[test]
fn sizes_and_odd_ends() {
    let mut content = SparseBytes::new(1000);
    content.write(0, &[9; 1000]);
    let child = TestDisk::growing_from_bytes(content);
    let (node, disk) = over(&child, DiskOptions::default());
    block_on(async {
        node.write(990, &[1; 10], NONE).await.unwrap();
        node.write(1500, &[2; 100], NONE).await.unwrap();
        assert_eq!(node.info().size, 1600);
        let mut bytes = vec![0; 1600];
        node.read(0, &mut bytes).await.unwrap();
        let want = [vec![9; 990], vec![1; 10], vec![0; 500], vec![2; 100]].concat();
        assert!(bytes == want);
        let old = disk.preview("all-old").unwrap();
        assert_eq!((old.size, old.pieces.len()), (1000, 0));
        node.flush().await.unwrap();
        assert!(child.info().size == 1600 && child.bytes(0, 1600) == want);

        node.resize(300, Preallocation::Off).await.unwrap();
        node.resize(2000, Preallocation::Off).await.unwrap();
        let mut bytes = vec![1; 2000];
        node.read(0, &mut bytes).await.unwrap();
        assert!(bytes == [vec![9; 300], vec![0; 1700]].concat());
        assert_eq!(child.info().size, 1600);
        node.flush().await.unwrap();
        assert!(child.bytes(0, 2000) == bytes);

        node.discard(0, 100).await.unwrap();
        let status = node.block_status(0, 2000).await.unwrap();
        assert!(status.zero && status.len == 100);
        assert!(node.read(1999, &mut [0; 2]).await.is_err());
        assert_eq!(node.write(u64::MAX - 5, &[1; 4], NONE).await.unwrap_err().errno, Errno::FBIG);
        assert_eq!(node.resize(u64::MAX, Preallocation::Off).await.unwrap_err().errno, Errno::FBIG);
    });
}

/// A shrink that a cut undoes or not: with the data, or without.
#[test]
fn a_shrink_in_doubt() {
    for (name, size) in [("all-old", 2048), ("all-new", 512)] {
        let mut content = SparseBytes::new(2048);
        content.write(0, &[9; 2048]);
        let child = TestDisk::from_bytes(content);
        let (node, disk) = over(&child, DiskOptions::default());
        block_on(async {
            node.resize(512, Preallocation::Off).await.unwrap();
            assert_eq!(disk.power_cut(Some(name)).await.unwrap().size, size);
            assert_eq!(node.info().size, size);
            assert!(stored(&child).iter().all(|byte| *byte == 9));
        });
    }
}

#[test]
fn limits_and_capabilities() {
    let child = TestDisk::new(4096)
        .with_limits(Limits { alignment: 512, zero_alignment: 512, ..Limits::NONE })
        .with_capabilities(Capabilities::RESIZE);
    let (node, _) = over(&child, DiskOptions::default());
    let info = node.info();
    assert!(!info.limits.needs_help());
    assert_eq!(
        info.capabilities,
        Capabilities::RESIZE
            | Capabilities::ZEROES
            | Capabilities::FAST_ZERO
            | Capabilities::FUA
            | Capabilities::MULTI_CONN
            | Capabilities::ZERO_ON_GROWTH
    );
    block_on(async {
        node.write(100, &[1; 7], WriteFlags::FUA).await.unwrap();
        // The medium ignores discards, and so does the disk.
        node.discard(0, 4096).await.unwrap();
        assert_eq!(child.bytes(99, 9), [0, 1, 1, 1, 1, 1, 1, 1, 0]);
        let mut bytes = [0; 9];
        node.read(99, &mut bytes).await.unwrap();
        assert_eq!(bytes, [0, 1, 1, 1, 1, 1, 1, 1, 0]);
    });
    // Space that the medium does not zero when it grows is zeroed by the disk.
    block_on(async {
        node.resize(8192, Preallocation::Off).await.unwrap();
        node.flush().await.unwrap();
    });
    assert_eq!(child.log().of_kind(OpKind::WriteZeroes).count(), 1);
}

#[test]
fn reading_without_waiting() {
    let node = DiskNode::new(Node::new(Memory::new(4096)), DiskOptions::default());
    block_on(fill(&node, 1, 5));
    let mut bytes = [1; 512];
    assert!(node.read_now(0, &mut bytes) && bytes == [0; 512], "from the medium");
    assert!(node.read_now(512, &mut bytes) && bytes == [5; 512], "from the cache");
    assert!(!node.read_now(256, &mut bytes), "from both");
    assert!(!node.read_now(4000, &mut bytes), "past the end");
}

#[test]
fn known_to_the_lab() {
    let lab = Lab::new(Rc::new(Stopped));
    let mut heard = lab.notices().listen();
    let name = lab.name("disk", None);
    let child = || Node::new(Memory::new(1 << 40));
    let node = DiskNode::listed(child(), DiskOptions::default(), &lab, &name).unwrap();
    assert!(DiskNode::listed(child(), DiskOptions::default(), &lab, &name).is_err());
    let Some(Part::Disk(disk)) = lab.get("disk0") else { panic!("the disk is not listed") };
    block_on(async {
        fill(&node, (1 << 31) - 1, 1).await;
        assert_eq!(disk.state(9).names.len(), 2);
        lab.switches()[0].power.cut(Some("all-old")).await.unwrap();
        assert_eq!(lab.switches()[0].power.cut(Some("x")).await.unwrap_err().errno, Errno::INVAL);
    });
    let notice = heard.try_recv().unwrap();
    assert_eq!(&*notice.node, "disk0");
    let What::PowerCut { cut, state, lost, betrayed } = &notice.what else { panic!("{notice:?}") };
    assert_eq!((*cut, &**state, *lost, *betrayed), (1, "all-old", 512, 0));
    drop(node);
    assert!(lab.get("disk0").is_none() && lab.switches().is_empty());
}

/// What is saved is what a cut would leave, and the disk goes on.
#[test]
fn saved_states() {
    let mut content = SparseBytes::new(4096);
    content.write(0, &[9; 2048]);
    let child = TestDisk::from_bytes(content);
    let (node, disk) = over(&child, DiskOptions::default());
    block_on(async {
        fill(&node, 1, 1).await;
        fill(&node, 6, 2).await;
        node.write_zeroes(0, 512, ZeroFlags::empty()).await.unwrap();
        let image = TestDisk::new(0);
        disk.save_state("drop:1", &image, Extent::Image).await.unwrap();
        assert_eq!(stored(&image), [0, 1, 9, 9, 0, 0, 0, 0]);
        let written: u64 = image.log().of_kind(OpKind::Write).map(|op| op.range.len()).sum();
        assert!(written < 4096 && image.log().of_kind(OpKind::WriteZeroes).count() == 0, "{}", image.log());
        let overlay = TestDisk::from_bytes({
            let mut marked = SparseBytes::new(4096);
            marked.write(0, &[0x77; 4096]);
            marked
        });
        let state = disk.save_state("drop:1", &overlay, Extent::Overlay).await.unwrap();
        assert_eq!((state.size, state.lost), (4096, 512));
        assert_eq!(stored(&overlay), [0, 1, 0x77, 0x77, 0x77, 0x77, 0x77, 0x77]);
        assert_eq!(disk.state(0).cuts, 0);
        disk.power_cut(Some("drop:1")).await.unwrap();
        assert_eq!(stored(&child), stored(&image));
    });
}

/// Mistakes in the node that one request at a time can show.
#[test]
fn mistakes_of_the_node_are_found() {
    let run = |sabotage: Sabotage| {
        std::panic::catch_unwind(|| {
            let child = TestDisk::new(2048);
            let (node, disk) = over(&child, DiskOptions { cache_size: 1600, ..DiskOptions::default() });
            node.sabotage(sabotage);
            block_on(async {
                fill(&node, 0, 1).await;
                fill(&node, 1, 2).await;
                fill(&node, 2, 3).await;
                assert_eq!(seen(&node), [1, 2, 3, 0]);
                node.flush().await.unwrap();
                node.write(1536, &[4; 512], WriteFlags::FUA).await.unwrap();
                disk.power_cut(Some("all-old")).await.unwrap();
                assert_eq!(seen(&node), [1, 2, 3, 4]);
                fill(&node, 0, 5).await;
                child.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Flush).times(1));
                let mut flush = Box::pin(node.flush());
                assert!(futures_lite::future::poll_once(&mut flush).await.is_none());
                disk.power_cut(Some("all-old")).await.unwrap();
                assert_eq!(seen(&node), [1, 2, 3, 4]);
                assert!(flush.await.is_err());
            });
        })
    };
    for sabotage in [
        Sabotage::FuaIsNotWritten,
        Sabotage::NoUndo,
        Sabotage::JobsOutliveCut,
        Sabotage::RoomWithoutWriting,
        Sabotage::ReadersMissNewest,
    ] {
        assert!(run(sabotage).is_err(), "{sabotage:?} goes unnoticed");
    }
    // One that this can not show: the scene itself is sound.
    assert!(run(Sabotage::FlushSkipsZeroes).is_ok());
}

/// A client that was there when the power went is gone, even if it had nothing in flight; a new one is welcome.
#[test]
fn clients_of_an_earlier_life() {
    let child = TestDisk::new(1024);
    let (node, disk) = over(&child, DiskOptions::default());
    block_on(async {
        let client = node.for_client("a").unwrap();
        client.write(0, &[1; 512], NONE).await.unwrap();
        disk.power_cut(Some("all-old")).await.unwrap();
        assert_eq!(client.read(0, &mut [0; 512]).await.unwrap_err().errno, Errno::NOTCONN);
        assert_eq!(client.write(0, &[1; 512], NONE).await.unwrap_err().errno, Errno::NOTCONN);
        assert_eq!(client.flush().await.unwrap_err().errno, Errno::NOTCONN);
        let client = node.for_client("b").unwrap();
        client.write(0, &[2; 512], WriteFlags::FUA).await.unwrap();
        assert_eq!(stored(&child), [2, 0]);
    });
}
