//! Power cuts during a recovery.

use std::cell::RefCell;
use std::rc::Rc;

use blkproof_sim::disk::Crash;
use blkproof_sim::{IoKind, SimDisk};

/// Moments during one recovery at which the power goes again.
const MOMENTS_OF_RECOVERY: usize = 3;

/// The moments during a recovery at which a power cut has most to choose from: when a flush is sent.
pub(super) struct Moments(Rc<RefCell<Vec<Crash>>>);

impl Moments {
    /// Begins to take them down, if they are asked for.
    pub(super) fn of(disk: &SimDisk, depth: u8) -> Self {
        let crashes: Rc<RefCell<Vec<Crash>>> = Rc::default();
        if depth > 0 {
            let (into, of) = (Rc::clone(&crashes), disk.clone());
            disk.set_adversary(Some(Box::new(move |info| {
                let mut into = into.borrow_mut();
                if info.kind == IoKind::Flush && into.len() < MOMENTS_OF_RECOVERY {
                    into.push(of.crash());
                }
                None
            })));
        }
        Self(crashes)
    }

    /// Those that there were, and the end of the recovery.
    pub(super) fn end(self, disk: &SimDisk) -> Vec<Crash> {
        let mut crashes = std::mem::take(&mut *self.0.borrow_mut());
        let any = !crashes.is_empty();
        disk.set_adversary(None);
        if any {
            crashes.push(disk.crash());
        }
        crashes
    }
}
