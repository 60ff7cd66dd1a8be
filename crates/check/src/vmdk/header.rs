//! Headers of the sparse variants, as stored, and the geometry that follows from them once they have been checked.
//!
//! Hosted sparse extents: VMware "Virtual Disk Format 5.0", section "Hosted Sparse Extents". COWD and seSparse:
//! libvmdk, sections "COWD sparse extent data file" and "seSparse". All fields are little endian; offsets and sizes
//! count sectors.

use std::ops::Range;

use crate::bytes::{le_u16, le_u32, le_u64};
use crate::context::Context;
use crate::finding::{Confidence, Finding};

use super::codes;
use super::geometry::{Geometry, Kind, SECTOR};

/// A grain directory "at the end": its place is in the footer.
pub(super) const GD_AT_END: u64 = u64::MAX;

/// Bits of the header's flags that mean something.
pub(super) mod flag {
    pub(crate) const NEW_LINE_TEST: u32 = 1;
    pub(crate) const REDUNDANT: u32 = 1 << 1;
    pub(crate) const ZERO_GRAIN: u32 = 1 << 2;
    pub(crate) const COMPRESSED: u32 = 1 << 16;
    pub(crate) const MARKERS: u32 = 1 << 17;
    pub(crate) const KNOWN: u32 = NEW_LINE_TEST | REDUNDANT | ZERO_GRAIN | COMPRESSED | MARKERS;
}

/// What survives any transfer but one that translates line ends.
const TEST_BYTES: [u8; 4] = [b'\n', b' ', b'\r', b'\n'];

/// The header of a hosted sparse extent, as stored: nothing is checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hosted {
    pub(super) version: u32,
    pub(super) flags: u32,
    pub(super) capacity: u64,
    pub(super) grain: u64,
    pub(super) descriptor: u64,
    pub(super) descriptor_len: u64,
    pub(super) gtes: u32,
    pub(super) rgd: u64,
    pub(super) gd: u64,
    pub(super) overhead: u64,
    pub(super) unclean: u8,
    pub(super) test: [u8; 4],
    pub(super) algorithm: u16,
}

