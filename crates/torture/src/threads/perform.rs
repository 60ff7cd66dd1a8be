//! One request by one thread.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};

use blkproof_block::{ByteRange, Result, WriteFlags, ZeroFlags};

use super::disk::{Disk, lock, works_on};
use super::driver::Driver;
use super::record::{Failure, Heard, Record};
use crate::plan::{Act, Op, OpId};
use crate::stamp;

/// What the queues of one life share.
#[derive(Debug)]
pub(super) struct Desk<'a> {
    record: &'a Record,
    disk: &'a Disk,
    /// Requests that have not ended.
    missing: Mutex<BTreeSet<OpId>>,
    ended: Condvar,
}

impl<'a> Desk<'a> {
    /// For a life with these requests; those of lives before it have ended.
    pub(super) fn new(record: &'a Record, disk: &'a Disk, missing: BTreeSet<OpId>) -> Self {
        Self { record, disk, missing: Mutex::new(missing), ended: Condvar::new() }
    }

    /// Waits for what has to come first. False if nothing is to be begun any more.
    pub(super) fn wait_for(&self, op: &Op) -> bool {
        let mut missing = lock(&self.missing);
        while !self.record.is_stopped() && op.after.iter().any(|id| missing.contains(id)) {
            missing = self.ended.wait(missing).unwrap_or_else(PoisonError::into_inner);
        }
        !self.record.is_stopped()
    }

    /// A request has ended, whichever way.
    pub(super) fn ended(&self, id: OpId) {
        lock(&self.missing).remove(&id);
        self.ended.notify_all();
    }
}

/// Asks the driver, and takes down what is heard.
pub(super) fn perform(desk: &Desk<'_>, driver: &dyn Driver, op: &Op) {
    let data = match op.act {
        Act::Write { range, compressed, .. } => {
            let mut data = vec![0; usize::try_from(range.len()).unwrap_or(0)];
            match compressed {
                true => stamp::fill_compressible(&mut data, range.start, op.id),
                false => stamp::fill(&mut data, range.start, op.id),
            }
            data
        }
        _ => Vec::new(),
    };
    let before = desk.disk.faults();
    works_on(op.id);
    desk.record.note(Heard::Sent(op.id, op.act.clone()));
    let result = ask(desk, driver, op, &data);
    let result = result.map_err(|error| Failure {
        injected: error.injected_by.is_some() || desk.disk.faults() > before,
        beyond: op.act.range().is_some_and(|range| range.end > driver.size()),
        error,
    });
    desk.record.note(Heard::Ended(op.id, result));
    works_on(0);
}

fn ask(desk: &Desk<'_>, driver: &dyn Driver, op: &Op, data: &[u8]) -> Result<()> {
    match &op.act {
        Act::Read { range, vector } => {
            let whole = [u32::try_from(range.len()).unwrap_or(u32::MAX)];
            let mut at = range.start;
            for &len in if vector.is_empty() { &whole[..] } else { vector } {
                let mut data = vec![0xcc; usize::try_from(len).unwrap_or(0)];
                driver.read(at, &mut data)?;
                desk.record.note(Heard::Read(op.id, ByteRange::at(at, u64::from(len)), data));
                at = at.saturating_add(u64::from(len));
            }
            Ok(())
        }
        Act::Write { range, fua, compressed } => {
            let mut flags = WriteFlags::empty();
            flags.set(WriteFlags::FUA, *fua);
            flags.set(WriteFlags::COMPRESSED, *compressed);
            driver.write(range.start, data, flags)
        }
        Act::Zeroes { range, fua, unmap, no_fallback } => {
            let mut flags = ZeroFlags::empty();
            flags.set(ZeroFlags::FUA, *fua);
            flags.set(ZeroFlags::MAY_UNMAP, *unmap);
            flags.set(ZeroFlags::NO_FALLBACK, *no_fallback);
            driver.write_zeroes(range.start, range.len(), flags)
        }
        Act::Discard { range } => driver.discard(range.start, range.len()),
        Act::Flush => driver.flush(),
        // Calls return when they are done: there is nothing to wait for. The rest is none for threads.
        Act::Drain | Act::Status { .. } | Act::Resize { .. } | Act::Reopen | Act::Cut { .. } => Ok(()),
    }
}
