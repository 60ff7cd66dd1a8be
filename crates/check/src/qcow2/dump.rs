//! What qcheck's streams show: the header's fields, every entry of the tables, and each finding in its section. A walk
//! of its own, after the analysis, in qcheck's order: header, refcount table, refcount blocks (host order), L1, L2
//! tables (guest order), counts.
//!
//! Nothing is judged here that the analysis has not judged: whether an entry is shown as flawed follows from its own
//! bits and the file's length alone. Tables are read in small pieces; what can not be read is said and passed over. A
//! table that many L1 entries name is shown once.

use std::cell::Cell;
use std::collections::BTreeSet;

use crate::budget::Budget;
use crate::bytes::{be_u64, is_zero};
use crate::code::Severity;
use crate::context::Context;
use crate::map::Class;
use crate::watch::{Event, Wants};

use super::codes;
use super::header::{Geometry, Header};
use super::side::{Side, Table};

/// Bytes of a table read at a time.
const PIECE: u64 = 64 << 10;

/// Bytes a remembered table costs, roughly.
const REMEMBERED: u64 = 64;

/// Bits 9..=55 of an L1 or L2 entry.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// A section of the report, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Header,
    HeaderV3,
    Snapshots,
    Bitmaps,
    RefcountTable,
    Refblocks,
    L1,
    L2,
    Analysis,
}

impl Section {
    /// Where a finding belongs, by the second word of its code.
    fn of(code: &str) -> Option<Self> {
        let mut words = code.split('-');
        if words.next() != Some("QCOW2") {
            return None;
        }
        Some(match words.next().unwrap_or_default() {
            "HEADER" | "BACKING" | "POLICY" => Self::Header,
            "FEATURE" | "EXTENSION" | "DATA" | "ENCRYPTION" => Self::HeaderV3,
            "SNAPSHOT" => Self::Snapshots,
            "BITMAP" => Self::Bitmaps,
            "REFTABLE" => Self::RefcountTable,
            "REFBLOCK" | "REFCOUNT" => Self::Refblocks,
            "L1" => Self::L1,
            "L2" | "STREAM" => Self::L2,
            _ => Self::Analysis,
        })
    }
}

/// Tells the watcher everything it wants.
pub(crate) fn dump(cx: &Context<'_>, side: &Side) {
    let walked = Wants::all().difference(Wants::HOST);
    if !cx.watch.wants().intersects(walked) {
        return;
    }
    let dump = Dump { cx, side, geometry: side.geometry, wants: cx.watch.wants(), flawed: Cell::new(0) };
    dump.header();
    dump.refcounts();
    dump.mapping();
    dump.section("Reference Count Analysis");
    dump.close(Section::Analysis, "Refcount analysis", !cx.complete);
}

struct Dump<'a, 'c> {
    cx: &'a Context<'c>,
    side: &'a Side,
    geometry: Option<Geometry>,
    wants: Wants,
    /// Flawed entries still to be shown in this section although their table is not asked for.
    flawed: Cell<usize>,
}

impl Dump<'_, '_> {
    fn tell(&self, event: &Event<'_>) {
        self.cx.watch.event(event);
    }

    fn section(&self, title: &str) {
        self.flawed.set(self.cx.options.max_findings);
        self.tell(&Event::Section(title));
    }

    /// Whether an entry is to be shown: its table is wanted, or it is flawed, and there were not too many of those.
    fn shows_entry(&self, table: Wants, flawed: bool) -> bool {
        if self.shows(table) {
            return true;
        }
        if !flawed || !self.shows(Wants::PROBLEMS) {
            return false;
        }
        let left = self.flawed.get();
        self.flawed.set(left.saturating_sub(1));
        if left == 1 {
            self.info(
                "further flawed entries of this section are not shown; --max-findings, or the letter of the table",
            );
        }
        left > 0
    }

    fn info(&self, words: &str) {
        self.tell(&Event::Info(words));
    }

    fn shows(&self, want: Wants) -> bool {
        self.wants.contains(want)
    }

