//! Findings for programs: schema `blkproof.torture/1`, and `blkproof.torture-finding/1` of each.
//!
//! Numbers are bytes, moves or counts, never text, but for seeds and hashes, which do not fit what other languages make
//! of numbers; ranges are objects of `offset` and `length`.

use blkproof_block::ByteRange;
use blkproof_sim::IoKey;
use blkproof_torture::run::Stats;
use blkproof_torture::store::Standing;
use serde_json::{Value, json};

use super::crash::Fate;
use super::model::Run;
use super::suite::Entry;
use super::{Case, Suite, crash, history, qemu_io, rust_test};

/// The schema's name. Its number grows when a key changes its meaning or goes; new keys may come at any time.
pub const SCHEMA: &str = "blkproof.torture/1";

/// The same of a finding.
pub const FINDING_SCHEMA: &str = "blkproof.torture-finding/1";

/// Campaigns, as one object; `again` is the command that does the same, and `exit_status` what it ended with.
#[must_use]
pub fn suites(suites: &[Suite<'_>], again: &str, exit_status: u8) -> Value {
    json!({
        "schema": SCHEMA,
        "again": again,
        "exit-status": exit_status,
        "targets": suites.iter().map(suite).collect::<Value>(),
    })
}

fn suite(suite: &Suite<'_>) -> Value {
    json!({
        "target": suite.target,
        "profile": suite.profile,
        "first-seed": suite.first.map(|first| format!("{first:#x}")),
        "seeds": suite.seeds,
        "ended": suite.ended.name(),
        "seconds": suite.seconds,
        "stats": stats(&suite.stats),
        "failures": suite.failures(),
        "findings": suite.entries.iter().map(entry).collect::<Value>(),
        "not-tested": suite.coverage.map(super::Coverage::not_tested),
    })
}

/// One finding, with what is known of it.
#[must_use]
pub fn entry(entry: &Entry<'_>) -> Value {
    let mut value = case(&entry.case);
    if let Value::Object(keys) = &mut value {
        keys.insert("standing".to_owned(), entry.standing.name().into());
        keys.insert("known".to_owned(), known(&entry.standing));
    }
    value
}

/// What is known of a finding: `null`, or until when and why.
#[must_use]
pub fn known(standing: &Standing) -> Value {
    match standing {
        Standing::New => Value::Null,
        Standing::Known(issue) | Standing::Expired(issue) => {
            json!({ "until": issue.until.to_string(), "why": issue.why })
        }
    }
}

/// Figures.
#[must_use]
pub fn stats(stats: &Stats) -> Value {
    let Stats {
        ops,
        moves,
        ios,
        faults,
        drops,
        judged,
        reopens,
        points,
        exhausted,
        possible,
        states,
        distinct,
        checks,
    } = *stats;
    json!({
        "requests": ops,
        "moves": moves,
        "disk-requests": ios,
        "faults": faults,
        "dropped": drops,
        "bytes-judged": judged,
        "reopens": reopens,
        "crash-points": points,
        "crash-points-exhausted": exhausted,
        "crash-states-possible": possible,
        "crash-states": states,
        "crash-states-distinct": distinct,
        "checks": checks,
    })
}

/// One finding, as one object.
#[must_use]
pub fn case(case: &Case<'_>) -> Value {
    let (finding, rule, run) = (case.finding, case.rule(), case.run());
    let signature = &finding.signature;
    let (script, no_script) = match qemu_io::script(case) {
        Ok(script) => (Some(script), None),
        Err(why) => (None, Some(why)),
    };
    json!({
        "schema": FINDING_SCHEMA,
        "target": case.plan.target.name,
        "signature": signature.to_string(),
        "code": signature.code,
        "class": signature.class,
        "phase": signature.phase,
        "site": signature.site,
        "severity": case.severity().name(),
        "rule": { "section": rule.section, "holds": rule.holds },
        "sentence": case.sentence(),
        "text": finding.text,
        "op": finding.op,
        "range": finding.range.map(range),
        "allowed": finding.allowed,
        "step": finding.step,
        "cut": finding.cut.as_ref().map(|(point, state)| {
            json!({ "when": point.describe(), "leaves": state.describe() })
        }),
        "repeats": case.repeats(),
        "origin": origin(case),
        "replay": case.replay_command(),
        "replay-seed": case.seed_command(),
        "plan-file": case.plan_file,
        "plan-hash": super::plan_hash(case.plan),
        "plan": case.plan.to_string(),
        "ops": ops(case, &run),
        "disk-requests": disk_requests(&run),
        "sector": sector(case),
        "crash": crash_state(case, &run),
        "qemu-io": script,
        "qemu-io-not": no_script,
        "rust-test": rust_test::source(case),
    })
}

fn range(range: ByteRange) -> Value {
    json!({ "offset": range.start, "length": range.len() })
}

fn origin(case: &Case<'_>) -> Value {
    let Some(origin) = case.origin else { return Value::Null };
    let shrunk = origin.shrunk.map(|shrunk| {
        json!({
            "from": shrunk.original,
            "to": shrunk.size,
            "runs": shrunk.runs,
            "ended": shrunk.limit.name(),
            "minimal": shrunk.minimal,
            "failed-again": shrunk.verified.0,
            "run-again": shrunk.verified.1,
        })
    });
    json!({
        "seed": format!("{:#x}", origin.seed),
        "times": origin.times,
        "requests": origin.ops,
        "profile": origin.profile,
        "shrunk": shrunk,
        "shrunk-words": origin.shrunk_words,
    })
}

fn ops(case: &Case<'_>, run: &Run<'_>) -> Value {
    let rows = super::table::rows(case, run);
    let one = |(request, row): (&super::model::Request<'_>, super::table::Row)| {
        json!({
            "op": row.op,
            "queue": row.queue,
            "line": request.op.to_string(),
            "words": row.what,
            "sent": request.sent,
            "ended": request.ended,
            "outcome": run.known.then(|| request.end.name()),
            "outcome-words": row.outcome,
            "faults": row.faults,
            "touches-wrong-bytes": row.guilty,
        })
    };
    run.requests.iter().zip(rows).map(one).collect()
}

fn disk_requests(run: &Run<'_>) -> Value {
    let one = |below: &super::model::Below<'_>| {
        json!({
            "name": below.info.key.to_string(),
            "kind": below.info.kind.name(),
            "range": range(below.info.range),
            "fua": below.info.fua,
            "sent": below.sent,
            "moved": below.moved,
            "answered": below.heard,
            "fault": below.fault.map(|fault| fault.describe()),
        })
    };
    run.below.iter().map(one).collect()
}

fn sector(case: &Case<'_>) -> Value {
    let Some(sector) = history::sector(case) else { return Value::Null };
    let line = |line: history::Line| {
        json!({
            "op": line.op,
            "words": line.what,
            "outcome": line.outcome,
            "durable": line.durable,
            "touches": line.touches,
        })
    };
    json!({
        "number": sector,
        "history": history::lines(case).into_iter().map(line).collect::<Value>(),
    })
}

fn crash_state(case: &Case<'_>, run: &Run<'_>) -> Value {
    let Some(cut) = crash::cut(case, run) else { return Value::Null };
    let one = |(io, words, fate): (IoKey, String, Fate)| json!({ "name": io.to_string(), "words": words, "fate": fate.name() });
    let neighbour = |other: &super::Neighbour| json!({ "leaves": other.state.describe(), "fails": other.fails });
    json!({
        "when": super::text::cut_words(run, &cut),
        "leaves": cut.state.describe(),
        "requests": crash::fates(run, &cut).into_iter().map(one).collect::<Value>(),
        "neighbours": case.neighbours.iter().map(neighbour).collect::<Value>(),
    })
}
