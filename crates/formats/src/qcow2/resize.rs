//! Changing the size of the disk, and allocating ahead.
//!
//! Growing: what the map still holds behind the old end, and what a longer backing file would show there, is made zero
//! while it is out of the guest's reach; that is committed; then one header write moves the end. Shrinking: the header
//! first, then what lies behind the new end is given back. A power cut leaves the old size or the new one, and whatever
//! stays in the map behind the end is dealt with by the next growth.
//!
//! The VM state (`vm_state`) survives a growth that leaves it where it is. Every other resize gives it up: a growth
//! before it moves the end, so that a cut may leave the old size without it; a shrinking one after, so that a cut may
//! leave there what the disk held. Neither is ever reached by a request to the disk.

use blkproof_block::{BlockDevice, ByteRange, Errno, Event, IoError, Preallocation, Result, ZeroFlags};

use super::Qcow2;
use super::entry::Mapping;

impl<D: BlockDevice> Qcow2<D> {
    /// Serves a resize.
    pub(crate) async fn guest_resize(&self, size: u64, preallocation: Preallocation) -> Result<()> {
        let _all = self.requests.exclusive(ByteRange { start: 0, end: u64::MAX }).await;
        let old = self.size.get();
        if size == old {
            return Ok(());
        }
        let header = self.header.borrow().clone();
        if header.snapshots > 0 && (self.geometry.version < 3 || size < old) {
            return Err(IoError::unsupported().detail("this image has snapshots that do not allow this resize"));
        }
        if header.bitmaps.is_some_and(|bitmaps| bitmaps.count > 0) {
            return Err(IoError::unsupported().detail("this image has bitmaps, which this driver can not resize"));
        }
        if preallocation != Preallocation::Off && size < old {
            return Err(IoError::unsupported().detail("preallocation can not be used for shrinking an image"));
        }
        if preallocation != Preallocation::Off && self.has_backing() && !self.geometry.extended {
            // The new clusters would have to say "from below" and "allocated" at once.
            return Err(IoError::unsupported().detail("preallocation over a backing file needs extended L2 entries"));
        }
        if size > old { self.grow(old, size, preallocation).await } else { self.shrink(old, size).await }
    }

    async fn grow(&self, old: u64, new: u64, preallocation: Preallocation) -> Result<()> {
        if new > i64::MAX.unsigned_abs() - (1 << 21) {
            return Err(IoError::new(Errno::FBIG).detail("the disk would be too large"));
        }
        self.grow_l1(self.geometry.l1_entries(new)).await?;
        if let Some(data) = &self.data_file {
            self.extend_child(data, new).await?;
        }
        let moves = self.vm_state_of(old) != self.vm_state_of(new);
        let stop = if moves { self.l1_end() } else { self.geometry.round_up(new).unwrap_or(new) };
        self.clear_behind(old, new, stop).await?;
        // A raw data file is the disk, so the map says "data" everywhere (as at creation).
        let preallocation = match preallocation {
            Preallocation::Off if self.geometry.raw_external => Preallocation::Metadata,
            other => other,
        };
        if preallocation != Preallocation::Off {
            self.preallocate(old, new, preallocation).await?;
        }
        self.commit().await?;
        self.set_size(new).await
    }

    async fn shrink(&self, old: u64, new: u64) -> Result<()> {
        self.commit().await?;
        self.set_size(new).await?;
        self.file.event(Event::L1ShrinkFreeL2Clusters).await;
        let start = self.geometry.round_up(new).unwrap_or(old);
        let stop = self.l1_end(); // the VM state too
        if start < stop {
            // As for a discard, but nothing has to hide a backing file: the next growth does that.
            self.unmap_clusters(start, stop).await?;
        }
        self.commit().await
    }

    async fn set_size(&self, size: u64) -> Result<()> {
        let _turn = self.commit_lock.lock().await;
        self.change_header(|header| header.size = size).await?;
        self.size.set(size);
        Ok(())
    }

