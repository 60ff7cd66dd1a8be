//! Shares in percent, numbers for the page's script, and text from images made harmless: the rest comes from
//! [`crate::text`], so that all renderings say the same.

pub(crate) use crate::text::{count as grouped, plural, ranges, size as human};

/// A share in percent, two decimals; neither 0 nor 100 unless it is.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "–".to_owned();
    }
    let hundredths = (u128::from(part) * 10_000 + u128::from(whole) / 2) / u128::from(whole);
    match hundredths {
        0 if part > 0 => "<0.01 %".to_owned(),
        10_000 if part < whole => ">99.99 %".to_owned(),
        _ => format!("{}.{:02} %", hundredths / 100, hundredths % 100),
    }
}

/// Text whose characters do nothing: controls, and those that reverse or hide what follows them, are written as
/// `\u{…}`.
pub(crate) fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' | '\t' | '\r' => out.extend(letter.escape_default()),
            _ if letter.is_control() || is_hidden(letter) => out.extend(letter.escape_unicode()),
            _ => out.push(letter),
        }
    }
    out
}

/// Characters that show nothing themselves but change how others are shown, and those XML does not allow.
fn is_hidden(letter: char) -> bool {
    matches!(letter,
        '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' |
        '\u{feff}' | '\u{fff0}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}' | '\u{e0000}'..='\u{e0fff}')
}

/// Text cut to so many characters, with a sign that it was.
pub(crate) fn cut(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

/// [`visible`], and fit to stand in the text or an attribute of HTML and XML.
pub(crate) fn markup(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in visible(text).chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(letter),
        }
    }
    out
}

/// A number in base 36, as the page's script reads it.
pub(crate) fn base36(mut number: u64) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut out = Vec::new();
    loop {
        out.push(DIGITS.get((number % 36) as usize).map_or('0', |digit| char::from(*digit)));
        number /= 36;
        if number == 0 {
            return out.iter().rev().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_neither_nothing_nor_all_unless_they_are() {
        for (part, whole, want) in [
            (0, 10, "0.00 %"),
            (10, 10, "100.00 %"),
            (1, 3, "33.33 %"),
            (1, u64::MAX, "<0.01 %"),
            (u64::MAX - 1, u64::MAX, ">99.99 %"),
            (0, 0, "–"),
        ] {
            assert_eq!(percent(part, whole), want, "{part} of {whole}");
        }
    }

    #[test]
    fn numbers_in_base_36() {
        for (number, digits) in [(0, "0"), (999, "rr"), (1000, "rs"), (u64::MAX, "3w5e11264sgsf")] {
            assert_eq!(base36(number), digits);
        }
    }

    #[test]
    fn hostile_text_is_harmless() {
        for (text, want) in [
            ("disk.qcow2", "disk.qcow2"),
            ("</script><b a='1' b=\"2\">&", "&lt;/script&gt;&lt;b a=&#39;1&#39; b=&quot;2&quot;&gt;&amp;"),
            ("\x1b[31mred\0\n", "\\u{1b}[31mred\\u{0}\\n"),
            ("a\u{202e}b\u{feff}\u{fffe}", "a\\u{202e}b\\u{feff}\\u{fffe}"),
            ("größe", "größe"),
        ] {
            assert_eq!(markup(text), want, "{text:?}");
        }
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("abcd", 4), "abcd");
    }
}
