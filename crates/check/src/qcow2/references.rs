//! Names of other files inside the image: the backing file and the external data file (Q-H7, Q-X2, Q-F6).
//!
//! Names are data. Nothing is opened because of them, nor read as a protocol; for an image of unknown origin each is a
//! finding.

use crate::bytes::printable;
use crate::context::Context;
use crate::finding::Finding;
use crate::report::Reference;

use super::codes::structure as codes;
use super::extensions::Extensions;
use super::header::{EXTERNAL_DATA, Head, Header, RAW_DATA};

/// Longest name of a backing file there can be.
const NAME_MAX: u64 = 1023;
/// Characters shown of a name.
const SHOWN: usize = 1100;

/// Facts about other files.
#[derive(Default)]
pub(crate) struct References {
    pub(crate) backing: Option<String>,
    pub(crate) data_file: Option<String>,
}

/// Finds and judges the names.
pub(crate) fn judge(cx: &mut Context<'_>, head: &Head, extensions: &Extensions) -> References {
    let mut found = References::default();
    if head.dead {
        return found;
    }
    if let Some(name) = backing_name(cx, head, extensions) {
        let format = extensions.backing_format.as_ref().map(|format| printable(format, 32));
        if format.is_none() {
            let words = format!("nothing says in what format the backing file '{name}' is");
            cx.find(Finding::new(codes::BACKING_PROBED, words).host(backing_range(&head.header)));
        }
        if cx.options.untrusted {
            let words = format!("the backing file is '{name}', {}", kind(&name));
            cx.find(Finding::new(codes::POLICY_REFERENCE, words).host(backing_range(&head.header)));
        }
        cx.not_checked(format!(
            "the backing file '{name}', from which clusters this image does not have are read, was not opened"
        ));
        found.backing = Some(match &format {
            Some(format) => format!("{name} ({format})"),
            None => format!("{name} (format not stated)"),
        });
        cx.references.push(Reference { role: "backing file", name, format });
    }
    found.data_file = data_file(cx, &head.header, extensions);
    found
}

fn backing_range(header: &Header) -> std::ops::Range<u64> {
    header.backing_offset..header.backing_offset.saturating_add(u64::from(header.backing_len))
}

/// The backing file's name, if there is one where one can be.
fn backing_name(cx: &mut Context<'_>, head: &Head, extensions: &Extensions) -> Option<String> {
    let header = &head.header;
    if header.backing_offset == 0 {
        return None;
    }
    let range = backing_range(header);
    let cluster = head.geometry.map_or(u64::MAX, |geometry| geometry.cluster_size());
    // Readers refuse a place outside the first cluster before they look at the length.
    if header.backing_len == 0 && range.start <= cluster {
        let words = format!("the backing file's name is at {:#x} and has 0 bytes", range.start);
        cx.find(Finding::new(codes::BACKING_UNUSED, words).host(8..20));
        return None;
    }
    if range.end > cluster.min(cx.file_len()) || u64::from(header.backing_len) > NAME_MAX {
        let words = format!(
            "the backing file's name has {} bytes at {:#x}; {NAME_MAX} bytes at most are possible, inside the first cluster",
            header.backing_len, range.start
        );
        cx.find(Finding::new(codes::HEADER_BACKING_NAME, words).host(8..20));
        return None;
    }
    let header_end =
        if extensions.whole { extensions.end.min(range.start).max(u64::from(header.header_length)) } else { 0 };
    if range.start < header_end {
        let words = format!(
            "the backing file's name {:#x}..{:#x} lies on the header, which ends at {header_end:#x}",
            range.start, range.end
        );
        cx.find(Finding::new(codes::HEADER_BACKING_OVERLAP, words).host(range.clone()));
    }
    let len = usize::try_from(header.backing_len).unwrap_or(0);
    let bytes = cx.read(range.start, len, "the backing file's name");
    Some(printable(&bytes, SHOWN))
}

