//! A source that takes note of what is read of another.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rangemap::RangeSet;

use crate::source::{Source, Stamp};

/// Reads pass through; which bytes they asked for is kept.
pub(super) struct Recorder<'a> {
    image: &'a dyn Source,
    /// `None` once there are too many pieces: then everything counts as read.
    reads: Mutex<Option<RangeSet<u64>>>,
    most: usize,
}

impl<'a> Recorder<'a> {
    /// Keeps up to `most` pieces apart.
    pub(super) fn new(image: &'a dyn Source, most: usize) -> Self {
        Self { image, reads: Mutex::new(Some(RangeSet::new())), most }
    }

    /// What was read of `len` bytes.
    pub(super) fn into_reads(self, len: u64) -> RangeSet<u64> {
        let whole: RangeSet<u64> = (len > 0).then_some(0..len).into_iter().collect();
        let reads = self.reads.into_inner().unwrap_or_else(PoisonError::into_inner);
        match reads {
            Some(reads) => reads.intersection(&whole).collect(),
            None => whole,
        }
    }
}

impl Source for Recorder<'_> {
    fn name(&self) -> String {
        self.image.name()
    }

    fn len(&self) -> u64 {
        self.image.len()
    }

    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        if !buf.is_empty() {
            let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(set) = &mut *reads {
                set.insert(at..at.saturating_add(buf.len() as u64));
                if set.len() > self.most {
                    *reads = None;
                }
            }
        }
        self.image.read_at(at, buf)
    }

    fn next_data(&self, at: u64) -> Option<Range<u64>> {
        self.image.next_data(at)
    }

    fn stamp(&self) -> Option<Stamp> {
        self.image.stamp()
    }

    fn writer(&self) -> Option<String> {
        self.image.writer()
    }
}
