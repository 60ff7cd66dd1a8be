//! `blkproof serve` as a service: who is told that it is ready, which process it is, how it ends, and statistics over
//! HTTP.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Served, blkproof, shell};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::{TempDir, tempdir};

fn image() -> TempDir {
    let dir = tempdir().unwrap();
    shell(dir.path(), "truncate -s 1M a.raw; truncate -s 1M b.raw").exited(0);
    dir
}

#[test]
fn the_ready_fd_gets_the_uris_and_is_closed() {
    let dir = image();
    let dir = dir.path();
    // `cat` ends when the descriptor is closed, while the server still runs.
    let line = "mkfifo ready; blkproof serve --unix s -f raw --ready-fd 3 a.raw 3>ready >out & pid=$!; cat ready; \
                nbdinfo --size \"nbd+unix:///?socket=s\"; kill $pid; wait $pid; cat out";
    let said = shell(dir, line).exited(0).stdout;
    assert_eq!(said, "nbd+unix:///?socket=s\nREADY\n1048576\nnbd+unix:///?socket=s\n");
    let closed = shell(dir, "blkproof serve --unix s -f raw --ready-fd 9 a.raw 9>&- 2>&1 || true").stdout;
    assert!(
        closed.ends_with("error: could not write to file descriptor 9 (--ready-fd): No such file or directory\n"),
        "{closed}"
    );
    assert!(!dir.join("s").exists());
}

#[test]
fn the_pid_file_is_there_while_the_server_is() {
    let dir = image();
    let dir = dir.path();
    let pid_file = dir.join("pid");
    // One that was left behind, by whatever process.
    std::fs::write(&pid_file, "1\n").unwrap();
    let args = ["--ready-fd", "1", "--pid-file", "pid", "-f", "raw", "a.raw"];
    let mut served = Served::start(dir, 3, &args);
    assert_eq!(served.uris[2], "READY");
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), format!("{}\n", served.pid()));
    let second = |image: &str| {
        blkproof(dir, &["serve", "--unix", "2", "--pid-file", "pid", "-f", "raw", image]).exited(1).stderr
    };
    assert_eq!(second("b.raw"), format!("error: process {} is running and uses 'pid' (--pid-file)\n", served.pid()));
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), format!("{}\n", served.pid()));
    served.stop().exited(0);
    assert!(!pid_file.exists());
    // What is no pid file is left alone.
    for content in ["precious", "12345678901234567890123", "\u{0}"] {
        std::fs::write(&pid_file, content).unwrap();
        assert!(second("b.raw").contains("holds something else than the number of a process"));
        assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), content);
    }
    // A server that does not come up leaves none.
    std::fs::remove_file(&pid_file).unwrap();
    second("nix.raw");
    assert!(!pid_file.exists());
    // One that is killed leaves it, and the next one takes it.
    drop(Served::start(dir, 3, &args));
    assert!(pid_file.exists());
    Served::start(dir, 3, &args).stop().exited(0);
    assert!(!pid_file.exists());
}

