//! Rules in plain English: when each fires, what it does, and when it stops.

use blkproof_block::{ByteRange, DeviceError};

use super::sense::{and, whole_sectors};
use super::words::{duration_text, open_end, share_text};
use crate::request::{Operation, Operations};
use crate::rule::{
    Action, AskDefault, Corruption, Delay, Done, Failure, Life, On, Place, Rule, RuleSet, Tear, Unit, Until,
};

/// Ranges that are named one by one.
const RANGES_SHOWN: usize = 6;

/// Every rule of a set, each with its id, and a line for what they share.
pub fn explain_set(set: &RuleSet) -> String {
    let mut text = format!(
        "{} rule{}, sectors of {} bytes, seed {}, beginning in state '{}'.\n",
        set.rules.len(),
        if set.rules.len() == 1 { "" } else { "s" },
        set.lba_size,
        set.seed,
        set.state
    );
    if set.rules.len() > 1 {
        text.push_str(
            "They are looked at in this order; the first that decides what becomes of a request is the \
                       last looked at.\n",
        );
    }
    for rule in &set.rules {
        text.push_str(&format!("\n{}\n  {}\n", rule.id, explain(rule, set.lba_size).join("\n  ")));
    }
    text
}

/// A rule, in sentences.
pub fn explain(rule: &Rule, lba_size: u32) -> Vec<String> {
    let mut all = vec![fires(rule, lba_size), does(rule, lba_size)];
    all.extend(then(rule));
    all.push(stops(rule));
    all.retain(|sentence| !sentence.is_empty());
    all
}

fn fires(rule: &Rule, lba_size: u32) -> String {
    let on = &rule.on;
    let mut text = match (on.event, on.operations.is_empty()) {
        (Some(event), true) => format!("When the driver above announces {event}"),
        (Some(event), false) => format!("On the first {} after {event} is announced", any_of(on.operations)),
        (None, _) if on.operations == Operations::DATA => {
            "On any read, write, write-zeroes, discard or flush".to_owned()
        }
        (None, _) => format!("On any {}", any_of(on.operations)),
    };
    text.push_str(&places(on, lba_size));
    let mut also = Vec::new();
    if let Some(state) = &on.state {
        also.push(format!("while the state is '{state}'"));
    }
    match (on.nth, on.every) {
        (Some(nth), None) => also.push(format!("only the {} of them", ordinal(nth))),
        (None, Some(every)) => also.push(format!("only each {} of them", ordinal(every))),
        (Some(nth), Some(every)) => also.push(format!("from the {} of them each {}", ordinal(nth), ordinal(every))),
        (None, None) => {}
    }
    if let Some(parts) = on.probability {
        also.push(format!("with a probability of {}", share_text(parts)));
    }
    match (on.after, on.before) {
        (Some(after), Some(before)) => {
            also.push(format!("from {} to {} after the rule was added", duration_text(after), duration_text(before)));
        }
        (Some(after), None) => also.push(format!("from {} after the rule was added", duration_text(after))),
        (None, Some(before)) => also.push(format!("until {} after the rule was added", duration_text(before))),
        (None, None) => {}
    }
    if let Some(slower) = on.slower_than {
        also.push(format!("if it took {} or longer", duration_text(slower)));
    }
    if let Some(faster) = on.faster_than {
        also.push(format!("if it took less than {}", duration_text(faster)));
    }
    for part in also {
        text.push_str(", ");
        text.push_str(&part);
    }
    text.push(':');
    text
}

