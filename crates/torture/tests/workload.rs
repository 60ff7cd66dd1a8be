//! What the generator makes: everything, often enough, and no seed of everything.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use std::collections::BTreeMap;

use blkproof_block::ByteRange;
use blkproof_fault::disk::{FlushError, Profile as Survives};
use blkproof_sim::Strategy;
use blkproof_torture::plan::{Act, CrashPlan, CutState, FaultAt, Op, Plan};
use blkproof_torture::target;
use blkproof_torture::workload::{Features, Profile, TargetInfo, Variant, generate};

fn variant(cluster: u64, spans: &[u64], size: u64, base: bool) -> Variant {
    Variant {
        options: vec![("cluster_size".to_owned(), cluster.to_string())],
        size,
        size_alignment: 512,
        alignment: 1,
        cluster,
        spans: spans.to_vec(),
        hot: vec![1 << 32],
        base,
        features: Features::ALL,
    }
}

fn target() -> TargetInfo {
    TargetInfo {
        name: "qcow2".to_owned(),
        variants: vec![
            variant(65536, &[512 << 20, 2 << 30], 64 << 20, false),
            variant(512, &[32 << 10, 128 << 10], 4 << 20, true),
            variant(4096, &[2 << 20, 8 << 20], 16 << 20, true),
            variant(2 << 20, &[512 << 30], 5 << 30, false),
        ],
        profiles: vec![Survives::Ordered, Survives::Request, Survives::Block, Survives::Torn],
        blocks: vec![512, 4096],
        flush_errors: vec![FlushError::Keep, FlushError::Forget],
    }
}

/// Properties of an op, in the words of the table below.
fn words(plan: &Plan, index: usize, life: usize, target: &TargetInfo) -> Vec<String> {
    let op = &plan.ops[index];
    let mut words = vec![op.act.name().to_owned()];
    let mut add = |word: &str| words.push(word.to_owned());
    match &op.act {
        Act::Write { fua, compressed, .. } => {
            if *fua {
                add("write fua");
            }
            if *compressed {
                add("write compressed");
            }
        }
        Act::Zeroes { fua, unmap, no_fallback, .. } => {
            for (set, word) in [(fua, "zeroes fua"), (unmap, "zeroes unmap"), (no_fallback, "zeroes no-fallback")] {
                if *set {
                    add(word);
                }
            }
        }
        Act::Read { vector, .. } if !vector.is_empty() => add("vector"),
        Act::Cut { state } => add(match state {
            CutState::AllOld => "cut all-old",
            CutState::AllNew => "cut all-new",
            _ => "cut seed",
        }),
        _ => {}
    }
    if !op.after.is_empty() {
        add("after");
    }
    match op.drop_at {
        Some(0) => add("drop at once"),
        Some(1..8) => add("drop soon"),
        Some(_) => add("drop late"),
        None => {}
    }
    if matches!(op.act, Act::Resize { .. }) && op.drop_at.is_some() {
        add("drop a resize");
    }
    let Some(range) = op.act.range() else { return words };
    let cluster: u64 = plan.target.options[0].1.parse().unwrap();
    let variant = target.variants.iter().find(|variant| variant.cluster == cluster).unwrap();
    add(match (range.start % 512, range.len()) {
        (_, 1..512) => "less than a sector",
        (0, len) if len % 512 == 0 => "sectors",
        _ => "unaligned",
    });
    if range.start % cluster == 0 && range.len() % cluster == 0 {
        add("whole clusters");
    }
    if range.len() > 4 * cluster {
        add("many clusters");
    }
    let straddles = |at: u64| range.start < at && at < range.end;
    let touches = |at: u64| straddles(at) || range.start == at || range.end == at;
    // Half a cluster is what a driver may forget; a base that ends with one is found by chance.
    let odd_base = plan.target.base.filter(|base| base % cluster != 0);
    let over = |span: u64| range.start / span < (range.end - 1) / span && range.len() < 4 * span;
    for (yes, word) in [
        (over(cluster), "over a cluster's end"),
        (variant.spans.iter().any(|span| over(*span)), "over a table's end"),
        (touches(1 << 32), "at 2^32"),
        (straddles(1 << 32), "over 2^32"),
        (odd_base.is_some_and(touches), "at the base's end"),
        (odd_base.is_some_and(straddles), "over the base's end"),
        (range.end == plan.target.size, "up to the disk's end"),
        (range.start == 0, "from the disk's start"),
    ] {
        if yes {
            add(word);
        }
    }
    // What may be in flight with it.
    let window = 2 * plan.ops.iter().map(|op| usize::from(op.queue) + 1).max().unwrap();
    let from = index.saturating_sub(window.max(4)).max(life);
    let others: Vec<ByteRange> =
        plan.ops[from..index].iter().filter(|other| other.queue != op.queue).filter_map(|op| op.act.range()).collect();
    let mut near = false;
    let clusters = |range: ByteRange| (range.start / cluster, (range.end - 1) / cluster);
    for (word, shape) in [
        ("identical", (&|other| other == range) as &dyn Fn(ByteRange) -> bool),
        ("inside", &|other: ByteRange| other != range && other.start <= range.start && range.end <= other.end),
        ("around", &|other: ByteRange| other != range && range.start <= other.start && other.end <= range.end),
        ("over the other's start", &|other| range.start < other.start && straddling(range, other)),
        ("over the other's end", &|other| other.start < range.start && straddling(other, range)),
        ("just before", &|other| range.end == other.start),
        ("just behind", &|other| range.start == other.end),
        ("in the same cluster", &|other| {
            let (a, b) = (clusters(range), clusters(other));
            !range.overlaps(other) && a.0 <= b.1 && b.0 <= a.1
        }),
    ] {
        if others.iter().any(|other| shape(*other)) {
            near = true;
            words.push(word.to_owned());
        }
    }
    if !others.is_empty() {
        words.push("has company".to_owned());
        if near {
            words.push("near".to_owned());
        }
    }
    words
}

