//! Sockets for the `nbd` driver, which opens none itself.

use std::time::Duration;

use blkproof_block::LocalBoxFuture;
use blkproof_nbd::driver::{Connect, Transport};
use blkproof_nbd::uri::Address;
use tokio::net::{TcpStream, UnixStream};

/// Connects with tokio, and moves bytes in a task on this thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sockets;

impl Connect for Sockets {
    fn connect<'a>(&'a self, address: &'a Address) -> LocalBoxFuture<'a, std::io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            Ok(match address {
                Address::Unix(path) => Box::new(UnixStream::connect(path).await?) as Box<dyn Transport>,
                Address::Tcp(host, port) => {
                    let stream = TcpStream::connect((host.as_str(), *port)).await?;
                    stream.set_nodelay(true)?;
                    Box::new(stream)
                }
            })
        })
    }

    fn spawn(&self, task: LocalBoxFuture<'static, ()>) {
        tokio::task::spawn_local(task);
    }

    fn sleep(&self, time: Duration) -> LocalBoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }
}
