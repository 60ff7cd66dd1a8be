//! What is on a write log, byte for byte (block-layer.md 3.1).
//!
//! All little-endian. Sector 0 is the superblock; entries follow, each a header of one sector and then its payload.
//! What stands behind the 32 bytes of a header is the text of a mark, and otherwise zeroes; writers of ours may put
//! [`Details`] into the last 40 bytes of that sector.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bitflags::bitflags;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `rhswfsj` and a zero byte.
pub const MAGIC: u64 = 0x006a_7366_7773_6872;

/// The only version there is.
pub const VERSION: u64 = 1;

/// Sector size of a log that nobody gave another.
pub const SECTOR_DEFAULT: u32 = 512;

/// Bytes of an entry's header.
pub const HEADER_LEN: usize = size_of::<WireHeader>();

/// Bytes of the details at the end of an entry's header sector.
pub const DETAILS_LEN: usize = size_of::<WireDetails>();

/// Smallest log sector that holds details and a mark of some use.
pub const DETAILS_SECTOR_MIN: u32 = 128;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireSuperblock {
    magic: U64,
    version: U64,
    nr_entries: U64,
    sectorsize: U32,
}
const _: () = assert!(size_of::<WireSuperblock>() == 28);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireHeader {
    sector: U64,
    nr_sectors: U64,
    flags: U64,
    data_len: U64,
}
const _: () = assert!(size_of::<WireHeader>() == 32);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireDetails {
    magic: [u8; 8],
    submitted: U64, // entries in the log when the request was sent
    bytes: U64,     // length of the request; the payload is padded to whole sectors
    time_ns: U64,   // since 1970-01-01 UTC
    chain: U32,     // CRC-32C over the chain before, this sector with a chain of 0, and the payload if covered
    flags: U32,     // bit 0: the chain covers the payload
}
const _: () = assert!(size_of::<WireDetails>() == 40);

const DETAILS_MAGIC: [u8; 8] = *b"blkproof";
const PAYLOAD_COVERED: u32 = 1;

bitflags! {
    /// What an entry is. None of them: a write.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Flags: u64 {
        /// A flush. The kernel's may carry data, which the flush does not cover.
        const FLUSH = 1;
        /// Durable when it completed.
        const FUA = 2;
        /// A discard: no payload, whatever the length.
        const DISCARD = 4;
        /// A mark with a text.
        const MARK = 8;
        /// A write of a file system's metadata; the kernel alone says so.
        const METADATA = 16;
    }
}

/// Size of a log sector: a power of two from 32 bytes to 8 MiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SectorSize(u32);

impl SectorSize {
    /// `None` for a size that no log can have.
    pub fn new(bytes: u64) -> Option<Self> {
        let bytes = u32::try_from(bytes).ok()?;
        (bytes.is_power_of_two() && (32..1 << 24).contains(&bytes)).then_some(Self(bytes))
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// In bytes, as limits of a node have it.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// In bytes, for buffers.
    pub const fn size(self) -> usize {
        self.0 as usize
    }

    /// Sectors that hold `bytes`.
    pub const fn sectors(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.0 as u64)
    }

    /// Longest text of a mark; the kernel ends it with a zero byte.
    pub const fn mark_max(self, details: bool) -> usize {
        let taken = if details { HEADER_LEN + DETAILS_LEN + 1 } else { HEADER_LEN + 1 };
        self.size().saturating_sub(taken)
    }
}

/// The head of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Entries the writer vouches for; a writer that was killed may have written more.
    pub entries: u64,
    /// Size of the sectors in which everything is counted.
    pub sector: SectorSize,
}

/// Bytes that are no superblock; in QEMU's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SuperblockError {
    /// Fewer bytes than a superblock has.
    #[error("Could not read log superblock: the log has {0} bytes")]
    Short(u64),
    /// Not a log.
    #[error("Invalid log superblock magic")]
    Magic(u64),
    /// A log of another time.
    #[error("Unsupported log version {0}")]
    Version(u64),
    /// No size a log can have.
    #[error("Invalid log sector size {0}")]
    Sector(u32),
}

