//! Telling whoever started the server: that it is ready, that it reloads, that it stops, which process it is.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::FlockOperation;
use rustix::time::{ClockId, clock_gettime};

/// A file descriptor that was handed down to tell on when the server is ready.
pub(super) struct ReadyFd(File);

impl ReadyFd {
    /// Refuses numbers that can not be meant.
    pub(super) fn parse(text: &str) -> Result<i32, String> {
        let number = text.parse().map_err(|_| format!("'{text}' is no number of a file descriptor"))?;
        if number > 0 { Ok(number) } else { Err("standard input is not written to".to_owned()) }
    }

    /// Takes the descriptor over. To be done before anything else is opened: a number that was not handed down would be
    /// given to a file of ours.
    pub(super) fn take(number: i32) -> anyhow::Result<Self> {
        let file = OpenOptions::new().append(true).open(format!("/proc/self/fd/{number}"));
        let file = file.with_context(|| format!("could not write to file descriptor {number} (--ready-fd)"))?;
        if number > 2 {
            // Whoever reads at the other end sees the end when ours is closed.
            nix::unistd::close(number).with_context(|| format!("closing file descriptor {number} (--ready-fd)"))?;
        }
        Ok(Self(file))
    }

    /// Writes `lines`, then `READY`, and closes it.
    pub(super) fn tell(mut self, lines: &[String]) -> anyhow::Result<()> {
        let mut text = lines.join("\n");
        text.push_str("\nREADY\n");
        self.0.write_all(text.as_bytes()).context("telling that the server is ready (--ready-fd)")
    }
}

/// Tells systemd, if it asked to be told (`NOTIFY_SOCKET`).
///
/// Source: sd_notify(3).
pub(super) struct Systemd(Option<(UnixDatagram, SocketAddr)>);

impl Systemd {
    pub(super) fn from_env() -> anyhow::Result<Self> {
        let Some(place) = std::env::var_os("NOTIFY_SOCKET").filter(|place| !place.is_empty()) else {
            return Ok(Self(None));
        };
        let text = place.to_string_lossy();
        let address = match text.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(Path::new(&place)),
        };
        let address = address.with_context(|| format!("'{text}' (NOTIFY_SOCKET) is no address"))?;
        let socket = UnixDatagram::unbound().context("making a socket for NOTIFY_SOCKET")?;
        socket.set_nonblocking(true)?;
        Ok(Self(Some((socket, address))))
    }

    pub(super) fn ready(&self, words: &str) {
        self.tell(&format!("READY=1\nSTATUS={words}\nMAINPID={}", std::process::id()));
    }

    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, words: &str) {
        if let Some((socket, address)) = &self.0 {
            // Nobody there, or nobody who reads: the server is for its clients.
            let _ = socket.send_to_addr(words.as_bytes(), address);
        }
    }
}

/// A file with the number of this process. It is locked as long as the process lives, so that one that was left behind
/// can be told from one that is in use, whatever number stands in it.
pub(super) struct PidFile {
    file: File,
    path: PathBuf,
}

impl PidFile {
    /// Takes the file; nothing is in it until [`write`](Self::write).
    pub(super) fn take(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .with_context(|| format!("could not open '{name}' (--pid-file)"))?;
            let mut old = String::new();
            let is_ours = file.metadata()?.is_file() && file.metadata()?.len() <= 20;
            if !is_ours
                || file.read_to_string(&mut old).is_err()
                || !old.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_whitespace())
            {
                bail!("'{name}' holds something else than the number of a process; name another file (--pid-file)");
            }
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => match old.trim() {
                    "" => bail!("another process that is starting uses '{name}' (--pid-file)"),
                    number => bail!("process {number} is running and uses '{name}' (--pid-file)"),
                },
                Err(error) => return Err(error).with_context(|| format!("locking '{name}' (--pid-file)")),
            }
            // Whoever had it may have removed it between opening and locking.
            let (mine, there) = (file.metadata()?, std::fs::metadata(path).ok());
            if there.is_some_and(|there| (there.dev(), there.ino()) == (mine.dev(), mine.ino())) {
                file.set_len(0)?;
                return Ok(Self { file, path: path.to_owned() });
            }
        }
    }

    pub(super) fn write(&mut self) -> anyhow::Result<()> {
        self.file.rewind()?;
        writeln!(self.file, "{}", std::process::id()).with_context(|| format!("writing '{}'", self.path.display()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // While the lock is held: it is still this process's.
        let _ = std::fs::remove_file(&self.path);
    }
}
