//! Rebuilding the refcounts of an image whose dirty bit is set.
//!
//! With lazy refcounts, counts on disk may be too low for what the tables refer to, and even the blocks to hold them
//! may be missing. Every reference is counted, every stored count is set to what was found, and only when that is
//! durable is the dirty bit cleared: a power cut in between leaves the bit set, and the next open begins again.

use std::rc::Rc;

use blkproof_block::graph::OpenError;
use blkproof_block::{BlockDevice, IoError};

use super::Qcow2;
use super::cache::Table;
use super::entry::{COPIED, L1_RESERVED, Mapping};
use super::header::DIRTY;
use super::units::{Geometry, OFFSET_MASK, index};
use super::{header, snapshot};

/// Clusters of the largest file we count: 1 GiB of counters.
const CLUSTERS_MAX: u64 = 1 << 28;

fn image(words: impl Into<String>) -> OpenError {
    OpenError::Image(format!("can not repair the refcounts: {}", words.into()))
}

fn io(what: impl Into<String>) -> impl FnOnce(IoError) -> OpenError {
    move |error| OpenError::io(what, error)
}

/// References found, by host cluster.
struct Found {
    counts: Vec<u32>,
    geometry: Geometry,
}

impl Found {
    fn add(&mut self, offset: u64, bytes: u64, what: &str) -> Result<(), OpenError> {
        let first = offset >> self.geometry.cluster_bits;
        let end = offset.checked_add(bytes).and_then(|end| self.geometry.round_up(end));
        let last = end.map_or(u64::MAX, |end| end >> self.geometry.cluster_bits);
        // One cluster of grace: the last one may be partial, and a compressed stream may claim a sector too many.
        let limit = self.counts.len() as u64;
        if last > limit + 1 {
            return Err(image(format!("{what} at {offset:#x} reaches past end of file")));
        }
        if last > limit {
            self.counts.resize(index(last), 0);
        }
        for count in self.counts.get_mut(index(first)..index(last)).unwrap_or_default() {
            *count = count.saturating_add(1);
        }
        Ok(())
    }

    fn get(&self, cluster: u64) -> u32 {
        self.counts.get(index(cluster)).copied().unwrap_or(0)
    }
}

impl<D: BlockDevice> Qcow2<D> {
    /// Counts every reference, writes the counts, and clears the dirty bit.
    pub(crate) async fn rebuild_refcounts(&self) -> Result<(), OpenError> {
        let mut found = self.count_references().await?;
        self.add_missing_blocks(&mut found).await?;
        self.store_counts(&found).await?;
        self.mend_copied_flags(&found).await?;
        self.commit().await.map_err(io("could not write the tables"))?;
        self.write_back_blocks().await.map_err(io("could not write the refcounts"))?;
        self.file.flush().await.map_err(io("could not flush the refcounts"))?;
        let cleared = self.change_header(|header| header.incompatible &= !DIRTY).await;
        cleared.map_err(io("could not clear the dirty bit"))
    }

    async fn count_references(&self) -> Result<Found, OpenError> {
        let geometry = self.geometry;
        let clusters = geometry.clusters(self.file.info().size);
        if clusters > CLUSTERS_MAX {
            return Err(image(format!("the file has {clusters} clusters, more than {CLUSTERS_MAX}")));
        }
        let mut found = Found { counts: vec![0; index(clusters)], geometry };
        let header = self.header.borrow().clone();
        found.add(0, 1, "header")?;
        let l1_bytes = u64::from(header.l1_entries) * 8;
        found.add(header.l1_offset, l1_bytes, "L1 table")?;
        let reftable = Rc::clone(&self.reftable.borrow());
        found.add(reftable.offset, reftable.len() as u64, "refcount table")?;
        for slot in 0..reftable.len() as u64 / 8 {
            let raw = reftable.word(slot);
            if raw != 0 {
                if raw & !OFFSET_MASK != 0 || geometry.in_cluster(raw) != 0 {
                    return Err(image(format!("refblock offset {raw:#x} unaligned (reftable index: {slot:#x})")));
                }
                found.add(raw, geometry.cluster_size(), "refcount block")?;
            }
        }
        let l1 = Rc::clone(&self.l1.borrow());
        self.count_l1(&mut found, &l1, header.l1_entries).await?;
        if header.snapshots > 0 {
            let snapshots = snapshot::load(&self.file, &header).await?;
            found.add(header.snapshots_offset, snapshots.bytes, "snapshot table")?;
            for entry in &snapshots.entries {
                let bytes = u64::from(entry.l1_entries) * 8;
                found.add(entry.l1_offset, bytes, "snapshot L1 table")?;
                let l1 = Self::load_table(&self.file, "snapshot L1 table", entry.l1_offset, bytes).await?;
                self.count_l1(&mut found, &l1, entry.l1_entries).await?;
            }
        }
        if let Some(bitmaps) = header.bitmaps {
            self.count_bitmaps(&mut found, bitmaps).await?;
        }
        Ok(found)
    }

