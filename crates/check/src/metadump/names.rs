//! Names and other strings of people, and what to write in their place.
//!
//! A name becomes `x`s with a number at its end, as long as it was; equal names become equal ones, different names
//! different ones (so that a name given twice is still given twice). Marks of paths (`/ \ : .`) stay, since checks look
//! at them. Snapshot ids that are numbers, names of formats and QEMU's feature names tell nothing and stay.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::bytes::{be_u16, be_u32, be_u64, le_u16, le_u32, le_u64};
use rangemap::RangeSet;

use crate::source::Source;
use crate::{Format, Options};

use super::Error;

/// Entries of a list looked at.
const ENTRIES_MAX: u64 = 65_536;
/// Bytes of one name looked at.
const NAME_MAX: u64 = 1 << 16;
/// Bytes edited in all.
const EDITED_MAX: u64 = 64 << 20;

/// What is to be written over the image's own bytes.
#[derive(Default)]
pub(super) struct Edits {
    /// By place, apart or in the order in which later ones win.
    at: BTreeMap<u64, Vec<u8>>,
    /// Names blanked.
    pub(super) names: u64,
    bytes: u64,
    /// Where text belongs: names, before and after they are blanked, and the words of the format itself.
    pub(super) text: RangeSet<u64>,
    /// Whether names stay.
    keep: bool,
    /// A dump with any of these bytes in it is refused, and where they would be.
    refused: Vec<Vec<u8>>,
    seen: BTreeMap<Vec<u8>, u64>,
}

impl Edits {
    /// Makes them in bytes that begin at `at`.
    pub(super) fn apply(&self, at: u64, bytes: &mut [u8]) {
        let end = at.saturating_add(bytes.len() as u64);
        // An edit that begins before may reach in: none is longer than this.
        let from = at.saturating_sub(1 << 21);
        for (place, new) in self.at.range(from..end) {
            let skip = usize::try_from(at.saturating_sub(*place)).unwrap_or(usize::MAX);
            let to = usize::try_from(place.saturating_sub(at)).unwrap_or(usize::MAX);
            let Some(new) = new.get(skip..) else { continue };
            for (to, new) in bytes.get_mut(to..).unwrap_or_default().iter_mut().zip(new) {
                *to = *new;
            }
        }
    }

    /// Whether a name is in bytes to be dumped, after all.
    pub(super) fn refuse(&self, bytes: &[u8]) -> Result<(), Error> {
        for name in &self.refused {
            if !name.is_empty() && bytes.windows(name.len()).any(|part| part == name.as_slice()) {
                return Err(Error::NameStays("the log, whose checksums cover it"));
            }
        }
        Ok(())
    }

    fn put(&mut self, at: u64, new: Vec<u8>) {
        self.bytes = self.bytes.saturating_add(new.len() as u64);
        self.allow(from(at, new.len() as u64));
        if !new.is_empty() && !self.keep && self.bytes <= EDITED_MAX {
            self.at.insert(at, new);
        }
    }

    /// Text there is the format's own.
    fn allow(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.text.insert(range);
        }
    }

    /// Another name in the place of `name`.
    fn name(&mut self, at: u64, name: &[u8]) {
        let new = self.other(name);
        self.names = self.names.saturating_add(1);
        self.put(at, new);
    }

    fn other(&mut self, name: &[u8]) -> Vec<u8> {
        let next = self.seen.len() as u64;
        let number = *self.seen.entry(name.to_vec()).or_insert(next);
        let mut new: Vec<u8> = name.iter().map(|byte| if b"/\\:.\0".contains(byte) { *byte } else { b'x' }).collect();
        let digits = if number == 0 { String::new() } else { number.to_string() };
        let mut digits = digits.bytes().rev();
        for place in new.iter_mut().rev().filter(|byte| **byte == b'x') {
            let Some(digit) = digits.next() else { break };
            *place = digit;
        }
        new
    }

    /// Bytes that mean nothing to anybody here: those that are not zero become `x`.
    fn blank(&mut self, at: u64, bytes: &[u8]) {
        if !crate::bytes::is_zero(bytes) {
            self.names = self.names.saturating_add(1);
            self.put(at, bytes.iter().map(|byte| if *byte == 0 { 0 } else { b'x' }).collect());
        }
    }
}

