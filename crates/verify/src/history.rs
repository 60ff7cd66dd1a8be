//! What was written where, by which operation, when, and by whom: a log of fingerprints in a fixed amount of memory.
//!
//! # Shape
//! A ring of 64-bit words, allocated once. Each write appends one entry: five words of header, then for each sector it
//! covers one word of hash and one of piece tags (write zeroes, discards and resizes need no more than the header).
//! When the ring is full the oldest entries go: the history is the *most recent* writes of the whole device,
//! [`History::begins_at`] says from which operation on it is complete. With the default of 64 MiB it holds about
//! 400 000 writes of 4 KiB, or 2 GiB of large ones.
//!
//! # Why not an index
//! A write pays for hashing its sectors and for copying 16 bytes each; nothing is looked up, so the fast path stays a
//! fraction of a microsecond. Looking up walks the ring, a few milliseconds when it is full, and happens only when a
//! mismatch is explained or the outcome of a failed write is settled. An index would turn that around: dearer for
//! every write, cheaper for the event that should not happen.

use std::collections::BTreeMap;
use std::rc::Rc;

use blkproof_block::ByteRange;

use crate::fingerprint::Fingerprint;
use crate::request::RequestKind;
use crate::{SECTOR, SECTOR_LEN, len_of};

/// Memory used unless something else is asked for: 64 MiB.
pub const DEFAULT_SIZE: u64 = 64 << 20;

/// Words before an entry's hashes.
const HEADER: usize = 5;

/// Sectors of one entry at most; longer writes become several entries of one operation.
const ENTRY_SECTORS: usize = 1024;

/// In place of an operation number: the rest of the ring is unused, go on at its beginning.
const SKIP: u64 = u64::MAX;

/// How a write ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// Done on both sides.
    Done,
    /// A discard, or a request that failed or was dropped; a later read found that it was done here.
    Settled,
    /// Failed: done or not done, sector by sector.
    Failed,
    /// Dropped before it completed: done or not done, sector by sector.
    Dropped,
}

/// One version of a sector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    /// Number of the operation that wrote it, counted from 1.
    pub op: u64,
    /// When that operation began, in nanoseconds of the clock given to the mirror; 0 without a clock.
    pub time_ns: u64,
    /// Who sent it; `None` for the mirror's anonymous client.
    pub client: Option<Rc<str>>,
    /// What kind of request it was.
    pub kind: RequestKind,
    /// How it ended.
    pub outcome: Outcome,
    /// The sectors that operation covered, as far as one entry of the log tells (512 KiB at most).
    pub sectors: ByteRange,
    /// What the sector then held; `None` where the operation covered a part of the sector only.
    pub content: Option<Fingerprint>,
}

/// What an entry is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) op: u64,
    pub(crate) time_ns: u64,
    pub(crate) client: u16,
    pub(crate) kind: RequestKind,
    pub(crate) outcome: Outcome,
}

impl Entry {
    /// Whether the content is certain to be what the entry says; after a discard it is that or the old one.
    fn is_certain(&self) -> bool {
        match self.outcome {
            Outcome::Done => self.kind != RequestKind::Discard,
            Outcome::Settled => true,
            Outcome::Failed | Outcome::Dropped => false,
        }
    }
}

impl Version {
    /// Whether the sector was certain to hold this; after a discard it holds zeroes or what was there before.
    pub fn is_certain(&self) -> bool {
        Entry { op: 0, time_ns: 0, client: 0, kind: self.kind, outcome: self.outcome }.is_certain()
    }
}

/// The content of a request that changes data.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Payload<'a> {
    Data(&'a [u8]),
    /// Bytes that now read as zeroes (or may, for a discard).
    Zeroes(u64),
    /// Bytes whose content is not known.
    Unknown(u64),
}

impl Payload<'_> {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeroes(len) | Self::Unknown(len) => *len,
        }
    }
}

/// The log. See the [module](self).
#[derive(Debug)]
pub struct History {
    words: Vec<u64>,
    /// Position of the oldest entry and of the next one, in words appended since the beginning.
    tail: u64,
    head: u64,
    /// The newest operation of which something was forgotten.
    forgotten: u64,
    clients: Vec<Rc<str>>,
    client_numbers: BTreeMap<Rc<str>, u16>,
}

/// An entry as it lies in the ring.
struct Stored<'a> {
    entry: Entry,
    first: u64,
    count: u64,
    /// The first, the last sector is covered in part; nothing is known of any.
    partial_head: bool,
    partial_tail: bool,
    unknown: bool,
    zeroes: bool,
    hashes: &'a [u64],
    tags: &'a [u64],
}

