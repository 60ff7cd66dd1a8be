//! `blkproof torture`, `replay` and `findings`: a planted bug is found, kept, repeated, known and forgotten.
#![cfg(feature = "gallery")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;

use common::{Outcome, blkproof, run, shell};
use serde_json::Value;
use tempfile::tempdir;

/// FVD's find of 2011: the map names a block before its data is there.
const V1: &str = "v1-map-before-data";

/// Tortures the driver with that bug until it is found.
#[track_caller]
fn torture(dir: &Path, more: &[&str]) -> Outcome {
    blkproof(dir, &[&["torture", "--target", V1, "--seed", "0", "--runs", "500"], more].concat())
}

/// The command in a report that has the plan in it.
fn pasted(report: &str) -> &str {
    let (_, rest) = report.split_once("THE PLAN, TO BE PASTED\n").unwrap_or_else(|| panic!("no plan: {report}"));
    let end = rest.find("\nEND\n").unwrap();
    &rest[..end + 5]
}

/// The plan of a report.
fn plan_in(report: &str) -> &str {
    let (_, plan) = pasted(report).split_once('\n').unwrap();
    plan.strip_suffix("\nEND\n").unwrap()
}

/// The command that a report tells to repeat what it found.
fn repeat(report: &str) -> &str {
    let (_, rest) = report.split_once("\nREPEAT ").unwrap();
    rest.lines().nth(1).unwrap().trim()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_planted_bug_is_found_and_its_plan_repeats_it() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let found = torture(dir, &["--jobs", "2"]).exited(1);
    assert!(
        found.stderr.starts_with(&format!("blkproof torture --target {V1} --profile quick --seed 0x0 --runs 500\n"))
    );
    assert!(found.stdout.contains(&format!("\n{V1}: 1 finding in ")), "{}", found.stdout);
    for heading in ["REPEAT", "PLAN", "TIMELINE", "SECTOR", "THE PLAN, TO BE PASTED", "NOT TESTED"] {
        assert!(found.stdout.contains(&format!("\n{heading}")), "{heading}: {}", found.stdout);
    }
    assert!(found.stdout.lines().count() < 100, "it fits on a screen or two: {}", found.stdout);

    std::fs::write(dir.join("plan.toml"), plan_in(&found.stdout)).unwrap();
    let again = blkproof(dir, &["replay", "plan.toml"]).exited(1);
    assert!(again.stdout.ends_with(&format!("plan.toml: {V1} fails\n")), "{}", again.stdout);
    let sentence = found.stdout.lines().next().unwrap();
    assert!(again.stdout.starts_with(sentence), "the same is said: {}", again.stdout);
    // What the report tells to paste shows it again.
    let seed = repeat(&found.stdout);
    assert!(seed.starts_with("blkproof torture "), "{seed}");
    assert!(shell(dir, seed).exited(1).stdout.starts_with(sentence), "{seed}");
    assert!(shell(dir, pasted(&found.stdout)).exited(1).stdout.starts_with(sentence));

    // The driver without the bug, and the original of which it is a copy.
    for sound in ["vdi", "vdi-copy"] {
        let passed = blkproof(dir, &["replay", "plan.toml", "--target", sound]).exited(0);
        assert!(passed.stdout.starts_with(&format!("plan.toml: {sound} passes: ")), "{}", passed.stdout);
    }
    shell(dir, "blkproof replay --target vdi - < plan.toml").exited(0);

    // The same with one thread, and by the command line that the report begins with.
    let alone = torture(dir, &["--jobs", "1"]).exited(1);
    assert_eq!(plan_in(&alone.stdout), plan_in(&found.stdout));
    let line = found.stderr.lines().next().unwrap();
    assert_eq!(plan_in(&shell(dir, line).exited(1).stdout), plan_in(&found.stdout));
}

