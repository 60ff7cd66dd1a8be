//! The open file and the system calls on it: everything that may run on a thread of the pool.
//!
//! What must hold even if nobody waits for the result any more is done here, next to the system call: a late write
//! updates the size, a flush that fails after its future was dropped still poisons the flushes after it.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fdatasync, ftruncate, seek};
use rustix::io::{Errno as OsErrno, ReadWriteFlags, pread, preadv2, pwritev2};

use super::jobs::Jobs;
use crate::buffer::AlignedBuffer;
use crate::{Errno, IoError, Preallocation, Result, ZeroFlags};

/// Zeroes are written in pieces of this size where the file system has no better way.
const ZERO_PIECE: u64 = 1 << 20;

/// What kind of file it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FileKind {
    /// Has holes, grows, shrinks.
    Regular,
    /// Has the size it has.
    BlockDevice,
}

/// A file that is open, shared between its node and its jobs in flight.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) fd: OwnedFd,
    /// The same file without `O_DIRECT`, for the odd end that direct I/O can not reach; only beside a direct `fd`.
    pub(super) buffered: Option<OwnedFd>,
    pub(super) name: String,
    pub(super) kind: FileKind,
    pub(super) read_only: bool,
    /// Offsets and lengths of direct I/O; 1 for buffered.
    pub(super) alignment: u32,
    pub(super) memory_alignment: usize,
    /// Flushes are ignored (`cache=unsafe`).
    pub(super) no_flush: bool,
    /// Every write acts as FUA.
    pub(super) write_through: bool,
    /// Space may be given back.
    pub(super) unmap: bool,
    /// `SEEK_HOLE` can be trusted.
    pub(super) holes: bool,
    pub(super) size: AtomicU64,
    pub(super) features: Features,
    /// Error number of the first flush that failed, 0 if none did.
    pub(super) flush_failed: AtomicI32,
    pub(super) jobs: Arc<Jobs>,
}

/// What the file system can do, as far as it has not yet said no.
#[derive(Debug)]
pub(super) struct Features {
    pub(super) nowait: AtomicBool,
    pub(super) zero_range: AtomicBool,
    pub(super) punch_hole: AtomicBool,
    pub(super) allocate: AtomicBool,
}

impl Default for Features {
    fn default() -> Self {
        let yes = || AtomicBool::new(true);
        Self { nowait: yes(), zero_range: yes(), punch_hole: yes(), allocate: yes() }
    }
}

impl Backend {
    /// A buffered file that is being made.
    pub(super) fn for_creation(fd: OwnedFd, name: String, size: u64) -> Self {
        Self {
            fd,
            buffered: None,
            name,
            kind: FileKind::Regular,
            read_only: false,
            alignment: 1,
            memory_alignment: 1,
            no_flush: false,
            write_through: false,
            unmap: true,
            holes: true,
            size: AtomicU64::new(size),
            features: Features::default(),
            flush_failed: AtomicI32::new(0),
            jobs: Arc::default(),
        }
    }

    /// Whether some way of zeroing is left that writes no bytes.
    pub(super) fn cheap_zeroes(&self) -> bool {
        let Features { nowait: _, zero_range, punch_hole, allocate } = &self.features;
        zero_range.load(Ordering::Relaxed) || punch_hole.load(Ordering::Relaxed) && allocate.load(Ordering::Relaxed)
    }

    /// Bytes in the file, as far as our own requests made it.
    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Whether direct I/O can take the range as it is. Buffered I/O takes any.
    pub(super) fn takes(&self, at: u64, len: u64) -> bool {
        let mask = u64::from(self.alignment).wrapping_sub(1);
        self.buffered.is_none() || (at | len) & mask == 0
    }

    /// Reads what needs no waiting and returns how much that was.
    pub(super) fn read_nowait(&self, at: u64, buf: &mut [u8]) -> usize {
        if self.buffered.is_some() || !self.features.nowait.load(Ordering::Relaxed) {
            return 0;
        }
        match preadv2(&self.fd, &mut [IoSliceMut::new(buf)], at, ReadWriteFlags::NOWAIT) {
            Ok(done) => done.min(buf.len()),
            Err(OsErrno::OPNOTSUPP | OsErrno::NOSYS | OsErrno::INVAL) => {
                self.features.nowait.store(false, Ordering::Relaxed);
                0
            }
            Err(_) => 0,
        }
    }

