//! `blkproof log`: what it prints, where it ends, and the first entry at which an image is damaged.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod common;

use std::path::Path;

use common::{blkproof, run};
use tempfile::tempdir;

/// QEMU's check of a disk that lost power: it may have leaks.
const LEAKS_ARE_FINE: &str = r#"qemu-img check -q -f qcow2 "$0" || test $? -eq 3"#;

/// A qcow2 disk of 64 MiB over a log, with some writes; returns the number of entries.
fn qcow2(dir: &Path, more: &str) -> u64 {
    run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "d.qcow2", "64M"]).exited(0);
    std::fs::copy(dir.join("d.qcow2"), dir.join("base.qcow2")).unwrap();
    std::fs::write(dir.join("w.log"), "").unwrap();
    let graph = format!(
        "driver=qcow2,file.driver=blklogwrites,file.file.driver=file,file.file.filename=d.qcow2,\
         file.log.driver=file,file.log.filename=w.log{more}"
    );
    let mut args = vec!["io".to_owned(), "--image-opts".to_owned()];
    for step in 0..6 {
        args.extend(["-c".into(), format!("write -P {} {}k 12k", step + 1, step * 100), "-c".into(), "flush".into()]);
    }
    args.push(graph);
    blkproof(dir, &args).exited(0);
    listed(dir)["entries"].as_array().unwrap().len() as u64
}

fn listed(dir: &Path) -> serde_json::Value {
    let listed = blkproof(dir, &["log", "list", "--format", "json", "w.log"]).exited(0).stdout;
    serde_json::from_str(&listed).unwrap()
}

#[test]
fn every_flush_of_a_qcow2_disk_leaves_a_good_image() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let entries = qcow2(dir, "");
    assert!(entries > 12, "{entries}");
    let said = blkproof(dir, &["log", "check", "w.log", "--base", "base.qcow2"]).exited(0);
    assert!(said.stdout.contains(" good\n"), "{said:?}");
    let args = ["log", "check", "w.log", "--base", "base.qcow2", "--at", "5", "--", "sh", "-c", LEAKS_ARE_FINE, "{}"];
    blkproof(dir, &args).exited(0);
    // The image at the end is the disk.
    blkproof(dir, &["log", "replay", "w.log", "--base", "base.qcow2", "--to", "r.qcow2"]).exited(0);
    run(dir, "qemu-img", &["compare", "-q", "-f", "raw", "-F", "raw", "d.qcow2", "r.qcow2"]).exited(0);
}

#[test]
fn the_first_bad_entry_is_found() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    qcow2(dir, "");
    // Plant: the payload of one write of a table is turned upside down.
    let list = listed(dir);
    let entries = list["entries"].as_array().unwrap();
    let flushes = entries.iter().filter(|entry| entry["operation"] == "flush");
    let third = flushes.map(|entry| entry["entry"].as_u64().unwrap()).nth(2).unwrap();
    let l1 = {
        let image = std::fs::read(dir.join("base.qcow2")).unwrap();
        u64::from_be_bytes(image[40..48].try_into().unwrap())
    };
    // The entries from the third flush on begin with a stray write into the L1 table.
    let at = entries[third as usize]["at"].as_u64().unwrap() as usize;
    let mut log = std::fs::read(dir.join("w.log")).unwrap();
    let mut stray: Vec<u8> = [l1 / 512, 1, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    stray.resize(512, 0);
    stray.extend([0x5a; 512]);
    log.splice(at..at, stray);
    let count = entries.len() as u64 + 1;
    log[16..24].copy_from_slice(&count.to_le_bytes());
    std::fs::write(dir.join("w.log"), log).unwrap();

    for command in [&[][..], &["--", "sh", "-c", LEAKS_ARE_FINE, "{}"]] {
        let mut args = vec!["log", "check", "w.log", "--base", "base.qcow2"];
        args.extend(command);
        let said = blkproof(dir, &args).exited(2);
        let place = format!("damaged behind {} entries, the last a flush", third + 2);
        assert!(said.stdout.starts_with(&place), "{said:?}");
        assert!(said.stderr.contains(&format!("--until {} --to IMAGE", third + 2)), "{said:?}");
    }
    let mut args = vec!["log", "check", "w.log", "--base", "base.qcow2", "--at", "every", "--format", "json"];
    args.extend(["--image", "bad.qcow2"]);
    let said = blkproof(dir, &args).exited(2);
    let report: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(report["damaged"]["entry"], third, "looked at behind every entry: {report}");
    blkproof(dir, &["check", "bad.qcow2"]).exited(2);
}

#[test]
fn a_command_that_writes_is_caught() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    qcow2(dir, "");
    let args = ["log", "check", "w.log", "--base", "base.qcow2", "--", "sh", "-c", "echo x >> $0"];
    let said = blkproof(dir, &args).exited(1);
    assert!(said.stderr.contains("changed the image"), "{said:?}");
}

