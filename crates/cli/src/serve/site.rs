//! The running server: its exports, and how they come and go.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use blkproof_block::graph::Registry;
use blkproof_block::{BlockDevice as _, Node};
use blkproof_fault::lab::{Lab, Part};
use blkproof_nbd::server::{Export, Exports, Server};

use super::plan::ExportPlan;
use super::stack;
use crate::messages::words;

/// An export that is served.
pub(super) struct Live {
    pub(super) plan: ExportPlan,
    pub(super) export: Export,
    node: Node,
    /// Its nodes that can be controlled.
    pub(super) parts: Vec<Rc<str>>,
    /// Power cuts of its disks, as far as clients know.
    pub(super) cuts: Cell<u64>,
}

impl Live {
    async fn open(plan: &ExportPlan, lab: &Rc<Lab>, registry: &Registry) -> anyhow::Result<Self> {
        let before = stack::names(lab);
        let node = stack::open(plan, lab, registry).await;
        let node = node.with_context(|| format!("could not open '{}'", plan.graph))?;
        let parts = stack::names(lab).difference(&before).cloned().collect();
        let mut export = Export::new(&plan.name, node.clone()).description(&plan.description);
        if plan.flags.read_only {
            export = export.read_only();
        }
        Ok(Self { plan: plan.clone(), export, node, parts, cuts: Cell::new(0) })
    }

    /// Whether it has a node for the rules of `plan`. It has none of its own where the graph brought one along.
    fn has_place_for(&self, plan: &ExportPlan) -> bool {
        let name = format!("{}fault", plan.prefix);
        plan.rules == self.plan.rules || self.parts.iter().any(|part| **part == *name)
    }

    /// Lets go whatever waits at its rules and breakpoints.
    fn let_go(&self, lab: &Lab) {
        for name in &self.parts {
            if let Some(part) = lab.get(name) {
                part.let_go();
            }
        }
    }

    /// Closes it. Nobody uses it any more.
    async fn close(self) -> anyhow::Result<()> {
        let graph = &self.plan.graph;
        // Requests of clients left behind may still be under way below.
        self.node.drain().await.with_context(|| format!("waiting for requests to '{graph}'"))?;
        self.node.close().await.with_context(|| format!("closing '{graph}'"))
    }
}

/// The exports of this process.
pub(super) struct Site {
    server: Rc<Server>,
    lab: Rc<Lab>,
    registry: Registry,
    live: RefCell<Vec<Live>>,
    farewell: Duration,
}

/// What a reload did.
#[derive(Default)]
pub(super) struct Reloaded {
    pub(super) added: Vec<String>,
    pub(super) removed: Vec<String>,
    pub(super) replaced: Vec<String>,
    pub(super) with_new_rules: Vec<String>,
}

impl Reloaded {
    /// In a line.
    pub(super) fn words(&self) -> String {
        let lists = [
            ("added", &self.added),
            ("removed", &self.removed),
            ("opened anew", &self.replaced),
            ("given new rules", &self.with_new_rules),
        ];
        let said: Vec<String> = lists
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| {
                let names: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
                format!("{what}: {}", names.join(", "))
            })
            .collect();
        if said.is_empty() { "nothing has changed".to_owned() } else { said.join("; ") }
    }
}

impl Site {
    /// Opens every export; one that does not open closes the others again.
    pub(super) async fn open(
        plans: &[ExportPlan],
        lab: Rc<Lab>,
        registry: Registry,
        make: impl FnOnce(Exports) -> anyhow::Result<Server>,
        farewell: Duration,
    ) -> anyhow::Result<Self> {
        let live = open_all(plans, &lab, &registry).await?;
        let server = Rc::new(make(catalogue(&live)?)?);
        Ok(Self { server, lab, registry, live: RefCell::new(live), farewell })
    }

    pub(super) fn server(&self) -> &Rc<Server> {
        &self.server
    }

    pub(super) fn lab(&self) -> &Rc<Lab> {
        &self.lab
    }

    pub(super) fn for_each(&self, mut look: impl FnMut(&Live)) {
        self.live.borrow().iter().for_each(&mut look);
    }

    /// The names of the exports, in order.
    pub(super) fn names(&self) -> Vec<String> {
        self.live.borrow().iter().map(|live| live.plan.name.clone()).collect()
    }

    /// Whether anything has a power switch.
    pub(super) fn has_disks(&self) -> bool {
        !self.lab.switches().is_empty()
    }

