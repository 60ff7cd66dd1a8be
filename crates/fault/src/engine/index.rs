//! Which requests any rule may be about: the one branch that a request pays where none is.

use blkproof_block::ByteRange;

use crate::request::Operation;

/// Ranges of interest, by operation.
#[derive(Debug, Default)]
pub(super) struct Index {
    by_operation: [Interest; Operation::ALL.len()],
}

/// Sorted ranges apart from each other, or everything.
#[derive(Debug, Default)]
struct Interest {
    ranges: Vec<ByteRange>,
    /// Also requests without a place.
    everything: bool,
}

impl Index {
    /// Puts together what each rule is about: operations, and ranges; `None` means any place.
    pub(super) fn build(parts: impl Iterator<Item = (Operation, Option<ByteRange>)>) -> Self {
        let mut index = Self::default();
        for (operation, range) in parts {
            let Some(interest) = index.by_operation.get_mut(operation as usize) else { continue };
            match range {
                None => interest.everything = true,
                Some(range) => interest.ranges.push(range),
            }
        }
        for interest in &mut index.by_operation {
            interest.ranges.sort_by_key(|range| (range.start, range.end));
            let mut merged: Vec<ByteRange> = Vec::new();
            for &range in &interest.ranges {
                match merged.last_mut() {
                    Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                    _ => merged.push(range),
                }
            }
            interest.ranges = merged;
        }
        index
    }

    /// Whether some rule may have to do with this request.
    pub(super) fn concerns(&self, operation: Operation, range: ByteRange) -> bool {
        let Some(interest) = self.by_operation.get(operation as usize) else { return false };
        if interest.everything {
            return true;
        }
        if interest.ranges.is_empty() {
            return false;
        }
        let behind = interest.ranges.partition_point(|part| part.end <= range.start);
        interest.ranges.get(behind).is_some_and(|part| part.start < range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_overlaps_is_of_interest() {
        let parts = [(100, 200), (150, 300), (400, 500)];
        let parts = parts.map(|(start, end)| (Operation::Read, Some(ByteRange { start, end })));
        let index = Index::build(parts.into_iter().chain([(Operation::Flush, None)]));
        for (start, len, want) in
            [(0, 100, false), (0, 101, true), (299, 1, true), (300, 100, false), (399, 2, true), (500, 9, false)]
        {
            assert_eq!(index.concerns(Operation::Read, ByteRange::at(start, len)), want, "{start}+{len}");
            assert!(!index.concerns(Operation::Write, ByteRange::at(start, len)));
        }
        assert!(index.concerns(Operation::Flush, ByteRange::at(0, 0)));
    }
}
