//! Two states of a qcow2 image.
//!
//! Order: header, extensions, names, snapshots, bitmaps, L1 table, mapping, refcounts. Mapping and refcounts are two
//! streams of runs each ([`Mapping`], [`Counts`]), which are cut where either one's run ends and compared piece by
//! piece.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Change, Error, Kind, Tell, get};
use crate::bytes::{be_u16, be_u32, be_u64, is_zero, printable};
use crate::source::Source;

/// Fields of the header: name, offset, bytes, whether people write it in decimal. Those from 72 on are version 3's.
const FIELDS: [(&str, usize, usize, bool); 19] = [
    ("magic", 0, 4, false),
    ("version", 4, 4, true),
    ("backing_file_offset", 8, 8, false),
    ("backing_file_size", 16, 4, true),
    ("cluster_bits", 20, 4, true),
    ("size", 24, 8, true),
    ("crypt_method", 32, 4, true),
    ("l1_size", 36, 4, true),
    ("l1_table_offset", 40, 8, false),
    ("refcount_table_offset", 48, 8, false),
    ("refcount_table_clusters", 56, 4, true),
    ("nb_snapshots", 60, 4, true),
    ("snapshots_offset", 64, 8, false),
    ("incompatible_features", 72, 8, false),
    ("compatible_features", 80, 8, false),
    ("autoclear_features", 88, 8, false),
    ("refcount_order", 96, 4, true),
    ("header_length", 100, 4, true),
    ("compression_type", 104, 1, true),
];

/// Entries of lists looked at.
const LIST_MAX: u64 = 65_536;
/// Bytes of a table read at a time.
const PIECE: u64 = 64 << 10;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;

/// An image, with what of its header its tables are found by.
struct Image<'a> {
    source: &'a dyn Source,
    head: Vec<u8>,
    fields: BTreeMap<&'static str, u64>,
}

impl<'a> Image<'a> {
    fn new(source: &'a dyn Source) -> Result<Self, Error> {
        let head = get(source, 0, 2 << 20)?;
        let version = be_u32(&head, 4);
        let length = u64::from(be_u32(&head, 100));
        let mut fields = BTreeMap::new();
        for (name, at, bytes, _) in FIELDS {
            let there = at < 72 || version >= 3 && (at < 104 || length > at as u64);
            let value = match bytes {
                8 => be_u64(&head, at),
                4 => u64::from(be_u32(&head, at)),
                _ => u64::from(head.get(at).copied().unwrap_or(0)),
            };
            if there {
                fields.insert(name, value);
            }
        }
        Ok(Self { source, head, fields })
    }

    fn field(&self, name: &str) -> u64 {
        self.fields.get(name).copied().unwrap_or(0)
    }

    fn cluster_bits(&self) -> u32 {
        u32::try_from(self.field("cluster_bits").clamp(9, 30)).unwrap_or(16)
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits()
    }

    fn extended(&self) -> bool {
        self.field("incompatible_features") & 1 << 4 != 0 && self.cluster_bits() >= 14
    }

    fn l2_entries(&self) -> u64 {
        self.cluster() >> if self.extended() { 4 } else { 3 }
    }

    fn window(&self) -> u64 {
        self.l2_entries() << self.cluster_bits()
    }

    /// Entries of the L1 table that are in the file.
    fn l1_entries(&self) -> u64 {
        let room = self.source.len().saturating_sub(self.field("l1_table_offset")) / 8;
        self.field("l1_size").min(room)
    }

    fn refcount_order(&self) -> u32 {
        let stored = self.fields.get("refcount_order").copied().unwrap_or(4);
        u32::try_from(stored.min(6)).unwrap_or(4)
    }

    fn name(&self) -> Option<Vec<u8>> {
        let (at, len) = (self.field("backing_file_offset"), self.field("backing_file_size").min(1023));
        let from = usize::try_from(at).ok().filter(|at| *at != 0)?;
        let to = from.checked_add(usize::try_from(len).ok()?)?;
        self.head.get(from..to).map(<[u8]>::to_vec)
    }