#[test]
fn a_sound_driver_is_clean() {
    let dir = tempdir().unwrap();
    let clean = blkproof(dir.path(), &["torture", "-t", "raw", "--seed", "7", "--runs", "5"]).exited(0);
    assert!(clean.stdout.starts_with("raw: nothing found in 5 seeds ("), "{}", clean.stdout);
    let one = blkproof(dir.path(), &["torture", "-t", "raw", "--seed", "0x7"]).exited(0);
    assert!(one.stdout.contains("nothing found in 1 seed ("), "{}", one.stdout);
    assert_eq!(one.stderr, "blkproof torture --target raw --profile quick --seed 0x7\n");
    // Whether a seed ends in that time is another matter.
    let timed = blkproof(dir.path(), &["torture", "-t", "raw", "--seed", "7", "--time", "20ms"]);
    assert!(timed.stderr.ends_with(" --seed 0x7 --time 20ms\n"), "{}", timed.stderr);
    // What is found from a seed that is drawn is another matter; here it counts that the seed is named.
    let drawn = blkproof(dir.path(), &["torture", "-t", "raw", "--runs", "1", "--no-shrink"]);
    assert!(
        drawn.stderr.contains(" --seed 0x") && drawn.stderr.ends_with(" --runs 1 --no-shrink\n"),
        "{}",
        drawn.stderr
    );
}

#[test]
fn a_wrong_command_line_is_refused() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("no.toml"), "schema = \"blkproof.plan/1\"\nops = [\"1 wirte 0+1\"]\n").unwrap();
    std::fs::write(dir.join("file"), "").unwrap();
    for (words, said) in [
        (&["torture", "--target", "v1"][..], "did you mean v1-map-before-data"),
        (&["torture", "--target", "nothing"], "--list-targets"),
        (&["torture", "--time", "5d"], "no unit of time"),
        (&["torture", "--runs", "0"], "--runs"),
        (&["torture", "--profile", "thorough"], "quick, ci and deep"),
        (&["torture", "-t", "raw", "--seed", "1", "--out", "file"], "could not make 'file'"),
        (&["torture", "-t", "raw", "--seed", "1", "--junit", "no/x.xml"], "could not write 'no/x.xml'"),
        (&["replay", "no.toml"], "line 2"),
        (&["replay", "nofile"], "could not read 'nofile'"),
        (&["replay"], "PLAN|FINDING"),
        (&["findings", "list", "nodir"], "could not read 'nodir'"),
        (&["findings"], "Usage"),
    ] {
        let refused = blkproof(dir, words).exited(2);
        assert!(refused.stderr.contains(said), "{words:?}: {}", refused.stderr);
    }
}

/// A write fails below; the next one to the same block is acknowledged, and flushed.
const LOST_WRITE: &str = r#"schema = "blkproof.plan/1"
seed = 1
ops = ["1 write 0+512", "2 write 512+512 after 1", "3 flush after 2"]
faults = ["1#1 fails EIO"]
[target]
name = "v1-map-before-data"
size = "1M"
"#;

/// QEMU's VDI driver has the bug of 2011 to this day: the script of the report shows it there.
#[test]
fn the_script_of_a_report_shows_the_bug_in_qemu() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("plan.toml"), LOST_WRITE).unwrap();
    let report = json(&blkproof(dir, &["replay", "--json", "plan.toml"]).exited(1).stdout);
    let script = report["cases"][0]["finding"]["qemu-io"].as_str().unwrap();
    let brief = blkproof(dir, &["replay", "plan.toml"]).exited(1).stdout;
    let listed = script.lines().all(|line| brief.contains(line));
    assert!(listed && brief.contains("\nQEMU-IO\n"), "it is in the report on a terminal too: {brief}");
    let out = run(dir, "sh", &["-c", script]).stdout;
    assert!(out.contains("write failed: Input/output error"), "{out}");
    assert_eq!(out.matches("Pattern verification failed at offset 512, 512 bytes").count(), 1, "{out}");
}

