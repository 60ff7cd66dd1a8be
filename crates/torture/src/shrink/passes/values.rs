//! (f) Lower values.

use blkproof_block::Errno;
use blkproof_fault::disk::{FlushError, Kind, Profile};
use blkproof_sim::{FaultDone, Strategy};

use super::super::remove::states_mut;
use super::super::search::{Edit, Search};
use super::{change, granule, ranges};
use crate::plan::{Act, CutState, FaultSpec, Op, OpId, Plan};

pub(super) fn run(search: &mut Search<'_>) {
    // Plain requests first: fewer things to keep when ranges change.
    let plan = search.best();
    let mut edits = flags(plan);
    edits.extend(faults(plan));
    edits.extend(drops(plan));
    edits.extend(disk());
    search.sweep(&edits);
    // Ranges open the way for further ones: halves of halves.
    loop {
        let edits = ranges::edits(search.best());
        if !search.sweep(&edits) {
            break;
        }
    }
    let edits = sizes(search.best());
    search.sweep(&edits);
}

fn on_op(id: OpId, edit: impl Fn(&mut Op) -> bool + 'static) -> Edit {
    change(move |plan| plan.ops.iter_mut().find(|op| op.id == id).is_some_and(&edit))
}

/// A flag of a request, switched off.
type Off = fn(&mut Act) -> bool;

const OFF: [Off; 5] = [
    |act| match act {
        Act::Write { fua, .. } | Act::Zeroes { fua, .. } => std::mem::take(fua),
        _ => false,
    },
    |act| match act {
        Act::Write { compressed, .. } => std::mem::take(compressed),
        _ => false,
    },
    |act| match act {
        Act::Zeroes { unmap, .. } => std::mem::take(unmap),
        _ => false,
    },
    |act| match act {
        Act::Zeroes { no_fallback, .. } => std::mem::take(no_fallback),
        _ => false,
    },
    |act| match act {
        Act::Read { vector, .. } => !std::mem::take(vector).is_empty(),
        _ => false,
    },
];

/// All of a kind, then each.
fn flags(plan: &Plan) -> Vec<Edit> {
    let mut edits: Vec<Edit> = Vec::new();
    for off in OFF {
        edits.push(change(move |plan| plan.ops.iter_mut().fold(false, |changed, op| off(&mut op.act) | changed)));
    }
    for op in &plan.ops {
        edits.extend(OFF.map(|off| on_op(op.id, move |op| off(&mut op.act))));
        if let Act::Read { vector, .. } = &op.act
            && let [first, rest @ ..] = vector.as_slice()
        {
            let two = vec![*first, rest.iter().sum()];
            edits.push(on_op(op.id, move |op| match &mut op.act {
                Act::Read { vector, .. } if vector.len() > 2 => {
                    vector.clone_from(&two);
                    true
                }
                _ => false,
            }));
        }
    }
    edits
}

/// Faults of the plainest kind: EIO, heard later, once, with nothing done.
fn faults(plan: &Plan) -> Vec<Edit> {
    let plain: [fn(&mut FaultSpec); 4] = [
        |fault| fault.errno = Errno::IO,
        |fault| fault.lasting = false,
        |fault| fault.immediate = false,
        |fault| fault.done = FaultDone::Nothing,
    ];
    let mut edits: Vec<Edit> = Vec::new();
    edits.push(change(move |plan| {
        plan.faults.named.iter_mut().for_each(|fault| plain.iter().for_each(|plain| plain(fault)));
        true
    }));
    for index in 0..plan.faults.named.len() {
        // Values do not move faults, so that an index will do.
        let on =
            move |edit: &dyn Fn(&mut FaultSpec), plan: &mut Plan| plan.faults.named.get_mut(index).map(edit).is_some();
        edits.extend(plain.map(|plain| change(move |plan| on(&plain, plan))));
        edits.push(change(move |plan| on(&|fault| fault.done = FaultDone::All, plan)));
        for bytes in [512, 1024, 4096] {
            edits.push(change(move |plan| {
                on(
                    &|fault| match &mut fault.done {
                        FaultDone::First(old) | FaultDone::From(old) => *old = bytes.min(*old),
                        _ => (),
                    },
                    plan,
                )
            }));
        }
    }
    edits
}

fn drops(plan: &Plan) -> Vec<Edit> {
    let mut edits: Vec<Edit> = Vec::new();
    for op in &plan.ops {
        let Some(at) = op.drop_at else { continue };
        for new in (0..at.min(8)).chain([at / 2, at.saturating_sub(1)]) {
            edits.push(on_op(op.id, move |op| op.drop_at.replace(new).is_some_and(|old| new < old)));
        }
    }
    edits
}

/// The usual disk, the plain order, and small tears.
fn disk() -> Vec<Edit> {
    vec![
        change(|plan| std::mem::replace(&mut plan.disk.block, 512) != 512),
        change(|plan| std::mem::take(&mut plan.disk.profile) != Profile::default()),
        change(|plan| std::mem::take(&mut plan.disk.kind) != Kind::default()),
        change(|plan| std::mem::take(&mut plan.disk.flush_error) != FlushError::default()),
        change(|plan| std::mem::take(&mut plan.disk.seed) != 0),
        change(|plan| plan.schedule.strategy == Strategy::Fifo && std::mem::take(&mut plan.schedule.seed) != 0),
        change(|plan| {
            let mut changed = false;
            for state in states_mut(plan) {
                if let CutState::Tear { blocks, .. } = state {
                    changed |= std::mem::replace(blocks, 1) != 1;
                }
            }
            changed
        }),
    ]
}

/// Smaller disks, base images and resizes: as small as the requests allow, in units, and in between.
fn sizes(plan: &Plan) -> Vec<Edit> {
    let end = plan.ops.iter().filter_map(|op| op.act.range()).map(|range| range.end).max().unwrap_or(0);
    let unit = granule(plan);
    let block = end.next_multiple_of(512);
    let units = end.checked_next_multiple_of(unit).unwrap_or(end);
    let mut sizes: Vec<u64> =
        vec![512, end, block, units, unit, units.saturating_add(unit), 1 << 20, 16 << 20, 64 << 20];
    sizes.extend(plan.target.base);
    sizes.extend([plan.target.size, plan.target.base.unwrap_or(0)].map(|size| size / 2));
    sizes.retain(|&size| size > 0);
    sizes.sort_unstable();
    sizes.dedup();
    let mut edits: Vec<Edit> = Vec::new();
    for &new in &sizes {
        edits.push(change(move |plan| std::mem::replace(&mut plan.target.size, new) > new));
        edits
            .push(change(move |plan| plan.target.base.as_mut().is_some_and(|base| std::mem::replace(base, new) > new)));
        for op in plan.ops.iter().filter(|op| matches!(op.act, Act::Resize { .. })) {
            edits.push(on_op(op.id, move |op| match &mut op.act {
                Act::Resize { size } => std::mem::replace(size, new) > new,
                _ => false,
            }));
        }
    }
    edits
}