    /// Extensions by type, and how often it came before.
    fn extensions(&self) -> BTreeMap<(u32, u32), Vec<u8>> {
        let mut all: BTreeMap<(u32, u32), Vec<u8>> = BTreeMap::new();
        let mut at = match self.field("version") {
            3.. => usize::try_from(self.field("header_length")).unwrap_or(usize::MAX),
            _ => 72,
        };
        let limit = usize::try_from(self.cluster()).unwrap_or(usize::MAX).min(self.head.len());
        while at.saturating_add(8) <= limit {
            let (kind, len) = (be_u32(&self.head, at), be_u32(&self.head, at.saturating_add(4)));
            let from = at.saturating_add(8);
            let to = usize::try_from(len).ok().and_then(|len| from.checked_add(len));
            let data = to.filter(|to| *to <= limit).and_then(|to| self.head.get(from..to));
            let Some(data) = data.filter(|_| kind != 0) else { break };
            let before = (0..).find(|number| !all.contains_key(&(kind, *number))).unwrap_or(0);
            all.insert((kind, before), data.to_vec());
            at = from.saturating_add(data.len()).checked_next_multiple_of(8).unwrap_or(usize::MAX);
        }
        all
    }
}

pub(super) fn diff(a: &dyn Source, b: &dyn Source, tell: &mut Tell<'_>) -> Result<(), Error> {
    let (a, b) = (Image::new(a)?, Image::new(b)?);
    for (name, _, _, decimal) in FIELDS {
        let show = |value: Option<&u64>| match value {
            None => String::new(),
            Some(value) if decimal => value.to_string(),
            Some(value) => format!("{value:#x}"),
        };
        let (was, is) = (a.fields.get(name), b.fields.get(name));
        if was != is {
            tell.change(&Change::new("header", kind_of(was, is), name).values(show(was), show(is)))?;
        }
    }
    list(
        "extensions",
        &a.extensions(),
        &b.extensions(),
        tell,
        |(kind, _)| extension_name(*kind),
        |(kind, _), data| match kind {
            0xe279_2aca | 0x4441_5441 => format!("'{}'", printable(data, 128)),
            0x2385_2875 => {
                format!("{} bitmaps, directory {:#x} of {} bytes", be_u32(data, 0), be_u64(data, 16), be_u64(data, 8))
            }
            _ => format!("{} bytes, crc32c {:08x}", data.len(), crc32c::crc32c(data)),
        },
    )?;
    let names = |image: &Image<'_>| image.name().into_iter().map(|name| ((), name)).collect::<BTreeMap<_, _>>();
    list(
        "header",
        &names(&a),
        &names(&b),
        tell,
        |()| "backing file".to_owned(),
        |(), name| format!("'{}'", printable(name, 1023)),
    )?;
    let (ours, theirs) = (snapshots(&a)?, snapshots(&b)?);
    list("snapshots", &ours, &theirs, tell, |(id, _)| format!("snapshot {id}"), |_, text| text.clone())?;
    let (ours, theirs) = (bitmaps(&a)?, bitmaps(&b)?);
    list("bitmaps", &ours, &theirs, tell, |(name, _)| format!("bitmap '{name}'"), |_, bitmap| bitmap.text.clone())?;
    for (key, bitmap) in &ours {
        if let Some(other) = theirs.get(key) {
            bits(&a, &b, &key.0, bitmap, other, tell)?;
        }
    }
    l1(&a, &b, tell)?;
    mapping(&a, &b, tell)?;
    counts(&a, &b, tell)
}

fn kind_of<T>(was: Option<T>, is: Option<T>) -> Kind {
    match (was, is) {
        (None, _) => Kind::Added,
        (_, None) => Kind::Removed,
        _ => Kind::Changed,
    }
}

