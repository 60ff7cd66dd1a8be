//! `file`: a file or block device of the host.
//!
//! # Size
//! The node counts in bytes, whatever the file's size is. A write past the end grows the file. A lock of its own keeps
//! size and content together: writes, zeroes and discards share it, whatever moves the end by anything but a write
//! (zeroes past the end, resize) holds it alone (G23). A job takes the lock with it onto the thread pool: a request
//! that was dropped stays locked until it has landed or was thrown away.
//!
//! # Threads
//! Reads that the page cache can answer run at once, on the caller's thread (`RWF_NOWAIT`). So do small buffered
//! writes, see `INLINE_WRITE_MAX`. Everything else runs on a thread pool, with a buffer of its own, so that dropping
//! the future is safe; [`drain`](BlockDevice::drain) waits for what may still land.
//!
//! # Holes
//! A hole is asked for by `SEEK_DATA` at the moment of the query, by one system call on the caller's thread, and never
//! remembered: the answer is what a read at that moment would see (G10, G36, G58). Only extents of *data* are
//! remembered, since saying data is always right (CM 4.13). A file system known to answer wrongly is not asked.
//!
//! # Failed flushes
//! After a failed flush every later one fails, unless the file is open for direct I/O (CM 4.7; G18).
//!
//! # Direct I/O
//! The node declares the alignment of offsets and lengths. It needs none in memory: every direct transfer goes through
//! an aligned buffer of its own, which dropping asks for anyway. The odd end of a file whose size is no multiple of the
//! alignment is served through the page cache, alone and with a flush behind it, so that no dirty page is left to
//! overwrite a direct write of its neighbours.

mod backend;
mod driver;
mod jobs;
mod lock;

use std::cell::Cell;
use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use self::backend::{Backend, FileKind};
pub use self::driver::{FileDriver, FileOptions, create};
use crate::buffer::AlignedBuffer;
use crate::device::{BlockDevice, Preallocation, WriteFlags, ZeroFlags, check_bounds};
use crate::units::ByteRange;
use crate::{BlockStatus, Capabilities, DeviceInfo, Errno, IoError, Limits, Result};

/// Buffered writes up to this size run on the caller's thread: they are a copy into the page cache.
///
/// Measured against the pool with random overwrites of a cached 256 MiB file, medians of 5 interleaved pairs, on a
/// 2-core virtual machine that other work kept overloaded (load about 12). µs per write, inline / pool:
///
/// | | 4 KiB, depth 1 | 4 KiB, depth 32 | 64 KiB, depth 1 | 64 KiB, depth 32 |
/// |---|---|---|---|---|
/// | CPU, tmpfs | 2.0 / 41 | 2.0 / 23 | 15 / 57 | 14 / 66 |
/// | CPU, ext4 | 35 / 65 | 31 / 41 | 35 / 57 | 35 / 55 |
/// | elapsed, tmpfs | 5.6 / 39 | 7.6 / 15 | 45 / 90 | 43 / 46 |
/// | elapsed, ext4 | 113 / **63** | 107 / **41** | 127 / **69** | 118 / 116 |
///
/// Inline costs less CPU everywhere, which is why it is the default, but it is *not* the winner everywhere: on that
/// ext4, where a bare `pwrite` takes 35 µs of CPU, the pool finished sooner in three of four cases. Whether that is the
/// second core at work or only the larger share of a crowded machine that more threads get was not separated, and
/// ranges overlap at 64 KiB. Measure again on an idle machine before relying on it.
const INLINE_WRITE_MAX: usize = 64 << 10;

/// Largest read that one job of the pool does; bounds the memory of a huge one.
const READ_PIECE: usize = 4 << 20;

/// Largest offset a file can have.
const END_MAX: u64 = i64::MAX as u64;

/// A file of the host. See the [module](self).
#[derive(Debug)]
pub struct File {
    backend: Arc<Backend>,
    size_lock: Arc<RwLock<()>>,
    /// A range that held data when it was last asked about. Possibly out of date, and then too pessimistic.
    known_data: Cell<ByteRange>,
}

/// The size lock as held by one request.
enum SizeGuard {
    Shared { _guard: OwnedRwLockReadGuard<()> },
    Alone { _guard: OwnedRwLockWriteGuard<()> },
}

impl File {
    fn with_backend(backend: Backend) -> Self {
        Self { backend: Arc::new(backend), size_lock: Arc::default(), known_data: Cell::new(ByteRange::default()) }
    }

