//! The published schema and the reader agree: field by field, and on examples, as an independent validator sees them.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use blkproof_block::Event;
use blkproof_fault::file::{self, fields, preset};
use blkproof_fault::request::Operation;
use serde_json::{Value, json};

fn schema() -> Value {
    serde_json::from_str(file::SCHEMA).unwrap()
}

/// Names of the properties of a definition.
fn properties(schema: &Value, pointer: &str) -> BTreeSet<String> {
    let node = schema.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in the schema"));
    assert_eq!(node["additionalProperties"], json!(false), "{pointer} takes unknown fields");
    node["properties"].as_object().unwrap().keys().cloned().collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn words(value: &Value) -> BTreeSet<String> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_field_of_the_reader_is_in_the_schema_and_the_other_way_round() {
    let schema = schema();
    for (pointer, fields) in [
        ("", fields::FILE),
        ("/$defs/rule", fields::RULE),
        ("/$defs/on", fields::ON),
        ("/$defs/then", fields::THEN),
        ("/$defs/life-table", fields::LIFE),
        ("/$defs/growth", fields::GROWTH),
        ("/$defs/rot", fields::ROT),
    ] {
        assert_eq!(properties(&schema, pointer), set(fields), "{pointer}");
    }
    let waits: BTreeSet<String> =
        (1..=2).flat_map(|variant| properties(&schema, &format!("/$defs/wait/anyOf/{variant}"))).collect();
    assert_eq!(waits, set(fields::DELAY));

    let mut variants = BTreeSet::new();
    for action in fields::ACTIONS {
        let name = action.name;
        let mut long = set(action.fields);
        long.insert("action".to_owned());
        assert_eq!(properties(&schema, &format!("/$defs/do-{name}")), long, "{name}");
        variants.insert(format!("#/$defs/do-{name}"));
        if let Some(main) = action.main {
            let mut short = set(action.fields);
            short.remove(main);
            short.insert(name.to_owned());
            assert_eq!(properties(&schema, &format!("/$defs/do-{name}-short")), short, "{name}");
            variants.insert(format!("#/$defs/do-{name}-short"));
        }
    }
    let listed = schema["$defs"]["do"]["anyOf"].as_array().unwrap();
    let alone: Vec<&str> = fields::ACTIONS.iter().filter(|action| action.alone).map(|action| action.name).collect();
    assert_eq!(words(&listed[0]["enum"]), set(&alone));
    let listed: BTreeSet<String> =
        listed[1..].iter().map(|variant| variant["$ref"].as_str().unwrap().to_owned()).collect();
    assert_eq!(listed, variants);
    let defined: BTreeSet<String> = schema["$defs"]
        .as_object()
        .unwrap()
        .keys()
        .filter(|key| key.starts_with("do-"))
        .map(|key| format!("#/$defs/{key}"))
        .collect();
    assert_eq!(defined, variants, "an action that the reader does not know");
}

#[test]
fn every_word_of_the_reader_is_in_the_schema_and_the_other_way_round() {
    let schema = schema();
    let events: Vec<&str> =
        Event::ALL.iter().filter(|event| **event != Event::None).map(|event| event.name()).collect();
    assert_eq!(words(&schema["$defs"]["event"]["enum"]), set(&events));
    let operations = Operation::ALL.map(Operation::name);
    assert_eq!(words(&schema["$defs"]["operation"]["enum"]), set(&operations));
    let presets: Vec<&str> = preset::ALL.iter().map(|preset| preset.word).filter(|word| !word.contains('N')).collect();
    assert_eq!(words(&schema["$defs"]["preset"]["anyOf"][0]["enum"]), set(&presets));
}

/// What `jsonschema` says of each instance, under the definition at `pointer` or the whole schema.
fn validated(definition: Option<&str>, instances: &[Value]) -> Vec<bool> {
    const VALIDATE: &str = "
import json, sys
from jsonschema import Draft202012Validator
job = json.load(sys.stdin)
Draft202012Validator.check_schema(job['schema'])
schema = job['schema']
if job['definition']:
    schema = {'$schema': schema['$schema'], '$defs': schema['$defs'], '$ref': '#/$defs/' + job['definition']}
validator = Draft202012Validator(schema)
json.dump([validator.is_valid(instance) for instance in job['instances']], sys.stdout)
";
    let job = json!({"schema": schema(), "definition": definition, "instances": instances});
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", VALIDATE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 with jsonschema is needed; run scripts/install-peers");
    python.stdin.take().unwrap().write_all(job.to_string().as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "python3 needs the module jsonschema; run scripts/install-peers");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A value of every field in every way of writing it.
fn good() -> Vec<Value> {
    let mut rules = vec![
        json!({"do": "hang"}),
        json!({"id": "a.b-c_d:1", "do": "fail", "then": {"state": "x", "disarm": false, "cure": true}}),
        json!({"do": "fail", "then": {"state": 2}}),
    ];
    for on in [
        json!({"op": "read"}),
        json!({"op": ["read", "write-zeroes"]}),
        json!({"lba": 50}),
        json!({"lba": "0x32"}),
        json!({"lba": [50, "50", "50..60", "50+8", "60 .. 0x50", "70.."]}),
        json!({"bytes": "1M+4k"}),
        json!({"bytes": ["0x1000..0x2000", "1.5G+1", "2T.."]}),
        json!({"event": "l2_update", "op": "write"}),
        json!({"nth": 1, "every": 9223372036854775807_u64, "times": 7}),
        json!({"probability": 0.01}),
        json!({"probability": 1}),
        json!({"probability": "1%"}),
        json!({"probability": "1:100"}),
        json!({"state": 1}),
        json!({"state": "x y"}),
        json!({"after": "1h30m", "before": "1.5d"}),
        json!({"slower-than": "0", "faster-than": "200\u{b5}s"}),
    ] {
        rules.push(json!({"on": on, "do": "fail"}));
    }
    for action in [
        json!({"action": "fail"}),
        json!({"fail": 5, "done": "nothing"}),
        json!({"fail": "3/11/1", "wait": "5ms"}),
        json!({"fail": "nvme:2/81 dnr", "wait": {"time": "1ms..2ms"}}),
        json!({"fail": "ata:UNC", "wait": {"mean": "1ms", "deviation": "2ms"}}),
        json!({"short": 3, "error": "EIO"}),
        json!({"action": "short", "cut": "700 bytes"}),
        json!({"torn": "random bytes"}),
        json!({"corrupt": "flip", "bits": 3, "sectors": "10%"}),
        json!({"corrupt": "stuck", "bit": 3, "value": 1}),
        json!({"action": "corrupt", "how": "foreign", "distance": -1}),
        json!({"action": "corrupt"}),
        json!({"misdirect": -8}),
        json!({"action": "misdirect", "by-bytes": "-4k"}),
        json!({"action": "misdirect", "to-lba": 0}),
        json!({"action": "misdirect", "to-bytes": "1M"}),
        json!({"delay": "1ms..9ms"}),
        json!({"action": "delay", "time": "1ms"}),
        json!({"action": "delay", "mean": "1ms"}),
        json!({"action": "delay", "mean": "1ms", "deviation": "1ms"}),
        json!({"hold": "x"}),
        json!({"disconnect": "all"}),
        json!({"ask": "1s", "default": "proceed", "data": true}),
        json!({"ask": "1s", "default": "03/1101"}),
        json!({"power-cut": "s", "disk": "d", "done": "prefix"}),
        json!({"recovered": "01/1701"}),
        json!({"action": "none"}),
        json!({"action": "hang"}),
    ] {
        rules.push(json!({"do": action}));
    }
    rules.extend(fields::ACTIONS.iter().filter(|action| action.alone).map(|action| json!({"do": action.name})));
    for life in [
        json!("until-rewritten"),
        json!("first-3-reads"),
        json!({"until": "never"}),
        json!({"accesses": 3}),
        json!({"preset": "bit-rot", "rot": {"half": "30d"}}),
        json!({"until": "reassigned", "growth": {"each": "1h", "limit": 100}}),
    ] {
        rules.push(json!({"on": {"op": "read", "lba": 1}, "do": "fail", "life": life}));
    }
    rules.extend(preset::ALL.iter().map(|preset| json!({"on": {"lba": 1}, "life": preset.word.replace('N', "7")})));
    rules
}

/// Shapes that the reader refuses.
fn malformed() -> Vec<Value> {
    let mut rules = vec![
        json!(7),
        json!([]),
        json!({"id": ""}),
        json!({"id": "a b"}),
        json!({"id": 7}),
        json!({"doo": "fail"}),
        json!({"then": "disarm"}),
        json!({"then": {"disarm": 1}}),
        json!({"then": {"state": ""}}),
        json!({"then": {"state": "a\nb"}}),
        json!({"then": {"state": 1.5}}),
    ];
    for on in [
        json!(7),
        json!({"opp": "read"}),
        json!({"op": "raed"}),
        json!({"op": []}),
        json!({"op": ["read", 7]}),
        json!({"op": 7}),
        json!({"lba": -1}),
        json!({"lba": 1.5}),
        json!({"lba": "50-60"}),
        json!({"lba": ""}),
        json!({"lba": [1, "x"]}),
        json!({"lba": []}),
        json!({"bytes": "4096"}),
        json!({"bytes": 4096}),
        json!({"bytes": "1Q+1"}),
        json!({"event": "l2_updat"}),
        json!({"event": "none"}),
        json!({"nth": 0}),
        json!({"nth": -1}),
        json!({"nth": "1"}),
        json!({"times": 9223372036854775808_u64}),
        json!({"probability": 2}),
        json!({"probability": 0}),
        json!({"probability": -0.5}),
        json!({"probability": "often"}),
        json!({"probability": true}),
        json!({"after": 10}),
        json!({"after": "10"}),
        json!({"after": "1x"}),
        json!({"before": ""}),
        json!({"slower-than": "-1s"}),
        json!({"state": null}),
    ] {
        rules.push(json!({"on": on, "do": "fail"}));
    }
    for action in [
        json!(7),
        json!("fial"),
        json!("delay"),
        json!("misdirect"),
        json!({}),
        json!({"fial": "EIO"}),
        json!({"action": "fial"}),
        json!({"fail": "EIO", "hang": true}),
        json!({"action": "fail", "fail": "EIO"}),
        json!({"hang": true}),
        json!({"fail": 0}),
        json!({"fail": 4096}),
        json!({"fail": true}),
        json!({"fail": "13/110"}),
        json!({"fail": "EIO", "don": "all"}),
        json!({"fail": "EIO", "error": "EIO"}),
        json!({"fail": "EIO", "done": "half"}),
        json!({"fail": "EIO", "wait": 7}),
        json!({"fail": "EIO", "wait": {}}),
        json!({"fail": "EIO", "wait": {"deviation": "1s"}}),
        json!({"torn": "3 pages"}),
        json!({"torn": -1}),
        json!({"corrupt": "rot"}),
        json!({"corrupt": "flip", "bits": 0}),
        json!({"corrupt": "stuck", "value": 2}),
        json!({"corrupt": "foreign", "distance": 0}),
        json!({"misdirect": 0}),
        json!({"misdirect": "8"}),
        json!({"action": "misdirect"}),
        json!({"action": "misdirect", "to-lba": 1, "by-lba": 1}),
        json!({"action": "misdirect", "to-bytes": "x"}),
        json!({"delay": "soon"}),
        json!({"action": "delay"}),
        json!({"action": "delay", "deviation": "1ms"}),
        json!({"action": "delay", "time": "1ms", "mean": "1ms"}),
        json!({"hold": 7}),
        json!({"ask": "1s", "data": 1}),
        json!({"ask": "1s", "default": 5}),
    ] {
        rules.push(json!({"do": action}));
    }
    for life in [
        json!(7),
        json!("penning"),
        json!("first-0-reads"),
        json!("first--reads"),
        json!({"until": "rewriten"}),
        json!({"until": "never", "accesses": 3}),
        json!({"accesses": 0}),
        json!({"growth": {"each": "1h"}}),
        json!({"growth": {"each": "1h", "limit": 0}}),
        json!({"rot": {}}),
        json!({"rott": {"half": "1s"}}),
    ] {
        rules.push(json!({"on": {"op": "read", "lba": 1}, "do": "fail", "life": life}));
    }
    rules
}

#[test]
fn what_the_reader_takes_is_valid_and_what_it_refuses_for_its_shape_is_not() {
    let (good, malformed) = (good(), malformed());
    for rule in &good {
        if let Err(mistakes) = file::read_rule(rule, 512, "x") {
            panic!("{rule}: {mistakes}");
        }
    }
    for rule in &malformed {
        assert!(file::read_rule(rule, 512, "x").is_err(), "{rule} is taken");
    }
    let all: Vec<Value> = good.iter().chain(&malformed).cloned().collect();
    let valid = validated(Some("rule"), &all);
    for (number, (rule, valid)) in all.iter().zip(&valid).enumerate() {
        assert_eq!(*valid, number < good.len(), "{rule}");
    }
    // What is written validates too, whatever the writer makes of it.
    let written: Vec<Value> =
        good.iter().map(|rule| file::json(&file::read_rule(rule, 512, "x").unwrap().0, 512)).collect();
    for (rule, valid) in written.iter().zip(validated(Some("rule"), &written)) {
        assert!(valid, "{rule}");
    }
}

#[test]
fn whole_files_are_judged_alike() {
    let files = [
        ("", json!({}), true),
        (
            "lba-size = 4096\nseed = 7\nstate = \"x\"\n[[rule]]\ndo = \"hang\"",
            json!({"lba-size": 4096, "seed": 7, "state": "x", "rule": [{"do": "hang"}]}),
            true,
        ),
        ("seed = \"0xffffffffffffffff\"\nstate = 2", json!({"seed": "0xffffffffffffffff", "state": 2}), true),
        ("lba-size = 1000", json!({"lba-size": 1000}), false),
        ("lba-size = 131072", json!({"lba-size": 131_072}), false),
        ("seed = -1", json!({"seed": -1}), false),
        ("seed = \"\"", json!({"seed": ""}), false),
        ("rules = []", json!({"rules": []}), false),
        ("[rule]\nid = \"a\"", json!({"rule": {"id": "a"}}), false),
    ];
    let instances: Vec<Value> = files.iter().map(|(_, json, _)| json.clone()).collect();
    for ((text, _, want), valid) in files.iter().zip(validated(None, &instances)) {
        assert_eq!((file::read("f", text).is_ok(), valid), (*want, *want), "{text}");
    }
}
