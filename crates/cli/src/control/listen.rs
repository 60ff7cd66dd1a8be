//! Listening for control clients.
//!
//! A Unix socket belongs to its user alone from its first moment. On Linux the file of a socket gets the mode of the
//! socket itself (`fchmod` before `bind`), less the umask; the mode is looked at before anybody can connect, because
//! nobody can until the socket listens.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::{Address, OwnFile, remove_stale};

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 64;

/// Time after which a silent peer is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Answers it may fail to give.
const KEEPALIVE_LOST: u32 = 4;

/// Reading and writing for the owner.
const MODE: u32 = 0o600;

/// A client, whichever way it came.
pub(super) trait Stream: AsyncRead + AsyncWrite {}

impl<S: AsyncRead + AsyncWrite> Stream for S {}

/// A socket that listens. The file of a Unix socket goes when this is dropped, if it is still the same.
pub(super) enum Listener {
    Unix(UnixListener, OwnFile),
    Tcp(TcpListener),
}

impl Listener {
    pub(super) async fn bind(address: &Address) -> anyhow::Result<Self> {
        let told = || format!("could not listen for control on '{address}'");
        match address {
            Address::Tcp(place) => Ok(Self::Tcp(TcpListener::bind(place).await.with_context(told)?)),
            Address::Unix(path) => {
                remove_stale(path).await.with_context(told)?;
                let (listener, file) = bind_unix(path).with_context(told)?;
                Ok(Self::Unix(listener, file))
            }
        }
    }

    /// The next client, and what tells when it is gone.
    pub(super) async fn accept(&self) -> std::io::Result<(Pin<Box<dyn Stream>>, Line)> {
        match self {
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let own = stream.as_fd().try_clone_to_owned()?;
                Ok((Box::pin(stream), Line::Unix(UnixStream::from_std(own.into())?)))
            }
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                keep_alive(&stream)?;
                let own = stream.as_fd().try_clone_to_owned()?;
                Ok((Box::pin(stream), Line::Tcp(TcpStream::from_std(own.into())?)))
            }
        }
    }

    pub(super) fn address(&self) -> String {
        match self {
            Self::Unix(_, file) => file.path().display().to_string(),
            Self::Tcp(listener) => listener.local_addr().map_or_else(|_| String::new(), |place| format!("tcp:{place}")),
        }
    }
}

/// Looks at a connection without reading from it.
///
/// It has a file descriptor of its own, whose readiness it may forget: the stream's is the stream's.
pub(super) enum Line {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Line {
    /// Completes when the connection is closed in both directions. A client that has only sent its last byte still
    /// listens.
    pub(super) async fn hung_up(self) {
        let forget = || Err::<(), _>(std::io::ErrorKind::WouldBlock.into());
        loop {
            let ready = match &self {
                Self::Unix(line) => line.ready(Interest::WRITABLE).await,
                Self::Tcp(line) => line.ready(Interest::WRITABLE).await,
            };
            match ready {
                Ok(ready) if ready.is_write_closed() => return,
                // An error means that the runtime ends, and the client's task with it.
                Err(_) => std::future::pending().await,
                Ok(_) => {}
            }
            // That there is room to write is nothing new: the next change is waited for.
            let _ = match &self {
                Self::Unix(line) => line.try_io(Interest::WRITABLE, forget),
                Self::Tcp(line) => line.try_io(Interest::WRITABLE, forget),
            };
        }
    }
}

/// Has the peer of a TCP connection asked, now and then, whether it is still there: a program that was killed looks like
/// one that has sent its last byte until its system is asked.
fn keep_alive(stream: &impl AsFd) -> std::io::Result<()> {
    use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl};
    set_socket_keepalive(stream, true)?;
    set_tcp_keepidle(stream, KEEPALIVE)?;
    set_tcp_keepintvl(stream, KEEPALIVE)?;
    Ok(set_tcp_keepcnt(stream, KEEPALIVE_LOST)?)
}

fn bind_unix(path: &Path) -> anyhow::Result<(UnixListener, OwnFile)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(MODE))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let made = std::fs::symlink_metadata(path)?;
    let file = OwnFile::new(path, &made);
    if made.mode() & 0o777 & !MODE != 0 {
        bail!("this system makes sockets that others may use (mode {:03o})", made.mode() & 0o777);
    }
    rustix::net::listen(&socket, BACKLOG)?;
    let listener = UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))?;
    Ok((listener, file))
}