    /// Reads all of `buf`; a short read goes on where it stopped.
    pub(super) fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let here = at.saturating_add(done as u64);
            // Direct I/O can be left with an odd rest only by the end of the file, or by a short transfer.
            let fd = match &self.buffered {
                Some(buffered) if !self.takes(here, rest.len() as u64) => buffered,
                _ => &self.fd,
            };
            match pread(fd, &mut *rest, here) {
                Ok(0) => return Err(place(self.truncated(), here, done)),
                Ok(read) => done += read,
                Err(OsErrno::INTR) => {}
                Err(error) => return Err(place(error.into(), here, done)),
            }
        }
        Ok(())
    }

    /// The error of a read that meets the end of the file before the end of the device.
    fn truncated(&self) -> IoError {
        IoError::new(Errno::IO).detail(format!(
            "'{}' ends before {:#x}, its size when it was opened: another program has truncated it",
            self.name,
            self.size()
        ))
    }

    /// Writes all of `data`, growing the file if it reaches past its end; a short write goes on where it stopped.
    pub(super) fn write(&self, at: u64, data: &[u8], fua: bool) -> Result<()> {
        let durable = (fua || self.write_through) && !self.no_flush;
        let mut flags = if durable { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
        let mut sync_after = false;
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let here = at.saturating_add(done as u64);
            let fd = match &self.buffered {
                Some(buffered) if !self.takes(here, rest.len() as u64) => {
                    // A page left dirty here could be written back over a later direct write of its neighbours.
                    sync_after = true;
                    buffered
                }
                _ => &self.fd,
            };
            match pwritev2(fd, &[IoSlice::new(rest)], here, flags) {
                Ok(0) => return Err(place(IoError::new(Errno::IO).detail("the file takes no more bytes"), here, done)),
                Ok(written) => {
                    done += written;
                    self.size.fetch_max(at.saturating_add(done as u64), Ordering::AcqRel);
                }
                Err(OsErrno::INTR) => {}
                Err(OsErrno::OPNOTSUPP | OsErrno::NOSYS) if !flags.is_empty() => {
                    flags = ReadWriteFlags::empty();
                    sync_after = true;
                }
                Err(error) => {
                    if !flags.is_empty() && self.durable_write_lost_data(error, rest, here) {
                        self.flush_has_failed(error);
                    }
                    return Err(place(error.into(), here, done));
                }
            }
        }
        if sync_after { self.sync_pages() } else { Ok(()) }
    }

    /// Whether `error` of a durable write may be that of writing back, and so concern earlier writes too.
    ///
    /// The kernel reports such a failure once: if it told this write, no flush will hear of it. A plain refusal to
    /// take the bytes is no such thing, and must not end all flushes: a full disk can be emptied. The two look alike
    /// for ENOSPC, therefore the bytes are offered again: whoever still refuses them had not begun to write back.
    fn durable_write_lost_data(&self, error: OsErrno, data: &[u8], at: u64) -> bool {
        match error {
            OsErrno::IO => true,
            OsErrno::NOSPC | OsErrno::DQUOT => {
                let taken = pwritev2(&self.fd, &[IoSlice::new(data)], at, ReadWriteFlags::empty());
                if let Ok(taken) = taken {
                    self.size.fetch_max(at.saturating_add(taken as u64), Ordering::AcqRel);
                }
                taken.is_ok_and(|taken| taken == data.len())
            }
            _ => false,
        }
    }

    /// Makes what was written durable. After a failure it keeps failing, because the kernel marks pages clean that it
    /// could not write, and reports that once (CM 4.7). Direct I/O leaves no such pages and may try again.
    pub(super) fn sync(&self) -> Result<()> {
        if self.no_flush { Ok(()) } else { self.sync_pages() }
    }

    fn sync_pages(&self) -> Result<()> {
        let earlier = self.flush_failed.load(Ordering::Acquire);
        if earlier != 0 {
            return Err(IoError::new(Errno(earlier))
                .detail(format!("an earlier flush of '{}' failed; what it should have saved may be lost", self.name)));
        }
        loop {
            match fdatasync(&self.fd) {
                Ok(()) => return self.not_failed_meanwhile(),
                Err(OsErrno::INTR) => {}
                Err(error) => {
                    self.flush_has_failed(error);
                    return Err(IoError::from(error).detail(format!("flushing '{}'", self.name)));
                }
            }
        }
    }

    /// Two flushes at once: the kernel tells one of them. The other must not report success.
    fn not_failed_meanwhile(&self) -> Result<()> {
        match self.flush_failed.load(Ordering::Acquire) {
            0 => Ok(()),
            errno => Err(IoError::new(Errno(errno)).detail(format!("flushing '{}'", self.name))),
        }
    }

    fn flush_has_failed(&self, error: OsErrno) {
        if self.buffered.is_none() {
            let errno = error.raw_os_error();
            let _ = self.flush_failed.compare_exchange(0, errno, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Makes a range read as zeroes. The caller holds the size lock: exclusively if the range reaches past the end.
    ///
    /// Inside the file nothing here can change its size: both ways of `fallocate` keep it by flag. Past the end the
    /// size moves once, upwards, with nobody else writing (G23).
    pub(super) fn zero(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let unmap = flags.contains(ZeroFlags::MAY_UNMAP) && self.unmap;
        let end = at.saturating_add(len);
        let size = self.size();
        let inside = end.min(size).saturating_sub(at);
        let done = if unmap {
            (inside == 0 || self.punch(at, inside)?) && self.extend_sparse(end)?
                || self.zero_range(at, len, end > size)?
        } else {
            self.zero_range(at, len, end > size)? || self.punch_and_allocate(at, len, inside, end)?
        };
        if !done {
            if flags.contains(ZeroFlags::NO_FALLBACK) {
                return Err(IoError::unsupported());
            }
            self.write_zero_bytes(at, len)?;
        }
        if flags.contains(ZeroFlags::FUA) || self.write_through {
            self.sync()?;
        }
        Ok(())
    }

    /// Gives the space of a range back; what can not be given back stays as it is.
    pub(super) fn discard(&self, at: u64, len: u64) -> Result<()> {
        let inside = at.saturating_add(len).min(self.size()).saturating_sub(at);
        if inside > 0 {
            self.punch(at, inside)?;
        }
        Ok(())
    }

    /// Changes the size, with nobody else writing. A failed growth leaves the old size.
    pub(super) fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        let old = self.size();
        if self.kind == FileKind::BlockDevice {
            return match size == old {
                true => Ok(()),
                false => Err(IoError::unsupported().detail("a block device can not be resized")),
            };
        }
        let grown = size.checked_sub(old);
        let resized = match (preallocation, grown) {
            (Preallocation::Metadata, _) => {
                Err(IoError::unsupported().detail("Unsupported preallocation mode 'metadata'"))
            }
            (Preallocation::Off, _) | (_, Some(0)) => self.truncate(size),
            (_, None) => Err(IoError::unsupported().detail("Preallocation can't be used for shrinking files")),
            (Preallocation::Falloc, Some(added)) => match self.allocate(old, added) {
                Ok(true) => Ok(()),
                Ok(false) => Err(IoError::unsupported().detail("the file system can not reserve space")),
                Err(error) => Err(error),
            },
            (Preallocation::Full, Some(added)) => self.write_zero_bytes(old, added).and_then(|()| self.sync()),
        };
        match resized {
            Ok(()) => {
                self.size.store(size, Ordering::Release);
                Ok(())
            }
            Err(error) => {
                if grown.is_some() && self.truncate(old).is_ok() {
                    self.size.store(old, Ordering::Release);
                }
                Err(error)
            }
        }
    }

    /// Whether the byte at `at` lies in a hole, and where that ends. `None`: it holds data, or nobody knows.
    pub(super) fn hole_end(&self, at: u64) -> Option<u64> {
        match seek(&self.fd, SeekFrom::Data(at)) {
            Ok(data) if data > at => Some(data),
            // No data from here to the end of the file: a hole, unless another program has cut the file short. What was
            // lost then must not pass for zeroes; called data, it is read, and the read fails.
            Err(OsErrno::NXIO) => {
                let stat = rustix::fs::fstat(&self.fd).ok()?;
                let whole = self.kind == FileKind::BlockDevice
                    || u64::try_from(stat.st_size).is_ok_and(|size| size >= self.size());
                whole.then_some(u64::MAX)
            }
            _ => None,
        }
    }

    /// Where the data at `at` ends. `None`: nobody knows.
    pub(super) fn data_end(&self, at: u64) -> Option<u64> {
        seek(&self.fd, SeekFrom::Hole(at)).ok().filter(|hole| *hole > at)
    }

    fn truncate(&self, size: u64) -> Result<()> {
        retry(|| ftruncate(&self.fd, size)).map_err(IoError::from)
    }

    fn extend_sparse(&self, end: u64) -> Result<bool> {
        if end > self.size() {
            self.truncate(end)?;
            self.size.fetch_max(end, Ordering::AcqRel);
        }
        Ok(true)
    }

    fn punch(&self, at: u64, len: u64) -> Result<bool> {
        self.fallocate(&self.features.punch_hole, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len)
    }

    fn zero_range(&self, at: u64, len: u64, grow: bool) -> Result<bool> {
        let keep = if grow { FallocateFlags::empty() } else { FallocateFlags::KEEP_SIZE };
        let done = self.fallocate(&self.features.zero_range, FallocateFlags::ZERO_RANGE | keep, at, len)?;
        if done && grow {
            self.size.fetch_max(at.saturating_add(len), Ordering::AcqRel);
        }
        Ok(done)
    }

    fn allocate(&self, at: u64, len: u64) -> Result<bool> {
        self.fallocate(&self.features.allocate, FallocateFlags::empty(), at, len)
    }

    /// Zeroes that keep their space on file systems without `ZERO_RANGE` (tmpfs): punch, then allocate again.
    fn punch_and_allocate(&self, at: u64, len: u64, inside: u64, end: u64) -> Result<bool> {
        if self.kind == FileKind::BlockDevice || !self.features.allocate.load(Ordering::Relaxed) {
            return Ok(false);
        }
        if inside > 0 && !self.punch(at, inside)? {
            return Ok(false);
        }
        // Once punched the content is zero, so the request is done even where space can not be reserved: to refuse it
        // now would break the word that a refused request changes nothing.
        if !self.allocate(at, len)? && (inside < len) {
            return Ok(false);
        }
        self.size.fetch_max(end, Ordering::AcqRel);
        Ok(true)
    }

    /// `false`: the file system has said that it can not do this, now or before.
    fn fallocate(&self, feature: &AtomicBool, mode: FallocateFlags, at: u64, len: u64) -> Result<bool> {
        if !feature.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match retry(|| fallocate(&self.fd, mode, at, len)) {
            Ok(()) => Ok(true),
            Err(OsErrno::OPNOTSUPP | OsErrno::NOSYS | OsErrno::NODEV) => {
                feature.store(false, Ordering::Relaxed);
                Ok(false)
            }
            // A block device refuses what is not on its sector boundaries; the next request may well be.
            Err(OsErrno::INVAL) if self.kind == FileKind::BlockDevice => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn write_zero_bytes(&self, at: u64, len: u64) -> Result<()> {
        let piece = usize::try_from(len.min(ZERO_PIECE)).unwrap_or(0);
        let zeroes = AlignedBuffer::zeroed(piece, self.memory_alignment);
        let mut done = 0;
        while done < len {
            let now = (len - done).min(ZERO_PIECE);
            let bytes = usize::try_from(now).ok().and_then(|now| zeroes.get(..now)).unwrap_or(&zeroes);
            self.write(at.saturating_add(done), bytes, false).map_err(|mut error| {
                error.transferred = error.transferred.saturating_add(done);
                error
            })?;
            done += now;
        }
        Ok(())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        super::lock::release(&self.fd);
    }
}

fn retry(mut call: impl FnMut() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    loop {
        match call() {
            Err(OsErrno::INTR) => {}
            other => return other,
        }
    }
}

fn place(error: IoError, here: u64, done: usize) -> IoError {
    let mut error = error.at(here);
    error.transferred = done as u64;
    error
}
