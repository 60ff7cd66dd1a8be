//! Ranges, times and probabilities as people write them, both ways.

use std::time::Duration;

use blkproof_block::ByteRange;
use blkproof_block::graph::parse_size;

/// The longest time a rule may name: a hundred years.
pub(super) const TIME_MAX: Duration = Duration::from_secs(36_500 * 86_400);

/// The end of a range without an end: the last whole sector below 2^64.
pub(super) const fn open_end(lba_size: u32) -> u64 {
    // `lba_size` is a power of two.
    !((lba_size as u64).wrapping_sub(1))
}

/// A number, decimal or `0x…`.
pub(super) fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    match text.strip_prefix("0x") {
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => u64::from_str_radix(digits, 16).ok(),
        None if text.bytes().all(|digit| digit.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
}

/// A number of bytes: `4096`, `0x1000`, `64k`, `1.5G`.
pub(super) fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    // A sign is none of the digits that `parse_size` means.
    let begins = text.bytes().next().is_some_and(|first| first.is_ascii_digit()) && !text.starts_with("0x+");
    if begins { parse_size(text) } else { None }
}

/// What a range is read as: start, and end or length.
enum Written<'a> {
    One(&'a str),
    From(&'a str),
    To(&'a str, &'a str),
    Plus(&'a str, &'a str),
}

fn written(text: &str) -> Written<'_> {
    match (text.split_once(".."), text.split_once('+')) {
        (Some((start, end)), _) if end.trim().is_empty() => Written::From(start),
        (Some((start, end)), _) => Written::To(start, end),
        (None, Some((start, len))) => Written::Plus(start, len),
        (None, None) => Written::One(text),
    }
}

/// Sectors: `50`, `50..60` without 60, `50+8`, `50..` to the end.
pub(super) fn lba_range(text: &str, lba_size: u32) -> Result<ByteRange, String> {
    let bad =
        || format!("'{text}' is no range of sectors; write 50, 50..60 (60 is not in it), 50+8, or 50.. to the end");
    let number = |text: &str| number(text).ok_or_else(bad);
    let (start, end) = match written(text) {
        Written::One(start) => {
            let start = number(start)?;
            (start, start.checked_add(1))
        }
        Written::From(start) => (number(start)?, open_end(lba_size).checked_div(u64::from(lba_size))),
        Written::To(start, end) => (number(start)?, Some(number(end)?)),
        Written::Plus(start, len) => {
            let start = number(start)?;
            (start, start.checked_add(number(len)?))
        }
    };
    lbas(start, end, lba_size).map_err(|why| format!("'{text}' {why}"))
}

/// Sectors from `start` to `end` as bytes.
pub(super) fn lbas(start: u64, end: Option<u64>, lba_size: u32) -> Result<ByteRange, &'static str> {
    let bytes = |lba: u64| lba.checked_mul(u64::from(lba_size));
    let range = bytes(start).zip(end.and_then(bytes)).map(|(start, end)| ByteRange { start, end });
    checked(range)
}

/// Bytes: `1M+4k`, `0x1000..0x2000` without the last, `1M..` to the end.
pub(super) fn byte_range(text: &str, lba_size: u32) -> Result<ByteRange, String> {
    let bad = || {
        format!("'{text}' is no range of bytes; write 1M+4k, 0x1000..0x2000 (0x2000 is not in it), or 1M.. to the end")
    };
    let number = |text: &str| size(text).ok_or_else(bad);
    let (start, end) = match written(text) {
        Written::One(one) => {
            let one = number(one)?;
            return Err(format!("'{text}' is one offset; write how long the range is too, as in {one}+{lba_size}"));
        }
        Written::From(start) => (number(start)?, Some(open_end(lba_size))),
        Written::To(start, end) => (number(start)?, Some(number(end)?)),
        Written::Plus(start, len) => {
            let start = number(start)?;
            (start, start.checked_add(number(len)?))
        }
    };
    checked(end.map(|end| ByteRange { start, end })).map_err(|why| format!("'{text}' {why}"))
}

