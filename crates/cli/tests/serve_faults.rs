//! Faults as real clients see them over NBD: libnbd, QEMU, nbdcopy, fio, and a Python script that decides by itself.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Outcome, Served, blkproof, run};
use std::path::Path;
use tempfile::{TempDir, tempdir};

const SIZE: usize = 1 << 20;

/// A disk of 1 MiB whose every sector is filled with its number, less the high bits.
fn disk() -> TempDir {
    let dir = tempdir().unwrap();
    let bytes: Vec<u8> = (0..SIZE).map(|at| u8::try_from(at / 512 % 256).unwrap()).collect();
    std::fs::write(dir.path().join("disk.raw"), bytes).unwrap();
    dir
}

fn serve(dir: &Path, rules: &str, more: &[&str]) -> Served {
    std::fs::write(dir.join("rules.toml"), rules).unwrap();
    Served::start(dir, 1, &[&["--rules", "rules.toml", "-f", "raw"][..], more, &["disk.raw"]].concat())
}

/// Runs a script of libnbd's shell against `uri`, with `h` connected.
#[track_caller]
fn nbdsh(dir: &Path, uri: &str, script: &str) -> Outcome {
    run(dir, "/usr/bin/python3", &["-m", "nbd", "-u", uri, "-c", script])
}

fn ctl(dir: &Path, words: &[&str]) -> Outcome {
    blkproof(dir, &[&["ctl", "c.sock"], words].concat())
}

const BAD_50: &str = r#"
[[rule]]
id = "bad-50"
on = { op = "read", lba = 50 }
do = { fail = "03/1101" }
life = "until-rewritten"
"#;

