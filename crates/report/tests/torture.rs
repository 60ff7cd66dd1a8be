//! What is reported of drivers with planted bugs: the whole text, and what programs make of the other forms.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod torture_common;

use std::collections::BTreeMap;
use std::process::Command;

use blkproof_report::torture::text::{Show, report, write_suite};
use blkproof_report::torture::{
    Case, Coverage, Entry, Neighbour, Suite, gallery, github, html, json, junit, neighbours, qemu_io, quoted, rules,
    rust_test, timeline,
};
use blkproof_torture::campaign::{Campaign, Found, Results};
use blkproof_torture::run::{Finding, Outcome, Stats, run};
use blkproof_torture::shrink::{Limit, Shrunk};
use blkproof_torture::target;
use torture_common::{
    EVENTS, HOSTILE, Hostile, LOST_FLUSH, LOST_WRITE, SECOND_LIFE, golden, hostile_plan, known, plan, python, suite,
    with_case,
};

/// The test to paste is one: this is what [`rust_test`] made of a plan, for the driver without the bug.
mod pasted {
    include!("torture_golden/pasted.rs");
}

fn looked(plan: &blkproof_torture::plan::Plan) -> Vec<Neighbour> {
    let target = blkproof_gallery::find(&plan.target.name).unwrap();
    let outcome = run(plan, &target, &EVENTS);
    neighbours::look(plan, &outcome, &outcome.findings[0].signature, &target, &|| false)
}

#[test]
fn a_lost_write_in_full() {
    with_case(&plan(LOST_WRITE), |case| {
        golden("lost-write.txt", &report(&Entry::new(case), &Show::full()));
        let brief = report(&Entry::new(case), &Show::default());
        assert!(brief.lines().count() <= 85, "{brief}");
        golden("lost-write-brief.txt", &brief);
        let expression = Some("blkproof_torture::target::Vdi");
        golden("pasted.rs", &rust_test::source(&Case { target_expression: expression, ..case }));
    });
}

#[test]
fn a_lost_flush_in_full() {
    let plan = plan(LOST_FLUSH);
    let neighbours = looked(&plan);
    with_case(&plan, |case| {
        let case = Case { neighbours: &neighbours, ..case };
        golden("lost-flush.txt", &report(&Entry::new(case), &Show::full()));
        assert_eq!(qemu_io::script(&case), Err("it has no power cuts".to_owned()));
        golden("lost-flush.svg", &timeline::svg(&case));
    });
}

/// A cut among the ops, a request that is dropped, and names of requests below that come twice, one in each life.
#[test]
fn a_second_life_in_full() {
    with_case(&plan(SECOND_LIFE), |case| golden("second-life.txt", &report(&Entry::new(case), &Show::full())));
}

#[test]
fn how_it_was_found_is_said() {
    let plan = plan(LOST_WRITE);
    let outcome = torture_common::outcome(&plan);
    let shrunk = Shrunk {
        plan: plan.clone(),
        original: 214,
        size: 5,
        runs: 1312,
        judged: 1312,
        rounds: 3,
        limit: Limit::Fixpoint,
        minimal: true,
        verified: (3, 3),
        others: BTreeMap::new(),
    };
    // What the first run said has the numbers of another plan.
    let first = Finding { text: "in other words".to_owned(), ..outcome.findings[0].clone() };
    let found = Found { seed: 0x51f0, times: 2, ops: 12345, finding: first, plan, shrunk: Some(shrunk) };
    let case = Case::of_found(&found, &outcome, Some("quick"), Some("a b.toml"));
    let text = report(&Entry::new(case), &Show { width: 200, ..Show::default() });
    for words in [
        "  Found by seed 0x51f0 after 12 345 requests; 2 seeds found it.\n",
        "  Shrunk from 214 to 5 elements in 1 312 runs; without any one of them it does not fail (nothing could be made smaller); \
         it failed in 3 of 3 further runs.\n",
        "  blkproof replay 'a b.toml'\n",
        "  blkproof torture --target v1-map-before-data --profile quick --seed 0x51f0\n",
        "bytes 0x200..0x400 hold",
    ] {
        assert!(text.contains(words), "{words:?} in {text}");
    }
    assert!(!text.contains("in other words"), "{text}");
    // A run that shows nothing does not hide what was found.
    let nothing = Outcome { findings: Vec::new(), ..outcome.clone() };
    let text = report(&Entry::new(Case::of_found(&found, &nothing, None, Some("x"))), &Show::default());
    assert!(text.contains("in other words") && text.contains("did not show it again"), "{text}");
    assert!(Case::of_run(&found.plan, &nothing, Some("x")).is_none());
}

