//! The map: what every byte of the image file is, and in what state every byte of the guest's disk is.

use std::fmt;
use std::ops::Range;

macro_rules! classes {
    ($(#[$outer:meta])* $type:ident { $($(#[$doc:meta])* $name:ident = $text:literal, $letter:literal;)* }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $type { $($(#[$doc])* $name),* }

        impl $type {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// Its name, lower case.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// A letter that needs no colour, different for each.
            #[must_use]
            pub fn letter(self) -> char {
                match self { $(Self::$name => $letter),* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

classes! {
    /// What a stretch of the image file is for. Where two claim it, the metadata wins and [`Conflict`](Self::Conflict)
    /// is what the map shows.
    Class {
        /// Header, with what belongs to it (extensions, backing file name).
        Header = "header", 'H';
        /// A text descriptor (VMDK).
        Descriptor = "descriptor", 'N';
        /// qcow2 or QED L1 table of the active disk; VMDK grain directory.
        L1 = "L1 table", '1';
        /// qcow2 or QED L2 table of the active disk; VMDK grain table.
        L2 = "L2 table", '2';
        /// The one table that maps the disk: VDI block map, VHD, VHDX or Parallels BAT.
        BlockMap = "block map", 'B';
        /// A second copy of header or tables (VMDK redundant grain directory, VHD footer copy, VHDX second headers).
        Copy = "redundant copy", 'C';
        /// Refcount table.
        RefcountTable = "refcount table", 'R';
        /// Refcount block.
        RefcountBlock = "refcount block", 'r';
        /// Snapshot table.
        SnapshotTable = "snapshot table", 'S';
        /// L1 table of a snapshot.
        SnapshotL1 = "snapshot L1 table", '3';
        /// L2 table that only snapshots use.
        SnapshotL2 = "snapshot L2 table", '4';
        /// Bitmap directory.
        BitmapDirectory = "bitmap directory", 'D';
        /// Bitmap table.
        BitmapTable = "bitmap table", 'T';
        /// Bits of a bitmap; sector bitmaps of VHD and VHDX.
        BitmapData = "bitmap data", 'b';
        /// Encryption header.
        Encryption = "encryption header", 'E';
        /// Log (VHDX).
        Log = "log", 'L';
        /// Other metadata: VHDX metadata region, Parallels extension, markers of a VMDK stream.
        Metadata = "other metadata", 'M';
        /// Guest data of the active disk.
        Data = "guest data", 'd';
        /// Compressed guest data.
        Compressed = "compressed data", 'z';
        /// Guest data that only snapshots use.
        SnapshotData = "snapshot data", 's';
        /// Saved state of a virtual machine.
        VmState = "VM state", 'v';
        /// Padding and space the format reserves.
        Reserved = "reserved", '-';
        /// Marked as used; nothing refers to it.
        Leaked = "leaked", 'F';
        /// Free.
        Free = "free", '.';
        /// Claimed by two that can not share it.
        Conflict = "claimed twice", '!';
        /// Not known: the tables that would say are gone.
        Unknown = "unknown", '?';
    }
}

impl Class {
    /// Whether it is the format's own and not the guest's.
    #[must_use]
    pub fn is_metadata(self) -> bool {
        self <= Self::Metadata
    }

    /// Whether it holds bytes of a guest.
    #[must_use]
    pub fn is_data(self) -> bool {
        matches!(self, Self::Data | Self::Compressed | Self::SnapshotData | Self::VmState)
    }
}

classes! {
    /// In what state a stretch of the guest's disk is.
    GuestState {
        /// Not allocated: reads as zeroes, or as the backing image.
        Unallocated = "unallocated", '.';
        /// Explicitly zero.
        Zero = "zero", '0';
        /// Data.
        Data = "data", 'd';
        /// Compressed data.
        Compressed = "compressed", 'z';
        /// Its place in the file is not known or not its own any more.
        Damaged = "damaged", '!';
    }
}

/// Who claims a stretch of the image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// What it is for.
    pub class: Class,
    /// Bytes of the file it claims.
    pub host: Range<u64>,
    /// Bytes of the guest's disk behind it: of a data cluster its range, of an L2 table its whole window.
    pub guest: Option<Range<u64>>,
    /// In words, as `L2 table of l1[3]`.
    pub label: String,
}

/// A stretch of metadata, compact: there may be millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What it is for.
    pub class: Class,
    /// Which one of its class (index in the table that refers to it), for its label.
    pub index: u64,
}

impl Claim {
    /// The bytes it covers.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.start..self.start.saturating_add(self.len)
    }
}

/// Bytes per class or state.
pub type Totals<const N: usize> = [u64; N];

/// A map in cells of equal size, in the order of offsets; the last one may be short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid<const N: usize> {
    /// Bytes mapped.
    pub len: u64,
    /// Bytes in a cell; never 0.
    pub cell_len: u64,
    /// Bytes of each class or state in each cell.
    pub cells: Vec<Totals<N>>,
}

impl<const N: usize> Grid<N> {
    /// An empty grid over `len` bytes of at most `cells` cells, each a multiple of `grain`.
    #[must_use]
    pub fn new(len: u64, grain: u64, cells: usize) -> Self {
        let grain = grain.max(1);
        let wanted = len.div_ceil((cells as u64).max(1)).max(1);
        let cell_len = wanted.checked_next_multiple_of(grain).unwrap_or(wanted);
        let count = usize::try_from(len.div_ceil(cell_len)).unwrap_or(cells);
        Self { len, cell_len, cells: vec![[0; N]; count] }
    }

    /// Adds a stretch of one class. What lies beyond the end is left out.
    pub fn add(&mut self, range: Range<u64>, class: usize) {
        let (mut at, end) = (range.start, range.end.min(self.len));
        while at < end {
            let index = at.checked_div(self.cell_len).unwrap_or(0);
            let next = index.saturating_add(1).saturating_mul(self.cell_len).min(end);
            let cell = usize::try_from(index).ok().and_then(|index| self.cells.get_mut(index));
            if let Some(bytes) = cell.and_then(|cell| cell.get_mut(class)) {
                *bytes = bytes.saturating_add(next.saturating_sub(at));
            }
            at = next;
        }
    }

    /// Adds every cell of another grid of the same shape.
    pub fn merge(&mut self, other: &Self) {
        for (cell, more) in self.cells.iter_mut().zip(&other.cells) {
            for (bytes, more) in cell.iter_mut().zip(more) {
                *bytes = bytes.saturating_add(*more);
            }
        }
    }
}

/// The image file by owner.
#[derive(Clone, Debug)]
pub struct HostMap {
    /// Length of the file.
    pub len: u64,
    /// Size of a cluster, block or grain.
    pub unit: u64,
    /// Every stretch of metadata, by start.
    pub claims: Vec<Claim>,
    /// Bytes per class; they sum to the file's length.
    pub totals: Totals<{ Class::COUNT }>,
    /// The picture, if one was asked for.
    pub grid: Option<Grid<{ Class::COUNT }>>,
}

impl HostMap {
    /// Bytes of a class.
    #[must_use]
    pub fn bytes(&self, class: Class) -> u64 {
        self.totals.get(class as usize).copied().unwrap_or(0)
    }
}

/// The guest's disk by state.
#[derive(Clone, Debug)]
pub struct GuestMap {
    /// Size of the disk.
    pub size: u64,
    /// Bytes per state.
    pub totals: Totals<{ GuestState::COUNT }>,
    /// The picture, if one was asked for.
    pub grid: Option<Grid<{ GuestState::COUNT }>>,
}

impl GuestMap {
    /// Bytes in a state.
    #[must_use]
    pub fn bytes(&self, state: GuestState) -> u64 {
        self.totals.get(state as usize).copied().unwrap_or(0)
    }

    /// Makes of a stretch what it was not: as many bytes of `from` as there are become `to`.
    pub(crate) fn turn(&mut self, range: Range<u64>, from: GuestState, to: GuestState) {
        let range = range.start..range.end.min(self.size);
        let bytes = range.end.saturating_sub(range.start).min(self.bytes(from));
        shift(&mut self.totals, from as usize, to as usize, bytes);
        let Some(grid) = &mut self.grid else { return };
        let mut at = range.start;
        while at < range.end {
            let index = at.checked_div(grid.cell_len).unwrap_or(0);
            let next = index.saturating_add(1).saturating_mul(grid.cell_len).min(range.end);
            if let Some(cell) = usize::try_from(index).ok().and_then(|index| grid.cells.get_mut(index)) {
                shift(cell, from as usize, to as usize, next.saturating_sub(at));
            }
            at = next;
        }
    }
}

/// Moves up to `bytes` from one class to another; the sum stays.
fn shift(totals: &mut [u64], from: usize, to: usize, bytes: u64) {
    let there = totals.get(from).copied().unwrap_or(0).min(bytes);
    if let Some(less) = totals.get_mut(from) {
        *less = less.saturating_sub(there);
    }
    if let Some(more) = totals.get_mut(to) {
        *more = more.saturating_add(there);
    }
}
