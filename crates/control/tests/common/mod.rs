//! What the tests of sessions share: a server without sockets, a clock that tests move, clients in memory.
#![allow(missing_docs, dead_code, clippy::unwrap_used, clippy::panic, unreachable_pub)]

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use blkproof_block::graph::{OpenContext, OpenFlags, Registry};
use blkproof_block::nodes::memory::Memory;
use blkproof_block::{LocalBoxFuture, Node};
use blkproof_control::{Draft, Ended, Host, NewImage, Server};
use blkproof_fault::blkdebug::BlkdebugDriver;
use blkproof_fault::clock::Clock;
use blkproof_fault::disk::DiskDriver;
use blkproof_fault::filter::FaultDriver;
use blkproof_fault::lab::Lab;
use blkproof_fault::log_writes::driver::LogWritesDriver;
use blkproof_fault::stats::StatsDriver;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Time that passes when a test says so.
#[derive(Debug)]
pub struct Clockwork(watch::Sender<Duration>);

impl Clockwork {
    pub fn new() -> Rc<Self> {
        Rc::new(Self(watch::Sender::new(Duration::ZERO)))
    }

    pub fn pass(&self, time: Duration) {
        self.0.send_modify(|now| *now += time);
    }
}

impl Clock for Clockwork {
    fn now(&self) -> Duration {
        *self.0.borrow()
    }

    fn unix(&self) -> Duration {
        Duration::from_secs(1_000_000_000) + self.now()
    }

    fn sleep(&self, time: Duration) -> LocalBoxFuture<'static, ()> {
        let mut now = self.0.subscribe();
        let until = self.now() + time;
        Box::pin(async move {
            now.wait_for(|now| *now >= until).await.unwrap();
        })
    }
}

/// A process that notes what it is asked to do.
#[derive(Debug, Default)]
pub struct Process {
    pub quits: Cell<u32>,
    /// Images, by name.
    pub made: RefCell<Vec<(String, Node)>>,
    /// What the next images are, if they are no disks of memory.
    pub next: RefCell<Vec<Node>>,
    /// Images that are complete.
    pub kept: Rc<RefCell<Vec<String>>>,
}

/// An image that tells when it is complete.
struct Noted {
    name: String,
    node: Node,
    kept: Rc<RefCell<Vec<String>>>,
}

impl Draft for Noted {
    fn node(&self) -> &Node {
        &self.node
    }

    fn keep(self: Box<Self>) {
        self.kept.borrow_mut().push(self.name);
    }
}

impl Host for Process {
    fn quit(&self) {
        self.quits.set(self.quits.get() + 1);
    }

    fn create<'a>(&'a self, image: NewImage<'a>) -> LocalBoxFuture<'a, Result<Box<dyn Draft>, String>> {
        if image.file == "taken.raw" {
            return Box::pin(std::future::ready(Err("'taken.raw' exists".to_owned())));
        }
        let node = self.next.borrow_mut().pop().unwrap_or_else(|| Node::new(Memory::new(0)));
        self.made.borrow_mut().push((image.file.to_owned(), node.clone()));
        let draft = Noted { name: image.file.to_owned(), node, kept: Rc::clone(&self.kept) };
        Box::pin(std::future::ready(Ok(Box::new(draft) as Box<dyn Draft>)))
    }
}

/// A server, and what it controls.
pub struct Bench {
    pub lab: Rc<Lab>,
    pub clock: Rc<Clockwork>,
    pub process: Rc<Process>,
    pub server: Rc<Server>,
}

impl Bench {
    pub fn new() -> Self {
        let clock = Clockwork::new();
        let lab = Lab::new(clock.clone());
        let process = Rc::new(Process::default());
        let server = Rc::new(Server::new(Rc::clone(&lab), process.clone()));
        Self { lab, clock, process, server }
    }

    /// Opens a graph whose nodes can be controlled.
    pub async fn open(&self, graph: &str) -> Node {
        let mut registry = Registry::new();
        blkproof_block::nodes::register(&mut registry);
        registry.add(FaultDriver::new(&self.lab, Rc::new(|_| Err("no files here".to_owned()))));
        registry.add(BlkdebugDriver::new(&self.lab, Rc::new(|_| panic!("no files here"))));
        registry.add(DiskDriver::new(&self.lab));
        registry.add(LogWritesDriver::new(&self.lab));
        registry.add(StatsDriver::new(&self.lab));
        let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
        context.open_image(graph, None, true).await.unwrap()
    }