impl Superblock {
    /// Reads the first bytes of a log.
    ///
    /// # Errors
    /// [`SuperblockError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, SuperblockError> {
        let Ok((wire, _)) = WireSuperblock::ref_from_prefix(bytes) else {
            return Err(SuperblockError::Short(bytes.len() as u64));
        };
        if wire.magic.get() != MAGIC {
            return Err(SuperblockError::Magic(wire.magic.get()));
        }
        if wire.version.get() != VERSION {
            return Err(SuperblockError::Version(wire.version.get()));
        }
        let sector = wire.sectorsize.get();
        let sector = SectorSize::new(u64::from(sector)).ok_or(SuperblockError::Sector(sector))?;
        Ok(Self { entries: wire.nr_entries.get(), sector })
    }

    /// The whole first sector.
    pub fn encode(&self) -> Vec<u8> {
        let wire = WireSuperblock {
            magic: U64::new(MAGIC),
            version: U64::new(VERSION),
            nr_entries: U64::new(self.entries),
            sectorsize: U32::new(self.sector.get()),
        };
        padded(wire.as_bytes(), self.sector)
    }
}

/// The head of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// Where it changes the disk, in log sectors.
    pub sector: u64,
    /// How much of it, in log sectors.
    pub sectors: u64,
    /// The flags, also those nobody knows.
    pub flags: u64,
    /// Bytes of a mark's text, or of data the kernel kept in memory.
    pub data_len: u64,
}

impl Header {
    /// Reads the first bytes of an entry; `None` if there are fewer than 32.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (wire, _) = WireHeader::ref_from_prefix(bytes).ok()?;
        Some(Self {
            sector: wire.sector.get(),
            sectors: wire.nr_sectors.get(),
            flags: wire.flags.get(),
            data_len: wire.data_len.get(),
        })
    }

    /// The flags, if all of them are known.
    pub fn known_flags(&self) -> Option<Flags> {
        Flags::from_bits(self.flags)
    }

    /// Log sectors of payload behind the header.
    pub fn payload_sectors(&self) -> u64 {
        if self.flags & Flags::DISCARD.bits() == 0 { self.sectors } else { 0 }
    }

    /// The header's sector, with `text` behind the header.
    pub fn encode(&self, text: &[u8], sector: SectorSize) -> Vec<u8> {
        let wire = WireHeader {
            sector: U64::new(self.sector),
            nr_sectors: U64::new(self.sectors),
            flags: U64::new(self.flags),
            data_len: U64::new(self.data_len),
        };
        let mut bytes = padded(wire.as_bytes(), sector);
        for (to, from) in bytes.iter_mut().skip(HEADER_LEN).zip(text) {
            *to = *from;
        }
        bytes
    }
}

/// What this program knows of an entry beyond the format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Details {
    /// How many entries the log had when the request was sent. It was under way from then until its own entry; a flush
    /// covers the entries before this one and no others.
    pub submitted: u64,
    /// Bytes the request had; at the odd end of a disk the payload is longer.
    pub bytes: u64,
    /// When the entry was made, in nanoseconds since 1970-01-01 UTC.
    pub time_ns: u64,
    /// Checksum of everything so far.
    pub chain: u32,
    /// Whether it covers this entry's payload.
    pub payload_covered: bool,
}

impl Details {
    /// Reads them from the sector of a header; `None` if it has none.
    pub fn parse(sector: &[u8]) -> Option<Self> {
        if sector.len() < DETAILS_SECTOR_MIN as usize {
            return None;
        }
        let (_, wire) = WireDetails::ref_from_suffix(sector).ok()?;
        (wire.magic == DETAILS_MAGIC).then(|| Self {
            submitted: wire.submitted.get(),
            bytes: wire.bytes.get(),
            time_ns: wire.time_ns.get(),
            chain: wire.chain.get(),
            payload_covered: wire.flags.get() & PAYLOAD_COVERED != 0,
        })
    }

    /// Puts them into the sector of a header, with a chain of 0.
    fn put(&self, sector: &mut [u8]) {
        if let Ok((_, wire)) = WireDetails::mut_from_suffix(sector) {
            *wire = WireDetails {
                magic: DETAILS_MAGIC,
                submitted: U64::new(self.submitted),
                bytes: U64::new(self.bytes),
                time_ns: U64::new(self.time_ns),
                chain: U32::new(0),
                flags: U32::new(if self.payload_covered { PAYLOAD_COVERED } else { 0 }),
            };
        }
    }

