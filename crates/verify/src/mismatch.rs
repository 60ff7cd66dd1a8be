//! A difference between the two sides, as a value with its story.

use std::fmt;
use std::rc::Rc;

use blkproof_block::{ByteOffset, ByteRange, IoError};

use crate::SECTOR;
use crate::history::Version;
use crate::policy::OnMismatch;
use crate::request::RequestKind;

/// The request that brought the difference to light.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// What was asked.
    pub kind: RequestKind,
    /// First byte; for a resize, the new size.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// Its number, counted from 1 over all clients.
    pub op: u64,
    /// When it began, in nanoseconds of the clock given to the mirror; 0 without a clock.
    pub time_ns: u64,
    /// Who sent it.
    pub client: Option<Rc<str>>,
}

/// One difference between RAW and TEST.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// The request it was seen by.
    pub request: Request,
    /// What differs.
    pub difference: Difference,
    /// What the mirror does about it.
    pub on_mismatch: OnMismatch,
    /// The first operation the history still knows everything about.
    pub history_begins_at: u64,
}

/// What differs.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Difference {
    /// Both sides succeeded, and the bytes differ; or TEST calls a range zero that RAW says is not.
    Content {
        /// The first differing byte.
        first_bad: u64,
        /// Every range of sectors that differ, cut at the ends of the request, in order.
        ranges: Vec<ByteRange>,
        /// The stories of the first sectors of `ranges`, at most [`STORIES`].
        sectors: Vec<Sector>,
    },
    /// The outcomes differ.
    Outcome {
        /// How TEST ended.
        test: Result<(), IoError>,
        /// How RAW ended.
        raw: Result<(), IoError>,
    },
    /// The sizes differ.
    Size {
        /// Bytes TEST holds.
        test: u64,
        /// Bytes RAW holds.
        raw: u64,
    },
}

/// Sectors of one mismatch that are told in full.
pub const STORIES: usize = 32;

/// One sector that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sector {
    /// Where the excerpts begin; on a sector boundary unless only a part could be read.
    pub at: u64,
    /// The reference's bytes, at most a sector.
    pub expected: Vec<u8>,
    /// The test device's bytes, as many.
    pub found: Vec<u8>,
    /// How many bits differ.
    pub bits_differing: u32,
    /// Which, if they are few: at most [`BITS`].
    pub bits: Vec<BitFlip>,
    /// What the wrong content is.
    pub diagnosis: Diagnosis,
    /// The last write known for the sector.
    pub last_write: Option<Version>,
    /// What was written to the sector before that, newest first, at most [`EARLIER`].
    pub earlier: Vec<Version>,
}

/// Versions told of a sector besides the last one.
pub const EARLIER: usize = 4;

/// Differing bits that are listed one by one.
pub const BITS: usize = 64;

/// One bit that differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BitFlip {
    /// The byte it lies in.
    pub at: u64,
    /// Which bit, 0 is the least significant.
    pub bit: u8,
    /// What it should be.
    pub expected: bool,
}

/// What the content of a bad sector is.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Diagnosis {
    /// An older version of this sector: what came after it never arrived, or was undone.
    Stale {
        /// The version found.
        found: Version,
    },
    /// The content of another sector.
    Misdirected {
        /// The sector's first byte.
        from: u64,
        /// When that was written there; `None` if it is just what the reference holds there now.
        version: Option<Version>,
    },
    /// Nothing but zeroes.
    Zeroes,
    /// One part is right, the rest is older.
    Torn {
        /// The byte where it breaks: the first one that is not as on the other side of the break. The old part is known
        /// to a piece of 64 bytes; the break itself is the first (or last) differing byte.
        cut: u64,
        /// Whether the part before `cut` is the right one.
        new_first: bool,
        /// What the other part is; `None` for zeroes.
        old: Option<Version>,
    },
    /// A few bits are wrong: see [`Sector::bits`].
    BitFlips,
    /// The content TEST should have, by the history: the reference is the one that is wrong.
    ReferenceWrong {
        /// The last write, whose data TEST holds.
        version: Version,
    },
    /// Nothing the history knows.
    Foreign,
}

