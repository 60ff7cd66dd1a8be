//! The descriptor: a text of `key = value` lines and lines that name extents (VMDK-10, VMDK-11).
//!
//! Read strictly where the meaning is at stake and kindly everywhere else: spaces, letter case of keys, line ends and
//! comments do not matter. Names in it are data.

use crate::code::Severity;
use crate::context::Context;
use crate::finding::Finding;
use crate::report::Reference;

use super::codes;

/// What a descriptor begins with.
pub(super) const MAGIC: &[u8] = b"# Disk DescriptorFile";
/// The longest descriptor looked at.
pub(super) const MAX: u64 = 1 << 20;
/// A content id of nobody.
pub(super) const NO_PARENT: u32 = 0xffff_ffff;

const TYPES: &[&str] = &[
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
    "fullDevice",
    "partitionedDevice",
    "custom",
    "vmfs",
    "vmfsSparse",
    "vmfsThin",
    "vmfsPreallocated",
    "vmfsEagerZeroedThick",
    "vmfsRaw",
    "vmfsRDM",
    "vmfsRDMP",
    "vmfsRawDeviceMap",
    "vmfsPassthroughRawDeviceMap",
    "seSparse",
    "vsanSparse",
];

/// How an extent's file is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExtentKind {
    /// Bytes of the guest from an offset on.
    Flat,
    /// A hosted sparse extent, a COWD or a seSparse one.
    Sparse,
    /// No file.
    Zero,
    /// A device, or something on VMFS nobody else can read.
    Device,
}

/// A line that names an extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) sectors: u64,
    pub(super) kind: ExtentKind,
    /// As written: `SPARSE`.
    pub(super) word: String,
    pub(super) name: String,
    /// In sectors, of flat ones.
    pub(super) offset: u64,
}

/// What a descriptor says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) version: Option<String>,
    pub(super) cid: Option<u32>,
    pub(super) parent_cid: Option<u32>,
    pub(super) create_type: Option<String>,
    pub(super) parent: Option<String>,
    pub(super) extents: Vec<Extent>,
    /// Lines that can not be understood, with their number, safe to show.
    pub(super) strange: Vec<(usize, String)>,
    /// Keys that stand there more than once with different values.
    pub(super) repeated: Vec<&'static str>,
}

