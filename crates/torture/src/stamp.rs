//! Payloads: slices of 512 bytes that say who wrote them, and where (CM 3).
//!
//! ```text
//! 0    magic with the version of this layout (8)
//! 8    disk: the one under test, or the base image below it (8)
//! 16   byte address of the slice (8)
//! 24   op that wrote it (4), 0 in the base image
//! 28   generation, always 0 (4)
//! 32   slice index: the low half of address / 512 (4)
//! 36   kind of body (4)
//! 40   body (468)
//! 508  CRC-32C of all before, masked by the key (4)
//! ```
//!
//! All numbers are little-endian. Every byte is a function of op, kind and address alone, so a request that begins or
//! ends inside a slice writes the part of the slice it covers, and any run of bytes can be compared with what an op
//! would have written there. No slice is all zero. The body is a key of (op, address) that counts up word by word: two
//! keys differ in every word of it, and filling it costs an addition a word, which no real cipher does.

use blkproof_block::choice::hash;

use crate::plan::OpId;

/// Bytes of one slice.
pub const SLICE: usize = 512;

const MAGIC: u64 = u64::from_le_bytes(*b"blkprf\x01\n");
const DISK: u64 = 0x6469_736b_2d30_3031;
const BASE: u64 = 0x6261_7365_2d30_3031;
const BODY: usize = 40;
const CRC: usize = 508;
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What kind of body a slice has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Body {
    /// A keystream.
    Plain,
    /// The same 16 bytes again and again, for targets that compress.
    Compressible,
}

/// What a slice was found to hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stamp {
    /// Zero bytes only.
    Zero,
    /// What `op` wrote to this address.
    Written {
        /// The writer.
        op: OpId,
        /// With which kind of body.
        body: Body,
    },
    /// What the base image holds at this address.
    Base,
    /// What `op` wrote to another address.
    Misplaced {
        /// The writer.
        op: OpId,
        /// Where it belongs.
        from: u64,
    },
    /// What the base image holds at another address.
    MisplacedBase {
        /// Where it belongs.
        from: u64,
    },
    /// Begins as a whole slice would that `op` wrote to `from` (`op` 0: of the base image), and goes on as something
    /// else.
    Torn {
        /// The writer of the first bytes.
        op: OpId,
        /// Where they belong.
        from: u64,
        /// How many bytes are as they should be.
        until: usize,
    },
    /// No stamp.
    Garbage,
}

/// Fills `buf`, which lies at byte `at` of the disk, with what `op` writes there.
pub fn fill(buf: &mut [u8], at: u64, op: OpId) {
    fill_slices(buf, at, |slice, at| write_slice(slice, at, DISK, op, Body::Plain));
}

/// As [`fill`], with bytes that can be compressed.
pub fn fill_compressible(buf: &mut [u8], at: u64, op: OpId) {
    fill_slices(buf, at, |slice, at| write_slice(slice, at, DISK, op, Body::Compressible));
}

/// Fills `buf`, which lies at byte `at` of the base image, with what that holds.
pub fn base_fill(buf: &mut [u8], at: u64) {
    fill_slices(buf, at, |slice, at| write_slice(slice, at, BASE, 0, base_body(at)));
}

/// Every other 8 KiB of a base can be compressed, so that of clusters of any size some can.
const fn base_body(at: u64) -> Body {
    match at >> 13 & 1 {
        0 => Body::Plain,
        _ => Body::Compressible,
    }
}

/// Whether `found`, which lies at byte `at`, is what `op` writes there.
pub fn is_written(found: &[u8], at: u64, op: OpId, body: Body) -> bool {
    same(found, at, |slice, at| write_slice(slice, at, DISK, op, body))
}

/// Whether `found`, which lies at byte `at`, is what the base image holds there.
pub fn is_base(found: &[u8], at: u64) -> bool {
    same(found, at, |slice, at| write_slice(slice, at, BASE, 0, base_body(at)))
}

/// Whether all bytes are zero.
pub fn is_zero(found: &[u8]) -> bool {
    // Comparing memory is what the system's library does with the widest registers there are.
    const ZEROES: [u8; 4096] = [0; 4096];
    found.chunks(ZEROES.len()).all(|part| *part == ZEROES[..part.len()])
}

/// Who says to have written the whole slice that begins with these bytes. To be believed only after a comparison.
pub fn claimed_writer(found: &[u8]) -> Option<OpId> {
    let op = found.get(24..28)?.try_into().ok()?;
    (word(found, 0) == Some(MAGIC) && word(found, 8) == Some(DISK)).then(|| u32::from_le_bytes(op))
}

