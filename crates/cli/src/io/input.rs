//! Where commands come from: `-c`, or standard input with a prompt.

use std::io::{BufRead as _, IsTerminal as _};
use std::sync::mpsc;
use std::vec;

use super::console::Console;

/// Longest line that qemu-io reads at once; what is longer becomes several commands.
const LINE_MAX: usize = 1023;

/// The commands, one line each.
pub(super) enum Input {
    /// Given with `-c`.
    Given(vec::IntoIter<String>),
    /// Typed, or piped in.
    Typed(Typed),
}

/// A thread that reads standard input, so that requests under way go on while nobody types.
pub(super) struct Typed {
    prompt: Option<&'static str>,
    /// Asks for a line. The thread reads no further on its own, for what follows may be meant for another program.
    ask: mpsc::Sender<()>,
    lines: tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>,
    split: bool,
    pieces: vec::IntoIter<String>,
}

impl Input {
    /// The given commands; if there are none, those on standard input.
    pub(super) fn new(commands: Vec<String>, console: &Console) -> Self {
        if !commands.is_empty() {
            return Self::Given(commands.into_iter());
        }
        let prompt = match (console.as_qemu_io, console.json) {
            (true, _) => Some("qemu-io> "),
            (false, false) if std::io::stdin().is_terminal() => Some("blkproof io> "),
            (false, _) => None,
        };
        let (ask, asked) = mpsc::channel::<()>();
        let (send, lines) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let mut stdin = std::io::stdin().lock();
            while asked.recv().is_ok() {
                let mut line = Vec::new();
                match stdin.read_until(b'\n', &mut line) {
                    Ok(1..) if send.send(line).is_ok() => {}
                    _ => break,
                }
            }
        });
        Self::Typed(Typed { prompt, ask, lines, split: console.as_qemu_io, pieces: Vec::new().into_iter() })
    }

    /// The next command; `None` at the end.
    pub(super) async fn next_line(&mut self, console: &Console) -> Option<String> {
        match self {
            Self::Given(commands) => commands.next(),
            Self::Typed(typed) => typed.next_line(console).await,
        }
    }
}

impl Typed {
    async fn next_line(&mut self, console: &Console) -> Option<String> {
        if let Some(prompt) = self.prompt {
            console.write(prompt);
        }
        console.flush();
        if let Some(piece) = self.pieces.next() {
            return Some(piece);
        }
        self.ask.send(()).ok()?;
        let line = self.lines.recv().await?;
        self.pieces = pieces(&line, self.split).into_iter();
        self.pieces.next()
    }
}

/// The commands in a line: one, unless it is longer than qemu-io reads at once. A zero byte ends a command.
fn pieces(line: &[u8], split: bool) -> Vec<String> {
    let text = |bytes: &[u8]| {
        let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        String::from_utf8_lossy(bytes).into_owned()
    };
    if split { line.chunks(LINE_MAX).map(text).collect() } else { vec![text(line)] }
}

#[cfg(test)]
mod tests {
    use super::pieces;

    #[test]
    fn lines_are_cut_as_qemu_io_cuts_them() {
        assert_eq!(pieces(b"length\n", true), ["length"]);
        assert_eq!(pieces(b"length", true), ["length"]);
        assert_eq!(pieces(b"length\0 foo\n", true), ["length"]);
        let long = [vec![b'x'; 1023], b"yy\n".to_vec()].concat();
        assert_eq!(pieces(&long, true), ["x".repeat(1023), "yy".into()]);
        assert_eq!(pieces(&long, false).len(), 1);
    }
}
