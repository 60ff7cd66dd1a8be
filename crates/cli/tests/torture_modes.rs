//! `blkproof torture --sweep` and `--threads`, and `replay` of such plans.
#![cfg(feature = "gallery")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::blkproof;
use serde_json::Value;
use tempfile::tempdir;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

const PLAIN: &str = r#"schema = "blkproof.plan/1"
ops = [
    "1 write 0+512",
    "2 write 512+512",
    "3 reopen",
]

[target]
name = "v1-map-before-data"
size = "64K"
"#;

#[test]
fn a_seed_and_a_plan_are_swept() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let sweep = |target: &str, more: &[&str]| {
        blkproof(dir, &[&["torture", "--sweep", "--target", target, "--seed", "0"], more].concat())
    };
    let found = sweep("v1-map-before-data", &["--runs", "60", "--no-shrink"]).exited(1);
    assert!(found.stderr.lines().next().unwrap().contains(" --sweep"), "{}", found.stderr);
    sweep("vdi", &["--runs", "2"]).exited(0);

    std::fs::write(dir.join("plain.toml"), PLAIN).unwrap();
    let found = blkproof(dir, &["replay", "--sweep", "plain.toml"]).exited(1);
    let last = found.stdout.lines().last().unwrap();
    assert_eq!(last, "plain.toml: v1-map-before-data: 12 requests below failed in turn, in 54 runs: 1 finding");
    assert!(found.stdout.contains("  the 1st request of op 1 is refused with"), "{}", found.stdout);
    let clean = blkproof(dir, &["replay", "--sweep", "--target", "vdi", "plain.toml"]).exited(0);
    assert!(clean.stdout.ends_with(": nothing wrong\n"), "{}", clean.stdout);

    // What it finds is a plan like others: it fails as it was said to.
    let all = json(&blkproof(dir, &["replay", "--sweep", "--format", "json", "plain.toml"]).exited(1).stdout);
    let finding = &all["cases"][0]["findings"][0];
    std::fs::write(dir.join("found.json"), finding.to_string()).unwrap();
    let again = blkproof(dir, &["replay", "found.json"]).exited(1);
    assert!(again.stdout.ends_with("found.json: v1-map-before-data fails as it did\n"), "{}", again.stdout);
}

#[test]
fn a_race_is_found_by_threads_and_replayed_at_its_rate() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let wanted = ["torture", "--threads", "4", "--seed", "0", "--runs", "2000", "--target"];
    let found = blkproof(dir, &[&wanted[..], &["thin-unlocked-merge", "--format", "json"]].concat()).exited(1);
    assert!(found.stderr.contains(" --threads 4"), "{}", found.stderr);
    let all = json(&found.stdout);
    let finding = &all["targets"][0]["findings"][0];
    assert!(finding["rate"]["runs"].as_u64().unwrap() > 0, "{finding}");
    // Whether it fails in these runs nobody can promise; on the sound driver it does not.
    std::fs::write(dir.join("race.toml"), finding["plan"].as_str().unwrap()).unwrap();
    let clean = blkproof(dir, &["replay", "--target", "thin", "race.toml"]).exited(0);
    assert_eq!(clean.stdout, "race.toml: thin fails in none of 60 runs, which says little of a race\n");
    let told = blkproof(dir, &[&wanted[..], &["thin-unlocked-merge"]].concat()).exited(1);
    assert!(told.stdout.contains("  the plan below fails in ") && told.stdout.contains(" by 4 threads ("));
    let sound = ["torture", "--threads", "3", "--seed", "0", "--runs", "20", "--target", "thin"];
    assert!(blkproof(dir, &sound).exited(0).stdout.starts_with("thin: nothing found in 20 seeds by 3 threads ("));
}

#[test]
fn only_drivers_for_threads_are_asked_by_threads() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    for (args, words) in [
        (&["--threads", "4", "--target", "qcow2"][..], "qcow2 is single-threaded by its type"),
        (&["--threads", "4"], "For --threads there are: thin, "),
        (&["--target", "thin"], "say by how many it is to be asked, as in --threads 4"),
        (&["--threads", "65", "--target", "thin"], "65"),
        (&["--threads", "2", "--target", "thin", "--sweep"], "--sweep"),
    ] {
        let refused = blkproof(dir, &[&["torture"], args].concat()).exited(2);
        assert!(refused.stderr.contains(words), "{args:?}: {}", refused.stderr);
    }
    let list = blkproof(dir, &["torture", "--list-targets"]).exited(0).stdout;
    assert!(list.lines().any(|line| line.starts_with("thin ") && line.contains("for --threads")), "{list}");
}
