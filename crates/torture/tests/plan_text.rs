//! Plans as text: what is written is read back, what is wrong is named, and nothing panics.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use blkproof_block::choice::Choices;
use blkproof_block::{ByteRange, Errno};
use blkproof_fault::disk::{FlushError, Kind, Profile};
use blkproof_sim::{FaultDone, Hold, IoKey, IoKind, MoveKey, Owner, Schedule, Step, Strategy as Order};
use blkproof_torture::plan::{
    Act, CrashPlan, CutPoint, CutState, DiskSpec, FaultAt, FaultSpec, Faults, OP_MAX, Op, Plan, REQUEST_MAX,
    RandomFaults, SIZE_MAX, TargetSpec,
};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

const WHOLE: &str = r#"# A plan with everything.
schema = "blkproof.plan/1"
seed = 42
crash = "at before 7#2.done keep 3#2+4#1, then end all-new"
ops = [
    "1 write 0+4K",
    "3 q1 write 64K+4K fua compressed after 1 drop@5",
    "7 read 1M+512 as 200+312",
    "8 q2 zeroes 4097+1K fua unmap no-fallback after 1,3",
    "9 reopen",
    "10 discard 0+64M",
    "11 q255 flush",
    "13 drain drop@0",
    "14 status 0x10000+0x200",
    "15 resize 3G",
    "12 cut keep 3#2+4#1 after 15",
    "16 cut tear 3#2 last 4",
    "17 cut drop nothing",
]
faults = [
    "3#2 fails EIO after 512",
    "5#1 refused ENOSPC",
    "nth 17 fails EIO, lasting",
    "write 3 fails EIO, all done",
    "flush 1 fails 4095, from 4K, lasting",
]

[target]
name = "qcow2"
size = "64M"
base = 1000

[target.options]
cluster_size = "4K"
"odd \" name" = "\u0000"

[disk]
block = 4096
profile = "torn"
kind = "liar"
flush-error = "forget"
seed = "0xffffffffffffffff"

[random-faults]
rate = 20
immediate = 300
partial = 200
spare-open = true
seed = 7

[schedule]
strategy = "pct:3:1000"
seed = 9
holds = ["7#2.effect until 9#1.done"]
"#;

#[test]
fn a_plan_with_everything() {
    let plan = Plan::parse(WHOLE).unwrap();
    assert_eq!(plan.ops.len(), 13);
    assert_eq!(
        plan.ops[1],
        Op {
            id: 3,
            queue: 1,
            act: Act::Write { range: ByteRange::at(65536, 4096), fua: true, compressed: true },
            after: vec![1],
            drop_at: Some(5),
        }
    );
    assert_eq!(plan.faults.named[0].done, FaultDone::First(512));
    assert_eq!((plan.disk.block, plan.disk.seed), (4096, u64::MAX));
    assert_eq!(plan.target.options[1], ("odd \" name".to_owned(), "\0".to_owned()));
    assert_eq!(Plan::parse(&plan.to_string()).unwrap(), plan);
}

/// A plan is as short as what it says.
#[test]
fn the_plainest_plan() {
    let text = "schema = \"blkproof.plan/1\"\nseed = 0\nops = [\n    \"1 write 0+4K\",\n]\n\n[target]\nname = \"vdi\"\n\
                size = \"1M\"\n";
    assert_eq!(Plan::parse(text).unwrap().to_string(), text);
}

