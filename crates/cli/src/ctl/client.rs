//! The client's end of a control socket.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use serde_json::{Map, Value, json};

use crate::control::Address;
use crate::messages::without_number;

/// Time the server has to greet; commands have all the time they need.
const PATIENCE: Duration = Duration::from_secs(10);

/// How it went wrong.
#[derive(Debug)]
pub(super) enum Failure {
    /// The command line is wrong; nobody was asked.
    Usage(String),
    /// The command was not done.
    Refused(anyhow::Error),
    /// There is no server, or not any more.
    Nobody(anyhow::Error),
    /// Standard output is closed.
    Closed,
}

trait Stream: Read + Write {}

impl Stream for UnixStream {}
impl Stream for TcpStream {}

/// A session that has been negotiated.
pub(super) struct Client {
    stream: BufReader<Box<dyn Stream>>,
    socket: String,
    events: VecDeque<Value>,
}

/// Sets how long a read waits.
type Patience = Box<dyn Fn(Option<Duration>) -> std::io::Result<()>>;

impl Client {
    pub(super) fn connect(address: &Address) -> Result<Self, Failure> {
        let hint = "hint: name the socket that `blkproof serve --control SOCKET` listens on";
        let told = || format!("could not connect to '{address}'");
        let nobody = |error: std::io::Error| {
            Failure::Nobody(anyhow!("{}: {}\n{hint}", told(), without_number(&error.to_string())))
        };
        let (stream, patience): (Box<dyn Stream>, Patience) = match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(nobody)?;
                let same = stream.try_clone().map_err(nobody)?;
                (Box::new(stream), Box::new(move |time| same.set_read_timeout(time)))
            }
            Address::Tcp(place) => {
                let stream = TcpStream::connect(place).map_err(nobody)?;
                let same = stream.try_clone().map_err(nobody)?;
                (Box::new(stream), Box::new(move |time| same.set_read_timeout(time)))
            }
        };
        let mut client = Self { stream: BufReader::new(stream), socket: address.to_string(), events: VecDeque::new() };
        patience(Some(PATIENCE)).map_err(nobody)?;
        // Another protocol's greeting may have no end of a line to wait for.
        let first = client.stream.fill_buf().map_err(nobody)?.first().copied();
        let greeting = if first == Some(b'{') { client.next()? } else { None };
        if greeting.is_none_or(|greeting| greeting.get("QMP").is_none()) {
            return Err(Failure::Nobody(anyhow!("'{address}' does not greet as a control socket does\n{hint}")));
        }
        client.execute("qmp_capabilities", Map::new())?;
        patience(None).map_err(nobody)?;
        Ok(client)
    }

    /// Does a command.
    pub(super) fn execute(&mut self, name: &str, arguments: Map<String, Value>) -> Result<Value, Failure> {
        let message = json!({ "execute": name, "arguments": arguments });
        let sent = self.stream.get_mut().write_all(format!("{message}\n").as_bytes());
        sent.with_context(|| format!("sending to '{}'", self.socket)).map_err(Failure::Nobody)?;
        loop {
            let Some(mut reply) = self.next()? else {
                return Err(Failure::Nobody(anyhow!("'{}' was closed without an answer", self.socket)));
            };
            if reply.get("event").is_some() {
                self.events.push_back(reply);
                continue;
            }
            if let Some(error) = reply.get("error") {
                let words = error["desc"].as_str().unwrap_or("refused, and nothing is said about it");
                return Err(Failure::Refused(anyhow!("{name}: {words}")));
            }
            return Ok(reply["return"].take());
        }
    }

    /// The next event; `None` at the end.
    pub(super) fn event(&mut self) -> Result<Option<Value>, Failure> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            match self.next()? {
                Some(message) if message.get("event").is_some() => return Ok(Some(message)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    fn next(&mut self) -> Result<Option<Value>, Failure> {
        let mut line = Vec::new();
        let told = || format!("reading from '{}'", self.socket);
        match self.stream.read_until(b'\n', &mut line) {
            Ok(0) => Ok(None),
            Ok(_) => serde_json::from_slice(&line).map(Some).with_context(told).map_err(Failure::Nobody),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(Failure::Nobody(anyhow::Error::new(error).context(told()))),
        }
    }
}
