//! How often each host cluster is referred to, in bounded memory.
//!
//! One bit says "referred to"; a page of counters exists only where something was referred to more than once. Pages come
//! into being when first touched, and are paid for out of the [`Budget`]; a page that one run covers needs no bits at all. Where that ends, the work is done window by window
//! of the file ([`in_windows`]): more passes, never more memory.
//!
//! Adding takes `&self`: threads share one tally. The sums do not depend on their order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::budget::{Budget, Full};

/// Windows are made of so many clusters.
pub(crate) const PAGE: u64 = 1 << 15;
/// Clusters in a page of a tally.
const LEAF: u64 = 1 << 12;
const CELLS: usize = 1 << 12;
const WORDS: usize = CELLS / 64;
const BITS_BYTES: u64 = LEAF / 8;

/// References beyond the first, up to 254; 255 means "see `many`".
type Extra = Box<[AtomicU8; CELLS]>;

#[derive(Default)]
struct Page {
    /// Not there until somebody comes.
    /// `None` if a single run referred to all of it before anybody else came: every bit is set, then and for ever.
    bits: OnceLock<Option<Box<[AtomicU64; WORDS]>>>,
    extra: OnceLock<Extra>,
}

impl Page {
    fn word(&self, at: u64) -> u64 {
        let Some(bits) = self.bits.get() else { return 0 };
        let Some(bits) = bits else { return u64::MAX };
        bits.get(usize::try_from(at / 64).unwrap_or(0)).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Sets bits of one word; what it was before.
    fn set(&self, at: u64, mask: u64) -> u64 {
        let Some(Some(bits)) = self.bits.get() else { return u64::MAX };
        let Some(word) = bits.get(usize::try_from(at / 64).unwrap_or(0)) else { return 0 };
        // Looked at first: an atomic write to bits that are set already would cost as much as one that sets them.
        let before = word.load(Ordering::Relaxed);
        if before & mask == mask { before } else { word.fetch_or(mask, Ordering::Relaxed) }
    }
}

/// References per host cluster, within a window of clusters.
pub(crate) struct Tally<'b> {
    window: Range<u64>,
    pages: Vec<Page>,
    /// References beyond the first, of clusters that have more than a byte can count.
    many: Mutex<BTreeMap<u64, u64>>,
    budget: &'b Budget,
    taken: AtomicU64,
}

impl<'b> Tally<'b> {
    /// Nothing is referred to yet. The index of pages is paid for at once.
    pub(crate) fn new(window: Range<u64>, budget: &'b Budget) -> Result<Self, Full> {
        let pages = window.end.saturating_sub(window.start).div_ceil(LEAF);
        let bytes = pages.saturating_mul(size_of::<Page>() as u64);
        budget.take(bytes)?;
        let pages = usize::try_from(pages).map_err(|_| Full)?;
        Ok(Self {
            window,
            pages: std::iter::repeat_with(Page::default).take(pages).collect(),
            many: Mutex::default(),
            budget,
            taken: AtomicU64::new(bytes),
        })
    }

    /// Which clusters it counts.
    pub(crate) fn window(&self) -> Range<u64> {
        self.window.clone()
    }

    /// Counts `times` references to one cluster; whether there was one before. Outside the window nothing is counted.
    pub(crate) fn add(&self, cluster: u64, times: u64) -> Result<bool, Full> {
        if !self.window.contains(&cluster) || times == 0 {
            return Ok(false);
        }
        let at = cluster.saturating_sub(self.window.start);
        let page = self.page(at)?;
        let mask = 1u64 << (at % 64);
        let before = page.set(at % LEAF, mask) & mask != 0;
        let more = if before { times } else { times.saturating_sub(1) };
        if more > 0 {
            self.add_extra(page, cluster, more)?;
        }
        Ok(before)
    }