/// What is in one list or the other, or differs.
fn list<K: Ord, V: PartialEq>(
    owner: &'static str,
    a: &BTreeMap<K, V>,
    b: &BTreeMap<K, V>,
    tell: &mut Tell<'_>,
    name: impl Fn(&K) -> String,
    show: impl Fn(&K, &V) -> String,
) -> Result<(), Error> {
    for (key, was) in a {
        let is = b.get(key);
        if is != Some(was) {
            let after = is.map(|is| show(key, is)).unwrap_or_default();
            tell.change(&Change::new(owner, kind_of(Some(was), is), name(key)).values(show(key, was), after))?;
        }
    }
    for (key, is) in b.iter().filter(|(key, _)| !a.contains_key(key)) {
        tell.change(&Change::new(owner, Kind::Added, name(key)).values("", show(key, is)))?;
    }
    Ok(())
}

fn extension_name(kind: u32) -> String {
    match kind {
        0xe279_2aca => "backing file format".to_owned(),
        0x4441_5441 => "external data file".to_owned(),
        0x6803_f857 => "feature names".to_owned(),
        0x0537_be77 => "encryption header".to_owned(),
        0x2385_2875 => "bitmaps".to_owned(),
        other => format!("extension {other:#010x}"),
    }
}

/// Snapshots by id, and how often it came before; with everything of them in words.
fn snapshots(image: &Image<'_>) -> Result<BTreeMap<(String, u32), String>, Error> {
    let mut all = BTreeMap::new();
    let mut at = image.field("snapshots_offset");
    for _ in 0..image.field("nb_snapshots").min(LIST_MAX) {
        let fixed = get(image.source, at, 40)?;
        if fixed.len() < 40 || is_zero(&fixed) || at == 0 {
            break;
        }
        let (id_len, name_len) = (u64::from(be_u16(&fixed, 12)), u64::from(be_u16(&fixed, 14)));
        let extra_at = at.saturating_add(40);
        let id_at = extra_at.saturating_add(u64::from(be_u32(&fixed, 36)));
        let extra = get(image.source, extra_at, id_at.saturating_sub(extra_at).min(24))?;
        let id = printable(&get(image.source, id_at, id_len)?, 64);
        let name_at = id_at.saturating_add(id_len);
        let name = printable(&get(image.source, name_at, name_len)?, 128);
        let end = name_at.saturating_add(name_len);
        if end > image.source.len() {
            break;
        }
        let state = if extra.len() >= 8 { be_u64(&extra, 0) } else { u64::from(be_u32(&fixed, 32)) };
        let size = if extra.len() >= 16 { format!(", disk of {} bytes", be_u64(&extra, 8)) } else { String::new() };
        let text = format!(
            "'{name}', taken at {}.{:09} s, L1 table {:#x} of {} entries{size}, VM state of {state} bytes",
            be_u32(&fixed, 16),
            be_u32(&fixed, 20),
            be_u64(&fixed, 0),
            be_u32(&fixed, 8)
        );
        let before = (0..).find(|number| !all.contains_key(&(id.clone(), *number))).unwrap_or(0);
        all.insert((id, before), text);
        at = end.checked_next_multiple_of(8).unwrap_or(u64::MAX);
    }
    Ok(all)
}

struct Bitmap {
    text: String,
    table: u64,
    entries: u64,
}

