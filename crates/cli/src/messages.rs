//! Talking to the user: errors on stderr, what happened first, then what to do next.

/// Prints `error: …` with its causes, each said once: many errors already end in the words of their cause.
pub(crate) fn print_error(error: &anyhow::Error) {
    let mut words = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !words.ends_with(&cause) {
            if !words.is_empty() {
                words.push_str(": ");
            }
            words.push_str(&cause);
        }
    }
    eprintln!("error: {words}");
}

/// A byte count as people write it: `64 KiB`, `1.50 GiB`, `123 bytes`; rounded down.
pub(crate) fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut shift = 0u32;
    while bytes >> shift >= 1024 && shift < 60 {
        shift += 10;
    }
    let Some(unit) = (shift / 10).checked_sub(1).and_then(|i| UNITS.get(i as usize)) else {
        return format!("{bytes} bytes");
    };
    let hundredths = (u128::from(bytes) * 100) >> shift;
    match hundredths % 100 {
        0 => format!("{} {unit}", hundredths / 100),
        part => format!("{}.{part:02} {unit}", hundredths / 100),
    }
}

#[cfg(test)]
mod tests {
    use super::human_size;

    #[test]
    fn sizes_read_as_people_write_them() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.50 KiB"),
            (1 << 40, "1 TiB"),
            (u64::MAX, "15.99 EiB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
    }
}
