//! The shrinker against judges that are functions of the plan: known minima are reached exactly, at any batch size.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

use blkproof_block::choice::{Choices, hash};
use blkproof_block::{ByteRange, Errno};
use blkproof_fault::disk::{FlushError, Kind, Profile};
use blkproof_sim::{FaultDone, Hold, IoKey, Owner, Schedule, Strategy};
use blkproof_torture::finding::Signature;
use blkproof_torture::plan::{
    Act, CrashPlan, CutPoint, CutState, DiskSpec, FaultAt, FaultSpec, Faults, Op, OpId, Plan, RandomFaults, TargetSpec,
};
use blkproof_torture::shrink::{Budget, Checkpoint, Judge, Limit, Pass, Shrunk, Verdict, resume, shrink};
use proptest::strategy::Strategy as _;

const CLUSTER: u64 = 65_536;

fn signature(code: &str) -> Signature {
    Signature { code: code.to_owned(), class: "data".to_owned(), phase: "run".to_owned(), site: String::new() }
}

fn fails() -> Verdict {
    Verdict::Fails(signature("read"), None)
}

fn verdict(fail: bool) -> Verdict {
    if fail { fails() } else { Verdict::Passes }
}

/// A judge out of a function, which counts.
struct By<F> {
    verdict: F,
    runs: Cell<usize>,
    widest: Cell<usize>,
    pending: Option<Vec<IoKey>>,
}

impl<F: Fn(&Plan) -> Verdict> By<F> {
    fn new(verdict: F) -> Self {
        Self { verdict, runs: Cell::new(0), widest: Cell::new(0), pending: None }
    }
}

impl<F: Fn(&Plan) -> Verdict> Judge for By<F> {
    fn judge(&self, candidates: &[Plan]) -> Vec<Verdict> {
        self.runs.set(self.runs.get() + candidates.len());
        self.widest.set(self.widest.get().max(candidates.len()));
        candidates.iter().map(&self.verdict).collect()
    }

    fn pending(&self, _: &Plan) -> Option<Vec<IoKey>> {
        self.pending.clone()
    }
}

fn io(owner: OpId, nth: u32) -> IoKey {
    IoKey { owner: Owner(owner), nth }
}

fn op(id: OpId, queue: u8, act: Act) -> Op {
    Op { id, queue, act, after: Vec::new(), drop_at: None }
}

fn write(at: u64, len: u64) -> Act {
    Act::Write { range: ByteRange::at(at, len), fua: false, compressed: false }
}

fn read(at: u64, len: u64) -> Act {
    Act::Read { range: ByteRange::at(at, len), vector: Vec::new() }
}

fn fault(at: FaultAt) -> FaultSpec {
    FaultSpec { at, lasting: false, immediate: false, done: FaultDone::Nothing, errno: Errno::IO }
}

fn hold(text: &str) -> Hold {
    text.parse().unwrap()
}

fn empty() -> Plan {
    Plan {
        seed: 1,
        target: TargetSpec { name: "vdi".to_owned(), options: Vec::new(), size: 64 << 20, base: None },
        disk: DiskSpec {
            block: 512,
            profile: Profile::default(),
            kind: Kind::default(),
            flush_error: FlushError::default(),
            seed: 0,
        },
        ops: Vec::new(),
        faults: Faults::default(),
        schedule: Schedule::default(),
        crash: CrashPlan::None,
    }
}

/// A big plan with some of everything.
fn busy(seed: u64, count: u32) -> Plan {
    let mut draw = Choices::new(seed);
    let mut plan = empty();
    plan.target.options = vec![("block_size".to_owned(), "64k".to_owned()), ("static".to_owned(), "on".to_owned())];
    plan.target.base = Some((draw.below(1 << 20) + 1) | 1);
    for id in 1..=count {
        let start = draw.below(8 << 20);
        let start = if draw.chance(700) { start & !511 } else { start };
        let range = ByteRange::at(start, draw.below(100_000) + 1);
        let (fua, flag) = (draw.chance(200), draw.chance(200));
        let act = match draw.below(12) {
            0..4 => Act::Write { range, fua, compressed: flag },
            4..7 => {
                let first = (range.len() / 3) as u32;
                let vector =
                    if flag && first > 0 { vec![first, first, range.len() as u32 - 2 * first] } else { vec![] };
                Act::Read { range, vector }
            }
            7 => Act::Zeroes { range, fua, unmap: flag, no_fallback: draw.chance(500) },
            8 => Act::Discard { range },
            9 => Act::Flush,
            10 => Act::Status { range },
            _ if draw.chance(300) => Act::Reopen,
            _ => Act::Drain,
        };
        let mut one = op(id, draw.below(4) as u8, act);
        if draw.chance(200) && id > 1 {
            one.after.push(draw.below(u64::from(id) - 1) as u32 + 1);
        }
        one.drop_at = draw.chance(100).then(|| draw.below(12) as u32);
        plan.ops.push(one);
        if draw.chance(200) {
            let done = FaultDone::First(draw.below(9000));
            let errno = if flag { Errno::NOSPC } else { Errno::IO };
            plan.faults.named.push(FaultSpec {
                at: FaultAt::Io(io(id, 2)),
                lasting: flag,
                immediate: fua,
                done,
                errno,
            });
        }
        if draw.chance(400) {
            let other = draw.below(u64::from(count)) + 1;
            plan.schedule.holds.push(hold(&format!("{id}#1.effect until {other}#2.done")));
        }
    }
    plan.crash = CrashPlan::At {
        point: CutPoint::AfterOp(count / 2),
        state: CutState::Seed(7),
        again: Some(Box::new((CutPoint::Before(io(count, 1).effect()), CutState::Number(3)))),
    };
    plan
}

