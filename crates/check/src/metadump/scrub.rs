//! Words of tables that can not be pointers: whatever wrote them was no writer of this format, and may have been the
//! guest.
//!
//! A word is kept if the offset in it is one that files have, whatever its flags are, so entries of sound tables, of
//! truncated files and of tables with flipped bits stay as they are. Any other becomes one word that is wrong in the
//! same ways.

use std::ops::Range;

use rangemap::RangeSet;

use crate::Format;
use crate::Options;
use crate::bytes::{be_u32, be_u64, le_u32, le_u64};
use crate::source::Source;

/// No file is as long: offsets from here on are none.
const NO_OFFSET: u64 = 1 << 48;

/// How pointers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    /// qcow2's, with the bits of a compressed cluster's offset.
    /// With extended L2 entries every second word is a bitmap.
    Qcow2 { offset_bits: u32, misaligned: u64, extended: bool },
    /// Offsets in bytes, little endian, as QED has them.
    Bytes,
    /// VHDX: a state in the low bits.
    Vhdx,
    /// 32 bits, units of so many bytes, little or big endian.
    Small { unit: u64, big: bool },
}

pub(super) struct Scrub {
    words: Words,
    file_len: u64,
    /// Bytes of a reference count; 0 where several share one.
    count: usize,
}

const SECTOR: u64 = 512;
/// What structures begin with.
const MAGICS: [&[u8]; 8] = [b"cxsparse", b"conectix", b"vhdxfile", b"metadata", b"head", b"regi", b"loge", b"KDMV"];

/// As many bytes of text in a row are no accident.
const TEXT_MIN: usize = 16;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const RESERVED: u64 = 0x3f00_0000_0000_01fe;
const EXTENDED_L2: u64 = 1 << 4;
/// A bitmap that says of a subcluster both that it is zero and that it is allocated.
const BOTH: u64 = 1 << 32 | 1;

impl Scrub {
    pub(super) fn new(image: &dyn Source, format: Format, options: &Options) -> Self {
        let mut head = [0u8; 104];
        let _ = image.read_at(0, &mut head);
        let stored = if be_u32(&head, 4) >= 3 { u64::from(be_u32(&head, 96)) } else { 4 };
        let count = match options.assume.value("refcount_order").unwrap_or(stored) {
            0..3 => 0,
            order => 1 << order.saturating_sub(3).min(3),
        };
        let words = match format {
            Format::Qcow2 => {
                let stored = u64::from(be_u32(&head, 20));
                let bits = options.assume.value("cluster_bits").unwrap_or(stored).clamp(9, 30);
                let bits = u32::try_from(bits).unwrap_or(16);
                let misaligned = (1u64 << bits).wrapping_sub(1) & OFFSET;
                let stored = u64::from(be_u32(&head, 4) >= 3 && be_u64(&head, 72) & EXTENDED_L2 != 0);
                let extended = options.assume.value("extended_l2").unwrap_or(stored) != 0;
                Words::Qcow2 { offset_bits: 70u32.saturating_sub(bits), misaligned, extended }
            }
            Format::Qed => Words::Bytes,
            Format::Vhdx => Words::Vhdx,
            Format::Vdi => Words::Small { unit: 1 << 20, big: false },
            Format::Vhd => Words::Small { unit: 512, big: true },
            Format::Vmdk | Format::Parallels | Format::Raw => Words::Small { unit: 512, big: false },
        };
        Self { words, file_len: image.len(), count }
    }

    /// Goes over a part of a table that begins at `at`. Words are aligned in the file.
    pub(super) fn words(&self, at: u64, bytes: &mut [u8]) {
        let size = if matches!(self.words, Words::Small { .. }) { 4 } else { 8 };
        let skip = usize::try_from(at.wrapping_neg().checked_rem(size).unwrap_or(0)).unwrap_or(0);
        // Of which word of a pair the first one is.
        let mut odd = at.saturating_add(skip as u64) / 8 % 2 == 1;
        let mut gone = false;
        let size = usize::try_from(size).unwrap_or(8);
        for word in bytes.get_mut(skip..).unwrap_or_default().chunks_exact_mut(size) {
            match self.words {
                Words::Qcow2 { offset_bits, misaligned, extended } => {
                    let raw = be_u64(word, 0);
                    let new = match extended && odd {
                        // A bitmap goes with its entry.
                        true if gone && raw != 0 => BOTH,
                        true => raw,
                        false => qcow2(raw, offset_bits, misaligned),
                    };
                    gone = new != raw;
                    odd = !odd;
                    word.copy_from_slice(&new.to_be_bytes());
                }
                Words::Bytes => {
                    let raw = le_u64(word, 0);
                    if raw >= NO_OFFSET {
                        let low = if raw.is_multiple_of(512) { 0 } else { 1 };
                        word.copy_from_slice(&(0x00fe_0000_0000_0000u64 | low).to_le_bytes());
                    }
                }
                Words::Vhdx => {
                    let raw = le_u64(word, 0);
                    if raw >= NO_OFFSET {
                        let reserved = if raw & 0xf_fff8 == 0 { 0 } else { 8 };
                        word.copy_from_slice(&(0x00fe_0000_0000_0000u64 | reserved | raw & 7).to_le_bytes());
                    }
                }
                Words::Small { unit, big } => {
                    let raw = if big { be_u32(word, 0) } else { le_u32(word, 0) };
                    let far = u64::from(raw).saturating_mul(unit) >= self.file_len.saturating_mul(4);
                    if far && word.iter().all(|byte| (0x20..0x7f).contains(byte)) {
                        // Past the end, and no format's word for "nothing".
                        let none = 0xffff_fff0u32;
                        word.copy_from_slice(&if big { none.to_be_bytes() } else { none.to_le_bytes() });
                    }
                }
            }
        }
    }
}

