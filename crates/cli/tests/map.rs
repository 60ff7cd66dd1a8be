//! `blkproof map` beside `qemu-img map`.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Served, blkproof, run};
use serde_json::Value;
use std::path::Path;
use tempfile::tempdir;

/// Data of whole clusters, zeroes, and what was never written.
const WRITES: &[&str] = &["-c", "write 1M 64k", "-c", "write 3M 320k", "-c", "write -z 5M 64k"];

fn fill(dir: &Path, format: &str, name: &str, writes: &[&str]) {
    run(dir, "qemu-io", &[&["-f", format][..], writes, &[name]].concat()).exited(0);
}

fn make(dir: &Path, format: &str, options: &str, name: &str, size: &str) {
    let mut args = vec!["create", "-q", "-f", format];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    args.extend([name, size]);
    run(dir, "qemu-img", &args).exited(0);
}

/// Both programs' maps, byte for byte.
#[track_caller]
fn same(dir: &Path, format: &str, name: &str, more: &[&str]) -> Value {
    let theirs = run(dir, "qemu-img", &[&["map", "--output=json", "-f", format][..], more, &[name]].concat()).exited(0);
    let args = [&["map", "--allow-backing", "--format", "json", "-f", format][..], more, &[name]].concat();
    let ours = blkproof(dir, &args).exited(0);
    assert_eq!(ours.stdout, theirs.stdout, "{name} {more:?}");
    serde_json::from_str(&ours.stdout).unwrap()
}

#[test]
fn json_is_that_of_qemu_img() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    for (format, options, name) in [
        ("raw", "", "a.raw"),
        ("qcow2", "", "a.qcow2"),
        ("qcow2", "compat=0.10", "v2.qcow2"),
        ("qcow2", "cluster_size=4k", "small.qcow2"),
        ("qcow2", "data_file=d.raw", "data.qcow2"),
        ("vdi", "", "a.vdi"),
    ] {
        make(dir, format, options, name, "8M");
        fill(dir, format, name, WRITES);
        let whole = same(dir, format, name, &[]);
        assert!(whole.as_array().unwrap().len() >= 4, "{name} has extents of several kinds: {whole}");
        same(dir, format, name, &["-s", "1M", "-l", "3M"]);
        same(dir, format, name, &["-s", "1050112", "-l", "512"]);
        same(dir, format, name, &["-s", "4M"]);
    }
    fill(dir, "qcow2", "a.qcow2", &["-c", "write -c 6M 64k", "-c", "write -c 6208k 64k"]);
    let map = same(dir, "qcow2", "a.qcow2", &[]);
    assert!(map.as_array().unwrap().iter().any(|extent| extent["compressed"] == true), "{map}");
}

#[test]
fn a_backing_chain_has_depths() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    make(dir, "raw", "", "base.raw", "8M");
    fill(dir, "raw", "base.raw", WRITES);
    make(dir, "qcow2", "backing_file=base.raw,backing_fmt=raw", "mid.qcow2", "8M");
    fill(dir, "qcow2", "mid.qcow2", &["-c", "write 1M 64k"]);
    // Longer than what it stands on.
    make(dir, "qcow2", "backing_file=mid.qcow2,backing_fmt=qcow2", "top.qcow2", "10M");
    fill(dir, "qcow2", "top.qcow2", &["-c", "write 1M 32k", "-c", "discard 3M 64k", "-c", "write -z 3200k 64k"]);
    let map = same(dir, "qcow2", "top.qcow2", &[]);
    let depths: Vec<u64> = map.as_array().unwrap().iter().map(|extent| extent["depth"].as_u64().unwrap()).collect();
    assert!([0, 2].iter().all(|depth| depths.contains(depth)), "{depths:?}");
    let refused = blkproof(dir, &["map", "-f", "qcow2", "top.qcow2"]).exited(1);
    assert!(refused.stderr.contains("'mid.qcow2'") && refused.stderr.contains("\nhint: "), "{}", refused.stderr);
}