    /// A client that has just connected; the pipe to it holds `room` bytes.
    pub fn connect_with(&self, room: usize) -> (Client, JoinHandle<Ended>) {
        self.connect_until(room, std::future::pending())
    }

    /// The same, whose stream is closed in both directions when `hung_up` completes.
    pub fn connect_until(
        &self,
        room: usize,
        hung_up: impl Future<Output = ()> + 'static,
    ) -> (Client, JoinHandle<Ended>) {
        let (ours, theirs) = tokio::io::duplex(room);
        let server = Rc::clone(&self.server);
        let session = tokio::task::spawn_local(async move { server.serve(theirs, hung_up).await.unwrap() });
        let (reader, writer) = tokio::io::split(ours);
        (Client { reader: BufReader::new(reader), writer, heard: RefCell::default() }, session)
    }

    /// A client that has negotiated.
    pub async fn client(&self) -> Client {
        let (mut client, _) = self.connect_with(64 << 10);
        client.negotiate().await;
        client
    }
}

/// A client.
pub struct Client {
    pub reader: BufReader<ReadHalf<DuplexStream>>,
    pub writer: WriteHalf<DuplexStream>,
    heard: RefCell<Vec<Value>>,
}

impl Client {
    pub async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.writer.write_all(text.as_ref()).await.unwrap();
    }

    /// The next message; `None` at the end.
    pub async fn next(&mut self) -> Option<Value> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line).await.unwrap();
        if line.is_empty() {
            return None;
        }
        assert!(line.is_ascii() && line.ends_with(b"\r\n"), "{}", line.escape_ascii());
        Some(serde_json::from_slice(&line).unwrap())
    }

    /// The next message that is no event; events are kept.
    pub async fn reply(&mut self) -> Value {
        loop {
            let message = self.next().await.expect("a reply, not the end");
            if message.get("event").is_none() {
                return message;
            }
            self.heard.borrow_mut().push(message);
        }
    }

    /// The next event, kept or not.
    pub async fn event(&mut self) -> Value {
        if !self.heard.borrow().is_empty() {
            return self.heard.borrow_mut().remove(0);
        }
        let message = self.next().await.expect("an event, not the end");
        assert!(message.get("event").is_some(), "{message}");
        message
    }

    /// The next event of that name; others are forgotten. Its data.
    pub async fn event_named(&mut self, name: &str) -> Value {
        loop {
            let event = self.event().await;
            if event["event"] == name {
                return event["data"].clone();
            }
        }
    }

    pub async fn negotiate(&mut self) {
        assert!(self.next().await.unwrap().get("QMP").is_some());
        self.send(r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#).await;
        assert_eq!(self.next().await.unwrap(), json!({"return": {}}));
    }

    /// Does a command and returns its reply.
    pub async fn execute(&mut self, name: &str, arguments: Value) -> Value {
        self.send(json!({"execute": name, "arguments": arguments}).to_string()).await;
        self.reply().await
    }

    /// Does a command that succeeds.
    #[track_caller]
    pub fn ok(&mut self, name: &str, arguments: Value) -> impl Future<Output = Value> {
        let place = std::panic::Location::caller();
        async move {
            let mut reply = self.execute(name, arguments).await;
            assert!(reply.get("return").is_some(), "{place}: {reply}");
            reply["return"].take()
        }
    }

    /// Does a command that is refused; class and words.
    #[track_caller]
    pub fn refused(&mut self, name: &str, arguments: Value) -> impl Future<Output = (String, String)> {
        let place = std::panic::Location::caller();
        async move {
            let reply = self.execute(name, arguments).await;
            let error = reply.get("error").unwrap_or_else(|| panic!("{place}: {reply}"));
            (error["class"].as_str().unwrap().to_owned(), error["desc"].as_str().unwrap().to_owned())
        }
    }
}

/// Runs a test on one thread.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// Lets everything that can go on go on.
pub async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}
