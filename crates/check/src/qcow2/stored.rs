//! The reference counts as the image stores them, for a window of host clusters, in little memory.
//!
//! A page of clusters is one number while all its counts agree, two numbers and a bit per cluster while there are two
//! of them, else a byte per cluster; counts above 254 are kept apart. So an image without snapshots costs a bit per
//! cluster at most, and a full one nearly nothing, whatever the width its counts are stored with.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::budget::{Budget, Full};
use crate::bytes::{be_u16, be_u32, be_u64};
use crate::tally::PAGE;

const BITS_BYTES: u64 = PAGE / 8;
const WORDS: usize = (PAGE / 64) as usize;

enum Page {
    /// Every cluster has this count.
    One(u64),
    /// A bit per cluster: which of the two counts it has.
    Two(Box<[u64]>, [u64; 2]),
    /// The counts; 255 stands for one that is in `many`.
    Bytes(Box<[u8]>),
}

pub(crate) struct Stored<'b> {
    window: Range<u64>,
    pages: Vec<Page>,
    many: BTreeMap<u64, u64>,
    /// Clusters whose count can not be known: the block that holds it can not be read.
    unknown: Vec<Range<u64>>,
    budget: &'b Budget,
    taken: u64,
}

impl<'b> Stored<'b> {
    /// All counts are 0.
    pub(crate) fn new(window: Range<u64>, budget: &'b Budget) -> Result<Self, Full> {
        let pages = window.end.saturating_sub(window.start).div_ceil(PAGE);
        let taken = pages.saturating_mul(size_of::<Page>() as u64);
        budget.take(taken)?;
        let pages = usize::try_from(pages).map_err(|_| Full)?;
        let pages = std::iter::repeat_with(|| Page::One(0)).take(pages).collect();
        Ok(Self { window, pages, many: BTreeMap::new(), unknown: Vec::new(), budget, taken })
    }

