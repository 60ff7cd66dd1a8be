//! blkverify over NBD: clients that know nothing of it, every policy, and test sides of every kind.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Outcome, Served, blkproof, run, shell};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use tempfile::{TempDir, tempdir};

/// Where the damage is: a byte of the sector at 512 KiB.
const SECTOR: u64 = 512 << 10;
const BAD: u64 = SECTOR + 5;

/// A reference and a test image of 1 MiB.
fn images(format: &str) -> TempDir {
    let dir = tempdir().unwrap();
    blkproof(dir.path(), &["create", "-q", "ref.raw", "1M"]).exited(0);
    blkproof(dir.path(), &["create", "-q", "-f", format, "test.img", "1M"]).exited(0);
    dir
}

fn write(dir: &Path, uri: &str) {
    run(dir, "qemu-io", &["-f", "raw", "-c", "write -P 0x11 0 1M", "-c", "flush", uri]).exited(0);
}

/// Flips a bit of guest byte [`BAD`] in `test.img`, while it is served.
fn damage(dir: &Path, format: &str) {
    let at = SECTOR.to_string();
    let map = blkproof(dir, &["map", "-U", "-f", format, "-s", &at, "-l", "512", "--format", "json", "test.img"]);
    let map: serde_json::Value = serde_json::from_str(&map.exited(0).stdout).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(dir.join("test.img")).unwrap();
    file.write_all_at(&[0x11 ^ 0x10], map[0]["offset"].as_u64().unwrap() + BAD - SECTOR).unwrap();
}

/// What libnbd's client sees of a read of the whole disk: chunks as `length offset status error`, then the outcome.
fn chunks(dir: &Path, uri: &str) -> String {
    let script = "
def chunk(data, offset, status, error):
    print('data' if status == nbd.READ_DATA else 'error', len(data), offset, error.value)
try:
    data = h.pread_structured(1 << 20, 0, chunk)
    print({bytes([b]) for b in data})
except nbd.Error as e:
    print(e.errno)";
    run(dir, "/usr/bin/python3", &["-m", "nbd", "-u", uri, "-c", script]).exited(0).stdout
}

/// Serves, writes, damages, reads with libnbd, stops.
fn story(format: &str, args: &[&str]) -> (String, Outcome) {
    let dir = images(format);
    let dir = dir.path();
    let mut served = Served::start(dir, 1, args);
    write(dir, served.uri());
    damage(dir, format);
    let seen = chunks(dir, served.uri());
    let outcome = served.stop();
    (seen, outcome)
}

#[track_caller]
fn tells_the_story(stderr: &str, times: usize) {
    let headline = format!("blkverify: read offset=0 bytes=1048576 contents mismatch at offset {BAD}");
    assert_eq!(stderr.lines().filter(|line| *line == headline).count(), times, "{stderr}");
    assert!(stderr.starts_with(&headline), "QEMU's line comes first: {stderr}");
    for words in [
        "seen by operation ",
        " of client 'process ",
        "1 of 2048 sectors differs: 0x80000..0x80200",
        "sector 1024 (0x80000): ",
        "last written by operation 1 (write) of client 'process ",
        "byte 0x80005 bit 4 is 0 not 1",
    ] {
        assert!(stderr.contains(words), "'{words}' in {stderr}");
    }
}

#[test]
fn report_goes_on_with_what_the_test_side_says() {
    for format in ["raw", "qcow2", "vdi"] {
        let graph = match format {
            // A raw disk is not guessed.
            "raw" => vec![
                "--image-opts",
                "driver=blkverify,raw.filename=ref.raw,test.driver=raw,test.file.filename=test.img",
            ],
            _ => vec!["blkverify:ref.raw:test.img"],
        };
        let (seen, outcome) = story(format, &graph);
        assert_eq!(seen.lines().next(), Some("data 1048576 0 0"), "{format}: {seen}");
        assert!(seen.contains("b'\\x01'"), "{format}: the client gets the damaged byte: {seen}");
        tells_the_story(&outcome.exited(1).stderr, 1);
    }
}

#[test]
fn fail_fails_at_exactly_the_bad_sector() {
    for args in [
        &["--on-mismatch", "fail", "blkverify:ref.raw:test.img"][..],
        &[
            "--image-opts",
            "driver=blkverify,on-mismatch=fail,raw.filename=ref.raw,test.driver=qcow2,test.file.filename=test.img",
        ],
        // What the graph says outranks the option.
        &[
            "--on-mismatch",
            "report",
            "--image-opts",
            "driver=blkverify,on-mismatch=fail,raw.filename=ref.raw,test.driver=qcow2,test.file.filename=test.img",
        ],
    ] {
        let (seen, outcome) = story("qcow2", args);
        assert_eq!(seen, format!("data {SECTOR} 0 0\nerror 0 {SECTOR} 5\nEIO\n"), "{args:?}");
        tells_the_story(&outcome.exited(1).stderr, 1);
    }
}