/// What of an image is to be blanked.
pub(super) fn edits(image: &dyn Source, format: Format, options: &Options, keep: bool) -> Edits {
    let mut edits = Edits { keep, ..Edits::default() };
    // The one magic that is as long as a text, and VDI's name of its maker.
    let head = get(image, 0..64);
    let named =
        format == Format::Vdi && head.starts_with(b"<<< ") && head.windows(10).any(|part| part == b"Disk Image");
    if named || head.starts_with(b"WithoutFreeSpace") || head.starts_with(b"WithouFreSpacExt") {
        edits.allow(0..if named { 64 } else { 16 });
    }
    match format {
        Format::Qcow2 => qcow2(image, options, &mut edits),
        Format::Vdi => vdi(image, &mut edits),
        Format::Vmdk => vmdk(image, &mut edits),
        Format::Vhd => vhd(image, &mut edits),
        Format::Vhdx => vhdx(image, &mut edits),
        Format::Qed => qed(image, &mut edits),
        Format::Parallels | Format::Raw => {}
    }
    edits
}

/// As much as there is; nothing where it can not be read (it is not dumped then either).
fn get(image: &dyn Source, range: Range<u64>) -> Vec<u8> {
    let end = range.end.min(image.len());
    let mut bytes = vec![0u8; usize::try_from(end.saturating_sub(range.start).min(4 << 20)).unwrap_or(0)];
    let read = image.read_at(range.start, &mut bytes).unwrap_or(0);
    bytes.truncate(read);
    bytes
}

fn from(at: u64, len: u64) -> Range<u64> {
    at..at.saturating_add(len)
}

/// Backing file, data file, unknown extensions, what follows them in the first cluster, snapshots, bitmaps.
fn qcow2(image: &dyn Source, options: &Options, edits: &mut Edits) {
    let head = get(image, 0..2 << 20);
    let assumed = |name: &str, stored: u64| options.assume.value(name).unwrap_or(stored);
    let version = assumed("version", u64::from(be_u32(&head, 4)));
    let cluster = 1u64 << assumed("cluster_bits", u64::from(be_u32(&head, 20))).clamp(9, 30);
    let head = head.get(..usize::try_from(cluster).unwrap_or(usize::MAX)).unwrap_or(&head);
    let end = head.len() as u64;
    let (name_at, name_len) = (be_u64(head, 8), u64::from(be_u32(head, 16)));
    let header_len = match version {
        3.. => u64::from(be_u32(head, 100)),
        _ => 72,
    };
    let mut start = if (72..=end).contains(&header_len) { header_len } else { 112 };
    let name = from(name_at, name_len);
    let named = name_at >= start && name_len > 0 && name.end <= end;
    if named {
        edits.name(name_at, &get(image, name.clone()));
    }
    // Extensions, until one that can not be.
    let mut bitmaps = None;
    let limit = if named { name_at } else { end };
    while start.saturating_add(8) <= limit {
        let here = usize::try_from(start).unwrap_or(usize::MAX);
        let (kind, len) = (be_u32(head, here), u64::from(be_u32(head, here.saturating_add(4))));
        start = start.saturating_add(8);
        let data = from(start, len);
        if kind == 0 || data.end > limit {
            break;
        }
        let bytes = get(image, data.clone());
        match kind {
            // A format has a short name without marks.
            0xe279_2aca if bytes.len() <= 15 && bytes.iter().all(u8::is_ascii_alphanumeric) => {
                edits.allow(data.clone())
            }
            0xe279_2aca | 0x4441_5441 => edits.name(start, &bytes),
            // QEMU's names of features, the encryption header's place, the bitmap directory's.
            0x6803_f857 => feature_names(start, &bytes, edits),
            0x0537_be77 => {}
            0x2385_2875 => bitmaps = Some((be_u32(&bytes, 0), be_u64(&bytes, 8), be_u64(&bytes, 16))),
            _ => edits.blank(start, &bytes),
        }
        start = data.end.checked_next_multiple_of(8).unwrap_or(end);
    }
    // Old content of the first cluster: whether it is zero is all anybody asks.
    let rest = if named { [start..name_at, name.end..end] } else { [start..end, end..end] };
    for range in rest.into_iter().filter(|range| range.start < range.end) {
        edits.blank(range.start, &get(image, range));
    }
    snapshots(
        image,
        assumed("snapshots_offset", be_u64(head, 64)),
        assumed("nb_snapshots", u64::from(be_u32(head, 60))),
        edits,
    );
    if let Some((count, len, offset)) = bitmaps {
        let mut at = offset;
        for _ in 0..u64::from(count).min(ENTRIES_MAX) {
            let fixed = get(image, from(at, 24));
            let (name_len, extra) = (u64::from(be_u16(&fixed, 18)), u64::from(be_u32(&fixed, 20)));
            let name = from(at.saturating_add(24).saturating_add(extra), name_len);
            if fixed.len() < 24 || name.end > offset.saturating_add(len) || extra > NAME_MAX {
                break;
            }
            edits.blank(at.saturating_add(24), &get(image, from(at.saturating_add(24), extra)));
            edits.name(name.start, &get(image, name.clone()));
            at = name.end.checked_next_multiple_of(8).unwrap_or(u64::MAX);
        }
    }
}

