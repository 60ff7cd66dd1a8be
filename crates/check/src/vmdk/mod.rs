//! VMDK: sparse extents (hosted, stream-optimized, COWD, seSparse), and the descriptor files that put a disk together.
//!
//! A sparse extent is `header, descriptor, redundant grain directory and tables, grain directory, grain tables,
//! grains`: the directory names tables, a table names 512 grains (4096 in COWD and seSparse) by their sector. Both
//! directory and tables of a hosted extent usually exist twice. A stream-optimized extent has its directory behind the
//! grains, in the order it was written, and each grain is a zlib stream behind a marker.
//!
//! Order of analysis: header (and footer) → geometry; descriptor; where all metadata lies, and what of it overlaps
//! (`metadata`); a first walk over all tables that judges every entry against that, compares both copies and maps the
//! guest's disk (`survey`); then who shares grains and what nobody refers to (`share`), or, where grains are
//! compressed, their markers and, if asked for, their content (`stream`). A descriptor file's extents are each analysed
//! like that (`extents`).
//!
//! Sources: VMware "Virtual Disk Format 5.0"; libvmdk's documentation for COWD and seSparse.

pub(crate) mod codes;

mod descriptor;
mod extents;
mod geometry;
mod header;
mod metadata;
mod share;
mod stream;
mod survey;
mod tables;

use std::ops::Range;

use crate::bytes::{is_zero, le_u32, le_u64};
use crate::code::Severity;
use crate::context::Context;
use crate::finding::{Confidence, Finding};
use crate::map::{Claim, Class, GuestState};
use crate::report::Cause;

use descriptor::Descriptor;
use geometry::{Geometry, Kind, SECTOR};
use header::Hosted;
use metadata::{FOOTER, Metadata};
use survey::{Judge, Survey};
use tables::{Halt, Walk, walk};

/// Entries of a directory from which on no program reads it.
const GD_MAX: u64 = 32 << 20;

pub(crate) fn analyse(cx: &mut Context<'_>) {
    let head = cx.read(0, 512, "the header");
    if head.starts_with(descriptor::MAGIC) {
        extents::analyse(cx);
        return;
    }
    sparse(cx, None);
    let sound = "guest data has no checksums in this format: only its place is known to be right";
    cx.not_checked(if cx.options.data {
        "content of grains: only that compressed ones inflate was tested"
    } else {
        sound
    });
}

/// Whether it begins like a sparse extent of any variant.
fn is_sparse(head: &[u8]) -> bool {
    head.starts_with(b"KDMV") || head.starts_with(b"COWD") || le_u64(head, 0) == 0xcafe_babe
}

/// Checks a sparse extent. `part_of` is where it begins on the disk if it is one extent of several. Its size, if known.
fn sparse(cx: &mut Context<'_>, part_of: Option<u64>) -> Option<u64> {
    let head = cx.read(0, 512, "the header");
    let mut image = Image { base: part_of.unwrap_or(0), top: part_of.is_none(), areas: Vec::new(), footer: None };
    let geo = if head.starts_with(b"COWD") {
        header::cowd(cx, &head)
    } else if le_u64(&head, 0) == 0xcafe_babe {
        let (geo, areas) = header::se_sparse(cx, &head);
        image.areas = areas;
        geo
    } else if head.starts_with(b"KDMV") {
        return hosted(cx, image, Hosted::parse(&head));
    } else {
        let words =
            format!("the file begins with {:02x?} instead of a VMDK's magic", head.get(..4).unwrap_or_default());
        cx.find(Finding::new(codes::MAGIC, words).host(0..cx.file_len().min(4)));
        return match reconstruct(cx, &head) {
            Some(fields) => {
                let words = format!(
                    "capacity {} sectors, grains of {}, directories at sectors {} and {}",
                    fields.capacity, fields.grain, fields.rgd, fields.gd
                );
                let finding = Finding::new(codes::RECONSTRUCTED, words).host(0..512).confidence(Confidence::Likely);
                cx.find(finding);
                hosted(cx, image, fields)
            }
            None => {
                cx.could_not("grains: nothing left tells where the tables are");
                unknown_map(cx);
                None
            }
        };
    };
    let Some(geo) = geo else {
        unknown_map(cx);
        return None;
    };
    analyse_tables(cx, &image, geo, Vec::new())
}

/// What belongs to an extent apart from its tables.
struct Image {
    base: u64,
    top: bool,
    areas: Vec<Range<u64>>,
    /// Where the footer's marker is, of a true stream.
    footer: Option<u64>,
}

