//! `io --replay`: a trace made through the binary is sent again through the binary, and by way of a server.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;

use common::{blkproof, run};

const WORKLOAD: &str = "workload -s 2010 -n 500 -q 1";

/// A disk, and the trace of a workload on it.
fn recorded(dir: &Path) {
    for name in ["first.raw", "again.raw"] {
        blkproof(dir, &["create", "-f", "raw", name, "16M"]).exited(0);
    }
    let graph = "driver=trace,path=run.jsonl,data=on,file.driver=raw,file.file.filename=first.raw";
    blkproof(dir, &["io", "--image-opts", "-c", WORKLOAD, graph]).exited(0);
}

#[test]
fn the_same_requests_leave_the_same_disk() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    recorded(dir);
    let trace = std::fs::read_to_string(dir.join("run.jsonl")).unwrap();
    assert!(trace.starts_with("{\"schema\":\"blkproof.trace/1\",\"node\":\"trace0\",\"size\":16777216,"));
    assert_eq!(trace.lines().count(), 502, "the head, the operations, and the flush at the end");
    let replay = ["io", "--replay", "run.jsonl", "--as-fast-as-possible", "-f", "raw", "again.raw"];
    let outcome = blkproof(dir, &replay).exited(0);
    assert!(outcome.stdout.starts_with("replayed 501 requests of trace0: "), "{}", outcome.stdout);
    assert!(outcome.stdout.ends_with("\nno difference\n"), "{}", outcome.stdout);
    run(dir, "qemu-img", &["compare", "-f", "raw", "-F", "raw", "first.raw", "again.raw"]).exited(0);
}

#[test]
fn what_differs_is_told_and_fails() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    recorded(dir);
    // A smaller disk refuses what lies beyond its end.
    blkproof(dir, &["create", "-f", "raw", "small.raw", "8M"]).exited(0);
    let outcome =
        blkproof(dir, &["io", "--replay", "run.jsonl", "--speed", "1000", "-f", "raw", "small.raw"]).exited(1);
    assert_eq!(outcome.stderr, "blkproof io: the trace was made on a disk of 16777216 bytes, this one has 8388608\n");
    assert!(outcome.stdout.contains(": was ok, is EIO\n"), "{}", outcome.stdout);
    assert!(outcome.stdout.contains(" requests ended in another way\n"), "{}", outcome.stdout);
    let json = ["io", "--format", "json", "--replay", "run.jsonl", "--as-fast-as-possible", "-f", "raw", "small.raw"];
    let outcome = blkproof(dir, &json).exited(1);
    let object: serde_json::Value = serde_json::from_str(outcome.stdout.trim()).unwrap();
    assert_eq!(
        (&object["command"], &object["ok"], &object["requests"]),
        (&"replay".into(), &false.into(), &501.into())
    );
    assert!(object["differences"].as_u64().unwrap() > 20);
    assert_eq!(
        object["messages"].as_array().unwrap().len(),
        22,
        "one on the size, twenty differences, and how many more"
    );
}

#[test]
fn misuse_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    recorded(dir);
    std::fs::write(dir.join("no.jsonl"), "QFI\n").unwrap();
    let table: &[(&[&str], &str)] = &[
        (&["--replay", "run.jsonl"], "--replay needs an image to send the requests to"),
        (&["--replay", "run.jsonl", "-c", "help", "-f", "raw", "again.raw"], "--replay and -c are mutually exclusive"),
        (&["--speed", "2", "-f", "raw", "again.raw"], "--speed and --as-fast-as-possible go with --replay"),
        (
            &["--replay", "run.jsonl", "--speed", "0", "-f", "raw", "again.raw"],
            "--speed takes a number above 0, such as 0.5 or 10, not '0'",
        ),
        (
            &["--replay", "no.jsonl", "-f", "raw", "again.raw"],
            "no.jsonl: no trace: the first line must have \"schema\": \"blkproof.trace/1\"",
        ),
        (&["--replay", "gone.jsonl", "-f", "raw", "again.raw"], "gone.jsonl: could not be opened: No such file"),
    ];
    for (words, want) in table {
        let words: Vec<&str> = ["io"].iter().chain(*words).copied().collect();
        let outcome = blkproof(dir, &words).exited(1);
        assert!(outcome.stderr.starts_with(&format!("blkproof io: {want}")), "{words:?}: {}", outcome.stderr);
    }
    // An image named as the trace by mistake stays what it is.
    let graph = "driver=trace,path=again.raw,file.driver=raw,file.file.filename=first.raw";
    let outcome = blkproof(dir, &["io", "--image-opts", "-c", "flush", graph]).exited(1);
    assert!(outcome.stderr.contains("the file is there and holds no trace; it is left as it is"), "{}", outcome.stderr);
    // A full disk ends the trace, not the run.
    let graph = "driver=trace,path=/dev/full,file.driver=raw,file.file.filename=first.raw";
    let outcome = blkproof(dir, &["io", "--image-opts", "-c", WORKLOAD, graph]).exited(0);
    assert!(
        outcome.stderr.starts_with("warning: /dev/full: No space left on device; the trace ends here"),
        "{}",
        outcome.stderr
    );
}
