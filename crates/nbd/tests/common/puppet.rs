//! A server whose every reply the test decides, a network it can cut, and a clock it moves.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::panic::Location;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use blkproof_block::graph::{Driver, OpenContext, OpenFlags, Options, Registry};
use blkproof_block::{LocalBoxFuture, Node};
use blkproof_nbd::driver::{Connect, NbdDriver, Transport};
use blkproof_nbd::uri::Address;
use blkproof_nbd::wire::TransmissionFlags;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_local, yield_now};

#[derive(Default)]
struct Inside {
    refuse: Cell<bool>,
    attempts: Cell<u32>,
    arrivals: RefCell<VecDeque<DuplexStream>>,
    now: Cell<Duration>,
    sleepers: RefCell<Vec<(Duration, oneshot::Sender<()>)>>,
    /// Every time slept for, in order.
    slept: RefCell<Vec<Duration>>,
    tasks: Cell<u32>,
}

/// Everything outside the driver.
#[derive(Clone, Default)]
pub struct World(Rc<Inside>);

impl Connect for World {
    fn connect<'a>(&'a self, _address: &'a Address) -> LocalBoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            self.0.attempts.set(self.0.attempts.get() + 1);
            if self.0.refuse.get() {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (near, far) = tokio::io::duplex(1 << 16);
            self.0.arrivals.borrow_mut().push_back(far);
            Ok(Box::new(near) as Box<dyn Transport>)
        })
    }

    fn spawn(&self, task: LocalBoxFuture<'static, ()>) {
        let inside = Rc::clone(&self.0);
        inside.tasks.set(inside.tasks.get() + 1);
        spawn_local(async move {
            task.await;
            inside.tasks.set(inside.tasks.get() - 1);
        });
    }

    fn sleep(&self, time: Duration) -> LocalBoxFuture<'static, ()> {
        self.0.slept.borrow_mut().push(time);
        let (wake, woken) = oneshot::channel();
        self.0.sleepers.borrow_mut().push((self.0.now.get() + time, wake));
        Box::pin(async move { woken.await.unwrap() })
    }
}

/// Lets everything happen that needs no time.
pub async fn settle() {
    for _ in 0..60 {
        yield_now().await;
    }
}

/// What comes of that without help of the test, and without time; it has to be something.
#[track_caller]
pub fn at_once<T>(task: impl Future<Output = T>) -> impl Future<Output = T> {
    let place = Location::caller();
    async move {
        let mut task = pin!(task);
        for _ in 0..40 {
            if let Some(done) = futures_lite::future::poll_once(task.as_mut()).await {
                return done;
            }
            settle().await;
        }
        panic!("what is awaited at {place} does not happen");
    }
}

impl World {
    /// Whether connections are refused.
    pub fn refuse(&self, refuse: bool) {
        self.0.refuse.set(refuse);
    }

    pub fn attempts(&self) -> u32 {
        self.0.attempts.get()
    }

    /// Tasks of the driver that have not ended.
    pub fn tasks(&self) -> u32 {
        self.0.tasks.get()
    }

    pub fn slept(&self) -> Vec<Duration> {
        self.0.slept.borrow().clone()
    }

    /// Lets time pass: whoever sleeps wakes in his turn.
    pub async fn pass(&self, time: Duration) {
        let end = self.0.now.get() + time;
        loop {
            settle().await;
            let next = {
                let mut sleepers = self.0.sleepers.borrow_mut();
                sleepers.retain(|(_, wake)| !wake.is_closed());
                let first = (0..sleepers.len()).min_by_key(|&at| sleepers[at].0);
                first.filter(|&at| sleepers[at].0 <= end).map(|at| sleepers.remove(at))
            };
            let Some((at, wake)) = next else { break };
            self.0.now.set(at);
            let _ = wake.send(());
        }
        self.0.now.set(end);
    }

    /// Opens the driver with these options; it has to be let in.
    pub fn opening(&self, options: &[(&str, &str)]) -> JoinHandle<Result<Node, String>> {
        let all = options.iter().fold(Options::new().with("path", "p"), |all, (key, value)| all.with(key, *value));
        let world = self.clone();
        spawn_local(async move {
            let registry = Registry::new();
            let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
            NbdDriver(world).open(all, &context).await.map_err(|error| error.to_string())
        })
    }

    /// An open node with that `reconnect-delay`, and its server.
    pub async fn open(&self, delay: &str, offer: Offer) -> (Node, Puppet) {
        let opening = self.opening(&[("reconnect-delay", delay)]);
        let puppet = self.accept(offer).await;
        (at_once(opening).await.unwrap().unwrap(), puppet)
    }

    /// Whether somebody wants in.
    pub async fn knocks(&self) -> bool {
        settle().await;
        !self.0.arrivals.borrow().is_empty()
    }

    /// The next connection, as it comes.
    pub async fn arrival(&self) -> DuplexStream {
        assert!(self.knocks().await, "nobody connects");
        self.0.arrivals.borrow_mut().pop_front().unwrap()
    }

