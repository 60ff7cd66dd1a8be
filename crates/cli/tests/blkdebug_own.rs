//! Where blkdebug and its breakpoints do more here than in QEMU: nothing waits for ever, and errors name their rule.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Outcome, blkproof, run};

fn io(dir: &std::path::Path, words: &[&str], commands: &[&str], image: &str) -> Outcome {
    let mut args = vec!["io"];
    args.extend(words);
    args.extend(commands.iter().flat_map(|command| ["-c", command]));
    args.push(image);
    blkproof(dir, &args)
}

fn raw() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.raw"), vec![0; 1 << 20]).unwrap();
    dir
}

#[test]
fn nobody_waits_for_a_request_that_can_not_come() {
    let dir = raw();
    let commands = ["break pwritev A", "wait_break A", "aio_write -q 0 4k", "wait_break A", "resume A", "wait_break B"];
    let seen = io(dir.path(), &["-f", "raw"], &commands, "blkdebug::a.raw").exited(1);
    assert_eq!(
        seen.stdout,
        "Could not wait for breakpoint A: no request is under way that could be suspended\n\
         not hit yet: pwritev 'A'\n\
         blkdebug: Suspended request 'A'\n\
         blkdebug: Resuming request 'A'\n\
         Could not wait for breakpoint B: no request is under way that could be suspended\n"
    );
    let seen = io(dir.path(), &["-f", "raw"], &["wait_break A"], "a.raw").exited(1);
    assert_eq!(seen.stdout, "Could not wait for breakpoint: Operation not supported\n");
}

/// QEMU hangs here.
#[test]
fn what_is_suspended_at_the_end_goes_on() {
    for last in ["length", "close", "quit"] {
        let dir = raw();
        let commands = ["break pwritev A", "break pwritev_done B", "aio_write -q -P 5 0 4k", "wait_break A", last];
        let seen = io(dir.path(), &["-f", "raw"], &commands, "blkdebug::a.raw").exited(0);
        assert!(seen.stdout.ends_with("blkdebug: Resuming request 'A'\n"), "{last}: {}", seen.stdout);
        assert_eq!(seen.stderr, "blkproof io: requests were still suspended, and go on now: 'A'\n", "{last}");
        assert_eq!(std::fs::read(dir.path().join("a.raw")).unwrap()[..4096], [5; 4096], "{last}");
    }
}

#[test]
fn errors_name_their_rule_and_place() {
    let dir = raw();
    std::fs::write(dir.path().join("c"), "\n[inject-error]\nevent = \"none\"\nsector = \"8\"\nonce = \"on\"\n")
        .unwrap();
    let seen = io(dir.path(), &["-f", "raw"], &["read 0 8k", "read -q 0 8k"], "blkdebug:c:a.raw").exited(1);
    assert_eq!(seen.stdout, "read failed: Input/output error\nfirst bad byte at offset 4096; injected by rule c:2\n");
    let seen = io(dir.path(), &["-f", "raw", "--format", "json"], &["read 0 8k"], "blkdebug:c:a.raw").exited(1);
    assert!(seen.stdout.contains("\"injected_by\":\"c:2\""), "{}", seen.stdout);
    let commands = ["break pwritev A", "aio_write 0 4k", "resume A", "aio_flush"];
    let seen = io(dir.path(), &["-f", "raw", "--format", "json"], &commands, "blkdebug::a.raw").exited(0);
    for line in seen.stdout.lines() {
        let object: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(object["schema"], "blkproof-io/1", "{line}");
    }
    assert!(seen.stdout.contains("blkdebug: Suspended request 'A'"), "{}", seen.stdout);
}

#[test]
fn a_mistake_in_a_configuration_is_told_with_its_line() {
    let dir = raw();
    std::fs::write(dir.path().join("c"), "[inject-error]\nevent = \"read_aioo\"\n").unwrap();
    let seen = io(dir.path(), &["-f", "raw"], &["length"], "blkdebug:c:a.raw").exited(1);
    assert!(seen.stderr.contains("c:2: invalid parameter value: read_aioo"), "{}", seen.stderr);
    assert!(seen.stderr.contains("did you mean read_aio?"), "{}", seen.stderr);
}

/// VDI announces its own steps, which QEMU's does not.
#[test]
fn vdi_has_events() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), "qemu-img", &["create", "-q", "-f", "vdi", "a.vdi", "4M"]).exited(0);
    for event in ["vdi_block_alloc", "vdi_block_write", "vdi_header_update", "vdi_bmap_update"] {
        let options = format!(
            "driver=vdi,file.driver=blkdebug,file.image.filename=a.vdi,file.inject-error.event={event},\
             file.inject-error.once=on"
        );
        let seen = io(dir.path(), &["--image-opts"], &["write -P 1 1M 4k"], &options).exited(1);
        assert!(seen.stdout.starts_with("write failed: Input/output error\n"), "{event}: {}", seen.stdout);
        let check = run(dir.path(), "qemu-img", &["check", "-q", "-f", "vdi", "a.vdi"]);
        assert!(matches!(check.code, 0 | 3), "{event}: {check:?}");
        std::fs::remove_file(dir.path().join("a.vdi")).unwrap();
        run(dir.path(), "qemu-img", &["create", "-q", "-f", "vdi", "a.vdi", "4M"]).exited(0);
    }
}

/// What is written to a qcow2 image whose every step fails once is there after the retry, as far as it was
/// acknowledged.
#[test]
fn the_node_serves_too() {
    let dir = raw();
    let served = common::Served::start(
        dir.path(),
        1,
        &[
            "--image-opts",
            "driver=raw,file.driver=blkdebug,file.image.filename=a.raw,\
             file.inject-error.event=read_aio,file.inject-error.once=on",
        ],
    );
    let seen =
        run(dir.path(), "qemu-io", &["-f", "raw", "-c", "read 0 4k", "-c", "read -q -P 0 0 4k", &served.uris[0]]);
    assert_eq!(seen.exited(1).stdout, "read failed: Input/output error\n");
}
