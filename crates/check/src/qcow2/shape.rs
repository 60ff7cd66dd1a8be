//! qcow2's own tables by their look: pointers of L1 and L2 tables, reference counts of any width; and which sectors of
//! a table are not the table's own any more.
//!
//! A pointer is telling: reserved bits are zero, the offset is a multiple of the cluster size and inside the file.
//! Eight random bytes pass that once in some 10^10 times. Reference counts are telling in bulk only: small numbers,
//! mostly one value, in long runs.

use std::ops::Range;

use crate::bytes::{be_u64, is_zero};
use crate::finding::Confidence;
use crate::shape::{self, Shape};

use super::compressed;
use super::header::Geometry;
use super::l2::{COMPRESSED, COPIED, OFFSET, RESERVED, ZERO};
use super::stored::{count_at, counts_in};

/// No file is that large; what points beyond was not cut off, it never was a pointer.
const FAR: u64 = 1 << 47;

/// Counts a cluster may plausibly have: shared by so many snapshots.
const SMALL: usize = 64;

pub(crate) const SECTOR: usize = 512;

/// What a stretch of the image file looks like, qcow2's own tables included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Look {
    /// Reference counts of so many bits.
    Counts {
        bits: u32,
    },
    /// Pointers as in an L1 or L2 table.
    Pointers,
    Else(Shape),
}

impl Look {
    /// As in "overwritten by …".
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Counts { bits } => format!("{bits}-bit reference counts (the content of refcount blocks)"),
            Self::Pointers => "pointers (the content of an L1 or L2 table)".to_owned(),
            Self::Else(shape) => shape.words(),
        }
    }
}

/// How the entries of a table look, taken as L1 or L2 entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    /// Not 0.
    pub(crate) nonzero: u64,
    /// Of these, such that a program may have written them.
    pub(crate) sound: u64,
    /// Sound, with an offset inside the file.
    pub(crate) inside: u64,
    /// Sound, with an offset past the end of the file.
    pub(crate) past: u64,
    /// Sound, without an offset: zero clusters.
    pub(crate) flags_only: u64,
    /// With COPIED set, of those that can have it.
    pub(crate) copied: u64,
    pub(crate) compressed: u64,
    /// Right behind (compressed: close behind) their predecessor's cluster.
    pub(crate) in_order: u64,
    /// The very same as their predecessor, offset and all.
    pub(crate) repeated: u64,
    /// Index behind the last one that is not 0.
    pub(crate) end: u64,
}

impl Entries {
    /// Counts over a table or a part of it that begins with an entry.
    pub(crate) fn of(bytes: &[u8], geometry: &Geometry, file_len: u64) -> Self {
        let mut all = Self::default();
        let mut before: Option<(u64, u64)> = None;
        let step = usize::try_from(geometry.l2_entry_len()).unwrap_or(8);
        for (index, entry) in bytes.chunks_exact(step).enumerate() {
            let raw = be_u64(entry, 0);
            let bitmap = if geometry.extended_l2 { be_u64(entry, 8) } else { 0 };
            if raw == 0 && bitmap == 0 {
                before = None;
                continue;
            }
            all.end = (index as u64).saturating_add(1);
            all.nonzero = all.nonzero.saturating_add(1);
            let Some(sound) = sound(raw, bitmap, geometry) else {
                before = None;
                continue;
            };
            all.sound = all.sound.saturating_add(1);
            let Some(at) = sound else {
                all.flags_only = all.flags_only.saturating_add(1);
                before = None;
                continue;
            };
            if at < file_len {
                all.inside = all.inside.saturating_add(1);
            } else {
                all.past = all.past.saturating_add(1);
            }
            let is_compressed = raw & COMPRESSED != 0;
            all.compressed = all.compressed.saturating_add(u64::from(is_compressed));
            all.copied = all.copied.saturating_add(u64::from(raw & COPIED != 0));
            if let Some((last_raw, last)) = before {
                let step = at.wrapping_sub(last);
                let next = if is_compressed {
                    step > 0 && step < geometry.cluster_size()
                } else {
                    step == geometry.cluster_size()
                };
                all.in_order = all.in_order.saturating_add(u64::from(next));
                all.repeated = all.repeated.saturating_add(u64::from(raw == last_raw));
            }
            before = Some((raw, at));
        }
        all
    }

    fn pointers(&self) -> u64 {
        self.inside.saturating_add(self.past)
    }