#[test]
fn errors_say_where_and_what_would_be_right() {
    let line = |number: usize| WHOLE.lines().nth(number - 1).unwrap();
    for (number, with, want) in [
        (
            2,
            "schema = \"blkproof.plan/2\"",
            "schema: 'blkproof.plan/2' is no plan this program reads; it reads blkproof.plan/1",
        ),
        (3, "sead = 4", "sead: 'sead' is no part of a plan; did you mean 'seed'?"),
        (3, "seed = -4", "seed: this is no number from 0 to 2^64 - 1; write 17, 0x11, or \"0x11\""),
        (3, "seed = ", "no TOML"),
        (4, "crash = \"explore 0 states, depth 1, seed 7\"", "crash: states are counted from 1; 0 is none"),
        (
            4,
            "crash = \"explore 7 state, depth 1, seed 7\"",
            "crash: 'state' stands where 'states' should, as in 'explore 4096 states, depth 1, seed 7'",
        ),
        (4, "crash = \"at noon all-old\"", "crash: 'noon' is no moment; there are before, after, end"),
        (6, "\"1 wirte 0+4K\",", "ops[0]: 'wirte' is no thing to do; did you mean 'write'?"),
        (6, "\"1 write 0+4K fau\",", "ops[0]: 'fau' is no word of this op; did you mean 'fua'?"),
        (6, "\"1 write 0+4K fua fua\",", "ops[0]: 'fua' is said twice"),
        (6, "\"1 write 4K\",", "ops[0]: '4K' is no range: write offset and length, as in 64K+4K"),
        (6, "\"1 write 0+4X\",", "ops[0]: '0+4X' is no range: write offset and length, as in 64K+4K"),
        (6, "\"1 write\",", "ops[0]: the line ends where a range such as 64K+4K should follow"),
        (6, "\"0 write 0+4K\",", "ops[0]: op 0: ops are counted from 1"),
        (6, "\"1048576 write 0+4K\",", "ops[0]: op 1048576: the largest number is 1048575"),
        (6, "\"1 q256 write 0+4K\",", "ops[0]: 'q256' is no queue: there are q0 to q255"),
        (6, "\"1 write 0+65M\",", "ops[0]: op 1: 68157440 bytes are too many; at most 64M"),
        (6, "\"1 discard 16777215T+1T\",", "ops[0]: '16777215T+1T' ends beyond 2^64"),
        (
            6,
            "\"1 discard 8388607T+1T\",",
            "ops[0]: op 1: the range 0x7fffff0000000000..0x8000000000000000 ends beyond 2^63 - 1",
        ),
        (6, "7,", "ops[0]: this is a whole number; a text, one line, is wanted"),
        (7, "\"1 write 0+4K\",", "ops[1]: op 1 is there already; each number is given once"),
        (7, "\"3 flush after 7\",", "ops[1]: op 3 waits for op 7, which is no earlier one"),
        (7, "\"3 flush after 3\",", "ops[1]: op 3 waits for op 3, which is no earlier one"),
        (7, "\"3 flush after 1,1\",", "ops[1]: op 3 waits for op 1 twice; once is enough"),
        (7, "\"3 flush after 1, 2\",", "ops[1]: '' is no op's number, such as 7"),
        (7, "\"3 flush drop@x\",", "ops[1]: 'drop@x' is no moment: write it as drop@5"),
        (8, "\"7 read 1M+512 as 200+311\",", "ops[2]: op 7: the pieces are 511 bytes long, the range is 512"),
        (8, "\"7 read 1M+512 as 512+0\",", "ops[2]: op 7: a piece of no bytes; leave it out"),
        (10, "\"9 q1 reopen\",", "ops[4]: op 9: reopen is of no queue; leave 'q1' out"),
        (10, "\"9 reopen drop@1\",", "ops[4]: op 9: reopen can not be dropped; leave 'drop@' out"),
        (16, "\"12 cut keep 3\",", "ops[10]: '3' is no request below: write whose and which, as in 3#2"),
        (16, "\"12 cut keep 3#0\",", "ops[10]: op 12: 3#0: requests are counted from 1; 0 is none"),
        (16, "\"12 cut al-old\",", "ops[10]: 'al-old' is no state after a power cut; did you mean 'all-old'?"),
        (21, "\"3#2 fials EIO\",", "faults[0]: 'fials' is no way to fail; did you mean 'fails'?"),
        (21, "\"3#2 fails EOI\",", "faults[0]: 'EOI' is no error; did you mean 'EIO'?"),
        (21, "\"3#2 fails 0\",", "faults[0]: error 0 is none of Linux's: 1 to 4095"),
        (21, "\"nth 0 fails EIO\",", "faults[0]: requests are counted from 1; 0 is none"),
        (
            21,
            "\"3#2 fails EIO after 512, all done\",",
            "faults[0]: what is done all the same is said twice; say it once",
        ),
        (21, "\"writes 1 fails EIO\",", "faults[0]: 'writes' is no request below; did you mean 'write'?"),
        (29, "nam = \"qcow2\"", "target.nam: 'nam' is no field; did you mean 'name'?"),
        (29, "name = \"\"", "target.name: is empty; it has to be a name"),
        (30, "size = \"64 M\"", "target.size: '64 M' is no size: write it as \"4096\", \"64K\" or \"1M\""),
        (30, "size = \"8388608T\"", "target.size: 0x8000000000000000 bytes are too many; at most 2^63 - 1"),
        (
            34,
            "cluster_size = 4096",
            "target.options.cluster_size: this is a whole number; a text, such as \"4K\", is wanted",
        ),
        (38, "block = 511", "disk.block: 511 is no size of a block: a power of two from 512 to 1M"),
        (39, "profile = \"tron\"", "disk.profile: 'tron' is no profile; did you mean 'torn'?"),
        (45, "rate = 1001", "random-faults.rate: 1001 of a thousand is more than all; at most 1000"),
        (48, "spare-open = 1", "random-faults.spare-open: this is a whole number; true or false is wanted"),
        (52, "strategy = \"randam\"", "schedule.strategy: 'randam' is no strategy; did you mean 'random'?"),
        (52, "strategy = \"pct:0:5\"", "schedule.strategy: pct:0:5: the depth is from 1 to 64, the length from 1 on"),
        (
            54,
            "holds = [\"7#2.effect until\"]",
            "schedule.holds[0]: '7#2.effect until' is no hold: write two moves, as in '7#2.effect until 9#1.done'",
        ),
        (
            54,
            "holds = [\"7#2.effect until 7#2.effect\"]",
            "schedule.holds[0]: a move can not wait for itself; name another",
        ),
    ] {
        let text: Vec<&str> =
            WHOLE.lines().enumerate().map(|(at, old)| if at + 1 == number { with } else { old }).collect();
        let error = Plan::parse(&text.join("\n")).expect_err(with);
        let want = format!("line {number}: {want}");
        assert!(error.to_string().starts_with(&want), "{} -> {with}\n got {error}\nwant {want}", line(number));
    }
    let error = Plan::parse("schema = \"blkproof.plan/1\"\nops = []\n").unwrap_err().to_string();
    assert_eq!(error, "line 1: target: is missing; write target = a table, [target]");
    let error = Plan::parse("").unwrap_err().to_string();
    assert_eq!(error, "line 1: schema: is missing; write schema = \"blkproof.plan/1\"");
}

