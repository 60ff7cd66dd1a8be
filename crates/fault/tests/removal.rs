//! What becomes of requests when rules go, and what rules say of themselves when they can not do their work.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod common;

use std::rc::Rc;
use std::time::Duration;

use blkproof_block::testing::block_on;
use blkproof_block::{BlockDevice as _, Event, LocalBoxFuture, Node, Result};
use blkproof_fault::notice::What;
use blkproof_fault::power::{Power, Switch};
use blkproof_fault::request::Operations;
use blkproof_fault::rule::{Action, Corruption, Delay, Done, Rule, RuleSet};
use common::{Narrow as _, SECTOR, bench, fail, rule};
use futures_lite::future::poll_once;

fn hold(id: &str, tag: &str, sector: u64) -> Rule {
    rule(id, Action::Hold { tag: Some(Rc::from(tag)) }).on(Operations::READ).sectors(sector, sector + 1)
}

async fn read(node: &Node, sector: u64) -> Result<()> {
    node.read(sector * SECTOR, &mut [0; SECTOR as usize]).await
}

/// A rule that held under a tag that is not its id kept what it held, for ever.
#[test]
fn what_a_rule_holds_goes_on_when_it_is_removed_whatever_the_tag() {
    block_on(async {
        let b = bench(vec![hold("a", "x", 1), hold("b", "x", 2), hold("x", "y", 3)]);
        let mut held: Vec<_> = (1..4).map(|sector| Box::pin(read(&b.node, sector))).collect();
        for held in &mut held {
            assert!(poll_once(held).await.is_none());
        }
        assert!(b.faults.remove("a"));
        assert!(poll_once(&mut held[0]).await.is_some());
        assert!(poll_once(&mut held[1]).await.is_none(), "the tag is not the rule");
        assert!(b.faults.remove("x"));
        assert!(poll_once(&mut held[1]).await.is_none(), "nor is the id the tag");
        assert!(poll_once(&mut held[2]).await.is_some());
        assert_eq!(b.faults.held(), [(Rc::from("x"), 1)]);
        b.faults.replace(RuleSet::default()).unwrap();
        assert!(poll_once(&mut held[1]).await.is_some());
        assert!(b.faults.held().is_empty());
    });
}

/// A request that was still waiting for something else parked under a rule that had gone.
#[test]
fn nothing_parks_under_a_rule_that_is_gone() {
    block_on(async {
        let second = Duration::from_secs(1);
        let slow = || rule("slow", Action::Delay(Delay::Fixed(second))).on(Operations::READ);
        for replace in [false, true] {
            let b = bench(vec![slow(), hold("a", "x", 1)]);
            let mut heard = b.lab.notices().listen();
            let mut one = Box::pin(read(&b.node, 1));
            assert!(poll_once(&mut one).await.is_none());
            if replace {
                let rules = vec![slow(), hold("a", "x", 1)];
                b.faults.replace(RuleSet { rules, ..RuleSet::default() }).unwrap();
            } else {
                assert!(b.faults.remove("a"));
            }
            b.clock.advance(second);
            assert!(poll_once(&mut one).await.is_some(), "{replace}");
            while let Ok(notice) = heard.try_recv() {
                assert!(!matches!(notice.what, What::Suspended { .. }), "{notice:?}");
            }
        }
    });
}

#[test]
fn what_is_held_longest_goes_first_and_a_dropped_request_leaves_no_trace() {
    block_on(async {
        let b = bench(vec![hold("a", "x", 1)]);
        let mut held: Vec<_> = (0..3).map(|_| Some(Box::pin(read(&b.node, 1)))).collect();
        for held in held.iter_mut().flatten() {
            assert!(poll_once(held).await.is_none());
        }
        held[0] = None;
        assert_eq!(b.faults.held(), [(Rc::from("x"), 2)]);
        assert_eq!(b.faults.release("x", 1), 1);
        assert!(poll_once(held[2].as_mut().unwrap()).await.is_none());
        assert!(poll_once(held[1].as_mut().unwrap()).await.is_some());
        assert_eq!(b.faults.release("y", 9), 0);
        assert_eq!(b.faults.release("x", 9), 1);
    });
}

#[derive(Default)]
struct Counts(std::cell::Cell<u32>);

impl Power for Counts {
    fn cut<'a>(&'a self, _: Option<&'a str>) -> LocalBoxFuture<'a, Result<()>> {
        self.0.set(self.0.get() + 1);
        Box::pin(std::future::ready(Ok(())))
    }
}

fn cut(id: &str, disk: Option<&str>) -> Rule {
    let action = Action::PowerCut { disk: disk.map(Rc::from), state: None, done: Done::None };
    rule(id, action).on(Operations::READ).sectors(1, 2)
}

