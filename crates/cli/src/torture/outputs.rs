//! What was found, for programs: JSON (schema [`SCHEMA`]), JUnit's XML, annotations for GitHub, a page.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use blkproof_torture::store::Standing;
use blkproof_torture::workload::Profile;
use serde_json::{Value, json};

use super::campaign::{Done, Told};
use super::{Args, Format};

/// The schema's name. Its number grows when a key changes its meaning or goes; new keys may come at any time.
pub(super) const SCHEMA: &str = "blkproof.torture/1";

pub(super) fn json(all: &[Done], again: &str, profile: Profile, code: u8) -> Value {
    let targets: Vec<Value> = all.iter().map(Done::json).collect();
    json!({
        "schema": SCHEMA, "again": again, "profile": profile.name, "exit_status": code, "targets": targets,
    })
}

/// Writes what was asked for beside the report.
pub(super) fn write(args: &Args, all: &[Done]) -> anyhow::Result<()> {
    if let Some(path) = &args.junit {
        file(path, &junit(all))?;
    }
    if let Some(path) = &args.html {
        file(path, &html(all))?;
    }
    if args.github {
        let text: String = all.iter().flat_map(|done| &done.findings).map(annotation).collect();
        // GitHub listens to both; standard output may have to be JSON alone.
        match args.format {
            Format::Human => super::print(&text)?,
            Format::Json => eprint!("{text}"),
        }
    }
    Ok(())
}

fn file(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("could not write '{}'", path.display()))
}

/// A suite for each target, with a case for each finding, and one for the rest.
fn junit(all: &[Done]) -> String {
    let mut text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"blkproof torture\">\n".to_owned();
    for done in all {
        let target = escaped(&done.target);
        let failures = done.findings.iter().filter(|told| told.standing.fails()).count();
        let skipped = done.findings.len().saturating_sub(failures);
        let tests = done.findings.len().saturating_add(1);
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "  <testsuite name=\"{target}\" tests=\"{tests}\" failures=\"{failures}\" errors=\"0\" skipped=\"{skipped}\" \
             time=\"{:.3}\">",
            done.seconds
        );
        let seeds = done.results.seeds;
        let _ = writeln!(
            text,
            "    <testcase classname=\"{target}\" name=\"{seeds} seeds from {:#x}\" time=\"{:.3}\"/>",
            done.first, done.seconds
        );
        for told in &done.findings {
            let finding = &told.record.finding;
            let name = escaped(&finding.signature.to_string());
            let words = escaped(&finding.text);
            let body = escaped(&told.record.plan.to_string());
            let what = match &told.standing {
                Standing::Known(issue) => {
                    format!("<skipped message=\"known until {}: {}\"/>", issue.until, escaped(&issue.why))
                }
                _ => format!("<failure type=\"{name}\" message=\"{words}\">{body}</failure>"),
            };
            let _ = writeln!(
                text,
                "    <testcase classname=\"{target}\" name=\"{name}\" time=\"0\">\n      {what}\n    </testcase>"
            );
        }
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");
    text
}

/// For XML and HTML, in text and between quotes. Characters that XML can not have become questions.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c < ' ' || c == '\u{fffe}' || c == '\u{ffff}' => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

/// A line for GitHub Actions.
fn annotation(told: &Told) -> String {
    let kind = if told.standing.fails() { "error" } else { "notice" };
    let finding = &told.record.finding;
    let title = format!("{} in {}", finding.signature.code, told.record.plan.target.name);
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let words = format!("{}\n\n{}", finding.text, told.record.plan);
    format!("::{kind} title={}::{}\n", property(&title), data(&words))
}

fn html(all: &[Done]) -> String {
    let body: String = all.iter().map(super::told).collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>blkproof torture</title>\n\
         <style>body{{font:14px/1.4 monospace;margin:2em;max-width:120ch}}@media(prefers-color-scheme:dark)\
         {{body{{background:#111;color:#ddd}}}}</style>\n<pre>{}</pre>\n</html>\n",
        escaped(&body)
    )
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn nothing_breaks_out_of_its_place() {
        assert_eq!(escaped("<a \"b\" & 'c'>\u{1}\n"), "&lt;a &quot;b&quot; &amp; 'c'&gt;?\n");
    }
}
