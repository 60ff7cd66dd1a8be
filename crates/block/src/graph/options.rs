//! The option tree: what is left of every syntax once it is parsed.
//!
//! A driver *takes* the options it knows and calls [`Options::finish`]: whatever is left was a mistake, and is refused
//! by name, with the nearest option that the driver asked for.

use std::collections::{BTreeMap, BTreeSet};

/// Groups may be nested this deep; a deeper tree (from a hostile `json:` name inside an image) is refused.
pub(super) const DEPTH_MAX: usize = 32;

/// One option.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// A scalar, as text; JSON numbers and booleans become `4096`, `on`, `off`.
    Text(String),
    /// The options of a child node.
    Tree(Options),
}

/// Options by name. Knows where in the tree it stands, so that messages can say `file.image.filename`.
#[derive(Clone, Default, Debug)]
pub struct Options {
    path: String,
    entries: BTreeMap<String, Value>,
    asked: BTreeSet<&'static str>,
}

impl PartialEq for Options {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl Eq for Options {}

/// An option that can not be used, named with its full path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A value of the wrong shape.
    #[error("option '{option}' expects {expected}, got '{value}'")]
    Value {
        /// Full path of the option.
        option: String,
        /// What would have been right.
        expected: String,
        /// What was given.
        value: String,
    },
    /// An option nobody knows.
    #[error("unknown option '{option}' for driver '{driver}'{}", nearest.as_ref().map(|n| format!("; did you mean '{n}'?")).unwrap_or_default())]
    Unknown {
        /// Full path of the option.
        option: String,
        /// The driver that refused it.
        driver: String,
        /// The nearest option the driver knows.
        nearest: Option<String>,
    },
    /// An option that has to be there.
    #[error("driver '{driver}' needs the option '{option}'")]
    Missing {
        /// Full path of the option.
        option: String,
        /// The driver that needs it.
        driver: String,
    },
    /// A text that is no option tree.
    #[error("{0}")]
    Syntax(String),
}

