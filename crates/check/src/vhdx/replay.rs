//! The image as it is once its log was replayed. Nothing is written: what the log replaces lies over the file in
//! memory.

use std::io;
use std::ops::Range;

use rangemap::RangeMap;

use crate::budget::{Budget, Full};
use crate::source::Source;

/// Bytes that a data descriptor replaces, and of a sector of the log.
pub(super) const SECTOR: u64 = SECTOR_LEN as u64;
/// The same, as a length in memory.
pub(super) const SECTOR_LEN: usize = 4096;
/// What a patch takes of the budget: the patch and its share of the tree, twice where it cuts another one in two.
const PATCH_COST: u64 = 192;

/// What a stretch of the file is replaced with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patch {
    Zero,
    /// A sector from `target` on. Its middle stays in the log, at byte `data` of the file; the log keeps the first 8
    /// bytes and the last 4 elsewhere, for their places are taken by the sector's own marks.
    Sector {
        target: u64,
        data: u64,
        first: [u8; 8],
        last: [u8; 4],
    },
}

/// A view of the image with the log's changes in it.
pub(super) struct Replayed<'a> {
    image: &'a dyn Source,
    budget: &'a Budget,
    len: u64,
    patches: RangeMap<u64, Patch>,
    taken: u64,
}

impl<'a> Replayed<'a> {
    /// The file as it is.
    pub(super) fn new(image: &'a dyn Source, budget: &'a Budget) -> Self {
        Self { image, budget, len: image.len(), patches: RangeMap::new(), taken: 0 }
    }

    /// The file is at least this long after the replay.
    pub(super) fn grow(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    /// Zeroes over `range`.
    pub(super) fn zero(&mut self, range: Range<u64>) -> Result<(), Full> {
        self.patch(range, Patch::Zero)
    }

    /// A sector of the log, which is at byte `data` of the file, over the one at `target`.
    pub(super) fn sector(&mut self, target: u64, data: u64, first: [u8; 8], last: [u8; 4]) -> Result<(), Full> {
        self.patch(target..target.saturating_add(SECTOR), Patch::Sector { target, data, first, last })
    }

    fn patch(&mut self, range: Range<u64>, patch: Patch) -> Result<(), Full> {
        self.budget.take(PATCH_COST)?;
        self.taken = self.taken.saturating_add(PATCH_COST);
        // Later entries of the log win over earlier ones.
        if !range.is_empty() {
            self.patches.insert(range, patch);
        }
        Ok(())
    }

    /// Lays one patch over what was read from `at` on.
    fn lay(&self, at: u64, buf: &mut [u8], over: &Range<u64>, patch: &Patch) -> io::Result<()> {
        let end = at.saturating_add(buf.len() as u64);
        let part = over.start.max(at)..over.end.min(end);
        let index = |place: u64| usize::try_from(place.saturating_sub(at)).unwrap_or(usize::MAX);
        let Some(into) = buf.get_mut(index(part.start)..index(part.end)) else { return Ok(()) };
        match patch {
            Patch::Zero => into.fill(0),
            Patch::Sector { target, data, first, last } => {
                let mut sector = [0u8; SECTOR_LEN];
                self.image.read_at(*data, &mut sector)?;
                let (head, rest) = sector.split_at_mut(8);
                head.copy_from_slice(first);
                if let Some(tail) = rest.last_chunk_mut::<4>() {
                    *tail = *last;
                }
                let from = usize::try_from(part.start.saturating_sub(*target)).unwrap_or(usize::MAX);
                for (to, from) in into.iter_mut().zip(sector.get(from..).unwrap_or_default()) {
                    *to = *from;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Replayed<'_> {
    fn drop(&mut self) {
        self.budget.give(self.taken);
    }
}

impl Source for Replayed<'_> {
    fn name(&self) -> String {
        self.image.name()
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn next_data(&self, at: u64) -> Option<Range<u64>> {
        let image = self.image.next_data(at);
        // What the log replaces, with zeroes too, counts as data.
        let patch = (at < self.len).then(|| self.patches.overlapping(at..self.len).next()).flatten();
        let patch = patch.map(|(over, _)| over.start.max(at)..over.end.min(self.len));
        match (image, patch) {
            (Some(image), Some(patch)) if patch.start < image.start => Some(patch),
            (Some(image), _) => Some(image),
            (None, patch) => patch,
        }
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        let there = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX).min(buf.len());
        let Some(buf) = buf.get_mut(..there) else { return Ok(0) };
        let read = self.image.read_at(at, buf)?;
        // Where the log makes the file longer there are zeroes.
        if let Some(beyond) = buf.get_mut(read..) {
            beyond.fill(0);
        }
        let range = at..at.saturating_add(there as u64);
        if !range.is_empty() {
            for (over, patch) in self.patches.overlapping(range) {
                self.lay(at, buf, over, patch)?;
            }
        }
        Ok(there)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
mod tests {
    use super::*;
    use crate::source::MemorySource;

    #[test]
    fn later_patches_win_and_partial_reads_see_them() {
        let image = MemorySource((0..32_768u32).map(|at| (at / 4096) as u8 + 1).collect());
        let budget = Budget::new(1 << 20);
        let mut view = Replayed::new(&image, &budget);
        // The sector that lies at 4096 goes to 16384; then its second half and more become zero; then a sector into
        // that.
        view.sector(16_384, 4096, [0xa0; 8], [0xb0; 4]).unwrap();
        view.zero(18_432..28_672).unwrap();
        view.sector(20_480, 8192, [0xc0; 8], [0xd0; 4]).unwrap();
        view.grow(40_000);
        let mut model = image.0.clone();
        model[16_384..18_432].fill(2);
        model[16_384..16_392].fill(0xa0);
        model[18_432..28_672].fill(0);
        model[20_480..24_576].fill(3);
        model[20_480..20_488].fill(0xc0);
        model[24_572..24_576].fill(0xd0);
        model.resize(40_000, 0);
        assert_eq!(view.len(), 40_000);
        for (at, len) in
            [(0, 40_000), (16_380, 20), (18_430, 5), (24_570, 10), (32_760, 100), (39_999, 10), (40_000, 1)]
        {
            let mut buf = vec![0xee; len];
            let read = view.read_at(at, &mut buf).unwrap();
            let at = at as usize;
            assert_eq!(buf[..read], model[at..(at + len).min(40_000)], "{len} bytes at {at}");
        }
        drop(view);
        assert_eq!(budget.left(), 1 << 20);
    }
}