#[test]
fn a_rule_that_cuts_no_power_is_refused_where_that_is_known() {
    block_on(async {
        let b = bench(vec![cut("early", None)]);
        let error = b.faults.set_disks(Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "rule 'early': there is no disk below whose power could be cut");
        let error = read(&b.node, 1).await.unwrap_err();
        assert_eq!(error.injected_by.unwrap().0.as_ref(), "early");
        let power = Rc::new(Counts::default());
        let switch = Switch { name: Rc::from("d"), power: Rc::clone(&power) as Rc<dyn Power> };
        b.faults.set_disks(vec![switch]).unwrap();
        let rules = || vec![rule("good", Action::None), cut("late", Some("e"))];
        let error = b.faults.add(rules()).unwrap_err();
        assert_eq!(error.to_string(), "rule 'late': no disk below is named 'e'");
        let error = b.faults.replace(RuleSet { rules: rules(), ..RuleSet::default() }).unwrap_err();
        assert_eq!(error.to_string(), "rule 'late': no disk below is named 'e'");
        assert_eq!(b.faults.list().len(), 1, "nothing has changed");
        b.faults.replace(RuleSet { rules: vec![cut("by-name", Some("d"))], ..RuleSet::default() }).unwrap();
        assert!(read(&b.node, 1).await.is_err());
        assert_eq!(power.0.get(), 1);
    });
}

#[test]
fn a_request_that_hung_says_why() {
    block_on(async {
        let b = bench(vec![rule("dead", Action::Hang).on(Operations::READ)]);
        let mut hung = Box::pin(read(&b.node, 1));
        assert!(poll_once(&mut hung).await.is_none());
        b.faults.let_go();
        assert_eq!(hung.await.unwrap_err().injected_by.unwrap().0.as_ref(), "dead");
    });
}

/// Rules that look at how long a request took said that they fired, and did nothing.
#[test]
fn a_request_that_was_too_slow_can_cost_the_power_or_what_it_wrote() {
    block_on(async {
        let slow = |rule: Rule| rule.with(|rule| rule.on.slower_than = Some(Duration::ZERO));
        let b = bench(vec![slow(cut("cut", None))]);
        let power = Rc::new(Counts::default());
        let switch = Switch { name: Rc::from("d"), power: Rc::clone(&power) as Rc<dyn Power> };
        b.faults.set_disks(vec![switch]).unwrap();
        assert_eq!(read(&b.node, 1).await.unwrap_err().injected_by.unwrap().0.as_ref(), "cut");
        assert_eq!(power.0.get(), 1);

        let corrupt = Action::Corrupt { how: Corruption::Zero, sectors: None };
        let b = bench(vec![slow(rule("rot", corrupt.clone())).on(Operations::WRITE).sectors(5, 6)]);
        let at = |sector: u64| {
            let mut buf = [0xee; SECTOR as usize];
            let node = b.node.clone();
            async move {
                node.read(sector * SECTOR, &mut buf).await.unwrap();
                buf[0]
            }
        };
        b.node.write(4 * SECTOR, &[1; 3 * 512], blkproof_block::WriteFlags::empty()).await.unwrap();
        assert_eq!([at(4).await, at(5).await, at(6).await], [1, 0, 1]);
        assert_eq!(b.faults.list()[0].damaged, 1);
        let late = bench(vec![slow(rule("rot", corrupt)).on(Operations::READ).sectors(5, 6)]);
        let mut buf = [0xee; 1024];
        late.node.read(4 * SECTOR, &mut buf).await.unwrap();
        assert_eq!((buf[0], buf[512]), (4, 0));
        let hang = bench(vec![slow(rule("never", Action::Hang)).on(Operations::READ)]);
        let mut hung = Box::pin(read(&hang.node, 1));
        assert!(poll_once(&mut hung).await.is_none());
    });
}

/// blkdebug's `none` comes once, when the node is opened; what it made active has to be so again.
#[test]
fn a_reset_brings_back_what_was_active_from_the_start() {
    block_on(async {
        let sticky = |id: &str, event, state: Option<&str>| {
            rule(id, fail("EIO")).on(Operations::READ).with(|rule| {
                rule.on.sticky = true;
                rule.on.event = Some(event);
                rule.on.state = state.map(Rc::from);
            })
        };
        let to = rule("to", Action::None).on(Operations::empty()).with(|rule| {
            rule.on.event = Some(Event::None);
            rule.then.state = Some(Rc::from("2"));
        });
        let other = || sticky("other", Event::L2Load, Some("2"));
        let b = bench(vec![other(), sticky("not", Event::None, Some("9")), sticky("always", Event::None, None), to]);
        assert!(read(&b.node, 1).await.is_ok(), "a node on which nobody announces it");
        b.faults.reset(None);
        assert!(read(&b.node, 1).await.is_ok());
        b.node.event(Event::None).await;
        let by = async |want: &str| {
            assert_eq!(read(&b.node, 1).await.unwrap_err().injected_by.unwrap().0.as_ref(), want);
            assert_eq!(&*b.faults.state(), "2");
        };
        by("always").await;
        b.node.event(Event::L2Load).await;
        by("other").await;
        b.faults.reset(None);
        by("always").await;
        b.node.event(Event::L2Load).await;
        b.faults.set_armed("other", false);
        assert!(read(&b.node, 1).await.is_ok());
        assert!(b.faults.reset(Some("always")) && b.faults.reset(Some("not")));
        by("always").await;
    });
}