    /// Makes everything between the old end and the new one read as zeroes, and unmaps what lies between that and
    /// `stop`.
    async fn clear_behind(&self, old: u64, new: u64, stop: u64) -> Result<()> {
        // The rest of the last cluster holds whatever was there when the disk was larger, or written with it.
        let edge = self.geometry.round_up(old).unwrap_or(new).min(new);
        if old < edge {
            let table = self.l2_table(self.l1_slot(old)).await?;
            let sure = (self.backing.is_some() || !self.has_backing()) && !self.geometry.raw_external;
            let known = sure && self.is_zero_by_map(table.as_deref(), old, edge);
            drop(table);
            if !known {
                self.zero_tail(old, edge).await?;
            }
        }
        if edge >= new {
            return Ok(());
        }
        // Clusters of an earlier, larger life, and the VM state.
        self.unmap_clusters(edge, stop).await?;
        // What the backing file has behind our old end must not show (bug gallery G27).
        let backing = self.backing.as_ref().map_or(if self.has_backing() { u64::MAX } else { 0 }, |b| b.info().size);
        let hidden = self.geometry.round_up(backing.min(new)).unwrap_or(new).min(stop);
        if edge < hidden { self.zero_locked(edge, hidden, true).await } else { Ok(()) }
    }

    /// Zeroes bytes behind the end of the disk that lie in its last cluster.
    async fn zero_tail(&self, old: u64, edge: u64) -> Result<()> {
        let zeroes = vec![0; super::units::index(edge - old)];
        self.write_locked(old, &zeroes).await
    }

    /// Gives every cluster of a range that has none a host cluster that reads as zeroes.
    pub(crate) async fn preallocate(&self, start: u64, end: u64, preallocation: Preallocation) -> Result<()> {
        let geometry = self.geometry;
        // In an external data file the place is given, and a dropped write may still be under way to it.
        self.settle().await?;
        let mut at = geometry.cluster_start(start);
        while at < end {
            let slot = self.l1_slot(at);
            let table = self.writable_l2_table(slot).await?;
            let stop = end.min(self.slot_end(slot));
            while at < stop {
                let old = self.mapping_or_fail(Some(&table), at).await?;
                if old.host.is_some() || old.compressed.is_some() {
                    at = self.upto(at, stop);
                    continue;
                }
                let mut run = 0;
                while at + (run << geometry.cluster_bits) < stop && run << geometry.cluster_bits < 64 << 20 {
                    let mapping = self.mapping_or_fail(Some(&table), at + (run << geometry.cluster_bits)).await?;
                    if mapping.host.is_some() || mapping.compressed.is_some() {
                        break;
                    }
                    run += 1;
                }
                let reserved = if geometry.external_data { None } else { Some(self.allocate(run).await?) };
                let (host, run, fresh) = match &reserved {
                    Some(reserved) => (reserved.offset(), reserved.count(), reserved.fresh),
                    None => (at, run, false),
                };
                let len = run << geometry.cluster_bits;
                let fill = if geometry.external_data { len.min(end - at) } else { len };
                self.fill_ahead(host, fill, fresh, preallocation).await?;
                for number in 0..run {
                    let offset = number << geometry.cluster_bits;
                    let old = self.mapping_or_fail(Some(&table), at + offset).await?;
                    // Extended entries can say "allocated, but read from below"; plain ones can not. A raw data file
                    // must read as the disk does, also where a write failed half way: there the map says "data".
                    let from_below = geometry.extended && !geometry.raw_external;
                    let allocated = if from_below { 0 } else { geometry.all_subclusters() };
                    let new = Mapping { host: Some(host + offset), copied: true, allocated, ..old };
                    let new = if from_below { new } else { Mapping { zero: 0, ..new } };
                    self.set_mapping(&table, at + offset, &new);
                }
                if let Some(reserved) = reserved {
                    reserved.keep();
                }
                at += len;
            }
        }
        Ok(())
    }

    async fn fill_ahead(&self, host: u64, len: u64, fresh: bool, preallocation: Preallocation) -> Result<()> {
        let flags = match preallocation {
            Preallocation::Off => return Ok(()),
            Preallocation::Metadata => ZeroFlags::MAY_UNMAP,
            Preallocation::Falloc => ZeroFlags::empty(),
            Preallocation::Full => {
                let zeroes = vec![0; super::units::index(len.min(1 << 20))];
                let mut done = 0;
                while done < len {
                    let part = (len - done).min(zeroes.len() as u64);
                    self.data_write(host + done, &zeroes[..super::units::index(part)]).await?;
                    done += part;
                }
                return Ok(());
            }
        };
        if fresh && flags.contains(ZeroFlags::MAY_UNMAP) {
            // Past the end of the file everything reads as zeroes; the last byte makes the file reach that far.
            return self.data_zero(host + len - 1, 1, ZeroFlags::empty()).await;
        }
        self.data_zero(host, len, flags).await
    }
}