    /// Lets the next connection in.
    pub async fn accept(&self, offer: Offer) -> Puppet {
        let mut puppet = Puppet { stream: self.arrival().await };
        at_once(puppet.negotiate(offer)).await;
        settle().await;
        puppet
    }
}

/// What the export is said to be.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    pub size: u64,
    pub flags: TransmissionFlags,
    pub minimum: u32,
    pub maximum: u32,
}

impl Default for Offer {
    fn default() -> Self {
        let flags = TransmissionFlags::HAS_FLAGS
            | TransmissionFlags::FLUSH
            | TransmissionFlags::FUA
            | TransmissionFlags::TRIM
            | TransmissionFlags::WRITE_ZEROES
            | TransmissionFlags::CAN_MULTI_CONN;
        Self { size: 1 << 20, flags, minimum: 1, maximum: 1 << 25 }
    }
}

impl Offer {
    pub fn with(self, flags: TransmissionFlags) -> Self {
        Self { flags: self.flags | flags, ..self }
    }

    pub fn without(self, flags: TransmissionFlags) -> Self {
        Self { flags: self.flags - flags, ..self }
    }
}

/// A request as it came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    pub flags: u16,
    pub kind: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
    pub data: Vec<u8>,
}

/// One connection of the server. Dropping it is losing it.
pub struct Puppet {
    stream: DuplexStream,
}

impl Puppet {
    async fn negotiate(&mut self, offer: Offer) {
        let reply = |option: u32, kind: u32, data: &[u8]| {
            let mut message = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
            message.extend(option.to_be_bytes());
            message.extend(kind.to_be_bytes());
            message.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
            message.extend(data);
            message
        };
        self.stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").await.unwrap();
        self.stream.read_exact(&mut [0; 4]).await.unwrap();
        loop {
            let mut head = [0; 16];
            self.stream.read_exact(&mut head).await.unwrap();
            let option = u32::from_be_bytes(head[8..12].try_into().unwrap());
            let mut data = vec![0; u32::from_be_bytes(head[12..].try_into().unwrap()) as usize];
            self.stream.read_exact(&mut data).await.unwrap();
            if option != 7 {
                self.stream.write_all(&reply(option, 0x8000_0001, &[])).await.unwrap();
                continue;
            }
            let export = [&[0, 0][..], &offer.size.to_be_bytes(), &offer.flags.bits().to_be_bytes()].concat();
            let sizes = [offer.minimum, offer.minimum.max(4096), offer.maximum];
            let sizes = [&[0, 3][..], &sizes.map(u32::to_be_bytes).concat()].concat();
            let all = [reply(option, 3, &export), reply(option, 3, &sizes), reply(option, 1, &[])].concat();
            return self.stream.write_all(&all).await.unwrap();
        }
    }

    /// The next request.
    #[track_caller]
    pub fn next(&mut self) -> impl Future<Output = Asked> {
        at_once(self.receive())
    }

    async fn receive(&mut self) -> Asked {
        let mut head = [0; 28];
        self.stream.read_exact(&mut head).await.unwrap();
        let number = |at: usize| u16::from_be_bytes(head[at..at + 2].try_into().unwrap());
        let long = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().unwrap());
        let length = u32::from_be_bytes(head[24..].try_into().unwrap());
        let mut data = vec![0; if number(6) == 1 { length as usize } else { 0 }];
        self.stream.read_exact(&mut data).await.unwrap();
        Asked { flags: number(4), kind: number(6), cookie: long(8), offset: long(16), length, data }
    }

    /// Whether a request, or the end, is there to be read.
    pub async fn is_asked(&mut self) -> bool {
        settle().await;
        // A read of nothing is ready at once; one of something waits.
        let mut byte = [0; 1];
        let mut buf = tokio::io::ReadBuf::new(&mut byte);
        let polled = std::future::poll_fn(|cx: &mut Context<'_>| {
            Poll::Ready(tokio::io::AsyncRead::poll_read(Pin::new(&mut self.stream), cx, &mut buf).is_ready())
        });
        polled.await
    }

    /// Whether the client has left.
    pub async fn is_left(&mut self) -> bool {
        settle().await;
        let mut byte = [0; 1];
        matches!(futures_lite::future::poll_once(self.stream.read(&mut byte)).await, Some(Ok(0) | Err(_)))
    }

    /// Answers with that error number, or 0; a read gets nines.
    pub async fn answer(&mut self, asked: &Asked, error: u32) {
        let mut message = 0x6744_6698_u32.to_be_bytes().to_vec();
        message.extend(error.to_be_bytes());
        message.extend(asked.cookie.to_be_bytes());
        if asked.kind == 0 && error == 0 {
            message.resize(message.len() + asked.length as usize, 9);
        }
        self.stream.write_all(&message).await.unwrap();
        settle().await;
    }

    /// Takes one request and answers it with success.
    pub async fn serve(&mut self) -> Asked {
        let asked = self.next().await;
        self.answer(&asked, 0).await;
        asked
    }
}