impl Options {
    /// No options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a scalar, replacing what was there.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.entries.insert(key.to_owned(), Value::Text(value.into()));
        self
    }

    /// Sets a child, replacing what was there.
    #[must_use]
    pub fn with_child(mut self, key: &str, mut child: Self) -> Self {
        child.set_path(&self.full_name(key));
        self.entries.insert(key.to_owned(), Value::Tree(child));
        self
    }

    /// Adds the options of `other`; where both have one, this one's stays.
    ///
    /// For a filename that brings options along (`nbd://…`) beside options given one by one.
    #[must_use]
    pub fn or(mut self, other: Self) -> Self {
        for (key, value) in other.entries {
            self.entries.entry(key).or_insert(value);
        }
        let path = std::mem::take(&mut self.path);
        self.set_path(&path);
        self
    }

    /// The same down to the leaves: groups that both have are put together.
    ///
    /// QEMU's way with a `json:` name, which is no more than a list of options that ranks below those given beside it.
    #[must_use]
    pub fn joined(self, lower: Self) -> Self {
        let mut all = self.clone().or(lower.clone());
        for (key, ours) in self.entries {
            if let (Value::Tree(ours), Some(Value::Tree(theirs))) = (ours, lower.entries.get(&key)) {
                all = all.with_child(&key, ours.joined(theirs.clone()));
            }
        }
        all
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Looks at a scalar without taking it.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.entries.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Every option that is left, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Takes a scalar.
    ///
    /// # Errors
    /// If the option is a tree.
    pub fn take_text(&mut self, key: &'static str) -> Result<Option<String>, OptionError> {
        self.asked.insert(key);
        match self.entries.remove(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(Value::Tree(_)) => Err(self.bad(key, "a value", "a group of options")),
        }
    }

    /// Takes a scalar that has to be there.
    ///
    /// # Errors
    /// If it is missing or a tree.
    pub fn need_text(&mut self, key: &'static str, driver: &str) -> Result<String, OptionError> {
        self.take_text(key)?
            .ok_or_else(|| OptionError::Missing { option: self.full_name(key), driver: driver.to_owned() })
    }

    /// Takes `on` or `off` (also `true`/`false`, `yes`/`no`).
    ///
    /// # Errors
    /// On any other word.
    pub fn take_bool(&mut self, key: &'static str) -> Result<Option<bool>, OptionError> {
        self.take_with(key, "'on' or 'off'", |text| match text {
            "on" | "true" | "yes" => Some(true),
            "off" | "false" | "no" => Some(false),
            _ => None,
        })
    }

    /// Takes a whole number, decimal or `0x…`.
    ///
    /// # Errors
    /// On anything else.
    pub fn take_u64(&mut self, key: &'static str) -> Result<Option<u64>, OptionError> {
        self.take_with(key, "a number", |text| match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        })
    }

    /// Takes a size: a number with an optional suffix b, k, M, G, T, P or E (powers of 1024; fractions allowed).
    ///
    /// # Errors
    /// On anything else, and on a size of 2^64 or more.
    pub fn take_size(&mut self, key: &'static str) -> Result<Option<u64>, OptionError> {
        self.take_with(key, "a size such as 65536, 64k or 1.5G", crate::graph::parse_size)
    }

    /// Takes one of several words.
    ///
    /// # Errors
    /// On any other word; the message lists the words.
    pub fn take_choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Result<Option<T>, OptionError> {
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("'{word}'")).collect();
        self.take_with(key, &format!("one of {}", words.join(", ")), |text| {
            choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice)
        })
    }

    /// Takes the options of a child node. A scalar in its place is that node's filename.
    pub fn take_child(&mut self, key: &'static str) -> Option<Self> {
        self.asked.insert(key);
        let path = self.full_name(key);
        match self.entries.remove(key)? {
            Value::Tree(mut tree) => {
                tree.set_path(&path);
                Some(tree)
            }
            Value::Text(name) => {
                let mut tree = Self::new().with("filename", name);
                tree.set_path(&path);
                Some(tree)
            }
        }
    }

    /// Takes a list of groups, as in `inject-error.0.event=…,inject-error.1.event=…` or a JSON array.
    ///
    /// A single group may stand without its number. An absent list is empty.
    ///
    /// # Errors
    /// If the option is a scalar, or numbers are missing.
    pub fn take_list(&mut self, key: &'static str) -> Result<Vec<Self>, OptionError> {
        self.asked.insert(key);
        let mut tree = match self.entries.remove(key) {
            None => return Ok(Vec::new()),
            Some(Value::Text(text)) => return Err(self.bad(key, "a list of groups of options", &text)),
            Some(Value::Tree(tree)) => tree,
        };
        tree.set_path(&self.full_name(key));
        if tree.entries.keys().any(|name| name.parse::<usize>().is_err()) {
            return Ok(vec![tree]);
        }
        let mut list = Vec::new();
        for index in 0..tree.entries.len() {
            match tree.entries.remove(&index.to_string()) {
                Some(Value::Tree(item)) => list.push(item),
                Some(Value::Text(text)) => return Err(tree.bad(&index.to_string(), "a group of options", &text)),
                None => return Err(self.bad(key, "a list numbered from 0 without gaps", "one with a gap")),
            }
        }
        Ok(list)
    }

    /// The full name of an option of this group, for messages: `file.image.filename`.
    pub fn full_name(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Where this group stands in the whole tree: `file.image`; empty at the top.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Refuses whatever was not taken.
    ///
    /// # Errors
    /// [`OptionError::Unknown`], with the nearest option that was asked for.
    pub fn finish(self, driver: &str) -> Result<(), OptionError> {
        let Some(key) = self.entries.keys().next() else { return Ok(()) };
        Err(OptionError::Unknown {
            option: self.full_name(key),
            driver: driver.to_owned(),
            nearest: crate::graph::nearest(key, self.asked.iter().copied()),
        })
    }

    fn take_with<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, OptionError> {
        let Some(text) = self.take_text(key)? else { return Ok(None) };
        match parse(&text) {
            Some(value) => Ok(Some(value)),
            None => Err(self.bad(key, expected, &text)),
        }
    }

    fn bad(&self, key: &str, expected: &str, value: &str) -> OptionError {
        OptionError::Value { option: self.full_name(key), expected: expected.to_owned(), value: value.to_owned() }
    }

    /// Looks at a value, a tree included, without taking it.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// Takes a value whatever its shape.
    pub(super) fn remove(&mut self, key: &'static str) -> Option<Value> {
        self.asked.insert(key);
        self.entries.remove(key)
    }

    /// The group of that name, made if there is none; `None` if there is a scalar.
    pub(super) fn group_mut(&mut self, key: &str) -> Option<&mut Self> {
        match self.entries.entry(key.to_owned()).or_insert_with(|| Value::Tree(Self::new())) {
            Value::Tree(tree) => Some(tree),
            Value::Text(_) => None,
        }
    }

    /// Sets a value or adds to a group; refuses to make a group of a scalar or the other way round.
    pub(super) fn put(&mut self, key: &str, value: Value) -> Result<(), ()> {
        match (self.entries.get_mut(key), value) {
            (None, value) => {
                self.entries.insert(key.to_owned(), value);
            }
            (Some(Value::Text(old)), Value::Text(new)) => *old = new,
            (Some(Value::Tree(old)), Value::Tree(new)) => {
                for (key, value) in new.entries {
                    old.put(&key, value)?;
                }
            }
            _ => return Err(()),
        }
        Ok(())
    }

    /// Levels of groups, this one included.
    pub(super) fn depth(&self) -> usize {
        let below = self.entries.values().map(|value| match value {
            Value::Tree(tree) => tree.depth(),
            Value::Text(_) => 0,
        });
        below.max().unwrap_or(0).saturating_add(1)
    }

    /// Says where in the whole tree this group stands, for itself and everything in it.
    pub(super) fn set_path(&mut self, path: &str) {
        path.clone_into(&mut self.path);
        for (key, value) in &mut self.entries {
            if let Value::Tree(tree) = value {
                tree.set_path(&join(path, key));
            }
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
