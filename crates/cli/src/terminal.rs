//! What standard output is: whether colours mean anything there, and how wide its lines are.

use std::io::IsTerminal as _;

/// Lines longer than this are hard to read, however wide the terminal is.
const READABLE: usize = 120;
/// Nothing sensible fits into less.
const NARROWEST: usize = 40;

/// Whether to write colours: on a terminal that has them, unless `NO_COLOR` is set.
pub(crate) fn colour() -> bool {
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stdout().is_terminal() && !dumb && !refused
}

/// Where to break lines; `None` where nobody looks at them as they are.
pub(crate) fn width() -> Option<usize> {
    let stdout = std::io::stdout();
    let size = rustix::termios::tcgetwinsize(&stdout).ok().filter(|_| stdout.is_terminal())?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns >= NARROWEST).map(|columns| columns.min(READABLE))
}
