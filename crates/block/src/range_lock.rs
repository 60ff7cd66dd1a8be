//! A lock on byte ranges: what keeps overlapping requests apart.
//!
//! Waiters are served first come, first served among those that conflict: a request waits for every earlier request,
//! holding or waiting, that overlaps it, unless both are shared. A stream of readers can therefore never starve a
//! writer, and the order in which conflicting requests asked is the order in which they run.
//!
//! Dropping a waiting future leaves the queue; dropping a guard releases. Both wake exactly those whose turn has come.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::units::ByteRange;

/// Locks byte ranges; cheap when nothing overlaps.
#[derive(Debug, Default)]
pub struct RangeLock {
    queue: RefCell<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Ordered by ticket: holders and waiters in the order they asked.
    entries: Vec<Entry>,
    next_ticket: u64,
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    range: ByteRange,
    exclusive: bool,
    held: bool,
    waker: Option<Waker>,
}

impl Entry {
    fn conflicts(&self, range: ByteRange, exclusive: bool) -> bool {
        (self.exclusive || exclusive) && self.range.overlaps(range)
    }
}

impl RangeLock {
    /// A lock nobody holds.
    pub const fn new() -> Self {
        Self { queue: RefCell::new(Queue { entries: Vec::new(), next_ticket: 0 }) }
    }

    /// Waits until no earlier request holds or awaits any byte of `range`.
    pub fn exclusive(&self, range: ByteRange) -> Acquire<'_> {
        Acquire { lock: self, range, exclusive: true, ticket: None }
    }

    /// Waits until no earlier exclusive request holds or awaits any byte of `range`.
    pub fn shared(&self, range: ByteRange) -> Acquire<'_> {
        Acquire { lock: self, range, exclusive: false, ticket: None }
    }

    /// Takes `range` exclusively if that needs no waiting.
    pub fn try_exclusive(&self, range: ByteRange) -> Option<RangeGuard<'_>> {
        self.try_take(range, true)
    }

    /// Takes `range` shared if that needs no waiting.
    pub fn try_shared(&self, range: ByteRange) -> Option<RangeGuard<'_>> {
        self.try_take(range, false)
    }

    /// Whether anybody holds or awaits a byte of `range`.
    pub fn is_busy(&self, range: ByteRange) -> bool {
        self.queue.borrow().entries.iter().any(|entry| entry.range.overlaps(range))
    }

    fn try_take(&self, range: ByteRange, exclusive: bool) -> Option<RangeGuard<'_>> {
        let mut queue = self.queue.borrow_mut();
        if queue.entries.iter().any(|entry| entry.conflicts(range, exclusive)) {
            return None;
        }
        let ticket = queue.push(range, exclusive, true);
        Some(RangeGuard { lock: self, ticket, range })
    }

    fn leave(&self, ticket: u64) {
        // The wakers run after the borrow has ended: a waker may poll at once and come back here.
        let mut wake = Vec::new();
        {
            let mut queue = self.queue.borrow_mut();
            let Some(index) = queue.index_of(ticket) else { return };
            let gone = queue.entries.remove(index);
            for later in index..queue.entries.len() {
                let Some(entry) = queue.entries.get(later) else { break };
                if entry.held || !gone.conflicts(entry.range, entry.exclusive) || !queue.is_turn_of(later) {
                    continue;
                }
                if let Some(waker) = queue.entries.get_mut(later).and_then(|entry| entry.waker.take()) {
                    wake.push(waker);
                }
            }
        }
        wake.into_iter().for_each(Waker::wake);
    }
}

impl Queue {
    fn push(&mut self, range: ByteRange, exclusive: bool, held: bool) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket = ticket.wrapping_add(1);
        self.entries.push(Entry { ticket, range, exclusive, held, waker: None });
        ticket
    }

    fn index_of(&self, ticket: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&ticket, |entry| entry.ticket).ok()
    }

    /// Whether nobody before `index` stands in its way.
    fn is_turn_of(&self, index: usize) -> bool {
        let Some((earlier, rest)) = self.entries.split_at_checked(index) else { return false };
        let Some(me) = rest.first() else { return false };
        !earlier.iter().any(|entry| entry.conflicts(me.range, me.exclusive))
    }
}