/// Texts near a plan are read or refused; whatever is read is a plan that is read back.
#[test]
fn ten_thousand_mutated_plans_do_not_panic() {
    let words = [
        "0",
        "9",
        "#",
        "+",
        "@",
        ",",
        "\"",
        "]",
        "-",
        "K",
        "T",
        "18446744073709551615",
        "0x",
        " ",
        "\n",
        "é",
        "q",
        "\0",
        "[",
        "seed",
    ];
    let (mut read, mut refused) = (0, 0);
    for seed in 0..10_000 {
        let mut choices = Choices::new(seed);
        let mut text: Vec<u8> = WHOLE.into();
        for _ in 0..=choices.below(2) {
            let at = choices.index(text.len());
            match choices.below(5) {
                0 => {
                    text.remove(at);
                }
                1 => text[at] = b'0' + (choices.below(75) as u8),
                2 => {
                    let to = (at + choices.index(60)).min(text.len());
                    text.drain(at..to);
                }
                3 => {
                    let from = choices.index(text.len() - 40);
                    let piece = text[from..from + choices.index(40)].to_vec();
                    text.splice(at..at, piece);
                }
                _ => {
                    text.splice(at..at, words[choices.index(words.len())].bytes());
                }
            }
        }
        let text = String::from_utf8_lossy(&text);
        match Plan::parse(&text) {
            Ok(plan) => {
                read += 1;
                plan.validate().unwrap();
                assert_eq!(Plan::parse(&plan.to_string()).unwrap(), plan, "{text}");
            }
            Err(error) => {
                refused += 1;
                assert!(error.line.is_some_and(|line| line <= text.lines().count() + 1) && !error.words.is_empty());
            }
        }
    }
    assert!(read > 300 && refused > 5000, "the mutations should bite, and not always: {read} read, {refused} refused");
}

