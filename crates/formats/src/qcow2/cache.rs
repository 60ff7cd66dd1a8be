//! Tables in memory: L1, L2, refcount table and refcount blocks.
//!
//! A [`Table`] is the bytes of one table and, in units of 512 bytes, which of them differ from the disk. Changes are
//! made in memory at once and written back by [`commit`](super::commit) in the order that makes them safe. A
//! [`Writeback`] carries a copy of the dirty sectors to the disk: if it is dropped before it is done, for whatever
//! reason, they are dirty again.
//!
//! A [`TableCache`] holds at most `limit` tables. What is dirty, or in use by a request, stays; a request that needs
//! room and finds only dirty tables has them committed first. Requests in flight can push the number above the limit by
//! as many tables as they hold.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use blkproof_block::range_lock::RangeLock;

use super::units::index;

const SECTOR: usize = 512;

/// One table.
#[derive(Debug)]
pub(crate) struct Table {
    /// Where it lies in the file.
    pub(crate) offset: u64,
    bytes: RefCell<Vec<u8>>,
    /// One bit for each sector that differs from the disk.
    dirty: RefCell<Vec<u64>>,
    used: Cell<u64>,
}

impl Table {
    /// A table as it was read from `offset`.
    pub(crate) fn clean(offset: u64, mut bytes: Vec<u8>) -> Self {
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        let words = bytes.len().div_ceil(SECTOR * 64);
        Self { offset, bytes: RefCell::new(bytes), dirty: RefCell::new(vec![0; words]), used: Cell::new(0) }
    }

    /// A table the disk does not hold yet.
    pub(crate) fn new(offset: u64, bytes: Vec<u8>) -> Self {
        let table = Self::clean(offset, bytes);
        table.mark(0, table.len());
        table
    }

    /// Bytes, a multiple of 512.
    pub(crate) fn len(&self) -> usize {
        self.bytes.borrow().len()
    }

    /// A copy of everything.
    pub(crate) fn copy(&self) -> Vec<u8> {
        self.bytes.borrow().clone()
    }

    /// The big-endian word at `slot`; 0 past the end.
    pub(crate) fn word(&self, slot: u64) -> u64 {
        let at = index(slot).saturating_mul(8);
        let bytes = self.bytes.borrow();
        let word = bytes.get(at..at.saturating_add(8)).and_then(|word| <[u8; 8]>::try_from(word).ok());
        word.map_or(0, u64::from_be_bytes)
    }

    /// Replaces the big-endian word at `slot`.
    pub(crate) fn set_word(&self, slot: u64, word: u64) {
        let at = index(slot).saturating_mul(8);
        let mut bytes = self.bytes.borrow_mut();
        let place = bytes.get_mut(at..at.saturating_add(8)).expect("callers stay inside the table");
        if place != word.to_be_bytes() {
            place.copy_from_slice(&word.to_be_bytes());
            drop(bytes);
            self.mark(at, 8);
        }
    }

    /// Looks at the bytes.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(&self.bytes.borrow())
    }

    /// Changes the `len` bytes from `at`.
    pub(crate) fn change<T>(&self, at: usize, len: usize, change: impl FnOnce(&mut [u8]) -> T) -> T {
        let result = change(&mut self.bytes.borrow_mut());
        self.mark(at, len);
        result
    }

    fn mark(&self, at: usize, len: usize) {
        let mut dirty = self.dirty.borrow_mut();
        for sector in at / SECTOR..(at + len).div_ceil(SECTOR) {
            if let Some(word) = dirty.get_mut(sector / 64) {
                *word |= 1 << (sector % 64);
            }
        }
    }

    /// Whether some sector differs from the disk, as far as memory knows.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.borrow().iter().any(|&word| word != 0)
    }

    /// Takes what is dirty, to be written. Nothing if the table is clean.
    pub(crate) fn take_dirty(self: &Rc<Self>) -> Option<Writeback> {
        if !self.is_dirty() {
            return None;
        }
        let dirty = std::mem::take(&mut *self.dirty.borrow_mut());
        *self.dirty.borrow_mut() = vec![0; dirty.len()];
        let bytes = self.bytes.borrow();
        let mut runs: Vec<(usize, Vec<u8>)> = Vec::new();
        let mut end = usize::MAX;
        for (number, &word) in dirty.iter().enumerate() {
            let mut left = word;
            while left != 0 {
                let bit = index(u64::from(left.trailing_zeros()));
                left &= left - 1;
                let at = (number * 64 + bit) * SECTOR;
                let Some(sector) = bytes.get(at..at + SECTOR) else { continue };
                match runs.last_mut() {
                    Some((_, run)) if at == end => run.extend_from_slice(sector),
                    _ => runs.push((at, sector.to_vec())),
                }
                end = at + SECTOR;
            }
        }
        drop(bytes);
        (!runs.is_empty()).then(|| Writeback { table: Rc::clone(self), runs, done: false })
    }
}

