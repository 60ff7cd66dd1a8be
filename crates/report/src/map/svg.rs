//! The maps as one SVG that stands alone: no script, no font, no reference to anything outside.
//!
//! A run of equal cells along the curve is one thick line with one title, so the file is small however long the run. A
//! map with more runs than [`RUNS_MAX`] is drawn in cells twice as long, and again, until it fits; the legend stays
//! exact.

use std::fmt::Write as _;
use std::ops::Range;

use blkproof_check::Report;

use super::hilbert::Curve;
use super::palette::{Kind, ink_on, mix};
use super::picture::{Look, Mark, Panel, Picture, cause_label, cause_note};
use super::term::empty_words;
use super::text::{cut, grouped, human, markup, percent, plural, ranges, visible};

/// Runs drawn in one map.
const RUNS_MAX: usize = 6000;
/// Findings listed.
const FINDINGS_MAX: usize = 40;
/// Causes listed.
const CAUSES_MAX: usize = 12;
/// Widths in pixels: a map, the page's margin, the space between the maps.
const MAP: f64 = 512.0;
const MARGIN: f64 = 32.0;
const BETWEEN: f64 = 48.0;
const PAGE: f64 = 2.0 * MARGIN + 2.0 * MAP + BETWEEN;
/// A cell is never larger, so that an image of one cell is not a wall of colour.
const CELL_MAX: f64 = 96.0;
/// Levels of brightness.
const LEVELS: u32 = 5;
/// Ground of a map on light and on dark.
const GROUND: (&str, &str) = ("#e6eaf0", "#262c37");

/// Both maps with titles, legend, numbered findings and what was not checked, as an SVG document.
///
/// Colours follow the reader's scheme, light or dark. Everything from the image is escaped.
#[must_use]
pub fn svg(report: &Report) -> String {
    let picture = Picture::new(report);
    let mut page = Page { body: String::new(), y: MARGIN, styles: Vec::new() };
    page.head(&picture);
    let (top, mut bottom) = (page.y, page.y);
    for (column, panel) in picture.panels().enumerate() {
        page.y = top;
        page.panel(&picture, panel, MARGIN + column as f64 * (MAP + BETWEEN));
        bottom = bottom.max(page.y);
    }
    page.y = bottom;
    if picture.panels().next().is_none() {
        page.text(MARGIN, "", "No map: nothing of this file could be told apart.", 26.0);
    }
    page.findings(&picture);
    page.list("Not checked", &report.not_checked);
    page.list("Next", &report.next);
    page.finish(&picture)
}

struct Page {
    body: String,
    y: f64,
    /// Class, colour on light, colour on dark.
    styles: Vec<(String, String, String)>,
}

impl Page {
    /// A line of text whose baseline lies `down` below the last one.
    fn text(&mut self, x: f64, class: &str, words: &str, down: f64) {
        self.y += down;
        let _ = writeln!(self.body, "<text x=\"{x}\" y=\"{:.1}\" class=\"{class}\">{}</text>", self.y, markup(words));
    }

    fn wrapped(&mut self, x: f64, class: &str, words: &str, columns: usize, lines: usize) {
        for line in wrap(&visible(words), columns, lines) {
            self.text(x, class, &line, 17.0);
        }
    }

    fn head(&mut self, picture: &Picture<'_>) {
        let name = visible(&picture.report.image);
        self.text(MARGIN, "name", &cut_front(&name, 90), 18.0);
        let head: Vec<String> = picture.head().iter().map(|(name, value)| format!("{name} {value}")).collect();
        self.text(MARGIN, "soft", &head.join("  ·  "), 22.0);
        let sign = match picture.report.verdict.exit_status() {
            0 => "✓",
            1 | 63 => "?",
            3 => "~",
            _ => "✕",
        };
        let words = format!("{sign} {}: {}", picture.report.verdict.name(), picture.sentence());
        self.text(MARGIN, "verdict", &words, 28.0);
        for notice in picture.notices() {
            self.wrapped(MARGIN, "", &notice, 150, 2);
        }
        self.y += 14.0;
    }