fn by_id(plan: &Plan, id: OpId) -> Option<&Op> {
    plan.ops.iter().find(|op| op.id == id)
}

fn range(op: &Op) -> Option<ByteRange> {
    match &op.act {
        Act::Read { range, .. } | Act::Write { range, .. } | Act::Zeroes { range, .. } => Some(*range),
        Act::Discard { range } | Act::Status { range } => Some(*range),
        _ => None,
    }
}

/// Shrinks at batches of 1, 2 and 7, expects the same of each, and gives it back.
fn run(plan: &Plan, judge: impl Fn(&Plan) -> Verdict) -> Shrunk {
    run_with(plan, &Budget::default(), None, judge)
}

fn run_with(plan: &Plan, budget: &Budget, pending: Option<Vec<IoKey>>, verdict: impl Fn(&Plan) -> Verdict) -> Shrunk {
    let mut results = Vec::new();
    for batch in [1, 2, 7] {
        let mut judge = By::new(&verdict);
        judge.pending = pending.clone();
        let mut told = Vec::new();
        let mut watch = |progress: &blkproof_torture::shrink::Progress<'_>| {
            told.push((progress.pass, progress.round, progress.runs, progress.size));
            ControlFlow::Continue(())
        };
        let shrunk = shrink(plan, &signature("read"), &Budget { batch, ..budget.clone() }, &judge, &mut watch);
        assert!(judge.widest.get() <= batch.max(3) * budget.repeats.max(1), "batch {batch}: {}", judge.widest.get());
        assert!(batch > 1 || shrunk.judged == shrunk.runs, "nothing is judged ahead: {shrunk:?}");
        assert!(shrunk.runs <= budget.runs);
        results.push((Shrunk { judged: 0, ..shrunk }, told));
    }
    assert_eq!(results[0], results[1], "batch 2");
    assert_eq!(results[0], results[2], "batch 7");
    results.remove(0).0
}

fn finished(shrunk: &Shrunk) {
    assert_eq!((shrunk.limit, shrunk.minimal, shrunk.verified), (Limit::Fixpoint, true, (3, 3)));
    assert_eq!(shrunk.size, shrunk.plan.size());
}

/// V1 of the gallery: a write fails, another in its cluster succeeds, reopen, read of that.
fn lost_neighbour(plan: &Plan) -> bool {
    let failed: Vec<usize> = (0..plan.ops.len())
        .filter(|&i| {
            let hit = |fault: &FaultSpec| matches!(fault.at, FaultAt::Io(io) if io.owner.0 == plan.ops[i].id);
            matches!(plan.ops[i].act, Act::Write { .. }) && plan.faults.named.iter().any(hit)
        })
        .collect();
    let cluster = |i: usize| range(&plan.ops[i]).unwrap().start / CLUSTER;
    failed.iter().any(|&a| {
        (a + 1..plan.ops.len()).any(|b| {
            matches!(plan.ops[b].act, Act::Write { .. }) && cluster(a) == cluster(b) && {
                let reopen = (b..plan.ops.len()).find(|&i| plan.ops[i].act == Act::Reopen);
                let reads = |i: usize| {
                    matches!(plan.ops[i].act, Act::Read { .. })
                        && range(&plan.ops[i]).unwrap().overlaps(range(&plan.ops[b]).unwrap())
                };
                reopen.is_some_and(|reopen| (reopen..plan.ops.len()).any(reads))
            }
        })
    })
}

#[test]
fn the_bug_of_2011_shrinks_to_its_five_lines() {
    let mut plan = busy(3, 300);
    let last = plan.ops.len() as u32;
    plan.ops.extend([
        op(last + 1, 1, Act::Write { range: ByteRange::at(5 << 20, 70_000), fua: true, compressed: false }),
        op(last + 2, 0, write((5 << 20) + 9_001, 30_000)),
        op(last + 3, 0, Act::Reopen),
        op(last + 4, 3, read(5 << 20, 100_000)),
    ]);
    let broken = FaultSpec { errno: Errno::NOSPC, done: FaultDone::From(99), ..fault(FaultAt::Io(io(last + 1, 1))) };
    plan.faults.named.push(broken);
    let shrunk = run(&plan, |plan| verdict(lost_neighbour(plan)));
    finished(&shrunk);
    let mut want = empty();
    let ids: Vec<OpId> = shrunk.plan.ops.iter().map(|op| op.id).collect();
    want.ops = vec![
        op(ids[0], 0, write(0, 512)),
        op(ids[1], 0, write(0, 512)),
        op(ids[2], 0, Act::Reopen),
        op(ids[3], 0, read(0, 512)),
    ];
    want.faults.named = vec![fault(shrunk.plan.faults.named[0].at)];
    want.target.size = 512;
    assert_eq!(shrunk.plan, want);
    assert_eq!((shrunk.original, shrunk.size), (plan.size(), 5));
}

#[test]
fn overlapping_writes_keep_their_overlap_and_their_two_queues() {
    let races = |plan: &Plan| {
        let writes = || plan.ops.iter().filter(|op| matches!(op.act, Act::Write { .. }));
        let race = |a: &Op, b: &Op| {
            let (one, other) = (range(a).unwrap(), range(b).unwrap());
            // A strict overlap: each has bytes of its own.
            a.queue != b.queue && one.start < other.start && other.start < one.end && one.end < other.end
        };
        writes().any(|a| writes().any(|b| race(a, b) && !a.after.contains(&b.id) && !b.after.contains(&a.id)))
    };
    let shrunk = run(&busy(8, 200), |plan| verdict(races(plan)));
    finished(&shrunk);
    let (a, b) = (&shrunk.plan.ops[0], &shrunk.plan.ops[1]);
    assert_eq!((shrunk.size, a.queue, b.queue), (2, 0, 1));
    let mut ranges = [range(a).unwrap(), range(b).unwrap()];
    ranges.sort_by_key(|range| range.start);
    assert_eq!(ranges, [ByteRange::at(0, 1024), ByteRange::at(512, 1024)]);
    assert_eq!(shrunk.plan.target.size, 1536);
}

