//! Bytes at a place: what the cache holds, gives to the medium, and shows to readers.

use std::rc::Rc;

use blkproof_block::ByteRange;
use blkproof_block::choice::hash;

/// What some bytes are.
#[derive(Clone, Debug)]
pub enum Content {
    /// These.
    Data {
        /// The data of a whole request.
        bytes: Rc<[u8]>,
        /// Where in it the first byte stands.
        from: usize,
    },
    /// Zeroes.
    Zeroes {
        /// The space may be given back.
        unmap: bool,
    },
    /// What is left of a block that lost power while it was written: determined by this number and the place.
    Noise(u64),
}

/// Bytes at a place. Never empty.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Where.
    pub range: ByteRange,
    /// What.
    pub content: Content,
}

impl Piece {
    /// The part of it inside `range`.
    pub fn clipped(&self, range: ByteRange) -> Option<Self> {
        let part = self.range.intersection(range)?;
        let skipped = usize::try_from(part.start.saturating_sub(self.range.start)).unwrap_or(usize::MAX);
        let content = match &self.content {
            Content::Data { bytes, from } => {
                Content::Data { bytes: Rc::clone(bytes), from: from.saturating_add(skipped) }
            }
            other => other.clone(),
        };
        Some(Self { range: part, content })
    }

    /// Its bytes, if they lie in memory already.
    pub fn data(&self) -> Option<&[u8]> {
        match &self.content {
            Content::Data { bytes, from } => {
                let len = usize::try_from(self.range.len()).ok()?;
                bytes.get(*from..from.checked_add(len)?)
            }
            _ => None,
        }
    }

    /// Copies what it has of the bytes from `at` on into `buf`.
    pub fn copy_to(&self, at: u64, buf: &mut [u8]) {
        let Some(part) = self.clipped(ByteRange::at(at, buf.len() as u64)) else { return };
        let (Ok(from), Ok(len)) =
            (usize::try_from(part.range.start.saturating_sub(at)), usize::try_from(part.range.len()))
        else {
            return;
        };
        let Some(out) = from.checked_add(len).and_then(|to| buf.get_mut(from..to)) else { return };
        match &part.content {
            Content::Data { .. } => {
                if let Some(data) = part.data() {
                    out.copy_from_slice(data);
                }
            }
            Content::Zeroes { .. } => out.fill(0),
            Content::Noise(seed) => {
                for (place, byte) in (part.range.start..).zip(out) {
                    *byte = hash(*seed, place >> 3).to_le_bytes().get((place & 7) as usize).copied().unwrap_or(0);
                }
            }
        }
    }

    /// Whether `next`, which begins where this one ends, is more of the same.
    fn continues_as(&self, next: &Self) -> bool {
        if self.range.end != next.range.start {
            return false;
        }
        match (&self.content, &next.content) {
            (Content::Zeroes { unmap: a }, Content::Zeroes { unmap: b }) => a == b,
            (Content::Noise(a), Content::Noise(b)) => a == b,
            (Content::Data { bytes: a, from }, Content::Data { bytes: b, from: next }) => {
                let len = usize::try_from(self.range.len()).ok();
                Rc::ptr_eq(a, b) && len.and_then(|len| from.checked_add(len)) == Some(*next)
            }
            _ => false,
        }
    }
}

/// Appends `piece` to pieces that lie before it, growing the last one where it continues it.
pub(super) fn append(pieces: &mut Vec<Piece>, piece: Piece) {
    match pieces.last_mut() {
        Some(last) if last.continues_as(&piece) => last.range.end = piece.range.end,
        _ => pieces.push(piece),
    }
}

/// `upper` over `lower`, both sorted and apart: the same of the result.
pub(super) fn laid_over(upper: &[Piece], lower: &[Piece]) -> Vec<Piece> {
    let mut all = without(lower, upper);
    all.extend_from_slice(upper);
    all.sort_by_key(|piece| piece.range.start);
    all
}

/// Leaves of sorted pieces what lies in the first `size` bytes.
pub(super) fn cut_off(pieces: &mut Vec<Piece>, size: u64) {
    pieces.truncate(pieces.partition_point(|piece| piece.range.start < size));
    if let Some(last) = pieces.last_mut() {
        last.range.end = last.range.end.min(size);
    }
}

/// What is left of `pieces` outside of `gone`, both sorted and apart.
pub(super) fn without(pieces: &[Piece], gone: &[Piece]) -> Vec<Piece> {
    let mut left = Vec::new();
    for piece in pieces {
        let first = gone.partition_point(|gone| gone.range.end <= piece.range.start);
        let gone = gone.get(first..).unwrap_or_default();
        let gone = gone.get(..gone.partition_point(|gone| gone.range.start < piece.range.end));
        left.extend(gaps(piece.range, gone.unwrap_or_default()).into_iter().filter_map(|gap| piece.clipped(gap)));
    }
    left
}

/// The parts of `range` that none of `pieces`, sorted and apart, covers.
pub(super) fn gaps(range: ByteRange, pieces: &[Piece]) -> Vec<ByteRange> {
    let mut gaps = Vec::new();
    let mut from = range.start;
    for piece in pieces {
        let gap = ByteRange { start: from, end: piece.range.start.min(range.end) };
        if !gap.is_empty() {
            gaps.push(gap);
        }
        from = from.max(piece.range.end);
    }
    let gap = ByteRange { start: from, end: range.end };
    if !gap.is_empty() {
        gaps.push(gap);
    }
    gaps
}
