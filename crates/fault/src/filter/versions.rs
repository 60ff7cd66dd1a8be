//! What sectors held before they were written, for rules that serve stale data.
//!
//! Versions are read before a write and kept once it has succeeded: a write that fails replaces none. They belong to a rule
//! and go when it is removed, replaced or reset.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use blkproof_block::{BlockDevice as _, ByteRange, Node};

use crate::engine::RuleKey;

/// Most bytes kept, over all rules. Beyond it no more sectors are remembered, and the rule serves what is there.
pub const VERSIONS_MAX: usize = 64 << 20;

/// Most bytes read at once.
const PIECE: u64 = 1 << 20;

/// Whose, and where.
type Place = (RuleKey, u64);
type Sectors = BTreeMap<Place, Box<[u8]>>;

/// Old sectors by rule and offset.
#[derive(Debug, Default)]
pub(super) struct Versions {
    sectors: RefCell<Sectors>,
    /// Bytes of these.
    bytes: Cell<usize>,
    /// Bytes read for requests that have not succeeded yet.
    staged: Cell<usize>,
}

/// What was read before a write, to be kept when that has succeeded.
pub(super) struct Staged<'a> {
    versions: &'a Versions,
    /// What is about to be written, whole sectors.
    places: Vec<(RuleKey, ByteRange)>,
    sectors: Vec<(Place, Box<[u8]>)>,
    bytes: usize,
}

impl Versions {
    /// Reads what stands in `places`, as far as there is room for it. A sector that can not be read has no version.
    pub(super) async fn stage(&self, device: &Node, places: Vec<(RuleKey, ByteRange)>, sector: u64) -> Staged<'_> {
        let sector = sector.max(1);
        let size = device.info().size;
        let places: Vec<_> = places.into_iter().map(|(key, place)| (key, place.aligned_out(sector))).collect();
        let replaced: usize = places.iter().map(|&(key, place)| self.bytes_of(key, place)).sum();
        let mut staged = Staged { versions: self, places, sectors: Vec::new(), bytes: 0 };
        // Counts what is tried, so that a medium that reads nowhere ends it too.
        let mut room = u64::try_from(self.room().saturating_add(replaced)).unwrap_or(0).min(VERSIONS_MAX as u64);
        for at in 0..staged.places.len() {
            let Some(&(key, place)) = staged.places.get(at) else { break };
            let mut start = place.start;
            let end = place.end.min(size / sector * sector);
            while start < end && room >= sector {
                let len = (end - start).min(PIECE.next_multiple_of(sector)).min(room / sector * sector);
                room -= len;
                staged.read(device, key, ByteRange::at(start, len), sector).await;
                start += len;
            }
        }
        staged
    }

    fn room(&self) -> usize {
        VERSIONS_MAX.saturating_sub(self.bytes.get()).saturating_sub(self.staged.get())
    }

    fn bytes_of(&self, key: RuleKey, place: ByteRange) -> usize {
        self.sectors.borrow().range((key, place.start)..(key, place.end)).map(|(_, sector)| sector.len()).sum()
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

    /// Forgets what is kept for a rule, or for all of them: they are gone, or begin anew.
    pub(super) fn forget(&self, key: Option<RuleKey>) {
        let mut sectors = self.sectors.borrow_mut();
        sectors.retain(|(owner, _), _| key.is_some_and(|key| *owner != key));
        self.bytes.set(sectors.values().map(|sector| sector.len()).sum());
    }

    fn remove(&self, key: RuleKey, place: ByteRange) {
        let mut sectors = self.sectors.borrow_mut();
        let old: Vec<_> = sectors.range((key, place.start)..(key, place.end)).map(|(place, _)| *place).collect();
        for place in old {
            let bytes = sectors.remove(&place).map_or(0, |sector| sector.len());
            self.bytes.set(self.bytes.get().saturating_sub(bytes));
        }
    }
}