impl PartialEq for Bitmap {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// Bitmaps by name, and how often it came before.
fn bitmaps(image: &Image<'_>) -> Result<BTreeMap<(String, u32), Bitmap>, Error> {
    let mut all: BTreeMap<(String, u32), Bitmap> = BTreeMap::new();
    let extensions = image.extensions();
    let Some(extension) = extensions.get(&(0x2385_2875, 0)) else { return Ok(all) };
    let mut at = be_u64(extension, 16);
    let end = at.saturating_add(be_u64(extension, 8)).min(image.source.len());
    for _ in 0..u64::from(be_u32(extension, 0)).min(LIST_MAX) {
        let fixed = get(image.source, at, 24)?;
        let name_at = at.saturating_add(24).saturating_add(u64::from(be_u32(&fixed, 20)));
        let name_end = name_at.saturating_add(u64::from(be_u16(&fixed, 18)));
        if fixed.len() < 24 || name_end > end || at == 0 {
            break;
        }
        let name = printable(&get(image.source, name_at, name_end.saturating_sub(name_at))?, 128);
        let (table, entries) = (be_u64(&fixed, 0), u64::from(be_u32(&fixed, 8)));
        let text = format!(
            "table {table:#x} of {entries} entries, flags {:#x}, granularity 2^{}",
            be_u32(&fixed, 12),
            fixed.get(17).copied().unwrap_or(0)
        );
        let before = (0..).find(|number| !all.contains_key(&(name.clone(), *number))).unwrap_or(0);
        all.insert((name, before), Bitmap { text, table, entries });
        at = name_end.checked_next_multiple_of(8).unwrap_or(u64::MAX);
    }
    Ok(all)
}

/// Whether the bits of a bitmap changed, cluster of bits by cluster of bits.
fn bits(a: &Image<'_>, b: &Image<'_>, name: &str, was: &Bitmap, is: &Bitmap, tell: &mut Tell<'_>) -> Result<(), Error> {
    if a.cluster() != b.cluster() {
        return Ok(());
    }
    let part = |image: &Image<'_>, entry: u64| -> Result<Vec<u8>, Error> {
        let place = entry & OFFSET;
        let len = if place == 0 { 0 } else { image.cluster().min(1 << 21) };
        let mut bytes = get(image.source, place, len)?;
        // Nothing stored: all zeroes, or all ones.
        bytes.resize(usize::try_from(image.cluster().min(1 << 21)).unwrap_or(0), if entry == 1 { 0xff } else { 0 });
        Ok(bytes)
    };
    let mut differ = 0u64;
    let mut at = 0u64;
    let most = was.entries.min(is.entries).min(1 << 24);
    while at < most {
        tell.stop()?;
        let len = most.saturating_sub(at).min(PIECE / 8).saturating_mul(8);
        let ours = get(a.source, was.table.saturating_add(at.saturating_mul(8)), len)?;
        let theirs = get(b.source, is.table.saturating_add(at.saturating_mul(8)), len)?;
        for (ours, theirs) in ours.as_chunks::<8>().0.iter().zip(theirs.as_chunks::<8>().0) {
            let (ours, theirs) = (be_u64(ours, 0), be_u64(theirs, 0));
            if part(a, ours)? != part(b, theirs)? {
                differ = differ.saturating_add(1);
            }
        }
        at = at.saturating_add(PIECE / 8);
    }
    if differ > 0 {
        let words = format!("bits of bitmap '{name}'");
        tell.change(&Change::new("bitmaps", Kind::Changed, words).count(differ))?;
    }
    Ok(())
}

