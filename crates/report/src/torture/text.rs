//! The report a person reads, in the order of CM 12.2: one sentence first, what was not tested last.
//!
//! A brief one keeps to about a screen and a half: what has no room is named at its end, and is in a full one.

use std::fmt::{self, Write as _};

use blkproof_torture::plan::CutPoint;
use blkproof_torture::shrink::Shrunk;

use super::history::{self, SECTOR};
use super::model::{Cut, Run};
use super::{Case, Entry, Suite, crash, qemu_io, rust_test, summary, table, timeline};
use crate::Style;
use crate::text::{count, plural, safe, wrap_after};

/// Lines of a brief report up to which there is room for code.
const BRIEF_LINES: usize = 80;
/// Lines of each table of a brief report.
const BRIEF_ROWS: usize = 16;
/// The same of a full one.
const FULL_ROWS: usize = 200;

/// How much is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Detail {
    /// What a person reads first; code as far as there is room.
    #[default]
    Brief,
    /// Everything.
    Full,
}

/// How much is shown, and how.
#[derive(Clone, Copy, Debug)]
pub struct Show {
    /// Colours.
    pub style: Style,
    /// Characters in a line of words; tables, plans and scripts are not broken.
    pub width: usize,
    /// How much.
    pub detail: Detail,
}

impl Default for Show {
    fn default() -> Self {
        Self { style: Style::default(), width: 100, detail: Detail::Brief }
    }
}

impl Show {
    /// Everything.
    #[must_use]
    pub fn full() -> Self {
        Self { detail: Detail::Full, ..Self::default() }
    }

    fn rows(&self) -> usize {
        if self.detail == Detail::Brief { BRIEF_ROWS } else { FULL_ROWS }
    }
}

/// Writes the report of one finding.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut dyn fmt::Write, entry: &Entry<'_>, show: &Show) -> fmt::Result {
    let page = Page { case: &entry.case, show };
    let mut text = String::new();
    page.head(&mut text, entry.known_words())?;
    page.repeat(&mut text)?;
    page.plan(&mut text)?;
    page.timeline(&mut text)?;
    page.sector(&mut text)?;
    page.crash(&mut text)?;
    page.code(&mut text)?;
    out.write_str(&text)
}

/// Writes what a campaign came to: each finding, a line of figures, and what was not tested.
///
/// # Errors
/// Those of `out`.
pub fn write_suite(out: &mut dyn fmt::Write, suite: &Suite<'_>, show: &Show) -> fmt::Result {
    for entry in &suite.entries {
        write(out, entry, show)?;
        writeln!(out)?;
    }
    let verdict = format!("{}: {}", safe(suite.target), summary::verdict(suite));
    let style = show.style;
    let painted = if suite.failures() > 0 { style.bad(&verdict) } else { style.good(&verdict) };
    let figures = summary::figures(suite);
    out.write_str(&wrap_after(
        &figures,
        &format!("{painted} "),
        "  ",
        show.width.saturating_add(painted_extra(style)),
    ))?;
    let Some(coverage) = suite.coverage else { return Ok(()) };
    writeln!(out, "{}", style.strong("NOT TESTED"))?;
    for line in coverage.not_tested() {
        out.write_str(&wrap_after(&safe(&line), "  - ", "    ", show.width))?;
    }
    Ok(())
}

/// Characters of a colour, which take no room.
fn painted_extra(style: Style) -> usize {
    style.bad("").to_string().chars().count()
}

/// The report of one finding.
#[must_use]
pub fn report(entry: &Entry<'_>, show: &Show) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, entry, show);
    out
}

struct Page<'a> {
    case: &'a Case<'a>,
    show: &'a Show,
}

