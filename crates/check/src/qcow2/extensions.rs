//! The header extensions: a list of typed pieces between the header and the backing file's name (Q-X1..Q-X3, Q-H11).
//!
//! qcow2 spec, section "Header extensions". Type u32, length u32, data padded to 8 bytes; type 0 ends the list.

use std::collections::BTreeSet;

use crate::bytes::{be_u32, be_u64, is_zero, printable};
use crate::code::Severity;
use crate::context::Context;
use crate::finding::Finding;

use super::codes::structure as codes;
use super::header::Head;
use super::side::Runs;

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const DATA_FILE: u32 = 0x4441_5441;
const FEATURE_NAMES: u32 = 0x6803_f857;
const ENCRYPTION: u32 = 0x0537_be77;
const BITMAPS: u32 = 0x2385_2875;

/// QEMU's limit for the name of a format.
const FORMAT_NAME_MAX: usize = 15;
/// Bytes of an entry of the feature name table.
const NAME_LEN: usize = 48;
/// Feature bits there can be names for: three words.
const NAMES_MAX: usize = 3 * 64;

/// The bitmaps extension's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BitmapsExtension {
    /// Where its data is.
    pub(crate) at: u64,
    pub(crate) count: u32,
    pub(crate) reserved: u32,
    pub(crate) directory_len: u64,
    pub(crate) directory_offset: u64,
}

/// What the extensions say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extensions {
    pub(crate) backing_format: Option<Vec<u8>>,
    pub(crate) data_file: Option<Vec<u8>>,
    /// Word (0 incompatible, 1 compatible, 2 autoclear), bit, name safe to print.
    pub(crate) names: Vec<(u8, u8, String)>,
    /// Offset and length.
    pub(crate) encryption: Option<(u64, u64)>,
    pub(crate) bitmaps: Option<BitmapsExtension>,
    /// Where the list of extensions ends in the file.
    pub(crate) end: u64,
    /// Whether the list was read to its end.
    pub(crate) whole: bool,
}

impl Extensions {
    /// The image's own name of a feature bit.
    pub(crate) fn name(&self, word: u8, bit: u8) -> Option<&str> {
        self.names.iter().find(|(of, at, _)| (*of, *at) == (word, bit)).map(|(_, _, name)| name.as_str())
    }
}

/// Reads the list, and looks at what lies around it in the first cluster.
pub(crate) fn read(cx: &mut Context<'_>, head: &Head) -> Extensions {
    let mut found = Extensions::default();
    if head.dead || head.geometry.is_none() {
        return found;
    }
    let header = &head.header;
    // Where QEMU's headers end, if this one does not say anything possible.
    let says = u64::from(header.header_length);
    let least = if header.version >= 3 { 104 } else { 72 };
    let start = if (least..=head.first.len() as u64).contains(&says) { says } else { 112 };
    // The name ends the list; one that lies on the header itself (said elsewhere) ends nothing.
    let backing = Some(header.backing_offset).filter(|at| *at >= start);
    let limit = backing.unwrap_or(u64::MAX).min(head.first.len() as u64);
    walk(cx, head, start, limit, &mut found);
    if found.whole {
        judge_rest(cx, head, start, &found);
    }
    found
}

fn walk(cx: &mut Context<'_>, head: &Head, start: u64, limit: u64, found: &mut Extensions) {
    let mut runs = Runs::new("header extension");
    let mut seen = BTreeSet::new();
    let mut at = start;
    let mut index = 0u64;
    let area = usize::try_from(limit).ok().and_then(|limit| head.first.get(..limit)).unwrap_or_default();
    let ended = loop {
        let Some(here) = usize::try_from(at).ok().filter(|here| here.saturating_add(8) <= area.len()) else {
            break true;
        };
        let kind = be_u32(area, here);
        let len = be_u32(area, here.saturating_add(4));
        let from = here.saturating_add(8);
        let to = usize::try_from(len).ok().and_then(|len| from.checked_add(len));
        // The length of the end mark means nothing, but QEMU refuses one that does not fit either.
        if kind == END && to.is_some_and(|to| to <= area.len()) {
            at = at.saturating_add(8);
            break true;
        }
        let Some(data) = to.and_then(|to| area.get(from..to)) else {
            let words = format!(
                "the extension of type {kind:#010x} at {at:#x} has {len} bytes, {} are left before {limit:#x}",
                area.len().saturating_sub(from)
            );
            cx.find(Finding::new(codes::EXTENSION_LENGTH, words).host(at..limit.max(at)));
            break false;
        };
        let range = at..at.saturating_add(8).saturating_add(u64::from(len));
        let known = matches!(kind, BACKING_FORMAT | DATA_FILE | FEATURE_NAMES | ENCRYPTION | BITMAPS);
        if known && !seen.insert(kind) {
            runs.hit(cx, codes::EXTENSION_TWICE, index, range.clone(), || {
                format!("the extension at {at:#x} has the type {kind:#010x} of an earlier one")
            });
        } else if known {
            take(cx, kind, at, data, found);
        } else {
            runs.hit(cx, codes::EXTENSION_UNKNOWN, index, range.clone(), || {
                format!("the extension at {at:#x} of type {kind:#010x} ({len} bytes) is not known")
            });
        }
        let padded = range.end.checked_next_multiple_of(8).unwrap_or(range.end);
        let padding = usize::try_from(padded).ok().and_then(|to| area.get(from.saturating_add(data.len())..to));
        if padding.is_some_and(|padding| !is_zero(padding)) {
            runs.hit(cx, codes::HEADER_STRAY, index, range.end..padded, || {
                format!("the padding of the extension at {at:#x} is not zero")
            });
        }
        at = padded;
        index = index.saturating_add(1);
    };
    runs.end(cx);
    found.end = at.min(limit.max(start));
    found.whole = ended;
}