#[test]
fn a_cut_is_a_state_by_name_or_seed() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    for (more, model) in [("", "completion order: a flush"), (",file.log-details=on", "submission known")] {
        for name in ["d.qcow2", "base.qcow2", "w.log"] {
            let _ = std::fs::remove_file(dir.join(name));
        }
        qcow2(dir, more);
        let list = listed(dir);
        let entries = list["entries"].as_array().unwrap();
        // Just before a flush behind two writes: both are cached.
        let operation = |at: usize| entries[at]["operation"].as_str().unwrap();
        let behind = (12..entries.len())
            .find(|&at| operation(at) == "flush" && operation(at - 1) == "write" && operation(at - 2) == "write");
        let at = behind.unwrap().to_string();
        let common = ["log", "cut", "w.log", &at, "--base", "base.qcow2"];
        let said = blkproof(dir, &[&common[..], &["--list"]].concat()).exited(0);
        assert!(said.stderr.contains(model), "{said:?}");
        let names: Vec<&str> = said.stdout.lines().collect();
        assert!(names.len() >= 2, "{said:?}");
        for name in names.iter().take(12) {
            let args = [&common[..], &["--state", name, "-o", "c.qcow2", "--force"]].concat();
            blkproof(dir, &args).exited(0);
            // Whatever a power cut leaves of a qcow2 disk of ours, it has no corruption.
            let checked = run(dir, "qemu-img", &["check", "-q", "-f", "qcow2", "c.qcow2"]);
            assert!([0, 3].contains(&checked.code), "{name}: {checked:?}");
        }
        let all = [&common[..], &["--state", "all-new", "-o", "new.qcow2", "--force"]].concat();
        blkproof(dir, &all).exited(0);
        let replay = ["log", "replay", "w.log", "--base", "base.qcow2", "--until", &at, "--to", "p.qcow2", "--force"];
        blkproof(dir, &replay).exited(0);
        run(dir, "qemu-img", &["compare", "-q", "-f", "raw", "-F", "raw", "new.qcow2", "p.qcow2"]).exited(0);
        let twice = |name: &str| {
            let args = [&common[..], &["--profile", "torn", "--seed", "7", "-o", name, "--force"]].concat();
            blkproof(dir, &args).exited(0);
            std::fs::read(dir.join(name)).unwrap()
        };
        assert!(twice("a.qcow2") == twice("b.qcow2"), "a seed means one state");
    }
}

#[test]
fn what_can_not_be_done_is_said() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let entries = qcow2(dir, "");
    std::fs::write(dir.join("junk"), [7; 1024]).unwrap();
    std::fs::write(dir.join("empty"), "").unwrap();
    let half = std::fs::read(dir.join("w.log")).unwrap();
    std::fs::write(dir.join("half.log"), &half[..half.len() - 700]).unwrap();
    let beyond = (entries + 1).to_string();
    let table: [(&[&str], i32, &str); 12] = [
        (&["list", "junk"], 1, "Invalid log superblock magic"),
        (&["list", "empty"], 1, "the file is empty"),
        (&["list", "nowhere"], 1, "No such file"),
        (&["list", "half.log"], 1, "the log was cut short"),
        (&["replay", "half.log", "--to", "h.raw"], 1, "entries before are good, and were used"),
        (&["replay", "w.log", "--to", "w.log"], 1, "the log or the base itself"),
        (&["replay", "w.log", "--to", "base.qcow2"], 1, "give --force"),
        (&["replay", "w.log", "--to", "x.raw", "--until", &beyond], 4, "the log has no"),
        (&["replay", "w.log", "--to", "y.raw", "--until-mark", "no"], 4, "the log has no mark 'no'"),
        (&["cut", "w.log", &beyond, "-o", "z.raw"], 1, "can not be cut"),
        (&["cut", "w.log", "3", "-o", "z.raw", "--state", "drop"], 2, "names no state"),
        (&["mark", "half.log", "x"], 1, "half.log"),
    ];
    for (args, code, words) in table {
        let said = blkproof(dir, &[&["log"], args].concat()).exited(code);
        assert!(said.stderr.contains(words), "{args:?}: {said:?}");
    }
    assert_eq!(std::fs::read(dir.join("w.log")).unwrap(), half, "nothing was written to the log");
    // A raw disk can not be checked without a command.
    let said = blkproof(dir, &["log", "check", "w.log"]);
    assert!(said.code == 63 || said.code == 2, "{said:?}");
}

#[test]
fn marks_are_places() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let entries = qcow2(dir, ",file.log-details=on");
    blkproof(dir, &["log", "mark", "w.log", "the end"]).exited(0);
    let said = blkproof(dir, &["log", "replay", "w.log", "--to", "r.raw", "--until-mark", "the end"]).exited(0);
    assert!(said.stdout.starts_with(&format!("replayed {entries} entries")), "{said:?}");
    let long = "x".repeat(480);
    let said = blkproof(dir, &["log", "mark", "w.log", &long]).exited(1);
    assert!(said.stderr.contains("at most 439 bytes"), "{said:?}");
    let said = blkproof(dir, &["log", "mark", "w.log", "blkproof: size 512"]).exited(1);
    assert!(said.stderr.contains("a mark that begins with 'blkproof: '"), "{said:?}");
    blkproof(dir, &["log", "list", "--verify", "w.log"]).exited(0);
}
