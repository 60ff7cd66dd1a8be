//! Damage: what a read of it returns, what is remembered for it, and what is said of it.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod common;

use std::cell::Cell;
use std::rc::Rc;

use blkproof_block::testing::{Action as Does, OpKind, Rule as Script, TestDisk, block_on};
use blkproof_block::{BlockDevice as _, ByteRange, Errno, IoError, Node, WriteFlags, ZeroFlags};
use blkproof_fault::filter::{Fault, Faults, VERSIONS_MAX};
use blkproof_fault::request::Operations;
use blkproof_fault::rule::{Action, Corruption, Life, Rule, RuleSet, Until};
use common::{Narrow as _, SECTOR, bench, fail, rule};

fn corrupt(how: Corruption) -> Action {
    Action::Corrupt { how, sectors: None }
}

/// A node over a disk that says what it was asked.
fn over(disk: &TestDisk, rules: Vec<Rule>) -> (Node, Rc<Faults>) {
    let b = bench(Vec::new());
    let faults = Faults::new(Rc::from("d"), RuleSet { rules, ..RuleSet::default() }, &b.lab).unwrap();
    (Node::new(Fault::new(Node::new(disk.clone()), Rc::clone(&faults))), faults)
}

async fn put(node: &Node, sector: u64, fill: u8) -> Result<(), IoError> {
    node.write(sector * SECTOR, &[fill; SECTOR as usize], WriteFlags::empty()).await
}

async fn first(node: &Node, sector: u64) -> u8 {
    let mut buf = [0xee; SECTOR as usize];
    node.read(sector * SECTOR, &mut buf).await.unwrap();
    buf[0]
}

fn reads(disk: &TestDisk) -> Vec<u64> {
    disk.log().ops().iter().filter(|op| op.kind == OpKind::Read).map(|op| op.range.len()).collect()
}

/// One trim or write-zeroes of the whole disk made the server read all of it into memory.
#[test]
fn versions_are_read_in_pieces_and_no_more_than_are_kept() {
    const SIZE: u64 = 4 << 30;
    for zeroes in [false, true] {
        block_on(async {
            let disk = TestDisk::new(SIZE);
            let (node, _) = over(&disk, vec![rule("s", corrupt(Corruption::Stale)).on(Operations::READ)]);
            if zeroes {
                node.write_zeroes(0, SIZE, ZeroFlags::empty()).await.unwrap();
            } else {
                node.discard(0, SIZE).await.unwrap();
            }
            let read = reads(&disk);
            assert!(read.iter().all(|&len| len <= 1 << 20), "{:?}", read.iter().max());
            assert_eq!(read.iter().sum::<u64>(), VERSIONS_MAX as u64);
            // There is no room for another sector, but there is for those that are known.
            put(&node, SIZE / SECTOR - 1, 1).await.unwrap();
            assert_eq!(reads(&disk).len(), read.len());
            put(&node, 3, 1).await.unwrap();
            put(&node, 3, 2).await.unwrap();
            assert_eq!(first(&node, 3).await, 1);
        });
    }
}

/// A sector that can not be read failed the very write that would have cured it.
#[test]
fn what_can_not_be_read_has_no_version() {
    block_on(async {
        let disk = TestDisk::new(1 << 20);
        let (node, _) = over(&disk, vec![rule("s", corrupt(Corruption::Stale)).on(Operations::READ)]);
        for sector in 0..8 {
            put(&node, sector, 1).await.unwrap();
        }
        let bad = ByteRange::at(3 * SECTOR, SECTOR);
        disk.add_rule(Script::new(Does::FailBefore(IoError::new(Errno::IO))).kind(OpKind::Read).range(bad));
        node.write(0, &[2; 8 * SECTOR as usize], WriteFlags::empty()).await.unwrap();
        disk.clear_rules();
        let mut got = Vec::new();
        for sector in 0..9 {
            got.push(first(&node, sector).await);
        }
        // Of the third, the one before the last version would be zeroes: that is not what was there last.
        assert_eq!(got, [1, 1, 1, 2, 1, 1, 1, 1, 0]);
    });
}

