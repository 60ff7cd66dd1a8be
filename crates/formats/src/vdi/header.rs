//! The VDI header: 512 bytes, little-endian, version 1.1.
//!
//! [`RawHeader`] is the sector as it lies in the file. [`Header::parse`] turns it into values that later code need not
//! doubt: every offset is aligned and in its place, the map lies inside the file and before the data, and the number of
//! blocks is bounded by the file, so nothing absurd is ever allocated. What we do not interpret (description, geometry,
//! UUIDs) is kept and written back as it was.
//!
//! All of it fits one sector, so a header is replaced whole or not at all.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of header that are read and written.
pub(super) const HEADER_LEN: u64 = 512;
/// At offset 0x40.
pub(super) const SIGNATURE: u32 = 0xbeda_107f;
/// Version 1.1.
pub(super) const VERSION: u32 = 0x0001_0001;
/// Smallest header of version 1.1, counted from the field that says so.
const HEADER_SIZE_MIN: u32 = 0x180;
/// Where the signature and the counted part of the header begin.
const COUNTED_FROM: u64 = 0x40;
/// The block size VirtualBox and QEMU write, and the only one we create.
pub(super) const BLOCK_SIZE: u32 = 1 << 20;
/// The format allows powers of two; these are read.
const BLOCK_SIZE_RANGE: std::ops::RangeInclusive<u32> = 512..=1 << 30;
/// QEMU's limit, taken over so that what we write opens there.
pub(super) const BLOCKS_MAX: u32 = 0x1fff_ff80;
/// [`BLOCKS_MAX`] blocks of 1 MiB.
pub(super) const SIZE_MAX: u64 = 0x1_ffff_f800_0000;

/// The sector as it lies in the file (VirtualBox `VDICore.h`; every field little-endian).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
pub(super) struct RawHeader {
    pub(super) text: [u8; 64],         // says who made the image
    pub(super) signature: U32,         // 0xbeda107f
    pub(super) version: U32,           // major in the upper half
    pub(super) header_size: U32,       // bytes from `signature` on
    pub(super) image_type: U32,        // 1 dynamic, 2 fixed, 3 undo, 4 differencing
    pub(super) image_flags: U32,       // kept
    pub(super) description: [u8; 256], // kept
    pub(super) offset_bmap: U32,       // bytes from the start of the file
    pub(super) offset_data: U32,       // bytes from the start of the file
    pub(super) cylinders: U32,         // kept, like the next two
    pub(super) heads: U32,
    pub(super) sectors: U32,
    pub(super) sector_size: U32,      // 512
    pub(super) unused1: U32,          // kept
    pub(super) disk_size: U64,        // bytes
    pub(super) block_size: U32,       // bytes
    pub(super) block_extra: U32,      // bytes in front of each block
    pub(super) blocks_in_image: U32,  // entries of the map
    pub(super) blocks_allocated: U32, // the index the next new block gets
    pub(super) uuid_image: [u8; 16],
    pub(super) uuid_last_snap: [u8; 16],
    pub(super) uuid_link: [u8; 16],
    pub(super) uuid_parent: [u8; 16],
    pub(super) unused2: [u8; 56],
}
const _: () = assert!(size_of::<RawHeader>() == 512);

/// Whether blocks are meant to be allocated ahead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Blocks are allocated when written (type 1).
    Dynamic,
    /// All blocks are allocated (type 2); nothing relies on it.
    Static,
}

/// Where things lie; checked, and the same until a resize.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    /// First byte of the map, a multiple of 512, behind the header.
    pub(super) map_offset: u64,
    /// First byte of block 0, a multiple of 512, behind the map.
    pub(super) data_offset: u64,
    /// A power of two, at least 512.
    pub(super) block_size: u64,
    /// Entries of the map.
    pub(super) blocks: u32,
    /// Bytes of the disk: whole sectors, at most `blocks` blocks.
    pub(super) size: u64,
}

/// A header that can be relied on.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) raw: RawHeader,
    pub(super) layout: Layout,
    pub(super) kind: Kind,
}

