//! The disk that all threads share.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use blkproof_block::{ByteRange, Errno, IoError, Result};
use blkproof_sim::{Fault, IoInfo, IoKey, IoKind, Owner};

use super::pauses::{Pauses, Site};
use crate::plan::{FaultSpec, OpId};
use crate::run::Failing;
use crate::target::Content;

/// What is done whole: two requests at once leave one or the other of it.
const SECTOR: u64 = 512;
const PAGE: u64 = 4096;

thread_local! {
    /// The request that this thread works on, and how many it has sent below for it.
    static WORKS_ON: Cell<(OpId, u32)> = const { Cell::new((0, 0)) };
}

/// From now on this thread works on this request; 0: on none.
pub(super) fn works_on(op: OpId) {
    WORKS_ON.set((op, 0));
}

/// What ends a thread of a run that was given up.
pub(super) struct GivenUp;

/// A disk in memory, for a driver with several threads.
///
/// A sector of 512 bytes is read and written whole; a request is not: of two at once, each sector has one or the other.
/// Requests are durable when they return, in the order in which their sectors were done; there is no power cut that could
/// tell. A request takes a while, during which other threads go on, and fails where the plan says so.
#[derive(Debug)]
pub struct Disk {
    content: Mutex<Bytes>,
    failing: Mutex<Failing>,
    grows: bool,
    pauses: Pauses,
    /// Requests of threads that the run does not know.
    strangers: AtomicU32,
    /// Nothing takes time any more.
    calm: AtomicBool,
    given_up: AtomicBool,
}

#[derive(Debug)]
struct Bytes {
    size: u64,
    /// By number; what is not there is zero.
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Disk {
    pub(super) fn new(content: &Content, grows: bool, failing: Failing, pauses: Pauses) -> Self {
        let mut bytes = Bytes { size: content.size(), pages: BTreeMap::new() };
        for (at, page) in content.pages() {
            bytes.write(at, page);
        }
        // The last page may reach beyond the end.
        bytes.size = content.size();
        Self {
            content: bytes.into(),
            failing: failing.into(),
            grows,
            pauses,
            strangers: 0.into(),
            calm: false.into(),
            given_up: false.into(),
        }
    }

    /// Bytes it has.
    pub fn size(&self) -> u64 {
        lock(&self.content).size
    }

    /// Reads.
    ///
    /// # Errors
    /// What the plan makes fail, and ranges beyond the end.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let range = self.inside(at, buf.len() as u64, false)?;
        self.request(IoKind::Read, range, false, |content, part| {
            if let Some(out) = buf.get_mut(within(range, part)) {
                content.read(part.start, out);
            }
        })
    }

    /// Writes.
    ///
    /// # Errors
    /// What the plan makes fail, and ranges beyond the end of a disk that does not grow.
    pub fn write(&self, at: u64, data: &[u8]) -> Result<()> {
        let range = self.inside(at, data.len() as u64, self.grows)?;
        self.request(IoKind::Write, range, false, |content, part| {
            if let Some(data) = data.get(within(range, part)) {
                content.write(part.start, data);
            }
        })
    }

    /// Writes zeroes.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_zeroes(&self, at: u64, len: u64) -> Result<()> {
        let range = self.inside(at, len, self.grows)?;
        let zeroes = vec![0; index(SECTOR)];
        self.request(IoKind::Zeroes, range, false, |content, part| {
            if let Some(zeroes) = zeroes.get(..index(part.len())) {
                content.write(part.start, zeroes);
            }
        })
    }

    /// Flushes. Nothing waits to be, but it can fail.
    ///
    /// # Errors
    /// What the plan makes fail.
    pub fn flush(&self) -> Result<()> {
        self.request(IoKind::Flush, ByteRange::at(0, 0), false, |_, _| {})
    }

    fn inside(&self, at: u64, len: u64, beyond: bool) -> Result<ByteRange> {
        let end = at.checked_add(len).ok_or(IoError::new(Errno::INVAL))?;
        match beyond || end <= self.size() {
            true => Ok(ByteRange { start: at, end }),
            false => Err(IoError::new(Errno::INVAL)),
        }
    }

    fn request(
        &self,
        kind: IoKind,
        range: ByteRange,
        fua: bool,
        mut effect: impl FnMut(&mut Bytes, ByteRange),
    ) -> Result<()> {
        if self.given_up.load(Ordering::Relaxed) {
            resume_unwind(Box::new(GivenUp));
        }
        let key = self.next_key();
        let fault = lock(&self.failing).judge(&IoInfo { key, kind, range, fua }).map(|(_, fault)| fault);
        if let Some(Fault { immediate: true, error, .. }) = &fault {
            return Err(error.clone());
        }
        let pause = |site| {
            if !self.calm.load(Ordering::Relaxed) {
                self.pauses.at(key, site);
            }
        };
        pause(Site::Before);
        let part = fault.as_ref().map_or(range, |fault| fault.done.part(range));
        let mut at = part.start;
        while at < part.end {
            let end = (at / SECTOR).saturating_add(1).saturating_mul(SECTOR).min(part.end);
            effect(&mut lock(&self.content), ByteRange { start: at, end });
            at = end;
            if at < part.end {
                pause(Site::Between(at / SECTOR));
            }
        }
        pause(Site::After);
        fault.map_or(Ok(()), |fault| Err(fault.error))
    }

    fn next_key(&self) -> IoKey {
        let (op, sent) = WORKS_ON.get();
        if op == 0 {
            // Of nobody, or of a thread of the driver's own: the name says no more than the order in which they came.
            let nth = self.strangers.fetch_add(1, Ordering::Relaxed).saturating_add(1);
            return IoKey { owner: Owner::default(), nth };
        }
        let nth = sent.saturating_add(1);
        WORKS_ON.set((op, nth));
        IoKey { owner: Owner(op), nth }
    }

    // For the run.

    /// What it holds.
    pub(super) fn content(&self) -> Content {
        let bytes = lock(&self.content);
        let mut content = Content::new(bytes.size);
        for (number, page) in &bytes.pages {
            let at = number.saturating_mul(PAGE);
            let len = index(bytes.size.saturating_sub(at).min(PAGE));
            content.write(at, page.get(..len).unwrap_or_default());
        }
        content
    }

    /// How many requests have failed so far.
    pub(super) fn faults(&self) -> usize {
        lock(&self.failing).count()
    }

    pub(super) fn sent(&self) -> u64 {
        lock(&self.failing).sent()
    }

    pub(super) fn fired(&self) -> Vec<FaultSpec> {
        lock(&self.failing).fired().to_vec()
    }

    pub(super) fn failing(&self) -> MutexGuard<'_, Failing> {
        lock(&self.failing)
    }

    /// Requests take no time any more: nobody is there to meet.
    pub(super) fn set_calm(&self, calm: bool) {
        self.calm.store(calm, Ordering::Relaxed);
    }

    /// Whoever sends another request ends there.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