    /// The counts of these clusters are not known. Called in ascending order.
    pub(crate) fn set_unknown(&mut self, range: Range<u64>) {
        let range = range.start.max(self.window.start)..range.end.min(self.window.end);
        if range.is_empty() {
            return;
        }
        match self.unknown.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => self.unknown.push(range),
        }
    }

    /// Whether a cluster's count is not known, and where the stretch of such clusters ends.
    pub(crate) fn unknown_at(&self, cluster: u64) -> (bool, u64) {
        if self.unknown.is_empty() {
            return (false, u64::MAX);
        }
        let next = self.unknown.partition_point(|range| range.end <= cluster);
        match self.unknown.get(next) {
            Some(range) if range.contains(&cluster) => (true, range.end),
            Some(range) => (false, range.start),
            None => (false, u64::MAX),
        }
    }

    /// Takes the counts out of (a part of) a refcount block, for the clusters from `first` on; `order` is log2 of the
    /// width.
    pub(crate) fn fill(&mut self, first: u64, block: &[u8], order: u32) -> Result<(), Full> {
        let count = counts_in(block.len() as u64, order);
        if let Some(value) = uniform(block, order) {
            return self.set(first..first.saturating_add(count), value);
        }
        let (mut start, mut value) = (0u64, count_at(block, 0, order));
        for index in 1..count {
            let next = count_at(block, index, order);
            if next != value {
                self.set(first.saturating_add(start)..first.saturating_add(index), value)?;
                (start, value) = (index, next);
            }
        }
        self.set(first.saturating_add(start)..first.saturating_add(count), value)
    }

    fn set(&mut self, range: Range<u64>, value: u64) -> Result<(), Full> {
        let range = range.start.max(self.window.start)..range.end.min(self.window.end);
        let mut cluster = range.start;
        while cluster < range.end {
            let at = cluster.saturating_sub(self.window.start);
            let page_start = cluster.saturating_sub(at % PAGE);
            let page_end = page_start.saturating_add(PAGE).min(self.window.end);
            let end = range.end.min(page_end);
            let index = usize::try_from(at / PAGE).map_err(|_| Full)?;
            let whole = cluster == page_start && end == page_end;
            let within = cluster.saturating_sub(page_start)..end.saturating_sub(page_start);
            self.set_in_page(index, within, value, whole)?;
            if end == page_end {
                self.settle(index, page_end.saturating_sub(page_start));
            }
            cluster = end;
        }
        Ok(())
    }

    fn set_in_page(&mut self, index: usize, within: Range<u64>, value: u64, whole: bool) -> Result<(), Full> {
        let page_start = self.window.start.saturating_add((index as u64).saturating_mul(PAGE));
        let Some(page) = self.pages.get_mut(index) else { return Ok(()) };
        if let Page::One(now) = page {
            if *now == value {
                return Ok(());
            }
            if whole {
                *now = value;
                return Ok(());
            }
            let now = *now;
            self.budget.take(BITS_BYTES)?;
            self.taken = self.taken.saturating_add(BITS_BYTES);
            *page = Page::Two(vec![0; WORDS].into(), [now, value]);
        }
        if let Page::Two(bits, values) = page
            && !values.contains(&value)
        {
            self.budget.take(PAGE)?;
            self.taken = self.taken.saturating_add(PAGE).saturating_sub(BITS_BYTES);
            self.budget.give(BITS_BYTES);
            let mut bytes = vec![0u8; usize::try_from(PAGE).unwrap_or(0)];
            for (at, byte) in (0u64..).zip(bytes.iter_mut()) {
                let word = bits.get(usize::try_from(at / 64).unwrap_or(0)).copied().unwrap_or(0);
                let [zero, one] = *values;
                let of = if word >> (at % 64) & 1 == 1 { one } else { zero };
                *byte = u8::try_from(of).unwrap_or(u8::MAX);
                if *byte == u8::MAX {
                    self.budget.take(64)?;
                    self.taken = self.taken.saturating_add(64);
                    self.many.insert(page_start.saturating_add(at), of);
                }
            }
            *page = Page::Bytes(bytes.into());
        }
        match page {
            Page::One(_) => {}
            Page::Two(bits, [zero, _]) => {
                let ones = value != *zero;
                let mut at = within.start;
                while at < within.end {
                    let here = within.end.saturating_sub(at).min(64u64.saturating_sub(at % 64));
                    let mask = u64::MAX.checked_shr(u32::try_from(64u64.saturating_sub(here)).unwrap_or(0));
                    let mask = mask.unwrap_or(0) << (at % 64);
                    if let Some(word) = bits.get_mut(usize::try_from(at / 64).unwrap_or(0)) {
                        *word = if ones { *word | mask } else { *word & !mask };
                    }
                    at = at.saturating_add(here);
                }
            }
            Page::Bytes(bytes) => {
                let byte = u8::try_from(value).unwrap_or(u8::MAX);
                for at in within {
                    if let Some(cell) = bytes.get_mut(usize::try_from(at).unwrap_or(0)) {
                        *cell = byte;
                    }
                    if byte == u8::MAX {
                        self.budget.take(64)?;
                        self.taken = self.taken.saturating_add(64);
                        self.many.insert(page_start.saturating_add(at), value);
                    }
                }
            }
        }
        Ok(())
    }

    /// A page whose bits all agree becomes one number again.
    fn settle(&mut self, index: usize, clusters: u64) {
        let Some(page) = self.pages.get_mut(index) else { return };
        let Page::Two(bits, [zero, one]) = page else { return };
        let full = usize::try_from(clusters / 64).unwrap_or(0);
        let rest = clusters % 64;
        let all = |want: u64| {
            let (head, tail) = bits.split_at_checked(full).unwrap_or((bits, &[]));
            let mask = (1u64 << rest).wrapping_sub(1);
            head.iter().all(|word| *word == want) && tail.first().is_none_or(|word| (word ^ want) & mask == 0)
        };
        let value = match (all(u64::MAX), all(0)) {
            (true, _) => *one,
            (_, true) => *zero,
            _ => return,
        };
        *page = Page::One(value);
        self.taken = self.taken.saturating_sub(BITS_BYTES);
        self.budget.give(BITS_BYTES);
    }

    /// A cluster's count; 0 outside the window.
    pub(crate) fn count(&self, cluster: u64) -> u64 {
        if !self.window.contains(&cluster) {
            return 0;
        }
        let at = cluster.saturating_sub(self.window.start);
        let within = at % PAGE;
        match usize::try_from(at / PAGE).ok().and_then(|index| self.pages.get(index)) {
            None => 0,
            Some(Page::One(value)) => *value,
            Some(Page::Two(bits, [zero, one])) => {
                let word = bits.get(usize::try_from(within / 64).unwrap_or(0)).copied().unwrap_or(0);
                if word >> (within % 64) & 1 == 1 { *one } else { *zero }
            }
            Some(Page::Bytes(bytes)) => match bytes.get(usize::try_from(within).unwrap_or(0)).copied() {
                Some(u8::MAX) => self.many.get(&cluster).copied().unwrap_or(u64::from(u8::MAX)),
                byte => u64::from(byte.unwrap_or(0)),
            },
        }
    }

    /// A cluster's count, and where a stretch of clusters with the same count ends (at the end of the page at the
    /// latest).
    pub(crate) fn run_at(&self, cluster: u64) -> (u64, u64) {
        let at = cluster.saturating_sub(self.window.start);
        let page_start = cluster.saturating_sub(at % PAGE);
        let end = page_start.saturating_add(PAGE).min(self.window.end);
        let within = at % PAGE;
        match usize::try_from(at / PAGE).ok().and_then(|index| self.pages.get(index)) {
            Some(Page::One(value)) => (*value, end),
            Some(Page::Two(bits, [zero, one])) => {
                let word_at = |bit: u64| bits.get(usize::try_from(bit / 64).unwrap_or(0)).copied().unwrap_or(0);
                let set = word_at(within) >> (within % 64) & 1 == 1;
                let turned = |bit: u64| if set { word_at(bit) } else { !word_at(bit) };
                let first = u64::from((!(turned(within) >> (within % 64))).trailing_zeros());
                let mut to = within.saturating_add(first.min(64u64.saturating_sub(within % 64)));
                while to % 64 == 0 && to < PAGE {
                    let ones = u64::from(turned(to).trailing_ones());
                    to = to.saturating_add(ones);
                    if ones < 64 {
                        break;
                    }
                }
                (if set { *one } else { *zero }, page_start.saturating_add(to).min(end))
            }
            _ => {
                let count = self.count(cluster);
                let mut to = cluster.saturating_add(1);
                while to < end && self.count(to) == count {
                    to = to.saturating_add(1);
                }
                (count, to)
            }
        }
    }
}

