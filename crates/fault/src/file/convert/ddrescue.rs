//! A map of GNU ddrescue (its manual, "Mapfile structure"): after comments the status line, then `pos size status`.
//!
//! `+` was read, `-` is bad; `?`, `*` and `/` were not read yet, or not in parts.

use blkproof_block::ByteRange;

use super::{Draft, Options, Wrong, c_unsigned};
use crate::file::RANGES_MAX;
use crate::file::read::merged;
use crate::file::sense::whole_sectors;
use crate::request::Operations;
use crate::rule::{Action, Done, Failure, On};

pub(super) fn read(text: &str, options: &Options, draft: &mut Draft) -> Result<(), Wrong> {
    let mut bad = Vec::new();
    let mut untried: Vec<ByteRange> = Vec::new();
    let mut head = true;
    let mut last: Option<u64> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let words = line.split('#').next().unwrap_or_default();
        let mut words = words.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        let position = c_unsigned(first).ok_or_else(|| (number, format!("'{first}' is no position")))?;
        let second = words.next().unwrap_or_default();
        if head {
            head = false;
            if !["?", "*", "/", "-", "F", "G", "+"].contains(&second) {
                let words = format!("'{second}' is no status; the first line of a map is: position, status, pass");
                return Err((number, words));
            }
            continue;
        }
        let size = c_unsigned(second).ok_or_else(|| (number, format!("'{second}' is no size")))?;
        let end = position.checked_add(size).ok_or_else(|| (number, "the area ends beyond 2^64 bytes".to_owned()))?;
        if last.is_some_and(|last| last > position) {
            return Err((number, "the area begins before the one above it ends".to_owned()));
        }
        last = Some(end);
        let range = ByteRange { start: position, end };
        match words.next() {
            _ if range.is_empty() => return Err((number, "the area is empty".to_owned())),
            Some("+") => {}
            Some("-") => bad.push(range),
            Some("?" | "*" | "/") => untried.push(range),
            Some(status) => return Err((number, format!("'{status}' is no status; there are ? * / - and +"))),
            None => return Err((number, "the status is missing".to_owned())),
        }
    }
    if head {
        return Err((1, "there is no status line: this is no map of ddrescue".to_owned()));
    }
    if !untried.is_empty() {
        let bytes = untried.iter().fold(0_u64, |sum, range| sum.saturating_add(range.len()));
        if options.untried_bad {
            draft.note(format!("{bytes} bytes that were not read (? * /) are taken as bad."));
            bad.extend(untried);
        } else {
            draft.lost(format!(
                "{bytes} bytes in {} areas were not read by ddrescue (? * /), and may be bad; here they read well \
                 unless \
                 --untried-bad is given",
                untried.len()
            ));
        }
    }
    let bad = merged(bad);
    draft.note("The map does not say why reads failed: an unrecovered read error is assumed.");
    draft.note("Add life = \"until-rewritten\" to a rule whose sectors a write makes good.");
    if !whole_sectors(&bad, draft.rules.lba_size) {
        draft.note(format!("The areas are not made of whole sectors of {} bytes.", draft.rules.lba_size));
    }
    let several = bad.len() > RANGES_MAX;
    for (number, ranges) in (1..).zip(bad.chunks(RANGES_MAX)) {
        let id = if several { format!("bad-{number}") } else { "bad".to_owned() };
        let bytes = ranges.iter().fold(0_u64, |sum, range| sum.saturating_add(range.len()));
        let note = format!("{} bad areas, {bytes} bytes", ranges.len());
        let on = On { operations: Operations::READ, ranges: ranges.to_vec(), ..On::default() };
        let error = Failure::device(blkproof_block::DeviceError::Scsi { key: 3, asc: 0x11, ascq: 0 });
        draft.rule(id, on, Action::Fail { error, done: Done::Prefix, wait: None }, vec![note]);
    }
    Ok(())
}
