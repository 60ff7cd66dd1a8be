//! Names of states: what a user asks for, and what asks for the same state again.
//!
//! | name | the state |
//! |---|---|
//! | `all-old` | nothing of what is in the cache survives |
//! | `all-new` | all of it does |
//! | `drop:17`, `drop:3+17` | all but these requests |
//! | `keep:17`, `keep:3+17` | only these |
//! | `prefix:completion:5` | the first five that completed; open ones come last |
//! | `prefix:submission:5` | the first five that arrived |
//! | `tear:17:first:3`, `tear:17:last:3` | all, but of request 17 only the first, the last three blocks |
//! | `shear:17:2:5` | all, but of block 2 of request 17 (from 0) only the first five sectors of 512 bytes |
//! | `number:12` | the twelfth in an enumeration of all states |
//! | `seed:1234`, `seed:0x4d2` | what this seed picks among all states the profile has |
//!
//! A name means the same state as long as nothing arrives, completes, or is flushed.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::config::Profile;
use super::model::ChangeId;

/// One way to lose power.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StateName {
    /// `all-old`
    AllOld,
    /// `all-new`
    AllNew,
    /// `drop:…`
    Drop(BTreeSet<ChangeId>),
    /// `keep:…`
    Keep(BTreeSet<ChangeId>),
    /// `prefix:…`
    Prefix(Order, u64),
    /// `tear:…`
    Tear {
        /// Of this request
        id: ChangeId,
        /// the first blocks (not: the last)
        first: bool,
        /// so many survive.
        blocks: u64,
    },
    /// `shear:…`
    Shear {
        /// Of this request
        id: ChangeId,
        /// this block, from 0,
        block: u64,
        /// keeps so many sectors.
        sectors: u64,
    },
    /// `number:…`
    Number(u64),
    /// `seed:…`
    Seed(u64),
}

/// An order of requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Of their ends.
    Completion,
    /// Of their beginnings.
    Submission,
}

/// A name that asks for no state.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnknownState {
    /// Not a name at all.
    #[error(
        "'{0}' names no state; there are all-old, all-new, drop:ID, keep:ID, prefix:completion:N, prefix:submission:N, \
         tear:ID:first:N, tear:ID:last:N, shear:ID:BLOCK:N, number:N and seed:N"
    )]
    Syntax(String),
    /// The profile promises more than that.
    #[error("a disk of profile '{profile}' is never left in state '{name}'; that takes profile '{least}'")]
    Profile {
        /// What was asked for.
        name: String,
        /// What the disk is.
        profile: &'static str,
        /// What it would have to be.
        least: &'static str,
    },
    /// The request is not in the cache.
    #[error("state '{name}': no request {id} is in the cache")]
    Request {
        /// What was asked for.
        name: String,
        /// The request.
        id: ChangeId,
    },
    /// A number that is too large.
    #[error("state '{name}': there are {count} states")]
    Number {
        /// What was asked for.
        name: String,
        /// How many there are.
        count: u64,
    },
}

impl StateName {
    /// The kindest profile that has such states.
    pub fn least_profile(&self) -> Profile {
        match self {
            Self::AllOld | Self::AllNew | Self::Prefix(..) | Self::Seed(_) => Profile::Ordered,
            Self::Drop(_) | Self::Keep(_) | Self::Number(_) => Profile::Request,
            Self::Tear { .. } => Profile::Torn,
            Self::Shear { .. } => Profile::Shorn,
        }
    }

    /// The requests it names.
    pub(super) fn requests(&self) -> impl Iterator<Item = ChangeId> {
        let (several, one) = match self {
            Self::Drop(ids) | Self::Keep(ids) => (Some(ids), None),
            Self::Tear { id, .. } | Self::Shear { id, .. } => (None, Some(*id)),
            _ => (None, None),
        };
        several.into_iter().flatten().copied().chain(one)
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |ids: &BTreeSet<ChangeId>| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join("+");
        match self {
            Self::AllOld => f.write_str("all-old"),
            Self::AllNew => f.write_str("all-new"),
            Self::Drop(ids) => write!(f, "drop:{}", list(ids)),
            Self::Keep(ids) => write!(f, "keep:{}", list(ids)),
            Self::Prefix(Order::Completion, count) => write!(f, "prefix:completion:{count}"),
            Self::Prefix(Order::Submission, count) => write!(f, "prefix:submission:{count}"),
            Self::Tear { id, first, blocks } => {
                write!(f, "tear:{id}:{}:{blocks}", if *first { "first" } else { "last" })
            }
            Self::Shear { id, block, sectors } => write!(f, "shear:{id}:{block}:{sectors}"),
            Self::Number(number) => write!(f, "number:{number}"),
            Self::Seed(seed) => write!(f, "seed:{seed:#x}"),
        }
    }
}

impl FromStr for StateName {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        parse(text).ok_or_else(|| UnknownState::Syntax(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<StateName> {
    let words: Vec<&str> = text.split(':').collect();
    let id = |word: &str| word.parse().ok().map(ChangeId);
    let ids = |list: &str| list.split('+').map(id).collect::<Option<BTreeSet<_>>>();
    Some(match *words.as_slice() {
        ["all-old"] => StateName::AllOld,
        ["all-new"] => StateName::AllNew,
        ["drop", list] => StateName::Drop(ids(list)?),
        ["keep", list] => StateName::Keep(ids(list)?),
        ["prefix", "completion", count] => StateName::Prefix(Order::Completion, count.parse().ok()?),
        ["prefix", "submission", count] => StateName::Prefix(Order::Submission, count.parse().ok()?),
        ["tear", request, side @ ("first" | "last"), blocks] => {
            StateName::Tear { id: id(request)?, first: side == "first", blocks: blocks.parse().ok()? }
        }
        ["shear", request, block, sectors] => {
            StateName::Shear { id: id(request)?, block: block.parse().ok()?, sectors: sectors.parse().ok()? }
        }
        ["number", number] => StateName::Number(number.parse().ok()?),
        ["seed", seed] => StateName::Seed(match seed.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok()?,
            None => seed.parse().ok()?,
        }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_themselves() {
        let table = [
            "all-old",
            "all-new",
            "drop:17",
            "drop:3+17",
            "keep:0",
            "keep:1+2+3",
            "prefix:completion:5",
            "prefix:submission:0",
            "tear:17:first:3",
            "tear:17:last:3",
            "shear:17:2:5",
            "number:12",
            "seed:0x4d2",
        ];
        for name in table {
            assert_eq!(name.parse::<StateName>().map(|state| state.to_string()).as_deref(), Ok(name));
        }
        assert_eq!("seed:1234".parse(), Ok(StateName::Seed(0x4d2)));
    }

    #[test]
    fn other_names_are_refused() {
        for name in [
            "",
            "all",
            "all-old:1",
            "drop",
            "drop:",
            "drop:1+",
            "drop:-1",
            "keep:x",
            "prefix:5",
            "prefix:size:5",
            "tear:1:middle:2",
            "tear:1:first",
            "shear:1:2",
            "number:",
            "number:99999999999999999999",
            "seed:0x",
            "seed:",
        ] {
            assert!(matches!(name.parse::<StateName>(), Err(UnknownState::Syntax(_))), "{name}");
        }
    }
}
