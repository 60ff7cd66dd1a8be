//! Findings as one page that needs nothing else: no network, no font, no library, no script.
//!
//! A policy in the head forbids the page to load anything; text that came from outside reaches it escaped.

use std::fmt::Write as _;

use super::history::SECTOR;
use super::model::Run;
use super::suite::Entry;
use super::{Case, Severity, Suite, crash, history, neighbours, plan_hash, qemu_io, rust_test, table, timeline};
use crate::map::{cut, markup};
use crate::text::{count, plural};

const STYLE: &str = include_str!("page.css");
/// Characters kept of one text from outside.
const TEXT_MAX: usize = 2000;
/// Lines of a table.
const LINES_MAX: usize = 200;

/// The page; it opens from a file, offline.
#[must_use]
pub fn html(suites: &[Suite<'_>]) -> String {
    let failures: usize = suites.iter().map(Suite::failures).sum();
    let title = match failures {
        0 => "nothing found".to_owned(),
        some => plural(some as u64, "finding"),
    };
    let mut out = head(&title);
    for (index, suite) in suites.iter().enumerate() {
        one(index, suite, &mut out);
    }
    if suites.is_empty() {
        out.push_str("<p class=\"soft\">No target was tortured.</p>\n");
    }
    out.push_str(FOOT);
    out
}

/// What ends a page.
pub(super) const FOOT: &str =
    concat!("<footer>Made by blkproof ", env!("CARGO_PKG_VERSION"), ".</footer>\n</body>\n</html>\n");

/// A page up to its body. Of outside come neither the title nor anything before it.
pub(super) fn head(title: &str) -> String {
    let mut out = String::with_capacity(1 << 16);
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         base-uri 'none'; form-action 'none'\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <title>{title} · blkproof torture</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
    );
    out
}

pub(super) fn text(words: &str) -> String {
    markup(&cut(words, TEXT_MAX))
}

/// Lines as they are.
fn pre(lines: &str) -> String {
    let lines: Vec<_> = lines.lines().map(markup).collect();
    format!("<pre tabindex=\"0\">{}</pre>\n", lines.join("\n"))
}

