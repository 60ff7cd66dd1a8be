//! What waits to be sent to one client.
//!
//! Invariant: no more than [`ROOM`] bytes and one message for each of a bounded number of writers. Whoever has something
//! to say waits for room; the client pays for its slowness, not the graph.

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use blkproof_fault::clock::SharedClock;
use futures_lite::future::or;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;

/// Bytes that may wait before others wait for them.
pub(crate) const ROOM: usize = 256 << 10;

/// Time a client has to take something of what waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(crate) struct Outbox {
    waiting: RefCell<Waiting>,
    room: Notify,
    ready: Notify,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    closed: bool,
}

impl Outbox {
    /// Puts a line in, when there is room.
    pub(crate) async fn put(&self, line: Vec<u8>) {
        // On one thread nothing happens between the look and the first poll of the wait.
        while self.waiting.borrow().bytes.len() >= ROOM {
            self.room.notified().await;
        }
        self.waiting.borrow_mut().bytes.extend_from_slice(&line);
        self.ready.notify_one();
    }

    /// Nothing more will come.
    pub(crate) fn close(&self) {
        self.waiting.borrow_mut().closed = true;
        self.ready.notify_one();
    }

    /// Sends what is put in until it is closed and empty.
    ///
    /// # Errors
    /// `TimedOut` if the client took nothing for [`PATIENCE`]; whatever the stream fails with.
    pub(crate) async fn send(&self, stream: &mut (impl AsyncWrite + Unpin), clock: &SharedClock) -> io::Result<()> {
        loop {
            let (bytes, closed) = {
                let mut waiting = self.waiting.borrow_mut();
                (std::mem::take(&mut waiting.bytes), waiting.closed)
            };
            if bytes.is_empty() {
                if closed {
                    return or(stream.shutdown(), too_slow(clock)).await;
                }
                self.ready.notified().await;
                continue;
            }
            self.room.notify_waiters();
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let sent = or(stream.write(rest), too_slow(clock)).await?;
                if sent == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                rest = rest.get(sent..).unwrap_or_default();
            }
            or(stream.flush(), too_slow(clock)).await?;
        }
    }
}

async fn too_slow<T>(clock: &SharedClock) -> io::Result<T> {
    clock.sleep(PATIENCE).await;
    Err(io::ErrorKind::TimedOut.into())
}