    fn panel(&mut self, picture: &Picture<'_>, full: &Panel, x: f64) {
        let title = format!("{} {} · {}", full.title, full.by, human(full.len));
        self.text(x, "title", &title, 20.0);
        let (map, runs) = fitting(full);
        let scale = if map.cells.is_empty() { empty_words(full).to_owned() } else { map.scale() };
        self.text(x, "soft", &scale, 18.0);
        self.y += 12.0;
        if map.cells.is_empty() {
            let _ = writeln!(
                self.body,
                "<rect x=\"{x}\" y=\"{:.1}\" width=\"{MAP}\" height=\"96\" rx=\"4\" class=\"none\"/>",
                self.y
            );
            self.y += 96.0;
        } else {
            let drawing = Drawing::new(picture, &map, full.title == "Guest disk");
            let _ = writeln!(self.body, "<g transform=\"translate({x} {:.1})\">", self.y);
            drawing.draw(&runs, &mut self.body, &mut self.styles);
            self.body.push_str("</g>\n");
            self.y += drawing.height();
        }
        self.y += 14.0;
        self.shares(full, x);
        self.legend(full, x);
    }

    /// One bar in which each kind has its share.
    fn shares(&mut self, panel: &Panel, x: f64) {
        let mut at = 0.0;
        for (index, bytes) in panel.legend() {
            let Some(kind) = panel.kinds.get(index) else { continue };
            let width = if panel.len == 0 { 0.0 } else { bytes as f64 / panel.len as f64 * MAP };
            let class = self.fill(kind);
            let _ = writeln!(
                self.body,
                "<rect x=\"{:.2}\" y=\"{:.1}\" width=\"{width:.2}\" height=\"8\" class=\"{class}\"><title>{} {}</title></rect>",
                x + at,
                self.y,
                kind.name,
                markup(&percent(bytes, panel.len))
            );
            at += width;
        }
        self.y += 10.0;
    }

    fn legend(&mut self, panel: &Panel, x: f64) {
        for (index, bytes) in panel.legend() {
            let Some(kind) = panel.kinds.get(index).copied() else { continue };
            let class = self.fill(&kind);
            self.row(x, Some((&class, kind)), kind.name, bytes, panel.len);
        }
        if panel.unmapped > 0 {
            self.row(x, None, "not mapped", panel.unmapped, panel.len);
        }
        let _ = writeln!(
            self.body,
            "<line x1=\"{x}\" x2=\"{}\" y1=\"{:.1}\" y2=\"{:.1}\" class=\"rule\"/>",
            x + MAP,
            self.y + 8.0,
            self.y + 8.0
        );
        self.y += 4.0;
        self.row(x, None, "all", panel.len, panel.len);
        for (mark, words) in
            [(Mark::Severe, "corruption was found here"), (Mark::Mild, "a leak or a warning was found here")]
        {
            let cells = panel.marks.iter().filter(|of| **of == mark).count() as u64;
            if cells > 0 {
                self.y += 22.0;
                let _ = writeln!(
                    self.body,
                    "<rect x=\"{x}\" y=\"{:.1}\" width=\"14\" height=\"14\" class=\"free\"/>\
                     <rect x=\"{x}\" y=\"{:.1}\" width=\"14\" height=\"14\" fill=\"url(#{})\" class=\"outline\"/>\
                     <text x=\"{}\" y=\"{:.1}\">{words} ({})</text>",
                    self.y - 11.0,
                    self.y - 11.0,
                    if mark == Mark::Severe { "severe" } else { "mild" },
                    x + 24.0,
                    self.y,
                    plural(cells, "cell")
                );
            }
        }
        self.y += 8.0;
    }