/// Runs of L1 entries that changed in the same way.
fn l1(a: &Image<'_>, b: &Image<'_>, tell: &mut Tell<'_>) -> Result<(), Error> {
    let most = a.l1_entries().max(b.l1_entries());
    let mut open: Option<(Range<u64>, Kind, u64, u64)> = None;
    let mut index = 0u64;
    let close = |open: &mut Option<(Range<u64>, Kind, u64, u64)>, tell: &mut Tell<'_>| match open.take() {
        None => Ok(()),
        Some((run, kind, was, is)) => {
            let show = |raw: u64| if raw == 0 { String::new() } else { format!("{raw:#018x}") };
            let window = b.window();
            let size = a.field("size").max(b.field("size"));
            let guest = run.start.saturating_mul(window).min(size)..run.end.saturating_mul(window).min(size);
            let mut change = Change::new("L1 table", kind, entries(&run)).values(show(was), show(is));
            change = change.count(run.end.saturating_sub(run.start));
            tell.change(&if a.window() == window && !guest.is_empty() { change.guest(guest) } else { change })
        }
    };
    while index < most {
        tell.stop()?;
        let read = |image: &Image<'_>| -> Result<Vec<u8>, Error> {
            let len = image.l1_entries().saturating_sub(index).saturating_mul(8).min(PIECE);
            let mut bytes =
                get(image.source, image.field("l1_table_offset").saturating_add(index.saturating_mul(8)), len)?;
            bytes.resize(usize::try_from(PIECE).unwrap_or(0), 0);
            Ok(bytes)
        };
        let (ours, theirs) = (read(a)?, read(b)?);
        if ours != theirs {
            for (at, (ours, theirs)) in (index..).zip(ours.as_chunks::<8>().0.iter().zip(theirs.as_chunks::<8>().0)) {
                let (was, is) = (be_u64(ours, 0), be_u64(theirs, 0));
                if was == is {
                    continue;
                }
                let kind = match (was, is) {
                    (0, _) => Kind::Added,
                    (_, 0) => Kind::Removed,
                    _ if was & OFFSET == is & OFFSET => Kind::Changed,
                    _ => Kind::Moved,
                };
                match &mut open {
                    Some((run, of, ..)) if *of == kind && run.end == at => run.end = at.saturating_add(1),
                    _ => {
                        close(&mut open, tell)?;
                        open = Some((at..at.saturating_add(1), kind, was, is));
                    }
                }
            }
        }
        index = index.saturating_add(PIECE / 8);
    }
    close(&mut open, tell)
}

fn entries(run: &Range<u64>) -> String {
    match run.end.saturating_sub(run.start) {
        1 => format!("entry {}", run.start),
        _ => format!("entries {}..{}", run.start, run.end),
    }
}

/// What a range of the guest's disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not part of the disk.
    Outside,
    Unallocated,
    /// With the place that is reserved for it, or 0.
    Zero(u64),
    Data(u64),
    /// By its descriptor.
    Compressed(u64),
}

impl State {
    fn show(self) -> String {
        match self {
            Self::Outside => String::new(),
            Self::Unallocated => "not allocated".to_owned(),
            Self::Zero(0) => "zero".to_owned(),
            Self::Zero(at) => format!("zero (place {at:#x})"),
            Self::Data(at) => format!("data at {at:#x}"),
            Self::Compressed(raw) => format!("compressed ({raw:#018x})"),
        }
    }

    /// The state of what lies `by` bytes farther on.
    fn advanced(self, by: u64) -> Self {
        match self {
            Self::Data(at) => Self::Data(at.saturating_add(by)),
            Self::Zero(at) if at != 0 => Self::Zero(at.saturating_add(by)),
            other => other,
        }
    }

    fn kind(self, other: Self) -> Kind {
        match (self, other) {
            (Self::Outside, _) => Kind::Added,
            (_, Self::Outside) => Kind::Removed,
            (Self::Data(_), Self::Data(_))
            | (Self::Compressed(_), Self::Compressed(_))
            | (Self::Zero(_), Self::Zero(_)) => Kind::Moved,
            (_, Self::Unallocated) => Kind::Freed,
            (_, Self::Zero(_)) => Kind::Zeroed,
            (_, Self::Compressed(_)) => Kind::Compressed,
            (Self::Unallocated | Self::Zero(_), Self::Data(_)) => Kind::Allocated,
            _ => Kind::Changed,
        }
    }
}

/// The mapping of a disk as runs in guest order: ranges in one state, whose places follow each other.
struct Mapping<'i, 'a> {
    image: &'i Image<'a>,
    /// Up to where runs were given.
    at: u64,
    /// Runs read and not given yet, the next one last.
    ready: Vec<(Range<u64>, State)>,
    /// A piece of the L1 table: first index, entries.
    l1: (u64, Vec<u8>),
}

impl<'i, 'a> Mapping<'i, 'a> {
    fn new(image: &'i Image<'a>) -> Self {
        Self { image, at: 0, ready: Vec::new(), l1: (u64::MAX, Vec::new()) }
    }

