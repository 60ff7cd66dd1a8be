//! Rule files: what is understood, and what is said of every mistake.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::rc::Rc;
use std::time::Duration;

use blkproof_block::{ByteRange, DeviceError, Errno, Event, RuleId};
use blkproof_fault::file::{self, read};
use blkproof_fault::request::Operations;
use blkproof_fault::rule::{
    Action, AskDefault, Corruption, Delay, Done, Failure, Growth, Life, On, Place, Rot, Rule, RuleSet, Tear, Then,
    Unit, Until,
};

/// A file of one rule, whose lines below `[[rule]]` are given: the first is line 2.
fn one(lines: &str) -> String {
    format!("[[rule]]\n{lines}\n")
}

#[track_caller]
fn rule(lines: &str) -> Rule {
    let read = read("f", &one(lines)).unwrap_or_else(|mistakes| panic!("{lines}: {mistakes}"));
    assert_eq!(read.rules.rules.len(), 1);
    read.rules.rules.into_iter().next().unwrap()
}

const fn sense(key: u8, asc: u8, ascq: u8) -> Failure {
    Failure::device(DeviceError::Scsi { key, asc, ascq })
}

fn ranges(ranges: &[(u64, u64)]) -> Vec<ByteRange> {
    ranges.iter().map(|&(start, end)| ByteRange { start, end }).collect()
}

const EIO: Failure = Failure::errno(Errno::IO);

#[test]
fn a_file_says_what_it_says() {
    let text = r#"
        lba-size = 4096
        seed = 0x7
        state = "calm"

        [[rule]]
        id = "bad-50"
        on = { op = ["read", "write"], lba = ["50..60", 70, "60+2"], state = 2, every = 3, nth = 2 }
        do = { fail = "03/1101", done = "nothing", wait = { mean = "2s" } }
        then = { state = "x", disarm = true, cure = true }

        [[rule]]
        on.event = "l2_update"
        do = "power-cut"

        [rule.then]
        state = "calm"
    "#;
    let want = RuleSet {
        lba_size: 4096,
        seed: 7,
        state: Rc::from("calm"),
        rules: vec![
            Rule {
                id: RuleId("bad-50".into()),
                on: On {
                    operations: Operations::READ | Operations::WRITE,
                    ranges: ranges(&[(50 * 4096, 62 * 4096), (70 * 4096, 71 * 4096)]),
                    state: Some(Rc::from("2")),
                    every: Some(3),
                    nth: Some(2),
                    ..On::default()
                },
                action: Action::Fail {
                    error: sense(3, 0x11, 1),
                    done: Done::None,
                    wait: Some(Delay::Exponential(Duration::from_secs(2))),
                },
                then: Then { state: Some(Rc::from("x")), disarm: true, cure: true },
                life: None,
            },
            Rule {
                id: RuleId("rule-2".into()),
                on: On { operations: Operations::empty(), event: Some(Event::L2Update), ..On::default() },
                action: Action::PowerCut { disk: None, state: None, done: Done::None },
                then: Then { state: Some(Rc::from("calm")), ..Then::default() },
                life: None,
            },
        ],
    };
    let got = read("f", text).unwrap();
    assert_eq!(got.rules, want);
    let warnings: Vec<_> = got.warnings.iter().map(|warning| file::in_file("f", warning)).collect();
    assert_eq!(
        warnings,
        ["f:8:78: rule 'bad-50': on.state: it can never fire: no rule sets the state '2', and things begin in 'calm'"]
    );
}

#[test]
fn conditions() {
    let on = |lines: &str| rule(&format!("on = {{ {lines} }}\ndo = \"fail\"")).on;
    let ms = Duration::from_millis;
    let data = On::default();
    for (lines, want) in [
        ("", data.clone()),
        ("op = \"flush\"", On { operations: Operations::FLUSH, ..data.clone() }),
        (
            "op = [\"resize\", \"block-status\"]",
            On { operations: Operations::RESIZE | Operations::BLOCK_STATUS, ..data.clone() },
        ),
        (
            "event = \"read_aio\", op = \"read\"",
            On { operations: Operations::READ, event: Some(Event::ReadAio), ..data.clone() },
        ),
        ("bytes = \"1M+4k\"", On { ranges: ranges(&[(1 << 20, (1 << 20) + 4096)]), ..data.clone() }),
        ("bytes = [\"10..20\", \"0x0..5\", \"15..30\"]", On { ranges: ranges(&[(0, 5), (10, 30)]), ..data.clone() }),
        ("lba = \"8..\"", On { ranges: ranges(&[(4096, !511)]), ..data.clone() }),
        ("lba = 1, bytes = \"1k+1\"", On { ranges: ranges(&[(512, 1025)]), ..data.clone() }),
        ("probability = 0.5", On { probability: Some(1 << 31), ..data.clone() }),
        ("probability = \"1:4\"", On { probability: Some(1 << 30), ..data.clone() }),
        ("probability = 1", data.clone()),
        ("times = 3", On { times: Some(3), ..data.clone() }),
        (
            "after = \"1m\", before = \"1h30m\"",
            On { after: Some(ms(60_000)), before: Some(ms(5_400_000)), ..data.clone() },
        ),
        (
            "slower-than = \"5ms\", faster-than = \"1s\"",
            On { slower_than: Some(ms(5)), faster_than: Some(ms(1000)), ..data.clone() },
        ),
    ] {
        assert_eq!(on(lines), want, "{lines}");
    }
}