    /// Counts one reference to each of `count` clusters; whether any had one before.
    pub(crate) fn add_run(&self, first: u64, count: u64) -> Result<bool, Full> {
        if count == 1 {
            return self.add(first, 1);
        }
        let end = first.saturating_add(count).min(self.window.end);
        let mut cluster = first.max(self.window.start);
        let mut before = false;
        while cluster < end {
            let at = cluster.saturating_sub(self.window.start);
            let leaf_end = cluster.saturating_add(LEAF).min(self.window.end);
            if at.is_multiple_of(LEAF) && end >= leaf_end && self.whole_page(at)? {
                cluster = leaf_end;
                continue;
            }
            let page = self.page(at)?;
            let bit = at % 64;
            let here = end.saturating_sub(cluster).min(64u64.saturating_sub(bit));
            let mask = u64::MAX.checked_shr(u32::try_from(64u64.saturating_sub(here)).unwrap_or(0)).unwrap_or(0) << bit;
            let mut twice = page.set(at % LEAF, mask) & mask;
            before |= twice != 0;
            while twice != 0 {
                let of = u64::from(twice.trailing_zeros());
                self.add_extra(page, cluster.saturating_sub(bit).saturating_add(of), 1)?;
                twice &= twice.wrapping_sub(1);
            }
            cluster = cluster.saturating_add(here);
        }
        Ok(before)
    }

    /// References to a cluster; 0 outside the window.
    pub(crate) fn count(&self, cluster: u64) -> u64 {
        if !self.window.contains(&cluster) {
            return 0;
        }
        let at = cluster.saturating_sub(self.window.start);
        let slot = usize::try_from(at / LEAF).ok().and_then(|index| self.pages.get(index));
        let Some(page) = slot.filter(|page| page.bits.get().is_some()) else { return 0 };
        if page.word(at % LEAF) >> (at % 64) & 1 == 0 {
            return 0;
        }
        let extra = page.extra.get().and_then(|extra| extra.get(usize::try_from(at % LEAF).unwrap_or(0)));
        match extra.map_or(0, |extra| extra.load(Ordering::Relaxed)) {
            u8::MAX => self.lock_many().get(&cluster).copied().unwrap_or(0).saturating_add(1),
            more => u64::from(more).saturating_add(1),
        }
    }

    /// Stretches of clusters with equal counts, in order, over the whole window.
    pub(crate) fn runs(&self, mut each: impl FnMut(Range<u64>, u64)) {
        let mut run: Option<(Range<u64>, u64)> = None;
        let mut add = |range: Range<u64>, count: u64| match &mut run {
            Some((whole, of)) if *of == count => whole.end = range.end,
            _ => {
                if let Some((whole, of)) = run.replace((range, count)) {
                    each(whole, of);
                }
            }
        };
        for (index, slot) in self.pages.iter().enumerate() {
            let start = self.window.start.saturating_add((index as u64).saturating_mul(LEAF));
            let end = start.saturating_add(LEAF).min(self.window.end);
            let Some(page) = Some(slot).filter(|page| page.bits.get().is_some()) else {
                add(start..end, 0);
                continue;
            };
            let mut cluster = start;
            while cluster < end {
                let at = cluster.saturating_sub(start);
                let word = page.word(at) >> (at % 64);
                let here = 64u64.saturating_sub(at % 64).min(end.saturating_sub(cluster));
                if page.extra.get().is_some() && word & 1 == 1 {
                    add(cluster..cluster.saturating_add(1), self.count(cluster));
                    cluster = cluster.saturating_add(1);
                    continue;
                }
                let same = if word & 1 == 1 { word.trailing_ones() } else { word.trailing_zeros() };
                let same = u64::from(same).clamp(1, here);
                add(cluster..cluster.saturating_add(same), word & 1);
                cluster = cluster.saturating_add(same);
            }
        }
        if let Some((whole, of)) = run {
            each(whole, of);
        }
    }

