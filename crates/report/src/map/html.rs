//! The maps as one page that needs nothing else: no network, no font, no library.
//!
//! Head, legends and findings are plain markup and readable without a script. The script draws both maps on canvases
//! from compact strings (runs of equal cells; numbers in base 36, in units) and links findings and cells both ways. A
//! policy in the head forbids the page to load anything. Text from an image reaches the page escaped, and the script
//! only as text nodes.

use std::fmt::Write as _;
use std::ops::Range;

use blkproof_check::Report;
use blkproof_check::code::{Code, Severity};
use blkproof_check::finding::Finding;
use serde_json::{Map, Value, json};

use super::hilbert::Curve;
use super::palette::{Kind, ink_on};
use super::picture::{Mark, Panel, Part, Picture, Stretch, cause_label, cause_note, stretches};
use super::term::empty_words;
use super::text::{base36, cut, grouped, human, markup, percent, plural, ranges, visible};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Characters kept of one text from the image, and of one finding where there are hundreds.
const TEXT_MAX: usize = 500;
const TEXT_MAX_OF_MANY: usize = 200;
/// Runs of cells of one finding on one map, and of all of them.
const RUNS_MAX: usize = 512;
const ALL_RUNS_MAX: usize = 30_000;
/// Stretches of metadata told cell by cell.
const STRETCHES_MAX: usize = 16_000;
/// Bytes of the cells of one map; a map that needs more is drawn in cells twice as long, and again, until it fits.
const CELLS_MAX: usize = 500_000;
/// Findings and causes listed.
const FINDINGS_MAX: usize = 1500;
const CAUSES_MAX: usize = 50;

/// Both maps, legend, causes and findings as one HTML page; it opens from a file, offline.
///
/// About 60 KiB for a sound image of [`CELLS`](super::CELLS) cells, below 2 MiB for the worst of a thousand findings.
/// The part of its address behind `#` chooses what is shown: `finding=3`, `cause=A`, `host=17`, `guest=17` (cells),
/// `scheme=dark|light`.
#[must_use]
pub fn html(report: &Report) -> String {
    let mut picture = Picture::new(report);
    for panel in picture.host.iter_mut().chain(&mut picture.guest) {
        while cells_text(panel, common_unit(panel)).len() > CELLS_MAX {
            *panel = panel.coarser(2);
        }
    }
    let picture = picture;
    let mut out = String::with_capacity(1 << 18);
    let name = visible(&report.image);
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <title>{}: {} · blkproof check</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        markup(&cut(&name, 120)),
        report.verdict.name()
    );
    head(&picture, &mut out);
    out.push_str("<main>\n<div class=\"maps\">\n");
    panel("host", "Image file", picture.host.as_ref(), &mut out);
    panel("guest", "Guest disk", picture.guest.as_ref(), &mut out);
    out.push_str("</div>\n");
    side(&picture, &mut out);
    out.push_str("</main>\n");
    foot(&picture, &mut out);
    let _ = write!(
        out,
        "<script type=\"application/json\" id=\"data\">{}</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        script_data(&data(&picture))
    );
    out
}

