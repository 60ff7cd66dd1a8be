//! The figures of one node in a terminal, short enough to be shown again every second.

use std::fmt::Write as _;

use blkproof_fault::stats::heat::Cell;
use blkproof_fault::stats::{PerOperation, Snapshot};

use super::words::{asked, duration, has_range, queue, rate, share};
use crate::text::{count, range, safe, size};

/// Kinds of failures listed.
const ERRORS_MAX: usize = 8;

/// From one access to the most there are.
const HEAT: [char; 6] = ['.', ':', '-', '=', '*', '#'];

/// The figures in lines of at most `width` characters (at least 40); rates are those since the start or the last reset.
#[must_use]
pub fn table(snapshot: &Snapshot, width: usize) -> String {
    table_since(snapshot, None, width)
}

/// The same, with the rates of the time since an earlier snapshot; one that is no earlier one of the same node, because
/// the figures were reset in between, is passed over.
#[must_use]
pub fn table_since(snapshot: &Snapshot, before: Option<&Snapshot>, width: usize) -> String {
    let width = width.max(40);
    let before = before.filter(|before| before.node == snapshot.node && before.elapsed_ns < snapshot.elapsed_ns);
    let mut out = String::new();
    let mut line = |text: &str| {
        let _ = writeln!(out, "{}", cut(text.trim_end(), width));
    };
    let state = if snapshot.running { "counting for" } else { "stopped after" };
    line(&format!("{}  {}, {state} {}", safe(&snapshot.node), size(snapshot.size), duration(snapshot.elapsed_ns)));
    line(&format!("in flight {}; busy {}", queue(snapshot), share(snapshot.queue.busy_ns, snapshot.elapsed_ns)));
    line("");
    if asked(snapshot).next().is_none() {
        line("no request yet");
        return out;
    }
    for row in rows(snapshot, before, width) {
        line(&row);
    }
    if !snapshot.errors.is_empty() {
        line("");
    }
    for error in snapshot.errors.iter().take(ERRORS_MAX) {
        let rule = error.rule.as_deref().map(|rule| format!(" by rule {}", safe(rule))).unwrap_or_default();
        let place = match error.first_at == error.last_at {
            true => format!("{:#x}", error.first_at),
            false => format!("first {:#x}, last {:#x}", error.first_at, error.last_at),
        };
        line(&format!("{} × {} {}{rule}: {place}", count(error.count), error.operation, error.name()));
    }
    let hidden = snapshot.errors.iter().skip(ERRORS_MAX).map(|error| error.count).sum::<u64>();
    let hidden = hidden.saturating_add(snapshot.errors_more);
    if hidden > 0 {
        line(&format!("{} × other failures", count(hidden)));
    }
    heat(snapshot, width, &mut line);
    out
}

/// What stands in a column.
type Says<'a> = &'a dyn Fn(&PerOperation) -> String;

/// A count of a cell.
type Figure = fn(&Cell) -> u64;

/// One column: head, alignment, and what stands in it. Those that a narrow terminal has no room for are left out, the
/// last ones first.
struct Column<'a> {
    head: &'static str,
    cells: Vec<String>,
    /// Kept as long as there is room; the lowest stays longest.
    rank: u8,
    figure: Says<'a>,
}

