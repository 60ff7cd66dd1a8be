//! Findings: what is wrong, where, and with what confidence; and the sink that folds and bounds them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use crate::code::{Code, Severity};
use crate::map::Owner;

/// How sure a judgement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// One explanation among several.
    Possible,
    /// The explanation that fits best.
    Likely,
    /// It follows from the bytes.
    Certain,
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Possible => "possible",
            Self::Likely => "likely",
            Self::Certain => "certain",
        })
    }
}

/// One thing seen, or a run of equal ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its kind.
    pub code: &'static Code,
    /// The code's severity, unless circumstances change it (counts of a dirty image).
    pub severity: Severity,
    /// How sure it is.
    pub confidence: Confidence,
    /// Bytes of the image file it is about; the place to look at first. Half-open, may be empty.
    pub host: Vec<Range<u64>>,
    /// Bytes of the guest's disk it concerns. Half-open, may be empty.
    pub guest: Vec<Range<u64>>,
    /// How many single errors this is (entries, clusters).
    pub count: u64,
    /// One line: the thing, the place, the values. Lower case, no full stop.
    pub what: String,
    /// Everybody who claims the place, where that is the point of the finding.
    pub owners: Vec<Owner>,
}

impl Finding {
    /// A certain finding of this kind, of one error, without a place yet.
    #[must_use]
    pub fn new(code: &'static Code, what: impl Into<String>) -> Self {
        Self {
            code,
            severity: code.severity,
            confidence: Confidence::Certain,
            host: Vec::new(),
            guest: Vec::new(),
            count: 1,
            what: what.into(),
            owners: Vec::new(),
        }
    }

    /// Adds a place in the image file.
    #[must_use]
    pub fn host(mut self, range: Range<u64>) -> Self {
        self.host.push(range);
        self
    }

    /// Adds a place on the guest's disk.
    #[must_use]
    pub fn guest(mut self, range: Range<u64>) -> Self {
        self.guest.push(range);
        self
    }

    /// How many single errors it stands for.
    #[must_use]
    pub fn count(mut self, count: u64) -> Self {
        self.count = count;
        self
    }

    /// Another severity than the code's.
    #[must_use]
    pub fn severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    /// Less than certain.
    #[must_use]
    pub fn confidence(mut self, confidence: Confidence) -> Self {
        self.confidence = confidence;
        self
    }

    /// Adds one who claims the place.
    #[must_use]
    pub fn owner(mut self, owner: Owner) -> Self {
        self.owners.push(owner);
        self
    }
}

/// Totals of one code at one severity, complete also where single findings were left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Findings (runs count once).
    pub findings: u64,
    /// Single errors.
    pub errors: u64,
}

/// Order in which findings are kept and shown: by place in the file, then by code.
type Key = (u64, u64, &'static str, u64);

/// Collects findings: counts all, keeps the first `max` in the order of their place in the file.
///
/// What is kept does not depend on the order of adding, so threads may collect apart and [`merge`](Self::merge).
#[derive(Debug)]
pub struct Findings {
    kept: BTreeMap<Key, Finding>,
    max: usize,
    sums: BTreeMap<(&'static str, Severity), Sum>,
    serial: u64,
}

impl Findings {
    /// Keeps at most `max` single findings.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { kept: BTreeMap::new(), max, sums: BTreeMap::new(), serial: 0 }
    }

    /// Takes one finding.
    pub fn add(&mut self, finding: Finding) {
        let sum = self.sums.entry((finding.code.name, finding.severity)).or_default();
        sum.findings = sum.findings.saturating_add(1);
        sum.errors = sum.errors.saturating_add(finding.count);
        self.keep(finding);
    }

    fn keep(&mut self, finding: Finding) {
        let host = finding.host.first().map_or(u64::MAX, |range| range.start);
        let guest = finding.guest.first().map_or(u64::MAX, |range| range.start);
        let key = (host, guest, finding.code.name, self.serial);
        if self.kept.len() >= self.max && self.kept.last_key_value().is_none_or(|(last, _)| *last <= key) {
            return;
        }
        self.serial = self.serial.wrapping_add(1);
        self.kept.insert(key, finding);
        if self.kept.len() > self.max {
            self.kept.pop_last();
        }
    }

    /// Takes all of another collection.
    pub fn merge(&mut self, other: Self) {
        for (key, more) in other.sums {
            let sum = self.sums.entry(key).or_default();
            sum.findings = sum.findings.saturating_add(more.findings);
            sum.errors = sum.errors.saturating_add(more.errors);
        }
        for finding in other.kept.into_values() {
            self.keep(finding);
        }
    }

    /// Changes those kept, in order; what they are sorted and counted by stays as it was when they were added.
    pub fn for_each_mut(&mut self, change: impl FnMut(&mut Finding)) {
        self.kept.values_mut().for_each(change);
    }

    /// All of one code become another of the same severity: what is known only at the end changes what they mean.
    pub fn recode(&mut self, from: &'static Code, to: &'static Code) {
        let keys: Vec<_> = self.sums.keys().filter(|(name, _)| *name == from.name).copied().collect();
        for (name, severity) in keys {
            let Some(sum) = self.sums.remove(&(name, severity)) else { continue };
            let all = self.sums.entry((to.name, severity)).or_default();
            all.findings = all.findings.saturating_add(sum.findings);
            all.errors = all.errors.saturating_add(sum.errors);
        }
        let kept = std::mem::take(&mut self.kept);
        for ((host, guest, name, serial), mut finding) in kept {
            let name = if name == from.name { to.name } else { name };
            if finding.code == from {
                finding.code = to;
            }
            self.kept.insert((host, guest, name, serial), finding);
        }
    }

    /// Single errors of a severity.
    #[must_use]
    pub fn errors(&self, severity: Severity) -> u64 {
        self.sums.iter().filter(|((_, of), _)| *of == severity).fold(0, |all, (_, sum)| all.saturating_add(sum.errors))
    }

    /// Single errors of a code, whatever the severity.
    #[must_use]
    pub fn errors_of(&self, code: &Code) -> u64 {
        self.sums
            .iter()
            .filter(|((name, _), _)| *name == code.name)
            .fold(0, |all, (_, sum)| all.saturating_add(sum.errors))
    }

    /// Totals by code name and severity.
    pub fn sums(&self) -> impl Iterator<Item = (&'static str, Severity, Sum)> + '_ {
        self.sums.iter().map(|((name, severity), sum)| (*name, *severity, *sum))
    }

    /// The findings kept, in the order of their place in the file.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.kept.values()
    }

    /// The findings kept, in the order of their place in the file.
    #[must_use]
    pub fn into_kept(self) -> Vec<Finding> {
        self.kept.into_values().collect()
    }
}
