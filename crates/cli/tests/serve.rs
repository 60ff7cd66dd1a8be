//! `blkproof serve` as its user meets it: exports, sockets, refusals, and how it ends.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Served, blkproof, run, shell};
use std::path::Path;
use tempfile::{TempDir, tempdir};

fn images() -> TempDir {
    let dir = tempdir().unwrap();
    shell(dir.path(), "truncate -s 8M a.raw; truncate -s 9M b.raw").exited(0);
    dir
}

/// Runs a script of libnbd's shell against `uri`, with `h` connected.
#[track_caller]
fn nbdsh(dir: &Path, uri: &str, script: &str) -> common::Outcome {
    run(dir, "/usr/bin/python3", &["-m", "nbd", "-u", uri, "-c", script])
}

#[test]
fn several_exports_have_names_and_descriptions() {
    let dir = images();
    let dir = dir.path();
    let args =
        ["-x", "one", "-x", "zwei", "--description", "first", "--description", "second", "-f", "raw", "a.raw", "b.raw"];
    let mut served = Served::start(dir, 2, &args);
    let list = run(dir, "nbdinfo", &["--list", "--json", &served.uri().replace("/one", "/")]).exited(0).stdout;
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    for (export, (name, words, size)) in [("one", "first", 8 << 20), ("zwei", "second", 9 << 20)].iter().enumerate() {
        let export = &list["exports"][export];
        assert_eq!(
            (&export["export-name"], &export["description"], &export["export-size"]),
            (&(*name).into(), &(*words).into(), &(*size).into())
        );
        let uri = served.uris.iter().find(|uri| uri.contains(&format!("/{name}?"))).unwrap();
        assert_eq!(run(dir, "nbdinfo", &["--size", uri]).exited(0).stdout, format!("{size}\n"));
    }
    for wrong in ["/", "/on", "/drei"] {
        let uri = served.uri().replace("/one", wrong);
        assert_ne!(run(dir, "nbdinfo", &["--size", &uri]).code, 0, "{wrong}");
        let ours = blkproof(dir, &["map", "-f", "raw", &uri]).exited(1);
        assert!(ours.stderr.contains("no export of that name"), "{}", ours.stderr);
    }
    served.stop().exited(0);
}

#[test]
fn a_single_export_is_the_default_whatever_its_name() {
    let dir = images();
    let dir = dir.path();
    let mut served = Served::start(dir, 1, &["-x", "a disk/1", "-f", "raw", "a.raw"]);
    assert!(served.uri().contains(":///a%20disk/1?socket="), "{}", served.uri());
    let nameless = format!("nbd+unix:///?socket={}", served.socket.display());
    for uri in [served.uri(), &nameless] {
        assert_eq!(run(dir, "nbdinfo", &["--size", uri]).exited(0).stdout, "8388608\n");
    }
    served.stop().exited(0);
}

#[test]
fn names_and_graphs_must_match() {
    let dir = images();
    let dir = dir.path();
    for (args, says) in [
        (&["a.raw", "b.raw"][..], "2 graphs and 0 export names; give --export once for each graph"),
        (&["-x", "a", "-x", "b", "a.raw"], "1 graphs and 2 export names"),
        (&["-x", "a", "-x", "a", "a.raw", "b.raw"], "two exports named 'a'"),
        (&["--description", "x", "--description", "y", "a.raw"], "1 graphs and 2 descriptions"),
        (&["-x", "a", "-x", "b", "a.raw", "nix.raw"], "could not open 'nix.raw': No such file or directory"),
        (&["--on-mismatch", "bogus", "a.raw"], "'bogus' is not report, fail, exit or repair-view"),
    ] {
        let outcome = blkproof(dir, &[&["serve", "--unix", "x.sock", "-f", "raw"][..], args].concat());
        assert!([1, 2].contains(&outcome.code), "{args:?}: {outcome:?}");
        assert!(outcome.stderr.contains(says), "{args:?}: {}", outcome.stderr);
        assert_eq!(outcome.stdout, "", "{args:?}: no URI of a server that is not there");
    }
    let guess = blkproof(dir, &["serve", "--unix", "x.sock", "a.raw"]).exited(1);
    assert!(guess.stderr.contains("not guessed to be raw") && guess.stderr.contains("\nhint: "), "{}", guess.stderr);
    assert!(!dir.join("x.sock").exists());
}

