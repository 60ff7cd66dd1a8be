//! Creating images.
//!
//! The layout is QEMU's: header at 0, map at 0x200, data behind the map. The header is written last, behind a flush: a
//! file is a VDI image when all of it is there.

use blkproof_block::graph::{OpenError, Options};
use blkproof_block::{BlockDevice, Capabilities, Preallocation, WriteFlags, ZeroFlags};
use zerocopy::{FromZeros, IntoBytes};

use super::MAP_CHUNK;
use super::bmap::FREE;
use super::header::{BLOCK_SIZE, BLOCKS_MAX, HEADER_LEN, RawHeader, SIGNATURE, SIZE_MAX, VERSION};

/// What a new image is to be like; the names are those of `qemu-img create -o`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreateOptions {
    /// Virtual size in bytes; rounded up to whole sectors of 512 bytes.
    pub size: u64,
    /// Every block is allocated, and the header says so (type 2).
    pub fixed: bool,
    /// Bytes in a block; only 1 MiB.
    pub block_size: u64,
    /// `Metadata`: every block is mapped, its space is a hole where the file can have holes. `Off`: none is.
    pub preallocation: Preallocation,
    /// The UUID that tells VirtualBox images apart; by default it is made from `name` and the size.
    pub uuid: Option<[u8; 16]>,
    /// What the default UUID is made from: nothing here draws random numbers, and two images of one machine have
    /// different names.
    pub name: String,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            size: 0,
            fixed: false,
            block_size: BLOCK_SIZE.into(),
            preallocation: Preallocation::Off,
            uuid: None,
            name: String::new(),
        }
    }
}

impl CreateOptions {
    /// Takes the creation options out of `options`: `static`, `block_size`, `preallocation`, `uuid`.
    ///
    /// # Errors
    /// [`OpenError::Option`] for a value of the wrong shape, [`OpenError::Usage`] for one that can not be had.
    pub fn take(options: &mut Options) -> Result<Self, OpenError> {
        let preallocation = [("off", Preallocation::Off), ("metadata", Preallocation::Metadata)];
        let uuid = match options.take_text("uuid")? {
            None => None,
            Some(text) => {
                let uuid = parse_uuid(&text);
                Some(uuid.ok_or_else(|| OpenError::Usage(format!("'{text}' is not a UUID of 32 hexadecimal digits")))?)
            }
        };
        Ok(Self {
            size: options.take_size("size")?.unwrap_or(0),
            fixed: options.take_bool("static")?.unwrap_or(false),
            block_size: options.take_size("block_size")?.unwrap_or(BLOCK_SIZE.into()),
            preallocation: options.take_choice("preallocation", &preallocation)?.unwrap_or_default(),
            uuid,
            name: String::new(),
        })
    }

    /// QEMU's description, as `qemu-img create` prints it behind `fmt=vdi `.
    pub fn describe(&self) -> String {
        let mut text = format!("size={} static={}", self.size, if self.fixed { "on" } else { "off" });
        if self.preallocation == Preallocation::Metadata {
            text.push_str(" preallocation=metadata");
        }
        text
    }
}

