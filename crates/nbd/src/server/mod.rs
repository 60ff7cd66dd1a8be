//! The server: one future per connection, over any stream.
//!
//! ```text
//! serve ── negotiate ── (STARTTLS: negotiate again over TLS) ── session
//! ```
//!
//! A device whose error says so is gone for that client, as a host without power is: its connection ends at once,
//! and nothing is answered on it any more, not even what was carried out before.
//!
//! A [`Server`] knows the exports, the limits and whether it is shutting down; [`Server::serve`] runs one connection to
//! its end. It opens no socket, starts no task and looks at no clock. Connections share a thread, and nothing that a
//! peer does or fails to do holds the others: see [`Limits`].
#![deny(clippy::indexing_slicing)]

mod budget;
mod buffers;
mod execute;
mod exports;
mod session;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use blkproof_block::{BlockDevice as _, LocalBoxFuture};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};

pub use self::exports::{Export, ExportError, Exports};
use self::session::Session;
use crate::handshake::server::{Handshake, Step, TlsPolicy};
use crate::handshake::{Agreed, Mode};
use crate::wire::ProtocolError;

/// What peers may make the server hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections at a time; one more is turned away.
    pub connections: usize,
    /// Payload bytes in flight over all connections. Each connection may hold one request besides, so that nobody has
    /// to wait for a peer that is slow. Besides the payloads, a connection takes 4 MiB of buffers, and up to 32 KiB
    /// for the answer to each of its [`requests`](Self::requests).
    pub in_flight_bytes: usize,
    /// Requests in flight on one connection that did not complete at once.
    pub requests: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 64, in_flight_bytes: 256 << 20, requests: 256 }
    }
}

/// How a connection ended that did nothing wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The client left during negotiation.
    BeforeTransmission,
    /// `NBD_CMD_DISC`.
    Disconnect,
    /// The client closed its side without saying so.
    Closed,
    /// The connection broke while replies were being sent.
    Broken,
    /// The server shut down, or took the export away.
    Shutdown,
    /// The device was gone (`IoError::gone`), or [`Export::sever`] was called: the connection was ended without an answer.
    Severed,
}

/// What a connection did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    /// The export that was served.
    pub export: Option<String>,
    /// The layout that was negotiated.
    pub mode: Mode,
    /// Whether TLS was used.
    pub tls: bool,
    /// Requests answered.
    pub requests: u64,
    /// Of them, answered with an error.
    pub errors: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// How it ended.
    pub ended: Ended,
}

