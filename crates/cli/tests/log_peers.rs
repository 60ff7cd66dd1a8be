//! Write logs beside QEMU's driver of the same name, and beside a reader that shares nothing with ours.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

mod common;

use std::path::Path;

use common::{Outcome, Served, blkproof, run};
use tempfile::tempdir;

/// A reader of the format in Python, after its description alone: replays a log, or lists it.
const READER: &str = r#"
import struct, sys
log, image, size = open(sys.argv[1], 'rb').read(), sys.argv[2], int(sys.argv[3])
magic, version, count, sector = struct.unpack_from('<QQQI', log, 0)
assert magic == 0x006a736677736872 and version == 1, 'superblock'
assert not any(log[28:sector]), 'padding of the superblock'
disk, at = bytearray(size), sector
for index in range(count):
    where, length, flags, data = struct.unpack_from('<QQQQ', log, at)
    head = log[at:at + sector]
    assert len(head) == sector, 'entry %d is missing' % index
    assert flags < 32, 'flags of entry %d' % index
    text = head[32:32 + data].decode() if flags & 8 else ''
    if len(sys.argv) <= 4:
        assert not any(head[32 + data:]), 'padding of entry %d' % index
    at += sector
    begin, end = where * sector, (where + length) * sector
    if flags & 4:
        disk[begin:end] = bytes(end - begin)
    elif length:
        payload = log[at:at + length * sector]
        assert len(payload) == length * sector, 'payload of entry %d' % index
        disk[begin:end] = payload
        at += length * sector
    print(index, where, length, flags, text)
assert at == len(log), 'bytes behind the last entry'
open(image, 'wb').write(disk[:size])
"#;

const SIZE: &str = "1048576";

fn python(dir: &Path, log: &str, image: &str) -> Outcome {
    run(dir, "python3", &["-c", READER, log, image, SIZE])
}

fn disk(dir: &Path, name: &str) {
    run(dir, "truncate", &["-s", SIZE, name]).exited(0);
}

fn empty(dir: &Path, name: &str) {
    std::fs::write(dir.join(name), "").unwrap();
}

fn graph(image: &str, log: &str, more: &str) -> String {
    format!("driver=blklogwrites,file.driver=file,file.filename={image},log.driver=file,log.filename={log}{more}")
}

/// Runs commands of qemu-io in one of both programs.
#[track_caller]
fn io(dir: &Path, qemu: bool, graph: &str, commands: &[&str]) -> Outcome {
    let mut args = if qemu { vec![] } else { vec!["io"] };
    args.push("--image-opts");
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(graph);
    if qemu { run(dir, "qemu-io", &args) } else { blkproof(dir, &args) }
}

#[track_caller]
fn same(dir: &Path, a: &str, b: &str) {
    run(dir, "qemu-img", &["compare", "-q", "-f", "raw", "-F", "raw", a, b]).exited(0);
}

const COMMANDS: &[&str] = &[
    "write -P 1 0 64k",
    "write -P 2 100 200",
    "flush",
    "write -z 4k 8k",
    "discard 8k 4k",
    "write -P 3 1000k 24k",
    "write -zu 64k 64k",
    "aio_write -P 4 128k 64k",
    "aio_write -P 5 256k 64k",
    "aio_flush",
    "discard 512k 128k",
];

#[test]
fn qemus_log_is_read_and_makes_the_same_image() {
    for more in ["", ",log-sector-size=4096", ",log-super-update-interval=1"] {
        let dir = tempdir().unwrap();
        let dir = dir.path();
        disk(dir, "d.raw");
        empty(dir, "w.log");
        io(dir, true, &graph("d.raw", "w.log", more), COMMANDS).exited(0);
        blkproof(dir, &["log", "replay", "w.log", "--to", "r.raw", "--size", SIZE]).exited(0);
        same(dir, "d.raw", "r.raw");
        python(dir, "w.log", "p.raw").exited(0);
        same(dir, "p.raw", "r.raw");
        let listed = blkproof(dir, &["log", "list", "w.log"]).exited(0).stdout;
        assert!(listed.ends_with("written by QEMU, or blkproof without details\n"), "{listed}");
        // The comparison bites: one entry less is another image.
        blkproof(dir, &["log", "replay", "w.log", "--to", "s.raw", "--size", SIZE, "--until", "8"]).exited(0);
        run(dir, "qemu-img", &["compare", "-q", "-f", "raw", "-F", "raw", "s.raw", "r.raw"]).exited(1);
    }
}

