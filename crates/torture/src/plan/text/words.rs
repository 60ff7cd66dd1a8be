//! A line, word by word.

use std::fmt::Write as _;
use std::str::SplitWhitespace;

use blkproof_block::ByteRange;
use blkproof_block::graph;

use super::sizes::{number, size};

/// Letters of what a plan says that an error repeats: a line may be as long as the file.
const SHOWN_MAX: usize = 60;

/// The words of a line that are not read yet.
pub(super) struct Words<'a> {
    rest: SplitWhitespace<'a>,
    /// Commas between words are only there to be pretty.
    commas: bool,
}

impl<'a> Words<'a> {
    pub(super) fn new(line: &'a str) -> Self {
        Self { rest: line.split_whitespace(), commas: false }
    }

    /// From now on a comma may end a word.
    pub(super) fn commas(&mut self) {
        self.commas = true;
    }

    fn trim(&self, word: &'a str) -> &'a str {
        if self.commas { word.strip_suffix(',').unwrap_or(word) } else { word }
    }

    pub(super) fn peek(&self) -> Option<&'a str> {
        self.rest.clone().next().map(|word| self.trim(word))
    }

    /// The next word, or what is missing there.
    pub(super) fn next(&mut self, wanted: &str) -> Result<&'a str, String> {
        match self.rest.next() {
            Some(word) => Ok(self.trim(word)),
            None => Err(format!("the line ends where {wanted} should follow")),
        }
    }

    /// Takes the next word if it is this one.
    pub(super) fn take(&mut self, word: &str) -> bool {
        let there = self.peek() == Some(word);
        if there {
            self.rest.next();
        }
        there
    }

    /// Takes the next word if it begins like this; what follows in the word.
    pub(super) fn take_prefixed(&mut self, prefix: &str) -> Option<&'a str> {
        let rest = self.peek()?.strip_prefix(prefix)?;
        self.rest.next();
        Some(rest)
    }

    /// The next word has to be this one.
    pub(super) fn expect(&mut self, word: &str, example: &str) -> Result<(), String> {
        match self.next(&format!("'{word}', as in '{example}',"))? {
            there if there == word => Ok(()),
            there => Err(format!("'{}' stands where '{word}' should, as in '{example}'", shown(there))),
        }
    }

    /// Nothing may be left.
    pub(super) fn end(&mut self) -> Result<(), String> {
        match self.peek() {
            None => Ok(()),
            Some(word) => Err(format!("the line should end before '{}'", shown(word))),
        }
    }

    pub(super) fn number(&mut self, wanted: &str) -> Result<u64, String> {
        let word = self.next(wanted)?;
        number(word).ok_or_else(|| format!("'{}' is not {wanted}: write it as 17 or 0x11, below 2^64", shown(word)))
    }

    /// A number of at most 32 bits.
    pub(super) fn short(&mut self, wanted: &str) -> Result<u32, String> {
        let number = self.number(wanted)?;
        u32::try_from(number).map_err(|_| format!("{number} is too large for {wanted}: below 2^32"))
    }

    pub(super) fn size(&mut self, wanted: &str) -> Result<u64, String> {
        let word = self.next(wanted)?;
        size(word).ok_or_else(|| format!("'{}' is not {wanted}: write it as 4096, 0x1000 or 4K (M, G, T)", shown(word)))
    }

    /// `64K+4K`.
    pub(super) fn range(&mut self) -> Result<ByteRange, String> {
        let word = self.next("a range such as 64K+4K")?;
        let wrong = || format!("'{}' is no range: write offset and length, as in 64K+4K", shown(word));
        let (at, len) = word.split_once('+').ok_or_else(wrong)?;
        let (start, len) = size(at).zip(size(len)).ok_or_else(wrong)?;
        let end = start.checked_add(len).ok_or_else(|| format!("'{}' ends beyond 2^64", shown(word)))?;
        Ok(ByteRange { start, end })
    }
}

/// What is known by a name, or why this one is not.
pub(super) fn named<T: Copy>(what: &str, word: &str, names: &[(&str, T)]) -> Result<T, String> {
    names
        .iter()
        .find(|(name, _)| *name == word)
        .map(|(_, value)| *value)
        .ok_or_else(|| unknown(what, word, names.iter().map(|(name, _)| *name)))
}

/// A word nobody knows, and the nearest that somebody does, or all.
pub(super) fn unknown<'a>(what: &str, word: &str, names: impl Iterator<Item = &'a str> + Clone) -> String {
    let mut words = format!("'{}' is no {what}", shown(word));
    // Letters in the wrong order are two edits, too many for a short word, and yet the commonest mistake.
    let letters = |word: &str| {
        let mut letters: Vec<char> = word.chars().collect();
        letters.sort_unstable();
        letters
    };
    let swapped = || {
        let mixed = letters(word);
        names.clone().find(|name| letters(name) == mixed).map(str::to_owned)
    };
    let near = match word.len() <= SHOWN_MAX {
        true => swapped().or_else(|| graph::nearest(word, names.clone())),
        false => None,
    };
    // Writing to a string does not fail.
    let _ = match near {
        Some(near) => write!(words, "; did you mean '{near}'?"),
        None => write!(words, "; there are {}", names.collect::<Vec<_>>().join(", ")),
    };
    words
}

/// So much of a word as fits in a message.
pub(super) fn shown(word: &str) -> String {
    let mut text: String = word.chars().take(SHOWN_MAX).flat_map(char::escape_default).collect();
    if word.chars().nth(SHOWN_MAX).is_some() {
        text.push('\u{2026}');
    }
    text
}