fn checked(range: Option<ByteRange>) -> Result<ByteRange, &'static str> {
    match range {
        None => Err("ends beyond 2^64 bytes"),
        Some(range) if range.is_empty() => Err("is empty; the end is not in a range, so that 50..51 is sector 50"),
        Some(range) => Ok(range),
    }
}

/// A time: `10s`, `5ms`, `1h30m`, `1.5s`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("'{text}' is no time; write 10s, 5ms, 200us, 1.5s, 1h30m or 30d");
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut nanos: u128 = 0;
    let mut last = u128::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|next: char| !next.is_ascii_digit() && next != '.').ok_or_else(bad)?;
        let (figure, behind) = rest.split_at_checked(digits).ok_or_else(bad)?;
        let letters = behind.find(|next: char| next.is_ascii_digit() || next == '.').unwrap_or(behind.len());
        let (unit, behind) = behind.split_at_checked(letters).ok_or_else(bad)?;
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(bad)?;
        // 1h30m, not 30m1h nor 1h1h.
        if *unit >= last {
            return Err(bad());
        }
        last = *unit;
        let part = scaled(figure, *unit).ok_or_else(bad)?;
        nanos = nanos.checked_add(part).ok_or_else(bad)?;
        rest = behind.trim_start();
    }
    if last == u128::MAX {
        return Err(bad());
    }
    if nanos > TIME_MAX.as_nanos() {
        return Err(format!("'{text}' is longer than a hundred years"));
    }
    let (seconds, nanos) = (nanos.checked_div(1_000_000_000), nanos.checked_rem(1_000_000_000));
    let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok()).ok_or_else(bad)?;
    let nanos = nanos.and_then(|nanos| u32::try_from(nanos).ok()).ok_or_else(bad)?;
    Ok(Duration::new(seconds, nanos))
}

/// In nanoseconds. Those written come first, in falling order.
const UNITS: &[(&str, u128)] = &[
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
    ("min", 60_000_000_000),
    ("\u{b5}s", 1_000),
];

/// `1.5` of a unit, in nanoseconds; nothing below one of them is lost without a word.
fn scaled(figure: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = figure.split_once('.').unwrap_or((figure, ""));
    if whole.is_empty() || whole.len() > 20 || fraction.len() > 15 || figure.ends_with('.') || fraction.contains('.') {
        return None;
    }
    let mut nanos = whole.parse::<u128>().ok()?.checked_mul(unit)?;
    if !fraction.is_empty() {
        let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let part = fraction.parse::<u128>().ok()?.checked_mul(unit)?;
        if part.checked_rem(scale)? != 0 {
            return None;
        }
        nanos = nanos.checked_add(part.checked_div(scale)?)?;
    }
    Some(nanos)
}

