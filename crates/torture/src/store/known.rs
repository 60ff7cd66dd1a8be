//! What is known already, and until when that is good enough.
//!
//! ```toml
//! schema = "blkproof.known/1"
//!
//! [[known]]
//! signature = "read:L2:reopen:"
//! target = "qcow2"            # of this target only; any, if left out
//! until = 2027-01-31          # its last day; from the next on it fails runs again
//! why = "issue 12; the fix waits for the next format version"
//! ```

use toml::{Table, Value};

use super::date::Date;
use crate::finding::Signature;

/// The schema's name.
const SCHEMA: &str = "blkproof.known/1";

/// A known issue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Issue {
    /// Findings with this signature are it.
    pub signature: Signature,
    /// But only those of this target; `None`: of any.
    pub target: Option<String>,
    /// The last day on which it fails no run.
    pub until: Date,
    /// Why it is left as it is.
    pub why: String,
}

/// Known issues.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// In the order of the file.
    pub issues: Vec<Issue>,
}

/// How a finding stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Nobody knew it.
    New,
    /// It is known, and fails no run.
    Known(Issue),
    /// It was known, for too long by now.
    Expired(Issue),
}

impl Standing {
    /// Whether a run with such a finding fails.
    pub fn fails(&self) -> bool {
        !matches!(self, Self::Known(_))
    }

    /// Its word in reports.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Known(_) => "known",
            Self::Expired(_) => "expired",
        }
    }
}

/// What is wrong with a file of known issues.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct KnownError(pub String);

impl Known {
    /// Reads the file, strictly.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, KnownError> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = text.get(..start).unwrap_or_default().matches('\n').count().saturating_add(1);
            KnownError(format!("line {line}: {}", error.message()))
        })?;
        let mut issues = Vec::new();
        for (key, value) in &table {
            match (key.as_str(), value) {
                ("schema", Value::String(schema)) if schema == SCHEMA => {}
                ("schema", other) => return Err(KnownError(format!("schema is {other}, not \"{SCHEMA}\""))),
                ("known", Value::Array(entries)) => {
                    for (index, entry) in entries.iter().enumerate() {
                        let issue = issue(entry).map_err(|words| KnownError(format!("known[{index}]: {words}")))?;
                        issues.push(issue);
                    }
                }
                ("known", _) => return Err(KnownError("known issues begin with [[known]]".to_owned())),
                (other, _) => {
                    return Err(KnownError(format!("nobody knows '{other}'; there are schema and [[known]]")));
                }
            }
        }
        if !table.contains_key("schema") {
            return Err(KnownError(format!("there is no schema = \"{SCHEMA}\"")));
        }
        Ok(Self { issues })
    }

    /// How a finding of this target stands on that day. Of several issues that are it, the one that lasts longest counts.
    pub fn standing(&self, target: &str, signature: &Signature, today: Date) -> Standing {
        let about = |issue: &&Issue| {
            issue.signature == *signature && issue.target.as_ref().is_none_or(|wanted| wanted == target)
        };
        match self.issues.iter().filter(about).max_by_key(|issue| issue.until) {
            None => Standing::New,
            Some(issue) if issue.until < today => Standing::Expired(issue.clone()),
            Some(issue) => Standing::Known(issue.clone()),
        }
    }

    /// Signatures with which a finding of this target fails no run on that day.
    pub fn signatures(&self, target: &str, today: Date) -> Vec<Signature> {
        let all = self.issues.iter().map(|issue| &issue.signature);
        all.filter(|signature| !self.standing(target, signature, today).fails()).cloned().collect()
    }
}

fn issue(entry: &Value) -> Result<Issue, String> {
    let table = entry.as_table().ok_or("this is no table")?;
    if let Some(other) = table.keys().find(|key| !["signature", "target", "until", "why"].contains(&key.as_str())) {
        return Err(format!("nobody knows '{other}'; there are signature, target, until and why"));
    }
    let text = |key: &str| match table.get(key) {
        Some(Value::String(text)) => Ok(Some(text.clone())),
        // A day without quotes.
        Some(Value::Datetime(moment)) => Ok(Some(moment.to_string())),
        Some(other) => Err(format!("{key} is {other}, which is no text")),
        None => Ok(None),
    };
    let wanted = |key: &str| text(key)?.ok_or_else(|| format!("there is no {key}"));
    Ok(Issue {
        signature: wanted("signature")?.parse().map_err(|error| format!("signature: {error}"))?,
        target: text("target")?,
        until: wanted("until")?.parse().map_err(|error| format!("until: {error}"))?,
        why: wanted("why")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "schema = \"blkproof.known/1\"\n[[known]]\nsignature = \"read::run:\"\ntarget = \"vdi\"\n\
                        until = 2027-01-31\nwhy = \"issue 12\"\n[[known]]\nsignature = \"I2:L2:recovery:\"\n\
                        until = \"2026-12-01\"\nwhy = \"x\"\n";

    fn day(text: &str) -> Date {
        text.parse().unwrap()
    }

    #[test]
    fn a_known_issue_is_known_until_its_day_is_over() {
        let known = Known::parse(FILE).unwrap();
        let read: Signature = "read::run:".parse().unwrap();
        let i2: Signature = "I2:L2:recovery:".parse().unwrap();
        for (target, signature, today, want) in [
            ("vdi", &read, "2027-01-31", "known"),
            ("vdi", &read, "2027-02-01", "expired"),
            ("qcow2", &read, "2027-01-31", "new"),
            ("qcow2", &i2, "2026-12-01", "known"),
            ("vdi", &i2, "2027-01-01", "expired"),
            ("vdi", &Signature::default(), "2026-01-01", "new"),
        ] {
            assert_eq!(known.standing(target, signature, day(today)).name(), want, "{target} {signature} {today}");
        }
        assert_eq!(known.signatures("vdi", day("2026-12-24")), [read]);
        let twice = format!("{FILE}[[known]]\nsignature = \"I2:L2:recovery:\"\nuntil = 2028-01-01\nwhy = \"longer\"\n");
        assert!(!Known::parse(&twice).unwrap().standing("vdi", &i2, day("2027-06-01")).fails());
    }

    #[test]
    fn mistakes_are_named() {
        let head = "schema = \"blkproof.known/1\"\n[[known]]\nsignature = \"a:b:c:d\"\n";
        for (text, words) in [
            (String::new(), "there is no schema"),
            ("schema = \"blkproof.known/2\"".to_owned(), "not \"blkproof.known/1\""),
            ("schema = ".to_owned(), "line 1"),
            ("schema = \"blkproof.known/1\"\nknwon = 1".to_owned(), "nobody knows 'knwon'"),
            ("schema = \"blkproof.known/1\"\nknown = 1".to_owned(), "[[known]]"),
            (head.to_owned(), "known[0]: there is no until"),
            (format!("{head}until = 2027-01-31"), "there is no why"),
            (format!("{head}until = 2027-01-31T00:00:00\nwhy = \"\""), "is no day"),
            (format!("{head}until = 5\nwhy = \"\""), "until is 5"),
            (format!("{head}until = 2027-01-31\nwhy = \"\"\nfor = 1"), "nobody knows 'for'"),
            (head.replace("a:b:c:d", "a"), "is no signature"),
        ] {
            let error = Known::parse(&text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
