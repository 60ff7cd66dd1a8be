//! `reconnect-delay` and `open-timeout` with a real server: qemu-nbd, killed amid writes and started again.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use common::{Outcome, run};
use tempfile::tempdir;

const PIECE: usize = 64 << 10;

/// qemu-nbd, ended with SIGKILL.
struct Server(Child);

impl Server {
    fn start(dir: &Path, shared: &str) -> Self {
        let child = Command::new("qemu-nbd")
            .args(["--persistent", "--format=raw", "--shared", shared, "--socket"])
            .arg(dir.join("s"))
            .arg(dir.join("disk.raw"))
            .spawn()
            .unwrap_or_else(|error| panic!("qemu-nbd can not be started ({error}); run scripts/install-peers"));
        Self(child)
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").arg(name).arg(self.0.id().to_string()).status().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `blkproof io`, told what to do line by line.
struct Io {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    said: String,
}

impl Io {
    fn start(dir: &Path, more: &[&str], options: &str) -> Self {
        let graph = format!("driver=nbd,server.type=unix,server.path=s,open-timeout=60{options}");
        let mut child = Command::new(env!("CARGO_BIN_EXE_blkproof"))
            .arg("io")
            .args(more)
            .args(["--image-opts", &graph])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output, said: String::new() }
    }

    fn tell(&mut self, lines: &str) {
        self.input.as_mut().unwrap().write_all(lines.as_bytes()).unwrap();
    }

    /// Waits until everything told so far is done, or under way.
    fn sync(&mut self) {
        self.tell("length\n");
        loop {
            let before = self.said.len();
            assert!(self.output.read_line(&mut self.said).unwrap() > 0, "io ended: {}", self.said);
            if self.said[before..].trim() == "1 MiB" {
                return;
            }
        }
    }

    fn end(mut self) -> Outcome {
        self.input = None;
        self.output.read_to_string(&mut self.said).unwrap();
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        Outcome { code: self.child.wait().unwrap().code().unwrap_or(-1), stdout: self.said, stderr }
    }
}

/// Four writes are done, eight are in flight when the server is killed.
fn killed_amid_writes(dir: &Path, shared: &str, more: &[&str], options: &str) -> Outcome {
    run(dir, "qemu-img", &["create", "-q", "-f", "raw", "disk.raw", "1M"]).exited(0);
    // There is no server yet.
    let mut io = Io::start(dir, more, options);
    let server = Server::start(dir, shared);
    for piece in 0..4 {
        io.tell(&format!("write -q -P {} {}k 64k\n", piece + 1, piece * 64));
    }
    io.sync();
    // It takes what the socket holds, and no more.
    server.signal("-STOP");
    for piece in 4..12 {
        io.tell(&format!("aio_write -q -P {} {}k 64k\n", piece + 1, piece * 64));
    }
    io.sync();
    drop(server);
    let _server = Server::start(dir, shared);
    io.tell("aio_flush\nwrite -q -P 13 768k 64k\nread -q -P 1 0 64k\nflush\n");
    io.end()
}

fn assert_written(dir: &Path) {
    let disk = std::fs::read(dir.join("disk.raw")).unwrap();
    for (piece, bytes) in disk.chunks(PIECE).enumerate() {
        let want = if piece < 13 { u8::try_from(piece + 1).unwrap() } else { 0 };
        assert!(bytes.iter().all(|&byte| byte == want), "piece {piece}");
    }
}

#[test]
fn a_run_survives_the_death_of_its_server() {
    // A cache that all connections share, or no write that is not durable, which is what qemu-io does if not told.
    for (shared, more) in [("2", &["-t", "writeback"][..]), ("1", &["-t", "writethrough"]), ("1", &[])] {
        let dir = tempdir().unwrap();
        let outcome = killed_amid_writes(dir.path(), shared, more, ",reconnect-delay=60").exited(0);
        assert_eq!(outcome.stderr, "", "--shared={shared}");
        assert_written(dir.path());
    }
}

#[test]
fn writes_that_nobody_can_flush_any_more_are_not_forgotten() {
    let dir = tempdir().unwrap();
    let outcome = killed_amid_writes(dir.path(), "1", &["-t", "writeback"], ",reconnect-delay=60").exited(1);
    let said = format!("{}{}", outcome.stdout, outcome.stderr);
    assert!(said.contains("flush failed: Input/output error") || said.contains("never flushed"), "{said}");
    // Here they are in the page cache, but that is more than the protocol tells.
    assert_written(dir.path());
}

#[test]
fn without_the_option_a_lost_connection_is_lost() {
    for options in ["", ",reconnect-delay=0"] {
        let dir = tempdir().unwrap();
        let outcome = killed_amid_writes(dir.path(), "2", &[], options).exited(1);
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        assert_eq!(
            said.matches("aio_write failed: Cannot send after transport endpoint shutdown").count(),
            8,
            "{said}"
        );
        assert!(said.contains("write failed: Cannot send after transport endpoint shutdown"), "{said}");
        let disk = std::fs::read(dir.path().join("disk.raw")).unwrap();
        assert!(disk[12 * PIECE..].iter().all(|&byte| byte == 0), "nothing was sent after the loss");
    }
}
