//! Reading a log, whoever wrote it.
//!
//! Bytes of a log are input: lengths are checked before they are used, and what can not be read ends the log with words
//! that name the entry and its offset, after everything before it was handed out.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use blkproof_block::{BlockDevice as _, ByteOffset, ByteRange, IoError, Node};

use super::append::Resume;
use super::format::{Chain, Details, Flags, HEADER_LEN, Header, SectorSize, Superblock, SuperblockError};

/// Bytes of payload summed up at a time.
const CHUNK: usize = 1 << 20;

/// Longest text of a mark that is kept.
const TEXT_MAX: usize = 64 << 10;

/// How the kernel ends a log when its target is removed.
pub const KERNEL_END_MARK: &str = "dm-log-writes-end";

/// A log that was opened.
#[derive(Clone, Debug)]
pub struct Log {
    device: Node,
    superblock: Superblock,
}

/// A log that can not be read, or not further.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LogError {
    /// Its beginning can not be read.
    #[error("Could not read log superblock: {0}")]
    Read(IoError),
    /// It does not begin like a log.
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    /// An entry is not one, or not there.
    #[error("entry {index} at {at}: {fault}")]
    Entry {
        /// Its number, from 0.
        index: u64,
        /// Where its header stands, or should.
        at: ByteOffset,
        /// What is wrong.
        fault: Fault,
    },
}

/// What is wrong with an entry.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// The log could not be read there.
    #[error("{0}")]
    Read(IoError),
    /// The log ends within it.
    #[error("the log ends within it: it needs {need:#x} bytes, and there are {have:#x}")]
    Truncated {
        /// Bytes of header and payload.
        need: u128,
        /// Bytes there are.
        have: u64,
    },
    /// The superblock counts it, but the log ends before it.
    #[error("the superblock counts {counted} entries, and the log ends before this one")]
    Missing {
        /// Entries the superblock counts.
        counted: u64,
    },
    /// Flags that nobody knows.
    #[error("flags {0:#x} are not known")]
    Flags(u64),
    /// It changes what lies behind any disk.
    #[error("{sectors} sectors from sector {sector} end past any disk")]
    Range {
        /// Its sector.
        sector: u64,
        /// Its length.
        sectors: u64,
    },
    /// The text of a mark is longer than the sector it stands in.
    #[error("the text of a mark has {0} bytes, which do not fit into a sector")]
    Text(u64),
    /// The checksum is another: damaged, or an entry of another log.
    #[error("its checksum is wrong: the log is damaged here, or this is the rest of an older one")]
    Chain,
}

/// An entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its number, from 0.
    pub index: u64,
    /// Where its header stands on the log.
    pub at: u64,
    /// What it is.
    pub flags: Flags,
    /// What it changes, in bytes of the disk; empty for a flush and a mark.
    pub range: ByteRange,
    /// Where its payload stands on the log; `None` if it has none.
    pub payload: Option<u64>,
    /// The text of a mark.
    pub text: Option<String>,
    /// What a writer of ours adds.
    pub details: Option<Details>,
    /// Whether the superblock counts it.
    pub counted: bool,
}

impl Entry {
    /// `write`, `discard`, `flush`, `mark`: what it does, in a word.
    pub fn operation(&self) -> &'static str {
        if self.flags.contains(Flags::MARK) {
            "mark"
        } else if self.flags.contains(Flags::DISCARD) {
            "discard"
        } else if !self.range.is_empty() {
            "write"
        } else if self.flags.contains(Flags::FLUSH) {
            "flush"
        } else {
            "nothing"
        }
    }

    /// What it changes on the disk; `None` for a flush or a mark. At an odd end of the disk this is shorter than whole
    /// sectors, if the log says so.
    pub fn change(&self) -> Option<ByteRange> {
        if self.flags.contains(Flags::MARK) || self.range.is_empty() {
            return None;
        }
        let len = match &self.details {
            Some(details) if details.bytes > 0 => details.bytes.min(self.range.len()),
            _ => self.range.len(),
        };
        Some(ByteRange::at(self.range.start, len))
    }

    /// The size of the disk, from a mark that a resize left in a log of ours.
    pub fn size_mark(&self) -> Option<u64> {
        self.text.as_deref()?.strip_prefix(super::node::OWN_MARK)?.strip_prefix("size ")?.parse().ok()
    }
}

impl Entry {
    /// Whether this is the mark that a request left which failed, in a log of ours with details.
    pub fn is_failure(&self) -> bool {
        self.text
            .as_deref()
            .is_some_and(|text| text.starts_with(super::node::OWN_MARK) && text.contains(" failed with errno "))
    }
}

/// Who wrote a log, as far as can be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writer {
    /// This program, with details: order of submission is known.
    Ours,
    /// The kernel's dm-log-writes: what completed before a flush was sent stands before that flush, and nothing else
    /// does.
    Kernel,
    /// QEMU's driver, or ours without details: entries stand in order of completion.
    Completion,
    /// No entry tells.
    Unknown,
}