#[test]
fn without_events_less_is_said_but_nothing_wrong() {
    let plan = plan(LOST_WRITE);
    let target = blkproof_gallery::find(&plan.target.name).unwrap();
    let outcome = run(&plan, &target, &blkproof_torture::run::Settings { events: false, ..EVENTS });
    let with = run(&plan, &target, &EVENTS);
    assert_eq!((outcome.digest, &outcome.findings), (with.digest, &with.findings), "keeping events changes nothing");
    assert!(outcome.events.is_empty() && outcome.history.is_empty() && !with.events.is_empty());
    let case = Case::of_run(&plan, &outcome, Some("finding.toml")).unwrap();
    let text = report(&Entry::new(case), &Show::full());
    assert!(!text.contains("TIMELINE") && !text.contains("not sent"), "{text}");
    assert!(timeline::svg(&case).is_empty());
}

/// QEMU's VDI driver has the bug of 2011 to this day: the script shows it there.
#[test]
fn the_script_shows_the_bug_in_qemu() {
    let script = with_case(&plan(LOST_WRITE), |case| qemu_io::script(&case).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new("sh").args(["-c", &script]).current_dir(folder.path()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.contains("write failed: Input/output error"), "the fault happens: {out}{err}\n{script}");
    let verdict = "Pattern verification failed at offset 512, 512 bytes";
    assert_eq!(out.matches(verdict).count(), 1, "only once it is opened again: {out}{err}\n{script}");
    assert_eq!(err, "", "{script}");
}

#[test]
fn what_qemu_io_can_not_say() {
    for (from, to, why) in [
        ("3 flush after 2", "3 flush after 2 drop@1", "op 3 is dropped"),
        ("2 write 512+512 after 1", "2 q1 write 512+512", "ops 1 and 2 are in flight together"),
        ("1#1 fails EIO", "1#1 fails EIO, all done", "a request below fails with a part of it done"),
    ] {
        let plan = plan(&LOST_WRITE.replace(from, to));
        let outcome = torture_common::outcome(&plan);
        let finding = blkproof_torture::run::Finding::new("read", "run", "something");
        let outcome = blkproof_torture::run::Outcome { findings: vec![finding], ..outcome };
        let case = Case { format: Some("vdi"), ..Case::of_run(&plan, &outcome, Some("x")).unwrap() };
        assert_eq!(qemu_io::script(&case).unwrap_err(), why, "{to}");
        assert_eq!(qemu_io::script(&Case { format: None, ..case }).unwrap_err(), "QEMU has no driver of that name");
    }
}

const COUNT_CASES: &str = r#"
import sys, xml.etree.ElementTree as tree
root = tree.fromstring(sys.stdin.buffer.read())
for suite in root:
    cases = suite.findall("testcase")
    assert len({case.get("name") for case in cases}) == len(cases) == int(suite.get("tests"))
    failed = [case for case in cases if case.find("failure") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    assert len(failed) == int(suite.get("failures")) and len(skipped) == int(suite.get("skipped"))
    print(suite.get("name"), [case.get("name").split(" ")[0] for case in failed], len(skipped))
"#;

#[test]
fn junit_is_xml_with_a_case_for_each_rule() {
    let (lost, flush) = (plan(LOST_WRITE), plan(LOST_FLUSH));
    let coverage = Coverage::of_plan(&lost, Stats::default());
    with_case(&lost, |lost| {
        with_case(&flush, |flush| {
            let failing = suite("vdi", &[lost, flush, lost], &coverage);
            let known = Entry { case: flush, standing: known("<&>") };
            let quiet = Suite { target: "raw", entries: vec![known], ..suite("raw", &[], &coverage) };
            let got = python(COUNT_CASES, &junit::xml(&[failing, quiet]));
            assert_eq!(got, "vdi/quick ['flush', 'reopen'] 0\nraw/quick [] 1\n");
        });
    });
}

#[test]
fn annotations_are_the_worst_ten() {
    let lost = plan(LOST_WRITE);
    let coverage = Coverage::default();
    with_case(&lost, |case| {
        let leak = blkproof_torture::run::Finding::new("leak", "close", "something is left");
        let many = [&[Case { finding: &leak, ..case }][..], &[case; 11]].concat();
        let text = github::annotations(&[suite("vdi", &many, &coverage)]);
        assert_eq!(text.lines().count(), 10);
        assert!(
            text.lines().all(|line| line.starts_with("::error title=v1-map-before-data%3A lost acknowledged data ("))
        );
        assert!(text.lines().last().unwrap().ends_with("%0Aand 2 findings more, which are not shown here"), "{text}");
        let known = Entry { case, standing: known("because") };
        let text = github::annotations(&[Suite { entries: vec![known], ..suite("vdi", &[], &coverage) }]);
        assert!(
            text.starts_with("::notice title=") && text.contains("%0AKnown until 2099-01-01: because%0A"),
            "{text}"
        );
    });
}

#[test]
fn json_says_what_the_text_says() {
    let plan = plan(LOST_FLUSH);
    let neighbours = looked(&plan);
    let coverage = Coverage::of_plan(&plan, Stats { points: 4, exhausted: 1, ..Stats::default() });
    with_case(&plan, |case| {
        let case = Case { neighbours: &neighbours, ..case };
        let value = json::suites(&[suite("vdi", &[case], &coverage)], "blkproof torture", 1);
        assert_eq!(value["schema"], "blkproof.torture/1");
        let target = &value["targets"][0];
        assert_eq!(
            (target["failures"].as_u64(), target["stats"]["crash-points-exhausted"].as_u64()),
            (Some(1), Some(10))
        );
        let finding = &target["findings"][0];
        assert_eq!(finding["severity"], "lost acknowledged data");
        assert_eq!(finding["plan"], plan.to_string());
        assert_eq!(finding["ops"][0]["outcome"], "done");
        assert_eq!(finding["qemu-io"], serde_json::Value::Null);
        assert_eq!(finding["sector"]["history"][0]["op"], 1);
        assert!(finding["crash"]["requests"].as_array().unwrap().iter().all(|io| io["fate"] == "lost"));
        assert!(finding["crash"]["neighbours"].as_array().unwrap().iter().any(|other| other["fails"] == false));
    });
}

const SVGS: &str = r#"
import sys, re, html.parser, xml.etree.ElementTree as tree
page = sys.stdin.buffer.read().decode()
class Page(html.parser.HTMLParser):
    stack, tags = [], set()
    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not any(name.startswith("on") or name in ("src", "srcset") for name, _ in attrs), attrs
        if tag not in ("meta",): self.stack.append(tag)
    def handle_startendtag(self, tag, attrs): self.tags.add(tag)
    def handle_endtag(self, tag): assert self.stack.pop() == tag, tag
parser = Page(); parser.feed(page); parser.close()
assert parser.stack == [] and "script" not in parser.tags and "link" not in parser.tags
for svg in re.findall(r"<svg.*?</svg>", page, re.S): tree.fromstring(svg)
print(len(re.findall("<svg", page)), len(re.findall("<article", page)))
"#;

#[test]
fn the_page_is_whole_and_asks_for_nothing() {
    let (lost, flush) = (plan(LOST_WRITE), plan(LOST_FLUSH));
    let coverage = Coverage::of_plan(&lost, Stats::default());
    let neighbours = looked(&flush);
    with_case(&lost, |lost| {
        with_case(&flush, |flush| {
            let flush = Case { neighbours: &neighbours, ..flush };
            let page = html::html(&[suite("vdi", &[lost, flush], &coverage), suite("raw", &[], &coverage)]);
            if let Some(path) = std::env::var_os("PAGE") {
                std::fs::write(path, &page).unwrap();
            }
            assert_eq!(python(SVGS, &page), "2 2\n");
            let rest = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!rest.contains("://") && !rest.contains("url("));
        });
    });
    assert!(html::html(&[]).contains("No target"));
}

#[test]
fn the_page_of_the_gallery_is_whole() {
    let bug = gallery::Bug {
        name: HOSTILE,
        copies: HOSTILE,
        what: HOSTILE,
        found: (1, 2),
        ops: Some((1234, 5678)),
        seconds: Some((0.5, 1.25)),
        code: "read",
        plan: Some((1, HOSTILE)),
    };
    let missed = gallery::Bug { found: (0, 2), ops: None, seconds: None, code: "", plan: None, ..bug.clone() };
    let sound = gallery::Sound { name: HOSTILE, seeds: 7, ops: 70, states: 700, findings: vec![HOSTILE.to_owned()] };
    let page = gallery::html(&[bug, missed], &[sound], HOSTILE, HOSTILE);
    assert_eq!(python(SVGS, &page), "0 0\n");
    for words in ["0 of 2 planted bugs found", "<td>1 234</td><td>5 678</td><td>0.500</td><td>1.250</td>", ">1/2<"] {
        assert!(page.contains(words), "{words}: {page}");
    }
}

#[test]
fn hostile_words_do_nothing() {
    let plan = hostile_plan();
    let outcome = run(&plan, &Hostile, &EVENTS);
    let case = Case::of_run(&plan, &outcome, Some(HOSTILE)).unwrap();
    assert_eq!(case.finding.signature.code, "panic");
    let coverage = Coverage::of_plan(&plan, Stats::default());
    let entry = Entry::new(case);
    let suites = [Suite { profile: HOSTILE, entries: vec![entry], ..suite(HOSTILE, &[], &coverage) }];
    let text = report(&Entry::new(case), &Show::full());
    assert!(!text.contains(['\u{1b}', '\u{202e}', '\r']), "{text:?}");
    let annotations = github::annotations(&suites);
    assert_eq!(annotations.lines().count(), 1, "{annotations}");
    assert!(!annotations.contains("%0A::error"), "{annotations}");
    let title = annotations.strip_prefix("::error title=").unwrap().split("::").next().unwrap();
    assert!(!title.contains([',', ':']) && title.contains("panic"), "{title}");
    assert!(python(COUNT_CASES, &junit::xml(&suites)).contains("['panic'] 0"));
    assert_eq!(python(SVGS, &html::html(&suites)), "0 1\n");
    let value = json::suites(&suites, "", 1);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&value.to_string()).unwrap(), value);
    assert_eq!(value["targets"][0]["target"], HOSTILE);
    // A shell says the file's name as it is.
    let echoed = Command::new("sh").args(["-c", &format!("printf %s {}", quoted(HOSTILE))]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&echoed.stdout), HOSTILE);
    assert_eq!(quoted("-o x"), "'./-o x'");
    // The literal of the test to paste ends where it should, and so does the comment in it.
    let source = rust_test::source(&case);
    assert!(source.contains("r##\"\nschema"), "{source}");
    let line = source.lines().find(|line| line.contains("MyDriver")).unwrap();
    assert!(line.matches("/*").count() == 1 && line.matches("*/").count() == 1, "{line}");
}

