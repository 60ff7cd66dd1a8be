//! The configuration file of QEMU's blkdebug, and the rules it holds.
//!
//! The grammar is that of `-readconfig` (block-layer.md 1.7): `[inject-error]` or `[set-state]`, an id in double quotes
//! behind the word if one likes, then one `key = "value"` per line, with blanks before the `=` and the value in double
//! quotes. `#` begins a comment in the first column only. Of a key given twice the last value counts; what stands
//! behind the closing quote is ignored. Messages begin with QEMU's words and end with what would have been right.
//!
//! Stricter than QEMU, where QEMU reads nonsense without a word: a value without its quotes (QEMU: empty), a missing
//! closing quote, numbers that do not fit (QEMU: cut to 32 bits), and error numbers above 4095.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeSet;

use blkproof_block::Event;
use blkproof_block::graph::nearest;

use crate::request::Operation;

/// Bytes of the longest line, as in QEMU.
const LINE_MAX: usize = 1022;

/// Bytes of the largest file that is read.
const FILE_MAX: usize = 1 << 20;

/// A configuration file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// In the order of the file.
    pub inject_error: Vec<InjectError>,
    /// In the order of the file.
    pub set_state: Vec<SetState>,
}

/// Errors for requests, armed by an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InjectError {
    /// The event that arms it.
    pub event: Event,
    /// The state in which the event counts; 0: any.
    pub state: u32,
    /// What a request fails with; 0: it does not fail.
    pub errno: i32,
    /// The sector of 512 bytes; `None`: any. Below 2^55, so that its offset is a number.
    pub sector: Option<u64>,
    /// The kind of request; `None`: all but block-status.
    pub iotype: Option<Operation>,
    /// The rule is gone after one error.
    pub once: bool,
    /// The error comes without a turn of the event loop.
    pub immediately: bool,
    /// The line its group begins in.
    pub line: usize,
}

impl InjectError {
    /// As it is when nothing but its event is given.
    pub const fn new(event: Event) -> Self {
        Self { event, state: 0, errno: 5, sector: None, iotype: None, once: false, immediately: false, line: 0 }
    }
}

/// A change of state, made by an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetState {
    /// The event.
    pub event: Event,
    /// The state in which it counts; 0: any.
    pub state: u32,
    /// The state afterwards.
    pub new_state: u32,
    /// The line its group begins in.
    pub line: usize,
}

/// Why a file is no configuration.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{file}:{line}: {words}")]
pub struct ConfigError {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// QEMU's words, and behind them what would have been right.
    pub words: String,
}

/// Reads `text`, the content of `file`.
///
/// # Errors
/// The first mistake.
pub fn parse(file: &str, text: &str) -> Result<Config, ConfigError> {
    let fail = |(line, words): (usize, String)| ConfigError { file: file.to_owned(), line, words };
    if text.len() > FILE_MAX {
        return Err(fail((1, format!("parse error: the file is larger than {FILE_MAX} bytes"))));
    }
    let mut parser = Parser::default();
    for (line, text) in (1..).zip(text.split('\n')) {
        if text.starts_with('[') {
            parser.close().map_err(fail)?;
        }
        parser.line(line, text).map_err(|words| fail((line, words)))?;
    }
    parser.close().map_err(fail)?;
    Ok(parser.config)
}

#[derive(Default)]
struct Parser {
    config: Config,
    group: Option<Group>,
    ids: BTreeSet<(Kind, String)>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    InjectError,
    SetState,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::InjectError => "inject-error",
            Self::SetState => "set-state",
        }
    }

    const fn keys(self) -> &'static [&'static str] {
        match self {
            Self::InjectError => &["event", "state", "errno", "sector", "iotype", "once", "immediately"],
            Self::SetState => &["event", "state", "new_state"],
        }
    }
}

/// A group whose end has not been seen.
struct Group {
    kind: Kind,
    line: usize,
    event: Option<Event>,
    rule: InjectError,
    new_state: u32,
}