impl Mismatch {
    /// The first differing byte, if bytes differ.
    pub fn first_bad(&self) -> Option<u64> {
        match self.difference {
            Difference::Content { first_bad, .. } => Some(first_bad),
            _ => None,
        }
    }

    /// Every differing range, if bytes differ.
    pub fn ranges(&self) -> &[ByteRange] {
        match &self.difference {
            Difference::Content { ranges, .. } => ranges,
            _ => &[],
        }
    }

    /// What the first bad sector's content is, if bytes differ.
    pub fn diagnosis(&self) -> Option<&Diagnosis> {
        match &self.difference {
            Difference::Content { sectors, .. } => sectors.first().map(|sector| &sector.diagnosis),
            _ => None,
        }
    }

    /// The first line of the message, in the form QEMU's blkverify uses: TEST's outcome first, RAW's second.
    pub fn headline(&self) -> String {
        let Request { kind, at, len, .. } = &self.request;
        let code = |outcome: &Result<(), IoError>| outcome.as_ref().err().map_or(0, |error| -error.errno.0);
        match &self.difference {
            Difference::Content { first_bad, .. } => {
                format!("blkverify: {} offset={at} bytes={len} contents mismatch at offset {first_bad}", kind.name())
            }
            Difference::Outcome { test, raw } => format!(
                "blkverify: {} offset={at} bytes={len} return value mismatch {} != {}",
                kind.name(),
                code(test),
                code(raw)
            ),
            Difference::Size { test, raw } => format!("blkverify: {} size mismatch {test} != {raw}", kind.name()),
        }
    }
}

impl fmt::Display for Mismatch {
    /// The [headline](Mismatch::headline), then the story in indented lines. No newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.headline())?;
        if self.request.op > 0 {
            let Request { op, time_ns, client, .. } = &self.request;
            write!(f, "\n  seen by operation {op}{}", By(client.as_deref(), *time_ns))?;
        }
        match &self.difference {
            Difference::Size { .. } => write!(f, "\n  test first, raw second"),
            Difference::Outcome { test, raw } => {
                for (name, outcome) in [("test", test), ("raw", raw)] {
                    match outcome {
                        Ok(()) => write!(f, "\n  {name}: success")?,
                        Err(error) => write!(f, "\n  {name}: {error}")?,
                    }
                }
                Ok(())
            }
            Difference::Content { ranges, sectors, .. } => {
                let count: u64 = ranges.iter().map(|range| range.aligned_out(SECTOR).len() / SECTOR).sum();
                let asked = ByteRange::at(self.request.at, self.request.len).aligned_out(SECTOR).len() / SECTOR;
                let differ = if count == 1 { "differs" } else { "differ" };
                write!(f, "\n  {count} of {asked} sectors {differ}: ")?;
                for (index, range) in ranges.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    if index == RANGES_SHOWN {
                        write!(f, ", and {} more ranges", ranges.len() - index)?;
                        break;
                    }
                    write!(f, "{comma}{range}")?;
                }
                if let Some((version, cut)) = self.torn_write() {
                    write!(
                        f,
                        "\n  {} reached test up to {}, and nothing of it from there on",
                        Story(version),
                        ByteOffset(cut)
                    )?;
                }
                for sector in sectors.iter().take(SECTORS_SHOWN) {
                    self.write_sector(f, sector)?;
                }
                if sectors.len() > SECTORS_SHOWN {
                    let rest = &sectors[SECTORS_SHOWN..];
                    for sector in rest {
                        write!(f, "\n  {}: ", Place(sector.at))?;
                        self.write_diagnosis(f, sector)?;
                    }
                }
                if count > sectors.len() as u64 {
                    write!(f, "\n  {} further sectors are not told", count - sectors.len() as u64)?;
                }
                Ok(())
            }
        }
    }
}

