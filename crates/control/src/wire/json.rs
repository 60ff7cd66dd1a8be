//! JSON as it comes in, a piece at a time.
//!
//! The dialect is QEMU's: strings may stand in single quotes, messages follow each other with or without anything
//! between them, and a control character (or 0xFF, which is in no UTF-8 text) throws away what has been read of a
//! message, so that a client can always get back to a known state.
//!
//! Nothing is read twice: the parser keeps what it has understood and one unfinished token. After an error the rest of
//! the line is skipped, so that no piece of a broken message is taken for one of its own.
//!
//! Invariants: a message takes no more than [`Limits::bytes`] of memory for its text, [`Limits::values`] values and
//! [`Limits::depth`] levels; the stack has one entry for each open bracket.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use serde_json::{Map, Number, Value};

/// How large a message may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of its text.
    pub bytes: usize,
    /// Objects and arrays within each other.
    pub depth: usize,
    /// Values in it: a short text can hold many, and each takes more memory than text.
    pub values: usize,
}

impl Default for Limits {
    /// 4 MiB, which is the answer to a question about a request of 3 MiB; 64 levels; 65536 values.
    fn default() -> Self {
        Self { bytes: 4 << 20, depth: 64, values: 1 << 16 }
    }
}

/// A text that is no message.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("JSON parse error, {what} (byte {at} of the message)")]
pub struct SyntaxError {
    what: String,
    at: usize,
}

/// Letters of a number or a word; the longest number JSON has a use for is far shorter.
const WORD_MAX: usize = 512;

/// A key as shown in messages.
const SHOWN_MAX: usize = 40;

#[derive(Debug)]
enum Open {
    Array(Vec<Value>),
    Object(Map<String, Value>, Option<String>),
}

/// What has to come next, between tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    /// A message.
    Message,
    /// A value.
    Value,
    /// A value or `]`.
    ValueOrEnd,
    /// A key.
    Key,
    /// A key or `}`.
    KeyOrEnd,
    /// `:`
    Colon,
    /// `,` or the end of what is open.
    Separator,
}

/// The token that is being read.
#[derive(Debug)]
enum Token {
    None,
    Word(String),
    Text { quote: u8, bytes: Vec<u8>, escape: Escape },
}

/// Where in an escape a string is.
#[derive(Clone, Copy, Debug)]
enum Escape {
    No,
    /// After `\`.
    Begun,
    /// After `\u` and so many digits.
    Unicode {
        digits: u8,
        code: u16,
    },
}

/// Reads messages. See the [module](self).
#[derive(Debug)]
pub(super) struct Parser {
    limits: Limits,
    open: Vec<Open>,
    expect: Expect,
    token: Token,
    /// The first half of a surrogate pair.
    high: Option<u16>,
    /// Bytes of this message.
    taken: usize,
    /// Values of this message.
    values: usize,
    /// Until the end of the line nothing is looked at.
    skipping: bool,
}

type Step = Result<Option<Value>, String>;

