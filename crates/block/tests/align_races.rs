//! `Aligned` under overlapping, reordered and dropped requests, against a model that knows what each byte may be.
//!
//! The device parks every request; a seeded scheduler lets any of them through, in any order. A dropped write may land
//! later, block by block, until a drain went through. The model is that of CM 4.1 to 4.5: a byte may hold a write that
//! was sent before the read returned, unless another successful write came wholly between the two; and what a read has
//! seen replaced does not come back.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use blkproof_block::align::{Aligned, Sabotage};
use blkproof_block::{
    BlockDevice, BlockStatus, Capabilities, DeviceInfo, Errno, IoError, Limits, Preallocation, Result, WriteFlags,
    ZeroFlags,
};

/// A small generator; a seed means the same for ever.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % bound as u64) as usize
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The device: every request waits for the scheduler.

#[derive(Clone, Debug)]
enum Op {
    Read { at: usize, len: usize },
    Write { at: usize, data: Vec<u8> },
    Zero { at: usize, len: usize },
    Discard { at: usize, len: usize },
    Resize { size: usize },
    Drain,
}

struct Parked {
    op: Op,
    dropped: bool,
}

#[derive(Default)]
struct Disk {
    bytes: Vec<u8>,
    parked: BTreeMap<u64, Parked>,
    answers: BTreeMap<u64, Result<Vec<u8>>>,
    next: u64,
}

#[derive(Clone)]
struct Parking {
    disk: Rc<RefCell<Disk>>,
    block: usize,
    grows: bool,
}

impl Parking {
    /// Waits its turn. Dropping the future before leaves the request behind, if it could have changed something.
    async fn ask(&self, op: Op) -> Result<Vec<u8>> {
        struct Ticket(Rc<RefCell<Disk>>, u64);
        impl Drop for Ticket {
            fn drop(&mut self) {
                let mut disk = self.0.borrow_mut();
                disk.answers.remove(&self.1);
                match disk.parked.get_mut(&self.1) {
                    Some(Parked { op: Op::Read { .. } | Op::Drain, .. }) => {
                        disk.parked.remove(&self.1);
                    }
                    Some(parked) => parked.dropped = true,
                    None => {}
                }
            }
        }
        let id = {
            let mut disk = self.disk.borrow_mut();
            let id = disk.next;
            disk.next += 1;
            disk.parked.insert(id, Parked { op, dropped: false });
            id
        };
        let ticket = Ticket(self.disk.clone(), id);
        poll_fn(|_| match ticket.0.borrow_mut().answers.remove(&id) {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        })
        .await
    }

    fn check(&self, at: u64, len: u64) {
        let (at, len, size) = (at as usize, len as usize, self.disk.borrow().bytes.len());
        assert!(at.is_multiple_of(self.block), "offset {at}");
        assert!(len.is_multiple_of(self.block) || at + len >= size, "{at}+{len} of {size}");
        assert!(self.grows || at + len <= size, "{at}+{len} of {size}");
    }

    /// Lets one request through, or gives a dropped one its fate.
    fn step(&self, random: &mut Random) {
        let mut disk = self.disk.borrow_mut();
        let count = disk.parked.len();
        if count == 0 {
            return;
        }
        let id = *disk.parked.keys().nth(random.below(count)).unwrap();
        let parked = disk.parked.remove(&id).unwrap();
        if parked.dropped {
            disk.land(&parked.op, self.block, random, false);
            return;
        }
        let answer = match parked.op {
            Op::Read { at, len } if at + len <= disk.bytes.len() => Ok(disk.bytes[at..at + len].to_vec()),
            Op::Read { .. } => Err(IoError::new(Errno::IO)),
            Op::Drain => {
                // Everything dropped before it was sent lands or vanishes now.
                let old: Vec<u64> =
                    disk.parked.iter().filter(|(i, p)| **i < id && p.dropped).map(|(i, _)| *i).collect();
                for id in old {
                    let parked = disk.parked.remove(&id).unwrap();
                    disk.land(&parked.op, self.block, random, false);
                }
                Ok(Vec::new())
            }
            op => {
                disk.land(&op, self.block, random, true);
                Ok(Vec::new())
            }
        };
        disk.answers.insert(id, answer);
    }
}

