//! Reading tables of any length through one buffer: large reads, nothing twice, and what the medium does not give is
//! noted instead of ending the run.

use std::ops::Range;

use crate::bytes::{be_u64, is_zero};
use crate::source::Source;

/// Unreadable places kept apart; beyond that only the last one grows.
const BAD_MAX: usize = 1024;

pub(crate) struct Reader<'a> {
    image: &'a dyn Source,
    len: u64,
    buf: Vec<u8>,
    start: u64,
    filled: usize,
    /// What could not be read (and came as zeroes), in the order of reading.
    pub(crate) bad: Vec<Range<u64>>,
    /// Bytes read.
    pub(crate) done: u64,
}

impl<'a> Reader<'a> {
    /// With a buffer of `cap` bytes, which the caller has paid for.
    pub(crate) fn new(image: &'a dyn Source, len: u64, cap: usize) -> Self {
        Self { image, len, buf: vec![0; cap.max(4096)], start: 0, filled: 0, bad: Vec::new(), done: 0 }
    }

    /// The most bytes one [`get`](Self::get) gives.
    pub(crate) fn cap(&self) -> u64 {
        self.buf.len() as u64
    }

    /// `len` bytes from `at` on, fewer at the end of the file or of the buffer. If they have to be read, what follows
    /// up to `until` is read with them.
    pub(crate) fn get(&mut self, at: u64, len: u64, until: u64) -> &[u8] {
        let len = len.min(self.cap()).min(self.len.saturating_sub(at));
        let have = self.start..self.start.saturating_add(self.filled as u64);
        if at < have.start || at.saturating_add(len) > have.end {
            self.fill(at, len.max(until.min(self.len).saturating_sub(at)).min(self.cap()));
        }
        let from = usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let to = from.saturating_add(usize::try_from(len).unwrap_or(0));
        self.buf.get(from..to).unwrap_or_default()
    }

    fn fill(&mut self, at: u64, want: u64) {
        let want = usize::try_from(want).unwrap_or(0).min(self.buf.len());
        (self.start, self.filled) = (at, want);
        self.done = self.done.saturating_add(want as u64);
        let Some(buf) = self.buf.get_mut(..want) else { return };
        match self.image.read_at(at, buf) {
            Ok(read) if read == want => {}
            Ok(read) => {
                // The file became shorter meanwhile.
                buf.get_mut(read..).unwrap_or_default().fill(0);
                note(&mut self.bad, at.saturating_add(read as u64)..at.saturating_add(want as u64));
            }
            Err(_) => {
                // What can be read sector by sector is not given up with its neighbours.
                buf.fill(0);
                for (index, sector) in buf.chunks_mut(512).enumerate() {
                    let start = at.saturating_add((index as u64).saturating_mul(512));
                    let len = sector.len() as u64;
                    if self.image.read_at(start, sector).is_err() {
                        sector.fill(0);
                        note(&mut self.bad, start..start.saturating_add(len));
                    }
                }
            }
        }
    }

    /// Calls `each` with index and value of those entries of the table at `table` that are not 0. Entries are big-endian numbers
    /// of 64 bits, as those of the L1 table and of the refcount table are.
    pub(crate) fn entries<E>(
        &mut self,
        table: u64,
        entries: Range<u64>,
        each: &mut impl FnMut(u64, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let at_of = |index: u64| table.saturating_add(index.saturating_mul(8));
        let end = at_of(entries.end);
        let mut index = entries.start;
        while index < entries.end {
            let at = at_of(index);
            let piece = self.get(at, end.saturating_sub(at).min(1 << 16), end);
            if piece.len() < 8 {
                break;
            }
            for chunk in piece.chunks(512) {
                // Most of a large table was never written to.
                if is_zero(chunk) {
                    index = index.saturating_add(chunk.len() as u64 / 8);
                    continue;
                }
                for entry in chunk.as_chunks::<8>().0 {
                    let raw = be_u64(entry, 0);
                    if raw != 0 {
                        each(index, raw)?;
                    }
                    index = index.saturating_add(1);
                }
            }
        }
        Ok(())
    }

    /// Whether any byte of a range could not be read.
    pub(crate) fn is_bad(&self, range: &Range<u64>) -> bool {
        self.bad.iter().any(|bad| bad.start < range.end && range.start < bad.end)
    }
}

fn note(bad: &mut Vec<Range<u64>>, range: Range<u64>) {
    let full = bad.len() >= BAD_MAX;
    match bad.last_mut() {
        Some(last) if last.end == range.start || full => {
            last.start = last.start.min(range.start);
            last.end = last.end.max(range.end);
        }
        _ => bad.push(range),
    }
}