/// A map of which only the length is known.
fn unknown_map(cx: &mut Context<'_>) {
    let len = cx.file_len();
    cx.map_host(SECTOR, Vec::new());
    cx.add_host(0..len, Class::Unknown);
}

fn hosted(cx: &mut Context<'_>, mut image: Image, stored: Hosted) -> Option<u64> {
    let mut fields = stored;
    assume(cx, &mut fields);
    if image.top {
        fields.tell(cx);
    }
    let file = cx.file_len();
    let mut at = 0;
    let mut salvage = false;
    if fields.at_end() {
        match stream::footer(cx) {
            Some(footer) => {
                if footer.behind > 0 {
                    let words = format!(
                        "{} bytes follow the end marker: readers look for the footer at the very end",
                        footer.behind
                    );
                    let end = footer.at.saturating_add(1536);
                    cx.find(Finding::new(codes::FOOTER, words).host(end..file));
                }
                compare_footer(cx, &fields, &footer.header, footer.at);
                image.footer = Some(footer.at);
                at = footer.at.saturating_add(SECTOR);
                fields = footer.header;
                assume(cx, &mut fields);
            }
            None => salvage = true,
        }
    }
    let (front, text) = front(cx, &fields);
    let stated = fields.capacity;
    if let Some(sectors) = text.as_ref().and_then(|(text, _)| believable(cx, &fields, text)) {
        let words = format!(
            "the directory of {stated} sectors would not fit in front of the grains, that of the descriptor's {sectors} does: \
             the latter is used"
        );
        cx.find(Finding::new(codes::CAPACITY, words).host(12..20));
        fields.capacity = sectors;
    }
    let Some(mut geo) = fields.geometry(cx, at) else {
        unknown_map(cx);
        return None;
    };
    cx.fact("virtual size", geo.capacity.to_string());
    if geo.capacity / 1000 > file {
        cx.fact("virtual size by file size", geo.capacity.checked_div(file.max(1)).unwrap_or(0).to_string());
    }
    if let Some((descriptor, place)) = &text {
        descriptor.check(cx, place.clone(), image.top);
        if image.top {
            descriptor.check_embedded(cx, place.clone(), fields.capacity);
            extents::parent(cx, descriptor, place.clone());
        }
    }
    if salvage {
        if image.top {
            cx.map_guest(geo.capacity, geo.grain);
        }
        cx.numbers.total_clusters = Some(geo.grain_count());
        cx.numbers.image_end_offset = Some(file);
        stream::salvage(cx, &geo, image.base, front);
        return Some(geo.capacity);
    }
    if geo.overhead > file {
        let words = format!("the file is {file:#x} bytes long, its metadata alone {:#x}", geo.overhead);
        cx.find(Finding::new(codes::OVERHEAD, words).host(64..72));
    }
    place_directories(cx, &mut geo)?;
    let descriptors = front.into_iter().filter(|claim| claim.class == Class::Descriptor).collect();
    analyse_tables(cx, &image, geo, descriptors)
}

/// The descriptor's capacity, where the header's is not possible and this one is (H19: a huge capacity in a small
/// file).
fn believable(cx: &Context<'_>, fields: &Hosted, text: &Descriptor) -> Option<u64> {
    if cx.options.assume.value("capacity").is_some() || fields.at_end() || fields.grain == 0 || fields.gtes == 0 {
        return None;
    }
    let end = |capacity: u64| {
        let tables = capacity.div_ceil(fields.grain.saturating_mul(u64::from(fields.gtes)).max(1));
        fields.gd.saturating_mul(SECTOR).saturating_add(tables.saturating_mul(4))
    };
    let limit = fields.overhead.saturating_mul(SECTOR).min(cx.file_len());
    let sectors = text.sectors().filter(|sectors| *sectors > 0 && *sectors != fields.capacity)?;
    (end(fields.capacity) > limit && end(sectors) <= limit).then_some(sectors)
}

/// Replaces fields by what the user says.
fn assume(cx: &mut Context<'_>, fields: &mut Hosted) {
    let value = |name| cx.options.assume.value(name);
    let gtes = value("gtes").and_then(|gtes| u32::try_from(gtes).ok());
    (fields.capacity, fields.grain) =
        (value("capacity").unwrap_or(fields.capacity), value("grain").unwrap_or(fields.grain));
    (fields.gd, fields.rgd) = (value("gd").unwrap_or(fields.gd), value("rgd").unwrap_or(fields.rgd));
    fields.gtes = gtes.unwrap_or(fields.gtes);
}