    async fn count_l1(&self, found: &mut Found, l1: &Table, entries: u32) -> Result<(), OpenError> {
        let geometry = self.geometry;
        for slot in 0..u64::from(entries) {
            let raw = l1.word(slot);
            let offset = raw & OFFSET_MASK;
            if offset == 0 {
                continue;
            }
            if raw & L1_RESERVED != 0 || geometry.in_cluster(offset) != 0 {
                return Err(image(format!("L2 table offset {offset:#x} unaligned (L1 index: {slot:#x})")));
            }
            found.add(offset, geometry.cluster_size(), "L2 table")?;
            let bytes = geometry.cluster_size();
            let table = Self::load_table(&self.file, "L2 table", offset, bytes).await?;
            for number in 0..1u64 << geometry.l2_bits() {
                let guest = (slot << geometry.l1_shift()).wrapping_add(number << geometry.cluster_bits);
                let mapping = self.mapping(Some(&table), guest);
                let mapping = mapping.map_err(|bad| image(format!("{bad:?} in the L2 table at {offset:#x}")))?;
                if geometry.external_data {
                    continue;
                }
                if let Some(extent) = mapping.compressed {
                    found.add(extent.offset, extent.len, "compressed cluster")?;
                } else if let Some(host) = mapping.host {
                    found.add(host, geometry.cluster_size(), "data cluster")?;
                }
            }
        }
        Ok(())
    }

    /// Bitmaps are not ours to understand, but their clusters must not be given away.
    async fn count_bitmaps(&self, found: &mut Found, bitmaps: header::BitmapsExtension) -> Result<(), OpenError> {
        header::table(&self.geometry, "bitmap directory", bitmaps.directory_offset, bitmaps.directory_size, 64 << 20)?;
        found.add(bitmaps.directory_offset, bitmaps.directory_size, "bitmap directory")?;
        let directory =
            Self::load_table(&self.file, "bitmap directory", bitmaps.directory_offset, bitmaps.directory_size).await?;
        let mut at = 0u64;
        for _ in 0..bitmaps.count {
            if at + 24 > bitmaps.directory_size {
                return Err(image("the bitmap directory is shorter than its bitmaps"));
            }
            // Entry: table offset u64, table size u32 (entries), flags u32, type u8, granularity u8, name size u16,
            // extra data size u32; then extra data and name, padded to 8.
            let (offset, second, third) =
                (directory.word(at / 8), directory.word(at / 8 + 1), directory.word(at / 8 + 2));
            let bytes = (second >> 32).saturating_mul(8);
            header::table(&self.geometry, "bitmap table", offset, bytes, 1 << 30)?;
            found.add(offset, bytes, "bitmap table")?;
            let table = Self::load_table(&self.file, "bitmap table", offset, bytes).await?;
            for number in 0..bytes / 8 {
                let data = table.word(number) & OFFSET_MASK;
                if data != 0 {
                    found.add(data, self.geometry.cluster_size(), "bitmap data")?;
                }
            }
            let (name, extra) = (third >> 32 & 0xffff, third & 0xffff_ffff);
            at += (24 + name + extra).next_multiple_of(8);
        }
        Ok(())
    }

