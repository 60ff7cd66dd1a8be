//! Opening and creating files.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64};

use rustix::fs::{
    AtFlags, FileType, IFlags, Mode, OFlags, SeekFrom, StatxFlags, fstat, fstatfs, ioctl_getflags, ioctl_setflags,
    open, seek, stat, statx, unlink,
};
use rustix::io::Errno as OsErrno;

use super::File;
use super::backend::{Backend, Features, FileKind};
use super::jobs::Jobs;
use super::lock::{Claim, LockError, claim};
use crate::graph::{CacheMode, Driver, DriverKind, OpenContext, OpenError, OpenFlags, OptionError, Options};
use crate::node::{LocalBoxFuture, Node};
use crate::{Errno, IoError, Preallocation, Result};

/// Alignment of direct I/O where the kernel does not say.
const DIRECT_ALIGNMENT: u32 = 4096;

/// Superblock magic of ZFS on Linux.
const ZFS_MAGIC: i128 = 0x2fc1_2fc1;

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileOptions {
    /// Refuses every change.
    pub read_only: bool,
    /// Use of the page cache, and what flushes do.
    pub cache: CacheMode,
    /// Discards, and zeroes that allow it, give space back.
    pub unmap: bool,
    /// Reads next to whoever writes; read-only files only.
    pub force_share: bool,
    /// Takes the locks that keep other programs away.
    pub lock: bool,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self::from(OpenFlags::default())
    }
}

impl From<OpenFlags> for FileOptions {
    fn from(flags: OpenFlags) -> Self {
        let OpenFlags { read_only, cache, unmap, force_share, .. } = flags;
        Self { read_only, cache, unmap, force_share, lock: true }
    }
}

impl File {
    /// Opens a regular file or a block device.
    ///
    /// # Errors
    /// If it is something else, if the system refuses, or if another program uses it ([`OpenError::Locked`]).
    pub fn open(path: impl AsRef<Path>, options: FileOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        if options.force_share && !options.read_only {
            return Err(OpenError::Usage("force-share=on can only be used with read-only images".to_owned()));
        }
        // Looked at before it is opened: opening a FIFO or a tape does things.
        let seen = stat(path).map_err(|error| could_not_open(&name, error))?;
        file_kind(&name, FileType::from_raw_mode(seen.st_mode))?;
        let access = if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let cache = if options.cache.direct { OFlags::DIRECT } else { OFlags::empty() };
        let fd =
            open(path, access | cache | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()).map_err(
                |error| match error {
                    OsErrno::INVAL if options.cache.direct => OpenError::io(
                        format!("Could not open '{name}'"),
                        IoError::from(error).detail("the file system does not support O_DIRECT"),
                    ),
                    error => could_not_open(&name, error),
                },
            )?;
        // Looked at again: the name may lead elsewhere by now.
        let opened = fstat(&fd).map_err(|error| could_not_open(&name, error))?;
        let kind = file_kind(&name, FileType::from_raw_mode(opened.st_mode))?;
        if options.lock {
            let wanted = match (options.read_only, options.force_share) {
                (true, true) => Claim::SHARED_READER,
                (true, false) => Claim::READER,
                (false, _) => Claim::WRITER,
            };
            lock(&fd, &name, wanted)?;
        }
        let size = seek(&fd, SeekFrom::End(0)).map_err(|error| could_not_open(&name, error))?;
        let (alignment, memory_alignment) = if options.cache.direct { direct_alignment(&fd, kind) } else { (1, 1) };
        let buffered = match options.cache.direct {
            false => None,
            true => Some(reopen_buffered(&fd, access).map_err(|error| could_not_open(&name, error))?),
        };
        // OpenZFS called dirty data a hole in several releases (issues 15526, 15571, 15933; G36).
        let holes =
            kind == FileKind::Regular && fstatfs(&fd).is_ok_and(|system| i128::from(system.f_type) != ZFS_MAGIC);
        Ok(Self::with_backend(Backend {
            fd,
            buffered,
            name,
            kind,
            read_only: options.read_only,
            alignment,
            memory_alignment: memory_alignment as usize,
            no_flush: options.cache.no_flush,
            write_through: !options.cache.writeback,
            unmap: options.unmap,
            holes,
            size: AtomicU64::new(size),
            features: Features::default(),
            flush_failed: AtomicI32::new(0),
            jobs: Arc::new(Jobs::default()),
        }))
    }
}

fn could_not_open(name: &str, error: OsErrno) -> OpenError {
    OpenError::io(format!("Could not open '{name}'"), error)
}

fn file_kind(name: &str, kind: FileType) -> Result<FileKind, OpenError> {
    let what = match kind {
        FileType::RegularFile => return Ok(FileKind::Regular),
        FileType::BlockDevice => return Ok(FileKind::BlockDevice),
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        _ => "something unknown",
    };
    Err(OpenError::Usage(format!("'{name}' is {what}, neither a regular file nor a block device")))
}

fn lock(fd: &OwnedFd, name: &str, wanted: Claim) -> Result<(), OpenError> {
    claim(fd, wanted).map_err(|error| match error {
        LockError::Busy { lock } => OpenError::Locked { filename: name.to_owned(), lock },
        LockError::Unavailable(error) => OpenError::io(
            format!("Could not lock '{name}'"),
            error.detail("its file system has no advisory locks\nhint: locking=off uses it all the same, unprotected"),
        ),
    })
}

