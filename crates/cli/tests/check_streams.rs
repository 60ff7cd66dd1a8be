//! qcheck's interface on the command line, and what signals and closed pipes do.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::FileExt as _;
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
        .args(["check", "-s", "-l", "0s", "a.qcow2", "b.qcow2"])
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
    line.clear();
    err.read_line(&mut line).unwrap();
    assert_eq!(line, "note: not checked any more: 'b.qcow2'\n");
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

/// Overwrites eight bytes of a copy of the image.
fn damage(dir: &Path, name: &str, change: impl Fn(&std::fs::File, u64)) {
    std::fs::copy(dir.join("a.qcow2"), dir.join(name)).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(dir.join(name)).unwrap();
    let l1_table = word(&file, 40);
    change(&file, word(&file, l1_table) & 0x00ff_ffff_ffff_fe00);
}

fn word(file: &std::fs::File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

fn put(file: &std::fs::File, at: u64, word: u64) {
    file.write_all_at(&word.to_be_bytes(), at).unwrap();
}

#[test]
fn a_flawed_entry_stands_above_its_error() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    image(dir);
    damage(dir, "d.qcow2", |file, l2| {
        put(file, l2 + 3 * 8, 1 << 63 | 0x7f00_0000);
        put(file, l2 + 9 * 8, 1 << 63 | 0x8123);
    });
    let outcome = blkproof(dir, &["check", "-s", "-l", "ps", "d.qcow2"]).exited(2);
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    let at = |words: &str| {
        lines.iter().position(|line| line.contains(words)).unwrap_or_else(|| panic!("{words}: {lines:#?}"))
    };
    let first = at("0x0003: CLUSTER 0x00000003; ent: 0x800000007f000000; ptr: 0x000000007f000000; -COMPRESSED +COPIED");
    let second = at("0x0009: CLUSTER 0x00000009; ent: 0x8000000000008123;");
    assert!(first < second && second < at("[QCOW2-L2-PAST-END]"), "{lines:#?}");
    assert!(lines[at("[QCOW2-L2-PAST-END]")].starts_with("Error: L2 entry 3 of the table at 0x"), "{lines:#?}");
    assert_eq!(at("Header: OK, 0 problems"), 0);
    assert!(lines[at("L2 tables: ")].ends_with(" problems found"), "{lines:#?}");
    assert!(lines.last().unwrap().starts_with("qcheck: ") && !outcome.stdout.contains("Could not complete"));
    // The number of shown entries is bounded like that of findings.
    damage(dir, "many.qcow2", |file, l2| {
        (0..512).for_each(|entry| put(file, l2 + entry * 8, 1 << 63 | 0x1_0000_0000 | (entry & 1)))
    });
    let many = blkproof(dir, &["check", "-s", "-l", "pi", "--max-findings", "7", "many.qcow2"]).exited(2).stdout;
    assert_eq!(many.matches("; ent: ").count(), 7, "{many}");
    assert!(many.contains("further flawed entries of this section are not shown; --max-findings"), "{many}");
}

/// Sound images on which qcheck raised false alarms, or gave up.
#[test]
fn sound_images_have_no_problems() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let write = ["-c", "write 0 1M", "-c", "write -z 2M 1M", "-c", "write -c 3M 64k"];
    for (name, options, after) in [
        ("plain", "", ""),
        ("v2", "compat=0.10", ""),
        ("narrow", "refcount_bits=1", ""),
        ("wide", "refcount_bits=64", ""),
        ("lazy", "lazy_refcounts=on", ""),
        ("zstd", "compression_type=zstd", ""),
        ("subclusters", "extended_l2=on", ""),
        ("prepared", "preallocation=metadata", ""),
        ("tiny", "cluster_size=512", ""),
        ("huge", "cluster_size=2M", ""),
        ("external", "data_file=external.raw", ""),
        ("snapshots", "", "qemu-img snapshot -c one snapshots; qemu-io -f qcow2 -c 'write 0 128k' snapshots"),
        ("bitmaps", "", "qemu-img bitmap --add bitmaps b0; qemu-io -f qcow2 -c 'write 0 128k' bitmaps"),
    ] {
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([name, "64M"]);
        run(dir, "qemu-img", &args).exited(0);
        // A compressed cluster has no place in a data file, over an allocated one, or as a part of a larger one.
        let uncompressed = ["external", "prepared", "huge"].contains(&name);
        let writes = if uncompressed { &write[..4] } else { &write[..] };
        run(dir, "qemu-io", &[&["-f", "qcow2"][..], writes, &[name]].concat()).exited(0);
        shell(dir, &format!("{{ :; {after}\n}} >/dev/null")).exited(0);
        let outcome = blkproof(dir, &["check", "-v", "-l", "E", name]).exited(0);
        assert!(outcome.stdout.ends_with("qcheck: OK, 0 problems\n"), "{name}: {}", outcome.stdout);
        let sums: Vec<&str> =
            outcome.stdout.lines().filter(|line| line.contains("problem") && line.contains(": ")).collect();
        assert!(sums.iter().all(|line| line.ends_with(": OK, 0 problems")), "{name}: {sums:?}");
        assert!(sums.len() >= 7, "{name}: {sums:?}");
        // The ranges of the file map follow each other up to its end.
        let map = outcome.stdout.split("== File Map ==\n").nth(1).unwrap();
        let mut next = 0;
        for line in map.lines().take_while(|line| line.starts_with("0x")) {
            let bound = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
            let (first, rest) = line.split_once(" - ").unwrap();
            assert_eq!(bound(first), next, "{name}: {line}");
            next = bound(rest.split(' ').next().unwrap()) + 1;
        }
        assert_eq!(next, std::fs::metadata(dir.join(name)).unwrap().len(), "{name}");
        run(dir, "qemu-img", &["check", "-q", name]).exited(0);
    }
}
