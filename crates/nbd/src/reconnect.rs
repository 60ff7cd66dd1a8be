//! A client that connects again: QEMU's `reconnect-delay`.
//!
//! # What it does
//! The connection is *lost* when it breaks, and when the server answers `NBD_ESHUTDOWN`, which asks us to leave. One task
//! then connects again, at once, and after every attempt that fails with a pause that grows from 10 ms to 1 s; each
//! attempt may take 10 s. It tries for ever: the node is of use again whenever the server is. It holds the node weakly
//! and ends with it.
//!
//! During the first `reconnect-delay` seconds of an *outage* requests wait, those in flight at the loss as well, and are
//! then sent (again). After that the waiting ones and every new one fail at once with `ESHUTDOWN`, until a connection
//! stands. An outage is over when the new connection has answered something, or was never asked: a server that falls
//! over each time the waiting requests reach it, or answers nothing but `NBD_ESHUTDOWN` (because a connection of its own
//! is lost, say), does not make them wait for ever, and is not asked without a pause.
//!
//! A new connection has to be to the same export. If its size, its being read-only, a block size or a capability is not
//! what [`info`](BlockDevice::info) promised, the layers above would rely on what is no longer true, so it is refused for
//! good: every request fails with an error that names both values. More than was promised does no harm.
//!
//! # Why it is off by default
//! A request that is sent twice may be carried out twice, and the old server may still carry out the first one after the
//! second was answered: over a later write to the same place, in the worst case. NBD has no way to rule that out, neither
//! by a fence nor by naming the old session. Whoever switches reconnecting on asserts that a server whose connection is
//! lost is dead, or does nothing more. (A server that was killed does nothing more. One behind a broken network may.)
//!
//! # What is never said although it is not known
//! * **Drained.** A request that changes the disk, that the old server received, did not answer, and that was not done
//!   again successfully, because its future was dropped, or because its failure was reported, may land at any time (CM
//!   4.5). [`drain`](BlockDevice::drain) fails with `ESHUTDOWN` from then on. A request whose head had not left whole
//!   leaves nothing behind; one that is sent again and then dropped is open like any other until the new server answers.
//! * **Flushed.** Writes that were acknowledged and not flushed when the connection was lost are covered by a later flush
//!   only if the server says so (`reconnect/ledger.rs`); else every later flush, and FUA where it takes a flush, fails with `EIO`.
//!   Writes with FUA were durable and do not count. A server without flush has nothing to flush.
//!
//! `CAN_MULTI_CONN` speaks of the connections to one server. That a server which *died* had no cache of its own, or none
//! that died with it, nobody can tell from here: a page cache survives its process, the metadata cache of a format driver
//! (qemu-nbd over qcow2) does not. Whoever can not exclude that writes with FUA (cache mode `writethrough`).
//!
//! # Cancelling
//! Requests keep nothing in this node but two guards: one counts who waits, one owes what was sent and not answered.
//! Both settle their account when the future is dropped, wherever it stands.

mod keeper;
mod ledger;

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use blkproof_block::{
    BlockDevice, BlockStatus, Capabilities, DeviceInfo, Errno, IoError, Preallocation, Result, WriteFlags, ZeroFlags,
};
use tokio::sync::{Notify, oneshot};

use self::keeper::Keeper;
use self::ledger::Ledger;
use crate::client::{Client, Connection, Failure, Fate};
use crate::connect::{Connect, Target, Transport};
use crate::wire::TransmissionFlags;

/// One export of a server, over one connection after another. See the [module](self).
#[derive(Debug)]
pub struct Reconnecting {
    inner: Rc<Inner>,
    /// Dropping it ends the attempts.
    stop: RefCell<Option<oneshot::Sender<()>>>,
}

/// What the node and its task share.
#[derive(Debug)]
struct Inner {
    /// What the first connection promised.
    info: DeviceInfo,
    delay: Duration,
    state: RefCell<State>,
    /// Requests that wait for a connection.
    waiting: Cell<u64>,
    /// Requests that may land at any time, for ever.
    open: Rc<Cell<u64>>,
    ledger: RefCell<Ledger>,
    /// Told of every change of phase.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// The last connection there was.
    link: Rc<Link>,
    /// The present outage, or the last one if a connection stands.
    outage: Option<Outage>,
}

#[derive(Debug)]
enum Phase {
    /// A connection stands, or its end has not been noticed yet.
    Up,
    /// There is none.
    Down,
    /// There will be none.
    Over(IoError),
}

/// One connection.
#[derive(Debug)]
struct Link {
    client: Client,
    /// Counts from 0.
    number: u64,
    /// A request has used it.
    asked: Cell<bool>,
}

