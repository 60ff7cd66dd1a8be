//! Who may use a file beside whom: the same answers whoever came first, QEMU or we.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use blkproof_block::device::{BlockDevice, Preallocation};
use blkproof_block::graph::OpenError;
use blkproof_block::nodes::file::create;
use blkproof_block::nodes::{File, FileOptions};
use blkproof_block::{Errno, WriteFlags};
use futures_lite::future::block_on;

const WRITER: FileOptions = FileOptions { read_only: false, ..OPTIONS };
const READER: FileOptions = FileOptions { read_only: true, ..OPTIONS };
const SHARED: FileOptions = FileOptions { force_share: true, ..READER };
const UNLOCKED: FileOptions = FileOptions { lock: false, ..WRITER };
const OPTIONS: FileOptions = FileOptions {
    read_only: false,
    cache: blkproof_block::graph::CacheMode { direct: false, no_flush: false, writeback: true },
    unmap: true,
    force_share: false,
    lock: true,
};

/// A qemu-io that holds a file until it is dropped.
struct QemuIo(Child);

impl QemuIo {
    fn hold(arguments: &[&str], file: &Path) -> Self {
        let mut child = Command::new("qemu-io")
            .args(arguments)
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io is needed by this test (package qemu-utils)");
        // The prompt comes once the image is open.
        let mut prompt = [0; 9];
        child.stdout.as_mut().unwrap().read_exact(&mut prompt).expect("qemu-io opens the image");
        assert_eq!(&prompt, b"qemu-io> ");
        Self(child)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        let _ = self.0.stdin.take().unwrap().write_all(b"quit\n");
        let _ = self.0.wait();
    }
}

