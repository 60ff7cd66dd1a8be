//! Writes to the medium that fail, are given up half-way, or do not come to an end.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod common;

use std::rc::Rc;
use std::time::Duration;

use blkproof_block::nodes::memory::SparseBytes;
use blkproof_block::testing::{Action, DrainPolicy, Executor, OpKind, Rule, TestDisk, block_on};
use blkproof_block::{BlockDevice, Errno, IoError, Node, WriteFlags};
use blkproof_fault::disk::{CutError, Disk, DiskNode, DiskOptions, Extent, FlushError, Profile};
use blkproof_fault::filter::{Fault, Faults};
use blkproof_fault::lab::Lab;
use blkproof_fault::rule::{self, RuleSet};

use self::common::{TestClock, rule};

fn nines(len: u64) -> TestDisk {
    let mut content = SparseBytes::new(len);
    content.write(0, &vec![9; len as usize]);
    TestDisk::from_bytes(content)
}

fn over(child: &TestDisk, options: DiskOptions) -> (Rc<DiskNode>, Disk) {
    let node = Rc::new(DiskNode::new(Node::new(child.clone()), options));
    let disk = node.handle();
    (node, disk)
}

/// First byte of each sector, as the medium has it.
fn stored(child: &TestDisk) -> Vec<u8> {
    let len = child.info().size as usize;
    child.bytes(0, len).chunks(512).map(|sector| sector[0]).collect()
}

fn heads(bytes: &[u8]) -> Vec<u8> {
    bytes.chunks(512).map(|sector| sector[0]).collect()
}

async fn fill(node: &DiskNode, sector: u64, byte: u8) {
    node.write(sector * 512, &[byte; 512], WriteFlags::empty()).await.unwrap();
}

/// How a flush does not end well, after it has written some of what it covers.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// The flush of the medium fails.
    Fails,
    /// A write to the medium fails, with the others under way.
    Breaks,
    /// Whoever asked for it goes away.
    Dropped,
}

/// Leaves sectors 0 to 2 written to the cache, and a flush of them that came to no good end.
fn troubled(trouble: Trouble, options: DiskOptions) -> (TestDisk, Rc<DiskNode>, Disk) {
    let child = nines(2048);
    child.set_drain_policy(DrainPolicy::BySeed(trouble as u64));
    let (node, disk) = over(&child, options);
    block_on(async {
        for sector in 0..3 {
            fill(&node, sector, sector as u8 + 1).await;
        }
        let error = IoError::new(Errno::IO);
        match trouble {
            Trouble::Fails => child.add_rule(Rule::new(Action::FailBefore(error)).kind(OpKind::Flush).times(1)),
            Trouble::Breaks => child.add_rule(Rule::new(Action::DoThenFail(error)).kind(OpKind::Write).times(1)),
            Trouble::Dropped => child.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Flush).times(1)),
        };
        let mut flush = Box::pin(node.flush());
        let done = futures_lite::future::poll_once(&mut flush).await;
        assert_eq!(done.is_some(), !matches!(trouble, Trouble::Dropped));
        drop(flush);
        child.clear_rules();
    });
    (child, node, disk)
}

const TROUBLES: [Trouble; 3] = [Trouble::Fails, Trouble::Breaks, Trouble::Dropped];

/// Nothing of a flush that failed or was given up is certain: a cut can still lose all of it.
#[test]
fn a_flush_that_did_not_end_can_be_lost() {
    for trouble in TROUBLES {
        for profile in [Profile::Ordered, Profile::Request, Profile::Block] {
            for (name, want) in [
                ("all-old", [9, 9, 9, 9]),
                ("prefix:submission:1", [1, 9, 9, 9]),
                ("keep:1", [9, 2, 9, 9]),
                ("all-new", [1, 2, 3, 9]),
            ] {
                if profile == Profile::Ordered && name.starts_with("keep") {
                    continue;
                }
                let (child, node, disk) = troubled(trouble, DiskOptions { profile, ..DiskOptions::default() });
                block_on(disk.power_cut(Some(name))).unwrap();
                assert_eq!(stored(&child), want, "{trouble:?}, {profile:?}: {name}");
                // And what comes later finds nothing of it.
                block_on(async {
                    fill(&node, 3, 5).await;
                    node.flush().await.unwrap();
                    disk.power_cut(Some("all-old")).await.unwrap();
                });
                assert_eq!(stored(&child), [want[0], want[1], want[2], 5]);
            }
        }
    }
}

