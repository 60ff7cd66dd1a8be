//! The report a person reads: verdict, causes, findings, what is lost, what was not checked, what to do next.
//!
//! The order is that of the questions of somebody who has a damaged image before them. Everything is bounded and says
//! by how much; a healthy image takes a few lines. Text out of an image is escaped before it reaches a terminal.

use std::fmt::{self, Write as _};
use std::ops::Range;

use blkproof_check::code::Severity;
use blkproof_check::finding::{Finding, Sum};
use blkproof_check::map::{Class, HostMap, Owner};
use blkproof_check::report::Cause;
use blkproof_check::{Report, Verdict};

use crate::{Style, text};

/// How much is shown, and how.
#[derive(Clone, Copy, Debug)]
pub struct Show {
    /// Colours.
    pub style: Style,
    /// Characters in a line; `None` breaks none.
    pub width: Option<usize>,
    /// Findings in all; corruption comes before leaks, leaks before warnings.
    pub findings: usize,
    /// Findings of one code.
    pub per_code: usize,
    /// Lost ranges.
    pub lost: usize,
    /// Causes.
    pub causes: usize,
    /// Lines of each other list.
    pub lines: usize,
}

impl Default for Show {
    fn default() -> Self {
        Self { style: Style::default(), width: None, findings: 20, per_code: 5, lost: 12, causes: 8, lines: 12 }
    }
}

/// Writes the report.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut dyn fmt::Write, report: &Report, show: &Show) -> fmt::Result {
    let page = Page { report, show };
    page.verdict(out)?;
    page.summary(out)?;
    page.causes(out)?;
    page.findings(out)?;
    page.lost(out)?;
    // The verdict of a format that can not be checked has said its reason already.
    let said = usize::from(report.verdict == Verdict::Unsupported);
    page.list(out, "NOT CHECKED", report.not_checked.get(said..).unwrap_or_default(), false)?;
    page.list(out, "NEXT", &report.next, true)
}

struct Page<'a> {
    report: &'a Report,
    show: &'a Show,
}