/// Dirty sectors on their way to the disk, as they were at one moment.
#[derive(Debug)]
pub(crate) struct Writeback {
    table: Rc<Table>,
    runs: Vec<(usize, Vec<u8>)>,
    done: bool,
}

impl Writeback {
    /// Places in the file, and bytes.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.runs.iter().map(|(at, bytes)| (self.table.offset + *at as u64, bytes.as_slice()))
    }

    /// Everything was written and is durable, or will be with the next flush at the latest.
    pub(crate) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Writeback {
    fn drop(&mut self) {
        if !self.done {
            for (at, bytes) in &self.runs {
                self.table.mark(*at, bytes.len());
            }
        }
    }
}

/// Tables by host offset.
#[derive(Debug)]
pub(crate) struct TableCache {
    tables: RefCell<BTreeMap<u64, Rc<Table>>>,
    limit: usize,
    clock: Cell<u64>,
    /// One loader for each table: the host range of the table.
    pub(crate) loads: RangeLock,
}

impl TableCache {
    /// A cache for `limit` tables, at least two.
    pub(crate) fn new(limit: usize) -> Self {
        Self { tables: RefCell::default(), limit: limit.max(2), clock: Cell::new(0), loads: RangeLock::new() }
    }

    /// The table at `offset`, if it is here.
    pub(crate) fn get(&self, offset: u64) -> Option<Rc<Table>> {
        let tables = self.tables.borrow();
        let table = tables.get(&offset)?;
        self.clock.set(self.clock.get() + 1);
        table.used.set(self.clock.get());
        Some(Rc::clone(table))
    }

    /// Adds a table, replacing what was known at its offset.
    pub(crate) fn insert(&self, table: Table) -> Rc<Table> {
        let table = Rc::new(table);
        self.clock.set(self.clock.get() + 1);
        table.used.set(self.clock.get());
        self.tables.borrow_mut().insert(table.offset, Rc::clone(&table));
        table
    }

    /// Forgets the table at `offset`: it is no table any more.
    pub(crate) fn remove(&self, offset: u64) {
        self.tables.borrow_mut().remove(&offset);
    }

    /// Makes room for one more table by dropping the least recently used clean ones; `false` if none can go.
    pub(crate) fn make_room(&self) -> bool {
        let mut tables = self.tables.borrow_mut();
        if tables.len() < self.limit {
            return true;
        }
        // A sixteenth at a time, so that the scan for the oldest costs little for each table.
        let mut old: Vec<(u64, u64)> = tables
            .values()
            .filter(|table| Rc::strong_count(table) == 1 && !table.is_dirty())
            .map(|table| (table.used.get(), table.offset))
            .collect();
        let batch = (self.limit / 16).max(1).saturating_add(tables.len() - self.limit).min(old.len());
        if batch == 0 {
            return false;
        }
        old.select_nth_unstable(batch - 1);
        for (_, offset) in old.iter().take(batch) {
            tables.remove(offset);
        }
        tables.len() < self.limit
    }

    /// Every dirty sector of every table, by host offset.
    pub(crate) fn take_dirty(&self) -> Vec<Writeback> {
        self.tables.borrow().values().filter_map(Table::take_dirty).collect()
    }

    /// Whether some table is dirty.
    pub(crate) fn any_dirty(&self) -> bool {
        self.tables.borrow().values().any(|table| table.is_dirty())
    }

    /// Number of tables held.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.tables.borrow().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_writeback_leaves_the_sectors_dirty() {
        let table = Rc::new(Table::clean(0x10000, vec![0; 4096]));
        table.set_word(0, 7);
        table.set_word(65, 8);
        table.set_word(511, 9);
        let writeback = table.take_dirty().unwrap();
        let places: Vec<(u64, usize)> = writeback.runs().map(|(at, bytes)| (at, bytes.len())).collect();
        assert_eq!(places, [(0x10000, 1024), (0x10e00, 512)]);
        assert!(!table.is_dirty());
        drop(writeback);
        assert!(table.is_dirty());
        table.take_dirty().unwrap().done();
        assert!(!table.is_dirty());
    }

    #[test]
    fn only_clean_tables_nobody_holds_make_room() {
        let cache = TableCache::new(2);
        let held = cache.insert(Table::clean(0, vec![0; 512]));
        cache.insert(Table::new(512, vec![0; 512]));
        assert!(!cache.make_room());
        for writeback in cache.take_dirty() {
            writeback.done();
        }
        assert!(cache.make_room());
        assert_eq!(cache.len(), 1);
        assert!(cache.get(held.offset).is_some());
    }
}
