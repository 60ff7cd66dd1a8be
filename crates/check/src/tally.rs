//! How often each host cluster is referred to, in bounded memory.
//!
//! A page of clusters is two runs in one word as long as that is enough: a disk written in order needs nothing else. A
//! page whose references do not fit into two runs gets a bit for each cluster; a page where something was referred to
//! more than once gets counters too. Both are paid for out of the [`Budget`]. Where that ends, the work is done window
//! by window of the file ([`in_windows`]): more passes, never more memory.
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

/// Set in [`Page::runs`] when the page has bits: the runs beside it never change again, and the bits began with them.
const FROZEN: u64 = 1 << 63;
/// Bits of one end of a run in [`Page::runs`]: 0 to [`LEAF`].
const END: u32 = LEAF.ilog2() + 1;

#[derive(Default)]
struct Page {
    /// Up to two runs of clusters referred to, apart and in order; see [`pack`]. All zeroes: nobody came.
    runs: AtomicU64,
    bits: OnceLock<Box<[AtomicU64; WORDS]>>,
    extra: OnceLock<Extra>,
}

impl Page {
    fn is_empty(&self) -> bool {
        self.runs.load(Ordering::Acquire) == 0
    }

    /// The bits of 64 clusters, the one at `at` among them.
    fn word(&self, at: u64) -> u64 {
        let runs = self.runs.load(Ordering::Acquire);
        match self.bits.get() {
            Some(bits) if runs & FROZEN != 0 => {
                bits.get(usize::try_from(at / 64).unwrap_or(0)).map_or(0, |word| word.load(Ordering::Relaxed))
            }
            // Also of a page whose bits are just being made: they begin with these runs.
            _ => word_of(&unpack(runs), at / 64),
        }
    }
}

type Runs = [Range<u64>; 2];

fn unpack(word: u64) -> Runs {
    let end = |index: u32| word >> index.saturating_mul(END) & ((1 << END) - 1);
    [end(0)..end(1), end(2)..end(3)]
}

fn pack([first, second]: &Runs) -> u64 {
    first.start | first.end << END | second.start << (2 * END) | second.end << (3 * END)
}

/// The runs with one more; `None` if two are not enough.
fn with(runs: &Runs, new: &Range<u64>) -> Option<Runs> {
    let mut all = [runs[0].clone(), runs[1].clone(), new.clone()];
    // Empty ones last, the others by start.
    all.sort_by_key(|run| (run.is_empty(), run.start));
    let [mut first, second, third] = all;
    let mut rest = 0..0;
    for run in [second, third] {
        if run.is_empty() {
            continue;
        }
        let last = if rest.is_empty() { &mut first } else { &mut rest };
        if run.start <= last.end {
            last.end = last.end.max(run.end);
        } else if rest.is_empty() {
            rest = run;
        } else {
            return None;
        }
    }
    Some([first, rest])
}

/// Word number `index` of the bits of some runs.
fn word_of(runs: &Runs, index: u64) -> u64 {
    let start = index.saturating_mul(64);
    runs.iter().fold(0, |word, run| {
        let from = run.start.clamp(start, start.saturating_add(64)).saturating_sub(start);
        let to = run.end.clamp(start, start.saturating_add(64)).saturating_sub(start);
        word | ones(from, to)
    })
}