    fn row(&mut self, x: f64, swatch: Option<(&str, Kind)>, name: &str, bytes: u64, whole: u64) {
        self.y += 20.0;
        let y = self.y;
        if let Some((class, kind)) = swatch {
            let _ = write!(
                self.body,
                "<rect x=\"{x}\" y=\"{:.1}\" width=\"14\" height=\"14\" rx=\"2\" class=\"{class}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" class=\"letter {class}t\">{}</text>",
                y - 11.0,
                x + 7.0,
                y,
                kind.letter
            );
        }
        let _ = writeln!(
            self.body,
            "<text x=\"{}\" y=\"{y:.1}\">{}</text><text x=\"{}\" y=\"{y:.1}\" class=\"number soft\">{}</text>\
             <text x=\"{}\" y=\"{y:.1}\" class=\"number\">{}</text><text x=\"{}\" y=\"{y:.1}\" class=\"number\">{}</text>",
            x + 24.0,
            markup(name),
            x + 222.0,
            human(bytes),
            x + 434.0,
            grouped(bytes),
            x + MAP,
            markup(&percent(bytes, whole))
        );
    }

    /// The class of a kind's full colour, and `…t` for text on it.
    fn fill(&mut self, kind: &Kind) -> String {
        let class = format!("f{:x}", u32::from(kind.letter));
        if !self.styles.iter().any(|(of, _, _)| of.strip_prefix('.').is_some_and(|of| of == class)) {
            self.styles.push((format!(".{class}"), format!("fill:{}", kind.light), format!("fill:{}", kind.dark)));
            let ink = |colour| format!("fill:{}", ink_on(colour));
            self.styles.push((format!(".{class}t"), ink(kind.light), ink(kind.dark)));
        }
        class
    }

    fn findings(&mut self, picture: &Picture<'_>) {
        let causes = &picture.report.causes;
        if !causes.is_empty() {
            self.text(MARGIN, "title", "Causes", 34.0);
        }
        for (index, cause) in causes.iter().take(CAUSES_MAX).enumerate() {
            self.y += 5.0;
            let top = self.y;
            self.wrapped(MARGIN + 28.0, "", &format!("{} ({})", cause.what, cause_note(cause)), 165, 3);
            self.pin(&cause_label(index), MARGIN + 9.0, top + 13.0);
        }
        if !picture.findings.is_empty() {
            let counts: Vec<String> =
                picture.counts().iter().map(|(severity, errors)| format!("{severity} {}", grouped(*errors))).collect();
            self.text(MARGIN, "title", &format!("Findings · single errors: {}", counts.join(", ")), 34.0);
        }
        for (index, finding) in picture.findings.iter().take(FINDINGS_MAX).enumerate() {
            self.y += 7.0;
            let top = self.y;
            let _ = writeln!(
                self.body,
                "<text x=\"{}\" y=\"{:.1}\"><tspan class=\"bold\">{}</tspan> <tspan class=\"code\">{}</tspan></text>",
                MARGIN + 28.0,
                top + 17.0,
                finding.severity,
                finding.code.name
            );
            self.y += 17.0;
            self.wrapped(MARGIN + 28.0, "", &finding.what, 165, 3);
            let mut places = Vec::new();
            if !finding.host.is_empty() {
                places.push(format!("file {}", ranges(&finding.host, 4)));
            }
            if !finding.guest.is_empty() {
                places.push(format!("guest {}", ranges(&finding.guest, 4)));
            }
            if !places.is_empty() {
                self.wrapped(MARGIN + 28.0, "soft", &places.join("  ·  "), 165, 2);
            }
            self.pin(&(index + 1).to_string(), MARGIN + 9.0, top + 13.0);
        }
        let rest = (picture.findings.len() as u64).saturating_sub(FINDINGS_MAX as u64);
        if rest > 0 {
            self.text(MARGIN + 28.0, "soft", &format!("and {}", plural(rest, "more finding")), 24.0);
        }
    }

    fn pin(&mut self, label: &str, x: f64, y: f64) {
        let _ = writeln!(
            self.body,
            "<g class=\"pin\"><circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"9\"/><text x=\"{x:.1}\" y=\"{:.1}\">{}</text></g>",
            y + 3.5,
            markup(label)
        );
    }

