//! Power cuts: moments, what is left, and searches.

use std::fmt;

use blkproof_sim::{IoKey, MoveKey};

use super::words::{Words, shown, unknown};
use crate::plan::{CrashPlan, CutPoint, CutState};

const STATES: [&str; 7] = ["all-old", "all-new", "drop", "keep", "tear", "seed", "number"];

pub(super) fn read_state(words: &mut Words<'_>) -> Result<CutState, String> {
    match words.next("what the power cut leaves, such as all-old,")? {
        "all-old" => Ok(CutState::AllOld),
        "all-new" => Ok(CutState::AllNew),
        "drop" => read_ios(words).map(CutState::Drop),
        "keep" => read_ios(words).map(CutState::Keep),
        "tear" => {
            let io = io(words.next("a request below such as 3#2")?)?;
            let first = match words.next("'first' or 'last'")? {
                "first" => true,
                "last" => false,
                other => return Err(unknown("end of a request", other, ["first", "last"].into_iter())),
            };
            Ok(CutState::Tear { io, first, blocks: words.number("a number of blocks")? })
        }
        "seed" => words.number("a seed").map(CutState::Seed),
        "number" => words.number("the number of a state").map(CutState::Number),
        other => Err(unknown("state after a power cut", other, STATES.into_iter())),
    }
}

fn read_ios(words: &mut Words<'_>) -> Result<Vec<IoKey>, String> {
    match words.next("requests below such as 3#2+4#1, or 'nothing',")? {
        "nothing" => Ok(Vec::new()),
        list => list.split('+').map(io).collect(),
    }
}

/// `3#2`.
pub(super) fn io(word: &str) -> Result<IoKey, String> {
    word.parse().map_err(|_| format!("'{}' is no request below: write whose and which, as in 3#2", shown(word)))
}

pub(super) fn print_state(state: &CutState, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let list = |f: &mut fmt::Formatter<'_>, word: &str, ios: &[IoKey]| {
        write!(f, "{word} ")?;
        if ios.is_empty() {
            return f.write_str("nothing");
        }
        for (index, io) in ios.iter().enumerate() {
            write!(f, "{}{io}", if index == 0 { "" } else { "+" })?;
        }
        Ok(())
    };
    match state {
        CutState::AllOld => f.write_str("all-old"),
        CutState::AllNew => f.write_str("all-new"),
        CutState::Drop(ios) => list(f, "drop", ios),
        CutState::Keep(ios) => list(f, "keep", ios),
        CutState::Tear { io, first, blocks } => {
            write!(f, "tear {io} {} {blocks}", if *first { "first" } else { "last" })
        }
        CutState::Seed(seed) => write!(f, "seed {seed:#x}"),
        CutState::Number(number) => write!(f, "number {number}"),
    }
}

pub(super) fn read_point(words: &mut Words<'_>) -> Result<CutPoint, String> {
    match words.next("a moment, such as 'before 7#2.done', 'before 7', 'after 7' or 'end',")? {
        "end" => Ok(CutPoint::End),
        "before" => {
            let word = words.next("a move such as 7#2.done, or an op's number,")?;
            match word.contains('#') {
                true => word.parse::<MoveKey>().map(CutPoint::Before).map_err(|_| no_move(word)),
                false => op(word).map(CutPoint::BeforeOp),
            }
        }
        "after" => op(words.next("an op's number")?).map(CutPoint::AfterOp),
        other => Err(unknown("moment", other, ["before", "after", "end"].into_iter())),
    }
}

/// What to write for a move.
pub(super) fn no_move(word: &str) -> String {
    format!("'{}' is no move: write it as 7#2.effect, 7#2.done or 7#1.poll", shown(word))
}

/// An op's number.
pub(super) fn op(word: &str) -> Result<u32, String> {
    let number = super::sizes::number(word).and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| format!("'{}' is no op's number, such as 7", shown(word)))
}

pub(super) fn print_point(point: &CutPoint, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match point {
        CutPoint::Before(key) => write!(f, "before {key}"),
        CutPoint::BeforeOp(op) => write!(f, "before {op}"),
        CutPoint::AfterOp(op) => write!(f, "after {op}"),
        CutPoint::End => f.write_str("end"),
    }
}

/// `none`, `explore 4096 states, depth 1, seed 7`, `at end all-old, then before 0#3.done all-new`.
pub(super) fn read_plan(words: &mut Words<'_>) -> Result<CrashPlan, String> {
    words.commas();
    match words.next("'none', 'explore' or 'at'")? {
        "none" => Ok(CrashPlan::None),
        "explore" => {
            let example = "explore 4096 states, depth 1, seed 7";
            let states = words.short("a number of states")?;
            words.expect("states", example)?;
            words.expect("depth", example)?;
            let depth = words.number("a depth")?;
            let depth = u8::try_from(depth).map_err(|_| format!("depth {depth} is too deep: at most 255"))?;
            words.expect("seed", example)?;
            Ok(CrashPlan::Explore { states, depth, seed: words.number("a seed")? })
        }
        "at" => {
            let (point, state) = (read_point(words)?, read_state(words)?);
            let again = match words.take("then") {
                true => Some(Box::new((read_point(words)?, read_state(words)?))),
                false => None,
            };
            Ok(CrashPlan::At { point, state, again })
        }
        other => Err(unknown("power cut", other, ["none", "explore", "at"].into_iter())),
    }
}

pub(super) fn print_plan(crash: &CrashPlan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match crash {
        CrashPlan::None => f.write_str("none"),
        CrashPlan::Explore { states, depth, seed } => {
            write!(f, "explore {states} states, depth {depth}, seed {seed:#x}")
        }
        CrashPlan::At { point, state, again } => {
            write!(f, "at {point} {state}")?;
            match again {
                Some(again) => write!(f, ", then {} {}", again.0, again.1),
                None => Ok(()),
            }
        }
    }
}