/// Why a connection was ended by the server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There are as many as [`Limits::connections`] allows.
    #[error("too many connections; {limit} are allowed")]
    TooManyConnections {
        /// The limit.
        limit: usize,
    },
    /// Negotiation took longer than the caller's patience.
    #[error("the client did not finish negotiation in time")]
    Impatient,
    /// The peer broke the protocol.
    #[error("protocol violation by the client: {0}")]
    Protocol(#[from] ProtocolError),
    /// TLS could not be started.
    #[error("TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
    /// The connection broke during negotiation.
    #[error("connection lost: {0}")]
    Io(#[source] io::Error),
}

/// What a server needs of the program around it.
pub trait Host {
    /// `client`, as [`serve`](Server::serve) was told its name, begins to use an export.
    fn connected(&self, client: &str, export: &str) {
        let _ = (client, export);
    }

    /// It has left, or was sent away. Requests of it may still be carried out.
    fn disconnected(&self, client: &str, export: &str) {
        let _ = (client, export);
    }

    /// How long requests of a client that has left may take; what is not done then is dropped. Without this a request
    /// that never ends would hold its connection's place for ever.
    fn linger(&self) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// Takes no interest, and waits for ever.
impl Host for () {}

/// Anything a connection can run over.
trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// Exports, and the limits under which they are served.
pub struct Server {
    exports: RefCell<Exports>,
    host: Rc<dyn Host>,
    limits: Limits,
    tls: TlsPolicy,
    #[cfg(feature = "tls")]
    acceptor: Option<tokio_rustls::TlsAcceptor>,
    slots: Arc<Semaphore>,
    budget: Arc<Semaphore>,
    shutdown: watch::Sender<bool>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("exports", &self.exports).field("tls", &self.tls).finish_non_exhaustive()
    }
}

impl Server {
    /// A server without TLS.
    pub fn new(exports: Exports, limits: Limits) -> Self {
        Self {
            exports: RefCell::new(exports),
            host: Rc::new(()),
            limits,
            tls: TlsPolicy::Off,
            #[cfg(feature = "tls")]
            acceptor: None,
            slots: Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS))),
            budget: Arc::new(Semaphore::new(limits.in_flight_bytes.min(Semaphore::MAX_PERMITS))),
            shutdown: watch::Sender::new(false),
        }
    }

    /// Offers TLS, or insists on it.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn with_tls(mut self, config: Arc<rustls::ServerConfig>, required: bool) -> Self {
        self.tls = if required { TlsPolicy::Require } else { TlsPolicy::On };
        self.acceptor = Some(config.into());
        self
    }

    /// Tells `host` of clients.
    #[must_use]
    pub fn with_host(mut self, host: Rc<dyn Host>) -> Self {
        self.host = host;
        self
    }

    /// What is served.
    pub fn exports(&self) -> Exports {
        self.exports.borrow().clone()
    }

    /// Serves something else from now on. Clients of exports that are gone stay until those [end](Export::end).
    pub fn set_exports(&self, exports: Exports) {
        self.exports.replace(exports);
    }

    /// Connections being served now.
    pub fn connections(&self) -> usize {
        self.limits.connections.saturating_sub(self.slots.available_permits())
    }

    /// Lets every connection finish what is in flight, answers everything else with `ESHUTDOWN`, and ends.
    ///
    /// A peer that does not take its replies can keep its connection from ending; who can not wait for it drops the
    /// future of [`serve`](Self::serve), and then drains the nodes.
    pub fn shut_down(&self) {
        self.shutdown.send_replace(true);
    }

    /// Serves one connection to its end.
    ///
    /// `peer` names the client to nodes that tell clients apart. `patience` ends when negotiation has taken too long (a
    /// timer of the caller, or [`std::future::pending`]); it has no influence later.
    ///
    /// Requests in flight when the client goes away are completed, not dropped, as long as the [host](Host::linger)
    /// waits for them. Those of a connection that is severed are dropped, and dropping this future drops them: drain
    /// the nodes before anything relies on what they did.
    ///
    /// # Errors
    /// [`ServeError`], when the server ended the connection because of something the peer did.
    pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        peer: &str,
        patience: impl Future<Output = ()>,
    ) -> Result<Summary, ServeError> {
        let Ok(_slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            return Err(ServeError::TooManyConnections { limit: self.limits.connections });
        };
        let mut patience = pin!(patience);
        let mut handshake = Handshake::new(self.tls);
        let mut greeting = Vec::new();
        handshake.greet(&mut greeting);
        let plain = self.negotiate(stream, &mut handshake, greeting, patience.as_mut()).await?;
        match plain {
            Negotiated::Left => Ok(Summary::before_transmission(false)),
            Negotiated::Go(ready) => Ok(self.transmit(ready, peer, false).await?),
            Negotiated::StartTls(stream) => self.serve_tls(stream, handshake, peer, patience).await,
        }
    }

    #[cfg(not(feature = "tls"))]
    async fn serve_tls<S: Stream>(
        &self,
        _stream: S,
        _handshake: Handshake,
        _peer: &str,
        _patience: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Summary, ServeError> {
        // The policy is Off without the feature, so negotiation never leads here.
        Err(ServeError::Tls(io::ErrorKind::Unsupported.into()))
    }

    #[cfg(feature = "tls")]
    async fn serve_tls<S: Stream>(
        &self,
        stream: S,
        mut handshake: Handshake,
        peer: &str,
        mut patience: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Summary, ServeError> {
        let Some(acceptor) = &self.acceptor else {
            return Err(ServeError::Tls(io::ErrorKind::Unsupported.into()));
        };
        let accepted = unless(patience.as_mut(), acceptor.accept(stream)).await;
        let stream = accepted.ok_or(ServeError::Impatient)?.map_err(ServeError::Tls)?;
        handshake.encrypted();
        match self.negotiate(stream, &mut handshake, Vec::new(), patience).await? {
            Negotiated::Go(ready) => Ok(self.transmit(ready, peer, true).await?),
            Negotiated::Left => Ok(Summary::before_transmission(true)),
            Negotiated::StartTls(_) => {
                Err(ServeError::Protocol(ProtocolError::broken("TLS inside TLS, which negotiation refuses")))
            }
        }
    }

    /// Runs negotiation until the client goes somewhere else.
    async fn negotiate<S: Stream>(
        &self,
        stream: S,
        handshake: &mut Handshake,
        greeting: Vec<u8>,
        patience: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Negotiated<S>, ServeError> {
        let talk = self.talk(stream, handshake, greeting);
        unless(patience, talk).await.unwrap_or(Err(ServeError::Impatient))
    }

    async fn talk<S: Stream>(
        &self,
        mut stream: S,
        handshake: &mut Handshake,
        mut out: Vec<u8>,
    ) -> Result<Negotiated<S>, ServeError> {
        let mut shutdown = self.shutdown.subscribe();
        let mut input = Vec::new();
        let mut chunk = vec![0; 4096];
        loop {
            if *shutdown.borrow() {
                handshake.shut_down();
            }
            let (consumed, step) = handshake.feed(&input, &*self.exports.borrow(), &mut out)?;
            input.drain(..consumed);
            // At once: what is served may change while the answer is sent.
            let chosen = match &step {
                Step::Go { index, .. } => self.exports.borrow().list.get(*index).cloned(),
                _ => None,
            };
            // Answers leave before more is read or composed: what waits for the peer stays bounded by one option.
            if !out.is_empty() && (step != Step::Continue || consumed == 0 || out.len() > 1 << 16) {
                let sent = send_all(&mut stream, &out).await;
                // A client that has said goodbye need not wait for the answer (`NBD_OPT_ABORT`).
                if step != Step::Close {
                    sent.map_err(ServeError::Io)?;
                }
                out.clear();
            }
            match step {
                Step::Continue if consumed > 0 => {}
                Step::Continue if *shutdown.borrow() => return Ok(Negotiated::Left),
                Step::Continue => {
                    let mut ended = pin!(async {
                        // An error means that the server is gone, which is as good a reason.
                        let _ = shutdown.wait_for(|down| *down).await;
                    });
                    let received = poll_fn(|cx| {
                        let received = buffers::poll_read_into(&mut stream, &mut chunk, cx);
                        match received {
                            Poll::Ready(received) => Poll::Ready(Some(received)),
                            Poll::Pending => ended.as_mut().poll(cx).map(|()| None),
                        }
                    });
                    match received.await {
                        Some(Ok(0)) => return Ok(Negotiated::Left),
                        Some(Ok(received)) => input.extend_from_slice(chunk.get(..received).unwrap_or(&chunk)),
                        Some(Err(error)) => return Err(ServeError::Io(error)),
                        None => {}
                    }
                }
                Step::StartTls if !input.is_empty() => {
                    // It would be taken for encrypted text: somebody in the middle may have put it there.
                    return Err(ProtocolError::broken("plain text behind NBD_OPT_STARTTLS").into());
                }
                Step::StartTls => return Ok(Negotiated::StartTls(stream)),
                Step::Go { agreed, .. } => {
                    let export = chosen.ok_or_else(|| ProtocolError::broken("an export that is not there"))?;
                    return Ok(Negotiated::Go(Ready { stream, export, agreed, early: input }));
                }
                Step::Close => {
                    let _ = poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx)).await;
                    return Ok(Negotiated::Left);
                }
            }
        }
    }

    async fn transmit<S: Stream>(&self, ready: Ready<S>, peer: &str, tls: bool) -> Result<Summary, ProtocolError> {
        let Ready { stream, export, agreed, early } = ready;
        // Together with the handle on the device: whoever is severed later has this one.
        let mut wishes = export.wish.subscribe();
        let severed = wishes.borrow().severed;
        let node = export.node.for_client(peer).unwrap_or_else(|| export.node.clone());
        let summary =
            Summary { export: Some(export.name.clone()), mode: agreed.mode, tls, ..Summary::before_transmission(tls) };
        let budget = budget::Budget::new(Arc::clone(&self.budget));
        let mut session = Session::new(stream, &early, node, agreed, budget, self.limits.requests, summary);
        let mut guest = Guest::new(&*self.host, peer, &export.name);
        let (mut receiver, mut ends) = (self.shutdown.subscribe(), export.wish.subscribe());
        // An error of these means that the sender is gone: the server for the one, and the export is held here.
        let mut shutdown = pin!(futures_lite::future::or(
            async move {
                let _ = receiver.wait_for(|down| *down).await;
            },
            async move {
                let _ = ends.wait_for(|wish| wish.ended).await;
            },
        ));
        let mut cut = pin!(async move {
            let _ = wishes.wait_for(|wish| wish.severed != severed).await;
        });
        let mut linger = None;
        poll_fn(|cx: &mut Context<'_>| {
            if cut.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(session.sever()));
            }
            if !session.is_shutting_down() && shutdown.as_mut().poll(cx).is_ready() {
                session.shut_down();
            }
            let polled = session.poll(cx);
            if polled.is_pending() && session.is_over() {
                guest.leave();
                let linger = linger.get_or_insert_with(|| self.host.linger());
                if linger.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Ok(session.abandon()));
                }
            }
            polled
        })
        .await
    }
}