#[test]
fn a_hold_is_kept_until_the_earliest_move_that_does() {
    let mut plan = busy(5, 60);
    plan.schedule.holds.push(hold("7#1.effect until 50#3.done"));
    // Any move of op 20 or of a later one does, from its second request on.
    let needs = |plan: &Plan| {
        let late = |hold: &Hold| {
            let until = hold.until;
            until.owner.0 >= 20 && until.nth >= 2 && by_id(plan, until.owner.0).is_some()
        };
        by_id(plan, 20).is_some()
            && by_id(plan, 7).is_some()
            && plan.schedule.holds.iter().any(|hold| hold.what.to_string() == "7#1.effect" && late(hold))
    };
    let shrunk = run(&plan, |plan| verdict(needs(plan)));
    finished(&shrunk);
    assert_eq!(shrunk.plan.ops.iter().map(|op| op.id).collect::<Vec<_>>(), [7, 20]);
    assert_eq!(shrunk.plan.schedule.holds, [hold("7#1.effect until 20#2.poll")]);
    assert_eq!(shrunk.size, 3);
}

#[test]
fn a_crash_state_gets_a_name() {
    // What matters is that 4#1 is lost and 4#2 survives; the seed does that too.
    let lost = |state: &CutState| match state {
        CutState::Seed(_) => true,
        CutState::Keep(ios) => !ios.contains(&io(4, 1)) && ios.contains(&io(4, 2)),
        CutState::Drop(ios) => ios.contains(&io(4, 1)) && !ios.contains(&io(4, 2)),
        _ => false,
    };
    let mut plan = busy(6, 40);
    plan.ops[3].act = write(1 << 20, 4096);
    let judge = |plan: &Plan| {
        let at = matches!(&plan.crash, CrashPlan::At { state, .. } if lost(state));
        verdict(at && by_id(plan, 4).is_some())
    };
    let pending = vec![io(2, 1), io(4, 1), io(4, 2), io(5, 1)];
    for pending in [Some(pending), None] {
        let shrunk = run_with(&plan, &Budget::default(), pending, judge);
        finished(&shrunk);
        let want = CrashPlan::At { point: CutPoint::End, state: CutState::Keep(vec![io(4, 2)]), again: None };
        assert_eq!((shrunk.plan.crash, shrunk.plan.ops.len(), shrunk.size), (want, 1, 2));
    }
    // By drop-one, where keep-one does not do; among the ops; and with the rest of a list removed.
    let mut plan = empty();
    let state = CutState::Drop(vec![io(1, 1), io(2, 1), io(3, 1)]);
    plan.ops = vec![op(1, 0, write(0, 512)), op(2, 0, write(0, 512)), op(3, 0, write(0, 512))];
    plan.ops.push(op(4, 0, Act::Cut { state }));
    let drops = |plan: &Plan| {
        let lost = |state: &CutState| match state {
            CutState::Seed(_) => true,
            CutState::Drop(ios) => ios.contains(&io(2, 1)),
            _ => false,
        };
        verdict(
            plan.ops.iter().any(|op| matches!(&op.act, Act::Cut { state } if lost(state))) && by_id(plan, 2).is_some(),
        )
    };
    for state in [None, Some(CutState::Seed(5))] {
        if let Some(state) = state {
            plan.ops[3].act = Act::Cut { state };
        }
        let shrunk = run(&plan, drops);
        finished(&shrunk);
        let want = [op(2, 0, write(0, 512)), op(4, 0, Act::Cut { state: CutState::Drop(vec![io(2, 1)]) })];
        assert_eq!(shrunk.plan.ops, want);
    }
}

#[test]
fn a_power_cut_moves_off_the_request_it_was_named_by() {
    let mut plan = busy(6, 40);
    // Some op between 10 and the cut at 20 has to be there; which op names the moment does not matter.
    let judge = |plan: &Plan| {
        let place = |id: OpId| plan.ops.iter().position(|op| op.id == id);
        let CrashPlan::At { point, .. } = &plan.crash else { return Verdict::Passes };
        let cut = match point {
            CutPoint::AfterOp(id) => place(*id).map(|at| at + 1),
            CutPoint::BeforeOp(id) => place(*id),
            _ => None,
        };
        verdict(place(10).zip(place(30)).zip(cut).is_some_and(|((a, b), cut)| a < cut && cut <= b))
    };
    plan.crash = CrashPlan::At { point: CutPoint::BeforeOp(20), state: CutState::AllOld, again: None };
    let shrunk = run(&plan, judge);
    finished(&shrunk);
    let want = CrashPlan::At { point: CutPoint::AfterOp(10), state: CutState::AllOld, again: None };
    assert_eq!((shrunk.plan.crash, shrunk.plan.ops.len()), (want, 2));
}