impl Parser {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            open: Vec::new(),
            expect: Expect::Message,
            token: Token::None,
            high: None,
            taken: 0,
            values: 0,
            skipping: false,
        }
    }

    /// Reads a byte; `Some` if it ends a message, well or badly.
    pub(super) fn push(&mut self, byte: u8) -> Option<Result<Value, SyntaxError>> {
        let resets = resets(byte);
        if self.skipping {
            self.skipping = !(resets || byte == b'\n');
            return None;
        }
        if self.expect == Expect::Message && is_space(byte) {
            return None;
        }
        self.taken = self.taken.saturating_add(1);
        let step = if resets {
            Err(format!("stray '{}'", shown(byte)))
        } else if self.taken > self.limits.bytes {
            Err(format!("a message may have {} bytes", self.limits.bytes))
        } else {
            self.take(byte)
        };
        match step {
            Ok(None) => None,
            Ok(Some(message)) => {
                self.reset();
                Some(Ok(message))
            }
            Err(what) => {
                let error = SyntaxError { what, at: self.taken };
                self.reset();
                // A control character says where to go on; otherwise that is the next line.
                self.skipping = !(resets || byte == b'\n');
                Some(Err(error))
            }
        }
    }

    /// Whether a message has begun and not ended.
    pub(super) fn is_midway(&self) -> bool {
        self.expect != Expect::Message
    }

    fn reset(&mut self) {
        *self = Self::new(self.limits);
    }

    fn take(&mut self, byte: u8) -> Step {
        match &mut self.token {
            Token::None => self.structure(byte),
            Token::Word(word) if byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.' | b'_') => {
                word.push(char::from(byte));
                if word.len() > WORD_MAX { Err("a number or word that does not end".to_owned()) } else { Ok(None) }
            }
            Token::Word(word) => {
                let value = constant(word)?;
                self.token = Token::None;
                self.value(value)?;
                self.structure(byte)
            }
            Token::Text { quote, escape: Escape::No, .. } if *quote == byte => self.end_text(),
            Token::Text { .. } => self.text(byte).map(|()| None),
        }
    }

    /// A byte between tokens.
    fn structure(&mut self, byte: u8) -> Step {
        if is_space(byte) {
            return Ok(None);
        }
        match (self.expect, byte) {
            (Expect::Message, b'{') => self.begin(Open::Object(Map::new(), None)),
            (Expect::Message, _) => Err("a message is an object, and begins with '{'".to_owned()),
            (Expect::Value | Expect::ValueOrEnd, b'{') => self.begin(Open::Object(Map::new(), None)),
            (Expect::Value | Expect::ValueOrEnd, b'[') => self.begin(Open::Array(Vec::new())),
            (Expect::Value | Expect::ValueOrEnd | Expect::Key | Expect::KeyOrEnd, b'"' | b'\'') => {
                self.token = Token::Text { quote: byte, bytes: Vec::new(), escape: Escape::No };
                Ok(None)
            }
            (Expect::ValueOrEnd, b']') | (Expect::KeyOrEnd, b'}') => self.end(),
            (Expect::Value | Expect::ValueOrEnd, b'-' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') => {
                self.token = Token::Word(char::from(byte).to_string());
                Ok(None)
            }
            (Expect::Value | Expect::ValueOrEnd, _) => Err(format!("'{}' where a value should begin", shown(byte))),
            (Expect::Key | Expect::KeyOrEnd, _) => Err(format!("'{}' where a key should begin", shown(byte))),
            (Expect::Colon, b':') => {
                self.expect = Expect::Value;
                Ok(None)
            }
            (Expect::Colon, _) => Err(format!("'{}' where ':' should follow a key", shown(byte))),
            (Expect::Separator, _) => self.separator(byte),
        }
    }

    fn separator(&mut self, byte: u8) -> Step {
        match (self.open.last(), byte) {
            (Some(Open::Array(_)), b',') => self.expect = Expect::Value,
            (Some(Open::Object(..)), b',') => self.expect = Expect::Key,
            (Some(Open::Array(_)), b']') | (Some(Open::Object(..)), b'}') => return self.end(),
            (Some(Open::Array(_)), _) => return Err(format!("'{}' where ',' or ']' should follow", shown(byte))),
            _ => return Err(format!("'{}' where ',' or '}}' should follow", shown(byte))),
        }
        Ok(None)
    }

    fn begin(&mut self, open: Open) -> Step {
        if self.open.len() >= self.limits.depth {
            return Err(format!("more than {} levels", self.limits.depth));
        }
        self.expect = match open {
            Open::Array(_) => Expect::ValueOrEnd,
            Open::Object(..) => Expect::KeyOrEnd,
        };
        self.open.push(open);
        Ok(None)
    }

    fn end(&mut self) -> Step {
        let value = match self.open.pop() {
            Some(Open::Array(values)) => Value::Array(values),
            Some(Open::Object(map, _)) => Value::Object(map),
            None => return Err("an end without a beginning".to_owned()),
        };
        if self.open.is_empty() {
            return Ok(Some(value));
        }
        self.value(value)?;
        Ok(None)
    }

    /// Puts a complete value where it belongs.
    fn value(&mut self, value: Value) -> Result<(), String> {
        self.values = self.values.saturating_add(1);
        if self.values > self.limits.values {
            return Err(format!("more than {} values", self.limits.values));
        }
        match self.open.last_mut() {
            Some(Open::Array(values)) => values.push(value),
            Some(Open::Object(map, key)) => {
                let key = key.take().unwrap_or_default();
                map.insert(key, value);
            }
            None => return Err("a value outside of a message".to_owned()),
        }
        self.expect = Expect::Separator;
        Ok(())
    }

    /// A byte inside a string, which does not end it.
    fn text(&mut self, byte: u8) -> Result<(), String> {
        let Token::Text { bytes, escape, .. } = &mut self.token else { return Ok(()) };
        if self.high.is_some() && matches!(escape, Escape::No) && byte != b'\\' {
            return Err("half of a surrogate pair".to_owned());
        }
        match *escape {
            Escape::No if byte == b'\\' => *escape = Escape::Begun,
            Escape::No if byte < 0x20 => return Err(format!("a string with '{}' in it", shown(byte))),
            Escape::No => bytes.push(byte),
            Escape::Begun if byte == b'u' => *escape = Escape::Unicode { digits: 0, code: 0 },
            Escape::Begun if self.high.is_some() => return Err("half of a surrogate pair".to_owned()),
            Escape::Begun => {
                bytes.push(match byte {
                    b'"' | b'\'' | b'\\' | b'/' => byte,
                    b'b' => 8,
                    b'f' => 12,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    _ => return Err(format!("no such escape: '\\{}'", shown(byte))),
                });
                *escape = Escape::No;
            }
            Escape::Unicode { digits, code } => {
                let digit = char::from(byte).to_digit(16).and_then(|digit| u16::try_from(digit).ok());
                let digit = digit.ok_or_else(|| "four hexadecimal digits belong behind '\\u'".to_owned())?;
                // Three digits shifted by one more: no bit is lost.
                let code = code << 4 | digit;
                if digits < 3 {
                    *escape = Escape::Unicode { digits: digits.saturating_add(1), code };
                    return Ok(());
                }
                *escape = Escape::No;
                let letter = match (self.high.take(), code) {
                    (None, 0xd800..=0xdbff) => {
                        self.high = Some(code);
                        return Ok(());
                    }
                    (None, code) => char::decode_utf16([code]).next(),
                    (Some(high), code) => char::decode_utf16([high, code]).next(),
                };
                let Some(Ok(letter)) = letter else { return Err("half of a surrogate pair".to_owned()) };
                bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        Ok(())
    }

    fn end_text(&mut self) -> Step {
        if self.high.is_some() {
            return Err("half of a surrogate pair".to_owned());
        }
        let Token::Text { bytes, .. } = std::mem::replace(&mut self.token, Token::None) else { return Ok(None) };
        let text = String::from_utf8(bytes).map_err(|_| "a string that is not UTF-8".to_owned())?;
        if !matches!(self.expect, Expect::Key | Expect::KeyOrEnd) {
            self.value(Value::String(text))?;
            return Ok(None);
        }
        let Some(Open::Object(map, key)) = self.open.last_mut() else { return Ok(None) };
        if map.contains_key(&text) {
            return Err(format!("duplicate key '{}'", text.chars().take(SHOWN_MAX).collect::<String>()));
        }
        *key = Some(text);
        self.expect = Expect::Colon;
        Ok(None)
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// Bytes that are in no message and end any.
fn resets(byte: u8) -> bool {
    byte == 0xff || (byte < 0x20 && !is_space(byte))
}

/// A byte as messages show it: they stay one line of ASCII.
fn shown(byte: u8) -> String {
    byte.escape_ascii().to_string()
}

fn constant(word: &str) -> Result<Value, String> {
    match word {
        "true" => Ok(Value::Bool(true)),
        "false" => Ok(Value::Bool(false)),
        "null" => Ok(Value::Null),
        _ => serde_json::from_str::<Number>(word)
            .map(Value::Number)
            .map_err(|_| format!("'{}' is no value", word.chars().take(SHOWN_MAX).collect::<String>())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(text: &[u8]) -> Vec<Result<Value, String>> {
        read_within(text, Limits::default())
    }

    fn read_within(text: &[u8], limits: Limits) -> Vec<Result<Value, String>> {
        let mut parser = Parser::new(limits);
        text.iter().filter_map(|byte| parser.push(*byte)).map(|got| got.map_err(|error| error.what)).collect()
    }

    #[test]
    fn messages_are_read() {
        for (text, want) in [
            ("{}", json!({})),
            (" \r\n\t{ } ", json!({})),
            ("{'a': 'b'}", json!({"a": "b"})),
            (r#"{"a":["x",'y"',"z'"]}"#, json!({"a": ["x", "y\"", "z'"]})),
            (r#"{"a":[[],{},[{"b":[1]}]]}"#, json!({"a": [[], {}, [{"b": [1]}]]})),
            (r#"{"a":-1,"b":18446744073709551615,"c":1.5e3}"#, json!({"a": -1, "b": u64::MAX, "c": 1500.0})),
            (r#"{"a":true,"b":false,"c":null}"#, json!({"a": true, "b": false, "c": null})),
            (r#"{"a":"\"\'\\\/\b\f\n\r\t\u00e9\ud83d\ude00"}"#, json!({"a": "\"'\\/\u{8}\u{c}\n\r\té😀"})),
            ("{\"é\":\"😀\"}", json!({"é": "😀"})),
            ("{\n  \"a\":\n 1\n}", json!({"a": 1})),
        ] {
            assert_eq!(read(text.as_bytes()), [Ok(want)], "{text}");
        }
        assert_eq!(read(b"{}{}\n{}").len(), 3, "nothing has to stand between messages");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, want) in [
            (&b"12"[..], "a message is an object, and begins with '{'"),
            (b"[1]", "a message is an object, and begins with '{'"),
            (b"{1:2}", "'1' where a key should begin"),
            (b"{,}", "',' where a key should begin"),
            (b"{'a':1,}", "'}' where a key should begin"),
            (b"{'a' 1}", "'1' where ':' should follow a key"),
            (b"{'a':}", "'}' where a value should begin"),
            (b"{'a':,}", "',' where a value should begin"),
            (b"{'a':[1 2]}", "'2' where ',' or ']' should follow"),
            (b"{'a':[1,]}", "']' where a value should begin"),
            (b"{'a':1]", "']' where ',' or '}' should follow"),
            (b"{'a':1 'b'}", "'\\'' where ',' or '}' should follow"),
            (b"{'a':nil}", "'nil' is no value"),
            (b"{'a':01}", "'01' is no value"),
            (b"{'a':1e}", "'1e' is no value"),
            (b"{'a':1,'a':2}", "duplicate key 'a'"),
            (b"{'a':'\\x'}", "no such escape: '\\x'"),
            (b"{'a':'\\u12g4'}", "four hexadecimal digits belong behind '\\u'"),
            (b"{'a':'\\ud800'}", "half of a surrogate pair"),
            (b"{'a':'\\ud800x'}", "half of a surrogate pair"),
            (b"{'a':'\\ud800\\n'}", "half of a surrogate pair"),
            (b"{'a':'\\udc00'}", "half of a surrogate pair"),
            (b"{'a':'\\ud800\\ud800'}", "half of a surrogate pair"),
            (b"{'a':'\xc3'}", "a string that is not UTF-8"),
            (b"{'a':'\xff", "stray '\\xff'"),
            (b"{'a\n", "a string with '\\n' in it"),
            (b"{'a': \x01", "stray '\\x01'"),
            (b"\x1b", "stray '\\x1b'"),
        ] {
            assert_eq!(read(text), [Err(want.to_owned())], "{}", text.escape_ascii());
        }
    }

    #[test]
    fn the_place_of_an_error_is_counted_from_the_beginning_of_its_message() {
        let mut parser = Parser::new(Limits::default());
        let error = b"  {}\n  {'a' 1}".iter().find_map(|byte| parser.push(*byte)?.err()).unwrap();
        assert_eq!(error.to_string(), "JSON parse error, '1' where ':' should follow a key (byte 6 of the message)");
    }

    #[test]
    fn after_an_error_the_next_line_or_what_a_control_character_begins_is_read() {
        let good = Ok(json!({"x": 1}));
        for text in [
            &b"nonsense {'y': {'z': 1}}\n{'x':1}"[..],
            b"{'a':1 'b' {'y': 1}\n{'x':1}",
            b"{'a':{'b':\x01{'x':1}",
            b"{'a':'b\x01{'x':1}",
            b"{'a':'b\n{'x':1}",
            b"{'a'}}}}\xff{'x':1}",
        ] {
            let got = read(text);
            assert_eq!(got.len(), 2, "{}: {got:?}", text.escape_ascii());
            assert_eq!(got[1], good, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn limits_hold_and_the_rest_of_the_line_costs_nothing() {
        let limits = Limits { bytes: 100, depth: 4, values: 10 };
        let long = format!("{{'a':'{}'}}\n{{}}", "x".repeat(1000));
        for (text, want) in [
            (long.as_str(), "a message may have 100 bytes"),
            ("{'a':[[[[]]]]}\n{}", "more than 4 levels"),
            ("{'a':[1,2,3,4,5,6,7,8,9,10,11]}\n{}", "more than 10 values"),
        ] {
            assert_eq!(read_within(text.as_bytes(), limits), [Err(want.to_owned()), Ok(json!({}))], "{text}");
        }
        assert_eq!(read_within(b"{'a':[[[]]]}", limits).len(), 1);
        let word = format!("{{'a':{}}}", "1".repeat(600));
        assert_eq!(read(word.as_bytes()), [Err("a number or word that does not end".to_owned())]);
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_serde_writes_is_read_as_it_was(values in prop::collection::vec(values(), 0..4)) {
            let mut text = Vec::new();
            let want: Vec<_> = values.into_iter().map(|value| json!({ "v": value })).collect();
            for value in &want {
                text.extend(serde_json::to_vec(value).unwrap());
            }
            let got: Vec<_> = read(&text).into_iter().map(Result::unwrap).collect();
            prop_assert_eq!(got, want);
        }

        #[test]
        fn no_bytes_make_it_panic_or_stay_lost(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut text = bytes;
            text.extend(b"\xff\xff{}");
            prop_assert_eq!(read(&text).pop(), Some(Ok(json!({}))));
        }

        #[test]
        fn what_is_read_is_json(text in r#"[{}\[\]:,'"a1 .\\u\n-]{0,60}"#) {
            // One after the other, so that a message that is accepted is one that serde accepts, quotes aside.
            for message in read(text.replace('\'', "\"").as_bytes()).into_iter().flatten() {
                let again: Value = serde_json::from_slice(&serde_json::to_vec(&message).unwrap()).unwrap();
                prop_assert_eq!(again, message);
            }
        }
    }
}
