//! Requests that wait under a tag until somebody lets them go on.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::oneshot;

use crate::engine::RuleKey;

/// Parked requests, in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Parked {
    waiting: Rc<RefCell<Vec<Waiting>>>,
    next: Cell<u64>,
}

/// One of them. Dropping it lets the request go on too.
#[derive(Debug)]
pub(crate) struct Waiting {
    id: u64,
    rule: Option<RuleKey>,
    pub(crate) tag: Rc<str>,
    go_on: oneshot::Sender<()>,
}

/// Which requests are meant.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which<'a> {
    Any,
    /// Those under this tag.
    Tag(&'a str),
    /// Those that this rule holds.
    Rule(RuleKey),
}

impl Parked {
    /// Parks a request, for a rule or for a breakpoint.
    pub(crate) fn park(&self, rule: Option<RuleKey>, tag: Rc<str>) -> Stay {
        let id = self.next.get();
        self.next.set(id.wrapping_add(1));
        let (go_on, resumed) = oneshot::channel();
        self.waiting.borrow_mut().push(Waiting { id, rule, tag, go_on });
        Stay { waiting: Rc::clone(&self.waiting), id, resumed }
    }

    /// Takes the one that came first.
    pub(crate) fn take_oldest(&self, which: Which<'_>) -> Option<Waiting> {
        let mut waiting = self.waiting.borrow_mut();
        let at = waiting.iter().position(|one| one.is(which))?;
        Some(waiting.remove(at))
    }

    /// Takes the one that came last.
    pub(crate) fn take_newest(&self, which: Which<'_>) -> Option<Waiting> {
        let mut waiting = self.waiting.borrow_mut();
        let at = waiting.iter().rposition(|one| one.is(which))?;
        Some(waiting.remove(at))
    }

    /// Lets the oldest `count` go on; how many did.
    pub(crate) fn release(&self, which: Which<'_>, count: usize) -> usize {
        let oldest = std::iter::from_fn(|| self.take_oldest(which));
        oldest.take(count).map(Waiting::go_on).count()
    }

    /// Whether any request is parked under the tag.
    pub(crate) fn has(&self, tag: &str) -> bool {
        self.waiting.borrow().iter().any(|one| one.is(Which::Tag(tag)))
    }

    /// How many are parked.
    pub(crate) fn len(&self) -> usize {
        self.waiting.borrow().len()
    }

    /// Every tag with the number of requests under it.
    pub(crate) fn list(&self) -> Vec<(Rc<str>, usize)> {
        let mut tags: BTreeMap<Rc<str>, usize> = BTreeMap::new();
        for one in self.waiting.borrow().iter() {
            *tags.entry(Rc::clone(&one.tag)).or_default() += 1;
        }
        tags.into_iter().collect()
    }
}

impl Waiting {
    fn is(&self, which: Which<'_>) -> bool {
        match which {
            Which::Any => true,
            Which::Tag(tag) => *self.tag == *tag,
            Which::Rule(rule) => self.rule == Some(rule),
        }
    }

    /// Lets it go on.
    pub(crate) fn go_on(self) {
        // An error means that the request was dropped this very moment.
        let _ = self.go_on.send(());
    }
}

/// A request that is parked. Dropped, it is no longer.
#[derive(Debug)]
pub(crate) struct Stay {
    waiting: Rc<RefCell<Vec<Waiting>>>,
    id: u64,
    resumed: oneshot::Receiver<()>,
}

impl Stay {
    /// Completes when the request may go on.
    pub(crate) async fn over(mut self) {
        // An error means that whoever took it forgot to let it go: it does not wait for that.
        let _ = (&mut self.resumed).await;
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.waiting.borrow_mut().retain(|one| one.id != self.id);
    }
}
