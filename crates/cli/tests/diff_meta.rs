//! `blkproof diff-meta`: what qemu-img and qemu-io did to an image, told by what changed in it.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;

use common::{blkproof, shell};
use serde_json::Value;
use tempfile::tempdir;

/// Owner, kind, what, guest range.
type Change = (String, String, String, Option<(u64, u64)>);

/// Changes between the image before `step` and after it.
fn changes(dir: &Path, format: &str, step: &str) -> Vec<Change> {
    shell(dir, &format!("cp a before; {step}")).exited(0);
    let same = std::fs::read(dir.join("a")).unwrap() == std::fs::read(dir.join("before")).unwrap();
    let outcome = blkproof(dir, &["diff-meta", "--format", "json", "-f", format, "before", "a"]);
    let json: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(json["schema"], "blkproof.diff-meta/1");
    let all: Vec<_> = (json["changes"].as_array().unwrap().iter())
        .map(|one| {
            let text = |key: &str| one[key].as_str().unwrap().to_owned();
            let guest = one.get("guest").map(|guest| {
                let start = guest["offset"].as_u64().unwrap();
                (start, start + guest["length"].as_u64().unwrap())
            });
            (text("owner"), text("kind"), text("what"), guest)
        })
        .collect();
    assert_eq!(outcome.code, i32::from(!all.is_empty()), "{step}");
    assert_eq!(json["same"], Value::Bool(all.is_empty()), "{step}");
    assert!(!same || all.is_empty(), "{step}: {all:?}");
    all
}

fn has(all: &[Change], want: (&str, &str, &str, Option<(u64, u64)>)) {
    let found = all.iter().any(|(owner, kind, what, guest)| {
        (owner.as_str(), kind.as_str()) == (want.0, want.1) && what.contains(want.2) && *guest == want.3
    });
    assert!(found, "no {want:?} in {all:#?}");
}

const K: u64 = 1 << 10;
const M: u64 = 1 << 20;

#[test]
fn each_step_on_a_qcow2_image_is_told_by_what_it_changed() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    for options in ["compat=1.1", "compat=1.1,extended_l2=on", "compat=1.1,cluster_size=4k,refcount_bits=1"] {
        let snapshots = !options.contains("bits=1");
        shell(dir, &format!("rm -f a; qemu-img create -q -f qcow2 -o {options} a 64M")).exited(0);
        let io = |command: &str| format!("qemu-io -f qcow2 -c '{command}' a");
        assert_eq!(changes(dir, "qcow2", "true"), [], "{options}");
        assert_eq!(changes(dir, "qcow2", &io("read -q 0 64k")), [], "{options}");
        let all = changes(dir, "qcow2", &io("write -q 1M 256k"));
        has(&all, ("mapping", "allocated", "guest range", Some((M, M + 256 * K))));
        has(
            &all,
            (
                "L1 table",
                "added",
                "entry 0",
                Some((0, all.iter().find(|one| one.0 == "L1 table").unwrap().3.unwrap().1)),
            ),
        );
        has(&all, ("refcounts", "allocated", "clusters 0x", None));
        has(&all, ("file", "changed", "length", None));
        assert_eq!(all.iter().filter(|one| one.0 == "mapping").count(), 1, "one run: {all:#?}");
        let all = changes(dir, "qcow2", &io("write -q -z -u 1M 64k"));
        has(&all, ("mapping", "zeroed", "guest range", Some((M, M + 64 * K))));
        let all = changes(dir, "qcow2", &io("write -q -P 9 1M 256k"));
        has(&all, ("mapping", "allocated", "guest range", Some((M, M + 64 * K))));
        // Data in place: nothing of the metadata changes.
        assert_eq!(changes(dir, "qcow2", &io("write -q -P 8 1M 256k")), [], "{options}");
        if !snapshots {
            continue;
        }
        let all = changes(dir, "qcow2", "qemu-img snapshot -c first a");
        has(&all, ("snapshots", "added", "snapshot 1", None));
        has(&all, ("header", "changed", "nb_snapshots", None));
        has(&all, ("refcounts", "changed", "clusters", None));
        let all = changes(dir, "qcow2", &io("write -q -P 7 1M 128k"));
        has(&all, ("mapping", "moved", "guest range", Some((M, M + 128 * K))));
        let all = changes(dir, "qcow2", "qemu-img snapshot -d first a");
        has(&all, ("snapshots", "removed", "snapshot 1", None));
        has(&all, ("refcounts", "freed", "clusters", None));
        let all = changes(dir, "qcow2", "qemu-img bitmap --add -g 64k a bits");
        has(&all, ("bitmaps", "added", "bitmap 'bits'", None));
        has(&all, ("extensions", "added", "bitmaps", None));
        let all = changes(dir, "qcow2", &io("write -q 5M 1M"));
        has(&all, ("bitmaps", "changed", "bits of bitmap 'bits'", None));
        let all = changes(dir, "qcow2", "qemu-img bitmap --remove a bits; qemu-img resize -q -f qcow2 a 128M");
        has(&all, ("header", "changed", "size", None));
        has(&all, ("mapping", "added", "guest range", Some((64 * M, 128 * M))));
        let all = changes(dir, "qcow2", "qemu-img rebase -u -f qcow2 -b base -F raw a");
        has(&all, ("header", "added", "backing file", None));
        has(&all, ("extensions", "added", "backing file format", None));
    }
}

