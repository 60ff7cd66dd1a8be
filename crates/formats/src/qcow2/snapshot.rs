//! Internal snapshots (specification, "Snapshots"). They are kept, and never changed: an L2 table or a data cluster
//! that a snapshot refers to has no COPIED flag in the active tables and is copied before it is written.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use blkproof_block::BlockDevice;
use blkproof_block::graph::OpenError;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::header::{Header, L1_BYTES_MAX, read_padded, table};

/// The fixed part of a snapshot table entry, 40 bytes, big endian.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSnapshot {
    l1_table_offset: U64,
    l1_size: U32, // entries
    id_size: U16,
    name_size: U16,
    date_seconds: U32,
    date_nanoseconds: U32,
    vm_clock_nanoseconds: U64,
    vm_state_size: U32,
    extra_data_size: U32, // at most 1024 by QEMU
}
const _: () = assert!(size_of::<RawSnapshot>() == 40);

/// What we need to know of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Snapshot {
    pub(crate) l1_offset: u64,
    pub(crate) l1_entries: u32,
}

/// The snapshot table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Snapshots {
    pub(crate) entries: Vec<Snapshot>,
    /// Length of the table.
    pub(crate) bytes: u64,
}

/// Reads the snapshot table.
pub(crate) async fn load<D: BlockDevice>(file: &D, header: &Header) -> Result<Snapshots, OpenError> {
    let mut found = Snapshots { entries: Vec::new(), bytes: 0 };
    for number in 0..header.snapshots {
        let at = header.snapshots_offset.saturating_add(found.bytes);
        if at.saturating_add(40) > file.info().size {
            return Err(OpenError::Image(format!("snapshot {number} at {at:#x} lies past end of file")));
        }
        let mut bytes = [0; 40];
        let read = read_padded(file, at, &mut bytes).await;
        read.map_err(|e| OpenError::io(format!("could not read the snapshot table at {at:#x}"), e))?;
        let Ok(raw) = RawSnapshot::read_from_bytes(&bytes) else { break };
        let extra = u64::from(raw.extra_data_size.get());
        if extra > 1024 {
            return Err(OpenError::Image(format!("too much extra metadata in snapshot table entry {number}")));
        }
        let (l1_offset, l1_entries) = (raw.l1_table_offset.get(), raw.l1_size.get());
        let l1_bytes = u64::from(l1_entries).saturating_mul(8);
        table(&header.geometry, "snapshot L1 table", l1_offset, l1_bytes, L1_BYTES_MAX)?;
        let names = u64::from(raw.id_size.get()).saturating_add(u64::from(raw.name_size.get()));
        let len = 40u64.saturating_add(extra).saturating_add(names).next_multiple_of(8);
        found.bytes = found.bytes.saturating_add(len);
        if found.bytes > 64 << 20 {
            return Err(OpenError::Image("snapshot table is larger than 64 MiB".into()));
        }
        found.entries.push(Snapshot { l1_offset, l1_entries });
    }
    Ok(found)
}