impl Page<'_> {
    fn head(&self, out: &mut dyn fmt::Write, known: Option<String>) -> fmt::Result {
        let (case, style) = (self.case, self.show.style);
        let rule = case.rule();
        // The sentence first: it is all that many will read.
        out.write_str(&wrap_after(&safe(&case.sentence()), "", "", self.show.width))?;
        let target = safe(&case.plan.target.name);
        let signature = safe(&case.finding.signature.to_string());
        writeln!(out, "  {}, in {target}; signature {signature}", style.bad(case.severity().name()))?;
        self.item(out, "  ", &format!("Rule {} ({}): {}.", rule.code, rule.section, rule.holds))?;
        if let Some(known) = known {
            self.item(out, "  ", &format!("{}.", super::case::capital(&known)))?;
        }
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
        match (case.plan_file, case.seed_command()) {
            (Some(file), seed) => {
                writeln!(out, "  {}", safe(&case.replay_command()))?;
                match seed {
                    Some(seed) if file != seed => writeln!(out, "  {}", safe(&seed)),
                    _ => Ok(()),
                }
            }
            (None, Some(seed)) => writeln!(out, "  {}", safe(&seed)),
            (None, None) => self.item(out, "  ", "by the plan below"),
        }
    }

    fn plan(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let run = self.case.run();
        self.heading(out, "PLAN", &safe(&table::subject(self.case)))?;
        let rows = table::rows(self.case, &run);
        let what =
            rows.iter().take(self.show.rows()).map(|row| row.what.chars().count()).max().unwrap_or(0).clamp(7, 60);
        let moves = rows.iter().map(|row| row.moves.chars().count()).max().unwrap_or(0).max(5);
        writeln!(out, "  {:>4}  queue  {:what$}  {:moves$}  outcome", "op", "request", "moves")?;
        for fault in table::faults(&run).iter().filter(|(owner, _)| *owner == 0) {
            writeln!(out, "  {:>4}  {:5}  {}", "", "", safe(&fault.1))?;
        }
        for row in rows.iter().take(self.show.rows()) {
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
        let skipped = lines.len().saturating_sub(self.show.rows());
        if skipped > 0 {
            writeln!(out, "  … {} before", count(skipped as u64))?;
        }
        for line in lines.iter().skip(skipped) {
            let durable = if line.durable { ", durable" } else { "" };
            let op = line.op.map(|op| op.to_string()).unwrap_or_default();
            let text = format!("  {op:>4}  {:what$}  {}{durable}", line.what, line.outcome);
            writeln!(out, "{}", safe(&text))?;
        }
        let mut label = "  may hold  ";
        for words in &case.finding.allowed {
            self.item(out, label, words)?;
            label = "            ";
        }
        match history::found(case) {
            Some(found) => self.item(out, "  holds     ", &super::case::found_words(found)),
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
        for (io, words, fate) in fates.iter().take(self.show.rows()) {
            writeln!(out, "  {:>6}  {:9}  {}", io.to_string(), fate.words(), safe(words))?;
        }
        self.more(out, fates.len())?;
        for line in super::neighbours::lines(self.case.neighbours) {
            self.item(out, "  ", &line)?;
        }
        Ok(())
    }

    fn timeline(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let text = timeline::text(self.case, self.show.detail);
        if text.is_empty() {
            return Ok(());
        }
        self.heading(out, "TIMELINE", "a column for each move in which something begins or ends")?;
        out.write_str(&text)
    }

    /// The forms to take along, as long as there is room for them.
    fn code(&self, out: &mut String) -> fmt::Result {
        let case = self.case;
        let script = qemu_io::script(case);
        let mut parts = Vec::new();
        // A plan that is nowhere else comes first, and always: it is what repeats this run exactly.
        let here = ("THE PLAN, TO BE PASTED", "the plan", case.here_command());
        if case.plan_file.is_none() {
            parts.push((true, here.clone()));
        }
        match &script {
            Ok(script) => parts.push((false, ("QEMU-IO", "the script of qemu-io", script.clone()))),
            Err(why) if case.format.is_some() => {
                writeln!(out)?;
                self.item(out, "", &format!("This can not be said in qemu-io: {why}."))?;
            }
            Err(_) => {}
        }
        parts.push((false, ("RUST TEST", "a test of Rust", rust_test::source(case))));
        if case.plan_file.is_some() {
            parts.push((false, here));
        }
        let mut left = Vec::new();
        for (always, (heading, words, text)) in parts {
            let lines = text.lines().count().saturating_add(2);
            let room = out.lines().count().saturating_add(lines) <= BRIEF_LINES;
            if always || room || self.show.detail == Detail::Full {
                self.heading(out, heading, "")?;
                self.block(out, &text)?;
            } else {
                left.push(words);
            }
        }
        if self.show.detail == Detail::Brief {
            let more = if left.is_empty() { String::new() } else { format!(", with {}", left.join(" and ")) };
            writeln!(out)?;
            self.item(out, "", &format!("--report full shows all of it{more}; --html FILE makes a page of it."))?;
        }
        Ok(())
    }

    /// Lines as they are, but for what would move a cursor; not indented, so that they can be pasted.
    fn block(&self, out: &mut dyn fmt::Write, text: &str) -> fmt::Result {
        for line in text.lines() {
            writeln!(out, "{}", safe(line).trim_end())?;
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
        match all.saturating_sub(self.show.rows()) {
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
    lines.extend(origin.shrunk.map(shrunk).or_else(|| origin.shrunk_words.map(|words| format!("Shrunk in {words}."))));
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
    let _ = write!(words, " ({})", limit.name());
    // Nobody had the time to run it again.
    if *of > 0 {
        let _ = write!(words, "; it failed in {again} of {of} further runs");
    }
    words.push('.');
    words
}