#[test]
fn a_write_that_fails_replaces_no_version() {
    block_on(async {
        let disk = TestDisk::new(1 << 20);
        let (node, faults) = over(&disk, vec![rule("s", corrupt(Corruption::Stale)).on(Operations::READ)]);
        put(&node, 0, 1).await.unwrap();
        put(&node, 0, 2).await.unwrap();
        assert_eq!(first(&node, 0).await, 1);
        disk.add_rule(Script::new(Does::FailBefore(IoError::new(Errno::IO))).kind(OpKind::Write).times(1));
        assert!(put(&node, 0, 3).await.is_err());
        assert_eq!(first(&node, 0).await, 1, "as before");
        // Versions go with their rule, and with what it has counted.
        for anew in [Some("s"), None] {
            assert!(faults.reset(anew));
            assert_eq!(first(&node, 0).await, 2);
            put(&node, 0, 3).await.unwrap();
            assert_eq!(first(&node, 0).await, 2);
            put(&node, 0, 2).await.unwrap();
        }
        assert_eq!(first(&node, 0).await, 3);
        assert!(faults.remove("s"));
        faults.add(vec![rule("t", corrupt(Corruption::Stale)).on(Operations::READ)]).unwrap();
        assert_eq!(first(&node, 0).await, 2);
        faults.replace(RuleSet { rules: vec![rule("t", corrupt(Corruption::Stale))], ..RuleSet::default() }).unwrap();
        assert_eq!(first(&node, 0).await, 2);
    });
}

/// Requests under way when rules are replaced must not be taken for requests of the new ones, which have the same places.
#[test]
fn a_write_under_way_hurts_nothing_for_a_rule_that_came_later() {
    block_on(async {
        let disk = TestDisk::new(1 << 20);
        let once =
            |id: &str| rule(id, corrupt(Corruption::Random)).on(Operations::WRITE).with(|rule| rule.on.nth = Some(1));
        let (node, faults) = over(&disk, vec![once("a")]);
        disk.hold_kind(OpKind::Write);
        let mut write = Box::pin(put(&node, 0, 7));
        assert!(futures_lite::future::poll_once(&mut write).await.is_none());
        faults.replace(RuleSet { rules: vec![once("b")], ..RuleSet::default() }).unwrap();
        disk.release_all();
        write.await.unwrap();
        assert_eq!(faults.list()[0].damaged, 0);
        assert_eq!(first(&node, 0).await, 7);
    });
}

/// Fired, and the read was good: the cure came before the damage was laid.
#[test]
fn damage_that_is_cured_at_once_is_seen_once() {
    block_on(async {
        let b = bench(vec![
            rule("blip", corrupt(Corruption::Zero))
                .on(Operations::READ)
                .sectors(4, 8)
                .with(|rule| rule.then.cure = true),
        ]);
        assert_eq!([first(&b.node, 5).await, first(&b.node, 5).await], [0, 5]);
        assert_eq!([first(&b.node, 6).await, first(&b.node, 6).await, first(&b.node, 3).await], [0, 6, 3]);
        assert_eq!((b.faults.list()[0].fired, b.faults.list()[0].damaged), (2, 0));
    });
}

#[test]
fn a_rule_that_passes_spares_a_read_from_those_behind() {
    block_on(async {
        let pass = rule("but", Action::Pass).on(Operations::READ).sectors(5, 6);
        let b = bench(vec![pass, rule("bad", corrupt(Corruption::Zero)).on(Operations::READ).sectors(4, 8)]);
        assert_eq!([first(&b.node, 4).await, first(&b.node, 5).await], [0, 5]);
        assert!(b.faults.set_armed("bad", false));
        assert_eq!(first(&b.node, 4).await, 4, "what always follows from the rule goes with it");
    });
}