#[test]
fn our_log_is_the_formats_for_a_reader_that_knows_only_its_description() {
    for more in ["", ",log-sector-size=4096", ",log-sector-size=32"] {
        let dir = tempdir().unwrap();
        let dir = dir.path();
        disk(dir, "d.raw");
        empty(dir, "w.log");
        io(dir, false, &graph("d.raw", "w.log", more), COMMANDS).exited(0);
        python(dir, "w.log", "p.raw").exited(0);
        same(dir, "d.raw", "p.raw");
        blkproof(dir, &["log", "replay", "w.log", "--to", "r.raw", "--size", SIZE]).exited(0);
        same(dir, "d.raw", "r.raw");
    }
}

#[test]
fn both_log_the_same_changes() {
    // Without asynchronous requests, whose order is anybody's. Both programs write through here: QEMU sends a flush
    // behind each write, and logs that; we log the FUA that the file gets.
    let dir = tempdir().unwrap();
    let dir = dir.path();
    for (name, qemu) in [("q", true), ("b", false)] {
        disk(dir, &format!("{name}.raw"));
        empty(dir, &format!("{name}.log"));
        let graph = graph(&format!("{name}.raw"), &format!("{name}.log"), "");
        io(dir, qemu, &graph, &COMMANDS[..7]).exited(0);
    }
    let changes = |log: &str| {
        let listed = python(dir, log, "x.raw").exited(0).stdout;
        let lines = listed.lines().map(|line| line.split_once(' ').unwrap().1.to_owned());
        lines.filter(|line| !line.starts_with("0 0 1 ")).collect::<Vec<_>>()
    };
    let without_fua = |line: String| line.replace(" 2 ", " 0 ");
    assert_eq!(changes("q.log"), changes("b.log").into_iter().map(without_fua).collect::<Vec<_>>());
    assert_eq!(changes("b.log").iter().filter(|line| line.ends_with(" 2 ")).count(), 5);
    let payloads = |log: &str| {
        python(dir, log, "x.raw").exited(0);
        std::fs::read(dir.join("x.raw")).unwrap()
    };
    assert!(payloads("q.log") == payloads("b.log"));
}

#[test]
fn each_goes_on_with_the_others_log() {
    for (turns, details) in
        [([true, false, true], ""), ([false, true, false], ""), ([false, true, false], ",log-details=on")]
    {
        let dir = tempdir().unwrap();
        let dir = dir.path();
        disk(dir, "d.raw");
        empty(dir, "w.log");
        for (turn, qemu) in turns.into_iter().enumerate() {
            let append = if turn == 0 { "" } else { ",log-append=on" };
            let details = if qemu { "" } else { details };
            let write = format!("write -P {} {}k 20k", turn + 1, turn * 16);
            io(dir, qemu, &graph("d.raw", "w.log", &format!("{append}{details}")), &[&write, "flush", "discard 4k 4k"])
                .exited(0);
            if !qemu {
                blkproof(dir, &["log", "mark", "w.log", &format!("turn {turn}")]).exited(0);
            }
        }
        blkproof(dir, &["log", "replay", "w.log", "--to", "r.raw", "--size", SIZE]).exited(0);
        same(dir, "d.raw", "r.raw");
        let listed = blkproof(dir, &["log", "list", "--verify", "w.log"]).exited(0).stdout;
        assert!(listed.matches(" mark ").count() >= 1, "{listed}");
        run(dir, "python3", &["-c", READER, "w.log", "p.raw", SIZE, "details"]).exited(0);
        same(dir, "d.raw", "p.raw");
    }
}

