//! Rules as text: TOML for files, JSON for control. Both have the same shape.

use std::time::Duration;

use blkproof_block::ByteRange;
use serde_json::{Map, Value, json};

use super::sense::{possible, whole_sectors};
use super::words::{duration_text, open_end, share_text};
use crate::request::{Operation, Operations};
use crate::rule::{
    Action, AskDefault, Corruption, Delay, Done, Life, On, Place, Rule, RuleSet, Tear, Then, Unit, Until,
};

/// Comments for a file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Notes {
    /// At the head of the file, a line each.
    pub head: Vec<String>,
    /// Above each rule.
    pub rules: Vec<Vec<String>>,
}

/// A rule as [`read_rule`](super::read_rule) reads it.
pub fn json(rule: &Rule, lba_size: u32) -> Value {
    let mut all = Map::new();
    all.insert("id".to_owned(), json!(*rule.id.0));
    let on = on(&rule.on, possible(&rule.action), lba_size);
    if !on.is_empty() {
        all.insert("on".to_owned(), Value::Object(on));
    }
    all.insert("do".to_owned(), action(&rule.action, lba_size));
    let then = then(&rule.then);
    if !then.is_empty() {
        all.insert("then".to_owned(), Value::Object(then));
    }
    if let Some(written) = &rule.life {
        all.insert("life".to_owned(), life(written));
    }
    Value::Object(all)
}

/// A rule file.
pub fn toml(rules: &RuleSet) -> String {
    toml_with(rules, &Notes::default())
}

/// A rule file with comments.
pub fn toml_with(rules: &RuleSet, notes: &Notes) -> String {
    let mut text = String::new();
    for note in &notes.head {
        comment(&mut text, note);
    }
    text.push_str(&format!("lba-size = {}\n", rules.lba_size));
    // Numbers of TOML end at 2^63.
    match i64::try_from(rules.seed) {
        Ok(seed) => text.push_str(&format!("seed = {seed}\n")),
        Err(_) => text.push_str(&format!("seed = \"{:#x}\"\n", rules.seed)),
    }
    text.push_str(&format!("state = {}\n", quoted(&rules.state)));
    for (number, rule) in rules.rules.iter().enumerate() {
        text.push('\n');
        for note in notes.rules.get(number).into_iter().flatten() {
            comment(&mut text, note);
        }
        text.push_str("[[rule]]\n");
        if let Value::Object(fields) = json(rule, rules.lba_size) {
            for (key, value) in &fields {
                text.push_str(&format!("{key} = "));
                inline(&mut text, value);
                text.push('\n');
            }
        }
    }
    text
}

fn comment(text: &mut String, note: &str) {
    for line in note.lines() {
        // TOML takes no control characters in comments.
        let line: String = line.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
        text.push_str(format!("# {line}").trim_end());
        text.push('\n');
    }
}

/// Items of a list that stand in one line.
const LINE_ITEMS: usize = 8;

fn inline(text: &mut String, value: &Value) {
    match value {
        Value::Object(fields) => {
            text.push_str("{ ");
            for (number, (key, value)) in fields.iter().enumerate() {
                if number > 0 {
                    text.push_str(", ");
                }
                text.push_str(&format!("{key} = "));
                inline(text, value);
            }
            text.push_str(" }");
        }
        Value::Array(items) => {
            let long = items.len() > LINE_ITEMS;
            text.push('[');
            for (number, item) in items.iter().enumerate() {
                text.push_str(match (long, number) {
                    (true, _) if number.is_multiple_of(LINE_ITEMS) => "\n    ",
                    (_, 0) => "",
                    _ => " ",
                });
                inline(text, item);
                if long || number.saturating_add(1) < items.len() {
                    text.push(',');
                }
            }
            text.push_str(if long { "\n]" } else { "]" });
        }
        Value::String(string) => text.push_str(&quoted(string)),
        Value::Number(number) => {
            // A float has to look like one.
            let number = number.to_string();
            let plain = number.bytes().all(|letter| letter.is_ascii_digit() || letter == b'-');
            let float = !plain && !number.contains(['.', 'e']);
            text.push_str(&number);
            text.push_str(if float { ".0" } else { "" });
        }
        Value::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
        Value::Null => text.push_str("\"\""),
    }
}

fn quoted(string: &str) -> String {
    let mut text = String::from('"');
    for letter in string.chars() {
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            _ if letter.is_control() => text.push_str(&format!("\\u{:04X}", u32::from(letter))),
            _ => text.push(letter),
        }
    }
    text.push('"');
    text
}