impl Page<'_> {
    fn verdict(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let (report, style) = (self.report, self.show.style);
        write!(out, "{}: ", text::safe(&report.image))?;
        match report.verdict {
            Verdict::Healthy => writeln!(out, "{}", style.good("healthy"))?,
            Verdict::Leaks => {
                let leaked = report.host.as_ref().map_or(0, |map| map.bytes(Class::Leaked));
                write!(out, "{}: ", style.fair("leaks only"))?;
                match leaked {
                    0 => write!(out, "{}", text::plural(report.numbers.leaks, "leak"))?,
                    bytes => write!(out, "{} of the file wasted", text::size(bytes))?,
                }
                writeln!(out, "; no guest data is known to be affected")?;
            }
            Verdict::Damaged => {
                write!(out, "{}: ", style.bad("damaged"))?;
                let lost = &report.lost;
                if lost.bytes == 0 {
                    let errors = text::plural(report.numbers.corruptions, "error");
                    writeln!(out, "{errors}; no guest data is known to be lost")?;
                } else {
                    let places = text::plural(self.lost_ranges(), "range");
                    writeln!(out, "{} of the guest's disk lost, in {places}", text::size(lost.bytes))?;
                }
            }
            Verdict::Undecided => {
                let why = if report.stopped { "it was stopped" } else { "too much could not be checked" };
                writeln!(out, "{}: {why}", style.bad("could not decide"))?;
            }
            Verdict::Unsupported => {
                let why = report.not_checked.first().map(|why| format!(": {}", text::safe(why))).unwrap_or_default();
                writeln!(out, "{}{why}", style.fair("not checked"))?;
            }
        }
        if report.stopped {
            writeln!(out, "  {}: what follows is what was known by then", style.fair("stopped before its end"))?;
        }
        if report.live {
            let words = "the image is in use: findings may come from reading it while it changes";
            writeln!(out, "  {}", style.fair(words))?;
        }
        Ok(())
    }

    /// What it is, and what its bytes are used for.
    fn summary(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let report = self.report;
        let mut parts = Vec::new();
        if let Some(format) = report.format {
            parts.push(format!("{}{}", format.name(), if report.probed { "" } else { " (as stated)" }));
        }
        if let Some(guest) = &report.guest {
            parts.push(format!("disk {}", text::size(guest.size)));
        }
        if let Some(host) = &report.host {
            parts.push(format!("file {}: {}", text::size(host.len), uses(host)));
        }
        if !parts.is_empty() {
            self.item(out, "  ", &parts.join(", "))?;
        }
        for other in report.references.iter().take(self.show.lines) {
            let format = other.format.as_ref().map(|format| format!(" ({})", text::safe(format))).unwrap_or_default();
            self.item(out, "  ", &format!("{} '{}'{format}", other.role, text::safe(&other.name)))?;
        }
        self.more(out, report.references.len(), self.show.lines, "")
    }

    fn causes(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let causes = &self.report.causes;
        if causes.is_empty() {
            return Ok(());
        }
        self.heading(out, "CAUSES", "")?;
        for (number, cause) in (1u64..).zip(causes.iter().take(self.show.causes)) {
            let words =
                format!("{} ({}, {})", text::safe(&cause.what), cause.confidence, text::plural(cause.errors, "error"));
            self.item(out, &format!("{number:3}. "), &words)?;
            self.cause_places(out, cause)?;
        }
        self.more(out, causes.len(), self.show.causes, "")
    }

    fn cause_places(&self, out: &mut dyn fmt::Write, cause: &Cause) -> fmt::Result {
        let places = places(&cause.host, &cause.guest);
        let codes = cause.codes.join(", ");
        let words = if places.is_empty() { codes } else { format!("{places}; {codes}") };
        self.item(out, "     ", &words)
    }

    fn findings(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let mut sums = self.report.sums.clone();
        if sums.is_empty() {
            return Ok(());
        }
        // The worst first; among equals the code with most errors.
        sums.sort_by_key(|(code, severity, sum)| (std::cmp::Reverse((*severity, sum.errors)), *code));
        self.heading(out, "FINDINGS", "`blkproof explain CODE` says what one means")?;
        let mut left = self.show.findings;
        for (code, severity, sum) in &sums {
            let of_this = |finding: &&Finding| finding.code.name == *code && finding.severity == *severity;
            // Each code is shown at least once, whatever the bound: it would be unseen otherwise.
            let most = left.min(self.show.per_code).max(usize::from(self.show.per_code > 0));
            let mut shown = Sum::default();
            for finding in self.report.findings.iter().filter(of_this).take(most) {
                self.finding(out, finding)?;
                shown.findings = shown.findings.saturating_add(1);
                shown.errors = shown.errors.saturating_add(finding.count);
                left = left.saturating_sub(1);
            }
            let more = Sum {
                findings: sum.findings.saturating_sub(shown.findings),
                errors: sum.errors.saturating_sub(shown.errors),
            };
            if more.findings > 0 {
                let errors = match more.errors == more.findings {
                    true => String::new(),
                    false => format!(" ({})", text::plural(more.errors, "error")),
                };
                writeln!(out, "  … and {} more of {code}{errors}; --max-findings", text::count(more.findings))?;
            }
        }
        Ok(())
    }

    fn finding(&self, out: &mut dyn fmt::Write, finding: &Finding) -> fmt::Result {
        let style = self.show.style;
        let severity = finding.severity.to_string();
        let severity = match finding.severity {
            Severity::Corruption => style.bad(&severity),
            Severity::Leak | Severity::Warning => style.fair(&severity),
            Severity::Note => style.dim(&severity),
        };
        let unsure = match finding.confidence {
            blkproof_check::finding::Confidence::Certain => String::new(),
            less => format!(" ({less})"),
        };
        writeln!(out, "  {severity} {}{unsure}", style.strong(finding.code.name))?;
        let errors = match finding.count {
            0 | 1 => String::new(),
            many => format!(" ({})", text::plural(many, "error")),
        };
        self.item(out, "    ", &format!("{}{errors}", text::safe(&finding.what)))?;
        let places = places(&finding.host, &finding.guest);
        if !places.is_empty() {
            self.item(out, "    ", &places)?;
        }
        // Most findings of two owners name both already.
        if finding.owners.iter().all(|owner| finding.what.contains(&owner.label)) {
            return Ok(());
        }
        for owner in finding.owners.iter().take(self.show.lines) {
            self.item(out, "    - ", &owned(owner))?;
        }
        self.more(out, finding.owners.len(), self.show.lines, "  ")
    }

    fn lost_ranges(&self) -> u64 {
        (self.report.lost.ranges.len() as u64).saturating_add(self.report.lost.left_out)
    }

    fn lost(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let lost = &self.report.lost;
        if lost.bytes == 0 {
            return Ok(());
        }
        self.heading(out, "LOST GUEST RANGES", &text::size(lost.bytes))?;
        for range in lost.ranges.iter().take(self.show.lost) {
            writeln!(out, "  {}  {}", text::range(range), text::size(range.end.saturating_sub(range.start)))?;
        }
        let shown = lost.ranges.len().min(self.show.lost) as u64;
        match self.lost_ranges().saturating_sub(shown) {
            0 => Ok(()),
            more => writeln!(out, "  … and {} more; --ddrescue-map FILE lists them", text::count(more)),
        }
    }

    fn list(&self, out: &mut dyn fmt::Write, heading: &str, lines: &[String], numbered: bool) -> fmt::Result {
        if lines.is_empty() {
            return Ok(());
        }
        self.heading(out, heading, "")?;
        for (number, line) in (1u64..).zip(lines.iter().take(self.show.lines)) {
            let mark = if numbered { format!("{number:3}. ") } else { "  - ".to_owned() };
            self.item(out, &mark, &text::safe(line))?;
        }
        self.more(out, lines.len(), self.show.lines, "")
    }

    fn heading(&self, out: &mut dyn fmt::Write, words: &str, beside: &str) -> fmt::Result {
        write!(out, "{}", self.show.style.strong(words))?;
        match beside {
            "" => writeln!(out),
            _ => writeln!(out, "  ({beside})"),
        }
    }

    /// Says that a list was cut, if it was.
    fn more(&self, out: &mut dyn fmt::Write, all: usize, shown: usize, indent: &str) -> fmt::Result {
        match all.saturating_sub(shown) {
            0 => Ok(()),
            more => writeln!(out, "{indent}  … and {} more", text::count(more as u64)),
        }
    }

    /// Text behind a mark, broken into lines where there is a width.
    fn item(&self, out: &mut dyn fmt::Write, mark: &str, words: &str) -> fmt::Result {
        match self.show.width {
            Some(width) => {
                let indent = " ".repeat(mark.chars().count());
                out.write_str(&text::wrap_after(words, mark, &indent, width))
            }
            None => writeln!(out, "{mark}{words}"),
        }
    }
}