fn range(len_max: u64) -> impl Strategy<Value = ByteRange> {
    let start = prop_oneof![0..=SIZE_MAX, 0..1_u64 << 20, (0..1_u64 << 10).prop_map(|at| at << 16)];
    let len = prop_oneof![0..=len_max, 0..=4096_u64, (0..=len_max >> 12).prop_map(|len| len << 12)];
    (start, len).prop_map(|(start, len)| ByteRange { start, end: start.saturating_add(len).min(SIZE_MAX) })
}

fn io() -> impl Strategy<Value = IoKey> {
    (any::<u32>(), 1..=u32::MAX).prop_map(|(owner, nth)| IoKey { owner: Owner(owner), nth })
}

fn key() -> impl Strategy<Value = MoveKey> {
    (io(), prop_oneof![Just(Step::Poll), Just(Step::Effect), Just(Step::Done)]).prop_map(|(io, step)| MoveKey {
        owner: io.owner,
        nth: io.nth,
        step,
    })
}

fn state() -> impl Strategy<Value = CutState> {
    prop_oneof![
        Just(CutState::AllOld),
        Just(CutState::AllNew),
        vec(io(), 0..4).prop_map(CutState::Drop),
        vec(io(), 0..4).prop_map(CutState::Keep),
        (io(), any::<bool>(), any::<u64>()).prop_map(|(io, first, blocks)| CutState::Tear { io, first, blocks }),
        any::<u64>().prop_map(CutState::Seed),
        any::<u64>().prop_map(CutState::Number),
    ]
}

fn point() -> impl Strategy<Value = CutPoint> {
    prop_oneof![
        key().prop_map(CutPoint::Before),
        (1..OP_MAX).prop_map(CutPoint::BeforeOp),
        (1..OP_MAX).prop_map(CutPoint::AfterOp),
        Just(CutPoint::End),
    ]
}

