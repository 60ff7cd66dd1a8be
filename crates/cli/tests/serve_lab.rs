//! `blkproof serve --config`: many exports from a file, and the file read again while clients are there.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Outcome, Served, blkproof, run, shell};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use tempfile::{TempDir, tempdir};

/// Images of 1 MiB: a.raw, b.raw, c.raw, each filled with its letter.
fn images() -> TempDir {
    let dir = tempdir().unwrap();
    for letter in ["a", "b", "c"] {
        std::fs::write(dir.path().join(format!("{letter}.raw")), letter.repeat(1 << 20)).unwrap();
    }
    dir
}

fn export(name: &str, more: &str) -> String {
    format!("[[export]]\nname = \"{name}\"\ngraph = \"{name}.raw\"\nformat = \"raw\"\n{more}\n")
}

fn write(dir: &Path, exports: &[String]) {
    std::fs::write(dir.join("lab.toml"), format!("control = \"c.sock\"\nseed = 7\n{}", exports.concat())).unwrap();
}

fn uri(served: &Served, name: &str) -> String {
    format!("nbd+unix:///{name}?socket={}", served.socket.display())
}

const BAD: &str = "[[export.rule]]\nid = \"bad\"\non = { op = \"read\", lba = 5 }\ndo = \"fail\"\n";

/// A control client that has asked for events.
struct Control {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Control {
    fn connect(dir: &Path) -> Self {
        let mut child = Command::new("socat")
            .args(["-", "UNIX-CONNECT:c.sock"])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut this = Self { child, to, from };
        this.next();
        this.to.write_all(b"{\"execute\": \"qmp_capabilities\"}\n").unwrap();
        assert!(this.next().get("return").is_some());
        this
    }

