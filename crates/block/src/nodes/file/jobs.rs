//! Jobs in flight on the thread pool, and waiting for those nobody waits for any more.
//!
//! A job is *in flight* from the moment it is handed over until it has returned, or until the pool has thrown it away
//! unstarted because its request was dropped. The ticket that says so travels inside the job, never inside the future.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// The jobs of one file.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    tickets: Mutex<Tickets>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Tickets {
    in_flight: BTreeSet<u64>,
    next: u64,
}

impl Jobs {
    /// Counts a job until the ticket is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> Ticket {
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        let number = tickets.next;
        tickets.next = number.wrapping_add(1);
        tickets.in_flight.insert(number);
        Ticket { jobs: self.clone(), number }
    }

    /// Waits for every job that is in flight now. Later ones are not waited for: a busy file can be drained.
    pub(super) async fn drain(&self) {
        let until = self.tickets.lock().unwrap_or_else(PoisonError::into_inner).next;
        loop {
            let mut ended = pin!(self.ended.notified());
            // Listening starts before looking, so that no job can end in between unnoticed.
            ended.as_mut().enable();
            if !self.any_before(until) {
                return;
            }
            ended.await;
        }
    }

    /// Jobs that were ever handed over.
    #[cfg(test)]
    pub(super) fn begun(&self) -> u64 {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner).next
    }

    fn any_before(&self, until: u64) -> bool {
        let tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.in_flight.first().is_some_and(|first| *first < until)
    }
}

/// One job in flight.
#[derive(Debug)]
pub(super) struct Ticket {
    jobs: Arc<Jobs>,
    number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.jobs.tickets.lock().unwrap_or_else(PoisonError::into_inner).in_flight.remove(&self.number);
        self.jobs.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn drain_waits_for_earlier_jobs_only() {
        let jobs = Arc::new(Jobs::default());
        let mut context = Context::from_waker(Waker::noop());
        let (first, second) = (jobs.enter(), jobs.enter());
        let mut drain = pin!(jobs.drain());
        assert!(drain.as_mut().poll(&mut context).is_pending());
        let later = jobs.enter();
        drop(second);
        assert!(drain.as_mut().poll(&mut context).is_pending(), "the first job is still in flight");
        drop(first);
        assert!(drain.as_mut().poll(&mut context).is_ready(), "a job that began later is nobody's debt");
        drop(later);
    }
}
