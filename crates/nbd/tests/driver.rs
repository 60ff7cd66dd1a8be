//! The `nbd` driver in a registry: names, options, refusals.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use blkproof_block::graph::{Driver, OpenContext, OpenFlags, Options, Registry};
use blkproof_block::{BlockDevice, Errno, LocalBoxFuture, Node, Preallocation, WriteFlags, ZeroFlags};
use blkproof_block::{BlockStatus, DeviceInfo, Result};
use blkproof_nbd::driver::{Connect, NbdDriver, Transport};
use blkproof_nbd::server::{Export, Limits, Server};
use blkproof_nbd::uri::Address;
use common::{Served, exports, memory, run, text};
use tokio::net::{TcpStream, UnixStream};

#[derive(Clone)]
struct Sockets;

impl Connect for Sockets {
    fn connect<'a>(&'a self, address: &'a Address) -> LocalBoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            Ok(match address {
                Address::Unix(path) => Box::new(UnixStream::connect(path).await?) as Box<dyn Transport>,
                Address::Tcp(host, port) => Box::new(TcpStream::connect((host.as_str(), *port)).await?),
            })
        })
    }

    fn spawn(&self, task: LocalBoxFuture<'static, ()>) {
        tokio::task::spawn_local(task);
    }

    /// No time passes.
    fn sleep(&self, _time: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

async fn open(options: Options, flags: OpenFlags) -> Result<Node, String> {
    let registry = Registry::new();
    let context = OpenContext { registry: &registry, flags };
    NbdDriver(Sockets).open(options, &context).await.map_err(|error| error.to_string())
}

async fn open_name(name: &str) -> Result<Node, String> {
    let options = NbdDriver(Sockets).parse_filename(name).expect("an NBD name");
    open(options.map_err(|error| error.to_string())?, OpenFlags::default()).await
}

#[test]
fn an_export_is_opened_by_any_of_its_names() {
    run(async {
        let list = exports([Export::new("", memory(&[1; 4096])), Export::new("a b", memory(&[2; 4096]))]);
        let served = Served::start(Server::new(list, Limits::default()));
        let socket = served.socket();
        let path = text(&socket);
        let server = Options::new().with("type", "unix").with("path", path);
        let nodes = [
            (open_name(&format!("nbd+unix:///?socket={path}")).await, 1),
            (open_name(&format!("nbd+unix:///a%20b?socket={path}")).await, 2),
            (open_name(&format!("nbd:unix:{path}:exportname=a b")).await, 2),
            (open(Options::new().with("path", path), OpenFlags::default()).await, 1),
            (open(Options::new().with_child("server", server).with("export", "a b"), OpenFlags::default()).await, 2),
        ];
        for (node, fill) in nodes {
            let node = node.unwrap();
            let mut buf = [0; 10];
            node.read(5, &mut buf).await.unwrap();
            assert_eq!(buf, [fill; 10]);
            assert_eq!(node.info().driver, "nbd");
        }
        let flags = OpenFlags { read_only: true, ..OpenFlags::default() };
        let node = open(Options::new().with("path", path), flags).await.unwrap();
        assert!(node.info().read_only);
        assert_eq!(node.write(0, &[3], WriteFlags::empty()).await.unwrap_err().errno, Errno::PERM);
    });
}

#[test]
fn mistakes_are_named() {
    run(async {
        let served = Served::node(memory(&[1; 4096]));
        let socket = served.socket();
        let path = text(&socket);
        let options = Options::new;
        let inet = options().with("type", "inet").with("host", "h").with("port", "70000");
        let typo = options().with("type", "unix").with("path", path).with("pth", "x");
        let cases = [
            (options(), "needs 'server', 'path' or 'host'"),
            (options().with("path", path).with("host", "h"), "together"),
            (options().with("path", path).with("exprt", "x"), "did you mean 'export'"),
            (options().with("path", path).with("export", "nothing"), "no export of that name"),
            (options().with("path", "/nonexistent/socket"), "/nonexistent/socket"),
            (options().with("path", path).with("reconnect-delay", "4294967296"), "more than 4294967295"),
            (options().with("path", path).with("open-timeout", "soon"), "open-timeout"),
            (options().with("path", path).with("reconect-delay", "1"), "did you mean 'reconnect-delay'"),
            (options().with_child("server", options().with("path", path)), "needs a 'type'"),
            (options().with_child("server", options().with("type", "vsock")), "'unix', 'inet'"),
            (options().with_child("server", inet), "70000"),
            (options().with_child("server", typo), "server.pth"),
        ];
        for (options, words) in cases {
            let error = open(options.clone(), OpenFlags::default()).await.unwrap_err();
            assert!(error.contains(words), "{options:?}: {error}");
        }
        assert!(open_name("nbds://host").await.unwrap_err().contains("TLS"));
        assert!(NbdDriver(Sockets).parse_filename("disk.raw").is_none());
    });
}

/// Says who reads.
struct Named(Rc<RefCell<Vec<String>>>, Option<String>);

impl BlockDevice for Named {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new("named", 4096)
    }
    async fn read(&self, _at: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(1);
        self.0.borrow_mut().extend(self.1.clone());
        Ok(())
    }
    async fn write(&self, _at: u64, _data: &[u8], _flags: WriteFlags) -> Result<()> {
        Ok(())
    }
    async fn write_zeroes(&self, _at: u64, _len: u64, _flags: ZeroFlags) -> Result<()> {
        Ok(())
    }
    async fn discard(&self, _at: u64, _len: u64) -> Result<()> {
        Ok(())
    }
    async fn flush(&self) -> Result<()> {
        Ok(())
    }
    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        Ok(BlockStatus::data(len, Some(at)))
    }
    async fn resize(&self, _size: u64, _preallocation: Preallocation) -> Result<()> {
        Ok(())
    }
    async fn drain(&self) -> Result<()> {
        Ok(())
    }
    fn for_client(&self, client: &str) -> Option<Node> {
        Some(Node::new(Self(Rc::clone(&self.0), Some(client.to_owned()))))
    }
}

#[test]
fn a_node_hears_which_client_asks() {
    run(async {
        let readers = Rc::default();
        let served = Served::node(Node::new(Named(Rc::clone(&readers), None)));
        let node = open_name(&format!("nbd:unix:{}", text(&served.socket()))).await.unwrap();
        node.read(0, &mut [0; 512]).await.unwrap();
        assert_eq!(*readers.borrow(), ["test"]);
    });
}