/// JSON that can stand between script tags: nothing in it can end the element or begin a comment.
pub(crate) fn script_data(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

fn text(words: &str) -> String {
    markup(&cut(words, TEXT_MAX))
}

fn head(picture: &Picture<'_>, out: &mut String) {
    let report = picture.report;
    let verdict = report.verdict.name();
    let sign = match report.verdict.exit_status() {
        0 => "✓",
        1 | 63 => "?",
        3 => "~",
        _ => "✕",
    };
    let (folder, file) =
        report.image.rsplit_once('/').map_or(("", report.image.as_str()), |(folder, file)| (folder, file));
    let folder = if folder.is_empty() { String::new() } else { format!("<span>{}/</span>", text(folder)) };
    let _ = writeln!(
        out,
        "<header>\n<div class=\"row\"><h1>{folder}{}</h1><button type=\"button\" id=\"scheme\" hidden=\"\">Dark</button></div>\n\
         <p class=\"verdict\"><b class=\"{verdict}\"><span aria-hidden=\"true\">{sign}</span> {verdict}</b> <span>{}</span></p>",
        text(file),
        markup(&picture.sentence())
    );
    out.push_str("<dl class=\"facts\">");
    for (name, value) in picture.head() {
        let _ = write!(out, "<div><dt>{}</dt><dd>{}</dd></div>", markup(name), text(&value));
    }
    for (severity, errors) in picture.counts() {
        let _ = write!(out, "<div><dt>{}</dt><dd>{}</dd></div>", severity_plural(severity), grouped(errors));
    }
    out.push_str("</dl>\n");
    for notice in picture.notices() {
        let _ = writeln!(out, "<p class=\"notice\">{}</p>", markup(&notice));
    }
    out.push_str("</header>\n");
}

fn severity_plural(severity: Severity) -> &'static str {
    match severity {
        Severity::Corruption => "corruptions",
        Severity::Leak => "leaks",
        Severity::Warning => "warnings",
        Severity::Note => "notes",
    }
}

fn panel(id: &str, title: &str, panel: Option<&Panel>, out: &mut String) {
    let Some(panel) = panel else {
        let why = if id == "host" { "nothing of this file could be told apart" } else { "its size is not known" };
        let _ = writeln!(
            out,
            "<section class=\"map\" id=\"{id}\"><h2>{title}</h2><p class=\"scale\">no map</p><div class=\"empty\"><p>No map: {why}.</p></div></section>"
        );
        return;
    };
    let scale = if panel.cells.is_empty() {
        plural(panel.len, "byte")
    } else {
        format!("{} · {}", panel.scale(), plural(panel.cells.len() as u64, "cell"))
    };
    let _ = writeln!(
        out,
        "<section class=\"map\" id=\"{id}\">\n<h2>{title} <span>{}</span> <em>{}</em></h2>\n<p class=\"scale\">{}</p>",
        panel.by,
        human(panel.len),
        markup(&scale)
    );
    if panel.cells.is_empty() {
        let _ = writeln!(out, "<div class=\"empty\"><p>No picture: {}.</p></div>", empty_words(panel));
    } else {
        let label = format!(
            "{title} {}, {}, in {}. Arrow keys move, comma and full stop step along the file, Enter selects, Escape clears.",
            panel.by,
            human(panel.len),
            plural(panel.cells.len() as u64, "cell")
        );
        let _ = writeln!(
            out,
            "<div class=\"stage\"><canvas class=\"base\"></canvas><canvas class=\"over\" tabindex=\"0\" role=\"application\" aria-label=\"{}\"></canvas>\
             <noscript><p>The map needs JavaScript; legend and findings do not.</p></noscript></div>\n\
             <p class=\"readout\" aria-live=\"polite\">Point at a cell, or use the arrow keys.</p>",
            markup(&label)
        );
    }
    shares(panel, out);
    legend(panel, out);
    out.push_str("</section>\n");
}

fn swatch(kind: &Kind) -> String {
    format!("--l:{};--li:{};--d:{};--di:{}", kind.light, ink_on(kind.light), kind.dark, ink_on(kind.dark))
}

fn shares(panel: &Panel, out: &mut String) {
    if panel.len == 0 {
        return;
    }
    out.push_str("<div class=\"shares\" aria-hidden=\"true\">");
    for (index, bytes) in panel.legend() {
        if let Some(kind) = panel.kinds.get(index) {
            let share = bytes as f64 / panel.len as f64 * 100.0;
            let _ = write!(out, "<i style=\"{};flex-basis:{share:.3}%\"></i>", swatch(kind));
        }
    }
    out.push_str("</div>\n");
}