#[test]
fn actions() {
    let action = |written: &str| rule(&format!("do = {written}\nthen.disarm = true\non.lba = 1")).action;
    let fail = |error| Action::Fail { error, done: Done::Prefix, wait: None };
    let ms = Duration::from_millis;
    let random = Tear::Random(Unit::Sector);
    let corrupt = |how| Action::Corrupt { how, sectors: None };
    for (written, want) in [
        ("\"none\"", Action::None),
        ("\"pass\"", Action::Pass),
        ("\"fail\"", fail(EIO)),
        ("{ fail = 28 }", fail(Failure::errno(Errno::NOSPC))),
        ("{ action = \"fail\" }", fail(EIO)),
        (
            "{ action = \"fail\", error = \"EIO\", done = \"all\" }",
            Action::Fail { error: EIO, done: Done::All, wait: None },
        ),
        (
            "{ fail = \"EIO\", wait = \"7s\" }",
            Action::Fail { error: EIO, done: Done::Prefix, wait: Some(Delay::Fixed(ms(7000))) },
        ),
        ("\"short\"", Action::Short { tear: random, error: EIO }),
        (
            "{ short = 3, error = \"03/1101\" }",
            Action::Short { tear: Tear::After(3, Unit::Sector), error: sense(3, 0x11, 1) },
        ),
        ("{ torn = \"700 bytes\" }", Action::Torn { tear: Tear::After(700, Unit::Byte) }),
        ("{ torn = \"random bytes\" }", Action::Torn { tear: Tear::Random(Unit::Byte) }),
        ("{ torn = \"range\" }", Action::Torn { tear: Tear::AtRange }),
        ("\"torn\"", Action::Torn { tear: random }),
        ("\"phantom\"", Action::Phantom),
        ("\"corrupt\"", corrupt(Corruption::Flip { bits: 1 })),
        (
            "{ corrupt = \"flip\", bits = 3, sectors = \"50%\" }",
            Action::Corrupt { how: Corruption::Flip { bits: 3 }, sectors: Some(1 << 31) },
        ),
        ("{ corrupt = \"stuck\", bit = 9, value = 1 }", corrupt(Corruption::Stuck { bit: Some(9), value: true })),
        ("{ corrupt = \"stuck\" }", corrupt(Corruption::Stuck { bit: None, value: false })),
        ("{ corrupt = \"zero\" }", corrupt(Corruption::Zero)),
        ("{ corrupt = \"stale\" }", corrupt(Corruption::Stale)),
        ("{ corrupt = \"foreign\", distance = -8 }", corrupt(Corruption::Foreign { distance: Some(-8) })),
        ("{ corrupt = \"random\" }", corrupt(Corruption::Random)),
        ("{ misdirect = 8 }", Action::Misdirect(Place::By(4096))),
        ("{ action = \"misdirect\", by-bytes = \"-4k\" }", Action::Misdirect(Place::By(-4096))),
        ("{ action = \"misdirect\", to-lba = 2 }", Action::Misdirect(Place::At(1024))),
        ("{ action = \"misdirect\", to-bytes = \"1M\" }", Action::Misdirect(Place::At(1 << 20))),
        ("{ delay = \"5ms\" }", Action::Delay(Delay::Fixed(ms(5)))),
        ("{ delay = \"1ms..9ms\" }", Action::Delay(Delay::Uniform(ms(1), ms(9)))),
        ("{ action = \"delay\", mean = \"5ms\" }", Action::Delay(Delay::Exponential(ms(5)))),
        ("{ action = \"delay\", mean = \"5ms\", deviation = \"1ms\" }", Action::Delay(Delay::Normal(ms(5), ms(1)))),
        ("\"hold\"", Action::Hold { tag: None }),
        ("{ hold = \"a\" }", Action::Hold { tag: Some(Rc::from("a")) }),
        ("\"hang\"", Action::Hang),
        ("\"disconnect\"", Action::Disconnect { done: Done::None }),
        ("{ disconnect = \"all\" }", Action::Disconnect { done: Done::All }),
        ("\"ask\"", Action::Ask { timeout: ms(10_000), default: AskDefault::Proceed, data: false }),
        (
            "{ ask = \"1s\", default = \"ENOSPC\", data = true }",
            Action::Ask { timeout: ms(1000), default: AskDefault::Fail(Failure::errno(Errno::NOSPC)), data: true },
        ),
        (
            "{ action = \"power-cut\", disk = \"d\", state = \"s\", done = \"prefix\" }",
            Action::PowerCut { disk: Some(Rc::from("d")), state: Some(Rc::from("s")), done: Done::Prefix },
        ),
        ("\"recovered\"", Action::Recovered(sense(1, 0x17, 1))),
        ("{ recovered = \"01/1802\" }", Action::Recovered(sense(1, 0x18, 2))),
    ] {
        assert_eq!(action(written), want, "{written}");
    }
}

