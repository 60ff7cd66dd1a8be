//! A command's arguments, checked against its declaration.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::time::Duration;

use base64::Engine as _;
use blkproof_block::graph::{nearest, parse_size};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::schema::{Argument, Command, Kind};

/// Nothing waits longer than this: a year.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Text as shown in messages.
const SHOWN_MAX: usize = 60;

/// The arguments of one command, whose names and types are those declared.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Arguments(Map<String, Value>);

/// Checks names and types of `given`.
pub(crate) fn check(command: &Command, given: Map<String, Value>) -> Result<Arguments, Error> {
    for (name, value) in &given {
        let Some(argument) = command.arguments.iter().find(|argument| argument.name == name) else {
            return Err(unexpected(command, name));
        };
        check_one(argument, value)?;
    }
    match command.arguments.iter().find(|argument| argument.required && !given.contains_key(argument.name)) {
        Some(missing) => Err(Error::generic(format!("Parameter '{}' is missing", missing.name))),
        None => Ok(Arguments(given)),
    }
}

fn unexpected(command: &Command, name: &str) -> Error {
    let known: Vec<&str> = command.arguments.iter().map(|argument| argument.name).collect();
    let name: String = name.chars().take(SHOWN_MAX).collect();
    let hint = match (nearest(&name, known.iter().copied()), known.is_empty()) {
        (Some(nearest), _) => format!("; did you mean '{nearest}'?"),
        (None, true) => format!("; '{}' takes none", command.name),
        (None, false) => format!("; '{}' takes {}", command.name, known.join(", ")),
    };
    Error::generic(format!("Parameter '{name}' is unexpected{hint}"))
}

fn check_one(argument: &Argument, value: &Value) -> Result<(), Error> {
    let Argument { name, kind, .. } = argument;
    let fits = match kind {
        Kind::Text | Kind::Node => value.is_string(),
        Kind::Flag => value.is_boolean(),
        Kind::Count => value.is_u64(),
        Kind::Bytes => bytes(value).is_some(),
        Kind::Time => time(value).is_some(),
        Kind::Data => data(value).is_some(),
        Kind::Word(words) => match value.as_str() {
            Some(word) if words.contains(&word) => true,
            Some(word) => {
                let word: String = word.chars().take(SHOWN_MAX).collect();
                let hint = match nearest(&word, words.iter().copied()) {
                    Some(nearest) => format!("did you mean '{nearest}'?"),
                    None => format!("it is one of {}", words.join(", ")),
                };
                return Err(Error::generic(format!("Parameter '{name}' does not accept value '{word}'; {hint}")));
            }
            None => false,
        },
        Kind::Counts => value.as_array().is_some_and(|list| list.iter().all(Value::is_u64)),
        Kind::Object => value.is_object(),
        Kind::Objects => value.is_object() || value.as_array().is_some_and(|list| list.iter().all(Value::is_object)),
    };
    if fits {
        return Ok(());
    }
    let expected = match kind {
        Kind::Text | Kind::Node => "text",
        Kind::Flag => "true or false",
        Kind::Count => "a whole number from 0",
        Kind::Bytes => "a number of bytes, or text such as '64k'",
        Kind::Time => "a number of seconds up to a year, or text such as '250ms'",
        Kind::Data => "bytes in base64",
        Kind::Word(_) => "a word",
        Kind::Counts => "a list of whole numbers",
        Kind::Object => "an object",
        Kind::Objects => "an object, or a list of objects",
    };
    Err(Error::generic(format!("Invalid parameter type for '{name}', expected: {expected}")))
}

fn bytes(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => parse_size(text),
        value => value.as_u64(),
    }
}

fn data(value: &Value) -> Option<Vec<u8>> {
    base64::engine::general_purpose::STANDARD.decode(value.as_str()?).ok()
}

/// Seconds, or text with a unit.
fn time(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::String(text) => {
            let text = text.trim();
            let split = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
            let (number, unit) = text.split_at_checked(split)?;
            let scale = match unit {
                "us" => 1e-6,
                "ms" => 1e-3,
                "" | "s" => 1.0,
                "m" | "min" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
            number.trim().parse::<f64>().ok()? * scale
        }
        value => value.as_f64()?,
    };
    Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= TIME_MAX)
}

