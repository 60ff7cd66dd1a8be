//! Listening for control clients.
//!
//! A Unix socket belongs to its user alone from its first moment. On Linux the file of a socket gets the mode of the
//! socket itself (`fchmod` before `bind`), less the umask; the mode is looked at before anybody can connect, because
//! nobody can until the socket listens.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use anyhow::{Context as _, bail};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::Address;

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 64;

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

    pub(super) async fn accept(&self) -> std::io::Result<Pin<Box<dyn Stream>>> {
        match self {
            Self::Unix(listener, _) => Ok(Box::pin(listener.accept().await?.0)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::pin(stream))
            }
        }
    }

    pub(super) fn address(&self) -> String {
        match self {
            Self::Unix(_, file) => file.path.display().to_string(),
            Self::Tcp(listener) => listener.local_addr().map_or_else(|_| String::new(), |place| format!("tcp:{place}")),
        }
    }
}

/// The file of a socket, which goes with it.
pub(super) struct OwnFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn bind_unix(path: &Path) -> anyhow::Result<(UnixListener, OwnFile)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(MODE))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let made = std::fs::symlink_metadata(path)?;
    let file = OwnFile { path: path.to_owned(), identity: (made.dev(), made.ino()) };
    if made.mode() & 0o777 & !MODE != 0 {
        bail!("this system makes sockets that others may use (mode {:03o})", made.mode() & 0o777);
    }
    rustix::net::listen(&socket, BACKLOG)?;
    let listener = UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))?;
    Ok((listener, file))
}

/// Removes a socket that nobody listens on any more; refuses anything else that stands in the way.
async fn remove_stale(path: &Path) -> anyhow::Result<()> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        bail!("it exists and is not a socket; name another path");
    }
    match UnixStream::connect(path).await {
        Ok(_) => bail!("another process listens on it"),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).context("removing the stale socket")
        }
        Err(error) => Err(error).context("looking at the socket that is there"),
    }
}
