//! The `nbd` driver: an export of some server as the end of a graph.
//!
//! Options are QEMU's: `server.type` (`unix` or `inet`) with `server.path` or `server.host` and `server.port`, or
//! `path`, or `host` and `port`; and `export`. Two more are times in seconds, 0 by default:
//!
//! * `reconnect-delay`: a lost connection is replaced by a new one, for which requests wait so long before they fail
//!   ([`reconnect`](crate::reconnect) says what that may cost). With 0 a lost connection stays lost.
//! * `open-timeout`: the first connection is tried again and again for so long. With 0 it is tried once.
//!
//! Sockets are opened by whoever registers the driver, through [`Connect`].

use std::cell::RefCell;
use std::time::Duration;

use blkproof_block::graph::{Driver, DriverKind, OpenContext, OpenError, OptionError, Options};
use blkproof_block::{LocalBoxFuture, Node};
use futures_lite::future::or;

use crate::connect::{AttemptError, Attempts, Connected, Target, once};
pub use crate::connect::{Connect, Transport};
use crate::handshake::client::Wanted;
use crate::reconnect::Reconnecting;
use crate::uri::{self, Address, DEFAULT_PORT};

/// The driver.
#[derive(Debug)]
pub struct NbdDriver<C>(pub C);

impl<C: Connect + Clone + 'static> NbdDriver<C> {
    async fn open_node(&self, mut options: Options, context: &OpenContext<'_>) -> Result<Node, OpenError> {
        let reconnect = seconds(&mut options, "reconnect-delay")?;
        let patience = seconds(&mut options, "open-timeout")?;
        let (address, export) = target(&mut options)?;
        options.finish("nbd")?;
        let target = Target { address, wanted: Wanted::new(export), read_only: context.flags.read_only };
        let connected =
            if patience.is_zero() { once(&self.0, &target).await } else { within(&self.0, &target, patience).await };
        let (client, connection) = connected.map_err(|error| error.into_open_error(&target.address))?;
        if reconnect.is_zero() {
            self.0.spawn(Box::pin(connection));
            return Ok(Node::new(client));
        }
        let connect = self.0.clone();
        Ok(Node::new(Reconnecting::new(connect, target, reconnect, client, connection)))
    }
}

/// Tries for so long; fails as the last attempt did.
async fn within<C: Connect>(connect: &C, target: &Target, patience: Duration) -> Result<Connected, AttemptError> {
    let last = RefCell::new(None);
    let mut attempts = Attempts::default();
    let connected = async { Some(attempts.run(connect, target, |error| drop(last.replace(Some(error)))).await) };
    let enough = async {
        connect.sleep(patience).await;
        None
    };
    let connected = or(connected, enough).await;
    connected.ok_or_else(|| last.take().unwrap_or(AttemptError::Slow(patience)))
}

/// A time; QEMU has 32 bits for it.
fn seconds(options: &mut Options, key: &'static str) -> Result<Duration, OpenError> {
    let number = options.take_u64(key)?.unwrap_or(0);
    let number = u32::try_from(number)
        .map_err(|_| OpenError::Usage(format!("{key} of {number} seconds is more than {}", u32::MAX)))?;
    Ok(Duration::from_secs(number.into()))
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

impl<C: Connect + Clone + 'static> Driver for NbdDriver<C> {
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
