//! `blkproof check --metadump`: the file it makes, and what it refuses.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use common::{blkproof, run, shell};
use serde_json::Value;
use tempfile::tempdir;

/// What a check says that must be the same of a dump.
fn answer(dir: &Path, image: &str) -> (i32, Vec<Value>) {
    let outcome = blkproof(dir, &["check", "--format", "json", image]);
    let json: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let mut all = vec![json["verdict"].clone(), json["sums"].clone()];
    for key in
        ["image-end-offset", "total-clusters", "allocated-clusters", "fragmented-clusters", "compressed-clusters"]
    {
        all.push(json[key].clone());
    }
    for finding in json["findings"].as_array().unwrap() {
        all.extend(["code", "host", "guest"].map(|key| finding[key].clone()));
    }
    (outcome.code, all)
}

/// An image with a name in it, whose guest wrote text.
fn image(dir: &Path) {
    shell(dir, "head -c 1M < <(yes 'words of the guest') > text; qemu-img create -q -f raw secret.raw 1G").exited(0);
    let create = ["create", "-q", "-f", "qcow2", "-b", "secret.raw", "-F", "raw", "a.qcow2", "1G"];
    run(dir, "qemu-img", &create).exited(0);
    for at in ["0", "500M", "900M"] {
        run(dir, "qemu-io", &["-f", "qcow2", "-c", &format!("write -q -s text {at} 1M"), "a.qcow2"]).exited(0);
    }
    run(dir, "qemu-img", &["snapshot", "-c", "secret-snapshot", "a.qcow2"]).exited(0);
}

#[test]
fn a_dump_is_sparse_and_has_the_answer_of_its_image() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    image(dir);
    // An L2 entry of the guest's range 500 MiB points past the end of the file.
    shell(dir, "cp a.qcow2 b.qcow2").exited(0);
    let bytes = std::fs::read(dir.join("b.qcow2")).unwrap();
    let be = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00;
    let l2 = usize::try_from(be(usize::try_from(be(40)).unwrap())).unwrap();
    let mut bytes = bytes;
    bytes[l2 + 8000..l2 + 8008].copy_from_slice(&0x8000_0040_0000_0000u64.to_be_bytes());
    std::fs::write(dir.join("b.qcow2"), bytes).unwrap();
    for (name, code) in [("a.qcow2", 0), ("b.qcow2", 2)] {
        let dump = format!("{name}.dump");
        let outcome = blkproof(dir, &["check", "-q", "--metadump", &dump, name]).exited(code);
        assert!(outcome.stderr.contains(" of metadata of "), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("names were blanked"), "{}", outcome.stderr);
        let want = answer(dir, name);
        assert_eq!(want.0, code, "{name}");
        assert_eq!(answer(dir, &dump), want, "{name}");
        let (image, made) = (dir.join(name).metadata().unwrap(), dir.join(&dump).metadata().unwrap());
        assert_eq!(made.len(), image.len());
        assert!(made.blocks() * 512 < 1 << 20, "{} bytes on disk", made.blocks() * 512);
        shell(dir, &format!("! grep -qa -e guest -e secret {dump}")).exited(0);
    }
    blkproof(dir, &["check", "-q", "--metadump", "named", "--keep-names", "a.qcow2"]).exited(0);
    // QEMU, which opens the backing file, says the same of it: its tables are whole.
    run(dir, "qemu-img", &["check", "-q", "-f", "qcow2", "named"]).exited(0);
    shell(dir, "grep -qa secret-snapshot named && grep -qa secret.raw named && ! grep -qa guest named").exited(0);
}

#[test]
fn what_can_not_be_dumped_is_refused_and_leaves_nothing() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    image(dir);
    shell(dir, "echo precious > there; mkdir folder; ln -s nowhere link; ln a.qcow2 hard").exited(0);
    let before = shell(dir, "ls -A; md5sum a.qcow2 there").stdout;
    for (args, code, words) in [
        (&["--metadump", "there", "a.qcow2"][..], 1, "'there' exists already; a metadump overwrites nothing"),
        (&["--metadump", "folder", "a.qcow2"], 1, "'folder' exists already"),
        (&["--metadump", "link", "a.qcow2"], 1, "'link' exists already"),
        (&["--metadump", "hard", "a.qcow2"], 1, "'hard' is the image itself; check never writes to it"),
        (&["--metadump", "no/dump", "a.qcow2"], 1, "there is no folder 'no'"),
        (&["--metadump", "dump", "a.qcow2", "secret.raw"], 1, "can not hold the metadump of several images"),
        (&["--metadump", "dump", "secret.raw"], 1, "'dump' was not written: what of it is metadata is not known"),
        (&["--keep-names", "a.qcow2"], 1, "--metadump <FILE>"),
    ] {
        let outcome = blkproof(dir, &[&["check", "-q"][..], args].concat());
        assert!(outcome.stderr.contains(words), "{args:?}: {}", outcome.stderr);
        // The raw disk itself is not checked, which is 63; that there is no dump is worse.
        assert_eq!(outcome.code, code, "{args:?}");
    }
    // No file may be longer than this: as if the medium were full.
    let outcome = shell(dir, "(trap '' XFSZ; ulimit -f 64; blkproof check -q --metadump dump a.qcow2) 2>&1 || true");
    assert!(outcome.stdout.contains("the metadump 'dump' was not written: "), "{}", outcome.stdout);
    assert_eq!(shell(dir, "ls -A; md5sum a.qcow2 there").stdout, before, "nothing was left, nothing changed");
}