    fn list(&mut self, title: &str, lines: &[String]) {
        if lines.is_empty() {
            return;
        }
        self.text(MARGIN, "title", title, 34.0);
        self.y += 4.0;
        for line in lines.iter().take(20) {
            self.wrapped(MARGIN, "", line, 170, 3);
        }
    }

    fn finish(self, picture: &Picture<'_>) -> String {
        let height = self.y + MARGIN;
        let mut light = String::new();
        let mut dark = String::new();
        for (class, on_light, on_dark) in &self.styles {
            let _ = write!(light, "{class}{{{on_light}}}");
            let _ = write!(dark, "{class}{{{on_dark}}}");
        }
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {PAGE} {height:.0}\" width=\"{PAGE}\" height=\"{height:.0}\" role=\"img\">\n\
             <title>{}: {}</title>\n\
             <style>\n{}\n{light}\n@media (prefers-color-scheme:dark){{{DARK}\n{dark}}}\n</style>\n\
             <defs>\n\
             <pattern id=\"severe\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\"><rect width=\"1.6\" height=\"5\" class=\"inkfill\"/></pattern>\n\
             <pattern id=\"mild\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\"><rect x=\"1\" y=\"1\" width=\"1.6\" height=\"1.6\" class=\"inkfill\"/></pattern>\n\
             </defs>\n\
             <rect width=\"100%\" height=\"100%\" class=\"page\"/>\n{}</svg>\n",
            markup(&picture.report.image),
            picture.report.verdict.name(),
            LIGHT,
            self.body
        )
    }
}

const LIGHT: &str = ".page{fill:#fff}text{font:13px system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;fill:#111827}\
text.soft{fill:#566072}text.name{font-size:19px;font-weight:600}text.verdict{font-size:16px;font-weight:600}\
text.title{font-size:15px;font-weight:600}.bold{font-weight:600}.code{font-family:ui-monospace,'DejaVu Sans Mono',monospace;font-size:12px}\
.number{text-anchor:end;font-variant-numeric:tabular-nums}.letter{text-anchor:middle;font:600 10px ui-monospace,'DejaVu Sans Mono',monospace}\
.cell{text-anchor:middle;dominant-baseline:central;font-family:ui-monospace,'DejaVu Sans Mono',monospace;font-weight:600;pointer-events:none;paint-order:stroke;stroke-width:5}\
.run{fill:none;stroke-linecap:square;stroke-linejoin:miter;shape-rendering:crispEdges}.free{fill:#e6eaf0}.none{fill:none;stroke:#c4cbd6;stroke-dasharray:4 4}\
.rule{stroke:#c4cbd6}.lines{stroke:#fff;fill:none;shape-rendering:crispEdges;pointer-events:none}\
.outline{stroke:#111827;stroke-width:1.4;fill-opacity:1}.edge{stroke:#111827;stroke-width:1.4;fill:none;pointer-events:none;stroke-linecap:square}\
.hatch{fill:none;stroke-linecap:square;pointer-events:none}.inkfill{fill:#111827}\
.pin circle{fill:#111827;stroke:#fff;stroke-width:1.5}.pin text{fill:#fff;font-size:10px;font-weight:600;text-anchor:middle}\
.pin line{stroke:#fff;stroke-width:3}.pin line+line{stroke:#111827;stroke-width:1.3}.pin{pointer-events:none}";
const DARK: &str = ".page{fill:#12161d}text{fill:#e8ebf0}text.soft{fill:#9aa5b5}.free{fill:#262c37}.none{stroke:#414957}\
.rule{stroke:#414957}.lines{stroke:#12161d}.outline,.edge{stroke:#fff}.inkfill{fill:#fff}\
.pin circle{fill:#f9fafb;stroke:#12161d}.pin text{fill:#111827}.pin line{stroke:#12161d}.pin line+line{stroke:#fff}";

/// Cells first..=last that look the same.
struct Run {
    first: usize,
    last: usize,
    look: Look,
}