impl Writer {
    /// In words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Ours => "blkproof, with details",
            Self::Kernel => "the kernel's dm-log-writes",
            Self::Completion => "QEMU, or blkproof without details",
            Self::Unknown => "unknown",
        }
    }

    /// How its order is to be read, in words.
    pub const fn model(self) -> &'static str {
        match self {
            Self::Ours => "completion order, submission known: a flush covers what the log held when it was sent",
            Self::Kernel => "the kernel's order: entries before a flush are those that completed before it was sent",
            Self::Completion | Self::Unknown => {
                "completion order: a flush is taken to cover all entries before it; states without those that \
                 completed while it was under way can not be known"
            }
        }
    }

    /// What an entry adds to the guess.
    #[must_use]
    pub fn seen(self, entry: &Entry) -> Self {
        let only_the_kernel = entry.flags.intersects(Flags::METADATA)
            || (entry.flags.contains(Flags::FLUSH) && !entry.range.is_empty())
            || entry.text.as_deref() == Some(KERNEL_END_MARK);
        match self {
            Self::Ours | Self::Kernel => self,
            _ if entry.details.is_some() => Self::Ours,
            _ if only_the_kernel => Self::Kernel,
            _ => Self::Completion,
        }
    }
}

/// Which entries of a log to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Extent {
    /// Those the superblock counts, and of those behind them the ones whose checksum shows that they belong to this
    /// log.
    #[default]
    Trusted,
    /// And everything behind them that is complete. A writer that was killed leaves such; so does an older log that
    /// stood here before and was longer, if its writer did not cut it off (QEMU's does not).
    All,
    /// Those the superblock counts, and no others.
    Counted,
}

impl Log {
    /// Reads the superblock of a log.
    ///
    /// # Errors
    /// [`LogError::Read`], [`LogError::Superblock`].
    pub async fn open(device: Node) -> Result<Self, LogError> {
        let mut head = [0; 28];
        let size = device.info().size;
        let len = usize::try_from(size).unwrap_or(usize::MAX).min(head.len());
        let head = head.get_mut(..len).unwrap_or_default();
        device.read(0, head).await.map_err(LogError::Read)?;
        Ok(Self { superblock: Superblock::parse(head)?, device })
    }

    /// Its superblock.
    pub fn superblock(&self) -> Superblock {
        self.superblock
    }

    /// The size of its sectors.
    pub fn sector(&self) -> SectorSize {
        self.superblock.sector
    }

    /// The node it stands on.
    pub fn device(&self) -> &Node {
        &self.device
    }

    /// Its entries, from the first one.
    pub fn entries(&self, extent: Extent) -> Entries<'_> {
        let sector = self.sector();
        let header = vec![0; sector.size()];
        Entries {
            log: self,
            extent,
            index: 0,
            at: sector.bytes(),
            chain: 0,
            verify: false,
            ended: false,
            rest: Rest::Nothing,
            header,
        }
    }

    /// Reads to the last entry of `extent`, where a writer goes on, and says what stands behind it.
    ///
    /// # Errors
    /// If an entry that the superblock counts is not there, or can not be read: whoever goes on behind it would hide
    /// that.
    pub async fn resume(&self, extent: Extent) -> Result<(Resume, Rest), LogError> {
        let mut entries = self.entries(extent).verified();
        let mut details = false;
        while let Some(entry) = entries.next().await? {
            details = entry.details.is_some();
        }
        let rest = entries.rest;
        Ok((Resume { entries: entries.index, end: entries.at, chain: entries.chain, details }, rest))
    }
}

/// What stands behind the last entry that was handed out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rest {
    /// Nothing: the log ends, or goes on with zeroes.
    Nothing,
    /// Something that is no complete entry: the writer was killed while it wrote, or an older log stood here.
    Incomplete(LogError),
    /// At least one entry that the superblock does not count, and that was not asked for.
    Uncounted,
}

/// The entries of a log, one by one.
#[derive(Debug)]
pub struct Entries<'a> {
    log: &'a Log,
    extent: Extent,
    index: u64,
    at: u64,
    chain: u32,
    verify: bool,
    ended: bool,
    rest: Rest,
    header: Vec<u8>,
}

