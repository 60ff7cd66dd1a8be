//! What the tests of the binary share: running it, serving with it, running its peers.
#![allow(missing_docs, dead_code, clippy::unwrap_used, clippy::panic, unreachable_pub)]

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What a program said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Asserts the exit status and returns what was printed.
    #[track_caller]
    pub fn exited(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }
}

/// Runs a program in `dir`; fails loudly if it is not installed (`scripts/install-peers` does that).
#[track_caller]
pub fn run<S: AsRef<OsStr>>(dir: &Path, program: &str, args: &[S]) -> Outcome {
    let output = Command::new(program)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .env("NO_COLOR", "1")
        .output()
        .unwrap_or_else(|error| panic!("{program} can not be started ({error}); run scripts/install-peers"));
    Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs the binary under test.
#[track_caller]
pub fn blkproof<S: AsRef<OsStr>>(dir: &Path, args: &[S]) -> Outcome {
    run(dir, env!("CARGO_BIN_EXE_blkproof"), args)
}

/// Runs a shell command line, with `blkproof` first in the path.
#[track_caller]
pub fn shell(dir: &Path, line: &str) -> Outcome {
    let bin = Path::new(env!("CARGO_BIN_EXE_blkproof")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", line])
        .current_dir(dir)
        .env("PATH", path)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A server of the binary under test on a Unix socket; ended with SIGTERM.
pub struct Served {
    child: Option<Child>,
    pub uris: Vec<String>,
    pub socket: PathBuf,
}

impl Served {
    /// Starts `blkproof serve --unix … ARGS` and waits until it has printed `exports` URIs.
    #[track_caller]
    pub fn start<S: AsRef<OsStr>>(dir: &Path, exports: usize, args: &[S]) -> Self {
        let socket = dir.join("nbd.sock");
        let mut child = Command::new(env!("CARGO_BIN_EXE_blkproof"))
            .arg("serve")
            .arg("--unix")
            .arg(&socket)
            .args(args)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let uris: Vec<String> = lines.take(exports).map(Result::unwrap).collect();
        let mut served = Self { child: Some(child), uris, socket };
        if served.uris.len() < exports {
            let outcome = served.stop();
            panic!("serve ended early: {outcome:?}");
        }
        served
    }

    /// The first export's URI.
    pub fn uri(&self) -> &str {
        &self.uris[0]
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Sends SIGTERM and waits; the standard output holds what came after the URIs were read.
    pub fn stop(&mut self) -> Outcome {
        let mut child = self.child.take().unwrap();
        let _ = Command::new("kill").arg(child.id().to_string()).status();
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let status = child.wait().unwrap();
        Outcome { code: status.code().unwrap_or(-1), stdout: String::new(), stderr }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