/// A client the host knows of, until it leaves.
struct Guest<'a> {
    host: &'a dyn Host,
    names: Option<(&'a str, &'a str)>,
}

impl<'a> Guest<'a> {
    fn new(host: &'a dyn Host, client: &'a str, export: &'a str) -> Self {
        host.connected(client, export);
        Self { host, names: Some((client, export)) }
    }

    fn leave(&mut self) {
        if let Some((client, export)) = self.names.take() {
            self.host.disconnected(client, export);
        }
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A client that is ready for transmission.
struct Ready<S> {
    stream: S,
    export: Export,
    agreed: Agreed,
    /// Bytes received behind the last option.
    early: Vec<u8>,
}

enum Negotiated<S> {
    Left,
    #[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "nothing can be done with it"))]
    StartTls(S),
    Go(Ready<S>),
}

impl Summary {
    fn before_transmission(tls: bool) -> Self {
        Self {
            export: None,
            mode: Mode::Simple,
            tls,
            requests: 0,
            errors: 0,
            read_bytes: 0,
            written_bytes: 0,
            ended: Ended::BeforeTransmission,
        }
    }
}

/// Runs `main`, unless `end` comes first.
async fn unless<T>(mut end: Pin<&mut impl Future<Output = ()>>, main: impl Future<Output = T>) -> Option<T> {
    let mut main = pin!(main);
    poll_fn(|cx| match main.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => end.as_mut().poll(cx).map(|()| None),
    })
    .await
}

async fn send_all<S: Stream>(stream: &mut S, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = poll_fn(|cx| Pin::new(&mut *stream).poll_write(cx, bytes)).await?;
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = bytes.get(sent..).unwrap_or_default();
    }
    poll_fn(|cx| Pin::new(&mut *stream).poll_flush(cx)).await
}