impl Hosted {
    /// Takes the fields out of the first sector; missing bytes read as zeroes.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
        Self {
            version: le_u32(bytes, 4),
            flags: le_u32(bytes, 8),
            capacity: le_u64(bytes, 12),
            grain: le_u64(bytes, 20),
            descriptor: le_u64(bytes, 28),
            descriptor_len: le_u64(bytes, 36),
            gtes: le_u32(bytes, 44),
            rgd: le_u64(bytes, 48),
            gd: le_u64(bytes, 56),
            overhead: le_u64(bytes, 64),
            unclean: byte(72),
            test: [byte(73), byte(74), byte(75), byte(76)],
            algorithm: le_u16(bytes, 77),
        }
    }

    /// Whether the directory's place is only in the footer.
    pub(super) fn at_end(&self) -> bool {
        self.gd == GD_AT_END
    }

    /// Says what the header says of itself.
    pub(super) fn tell(&self, cx: &mut Context<'_>) {
        cx.fact("variant", if self.at_end() { "stream-optimized sparse extent" } else { "hosted sparse extent" });
        cx.fact("version", self.version.to_string());
        cx.fact("flags", format!("{:#x}", self.flags));
        cx.fact("capacity", format!("{} sectors", self.capacity));
        cx.fact("grain size", format!("{} sectors", self.grain));
        cx.fact("descriptor", format!("sectors {}, {} of them", self.descriptor, self.descriptor_len));
        cx.fact("entries per grain table", self.gtes.to_string());
        cx.fact("redundant grain directory", format!("sector {}", self.rgd));
        let gd = if self.at_end() { "at the end".to_owned() } else { format!("sector {}", self.gd) };
        cx.fact("grain directory", gd);
        cx.fact("overhead", format!("{} sectors", self.overhead));
        cx.fact("compression", if self.algorithm == 1 { "deflate" } else { "none" });
        cx.fact("unclean shutdown", if self.unclean == 0 { "no" } else { "yes" });
    }

    /// Checks what can be checked without the tables (VMDK-1, VMDK-2), and makes a geometry of it; `None` if nothing
    /// can be computed with it, which has been said then. `at` is where this header stands: 0, or the footer's place.
    pub(super) fn geometry(&self, cx: &mut Context<'_>, at: u64) -> Option<Geometry> {
        let here = |range: Range<u64>| at.saturating_add(range.start)..at.saturating_add(range.end);
        if !(1..=3).contains(&self.version) {
            let words = format!("header version {} where 1, 2 and 3 are known: no program opens it", self.version);
            cx.find(Finding::new(codes::VERSION, words).host(here(4..8)));
        }
        if self.flags & !flag::KNOWN != 0 {
            let words =
                format!("header flags {:#x} have bits {:#x} nobody knows", self.flags, self.flags & !flag::KNOWN);
            cx.find(Finding::new(codes::FLAGS, words).host(here(8..12)));
        }
        self.check_test_bytes(cx, &here);
        if self.unclean != 0 {
            let words = format!("unclean shutdown byte is {}: the last writer did not close the image", self.unclean);
            cx.find(Finding::new(codes::UNCLEAN, words).host(here(72..73)));
        }
        if self.algorithm > 1 {
            let words = format!("compression algorithm {} where 0 (none) and 1 (deflate) are known", self.algorithm);
            cx.find(Finding::new(codes::COMPRESSION, words).host(here(77..79)));
            cx.could_not("grains: how they are compressed is not known");
            return None;
        }
        let compressed = self.algorithm == 1;
        if compressed != (self.flags & flag::COMPRESSED != 0) {
            let words = format!("compression algorithm {} contradicts flags {:#x}", self.algorithm, self.flags);
            let severity = crate::code::Severity::Warning;
            cx.find(Finding::new(codes::COMPRESSION, words).severity(severity).host(here(77..79)));
        }
        self.sizes(cx, &here)?;
        let grain = self.grain.checked_mul(SECTOR)?;
        let capacity = self.capacity.checked_mul(SECTOR)?;
        let window = grain.checked_mul(u64::from(self.gtes))?;
        let bytes = |sector: u64| sector.saturating_mul(SECTOR);
        let rgd = (self.flags & flag::REDUNDANT != 0 && self.rgd != 0).then(|| bytes(self.rgd));
        Some(Geometry {
            kind: Kind::Hosted,
            capacity,
            grain,
            gtes: u64::from(self.gtes),
            gd: bytes(self.gd),
            gd_entries: capacity.div_ceil(window.max(1)),
            rgd,
            overhead: bytes(self.overhead),
            compressed,
            markers: self.flags & flag::MARKERS != 0,
            zero_grain: self.flags & flag::ZERO_GRAIN != 0,
            stream: at != 0 || self.at_end(),
            tables: 0,
            grains: 0,
            next_free: None,
        })
    }

    fn check_test_bytes(&self, cx: &mut Context<'_>, here: &impl Fn(Range<u64>) -> Range<u64>) {
        if self.flags & flag::NEW_LINE_TEST == 0 || self.test == TEST_BYTES {
            return;
        }
        let how = match self.test {
            [b'\r', b'\n', b' ', b'\r'] => "line feeds became CR LF: every byte behind one moved",
            [b'\n', b' ', b'\n', _] => "CR LF became line feeds: bytes were dropped",
            [b'\r', b' ', ..] | [b'\n', b' ', b'\r', b'\r'] => "line ends were translated for a Macintosh",
            _ => "not a known translation of line ends",
        };
        let words =
            format!("the bytes for the line end test are {:02x?} instead of {TEST_BYTES:02x?}: {how}", self.test);
        cx.find(Finding::new(codes::TEXT_MODE, words).host(here(73..77)));
    }

    /// Capacity, grain and table sizes: nothing can be divided or multiplied before this.
    fn sizes(&self, cx: &mut Context<'_>, here: &impl Fn(Range<u64>) -> Range<u64>) -> Option<()> {
        let largest = i64::MAX.unsigned_abs() / SECTOR;
        if self.capacity == 0 || self.capacity > largest {
            let words = format!("a capacity of {} sectors is not possible", self.capacity);
            cx.find(Finding::new(codes::CAPACITY, words).host(here(12..20)));
            cx.could_not("grains: the size of the disk is not known; --assume capacity=SECTORS supplies it");
            return None;
        }
        if self.grain == 0 || self.grain > 0x20_0000 {
            let words = format!("a grain of {} sectors is not possible (1 GiB is the most)", self.grain);
            cx.find(Finding::new(codes::GRAIN_SIZE, words).host(here(20..28)));
            cx.could_not("grains: their size is not known; --assume grain=SECTORS supplies it");
            return None;
        }
        if !self.grain.is_power_of_two() || self.grain <= 8 {
            let words = format!("a grain of {} sectors: a power of two above 8 is allowed", self.grain);
            let severity = crate::code::Severity::Warning;
            cx.find(Finding::new(codes::GRAIN_SIZE, words).severity(severity).host(here(20..28)));
        }
        if self.gtes == 0 || self.gtes > 512 {
            let words = format!(
                "{} entries per grain table: 512 is what every program writes and the most any reads",
                self.gtes
            );
            cx.find(Finding::new(codes::TABLE_SIZE, words).host(here(44..48)));
            if self.gtes == 0 || self.gtes > 4096 {
                cx.could_not("grains: the size of the tables is not known; --assume gtes=512 supplies it");
                return None;
            }
        } else if self.gtes != 512 {
            let words = format!("{} entries per grain table instead of 512", self.gtes);
            let severity = crate::code::Severity::Warning;
            cx.find(Finding::new(codes::TABLE_SIZE, words).severity(severity).host(here(44..48)));
        }
        Some(())
    }
}

