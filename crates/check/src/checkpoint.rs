//! Checkpoints: a long check that was ended goes on where it was.
//!
//! Model: a check is a function of the bytes it reads, so what it has read *is* its state. [`Resumed`] is a source that
//! keeps every byte read in a [`Store`], and reads nothing from the image that the store has. A check begun again takes
//! from there, in the order of the store and without seeking, what the one before had to gather from all over the
//! image; then it goes on. The report is that of a check that was never ended, by construction and for every format: no
//! half counts, windows or findings are saved, which would have to be trusted later. For the same reason a check may go
//! on with other options.
//!
//! The alternative, saving counts and findings themselves, was refused: such a state has to be checked against the
//! image it claims to be of, for each format in another way, to save computing that takes a hundredth of the time of
//! reading.
//!
//! The store is a log: a header that says which image it is of, then records, each with its checksum. Whatever ends the
//! process, at worst the last record is cut, is seen by its checksum and dropped. Its size is that of the metadata read
//! (an 8192nd of a qcow2 image with clusters of 64 KiB; with [`Options::data`](crate::Options::data) also the
//! compressed data). Zeroes take no room. Memory: an entry of an index for each record, which
//! [`Options::memory`](crate::Options::memory) does not count.
//!
//! ```text
//! header:  "blkproof checkpoint 1\n" (22), flags u16, length u64, changed: seconds i64, nanoseconds i64,
//!          crc32c of the first 64 KiB u32, crc32c of all before u32                          (56 bytes, little endian)
//! record:  offset u64, bytes u32, kind u32 (0: bytes follow, 1: zeroes), crc32c of fields and bytes u32   (20 bytes)
//! ```

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::bytes::{is_zero, le_u32, le_u64};
use crate::source::{Source, Stamp};

const MAGIC: &[u8; 22] = b"blkproof checkpoint 1\n";
const HEADER: usize = 56;
const RECORD: usize = 20;
/// Bytes at the beginning of the image that tell it from another one.
const HEAD: usize = 64 << 10;
/// Bytes of a record at most; longer reads become several.
const RECORD_MAX: usize = 1 << 20;
const BYTES: u32 = 0;
const ZEROES: u32 = 1;

/// Where a checkpoint is kept. Given by the caller: this crate writes nothing itself.
pub trait Store: Send {
    /// Bytes there are.
    ///
    /// # Errors
    /// As the medium says, here and below.
    fn len(&self) -> io::Result<u64>;

    /// Whether there is nothing yet.
    ///
    /// # Errors
    /// As [`len`](Self::len).
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads as much of `buf` as there is from byte `at` on.
    ///
    /// # Errors
    /// As the medium says.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes at the end.
    ///
    /// # Errors
    /// As the medium says; a part may have been written.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Cuts off what is behind byte `len`.
    ///
    /// # Errors
    /// As the medium says.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

/// Why a checkpoint can not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is something else.
    #[error("this is no checkpoint; it is left as it is")]
    Foreign,
    /// The checkpoint is of another image, or the image changed.
    #[error("the checkpoint is of another image, or of this one before it changed: {0}; remove it to begin anew")]
    Changed(String),
    /// Nobody could see whether the image changes.
    #[error("the image has no time of change: whether it is still the same could not be seen")]
    NoStamp,
    /// The store does not work.
    #[error("the checkpoint")]
    Store(#[source] io::Error),
    /// The image could not be read.
    #[error("reading the beginning of the image")]
    Image(#[source] io::Error),
}

/// An image, read through a checkpoint.
pub struct Resumed<'a> {
    image: &'a dyn Source,
    log: Mutex<Log<'a>>,
    found: u64,
}

struct Log<'a> {
    store: &'a mut dyn Store,
    /// What is kept, apart: first byte to end, and where its bytes are in the store (`None`: zeroes).
    index: BTreeMap<u64, (u64, Option<u64>)>,
    len: u64,
    failed: Option<io::Error>,
}

