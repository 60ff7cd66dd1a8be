//! The node `fault`: what each action does to the data, and what the client hears.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)]

mod common;

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use blkproof_block::testing::block_on;
use blkproof_block::{BlockDevice as _, ByteOffset, DeviceError, Errno, Event, IoError, Node, WriteFlags, ZeroFlags};
use blkproof_fault::ask::Answer;
use blkproof_fault::notice::What;
use blkproof_fault::request::Operations;
use blkproof_fault::rule::{Action, AskDefault, Corruption, Delay, Done, Failure, Life, Place, Rot, Tear, Unit, Until};
use common::{Narrow as _, SECTOR, bench, fail, numbered, rule, seeded};

async fn sectors(node: &Node, from: u64, count: u64) -> Result<Vec<u8>, IoError> {
    let mut buf = vec![0xee; usize::try_from(count * SECTOR).unwrap()];
    node.read(from * SECTOR, &mut buf).await.map(|()| buf)
}

async fn put(node: &Node, from: u64, count: u64, fill: u8) -> Result<(), IoError> {
    let data = vec![fill; usize::try_from(count * SECTOR).unwrap()];
    node.write(from * SECTOR, &data, WriteFlags::empty()).await
}

/// The first bytes of sectors: their fills.
fn fills(data: &[u8]) -> Vec<u8> {
    data.chunks(SECTOR as usize).map(|sector| sector[0]).collect()
}

fn now<T>(future: impl Future<Output = T>) -> Poll<T> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// The case the engine was asked for: a sector that fails until it is rewritten, and its neighbours.
#[test]
fn a_bad_sector_fails_until_it_is_rewritten() {
    let bad = || {
        rule("bad-50", fail("03/1101"))
            .on(Operations::READ)
            .sectors(50, 51)
            .life(Life { until: Until::Rewrite, ..Life::default() })
    };
    block_on(async {
        let b = bench(vec![bad()]);
        for _ in 0..2 {
            let error = sectors(&b.node, 50, 1).await.unwrap_err();
            assert_eq!(error.errno, Errno::IO);
            assert_eq!(error.first_bad, Some(ByteOffset(50 * SECTOR)));
            assert_eq!(error.device, Some(DeviceError::Scsi { key: 3, asc: 0x11, ascq: 1 }));
            assert_eq!(error.injected_by.unwrap().0.as_ref(), "bad-50");
        }
        assert_eq!(fills(&sectors(&b.node, 49, 1).await.unwrap()), [49]);
        assert_eq!(fills(&sectors(&b.node, 51, 1).await.unwrap()), [51]);

        // A larger request names the sector, and what lies before it is valid.
        let mut buf = vec![0; 32 * SECTOR as usize];
        let error = b.node.read(32 * SECTOR, &mut buf).await.unwrap_err();
        assert_eq!((error.first_bad, error.transferred), (Some(ByteOffset(50 * SECTOR)), 18 * SECTOR));
        assert_eq!(buf[..18 * 512], numbered()[32 * 512..50 * 512]);

        // A write of a part of the sector has to read it first, and fails; the sector stays bad.
        let error = b.node.write(50 * SECTOR + 10, &[1], WriteFlags::empty()).await.unwrap_err();
        assert_eq!(error.errno, Errno::IO);
        assert!(sectors(&b.node, 50, 1).await.is_err());
        put(&b.node, 50, 1, 0xaa).await.unwrap();
        assert_eq!(fills(&sectors(&b.node, 49, 3).await.unwrap()), [49, 0xaa, 51]);
        assert_eq!(b.faults.list()[0].bad, Some(0));

        // As it was at first again.
        assert!(b.faults.reset(Some("bad-50")));
        assert!(sectors(&b.node, 50, 1).await.is_err());
        b.node.write_zeroes(50 * SECTOR, SECTOR, ZeroFlags::empty()).await.unwrap();
        assert_eq!(fills(&sectors(&b.node, 50, 1).await.unwrap()), [0], "zeroes rewrite too");
        assert!(b.faults.reset(None));
        b.node.discard(50 * SECTOR, SECTOR).await.unwrap();
        assert!(sectors(&b.node, 50, 1).await.is_err(), "a discard writes nothing");
    });
}