/// Why a file is not a VDI image we open. Where QEMU has words for it, they are QEMU's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the message of each variant says what it is")]
#[non_exhaustive]
pub enum HeaderError {
    #[error("Image not in VDI format (the file ends at {file_len:#x}, inside the header of 0x200 bytes)")]
    TooShort { file_len: u64 },
    #[error("Image not in VDI format (bad signature {signature:08x}, must be beda107f)")]
    Signature { signature: u32 },
    #[error("Unsupported VDI image size (size is {size:#x}, max supported is {SIZE_MAX:#x})")]
    Size { size: u64 },
    #[error("unsupported VDI image (version {major}.{minor}, must be 1.1)")]
    Version { major: u16, minor: u16 },
    #[error("unsupported VDI image (header size {size:#x}, must be at least {HEADER_SIZE_MIN:#x})")]
    HeaderSize { size: u32 },
    #[error("unsupported VDI image (type {number}{name}; only 1, dynamic, and 2, fixed, can be opened)")]
    Type { number: u32, name: &'static str },
    #[error("unsupported VDI image (unaligned {field} offset {offset:#x}, must be a multiple of 0x200)")]
    Unaligned { field: &'static str, offset: u32 },
    #[error("unsupported VDI image ({field} offset {offset:#x} is inside the header, which ends at {end:#x})")]
    InsideHeader { field: &'static str, offset: u32, end: u64 },
    #[error("unsupported VDI image (sector size {size} is not 512)")]
    SectorSize { size: u32 },
    #[error(
        "unsupported VDI image (block size {size} is not {BLOCK_SIZE}, nor another power of two from {} to {})",
        BLOCK_SIZE_RANGE.start(),
        BLOCK_SIZE_RANGE.end()
    )]
    BlockSize { size: u32 },
    #[error("unsupported VDI image (extra data of {size} bytes in front of each block, must be 0)")]
    BlockExtra { size: u32 },
    #[error("unsupported VDI image (disk size {size}, image bitmap has room for {room})")]
    DiskSize { size: u64, room: u64 },
    #[error("unsupported VDI image (non-NULL link UUID: it is part of a chain of snapshots)")]
    LinkUuid,
    #[error("unsupported VDI image (non-NULL parent UUID: it is part of a chain of snapshots)")]
    ParentUuid,
    #[error("unsupported VDI image (too many blocks {blocks}, max is {BLOCKS_MAX})")]
    Blocks { blocks: u32 },
    #[error("unsupported VDI image (the block map ends at {map_end:#x}, behind the data offset {data:#x})")]
    MapInData { map_end: u64, data: u32 },
    #[error(
        "unsupported VDI image (the block map of {blocks} blocks ends at {map_end:#x}, past end of file {file_len:#x})"
    )]
    MapPastEnd { blocks: u32, map_end: u64, file_len: u64 },
}

impl Layout {
    /// Bytes of the map, padding left out.
    pub(super) fn map_len(&self) -> u64 {
        u64::from(self.blocks).saturating_mul(4)
    }

    /// Where block `index` lies in the file. The product stays below 2^62, as `block_size` is at most 2^30.
    pub(super) fn place(&self, index: u32) -> u64 {
        u64::from(index).saturating_mul(self.block_size).saturating_add(self.data_offset)
    }

    /// Blocks that `size` bytes take.
    pub(super) fn blocks_for(&self, size: u64) -> u64 {
        size.div_ceil(self.block_size.max(1))
    }
}

