//! Equal errors of neighbouring table entries, folded into one.

use std::ops::Range;

/// Neighbouring entries of one table with the same thing to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stretch<K> {
    pub(crate) kind: K,
    /// Indices in the table.
    pub(crate) entries: Range<u64>,
    /// Values of the first and the last entry, and the smallest and largest of all.
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) least: u64,
    pub(crate) most: u64,
    /// What they map.
    pub(crate) guest: Range<u64>,
}

impl<K> Stretch<K> {
    /// How many entries.
    pub(crate) fn count(&self) -> u64 {
        self.entries.end.saturating_sub(self.entries.start)
    }

    /// "entry 7 (0x1234)" or "entries 7..12 (0x1234 to 0x1238)".
    pub(crate) fn words(&self) -> String {
        let Range { start, end } = self.entries;
        match (self.count(), self.least == self.most) {
            (0 | 1, _) => format!("entry {start} ({:#x})", self.first),
            (_, true) => format!("entries {start}..{end} (all {:#x})", self.first),
            (_, false) => format!("entries {start}..{end} ({:#x} to {:#x})", self.least, self.most),
        }
    }
}

/// Folds what is pushed in the order of the table.
#[derive(Debug)]
pub(crate) struct Fold<K> {
    open: Option<Stretch<K>>,
}

impl<K: PartialEq> Fold<K> {
    pub(crate) fn new() -> Self {
        Self { open: None }
    }

    /// Takes an entry; what came before is handed back if this one does not continue it.
    pub(crate) fn push(&mut self, kind: K, index: u64, value: u64, guest: Range<u64>) -> Option<Stretch<K>> {
        self.push_all(kind, index..index.saturating_add(1), value, guest)
    }

    /// As [`push`](Self::push), a run of entries that all have one value.
    pub(crate) fn push_all(
        &mut self,
        kind: K,
        entries: Range<u64>,
        value: u64,
        guest: Range<u64>,
    ) -> Option<Stretch<K>> {
        match &mut self.open {
            Some(open) if open.kind == kind && open.entries.end == entries.start && open.guest.end == guest.start => {
                open.entries.end = entries.end;
                open.last = value;
                open.least = open.least.min(value);
                open.most = open.most.max(value);
                open.guest.end = guest.end;
                None
            }
            _ => self.open.replace(Stretch {
                kind,
                entries,
                first: value,
                last: value,
                least: value,
                most: value,
                guest,
            }),
        }
    }

    /// What is still open.
    pub(crate) fn finish(&mut self) -> Option<Stretch<K>> {
        self.open.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_that_say_the_same_are_one() {
        let mut fold = Fold::new();
        let mut done = Vec::new();
        for (kind, index, value) in [('a', 3, 9), ('a', 4, 7), ('b', 5, 1), ('b', 7, 1), ('b', 8, 1)] {
            done.extend(fold.push(kind, index, value, index * 10..index * 10 + 10));
        }
        done.extend(fold.finish());
        let words: Vec<_> = done.iter().map(|run| (run.kind, run.words(), run.guest.clone(), run.last)).collect();
        assert_eq!(
            words,
            [
                ('a', "entries 3..5 (0x7 to 0x9)".to_owned(), 30..50, 7),
                ('b', "entry 5 (0x1)".to_owned(), 50..60, 1),
                ('b', "entries 7..9 (all 0x1)".to_owned(), 70..90, 1),
            ]
        );
    }
}