    /// Ends a section: its findings, the tests that found nothing, and its sum.
    fn close(&self, section: Section, label: &str, cut: bool) {
        let findings = &self.cx.findings;
        if self.wants.intersects(Wants::PROBLEMS | Wants::SECTIONS) {
            for finding in findings.iter().filter(|finding| Section::of(finding.code.name) == Some(section)) {
                self.tell(&Event::Problem(finding));
            }
        }
        let (mut problems, mut all) = (0u64, 0u64);
        for (name, severity, sum) in findings.sums().filter(|(name, ..)| Section::of(name) == Some(section)) {
            all = all.saturating_add(sum.findings);
            if severity < Severity::Leak {
                continue;
            }
            problems = problems.saturating_add(sum.errors);
            if section == Section::Analysis {
                self.tell(&Event::Summary(name, sum.errors, false));
            }
        }
        let shown = findings.iter().filter(|finding| Section::of(finding.code.name) == Some(section)).count() as u64;
        if all > shown {
            self.info(&format!("{} more findings of this section; --max-findings", all.saturating_sub(shown)));
        }
        if self.shows(Wants::CONFIRM) && !cut {
            for code in codes::all().filter(|code| Section::of(code.name) == Some(section)) {
                if findings.errors_of(code) == 0 {
                    self.tell(&Event::Confirm(&format!("not seen: {} [{}]", code.title, code.name)));
                }
            }
        }
        self.tell(&Event::Summary(label, problems, cut));
    }

    /// A section that qcheck did not have: only where there is something to say.
    fn extra(&self, section: Section, title: &str, there: bool) {
        let found = self.cx.findings.sums().any(|(name, ..)| Section::of(name) == Some(section));
        if there || found {
            self.section(title);
            self.close(section, title, false);
        }
    }

    fn header(&self) {
        let header = &self.side.header;
        self.section("Header");
        if self.shows(Wants::HEADER) {
            for (name, value) in fields(header) {
                self.tell(&Event::Field(name, &value));
            }
        }
        self.section("Derivative Data");
        if self.shows(Wants::HEADER) {
            for (name, value) in &self.cx.facts {
                self.tell(&Event::Field(name, value));
            }
        }
        self.section("Header Analysis");
        self.close(Section::Header, "Header", self.geometry.is_none());
        if header.version >= 3 {
            self.section("Header (v3)");
            if self.shows(Wants::HEADER) {
                for (name, value) in fields_v3(header) {
                    self.tell(&Event::Field(name, &value));
                }
            }
            self.close(Section::HeaderV3, "Header (v3)", self.geometry.is_none());
        } else {
            self.extra(Section::HeaderV3, "Header (v3)", false);
        }
        self.extra(Section::Snapshots, "Snapshots", !self.side.snapshots.is_empty());
        self.extra(Section::Bitmaps, "Bitmaps", false);
    }

    fn refcounts(&self) {
        let (geometry, table) = (self.geometry, self.side.refcount_table);
        self.section("Refcount Table");
        if let (Some(geometry), Some(table)) = (geometry, table)
            && self.wants.intersects(Wants::REFCOUNT_TABLE | Wants::PROBLEMS)
        {
            self.entries(table, 1, "the refcount table", |index, raw, _| {
                self.refcount_table_entry(&geometry, table, index, raw);
            });
        }
        self.close(Section::RefcountTable, "Refcount Table", table.is_none());

        self.section("Refcount Blocks");
        if let (Some(geometry), Some(table)) = (geometry, table)
            && self.wants.intersects(Wants::REFCOUNTS | Wants::PROBLEMS)
        {
            self.entries(table, 1, "the refcount table", |index, raw, _| {
                if raw & OFFSET_OF_BLOCK != 0 {
                    self.refcount_block(&geometry, index, raw & OFFSET_OF_BLOCK);
                }
            });
        }
        self.close(Section::Refblocks, "Refblocks", table.is_none());
    }

    fn refcount_table_entry(&self, geometry: &Geometry, table: Table, index: u64, raw: u64) {
        let offset = raw & OFFSET_OF_BLOCK;
        let flawed = raw != offset || (offset != 0 && !self.inside(geometry, offset));
        if raw == 0 || !self.shows_entry(Wants::REFCOUNT_TABLE, flawed) {
            return;
        }
        self.tell(&Event::Entry {
            class: Class::RefcountTable,
            table: table.offset,
            index,
            cluster: index.saturating_mul(geometry.refcounts_per_block()),
            raw,
            value: offset,
            flags: "",
            flawed,
        });
    }