#[derive(Debug)]
struct Outage {
    /// Requests do not wait any more.
    expired: bool,
    /// How it began.
    loss: String,
    attempts: u64,
    /// Why the last attempt failed.
    last: Option<String>,
}

/// What the task has to know of a loss.
struct Loss {
    /// An outage begins.
    begins: bool,
    /// The connection had answered something.
    answered: bool,
}

impl Reconnecting {
    /// Takes over a first connection to `target`, and gets a new one through `connect` whenever it is lost. `delay` is
    /// how long requests wait for it.
    pub fn new<C: Connect + 'static>(
        connect: C,
        target: Target,
        delay: Duration,
        client: Client,
        connection: Connection<Box<dyn Transport>>,
    ) -> Self {
        let open = Rc::default();
        client.share_open(&open);
        let inner = Rc::new(Inner {
            info: client.info(),
            delay,
            state: RefCell::new(State {
                phase: Phase::Up,
                link: Rc::new(Link { client, number: 0, asked: Cell::new(false) }),
                outage: None,
            }),
            waiting: Cell::new(0),
            open,
            ledger: RefCell::default(),
            changed: Notify::new(),
        });
        let (stop, stopped) = oneshot::channel();
        let home = Rc::downgrade(&inner);
        let connect = Rc::new(connect);
        let keeper = Keeper { home, connect: Rc::clone(&connect), target, delay, stop: stopped };
        connect.spawn(Box::pin(keeper.run(connection)));
        Self { inner, stop: RefCell::new(Some(stop)) }
    }

    /// Does one request, over as many connections as it takes. `writes`: it changes the disk.
    async fn request<T>(&self, writes: bool, mut op: impl AsyncFnMut(&Link) -> Result<T, Failure>) -> Result<T> {
        let mut debt = Debt { open: &self.inner.open, owed: false };
        loop {
            let link = self.inner.link().await?;
            let Failure { error, fate } = match op(&link).await {
                Ok(done) => {
                    // What the old server may still do is what has just been done.
                    debt.owed = false;
                    return Ok(done);
                }
                Err(failure) => failure,
            };
            debt.owed |= writes && fate == Fate::Unanswered;
            let dismissed = error.errno == Errno::SHUTDOWN && link.client.is_over();
            if fate == Fate::Settled && !dismissed {
                return Err(error);
            }
        }
    }

    /// Does one request that changes the disk, if it has a length and the server offers what it `needs`.
    async fn change(
        &self,
        len: u64,
        needs: TransmissionFlags,
        durable: bool,
        mut op: impl AsyncFnMut(&Client) -> Result<(), Failure>,
    ) -> Result<()> {
        let ledger = &self.inner.ledger;
        self.request(true, async |link| {
            let flushable = len > 0 && link.client.offers(needs | TransmissionFlags::FLUSH);
            let emulated = durable && !link.client.offers(TransmissionFlags::FUA);
            // Between here and the flush that the client will send nothing is given up that this could not cover.
            let covered = if emulated { Some(ledger.borrow().submit()?) } else { None };
            op(&link.client).await?;
            match covered {
                Some(covered) => ledger.borrow_mut().flushed(link.number, covered),
                None if !durable && flushable => ledger.borrow_mut().acknowledge(link.number),
                None => {}
            }
            Ok(())
        })
        .await
    }
}

/// A request that was sent and never answered becomes open for ever, unless it is done again.
struct Debt<'a> {
    open: &'a Cell<u64>,
    owed: bool,
}

impl Drop for Debt<'_> {
    fn drop(&mut self) {
        if self.owed {
            self.open.set(self.open.get().saturating_add(1));
        }
    }
}

