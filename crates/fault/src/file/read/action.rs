//! `do`: what happens to a request.

use std::rc::Rc;
use std::time::Duration;

use blkproof_block::{DeviceError, Errno};

use super::{Field, Reader};
use crate::file::fields::{self, ACTIONS, ActionFields};
use crate::file::mistake::nearest;
use crate::file::tree::Value;
use crate::file::words;
use crate::rule::{Action, AskDefault, Corruption, Delay, Done, Failure, Place, Tear, Unit};

/// How long a question waits where its rule does not say.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Recovered data with retries.
const RECOVERED: Failure = Failure::device(DeviceError::Scsi { key: 1, asc: 0x17, ascq: 1 });

/// The fields of an action, the main one under its own name.
struct Given<'a> {
    whole: Field<'a>,
    fields: Vec<(&'a str, Field<'a>)>,
}

impl<'a> Given<'a> {
    fn get(&self, name: &str) -> Option<&Field<'a>> {
        self.fields.iter().find(|(key, _)| *key == name).map(|(_, field)| field)
    }
}

impl<'a> Reader<'a> {
    pub(super) fn action(&mut self, field: &Field<'a>) -> Option<Action> {
        let wanted = "write an action, as in \"hang\" or { fail = \"03/1101\" }";
        match &field.tree.value {
            Value::Text(name) => {
                let action = self.known(field, name)?;
                if !action.alone {
                    let needs = action.fields.join(", ");
                    return self.wrong(field, format!("'{name}' says too little by itself; it takes {needs}"));
                }
                self.understood(action, &Given { whole: field.clone(), fields: Vec::new() })
            }
            Value::Table(entries) => {
                let short: Vec<_> = entries.iter().filter_map(|entry| find(&entry.key)).collect();
                let name = field.tree.get("action").map(|tree| Field { path: format!("{}.action", field.path), tree });
                match (name, short.as_slice()) {
                    (Some(name), []) => {
                        let text = self.text(&name, wanted)?;
                        let action = self.known(&name, text)?;
                        let mut all = vec!["action"];
                        all.extend(action.fields);
                        let mut fields = self.table(field, &all, wanted)?;
                        fields.retain(|(key, _)| *key != "action");
                        self.understood(action, &Given { whole: field.clone(), fields })
                    }
                    (None, [action]) => {
                        let Some(main) = action.main else {
                            let name = action.name;
                            return self.wrong(field, format!("'{name}' takes nothing; write do = \"{name}\""));
                        };
                        let mut all = vec![action.name];
                        all.extend(action.fields.iter().filter(|field| **field != main));
                        let mut fields = self.table(field, &all, wanted)?;
                        for (key, _) in &mut fields {
                            if *key == action.name {
                                *key = main;
                            }
                        }
                        self.understood(action, &Given { whole: field.clone(), fields })
                    }
                    (None, []) => {
                        let hint = entries
                            .iter()
                            .find_map(|entry| nearest(&entry.key, ACTIONS.iter().map(|known| known.name)));
                        let hint = hint.map_or_else(String::new, |near| format!("; did you mean '{near}'?"));
                        self.wrong(field, format!("no action is named{hint}; {wanted}"))
                    }
                    _ => self.wrong(field, "more than one action is named; a rule does one thing"),
                }
            }
            _ => self.wants(field, wanted),
        }
    }

    fn known(&mut self, field: &Field<'a>, name: &str) -> Option<&'static ActionFields> {
        let action = find(name);
        if action.is_none() {
            let names = || ACTIONS.iter().map(|known| known.name);
            let hint = match nearest(name, names()) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("there are {}", names().collect::<Vec<_>>().join(", ")),
            };
            return self.wrong(field, format!("'{}' is no action; {hint}", name.escape_debug()));
        }
        action
    }

    fn understood(&mut self, action: &ActionFields, given: &Given<'a>) -> Option<Action> {
        Some(match action.name {
            "none" => Action::None,
            "pass" => Action::Pass,
            "fail" => Action::Fail {
                error: self.failure(given, Failure::errno(Errno::IO))?,
                done: self.done(given, Done::Prefix)?,
                wait: match given.get("wait") {
                    Some(wait) => Some(self.wait(wait)?),
                    None => None,
                },
            },
            "short" => {
                Action::Short { tear: self.tear(given)?, error: self.failure(given, Failure::errno(Errno::IO))? }
            }
            "torn" => Action::Torn { tear: self.tear(given)? },
            "phantom" => Action::Phantom,
            "corrupt" => self.corrupt(given)?,
            "misdirect" => Action::Misdirect(self.place(given)?),
            "delay" => Action::Delay(self.delay(given)?),
            "hold" => Action::Hold { tag: self.optional_name(given, "tag", "a tag, as in \"first\"")? },
            "hang" => Action::Hang,
            "disconnect" => Action::Disconnect { done: self.done(given, Done::None)? },
            "ask" => Action::Ask {
                timeout: given.get("timeout").map_or(Some(ASK_TIMEOUT), |field| self.some_time(field))?,
                default: self.ask_default(given)?,
                data: given.get("data").map_or(Some(false), |field| self.boolean(field))?,
            },
            "power-cut" => Action::PowerCut {
                disk: self.optional_name(given, "disk", "the disk's node name")?,
                state: self.optional_name(given, "state", "the state to come back in")?,
                done: self.done(given, Done::None)?,
            },
            _ => Action::Recovered(self.failure(given, RECOVERED)?),
        })
    }

