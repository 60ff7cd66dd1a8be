//! Connections that end without an answer, exports that go away, clients that leave requests behind.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::rc::Rc;

use blkproof_block::nodes::memory::Memory;
use blkproof_block::{
    BlockDevice, BlockStatus, DeviceInfo, Errno, IoError, LocalBoxFuture, Node, Preallocation, Result, WriteFlags,
    ZeroFlags,
};
use blkproof_nbd::server::{Ended, Export, Exports, Host, Limits, Server};
use common::wire::{GO_SIMPLE, GO_STRUCTURED, compact};
use common::{Served, exports, memory, nbdsh, run};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::{JoinHandle, spawn_local, yield_now};

const READ: u16 = 0;
const WRITE: u16 = 1;
const NOTHING: &[u8] = &[];
const SIZE: u64 = 1 << 20;

/// What a read at each of these places meets.
const FINE: u64 = 0;
const GONE: u64 = 4096;
const HUNG: u64 = 8192;
const LOST_BELOW: u64 = 12288;
const GONE_HALFWAY: u64 = 16384;
const NOT_CONNECTED: u64 = 20480;

/// A disk with places where reads go wrong.
struct Trap {
    memory: Memory,
    hung: Rc<Cell<usize>>,
}

/// A request that never ends, until it is dropped.
struct Hung(Rc<Cell<usize>>);

impl Drop for Hung {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl BlockDevice for Trap {
    fn info(&self) -> DeviceInfo {
        self.memory.info()
    }
    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        match at {
            GONE => Err(IoError::gone()),
            GONE_HALFWAY => Err(IoError::gone().at(at + 512)),
            NOT_CONNECTED => Err(IoError::new(Errno::NOTCONN)),
            LOST_BELOW => Err(IoError::new(Errno::SHUTDOWN).detail("the server below is gone")),
            HUNG => {
                self.hung.set(self.hung.get() + 1);
                let _hung = Hung(self.hung.clone());
                pending().await
            }
            _ => self.memory.read(at, buf).await,
        }
    }
    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        self.memory.write(at, data, flags).await
    }
    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.memory.write_zeroes(at, len, flags).await
    }
    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.memory.discard(at, len).await
    }
    async fn flush(&self) -> Result<()> {
        self.memory.flush().await
    }
    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        self.memory.block_status(at, len).await
    }
    async fn resize(&self, size: u64, how: Preallocation) -> Result<()> {
        self.memory.resize(size, how).await
    }
    async fn drain(&self) -> Result<()> {
        Ok(())
    }
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

fn trap() -> (Node, Rc<Cell<usize>>) {
    let hung = Rc::new(Cell::new(0));
    let memory = Memory::with_content(&vec![7; usize::try_from(SIZE).unwrap()]);
    (Node::new(Trap { memory, hung: hung.clone() }), hung)
}

/// A raw client in the transmission phase.
async fn raw(server: &Rc<Server>, structured: bool) -> (DuplexStream, JoinHandle<Ended>) {
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let server = server.clone();
    let serving = spawn_local(async move { server.serve(far, "raw", pending()).await.unwrap().ended });
    near.write_all(&3_u32.to_be_bytes()).await.unwrap();
    near.write_all(if structured { GO_STRUCTURED } else { GO_SIMPLE }).await.unwrap();
    let answers = 18 + (20 + 12) + 20 + if structured { 20 } else { 0 };
    near.read_exact(&mut vec![0; answers]).await.unwrap();
    (near, serving)
}

async fn rest_of(near: &mut DuplexStream) -> Vec<u8> {
    let mut rest = Vec::new();
    near.read_to_end(&mut rest).await.unwrap();
    rest
}

fn server_of(node: Node) -> Rc<Server> {
    Rc::new(Server::new(exports([Export::new("", node)]), Limits::default()))
}

