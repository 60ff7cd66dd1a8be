//! Serves a disk in memory at a Unix socket: `cargo run --example serve -- /tmp/socket 64`, size in MiB.

use std::rc::Rc;

use blkproof_block::Node;
use blkproof_block::nodes::memory::Memory;
use blkproof_nbd::server::{Exports, Limits, Server};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap_or_else(|| "nbd.sock".to_owned());
    let mebibytes: u64 = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(64);
    let exports = Exports::single(Node::new(Memory::new(mebibytes << 20)));
    let server = Rc::new(Server::new(exports, Limits::default()));
    let listener = tokio::net::UnixListener::bind(&path)?;
    println!("nbd+unix:///?socket={path}");
    let tasks = tokio::task::LocalSet::new();
    tasks
        .run_until(async {
            loop {
                let (stream, _) = listener.accept().await?;
                let server = Rc::clone(&server);
                tokio::task::spawn_local(async move {
                    let end = server.serve(stream, "example", std::future::pending()).await;
                    println!("{end:?}");
                });
            }
        })
        .await
}
