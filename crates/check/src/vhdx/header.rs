//! The two headers at 64 and 128 KiB. They are written in turn, so one of them is always whole.

use std::ops::Range;

use super::codes;
use crate::bytes::{le_u16, le_u32, le_u64};
use crate::context::Context;
use crate::finding::Finding;

/// Where the headers are.
pub(super) const PLACES: [u64; 2] = [64 << 10, 128 << 10];
/// Bytes of a header.
pub(super) const LEN: usize = 4096;

/// The fields ([MS-VHDX] 2.2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) at: u64,
    pub(super) sequence: u64,
    pub(super) log_guid: [u8; 16],
    pub(super) log_version: u16,
    pub(super) log: Range<u64>,
    pub(super) file_write: [u8; 16],
    pub(super) data_write: [u8; 16],
}

/// What is at the place of a header.
enum There {
    Sound(Header, Vec<u8>),
    /// Begins as a header does; its sequence number as it stands.
    Bad(u64, &'static str),
    Nothing,
}

/// CRC-32C with the field at 4..8 counted as zero ([MS-VHDX] 2.2).
pub(super) fn checksum_right(bytes: &[u8]) -> bool {
    let crc = crc32c::crc32c(bytes.get(..4).unwrap_or_default());
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, bytes.get(8..).unwrap_or_default()) == le_u32(bytes, 4)
}

pub(super) fn guid(bytes: &[u8], at: usize) -> [u8; 16] {
    let there = at.checked_add(16).and_then(|end| bytes.get(at..end));
    there.and_then(|there| there.try_into().ok()).unwrap_or([0; 16])
}

fn parse(at: u64, bytes: &[u8]) -> There {
    if !bytes.starts_with(b"head") {
        return There::Nothing;
    }
    let sequence = le_u64(bytes, 8);
    if bytes.len() < LEN || !checksum_right(bytes) {
        return There::Bad(sequence, "its checksum does not match its bytes");
    }
    if le_u16(bytes, 66) != 1 {
        return There::Bad(sequence, "its version is not 1");
    }
    let log = le_u64(bytes, 72);
    let header = Header {
        at,
        sequence,
        file_write: guid(bytes, 16),
        data_write: guid(bytes, 32),
        log_guid: guid(bytes, 48),
        log_version: le_u16(bytes, 64),
        log: log..log.saturating_add(u64::from(le_u32(bytes, 68))),
    };
    There::Sound(header, bytes.to_vec())
}

/// The header that counts: of the sound ones the one with the larger sequence number.
pub(super) fn current(cx: &mut Context<'_>) -> Option<Header> {
    let [first, second] = PLACES.map(|at| parse(at, &cx.read(at, LEN, "a header")));
    let [range_1, range_2] = PLACES.map(|at| at..at.saturating_add(LEN as u64));
    match (first, second) {
        (There::Sound(first, bytes), There::Sound(second, others)) => {
            if first.sequence == second.sequence && bytes != others {
                let words = format!("both headers have sequence number {} and differ otherwise", first.sequence);
                cx.find(Finding::new(codes::HEADER_AMBIGUOUS, words).host(range_1).host(range_2));
            }
            Some(if second.sequence > first.sequence { second } else { first })
        }
        (There::Sound(header, _), bad) => Some(one_bad(cx, header, &bad, range_2)),
        (bad, There::Sound(header, _)) => Some(one_bad(cx, header, &bad, range_1)),
        (first, second) => {
            let words = format!(
                "header 1 at {:#x}: {}; header 2 at {:#x}: {}",
                range_1.start,
                why(&first),
                range_2.start,
                why(&second)
            );
            cx.find(Finding::new(codes::HEADER_NONE, words).host(range_1).host(range_2).count(2));
            None
        }
    }
}

fn why(there: &There) -> &'static str {
    match there {
        There::Sound(..) => "sound",
        There::Bad(_, why) => why,
        There::Nothing => "there is no header",
    }
}

fn one_bad(cx: &mut Context<'_>, header: Header, bad: &There, place: Range<u64>) -> Header {
    let state = match bad {
        There::Bad(sequence, _) if *sequence > header.sequence => ": it was being written when the writer was stopped",
        _ => "",
    };
    let words = format!(
        "the header at {:#x}: {}{state}; the one at {:#x} with sequence number {} counts",
        place.start,
        why(bad),
        header.at,
        header.sequence
    );
    cx.find(Finding::new(codes::HEADER_COPY, words).host(place));
    header
}