/// Makes a VDI image of `file`, which becomes as long as the image needs and holds nothing else afterwards. What it
/// held before is lost.
///
/// # Errors
/// [`OpenError::Usage`] for a size or block size that can not be had; [`OpenError::Io`] if writing fails.
pub async fn create<D: BlockDevice>(file: &D, options: &CreateOptions) -> Result<(), OpenError> {
    let block_size = u64::from(BLOCK_SIZE);
    if options.block_size != block_size {
        return Err(OpenError::Usage(format!(
            "a VDI image has blocks of {block_size} bytes, not of {}",
            options.block_size
        )));
    }
    if options.size > SIZE_MAX {
        // QEMU's words.
        return Err(OpenError::Usage(format!(
            "Unsupported VDI image size (size is {:#x}, max supported is {SIZE_MAX:#x})",
            options.size
        )));
    }
    let size = options.size.next_multiple_of(512);
    let blocks = u32::try_from(size.div_ceil(block_size)).unwrap_or(BLOCKS_MAX);
    let all = options.fixed || options.preallocation != Preallocation::Off;
    let map_len = u64::from(blocks).saturating_mul(4).next_multiple_of(512);
    let data_offset = HEADER_LEN.saturating_add(map_len);
    let allocated = if all { blocks } else { 0 };
    let end = data_offset.saturating_add(u64::from(allocated).saturating_mul(block_size));

    let mut header = RawHeader::new_zeroed();
    let text = b"<<< blkproof Virtual Disk Image >>>\n";
    header.text.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
    header.signature = SIGNATURE.into();
    header.version = VERSION.into();
    header.header_size = 0x180.into();
    header.image_type = if options.fixed { 2 } else { 1 }.into();
    header.offset_bmap = 0x200.into();
    header.offset_data = u32::try_from(data_offset).unwrap_or(u32::MAX).into();
    header.sector_size = 512.into();
    header.disk_size = size.into();
    header.block_size = BLOCK_SIZE.into();
    header.blocks_in_image = blocks.into();
    header.blocks_allocated = allocated.into();
    header.uuid_image = options.uuid.unwrap_or_else(|| name_uuid(&options.name, size, b"image"));
    header.uuid_last_snap = name_uuid(&options.name, size, b"snapshot");

    let failed = |what: &str| {
        let what = format!("writing the {what} of a new VDI image");
        move |error| OpenError::io(what, error)
    };
    let info = file.info();
    if info.capabilities.contains(Capabilities::RESIZE) {
        // Old content goes first, so that all of the new space reads as zeroes.
        file.resize(0, Preallocation::Off).await.map_err(failed("length"))?;
        file.resize(end, Preallocation::Off).await.map_err(failed("length"))?;
    } else if info.size < end && !info.capabilities.contains(Capabilities::GROWS) {
        return Err(OpenError::Usage(format!("the device holds {} bytes, the image needs {end}", info.size)));
    } else {
        // No magic of an older image stays while this one is made.
        file.write_zeroes(0, HEADER_LEN, ZeroFlags::empty()).await.map_err(failed("header"))?;
        if all && end > data_offset {
            let len = end.saturating_sub(data_offset);
            file.write_zeroes(data_offset, len, ZeroFlags::MAY_UNMAP).await.map_err(failed("data"))?;
        }
    }
    let mut done = 0;
    while done < map_len {
        let len = MAP_CHUNK.min(map_len.saturating_sub(done));
        let entries = (done / 4..done.saturating_add(len) / 4).flat_map(|entry| match u32::try_from(entry) {
            Ok(entry) if entry < blocks => if all { entry } else { FREE }.to_le_bytes(),
            _ => [0; 4],
        });
        let bytes: Vec<u8> = entries.collect();
        let at = HEADER_LEN.saturating_add(done);
        file.write(at, &bytes, WriteFlags::empty()).await.map_err(failed("block map"))?;
        done = done.saturating_add(len);
    }
    file.flush().await.map_err(failed("block map"))?;
    file.write(0, header.as_bytes(), WriteFlags::empty()).await.map_err(failed("header"))?;
    file.flush().await.map_err(failed("header"))
}

/// A UUID of version 8 (RFC 9562: made by a method of one's own): FNV-1a over what it is made from.
fn name_uuid(name: &str, size: u64, purpose: &[u8]) -> [u8; 16] {
    let mut sum = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
    for byte in purpose.iter().chain(&size.to_le_bytes()).chain(name.as_bytes()) {
        sum = (sum ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    let mut uuid = sum.to_be_bytes();
    // Version and variant lie where the little-endian layout of VirtualBox has them.
    if let Some(version) = uuid.get_mut(7) {
        *version = *version & 0x0f | 0x80;
    }
    if let Some(variant) = uuid.get_mut(8) {
        *variant = *variant & 0x3f | 0x80;
    }
    uuid
}

/// The bytes of a UUID as VDI stores it: the first three groups are little-endian numbers.
fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.trim_matches(['{', '}']).chars().filter(|digit| *digit != '-').collect();
    if digits.len() != 32 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut uuid = u128::from_str_radix(&digits, 16).ok()?.to_be_bytes();
    uuid.get_mut(..4)?.reverse();
    uuid.get_mut(4..6)?.reverse();
    uuid.get_mut(6..8)?.reverse();
    Some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_stored_as_virtualbox_stores_them() {
        let uuid = parse_uuid("00112233-4455-6677-8899-aabbccddeeff").unwrap();
        let want = [0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];
        assert_eq!(uuid, want);
        for wrong in ["", "0011", "00112233-4455-6677-8899-aabbccddeefg", "+0112233445566778899aabbccddeeff"] {
            assert_eq!(parse_uuid(wrong), None, "{wrong}");
        }
        assert_ne!(name_uuid("a", 1, b"image"), name_uuid("b", 1, b"image"));
    }
}