/// Says what the 512 bytes found at `at` (a multiple of 512) are.
pub fn decode(found: &[u8], at: u64) -> Stamp {
    if is_zero(found) {
        return Stamp::Zero;
    }
    let (Some(MAGIC), Some(disk), Some(from), Some(op)) =
        (word(found, 0), word(found, 8), word(found, 16), found.get(24..28))
    else {
        return Stamp::Garbage;
    };
    let op = op.try_into().map_or(0, u32::from_le_bytes);
    let body = match found.get(36..40) {
        Some([1, 0, 0, 0]) => Body::Compressible,
        _ => Body::Plain,
    };
    if found.len() != SLICE || !from.is_multiple_of(SLICE as u64) || ![DISK, BASE].contains(&disk) {
        return Stamp::Garbage;
    }
    let mut want = [0; SLICE];
    write_slice(&mut want, from, disk, op, body);
    match (want.iter().zip(found).position(|(want, found)| want != found), disk == BASE, from == at) {
        (Some(until), ..) => Stamp::Torn { op, from, until },
        (None, false, true) => Stamp::Written { op, body },
        (None, false, false) => Stamp::Misplaced { op, from },
        (None, true, true) => Stamp::Base,
        (None, true, false) => Stamp::MisplacedBase { from },
    }
}

