//! Messages as they go out: one line of ASCII each.

use std::fmt::Write as _;

use serde_json::Value;

/// A message as a line that ends with CRLF. Everything beyond ASCII is escaped, so that no terminal and no reader has to
/// know an encoding.
pub fn encode(message: &Value) -> Vec<u8> {
    let text = message.to_string();
    let mut line = String::with_capacity(text.len().saturating_add(2));
    let mut rest = text.as_str();
    // Outside of strings JSON is ASCII: whatever is not stands in one, where it can be escaped.
    while let Some(at) = rest.find(|letter: char| !letter.is_ascii() || letter == '\x7f') {
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
    line.push_str("\r\n");
    line.into_bytes()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::encode;

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
    }
}