#[test]
fn an_action_without_operations_is_for_those_it_can_be_done_to() {
    for (action, want) in [
        ("fail", Operations::DATA),
        ("torn", Operations::WRITE | Operations::WRITE_ZEROES | Operations::DISCARD),
        ("corrupt", Operations::READ | Operations::WRITE | Operations::WRITE_ZEROES),
        ("short", Operations::READ | Operations::WRITE | Operations::WRITE_ZEROES | Operations::DISCARD),
    ] {
        assert_eq!(rule(&format!("do = \"{action}\"")).on.operations, want, "{action}");
    }
}

#[test]
fn lives() {
    let fail = |error| Action::Fail { error, done: Done::Prefix, wait: None };
    let until = |until| Life { until, ..Life::default() };
    let day = Duration::from_secs(86_400);
    let hour = Duration::from_secs(3600);
    let rot = |half| Life { until: Until::Rewrite, rot: Some(Rot { half }), ..Life::default() };
    let flip = Action::Corrupt { how: Corruption::Flip { bits: 1 }, sectors: None };
    let read = Operations::READ;
    for (written, operations, action, life) in [
        ("\"until-rewritten\"", read, fail(sense(3, 0x11, 1)), until(Until::Rewrite)),
        ("\"until-reassigned\"", read, fail(sense(3, 0x11, 0xb)), until(Until::Reassign)),
        ("\"first-3-reads\"", read, fail(sense(3, 0x11, 1)), until(Until::Accesses(3))),
        ("\"recovered\"", read, Action::Recovered(sense(1, 0x17, 1)), until(Until::Rewrite)),
        ("\"pending\"", read, fail(sense(3, 0x11, 4)), until(Until::Rewrite)),
        ("\"bit-rot\"", read, flip.clone(), rot(30 * day)),
        ("{ preset = \"bit-rot\", rot = { half = \"1h\" } }", read, flip, rot(hour)),
        (
            "\"growing-defects\"",
            read,
            fail(sense(3, 0x11, 0xb)),
            Life { until: Until::Reassign, growth: Some(Growth { each: hour, limit: 100 }), rot: None },
        ),
        ("{ preset = \"pending\", accesses = 2 }", read, fail(sense(3, 0x11, 4)), until(Until::Accesses(2))),
    ] {
        let rule = rule(&format!("on.lba = 50\nlife = {written}"));
        assert_eq!((rule.on.operations, rule.action, rule.life), (operations, action, Some(life)), "{written}");
    }
    // What the rule says itself stands.
    let own = rule("on = { op = [\"read\", \"discard\"], lba = 50 }\ndo = \"hang\"\nlife = \"pending\"");
    assert_eq!(own.on.operations, Operations::READ | Operations::DISCARD);
    assert_eq!(own.action, Action::Hang);
    let plain = rule("on.op = \"read\"\ndo = \"fail\"\nlife = { until = \"reassigned\" }");
    assert_eq!(plain.life, Some(until(Until::Reassign)));
    let torn = rule("do = \"torn\"\nlife = \"pending\"");
    assert!(
        !torn.on.operations.contains(Operations::READ),
        "an action that has nothing to do with reads keeps its own"
    );
}

