//! What a plan must be to be run.

use std::collections::BTreeSet;
use std::fmt;

use blkproof_sim::{IoKey, MoveKey, Strategy};

use super::text::PlanError;
use super::{Act, CrashPlan, CutPoint, CutState, FaultAt, OP_MAX, Op, Plan};

/// Bytes of the largest disk, and one past the last byte of any range: a file's limit.
pub const SIZE_MAX: u64 = i64::MAX as u64;

/// Bytes of the largest read or write: it is held in memory.
pub const REQUEST_MAX: u64 = 64 << 20;

/// Pieces of a read, at most.
pub const VECTOR_MAX: usize = 1024;

/// Bytes of a disk's block, at most.
pub const BLOCK_MAX: u32 = 1 << 20;

/// Linux's error numbers are below this.
const ERRNO_MAX: i32 = 4096;

/// Cuts one in another, and change points of a schedule, at most: each costs time at every move.
const DEPTH_MAX: u32 = 64;

/// A part of a plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Spot {
    Op(usize),
    Fault(usize),
    Hold(usize),
    Field(&'static str),
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Op(index) => write!(f, "ops[{index}]"),
            Self::Fault(index) => write!(f, "faults[{index}]"),
            Self::Hold(index) => write!(f, "schedule.holds[{index}]"),
            Self::Field(path) => f.write_str(path),
        }
    }
}

impl Plan {
    /// Whether the plan can be run: ids given once and below [`OP_MAX`], `after` only of earlier ops, ranges that end
    /// and fit, pieces that make up their range, rates of a thousand, counts from 1. What names an op or a request below
    /// that is not there is no mistake: it says nothing.
    ///
    /// # Errors
    /// The first thing that is wrong, without a line.
    pub fn validate(&self) -> Result<(), PlanError> {
        check(self).map_err(|(spot, words)| PlanError::new(spot.to_string(), words))
    }
}

pub(super) fn check(plan: &Plan) -> Result<(), (Spot, String)> {
    let field = |path: &'static str, result: Result<(), String>| result.map_err(|words| (Spot::Field(path), words));
    field("target.name", words("a name", &plan.target.name))?;
    field("target.size", size(plan.target.size))?;
    field("target.base", plan.target.base.map_or(Ok(()), size))?;
    field("target.options", options(&plan.target.options))?;
    field("disk.block", block(plan.disk.block))?;
    let random = &plan.faults.random;
    field("random-faults.rate", rate(random.rate))?;
    field("random-faults.immediate", rate(random.immediate))?;
    field("random-faults.partial", rate(random.partial))?;
    field("schedule.strategy", strategy(plan.schedule.strategy))?;
    field("crash", crash(&plan.crash))?;
    let mut ids = BTreeSet::new();
    for (index, op) in plan.ops.iter().enumerate() {
        check_op(op, &ids).map_err(|words| (Spot::Op(index), words))?;
        ids.insert(op.id);
    }
    for (index, fault) in plan.faults.named.iter().enumerate() {
        let counted = match fault.at {
            FaultAt::Io(key) => io(key),
            FaultAt::Nth(nth) | FaultAt::NthOf(_, nth) => from_one("requests", nth),
        };
        let errno = match fault.errno.0 {
            1..ERRNO_MAX => Ok(()),
            other => Err(format!("error {other} is none of Linux's: 1 to {}", ERRNO_MAX - 1)),
        };
        counted.and(errno).map_err(|words| (Spot::Fault(index), words))?;
    }
    for (index, hold) in plan.schedule.holds.iter().enumerate() {
        let itself = match hold.what == hold.until {
            true => Err("a move can not wait for itself; name another".to_owned()),
            false => Ok(()),
        };
        moves(hold.what).and(moves(hold.until)).and(itself).map_err(|words| (Spot::Hold(index), words))?;
    }
    Ok(())
}

fn words(what: &str, text: &str) -> Result<(), String> {
    if text.is_empty() { Err(format!("is empty; it has to be {what}")) } else { Ok(()) }
}

fn size(size: u64) -> Result<(), String> {
    if size > SIZE_MAX { Err(format!("{size:#x} bytes are too many; at most 2^63 - 1")) } else { Ok(()) }
}

fn options(options: &[(String, String)]) -> Result<(), String> {
    options.iter().try_for_each(|(name, _)| words("the name of an option", name))?;
    // No standard library function compares neighbours strictly and says which they are.
    for pair in options.windows(2) {
        if let [before, after] = pair
            && before.0 >= after.0
        {
            return Err(format!("'{}' stands after '{}': each once, sorted by name", after.0, before.0));
        }
    }
    Ok(())
}

fn block(block: u32) -> Result<(), String> {
    match block.is_power_of_two() && (512..=BLOCK_MAX).contains(&block) {
        true => Ok(()),
        false => Err(format!("{block} is no size of a block: a power of two from 512 to 1M")),
    }
}

fn rate(rate: u32) -> Result<(), String> {
    if rate > 1000 { Err(format!("{rate} of a thousand is more than all; at most 1000")) } else { Ok(()) }
}