    fn next(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// The next event of that name.
    fn event(&mut self, name: &str) -> serde_json::Value {
        loop {
            let message = self.next();
            if message["event"] == name {
                return message["data"].clone();
            }
        }
    }

    /// Reads the file again, and what came of it.
    fn reload(&mut self, served: &Served) -> serde_json::Value {
        Command::new("kill").args(["-HUP", &served.pid().to_string()]).status().unwrap();
        self.event("RELOADED")
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that stays: libnbd, told what to do line by line.
struct Client {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Client {
    fn connect(uri: &str) -> Self {
        let script = "
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
print('ready', flush=True)
for line in sys.stdin:
    try:
        print(eval(line), flush=True)
    except nbd.Error as e:
        print(e.errno, flush=True)";
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", script, uri])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut this = Self { child, to, from };
        assert_eq!(this.line(), "ready");
        this
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn says(&mut self, script: &str) -> String {
        writeln!(self.to, "{script}").unwrap();
        self.line()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn many_exports_each_with_its_own() {
    let dir = images();
    let dir = dir.path();
    write(
        dir,
        &[
            export("a", "disk = \"liar:profile=torn\"\nstats = true\ndescription = \"first\""),
            export("b", &format!("read-only = true\nlba-size = 4096\n{BAD}")),
        ],
    );
    let mut served = Served::start(dir, 2, &["-v", "--config", "lab.toml"]);
    assert_eq!(served.uris, [uri(&served, "a"), uri(&served, "b")]);
    let mut a = Client::connect(&uri(&served, "a"));
    let mut b = Client::connect(&uri(&served, "b"));
    assert_eq!(a.says("h.pread(2, 5 * 4096)"), "bytearray(b'aa')");
    assert_eq!(b.says("h.pread(2, 5 * 512)"), "bytearray(b'bb')");
    assert_eq!(b.says("h.pread(2, 5 * 4096)"), "EIO");
    assert_eq!(b.says("(h.is_read_only(), h.get_size())"), "(True, 1048576)");
    let nodes = blkproof(dir, &["ctl", "c.sock", "query-nodes", "--format", "json"]).exited(0).stdout;
    let nodes: serde_json::Value = serde_json::from_str(&nodes).unwrap();
    let names: Vec<&str> = nodes.as_array().unwrap().iter().map(|node| node["node"].as_str().unwrap()).collect();
    assert_eq!(names, ["a.disk", "a.fault", "a.stats", "b.fault"]);
    let said = served.stop().exited(0).stderr;
    assert!(said.contains("export 'a': a.stats > a.fault (0 rules) > a.disk (liar, profile torn, seed 7) > a.raw\n"));
    assert!(said.contains("export 'b': b.fault (1 rule) > b.raw\n"), "{said}");
}

/// Unchanged exports keep their clients, also when their rules are replaced; what is gone tells its clients to leave;
/// what has changed is opened anew.
#[test]
fn a_file_that_is_read_again() {
    let dir = images();
    let dir = dir.path();
    write(dir, &[export("a", ""), export("b", "")]);
    let mut served = Served::start(dir, 2, &["--config", "lab.toml"]);
    let mut control = Control::connect(dir);
    let mut a = Client::connect(&uri(&served, "a"));
    let connected = control.event("CLIENT_CONNECTED");
    assert_eq!(connected["export"], "a");
    let mut b = Client::connect(&uri(&served, "b"));
    assert_eq!(b.says("h.pread(2, 0)"), "bytearray(b'bb')");
    assert_eq!(control.reload(&served)["words"], "nothing has changed");

    write(dir, &[export("a", BAD), export("c", "")]);
    let told = control.reload(&served);
    assert_eq!(told["words"], "added: 'c'; removed: 'b'; given new rules: 'a'", "{told}");
    assert_eq!(a.says("h.pread(2, 5 * 512)"), "EIO", "the new rule, on the old connection");
    assert_eq!(a.says("h.pread(2, 0)"), "bytearray(b'aa')");
    assert!(["ESHUTDOWN", "None", "ENOTCONN"].contains(&b.says("h.pread(2, 0)").as_str()));
    assert_eq!(b.says("h.aio_is_ready()"), "False");
    let mut c = Client::connect(&uri(&served, "c"));
    assert_eq!(c.says("h.pread(2, 0)"), "bytearray(b'cc')");
    // Its image is free again.
    run(dir, "qemu-io", &["-f", "raw", "-c", "write -P 66 0 512", "b.raw"]).exited(0);

    write(dir, &[export("a", ""), export("c", "disk = \"honest\"")]);
    let told = control.reload(&served);
    assert_eq!(told["words"], "opened anew: 'c'; given new rules: 'a'", "{told}");
    assert_eq!(a.says("h.pread(2, 5 * 512)"), "bytearray(b'aa')");
    assert!(!c.says("h.aio_is_ready() and h.pread(2, 0)").contains("cc"));
    let mut c = Client::connect(&uri(&served, "c"));
    assert_eq!(c.says("h.pwrite(b'xy', 0)"), "None");
    // A disk that came with a reload loses its power as any other.
    let cut = blkproof(dir, &["ctl", "c.sock", "power-cut", "state=all-old"]).exited(0);
    assert_eq!(control.event("POWER_CUT")["node"], "c.disk", "{cut:?}");
    assert_ne!(c.says("h.flush()"), "None");
    let mut c = Client::connect(&uri(&served, "c"));
    assert_eq!(c.says("h.pread(2, 0)"), "bytearray(b'cc')");
    let said = served.stop().exited(0).stderr;
    assert_eq!(said.lines().filter(|line| line.starts_with("reloaded: ")).count(), 3, "{said}");
    assert!(!said.contains("warning"), "{said}");
}

#[test]
fn a_bad_file_changes_nothing_and_says_why() {
    let dir = images();
    let dir = dir.path();
    let good = [export("a", BAD), export("b", "")];
    write(dir, &good);
    let mut served = Served::start(dir, 2, &["--config", "lab.toml"]);
    let mut control = Control::connect(dir);
    let mut a = Client::connect(&uri(&served, "a"));
    let cases = [
        (vec![export("a", "disk = \"lair\"")], "lab.toml:7:8: export.disk: "),
        (vec![export("a", &BAD.replace("lba", "lbas"))], "rule 'bad': on.lbas: no such field; did you mean 'lba'?"),
        (
            vec![export("a", "rules = \"none.toml\"")],
            "lab.toml:7:9: export.rules: could not read the rules in 'none.toml'",
        ),
        (vec![export("b", ""), export("nix", "")], "could not open 'nix.raw': No such file"),
        (vec![export("a", ""), export("a", "")], "there is an export of that name already"),
        (vec!["[[export]".to_owned()], "no TOML"),
    ];
    let count = cases.len();
    for (exports, says) in cases {
        write(dir, &exports);
        let told = control.reload(&served);
        assert!(told["error"].as_str().unwrap().contains(says), "{told}");
        assert_eq!(told["words"], "");
        assert_eq!(a.says("h.pread(2, 5 * 512)"), "EIO");
        assert_eq!(run(dir, "nbdinfo", &["--size", &uri(&served, "b")]).exited(0).stdout, "1048576\n");
    }
    std::fs::remove_file(dir.join("lab.toml")).unwrap();
    assert!(control.reload(&served)["error"].as_str().unwrap().starts_with("could not read 'lab.toml'"));
    // A changed export that does not open comes back as it was, without its clients.
    write(dir, &[good[0].replace("a.raw", "nix.raw"), good[1].clone()]);
    let told = control.reload(&served);
    assert!(told["error"].as_str().unwrap().contains("'a' is as it was"), "{told}");
    let mut again = Client::connect(&uri(&served, "a"));
    assert_eq!(again.says("h.pread(2, 5 * 512)"), "EIO");
    write(dir, &good);
    assert_eq!(control.reload(&served)["words"], "nothing has changed");
    let said = served.stop().exited(0).stderr;
    assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), count + 2, "{said}");
    // The same at the start.
    write(dir, &[export("a", "disk = \"lair\"")]);
    let refused: Outcome = blkproof(dir, &["serve", "--unix", "x.sock", "--config", "lab.toml"]).exited(1);
    assert!(refused.stderr.starts_with("error: lab.toml:7:8: export.disk: "), "{}", refused.stderr);
}

/// A graph that brings its own rules has no second node for them, until the file has rules too.
#[test]
fn rules_come_to_a_graph_that_has_its_own() {
    let dir = images();
    let dir = dir.path();
    let own = |more: &str| {
        let graph = "driver=fault,node-name=own,file.driver=raw,file.file.filename=a.raw";
        format!("[[export]]\nname = \"a\"\nimage-opts = true\ngraph = \"{graph}\"\n{more}\n")
    };
    let nodes = |want: &[&str]| {
        let nodes = blkproof(dir, &["ctl", "c.sock", "query-nodes", "--format", "json"]).exited(0).stdout;
        let nodes: serde_json::Value = serde_json::from_str(&nodes).unwrap();
        let names: Vec<&str> = nodes.as_array().unwrap().iter().map(|node| node["node"].as_str().unwrap()).collect();
        assert_eq!(names, want);
    };
    write(dir, &[own("")]);
    let mut served = Served::start(dir, 1, &["--config", "lab.toml"]);
    let mut control = Control::connect(dir);
    nodes(&["own"]);
    write(dir, &[own(BAD)]);
    assert_eq!(control.reload(&served)["words"], "opened anew: 'a'");
    nodes(&["a.fault", "own"]);
    assert_eq!(Client::connect(&uri(&served, "a")).says("h.pread(2, 5 * 512)"), "EIO");
    write(dir, &[own(&BAD.replace("lba = 5", "lba = 6"))]);
    assert_eq!(control.reload(&served)["words"], "given new rules: 'a'");
    served.stop().exited(0);
}

/// A reload that opens an export anew goes on with its trace: behind a second head, for the numbers begin anew. Only a
/// trace of an earlier run is emptied, and not by a server that does not come up.
#[test]
fn a_trace_outlives_a_reload() {
    let dir = images();
    let dir = dir.path();
    let trace = dir.join("t.jsonl");
    let lines = || std::fs::read_to_string(&trace).unwrap();
    let old = "{\"schema\":\"blkproof.trace/1\",\"node\":\"old\",\"size\":0,\"unix_ns\":0}\n";
    std::fs::write(&trace, old).unwrap();
    write(dir, &[export("a", "trace = \"t.jsonl\"").replace("a.raw", "gone.raw")]);
    blkproof(dir, &["serve", "--config", "lab.toml"]).exited(1);
    assert_eq!(lines(), old);

    write(dir, &[export("a", "trace = \"t.jsonl\"")]);
    let mut served = Served::start(dir, 1, &["--config", "lab.toml"]);
    let mut control = Control::connect(dir);
    assert_eq!(Client::connect(&uri(&served, "a")).says("h.pread(2, 0)"), "bytearray(b'aa')");
    write(dir, &[export("a", "trace = \"t.jsonl\"\nstats = true")]);
    assert_eq!(control.reload(&served)["words"], "opened anew: 'a'");
    assert_eq!(Client::connect(&uri(&served, "a")).says("h.pread(2, 2)"), "bytearray(b'aa')");
    blkproof(dir, &["ctl", "c.sock", "trace-stop"]).exited(0);
    assert_eq!(Client::connect(&uri(&served, "a")).says("h.pread(2, 4)"), "bytearray(b'aa')");
    blkproof(dir, &["ctl", "c.sock", "trace-start", "node=a.trace"]).exited(0);
    assert_eq!(Client::connect(&uri(&served, "a")).says("h.pread(2, 6)"), "bytearray(b'aa')");
    // Two at a time in one file are refused, by whatever name.
    std::os::unix::fs::symlink("t.jsonl", dir.join("u.jsonl")).unwrap();
    write(dir, &[export("a", "trace = \"t.jsonl\"\nstats = true"), export("b", "trace = \"u.jsonl\"")]);
    let error = control.reload(&served)["error"].as_str().unwrap().to_owned();
    assert!(error.contains("another trace is written to this file"), "{error}");
    served.stop().exited(0);
    let heads = lines().lines().filter(|line| line.starts_with("{\"schema\"")).count();
    assert_eq!((heads, lines().contains("\"node\":\"old\"")), (2, false));
    let reads = |at: u64| lines().contains(&format!("\"op\":\"read\",\"offset\":{at},\"bytes\":2,"));
    assert_eq!([0, 2, 4, 6].map(reads), [true, true, false, true], "{}", lines());
    let replayed =
        blkproof(dir, &["io", "--replay", "t.jsonl", "--as-fast-as-possible", "-f", "raw", "a.raw"]).exited(0);
    assert_eq!(
        replayed.stderr,
        "blkproof io: the trace was not written all the time; what came while it was not is not done again\n"
    );
}

/// A mirror's findings are events too.
#[test]
fn a_mismatch_is_told_to_control_clients() {
    let dir = images();
    let dir = dir.path();
    std::fs::copy(dir.join("a.raw"), dir.join("reference.raw")).unwrap();
    shell(dir, "printf X | dd of=a.raw bs=1 seek=5000 conv=notrunc status=none").exited(0);
    let graph = "json:{\"driver\": \"blkverify\", \"raw\": {\"driver\": \"file\", \"filename\": \"reference.raw\"}, \
                 \"test\": {\"driver\": \"raw\", \"file\": {\"driver\": \"file\", \"filename\": \"a.raw\"}}}";
    std::fs::write(
        dir.join("lab.toml"),
        format!("control = \"c.sock\"\n[[export]]\nname = \"m\"\ngraph = '{graph}'\ndisk = \"honest\"\n"),
    )
    .unwrap();
    let mut served = Served::start(dir, 1, &["--config", "lab.toml"]);
    let mut control = Control::connect(dir);
    run(dir, "qemu-io", &["-f", "raw", "-c", "read 4096 4096", &uri(&served, "m")]);
    let told = control.event("MISMATCH");
    assert_eq!((&told["offset"], &told["bytes"]), (&4608.into(), &512.into()), "{told}");
    assert!(told["words"].as_str().unwrap().contains("contents mismatch at offset 5000"), "{told}");
    served.stop().exited(1);
}

/// What hangs or is held at an export that goes does not keep it.
#[test]
fn an_export_goes_although_requests_wait() {
    let dir = images();
    let dir = dir.path();
    let rules = "[[export.rule]]\non = { op = \"read\", lba = 5 }\ndo = \"hang\"\n\
                 [[export.rule]]\non = { op = \"write\", lba = 6 }\ndo = { hold = \"t\" }\n";
    write(dir, &[export("a", rules), export("b", "")]);
    let mut served = Served::start(dir, 2, &["--config", "lab.toml"]);
    let mut control = Control::connect(dir);
    let mut a = Client::connect(&uri(&served, "a"));
    assert_eq!(a.says("h.aio_pread(nbd.Buffer(512), 5 * 512) > 0"), "True");
    assert_eq!(a.says("h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b'w' * 512)), 6 * 512) > 0"), "True");
    assert_eq!(a.says("h.pread(2, 0)"), "bytearray(b'aa')", "both have arrived");
    assert_eq!(control.event("SUSPENDED")["tag"], "t");
    write(dir, &[export("b", "")]);
    assert_eq!(control.reload(&served)["words"], "removed: 'a'");
    let served_b = served.stop().exited(0);
    assert!(!served_b.stderr.contains("leaving it behind"), "{}", served_b.stderr);
    assert_eq!(&std::fs::read(dir.join("a.raw")).unwrap()[6 * 512..][..2], b"ww", "what was held is done");
}

#[test]
fn a_hundred_exports_come_and_go() {
    let dir = images();
    let dir = dir.path();
    let list = |names: std::ops::Range<u32>| {
        let mut text = String::new();
        for number in names {
            shell(dir, &format!("truncate -s 64k {number}.raw")).exited(0);
            write!(text, "{}", export(&number.to_string(), "disk = \"honest\"\nstats = true\n")).unwrap();
        }
        vec![text]
    };
    write(dir, &list(0..50));
    let mut served = Served::start(dir, 50, &["--config", "lab.toml"]);
    let mut control = Control::connect(dir);
    write(dir, &list(25..100));
    let told = control.reload(&served);
    assert!(told["error"].is_null(), "{told}");
    let listed = run(dir, "nbdinfo", &["--list", "--json", &uri(&served, "")]).exited(0).stdout;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let names: Vec<&str> =
        listed["exports"].as_array().unwrap().iter().map(|export| export["export-name"].as_str().unwrap()).collect();
    assert_eq!(names, (25..100).map(|number| number.to_string()).collect::<Vec<_>>());
    served.stop().exited(0);
}
