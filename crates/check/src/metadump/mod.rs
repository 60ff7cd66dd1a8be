//! Metadumps: what of an image a check reads of its metadata, and nothing of its guest.
//!
//! Model: the answer of a check depends on the bytes it reads. So a check is run over a source that takes note of them
//! (`record`), and told to draw the map of the file, which says what each byte is. Dumped is what was read *and* is
//! metadata. Guest data, compressed data, VM state, leaked and free space are left out, read or not.
//!
//! Two stretches that are no metadata are needed for the same answer, and blanked. Outside qcow2, whether space that
//! nobody claims is zero tells leaks from room never used: what was read of it and is not zero is filled with one byte.
//! And a table that something else was written over may hold a guest's bytes: words that can not be pointers are
//! replaced by one that is wrong in the same way, and text is blanked wherever the format has none (`scrub`). Of a
//! compressed grain of VMDK the marker before it is metadata: the 12 bytes at each place a grain table names are
//! dumped, not the grain.
//!
//! Names (`names`) become other names of the same length, different ones where they were different. Checksums over them
//! that were right are right again.
//!
//! Memory: ranges read and ranges of metadata, up to a quarter of [`Options::memory`] each. A check that reads more
//! pieces than that is taken to have read everything, which only adds unused bytes of metadata. Key material of
//! encrypted images is dumped only as far as a check reads it, which is their headers.

mod names;
mod record;
mod scrub;

use std::io;
use std::ops::Range;
use std::sync::Mutex;

use rangemap::RangeSet;

use crate::map::Class;
use crate::report::Report;
use crate::source::Source;
use crate::watch::{Event, Progress, Wants, Watch};
use crate::{Format, Options, Verdict, check};

use record::Recorder;
use scrub::Scrub;

/// Bytes of a piece at most.
const PIECE: u64 = 1 << 20;
/// Zeroes of this length are left out: holes of the dump.
const HOLE: usize = 512;
/// Bytes a range costs in a set, roughly.
const RANGE_COST: u64 = 64;
/// What stands for bytes that are not zero, in space nobody claims.
const FILLER: u8 = b'x';
/// Beginning of a file of which no map can be drawn that is kept all the same: a sector, if its magic says that it is a
/// header; else as much as a damaged header can be recognised by.
const HEAD: (u64, u64) = (512, 112);

/// Takes the pieces of a dump. The library itself writes nothing.
pub trait Sink {
    /// The length of the whole dump, which is that of the image; once, before any piece.
    ///
    /// # Errors
    /// As the medium says; the dump ends there.
    fn begin(&mut self, len: u64) -> io::Result<()>;

    /// Bytes at a place; in order, apart. What no piece says is zero.
    ///
    /// # Errors
    /// As the medium says; the dump ends there.
    fn piece(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;
}

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Which bytes are metadata is not known.
    #[error("what of it is metadata is not known: {0}")]
    Unsupported(String),
    /// Somebody asked to stop.
    #[error("it was stopped before all metadata was read")]
    Stopped,
    /// Somebody writes to the image, or did.
    #[error("the image changed while it was read: stop the writer first")]
    Changed,
    /// Names that can not be blanked.
    #[error("a name is also in {0}, where it can not be blanked; with --keep-names it stays there")]
    NameStays(&'static str),
    /// Metadata in more pieces than memory holds.
    #[error("the metadata is in too many pieces for {0} bytes of memory (--memory)")]
    Memory(u64),
    /// The image could not be read once more.
    #[error("reading {len} bytes at {at:#x}")]
    Read {
        /// First byte.
        at: u64,
        /// Bytes.
        len: usize,
        /// As the operating system says.
        source: io::Error,
    },
    /// The sink did not take it.
    #[error("writing the dump")]
    Write(#[source] io::Error),
}

/// What was dumped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dumped {
    /// Bytes given to the sink.
    pub bytes: u64,
    /// Names blanked.
    pub names: u64,
    /// Metadata that guest data claims as well: words there that can be pointers were kept.
    pub shared: Vec<Range<u64>>,
    /// What the check that was recorded said.
    pub verdict: Option<Verdict>,
}

/// Dumps the metadata of an image. `keep_names` leaves names and unknown extensions as they are.
///
/// [`Options::data`] and [`Options::allow_backing`] are taken as not set: the first needs compressed data, the second
/// other files.
///
/// # Errors
/// [`Error`] says why there is no dump; what the sink was given until then is a part of one.
pub fn metadump(
    image: &dyn Source,
    options: &Options,
    keep_names: bool,
    watch: &dyn Watch,
    sink: &mut dyn Sink,
) -> Result<Dumped, Error> {
    let options = Options { data: false, allow_backing: false, cells: 0, ..options.clone() };
    let most = usize::try_from(options.memory / 4 / RANGE_COST).unwrap_or(usize::MAX).max(4096);
    let recorder = Recorder::new(image, most);
    let mapper = Mapper { watch, map: Mutex::default(), most };
    let before = image.stamp();
    let report = check(&recorder, &options, &mapper);
    if report.stopped {
        return Err(Error::Stopped);
    }
    if before != image.stamp() {
        return Err(Error::Changed);
    }
    let format = match (report.format, report.verdict) {
        (Some(format), verdict) if verdict != Verdict::Unsupported => format,
        _ => return Err(Error::Unsupported(report.not_checked.first().cloned().unwrap_or_default())),
    };
    let map = mapper.map.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if map.full {
        return Err(Error::Memory(options.memory));
    }
    let mut plan = Plan::new(&report, format, map, recorder.into_reads(image.len()));
    if format == Format::Vmdk {
        plan.markers(image, &report, &options)?;
    }
    let edits = names::edits(image, format, &options, keep_names);
    plan.text(&edits.text);
    let scrub = Scrub::new(image, format, &options);
    sink.begin(image.len()).map_err(Error::Write)?;
    let mut dumped = Dumped {
        names: edits.names,
        shared: plan.shared.iter().cloned().collect(),
        verdict: Some(report.verdict),
        ..Dumped::default()
    };
    plan.emit(image, &edits, &scrub, watch, sink, &mut dumped)?;
    Ok(dumped)
}

/// Draws the map of the file, and passes everything else on.
struct Mapper<'w> {
    watch: &'w dyn Watch,
    map: Mutex<Map>,
    most: usize,
}