fn on(on: &On, possible: Operations, lba_size: u32) -> Map<String, Value> {
    let mut all = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            all.insert(key.to_owned(), value);
        }
    };
    let meant = if on.event.is_some() { Operations::empty() } else { Operations::DATA.intersection(possible) };
    put("op", (on.operations != meant).then(|| operations(on.operations)));
    if !on.ranges.is_empty() {
        if whole_sectors(&on.ranges, lba_size) {
            put("lba", Some(one_or_list(on.ranges.iter().map(|range| lbas(*range, lba_size)))));
        } else {
            put("bytes", Some(one_or_list(on.ranges.iter().map(|range| bytes(*range, lba_size)))));
        }
    }
    put("event", on.event.map(|event| json!(event.name())));
    put("sticky", on.sticky.then_some(json!(true)));
    put("nth", on.nth.map(|nth| json!(nth)));
    put("every", on.every.map(|every| json!(every)));
    put("probability", on.probability.map(|parts| json!(share_text(parts))));
    put("times", on.times.map(|times| json!(times)));
    put("state", on.state.as_ref().map(|state| json!(**state)));
    put("after", on.after.map(time));
    put("before", on.before.map(time));
    put("slower-than", on.slower_than.map(time));
    put("faster-than", on.faster_than.map(time));
    all
}

fn time(time: Duration) -> Value {
    json!(duration_text(time))
}

fn operations(operations: Operations) -> Value {
    let names = Operation::ALL.into_iter().filter(|operation| operations.contains(operation.set()));
    one_or_list(names.map(|operation| json!(operation.name())))
}

fn one_or_list(items: impl Iterator<Item = Value>) -> Value {
    let mut items: Vec<Value> = items.collect();
    match (items.len(), items.pop()) {
        (1, Some(one)) => one,
        (_, last) => {
            items.extend(last);
            Value::Array(items)
        }
    }
}

fn lbas(range: ByteRange, lba_size: u32) -> Value {
    let lba = |offset: u64| offset.checked_div(u64::from(lba_size)).unwrap_or_default();
    let (start, end) = (lba(range.start), lba(range.end));
    if range.end >= open_end(lba_size) {
        json!(format!("{start}.."))
    } else if end == start.saturating_add(1) {
        json!(start)
    } else {
        json!(format!("{start}..{end}"))
    }
}

fn bytes(range: ByteRange, lba_size: u32) -> Value {
    if range.end >= open_end(lba_size) {
        json!(format!("{:#x}..", range.start))
    } else {
        json!(format!("{:#x}..{:#x}", range.start, range.end))
    }
}

/// An action with its main field in front: `{"fail": "EIO"}`; a text if there is nothing else to say.
fn action(action: &Action, lba_size: u32) -> Value {
    let mut all = Map::new();
    let name = action.name();
    let mut put = |key: &str, value: Value| all.insert(key.to_owned(), value);
    match action {
        Action::None | Action::Pass | Action::Phantom | Action::Hang => return json!(name),
        Action::Fail { error, done, wait } => {
            put(name, json!(error.to_string()));
            if *done != Done::Prefix {
                put("done", json!(done_word(*done)));
            }
            if let Some(wait) = wait {
                put("wait", delay(*wait));
            }
        }
        Action::Short { tear, error } => {
            put(name, cut(*tear));
            put("error", json!(error.to_string()));
        }
        Action::Torn { tear } => {
            put(name, cut(*tear));
        }
        Action::Corrupt { how, sectors } => {
            corrupt(*how, |key, value| {
                put(key, value);
            });
            if let Some(sectors) = sectors {
                put("sectors", json!(share_text(*sectors)));
            }
        }
        Action::Misdirect(place) => {
            put("action", json!(name));
            let (key, value) = misdirected(*place, lba_size);
            put(key, value);
        }
        Action::Delay(Delay::Fixed(fixed)) => {
            put(name, time(*fixed));
        }
        Action::Delay(Delay::Uniform(from, to)) => {
            put(name, uniform(*from, *to));
        }
        Action::Delay(drawn) => {
            put("action", json!(name));
            if let Value::Object(fields) = delay(*drawn) {
                all.extend(fields);
            }
        }
        Action::Hold { tag: None } | Action::Disconnect { done: Done::None } => return json!(name),
        Action::Hold { tag: Some(tag) } => {
            put(name, json!(**tag));
        }
        Action::Disconnect { done } => {
            put(name, json!(done_word(*done)));
        }
        Action::Ask { timeout, default, data } => {
            put(name, time(*timeout));
            let default = match default {
                AskDefault::Proceed => "proceed".to_owned(),
                AskDefault::Fail(failure) => failure.to_string(),
            };
            put("default", json!(default));
            if *data {
                put("data", json!(true));
            }
        }
        Action::PowerCut { disk: None, state: None, done: Done::None } => return json!(name),
        Action::PowerCut { disk, state, done } => {
            put("action", json!(name));
            if let Some(disk) = disk {
                put("disk", json!(**disk));
            }
            if let Some(state) = state {
                put("state", json!(**state));
            }
            if *done != Done::None {
                put("done", json!(done_word(*done)));
            }
        }
        Action::Recovered(failure) => {
            put(name, json!(failure.to_string()));
        }
    }
    Value::Object(all)
}

