//! The numbers of qemu-io: offsets, lengths and pattern bytes, and what it says of wrong ones.

/// Largest transfer of one request: 2^31 - 512 bytes, QEMU's limit.
pub(super) const REQUEST_BYTES_MAX: u64 = 2_147_483_136;

/// Sectors, in which QEMU counts the size of every image.
pub(super) const SECTOR: u64 = 512;

#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    Shape,
    TooLarge,
}

/// An offset or length: decimal, or hexadecimal without a suffix, or with a suffix b, k, M, G, T, P, E (powers of
/// 1024, either case) and then perhaps a fraction; below 2^63.
///
/// # Errors
/// The message to print.
pub(super) fn offset(text: &str) -> Result<u64, String> {
    size(text).map_err(|wrong| complaint(&wrong, text))
}

/// As [`offset`], but the message shows `shown`: `truncate` names its first word whatever is wrong.
pub(super) fn offset_shown_as(text: &str, shown: &str) -> Result<u64, String> {
    size(text).map_err(|wrong| complaint(&wrong, shown))
}

fn complaint(wrong: &Wrong, text: &str) -> String {
    match wrong {
        Wrong::Shape => {
            format!("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}")
        }
        Wrong::TooLarge => format!("Parsing error: argument too large -- {text}"),
    }
}

fn size(text: &str) -> Result<u64, Wrong> {
    let text = text.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    if let Some(digits) = text.strip_prefix('-') {
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        return Err(if plain { Wrong::TooLarge } else { Wrong::Shape });
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Wrong::Shape);
        }
        let value = u64::from_str_radix(digits, 16).map_err(|_| Wrong::TooLarge)?;
        return below_limit(Some(value));
    }
    let (whole, rest) = split_digits(text);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => split_digits(rest),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(Wrong::Shape);
    }
    let shift: u32 = match rest.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        "e" => 60,
        _ => return Err(Wrong::Shape),
    };
    let unit = 1u64 << shift;
    let fraction: f64 = if fraction.is_empty() { 0.0 } else { format!("0.{fraction}").parse().unwrap_or(0.0) };
    if fraction > 0.0 && unit == 1 {
        return Err(Wrong::Shape);
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| Wrong::TooLarge)? };
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // Rounded to the nearest byte, as qemu-io does; the product lies in 0..=2^60.
    let part = (fraction * unit as f64 + 0.5) as u64;
    below_limit(whole.checked_mul(unit).and_then(|bytes| bytes.checked_add(part)))
}

fn below_limit(value: Option<u64>) -> Result<u64, Wrong> {
    value.filter(|value| i64::try_from(*value).is_ok()).ok_or(Wrong::TooLarge)
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at_checked(text.bytes().take_while(u8::is_ascii_digit).count()).unwrap_or((text, ""))
}

/// A pattern byte: 0 to 255 with C's prefixes (`0x` hexadecimal, `0` octal).
///
/// # Errors
/// The message to print.
pub(super) fn pattern(text: &str) -> Result<u8, String> {
    integer(text)
        .and_then(|value| u8::try_from(value).ok())
        .ok_or_else(|| format!("{text} is not a valid pattern byte"))
}

/// A C integer with its prefixes; out of range saturates, as `strtol` does.
pub(super) fn integer(text: &str) -> Option<i64> {
    let text = text.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if digits.starts_with('0') => (8, digits),
        None => (10, digits),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let value = i64::from_str_radix(digits, radix).unwrap_or(i64::MAX);
    Some(if negative { value.saturating_neg() } else { value })
}

/// The lengths of a vector, each and together at most [`REQUEST_BYTES_MAX`]; their sum.
///
/// # Errors
/// The message to print.
pub(super) fn vector(words: &[String]) -> Result<Vec<u64>, String> {
    let mut lengths = Vec::with_capacity(words.len());
    let mut total = 0u64;
    for word in words {
        let length = offset(word)?;
        if length > REQUEST_BYTES_MAX {
            return Err(format!("Argument '{word}' exceeds maximum size {REQUEST_BYTES_MAX}"));
        }
        total = total.saturating_add(length);
        if total > REQUEST_BYTES_MAX {
            return Err(format!("The total number of bytes exceed the maximum size {REQUEST_BYTES_MAX}"));
        }
        lengths.push(length);
    }
    Ok(lengths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_qemu_io_reads_them() {
        use Wrong::{Shape, TooLarge};
        for (text, want) in [
            ("0", Ok(0)),
            ("010", Ok(10)),
            ("+5", Ok(5)),
            ("1.", Ok(1)),
            ("1.0b", Ok(1)),
            ("1.5", Err(Shape)),
            ("1.5b", Err(Shape)),
            (".5k", Ok(512)),
            (".", Err(Shape)),
            (".k", Err(Shape)),
            ("0.0004k", Ok(0)),
            ("0.0005k", Ok(1)),
            ("1.9999999999k", Ok(2048)),
            ("1.0000000000000000000000001", Err(Shape)),
            ("0x1E", Ok(30)),
            ("0x1k", Err(Shape)),
            ("0x", Err(Shape)),
            ("1e", Ok(1 << 60)),
            ("1e3", Err(Shape)),
            ("-0", Err(TooLarge)),
            ("-1", Err(TooLarge)),
            ("-1k", Err(Shape)),
            ("-", Err(Shape)),
            ("", Err(Shape)),
            ("8191P", Ok(8191 << 50)),
            ("8192P", Err(TooLarge)),
            ("7.9999999999999999999E", Err(TooLarge)),
            ("9223372036854775807", Ok(i64::MAX.unsigned_abs())),
            ("9223372036854775808", Err(TooLarge)),
            ("99999999999999999999", Err(TooLarge)),
        ] {
            assert_eq!(size(text), want, "{text:?}");
        }
    }

    #[test]
    fn pattern_bytes_have_c_prefixes() {
        for (text, want) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("+1", Some(1)),
            ("0xff", Some(255)),
            ("0377", Some(255)),
            ("256", None),
            ("-1", None),
            ("0x", None),
            ("08", None),
            ("1k", None),
            ("", None),
        ] {
            assert_eq!(pattern(text).ok(), want, "{text:?}");
        }
    }

    #[test]
    fn a_vector_is_bounded_as_a_whole() {
        let words = |text: &str| -> Vec<String> { text.split(' ').map(str::to_owned).collect() };
        assert_eq!(vector(&words("1k 2k")), Ok(vec![1024, 2048]));
        assert!(vector(&words("3G")).unwrap_err().starts_with("Argument '3G' exceeds"));
        assert!(vector(&words("1G 1G")).unwrap_err().starts_with("The total number of bytes"));
    }
}