#[derive(Default)]
struct Map {
    /// Stretches that are the format's own, and nobody else's.
    metadata: RangeSet<u64>,
    /// Tables of pointers among them.
    pointers: RangeSet<u64>,
    /// Claimed twice.
    conflicts: RangeSet<u64>,
    /// Blocks of reference counts among them.
    counts: RangeSet<u64>,
    /// Compressed data.
    compressed: RangeSet<u64>,
    /// Nobody's.
    vacant: RangeSet<u64>,
    /// What the file begins with.
    first: Option<Class>,
    full: bool,
}

impl Watch for Mapper<'_> {
    fn wants(&self) -> Wants {
        Wants::HOST
    }

    fn event(&self, event: &Event<'_>) {
        let Event::Host(range, class) = event else { return };
        if range.is_empty() {
            return;
        }
        let mut map = self.map.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if map.metadata.len().saturating_add(map.conflicts.len()) >= self.most {
            map.full = true;
            return;
        }
        if range.start == 0 {
            map.first = Some(*class);
        }
        match class {
            Class::Conflict => map.conflicts.insert(range.clone()),
            class if class.is_metadata() => {
                map.metadata.insert(range.clone());
                if is_pointers(*class) {
                    map.pointers.insert(range.clone());
                } else if *class == Class::RefcountBlock {
                    map.counts.insert(range.clone());
                }
            }
            Class::Compressed if map.compressed.len() < self.most => map.compressed.insert(range.clone()),
            Class::Free | Class::Leaked | Class::Reserved | Class::Unknown if map.vacant.len() < self.most => {
                map.vacant.insert(range.clone());
            }
            _ => {}
        }
    }

    fn progress(&self, progress: Progress) {
        self.watch.progress(progress);
    }

    fn stop(&self) -> bool {
        self.watch.stop()
    }
}

fn is_pointers(class: Class) -> bool {
    matches!(
        class,
        Class::L1
            | Class::L2
            | Class::BlockMap
            | Class::RefcountTable
            | Class::SnapshotL1
            | Class::SnapshotL2
            | Class::BitmapTable
    )
}

/// Bytes before a compressed grain: its sector on the disk, and its length.
const MARKER: u64 = 12;
/// Flag in a VMDK header: grains are compressed and have markers.
const COMPRESSED: u32 = 1 << 16;

/// What becomes of a stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Keep,
    Blank,
    Markers,
}

/// What is dumped.
struct Plan {
    /// As it is, but for names.
    keep: RangeSet<u64>,
    /// Of these, tables of pointers, where nothing else is kept.
    pointers: RangeSet<u64>,
    /// Of these, reference counts.
    counts: RangeSet<u64>,
    /// Only whether it is zero.
    blank: RangeSet<u64>,
    /// Compressed grains, of which their markers are kept.
    grains: RangeSet<u64>,
    /// Of `keep`, markers of grains.
    markers: RangeSet<u64>,
    /// Of `keep`, what guest data claims as well.
    shared: RangeSet<u64>,
}