#[test]
fn a_write_that_fails_cures_nothing() {
    block_on(async {
        let bad = rule("bad", fail("EIO"))
            .on(Operations::READ)
            .sectors(5, 6)
            .life(Life { until: Until::Rewrite, ..Life::default() });
        let full = rule("full", fail("ENOSPC")).on(Operations::WRITE).with(|rule| rule.on.times = Some(1));
        let b = bench(vec![bad, full]);
        assert_eq!(put(&b.node, 5, 1, 1).await.unwrap_err().errno, Errno::NOSPC);
        assert!(sectors(&b.node, 5, 1).await.is_err());
        put(&b.node, 5, 1, 1).await.unwrap();
        assert_eq!(fills(&sectors(&b.node, 5, 1).await.unwrap()), [1]);
    });
}

#[test]
fn lives_end_by_reassignment_and_by_accesses() {
    block_on(async {
        let until = |until| Life { until, ..Life::default() };
        let b = bench(vec![
            rule("reassign", fail("03/1100")).on(Operations::READ).sectors(1, 3).life(until(Until::Reassign)),
            rule("three", fail("03/1100")).on(Operations::READ).sectors(8, 10).life(until(Until::Accesses(3))),
        ]);
        put(&b.node, 1, 2, 7).await.unwrap();
        assert!(sectors(&b.node, 1, 1).await.is_err(), "a rewrite is no reassignment");
        assert_eq!(b.faults.reassign(blkproof_block::ByteRange::at(SECTOR, SECTOR)), 1);
        assert_eq!(fills(&sectors(&b.node, 1, 1).await.unwrap()), [7]);
        assert!(sectors(&b.node, 2, 1).await.is_err());
        // Each sector has its own three.
        for _ in 0..3 {
            assert_eq!(sectors(&b.node, 8, 2).await.unwrap_err().first_bad, Some(ByteOffset(8 * SECTOR)));
        }
        for _ in 0..3 {
            assert_eq!(sectors(&b.node, 8, 2).await.unwrap_err().first_bad, Some(ByteOffset(9 * SECTOR)));
        }
        assert_eq!(fills(&sectors(&b.node, 8, 2).await.unwrap()), [8, 9]);
    });
}

#[test]
fn rot_and_growth_follow_the_time() {
    block_on(async {
        let half = Duration::from_secs(3600);
        let b = bench(vec![
            rule("rot", fail("03/1100")).on(Operations::READ).sectors(0, 100).life(Life {
                until: Until::Rewrite,
                rot: Some(Rot { half }),
                ..Life::default()
            }),
            rule("grow", fail("03/1101")).on(Operations::READ).sectors(120, 121).life(Life {
                until: Until::Never,
                growth: Some(blkproof_fault::rule::Growth { each: Duration::from_secs(60), limit: 3 }),
                ..Life::default()
            }),
        ]);
        let fallen = async || {
            let mut count = 0;
            for sector in 0..100 {
                count += u32::from(sectors(&b.node, sector, 1).await.is_err());
            }
            count
        };
        assert_eq!(fallen().await, 0);
        b.clock.advance(half);
        let first = fallen().await;
        assert!((30..70).contains(&first), "{first}");
        b.clock.advance(half);
        let second = fallen().await;
        assert!((75..100).contains(&second) && second > first, "{second}");
        put(&b.node, 0, 100, 1).await.unwrap();
        assert_eq!(fallen().await, 0, "rewritten");
        // Growth has reached its limit by now.
        for (sector, bad) in [(119, false), (120, true), (123, true), (124, false)] {
            assert_eq!(sectors(&b.node, sector, 1).await.is_err(), bad, "{sector}");
        }
        b.faults.reset(None);
        assert!(sectors(&b.node, 121, 1).await.is_ok());
        b.clock.advance(Duration::from_secs(60));
        assert!(sectors(&b.node, 121, 1).await.is_err() && sectors(&b.node, 122, 1).await.is_ok());
    });
}