impl Scrub {
    /// Text in a block of reference counts. What is told of counts depends on where they change, so there they change
    /// still: between two values that are as wrong.
    pub(super) fn counts(&self, bytes: &mut [u8]) {
        let size = self.count.max(1);
        for run in texts(bytes) {
            let from = run.start.next_multiple_of(size);
            let mut before: Option<(Vec<u8>, u8)> = None;
            let part = bytes.get_mut(from..run.end).unwrap_or_default();
            // A count whose beginning or end is text only is left as it is.
            for value in part.chunks_exact_mut(size) {
                let new = match &before {
                    Some((old, new)) if old.as_slice() == &*value => *new,
                    Some((_, b'x')) => b'y',
                    _ => b'x',
                };
                before = Some((value.to_vec(), new));
                value.fill(new);
            }
        }
    }

    /// Text where none belongs.
    pub(super) fn text(&self, at: u64, bytes: &mut [u8], allowed: &RangeSet<u64>) {
        for run in texts(bytes) {
            let place = |index: usize| at.saturating_add(index as u64);
            let range = place(run.start)..place(run.end);
            for gap in allowed.gaps(&range).collect::<Vec<_>>() {
                // A structure may begin right behind the text of a sector that is not its own.
                let mut from = gap.start;
                while from < gap.end {
                    let to = (from / SECTOR).saturating_add(1).saturating_mul(SECTOR).min(gap.end);
                    if let Some(part) = super::slice(bytes, at, &(from..to)) {
                        let magic = MAGICS.iter().find(|magic| from.is_multiple_of(SECTOR) && part.starts_with(magic));
                        let skip = magic.map_or(0, |magic| magic.len());
                        part.iter_mut().skip(skip).for_each(|byte| *byte = b'x');
                    }
                    from = to;
                }
            }
        }
    }
}

/// A marker of a compressed grain: a sector no disk has and a length no grain has become ones of ours.
pub(super) fn marker(bytes: &mut [u8]) {
    if le_u64(bytes, 0) >= NO_OFFSET {
        bytes.iter_mut().take(8).for_each(|byte| *byte = 0x7f);
    }
    if le_u32(bytes, 8) >= 1 << 28 {
        bytes.iter_mut().skip(8).take(4).for_each(|byte| *byte = 0x7f);
    }
}

/// Stretches of text: long ones, and not of one and the same character.
fn texts(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut all = Vec::new();
    let mut at = 0usize;
    for run in bytes.split(|byte| !(0x20..0x7f).contains(byte) && !matches!(byte, b'\n' | b'\r' | b'\t')) {
        let end = at.saturating_add(run.len());
        if run.len() >= TEXT_MIN && run.iter().any(|byte| Some(byte) != run.first()) {
            all.push(at..end);
        }
        at = end.saturating_add(1);
    }
    all
}

/// An L1 or L2 entry, or one of the refcount table or of a bitmap's.
fn qcow2(raw: u64, offset_bits: u32, misaligned: u64) -> u64 {
    if raw & COMPRESSED != 0 {
        let mask = 1u64.checked_shl(offset_bits.min(62)).unwrap_or(0).wrapping_sub(1);
        return if raw & mask >= NO_OFFSET { raw & (COPIED | COMPRESSED) | mask } else { raw };
    }
    if raw & OFFSET < NO_OFFSET {
        return raw;
    }
    let reserved = if raw & RESERVED != 0 { 1 << 57 } else { 0 };
    let askew = if raw & misaligned != 0 { 0x200 } else { 0 };
    raw & (COPIED | 1) | reserved | 0x00fe_0000_0000_0000 | askew
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_stay_and_text_goes() {
        let misaligned = 0xfe00;
        for raw in
            [0, 1, COPIED | 0x5_0000, 0x5_0200, COPIED | 1 << 60 | 0x7_0000, COMPRESSED | 0x7_1234, (1 << 47) + 512]
        {
            assert_eq!(qcow2(raw, 54, misaligned), raw, "{raw:#x}");
        }
        let mut texts: Vec<u64> = Vec::new();
        for text in [b"GUEST-DA", b"TA-GUEST", b" 0123456", b"\xffUEST-DA", b"~~~~~~~~"] {
            let new = qcow2(u64::from_be_bytes(*text), 54, misaligned);
            assert!(
                new.to_be_bytes().iter().skip(1).zip(text.iter().skip(1)).filter(|(a, b)| a == b).count() <= 1,
                "{new:#x}"
            );
            texts.push(new);
        }
        texts.sort_unstable();
        texts.dedup();
        assert!(texts.len() <= 4, "{texts:#x?}");
    }
}