fn crash() -> impl Strategy<Value = CrashPlan> {
    prop_oneof![
        Just(CrashPlan::None),
        (1..=u32::MAX, 0..=64_u8, any::<u64>()).prop_map(|(states, depth, seed)| CrashPlan::Explore {
            states,
            depth,
            seed
        }),
        (point(), state(), proptest::option::of((point(), state()))).prop_map(|(point, state, again)| CrashPlan::At {
            point,
            state,
            again: again.map(Box::new)
        }),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        range(REQUEST_MAX).prop_map(|range| Act::Read { range, vector: Vec::new() }),
        (0..1_u64 << 60, vec(1..60_000_u32, 1..9)).prop_map(|(at, vector)| {
            let len = vector.iter().map(|len| u64::from(*len)).sum();
            Act::Read { range: ByteRange::at(at, len), vector }
        }),
        (range(REQUEST_MAX), any::<bool>(), any::<bool>()).prop_map(|(range, fua, compressed)| Act::Write {
            range,
            fua,
            compressed
        }),
        (range(SIZE_MAX), any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(range, fua, unmap, no_fallback)| Act::Zeroes { range, fua, unmap, no_fallback }),
        range(SIZE_MAX).prop_map(|range| Act::Discard { range }),
        range(SIZE_MAX).prop_map(|range| Act::Status { range }),
        Just(Act::Flush),
        Just(Act::Drain),
        (0..=SIZE_MAX).prop_map(|size| Act::Resize { size }),
        Just(Act::Reopen),
        state().prop_map(|state| Act::Cut { state }),
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = (act(), any::<u8>(), vec(any::<prop::sample::Index>(), 0..3), proptest::option::of(any::<u32>()));
    (btree_set(1..OP_MAX, 0..12), vec(op, 12), any::<bool>()).prop_map(|(ids, ops, backwards)| {
        let mut ids: Vec<_> = ids.into_iter().collect();
        if backwards {
            ids.reverse();
        }
        let mut list: Vec<Op> = Vec::new();
        for (&id, (act, queue, after, drop_at)) in ids.iter().zip(ops) {
            let mut earlier: Vec<u32> = Vec::new();
            for index in after {
                let candidate = (!list.is_empty()).then(|| list[index.index(list.len())].id);
                earlier.extend(candidate.filter(|id| !earlier.contains(id)));
            }
            let alone = matches!(act, Act::Reopen | Act::Cut { .. });
            let queue = if alone { 0 } else { queue };
            list.push(Op { id, queue, act, after: earlier, drop_at: drop_at.filter(|_| !alone) });
        }
        list
    })
}

fn faults() -> impl Strategy<Value = Faults> {
    let at = prop_oneof![
        io().prop_map(FaultAt::Io),
        (1..=u64::MAX).prop_map(FaultAt::Nth),
        (prop::sample::select(IoKind::ALL.to_vec()), 1..=u64::MAX).prop_map(|(kind, nth)| FaultAt::NthOf(kind, nth)),
    ];
    let done = prop_oneof![
        Just(FaultDone::Nothing),
        Just(FaultDone::All),
        any::<u64>().prop_map(FaultDone::First),
        any::<u64>().prop_map(FaultDone::From),
    ];
    let fault = (at, any::<bool>(), any::<bool>(), done, 1..4096).prop_map(|(at, lasting, immediate, done, errno)| {
        FaultSpec { at, lasting, immediate, done, errno: Errno(errno) }
    });
    let random = (any::<u64>(), 0..=1000_u32, 0..=1000_u32, 0..=1000_u32, any::<bool>());
    (vec(fault, 0..5), random).prop_map(|(named, (seed, rate, immediate, partial, spare_open))| Faults {
        named,
        random: RandomFaults { seed, rate, immediate, partial, spare_open },
    })
}

fn schedule() -> impl Strategy<Value = Schedule> {
    let order = prop_oneof![
        Just(Order::Fifo),
        Just(Order::Random),
        (0..=1000_u32).prop_map(|rate| Order::Delays { rate }),
        (1..=64_u32, 1..=u32::MAX).prop_map(|(depth, length)| Order::Pct { depth, length }),
    ];
    let hold = (key(), key()).prop_filter("itself", |(what, until)| what != until);
    (order, any::<u64>(), vec(hold.prop_map(|(what, until)| Hold { what, until }), 0..4))
        .prop_map(|(strategy, seed, holds)| Schedule { strategy, seed, holds })
}

fn target() -> impl Strategy<Value = TargetSpec> {
    let options = btree_map("[a-z_.\"\u{0}-\u{20}é]{1,8}", any::<String>(), 0..4);
    ("[^\u{1}]{1,9}", options, 0..=SIZE_MAX, proptest::option::of(0..=SIZE_MAX))
        .prop_map(|(name, options, size, base)| TargetSpec { name, options: options.into_iter().collect(), size, base })
}

fn disk() -> impl Strategy<Value = DiskSpec> {
    let profile = prop::sample::select(Profile::NAMES.to_vec());
    let flush = prop::sample::select(FlushError::NAMES.to_vec());
    (9..=20_u32, profile, any::<bool>(), flush, any::<u64>()).prop_map(|(shift, profile, liar, flush, seed)| DiskSpec {
        block: 1 << shift,
        profile: profile.1,
        kind: if liar { Kind::Liar } else { Kind::Honest },
        flush_error: flush.1,
        seed,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_back(
        seed: u64,
        (target, disk) in (target(), disk()),
        ops in ops(),
        (faults, schedule, crash) in (faults(), schedule(), crash()),
    ) {
        let plan = Plan { seed, target, disk, ops, faults, schedule, crash };
        plan.validate().map_err(|error| TestCaseError::fail(error.to_string()))?;
        let text = plan.to_string();
        let read = Plan::parse(&text).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
        prop_assert_eq!(&read, &plan, "{}", text);
        for op in &plan.ops {
            prop_assert_eq!(&op.to_string().parse::<Op>().unwrap(), op);
            prop_assert!(!op.describe().is_empty());
        }
    }
}
