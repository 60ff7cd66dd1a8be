//! What a command says: text as it happens, or one JSON object when it is done (`--format json`).
//!
//! The object always has `schema`, `command`, `words` and `ok`; `messages` holds, in order, the texts that would have
//! been printed beside the result. Everything else depends on the command: `offset`, `bytes` and `seconds` of a
//! transfer, `data` of a dump (hexadecimal), `mismatch` of a failed pattern, `error` of a failed request.

use std::rc::Rc;

use blkproof_block::IoError;
use serde_json::{Map, Value, json};

use super::console::Console;

/// Version of the objects; it changes when a member changes its meaning.
const SCHEMA: &str = "blkproof-io/1";

/// Collects, or prints, what one command says.
pub(super) struct Reply {
    console: Rc<Console>,
    words: Vec<String>,
    members: Map<String, Value>,
    messages: Vec<Value>,
}

impl Reply {
    /// For the command that was typed as `words`.
    pub(super) fn new(console: &Rc<Console>, words: &[String]) -> Self {
        Self { console: Rc::clone(console), words: words.to_vec(), members: Map::new(), messages: Vec::new() }
    }

    /// A line on standard output.
    pub(super) fn out(&mut self, text: &str) {
        if self.console.json {
            self.messages.push(json!(text));
        } else {
            let mut line = String::with_capacity(text.len().saturating_add(1));
            line.push_str(text);
            line.push('\n');
            self.console.write(&line);
        }
    }

    /// A line on standard error.
    pub(super) fn err(&mut self, text: &str) {
        if self.console.json {
            self.messages.push(json!(text));
        } else {
            self.console.error_line(text);
        }
    }

    /// A line on standard error that begins with the program's name.
    pub(super) fn complain(&mut self, text: &str) {
        let text = if self.console.json { text.to_owned() } else { self.console.message(text) };
        self.err(&text);
    }

    /// `what failed: Input/output error`, and in JSON all that is known of the error.
    pub(super) fn failed(&mut self, what: &str, error: &IoError) {
        self.out(&format!("{what} failed: {}", error.errno));
        if !self.console.as_qemu_io
            && let Some(text) = place(error)
        {
            self.out(&text);
        }
        self.set_error(error);
    }

    /// Adds the error to the object.
    pub(super) fn set_error(&mut self, error: &IoError) {
        self.set(
            "error",
            json!({
                "errno": error.errno.0,
                "text": error.errno.to_string(),
                "first_bad": error.first_bad.map(|bad| bad.0),
                "detail": error.detail.as_deref(),
                "injected_by": error.injected_by.as_ref().map(ToString::to_string),
            }),
        );
    }

    /// Adds a member to the object.
    pub(super) fn set(&mut self, key: &str, value: impl Into<Value>) {
        if self.console.json {
            self.members.insert(key.to_owned(), value.into());
        }
    }

    /// Whether an object is being made.
    pub(super) fn is_json(&self) -> bool {
        self.console.json
    }

    /// Whether every word has to be qemu-io's.
    pub(super) fn as_qemu_io(&self) -> bool {
        self.console.as_qemu_io
    }

    /// Prints the object, if there is one to print.
    pub(super) fn finish(self, ok: bool) {
        if !self.console.json {
            return;
        }
        let mut object = Map::new();
        object.insert("schema".into(), json!(SCHEMA));
        object.insert("command".into(), json!(self.words.first()));
        object.insert("words".into(), json!(self.words));
        object.insert("ok".into(), json!(ok));
        object.extend(self.members);
        if !self.messages.is_empty() {
            object.insert("messages".into(), Value::Array(self.messages));
        }
        self.console.write(&format!("{}\n", Value::Object(object)));
    }
}

/// The rest of what an error knows, on one line.
fn place(error: &IoError) -> Option<String> {
    let mut parts = Vec::new();
    if let Some(bad) = error.first_bad {
        parts.push(format!("first bad byte at offset {}", bad.0));
    }
    if let Some(detail) = &error.detail {
        parts.push(detail.to_string());
    }
    if let Some(rule) = &error.injected_by {
        parts.push(format!("injected by rule {rule}"));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}
