//! Failures, merged: a million of one kind are one line.

use blkproof_block::{DeviceError, Errno, IoError};

use crate::request::Operation;
use crate::rule::Failure;

/// Kinds of failures kept; further ones are only counted.
pub const ERRORS_MAX: usize = 64;

/// Failures of one kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merged {
    /// What failed.
    pub operation: Operation,
    /// With which number.
    pub errno: Errno,
    /// With which status of a device.
    pub device: Option<DeviceError>,
    /// By which rule; `None` for a genuine failure.
    pub rule: Option<Box<str>>,
    /// How often.
    pub count: u64,
    /// Where it struck first: the first bad byte if that is known, else where the request began.
    pub first_at: u64,
    /// Where it struck last.
    pub last_at: u64,
    /// The first one's words, if it had any.
    pub detail: Option<Box<str>>,
}

impl Merged {
    /// The error as rule files write it: `EIO`, `03/1101`, `nvme:2/81`.
    pub fn name(&self) -> String {
        Failure { errno: self.errno, device: self.device }.to_string()
    }
}

#[derive(Debug, Default)]
pub(super) struct Errors {
    kinds: Vec<Merged>,
    more: u64,
}

impl Errors {
    pub(super) fn count(&mut self, operation: Operation, at: u64, error: &IoError) {
        let place = error.first_bad.map_or(at, |bad| bad.0);
        let rule = error.injected_by.as_ref().map(|rule| &rule.0);
        let same = |kind: &&mut Merged| {
            (kind.operation, kind.errno, kind.device) == (operation, error.errno, error.device)
                && kind.rule.as_ref() == rule
        };
        if let Some(kind) = self.kinds.iter_mut().find(same) {
            kind.count += 1;
            kind.last_at = place;
        } else if self.kinds.len() < ERRORS_MAX {
            self.kinds.push(Merged {
                operation,
                errno: error.errno,
                device: error.device,
                rule: rule.cloned(),
                count: 1,
                first_at: place,
                last_at: place,
                detail: error.detail.clone(),
            });
        } else {
            self.more += 1;
        }
    }

    /// The most frequent first.
    pub(super) fn snapshot(&self) -> (Vec<Merged>, u64) {
        let mut kinds = self.kinds.clone();
        kinds.sort_by_key(|kind| std::cmp::Reverse(kind.count));
        (kinds, self.more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_failures_are_one_and_the_list_is_bounded() {
        let mut errors = Errors::default();
        for number in 0..10_000_u64 {
            errors.count(Operation::Read, number, &IoError::new(Errno::IO).detail("bad"));
        }
        errors.count(Operation::Write, 5, &IoError::new(Errno::IO).at(7));
        let (kinds, more) = errors.snapshot();
        assert_eq!((kinds.len(), more), (2, 0));
        assert_eq!((kinds[0].count, kinds[0].first_at, kinds[0].last_at), (10_000, 0, 9_999));
        assert_eq!((kinds[1].operation, kinds[1].first_at), (Operation::Write, 7));
        for errno in 0..1000 {
            errors.count(Operation::Flush, 0, &IoError::new(Errno(errno)));
        }
        let (kinds, more) = errors.snapshot();
        assert_eq!((kinds.len(), more), (ERRORS_MAX, 1000 - 62));
    }
}