/// `a` begins first, and ends within `b`.
fn straddling(a: ByteRange, b: ByteRange) -> bool {
    b.start < a.end && a.end < b.end
}

#[derive(Default)]
struct Counts {
    ops: u64,
    words: BTreeMap<String, u64>,
    /// Long plans, and those of them that have it.
    long: u64,
    have: BTreeMap<String, u64>,
    plans: BTreeMap<String, u64>,
}

fn counts() -> Counts {
    let (mut counts, target) = (Counts::default(), target());
    for seed in 0..1000 {
        let plan = generate(seed, &target, &Profile::CI);
        plan.validate().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let mut mine: BTreeMap<String, u64> = BTreeMap::new();
        let mut life = 0;
        for (index, op) in plan.ops.iter().enumerate() {
            for word in words(&plan, index, life, &target) {
                *mine.entry(word).or_default() += 1;
            }
            if matches!(op.act, Act::Reopen | Act::Cut { .. }) {
                life = index + 1;
            }
        }
        counts.ops += plan.ops.len() as u64;
        let long = plan.ops.len() >= 64;
        counts.long += u64::from(long);
        for (word, count) in mine {
            *counts.words.entry(word.clone()).or_default() += count;
            *counts.have.entry(word).or_default() += u64::from(long);
        }
        let mut add = |word: String| *counts.plans.entry(word).or_default() += 1;
        let queues = plan.ops.iter().map(|op| op.queue).max().unwrap() + 1;
        add(format!("queues {}", queues.next_power_of_two()));
        add(match plan.schedule.strategy {
            Strategy::Fifo => "fifo".to_owned(),
            Strategy::Random => "random".to_owned(),
            Strategy::Delays { .. } => "delays".to_owned(),
            Strategy::Pct { depth, .. } => format!("pct {depth}"),
        });
        add(format!("profile {}", plan.disk.profile.name()));
        add(format!("block {}", plan.disk.block));
        add(format!("flush-error {}", plan.disk.flush_error.name()));
        add(match &plan.crash {
            CrashPlan::None => "no search".to_owned(),
            CrashPlan::Explore { depth, .. } => format!("search {depth}"),
            CrashPlan::At { .. } => panic!("a seed knows no moment"),
        });
        let random = plan.faults.random;
        add((if random.rate > 0 { "random faults" } else { "no random faults" }).to_owned());
        match plan.faults.named.as_slice() {
            [] if random.rate == 0 => add("no fault".to_owned()),
            [] => {}
            [fault, rest @ ..] => {
                add((match fault.at {
                    FaultAt::Nth(_) => "nth",
                    FaultAt::NthOf(..) => "nth of a kind",
                    FaultAt::Io(key) if key.owner.0 == 0 => "fault of an opening",
                    FaultAt::Io(_) => "fault of an op",
                })
                .to_owned());
                add((if fault.lasting { "lasting" } else { "once" }).to_owned());
                if !rest.is_empty() {
                    add("several faults".to_owned());
                }
            }
        }
        if random.rate > 0 {
            for (set, word) in [
                (random.immediate, "immediate"),
                (random.partial, "partial"),
                (u32::from(random.spare_open), "spare open"),
            ] {
                add(format!("{word} {}", set > 0));
            }
        }
        let (size, base) = (plan.target.size, plan.target.base);
        add((if size % 4096 == 0 { "even size" } else { "odd size" }).to_owned());
        if let Some(base) = base {
            add((match base.cmp(&size) {
                std::cmp::Ordering::Less => "shorter base",
                std::cmp::Ordering::Equal => "equal base",
                std::cmp::Ordering::Greater => "longer base",
            })
            .to_owned());
            add((if base % 512 == 0 { "base of sectors" } else { "base of bytes" }).to_owned());
        }
    }
    counts
}

