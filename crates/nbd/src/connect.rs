//! What a connection needs of the program around it, and one attempt to get it.

use std::io;
use std::time::Duration;

use blkproof_block::LocalBoxFuture;
use blkproof_block::graph::OpenError;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::client::{Client, ConnectError, Connection};
use crate::handshake::client::Wanted;
use crate::uri::Address;

/// The pause after the first attempt that failed.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long one attempt may take, of those that are repeated: a server that says nothing would end the attempts.
const ATTEMPT: Duration = Duration::from_secs(10);

/// A connection of any kind.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Transport for S {}

/// What the driver needs of the program around it.
pub trait Connect {
    /// Connects.
    fn connect<'a>(&'a self, address: &'a Address) -> LocalBoxFuture<'a, io::Result<Box<dyn Transport>>>;

    /// Runs the task that moves the bytes of a connection, beside everything else on this thread.
    fn spawn(&self, task: LocalBoxFuture<'static, ()>);

    /// Completes after that time. The driver has no clock of its own, so that a test or a simulation may bring one.
    fn sleep(&self, time: Duration) -> LocalBoxFuture<'static, ()>;
}

/// What to connect to, and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where the server is.
    pub address: Address,
    /// What to ask it for.
    pub wanted: Wanted,
    /// Whether to refuse writes even if the server takes them.
    pub read_only: bool,
}

/// A client and the connection it uses.
pub(crate) type Connected = (Client, Connection<Box<dyn Transport>>);

/// Why an attempt came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    /// Nobody is there.
    #[error("{0}")]
    Connect(io::Error),
    /// Somebody is there, but it comes to no export.
    #[error(transparent)]
    Negotiate(ConnectError),
    /// Nothing happens.
    #[error("no answer within {} s", .0.as_secs())]
    Slow(Duration),
}

impl AttemptError {
    pub(crate) fn into_open_error(self, address: &Address) -> OpenError {
        let what = format!("nbd server {address}");
        match self {
            Self::Connect(error) | Self::Negotiate(ConnectError::Io(error)) => OpenError::io(what, error),
            Self::Negotiate(ConnectError::Negotiation(error)) => OpenError::Image(format!("{what}: {error}")),
            Self::Slow(_) => OpenError::io(what, io::Error::from_raw_os_error(blkproof_block::Errno::TIMEDOUT.0)),
        }
    }
}

/// Connects and negotiates, once, for as long as it takes.
pub(crate) async fn once<C: Connect>(connect: &C, target: &Target) -> Result<Connected, AttemptError> {
    let stream = connect.connect(&target.address).await.map_err(AttemptError::Connect)?;
    let connected = Client::connect(stream, target.wanted.clone()).await;
    let (client, connection) = connected.map_err(AttemptError::Negotiate)?;
    Ok((if target.read_only { client.read_only() } else { client }, connection))
}

/// Attempts with growing pauses between them.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    pause: Duration,
}

impl Attempts {
    /// Attempts until one succeeds, and tells `failed` about all others. The pause before the first is none, unless
    /// attempts were made before.
    pub(crate) async fn run<C: Connect>(
        &mut self,
        connect: &C,
        target: &Target,
        mut failed: impl FnMut(AttemptError),
    ) -> Connected {
        loop {
            if !self.pause.is_zero() {
                connect.sleep(self.pause).await;
            }
            self.pause = self.pause.saturating_mul(2).clamp(PAUSE_MIN, PAUSE_MAX);
            let slow = async {
                connect.sleep(ATTEMPT).await;
                Err(AttemptError::Slow(ATTEMPT))
            };
            match futures_lite::future::or(once(connect, target), slow).await {
                Ok(connected) => return connected,
                Err(error) => failed(error),
            }
        }
    }
}
