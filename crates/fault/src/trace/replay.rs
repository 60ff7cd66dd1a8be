//! Sends the requests of a trace again, with the overlaps they had.
//!
//! A request is sent once every request that was over when it came is over again, and not before its time if times are
//! kept. Nothing else holds it back, so that requests overlap as they did, unless what is under way fills the memory
//! that a replay takes ([`LENGTH_MAX`]): such waits are counted. A write whose data the trace does not have
//! writes a pattern that follows from its number.

use std::fmt;
use std::time::Duration;

use blkproof_block::choice::hash;
use blkproof_block::{BlockDevice, IoError, Preallocation, Result, WriteFlags, ZeroFlags};
use futures_lite::future::or;
use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::format::{Outcome, Record, TraceFlags};
use super::plan::{Plan, Step};
use crate::clock::SharedClock;
use crate::request::Operation;
use crate::rule::Failure;

/// Longest read or write that is sent, and most bytes under way: memory for them is taken on a trace's word.
pub const LENGTH_MAX: u64 = 1 << 30;

/// Differences of data that are looked at more closely.
const DATA_LOOKED_AT: u64 = 1000;

/// When requests are sent.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Speed {
    /// As soon as what they wait for is over.
    AsFastAsPossible,
    /// Not before their time, which goes so many times as fast as when the trace was made.
    Times(f64),
}

/// A request that ended in another way than it did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The request, and how it ended then.
    pub record: Record,
    /// How it ended now.
    pub now: Now,
}

/// How a request ended now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Now {
    /// It was done.
    Done,
    /// It failed.
    Failed(Box<IoError>),
    /// It brought data with this checksum.
    Data(u32),
    /// It is longer than anything that is sent.
    NotSent,
}

/// What was done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Requests sent.
    pub requests: u64,
    /// Those that failed, as recorded or not.
    pub failed: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Most requests under way at one time.
    pub in_flight_max: usize,
    /// Requests that had to wait for memory, though not for the order: they overlap less than they did.
    pub held_back: u64,
    /// Time it took.
    pub elapsed: Duration,
    /// Requests that ended in another way.
    pub differences: u64,
    /// Reads whose data was compared.
    pub compared: u64,
    /// Reads whose data differs, and may: a change of the same bytes was under way beside them.
    pub open: u64,
    /// Requests that had been given up, whose end can not be compared.
    pub cancelled: u64,
}

impl fmt::Display for Difference {
    /// `request 17 (read of 4096 bytes at 0x2000): was ok, is EIO at 0x2200`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { seq, operation, offset, bytes, outcome, crc32c, .. } = &self.record;
        match operation {
            Operation::Flush => write!(f, "request {seq} (flush): ")?,
            Operation::Resize => write!(f, "request {seq} (resize to {bytes} bytes): ")?,
            _ => write!(f, "request {seq} ({operation} of {bytes} bytes at {offset:#x}): ")?,
        }
        match (outcome, &self.now) {
            (_, Now::Data(now)) => {
                let then = crc32c.unwrap_or(0);
                return write!(f, "read data with checksum {then:08x}, now {now:08x}");
            }
            (_, Now::NotSent) => return write!(f, "not sent, it is longer than {LENGTH_MAX} bytes"),
            (Outcome::Done | Outcome::Cancelled, _) => write!(f, "was ok")?,
            (Outcome::Failed(error), _) => write!(f, "was {}", Words(error))?,
        }
        match &self.now {
            Now::Failed(error) => write!(f, ", is {}", Words(error)),
            _ => write!(f, ", is ok"),
        }
    }
}

struct Words<'a>(&'a IoError);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let IoError { errno, device, first_bad, injected_by, .. } = self.0;
        write!(f, "{}", Failure { errno: *errno, device: *device })?;
        if let Some(bad) = first_bad {
            write!(f, " at {bad}")?;
        }
        if let Some(rule) = injected_by {
            write!(f, " (injected by rule {rule})")?;
        }
        Ok(())
    }
}

/// Sends everything, and tells of each request that ended in another way.
///
/// Data of reads is compared if [`Plan::has_data`]; the disk is taken to hold what it held when the trace was begun.
pub async fn replay<D: BlockDevice>(
    plan: &Plan,
    device: &D,
    clock: &SharedClock,
    speed: Speed,
    mut tell: impl FnMut(Difference),
) -> Summary {
    let mut summary = Summary::default();
    let begin = clock.now();
    let first_ns = plan.steps.first().map_or(0, |step| step.record.submit_ns);
    let due = |step: &Step| match speed {
        Speed::AsFastAsPossible => Duration::ZERO,
        Speed::Times(speed) => {
            let ns = step.record.submit_ns.saturating_sub(first_ns) as f64 / speed.max(f64::MIN_POSITIVE);
            // Past the end of time is never.
            begin.saturating_add(Duration::try_from_secs_f64(ns / 1e9).unwrap_or(Duration::MAX))
        }
    };
    let mut over = vec![false; plan.steps.len()];
    // How many, in the order of completion, are over without a gap.
    let mut reached = 0;
    let mut waiting = plan.steps.iter().peekable();
    let mut running = FuturesUnordered::new();
    let mut memory: u64 = 0;
    let mut held_back = None;
    loop {
        let mut early = None;
        while let Some(step) = waiting.peek() {
            if step.needs > reached {
                break;
            }
            if let Some(left) = due(step).checked_sub(clock.now()).filter(|left| !left.is_zero()) {
                early = Some(left);
                break;
            }
            let step = *step;
            if memory.saturating_add(takes(step)) > LENGTH_MAX && !running.is_empty() {
                held_back = Some(step.record.seq);
                break;
            }
            if held_back.take() == Some(step.record.seq) {
                summary.held_back += 1;
            }
            memory = memory.saturating_add(takes(step));
            waiting.next();
            running.push(async move { (step, perform(device, step).await) });
            summary.in_flight_max = summary.in_flight_max.max(running.len());
        }
        let ended = match early {
            Some(left) if running.is_empty() => {
                clock.sleep(left).await;
                continue;
            }
            Some(left) => {
                let slept = async {
                    clock.sleep(left).await;
                    None
                };
                match or(running.next(), slept).await {
                    Some(ended) => ended,
                    None => continue,
                }
            }
            None => match running.next().await {
                Some(ended) => ended,
                // A plan never waits for what was not sent: nothing is left.
                None => break,
            },
        };
        let (step, result) = ended;
        memory = memory.saturating_sub(takes(step));
        if let Some(over) = over.get_mut(step.place) {
            *over = true;
        }
        while over.get(reached).is_some_and(|over| *over) {
            reached += 1;
        }
        if let Some(now) = judge(plan, step, result, &mut summary) {
            summary.differences += 1;
            tell(Difference { record: step.record.clone(), now });
        }
    }
    summary.elapsed = clock.now().saturating_sub(begin);
    summary
}

