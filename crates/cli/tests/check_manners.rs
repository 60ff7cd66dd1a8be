//! `blkproof check` and `explain`: arguments, exit statuses, files it must not touch, images in use.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{blkproof, run, shell};
use serde_json::Value;
use std::path::Path;
use tempfile::tempdir;

fn create(dir: &Path, format: &str, name: &str, size: &str) {
    run(dir, "qemu-img", &["create", "-q", "-f", format, name, size]).exited(0);
}

#[test]
fn what_can_not_be_checked_is_named() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    create(dir, "raw", "a.raw", "1M");
    shell(dir, "mkfifo pipe; mkdir folder; : > empty; printf x > byte; printf 'LUKS\\xba\\xbe\\0\\1' > luks").exited(0);
    for (args, code, out, err) in [
        (&["a.raw"][..], 63, "a.raw: not checked: no known image format", ""),
        (&["empty"], 63, "empty: not checked: no known image format", ""),
        (&["byte"], 63, "byte: not checked: no known image format", ""),
        (&["luks"], 63, "luks: not checked: this is a LUKS image", ""),
        (&["-f", "raw", "a.raw"], 63, "a.raw: not checked: raw disks have no structure", ""),
        (&["nix"], 1, "", "error: could not open 'nix': No such file or directory\nhint: "),
        (&["pipe"], 1, "", "error: could not open 'pipe': this is a pipe"),
        (&["folder"], 1, "", "error: could not open 'folder': this is a directory"),
        // The other images are checked all the same, and the worst counts.
        (&["nix", "a.raw"], 1, "a.raw: not checked", "error: could not open 'nix'"),
        (&["a.raw", "nix"], 1, "a.raw: not checked", "error: could not open 'nix'"),
        // No 2 for a wrong command line: that means a damaged image.
        (&[], 1, "", "required arguments were not provided"),
        (&["--bogus", "a.raw"], 1, "", "unexpected argument '--bogus'"),
        (&["-f", "vhdy", "a.raw"], 1, "", "'vhdy' is no format known; there are qcow2, vdi"),
        (&["-l", "pZ", "a.raw"], 1, "", "'Z' is no stream; the letters are fweshipcdHLlR210MDVFAUE"),
        (&["-s", "-q", "a.raw"], 1, "", "cannot be used with"),
        (&["--assume", "cluster_bits", "a.raw"], 1, "", "'cluster_bits' is not of the form name=value"),
        (&["-f", "qcow2", "--assume", "cluster_bit=9", "a.raw"], 1, "", "did you mean 'cluster_bits'?"),
        (&["-f", "qcow2", "--assume", "x=9", "a.raw"], 1, "", "'x' can not be assumed for qcow2, only "),
        (&["--memory", "much", "a.raw"], 1, "", "'much' is no size"),
        (&["--map", "png=x", "a.raw"], 1, "", "'png=x' is none of svg=FILE, html=FILE, term"),
        (&["-q", "--format", "json", "a.raw"], 1, "", "presets and letters choose from the human output only"),
        (&["--map", "term", "--format", "json", "a.raw"], 1, "", "choose --map svg=FILE"),
        (&["--map", "svg=a.svg", "a.raw", "luks"], 1, "", "one file can not hold the maps of several images"),
        (&["--map", "svg=no/a.svg", "a.raw"], 1, "", "there is no folder 'no'"),
        (&["--map", "svg=x", "--ddrescue-map", "x", "a.raw"], 1, "", "'x' is to be written twice"),
        (&["--ddrescue-map", "m", "a.raw"], 1, "a.raw: not checked", "the size of the guest's disk is not known"),
    ] {
        let outcome = blkproof(dir, &[&["check"][..], args].concat()).exited(code);
        assert!(outcome.stdout.starts_with(out), "{args:?}: {}", outcome.stdout);
        assert!(outcome.stderr.contains(err), "{args:?}: {}", outcome.stderr);
        assert_eq!(outcome.stdout.is_empty(), out.is_empty(), "{args:?}: {}", outcome.stdout);
        assert_eq!(outcome.stderr.is_empty(), err.is_empty(), "{args:?}: {}", outcome.stderr);
    }
}

#[test]
fn no_output_overwrites_the_image() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    create(dir, "qcow2", "a.qcow2", "1M");
    shell(dir, "ln a.qcow2 hard; ln -s a.qcow2 soft").exited(0);
    let before = std::fs::read(dir.join("a.qcow2")).unwrap();
    for name in ["a.qcow2", "hard", "soft", "./a.qcow2"] {
        for option in ["--ddrescue-map=", "--map=svg=", "--map=html="] {
            let outcome = blkproof(dir, &["check", &format!("{option}{name}"), "a.qcow2"]).exited(1);
            assert!(outcome.stderr.contains("is the image itself; check never writes to it"), "{}", outcome.stderr);
        }
    }
    assert_eq!(std::fs::read(dir.join("a.qcow2")).unwrap(), before);
}

