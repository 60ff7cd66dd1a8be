//! Annotations for GitHub's workflows: the worst ten (CM 12.3), for it shows no more of one step.

use super::suite::{Entry, worst_first};
use super::{Suite, table};
use crate::map::cut;
use crate::text::{plural, safe};

/// Annotations of one run, at most.
pub const MOST: usize = 10;
/// Characters of one text.
const TEXT_MAX: usize = 1500;

/// Lines of workflow commands, one for each finding.
#[must_use]
pub fn annotations(suites: &[Suite<'_>]) -> String {
    let all = worst_first(suites);
    let more = all.len().saturating_sub(MOST);
    let mut out = String::new();
    for (index, entry) in all.iter().take(MOST).enumerate() {
        let rest = if index.saturating_add(1) == MOST { more } else { 0 };
        out.push_str(&annotation(entry, rest));
    }
    out
}

fn annotation(entry: &Entry<'_>, more: usize) -> String {
    let case = &entry.case;
    let rule = case.rule();
    let kind = if entry.standing.fails() { "error" } else { "notice" };
    let title = format!("{}: {} ({}, {})", case.plan.target.name, case.severity().name(), rule.code, rule.section);
    let mut lines = vec![case.sentence()];
    lines.extend(entry.known_words().map(|known| super::case::capital(&known)));
    lines.push(String::new());
    let run = case.run();
    for row in table::rows(case, &run) {
        let outcome = if row.outcome.is_empty() { String::new() } else { format!(": {}", row.outcome) };
        lines.push(format!("{} {}{outcome}", row.op, row.what));
        lines.extend(row.faults.iter().map(|fault| format!("  {fault}")));
    }
    lines.push(String::new());
    lines.extend(case.replay_command().lines().map(str::to_owned));
    if more > 0 {
        lines.push(format!("and {} more, which are not shown here", plural(more as u64, "finding")));
    }
    let text = lines.iter().map(|line| safe(&cut(line, TEXT_MAX))).collect::<Vec<_>>().join("\n");
    format!("::{kind} title={}::{}\n", property(&safe(&title)), data(&text))
}

/// What follows the second pair of colons.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// The value of a property, which a comma or a colon would end.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}
