//! The report a person reads, in the order of CM 12.2: one sentence first, what was not tested last.

use std::fmt::{self, Write as _};

use blkproof_torture::plan::CutPoint;
use blkproof_torture::shrink::Shrunk;

use super::Case;
use super::history::{self, SECTOR};
use super::model::{Cut, Run};
use super::{Coverage, crash, qemu_io, rust_test, table, timeline};
use crate::Style;
use crate::text::{count, plural, safe, wrap_after};

/// How much is shown, and how.
#[derive(Clone, Copy, Debug)]
pub struct Show {
    /// Colours.
    pub style: Style,
    /// Characters in a line of words; tables, plans and scripts are not broken.
    pub width: usize,
    /// The plan as a file, as a script of qemu-io, and as a test.
    pub code: bool,
    /// The timeline.
    pub timeline: bool,
    /// Lines of a table.
    pub lines: usize,
}

impl Default for Show {
    fn default() -> Self {
        Self { style: Style::default(), width: 100, code: true, timeline: true, lines: 60 }
    }
}

/// Writes the report of one finding.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut dyn fmt::Write, case: &Case<'_>, show: &Show) -> fmt::Result {
    let page = Page { case, show };
    page.head(out)?;
    page.repeat(out)?;
    page.plan(out)?;
    page.sector(out)?;
    page.crash(out)?;
    if show.timeline {
        page.timeline(out)?;
    }
    if show.code {
        page.code(out)?;
    }
    Ok(())
}

/// Writes what a campaign did not test.
///
/// # Errors
/// Those of `out`.
pub fn write_coverage(out: &mut dyn fmt::Write, coverage: &Coverage, show: &Show) -> fmt::Result {
    writeln!(out, "{}", show.style.strong("NOT TESTED"))?;
    for line in coverage.not_tested() {
        out.write_str(&wrap_after(&safe(&line), "  - ", "    ", show.width))?;
    }
    Ok(())
}

/// The report of one finding.
#[must_use]
pub fn report(case: &Case<'_>, show: &Show) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, case, show);
    out
}

struct Page<'a> {
    case: &'a Case<'a>,
    show: &'a Show,
}