/// Mistakes, each with everything that is said of it. Lines count from `[[rule]]`.
const MISTAKES: &[(&str, &[&str])] = &[
    ("id = \"\"\ndo = \"fail\"", &["2:6: rule 'rule-1': id: an id has 1 to 64 letters"]),
    ("id = \"a b\"\ndo = \"fail\"", &["2:6: rule 'rule-1': id: an id has"]),
    ("id = 7\ndo = \"fail\"", &["2:6: rule 'rule-1': id: this is a whole number; write a name"]),
    ("id = \"x\"\ndoo = \"fail\"", &["3:1: rule 'x': doo: no such field; did you mean 'do'?"]),
    ("on = 7\ndo = \"fail\"", &["2:6: rule 'rule-1': on: this is a whole number; write a table"]),
    ("on = { opp = \"read\" }", &["2:8: rule 'rule-1': on.opp: no such field; did you mean 'op'?"]),
    ("on = { zzz = \"read\" }", &["2:8: rule 'rule-1': on.zzz: no such field; there are op, lba, bytes"]),
    (
        "on = { op = \"raed\" }\ndo = \"fail\"",
        &["2:13: rule 'rule-1': on.op: 'raed' is not known here; did you mean 'read'?"],
    ),
    ("on = { op = [] }\ndo = \"fail\"", &["2:13: rule 'rule-1': on.op: the list is empty"]),
    ("on = { op = [\"read\", 7] }\ndo = \"fail\"", &["2:22: rule 'rule-1': on.op[1]: this is a whole number"]),
    ("on = { op = 7 }\ndo = \"fail\"", &["2:13: rule 'rule-1': on.op: this is a whole number; write \"read\""]),
    ("on = { lba = -1 }\ndo = \"fail\"", &["2:14: rule 'rule-1': on.lba: -1 is no sector"]),
    (
        "on = { lba = \"50-60\" }\ndo = \"fail\"",
        &["2:14: rule 'rule-1': on.lba: '50-60' is no range of sectors; write 50,"],
    ),
    (
        "on = { lba = \"50..50\" }\ndo = \"fail\"",
        &["2:14: rule 'rule-1': on.lba: '50..50' is empty; the end is not in"],
    ),
    ("on = { lba = \"60..50\" }\ndo = \"fail\"", &["2:14: rule 'rule-1': on.lba: '60..50' is empty"]),
    ("on = { lba = [1, \"x\"] }\ndo = \"fail\"", &["2:18: rule 'rule-1': on.lba[1]: 'x' is no range of sectors"]),
    ("on = { lba = [] }\ndo = \"fail\"", &["2:14: rule 'rule-1': on.lba: the list is empty"]),
    (
        "on = { lba = 99999999999999999 }\ndo = \"fail\"",
        &["2:14: rule 'rule-1': on.lba: 99999999999999999 ends beyond"],
    ),
    ("on = { bytes = \"4096\" }\ndo = \"fail\"", &["2:16: rule 'rule-1': on.bytes: '4096' is one offset"]),
    ("on = { bytes = 4096 }\ndo = \"fail\"", &["2:16: rule 'rule-1': on.bytes: this is a whole number; write a range"]),
    (
        "on = { event = \"l2_updat\" }",
        &["2:16: rule 'rule-1': on.event: 'l2_updat' is no event; did you mean 'l2_update'?"],
    ),
    ("on = { event = \"none\" }", &["2:16: rule 'rule-1': on.event: no driver announces 'none'"]),
    ("on = { nth = 0 }\ndo = \"fail\"", &["2:14: rule 'rule-1': on.nth: 0 is out of range"]),
    ("on = { nth = -1 }\ndo = \"fail\"", &["2:14: rule 'rule-1': on.nth: -1 is out of range"]),
    ("on = { nth = 1.5 }\ndo = \"fail\"", &["2:14: rule 'rule-1': on.nth: this is a fraction; write a number from 1"]),
    (
        "on = { nth = 99999999999999999999999999999999999999999 }\ndo = \"fail\"",
        &["2:14: rule 'rule-1': on.nth: this is a number too large"],
    ),
    ("on = { probability = 2 }\ndo = \"fail\"", &["2:22: rule 'rule-1': on.probability: 2 is no probability"]),
    ("on = { probability = 0.0 }\ndo = \"fail\"", &["2:22: rule 'rule-1': on.probability: 0 never happens"]),
    ("on = { probability = nan }\ndo = \"fail\"", &["2:22: rule 'rule-1': on.probability: NaN is no probability"]),
    (
        "on = { probability = \"1:0\" }\ndo = \"fail\"",
        &["2:22: rule 'rule-1': on.probability: '1:0' is no probability"],
    ),
    (
        "on = { after = 10 }\ndo = \"fail\"",
        &["2:16: rule 'rule-1': on.after: this is a whole number; write a time with its unit"],
    ),
    ("on = { after = \"10\" }\ndo = \"fail\"", &["2:16: rule 'rule-1': on.after: '10' is no time; write 10s"]),
    ("on = { before = \"0s\" }\ndo = \"fail\"", &["2:17: rule 'rule-1': on.before: a time of nothing"]),
    ("on = { state = \"\" }\ndo = \"fail\"", &["2:16: rule 'rule-1': on.state: '' is no name"]),
    (
        "on = { state = \"a\\nb\" }\ndo = \"fail\"",
        &["2:16: rule 'rule-1': on.state: there are control characters in it"],
    ),
    ("on = { state = 1979-05-27 }\ndo = \"fail\"", &["2:16: rule 'rule-1': on.state: this is a date or time"]),
    ("do = \"fial\"", &["2:6: rule 'rule-1': do: 'fial' is no action; did you mean 'fail'?"]),
    ("do = \"delay\"", &["2:6: rule 'rule-1': do: 'delay' says too little by itself; it takes time, mean, deviation"]),
    ("do = 7", &["2:6: rule 'rule-1': do: this is a whole number; write an action"]),
    ("do = {}", &["2:6: rule 'rule-1': do: no action is named; write an action"]),
    ("do = { fial = \"EIO\" }", &["2:6: rule 'rule-1': do: no action is named; did you mean 'fail'?"]),
    ("do = { action = \"fial\" }", &["2:17: rule 'rule-1': do.action: 'fial' is no action; did you mean 'fail'?"]),
    ("do = { fail = \"EIO\", hang = true }", &["2:6: rule 'rule-1': do: more than one action is named"]),
    ("do = { action = \"fail\", fail = \"EIO\" }", &["2:6: rule 'rule-1': do: more than one action is named"]),
    ("do = { hang = true }", &["2:6: rule 'rule-1': do: 'hang' takes nothing; write do = \"hang\""]),
    ("do = { fail = \"EWHAT\" }", &["2:15: rule 'rule-1': do.fail: 'EWHAT' is no error: write an errno"]),
    ("do = { fail = \"EIO\", don = \"all\" }", &["2:22: rule 'rule-1': do.don: no such field; did you mean 'done'?"]),
    ("do = { fail = \"EIO\", error = \"EIO\" }", &["2:22: rule 'rule-1': do.error: no such field"]),
    (
        "do = { fail = \"EIO\", done = \"half\" }",
        &["2:29: rule 'rule-1': do.done: 'half' is not known here; did you mean 'all'?"],
    ),
    ("do = { torn = \"3 pages\" }", &["2:15: rule 'rule-1': do.torn: '3 pages' is no cut; write 3,"]),
    ("do = { torn = \"range bytes\" }", &["2:15: rule 'rule-1': do.torn: 'range bytes' is no cut"]),
    (
        "do = { corrupt = \"flip\", bits = 0 }",
        &["2:33: rule 'rule-1': do.bits: 0 is out of range; write a number from 1 to 4096"],
    ),
    ("do = { corrupt = \"stuck\", bit = 4096 }", &["2:33: rule 'rule-1': do.bit: 4096 is out of range"]),
    (
        "do = { corrupt = \"zero\", bits = 1 }",
        &["2:33: rule 'rule-1': do.bits: 'bits' belongs to corrupt = \"flip\", not to \"zero\""],
    ),
    ("do = { misdirect = 0 }", &["2:20: rule 'rule-1': do.misdirect: 0 is where it is"]),
    (
        "do = { action = \"misdirect\" }",
        &["2:6: rule 'rule-1': do: one of by-lba, by-bytes, to-lba and to-bytes is needed"],
    ),
    ("do = { action = \"misdirect\", to-lba = 1, by-lba = 1 }", &["2:6: rule 'rule-1': do: one of by-lba"]),
    (
        "do = { action = \"misdirect\", by-bytes = \"-16E\" }",
        &["2:41: rule 'rule-1': do.by-bytes: this is no number of bytes"],
    ),
    ("do = { delay = \"9ms..1ms\" }", &["2:16: rule 'rule-1': do.delay: '9ms..1ms' ends before it begins"]),
    ("do = { action = \"delay\", deviation = \"1ms\" }", &["2:6: rule 'rule-1': do: write time = "]),
    ("do = { hold = 7 }", &["2:15: rule 'rule-1': do.hold: this is a whole number; write a tag"]),
    ("do = { ask = \"0s\" }", &["2:14: rule 'rule-1': do.ask: a time of nothing"]),
    ("do = { ask = \"1s\", data = 1 }", &["2:27: rule 'rule-1': do.data: this is a whole number; write true or false"]),
    ("do = { ask = \"1s\", default = \"stop\" }", &["2:30: rule 'rule-1': do.default: 'stop' is no error"]),
    ("do = \"fail\"\nthen = \"disarm\"", &["3:8: rule 'rule-1': then: this is a text; write a table"]),
    (
        "do = \"fail\"\nthen = { disarmed = true }",
        &["3:10: rule 'rule-1': then.disarmed: no such field; did you mean 'disarm'?"],
    ),
    ("life = \"penning\"", &["2:8: rule 'rule-1': life: 'penning' is no life; did you mean 'pending'?"]),
    (
        "life = \"first-0-reads\"",
        &["2:8: rule 'rule-1': life: 'first-0-reads' is no life; did you mean 'first-N-reads'?"],
    ),
    (
        "do = \"fail\"\nlife = { until = \"rewritten\", accesses = 3 }",
        &["3:42: rule 'rule-1': life.accesses: a life ends in one way"],
    ),
    (
        "do = \"fail\"\nlife = { until = \"rewriten\" }",
        &["3:18: rule 'rule-1': life.until: 'rewriten' is not known here; did you mean"],
    ),
    ("do = \"fail\"\nlife = { growth = { each = \"1h\" } }", &["3:19: rule 'rule-1': life.growth: write both"]),
    ("do = \"fail\"\nlife = { rot = {} }", &["3:16: rule 'rule-1': life.rot: write the time"]),
    // Several at once, in the order of the file.
    (
        "on = { op = \"x\", lba = \"y\" }\ndo = \"z\"\nthen = 1\nlife = 2",
        &[
            "2:13: rule 'rule-1': on.op: ",
            "2:24: rule 'rule-1': on.lba: ",
            "3:6: rule 'rule-1': do: ",
            "4:8: rule 'rule-1': then: ",
            "5:8: rule 'rule-1': life: ",
        ],
    ),
    // Well written, and senseless.
    (
        "on.op = \"read\"\ndo = \"torn\"",
        &["2:9: rule 'rule-1': on.op: 'torn' can not be done to read; it is for write, write-zeroes and discard"],
    ),
    (
        "on.op = [\"read\", \"flush\"]\ndo = \"corrupt\"",
        &["2:9: rule 'rule-1': on.op: 'corrupt' can not be done to flush"],
    ),
    (
        "on.event = \"l2_load\"\ndo = \"fail\"",
        &["3:6: rule 'rule-1': do: an event by itself has no request to fail; it can hold"],
    ),
    (
        "on = { event = \"l2_load\", lba = 1 }\ndo = \"hold\"",
        &["2:6: rule 'rule-1': on: an event by itself has no place"],
    ),
    (
        "on = { op = \"flush\", lba = 1 }\ndo = \"fail\"",
        &["2:6: rule 'rule-1': on: it can never fire: flush has no place"],
    ),
    ("on = { after = \"2s\", before = \"1s\" }\ndo = \"fail\"", &["2:31: rule 'rule-1': on.before: it can never fire"]),
    (
        "on = { slower-than = \"2s\", faster-than = \"2s\" }\ndo = \"fail\"",
        &["2:42: rule 'rule-1': on.faster-than: it can never fire"],
    ),
    (
        "on = { op = \"write\", slower-than = \"2s\" }\ndo = \"torn\"",
        &["2:36: rule 'rule-1': on.slower-than: how long a request takes is known when it is done, too late for \
             'torn'"],
    ),
    (
        "on.op = [\"read\", \"write\"]\ndo = \"corrupt\"\nthen.cure = true",
        &[
            "4:13: rule 'rule-1': then.cure: it would take the damage done to write away again; give on.op = \"read\" for \
             one bad read",
        ],
    ),
    (
        "on.lba = 5\ndo = \"corrupt\"\nlife = { until = \"rewritten\" }",
        &["4:8: rule 'rule-1': life: write and write-zeroes would cure the very sectors to be damaged by it; give \
             on.op = \"read\", or another life"],
    ),
    (
        "on = { bytes = \"100+100\" }\nlife = \"pending\"",
        &["2:16: rule 'rule-1': on.bytes: 0x64..0xc8 is not made of whole sectors of 512 bytes, and sectors are \
             what goes bad and recovers; the whole ones are 0x0..0x200"],
    ),
    ("life = \"growing-defects\"", &["2:8: rule 'rule-1': life: growth begins behind the bad sectors"]),
    (
        "on.op = \"flush\"\ndo = \"fail\"\nlife = { until = \"reassigned\" }",
        &["4:8: rule 'rule-1': life: flush has no sectors"],
    ),
    (
        "do = { torn = \"range\" }",
        &["2:6: rule 'rule-1': do: cut = \"range\" cuts where the range begins, and there is none"],
    ),
];