/// A time as rules write it: `1h30m`.
pub fn duration_text(time: Duration) -> String {
    let mut rest = time.as_nanos();
    let mut text = String::new();
    for (name, unit) in UNITS.iter().take(7) {
        let count = rest.checked_div(*unit).unwrap_or(0);
        if count > 0 {
            text.push_str(&format!("{count}{name}"));
            rest = rest.checked_rem(*unit).unwrap_or(0);
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// How often, of 2^32; `None` is always.
pub(super) fn probability(text: &str) -> Result<Option<u32>, String> {
    let bad = || format!("'{text}' is no probability; write 0.01, 1% or 1:100");
    let figure = |text: &str| {
        let text = text.trim();
        let fine = text.bytes().next().is_some_and(|first| first.is_ascii_digit());
        text.parse::<f64>().ok().filter(|number| fine && number.is_finite()).ok_or_else(bad)
    };
    let share = if let Some(percent) = text.trim_end().strip_suffix('%') {
        figure(percent)? / 100.0
    } else if let Some((part, whole)) = text.split_once(':') {
        figure(part)? / figure(whole)?
    } else {
        figure(text)?
    };
    share_of(share).map_err(|why| format!("'{text}' {why}"))
}

/// 2^32.
const WHOLE: f64 = 4_294_967_296.0;

/// The same of a number.
pub(super) fn share_of(share: f64) -> Result<Option<u32>, &'static str> {
    if !(0.0..=1.0).contains(&share) {
        return Err("is no probability: it has to lie between 0 and 1");
    }
    // Between 0 and 2^32, without a fraction.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    match (share * WHOLE).round() as u64 {
        0 => Err("never happens: the smallest probability is 1 in 2^32"),
        parts => Ok(u32::try_from(parts).ok()),
    }
}

/// The shortest fraction that is read as so many of 2^32.
pub fn share_text(parts: u32) -> f64 {
    let exact = f64::from(parts) / WHOLE;
    (1..=12_usize)
        .filter_map(|digits| format!("{exact:.digits$}").parse::<f64>().ok())
        .find(|short| share_of(*short) == Ok(Some(parts)))
        .unwrap_or(exact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, want) in [
            ("50", Some((50, 51))),
            ("0x32", Some((50, 51))),
            ("50..60", Some((50, 60))),
            (" 50 .. 60 ", Some((50, 60))),
            ("50+8", Some((50, 58))),
            ("50..", Some((50, (1 << 55) - 1))),
            ("50..50", None),
            ("60..50", None),
            ("50+0", None),
            ("50-60", None),
            ("50..=60", None),
            ("", None),
            ("..", None),
            ("..5", None),
            ("+5", None),
            ("1..2..3", None),
            ("18446744073709551615", None),
            ("18446744073709551615+1", None),
            ("36028797018963968", None),
        ] {
            let got = lba_range(text, 512).ok().map(|range| (range.start / 512, range.end / 512));
            assert_eq!(got, want, "{text}");
        }
        for (text, want) in [
            ("1M+4k", Some((0x10_0000, 0x10_1000))),
            ("0x1000..0x2000", Some((0x1000, 0x2000))),
            ("1..2", Some((1, 2))),
            ("512..", Some((512, !511))),
            ("4096", None),
            ("1M+0", None),
            ("-1+2", None),
            ("++1", None),
            ("16E+1", None),
            ("18446744073709551615+1", None),
        ] {
            let got = byte_range(text, 512).ok().map(|range| (range.start, range.end));
            assert_eq!(got, want, "{text}");
        }
    }

    #[test]
    fn times() {
        for (text, want) in [
            ("10s", Some((10, 0))),
            ("0", Some((0, 0))),
            ("0s", Some((0, 0))),
            ("5ms", Some((0, 5_000_000))),
            ("1.5s", Some((1, 500_000_000))),
            ("1h30m", Some((5400, 0))),
            ("1h 30min", Some((5400, 0))),
            ("200us", Some((0, 200_000))),
            ("200\u{b5}s", Some((0, 200_000))),
            ("30d", Some((30 * 86_400, 0))),
            ("0.5ns", None),
            ("10", None),
            ("", None),
            ("s", None),
            ("1x", None),
            ("1s1s", None),
            ("30m1h", None),
            ("-1s", None),
            ("1.s", None),
            (".5s", None),
            ("1..5s", None),
            ("36501d", None),
            ("99999999999999999999999999d", None),
        ] {
            let got = duration(text).ok().map(|time| (time.as_secs(), time.subsec_nanos()));
            assert_eq!(got, want, "{text}");
        }
        assert_eq!(duration_text(Duration::from_millis(5_400_001)), "1h30m1ms");
        assert_eq!(duration_text(Duration::ZERO), "0s");
    }

    #[test]
    fn probabilities() {
        for (text, want) in [
            ("0.5", Some(Some(1 << 31))),
            ("50%", Some(Some(1 << 31))),
            ("1:2", Some(Some(1 << 31))),
            ("1", Some(None)),
            ("100%", Some(None)),
            ("0", None),
            ("1e-20", None),
            ("101%", None),
            ("-1%", None),
            ("1:0", None),
            ("0:0", None),
            ("nan", None),
            ("inf", None),
            ("x", None),
        ] {
            assert_eq!(probability(text).ok(), want, "{text}");
        }
        for parts in [1, 42_949_673, 1 << 31, u32::MAX, 12_345] {
            assert_eq!(share_of(share_text(parts)), Ok(Some(parts)));
        }
        assert_eq!(share_text(42_949_673).to_string(), "0.01");
    }
}