impl Disk {
    /// Does a change: whole, or with some blocks of it missing.
    fn land(&mut self, op: &Op, block: usize, random: &mut Random, whole: bool) {
        let (at, data) = match op {
            Op::Write { at, data } => (*at, data.clone()),
            Op::Zero { at, len } | Op::Discard { at, len } => (*at, vec![0; *len]),
            Op::Resize { size } => {
                if whole || random.below(2) == 0 {
                    self.bytes.resize(*size, 0);
                }
                return;
            }
            Op::Read { .. } | Op::Drain => return,
        };
        for (index, piece) in data.chunks(block).enumerate() {
            // A discarded block may stay as it is.
            let may_stay = !whole || matches!(op, Op::Discard { .. });
            if may_stay && random.below(2) == 0 {
                continue;
            }
            let at = at + index * block;
            if self.bytes.len() < at + piece.len() {
                self.bytes.resize(at + piece.len(), 0);
            }
            self.bytes[at..at + piece.len()].copy_from_slice(piece);
        }
    }
}

impl BlockDevice for Parking {
    fn info(&self) -> DeviceInfo {
        let block = self.block as u32;
        let grows = if self.grows { Capabilities::GROWS | Capabilities::RESIZE } else { Capabilities::empty() };
        DeviceInfo {
            limits: Limits {
                alignment: block,
                memory_alignment: 16,
                max_transfer: 2 * block,
                zero_alignment: block,
                discard_alignment: block,
                ..Limits::NONE
            },
            capabilities: Capabilities::FUA | grows,
            ..DeviceInfo::new("parking", self.disk.borrow().bytes.len() as u64)
        }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.check(at, buf.len() as u64);
        assert!(buf.as_ptr().addr().is_multiple_of(16) && buf.len() <= 2 * self.block);
        buf.copy_from_slice(&self.ask(Op::Read { at: at as usize, len: buf.len() }).await?);
        Ok(())
    }

    async fn write(&self, at: u64, data: &[u8], _: WriteFlags) -> Result<()> {
        self.check(at, data.len() as u64);
        assert!(data.as_ptr().addr().is_multiple_of(16) && data.len() <= 2 * self.block);
        self.ask(Op::Write { at: at as usize, data: data.to_vec() }).await.map(drop)
    }