#[test]
fn every_mistake_names_line_and_field() {
    for (lines, want) in MISTAKES {
        let mistakes = match read("f", &one(lines)) {
            Ok(read) => panic!("{lines} is taken: {read:?}"),
            Err(mistakes) => mistakes.lines(),
        };
        assert_eq!(mistakes.len(), want.len(), "{lines}: {mistakes:#?}");
        for (got, want) in mistakes.iter().zip(*want) {
            assert!(got.starts_with(&format!("f:{want}")), "{lines}\n got: {got}\nwant: f:{want}");
        }
    }
}

#[test]
fn mistakes_of_the_file_itself() {
    for (text, want) in [
        ("lba-size = 1000", "f:1:12: lba-size: 1000 is no sector size; write a power of two from 512 to 65536"),
        ("lba-size = \"512\"", "f:1:12: lba-size: this is a text"),
        ("seed = -1", "f:1:8: seed: this is no seed"),
        ("seed = \"\"", "f:1:8: seed: this is no seed"),
        ("sede = 1", "f:1:1: sede: no such field; did you mean 'seed'?"),
        ("rule = 1", "f:1:8: rule: this is a whole number; rules are written [[rule]]"),
        ("rule = [1]", "f:1:9: rule 'rule-1': this is a whole number; a rule is a table"),
        ("[rule]\nid = \"a\"", "f:1:1: rule: this is a table; rules are written [[rule]], with two brackets"),
        (
            "[[rule]]\nid = \"a\"\ndo = \"hang\"\n[[rule]]\nid = \"a\"\ndo = \"hang\"",
            "f:5:6: rule 'a': id: there is a rule of that id already",
        ),
        (
            "[[rule]]\nid = \"rule-2\"\ndo = \"hang\"\n[[rule]]\ndo = \"hang\"",
            "f:4:1: rule 'rule-2': id: there is a rule of that id already",
        ),
        ("seed = ", "f:1:8: no TOML: "),
        ("x = 1\nx = 2", "f:2:1: no TOML: duplicate key"),
        ("[[rule]", "f:1:8: no TOML: "),
    ] {
        let mistakes = read("f", text).unwrap_err().lines();
        assert!(mistakes.first().unwrap().starts_with(want), "{text}: {mistakes:#?}");
    }
}

