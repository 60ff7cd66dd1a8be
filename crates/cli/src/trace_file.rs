//! Files for traces: a thread writes, requests never wait for it.
//!
//! What an earlier run left in a file is emptied before the first line of this run, and not earlier: whoever opened the
//! file may still have failed. A file that this run has written to is appended to, so that a graph that is opened anew, as
//! a reload does, keeps what was recorded of it. Two traces at a time in one file would be none: the second is refused.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{Error, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use blkproof_fault::trace::{Sink, Sinks};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::messages::without_number;

/// Bytes that may wait for the disk; what comes on top is lost. A single line may be longer.
const WAITING_MAX: usize = 16 << 20;

/// How the file of a trace begins.
const BEGINS: &[u8] = b"{\"schema\":\"blkproof.trace/";

/// Opens files by their names.
pub(crate) struct TraceFiles;

impl Sinks for TraceFiles {
    /// A disk image is easily named by mistake: what is there and no trace is left as it is.
    fn open(&self, name: &str) -> std::io::Result<Rc<dyn Sink>> {
        if let Ok(there) = std::fs::metadata(name) {
            if there.file_type().is_block_device() {
                return Err(Error::other("this is a block device; it is left as it is"));
            }
            if there.is_file() && there.len() > 0 && !holds_trace(name) {
                return Err(Error::other("the file is there and holds no trace; it is left as it is"));
            }
        }
        // A pipe that nobody reads is an error instead of a wait.
        let without_waiting = OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().create(true).append(true).custom_flags(without_waiting).open(name);
        let file = file.map_err(|error| match error.raw_os_error() {
            Some(ENXIO) => Error::other("nobody reads this pipe"),
            _ => error,
        })?;
        fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
        let place = Place::take(&file.metadata()?)?;
        Ok(Rc::new(TraceFile::new(name, file, place)?))
    }
}

const ENXIO: i32 = 6;

fn holds_trace(name: &str) -> bool {
    let mut old = [0; BEGINS.len()];
    File::open(name).and_then(|mut file| file.read_exact(&mut old)).is_ok() && old == BEGINS
}

/// The regular files this run has opened, by device and inode, and whether what an earlier run left in them is gone.
static FILES: Mutex<BTreeMap<(u64, u64), Known>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Known {
    in_use: bool,
    emptied: bool,
}

fn files() -> MutexGuard<'static, BTreeMap<(u64, u64), Known>> {
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A regular file that nobody else of this process writes a trace to; given up when dropped. Others have no place.
struct Place(Option<(u64, u64)>);

impl Place {
    fn take(file: &Metadata) -> std::io::Result<Self> {
        if !file.is_file() {
            return Ok(Self(None));
        }
        let place = (file.dev(), file.ino());
        if std::mem::replace(&mut files().entry(place).or_default().in_use, true) {
            return Err(Error::other("another trace is written to this file"));
        }
        Ok(Self(Some(place)))
    }

    /// Before the first line.
    fn empty(&self, file: &File) -> std::io::Result<()> {
        let Some(place) = self.0 else { return Ok(()) };
        let emptied = std::mem::replace(&mut files().entry(place).or_default().emptied, true);
        if emptied { Ok(()) } else { file.set_len(0) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(place) = self.0 {
            files().entry(place).or_default().in_use = false;
        }
    }
}

/// One file.
struct TraceFile {
    name: String,
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// The thread is writing what it took.
    writing: bool,
    /// Nothing more is taken.
    broken: bool,
    closed: bool,
    lost: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; should it ever, the state is whole all the same.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl TraceFile {
    fn new(name: &str, mut file: File, place: Place) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = std::thread::Builder::new().name("trace".into()).spawn({
            let (shared, name) = (Arc::clone(&shared), name.to_owned());
            move || write_out(&shared, &name, &mut file, &place)
        })?;
        Ok(Self { name: name.to_owned(), shared, writer: Some(writer) })
    }
}

/// Writes until the sink is closed, or the disk takes no more.
fn write_out(shared: &Shared, name: &str, file: &mut File, place: &Place) {
    let mut lines = Vec::new();
    let mut begun = false;
    let mut state = shared.lock();
    loop {
        if state.waiting.is_empty() {
            if state.closed {
                return;
            }
            state = shared.wait(state);
            continue;
        }
        lines.clear();
        std::mem::swap(&mut lines, &mut state.waiting);
        state.writing = true;
        drop(state);
        let ready = if std::mem::replace(&mut begun, true) { Ok(()) } else { place.empty(file) };
        let written = ready.and_then(|()| file.write_all(&lines));
        state = shared.lock();
        state.writing = false;
        if let Err(error) = written {
            state.broken = true;
            state.waiting = Vec::new();
            let words = error.to_string();
            eprintln!("warning: {name}: {}; the trace ends here, requests go on", without_number(&words));
        }
        shared.changed.notify_all();
        if state.broken {
            return;
        }
    }
}

impl Sink for TraceFile {
    fn line(&self, line: &str) -> bool {
        let mut state = self.shared.lock();
        let waiting = state.waiting.len();
        if state.broken || (waiting > 0 && waiting.saturating_add(line.len()) > WAITING_MAX) {
            state.lost = state.lost.saturating_add(1);
            return false;
        }
        let idle = state.waiting.is_empty();
        state.waiting.extend_from_slice(line.as_bytes());
        drop(state);
        if idle {
            self.shared.changed.notify_all();
        }
        true
    }