fn legend(panel: &Panel, out: &mut String) {
    out.push_str(
        "<table class=\"legend\"><thead><tr><th scope=\"col\">kind</th><th scope=\"col\">size</th>\
         <th scope=\"col\">bytes</th><th scope=\"col\">share</th></tr></thead><tbody>\n",
    );
    for (index, bytes) in panel.legend() {
        let Some(kind) = panel.kinds.get(index) else { continue };
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\"><button type=\"button\" class=\"kind\" data-kind=\"{index}\" aria-pressed=\"false\">\
             <i class=\"sw\" style=\"{}\">{}</i>{}</button></th><td>{}</td><td>{}</td><td>{}</td></tr>",
            swatch(kind),
            markup(&kind.letter.to_string()),
            kind.name,
            human(bytes),
            grouped(bytes),
            markup(&percent(bytes, panel.len))
        );
    }
    if panel.unmapped > 0 {
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\"><span class=\"kind\"><i class=\"sw no\"></i>not mapped</span></th><td>{}</td><td>{}</td><td>{}</td></tr>",
            human(panel.unmapped),
            grouped(panel.unmapped),
            markup(&percent(panel.unmapped, panel.len))
        );
    }
    let _ = writeln!(
        out,
        "</tbody><tfoot><tr><th scope=\"row\">all</th><td>{}</td><td>{}</td><td>{}</td></tr></tfoot></table>",
        human(panel.len),
        grouped(panel.len),
        markup(&percent(panel.len, panel.len))
    );
    let marked = |mark: Mark| panel.marks.iter().filter(|of| **of == mark).count() as u64;
    let (severe, mild) = (marked(Mark::Severe), marked(Mark::Mild));
    if severe + mild > 0 {
        out.push_str("<p class=\"hatches\">");
        for (class, count, words) in
            [("severe", severe, "corruption found here"), ("mild", mild, "leak or warning found here")]
        {
            if count > 0 {
                let count = plural(count, "cell");
                let _ = write!(out, "<span><i class=\"sw {class}\"></i>{words} ({count})</span>");
            }
        }
        out.push_str("</p>\n");
    }
}

fn side(picture: &Picture<'_>, out: &mut String) {
    let report = picture.report;
    out.push_str(
        "<aside>\n<section id=\"inspector\" aria-live=\"polite\"><h2>Selected</h2><div class=\"content\">\
         <p class=\"soft\">Select a cell to see what it is, or a finding to see where it is.</p>\
         <h4>How to read the maps</h4><ul class=\"key\">\
         <li><i class=\"sw ramp\"></i>the colour of the largest owner, brighter the more of the cell is in use</li>\
         <li><i class=\"sw dot\"></i>a small square inside: metadata among it</li>\
         <li><i class=\"sw severe\"></i>hatched: corruption was found here</li>\
         <li><i class=\"sw mild\"></i>dotted: a leak or a warning</li>\
         <li><b class=\"pin\">1</b>the finding or cause of that number or letter</li>\
         <li><i class=\"sw no\"></i>a kind in a legend, when pressed, is shown alone</li></ul></div></section>\n",
    );
    if !report.causes.is_empty() {
        let _ = writeln!(
            out,
            "<section><h2>{}</h2>\n<ul class=\"places\">",
            if report.causes.len() == 1 { "Cause" } else { "Causes" }
        );
        for (index, cause) in report.causes.iter().take(CAUSES_MAX).enumerate() {
            let _ = writeln!(
                out,
                "<li><button type=\"button\" class=\"place\" data-place=\"{index}\" aria-pressed=\"false\"><b class=\"pin\">{}</b>\
                 <span class=\"what\">{}</span><span class=\"where\">{}</span></button></li>",
                cause_label(index),
                text(&cause.what),
                markup(&cause_note(cause))
            );
        }
        out.push_str("</ul></section>\n");
    }
    let causes = report.causes.len().min(CAUSES_MAX);
    let _ = writeln!(
        out,
        "<section class=\"findings\"><h2>Findings <em>{}</em></h2>",
        grouped(picture.findings.len() as u64)
    );
    if picture.findings.is_empty() {
        out.push_str("<p class=\"soft\">None.</p>\n</section>\n</aside>\n");
        return;
    }
    out.push_str("<ol class=\"places\">\n");
    let text_max = if picture.findings.len() > 200 { TEXT_MAX_OF_MANY } else { TEXT_MAX };
    for (index, finding) in picture.findings.iter().take(FINDINGS_MAX).enumerate() {
        let _ = writeln!(
            out,
            "<li><button type=\"button\" class=\"place\" data-place=\"{}\" aria-pressed=\"false\"><b class=\"pin\">{}</b>\
             <span class=\"code\"><i class=\"sev {sev}\">{sev}</i> {}</span><span class=\"what\">{}</span>{}</button></li>",
            causes + index,
            index + 1,
            markup(finding.code.name),
            markup(&cut(&finding.what, text_max)),
            where_of(finding),
            sev = finding.severity,
        );
    }
    out.push_str("</ol>\n");
    let rest = picture.findings.len().saturating_sub(FINDINGS_MAX);
    if rest > 0 {
        let _ = writeln!(out, "<p class=\"soft\">and {}</p>", plural(rest as u64, "more finding"));
    }
    out.push_str("</section>\n</aside>\n");
}