fn qemu_io(arguments: &[&str], file: &Path) -> (bool, String) {
    let output = Command::new("qemu-io").args(arguments).arg(file).output().expect("qemu-io is needed by this test");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn qcow2(directory: &Path) -> std::path::PathBuf {
    let image = directory.join("disk.qcow2");
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("1M").status();
    assert!(made.expect("qemu-img is needed by this test").success());
    image
}

/// `None` if it opens, else what could not be had.
fn open(file: &Path, options: FileOptions) -> Option<String> {
    match File::open(file, options) {
        Ok(_) => None,
        Err(OpenError::Locked { lock, filename }) => {
            assert_eq!(filename, file.display().to_string());
            Some(lock)
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn what_qemu_holds_is_refused_here() {
    let directory = tempfile::tempdir().unwrap();
    let image = qcow2(directory.path());
    let raw = directory.path().join("disk.raw");
    std::fs::write(&raw, [7; 4096]).unwrap();
    type Row<'a> = (&'a [&'a str], &'a Path, [Option<&'a str>; 4]);
    let table: &[Row<'_>] = &[
        // held by                  writer               reader                    -U    without locks
        (&["-f", "qcow2"], &image, [Some("\"write\""), Some("shared \"write\""), None, None]),
        (&["-f", "qcow2", "-r"], &image, [Some("\"write\""), None, None, None]),
        (&["-f", "raw"], &raw, [Some("shared \"write\""), Some("shared \"write\""), None, None]),
        (&["-f", "raw", "-r"], &raw, [None, None, None, None]),
    ];
    for (arguments, file, want) in table {
        let held = QemuIo::hold(arguments, file);
        let got = [WRITER, READER, SHARED, UNLOCKED].map(|options| open(file, options));
        assert_eq!(got, want.map(|lock| lock.map(str::to_owned)), "held by qemu-io {arguments:?}");
        drop(held);
        assert_eq!(open(file, WRITER), None, "nobody holds it any more");
    }
}

#[test]
fn what_we_hold_is_refused_by_qemu() {
    let directory = tempfile::tempdir().unwrap();
    let image = qcow2(directory.path());
    let write = "Failed to get \"write\" lock";
    let shared_write = "Failed to get shared \"write\" lock";
    let length: &[&str] = &["-c", "length"];
    let table: &[(FileOptions, &[&str], Option<&str>)] = &[
        (WRITER, &["-f", "qcow2"], Some(write)),
        (WRITER, &["-f", "qcow2", "-r"], Some(shared_write)),
        (WRITER, &["-f", "qcow2", "-r", "-U"], None),
        (WRITER, &["-f", "raw"], Some(write)),
        // QEMU's raw readers deny nothing to anybody.
        (WRITER, &["-f", "raw", "-r"], None),
        (READER, &["-f", "qcow2"], Some(write)),
        (READER, &["-f", "raw"], Some(write)),
        (READER, &["-f", "qcow2", "-r"], None),
        (SHARED, &["-f", "qcow2"], None),
        (UNLOCKED, &["-f", "qcow2"], None),
    ];
    for (ours, theirs, want) in table {
        let held = File::open(&image, *ours).unwrap();
        let (opened, said) = qemu_io(&[theirs, length].concat(), &image);
        assert_eq!(opened, want.is_none(), "we hold {ours:?}, qemu-io {theirs:?} said {said}");
        assert!(said.contains(want.unwrap_or_default()), "we hold {ours:?}, qemu-io {theirs:?} said {said}");
        drop(held);
        assert!(qemu_io(&[theirs, length].concat(), &image).0, "the lock went with the file");
    }
}

#[test]
fn two_of_ours() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let table = [
        (WRITER, WRITER, Some("\"write\"")),
        (WRITER, READER, Some("shared \"write\"")),
        (WRITER, SHARED, None),
        (READER, WRITER, Some("\"write\"")),
        (READER, READER, None),
        (SHARED, WRITER, None),
        (UNLOCKED, WRITER, None),
    ];
    for (first, second, want) in table {
        let held = File::open(file.path(), first).unwrap();
        assert_eq!(open(file.path(), second).as_deref(), want, "{second:?} beside {first:?}");
        drop(held);
    }
}

#[test]
fn a_refusal_says_who_is_in_the_way_and_what_to_do() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let _held = File::open(file.path(), WRITER).unwrap();
    let error = File::open(file.path(), READER).unwrap_err();
    assert_eq!(error.errno(), Errno::AGAIN);
    let text = error.to_string();
    for part in [&*file.path().display().to_string(), "another process is using the file", "-U (force-share)"] {
        assert!(text.contains(part), "{part:?} is missing in {text:?}");
    }
    let error = File::open(file.path(), FileOptions { force_share: true, ..WRITER }).unwrap_err();
    assert_eq!(error.to_string(), "force-share=on can only be used with read-only images");
}

#[test]
fn creating_does_not_clobber_what_somebody_uses() {
    let directory = tempfile::tempdir().unwrap();
    let raw = directory.path().join("disk.raw");
    std::fs::write(&raw, [7; 4096]).unwrap();
    let name = raw.display().to_string();
    let refused = |who: &str| {
        let error = create(&name, 1 << 20, Preallocation::Off, false).unwrap_err();
        assert!(matches!(error, OpenError::Locked { .. }), "{who}: {error}");
        assert_eq!(std::fs::read(&raw).unwrap(), [7; 4096], "{who}");
    };
    for arguments in [&["-f", "raw"][..], &["-f", "raw", "-r"]] {
        let _held = QemuIo::hold(arguments, &raw);
        refused("QEMU");
    }
    for options in [WRITER, READER, SHARED] {
        let _held = File::open(&raw, options).unwrap();
        refused("we");
    }
    create(&name, 8192, Preallocation::Off, false).unwrap();
    assert_eq!(std::fs::read(&raw).unwrap(), [0; 8192]);
}

#[test]
fn a_late_write_keeps_the_file_locked() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let data = vec![1; 8 << 20];
    for _ in 0..20 {
        let held = File::open(file.path(), WRITER).unwrap();
        // Dropped while it runs, most of the time.
        drop(block_on(futures_lite::future::poll_once(held.write(0, &data, WriteFlags::empty()))));
        drop(held);
        // Whoever gets the file now can be sure that nothing lands in it any more.
        let next = loop {
            match File::open(file.path(), WRITER) {
                Ok(next) => break next,
                Err(OpenError::Locked { .. }) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        };
        block_on(next.resize(0, Preallocation::Off)).unwrap();
        assert_eq!(std::fs::metadata(file.path()).unwrap().len(), 0);
        drop(next);
        assert_eq!(std::fs::metadata(file.path()).unwrap().len(), 0);
    }
}
