//! The clusters that were used last.

use std::collections::BTreeMap;

/// Clusters held at most.
const CLUSTERS: usize = 8;

/// What clusters hold; nothing here is newer than the disk.
#[derive(Debug, Default)]
pub(super) struct Cache {
    clusters: BTreeMap<u64, (u64, Vec<u8>)>,
    clock: u64,
}

impl Cache {
    pub(super) fn get(&mut self, cluster: u64) -> Option<Vec<u8>> {
        self.clock = self.clock.saturating_add(1);
        let (used, bytes) = self.clusters.get_mut(&cluster)?;
        *used = self.clock;
        Some(bytes.clone())
    }

    pub(super) fn put(&mut self, cluster: u64, bytes: Vec<u8>) {
        self.clock = self.clock.saturating_add(1);
        self.clusters.insert(cluster, (self.clock, bytes));
        if self.clusters.len() > CLUSTERS {
            let oldest = self.clusters.iter().min_by_key(|(_, (used, _))| *used).map(|(cluster, _)| *cluster);
            oldest.and_then(|cluster| self.clusters.remove(&cluster));
        }
    }

    pub(super) fn forget(&mut self, cluster: u64) {
        self.clusters.remove(&cluster);
    }
}
