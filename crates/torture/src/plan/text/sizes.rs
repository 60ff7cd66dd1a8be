//! Numbers and sizes, both ways.

/// Suffixes, largest first.
const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// A number of bytes, shortest where that is exact: `64K`, `1M`, `4097`.
pub fn size_text(bytes: u64) -> String {
    match UNITS.iter().find(|(_, shift)| bytes != 0 && bytes.trailing_zeros() >= *shift) {
        Some((unit, shift)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

/// A number of bytes: `4096`, `0x1000`, `4K`.
pub(super) fn size(text: &str) -> Option<u64> {
    let last = text.chars().next_back()?.to_ascii_uppercase();
    match UNITS.iter().find(|(unit, _)| *unit == last) {
        Some((unit, shift)) if !text.starts_with("0x") => {
            let digits = text.strip_suffix([*unit, unit.to_ascii_lowercase()])?;
            number(digits)?.checked_mul(1_u64.checked_shl(*shift)?)
        }
        _ => number(text),
    }
}

/// A number, decimal or `0x…`; no sign.
pub(super) fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => u64::from_str_radix(digits, 16).ok(),
        None if text.bytes().all(|digit| digit.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, bytes) in [
            ("0", 0),
            ("511", 511),
            ("1K", 1 << 10),
            ("1536", 1536),
            ("64K", 1 << 16),
            ("3M", 3 << 20),
            ("4G", 1 << 32),
            ("1T", 1 << 40),
            ("16777215T", 0xff_ffff << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
            assert_eq!(size_text(bytes), text);
        }
        assert_eq!((size("4k"), size("0x1000"), size("0xfffffffffffffffff")), (Some(4096), Some(4096), None));
        for text in ["", "K", "-1", "+1", "1.5K", "1KB", "16777216T", "18446744073709551616", "0x", "0x1K", "1 K"] {
            assert_eq!(size(text), None, "{text}");
        }
    }
}