fn one(index: usize, suite: &Suite<'_>, out: &mut String) {
    let look = if suite.failures() > 0 { "bad" } else { "good" };
    let verdict = format!("<span class=\"{look}\">{}</span>", text(&super::summary::verdict(suite)));
    let _ =
        writeln!(out, "<section class=\"suite\">\n<h1>{}: {verdict}</h1>\n<dl class=\"facts\">", text(suite.target));
    let stats = &suite.stats;
    let mut facts = Vec::new();
    if let Some(first) = suite.first {
        facts.extend([("profile", text(suite.profile)), ("first seed", format!("{first:#x}"))]);
    }
    facts.extend([
        ("requests", count(stats.ops)),
        ("failed below on purpose", count(stats.faults)),
        ("dropped", count(stats.drops)),
        ("moments of power cuts", count(stats.points)),
        ("crash states", count(stats.states)),
        ("of these distinct", super::summary::share(stats)),
        ("images checked", count(stats.checks)),
    ]);
    facts.extend(suite.seconds.map(|seconds| ("time", format!("{seconds:.1} s"))));
    if suite.first.is_some() {
        facts.push(("ended because", suite.ended.words().to_owned()));
    }
    for (name, value) in facts {
        let _ = write!(out, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    out.push_str("</dl>\n");
    if suite.entries.len() > 1 {
        out.push_str("<ol class=\"contents\">\n");
        for (number, entry) in suite.entries.iter().enumerate() {
            let case = &entry.case;
            let words = format!("{}: {}", case.finding.signature.code, cut(&case.sentence(), 160));
            let _ = writeln!(out, "<li><a href=\"#f{index}-{number}\">{}</a></li>", text(&words));
        }
        out.push_str("</ol>\n");
    }
    for (number, entry) in suite.entries.iter().enumerate() {
        finding(&format!("f{index}-{number}"), entry, out);
    }
    if let Some(coverage) = suite.coverage {
        out.push_str("<h2>Not tested</h2>\n<ul>\n");
        for line in coverage.not_tested() {
            let _ = writeln!(out, "<li>{}</li>", text(&line));
        }
        out.push_str("</ul>\n");
    }
    out.push_str("</section>\n");
}

fn finding(id: &str, entry: &Entry<'_>, out: &mut String) {
    let case = &entry.case;
    let (rule, run) = (case.rule(), case.run());
    let look = match (entry.standing.fails(), case.severity()) {
        (false, _) => "known",
        (true, Severity::LostData | Severity::WrongData | Severity::Corrupt) => "worst",
        (true, _) => "other",
    };
    let _ = write!(
        out,
        "<article id=\"{id}\">\n<header><p><b class=\"badge {look}\">{}</b> <code>{}</code> <span class=\"soft\">{}</span></p>\n\
         <h2 class=\"sentence\">{}</h2>\n<p class=\"soft\">What must hold: {}.",
        case.severity().name(),
        text(&case.finding.signature.code),
        rule.section,
        text(&case.sentence()),
        rule.holds
    );
    for line in super::text::origin(case) {
        let _ = write!(out, " {}", text(&line));
    }
    out.push_str("</p>\n");
    if let Some(known) = entry.known_words() {
        let _ = writeln!(out, "<p>{}.</p>", text(&super::case::capital(&known)));
    }
    if !case.repeats() {
        out.push_str("<p class=\"bad\">The run of the plan below did not show it again.</p>\n");
    }
    out.push_str("</header>\n<h3>Repeat</h3>\n");
    let mut commands: Vec<String> = case.plan_file.map(|_| case.replay_command()).into_iter().collect();
    commands.extend(case.seed_command());
    if commands.is_empty() {
        commands.push(case.here_command());
    }
    out.push_str(&pre(&commands.join("\n")));
    plan(case, &run, out);
    let svg = timeline::svg(case);
    if !svg.is_empty() {
        let _ = writeln!(out, "<h3>Timeline</h3>\n<div class=\"scroll\" tabindex=\"0\">{svg}</div>");
    }
    sector(case, out);
    power_cut(case, &run, out);
    out.push_str("<h3>To take along</h3>\n");
    fold(&format!("The plan, {}, to be pasted", plan_hash(case.plan)), &case.here_command(), out);
    match qemu_io::script(case) {
        Ok(script) => fold("Script of qemu-io", &script, out),
        Err(why) => {
            let _ = writeln!(out, "<p class=\"soft\">This can not be said in qemu-io: {}.</p>", text(&why));
        }
    }
    fold("Rust test", &rust_test::source(case), out);
    out.push_str("</article>\n");
}

pub(super) fn fold(title: &str, body: &str, out: &mut String) {
    let _ = writeln!(out, "<details><summary>{}</summary>\n{}</details>", text(title), pre(body));
}

fn plan(case: &Case<'_>, run: &Run<'_>, out: &mut String) {
    let _ = writeln!(
        out,
        "<h3>Plan <em>{}</em></h3>\n<div class=\"scroll\"><table><thead><tr><th scope=\"col\">op</th><th scope=\"col\">queue</th>\
         <th scope=\"col\">request</th><th scope=\"col\">moves</th><th scope=\"col\">outcome</th></tr></thead><tbody>",
        text(&table::subject(case))
    );
    let fault_row = |out: &mut String, fault: &str| {
        let _ = writeln!(out, "<tr class=\"fault\"><td></td><td></td><td colspan=\"3\">{}</td></tr>", text(fault));
    };
    for (_, fault) in table::faults(run).iter().filter(|(owner, _)| *owner == 0) {
        fault_row(out, fault);
    }
    let rows = table::rows(case, run);
    for row in rows.iter().take(LINES_MAX) {
        let _ = writeln!(
            out,
            "<tr{}><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            if row.guilty { " class=\"guilty\"" } else { "" },
            row.op,
            row.queue.map(|queue| queue.to_string()).unwrap_or_default(),
            text(&row.what),
            text(&row.moves),
            text(&row.outcome)
        );
        row.faults.iter().for_each(|fault| fault_row(out, fault));
    }
    let of_finding = |at| case.finding.cut.as_ref().is_some_and(|(point, _)| *point == at);
    for cut in run.cuts.iter().filter(|cut| of_finding(cut.point)) {
        fault_row(out, &format!("the power goes {}", super::text::cut_words(run, cut)));
    }
    out.push_str("</tbody></table></div>\n");
    more(rows.len(), out);
    if rows.iter().any(|row| row.guilty) {
        out.push_str("<p class=\"soft\">Marked: touches the wrong bytes.</p>\n");
    }
}

fn more(all: usize, out: &mut String) {
    match all.saturating_sub(LINES_MAX) {
        0 => {}
        more => {
            let _ = writeln!(out, "<p class=\"soft\">… and {} more</p>", count(more as u64));
        }
    }
}

fn sector(case: &Case<'_>, out: &mut String) {
    let (Some(sector), Some(range)) = (history::sector(case), case.finding.range) else { return };
    let _ = writeln!(
        out,
        "<h3>Sector {} <em>bytes {:#x}..{:#x}; wrong: {range}</em></h3>\n<div class=\"scroll\"><table><thead><tr>\
         <th scope=\"col\">op</th><th scope=\"col\">request</th><th scope=\"col\">outcome</th></tr></thead><tbody>",
        count(sector),
        sector * SECTOR,
        sector.saturating_add(1) * SECTOR
    );
    let lines = history::lines(case);
    for line in lines.iter().skip(lines.len().saturating_sub(LINES_MAX)) {
        let _ = writeln!(
            out,
            "<tr{}><td>{}</td><td>{}</td><td>{}{}</td></tr>",
            if line.touches { "" } else { " class=\"aside\"" },
            line.op.map(|op| op.to_string()).unwrap_or_default(),
            text(&line.what),
            text(&line.outcome),
            if line.durable { ", <b>durable</b>" } else { "" }
        );
    }
    out.push_str("</tbody></table></div>\n<dl class=\"facts\">");
    if let Some(found) = history::found(case) {
        let _ =
            write!(out, "<div><dt>holds</dt><dd class=\"bad\">{}</dd></div>", text(&super::case::found_words(found)));
    }
    let allowed = case.finding.allowed.join(" or ");
    let _ = writeln!(out, "<div><dt>may hold</dt><dd>{}</dd></div></dl>", text(&allowed));
}

fn power_cut(case: &Case<'_>, run: &Run<'_>, out: &mut String) {
    let Some(cut) = crash::cut(case, run) else { return };
    let words = format!("{}: it leaves {}", super::text::cut_words(run, &cut), cut.state.describe());
    let _ = writeln!(out, "<h3>Power cut <em>{}</em></h3>", text(&words));
    let fates = crash::fates(run, &cut);
    if fates.is_empty() {
        out.push_str("<p class=\"soft\">Nothing was left to chance: all that had been written was durable.</p>\n");
    } else {
        out.push_str(
            "<div class=\"scroll\"><table><thead><tr><th scope=\"col\">request below</th><th scope=\"col\">what</th>\
             <th scope=\"col\">after the cut</th></tr></thead><tbody>\n",
        );
        for (io, words, fate) in fates.iter().take(LINES_MAX) {
            let _ = writeln!(
                out,
                "<tr class=\"{}\"><td>{io}</td><td>{}</td><td>{}</td></tr>",
                fate.name(),
                text(words),
                fate.words()
            );
        }
        out.push_str("</tbody></table></div>\n");
        more(fates.len(), out);
    }
    for line in neighbours::lines(case.neighbours) {
        let _ = writeln!(out, "<p class=\"soft\">{}</p>", text(&line));
    }
}