/// The future of a [`RangeGuard`]. Takes its place in the queue at the first poll.
#[derive(Debug)]
#[must_use = "a lock that is not awaited is not taken"]
pub struct Acquire<'a> {
    lock: &'a RangeLock,
    range: ByteRange,
    exclusive: bool,
    ticket: Option<u64>,
}

impl<'a> Future for Acquire<'a> {
    type Output = RangeGuard<'a>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let lock = self.lock;
        let mut queue = lock.queue.borrow_mut();
        let ticket = match self.ticket {
            Some(ticket) => ticket,
            None => {
                let ticket = queue.push(self.range, self.exclusive, false);
                self.ticket = Some(ticket);
                ticket
            }
        };
        let index = queue.index_of(ticket).expect("a waiting future keeps its entry until it is dropped");
        let turn = queue.is_turn_of(index);
        let entry = queue.entries.get_mut(index).expect("the index was just found");
        if turn {
            entry.held = true;
            entry.waker = None;
            self.ticket = None; // the guard owns the entry now
            Poll::Ready(RangeGuard { lock, ticket, range: self.range })
        } else {
            entry.waker = Some(cx.waker().clone());
            Poll::Pending
        }
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.lock.leave(ticket);
        }
    }
}

/// A held range; released when dropped.
#[derive(Debug)]
#[must_use = "dropping the guard releases the range"]
pub struct RangeGuard<'a> {
    lock: &'a RangeLock,
    ticket: u64,
    range: ByteRange,
}

impl RangeGuard<'_> {
    /// The locked range.
    pub fn range(&self) -> ByteRange {
        self.range
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        self.lock.leave(self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counter() -> (Arc<Counter>, Waker) {
        let counter = Arc::new(Counter(AtomicUsize::new(0)));
        (counter.clone(), Waker::from(counter))
    }

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange { start, end }
    }

    #[test]
    fn neighbours_do_not_wait_for_each_other() {
        let lock = RangeLock::new();
        let first = lock.try_exclusive(range(0, 512));
        let second = lock.try_exclusive(range(512, 1024));
        assert!(first.is_some() && second.is_some());
        assert!(lock.try_shared(range(511, 513)).is_none());
    }

    #[test]
    fn conflicting_requests_run_in_the_order_they_asked() {
        let lock = RangeLock::new();
        let reader = lock.try_shared(range(0, 10)).unwrap();
        let (writer_woken, writer_waker) = counter();
        let mut writer = pin!(lock.exclusive(range(0, 10)));
        assert!(writer.as_mut().poll(&mut Context::from_waker(&writer_waker)).is_pending());
        // A later reader would be compatible with the holder, but not with the writer that came before it.
        let (late_woken, late_waker) = counter();
        let mut late = pin!(lock.shared(range(5, 6)));
        assert!(late.as_mut().poll(&mut Context::from_waker(&late_waker)).is_pending());

        drop(reader);
        assert_eq!((writer_woken.0.load(Ordering::Relaxed), late_woken.0.load(Ordering::Relaxed)), (1, 0));
        let Poll::Ready(guard) = writer.as_mut().poll(&mut Context::from_waker(&writer_waker)) else { panic!() };
        assert!(late.as_mut().poll(&mut Context::from_waker(&late_waker)).is_pending());
        drop(guard);
        assert_eq!(late_woken.0.load(Ordering::Relaxed), 1);
        assert!(late.as_mut().poll(&mut Context::from_waker(&late_waker)).is_ready());
    }

    #[test]
    fn a_dropped_waiter_makes_room_for_those_behind_it() {
        let lock = RangeLock::new();
        let holder = lock.try_shared(range(0, 10)).unwrap();
        let (_, waker) = counter();
        let mut writer = Box::pin(lock.exclusive(range(0, 10)));
        assert!(writer.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        let (woken, waker) = counter();
        let mut reader = pin!(lock.shared(range(0, 10)));
        assert!(reader.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop(writer);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(reader.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
        drop(holder);
        assert!(!lock.is_busy(range(0, 10)), "the reader's guard went with its poll result");
    }
}