/// Where the two maps may differ, ours may know less but must not be wrong, and covers the disk without gaps.
#[test]
fn a_map_is_never_wrong() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    for (format, options, name) in [
        ("qcow2", "extended_l2=on", "e.qcow2"),
        ("qcow2", "preallocation=metadata", "p.qcow2"),
        ("vdi", "static=on", "s.vdi"),
        ("raw", "", "odd.raw"),
    ] {
        make(dir, format, options, name, "8388000");
        fill(
            dir,
            format,
            name,
            &["-c", "write 4k 2k", "-c", "write 70k 4k", "-c", "write 1M 300k", "-c", "write -z 3M 2k"],
        );
        let map = blkproof(dir, &["map", "--format", "json", "-f", format, name]).exited(0).stdout;
        let map: Value = serde_json::from_str(&map).unwrap();
        run(dir, "qemu-img", &["convert", "-f", format, "-O", "raw", name, "flat"]).exited(0);
        let flat = std::fs::read(dir.join("flat")).unwrap();
        let mut at = 0;
        for extent in map.as_array().unwrap() {
            let number = |key: &str| usize::try_from(extent[key].as_u64().unwrap()).unwrap();
            assert_eq!(number("start"), at, "{name}: no gap");
            at += number("length");
            if extent["zero"] == true {
                let end = at.min(flat.len());
                assert!(flat[number("start")..end].iter().all(|byte| *byte == 0), "{name}: zero at {extent}");
            }
        }
        assert!(at == flat.len() || at == 8_388_000, "{name}: {at}");
    }
}

#[test]
fn people_read_a_table() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    make(dir, "qcow2", "", "a.qcow2", "8M");
    fill(dir, "qcow2", "a.qcow2", WRITES);
    fill(dir, "qcow2", "a.qcow2", &["-c", "write -c 6M 64k"]);
    make(dir, "qcow2", "backing_file=a.qcow2,backing_fmt=qcow2", "b.qcow2", "8M");
    let outcome = blkproof(dir, &["map", "--allow-backing", "-s", "1M", "b.qcow2"]).exited(0);
    let want = "\
Offset             Length             State        Depth Host offset
0x100000           0x10000            data         1     0x50000
0x110000           0x1f0000           unallocated  1     -
0x300000           0x50000            data         1     0x60000
0x350000           0x2b0000           unallocated  1     -
0x600000           0x10000            compressed   1     -
0x610000           0x1f0000           unallocated  1     -
data 448 KiB, zero 0 bytes, unallocated 6.56 MiB
";
    assert_eq!(outcome.stdout, want);
    let outcome = blkproof(dir, &["map", "-s", "9M", "a.qcow2"]).exited(1);
    assert_eq!(outcome.stderr, "error: offset 0x900000 lies past the end of the disk (0x800000)\n");
    let outcome = blkproof(dir, &["map", "nix.raw"]).exited(1);
    assert_eq!(outcome.stderr, "error: could not open 'nix.raw': No such file or directory\n");
}

#[test]
fn an_image_in_use_is_read_only_with_force_share() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    make(dir, "qcow2", "", "a.qcow2", "8M");
    fill(dir, "qcow2", "a.qcow2", WRITES);
    let mut served = Served::start(dir, 1, &["-f", "qcow2", "a.qcow2"]);
    let refused = blkproof(dir, &["map", "-f", "qcow2", "a.qcow2"]).exited(1);
    assert!(refused.stderr.contains("'a.qcow2'") && refused.stderr.contains("lock"), "{}", refused.stderr);
    let shared = blkproof(dir, &["map", "-U", "--format", "json", "-f", "qcow2", "a.qcow2"]).exited(0).stdout;
    let theirs = run(dir, "qemu-img", &["map", "-U", "--output=json", "-f", "qcow2", "a.qcow2"]).exited(0).stdout;
    assert_eq!(shared, theirs);
    // Over NBD there are no places in a file, and what is a hole reads as zeroes.
    let ours = blkproof(dir, &["map", "--format", "json", served.uri()]).exited(0).stdout;
    let theirs = run(dir, "qemu-img", &["map", "--output=json", "-f", "raw", served.uri()]).exited(0).stdout;
    assert_eq!(ours, theirs);
    served.stop().exited(0);
}