/// The map in cells long enough that it has at most [`RUNS_MAX`] runs.
fn fitting(panel: &Panel) -> (Panel, Vec<Run>) {
    let mut factor = 1usize;
    loop {
        let map = panel.coarser(factor);
        let runs = runs(&map);
        if runs.len() <= RUNS_MAX {
            return (map, runs);
        }
        factor *= 2;
    }
}

fn runs(map: &Panel) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::new();
    for index in 0..map.cells.len() {
        let look = map.look(index);
        // Equal enough: kind, level, mark. The dot is a layer of its own.
        let same = |run: &Run| {
            run.look.kind == look.kind && level(run.look.share) == level(look.share) && run.look.mark == look.mark
        };
        match out.last_mut() {
            Some(run) if same(run) => run.last = index,
            _ => out.push(Run { first: index, last: index, look }),
        }
    }
    out
}

/// Brightness of a share, 1..=[`LEVELS`].
fn level(share: u8) -> u32 {
    (u32::from(share) * LEVELS).div_ceil(100).max(1)
}

struct Drawing<'a> {
    picture: &'a Picture<'a>,
    map: &'a Panel,
    guest: bool,
    curve: Curve,
    cell: f64,
}

impl<'a> Drawing<'a> {
    fn new(picture: &'a Picture<'a>, map: &'a Panel, guest: bool) -> Self {
        let curve = Curve::new(map.cells.len());
        let cell = (MAP / f64::from(curve.width.max(1))).min(CELL_MAX);
        Self { picture, map, guest, curve, cell }
    }

    fn height(&self) -> f64 {
        self.cell * f64::from(self.curve.height)
    }

    fn corner(&self, index: usize) -> (f64, f64) {
        let (x, y) = self.curve.places.get(index).copied().unwrap_or_default();
        (f64::from(x) * self.cell, f64::from(y) * self.cell)
    }

    fn draw(&self, runs: &[Run], out: &mut String, styles: &mut Vec<(String, String, String)>) {
        let touching = self.touching();
        for run in runs {
            let class = self.colour(run.look, styles);
            let path = self.path(run.first, run.last);
            let title = self.title(run, &touching);
            let _ = writeln!(
                out,
                "<path class=\"run {class}\" stroke-width=\"{}\" d=\"{path}\"><title>{title}</title></path>",
                short(self.cell)
            );
        }
        self.dots(out, styles);
        if self.cell >= 12.0 {
            self.grid_lines(out);
        }
        for (mark, pattern) in [(Mark::Severe, "severe"), (Mark::Mild, "mild")] {
            let hatched: String = runs
                .iter()
                // A tiny cell on its own keeps its colour: the border around it is the mark.
                .filter(|run| run.look.mark == mark && (self.cell >= 7.0 || run.last > run.first))
                .map(|run| self.path(run.first, run.last))
                .collect();
            if !hatched.is_empty() {
                let width = short(self.cell);
                let _ = writeln!(
                    out,
                    "<path class=\"hatch\" stroke=\"url(#{pattern})\" stroke-width=\"{width}\" d=\"{hatched}\"/>"
                );
            }
            self.edges(mark, out);
        }
        if self.cell >= 16.0 {
            self.letters(out, styles);
        }
        self.pins(out);
    }

    /// The line through the middle of the cells.
    fn path(&self, first: usize, last: usize) -> String {
        let (x, y) = self.corner(first);
        let middle = self.cell / 2.0;
        let mut out = format!("M{} {}", short(x + middle), short(y + middle));
        if first == last {
            // A line without length has no direction for its square ends in some programs.
            out.push_str("h.01");
        }
        let mut pending: Option<(char, f64)> = None;
        for index in first..last {
            let (from, to) = (self.corner(index), self.corner(index + 1));
            let step = if from.1 == to.1 { ('h', to.0 - from.0) } else { ('v', to.1 - from.1) };
            match &mut pending {
                Some((way, far)) if *way == step.0 && (*far > 0.0) == (step.1 > 0.0) => *far += step.1,
                _ => {
                    if let Some((way, far)) = pending.replace(step) {
                        let _ = write!(out, "{way}{}", short(far));
                    }
                }
            }
        }
        if let Some((way, far)) = pending {
            let _ = write!(out, "{way}{}", short(far));
        }
        out
    }