/// Counts one that waits.
struct Waiting<'a>(&'a Cell<u64>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<u64>) -> Self {
        count.set(count.get().saturating_add(1));
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Inner {
    /// The connection to use, as soon as there is one.
    async fn link(&self) -> Result<Rc<Link>> {
        let mut waiting = None;
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let state = self.state.borrow();
                match (&state.phase, &state.outage) {
                    (Phase::Over(error), _) => return Err(error.clone()),
                    (Phase::Up, _) if !state.link.client.is_over() => {
                        state.link.asked.set(true);
                        return Ok(Rc::clone(&state.link));
                    }
                    (Phase::Down, Some(outage)) if outage.expired => return Err(outage.error(self.delay)),
                    (Phase::Up | Phase::Down, _) => {}
                }
            }
            waiting.get_or_insert_with(|| Waiting::new(&self.waiting));
            changed.await;
        }
    }

    /// The connection is lost. `None` if none is wanted any more.
    fn lost(&self) -> Option<Loss> {
        let state = &mut *self.state.borrow_mut();
        if let Phase::Over(_) = state.phase {
            return None;
        }
        state.phase = Phase::Down;
        let client = &state.link.client;
        let answered = client.has_answered();
        let asked = state.link.asked.get() || self.waiting.get() > 0;
        let begins = state.outage.is_none() || answered || !asked;
        if begins {
            let loss = client.loss().and_then(|error| error.detail).map_or_else(String::new, String::from);
            state.outage = Some(Outage { expired: false, loss, attempts: 0, last: None });
        }
        self.changed.notify_waiters();
        Some(Loss { begins, answered })
    }

    fn attempt_failed(&self, why: String) {
        if let Some(outage) = &mut self.state.borrow_mut().outage {
            outage.attempts = outage.attempts.saturating_add(1);
            outage.last = Some(why);
        }
    }

    /// The time in which requests wait is over.
    fn expired(&self) {
        if let Some(outage) = &mut self.state.borrow_mut().outage {
            outage.expired = true;
        }
        self.changed.notify_waiters();
    }

    /// A new connection. `false` if it is of no use.
    fn connected(&self, client: Client) -> bool {
        let state = &mut *self.state.borrow_mut();
        if let Phase::Over(_) = state.phase {
            return false;
        }
        let old = &state.link;
        let both = |flag| (old.client.offers(flag), client.offers(flag));
        let differs = difference(&self.info, &client.info()).or_else(|| {
            (both(TransmissionFlags::FLUSH) == (true, false))
                .then(|| "the server offered flush, now it does not".into())
        });
        let usable = differs.is_none();
        if let Some(differs) = differs {
            let words = format!("the NBD export is not the one the connection was lost to: {differs}");
            state.phase = Phase::Over(IoError::new(Errno::SHUTDOWN).detail(words));
        } else {
            let number = old.number.saturating_add(1);
            let shared = both(TransmissionFlags::CAN_MULTI_CONN) == (true, true);
            self.ledger.borrow_mut().connected(number, shared);
            client.share_open(&self.open);
            state.link = Rc::new(Link { client, number, asked: Cell::new(false) });
            state.phase = Phase::Up;
        }
        self.changed.notify_waiters();
        usable
    }

    fn check_open(&self) -> Result<()> {
        let requests = match self.open.get() {
            0 => return Ok(()),
            1 => "1 request that changes".to_owned(),
            count => format!("{count} requests that change"),
        };
        Err(IoError::new(Errno::SHUTDOWN).detail(format!(
            "{requests} the disk had no answer when the NBD connection was lost: the server may still carry it out"
        )))
    }
}

impl Outage {
    fn error(&self, delay: Duration) -> IoError {
        let Self { loss, attempts, last, .. } = self;
        let last = match last {
            Some(last) => format!("the last of {attempts} attempts failed: {last}"),
            None => "the first attempt to connect again is still under way".to_owned(),
        };
        let words = format!("{loss}; that is more than {} s ago, and {last}", delay.as_secs());
        IoError::new(Errno::SHUTDOWN).detail(words)
    }
}

/// The first promise that is no longer kept, with both values.
fn difference(promised: &DeviceInfo, now: &DeviceInfo) -> Option<String> {
    let differ = |what: &str, before: &dyn std::fmt::Display, now: &dyn std::fmt::Display| {
        Some(format!("{what} was {before}, now it is {now}"))
    };
    if promised.size != now.size {
        return differ("the size in bytes", &promised.size, &now.size);
    }
    if promised.read_only != now.read_only {
        let word = |read_only| if read_only { "read-only" } else { "writable" };
        return differ("it", &word(promised.read_only), &word(now.read_only));
    }
    let (before, after) = (&promised.limits, &now.limits);
    // All are powers of two: what keeps to the larger one keeps to the smaller.
    if after.alignment > before.alignment {
        return differ("the minimum block size", &before.alignment, &after.alignment);
    }
    let largest = [
        ("the largest payload", u64::from(before.max_transfer), u64::from(after.max_transfer)),
        ("the longest write zeroes", before.max_zero, after.max_zero),
        ("the longest discard", before.max_discard, after.max_discard),
    ];
    for (what, before, now) in largest {
        let word = |limit: u64| if limit == 0 { "unlimited".to_owned() } else { limit.to_string() };
        if now != 0 && (before == 0 || now < before) {
            return differ(what, &word(before), &word(now));
        }
    }
    // Rotating is a hint, not a promise.
    let lost = promised.capabilities.difference(now.capabilities).difference(Capabilities::ROTATIONAL);
    let (name, _) = lost.iter_names().next()?;
    Some(format!("the server offered {name}, now it does not"))
}