impl Bytes {
    fn read(&self, at: u64, out: &mut [u8]) {
        for (number, inside, part) in pages(at, out.len() as u64) {
            let Some(out) = out.get_mut(part) else { return };
            match self.pages.get(&number).and_then(|page| page.get(inside)) {
                Some(bytes) => out.copy_from_slice(bytes),
                None => out.fill(0),
            }
        }
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        for (number, inside, part) in pages(at, data.len() as u64) {
            let page = self.pages.entry(number).or_insert_with(|| vec![0; index(PAGE)].into());
            if let (Some(bytes), Some(data)) = (page.get_mut(inside), data.get(part)) {
                bytes.copy_from_slice(data);
            }
        }
        self.size = self.size.max(at.saturating_add(data.len() as u64));
    }
}

/// The pages of a range: each one's number, its bytes, and those of the range.
fn pages(at: u64, len: u64) -> impl Iterator<Item = (u64, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let end = at.saturating_add(len);
    let first = at / PAGE;
    (first..end.div_ceil(PAGE)).map(move |number| {
        let start = number.saturating_mul(PAGE);
        let (from, to) = (start.max(at), start.saturating_add(PAGE).min(end));
        let inside = index(from.saturating_sub(start))..index(to.saturating_sub(start));
        (number, inside, index(from.saturating_sub(at))..index(to.saturating_sub(at)))
    })
}

/// Where a part of a range lies in its buffer.
fn within(range: ByteRange, part: ByteRange) -> std::ops::Range<usize> {
    index(part.start.saturating_sub(range.start))..index(part.end.saturating_sub(range.start))
}

/// A place in a buffer. There is none beyond memory.
fn index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

/// A driver that panics leaves nothing half done here.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use blkproof_sim::{FaultDone, Schedule};

    use super::*;
    use crate::plan::{FaultAt, Faults};

    fn disk(grows: bool, named: Vec<FaultSpec>) -> Disk {
        let failing = Failing::new(&Faults { named, ..Faults::default() });
        Disk::new(&Content::from_bytes(&[7; 5000]), grows, failing, Pauses::new(&Schedule::default(), 0))
    }

    #[test]
    fn bytes_are_where_they_were_put() {
        let disk = disk(true, Vec::new());
        disk.write(4090, &[1; 1000]).unwrap();
        disk.write_zeroes(100, 500).unwrap();
        let mut want = vec![7; 5090];
        want[4090..].fill(1);
        want[100..600].fill(0);
        let mut found = vec![9; 5090];
        disk.read(0, &mut found).unwrap();
        assert_eq!(found, want);
        assert_eq!(disk.content().to_vec(), want);
        assert_eq!(disk.size(), 5090);
        assert_eq!(disk.read(5000, &mut [0; 91]).unwrap_err().errno, Errno::INVAL);
        assert_eq!(disk.read(u64::MAX, &mut [0; 1]).unwrap_err().errno, Errno::INVAL);
        let fixed = self::disk(false, Vec::new());
        assert_eq!(fixed.write(4999, &[1; 2]).unwrap_err().errno, Errno::INVAL);
    }

    #[test]
    fn requests_fail_by_their_names() {
        let fault = |owner, nth, immediate, done| FaultSpec {
            at: FaultAt::Io(IoKey { owner: Owner(owner), nth }),
            lasting: false,
            immediate,
            done,
            errno: Errno::IO,
        };
        let faults = [fault(3, 2, false, FaultDone::First(512)), fault(4, 1, true, FaultDone::Nothing)];
        let disk = disk(false, faults.to_vec());
        works_on(3);
        disk.write(0, &[1; 512]).unwrap();
        let error = disk.write(0, &[2; 1024]).unwrap_err();
        assert!(error.injected_by.is_some());
        works_on(4);
        disk.write(0, &[3; 512]).unwrap_err();
        works_on(0);
        let mut found = [0; 1024];
        disk.read(0, &mut found).unwrap();
        assert_eq!((found[0], found[511], found[512]), (2, 2, 7));
        assert_eq!((disk.faults(), disk.sent(), disk.fired()), (2, 4, faults.to_vec()));
    }
}