#[test]
fn which_request_fires() {
    let fired = |change: &dyn Fn(&mut blkproof_fault::rule::Rule), seed| {
        block_on(async {
            let b = seeded(vec![rule("r", fail("EIO")).on(Operations::READ).sectors(0, 8).with(change)], seed);
            let mut hits = Vec::new();
            for nth in 1..=12 {
                // Others in between do not count.
                sectors(&b.node, 20, 1).await.unwrap();
                if sectors(&b.node, 3, 1).await.is_err() {
                    hits.push(nth);
                }
            }
            hits
        })
    };
    assert_eq!(fired(&|rule| rule.on.nth = Some(5), 0), [5]);
    assert_eq!(fired(&|rule| rule.on.every = Some(4), 0), [4, 8, 12]);
    let both = |rule: &mut blkproof_fault::rule::Rule| {
        rule.on.nth = Some(2);
        rule.on.every = Some(4);
    };
    assert_eq!(fired(&both, 0), [2, 6, 10]);
    assert_eq!(fired(&|rule| rule.on.times = Some(3), 0), [1, 2, 3]);
    let half = |rule: &mut blkproof_fault::rule::Rule| rule.on.probability = Some(1 << 31);
    let seven = fired(&half, 7);
    assert_eq!(seven, fired(&half, 7), "the seed decides");
    assert_ne!(seven, fired(&half, 8));
    assert!((1..12).contains(&seven.len()), "{seven:?}");
    assert_eq!(fired(&|rule| rule.then.disarm = true, 0), [1]);
}

#[test]
fn what_lands_of_a_write_and_what_its_client_hears() {
    let errno = |errno| Some(errno);
    let error = || Failure::parse("EIO").unwrap();
    let cases: Vec<(&str, Action, Option<Errno>, [u8; 4])> = vec![
        ("nothing", Action::Fail { error: error(), done: Done::None, wait: None }, errno(Errno::IO), [8, 9, 10, 11]),
        ("prefix", Action::Fail { error: error(), done: Done::Prefix, wait: None }, errno(Errno::IO), [1, 1, 10, 11]),
        ("all", Action::Fail { error: error(), done: Done::All, wait: None }, errno(Errno::IO), [1, 1, 1, 1]),
        (
            "short",
            Action::Short { tear: Tear::After(3, Unit::Sector), error: error() },
            errno(Errno::IO),
            [1, 1, 1, 11],
        ),
        ("torn", Action::Torn { tear: Tear::After(1, Unit::Sector) }, None, [1, 9, 10, 11]),
        ("torn at the range", Action::Torn { tear: Tear::AtRange }, None, [1, 1, 10, 11]),
        ("phantom", Action::Phantom, None, [8, 9, 10, 11]),
        ("misdirected", Action::Misdirect(Place::By(100 * SECTOR as i64)), None, [8, 9, 10, 11]),
        ("disconnected", Action::Disconnect { done: Done::None }, errno(Errno::NOTCONN), [8, 9, 10, 11]),
        ("recovered", Action::Recovered(Failure::parse("01/1701").unwrap()), None, [1, 1, 1, 1]),
        ("passed", Action::Pass, None, [1, 1, 1, 1]),
    ];
    for (name, action, heard, want) in cases {
        block_on(async {
            let b = bench(vec![rule(name, action).on(Operations::WRITE).sectors(10, 11)]);
            let done = put(&b.node, 8, 4, 1).await;
            assert_eq!(done.err().map(|error| error.errno), heard, "{name}");
            assert_eq!(fills(&sectors(&b.below, 8, 4).await.unwrap()), want, "{name}");
            let elsewhere = fills(&sectors(&b.below, 108, 4).await.unwrap());
            let moved = if name == "misdirected" { [1, 1, 1, 1] } else { [108, 109, 110, 111] };
            assert_eq!(elsewhere, moved, "{name}");
        });
    }
}