    /// Puts them into the sector of a header and goes on with the chain; returns the chain so far. `payload` is `None`
    /// where it is not covered.
    pub fn seal(&self, sector: &mut [u8], payload: Option<&[u8]>, before: u32) -> u32 {
        Self { payload_covered: payload.is_some(), ..*self }.put(sector);
        let chain = Chain::over(before, sector).and(payload.unwrap_or_default()).0;
        if let Ok((_, wire)) = WireDetails::mut_from_suffix(sector) {
            wire.chain = U32::new(chain);
        }
        chain
    }
}

/// The checksum that leads through a log with details: each entry's covers all before it, so that an entry left over
/// from an earlier log does not pass for the next one.
#[derive(Clone, Copy, Debug)]
pub struct Chain(pub u32);

impl Chain {
    /// Over the chain before, and the sector of a header, whose own chain counts as 0.
    pub fn over(before: u32, sector: &[u8]) -> Self {
        let mut sector = sector.to_vec();
        if let Ok((_, wire)) = WireDetails::mut_from_suffix(&mut sector) {
            wire.chain = U32::new(0);
        }
        Self(crc32c::crc32c_append(before, &sector))
    }

    /// Over what comes next, too.
    #[must_use]
    pub fn and(self, bytes: &[u8]) -> Self {
        Self(crc32c::crc32c_append(self.0, bytes))
    }
}

fn padded(bytes: &[u8], sector: SectorSize) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(sector.size().max(bytes.len()), 0);
    padded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let sector = SectorSize::new(512).unwrap();
        let block = Superblock { entries: 11, sector }.encode();
        let mut want =
            vec![0x72, 0x68, 0x73, 0x77, 0x66, 0x73, 0x6a, 0, 1, 0, 0, 0, 0, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0];
        want.extend([0, 2, 0, 0]);
        want.resize(512, 0);
        assert_eq!(block, want);
        let header = Header { sector: 0x1122, sectors: 3, flags: 10, data_len: 4 }.encode(b"mark", sector);
        let mut want = vec![0x22, 0x11, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0];
        want.extend([4, 0, 0, 0, 0, 0, 0, 0, b'm', b'a', b'r', b'k']);
        want.resize(512, 0);
        assert_eq!(header, want);
    }

    #[test]
    fn sector_sizes_are_those_qemu_takes() {
        for (bytes, fits) in [
            (0, false),
            (16, false),
            (31, false),
            (32, true),
            (48, false),
            (512, true),
            (1 << 23, true),
            (1 << 24, false),
        ] {
            assert_eq!(SectorSize::new(bytes).is_some(), fits, "{bytes}");
        }
        assert_eq!(SectorSize::new(1 << 40), None);
    }

    #[test]
    fn what_is_no_superblock_is_refused_by_name() {
        let good = Superblock { entries: 0, sector: SectorSize(512) }.encode();
        assert!(Superblock::parse(&good).is_ok());
        for (at, byte, words) in [
            (0, 0, "Invalid log superblock magic"),
            (8, 2, "Unsupported log version 2"),
            (25, 3, "Invalid log sector size 768"),
            (24, 1, "Invalid log sector size 513"),
        ] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert_eq!(Superblock::parse(&bad).unwrap_err().to_string(), words);
        }
        assert_eq!(Superblock::parse(&good[..27]).unwrap_err(), SuperblockError::Short(27));
    }

    #[test]
    fn details_return_and_one_flipped_bit_is_seen() {
        let mut sector = Header { sector: 1, sectors: 1, flags: 0, data_len: 0 }.encode(b"", SectorSize(512));
        assert_eq!(Details::parse(&sector), None);
        let details = Details { submitted: 7, bytes: 500, time_ns: 9, chain: 0, payload_covered: false };
        let chain = details.seal(&mut sector, Some(b"payload"), 42);
        assert_eq!(Details::parse(&sector), Some(Details { chain, payload_covered: true, ..details }));
        assert_eq!(Chain::over(42, &sector).and(b"payload").0, chain);
        assert_ne!(Chain::over(43, &sector).and(b"payload").0, chain, "another log before it");
        assert_ne!(Chain::over(42, &sector).and(b"paymoad").0, chain);
        sector[0] ^= 1;
        assert_ne!(Chain::over(42, &sector).and(b"payload").0, chain);
    }
}