    /// The L1 entry, and how many entries from there on are as empty.
    fn l1_entry(&mut self, index: u64) -> Result<(u64, u64), Error> {
        let entries = self.image.l1_entries();
        if index >= entries {
            return Ok((0, u64::MAX));
        }
        let first = (index / (PIECE / 8)).saturating_mul(PIECE / 8);
        if self.l1.0 != first {
            let at = self.image.field("l1_table_offset").saturating_add(first.saturating_mul(8));
            let len = entries.saturating_sub(first).saturating_mul(8).min(PIECE);
            self.l1 = (first, get(self.image.source, at, len)?);
        }
        let from = usize::try_from(index.saturating_sub(first)).unwrap_or(0);
        let rest = self.l1.1.as_chunks::<8>().0.get(from..).unwrap_or_default();
        let raw = rest.first().map_or(0, |raw| u64::from_be_bytes(*raw));
        let empty = rest.iter().take_while(|raw| **raw == [0; 8]).count();
        Ok((raw, empty as u64))
    }

    /// The run at or around `from`; past the end everything is outside.
    fn next(&mut self) -> Result<(Range<u64>, State), Error> {
        loop {
            if let Some(run) = self.ready.pop() {
                self.at = run.0.end;
                return Ok(run);
            }
            let size = self.image.field("size");
            if self.at >= size {
                return Ok((self.at..u64::MAX, State::Outside));
            }
            let window = self.image.window().max(1);
            let index = self.at.checked_div(window).unwrap_or(0);
            let (raw, empty) = self.l1_entry(index)?;
            let table = raw & OFFSET;
            if table == 0 || table >= self.image.source.len() {
                let end = index.saturating_add(empty.max(1)).saturating_mul(window).min(size);
                let run = (self.at..end, State::Unallocated);
                self.at = end;
                return Ok(run);
            }
            self.piece(table, index.saturating_mul(window))?;
        }
    }

    /// Reads on in an L2 table whose window begins at `start`.
    fn piece(&mut self, table: u64, start: u64) -> Result<(), Error> {
        let (cluster, extended) = (self.image.cluster(), self.image.extended());
        let entry = if extended { 16u64 } else { 8 };
        let size = self.image.field("size");
        let done = (self.at.saturating_sub(start) >> self.image.cluster_bits()).saturating_mul(entry);
        let len = cluster.saturating_sub(done).min(PIECE);
        let mut bytes = get(self.image.source, table.saturating_add(done), len)?;
        // What a truncated file does not have is not mapped.
        bytes.resize(usize::try_from(len).unwrap_or(0), 0);
        let mut runs: Vec<(Range<u64>, State)> = Vec::new();
        let mut guest = self.at;
        let mut push = |range: Range<u64>, state: State| {
            let range = range.start..range.end.min(size);
            if range.is_empty() {
                return;
            }
            if let Some((last, of)) = runs.last_mut()
                && last.end == range.start
                && !matches!(state, State::Compressed(_))
                && of.advanced(last.end.saturating_sub(last.start)) == state
            {
                last.end = range.end;
                return;
            }
            runs.push((range, state));
        };
        for words in bytes.chunks_exact(usize::try_from(entry).unwrap_or(8)) {
            let (raw, bitmap) = (be_u64(words, 0), be_u64(words, 8));
            let end = guest.saturating_add(cluster);
            let place = raw & OFFSET;
            match () {
                () if raw & COMPRESSED != 0 => push(guest..end, State::Compressed(raw)),
                () if extended => {
                    let sub = cluster / 32;
                    for number in 0..32u64 {
                        let from = guest.saturating_add(number.saturating_mul(sub));
                        let at = if place == 0 { 0 } else { place.saturating_add(number.saturating_mul(sub)) };
                        let state = match (bitmap >> number & 1, bitmap >> number >> 32 & 1) {
                            (1, _) => State::Data(at),
                            (_, 1) => State::Zero(at),
                            _ => State::Unallocated,
                        };
                        push(from..from.saturating_add(sub), state);
                    }
                }
                () if raw & 1 != 0 => push(guest..end, State::Zero(place)),
                () if place != 0 => push(guest..end, State::Data(place)),
                () => push(guest..end, State::Unallocated),
            }
            guest = end;
        }
        runs.reverse();
        if runs.is_empty() {
            // Nothing of it is on the disk: it can not be asked for again.
            self.at = size;
        }
        self.ready = runs;
        Ok(())
    }
}