    /// Runs `job` on the pool. Dropping the future drops a job that has not begun; one that has runs to its end.
    async fn run<T: Send + 'static>(&self, job: impl FnOnce(&Backend) -> T + Send + 'static) -> T {
        let backend = self.backend.clone();
        let ticket = backend.jobs.enter();
        blocking::unblock(move || {
            let done = job(&backend);
            // The last owner may be this thread: the file is closed, and its locks are gone, before the job counts
            // as ended.
            drop(backend);
            drop(ticket);
            done
        })
        .await
    }

    fn check_change(&self, at: u64, len: u64) -> Result<()> {
        if self.backend.read_only {
            return Err(IoError::read_only());
        }
        if self.backend.kind == FileKind::BlockDevice {
            return check_bounds(at, len, self.backend.size());
        }
        match at.checked_add(len) {
            Some(end) if end <= END_MAX => Ok(()),
            _ => Err(IoError::new(Errno::FBIG).detail(format!("{at:#x}+{len:#x} is beyond what a file can hold"))),
        }
    }

    /// Takes the size lock for a change of `len` bytes at `at`, alone if `alone_if` says so of the current size.
    async fn lock(&self, alone_if: impl Fn(u64) -> bool) -> SizeGuard {
        if !alone_if(self.backend.size()) {
            let guard = self.size_lock.clone().read_owned().await;
            // The file can have shrunk while we waited; it can not while we hold this.
            if !alone_if(self.backend.size()) {
                return SizeGuard::Shared { _guard: guard };
            }
        }
        SizeGuard::Alone { _guard: self.size_lock.clone().write_owned().await }
    }

    /// The inline path: `None` if the write is not one for it, or would have to wait.
    fn write_now(&self, at: u64, data: &[u8], fua: bool) -> Option<Result<()>> {
        let backend = &*self.backend;
        let durable = (fua || backend.write_through) && !backend.no_flush;
        if data.len() > INLINE_WRITE_MAX || durable || backend.buffered.is_some() || backend.kind != FileKind::Regular {
            return None;
        }
        let _guard = self.size_lock.try_read().ok()?;
        Some(backend.write(at, data, false))
    }

    fn forget_data(&self) {
        self.known_data.set(ByteRange::default());
    }

    async fn read_piece(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let len = out.len();
        let bytes = self
            .run(move |backend| {
                let mut buffer = AlignedBuffer::zeroed(len, backend.memory_alignment);
                let result = backend.read(at, &mut buffer);
                (buffer, result)
            })
            .await;
        out.copy_from_slice(&bytes.0);
        bytes.1
    }
}

