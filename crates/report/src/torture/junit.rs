//! JUnit's XML: a suite for each target and profile, a case for each rule (CM 12.3).
//!
//! A rule that was never broken passes, so that a list of cases says what was judged; known findings are skipped.

use std::fmt::Write as _;

use super::Suite;
use super::rules::{self, Rule, Severity};
use super::suite::Entry;
use super::text::{Show, report};
use crate::map::markup;

/// The document.
#[must_use]
pub fn xml(suites: &[Suite<'_>]) -> String {
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"blkproof torture\">\n");
    for suite in suites {
        one(suite, &mut out);
    }
    out.push_str("</testsuites>\n");
    out
}

fn one(suite: &Suite<'_>, out: &mut String) {
    let mut cases = String::new();
    let (mut tests, mut failures, mut skipped) = (0_u32, 0_u32, 0_u32);
    let name = markup(&suite.name());
    for rule in rules() {
        let broken: Vec<_> = suite.entries.iter().filter(|entry| entry.case.rule().code == rule.code).collect();
        // What is wrong with the test itself is a case only if something was.
        if broken.is_empty() && (rule.severity == Severity::Test || rule.code == rules::OTHER.code) {
            continue;
        }
        tests += 1;
        let words = markup(&format!("{} ({}): {}", rule.code, rule.section, rule.holds));
        let _ = write!(cases, "    <testcase classname=\"{name}\" name=\"{words}\" time=\"0\"");
        let failing: Vec<_> = broken.iter().filter(|entry| entry.standing.fails()).collect();
        match (failing.first(), broken.first()) {
            (Some(first), _) => {
                failures += 1;
                let bodies: Vec<_> = failing.iter().map(|entry| body(entry)).collect();
                let _ = write!(
                    cases,
                    ">\n      <failure type=\"{}\" message=\"{}\">{}</failure>\n    </testcase>\n",
                    markup(&first.case.finding.signature.to_string()),
                    markup(&first.case.sentence()),
                    bodies.join("\n\n")
                );
            }
            (None, Some(known)) => {
                skipped += 1;
                let why = &known.known_words().unwrap_or_default();
                let _ = write!(cases, ">\n      <skipped message=\"{}\"/>\n    </testcase>\n", markup(why));
            }
            (None, None) => cases.push_str("/>\n"),
        }
    }
    let _ = write!(
        out,
        "  <testsuite name=\"{name}\" tests=\"{tests}\" failures=\"{failures}\" errors=\"0\" skipped=\"{skipped}\" \
         time=\"{:.3}\">\n    <properties>\n      <property name=\"seeds\" value=\"{}\"/>\n      <property name=\"requests\" \
         value=\"{}\"/>\n    </properties>\n{cases}",
        suite.seconds.unwrap_or_default(),
        suite.seeds,
        suite.stats.ops
    );
    if let Some(coverage) = suite.coverage {
        let lines: Vec<_> = coverage.not_tested().iter().map(|line| markup(line)).collect();
        let _ = writeln!(out, "    <system-out>not tested:\n{}</system-out>", lines.join("\n"));
    }
    out.push_str("  </testsuite>\n");
}

fn rules() -> impl Iterator<Item = &'static Rule> {
    rules::ALL.iter().chain([&rules::OTHER])
}

/// The report, line by line: what would move a cursor, or end an element, does neither.
fn body(entry: &Entry<'_>) -> String {
    let text = report(entry, &Show::full());
    text.lines().map(markup).collect::<Vec<_>>().join("\n")
}
