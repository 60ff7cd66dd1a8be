//! `qemu-img check` as the other opinion.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::qcow2::{BACKING, DATA_FILE};
use super::sparse::Sparse;

/// A folder for images, in memory where there is such a place.
pub struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let bench = Self { dir: dir.unwrap() };
        // The files generated images name.
        for name in [BACKING, DATA_FILE] {
            std::fs::File::create(bench.path(name)).unwrap().set_len(1 << 40).unwrap();
        }
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What `qemu-img check` makes of an image.
    pub fn check(&self, format: &str, image: &Sparse) -> Opinion {
        let path = self.path("image");
        image.to_file(&path);
        let done = Command::new("qemu-img")
            .args(["check", "-f", format])
            .arg(&path)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("qemu-img is needed: {error}"));
        let words = [done.stdout, done.stderr].concat();
        Opinion {
            status: done.status.code().unwrap_or_else(|| -done.status.signal().unwrap_or(1)),
            words: String::from_utf8_lossy(&words).chars().take(1500).collect(),
        }
    }
}

/// Exit status (less than 0: the signal it died of), and what was printed.
pub struct Opinion {
    pub status: i32,
    pub words: String,
}
