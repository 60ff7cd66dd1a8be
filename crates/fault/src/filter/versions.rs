//! What sectors held before they were written, for rules that serve stale data.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use blkproof_block::ByteRange;

use crate::engine::RuleKey;

/// Most bytes kept, over all rules. Beyond it no more sectors are remembered, and the rule serves what is there.
pub const VERSIONS_MAX: usize = 64 << 20;

type Sectors = BTreeMap<(RuleKey, u64), Box<[u8]>>;

/// Old sectors by rule and offset.
#[derive(Debug, Default)]
pub(super) struct Versions {
    sectors: RefCell<Sectors>,
    bytes: Cell<usize>,
}

impl Versions {
    /// Keeps `data` as what stood at `at` before, sector by sector, in place of older versions.
    pub(super) fn keep(&self, key: RuleKey, at: u64, data: &[u8], lba_size: usize) {
        let mut sectors = self.sectors.borrow_mut();
        for (at, sector) in (at..).step_by(lba_size.max(1)).zip(data.chunks(lba_size.max(1))) {
            if let Some(old) = sectors.get_mut(&(key, at)) {
                *old = sector.into();
            } else if self.bytes.get().saturating_add(sector.len()) <= VERSIONS_MAX {
                self.bytes.set(self.bytes.get().saturating_add(sector.len()));
                sectors.insert((key, at), sector.into());
            }
        }
    }

    /// Puts the old version of `range`, which lies in one sector beginning at `start`, into `data`; nothing if none is known.
    pub(super) fn put(&self, key: RuleKey, start: u64, range: ByteRange, data: &mut [u8]) {
        let sectors = self.sectors.borrow();
        let Some(old) = sectors.get(&(key, start)) else { return };
        let skip = usize::try_from(range.start.saturating_sub(start)).unwrap_or(usize::MAX);
        for (byte, old) in data.iter_mut().zip(old.iter().skip(skip)) {
            *byte = *old;
        }
    }

    /// Forgets everything: rules are gone, or begin anew.
    pub(super) fn clear(&self) {
        self.sectors.borrow_mut().clear();
        self.bytes.set(0);
    }
}