impl Header {
    /// Checks the first 512 bytes of a file of `file_len` bytes, in QEMU's order and then further.
    ///
    /// # Errors
    /// The first check that fails, with the field, its value and its limit.
    pub(super) fn parse(bytes: &[u8], file_len: u64) -> Result<Self, HeaderError> {
        let Ok((raw, _)) = RawHeader::read_from_prefix(bytes) else {
            return Err(HeaderError::TooShort { file_len });
        };
        let disk_size = raw.disk_size.get();
        if raw.signature.get() != SIGNATURE {
            return Err(HeaderError::Signature { signature: raw.signature.get() });
        }
        if disk_size > SIZE_MAX {
            return Err(HeaderError::Size { size: disk_size });
        }
        let version = raw.version.get();
        if version != VERSION {
            let [minor_low, minor_high, major_low, major_high] = version.to_le_bytes();
            return Err(HeaderError::Version {
                major: u16::from_le_bytes([major_low, major_high]),
                minor: u16::from_le_bytes([minor_low, minor_high]),
            });
        }
        if raw.header_size.get() < HEADER_SIZE_MIN {
            return Err(HeaderError::HeaderSize { size: raw.header_size.get() });
        }
        let kind = match raw.image_type.get() {
            1 => Kind::Dynamic,
            2 => Kind::Static,
            3 => return Err(HeaderError::Type { number: 3, name: ", an undo image" }),
            4 => return Err(HeaderError::Type { number: 4, name: ", a differencing image" }),
            number => return Err(HeaderError::Type { number, name: "" }),
        };
        let (map, data) = (raw.offset_bmap.get(), raw.offset_data.get());
        // Our own header is 512 bytes long, whatever the field says: a map inside it would be overwritten.
        let header_end = COUNTED_FROM.saturating_add(raw.header_size.get().into()).max(HEADER_LEN);
        for (field, offset) in [("block map", map), ("data", data)] {
            if offset.checked_rem(512) != Some(0) {
                return Err(HeaderError::Unaligned { field, offset });
            }
            if u64::from(offset) < header_end {
                return Err(HeaderError::InsideHeader { field, offset, end: header_end });
            }
        }
        if raw.sector_size.get() != 512 {
            return Err(HeaderError::SectorSize { size: raw.sector_size.get() });
        }
        let block_size = raw.block_size.get();
        if !block_size.is_power_of_two() || !BLOCK_SIZE_RANGE.contains(&block_size) {
            return Err(HeaderError::BlockSize { size: block_size });
        }
        if raw.block_extra.get() != 0 {
            return Err(HeaderError::BlockExtra { size: raw.block_extra.get() });
        }
        let blocks = raw.blocks_in_image.get();
        let room = u64::from(blocks).saturating_mul(block_size.into());
        if disk_size > room {
            return Err(HeaderError::DiskSize { size: disk_size, room });
        }
        if raw.uuid_link != [0; 16] {
            return Err(HeaderError::LinkUuid);
        }
        if raw.uuid_parent != [0; 16] {
            return Err(HeaderError::ParentUuid);
        }
        if blocks > BLOCKS_MAX {
            return Err(HeaderError::Blocks { blocks });
        }
        let layout = Layout {
            map_offset: map.into(),
            data_offset: data.into(),
            block_size: block_size.into(),
            blocks,
            // VBoxManage makes images of odd sizes. The last sector is there all the same: `room` is whole sectors.
            size: disk_size.next_multiple_of(512),
        };
        let map_end = layout.map_offset.saturating_add(layout.map_len());
        if map_end > layout.data_offset {
            return Err(HeaderError::MapInData { map_end, data });
        }
        if map_end > file_len {
            return Err(HeaderError::MapPastEnd { blocks, map_end, file_len });
        }
        Ok(Self { raw, layout, kind })
    }

