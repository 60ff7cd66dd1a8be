//! The ways to write an option tree: `key=value` lists, JSON, and filenames.
//!
//! All of them may come from an image (the name of a backing file can be `json:{…}`), hence nothing here trusts a
//! length or a depth.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use serde_json::Value as Json;

use super::options::DEPTH_MAX;
use super::{OptionError, Options, Registry, Value};

/// The driver of a plain path.
pub(super) const FILE: &str = "file";

impl Options {
    /// Parses QEMU's `--image-opts` syntax: `driver=qcow2,file.driver=blkdebug,file.image.filename=a.qcow2`.
    ///
    /// A dot leads into a child, numbers index a list (`inject-error.0.event`), `,,` is a comma inside a value, the
    /// last of several values of one option counts. An option without `=` is `on`, except at the very beginning,
    /// where it is the name of the image (`file`).
    ///
    /// # Errors
    /// [`OptionError::Syntax`] if an option has no name, is both a value and a group, or lies too deep.
    pub fn from_image_opts(text: &str) -> Result<Self, OptionError> {
        let mut options = Self::new();
        let mut rest = text;
        let mut first = true;
        while !rest.is_empty() {
            let (item, tail) = match rest.find([',', '=']) {
                Some(at) if rest.get(at..).is_some_and(|from| from.starts_with('=')) => {
                    let (key, value) = rest.split_at_checked(at).unwrap_or((rest, ""));
                    let (value, tail) = split_value(value.strip_prefix('=').unwrap_or(value));
                    ((key, value), tail)
                }
                _ if first => {
                    let (name, tail) = split_value(rest);
                    ((FILE, name), tail)
                }
                Some(at) => {
                    let (key, tail) = rest.split_at_checked(at).unwrap_or((rest, ""));
                    ((key, "on".to_owned()), tail.strip_prefix(',').unwrap_or(tail))
                }
                None => ((rest, "on".to_owned()), ""),
            };
            options.insert_dotted(item.0, Value::Text(item.1))?;
            rest = tail;
            first = false;
        }
        options.set_path("");
        Ok(options)
    }

    /// Parses a JSON object; names may be dotted, strings may stand in single quotes, arrays become numbered options.
    ///
    /// # Errors
    /// [`OptionError::Syntax`] if it is no JSON object, an option is both a value and a group, or lies too deep.
    pub fn from_json(text: &str) -> Result<Self, OptionError> {
        let json: Json = serde_json::from_str(&double_quoted(text))
            .map_err(|error| OptionError::Syntax(format!("options are no valid JSON: {error}")))?;
        let Json::Object(members) = json else {
            return Err(OptionError::Syntax(
                "options have to be a JSON object, as in json:{\"driver\":\"raw\"}".into(),
            ));
        };
        let mut options = Self::new();
        for (key, value) in members {
            options.insert_dotted(&key, from_json_value(value)?)?;
        }
        options.set_path("");
        Ok(options)
    }

    /// Parses what a user types to name a node.
    ///
    /// - `json:{…}` is [`from_json`](Self::from_json), and may or may not name a driver;
    /// - a prefix that some driver of `registry` takes (`nbd://`, `blkverify:`) is that driver with its options;
    /// - `file:PATH`, and every path without a colon before its first slash, is `driver=file,filename=PATH`.
    ///
    /// # Errors
    /// An unknown prefix, as in QEMU: write `./a:b` for a file of the name `a:b`. Also a malformed name of a known
    /// prefix.
    pub fn from_filename(name: &str, registry: &Registry) -> Result<Self, OptionError> {
        if let Some(json) = name.strip_prefix("json:") {
            return Self::from_json(json);
        }
        if name.is_empty() {
            return Err(OptionError::Syntax("the name of the image is empty".into()));
        }
        let Some(prefix) = protocol_prefix(name) else {
            return Ok(Self::new().with("driver", FILE).with("filename", name));
        };
        for driver in registry.drivers() {
            if let Some(options) = driver.parse_filename(name) {
                return Ok(options?.with("driver", driver.name()));
            }
        }
        match name.strip_prefix("file:") {
            Some("") => Err(OptionError::Syntax(format!("'{name}' names no file"))),
            Some(path) => Ok(Self::new().with("driver", FILE).with("filename", path)),
            None => Err(OptionError::Syntax(format!(
                "unknown protocol '{prefix}' in '{name}'; for a file of that name write './{name}'"
            ))),
        }
    }

    fn insert_dotted(&mut self, name: &str, value: Value) -> Result<(), OptionError> {
        let mut parts: Vec<&str> = name.split('.').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(OptionError::Syntax(format!("'{name}' is no option name")));
        }
        if parts.len() > DEPTH_MAX {
            return Err(too_deep());
        }
        let key = parts.pop().unwrap_or(name);
        let mut group = &mut *self;
        for part in parts {
            group = group.group_mut(part).ok_or_else(|| both(name))?;
        }
        group.put(key, value).map_err(|()| both(name))?;
        if self.depth() > DEPTH_MAX { Err(too_deep()) } else { Ok(()) }
    }
}

fn both(name: &str) -> OptionError {
    OptionError::Syntax(format!("option '{name}' is given both as a value and as a group of options"))
}

fn too_deep() -> OptionError {
    OptionError::Syntax(format!("options are nested more than {DEPTH_MAX} deep"))
}

/// Splits at the first comma that is not doubled; doubled ones are undoubled in the value.
fn split_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    while let Some((part, tail)) = rest.split_once(',') {
        value.push_str(part);
        rest = tail;
        match rest.strip_prefix(',') {
            Some(tail) => {
                value.push(',');
                rest = tail;
            }
            None => return (value, rest),
        }
    }
    value.push_str(rest);
    (value, "")
}

fn from_json_value(json: Json) -> Result<Value, OptionError> {
    let members: Vec<(String, Json)> = match json {
        // QEMU's `"backing": null` says "none", as an empty string does.
        Json::Null => return Ok(Value::Text(String::new())),
        Json::Bool(on) => return Ok(Value::Text(if on { "on" } else { "off" }.to_owned())),
        Json::Number(number) => return Ok(Value::Text(number.to_string())),
        Json::String(text) => return Ok(Value::Text(text)),
        Json::Array(items) => items.into_iter().enumerate().map(|(index, item)| (index.to_string(), item)).collect(),
        Json::Object(members) => members.into_iter().collect(),
    };
    let mut group = Options::new();
    for (key, value) in members {
        group.insert_dotted(&key, from_json_value(value)?)?;
    }
    Ok(Value::Tree(group))
}

/// Rewrites single-quoted strings, which QEMU takes, as JSON's own.
fn double_quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside: Option<char> = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (inside, letter) {
            (None, '"' | '\'') => {
                inside = Some(letter);
                out.push('"');
            }
            (Some(quote), _) if letter == quote => {
                inside = None;
                out.push('"');
            }
            (Some(_), '"') => out.push_str("\\\""),
            (Some(_), '\\') => match letters.next() {
                Some('\'') => out.push('\''),
                Some(escaped) => {
                    out.push('\\');
                    out.push(escaped);
                }
                None => out.push('\\'),
            },
            _ => out.push(letter),
        }
    }
    out
}

/// What stands before a colon, if that colon comes before every slash.
pub(super) fn protocol_prefix(name: &str) -> Option<&str> {
    let at = name.find([':', '/'])?;
    let (prefix, rest) = name.split_at_checked(at)?;
    rest.starts_with(':').then_some(prefix)
}
