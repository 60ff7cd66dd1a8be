//! The block map: for each guest block the index of the host block that holds it.
//!
//! The whole map is held in memory (4 bytes for each MiB of disk, bounded by the length of the file). An entry changes
//! here only after the data it exposes was written; [`commit`](super::commit) brings changed sectors to the disk.
//!
//! A sector is *clean* (the disk holds it durably), *dirty*, or *committing*: copied by a commit that has not succeeded
//! yet. A commit that fails or is dropped makes its sectors dirty again, so that nothing is ever forgotten.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::{BTreeMap, BTreeSet};

use super::bits::Bits;
use super::header::Layout;

/// Number of a block of the guest's disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct GuestBlock(pub(super) u32);

/// Number of a block in the file, counted from the data offset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct HostBlock(pub(super) u32);

/// Nothing is stored; reads as zeroes.
pub(super) const FREE: u32 = 0xffff_ffff;
/// Discarded by VirtualBox; reads as zeroes.
const ZERO: u32 = 0xffff_fffe;

/// Entries in a sector of the map.
pub(super) const PER_SECTOR: u32 = 128;

/// Where a guest block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    /// Nowhere: it reads as zeroes.
    Unallocated,
    /// In this block of the file.
    Mapped(HostBlock),
}

/// An entry that can not be relied on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the message of each variant says what it is")]
#[non_exhaustive]
pub enum MapError {
    #[error(
        "corrupt VDI image: block map entry {entry} at {place:#x} names block {index}, at {target:#x}, past end of file ({file_len:#x})"
    )]
    PastEnd { entry: u32, place: u64, index: u32, target: u64, file_len: u64 },
    #[error(
        "corrupt VDI image: block map entry {entry} at {place:#x} names block {index}, which entry {other} names too"
    )]
    Duplicate { entry: u32, place: u64, index: u32, other: u32 },
}

#[derive(Debug)]
pub(super) struct BlockMap {
    entries: Vec<u32>,
    dirty: BTreeSet<u32>,
    committing: BTreeSet<u32>,
    /// Host blocks with more than one owner, in an image opened for reading alone.
    shared: Bits,
}

/// A sector of the map and what is to stand in it.
pub(super) type Sector = (u32, [u8; 512]);

impl BlockMap {
    pub(super) fn new(entries: Vec<u32>) -> Self {
        Self { entries, dirty: BTreeSet::new(), committing: BTreeSet::new(), shared: Bits::default() }
    }

    /// The entries that stand in `bytes`.
    pub(super) fn decode(bytes: &[u8], entries: &mut Vec<u32>) {
        let (words, _) = bytes.as_chunks::<4>();
        entries.extend(words.iter().map(|word| u32::from_le_bytes(*word)));
    }

    /// Looks for entries that name a block outside the file, or one that another entry names: the host blocks in use,
    /// and the first bad entry. Shared blocks are remembered.
    pub(super) fn check(&mut self, layout: &Layout, file_len: u64) -> (Bits, Option<MapError>) {
        let mut used = Bits::default();
        let mut first = None;
        for (entry, &index) in (0u32..).zip(&self.entries) {
            if index >= ZERO {
                continue;
            }
            let target = layout.place(index);
            if target >= file_len {
                first = first.or(Some(MapError::PastEnd {
                    entry,
                    place: entry_place(layout, entry),
                    index,
                    target,
                    file_len,
                }));
                continue;
            }
            if used.insert(index, layout.blocks) {
                continue;
            }
            self.shared.insert(index, layout.blocks);
            if first.is_none() {
                let other = self.entries.iter().position(|&other| other == index).unwrap_or(0);
                first = Some(MapError::Duplicate {
                    entry,
                    place: entry_place(layout, entry),
                    index,
                    other: u32::try_from(other).unwrap_or(u32::MAX),
                });
            }
        }
        (used, first)
    }

    /// Where `block` is; `None` past the end of the map.
    pub(super) fn get(&self, block: GuestBlock) -> Option<Entry> {
        let &value = self.entries.get(usize::try_from(block.0).ok()?)?;
        Some(if value < ZERO { Entry::Mapped(HostBlock(value)) } else { Entry::Unallocated })
    }

    /// Whether more than one entry names `block`.
    pub(super) fn is_shared(&self, block: HostBlock) -> bool {
        self.shared.contains(block.0)
    }

    /// Maps `block` to `place`.
    pub(super) fn set(&mut self, block: GuestBlock, place: HostBlock) {
        let slot = usize::try_from(block.0).ok().and_then(|index| self.entries.get_mut(index));
        if let Some(slot) = slot {
            *slot = place.0;
            self.dirty.insert(block.0.checked_div(PER_SECTOR).unwrap_or(0));
        }
    }

    /// What a driver does that believes in a block before the disk can hear of it.
    #[cfg(test)]
    pub(super) fn set_in_memory_only(&mut self, block: GuestBlock, place: HostBlock) {
        let was_durable = self.is_durable(block);
        self.set(block, place);
        if was_durable {
            self.dirty.remove(&(block.0 / PER_SECTOR));
        }
    }

    /// Whether the disk holds the entry of `block` durably.
    pub(super) fn is_durable(&self, block: GuestBlock) -> bool {
        let sector = block.0.checked_div(PER_SECTOR).unwrap_or(0);
        !self.dirty.contains(&sector) && !self.committing.contains(&sector)
    }

    /// Copies every dirty sector as it is now and calls it committing.
    pub(super) fn begin_commit(&mut self) -> Vec<Sector> {
        self.committing.append(&mut self.dirty);
        self.committing.iter().map(|&sector| (sector, self.sector(sector, 0))).collect()
    }

