//! Talking to the user: errors on stderr, what happened first, then what to do next.

/// Prints `error: …` with its causes, each said once.
pub(crate) fn print_error(error: &anyhow::Error) {
    eprintln!("error: {}", words(error));
}

/// An error and its causes. Many errors already end in the words of their cause, and some causes begin with the words
/// of the error above them: neither is said twice.
pub(crate) fn words(error: &anyhow::Error) -> String {
    let mut words = String::new();
    let mut last = 0;
    for cause in error.chain() {
        let cause = cause.to_string();
        let cause = without_number(&cause);
        let said = words.get(last..).unwrap_or_default();
        if words.ends_with(cause) {
            continue;
        }
        let repeats = cause.get(..said.len()).is_some_and(|head| head.eq_ignore_ascii_case(said));
        if repeats {
            words.push_str(cause.get(said.len()..).unwrap_or_default());
        } else {
            words.push_str(": ");
            last = words.len();
            words.push_str(cause);
        }
    }
    words
}

/// The text of an operating system's error without ` (os error 2)`, which says nothing to a reader.
pub(crate) fn without_number(text: &str) -> &str {
    text.strip_suffix(')').and_then(|text| text.rsplit_once(" (os error ")).map_or(text, |(words, _)| words)
}

/// A word as a shell takes it: between quotes, if it needs them.
pub(crate) fn shell_word(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&byte);
    match !word.is_empty() && word.bytes().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{human_size, words};

    #[test]
    fn each_cause_is_said_once() {
        for (causes, said) in [
            (&["could not open 'a'", "No such file"][..], "could not open 'a': No such file"),
            (&["could not open 'a'", "Could not open 'a': No such file"], "could not open 'a': No such file"),
            (
                &["could not open 'a'", "reading x: No such file", "No such file"],
                "could not open 'a': reading x: No such file",
            ),
            (&["only"], "only"),
            (&["listening", "No such file (os error 2)"], "listening: No such file"),
        ] {
            let mut causes = causes.iter().rev();
            let mut error = anyhow::Error::msg(*causes.next().unwrap());
            for outer in causes {
                error = error.context(*outer);
            }
            assert_eq!(words(&error), said);
        }
    }

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