/// Where both are compared, piece by piece.
fn mapping(a: &Image<'_>, b: &Image<'_>, tell: &mut Tell<'_>) -> Result<(), Error> {
    let (mut ours, mut theirs) = (Mapping::new(a), Mapping::new(b));
    let (mut one, mut other) = (ours.next()?, theirs.next()?);
    let mut open: Option<(Range<u64>, Kind, State, State)> = None;
    let mut at = 0u64;
    let cluster = a.cluster().min(b.cluster()).max(1);
    let close = |open: &mut Option<(Range<u64>, Kind, State, State)>, tell: &mut Tell<'_>| match open.take() {
        None => Ok(()),
        Some((range, kind, was, is)) => {
            let clusters = range.end.saturating_sub(range.start).div_ceil(cluster);
            let change = Change::new("mapping", kind, "guest range").values(was.show(), is.show()).count(clusters);
            tell.change(&change.guest(range))
        }
    };
    let mut turns = 0u32;
    while at < u64::MAX {
        turns = turns.wrapping_add(1);
        if turns.is_multiple_of(256) {
            tell.stop()?;
        }
        let end = one.0.end.min(other.0.end);
        let was = one.1.advanced(at.saturating_sub(one.0.start));
        let is = other.1.advanced(at.saturating_sub(other.0.start));
        if was != is {
            let kind = was.kind(is);
            match &mut open {
                Some((range, of, ..)) if *of == kind && range.end == at => range.end = end,
                _ => {
                    close(&mut open, tell)?;
                    open = Some((at..end, kind, was, is));
                }
            }
        }
        if one.0.end == end && end < u64::MAX {
            one = ours.next()?;
        }
        if other.0.end == end && end < u64::MAX {
            other = theirs.next()?;
        }
        at = end;
    }
    close(&mut open, tell)
}

/// Reference counts as runs of clusters of the file.
struct Counts<'i, 'a> {
    image: &'i Image<'a>,
    at: u64,
    table: (u64, Vec<u8>),
    /// First cluster of the part of a block, and its bytes.
    block: (u64, Vec<u8>),
}

impl<'i, 'a> Counts<'i, 'a> {
    fn new(image: &'i Image<'a>) -> Self {
        Self { image, at: 0, table: (u64::MAX, Vec::new()), block: (u64::MAX, Vec::new()) }
    }

    /// Counts in a block.
    fn per_block(&self) -> u64 {
        self.image.cluster().saturating_mul(8) >> self.image.refcount_order()
    }