#[test]
fn everything_occurs_and_no_seed_has_everything() {
    let counts = counts();
    let mut wrong = Vec::new();
    // Of a thousand ops at least; of a thousand long plans, those that have it, at least and at most.
    let table: &[(&str, u64, u64, u64)] = &[
        ("read", 150, 700, 980),
        ("write", 250, 850, 1000),
        ("zeroes", 25, 400, 750),
        ("discard", 25, 350, 750),
        ("flush", 40, 600, 920),
        ("drain", 1, 100, 350),
        ("status", 10, 300, 650),
        ("resize", 2, 120, 400),
        ("reopen", 3, 250, 600),
        ("cut", 1, 60, 300),
        ("write fua", 40, 300, 750),
        ("write compressed", 15, 100, 450),
        ("zeroes fua", 4, 150, 600),
        ("zeroes unmap", 10, 250, 700),
        ("zeroes no-fallback", 2, 60, 450),
        ("vector", 10, 300, 750),
        ("cut all-old", 0, 10, 200),
        ("cut all-new", 0, 10, 200),
        ("cut seed", 0, 20, 250),
        ("after", 10, 250, 900),
        ("drop at once", 3, 150, 500),
        ("drop soon", 20, 200, 550),
        ("drop late", 3, 150, 500),
        ("drop a resize", 0, 5, 100),
        ("less than a sector", 20, 300, 1000),
        ("sectors", 200, 500, 1000),
        ("unaligned", 100, 500, 1000),
        ("whole clusters", 20, 300, 950),
        ("many clusters", 10, 100, 950),
        ("over a cluster's end", 40, 500, 1000),
        ("over a table's end", 3, 100, 900),
        ("at 2^32", 1, 30, 350),
        ("over 2^32", 1, 20, 350),
        ("at the base's end", 10, 110, 500),
        ("over the base's end", 8, 100, 500),
        ("up to the disk's end", 5, 300, 950),
        ("from the disk's start", 5, 200, 950),
        ("identical", 20, 350, 950),
        ("inside", 40, 400, 950),
        ("around", 40, 400, 950),
        ("over the other's start", 15, 350, 950),
        ("over the other's end", 15, 350, 950),
        ("just before", 10, 300, 950),
        ("just behind", 10, 300, 950),
        ("in the same cluster", 60, 400, 950),
    ];
    for &(word, ops_least, plans_least, plans_most) in table {
        let of = |map: &BTreeMap<String, u64>| map.get(word).copied().unwrap_or(0);
        let ops = of(&counts.words) * 1000 / counts.ops;
        let plans = of(&counts.have) * 1000 / counts.long;
        if ops < ops_least || of(&counts.words) < 20 || plans < plans_least || plans > plans_most {
            wrong.push(format!(
                "{word}: {ops} of 1000 ops (from {ops_least}), {plans} of 1000 plans ({plans_least} to {plans_most})"
            ));
        }
    }
    let near = counts.words["near"] * 1000 / counts.words["has company"];
    if !(500..=850).contains(&near) {
        wrong.push(format!("{near} of 1000 requests are near another one"));
    }
    // Of the thousand plans, at least.
    for (word, least) in [
        ("queues 1", 80),
        ("queues 2", 80),
        ("queues 4", 120),
        ("queues 8", 120),
        ("queues 16", 40),
        ("queues 32", 30),
        ("fifo", 50),
        ("random", 200),
        ("delays", 250),
        ("pct 1", 20),
        ("pct 2", 50),
        ("pct 3", 50),
        ("profile ordered", 150),
        ("profile request", 150),
        ("profile block", 150),
        ("profile torn", 150),
        ("block 512", 300),
        ("block 4096", 300),
        ("flush-error keep", 300),
        ("flush-error forget", 300),
        ("no search", 300),
        ("search 0", 200),
        ("search 1", 50),
        ("random faults", 300),
        ("no random faults", 300),
        ("no fault", 300),
        ("nth", 50),
        ("nth of a kind", 50),
        ("fault of an op", 50),
        ("several faults", 100),
        ("lasting", 50),
        ("once", 50),
        ("immediate true", 100),
        ("immediate false", 50),
        ("partial true", 100),
        ("partial false", 50),
        ("spare open true", 100),
        ("spare open false", 50),
        ("even size", 200),
        ("odd size", 300),
        ("shorter base", 100),
        ("equal base", 40),
        ("longer base", 80),
        ("base of sectors", 100),
        ("base of bytes", 100),
    ] {
        let plans = counts.plans.get(word).copied().unwrap_or(0);
        if plans < least {
            wrong.push(format!("{word}: {plans} of 1000 plans (from {least})"));
        }
    }
    assert!(wrong.is_empty(), "{} ops, {} long plans\n{}", counts.ops, counts.long, wrong.join("\n"));
}