/// The case all this began with: LBA 50 fails until it is rewritten, while LBA 49 and 51 read well; and a request over
/// 32..64 reports exactly 50, by the offset of its error chunk.
#[test]
fn a_bad_sector_is_named_exactly_and_rewriting_cures_it() {
    let dir = disk();
    let dir = dir.path();
    let mut served = serve(dir, BAD_50, &[]);
    let script = "
def read(first, count):
    try:
        return [h.pread(count * 512, first * 512)[i * 512] for i in range(count)]
    except nbd.Error as e:
        return e.errno
print([read(lba, 1) for lba in (49, 50, 51)])
print([read(lba, 1) for lba in (49, 50, 51)])
# What each chunk of the reply says: data with its place, or an error with its place.
seen = []
def chunk(data, offset, status, error):
    seen.append((status, offset // 512, len(data) // 512, error.value))
    error.value = 0
    return 0
buf = nbd.Buffer(32 * 512)
try:
    h.pread_structured(32 * 512, 32 * 512, chunk)
except nbd.Error as e:
    print(e.errno)
print(seen == [(nbd.READ_DATA, 32, 18, 0), (nbd.READ_ERROR, 50, 0, 5)] or seen)
h.pwrite(b'\\xaa' * 512, 50 * 512)
print([read(lba, 1) for lba in (49, 50, 51)], read(32, 32)[17:20])
";
    let out = nbdsh(dir, served.uri(), script).exited(0).stdout;
    assert_eq!(out, "[[49], 'EIO', [51]]\n[[49], 'EIO', [51]]\nEIO\nTrue\n[[49], [170], [51]] [49, 170, 51]\n");
    served.stop().exited(0);
}

#[test]
fn qemu_meets_the_same_sector() {
    let dir = disk();
    let dir = dir.path();
    let mut served = serve(dir, BAD_50, &[]);
    let io = |command: &str| run(dir, "qemu-io", &["-f", "raw", "-c", command, served.uri()]);
    io("read 25088 512").exited(0);
    assert!(io("read 25600 512").exited(1).stdout.contains("read failed: Input/output error"));
    io("read 26112 512").exited(0);
    let copy = run(dir, "qemu-img", &["convert", "-f", "raw", "-O", "raw", served.uri(), "copy.raw"]).exited(1);
    assert!(copy.stderr.contains("Input/output error"), "{}", copy.stderr);
    // A partial write has to read the sector first.
    io("write 25600 100").exited(1);
    io("write -P 7 25600 512").exited(0);
    io("read -P 7 25600 512").exited(0);
    run(dir, "qemu-img", &["convert", "-f", "raw", "-O", "raw", served.uri(), "copy.raw"]).exited(0);
    served.stop().exited(0);
    run(dir, "cmp", &["disk.raw", "copy.raw"]).exited(0);
}

/// Damage is in the reads, not in the disk: it is the same each time, and another seed makes another.
#[test]
fn damage_reads_the_same_each_time() {
    let dir = disk();
    let dir = dir.path();
    let rules =
        "[[rule]]\nid = \"rot\"\non = { op = \"read\", lba = \"100..200\" }\ndo = { corrupt = \"flip\", bits = 3 }\n";
    let mut copies = Vec::new();
    for (seed, name) in [("1", "a"), ("1", "b"), ("2", "c")] {
        let mut served = serve(dir, rules, &["--seed", seed]);
        for copy in [format!("{name}1"), format!("{name}2")] {
            run(dir, "nbdcopy", &["--requests=4", served.uri(), &copy]).exited(0);
            copies.push(std::fs::read(dir.join(copy)).unwrap());
        }
        served.stop().exited(0);
    }
    let good = std::fs::read(dir.join("disk.raw")).unwrap();
    let differing = |one: &[u8], other: &[u8]| {
        let bits = |(a, b): (&u8, &u8)| (a ^ b).count_ones();
        one.chunks(512).zip(other.chunks(512)).map(|(a, b)| a.iter().zip(b).map(bits).sum::<u32>()).collect::<Vec<_>>()
    };
    let damage = differing(&good, &copies[0]);
    for (lba, bits) in damage.iter().enumerate() {
        assert_eq!(*bits, if (100..200).contains(&lba) { 3 } else { 0 }, "LBA {lba}");
    }
    assert!(copies[..4].iter().all(|copy| *copy == copies[0]), "the same seed, the same damage");
    assert!(copies[4] == copies[5] && copies[4] != copies[0], "another seed, another damage");
}

/// A request that hangs holds its client, and nobody else: not other clients, and not the end of the server.
#[test]
fn what_hangs_holds_nobody_else() {
    let dir = disk();
    let dir = dir.path();
    let rules = "[[rule]]\nid = \"stuck\"\non = { op = \"read\", lba = 9 }\ndo = \"hang\"\n";
    let mut served = serve(dir, rules, &["--control", "c.sock"]);
    let script = format!(
        "
other = nbd.NBD()
other.connect_uri({:?})
cookie = h.aio_pread(nbd.Buffer(512), 9 * 512)
# The client's own timeout: nothing comes, while reads beside it and of others are answered.
print(h.pread(1, 8 * 512), other.pread(1, 0), h.aio_command_completed(cookie))
print(h.poll(100), h.aio_in_flight())",
        served.uri()
    );
    let out = nbdsh(dir, served.uri(), &script).exited(0).stdout;
    assert_eq!(out, "bytearray(b'\\x08') bytearray(b'\\x00') False\n0 1\n");
    assert!(ctl(dir, &["fault-list"]).exited(0).stdout.contains("stuck"));
    // One that hangs while the server stops: it has an answer, for want of anything better.
    let script = format!(
        "
import os, signal
cookie = h.aio_pread(nbd.Buffer(512), 9 * 512)
h.pread(512, 0)
os.kill({}, signal.SIGTERM)
try:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
except nbd.Error as e:
    print(e.errno)",
        served.pid()
    );
    assert_eq!(nbdsh(dir, served.uri(), &script).exited(0).stdout, "EIO\n");
    let stopped = served.stop().exited(0);
    assert!(!stopped.stderr.contains("leaving it behind"), "{}", stopped.stderr);
}

#[test]
fn disconnect_cuts_the_line_and_clients_come_back() {
    let dir = disk();
    let dir = dir.path();
    let rules = "[[rule]]\nid = \"cut\"\non = { op = \"write\", lba = 9, times = 1 }\ndo = { disconnect = \"all\" }\n";
    let mut served = serve(dir, rules, &["-v"]);
    let script = format!(
        "
try:
    h.pwrite(b'x' * 512, 9 * 512)
    print('answered')
except nbd.Error:
    print('lost', h.aio_is_dead() or h.aio_is_closed())
h = nbd.NBD()
h.connect_uri({:?})
print(h.pread(2, 9 * 512))
h.pwrite(b'y' * 512, 9 * 512)
h.shutdown()",
        served.uri()
    );
    let out = nbdsh(dir, served.uri(), &script).exited(0).stdout;
    assert_eq!(out, "lost True\nbytearray(b'xx')\n");
    let said = served.stop().exited(0).stderr;
    assert!(said.contains("left (Severed, Extended)") || said.contains("left (Severed, Structured)"), "{said}");
    assert!(said.contains("export '': fault (1 rule) > disk.raw\n"), "{said}");
}

/// A program that decides each write to one range, over the control socket: refuse, change, pretend, let be.
#[test]
fn a_script_decides_what_becomes_of_writes() {
    let dir = disk();
    let dir = dir.path();
    let rules = "[[rule]]\nid = \"gate\"\non = { op = \"write\", lba = \"100..200\" }\n\
                 do = { ask = \"60s\", default = \"EIO\", data = true }\n";
    let mut served = serve(dir, rules, &["--control", "c.sock"]);
    std::fs::write(dir.join("decide.py"), include_str!("serve_faults/decide.py")).unwrap();
    let script = "
import subprocess
gate = subprocess.Popen(['/usr/bin/python3', 'decide.py', 'c.sock'], stdout=subprocess.PIPE, text=True)
assert gate.stdout.readline() == 'ready\\n'
for lba in range(100, 104):
    try:
        h.pwrite(bytes([lba]) * 512, lba * 512)
        print(lba, 'fine')
    except nbd.Error as e:
        print(lba, e.errno)
h.pwrite(b'z' * 512, 99 * 512)
print([h.pread(1, lba * 512)[0] for lba in range(99, 104)])
print(gate.communicate()[0], end='')
# Whoever has gone decides nothing: the rule's default does.
try:
    h.pwrite(b'w' * 512, 100 * 512)
except nbd.Error as e:
    print(e.errno)";
    let out = nbdsh(dir, served.uri(), script).exited(0).stdout;
    assert_eq!(
        out,
        "100 fine\n101 ENOSPC\n102 fine\n103 fine\n[122, 100, 101, 238, 103]\n\
         100 write 512 100\n101 write 512 101\n102 write 512 102\n103 write 512 103\nEIO\n"
    );
    served.stop().exited(0);
}

/// The power goes while fio writes: its connections end, the disk comes back, and holds what was promised.
#[test]
fn fio_loses_its_disk_and_finds_what_was_flushed() {
    let dir = disk();
    let dir = dir.path();
    std::fs::write(dir.join("disk.raw"), vec![0; 4 << 20]).unwrap();
    let mut served = Served::start(
        dir,
        1,
        &["--disk", "honest:profile=block,seed=5", "--control", "c.sock", "-f", "raw", "disk.raw"],
    );
    // Promised: written and flushed before.
    let promise = "h.pwrite(b'p' * 65536, 3 << 20)\nh.flush()\nh.pwrite(b'q' * 65536, (3 << 20) + 65536)\nh.shutdown()";
    nbdsh(dir, served.uri(), promise).exited(0);
    let script = format!(
        "
import json, subprocess, socket
idle = nbd.NBD()
idle.connect_uri({uri:?})
idle.pread(512, 0)
fio = subprocess.Popen(['fio', '--name=w', '--ioengine=nbd', '--uri={uri}', '--rw=randwrite', '--bs=4k', '--iodepth=8',
                        '--size=2m', '--fsync=16', '--time_based', '--runtime=600', '--output=fio.out'],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
control = socket.socket(socket.AF_UNIX)
control.connect('c.sock')
lines = control.makefile('r')
def ask(command, **arguments):
    control.sendall(json.dumps({{'execute': command, 'arguments': arguments}}).encode())
    while True:
        message = json.loads(lines.readline())
        if 'return' in message or 'error' in message:
            return message
        if 'event' in message:
            events.append(message['event'])
events = []
lines.readline()
ask('qmp_capabilities')
while ask('disk-state')['return']['requests'] < 3:
    pass
cut = ask('power-cut')['return']
print(fio.wait() != 0, cut['cut'])
# An idle client is gone too: what it wrote may be.
try:
    idle.flush()
    print('answered')
except nbd.Error:
    print('lost')
ask('query-version')
print('POWER_CUT' in events)
h = nbd.NBD()
h.connect_uri({uri:?})
print(h.pread(65536, 3 << 20) == b'p' * 65536)
h.pwrite(b'r' * 512, 0)
h.flush()
print(ask('disk-state')['return']['on'])",
        uri = served.uri()
    );
    let out = run(dir, "/usr/bin/python3", &["-c", &format!("import nbd\n{script}")]).exited(0).stdout;
    assert_eq!(out, "True 1\nlost\nTrue\nTrue\nTrue\n");
    served.stop().exited(0);
}

/// The options stand in front of the graph in their order, and each has the name its user guesses.
#[test]
fn the_nodes_stand_in_their_order() {
    let dir = disk();
    let dir = dir.path();
    let args = ["--trace", "t.jsonl", "--stats", "--log", "w.log", "--disk", "liar:profile=torn", "--seed", "0x10"];
    let mut served = serve(dir, BAD_50, &[&["-v", "--control", "c.sock"][..], &args].concat());
    nbdsh(dir, served.uri(), "h.pwrite(b'x' * 512, 0)\nh.flush()\nh.pread(512, 512)\nh.shutdown()").exited(0);
    let nodes = ctl(dir, &["query-nodes", "--format", "json"]).exited(0).stdout;
    let nodes: serde_json::Value = serde_json::from_str(&nodes).unwrap();
    let names: Vec<&str> = nodes.as_array().unwrap().iter().map(|node| node["node"].as_str().unwrap()).collect();
    assert_eq!(names, ["disk", "fault", "log", "stats", "trace"]);
    let stats = ctl(dir, &["query-blockstats", "--format", "json"]).exited(0).stdout;
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert_eq!((&stats[0]["stats"]["wr_bytes"], &stats[0]["stats"]["flush_operations"]), (&512.into(), &1.into()));
    let said = served.stop().exited(0).stderr;
    let line = "export '': trace (to 't.jsonl') > stats > fault (1 rule) > log (to 'w.log') > \
                disk (liar, profile torn, seed 16) > disk.raw\n";
    assert!(said.contains(line), "{said}");
    let trace = std::fs::read_to_string(dir.join("t.jsonl")).unwrap();
    assert!(trace.contains("\"op\":\"write\"") || trace.contains("\"write\""), "{trace}");
    let log = blkproof(dir, &["log", "list", "w.log"]).exited(0).stdout;
    assert!(log.contains("flush"), "{log}");
    assert!(!log.contains("without details"), "what is in flight at each moment is in the log: {log}");
    // A graph with rules of its own does not get a second node for them.
    let graph = "driver=fault,node-name=mine,file.driver=raw,file.file.filename=disk.raw";
    let mut served = Served::start(dir, 1, &["--control", "c.sock", "--image-opts", graph]);
    let nodes = ctl(dir, &["query-nodes", "--format", "json"]).exited(0).stdout;
    assert!(nodes.contains("mine") && !nodes.contains("\"fault\",\"driver"), "{nodes}");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&nodes).unwrap().as_array().unwrap().len(), 1);
    served.stop().exited(0);
}

/// Nodes without names get one each, also where two of a kind stand on each other.
#[test]
fn nodes_without_names_have_different_ones() {
    let dir = disk();
    let dir = dir.path();
    std::fs::write(dir.join("1.log"), "").unwrap();
    std::fs::write(dir.join("2.log"), "").unwrap();
    let stack = ["disk", "disk", "fault", "fault", "stats", "stats", "blklogwrites", "blklogwrites", "raw"];
    let mut graph = String::new();
    for (depth, driver) in stack.iter().enumerate() {
        graph += &format!("{}driver={driver},", "file.".repeat(depth));
    }
    graph += &format!("{}log.filename=1.log,{}log.filename=2.log,", "file.".repeat(6), "file.".repeat(7));
    graph += &format!("{}filename=disk.raw", "file.".repeat(9));
    let mut served = Served::start(dir, 1, &["--control", "c.sock", "--image-opts", &graph]);
    let nodes = ctl(dir, &["query-nodes", "--format", "json"]).exited(0).stdout;
    let nodes: serde_json::Value = serde_json::from_str(&nodes).unwrap();
    let names: Vec<&str> = nodes.as_array().unwrap().iter().map(|node| node["node"].as_str().unwrap()).collect();
    let want = ["blklogwrites0", "blklogwrites1", "disk0", "disk1", "fault0", "fault1", "stats0", "stats1"];
    assert_eq!(names, want);
    served.stop().exited(0);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let dir = disk();
    let dir = dir.path();
    std::fs::write(dir.join("bad.toml"), "[[rule]]\nid = \"a\"\non = { lbas = 5 }\n").unwrap();
    for (args, says) in [
        (&["--disk", "honst", "disk.raw"][..], "honst"),
        (&["--disk", "liar:profil=torn", "disk.raw"], "profil"),
        (&["--rules", "bad.toml", "disk.raw"], "bad.toml:3:8: rule 'a': on.lbas: no such field; did you mean 'lba'?"),
        (&["--rules", "none.toml", "disk.raw"], "could not read the rules in 'none.toml': No such file"),
        (&["--seed", "x", "disk.raw"], "'x' is no seed"),
        (&["--config", "a.toml", "disk.raw"], "cannot be used with"),
        (&["--trace", "disk.raw", "disk.raw"], "it is left as it is"),
        (&["-x", "a", "-x", "b", "--log", "l", "disk.raw", "disk.raw"], "one log or trace can not serve several"),
        (&["--prometheus", "1.2.3.4:1", "disk.raw"], "could not listen for Prometheus on '1.2.3.4:1'"),
        (&["--ready-fd", "0", "disk.raw"], "standard input is not written to"),
    ] {
        let outcome = blkproof(dir, &[&["serve", "--unix", "x.sock", "-f", "raw"][..], args].concat());
        assert!([1, 2].contains(&outcome.code), "{args:?}: {outcome:?}");
        assert!(outcome.stderr.contains(says), "{args:?}: {}", outcome.stderr);
        assert_eq!(outcome.stdout, "", "{args:?}");
    }
    assert_eq!(std::fs::metadata(dir.join("disk.raw")).unwrap().len(), SIZE as u64);
    assert!(!dir.join("x.sock").exists());
    let bytes = std::fs::read(dir.join("disk.raw")).unwrap();
    assert!(bytes.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at / 512 % 256), "nobody wrote to it");
}