const fn done_word(done: Done) -> &'static str {
    match done {
        Done::None => "nothing",
        Done::Prefix => "prefix",
        Done::All => "all",
    }
}

fn cut(tear: Tear) -> Value {
    match tear {
        Tear::After(count, Unit::Sector) => json!(count),
        Tear::After(count, Unit::Byte) => json!(format!("{count} bytes")),
        Tear::Random(Unit::Sector) => json!("random"),
        Tear::Random(Unit::Byte) => json!("random bytes"),
        Tear::AtRange => json!("range"),
    }
}

fn corrupt(how: Corruption, mut put: impl FnMut(&str, Value)) {
    match how {
        Corruption::Flip { bits } => {
            put("corrupt", json!("flip"));
            put("bits", json!(bits));
        }
        Corruption::Stuck { bit, value } => {
            put("corrupt", json!("stuck"));
            if let Some(bit) = bit {
                put("bit", json!(bit));
            }
            put("value", json!(u8::from(value)));
        }
        Corruption::Zero => put("corrupt", json!("zero")),
        Corruption::Stale => put("corrupt", json!("stale")),
        Corruption::Foreign { distance } => {
            put("corrupt", json!("foreign"));
            if let Some(distance) = distance {
                put("distance", json!(distance));
            }
        }
        Corruption::Random => put("corrupt", json!("random")),
    }
}

fn misdirected(place: Place, lba_size: u32) -> (&'static str, Value) {
    let size = i64::from(lba_size);
    match place {
        Place::By(bytes) if bytes.checked_rem(size) == Some(0) => ("by-lba", json!(bytes.checked_div(size))),
        Place::By(bytes) => ("by-bytes", json!(bytes)),
        Place::At(at) if at.is_multiple_of(u64::from(lba_size.max(1))) => {
            ("to-lba", json!(at.checked_div(u64::from(lba_size))))
        }
        Place::At(at) => ("to-bytes", json!(format!("{at:#x}"))),
    }
}

fn uniform(from: Duration, to: Duration) -> Value {
    json!(format!("{}..{}", duration_text(from), duration_text(to)))
}

fn delay(delay: Delay) -> Value {
    match delay {
        Delay::Fixed(fixed) => time(fixed),
        Delay::Uniform(from, to) => uniform(from, to),
        Delay::Normal(mean, deviation) => {
            json!({"mean": duration_text(mean), "deviation": duration_text(deviation)})
        }
        Delay::Exponential(mean) => json!({"mean": duration_text(mean)}),
    }
}

fn then(then: &Then) -> Map<String, Value> {
    let mut all = Map::new();
    if let Some(state) = &then.state {
        all.insert("state".to_owned(), json!(**state));
    }
    for (key, value) in [("disarm", then.disarm), ("cure", then.cure)] {
        if value {
            all.insert(key.to_owned(), json!(true));
        }
    }
    all
}

fn life(life: &Life) -> Value {
    let mut all = Map::new();
    let until = match life.until {
        Until::Accesses(count) => ("accesses", json!(count)),
        Until::Never => ("until", json!("never")),
        Until::Rewrite => ("until", json!("rewritten")),
        Until::Reassign => ("until", json!("reassigned")),
    };
    all.insert(until.0.to_owned(), until.1);
    if let Some(growth) = life.growth {
        all.insert("growth".to_owned(), json!({"each": duration_text(growth.each), "limit": growth.limit}));
    }
    if let Some(rot) = life.rot {
        all.insert("rot".to_owned(), json!({"half": duration_text(rot.half)}));
    }
    Value::Object(all)
}