impl<'a> Resumed<'a> {
    /// Begins a checkpoint in an empty store, or goes on with one that is of this image.
    ///
    /// # Errors
    /// [`Error`] says why not; the store is as it was then.
    pub fn new(image: &'a dyn Source, store: &'a mut dyn Store) -> Result<Self, Error> {
        let header = header(image)?;
        let len = store.len().map_err(Error::Store)?;
        let mut there = vec![0u8; HEADER];
        let read = store.read_at(0, &mut there).map_err(Error::Store)?;
        there.truncate(read);
        let mut log = Log { store, index: BTreeMap::new(), len, failed: None };
        if there.len() < HEADER && MAGIC.starts_with(there.get(..MAGIC.len().min(there.len())).unwrap_or_default()) {
            // Nothing yet, or ended while it was begun.
            log.store.truncate(0).and_then(|()| log.store.append(&header)).map_err(Error::Store)?;
            log.len = HEADER as u64;
        } else {
            compare(&there, &header)?;
            log.load().map_err(Error::Store)?;
        }
        let found = log.index.iter().fold(0u64, |all, (at, (end, _))| all.saturating_add(end.saturating_sub(*at)));
        Ok(Self { image, log: Mutex::new(log), found })
    }

    /// Bytes of the image that were in the checkpoint when it was opened.
    #[must_use]
    pub fn found(&self) -> u64 {
        self.found
    }

    /// What kept the checkpoint from growing, if anything did: the check itself goes on.
    pub fn failed(&self) -> Option<io::Error> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).failed.take()
    }
}

/// What tells this image from others, and from itself after a change.
fn header(image: &dyn Source) -> Result<Vec<u8>, Error> {
    let stamp = image.stamp().ok_or(Error::NoStamp)?;
    let mut head = vec![0u8; HEAD];
    let read = image.read_at(0, &mut head).map_err(Error::Image)?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(0u16.to_le_bytes());
    bytes.extend(image.len().to_le_bytes());
    bytes.extend(stamp.changed.0.to_le_bytes());
    bytes.extend(stamp.changed.1.to_le_bytes());
    bytes.extend(crc32c::crc32c(head.get(..read).unwrap_or_default()).to_le_bytes());
    let sum = crc32c::crc32c(&bytes);
    bytes.extend(sum.to_le_bytes());
    Ok(bytes)
}

fn compare(there: &[u8], want: &[u8]) -> Result<(), Error> {
    let sum_at = HEADER.saturating_sub(4);
    let right =
        there.len() == HEADER && crc32c::crc32c(there.get(..sum_at).unwrap_or_default()) == le_u32(there, sum_at);
    if !there.starts_with(MAGIC) || !right {
        return Err(Error::Foreign);
    }
    for (at, end, what) in
        [(24, 32, "its length differs"), (32, 48, "it was written to"), (48, 52, "its beginning differs")]
    {
        if there.get(at..end) != want.get(at..end) {
            return Err(Error::Changed(what.to_owned()));
        }
    }
    if there == want { Ok(()) } else { Err(Error::Foreign) }
}

