//! Rules as commands carry them: the fields of rule files, in JSON.

use blkproof_fault::rule::Rule;
use serde_json::Value;

use crate::error::Error;

/// Reads one rule. Without an id it gets `id`. Beside it: what its author hardly meant.
pub(super) fn read(value: &Value, lba_size: u32, id: &str) -> Result<(Rule, Vec<String>), Error> {
    let _ = (value, lba_size, id);
    Err(Error::generic("rules can not be read yet"))
}

/// A rule as [`read`] reads it.
pub(super) fn show(rule: &Rule) -> Value {
    Value::String(rule.id.to_string())
}