impl BlockDevice for File {
    fn info(&self) -> DeviceInfo {
        let backend = &*self.backend;
        let mut capabilities = Capabilities::FAST_ZERO | Capabilities::FUA | Capabilities::MULTI_CONN;
        if backend.cheap_zeroes() {
            capabilities |= Capabilities::ZEROES;
        }
        if backend.unmap {
            capabilities |= Capabilities::DISCARD;
        }
        if backend.kind == FileKind::Regular {
            capabilities |= Capabilities::RESIZE | Capabilities::ZERO_ON_GROWTH | Capabilities::GROWS;
        }
        let alignment = backend.alignment;
        DeviceInfo {
            read_only: backend.read_only,
            capabilities,
            // Zeroes may have to be written, hence their alignment. A hole may be punched anywhere in a regular file.
            limits: Limits { alignment, zero_alignment: alignment, ..Limits::NONE },
            ..DeviceInfo::new("file", backend.size())
        }
    }

    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        check_bounds(at, buf.len() as u64, self.backend.size())?;
        let mut done = self.backend.read_nowait(at, buf);
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let piece = rest.len().min(READ_PIECE);
            let Some(piece) = rest.get_mut(..piece) else { break };
            let len = piece.len();
            self.read_piece(at.saturating_add(done as u64), piece).await.map_err(|mut error| {
                error.transferred = error.transferred.saturating_add(done as u64);
                error
            })?;
            done += len;
        }
        Ok(())
    }

    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        let inside = at.checked_add(buf.len() as u64).is_some_and(|end| end <= self.backend.size());
        inside && (buf.is_empty() || self.backend.read_nowait(at, buf) == buf.len())
    }

    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let len = data.len() as u64;
        self.check_change(at, len)?;
        if flags.contains(WriteFlags::COMPRESSED) {
            return Err(IoError::unsupported().detail("a file does not compress"));
        }
        let fua = flags.contains(WriteFlags::FUA);
        if let Some(done) = self.write_now(at, data, fua) {
            return done;
        }
        let odd = !self.backend.takes(at, len);
        let guard = self.lock(|_| odd).await;
        let mut copy = AlignedBuffer::zeroed(data.len(), self.backend.memory_alignment);
        copy.copy_from_slice(data);
        self.run(move |backend| {
            let _guard = guard;
            backend.write(at, &copy, fua)
        })
        .await
    }

    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.check_change(at, len)?;
        if flags.contains(ZeroFlags::NO_FALLBACK) && !self.backend.cheap_zeroes() {
            return Err(IoError::unsupported());
        }
        let odd = !self.backend.takes(at, len);
        let guard = self.lock(|size| odd || at.saturating_add(len) > size).await;
        self.forget_data();
        self.run(move |backend| {
            let _guard = guard;
            backend.zero(at, len, flags)
        })
        .await
    }

    async fn discard(&self, at: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        if self.backend.read_only {
            return Err(IoError::read_only());
        }
        check_bounds(at, len, self.backend.size())?;
        if !self.backend.unmap {
            return Ok(());
        }
        let guard = self.lock(|_| false).await;
        self.forget_data();
        self.run(move |backend| {
            let _guard = guard;
            backend.discard(at, len)
        })
        .await
    }

    async fn flush(&self) -> Result<()> {
        if self.backend.no_flush || self.backend.read_only {
            return Ok(());
        }
        // No lock: a write that completed before this call was made is in the page cache or on the disk by now.
        self.run(Backend::sync).await
    }

    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus> {
        check_bounds(at, len, self.backend.size())?;
        let data = |until: u64| BlockStatus::data(until.saturating_sub(at).clamp(1, len.max(1)), Some(at));
        let known = self.known_data.get();
        if known.contains(at) {
            return Ok(data(known.end));
        }
        if !self.backend.holes {
            return Ok(data(u64::MAX));
        }
        // One system call decides that there is a hole, and how far it goes: nothing can be written in between.
        if let Some(end) = self.backend.hole_end(at) {
            let len = end.saturating_sub(at).min(len);
            return Ok(BlockStatus { host_offset: Some(at), ..BlockStatus::zero(len) });
        }
        let end = self.backend.data_end(at).unwrap_or(at.saturating_add(len));
        self.known_data.set(ByteRange { start: at, end });
        Ok(data(end))
    }

    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        if self.backend.read_only {
            return Err(IoError::read_only());
        }
        if size > END_MAX {
            return Err(IoError::new(Errno::FBIG).detail(format!("{size:#x} bytes are more than a file can hold")));
        }
        let guard = self.lock(|_| true).await;
        self.forget_data();
        self.run(move |backend| {
            let _guard = guard;
            backend.resize(size, preallocation)
        })
        .await
    }

    async fn drain(&self) -> Result<()> {
        self.backend.jobs.drain().await;
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.drain().await?;
        self.flush().await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;

    use futures_lite::future::{block_on, poll_once};

    use super::*;

    /// Starts a job that shares the size lock and ends when it is told to, and drops its future.
    fn start_and_drop(file: &File, counted: bool) -> mpsc::Sender<()> {
        let (end, ended) = mpsc::channel();
        let (start, started) = mpsc::channel();
        let guard = block_on(file.lock(|_| false));
        let job = move |_: &Backend| {
            let _guard = guard;
            start.send(()).unwrap();
            let _ = ended.recv();
        };
        block_on(async {
            if counted {
                let mut request = pin!(file.run(job));
                assert!(poll_once(&mut request).await.is_none());
                started.recv().unwrap();
            } else {
                // The planted fault: a job nobody counts.
                let backend = file.backend.clone();
                let mut request = pin!(blocking::unblock(move || job(&backend)));
                assert!(poll_once(&mut request).await.is_none());
                started.recv().unwrap();
            }
        });
        end
    }

    #[test]
    fn drain_waits_for_a_dropped_request_that_can_still_land() {
        let path = tempfile::NamedTempFile::new().unwrap();
        for (counted, waits) in [(true, true), (false, false)] {
            let file = File::open(path.path(), FileOptions { lock: false, ..FileOptions::default() }).unwrap();
            let end = start_and_drop(&file, counted);
            let mut drain = pin!(file.drain());
            assert_eq!(block_on(poll_once(&mut drain)).is_none(), waits, "counted: {counted}");
            end.send(()).unwrap();
            if waits {
                block_on(drain).unwrap();
            }
        }
    }

    #[test]
    fn a_dropped_request_keeps_the_size_locked_until_it_has_ended() {
        // Each alone: a lock that is fair would make the second wait for the first, whatever the second asks for.
        // (request, waits for a write that may land)
        let table = [("resize", true), ("zeroes past the end", true), ("zeroes inside", false), ("discard", false)];
        for (request, waits) in table {
            let path = tempfile::NamedTempFile::new().unwrap();
            path.as_file().set_len(1000).unwrap();
            let file = File::open(path.path(), FileOptions::default()).unwrap();
            let end = start_and_drop(&file, true);
            let begun = file.backend.jobs.begun();
            block_on(async {
                let mut future = pin!(async {
                    match request {
                        "resize" => file.resize(1200, Preallocation::Off).await,
                        "zeroes past the end" => file.write_zeroes(900, 300, ZeroFlags::empty()).await,
                        "zeroes inside" => file.write_zeroes(900, 100, ZeroFlags::empty()).await,
                        _ => file.discard(900, 100).await,
                    }
                });
                let done = poll_once(&mut future).await;
                let waited = file.backend.jobs.begun() == begun;
                assert_eq!(waited, waits, "{request} beside a write that may land");
                end.send(()).unwrap();
                match done {
                    Some(done) => done.unwrap(),
                    None => future.await.unwrap(),
                }
                assert_eq!(file.info().size, if waits { 1200 } else { 1000 }, "{request}");
            });
        }
    }
}