/// Header and footer of a stream say the same, the directory's place apart.
fn compare_footer(cx: &mut Context<'_>, header: &Hosted, footer: &Hosted, at: u64) {
    let mut differ = Vec::new();
    for (name, one, other) in [
        ("version", u64::from(header.version), u64::from(footer.version)),
        ("flags", u64::from(header.flags), u64::from(footer.flags)),
        ("capacity", header.capacity, footer.capacity),
        ("grain size", header.grain, footer.grain),
        ("entries per table", u64::from(header.gtes), u64::from(footer.gtes)),
        ("compression", u64::from(header.algorithm), u64::from(footer.algorithm)),
    ] {
        if one != other {
            differ.push(format!("{name} {one} and {other}"));
        }
    }
    if footer.at_end() {
        differ.push("the footer has no place for the directory either".to_owned());
    }
    if !differ.is_empty() {
        let words = format!("header and footer differ: {}", differ.join(", "));
        let at = at.saturating_add(SECTOR);
        cx.find(Finding::new(codes::FOOTER_DIFFERS, words).host(at..at.saturating_add(SECTOR)));
    }
}

/// Header and descriptor: their claims, and the descriptor's text.
fn front(cx: &mut Context<'_>, fields: &Hosted) -> (Vec<Claim>, Option<(Descriptor, Range<u64>)>) {
    let mut claims = vec![Claim { start: 0, len: 512, class: Class::Header, index: 0 }];
    if fields.descriptor == 0 || fields.descriptor_len == 0 {
        return (claims, None);
    }
    let start = fields.descriptor.saturating_mul(SECTOR);
    let len = fields.descriptor_len.saturating_mul(SECTOR);
    let file = cx.file_len();
    let mut place = start..start.saturating_add(len).min(file.max(start));
    // An area that reaches over the tables is a wrong length, and no reason to doubt the tables.
    let behind = [fields.rgd, fields.gd, fields.overhead].into_iter().map(|sector| sector.saturating_mul(SECTOR));
    if let Some(next) = behind.filter(|at| *at > start).min().filter(|next| *next < place.end) {
        let words =
            format!("the descriptor's area {start:#x}..{:#x} reaches over tables or grains at {next:#x}", place.end);
        cx.find(Finding::new(codes::DESCRIPTOR_AREA, words).severity(Severity::Warning).host(36..44));
        place.end = next;
    }
    let len = place.end.saturating_sub(start);
    let limit = len.min(descriptor::MAX);
    let bytes =
        if start < file { cx.read(start, usize::try_from(limit).unwrap_or(0), "the descriptor") } else { Vec::new() };
    if start < file {
        claims.push(Claim { start, len: place.end.saturating_sub(start), class: Class::Descriptor, index: 0 });
    }
    let why = if start >= file {
        Some(format!("begins behind the end of the file ({file:#x})"))
    } else if is_zero(&bytes) {
        // Extents of a disk of several files keep the space and leave it empty.
        cx.not_checked("the descriptor: this extent has none of its own");
        return (claims, None);
    } else if !is_descriptor(&bytes) {
        Some("does not begin like a descriptor".to_owned())
    } else {
        None
    };
    if let Some(why) = why {
        let words = format!("the embedded descriptor at {start:#x} {why}");
        cx.find(Finding::new(codes::DESCRIPTOR_AREA, words).host(place));
        return (claims, None);
    }
    (claims, Some((Descriptor::parse(&bytes), place)))
}

/// Kindly: any case, any spaces.
fn is_descriptor(bytes: &[u8]) -> bool {
    let line: Vec<u8> =
        bytes.iter().take(64).filter(|byte| !byte.is_ascii_whitespace()).map(u8::to_ascii_lowercase).collect();
    line.starts_with(b"#diskdescriptorfile")
}

