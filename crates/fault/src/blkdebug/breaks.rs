//! Breakpoints: a request that announces an event is parked under a tag.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;

use blkproof_block::{Breakpoints, Event, LocalBoxFuture};
use tokio::sync::Notify;

use crate::notice::{Notices, What};
use crate::parked::{Parked, Stay, Waiting, Which};

/// Says a line to whoever works with the node: `blkdebug: Suspended request 'A'`.
pub type Say = Rc<dyn Fn(&str)>;

/// The breakpoints of a node, and the requests parked at them.
pub struct Breaks {
    node: Rc<str>,
    notices: Notices,
    say: Say,
    /// In the order in which they were set.
    pending: RefCell<Vec<(Event, Rc<str>)>>,
    parked: Parked,
    /// Told when a request was parked.
    has_parked: Notify,
    /// The node is about to go: nothing is parked any more.
    leaving: Cell<bool>,
}

impl std::fmt::Debug for Breaks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Breaks({} set, {} parked)", self.pending.borrow().len(), self.parked.len())
    }
}

impl Breaks {
    /// None yet; what happens at them is said to `say`, and told to `notices` in the name of `node`.
    pub fn new(node: Rc<str>, notices: Notices, say: Say) -> Rc<Self> {
        Rc::new(Self {
            node,
            notices,
            say,
            pending: RefCell::default(),
            parked: Parked::default(),
            has_parked: Notify::new(),
            leaving: Cell::new(false),
        })
    }

    /// Removes every breakpoint and lets every request go on, now and later, because the node is about to go.
    pub fn let_go(&self) {
        self.leaving.set(true);
        self.release_all();
    }

    /// Whether a breakpoint waits for `event`.
    pub(super) fn waits_for(&self, event: Event) -> bool {
        self.pending.borrow().iter().any(|(other, _)| *other == event)
    }

    /// Parks the caller under the tag of every breakpoint on `event`, the newest first; they are used up. The caller
    /// goes on when all of what this returns is over.
    fn hit(&self, event: Event) -> Vec<Stay> {
        let mut tags = Vec::new();
        self.pending.borrow_mut().retain(|(other, tag)| {
            if *other == event {
                tags.push(Rc::clone(tag));
            }
            *other != event
        });
        tags.into_iter().rev().map(|tag| self.park(tag)).collect()
    }

    /// Stops the caller at `event`, if there is a breakpoint on it, until each of them was resumed.
    pub async fn stop(&self, event: Event) {
        for stay in self.hit(event) {
            stay.over().await;
        }
    }

    fn park(&self, tag: Rc<str>) -> Stay {
        let stay = self.parked.park(None, Rc::clone(&tag));
        (self.say)(&format!("blkdebug: Suspended request '{tag}'"));
        self.notices.tell(&self.node, What::Suspended { tag });
        self.has_parked.notify_waiters();
        stay
    }

    fn send_on(&self, parked: Waiting) {
        let tag = Rc::clone(&parked.tag);
        (self.say)(&format!("blkdebug: Resuming request '{tag}'"));
        parked.go_on();
        self.notices.tell(&self.node, What::Resumed { tag });
    }

    /// Lets requests go on, the newest first, as QEMU does; how many did.
    fn let_all_go(&self, which: Which<'_>) -> usize {
        let mut count = 0;
        while let Some(parked) = self.parked.take_newest(which) {
            self.send_on(parked);
            count += 1;
        }
        count
    }
}

impl Breakpoints for Breaks {
    fn set(&self, event: Event, tag: &str) {
        if self.leaving.get() {
            return;
        }
        self.pending.borrow_mut().push((event, Rc::from(tag)));
    }

    fn resume(&self, tag: &str) -> bool {
        let parked = self.parked.take_newest(Which::Tag(tag));
        parked.map(|parked| self.send_on(parked)).is_some()
    }

    fn remove(&self, tag: &str) -> bool {
        let before = self.pending.borrow().len();
        self.pending.borrow_mut().retain(|(_, other)| &**other != tag);
        let removed = self.pending.borrow().len() < before;
        self.let_all_go(Which::Tag(tag));
        removed
    }

    fn is_suspended(&self, tag: &str) -> bool {
        self.parked.has(tag)
    }

    fn suspended(&self) -> Vec<(Rc<str>, usize)> {
        self.parked.list()
    }

    fn pending(&self) -> Vec<(Event, Rc<str>)> {
        self.pending.borrow().clone()
    }