    #[allow(clippy::option_option, reason = "the outer one says whether it could be read")]
    fn optional_name(&mut self, given: &Given<'a>, key: &str, what: &str) -> Option<Option<Rc<str>>> {
        match given.get(key) {
            Some(field) => Some(Some(self.name(field, what)?)),
            None => Some(None),
        }
    }

    fn failure(&mut self, given: &Given<'a>, default: Failure) -> Option<Failure> {
        let Some(field) = given.get("error") else {
            return Some(default);
        };
        let text = match &field.tree.value {
            Value::Integer(number) => number.to_string(),
            _ => {
                self.text(field, "write an error, as in \"EIO\", \"03/1101\", \"nvme:2/81\" or \"ata:UNC\"")?.to_owned()
            }
        };
        self.error(field, &text)
    }

    fn error(&mut self, field: &Field<'a>, text: &str) -> Option<Failure> {
        match Failure::parse(text) {
            Ok(failure) => Some(failure),
            Err(error) => self.wrong(field, error.to_string()),
        }
    }

    fn done(&mut self, given: &Given<'a>, default: Done) -> Option<Done> {
        let words = [("nothing", Done::None), ("prefix", Done::Prefix), ("all", Done::All)];
        given.get("done").map_or(Some(default), |field| self.word(field, &words))
    }

    fn ask_default(&mut self, given: &Given<'a>) -> Option<AskDefault> {
        let Some(field) = given.get("default") else {
            return Some(AskDefault::Proceed);
        };
        match self.text(field, "write \"proceed\", or an error such as \"EIO\"")? {
            "proceed" => Some(AskDefault::Proceed),
            text => self.error(field, text).map(AskDefault::Fail),
        }
    }

    /// `3`, `"3 sectors"`, `"700 bytes"`, `"random"`, `"random bytes"`, `"range"`.
    fn tear(&mut self, given: &Given<'a>) -> Option<Tear> {
        let Some(field) = given.get("cut") else {
            return Some(Tear::Random(Unit::Sector));
        };
        let wanted = "write 3, \"3 sectors\", \"700 bytes\", \"random\", \"random bytes\", or \"range\"";
        let text = match &field.tree.value {
            Value::Integer(number) => &format!("{number} sectors"),
            _ => self.text(field, wanted)?,
        };
        let mut words = text.split_ascii_whitespace();
        let (first, unit) = (words.next().unwrap_or_default(), words.next());
        let unit = match unit {
            None | Some("sector" | "sectors") => Some(Unit::Sector),
            Some("byte" | "bytes") => Some(Unit::Byte),
            Some(_) => None,
        };
        let tear = match (first, unit, words.next()) {
            ("range", Some(Unit::Sector), None) if text.trim() == "range" => Some(Tear::AtRange),
            ("random", Some(unit), None) => Some(Tear::Random(unit)),
            (number, Some(unit), None) => words::number(number)
                .filter(|count| !number.is_empty() && *count <= i64::MAX.unsigned_abs())
                .map(|count| Tear::After(count, unit)),
            _ => None,
        };
        if tear.is_none() { self.wrong(field, format!("'{text}' is no cut; {wanted}")) } else { tear }
    }

    fn corrupt(&mut self, given: &Given<'a>) -> Option<Action> {
        let kinds = ["flip", "stuck", "zero", "stale", "foreign", "random"].map(|kind| (kind, kind));
        let kind = given.get("how").map_or(Some("flip"), |field| self.word(field, &kinds))?;
        // Each of these belongs to one kind.
        for (key, belongs) in [("bits", "flip"), ("bit", "stuck"), ("value", "stuck"), ("distance", "foreign")] {
            if let Some(field) = given.get(key).filter(|_| kind != belongs) {
                return self.wrong(field, format!("'{key}' belongs to corrupt = \"{belongs}\", not to \"{kind}\""));
            }
        }
        let bits = self.lba_size.saturating_mul(8);
        let how = match kind {
            "flip" => {
                Corruption::Flip { bits: given.get("bits").map_or(Some(1), |field| self.within(field, 1, bits))? }
            }
            "stuck" => {
                let last = bits.saturating_sub(1);
                let bit = match given.get("bit") {
                    Some(field) => Some(self.within(field, 0, last)?),
                    None => None,
                };
                let value = match given.get("value") {
                    Some(field) => self.within(field, 0, 1)? == 1,
                    None => false,
                };
                Corruption::Stuck { bit, value }
            }
            "zero" => Corruption::Zero,
            "stale" => Corruption::Stale,
            "foreign" => {
                let distance = match given.get("distance") {
                    Some(field) => Some(self.distance(field)?),
                    None => None,
                };
                Corruption::Foreign { distance }
            }
            _ => Corruption::Random,
        };
        let sectors = given.get("sectors").map_or(Some(None), |field| self.share(field))?;
        Some(Action::Corrupt { how, sectors })
    }