#[test]
fn a_tear_inside_a_sector_is_possible_when_asked_for() {
    block_on(async {
        let torn = Action::Torn { tear: Tear::After(700, Unit::Byte) };
        let b = bench(vec![rule("shorn", torn).on(Operations::WRITE)]);
        put(&b.node, 0, 2, 0xcc).await.unwrap();
        let got = sectors(&b.below, 0, 2).await.unwrap();
        assert!(got[..700].iter().all(|&byte| byte == 0xcc) && got[700..].iter().all(|&byte| byte == 1));
        // By seed, somewhere, and never whole.
        let b = bench(vec![rule("any", Action::Torn { tear: Tear::Random(Unit::Sector) }).on(Operations::WRITE)]);
        let mut lengths = std::collections::BTreeSet::new();
        for fill in 100..140 {
            b.below.write(0, &numbered()[..4096], WriteFlags::empty()).await.unwrap();
            put(&b.node, 0, 8, fill).await.unwrap();
            let fills = fills(&sectors(&b.below, 0, 8).await.unwrap());
            let written = fills.iter().take_while(|&&byte| byte == fill).count();
            assert!(fills[written..].iter().all(|&byte| byte < 8), "one tear, not many: {fills:?}");
            lengths.insert(written);
        }
        assert!(!lengths.contains(&8) && lengths.len() > 5, "{lengths:?}");
    });
}

#[test]
fn a_phantom_read_returns_zeroes_and_a_phantom_flush_is_not_passed_on() {
    use blkproof_block::testing::{OpKind, TestDisk};
    block_on(async {
        let b = bench(vec![rule("r", Action::Phantom).on(Operations::READ | Operations::FLUSH)]);
        assert_eq!(fills(&sectors(&b.node, 3, 2).await.unwrap()), [0, 0]);
        let disk = Rc::new(TestDisk::new(4096));
        let below = Node::from_rc(Rc::clone(&disk));
        let node = blkproof_fault::filter::Fault::new(below, Rc::clone(&b.faults));
        node.flush().await.unwrap();
        assert!(disk.log().ops().iter().all(|op| op.kind != OpKind::Flush));
        b.faults.set_armed("r", false);
        node.flush().await.unwrap();
        assert!(disk.log().ops().iter().any(|op| op.kind == OpKind::Flush));
    });
}

#[test]
fn damage_is_the_same_at_every_read_and_leaves_the_medium_alone() {
    for how in [
        Corruption::Flip { bits: 3 },
        Corruption::Stuck { bit: Some(0), value: true },
        Corruption::Zero,
        Corruption::Foreign { distance: Some(4) },
        Corruption::Foreign { distance: None },
        Corruption::Random,
    ] {
        block_on(async {
            let corrupt = Action::Corrupt { how, sectors: None };
            let b = bench(vec![rule("rot", corrupt).on(Operations::READ).sectors(6, 8).with(|r| r.on.nth = Some(2))]);
            assert_eq!(fills(&sectors(&b.node, 4, 6).await.unwrap()), [4, 5, 6, 7, 8, 9], "{how:?}: the second is hit");
            let damaged = sectors(&b.node, 4, 6).await.unwrap();
            assert_ne!(damaged, numbered()[4 * 512..10 * 512], "{how:?}");
            assert_eq!(damaged[..1024], numbered()[4 * 512..6 * 512], "{how:?}: neighbours before");
            assert_eq!(damaged[2048..], numbered()[8 * 512..10 * 512], "{how:?}: neighbours behind");
            for _ in 0..3 {
                assert_eq!(sectors(&b.node, 4, 6).await.unwrap(), damaged, "{how:?}: the same again");
                assert_eq!(sectors(&b.node, 7, 1).await.unwrap(), damaged[1536..2048], "{how:?}: in another cut");
                let mut part = [0; 100];
                b.node.read(6 * SECTOR + 50, &mut part).await.unwrap();
                assert_eq!(part[..], damaged[1024 + 50..1024 + 150], "{how:?}: a part of a sector");
            }
            assert_eq!(sectors(&b.below, 4, 6).await.unwrap(), numbered()[4 * 512..10 * 512], "{how:?}: pristine");
            put(&b.node, 6, 1, 0x42).await.unwrap();
            let after = sectors(&b.node, 4, 6).await.unwrap();
            assert_eq!(after[1024..1536], [0x42; 512], "{how:?}: rewritten");
            assert_eq!(after[1536..], damaged[1536..], "{how:?}: the other is still damaged");
            assert!(b.faults.remove("rot"));
            assert_eq!(fills(&sectors(&b.node, 4, 6).await.unwrap()), [4, 5, 0x42, 7, 8, 9], "{how:?}: lifted");
        });
    }
}