    /// References to a cluster, and where the stretch of clusters with as many ends (at the end of its page at the latest).
    pub(crate) fn run_at(&self, cluster: u64) -> (u64, u64) {
        let at = cluster.saturating_sub(self.window.start);
        let start = cluster.saturating_sub(at % LEAF);
        let end = start.saturating_add(LEAF).min(self.window.end);
        let slot = usize::try_from(at / LEAF).ok().and_then(|index| self.pages.get(index));
        let Some(page) = slot.filter(|page| page.bits.get().is_some()) else { return (0, end) };
        let word_at = |bit: u64| page.word(bit);
        let bit = at % LEAF;
        let set = word_at(bit) >> (bit % 64) & 1 == 1;
        if set && page.extra.get().is_some() {
            let count = self.count(cluster);
            let mut to = cluster.saturating_add(1);
            while to < end && self.count(to) == count {
                to = to.saturating_add(1);
            }
            return (count, to);
        }
        // Words are turned so that the run is of ones, and looked at from the cluster's bit on.
        let turned = |bit: u64| if set { word_at(bit) } else { !word_at(bit) };
        let first = (!(turned(bit) >> (bit % 64))).trailing_zeros();
        let mut to = bit.saturating_add(u64::from(first).min(64u64.saturating_sub(bit % 64)));
        while to % 64 == 0 && to < LEAF {
            let ones = u64::from(turned(to).trailing_ones());
            to = to.saturating_add(ones);
            if ones < 64 {
                break;
            }
        }
        (u64::from(set), start.saturating_add(to).min(end))
    }

    /// A run refers to every cluster of the page that begins here: whether it is the first to come.
    fn whole_page(&self, at: u64) -> Result<bool, Full> {
        let slot = usize::try_from(at / LEAF).ok().and_then(|index| self.pages.get(index)).ok_or(Full)?;
        let mut ours = false;
        slot.bits.get_or_init(|| {
            ours = true;
            None
        });
        Ok(ours)
    }

    fn page(&self, at: u64) -> Result<&Page, Full> {
        let slot = usize::try_from(at / LEAF).ok().and_then(|index| self.pages.get(index)).ok_or(Full)?;
        if slot.bits.get().is_some() {
            return Ok(slot);
        }
        self.take(BITS_BYTES)?;
        let mut ours = false;
        slot.bits.get_or_init(|| {
            ours = true;
            Some(Box::new(std::array::from_fn(|_| AtomicU64::default())))
        });
        if !ours {
            self.give(BITS_BYTES);
        }
        Ok(slot)
    }