/// The table of features' names, as programs write it: kind, bit, words of letters, zeroes. Other names are somebody's.
fn feature_names(at: u64, bytes: &[u8], edits: &mut Edits) {
    for (index, entry) in (0u64..).zip(bytes.as_chunks::<48>().0) {
        let name_at = at.saturating_add(index.saturating_mul(48)).saturating_add(2);
        let (numbers, name) = entry.split_at(2);
        let len = name.iter().take_while(|byte| **byte != 0).count();
        let (word, padding) = name.split_at(len);
        let known = matches!(numbers, [0..3, 0..64])
            && word.iter().all(|byte| byte.is_ascii_alphanumeric() || b" -_".contains(byte))
            && crate::bytes::is_zero(padding);
        if known {
            edits.allow(from(name_at, len as u64));
        } else {
            edits.blank(name_at, name);
        }
    }
}

fn snapshots(image: &dyn Source, offset: u64, count: u64, edits: &mut Edits) {
    let mut at = offset;
    for _ in 0..count.min(ENTRIES_MAX) {
        let fixed = get(image, from(at, 40));
        if at == 0 || fixed.len() < 40 || crate::bytes::is_zero(&fixed) {
            break;
        }
        let (id_len, name_len) = (u64::from(be_u16(&fixed, 12)), u64::from(be_u16(&fixed, 14)));
        let extra = from(at.saturating_add(40), u64::from(be_u32(&fixed, 36)));
        if extra.end > image.len() || extra.end.saturating_sub(extra.start) > (64 << 20) {
            break;
        }
        // Beyond the fields everybody knows.
        let unknown = extra.start.saturating_add(24)..extra.end.min(extra.start.saturating_add(1 << 20));
        if unknown.start < unknown.end {
            edits.blank(unknown.start, &get(image, unknown));
        }
        let id = get(image, from(extra.end, id_len));
        if !id.iter().all(u8::is_ascii_digit) {
            edits.name(extra.end, &id);
        }
        let name_at = extra.end.saturating_add(id_len);
        edits.name(name_at, &get(image, from(name_at, name_len)));
        let end = name_at.saturating_add(name_len);
        at = end.checked_next_multiple_of(8).unwrap_or(u64::MAX);
    }
}

/// The description, 256 bytes.
fn vdi(image: &dyn Source, edits: &mut Edits) {
    edits.blank(0x54, &get(image, from(0x54, 256)));
}

