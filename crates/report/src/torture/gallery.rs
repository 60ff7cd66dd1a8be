//! How well the tester finds bugs that were planted: a page with a table of them.

use std::fmt::Write as _;

use super::html::{FOOT, fold, head, text};
use crate::text::{count, plural};

/// A bug, and how it was found.
#[derive(Clone, PartialEq, Debug)]
pub struct Bug<'a> {
    /// Its name.
    pub name: &'a str,
    /// The real bug that it copies.
    pub copies: &'a str,
    /// What is wrong, in words.
    pub what: &'a str,
    /// Starts from which it was found, and all.
    pub found: (usize, usize),
    /// Client requests until then: median and worst.
    pub ops: Option<(u64, u64)>,
    /// Seconds of a processor until then: median and worst.
    pub seconds: Option<(f64, f64)>,
    /// The code of the finding; empty if there is none.
    pub code: &'a str,
    /// Ops of the least plan that shows it, and that plan.
    pub plan: Option<(usize, &'a str)>,
}

/// A driver without a bug.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sound<'a> {
    /// Its name.
    pub name: &'a str,
    /// Seeds that were run.
    pub seeds: u64,
    /// Client requests.
    pub ops: u64,
    /// Crash states.
    pub states: u64,
    /// What was found all the same, in words.
    pub findings: Vec<String>,
}

/// The page; it opens from a file, offline. `again` is the command that measures the same again, `summary` a few lines.
#[must_use]
pub fn html(bugs: &[Bug<'_>], sound: &[Sound<'_>], again: &str, summary: &str) -> String {
    let found = bugs.iter().filter(|bug| bug.found.0 == bug.found.1).count();
    let title = format!("{} of {} found", count(found as u64), plural(bugs.len() as u64, "planted bug"));
    let look = if found == bugs.len() { "good" } else { "bad" };
    let mut out = head(&title);
    let _ = writeln!(out, "<h1>Gallery: <span class=\"{look}\">{title}</span></h1>");
    for line in summary.lines().filter(|line| !line.is_empty()) {
        let _ = writeln!(out, "<p>{}</p>", text(line));
    }
    let _ = writeln!(out, "<pre tabindex=\"0\">{}</pre>", text(again));
    out.push_str(
        "<div class=\"scroll\" tabindex=\"0\"><table class=\"bugs\"><thead><tr><th scope=\"col\">planted</th><th scope=\"col\">found</th>\
         <th scope=\"col\">operations, median</th><th scope=\"col\">worst</th><th scope=\"col\">seconds, median</th>\
         <th scope=\"col\">worst</th><th scope=\"col\">plan, ops</th><th scope=\"col\">finding</th>\
         <th scope=\"col\">the real bug</th></tr></thead><tbody>\n",
    );
    for bug in bugs {
        row(bug, &mut out);
    }
    out.push_str("</tbody></table></div>\n<h2>Drivers without a bug</h2>\n<div class=\"scroll\" tabindex=\"0\"><table class=\"bugs\"><thead><tr>\
         <th scope=\"col\">driver</th><th scope=\"col\">seeds</th><th scope=\"col\">operations</th>\
         <th scope=\"col\">crash states</th><th scope=\"col\">found</th></tr></thead><tbody>\n");
    for driver in sound {
        let found = match driver.findings.as_slice() {
            [] => "<span class=\"good\">nothing</span>".to_owned(),
            findings => format!("<span class=\"bad\">{}</span>", text(&findings.join("; "))),
        };
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{found}</td></tr>",
            text(driver.name),
            count(driver.seeds),
            count(driver.ops),
            count(driver.states)
        );
    }
    out.push_str("</tbody></table></div>\n<h2>The least plans</h2>\n");
    for bug in bugs {
        if let Some((ops, plan)) = bug.plan {
            fold(&format!("{}, {}: {}", bug.name, plural(ops as u64, "op"), bug.what), plan, &mut out);
        }
    }
    out.push_str(FOOT);
    out
}

fn row(bug: &Bug<'_>, out: &mut String) {
    let (found, starts) = bug.found;
    let look = if found == starts { "good" } else { "bad" };
    let ops = bug.ops.map(|(median, worst)| (count(median), count(worst))).unwrap_or_default();
    let seconds =
        bug.seconds.map(|(median, worst)| (format!("{median:.3}"), format!("{worst:.3}"))).unwrap_or_default();
    let plan = bug.plan.map(|(ops, _)| count(ops as u64)).unwrap_or_default();
    let _ = writeln!(
        out,
        "<tr><td>{}</td><td class=\"{look}\">{found}/{starts}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{plan}</td>\
         <td>{}</td><td>{}</td></tr>",
        text(bug.name),
        ops.0,
        ops.1,
        seconds.0,
        seconds.1,
        text(bug.code),
        text(bug.copies)
    );
}