/// A FUA write over a part of it settles that part, and no more; the next flush settles the rest.
#[test]
fn a_later_job_settles_its_own() {
    for trouble in TROUBLES {
        let (child, node, disk) = troubled(trouble, DiskOptions::default());
        block_on(async {
            node.write(512, &[7; 512], WriteFlags::FUA).await.unwrap();
            assert_eq!(heads(&disk_image(&disk, "all-old").await), [9, 7, 9, 9], "{trouble:?}");
            assert_eq!(heads(&disk_image(&disk, "keep:2").await), [9, 7, 3, 9], "{trouble:?}");
            node.flush().await.unwrap();
            disk.power_cut(Some("all-old")).await.unwrap();
        });
        assert_eq!(stored(&child), [1, 7, 3, 9]);
    }
}

/// What is evicted over it does not bring the old content back either.
#[test]
fn an_eviction_after_it() {
    for trouble in TROUBLES {
        let options = DiskOptions { cache_size: 4096, ..DiskOptions::default() };
        let (child, node, disk) = troubled(trouble, options);
        block_on(async {
            for byte in 20..40 {
                fill(&node, 3, byte).await;
            }
            // The oldest were written back meanwhile.
            disk.power_cut(Some("all-old")).await.unwrap();
        });
        let kept = stored(&child);
        assert_eq!(kept[..3], [1, 2, 3], "{trouble:?}");
        assert!((20..40).contains(&kept[3]), "{kept:?}");
    }
}

/// With `forget`, what failed never was, and no cut brings it back.
#[test]
fn a_failed_flush_that_forgets() {
    for trouble in [Trouble::Fails, Trouble::Breaks] {
        let options = DiskOptions { flush_error: FlushError::Forget, ..DiskOptions::default() };
        let (child, node, disk) = troubled(trouble, options);
        block_on(async {
            let before = stored(&child);
            assert_eq!(disk.state(0).requests, 0);
            fill(&node, 3, 5).await;
            disk.power_cut(Some("all-new")).await.unwrap();
            assert_eq!(stored(&child)[..3], before[..3]);
            assert_eq!(stored(&child)[3], 5);
        });
    }
}

async fn disk_image(disk: &Disk, name: &str) -> Vec<u8> {
    let image = TestDisk::new(0);
    disk.save_state(name, &image, Extent::Image).await.unwrap();
    image.bytes(0, image.info().size as usize)
}

/// A write that was given up may land while a state is saved: not before it is looked at.
#[test]
fn a_saved_state_waits_for_what_lands_late() {
    for seed in 0..8 {
        let child = nines(2048);
        child.set_drain_policy(DrainPolicy::BySeed(seed));
        let (node, disk) = over(&child, DiskOptions::default());
        block_on(async {
            fill(&node, 0, 1).await;
            fill(&node, 1, 2).await;
            child.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write).times(2));
            let mut flush = Box::pin(node.flush());
            assert!(futures_lite::future::poll_once(&mut flush).await.is_none());
            drop(flush);
            child.clear_rules();
            for (name, want) in [("all-old", [9, 9, 9, 9]), ("keep:1", [9, 2, 9, 9])] {
                let drains = child.log().of_kind(OpKind::Drain).count();
                assert_eq!(heads(&disk_image(&disk, name).await), want, "{name}, seed {seed}");
                assert_eq!(child.log().of_kind(OpKind::Drain).count(), drains.max(1), "once is enough");
            }
        });
    }
}

/// A cut whose state does not stand on the medium: there is nothing that could be saved.
#[test]
fn no_state_of_a_disk_that_is_not_back() {
    let child = nines(2048);
    let (node, disk) = over(&child, DiskOptions::default());
    block_on(async {
        fill(&node, 0, 1).await;
        child.fail_nth(1, IoError::new(Errno::IO));
        assert!(matches!(disk.power_cut(Some("all-new")).await, Err(CutError::Medium(_))));
        let image = TestDisk::new(0);
        let refused = disk.save_state("all-new", &image, Extent::Image).await.unwrap_err();
        assert_eq!(refused, CutError::Unfinished);
        assert_eq!(image.log().ops().len(), 0);
        disk.power_on().await.unwrap();
        assert_eq!(heads(&disk_image(&disk, "all-new").await), [1, 9, 9, 9]);
    });
}

