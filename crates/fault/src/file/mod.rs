//! Rules as people write them: read with every mistake named, written back, explained, and converted from other
//! programs.
//!
//! A file is TOML; control sends single rules of the same shape in JSON. `crates/fault/schema/rules-1.json` is the
//! schema of both. A file is validated whole: either there is a [`RuleSet`], or a list of [`Mistakes`] with line and
//! field.
//!
//! ```
//! let text = r#"
//! lba-size = 512
//!
//! [[rule]]
//! id = "bad-50"
//! on = { op = "read", lba = 50 }
//! do = { fail = "03/1101" }
//! life = "until-rewritten"
//! "#;
//! let read = blkproof_fault::file::read("lab.toml", text).unwrap();
//! assert_eq!(read.rules.rules.len(), 1);
//!
//! let mistakes = blkproof_fault::file::read("lab.toml", &text.replace("lba =", "lbas =")).unwrap_err();
//! assert_eq!(mistakes.to_string(), "lab.toml:6:21: rule 'bad-50': on.lbas: no such field; did you mean 'lba'?");
//! ```
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

pub mod convert;
pub mod fields;
pub mod lab;
pub mod preset;
pub mod sense;

mod explain;
mod mistake;
mod read;
mod tree;
mod words;
mod write;

use crate::rule::{Rule, RuleSet};

pub use self::explain::{explain, explain_set};
pub use self::mistake::{Mistake, Mistakes, Place, in_file};
pub use self::words::{duration_text, share_text};
pub use self::write::{Notes, json, toml, toml_with};
pub use crate::rule::RULES_MAX;

/// The published schema of rule files and of the rules that control takes.
pub const SCHEMA: &str = include_str!("../../schema/rules-1.json");

/// Bytes of the longest file that is read.
pub const FILE_MAX: usize = 4 << 20;
/// Ranges of a rule.
pub const RANGES_MAX: usize = 100_000;
/// Letters of an id, a state, a tag or a node name.
pub const NAME_MAX: usize = 64;

/// A file that may be used.
#[derive(Clone, PartialEq, Debug)]
pub struct Read {
    /// What it says.
    pub rules: RuleSet,
    /// What its author hardly meant.
    pub warnings: Vec<Mistake>,
}

/// Reads `text`, the content of `file`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read(file: &str, text: &str) -> Result<Read, Mistakes> {
    read::file(file, text)
}

/// One rule in JSON, for rules with sectors of `lba_size` bytes. Without an id it gets `id`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_rule(value: &serde_json::Value, lba_size: u32, id: &str) -> Result<(Rule, Vec<Mistake>), Mistakes> {
    read::rule(value, lba_size, id)
}