#[test]
fn a_full_report_has_what_a_brief_one_names() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("plan.toml"), LOST_WRITE).unwrap();
    let brief = blkproof(dir, &["replay", "plan.toml"]).exited(1).stdout;
    assert!(brief.contains("without 10 requests below of opening, closing and the end"), "{brief}");
    assert!(brief.contains("--report full shows all of it, with a test of Rust and the plan"), "{brief}");
    let full = blkproof(dir, &["replay", "--report", "full", "--html", "page.html", "plan.toml"]).exited(1).stdout;
    assert!(full.contains("\nRUST TEST\n") && full.contains(" 0#11 ") && !full.contains("--report full"), "{full}");
    let page = std::fs::read_to_string(dir.join("page.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("1 finding in 1 plan"), "{page}");
}

#[test]
fn bisecting_skips_what_can_not_be_judged() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let report = torture(dir, &["--format", "json"]).exited(1);
    std::fs::write(dir.join("report.json"), &report.stdout).unwrap();
    let replay = |words: &[&str]| blkproof(dir, &[&["replay", "--bisect"], words].concat());
    replay(&["report.json"]).exited(1);
    replay(&["report.json", "--target", "vdi"]).exited(0);
    let changed = |from: &str, to: &str| {
        assert!(report.stdout.contains(from), "{from} in {}", report.stdout);
        std::fs::write(dir.join("changed.json"), report.stdout.replace(from, to)).unwrap();
        replay(&["changed.json"]).exited(125)
    };
    // A version of this program that has no such driver; a finding of another kind; a plan from the future.
    changed(V1, "v9-of-tomorrow");
    let code = json(&report.stdout)["targets"][0]["findings"][0]["signature"].as_str().unwrap().to_owned();
    let other = changed(&format!("\"signature\": \"{code}\""), "\"signature\": \"hang::run:\"");
    assert!(other.stdout.contains("fails in another way"), "{}", other.stdout);
    changed("blkproof.plan/1", "blkproof.plan/2");
}

#[test]
fn the_json_report_has_the_plan_in_it() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let outcome = torture(dir, &["--format", "json", "--junit", "j.xml", "--html", "p.html", "--github"]).exited(1);
    let report = json(&outcome.stdout);
    assert_eq!(report["schema"], "blkproof.torture/1");
    assert_eq!(report["exit-status"], 1);
    let target = &report["targets"][0];
    assert_eq!((&target["target"], &target["ended"]), (&Value::from(V1), &Value::from("findings")));
    assert!(target["stats"]["requests"].as_u64().unwrap() > 0);
    let finding = &target["findings"][0];
    assert_eq!(finding["schema"], "blkproof.torture-finding/1");
    assert_eq!(finding["standing"], "new");
    let plan = finding["plan"].as_str().unwrap();
    std::fs::write(dir.join("plan.toml"), plan).unwrap();
    let again = blkproof(dir, &["replay", "--format", "json", "plan.toml"]).exited(1);
    let again = json(&again.stdout);
    assert_eq!(again["cases"][0]["finding"]["signature"], finding["signature"]);
    assert_eq!(again["cases"][0]["finding"]["text"], finding["text"], "the finding is told of the shrunk plan");

    let junit = std::fs::read_to_string(dir.join("j.xml")).unwrap();
    assert!(junit.contains(" failures=\"1\" ") && junit.contains("<failure type="), "{junit}");
    shell(dir, "python3 -c 'import xml.dom.minidom as m; m.parse(\"j.xml\")'").exited(0);
    let page = std::fs::read_to_string(dir.join("p.html")).unwrap();
    assert!(page.contains("1 finding") && page.contains("<svg"), "{page}");
    assert!(outcome.stderr.contains("::error title="), "{}", outcome.stderr);
}