/// Sees to it that the directory can be read; where the first one can not, the redundant one takes its place.
fn place_directories(cx: &mut Context<'_>, geo: &mut Geometry) -> Option<()> {
    let file = cx.file_len();
    if geo.gd_entries > GD_MAX {
        let words =
            format!("the capacity needs a directory of {} entries; programs read {GD_MAX} at most", geo.gd_entries);
        cx.find(Finding::new(codes::CAPACITY, words).host(12..20));
    }
    let len = geo.gd_len();
    let inside = |at: u64| at != 0 && at.checked_add(len).is_some_and(|end| end <= file);
    if let Some(rgd) = geo.rgd
        && !inside(rgd)
    {
        let words = format!("the redundant directory ({len} bytes at {rgd:#x}) does not lie in the file ({file:#x})");
        // Unlike a flawed entry of it, this keeps readers from opening the image at all.
        cx.find(Finding::new(codes::RGD, words).severity(Severity::Corruption).host(48..56));
        geo.rgd = None;
    }
    if inside(geo.gd) {
        return Some(());
    }
    let rest = if geo.rgd.is_some() { "; the redundant directory is used instead" } else { "" };
    let words = format!("the directory ({len} bytes at {:#x}) does not lie in the file ({file:#x}){rest}", geo.gd);
    let guest = 0..geo.capacity;
    cx.find(Finding::new(codes::GD_OUTSIDE, words).host(56..64).guest(guest));
    if let Some(rgd) = geo.rgd.take() {
        geo.gd = rgd;
        return Some(());
    }
    // What there is of it is still read; the rest is gone.
    let end = if geo.overhead > geo.gd { geo.overhead.min(file) } else { file };
    let there = if geo.gd == 0 { 0 } else { geo.entries_in(end.saturating_sub(geo.gd)) };
    geo.gd_entries = geo.gd_entries.min(there);
    cx.lose(geo.windows(0..geo.gd_entries).end..geo.capacity);
    if there == 0 {
        cx.could_not("grains: without a directory no table can be found; --assume gd=SECTOR supplies its place");
        unknown_map(cx);
        return None;
    }
    Some(())
}

/// Everything that needs the tables.
fn analyse_tables(cx: &mut Context<'_>, image: &Image, mut geo: Geometry, descriptors: Vec<Claim>) -> Option<u64> {
    if image.top {
        cx.map_guest(geo.capacity, geo.grain);
    }
    if geo.kind != Kind::Hosted {
        cx.fact("virtual size", geo.capacity.to_string());
        let end = geo.gd.checked_add(geo.gd_len());
        if geo.gd == 0 || end.is_none_or(|end| end > cx.file_len()) {
            let words = format!("the directory ({} bytes at {:#x}) does not lie in the file", geo.gd_len(), geo.gd);
            cx.find(Finding::new(codes::GD_OUTSIDE, words).guest(0..geo.capacity));
            let there = if geo.gd == 0 { 0 } else { geo.entries_in(cx.file_len().saturating_sub(geo.gd)) };
            geo.gd_entries = geo.gd_entries.min(there);
            cx.lose(geo.windows(0..geo.gd_entries).end..geo.capacity);
        }
    }
    let mut meta = Metadata::new(cx);
    let result = tables(cx, image, &geo, &mut meta, &descriptors);
    if result == Err(Halt::Full) {
        cx.could_not("grains: the memory allowed is not enough even for the smallest part; --memory gives more");
    }
    Some(geo.capacity)
}

fn tables(
    cx: &mut Context<'_>,
    image: &Image,
    geo: &Geometry,
    meta: &mut Metadata<'_>,
    descriptors: &[Claim],
) -> Result<(), Halt> {
    let file = cx.file_len();
    meta.add(file, 0..SECTOR, Class::Header, 0)?;
    for claim in descriptors {
        meta.add(file, claim.range(), Class::Descriptor, 0)?;
    }
    for (index, area) in image.areas.iter().enumerate() {
        meta.add(file, area.clone(), Class::Metadata, index as u64)?;
    }
    meta.add_tables(cx, geo)?;
    if let Some(footer) = image.footer {
        stream::follow(cx, geo, footer, meta)?;
        meta.add(file, footer..footer.saturating_add(SECTOR), Class::Metadata, metadata::MARKER)?;
        let header = footer.saturating_add(SECTOR);
        meta.add(file, header..header.saturating_add(SECTOR), Class::Copy, FOOTER)?;
        let end = header.saturating_add(SECTOR);
        meta.add(file, end..end.saturating_add(SECTOR), Class::Metadata, metadata::MARKER)?;
    }
    meta.finish(cx, geo);
    if geo.kind == Kind::Hosted && image.footer.is_none() && meta.end() > geo.overhead && geo.overhead <= file {
        let words = format!("the overhead is {:#x} bytes, metadata reach to {:#x}", geo.overhead, meta.end());
        cx.find(Finding::new(codes::OVERHEAD_SMALL, words).host(64..72));
    }
    let judge = Judge { geo, meta, file };
    let mut survey = Survey::new(judge, image.base, cx.watch.wants());
    let how = Walk { phase: "grain tables", first: true, copies: geo.rgd.is_some(), contents: true };
    let walked = walk(cx, geo, how, &mut survey);
    let mut sums = survey.finish(cx);
    // What the directory does not reach: the grains of that part are somewhere, too.
    let known = geo.windows(0..geo.gd_entries).end;
    sums.unknown = sums.unknown.saturating_add(u64::from(known < geo.capacity));
    cx.add_guest(known.saturating_add(image.base)..geo.capacity.saturating_add(image.base), GuestState::Damaged);
    walked?;
    cut_off(cx, geo, &sums);
    cx.numbers.total_clusters = Some(geo.grain_count());
    cx.numbers.allocated_clusters = Some(sums.allocated);
    cx.numbers.fragmented_clusters = Some(sums.fragmented);
    cx.numbers.compressed_clusters = Some(if geo.compressed { sums.allocated } else { 0 });
    cx.map_host(geo.grain, meta.layout.metadata());
    if !geo.compressed {
        cx.numbers.image_end_offset = Some(meta.end().max(sums.end));
        return share::share(cx, judge, &sums);
    }
    cx.numbers.image_end_offset = Some(file);
    if !geo.markers {
        cx.not_checked("lengths of compressed grains: there are no markers to tell them");
    }
    stream::inspect(cx, judge, &sums)
}