    async fn write_zeroes(&self, at: u64, len: u64, _: ZeroFlags) -> Result<()> {
        self.check(at, len);
        self.ask(Op::Zero { at: at as usize, len: len as usize }).await.map(drop)
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        self.check(at, len);
        self.ask(Op::Discard { at: at as usize, len: len as usize }).await.map(drop)
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn block_status(&self, _: u64, len: u64) -> Result<BlockStatus> {
        Ok(BlockStatus::data(len, None))
    }

    async fn resize(&self, size: u64, _: Preallocation) -> Result<()> {
        self.ask(Op::Resize { size: size as usize }).await.map(drop)
    }

    async fn drain(&self) -> Result<()> {
        self.ask(Op::Drain).await.map(drop)
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The model.

/// A change of some bytes to one value, which tells it from the other changes (but zeroes).
struct Change {
    at: usize,
    end: usize,
    value: u8,
    submitted: u64,
    /// When it was over: answered, or dropped and then drained.
    completed: Option<u64>,
    /// It certainly replaced what was there.
    settles: bool,
}

/// What a read has seen.
struct Seen {
    at: usize,
    bytes: Vec<u8>,
    sent: u64,
    completed: u64,
}

struct Model {
    clock: u64,
    changes: Vec<Change>,
    seen: Vec<Seen>,
}

impl Model {
    fn new(size: usize) -> Self {
        let initial = Change { at: 0, end: size, value: 255, submitted: 0, completed: Some(0), settles: true };
        // What a device grows by is zero.
        let beyond = Change { at: size, end: usize::MAX, value: 0, submitted: 0, completed: Some(0), settles: true };
        Self { clock: 0, changes: vec![initial, beyond], seen: Vec::new() }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Judges bytes read between `sent` and now.
    fn judge(&self, at: usize, bytes: &[u8], sent: u64) -> Result<(), String> {
        let mut edges = vec![at, at + bytes.len()];
        for change in &self.changes {
            edges.extend([change.at, change.end].into_iter().filter(|&e| e > at && e < at + bytes.len()));
        }
        edges.sort_unstable();
        edges.dedup();
        for pair in edges.windows(2) {
            let covering: Vec<&Change> = self.changes.iter().filter(|c| c.at <= pair[0] && pair[1] <= c.end).collect();
            let fresh = |change: &Change| match change.completed {
                None => true,
                Some(completed) => !covering.iter().any(|other| {
                    other.settles && completed < other.submitted && other.completed.is_some_and(|done| done < sent)
                }),
            };
            let mut known = None;
            for offset in pair[0]..pair[1] {
                let value = bytes[offset - at];
                let latest = match known {
                    Some((known, latest)) if known == value => latest,
                    _ => {
                        let candidates = covering.iter().filter(|change| change.value == value && fresh(change));
                        let Some(latest) = candidates.map(|change| change.completed.unwrap_or(u64::MAX)).max() else {
                            return Err(format!("byte {offset:#x} reads as {value}, stale or never written there"));
                        };
                        known = Some((value, latest));
                        latest
                    }
                };
                // Whatever wrote this value was over when a read saw another one.
                let back = self.seen.iter().any(|seen| {
                    let then = offset.checked_sub(seen.at).and_then(|index| seen.bytes.get(index));
                    seen.completed < sent && latest < seen.sent && then.is_some_and(|&then| then != value)
                });
                if back {
                    return Err(format!("byte {offset:#x} reads as {value} again, after a read saw it replaced"));
                }
            }
        }
        Ok(())
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The run.

enum Task {
    Read { at: usize, sent: u64, future: Pin<Box<dyn Future<Output = Result<Vec<u8>>>>> },
    Change { index: usize, future: Pin<Box<dyn Future<Output = Result<()>>>> },
}

struct Setting {
    block: usize,
    size: usize,
    grows: bool,
    steps: usize,
    drops: bool,
    sabotage: Option<Sabotage>,
}

fn run(seed: u64, setting: &Setting) -> Result<(), String> {
    let Setting { block, size, grows, steps, drops, sabotage } = *setting;
    let mut random = Random(seed);
    let parking =
        Parking { disk: Rc::new(RefCell::new(Disk { bytes: vec![255; size], ..Disk::default() })), block, grows };
    let device = Rc::new(match sabotage {
        None => Aligned::new(parking.clone()),
        Some(sabotage) => Aligned::sabotaged(parking.clone(), sabotage),
    });
    let mut model = Model::new(size);
    let mut tasks: Vec<Task> = Vec::new();
    let mut values = 1..=254u8;
    let cx = &mut Context::from_waker(Waker::noop());

    for step in 0.. {
        let winding_down = step >= steps;
        if winding_down && tasks.is_empty() {
            break;
        }
        assert!(step < steps * 100, "seed {seed}: requests wait for ever");
        match random.below(10) {
            0..=3 if !winding_down && tasks.len() < 6 => {
                let limit = if grows { size + block } else { size };
                let now = parking.disk.borrow().bytes.len();
                let longest = if random.below(4) == 0 { 4 * block } else { block };
                let len = 1 + random.below(longest);
                let at = random.below(limit);
                let (at, len) = match random.below(3) {
                    0 => (at / block * block, len.div_ceil(block) * block),
                    _ => (at, len),
                };
                let kind = random.below(10);
                let end = if kind >= 6 || !grows { now } else { limit + block };
                let len = len.min(end.saturating_sub(at));
                if len == 0 {
                    continue;
                }
                let (device, submitted) = (device.clone(), model.tick());
                let mut change = |value, settles| {
                    model.changes.push(Change { at, end: at + len, value, submitted, completed: None, settles });
                    model.changes.len() - 1
                };
                tasks.push(match kind {
                    0..=3 => {
                        let Some(value) = values.next() else { continue };
                        let future =
                            async move { device.write(at as u64, &vec![value; len], WriteFlags::empty()).await };
                        Task::Change { index: change(value, true), future: Box::pin(future) }
                    }
                    4 | 5 => {
                        let future =
                            async move { device.write_zeroes(at as u64, len as u64, ZeroFlags::empty()).await };
                        Task::Change { index: change(0, true), future: Box::pin(future) }
                    }
                    6 => {
                        let future = async move { device.discard(at as u64, len as u64).await };
                        Task::Change { index: change(0, false), future: Box::pin(future) }
                    }
                    _ => {
                        let future = async move {
                            let mut buf = vec![0; len];
                            device.read(at as u64, &mut buf).await.map(|()| buf)
                        };
                        Task::Read { at, sent: submitted, future: Box::pin(future) }
                    }
                });
            }
            4 if drops && !winding_down && !tasks.is_empty() => {
                let index = random.below(tasks.len());
                if let Task::Change { index, .. } = tasks.swap_remove(index) {
                    // Open for good, and never a certain replacement. Stricter would be: until the next drain.
                    model.changes[index].settles = false;
                }
            }
            5..=7 => parking.step(&mut random),
            _ => {}
        }
        let mut index = 0;
        while index < tasks.len() {
            let finished = match &mut tasks[index] {
                Task::Read { at, sent, future } => match future.as_mut().poll(cx) {
                    Poll::Pending => false,
                    Poll::Ready(result) => {
                        let bytes = result.map_err(|error| format!("a read failed: {error}"))?;
                        model.judge(*at, &bytes, *sent)?;
                        let completed = model.tick();
                        model.seen.push(Seen { at: *at, bytes, sent: *sent, completed });
                        true
                    }
                },
                Task::Change { index, future } => match future.as_mut().poll(cx) {
                    Poll::Pending => false,
                    Poll::Ready(result) => {
                        result.map_err(|error| format!("a write failed: {error}"))?;
                        let now = model.tick();
                        model.changes[*index].completed = Some(now);
                        true
                    }
                },
            };
            if finished {
                drop(tasks.swap_remove(index));
            } else {
                index += 1;
            }
        }
    }

    // Drain, then read everything.
    let mut drain = Box::pin(device.drain());
    while drain.as_mut().poll(cx).is_pending() {
        parking.step(&mut random);
    }
    let disk = parking.disk.borrow();
    assert!(disk.parked.is_empty(), "seed {seed}: something is left after the drain");
    let now = model.tick();
    model.judge(0, &disk.bytes, now)
}

const SMALL: Setting = Setting { block: 64, size: 64 * 5, grows: false, steps: 160, drops: true, sabotage: None };

#[test]
fn no_neighbour_is_ever_taken_back() {
    for seed in 0..1000 {
        run(seed, &SMALL).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn nor_without_dropping() {
    for seed in 0..500 {
        run(seed, &Setting { drops: false, ..SMALL }).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn nor_at_the_alignment_of_real_disks() {
    let setting = Setting { block: 4096, size: 4096 * 4, steps: 100, ..SMALL };
    for seed in 0..100 {
        run(seed, &setting).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn nor_at_an_odd_end() {
    for (size, grows) in [(64 * 4 + 7, false), (64 * 4 + 7, true), (64 * 4, true), (63, true)] {
        for seed in 0..500 {
            let setting = Setting { size, grows, ..SMALL };
            run(seed, &setting).unwrap_or_else(|error| panic!("seed {seed}, size {size}, grows {grows}: {error}"));
        }
    }
}

/// A write that waited for a resize sees the size it left, not the one it was sent at.
#[test]
fn the_end_moves_while_a_write_waits() {
    for (grows, size, at, len, want) in [
        (false, 150, 200, 20, None),
        (false, 150, 140, 20, None),
        (false, 150, 140, 5, Some(150)),
        (true, 150, 140, 5, Some(150)),
        (true, 150, 140, 20, Some(160)),
        (true, 150, 200, 20, Some(220)),
        (true, 400, 255, 20, Some(400)),
    ] {
        let row = format!("resize to {size}, then {at}+{len}, grows {grows}");
        let parking = Parking {
            disk: Rc::new(RefCell::new(Disk { bytes: vec![255; 261], ..Disk::default() })),
            block: 64,
            grows,
        };
        let device = Aligned::new(parking.clone());
        let cx = &mut Context::from_waker(Waker::noop());
        let mut random = Random(1);
        let data = vec![7; len];
        let mut resize = Box::pin(device.resize(size, Preallocation::Off));
        assert!(resize.as_mut().poll(cx).is_pending());
        let mut write = Box::pin(device.write(at, &data, WriteFlags::empty()));
        assert!(write.as_mut().poll(cx).is_pending(), "{row}: waits");
        assert_eq!(parking.disk.borrow().parked.len(), 1, "{row}: the device has not heard of the write");
        parking.step(&mut random);
        assert!(resize.as_mut().poll(cx).is_ready());
        let done = loop {
            match write.as_mut().poll(cx) {
                Poll::Ready(done) => break done,
                Poll::Pending => parking.step(&mut random),
            }
        };
        let bytes = &parking.disk.borrow().bytes;
        assert_eq!(done.is_ok(), want.is_some(), "{row}: {done:?}");
        assert_eq!(bytes.len(), want.unwrap_or(size as usize), "{row}");
        let written = bytes.iter().filter(|&&byte| byte == 7).count();
        assert_eq!(written, if want.is_some() { len } else { 0 }, "{row}");
    }
}

/// The tests above would see the bugs they are there for.
#[test]
fn a_missing_lock_and_a_missing_drain_are_found() {
    for (sabotage, drops) in [(Sabotage::NoLock, false), (Sabotage::NoLock, true), (Sabotage::NoDrain, true)] {
        let setting = Setting { drops, sabotage: Some(sabotage), ..SMALL };
        let found = (0..500).filter(|&seed| run(seed, &setting).is_err()).count();
        assert!(found > 0, "{sabotage:?}, drops: {drops}: no seed of 500 finds it");
    }
}