impl Staged<'_> {
    /// Reads `place`; where that fails, its halves, down to the sectors that do.
    async fn read(&mut self, device: &Node, key: RuleKey, place: ByteRange, sector: u64) {
        let mut wanted = vec![place];
        while let Some(place) = wanted.pop() {
            let mut data = vec![0; usize::try_from(place.len()).unwrap_or(0)];
            if device.read(place.start, &mut data).await.is_ok() {
                self.bytes = self.bytes.saturating_add(data.len());
                self.versions.staged.set(self.versions.staged.get().saturating_add(data.len()));
                let sectors = data.chunks(usize::try_from(sector).unwrap_or(usize::MAX));
                let places = (place.start..).step_by(usize::try_from(sector).unwrap_or(usize::MAX));
                self.sectors.extend(places.zip(sectors).map(|(at, sector)| ((key, at), sector.into())));
            } else if place.len() > sector {
                let half = (place.len() / 2).next_multiple_of(sector);
                let middle = place.start + half;
                wanted.push(ByteRange { start: middle, end: place.end });
                wanted.push(ByteRange { start: place.start, end: middle });
            }
        }
    }

    /// The write has succeeded: what it has replaced is kept, of rules that are still there.
    pub(super) fn commit(mut self, is_there: impl Fn(RuleKey) -> bool) {
        for &(key, place) in &self.places {
            // Also where nothing was read: what is known there is no longer what was there last.
            self.versions.remove(key, place);
        }
        for (place, sector) in self.sectors.drain(..).filter(|((key, _), _)| is_there(*key)) {
            // Another write that began in the same state of things may have used the room.
            let bytes = self.versions.bytes.get().saturating_add(sector.len());
            if bytes <= VERSIONS_MAX
                && let None = self.versions.sectors.borrow_mut().insert(place, sector)
            {
                self.versions.bytes.set(bytes);
            }
        }
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        self.versions.staged.set(self.versions.staged.get().saturating_sub(self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use blkproof_block::nodes::memory::Memory;
    use blkproof_block::testing::block_on;

    use super::*;
    use crate::engine::Engine;
    use crate::rule::{Action, On, Rule, RuleSet, Then};

    fn keys() -> [RuleKey; 2] {
        let rule = |id: &str| Rule {
            id: blkproof_block::RuleId(id.into()),
            on: On::default(),
            action: Action::None,
            then: Then::default(),
            life: None,
        };
        let set = RuleSet { rules: vec![rule("a"), rule("b")], ..RuleSet::default() };
        let engine = Engine::new(set, Duration::ZERO).unwrap();
        ["a", "b"].map(|id| engine.key(id).unwrap())
    }

    #[test]
    fn room_is_given_back() {
        let [a, b] = keys();
        let disk = Node::new(Memory::new(1 << 20));
        let versions = Versions::default();
        let place = ByteRange::at(512, 2048);
        block_on(async {
            let both = || vec![(a, place), (b, place)];
            for _ in 0..3 {
                let staged = versions.stage(&disk, both(), 512).await;
                assert_eq!(versions.staged.get(), 4096);
                drop(staged);
                assert_eq!((versions.staged.get(), versions.bytes.get()), (0, 0), "the write has failed");
                versions.stage(&disk, both(), 512).await.commit(|key| key == a);
                assert_eq!((versions.staged.get(), versions.bytes.get()), (0, 2048), "one of them has gone meanwhile");
                versions.forget(Some(b));
                assert_eq!(versions.bytes.get(), 2048);
                versions.forget(Some(a));
                assert_eq!((versions.bytes.get(), versions.sectors.borrow().len()), (0, 0));
            }
            versions.stage(&disk, both(), 512).await.commit(|_| true);
            versions.forget(None);
            assert_eq!((versions.bytes.get(), versions.sectors.borrow().len()), (0, 0));
        });
    }

    #[test]
    fn whole_sectors_are_kept_of_a_part() {
        let [a, _] = keys();
        let disk = Node::new(Memory::with_content(&[7; 2048]));
        let versions = Versions::default();
        block_on(async {
            versions.stage(&disk, vec![(a, ByteRange { start: 700, end: 1025 })], 512).await.commit(|_| true);
            let mut data = [0; 4];
            versions.put(a, 512, ByteRange::at(512, 4), &mut data);
            assert_eq!((data, versions.bytes.get()), ([7; 4], 1024));
            // What lies behind the end was nothing.
            versions.stage(&disk, vec![(a, ByteRange { start: 1536, end: 4096 })], 512).await.commit(|_| true);
            assert_eq!(versions.bytes.get(), 1536);
        });
    }

    /// What is left of a rule that has gone is nobody's, and would take the room of others.
    #[test]
    fn versions_go_with_their_rule() {
        use crate::filter::{Fault, Faults};
        use crate::rule::Corruption;
        let lab = crate::lab::Lab::new(std::rc::Rc::new(crate::clock::Stopped));
        let faults = Faults::new(std::rc::Rc::from("f"), RuleSet::default(), &lab).unwrap();
        let node = Node::new(Fault::new(Node::new(Memory::new(1 << 20)), std::rc::Rc::clone(&faults)));
        let rule = |id: &str| Rule {
            id: blkproof_block::RuleId(id.into()),
            on: On::default(),
            action: Action::Corrupt { how: Corruption::Stale, sectors: None },
            then: Then::default(),
            life: None,
        };
        let ways: [fn(&Faults); 4] = [
            |faults| assert!(faults.remove("a")),
            |faults| assert!(faults.reset(Some("a"))),
            |faults| assert!(faults.reset(None)),
            |faults| faults.replace(RuleSet::default()).unwrap(),
        ];
        for (way, left) in ways.into_iter().zip([512, 512, 0, 0]) {
            faults.replace(RuleSet { rules: vec![rule("a"), rule("b")], ..RuleSet::default() }).unwrap();
            block_on(node.discard(0, 512)).unwrap();
            assert_eq!(faults.versions.bytes.get(), 1024);
            way(&faults);
            assert_eq!(faults.versions.bytes.get(), left);
        }
    }
}
