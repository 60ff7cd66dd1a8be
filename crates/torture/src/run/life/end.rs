//! The end of a run: faults stop, and everything is compared (CM 4.15).

use std::rc::Rc;

use blkproof_block::{BlockDevice as _, ByteRange};
use blkproof_sim::Owner;

use super::Run;
use crate::oracle::Ending;
use crate::plan::{Act, CutPoint};
use crate::run::events::{QUIET, What};
use crate::run::finding::Finding;
use crate::run::{client, now};

impl Run<'_> {
    /// Faults stop; everything is drained, read, closed, checked, opened, and read again.
    pub(super) fn end(&mut self) {
        if self.full() || self.node.is_none() {
            return;
        }
        self.client.damage.set_quiet(true);
        self.client.phase.set("end");
        self.client.log.note(|| What::Begins(QUIET));
        if !self.compare(false) {
            return;
        }
        let planned = self.is_planned(CutPoint::End);
        if planned || !self.close(Owner::default()) {
            return;
        }
        if self.explorer.is_some() {
            self.explore(CutPoint::End);
        }
        if !self.full() && self.open(Owner::default(), "end") {
            self.client.damage.set_quiet(true);
            self.client.phase.set("end");
            self.client.log.note(|| What::Begins("all is read again"));
            self.compare(true);
            self.node = None;
        }
    }

    /// Drains, and reads what was touched. Whether the driver still works.
    pub(super) fn compare(&mut self, again: bool) -> bool {
        let Some(node) = self.node.clone() else { return false };
        let works = |run: &Self, what: &str, error: &blkproof_block::IoError| {
            if run.promises.recovers || again {
                let text = format!("{what} failed with '{error}', although faults have stopped");
                run.report(Finding::new("error-contract", "end", text));
            }
        };
        let drain = self.next_id();
        self.client.oracle().submit(drain, &Act::Drain);
        let draining = node.clone();
        match self.alone(Owner::default(), async move { draining.drain().await }) {
            Some(Ok(())) => self.client.oracle().end(drain, Ending::Done),
            Some(Err(error)) => {
                works(self, "a drain", &error);
                return true;
            }
            None => return false,
        }
        self.set_instant(true);
        // These reads take no moves, and are many.
        let noted = self.client.log.switch(false);
        let size = node.info().size;
        let read = self.next_id();
        let whole = ByteRange { start: 0, end: size };
        self.client.oracle().submit(read, &Act::Read { range: whole, vector: Vec::new() });
        let touched = Rc::clone(&self.touched);
        for part in touched.pieces(size) {
            if self.full() || self.halt.moved() {
                break;
            }
            let mut data = vec![0xcc; usize::try_from(part.len()).unwrap_or(0)];
            match now(node.read(part.start, &mut data)) {
                Some(Ok(())) => client::judge_read(&self.client, read, part, &data),
                Some(Err(error)) => {
                    works(self, &format!("a read of {part}"), &error);
                    break;
                }
                None => {
                    self.report(Finding::new("hang", "end", format!("a read of {part} does not end")));
                    return false;
                }
            }
        }
        self.client.oracle().end(read, Ending::Done);
        self.set_instant(false);
        self.client.log.switch(noted);
        !self.full()
    }
}