#[test]
fn what_was_not_tested_is_said() {
    let info = target::find("raw").unwrap().info();
    let stats = Stats { points: 3, exhausted: 1, possible: 900, states: 40, distinct: 30, ..Stats::default() };
    let one = Coverage::of(
        &Results { seeds: 1, stats, ..Results::default() },
        &Campaign { first: 3, ..Campaign::default() },
        &info,
    )
    .not_tested();
    assert!(one.iter().any(|line| line.starts_with("never drawn: ")), "{one:?}");
    assert!(one.iter().any(|line| line.contains("33.33 %") && line.contains("40 states")), "{one:?}");
    let nothing = Coverage::default();
    let mut text = String::new();
    write_suite(&mut text, &suite("vdi", &[], &nothing), &Show::default()).unwrap();
    let words = "vdi: nothing found in 17 seeds (421 operations, 7 requests below made to fail, 300 crash states";
    assert!(text.replace("\n ", "").starts_with(words), "{text}");
    assert!(text.contains("\nNOT TESTED\n  - never drawn: reads, writes,") && text.contains("real threads"), "{text}");
    let all =
        Coverage::of(&Results { seeds: 5000, stats, ..Results::default() }, &Campaign::default(), &info).not_tested();
    assert!(all.iter().any(|line| line == "never drawn: compressed writes"), "{all:?}");
    assert!(all.iter().any(|line| line.contains("shorn, garbage")), "{all:?}");
    assert!(all.iter().any(|line| line.contains("first 2 000 of 5 000 seeds")), "{all:?}");
}

