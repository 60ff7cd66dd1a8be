//! Colour, where there is any. Meaning never hangs on it: without it the same words stand there.

use std::fmt;

/// Whether to use colour, decided by whoever knows the terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Escape sequences may be written.
    pub colour: bool,
}

/// A text in a colour.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Painted<'a> {
    text: &'a str,
    code: &'static str,
}

impl fmt::Display for Painted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.code.is_empty() {
            return f.write_str(self.text);
        }
        write!(f, "\x1b[{}m{}\x1b[0m", self.code, self.text)
    }
}

impl Style {
    fn paint<'a>(self, text: &'a str, code: &'static str) -> Painted<'a> {
        Painted { text, code: if self.colour { code } else { "" } }
    }

    pub(crate) fn good(self, text: &str) -> Painted<'_> {
        self.paint(text, "1;32")
    }

    pub(crate) fn bad(self, text: &str) -> Painted<'_> {
        self.paint(text, "1;31")
    }

    pub(crate) fn fair(self, text: &str) -> Painted<'_> {
        self.paint(text, "1;33")
    }

    pub(crate) fn strong(self, text: &str) -> Painted<'_> {
        self.paint(text, "1")
    }

    pub(crate) fn dim(self, text: &str) -> Painted<'_> {
        self.paint(text, "2")
    }
}
