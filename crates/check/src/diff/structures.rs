//! Two states of an image of another format: structure by structure.
//!
//! A check of each says where its structures are. Those of the same class and number are compared byte by byte; of
//! tables of pointers the entries that differ are named. What neither image has a claim on is guest data, or nobody's.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Change, Error, Kind, Tell, get};
use crate::bytes::{be_u32, le_u32, le_u64};
use crate::map::{Claim, Class};
use crate::source::Source;
use crate::watch::Silent;
use crate::{Format, Options, check};

/// Bytes compared at a time.
const PIECE: u64 = 64 << 10;
/// Bytes of difference that are one run: equal words between different ones are not worth a line.
const GAP: u64 = 16;

/// Structures by class and number; those of one class and number in the order of the file.
type Structures = BTreeMap<(Class, u64, u32), Range<u64>>;

pub(super) fn diff(
    a: &dyn Source,
    b: &dyn Source,
    format: Format,
    options: &Options,
    tell: &mut Tell<'_>,
) -> Result<(), Error> {
    let options =
        Options { format: Some(format), data: false, allow_backing: false, orphans: false, ..options.clone() };
    let (was, is) = (check(a, &options, &Silent), check(b, &options, &Silent));
    let facts = |report: &crate::Report| {
        let mut all: BTreeMap<(&'static str, u32), String> = BTreeMap::new();
        for (name, value) in &report.facts {
            let before = (0..).find(|number| !all.contains_key(&(*name, *number))).unwrap_or(0);
            all.insert((name, before), value.clone());
        }
        all
    };
    let (ours, theirs) = (facts(&was), facts(&is));
    for (key, value) in &ours {
        match theirs.get(key) {
            Some(other) if other == value => {}
            Some(other) => tell.change(&Change::new("header", Kind::Changed, key.0).values(value, other))?,
            None => tell.change(&Change::new("header", Kind::Removed, key.0).values(value, ""))?,
        }
    }
    for (key, value) in theirs.iter().filter(|(key, _)| !ours.contains_key(key)) {
        tell.change(&Change::new("header", Kind::Added, key.0).values("", value))?;
    }
    let claims = |report: &crate::Report| structures(report.host.iter().flat_map(|host| &host.claims));
    let (ours, theirs) = (claims(&was), claims(&is));
    for (key, one) in &ours {
        tell.stop()?;
        match theirs.get(key) {
            Some(other) => compare(a, b, format, key, one, other, tell)?,
            None => tell.change(&whole(Kind::Removed, key, one))?,
        }
    }
    for (key, other) in theirs.iter().filter(|(key, _)| !ours.contains_key(key)) {
        tell.change(&whole(Kind::Added, key, other))?;
    }
    Ok(())
}

fn structures<'c>(claims: impl Iterator<Item = &'c Claim>) -> Structures {
    let mut all = Structures::new();
    let mut seen: BTreeMap<(Class, u64), u32> = BTreeMap::new();
    for claim in claims.filter(|claim| claim.class.is_metadata()) {
        let number = seen.entry((claim.class, claim.index)).or_default();
        all.insert((claim.class, claim.index, *number), claim.range());
        *number = number.saturating_add(1);
    }
    all
}

fn shown(range: &Range<u64>) -> String {
    format!("{:#x}..{:#x}", range.start, range.end)
}

fn whole(kind: Kind, key: &(Class, u64, u32), range: &Range<u64>) -> Change {
    let (before, after) =
        if kind == Kind::Removed { (shown(range), String::new()) } else { (String::new(), shown(range)) };
    Change::new(key.0.name(), kind, format!("number {}", key.1)).values(before, after)
}

type Show = fn(&[u8]) -> String;

/// How the entries of a table are written: bytes of each, and how one is shown.
fn entry_of(format: Format, class: Class) -> Option<(u64, Show)> {
    let table =
        matches!(class, Class::BlockMap | Class::L1 | Class::L2) || format == Format::Vmdk && class == Class::Copy;
    if !table {
        return None;
    }
    Some(match format {
        Format::Qed | Format::Vhdx => (8, |bytes| format!("{:#018x}", le_u64(bytes, 0))),
        Format::Vhd => (4, |bytes| format!("{:#010x}", be_u32(bytes, 0))),
        _ => (4, |bytes| format!("{:#010x}", le_u32(bytes, 0))),
    })
}

fn compare(
    a: &dyn Source,
    b: &dyn Source,
    format: Format,
    key: &(Class, u64, u32),
    one: &Range<u64>,
    other: &Range<u64>,
    tell: &mut Tell<'_>,
) -> Result<(), Error> {
    let class = key.0;
    if one.start != other.start {
        let what = format!("number {}", key.1);
        tell.change(&Change::new(class.name(), Kind::Moved, what).values(shown(one), shown(other)))?;
    } else if one.end != other.end {
        let what = format!("length of number {}", key.1);
        tell.change(&Change::new(class.name(), Kind::Changed, what).values(shown(one), shown(other)))?;
    }
    let entry = entry_of(format, class);
    let size = entry.map_or(1, |(size, _)| size);
    let gap = if entry.is_some() { 0 } else { GAP };
    let len = one.end.saturating_sub(one.start).min(other.end.saturating_sub(other.start));
    // An open run: entries, and what the first one was and is.
    let mut open: Option<(Range<u64>, String, String)> = None;
    let mut at = 0u64;
    while at < len {
        tell.stop()?;
        let part = len.saturating_sub(at).min(PIECE);
        let (ours, theirs) =
            (get(a, one.start.saturating_add(at), part)?, get(b, other.start.saturating_add(at), part)?);
        if ours != theirs {
            let step = usize::try_from(size).unwrap_or(1);
            let first = at.checked_div(size).unwrap_or(at);
            for (index, (ours, theirs)) in (first..).zip(ours.chunks(step).zip(theirs.chunks(step))) {
                if ours == theirs {
                    continue;
                }
                match &mut open {
                    Some((run, ..)) if index <= run.end.saturating_add(gap) => run.end = index.saturating_add(1),
                    _ => {
                        close(&mut open, key, entry.is_some(), one, tell)?;
                        let show = |bytes: &[u8]| entry.map_or(String::new(), |(_, show)| show(bytes));
                        open = Some((index..index.saturating_add(1), show(ours), show(theirs)));
                    }
                }
            }
        }
        at = at.saturating_add(PIECE);
    }
    close(&mut open, key, entry.is_some(), one, tell)
}

fn close(
    open: &mut Option<(Range<u64>, String, String)>,
    key: &(Class, u64, u32),
    entries: bool,
    place: &Range<u64>,
    tell: &mut Tell<'_>,
) -> Result<(), Error> {
    let Some((run, was, is)) = open.take() else { return Ok(()) };
    let count = run.end.saturating_sub(run.start);
    let what = match (entries, count) {
        (true, 1) => format!("entry {} of number {}", run.start, key.1),
        (true, _) => format!("entries {}..{} of number {}", run.start, run.end, key.1),
        (false, _) => {
            let bytes = place.start.saturating_add(run.start)..place.start.saturating_add(run.end);
            format!("bytes {}", shown(&bytes))
        }
    };
    tell.change(&Change::new(key.0.name(), Kind::Changed, what).values(was, is).count(count))
}