#[test]
fn a_power_cut_at_an_op_that_goes_comes_before_the_next() {
    // Neither the op nor the moment can change alone.
    let judge = |plan: &Plan| {
        let CrashPlan::At { point, .. } = plan.crash else { return Verdict::Passes };
        let want = if by_id(plan, 2).is_some() { CutPoint::AfterOp(2) } else { CutPoint::BeforeOp(4) };
        verdict(point == want && by_id(plan, 4).is_some())
    };
    let mut plan = empty();
    plan.ops = (1..6).map(|id| op(id, 0, Act::Flush)).collect();
    plan.crash = CrashPlan::At { point: CutPoint::AfterOp(2), state: CutState::AllOld, again: None };
    let shrunk = run(&plan, judge);
    finished(&shrunk);
    let want = CrashPlan::At { point: CutPoint::BeforeOp(4), state: CutState::AllOld, again: None };
    assert_eq!((shrunk.plan.crash, shrunk.plan.ops), (want, vec![op(4, 0, Act::Flush)]));
}

#[test]
fn nothing_moves_sideways() {
    let mut plan = empty();
    plan.ops = (1..6).map(|id| op(id, 0, Act::Flush)).collect();
    plan.crash = CrashPlan::At { point: CutPoint::AfterOp(3), state: CutState::AllOld, again: None };
    let after = |plan: &Plan| matches!(plan.crash, CrashPlan::At { point: CutPoint::AfterOp(_), .. });
    let shrunk = run(&plan, |plan| verdict(plan.ops.len() == 5 && after(plan)));
    finished(&shrunk);
    assert_eq!(shrunk.plan.crash, CrashPlan::At { point: CutPoint::AfterOp(3), state: CutState::AllOld, again: None });
}

#[test]
fn an_order_passes_through_an_op_that_is_removed() {
    // 3 comes after 1, because it waits for 2, which waits for 1 or follows it in its queue.
    fn comes_after(plan: &Plan, late: &Op, early: OpId) -> bool {
        let at = plan.ops.iter().position(|op| op.id == late.id).unwrap();
        let before = plan.ops[..at].iter().rev().find(|op| op.queue == late.queue);
        let direct = late.after.iter().filter_map(|&id| by_id(plan, id)).chain(before);
        direct.into_iter().any(|op| op.id == early || comes_after(plan, op, early))
    }
    let judge = |plan: &Plan| {
        let (Some(one), Some(three)) = (by_id(plan, 1), by_id(plan, 3)) else { return Verdict::Passes };
        verdict(one.queue != three.queue && comes_after(plan, three, 1))
    };
    for queue in [0, 1] {
        let mut plan = empty();
        plan.ops = [(1, 0), (2, queue), (3, 2)].map(|(id, queue)| op(id, queue, write(0, 512))).to_vec();
        plan.ops[2].after = vec![2];
        if queue == 1 {
            plan.ops[1].after = vec![1];
        }
        let shrunk = run(&plan, judge);
        finished(&shrunk);
        assert_eq!(shrunk.plan.ops.iter().map(|op| (op.id, op.queue)).collect::<Vec<_>>(), [(1, 0), (3, 1)]);
        assert_eq!(shrunk.plan.ops[1].after, [1]);
    }
}

#[test]
fn an_op_goes_with_the_order_it_passed_on() {
    // With op 2 the order has to be there, without it there must be none: no step between the two fails.
    let judge = |plan: &Plan| {
        let after = |id| by_id(plan, id).map(|op| op.after.as_slice());
        let queues: BTreeSet<u8> = plan.ops.iter().map(|op| op.queue).collect();
        // In one queue there would be an order without a word.
        verdict(
            queues.len() == plan.ops.len()
                && matches!(
                    (after(1), after(2), after(3)),
                    (Some([]), Some([1]), Some([2])) | (Some([]), None, Some([]))
                ),
        )
    };
    let mut plan = empty();
    plan.ops = (1..4).map(|id| op(id, id as u8 - 1, write(0, 512))).collect();
    plan.ops[1].after = vec![1];
    plan.ops[2].after = vec![2];
    let shrunk = run(&plan, judge);
    finished(&shrunk);
    assert_eq!(shrunk.plan.ops, [op(1, 0, write(0, 512)), op(3, 1, write(0, 512))]);
}

#[test]
fn what_refers_to_an_op_goes_with_it() {
    let mut plan = busy(9, 30);
    plan.crash = CrashPlan::At {
        point: CutPoint::End,
        state: CutState::Keep(vec![io(2, 1), io(9, 1)]),
        again: Some(Box::new((CutPoint::AfterOp(2), CutState::Tear { io: io(2, 1), first: true, blocks: 3 }))),
    };
    let dangling = RefCell::new(Vec::new());
    let judge = |plan: &Plan| {
        let ids: BTreeSet<OpId> = plan.ops.iter().map(|op| op.id).collect();
        let mut named: Vec<OpId> = plan.ops.iter().flat_map(|op| op.after.clone()).collect();
        named.extend(plan.faults.named.iter().filter_map(|fault| match fault.at {
            FaultAt::Io(io) => Some(io.owner.0),
            _ => None,
        }));
        named.extend(plan.schedule.holds.iter().flat_map(|hold| [hold.what.owner.0, hold.until.owner.0]));
        let mut cut = |point: &CutPoint, state: &CutState| {
            match point {
                CutPoint::Before(key) => named.push(key.owner.0),
                CutPoint::BeforeOp(id) | CutPoint::AfterOp(id) => named.push(*id),
                CutPoint::End => (),
            }
            match state {
                CutState::Drop(ios) | CutState::Keep(ios) => named.extend(ios.iter().map(|io| io.owner.0)),
                CutState::Tear { io, .. } => named.push(io.owner.0),
                _ => (),
            }
        };
        if let CrashPlan::At { point, state, again } = &plan.crash {
            cut(point, state);
            if let Some(again) = again {
                cut(&again.0, &again.1);
            }
        }
        dangling.borrow_mut().extend(named.into_iter().filter(|id| !ids.contains(id)));
        verdict(ids.contains(&9) && ids.contains(&17))
    };
    let shrunk = run(&plan, judge);
    finished(&shrunk);
    assert_eq!(*dangling.borrow(), [] as [OpId; 0]);
    assert_eq!(shrunk.size, 2);
}

