//! Shell scripts in the manner of qemu-iotests, run with qemu-io and with a link of that name to `blkproof`: both have
//! to print the same. Each script says in its head what it is about.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::{Command, Stdio};

/// What `script` prints with that qemu-io.
fn run(script: &str, qemu_io: &Path) -> String {
    run_with(script, qemu_io, "qemu-img", "")
}

fn run_with(script: &str, qemu_io: &Path, qemu_img: &str, events: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("bash")
        .args(["-c", script])
        .current_dir(dir.path())
        .env("QEMU_IO", qemu_io)
        .env("QEMU_IMG", qemu_img)
        .env("EVENTS", events)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// What `script` prints with ours.
fn ours(script: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("qemu-io");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_blkproof"), &link).unwrap();
    run(script, &link)
}

#[track_caller]
fn compare(script: &str) {
    let theirs = run(script, Path::new("qemu-io"));
    assert!(!theirs.is_empty(), "qemu-io can be run");
    let ours = ours(script);
    let differing = theirs.lines().zip(ours.lines()).position(|(a, b)| a != b);
    let at = differing.unwrap_or_else(|| theirs.lines().count().min(ours.lines().count()));
    let near = |text: &str| text.lines().skip(at.saturating_sub(4)).take(10).collect::<Vec<_>>().join("\n");
    assert!(theirs == ours, "line {}\n--- qemu-io\n{}\n--- blkproof\n{}", at + 1, near(&theirs), near(&ours));
}

#[test]
fn errors_while_allocating_leak_at_worst() {
    assert_eq!(ours(include_str!("blkdebug_scripts/allocation_errors.sh")), "done\n");
}

/// The script complains of an image that is damaged, and of one that lost what it held.
#[test]
fn damage_while_allocating_would_be_seen() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let corrupt = write("corrupt", "#!/bin/sh\n[ \"$1\" = check ] && exit 2\nexec qemu-img \"$@\"\n");
    let lossy = write(
        "lossy",
        "#!/bin/sh\nqemu-io \"$@\"; status=$?\n\
         case \"$*\" in *rules:t.qcow2) qemu-io -f qcow2 -c 'write -q 0 64k' t.qcow2 ;; \
         esac\nexit $status\n",
    );
    let script = include_str!("blkdebug_scripts/allocation_errors.sh");
    let seen = run_with(script, Path::new("qemu-io"), corrupt.to_str().unwrap(), "l2_update");
    assert!(seen.starts_with("64k l2_update on, write -P 0x22 512M 100k: check ends with 2"), "{seen}");
    let seen = run_with(script, &lossy, "qemu-img", "l2_update");
    assert!(seen.contains("64k l2_update on, write -P 0x22 512M 100k: not as it was"), "{seen}");
}

#[test]
fn unaligned_writes_that_meet() {
    compare(include_str!("blkdebug_scripts/rmw_interleaved.sh"));
}

#[test]
fn errors_below_a_mirror() {
    compare(include_str!("blkdebug_scripts/verified_errors.sh"));
}

#[test]
fn ways_into_a_graph() {
    compare(include_str!("blkdebug_scripts/graphs.sh"));
}

#[test]
fn odd_limits() {
    compare(include_str!("blkdebug_scripts/limits.sh"));
}