#[test]
fn read_only_refuses_writes() {
    let dir = images();
    let dir = dir.path();
    let mut served = Served::start(dir, 1, &["--read-only", "-f", "raw", "a.raw"]);
    let script = "
h.set_strict_mode(0)
for request in (lambda: h.pwrite(b'x' * 512, 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0)):
    try:
        request()
        print('done')
    except nbd.Error as e:
        print(e.errno)
print(h.is_read_only(), len(h.pread(512, 0)))";
    assert_eq!(nbdsh(dir, served.uri(), script).exited(0).stdout, "EPERM\nEPERM\nEPERM\nTrue 512\n");
    let ours = blkproof(dir, &["io", "-f", "raw", "-c", "write 0 512", served.uri()]).exited(1);
    assert!(ours.stderr.contains("read-only"), "{}", ours.stderr);
    run(dir, "qemu-io", &["-r", "-f", "raw", "-c", "read -P 0 0 512", served.uri()]).exited(0);
    served.stop().exited(0);
    assert!(std::fs::read(dir.join("a.raw")).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn port_0_becomes_the_real_port() {
    let dir = images();
    let dir = dir.path();
    // The shell starts the server, reads its first line, and uses it as it is.
    let line = "exec 3< <(exec blkproof serve --tcp 0 -x disk -f raw a.raw); pid=$!; read -r uri <&3; echo $uri; \
                nbdinfo --size $uri; kill $pid; wait $pid";
    let outcome = shell(dir, line).exited(0).stdout;
    let (uri, size) = outcome.split_once('\n').unwrap();
    let port: u16 = uri.strip_prefix("nbd://127.0.0.1:").unwrap().strip_suffix("/disk").unwrap().parse().unwrap();
    assert_ne!(port, 0);
    assert_eq!(size, "8388608\n");
    for (address, says) in [("1.2.3.4:5", "Cannot assign requested address"), ("127.0.0.1:99999", "invalid port value")]
    {
        let outcome = blkproof(dir, &["serve", "--tcp", address, "-f", "raw", "a.raw"]).exited(1);
        assert_eq!(outcome.stderr, format!("error: could not listen on '{address}': {says}\n"));
    }
}

#[test]
fn what_stands_at_the_sockets_path() {
    let dir = images();
    let dir = dir.path();
    let serve =
        |path: &str, image: &str| blkproof(dir, &["serve", "--unix", path, "-f", "raw", image]).exited(1).stderr;
    // A socket nobody listens on goes.
    drop(std::os::unix::net::UnixListener::bind(dir.join("nbd.sock")).unwrap());
    let mut served = Served::start(dir, 1, &["-f", "raw", "a.raw"]);
    run(dir, "nbdinfo", &["--size", served.uri()]).exited(0);
    // One that is listened on stays, and so does everything else.
    assert_eq!(serve("nbd.sock", "b.raw"), "error: could not listen on 'nbd.sock': another process listens on it\n");
    run(dir, "nbdinfo", &["--size", served.uri()]).exited(0);
    std::fs::write(dir.join("file"), "precious").unwrap();
    let refused = serve("file", "b.raw");
    assert_eq!(refused, "error: could not listen on 'file': it exists and is not a socket; name another path\n");
    assert_eq!(std::fs::read(dir.join("file")).unwrap(), b"precious");
    assert_eq!(serve("nodir/x", "b.raw"), "error: could not listen on 'nodir/x': No such file or directory\n");
    served.stop().exited(0);
    assert!(!served.socket.exists(), "the socket goes with its server");
    // And no other one.
    let mut first = Served::start(dir, 1, &["-f", "raw", "a.raw"]);
    std::fs::rename(dir.join("nbd.sock"), dir.join("moved.sock")).unwrap();
    let mut second = Served::start(dir, 1, &["-f", "raw", "b.raw"]);
    first.stop().exited(0);
    run(dir, "nbdinfo", &["--size", second.uri()]).exited(0);
    second.stop().exited(0);
}

#[test]
fn two_servers_of_one_image_are_refused() {
    let dir = images();
    let dir = dir.path();
    run(dir, "qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2"]).exited(0);
    for (format, image) in [("raw", "a.raw"), ("qcow2", "a.qcow2")] {
        let mut served = Served::start(dir, 1, &["-f", format, image]);
        for more in [&[][..], &["--read-only"]] {
            let outcome =
                blkproof(dir, &[&["serve", "--unix", "2.sock", "-f", format][..], more, &[image]].concat()).exited(1);
            assert!(outcome.stderr.starts_with(&format!("error: could not open '{image}': ")), "{}", outcome.stderr);
            assert!(outcome.stderr.contains("another process is using the file\nhint: "), "{}", outcome.stderr);
        }
        let theirs = run(dir, "qemu-io", &["-f", format, "-c", "read 0 512", image]).exited(1);
        assert!(theirs.stderr.contains("lock"), "QEMU sees the lock too: {}", theirs.stderr);
        served.stop().exited(0);
    }
    // Any number may read.
    let mut first = Served::start(dir, 1, &["--read-only", "-f", "raw", "a.raw"]);
    blkproof(dir, &["map", "-f", "raw", "a.raw"]).exited(0);
    first.stop().exited(0);
}

/// SIGTERM with requests in flight: each is answered, and what was acknowledged is in the file.
#[test]
fn what_is_in_flight_at_sigterm_is_answered() {
    let dir = images();
    let dir = dir.path();
    for (format, options) in [("raw", ""), ("qcow2", "-o cluster_size=4k"), ("vdi", "")] {
        shell(dir, &format!("rm -f t.img; blkproof create -q -f {format} {options} t.img 64M")).exited(0);
        let mut served = Served::start(dir, 1, &["-f", format, "t.img"]);
        let script = format!(
            "
import os, signal
done, failed = [], []
def landed(i):
    def callback(error):
        (failed if error.value else done).append(i)
        return 1
    return callback
count = 512
buffers = [nbd.Buffer.from_bytearray(bytearray((i % 255 + 1).to_bytes(1, 'little') * 4096)) for i in range(count)]
try:
    for i in range(count):
        h.aio_pwrite(buffers[i], i * 65536, landed(i))
    while len(done) < 16:
        h.poll(-1)
    os.kill({}, signal.SIGTERM)
    while h.aio_in_flight():
        h.poll(-1)
except nbd.Error:
    pass
open('done', 'w').write(' '.join(map(str, done)))
print(len(done) >= 16, len(done) + len(failed) <= count)",
            served.pid()
        );
        assert_eq!(nbdsh(dir, served.uri(), &script).exited(0).stdout, "True True\n", "{format}");
        served.stop().exited(0);
        if format != "raw" {
            run(dir, "qemu-img", &["check", "-f", format, "t.img"]).exited(0);
        }
        run(dir, "qemu-img", &["convert", "-f", format, "-O", "raw", "t.img", "flat"]).exited(0);
        let flat = std::fs::read(dir.join("flat")).unwrap();
        for number in std::fs::read_to_string(dir.join("done")).unwrap().split_whitespace() {
            let number: usize = number.parse().unwrap();
            let want = u8::try_from(number % 255 + 1).unwrap();
            let got = &flat[number * 65536..][..4096];
            assert!(got.iter().all(|byte| *byte == want), "{format}: write {number} was acknowledged");
        }
    }
}

#[test]
fn clients_come_together_up_to_a_limit() {
    let dir = images();
    let dir = dir.path();
    let mut served = Served::start(dir, 1, &["-v", "--max-connections", "2", "-f", "raw", "a.raw"]);
    let script = format!(
        "
uri = '{}'
second = nbd.NBD()
second.connect_uri(uri)
h.pwrite(b'x' * 512, 0)
h.flush()
print(second.pread(512, 0) == b'x' * 512)
def connected():
    third = nbd.NBD()
    try:
        third.connect_uri(uri)
    except nbd.Error:
        return None
    print(third.pread(512, 0) == b'x' * 512)
    third.shutdown()
    return third
print(connected())
second.shutdown()
while not connected():
    pass
h.shutdown()",
        served.uri()
    );
    assert_eq!(nbdsh(dir, served.uri(), &script).exited(0).stdout, "True\nNone\nTrue\n");
    let outcome = served.stop().exited(0);
    let (left, refused): (Vec<_>, Vec<_>) = outcome.stderr.lines().partition(|line| line.contains(" left "));
    assert_eq!(left.len(), 3, "{left:?}");
    for line in left {
        assert!(line.starts_with("process ") && line.contains(" requests, 0 errors, "), "{line}");
    }
    assert!(!refused.is_empty());
    for line in refused {
        assert!(
            line.starts_with("warning: process ") && line.ends_with(": too many connections; 2 are allowed"),
            "{line}"
        );
    }
}