impl Mismatch {
    /// The write that was torn between sectors, and the first byte that did not arrive: as far as this request looked,
    /// its first sectors are right and all the others older.
    pub fn torn_write(&self) -> Option<(&Version, u64)> {
        let Difference::Content { ranges, sectors, .. } = &self.difference else { return None };
        let (first, range) = (sectors.first()?, ranges.first()?);
        let version = first.last_write.as_ref()?;
        let begins_before = version.sectors.start.max(self.request.at) < range.start;
        let ends = version.sectors.end.min(self.request.at.saturating_add(self.request.len));
        let lost_to_its_end = ranges.len() == 1 && range.end >= ends.saturating_sub(ends % SECTOR);
        let all_older = sectors.iter().all(|sector| {
            let same = sector.last_write.as_ref().is_some_and(|last| last.op == version.op);
            !same || matches!(sector.diagnosis, Diagnosis::Stale { .. } | Diagnosis::Zeroes)
        });
        (begins_before && lost_to_its_end && all_older).then_some((version, range.start))
    }
}

const RANGES_SHOWN: usize = 16;
const SECTORS_SHOWN: usize = 2;
const ROWS_SHOWN: usize = 8;
const BITS_SHOWN: usize = 8;
const ROW: usize = 8;

impl Mismatch {
    fn write_sector(&self, f: &mut fmt::Formatter<'_>, sector: &Sector) -> fmt::Result {
        write!(f, "\n  {}: ", Place(sector.at))?;
        self.write_diagnosis(f, sector)?;
        if let Some(version) = &sector.last_write {
            let again = matches!(&sector.diagnosis, Diagnosis::ReferenceWrong { .. });
            if !again {
                write!(f, "\n    last written by {}", Story(version))?;
            }
            for version in &sector.earlier {
                write!(f, "\n    before that by {}", Story(version))?;
            }
        } else {
            let since = self.history_begins_at;
            write!(f, "\n    no write to it is known (the history is complete from operation {since} on)")?;
        }
        match sector.bits_differing {
            0 => {}
            n if sector.bits.len() == n as usize => {
                write!(f, "\n    {n} {}: ", if n == 1 { "bit differs" } else { "bits differ" })?;
                for (index, flip) in sector.bits.iter().take(BITS_SHOWN).enumerate() {
                    let semicolon = if index == 0 { "" } else { "; " };
                    let (is, should) = (u8::from(!flip.expected), u8::from(flip.expected));
                    write!(f, "{semicolon}byte {} bit {} is {is} not {should}", ByteOffset(flip.at), flip.bit)?;
                }
                if sector.bits.len() > BITS_SHOWN {
                    f.write_str("; …")?;
                }
            }
            n => write!(f, "\n    {n} bits differ")?,
        }
        write!(f, "\n    {:<12} {:<34}  found in test (differing bytes marked *)", "offset", "expected from raw")?;
        let mut shown = 0;
        let mut equal = 0;
        for ((expected, found), row) in sector.expected.chunks(ROW).zip(sector.found.chunks(ROW)).zip(0u64..) {
            if expected == found {
                equal += 1;
                continue;
            }
            if shown == ROWS_SHOWN {
                let rows = sector.expected.chunks(ROW).zip(sector.found.chunks(ROW)).skip(len(row));
                let more = rows.filter(|(a, b)| a != b).count();
                write!(f, "\n    …            {more} more differing rows")?;
                return Ok(());
            }
            Self::skipped(f, &mut equal)?;
            write!(f, "\n    {:<12} ", ByteOffset(sector.at + row * ROW as u64).to_string())?;
            hex_row(f, expected, found)?;
            f.write_str("  ")?;
            hex_row(f, found, expected)?;
            shown += 1;
        }
        Self::skipped(f, &mut equal)
    }

