//! Where requests go: the disk in at most [`CELLS`] cells of equal size, each with what touched it.
//!
//! Invariant: a cell is a power of two of bytes, at least a sector, and the whole disk fits the cells. A disk that
//! grows makes the cells coarser, two into one, so that nothing counted is lost and memory stays what it was.

/// Cells there are at most.
pub const CELLS: usize = 4096;

const SECTOR: u64 = 512;

/// What happened to a cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Touch {
    Read,
    Write,
    Error,
}

/// One cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cell {
    /// Reads that touched it.
    pub reads: u64,
    /// Writes, write zeroes and discards that touched it.
    pub writes: u64,
    /// Requests that failed in it: at their first bad byte if that is known, else at their first.
    pub errors: u64,
}

/// The map.
#[derive(Debug)]
pub(super) struct Heat {
    cells: Box<[Cell]>,
    shift: u32,
}

impl Heat {
    pub(super) fn new(size: u64) -> Self {
        let mut heat = Self { cells: vec![Cell::default(); CELLS].into_boxed_slice(), shift: SECTOR.trailing_zeros() };
        heat.make_room(size);
        heat
    }

    /// Counts a request of `len` bytes at `at`, in every cell it touches. One that reaches beyond the map has no place in
    /// it: what fails may be anywhere, and cells never become smaller again.
    pub(super) fn touch(&mut self, at: u64, len: u64, touch: Touch) {
        let Some(last) = at.checked_add(len.max(1)).map(|end| end - 1) else { return };
        let cell = |byte: u64| usize::try_from(byte >> self.shift).unwrap_or(usize::MAX);
        for cell in self.cells.get_mut(cell(at)..=cell(last)).unwrap_or_default() {
            match touch {
                Touch::Read => cell.reads += 1,
                Touch::Write => cell.writes += 1,
                Touch::Error => cell.errors += 1,
            }
        }
    }

    /// Bytes of a cell.
    pub(super) fn cell_size(&self) -> u64 {
        1 << self.shift
    }

    /// Every cell, up to the last that was touched.
    pub(super) fn cells(&self) -> Vec<Cell> {
        let used = self.cells.iter().rposition(|cell| *cell != Cell::default()).map_or(0, |last| last + 1);
        self.cells.get(..used).unwrap_or_default().to_vec()
    }

    /// The disk has so many bytes now, or fewer.
    pub(super) fn make_room(&mut self, size: u64) {
        while size > 0 && (size - 1) >> self.shift >= CELLS as u64 {
            for pair in 0..CELLS / 2 {
                let mut sum = Cell::default();
                for cell in self.cells.get(2 * pair..2 * pair + 2).unwrap_or_default() {
                    sum.reads += cell.reads;
                    sum.writes += cell.writes;
                    sum.errors += cell.errors;
                }
                if let Some(cell) = self.cells.get_mut(pair) {
                    *cell = sum;
                }
            }
            self.cells.get_mut(CELLS / 2..).unwrap_or_default().fill(Cell::default());
            self.shift += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_of_every_size_fit() {
        for (size, want) in [
            (0, 512),
            (1, 512),
            (1 << 20, 512),
            (2 << 20, 512),
            ((2 << 20) + 1, 1024),
            (100 << 30, 32 << 20),
            (2 << 40, 512 << 20),
            (u64::MAX, 1 << 52),
        ] {
            let mut heat = Heat::new(size);
            assert_eq!(heat.cell_size(), want, "{size} bytes");
            if let Some(last) = size.checked_sub(1) {
                heat.touch(last, 1, Touch::Error);
                assert_eq!(heat.cell_size(), want, "the last byte of {size} is inside");
                assert_eq!(heat.cells().last().map(|cell| cell.errors), Some(1), "{size} bytes");
            }
        }
    }

    #[test]
    fn a_request_touches_every_cell_it_reaches_and_no_other() {
        let mut heat = Heat::new(1 << 20);
        for (at, len) in [(0, 512), (511, 2), (1024, 0), (5 * 512, 3 * 512)] {
            heat.touch(at, len, Touch::Write);
        }
        let writes: Vec<u64> = heat.cells().iter().map(|cell| cell.writes).collect();
        assert_eq!(writes, [2, 1, 1, 0, 0, 1, 1, 1]);
    }

    #[test]
    fn growing_loses_nothing() {
        let mut heat = Heat::new(1 << 20);
        for sector in 0..2048 {
            heat.touch(sector * 512, 512, Touch::Read);
        }
        heat.make_room((64 << 20) + 1);
        heat.touch(64 << 20, 1, Touch::Write);
        assert_eq!(heat.cell_size(), 32 << 10);
        let sum: u64 = heat.cells().iter().map(|cell| cell.reads).sum();
        assert_eq!((sum, heat.cells()[0].reads, heat.cells()[31].reads, heat.cells()[32].reads), (2048, 64, 64, 0));
    }

    #[test]
    fn what_lies_beyond_the_disk_makes_no_cell_larger() {
        let mut heat = Heat::new(1 << 20);
        for (at, len) in [(u64::MAX, 1), (u64::MAX, 2), (1 << 62, 512), (1 << 20, 1 << 40), (1 << 40, 0)] {
            heat.touch(at, len, Touch::Error);
        }
        assert_eq!((heat.cell_size(), heat.cells().len()), (512, 0));
    }
}