#[allow(dead_code, reason = "some kinds have no command in every build")]
impl Arguments {
    /// An argument as it came.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name)
    }

    pub(crate) fn take_text(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn take_flag(&mut self, name: &str) -> Option<bool> {
        self.take(name)?.as_bool()
    }

    pub(crate) fn take_count(&mut self, name: &str) -> Option<u64> {
        self.take(name)?.as_u64()
    }

    pub(crate) fn take_counts(&mut self, name: &str) -> Option<Vec<u64>> {
        Some(self.take(name)?.as_array()?.iter().filter_map(Value::as_u64).collect())
    }

    pub(crate) fn take_bytes(&mut self, name: &str) -> Option<u64> {
        bytes(&self.take(name)?)
    }

    pub(crate) fn take_time(&mut self, name: &str) -> Option<Duration> {
        time(&self.take(name)?)
    }

    pub(crate) fn take_data(&mut self, name: &str) -> Option<Vec<u8>> {
        data(&self.take(name)?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    static TAKES: &[Argument] = &[
        Argument { name: "node", kind: Kind::Node, required: true, about: "x" },
        Argument { name: "count", kind: Kind::Count, required: false, about: "x" },
        Argument { name: "size", kind: Kind::Bytes, required: false, about: "x" },
        Argument { name: "timeout", kind: Kind::Time, required: false, about: "x" },
        Argument { name: "data", kind: Kind::Data, required: false, about: "x" },
        Argument { name: "word", kind: Kind::Word(&["read", "write"]), required: false, about: "x" },
        Argument { name: "flag", kind: Kind::Flag, required: false, about: "x" },
        Argument { name: "counts", kind: Kind::Counts, required: false, about: "x" },
        Argument { name: "rule", kind: Kind::Objects, required: false, about: "x" },
    ];
    static COMMAND: Command = Command {
        name: "test",
        about: "x",
        arguments: TAKES,
        returns: "x",
        oob: true,
        run: |_, _| Box::pin(std::future::ready(Ok(Value::Null))),
    };

    fn checked(arguments: Value) -> Result<Arguments, String> {
        check(&COMMAND, arguments.as_object().unwrap().clone()).map_err(|error| error.desc)
    }

    #[test]
    fn what_is_declared_is_taken() {
        let mut got = checked(json!({
            "node": "n", "count": 3, "size": "64k", "timeout": "250ms", "data": "AAE=", "word": "read", "flag": true,
            "counts": [1, 2], "rule": [{}],
        }))
        .unwrap();
        assert_eq!(got.take_text("node").as_deref(), Some("n"));
        assert_eq!(got.take_count("count"), Some(3));
        assert_eq!(got.take_bytes("size"), Some(65536));
        assert_eq!(got.take_time("timeout"), Some(Duration::from_millis(250)));
        assert_eq!(got.take_data("data"), Some(vec![0, 1]));
        assert_eq!(got.take_text("word").as_deref(), Some("read"));
        assert_eq!(got.take_flag("flag"), Some(true));
        assert_eq!(got.take_counts("counts"), Some(vec![1, 2]));
        assert_eq!(got.take("rule"), Some(json!([{}])));
        assert_eq!(got.take("rule"), None);
    }

    #[test]
    fn what_is_not_is_refused_with_the_nearest() {
        for (given, want) in [
            (json!({}), "Parameter 'node' is missing"),
            (json!({"node": "n", "tiemout": 1}), "Parameter 'tiemout' is unexpected; did you mean 'timeout'?"),
            (
                json!({"node": "n", "zzzzzz": 1}),
                "Parameter 'zzzzzz' is unexpected; 'test' takes node, count, size, timeout, data, word, flag, counts, rule",
            ),
            (json!({"node": 1}), "Invalid parameter type for 'node', expected: text"),
            (json!({"node": "n", "count": -1}), "Invalid parameter type for 'count', expected: a whole number from 0"),
            (
                json!({"node": "n", "word": "reed"}),
                "Parameter 'word' does not accept value 'reed'; did you mean 'read'?",
            ),
            (
                json!({"node": "n", "word": "xxxxxx"}),
                "Parameter 'word' does not accept value 'xxxxxx'; it is one of read, write",
            ),
            (
                json!({"node": "n", "rule": [1]}),
                "Invalid parameter type for 'rule', expected: an object, or a list of objects",
            ),
        ] {
            assert_eq!(checked(given.clone()), Err(want.to_owned()), "{given}");
        }
        for (name, value) in [
            ("size", json!("x")),
            ("size", json!(-1)),
            ("timeout", json!(-1)),
            ("timeout", json!("nan")),
            ("timeout", json!("5 weeks")),
            ("timeout", json!(1e300)),
            ("timeout", json!("1e300h")),
            ("data", json!("***")),
            ("data", json!(1)),
            ("flag", json!("true")),
            ("counts", json!([1, -1])),
            ("counts", json!(1)),
        ] {
            let error = checked(json!({"node": "n", name: value})).unwrap_err();
            assert!(error.starts_with(&format!("Invalid parameter type for '{name}', expected: ")), "{error}");
        }
    }
}
