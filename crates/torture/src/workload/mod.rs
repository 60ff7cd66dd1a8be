//! Plans from seeds (CM 7.1, 7.2).
//!
//! A seed first draws which features exist at all and wild weights for those that do (`swarm`), then a geometry that is
//! odd on purpose (`geometry`), then op after op (`ops`), half of them near another one that may be in flight (`place`),
//! some in motifs that a rule of the model names (`motif`). Every decision is a function of the seed, the stream, the op's number and the site (`dice`): a feature
//! left out takes its flags away and leaves all else where it was.

mod dice;
mod geometry;
mod info;
mod motif;
mod ops;
mod place;
mod profile;
mod swarm;

use blkproof_block::Errno;
use blkproof_fault::disk::Kind;
use blkproof_sim::{FaultDone, IoKey, IoKind, Owner, Schedule, Strategy};

pub use self::info::{Features, TargetInfo, Variant};
pub use self::profile::Profile;

use self::dice::{Dice, Stream};
use self::swarm::Swarm;
use crate::plan::{Act, CrashPlan, DiskSpec, FaultAt, FaultSpec, Faults, Op, OpId, Plan, RandomFaults, TargetSpec};

/// The plan of a seed for a target.
///
/// The plan is [valid](Plan::validate). Its requests lie within the disk as it will be if every resize succeeds, and
/// where a resize may be in flight, within both sizes.
pub fn generate(seed: u64, target: &TargetInfo, profile: &Profile) -> Plan {
    let geometry = geometry::draw(seed, target);
    let swarm = Swarm::draw(seed, &geometry, profile);
    let (ops, hurt) = ops::draw(seed, &geometry, &swarm);
    let sent = u64::from(swarm.ops).saturating_mul(4);
    Plan {
        seed,
        target: TargetSpec {
            name: target.name.clone(),
            options: geometry.variant.options.clone(),
            size: geometry.size,
            base: geometry.base,
        },
        disk: disk(seed, target),
        faults: faults(seed, &swarm, sent, &ops, &hurt),
        schedule: schedule(seed, sent),
        crash: crash(seed, profile, &geometry.variant),
        ops,
    }
}

fn disk(seed: u64, target: &TargetInfo) -> DiskSpec {
    let dice = Dice::new(seed, Stream::Disk, 0);
    let plain = DiskSpec::default();
    DiskSpec {
        block: dice.pick(0, &target.blocks).unwrap_or(plain.block),
        profile: dice.pick(1, &target.profiles).unwrap_or(plain.profile),
        kind: Kind::Honest,
        flush_error: dice.pick(2, &target.flush_errors).unwrap_or(plain.flush_error),
        seed: dice.bits(3),
    }
}

fn faults(seed: u64, swarm: &Swarm, sent: u64, ops: &[Op], hurt: &[OpId]) -> Faults {
    let mut faults = Faults::default();
    let dice = Dice::new(seed, Stream::Fault, 0);
    if swarm.random_faults {
        faults.random = RandomFaults {
            seed: dice.bits(0),
            rate: dice.pick(1, &[2, 5, 20, 20, 60, 200]).unwrap_or(0),
            immediate: dice.pick(2, &[0, 300, 300, 1000]).unwrap_or(0),
            partial: dice.pick(3, &[0, 300, 300, 1000]).unwrap_or(0),
            spare_open: dice.chance(4, 700),
        };
    }
    if swarm.named_fault {
        let count = dice.pick(5, &[1, 1, 1, 2, 3, 6]).unwrap_or(1);
        faults.named =
            (0..count).map(|number| named(Dice::new(seed, Stream::Fault, 1 + number), sent, ops, &[])).collect();
        // And what the motifs are about: some of them, or all.
        let of = dice.pick(6, &[100, 300, 1000]).unwrap_or(0);
        for id in hurt {
            let dice = Dice::new(seed, Stream::Fault, subject(*id) << 16);
            if dice.chance(0, of) {
                faults.named.push(named(dice, sent, ops, &[*id]));
            }
        }
    }
    faults
}