    fn skipped(f: &mut fmt::Formatter<'_>, equal: &mut u32) -> fmt::Result {
        match std::mem::take(equal) {
            0 => Ok(()),
            1 => write!(f, "\n    …            1 equal row"),
            n => write!(f, "\n    …            {n} equal rows"),
        }
    }

    fn write_diagnosis(&self, f: &mut fmt::Formatter<'_>, sector: &Sector) -> fmt::Result {
        match &sector.diagnosis {
            Diagnosis::Stale { found } => write!(f, "holds an older version of itself, written by {}", Story(found)),
            Diagnosis::Misdirected { from, version: Some(version) } => {
                write!(f, "holds the content of {}, written there by {}", Place(*from), Story(version))
            }
            Diagnosis::Misdirected { from, version: None } => {
                write!(f, "holds what the reference has in {}", Place(*from))
            }
            Diagnosis::Zeroes => f.write_str("holds zeroes"),
            Diagnosis::Torn { cut, new_first, old } => {
                let (before, after) = if *new_first { ("right", "old") } else { ("old", "right") };
                write!(f, "is torn at {}: {before} before it, {after} from there; ", ByteOffset(*cut))?;
                match old {
                    Some(version) => write!(f, "the old part was written by {}", Story(version)),
                    None => f.write_str("the old part is zeroes"),
                }
            }
            Diagnosis::BitFlips if sector.bits_differing == 1 => f.write_str("has a flipped bit"),
            Diagnosis::BitFlips => write!(f, "has {} flipped bits", sector.bits_differing),
            Diagnosis::ReferenceWrong { version } => {
                write!(f, "is right in test, and wrong in raw: test holds the last write, {}", Story(version))
            }
            Diagnosis::Foreign => f.write_str("holds foreign content: no known version of any sector"),
        }
    }
}

fn len(row: u64) -> usize {
    crate::len_of(row)
}

/// Eight bytes in hex and ASCII; a byte that differs from `other` has a star before it.
fn hex_row(f: &mut fmt::Formatter<'_>, bytes: &[u8], other: &[u8]) -> fmt::Result {
    for index in 0..ROW {
        match (bytes.get(index), other.get(index)) {
            (Some(byte), Some(against)) => {
                write!(f, "{}{byte:02x}", if byte == against { ' ' } else { '*' })?;
            }
            _ => f.write_str("   ")?,
        }
    }
    f.write_str(" |")?;
    for byte in bytes {
        let shown = if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' };
        write!(f, "{shown}")?;
    }
    f.write_str("|")
}

/// `sector 8 (0x1000)`, or a bare offset inside a sector.
struct Place(u64);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sector {} ({})", self.0 / SECTOR, ByteOffset(self.0))
    }
}

/// ` by client 'fio' at 1.250000 s`, as much as is known.
struct By<'a>(Option<&'a str>, u64);

impl fmt::Display for By<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(client) = self.0 {
            write!(f, " of client '{client}'")?;
        }
        match self.1 {
            0 => Ok(()),
            ns => write!(f, " at {}.{:06} s", ns / 1_000_000_000, ns % 1_000_000_000 / 1000),
        }
    }
}

/// `operation 3 (write) of client 'fio' at 1.250000 s, which failed`.
struct Story<'a>(&'a Version);

impl fmt::Display for Story<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Version { op, time_ns, client, kind, outcome, .. } = self.0;
        write!(f, "operation {op} ({}){}", kind.name(), By(client.as_deref(), *time_ns))?;
        match outcome {
            crate::Outcome::Done | crate::Outcome::Settled => Ok(()),
            crate::Outcome::Failed => f.write_str(", which failed"),
            crate::Outcome::Dropped => f.write_str(", which was cancelled"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_survive_their_codes() {
        for kind in RequestKind::ALL {
            assert_eq!(RequestKind::from_code(kind.code()), kind);
        }
    }
}