#[test]
fn fail_spares_the_neighbours() {
    let dir = images("qcow2");
    let dir = dir.path();
    let mut served = Served::start(dir, 1, &["--on-mismatch", "fail", "blkverify:ref.raw:test.img"]);
    write(dir, served.uri());
    damage(dir, "qcow2");
    let uri = served.uri().to_owned();
    run(dir, "qemu-io", &["-r", "-f", "raw", "-c", "read -P 0x11 0 512k", "-c", "read -P 0x11 524800 64k", &uri])
        .exited(0);
    let failed = run(dir, "qemu-io", &["-r", "-f", "raw", "-c", "read 524288 512", &uri]).exited(1);
    assert!(failed.stderr.contains("Input/output error") || failed.stdout.contains("Input/output error"), "{failed:?}");
    // Rewritten, the sector is sound again.
    run(dir, "qemu-io", &["-f", "raw", "-c", "write -P 0x22 524288 512", "-c", "read -P 0x22 524288 512", &uri])
        .exited(0);
    served.stop().exited(1);
}

#[test]
fn repair_view_hands_out_the_reference() {
    let (seen, outcome) = story("vdi", &["--on-mismatch", "repair-view", "blkverify:ref.raw:test.img"]);
    assert_eq!(seen, "data 1048576 0 0\n{b'\\x11'}\n");
    tells_the_story(&outcome.exited(1).stderr, 1);
}

#[test]
fn exit_ends_the_server_at_once() {
    let dir = images("qcow2");
    let dir = dir.path();
    let mut served = Served::start(dir, 1, &["--on-mismatch", "exit", "blkverify:ref.raw:test.img"]);
    write(dir, served.uri());
    damage(dir, "qcow2");
    // The client's read never ends well.
    assert_ne!(run(dir, "qemu-io", &["-r", "-f", "raw", "-c", "read 0 1M", served.uri()]).code, 0);
    assert_ne!(run(dir, "nbdinfo", &["--size", served.uri()]).code, 0, "nobody listens any more");
    let stderr = served.stop().exited(1).stderr;
    tells_the_story(&stderr, 1);
    // The images are as they were when it was seen.
    blkproof(dir, &["verify", "-f", "qcow2", "ref.raw", "test.img"]).exited(1);
}

/// The README's example: the driver under test is another program's.
#[test]
fn the_test_side_may_be_another_programs_server() {
    for (server, format) in [
        ("qemu-nbd --fork --pid-file=pid --persistent --socket=$PWD/test.sock --format=vdi test.img", "vdi"),
        ("qemu-nbd --fork --pid-file=pid --persistent --socket=$PWD/test.sock --format=qcow2 test.img", "qcow2"),
        ("nbdkit -P $PWD/pid -U test.sock file test.img", "raw"),
    ] {
        let dir = images(format);
        let dir = dir.path();
        // Both go to the background once they listen.
        shell(dir, &format!("{server} >/dev/null 2>&1")).exited(0);
        let mut served = Served::start(dir, 1, &["blkverify:ref.raw:nbd+unix:///?socket=test.sock"]);
        let fio = format!(
            "fio --name=mix --ioengine=nbd --uri='{}' --rw=randrw --bsrange=512-64k --iodepth=16 --size=1M \
             --verify=crc32c --verify_fatal=1 --randseed=7 >fio.log",
            served.uri()
        );
        shell(dir, &fio).exited(0);
        write(dir, served.uri());
        let sound = chunks(dir, served.uri());
        assert!(sound.ends_with("{b'\\x11'}\n"), "{server}: {sound}");
        damage(dir, format);
        chunks(dir, served.uri());
        let outcome = served.stop().exited(1);
        assert!(
            outcome
                .stderr
                .starts_with(&format!("blkverify: read offset=0 bytes=1048576 contents mismatch at offset {BAD}\n")),
            "{server}: {}",
            outcome.stderr
        );
        assert_eq!(outcome.stderr.matches("contents mismatch").count(), 1, "{server}: {}", outcome.stderr);
        shell(dir, "pid=$(cat pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.01; done").exited(0);
    }
}

#[test]
fn sides_of_different_size_are_told_at_once() {
    let dir = images("qcow2");
    let dir = dir.path();
    shell(dir, "truncate -s 2M ref.raw").exited(0);
    let mut served = Served::start(dir, 1, &["blkverify:ref.raw:test.img"]);
    let outcome = served.stop().exited(1);
    assert!(outcome.stderr.contains("1048576") && outcome.stderr.contains("2097152"), "{}", outcome.stderr);
}
