//! Everything about a qcow2 image that is not mapping or counting: header, extensions, snapshot table, bitmaps,
//! encryption header, names of other files. Runs first; what it learns is what the mapping is read with.
//!
//! Order: header ([`super::header`]), extensions, feature bits, names of other files, encryption header, snapshot
//! table, bitmaps; then the facts, in the order of the header's fields.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::code::Code;
use crate::context::Context;
use crate::finding::Finding;
use crate::map::{Claim, Class};

use super::header::{DIRTY, Geometry, Head, Header};
use super::{bitmaps, encryption, extensions, features, header, references, snapshots};

/// A table of 8-byte entries the header or the snapshot table names: already checked to be aligned and inside the file
/// as far as `entries` says. What is wrong with it has been reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// First byte; a multiple of the cluster size, not 0.
    pub(crate) offset: u64,
    /// Entries whose 8 bytes are all inside the file.
    pub(crate) entries: u64,
    /// Entries it is said to have, or should have where that can not be believed.
    pub(crate) stored_entries: u64,
}

/// A snapshot's L1 table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotL1 {
    /// Its place in the snapshot table.
    pub(crate) index: u64,
    /// Safe to print, shortened.
    pub(crate) name: String,
    /// As stored.
    pub(crate) l1_offset: u64,
    /// Entries, as stored.
    pub(crate) l1_size: u64,
    /// Where it can be read; `None` if it has no entries or can not be read (said already).
    pub(crate) l1: Option<Table>,
    /// Size of the disk then.
    pub(crate) disk_size: u64,
    /// Bytes.
    pub(crate) vm_state_size: u64,
}

/// What the rest of the analysis stands on.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    /// The fields used: as stored, with what `Options::assume` replaces.
    pub(crate) header: Header,
    /// `None`: clusters can not be found (said already, and nobody will call the image healthy).
    pub(crate) geometry: Option<Geometry>,
    /// The active L1 table; `None` if it has no entries or can not be read (said already, its guest bytes are lost).
    pub(crate) l1: Option<Table>,
    /// The refcount table; `None` if it can not be read (said already).
    pub(crate) refcount_table: Option<Table>,
    /// Header cluster, snapshot table, encryption area, bitmap directory, tables and data: one reference to each
    /// cluster every claim touches. Not among them: refcount table and L1 tables.
    pub(crate) claims: Vec<Claim>,
    /// Whether `claims` and `snapshots` are all there is; if not, nobody may be called leaked.
    pub(crate) claims_complete: bool,
    /// In the order of the table.
    pub(crate) snapshots: Vec<SnapshotL1>,
    /// Incompatible bit 0: counts may be stale.
    pub(crate) dirty: bool,
}

/// Reads and checks it all.
pub(crate) fn look(cx: &mut Context<'_>) -> Side {
    let mut head = header::read(cx);
    let extensions = extensions::read(cx, &head);
    let features = features::judge(cx, &head.header, &extensions);
    if features.newer {
        head.geometry = None;
    }
    let names = references::judge(cx, &head, &extensions);
    references::judge_data_file(cx, &head.header);

    let mut claims = Claims::new();
    if let Some(geometry) = &head.geometry {
        claims.add(cx, 0, geometry.cluster_size(), Class::Header, 0);
    }
    let encryption = encryption::judge(cx, &head, &extensions, &mut claims);
    let snapshots = snapshots::read(cx, &head, &mut claims);
    let bitmaps = if head.dead { None } else { bitmaps::judge(cx, &head, &extensions, &mut claims) };

    if !head.dead || head.geometry.is_some() {
        tell(cx, &head, &features.names, &names, [encryption, snapshots.fact, bitmaps]);
    }
    if head.dead || head.cut {
        // Extensions, snapshots and bitmaps are not known, or what the rest of a table refers to.
        claims.complete = false;
    }
    if !claims.complete {
        cx.could_not("which clusters are leaked: some of the structures that may use them could not be read");
    }
    let header = head.header;
    Side {
        dirty: header.incompatible & DIRTY != 0,
        geometry: head.geometry,
        l1: head.l1.filter(|table| table.entries > 0),
        refcount_table: head.refcount_table.filter(|table| table.entries > 0),
        claims: claims.list,
        claims_complete: claims.complete,
        snapshots: snapshots.list,
        header,
    }
}

/// What the image says of itself, in the header's order.
fn tell(
    cx: &mut Context<'_>,
    head: &Head,
    features: &[String],
    names: &references::References,
    rest: [Option<String>; 3],
) {
    let header = &head.header;
    let none = || "none".to_owned();
    cx.fact("version", header.version.to_string());
    cx.fact("virtual size", size_text(header.size));
    if let Some(geometry) = &head.geometry {
        cx.fact("cluster size", size_text(geometry.cluster_size()));
        cx.fact("refcount bits", geometry.refcount_bits().to_string());
    }
    let compression = match header.compression_type {
        0 => "deflate".to_owned(),
        1 => "zstd".to_owned(),
        other => format!("unknown type {other}"),
    };
    cx.fact("compression type", compression);
    cx.fact("features", if features.is_empty() { none() } else { features.join(", ") });
    let [encryption, snapshots, bitmaps] = rest;
    for (name, value) in [
        ("backing file", names.backing.clone()),
        ("data file", names.data_file.clone()),
        ("encryption", encryption),
        ("snapshots", snapshots),
        ("bitmaps", bitmaps),
    ] {
        cx.fact(name, value.unwrap_or_else(none));
    }
}

