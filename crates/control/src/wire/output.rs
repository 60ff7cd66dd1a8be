//! Messages as they go out: one line of ASCII each.

use std::fmt::Write as _;

use blkproof_block::LocalBoxFuture;
use futures_lite::future::yield_now;
use serde_json::Value;

/// Bytes encoded between two turns of others.
const TURN: usize = 64 << 10;

/// Levels of a message that are taken apart: `return`, a node, its `rules`, a rule.
const LEVELS: usize = 4;

/// The same as [`encode`], with turns for others where it is long.
pub(crate) async fn encode_in_turns(message: &Value) -> Vec<u8> {
    let mut line = Line { text: String::new(), turn_at: TURN };
    line.add(message, LEVELS).await;
    line.text.push_str("\r\n");
    line.text.into_bytes()
}

struct Line {
    text: String,
    turn_at: usize,
}

impl Line {
    fn add<'a>(&'a mut self, value: &'a Value, levels: usize) -> LocalBoxFuture<'a, ()> {
        Box::pin(async move {
            match (value, levels.checked_sub(1)) {
                (Value::Array(list), Some(levels)) => {
                    self.text.push('[');
                    for (number, value) in list.iter().enumerate() {
                        self.comma(number);
                        self.add(value, levels).await;
                    }
                    self.text.push(']');
                }
                (Value::Object(map), Some(levels)) => {
                    self.text.push('{');
                    for (number, (key, value)) in map.iter().enumerate() {
                        self.comma(number);
                        escape(&Value::from(key.as_str()).to_string(), &mut self.text);
                        self.text.push(':');
                        self.add(value, levels).await;
                    }
                    self.text.push('}');
                }
                (value, _) => escape(&value.to_string(), &mut self.text),
            }
            if self.text.len() >= self.turn_at {
                self.turn_at = self.text.len().saturating_add(TURN);
                yield_now().await;
            }
        })
    }

    fn comma(&mut self, number: usize) {
        if number > 0 {
            self.text.push(',');
        }
    }
}

/// A message as a line that ends with CRLF. Everything beyond ASCII is escaped, so that no terminal and no reader has to
/// know an encoding.
pub fn encode(message: &Value) -> Vec<u8> {
    let text = message.to_string();
    let mut line = String::with_capacity(text.len().saturating_add(2));
    escape(&text, &mut line);
    line.push_str("\r\n");
    line.into_bytes()
}

fn escape(text: &str, line: &mut String) {
    let mut rest = text;
    // Outside of strings JSON is ASCII: whatever is not stands in one, where it can be escaped.
    while let Some(at) = rest.bytes().position(|byte| byte >= 0x7f) {
        let (plain, odd) = rest.split_at(at);
        line.push_str(plain);
        let mut letters = odd.chars();
        for unit in letters.next().unwrap_or_default().encode_utf16(&mut [0; 2]) {
            // Writing to a string does not fail.
            let _ = write!(line, "\\u{unit:04x}");
        }
        rest = letters.as_str();
    }
    line.push_str(rest);
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};
    use serde_json::json;

    use super::{encode, encode_in_turns};

    #[test]
    fn lines_are_ascii_and_read_back() {
        let message = json!({"return": ["é", "😀\u{7f}\u{1}", {"a": [1, 2.5, null]}], "id": "\"\\\n"});
        let line = String::from_utf8(encode(&message)).unwrap();
        assert_eq!(
            line,
            "{\"return\":[\"\\u00e9\",\"\\ud83d\\ude00\\u007f\\u0001\",{\"a\":[1,2.5,null]}],\"id\":\"\\\"\\\\\\n\"}\r\n"
        );
        assert!(line.is_ascii());
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), message);
        assert_eq!(line.into_bytes(), block_on(encode_in_turns(&message)));
    }

    #[test]
    fn others_have_their_turns_while_a_long_message_is_encoded() {
        let rule = json!({"id": "é", "rule": {"on": {"lba": [1, 2]}, "do": "fail"}});
        let message = json!({"return": [{"node": "f", "rules": vec![rule; 10_000], "held": []}], "id": 1});
        let mut encoding = Box::pin(encode_in_turns(&message));
        let mut turns = 0;
        let line = block_on(async {
            loop {
                match poll_once(&mut encoding).await {
                    Some(line) => break line,
                    None => turns += 1,
                }
            }
        });
        assert!(line == encode(&message));
        assert!(turns >= line.len() / (2 * super::TURN), "{turns} turns for {} bytes", line.len());
    }
}
