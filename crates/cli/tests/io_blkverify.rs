//! A mirror under `io`: as qemu-io it is QEMU's blkverify to the letter, under our own name it tells the story.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;

use common::{Outcome, blkproof, run};
use tempfile::tempdir;

/// A zero reference, and a test image that holds ones in its first 64 KiB.
fn unequal_pair(dir: &Path) {
    run(dir, "qemu-img", &["create", "-q", "-f", "raw", "r.raw", "1M"]).exited(0);
    run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "t.qcow2", "1M"]).exited(0);
    run(dir, "qemu-io", &["-f", "qcow2", "-c", "write -q -P 1 0 64k", "t.qcow2"]).exited(0);
}

const PAIR: &str = "json:{'driver':'blkverify','raw':{'driver':'raw','file':{'driver':'file','filename':'r.raw'}},\
                    'test':{'driver':'qcow2','file':{'driver':'file','filename':'t.qcow2'}}}";

#[test]
fn as_qemu_io_it_says_and_does_what_qemu_does() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    unequal_pair(dir);
    symlink(env!("CARGO_BIN_EXE_blkproof"), dir.join("qemu-io")).unwrap();
    let words = ["-c", "read -q 64k 4k", "-c", "length", "-c", "read 4k 8k", "-c", "length", PAIR];
    let qemu: Outcome = run(dir, "qemu-io", &words);
    let ours = run(dir, "./qemu-io", &words);
    assert_eq!(qemu.code, 1);
    assert_eq!(qemu.stderr, "blkverify: read offset=4096 bytes=8192 contents mismatch at offset 4096\n");
    assert_eq!(ours, qemu);
}

#[test]
fn under_our_own_name_it_goes_on_and_the_status_tells() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    unequal_pair(dir);
    let outcome = blkproof(dir, &["io", "-c", "read -q 0 512", "-c", "length", "blkverify:r.raw:t.qcow2"]).exited(1);
    assert_eq!(outcome.stdout, "1 MiB\n", "the command after the mismatch ran");
    assert!(outcome.stderr.starts_with("blkverify: read offset=0 bytes=512 contents mismatch at offset 0\n"));
    blkproof(dir, &["io", "-c", "read -q 64k 512", "blkverify:r.raw:t.qcow2"]).exited(0);
}
