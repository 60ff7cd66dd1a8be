//! Clients as the lab hears of them, and what a power cut does to them.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use blkproof_block::LocalBoxFuture;
use blkproof_fault::lab::{Lab, Part};
use blkproof_fault::notice::What;
use blkproof_nbd::server::Host;
use tokio::sync::broadcast::error::RecvError;

use super::site::Site;

/// How long requests of a client that has left may take: one that is held or hangs keeps its memory no longer.
const LINGER: Duration = Duration::from_secs(10);

/// Tells the lab of clients.
pub(super) struct Clients(pub(super) Rc<Lab>);

impl Host for Clients {
    fn connected(&self, client: &str, export: &str) {
        let what = What::ClientConnected { client: Rc::from(client), export: Rc::from(export) };
        self.0.notices().tell(&Rc::from(""), what);
    }

    fn disconnected(&self, client: &str, _export: &str) {
        self.0.notices().tell(&Rc::from(""), What::ClientDisconnected { client: Rc::from(client) });
    }

    fn linger(&self) -> LocalBoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(LINGER))
    }
}

/// Names for clients: no two have the same.
#[derive(Default)]
pub(super) struct Names(Cell<u64>);

impl Names {
    pub(super) fn name(&self, peer: &str) -> String {
        let number = self.0.get().wrapping_add(1);
        self.0.set(number);
        format!("{peer} #{number}")
    }
}

/// Ends the connections to every disk whose power was cut, also those that have nothing in flight.
///
/// A client that asks something before this happens gets no answer either: the disk knows who was there.
pub(super) async fn follow_power(site: Rc<Site>) {
    let mut notices = site.lab().notices().listen();
    loop {
        match notices.recv().await {
            Ok(notice) if !matches!(notice.what, What::PowerCut { .. }) => continue,
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
        site.for_each(|live| {
            let cuts = |name: &Rc<str>| match site.lab().get(name) {
                Some(Part::Disk(disk)) => disk.cuts(),
                _ => 0,
            };
            let cuts = live.parts.iter().map(cuts).fold(0_u64, u64::wrapping_add);
            if live.cuts.replace(cuts) != cuts {
                live.export.sever();
            }
        });
    }
}