#[test]
fn damage_does_not_read_as_zeroes() {
    block_on(async {
        let disk = TestDisk::new(1 << 20);
        let hurt = rule("bad", corrupt(Corruption::Random)).on(Operations::READ).sectors(4, 8);
        let (node, faults) = over(&disk, vec![hurt.life(Life { until: Until::Rewrite, ..Life::default() })]);
        let status = async |sector: u64, count: u64| {
            let status = node.block_status(sector * SECTOR, count * SECTOR).await.unwrap();
            (status.len / SECTOR, status.zero)
        };
        assert_eq!(status(0, 4).await, (4, true));
        assert_eq!(status(0, 100).await, (4, true));
        assert_eq!(status(4, 100).await, (4, false));
        assert_eq!(status(8, 100).await, (100, true));
        node.write_zeroes(4 * SECTOR, SECTOR, ZeroFlags::empty()).await.unwrap();
        assert_eq!(status(0, 100).await, (5, true));
        assert!(faults.set_armed("bad", false));
        assert_eq!(status(0, 100).await, (100, true));
        // Damage done stays, whether its rule is armed or not.
        let once = rule("once", corrupt(Corruption::Random)).on(Operations::WRITE_ZEROES).sectors(50, 51);
        faults.add(vec![once.with(|rule| rule.on.times = Some(1))]).unwrap();
        assert_eq!(status(0, 100).await, (100, true), "no read is damaged by it yet");
        node.write_zeroes(0, 100 * SECTOR, ZeroFlags::empty()).await.unwrap();
        assert_eq!([status(0, 100).await, status(50, 100).await], [(50, true), (1, false)]);
    });
}

/// The engine never reports a place behind bytes it has not read.
#[test]
fn a_read_that_names_its_bad_byte_has_what_lies_before_it() {
    use blkproof_fault::rule::{Done, Failure};
    block_on(async {
        for done in [Done::None, Done::Prefix, Done::All] {
            let error = Failure::parse("EIO").unwrap();
            let bad = rule("bad", Action::Fail { error, done, wait: None }).sectors(50, 51);
            let b = bench(vec![bad]);
            let mut buf = [0xee; 32 * SECTOR as usize];
            let error = b.node.read(32 * SECTOR, &mut buf).await.unwrap_err();
            assert_eq!(error.first_bad.unwrap().0, 50 * SECTOR, "{done:?}");
            assert_eq!(buf[..18 * 512], common::numbered()[32 * 512..50 * 512], "{done:?}");
            // A write of which nothing is done does nothing.
            b.node.write(49 * SECTOR, &[1; 1024], WriteFlags::empty()).await.unwrap_err();
            let want = if done == Done::None { 49 } else { 1 };
            assert_eq!(first(&b.below, 49).await, want, "{done:?}");
        }
        // The place of a tear is the first byte not read.
        let short = Action::Short {
            tear: blkproof_fault::rule::Tear::After(2, blkproof_fault::rule::Unit::Sector),
            error: Failure::parse("EIO").unwrap(),
        };
        let b = bench(vec![rule("short", short).on(Operations::READ)]);
        let mut buf = [0xee; 4 * SECTOR as usize];
        let error = b.node.read(10 * SECTOR, &mut buf).await.unwrap_err();
        assert_eq!((error.first_bad.unwrap().0, buf[SECTOR as usize]), (12 * SECTOR, 11));
        let flush = bench(vec![rule("f", fail("EIO")).on(Operations::FLUSH)]);
        assert_eq!(flush.node.flush().await.unwrap_err().first_bad, None);
    });
}

