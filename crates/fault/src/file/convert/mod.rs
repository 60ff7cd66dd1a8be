//! Rules out of the files of other programs.
//!
//! What the other side says and rules can not say, or say with another meaning, is *lost*: it is told, and stands as a
//! comment in the file that is written. Nothing is lost without a word.

mod blkdebug;
mod ddrescue;
mod dm_dust;
mod nbdkit;
mod scsi_debug;

use blkproof_block::{Errno, RuleId};

use super::mistake::bounded;
use super::{FILE_MAX, Notes, toml_with};
use crate::rule::{Action, Done, Failure, Life, On, Rule, RuleSet, Then, Until};

/// A program whose settings are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// QEMU's blkdebug: its configuration file.
    Blkdebug,
    /// GNU ddrescue: a map file.
    Ddrescue,
    /// Linux' dm-dust: a list of bad blocks, or the messages and the table line that make it.
    DmDust,
    /// nbdkit's error filter: its parameters.
    NbdkitError,
    /// Linux' scsi_debug: its module parameters, or lines for its `error` file.
    ScsiDebug,
}

impl Origin {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Blkdebug, Self::Ddrescue, Self::DmDust, Self::NbdkitError, Self::ScsiDebug];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blkdebug => "blkdebug",
            Self::Ddrescue => "ddrescue",
            Self::DmDust => "dm-dust",
            Self::NbdkitError => "nbdkit-error",
            Self::ScsiDebug => "scsi_debug",
        }
    }

    /// The one of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|origin| origin.name() == name)
    }
}

/// What the other side does not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Bytes of a sector; the other side's own, else 512.
    pub lba_size: Option<u32>,
    /// The seed of what is written.
    pub seed: u64,
    /// ddrescue: areas that were not read, though not known to be bad, are bad too.
    pub untried_bad: bool,
}

/// What became of it.
#[derive(Clone, PartialEq, Debug)]
pub struct Converted {
    /// The rules.
    pub rules: RuleSet,
    /// Where they come from, and what is lost.
    pub notes: Notes,
    /// What is lost.
    pub lost: Vec<String>,
}

impl Converted {
    /// As a rule file.
    pub fn text(&self) -> String {
        toml_with(&self.rules, &self.notes)
    }
}

/// A text that is not what it was said to be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{file}:{line}: {words}")]
pub struct Unreadable {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub words: String,
}

/// Reads `text`, the content of `file`.
///
/// # Errors
/// The first mistake.
pub fn convert(origin: Origin, file: &str, text: &str, options: &Options) -> Result<Converted, Unreadable> {
    let mut draft = Draft {
        rules: RuleSet { seed: options.seed, lba_size: options.lba_size.unwrap_or(512), ..RuleSet::default() },
        notes: Notes::default(),
        lost: Vec::new(),
    };
    draft.notes.head.push(format!("From {} ({}).", bounded(file), origin.name()));
    let read = if text.len() > FILE_MAX {
        Err((1, format!("the file has {} bytes; {FILE_MAX} at most are read", text.len())))
    } else {
        match origin {
            Origin::Blkdebug => blkdebug::read(file, text, &mut draft),
            Origin::Ddrescue => ddrescue::read(text, options, &mut draft),
            Origin::DmDust => dm_dust::read(text, options, &mut draft),
            Origin::NbdkitError => nbdkit::read(text, &mut draft),
            Origin::ScsiDebug => scsi_debug::read(text, options, &mut draft),
        }
    };
    read.map_err(|(line, words)| Unreadable { file: file.to_owned(), line, words: bounded(&words) })?;
    Ok(draft.finish())
}

/// A line of a text, and what is wrong with it.
type Wrong = (usize, String);

struct Draft {
    rules: RuleSet,
    notes: Notes,
    lost: Vec<String>,
}

impl Draft {
    /// A rule with comments of its own.
    fn rule(&mut self, id: impl Into<String>, on: On, action: Action, notes: Vec<String>) -> &mut Rule {
        let id = RuleId(id.into().into_boxed_str());
        self.notes.rules.push(notes);
        let at = self.rules.rules.len();
        self.rules.rules.push(Rule { id, on, action, then: Then::default(), life: None });
        // Just pushed.
        #[allow(clippy::indexing_slicing, reason = "the rule pushed above")]
        &mut self.rules.rules[at]
    }

    fn lost(&mut self, words: impl Into<String>) {
        let words = words.into();
        if !self.lost.contains(&words) {
            self.lost.push(words);
        }
    }

    fn note(&mut self, words: impl Into<String>) {
        self.notes.head.push(words.into());
    }

    fn finish(mut self) -> Converted {
        for words in &self.lost {
            self.notes.head.push(format!("LOST: {}", bounded(words)));
        }
        Converted { rules: self.rules, notes: self.notes, lost: self.lost }
    }
}

/// Fails before anything is done.
const fn refusal(error: Failure) -> Action {
    Action::Fail { error, done: Done::None, wait: None }
}

const EIO: Failure = Failure::errno(Errno::IO);

/// Bad until rewritten.
fn until_rewritten() -> Life {
    Life { until: Until::Rewrite, ..Life::default() }
}

/// A number as C and the kernel write it: decimal, `0x…`, octal with a leading 0; with a sign.
fn c_number(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (digits, radix) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (digits, 8),
        None => (digits, 10),
    };
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    let number = i128::from_str_radix(digits, radix).ok()?;
    if negative { number.checked_neg() } else { Some(number) }
}

/// The same where nothing below 0 is meant.
fn c_unsigned(text: &str) -> Option<u64> {
    c_number(text).and_then(|number| u64::try_from(number).ok())
}