impl Page<'_> {
    fn head(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let (case, style) = (self.case, self.show.style);
        let rule = case.rule();
        let words = format!("{} (rule {})", case.finding.signature.code, rule.section);
        let target = safe(&case.plan.target.name);
        writeln!(out, "{target}: {}: {}", style.bad(rule.severity.name()), safe(&words))?;
        self.item(out, "  ", &case.sentence())?;
        self.item(out, "  ", &format!("What must hold: {}.", rule.holds))?;
        for line in origin(case) {
            self.item(out, "  ", &line)?;
        }
        if !case.repeats() {
            let words = "the run of the plan below did not show it again: look for what the driver depends on besides its \
                         input";
            self.item(out, "  ", words)?;
        }
        Ok(())
    }

    fn repeat(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let case = self.case;
        self.heading(out, "REPEAT", &format!("plan {}", super::plan_hash(case.plan)))?;
        writeln!(out, "  {}", safe(&case.replay_command()))?;
        match case.seed_command() {
            Some(command) => writeln!(out, "  {}", safe(&command)),
            None => Ok(()),
        }
    }

    fn plan(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let run = self.case.run();
        self.heading(out, "PLAN", &safe(&table::subject(self.case)))?;
        let rows = table::rows(self.case, &run);
        let what =
            rows.iter().take(self.show.lines).map(|row| row.what.chars().count()).max().unwrap_or(0).clamp(7, 60);
        let moves = rows.iter().map(|row| row.moves.chars().count()).max().unwrap_or(0).max(5);
        writeln!(out, "  {:>4}  queue  {:what$}  {:moves$}  outcome", "op", "request", "moves")?;
        for fault in table::faults(&run).iter().filter(|(owner, _)| *owner == 0) {
            writeln!(out, "  {:>4}  {:5}  {}", "", "", safe(&fault.1))?;
        }
        for row in rows.iter().take(self.show.lines) {
            let queue = row.queue.map(|queue| queue.to_string()).unwrap_or_default();
            let mark = if row.guilty { '*' } else { ' ' };
            let line =
                format!("{mark} {:>4}  {queue:>5}  {:what$}  {:moves$}  {}", row.op, row.what, row.moves, row.outcome);
            writeln!(out, "{}", safe(line.trim_end()))?;
            for fault in &row.faults {
                writeln!(out, "  {:>4}  {:5}    {}", "", "", safe(fault))?;
            }
        }
        self.more(out, rows.len())?;
        for cut in run.cuts.iter().filter(|cut| self.case.finding.cut.as_ref().is_some_and(|(at, _)| *at == cut.point))
        {
            writeln!(out, "  {:>4}  {:5}  the power goes {}", "", "", safe(&cut_words(&run, cut)))?;
        }
        if rows.iter().any(|row| row.guilty) {
            writeln!(out, "  * touches the wrong bytes")?;
        }
        Ok(())
    }

    fn sector(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let case = self.case;
        let (Some(sector), Some(range)) = (history::sector(case), case.finding.range) else { return Ok(()) };
        let beside = format!("bytes {:#x}..{:#x}; wrong: {range}", sector * SECTOR, sector.saturating_add(1) * SECTOR);
        self.heading(out, &format!("SECTOR {}", count(sector)), &beside)?;
        let lines = history::lines(case);
        let what = lines.iter().map(|line| line.what.chars().count()).max().unwrap_or(0).min(60);
        let skipped = lines.len().saturating_sub(self.show.lines);
        if skipped > 0 {
            writeln!(out, "  … {} before", count(skipped as u64))?;
        }
        for line in lines.iter().skip(skipped) {
            let durable = if line.durable { ", durable" } else { "" };
            let text = format!("  {:>4}  {:what$}  {}{durable}", line.op, line.what, line.outcome);
            writeln!(out, "{}", safe(&text))?;
        }
        let mut label = "  may hold  ";
        for words in &case.finding.allowed {
            self.item(out, label, words)?;
            label = "            ";
        }
        match history::found(case) {
            Some(found) => self.item(out, "  holds     ", found),
            None => Ok(()),
        }
    }

    fn crash(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let run = self.case.run();
        let Some(cut) = crash::cut(self.case, &run) else { return Ok(()) };
        self.heading(out, "POWER CUT", "")?;
        self.item(out, "  ", &format!("{}: it leaves {}", cut_words(&run, &cut), cut.state.describe()))?;
        let fates = crash::fates(&run, &cut);
        match fates.len() {
            0 => writeln!(out, "  nothing was left to chance: all that had been written was durable")?,
            _ => writeln!(out, "  what was not durable:")?,
        }
        for (io, words, fate) in fates.iter().take(self.show.lines) {
            writeln!(out, "  {:>6}  {:9}  {}", io.to_string(), fate.words(), safe(words))?;
        }
        self.more(out, fates.len())?;
        for line in super::neighbours::lines(self.case.neighbours) {
            self.item(out, "  ", &line)?;
        }
        Ok(())
    }

    fn timeline(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let text = timeline::text(self.case);
        if text.is_empty() {
            return Ok(());
        }
        self.heading(out, "TIMELINE", "a column for each move in which something begins or ends")?;
        out.write_str(&text)
    }

    fn code(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.heading(out, "PLAN FILE", "")?;
        self.block(out, &self.case.plan.to_string())?;
        self.heading(out, "QEMU-IO", "")?;
        match qemu_io::script(self.case) {
            Ok(script) => self.block(out, &script)?,
            Err(why) => self.item(out, "  ", &format!("This can not be said in qemu-io: {why}."))?,
        }
        self.heading(out, "RUST TEST", "")?;
        self.block(out, &rust_test::source(self.case))
    }

    /// Lines as they are, but for what would move a cursor.
    fn block(&self, out: &mut dyn fmt::Write, text: &str) -> fmt::Result {
        for line in text.lines() {
            writeln!(out, "{}", format!("  {}", safe(line)).trim_end())?;
        }
        Ok(())
    }

    fn heading(&self, out: &mut dyn fmt::Write, words: &str, beside: &str) -> fmt::Result {
        write!(out, "\n{}", self.show.style.strong(words))?;
        match beside {
            "" => writeln!(out),
            _ => writeln!(out, "  ({beside})"),
        }
    }

    fn more(&self, out: &mut dyn fmt::Write, all: usize) -> fmt::Result {
        match all.saturating_sub(self.show.lines) {
            0 => Ok(()),
            more => writeln!(out, "  … and {} more", count(more as u64)),
        }
    }

    fn item(&self, out: &mut dyn fmt::Write, mark: &str, words: &str) -> fmt::Result {
        let indent = " ".repeat(mark.chars().count());
        out.write_str(&wrap_after(&safe(words), mark, &indent, self.show.width))
    }
}

/// When the power went, in words.
pub(super) fn cut_words(run: &Run<'_>, cut: &Cut<'_>) -> String {
    match cut.point {
        CutPoint::Before(key) => run.move_words(key),
        // An op of the plan, which is not sent to anybody.
        CutPoint::BeforeOp(op) if run.is_cut(op) => format!("at op {op}"),
        point => point.describe(),
    }
}

/// How it was found, and what shrinking came to.
pub(super) fn origin(case: &Case<'_>) -> Vec<String> {
    let Some(origin) = case.origin else { return Vec::new() };
    let mut found = format!("Found by seed {:#x} after {}", origin.seed, plural(origin.ops, "request"));
    if origin.times > 1 {
        let _ = write!(found, "; {} found it", plural(origin.times, "seed"));
    }
    found.push('.');
    let mut lines = vec![found];
    lines.extend(origin.shrunk.map(shrunk).or_else(|| origin.shrunk_words.map(|words| format!("Shrunk {words}."))));
    lines
}

fn shrunk(shrunk: &Shrunk) -> String {
    let Shrunk { original, size, runs, limit, minimal, verified: (again, of), .. } = shrunk;
    let mut words =
        format!("Shrunk from {original} to {} in {}", plural(*size as u64, "element"), plural(*runs as u64, "run"));
    words.push_str(match minimal {
        true => "; without any one of them it does not fail",
        false => "",
    });
    let _ = write!(words, " ({}); it failed in {again} of {of} further runs.", limit.name());
    words
}