impl Stored<'_> {
    fn content(&self, sector: u64) -> Option<Fingerprint> {
        let index = sector.checked_sub(self.first).filter(|&index| index < self.count)?;
        let partial = (index == 0 && self.partial_head) || (index + 1 == self.count && self.partial_tail);
        if partial || self.unknown {
            return None;
        }
        if self.zeroes {
            return Some(Fingerprint::zero());
        }
        let index = len_of(index);
        Some(Fingerprint { hash: *self.hashes.get(index)?, tags: self.tags.get(index)?.to_le_bytes() })
    }

    fn covers(&self, sector: u64) -> bool {
        sector.checked_sub(self.first).is_some_and(|index| index < self.count)
    }
}

impl History {
    /// A history of at most `size` bytes; one too small for a single entry remembers nothing.
    pub fn new(size: u64) -> Self {
        let words = usize::try_from(size / 8).unwrap_or(usize::MAX / 16);
        let words = if words < 64 { 0 } else { words };
        // Zeroed memory costs address space now and pages when they are first used.
        Self {
            words: vec![0; words],
            tail: 0,
            head: 0,
            forgotten: 0,
            clients: Vec::new(),
            client_numbers: BTreeMap::new(),
        }
    }

    /// Bytes of memory the log occupies when full.
    pub fn size(&self) -> u64 {
        self.words.len() as u64 * 8
    }

    /// The first operation of which everything is remembered.
    pub fn begins_at(&self) -> u64 {
        self.forgotten + 1
    }

    /// Gives `name` a number for use in entries. 0 is nobody, and so is everybody after the first 65 535 names: no name
    /// is better than another client's.
    pub(crate) fn client(&mut self, name: &str) -> u16 {
        if let Some(&number) = self.client_numbers.get(name) {
            return number;
        }
        let Ok(number) = u16::try_from(self.clients.len() + 1) else { return 0 };
        let name: Rc<str> = name.into();
        self.clients.push(name.clone());
        self.client_numbers.insert(name, number);
        number
    }

    /// The name of a client's number.
    pub(crate) fn client_name(&self, client: u16) -> Option<Rc<str>> {
        self.clients.get(usize::from(client).checked_sub(1)?).cloned()
    }

    /// Appends what `entry` did to the bytes from `at`. `size` is the size of the device: a sector it cuts short counts
    /// as covered whole when everything up to the end is.
    pub(crate) fn record(&mut self, entry: &Entry, at: u64, payload: Payload<'_>, size: u64) {
        let len = payload.len();
        if self.words.is_empty() || len == 0 {
            return;
        }
        let end = at.saturating_add(len);
        let (first, last) = (at / SECTOR, (end - 1) / SECTOR);
        let mut flags = 0u64;
        let partial_head = !at.is_multiple_of(SECTOR);
        let partial_tail = !end.is_multiple_of(SECTOR) && end < size;
        let one = first == last;
        let Payload::Data(data) = payload else {
            flags |= u64::from(partial_head || (one && partial_tail)) | u64::from(partial_tail) << 1;
            flags |= if matches!(payload, Payload::Unknown(_)) { 4 } else { 8 };
            let Some(slot) = self.append(HEADER) else { return };
            self.put_header(slot, entry, flags, first, last - first + 1);
            return;
        };
        let per_entry = ENTRY_SECTORS.min((self.words.len() / 4).saturating_sub(HEADER) / 2);
        let mut sector = first;
        let mut rest = data;
        while sector <= last {
            let count = len_of(last - sector + 1).min(per_entry);
            let stop = sector + count as u64 - 1;
            let head = sector == first && (partial_head || (one && partial_tail));
            let tail = stop == last && partial_tail;
            let Some(slot) = self.append(HEADER + 2 * count) else { return };
            self.put_header(slot, entry, u64::from(head) | u64::from(tail) << 1, sector, count as u64);
            let (hashes, tags) = self.words[slot + HEADER..slot + HEADER + 2 * count].split_at_mut(count);
            for (index, (hash, tag)) in hashes.iter_mut().zip(tags).enumerate() {
                let here = sector + index as u64;
                let skip = if here == first { len_of(at % SECTOR) } else { 0 };
                let (content, behind) = rest.split_at((SECTOR_LEN - skip).min(rest.len()));
                rest = behind;
                let fingerprint = Fingerprint::of(content);
                *hash = fingerprint.hash;
                *tag = u64::from_le_bytes(fingerprint.tags);
            }
            sector = stop + 1;
        }
    }

