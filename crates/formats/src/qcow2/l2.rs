//! L2 tables: loading, copying what is shared with a snapshot, and the mapping of one cluster.

use std::rc::Rc;

use blkproof_block::{BlockDevice, ByteRange, Event, IoError, Result};

use super::Qcow2;
use super::cache::Table;
use super::entry::{BadEntry, Mapping};
use super::units::index;

impl<D: BlockDevice> Qcow2<D> {
    /// The L1 index of a guest offset.
    pub(crate) fn l1_slot(&self, guest: u64) -> u64 {
        guest >> self.geometry.l1_shift()
    }

    /// One past the guest bytes that L1 entry `slot` describes.
    pub(crate) fn slot_end(&self, slot: u64) -> u64 {
        slot.saturating_add(1).saturating_mul(1 << self.geometry.l1_shift())
    }

    /// The L2 table of `slot`, loaded if need be; `None` if there is none.
    pub(crate) async fn l2_table(&self, slot: u64) -> Result<Option<Rc<Table>>> {
        loop {
            let Some(table) = self.l1_table_offset(slot).await? else { return Ok(None) };
            if let Some(table) = self.l2_cache.get(table) {
                return Ok(Some(table));
            }
            self.make_room_for_table().await?;
            let _turn = self.l2_cache.loads.exclusive(ByteRange::at(table, 1)).await;
            if let Some(table) = self.l2_cache.get(table) {
                return Ok(Some(table));
            }
            if self.l1_table_offset(slot).await? != Some(table) {
                continue; // it was copied while we waited
            }
            self.file.event(Event::L2Load).await;
            let size = self.file.info().size;
            if table.saturating_add(self.geometry.cluster_size()) > size {
                let words =
                    format!("L2 table at {table:#x} (L1 index: {slot:#x}) reaches past end of file ({size:#x})");
                return Err(self.corrupt(words).await);
            }
            let mut bytes = vec![0; index(self.geometry.cluster_size())];
            let read = self.file.read(table, &mut bytes).await;
            read.map_err(|e| e.context(format_args!("reading the L2 table at {table:#x}")))?;
            // The table may have been copied, its cluster freed, and even given out again, while we read.
            if self.l1_table_offset(slot).await? == Some(table) {
                return Ok(Some(self.l2_cache.insert(Table::clean(table, bytes))));
            }
        }
    }

    /// The L2 table of `slot` if it needs no loading: `None` if it does, `Some(None)` if there is none.
    pub(crate) fn l2_table_now(&self, slot: u64) -> Option<Option<Rc<Table>>> {
        match self.l1_entry(slot).ok()?.table {
            None => Some(None),
            Some(table) => self.l2_cache.get(table.0).map(Some),
        }
    }

    async fn l1_table_offset(&self, slot: u64) -> Result<Option<u64>> {
        match self.l1_entry(slot) {
            Ok(entry) => Ok(entry.table.map(|table| table.0)),
            Err(bad) => Err(self.corrupt(bad.0).await),
        }
    }

    async fn make_room_for_table(&self) -> Result<()> {
        if !self.l2_cache.make_room() && self.l2_cache.any_dirty() {
            self.commit().await?;
            self.l2_cache.make_room();
        }
        Ok(())
    }

    /// The L2 table of `slot`, ours alone: allocated if there is none, copied if a snapshot shares it.
    pub(crate) async fn writable_l2_table(&self, slot: u64) -> Result<Rc<Table>> {
        let _turn = self.l1_slots.exclusive(ByteRange::at(slot, 1)).await;
        let entry = match self.l1_entry(slot) {
            Ok(entry) => entry,
            Err(bad) => return Err(self.corrupt(bad.0).await),
        };
        let old = self.l2_table(slot).await?;
        if let (true, Some(table)) = (entry.copied, &old) {
            return Ok(Rc::clone(table));
        }
        let content = match &old {
            Some(old) => {
                self.file.event(Event::L2AllocCowRead).await;
                old.copy()
            }
            None => vec![0; index(self.geometry.cluster_size())],
        };
        let reserved = self.allocate(1).await?;
        self.make_room_for_table().await?;
        self.file.event(Event::L2AllocWrite).await;
        // No wait from here on: the table exists, L1 names it, and the old one loses a reference, in one step.
        let offset = self.host(&reserved);
        let table = self.add_l2_table(Table::new(offset.0, content));
        self.set_l1_entry(slot, offset);
        reserved.keep();
        if let Some(old) = old {
            self.l2_cache.remove(old.offset);
            self.metadata.borrow_mut().remove(&(old.offset >> self.geometry.cluster_bits));
            self.free_clusters(old.offset, 1, false);
        }
        Ok(table)
    }

    fn l2_slot(&self, guest: u64) -> u64 {
        guest >> self.geometry.cluster_bits & ((1 << self.geometry.l2_bits()) - 1)
    }

    /// What the cluster at `guest` is made of; `None` for the table: unallocated.
    pub(crate) fn mapping(&self, table: Option<&Table>, guest: u64) -> Result<Mapping, BadEntry> {
        let Some(table) = table else { return Ok(Mapping::default()) };
        let slot = self.l2_slot(guest);
        let (raw, bitmap) = if self.geometry.extended {
            (table.word(slot * 2), table.word(slot * 2 + 1))
        } else {
            (table.word(slot), 0)
        };
        Mapping::parse(raw, bitmap, self.geometry.cluster_start(guest), &self.geometry)
    }

    /// Replaces the mapping of the cluster at `guest` in a table from
    /// [`writable_l2_table`](Self::writable_l2_table). The caller has the cluster locked exclusively.
    pub(crate) fn set_mapping(&self, table: &Table, guest: u64, mapping: &Mapping) {
        let (raw, bitmap) = mapping.encode(&self.geometry);
        self.set_raw_entry(table, guest, raw, bitmap);
    }

    /// The same for an entry that is encoded already.
    pub(crate) fn set_raw_entry(&self, table: &Table, guest: u64, raw: u64, bitmap: u64) {
        let slot = self.l2_slot(guest);
        if self.geometry.extended {
            // Both words lie in one 16-byte slot of one sector, so they reach the disk together.
            table.set_word(slot * 2, raw);
            table.set_word(slot * 2 + 1, bitmap);
        } else {
            table.set_word(slot, raw);
        }
    }

    /// The error for an entry that says nothing sensible.
    pub(crate) async fn bad_entry(&self, table: Option<&Table>, guest: u64, bad: BadEntry) -> IoError {
        let l2 = table.map_or(0, |table| table.offset);
        let slot = self.l2_slot(guest);
        let place = format!("(L2 offset: {l2:#x}, L2 index: {slot:#x})");
        let words = match bad {
            BadEntry::Unaligned(offset) => format!("cluster allocation offset {offset:#x} unaligned {place}"),
            BadEntry::ZeroInV2 => format!("zero cluster entry found in pre-v3 image {place}"),
            BadEntry::Bitmap(bitmap) => format!("invalid subcluster bitmap {bitmap:#018x} {place}"),
            BadEntry::External(raw) => {
                format!(
                    "external data file host cluster {raw:#x} has invalid offset for guest offset {guest:#x} {place}"
                )
            }
        };
        self.corrupt(words).await.at(guest)
    }
}
