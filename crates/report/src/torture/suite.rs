//! What a campaign against one target came to.

use blkproof_torture::run::Stats;
use blkproof_torture::store::Standing;

use super::{Case, Coverage, Severity};

/// One finding among others.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// The finding.
    pub case: Case<'a>,
    /// Whether somebody knows of it, until when, and why it stays.
    pub standing: Standing,
}

impl<'a> Entry<'a> {
    /// One that nobody knew of.
    #[must_use]
    pub fn new(case: Case<'a>) -> Self {
        Self { case, standing: Standing::New }
    }

    /// What is known of it, in words.
    #[must_use]
    pub fn known_words(&self) -> Option<String> {
        known_words(&self.standing)
    }
}

/// What is known of a finding, in words; `None` if nothing is.
#[must_use]
pub fn known_words(standing: &Standing) -> Option<String> {
    match standing {
        Standing::New => None,
        Standing::Known(issue) => Some(format!("known until {}: {}", issue.until, issue.why)),
        Standing::Expired(issue) => {
            Some(format!("known, but only until {}, which is over: {}", issue.until, issue.why))
        }
    }
}

/// What ended a campaign.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// All seeds were run.
    Runs,
    /// Its time was over.
    Time,
    /// Enough was found.
    Findings,
    /// Somebody stopped it.
    Signal,
}

impl Ended {
    /// For programs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::Time => "time",
            Self::Findings => "findings",
            Self::Signal => "signal",
        }
    }

    /// For people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Runs => "all seeds were run",
            Self::Time => "its time was over",
            Self::Findings => "enough was found",
            Self::Signal => "stopped by a signal",
        }
    }
}

/// A campaign against one target.
#[derive(Clone, Debug)]
pub struct Suite<'a> {
    /// The target's name.
    pub target: &'a str,
    /// The profile's name.
    pub profile: &'a str,
    /// The first seed; `None`: this is no campaign, but a plan that was run.
    pub first: Option<u64>,
    /// Seeds that were run, or plans.
    pub seeds: u64,
    /// What was done by all of them.
    pub stats: Stats,
    /// What ended it.
    pub ended: Ended,
    /// How long it took, if somebody looked.
    pub seconds: Option<f64>,
    /// What was found.
    pub entries: Vec<Entry<'a>>,
    /// What was tested; `None` if nobody looked.
    pub coverage: Option<&'a Coverage>,
}

impl Suite<'_> {
    /// Findings that fail a run: nobody knows of them, or their day is over.
    #[must_use]
    pub fn failures(&self) -> usize {
        self.entries.iter().filter(|entry| entry.standing.fails()).count()
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
    let rank = |entry: &&Entry<'_>| -> (bool, Severity) { (!entry.standing.fails(), entry.case.severity()) };
    all.sort_by_key(rank);
    all
}