#[test]
fn options_are_refused_in_qemus_words() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    disk(dir, "d.raw");
    let superblock = |version: u64, entries: u64, sector: u32| {
        let mut bytes = b"rhswfsj\0".to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(entries.to_le_bytes());
        bytes.extend(sector.to_le_bytes());
        bytes.resize(512, 0);
        bytes
    };
    let mut metadata = superblock(1, 1, 512);
    for word in [0_u64, 1, 16, 0] {
        metadata.extend(word.to_le_bytes());
    }
    metadata.resize(1536, 0);
    let logs: [(&str, Vec<u8>); 5] = [
        ("empty", Vec::new()),
        ("junk", vec![7; 1024]),
        ("version", superblock(2, 0, 512)),
        ("sector", superblock(1, 0, 500)),
        ("metadata", metadata),
    ];
    for (name, bytes) in &logs {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
    let table = [
        ("empty", ",log-sector-size=500", "Invalid log sector size 500"),
        ("empty", ",log-sector-size=16", "Invalid log sector size 16"),
        ("empty", ",log-sector-size=16777216", "Invalid log sector size 16777216"),
        ("empty", ",log-super-update-interval=0", "Invalid log superblock update interval 0"),
        ("empty", ",log-append=on,log-sector-size=512", "log-append and log-sector-size are mutually exclusive"),
        ("junk", ",log-append=on", "Invalid log superblock magic"),
        ("version", ",log-append=on", "Unsupported log version 2"),
        ("sector", ",log-append=on", "Invalid log sector size 500"),
        ("metadata", ",log-append=on", "Invalid flags 0x10 in log entry 0"),
    ];
    for (log, more, words) in table {
        if log == "metadata" {
            // The kernel's METADATA is read by us, and appended to; QEMU can not.
            continue;
        }
        for qemu in [true, false] {
            let said = io(dir, qemu, &graph("d.raw", log, more), &["read 0 1"]);
            assert!(said.code != 0 && said.stderr.contains(words), "{log}{more}, qemu: {qemu}: {said:?}");
        }
    }
    let said = io(dir, false, "driver=blklogwrites,file.driver=file,file.filename=d.raw", &["read 0 1"]);
    assert!(said.stderr.contains("needs the option 'log'"), "{said:?}");
    run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "i.qcow2", "1M"]).exited(0);
    let said = io(dir, false, &graph("d.raw", "i.qcow2", ""), &["read 0 1"]);
    assert!(said.stderr.contains("the log is a qcow2 image"), "{said:?}");
    run(dir, "qemu-img", &["check", "-q", "i.qcow2"]).exited(0);
}

#[test]
fn a_killed_server_leaves_a_log_that_ends_with_its_last_entry() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    disk(dir, "d.raw");
    for (more, counted) in [("", false), (",log-details=on", true)] {
        empty(dir, "w.log");
        std::fs::remove_file(dir.join("d.raw")).unwrap();
        disk(dir, "d.raw");
        let graph = graph("d.raw", "w.log", more);
        let served = Served::start(dir, 1, &["--image-opts", &graph]);
        let uri = served.uri().to_owned();
        // FUA arrives as FUA: an entry that QEMU's driver never writes. Then the server is killed, its client
        // connected.
        let client = ["-f", "raw", "-c", "write -P 1 0 4k", "-c", "write -f -P 2 8k 4k", &uri];
        run(dir, "qemu-io", &client).exited(0);
        let kill = format!("import os; h.pwrite(b'3' * 4096, 16384); os.kill({}, 9)", served.pid());
        run(dir, "/usr/bin/python3", &["-m", "nbd", "-u", &uri, "-c", &kill]).exited(0);
        drop(served);
        let listed = blkproof(dir, &["log", "list", "--uncounted", "w.log"]).exited(0).stdout;
        assert!(listed.contains(" fua"), "{listed}");
        let mut replay = vec!["log", "replay", "w.log", "--to", "r.raw", "--size", SIZE, "--force"];
        if !counted {
            let half = blkproof(dir, &replay).exited(0);
            assert!(half.stderr.contains("--uncounted"), "{half:?}");
            let differs = run(dir, "qemu-img", &["compare", "-q", "-f", "raw", "-F", "raw", "d.raw", "r.raw"]);
            assert_eq!(differs.code, 1, "what the superblock does not count is missing");
            replay.push("--uncounted");
        }
        blkproof(dir, &replay).exited(0);
        same(dir, "d.raw", "r.raw");
    }
}
