//! A run's own thread: opens, has the queues work, closes, and reads everything at the end.

use std::collections::BTreeMap;
use std::sync::Arc;

use blkproof_block::{ByteRange, IoError};

use super::disk::{Disk, works_on};
use super::driver::{Driver, Target};
use super::machine::{self, Gate};
use super::pauses::Pauses;
use super::perform::{Desk, perform};
use super::record::{Failure, Heard};
use super::run::Shared;
use crate::plan::{Act, Op, OpId};
use crate::run::{Failing, Touched, caught};

/// Times that an open is tried again after a fault, before faults stop.
const OPENS_MAX: u32 = 4;

pub(super) fn conduct(shared: &Shared, target: &dyn Target) {
    if let Err(panic) = caught(|| lives(shared, target)) {
        shared.record.note(Heard::Panicked(None, panic));
    }
    shared.record.close();
}

/// From the creation of the image to its last comparison.
fn lives(shared: &Shared, target: &dyn Target) {
    let plan = &shared.plan;
    let content = match target.create(&plan.target) {
        Ok(content) => content,
        Err(text) => return shared.record.note(Heard::Unfit(text)),
    };
    let pauses = Pauses::new(&plan.schedule, shared.number);
    let disk = Arc::new(Disk::new(&content, target.grows(), Failing::new(&plan.faults), pauses));
    let _ = shared.disk.set(Arc::clone(&disk));
    let image = Image { shared, target, disk };
    let Some(mut driver) = image.open(0, "open") else { return };
    for life in plan.ops.split_inclusive(|op| op.act == Act::Reopen) {
        let ops = life.iter().filter(|op| op.act != Act::Reopen);
        image.work(&*driver, ops);
        if shared.record.is_stopped() {
            return;
        }
        if let Some(op) = life.last().filter(|op| op.act == Act::Reopen) {
            shared.record.note(Heard::Sent(op.id, Act::Reopen));
            image.close(&*driver, op.id);
            drop(driver);
            match image.open(op.id, "reopen") {
                Some(opened) => driver = opened,
                None => return,
            }
            shared.record.note(Heard::Ended(op.id, Ok(())));
        }
    }
    image.end(driver);
}

/// The image, opened and closed.
struct Image<'a> {
    shared: &'a Shared,
    target: &'a dyn Target,
    disk: Arc<Disk>,
}

impl Image<'_> {
    /// Opens the image; a fault may make that fail, and then it is tried again.
    fn open(&self, id: OpId, phase: &'static str) -> Option<Box<dyn Driver>> {
        self.shared.record.note(Heard::Phase(phase));
        works_on(id);
        let mut tries = 0;
        let opened = loop {
            {
                let mut failing = self.disk.failing();
                failing.set_opening(true);
                failing.lift();
                failing.set_quiet(tries >= OPENS_MAX);
            }
            let before = self.disk.faults();
            let opened = self.target.open(Arc::clone(&self.disk), &self.shared.plan.target);
            match opened {
                Err(error) if self.disk.faults() > before || error.injected_by.is_some() => tries += 1,
                opened => break opened,
            }
        };
        let mut failing = self.disk.failing();
        failing.set_opening(false);
        failing.set_quiet(false);
        drop(failing);
        works_on(0);
        let said = match &opened {
            Ok(driver) => Ok(driver.size()),
            Err(error) => Err(Failure { error: error.clone(), injected: false, beyond: false }),
        };
        self.shared.record.note(Heard::Opened(said));
        self.shared.record.note(Heard::Phase("run"));
        opened.ok()
    }

    /// Closes the image, and has it checked.
    fn close(&self, driver: &dyn Driver, id: OpId) {
        works_on(id);
        let before = self.disk.faults();
        self.disk.failing().set_opening(true);
        let closed = driver.close();
        self.disk.failing().set_opening(false);
        works_on(0);
        let closed = closed.map_err(|error| self.failure(error, before));
        self.shared.record.note(Heard::Closed(closed));
        if self.shared.check {
            self.shared.record.note(Heard::Checked(self.target.check(&self.disk.content())));
        }
    }

    fn failure(&self, error: IoError, before: usize) -> Failure {
        let injected = error.injected_by.is_some() || self.disk.faults() > before;
        Failure { error, injected, beyond: false }
    }

    /// Each queue's requests by a thread of its own.
    fn work<'a>(&self, driver: &dyn Driver, ops: impl Iterator<Item = &'a Op>) {
        let mut queues = BTreeMap::<u8, Vec<&Op>>::new();
        ops.for_each(|op| queues.entry(op.queue).or_default().push(op));
        let all = queues.values().flatten().map(|op| op.id).collect();
        let desk = Desk::new(&self.shared.record, &self.disk, all);
        let gate = Gate::default();
        let started = std::thread::scope(|scope| {
            machine::crew(scope, &gate, queues.values(), |ops| {
                for op in ops {
                    let op: &Op = op;
                    if !desk.wait_for(op) {
                        return;
                    }
                    if let Err(panic) = caught(|| perform(&desk, driver, op)) {
                        self.shared.record.note(Heard::Panicked(Some(op.id), panic));
                        self.shared.record.stop();
                    }
                    desk.ended(op.id);
                }
            })
        });
        if let Err(error) = started {
            self.shared.record.note(Heard::Unfit(format!("no thread could be started: {error}")));
            self.shared.record.stop();
        }
    }

    /// Faults stop, and everything is read; closed, opened, and read again (CM 4.15).
    fn end(&self, driver: Box<dyn Driver>) {
        let last = self.shared.plan.ops.iter().map(|op| op.id).max().unwrap_or(0);
        self.disk.set_calm(true);
        self.quiet();
        self.read_all(&*driver, last.saturating_add(1));
        self.close(&*driver, 0);
        drop(driver);
        if let Some(driver) = self.open(0, "end") {
            self.quiet();
            self.read_all(&*driver, last.saturating_add(2));
        }
    }

    fn quiet(&self) {
        let mut failing = self.disk.failing();
        failing.set_quiet(true);
        failing.lift();
        self.shared.record.note(Heard::Phase("end"));
    }

    fn read_all(&self, driver: &dyn Driver, id: OpId) {
        let record = &self.shared.record;
        let size = driver.size();
        record.note(Heard::Sent(id, Act::Read { range: ByteRange { start: 0, end: size }, vector: Vec::new() }));
        for part in Touched::closely(&self.shared.plan).pieces(size) {
            let mut data = vec![0xcc; usize::try_from(part.len()).unwrap_or(0)];
            match driver.read(part.start, &mut data) {
                Ok(()) => record.note(Heard::Read(id, part, data)),
                Err(error) => {
                    return record.note(Heard::Ended(id, Err(Failure { error, injected: false, beyond: false })));
                }
            }
        }
        record.note(Heard::Ended(id, Ok(())));
    }
}