fn data_file(cx: &mut Context<'_>, header: &Header, extensions: &Extensions) -> Option<String> {
    let external = header.incompatible & EXTERNAL_DATA != 0;
    let raw = header.autoclear & RAW_DATA != 0;
    let name = extensions.data_file.as_ref().map(|name| printable(name, SHOWN));
    let Some(name) = name else {
        if external && extensions.whole {
            let words = "incompatible bit 2 (external data file) is set, but no name is given";
            cx.find(Finding::new(codes::DATA_FILE_UNNAMED, words).host(72..80));
        }
        if external {
            not_opened(cx, "the external data file");
        }
        return external.then(|| "not named".to_owned());
    };
    if !external {
        let words = format!("the data file '{name}' is named, but incompatible bit 2 (external data file) is clear");
        cx.find(Finding::new(codes::DATA_FILE_UNUSED, words).host(72..80));
    }
    if cx.options.untrusted {
        let words = format!("the data file is '{name}', {}", kind(&name));
        cx.find(Finding::new(codes::POLICY_REFERENCE, words).host(72..80));
    }
    if external {
        not_opened(cx, &format!("the external data file '{name}'"));
    }
    let format = Some("raw".to_owned());
    let fact = match (external, raw) {
        (true, true) => format!("{name} (raw: its bytes are the disk's)"),
        (true, false) => name.clone(),
        (false, _) => format!("{name} (named, not used)"),
    };
    cx.references.push(Reference { role: "data file", name, format });
    Some(fact)
}

/// What is known of the data file is its length, and that only if the caller looked.
fn not_opened(cx: &mut Context<'_>, what: &str) {
    match cx.options.data_file_len {
        Some(len) => cx.not_checked(format!("of {what} only the length ({len} bytes) was looked at")),
        None => cx.not_checked(format!("{what}, which holds the guest's data, was not opened")),
    }
}

/// The raw data file has all of the disk (Q-L9), and no snapshot can be kept in one.
pub(crate) fn judge_data_file(cx: &mut Context<'_>, header: &Header) {
    if header.incompatible & EXTERNAL_DATA == 0 {
        return;
    }
    if header.nb_snapshots > 0 {
        let words =
            format!("{} internal snapshots, though the guest's data is in an external file", header.nb_snapshots);
        cx.find(Finding::new(codes::DATA_FILE_SNAPSHOTS, words).host(60..64));
    }
    if let Some(len) = cx.options.data_file_len
        && header.autoclear & RAW_DATA != 0
        && len < header.size
    {
        let words = format!("the raw data file has {len} bytes, the disk {}", header.size);
        cx.find(Finding::new(codes::DATA_FILE_SHORT, words).guest(len..header.size));
        cx.lose(len..header.size);
    }
}

/// What a program would make of a name.
fn kind(name: &str) -> String {
    let scheme =
        name.split_once(':').map(|(scheme, _)| scheme).filter(|scheme| !scheme.contains('/') && !scheme.is_empty());
    match scheme {
        Some("json") => "a json: specification, which may open anything".to_owned(),
        Some(scheme) => format!("which QEMU opens with its '{scheme}' protocol"),
        None if name.starts_with('/') => "an absolute path".to_owned(),
        None if name.split('/').any(|part| part == "..") => "a path that leaves the image's folder".to_owned(),
        None => "a path in the image's folder".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::kind;

    #[test]
    fn names_are_told_apart() {
        for (name, word) in [
            ("json:{\"driver\":\"qcow2\"}", "json:"),
            ("nbd://host/x", "'nbd'"),
            ("fat:rw:/etc", "'fat'"),
            ("/etc/passwd", "absolute"),
            ("../x.qcow2", "leaves"),
            ("a/../../x", "leaves"),
            ("base.qcow2", "in the image's folder"),
            ("dir/a:b", "in the image's folder"),
        ] {
            assert!(kind(name).contains(word), "{name}: {}", kind(name));
        }
    }
}
