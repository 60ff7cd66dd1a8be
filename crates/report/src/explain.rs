//! What a code means: the catalogue's entry, for a person.

use std::fmt::Write as _;

use blkproof_check::catalogue;
use blkproof_check::code::Code;

use crate::{Style, text};

/// One code: what was seen, why it matters, what causes it, what to do, where the specification says so.
#[must_use]
pub fn code(code: &Code, style: Style, width: usize) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{} ({})", style.strong(code.name), code.severity);
    for (label, words) in [
        ("seen", code.title),
        ("why", code.why),
        ("usual cause", code.cause),
        ("next", code.next),
        ("specification", code.spec),
    ] {
        out.push_str(&text::wrap_after(words, &format!("  {label:<15}"), &" ".repeat(17), width));
    }
    out
}

/// All codes, a line each.
#[must_use]
pub fn list() -> String {
    let width = catalogue::all().map(|code| code.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for code in catalogue::all() {
        let _ = writeln!(out, "{:width$}  {:10}  {}", code.name, code.severity.to_string(), code.title);
    }
    out
}
