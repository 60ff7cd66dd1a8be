//! Write zeroes and discard: what can be said in the map is, the rest is written.

use std::rc::Rc;

use blkproof_block::{BlockDevice, IoError, Result, ZeroFlags};

use super::Qcow2;
use super::cache::Table;
use super::entry::Mapping;
use super::units::index;

impl<D: BlockDevice> Qcow2<D> {
    /// Whether an unallocated cluster may read something else than zeroes, now or when the image is opened again with
    /// the backing file it names.
    pub(crate) fn has_backing(&self) -> bool {
        self.backing.is_some() || self.header.borrow().backing_name.is_some()
    }

    /// The unit in which zeroes can be said in the map.
    fn zero_unit(&self) -> u64 {
        self.geometry.subcluster_size()
    }

    /// The part of `at..end` that consists of whole units. The last unit of the disk may be partial.
    fn whole_units(&self, at: u64, end: u64, unit: u64) -> (u64, u64) {
        let start = at.next_multiple_of(unit);
        let stop = if end == self.size.get() { end.next_multiple_of(unit) } else { end / unit * unit };
        (start, stop.max(start))
    }

    /// Serves a guest's write zeroes inside the disk.
    pub(crate) async fn guest_zero(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let _range = self.requests.exclusive(self.clusters_of(at, len)).await;
        self.check_still_inside(at, len)?;
        let end = at + len;
        if flags.contains(ZeroFlags::NO_FALLBACK) && !self.zero_is_fast(at, end, flags).await? {
            return Err(IoError::unsupported().detail("zeroes that the map can not express would have to be written"));
        }
        self.zero_locked(at, end, flags.contains(ZeroFlags::MAY_UNMAP)).await
    }

    /// Zeroes a range that the caller has locked exclusively. It may reach past the end of the disk.
    pub(crate) async fn zero_locked(&self, at: u64, end: u64, unmap: bool) -> Result<()> {
        let (wide_at, wide_end) = self.widened(at, end).await;
        let (start, stop) = self.whole_units(wide_at, wide_end, self.zero_unit());
        if start >= stop {
            return self.zero_bytes(at, end).await;
        }
        if wide_at < start {
            self.zero_bytes(at, start).await?;
        }
        self.zero_units(start, stop, unmap).await?;
        if stop < wide_end { self.zero_bytes(stop, end).await } else { Ok(()) }
    }

    /// The range with its first and last unit made whole where the rest of them reads as zeroes already: then the map
    /// can say what would have to be written. The caller has the clusters locked, so the rest stays as it is.
    async fn widened(&self, at: u64, end: u64) -> (u64, u64) {
        let unit = self.zero_unit();
        if self.geometry.version < 3 || self.geometry.raw_external {
            return (at, end);
        }
        let (first, last) = (at / unit * unit, end.next_multiple_of(unit));
        let left = first == at || self.sees_zero(first, at).await;
        // The unit that holds the end of the disk has no rest.
        let right = last == end || end == self.size.get() || self.sees_zero(end, last.min(self.size.get())).await;
        (if left { first } else { at }, if right && end != self.size.get() { last } else { end })
    }

    /// Whether a guest would read zeroes, as far as maps tell: ours, and those of what lies below. A doubt is a no.
    async fn sees_zero(&self, at: u64, end: u64) -> bool {
        if self.backing.is_none() && self.has_backing() {
            return false; // what lies below was not given to us
        }
        let mut at = at;
        while at < end {
            match self.status_piece(at, end).await {
                Ok(piece) if piece.zero => at += piece.len,
                _ => return false,
            }
        }
        true
    }

