//! Opening and closing the image.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use blkproof_block::graph::OpenError;
use blkproof_block::nodes::raw;
use blkproof_block::{BlockDevice as _, Node};
use blkproof_sim::Owner;
use blkproof_sim::disk::{Content, DiskOptions};

use super::Run;
use crate::plan::OpId;
use crate::run::events::What;
use crate::run::finding::Finding;
use crate::run::recover;
use crate::target::Files;

/// Times that an open is tried again after a fault, before faults stop.
const OPENS_MAX: u32 = 4;

/// What a task came to, put there by itself.
type Slot<T> = Rc<RefCell<Option<T>>>;

impl Run<'_> {
    /// The base image on a disk of its own, whose requests move and fail as those of the image do.
    pub(super) fn base_node(&mut self) -> Option<Node> {
        let content = Content::over(Rc::clone(self.base.as_ref()?));
        let disk = self.simulation.disk(DiskOptions { read_only: true, ..DiskOptions::new(content) });
        disk.set_adversary(Some(self.client.damage.adversary()));
        self.base_disk = Some(disk.clone());
        Some(Node::new(raw::Raw::new(disk)))
    }

    /// Requests below are done when they are sent, or again by moves.
    pub(super) fn set_instant(&self, instant: bool) {
        for disk in [Some(&self.disk), self.base_disk.as_ref()].into_iter().flatten() {
            disk.set_instant(instant);
        }
    }

    /// Runs `work` as a task of `owner` while nothing else is going on.
    pub(super) fn alone<T: 'static>(&mut self, owner: Owner, work: impl Future<Output = T> + 'static) -> Option<T> {
        let slot: Slot<T> = Rc::default();
        let into = Rc::clone(&slot);
        self.simulation.spawn(owner, async move {
            let value = work.await;
            *into.borrow_mut() = Some(value);
        });
        while self.simulation.is_busy() {
            let Some(key) = self.simulation.choose() else { break };
            if self.look_before(key) || self.halt.moved() || self.simulation.steps() >= self.settings.steps {
                break;
            }
            self.take(key);
        }
        let value = slot.borrow_mut().take();
        if value.is_none() && !self.full() {
            self.stuck();
        }
        value
    }

    /// Opens the image; a fault may make that fail, and then it is tried again.
    pub(super) fn open(&mut self, owner: Owner, phase: &'static str) -> bool {
        let before = self.client.phase.replace(phase);
        let opened = self.try_open(owner);
        self.client.phase.set(before);
        opened
    }

    pub(super) fn try_open(&mut self, owner: Owner) -> bool {
        self.client.log.note(|| What::Begins("opens the image"));
        self.client.damage.set_opening(true);
        self.client.flush_failed.set(false);
        for tries in 0.. {
            self.client.damage.lift();
            if tries == OPENS_MAX {
                self.client.damage.set_quiet(true);
            }
            let faults_before = self.client.damage.count();
            let files = Files { image: Node::new(self.disk.clone()), base: self.base_node() };
            let work = self.target.open(files, &self.plan.target);
            let result = self.alone(owner, work);
            match result {
                Some(Ok(node)) => {
                    self.client.sized(None, &node);
                    self.node = Some(node);
                    break;
                }
                Some(Err(error)) if self.client.damage.count() > faults_before || injected(&error) => {}
                Some(Err(error)) => {
                    let text = format!("the image does not open: {error}");
                    self.report(Finding::new("open", self.client.phase.get(), text));
                    break;
                }
                None => break,
            }
        }
        self.client.damage.set_quiet(false);
        self.client.damage.set_opening(false);
        self.node.is_some()
    }

    /// Closes the image, and has it checked. Whether a driver is left to go on with.
    pub(super) fn close(&mut self, owner: Owner) -> bool {
        let Some(node) = self.node.take() else { return false };
        self.client.log.note(|| What::Begins("closes the image"));
        self.client.damage.set_opening(true);
        let faults_before = self.client.damage.count();
        let result = self.alone(owner, async move { node.close().await });
        self.client.damage.set_opening(false);
        let Some(result) = result else { return false };
        if let Err(error) = &result {
            self.client.judge_error(None, "closing the image", error, faults_before);
        }
        // What of dropped requests has not landed by now lands or does not: the process is gone.
        let disk = self.disk.clone();
        self.alone(owner, async move {
            let _ = disk.drain().await;
        });
        self.client.oracle().reopened(result.is_ok());
        self.check(result.is_ok());
        !self.full()
    }

    pub(super) fn check(&mut self, clean: bool) {
        if !self.settings.check {
            return;
        }
        self.stats.checks = self.stats.checks.saturating_add(1);
        let errors = self.client.damage.count() > 0 || self.stats.drops > 0 || !clean;
        let leaks = errors && self.promises.leaks_after_error || self.lives > 1 && self.promises.leaks_after_crash;
        let content = self.disk.content();
        let verdict = self.target.check(&content);
        let damaged = recover::judge_check(verdict, leaks, "close");
        let found = damaged.or_else(|| recover::judge_intact(self.target, &content, &self.plan.target, "close"));
        if let Some(finding) = found {
            self.report(finding);
        }
    }

    pub(super) fn reopen(&mut self, id: OpId) -> bool {
        self.stats.reopens = self.stats.reopens.saturating_add(1);
        self.close(Owner(id)) && self.open(Owner(id), "reopen")
    }
}

fn injected(error: &OpenError) -> bool {
    matches!(error, OpenError::Io { source, .. } if source.injected_by.is_some())
}