#[test]
fn what_is_odd_is_a_warning() {
    for (text, want) in [
        ("", "f: there are no rules in it; a rule begins with [[rule]]"),
        ("[[rule]]\non.op = \"read\"", "f:1:1: rule 'rule-1': do: it does nothing but count; give do or then"),
        (
            "[[rule]]\non = { nth = 3, times = 2 }\ndo = \"fail\"",
            "f:2:25: rule 'rule-1': on.times: 'nth' without 'every' fires once at most; 'times' is without effect",
        ),
        (
            "[[rule]]\non.times = 2\ndo = \"fail\"\nthen.disarm = true",
            "f:2:12: rule 'rule-1': on.times: 'then.disarm' ends the rule after the first time; 'times' is without \
             effect",
        ),
        (
            "[[rule]]\non = { op = [\"read\", \"flush\"], lba = 1 }\ndo = \"fail\"",
            "f:2:13: rule 'rule-1': on.op: flush has no place on the disk, so the rule is not about it",
        ),
        (
            "[[rule]]\non.lba = 1\ndo = \"fail\"\nlife = { until = \"rewritten\" }",
            "f:4:8: rule 'rule-1': life: the write that would cure a sector meets 'fail' itself; give on.op = \"read\"",
        ),
        (
            "[[rule]]\non.state = \"x\"\ndo = \"fail\"",
            "f:2:12: rule 'rule-1': on.state: it can never fire: no rule sets the state 'x', and things begin in '1'",
        ),
        (
            "[[rule]]\ndo = \"fail\"\n[[rule]]\nid = \"b\"\non = { op = \"read\", lba = 7 }\ndo = \"hang\"",
            "f:5:6: rule 'b': on: it can never fire: rule 'rule-1' stands before it and takes every request it is \
             about",
        ),
        (
            "[[rule]]\non.lba = \"0..100\"\ndo = \"fail\"\n[[rule]]\nid = \"b\"\non = { op = \"read\", lba = 7 \
             }\ndo = \"hang\"",
            "f:6:6: rule 'b': on: it can never fire",
        ),
    ] {
        let warnings: Vec<_> =
            read("f", text).unwrap().warnings.iter().map(|warning| file::in_file("f", warning)).collect();
        assert_eq!(warnings.len(), 1, "{text}: {warnings:#?}");
        assert!(warnings[0].starts_with(want), "{text}: {warnings:#?}");
    }
    // None of these takes everything from the rule behind it.
    for first in [
        "do = { delay = \"1s\" }",
        "do = \"fail\"\non.probability = 0.5",
        "do = \"fail\"\non.op = \"write\"",
        "do = \"fail\"\non.lba = 6",
        "do = \"fail\"\non.times = 1",
        "do = \"fail\"\non.op = \"read\"\nlife = { until = \"rewritten\" }",
        "do = \"fail\"\nthen.disarm = true",
        "do = \"fail\"\nthen.state = \"2\"",
        "do = \"fail\"\non.after = \"1s\"",
    ] {
        let text = format!("[[rule]]\n{first}\n[[rule]]\non = {{ op = \"read\", lba = 7 }}\ndo = \"hang\"");
        assert_eq!(read("f", &text).unwrap().warnings, [], "{first}");
    }
}