    /// Whether zeroing needs no data to be written.
    async fn zero_is_fast(&self, at: u64, end: u64, flags: ZeroFlags) -> Result<bool> {
        if self.geometry.raw_external {
            return Ok(false);
        }
        let (start, stop) = self.whole_units(at, end, self.zero_unit());
        if start >= stop {
            return self.reads_zero(at, end).await;
        }
        if !self.reads_zero(at, start).await? || (stop < end && !self.reads_zero(stop, end).await?) {
            return Ok(false);
        }
        if self.geometry.version < 3 {
            let unmaps = flags.contains(ZeroFlags::MAY_UNMAP) && !self.has_backing();
            return Ok(unmaps || self.reads_zero(start, stop).await?);
        }
        if self.geometry.extended {
            // Part of a compressed cluster can not be zeroed in the map.
            for cluster in [start, stop - 1] {
                let table = self.l2_table(self.l1_slot(cluster)).await?;
                if self.mapping_or_fail(table.as_deref(), cluster).await?.compressed.is_some() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Whether the map says that `at..end` is zero.
    async fn reads_zero(&self, at: u64, end: u64) -> Result<bool> {
        let mut at = at;
        while at < end {
            let slot = self.l1_slot(at);
            let stop = end.min(self.slot_end(slot));
            let table = self.l2_table(slot).await?;
            if !self.is_zero_by_map(table.as_deref(), at, stop) {
                return Ok(false);
            }
            at = stop;
        }
        Ok(true)
    }

    /// Zeroes bytes by writing them, piece by piece, unless they are zero already.
    async fn zero_bytes(&self, at: u64, end: u64) -> Result<()> {
        let mut at = at;
        let zeroes = vec![0; index((end - at).min(1 << 20))];
        while at < end {
            let stop = self.upto(at, end).min(at + zeroes.len() as u64);
            let table = self.l2_table(self.l1_slot(at)).await?;
            // Zero in the map because nothing lies below, and never will: a backing file that ends before this may
            // grow, or was not given to us.
            let sure = !self.has_backing();
            if !(sure && self.is_zero_by_map(table.as_deref(), at, stop)) {
                drop(table);
                self.write_locked(at, &zeroes[..index(stop - at)]).await?;
            }
            at = stop;
        }
        Ok(())
    }

    /// Zeroes whole units.
    async fn zero_units(&self, start: u64, stop: u64, unmap: bool) -> Result<()> {
        let mut at = start;
        while at < stop {
            let slot = self.l1_slot(at);
            let end = stop.min(self.slot_end(slot));
            // Version 3 says zero even of what reads as zeroes for want of a backing file, as QEMU does: this layer was
            // told so, and still says it if the image is put over another one.
            let says_zero = self.geometry.version >= 3 && !self.geometry.raw_external;
            if !says_zero && self.l2_table(slot).await?.is_none() && !self.has_backing() {
                at = end;
                continue;
            }
            if self.geometry.raw_external {
                self.zero_raw_external(at, end).await?;
                at = end;
                continue;
            }
            if self.geometry.version < 3 {
                self.zero_units_v2(at, end, unmap).await?;
                at = end;
                continue;
            }
            let table = self.writable_l2_table(slot).await.map_err(|e| e.at(at))?;
            while at < end {
                let here = self.upto(at, end);
                self.zero_in_cluster(&table, at, here, unmap).await?;
                at = here;
            }
        }
        Ok(())
    }

    /// Zeroes whole subclusters of one cluster in the map.
    async fn zero_in_cluster(&self, table: &Rc<Table>, at: u64, end: u64, unmap: bool) -> Result<()> {
        let old = self.mapping_or_fail(Some(table), at).await?;
        let start = self.geometry.cluster_start(at);
        let mask = self.geometry.touched(at - start, end - start);
        if old.zero & mask == mask && !(unmap && old.host.is_some() && mask == self.geometry.all_subclusters()) {
            return Ok(());
        }
        if mask != self.geometry.all_subclusters() {
            if old.compressed.is_some() {
                return self.zero_bytes(at, end).await;
            }
            let new = Mapping { allocated: old.allocated & !mask, zero: old.zero | mask, ..old };
            self.set_mapping(table, at, &new);
            return Ok(());
        }
        // The whole cluster. A host cluster of our own can stay, so that the space stays ours.
        let keep = old.writable_in_place() && !unmap;
        let host = old.host.filter(|_| keep);
        let new = Mapping { host, copied: keep, compressed: None, allocated: 0, zero: mask };
        self.set_mapping(table, at, &new);
        if !keep {
            self.drop_old(&old, true);
        }
        Ok(())
    }

    /// Version 2 has no zero flag: a cluster is given back where nothing lies below, else zero bytes are written
    /// (bug gallery G26, G48).
    async fn zero_units_v2(&self, start: u64, stop: u64, unmap: bool) -> Result<()> {
        if !unmap || self.has_backing() {
            return self.zero_bytes(start, stop).await;
        }
        self.unmap_clusters(start, stop).await
    }

    /// The external file must read as the disk does, so its bytes are zeroed too.
    async fn zero_raw_external(&self, start: u64, stop: u64) -> Result<()> {
        let mut at = start;
        while at < stop {
            let table = self.l2_table(self.l1_slot(at)).await?;
            let here = self.upto(at, stop);
            let mapping = self.mapping_or_fail(table.as_deref(), at).await?;
            if mapping.host.is_some() {
                let len = here.min(self.size.get().max(at)) - at;
                if len > 0 {
                    self.data_zero(at, len, ZeroFlags::MAY_UNMAP).await.map_err(|e| e.rebase(at, at))?;
                }
            } else if !mapping.is_unallocated() {
                // Zero in the map only: nothing to do in the file, by the rule that it reads as the disk does.
            }
            at = here;
        }
        Ok(())
    }

    /// Serves a guest's discard inside the disk. Clusters that are touched in part stay as they are.
    pub(crate) async fn guest_discard(&self, at: u64, len: u64) -> Result<()> {
        let _range = self.requests.exclusive(self.clusters_of(at, len)).await;
        self.check_still_inside(at, len)?;
        // Only now: which cluster is the last one of the disk is what a resize changes.
        let (start, stop) = self.whole_units(at, at + len, self.geometry.cluster_size());
        if start >= stop {
            return Ok(());
        }
        if self.geometry.raw_external {
            return self.zero_units(start, stop, true).await;
        }
        if self.geometry.version < 3 && self.has_backing() {
            return Ok(()); // without a zero flag a discard would expose the backing file (bug gallery G26)
        }
        // What was written stays this layer's to tell, as in QEMU: it reads as zeroes whatever the image is put over.
        self.unmap(start, stop, self.geometry.version >= 3).await
    }

    /// Takes whole clusters out of the map: unallocated where nothing lies below, else zero.
    pub(crate) async fn unmap_clusters(&self, start: u64, stop: u64) -> Result<()> {
        // In version 2 only a resize comes here with a backing file, for clusters that are out of sight.
        self.unmap(start, stop, self.has_backing() && self.geometry.version >= 3).await
    }

    /// Takes whole clusters that are in the map out of it, or says zero of them instead.
    async fn unmap(&self, start: u64, stop: u64, say_zero: bool) -> Result<()> {
        let mut at = start;
        while at < stop {
            let slot = self.l1_slot(at);
            let end = stop.min(self.slot_end(slot));
            if self.l2_table(slot).await?.is_none() {
                at = end; // nothing of it is ours to give back
                continue;
            }
            let table = self.writable_l2_table(slot).await.map_err(|e| e.at(at))?;
            while at < end {
                let old = self.mapping_or_fail(Some(&table), at).await?;
                let nothing = old.is_unallocated() && old.host.is_none();
                let zero = if say_zero { self.geometry.all_subclusters() } else { 0 };
                let new = Mapping { zero, ..Mapping::default() };
                if !nothing && old != new {
                    self.set_mapping(&table, at, &new);
                    self.drop_old(&old, true);
                }
                at = self.upto(at, end);
            }
        }
        Ok(())
    }
}