#[test]
fn values_are_lowered_as_far_as_they_go() {
    let judge = |plan: &Plan| {
        let Some(op) = by_id(plan, 5) else { return Verdict::Passes };
        let Act::Write { range, fua: true, .. } = op.act else { return Verdict::Passes };
        let drop = op.drop_at.is_some_and(|at| at >= 3);
        let end = range.end == plan.target.size && range.start % CLUSTER != 0;
        let fault =
            plan.faults.named.iter().any(|fault| fault.errno == Errno::NOSPC && fault.done != FaultDone::Nothing);
        let option = plan.target.options.iter().any(|(name, _)| name == "static");
        verdict(drop && end && fault && option && plan.target.base.is_some_and(|base| base >= 100_000))
    };
    let mut plan = busy(11, 50);
    let size = plan.target.size;
    plan.ops[4] = op(5, 3, Act::Write { range: ByteRange::at(size - 9000, 9000), fua: true, compressed: true });
    plan.ops[4].drop_at = Some(11);
    plan.target.base = Some(50 << 20);
    plan.disk =
        DiskSpec { block: 4096, profile: Profile::Torn, kind: Kind::Liar, flush_error: FlushError::Keep, seed: 9 };
    plan.schedule.seed = 7;
    plan.faults.named.clear();
    let broken = FaultSpec {
        at: FaultAt::Nth(4),
        lasting: true,
        immediate: true,
        done: FaultDone::First(5000),
        errno: Errno::NOSPC,
    };
    plan.faults.named.push(broken);
    let shrunk = run(&plan, judge);
    finished(&shrunk);
    let Act::Write { range, fua, compressed } = shrunk.plan.ops[0].act else { panic!("{shrunk:?}") };
    assert_eq!((range.len(), range.end, fua, compressed), (512, shrunk.plan.target.size, true, false));
    assert_eq!((shrunk.plan.ops[0].drop_at, shrunk.plan.ops[0].queue), (Some(3), 0));
    assert!(shrunk.plan.target.base.unwrap() <= 2 * CLUSTER, "{:?}", shrunk.plan.target);
    let want = FaultSpec { done: FaultDone::All, errno: Errno::NOSPC, ..fault(FaultAt::Nth(4)) };
    assert_eq!(shrunk.plan.faults.named, [want]);
    assert_eq!(shrunk.plan.target.options.len(), 1);
    assert_eq!((shrunk.plan.disk, shrunk.plan.schedule.seed), (empty().disk, 0));
}

#[test]
fn each_flag_goes_unless_it_is_needed() {
    let mut plan = empty();
    let range = ByteRange::at(0, 1536);
    plan.ops = vec![
        op(1, 0, Act::Write { range, fua: true, compressed: true }),
        op(2, 0, Act::Zeroes { range, fua: true, unmap: true, no_fallback: true }),
        op(3, 0, Act::Read { range, vector: vec![512, 512, 256, 256] }),
    ];
    let flags = |plan: &Plan| -> Vec<bool> {
        let one = |op: &Op| match &op.act {
            Act::Write { fua, compressed, .. } => vec![*fua, *compressed],
            Act::Zeroes { fua, unmap, no_fallback, .. } => vec![*fua, *unmap, *no_fallback],
            Act::Read { range, vector } => {
                let sum: u64 = vector.iter().map(|&piece| u64::from(piece)).sum();
                assert!(vector.is_empty() || sum == range.len() && !vector.contains(&0), "{range:?} {vector:?}");
                vec![vector.len() > 1]
            }
            _ => vec![],
        };
        plan.ops.iter().flat_map(one).collect()
    };
    for needed in 0..6 {
        let shrunk = run(&plan, |plan| verdict(plan.ops.len() == 3 && flags(plan)[needed]));
        finished(&shrunk);
        let want: Vec<bool> = (0..6).map(|flag| flag == needed).collect();
        assert_eq!(flags(&shrunk.plan), want);
        if let Act::Read { vector, range } = &shrunk.plan.ops[2].act {
            assert!(range.len() == 512 && (vector.is_empty() || vector.len() == 2), "{vector:?}");
        }
    }
}

#[test]
fn everything_after_the_failure_goes_in_one_run() {
    let plan = busy(2, 400);
    let judge = |plan: &Plan| {
        let there = by_id(plan, 30).is_some();
        if there { Verdict::Fails(signature("read"), Some(30)) } else { Verdict::Passes }
    };
    let judge = By::new(judge);
    let cuts = RefCell::new(Vec::new());
    let mut watch = |progress: &blkproof_torture::shrink::Progress<'_>| {
        if progress.pass == Pass::Cut {
            cuts.borrow_mut().push((progress.runs, progress.best.ops.len()));
        }
        ControlFlow::Continue(())
    };
    let shrunk = shrink(&plan, &signature("read"), &Budget::default(), &judge, &mut watch);
    finished(&shrunk);
    assert_eq!(cuts.borrow()[..2], [(1, 400), (2, 30)]);
    assert_eq!(shrunk.size, 1);
}

#[test]
fn chance_that_is_left_is_taken_out() {
    let mut plan = busy(2, 20);
    plan.faults.random = RandomFaults { seed: 3, rate: 20, immediate: 1, partial: 1, spare_open: true };
    plan.schedule.strategy = Strategy::Random;
    let shrunk = run(&plan, |plan| verdict(by_id(plan, 3).is_some()));
    finished(&shrunk);
    assert_eq!((shrunk.plan.faults.random, shrunk.plan.schedule.strategy), (RandomFaults::default(), Strategy::Fifo));
    // And kept if nothing fails without.
    let judge = |plan: &Plan| verdict(plan.faults.random.rate > 0 && plan.schedule.strategy == Strategy::Random);
    let shrunk = run(&plan, judge);
    finished(&shrunk);
    assert_eq!((shrunk.size, shrunk.plan.faults.random.rate), (0, 20));
}