    /// Makes the exports what `plans` says. Those that stay the same keep their clients, and get their new rules; what
    /// is new is opened before anything else changes.
    ///
    /// # Errors
    /// If something new does not open, nothing has changed. If something that is replaced does not open in its new
    /// shape, it comes back in its old one, without its clients.
    pub(super) async fn reload(&self, plans: &[ExportPlan]) -> anyhow::Result<Reloaded> {
        let mut done = Reloaded::default();
        let is_new = |plan: &&ExportPlan| self.live.borrow().iter().all(|live| live.plan.name != plan.name);
        let new: Vec<ExportPlan> = plans.iter().filter(is_new).cloned().collect();
        let added = open_all(&new, &self.lab, &self.registry).await?;
        done.added = new.iter().map(|plan| plan.name.clone()).collect();

        // From here on no error ends this: what can be done is done.
        let mut trouble = Vec::new();
        let mut going = Vec::new();
        let mut changed = Vec::new();
        {
            let mut live = self.live.borrow_mut();
            let mut kept = Vec::with_capacity(plans.len());
            for mut one in live.drain(..) {
                match plans.iter().find(|plan| plan.name == one.plan.name) {
                    None => {
                        done.removed.push(one.plan.name.clone());
                        going.push(one);
                    }
                    Some(plan) if !plan.is_same_but_for_rules(&one.plan) || !one.has_place_for(plan) => {
                        changed.push((plan.clone(), one.plan.clone()));
                        going.push(one);
                    }
                    Some(plan) => {
                        if plan.rules != one.plan.rules {
                            self.give_rules(plan, &one, &mut trouble);
                            done.with_new_rules.push(plan.name.clone());
                            one.plan = plan.clone();
                        }
                        kept.push(one);
                    }
                }
            }
            kept.extend(added);
            *live = kept;
        }
        self.show(plans)?;
        for live in going {
            if let Err(error) = self.end(live).await {
                trouble.push(words(&error));
            }
        }
        for (new, old) in changed {
            let opened = match Live::open(&new, &self.lab, &self.registry).await {
                Ok(live) => Some(live),
                Err(error) => {
                    trouble.push(format!("{}; '{}' is as it was", words(&error), new.name));
                    match Live::open(&old, &self.lab, &self.registry).await {
                        Ok(live) => Some(live),
                        Err(error) => {
                            trouble.push(format!("{}; '{}' is gone", words(&error), old.name));
                            None
                        }
                    }
                }
            };
            if let Some(live) = opened {
                done.replaced.push(live.plan.name.clone());
                self.live.borrow_mut().push(live);
            }
        }
        self.show(plans)?;
        if trouble.is_empty() { Ok(done) } else { anyhow::bail!("{}", trouble.join("\n")) }
    }

    fn give_rules(&self, plan: &ExportPlan, live: &Live, trouble: &mut Vec<String>) {
        debug_assert!(live.has_place_for(plan), "else it is opened anew");
        if let Some(Part::Fault(faults)) = self.lab.get(&format!("{}fault", plan.prefix))
            && let Err(error) = faults.replace(plan.rules.clone())
        {
            trouble.push(error.to_string());
        }
    }

    /// Offers what there is, in the order of `plans`.
    fn show(&self, plans: &[ExportPlan]) -> anyhow::Result<()> {
        let mut live = self.live.borrow_mut();
        let place = |live: &Live| plans.iter().position(|plan| plan.name == live.plan.name);
        live.sort_by_key(place);
        self.server.set_exports(catalogue(&live)?);
        Ok(())
    }

    /// Tells the clients of an export that is no longer offered to leave, and closes it.
    async fn end(&self, live: Live) -> anyhow::Result<()> {
        live.export.end();
        live.let_go(&self.lab);
        if tokio::time::timeout(self.farewell, live.export.unused()).await.is_err() {
            eprintln!("warning: a client of '{}' does not take its replies; leaving it behind", live.plan.name);
            live.export.sever();
            live.export.unused().await;
        }
        live.close().await
    }

    /// Lets every request that waits for nothing but a rule come to its end.
    pub(super) fn let_go(&self) {
        self.for_each(|live| live.let_go(&self.lab));
    }

    /// Closes everything. Every connection is over.
    pub(super) async fn close(&self) -> anyhow::Result<()> {
        let all: Vec<Live> = self.live.borrow_mut().drain(..).collect();
        let mut first = Ok(());
        for live in all {
            let closed = live.close().await;
            if first.is_ok() {
                first = closed;
            }
        }
        first
    }
}

async fn open_all(plans: &[ExportPlan], lab: &Rc<Lab>, registry: &Registry) -> anyhow::Result<Vec<Live>> {
    let mut opened = Vec::with_capacity(plans.len());
    for plan in plans {
        match Live::open(plan, lab, registry).await {
            Ok(live) => opened.push(live),
            Err(error) => {
                for live in opened {
                    // Nothing was done with it; why the other did not open is what the user wants to know.
                    let _ = live.close().await;
                }
                return Err(error);
            }
        }
    }
    Ok(opened)
}

fn catalogue(live: &[Live]) -> anyhow::Result<Exports> {
    let mut exports = Exports::new();
    for one in live {
        exports.add(one.export.clone())?;
    }
    if let [only] = live {
        exports.set_default(&only.plan.name)?;
    }
    Ok(exports)
}