/// Bits `from..to` of a word; `to` is at most 64.
fn ones(from: u64, to: u64) -> u64 {
    let below = |bit: u64| {
        u32::try_from(bit).ok().and_then(|bit| 1u64.checked_shl(bit)).map_or(u64::MAX, |one| one.wrapping_sub(1))
    };
    if from < to { below(to) & !below(from) } else { 0 }
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
        let before = self.mark(page, at % LEAF..(at % LEAF).saturating_add(1), |_| Ok(()))?;
        let more = if before { times } else { times.saturating_sub(1) };
        if more > 0 {
            self.add_extra(page, cluster, more)?;
        }
        Ok(before)
    }

    /// Counts one reference to each of `count` clusters; whether any had one before.
    pub(crate) fn add_run(&self, first: u64, count: u64) -> Result<bool, Full> {
        let end = first.saturating_add(count).min(self.window.end);
        let mut cluster = first.max(self.window.start);
        let mut before = false;
        while cluster < end {
            let at = cluster.saturating_sub(self.window.start);
            let page = self.page(at)?;
            let begin = cluster.saturating_sub(at % LEAF);
            let here = end.min(begin.saturating_add(LEAF));
            before |= self.mark(page, at % LEAF..here.saturating_sub(begin), |twice| {
                self.add_extra(page, begin.saturating_add(twice), 1)
            })?;
            cluster = here;
        }
        Ok(before)
    }

    /// Refers to clusters of a page; `twice` is told each one that was referred to before. Whether there was one.
    fn mark(&self, page: &Page, range: Range<u64>, twice: impl Fn(u64) -> Result<(), Full>) -> Result<bool, Full> {
        let mut now = page.runs.load(Ordering::Acquire);
        while now & FROZEN == 0 {
            let runs = unpack(now);
            let next = with(&runs, &range).map_or(now | FROZEN, |runs| pack(&runs));
            // What was there is told by the value replaced: nobody else came in between.
            match page.runs.compare_exchange_weak(now, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) if next & FROZEN != 0 => now = next,
                Ok(_) => {
                    let mut before = false;
                    for run in &runs {
                        for cluster in run.start.max(range.start)..run.end.min(range.end) {
                            before = true;
                            twice(cluster)?;
                        }
                    }
                    return Ok(before);
                }
                Err(other) => now = other,
            }
        }
        let bits = self.bits(page, &unpack(now & !FROZEN))?;
        let mut before = false;
        let mut at = range.start;
        while at < range.end {
            let mask = ones(at % 64, range.end.saturating_sub(at & !63).min(64));
            if let Some(word) = bits.get(usize::try_from(at / 64).unwrap_or(0)) {
                // Looked at first: an atomic write to bits that are set already would cost as much as one that sets
                // them.
                let was = word.load(Ordering::Relaxed);
                let was = if was & mask == mask { was } else { word.fetch_or(mask, Ordering::Relaxed) };
                let mut again = was & mask;
                before |= again != 0;
                while again != 0 {
                    twice((at & !63).saturating_add(again.trailing_zeros().into()))?;
                    again &= again.wrapping_sub(1);
                }
            }
            at = (at & !63).saturating_add(64);
        }
        Ok(before)
    }

    /// The bits of a frozen page, made of its runs by whoever comes first.
    fn bits<'p>(&self, page: &'p Page, runs: &Runs) -> Result<&'p [AtomicU64; WORDS], Full> {
        if let Some(bits) = page.bits.get() {
            return Ok(bits);
        }
        self.take(BITS_BYTES)?;
        let mut ours = false;
        let bits = page.bits.get_or_init(|| {
            ours = true;
            Box::new(std::array::from_fn(|index| AtomicU64::new(word_of(runs, index as u64))))
        });
        if !ours {
            self.give(BITS_BYTES);
        }
        Ok(bits)
    }

    /// References to a cluster; 0 outside the window.
    pub(crate) fn count(&self, cluster: u64) -> u64 {
        if !self.window.contains(&cluster) {
            return 0;
        }
        let at = cluster.saturating_sub(self.window.start);
        let slot = usize::try_from(at / LEAF).ok().and_then(|index| self.pages.get(index));
        let Some(page) = slot.filter(|page| !page.is_empty()) else { return 0 };
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
            let Some(page) = Some(slot).filter(|page| !page.is_empty()) else {
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

    /// References to a cluster, and where the stretch of clusters with as many ends (at the end of its page at the
    /// latest).
    pub(crate) fn run_at(&self, cluster: u64) -> (u64, u64) {
        let at = cluster.saturating_sub(self.window.start);
        let start = cluster.saturating_sub(at % LEAF);
        let end = start.saturating_add(LEAF).min(self.window.end);
        let slot = usize::try_from(at / LEAF).ok().and_then(|index| self.pages.get(index));
        let Some(page) = slot.filter(|page| !page.is_empty()) else { return (0, end) };
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

    fn page(&self, at: u64) -> Result<&Page, Full> {
        usize::try_from(at / LEAF).ok().and_then(|index| self.pages.get(index)).ok_or(Full)
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

/// Does work over `units` in as few windows as memory allows: a window that is [`Full`] is begun again with half of it,
/// and after some that were not a larger one is tried, so that one crowded place does not cut a huge, empty file into
/// crumbs.
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

    /// Two runs to a page are free of charge, in whatever order their parts come; the third one is not.
    #[test]
    fn what_is_in_order_takes_no_memory() {
        let budget = Budget::new(1 << 20);
        let tally = Tally::new(0..4 * LEAF, &budget).unwrap();
        let index = budget.left();
        for page in 0..4 {
            let at = page * LEAF;
            assert!(!tally.add(at + 7, 1).unwrap() && !tally.add(at + 3000, 1).unwrap());
            assert!(!tally.add_run(at + 8, 2992).unwrap() && !tally.add_run(at + 3001, LEAF - 3001).unwrap());
            assert!(!tally.add_run(at, 7).unwrap());
        }
        assert_eq!(budget.left(), index);
        tally.runs(|range, count| assert_eq!((range, count), (0..4 * LEAF, 1)));
        let other = Tally::new(0..LEAF, &budget).unwrap();
        let index = budget.left();
        for (at, takes) in [(10, 0), (20, 0), (11, 0), (30, BITS_BYTES), (40, BITS_BYTES)] {
            other.add(at, 1).unwrap();
            assert_eq!(index - budget.left(), takes, "after cluster {at}");
        }
    }

    /// Threads that add at the same time lose nothing and count nothing twice.
    #[test]
    fn threads_share_a_tally() {
        let budget = Budget::new(16 << 20);
        for round in 0..50u64 {
            let tally = Tally::new(0..4 * LEAF, &budget).unwrap();
            let adds = |thread: u64| {
                let mut state = round * 8 + thread + 1;
                std::iter::repeat_with(move || {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    ((state >> 40) % (4 * LEAF), 1 + (state >> 33) % 97)
                })
                .take(200)
            };
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let tally = &tally;
                    scope.spawn(move || adds(thread).for_each(|(at, len)| _ = tally.add_run(at, len).unwrap()));
                }
            });
            let mut model = vec![0u64; 5 * LEAF as usize];
            for (at, len) in (0..4).flat_map(adds) {
                model[at as usize..(at + len) as usize].iter_mut().for_each(|count| *count += 1);
            }
            tally.runs(|range, count| {
                assert!(
                    model[range.start as usize..range.end as usize].iter().all(|of| *of == count),
                    "{range:?} {count}"
                );
            });
        }
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
