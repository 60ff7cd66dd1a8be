//! Rules as commands carry them: the fields of rule files, in JSON.

use blkproof_fault::file::{self, Mistake};
use blkproof_fault::rule::Rule;
use serde_json::Value;

use crate::error::Error;

/// Mistakes told at once; whoever mends these sees the others.
const TOLD: usize = 8;

/// Reads one rule. Without an id it gets `id`. Beside it: what its author hardly meant.
pub(super) fn read(value: &Value, lba_size: u32, id: &str) -> Result<(Rule, Vec<Mistake>), Error> {
    match file::read_rule(value, lba_size, id) {
        Ok(read) => Ok(read),
        Err(mistakes) => {
            let mut words: Vec<String> = mistakes.list.iter().take(TOLD).map(ToString::to_string).collect();
            let more = mistakes.list.len().saturating_sub(words.len()).saturating_add(mistakes.more);
            if more > 0 {
                words.push(format!("and {more} more"));
            }
            Err(Error::generic(words.join("; ")))
        }
    }
}

/// A rule as [`read`] reads it.
pub(super) fn show(rule: &Rule, lba_size: u32) -> Value {
    file::json(rule, lba_size)
}