fn rows(snapshot: &Snapshot, before: Option<&Snapshot>, width: usize) -> Vec<String> {
    let elapsed = snapshot.elapsed_ns - before.map_or(0, |before| before.elapsed_ns);
    let since = |per: &PerOperation, figure: fn(&PerOperation) -> u64| {
        let old = before.map_or(0, |before| figure(&before.of(per.operation)));
        rate(figure(per).saturating_sub(old), elapsed)
    };
    let ranged = |per: &PerOperation, text: String| if has_range(per.operation) { text } else { String::new() };
    let at = |percent: f64| move |per: &PerOperation| per.latency.percentile(percent).map(duration).unwrap_or_default();
    let figures: [(&'static str, u8, Says<'_>); 12] = [
        ("operation", 0, &|per| per.operation.to_string()),
        ("requests", 1, &|per| count(per.submitted)),
        ("per s", 2, &|per| count(since(per, |per| per.done + per.failed))),
        ("bytes", 6, &|per| ranged(per, size(per.bytes))),
        ("bytes/s", 4, &|per| ranged(per, size(since(per, |per| per.bytes)))),
        ("failed", 3, &|per| count(per.failed + per.invalid)),
        ("p50", 7, &at(50.0)),
        ("p99", 5, &at(99.0)),
        ("p99.9", 9, &at(99.9)),
        ("max", 8, &|per| if per.latency.count > 0 { duration(per.latency.max_ns) } else { String::new() }),
        ("sequential", 10, &|per| ranged(per, share(per.sequential, per.submitted))),
        ("given up", 11, &|per| count(per.cancelled)),
    ];
    let mut columns: Vec<Column<'_>> =
        figures.into_iter().map(|(head, rank, figure)| Column { head, cells: Vec::new(), rank, figure }).collect();
    for column in &mut columns {
        column.cells = asked(snapshot).map(column.figure).collect();
    }
    let wide = |column: &Column<'_>| {
        column.cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0).max(column.head.chars().count())
    };
    while columns.len() > 2 && columns.iter().map(|column| wide(column) + 2).sum::<usize>() - 2 > width {
        let last = columns.iter().map(|column| column.rank).max();
        columns.retain(|column| Some(column.rank) != last);
    }
    let row = |pick: &dyn Fn(&Column<'_>) -> String| {
        let cells = columns.iter().enumerate().map(|(index, column)| match index {
            0 => format!("{:<width$}", pick(column), width = wide(column)),
            _ => format!("{:>width$}", pick(column), width = wide(column)),
        });
        cells.collect::<Vec<_>>().join("  ")
    };
    let mut rows = vec![row(&|column| column.head.to_owned())];
    for number in 0..asked(snapshot).count() {
        rows.push(row(&|column| column.cells.get(number).cloned().unwrap_or_default()));
    }
    rows
}

/// The disk on a line each for reads and writes.
fn heat(snapshot: &Snapshot, width: usize, line: &mut impl FnMut(&str)) {
    let cells = &snapshot.heat.cells;
    let all = usize::try_from(snapshot.size.div_ceil(snapshot.heat.cell_size.max(1))).unwrap_or(usize::MAX);
    let all = all.clamp(cells.len().max(1), blkproof_fault::stats::heat::CELLS);
    let letters = (width - 8).min(all);
    let figures: [(&str, Figure); 2] = [("reads", |cell| cell.reads), ("writes", |cell| cell.writes)];
    line("");
    for (name, figure) in figures {
        // Each letter stands for a stretch of cells; no stretch is empty, since there are no more letters than cells.
        let stretch = |letter: usize| letter * all / letters..(letter + 1) * all / letters;
        let sums: Vec<u64> =
            (0..letters).map(|letter| stretch(letter).filter_map(|cell| cells.get(cell)).map(figure).sum()).collect();
        let most = sums.iter().max().copied().unwrap_or(0);
        let picture: String = sums
            .iter()
            .enumerate()
            .map(|(letter, sum)| {
                let failed = stretch(letter).filter_map(|cell| cells.get(cell)).any(|cell| cell.errors > 0);
                if failed { '!' } else { letter_of(*sum, most) }
            })
            .collect();
        line(&format!("{name:<7} {picture}"));
    }
    let errors = cells.iter().any(|cell| cell.errors > 0);
    let end = range(&(0..snapshot.size));
    line(&format!("        {end}, few . to # many, by powers{}", if errors { "; ! failures" } else { "" }));
}

/// By the logarithm, because a few places are often visited a thousand times as often as the others.
fn letter_of(sum: u64, most: u64) -> char {
    let (Some(own), Some(top)) = (sum.checked_ilog2(), most.checked_ilog2()) else { return ' ' };
    let step = own as usize * (HEAT.len() - 1) / (top as usize).max(1);
    HEAT.get(step.min(HEAT.len() - 1)).copied().unwrap_or('#')
}

fn cut(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        Some(_) => text.chars().take(width - 1).chain(['…']).collect(),
        None => text.to_owned(),
    }
}