    /// Makes refcount blocks for ranges that need one and have none.
    async fn add_missing_blocks(&self, found: &mut Found) -> Result<(), OpenError> {
        let bits = self.geometry.block_bits();
        let slots = self.reftable.borrow().len() as u64 / 8;
        // Every slot before this one is done: a new block lies in the range of its slot, or behind everything.
        let mut first = 0;
        loop {
            let used = found.counts.iter().rposition(|&count| count != 0).map_or(0, |last| last as u64 + 1);
            let needed = used.div_ceil(1 << bits);
            if needed > slots {
                return Err(image("the refcount table is too small for what the image refers to"));
            }
            let missing = (first..needed).find(|&slot| {
                let range = index(slot << bits)..index((slot + 1) << bits).min(found.counts.len());
                let any = found.counts.get(range).is_some_and(|counts| counts.iter().any(|&count| count != 0));
                any && self.reftable.borrow().word(slot) == 0
            });
            let Some(slot) = missing else { return Ok(()) };
            first = slot;
            // Inside its own range if there is room, else behind everything.
            let range = slot << bits..((slot + 1) << bits).min(used);
            let cluster = range.clone().find(|&cluster| found.get(cluster) == 0).unwrap_or(used.max(range.end));
            let offset = cluster << self.geometry.cluster_bits;
            found.counts.resize(found.counts.len().max(index(cluster) + 1), 0);
            found.add(offset, 1, "new refcount block")?;
            self.block_cache.insert(Table::new(offset, vec![0; index(self.geometry.cluster_size())]));
            self.reftable.borrow().set_word(slot, offset);
            self.metadata.borrow_mut().insert(cluster, "refcount block");
        }
    }

    async fn store_counts(&self, found: &Found) -> Result<(), OpenError> {
        let bits = self.geometry.block_bits();
        let width = self.width();
        let slots = self.reftable.borrow().len() as u64 / 8;
        for slot in 0..slots {
            let block = self.refcount_block(slot).await.map_err(io("could not read a refcount block"))?;
            let Some(block) = block else { continue };
            for at in 0..1u64 << bits {
                let count = u64::from(found.get((slot << bits) + at));
                if count > width.max() {
                    return Err(image(format!("cluster {} needs a count of {count}", (slot << bits) + at)));
                }
                if block.with(|bytes| width.get(bytes, index(at))) != count {
                    let (from, len) = width.place(index(at));
                    block.change(from, len, |bytes| width.set(bytes, index(at), count));
                }
            }
        }
        Ok(())
    }

    /// COPIED means "count is one". A flag that is set wrongly would let us write to what a snapshot refers to.
    async fn mend_copied_flags(&self, found: &Found) -> Result<(), OpenError> {
        let bits = self.geometry.cluster_bits;
        let l1 = Rc::clone(&self.l1.borrow());
        let entries = u64::from(self.header.borrow().l1_entries);
        for slot in 0..entries {
            let raw = l1.word(slot);
            let offset = raw & OFFSET_MASK;
            if offset == 0 {
                continue;
            }
            let copied = if found.get(offset >> bits) == 1 { COPIED } else { 0 };
            if raw & COPIED != copied {
                l1.set_word(slot, raw & !COPIED | copied);
            }
            if self.geometry.external_data {
                continue;
            }
            let table = self.l2_table(slot).await.map_err(io("could not read an L2 table"))?;
            let Some(table) = table else { continue };
            for number in 0..1u64 << self.geometry.l2_bits() {
                let guest = (slot << self.geometry.l1_shift()).wrapping_add(number << bits);
                let Ok(mapping) = self.mapping(Some(&table), guest) else { continue };
                let Some(host) = mapping.host else { continue };
                let copied = found.get(host >> bits) == 1;
                if mapping.copied != copied {
                    self.set_mapping(&table, guest, &Mapping { copied, ..mapping });
                }
            }
        }
        Ok(())
    }
}