fn strategy(strategy: Strategy) -> Result<(), String> {
    match strategy {
        Strategy::Fifo | Strategy::Random => Ok(()),
        Strategy::Delays { rate: of } => rate(of),
        Strategy::Pct { depth, length } if (1..=DEPTH_MAX).contains(&depth) && length > 0 => Ok(()),
        Strategy::Pct { depth, length } => {
            Err(format!("pct:{depth}:{length}: the depth is from 1 to {DEPTH_MAX}, the length from 1 on"))
        }
    }
}

fn from_one(what: &str, nth: u64) -> Result<(), String> {
    if nth == 0 { Err(format!("{what} are counted from 1; 0 is none")) } else { Ok(()) }
}

fn io(key: IoKey) -> Result<(), String> {
    from_one("requests", u64::from(key.nth)).map_err(|words| format!("{key}: {words}"))
}

fn moves(key: MoveKey) -> Result<(), String> {
    from_one("moves", u64::from(key.nth)).map_err(|words| format!("{key}: {words}"))
}

fn id(id: u32) -> Result<(), String> {
    match id {
        0 => Err("op 0: ops are counted from 1".to_owned()),
        OP_MAX.. => Err(format!("op {id}: the largest number is {}", OP_MAX - 1)),
        _ => Ok(()),
    }
}

fn state(state: &CutState) -> Result<(), String> {
    match state {
        CutState::Drop(ios) | CutState::Keep(ios) => ios.iter().try_for_each(|key| io(*key)),
        CutState::Tear { io: key, .. } => io(*key),
        CutState::AllOld | CutState::AllNew | CutState::Seed(_) | CutState::Number(_) => Ok(()),
    }
}

fn point(point: CutPoint) -> Result<(), String> {
    match point {
        CutPoint::Before(key) => moves(key),
        CutPoint::BeforeOp(op) | CutPoint::AfterOp(op) => id(op),
        CutPoint::End => Ok(()),
    }
}

fn crash(plan: &CrashPlan) -> Result<(), String> {
    match plan {
        CrashPlan::None => Ok(()),
        CrashPlan::Explore { states, depth, .. } => {
            from_one("states", u64::from(*states))?;
            match u32::from(*depth) > DEPTH_MAX {
                true => Err(format!("depth {depth} is too deep: at most {DEPTH_MAX}")),
                false => Ok(()),
            }
        }
        CrashPlan::At { point: at, state: left, again } => {
            point(*at).and(state(left))?;
            again.as_ref().map_or(Ok(()), |again| point(again.0).and(state(&again.1)))
        }
    }
}

fn check_op(op: &Op, before: &BTreeSet<u32>) -> Result<(), String> {
    id(op.id)?;
    if before.contains(&op.id) {
        return Err(format!("op {} is there already; each number is given once", op.id));
    }
    let mut after = BTreeSet::new();
    for &earlier in &op.after {
        if !before.contains(&earlier) {
            return Err(format!("op {} waits for op {earlier}, which is no earlier one", op.id));
        }
        if !after.insert(earlier) {
            return Err(format!("op {} waits for op {earlier} twice; once is enough", op.id));
        }
    }
    if let Some(range) = op.act.range() {
        if range.start > range.end {
            return Err(format!("op {}: the range {range} ends before it begins", op.id));
        }
        if range.end > SIZE_MAX {
            return Err(format!("op {}: the range {range} ends beyond 2^63 - 1", op.id));
        }
        let held = matches!(op.act, Act::Read { .. } | Act::Write { .. });
        if held && range.len() > REQUEST_MAX {
            return Err(format!("op {}: {} bytes are too many; at most 64M", op.id, range.len()));
        }
    }
    match &op.act {
        Act::Read { range, vector } if !vector.is_empty() => {
            let sum: u64 = vector.iter().map(|len| u64::from(*len)).fold(0, u64::saturating_add);
            if vector.contains(&0) {
                return Err(format!("op {}: a piece of no bytes; leave it out", op.id));
            }
            if vector.len() > VECTOR_MAX {
                return Err(format!("op {}: {} pieces are too many; at most {VECTOR_MAX}", op.id, vector.len()));
            }
            if sum != range.len() {
                return Err(format!("op {}: the pieces are {sum} bytes long, the range is {}", op.id, range.len()));
            }
        }
        Act::Resize { size: new } => size(*new).map_err(|words| format!("op {}: {words}", op.id))?,
        Act::Reopen | Act::Cut { .. } => {
            if op.queue != 0 {
                return Err(format!("op {}: {} is of no queue; leave 'q{}' out", op.id, op.act.name(), op.queue));
            }
            if op.drop_at.is_some() {
                return Err(format!("op {}: {} can not be dropped; leave 'drop@' out", op.id, op.act.name()));
            }
            if let Act::Cut { state: left } = &op.act {
                state(left).map_err(|words| format!("op {}: {words}", op.id))?;
            }
        }
        _ => {}
    }
    Ok(())
}
