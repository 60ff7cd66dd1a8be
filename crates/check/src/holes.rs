//! Tables of sparse files. What lies in a hole is zero, and known without being read: a table of gigabytes that nobody
//! wrote to must cost no more than the bytes the file really has.

use std::ops::Range;

use crate::source::Source;

/// Neighbouring entries of a table that are to be read, or that lie in a hole and are all zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Never empty, unless nothing was asked for.
    pub(crate) entries: Range<u64>,
    pub(crate) hole: bool,
}

/// The first of the stretches that `entries` fall into. The table begins at `table`, an entry has `width` bytes; an
/// entry that lies in a hole in part is read. No more than `most` entries are to be read at once, while a hole may be
/// of any length.
pub(crate) fn stretch(source: &dyn Source, table: u64, width: u64, entries: Range<u64>, most: u64) -> Stretch {
    let at = table.saturating_add(entries.start.saturating_mul(width));
    let Some(data) = source.next_data(at) else { return Stretch { entries, hole: true } };
    let skipped = data.start.saturating_sub(at).checked_div(width).unwrap_or(0);
    if skipped > 0 {
        let end = entries.start.saturating_add(skipped).min(entries.end);
        return Stretch { entries: entries.start..end, hole: true };
    }
    let count = data.end.saturating_sub(at).div_ceil(width.max(1)).clamp(1, most.max(1));
    let end = entries.start.saturating_add(count).min(entries.end);
    Stretch { entries: entries.start..end, hole: false }
}

/// Whether all of a range is known to be zero. `next` remembers what was asked last, which spares callers that go
/// upwards most questions; it begins as `None`.
pub(crate) fn is_hole(source: &dyn Source, range: &Range<u64>, next: &mut Option<Range<u64>>) -> bool {
    // From where the question was asked up to the first byte of data there is a hole.
    let hole = match next {
        Some(known) if known.start <= range.start && range.start < known.end => known,
        unknown => {
            let data = source.next_data(range.start).map_or(u64::MAX, |data| data.start);
            unknown.insert(range.start..data.max(range.start))
        }
    };
    range.end <= hole.end
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Data at 100..200 and at 300..310, in a file of 1000 bytes.
    struct Holed;

    impl Source for Holed {
        fn name(&self) -> String {
            "holed".to_owned()
        }

        fn len(&self) -> u64 {
            1000
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> std::io::Result<usize> {
            Ok(0)
        }

        fn next_data(&self, at: u64) -> Option<Range<u64>> {
            [100..200, 300..310].into_iter().find(|data| data.end > at).map(|data| data.start.max(at)..data.end)
        }
    }

    #[test]
    fn tables_fall_into_stretches() {
        // A table from byte 2 on with 200 entries of 4 bytes: entry 24 is bytes 98..102, entry 49 is 198..202.
        let mut seen = Vec::new();
        let mut start = 0;
        while start < 200 {
            let next = stretch(&Holed, 2, 4, start..200, 20);
            assert!(next.entries.start == start && !next.entries.is_empty(), "{next:?}");
            start = next.entries.end;
            seen.push((next.entries, next.hole));
        }
        let want = [(0..24, true), (24..44, false), (44..50, false), (50..74, true), (74..77, false), (77..200, true)];
        assert_eq!(seen, want);
    }

    #[test]
    fn ranges_are_holes_or_not() {
        let mut next = None;
        for (range, want) in [
            (0..100, true),
            (50..101, false),
            (60..70, true),
            (150..160, false),
            (200..300, true),
            (10..20, true),
            (295..301, false),
            (310..1000, true),
        ] {
            assert_eq!(is_hole(&Holed, &range, &mut next), want, "{range:?}");
        }
    }
}
