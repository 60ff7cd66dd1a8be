//! The maps in letters, for a terminal: rows in the order of the file, the legend under them.
//!
//! Colour only repeats what the letters say. Whether to use it is the caller's to decide (`NO_COLOR`, a terminal or
//! not).

use std::fmt::Write as _;

use blkproof_check::Report;
use blkproof_check::code::Severity;

use super::picture::{Mark, Panel, Picture, cause_label, cause_note};
use super::text::{cut, grouped, human, percent, plural, ranges, visible};

/// Rows of one map; a wide terminal gets more cells, not more rows.
const ROWS_MAX: usize = 20;
/// Findings listed; the rest is in the human output of the check itself.
const FINDINGS_MAX: usize = 12;

/// Both maps with legend and the first findings, in lines of at most `width` characters (at least 60, at most 240).
///
/// Each character is one stretch of equal length: the letter of the largest owner, `.` for free, `!` where corruption
/// was found, `*` where a leak or a warning was found outside leaked or unknown space. With `colour`, letters stand on
/// the colour of their kind; the letters are the same.
#[must_use]
pub fn term(report: &Report, width: usize, colour: bool) -> String {
    let picture = Picture::new(report);
    let mut out = Lines::new(width, colour);
    out.head(&picture);
    out.maps(&picture);
    out.findings(&picture);
    out.text
}

/// The maps alone, with their legends: what goes below a report that has said the rest.
#[must_use]
pub fn term_maps(report: &Report, width: usize, colour: bool) -> String {
    let mut out = Lines::new(width, colour);
    out.maps(&Picture::new(report));
    out.text
}

struct Lines {
    text: String,
    width: usize,
    colour: bool,
}

impl Lines {
    fn new(width: usize, colour: bool) -> Self {
        Self { text: String::new(), width: width.clamp(60, 240), colour }
    }

    /// Both maps, and what their marks mean.
    fn maps(&mut self, picture: &Picture<'_>) {
        for panel in picture.panels() {
            self.panel(panel);
        }
        if picture.panels().next().is_none() {
            self.line("");
            self.line("No map: nothing of this file could be told apart.");
        }
        self.marks(picture);
    }

    fn line(&mut self, words: &str) {
        self.text.push_str(cut(words, self.width).trim_end());
        self.text.push('\n');
    }

    /// Words over several lines if they are too many for one; those after the first are indented.
    fn wrapped(&mut self, words: &str, indent: usize) {
        let rest = words.trim_start_matches(' ');
        let mut line = " ".repeat(words.len() - rest.len());
        let mut fresh = true;
        for word in words_of(rest) {
            if !fresh && line.chars().count() + 1 + word.chars().count() > self.width {
                self.line(&line);
                line = " ".repeat(indent);
            } else if !fresh {
                line.push(' ');
            }
            line.push_str(&word);
            fresh = false;
        }
        self.line(&line);
    }

    fn styled(&mut self, codes: &str, words: &str) {
        if self.colour {
            let _ = write!(self.text, "\x1b[{codes}m{words}\x1b[0m");
        } else {
            self.text.push_str(words);
        }
    }

    fn head(&mut self, picture: &Picture<'_>) {
        let name = visible(&picture.report.image);
        let head: Vec<String> = picture.head().iter().map(|(name, value)| format!("{name} {value}")).collect();
        self.line(&name);
        self.wrapped(&head.join(" · "), 0);
        self.wrapped(&format!("{}: {}", picture.report.verdict.name(), picture.sentence()), 2);
        for notice in picture.notices() {
            self.wrapped(&notice, 2);
        }
    }

