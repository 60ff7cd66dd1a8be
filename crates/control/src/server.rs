//! Clients: each has a session, its commands one after the other, and the events.
//!
//! Everything runs on the thread of the graphs, and stalls none of them:
//! - reading stops while [`QUEUE`] commands wait; a client can have no more than that and [`URGENT`] out of band;
//! - what goes out waits in a bounded [`Outbox`]; a client that takes nothing for [`PATIENCE`](crate::outbox::PATIENCE)
//!   is left behind;
//! - notices are kept in the bounded queue of [`Notices`](blkproof_fault::notice::Notices); a client that falls behind
//!   is told how many it missed (`EVENTS_LOST`);
//! - commands are futures beside the I/O, and between two of them the I/O has its turn.
//!
//! A client that has sent its last byte (a script on `socat`) still gets the replies to what it sent. One that is gone
//! altogether is nobody's: what it waits for, and what it has been asked, ends at once. Its commands may keep the reader
//! from seeing that, so whoever has the socket says it.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;

use blkproof_block::LocalBoxFuture;
use blkproof_fault::lab::Lab;
use blkproof_fault::notice::Notice;
use futures_lite::future::{or, yield_now};
use futures_util::future::{Either, join3, select};
use futures_util::stream::{StreamExt as _, unfold};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{mpsc, oneshot, watch};

use crate::commands::{Context, execute};
use crate::host::{Draft, Host, NewImage};
use crate::outbox::Outbox;
use crate::voice::Voice;
use crate::wire::{self, Command, Input, Limits, Session, encode};

/// Commands of a client that wait for the one before them.
const QUEUE: usize = 8;

/// Commands of a client that are done out of band at a time.
const URGENT: usize = 8;

/// Bytes read at a time; the I/O has its turn after each.
const PIECE: usize = 16 << 10;

/// Bytes understood at a time: a byte may be a message, if only a wrong one.
const BITE: usize = 512;

/// How a client left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It closed its end.
    Left,
    /// The process ends.
    ShutDown,
    /// It did not read what was sent to it.
    TooSlow,
    /// It spoke another protocol.
    Alien,
}

/// Serves clients, each with a session, its commands one after the other, and the events.
pub struct Server {
    lab: Rc<Lab>,
    host: Rc<dyn Host>,
    limits: Limits,
    closing: watch::Sender<Option<&'static str>>,
    quitting: Rc<Cell<bool>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({} clients)", self.closing.receiver_count())
    }
}

/// Notes that somebody asked for the end, so that everybody can be told why it came.
struct Quit {
    host: Rc<dyn Host>,
    quitting: Rc<Cell<bool>>,
}

impl Host for Quit {
    fn quit(&self) {
        self.quitting.set(true);
        self.host.quit();
    }

    fn create<'a>(&'a self, image: NewImage<'a>) -> LocalBoxFuture<'a, Result<Box<dyn Draft>, String>> {
        self.host.create(image)
    }
}

impl Server {
    /// Controls the nodes of `lab`.
    pub fn new(lab: Rc<Lab>, host: Rc<dyn Host>) -> Self {
        Self::with_limits(lab, host, Limits::default())
    }

    /// As [`new`](Self::new), with other limits on what clients send.
    pub fn with_limits(lab: Rc<Lab>, host: Rc<dyn Host>, limits: Limits) -> Self {
        let quitting = Rc::new(Cell::new(false));
        let host = Rc::new(Quit { host, quitting: Rc::clone(&quitting) });
        Self { lab, host, limits, closing: watch::Sender::new(None), quitting }
    }

    /// Tells every client that the process ends (`SHUTDOWN`), and ends their sessions. Their commands are dropped.
    pub fn shut_down(&self) {
        self.closing.send_replace(Some(if self.quitting.get() { "quit" } else { "stopped" }));
    }