/// No request of a plan can find the disk too short, in whatever order things move, if nothing fails.
#[test]
fn requests_fit_the_disk_whatever_the_order() {
    let target = target();
    let (mut resizes, mut concurrent) = (0, 0);
    for seed in 0..1000 {
        let plan = generate(seed, &target, &Profile::CI);
        // For each op, those that have surely ended before it is sent.
        let mut before: Vec<Vec<bool>> = Vec::new();
        let mut size_at_life = plan.target.size;
        let mut life = 0;
        let position: BTreeMap<u32, usize> = plan.ops.iter().enumerate().map(|(at, op)| (op.id, at)).collect();
        for (index, op) in plan.ops.iter().enumerate() {
            let mut ended = vec![false; index];
            let direct = plan.ops[life..index].iter().rposition(|other| other.queue == op.queue).map(|at| at + life);
            for at in direct.into_iter().chain(op.after.iter().map(|id| position[id])) {
                ended[at] = true;
                for (earlier, done) in before[at].iter().enumerate() {
                    ended[earlier] |= *done;
                }
            }
            // Sizes the disk may have: a resize that may be in flight has or has not happened.
            let resizes_of = |ops: &[Op]| -> Vec<(usize, u64)> {
                let sizes = ops.iter().enumerate().filter_map(|(at, op)| match op.act {
                    Act::Resize { size } => Some((at + life, size)),
                    _ => None,
                });
                sizes.collect()
            };
            let here = resizes_of(&plan.ops[life..index]);
            // One that is dropped has or has not happened, for ever.
            let dropped = |at: usize| plan.ops[at].drop_at.is_some();
            let sure = here.iter().rposition(|(at, _)| ended[*at] && !dropped(*at));
            let settled = sure.map_or(size_at_life, |at| here[at].1);
            let open = &here[sure.map_or(0, |at| at + 1)..];
            let least = open.iter().map(|(_, size)| *size).fold(settled, u64::min);
            if let Some(range) = op.act.range() {
                assert!(!range.is_empty(), "seed {seed}: {op}");
                assert!(range.end <= least, "seed {seed}: {op} on a disk of {least} bytes, perhaps");
                concurrent += u64::from(!open.is_empty());
            }
            if let Act::Resize { size } = op.act {
                resizes += 1;
                let over = open.iter().all(|(at, _)| ended[*at]);
                assert!(over, "seed {seed}: {op} overtakes a resize");
                for (at, other) in plan.ops[life..index].iter().enumerate() {
                    let fits = other.act.range().is_none_or(|range| range.end <= size);
                    assert!(fits || ended[at + life], "seed {seed}: {op} takes the ground from {other}");
                }
            }
            before.push(ended);
            if matches!(op.act, Act::Reopen | Act::Cut { .. }) {
                let here = resizes_of(&plan.ops[life..index]);
                let dropped = here.iter().any(|(at, _)| plan.ops[*at].drop_at.is_some());
                let mut sizes = here.iter().map(|(_, size)| *size);
                size_at_life = match dropped {
                    true => sizes.fold(size_at_life, u64::min),
                    false => sizes.next_back().unwrap_or(size_at_life),
                };
                life = index + 1;
            }
        }
    }
    assert!(resizes > 200 && concurrent > 200, "{resizes} resizes, {concurrent} requests beside one");
}