    #[cold]
    fn add_extra(&self, page: &Page, cluster: u64, more: u64) -> Result<(), Full> {
        if page.extra.get().is_none() {
            self.take(LEAF)?;
            let mut ours = false;
            page.extra.get_or_init(|| {
                ours = true;
                Box::new(std::array::from_fn(|_| AtomicU8::default()))
            });
            if !ours {
                self.give(LEAF);
            }
        }
        let at = cluster.saturating_sub(self.window.start) % LEAF;
        let slot = page.extra.get().and_then(|extra| extra.get(usize::try_from(at).unwrap_or(0))).ok_or(Full)?;
        let counted = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            u8::try_from(u64::from(now).saturating_add(more)).ok().filter(|sum| *sum < u8::MAX)
        });
        if counted.is_ok() {
            return Ok(());
        }
        // Too many for a byte. The lock orders those who overflow; a byte that is 255 never changes again.
        let mut many = self.lock_many();
        let before = slot.swap(u8::MAX, Ordering::Relaxed);
        if before != u8::MAX {
            self.take(64)?;
        }
        let sum = many.entry(cluster).or_default();
        let before = if before == u8::MAX { 0 } else { u64::from(before) };
        *sum = sum.saturating_add(before).saturating_add(more);
        Ok(())
    }

    fn lock_many(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, u64>> {
        self.many.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, bytes: u64) -> Result<(), Full> {
        self.budget.take(bytes)?;
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn give(&self, bytes: u64) {
        self.budget.give(bytes);
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        self.budget.give(self.taken.load(Ordering::Relaxed));
    }
}

/// Successes in a row after which a window is tried that is twice as large.
const GROW_AFTER: u32 = 8;

/// Does work over `units` in as few windows as memory allows: a window that is [`Full`] is begun again with half of it, and
/// after some that were not a larger one is tried, so that one crowded place does not cut a huge, empty file into crumbs.
///
/// `work` must leave nothing behind when it fails. A window of one page always goes on: [`Full`] is returned then.
pub(crate) fn in_windows(units: u64, mut work: impl FnMut(Range<u64>) -> Result<(), Full>) -> Result<(), Full> {
    let (mut start, mut size, mut row) = (0u64, units.max(1), 0u32);
    while start < units {
        let end = start.saturating_add(size).min(units);
        match work(start..end) {
            Ok(()) => {
                start = end;
                row = row.saturating_add(1);
                if row >= GROW_AFTER {
                    (size, row) = (size.saturating_mul(2), 0);
                }
            }
            Err(Full) if size > PAGE => (size, row) = ((size / 2).next_multiple_of(PAGE), 0),
            Err(Full) => return Err(Full),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
mod tests {
    use super::*;

    /// The same as a plain vector counts, over single references and runs that cross words, pages and the window.
    #[test]
    fn counts_as_a_vector_does() {
        let budget = Budget::new(16 << 20);
        let window = 1000..1000 + 3 * PAGE + 17;
        let tally = Tally::new(window.clone(), &budget).unwrap();
        let mut model = vec![0u64; (window.end + 100) as usize];
        let mut state = 7u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for round in 0..4000 {
            // Long runs come first, when pages are still untouched.
            let long = round < 4;
            let first = next(window.end + 50);
            if !long && next(2) == 0 {
                let times = if next(20) == 0 { 300 } else { next(3) };
                let before = tally.add(first, times).unwrap();
                if window.contains(&first) && times > 0 {
                    assert_eq!(before, model[first as usize] > 0, "cluster {first}");
                    model[first as usize] += times;
                }
            } else {
                let count = if long || next(500) == 0 { next(4 * LEAF) } else { next(200) };
                let mut had = false;
                for cluster in (first..first + count).filter(|cluster| window.contains(cluster)) {
                    had |= model[cluster as usize] > 0;
                    model[cluster as usize] += 1;
                }
                assert_eq!(tally.add_run(first, count).unwrap(), had, "run {first}+{count}");
            }
        }
        let mut seen = window.start;
        tally.runs(|range, count| {
            assert_eq!(range.start, seen, "runs are gapless");
            seen = range.end;
            for cluster in range {
                assert_eq!(count, model[cluster as usize], "cluster {cluster}");
                assert_eq!(tally.count(cluster), count, "cluster {cluster}");
            }
        });
        assert_eq!(seen, window.end);
        let mut at = window.start;
        while at < window.end {
            let (count, end) = tally.run_at(at);
            assert!(end > at && end <= window.end, "cluster {at}");
            for cluster in at..end {
                assert_eq!(count, model[cluster as usize], "cluster {cluster}");
            }
            at = end;
        }
        drop(tally);
        assert_eq!(budget.left(), 16 << 20, "everything taken is given back");
    }

    #[test]
    fn too_little_memory_means_more_windows() {
        let budget = Budget::new(3 * PAGE / 8);
        let mut windows = Vec::new();
        in_windows(8 * PAGE, |window| {
            let tally = Tally::new(window.clone(), &budget)?;
            for cluster in (0..8 * PAGE).step_by(100) {
                tally.add(cluster, 1)?;
            }
            windows.push(window);
            Ok(())
        })
        .unwrap();
        assert_eq!(windows, [0..2 * PAGE, 2 * PAGE..4 * PAGE, 4 * PAGE..6 * PAGE, 6 * PAGE..8 * PAGE]);
    }

    #[test]
    fn a_crowded_place_in_a_huge_file_does_not_make_a_huge_number_of_windows() {
        let (units, crowded) = (1u64 << 54, 3 * PAGE + 5);
        let (mut calls, mut next) = (0, 0);
        in_windows(units, |window| {
            calls += 1;
            if window.contains(&crowded) && window.end - window.start > PAGE {
                return Err(Full);
            }
            assert_eq!(window.start, next, "windows follow each other");
            next = window.end;
            Ok(())
        })
        .unwrap();
        assert_eq!(next, units);
        assert!(calls < 500, "{calls}");
    }
}