    fn finish(&self) {
        let mut state = self.shared.lock();
        while !state.broken && (state.writing || !state.waiting.is_empty()) {
            state = self.shared.wait(state);
        }
    }
}

impl Drop for TraceFile {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        let lost = self.shared.lock().lost;
        if lost > 0 {
            eprintln!("warning: {}: {lost} lines of the trace were lost", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_reach_the_file_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let name = path.to_str().unwrap();
        let sink = TraceFiles.open(name).unwrap();
        for number in 0..10_000 {
            assert!(sink.line(&format!("{{\"schema\":\"blkproof.trace/{number}\"}}\n")));
            if number == 5_000 {
                sink.finish();
                assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 5_001);
            }
        }
        drop(sink);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().enumerate().all(|(number, line)| line.ends_with(&format!("/{number}\"}}"))));
        assert_eq!(text.lines().count(), 10_000);
        // What this run has written stays, and goes on.
        let sink = TraceFiles.open(name).unwrap();
        assert!(sink.line("{\"schema\":\"blkproof.trace/again\"}\n"));
        assert!(TraceFiles.open(name).is_err(), "two at a time");
        drop(sink);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 10_001);
        // Anything that is no trace is left alone.
        std::fs::write(&path, b"QFI\xfb").unwrap();
        assert!(TraceFiles.open(name).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"QFI\xfb");
    }

    #[test]
    fn a_trace_of_an_earlier_run_is_emptied_for_the_first_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let name = path.to_str().unwrap();
        let old = "{\"schema\":\"blkproof.trace/1\",\"node\":\"old\"}\n";
        std::fs::write(&path, old).unwrap();
        drop(TraceFiles.open(name).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), old, "opened in vain");
        let sink = TraceFiles.open(name).unwrap();
        assert!(sink.line("{}\n"));
        sink.finish();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}\n");
    }

    #[test]
    fn a_line_longer_than_all_that_may_wait_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let sink = TraceFiles.open(path.to_str().unwrap()).unwrap();
        let line = "x".repeat(WAITING_MAX + 1) + "\n";
        for _ in 0..3 {
            assert!(sink.line(&line));
            sink.finish();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 * line.len() as u64);
    }

    #[test]
    fn nobody_waits_for_the_reader_of_a_pipe() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let error = TraceFiles.open(path.to_str().unwrap()).err().unwrap();
        assert_eq!(error.to_string(), "nobody reads this pipe");
        let reading = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(&path);
        let mut reading = reading.unwrap();
        let sink = TraceFiles.open(path.to_str().unwrap()).unwrap();
        assert!(sink.line("{}\n"));
        drop(sink);
        let mut text = String::new();
        reading.read_to_string(&mut text).unwrap();
        assert_eq!(text, "{}\n");
    }

    #[test]
    fn a_full_disk_ends_the_trace_and_nothing_else() {
        let sink = TraceFiles.open("/dev/full").unwrap();
        assert!(sink.line("{}\n"));
        sink.finish();
        assert!(!sink.line("{}\n"));
        sink.finish();
    }
}
