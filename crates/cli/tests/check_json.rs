//! The JSON of `blkproof check` against its description, and against `qemu-img check`.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use common::{blkproof, run};
use serde_json::Value;
use tempfile::tempdir;

/// Where a qcow2 image has its first L2 table.
fn l2_table(image: &Path) -> u64 {
    let file = std::fs::File::open(image).unwrap();
    let read = |at| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    read(read(40)) & 0x00ff_ffff_ffff_fe00
}

fn write(image: &Path, at: u64, bytes: &[u8]) {
    std::fs::OpenOptions::new().write(true).open(image).unwrap().write_all_at(bytes, at).unwrap();
}

/// A sound image with a bit of everything, and copies of it: one whose second cluster is mapped onto the first one and
/// whose third one lies past the end, and one with a leak.
fn images(dir: &Path) {
    let image = |args: &[&str]| run(dir, "qemu-img", args).exited(0);
    image(&["create", "-q", "-f", "raw", "base.raw", "8M"]);
    image(&["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "sound.qcow2"]);
    let writes = ["-c", "write 0 256k", "-c", "write -c 1M 64k", "-c", "write -z 2M 64k", "-c", "write 640k 64k"];
    run(dir, "qemu-io", &[&["-f", "qcow2"][..], &writes, &["sound.qcow2"]].concat()).exited(0);
    for copy in ["damaged.qcow2", "leaky.qcow2"] {
        std::fs::copy(dir.join("sound.qcow2"), dir.join(copy)).unwrap();
    }
    let damaged = dir.join("damaged.qcow2");
    let l2 = l2_table(&damaged);
    let mut first = [0; 8];
    std::fs::File::open(&damaged).unwrap().read_exact_at(&mut first, l2).unwrap();
    write(&damaged, l2 + 8, &first);
    write(&damaged, l2 + 16, &(1 << 63 | 0x7f00_0000u64).to_be_bytes());
    write(&dir.join("leaky.qcow2"), l2 + 24, &[0; 8]);
}

/// Every key with the keys it stands under. Classes and states under `bytes` are values rather than keys.
fn keys(value: &Value, under: &str, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if under.is_empty() { key.clone() } else { format!("{under}.{key}") };
                all.insert(path.clone());
                if !path.starts_with("map.") || key != "bytes" {
                    keys(value, &path, all);
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| keys(value, under, all)),
        _ => {}
    }
}

#[test]
fn the_description_is_complete() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    images(dir);
    let json = blkproof(dir, &["check", "--format", "json", "sound.qcow2", "damaged.qcow2", "leaky.qcow2", "nix"]);
    let json: Value = serde_json::from_str(&json.exited(2).stdout).unwrap();
    let mut printed = BTreeSet::new();
    keys(&json, "", &mut printed);
    // A range is described once.
    printed.retain(|key| key == "map.host.length" || !(key.ends_with(".offset") || key.ends_with(".length")));

    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/check-json.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let described: BTreeSet<String> = rows.map(|row| row.split('`').next().unwrap().to_owned()).collect();
    assert_eq!(printed, described);
    for image in json.as_array().unwrap() {
        assert_eq!(image["schema"], "blkproof.check/1");
        let Some(host) = image["map"]["host"].as_object() else { continue };
        let sum: u64 = host["bytes"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum();
        assert_eq!(Value::from(sum), host["length"], "classes sum to the file");
    }
}

#[test]
fn the_figures_are_those_of_qemu_img() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    images(dir);
    for (image, code) in [("sound.qcow2", 0), ("leaky.qcow2", 3)] {
        let theirs = run(dir, "qemu-img", &["check", "--output=json", image]).exited(code);
        let theirs: Value = serde_json::from_str(&theirs.stdout).unwrap();
        let ours = blkproof(dir, &["check", "--format", "json", image]).exited(code);
        let ours: Value = serde_json::from_str(&ours.stdout).unwrap();
        for (key, value) in theirs.as_object().unwrap() {
            assert_eq!(&ours[key], value, "{image}: {key}");
        }
    }
    run(dir, "qemu-img", &["check", "damaged.qcow2"]).exited(2);
}