#[test]
fn a_foreign_sector_and_a_stale_one_are_what_they_say() {
    block_on(async {
        let foreign = Action::Corrupt { how: Corruption::Foreign { distance: Some(-3) }, sectors: None };
        let b = bench(vec![rule("f", foreign).on(Operations::READ).sectors(1, 11)]);
        assert_eq!(fills(&sectors(&b.node, 0, 12).await.unwrap()), [0, 254, 255, 0, 1, 2, 3, 4, 5, 6, 7, 11]);

        let stale = Action::Corrupt { how: Corruption::Stale, sectors: None };
        let b = bench(vec![rule("s", stale).on(Operations::READ).sectors(20, 22)]);
        assert_eq!(fills(&sectors(&b.node, 20, 2).await.unwrap()), [20, 21], "nothing older is known");
        put(&b.node, 20, 1, 100).await.unwrap();
        assert_eq!(fills(&sectors(&b.node, 20, 2).await.unwrap()), [20, 21]);
        put(&b.node, 20, 1, 101).await.unwrap();
        assert_eq!(fills(&sectors(&b.node, 20, 2).await.unwrap()), [100, 21], "one version back");
        assert_eq!(fills(&sectors(&b.below, 20, 1).await.unwrap()), [101]);
    });
}

#[test]
fn a_write_may_leave_damage_until_a_clean_one_comes() {
    block_on(async {
        let corrupt = Action::Corrupt { how: Corruption::Zero, sectors: None };
        let b =
            bench(vec![rule("w", corrupt).on(Operations::WRITE).sectors(30, 31).with(|rule| rule.on.nth = Some(1))]);
        assert_eq!(fills(&sectors(&b.node, 30, 1).await.unwrap()), [30]);
        put(&b.node, 29, 3, 0x77).await.unwrap();
        assert_eq!(fills(&sectors(&b.node, 29, 3).await.unwrap()), [0x77, 0, 0x77]);
        assert_eq!(fills(&sectors(&b.below, 30, 1).await.unwrap()), [0x77]);
        put(&b.node, 30, 1, 0x78).await.unwrap();
        assert_eq!(fills(&sectors(&b.node, 30, 1).await.unwrap()), [0x78]);
    });
}

#[test]
fn requests_wait_and_go_on() {
    block_on(async {
        let hold = Action::Hold { tag: Some(Rc::from("A")) };
        let second = Duration::from_secs(1);
        let b = bench(vec![
            rule("slow", Action::Delay(Delay::Fixed(second))).on(Operations::READ).sectors(0, 1),
            rule("hold", hold).on(Operations::WRITE).sectors(5, 6),
            rule(
                "late",
                Action::Fail {
                    error: Failure::parse("03/1101").unwrap(),
                    done: Done::None,
                    wait: Some(Delay::Fixed(second * 7)),
                },
            )
            .on(Operations::READ)
            .sectors(9, 10),
        ]);
        let mut slow = pin!(sectors(&b.node, 0, 1));
        assert!(now(slow.as_mut()).is_pending());
        b.clock.advance(second);
        assert!(now(slow.as_mut()).is_ready());

        let mut first = Box::pin(put(&b.node, 5, 1, 1));
        let mut other = Box::pin(put(&b.node, 5, 1, 2));
        assert!(now(first.as_mut()).is_pending() && now(other.as_mut()).is_pending());
        assert_eq!(b.faults.held(), [(Rc::from("A"), 2)]);
        assert!(now(put(&b.node, 6, 1, 9)).is_ready(), "others are not held");
        assert_eq!(fills(&sectors(&b.below, 5, 1).await.unwrap()), [5]);
        drop(first);
        assert_eq!(b.faults.held(), [(Rc::from("A"), 1)], "a dropped request is not parked any more");
        assert_eq!(b.faults.release("A", 1), 1, "and takes nobody's turn");
        assert!(now(other.as_mut()).is_ready());
        assert_eq!(b.faults.release("A", 1), 0);

        let mut late = pin!(sectors(&b.node, 9, 1));
        assert!(now(late.as_mut()).is_pending());
        b.clock.advance(second * 7);
        let Poll::Ready(Err(error)) = now(late.as_mut()) else { panic!("it fails at last") };
        assert_eq!(error.first_bad, Some(ByteOffset(9 * SECTOR)));
    });
}