impl Parser {
    fn line(&mut self, line: usize, text: &str) -> Result<(), String> {
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() || text.starts_with('#') {
            return Ok(());
        }
        if text.len() > LINE_MAX {
            return Err(format!("parse error: the line is longer than {LINE_MAX} bytes"));
        }
        if let Some(head) = text.strip_prefix('[') {
            return self.open(line, head);
        }
        let text = text.trim_start();
        if text.is_empty() {
            return Err("parse error: a line of blanks alone; empty lines have to be empty".to_owned());
        }
        let Some(group) = &mut self.group else {
            return Err(
                "no group defined; a rule begins with [inject-error] or [set-state] in the first column".to_owned()
            );
        };
        let (key, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
        if !group.kind.keys().contains(&key) {
            return Err(format!("Invalid parameter '{key}'{}", hint_for_key(key, group.kind)));
        }
        let Some(value) = rest.trim_start().strip_prefix('=') else {
            return Err(format!("parse error: no '=' behind '{key}'; write {key} = \"value\""));
        };
        let Some(value) = value.trim_start().strip_prefix('"') else {
            return Err(format!("parse error: the value of '{key}' has to stand in double quotes"));
        };
        let Some((value, _)) = value.split_once('"') else {
            return Err(format!("parse error: no closing double quote behind the value of '{key}'"));
        };
        group.set(key, value)
    }

    fn open(&mut self, line: usize, head: &str) -> Result<(), String> {
        let head = head.split_once(']').map_or(head, |(head, _)| head);
        let (name, id) = match head.split_once(" \"") {
            Some((name, id)) => (name.trim_end(), Some(id.strip_suffix('"').unwrap_or("\""))),
            None => (head, None),
        };
        let kind = match name {
            "inject-error" => Kind::InjectError,
            "set-state" => Kind::SetState,
            "" => return Err("no group defined; a rule begins with [inject-error] or [set-state]".to_owned()),
            _ => {
                let near = nearest(name.trim(), [Kind::InjectError.name(), Kind::SetState.name()]);
                return Err(match near {
                    Some(near) => format!("There is no option group '{name}'; did you mean [{near}]?"),
                    None => format!("There is no option group '{name}'; there are inject-error and set-state"),
                });
            }
        };
        if let Some(id) = id {
            let mut letters = id.chars();
            let starts = letters.next().is_some_and(|first| first.is_ascii_alphabetic());
            if !starts || !letters.all(|next| next.is_ascii_alphanumeric() || matches!(next, '-' | '.' | '_')) {
                return Err(
                    "Parameter 'id' expects an identifier: letters, digits, '-', '.', '_', starting with a letter, \
                            in double quotes"
                        .to_owned(),
                );
            }
            if !self.ids.insert((kind, id.to_owned())) {
                return Err(format!("Duplicate ID '{id}' for {}", kind.name()));
            }
        }
        self.group = Some(Group { kind, line, event: None, rule: InjectError::new(Event::None), new_state: 0 });
        Ok(())
    }

    /// Ends the group that is open.
    fn close(&mut self) -> Result<(), (usize, String)> {
        let Some(Group { kind, line, event, rule, new_state }) = self.group.take() else {
            return Ok(());
        };
        let Some(event) = event else {
            return Err((line, format!("Missing event name for rule [{}]", kind.name())));
        };
        match kind {
            Kind::InjectError => self.config.inject_error.push(InjectError { event, line, ..rule }),
            Kind::SetState => self.config.set_state.push(SetState { event, state: rule.state, new_state, line }),
        }
        Ok(())
    }
}

impl Group {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "event" => self.event = Some(event(value)?),
            "state" => self.rule.state = number_up_to(key, value, u64::from(i32::MAX.unsigned_abs()), "states")?,
            "new_state" => self.new_state = number_up_to(key, value, u64::from(i32::MAX.unsigned_abs()), "states")?,
            "errno" => self.rule.errno = number_up_to(key, value, 4095, "error numbers")?,
            "sector" if value.trim_start() == "-1" => self.rule.sector = None,
            "sector" => {
                // The offset of the sector's end has to be a number too.
                self.rule.sector = Some(number_up_to(key, value, (1 << 55_u64) - 2, "sectors")?);
            }
            "iotype" => self.rule.iotype = Some(iotype(value)?),
            "once" => self.rule.once = boolean(key, value)?,
            _ => self.rule.immediately = boolean(key, value)?,
        }
        Ok(())
    }
}

