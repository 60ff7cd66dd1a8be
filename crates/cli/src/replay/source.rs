//! Where plans come from: files of several kinds.

use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use blkproof_report::torture::json;
use blkproof_torture::finding::Signature;
use blkproof_torture::plan::Plan;
use blkproof_torture::store::{Origin, Record, SCHEMA};
use serde_json::Value;

/// A plan to be run.
pub(crate) struct Case {
    /// What to call it.
    pub(crate) name: String,
    /// The file that replays it alone, if there is one.
    pub(crate) file: Option<PathBuf>,
    pub(crate) plan: Plan,
    /// How it failed when it was found.
    pub(crate) recorded: Option<Signature>,
    /// How it was found.
    pub(crate) origin: Option<Origin>,
}

impl Case {
    pub(crate) fn of(name: String, file: Option<PathBuf>, record: Record) -> Self {
        let Record { finding, plan, origin } = record;
        Self { name, file, plan, recorded: Some(finding.signature), origin }
    }
}

/// Reads a file: a plan, a finding, or a report with findings in it.
pub(super) fn read(name: &str) -> anyhow::Result<Vec<Case>> {
    let mut text = String::new();
    let read = match name {
        "-" => std::io::stdin().lock().read_to_string(&mut text),
        name => std::fs::File::open(name).and_then(|mut file| file.read_to_string(&mut text)),
    };
    read.with_context(|| format!("could not read '{name}'"))?;
    let shown = if name == "-" { "<stdin>" } else { name };
    let file = (name != "-").then(|| PathBuf::from(name));
    cases(shown, file, &text).with_context(|| format!("'{shown}' can not be replayed"))
}

fn cases(name: &str, file: Option<PathBuf>, text: &str) -> anyhow::Result<Vec<Case>> {
    if !text.trim_start().starts_with('{') {
        let name = name.to_owned();
        return Ok(vec![Case { name, file, plan: Plan::parse(text)?, recorded: None, origin: None }]);
    }
    let json: Value = serde_json::from_str(text).context("it is neither a plan nor JSON")?;
    match json.get("schema").and_then(Value::as_str) {
        Some(SCHEMA) => Ok(vec![Case::of(name.to_owned(), file, Record::from_json(&json)?)]),
        Some(json::FINDING_SCHEMA) => Ok(vec![reported(name.to_owned(), &json).context("the finding")?]),
        Some(json::SCHEMA) => {
            let list = |json: &Value, key: &str| json.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
            let findings: Vec<Value> =
                list(&json, "targets").iter().flat_map(|target| list(target, "findings")).collect();
            let case = |(number, finding): (u64, &Value)| {
                let words = format!("finding {number}");
                reported(format!("{name}, {words}"), finding).context(words)
            };
            (1..).zip(&findings).map(case).collect()
        }
        Some(other) => bail!("its schema is '{other}', which has no plan"),
        None => bail!("it has no schema"),
    }
}

/// A finding as a report has it. The file it stands in may hold several: it has no command of its own.
fn reported(name: String, finding: &Value) -> anyhow::Result<Case> {
    let text = |key: &str| finding.get(key).and_then(Value::as_str);
    let plan = Plan::parse(text("plan").context("it has no plan")?)?;
    let recorded = text("signature").map(str::parse).transpose()?;
    Ok(Case { name, file: None, plan, recorded, origin: None })
}

#[cfg(test)]
mod tests {
    use super::cases;

    #[test]
    fn what_is_no_plan_is_refused_with_its_reason() {
        for (text, words) in [
            ("", "schema"),
            ("{", "neither"),
            ("{}", "no schema"),
            (r#"{"schema": "blkproof.rules-check/1"}"#, "which has no plan"),
            (r#"{"schema": "blkproof.finding/1"}"#, "signature"),
        ] {
            let error = cases("x", None, text).map(|_| ()).unwrap_err();
            assert!(format!("{error:#}").contains(words), "{text}: {error:#}");
        }
        assert!(cases("x", None, r#"{"schema": "blkproof.torture/1", "targets": []}"#).unwrap().is_empty());
    }
}
