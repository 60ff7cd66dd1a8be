//! What every later step computes with: made only of checked values, whichever of the three sparse variants it came
//! from.

use crate::bytes::{le_u32, le_u64};

/// Bytes of a sector: the unit of every offset and size in a VMDK.
pub(super) const SECTOR: u64 = 512;

/// Which sparse extent it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `KDMV`: 32-bit entries, as VMware Workstation, VirtualBox and QEMU write it.
    Hosted,
    /// `COWD`: the older one of ESX, 4096 entries a table, no copies.
    Cowd,
    /// `0xcafebabe`: the newer one of ESX, 64-bit entries that are numbers of grains, not places.
    SeSparse,
}

/// Where an entry of a directory or table leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pointer {
    /// Nowhere: not allocated.
    None,
    /// Reads as zeroes.
    Zero,
    /// To this byte of the file.
    At(u64),
    /// A value that means nothing.
    Bad,
}

/// Sizes and places, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) kind: Kind,
    /// Size of the guest's disk.
    pub(super) capacity: u64,
    /// Bytes of a grain: a multiple of 512, at most 1 GiB, never 0.
    pub(super) grain: u64,
    /// Entries of a grain table, 1..=4096.
    pub(super) gtes: u64,
    /// The grain directory.
    pub(super) gd: u64,
    /// Entries it has: enough for `capacity`.
    pub(super) gd_entries: u64,
    /// Its redundant copy, if there is one that can be used.
    pub(super) rgd: Option<u64>,
    /// Grains begin here or later.
    pub(super) overhead: u64,
    /// Grains are zlib streams.
    pub(super) compressed: bool,
    /// A marker stands in front of each grain.
    pub(super) markers: bool,
    /// Entry 1 means zeroes.
    pub(super) zero_grain: bool,
    /// The directory is at the end, behind the grains: written in one go, read in one go.
    pub(super) stream: bool,
    /// seSparse: where grain tables are numbered from.
    pub(super) tables: u64,
    /// seSparse: where grains are numbered from.
    pub(super) grains: u64,
    /// What lies behind this was never handed out by the allocator (COWD knows that); `None` if not known.
    pub(super) next_free: Option<u64>,
}

impl Geometry {
    /// Bytes of an entry.
    pub(super) fn entry_len(&self) -> u64 {
        if self.kind == Kind::SeSparse { 8 } else { 4 }
    }

    /// Whole entries in this many bytes.
    pub(super) fn entries_in(&self, bytes: u64) -> u64 {
        if self.kind == Kind::SeSparse { bytes / 8 } else { bytes / 4 }
    }

    /// Bytes of a grain table.
    pub(super) fn table_len(&self) -> u64 {
        self.gtes.saturating_mul(self.entry_len())
    }

    /// Bytes of the guest's disk one grain table maps.
    pub(super) fn window(&self) -> u64 {
        self.gtes.saturating_mul(self.grain)
    }

    /// Bytes of the grain directory.
    pub(super) fn gd_len(&self) -> u64 {
        self.gd_entries.saturating_mul(self.entry_len())
    }

    /// Grains of the guest's disk.
    pub(super) fn grain_count(&self) -> u64 {
        self.capacity.div_ceil(self.grain.max(1))
    }

    /// First byte of the guest's disk that entry `entry` of table `table` is about.
    pub(super) fn guest(&self, table: u64, entry: u64) -> u64 {
        table.saturating_mul(self.window()).saturating_add(entry.saturating_mul(self.grain))
    }

    /// The guest's bytes behind these tables, as far as the disk reaches.
    pub(super) fn windows(&self, tables: std::ops::Range<u64>) -> std::ops::Range<u64> {
        let at = |table| self.guest(table, 0).min(self.capacity);
        at(tables.start)..at(tables.end)
    }

    /// Bytes of the grain at `guest` that belong to the disk; the last grain may reach beyond it.
    pub(super) fn used(&self, guest: u64) -> u64 {
        self.capacity.saturating_sub(guest).min(self.grain)
    }

    /// An entry as stored.
    pub(super) fn raw(&self, table: &[u8], index: usize) -> u64 {
        match self.kind {
            Kind::SeSparse => le_u64(table, index.saturating_mul(8)),
            _ => u64::from(le_u32(table, index.saturating_mul(4))),
        }
    }

    /// An entry of the grain directory.
    pub(super) fn directory_entry(&self, bytes: &[u8], index: usize) -> Pointer {
        let raw = self.raw(bytes, index);
        match self.kind {
            _ if raw == 0 => Pointer::None,
            // The upper half holds the type, of which there is one; the lower half counts tables.
            Kind::SeSparse if raw >> 32 == 0x1000_0000 => {
                let number = raw & 0xffff_ffff;
                Pointer::At(self.tables.saturating_add(number.saturating_mul(self.table_len())))
            }
            Kind::SeSparse => Pointer::Bad,
            _ => Pointer::At(raw.saturating_mul(SECTOR)),
        }
    }

    /// An entry of a grain table.
    pub(super) fn entry(&self, bytes: &[u8], index: usize) -> Pointer {
        let raw = self.raw(bytes, index);
        match self.kind {
            _ if raw == 0 => Pointer::None,
            Kind::SeSparse => match raw >> 60 {
                // Unmapped and zero: the place that may still be named in the other bits is not read.
                1 | 2 => Pointer::Zero,
                // The number's upper 12 bits stand in front of its lower 48.
                3 => {
                    let number = (raw & 0x0fff_0000_0000_0000) >> 48 | (raw & 0x0000_ffff_ffff_ffff) << 12;
                    Pointer::At(self.grains.saturating_add(number.saturating_mul(self.grain)))
                }
                _ => Pointer::Bad,
            },
            _ if raw == 1 && self.zero_grain => Pointer::Zero,
            _ => Pointer::At(raw.saturating_mul(SECTOR)),
        }
    }
}
