//! What a wrong sector holds, found out from the history.

use blkproof_block::ByteRange;
use blkproof_block::buffer::is_zero;

use crate::fingerprint::{Fingerprint, PIECE, PIECES};
use crate::history::{History, Version};
use crate::mismatch::{BITS, BitFlip, Diagnosis, EARLIER, STORIES, Sector};
use crate::{SECTOR, SECTOR_LEN, len_of};

/// Differing bits up to which a sector counts as right but for flipped bits. A sector of other data differs in about
/// 2048 of its 4096.
const FLIPS: u32 = 8;

/// The first differing byte and the sectors that differ, as ranges cut at the ends of the buffers. `None` if equal.
pub(crate) fn differing(at: u64, a: &[u8], b: &[u8]) -> Option<(u64, Vec<ByteRange>)> {
    let mut ranges: Vec<ByteRange> = Vec::new();
    let mut start = 0;
    let len = a.len().min(b.len());
    while start < len {
        let here = at + start as u64;
        let stop = len.min(start + len_of(SECTOR - here % SECTOR));
        if a[start..stop] != b[start..stop] {
            match ranges.last_mut() {
                Some(last) if last.end == here => last.end = at + stop as u64,
                _ => ranges.push(ByteRange { start: here, end: at + stop as u64 }),
            }
        }
        start = stop;
    }
    let first = a.iter().zip(b).position(|(x, y)| x != y)?;
    Some((at + first as u64, ranges))
}

/// Tells the story of each sector in `ranges`, up to [`STORIES`] of them. The buffers hold the bytes from `at`.
pub(crate) fn sectors(history: &History, at: u64, raw: &[u8], test: &[u8], ranges: &[ByteRange]) -> Vec<Sector> {
    let end = at + raw.len() as u64;
    let starts = ranges.iter().flat_map(|range| {
        let range = range.aligned_out(SECTOR);
        (range.start..range.end).step_by(SECTOR_LEN)
    });
    let pieces = starts.map(|start| ByteRange { start: start.max(at), end: (start + SECTOR).min(end) });
    pieces
        .take(STORIES)
        .map(|piece| {
            let bytes = len_of(piece.start - at)..len_of(piece.end - at);
            sector(history, piece.start, &raw[bytes.clone()], &test[bytes], (at, raw))
        })
        .collect()
}

fn sector(history: &History, at: u64, expected: &[u8], found: &[u8], around: (u64, &[u8])) -> Sector {
    let versions = history.versions(at / SECTOR);
    let mut bits = Vec::new();
    let mut bits_differing = 0;
    for ((want, got), place) in expected.iter().zip(found).zip(at..) {
        let differ = want ^ got;
        bits_differing += differ.count_ones();
        for bit in (0..8).filter(|bit| differ >> bit & 1 == 1) {
            if bits.len() < BITS {
                bits.push(BitFlip { at: place, bit, expected: want >> bit & 1 == 1 });
            }
        }
    }
    if bits.len() < bits_differing as usize {
        bits.clear();
    }
    let diagnosis = diagnose(history, &versions, at, expected, found, bits_differing, around);
    let mut newest_first = versions.into_iter().rev();
    let last_write = newest_first.find(Version::is_certain);
    let earlier = newest_first.take(EARLIER).collect();
    Sector { at, expected: expected.into(), found: found.into(), bits_differing, bits, diagnosis, last_write, earlier }
}