#[test]
fn a_store_keeps_lists_shows_and_replays_findings() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    torture(dir, &["--out", "a/st"]).exited(1);
    torture(dir, &["--out", "a/st"]).exited(1);
    let files = shell(dir, "cd a/st && find . -type f | sort").exited(0).stdout;
    assert_eq!(files.lines().count(), 2, "the same finding is kept once, and nothing else: {files}");

    let list = json(&blkproof(dir, &["findings", "list", "a/st", "--format", "json"]).exited(0).stdout);
    assert_eq!(list["findings"].as_array().unwrap().len(), 1);
    let name = list["findings"][0]["name"].as_str().unwrap().to_owned();
    let listed = blkproof(dir, &["findings", "list", "a/st"]).exited(0).stdout;
    assert!(listed.contains(V1) && listed.contains("  new\n"), "{listed}");

    let (folder, own) = name.split_once('/').unwrap();
    for part in [&name[..], folder, &own[..6]] {
        let shown = blkproof(dir, &["findings", "show", "--report", "full", "a/st", part]).exited(0).stdout;
        let plan = std::fs::read_to_string(dir.join("a/st").join(format!("{name}.toml"))).unwrap();
        assert_eq!(plan_in(&shown), plan.trim_end(), "{part}");
    }
    let unknown = blkproof(dir, &["findings", "show", "a/st", "zzz"]).exited(2);
    assert!(unknown.stderr.contains("no finding whose name begins with 'zzz'"), "{}", unknown.stderr);

    blkproof(dir, &["replay", &format!("a/st/{name}.json")]).exited(1);
    blkproof(dir, &["replay", &format!("a/st/{name}.toml")]).exited(1);
    let shown = blkproof(dir, &["findings", "show", "a/st", &name]).exited(0).stdout;
    let command = repeat(&shown);
    assert_eq!(command, format!("blkproof replay a/st/{name}.toml"));
    assert!(shell(dir, command).exited(1).stdout.starts_with(shown.lines().next().unwrap()));
    assert!(shown.contains("\n  Found by seed 0x") && shown.contains("\n  Shrunk in "), "{shown}");
    let shown = blkproof(dir, &["findings", "show", "--json", "a/st", &name]).exited(0).stdout;
    std::fs::write(dir.join("shown.json"), &shown).unwrap();
    blkproof(dir, &["replay", "shown.json"]).exited(1);
    let all = blkproof(dir, &["findings", "replay", "a/st"]).exited(1).stdout;
    assert!(all.contains(" fails as it did"), "{all}");

    // A file that was damaged is told by its name.
    std::fs::write(dir.join("a/st").join(format!("{name}.json")), "{").unwrap();
    let damaged = blkproof(dir, &["findings", "list", "a/st"]).exited(2);
    assert!(damaged.stderr.contains(&format!("{name}.json' is no finding: this is no JSON")), "{}", damaged.stderr);
}

