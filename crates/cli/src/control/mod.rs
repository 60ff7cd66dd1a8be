//! Control sockets: where programs come in that steer a running graph. What they may say is `blkproof-control`'s.

mod address;
mod listen;
mod own_file;
mod process;

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use blkproof_control::{Ended, Host, Server};
use blkproof_fault::lab::Lab;
use tokio::task::JoinSet;

pub(crate) use self::address::Address;
use self::listen::Listener;
pub(crate) use self::own_file::{OwnFile, remove_stale};
pub(crate) use self::process::Process;
use crate::messages::without_number;

/// Clients at a time; further ones wait until one leaves.
const CLIENTS_MAX: usize = 64;

/// Time clients have to take their last event.
const FAREWELL: Duration = Duration::from_secs(2);

/// A control socket that is open, and whose clients wait until it [runs](Self::run).
pub(crate) struct Control {
    listener: Listener,
    server: Rc<Server>,
}

/// Opens a control socket for the nodes of `lab`. From here on clients may connect.
pub(crate) async fn listen(lab: &Rc<Lab>, address: &Address, host: Rc<dyn Host>) -> anyhow::Result<Control> {
    let listener = Listener::bind(address).await?;
    Ok(Control { listener, server: Rc::new(Server::new(Rc::clone(lab), host)) })
}

impl Control {
    /// Where it is: what `blkproof ctl` takes. Port 0 has become the real one.
    pub(crate) fn address(&self) -> String {
        self.listener.address()
    }

    /// Serves clients until `stop` completes; then they are told, and the socket goes.
    pub(crate) async fn run(self, stop: impl Future<Output = ()>) {
        let Self { listener, server } = self;
        let mut stop = pin!(stop);
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                Some(_) = clients.join_next(), if !clients.is_empty() => {}
                client = listener.accept(), if clients.len() < CLIENTS_MAX => match client {
                    Ok((stream, line)) => {
                        let server = Rc::clone(&server);
                        clients.spawn_local(async move {
                            if let Some(words) = complaint(server.serve(stream, line.hung_up()).await) {
                                eprintln!("warning: {words}");
                            }
                        });
                    }
                    Err(error) => {
                        let words = error.to_string();
                        eprintln!("warning: could not accept a control client: {}", without_number(&words));
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
        server.shut_down();
        let farewell = async { while clients.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }
}

/// What there is to say about how a client left.
fn complaint(ended: std::io::Result<Ended>) -> Option<String> {
    match ended {
        Ok(Ended::TooSlow) => Some("a control client does not read; leaving it behind".to_owned()),
        Ok(Ended::Alien) => Some("a client of the control socket does not speak QMP".to_owned()),
        Ok(_) => None,
        Err(error) => Some(format!("a control client: {}", without_number(&error.to_string()))),
    }
}