impl Plan {
    fn new(report: &Report, format: Format, mut map: Map, reads: RangeSet<u64>) -> Self {
        let mut shared = RangeSet::new();
        // The bits of bitmaps are metadata that no check reads.
        let mut unread = RangeSet::new();
        for claim in report.host.iter().flat_map(|host| &host.claims).filter(|claim| claim.class.is_metadata()) {
            if claim.len == 0 {
                continue;
            }
            for range in map.conflicts.overlapping(&claim.range()) {
                let range = range.start.max(claim.start)..range.end.min(claim.range().end);
                shared.insert(range.clone());
                if is_pointers(claim.class) {
                    map.pointers.insert(range);
                } else if claim.class == Class::RefcountBlock {
                    map.counts.insert(range);
                }
            }
            if claim.class == Class::BitmapData {
                unread.insert(claim.range());
            }
        }
        for range in shared.iter() {
            map.metadata.insert(range.clone());
        }
        let orphans = ["ORPHAN-L1", "ORPHAN-L2", "L2-ORPHAN"];
        let is_orphan = |name: &str| orphans.iter().any(|orphan| name.ends_with(orphan));
        for finding in report.findings.iter().filter(|finding| is_orphan(finding.code.name)) {
            for range in finding.host.iter().filter(|range| !range.is_empty()) {
                map.metadata.insert(range.clone());
                map.pointers.insert(range.clone());
            }
        }
        if !map.first.is_some_and(|class| class.is_metadata() || class.is_data() || class == Class::Conflict) {
            map.metadata.insert(0..if report.probed { HEAD.0 } else { HEAD.1 });
        }
        let mut keep = intersection(&map.metadata, &reads);
        for range in unread.iter() {
            for inside in map.metadata.overlapping(range) {
                keep.insert(inside.start.max(range.start)..inside.end.min(range.end));
            }
        }
        // What lies in free clusters of qcow2 says nothing about them: their counts do.
        let blank = if format == Format::Qcow2 { RangeSet::new() } else { intersection(&map.vacant, &reads) };
        let grains = if format == Format::Vmdk { map.compressed } else { RangeSet::new() };
        Self {
            shared: intersection(&shared, &keep),
            pointers: intersection(&map.pointers, &keep),
            counts: intersection(&map.counts, &keep),
            keep,
            blank,
            grains,
            markers: RangeSet::new(),
        }
    }

    /// Keeps text of the format's own that the map has no place for, since the tables beside it are gone.
    fn text(&mut self, text: &RangeSet<u64>) {
        for range in intersection(text, &self.blank).iter() {
            self.keep.insert(range.clone());
        }
    }

    /// Keeps the markers of compressed grains: where the grain tables say that they are, and where there are no tables,
    /// one behind the other.
    fn markers(&mut self, image: &dyn Source, report: &Report, options: &Options) -> Result<(), Error> {
        let mut flags = [0u8; 12];
        let compressed = image.read_at(0, &mut flags).is_ok() && crate::bytes::le_u32(&flags, 8) & COMPRESSED != 0;
        if !flags.starts_with(b"KDMV") || !compressed {
            return Ok(());
        }
        let tables = report.host.iter().flat_map(|host| &host.claims).filter(|claim| claim.class == Class::L2);
        for table in tables {
            let bytes = read(image, table.start, table.range().end.min(image.len()))?;
            for entry in bytes.as_chunks::<4>().0 {
                let at = u64::from(u32::from_le_bytes(*entry)).saturating_mul(512);
                let end = at.saturating_add(MARKER).min(image.len());
                if at > 512 && at < end {
                    self.keep.insert(at..end);
                    self.markers.insert(at..end);
                    self.grains = RangeSet::new();
                }
            }
            if (self.keep.len() as u64).saturating_mul(RANGE_COST) > options.memory {
                return Err(Error::Memory(options.memory));
            }
        }
        Ok(())
    }

