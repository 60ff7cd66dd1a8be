//! The dynamic disk header: where the block table is, how large blocks are, and which disk the parent is.

use std::ops::Range;

use super::footer::checksum;
use crate::bytes::{be_u32, be_u64, is_zero};

/// Bytes of the header.
pub(super) const LEN: usize = 1024;
const CHECKSUM: Range<usize> = 36..40;

/// The fields ("Dynamic Disk Header Format").
#[derive(Clone, Debug)]
pub(super) struct Dynamic {
    pub(super) table_offset: u64,
    pub(super) version: u32,
    pub(super) entries: u32,
    pub(super) block: u32,
    pub(super) parent_uuid: [u8; 16],
    /// Seconds since the start of 2000.
    pub(super) parent_time: u32,
    pub(super) parent_name: String,
    pub(super) locators: Vec<Locator>,
    pub(super) checksum_right: bool,
}

/// Where a path of the parent is in the file, for one platform.
#[derive(Clone, Debug)]
pub(super) struct Locator {
    pub(super) index: usize,
    pub(super) code: [u8; 4],
    /// Bytes set aside for it, from its offset on.
    pub(super) space: u64,
    /// Bytes of the path.
    pub(super) len: u32,
    pub(super) offset: u64,
}

impl Locator {
    /// The path's encoding, if it is a path that can be shown.
    pub(super) fn text(&self, bytes: &[u8]) -> Option<String> {
        match &self.code {
            b"W2ku" | b"W2ru" => Some(utf16(bytes, u16::from_le_bytes)),
            b"MacX" => Some(String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()),
            _ => None,
        }
    }
}

impl Dynamic {
    /// `None` if it does not begin as such a header does, or is not all there.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(b"cxsparse") || bytes.len() < LEN {
            return None;
        }
        let mut parent_uuid = [0; 16];
        parent_uuid.copy_from_slice(bytes.get(40..56)?);
        let locators = bytes.get(576..768)?.chunks_exact(24).enumerate();
        Some(Self {
            table_offset: be_u64(bytes, 16),
            version: be_u32(bytes, 24),
            entries: be_u32(bytes, 28),
            block: be_u32(bytes, 32),
            parent_uuid,
            parent_time: be_u32(bytes, 56),
            parent_name: utf16(bytes.get(64..576)?, u16::from_be_bytes),
            locators: locators
                .filter(|(_, entry)| !is_zero(entry))
                .map(|(index, entry)| locator(index, entry))
                .collect(),
            checksum_right: checksum(bytes, CHECKSUM) == be_u32(bytes, CHECKSUM.start),
        })
    }
}

fn locator(index: usize, entry: &[u8]) -> Locator {
    let mut code = [0; 4];
    for (to, from) in code.iter_mut().zip(entry) {
        *to = *from;
    }
    // The specification counts sectors, Microsoft's own programs store bytes: a multiple of 512 is the latter.
    let stored = u64::from(be_u32(entry, 4));
    let space = if stored != 0 && stored % 512 == 0 { stored } else { stored.saturating_mul(512) };
    Locator { index, code, space, len: be_u32(entry, 8), offset: be_u64(entry, 16) }
}

/// Text up to the first zero; what is no character is shown as such.
fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units = bytes.chunks_exact(2).map(|pair| pair.try_into().map_or(0, unit)).take_while(|unit| *unit != 0);
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}