    fn release_all(&self) -> usize {
        self.pending.borrow_mut().clear();
        self.let_all_go(Which::Any)
    }

    fn wait<'a>(&'a self, tag: &'a str) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            loop {
                let mut parked = pin!(self.has_parked.notified());
                parked.as_mut().enable();
                if self.is_suspended(tag) {
                    return;
                }
                parked.await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};

    use super::*;
    use crate::clock::Stopped;

    fn breaks() -> (Rc<Breaks>, Rc<RefCell<Vec<String>>>) {
        let said: Rc<RefCell<Vec<String>>> = Rc::default();
        let say: Say = Rc::new({
            let said = Rc::clone(&said);
            move |line| said.borrow_mut().push(line.replace("blkdebug: ", "").replace(" request", ""))
        });
        (Breaks::new(Rc::from("n"), Notices::new(Rc::new(Stopped)), say), said)
    }

    #[test]
    fn every_tag_has_to_be_resumed() {
        let (breaks, said) = breaks();
        breaks.set(Event::Pwritev, "A");
        breaks.set(Event::ReadAio, "C");
        breaks.set(Event::Pwritev, "B");
        assert!(breaks.waits_for(Event::Pwritev) && !breaks.waits_for(Event::WriteAio));
        let stays = breaks.hit(Event::Pwritev);
        assert!(!breaks.waits_for(Event::Pwritev), "one hit each");
        let mut request = Box::pin(async move {
            for stay in stays {
                stay.over().await;
            }
        });
        block_on(async {
            assert!(poll_once(&mut request).await.is_none());
            assert!(breaks.resume("A"));
            assert!(poll_once(&mut request).await.is_none());
            assert!(!breaks.resume("A"), "nobody is there any more");
            assert!(breaks.resume("B"));
            assert!(poll_once(&mut request).await.is_some());
        });
        assert_eq!(*said.borrow(), ["Suspended 'B'", "Suspended 'A'", "Resuming 'A'", "Resuming 'B'"]);
        assert_eq!(breaks.pending(), [(Event::ReadAio, Rc::from("C"))]);
    }

    #[test]
    fn removal_wakes_what_is_parked_and_reports_what_was_not_hit() {
        let (breaks, said) = breaks();
        assert!(!breaks.remove("A"));
        breaks.set(Event::Pwritev, "A");
        assert!(breaks.remove("A"));
        breaks.set(Event::Pwritev, "A");
        let first = breaks.hit(Event::Pwritev);
        breaks.set(Event::Pwritev, "A");
        let second = breaks.hit(Event::Pwritev);
        assert_eq!(breaks.suspended(), [(Rc::from("A"), 2)]);
        assert!(!breaks.remove("A"), "both were hit");
        assert!(breaks.suspended().is_empty());
        assert_eq!(said.borrow().len(), 4);
        drop((first, second));
        breaks.set(Event::Pwritev, "B");
        breaks.set(Event::Pwritev, "A");
        drop(breaks.hit(Event::Pwritev));
        assert_eq!(breaks.release_all(), 0, "a dropped request is not parked");
    }

    #[test]
    fn the_newest_of_a_tag_goes_first() {
        let (breaks, _) = breaks();
        let mut stays: Vec<_> = (0..2)
            .map(|_| {
                breaks.set(Event::Pwritev, "A");
                Box::pin(breaks.hit(Event::Pwritev).remove(0).over())
            })
            .collect();
        block_on(async {
            assert!(breaks.resume("A"));
            assert!(poll_once(&mut stays[0]).await.is_none());
            assert!(poll_once(&mut stays[1]).await.is_some());
        });
    }

    #[test]
    fn a_node_that_goes_holds_nothing_any_more() {
        let (breaks, _) = breaks();
        breaks.set(Event::Pwritev, "A");
        let mut stay = Box::pin(breaks.hit(Event::Pwritev).remove(0).over());
        breaks.set(Event::ReadAio, "B");
        breaks.let_go();
        assert!(block_on(poll_once(&mut stay)).is_some());
        breaks.set(Event::Pwritev, "C");
        assert!(breaks.pending().is_empty());
    }

    #[test]
    fn a_wait_ends_with_the_first_request_of_its_tag() {
        let (breaks, _) = breaks();
        breaks.set(Event::Pwritev, "A");
        let mut wait = breaks.wait("A");
        block_on(async {
            assert!(poll_once(&mut wait).await.is_none());
            let _stays = breaks.hit(Event::Pwritev);
            assert!(poll_once(&mut wait).await.is_some());
        });
    }
}