/// What is decided at one site shifts nothing at another: without the feature, the plan is the same but for it.
#[test]
fn a_feature_left_out_shifts_nothing() {
    let with = target();
    let without = |change: fn(&mut Features)| {
        let mut target = target();
        target.variants.iter_mut().for_each(|variant| change(&mut variant.features));
        target
    };
    let (no_drops, no_fua) = (without(|features| features.drops = false), without(|features| features.fua = false));
    let (mut dropped, mut durable) = (0, 0);
    for seed in 0..300 {
        let plan = generate(seed, &with, &Profile::QUICK);
        let mut want = plan.clone();
        for op in &mut want.ops {
            dropped += u64::from(op.drop_at.take().is_some());
        }
        assert_eq!(generate(seed, &no_drops, &Profile::QUICK), want, "seed {seed}");
        let mut want = plan.clone();
        for op in &mut want.ops {
            if let Act::Write { fua, .. } | Act::Zeroes { fua, .. } = &mut op.act {
                durable += u64::from(std::mem::take(fua));
            }
        }
        assert_eq!(generate(seed, &no_fua, &Profile::QUICK), want, "seed {seed}");
    }
    assert!(dropped > 100 && durable > 100, "{dropped} dropped, {durable} durable");
}

/// A target of which little can be asked is asked for no more, and where it wants alignment it gets it.
#[test]
fn a_modest_target_is_asked_for_little() {
    let mut target = target();
    for variant in &mut target.variants {
        variant.features = Features::NONE;
        variant.alignment = 4096;
        variant.size_alignment = 4096;
    }
    for seed in 0..300 {
        let plan = generate(seed, &target, &Profile::CI);
        plan.validate().unwrap();
        assert_eq!((plan.target.size % 4096, plan.faults.random.rate, &plan.crash), (0, 0, &CrashPlan::None));
        for op in &plan.ops {
            assert!(op.drop_at.is_none() && op.act.range().is_none_or(|range| (range.start | range.end) % 4096 == 0));
            match &op.act {
                Act::Read { vector, .. } => assert!(vector.iter().all(|len| len % 4096 == 0), "seed {seed}: {op}"),
                Act::Write { fua: false, compressed: false, .. } | Act::Flush => {}
                other => panic!("seed {seed}: {other:?}"),
            }
        }
    }
}

/// A target that says nothing of itself, or of a disk of next to nothing, still gets a plan.
#[test]
fn odd_targets() {
    let mut target = target();
    target.variants.clear();
    let tiny = TargetInfo {
        variants: vec![Variant { size: 1, size_alignment: 1, ..variant(1, &[0, 1], 1, true) }],
        profiles: Vec::new(),
        blocks: Vec::new(),
        flush_errors: Vec::new(),
        ..target.clone()
    };
    let huge = TargetInfo { variants: vec![variant(1 << 62, &[u64::MAX], (1 << 63) - 512, true)], ..target.clone() };
    for seed in 0..200 {
        for target in [&target, &tiny, &huge] {
            let plan = generate(seed, target, &Profile::QUICK);
            plan.validate().unwrap_or_else(|error| panic!("seed {seed}: {error}\n{plan}"));
        }
    }
    assert_eq!(Profile::named("deep"), Some(Profile::DEEP));
    assert_eq!(Profile::named("deeper"), None);
}

#[test]
fn every_target_gets_plans_it_can_make_images_for() {
    for name in target::names() {
        let target = target::find(name).unwrap();
        let info = target.info();
        assert!(info.variants.iter().any(|variant| variant.base), "{name}");
        let mut based = 0;
        for seed in 0..60 {
            let plan = generate(seed, &info, &Profile::QUICK);
            plan.validate().unwrap_or_else(|error| panic!("{name}, seed {seed}: {error}"));
            based += u64::from(plan.target.base.is_some());
            if let Err(error) = target.create(&plan.target) {
                panic!("{name}, seed {seed}: {error}: {:?}", plan.target);
            }
        }
        assert!(based > 5, "{name}: {based} of 60 over a base");
    }
}