fn spawn(dir: &Path, command: &mut Command) -> Child {
    command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn systemd_hears_when_it_is_ready_reloads_and_stops() {
    let dir = image();
    let dir = dir.path();
    std::fs::write(dir.join("lab.toml"), "[[export]]\nname = \"a\"\ngraph = \"a.raw\"\nformat = \"raw\"\n").unwrap();
    let socket = UnixDatagram::bind(dir.join("notify")).unwrap();
    let heard = || {
        let mut buf = [0; 1024];
        let len = socket.recv(&mut buf).unwrap();
        String::from_utf8_lossy(&buf[..len]).into_owned()
    };
    let mut child = spawn(
        dir,
        Command::new(env!("CARGO_BIN_EXE_blkproof"))
            .args(["serve", "--unix", "s", "--config", "lab.toml"])
            .env("NOTIFY_SOCKET", dir.join("notify")),
    );
    let pid = child.id().to_string();
    assert_eq!(heard(), format!("READY=1\nSTATUS=serving\nMAINPID={pid}"));
    Command::new("kill").args(["-HUP", &pid]).status().unwrap();
    let reloading = heard();
    let (first, time) = reloading.split_once('\n').unwrap();
    assert_eq!(first, "RELOADING=1");
    assert!(time.strip_prefix("MONOTONIC_USEC=").unwrap().parse::<u64>().unwrap() > 0);
    assert!(heard().starts_with("READY=1\n"));
    Command::new("kill").arg(&pid).status().unwrap();
    assert_eq!(heard(), "STOPPING=1");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_socket_that_was_opened_before() {
    let dir = image();
    let dir = dir.path();
    // What systemd does, in Python: descriptors from 3 on, and two variables.
    let script = "
import os, socket, sys
unix = socket.socket(socket.AF_UNIX); unix.bind('activated'); unix.listen()
tcp = socket.socket(); tcp.bind(('127.0.0.1', 0)); tcp.listen()
os.dup2(unix.fileno(), 13); os.dup2(tcp.fileno(), 14)
os.dup2(13, 3); os.dup2(14, 4)
os.environ['LISTEN_FDS'] = '2'
os.environ['LISTEN_PID'] = str(os.getpid())
os.execv(sys.argv[1], ['blkproof', 'serve', '-f', 'raw', 'a.raw'])";
    let mut child = spawn(dir, Command::new("/usr/bin/python3").args(["-c", script, env!("CARGO_BIN_EXE_blkproof")]));
    let uris: Vec<String> = BufReader::new(child.stdout.take().unwrap()).lines().take(2).map(Result::unwrap).collect();
    assert!(uris[0].ends_with(":///?socket=activated") && uris[1].starts_with("nbd://127.0.0.1:"), "{uris:?}");
    for uri in &uris {
        assert_eq!(common::run(dir, "nbdinfo", &["--size", uri]).exited(0).stdout, "1048576\n");
    }
    Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(dir.join("activated").exists(), "it is another's");
}

fn http(place: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(place).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // A server that has heard enough may close before all is sent.
    let _ = stream.write_all(request);
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    String::from_utf8_lossy(&reply).into_owned()
}

#[test]
fn statistics_for_prometheus() {
    let dir = image();
    let dir = dir.path();
    let mut child = spawn(
        dir,
        Command::new(env!("CARGO_BIN_EXE_blkproof")).args([
            "serve",
            "--unix",
            "s",
            "--prometheus",
            "0",
            "-f",
            "raw",
            "a.raw",
        ]),
    );
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let place =
        line.trim_end().strip_prefix("statistics: http://").unwrap().strip_suffix("/metrics").unwrap().to_owned();
    assert!(place.starts_with("127.0.0.1:"), "loopback");
    let mut uri = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut uri).unwrap();
    common::run(dir, "qemu-io", &["-f", "raw", "-c", "write 0 64k", uri.trim_end()]).exited(0);
    let reply = http(&place, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(reply.starts_with("HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{reply}");
    assert!(reply.contains("{node=\"stats\",op=\"write\"} 65536\n"), "{reply}");
    let length: usize = reply.split("Content-Length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
    assert_eq!(reply.split_once("\r\n\r\n").unwrap().1.len(), length);
    assert!(http(&place, b"HEAD /metrics HTTP/1.0\r\n\r\n").ends_with("\r\n\r\n"));
    for (request, status) in [
        (&b"GET /other HTTP/1.0\r\n\r\n"[..], "404 "),
        (b"POST /metrics HTTP/1.0\r\n\r\n", "405 "),
        (b"\r\n\r\n", "400 "),
        (b"\xff\xfe \x00\r\n\r\n", "405 "),
        (b"GET /metrics?x=1 HTTP/1.0\n\n", "200 "),
    ] {
        let reply = http(&place, request);
        assert!(reply.starts_with(&format!("HTTP/1.0 {status}")), "{request:?}: {reply}");
    }
    // Too much, and never an end; nothing at all; more clients than are answered at a time.
    let long = http(&place, &vec![b'x'; 1 << 20]);
    assert!(long.is_empty() || long.starts_with("HTTP/1.0 400 "), "{long}");
    let idle: Vec<TcpStream> = (0..15).map(|_| TcpStream::connect(&place).unwrap()).collect();
    assert!(http(&place, b"GET /metrics HTTP/1.0\r\n\r\n").contains(" 200 OK"));
    common::run(dir, "qemu-io", &["-f", "raw", "-c", "read 0 64k", uri.trim_end()]).exited(0);
    drop(idle);
    Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(child.wait().unwrap().success());
}

/// SIGTERM and `quit` are one end: what is held is done, questions have their default, and the process ends at once.
#[test]
fn quit_lets_go_what_is_held() {
    let dir = image();
    let dir = dir.path();
    std::fs::write(
        dir.join("rules.toml"),
        "[[rule]]\non = { op = \"write\", lba = 1 }\ndo = { hold = \"t\" }\n\
         [[rule]]\non = { op = \"write\", lba = 2 }\ndo = { delay = \"1h\" }\n",
    )
    .unwrap();
    let mut served = Served::start(dir, 1, &["--rules", "rules.toml", "--control", "c.sock", "-f", "raw", "a.raw"]);
    let script = "
import subprocess
done = []
def landed(n):
    def callback(error):
        done.append((n, error.value))
        return 1
    return callback
for n in (1, 2):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([n]) * 512), n * 512, landed(n))
h.pread(512, 0)
subprocess.run(['blkproof', 'ctl', 'c.sock', 'quit'], check=True)
try:
    while h.aio_in_flight():
        h.poll(-1)
except nbd.Error:
    pass
print(sorted(done))";
    let line = format!("/usr/bin/python3 -m nbd -u '{}' -c \"$SCRIPT\"", served.uri());
    let said = shell(dir, &format!("export SCRIPT={}\n{line}", quoted(script))).exited(0).stdout;
    assert_eq!(said, "[(1, 0), (2, 0)]\n");
    let stopped = served.stop();
    assert_eq!((stopped.code, stopped.stderr.contains("leaving it behind")), (0, false), "{}", stopped.stderr);
    let bytes = std::fs::read(dir.join("a.raw")).unwrap();
    assert_eq!((bytes[512], bytes[1024]), (1, 2));
}

/// A word for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
