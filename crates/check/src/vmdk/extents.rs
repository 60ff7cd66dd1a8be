//! A descriptor file of its own: the disk is the sequence of the extents it names (VMDK-11).
//!
//! Extents are other files. They are opened only when the user allows it, and only in the folder of the descriptor: a
//! name is data of whoever made the image (H13). A sparse extent is analysed like an image, and what is found there is
//! told with its name and with places on the whole disk.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::Options;
use crate::code::Severity;
use crate::context::Context;
use crate::finding::Finding;
use crate::map::{Claim, Class, GuestState};
use crate::report::Reference;
use crate::source::Source;
use crate::watch::{Progress, Watch};

use super::codes;
use super::descriptor::{Descriptor, Extent, ExtentKind, MAGIC, MAX, NO_PARENT, safe, stays};
use super::geometry::SECTOR;

/// Checks the disk that a descriptor file describes.
pub(super) fn analyse(cx: &mut Context<'_>) {
    let file = cx.file_len();
    let bytes = cx.read(0, usize::try_from(file.min(MAX)).unwrap_or(0), "the descriptor");
    let descriptor = Descriptor::parse(&bytes);
    let place = 0..file.min(MAX);
    cx.fact("variant", "descriptor file");
    if file > MAX {
        let words = format!("the descriptor is {file} bytes long; {MAX} are looked at");
        cx.find(Finding::new(codes::DESCRIPTOR_FIELD, words).host(MAX..file));
    }
    descriptor.check(cx, place.clone(), true);
    cx.fact("extents", descriptor.extents.len().to_string());
    let size =
        descriptor.sectors().and_then(|sectors| sectors.checked_mul(SECTOR)).filter(|size| *size <= i64::MAX as u64);
    cx.map_host(SECTOR, vec![Claim { start: 0, len: file, class: Class::Descriptor, index: 0 }]);
    cx.add_host(0..file, Class::Descriptor);
    let (false, Some(size)) = (descriptor.extents.is_empty(), size.filter(|size| *size > 0)) else {
        let words = if descriptor.extents.is_empty() {
            "the descriptor names no extent".to_owned()
        } else {
            "the sizes of the extents add up to nothing that can be a disk".to_owned()
        };
        cx.find(Finding::new(codes::DESCRIPTOR_EXTENTS, words).host(place));
        return;
    };
    cx.fact("virtual size", size.to_string());
    cx.numbers.image_end_offset = Some(file);
    // Where the extents are not looked at, there is nothing to be drawn of the disk.
    if !cx.options.allow_backing {
        name_only(cx, &descriptor, place);
        return;
    }
    cx.map_guest(size, SECTOR);
    let mut base = 0u64;
    let mut totals = Totals::default();
    let mut seen: BTreeMap<&str, Range<u64>> = BTreeMap::new();
    for extent in &descriptor.extents {
        if cx.stopped() {
            break;
        }
        let range = base..base.saturating_add(extent.sectors.saturating_mul(SECTOR));
        reference(cx, extent, &place);
        base = range.end;
        // Once is enough, also for a descriptor that names one file ten thousand times.
        match seen.get(extent.name.as_str()).cloned().filter(|_| extent.kind == ExtentKind::Sparse) {
            Some(first) => {
                let words = format!("the extent '{}' is named twice", safe(&extent.name));
                let finding = Finding::new(codes::EXTENT_TWICE, words).host(place.clone());
                cx.find(finding.guest(first.clone()).guest(range.clone()));
                cx.lose(first);
                cx.lose(range.clone());
                cx.add_guest(range, GuestState::Damaged);
            }
            None => {
                one(cx, extent, range.clone(), &place, &mut totals);
                seen.insert(&extent.name, range);
            }
        }
    }
    cx.numbers.total_clusters = totals.total;
    cx.numbers.allocated_clusters = totals.allocated;
    cx.numbers.fragmented_clusters = totals.fragmented;
    cx.numbers.compressed_clusters = totals.compressed;
    parent(cx, &descriptor, place);
}

/// Figures of all sparse extents together.
#[derive(Default)]
struct Totals {
    total: Option<u64>,
    allocated: Option<u64>,
    fragmented: Option<u64>,
    compressed: Option<u64>,
}

/// Extents that are not to be opened: they are named, and that they were not looked at is said.
fn name_only(cx: &mut Context<'_>, descriptor: &Descriptor, place: Range<u64>) {
    let mut unread = 0u64;
    for extent in &descriptor.extents {
        reference(cx, extent, &place);
        unread = unread.saturating_add(u64::from(extent.kind != ExtentKind::Zero));
    }
    if unread > 0 {
        cx.could_not(format!("{unread} extents: they are other files, opened only with --allow-backing"));
        cx.next.push("check it with --allow-backing if you trust the names above, or each extent by itself".to_owned());
    }
    if descriptor.parent_cid.is_some_and(|id| id != NO_PARENT) {
        cx.not_checked("the parent disk: it is another file, opened only with --allow-backing");
    }
}