fn where_of(finding: &Finding) -> String {
    let mut out = String::new();
    for (name, list) in [("file", &finding.host), ("guest", &finding.guest)] {
        if !list.is_empty() {
            let _ = write!(out, "<span class=\"where\">{name} {}</span>", ranges(list, 3));
        }
    }
    out
}

fn foot(picture: &Picture<'_>, out: &mut String) {
    let report = picture.report;
    out.push_str("<footer>\n");
    for (title, lines) in [("Not checked", &report.not_checked), ("Next", &report.next)] {
        if !lines.is_empty() {
            let _ = writeln!(out, "<section><h2>{title}</h2><ul>");
            for line in lines.iter().take(100) {
                let _ = writeln!(out, "<li>{}</li>", text(line));
            }
            out.push_str("</ul></section>\n");
        }
    }
    if !report.facts.is_empty() || !report.references.is_empty() {
        out.push_str("<section><h2>What the image says of itself</h2><dl class=\"header\">\n");
        for (name, value) in report.facts.iter().take(200) {
            let _ = writeln!(out, "<div><dt>{}</dt><dd>{}</dd></div>", markup(name), text(value));
        }
        for reference in report.references.iter().take(100) {
            let _ = writeln!(out, "<div><dt>{}</dt><dd>{}</dd></div>", markup(reference.role), text(&reference.name));
        }
        out.push_str("</dl></section>\n");
    }
    let _ = writeln!(
        out,
        "<p class=\"soft\">Made by blkproof check {}. <kbd>arrow keys</kbd> move in a map, <kbd>,</kbd> <kbd>.</kbd> step along the file, \
         <kbd>Enter</kbd> selects, <kbd>n</kbd> <kbd>p</kbd> next and previous finding, <kbd>Esc</kbd> clears.</p>\n</footer>",
        env!("CARGO_PKG_VERSION")
    );
}