fn any_of(operations: Operations) -> String {
    let names: Vec<&str> = Operation::ALL
        .into_iter()
        .filter(|operation| operations.contains(operation.set()))
        .map(Operation::name)
        .collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

fn places(on: &On, lba_size: u32) -> String {
    if on.ranges.is_empty() {
        return String::new();
    }
    let whole = whole_sectors(&on.ranges, lba_size);
    let shown = on.ranges.iter().take(RANGES_SHOWN).map(|range| place(*range, lba_size, whole));
    let names: Vec<String> = shown.collect();
    let more = on.ranges.len().saturating_sub(RANGES_SHOWN);
    let total = on.ranges.iter().fold(0_u64, |sum, range| sum.saturating_add(range.len()));
    let list = and(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let rest = if more > 0 { format!(" and {more} more places, {total} bytes in all") } else { String::new() };
    let unit = if whole { "LBA" } else { "bytes" };
    format!(" that touches {unit} {list}{rest}")
}

fn place(range: ByteRange, lba_size: u32, whole: bool) -> String {
    let unit = if whole { u64::from(lba_size.max(1)) } else { 1 };
    let in_units = |offset: u64| offset.checked_div(unit).unwrap_or_default();
    let (start, last) = (in_units(range.start), in_units(range.end).saturating_sub(1));
    let shown = |number: u64| if whole { number.to_string() } else { format!("{number:#x}") };
    if range.end >= open_end(lba_size) {
        format!("{} to the end of the disk", shown(start))
    } else if start == last {
        shown(start)
    } else {
        format!("{} to {}", shown(start), shown(last))
    }
}

fn does(rule: &Rule, lba_size: u32) -> String {
    let what = match &rule.action {
        Action::None => "nothing happens to it".to_owned(),
        Action::Pass => "it is spared from the rules below".to_owned(),
        Action::Fail { error, done, wait } => {
            let wait = wait.map_or_else(String::new, |wait| format!("after {} ", delay(wait)));
            let done = match done {
                Done::None => "nothing of it is done",
                Done::Prefix if rule.on.ranges.is_empty() => "nothing of it is done",
                Done::Prefix => "what lies before the first bad byte is done, and that byte is named",
                Done::All => "all of it is done nevertheless",
            };
            format!("{wait}it fails with {}; {done}", failure(*error))
        }
        Action::Short { tear, error } => {
            format!("it is done up to {}, and fails there with {}", cut(*tear), failure(*error))
        }
        Action::Torn { tear } => format!("it is done up to {}, the rest is not, and it succeeds", cut(*tear)),
        Action::Phantom => "it succeeds without being done; a read returns zeroes".to_owned(),
        Action::Corrupt { how, sectors } => {
            let of = sectors.map_or_else(String::new, |parts| format!(" {} of", share_text(parts)));
            format!("{} in{of} its sectors, and no error is reported; a retry reads the same", corruption(*how))
        }
        Action::Misdirect(place) => format!("it goes {} and succeeds", misdirected(*place, lba_size)),
        Action::Delay(time) => format!("it waits {}, then goes on", delay(*time)),
        Action::Hold { tag } => {
            format!("it waits until '{}' is released", tag.as_deref().unwrap_or(&rule.id.0))
        }
        Action::Hang => "it is never answered".to_owned(),
        Action::Disconnect { done } => format!("the client's connection is cut; {} of it is done", part(*done)),
        Action::Ask { timeout, default, data } => {
            let default = match default {
                AskDefault::Proceed => "it goes on".to_owned(),
                AskDefault::Fail(error) => format!("it fails with {}", failure(*error)),
            };
            let data = if *data { ", with its data" } else { "" };
            format!(
                "control is asked what to do{data}; if nobody answers within {}, {default}",
                duration_text(*timeout)
            )
        }
        Action::PowerCut { disk, state, done } => {
            let disk = disk.as_ref().map_or_else(|| "the disk below".to_owned(), |disk| format!("the disk '{disk}'"));
            let state = state.as_ref().map_or_else(String::new, |state| format!("; it comes back in state '{state}'"));
            if rule.on.operations.is_empty() {
                format!("the power of {disk} is cut{state}")
            } else {
                format!("the power of {disk} is cut, and {} of the request reaches it first{state}", part(*done))
            }
        }
        Action::Recovered(error) => format!("it is done and succeeds, and reports {}", failure(*error)),
    };
    format!("{what}.")
}

const fn part(done: Done) -> &'static str {
    match done {
        Done::None => "nothing",
        Done::Prefix => "what lies before the range",
        Done::All => "all",
    }
}

fn cut(tear: Tear) -> String {
    match tear {
        Tear::After(1, Unit::Sector) => "its first sector".to_owned(),
        Tear::After(count, Unit::Sector) => format!("its first {count} sectors"),
        Tear::After(count, Unit::Byte) => format!("its first {count} bytes"),
        Tear::Random(Unit::Sector) => "a sector that the seed chooses".to_owned(),
        Tear::Random(Unit::Byte) => "a byte that the seed chooses".to_owned(),
        Tear::AtRange => "where the range begins".to_owned(),
    }
}

fn corruption(how: Corruption) -> String {
    match how {
        Corruption::Flip { bits: 1 } => "one bit is inverted".to_owned(),
        Corruption::Flip { bits } => format!("{bits} bits are inverted"),
        Corruption::Stuck { bit: Some(bit), value } => format!("bit {bit} reads as {}", u8::from(value)),
        Corruption::Stuck { bit: None, value } => format!("one bit reads as {}", u8::from(value)),
        Corruption::Zero => "zeroes are read".to_owned(),
        Corruption::Stale => "what was there before the last write is read".to_owned(),
        Corruption::Foreign { distance: Some(distance) } => format!("what lies {distance} sectors away is read"),
        Corruption::Foreign { distance: None } => "what lies in another sector is read".to_owned(),
        Corruption::Random => "noise is read".to_owned(),
    }
}

fn misdirected(place: Place, lba_size: u32) -> String {
    let size = i64::from(lba_size.max(1));
    match place {
        Place::By(bytes) if bytes.checked_rem(size) == Some(0) => {
            format!("{} sectors away", bytes.checked_div(size).unwrap_or_default())
        }
        Place::By(bytes) => format!("{bytes} bytes away"),
        Place::At(at) => format!("to offset {at:#x}"),
    }
}

fn delay(delay: Delay) -> String {
    match delay {
        Delay::Fixed(time) => duration_text(time),
        Delay::Uniform(from, to) => format!("{} to {}", duration_text(from), duration_text(to)),
        Delay::Normal(mean, deviation) => {
            format!("around {} (deviation {})", duration_text(mean), duration_text(deviation))
        }
        Delay::Exponential(mean) => format!("{} on average, sometimes much longer", duration_text(mean)),
    }
}

/// What the usual sense codes mean (SPC, "ASC and ASCQ assignments").
const SENSE: &[(u8, u8, u8, &str)] = &[
    (1, 0x17, 0, "recovered data"),
    (1, 0x17, 1, "recovered data with retries"),
    (1, 0x18, 0, "recovered data with error correction"),
    (1, 0x18, 2, "recovered data, reallocated"),
    (1, 0x5d, 0, "failure prediction threshold exceeded"),
    (2, 0x04, 1, "becoming ready"),
    (2, 0x3a, 0, "medium not present"),
    (3, 0x03, 0, "peripheral device write fault"),
    (3, 0x0c, 0, "write error"),
    (3, 0x0c, 2, "write error, reallocation failed"),
    (3, 0x11, 0, "unrecovered read error"),
    (3, 0x11, 1, "read retries exhausted"),
    (3, 0x11, 4, "unrecovered read error, reallocation failed"),
    (3, 0x11, 0x0b, "unrecovered read error, reassignment recommended"),
    (3, 0x11, 0x0c, "unrecovered read error, rewriting recommended"),
    (3, 0x11, 0x14, "marked bad by an application"),
    (3, 0x14, 1, "record not found"),
    (3, 0x16, 0, "data synchronization mark error"),
    (4, 0x44, 0, "internal target failure"),
    (7, 0x27, 0, "write protected"),
    (7, 0x27, 7, "space allocation failed"),
    (0xb, 0x00, 6, "I/O process terminated"),
    (0xe, 0x1d, 0, "miscompare"),
];

const KEYS: [&str; 16] = [
    "no sense",
    "recovered error",
    "not ready",
    "medium error",
    "hardware error",
    "illegal request",
    "unit attention",
    "data protect",
    "blank check",
    "vendor specific",
    "copy aborted",
    "aborted command",
    "reserved",
    "volume overflow",
    "miscompare",
    "completed",
];

/// An error and what it means.
pub(super) fn failure(failure: Failure) -> String {
    match failure.device {
        None => format!("{failure} ({})", failure.errno),
        Some(DeviceError::Scsi { key, asc, ascq }) => {
            let kind = KEYS.get(usize::from(key)).copied().unwrap_or("unknown key");
            let known = SENSE.iter().find(|row| (row.0, row.1, row.2) == (key, asc, ascq));
            let detail = known.map_or_else(String::new, |row| format!(": {}", row.3));
            format!("SCSI sense {failure} ({kind}{detail})")
        }
        Some(DeviceError::Nvme { sct, sc, .. }) => {
            let detail = match (sct, sc) {
                (2, 0x80) => " (write fault)",
                (2, 0x81) => " (unrecovered read error)",
                (2, 0x82) => " (guard check error)",
                (2, 0x86) => " (access denied)",
                (2, 0x87) => " (deallocated or unwritten block)",
                (0, 0x06) => " (internal error)",
                (0, 0x81) => " (capacity exceeded)",
                _ => "",
            };
            format!("{failure}{detail}")
        }
        Some(DeviceError::Ata { .. }) => failure.to_string(),
    }
}

fn then(rule: &Rule) -> Option<String> {
    let mut all = Vec::new();
    if let Some(state) = &rule.then.state {
        all.push(format!("the state becomes '{state}'"));
    }
    if rule.then.disarm {
        all.push("the rule is disarmed".to_owned());
    }
    if rule.then.cure {
        all.push("the sectors of the request are no longer its own".to_owned());
    }
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    (!all.is_empty()).then(|| format!("Then {}.", and(&all)))
}

fn stops(rule: &Rule) -> String {
    let mut all = Vec::new();
    if rule.then.disarm || rule.on.nth.is_some() && rule.on.every.is_none() {
        all.push("after it has fired once".to_owned());
    } else if let Some(times) = rule.on.times {
        all.push(format!("after it has fired {times} time{}", if times == 1 { "" } else { "s" }));
    }
    if let Some(before) = rule.on.before {
        all.push(format!("{} after it was added", duration_text(before)));
    }
    let mut text = String::new();
    if let Some(life) = &rule.life {
        text.push_str(&lives(life));
        match life.until {
            Until::Never => {}
            Until::Rewrite => all.push("for a sector when that is written whole".to_owned()),
            Until::Reassign => all.push("for a sector when that is reassigned".to_owned()),
            Until::Accesses(count) => {
                all.push(format!(
                    "for a sector when {count} access{} to it failed",
                    if count == 1 { "" } else { "es" }
                ));
            }
        }
    }
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    text.push_str(&match all.as_slice() {
        [] if rule.on.state.is_some() && rule.then.state.is_some() && rule.on.state != rule.then.state => {
            "It stops when the state has changed.".to_owned()
        }
        [] => "It never stops by itself.".to_owned(),
        all => format!("It stops {}.", and(all)),
    });
    text
}

fn lives(life: &Life) -> String {
    let mut text = String::new();
    if let Some(rot) = life.rot {
        text.push_str(&format!(
            "All sectors are good at first; they fall one by one and spread to those beside them, half of all within {}. ",
            duration_text(rot.half)
        ));
    }
    if let Some(growth) = life.growth {
        text.push_str(&format!(
            "Each {} the next sector behind falls too, {} at most. ",
            duration_text(growth.each),
            growth.limit
        ));
    }
    text
}

fn ordinal(number: u64) -> String {
    let suffix = match (number.checked_rem(10), number.checked_rem(100)) {
        (_, Some(11..=13)) => "th",
        (Some(1), _) => "st",
        (Some(2), _) => "nd",
        (Some(3), _) => "rd",
        _ => "th",
    };
    format!("{number}{suffix}")
}