/// The event of that name.
///
/// # Errors
/// QEMU's words, and the nearest name.
pub fn event(name: &str) -> Result<Event, String> {
    Event::from_name(name).ok_or_else(|| match nearest(name, Event::ALL.iter().map(|event| event.name())) {
        Some(near) => format!("invalid parameter value: {name} (no such event; did you mean {near}?)"),
        None => format!("invalid parameter value: {name} (no such event)"),
    })
}

/// The kind of request that blkdebug calls `name`.
///
/// # Errors
/// QEMU's words, and every name.
pub fn iotype(name: &str) -> Result<Operation, String> {
    Operation::from_name(name).filter(|operation| *operation != Operation::Resize).ok_or_else(|| {
        format!(
            "invalid parameter value: {name} (an iotype is one of read, write, write-zeroes, discard, flush and \
             block-status)"
        )
    })
}

fn boolean(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(format!("Parameter '{key}' expects 'on' or 'off'")),
    }
}

fn number_up_to<N: TryFrom<u64>>(key: &str, value: &str, max: u64, what: &str) -> Result<N, String> {
    let number = number(key, value)?;
    N::try_from(number)
        .ok()
        .filter(|_| number <= max)
        .ok_or_else(|| format!("Value '{value}' is too large for parameter '{key}': {what} end at {max}"))
}

/// A number as C writes it: decimal, `0x…` or octal with a leading 0, blanks and a plus sign before it.
fn number(key: &str, value: &str) -> Result<u64, String> {
    let digits = value.trim_start();
    if digits.starts_with('-') {
        return Err(format!("Parameter '{key}' expects a number, and none below 0"));
    }
    let digits = digits.strip_prefix('+').unwrap_or(digits);
    let (digits, radix) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (digits, 8),
        None => (digits, 10),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(format!("Parameter '{key}' expects a number"));
    }
    u64::from_str_radix(digits, radix).map_err(|_| format!("Value '{value}' is too large for parameter '{key}'"))
}