    /// Ends a commit: what was copied is durable, or dirty again.
    pub(super) fn end_commit(&mut self, durable: bool) {
        match durable {
            true => self.committing.clear(),
            false => self.dirty.append(&mut self.committing),
        }
    }

    /// The mapped guest blocks by host block.
    pub(super) fn owners(&self) -> BTreeMap<HostBlock, GuestBlock> {
        let entries = (0u32..).zip(&self.entries);
        entries
            .filter(|(_, index)| **index < ZERO)
            .map(|(block, &index)| (HostBlock(index), GuestBlock(block)))
            .collect()
    }

    /// Number of entries.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    /// Unmaps every entry from `blocks` on and returns the host blocks that memory no longer names; the disk may, until
    /// the next commit.
    pub(super) fn unmap_from(&mut self, blocks: u32) -> Vec<HostBlock> {
        let mut gone = Vec::new();
        let first = usize::try_from(blocks).unwrap_or(usize::MAX);
        for (block, slot) in (blocks..).zip(self.entries.iter_mut().skip(first)) {
            if *slot < ZERO {
                gone.push(HostBlock(std::mem::replace(slot, FREE)));
                self.dirty.insert(block.checked_div(PER_SECTOR).unwrap_or(0));
            }
        }
        gone
    }

    /// Cuts the map down to `blocks` entries. Those behind are unallocated, on disk as well.
    pub(super) fn truncate(&mut self, blocks: u32) {
        self.entries.truncate(usize::try_from(blocks).unwrap_or(usize::MAX));
        self.dirty.split_off(&blocks.div_ceil(PER_SECTOR));
    }

    /// Adds unallocated entries up to `blocks`. They are on disk already.
    pub(super) fn extend(&mut self, blocks: u32) {
        self.entries.resize(usize::try_from(blocks).unwrap_or(usize::MAX).max(self.entries.len()), FREE);
    }

    /// Takes `by` off every index: the data begins `by` blocks later. The new map is on disk already.
    pub(super) fn rebase(&mut self, by: u32) {
        for index in self.entries.iter_mut().filter(|index| **index < ZERO) {
            *index = index.saturating_sub(by);
        }
    }

    /// The bytes of sector `sector`, every index less `by`, padded with zeroes behind the last entry.
    pub(super) fn sector(&self, sector: u32, by: u32) -> [u8; 512] {
        let mut bytes = [0; 512];
        let (words, _) = bytes.as_chunks_mut::<4>();
        let first = usize::try_from(sector).unwrap_or(usize::MAX).saturating_mul(words.len());
        for (word, &index) in words.iter_mut().zip(self.entries.get(first..).unwrap_or_default()) {
            let index = if index < ZERO { index.saturating_sub(by) } else { index };
            *word = index.to_le_bytes();
        }
        bytes
    }

    /// The bytes of sector `sector` of the map as it will be with `blocks` entries and every index less `by`.
    pub(super) fn future_sector(&self, sector: u32, blocks: u32, by: u32) -> [u8; 512] {
        let mut bytes = self.sector(sector, by);
        let (words, _) = bytes.as_chunks_mut::<4>();
        for (entry, word) in (sector.saturating_mul(PER_SECTOR)..blocks).zip(words) {
            if entry >= self.len() {
                *word = FREE.to_le_bytes();
            }
        }
        bytes
    }
}

/// Where entry `entry` stands in the file.
pub(super) fn entry_place(layout: &Layout, entry: u32) -> u64 {
    layout.map_offset.saturating_add(u64::from(entry).saturating_mul(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { map_offset: 512, data_offset: 1024, block_size: 1 << 20, blocks: 4, size: 4 << 20 };

    #[test]
    fn bad_entries_are_named_with_their_place() {
        let table: &[(&[u32], Option<&str>)] = &[
            (&[FREE, ZERO, 1, 0], None),
            (
                &[0, 1, 0, 1],
                Some("corrupt VDI image: block map entry 2 at 0x208 names block 0, which entry 0 names too"),
            ),
            (
                &[FREE, 9, FREE, FREE],
                Some(
                    "corrupt VDI image: block map entry 1 at 0x204 names block 9, at 0x900400, past end of file (0x300400)",
                ),
            ),
            (
                &[0xffff_fffd, FREE, FREE, FREE],
                Some(
                    "corrupt VDI image: block map entry 0 at 0x200 names block 4294967293, at 0xfffffffd00400, past end of file (0x300400)",
                ),
            ),
        ];
        for (entries, message) in table {
            let (_, error) = BlockMap::new(entries.to_vec()).check(&LAYOUT, 0x30_0400);
            assert_eq!(error.map(|error| error.to_string()).as_deref(), *message, "{entries:x?}");
        }
    }

    #[test]
    fn a_failed_commit_leaves_its_sectors_dirty() {
        let mut map = BlockMap::new(vec![FREE; 300]);
        map.set(GuestBlock(0), HostBlock(0));
        map.set(GuestBlock(299), HostBlock(1));
        assert_eq!(map.begin_commit().iter().map(|(sector, _)| *sector).collect::<Vec<_>>(), [0, 2]);
        map.set(GuestBlock(5), HostBlock(2));
        assert!(!map.is_durable(GuestBlock(299)) && map.is_durable(GuestBlock(200)));
        map.end_commit(false);
        assert_eq!(map.begin_commit().len(), 2);
        map.set(GuestBlock(6), HostBlock(3));
        map.end_commit(true);
        assert!(map.is_durable(GuestBlock(299)) && !map.is_durable(GuestBlock(0)), "changed while it was written");
    }
}
