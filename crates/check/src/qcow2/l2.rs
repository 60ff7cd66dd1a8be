//! L2 tables: entries taken apart and gathered into runs (qcow2 spec, sections "Cluster mapping", "Extended L2
//! Entries").
//!
//! A run is what makes a sound image cheap: entries that follow each other in the table and point at clusters that
//! follow each other in the file, with the same flags, are looked at as one.

use crate::bytes::be_u64;

use super::compressed;
use super::header::Geometry;

pub(crate) const COPIED: u64 = 1 << 63;
pub(crate) const COMPRESSED: u64 = 1 << 62;
pub(crate) const ZERO: u64 = 1;
/// Bits 9..55 of an L1 entry or a standard L2 entry.
pub(crate) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits 1..8 and 56..61 of a standard L2 entry.
pub(crate) const RESERVED: u64 = 0x3f00_0000_0000_01fe;

/// Entries `index..index + len`: the first one is `raw`, each one's offset a cluster beyond its predecessor's if it has
/// one, otherwise all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) index: u64,
    pub(crate) len: u64,
    pub(crate) raw: u64,
    /// The subcluster bitmap of each; 0 without extended L2 entries.
    pub(crate) bitmap: u64,
}

impl Run {
    pub(crate) fn offset(&self) -> u64 {
        self.raw & OFFSET
    }

    pub(crate) fn is_compressed(&self) -> bool {
        self.raw & COMPRESSED != 0
    }

    pub(crate) fn copied(&self) -> bool {
        self.raw & COPIED != 0
    }

    pub(crate) fn zero(&self) -> bool {
        self.raw & ZERO != 0
    }

    /// By how much the entries of this run grow.
    fn step(raw: u64, cluster: u64) -> u64 {
        if raw & COMPRESSED == 0 && raw & OFFSET != 0 { cluster } else { 0 }
    }
}

/// Goes over a piece of a table whose first entry has the index `first`.
pub(crate) fn each_run<E>(
    bytes: &[u8],
    first: u64,
    geometry: &Geometry,
    mut each: impl FnMut(Run) -> Result<(), E>,
) -> Result<(), E> {
    let cluster = geometry.cluster_size();
    let mut open: Option<Run> = None;
    // Raw value that would carry the open run on, and by how much it grows.
    let (mut next, mut step) = (0u64, 0u64);
    let mut index = first;
    let mut take = |raw: u64, bitmap: u64| -> Result<(), E> {
        match &mut open {
            // Past the last offset there is, the sum changes the flags: that is no continuation.
            Some(run) if raw == next && bitmap == run.bitmap && (raw ^ run.raw) & !OFFSET == 0 => {
                run.len = run.len.wrapping_add(1);
            }
            _ => {
                if let Some(done) = open.replace(Run { index, len: 1, raw, bitmap }) {
                    each(done)?;
                }
                step = Run::step(raw, cluster);
            }
        }
        next = raw.wrapping_add(step);
        index = index.wrapping_add(1);
        Ok(())
    };
    if geometry.extended_l2 {
        for pair in bytes.as_chunks::<16>().0 {
            take(be_u64(pair, 0), be_u64(pair, 8))?;
        }
    } else {
        for entry in bytes.as_chunks::<8>().0 {
            take(u64::from_be_bytes(*entry), 0)?;
        }
    }
    open.map_or(Ok(()), each)
}

/// What lies in an L2 table's place, by its entries alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Entries, some of which may be wrong.
    Table,
    /// Something else: most of what is there makes no sense as entries. How many, of how many that are not 0.
    Overwritten { flawed: u64, nonzero: u64 },
}

