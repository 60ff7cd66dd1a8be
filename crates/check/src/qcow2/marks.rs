//! Bits and small keys per host cluster, in pages that exist only where something was noted. Shared by threads.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::budget::{Budget, Full};
use crate::tally::PAGE;

/// A window of clusters cut into pages of cells; memory is paid for page by page and given back on drop.
struct Pages<'b, T> {
    window: Range<u64>,
    pages: Vec<OnceLock<Box<[T]>>>,
    cells: usize,
    budget: &'b Budget,
    taken: AtomicU64,
}

impl<'b, T: Default> Pages<'b, T> {
    fn new(window: Range<u64>, cells: usize, budget: &'b Budget) -> Result<Self, Full> {
        let pages = window.end.saturating_sub(window.start).div_ceil(PAGE);
        let bytes = pages.saturating_mul(size_of::<OnceLock<Box<[T]>>>() as u64);
        budget.take(bytes)?;
        let pages = usize::try_from(pages).map_err(|_| Full)?;
        let pages = std::iter::repeat_with(OnceLock::new).take(pages).collect();
        Ok(Self { window, pages, cells, budget, taken: AtomicU64::new(bytes) })
    }

    /// Page and index in it. `None` outside the window.
    fn place(&self, cluster: u64) -> Option<(&OnceLock<Box<[T]>>, u64)> {
        if !self.window.contains(&cluster) {
            return None;
        }
        let at = cluster.saturating_sub(self.window.start);
        let slot = usize::try_from(at / PAGE).ok().and_then(|index| self.pages.get(index))?;
        Some((slot, at % PAGE))
    }

    fn made<'p>(&self, slot: &'p OnceLock<Box<[T]>>) -> Result<&'p [T], Full> {
        if let Some(page) = slot.get() {
            return Ok(page);
        }
        let bytes = (self.cells as u64).saturating_mul(size_of::<T>() as u64);
        self.budget.take(bytes)?;
        let mut ours = false;
        let page = slot.get_or_init(|| {
            ours = true;
            std::iter::repeat_with(T::default).take(self.cells).collect()
        });
        if ours {
            self.taken.fetch_add(bytes, Ordering::Relaxed);
        } else {
            self.budget.give(bytes);
        }
        Ok(page)
    }
}

impl<T> Drop for Pages<'_, T> {
    fn drop(&mut self) {
        self.budget.give(self.taken.load(Ordering::Relaxed));
    }
}

/// One bit per cluster.
pub(crate) struct Marks<'b>(Pages<'b, AtomicU64>);

impl<'b> Marks<'b> {
    pub(crate) fn new(window: Range<u64>, budget: &'b Budget) -> Result<Self, Full> {
        Pages::new(window, usize::try_from(PAGE / 64).unwrap_or(0), budget).map(Self)
    }

    /// Marks `count` clusters from `first` on; those outside the window are left out.
    pub(crate) fn set(&self, first: u64, count: u64) -> Result<(), Full> {
        let end = first.saturating_add(count).min(self.0.window.end);
        let mut cluster = first.max(self.0.window.start);
        while cluster < end {
            let Some((slot, at)) = self.0.place(cluster) else { break };
            let page = self.0.made(slot)?;
            let here = end.saturating_sub(cluster).min(64u64.saturating_sub(at % 64));
            let ones = u64::MAX.checked_shr(u32::try_from(64u64.saturating_sub(here)).unwrap_or(0)).unwrap_or(0);
            if let Some(word) = page.get(usize::try_from(at / 64).unwrap_or(0)) {
                let mask = ones << (at % 64);
                if word.load(Ordering::Relaxed) & mask != mask {
                    word.fetch_or(mask, Ordering::Relaxed);
                }
            }
            cluster = cluster.saturating_add(here);
        }
        Ok(())
    }

    #[cfg(test)]
    fn has(&self, cluster: u64) -> bool {
        self.run_at(cluster).0
    }

    /// Whether a cluster is marked, and where the stretch of such clusters ends (at a word's end at the latest, at a
    /// page's end if nothing in it is marked).
    pub(crate) fn run_at(&self, cluster: u64) -> (bool, u64) {
        let Some((slot, at)) = self.0.place(cluster) else { return (false, u64::MAX) };
        let window_end = self.0.window.end;
        let Some(page) = slot.get() else {
            return (false, cluster.saturating_add(PAGE.saturating_sub(at)).min(window_end));
        };
        let word = page.get(usize::try_from(at / 64).unwrap_or(0)).map_or(0, |word| word.load(Ordering::Relaxed));
        let word = word >> (at % 64);
        let set = word & 1 == 1;
        let same = if set { word.trailing_ones() } else { word.trailing_zeros() };
        let same = u64::from(same).min(64u64.saturating_sub(at % 64)).max(1);
        (set, cluster.saturating_add(same).min(window_end))
    }
}

/// A key per cluster: who refers to it first. Who comes with another key clashes.
pub(crate) struct Keys<'b>(Pages<'b, AtomicU32>);

impl<'b> Keys<'b> {
    pub(crate) fn new(window: Range<u64>, budget: &'b Budget) -> Result<Self, Full> {
        Pages::new(window, usize::try_from(PAGE).unwrap_or(0), budget).map(Self)
    }

    /// Notes that `key` refers to a cluster; whether somebody with another key does too. Outside the window nobody
    /// clashes.
    pub(crate) fn clashes(&self, cluster: u64, key: u32) -> Result<bool, Full> {
        let Some((slot, at)) = self.0.place(cluster) else { return Ok(false) };
        let page = self.0.made(slot)?;
        let Some(cell) = page.get(usize::try_from(at).unwrap_or(0)) else { return Ok(false) };
        // 0 says that nobody came yet.
        let key = key.max(1);
        let before = cell.compare_exchange(0, key, Ordering::Relaxed, Ordering::Relaxed);
        Ok(before.is_err_and(|other| other != key))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_where_they_were_set() {
        let budget = Budget::new(1 << 20);
        let marks = Marks::new(PAGE..3 * PAGE + 10, &budget).unwrap();
        marks.set(PAGE + 60, 10).unwrap();
        marks.set(3 * PAGE + 5, 100).unwrap();
        marks.set(0, 5).unwrap();
        let marked: Vec<u64> = (0..4 * PAGE).filter(|&cluster| marks.has(cluster)).collect();
        let want: Vec<u64> = (PAGE + 60..PAGE + 70).chain(3 * PAGE + 5..3 * PAGE + 10).collect();
        assert_eq!(marked, want);
        drop(marks);
        assert_eq!(budget.left(), 1 << 20);
    }

    #[test]
    fn another_key_clashes() {
        let budget = Budget::new(1 << 20);
        let keys = Keys::new(0..PAGE, &budget).unwrap();
        for (cluster, key, clash) in
            [(5, 7, false), (5, 7, false), (5, 8, true), (6, 0, false), (6, 1, false), (PAGE, 1, false)]
        {
            assert_eq!(keys.clashes(cluster, key).unwrap(), clash, "{cluster} {key}");
        }
    }
}
