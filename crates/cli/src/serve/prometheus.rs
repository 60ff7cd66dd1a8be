//! Statistics for Prometheus: a few lines of HTTP/1.0 on a socket of their own.
//!
//! Whoever connects can make this hold [`REQUEST_MAX`] bytes for [`PATIENCE`], and the answer until it is taken or as
//! long again; [`CLIENTS_MAX`] can at a time, and further ones wait to be accepted. Nobody can make I/O wait.

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use blkproof_fault::lab::{Lab, Part};
use blkproof_fault::stats::prometheus_text;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::listen::Address;

/// Clients at a time.
const CLIENTS_MAX: usize = 16;

/// Bytes of a request that are read.
const REQUEST_MAX: usize = 8 << 10;

/// Time for a request to come, and for its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// A socket that is open, and whose clients wait until it [runs](Self::run).
pub(super) struct Endpoint {
    listener: TcpListener,
    lab: Rc<Lab>,
}

impl Endpoint {
    /// Opens it. A port alone means loopback.
    pub(super) async fn bind(address: &str, lab: &Rc<Lab>) -> anyhow::Result<Self> {
        let place = match Address::tcp(address) {
            Address::Tcp(place) => place,
            Address::Unix(_) => address.to_owned(),
        };
        let listener = TcpListener::bind(&place).await;
        let listener = listener.with_context(|| format!("could not listen for Prometheus on '{place}'"))?;
        Ok(Self { listener, lab: Rc::clone(lab) })
    }

    /// Where it is. Port 0 has become the real one.
    pub(super) fn url(&self) -> String {
        self.listener.local_addr().map_or_else(|_| String::new(), |place| format!("http://{place}/metrics"))
    }

    /// Answers until `stop` completes.
    pub(super) async fn run(self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = &mut stop => return,
                Some(_) = clients.join_next(), if !clients.is_empty() => {}
                client = self.listener.accept(), if clients.len() < CLIENTS_MAX => match client {
                    Ok((stream, _)) => {
                        clients.spawn_local(answer(stream, Rc::clone(&self.lab)));
                    }
                    // Out of file descriptors, or a client gone before it was accepted.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                },
            }
        }
    }
}

async fn answer(mut stream: TcpStream, lab: Rc<Lab>) {
    let Ok(Some(request)) = timeout(PATIENCE, read_request(&mut stream)).await else { return };
    let reply = reply(&request, &lab);
    // A client that does not take its answer goes without.
    let _ = timeout(PATIENCE, async {
        stream.write_all(reply.as_bytes()).await?;
        stream.shutdown().await
    })
    .await;
}

/// Reads up to the empty line; `None` if it does not come.
async fn read_request(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let count = stream.read(&mut piece).await.ok().filter(|count| *count > 0)?;
        request.extend_from_slice(piece.get(..count)?);
        if request.windows(4).any(|bytes| bytes == b"\r\n\r\n") || request.windows(2).any(|bytes| bytes == b"\n\n") {
            return Some(request);
        }
        if request.len() > REQUEST_MAX {
            return Some(Vec::new());
        }
    }
}

fn reply(request: &[u8], lab: &Lab) -> String {
    let line = request.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_ascii_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    let (status, body) = match (method, path) {
        ("GET" | "HEAD", "/metrics") => ("200 OK", metrics(lab)),
        ("GET" | "HEAD", "/") => ("200 OK", "statistics are at /metrics\n".to_owned()),
        ("GET" | "HEAD", _) => ("404 Not Found", "there is /metrics and nothing else\n".to_owned()),
        ("", _) => ("400 Bad Request", "this is no request\n".to_owned()),
        _ => ("405 Method Not Allowed", "GET and HEAD are answered\n".to_owned()),
    };
    let length = body.len();
    let body = if method == "HEAD" { String::new() } else { body };
    format!(
        "HTTP/1.0 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

fn metrics(lab: &Lab) -> String {
    let stats = lab.parts().into_iter().filter_map(|(_, part)| match part {
        Part::Stats(stats) => Some(stats.snapshot()),
        _ => None,
    });
    prometheus_text(&stats.collect::<Vec<_>>())
}
