//! The timeline in letters: a line for each request, a column for each move that matters.

use std::fmt::Write as _;

use super::{Class, Lane, Timeline, timeline};
use crate::text::{plural, safe};
use crate::torture::Case;
use crate::torture::text::Detail;

/// The timeline; empty if the run's events were not kept.
///
/// ```text
///   queue 0    1   ├──────✗      * write 512 bytes at 0x0, failed: Input/output error
///     disk   1#1    ├●─✗         * write 0x100000..0x100200, fails: Input/output error
/// ```
#[must_use]
pub fn text(case: &Case<'_>, detail: Detail) -> String {
    let Some(timeline) = timeline(case, detail) else { return String::new() };
    let mut out = String::new();
    if timeline.before > 0 {
        let _ = writeln!(out, "  ({} were over before)", plural(timeline.before as u64, "request"));
    }
    let names = timeline.bars.iter().map(|bar| bar.name.len()).max().unwrap_or(1);
    let mut parts = timeline.parts.iter().map(|(from, part)| (*from, *part)).peekable();
    for bar in &timeline.bars {
        let mut now = Vec::new();
        while let Some((_, part)) = parts.next_if(|(from, _)| *from <= bar.from) {
            now.push(part);
        }
        out.push_str(&begins(&now));
        let lane = match bar.lane {
            Lane::Queue(queue) => format!("queue {queue}"),
            Lane::Image => "image".to_owned(),
            Lane::Disk => "  disk".to_owned(),
        };
        let mark = if bar.guilty { '*' } else { ' ' };
        let what = format!("{}; {}", bar.what, bar.how);
        let line = format!("  {lane:<9} {:>names$}  {} {mark} {}", bar.name, cells(&timeline, bar), safe(&what));
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out.push_str(&begins(&parts.map(|(_, part)| part).collect::<Vec<_>>()));
    if timeline.hidden > 0 {
        let hidden = plural(timeline.hidden as u64, "request");
        let _ = writeln!(out, "  (without {hidden} below of opening, closing and the end)");
    }
    let _ = writeln!(out, "  {}", legend(&timeline));
    out
}

/// Parts of the run that begin here: `  · opens the image`.
fn begins(parts: &[&str]) -> String {
    if parts.is_empty() { String::new() } else { format!("  · {}\n", parts.join(" · ")) }
}

fn cells(timeline: &Timeline, bar: &super::Bar) -> String {
    let mut cells = vec![' '; timeline.width()];
    let end = timeline.end(bar);
    let fill = if bar.class == Class::Flush { '═' } else { '─' };
    for cell in cells.iter_mut().take(end.saturating_add(1)).skip(bar.from) {
        *cell = fill;
    }
    // Where the power went, through everything that was in flight or not.
    for &cut in &timeline.cuts {
        if let Some(cell) = cells.get_mut(cut) {
            *cell = '┃';
        }
    }
    let mut put = |at: usize, letter: char| {
        if let Some(cell) = cells.get_mut(at) {
            *cell = letter;
        }
    };
    if bar.to != Some(bar.from) {
        put(bar.from, '├');
    }
    if let Some(moved) = bar.moved {
        put(moved, '●');
    }
    match bar.to {
        Some(to) if bar.failed => put(to, '✗'),
        Some(to) if bar.dropped => put(to, '╳'),
        Some(to) if bar.to == Some(bar.from) => put(to, '│'),
        Some(to) => put(to, '┤'),
        None if !timeline.cuts.contains(&end) => put(end, '┄'),
        None => {}
    }
    cells.into_iter().collect()
}

fn legend(timeline: &Timeline) -> String {
    let mut words = vec!["├ sent", "● its data moved", "┤ answered"];
    let any = |test: &dyn Fn(&super::Bar) -> bool| timeline.bars.iter().any(test);
    if any(&|bar| bar.class == Class::Flush) {
        words.push("═ flush");
    }
    if any(&|bar| bar.failed) {
        words.push("✗ failed");
    }
    if any(&|bar| bar.dropped) {
        words.push("╳ dropped");
    }
    if !timeline.cuts.is_empty() {
        words.push("┃ power cut");
    }
    if any(&|bar| bar.guilty) {
        words.push("* touches the wrong bytes, or was sent for a request that does");
    }
    words.join(", ")
}