/// What a rule draws is its own: another rule before it, or requests of no interest to it, change nothing.
#[test]
fn a_rule_fares_the_same_with_and_without_others() {
    use blkproof_fault::rule::{Delay, Tear, Unit};
    let chance = || {
        rule("half", fail("EIO")).on(Operations::READ).sectors(5, 6).with(|rule| rule.on.probability = Some(1 << 31))
    };
    let torn =
        || rule("torn", Action::Torn { tear: Tear::Random(Unit::Sector) }).on(Operations::WRITE).sectors(64, 128);
    let waits = || {
        let span = Delay::Uniform(std::time::Duration::ZERO, std::time::Duration::from_secs(1));
        rule("waits", Action::Delay(span)).on(Operations::FLUSH)
    };
    let watch = || rule("watch", Action::None).sectors(9, 10);
    let fates = |rules: Vec<Rule>| {
        block_on(async {
            let b = bench(rules);
            let (mut failed, mut lengths, mut delays) = (Vec::new(), Vec::new(), Vec::new());
            for round in 0..20_u8 {
                first(&b.node, 9).await;
                failed.push(b.node.read(5 * SECTOR, &mut [0; 512]).await.is_err());
                b.node.write(64 * SECTOR, &[round; 64 * SECTOR as usize], WriteFlags::empty()).await.unwrap();
                let mut torn = [0; 64 * SECTOR as usize];
                b.below.read(64 * SECTOR, &mut torn).await.unwrap();
                lengths.push(torn.iter().filter(|&&byte| byte == round).count());
                let mut flush = Box::pin(b.node.flush());
                let waited = Cell::new(0_u32);
                while futures_lite::future::poll_once(&mut flush).await.is_none() {
                    b.clock.advance(std::time::Duration::from_millis(1));
                    waited.set(waited.get() + 1);
                }
                delays.push(waited.get());
            }
            (failed, lengths, delays)
        })
    };
    let alone = fates(vec![chance(), torn(), waits()]);
    assert_eq!(alone, fates(vec![watch(), chance(), torn(), waits()]));
    let (failed, lengths, delays) = &alone;
    assert!(failed.contains(&true) && failed.contains(&false), "{failed:?}");
    let all = |list: &[u32]| list.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(all(delays) > 10, "{delays:?}");
    assert!(lengths.iter().collect::<std::collections::BTreeSet<_>>().len() > 10, "{lengths:?}");
    assert_eq!(fates(vec![torn()]).1, *lengths);
}

/// Neither the rules' state nor what they have damaged follows from a write that the device below failed.
#[test]
fn a_write_that_fails_below_cures_nothing() {
    block_on(async {
        let disk = TestDisk::new(1 << 20);
        let bad = rule("bad", fail("EIO")).on(Operations::READ).sectors(4, 5);
        let once = rule("rot", corrupt(Corruption::Random)).on(Operations::WRITE).sectors(8, 9);
        let bad = bad.life(Life { until: Until::Rewrite, ..Life::default() });
        let (node, faults) = over(&disk, vec![bad, once.with(|rule| rule.on.nth = Some(1))]);
        disk.add_rule(Script::new(Does::FailBefore(IoError::new(Errno::IO))).kind(OpKind::Write));
        assert!(put(&node, 4, 1).await.is_err() && put(&node, 8, 1).await.is_err());
        disk.clear_rules();
        assert!(node.read(4 * SECTOR, &mut [0; SECTOR as usize]).await.is_err());
        assert_eq!((faults.list()[1].fired, faults.list()[1].damaged), (1, 0));
        put(&node, 4, 1).await.unwrap();
        assert_eq!(first(&node, 4).await, 1);
    });
}

/// A question that shows what a read returns has read it; whoever lets it go on gets that.
#[test]
fn a_read_that_is_shown_is_done_once() {
    use blkproof_fault::ask::Answer;
    use blkproof_fault::rule::AskDefault;
    block_on(async {
        let timeout = std::time::Duration::from_secs(1);
        for (data, before) in [(true, 1), (false, 0)] {
            let disk = TestDisk::new(1 << 20);
            let b = bench(Vec::new());
            let ask = rule("q", Action::Ask { timeout, default: AskDefault::Proceed, data }).on(Operations::READ);
            let set = RuleSet { rules: vec![ask], ..RuleSet::default() };
            let faults = Faults::new(Rc::from("d"), set, &b.lab).unwrap();
            let node = Node::new(Fault::new(Node::new(disk.clone()), faults));
            let asks = b.lab.asks();
            asks.register(asks.newcomer(), None, None);
            let mut read = Box::pin(first(&node, 3));
            assert!(futures_lite::future::poll_once(&mut read).await.is_none());
            assert_eq!(reads(&disk).len(), before);
            asks.answer(0, Answer::Proceed).unwrap();
            assert_eq!(read.await, 0);
            assert_eq!(reads(&disk).len(), 1, "{data}");
        }
    });
}
