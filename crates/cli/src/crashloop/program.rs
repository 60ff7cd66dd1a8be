//! A program of the user: started by the shell in a process group of its own, listened to, and never left behind.

use std::cell::RefCell;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

/// What is kept of each of a program's streams: more than anybody reads of one run.
const KEPT: usize = 16 << 20;

/// Time for a program to end by itself when its disk is gone, and for its streams to end when it has.
const GRACE: Duration = Duration::from_secs(2);

/// How a program ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) how: How,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum How {
    /// By itself.
    Itself(ExitStatus),
    /// It did not see that its disk was gone, and was killed.
    Killed,
    /// It took longer than it may.
    TooLong,
}

impl How {
    /// The exit status of a program that has one.
    pub(super) fn code(self) -> Option<i32> {
        match self {
            Self::Itself(status) => status.code(),
            Self::Killed | Self::TooLong => None,
        }
    }

    pub(super) fn words(self) -> String {
        match self {
            Self::Itself(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("ended with status {code}"),
                (None, Some(signal)) => format!("was ended by signal {signal}"),
                (None, None) => "ended".into(),
            },
            Self::Killed => "was killed".into(),
            Self::TooLong => "did not end in time".into(),
        }
    }
}

impl Ended {
    /// The last lines of what it complained of.
    pub(super) fn complaint(&self) -> String {
        let text = String::from_utf8_lossy(&self.stderr);
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines.get(lines.len().saturating_sub(3)..).unwrap_or_default().join("; ")
    }
}

/// Runs a command line. `gone` completes when the disk is gone: the program has [`GRACE`] from then on, as any error
/// handler would need it, and `patience` in all. Whatever it started in its process group ends with it.
pub(super) async fn run(line: &str, gone: impl Future<Output = ()>, patience: Duration) -> anyhow::Result<Ended> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", line]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut group = Group::start(&mut command)?;
    let stdout = Ear::on(group.child.stdout.take().map(OwnedFd::from))?;
    let stderr = Ear::on(group.child.stderr.take().map(OwnedFd::from))?;
    let ended = tokio::select! {
        biased;
        () = group.ended() => None,
        () = async { gone.await; tokio::time::sleep(GRACE).await } => Some(How::Killed),
        () = tokio::time::sleep(patience) => Some(How::TooLong),
    };
    let status = group.end().with_context(|| format!("waiting for '{line}'"))?;
    let streams_end = async {
        stdout.silence().await;
        stderr.silence().await;
    };
    // Only what has left the group can have the streams still: it is not waited for.
    let _ = tokio::time::timeout(GRACE, streams_end).await;
    Ok(Ended { how: ended.unwrap_or(How::Itself(status)), stdout: stdout.heard(), stderr: stderr.heard() })
}

/// A process group. Its leader is not waited for before the others are gone, so that its number stays its own.
struct Group {
    child: Child,
    leader: Option<Pid>,
}

impl Group {
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        let child = command.spawn().context("could not start /bin/sh")?;
        let leader = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(Self { child, leader })
    }

    /// Completes when the leader has ended.
    async fn ended(&self) {
        let Some(leader) = self.leader else { return };
        // NOWAIT: it is only looked at. An error means that there is nobody to wait for.
        let wait = move || waitid(WaitId::Pid(leader), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).map(drop);
        let _ = tokio::task::spawn_blocking(wait).await;
    }

    /// Ends everybody.
    fn end(&mut self) -> std::io::Result<ExitStatus> {
        if let Some(leader) = self.leader.take() {
            // An error means that nobody is left.
            let _ = kill_process_group(leader, Signal::KILL);
        }
        self.child.wait()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Nobody is there to be told of an error.
        let _ = self.end();
    }
}

/// Listens to a stream as long as it lives.
struct Ear {
    heard: Rc<RefCell<Vec<u8>>>,
    task: RefCell<Option<JoinHandle<()>>>,
}

impl Ear {
    fn on(stream: Option<OwnedFd>) -> anyhow::Result<Self> {
        let heard = Rc::new(RefCell::new(Vec::new()));
        let into = Rc::clone(&heard);
        let stream = stream.context("a stream is missing")?;
        let mut stream = pipe::Receiver::from_owned_fd(stream).context("listening to a program")?;
        let task = tokio::task::spawn_local(async move {
            let mut chunk = vec![0; 64 << 10];
            while let Ok(len @ 1..) = stream.read(&mut chunk).await {
                let mut heard = into.borrow_mut();
                let room = KEPT.saturating_sub(heard.len()).min(len);
                heard.extend_from_slice(chunk.get(..room).unwrap_or_default());
            }
        });
        Ok(Self { heard, task: RefCell::new(Some(task)) })
    }

    /// Completes when the stream has ended.
    async fn silence(&self) {
        let task = self.task.take();
        if let Some(mut task) = task {
            let _abort = Abort(task.abort_handle());
            // It does not panic, and is aborted by nobody else.
            let _ = (&mut task).await;
        }
    }

    fn heard(&self) -> Vec<u8> {
        self.heard.take()
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

struct Abort(tokio::task::AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A word as the shell takes it literally.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
