//! Sectors of a table whose entries are mostly impossible: something else was written over them. Says what lies there
//! now.
//!
//! VHD and VHDX keep no checksum of their block tables, so this is the only sign of it. Used by both.

use std::ops::Range;

use crate::bytes::is_zero;
use crate::context::Context;
use crate::finding::Confidence;
use crate::report::Cause;
use crate::source::Source;

const SECTOR: u64 = 512;
/// Fewer flawed entries than this in a sector are single accidents.
const FLAWED_MIN: u64 = 4;
/// Stretches told apart.
const STRETCHES_MAX: usize = 64;

/// Counts entries sector by sector, in the order of the table.
pub(crate) struct Overwritten {
    sector: u64,
    sound: u64,
    flawed: u64,
    /// From the first flawed entry of the sector to the last one: in the file, and on the disk.
    place: Option<(Range<u64>, Range<u64>)>,
    found: Vec<Stretch>,
}

struct Stretch {
    host: Range<u64>,
    guest: Range<u64>,
    errors: u64,
}

impl Overwritten {
    pub(crate) fn new() -> Self {
        Self { sector: 0, sound: 0, flawed: 0, place: None, found: Vec::new() }
    }

    /// An entry that is in use: where it is in the file, and the bytes of the disk it maps.
    pub(crate) fn add(&mut self, entry: Range<u64>, flawed: bool, guest: Range<u64>) {
        let sector = entry.start / SECTOR;
        if sector != self.sector {
            self.close();
            self.sector = sector;
        }
        let count = if flawed { &mut self.flawed } else { &mut self.sound };
        *count = count.saturating_add(1);
        if flawed {
            let (host, disk) = self.place.get_or_insert((entry.clone(), guest.clone()));
            host.end = entry.end;
            disk.end = guest.end.max(disk.start);
        }
    }

    /// As [`add`](Self::add), neighbouring entries of `width` bytes of the table at `table`, which all say the same.
    /// Their number may be any: whole sectors of them are counted, not walked.
    pub(crate) fn add_all(
        &mut self,
        table: u64,
        width: u64,
        entries: Range<u64>,
        flawed: bool,
        guest: impl Fn(u64) -> Range<u64>,
    ) {
        let place = |index: u64| table.saturating_add(index.saturating_mul(width));
        let one = |this: &mut Self, index: u64| {
            this.add(place(index)..place(index.saturating_add(1)), flawed, guest(index));
        };
        // The entries that begin in whole sectors.
        let from_table = |at: u64| at.saturating_sub(table).div_ceil(width.max(1));
        let whole =
            from_table(place(entries.start).div_ceil(SECTOR).saturating_mul(SECTOR)).clamp(entries.start, entries.end);
        let end = place(entries.end);
        let rest = from_table(end.saturating_sub(end % SECTOR)).clamp(whole, entries.end);
        for index in entries.start..whole {
            one(self, index);
        }
        if whole < rest {
            self.close();
            self.sector = place(rest.saturating_sub(1)) / SECTOR;
            let last = guest(rest.saturating_sub(1)).end;
            if flawed {
                self.found(place(whole)..place(rest), guest(whole).start..last, rest.saturating_sub(whole));
            }
        }
        for index in rest..entries.end {
            one(self, index);
        }
    }

    fn close(&mut self) {
        let place = self.place.take();
        let (flawed, sound) = (std::mem::take(&mut self.flawed), std::mem::take(&mut self.sound));
        if let Some((host, guest)) = place.filter(|_| flawed >= FLAWED_MIN && sound <= flawed) {
            self.found(host, guest, flawed);
        }
    }

    fn found(&mut self, host: Range<u64>, guest: Range<u64>, errors: u64) {
        let near = |last: &&mut Stretch| host.start.saturating_sub(last.host.end) < SECTOR;
        if let Some(last) = self.found.last_mut().filter(near) {
            last.host.end = host.end;
            last.guest.end = guest.end.max(last.guest.end);
            last.errors = last.errors.saturating_add(errors);
        } else if self.found.len() < STRETCHES_MAX {
            self.found.push(Stretch { host, guest, errors });
        }
    }

    /// A cause for each stretch. `codes` are the ones it explains.
    pub(crate) fn tell(mut self, cx: &mut Context<'_>, source: &dyn Source, codes: &[&'static str]) {
        self.close();
        for stretch in self.found {
            let len = stretch.host.end.saturating_sub(stretch.host.start).min(4096);
            let bytes = cx.read_from(source, stretch.host.start, usize::try_from(len).unwrap_or(0), "the block table");
            let what = format!(
                "bytes {:#x}..{:#x} of the block table were overwritten; {} lie there now",
                stretch.host.start,
                stretch.host.end,
                shape(&bytes)
            );
            cx.causes.push(Cause {
                what,
                confidence: Confidence::Likely,
                codes: codes.to_vec(),
                errors: stretch.errors,
                host: vec![stretch.host],
                guest: vec![stretch.guest],
            });
        }
    }
}

/// What a stretch of bytes is, as far as a glance tells.
fn shape(bytes: &[u8]) -> &'static str {
    let first = bytes.first().copied().unwrap_or(0);
    let readable = bytes.iter().filter(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~')).count();
    if is_zero(bytes) {
        "zeroes"
    } else if bytes.iter().all(|byte| *byte == first) {
        "equal bytes"
    } else if readable.saturating_mul(10) >= bytes.len().saturating_mul(9) {
        "lines of text"
    } else {
        "other data"
    }
}
