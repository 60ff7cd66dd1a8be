//! Who holds an image file for writing, as far as the operating system tells. Only asks: no lock is ever taken.
//!
//! QEMU (and blkproof) say what they do with a file by shared locks on single bytes, found by looking at the locks they
//! hold: byte 100 + permission is locked by whoever uses the permission, and permission 1 is to write, 3 to resize.
//! Asking whether an exclusive lock could be had there finds every holder. Other programs lock the whole file
//! exclusively while they write, so that is asked too. A program that takes no lock is not seen here; the file's time
//! of change tells of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Bytes that QEMU's writers hold: write, resize.
const WRITER_BYTES: [u64; 2] = [101, 103];

/// The program that holds the file for writing, if there is one.
pub(crate) fn writer(file: &File) -> Option<String> {
    let shared = WRITER_BYTES.iter().any(|byte| held(file, libc::F_WRLCK, *byte, 1).is_some());
    // A question for a shared lock finds exclusive ones only. Length 0 means up to the end, wherever that will be.
    let exclusive = held(file, libc::F_RDLCK, 0, 0);
    if !shared && exclusive.is_none() {
        return None;
    }
    let holder =
        exclusive.filter(|pid| *pid > 0).and_then(|pid| u32::try_from(pid).ok()).or_else(|| search(file).ok()?);
    Some(match holder {
        Some(pid) => format!("{} (process {pid})", program(pid)),
        None => "another process (its lock is seen, but not its number)".to_owned(),
    })
}

/// Whether a lock of this kind would be refused; the process in the way, or a number that is none (locks of open file
/// descriptions belong to no process).
fn held(file: &File, kind: libc::c_int, start: u64, len: u64) -> Option<libc::pid_t> {
    let mut lock = libc::flock {
        l_type: libc::c_short::try_from(kind).ok()?,
        l_whence: libc::c_short::try_from(libc::SEEK_SET).ok()?,
        l_start: libc::off_t::try_from(start).ok()?,
        l_len: libc::off_t::try_from(len).ok()?,
        l_pid: 0, // required to be 0 for questions about open file descriptions
    };
    // Where there are no such locks, nobody can be seen.
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).ok()?;
    (libc::c_int::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid)
}

/// Looks through the open files of every process that may be looked at, for a lock on this file.
fn search(file: &File) -> io::Result<Option<u32>> {
    let ours = file.metadata()?;
    let inode = format!(":{}", ours.ino());
    for process in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        // Processes end while they are looked at, and others' are closed to us: both are passed over.
        let Ok(open) = std::fs::read_dir(process.path().join("fdinfo")) else { continue };
        for entry in open.flatten() {
            let Ok(info) = std::fs::read_to_string(entry.path()) else { continue };
            if !info.lines().any(|line| says_writer(line, &inode)) {
                continue;
            }
            let target = process.path().join("fd").join(entry.file_name());
            if std::fs::metadata(target).is_ok_and(|theirs| (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino())) {
                return Ok(Some(pid));
            }
        }
    }
    Ok(None)
}

/// Whether a line of `/proc/*/fdinfo/*` tells of a writer's lock on the inode:
/// `lock: 1: OFDLCK  ADVISORY  READ -1 08:02:1234 101 101`.
fn says_writer(line: &str, inode: &str) -> bool {
    let Some(line) = line.strip_prefix("lock:") else { return false };
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, _, _, kind, _, place, first, last] = words.as_slice() else { return false };
    if !place.ends_with(inode) {
        return false;
    }
    let first = first.parse::<u64>().unwrap_or(u64::MAX);
    let last = last.parse::<u64>().unwrap_or(u64::MAX);
    *kind == "WRITE" || WRITER_BYTES.iter().any(|byte| (first..=last).contains(byte))
}

/// A process's name; it chose that itself, so only plain letters of it are shown.
fn program(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name: String = name.trim_end().chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect();
    if name.is_empty() { "a program".to_owned() } else { name }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_locks_of_writers_count() {
        for (line, says) in [
            ("lock:\t1: OFDLCK  ADVISORY  READ -1 08:02:1234 101 101", true),
            ("lock:\t1: OFDLCK  ADVISORY  READ -1 08:02:1234 103 103", true),
            ("lock:\t1: OFDLCK  ADVISORY  READ -1 08:02:1234 100 101", true),
            ("lock:\t1: OFDLCK  ADVISORY  READ -1 08:02:1234 100 100", false),
            ("lock:\t1: OFDLCK  ADVISORY  READ -1 08:02:1234 201 201", false),
            ("lock:\t1: POSIX  ADVISORY  WRITE 77 08:02:1234 0 EOF", true),
            ("lock:\t1: OFDLCK  ADVISORY  READ -1 08:02:91234 101 101", false),
            ("pos:\t0", false),
            ("lock:", false),
        ] {
            assert_eq!(says_writer(line, ":1234"), says, "{line}");
        }
    }

    #[test]
    fn nobody_holds_a_new_file() {
        assert_eq!(writer(&tempfile::tempfile().unwrap()), None);
    }
}
