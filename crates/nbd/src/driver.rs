//! The `nbd` driver: an export of some server as the end of a graph.
//!
//! Options are QEMU's: `server.type` (`unix` or `inet`) with `server.path` or `server.host` and `server.port`, or
//! `path`, or `host` and `port`; and `export`. Sockets are opened by whoever registers the driver, through [`Connect`].

use std::io;

use blkproof_block::graph::{Driver, DriverKind, OpenContext, OpenError, OptionError, Options};
use blkproof_block::{LocalBoxFuture, Node};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::client::{Client, ConnectError};
use crate::handshake::client::Wanted;
use crate::uri::{self, Address, DEFAULT_PORT};

/// A connection of any kind.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Transport for S {}

/// What the driver needs of the program around it.
pub trait Connect {
    /// Connects.
    fn connect<'a>(&'a self, address: &'a Address) -> LocalBoxFuture<'a, io::Result<Box<dyn Transport>>>;

    /// Runs the task that moves the bytes of a connection, beside everything else on this thread.
    fn spawn(&self, task: LocalBoxFuture<'static, ()>);
}

/// The driver.
#[derive(Debug)]
pub struct NbdDriver<C>(pub C);

impl<C: Connect> NbdDriver<C> {
    async fn open_node(&self, mut options: Options, context: &OpenContext<'_>) -> Result<Node, OpenError> {
        let (address, export) = target(&mut options)?;
        options.finish("nbd")?;
        let what = || format!("nbd server {address}");
        let stream = self.0.connect(&address).await.map_err(|error| OpenError::io(what(), error))?;
        let (client, connection) = Client::connect(stream, Wanted::new(export)).await.map_err(|error| match error {
            ConnectError::Io(error) => OpenError::io(what(), error),
            ConnectError::Negotiation(error) => OpenError::Image(format!("{}: {error}", what())),
        })?;
        self.0.spawn(Box::pin(connection));
        Ok(Node::new(if context.flags.read_only { client.read_only() } else { client }))
    }
}

fn target(options: &mut Options) -> Result<(Address, String), OpenError> {
    if let Some(name) = options.take_text("filename")? {
        let target = uri::parse(&name).map_err(|error| OpenError::Usage(error.to_string()))?;
        return Ok((target.address, target.export));
    }
    let export = options.take_text("export")?.unwrap_or_default();
    if let Some(mut server) = options.take_child("server") {
        let unix = server.take_choice("type", &[("unix", true), ("inet", false)])?;
        let address = match unix {
            Some(true) => Address::Unix(server.need_text("path", "nbd")?),
            Some(false) => {
                let host = server.need_text("host", "nbd")?;
                Address::Tcp(host, port(&mut server)?)
            }
            None => return Err(OpenError::Usage("'server' needs a 'type': unix or inet".to_owned())),
        };
        server.finish("nbd")?;
        return Ok((address, export));
    }
    let path = options.take_text("path")?;
    let host = options.take_text("host")?;
    match (path, host) {
        (Some(path), None) => Ok((Address::Unix(path), export)),
        (None, Some(host)) => Ok((Address::Tcp(host, port(options)?), export)),
        (None, None) => Err(OpenError::Usage("driver 'nbd' needs 'server', 'path' or 'host'".to_owned())),
        (Some(_), Some(_)) => Err(OpenError::Usage("'path' and 'host' can not be used together".to_owned())),
    }
}

fn port(options: &mut Options) -> Result<u16, OpenError> {
    let number = options.take_u64("port")?.unwrap_or(DEFAULT_PORT.into());
    u16::try_from(number).map_err(|_| OpenError::Usage(format!("port {number} is more than 65535")))
}

impl<C: Connect> Driver for NbdDriver<C> {
    fn name(&self) -> &'static str {
        "nbd"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    fn parse_filename(&self, filename: &str) -> Option<Result<Options, OptionError>> {
        uri::is_nbd(filename).then(|| {
            let target = uri::parse(filename).map_err(|error| OptionError::Syntax(error.to_string()))?;
            let server = match target.address {
                Address::Unix(path) => Options::new().with("type", "unix").with("path", path),
                Address::Tcp(host, port) => {
                    Options::new().with("type", "inet").with("host", host).with("port", port.to_string())
                }
            };
            Ok(Options::new().with_child("server", server).with("export", target.export))
        })
    }

    fn open<'a>(
        &'a self,
        options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
        Box::pin(self.open_node(options, context))
    }
}