/// Bytes taken for a request while it is under way. What is written from the trace is in memory already.
fn takes(step: &Step) -> u64 {
    let Record { operation, bytes, .. } = step.record;
    match (operation, &step.data) {
        (Operation::Read, _) | (Operation::Write, None) if bytes <= LENGTH_MAX => bytes,
        _ => 0,
    }
}

/// What a request brought.
enum Brought {
    Nothing,
    Checksum(u32),
    NotSent,
}

async fn perform<D: BlockDevice>(device: &D, step: &Step) -> Result<Brought> {
    let Record { operation, offset, bytes, flags, .. } = step.record;
    let moves = matches!(operation, Operation::Read | Operation::Write);
    let Some(len) = usize::try_from(bytes).ok().filter(|_| !moves || bytes <= LENGTH_MAX) else {
        return Ok(Brought::NotSent);
    };
    match operation {
        Operation::Read => {
            let mut buf = vec![0; len];
            device.read(offset, &mut buf).await?;
            return Ok(Brought::Checksum(crc32c::crc32c(&buf)));
        }
        Operation::Write => {
            let mut how = WriteFlags::empty();
            how.set(WriteFlags::FUA, flags.contains(TraceFlags::FUA));
            how.set(WriteFlags::COMPRESSED, flags.contains(TraceFlags::COMPRESSED));
            match &step.data {
                Some(data) => device.write(offset, data, how).await?,
                None => device.write(offset, &pattern(step.record.seq, len), how).await?,
            }
        }
        Operation::WriteZeroes => {
            let mut how = ZeroFlags::empty();
            how.set(ZeroFlags::FUA, flags.contains(TraceFlags::FUA));
            how.set(ZeroFlags::MAY_UNMAP, flags.contains(TraceFlags::MAY_UNMAP));
            how.set(ZeroFlags::NO_FALLBACK, flags.contains(TraceFlags::NO_FALLBACK));
            device.write_zeroes(offset, bytes, how).await?;
        }
        Operation::Discard => device.discard(offset, bytes).await?,
        Operation::Flush => device.flush().await?,
        Operation::BlockStatus if bytes == 0 => {}
        Operation::BlockStatus => {
            device.block_status(offset, bytes).await?;
        }
        Operation::Resize => device.resize(bytes, Preallocation::Off).await?,
    }
    Ok(Brought::Nothing)
}

/// Bytes that no other request writes.
fn pattern(seq: u64, len: usize) -> Vec<u8> {
    let mut data = Vec::with_capacity(len.saturating_add(8));
    for word in 0.. {
        if data.len() >= len {
            break;
        }
        data.extend_from_slice(&hash(seq, word).to_le_bytes());
    }
    data.truncate(len);
    data
}

fn judge(plan: &Plan, step: &Step, result: Result<Brought>, summary: &mut Summary) -> Option<Now> {
    let record = &step.record;
    summary.requests += 1;
    match (&result, record.operation) {
        (Ok(Brought::NotSent), _) => {
            summary.requests -= 1;
            return Some(Now::NotSent);
        }
        (Ok(_), Operation::Read) => summary.bytes_read = summary.bytes_read.saturating_add(record.bytes),
        (Ok(_), Operation::Write) => summary.bytes_written = summary.bytes_written.saturating_add(record.bytes),
        (Ok(_), _) => {}
        (Err(_), _) => summary.failed += 1,
    }
    match (&record.outcome, result) {
        (Outcome::Cancelled, _) => {
            summary.cancelled += 1;
            None
        }
        (Outcome::Done, Ok(Brought::Checksum(now))) if plan.has_data() => {
            summary.compared += 1;
            if record.crc32c.is_none_or(|then| then == now) {
                return None;
            }
            let looked_at = summary.open + summary.differences < DATA_LOOKED_AT;
            if looked_at && plan.is_open(record) {
                summary.open += 1;
                return None;
            }
            Some(Now::Data(now))
        }
        (Outcome::Done, Ok(_)) => None,
        (Outcome::Failed(_), Ok(_)) => Some(Now::Done),
        (Outcome::Failed(then), Err(now))
            if (then.errno, then.first_bad, then.device) == (now.errno, now.first_bad, now.device) =>
        {
            None
        }
        (_, Err(now)) => Some(Now::Failed(Box::new(now))),
    }
}