/// A fault of one of these ops, if there are any; else of any op, or of the n-th request of the run.
fn named(dice: Dice, sent: u64, ops: &[Op], of: &[OpId]) -> FaultSpec {
    let nth = dice.below(5, sent).saturating_add(1);
    let kinds = [IoKind::Read, IoKind::Write, IoKind::Write, IoKind::Flush, IoKind::Resize];
    let by_op = !of.is_empty() || dice.chance(13, 400);
    let at = match (dice.chance(6, 500), dice.pick(7, &kinds)) {
        _ if by_op => {
            // 0 is the first opening, and the last closing. What is rare among ops fails as often as what is not.
            let rare = |op: &&Op| matches!(op.act, Act::Reopen | Act::Flush | Act::Resize { .. });
            let some: Vec<OpId> = match dice.chance(16, 400) {
                true => ops.iter().filter(rare).map(|op| op.id).collect(),
                false => ops.iter().map(|op| op.id).collect(),
            };
            let index = usize::try_from(dice.below(14, (some.len() as u64).saturating_add(1))).unwrap_or(0);
            let any = some.get(index).copied().unwrap_or(0);
            let owner = Owner(of.first().copied().unwrap_or(any));
            FaultAt::Io(IoKey { owner, nth: dice.pick(15, &[1, 1, 1, 2, 2, 3, 4, 5, 6, 8]).unwrap_or(1) })
        }
        // Of one kind there are fewer than of all.
        (true, Some(kind)) => FaultAt::NthOf(kind, nth.div_ceil(3)),
        _ => FaultAt::Nth(nth),
    };
    let sectors = dice.below(12, 8).saturating_add(1).saturating_mul(512);
    let done = [(FaultDone::Nothing, 6), (FaultDone::All, 2), (FaultDone::First(sectors), 2)];
    FaultSpec {
        at,
        lasting: dice.chance(8, if by_op { 150 } else { 400 }),
        immediate: dice.chance(9, 300),
        done: dice.weigh(11, &done).unwrap_or(FaultDone::Nothing),
        errno: dice.pick(10, &[Errno::IO, Errno::NOSPC]).unwrap_or(Errno::IO),
    }
}

fn schedule(seed: u64, sent: u64) -> Schedule {
    let dice = Dice::new(seed, Stream::Schedule, 0);
    // A request below is an effect and a completion, and about as many polls.
    let length = u32::try_from(sent.saturating_mul(4)).unwrap_or(u32::MAX).max(1);
    let rate = dice.pick(1, &[20, 100, 300, 700]).unwrap_or(100);
    let depth = dice.pick(2, &[1, 2, 2, 3, 3]).unwrap_or(2);
    let strategies = [
        (Strategy::Fifo, 10),
        (Strategy::Random, 30),
        (Strategy::Delays { rate }, 35),
        (Strategy::Pct { depth, length }, 25),
    ];
    Schedule { strategy: dice.weigh(0, &strategies).unwrap_or_default(), seed: dice.bits(3), holds: Vec::new() }
}

/// Tables as long as this cost what a state costs anyway.
const TABLE: u64 = 64 << 10;

fn crash(seed: u64, profile: &Profile, variant: &Variant) -> CrashPlan {
    let dice = Dice::new(seed, Stream::Crash, 0);
    if !variant.features.cut || !dice.chance(0, profile.crash_rate) {
        return CrashPlan::None;
    }
    let depth = match dice.chance(1, profile.deep_rate) {
        true => profile.depth,
        false => 0,
    };
    // Each state is opened and checked, tables and all: of those with long ones there are fewer, for the same time.
    let longer = u32::try_from((variant.cluster / TABLE).max(1)).unwrap_or(u32::MAX);
    let states = (profile.states / longer).max(profile.states.min(8));
    CrashPlan::Explore { states, depth, seed: dice.bits(2) }
}

/// Numbers of ops as subjects of decisions.
const fn subject(id: OpId) -> u64 {
    id as u64
}