    /// Counts of one block. A count for a cluster that the file does not have is flawed.
    fn refcount_block(&self, geometry: &Geometry, index: u64, offset: u64) {
        let per_block = geometry.refcounts_per_block();
        let first = index.saturating_mul(per_block);
        let clusters = self.cx.file_len().div_ceil(geometry.cluster_size());
        // Only what lies past the end can be flawed: other blocks need not be read for it.
        if !self.shows(Wants::REFCOUNTS) && first.saturating_add(per_block) <= clusters {
            return;
        }
        let mut titled = false;
        let mut title = || {
            if !std::mem::replace(&mut titled, true) {
                self.tell(&Event::Section(&format!("Refcount Block {index}")));
            }
        };
        if self.shows(Wants::REFCOUNTS) {
            title();
        }
        let bits = u64::from(geometry.refcount_bits());
        let table = Table { offset, entries: geometry.cluster_size() / 8, stored_entries: 0 };
        self.entries(table, 1, "a refcount block", |word, raw, _| {
            // Eight bytes hold several counts of small width: narrow ones lie low bits first within a byte, in byte
            // order.
            let per_word = 64u64.checked_div(bits).unwrap_or(1);
            for place in 0..per_word {
                let at = word.saturating_mul(per_word).saturating_add(place);
                let cluster = first.saturating_add(at);
                let value = count(raw, place, bits);
                let flawed = value != 0 && cluster >= clusters;
                if !self.shows_entry(Wants::REFCOUNTS, flawed) {
                    continue;
                }
                title();
                self.tell(&Event::Entry {
                    class: Class::RefcountBlock,
                    table: offset,
                    index: at,
                    cluster,
                    raw: value,
                    value,
                    flags: "",
                    flawed,
                });
            }
        });
    }

    fn mapping(&self) {
        let (geometry, table) = (self.geometry, self.side.l1);
        self.section("L1 Table");
        if let (Some(geometry), Some(table)) = (geometry, table)
            && self.wants.intersects(Wants::L1 | Wants::PROBLEMS)
        {
            self.entries(table, 1, "the L1 table", |index, raw, _| self.l1_entry(&geometry, table, index, raw));
        }
        self.close(Section::L1, "L1 table", table.is_none() && self.side.header.l1_size > 0);

        self.section("L2 Tables");
        let flaws = self.cx.findings.sums().any(|(name, ..)| Section::of(name) == Some(Section::L2));
        if let (Some(geometry), Some(table)) = (geometry, table)
            && (self.shows(Wants::L2) || (flaws && self.shows(Wants::PROBLEMS)))
        {
            let mut shown = Shown::new(self.cx.budget);
            self.entries(table, 1, "the L1 table", |index, raw, _| {
                let offset = raw & OFFSET;
                if offset == 0 || offset >= self.cx.file_len() {
                    return;
                }
                match shown.first_time(offset) {
                    Some(true) => self.l2_table(&geometry, index, offset),
                    Some(false) if self.shows(Wants::L2) => {
                        self.info(&format!("L2 cluster l1[{index}] : {offset:#x} is shown above"));
                    }
                    Some(false) => {}
                    None => {
                        self.info(&format!("L2 cluster l1[{index}] : {offset:#x} is not shown: too many for --memory"))
                    }
                }
            });
        }
        self.close(Section::L2, "L2 tables", table.is_none() && self.side.header.l1_size > 0);
    }

    fn l1_entry(&self, geometry: &Geometry, table: Table, index: u64, raw: u64) {
        let offset = raw & OFFSET;
        let flawed = raw & !(OFFSET | COPIED) != 0
            || (offset == 0 && raw != 0)
            || (offset != 0 && !self.inside(geometry, offset));
        if !self.shows_entry(Wants::L1, flawed) {
            return;
        }
        self.tell(&Event::Entry {
            class: Class::L1,
            table: table.offset,
            index,
            cluster: index.saturating_mul(geometry.l2_entries()),
            raw,
            value: offset,
            flags: if raw & COPIED == 0 { "-COPIED" } else { "+COPIED" },
            flawed,
        });
    }

    fn l2_table(&self, geometry: &Geometry, l1_index: u64, offset: u64) {
        let title = || self.tell(&Event::Section(&format!("L2 cluster l1[{l1_index}] : {offset:#x}")));
        let mut titled = self.shows(Wants::L2);
        if titled {
            title();
        }
        let words = geometry.l2_entry_len() / 8;
        let table = Table { offset, entries: geometry.cluster_size() / 8, stored_entries: 0 };
        let first = l1_index.saturating_mul(geometry.l2_entries());
        self.entries(table, words, "an L2 table", |index, raw, bitmap| {
            if raw == 0 && bitmap == 0 {
                return;
            }
            let (value, flawed) = self.l2_entry(geometry, raw, bitmap);
            if !self.shows_entry(Wants::L2, flawed) {
                return;
            }
            if !std::mem::replace(&mut titled, true) {
                title();
            }
            let sign = |bit: u64| if raw & bit == 0 { '-' } else { '+' };
            let mut flags = format!("{}COMPRESSED {}COPIED {}ZEROES", sign(COMPRESSED), sign(COPIED), sign(ZERO));
            if raw & COMPRESSED != 0 {
                // Bit 0 is a part of the place then.
                flags.truncate(flags.len().saturating_sub(" -ZEROES".len()));
            }
            if geometry.extended_l2 {
                let (zero, data) = (bitmap >> 32, bitmap & u64::from(u32::MAX));
                flags = format!("{flags}; allocated: {data:#010x}; zero: {zero:#010x}");
            }
            self.tell(&Event::Entry {
                class: Class::L2,
                table: offset,
                index,
                cluster: first.saturating_add(index),
                raw,
                value,
                flags: &flags,
                flawed,
            });
        });
    }

