//! Futures that wait for nobody but themselves.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Polls after which a future counts as endless.
const POLLS_MAX: u32 = 1_000_000;

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The value of a future whose disks answer at once; `None` if it waits for something that nobody will bring about, or
/// does not end.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut future = pin!(future);
    for _ in 0..POLLS_MAX {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(value);
        }
        if !woken.0.swap(false, Ordering::Relaxed) {
            return None;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_ever_is_noticed() {
        assert_eq!(now(async { 7 }), Some(7));
        assert_eq!(now(std::future::pending::<()>()), None);
        let mut left = 3;
        let yields = std::future::poll_fn(|cx| {
            cx.waker().wake_by_ref();
            left -= 1;
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        assert_eq!(now(yields), Some(()));
        assert_eq!(
            now(std::future::poll_fn::<(), _>(|cx| {
                cx.waker().wake_by_ref();
                Poll::Pending
            })),
            None
        );
    }
}
