//! Every command: its name, its words, its help, and what runs it.

mod aio;
mod breakpoints;
mod control;
mod discard;
mod files;
mod help;
mod info;
mod map;
mod read;
mod size;
mod workload;
mod write;
mod zones;

use blkproof_block::LocalBoxFuture;

use super::reply::Reply;
use super::session::SharedDisk;
use super::shell::Shell;

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// It did what it was asked.
    Done,
    /// It said what went wrong.
    Failed,
    /// It was used wrongly: its usage line is to be shown.
    Usage,
    /// The program is to end.
    Quit,
}

impl Outcome {
    /// [`Done`](Self::Done) or [`Failed`](Self::Failed).
    pub(super) fn from_success(ok: bool) -> Self {
        if ok { Self::Done } else { Self::Failed }
    }
}

/// Runs a command; the first word is its name as it was typed.
type Run = for<'a> fn(&'a mut Shell, &'a [String], &'a mut Reply) -> LocalBoxFuture<'a, Outcome>;

/// A command.
pub(super) struct Command {
    /// Its name.
    pub(super) name: &'static str,
    /// Another name for it.
    pub(super) alias: Option<&'static str>,
    /// Fewest words after the name.
    pub(super) words_min: usize,
    /// Most words after the name; `None`: any number.
    pub(super) words_max: Option<usize>,
    /// Options and arguments, for the usage line.
    pub(super) args: Option<&'static str>,
    /// What it does, in one line.
    pub(super) summary: &'static str,
    /// What it does, at length; may be empty.
    pub(super) help: &'static str,
    /// Whether it needs an open image.
    pub(super) needs_file: bool,
    /// Whether it changes the image.
    pub(super) writes: bool,
    /// What runs it.
    pub(super) run: Run,
}

impl Command {
    /// `NAME ARGS -- SUMMARY`, under whichever name.
    pub(super) fn usage(&self, name: &str) -> String {
        match self.args {
            Some(args) => format!("{name} {args} -- {}", self.summary),
            None => format!("{name} -- {}", self.summary),
        }
    }

    /// What the number of words has to be, in qemu-io's words; `None` if `count` is right.
    fn wrong_count(&self, count: usize) -> Option<String> {
        let expected = match self.words_max {
            _ if count >= self.words_min && self.words_max.is_none_or(|max| count <= max) => return None,
            None => format!("at least {} arguments", self.words_min),
            Some(max) if max == self.words_min => format!("{max} arguments"),
            Some(max) => format!("between {} and {max} arguments", self.words_min),
        };
        Some(expected)
    }
}

/// What qemu-io does not have; unknown under its name.
const OURS: [&Command; 1] = [&workload::WORKLOAD];

/// qemu-io's commands, by name.
const QEMU_IO: [&Command; 32] = [
    &control::ABORT,
    &aio::AIO_FLUSH,
    &aio::AIO_READ,
    &aio::AIO_WRITE,
    &map::ALLOC,
    &breakpoints::BREAK,
    &files::CLOSE,
    &discard::DISCARD,
    &size::FLUSH,
    &help::HELP,
    &info::INFO,
    &size::LENGTH,
    &map::MAP,
    &files::OPEN,
    &control::QUIT,
    &read::READ,
    &read::READV,
    &breakpoints::REMOVE_BREAK,
    &files::REOPEN,
    &breakpoints::RESUME,
    &control::SIGRAISE,
    &control::SLEEP,
    &size::TRUNCATE,
    &breakpoints::WAIT_BREAK,
    &write::WRITE,
    &write::WRITEV,
    &zones::APPEND,
    &zones::CLOSE,
    &zones::FINISH,
    &zones::OPEN,
    &zones::REPORT,
    &zones::RESET,
];

/// Every command, by name.
pub(super) fn all(as_qemu_io: bool) -> Vec<&'static Command> {
    let ours = if as_qemu_io { &[][..] } else { &OURS[..] };
    let mut all: Vec<_> = QEMU_IO.iter().chain(ours).copied().collect();
    all.sort_by_key(|command| command.name);
    all
}

/// The command of that name or alias.
pub(super) fn find(name: &str, as_qemu_io: bool) -> Option<&'static Command> {
    all(as_qemu_io).into_iter().find(|command| command.name == name || command.alias == Some(name))
}

/// Runs one line. Words are split at spaces alone; there is no quoting.
pub(super) async fn run_line(shell: &mut Shell, line: &str) -> Outcome {
    let words: Vec<String> = line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let Some(name) = words.first() else { return Outcome::Done };
    let mut reply = Reply::new(&shell.console, &words);
    let outcome = match find(name, reply.as_qemu_io()) {
        Some(command) => run(shell, command, &words, &mut reply).await,
        None => {
            reply.err(&format!("command \"{name}\" not found"));
            Outcome::Failed
        }
    };
    reply.finish(matches!(outcome, Outcome::Done | Outcome::Quit));
    outcome
}

async fn run(shell: &mut Shell, command: &'static Command, words: &[String], reply: &mut Reply) -> Outcome {
    let name = words.first().map_or("", String::as_str);
    if command.needs_file && shell.disk.is_none() {
        reply.err("no file open, try 'help open'");
        return Outcome::Failed;
    }
    let count = words.len().saturating_sub(1);
    if let Some(expected) = command.wrong_count(count) {
        reply.err(&format!("bad argument count {count} to {name}, expected {expected}"));
        return Outcome::Failed;
    }
    if command.writes && shell.disk.as_ref().is_some_and(|disk| disk.is_read_only()) {
        reply.complain("Block node is read-only");
        return Outcome::Failed;
    }
    let stuck = breakpoints::watch(shell, command.name);
    let outcome = futures_lite::future::or((command.run)(shell, words, reply), stuck).await;
    if outcome == Outcome::Usage {
        reply.out(&command.usage(command.name));
        return Outcome::Failed;
    }
    outcome
}

/// The open image. Commands that need one are not run without it.
fn disk(shell: &Shell) -> Option<SharedDisk> {
    shell.disk.clone()
}

/// The words after the name.
fn arguments(words: &[String]) -> &[String] {
    words.get(1..).unwrap_or_default()
}

/// Leaves the command with the message of an argument that makes no sense, printed to standard output.
macro_rules! or_complain {
    ($result:expr, $reply:expr) => {
        match $result {
            Ok(value) => value,
            Err(message) => {
                $reply.out(&message);
                return $crate::io::commands::Outcome::Failed;
            }
        }
    };
}
use or_complain;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_sorted_and_named_once() {
        let names: Vec<&str> = QEMU_IO.iter().map(|command| command.name).collect();
        assert!(names.is_sorted(), "{names:?}");
        let commands = all(false);
        let mut words: Vec<&str> = commands.iter().map(|command| command.name).collect();
        words.extend(commands.iter().filter_map(|command| command.alias));
        let count = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), count, "a name or alias is used twice");
    }
}
