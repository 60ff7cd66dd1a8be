//! `blkproof torture --threads N`: drivers that take requests from several threads, asked by several threads.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use blkproof_torture::campaign::Watch as _;
use blkproof_torture::finding::Signature;
use blkproof_torture::plan::Plan;
use blkproof_torture::run::Finding;
use blkproof_torture::threads::{Found, Results, Settings, Target, Wanted, campaign, rate};
use serde_json::{Value, json};

use super::numbers::counted;
use super::targets::Listed;
use super::watcher::Watcher;
use super::{Args, FINDING, NOT_STARTED, TOO_LITTLE, drawn, print, targets};
use crate::stop::Stop;

/// Runs of a plan that is replayed: enough for one that fails in one of ten to be seen, as good as always.
const REPLAYS: u32 = 60;

/// The schema's name. Its number grows when a key changes its meaning or goes; new keys may come at any time.
const SCHEMA: &str = "blkproof.torture-threads/1";

/// The driver of that name.
pub(crate) fn find(name: &str) -> Option<Arc<dyn Target>> {
    #[cfg(feature = "gallery")]
    return blkproof_gallery::find_threaded(name).map(|target| Arc::new(target) as Arc<dyn Target>);
    #[cfg(not(feature = "gallery"))]
    {
        let _ = name;
        None
    }
}

/// All of them.
pub(super) fn list() -> Vec<Listed> {
    #[cfg(feature = "gallery")]
    return blkproof_gallery::threaded_targets()
        .iter()
        .map(|target| Listed {
            name: target.name().to_owned(),
            words: match target.race() {
                Some(race) => format!("for --threads, with a bug as in: {}", race.copies()),
                None => "for --threads, of the gallery, without a bug".to_owned(),
            },
        })
        .collect();
    #[cfg(not(feature = "gallery"))]
    Vec::new()
}

pub(super) fn run(args: &Args, threads: u8, stop: &Stop) -> anyhow::Result<ExitCode> {
    let known = || list().into_iter().map(|listed| listed.name).collect::<Vec<_>>().join(", ");
    let mut chosen = Vec::new();
    for name in &args.target {
        match find(name) {
            Some(target) => chosen.push(target),
            None if targets::find(name).is_some() => bail!(
                "{name} is single-threaded by its type: a node and its requests stay on one thread (they are neither Send \
                 nor Sync), so there is nothing to race; torture it without --threads. For --threads there are: {}",
                known()
            ),
            None => bail!("there is no driver '{name}'"),
        }
    }
    if chosen.is_empty() {
        bail!("say which driver with --target. For --threads there are: {}", known());
    }
    let first = args.seed.unwrap_or_else(drawn);
    eprintln!("{}", args.again(first));
    let (mut code, mut all) = (0, Vec::new());
    for target in &chosen {
        let watcher = Watcher::new(stop, target.name(), args.seeds(), args.time);
        let usual = Wanted::default();
        let wanted = Wanted {
            profile: args.profile,
            first,
            runs: args.seeds(),
            until_findings: args.until_findings,
            threads,
            shrink: usual.shrink.clone().filter(|_| !args.no_shrink),
            ..usual
        };
        let results = campaign(&wanted, target, &watcher);
        let (seconds, late) = (watcher.elapsed().as_secs_f64(), watcher.stop());
        watcher.clear();
        code = match () {
            () if code == FINDING => FINDING,
            () if results.found.iter().any(|found| found.finding.signature.code != "create") => FINDING,
            () if !results.found.is_empty() => code.max(NOT_STARTED),
            () if code == 0 && (results.seeds == 0 || stop.asked()) => TOO_LITTLE,
            () => code,
        };
        if !args.is_json() {
            print(&told(target.name(), &results, threads, seconds, late))?;
        }
        all.push(as_json(target.name(), &results, &wanted, seconds));
        if stop.asked() {
            break;
        }
    }
    stop.calm();
    if args.is_json() {
        let json = json!({
            "schema": SCHEMA, "again": args.again(first), "profile": args.profile.name, "exit-status": code,
            "threads": threads, "targets": all,
        });
        print(&format!("{json:#}\n"))?;
    }
    Ok(ExitCode::from(code))
}

fn told(name: &str, results: &Results, threads: u8, seconds: f64, late: bool) -> String {
    let mut text: String = results.found.iter().map(|found| finding(name, found)).collect();
    let found = match results.found.len() {
        0 => "nothing found".to_owned(),
        count => counted(count as u64, "finding"),
    };
    let stats = &results.stats;
    text.push_str(&format!(
        "{name}: {found} in {} by {} ({}, {} made to fail, {seconds:.1} s){}\n",
        counted(results.seeds, "seed"),
        counted(threads.into(), "thread"),
        counted(stats.ops, "operation"),
        counted(stats.faults, "request"),
        if late { "; its time was over" } else { "" },
    ));
    text
}

fn finding(name: &str, found: &Found) -> String {
    let plan = found.least();
    let mut text = format!("FINDING {}  (in {name})\n  {}\n", found.finding.signature.code, found.finding.text);
    let allowed = &found.finding.allowed;
    if !allowed.is_empty() {
        text.push_str(&format!("  allowed there: {}\n", allowed.join("; or ")));
    }
    text.push_str(&format!(
        "  signature {}\n  the plan below fails in {}: a rate, since threads move as the machine lets them\n  found by seed \
         {:#x}, after {}, in a plan of {}\n\n",
        found.finding.signature,
        found.rate,
        found.seed,
        counted(found.ops, "operation"),
        counted(found.plan.ops.len() as u64, "op"),
    ));
    for op in &plan.ops {
        text.push_str(&format!("  {:>4}  {}, in queue {}\n", op.id, op.describe(), op.queue));
    }
    plan.faults.named.iter().for_each(|fault| text.push_str(&format!("        {}\n", fault.describe())));
    text.push_str(&format!(
        "\n--- plan: save what is between these lines, and 'blkproof replay FILE' runs it {REPLAYS} times\n{plan}---\n\n"
    ));
    text
}

fn as_json(name: &str, results: &Results, wanted: &Wanted, seconds: f64) -> Value {
    let finding = |found: &Found| {
        let mut json = found.record(wanted.profile.name).json();
        if let Value::Object(map) = &mut json {
            map.insert("rate".to_owned(), json!({"failed": found.rate.failed, "runs": found.rate.runs}));
        }
        json
    };
    let stats = &results.stats;
    json!({
        "target": name, "first-seed": format!("{:#x}", wanted.first), "seeds": results.seeds, "seconds": seconds,
        "stats": {
            "operations": stats.ops, "requests-below": stats.ios, "faults": stats.faults, "bytes-judged": stats.judged,
            "reopens": stats.reopens, "checks": stats.checks,
        },
        "findings": results.found.iter().map(finding).collect::<Vec<_>>(),
    })
}

/// Runs a plan many times: how often it failed, in words, and how it failed first.
pub(crate) fn replay(plan: &Plan, recorded: Option<&Signature>) -> anyhow::Result<(String, Option<Finding>)> {
    let name = &plan.target.name;
    let Some(target) = find(name) else { bail!("this program has no driver '{name}' for several threads") };
    let settings = Settings::default();
    let (of, first) = rate(plan, &target, &settings, recorded, REPLAYS);
    let how = if recorded.is_some() { " as it did" } else { "" };
    let words = match &first {
        Some(_) => format!("{name} fails{how} in {of}"),
        None => format!("{name} fails{how} in none of {}, which says little of a race", counted(of.runs.into(), "run")),
    };
    Ok((words, first))
}