    /// Every remembered version of `sector`, oldest first.
    pub fn versions(&self, sector: u64) -> Vec<Version> {
        let mut versions = Vec::new();
        self.walk(|stored| {
            if stored.covers(sector) {
                versions.push(self.version(stored, stored.content(sector)));
            }
        });
        versions
    }

    /// Every place and version that held `content`, oldest first, at most `most` of them (the newest).
    pub fn places(&self, content: Fingerprint, most: usize) -> Vec<(u64, Version)> {
        let mut places = std::collections::VecDeque::new();
        self.walk(|stored| {
            for (hash, sector) in stored.hashes.iter().zip(stored.first..) {
                if *hash == content.hash && stored.content(sector) == Some(content) {
                    places.push_back((sector, self.version(stored, Some(content))));
                    if places.len() > most {
                        places.pop_front();
                    }
                }
            }
        });
        places.into()
    }

    /// What each of `sectors` (ascending) last held for certain: the newest version that was done, discards apart.
    /// `None` where that is not remembered.
    pub(crate) fn settled(&self, sectors: &[u64]) -> Vec<Option<Fingerprint>> {
        let mut settled = vec![None; sectors.len()];
        self.walk(|stored| {
            if !stored.entry.is_certain() {
                return;
            }
            let from = sectors.partition_point(|&sector| sector < stored.first);
            for (sector, slot) in sectors.iter().zip(&mut settled).skip(from) {
                if !stored.covers(*sector) {
                    break;
                }
                *slot = stored.content(*sector);
            }
        });
        settled
    }

    fn version(&self, stored: &Stored<'_>, content: Option<Fingerprint>) -> Version {
        let Entry { op, time_ns, client, kind, outcome } = stored.entry;
        let sectors = ByteRange { start: stored.first * SECTOR, end: (stored.first + stored.count) * SECTOR };
        Version { op, time_ns, client: self.client_name(client), kind, outcome, sectors, content }
    }

    /// Makes room for `len` words in one piece and returns their index.
    fn append(&mut self, len: usize) -> Option<usize> {
        let capacity = self.words.len();
        if len > capacity {
            return None;
        }
        let index = self.index(self.head);
        if capacity - index < len {
            self.make_room(capacity - index);
            self.words[index] = SKIP;
            self.head += (capacity - index) as u64;
        }
        self.make_room(len);
        let index = self.index(self.head);
        self.head += len as u64;
        Some(index)
    }

    fn make_room(&mut self, len: usize) {
        while self.head + len as u64 - self.tail > self.words.len() as u64 {
            let index = self.index(self.tail);
            if self.words[index] != SKIP {
                self.forgotten = self.forgotten.max(self.words[index]);
            }
            self.tail += self.entry_len(index) as u64;
        }
    }

    fn index(&self, position: u64) -> usize {
        len_of(position % self.words.len() as u64)
    }

    fn entry_len(&self, index: usize) -> usize {
        if self.words[index] == SKIP {
            return self.words.len() - index;
        }
        let has_hashes = self.words[index + 2] & 0xc == 0;
        HEADER + if has_hashes { 2 * len_of(self.words[index + 4]) } else { 0 }
    }

    fn put_header(&mut self, index: usize, entry: &Entry, flags: u64, first: u64, count: u64) {
        let outcome = match entry.outcome {
            Outcome::Done => 0,
            Outcome::Failed => 1,
            Outcome::Dropped => 2,
            Outcome::Settled => 3,
        };
        let meta = flags | outcome << 8 | u64::from(entry.kind.code()) << 16 | u64::from(entry.client) << 32;
        self.words[index..index + HEADER].copy_from_slice(&[entry.op, entry.time_ns, meta, first, count]);
    }

