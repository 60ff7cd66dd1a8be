//! Numbers on the command line: seeds and times.

use std::time::Duration;

/// A seed, in decimal or, after 0x, in hexadecimal.
pub(super) fn parse_seed(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(hex) if !hex.starts_with('+') => u64::from_str_radix(hex, 16),
        _ => text.parse(),
    };
    number.map_err(|error| error.to_string())
}

/// A time such as 90, 60s, 5m, 8h or 500ms; without a unit, seconds.
pub(super) fn parse_time(text: &str) -> Result<Duration, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: u64 = number.parse().map_err(|_| "a time begins with a number, such as 60s".to_owned())?;
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("'{unit}' is no unit of time; there are ms, s, m and h")),
    };
    match number.checked_mul(millis) {
        Some(0) => Err("it has to be more than nothing".to_owned()),
        Some(millis) => Ok(Duration::from_millis(millis)),
        None => Err("that is longer than anybody waits".to_owned()),
    }
}

/// A number with its thousands apart: `1 234 567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && digits.len().saturating_sub(at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// `1 seed`, `2 seeds`.
pub(crate) fn counted(count: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(count), if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_people_write_them() {
        for (text, want) in
            [("7", Some(7)), ("0x51f0", Some(0x51f0)), ("", None), ("0x", None), ("-1", None), ("0x+1", None)]
        {
            assert_eq!(parse_seed(text).ok(), want, "{text}");
        }
        for (text, want) in [
            ("60s", Some(60_000)),
            ("90", Some(90_000)),
            ("500ms", Some(500)),
            ("5m", Some(300_000)),
            ("8h", Some(28_800_000)),
            ("0", None),
            ("s", None),
            ("5d", None),
            ("99999999999999999999", None),
            ("9999999999999999999h", None),
        ] {
            assert_eq!(parse_time(text).ok(), want.map(Duration::from_millis), "{text}");
        }
        assert_eq!([grouped(0), grouped(999), grouped(1000), grouped(1_234_567)], ["0", "999", "1 000", "1 234 567"]);
    }
}
