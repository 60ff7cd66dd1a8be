//! Serves a disk at a Unix socket: `serve SOCKET 64` a new one of 64 MiB in memory, `serve SOCKET FILE` a raw image.

use std::rc::Rc;

use blkproof_block::Node;
use blkproof_block::graph::{OpenContext, OpenFlags, Registry};
use blkproof_block::nodes::{Memory, register};
use blkproof_nbd::server::{Exports, Limits, Server};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap_or_else(|| "nbd.sock".to_owned());
    let disk = arguments.next().unwrap_or_else(|| "64".to_owned());
    let node = match disk.parse::<u64>() {
        Ok(mebibytes) => Node::new(Memory::new(mebibytes << 20)),
        Err(_) => {
            let mut registry = Registry::new();
            register(&mut registry);
            let context = OpenContext { registry: &registry, flags: OpenFlags::default() };
            context.open_image(&disk, Some("raw"), false).await?
        }
    };
    let server = Rc::new(Server::new(Exports::single(node), Limits::default()));
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