#[test]
fn a_rule_removed_lets_go_what_it_holds_and_a_hung_request_can_be_dropped() {
    block_on(async {
        let b = bench(vec![
            rule("h", Action::Hold { tag: None }).on(Operations::WRITE).sectors(5, 6),
            rule("hang", Action::Hang).on(Operations::READ).sectors(9, 10),
        ]);
        let mut held = pin!(put(&b.node, 5, 1, 1));
        assert!(now(held.as_mut()).is_pending());
        assert!(b.faults.remove("h"));
        assert!(now(held.as_mut()).is_ready());
        let mut hung = Box::pin(sectors(&b.node, 9, 1));
        assert!(now(hung.as_mut()).is_pending());
        b.clock.advance(Duration::from_secs(1 << 20));
        assert!(now(hung.as_mut()).is_pending());
        drop(hung);
        b.node.drain().await.unwrap();
    });
}

#[test]
fn the_whole_node_can_be_stopped() {
    block_on(async {
        let b = bench(Vec::new());
        b.faults.stop();
        let mut read = pin!(sectors(&b.node, 0, 1));
        assert!(now(read.as_mut()).is_pending());
        assert!(!b.node.read_now(0, &mut [0; 512]));
        b.faults.cont();
        assert!(now(read.as_mut()).is_ready());
        assert!(b.node.read_now(0, &mut [0; 512]));
    });
}

#[test]
fn states_and_events_lead_from_rule_to_rule() {
    block_on(async {
        let state = |name: &str| Some(Rc::from(name));
        let b = bench(vec![
            rule("go", Action::None).on(Operations::FLUSH).with(|rule| rule.then.state = Some(Rc::from("armed"))),
            rule("bang", fail("ENOSPC")).on(Operations::WRITE).with(|rule| {
                rule.on.state = state("armed");
                rule.then.state = state("1");
            }),
            rule("l2", fail("EIO")).on(Operations::WRITE).with(|rule| rule.on.event = Some(Event::L2Update)),
        ]);
        put(&b.node, 0, 1, 1).await.unwrap();
        b.node.flush().await.unwrap();
        assert_eq!(&*b.faults.state(), "armed");
        assert_eq!(put(&b.node, 0, 1, 1).await.unwrap_err().errno, Errno::NOSPC);
        put(&b.node, 0, 1, 1).await.unwrap();
        assert!(b.node.listens(Event::L2Update) && !b.node.listens(Event::L2Load));
        b.node.event(Event::L2Update).await;
        assert_eq!(fills(&sectors(&b.node, 0, 1).await.unwrap()), [1], "not a write");
        assert_eq!(put(&b.node, 0, 1, 1).await.unwrap_err().injected_by.unwrap().0.as_ref(), "l2");
        put(&b.node, 0, 1, 1).await.unwrap();
    });
}

#[test]
fn an_event_alone_can_hold_its_step() {
    block_on(async {
        let b = bench(vec![rule("stop", Action::Hold { tag: None }).with(|rule| {
            rule.on.operations = Operations::empty();
            rule.on.event = Some(Event::VdiBmapUpdate);
            rule.on.nth = Some(2);
        })]);
        assert!(now(b.node.event(Event::VdiBmapUpdate)).is_ready());
        let mut second = pin!(b.node.event(Event::VdiBmapUpdate));
        assert!(now(second.as_mut()).is_pending());
        assert_eq!(b.faults.release("stop", 9), 1);
        assert!(now(second.as_mut()).is_ready());
        assert_eq!((b.faults.list()[0].seen, b.faults.list()[0].fired), (2, 1));
    });
}