#[test]
fn another_signature_is_filed_and_not_followed() {
    let mut plan = busy(4, 40);
    plan.crash = CrashPlan::None;
    // Without op 20 it hangs, whatever else there is: an attractive way down.
    let judge = |plan: &Plan| match (by_id(plan, 10), by_id(plan, 20)) {
        (_, None) => Verdict::Fails(signature("hang"), None),
        (Some(_), Some(_)) => fails(),
        (None, Some(_)) => Verdict::Invalid,
    };
    let shrunk = run(&plan, judge);
    finished(&shrunk);
    assert_eq!(shrunk.plan.ops.iter().map(|op| op.id).collect::<Vec<_>>(), [10, 20]);
    assert_eq!(shrunk.others.keys().cloned().collect::<Vec<_>>(), [signature("hang")]);
    let other = &shrunk.others[&signature("hang")];
    assert_eq!(judge(other), Verdict::Fails(signature("hang"), None));
    assert_eq!(other.size(), 0, "the smallest that was met");
    // Equal but for one part is another one too.
    for part in 0..4 {
        let judge = |plan: &Plan| {
            let mut found = signature("read");
            let parts = [&mut found.code, &mut found.class, &mut found.phase, &mut found.site];
            if by_id(plan, 20).is_none() {
                parts.into_iter().nth(part).unwrap().push('x');
            }
            Verdict::Fails(found, None)
        };
        let shrunk = run(&plan, judge);
        assert_eq!((shrunk.size, shrunk.others.len()), (1, 1));
    }
}

#[test]
fn the_budget_is_kept_and_a_shrink_goes_on() {
    let plan = busy(3, 120);
    let needed: Vec<OpId> = vec![5, 33, 71, 99, 120];
    let judge = |plan: &Plan| verdict(needed.iter().all(|&id| by_id(plan, id).is_some()));
    let whole = run(&plan, judge);
    finished(&whole);
    for runs in [1, 2, 3, 4, 5, 10, 50] {
        let shrunk = run_with(&plan, &Budget { runs, ..Budget::default() }, None, judge);
        assert_eq!((shrunk.limit, shrunk.minimal), (Limit::Runs, false), "{runs}");
        assert!(shrunk.runs <= runs && judge(&shrunk.plan) == fails());
        assert!(runs < 4 || shrunk.verified == (3, 3), "{runs}: {shrunk:?}");
    }
    assert_eq!(run_with(&plan, &Budget { runs: 0, ..Budget::default() }, None, judge).plan, plan);
    // In small pieces to the same end.
    let mut checkpoint = Checkpoint::new(&plan);
    let mut pieces = 0;
    let last = loop {
        let budget = Budget { runs: 60, ..Budget::default() };
        let go_on = &mut |_: &blkproof_torture::shrink::Progress<'_>| ControlFlow::Continue(());
        let shrunk = resume(&checkpoint, &signature("read"), &budget, &By::new(judge), go_on);
        pieces += 1;
        assert!(shrunk.runs <= 60 * pieces && shrunk.size <= checkpoint.plan.size());
        let next = shrunk.checkpoint();
        if shrunk.limit == Limit::Fixpoint || pieces > 40 {
            break shrunk;
        }
        checkpoint = next;
    };
    finished(&last);
    assert_eq!((last.plan, last.original), (whole.plan, whole.original));
    assert!(pieces >= 2);
    // Passes cut short change how long it takes, not what is proved.
    let shrunk = run_with(&plan, &Budget { pass_runs: 7, ..Budget::default() }, None, judge);
    finished(&shrunk);
    assert!(shrunk.size == 5 && shrunk.rounds > whole.rounds);
}

#[test]
fn whoever_watches_stops_it() {
    let judge = By::new(|plan: &Plan| verdict(by_id(plan, 3).is_some()));
    let calls = Cell::new(0);
    let mut watch = |_: &blkproof_torture::shrink::Progress<'_>| {
        calls.set(calls.get() + 1);
        if calls.get() < 6 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let shrunk = shrink(&busy(1, 100), &signature("read"), &Budget::default(), &judge, &mut watch);
    assert_eq!((shrunk.limit, shrunk.minimal, calls.get()), (Limit::Stopped, false, 6));
    assert_eq!(shrunk.verified, (3, 3));
}

#[test]
fn a_plan_that_does_not_fail_comes_back_as_it_was() {
    let plan = busy(1, 10);
    for (verdict, others) in [(Verdict::Passes, 0), (Verdict::Invalid, 0), (Verdict::Fails(signature("hang"), None), 1)]
    {
        let shrunk = run(&plan, |_| verdict.clone());
        assert_eq!((shrunk.limit, shrunk.runs, shrunk.verified), (Limit::NotFailing, 1, (0, 0)));
        assert_eq!((shrunk.plan, shrunk.others.len()), (plan.clone(), others));
    }
}

