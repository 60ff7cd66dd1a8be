//! Sends neighbouring and overlapping writes as one.
//!
//! A write joins the batch that is forming. Whoever has the turn takes the batch, makes runs of what touches, and sends
//! them; everybody else finds the answer when the turn comes to them. What was sent by a request that is dropped goes
//! back into the batch, and may land until a drain, which the next turn waits for.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use blkproof_block::device::check_bounds;
use blkproof_block::{BlockDevice, BlockStatus, DeviceInfo, IoError, Preallocation, Result, WriteFlags, ZeroFlags};
use tokio::sync::Mutex;

use super::late::Late;
use super::{index, refuse_fast};
use crate::{Mutant, planted};

/// Bytes of zeroes written at once.
const ZEROES: u64 = 1 << 20;

#[derive(Clone, Debug)]
struct Write {
    ticket: u64,
    at: u64,
    data: Vec<u8>,
    fua: bool,
}

/// Several writes as one.
#[derive(Debug)]
struct Run {
    at: u64,
    data: Vec<u8>,
    fua: bool,
    tickets: Vec<u64>,
}

/// Merges the writes of a device.
#[derive(Debug)]
pub struct Merge<D> {
    below: D,
    forming: RefCell<Vec<Write>>,
    answers: RefCell<BTreeMap<u64, Result<()>>>,
    /// Requests that wait for an answer.
    waiting: RefCell<BTreeSet<u64>>,
    tickets: Cell<u64>,
    turn: Mutex<()>,
    late: Late,
}

/// A request's place in the batch, given up when it is dropped.
struct Place<'a, D> {
    merge: &'a Merge<D>,
    ticket: u64,
}

impl<D> Drop for Place<'_, D> {
    fn drop(&mut self) {
        self.merge.forming.borrow_mut().retain(|write| write.ticket != self.ticket);
        self.merge.answers.borrow_mut().remove(&self.ticket);
        self.merge.waiting.borrow_mut().remove(&self.ticket);
    }
}

/// A batch on its way; what has no answer yet, and still wants one, goes back if it is dropped.
struct Taken<'a, D> {
    merge: &'a Merge<D>,
    writes: Vec<Write>,
}

impl<D> Drop for Taken<'_, D> {
    fn drop(&mut self) {
        let answers = self.merge.answers.borrow();
        let waiting = self.merge.waiting.borrow();
        let mut forming = self.merge.forming.borrow_mut();
        let open = |write: &Write| waiting.contains(&write.ticket) && !answers.contains_key(&write.ticket);
        let left: Vec<Write> = self.writes.drain(..).filter(open).collect();
        forming.splice(0..0, left);
    }
}

impl<D: BlockDevice> Merge<D> {
    /// Over `below`.
    pub fn new(below: D) -> Self {
        let (forming, answers, waiting, tickets, turn, late) = Default::default();
        Self { below, forming, answers, waiting, tickets, turn, late }
    }

    async fn join(&self, at: u64, data: &[u8], fua: bool) -> Result<()> {
        let ticket = self.tickets.get().saturating_add(1);
        self.tickets.set(ticket);
        self.forming.borrow_mut().push(Write { ticket, at, data: data.to_vec(), fua });
        self.waiting.borrow_mut().insert(ticket);
        let _place = Place { merge: self, ticket };
        // Others may come before the batch leaves.
        futures_lite::future::yield_now().await;
        let _turn = self.turn.lock().await;
        if let Some(answer) = self.answers.borrow_mut().remove(&ticket) {
            return answer;
        }
        self.late.settle(&self.below).await?;
        let taken = Taken { merge: self, writes: std::mem::take(&mut *self.forming.borrow_mut()) };
        for run in runs(&taken.writes) {
            let flags = if run.fua { WriteFlags::FUA } else { WriteFlags::empty() };
            let sent = self.late.sending(self.below.write(run.at, &run.data, flags)).await;
            // What failed may lie outside of a request that is only a part of the run.
            let sent = sent.map_err(|error| IoError { first_bad: None, transferred: 0, ..error });
            let waiting = self.waiting.borrow();
            let here = run.tickets.iter().filter(|ticket| waiting.contains(ticket));
            self.answers.borrow_mut().extend(here.map(|ticket| (*ticket, sent.clone())));
        }
        drop(taken);
        let answer = self.answers.borrow_mut().remove(&ticket);
        answer.unwrap_or_else(|| Err(IoError::unsupported()))
    }
}

/// Makes runs of writes that overlap or touch. Of those that overlap the later one wins: all are in flight together.
fn runs(writes: &[Write]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for write in writes {
        let (mut at, mut end) = (write.at, write.at.saturating_add(write.data.len() as u64));
        let mut tickets = Vec::new();
        let mut fua = write.fua;
        let mut parts: Vec<(u64, Vec<u8>)> = Vec::new();
        // Whatever touches it becomes one run with it.
        runs.retain_mut(|run| {
            let stop = run.at.saturating_add(run.data.len() as u64);
            if run.at > end || stop < at {
                return true;
            }
            at = at.min(run.at);
            // With the defect, the run ends where the write that joined it last does.
            end = if planted(Mutant::M15) && run.at <= write.at { end } else { end.max(stop) };
            fua |= run.fua;
            tickets.append(&mut run.tickets);
            parts.push((run.at, std::mem::take(&mut run.data)));
            false
        });
        parts.push((write.at, write.data.clone()));
        tickets.push(write.ticket);
        let mut data = vec![0; index(end.saturating_sub(at))];
        for (start, bytes) in parts {
            let from = index(start.saturating_sub(at));
            let len = bytes.len().min(data.len().saturating_sub(from));
            if let (Some(out), Some(bytes)) = (data.get_mut(from..from.saturating_add(len)), bytes.get(..len)) {
                out.copy_from_slice(bytes);
            }
        }
        runs.push(Run { at, data, fua, tickets });
    }
    runs
}

impl<D: BlockDevice> BlockDevice for Merge<D> {
    fn info(&self) -> DeviceInfo {
        super::info("merge", &self.below, self.below.info().size)
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.below.read(at, buf).await
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        check_bounds(at, data.len() as u64, self.below.info().size)?;
        if flags.contains(WriteFlags::COMPRESSED) {
            return Err(IoError::unsupported());
        }
        if data.is_empty() { Ok(()) } else { self.join(at, data, flags.contains(WriteFlags::FUA)).await }
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        check_bounds(at, len, self.below.info().size)?;
        refuse_fast(flags)?;
        let mut done = 0;
        while done < len {
            let here = len.saturating_sub(done).min(ZEROES);
            let zeroes = vec![0; index(here)];
            self.join(at.saturating_add(done), &zeroes, flags.contains(ZeroFlags::FUA)).await?;
            done = done.saturating_add(here);
        }
        Ok(())
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        check_bounds(at, len, self.below.info().size)
    }

    async fn flush(&self) -> Result<()> {
        self.below.flush().await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        self.below.block_status(at, len).await
    }

    async fn resize(&self, _size: u64, _preallocation: Preallocation) -> Result<()> {
        Err(IoError::unsupported())
    }

    async fn drain(&self) -> Result<()> {
        // What a dropped request wrote may be on its way with the writes of others.
        let _turn = self.turn.lock().await;
        self.below.drain().await
    }

    async fn close(&self) -> Result<()> {
        self.below.flush().await?;
        self.below.close().await
    }
}