#[test]
fn a_power_cut_is_said_once() {
    let plan = plan(LOST_FLUSH);
    let outcome = torture_common::outcome(&plan);
    for (text, said) in [
        ("after a power cut the image does not open: no", "the image does not open: no"),
        ("closed after a power cut, the image has leaks: 1", "closed, the image has leaks: 1"),
        ("the driver panicked after a power cut: no (a.rs:1)", "the driver panicked: no (a.rs:1)"),
        (
            "after a second power cut, while the image was opened, after a power cut bytes 0x0..0x200: found x, allowed: y; z",
            "after a second power cut, while the image was opened, bytes 0x0..0x200 hold x, where only y or z may be",
        ),
    ] {
        let finding = Finding { text: text.to_owned(), allowed: Vec::new(), ..outcome.findings[0].clone() };
        let outcome = Outcome { findings: vec![finding], ..outcome.clone() };
        let got = Case::of_run(&plan, &outcome, Some("x")).unwrap().sentence();
        let begin = "After a power cut just after op 2 succeeded, which left nothing that was not durable, ";
        assert_eq!(got, format!("{begin}{said}."));
    }
}

#[test]
fn every_code_of_the_oracle_has_a_rule() {
    for code in ["foreign", "read", "inversion", "failed-write", "overlap", "cancel", "flush", "fua", "discard", "zero"]
    {
        assert_eq!(rules::of(code).code, code);
    }
    assert_eq!(rules::of("never heard of").code, "other");
}