/// Judges (the first piece of) a table.
pub(crate) fn judge(bytes: &[u8], geometry: &Geometry, file_len: u64) -> Shape {
    let misaligned = geometry.cluster_size().wrapping_sub(1) & OFFSET;
    let junk = RESERVED | misaligned | COMPRESSED;
    let step = if geometry.extended_l2 { 2 } else { 1 };
    let entries = || bytes.as_chunks::<8>().0.iter().step_by(step).map(|entry| u64::from_be_bytes(*entry));
    if entries().fold(0, |all, raw| all | raw) & junk == 0 {
        return Shape::Table;
    }
    let (mut nonzero, mut garbage, mut past) = (0u64, 0u64, 0u64);
    for raw in entries().filter(|raw| *raw != 0) {
        nonzero = nonzero.saturating_add(1);
        let (bad, beyond) = if raw & COMPRESSED != 0 {
            (raw & COPIED != 0 || geometry.external_data, compressed::region(raw, geometry).start >= file_len)
        } else {
            (raw & (RESERVED | misaligned) != 0, raw & OFFSET >= file_len)
        };
        garbage = garbage.saturating_add(u64::from(bad));
        past = past.saturating_add(u64::from(beyond && !bad && !geometry.external_data));
    }
    let flawed = garbage.saturating_add(past);
    // A truncated file makes entries point past its end, but does not make them senseless.
    if nonzero >= 4 && flawed.saturating_mul(2) > nonzero && garbage.saturating_mul(8) >= nonzero {
        Shape::Overwritten { flawed, nonzero }
    } else {
        Shape::Table
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry {
        cluster_bits: 16,
        refcount_order: 4,
        size: 1 << 40,
        extended_l2: false,
        external_data: false,
        version: 3,
        zstd: false,
    };

    fn runs(entries: &[u64], geometry: &Geometry) -> Vec<Run> {
        let bytes: Vec<u8> = entries.iter().flat_map(|raw| raw.to_be_bytes()).collect();
        let mut all = Vec::new();
        each_run(&bytes, 100, geometry, |run| {
            all.push(run);
            Ok::<(), ()>(())
        })
        .unwrap();
        all
    }

    #[test]
    fn entries_are_gathered() {
        let run = |index, len, raw| Run { index, len, raw, bitmap: 0 };
        let top = COPIED | OFFSET & !0xffff;
        let got = runs(
            &[
                0,
                0,
                COPIED | 0x5_0000,
                COPIED | 0x6_0000,
                0x7_0000,
                1,
                1,
                COMPRESSED | 7,
                COMPRESSED | 7,
                top,
                top + 0x1_0000,
                0,
            ],
            &GEOMETRY,
        );
        let want = [
            run(100, 2, 0),
            run(102, 2, COPIED | 0x5_0000),
            run(104, 1, 0x7_0000),
            run(105, 2, 1),
            run(107, 2, COMPRESSED | 7),
            run(109, 1, top),
            run(110, 1, top.wrapping_add(0x1_0000)),
            run(111, 1, 0),
        ];
        assert_eq!(got, want);
        let extended = Geometry { extended_l2: true, ..GEOMETRY };
        let got = runs(&[0x5_0000, 7, 0x6_0000, 7, 0x7_0000, 8, 0, 0, 0, 0], &extended);
        let run = |index, len, raw, bitmap| Run { index, len, raw, bitmap };
        assert_eq!(got, [run(100, 2, 0x5_0000, 7), run(102, 1, 0x7_0000, 8), run(103, 2, 0, 0)]);
    }

    #[test]
    fn a_table_of_text_is_overwritten_and_a_truncated_one_is_not() {
        let text: Vec<u8> = b"kernel: usb 1-1: new device\n".iter().copied().cycle().take(65536).collect();
        assert!(matches!(judge(&text, &GEOMETRY, 1 << 30), Shape::Overwritten { .. }));
        let table: Vec<u8> = (0..8192u64).flat_map(|index| (COPIED | index << 16).to_be_bytes()).collect();
        assert_eq!(judge(&table, &GEOMETRY, 1 << 20), Shape::Table);
        assert_eq!(judge(&vec![0; 65536], &GEOMETRY, 1 << 20), Shape::Table);
        let mut one_bad = table;
        one_bad[15] = 0x7e;
        assert_eq!(judge(&one_bad, &GEOMETRY, 1 << 40), Shape::Table);
    }
}