#[test]
fn json_has_the_same_shape_without_lines() {
    let json = serde_json::json!({
        "id": "a", "on": {"op": "read", "lba": 50, "probability": 0.25}, "do": {"fail": "03/1101"},
        "life": {"until": "rewritten"}
    });
    let (rule, warnings) = file::read_rule(&json, 4096, "fault-1").unwrap();
    assert_eq!(rule.on.ranges, ranges(&[(50 * 4096, 51 * 4096)]));
    assert_eq!(warnings, []);
    for (json, want) in [
        (serde_json::json!({"on": {"opp": 1}}), "rule 'fault-1': on.opp: no such field; did you mean 'op'?"),
        (serde_json::json!(7), "rule 'fault-1': this is a whole number; a rule is a table"),
        (serde_json::json!({"do": null}), "rule 'fault-1': do: this is null; write an action"),
        (
            serde_json::json!({"on": {"lba": [[[[[[[[[[[1]]]]]]]]]]]}}),
            "rule 'fault-1': on.lba[0]: this is a list; write a",
        ),
        (
            serde_json::json!({"on": {"nth": 18446744073709551615_u64}}),
            "rule 'fault-1': on.nth: 18446744073709551615 is out",
        ),
    ] {
        let mistakes = file::read_rule(&json, 512, "fault-1").unwrap_err().to_string();
        assert!(mistakes.starts_with(want), "{json}: {mistakes}");
    }
}