    /// The sector to be written for `layout` and `allocated` blocks. `None` if an offset no longer fits its field.
    pub(super) fn encode(&self, layout: &Layout, allocated: u32) -> Option<RawHeader> {
        let mut raw = self.raw.clone();
        raw.offset_bmap = u32::try_from(layout.map_offset).ok()?.into();
        raw.offset_data = u32::try_from(layout.data_offset).ok()?.into();
        raw.blocks_in_image = layout.blocks.into();
        // An odd size stays as its maker wrote it until it changes.
        if raw.disk_size.get().next_multiple_of(512) != layout.size {
            raw.disk_size = layout.size.into();
        }
        raw.blocks_allocated = allocated.into();
        Some(raw)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn good() -> RawHeader {
        let mut raw = RawHeader::new_zeroed();
        raw.signature = SIGNATURE.into();
        raw.version = VERSION.into();
        raw.header_size = 0x180.into();
        raw.image_type = 1.into();
        raw.offset_bmap = 512.into();
        raw.offset_data = 1024.into();
        raw.sector_size = 512.into();
        raw.disk_size = (10 << 20).into();
        raw.block_size = BLOCK_SIZE.into();
        raw.blocks_in_image = 10.into();
        raw
    }

    #[test]
    fn every_field_out_of_its_limits_is_refused_by_name() {
        type Change = fn(&mut RawHeader);
        let table: &[(Change, &str)] = &[
            (
                |h| h.signature = 0xbeda_107e.into(),
                "Image not in VDI format (bad signature beda107e, must be beda107f)",
            ),
            (
                |h| h.disk_size = 0x1_ffff_f800_0001.into(),
                "Unsupported VDI image size (size is 0x1fffff8000001, max supported is 0x1fffff8000000)",
            ),
            (|h| h.version = 0x0002_0003.into(), "unsupported VDI image (version 2.3, must be 1.1)"),
            (|h| h.header_size = 0x17f.into(), "unsupported VDI image (header size 0x17f, must be at least 0x180)"),
            (
                |h| h.image_type = 0.into(),
                "unsupported VDI image (type 0; only 1, dynamic, and 2, fixed, can be opened)",
            ),
            (
                |h| h.image_type = 3.into(),
                "unsupported VDI image (type 3, an undo image; only 1, dynamic, and 2, fixed, can be opened)",
            ),
            (
                |h| h.image_type = 4.into(),
                "unsupported VDI image (type 4, a differencing image; only 1, dynamic, and 2, fixed, can be opened)",
            ),
            (
                |h| h.offset_bmap = 513.into(),
                "unsupported VDI image (unaligned block map offset 0x201, must be a multiple of 0x200)",
            ),
            (
                |h| h.offset_bmap = 0.into(),
                "unsupported VDI image (block map offset 0x0 is inside the header, which ends at 0x200)",
            ),
            (
                |h| h.header_size = 0x1c1.into(),
                "unsupported VDI image (block map offset 0x200 is inside the header, which ends at 0x201)",
            ),
            (
                |h| h.offset_data = 1025.into(),
                "unsupported VDI image (unaligned data offset 0x401, must be a multiple of 0x200)",
            ),
            (
                |h| h.offset_data = 0.into(),
                "unsupported VDI image (data offset 0x0 is inside the header, which ends at 0x200)",
            ),
            (|h| h.sector_size = 4096.into(), "unsupported VDI image (sector size 4096 is not 512)"),
            (
                |h| h.block_size = 0.into(),
                "unsupported VDI image (block size 0 is not 1048576, nor another power of two from 512 to 1073741824)",
            ),
            (
                |h| h.block_size = 3_000_000.into(),
                "unsupported VDI image (block size 3000000 is not 1048576, nor another power of two from 512 to 1073741824)",
            ),
            (
                |h| h.block_extra = 512.into(),
                "unsupported VDI image (extra data of 512 bytes in front of each block, must be 0)",
            ),
            (
                |h| h.disk_size = (10 * 1_048_576 + 1).into(),
                "unsupported VDI image (disk size 10485761, image bitmap has room for 10485760)",
            ),
            (
                |h| h.blocks_in_image = 9.into(),
                "unsupported VDI image (disk size 10485760, image bitmap has room for 9437184)",
            ),
            (|h| h.uuid_link[3] = 1, "unsupported VDI image (non-NULL link UUID: it is part of a chain of snapshots)"),
            (
                |h| h.uuid_parent[15] = 1,
                "unsupported VDI image (non-NULL parent UUID: it is part of a chain of snapshots)",
            ),
            (
                |h| h.blocks_in_image = (BLOCKS_MAX + 1).into(),
                "unsupported VDI image (too many blocks 536870785, max is 536870784)",
            ),
            (
                |h| h.blocks_in_image = 129.into(),
                "unsupported VDI image (the block map ends at 0x404, behind the data offset 0x400)",
            ),
            (
                |h| {
                    h.blocks_in_image = 1000.into();
                    h.offset_data = 8192.into();
                },
                "unsupported VDI image (the block map of 1000 blocks ends at 0x11a0, past end of file 0x400)",
            ),
        ];
        for (change, message) in table {
            let mut raw = good();
            assert!(Header::parse(raw.as_bytes(), 1024).is_ok());
            change(&mut raw);
            let got = Header::parse(raw.as_bytes(), 1024).err().map(|error| error.to_string());
            assert_eq!(got.as_deref(), Some(*message));
        }
        let short = Header::parse(&good().as_bytes()[..511], 511).err().map(|error| error.to_string());
        assert_eq!(
            short.as_deref(),
            Some("Image not in VDI format (the file ends at 0x1ff, inside the header of 0x200 bytes)")
        );
    }

    #[test]
    fn a_header_is_written_back_as_it_was_read() {
        let mut raw = good();
        raw.description[7] = 9;
        raw.unused2[55] = 8;
        raw.heads = 255.into();
        raw.disk_size = ((10 << 20) - 511).into();
        raw.blocks_allocated = 3.into();
        let header = Header::parse(raw.as_bytes(), 1024).unwrap();
        assert_eq!(header.layout.size, 10 << 20);
        assert_eq!(header.encode(&header.layout, 3).unwrap().as_bytes(), raw.as_bytes());
    }

    #[test]
    fn any_bytes_are_an_error_and_never_a_panic() {
        let mut state = 1u64;
        for round in 0..20_000u32 {
            let mut bytes = good().as_bytes().to_vec();
            for _ in 0..=round % 5 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = 0x40 + usize::try_from(state >> 40).unwrap() % 0x188;
                bytes[at] = (state >> 32).to_le_bytes()[0];
            }
            if let Ok(header) = Header::parse(&bytes, 1024) {
                assert!(header.layout.map_len() <= 1024 && header.layout.size <= SIZE_MAX, "round {round}");
            }
        }
    }
}