#[test]
fn json_is_an_object_an_array_or_lines() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    create(dir, "raw", "a.raw", "1M");
    let one = blkproof(dir, &["check", "--format", "json", "a.raw"]).exited(63);
    let one: Value = serde_json::from_str(&one.stdout).unwrap();
    assert_eq!((&one["schema"], &one["verdict"]), (&"blkproof.check/1".into(), &"unsupported".into()));
    let two = blkproof(dir, &["check", "--format", "json", "a.raw", "nix"]).exited(1);
    let two: Value = serde_json::from_str(&two.stdout).unwrap();
    assert_eq!(two[0], one);
    assert_eq!((&two[1]["verdict"], &two[1]["error"]), (&"undecided".into(), &"No such file or directory".into()));
    let lines = blkproof(dir, &["check", "--format", "jsonl", "a.raw", "nix"]).exited(1).stdout;
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(Value::Array(lines), two);
}

/// qemu-nbd holds the image while we look.
fn holding(dir: &Path, options: &str) -> (Vec<Value>, Value, String) {
    let line = format!(
        "exec qemu-nbd -t --fork --pid-file=pid --socket=$PWD/q.sock -f qcow2 {options} a.qcow2 >/dev/null 2>&1"
    );
    shell(dir, &line).exited(0);
    let pid = std::fs::read_to_string(dir.join("pid")).unwrap().trim().to_owned();
    let json = blkproof(dir, &["check", "--format", "json", "a.qcow2"]).stdout;
    let human = blkproof(dir, &["check", "a.qcow2"]).stdout;
    shell(dir, "pid=$(cat pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.01; done; rm -f q.sock")
        .exited(0);
    let json: Value = serde_json::from_str(&json).unwrap();
    let mut findings = json["findings"].as_array().unwrap().clone();
    findings.retain(|finding| finding["code"] == "IMAGE-IN-USE");
    for finding in &findings {
        let want = format!("held open for writing by qemu-nbd (process {pid})");
        assert_eq!(finding["what"], Value::from(want));
    }
    (findings, json["live"].clone(), human)
}

#[test]
fn a_live_image_is_noticed() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    create(dir, "qcow2", "a.qcow2", "1M");
    let (findings, live, human) = holding(dir, "");
    assert_eq!((findings.len(), live), (1, Value::Bool(true)));
    assert!(human.contains("\n  the image is in use: "), "{human}");
    // A reader is no writer.
    let (findings, live, human) = holding(dir, "-r");
    assert_eq!((findings.len(), live), (0, Value::Bool(false)));
    assert!(!human.contains("in use"), "{human}");
}

#[test]
fn codes_are_explained() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let want = "\
IMAGE-UNREADABLE (corruption)
  seen           a part of the image file can not be read
  why            whatever lies there is lost unless the medium recovers; what depends on it could
                 not be checked
  usual cause    a failing disk, a broken network file system
  next           copy the image with ddrescue to a sound disk and check the copy
  specification  none: the operating system reported it
";
    for name in ["IMAGE-UNREADABLE", "image-unreadable"] {
        assert_eq!(blkproof(dir, &["explain", name]).exited(0).stdout, want);
    }
    let list = blkproof(dir, &["explain", "--list"]).exited(0).stdout;
    let names: Vec<&str> = list.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert!(names.len() > 60, "{}", names.len());
    let all = blkproof(dir, &[&["explain"][..], &names].concat()).exited(0).stdout;
    for (name, text) in names.iter().zip(all.split("\n\n")) {
        assert!(text.lines().count() >= 6 && text.starts_with(&format!("{name} (")), "{name}: {text}");
    }
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), names.len(), "no name twice");
    for (name, hint) in [
        ("IMAGE-UNREADBLE", "hint: did you mean IMAGE-UNREADABLE?\n"),
        ("in-use", "IMAGE-IN-USE"),
        ("x", "hint: "),
        ("nothing-like-it-at-all", "hint: `blkproof explain --list` shows all of them\n"),
    ] {
        let outcome = blkproof(dir, &["explain", name]).exited(1);
        assert_eq!(outcome.stdout, "");
        assert!(outcome.stderr.starts_with(&format!("error: there is no code '{name}'\nhint: ")), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(hint), "{}", outcome.stderr);
    }
    blkproof(dir, &["explain"]).exited(2);
}