impl BlockDevice for Reconnecting {
    fn info(&self) -> DeviceInfo {
        self.inner.info
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.request(false, async |link| link.client.try_read(at, buf).await).await
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        let durable = flags.contains(WriteFlags::FUA);
        let len = data.len() as u64;
        let request = async |client: &Client| client.try_write(at, data, flags).await;
        self.change(len, TransmissionFlags::empty(), durable, request).await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let durable = flags.contains(ZeroFlags::FUA);
        let request = async |client: &Client| client.try_write_zeroes(at, len, flags).await;
        self.change(len, TransmissionFlags::empty(), durable, request).await
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        let request = async |client: &Client| client.try_discard(at, len).await;
        self.change(len, TransmissionFlags::TRIM, false, request).await
    }

    async fn flush(&self) -> Result<()> {
        let ledger = &self.inner.ledger;
        self.request(false, async |link| {
            // No await between this and the sending.
            let covered = ledger.borrow().submit()?;
            link.client.try_flush().await?;
            ledger.borrow_mut().flushed(link.number, covered);
            Ok(())
        })
        .await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        self.request(false, async |link| link.client.try_block_status(at, len).await).await
    }

    async fn resize(&self, _size: u64, _preallocation: Preallocation) -> Result<()> {
        Err(IoError::unsupported())
    }

    async fn drain(&self) -> Result<()> {
        self.inner.check_open()?;
        let link = Rc::clone(&self.inner.state.borrow().link);
        // If it fails, its connection is lost, and what was dropped and unanswered has been counted: nothing else that
        // was dropped can land, so a new connection need not be waited for.
        let _ = link.client.drain().await;
        self.inner.check_open()
    }

    async fn close(&self) -> Result<()> {
        let flushed = self.flush().await;
        let state = &mut *self.inner.state.borrow_mut();
        if !matches!(state.phase, Phase::Over(_)) {
            state.phase = Phase::Over(IoError::new(Errno::SHUTDOWN).detail("the connection was closed"));
        }
        state.link.client.hang_up();
        self.inner.changed.notify_waiters();
        *self.stop.borrow_mut() = None;
        flushed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_promised_has_to_be_kept() {
        let mut promised = DeviceInfo::new("nbd", 4096);
        promised.limits.alignment = 512;
        promised.limits.max_transfer = 1 << 20;
        promised.capabilities = Capabilities::FUA | Capabilities::DISCARD | Capabilities::ROTATIONAL;
        type Change = fn(&mut DeviceInfo);
        let cases: [(Change, &str); 17] = [
            (|_| {}, ""),
            (|info| info.size = 8192, "size in bytes was 4096, now it is 8192"),
            (|info| info.size = 0, "size in bytes was 4096, now it is 0"),
            (|info| info.read_only = true, "was writable, now it is read-only"),
            (|info| info.limits.alignment = 4096, "minimum block size was 512, now it is 4096"),
            (|info| info.limits.alignment = 1, ""),
            (|info| info.limits.max_transfer = 4096, "largest payload was 1048576, now it is 4096"),
            (|info| info.limits.max_transfer = 2 << 20, ""),
            (|info| info.limits.preferred_transfer = 4096, ""),
            (|info| info.limits.max_zero = 4096, "longest write zeroes was unlimited, now it is 4096"),
            (|info| info.limits.max_discard = 4096, "longest discard was unlimited, now it is 4096"),
            (|info| info.limits.zero_alignment = 1, ""),
            (|info| info.capabilities -= Capabilities::FUA, "offered FUA, now it does not"),
            (|info| info.capabilities -= Capabilities::DISCARD, "offered DISCARD, now it does not"),
            (|info| info.capabilities -= Capabilities::ROTATIONAL, ""),
            (|info| info.capabilities |= Capabilities::ZEROES, ""),
            (|info| info.cluster_size = 512, ""),
        ];
        for (row, (change, want)) in cases.into_iter().enumerate() {
            let mut now = promised;
            change(&mut now);
            let got = difference(&promised, &now).unwrap_or_default();
            assert!(if want.is_empty() { got.is_empty() } else { got.contains(want) }, "row {row}: {got:?}");
        }
        let mut narrow = promised;
        narrow.limits.max_zero = 4096;
        assert_eq!(difference(&narrow, &promised), None, "a limit that is gone");
        promised.read_only = true;
        let mut now = promised;
        now.read_only = false;
        assert!(difference(&promised, &now).is_some());
    }
}