    fn within(&mut self, field: &Field<'_>, first: u32, last: u32) -> Option<u32> {
        match &field.tree.value {
            Value::Integer(number) => match u32::try_from(*number) {
                Ok(number) if (first..=last).contains(&number) => Some(number),
                _ => self.wrong(field, format!("{number} is out of range; write a number from {first} to {last}")),
            },
            _ => self.wants(field, &format!("write a number from {first} to {last}")),
        }
    }

    /// A number of sectors either way, not 0.
    fn distance(&mut self, field: &Field<'_>) -> Option<i64> {
        match &field.tree.value {
            Value::Integer(0) => self.wrong(field, "0 is where it is; write how far away"),
            Value::Integer(number) => match i64::try_from(*number) {
                Ok(distance) => Some(distance),
                Err(_) => self.wrong(field, format!("{number} is out of range")),
            },
            _ => self.wants(field, "write a number of sectors, as in 8 or -8"),
        }
    }

    fn place(&mut self, given: &Given<'a>) -> Option<Place> {
        let [(key, field)] = given.fields.as_slice() else {
            return self.wrong(&given.whole, "one of by-lba, by-bytes, to-lba and to-bytes is needed, and only one");
        };
        let size = i64::from(self.lba_size);
        match *key {
            "by-lba" => match self.distance(field)?.checked_mul(size) {
                Some(bytes) => Some(Place::By(bytes)),
                None => self.wrong(field, "that is further away than any disk is long"),
            },
            "by-bytes" => {
                let bytes = match &field.tree.value {
                    Value::Integer(number) => i64::try_from(*number).ok(),
                    _ => signed(self.text(field, "write a number of bytes, as in 4096 or \"-4k\"")?),
                };
                match bytes {
                    Some(0) => self.wrong(field, "0 is where it is; write how far away"),
                    Some(bytes) => Some(Place::By(bytes)),
                    None => self.wrong(field, "this is no number of bytes; write 4096 or \"-4k\""),
                }
            }
            "to-lba" => {
                let lba = match &field.tree.value {
                    Value::Integer(number) => u64::try_from(*number).ok(),
                    _ => return self.wants(field, "write a sector, as in 100"),
                };
                let at = lba.and_then(|lba| lba.checked_mul(u64::from(self.lba_size)));
                if at.is_none() { self.wrong(field, "there is no such sector") } else { at.map(Place::At) }
            }
            _ => {
                let at = match &field.tree.value {
                    Value::Integer(number) => u64::try_from(*number).ok(),
                    _ => words::size(self.text(field, "write an offset, as in 4096 or \"1M\"")?),
                };
                if at.is_none() {
                    self.wrong(field, "this is no offset; write 4096 or \"1M\"")
                } else {
                    at.map(Place::At)
                }
            }
        }
    }

    /// `"5ms"`, `"1ms..9ms"`, or a table with a mean.
    fn wait(&mut self, field: &Field<'a>) -> Option<Delay> {
        match &field.tree.value {
            Value::Table(_) => {
                let fields = self.table(field, fields::DELAY, "write a time")?;
                self.delay(&Given { whole: field.clone(), fields })
            }
            _ => self.delay(&Given { whole: field.clone(), fields: vec![("time", field.clone())] }),
        }
    }

    fn delay(&mut self, given: &Given<'a>) -> Option<Delay> {
        let wanted =
            "write time = \"5ms\", time = \"1ms..9ms\", mean = \"5ms\" (exponential), or mean and deviation (normal)";
        match (given.get("time"), given.get("mean"), given.get("deviation")) {
            (Some(field), None, None) => {
                let text = self.text(field, wanted)?;
                let Some((from, to)) = text.split_once("..") else {
                    return self.time(field).map(Delay::Fixed);
                };
                match (words::duration(from), words::duration(to)) {
                    (Ok(from), Ok(to)) if from <= to => Some(Delay::Uniform(from, to)),
                    (Ok(_), Ok(_)) => self.wrong(field, format!("'{text}' ends before it begins")),
                    (Err(words), _) | (_, Err(words)) => self.wrong(field, words),
                }
            }
            (None, Some(mean), Some(deviation)) => Some(Delay::Normal(self.time(mean)?, self.time(deviation)?)),
            (None, Some(mean), None) => self.time(mean).map(Delay::Exponential),
            _ => self.wrong(&given.whole, wanted),
        }
    }
}

fn find(name: &str) -> Option<&'static ActionFields> {
    ACTIONS.iter().find(|action| action.name == name)
}

/// A number of bytes with a sign.
fn signed(text: &str) -> Option<i64> {
    match text.trim().strip_prefix('-') {
        Some(size) => words::size(size).and_then(|size| 0_i64.checked_sub_unsigned(size)),
        None => words::size(text.trim().strip_prefix('+').unwrap_or(text)).and_then(|size| i64::try_from(size).ok()),
    }
}
