//! qcheck's output: its sections in its order, each line on a stream with a letter, streams chosen by presets and
//! letters.
//!
//! A [`Printer`] watches the check: entries of tables are printed while the tables are walked, what comes of the whole
//! file afterwards, by [`Printer::finish`]. Letters, headings, summaries and line shapes are qcheck's; what was wrong
//! with them is not kept: equal errors are one line, `A` and `U` are exact, `F` has its own title, vacant clusters are
//! no problem, and "Could not complete analysis" is said only where it is true. Exit statuses are those of `qemu-img
//! check`.

mod runs;
mod streams;

use std::io::{self, Write};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use blkproof_check::code::Severity;
use blkproof_check::finding::Finding;
use blkproof_check::map::{Class, HostMap};
use blkproof_check::watch::{Event, Progress, Wants, Watch};
use blkproof_check::{Report, Verdict};

pub use streams::{LETTERS, Preset, Streams};

use crate::text;
use runs::Runs;

/// Prints the streams chosen, each to the output qcheck sent it to.
pub struct Printer<O, E> {
    streams: Streams,
    state: Mutex<State<O, E>>,
}

struct State<O, E> {
    out: O,
    err: E,
    /// The first error of writing; nothing is written after it.
    failed: Option<io::Error>,
    /// Fields that came before any section: all there is of the header where the analyser has no sections.
    fields: Vec<(String, String)>,
    sections: bool,
    runs: Runs,
    phase: &'static str,
}

impl<O: Write + Send, E: Write + Send> Printer<O, E> {
    /// A printer of these streams to standard output and standard error, or whatever stands for them.
    pub fn new(streams: Streams, out: O, err: E) -> Self {
        let state =
            State { out, err, failed: None, fields: Vec::new(), sections: false, runs: Runs::default(), phase: "" };
        Self { streams, state: Mutex::new(state) }
    }

    /// The start-up line; `now` is the time as `2018-02-13 12:00:00`.
    pub fn start(&self, image: &str, now: &str) {
        self.lines().put('e', format_args!("[{now}] qcheck analyzing '{}' for corruption", text::safe(image)));
    }

    /// A message of stream `f` (fatal) or `w` (not fatal).
    pub fn message(&self, stream: char, words: &str) {
        self.lines().put(stream, format_args!("{words}"));
    }

