//! Writing: in place where the cluster is ours, else to a new place and then into the map.

use std::rc::Rc;

use blkproof_block::{BlockDevice, Event, IoError, Result};

use super::Qcow2;
use super::cache::Table;
use super::cow::Span;
use super::entry::Mapping;
use super::units::index;

/// Clusters written in one allocating step.
const RUN_BYTES_MAX: u64 = 16 << 20;

impl<D: BlockDevice> Qcow2<D> {
    /// Serves a guest write that is inside the disk.
    pub(crate) async fn guest_write(&self, at: u64, data: &[u8]) -> Result<()> {
        let clusters = self.clusters_of(at, data.len() as u64);
        {
            let _range = self.requests.shared(clusters).await;
            self.check_still_inside(at, data.len() as u64)?;
            if let Some(runs) = self.places(at, data.len() as u64).await? {
                return self.write_in_place(at, data, &runs).await;
            }
        }
        // The map changes: alone in these clusters. What was found above may have changed while we waited.
        let _range = self.requests.exclusive(clusters).await;
        self.check_still_inside(at, data.len() as u64)?;
        self.write_locked(at, data).await
    }

    /// Host offsets and lengths of a range that can be written in place as a whole.
    async fn places(&self, at: u64, len: u64) -> Result<Option<Vec<(u64, u64)>>> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let (mut at, end) = (at, at + len);
        while at < end {
            let slot = self.l1_slot(at);
            let table = self.l2_table(slot).await.map_err(|e| e.at(at))?;
            let copied = self.l1_entry(slot).is_ok_and(|entry| entry.copied);
            if table.is_none() || !copied {
                return Ok(None);
            }
            let stop = end.min(self.slot_end(slot));
            while at < stop {
                let (mapping, here) = (self.mapping_or_fail(table.as_deref(), at).await?, self.upto(at, stop));
                let Some(host) = self.place(&mapping, at, here) else { return Ok(None) };
                match runs.last_mut() {
                    Some((first, len)) if *first + *len == host => *len += here - at,
                    _ => runs.push((host, here - at)),
                }
                at = here;
            }
        }
        Ok(Some(runs))
    }

    /// The end of the cluster that holds `at`, `end` at most.
    pub(crate) fn upto(&self, at: u64, end: u64) -> u64 {
        end.min(self.geometry.cluster_start(at) + self.geometry.cluster_size())
    }

    /// The host offset of `at` if `at..end`, inside one cluster, can be written in place.
    fn place(&self, mapping: &Mapping, at: u64, end: u64) -> Option<u64> {
        let start = self.geometry.cluster_start(at);
        let touched = self.geometry.touched(at - start, end - start);
        let whole = mapping.writable_in_place() && mapping.allocated & touched == touched;
        mapping.host.filter(|_| whole).map(|host| host + (at - start))
    }

    async fn write_in_place(&self, at: u64, data: &[u8], runs: &[(u64, u64)]) -> Result<()> {
        let (mut at, mut rest) = (at, data);
        for &(host, len) in runs {
            let (here, after) = rest.split_at(index(len));
            self.check_data_place(host, len).await.map_err(|e| e.at(at))?;
            self.file.event(Event::WriteAio).await;
            self.data_write(host, here).await.map_err(|e| e.rebase(host, at))?;
            at += len;
            rest = after;
        }
        Ok(())
    }

    /// Refuses to write guest data over metadata, which only a damaged map can ask for.
    async fn check_data_place(&self, host: u64, len: u64) -> Result<()> {
        if self.geometry.external_data {
            return Ok(());
        }
        // An entry is written after its data, so what it names lies inside the file, but for a partial last cluster.
        // Anything else is damage, and would blow the file up to wherever it points.
        let size = self.file.info().size;
        if host >= size.saturating_add(self.geometry.cluster_size()) {
            let words = format!("data cluster at {host:#x} lies past end of file ({size:#x})");
            return Err(IoError::new(blkproof_block::Errno::IO).detail(words));
        }
        let first = host >> self.geometry.cluster_bits;
        let last = (host + len - 1) >> self.geometry.cluster_bits;
        let hit = self.metadata.borrow().range(first..=last).next().map(|(_, what)| *what);
        match hit {
            None => Ok(()),
            Some(what) => {
                Err(self.corrupt(format!("preventing invalid write on metadata (overlaps with {what})")).await)
            }
        }
    }

    pub(crate) async fn mapping_or_fail(&self, table: Option<&Table>, at: u64) -> Result<Mapping> {
        match self.mapping(table, at) {
            Ok(mapping) => Ok(mapping),
            Err(bad) => Err(self.bad_entry(table, at, bad).await),
        }
    }

    /// Writes a range that the caller has locked exclusively.
    pub(crate) async fn write_locked(&self, at: u64, data: &[u8]) -> Result<()> {
        let (mut at, mut rest) = (at, data);
        while !rest.is_empty() {
            let slot = self.l1_slot(at);
            let end = (at + rest.len() as u64).min(self.slot_end(slot));
            let table = self.writable_l2_table(slot).await.map_err(|e| e.at(at))?;
            let done = self.write_run(&table, at, &rest[..index(end - at)]).await.map_err(|e| e.at(at))?;
            at += done;
            rest = &rest[index(done)..];
        }
        Ok(())
    }

    /// Writes as much of `data` as goes to adjacent places in one way; returns how much that was.
    async fn write_run(&self, table: &Rc<Table>, at: u64, data: &[u8]) -> Result<u64> {
        let end = at + data.len() as u64;
        let first = self.mapping_or_fail(Some(table), at).await?;
        let here = self.upto(at, end);
        if let Some(host) = self.place(&first, at, here) {
            // In place, as far as the clusters are adjacent.
            let (mut stop, mut len) = (here, here - at);
            while stop < end {
                let next = self.upto(stop, end);
                let mapping = self.mapping_or_fail(Some(table), stop).await?;
                if self.place(&mapping, stop, next) != Some(host + len) {
                    break;
                }
                len += next - stop;
                stop = next;
            }
            self.write_in_place(at, &data[..index(len)], &[(host, len)]).await?;
            return Ok(len);
        }
        if first.writable_in_place() {
            return self.fill_in_place(table, at, &data[..index(here - at)], first).await;
        }
        self.write_to_new(table, at, data).await
    }

    /// Writes to a cluster that has a host cluster of its own, in which some of the touched subclusters hold nothing
    /// yet (zero, or read from below).
    async fn fill_in_place(&self, table: &Table, at: u64, data: &[u8], mapping: Mapping) -> Result<u64> {
        let geometry = &self.geometry;
        let start = geometry.cluster_start(at);
        let end = at + data.len() as u64;
        let Some(cluster) = mapping.host else { return Err(IoError::new(blkproof_block::Errno::INVAL)) };
        self.check_data_place(cluster, geometry.cluster_size()).await?;
        let touched = geometry.touched(at - start, end - start);
        let size = geometry.subcluster_size();
        let holds = |offset: u64| mapping.allocated >> ((offset - start) / size) & 1 == 1;
        let span = Span {
            start: if holds(at) { at } else { start + (at - start) / size * size },
            at,
            end,
            stop: if holds(end - 1) { end } else { start + ((end - 1 - start) / size + 1) * size },
        };
        // An earlier write to this place, dropped before the map changed, may still be under way; it must not land
        // on the bytes around the guest's.
        self.settle().await?;
        self.write_span(Some(table), span, data, cluster + (at - start), false).await?;
        let new = Mapping { allocated: mapping.allocated | touched, zero: mapping.zero & !touched, ..mapping };
        self.set_mapping(table, at, &new);
        Ok(end - at)
    }

    /// Writes to new host clusters: the leading clusters of `data` that need one.
    async fn write_to_new(&self, table: &Table, at: u64, data: &[u8]) -> Result<u64> {
        let geometry = &self.geometry;
        let cluster_size = geometry.cluster_size();
        let base = geometry.cluster_start(at);
        let limit = (at + data.len() as u64).min(base + RUN_BYTES_MAX.max(cluster_size));
        // How many clusters in a row need a new place.
        let mut old = Vec::new();
        let mut stop = base;
        while stop < limit {
            let mapping = self.mapping_or_fail(Some(table), stop).await?;
            if mapping.writable_in_place() {
                break;
            }
            old.push(mapping);
            stop += cluster_size;
        }
        let (host, reserved) = if geometry.external_data {
            // The place is given: the guest offset. A dropped write may still be landing there.
            self.settle().await?;
            (base, None)
        } else {
            let reserved = self.allocate(old.len() as u64).await?;
            old.truncate(index(reserved.count()));
            (self.host(&reserved).0, Some(reserved))
        };
        let end = limit.min(base + old.len() as u64 * cluster_size);

        // Which subclusters the new place will hold: those written, and those that held data before.
        let holds: Vec<u32> = old
            .iter()
            .enumerate()
            .map(|(number, mapping)| {
                let start = base + number as u64 * cluster_size;
                let touched = geometry.touched(at.max(start) - start, end.min(start + cluster_size) - start);
                let moved = if mapping.compressed.is_some() { geometry.all_subclusters() } else { mapping.allocated };
                touched | moved
            })
            .collect();
        let size = geometry.subcluster_size();
        let last = base + (old.len() as u64 - 1) * cluster_size;
        let low = holds.first().map_or(0, |held| u64::from(held.trailing_zeros()));
        let high = holds.last().map_or(0, |held| u64::from(32 - held.leading_zeros()));
        let span = Span { start: at.min(base + low * size), at, end, stop: end.max(last + high * size) };
        let fresh = reserved.as_ref().is_some_and(|reserved| reserved.fresh);
        let data = &data[..index(end - at)];
        self.write_span(Some(table), span, data, host + (at - base), fresh).await?;

        // The data is written; from here on nothing waits. The map changes, and what it referred to is freed.
        for (number, (old, held)) in old.iter().zip(holds).enumerate() {
            let offset = number as u64 * cluster_size;
            let new = Mapping {
                host: Some(host + offset),
                copied: true,
                compressed: None,
                allocated: held,
                zero: old.zero & !held,
            };
            self.set_mapping(table, base + offset, &new);
            self.drop_old(old, false);
        }
        if let Some(reserved) = reserved {
            reserved.keep();
        }
        Ok(end - at)
    }

    /// Frees what a mapping referred to.
    pub(crate) fn drop_old(&self, old: &Mapping, request: bool) {
        if self.geometry.external_data {
            return; // nothing of it is counted
        }
        if let Some(extent) = old.compressed {
            let first = extent.offset >> self.geometry.cluster_bits;
            let last = (extent.offset + extent.len - 1) >> self.geometry.cluster_bits;
            self.free_clusters(first << self.geometry.cluster_bits, last - first + 1, request);
        } else if let Some(host) = old.host {
            self.free_clusters(host, 1, request);
        }
    }
}