#[test]
fn rules_fire_in_their_time_and_by_how_long_a_request_took() {
    block_on(async {
        let second = Duration::from_secs(1);
        let b = bench(vec![rule("window", fail("EIO")).with(|rule| {
            rule.on.after = Some(second * 10);
            rule.on.before = Some(second * 20);
        })]);
        for (at, fails) in [(0, false), (10, true), (19, true), (20, false)] {
            let clock = b.clock.clone();
            clock.advance(second * at - blkproof_fault::clock::Clock::now(&common::Shared(clock.clone())));
            assert_eq!(sectors(&b.node, 0, 1).await.is_err(), fails, "{at}");
        }
        // A slow device below: the rule of another node delays it.
        let slow = bench(vec![rule("slow", Action::Delay(Delay::Fixed(second))).sectors(4, 5)]);
        let set = blkproof_fault::rule::RuleSet {
            rules: vec![rule("timeout", fail("ETIMEDOUT")).with(|rule| rule.on.slower_than = Some(second / 2))],
            ..Default::default()
        };
        let faults = blkproof_fault::filter::Faults::new(Rc::from("t"), set, &slow.lab).unwrap();
        let node = Node::new(blkproof_fault::filter::Fault::new(slow.node.clone(), faults));
        assert!(sectors(&node, 0, 1).await.is_ok());
        let mut late = pin!(put(&node, 4, 1, 1));
        assert!(now(late.as_mut()).is_pending());
        slow.clock.advance(second);
        let Poll::Ready(Err(error)) = now(late.as_mut()) else { panic!("it took too long") };
        assert_eq!(error.errno, Errno::TIMEDOUT);
        assert_eq!(fills(&sectors(&slow.below, 4, 1).await.unwrap()), [1], "it was done all the same");
    });
}

fn asking(default: AskDefault, data: bool) -> Action {
    Action::Ask { timeout: Duration::from_secs(5), default, data }
}

#[test]
fn somebody_outside_decides() {
    block_on(async {
        let io = || AskDefault::Fail(Failure::parse("EIO").unwrap());
        let b = bench(vec![
            rule("w", asking(io(), true)).on(Operations::WRITE).sectors(5, 6),
            rule("r", asking(AskDefault::Proceed, true)).on(Operations::READ).sectors(7, 8),
            rule("f", asking(AskDefault::Proceed, false)).on(Operations::FLUSH),
        ]);
        assert_eq!(put(&b.node, 5, 1, 1).await.unwrap_err().errno, Errno::IO, "nobody is there: the default");
        let (asks, mut heard) = (b.lab.asks(), b.lab.notices().listen());
        let me = asks.newcomer();
        asks.register(me, None, None);
        let stranger = asks.newcomer();
        let mut question = || loop {
            match &heard.try_recv().unwrap().what {
                What::Ask { ask, to, .. } => {
                    assert_eq!(*to, me);
                    assert!(asks.take_shown(*ask, stranger).is_none(), "it is not for others");
                    let data = asks.take_shown(*ask, me);
                    assert!(asks.take_shown(*ask, me).is_none(), "once is enough");
                    return (*ask, data);
                }
                _ => continue,
            }
        };
        let failure = Failure::parse("03/0c00").unwrap();
        for (answer, heard, want) in [
            (Answer::Proceed, None, 1),
            (Answer::Data(vec![9; 512]), None, 9),
            (Answer::Fail(failure), Some(Errno::IO), 5),
            (Answer::Succeed, None, 5),
        ] {
            b.below.write(5 * SECTOR, &[5; 512], WriteFlags::empty()).await.unwrap();
            let mut write = Box::pin(put(&b.node, 5, 1, 1));
            assert!(now(write.as_mut()).is_pending());
            let (ask, data) = question();
            assert_eq!(data.as_deref(), Some(&[1; 512][..]));
            assert!(asks.answer(ask, Answer::Data(vec![0])).is_err(), "too short, and the question stays open");
            asks.answer(ask, answer.clone()).unwrap();
            let done = write.await;
            assert_eq!(done.err().map(|error| error.errno), heard, "{answer:?}");
            assert_eq!(fills(&sectors(&b.below, 5, 1).await.unwrap()), [want], "{answer:?}");
            assert!(asks.answer(ask, Answer::Proceed).is_err(), "once is enough");
        }
        let mut read = Box::pin(sectors(&b.node, 7, 1));
        assert!(now(read.as_mut()).is_pending());
        let (ask, data) = question();
        assert_eq!(data.unwrap()[0], 7);
        asks.answer(ask, Answer::Data(vec![0x70; 512])).unwrap();
        assert_eq!(fills(&read.await.unwrap()), [0x70]);
        let mut flush = Box::pin(b.node.flush());
        assert!(now(flush.as_mut()).is_pending());
        let (ask, _) = question();
        assert!(asks.answer(ask, Answer::Data(Vec::new())).is_err());
        asks.answer(ask, Answer::Proceed).unwrap();
        flush.await.unwrap();
    });
}