impl Entries<'_> {
    /// Also sums up payloads, where the log has checksums. Behind what the superblock counts that is always done.
    #[must_use]
    pub fn verified(mut self) -> Self {
        self.verify = true;
        self
    }

    /// Number of the entry that comes next.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Where it stands on the log.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// What stands there, once there is none.
    pub fn rest(&self) -> &Rest {
        &self.rest
    }

    /// The next entry; `None` behind the last one.
    ///
    /// # Errors
    /// [`LogError::Entry`] if an entry that the superblock counts is not there or not one. It is the last answer.
    pub async fn next(&mut self) -> Result<Option<Entry>, LogError> {
        if self.ended {
            return Ok(None);
        }
        let counted = self.index < self.log.superblock.entries;
        if !counted && self.extent == Extent::Counted {
            self.ended = true;
            if let Ok(Some(_)) = self.read(false).await {
                self.rest = Rest::Uncounted;
            }
            return Ok(None);
        }
        match self.read(counted).await {
            Ok(Some((entry, ..))) if !counted && self.extent == Extent::Trusted && entry.details.is_none() => {
                self.ended = true;
                self.rest = Rest::Uncounted;
                Ok(None)
            }
            Ok(Some((entry, chain, end))) => {
                (self.index, self.at, self.chain) = (self.index.saturating_add(1), end, chain);
                Ok(Some(entry))
            }
            Ok(None) => {
                self.ended = true;
                Ok(None)
            }
            Err(fault) => {
                self.ended = true;
                let error = LogError::Entry { index: self.index, at: ByteOffset(self.at), fault };
                if counted {
                    return Err(error);
                }
                self.rest = Rest::Incomplete(error);
                Ok(None)
            }
        }
    }

    /// Reads the entry at the cursor; `None` if there is none and none has to be. With it come the chain so far and the
    /// place of the next one.
    async fn read(&mut self, counted: bool) -> Result<Option<(Entry, u32, u64)>, Fault> {
        let (log, sector) = (self.log, self.log.sector());
        let have = log.device.info().size.saturating_sub(self.at);
        if have == 0 {
            let missing = Fault::Missing { counted: log.superblock.entries };
            return if counted { Err(missing) } else { Ok(None) };
        }
        if have < sector.bytes() {
            return Err(Fault::Truncated { need: u128::from(sector.bytes()), have });
        }
        log.device.read(self.at, &mut self.header).await.map_err(Fault::Read)?;
        let Some(header) = Header::parse(&self.header) else {
            return Err(Fault::Truncated { need: HEADER_LEN as u128, have });
        };
        // No writer makes an entry that says nothing.
        let nothing = self.header.iter().all(|byte| *byte == 0);
        if nothing {
            let missing = Fault::Missing { counted: log.superblock.entries };
            return if counted { Err(missing) } else { Ok(None) };
        }
        let flags = header.known_flags().ok_or(Fault::Flags(header.flags))?;
        let need = u128::from(header.payload_sectors()).saturating_add(1).saturating_mul(u128::from(sector.bytes()));
        if need > u128::from(have) {
            return Err(Fault::Truncated { need, have });
        }
        let need = u64::try_from(need).unwrap_or(u64::MAX);
        let end = self.at.saturating_add(need);
        let out_of_range = Fault::Range { sector: header.sector, sectors: header.sectors };
        let bytes = |sectors: u64| sectors.checked_mul(sector.bytes());
        let range = match (bytes(header.sector), bytes(header.sectors)) {
            (Some(start), Some(len)) if start.checked_add(len).is_some_and(|end| end <= i64::MAX as u64) => {
                ByteRange::at(start, len)
            }
            _ => return Err(out_of_range),
        };
        let text = if flags.contains(Flags::MARK) { Some(self.text(header.data_len)?) } else { None };
        let details = Details::parse(&self.header);
        let payload_at = self.at.saturating_add(sector.bytes());
        let payload = (header.payload_sectors() > 0).then_some(payload_at);
        let mut chain = self.chain;
        if let Some(details) = &details {
            let sum = details.payload_covered && (self.verify || !counted);
            chain = details.chain;
            // Without its payload the chain can not be followed, but it goes on behind it.
            if sum || !details.payload_covered || payload.is_none() {
                let payload = if sum { end.saturating_sub(payload_at) } else { 0 };
                if self.sum(payload_at, payload).await.map_err(Fault::Read)? != details.chain {
                    return Err(Fault::Chain);
                }
            }
        }
        let entry = Entry { index: self.index, at: self.at, flags, range, payload, text, details, counted };
        Ok(Some((entry, chain, end)))
    }

    /// The chain with this header and `len` bytes of payload.
    async fn sum(&self, at: u64, len: u64) -> Result<u32, IoError> {
        let mut chain = Chain::over(self.chain, &self.header);
        let mut buffer = vec![0; CHUNK.min(usize::try_from(len).unwrap_or(CHUNK))];
        let (mut at, end) = (at, at.saturating_add(len));
        while at < end {
            let len = usize::try_from(end.saturating_sub(at)).unwrap_or(CHUNK).min(CHUNK);
            let piece = buffer.get_mut(..len).unwrap_or_default();
            self.log.device.read(at, piece).await?;
            chain = chain.and(piece);
            at = at.saturating_add(len as u64);
        }
        Ok(chain.0)
    }

    fn text(&self, len: u64) -> Result<String, Fault> {
        let text = usize::try_from(len).ok().filter(|len| *len <= TEXT_MAX);
        let text = text.and_then(|len| self.header.get(HEADER_LEN..HEADER_LEN.checked_add(len)?));
        let text = text.ok_or(Fault::Text(len))?;
        // The kernel's texts end with a zero byte, which some tools count.
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}