    /// Where an entry points, and whether its own bits, or the end of the file, say that it is wrong.
    fn l2_entry(&self, geometry: &Geometry, raw: u64, bitmap: u64) -> (u64, bool) {
        if raw & COMPRESSED != 0 {
            let bits = 62u32.saturating_sub(geometry.cluster_bits.saturating_sub(8));
            let offset = raw & 1u64.checked_shl(bits).unwrap_or(0).wrapping_sub(1);
            let sectors = (raw & (COMPRESSED - 1)).checked_shr(bits).unwrap_or(0).saturating_add(1);
            let start = offset & !511;
            let end = start.saturating_add(sectors.saturating_mul(512));
            let past = offset >= self.cx.file_len() || end > self.cx.file_len().saturating_add(geometry.cluster_size());
            return (offset, raw & COPIED != 0 || bitmap != 0 || past || geometry.external_data);
        }
        let offset = raw & OFFSET;
        let zero_allowed = geometry.version >= 3 && !geometry.extended_l2;
        let reserved = !(OFFSET | COPIED) & raw & !(if zero_allowed { ZERO } else { 0 });
        let lost = offset != 0 && !geometry.external_data && !self.begins_inside(geometry, offset);
        let both = bitmap & (bitmap >> 32) & u64::from(u32::MAX) != 0;
        let nowhere =
            offset == 0 && (raw & COPIED != 0 || bitmap & u64::from(u32::MAX) != 0) && !geometry.external_data;
        (offset, reserved != 0 || lost || both || nowhere)
    }

    /// Whether a whole cluster may lie there.
    fn inside(&self, geometry: &Geometry, offset: u64) -> bool {
        let end = offset.checked_add(geometry.cluster_size());
        offset & geometry.cluster_size().wrapping_sub(1) == 0 && end.is_some_and(|end| end <= self.cx.file_len())
    }

    /// Whether a data cluster may begin there; the last one of a file may be cut.
    fn begins_inside(&self, geometry: &Geometry, offset: u64) -> bool {
        offset & geometry.cluster_size().wrapping_sub(1) == 0 && offset < self.cx.file_len()
    }

    /// Goes over a table of entries of one word or two: the index, the first word, and the second (0 if there is none).
    fn entries(&self, table: Table, words: u64, what: &str, mut each: impl FnMut(u64, u64, u64)) {
        let step = words.saturating_mul(8).max(8);
        let len = table.entries.saturating_mul(8);
        let mut at = 0u64;
        while at < len && !self.cx.stopped() {
            let size = usize::try_from(PIECE.min(len.saturating_sub(at))).unwrap_or(0);
            let mut piece = vec![0u8; size];
            let place = table.offset.saturating_add(at);
            match self.cx.image.read_at(place, &mut piece) {
                Ok(read) => piece.truncate(read),
                Err(error) => {
                    self.info(&format!("{what}: reading at {place:#x} failed: {error}"));
                    piece.fill(0);
                }
            }
            if piece.is_empty() {
                return;
            }
            if !is_zero(&piece) || self.shows(Wants::L1) || self.shows(Wants::REFCOUNTS) {
                let first = at.checked_div(step).unwrap_or(0);
                let size = usize::try_from(step).unwrap_or(8);
                for (index, entry) in (first..).zip(piece.chunks_exact(size)) {
                    each(index, be_u64(entry, 0), if words > 1 { be_u64(entry, 8) } else { 0 });
                }
            }
            at = at.saturating_add(PIECE);
        }
    }
}

/// Bits 9..=63 of a refcount table entry.
const OFFSET_OF_BLOCK: u64 = !0x1ff;

