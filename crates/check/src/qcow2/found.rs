//! Who refers to which host cluster: the references found, for a window of clusters.
//!
//! Compressed clusters may share host clusters with each other, nothing else may share without snapshots; so references
//! by compressed clusters are counted apart. With snapshots a data cluster is shared rightly if all who refer to it
//! mean the same place of the disk: each cluster keeps a key of that place, and a second key clashes (image-check.md
//! Q-L6).

use std::ops::Range;

use crate::budget::{Budget, Full};
use crate::map::Class;
use crate::tally::Tally;

use super::l1::TableRef;
use super::marks::{Keys, Marks};

/// Keys of metadata have this bit, keys of guest data do not.
const METADATA_KEY: u32 = 1 << 31;

pub(crate) struct Found<'b> {
    pub(crate) window: Range<u64>,
    /// References, those of compressed clusters apart.
    pub(crate) plain: Tally<'b>,
    pub(crate) compressed: Tally<'b>,
    /// With snapshots only.
    shared: Option<Shared<'b>>,
    /// Referred to by VM state.
    pub(crate) vm: Marks<'b>,
    next_key: u32,
}

struct Shared<'b> {
    keys: Keys<'b>,
    clash: Marks<'b>,
    /// Referred to by the active disk.
    active: Marks<'b>,
}

impl<'b> Found<'b> {
    pub(crate) fn new(window: Range<u64>, shares: bool, budget: &'b Budget) -> Result<Self, Full> {
        let shared = if shares {
            Some(Shared {
                keys: Keys::new(window.clone(), budget)?,
                clash: Marks::new(window.clone(), budget)?,
                active: Marks::new(window.clone(), budget)?,
            })
        } else {
            None
        };
        Ok(Self {
            plain: Tally::new(window.clone(), budget)?,
            compressed: Tally::new(window.clone(), budget)?,
            vm: Marks::new(window.clone(), budget)?,
            shared,
            window,
            next_key: 0,
        })
    }

    /// Metadata in these clusters, which nobody else may use.
    pub(crate) fn metadata(&mut self, clusters: Range<u64>, weight: u64) -> Result<(), Full> {
        self.next_key = self.next_key.wrapping_add(1);
        let key = METADATA_KEY | 1 << 30 | self.next_key;
        self.refer(&clusters, weight)?;
        if let Some(shared) = &self.shared {
            shared.note(&self.window, clusters, |_| key, weight > 1)?;
        }
        Ok(())
    }

    /// An L2 table, which L1 tables may share that name it at one index.
    pub(crate) fn table(&self, table: &TableRef) -> Result<(), Full> {
        let cluster = table.cluster..table.cluster.saturating_add(1);
        self.refer(&cluster, u64::from(table.weight))?;
        if let Some(shared) = &self.shared {
            let key = METADATA_KEY | table.l1_index & (METADATA_KEY >> 2);
            shared.note(&self.window, cluster, |_| key, table.several)?;
        }
        Ok(())
    }

    /// Guest data: `clusters` hold what begins at the guest's cluster `guest`.
    pub(crate) fn data(&self, table: &TableRef, clusters: Range<u64>, guest: u64) -> Result<(), Full> {
        self.refer(&clusters, u64::from(table.weight))?;
        if table.vm {
            self.vm.set(clusters.start, clusters.end.saturating_sub(clusters.start))?;
        }
        if let Some(shared) = &self.shared {
            if table.active > 0 {
                shared.active.set(clusters.start, clusters.end.saturating_sub(clusters.start))?;
            }
            let start = clusters.start;
            let key = |cluster: u64| {
                let at = guest.wrapping_add(cluster.wrapping_sub(start)) & u64::from(METADATA_KEY - 1);
                u32::try_from(at).unwrap_or(0)
            };
            shared.note(&self.window, clusters, key, table.several)?;
        }
        Ok(())
    }

    /// A compressed cluster's stream touches these.
    pub(crate) fn stream(&self, table: &TableRef, clusters: Range<u64>) -> Result<(), Full> {
        let first = clusters.start;
        let count = clusters.end.saturating_sub(first);
        if table.weight == 1 {
            self.compressed.add_run(first, count)?;
        } else {
            for cluster in clusters {
                self.compressed.add(cluster, u64::from(table.weight))?;
            }
        }
        if table.vm {
            self.vm.set(first, count)?;
        }
        if let Some(shared) = self.shared.as_ref().filter(|_| table.active > 0) {
            shared.active.set(first, count)?;
        }
        Ok(())
    }

    /// Something refers to these, whatever it means.
    pub(crate) fn refer(&self, clusters: &Range<u64>, weight: u64) -> Result<(), Full> {
        if weight == 1 {
            self.plain.add_run(clusters.start, clusters.end.saturating_sub(clusters.start))?;
            return Ok(());
        }
        for cluster in clusters.start.max(self.window.start)..clusters.end.min(self.window.end) {
            self.plain.add(cluster, weight)?;
        }
        Ok(())
    }

    /// What is known of a cluster and some that follow it, up to `end`.
    pub(crate) fn run_at(&self, cluster: u64) -> Known {
        let (plain, to) = self.plain.run_at(cluster);
        let (compressed, end) = self.compressed.run_at(cluster);
        let mut known = Known { plain, compressed, conflict: false, data: Class::Data, end: to.min(end) };
        known.conflict = plain >= 1 && (compressed >= 1 || plain >= 2 && self.shared.is_none());
        if plain == 0 && compressed == 0 {
            return known;
        }
        let (vm, to) = self.vm.run_at(cluster);
        known.end = known.end.min(to);
        let mut active = true;
        if let Some(shared) = &self.shared {
            let (clash, to) = shared.clash.run_at(cluster);
            known.conflict |= clash;
            known.end = known.end.min(to);
            let (of_active, to) = shared.active.run_at(cluster);
            active = of_active;
            known.end = known.end.min(to);
        }
        known.data = match () {
            () if vm => Class::VmState,
            () if !active => Class::SnapshotData,
            () if compressed > 0 => Class::Compressed,
            () => Class::Data,
        };
        known
    }

    /// Whether a cluster is claimed by two that can not share it.
    pub(crate) fn conflict(&self, cluster: u64) -> bool {
        self.window.contains(&cluster) && self.run_at(cluster).conflict
    }
}

impl Shared<'_> {
    fn note(
        &self,
        window: &Range<u64>,
        clusters: Range<u64>,
        key: impl Fn(u64) -> u32,
        clash: bool,
    ) -> Result<(), Full> {
        for cluster in clusters.start.max(window.start)..clusters.end.min(window.end) {
            if self.keys.clashes(cluster, key(cluster))? || clash {
                self.clash.set(cluster, 1)?;
            }
        }
        Ok(())
    }
}

/// What is known of a stretch of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) plain: u64,
    pub(crate) compressed: u64,
    /// Claimed by two that can not share it.
    pub(crate) conflict: bool,
    /// Which kind of data it is, if it is data.
    pub(crate) data: Class,
    /// Where the stretch ends.
    pub(crate) end: u64,
}