    /// Prints what is known only at the end: ranges of the file, counts, the closing line.
    ///
    /// # Errors
    /// The first error of writing anything.
    pub fn finish(&self, report: &Report) -> io::Result<()> {
        let mut lines = self.lines();
        if !lines.state.sections {
            lines.plain_sections(report);
        }
        // Whatever has no section of its own: the file itself.
        for finding in report.findings.iter().filter(|finding| finding.code.name.starts_with("IMAGE-")) {
            let stream = if finding.severity >= Severity::Leak { 'p' } else { 'w' };
            lines.put(stream, format_args!("{}", problem(finding)));
        }
        for sentence in &report.not_checked {
            lines.put('i', format_args!("Not checked: {}", text::safe(sentence)));
        }
        if let Some(host) = &report.host {
            lines.ranges(host);
            lines.counts(host);
        }
        for sentence in &report.next {
            lines.put('i', format_args!("Next: {}", text::safe(sentence)));
        }
        let problems = report.numbers.corruptions.saturating_add(report.numbers.leaks);
        let cut = report.stopped || matches!(report.verdict, Verdict::Undecided | Verdict::Unsupported);
        lines.summary("qcheck", problems, cut);
        lines.flush();
        match lines.state.failed.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Whether writing failed: nobody reads what is still to come.
    pub fn failed(&self) -> bool {
        self.lines().state.failed.is_some()
    }

    fn lines(&self) -> Lines<'_, O, E> {
        Lines { streams: self.streams, state: self.state.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

impl<O: Write + Send, E: Write + Send> Watch for Printer<O, E> {
    fn wants(&self) -> Wants {
        self.streams.wants()
    }

    fn event(&self, event: &Event<'_>) {
        self.lines().event(event);
    }

    fn progress(&self, progress: Progress) {
        if !self.streams.has('d') {
            return;
        }
        let mut lines = self.lines();
        if lines.state.phase != progress.phase {
            lines.state.phase = progress.phase;
            lines.put('d', format_args!("debug: {}: {} of {} bytes", progress.phase, progress.done, progress.total));
        }
    }

    fn stop(&self) -> bool {
        self.failed()
    }
}

struct Lines<'a, O, E> {
    streams: Streams,
    state: MutexGuard<'a, State<O, E>>,
}

impl<O: Write, E: Write> Lines<'_, O, E> {
    fn put(&mut self, stream: char, words: std::fmt::Arguments<'_>) {
        if !self.streams.has(stream) || self.state.failed.is_some() {
            return;
        }
        let written = match stream {
            'f' | 'w' | 'd' => writeln!(self.state.err, "{words}"),
            _ => writeln!(self.state.out, "{words}"),
        };
        if let Err(error) = written {
            self.state.failed = Some(error);
        }
    }

    fn flush(&mut self) {
        for flushed in [self.state.out.flush(), self.state.err.flush()] {
            if let Err(error) = flushed {
                self.state.failed.get_or_insert(error);
            }
        }
    }

    fn heading(&mut self, title: &str) {
        self.put('h', format_args!("== {} ==", text::safe(title)));
    }

    fn summary(&mut self, label: &str, problems: u64, cut: bool) {
        let cut = if cut { "Could not complete analysis, " } else { "" };
        match problems {
            0 if cut.is_empty() => self.put('s', format_args!("{label}: OK, 0 problems")),
            1 => self.put('s', format_args!("{label}: {cut}1 problem found")),
            _ => self.put('s', format_args!("{label}: {cut}{problems} problems found")),
        }
    }

    fn problem(&mut self, finding: &Finding) {
        let stream = if finding.severity == Severity::Note { 'i' } else { 'p' };
        self.put(stream, format_args!("{}", problem(finding)));
        for owner in &finding.owners {
            let guest = owner.guest.as_ref().map(|guest| format!(", guest {}", text::range(guest))).unwrap_or_default();
            let (label, host) = (text::safe(&owner.label), text::range(&owner.host));
            self.put(stream, format_args!("  claimed as {label} ({host}{guest})"));
        }
    }

    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Section(title) => {
                // An analyser that has sections tells the fields again, each in its place.
                self.state.fields.clear();
                self.state.sections = true;
                self.heading(title);
            }
            Event::Summary(label, problems, cut) => self.summary(label, *problems, *cut),
            Event::Field(name, value) if self.state.sections => {
                self.put('H', format_args!("{name}: {}", text::safe(value)));
            }
            Event::Field(name, value) => {
                if self.streams.has('H') {
                    self.state.fields.push(((*name).to_owned(), (*value).to_owned()));
                }
            }
            Event::Confirm(words) => self.put('c', format_args!("OK: {}", text::safe(words))),
            Event::Info(words) => self.put('i', format_args!("{}", text::safe(words))),
            Event::Problem(finding) => self.problem(finding),
            Event::Entry { class, index, cluster, raw, value, flags, flawed, .. } => {
                let stream = self.streams.of_entry(*class, *value, *flawed);
                match class {
                    Class::RefcountBlock => {
                        self.put(stream, format_args!("{index:#06x}: CLUSTER {cluster:#010x}; refcount: {value}"))
                    }
                    _ => {
                        let flags = if flags.is_empty() { String::new() } else { format!("; {flags}") };
                        self.put(
                            stream,
                            format_args!(
                                "{index:#06x}: CLUSTER {cluster:#010x}; ent: {raw:#018x}; ptr: {value:#018x}{flags}"
                            ),
                        );
                    }
                }
            }
            Event::Host(range, class) => {
                if let Err(error) = self.state.runs.push(range.clone(), *class) {
                    self.state.failed.get_or_insert(error);
                }
            }
        }
    }

    fn fields(&mut self) {
        for (name, value) in std::mem::take(&mut self.state.fields) {
            self.put('H', format_args!("{name}: {}", text::safe(&value)));
        }
    }

    /// Formats qcheck did not know: what the header says, and every problem.
    fn plain_sections(&mut self, report: &Report) {
        self.heading("Header");
        self.fields();
        self.heading("Analysis");
        let mut shown = 0u64;
        for finding in report.findings.iter().filter(|finding| !finding.code.name.starts_with("IMAGE-")) {
            self.problem(finding);
            shown = shown.saturating_add(1);
        }
        let of_format = report.sums.iter().filter(|(name, _, _)| !name.starts_with("IMAGE-"));
        let all = of_format.fold(0u64, |all, (_, _, sum)| all.saturating_add(sum.findings));
        if all > shown {
            self.put('p', format_args!("… and {} more; --max-findings", all.saturating_sub(shown)));
        }
        let problems = report.numbers.corruptions.saturating_add(report.numbers.leaks);
        let cut = matches!(report.verdict, Verdict::Undecided | Verdict::Unsupported);
        self.summary(report.format.map_or("Image", |format| format.name()), problems, cut);
    }

    /// The stretches of the file, once for each stream that selects some of them.
    fn ranges(&mut self, host: &HostMap) {
        for (letter, title) in streams::RANGES {
            if !self.streams.has(*letter) {
                continue;
            }
            self.heading(title);
            let merged = matches!(letter, 'A' | 'U');
            let mut clusters = 0u64;
            let mut pending: Option<(Range<u64>, Class)> = None;
            let mut reader = match self.state.runs.reader() {
                Ok(reader) => reader,
                Err(error) => {
                    self.state.failed.get_or_insert(error);
                    return;
                }
            };
            loop {
                let next = match reader.next(&mut self.state.runs) {
                    Ok(next) => next,
                    Err(error) => {
                        self.state.failed.get_or_insert(error);
                        return;
                    }
                };
                let wanted = next.filter(|(_, class)| streams::selects(*letter, *class));
                if next_is_end(&pending, &wanted, merged)
                    && let Some((range, class)) = pending.take()
                {
                    let units = units(&range, host.unit);
                    clusters = clusters.saturating_add(units);
                    self.range(*letter, &range, class, units);
                }
                match (&mut pending, wanted) {
                    (Some((range, _)), Some((more, _))) => range.end = more.end,
                    (pending @ None, Some(wanted)) => *pending = Some(wanted),
                    (_, None) => {}
                }
                if reader.done() && pending.is_none() {
                    break;
                }
            }
            self.heading(&format!("{title} stats"));
            self.put(*letter, format_args!("{clusters} clusters"));
        }
    }

    fn range(&mut self, letter: char, range: &Range<u64>, class: Class, units: u64) {
        let kind = match letter {
            'A' => "Allocated",
            'U' => "Unallocated",
            _ => streams::group(class),
        };
        let name = match letter {
            'A' | 'U' => String::new(),
            _ if class.name().eq_ignore_ascii_case(kind) => String::new(),
            _ => format!(" {class}"),
        };
        let noun = if units == 1 { "cluster" } else { "clusters" };
        let (first, last) = (range.start, range.end.saturating_sub(1));
        self.put(letter, format_args!("{first:#011x} - {last:#011x} [{kind}] ({units} {noun}){name}"));
    }

    fn counts(&mut self, host: &HostMap) {
        if !self.streams.has('s') {
            return;
        }
        self.heading("Cluster Counts");
        let mut total = (0u64, 0u64);
        for group in streams::GROUPS {
            let in_group = Class::ALL.iter().filter(|class| streams::group(**class) == *group);
            let bytes = in_group.fold(0u64, |all, class| all.saturating_add(host.bytes(*class)));
            let always = matches!(*group, "Metadata" | "Data" | "Leaked" | "Vacant");
            if bytes == 0 && !always {
                continue;
            }
            let clusters = bytes.div_ceil(host.unit.max(1));
            total = (total.0.saturating_add(clusters), total.1.saturating_add(bytes));
            self.put('s', format_args!("{:<12} {clusters} ({bytes:#x} bytes)", format!("{group}:")));
        }
        self.put('s', format_args!("{:<12} {} ({:#x} bytes)", "total:", total.0, total.1));
    }
}

/// Whether the stretch gathered so far does not go on.
fn next_is_end(pending: &Option<(Range<u64>, Class)>, next: &Option<(Range<u64>, Class)>, merged: bool) -> bool {
    match (pending, next) {
        (Some((range, class)), Some((more, of))) => range.end != more.start || (!merged && class != of),
        (Some(_), None) => true,
        (None, _) => false,
    }
}

/// Clusters a range touches.
fn units(range: &Range<u64>, unit: u64) -> u64 {
    let unit = unit.max(1);
    range.end.div_ceil(unit).saturating_sub(range.start / unit)
}

fn problem(finding: &Finding) -> String {
    let kind = match finding.severity {
        Severity::Corruption => "Error",
        Severity::Leak => "Leak",
        Severity::Warning => "Warning",
        Severity::Note => "Note",
    };
    let many = if finding.count > 1 { format!(" ({} errors)", finding.count) } else { String::new() };
    let guest = match finding.guest.first() {
        Some(range) => format!(", guest {}", text::range(range)),
        None => String::new(),
    };
    format!("{kind}: {}{many}{guest} [{}]", text::safe(&finding.what), finding.code.name)
}
