//! What is wrong with a rule file, and where.

use std::fmt;

use blkproof_block::graph;

use super::NAME_MAX;

/// A place in a text, both from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The character in the line.
    pub column: usize,
}

/// One thing that is wrong, or that its author hardly meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mistake {
    /// Where it stands; `None` in JSON, which comes without lines.
    pub place: Option<Place>,
    /// The rule's id, or what stands for it.
    pub rule: Option<String>,
    /// The field, as in `on.lba`; empty for the whole.
    pub field: String,
    /// What is wrong, and what would be right.
    pub words: String,
}

impl fmt::Display for Mistake {
    /// `7:12: rule 'bad-50': on.lba: …`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = self.place {
            write!(f, "{}:{}: ", place.line, place.column)?;
        }
        if let Some(rule) = &self.rule {
            write!(f, "rule '{rule}': ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.words)
    }
}

/// Everything that is wrong with a file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct Mistakes {
    /// The file; empty for JSON.
    pub file: String,
    /// In the order of the file, at most [`Mistakes::MAX`].
    pub list: Vec<Mistake>,
    /// So many more were found.
    pub more: usize,
}

impl Mistakes {
    /// So many are kept.
    pub const MAX: usize = 100;

    /// One message per line, each with the file's name.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.list.iter().map(|mistake| in_file(&self.file, mistake)).collect();
        if self.more > 0 {
            lines.push(format!("{}: {} more", self.file, self.more));
        }
        lines
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().join("\n"))
    }
}

/// A message with the file's name in front: `rules.toml:7:12: …`.
pub fn in_file(file: &str, mistake: &Mistake) -> String {
    match (file.is_empty(), mistake.place) {
        (true, _) => mistake.to_string(),
        (false, Some(_)) => format!("{file}:{mistake}"),
        (false, None) => format!("{file}: {mistake}"),
    }
}

/// Letters of a message; what a file holds may be as long as the file.
const WORDS_MAX: usize = 600;

/// A message without control characters and without end.
pub(super) fn bounded(words: &str) -> String {
    let mut text = String::new();
    for (number, letter) in words.chars().enumerate() {
        if number >= WORDS_MAX {
            text.push('\u{2026}');
            break;
        }
        if letter.is_control() && letter != '\n' {
            text.extend(letter.escape_default());
        } else {
            text.push(letter);
        }
    }
    text
}

/// The word most like `word`. A word longer than any name is like none.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    if word.len() > NAME_MAX { None } else { graph::nearest(word, candidates) }
}
