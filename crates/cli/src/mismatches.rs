//! What a mirror in the graph found, told to the user.

use std::cell::Cell;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Instant;

use blkproof_verify::{Mismatch, OnMismatch, VerifyDriver};

/// Counts the mismatches of one run; every mirror of the run reports here.
#[derive(Clone, Default)]
pub(crate) struct Mismatches {
    seen: Rc<Cell<u64>>,
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

    fn tell(&self, mismatch: &Mismatch) {
        eprintln!("{mismatch}");
        self.seen.set(self.seen.get().saturating_add(1));
        if mismatch.on_mismatch == OnMismatch::Exit {
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
