//! What a mirror in the graph found, told to the user.

use std::cell::Cell;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Instant;

use blkproof_block::ByteRange;
use blkproof_fault::lab::Lab;
use blkproof_fault::notice::What;
use blkproof_verify::{Difference, Mismatch, OnMismatch, VerifyDriver};

/// Counts the mismatches of one run; every mirror of the run reports here.
#[derive(Clone, Default)]
pub(crate) struct Mismatches {
    seen: Rc<Cell<u64>>,
    as_qemu: bool,
    before_exit: Option<Rc<dyn Fn()>>,
    lab: Option<Rc<Lab>>,
}

impl Mismatches {
    /// The driver for mirrors that report here. `on_mismatch` holds for graphs that do not say.
    pub(crate) fn driver(&self, on_mismatch: OnMismatch) -> VerifyDriver {
        let start = Instant::now();
        let this = self.clone();
        VerifyDriver::new(move |mismatch| this.tell(mismatch))
            .on_mismatch(on_mismatch)
            .clock(move || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Says no more than QEMU's blkverify: its one line.
    pub(crate) fn in_qemu_words(mut self) -> Self {
        self.as_qemu = true;
        self
    }

    /// Tells `lab`'s listeners too.
    pub(crate) fn telling(mut self, lab: &Rc<Lab>) -> Self {
        self.lab = Some(Rc::clone(lab));
        self
    }

    /// Runs `last` before a mirror ends the program.
    pub(crate) fn before_exit(mut self, last: impl Fn() + 'static) -> Self {
        self.before_exit = Some(Rc::new(last));
        self
    }

    fn tell(&self, mismatch: &Mismatch) {
        if self.as_qemu {
            eprintln!("{}", mismatch.headline());
        } else {
            eprintln!("{mismatch}");
        }
        if let Some(lab) = self.lab.as_ref().filter(|lab| lab.notices().wanted()) {
            let range = ByteRange::at(mismatch.request.at, mismatch.request.len);
            let range = match &mismatch.difference {
                Difference::Content { ranges, .. } => ranges.first().copied().unwrap_or(range),
                _ => range,
            };
            let words = Rc::from(mismatch.headline().to_string());
            lab.notices().tell(&Rc::from("blkverify"), What::Mismatch { words, range });
        }
        self.seen.set(self.seen.get().saturating_add(1));
        if mismatch.on_mismatch == OnMismatch::Exit {
            if let Some(last) = &self.before_exit {
                last();
            }
            // At once and without closing anything, as QEMU does: the images stay as they were when it was seen.
            std::process::exit(1);
        }
    }

    /// How many there were.
    pub(crate) fn seen(&self) -> u64 {
        self.seen.get()
    }

    /// 1 if there was any.
    pub(crate) fn exit_code(&self) -> ExitCode {
        if self.seen() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
