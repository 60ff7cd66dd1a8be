//! Values with the places they stand in: what TOML and JSON become before they are understood.

use toml::de::{DeTable, DeValue};

use super::mistake::{Mistake, Place};

/// A value deeper than this is refused: the format needs five.
const DEPTH_MAX: usize = 8;

/// So many mistakes of syntax are told.
const SYNTAX_MAX: usize = 10;

/// Bytes of the longest text in which more than the first mistake of syntax is looked for.
const RECOVERED_MAX: usize = 256 << 10;

/// A value and where it begins, in bytes of the text; `None` in JSON.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Tree {
    pub(super) at: Option<usize>,
    pub(super) value: Value,
}

/// A value.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i128),
    Float(f64),
    Boolean(bool),
    List(Vec<Tree>),
    Table(Vec<Entry>),
    /// Something the format has no use for, by its name.
    Other(&'static str),
}

/// A key of a table, where it stands, and its value.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Entry {
    pub(super) at: Option<usize>,
    pub(super) key: String,
    pub(super) value: Tree,
}

impl Value {
    /// What it is, in messages.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) => "a whole number",
            Self::Float(_) => "a fraction",
            Self::Boolean(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(kind) => kind,
        }
    }
}

impl Tree {
    /// The value of that name in a table.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Table(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value),
            _ => None,
        }
    }

    /// Where the value with that path begins, or what there is of the path.
    pub(super) fn place_of(&self, path: &str) -> Option<usize> {
        let mut tree = self;
        for key in path.split('.') {
            match tree.get(key) {
                Some(below) => tree = below,
                None => break,
            }
        }
        tree.at
    }

    /// A tree of a TOML document.
    ///
    /// # Errors
    /// Mistakes of syntax.
    pub(super) fn from_toml(text: &str, lines: &Lines<'_>) -> Result<Self, Vec<Mistake>> {
        let (document, errors) = if text.len() <= RECOVERED_MAX {
            DeTable::parse_recoverable(text)
        } else {
            // Every mistake costs memory, and a large file may be made of them.
            match DeTable::parse(text) {
                Ok(document) => (document, Vec::new()),
                Err(error) => (toml::Spanned::new(0..0, DeTable::new()), vec![error]),
            }
        };
        if errors.is_empty() {
            return Ok(Self { at: None, value: table(document.get_ref(), 0) });
        }
        let mistakes = errors.iter().take(SYNTAX_MAX).map(|error| Mistake {
            place: error.span().map(|span| lines.place(span.start)),
            rule: None,
            field: String::new(),
            words: format!("no TOML: {}", error.message()),
        });
        Err(mistakes.collect())
    }

    /// A tree of a JSON value.
    pub(super) fn from_json(value: &serde_json::Value) -> Self {
        Self { at: None, value: json(value, 0) }
    }
}

fn table(table: &DeTable<'_>, depth: usize) -> Value {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            at: Some(key.span().start),
            key: key.get_ref().to_string(),
            value: Tree { at: Some(value.span().start), value: toml(value.get_ref(), depth.saturating_add(1)) },
        })
        .collect();
    entries.sort_by_key(|entry| entry.at);
    Value::Table(entries)
}

fn toml(value: &DeValue<'_>, depth: usize) -> Value {
    if depth > DEPTH_MAX {
        return Value::Other("something nested too deeply");
    }
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("a number too large"), Value::Integer),
        DeValue::Float(number) => number.as_str().parse().map_or(Value::Other("a number too large"), Value::Float),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(_) => Value::Other("a date or time"),
        DeValue::Array(list) => Value::List(
            list.iter()
                .map(|item| Tree { at: Some(item.span().start), value: toml(item.get_ref(), depth.saturating_add(1)) })
                .collect(),
        ),
        DeValue::Table(below) => table(below, depth),
    }
}

fn json(value: &serde_json::Value, depth: usize) -> Value {
    use serde_json::Value as Json;
    if depth > DEPTH_MAX {
        return Value::Other("something nested too deeply");
    }
    let below = |value: &Json| Tree { at: None, value: json(value, depth.saturating_add(1)) };
    match value {
        Json::Null => Value::Other("null"),
        Json::Bool(value) => Value::Boolean(*value),
        Json::Number(number) => match (number.as_i128(), number.as_f64()) {
            (Some(number), _) => Value::Integer(number),
            (None, Some(number)) => Value::Float(number),
            (None, None) => Value::Other("a number too large"),
        },
        Json::String(text) => Value::Text(text.clone()),
        Json::Array(list) => Value::List(list.iter().map(below).collect()),
        Json::Object(table) => Value::Table(
            table.iter().map(|(key, value)| Entry { at: None, key: key.clone(), value: below(value) }).collect(),
        ),
    }
}

/// Where the lines of a text are. They are counted when somebody asks: few do, and a text may be nothing but lines.
pub(super) struct Lines<'a>(&'a str);

impl<'a> Lines<'a> {
    pub(super) const fn new(text: &'a str) -> Self {
        Self(text)
    }

    /// The line and column of byte `at`.
    pub(super) fn place(&self, at: usize) -> Place {
        let before = self.0.get(..at).unwrap_or(self.0);
        let line = before.bytes().filter(|byte| *byte == b'\n').count();
        let column = before.rsplit('\n').next().map_or(0, |begun| begun.chars().count());
        Place { line: line.saturating_add(1), column: column.saturating_add(1) }
    }
}