#[test]
fn whoever_is_late_or_gone_holds_nobody_up() {
    block_on(async {
        let b = bench(vec![
            rule("w", asking(AskDefault::Fail(Failure::parse("EIO").unwrap()), true)).on(Operations::WRITE),
        ]);
        let asks = b.lab.asks();
        let me = asks.newcomer();
        asks.register(me, None, Some(Rc::from("w")));
        let mut late = Box::pin(put(&b.node, 5, 1, 1));
        assert!(now(late.as_mut()).is_pending());
        b.clock.advance(Duration::from_secs(5));
        let Poll::Ready(Err(_)) = now(late.as_mut()) else { panic!("the time is up") };
        let mut gone = Box::pin(put(&b.node, 5, 1, 1));
        assert!(now(gone.as_mut()).is_pending());
        asks.gone(me);
        let Poll::Ready(Err(_)) = now(gone.as_mut()) else { panic!("nobody is left") };
        asks.register(me, Some(Rc::from("f")), None);
        let mut dropped = Box::pin(put(&b.node, 5, 1, 1));
        assert!(now(dropped.as_mut()).is_pending());
        assert_eq!(asks.open(), 1);
        drop(dropped);
        assert_eq!(asks.open(), 0);
        asks.register(me, Some(Rc::from("another")), None);
        asks.unregister(me, Some("f"), None);
        assert!(now(put(&b.node, 5, 1, 1)).is_ready(), "another node's questions are not this one's");
    });
}

#[test]
fn firing_can_be_waited_for_and_is_told() {
    block_on(async {
        let b = bench(vec![rule("r", fail("03/1101")).on(Operations::READ).sectors(5, 6)]);
        let mut heard = b.lab.notices().listen();
        let mut twice = pin!(b.faults.wait_fired("r", 2));
        assert!(now(twice.as_mut()).is_pending());
        let _ = sectors(&b.node, 0, 10).await;
        assert!(now(twice.as_mut()).is_pending());
        let _ = sectors(&b.node, 5, 1).await;
        assert!(matches!(now(twice.as_mut()), Poll::Ready(true)));
        assert!(matches!(now(b.faults.wait_fired("none", 1)), Poll::Ready(false)));
        let notice = heard.try_recv().unwrap();
        let What::Fired { rule, request, operation, range, action, error, .. } = &notice.what else { panic!() };
        assert_eq!((&*rule.0, *request, operation.unwrap().name(), *action), ("r", Some(0), "read", "fail"));
        assert_eq!((range.start, range.end), (0, 10 * SECTOR));
        assert_eq!(error.as_ref().unwrap().first_bad, Some(ByteOffset(5 * SECTOR)));
        let mut removed = pin!(b.faults.wait_fired("r", 99));
        assert!(now(removed.as_mut()).is_pending());
        b.faults.remove("r");
        assert!(matches!(now(removed.as_mut()), Poll::Ready(false)), "a rule that is gone is not waited for");
    });
}

#[test]
fn rules_are_added_whole_or_not_at_all() {
    let b = bench(vec![rule("a", Action::None)]);
    assert!(b.faults.add(vec![rule("b", Action::None), rule("a", Action::None)]).is_err());
    assert!(b.faults.add(vec![rule("c", Action::None), rule("c", Action::None)]).is_err());
    assert_eq!(b.faults.list().len(), 1);
}