fn reference(cx: &mut Context<'_>, extent: &Extent, place: &Range<u64>) {
    if extent.kind == ExtentKind::Zero {
        return;
    }
    cx.references.push(Reference { role: "extent", name: extent.name.clone(), format: Some(extent.word.clone()) });
    if cx.options.untrusted {
        let words = format!("names '{}' as an extent", safe(&extent.name));
        cx.find(Finding::new(codes::EXTENT_NAMED, words).host(place.clone()));
    }
    if !stays(&extent.name) {
        let words = format!("the extent '{}' is not in the image's folder", safe(&extent.name));
        cx.find(Finding::new(codes::EXTENT_PATH, words).host(place.clone()));
    }
}

/// Opens and checks one extent.
fn one(cx: &mut Context<'_>, extent: &Extent, guest: Range<u64>, place: &Range<u64>, totals: &mut Totals) {
    let name = safe(&extent.name);
    if extent.kind == ExtentKind::Zero {
        cx.add_guest(guest, GuestState::Zero);
        return;
    }
    if extent.kind == ExtentKind::Device {
        cx.not_checked(format!("the extent '{name}': a {} has no structure that could be checked", extent.word));
        cx.add_guest(guest, GuestState::Data);
        return;
    }
    if !stays(&extent.name) {
        cx.could_not(format!("the extent '{name}': it is not in the image's folder and was not opened"));
        cx.add_guest(guest, GuestState::Data);
        return;
    }
    let source = match cx.image.sibling(&extent.name) {
        Ok(source) => source,
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
            cx.could_not(format!("the extent '{name}': {error}"));
            cx.add_guest(guest, GuestState::Data);
            return;
        }
        Err(error) => {
            let words = format!("the extent '{name}' can not be opened: {error}");
            cx.find(Finding::new(codes::EXTENT_MISSING, words).host(place.clone()).guest(guest.clone()));
            cx.lose(guest.clone());
            cx.add_guest(guest, GuestState::Damaged);
            return;
        }
    };
    match extent.kind {
        ExtentKind::Flat => flat(cx, extent, &*source, guest, place),
        _ => sparse(cx, extent, &*source, guest, place, totals),
    }
}

fn flat(cx: &mut Context<'_>, extent: &Extent, source: &dyn Source, guest: Range<u64>, place: &Range<u64>) {
    let name = safe(&extent.name);
    let there = source.len().saturating_sub(extent.offset.saturating_mul(SECTOR));
    let wanted = guest.end.saturating_sub(guest.start);
    let end = guest.start.saturating_add(there.min(wanted));
    cx.add_guest(guest.start..end, GuestState::Data);
    if there < wanted {
        let words = format!(
            "the extent '{name}' is {} bytes long; sectors {}..{} of it are part of the disk",
            source.len(),
            extent.offset,
            extent.offset.saturating_add(extent.sectors)
        );
        cx.find(Finding::new(codes::EXTENT_SHORT, words).host(place.clone()).guest(end..guest.end));
        cx.lose(end..guest.end);
        cx.add_guest(end..guest.end, GuestState::Damaged);
    }
}

