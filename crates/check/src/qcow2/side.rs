//! Everything about a qcow2 image that is not mapping or counting: header, extensions, snapshot table, bitmaps, encryption
//! header, names of other files. Runs first; what it learns is what the mapping is read with.

use crate::context::Context;
use crate::map::Claim;

use super::header::{Geometry, Header};

/// A table of 8-byte entries the header or the snapshot table names: already checked to be aligned and inside the file as far
/// as `entries` says. What is wrong with it has been reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// First byte; a multiple of the cluster size, not 0.
    pub(crate) offset: u64,
    /// Entries whose 8 bytes are all inside the file.
    pub(crate) entries: u64,
    /// Entries it is said to have.
    pub(crate) stored_entries: u64,
}

/// A snapshot's L1 table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotL1 {
    /// Its place in the snapshot table.
    pub(crate) index: u64,
    /// Safe to print, shortened.
    pub(crate) name: String,
    /// As stored.
    pub(crate) l1_offset: u64,
    /// Entries, as stored.
    pub(crate) l1_size: u64,
    /// Where it can be read; `None` if it can not (said already).
    pub(crate) l1: Option<Table>,
    /// Size of the disk then.
    pub(crate) disk_size: u64,
    /// Bytes.
    pub(crate) vm_state_size: u64,
}

/// What the rest of the analysis stands on.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    /// The fields used: as stored, with what `Options::assume` replaces.
    pub(crate) header: Header,
    /// `None`: clusters can not be found (said already, and nobody will call the image healthy).
    pub(crate) geometry: Option<Geometry>,
    /// The active L1 table; `None` if it can not be read (said already).
    pub(crate) l1: Option<Table>,
    /// The refcount table; `None` if it can not be read (said already).
    pub(crate) refcount_table: Option<Table>,
    /// Header cluster, snapshot table, encryption area, bitmap directory, tables and data: one reference to each cluster
    /// every claim touches. Not among them: refcount table and active L1.
    pub(crate) claims: Vec<Claim>,
    /// Whether `claims` is all there is; if not, nobody may be called leaked.
    pub(crate) claims_complete: bool,
    /// In the order of the table.
    pub(crate) snapshots: Vec<SnapshotL1>,
    /// Incompatible bit 0: counts may be stale.
    pub(crate) dirty: bool,
    /// Compatible bit 0.
    pub(crate) lazy: bool,
    /// Incompatible bit 1.
    pub(crate) corrupt: bool,
    /// Length of the external data file, if the caller looked.
    pub(crate) data_file_size: Option<u64>,
}

/// Reads and checks it all.
pub(crate) fn look(cx: &mut Context<'_>) -> Side {
    let bytes = cx.read(0, 4096, "the header");
    let header = Header::parse(&bytes);
    let geometry = Geometry::of(&header);
    let table = |offset: u64, entries: u64| {
        let there = cx.file_len().saturating_sub(offset) / 8;
        let mask = geometry?.cluster_size().wrapping_sub(1);
        let usable = offset != 0 && offset & mask == 0 && there > 0 && entries > 0;
        usable.then_some(Table { offset, entries: entries.min(there), stored_entries: entries })
    };
    let l1 = table(header.l1_offset, u64::from(header.l1_size));
    let refcount_entries =
        geometry.map_or(0, |geometry| u64::from(header.refcount_table_clusters).saturating_mul(geometry.cluster_size() / 8));
    let refcount_table = table(header.refcount_table_offset, refcount_entries);
    Side {
        geometry,
        l1,
        refcount_table,
        claims: Vec::new(),
        claims_complete: true,
        snapshots: Vec::new(),
        dirty: header.incompatible & 1 != 0,
        lazy: header.compatible & 1 != 0,
        corrupt: header.incompatible & 2 != 0,
        data_file_size: None,
        header,
    }
}