#[test]
fn there_are_bounds() {
    let many = "[[rule]]\ndo = \"hang\"\n".repeat(file::RULES_MAX + 1);
    let mistakes = read("f", &many).unwrap_err();
    assert!(mistakes.to_string().contains("10000 at most"), "{mistakes}");

    let ranges = format!("[[rule]]\non.lba = [{}]\ndo = \"hang\"", "1,".repeat(file::RANGES_MAX + 1));
    assert!(read("f", &ranges).unwrap_err().to_string().contains("a rule has 100000 at most"));

    let large = " ".repeat(file::FILE_MAX + 1);
    assert!(read("f", &large).unwrap_err().to_string().contains("at most are read"));

    // Nothing but mistakes, as large as a file may be.
    for piece in ["=\n", "\n", "x\n", "[[rule]]\n", "[a]\n"] {
        let text = piece.repeat(file::FILE_MAX / piece.len());
        assert_eq!(read("f", &text).is_ok(), piece == "\n", "{piece:?}");
    }

    let deep = format!("x = {}1{}", "[".repeat(200), "]".repeat(200));
    assert!(read("f", &deep).is_err());

    let wrong = "[[rule]]\nx = 1\n".repeat(500);
    let mistakes = read("f", &wrong).unwrap_err();
    assert_eq!((mistakes.list.len(), mistakes.more), (100, 400));
    assert_eq!(mistakes.lines().last().unwrap(), "f: 400 more");

    let long = format!("[[rule]]\ndo = \"{}\"\n\"{}\" = 1", "a".repeat(1 << 20), "b\\u0007".repeat(1 << 18));
    let mistakes = read("f", &long).unwrap_err();
    assert_eq!(mistakes.list.len(), 2);
    assert!(mistakes.lines().iter().all(|line| line.len() < 1500 && !line.contains('\u{7}')), "{mistakes}");
}