    /// Whether a table nothing refers to looks like an L2 table, and how sure that is.
    pub(crate) fn is_l2(&self) -> Option<Confidence> {
        let pointers = self.pointers();
        // Nearly every entry, most of them inside the file, and not the same one over and over.
        let looks = self.inside > 0
            && self.sound.saturating_mul(50) >= self.nonzero.saturating_mul(49)
            && self.inside.saturating_mul(4) >= pointers.saturating_mul(3)
            && self.repeated.saturating_mul(4) <= pointers;
        let own = self.copied.saturating_add(self.compressed).saturating_mul(10) >= pointers.saturating_mul(9);
        let ordered = self.in_order.saturating_mul(2) >= pointers;
        looks.then_some(if self.inside >= 8 && (own || ordered) { Confidence::Likely } else { Confidence::Possible })
    }

    /// Whether it may be an L1 table: pointers only, each to another table, COPIED set (or, of a snapshot, not).
    pub(crate) fn is_l1(&self) -> bool {
        self.inside > 0
            && self.sound == self.nonzero
            && self.past == 0
            && self.flags_only == 0
            && self.compressed == 0
            && self.repeated == 0
            && (self.copied == self.inside || self.copied == 0)
    }
}

/// `None`: nobody writes such an entry. Else its offset in the file, if it has one.
fn sound(raw: u64, bitmap: u64, geometry: &Geometry) -> Option<Option<u64>> {
    let cluster = geometry.cluster_size();
    if raw & COMPRESSED != 0 {
        let region = compressed::region(raw, geometry);
        let len = region.end.saturating_sub(region.start);
        let can = raw & COPIED == 0 && bitmap == 0 && !geometry.external_data;
        return (can && region.start >= cluster && region.end < FAR && len <= cluster.saturating_add(512))
            .then_some(Some(region.start));
    }
    let offset = raw & OFFSET;
    let misaligned = offset & cluster.wrapping_sub(1) != 0;
    if raw & RESERVED != 0 || misaligned || offset >= FAR || bitmap & (bitmap >> 32) & 0xffff_ffff != 0 {
        return None;
    }
    if geometry.extended_l2 && raw & ZERO != 0 {
        return None;
    }
    if offset == 0 && !geometry.external_data {
        let zero = raw == ZERO || (geometry.extended_l2 && raw == 0 && bitmap & 0xffff_ffff == 0);
        return zero.then_some(None);
    }
    Some(Some(offset))
}

/// Whether a stretch looks like reference counts of this width.
pub(crate) fn is_counts(bytes: &[u8], order: u32) -> Option<Confidence> {
    let n = counts_in(bytes.len() as u64, order);
    let mut of_value = [0u64; SMALL];
    let (mut nonzero, mut changes, mut last) = (0u64, 0u64, None);
    for index in 0..n {
        let value = count_at(bytes, index, order);
        changes = changes.saturating_add(u64::from(last.is_some_and(|last| last != value)));
        last = Some(value);
        if value != 0 {
            nonzero = nonzero.saturating_add(1);
            if let Some(count) = usize::try_from(value).ok().and_then(|value| of_value.get_mut(value)) {
                *count = count.saturating_add(1);
            }
        }
    }
    let small = of_value.iter().fold(0u64, |all, count| all.saturating_add(*count));
    let most = of_value.iter().copied().max().unwrap_or(0);
    let looks = nonzero >= 8
        && small.saturating_mul(100) >= nonzero.saturating_mul(99)
        && most.saturating_mul(10) >= nonzero.saturating_mul(6)
        && changes.saturating_mul(8) <= n;
    // Wide counts have many zero bytes; one-bit counts are any bitmap.
    looks.then_some(if order >= 1 && nonzero >= 64 && changes.saturating_mul(32) <= n {
        Confidence::Likely
    } else {
        Confidence::Possible
    })
}

/// Recognises what lies in a stretch that begins with a sector.
pub(crate) fn look(bytes: &[u8], geometry: &Geometry, file_len: u64) -> (Look, Confidence) {
    if is_zero(bytes) {
        return (Look::Else(Shape::Zeroes), Confidence::Certain);
    }
    // The image's own width first, then what programs use without being asked.
    let own = geometry.refcount_order;
    let widths = [own, 4].into_iter().chain((2..=5).filter(|order| *order != own && *order != 4));
    for order in widths.filter(|order| *order == own || (2..=5).contains(order)) {
        if let Some(sure) = is_counts(bytes, order).filter(|sure| *sure > Confidence::Possible) {
            return (Look::Counts { bits: 1 << order }, sure);
        }
    }
    if let Some(sure) = Entries::of(bytes, geometry, file_len).is_l2() {
        return (Look::Pointers, sure);
    }
    let (shape, sure) = shape::judge(bytes);
    let vague = matches!(shape, Shape::Other | Shape::Bits);
    if vague && let Some(sure) = is_counts(bytes, own) {
        return (Look::Counts { bits: 1 << own }, sure);
    }
    (Look::Else(shape), sure)
}