/// Grains past the end in an image that is otherwise in order: the file is shorter than it was.
fn cut_off(cx: &mut Context<'_>, geo: &Geometry, sums: &survey::Sums) {
    let file = cx.file_len();
    let explained = [codes::OVERHEAD, codes::GTE_PAST_END, codes::GTE_CUT];
    let errors = explained.iter().fold(0u64, |sum, code| sum.saturating_add(cx.findings.errors_of(code)));
    // Longer than this no file of this disk can have been: then it is the entries that are wrong.
    let longest = geo.overhead.saturating_add(geo.grain_count().saturating_mul(geo.grain)).saturating_mul(2);
    if errors == 0 || sums.beyond <= file || sums.beyond > longest {
        return;
    }
    let of = |code| cx.findings.errors_of(code) > 0;
    let found: Vec<&Finding> = cx.findings.iter().filter(|one| explained.contains(&one.code)).collect();
    cx.causes.push(Cause {
        what: format!(
            "the file was cut off: its tables name grains up to {:#x}, it ends at {file:#x}; {} bytes are missing at least",
            sums.beyond,
            sums.beyond.saturating_sub(file)
        ),
        confidence: if of(codes::GT_DESTROYED) { Confidence::Possible } else { Confidence::Likely },
        codes: explained.iter().filter(|code| of(code)).map(|code| code.name).collect(),
        errors,
        host: vec![Range { start: file, end: file }],
        guest: found.iter().flat_map(|one| one.guest.iter().cloned()).collect(),
    });
}

/// A header made anew from what else there is: the footer of a stream, or the descriptor and the layout all programs
/// use.
fn reconstruct(cx: &mut Context<'_>, head: &[u8]) -> Option<Hosted> {
    if let Some(footer) = stream::footer(cx) {
        // As the header said it: the footer is looked for once more, and found.
        return Some(Hosted { gd: header::GD_AT_END, ..footer.header });
    }
    let stored = Hosted::parse(head);
    let plausible =
        stored.grain.is_power_of_two() && stored.grain <= 1 << 16 && stored.gtes == 512 && stored.capacity > 0;
    if plausible && stored.gd.saturating_mul(SECTOR) < cx.file_len() {
        return Some(stored);
    }
    let text = cx.read(SECTOR, 20 * 512, "the descriptor");
    let said = is_descriptor(&text).then(|| Descriptor::parse(&text)).and_then(|text| text.sectors());
    let capacity = cx.options.assume.value("capacity").or(said)?;
    let grain = cx.options.assume.value("grain").unwrap_or(128).clamp(1, 1 << 21);
    let tables = capacity.div_ceil(grain.saturating_mul(512));
    let directory = tables.saturating_mul(4).div_ceil(SECTOR);
    // Descriptor of 20 sectors, then directory and tables, twice.
    let rgd = 21u64;
    let gd = rgd.checked_add(directory)?.checked_add(tables.checked_mul(4)?)?;
    let names_its_neighbour = |cx: &mut Context<'_>, at: u64| {
        let bytes = cx.read(at.saturating_mul(SECTOR), 4, "a grain directory");
        u64::from(le_u32(&bytes, 0)) == at.saturating_add(directory)
    };
    let (second, first) = (names_its_neighbour(cx, rgd), names_its_neighbour(cx, gd));
    (first || second).then_some(Hosted {
        version: 1,
        flags: header::flag::NEW_LINE_TEST | if second { header::flag::REDUNDANT } else { 0 },
        capacity,
        grain,
        descriptor: 1,
        descriptor_len: 20,
        gtes: 512,
        rgd,
        gd,
        overhead: gd.saturating_add(directory).saturating_add(tables.saturating_mul(4)).next_multiple_of(grain),
        unclean: 0,
        test: *b"\n \r\n",
        algorithm: 0,
    })
}