    fn colour(&self, look: Look, styles: &mut Vec<(String, String, String)>) -> String {
        let Some(kind) = look.kind.and_then(|kind| self.map.kinds.get(usize::from(kind))) else {
            add(styles, "c0", &format!("stroke:{}", GROUND.0), &format!("stroke:{}", GROUND.1));
            return "c0".to_owned();
        };
        let class = format!("c{:x}l{}", u32::from(kind.letter), level(look.share));
        let percent = brightness(level(look.share));
        let stroke = |ground, full| format!("stroke:{}", mix(ground, full, percent));
        add(styles, &class, &stroke(GROUND.0, kind.light), &stroke(GROUND.1, kind.dark));
        class
    }

    fn dots(&self, out: &mut String, styles: &mut Vec<(String, String, String)>) {
        let mut paths: Vec<String> = vec![String::new(); self.map.kinds.len()];
        let size = (self.cell * 0.45).round().max(1.0);
        let inset = ((self.cell - size) / 2.0).floor();
        for index in 0..self.map.cells.len() {
            if let Some(path) = self.map.look(index).dot.and_then(|kind| paths.get_mut(usize::from(kind))) {
                let (x, y) = self.corner(index);
                let (x, y, size) = (short(x + inset), short(y + inset), short(size));
                let _ = write!(path, "M{x} {y}h{size}v{size}h-{size}z");
            }
        }
        for (kind, path) in self.map.kinds.iter().zip(paths).filter(|(_, path)| !path.is_empty()) {
            let class = format!("d{:x}", u32::from(kind.letter));
            add(styles, &class, &format!("fill:{}", kind.light), &format!("fill:{}", kind.dark));
            let _ = writeln!(out, "<path class=\"{class}\" pointer-events=\"none\" d=\"{path}\"/>");
        }
    }

    fn grid_lines(&self, out: &mut String) {
        let (width, height) = (self.cell * f64::from(self.curve.width), self.height());
        let mut path = String::new();
        for column in 1..self.curve.width {
            let _ = write!(path, "M{} 0V{}", short(f64::from(column) * self.cell), short(height));
        }
        for row in 1..self.curve.height {
            let _ = write!(path, "M0 {}H{}", short(f64::from(row) * self.cell), short(width));
        }
        let _ = writeln!(out, "<path class=\"lines\" d=\"{path}\"/>");
    }

    /// The border of what is marked, unless it is too ragged to help.
    fn edges(&self, mark: Mark, out: &mut String) {
        let (width, height) = (self.curve.width as usize, self.curve.height as usize);
        let mut marked = vec![false; width * height];
        for (place, of) in self.curve.places.iter().zip(&self.map.marks) {
            if let Some(cell) = marked.get_mut(place.1 as usize * width + place.0 as usize) {
                *cell = *of == mark;
            }
        }
        let at = |x: usize, y: usize| x < width && y < height && marked.get(y * width + x).copied().unwrap_or(false);
        let (mut path, mut count) = (String::new(), 0usize);
        for y in 0..=height {
            for x in 0..=width {
                let here = at(x, y);
                if here != (y > 0 && at(x, y - 1)) {
                    let _ = write!(
                        path,
                        "M{} {}h{}",
                        short(x as f64 * self.cell),
                        short(y as f64 * self.cell),
                        short(self.cell)
                    );
                    count += 1;
                }
                if here != (x > 0 && at(x - 1, y)) {
                    let _ = write!(
                        path,
                        "M{} {}v{}",
                        short(x as f64 * self.cell),
                        short(y as f64 * self.cell),
                        short(self.cell)
                    );
                    count += 1;
                }
            }
        }
        if count > 0 && count <= RUNS_MAX {
            let _ = writeln!(out, "<path class=\"edge\" d=\"{path}\"/>");
        }
    }