    fn emit(
        &self,
        image: &dyn Source,
        edits: &names::Edits,
        scrub: &Scrub,
        watch: &dyn Watch,
        sink: &mut dyn Sink,
        dumped: &mut Dumped,
    ) -> Result<(), Error> {
        let total = self.keep.iter().fold(0u64, |all, range| all.saturating_add(range.end.saturating_sub(range.start)));
        let mut done = 0u64;
        let mut all: Vec<(Range<u64>, How)> = self.keep.iter().map(|range| (range.clone(), How::Keep)).collect();
        for (ranges, how) in [(&self.blank, How::Blank), (&self.grains, How::Markers)] {
            for range in ranges.iter() {
                // What is kept is not blanked too.
                all.extend(self.keep.gaps(range).map(|gap| (gap, how)));
            }
        }
        all.sort_unstable_by_key(|(range, _)| range.start);
        for (range, how) in all {
            let mut at = range.start;
            while how == How::Markers && at < range.end {
                let mut marker = read(image, at, range.end.min(at.saturating_add(MARKER)))?;
                scrub::marker(&mut marker);
                sink.piece(at, &marker).map_err(Error::Write)?;
                dumped.bytes = dumped.bytes.saturating_add(marker.len() as u64);
                let len = MARKER.saturating_add(u64::from(crate::bytes::le_u32(&marker, 8)));
                at = at.saturating_add(len).checked_next_multiple_of(512).unwrap_or(u64::MAX);
                if watch.stop() {
                    return Err(Error::Stopped);
                }
            }
            while at < range.end {
                // Pieces begin where words do.
                let end = range.end.min((at / PIECE).saturating_add(1).saturating_mul(PIECE));
                let mut bytes = read(image, at, end)?;
                if how == How::Keep {
                    for table in self.pointers.overlapping(&(at..end)) {
                        let part = table.start.max(at)..table.end.min(end);
                        if let Some(words) = slice(&mut bytes, at, &part) {
                            scrub.words(part.start, words);
                        }
                    }
                    for block in self.counts.overlapping(&(at..end)) {
                        let part = block.start.max(at)..block.end.min(end);
                        if let Some(counts) = slice(&mut bytes, at, &part) {
                            scrub.counts(counts);
                        }
                    }
                    for marker in self.markers.overlapping(&(at..end)) {
                        if let Some(marker) = slice(&mut bytes, at, marker) {
                            scrub::marker(marker);
                        }
                    }
                    scrub.text(at, &mut bytes, &edits.text);
                    edits.apply(at, &mut bytes);
                    edits.refuse(&bytes)?;
                } else {
                    blank(&mut bytes);
                }
                for (from, part) in pieces(&bytes) {
                    sink.piece(at.saturating_add(from), part).map_err(Error::Write)?;
                    dumped.bytes = dumped.bytes.saturating_add(part.len() as u64);
                }
                done = done.saturating_add(end.saturating_sub(at));
                watch.progress(Progress { phase: "dumping metadata", done, total: total.max(done) });
                if watch.stop() {
                    return Err(Error::Stopped);
                }
                at = end;
            }
        }
        Ok(())
    }
}

/// The part of `bytes`, which begin at `at`, that lies in a range.
fn slice<'b>(bytes: &'b mut [u8], at: u64, range: &Range<u64>) -> Option<&'b mut [u8]> {
    let from = usize::try_from(range.start.checked_sub(at)?).ok()?;
    let to = usize::try_from(range.end.checked_sub(at)?).ok()?.min(bytes.len());
    bytes.get_mut(from..to)
}

/// Bytes of the image; what the medium does not give is zero, as the check that was recorded took it.
fn read(image: &dyn Source, at: u64, end: u64) -> Result<Vec<u8>, Error> {
    let len = usize::try_from(end.saturating_sub(at)).unwrap_or(0);
    let mut bytes = vec![0u8; len];
    match image.read_at(at, &mut bytes) {
        Ok(read) if read == len => Ok(bytes),
        Ok(_) => Err(Error::Changed),
        Err(source) => {
            bytes.fill(0);
            let mut any = false;
            for (start, sector) in (at..end).step_by(512).zip(bytes.chunks_mut(512)) {
                match image.read_at(start, sector) {
                    Ok(_) => any = true,
                    Err(_) => sector.fill(0),
                }
            }
            if any { Ok(bytes) } else { Err(Error::Read { at, len, source }) }
        }
    }
}

fn blank(bytes: &mut [u8]) {
    for sector in bytes.chunks_mut(512) {
        if !crate::bytes::is_zero(sector) {
            sector.fill(FILLER);
        }
    }
}

/// The stretches that are not zero, with where they begin.
fn pieces(bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut all = Vec::new();
    let mut open: Option<usize> = None;
    let mut at = 0usize;
    for chunk in bytes.chunks(HOLE) {
        let zero = crate::bytes::is_zero(chunk);
        if let Some(from) = open.filter(|_| zero) {
            all.extend(bytes.get(from..at).map(|part| (from as u64, part)));
            open = None;
        } else if !zero && open.is_none() {
            open = Some(at);
        }
        at = at.saturating_add(chunk.len());
    }
    if let Some(from) = open {
        all.extend(bytes.get(from..).map(|part| (from as u64, part)));
    }
    all
}

fn intersection(a: &RangeSet<u64>, b: &RangeSet<u64>) -> RangeSet<u64> {
    a.intersection(b).collect()
}
