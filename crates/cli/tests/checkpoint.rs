//! `blkproof check --checkpoint`: a check that was killed goes on, and says what it would have said.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use common::{blkproof, run, shell};
use tempfile::tempdir;

fn large(dir: &Path) {
    let options = ["-o", "preallocation=metadata,cluster_size=4k", "a.qcow2", "4G"];
    run(dir, "qemu-img", &[&["create", "-q", "-f", "qcow2"][..], &options].concat()).exited(0);
}

#[test]
fn a_killed_check_goes_on_and_reports_the_same() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    large(dir);
    let check = ["check", "--format", "json", "--threads", "2"];
    let want = blkproof(dir, &[&check[..], &["a.qcow2"]].concat()).exited(0).stdout;
    let args = [&check[..], &["--checkpoint", "state", "a.qcow2"]].concat();
    let state = dir.join("state");
    let len = || state.metadata().map_or(0, |state| state.len());
    let mut most = 0;
    // Killed once it has read 512 KiB more than the one before, without any warning.
    for turn in 0..3 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_blkproof"))
            .args(&args)
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while len() < most + (1 << 19) {
            assert!(child.try_wait().unwrap().is_none(), "turn {turn}: it ended before it was killed");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(len() > most, "turn {turn}: the checkpoint grows");
        most = len();
    }
    let done = blkproof(dir, &args).exited(0);
    assert!(done.stderr.contains("resuming: ") && done.stderr.contains(" are not read again"), "{}", done.stderr);
    assert_eq!(done.stdout, want);
    assert!(!state.exists(), "a check that is done keeps no checkpoint");
}

#[test]
fn what_is_no_checkpoint_of_this_image_is_refused_and_stays() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "a.qcow2", "1G"]).exited(0);
    run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "b.qcow2", "1G"]).exited(0);
    shell(dir, "echo precious > notes; ln a.qcow2 hard").exited(0);
    for (args, words) in [
        (
            &["--checkpoint", "notes", "a.qcow2"][..],
            "'notes' can not be used: this is no checkpoint; it is left as it is",
        ),
        (&["--checkpoint", "hard", "a.qcow2"], "'hard' is the image itself"),
        (&["--checkpoint", "x", "a.qcow2", "b.qcow2"], "can not hold the checkpoint of several images"),
        (&["--checkpoint", "no/x", "a.qcow2"], "'no/x' can not be used: No such file"),
    ] {
        let outcome = blkproof(dir, &[&["check", "-q"][..], args].concat()).exited(1);
        assert!(outcome.stderr.contains(words), "{args:?}: {}", outcome.stderr);
    }
    assert_eq!(std::fs::read_to_string(dir.join("notes")).unwrap(), "precious\n");
    assert!(!dir.join("x").exists());
    // A check that is done leaves none.
    blkproof(dir, &["check", "-q", "--checkpoint", "state", "a.qcow2"]).exited(0);
    assert!(!dir.join("state").exists());
}