/// Nothing comes after the device is gone: not its reply, not one composed before it in the same round, not one of a request
/// behind it, and no request in flight is left.
#[test]
fn a_device_that_is_gone_ends_the_connection_without_an_answer() {
    run(async {
        for structured in [false, true] {
            for gone in [GONE, GONE_HALFWAY] {
                let (node, hung) = trap();
                let server = server_of(node);
                let (mut near, serving) = raw(&server, structured).await;
                near.write_all(&compact(READ, 0, 1, FINE, 512)).await.unwrap();
                // Answered before: this one is alone.
                let head = if structured { 20 + 8 } else { 16 };
                near.read_exact(&mut vec![0; head + 512]).await.unwrap();
                let burst = [
                    compact(READ, 0, 2, HUNG, 512),
                    compact(READ, 0, 3, FINE, 1024),
                    compact(READ, 0, 4, gone, 1024),
                    compact(READ, 0, 5, FINE, 1024),
                ];
                near.write_all(&burst.concat()).await.unwrap();
                assert_eq!(rest_of(&mut near).await, NOTHING, "{structured} {gone}");
                assert_eq!(serving.await.unwrap(), Ended::Severed);
                assert_eq!((hung.get(), server.connections()), (0, 0), "what was in flight is dropped");
            }
        }
    });
}

/// A host's file system may fail with `ENOTCONN`: that is a failure like others, and no power cut.
#[test]
fn enotconn_of_the_host_is_answered() {
    run(async {
        let (node, _) = trap();
        let server = server_of(node);
        let (mut near, _serving) = raw(&server, false).await;
        near.write_all(&compact(READ, 0, 1, NOT_CONNECTED, 512)).await.unwrap();
        let mut reply = [0; 16];
        near.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1], "EIO");
        near.write_all(&compact(READ, 0, 2, FINE, 512)).await.unwrap();
        near.read_exact(&mut [0; 16 + 512]).await.unwrap();
    });
}

#[test]
fn libnbd_sees_a_dead_connection_and_comes_back() {
    run(async {
        let (node, _) = trap();
        let served = Served::node(node);
        let script = format!(
            "
h.connect_uri(uri)
h.aio_pread(nbd.Buffer(512), {HUNG})
try:
    h.pread(512, {GONE})
    print('answered')
except nbd.Error as e:
    print('lost', h.aio_is_dead() or h.aio_is_closed())
h = nbd.NBD()
h.connect_uri(uri)
print(h.pread(4, 0))
try:
    h.pread(512, {LOST_BELOW})
except nbd.Error as e:
    print(e.errno, h.aio_is_ready())
h.shutdown()"
        );
        let out = nbdsh(&served.uri(), &script).await;
        assert_eq!(out, "lost True\nbytearray(b'\\x07\\x07\\x07\\x07')\nEIO True\n");
        served.settle().await;
        let ends: Vec<Ended> = served.ends.borrow().iter().map(|end| end.as_ref().unwrap().ended).collect();
        assert_eq!(ends, [Ended::Severed, Ended::Disconnect]);
    });
}

/// `ESHUTDOWN` of a device is a failure of it; only an export that goes away tells its clients to leave.
#[test]
fn eshutdown_is_said_by_the_server_alone() {
    run(async {
        let (node, _) = trap();
        let export = Export::new("", node);
        let server = Rc::new(Server::new(exports([export.clone()]), Limits::default()));
        let (mut near, serving) = raw(&server, false).await;
        let (mut other, other_serving) = raw(&server, false).await;
        let mut reply = [0; 16];
        near.write_all(&compact(READ, 0, 1, LOST_BELOW, 512)).await.unwrap();
        near.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply, [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1]);
        // The export goes: what was begun is carried out, what comes is told to leave.
        near.write_all(&compact(WRITE, 0, 2, FINE, 512)).await.unwrap();
        for _ in 0..10 {
            yield_now().await;
        }
        export.end();
        near.write_all(&[9; 512]).await.unwrap();
        near.write_all(&compact(READ, 0, 3, FINE, 512)).await.unwrap();
        let rest = rest_of(&mut near).await;
        assert_eq!(rest.len(), 32);
        assert_eq!(rest[4..8], [0, 0, 0, 0], "the write");
        assert_eq!(rest[20..24], [0, 0, 0, 108], "ESHUTDOWN");
        assert_eq!(serving.await.unwrap(), Ended::Shutdown);
        assert_eq!(rest_of(&mut other).await, NOTHING, "an idle one hears nothing but the end");
        assert_eq!(other_serving.await.unwrap(), Ended::Shutdown);
    });
}

