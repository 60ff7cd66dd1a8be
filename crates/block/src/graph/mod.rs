//! How a user names a graph, and how it is built.
//!
//! The syntax is QEMU's: a path, `nbd://…`, `blkverify:RAW:TEST`, `json:{…}`, or `driver=…,file.driver=…`. All of them
//! become one [`Options`] tree, from which a [`Registry`] of [`Driver`]s builds the nodes, leaves first.

mod open;
mod options;
mod registry;
mod syntax;

pub use open::GRAPH_DEPTH_MAX;
pub use options::{OptionError, Options, Value};
pub use registry::{CacheMode, Driver, DriverKind, OpenContext, OpenError, OpenFlags, Registry};

/// Parses a size: a number with an optional suffix b, k, M, G, T, P or E (powers of 1024; fractions with a suffix).
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, shift) = match text.char_indices().next_back()? {
        (at, suffix) if suffix.is_ascii_alphabetic() && !text.starts_with("0x") => {
            let shift = match suffix.to_ascii_lowercase() {
                'b' => 0,
                'k' => 10,
                'm' => 20,
                'g' => 30,
                't' => 40,
                'p' => 50,
                'e' => 60,
                _ => return None,
            };
            (text.get(..at)?, Some(shift))
        }
        _ => (text, None),
    };
    if let Some(hex) = number.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    let unit = 1u64 << shift.unwrap_or(0);
    match (number.split_once('.'), shift) {
        (None, _) => number.parse::<u64>().ok()?.checked_mul(unit),
        (Some((whole, fraction)), Some(_)) if fraction.len() <= 18 && fraction.bytes().all(|b| b.is_ascii_digit()) => {
            // In units of 10^-18, so that no rounding of floating point enters.
            let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
            let fraction = if fraction.is_empty() { 0 } else { fraction.parse::<u128>().ok()? };
            let part = u64::try_from(fraction.checked_mul(u128::from(unit))?.checked_div(scale)?).ok()?;
            whole.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(part)
        }
        _ => None,
    }
}

/// The candidate nearest to `word`, if one is near enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let limit = word.len().div_ceil(3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

/// Number of letters to insert, delete or replace.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (j, y) in b.iter().enumerate() {
            let up = row.get(j + 1).copied().unwrap_or(usize::MAX);
            let replace = diagonal + usize::from(x != *y);
            diagonal = up;
            left = replace.min(left + 1).min(up + 1);
            if let Some(cell) = row.get_mut(j + 1) {
                *cell = left;
            }
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}