#[test]
fn a_flaky_failure_is_reported_as_such() {
    // With op 8 it always fails; without, only the first time it is run.
    let seen = RefCell::new(BTreeSet::new());
    let judge = By::new(|plan: &Plan| {
        let always = by_id(plan, 8).is_some();
        verdict(by_id(plan, 3).is_some() && (always || seen.borrow_mut().insert(format!("{plan:?}"))))
    });
    let go_on = &mut |_: &blkproof_torture::shrink::Progress<'_>| ControlFlow::Continue(());
    let plan = busy(1, 40);
    let shrunk = shrink(&plan, &signature("read"), &Budget::default(), &judge, go_on);
    assert_eq!((shrunk.verified, shrunk.minimal), ((3, 3), false), "{shrunk:?}");
    assert!(by_id(&shrunk.plan, 8).is_some());
    // Never twice: there is nothing to fall back to, and the rate says so.
    let seen = RefCell::new(BTreeSet::new());
    let judge = By::new(|plan: &Plan| verdict(seen.borrow_mut().insert(format!("{plan:?}"))));
    let shrunk = shrink(&plan, &signature("read"), &Budget::default(), &judge, go_on);
    assert_eq!(shrunk.verified, (0, 3));
    // With repeats it is not led astray in the first place.
    let seen = RefCell::new(BTreeSet::new());
    let judge = By::new(|plan: &Plan| {
        let always = by_id(plan, 8).is_some();
        verdict(by_id(plan, 3).is_some() && (always || seen.borrow_mut().insert(format!("{plan:?}"))))
    });
    let budget = Budget { repeats: 3, fails: 2, batch: 4, ..Budget::default() };
    let shrunk = shrink(&plan, &signature("read"), &budget, &judge, go_on);
    finished(&shrunk);
    assert_eq!(shrunk.plan.ops.iter().map(|op| op.id).collect::<Vec<_>>(), [3, 8]);
    assert!(shrunk.runs <= budget.runs);
}

#[test]
fn passes_with_fewer_runs_than_a_candidate_needs_prove_nothing() {
    let budget = Budget { pass_runs: 2, repeats: 3, fails: 3, ..Budget::default() };
    let shrunk = run_with(&busy(1, 10), &budget, None, |_| fails());
    // One round may ask what the crash state consists of; the next finds nothing left to do.
    assert_eq!((shrunk.limit, shrunk.minimal, shrunk.size), (Limit::Runs, false, shrunk.original));
    assert!(shrunk.rounds <= 2);
}

#[test]
fn a_state_that_keeps_nothing_any_more_is_all_old() {
    let mut plan = empty();
    plan.ops = vec![op(1, 0, Act::Flush), op(2, 0, Act::Cut { state: CutState::Keep(vec![io(1, 1)]) })];
    let judge = |plan: &Plan| {
        let want = if by_id(plan, 1).is_some() { CutState::Keep(vec![io(1, 1)]) } else { CutState::AllOld };
        verdict(by_id(plan, 2).is_some_and(|op| op.act == Act::Cut { state: want }))
    };
    let shrunk = run(&plan, judge);
    finished(&shrunk);
    assert_eq!(shrunk.plan.ops, [op(2, 0, Act::Cut { state: CutState::AllOld })]);
}

#[test]
fn no_plan_is_judged_twice() {
    let seen = RefCell::new(BTreeSet::new());
    let twice = Cell::new(0);
    let judge = By::new(|plan: &Plan| {
        if !seen.borrow_mut().insert(format!("{plan:?}")) {
            twice.set(twice.get() + 1);
        }
        verdict([3, 17, 22].iter().all(|&id| by_id(plan, id).is_some()))
    });
    let go_on = &mut |_: &blkproof_torture::shrink::Progress<'_>| ControlFlow::Continue(());
    let budget = Budget { batch: 7, ..Budget::default() };
    finished(&shrink(&busy(12, 40), &signature("read"), &budget, &judge, go_on));
    assert_eq!(twice.get(), 3, "but for the verification");
}

#[test]
fn a_judge_that_answers_too_little_does_not_break_it() {
    struct Short(Cell<bool>);
    impl Judge for Short {
        fn judge(&self, _: &[Plan]) -> Vec<Verdict> {
            if self.0.replace(false) { vec![fails()] } else { Vec::new() }
        }
    }
    let go_on = &mut |_: &blkproof_torture::shrink::Progress<'_>| ControlFlow::Continue(());
    let plan = busy(12, 5);
    let shrunk = shrink(&plan, &signature("read"), &Budget::default(), &Short(Cell::new(true)), go_on);
    assert_eq!((shrunk.plan, shrunk.verified), (plan, (0, 3)));
}

/// The plan without each element, one at a time, made independently of the shrinker.
fn neighbours(plan: &Plan) -> Vec<(String, Plan)> {
    let mut list = Vec::new();
    let mut add = |what: String, edit: &dyn Fn(&mut Plan)| {
        let mut less = plan.clone();
        edit(&mut less);
        list.push((what, less));
    };
    for op in &plan.ops {
        let id = op.id;
        add(format!("op {id}"), &|plan| {
            plan.ops.retain(|op| op.id != id);
            plan.ops.iter_mut().for_each(|op| op.after.retain(|&after| after != id));
            plan.faults.named.retain(|fault| !matches!(fault.at, FaultAt::Io(io) if io.owner.0 == id));
            plan.schedule.holds.retain(|hold| hold.what.owner.0 != id && hold.until.owner.0 != id);
            if let CrashPlan::At { point: CutPoint::BeforeOp(at) | CutPoint::AfterOp(at), .. } = plan.crash
                && at == id
            {
                plan.crash = CrashPlan::None;
            }
        });
        if op.drop_at.is_some() {
            add(format!("drop {id}"), &|plan| {
                plan.ops.iter_mut().filter(|op| op.id == id).for_each(|op| op.drop_at = None)
            });
        }
        for &after in &op.after {
            add(format!("{id} after {after}"), &|plan| {
                plan.ops.iter_mut().filter(|op| op.id == id).for_each(|op| op.after.retain(|&one| one != after));
            });
        }
    }
    for index in 0..plan.faults.named.len() {
        add(format!("fault {index}"), &|plan| {
            plan.faults.named.remove(index);
        });
    }
    for index in 0..plan.schedule.holds.len() {
        add(format!("hold {index}"), &|plan| {
            plan.schedule.holds.remove(index);
        });
    }
    for index in 0..plan.target.options.len() {
        add(format!("option {index}"), &|plan| drop(plan.target.options.remove(index)));
    }
    if plan.target.base.is_some() {
        add("base".to_owned(), &|plan| plan.target.base = None);
    }
    if plan.crash != CrashPlan::None {
        add("crash".to_owned(), &|plan| plan.crash = CrashPlan::None);
    }
    list
}