impl Drop for Stored<'_> {
    fn drop(&mut self) {
        self.budget.give(self.taken);
    }
}

/// How many counts fit into so many bytes.
pub(crate) fn counts_in(bytes: u64, order: u32) -> u64 {
    bytes.saturating_mul(8).checked_shr(order).unwrap_or(0)
}

/// One count of a block. Widths under a byte are packed from the least significant bit on; wider ones are big endian
/// (qcow2 spec, section "Host cluster management").
pub(crate) fn count_at(block: &[u8], index: u64, order: u32) -> u64 {
    let at = |bytes: u64| usize::try_from(index.saturating_mul(bytes)).unwrap_or(usize::MAX);
    match order {
        0..3 => {
            let bits = index << order;
            let byte = usize::try_from(bits / 8).ok().and_then(|at| block.get(at)).copied().unwrap_or(0);
            let shift = bits % 8;
            let mask = (1u64 << (1u32 << order)).wrapping_sub(1);
            u64::from(byte) >> shift & mask
        }
        3 => u64::from(block.get(at(1)).copied().unwrap_or(0)),
        4 => u64::from(be_u16(block, at(2))),
        5 => u64::from(be_u32(block, at(4))),
        _ => be_u64(block, at(8)),
    }
}

/// The count all of a block's clusters have, if they agree.
fn uniform(block: &[u8], order: u32) -> Option<u64> {
    let value = count_at(block, 0, order);
    let (words, rest) = block.as_chunks::<8>();
    let agree = if order < 6 {
        // The first count, repeated over eight bytes.
        let mut pattern = value;
        for doubling in order..6 {
            pattern |= pattern.checked_shl(1 << doubling).unwrap_or(0);
        }
        words.iter().all(|word| u64::from_be_bytes(*word) == pattern)
    } else {
        words.iter().all(|word| u64::from_be_bytes(*word) == value)
    };
    let tail = counts_in(block.len().saturating_sub(rest.len()) as u64, order)..counts_in(block.len() as u64, order);
    (agree && tail.into_iter().all(|index| count_at(block, index, order) == value)).then_some(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
mod tests {
    use super::*;

    fn store(counts: &[u64], order: u32) -> Vec<u8> {
        let bits = 1u64 << order;
        let mut bytes = vec![0u8; (counts.len() as u64 * bits / 8) as usize];
        for (index, count) in counts.iter().enumerate() {
            if bits >= 8 {
                let width = (bits / 8) as usize;
                bytes[index * width..][..width].copy_from_slice(&count.to_be_bytes()[8 - width..]);
            } else {
                let at = index as u64 * bits;
                bytes[(at / 8) as usize] |= (*count as u8) << (at % 8);
            }
        }
        bytes
    }

    /// Every width, over pages that are uniform, of two counts, of many, and with counts beyond a byte.
    #[test]
    fn gives_back_what_was_stored() {
        for order in 0..=6u32 {
            let max = if order == 6 { u64::MAX } else { (1u64 << (1 << order)) - 1 };
            let mut counts: Vec<u64> = Vec::new();
            counts.extend(std::iter::repeat_n(1, PAGE as usize));
            counts.extend((0..PAGE).map(|at| u64::from(at / 100 % 2 == 1)));
            counts.extend((0..PAGE).map(|at| (at % 1000 / 7).min(max)));
            counts.extend((0..PAGE).map(|at| if at % 4096 == 77 { max } else { at % 3 % (max.min(2) + 1) }));
            counts.extend(std::iter::repeat_n(max, 4096));
            let budget = Budget::new(32 << 20);
            let window = PAGE..PAGE + counts.len() as u64 - 64;
            let mut stored = Stored::new(window.clone(), &budget).unwrap();
            // Blocks that lie across pages and begin before the window.
            let all: Vec<u64> = std::iter::repeat_n(1, 512).chain(counts.iter().copied()).collect();
            for (index, block) in all.chunks(2048).enumerate() {
                stored.fill(PAGE - 512 + index as u64 * 2048, &store(block, order), order).unwrap();
            }
            let want = |cluster: u64| counts[(cluster - PAGE) as usize];
            let mut at = window.start;
            while at < window.end {
                let (count, end) = stored.run_at(at);
                assert!(end > at && end <= window.end);
                for cluster in at..end {
                    assert_eq!(count, want(cluster), "order {order}, cluster {cluster}");
                    assert_eq!(stored.count(cluster), count, "order {order}, cluster {cluster}");
                }
                at = end;
            }
            drop(stored);
            assert_eq!(budget.left(), 32 << 20, "order {order}");
        }
    }

    #[test]
    fn a_full_page_is_one_number() {
        let budget = Budget::new(1 << 20);
        let mut stored = Stored::new(0..2 * PAGE, &budget).unwrap();
        let before = budget.left();
        for block in 0..16 {
            stored.fill(block * 2048, &store(&[1; 2048], 4), 4).unwrap();
        }
        assert_eq!(budget.left(), before);
    }
}
