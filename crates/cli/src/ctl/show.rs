//! Results for people: a line for each value, tables for lists of the like.

use serde_json::{Map, Value};

/// A result as text; nothing for a command that has nothing to say.
pub(super) fn human(value: &Value) -> String {
    let mut text = String::new();
    lines(value, 0, &mut text);
    text
}

fn lines(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                field(key, value, indent, text);
            }
        }
        Value::Array(list) => match table(list) {
            Some(rows) => rows.iter().for_each(|row| line(indent, row, text)),
            None => {
                for (number, value) in list.iter().enumerate() {
                    // An empty line between things that take several.
                    if number > 0 && value.as_object().is_some_and(|map| !map.is_empty()) {
                        text.push('\n');
                    }
                    lines(value, indent, text);
                }
            }
        },
        value => line(indent, &plain(value), text),
    }
}

fn field(key: &str, value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() && is_flat(map) && width(map) < 80 => {
            line(indent, &format!("{key}: {}", pairs(map)), text);
        }
        Value::Object(map) if map.is_empty() => line(indent, &format!("{key}: none"), text),
        Value::Array(list) if list.is_empty() => line(indent, &format!("{key}: none"), text),
        Value::Array(list) if list.iter().all(is_plain) => {
            let words: Vec<String> = list.iter().map(plain).collect();
            line(indent, &format!("{key}: {}", words.join(", ")), text);
        }
        Value::Object(_) | Value::Array(_) => {
            line(indent, &format!("{key}:"), text);
            lines(value, indent + 2, text);
        }
        value => line(indent, &format!("{key}: {}", plain(value)), text),
    }
}

fn line(indent: usize, words: &str, text: &mut String) {
    text.extend(std::iter::repeat_n(' ', indent));
    text.push_str(words.trim_end());
    text.push('\n');
}

fn is_plain(value: &Value) -> bool {
    !value.is_object() && !value.is_array()
}

fn is_flat(map: &Map<String, Value>) -> bool {
    map.values().all(is_plain)
}

fn width(map: &Map<String, Value>) -> usize {
    map.iter().map(|(key, value)| key.len() + plain(value).len() + 2).sum()
}

fn pairs(map: &Map<String, Value>) -> String {
    let pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}={}", plain(value))).collect();
    pairs.join(" ")
}

fn plain(value: &Value) -> String {
    match value {
        // What a peer sent does not steer the terminal.
        Value::String(text) => {
            text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
        }
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Null => "none".to_owned(),
        value => value.to_string(),
    }
}

/// A list of flat objects as rows under the names of their fields.
fn table(list: &[Value]) -> Option<Vec<String>> {
    let maps: Vec<&Map<String, Value>> = list.iter().map(Value::as_object).collect::<Option<_>>()?;
    if maps.is_empty() || !maps.iter().all(|map| is_flat(map)) {
        return None;
    }
    let mut names: Vec<&str> = Vec::new();
    for name in maps.iter().flat_map(|map| map.keys()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let mut rows = vec![names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>()];
    rows.extend(
        maps.iter().map(|map| names.iter().map(|name| map.get(*name).map_or_else(String::new, plain)).collect()),
    );
    if let [name] = names.as_slice() {
        // One column needs no heading but a name that is not obvious.
        if *name == "name" {
            rows.remove(0);
        }
    }
    let widths: Vec<usize> = (0..names.len())
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let shown = rows.iter().map(|row| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ")
    });
    Some(shown.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::human;

    #[test]
    fn results_are_readable() {
        for (value, want) in [
            (json!({}), ""),
            (json!({"fired": 2}), "fired: 2\n"),
            (json!([{"name": "a"}, {"name": "b"}]), "a\nb\n"),
            (
                json!([{"node": "f", "driver": "fault", "stopped": false}, {"node": "disk0", "driver": "disk"}]),
                "node   driver  stopped\nf      fault   no\ndisk0  disk\n",
            ),
            (
                json!([{"node": "f", "rules": [{"id": "r", "rule": {"on": {"lba": 50}, "do": {"fail": "EIO"}}}], "held": []}]),
                "node: f\nrules:\n  id: r\n  rule:\n    on: lba=50\n    do: fail=EIO\nheld: none\n",
            ),
            (
                json!({"states": {"count": 4, "log2": 2.0}, "names": ["a", "b"]}),
                "states: count=4 log2=2.0\nnames: a, b\n",
            ),
            (json!({"text": "a\u{1b}[2J"}), "text: a\\u{1b}[2J\n"),
        ] {
            assert_eq!(human(&value), want, "{value}");
        }
    }
}