    /// Serves one client until it leaves. `hung_up` completes when the stream is closed in both directions, which the
    /// bytes before its end can hide; the client's commands are dropped then.
    ///
    /// # Errors
    /// Whatever the stream fails with; a client that is gone is no error.
    pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        hung_up: impl Future<Output = ()>,
    ) -> io::Result<Ended> {
        let hung_up = async {
            hung_up.await;
            Ok(Ended::Left)
        };
        or(self.converse(stream), hung_up).await
    }

    async fn converse<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<Ended> {
        let (reader, mut writer) = tokio::io::split(stream);
        let outbox = Outbox::default();
        let clock = self.lab.clock();
        let talk = pin!(async {
            let ended = self.talk(reader, &outbox).await;
            outbox.close();
            ended
        });
        let mut send = pin!(outbox.send(&mut writer, &clock));
        let (ended, sent) = match select(talk, send.as_mut()).await {
            Either::Left((ended, send)) => (ended, send.await),
            Either::Right((sent, _)) => (Ok(Ended::Left), sent),
        };
        match sent {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(Ended::TooSlow),
            Err(error) => gone(error).map(|()| Ended::Left),
            Ok(()) => ended,
        }
    }

    async fn talk(&self, mut reader: impl AsyncRead + Unpin, outbox: &Outbox) -> io::Result<Ended> {
        outbox.put(encode(&Session::greeting())).await;
        let context = Context::new(&self.lab, &self.host);
        let (to_queue, mut queue) = mpsc::channel(QUEUE);
        let (to_urgent, urgent) = mpsc::channel(URGENT);
        let (hear, heard) = oneshot::channel();
        let voice = Voice::new(&self.lab, context.me, outbox);

        let read = async {
            let ended = read(&mut reader, self.limits, to_queue, to_urgent).await;
            context.falls_silent();
            ended
        };
        let in_order = async {
            let mut hear = Some(hear);
            while let Some(input) = queue.recv().await {
                let reply = match input {
                    Input::Negotiated(id) => {
                        let bell = voice.hear(&wire::success(id, json!({}))).await;
                        // An error means that the process ends. A session negotiates once.
                        let _ = hear.take().map(|hear| hear.send(bell));
                        continue;
                    }
                    Input::Command(command) => answer(&context, command).await,
                    Input::Refused(id, error) => wire::failure(id, &error),
                    Input::Alien => break,
                };
                voice.say(&reply).await;
                yield_now().await;
            }
        };
        let out_of_band = out_of_band(&context, urgent, &voice);
        let conversation = async { join3(read, in_order, out_of_band).await.0 };
        let events = async {
            self.tell(&voice, heard).await;
            Ok(Ended::ShutDown)
        };
        or(conversation, events).await
    }

    /// Sends events until the process ends.
    async fn tell(&self, voice: &Voice<'_>, heard: oneshot::Receiver<broadcast::Receiver<Rc<Notice>>>) {
        let mut closing = self.closing.subscribe();
        let closed = async {
            // An error means that the server is gone, which it can not be.
            let reason = closing.wait_for(Option::is_some).await.ok().and_then(|reason| *reason);
            reason.unwrap_or("stopped")
        };
        let events = async {
            if let Ok(mut bell) = heard.await {
                // It may ring for what was told before a reply, and needs not to ring for what it missed.
                while !matches!(bell.recv().await, Err(RecvError::Closed)) {
                    voice.tell().await;
                }
            }
            std::future::pending().await
        };
        let reason = or(closed, events).await;
        voice.say(&wire::event(self.lab.clock().unix(), "SHUTDOWN", json!({ "reason": reason }))).await;
    }
}

/// Reads until the client has sent its last byte.
async fn read(
    reader: &mut (impl AsyncRead + Unpin),
    limits: Limits,
    queue: mpsc::Sender<Input>,
    urgent: mpsc::Sender<Command>,
) -> io::Result<Ended> {
    let mut session = Session::new(limits);
    let mut piece = vec![0; PIECE];
    let mut inputs = Vec::new();
    loop {
        let count = match reader.read(&mut piece).await {
            Ok(0) => return Ok(Ended::Left),
            Ok(count) => count,
            Err(error) => return gone(error).map(|()| Ended::Left),
        };
        for bite in piece.get(..count).unwrap_or_default().chunks(BITE) {
            session.feed(bite, &mut inputs);
            for input in inputs.drain(..) {
                // An error means that whoever would answer has ended, and this function with it.
                match input {
                    Input::Alien => return Ok(Ended::Alien),
                    Input::Command(command) if command.oob => drop(urgent.send(command).await),
                    input => drop(queue.send(input).await),
                }
            }
        }
    }
}

async fn out_of_band(context: &Context, urgent: mpsc::Receiver<Command>, voice: &Voice<'_>) {
    let commands = unfold(urgent, |mut urgent| async { urgent.recv().await.map(|command| (command, urgent)) });
    let each = |command| async {
        voice.say(&answer(context, command).await).await;
    };
    commands.for_each_concurrent(URGENT, each).await;
}

async fn answer(context: &Context, command: Command) -> Value {
    let id = command.id.clone();
    match execute(context, command).await {
        Ok(result) => wire::success(id, result),
        Err(error) => wire::failure(id, &error),
    }
}

/// A client that is gone is no error; others are.
fn gone(error: io::Error) -> io::Result<()> {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
    match error.kind() {
        BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected => Ok(()),
        _ => Err(error),
    }
}
