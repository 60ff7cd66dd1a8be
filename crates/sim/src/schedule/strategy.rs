//! Seeded departures from the plain order (CM 7.3).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use blkproof_block::choice::hash;

use super::holds::{Held, Hold, Overtaken};
use crate::key::{MoveKey, Owner, Step};
use crate::moves::Move;

/// How moves are picked where nothing is said of them by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Strategy {
    /// The oldest.
    #[default]
    Fifo,
    /// Any of them, each as likely as the others.
    Random,
    /// The oldest, but so many of a thousand moves stand back until nothing else can move, or until the seed lets them
    /// go: what is slow is very slow.
    Delays {
        /// Moves of a thousand.
        rate: u32,
    },
    /// Those of the request with the highest priority, which the seed gives; at so many moments the request that moves
    /// falls behind all others (PCT: Burckhardt and others, "A randomized scheduler with probabilistic guarantees of
    /// finding bugs", 2010).
    Pct {
        /// Moments, and one more: the depth of the bugs looked for.
        depth: u32,
        /// Moves that the run is expected to take.
        length: u32,
    },
}

/// A text that names no strategy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{0}' is no strategy; there are fifo, random, delays:RATE and pct:DEPTH:LENGTH")]
pub struct UnknownStrategy(pub String);

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fifo => f.write_str("fifo"),
            Self::Random => f.write_str("random"),
            Self::Delays { rate } => write!(f, "delays:{rate}"),
            Self::Pct { depth, length } => write!(f, "pct:{depth}:{length}"),
        }
    }
}

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(text: &str) -> Result<Self, UnknownStrategy> {
        let wrong = || UnknownStrategy(text.to_owned());
        let number = |digits: Option<&str>| digits.and_then(|digits| digits.parse().ok()).ok_or_else(wrong);
        let mut parts = text.split(':');
        let strategy = match parts.next() {
            Some("fifo") => Self::Fifo,
            Some("random") => Self::Random,
            Some("delays") => Self::Delays { rate: number(parts.next())? },
            Some("pct") => Self::Pct { depth: number(parts.next())?, length: number(parts.next())? },
            _ => return Err(wrong()),
        };
        if parts.next().is_some() { Err(wrong()) } else { Ok(strategy) }
    }
}

/// What decides the order of a run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Schedule {
    /// Where nothing is said by name.
    pub strategy: Strategy,
    /// Decides whatever the strategy leaves open.
    pub seed: u64,
    /// What is said by name; comes first.
    pub holds: Vec<Hold>,
}

/// Streams of decisions under one seed.
mod stream {
    pub(super) const PICK: u64 = 0x7069_636b;
    pub(super) const SLOW: u64 = 0x736c_6f77;
    pub(super) const AWAKE: u64 = 0x6177_616b;
    pub(super) const RANK: u64 = 0x7261_6e6b;
    pub(super) const FALL: u64 = 0x6661_6c6c;
}

/// A schedule at work.
#[derive(Debug)]
pub(crate) struct Chooser {
    strategy: Strategy,
    seed: u64,
    held: Held,
    overtaken: Overtaken,
    taken: u64,
    /// PCT: requests that have fallen behind, and how low.
    fallen: BTreeMap<Owner, u64>,
}

impl Chooser {
    pub(crate) fn new(schedule: &Schedule) -> Self {
        Self {
            strategy: schedule.strategy,
            seed: schedule.seed,
            held: Held::new(&schedule.holds),
            overtaken: Overtaken::default(),
            taken: 0,
            fallen: BTreeMap::new(),
        }
    }

    pub(crate) fn holds(&self) -> Vec<Hold> {
        self.overtaken.holds()
    }

    /// The index of the move to take next, of those there are, oldest first; there is at least one.
    pub(crate) fn choose(&mut self, moves: &[Move]) -> usize {
        self.taken = self.taken.saturating_add(1);
        let index = if self.held.is_empty() {
            self.pick(moves, |_| true)
        } else {
            let held = std::mem::take(&mut self.held);
            // Held moves alone: the oldest goes, for nothing else could ever let it go.
            let free = moves.iter().any(|one| !held.holds(one.key));
            let index = if free { self.pick(moves, |one| !held.holds(one.key)) } else { 0 };
            self.held = held;
            index
        };
        let Some(taken) = moves.get(index) else { return 0 };
        for left in moves.iter().take(index) {
            self.overtaken.note(taken.key, left.key);
        }
        if !self.held.is_empty() {
            self.held.taken(taken.key);
        }
        index
    }

    fn pick(&mut self, moves: &[Move], free: impl Fn(&Move) -> bool) -> usize {
        let candidates = moves.iter().enumerate().filter(|(_, one)| free(one));
        let seed = self.seed;
        let draw = |stream: u64, number: u64| hash(hash(seed, stream), number);
        let chosen = match self.strategy {
            Strategy::Fifo => None,
            Strategy::Random => {
                let taken = self.taken;
                candidates
                    .max_by_key(|(_, one)| draw(stream::PICK ^ taken << 32, one.key.number()))
                    .map(|(index, _)| index)
            }
            Strategy::Delays { rate } => {
                let taken = self.taken;
                // Polls are not slow: a driver's own steps take no time, its disk's do.
                let slow = |key: MoveKey| {
                    key.step != Step::Poll
                        && draw(stream::SLOW, key.number()) % 1000 < u64::from(rate)
                        && draw(stream::AWAKE ^ taken << 32, key.number()) % 64 != 0
                };
                candidates.min_by_key(|(index, one)| (slow(one.key), *index)).map(|(index, _)| index)
            }
            Strategy::Pct { depth, length } => {
                let fallen = &self.fallen;
                let rank = |owner: Owner| match fallen.get(&owner) {
                    Some(&low) => low,
                    None => draw(stream::RANK, u64::from(owner.0)) | 1 << 63,
                };
                let best = candidates.max_by_key(|(index, one)| (rank(one.key.owner), std::cmp::Reverse(*index)));
                let best = best.map(|(index, one)| (index, one.key.owner));
                if let Some((_, owner)) = best {
                    for change in 1..u64::from(depth) {
                        if draw(stream::FALL, change) % u64::from(length.max(1)) == self.taken {
                            self.fallen.insert(owner, u64::from(depth).saturating_sub(change));
                        }
                    }
                }
                best.map(|(index, _)| index)
            }
        };
        chosen.unwrap_or_else(|| moves.iter().position(free).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strategy_is_read_as_it_is_written() {
        for text in ["fifo", "random", "delays:200", "pct:3:1000"] {
            assert_eq!(text.parse::<Strategy>().unwrap().to_string(), text);
        }
        for text in ["", "lifo", "delays", "delays:x", "pct:3", "fifo:1", "pct:1:2:3"] {
            assert!(text.parse::<Strategy>().is_err(), "{text}");
        }
    }
}