impl Descriptor {
    /// Reads the text up to the first zero byte.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        let mut all = Self::default();
        for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let line = String::from_utf8_lossy(line);
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(extent) = parse_extent(line) {
                all.extents.push(extent);
            } else if !all.take(line) && all.strange.len() < 16 {
                all.strange.push((number.saturating_add(1), safe(line)));
            }
        }
        all
    }

    /// A `key = value` line; `false` if it is none.
    fn take(&mut self, line: &str) -> bool {
        let access = line.split_whitespace().next().unwrap_or_default();
        let Some((key, value)) = line.split_once('=') else { return false };
        if ["RW", "RDONLY", "NOACCESS"].contains(&access) {
            return false;
        }
        let value = value.trim().trim_matches('"');
        let hex = || u32::from_str_radix(value, 16).ok();
        let key = key.trim().to_ascii_lowercase();
        let mut repeat = None;
        match key.as_str() {
            "version" => repeat = set(&mut self.version, value.to_owned()).then_some("version"),
            "cid" => match hex() {
                Some(id) => repeat = set(&mut self.cid, id).then_some("CID"),
                None => return false,
            },
            "parentcid" => match hex() {
                Some(id) => repeat = set(&mut self.parent_cid, id).then_some("parentCID"),
                None => return false,
            },
            "createtype" => repeat = set(&mut self.create_type, value.to_owned()).then_some("createType"),
            "parentfilenamehint" => repeat = set(&mut self.parent, value.to_owned()).then_some("parentFileNameHint"),
            _ => {}
        }
        self.repeated.extend(repeat);
        true
    }

    /// Sectors of all extents together.
    pub(super) fn sectors(&self) -> Option<u64> {
        self.extents.iter().try_fold(0u64, |sum, extent| sum.checked_add(extent.sectors))
    }

    /// Tells what it says and what is wrong with it. `place` is where it stands.
    pub(super) fn check(&self, cx: &mut Context<'_>, place: std::ops::Range<u64>, top: bool) {
        if top {
            cx.fact("create type", safe(self.create_type.as_deref().unwrap_or("none")));
            cx.fact("content id", self.cid.map_or("none".to_owned(), |id| format!("{id:08x}")));
            cx.fact("parent content id", self.parent_cid.map_or("none".to_owned(), |id| format!("{id:08x}")));
        }
        let mut missing: Vec<String> = Vec::new();
        for (there, name) in [
            (self.version.is_some(), "version"),
            (self.cid.is_some(), "CID"),
            (self.create_type.is_some(), "createType"),
        ] {
            if !there {
                missing.push(format!("there is no {name}"));
            }
        }
        if let Some(other) = self.version.as_deref().filter(|version| !["1", "2", "3", "4"].contains(version)) {
            missing.push(format!("version '{}' is not known", safe(other)));
        }
        if let Some(other) = self.create_type.as_deref().filter(|word| !TYPES.contains(word)) {
            missing.push(format!("createType '{}' is not known", safe(other)));
        }
        for key in &self.repeated {
            missing.push(format!("{key} stands there twice, with different values"));
        }
        let delta = self.parent_cid.is_some_and(|id| id != NO_PARENT);
        if delta && self.parent.is_none() {
            missing.push("it is a delta disk (parentCID), but parentFileNameHint is missing".to_owned());
        }
        if !delta && self.parent.is_some() {
            missing.push("parentFileNameHint names a parent, but parentCID says that there is none".to_owned());
        }
        for (number, line) in &self.strange {
            missing.push(format!("line {number} means nothing: '{line}'"));
        }
        if self.parent_cid.is_none() {
            let words = "the descriptor: there is no parentCID, without which programs do not open the disk";
            let finding = Finding::new(codes::DESCRIPTOR_FIELD, words).severity(Severity::Corruption);
            cx.find(finding.host(place.clone()));
        }
        for words in missing {
            let words = format!("the descriptor: {words}");
            cx.find(Finding::new(codes::DESCRIPTOR_FIELD, words).host(place.clone()));
        }
        if let Some(parent) = self.parent.as_deref().filter(|_| delta) {
            cx.references.push(Reference { role: "parent", name: parent.to_owned(), format: Some("vmdk".to_owned()) });
            if cx.options.untrusted {
                let words = format!("names '{}' as its parent", safe(parent));
                cx.find(Finding::new(codes::EXTENT_NAMED, words).host(place));
            }
        }
    }

    /// The one extent of an image that contains its own descriptor: no more than the header's capacity.
    pub(super) fn check_embedded(&self, cx: &mut Context<'_>, place: std::ops::Range<u64>, capacity: u64) {
        let Some(sectors) = self.sectors().filter(|sectors| *sectors > 0) else {
            let words = "the embedded descriptor names no extent".to_owned();
            cx.find(Finding::new(codes::DESCRIPTOR_FIELD, words).severity(Severity::Warning).host(place));
            return;
        };
        if sectors != capacity {
            let words = format!("the descriptor's extents have {sectors} sectors, the header says {capacity}");
            let short = sectors.min(capacity).saturating_mul(512)..sectors.max(capacity).saturating_mul(512);
            cx.find(Finding::new(codes::DESCRIPTOR_SIZE, words).host(place).guest(short));
        }
    }
}

/// Sets a value; `true` if another one was there.
fn set<T: PartialEq>(slot: &mut Option<T>, value: T) -> bool {
    match slot {
        Some(there) => *there != value,
        None => {
            *slot = Some(value);
            false
        }
    }
}

