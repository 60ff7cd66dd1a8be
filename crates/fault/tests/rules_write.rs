//! Whatever rule there is can be written, as TOML and as JSON, and reads back as itself; and no file panics the reader.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::rc::Rc;
use std::time::Duration;

use blkproof_block::{ByteRange, DeviceError, Errno, Event, RuleId};
use blkproof_fault::file::{self, Notes, read, read_rule};
use blkproof_fault::request::Operations;
use blkproof_fault::rule::{
    Action, AskDefault, Corruption, Delay, Done, Failure, Growth, Life, On, Place, Rot, Rule, RuleSet, Tear, Then,
    Unit, Until,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn name() -> impl Strategy<Value = Rc<str>> {
    prop_oneof![Just("1".to_owned()), "[ -~\u{e9}\u{20ac}\"\\\\#]{1,12}"].prop_map(Rc::from)
}

fn count() -> impl Strategy<Value = u64> {
    prop_oneof![1..10_u64, 1..=i64::MAX.unsigned_abs()]
}

/// Not empty, below a hundred years.
fn time() -> impl Strategy<Value = Duration> {
    let nanos = prop_oneof![Just(1), Just(1_000), Just(1_000_000), Just(1_000_000_000), Just(3_600_000_000_000_u64)];
    (1..800_000_u64, nanos).prop_map(|(count, nanos)| Duration::from_nanos(count * nanos))
}

fn failure() -> impl Strategy<Value = Failure> {
    prop_oneof![
        (1..=4095).prop_map(|number| Failure::errno(Errno(number))),
        (0..16_u8, any::<u8>(), any::<u8>()).prop_map(|(key, asc, ascq)| Failure::device(DeviceError::Scsi {
            key,
            asc,
            ascq
        })),
        (0..8_u8, any::<u8>(), any::<bool>(), 0..4_u8, any::<bool>())
            .prop_map(|(sct, sc, dnr, crd, more)| Failure::device(DeviceError::Nvme { sct, sc, dnr, crd, more })),
        (any::<u8>(), any::<u8>()).prop_map(|(status, error)| Failure::device(DeviceError::Ata { status, error })),
    ]
}

fn done() -> impl Strategy<Value = Done> {
    prop_oneof![Just(Done::None), Just(Done::Prefix), Just(Done::All)]
}

fn unit() -> impl Strategy<Value = Unit> {
    prop_oneof![Just(Unit::Sector), Just(Unit::Byte)]
}

fn tear() -> impl Strategy<Value = Tear> {
    prop_oneof![
        (0..=i64::MAX.unsigned_abs(), unit()).prop_map(|(count, unit)| Tear::After(count, unit)),
        unit().prop_map(Tear::Random),
    ]
}

fn delay() -> impl Strategy<Value = Delay> {
    prop_oneof![
        time().prop_map(Delay::Fixed),
        (time(), time()).prop_map(|(a, b)| Delay::Uniform(a.min(b), a.max(b))),
        (time(), time()).prop_map(|(a, b)| Delay::Normal(a, b)),
        time().prop_map(Delay::Exponential),
    ]
}

fn distance() -> impl Strategy<Value = i64> {
    any::<i64>().prop_filter("away", |distance| *distance != 0)
}

fn corruption() -> impl Strategy<Value = Corruption> {
    prop_oneof![
        (1..=4096_u32).prop_map(|bits| Corruption::Flip { bits }),
        (option::of(0..4096_u32), any::<bool>()).prop_map(|(bit, value)| Corruption::Stuck { bit, value }),
        Just(Corruption::Zero),
        Just(Corruption::Stale),
        option::of(distance()).prop_map(|distance| Corruption::Foreign { distance }),
        Just(Corruption::Random),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let default = prop_oneof![Just(AskDefault::Proceed), failure().prop_map(AskDefault::Fail)];
    prop_oneof![
        Just(Action::None),
        Just(Action::Pass),
        (failure(), done(), option::of(delay())).prop_map(|(error, done, wait)| Action::Fail { error, done, wait }),
        (tear(), failure()).prop_map(|(tear, error)| Action::Short { tear, error }),
        tear().prop_map(|tear| Action::Torn { tear }),
        Just(Action::Phantom),
        (corruption(), option::of(1_u32..)).prop_map(|(how, sectors)| Action::Corrupt { how, sectors }),
        distance().prop_map(|by| Action::Misdirect(Place::By(by))),
        (1..1_000_i64).prop_map(|by| Action::Misdirect(Place::By(by * 512))),
        any::<u64>().prop_map(|at| Action::Misdirect(Place::At(at))),
        delay().prop_map(Action::Delay),
        option::of(name()).prop_map(|tag| Action::Hold { tag }),
        Just(Action::Hang),
        done().prop_map(|done| Action::Disconnect { done }),
        (time(), default, any::<bool>()).prop_map(|(timeout, default, data)| Action::Ask { timeout, default, data }),
        (option::of(name()), option::of(name()), done()).prop_map(|(disk, state, done)| Action::PowerCut {
            disk,
            state,
            done
        }),
        failure().prop_map(Action::Recovered),
    ]
}

fn ranges() -> impl Strategy<Value = Vec<ByteRange>> {
    // Gaps and lengths, so that ranges are sorted and apart; in sectors or in bytes.
    (vec((1..5_000_u64, 1..5_000_u64), 0..12), any::<bool>(), any::<bool>()).prop_map(|(steps, sectors, open)| {
        let unit = if sectors { 512 } else { 1 };
        let mut at = 0;
        let mut ranges: Vec<_> = steps
            .into_iter()
            .map(|(gap, len)| {
                let start = at + gap * unit;
                at = start + len * unit;
                ByteRange { start, end: at }
            })
            .collect();
        if let Some(last) = ranges.last_mut().filter(|_| open) {
            last.end = !511;
        }
        ranges
    })
}

fn on() -> impl Strategy<Value = On> {
    let events = Event::ALL.iter().copied().filter(|event| *event != Event::None).collect::<Vec<_>>();
    let operations = prop_oneof![Just(Operations::DATA), (1..128_u8).prop_map(Operations::from_bits_truncate)];
    (
        (operations, option::weighted(0.3, proptest::sample::select(events)), any::<bool>(), ranges()),
        (option::of(count()), option::of(count()), option::of(1_u32..), option::of(count())),
        option::of(name()),
        (option::of(time()), option::of(time()), option::of(time()), option::of(time())),
    )
        .prop_map(|((operations, event, alone, ranges), (nth, every, probability, times), state, windows)| {
            let operations = if event.is_some() && alone { Operations::empty() } else { operations };
            let (after, before, slower_than, faster_than) = windows;
            On {
                operations,
                event,
                sticky: false,
                ranges,
                nth,
                every,
                probability,
                times,
                state,
                after,
                before,
                slower_than,
                faster_than,
            }
        })
}

fn life() -> impl Strategy<Value = Life> {
    let until = prop_oneof![
        Just(Until::Never),
        Just(Until::Rewrite),
        Just(Until::Reassign),
        count().prop_map(Until::Accesses),
    ];
    let growth = option::of((time(), count()).prop_map(|(each, limit)| Growth { each, limit }));
    (until, growth, option::of(time().prop_map(|half| Rot { half }))).prop_map(|(until, growth, rot)| Life {
        until,
        growth,
        rot,
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    let then = (option::of(name()), any::<bool>(), any::<bool>()).prop_map(|(state, disarm, cure)| Then {
        state,
        disarm,
        cure,
    });
    ("[a-zA-Z0-9][-a-zA-Z0-9_.:]{0,20}", on(), action(), then, option::of(life()))
        .prop_map(|(id, on, action, then, life)| Rule { id: RuleId(id.into()), on, action, then, life })
}

/// Rules that make sense.
fn sensible() -> impl Strategy<Value = Rule> {
    rule().prop_filter("makes sense", |rule| file::sense::rule(rule, 512).iter().all(|remark| !remark.refuses))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512,
        max_global_rejects: 1_000_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_rule_reads_back_from_json(rule in sensible()) {
        let json = file::json(&rule, 512);
        let (read, _) = read_rule(&json, 512, "x").map_err(|mistakes| TestCaseError::fail(format!("{json}: \
                                               {mistakes}")))?;
        prop_assert_eq!(read, rule, "{}", json);
    }

    #[test]
    fn a_set_reads_back_from_toml(
        rules in vec(sensible(), 0..4),
        seed in any::<u64>(),
        state in name(),
        note in "[ -~\n\r\t\u{7}\u{e9}]{0,40}",
    ) {
        let mut rules = rules;
        for (number, rule) in rules.iter_mut().enumerate() {
            rule.id = RuleId(format!("{number}-{}", rule.id).into());
        }
        let set = RuleSet { lba_size: 512, seed, state, rules };
        let notes = Notes { head: vec![note.clone()], rules: vec![vec![note]; set.rules.len()] };
        let text = file::toml_with(&set, &notes);
        let read = read("f", &text).map_err(|mistakes| TestCaseError::fail(format!("{text}: {mistakes}")))?;
        prop_assert_eq!(read.rules, set, "{}", text);
    }

    #[test]
    fn every_rule_can_be_explained(rule in rule()) {
        let words = file::explain(&rule, 512);
        prop_assert!(words.len() >= 3 && words.iter().all(|words| !words.contains("  ")), "{:?}", words);
    }
}

/// A file that has something of everything.
const GOOD: &str = r#"
lba-size = 512
seed = 7
state = "1"

[[rule]]
id = "bad-50"
on = { op = "read", lba = ["50", "60..70", 80] }
do = { fail = "03/1101", wait = { mean = "2s", deviation = "1s" } }
life = { preset = "growing-defects", growth = { each = "1h", limit = 100 } }

[[rule]]
id = "torn"
on = { op = ["write", "write-zeroes"], bytes = "1M+4k", nth = 3, every = 2, probability = 0.01, times = 1 }
do = { torn = "random", }
then = { state = "2", disarm = true, cure = true }

[[rule]]
on = { event = "l2_update", op = "write", state = "2", after = "1s", before = "10s" }
do = { action = "power-cut", disk = "d", state = "s", done = "all" }

[[rule]]
do = { corrupt = "foreign", distance = -8, sectors = "1:2" }
life = "bit-rot"
"#;

#[test]
fn ten_thousand_malformed_files_give_clear_errors() {
    assert_eq!(read("f", GOOD).unwrap().warnings.len(), 0);
    let mut choices = blkproof_block::choice::Choices::new(4);
    let pieces = [
        "\"",
        "[",
        "]",
        "{",
        "}",
        "=",
        ".",
        ",",
        "\n",
        "#",
        "-",
        "0",
        "99999999999999999999",
        "nan",
        "inf",
        "1e999",
        "true",
        "1979-05-27",
        "'",
        "\"\"\"",
        "\\u0000",
        "\u{0}",
        "\u{feff}",
        "\u{10ffff}",
        "[[",
        "]]",
        "..",
        "+",
        "x",
        "é",
        "read",
        "0x",
        "lba",
        "\r",
    ];
    let mut refused = 0;
    for number in 0..10_000 {
        let mut text: Vec<char> = GOOD.chars().collect();
        for _ in 0..=choices.index(4) {
            let at = choices.index(text.len());
            match choices.index(4) {
                0 => {
                    let end = (at + 1 + choices.index(30)).min(text.len());
                    text.drain(at..end);
                }
                1 => {
                    let piece = pieces[choices.index(pieces.len())];
                    text.splice(at..at, piece.chars());
                }
                2 => {
                    let piece = pieces[choices.index(pieces.len())];
                    text.splice(at..=at, piece.chars());
                }
                _ => {
                    let end = (at + 1 + choices.index(60)).min(text.len());
                    let copy: Vec<char> = text[at..end].to_vec();
                    let to = choices.index(text.len());
                    text.splice(to..to, copy);
                }
            }
        }
        let text: String = text.into_iter().collect();
        if let Err(mistakes) = read("f", &text) {
            refused += 1;
            assert!(!mistakes.list.is_empty(), "file {number} is refused without a word:\n{text}");
            for line in mistakes.lines() {
                let clear = line.starts_with("f:") && line.len() > 10 && line.len() < 2_000;
                assert!(clear, "file {number}: {line}");
            }
            for mistake in &mistakes.list {
                let place = mistake.place.unwrap_or_else(|| panic!("file {number}: {mistake} has no place:\n{text}"));
                assert!(place.line <= text.lines().count() + 1, "file {number}: {mistake}");
            }
        }
    }
    assert!(refused > 5_000, "only {refused} of the mutants are malformed");
}