/// An extension of a known type, the first of its type.
fn take(cx: &mut Context<'_>, kind: u32, at: u64, data: &[u8], found: &mut Extensions) {
    let range = at..at.saturating_add(8).saturating_add(data.len() as u64);
    let mut wrong_size = |is: &str| {
        let words = format!("the extension at {at:#x} ({is}) has {} bytes", data.len());
        cx.find(Finding::new(codes::EXTENSION_SIZE, words).host(range.clone()));
    };
    match kind {
        BACKING_FORMAT => {
            if data.len() > FORMAT_NAME_MAX {
                wrong_size("backing file format, 15 at most");
            }
            found.backing_format = Some(data.get(..64).unwrap_or(data).to_vec());
        }
        DATA_FILE => found.data_file = Some(data.to_vec()),
        FEATURE_NAMES => names(cx, at, data, found),
        ENCRYPTION if data.len() == 16 => found.encryption = Some((be_u64(data, 0), be_u64(data, 8))),
        ENCRYPTION => wrong_size("encryption header pointer, exactly 16"),
        BITMAPS if data.len() == 24 => {
            found.bitmaps = Some(BitmapsExtension {
                at,
                count: be_u32(data, 0),
                reserved: be_u32(data, 4),
                directory_len: be_u64(data, 8),
                directory_offset: be_u64(data, 16),
            });
        }
        BITMAPS => wrong_size("bitmaps, exactly 24"),
        _ => {}
    }
}

fn names(cx: &mut Context<'_>, at: u64, data: &[u8], found: &mut Extensions) {
    let data_at = at.saturating_add(8);
    if !data.len().is_multiple_of(NAME_LEN) {
        let words = format!("the feature name table at {at:#x} has {} bytes, no multiple of {NAME_LEN}", data.len());
        cx.find(Finding::new(codes::EXTENSION_NAMES, words).host(at..data_at.saturating_add(data.len() as u64)));
    }
    let mut runs = Runs::new("entry");
    for (index, entry) in data.chunks_exact(NAME_LEN).enumerate() {
        let (Some(&word), Some(&bit)) = (entry.first(), entry.get(1)) else { continue };
        let start = data_at.saturating_add((index as u64).saturating_mul(NAME_LEN as u64));
        if word > 2 || bit > 63 {
            runs.hit(cx, codes::EXTENSION_NAMES, index as u64, start..start.saturating_add(NAME_LEN as u64), || {
                format!("entry {index} of the feature name table names bit {bit} of feature word {word}")
            });
        } else if found.names.len() < NAMES_MAX {
            let name = entry.get(2..).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
            found.names.push((word, bit, printable(name, 46)));
        }
    }
    runs.end(cx);
}

/// Nothing else lies in the first cluster: behind the extensions, around the backing file's name.
fn judge_rest(cx: &mut Context<'_>, head: &Head, start: u64, found: &Extensions) {
    let end = head.first.len() as u64;
    let from = found.end.max(start);
    let (name_start, name_end) = match head.header.backing_offset {
        0 => (end, end),
        at => (at.min(end), at.saturating_add(u64::from(head.header.backing_len)).min(end)),
    };
    for gap in [from..name_start.max(from), name_end.max(from)..end] {
        let bytes = usize::try_from(gap.start).ok().zip(usize::try_from(gap.end).ok());
        let bytes = bytes.and_then(|(start, end)| head.first.get(start..end)).unwrap_or_default();
        if is_zero(bytes) {
            continue;
        }
        let set = bytes.iter().filter(|byte| **byte != 0).count();
        let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(0) as u64;
        let last = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64;
        let range = gap.start.saturating_add(first)..gap.start.saturating_add(last).saturating_add(1);
        let shown = bytes.get(usize::try_from(first).unwrap_or(0)..).unwrap_or_default();
        let words = format!(
            "{set} nonzero bytes in {:#x}..{:#x} of the first cluster (\"{}\")",
            range.start,
            range.end,
            printable(shown.get(..24).unwrap_or(shown), 24)
        );
        cx.find(Finding::new(codes::HEADER_STRAY, words).severity(Severity::Warning).host(range));
    }
}
