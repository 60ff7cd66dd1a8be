//! Sockets: where clients come in.

use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;

use anyhow::{Context as _, bail};
use listenfd::ListenFd;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use crate::control::{OwnFile, remove_stale};

/// Where to listen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Address {
    Unix(PathBuf),
    Tcp(String),
}

impl FromStr for Address {
    type Err = String;

    /// `unix:PATH`, `ADDR:PORT`, `PORT`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            None if text.is_empty() => Err("an empty address; write PORT, ADDR:PORT or unix:PATH".to_owned()),
            None => Ok(Self::tcp(text)),
            Some("") => Err("an empty path; write unix:PATH".to_owned()),
            Some(path) => Ok(Self::Unix(PathBuf::from(path))),
        }
    }
}

impl Address {
    /// A TCP address; `10809` and `:10809` mean loopback.
    pub(super) fn tcp(text: &str) -> Self {
        let text = text.strip_prefix(':').unwrap_or(text);
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            Self::Tcp(format!("127.0.0.1:{text}"))
        } else {
            Self::Tcp(text.to_owned())
        }
    }
}

/// A client, whichever way it came.
pub(super) trait Stream: AsyncRead + AsyncWrite {}

impl<S: AsyncRead + AsyncWrite> Stream for S {}

/// A listening socket.
pub(super) enum Listener {
    Unix {
        listener: UnixListener,
        path: PathBuf,
        /// Its file, if it was made here.
        _file: Option<OwnFile>,
    },
    Tcp(TcpListener),
}

impl Listener {
    pub(super) async fn bind(address: &Address) -> anyhow::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let listener =
                    TcpListener::bind(address).await.with_context(|| format!("could not listen on '{address}'"))?;
                Ok(Self::Tcp(listener))
            }
            Address::Unix(path) => {
                let told = || format!("could not listen on '{}'", path.display());
                remove_stale(path).await.with_context(told)?;
                let listener = UnixListener::bind(path).with_context(told)?;
                let made = std::fs::symlink_metadata(path).with_context(told)?;
                Ok(Self::Unix { listener, path: path.clone(), _file: Some(OwnFile::new(path, &made)) })
            }
        }
    }

    /// The sockets that whoever started this process listens on for it (systemd's `LISTEN_FDS`); none, if it does not.
    pub(super) fn inherited() -> anyhow::Result<Vec<Self>> {
        let mut given = ListenFd::from_env();
        let mut listeners = Vec::with_capacity(given.len());
        for index in 0..given.len() {
            let number = FIRST_INHERITED.saturating_add(index);
            if let Ok(Some(listener)) = given.take_tcp_listener(index) {
                listener.set_nonblocking(true)?;
                listeners.push(Self::Tcp(TcpListener::from_std(listener)?));
            } else if let Ok(Some(listener)) = given.take_unix_listener(index) {
                listener.set_nonblocking(true)?;
                let path = listener.local_addr()?.as_pathname().map(Path::to_owned).unwrap_or_default();
                listeners.push(Self::Unix { listener: UnixListener::from_std(listener)?, path, _file: None });
            } else {
                bail!("file descriptor {number}, which LISTEN_FDS counts, is no stream socket");
            }
        }
        Ok(listeners)
    }

    /// The next client, with a name for it.
    pub(super) async fn accept(&self) -> std::io::Result<(Pin<Box<dyn Stream>>, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // Replies are coalesced by the session; waiting for more would only delay them.
                stream.set_nodelay(true)?;
                Ok((Box::pin(stream), peer.to_string()))
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                let peer = match stream.peer_cred().ok().and_then(|credentials| credentials.pid()) {
                    Some(pid) => format!("process {pid}"),
                    None => "a local process".to_owned(),
                };
                Ok((Box::pin(stream), peer))
            }
        }
    }

    /// The URI of an export. Port 0 has become the real one.
    pub(super) fn uri(&self, export: &str, tls: bool) -> String {
        let scheme = if tls { "nbds" } else { "nbd" };
        let export = Escaped(export);
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => format!("{scheme}://{address}/{export}"),
                Err(_) => format!("{scheme}:///{export}"),
            },
            Self::Unix { path, .. } => {
                format!("{scheme}+unix:///{export}?socket={}", Escaped(&path.to_string_lossy()))
            }
        }
    }
}

/// The next client of any of them, or why one of them failed.
pub(super) async fn accept(listeners: &[Listener]) -> std::io::Result<(Pin<Box<dyn Stream>>, String)> {
    let each = listeners.iter().map(|listener| Box::pin(listener.accept()));
    futures_util::future::select_all(each).await.0
}

/// The first file descriptor that is inherited.
const FIRST_INHERITED: usize = 3;

/// A piece of a URI, with everything but unreserved characters and `/` escaped (RFC 3986, section 2).
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                    write!(f, "{}", char::from(byte))?;
                }
                _ => write!(f, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_means_loopback() {
        for (text, want) in
            [("10809", "127.0.0.1:10809"), (":0", "127.0.0.1:0"), ("[::1]:10809", "[::1]:10809"), ("host:1", "host:1")]
        {
            let Address::Tcp(got) = Address::tcp(text) else { panic!("{text} is TCP") };
            assert_eq!(got, want, "{text}");
        }
    }

    #[test]
    fn uris_escape_what_would_end_them() {
        assert_eq!(Escaped("/tmp/a b?c.sock").to_string(), "/tmp/a%20b%3Fc.sock");
    }
}
