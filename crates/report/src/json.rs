//! The report for programs: schema `blkproof.check/1`, described in `docs/check-json.md`.
//!
//! The keys of `qemu-img check --output=json` stand where it puts them, with its meaning; everything else is ours.
//! Numbers are bytes or counts, never text; ranges are objects of `offset` and `length`.

use std::ops::Range;

use blkproof_check::Report;
use blkproof_check::finding::Finding;
use blkproof_check::map::{Class, GuestState, Owner};
use blkproof_check::report::Cause;
use serde_json::{Map, Value, json};

/// The schema's name. Its number grows when a key changes its meaning or goes; new keys may come at any time.
pub const SCHEMA: &str = "blkproof.check/1";

/// One image as one object.
#[must_use]
pub fn report(report: &Report) -> Value {
    let mut all = Map::new();
    let mut put = |key: &str, value: Value| all.insert(key.to_owned(), value);
    let numbers = &report.numbers;
    put("schema", SCHEMA.into());
    put("filename", report.image.clone().into());
    put("format", report.format.map(|format| format.name()).into());
    put("check-errors", numbers.check_errors.into());
    // As qemu-img does: figures that are nought, or not known, are left out.
    for (key, number) in [
        ("image-end-offset", numbers.image_end_offset),
        ("corruptions", Some(numbers.corruptions)),
        ("leaks", Some(numbers.leaks)),
        ("total-clusters", numbers.total_clusters),
        ("allocated-clusters", numbers.allocated_clusters),
        ("fragmented-clusters", numbers.fragmented_clusters),
        ("compressed-clusters", numbers.compressed_clusters),
    ] {
        if let Some(number) = number.filter(|number| *number != 0) {
            put(key, number.into());
        }
    }
    put("verdict", report.verdict.name().into());
    put("probed", report.probed.into());
    put("live", report.live.into());
    put("stopped", report.stopped.into());
    put(
        "lost",
        json!({
            "bytes": report.lost.bytes,
            "ranges": ranges(&report.lost.ranges),
            "ranges-left-out": report.lost.left_out,
        }),
    );
    put("causes", report.causes.iter().map(cause).collect());
    put("findings", report.findings.iter().map(finding).collect());
    put(
        "sums",
        (report.sums.iter())
            .map(|(code, severity, sum)| {
                json!({
                    "code": code,
                    "severity": severity.to_string(),
                    "findings": sum.findings,
                    "errors": sum.errors,
                })
            })
            .collect(),
    );
    put("map", map(report));
    put("not-checked", report.not_checked.clone().into());
    put("next", report.next.clone().into());
    put(
        "references",
        (report.references.iter())
            .map(|other| json!({ "role": other.role, "name": other.name, "format": other.format }))
            .collect(),
    );
    put("facts", report.facts.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect());
    Value::Object(all)
}

/// An image that could not be opened, as one object.
#[must_use]
pub fn unopened(image: &str, error: &str) -> Value {
    json!({
        "schema": SCHEMA,
        "filename": image,
        "format": null,
        "check-errors": 1,
        "verdict": blkproof_check::Verdict::Undecided.name(),
        "error": error,
    })
}

fn range(range: &Range<u64>) -> Value {
    json!({ "offset": range.start, "length": range.end.saturating_sub(range.start) })
}

fn ranges(ranges: &[Range<u64>]) -> Value {
    ranges.iter().map(range).collect()
}

fn cause(cause: &Cause) -> Value {
    json!({
        "what": cause.what,
        "confidence": cause.confidence.to_string(),
        "codes": cause.codes,
        "errors": cause.errors,
        "host": ranges(&cause.host),
        "guest": ranges(&cause.guest),
    })
}

fn finding(finding: &Finding) -> Value {
    json!({
        "code": finding.code.name,
        "severity": finding.severity.to_string(),
        "confidence": finding.confidence.to_string(),
        "what": finding.what,
        "errors": finding.count,
        "host": ranges(&finding.host),
        "guest": ranges(&finding.guest),
        "owners": finding.owners.iter().map(owner).collect::<Value>(),
    })
}

fn owner(owner: &Owner) -> Value {
    json!({
        "class": owner.class.name(),
        "label": owner.label,
        "host": range(&owner.host),
        "guest": owner.guest.as_ref().map(range),
    })
}

/// Bytes per class and state; what there is none of is left out.
fn map(report: &Report) -> Value {
    let host = report.host.as_ref().map(|map| {
        let classes: Map<String, Value> = (Class::ALL.iter())
            .filter(|class| map.bytes(**class) > 0)
            .map(|class| (class.name().to_owned(), map.bytes(*class).into()))
            .collect();
        json!({ "length": map.len, "cluster-size": map.unit, "bytes": classes })
    });
    let guest = report.guest.as_ref().map(|map| {
        let states: Map<String, Value> = (GuestState::ALL.iter())
            .filter(|state| map.bytes(**state) > 0)
            .map(|state| (state.name().to_owned(), map.bytes(*state).into()))
            .collect();
        json!({ "size": map.size, "bytes": states })
    });
    json!({ "host": host, "guest": guest })
}