    fn panel(&mut self, panel: &Panel) {
        self.line("");
        let label = format!("{:#x}", panel.len).len();
        let columns = self.width.saturating_sub(label + 1).max(8) / 8 * 8;
        let factor = panel.cells.len().div_ceil(columns * ROWS_MAX).max(1);
        let map = panel.coarser(factor);
        let title = format!("{} {}, {}", panel.title, panel.by, human(panel.len));
        if panel.cells.is_empty() {
            self.line(&format!("{title}: {}", empty_words(panel)));
        } else {
            self.wrapped(&format!("{title}; {}", map.scale().replace("cell", "character")), 2);
        }
        for (row, cells) in map.cells.chunks(columns).enumerate() {
            let first = row * columns;
            let _ = write!(self.text, "{:>label$} ", format!("{:#x}", map.bytes_of(first, first).start));
            self.row(&map, first, cells.len());
            self.text.push('\n');
        }
        self.shares(panel, label);
        self.legend(panel);
    }

    /// One row of cells; equal neighbours share their colour codes.
    fn row(&mut self, map: &Panel, first: usize, count: usize) {
        let mut last = String::new();
        for index in first..first + count {
            let (letter, codes) = character(map, index);
            if self.colour && codes != last {
                let _ = write!(self.text, "\x1b[0m\x1b[{codes}m");
                last = codes;
            }
            self.text.push(letter);
        }
        if self.colour && !last.is_empty() {
            self.text.push_str("\x1b[0m");
        }
    }

    /// One line in which each kind has its share.
    fn shares(&mut self, panel: &Panel, label: usize) {
        let columns = self.width.saturating_sub(label + 1).max(8) / 8 * 8;
        let legend = panel.legend();
        if panel.len == 0 || legend.is_empty() {
            return;
        }
        let _ = write!(self.text, "{:>label$} ", "share");
        let (mut sum, mut drawn) = (0u128, 0usize);
        for (kind, bytes) in legend {
            sum += u128::from(bytes);
            let upto = usize::try_from(sum * columns as u128 / u128::from(panel.len)).unwrap_or(columns).min(columns);
            let Some(kind) = panel.kinds.get(kind) else { continue };
            let words = String::from(kind.letter).repeat(upto.saturating_sub(drawn));
            if !words.is_empty() {
                self.styled(&colours(kind.ansi, 100), &words);
            }
            drawn = upto.max(drawn);
        }
        self.text.push('\n');
    }

    fn legend(&mut self, panel: &Panel) {
        let mut rows: Vec<(char, Option<u8>, &str, u64)> = Vec::new();
        for (kind, bytes) in panel.legend() {
            if let Some(kind) = panel.kinds.get(kind) {
                rows.push((kind.letter, Some(kind.ansi), kind.name, bytes));
            }
        }
        if panel.unmapped > 0 {
            rows.push((' ', None, "not mapped", panel.unmapped));
        }
        let exact = rows.iter().map(|row| grouped(row.3).len()).chain([grouped(panel.len).len()]).max().unwrap_or(1);
        for (letter, ansi, name, bytes) in rows {
            self.text.push_str("  ");
            match ansi {
                Some(ansi) => self.styled(&colours(ansi, 100), &letter.to_string()),
                None => self.text.push(letter),
            }
            self.text.push_str(&self.figures(name, bytes, panel.len, exact));
            self.text.push('\n');
        }
        let total = self.figures("all", panel.len, panel.len, exact);
        self.line(&format!("   {total}"));
    }

    /// Name, exact bytes, percent, and the size for people where there is room.
    fn figures(&self, name: &str, bytes: u64, whole: u64, exact: usize) -> String {
        let mut out = format!(" {name:<18} {:>exact$} {:>9}", grouped(bytes), percent(bytes, whole));
        if out.chars().count() + 15 <= self.width {
            let _ = write!(out, "  {:>10}", human(bytes));
        }
        out
    }

    fn marks(&mut self, picture: &Picture<'_>) {
        let marks = || picture.panels().flat_map(|panel| &panel.marks);
        let severe = marks().any(|mark| *mark == Mark::Severe);
        let mild = marks().any(|mark| *mark == Mark::Mild);
        if severe || mild {
            self.line("");
        }
        if severe {
            self.wrapped("! corruption was found here, whatever else lies there", 2);
        }
        if mild {
            self.wrapped("* a leak or a warning was found here (leaked space shows as F, unknown as ?)", 2);
        }
    }