fn hint_for_key(key: &str, kind: Kind) -> String {
    if let Some((name, _)) = key.split_once('=').filter(|(name, _)| kind.keys().contains(name)) {
        return format!("; a blank is needed between {name} and '='");
    }
    if key.starts_with('#') {
        return "; a comment begins in the first column".to_owned();
    }
    match nearest(key, kind.keys().iter().copied()) {
        Some(near) => format!("; did you mean '{near}'?"),
        None => format!("; [{}] takes {}", kind.name(), kind.keys().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_qemu_reads_it() {
        let text = "# comment\n\n[inject-error]\nevent = \"none\"\n[inject-error \"a.b\"]x\n\t event =\"l2_update\" \
                    # no\n\
                    errno =   \" 0x1c\"\nstate = \"010\"\nsector = \"2048\"\niotype = \"write-zeroes\"\n\
                    once = \"yes\"\nonce = \"on\"\nimmediately = \"off\"\r\n[set-state]\nevent = \"l2_load\"\nnew_state = \"2\"";
        let config = parse("c", text).unwrap();
        let full = InjectError {
            event: Event::L2Update,
            state: 8,
            errno: 28,
            sector: Some(2048),
            iotype: Some(Operation::WriteZeroes),
            once: true,
            immediately: false,
            line: 5,
        };
        assert_eq!(config.inject_error, [InjectError { line: 3, ..InjectError::new(Event::None) }, full]);
        assert_eq!(config.set_state, [SetState { event: Event::L2Load, state: 0, new_state: 2, line: 14 }]);
        assert_eq!(parse("c", "").unwrap(), Config::default());
        assert_eq!(
            parse("c", "[inject-error]\nevent = \"none\"\nsector = \"-1\"").unwrap().inject_error[0].sector,
            None
        );
    }

    #[test]
    fn mistakes_are_told_in_qemus_words_with_their_line() {
        let long = format!("[inject-error]\nevent = \"{}\"", "a".repeat(1100));
        for (text, want) in [
            ("event = \"none\"", "c:1: no group defined"),
            ("[]\n", "c:1: no group defined"),
            (" [inject-error]\n", "c:1: no group defined"),
            ("\n[foo]\n", "c:2: There is no option group 'foo'"),
            ("[inject-errors]\n", "c:1: There is no option group 'inject-errors'; did you mean [inject-error]?"),
            ("[inject-error a]\n", "c:1: There is no option group 'inject-error a'"),
            ("[inject-error]\nzzz = \"1\"", "c:2: Invalid parameter 'zzz'"),
            ("[inject-error]\nevents = \"1\"", "c:2: Invalid parameter 'events'; did you mean 'event'?"),
            ("[inject-error]\nevent=\"none\"", "c:2: Invalid parameter 'event=\"none\"'; a blank is needed"),
            ("[inject-error]\n # x", "c:2: Invalid parameter '#'; a comment begins in the first column"),
            ("[inject-error]\ndelay-ns = \"1\"", "c:2: Invalid parameter 'delay-ns'"),
            ("[inject-error]\nnew_state = \"1\"", "c:2: Invalid parameter 'new_state'"),
            ("[inject-error]\n  \n", "c:2: parse error"),
            ("[inject-error]\nevent = none", "c:2: parse error: the value of 'event' has to stand in double quotes"),
            ("[inject-error]\nevent \"none\"", "c:2: parse error: no '='"),
            ("[inject-error]\nevent = \"none", "c:2: parse error: no closing"),
            (&long, "c:2: parse error: the line is longer"),
            ("\n[set-state]\nstate = \"1\"", "c:2: Missing event name for rule"),
            (
                "[inject-error]\nevent = \"read_aioo\"",
                "c:2: invalid parameter value: read_aioo (no such event; did you",
            ),
            ("[inject-error]\nevent = \"l1_grow.alloc_table\"", "c:2: invalid parameter value: l1_grow.alloc_table"),
            ("[inject-error]\niotype = \"resize\"", "c:2: invalid parameter value: resize (an iotype is one of read"),
            ("[inject-error]\nonce = \"1\"", "c:2: Parameter 'once' expects 'on' or 'off'"),
            ("[inject-error]\nerrno = \"EIO\"", "c:2: Parameter 'errno' expects a number"),
            ("[inject-error]\nerrno = \"-5\"", "c:2: Parameter 'errno' expects a number"),
            ("[inject-error]\nerrno = \"08\"", "c:2: Parameter 'errno' expects a number"),
            ("[inject-error]\nerrno = \"0x\"", "c:2: Parameter 'errno' expects a number"),
            ("[inject-error]\nerrno = \"4096\"", "c:2: Value '4096' is too large for parameter 'errno'"),
            ("[inject-error]\nsector = \"99999999999999999999\"", "c:2: Value '99999999999999999999' is too large"),
            ("[inject-error]\nsector = \"36028797018963968\"", "c:2: Value '36028797018963968' is too large"),
            ("[set-state \"1\"]", "c:1: Parameter 'id' expects an identifier"),
            ("[set-state \"a]", "c:1: Parameter 'id' expects an identifier"),
            (
                "[set-state \"a\"]\nevent = \"none\"\n[set-state \"a\"]\nevent = \"none\"",
                "c:3: Duplicate ID 'a' for set-state",
            ),
        ] {
            let error = parse("c", text).unwrap_err().to_string();
            assert!(error.starts_with(want), "{text:?}: {error}");
        }
    }
}
