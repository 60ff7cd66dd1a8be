//! Something wrong.

use std::fmt;

use blkproof_block::ByteRange;

use crate::finding::Signature;
use crate::plan::{CutPoint, CutState, OpId};

/// What a run found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What it is told apart by.
    pub signature: Signature,
    /// One sentence.
    pub text: String,
    /// The request that showed it.
    pub op: Option<OpId>,
    /// The guest's bytes that are wrong.
    pub range: Option<ByteRange>,
    /// What they may hold.
    pub allowed: Vec<String>,
    /// Moves taken until then.
    pub step: u64,
    /// The power cut after which it shows.
    pub cut: Option<(CutPoint, CutState)>,
}

impl Finding {
    /// One of this kind, seen in this phase.
    pub fn new(code: &str, phase: &str, text: impl Into<String>) -> Self {
        Self {
            signature: Signature {
                code: code.to_owned(),
                class: String::new(),
                phase: phase.to_owned(),
                site: String::new(),
            },
            text: text.into(),
            op: None,
            range: None,
            allowed: Vec::new(),
            step: 0,
            cut: None,
        }
    }

    /// Shown by this request.
    #[must_use]
    pub fn by(self, op: OpId) -> Self {
        Self { op: Some(op), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.signature.code, self.text)
    }
}