#[test]
fn an_export_severs_its_clients_and_no_others() {
    run(async {
        let (node, hung) = trap();
        let one = Export::new("", node);
        let server =
            Rc::new(Server::new(exports([one.clone(), Export::new("two", memory(&[1; 4096]))]), Limits::default()));
        let (mut near, serving) = raw(&server, false).await;
        near.write_all(&compact(READ, 0, 1, HUNG, 512)).await.unwrap();
        while hung.get() == 0 {
            yield_now().await;
        }
        Export::new("two", memory(&[1; 4096])).sever();
        for _ in 0..10 {
            yield_now().await;
        }
        assert_eq!(hung.get(), 1, "another export's clients are others");
        one.sever();
        assert_eq!(rest_of(&mut near).await, NOTHING);
        assert_eq!((serving.await.unwrap(), hung.get()), (Ended::Severed, 0));
        // Whoever comes afterwards stays.
        let (mut near, _serving) = raw(&server, false).await;
        near.write_all(&compact(READ, 0, 1, FINE, 512)).await.unwrap();
        near.read_exact(&mut [0; 16 + 512]).await.unwrap();
    });
}

#[derive(Default)]
struct Notes {
    said: RefCell<Vec<String>>,
    patience: tokio::sync::Notify,
}

struct Noting(Rc<Notes>);

impl Host for Noting {
    fn connected(&self, client: &str, export: &str) {
        self.0.said.borrow_mut().push(format!("{client} uses '{export}'"));
    }
    fn disconnected(&self, client: &str, export: &str) {
        self.0.said.borrow_mut().push(format!("{client} leaves '{export}'"));
    }
    fn linger(&self) -> LocalBoxFuture<'static, ()> {
        let notes = self.0.clone();
        Box::pin(async move { notes.patience.notified().await })
    }
}

#[test]
fn the_host_hears_of_clients_and_says_how_long_their_requests_may_take() {
    run(async {
        let (node, hung) = trap();
        let notes = Rc::new(Notes::default());
        let server = Server::new(exports([Export::new("disk", node)]), Limits::default());
        let server = Rc::new(server.with_host(Rc::new(Noting(notes.clone()))));
        let mut list = server.exports();
        list.set_default("disk").unwrap();
        server.set_exports(list);
        let (mut near, serving) = raw(&server, false).await;
        assert_eq!(*notes.said.borrow(), ["raw uses 'disk'"]);
        near.write_all(&compact(READ, 0, 1, HUNG, 512)).await.unwrap();
        while hung.get() == 0 {
            yield_now().await;
        }
        drop(near);
        while notes.said.borrow().len() < 2 {
            yield_now().await;
        }
        assert_eq!(notes.said.borrow()[1], "raw leaves 'disk'");
        assert_eq!((hung.get(), server.connections()), (1, 1), "its request is carried on with");
        notes.patience.notify_one();
        assert!(matches!(serving.await.unwrap(), Ended::Closed | Ended::Broken));
        assert_eq!((hung.get(), server.connections(), notes.said.borrow().len()), (0, 0, 2));
    });
}

#[test]
fn exports_come_and_go_while_a_client_uses_one() {
    run(async {
        let (node, _) = trap();
        let first = Export::new("", node);
        let server = Rc::new(Server::new(exports([first.clone()]), Limits::default()));
        let (mut near, _serving) = raw(&server, false).await;
        let mut list = Exports::new();
        list.add(Export::new("new", memory(&[3; 4096]))).unwrap();
        server.set_exports(list);
        near.write_all(&compact(READ, 0, 1, FINE, 512)).await.unwrap();
        near.read_exact(&mut [0; 16 + 512]).await.unwrap();
        // A new client finds what there is now.
        let (mut other, far) = tokio::io::duplex(1 << 16);
        let serving = server.clone();
        spawn_local(async move { serving.serve(far, "other", pending()).await });
        other.write_all(&3_u32.to_be_bytes()).await.unwrap();
        other.write_all(GO_SIMPLE).await.unwrap();
        let mut answer = vec![0; 18 + 20];
        other.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[18 + 12..18 + 16], 0x8000_0006_u32.to_be_bytes(), "NBD_REP_ERR_UNKNOWN");
        assert_eq!(server.exports().nodes().count(), 1);
    });
}