/// The backing file's name.
fn qed(image: &dyn Source, edits: &mut Edits) {
    let head = get(image, 0..64);
    let name = from(u64::from(le_u32(&head, 0x38)), u64::from(le_u32(&head, 0x3c)).min(NAME_MAX));
    if le_u64(&head, 0x10) & 1 != 0 && name.start >= 64 && name.start < name.end {
        edits.name(name.start, &get(image, name));
    }
}

/// Descriptors, wherever they are; of COWD extents the parent's name, the disk's and its description.
fn vmdk(image: &dyn Source, edits: &mut Edits) {
    let head = get(image, 0..512);
    if head.starts_with(b"KDMV") {
        let (at, len) = (le_u64(&head, 28).saturating_mul(512), le_u64(&head, 36).saturating_mul(512));
        if at >= 512 {
            descriptor(at, &get(image, from(at, len.min(1 << 20))), edits);
        }
    } else if head.starts_with(b"# Disk DescriptorFile") {
        descriptor(0, &get(image, 0..1 << 20), edits);
    } else if head.starts_with(b"COWD") {
        // A disk without parent has its geometry where others have a name.
        let shown = |bytes: &[u8]| bytes.iter().take(12).all(|byte| (0x20..0x7f).contains(byte));
        for (at, len) in [(32u64, 1024), (1064, 60), (1124, 512)] {
            let bytes = get(image, from(at, len));
            if at != 32 || shown(&bytes) {
                edits.blank(at, &bytes);
            }
        }
    }
}

/// Lines every descriptor may have as they are.
const COMMENTS: [&str; 5] =
    ["# disk descriptorfile", "# extent description", "# the disk data base", "#ddb", "# change tracking file"];
/// Keys whose values tell nothing: numbers and words of the format.
const KEYS: [&str; 7] =
    ["version", "cid", "parentcid", "createtype", "encoding", "isnativesnapshot", "parentfilenamehint"];

/// Names in quotes of lines that name extents, and of keys that name files; comments of people, and whatever else is no
/// line of a descriptor.
fn descriptor(at: u64, bytes: &[u8], edits: &mut Edits) {
    let mut line_at = at;
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    for line in text.split(|byte| *byte == b'\n') {
        let key = line.split(|byte| *byte == b'=').next().unwrap_or_default();
        let key = String::from_utf8_lossy(key).trim().to_ascii_lowercase();
        let extent =
            ["rw ", "rdonly ", "noaccess ", "rw\t", "rdonly\t", "noaccess\t"].iter().any(|word| key.starts_with(word));
        let named = ["parentfilenamehint", "changetrackpath", "ddb.comment", "ddb.annotation", "ddb.devicename"];
        let value = if extent {
            // After access, size and kind: in quotes, or a word.
            quoted(line).or_else(|| word(line, 3))
        } else if named.contains(&key.as_str()) {
            quoted(line).or_else(|| {
                let equals = line.iter().position(|byte| *byte == b'=')?.saturating_add(1);
                Some(equals..line.len())
            })
        } else if line.len() <= 96
            && (COMMENTS.contains(&key.as_str()) || KEYS.contains(&key.as_str()) || key.starts_with("ddb."))
        {
            None
        } else {
            // An equals sign and a hash mean something even in a line that is none.
            let start = usize::from(line.starts_with(b"#"));
            (start < line.len() && !key.is_empty()).then_some(start..line.len())
        };
        edits.allow(from(line_at, (line.len() as u64).saturating_add(1)));
        if let Some(range) = value
            && let Some(name) = line.get(range.clone())
        {
            // Spaces and line ends are the text's, not the name's.
            let mut new = edits.other(name);
            for (new, old) in new.iter_mut().zip(name) {
                if old.is_ascii_whitespace() || b"\"=".contains(old) {
                    *new = *old;
                }
            }
            edits.names = edits.names.saturating_add(1);
            edits.put(line_at.saturating_add(range.start as u64), new);
        }
        line_at = line_at.saturating_add(line.len() as u64).saturating_add(1);
    }
}