/// Alignment of offsets and of memory.
fn direct_alignment(fd: &OwnedFd, kind: FileKind) -> (u32, u32) {
    let power = |value: u32| value.is_power_of_two().then_some(value);
    let told = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
    let told = told.filter(|stat| stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
    let memory = told.and_then(|stat| power(stat.stx_dio_mem_align)).unwrap_or(DIRECT_ALIGNMENT);
    let offsets = told.and_then(|stat| power(stat.stx_dio_offset_align));
    let sector = || match kind {
        FileKind::BlockDevice => rustix::fs::ioctl_blksszget(fd).ok().and_then(power),
        FileKind::Regular => None,
    };
    (offsets.or_else(sector).unwrap_or(DIRECT_ALIGNMENT), memory)
}

/// A second descriptor on the very same file, whatever its name means by now.
fn reopen_buffered(fd: &OwnedFd, access: OFlags) -> rustix::io::Result<OwnedFd> {
    open(format!("/proc/self/fd/{}", fd.as_raw_fd()), access | OFlags::CLOEXEC, Mode::empty())
}

/// The path in a filename: what is left without a `file:` in front.
fn path_of(filename: &str) -> &str {
    filename.strip_prefix("file:").unwrap_or(filename)
}

/// Makes `filename` a file of `size` bytes that read as zeroes, with nobody else using it meanwhile.
///
/// A block device is left as it is, if it is large enough.
///
/// # Errors
/// If the system refuses or another program uses the file; nothing is changed then. A file that this made and could
/// not finish is removed.
pub fn create(filename: &str, size: u64, preallocation: Preallocation, nocow: bool) -> Result<(), OpenError> {
    let path = path_of(filename);
    let failed = |error: IoError| OpenError::io(format!("Could not create '{path}'"), error);
    if let Ok(seen) = stat(path) {
        file_kind(path, FileType::from_raw_mode(seen.st_mode))?;
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::CREATE;
    let (fd, new) = match open(path, flags | OFlags::EXCL, Mode::from_raw_mode(0o644)) {
        Ok(fd) => (fd, true),
        Err(OsErrno::EXIST) => {
            // Not truncated by opening: it may be somebody's.
            let fd =
                open(path, flags.difference(OFlags::CREATE), Mode::empty()).map_err(|error| failed(error.into()))?;
            (fd, false)
        }
        Err(error) => return Err(failed(error.into())),
    };
    let opened = fstat(&fd).map_err(|error| failed(error.into()))?;
    let kind = file_kind(path, FileType::from_raw_mode(opened.st_mode))?;
    lock(&fd, path, Claim::CREATOR)?;
    if nocow {
        // Only btrfs has this, and only for an empty file; elsewhere it is no loss.
        let _ = ioctl_getflags(&fd).and_then(|flags| ioctl_setflags(&fd, flags | IFlags::NOCOW));
    }
    let old_size = seek(&fd, SeekFrom::End(0)).map_err(|error| failed(error.into()))?;
    if kind == FileKind::BlockDevice {
        return match size <= old_size {
            true => Ok(()),
            false => Err(failed(IoError::new(Errno::NOSPC).detail(format!("the device holds {old_size} bytes")))),
        };
    }
    let backend = Backend::for_creation(fd, path.to_owned(), old_size);
    let made = backend.resize(0, Preallocation::Off).and_then(|()| backend.resize(size, preallocation));
    made.map_err(|error| {
        if new {
            let _ = unlink(path);
        }
        failed(error)
    })
}

/// The driver `file`.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileDriver;

impl Driver for FileDriver {
    fn name(&self) -> &'static str {
        "file"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    fn parse_filename(&self, filename: &str) -> Option<Result<Options, OptionError>> {
        filename.strip_prefix("file:").map(|path| Ok(Options::new().with("filename", path)))
    }

    fn open<'a>(
        &'a self,
        mut options: Options,
        context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<Node, OpenError>> {
        Box::pin(async move {
            let filename = options.need_text("filename", "file")?;
            let lock = options.take_choice("locking", &[("auto", true), ("on", true), ("off", false)])?;
            // How QEMU waits for the kernel; the answer is ours.
            options.take_choice("aio", &[("threads", ()), ("native", ()), ("io_uring", ())])?;
            options.finish("file")?;
            let options = FileOptions { lock: lock.unwrap_or(true), ..context.flags.into() };
            Ok(Node::new(File::open(&filename, options)?))
        })
    }

    /// An empty file, or one of `size` zero bytes: what a format is then written into.
    fn create<'a>(
        &'a self,
        filename: &'a str,
        size: Option<u64>,
        options: Options,
        _context: &'a OpenContext<'a>,
    ) -> LocalBoxFuture<'a, Result<String, OpenError>> {
        Box::pin(async move {
            options.finish("file")?;
            let size = size.unwrap_or(0);
            let name = filename.strip_prefix("file:").unwrap_or(filename).to_owned();
            blocking::unblock(move || super::create(&name, size, Preallocation::Off, false)).await?;
            Ok(format!("size={size}"))
        })
    }
}