/// A COWD header (VMDK-9): version 1, 4096 entries a table, no copies, sectors in 32 bits.
pub(super) fn cowd(cx: &mut Context<'_>, bytes: &[u8]) -> Option<Geometry> {
    let field = |at| le_u32(bytes, at);
    let (version, flags, sectors, grain, gd, gd_size, next_free) =
        (field(4), field(8), field(12), field(16), field(20), field(24), field(28));
    cx.fact("variant", "COWD sparse extent");
    cx.fact("version", version.to_string());
    cx.fact("flags", format!("{flags:#x}"));
    cx.fact("capacity", format!("{sectors} sectors"));
    cx.fact("grain size", format!("{grain} sectors"));
    cx.fact("grain directory", format!("sector {gd}, {gd_size} entries"));
    cx.fact("next free sector", next_free.to_string());
    if version != 1 {
        let words = format!("COWD version {version} where 1 is known");
        cx.find(Finding::new(codes::VERSION, words).host(4..8));
    }
    if sectors == 0 {
        cx.find(Finding::new(codes::CAPACITY, "a capacity of 0 sectors is not possible").host(12..16));
        return None;
    }
    if grain == 0 || grain > 0x20_0000 {
        let words = format!("a grain of {grain} sectors is not possible (1 GiB is the most)");
        cx.find(Finding::new(codes::GRAIN_SIZE, words).host(16..20));
        cx.could_not("grains: their size is not known");
        return None;
    }
    let capacity = u64::from(sectors).saturating_mul(SECTOR);
    let grain = u64::from(grain).saturating_mul(SECTOR);
    let needed = capacity.div_ceil(grain.saturating_mul(4096).max(1));
    if u64::from(gd_size) < needed {
        let words = format!("the grain directory has {gd_size} entries, the disk needs {needed}");
        cx.find(Finding::new(codes::GD_SHORT, words).host(24..28));
        let window = grain.saturating_mul(4096);
        cx.lose(u64::from(gd_size).saturating_mul(window).min(capacity)..capacity);
    }
    let gd = u64::from(gd).saturating_mul(SECTOR);
    let gd_entries = needed.min(u64::from(gd_size));
    Some(Geometry {
        kind: Kind::Cowd,
        capacity,
        grain,
        gtes: 4096,
        gd,
        gd_entries,
        rgd: None,
        overhead: gd.saturating_add(gd_entries.saturating_mul(4)),
        compressed: false,
        markers: false,
        zero_grain: false,
        stream: false,
        tables: 0,
        grains: 0,
        next_free: Some(u64::from(next_free).saturating_mul(SECTOR)),
    })
}

/// Areas of a seSparse extent apart from directory, tables and grains, with their names; the index is what a claim
/// carries.
pub(super) const SE_AREAS: [(&str, usize); 5] =
    [("volatile header", 80), ("journal header", 96), ("journal", 112), ("free bitmap", 160), ("backmap", 176)];

