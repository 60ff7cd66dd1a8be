//! The two streams, and whose manners are kept on them.

use std::cell::RefCell;
use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;

/// Bytes collected before they are written to a pipe or file, as the C library does. Scripts that merge both streams
/// see what qemu-io would show them: all of stderr first, and nothing that was only collected when the program dies.
const BUFFER: usize = 4096;

/// Standard output and standard error.
pub(super) struct Console {
    /// Behave as qemu-io in every word; otherwise add what helps a person.
    pub(super) as_qemu_io: bool,
    /// One JSON object per command on stdout instead of text.
    pub(super) json: bool,
    /// What stands before messages.
    name: String,
    out: RefCell<Out>,
}

struct Out {
    file: Option<File>,
    pending: Vec<u8>,
    line_by_line: bool,
}

impl Console {
    /// Takes over both streams.
    pub(super) fn new(name: String, as_qemu_io: bool) -> Self {
        let stdout = std::io::stdout();
        // A second handle on the same stream, because the library's own would write out at every line.
        let file = stdout.as_fd().try_clone_to_owned().ok().map(File::from);
        let out = Out { file, pending: Vec::new(), line_by_line: stdout.is_terminal() };
        Self { as_qemu_io, json: false, name, out: RefCell::new(out) }
    }

    /// Writes to standard output. A reader that went away is no concern of ours.
    pub(super) fn write(&self, text: &str) {
        let mut out = self.out.borrow_mut();
        out.pending.extend_from_slice(text.as_bytes());
        let ready = if out.line_by_line { out.pending.len() } else { out.pending.len() / BUFFER * BUFFER };
        out.write_out(ready);
    }

    /// Writes a line to standard error.
    pub(super) fn error_line(&self, text: &str) {
        if !self.as_qemu_io {
            self.flush();
        }
        let mut line = text.to_owned();
        line.push('\n');
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    /// A message with the program's name in front.
    pub(super) fn message(&self, text: &str) -> String {
        format!("{}: {text}", self.name)
    }

    /// Writes out what is collected.
    pub(super) fn flush(&self) {
        let mut out = self.out.borrow_mut();
        let all = out.pending.len();
        out.write_out(all);
    }
}

impl Out {
    fn write_out(&mut self, len: usize) {
        let rest = self.pending.split_off(len);
        if let Some(file) = &mut self.file {
            let _ = file.write_all(&self.pending);
        }
        self.pending = rest;
    }
}
