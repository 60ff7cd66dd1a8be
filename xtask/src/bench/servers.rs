//! The servers that race, each over a Unix socket of its own.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::shell;

/// What is exported.
#[derive(Clone)]
pub(super) enum Served {
    Raw(PathBuf),
    Mirror {
        raw: PathBuf,
        qcow2: PathBuf,
    },
    /// A raw image under a filter of ours that has nothing to do.
    Under {
        filter: &'static str,
        raw: PathBuf,
    },
    /// A raw image with a control socket beside that of the server.
    Controlled {
        raw: PathBuf,
    },
}

pub(super) enum Server {
    Blkproof(Served),
    QemuNbd(Served),
    Nbdkit(PathBuf),
}

impl Server {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Blkproof(Served::Under { filter, .. }) => filter,
            Self::Blkproof(Served::Controlled { .. }) => "blkproof, asking",
            Self::Blkproof(_) => "blkproof",
            Self::QemuNbd(_) => "qemu-nbd",
            Self::Nbdkit(_) => "nbdkit file",
        }
    }

    /// The images it serves.
    pub(super) fn images(&self) -> Vec<&Path> {
        match self {
            Self::Blkproof(Served::Mirror { raw, qcow2 }) | Self::QemuNbd(Served::Mirror { raw, qcow2 }) => {
                vec![raw, qcow2]
            }
            Self::Blkproof(Served::Raw(raw) | Served::Under { raw, .. } | Served::Controlled { raw })
            | Self::QemuNbd(Served::Raw(raw) | Served::Under { raw, .. } | Served::Controlled { raw })
            | Self::Nbdkit(raw) => vec![raw],
        }
    }

    /// The command line, as a user would type it.
    pub(super) fn command(&self, socket: &Path) -> Vec<String> {
        let control = socket.with_extension("control");
        let control = control.display();
        let socket = socket.display();
        let words = match self {
            Self::Blkproof(Served::Raw(raw)) => format!("blkproof serve --unix {socket} -f raw {}", raw.display()),
            Self::Blkproof(Served::Mirror { raw, qcow2 }) => {
                format!("blkproof serve --unix {socket} blkverify:{}:{}", raw.display(), qcow2.display())
            }
            Self::Blkproof(Served::Under { filter, raw }) => format!(
                "blkproof serve --unix {socket} --image-opts driver={filter},file.driver=raw,file.file.driver=file,\
                 file.file.filename={}",
                raw.display()
            ),
            Self::Blkproof(Served::Controlled { raw }) => {
                format!("blkproof serve --unix {socket} --control {control} -f raw {}", raw.display())
            }
            Self::QemuNbd(Served::Raw(raw) | Served::Under { raw, .. } | Served::Controlled { raw }) => {
                format!("qemu-nbd -t -k {socket} -f raw {}", raw.display())
            }
            Self::QemuNbd(Served::Mirror { raw, qcow2 }) => format!(
                "qemu-nbd -t -k {socket} --image-opts driver=blkverify,raw.driver=raw,raw.file.driver=file,\
                 raw.file.filename={},test.driver=qcow2,test.file.driver=file,test.file.filename={}",
                raw.display(),
                qcow2.display()
            ),
            Self::Nbdkit(raw) => format!("nbdkit -f -U {socket} file {}", raw.display()),
        };
        words.split(' ').map(str::to_owned).collect()
    }

    pub(super) fn start(&self, dir: &Path) -> anyhow::Result<Running> {
        let socket = dir.join(format!("{}.sock", self.name().replace([' ', ','], "-")));
        let _ = std::fs::remove_file(&socket);
        let words = self.command(&socket);
        let (program, args) = words.split_first().context("a command has a program")?;
        let program = match program.as_str() {
            "blkproof" => shell::blkproof(),
            other => PathBuf::from(other),
        };
        let child = Command::new(&program)
            .args(args)
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut running = Running { child, socket };
        let patience = Instant::now() + Duration::from_secs(10);
        while UnixStream::connect(&running.socket).is_err() {
            if let Some(status) = running.child.try_wait()? {
                bail!("`{}` ended before it listened: {status}", words.join(" "));
            }
            if Instant::now() > patience {
                bail!("`{}` does not listen", words.join(" "));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(running)
    }
}

/// A server; killed when dropped.
pub(super) struct Running {
    child: Child,
    socket: PathBuf,
}

impl Running {
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
