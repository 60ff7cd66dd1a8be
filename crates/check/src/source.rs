//! Where an image's bytes come from. There is no way to write here.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::{Component, Path, PathBuf};

/// Read-only bytes with a length. Shared by the threads of one check.
pub trait Source: Sync {
    /// How a person names it; a path for a file.
    fn name(&self) -> String;

    /// Bytes it holds, as it was when it was opened.
    fn len(&self) -> u64;

    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads as much of `buf` as there is from byte `at` on; fewer bytes mean that the end was reached.
    ///
    /// # Errors
    /// What the medium says. Bytes of `buf` are unspecified then.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// The first stretch at or after `at` that may hold anything but zeroes. Holes need not be known.
    fn next_data(&self, at: u64) -> Option<std::ops::Range<u64>> {
        (at < self.len()).then(|| at..self.len())
    }

    /// Something that changes whenever the content does, if there is such a thing (a file's length and times).
    fn stamp(&self) -> Option<Stamp> {
        None
    }

    /// Opens another file by the name that this one holds for it; only what lies in the same folder or below.
    ///
    /// Names in images are data of whoever made them: this is called only when the user allowed it.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] if there is no folder, or the name leads out of it; else as the operating system
    /// says.
    fn sibling(&self, name: &str) -> io::Result<Box<dyn Source>> {
        let words = format!("'{}' has no folder to look in", self.name().escape_debug());
        let _ = name;
        Err(io::Error::new(io::ErrorKind::Unsupported, words))
    }

    /// Who holds it open for writing, as far as can be seen.
    fn writer(&self) -> Option<String> {
        None
    }
}

/// Length and time of last change: two equal ones mean that nobody wrote in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Bytes.
    pub len: u64,
    /// Seconds and nanoseconds of the last change of content.
    pub changed: (i64, i64),
}

/// A file or block device, opened for reading only.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    path: PathBuf,
    len: u64,
}

impl FileSource {
    /// Opens a regular file or a block device.
    ///
    /// # Errors
    /// As the operating system says; [`io::ErrorKind::Unsupported`] for what can not be read at any place (a pipe, a
    /// directory, a socket), named.
    pub fn open(path: &Path) -> io::Result<Self> {
        // A pipe would block here until somebody writes: looked at before it is opened.
        let kind = std::fs::metadata(path)?.file_type();
        let refused = [
            (kind.is_dir(), "a directory"),
            (kind.is_fifo(), "a pipe"),
            (kind.is_socket(), "a socket"),
            (kind.is_char_device(), "a character device"),
        ];
        if let Some((_, what)) = refused.iter().find(|(is, _)| *is) {
            let words = format!("this is {what}, which can not be read at any place; name a file or a block device");
            return Err(io::Error::new(io::ErrorKind::Unsupported, words));
        }
        let file = File::open(path)?;
        // A block device has length 0 in its metadata; its end is where seeking to the end leads.
        let len = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?;
        Ok(Self { file, path: path.to_owned(), len })
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Source for FileSource {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0usize;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, at.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(read) => filled = filled.saturating_add(read),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn next_data(&self, at: u64) -> Option<std::ops::Range<u64>> {
        let data = match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => return None,
            Err(_) => return (at < self.len).then_some(at..self.len),
        };
        let hole = rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Hole(data)).unwrap_or(self.len);
        Some(data..hole.max(data))
    }

    fn sibling(&self, name: &str) -> io::Result<Box<dyn Source>> {
        let outside = || io::Error::new(io::ErrorKind::Unsupported, "it does not lie in the image's folder");
        let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !plain || name.is_empty() {
            return Err(outside());
        }
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = parent.canonicalize()?;
        // A link may lead anywhere: where it ends is what counts.
        let target = folder.join(name).canonicalize()?;
        if !target.starts_with(&folder) {
            return Err(outside());
        }
        Ok(Box::new(Self::open(&target)?))
    }

    fn stamp(&self) -> Option<Stamp> {
        let stat = rustix::fs::fstat(&self.file).ok()?;
        let changed = (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0));
        Some(Stamp { len: u64::try_from(stat.st_size).unwrap_or(0), changed })
    }

    fn writer(&self) -> Option<String> {
        crate::writer::writer(&self.file)
    }
}

/// Bytes in memory: tests, and images of a simulated disk.
#[derive(Clone, Debug, Default)]
pub struct MemorySource(pub Vec<u8>);

impl Source for MemorySource {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        let there = usize::try_from(at).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        let read = there.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(there) {
            *to = *from;
        }
        Ok(read)
    }
}
