//! What the stand-alone programs share: a future run to its end, without a runtime.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// The value of a future, which is polled until it has one.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
        std::thread::yield_now();
    }
}
