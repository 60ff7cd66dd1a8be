//! The size of the disk: one more block (CM 5.1). An extension can be lost while a write behind it survives.

use super::model::ChangeId;

/// A size that a request gave the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct SizeVersion {
    pub(super) id: ChangeId,
    pub(super) size: u64,
}

/// The medium's size, and those of requests in the cache in their order.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    base: u64,
    /// The request that gave the medium its size, if any did; older ones have no say any more.
    base_id: Option<ChangeId>,
    versions: Vec<SizeVersion>,
}

impl Sizes {
    pub(super) fn new(base: u64) -> Self {
        Self { base, base_id: None, versions: Vec::new() }
    }

    /// What a client sees.
    pub(super) fn now(&self) -> u64 {
        self.versions.last().map_or(self.base, |version| version.size)
    }

    /// What the medium has.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Sizes in the cache, by request.
    pub(super) fn versions(&self) -> &[SizeVersion] {
        &self.versions
    }

    /// The size by version: 0 is the medium's.
    pub(super) fn at(&self, version: usize) -> u64 {
        version.checked_sub(1).and_then(|index| self.versions.get(index)).map_or(self.base, |version| version.size)
    }

    /// The size when the request had taken effect.
    pub(super) fn as_of(&self, id: ChangeId) -> u64 {
        self.at(self.versions.partition_point(|version| version.id <= id))
    }

    pub(super) fn push(&mut self, id: ChangeId, size: u64) {
        self.versions.push(SizeVersion { id, size });
    }

    pub(super) fn holds(&self, id: ChangeId) -> bool {
        self.versions.iter().any(|version| version.id == id)
    }

    /// The newest version that `wanted` says yes to; 0 if there is none.
    pub(super) fn newest(&self, wanted: impl Fn(ChangeId) -> bool) -> usize {
        self.versions.iter().rposition(|version| wanted(version.id)).map_or(0, |index| index.saturating_add(1))
    }

    /// The request is on the medium, with data up to `end`.
    ///
    /// A request that changed the size takes every older size with it, as in any block. One that did not still needs a
    /// size that holds its data (CM 4.8 (2)): where the medium's, or an older one in the cache, would not, the sizes
    /// up to it are on the medium too.
    pub(super) fn settle(&mut self, id: ChangeId, end: u64) {
        if self.base_id.is_some_and(|newer| newer > id) {
            return;
        }
        let older = self.versions.partition_point(|version| version.id <= id);
        let mine = self.holds(id);
        let too_small = self.base < end || self.versions.iter().take(older).any(|version| version.size < end);
        if mine || too_small {
            self.base = self.at(older);
            self.base_id = self.versions.drain(..older).next_back().map(|version| version.id).or(self.base_id);
            // Only where a failed flush forgot the size this data relied on.
            if !mine {
                self.base = self.base.max(end);
            }
        }
    }

    /// Sizes of these requests never were.
    pub(super) fn forget(&mut self, forgotten: impl Fn(ChangeId) -> bool) {
        self.versions.retain(|version| !forgotten(version.id));
    }

    /// The power was cut, and this is what is left.
    pub(super) fn reset(&mut self, size: u64) {
        *self = Self::new(size);
    }
}