/// A seSparse header (VMDK-9), with the areas that are neither tables nor grains.
pub(super) fn se_sparse(cx: &mut Context<'_>, bytes: &[u8]) -> (Option<Geometry>, Vec<Range<u64>>) {
    let field = |at| le_u64(bytes, at);
    let area = |at: usize| {
        let start = field(at).saturating_mul(SECTOR);
        start..start.saturating_add(field(at.saturating_add(8)).saturating_mul(SECTOR))
    };
    let (version, capacity, grain, table) = (field(8), field(16), field(24), field(32));
    cx.fact("variant", "seSparse extent");
    cx.fact("version", format!("{version:#x}"));
    cx.fact("capacity", format!("{capacity} sectors"));
    cx.fact("grain size", format!("{grain} sectors"));
    cx.fact("grain table size", format!("{table} sectors"));
    let areas: Vec<Range<u64>> = SE_AREAS.iter().map(|(_, at)| area(*at)).collect();
    let (gd, tables, grains) = (area(128), area(144), area(192));
    if version != 0x2_0000_0001 {
        let words = format!("seSparse version {version:#x} where 0x200000001 is known");
        cx.find(Finding::new(codes::VERSION, words).host(8..16));
    }
    if field(40) != 0 {
        let words = format!("seSparse flags {:#x}: none is known", field(40));
        cx.find(Finding::new(codes::FLAGS, words).host(40..48));
    }
    // 64 TiB, in sectors.
    if capacity == 0 || capacity > 1 << 37 {
        let words = format!("a capacity of {capacity} sectors is not possible (64 TiB is the most)");
        cx.find(Finding::new(codes::CAPACITY, words).host(16..24));
        return (None, areas);
    }
    if grain != 8 {
        let words = format!("a grain of {grain} sectors: seSparse has 8");
        cx.find(Finding::new(codes::GRAIN_SIZE, words).host(24..32));
        cx.could_not("grains: their size is not known");
        return (None, areas);
    }
    if table != 64 {
        let words = format!("a grain table of {table} sectors: seSparse has 64");
        cx.find(Finding::new(codes::TABLE_SIZE, words).host(32..40));
        cx.could_not("grains: the size of the tables is not known");
        return (None, areas);
    }
    for (range, name) in [(&gd, "grain directory"), (&tables, "grain tables"), (&grains, "grains")] {
        if range.start % 4096 != 0 {
            let words = format!("the {name} of a seSparse extent begin at {:#x}, not on 4 KiB", range.start);
            cx.find(Finding::new(codes::SE_ALIGNMENT, words).host(range.clone()));
        }
    }
    volatile_header(cx, &areas);
    let bytes_of = |sectors: u64| sectors.saturating_mul(SECTOR);
    let window: u64 = 8 * SECTOR * 4096;
    let needed = bytes_of(capacity).div_ceil(window);
    let entries = gd.end.saturating_sub(gd.start) / 8;
    if entries < needed {
        let words = format!("the grain directory has {entries} entries, the disk needs {needed}");
        cx.find(Finding::new(codes::GD_SHORT, words).host(gd.clone()));
        cx.lose(entries.saturating_mul(window).min(bytes_of(capacity))..bytes_of(capacity));
    }
    let geometry = Geometry {
        kind: Kind::SeSparse,
        capacity: bytes_of(capacity),
        grain: 4096,
        gtes: 4096,
        gd: gd.start,
        gd_entries: entries.min(needed),
        rgd: None,
        overhead: grains.start,
        compressed: false,
        markers: false,
        zero_grain: false,
        stream: false,
        tables: tables.start,
        grains: grains.start,
        next_free: None,
    };
    (Some(geometry), areas)
}

/// The second header of seSparse: its magic, and whether its journal waits to be replayed.
fn volatile_header(cx: &mut Context<'_>, areas: &[Range<u64>]) {
    let Some(area) = areas.first().cloned() else { return };
    let bytes = cx.read(area.start, 512, "the volatile header");
    if le_u64(&bytes, 0) != 0xcafe_cafe {
        let words = format!("the volatile header at {:#x} has no magic", area.start);
        cx.find(Finding::new(codes::SE_VOLATILE, words).host(area.start..area.start.saturating_add(512)));
        return;
    }
    if le_u64(&bytes, 24) != 0 {
        let words = "the journal was not replayed: tables in the file may be behind it".to_owned();
        let at = area.start.saturating_add(24);
        cx.find(Finding::new(codes::UNCLEAN, words).confidence(Confidence::Likely).host(at..at.saturating_add(8)));
        cx.not_checked("the seSparse journal: it is not replayed here, ESX does that when it opens the disk");
    }
}
