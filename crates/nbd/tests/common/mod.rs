//! What the tests share: a runtime, servers at sockets and in memory, foreign programs.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic)]

pub mod puppet;
pub mod wire;

use std::cell::RefCell;
use std::future::{Future, pending};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::rc::Rc;

use blkproof_block::Node;
use blkproof_block::nodes::memory::Memory;
use blkproof_nbd::client::Client;
use blkproof_nbd::handshake::client::Wanted;
use blkproof_nbd::server::{Export, Exports, Limits, ServeError, Server, Summary};
use tokio::net::UnixListener;
use tokio::task::{LocalSet, spawn_local};

pub const MIB: u64 = 1 << 20;

/// Runs a test on one thread, where graphs live.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test)
}

pub type Ends = Rc<RefCell<Vec<Result<Summary, ServeError>>>>;

/// A server at a Unix socket in a directory of its own.
pub struct Served {
    pub server: Rc<Server>,
    pub directory: tempfile::TempDir,
    /// How connections ended.
    pub ends: Ends,
}

impl Served {
    pub fn start(server: Server) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let server = Rc::new(server);
        let ends = Ends::default();
        let (shared, list) = (Rc::clone(&server), Rc::clone(&ends));
        spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (server, ends) = (Rc::clone(&shared), Rc::clone(&list));
                spawn_local(async move {
                    let end = server.serve(stream, "test", pending()).await;
                    ends.borrow_mut().push(end);
                });
            }
        });
        Self { server, directory, ends }
    }

    pub fn node(node: Node) -> Self {
        Self::start(Server::new(Exports::single(node), Limits::default()))
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket().display())
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Waits until every connection is over: a program may end before its server has noticed.
    pub async fn settle(&self) {
        while self.server.connections() > 0 {
            tokio::task::yield_now().await;
        }
        // The slot is given back just before the end is written down.
        tokio::task::yield_now().await;
    }

    pub async fn last(&self) -> Summary {
        self.settle().await;
        self.ends.borrow().last().unwrap().as_ref().unwrap().clone()
    }
}

/// A disk whose every sector says where it is.
pub fn patterned(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    for (sector, chunk) in bytes.chunks_mut(512).enumerate() {
        for (at, byte) in chunk.iter_mut().enumerate() {
            *byte = u8::try_from((sector * 7 + at * 3 + sector / 256) % 255).unwrap() + 1;
        }
    }
    bytes
}

pub fn memory(bytes: &[u8]) -> Node {
    Node::new(Memory::with_content(bytes))
}

/// Runs a program, which has to be installed.
pub async fn program(command: &str, arguments: &[&str]) -> Output {
    tokio::process::Command::new(command)
        .args(arguments)
        .output()
        .await
        .unwrap_or_else(|error| panic!("{command} is needed for this test: {error}"))
}

/// Runs a program that has to succeed; its standard output.
pub async fn succeeds(command: &str, arguments: &[&str]) -> String {
    let output = program(command, arguments).await;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command} {arguments:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// Runs a Python program against `h`, a handle of libnbd that is not yet connected to the URI `uri`.
pub async fn nbdsh(uri: &str, script: &str) -> String {
    let script = format!("import nbd, os, errno, struct\nh = nbd.NBD()\nuri = {uri:?}\n{script}");
    succeeds("/usr/bin/python3", &["-c", &script]).await
}

/// A client of `server` in this process, over a pipe of `pipe` bytes.
pub async fn connect(server: &Rc<Server>, wanted: Wanted, pipe: usize) -> Client {
    let (near, far) = tokio::io::duplex(pipe);
    let server = Rc::clone(server);
    spawn_local(async move { server.serve(far, "duplex", pending()).await });
    let (client, connection) = Client::connect(near, wanted).await.unwrap();
    spawn_local(connection);
    client
}

pub fn single(node: Node) -> Rc<Server> {
    Rc::new(Server::new(Exports::single(node), Limits::default()))
}

pub fn exports(list: impl IntoIterator<Item = Export>) -> Exports {
    let mut exports = Exports::new();
    for export in list {
        exports.add(export).unwrap();
    }
    exports
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