    fn next(&mut self) -> Result<(Range<u64>, u64), Error> {
        let image = self.image;
        let offset = image.field("refcount_table_offset");
        let room = image.source.len().saturating_sub(offset) / 8;
        let entries = image.field("refcount_table_clusters").saturating_mul(image.cluster() / 8).min(room);
        let per_block = self.per_block().max(1);
        let index = self.at.checked_div(per_block).unwrap_or(0);
        if index >= entries {
            return Ok((self.at..u64::MAX, 0));
        }
        let first = (index / (PIECE / 8)).saturating_mul(PIECE / 8);
        if self.table.0 != first {
            let len = entries.saturating_sub(first).saturating_mul(8).min(PIECE);
            self.table = (first, get(image.source, offset.saturating_add(first.saturating_mul(8)), len)?);
        }
        let from = usize::try_from(index.saturating_sub(first)).unwrap_or(0);
        let rest = self.table.1.as_chunks::<8>().0.get(from..).unwrap_or_default();
        let place = rest.first().map_or(0, |raw| u64::from_be_bytes(*raw)) & !511;
        if place == 0 || place >= image.source.len() {
            let empty = rest.iter().take_while(|raw| **raw == [0; 8]).count().max(1) as u64;
            let end = index.saturating_add(empty).saturating_mul(per_block);
            let run = (self.at..end, 0);
            self.at = end;
            return Ok(run);
        }
        let order = image.refcount_order();
        let counts = (PIECE.min(image.cluster()).saturating_mul(8) >> order).max(1);
        let start = self.at.checked_div(counts).unwrap_or(0).saturating_mul(counts);
        if self.block.0 != start {
            let within = start.saturating_sub(index.saturating_mul(per_block));
            let len = PIECE.min(image.cluster());
            let at = place.saturating_add((within << order) / 8);
            let mut bytes = get(image.source, at, len)?;
            bytes.resize(usize::try_from(len).unwrap_or(0), 0);
            self.block = (start, bytes);
        }
        let value = |cluster: u64| count_at(&self.block.1, cluster.saturating_sub(start), order);
        let count = value(self.at);
        let mut end = self.at.saturating_add(1);
        let last = start.saturating_add(counts);
        while end < last && value(end) == count {
            end = end.saturating_add(1);
        }
        let run = (self.at..end, count);
        self.at = end;
        Ok(run)
    }
}

/// The count at a place of a block. Narrow ones lie low bits first within a byte.
fn count_at(block: &[u8], index: u64, order: u32) -> u64 {
    let at = |bytes: u64| usize::try_from(index.saturating_mul(bytes)).unwrap_or(usize::MAX);
    match order {
        0..3 => {
            let bit = index << order;
            let byte = usize::try_from(bit / 8).ok().and_then(|at| block.get(at)).copied().unwrap_or(0);
            u64::from(byte) >> (bit % 8) & (1u64 << (1u32 << order)).wrapping_sub(1)
        }
        3 => u64::from(block.get(at(1)).copied().unwrap_or(0)),
        4 => u64::from(be_u16(block, at(2))),
        5 => u64::from(be_u32(block, at(4))),
        _ => be_u64(block, at(8)),
    }
}

fn counts(a: &Image<'_>, b: &Image<'_>, tell: &mut Tell<'_>) -> Result<(), Error> {
    if a.cluster() != b.cluster() {
        // Clusters of the two files are not the same things.
        return Ok(());
    }
    let cluster = a.cluster();
    let (mut ours, mut theirs) = (Counts::new(a), Counts::new(b));
    let (mut one, mut other) = (ours.next()?, theirs.next()?);
    let mut open: Option<(Range<u64>, u64, u64)> = None;
    let close = |open: &mut Option<(Range<u64>, u64, u64)>, tell: &mut Tell<'_>| match open.take() {
        None => Ok(()),
        Some((run, was, is)) => {
            let what =
                format!("clusters {:#x}..{:#x}", run.start.saturating_mul(cluster), run.end.saturating_mul(cluster));
            let kind = match (was, is) {
                (0, _) => Kind::Allocated,
                (_, 0) => Kind::Freed,
                _ => Kind::Changed,
            };
            let count = run.end.saturating_sub(run.start);
            tell.change(&Change::new("refcounts", kind, what).values(was.to_string(), is.to_string()).count(count))
        }
    };
    let (mut at, mut turns) = (0u64, 0u32);
    while at < u64::MAX {
        turns = turns.wrapping_add(1);
        if turns.is_multiple_of(256) {
            tell.stop()?;
        }
        let end = one.0.end.min(other.0.end);
        if one.1 != other.1 {
            match &mut open {
                Some((run, was, is)) if run.end == at && (*was, *is) == (one.1, other.1) => run.end = end,
                _ => {
                    close(&mut open, tell)?;
                    open = Some((at..end, one.1, other.1));
                }
            }
        }
        if one.0.end == end && end < u64::MAX {
            one = ours.next()?;
        }
        if other.0.end == end && end < u64::MAX {
            other = theirs.next()?;
        }
        at = end;
    }
    close(&mut open, tell)
}