#[test]
fn images_with_clusters_of_different_size_are_compared_by_range() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    shell(
        dir,
        "qemu-img create -q -f qcow2 -o cluster_size=64k a 16M; qemu-img create -q -f qcow2 -o cluster_size=4k b 16M
         qemu-io -f qcow2 -c 'write -q 1M 64k' a; qemu-io -f qcow2 -c 'write -q 1M 64k' -c 'write -q 4M 4k' b",
    )
    .exited(0);
    let outcome = blkproof(dir, &["diff-meta", "a", "b"]).exited(1).stdout;
    assert!(outcome.contains("  changed    cluster_bits: 16 -> 12\n"), "{outcome}");
    assert!(outcome.contains("  allocated  guest 0x400000..0x401000: not allocated -> data at "), "{outcome}");
    assert!(!outcome.contains("refcounts"), "{outcome}");
}

#[test]
fn tables_of_other_formats_are_compared_entry_by_entry() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    for (format, options, owner) in [
        ("vdi", "static=off", "block map"),
        ("vpc", "force_size=on", "block map"),
        ("vhdx", "block_size=1M", "block map"),
        ("parallels", "cluster_size=64k", "block map"),
        ("qed", "cluster_size=64k", "L1 table"),
        ("vmdk", "subformat=monolithicSparse", "L2 table"),
    ] {
        shell(dir, &format!("rm -f a; qemu-img create -q -f {format} -o {options} a 64M")).exited(0);
        let io = |at: &str| format!("qemu-io -f {format} -c 'write -q {at} 64k' a");
        assert_eq!(changes(dir, format, "true"), [], "{format}");
        let all = changes(dir, format, &io("8M"));
        let table: Vec<_> = all.iter().filter(|one| one.0 == owner).collect();
        assert!(
            !table.is_empty() && table.iter().all(|one| one.2.contains("entr") || one.1 == "added"),
            "{format}: {all:#?}"
        );
        has(&all, ("file", "changed", "length", None));
    }
}

#[test]
fn what_can_not_be_compared_is_an_error() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    shell(dir, "qemu-img create -q -f qcow2 a 1M; qemu-img create -q -f vdi b 1M; truncate -s 1M c").exited(0);
    for (args, words) in [
        (&["a", "b"][..], "'a' is qcow2, 'b' is vdi: only images of one format can be compared"),
        (&["a", "c"], "'c' is no image of a known format"),
        (&["-f", "raw", "a", "a"], "'a' is raw: there is no metadata to compare"),
        (&["a", "nix"], "could not open 'nix': No such file"),
        (&["a"], "required arguments were not provided"),
    ] {
        let outcome = blkproof(dir, &[&["diff-meta"][..], args].concat()).exited(2);
        assert!(outcome.stderr.contains(words), "{args:?}: {}", outcome.stderr);
    }
    assert_eq!(blkproof(dir, &["diff-meta", "a", "a"]).exited(0).stdout, "the metadata is the same\n");
}
