//! Arguments as they are typed: `count=3`, `rule.on.lba=50`, `rule={"do":"fail"}`.

use blkproof_block::graph::nearest;
use blkproof_control::schema::{Command, Kind};
use serde_json::{Map, Value};

/// Makes the arguments of a command from its words.
pub(super) fn arguments(command: &Command, words: &[String]) -> Result<Map<String, Value>, String> {
    let mut arguments = Map::new();
    for word in words {
        let (key, text) = word.split_once('=').ok_or_else(|| format!("'{word}' is not KEY=VALUE"))?;
        let (name, rest) = match key.split_once('.') {
            Some((name, rest)) => (name, Some(rest)),
            None => (key, None),
        };
        let Some(argument) = command.arguments.iter().find(|argument| argument.name == name) else {
            return Err(unknown(command, name));
        };
        match (rest, argument.kind) {
            (None, kind) => {
                if arguments.insert(name.to_owned(), value(kind, text)).is_some() {
                    return Err(format!("'{name}' is given twice"));
                }
            }
            (Some(rest), Kind::Object | Kind::Objects) => {
                let object = arguments.entry(name).or_insert_with(|| Value::Object(Map::new()));
                put(object, rest, guess(text)).map_err(|()| format!("'{key}' is given twice"))?;
            }
            (Some(_), _) => return Err(format!("'{key}': '{name}' is no object")),
        }
    }
    match command.arguments.iter().find(|argument| argument.required && !arguments.contains_key(argument.name)) {
        Some(missing) => Err(format!("'{}' needs {}=: {}", command.name, missing.name, missing.about)),
        None => Ok(arguments),
    }
}

fn unknown(command: &Command, name: &str) -> String {
    let known: Vec<&str> = command.arguments.iter().map(|argument| argument.name).collect();
    match nearest(name, known.iter().copied()) {
        Some(nearest) => format!("'{}' has no argument '{name}'; did you mean '{nearest}'?", command.name),
        None => format!("'{}' has no argument '{name}'; it takes {}", command.name, known.join(", ")),
    }
}

/// Puts a value where a dotted key says.
fn put(object: &mut Value, key: &str, value: Value) -> Result<(), ()> {
    let Value::Object(map) = object else { return Err(()) };
    match key.split_once('.') {
        Some((first, rest)) => put(map.entry(first).or_insert_with(|| Value::Object(Map::new())), rest, value),
        None => match map.insert(key.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(()),
        },
    }
}

/// A value of a known kind. What does not fit goes as text, and is refused with what would have fitted.
fn value(kind: Kind, text: &str) -> Value {
    let as_text = || Value::String(text.to_owned());
    match kind {
        Kind::Text | Kind::Node | Kind::Word(_) | Kind::Data => as_text(),
        Kind::Bytes | Kind::Time => text.parse::<u64>().map_or_else(|_| as_text(), Value::from),
        Kind::Flag => match text {
            "on" | "true" | "yes" => Value::Bool(true),
            "off" | "false" | "no" => Value::Bool(false),
            _ => as_text(),
        },
        Kind::Counts if !text.starts_with('[') => guess(&format!("[{text}]")),
        Kind::Count | Kind::Counts | Kind::Object | Kind::Objects => guess(text),
    }
}

/// JSON where it is JSON, text otherwise.
fn guess(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use blkproof_control::schema::find;
    use serde_json::json;

    use super::*;

    fn read(command: &str, words: &[&str]) -> Result<Value, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        arguments(find(command).unwrap(), &words).map(Value::Object)
    }

    #[test]
    fn words_become_arguments() {
        for (command, words, want) in [
            (
                "fault-add",
                &["node=5", "rule.id=bad", "rule.on.lba=50", "rule.on.op=[\"read\"]", "rule.do.fail=03/1101"][..],
                json!({"node": "5", "rule": {"id": "bad", "on": {"lba": 50, "op": ["read"]}, "do": {"fail": "03/1101"}}}),
            ),
            ("fault-add", &["rule=[{\"do\":\"fail\"}]"], json!({"rule": [{"do": "fail"}]})),
            (
                "fault-wait",
                &["rule=1", "count=3", "timeout=250ms"],
                json!({"rule": "1", "count": 3, "timeout": "250ms"}),
            ),
            ("fault-wait", &["rule=a=b", "timeout=5"], json!({"rule": "a=b", "timeout": 5})),
            ("fault-arm", &["rule=a", "armed=off"], json!({"rule": "a", "armed": false})),
            (
                "block-latency-histogram-set",
                &["id=s", "boundaries=10,20", "boundaries-read=[1]"],
                json!({"id": "s", "boundaries": [10, 20], "boundaries-read": [1]}),
            ),
            ("query-nodes", &[], json!({})),
        ] {
            assert_eq!(read(command, words), Ok(want), "{command} {words:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (command, words, want) in [
            ("fault-wait", &["rule"][..], "'rule' is not KEY=VALUE"),
            ("fault-wait", &["rul=a"], "'fault-wait' has no argument 'rul'; did you mean 'rule'?"),
            ("fault-wait", &["x=a"], "'fault-wait' has no argument 'x'; it takes node, rule, count, timeout"),
            ("fault-wait", &["count=1"], "'fault-wait' needs rule=: its id"),
            ("fault-wait", &["rule=a", "rule=b"], "'rule' is given twice"),
            ("fault-wait", &["rule.id=a"], "'rule.id': 'rule' is no object"),
            ("fault-add", &["rule.id=a", "rule.id=b"], "'rule.id' is given twice"),
            ("fault-add", &["rule.id=a", "rule.id.x=b"], "'rule.id.x' is given twice"),
            ("fault-add", &["rule=[]", "rule.id=b"], "'rule.id' is given twice"),
        ] {
            assert_eq!(read(command, words), Err(want.to_owned()), "{command} {words:?}");
        }
    }
}