fn sparse(
    cx: &mut Context<'_>,
    extent: &Extent,
    source: &dyn Source,
    guest: Range<u64>,
    place: &Range<u64>,
    totals: &mut Totals,
) {
    let name = safe(&extent.name);
    let mut magic = [0u8; 32];
    let read = source.read_at(0, &mut magic).unwrap_or(0);
    let head = magic.get(..read).unwrap_or_default();
    if head.starts_with(MAGIC) || !super::is_sparse(head) {
        let words = format!("the extent '{name}' is said to be {}, but it begins like no sparse extent", extent.word);
        cx.find(Finding::new(codes::EXTENT_KIND, words).host(place.clone()).guest(guest.clone()));
        cx.lose(guest.clone());
        cx.add_guest(guest, GuestState::Damaged);
        return;
    }
    let options = Options { cells: 0, ..cx.options.clone() };
    let quiet = Quiet(cx.watch);
    let mut sub = Context::new(source, &options, &quiet, cx.budget);
    sub.guest = cx.guest.take();
    let capacity = super::sparse(&mut sub, Some(guest.start));
    cx.guest = sub.guest.take();
    let lost = sub.lost();
    let on_disk = |range: &Range<u64>| {
        let at = |offset: u64| offset.saturating_add(guest.start).min(guest.end);
        at(range.start)..at(range.end)
    };
    sub.findings.for_each_mut(|finding| {
        // Places in the extent are in the words; `host` speaks of the image, which is the descriptor.
        let hosts: Vec<String> =
            finding.host.iter().map(|range| format!("{:#x}..{:#x}", range.start, range.end)).collect();
        let at = if hosts.is_empty() { String::new() } else { format!(" [{}]", hosts.join(", ")) };
        finding.what = format!("extent '{name}': {}{at}", finding.what);
        finding.host.clear();
        for range in &mut finding.guest {
            *range = on_disk(range);
        }
        for owner in &mut finding.owners {
            owner.guest = owner.guest.as_ref().map(on_disk);
            owner.label = format!("{} of '{name}'", owner.label);
        }
    });
    cx.findings.merge(sub.findings);
    for range in &lost.ranges {
        cx.lose(on_disk(range));
    }
    for line in sub.not_checked {
        cx.not_checked(format!("extent '{name}': {line}"));
    }
    cx.complete &= sub.complete;
    let add = |sum: &mut Option<u64>, more: Option<u64>| {
        if let Some(more) = more {
            *sum = Some(sum.unwrap_or(0).saturating_add(more));
        }
    };
    add(&mut totals.total, sub.numbers.total_clusters);
    add(&mut totals.allocated, sub.numbers.allocated_clusters);
    add(&mut totals.fragmented, sub.numbers.fragmented_clusters);
    add(&mut totals.compressed, sub.numbers.compressed_clusters);
    cx.numbers.check_errors = cx.numbers.check_errors.saturating_add(sub.numbers.check_errors);
    match capacity {
        Some(capacity) if capacity != guest.end.saturating_sub(guest.start) => {
            let words = format!(
                "the extent '{name}' has {} sectors, the descriptor says {}",
                capacity / SECTOR,
                extent.sectors
            );
            let end = guest.start.saturating_add(capacity).min(guest.end);
            // A longer extent is only cut off: nothing of the disk is missing.
            let short = capacity < guest.end.saturating_sub(guest.start);
            let severity = if short { Severity::Corruption } else { Severity::Warning };
            let finding = Finding::new(codes::DESCRIPTOR_SIZE, words).host(place.clone()).severity(severity);
            cx.find(finding.guest(end..guest.end));
            cx.lose(end..guest.end);
            cx.add_guest(end..guest.end, GuestState::Damaged);
        }
        Some(_) => {}
        None => {
            cx.lose(guest.clone());
            cx.add_guest(guest, GuestState::Damaged);
        }
    }
}

/// Whether the parent is still what this disk was made on.
pub(super) fn parent(cx: &mut Context<'_>, descriptor: &Descriptor, place: Range<u64>) {
    let Some(want) = descriptor.parent_cid.filter(|id| *id != NO_PARENT) else { return };
    let Some(name) = descriptor.parent.as_deref() else {
        cx.not_checked("the parent disk: its name is missing");
        return;
    };
    if !cx.options.allow_backing || !stays(name) {
        cx.not_checked(format!("the parent '{}': it was not opened", safe(name)));
        return;
    }
    let source = match cx.image.sibling(name) {
        Ok(source) => source,
        Err(error) => {
            cx.not_checked(format!("the parent '{}': {error}", safe(name)));
            return;
        }
    };
    match content_id(&*source) {
        Some(cid) if cid != want => {
            let words =
                format!("the parent '{}' has content id {cid:08x}, this disk was made on {want:08x}", safe(name));
            cx.find(Finding::new(codes::PARENT_CID, words).host(place));
        }
        Some(_) => cx.not_checked(format!("the parent '{}' beyond its content id, which fits", safe(name))),
        None => cx.not_checked(format!("the parent '{}': it has no content id", safe(name))),
    }
}

/// The content id of another image.
fn content_id(source: &dyn Source) -> Option<u32> {
    let mut head = vec![0u8; 64 << 10];
    let read = source.read_at(0, &mut head).ok()?;
    head.truncate(read);
    if head.starts_with(MAGIC) {
        return Descriptor::parse(&head).cid;
    }
    let header = head.starts_with(b"KDMV").then(|| super::header::Hosted::parse(&head))?;
    let start = usize::try_from(header.descriptor.checked_mul(SECTOR)?).ok()?;
    let len = usize::try_from(header.descriptor_len.checked_mul(SECTOR)?).ok()?;
    Descriptor::parse(head.get(start..start.checked_add(len)?.min(head.len()))?).cid
}

/// Passes on progress and the wish to stop; details of an extent are not details of the image.
struct Quiet<'w>(&'w dyn Watch);

impl Watch for Quiet<'_> {
    fn progress(&self, progress: Progress) {
        self.0.progress(progress);
    }

    fn stop(&self) -> bool {
        self.0.stop()
    }
}