fn quoted(line: &[u8]) -> Option<Range<usize>> {
    let start = line.iter().position(|byte| *byte == b'"')?.saturating_add(1);
    let end = start.saturating_add(line.get(start..)?.iter().position(|byte| *byte == b'"')?);
    (start < end).then_some(start..end)
}

/// The word with this number, counted from 0.
fn word(line: &[u8], number: usize) -> Option<Range<usize>> {
    let mut at = 0usize;
    let mut seen = 0usize;
    for part in line.split(u8::is_ascii_whitespace) {
        if !part.is_empty() {
            if seen == number {
                return Some(at..at.saturating_add(part.len()));
            }
            seen = seen.saturating_add(1);
        }
        at = at.saturating_add(part.len()).saturating_add(1);
    }
    None
}

/// The parent's name in the dynamic header, whose checksum stays as right as it was, and its paths.
fn vhd(image: &dyn Source, edits: &mut Edits) {
    let footer = get(image, 0..512);
    let footer =
        if footer.starts_with(b"conectix") { footer } else { get(image, from(image.len().saturating_sub(512), 512)) };
    let at = be_u64(&footer, 16);
    let mut header = get(image, from(at, 1024));
    if !header.starts_with(b"cxsparse") || header.len() < 1024 {
        return;
    }
    let sum = |bytes: &[u8]| {
        let all = bytes.iter().enumerate().filter(|(at, _)| !(36..40).contains(at));
        !all.fold(0u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)))
    };
    let right = sum(&header) == be_u32(&header, 36);
    let name = header.get(64..576).unwrap_or_default().to_vec();
    if !crate::bytes::is_zero(&name) {
        let new = utf16(edits, &name, true);
        for (to, new) in header.iter_mut().skip(64).zip(new) {
            *to = new;
        }
        if right {
            let new = sum(&header).to_be_bytes();
            for (to, new) in header.iter_mut().skip(36).zip(new) {
                *to = new;
            }
        }
        edits.put(at.saturating_add(36), header.get(36..576).unwrap_or_default().to_vec());
    }
    for locator in header.get(576..768).unwrap_or_default().chunks_exact(24) {
        let (len, place) = (u64::from(be_u32(locator, 8)), be_u64(locator, 16));
        let text = from(place, len.min(NAME_MAX));
        if len > 0 && text.start >= 512 && text.end <= image.len() {
            let bytes = get(image, text.clone());
            let new = if locator.starts_with(b"MacX") { edits.other(&bytes) } else { utf16(edits, &bytes, false) };
            edits.names = edits.names.saturating_add(1);
            edits.put(text.start, new);
        }
    }
}

/// Another name for one in UTF-16: what is beyond ASCII is blanked too.
fn utf16(edits: &mut Edits, bytes: &[u8], big: bool) -> Vec<u8> {
    edits.names = edits.names.saturating_add(1);
    let units = bytes
        .as_chunks::<2>()
        .0
        .iter()
        .map(|unit| if big { u16::from_be_bytes(*unit) } else { u16::from_le_bytes(*unit) });
    let narrow: Vec<u8> = units.map(|unit| u8::try_from(unit).unwrap_or(b'?')).collect();
    let wide = edits.other(&narrow).into_iter().map(u16::from);
    let mut new: Vec<u8> = wide.flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect();
    new.resize(bytes.len(), b'x');
    new
}