    fn walk<'a>(&'a self, mut visit: impl FnMut(&Stored<'a>)) {
        let mut position = self.tail;
        while position < self.head {
            let index = self.index(position);
            let len = self.entry_len(index);
            position += len as u64;
            if self.words[index] == SKIP {
                continue;
            }
            let words = &self.words[index..index + len];
            let (header, content) = words.split_at(HEADER);
            let (hashes, tags) = content.split_at(content.len() / 2);
            let meta = header[2];
            visit(&Stored {
                entry: Entry {
                    op: header[0],
                    time_ns: header[1],
                    client: u16::try_from(meta >> 32 & 0xffff).unwrap_or(0),
                    kind: RequestKind::from_code(meta.to_le_bytes()[2]),
                    outcome: match meta.to_le_bytes()[1] {
                        0 => Outcome::Done,
                        1 => Outcome::Failed,
                        2 => Outcome::Dropped,
                        _ => Outcome::Settled,
                    },
                },
                first: header[3],
                count: header[4],
                partial_head: meta & 1 != 0,
                partial_tail: meta & 2 != 0,
                unknown: meta & 4 != 0,
                zeroes: meta & 8 != 0,
                hashes,
                tags,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(op: u64) -> Entry {
        Entry { op, time_ns: op * 10, client: 0, kind: RequestKind::Write, outcome: Outcome::Done }
    }

    fn data(fill: u8, sectors: usize) -> Vec<u8> {
        vec![fill; sectors * SECTOR_LEN]
    }

    const SIZE: u64 = 1 << 30;

    #[test]
    fn versions_and_places_are_found() {
        let mut history = History::new(1 << 16);
        history.record(&entry(1), 0, Payload::Data(&data(1, 4)), SIZE);
        history.record(&entry(2), 512, Payload::Data(&data(2, 1)), SIZE);
        history.record(&entry(3), 512, Payload::Zeroes(1024), SIZE);
        let ops = |sector| history.versions(sector).iter().map(|v| v.op).collect::<Vec<_>>();
        assert_eq!(ops(0), [1]);
        assert_eq!(ops(1), [1, 2, 3]);
        assert_eq!(ops(2), [1, 3]);
        assert_eq!(ops(4), [] as [u64; 0]);
        let ones = Fingerprint::of(&data(1, 1));
        let places: Vec<_> = history.places(ones, 3).iter().map(|(sector, v)| (*sector, v.op)).collect();
        assert_eq!(places, [(1, 1), (2, 1), (3, 1)], "the newest three");
        assert_eq!(
            history.settled(&[0, 1, 3, 9]),
            [Some(ones), Some(Fingerprint::zero()), Some(ones), None],
            "the last word on each sector"
        );
    }

    #[test]
    fn a_part_of_a_sector_is_not_taken_for_the_whole() {
        // at, length, device size; for each sector touched: is its content known?
        let table: [(u64, usize, u64, &[bool]); 6] = [
            (0, 512, SIZE, &[true]),
            (1, 511, SIZE, &[false]),
            (0, 511, SIZE, &[false]),
            (0, 511, 511, &[true]),
            (100, 1024, SIZE, &[false, true, false]),
            (100, 1024, 1124, &[false, true, true]),
        ];
        for (at, len, size, want) in table {
            for zeroes in [false, true] {
                let mut history = History::new(1 << 16);
                let bytes = vec![3; len];
                let payload = if zeroes { Payload::Zeroes(len as u64) } else { Payload::Data(&bytes) };
                history.record(&entry(1), at, payload, size);
                let got: Vec<_> =
                    (0..want.len() as u64).map(|sector| history.versions(sector)[0].content.is_some()).collect();
                assert_eq!(got, want, "{len} bytes at {at} of {size}, zeroes: {zeroes}");
            }
        }
    }

    #[test]
    fn old_entries_make_room_and_what_is_lost_is_said() {
        let mut history = History::new(8 * 1024);
        assert_eq!(history.size(), 8 * 1024);
        for op in 1..=1000u64 {
            let sectors = 1 + usize::try_from(op % 5).unwrap();
            let fill = op.to_le_bytes()[0];
            history.record(&entry(op), op * 4096, Payload::Data(&data(fill, sectors)), SIZE);
            assert!(history.head - history.tail <= history.words.len() as u64);
            let begins = history.begins_at();
            for known in begins..=op {
                let versions = history.versions(known * 8);
                assert_eq!(versions.len(), 1, "operation {known} of {op}, complete from {begins}");
                assert_eq!(versions[0].content, Some(Fingerprint::of(&data(known.to_le_bytes()[0], 1))));
            }
        }
        assert!(history.begins_at() > 900);
    }

    #[test]
    fn a_write_larger_than_the_history_leaves_its_end() {
        let mut history = History::new(8 * 1024);
        history.record(&entry(1), 0, Payload::Data(&data(1, 10_000)), SIZE);
        assert_eq!(history.versions(0), []);
        assert_eq!(history.versions(9_999).len(), 1);
        assert_eq!(history.begins_at(), 2);
    }

    #[test]
    fn without_memory_nothing_is_remembered() {
        let mut history = History::new(0);
        history.record(&entry(1), 0, Payload::Data(&data(1, 1)), SIZE);
        assert_eq!((history.versions(0), history.size()), (Vec::new(), 0));
    }
}