/// The sectors of an L1 or L2 table that hold something else, in runs. A single senseless entry is a damaged entry, not
/// a sector that was overwritten.
pub(crate) fn foreign_in_table(bytes: &[u8], geometry: &Geometry, file_len: u64) -> Vec<Range<usize>> {
    runs_of_sectors(bytes, |sector| {
        let entries = Entries::of(sector, geometry, file_len);
        if entries.nonzero == 0 {
            return Sector::Empty;
        }
        let senseless = entries.nonzero.saturating_sub(entries.sound).saturating_mul(2) > entries.nonzero;
        let repeated = entries.repeated.saturating_mul(2) > entries.nonzero;
        let counts = || {
            // Beyond the end of the file, and yet like counts: no cut-off table.
            entries.inside == 0 && is_counts(sector, geometry.refcount_order).is_some()
        };
        if entries.nonzero >= 4 && (senseless || repeated) || (entries.past > 0 && counts()) {
            Sector::Foreign
        } else {
            Sector::Own
        }
    })
}

/// The sectors of a refcount block that hold something else, in runs.
pub(crate) fn foreign_in_block(bytes: &[u8], geometry: &Geometry) -> Vec<Range<usize>> {
    let order = geometry.refcount_order;
    // Every count up to a byte can be; only the look of the whole tells then.
    let few = order < 4;
    runs_of_sectors(bytes, |sector| {
        if is_zero(sector) {
            return Sector::Empty;
        }
        let n = counts_in(sector.len() as u64, order);
        let huge = (0..n).filter(|index| count_at(sector, *index, order) > 4096).count() as u64;
        let strange = few && !matches!(shape::judge(sector).0, Shape::Other | Shape::Bits | Shape::Repeated { .. });
        if strange || huge.saturating_mul(8) > n { Sector::Foreign } else { Sector::Own }
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sector {
    Empty,
    Own,
    Foreign,
}

/// Runs of foreign sectors; empty ones between two foreign ones are counted in.
fn runs_of_sectors(bytes: &[u8], judge: impl Fn(&[u8]) -> Sector) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut joined = false;
    for (index, sector) in bytes.chunks(SECTOR).enumerate() {
        let start = index.saturating_mul(SECTOR);
        let end = start.saturating_add(sector.len());
        match judge(sector) {
            Sector::Empty => {}
            Sector::Own => joined = false,
            Sector::Foreign => {
                match runs.last_mut() {
                    Some(last) if joined => last.end = end,
                    _ => runs.push(start..end),
                }
                joined = true;
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Text;
    use crate::shape::tests::{noise, repeat};

    pub(crate) const GEOMETRY: Geometry = Geometry {
        cluster_bits: 16,
        refcount_order: 4,
        size: 1 << 40,
        extended_l2: false,
        external_data: false,
        version: 3,
        zstd: false,
    };

    const FILE: u64 = 1 << 34;

    fn table(entries: impl Iterator<Item = u64>) -> Vec<u8> {
        let mut bytes: Vec<u8> = entries.flat_map(u64::to_be_bytes).collect();
        bytes.resize(65536, 0);
        bytes
    }

    fn counts(order: u32, of: impl Fn(u64) -> u64) -> Vec<u8> {
        let n = counts_in(65536, order);
        let mut bytes = vec![0u8; 65536];
        for index in 0..n {
            let value = of(index);
            if order >= 3 {
                let width = 1usize << (order - 3);
                bytes[usize::try_from(index).unwrap() * width..][..width]
                    .copy_from_slice(&value.to_be_bytes()[8 - width..]);
            } else {
                let at = index << order;
                bytes[usize::try_from(at / 8).unwrap()] |= value.to_le_bytes()[0] << (at % 8);
            }
        }
        bytes
    }

    #[test]
    fn tables_and_counts_are_told_apart() {
        let ordered = table((0..8192u64).map(|index| COPIED | (index + 5) << 16));
        let sparse = table((0..8192u64).map(|index| if index % 100 == 7 { COPIED | (9000 - index) << 16 } else { 0 }));
        let of_snapshot = table((0..8192u64).map(|index| (index + 5) << 16));
        let zeroed =
            table((0..8192u64).map(|index| if index % 2 == 0 { ZERO } else { COPIED | (index * 3 + 5) << 16 }));
        let squeezed = table((0..8192u64).map(|index| COMPRESSED | 20 << 54 | (0x5_0000 + index * 11_111)));
        let pointers = [&ordered, &sparse, &of_snapshot, &zeroed, &squeezed];
        for (index, bytes) in pointers.iter().enumerate() {
            assert_eq!(look(bytes, &GEOMETRY, FILE), (Look::Pointers, Confidence::Likely), "{index}");
            assert!(foreign_in_table(bytes, &GEOMETRY, FILE).is_empty(), "{index}");
            // Cut off in the middle, it is still a table.
            assert!(foreign_in_table(bytes, &GEOMETRY, 0x100_0000).is_empty(), "{index}");
        }
        for order in 1..=6 {
            let geometry = Geometry { refcount_order: order, ..GEOMETRY };
            let full = counts(order, |_| 1);
            let half = counts(order, |index| u64::from(index < counts_in(65536, order) / 2 && index % 1000 != 3));
            for bytes in [full, half] {
                let (look, sure) = look(&bytes, &geometry, FILE);
                assert_eq!((look, sure), (Look::Counts { bits: 1 << order }, Confidence::Likely), "order {order}");
                assert!(foreign_in_block(&bytes, &geometry).is_empty(), "order {order}");
                if order < 6 {
                    assert!(!foreign_in_table(&bytes, &geometry, FILE).is_empty(), "order {order}");
                }
            }
        }
        // Of another image, with another width.
        assert_eq!(look(&counts(3, |_| 1), &GEOMETRY, FILE).0, Look::Counts { bits: 8 });
        let shared = counts(4, |index| if index < 20_000 { 3 } else { 1 });
        assert_eq!(look(&shared, &GEOMETRY, FILE).0, Look::Counts { bits: 16 });
    }

    #[test]
    fn what_overwrote_a_table() {
        let own = table((0..8192u64).map(|index| COPIED | (index + 5) << 16));
        let cases: Vec<(&str, Vec<u8>, Look)> = vec![
            ("log", repeat("Nov 21 17:40:01 host kernel: link is up\n", 65536), Look::Else(Shape::Text(Text::Log))),
            ("noise", noise(65536, 1), Look::Else(Shape::Dense)),
            ("pattern", vec![0xa5; 65536], Look::Else(Shape::Repeated { word: [0xa5; 8] })),
            ("counts", counts(4, |_| 1), Look::Counts { bits: 16 }),
        ];
        for (name, other, want) in cases {
            for range in [0..65536usize, 4096..8192, 512..1024, 65024..65536] {
                let mut bytes = own.clone();
                bytes[range.clone()].copy_from_slice(&other[range.clone()]);
                assert_eq!(foreign_in_table(&bytes, &GEOMETRY, FILE), std::slice::from_ref(&range), "{name} {range:?}");
                assert_eq!(look(&bytes[range.clone()], &GEOMETRY, FILE).0, want, "{name} {range:?}");
            }
        }
        let mut one_bad = own;
        one_bad[8 * 100 + 7] = 0x40;
        assert!(foreign_in_table(&one_bad, &GEOMETRY, FILE).is_empty());
    }

    #[test]
    fn what_overwrote_a_refcount_block() {
        let own = counts(4, |index| u64::from(index < 30_000));
        for (name, other) in [
            ("text", repeat("Nov 21 17:40:01 host kernel: link is up\n", 65536)),
            ("noise", noise(65536, 1)),
            ("pattern", vec![0xa5; 65536]),
            ("table", table((0..8192u64).map(|index| COPIED | (index + 5) << 16))),
        ] {
            for range in [0..65536usize, 4096..8192, 512..1024] {
                let mut bytes = own.clone();
                bytes[range.clone()].copy_from_slice(&other[range.clone()]);
                assert_eq!(foreign_in_block(&bytes, &GEOMETRY), std::slice::from_ref(&range), "{name} {range:?}");
            }
        }
    }

    /// Guest data is not taken for tables.
    #[test]
    fn data_is_no_table() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        for (index, cluster) in program.chunks(65536).take(40).enumerate() {
            let (look, sure) = look(cluster, &GEOMETRY, FILE);
            assert!(!matches!(look, Look::Pointers) || sure < Confidence::Likely, "cluster {index}: {look:?}");
        }
        for seed in 0..8 {
            assert_eq!(Entries::of(&noise(65536, seed), &GEOMETRY, u64::MAX).is_l2(), None);
        }
    }
}