fn data(picture: &Picture<'_>) -> Value {
    let mut room = ALL_RUNS_MAX;
    let mut places = Vec::new();
    for (index, cause) in picture.report.causes.iter().take(CAUSES_MAX).enumerate() {
        let mut place = place(picture, &cause.host, &cause.guest, &mut room);
        place.insert("label".to_owned(), json!(cause_label(index)));
        place.insert("codes".to_owned(), json!(cause.codes));
        places.push(Value::Object(place));
    }
    let mut codes: Vec<&Code> = Vec::new();
    for (index, finding) in picture.findings.iter().take(FINDINGS_MAX).enumerate() {
        let mut place = place(picture, &finding.host, &finding.guest, &mut room);
        place.insert("label".to_owned(), json!((index + 1).to_string()));
        place.insert("code".to_owned(), json!(finding.code.name));
        place.insert("severity".to_owned(), json!(finding.severity.to_string()));
        place.insert("sure".to_owned(), json!(finding.confidence.to_string()));
        place.insert("errors".to_owned(), json!(grouped(finding.count)));
        if !finding.owners.is_empty() {
            let owners: Vec<String> = finding
                .owners
                .iter()
                .take(6)
                .map(|owner| {
                    let guest = owner
                        .guest
                        .as_ref()
                        .map_or_else(String::new, |range| format!(", guest {:#x}..{:#x}", range.start, range.end));
                    let label = cut(&visible(&owner.label), 120);
                    format!("{label} at {:#x}..{:#x}{guest}", owner.host.start, owner.host.end)
                })
                .collect();
            place.insert("owners".to_owned(), json!(owners));
        }
        places.push(Value::Object(place));
        if !codes.contains(&finding.code) {
            codes.push(finding.code);
        }
    }
    let codes: Map<String, Value> = codes
        .iter()
        .map(|code| {
            let value = json!({"title": code.title, "why": code.why, "cause": code.cause, "next": code.next, "spec": code.spec});
            (code.name.to_owned(), value)
        })
        .collect();
    let claims = picture.report.host.as_ref().map(|map| map.claims.as_slice()).unwrap_or_default();
    json!({
        "host": picture.host.as_ref().map(|panel| map_data(panel, &stretches(claims))),
        "guest": picture.guest.as_ref().map(|panel| map_data(panel, &[])),
        "places": places,
        "causes": picture.report.causes.len().min(CAUSES_MAX),
        "codes": codes,
    })
}

/// Cells of both maps that a finding or cause touches, and whether some are left out.
fn place(picture: &Picture<'_>, host: &[Range<u64>], guest: &[Range<u64>], room: &mut usize) -> Map<String, Value> {
    let mut out = Map::new();
    let mut left_out = false;
    for (name, panel, ranges) in [("host", &picture.host, host), ("guest", &picture.guest, guest)] {
        let Some(panel) = panel else { continue };
        let (runs, complete) = panel.runs_of(ranges, RUNS_MAX.min(*room));
        *room -= runs.len();
        left_out |= !complete;
        let runs: Vec<String> = runs
            .iter()
            .map(|(first, last)| match last - first {
                0 => base36(*first as u64),
                more => format!("{}-{}", base36(*first as u64), base36(more as u64)),
            })
            .collect();
        if !runs.is_empty() {
            out.insert(name.to_owned(), json!(runs.join(" ")));
        } else if !ranges.is_empty() && complete && !panel.cells.is_empty() {
            out.insert(format!("{name}Beyond"), json!(true));
        }
    }
    if left_out {
        out.insert("more".to_owned(), json!(true));
    }
    out
}

/// A map for the script. Lengths are strings: they may be beyond what a script counts exactly.
fn map_data(panel: &Panel, stretches: &[Stretch]) -> Value {
    let curve = Curve::new(panel.cells.len());
    let unit = common_unit(panel);
    let kinds: Vec<Value> = panel
        .kinds
        .iter()
        .map(|kind| {
            let flags = u8::from(kind.used) | u8::from(kind.metadata) << 1 | u8::from(kind.alarm) << 2;
            json!([kind.letter.to_string(), kind.name, flags, kind.light, kind.dark])
        })
        .collect();
    json!({
        "title": panel.title,
        "len": panel.len.to_string(),
        "cellLen": panel.cell_len.to_string(),
        "unit": unit.to_string(),
        "width": curve.width,
        "height": curve.height,
        "moves": folded(&curve.moves()),
        "kinds": kinds,
        "cells": cells_text(panel, unit),
        "marks": marks_text(&panel.marks),
        "claims": claims_text(panel, stretches),
    })
}

/// The greatest power of two that divides what is in the cells, but for the last one.
fn common_unit(panel: &Panel) -> u64 {
    let before_last = panel.cells.len().saturating_sub(1);
    let parts = panel.cells.iter().take(before_last).flatten().map(|part| part.1.trailing_zeros());
    1u64 << parts.chain([panel.cell_len.trailing_zeros()]).min().unwrap_or(0).min(63)
}

