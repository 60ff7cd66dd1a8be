//! SIGHUP: the lab file is read again.
//!
//! A file that is wrong changes nothing, and neither does one with a new export whose image does not open. An export that
//! is described anew has to be closed before it can be opened: if it does not open, it comes back as it was, without its
//! clients, and the other changes hold. What stands beside the exports (addresses, limits) belongs to the process, and
//! changes only when that is started again.

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;

use anyhow::Context as _;
use blkproof_fault::notice::What;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Args;
use super::notify::Systemd;
use super::plan::Plan;
use super::site::Site;
use crate::messages::{print_error, words};

pub(super) struct Reload {
    hangup: Signal,
    args: Rc<Args>,
    /// What was read first.
    plan: Plan,
    site: Rc<Site>,
    systemd: Rc<Systemd>,
}

impl Reload {
    pub(super) fn new(args: &Rc<Args>, plan: Plan, site: &Rc<Site>, systemd: &Rc<Systemd>) -> anyhow::Result<Self> {
        let hangup = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
        let (args, site, systemd) = (Rc::clone(args), Rc::clone(site), Rc::clone(systemd));
        Ok(Self { hangup, args, plan, site, systemd })
    }

    /// Reads it again at each signal, until `stop` completes. What is begun is done.
    pub(super) async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => return,
                _ = self.hangup.recv() => {}
            }
            self.systemd.reloading();
            let (words, error) = match self.reload().await {
                Ok(words) => {
                    eprintln!("reloaded: {words}");
                    (words, None)
                }
                Err(error) => {
                    print_error(&error);
                    (String::new(), Some(Rc::from(words(&error))))
                }
            };
            let what = What::Reloaded { words: Rc::from(words), error };
            self.site.lab().notices().tell(&Rc::from(""), what);
            self.systemd.ready("serving");
        }
    }

    async fn reload(&self) -> anyhow::Result<String> {
        let plan = Plan::new(&self.args)?;
        if (Plan { exports: Vec::new(), ..plan.clone() }) != (Plan { exports: Vec::new(), ..self.plan.clone() }) {
            eprintln!("warning: what stands beside the exports changes only when the server is started again");
        }
        let done = self.site.reload(&plan.exports).await?;
        Ok(done.words())
    }
}
