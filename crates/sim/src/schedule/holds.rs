//! Moves held back by name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use crate::key::{KeyError, MoveKey};

/// `what` is not taken before `until` was. Written `7#2.effect until 9#1.done`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Hold {
    /// The move held back.
    pub what: MoveKey,
    /// The one that has to come first.
    pub until: MoveKey,
}

/// A text that is no hold.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HoldError {
    /// The word between the two moves is missing.
    #[error("'{0}' is no hold; one looks like this: 7#2.effect until 9#1.done")]
    Syntax(String),
    /// One of the two is no move.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} until {}", self.what, self.until)
    }
}

impl FromStr for Hold {
    type Err = HoldError;

    fn from_str(text: &str) -> Result<Self, HoldError> {
        let (what, until) = text.split_once(" until ").ok_or_else(|| HoldError::Syntax(text.to_owned()))?;
        Ok(Self { what: what.trim().parse()?, until: until.trim().parse()? })
    }
}

/// The holds of a schedule at work.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// Move, and what it waits for; an entry is gone once that has come.
    waiting: BTreeMap<MoveKey, BTreeSet<MoveKey>>,
    /// What is waited for, and who does.
    awaited: BTreeMap<MoveKey, Vec<MoveKey>>,
}

impl Held {
    pub(crate) fn new(holds: &[Hold]) -> Self {
        let mut held = Self::default();
        for hold in holds {
            held.waiting.entry(hold.what).or_default().insert(hold.until);
            held.awaited.entry(hold.until).or_default().push(hold.what);
        }
        held
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn holds(&self, key: MoveKey) -> bool {
        self.waiting.contains_key(&key)
    }

    /// The move is taken: what waited for it need not any more.
    pub(crate) fn taken(&mut self, key: MoveKey) {
        for what in self.awaited.remove(&key).unwrap_or_default() {
            if let Some(left) = self.waiting.get_mut(&what) {
                left.remove(&key);
                if left.is_empty() {
                    self.waiting.remove(&what);
                }
            }
        }
        // Taken although it was held, because nothing else could move.
        self.waiting.remove(&key);
    }
}

/// What a run's order was, as holds.
#[derive(Debug, Default)]
pub(crate) struct Overtaken(BTreeMap<MoveKey, MoveKey>);

impl Overtaken {
    /// `taken` was, while the older `left` stood there.
    pub(crate) fn note(&mut self, taken: MoveKey, left: MoveKey) {
        self.0.insert(left, taken);
    }

    pub(crate) fn holds(&self) -> Vec<Hold> {
        self.0.iter().map(|(&what, &until)| Hold { what, until }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_is_read_as_it_is_written() {
        let text = "7#2.effect until 9#1.done";
        assert_eq!(text.parse::<Hold>().unwrap().to_string(), text);
        assert!(matches!("7#2.effect".parse::<Hold>(), Err(HoldError::Syntax(_))));
        assert!(matches!("7#2.effect until now".parse::<Hold>(), Err(HoldError::Key(_))));
    }

    #[test]
    fn a_move_waits_for_all_it_is_held_until() {
        let key = |text: &str| text.parse::<MoveKey>().unwrap();
        let holds = ["1#1.done until 2#1.done", "1#1.done until 3#1.done"].map(|text| text.parse().unwrap());
        let mut held = Held::new(&holds);
        assert!(held.holds(key("1#1.done")) && !held.holds(key("2#1.done")));
        held.taken(key("2#1.done"));
        assert!(held.holds(key("1#1.done")));
        held.taken(key("3#1.done"));
        assert!(held.is_empty());
    }
}