fn word(found: &[u8], at: usize) -> Option<u64> {
    found.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

/// Where byte `at` lies in its slice.
#[allow(clippy::cast_possible_truncation, reason = "it is below 512")]
const fn offset(at: u64) -> usize {
    (at % SLICE as u64) as usize
}

#[inline]
fn fill_slices(buf: &mut [u8], at: u64, write: impl Fn(&mut [u8; SLICE], u64)) {
    let mut at = at;
    let mut rest = buf;
    while !rest.is_empty() {
        let skip = offset(at);
        let (part, tail) = rest.split_at_mut((SLICE - skip).min(rest.len()));
        match <&mut [u8; SLICE]>::try_from(&mut *part) {
            Ok(whole) => write(whole, at),
            Err(_) => {
                let mut slice = [0; SLICE];
                write(&mut slice, at - skip as u64);
                part.copy_from_slice(&slice[skip..skip + part.len()]);
            }
        }
        at = at.saturating_add(part.len() as u64);
        rest = tail;
    }
}

#[inline]
fn same(found: &[u8], at: u64, write: impl Fn(&mut [u8; SLICE], u64)) -> bool {
    let mut at = at;
    let mut rest = found;
    while !rest.is_empty() {
        let skip = offset(at);
        let (part, tail) = rest.split_at((SLICE - skip).min(rest.len()));
        let mut slice = [0; SLICE];
        write(&mut slice, at - skip as u64);
        if slice[skip..skip + part.len()] != *part {
            return false;
        }
        at = at.saturating_add(part.len() as u64);
        rest = tail;
    }
    true
}

/// The slice at `at`, a multiple of 512.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the low half of the index is what is meant")]
fn write_slice(slice: &mut [u8; SLICE], at: u64, disk: u64, op: OpId, body: Body) {
    let kind = match body {
        Body::Plain => 0u32,
        Body::Compressible => 1,
    };
    let index = (at / SLICE as u64) as u32;
    slice[0..8].copy_from_slice(&MAGIC.to_le_bytes());
    slice[8..16].copy_from_slice(&disk.to_le_bytes());
    slice[16..24].copy_from_slice(&at.to_le_bytes());
    slice[24..28].copy_from_slice(&op.to_le_bytes());
    slice[28..32].fill(0);
    slice[32..36].copy_from_slice(&index.to_le_bytes());
    slice[36..40].copy_from_slice(&kind.to_le_bytes());
    let key = hash(at ^ disk, u64::from(op) << 1 | u64::from(kind));
    match body {
        Body::Plain => {
            let mut count = key;
            let (words, tail) = slice[BODY..CRC].as_chunks_mut::<8>();
            for word in words {
                // The fold spreads what differs between two keys over more bytes; it loses nothing.
                *word = (count ^ count >> 32).to_le_bytes();
                count = count.wrapping_add(STEP);
            }
            tail.copy_from_slice(&(count as u32).to_le_bytes());
        }
        Body::Compressible => {
            let mut cell = [0; 16];
            cell[..8].copy_from_slice(&key.to_le_bytes());
            cell[8..].copy_from_slice(&(key ^ STEP).to_le_bytes());
            for part in slice[BODY..CRC].chunks_mut(16) {
                part.copy_from_slice(&cell[..part.len()]);
            }
        }
    }
    // Masked by what the key makes of it: a CRC behind its own bytes would leave the same rest in every slice, and a target
    // that sums whole blocks with CRC-32C could not tell them apart.
    let crc = crc32c::crc32c(&slice[..CRC]) ^ (key ^ key >> 32) as u32;
    slice[CRC..].copy_from_slice(&crc.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(at: u64, len: usize, op: OpId) -> Vec<u8> {
        let mut buf = vec![0xee; len];
        fill(&mut buf, at, op);
        buf
    }

    fn base(at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0xee; len];
        base_fill(&mut buf, at);
        buf
    }

    #[test]
    fn a_slice_says_who_wrote_it() {
        let mut torn = bytes(1024, SLICE, 7);
        torn[256..].copy_from_slice(&bytes(1024, SLICE, 8)[256..]);
        let mut wrong_crc = bytes(1024, SLICE, 7);
        wrong_crc[511] ^= 1;
        let mut torn_base = base(1024, SLICE);
        torn_base[300] ^= 1;
        let mut pressed = vec![0; SLICE];
        fill_compressible(&mut pressed, 1024, 9);
        let mut other_disk = bytes(1024, SLICE, 7);
        other_disk[8] ^= 1;
        let table = [
            (vec![0; SLICE], Stamp::Zero),
            (bytes(1024, SLICE, 7), Stamp::Written { op: 7, body: Body::Plain }),
            (pressed, Stamp::Written { op: 9, body: Body::Compressible }),
            (bytes(2048, SLICE, 7), Stamp::Misplaced { op: 7, from: 2048 }),
            (base(1024, SLICE), Stamp::Base),
            (base(512, SLICE), Stamp::MisplacedBase { from: 512 }),
            (torn, Stamp::Torn { op: 7, from: 1024, until: 256 }),
            (wrong_crc, Stamp::Torn { op: 7, from: 1024, until: 511 }),
            (torn_base, Stamp::Torn { op: 0, from: 1024, until: 300 }),
            (other_disk, Stamp::Garbage),
            (vec![1; SLICE], Stamp::Garbage),
            (bytes(1024, 100, 7), Stamp::Garbage),
            (bytes(1025, SLICE, 7), Stamp::Garbage),
        ];
        for (index, (found, want)) in table.into_iter().enumerate() {
            assert_eq!(decode(&found, 1024), want, "row {index}");
        }
    }

    #[test]
    fn a_part_is_a_part_of_the_whole() {
        let whole = bytes(512, 2048, 3);
        for (at, len) in [(700, 1000), (512, 1), (1023, 2), (1024, 512), (2559, 1), (513, 2047)] {
            let part = bytes(at, len, 3);
            assert_eq!(part, whole[usize::try_from(at).unwrap() - 512..][..len]);
            assert!(is_written(&part, at, 3, Body::Plain));
            assert!(!is_written(&part, at, 3, Body::Compressible) || len < 8, "{at} {len}");
            for wrong in 0..len {
                let mut other = part.clone();
                other[wrong] ^= 0x40;
                assert!(!is_written(&other, at, 3, Body::Plain), "byte {wrong} of {at}");
            }
        }
    }

    #[test]
    fn compressible_bytes_are_what_they_claim() {
        let mut slice = [0; SLICE];
        fill_compressible(&mut slice, 512, 3);
        assert!(slice[BODY..CRC].chunks(16).all(|cell| *cell == slice[BODY..BODY + cell.len()]));
        assert!(is_written(&slice, 512, 3, Body::Compressible) && !is_written(&slice, 512, 3, Body::Plain));
    }

    #[test]
    fn no_payload_is_zero_and_every_word_tells_two_writers_apart() {
        for op in 1..200 {
            for at in [0, 512, 1 << 32, 1 << 40] {
                let (one, two) = (bytes(at, SLICE, op), bytes(at, SLICE, op + 1));
                let elsewhere = bytes(at + 512, SLICE, op);
                for word in (BODY..CRC - 7).step_by(8) {
                    assert_ne!(one[word..word + 8], two[word..word + 8]);
                    assert_ne!(one[word..word + 8], elsewhere[word..word + 8]);
                    assert!(!is_zero(&one[word..word + 8]), "op {op} at {at}, word {word}");
                }
            }
        }
    }

    #[test]
    fn a_stored_dump_stays_readable() {
        let slice = bytes(0x1_0000_0200, SLICE, 77);
        assert_eq!(slice[..16], *b"blkprf\x01\n100-ksid");
        let sum = crc32c::crc32c(&slice[..CRC]);
        assert_eq!(sum, 0xb78a_db94, "{sum:#x}");
        assert_eq!(claimed_writer(&slice), Some(77));
        assert_eq!(claimed_writer(&base(0, SLICE)), None);
    }
}