/// `3*h` three cells full of kind h; `h2s,j1` one with 2s (base 36) units of h and 1 of j; `h2s+1f` and 1f bytes more.
fn cells_text(panel: &Panel, unit: u64) -> String {
    let one = |parts: &[Part]| {
        let words: Vec<String> = parts
            .iter()
            .map(|(kind, bytes)| match (*bytes == panel.cell_len, bytes % unit) {
                (true, _) => base36(u64::from(*kind)),
                (false, 0) => format!("{}{}", base36(u64::from(*kind)), base36(bytes / unit)),
                (false, rest) => format!("{}{}+{}", base36(u64::from(*kind)), base36(bytes / unit), base36(rest)),
            })
            .collect();
        if words.is_empty() { "-".to_owned() } else { words.join(",") }
    };
    let mut out: Vec<(String, u64)> = Vec::new();
    for parts in &panel.cells {
        let word = one(parts);
        match out.last_mut() {
            Some((last, count)) if *last == word => *count += 1,
            _ => out.push((word, 1)),
        }
    }
    joined(out)
}

/// `3*a` three cells of a kind of mark: 0 none, 1 mild, 2 severe.
fn marks_text(marks: &[Mark]) -> String {
    let mut out: Vec<(String, u64)> = Vec::new();
    for mark in marks {
        let word = match mark {
            Mark::None => "0",
            Mark::Mild => "1",
            Mark::Severe => "2",
        };
        match out.last_mut() {
            Some((last, count)) if last == word => *count += 1,
            _ => out.push((word.to_owned(), 1)),
        }
    }
    joined(out)
}

fn joined(words: Vec<(String, u64)>) -> String {
    let words: Vec<String> = words
        .into_iter()
        .map(|(word, count)| if count == 1 { word } else { format!("{}*{word}", base36(count)) })
        .collect();
    words.join(" ")
}

/// Steps with equal neighbours counted: `r3d` for `rrrd`.
fn folded(moves: &str) -> String {
    let mut out = String::new();
    let mut moves = moves.chars().peekable();
    while let Some(step) = moves.next() {
        let mut count = 1u32;
        while moves.next_if_eq(&step).is_some() {
            count += 1;
        }
        out.push(step);
        if count > 1 {
            let _ = write!(out, "{count}");
        }
    }
    out
}

/// Metadata cell by cell: `cell:kind.index.count.start.len,…;rest` with all numbers in base 36. Of cells with very much
/// of it only the first stretches are told; `rest` is how many are not.
fn claims_text(panel: &Panel, stretches: &[Stretch]) -> String {
    let mut per_cell: Vec<Vec<usize>> = vec![Vec::new(); panel.cells.len()];
    let mut counts = vec![0usize; panel.cells.len()];
    for (index, stretch) in stretches.iter().enumerate() {
        let Some((first, last)) = panel.cells_of(&stretch.claim.range()) else { continue };
        for (cell, count) in per_cell.iter_mut().zip(&mut counts).take(last + 1).skip(first) {
            *count += 1;
            if cell.len() < 32 {
                cell.push(index);
            }
        }
    }
    let told = |max: usize| counts.iter().fold(0usize, |all, count| all + (*count).min(max));
    let mut max = 32;
    while max > 1 && told(max) > STRETCHES_MAX {
        max /= 2;
    }
    let mut words = Vec::new();
    for (cell, (list, count)) in per_cell.iter().zip(&counts).enumerate().filter(|(_, (list, _))| !list.is_empty()) {
        let list: Vec<String> = list
            .iter()
            .take(max)
            .filter_map(|index| stretches.get(*index))
            .map(|Stretch { claim, count }| {
                let kind = base36(claim.class as u64);
                let [index, count, start, len] = [claim.index, *count, claim.start, claim.len].map(base36);
                format!("{kind}.{index}.{count}.{start}.{len}")
            })
            .collect();
        let rest = count.saturating_sub(list.len());
        words.push(format!("{}:{};{}", base36(cell as u64), list.join(","), base36(rest as u64)));
    }
    words.join(" ")
}