/// A size as a person writes it, with its bytes.
pub(crate) fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (bytes.max(1).ilog2() / 10).min(6);
    let Some(name) = usize::try_from(unit).ok().and_then(|unit| UNITS.get(unit)).filter(|_| unit > 0) else {
        return format!("{bytes} bytes");
    };
    let shift = unit.saturating_mul(10);
    let (whole, part) = (bytes >> shift, bytes & (1u64 << shift).wrapping_sub(1));
    match part {
        0 => format!("{whole} {name} ({bytes} bytes)"),
        // Tenths, rounded down.
        _ => format!("{whole}.{} {name} ({bytes} bytes)", (u128::from(part).saturating_mul(10)) >> shift),
    }
}

/// Bytes of claims in all: four bitmaps of a 64 TiB disk with a bit for every sector.
const CLAIMED_MAX: u64 = 64 << 30;

/// Stretches of the file that belong to something, as they are found.
pub(crate) struct Claims {
    list: Vec<Claim>,
    /// Whether everything that was found is in the list.
    pub(crate) complete: bool,
    /// Bytes in all claims. Each is counted cluster by cluster later: structures that name each other's places over and
    /// over must not make that endless.
    bytes: u64,
}

impl Claims {
    fn new() -> Self {
        Self { list: Vec::new(), complete: true, bytes: 0 }
    }

    /// Adds one; what is past the end of the file is left out. Neighbours of one thing are kept as one.
    pub(crate) fn add(&mut self, cx: &mut Context<'_>, start: u64, len: u64, class: Class, index: u64) {
        let len = if class == Class::Header { len } else { len.min(cx.file_len().saturating_sub(start)) };
        if len == 0 {
            return;
        }
        self.bytes = self.bytes.saturating_add(len);
        if self.bytes > CLAIMED_MAX {
            self.left_out(cx);
            return;
        }
        if let Some(last) = self.list.last_mut()
            && (last.class, last.index) == (class, index)
            && last.range().end == start
        {
            last.len = last.len.saturating_add(len);
            return;
        }
        if self.list.len() == self.list.capacity() {
            let more = self.list.len().max(64);
            let bytes = (more as u64).saturating_mul(size_of::<Claim>() as u64);
            // The other half is for those who map and count.
            if cx.budget.left() < (cx.options.memory / 2).saturating_add(bytes) || cx.budget.take(bytes).is_err() {
                self.left_out(cx);
                return;
            }
            self.list.reserve_exact(more);
        }
        self.list.push(Claim { start, len, class, index });
    }

    fn left_out(&mut self, cx: &mut Context<'_>) {
        if std::mem::replace(&mut self.complete, false) {
            cx.could_not("all clusters of the side structures: there are more than memory (--memory) allows, or more than anybody makes");
        }
    }
}

/// Bytes read at a time by a [`Window`].
const WINDOW: usize = 64 << 10;

/// A stretch of the file, read on as needed.
pub(crate) struct Window {
    what: &'static str,
    at: u64,
    bytes: Vec<u8>,
}

impl Window {
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, at: 0, bytes: Vec::new() }
    }

    /// Up to `len` bytes from `at`, fewer only at the end of the file. Callers bound `len` by 64 KiB.
    pub(crate) fn get(&mut self, cx: &mut Context<'_>, at: u64, len: usize) -> &[u8] {
        let end = at.saturating_add(len as u64).min(cx.file_len());
        if at < self.at || end > self.at.saturating_add(self.bytes.len() as u64) {
            self.bytes = cx.read(at, len.max(WINDOW), self.what);
            self.at = at;
        }
        let from = usize::try_from(at.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let to = from.saturating_add(len).min(self.bytes.len());
        self.bytes.get(from..to).unwrap_or_default()
    }
}

/// Folds equal findings about neighbouring entries into one each.
pub(crate) struct Runs {
    noun: &'static str,
    open: BTreeMap<&'static str, (u64, Finding)>,
}

impl Runs {
    /// `noun` is what an entry is called.
    pub(crate) fn new(noun: &'static str) -> Self {
        Self { noun, open: BTreeMap::new() }
    }

    /// Something is wrong with entry `index`; `what` is asked for if it begins a run.
    pub(crate) fn hit(
        &mut self,
        cx: &mut Context<'_>,
        code: &'static Code,
        index: u64,
        host: Range<u64>,
        what: impl FnOnce() -> String,
    ) {
        if let Some((last, finding)) = self.open.get_mut(code.name)
            && index == last.saturating_add(1)
        {
            *last = index;
            finding.count = finding.count.saturating_add(1);
            if let Some(range) = finding.host.first_mut() {
                range.end = range.end.max(host.end);
            }
            return;
        }
        let begun = (index, Finding::new(code, what()).host(host));
        if let Some((_, finding)) = self.open.insert(code.name, begun) {
            self.add(cx, finding);
        }
    }

    /// Hands over what is left.
    pub(crate) fn end(&mut self, cx: &mut Context<'_>) {
        for (_, (_, finding)) in std::mem::take(&mut self.open) {
            self.add(cx, finding);
        }
    }

    fn add(&self, cx: &mut Context<'_>, mut finding: Finding) {
        match finding.count {
            1 => {}
            2 => finding.what.push_str(&format!("; the same of the next {}", self.noun)),
            count => finding.what.push_str(&format!(
                "; the same of the next {} in a row (each a {})",
                count.saturating_sub(1),
                self.noun
            )),
        }
        cx.find(finding);
    }
}