    fn findings(&mut self, picture: &Picture<'_>) {
        if !picture.report.causes.is_empty() {
            self.line("");
            self.line("Causes");
        }
        for (index, cause) in picture.report.causes.iter().take(FINDINGS_MAX).enumerate() {
            let what = cut(&visible(&cause.what), 300);
            self.wrapped(&format!("{:>3} {what} ({})", cause_label(index), cause_note(cause)), 4);
        }
        if !picture.findings.is_empty() {
            self.line("");
            self.line("Findings");
        }
        for (index, finding) in picture.findings.iter().take(FINDINGS_MAX).enumerate() {
            let what = cut(&visible(&finding.what), 300);
            self.wrapped(&format!("{:>3} {} {}: {what}", index + 1, finding.severity, finding.code.name), 4);
            let mut places = Vec::new();
            if !finding.host.is_empty() {
                places.push(format!("file {}", ranges(&finding.host, 3)));
            }
            if !finding.guest.is_empty() {
                places.push(format!("guest {}", ranges(&finding.guest, 3)));
            }
            if !places.is_empty() {
                self.wrapped(&format!("    {}", places.join(" · ")), 4);
            }
        }
        let rest = (picture.findings.len() as u64).saturating_sub(FINDINGS_MAX as u64);
        if rest > 0 {
            self.line(&format!("    and {}", plural(rest, "more finding")));
        }
        let counts: Vec<String> = picture
            .counts()
            .iter()
            .map(|(severity, errors)| match severity {
                Severity::Corruption => plural(*errors, "corruption"),
                Severity::Leak => plural(*errors, "leak"),
                Severity::Warning => plural(*errors, "warning"),
                Severity::Note => plural(*errors, "note"),
            })
            .collect();
        if !counts.is_empty() {
            self.wrapped(&format!("Single errors: {}", counts.join(", ")), 2);
        }
    }
}

/// The words of a text; the groups of one number stay together.
fn words_of(text: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let group = word.bytes().take_while(u8::is_ascii_digit).count() == 3;
        match out.last_mut() {
            Some(last) if group && last.ends_with(|letter: char| letter.is_ascii_digit()) => {
                last.push(' ');
                last.push_str(word);
            }
            _ => out.push(word.to_owned()),
        }
    }
    out
}

/// Why there is no picture.
pub(crate) fn empty_words(panel: &Panel) -> &'static str {
    match (panel.len, panel.drawn) {
        (0, _) => "it is empty",
        (_, false) => "no picture was made of it, only the sums",
        _ => "nothing to draw",
    }
}

/// The letter of a cell and its colours.
fn character(map: &Panel, index: usize) -> (char, String) {
    let look = map.look(index);
    let Some(kind) = look.kind.and_then(|kind| map.kinds.get(usize::from(kind))) else {
        return match look.mark {
            Mark::None => ('.', "38;5;244".to_owned()),
            Mark::Mild => ('*', "1;4".to_owned()),
            Mark::Severe => ('!', "1;38;5;231;48;5;196".to_owned()),
        };
    };
    match look.mark {
        Mark::Severe => ('!', "1;38;5;231;48;5;196".to_owned()),
        // Leaked and unknown space have letters of their own, which say more.
        Mark::Mild if !matches!(kind.letter, 'F' | '?') => ('*', format!("1;4;{}", colours(kind.ansi, 100))),
        Mark::Mild | Mark::None => (kind.letter, colours(kind.ansi, look.share)),
    }
}

/// Readable letters on a colour; on the plain ground where less than half is in use.
fn colours(ansi: u8, share: u8) -> String {
    let dark = [22, 24, 54, 91, 94, 130, 162, 236, 242, 196].contains(&ansi);
    match share {
        0..50 => format!("38;5;{ansi}"),
        _ => format!("38;5;{};48;5;{ansi}", if dark { 231 } else { 16 }),
    }
}