/// A flush that is told to fail and forget does not take away what another one is writing.
#[test]
fn a_flush_told_to_fail_waits_for_its_turn() {
    let child = nines(1024);
    let options = DiskOptions { flush_error: FlushError::Forget, ..DiskOptions::default() };
    let (node, disk) = over(&child, options);
    block_on(fill(&node, 0, 1));
    child.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write).times(1));
    let mut executor = Executor::new();
    let one = Rc::clone(&node);
    let first = executor.spawn(async move { one.flush().await });
    executor.run_until_stalled();
    disk.fail_flushes(1).unwrap();
    let two = Rc::clone(&node);
    let second = executor.spawn(async move { two.flush().await });
    executor.run_until_stalled();
    assert!(!first.is_done() && !second.is_done());
    let mut bytes = [0; 512];
    block_on(node.read(0, &mut bytes)).unwrap();
    assert_eq!(bytes[0], 1, "still in the cache");
    child.clear_rules();
    child.release_all();
    executor.run_until_stalled();
    first.take().unwrap().unwrap();
    assert_eq!(second.take().unwrap().unwrap_err().errno, Errno::IO);
    assert_eq!(stored(&child), [1, 9]);
    // Nor does it outlive a cut.
    block_on(fill(&node, 1, 2));
    disk.fail_flushes(1).unwrap();
    child.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write).times(1));
    let writer = Rc::clone(&node);
    let fua = executor.spawn(async move { writer.write(0, &[3; 512], WriteFlags::FUA).await });
    let flusher = Rc::clone(&node);
    let flush = executor.spawn(async move { flusher.flush().await });
    executor.run_until_stalled();
    child.clear_rules();
    block_on(disk.power_cut(Some("all-old"))).unwrap();
    executor.run_until_stalled();
    assert!(fua.take().unwrap().unwrap_err().gone && flush.take().unwrap().unwrap_err().gone);
    assert_eq!(stored(&child), [1, 9]);
}

/// A rule below the disk that holds what a cut writes: the cut says so instead of waiting for ever.
#[test]
fn a_cut_that_a_rule_below_holds() {
    let hold = || rule::Action::Hold { tag: Some("wait".into()) };
    for (name, action, stopped, want) in [
        ("held", Some(hold()), false, "node 'below' holds a request under tag 'wait'"),
        ("hung", Some(rule::Action::Hang), false, "rule 'r' of node 'below' leaves requests unanswered"),
        ("stopped", None, true, "node 'below' is stopped"),
    ] {
        let clock = Rc::new(TestClock::default());
        let lab = Lab::new(Rc::new(common::Shared(Rc::clone(&clock))));
        let child = nines(2048);
        let faults = Faults::new("below".into(), RuleSet::default(), &lab).unwrap();
        lab.add(&"below".into(), blkproof_fault::lab::Part::Fault(Rc::clone(&faults))).unwrap();
        let medium = Node::new(Fault::new(Node::new(child.clone()), Rc::clone(&faults)));
        let node = Rc::new(DiskNode::listed(medium, DiskOptions::default(), &lab, &"disk0".into()).unwrap());
        let disk = node.handle();
        block_on(fill(&node, 0, 1));
        faults.add(action.into_iter().map(|action| rule("r", action)).collect()).unwrap();
        if stopped {
            faults.stop();
        }
        let mut executor = Executor::new();
        let cutting = disk.clone();
        let cut = executor.spawn(async move { cutting.power_cut(Some("all-new")).await });
        executor.run_until_stalled();
        assert!(!cut.is_done(), "{name}: it waits a little");
        clock.advance(Duration::from_secs(60));
        executor.run_until_stalled();
        let Some(Err(CutError::Medium(error))) = cut.take() else { panic!("{name}: still waiting") };
        assert_eq!(error.errno, Errno::TIMEDOUT, "{name}");
        assert!(error.to_string().contains(want), "{name}: {error}");
        assert!(!disk.is_on());
        faults.remove("r");
        faults.cont();
        block_on(disk.power_on()).unwrap();
        assert_eq!(stored(&child), [1, 9, 9, 9], "{name}");
    }
}

/// Without anything in the way a slow medium has all the time it wants.
#[test]
fn a_slow_medium() {
    let clock = Rc::new(TestClock::default());
    let lab = Lab::new(Rc::new(common::Shared(Rc::clone(&clock))));
    let child = nines(1024);
    let node =
        Rc::new(DiskNode::listed(Node::new(child.clone()), DiskOptions::default(), &lab, &"disk0".into()).unwrap());
    block_on(fill(&node, 0, 1));
    child.add_rule(Rule::new(Action::HoldBefore).kind(OpKind::Write).times(1));
    let mut executor = Executor::new();
    let cutting = node.handle();
    let cut = executor.spawn(async move { cutting.power_cut(Some("all-new")).await });
    for _ in 0..5 {
        executor.run_until_stalled();
        clock.advance(Duration::from_secs(60));
    }
    assert!(!cut.is_done());
    child.clear_rules();
    child.release_all();
    executor.run_until_stalled();
    cut.take().unwrap().unwrap();
    assert_eq!(stored(&child), [1, 9]);
}