impl Log<'_> {
    /// Reads the records; what comes behind the first one that is cut or wrong is cut off.
    fn load(&mut self) -> io::Result<()> {
        let end = self.len;
        let mut at = HEADER as u64;
        let mut fields = [0u8; RECORD];
        let mut bytes = Vec::new();
        while self.store.read_at(at, &mut fields)? == RECORD {
            let (offset, len, kind, sum) =
                (le_u64(&fields, 0), le_u32(&fields, 8), le_u32(&fields, 12), le_u32(&fields, 16));
            let data = at.saturating_add(RECORD as u64);
            bytes.clear();
            let here = usize::try_from(len).unwrap_or(usize::MAX);
            if here == 0 || here > RECORD_MAX || kind > ZEROES || offset.checked_add(u64::from(len)).is_none() {
                break;
            }
            if kind == BYTES {
                bytes.resize(here, 0);
                if self.store.read_at(data, &mut bytes)? < here {
                    break;
                }
            }
            let mut crc = crc32c::crc32c(fields.get(..16).unwrap_or_default());
            crc = crc32c::crc32c_append(crc, &bytes);
            if crc != sum {
                break;
            }
            let place = (kind == BYTES).then_some(data);
            self.index.insert(offset, (offset.saturating_add(u64::from(len)), place));
            at = data.saturating_add(bytes.len() as u64);
        }
        if at < end {
            self.store.truncate(at)?;
        }
        self.len = at;
        Ok(())
    }

    /// The parts of a range that are not kept.
    fn gaps(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut all = Vec::new();
        let mut at = range.start;
        let before = self.index.range(..=range.start).next_back().map(|(start, _)| *start).unwrap_or(range.start);
        for (start, (end, _)) in self.index.range(before..range.end) {
            if *start > at {
                all.push(at..*start);
            }
            at = at.max(*end);
        }
        if at < range.end {
            all.push(at..range.end);
        }
        all
    }

    /// Fills `buf` from what is kept; all of it is.
    fn take(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let range = at..at.saturating_add(buf.len() as u64);
        let before = self.index.range(..=at).next_back().map(|(start, _)| *start).unwrap_or(at);
        for (start, (end, place)) in self.index.range(before..range.end) {
            let part = (*start).max(range.start)..(*end).min(range.end);
            let from = usize::try_from(part.start.saturating_sub(at)).unwrap_or(usize::MAX);
            let to = usize::try_from(part.end.saturating_sub(at)).unwrap_or(0);
            let Some(out) = buf.get_mut(from..to).filter(|out| !out.is_empty()) else { continue };
            match place {
                None => out.fill(0),
                Some(place) => {
                    let place = place.saturating_add(part.start.saturating_sub(*start));
                    if self.store.read_at(place, out)? < out.len() {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
        Ok(())
    }

    fn keep(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut at = at;
        for part in bytes.chunks(RECORD_MAX) {
            let zero = is_zero(part);
            let len = u32::try_from(part.len()).unwrap_or(0);
            let payload = if zero { &[][..] } else { part };
            let mut record = Vec::with_capacity(RECORD.saturating_add(payload.len()));
            record.extend(at.to_le_bytes());
            record.extend(len.to_le_bytes());
            record.extend(if zero { ZEROES } else { BYTES }.to_le_bytes());
            let sum = crc32c::crc32c_append(crc32c::crc32c(&record), payload);
            record.extend(sum.to_le_bytes());
            record.extend(payload);
            if let Err(error) = self.store.append(&record) {
                // Nothing may follow a record that is cut: it would not be found again.
                let _ = self.store.truncate(self.len);
                return Err(error);
            }
            let place = (!zero).then_some(self.len.saturating_add(RECORD as u64));
            self.len = self.len.saturating_add(record.len() as u64);
            self.index.insert(at, (at.saturating_add(u64::from(len)), place));
            at = at.saturating_add(u64::from(len));
        }
        Ok(())
    }
}

impl Source for Resumed<'_> {
    fn name(&self) -> String {
        self.image.name()
    }

    fn len(&self) -> u64 {
        self.image.len()
    }

    /// What the checkpoint has is not read from the image; what it does not have is added. A part of the image that can
    /// not be read is tried again by the next check.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        let there = usize::try_from(self.len().saturating_sub(at)).unwrap_or(usize::MAX).min(buf.len());
        if there == 0 {
            return self.image.read_at(at, buf);
        }
        let range = at..at.saturating_add(there as u64);
        {
            let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            if log.gaps(&range).is_empty() && log.take(at, buf.get_mut(..there).unwrap_or_default()).is_ok() {
                return Ok(there);
            }
        }
        let read = self.image.read_at(at, buf)?;
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.failed.is_none() {
            for gap in log.gaps(&(at..at.saturating_add(read as u64))) {
                let from = usize::try_from(gap.start.saturating_sub(at)).unwrap_or(usize::MAX);
                let to = usize::try_from(gap.end.saturating_sub(at)).unwrap_or(0);
                if let Err(error) = log.keep(gap.start, buf.get(from..to).unwrap_or_default()) {
                    log.failed = Some(error);
                    break;
                }
            }
        }
        Ok(read)
    }

    fn next_data(&self, at: u64) -> Option<Range<u64>> {
        self.image.next_data(at)
    }

    fn stamp(&self) -> Option<Stamp> {
        self.image.stamp()
    }

    fn sibling(&self, name: &str) -> io::Result<Box<dyn Source>> {
        self.image.sibling(name)
    }

    fn writer(&self) -> Option<String> {
        self.image.writer()
    }
}

/// A checkpoint in memory, for tests and for programs that keep it elsewhere.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(pub Vec<u8>);

impl Store for MemoryStore {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        let there = usize::try_from(at).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        let read = there.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(there) {
            *to = *from;
        }
        Ok(read)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
mod tests {
    use super::*;

    /// 1 MiB of counted words with a zero quarter, and how many bytes of it were read.
    struct Image {
        bytes: Vec<u8>,
        changed: i64,
        read: Mutex<u64>,
    }

    impl Image {
        fn new() -> Self {
            let mut bytes: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
            bytes[1 << 19..3 << 18].fill(0);
            Self { bytes, changed: 7, read: Mutex::new(0) }
        }
    }

    impl Source for Image {
        fn name(&self) -> String {
            "image".to_owned()
        }

        fn len(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
            *self.read.lock().unwrap() += buf.len() as u64;
            MemoryStore(self.bytes.clone()).read_at(at, buf)
        }

        fn stamp(&self) -> Option<Stamp> {
            Some(Stamp { len: self.len(), changed: (self.changed, 0) })
        }
    }

    fn look(source: &dyn Source, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0xeeu8; len];
        let read = source.read_at(at, &mut buf).unwrap();
        buf.truncate(read);
        buf
    }

    #[test]
    fn reads_are_those_of_the_image_and_nothing_is_read_twice() {
        let image = Image::new();
        let mut store = MemoryStore::default();
        let mut state = 3u64;
        for _ in 0..4 {
            let source = Resumed::new(&image, &mut store).unwrap();
            for _ in 0..200 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (at, len) = ((state >> 30) % (1 << 20), (state >> 12) as usize % 40_000);
                let want = &image.bytes[at as usize..(at as usize + len).min(1 << 20)];
                assert_eq!(look(&source, at, len), want, "{at:#x}+{len}");
                let before = *image.read.lock().unwrap();
                assert_eq!(look(&source, at, len), want, "{at:#x}+{len} again");
                assert_eq!(*image.read.lock().unwrap(), before, "{at:#x}+{len} was read again");
            }
        }
        assert_eq!(look(&image, 1 << 20, 10), []);
        // Zeroes take no room, and no byte is kept twice.
        assert!(store.0.len() < (7 << 17) + 1000 * RECORD, "{}", store.0.len());
    }

    #[test]
    fn whatever_is_cut_off_a_checkpoint_the_rest_holds() {
        let image = Image::new();
        let mut store = MemoryStore::default();
        {
            let source = Resumed::new(&image, &mut store).unwrap();
            for at in [0u64, 5000, 600_000, 900_000] {
                look(&source, at, 1000);
            }
        }
        let whole = store.0.len();
        for cut in (0..=whole).filter(|cut| *cut < 80 || cut % 37 == 0 || *cut == whole) {
            let mut part = MemoryStore(store.0[..cut].to_vec());
            let source = Resumed::new(&image, &mut part).unwrap();
            for at in [0u64, 5000, 600_000, 900_000] {
                assert_eq!(look(&source, at, 1000), look(&image, at, 1000), "cut at {cut}");
            }
            assert_eq!(source.found() == 4000, cut == whole, "cut at {cut}: {}", source.found());
            drop(source);
            assert_eq!(part.0.len(), whole, "cut at {cut}");
        }
        // A byte that is wrong ends it there.
        for at in (HEADER..whole).step_by(29) {
            let mut part = store.clone();
            part.0[at] ^= 0x10;
            let source = Resumed::new(&image, &mut part).unwrap();
            assert!(source.found() < 4000, "byte {at}");
            assert_eq!(look(&source, 5000, 1000), look(&image, 5000, 1000), "byte {at}");
        }
    }

    #[test]
    fn other_images_and_other_files_are_refused() {
        let image = Image::new();
        let mut store = MemoryStore::default();
        drop(Resumed::new(&image, &mut store).unwrap());
        let error = |image: &Image, store: &[u8]| {
            let mut copy = MemoryStore(store.to_vec());
            let error = Resumed::new(image, &mut copy).err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(copy.0, store, "a store that is refused is left as it is");
            error
        };
        assert!(error(&Image { changed: 8, ..Image::new() }, &store.0).contains("it was written to"));
        let mut longer = Image::new();
        longer.bytes.push(0);
        assert!(error(&longer, &store.0).contains("its length differs"));
        let mut other = Image::new();
        other.bytes[100] ^= 1;
        assert!(error(&other, &store.0).contains("its beginning differs"));
        assert!(error(&image, b"precious notes of somebody else").contains("no checkpoint"));
        assert!(error(&image, &[7; 4096]).contains("no checkpoint"));
        let mut flipped = store.0;
        flipped[30] ^= 1;
        assert!(error(&image, &flipped).contains("no checkpoint"));
    }
}
