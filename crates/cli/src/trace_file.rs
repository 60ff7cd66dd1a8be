//! Files for traces: a thread writes, requests never wait for it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use blkproof_fault::trace::{Sink, Sinks};

use crate::messages::without_number;

/// Bytes that may wait for the disk; what comes while they do is lost.
const WAITING_MAX: usize = 16 << 20;

/// How the file of a trace begins.
const BEGINS: &[u8] = b"{\"schema\":\"blkproof.trace/";

/// Opens files by their names.
pub(crate) struct TraceFiles;

impl Sinks for TraceFiles {
    /// Empties a trace of an earlier run, but nothing else: a disk image is easily named by mistake.
    fn open(&self, name: &str) -> std::io::Result<Rc<dyn Sink>> {
        let mut old = [0; BEGINS.len()];
        if let Ok(mut file) = File::open(name)
            && file.metadata()?.is_file()
            && file.metadata()?.len() > 0
            && (file.read_exact(&mut old).is_err() || old != BEGINS)
        {
            return Err(std::io::Error::other("the file is there and holds no trace; it is left as it is"));
        }
        Ok(Rc::new(TraceFile::new(name, File::create(name)?)?))
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
    fn new(name: &str, mut file: File) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = std::thread::Builder::new().name("trace".into()).spawn({
            let (shared, name) = (Arc::clone(&shared), name.to_owned());
            move || write_out(&shared, &name, &mut file)
        })?;
        Ok(Self { name: name.to_owned(), shared, writer: Some(writer) })
    }
}

/// Writes until the sink is closed, or the disk takes no more.
fn write_out(shared: &Shared, name: &str, file: &mut File) {
    let mut lines = Vec::new();
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
        let written = file.write_all(&lines);
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
        if state.broken || state.waiting.len().saturating_add(line.len()) > WAITING_MAX {
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
        // A trace may be written over; anything else may not.
        TraceFiles.open(name).unwrap();
        std::fs::write(&path, b"QFI\xfb").unwrap();
        assert!(TraceFiles.open(name).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"QFI\xfb");
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
