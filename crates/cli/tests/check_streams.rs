//! qcheck's interface on the command line, and what signals and closed pipes do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{blkproof, run, shell};
use tempfile::tempdir;

/// 8 MiB in clusters of 4 KiB: 2 MiB are data, one cluster is compressed.
fn image(dir: &Path) {
    run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "a.qcow2", "8M"]).exited(0);
    let writes = ["-c", "write 0 2M", "-c", "write -c 4M 4k", "-c", "write -z 5M 64k"];
    run(dir, "qemu-io", &[&["-f", "qcow2"][..], &writes, &["a.qcow2"]].concat()).exited(0);
}

#[test]
fn presets_and_letters_select_lines() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    image(dir);
    let lines = |args: &[&str]| {
        let outcome = blkproof(dir, &[&["check"][..], args, &["a.qcow2"]].concat());
        assert_eq!(outcome.stderr, "", "{args:?}");
        outcome.stdout
    };
    assert_eq!(lines(&["-s"]), "");
    assert_eq!(lines(&["-q"]), "");
    let headings = lines(&["-s", "-l", "h"]);
    let want = "\
== Header ==
== Derivative Data ==
== Header Analysis ==
== Header (v3) ==
== Refcount Table ==
== Refcount Blocks ==
== L1 Table ==
== L2 Tables ==
== Reference Count Analysis ==
";
    assert_eq!(headings, want);
    let fields = lines(&["-s", "-l", "H"]);
    assert_eq!(fields.matches("magic: 0x514649fb\n").count(), 1, "{fields}");
    for field in ["version: 3\n", "cluster_bits: 12\n", "size: 0x800000\n", "refcount_order: 4\n"] {
        assert!(fields.contains(field), "{field} is in {fields}");
    }
    // Every entry of the L1 table, empty ones too; of the others what is not zero.
    assert_eq!(lines(&["-s", "-l", "L"]).lines().count(), 4);
    assert_eq!(lines(&["-s", "-l", "R"]).lines().count(), 1);
    let l2 = lines(&["-s", "-l", "l"]);
    assert_eq!(l2.lines().count(), 512 + 1 + 16, "{l2}");
    assert!(l2.starts_with("0x0000: CLUSTER 0x00000000; ent: 0x8000000000"), "{l2}");
    assert_eq!(l2.matches("+COMPRESSED -COPIED\n").count(), 1);
    assert_eq!(l2.matches("+ZEROES\n").count(), 16);
    assert_eq!(l2.matches("CLUSTER 0x00000400;").count(), 1, "the cluster at 4 MiB");
    // One refcount block holds 2048 counts, most of them 0.
    let [two, one, zero] = ["2", "1", "0"].map(|letter| lines(&["-s", "-l", letter]).lines().count());
    assert_eq!(two + one + zero, 2048);
    assert!(one > 512 && two == 0);
    assert_eq!(lines(&["-s", "-l", "210"]).lines().count(), 2048);
    let start = lines(&["-s", "-l", "e"]);
    assert!(start.starts_with("[20") && start.ends_with("] qcheck analyzing 'a.qcow2' for corruption\n"), "{start}");
    // A preset after letters starts afresh.
    assert_eq!(lines(&["-l", "L", "-s"]), "");
    let basic = lines(&["-b"]);
    assert_eq!(basic.lines().skip(1).collect::<Vec<_>>(), lines(&["-e", "pc"]).lines().skip(1).collect::<Vec<_>>());
    assert!(lines(&["-v"]).contains("\nOK: not seen: "));
    let debug = blkproof(dir, &["check", "-s", "-d", "a.qcow2"]);
    assert_eq!(debug.stdout, "");
    assert!(debug.stderr.lines().all(|line| line.starts_with("debug: ")), "{}", debug.stderr);
    let all = lines(&["-x"]);
    assert!(all.contains("\n== L2 cluster l1[0] : 0x"), "tables have headings of their own");
    let missing = blkproof(dir, &["check", "-q", "nix"]).exited(1);
    assert_eq!(
        (missing.stdout.as_str(), missing.stderr.as_str()),
        ("", "nix: could not open it: No such file or directory\n")
    );
    let silent = blkproof(dir, &["check", "-s", "nix"]).exited(1);
    assert_eq!((silent.stdout.as_str(), silent.stderr.as_str()), ("", ""));
}

/// A check that can not go on, because nobody reads the 90 KiB and more it prints; and its first line.
fn stuck(dir: &Path) -> (Child, BufReader<std::process::ChildStdout>, BufReader<std::process::ChildStderr>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_blkproof"))
        .args(["check", "-s", "-l", "0s", "a.qcow2"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let err = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.ends_with('\n'), "{line}");
    (child, out, err)
}

fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn the_first_signal_ends_the_check_and_the_second_one_the_program() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    // Clusters of 64 KiB: a refcount block has 32768 counts.
    run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "a.qcow2", "8M"]).exited(0);
    let said = "stopping: what is known so far follows; another signal ends at once\n";

    let (mut child, mut out, mut err) = stuck(dir);
    interrupt(&child);
    let mut line = String::new();
    err.read_line(&mut line).unwrap();
    assert_eq!(line, said);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(rest.ends_with("qcheck: Could not complete analysis, 0 problems found\n"), "{}", &rest[rest.len() - 200..]);

    let (mut child, _out, mut err) = stuck(dir);
    interrupt(&child);
    line.clear();
    err.read_line(&mut line).unwrap();
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "a.qcow2", "8M"]).exited(0);
    for args in ["-s -l 0", "--format json", ""] {
        let line = format!("set +o pipefail; blkproof check {args} a.qcow2 | head -c 1 | wc -c");
        let outcome = shell(dir, &line).exited(0);
        assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("1\n", ""), "{args}");
    }
}
