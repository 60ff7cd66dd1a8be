//! Small parts of text that every rendering shares: sizes, counts, ranges, lines, and names that come out of an image.

use std::fmt::Write as _;
use std::ops::Range;

/// A byte count as people write it: `64 KiB`, `1.50 GiB`, `123 bytes`; rounded down.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut shift = 0u32;
    while bytes >> shift >= 1024 && shift < 60 {
        shift += 10;
    }
    let Some(unit) = (shift / 10).checked_sub(1).and_then(|i| UNITS.get(i as usize)) else {
        return plural(bytes, "byte");
    };
    let hundredths = (u128::from(bytes) * 100) >> shift;
    match hundredths % 100 {
        0 => format!("{} {unit}", hundredths / 100),
        part => format!("{}.{part:02} {unit}", hundredths / 100),
    }
}

/// A count in groups of three digits: `1 234 567`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun: `1 error`, `1 234 errors`.
#[must_use]
pub fn plural(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A half-open range: `0x1000..0x2000`.
#[must_use]
pub fn range(range: &Range<u64>) -> String {
    format!("{:#x}..{:#x}", range.start, range.end)
}

/// The first few ranges of a list, and how many more there are.
#[must_use]
pub fn ranges(list: &[Range<u64>], most: usize) -> String {
    let mut text = list.iter().take(most).map(range).collect::<Vec<_>>().join(", ");
    if let Some(more) = list.len().checked_sub(most).filter(|more| *more > 0) {
        let _ = write!(text, ", … and {} more", count(more as u64));
    }
    text
}

/// Text that may come out of an image, safe to show: control characters, and those that turn the direction of writing,
/// are escaped.
#[must_use]
pub fn safe(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        let turns = matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if letter.is_control() || turns {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// Breaks text at spaces into lines of at most `width` characters, each after `indent`; a longer word stays whole.
#[must_use]
pub fn wrap(text: &str, indent: &str, width: usize) -> String {
    wrap_after(text, indent, indent, width)
}

/// The same, with something else before the first line (a number, a label).
#[must_use]
pub fn wrap_after(text: &str, first: &str, indent: &str, width: usize) -> String {
    let mut all = String::from(first);
    let mut used = first.chars().count();
    let mut begun = false;
    for word in text.split_whitespace() {
        let letters = word.chars().count();
        if begun && used + 1 + letters > width {
            all.push('\n');
            all.push_str(indent);
            used = indent.chars().count();
            begun = false;
        }
        if begun {
            all.push(' ');
            used += 1;
        }
        all.push_str(word);
        used += letters;
        begun = true;
    }
    all.push('\n');
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        for (bytes, text) in
            [(0, "0 bytes"), (1, "1 byte"), (1023, "1 023 bytes"), (1536, "1.50 KiB"), (u64::MAX, "15.99 EiB")]
        {
            assert_eq!(size(bytes), text);
        }
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1 000"), (1_226_355, "1 226 355")] {
            assert_eq!(count(number), text);
        }
        assert_eq!(ranges(&[0..1, 2..3, 4..5], 2), "0x0..0x1, 0x2..0x3, … and 1 more");
        assert_eq!(ranges(&[0..1, 2..3], 2), "0x0..0x1, 0x2..0x3");
    }

    #[test]
    fn names_can_not_move_the_cursor() {
        assert_eq!(safe("a\x1b[2Jb\n\u{202e}c\u{7f} ü"), "a\\u{1b}[2Jb\\n\\u{202e}c\\u{7f} ü");
    }

    #[test]
    fn lines_break_at_spaces() {
        assert_eq!(wrap("one two three", "  ", 9), "  one two\n  three\n");
        assert_eq!(wrap_after("one two", "1. ", "   ", 7), "1. one\n   two\n");
        assert_eq!(wrap("abcdefghij k", "", 4), "abcdefghij\nk\n");
    }
}