/// In order of certainty: what is proven by a fingerprint first, what is merely likely last.
fn diagnose(
    history: &History,
    versions: &[Version],
    at: u64,
    expected: &[u8],
    found: &[u8],
    bits_differing: u32,
    (around_at, around): (u64, &[u8]),
) -> Diagnosis {
    if is_zero(found) {
        return Diagnosis::Zeroes;
    }
    let print = Fingerprint::of(found);
    let latest = versions.iter().rev().find(|version| version.is_certain());
    if let Some(version) = latest.filter(|version| version.content == Some(print)) {
        return Diagnosis::ReferenceWrong { version: version.clone() };
    }
    if let Some(version) = versions.iter().rev().find(|version| version.content == Some(print)) {
        return Diagnosis::Stale { found: version.clone() };
    }
    if bits_differing <= FLIPS {
        return Diagnosis::BitFlips;
    }
    if let Some(torn) = torn(versions, at, expected, found, print) {
        return torn;
    }
    // No version of the sector itself is among them: those were tried above.
    if let Some((sector, version)) = history.places(print, 1).pop() {
        return Diagnosis::Misdirected { from: sector * SECTOR, version: Some(version) };
    }
    // Data older than the history can still be recognised beside its own place.
    let skip = len_of(around_at.next_multiple_of(SECTOR) - around_at).min(around.len());
    let neighbours = around[skip..].chunks_exact(SECTOR_LEN).position(|sector| sector == found);
    if let Some(index) = neighbours {
        let from = around_at + (skip + index * SECTOR_LEN) as u64;
        return Diagnosis::Misdirected { from, version: None };
    }
    Diagnosis::Foreign
}

/// Whether one end of `found` is right and the other is that of an older version, or zeroes.
///
/// The break can not be placed more exactly than by the bytes themselves: it is at the first differing byte, or a
/// little before it where old and new agree. The old part is proven by the tags of the 64-byte pieces that lie wholly
/// in it; with fewer than two such pieces chance could do the same, and nothing is claimed.
fn torn(versions: &[Version], at: u64, expected: &[u8], found: &[u8], print: Fingerprint) -> Option<Diagnosis> {
    if found.len() != SECTOR_LEN {
        return None;
    }
    let first = expected.iter().zip(found).position(|(a, b)| a != b)?;
    let last = expected.iter().zip(found).rposition(|(a, b)| a != b)? + 1;
    let right = Fingerprint::of(expected).tags;
    // An old part that is no different from the right one would prove nothing.
    let older = |pieces: std::ops::Range<usize>| {
        let part = print
            .tags
            .get(pieces.clone())
            .filter(|tags| tags.len() >= 2 && right.get(pieces.clone()) != Some(*tags))?;
        versions
            .iter()
            .rev()
            .find(|version| version.content.is_some_and(|content| content.tags.get(pieces.clone()) == Some(part)))
    };
    if first > 0 {
        if is_zero(&found[first..]) {
            return Some(Diagnosis::Torn { cut: at + first as u64, new_first: true, old: None });
        }
        if let Some(version) = older(first.div_ceil(PIECE)..PIECES) {
            return Some(Diagnosis::Torn { cut: at + first as u64, new_first: true, old: Some(version.clone()) });
        }
    }
    if last < SECTOR_LEN {
        if is_zero(&found[..last]) {
            return Some(Diagnosis::Torn { cut: at + last as u64, new_first: false, old: None });
        }
        if let Some(version) = older(0..last / PIECE) {
            return Some(Diagnosis::Torn { cut: at + last as u64, new_first: false, old: Some(version.clone()) });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differing_sectors_are_merged_and_cut_at_the_request() {
        let a = vec![0u8; 4096];
        /// Where the buffers begin, differing byte indices, first bad byte, ranges.
        type Row = (u64, &'static [usize], u64, &'static [(u64, u64)]);
        let table: [Row; 6] = [
            (0, &[0], 0, &[(0, 512)]),
            (0, &[511, 512], 511, &[(0, 1024)]),
            (0, &[4095], 4095, &[(3584, 4096)]),
            (0, &[0, 1024], 0, &[(0, 512), (1024, 1536)]),
            (100, &[0], 100, &[(100, 512)]),
            (100, &[412, 4095], 512, &[(512, 1024), (4096, 4196)]),
        ];
        for (at, indices, first, want) in table {
            let mut b = a.clone();
            indices.iter().for_each(|&index| b[index] = 1);
            let (got_first, got) = differing(at, &a, &b).unwrap();
            let got: Vec<_> = got.iter().map(|range| (range.start, range.end)).collect();
            assert_eq!((got_first, &*got), (first, want), "at {at}, bytes {indices:?}");
        }
        assert_eq!(differing(0, &a, &a), None);
        assert_eq!(differing(7, &[], &[]), None);
    }
}