#[test]
fn a_known_finding_fails_no_run_until_its_day_is_over() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    // All signatures that these seeds find.
    let seeds = ["--until-findings", "0", "--runs", "40", "--no-shrink", "--out", "st", "--format", "json"];
    let run = |words: &[&str]| blkproof(dir, &[&["torture", "--target", V1, "--seed", "0"], words].concat());
    let first = json(&run(&seeds).exited(1).stdout);
    let findings = first["targets"][0]["findings"].as_array().unwrap();
    let known = |until: &str| {
        let issue = |finding: &Value| {
            format!(
                "[[known]]\nsignature = {}\ntarget = \"{V1}\"\nuntil = {until}\nwhy = \"as in 2011\"\n",
                finding["signature"]
            )
        };
        let issues: String = findings.iter().map(issue).collect();
        std::fs::write(dir.join("st/known.toml"), format!("schema = \"blkproof.known/1\"\n{issues}")).unwrap();
    };

    known("9999-12-31");
    let passed = json(&run(&seeds).exited(0).stdout);
    assert_eq!(passed["targets"][0]["findings"][0]["standing"], "known");
    // It does not count for --until-findings either.
    let on = json(&run(&["--runs", "40", "--no-shrink", "--out", "st", "--format", "json"]).exited(0).stdout);
    assert_eq!((&on["targets"][0]["ended"], &on["targets"][0]["seeds"]), (&Value::from("runs"), &Value::from(40)));
    let replayed = blkproof(dir, &["findings", "replay", "st"]).exited(0).stdout;
    assert!(replayed.contains("(known until 9999-12-31: as in 2011)"), "{replayed}");

    known("2011-06-15");
    let failed = run(&["--runs", "40", "--no-shrink", "--out", "st"]).exited(1).stdout;
    assert!(failed.contains("\n  Known, but only until 2011-06-15, which is over: as in 2011."), "{failed}");
    blkproof(dir, &["findings", "replay", "st"]).exited(1);

    std::fs::write(dir.join("st/known.toml"), "schema = \"blkproof.known/1\"\n[[known]]\nsignature = \"x\"\n").unwrap();
    let refused = run(&seeds).exited(2);
    assert!(refused.stderr.contains("known.toml' can not be used: known[0]: "), "{}", refused.stderr);
}

#[test]
fn the_gallery_has_a_table() {
    let dir = tempdir().unwrap();
    let run = |words: &[&str]| {
        let all = ["torture", "--gallery", "--gallery-starts", "2", "--time", "30s", "--target", V1];
        blkproof(dir.path(), &[&all, words].concat())
    };
    let table = run(&[]).exited(0);
    let row = table.stdout.lines().find(|line| line.starts_with(V1)).unwrap();
    assert!(row.contains("  2/2  ") && row.contains("2011"), "{row}");
    assert!(table.stdout.contains("vdi-copy") && table.stdout.contains("without a bug: clean"), "{}", table.stdout);
    let json = json(&run(&["--format", "json", "--no-shrink"]).exited(0).stdout);
    assert_eq!(json["planted"][0]["starts"].as_array().unwrap().len(), 2);
    // One seed does not find it: that is said, and is no success.
    let missed = run(&["--runs", "1", "--no-shrink"]).exited(5);
    assert!(missed.stdout.contains("NOT FOUND from every start"), "{}", missed.stdout);
}

#[test]
fn targets_are_listed() {
    let dir = tempdir().unwrap();
    let list = blkproof(dir.path(), &["torture", "--list-targets"]).exited(0).stdout;
    for name in ["qcow2 ", "raw ", "vdi ", "qcow2-copy ", "v1-map-before-data "] {
        assert!(list.lines().any(|line| line.starts_with(name)), "{name}: {list}");
    }
    let list = json(&blkproof(dir.path(), &["torture", "--list-targets", "--format", "json"]).exited(0).stdout);
    assert!(list["targets"].as_array().unwrap().len() > 40);
}

#[test]
fn a_signal_ends_a_campaign_with_its_report() {
    let dir = tempdir().unwrap();
    // It listens for signals before it says its first line. What it says later goes to nobody, but has to go somewhere.
    // A seed of profile deep takes long: it is not waited for.
    for more in ["-t raw --time 1h", "-t qcow2 --profile deep --runs 100000"] {
        let line = format!(
            "rm -f err; mkfifo err; blkproof torture {more} --seed 1 2>err & pid=$!; exec 3<err; read -r first <&3; \
             kill -INT $pid; cat <&3 >rest & code=0; wait $pid || code=$?; exit $code"
        );
        let ended = shell(dir.path(), &line).exited(5);
        assert!(ended.stdout.contains(": nothing found in "), "{}", ended.stdout);
        assert!(ended.stdout.replace("\n ", "").contains("; stopped by a signal"), "{}", ended.stdout);
        assert!(ended.stdout.contains("\nNOT TESTED\n"), "{}", ended.stdout);
    }
}