/// What has to be in a plan for it to fail, drawn from what is in it.
#[derive(Debug)]
struct Needs {
    ops: Vec<OpId>,
    faults: Vec<FaultAt>,
    holds: Vec<Hold>,
    drops: Vec<OpId>,
    crash: bool,
    base: bool,
    queues: usize,
}

impl Needs {
    fn draw(plan: &Plan, seed: u64) -> Self {
        let mut draw = Choices::new(seed);
        let mut pick = |per_mille: u32| draw.chance(per_mille);
        Self {
            ops: plan.ops.iter().map(|op| op.id).filter(|_| pick(60)).collect(),
            faults: plan.faults.named.iter().map(|fault| fault.at).filter(|_| pick(100)).collect(),
            holds: plan.schedule.holds.iter().copied().filter(|_| pick(80)).collect(),
            drops: plan.ops.iter().filter(|op| op.drop_at.is_some() && pick(200)).map(|op| op.id).collect(),
            crash: pick(300),
            base: pick(300),
            queues: usize::from(pick(300)) + usize::from(pick(300)),
        }
    }

    fn met(&self, plan: &Plan) -> bool {
        let queues: BTreeSet<u8> =
            plan.ops.iter().filter(|op| !matches!(op.act, Act::Reopen | Act::Cut { .. })).map(|op| op.queue).collect();
        self.ops.iter().all(|&id| by_id(plan, id).is_some())
            && self.faults.iter().all(|at| plan.faults.named.iter().any(|fault| fault.at == *at))
            && self.holds.iter().all(|hold| plan.schedule.holds.contains(hold))
            && self.drops.iter().all(|&id| by_id(plan, id).is_some_and(|op| op.drop_at.is_some()))
            && (!self.crash || plan.crash != CrashPlan::None)
            && (!self.base || plan.target.base.is_some())
            && queues.len() >= self.queues
    }

    /// Ops that the least plan has, if queues do not matter.
    fn least(&self) -> usize {
        let mut ops: BTreeSet<OpId> = self.ops.iter().chain(&self.drops).copied().collect();
        ops.extend(self.faults.iter().filter_map(|at| if let FaultAt::Io(io) = at { Some(io.owner.0) } else { None }));
        ops.extend(self.holds.iter().flat_map(|hold| [hold.what.owner.0, hold.until.owner.0]));
        ops.len() + self.faults.len() + self.holds.len() + self.drops.len() + usize::from(self.crash)
    }
}

fn cases() -> impl proptest::strategy::Strategy<Value = (Plan, Needs, u64)> {
    (0_u64..1 << 32, 1_u32..36).prop_map(|(seed, count)| {
        let mut plan = busy(seed, count);
        // Of a hold given twice the first is as good as the second.
        plan.schedule.holds.sort_unstable();
        plan.schedule.holds.dedup();
        let needs = Needs::draw(&plan, hash(seed, 1));
        (plan, needs, seed)
    })
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 16, failure_persistence: None, ..Default::default() })]

    #[test]
    fn what_is_needed_is_left_and_nothing_else((plan, needs, _) in cases()) {
        proptest::prop_assume!(needs.met(&plan) && needs.queues == 0);
        let shrunk = run(&plan, |plan| verdict(needs.met(plan)));
        finished(&shrunk);
        assert_eq!(shrunk.size, needs.least(), "{needs:?}\n{:?}", shrunk.plan);
        assert_eq!(shrunk.plan.target.base.is_some(), needs.base);
    }

    /// Also where less may pass, and fail otherwise, and fail again: no minimum, but a 1-minimal plan.
    #[test]
    fn the_result_fails_equally_and_is_one_minimal((plan, needs, seed) in cases()) {
        proptest::prop_assume!(needs.met(&plan));
        let judge = |candidate: &Plan| {
            let ids = candidate.ops.iter().fold(hash(seed, 2), |sum, op| hash(sum, u64::from(op.id)));
            let shape = hash(ids, candidate.schedule.holds.len() as u64);
            match (needs.met(candidate), shape % 8) {
                _ if *candidate == plan => fails(),
                (true, 0 | 1) => Verdict::Passes,
                (true, 2) => Verdict::Fails(signature("hang"), None),
                (true, 3) => Verdict::Invalid,
                (true, _) => Verdict::Fails(signature("read"), candidate.ops.last().map(|op| op.id)),
                (false, 5) => Verdict::Fails(signature("zero"), None),
                (false, _) => Verdict::Passes,
            }
        };
        let shrunk = run(&plan, judge);
        finished(&shrunk);
        let equal = |plan: &Plan| matches!(judge(plan), Verdict::Fails(found, _) if found == signature("read"));
        assert!(equal(&shrunk.plan));
        for (what, less) in neighbours(&shrunk.plan) {
            assert!(!equal(&less), "still fails without {what}: {:?}", shrunk.plan);
        }
        for (other, plan) in &shrunk.others {
            assert_eq!(judge(plan), Verdict::Fails(other.clone(), None));
        }
    }
}
