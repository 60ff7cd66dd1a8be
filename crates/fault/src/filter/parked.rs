//! Requests that wait under a tag until somebody lets them go on.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use tokio::sync::oneshot;

/// Parked requests by tag, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Parked(RefCell<BTreeMap<Rc<str>, VecDeque<oneshot::Sender<()>>>>);

impl Parked {
    /// Waits until released. A request that is dropped meanwhile is no longer counted.
    pub(super) fn park(&self, tag: &Rc<str>) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.0.borrow_mut().entry(Rc::clone(tag)).or_default().push_back(sender);
        receiver
    }

    /// Lets the oldest `count` requests of `tag` go on; how many did.
    pub(super) fn release(&self, tag: &str, count: usize) -> usize {
        let mut parked = self.0.borrow_mut();
        let Some(queue) = parked.get_mut(tag) else { return 0 };
        let mut released = 0;
        while released < count {
            let Some(sender) = queue.pop_front() else { break };
            released += usize::from(sender.send(()).is_ok());
        }
        if queue.is_empty() {
            parked.remove(tag);
        }
        released
    }

    /// Every tag with the number of requests under it.
    pub(super) fn list(&self) -> Vec<(Rc<str>, usize)> {
        let waiting = |queue: &VecDeque<oneshot::Sender<()>>| queue.iter().filter(|sender| !sender.is_closed()).count();
        let parked = self.0.borrow();
        let counts = parked.iter().map(|(tag, queue)| (Rc::clone(tag), waiting(queue)));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}
