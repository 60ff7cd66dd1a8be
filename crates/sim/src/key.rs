//! Names of requests and moves that survive the deletion of others.

use std::fmt;
use std::str::FromStr;

/// Who a move belongs to: the client's request on whose behalf the driver was being polled.
///
/// 0 is whatever happens outside of any request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Owner(pub u32);

/// A request to a simulated disk: the `nth` that its owner sent, from 1. Written `7#2`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IoKey {
    /// Who caused it.
    pub owner: Owner,
    /// Which of its requests.
    pub nth: u32,
}

/// What a move does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Step {
    /// Polls the owner's task, for the `nth` time.
    Poll,
    /// The data of the owner's `nth` request moves.
    Effect,
    /// The driver hears that the owner's `nth` request is done.
    Done,
}

/// One thing that can happen next. Written `7#2.effect`, `7#2.done`, `7#3.poll`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MoveKey {
    /// Whose.
    pub owner: Owner,
    /// The how-manieth of its kind, from 1.
    pub nth: u32,
    /// What.
    pub step: Step,
}

impl IoKey {
    /// The move in which its data moves.
    pub const fn effect(self) -> MoveKey {
        MoveKey { owner: self.owner, nth: self.nth, step: Step::Effect }
    }

    /// The move in which the driver hears of it.
    pub const fn done(self) -> MoveKey {
        MoveKey { owner: self.owner, nth: self.nth, step: Step::Done }
    }

    /// As a number that identifies it.
    pub const fn number(self) -> u64 {
        (self.owner.0 as u64) << 32 | self.nth as u64
    }
}

impl MoveKey {
    /// The request below whose move it is, if it is one's.
    pub const fn io(self) -> Option<IoKey> {
        match self.step {
            Step::Poll => None,
            Step::Effect | Step::Done => Some(IoKey { owner: self.owner, nth: self.nth }),
        }
    }

    /// As a number that identifies it.
    pub const fn number(self) -> u64 {
        let step = match self.step {
            Step::Poll => 0,
            Step::Effect => 1,
            Step::Done => 2,
        };
        (self.owner.0 as u64) << 32 | (self.nth as u64) << 2 | step
    }
}

impl fmt::Display for IoKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.owner.0, self.nth)
    }
}

impl fmt::Display for MoveKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = match self.step {
            Step::Poll => "poll",
            Step::Effect => "effect",
            Step::Done => "done",
        };
        write!(f, "{}#{}.{step}", self.owner.0, self.nth)
    }
}

/// A text that names no request or move.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{0}' is neither a request below, such as 7#2, nor a move, such as 7#2.effect, 7#2.done or 7#1.poll")]
pub struct KeyError(pub String);

impl FromStr for IoKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let wrong = || KeyError(text.to_owned());
        let (owner, nth) = text.split_once('#').ok_or_else(wrong)?;
        let number = |digits: &str| match digits.bytes().all(|byte| byte.is_ascii_digit()) {
            true => digits.parse::<u32>().map_err(|_| wrong()),
            false => Err(wrong()),
        };
        Ok(Self { owner: Owner(number(owner)?), nth: number(nth)? })
    }
}

impl FromStr for MoveKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let wrong = || KeyError(text.to_owned());
        let (io, step) = text.split_once('.').ok_or_else(wrong)?;
        let IoKey { owner, nth } = io.parse().map_err(|_| wrong())?;
        let step = match step {
            "poll" => Step::Poll,
            "effect" => Step::Effect,
            "done" => Step::Done,
            _ => return Err(wrong()),
        };
        Ok(Self { owner, nth, step })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        for text in ["0#1.poll", "7#2.effect", "4294967295#4294967295.done"] {
            assert_eq!(text.parse::<MoveKey>().unwrap().to_string(), text);
        }
        assert_eq!("7#2".parse::<IoKey>().unwrap(), IoKey { owner: Owner(7), nth: 2 });
        for text in ["", "7", "7#", "#2.done", "7#2.doing", "7#2", "-1#2.done", "+1#2.done", "7#2.done.done"] {
            assert!(text.parse::<MoveKey>().is_err(), "{text}");
        }
        assert!("7#2.done".parse::<IoKey>().is_err());
    }
}
