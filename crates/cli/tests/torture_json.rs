//! The JSON of `torture`, `replay` and `findings` against its description.
#![cfg(feature = "gallery")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::blkproof;
use serde_json::Value;
use tempfile::tempdir;

const V1: &str = "v1-map-before-data";

/// A flush is acknowledged without a flush below.
const LOST_FLUSH: &str = r#"schema = "blkproof.plan/1"
crash = "at after 2 all-old"
ops = ["1 write 64K+1K", "2 q1 flush after 1", "3 q2 write 128K+512 after 1"]
faults = ["3#1 fails EIO"]
[target]
name = "m35-flush-without-barrier"
size = "1M"
"#;

type Keys = BTreeMap<String, BTreeSet<String>>;

/// Every key with the keys it stands under, by the schema of the innermost object that names one.
fn keys(value: &Value, schema: &str, under: &str, all: &mut Keys) {
    match value {
        Value::Object(map) => {
            let own = map.get("schema").and_then(Value::as_str);
            let (schema, under) = own.map_or((schema, under), |own| (own, ""));
            for (key, value) in map {
                let path = if under.is_empty() { key.clone() } else { format!("{under}.{key}") };
                // A range and figures are described once.
                if !["offset", "length"].contains(&key.as_str()) && !under.ends_with("cases.stats") {
                    all.entry(schema.to_owned()).or_default().insert(path.clone());
                    keys(value, schema, &path, all);
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| keys(value, schema, under, all)),
        _ => {}
    }
}

/// The keys of the tables, by the schema in the heading above them.
fn described() -> Keys {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/torture-json.md")).unwrap();
    let mut all = Keys::new();
    let mut schema = String::new();
    for line in page.lines() {
        if let Some(name) = line.strip_prefix("## `") {
            schema = name.trim_end_matches('`').to_owned();
        } else if line.starts_with("| `") {
            let cell = line.trim_start_matches("| ").split(" | ").next().unwrap();
            let names = cell.split('`').skip(1).step_by(2).map(str::to_owned);
            all.entry(schema.clone()).or_default().extend(names);
        }
    }
    all
}

fn printed(dir: &Path, words: &[&str], code: i32, all: &mut Keys) -> Value {
    let value: Value = serde_json::from_str(&blkproof(dir, words).exited(code).stdout).unwrap();
    keys(&value, "", "", all);
    value
}

#[test]
fn the_description_is_complete() {
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let mut all = Keys::new();
    std::fs::write(dir.join("flush.toml"), LOST_FLUSH).unwrap();
    let report =
        printed(dir, &["torture", "--json", "-t", V1, "--seed", "0", "--runs", "500", "-o", "st"], 1, &mut all);
    let signature = &report["targets"][0]["findings"][0]["signature"];
    let known = format!(
        "schema = \"blkproof.known/1\"\n[[known]]\nsignature = {signature}\nuntil = 9999-12-31\nwhy = \"as in 2011\"\n"
    );
    std::fs::write(dir.join("st/known.toml"), known).unwrap();
    let list = printed(dir, &["findings", "list", "--json", "st"], 0, &mut all);
    let name = list["findings"][0]["name"].as_str().unwrap();
    let kept = std::fs::read_to_string(dir.join("st").join(format!("{name}.json"))).unwrap();
    keys(&serde_json::from_str(&kept).unwrap(), "", "", &mut all);
    let shown = printed(dir, &["findings", "show", "--format", "json", "st", name], 0, &mut all);
    assert_eq!((&shown["standing"], &shown["repeats"]), (&Value::from("known"), &Value::from(true)));
    printed(dir, &["findings", "replay", "--json", "st"], 0, &mut all);
    let again = printed(dir, &["replay", "--json", "flush.toml"], 1, &mut all);
    assert_eq!(again["cases"][0]["verdict"], "fails");
    // That of a power cut, in the form that is kept.
    let seeds = ["torture", "--json", "-t", "m35-flush-without-barrier", "--seed", "3", "--runs", "200", "-o", "cuts"];
    let cuts = printed(dir, &seeds, 1, &mut all);
    assert!(cuts["targets"][0]["findings"][0]["cut"].is_object());
    printed(dir, &["findings", "list", "--json", "cuts"], 0, &mut all);
    printed(dir, &["torture", "--list-targets", "--json"], 0, &mut all);
    let gallery = ["torture", "--json", "--gallery", "--gallery-starts", "1", "--time", "60s", "--target", V1];
    printed(dir, &gallery, 0, &mut all);

    let race = ["torture", "--json", "--threads", "4", "--seed", "0", "--runs", "2000", "-t", "thin-unlocked-merge"];
    printed(dir, &race, 1, &mut all);

    let described = described();
    for (schema, printed) in &all {
        assert_eq!(described.get(schema), Some(printed), "{schema}");
    }
    assert_eq!(described.len(), all.len());
}