    fn letters(&self, out: &mut String, styles: &mut Vec<(String, String, String)>) {
        let size = (self.cell * 0.45).clamp(9.0, 22.0);
        for index in 0..self.map.cells.len() {
            let look = self.map.look(index);
            let Some(kind) = look.kind.and_then(|kind| self.map.kinds.get(usize::from(kind))) else { continue };
            let percent = brightness(level(look.share));
            let class = format!("t{:x}l{}", u32::from(kind.letter), level(look.share));
            // The letter stands out from hatching by a border of the cell's colour.
            let ink = |ground, full| {
                let colour = mix(ground, full, percent);
                format!("fill:{};stroke:{colour}", ink_on(&colour))
            };
            add(styles, &class, &ink(GROUND.0, kind.light), &ink(GROUND.1, kind.dark));
            let (x, y) = self.corner(index);
            let _ = writeln!(
                out,
                "<text class=\"cell {class}\" style=\"font-size:{}px\" x=\"{}\" y=\"{}\">{}</text>",
                short(size),
                short(x + self.cell / 2.0),
                short(y + self.cell / 2.0),
                kind.letter
            );
        }
    }

    /// The ranges of a finding or cause on this map.
    fn side<'r>(&self, host: &'r [Range<u64>], guest: &'r [Range<u64>]) -> &'r [Range<u64>] {
        if self.guest { guest } else { host }
    }

    /// Numbers on the map, as long as they do not cover one another.
    fn pins(&self, out: &mut String) {
        let causes = self.picture.report.causes.iter().take(CAUSES_MAX).enumerate();
        let causes = causes.map(|(index, cause)| (cause_label(index), self.side(&cause.host, &cause.guest)));
        let findings = self.picture.findings.iter().take(FINDINGS_MAX).enumerate();
        let findings =
            findings.map(|(index, finding)| ((index + 1).to_string(), self.side(&finding.host, &finding.guest)));
        let mut placed: Vec<(f64, f64)> = Vec::new();
        for (label, ranges) in findings.chain(causes) {
            let Some((first, _)) = ranges.iter().find_map(|range| self.map.cells_of(range)) else { continue };
            let (x, y) = self.corner(first);
            let (x, y) = (x + self.cell / 2.0, y + self.cell / 2.0);
            let free = |at: &(f64, f64)| placed.iter().all(|of| (of.0 - at.0).hypot(of.1 - at.1) >= 20.0);
            let size = (self.cell * f64::from(self.curve.width), self.height());
            let inside = |at: &(f64, f64)| at.0 > 9.0 && at.1 > 9.0 && at.0 < size.0 - 9.0 && at.1 < size.1 - 9.0;
            let corner = self.cell / 2.0 - 12.0;
            let roomy = self.cell >= 36.0;
            let beside = [(13.0, -13.0), (-13.0, -13.0), (13.0, 13.0), (-13.0, 13.0), (24.0, 0.0), (-24.0, 0.0)];
            let within = [
                (corner, -corner),
                (-corner, -corner),
                (corner, corner),
                (-corner, corner),
                (corner, 0.0),
                (-corner, 0.0),
            ];
            let spots = if roomy { within } else { beside };
            let Some(at) = spots.iter().map(|(dx, dy)| (x + dx, y + dy)).find(|at| inside(at) && free(at)) else {
                continue;
            };
            placed.push(at);
            let (px, py) = (short(at.0), short(at.1));
            // The line ends beside the cell, not on it; within a large cell there is nothing to point at.
            let far = (at.0 - x).hypot(at.1 - y).max(1.0);
            let away = ((self.cell * 0.5 + 2.0) / far).min(0.6);
            let (x, y) = if roomy { at } else { (x + (at.0 - x) * away, y + (at.1 - y) * away) };
            let line = format!("<line x1=\"{}\" y1=\"{}\" x2=\"{px}\" y2=\"{py}\"/>", short(x), short(y));
            let _ = writeln!(
                out,
                "<g class=\"pin\">{line}{line}<circle cx=\"{px}\" cy=\"{py}\" r=\"9\"/><text x=\"{px}\" y=\"{}\">{}</text></g>",
                short(at.1 + 3.5),
                markup(&label)
            );
        }
    }

