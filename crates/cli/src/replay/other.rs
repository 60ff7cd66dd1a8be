//! Plans that are run many times: swept, or by threads.

use std::thread::available_parallelism;

use anyhow::anyhow;
use blkproof_torture::run::Settings;
use blkproof_torture::store::Record;
use blkproof_torture::sweep::{Swept, sweep};
use serde_json::{Value, json};

use super::{Args, Case, source};
use crate::torture::{FINDING, counted, find_target, find_threaded, print, replay_threaded};

/// What came of one of them.
struct Done {
    text: String,
    json: Value,
    fails: bool,
}

/// Runs the plans of a file so, if that is what is asked for; else nothing.
pub(super) fn replay(args: &Args) -> anyhow::Result<Option<u8>> {
    // Standard input can be read only once; it has plans for the simulator.
    if args.file == "-" && !args.sweep {
        return Ok(None);
    }
    let mut cases = source::read(&args.file)?;
    for case in &mut cases {
        if let Some(target) = &args.target {
            case.plan.target.name.clone_from(target);
        }
    }
    let threaded = cases.iter().any(|case| find_threaded(&case.plan.target.name).is_some());
    if !args.sweep && !threaded {
        return Ok(None);
    }
    let mut all = Vec::new();
    for case in cases {
        let done = if args.sweep { swept(&case)? } else { threads(&case)? };
        if !args.is_json() {
            print(&done.text)?;
        }
        all.push(done);
    }
    if args.is_json() {
        let cases: Vec<&Value> = all.iter().map(|done| &done.json).collect();
        print(&format!("{:#}\n", json!({"schema": "blkproof.replay/1", "cases": cases})))?;
    }
    Ok(Some(if all.iter().any(|done| done.fails) { FINDING } else { 0 }))
}

fn swept(case: &Case) -> anyhow::Result<Done> {
    case.plan.validate()?;
    let name = &case.plan.target.name;
    let target = find_target(name).ok_or_else(|| anyhow!("this program has no driver '{name}' that can be swept"))?;
    let jobs = available_parallelism().map_or(1, usize::from);
    let Swept { found, requests, runs, .. } = sweep(&case.plan, target.get(), &Settings::default(), jobs, &|| false);
    let mut text = String::new();
    let mut findings = Vec::new();
    for (finding, plan) in found {
        text.push_str(&format!("FINDING {finding}\n"));
        plan.faults.named.iter().for_each(|fault| text.push_str(&format!("  {}\n", fault.describe())));
        text.push_str(&format!("  signature {}\n\n{plan}\n", finding.signature));
        findings.push(Record { finding, plan, origin: None });
    }
    let wrong = match findings.len() {
        0 => "nothing wrong".to_owned(),
        count => counted(count as u64, "finding"),
    };
    let words =
        format!("{name}: {} below failed in turn, in {}: {wrong}", counted(requests, "request"), counted(runs, "run"));
    text.push_str(&format!("{}: {words}\n", case.name));
    let json = json!({
        "name": case.name, "target": name, "verdict": if findings.is_empty() { "passes" } else { "fails" },
        "words": words, "requests": requests, "runs": runs,
        "findings": findings.iter().map(Record::json).collect::<Vec<_>>(),
    });
    Ok(Done { text, json, fails: !findings.is_empty() })
}

fn threads(case: &Case) -> anyhow::Result<Done> {
    let name = &case.plan.target.name;
    case.plan.validate()?;
    let (words, finding) = replay_threaded(&case.plan, case.recorded.as_ref())?;
    let text = match &finding {
        Some(finding) => format!("FINDING {finding}\n  signature {}\n{}: {words}\n", finding.signature, case.name),
        None => format!("{}: {words}\n", case.name),
    };
    let fails = finding.is_some();
    let found = finding.map(|finding| Record { finding, plan: case.plan.clone(), origin: None });
    let json = json!({
        "name": case.name, "target": name, "verdict": if fails { "fails" } else { "passes" }, "words": words,
        "recorded": case.recorded.as_ref().map(ToString::to_string), "finding": found.as_ref().map(Record::json),
    });
    Ok(Done { text, json, fails })
}
