//! What a campaign against one target came to.

use super::{Case, Coverage, Severity};

/// One finding among others.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// The finding.
    pub case: Case<'a>,
    /// Why it is no failure: somebody knows of it, until when, and why it stays; in words.
    pub known: Option<String>,
}

/// A campaign against one target.
#[derive(Clone, Debug)]
pub struct Suite<'a> {
    /// The target's name.
    pub target: &'a str,
    /// The profile's name.
    pub profile: &'a str,
    /// Seeds that were run.
    pub seeds: u64,
    /// Client requests of all of them.
    pub ops: u64,
    /// How long it took.
    pub seconds: f64,
    /// What was found.
    pub entries: Vec<Entry<'a>>,
    /// What was tested; `None` if nobody looked.
    pub coverage: Option<&'a Coverage>,
}

impl Suite<'_> {
    /// Findings that nobody knew of.
    #[must_use]
    pub fn failures(&self) -> usize {
        self.entries.iter().filter(|entry| entry.known.is_none()).count()
    }

    /// Its name where suites are listed: `vdi/quick`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.target, self.profile)
    }
}

/// All findings of all suites: those that fail before those that are known, the worst first, else in their order.
#[must_use]
pub(super) fn worst_first<'s, 'a>(suites: &'s [Suite<'a>]) -> Vec<&'s Entry<'a>> {
    let mut all: Vec<_> = suites.iter().flat_map(|suite| &suite.entries).collect();
    let rank = |entry: &&Entry<'_>| -> (bool, Severity) { (entry.known.is_some(), entry.case.rule().severity) };
    all.sort_by_key(rank);
    all
}
