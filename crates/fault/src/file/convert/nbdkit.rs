//! nbdkit's error filter (nbdkit-error-filter(1)): `error=EIO error-rate=10% error-pread-rate=1`, as on its command
//! line.
//!
//! Parameters are taken in their order: one for all operations replaces what an earlier one said for a single one.

use blkproof_block::Errno;

use super::{Draft, Wrong, refusal};
use crate::file::words;
use crate::request::Operation;
use crate::rule::{Failure, On};

/// What each of its operations is called here; the cache request has no like.
const OPERATIONS: [(&str, Option<Operation>); 6] = [
    ("pread", Some(Operation::Read)),
    ("pwrite", Some(Operation::Write)),
    ("trim", Some(Operation::Discard)),
    ("zero", Some(Operation::WriteZeroes)),
    ("extents", Some(Operation::BlockStatus)),
    ("cache", None),
];

const ERRORS: [(&str, i32); 6] =
    [("EPERM", 1), ("EIO", 5), ("ENOMEM", 12), ("EINVAL", 22), ("ENOSPC", 28), ("ESHUTDOWN", 108)];

#[derive(Clone)]
struct Settings {
    errno: i32,
    /// `None`: never. `Some(None)`: always.
    rate: Option<Option<u32>>,
    file: Option<String>,
}

pub(super) fn read(text: &str, draft: &mut Draft) -> Result<(), Wrong> {
    let mut all = vec![Settings { errno: 5, rate: None, file: None }; OPERATIONS.len()];
    let mut found = false;
    for (number, line) in (1..).zip(text.lines()) {
        let line = if line.trim_start().starts_with('#') { "" } else { line };
        for word in words_of(line) {
            let Some((key, value)) = word.split_once('=') else { continue };
            let (operation, what) = match key.strip_prefix("error").map(|rest| rest.strip_prefix('-').unwrap_or(rest)) {
                // A filter's name, a file, another filter's parameters: the rest of a command line.
                None => continue,
                Some(rest) => match rest.split_once('-') {
                    Some((operation, what)) => (Some(operation), what),
                    None if OPERATIONS.iter().any(|(name, _)| *name == rest) => (Some(rest), ""),
                    None => (None, rest),
                },
            };
            let index = match operation {
                None => None,
                Some(name) => {
                    let index = OPERATIONS.iter().position(|(known, _)| *known == name);
                    Some(index.ok_or_else(|| (number, unknown(key)))?)
                }
            };
            found = true;
            let each = all.iter_mut().enumerate().filter(|(at, _)| index.is_none_or(|index| index == *at));
            for (_, settings) in each {
                match what {
                    "" => {
                        let known = ERRORS.iter().find(|(name, _)| *name == value);
                        settings.errno = known.map(|(_, errno)| *errno).ok_or_else(|| {
                            let names = ERRORS.map(|(name, _)| name).join(", ");
                            (number, format!("unknown error name '{value}'; there are {names}"))
                        })?;
                    }
                    "rate" => settings.rate = rate(value).map_err(|words| (number, format!("{key}: {words}")))?,
                    "file" => settings.file = Some(value.to_owned()),
                    _ => return Err((number, unknown(key))),
                }
            }
        }
    }
    if !found {
        return Err((1, "there are no parameters of the error filter, such as error-rate=10%".to_owned()));
    }
    for ((name, operation), settings) in OPERATIONS.iter().zip(&all) {
        let Some(probability) = settings.rate else { continue };
        let Some(operation) = operation else {
            draft.lost("cache requests do not reach a block device here, so errors of theirs are not injected");
            continue;
        };
        let on = On { operations: operation.set(), probability, ..On::default() };
        let mut notes = vec![format!("error-{name}")];
        if let Some(file) = &settings.file {
            draft.lost(format!(
                "errors only while the file '{file}' exists: the rules are armed from the start; arm and disarm \
                 them by \
                 control (fault-add, fault-remove), or by a state"
            ));
            notes.push(format!("LOST: only while '{file}' exists"));
        }
        draft.rule(*name, on, refusal(Failure::errno(Errno(settings.errno))), notes);
    }
    if draft.rules.rules.is_empty() {
        draft.note("No rate is above 0: the filter does nothing.");
    }
    Ok(())
}

/// The words of a command line; a value may stand in quotes.
fn words_of(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    for letter in line.chars() {
        match (quote, letter) {
            (None, '"' | '\'') => quote = Some(letter),
            (Some(open), _) if open == letter => quote = None,
            (None, ' ' | '\t' | '\\') => words.push(std::mem::take(&mut word)),
            _ => word.push(letter),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

fn unknown(key: &str) -> String {
    format!(
        "unknown parameter '{key}'; there are error, error-rate, error-file, and error-pread, error-pread-rate and \
         so on"
    )
}

/// A rate, as C's `strtod` reads it but for hexadecimal: 0 is never.
fn rate(value: &str) -> Result<Option<Option<u32>>, String> {
    let bad = || format!("could not parse rate '{value}'; write 10%, 0.1 or 1:10");
    let figure = |text: &str| {
        let text = text.trim_start();
        let fine =
            text.starts_with(|first: char| first.is_ascii_digit() || first == '.' || first == '+' || first == '-');
        text.parse::<f64>().ok().filter(|number| fine && number.is_finite()).ok_or_else(bad)
    };
    let share = match (value.strip_suffix('%'), value.split_once(':')) {
        (Some(percent), _) => figure(percent)? / 100.0,
        (None, Some((part, whole))) => {
            let share = figure(part)? / figure(whole)?;
            if share.is_finite() { share } else { return Err(bad()) }
        }
        (None, None) => figure(value)?,
    };
    if share == 0.0 {
        return Ok(None);
    }
    words::share_of(share).map(Some).map_err(|_| format!("rate out of range: '{value}' parsed as {share}"))
}