    /// Of each cell, the numbers of the first findings that touch it, and how many there are.
    fn touching(&self) -> Vec<(Vec<usize>, usize)> {
        let mut out = vec![(Vec::new(), 0usize); self.map.cells.len()];
        for (index, finding) in self.picture.findings.iter().enumerate() {
            let (runs, _) = self.map.runs_of(self.side(&finding.host, &finding.guest), usize::MAX);
            for (first, last) in runs {
                for (numbers, count) in out.iter_mut().take(last + 1).skip(first) {
                    *count += 1;
                    if numbers.len() < 4 {
                        numbers.push(index + 1);
                    }
                }
            }
        }
        out
    }

    fn title(&self, run: &Run, touching: &[(Vec<usize>, usize)]) -> String {
        let range = self.map.bytes_of(run.first, run.last);
        let len = range.end.saturating_sub(range.start);
        let mut sums = vec![0u64; self.map.kinds.len()];
        for (kind, bytes) in self.map.cells.iter().take(run.last + 1).skip(run.first).flatten() {
            if let Some(sum) = sums.get_mut(usize::from(*kind)) {
                *sum = sum.saturating_add(*bytes);
            }
        }
        let mut rows: Vec<(&Kind, u64)> = self.map.kinds.iter().zip(sums).filter(|(_, bytes)| *bytes > 0).collect();
        rows.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let mut out = format!("{:#x}..{:#x}", range.start, range.end);
        for (index, (kind, bytes)) in rows.iter().take(4).enumerate() {
            let _ = write!(out, "{}{} {}", if index == 0 { ": " } else { ", " }, kind.name, percent(*bytes, len));
        }
        let (mut numbers, mut more) = (Vec::new(), false);
        for (some, count) in touching.iter().take(run.last + 1).skip(run.first) {
            numbers.extend(some.iter().filter(|number| !numbers.contains(*number)).copied().collect::<Vec<_>>());
            more |= *count > some.len() || numbers.len() > 6;
            if numbers.len() > 6 {
                break;
            }
        }
        if !numbers.is_empty() {
            let list: Vec<String> = numbers.iter().take(6).map(ToString::to_string).collect();
            let word = if numbers.len() == 1 && !more { "finding" } else { "findings" };
            let _ = write!(out, "; {word} {}{}", list.join(", "), if more { ", …" } else { "" });
        }
        markup(&out)
    }
}

/// Hundredths of the full colour at a level: what is in use at all can be seen.
fn brightness(level: u32) -> u32 {
    35 + 65 * level / LEVELS
}

fn add(styles: &mut Vec<(String, String, String)>, class: &str, light: &str, dark: &str) {
    let name = format!(".{class}");
    if !styles.iter().any(|(of, _, _)| *of == name) {
        styles.push((name, light.to_owned(), dark.to_owned()));
    }
}

/// A coordinate without needless digits.
fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// A path whose end, the file's name, stays.
fn cut_front(text: &str, max: usize) -> String {
    let count = text.chars().count();
    if count <= max { text.to_owned() } else { ['…'].into_iter().chain(text.chars().skip(count + 1 - max)).collect() }
}

/// Text in lines; what does not fit in so many is cut.
fn wrap(text: &str, columns: usize, lines: usize) -> Vec<String> {
    let mut out: Vec<String> = vec![String::new()];
    for word in text.split(' ') {
        let mut word = cut(word, columns);
        let full = out.len() >= lines;
        let Some(line) = out.last_mut() else { break };
        if line.is_empty() {
            std::mem::swap(line, &mut word);
        } else if line.chars().count() + 1 + word.chars().count() <= columns {
            line.push(' ');
            line.push_str(&word);
        } else if !full {
            out.push(word);
        } else {
            line.push_str(" …");
            break;
        }
    }
    out
}