/// `RW 4192256 SPARSE "name-s001.vmdk"`, `RW 4192256 FLAT "name" 0`, `RW 63 ZERO`.
fn parse_extent(line: &str) -> Option<Extent> {
    let (access, rest) = line.split_once(char::is_whitespace)?;
    if !["RW", "RDONLY", "NOACCESS"].iter().any(|word| word.eq_ignore_ascii_case(access)) {
        return None;
    }
    let (sectors, rest) = rest.trim_start().split_once(char::is_whitespace)?;
    let sectors = sectors.parse().ok()?;
    let rest = rest.trim_start();
    let (word, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let word = word.to_ascii_uppercase();
    let kind = match word.as_str() {
        "FLAT" | "VMFS" => ExtentKind::Flat,
        "SPARSE" | "VMFSSPARSE" | "SESPARSE" => ExtentKind::Sparse,
        "ZERO" => ExtentKind::Zero,
        "VMFSRDM" | "VMFSRAW" => ExtentKind::Device,
        _ => return None,
    };
    let rest = rest.trim();
    let (name, rest) = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"')?,
        None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
    };
    if name.is_empty() && kind != ExtentKind::Zero {
        return None;
    }
    let offset = match rest.split_whitespace().next() {
        Some(number) if kind == ExtentKind::Flat => number.parse().ok()?,
        _ => 0,
    };
    Some(Extent { sectors, kind, word, name: name.to_owned(), offset })
}

/// A name from an image, as it may be shown: control characters escaped, not longer than a line.
pub(super) fn safe(text: &str) -> String {
    let mut out: String = text
        .chars()
        .take(120)
        .flat_map(|one| {
            let shown: Vec<char> = if one.is_control() { one.escape_default().collect() } else { vec![one] };
            shown
        })
        .collect();
    if text.chars().nth(120).is_some() {
        out.push('…');
    }
    out
}

/// Whether a name stays in the folder of the image that names it (H13).
pub(super) fn stays(name: &str) -> bool {
    let strange = name.contains('\\') || name.contains('\0') || name.contains("://");
    let plain = std::path::Path::new(name)
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir));
    !name.is_empty() && !strange && plain
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn extent_lines() {
        for (line, want) in [
            ("RW 4192256 SPARSE \"a b-s001.vmdk\"", Some((4_192_256, ExtentKind::Sparse, "a b-s001.vmdk", 0))),
            ("rdonly  10 FLAT \"x\"  128", Some((10, ExtentKind::Flat, "x", 128))),
            ("RW 63 ZERO", Some((63, ExtentKind::Zero, "", 0))),
            ("RW 63 VMFSSPARSE x.vmdk", Some((63, ExtentKind::Sparse, "x.vmdk", 0))),
            ("NOACCESS 1 VMFSRDM \"d\"", Some((1, ExtentKind::Device, "d", 0))),
            ("RW -1 FLAT \"x\" 0", None),
            ("RW 1 FLAT \"x 0", None),
            ("RW 1 FLAT", None),
            ("RW 18446744073709551616 FLAT \"x\" 0", None),
            ("RW 1 WHAT \"x\"", None),
            ("CID=1", None),
        ] {
            let got = parse_extent(line);
            let got = got.as_ref().map(|one| (one.sectors, one.kind, one.name.as_str(), one.offset));
            assert_eq!(got, want, "{line}");
        }
    }

    #[test]
    fn names_that_leave_the_folder() {
        for (name, stay) in [
            ("disk-s001.vmdk", true),
            ("sub/disk.vmdk", true),
            ("./disk.vmdk", true),
            ("..disk", true),
            ("/etc/shadow", false),
            ("../other.vmdk", false),
            ("sub/../../other", false),
            ("C:\\disk.vmdk", false),
            ("nbd://host/x", false),
            ("", false),
        ] {
            assert_eq!(stays(name), stay, "{name}");
        }
    }

    #[test]
    fn names_are_shown_without_their_control_characters() {
        assert_eq!(safe("a\u{1b}[31mb"), "a\\u{1b}[31mb");
        assert_eq!(safe(&"x".repeat(121)).chars().count(), 121);
    }
}