/// The count at `place` in eight bytes of a refcount block, read as one big-endian number.
fn count(word: u64, place: u64, bits: u64) -> u64 {
    if bits >= 64 {
        return word;
    }
    // In wide counts and between bytes the first one lies highest; within a byte it lies lowest.
    let shift = if bits >= 8 {
        64u64.saturating_sub(bits.saturating_mul(place.saturating_add(1)))
    } else {
        let bit = place.saturating_mul(bits);
        (56u64.saturating_sub(bit & !7)).saturating_add(bit & 7)
    };
    let mask = 1u64.checked_shl(u32::try_from(bits).unwrap_or(0)).unwrap_or(0).wrapping_sub(1);
    word.checked_shr(u32::try_from(shift).unwrap_or(0)).unwrap_or(0) & mask
}

/// Tables shown already, as far as memory goes.
struct Shown<'b> {
    offsets: BTreeSet<u64>,
    budget: &'b Budget,
}

impl<'b> Shown<'b> {
    fn new(budget: &'b Budget) -> Self {
        Self { offsets: BTreeSet::new(), budget }
    }

    /// Whether this one was not shown before; `None` if it can not be remembered any more.
    fn first_time(&mut self, offset: u64) -> Option<bool> {
        if self.offsets.contains(&offset) {
            return Some(false);
        }
        self.budget.take(REMEMBERED).ok()?;
        self.offsets.insert(offset);
        Some(true)
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.budget.give((self.offsets.len() as u64).saturating_mul(REMEMBERED));
    }
}

/// The fields of the header as they stand in the file.
fn fields(header: &Header) -> Vec<(&'static str, String)> {
    vec![
        ("magic", format!("{:#010x}", header.magic)),
        ("version", header.version.to_string()),
        ("backing_file_offset", format!("{:#x}", header.backing_offset)),
        ("backing_file_size", header.backing_len.to_string()),
        ("cluster_bits", header.cluster_bits.to_string()),
        ("size", format!("{:#x}", header.size)),
        ("crypt_method", header.crypt_method.to_string()),
        ("l1_size", header.l1_size.to_string()),
        ("l1_table_offset", format!("{:#x}", header.l1_offset)),
        ("refcount_table_offset", format!("{:#x}", header.refcount_table_offset)),
        ("refcount_table_clusters", header.refcount_table_clusters.to_string()),
        ("nb_snapshots", header.nb_snapshots.to_string()),
        ("snapshots_offset", format!("{:#x}", header.snapshots_offset)),
    ]
}

fn fields_v3(header: &Header) -> Vec<(&'static str, String)> {
    vec![
        ("incompatible_features", format!("{:#018x}", header.incompatible)),
        ("compatible_features", format!("{:#018x}", header.compatible)),
        ("autoclear_features", format!("{:#018x}", header.autoclear)),
        ("refcount_order", header.refcount_order.to_string()),
        ("header_length", header.header_length.to_string()),
        ("compression_type", header.compression_type.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_width() {
        // The bytes 0x21 0x43 0x65 … of a block, read as one number.
        let word = 0x2143_6587_a9cb_ed0f;
        for (bits, want) in [
            (1, &[1, 0, 0, 0, 0, 1, 0, 0, 1, 1][..]),
            (2, &[1, 0, 2, 0, 3, 0, 0, 1]),
            (4, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
            (8, &[0x21, 0x43, 0x65]),
            (16, &[0x2143, 0x6587, 0xa9cb, 0xed0f]),
            (32, &[0x2143_6587, 0xa9cb_ed0f]),
            (64, &[word]),
        ] {
            for (place, want) in (0u64..).zip(want) {
                assert_eq!(count(word, place, bits), *want, "{bits} bits, place {place}");
            }
        }
    }

    #[test]
    fn findings_have_sections() {
        for (code, section) in [
            ("QCOW2-HEADER-L1", Some(Section::Header)),
            ("QCOW2-L1-X", Some(Section::L1)),
            ("QCOW2-REFTABLE-X", Some(Section::RefcountTable)),
            ("QCOW2-REFCOUNT-PAST-END", Some(Section::Refblocks)),
            ("QCOW2-CLUSTER-OVERLAP", Some(Section::Analysis)),
            ("IMAGE-CHANGED", None),
            ("VDI-HEADER-SIZE", None),
        ] {
            assert_eq!(Section::of(code), section, "{code}");
        }
        let used = |section| codes::all().any(|code| Section::of(code.name) == Some(section));
        for section in [Section::Header, Section::HeaderV3, Section::RefcountTable, Section::L1, Section::L2] {
            assert!(used(section), "{section:?} has codes");
        }
    }
}