/// What the file's bytes are for, what there is of each.
fn uses(host: &HostMap) -> String {
    let sum = |wanted: &dyn Fn(Class) -> bool| {
        Class::ALL
            .iter()
            .filter(|class| wanted(**class))
            .fold(0u64, |all, class| all.saturating_add(host.bytes(*class)))
    };
    let groups = [
        ("guest data", sum(&Class::is_data)),
        ("metadata", sum(&Class::is_metadata)),
        ("leaked", host.bytes(Class::Leaked)),
        ("claimed twice", host.bytes(Class::Conflict)),
        ("unknown", host.bytes(Class::Unknown)),
        ("free", host.bytes(Class::Free).saturating_add(host.bytes(Class::Reserved))),
    ];
    let mut words = String::new();
    for (name, bytes) in groups.into_iter().filter(|(_, bytes)| *bytes > 0) {
        let comma = if words.is_empty() { "" } else { ", " };
        let _ = write!(words, "{comma}{name} {}", text::size(bytes));
    }
    words
}

/// `image 0x1000..0x2000, guest 0x0..0x1000`, as far as there is any.
fn places(host: &[Range<u64>], guest: &[Range<u64>]) -> String {
    const MOST: usize = 4;
    let image = (!host.is_empty()).then(|| format!("image {}", text::ranges(host, MOST)));
    let guest = (!guest.is_empty()).then(|| format!("guest {}", text::ranges(guest, MOST)));
    [image, guest].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn owned(owner: &Owner) -> String {
    let guest = owner.guest.as_ref().map(|guest| format!(", guest {}", text::range(guest))).unwrap_or_default();
    format!("claimed as {} (image {}{guest})", text::safe(&owner.label), text::range(&owner.host))
}
