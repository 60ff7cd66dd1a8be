//! Plans as text: TOML that a person can read and edit, one line for each thing that is done or fails.
//!
//! ```toml
//! schema = "blkproof.plan/1"
//! seed = 42
//! crash = "explore 4096 states, depth 1, seed 7"
//! ops = [
//!     "1 write 64K+4K fua",
//!     "2 q1 read 1M+512 as 200+312 after 1",
//!     "3 reopen",
//!     "4 cut keep 3#2+4#1",
//! ]
//! faults = [
//!     "1#2 fails EIO after 512",
//!     "nth 17 refused ENOSPC, lasting",
//! ]
//!
//! [target]
//! name = "qcow2"
//! size = "64M"
//!
//! [target.options]
//! cluster_size = "4K"
//!
//! [schedule]
//! strategy = "random"
//! seed = 7
//! holds = ["1#2.effect until 2#1.done"]
//! ```
//!
//! What is not said is a plan's default: no faults, first in, first out, an honest disk. Reading is strict: a word
//! nobody knows is an error that names the line, the field, and the word that may have been meant.

mod crash;
mod document;
mod fault;
mod op;
mod print;
mod sizes;
mod words;

use std::fmt;
use std::str::FromStr;

use super::{CutPoint, CutState, FaultAt, FaultSpec, Op, Plan};

pub use self::print::SCHEMA;
pub use self::sizes::size_text;
use self::words::Words;

/// What is wrong with a plan, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlanError {
    /// The line of the text, from 1; `None` for a plan that is no text.
    pub line: Option<usize>,
    /// The field, as in `ops[3]`, from 0, or `disk.block`; empty for the whole.
    pub field: String,
    /// What is wrong, and what would be right.
    pub words: String,
}

impl fmt::Display for PlanError {
    /// `line 7: ops[3]: …`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.words)
    }
}

impl std::error::Error for PlanError {}

impl PlanError {
    pub(super) fn new(field: impl Into<String>, words: impl Into<String>) -> Self {
        Self { line: None, field: field.into(), words: words.into() }
    }
}

impl Plan {
    /// Reads a plan, strictly.
    ///
    /// # Errors
    /// The first thing that is wrong: syntax, words, numbers, or what [`Plan::validate`] refuses.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        document::plan(text)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print::plan(self, f)
    }
}

impl FromStr for Plan {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        Self::parse(text)
    }
}

/// Reads the whole of a line with `read`.
fn whole<T>(text: &str, read: impl FnOnce(&mut Words<'_>) -> Result<T, String>) -> Result<T, PlanError> {
    let mut words = Words::new(text);
    read(&mut words).and_then(|value| words.end().map(|()| value)).map_err(|words| PlanError::new("", words))
}

macro_rules! line {
    ($kind:ty, $read:path, $print:path) => {
        impl FromStr for $kind {
            type Err = PlanError;

            fn from_str(text: &str) -> Result<Self, PlanError> {
                whole(text, $read)
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $print(self, f)
            }
        }
    };
}

line!(Op, op::read, op::print);
line!(FaultSpec, fault::read, fault::print);
line!(FaultAt, fault::read_at, fault::print_at);
line!(CutState, crash::read_state, crash::print_state);
line!(CutPoint, crash::read_point, crash::print_point);