/// Values of the parent locator in the metadata region; but not the parent's identifier.
fn vhdx(image: &dyn Source, edits: &mut Edits) {
    // Region tables, and what they call the metadata region.
    const METADATA: [u8; 16] =
        [0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e];
    const PARENT: [u8; 16] =
        [0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c];
    let mut regions: Vec<u64> = Vec::new();
    for table in [192u64 << 10, 256 << 10] {
        let bytes = get(image, from(table, 64 << 10));
        for entry in bytes.get(16..).unwrap_or_default().chunks_exact(32).filter(|entry| entry.starts_with(&METADATA)) {
            regions.push(le_u64(entry, 16));
        }
    }
    regions.sort_unstable();
    regions.dedup();
    for region in regions.into_iter().take(8) {
        let table = get(image, from(region, 64 << 10));
        for entry in table.get(32..).unwrap_or_default().chunks_exact(32).filter(|entry| entry.starts_with(&PARENT)) {
            let item =
                from(region.saturating_add(u64::from(le_u32(entry, 16))), u64::from(le_u32(entry, 20)).min(1 << 20));
            let bytes = get(image, item.clone());
            let count = usize::from(le_u16(&bytes, 18)).min(64);
            for pair in bytes.get(20..).unwrap_or_default().chunks_exact(12).take(count) {
                let text = |offset: u32, len: u16| {
                    let start = usize::try_from(offset).ok()?;
                    bytes.get(start..start.checked_add(usize::from(len))?)
                };
                let key = text(le_u32(pair, 0), le_u16(pair, 8)).unwrap_or_default();
                let key: String =
                    key.chunks_exact(2).map(|unit| char::from(unit.first().copied().unwrap_or(0))).collect();
                // Identifiers tell nothing, and are compared.
                if key.contains("linkage") {
                    continue;
                }
                if let Some(value) = text(le_u32(pair, 4), le_u16(pair, 10)).filter(|value| !value.is_empty()) {
                    let new = utf16(edits, value, false);
                    edits.put(item.start.saturating_add(u64::from(le_u32(pair, 4))), new);
                    if value.len() >= 8 && value.len() <= 8192 {
                        edits.refused.push(value.to_vec());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)]
mod tests {
    use super::*;

    #[test]
    fn other_names_are_as_long_and_as_different() {
        let mut edits = Edits::default();
        let cases: [(&[u8], &[u8]); 6] = [
            (b"/srv/images/base.qcow2", b"/xxx/xxxxxx/xxxx.xxxxx"),
            (b"second", b"xxxxx1"),
            (b"/srv/images/base.qcow2", b"/xxx/xxxxxx/xxxx.xxxxx"),
            (b"third", b"xxxx2"),
            (b"z", b"3"),
            (b"", b""),
        ];
        for (name, want) in cases {
            assert_eq!(edits.other(name), want, "{name:?}");
        }
    }

    #[test]
    fn edits_reach_over_the_borders_of_pieces() {
        let mut edits = Edits::default();
        edits.put(10, b"abcdef".to_vec());
        for at in 0..20u64 {
            for len in 0..12usize {
                let mut bytes = vec![0u8; len];
                edits.apply(at, &mut bytes);
                for (place, byte) in (at..).zip(&bytes) {
                    let want = if (10..16).contains(&place) { b"abcdef"[(place - 10) as usize] } else { 0 };
                    assert_eq!(*byte, want, "{at}+{len} at {place}");
                }
            }
        }
    }

    #[test]
    fn names_in_a_descriptor() {
        let text = b"# Disk DescriptorFile\nCID=12345678\nparentFileNameHint = \"secret base.vmdk\"\nRW 10 SPARSE \"my-s001.vmdk\"\r\nRW 5 ZERO\nRW 5 VMFS plain.vmdk 0\nddb.uuid=\"1\"\n";
        let mut edits = Edits::default();
        descriptor(0, text, &mut edits);
        let mut new = text.to_vec();
        edits.apply(0, &mut new);
        let want = "# Disk DescriptorFile\nCID=12345678\nparentFileNameHint = \"xxxxxx xxxx.xxxx\"\nRW 10 SPARSE \"xxxxxxx.xxx1\"\r\nRW 5 ZERO\nRW 5 VMFS xxxxx.xxx2 0\nddb.uuid=\"1\"\n";
        assert_eq!(String::from_utf8_lossy(&new), want);
    }
}
