//! Which cluster of the guest has which place, and which places are free.

use std::collections::BTreeSet;

use super::index;

/// The map, in memory.
#[derive(Debug, Default)]
pub(super) struct Map {
    /// 0, or the place's number from 1.
    entries: Vec<u32>,
    /// Clusters whose entries on the disk are older.
    dirty: BTreeSet<u64>,
    /// Places that may be given out.
    free: Vec<u32>,
    /// Places that the map on the disk may still name.
    freed: Vec<u32>,
    /// Behind the last place.
    end: u32,
}

/// What a flush brings to the disk.
#[derive(Debug)]
pub(super) struct Pending {
    entries: Vec<(u64, u32)>,
    freed: Vec<u32>,
}

impl Pending {
    /// Clusters and their entries.
    pub(super) fn entries(&self) -> &[(u64, u32)] {
        &self.entries
    }
}

impl Map {
    /// A map as it is on the disk. Places that it does not name are free.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (whole, _) = bytes.as_chunks::<4>();
        let entries: Vec<u32> = whole.iter().map(|entry| u32::from_le_bytes(*entry)).collect();
        let mut used = BTreeSet::new();
        for (cluster, entry) in entries.iter().enumerate().filter(|(_, entry)| **entry != 0) {
            if !used.insert(entry.saturating_sub(1)) {
                return Err(format!("cluster {cluster} has place {entry}, which another one has already"));
            }
        }
        let end = used.last().map_or(0, |last| last.saturating_add(1));
        let most = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        // What lies behind as many places as there are clusters is not worth remembering.
        let free = (0..end.min(most)).filter(|place| !used.contains(place)).collect();
        Ok(Self { entries, free, end, ..Self::default() })
    }

    pub(super) fn get(&self, cluster: u64) -> Option<u32> {
        self.entries.get(index(cluster)).and_then(|entry| entry.checked_sub(1))
    }

    /// Gives a place out.
    pub(super) fn take(&mut self) -> u32 {
        let place = self.next();
        self.taken(place);
        place
    }

    /// The place that would be given out next.
    pub(super) fn next(&self) -> u32 {
        self.free.last().copied().unwrap_or(self.end)
    }

    /// This place was given out.
    pub(super) fn taken(&mut self, place: u32) {
        self.free.retain(|free| *free != place);
        self.end = self.end.max(place.saturating_add(1));
    }

    /// Nothing came of it: the map never named it.
    pub(super) fn put_back(&mut self, place: u32) {
        self.free.push(place);
    }

    pub(super) fn set(&mut self, cluster: u64, place: u32) {
        if let Some(entry) = self.entries.get_mut(index(cluster)) {
            *entry = place.saturating_add(1);
            self.dirty.insert(cluster);
        }
    }

    /// The cluster has no place any more; what it had is free after the next flush, or at once.
    pub(super) fn unset(&mut self, cluster: u64, at_once: bool) {
        let Some(place) = self.get(cluster) else { return };
        if let Some(entry) = self.entries.get_mut(index(cluster)) {
            *entry = 0;
            self.dirty.insert(cluster);
        }
        if at_once { self.free.push(place) } else { self.freed.push(place) }
    }

    /// What has to be written now.
    pub(super) fn begin_flush(&mut self) -> Pending {
        let entry = |cluster: &u64| (*cluster, self.entries.get(index(*cluster)).copied().unwrap_or(0));
        let entries = self.dirty.iter().map(entry).collect();
        self.dirty.clear();
        Pending { entries, freed: std::mem::take(&mut self.freed) }
    }

    /// It was, or not.
    pub(super) fn end_flush(&mut self, pending: Pending, written: bool) {
        if written {
            self.free.extend(pending.freed);
        } else {
            self.dirty.extend(pending.entries.iter().map(|(cluster, _)| *cluster));
            self.freed.extend(pending.freed);
        }
    }
}
