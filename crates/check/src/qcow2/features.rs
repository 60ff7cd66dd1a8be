//! Feature bits: what is switched on, what contradicts itself, what nobody knows (Q-F1..Q-F4, Q-F6).
//!
//! qcow2 spec, section "Header". An unknown incompatible bit forbids to read any further; the image's own table of
//! names tells a new feature (named there) from a flipped bit (not named).

use crate::code::Severity;
use crate::context::Context;
use crate::finding::Finding;

use super::codes::structure as codes;
use super::extensions::Extensions;
use super::header::{BITMAPS, COMPRESSION, CORRUPT, DIRTY, EXTENDED_L2, EXTERNAL_DATA, Header, LAZY, RAW_DATA};

const INCOMPATIBLE: &[(u64, &str)] = &[
    (DIRTY, "dirty"),
    (CORRUPT, "corrupt"),
    (EXTERNAL_DATA, "external data file"),
    (COMPRESSION, "compression type"),
    (EXTENDED_L2, "extended L2 entries"),
];
const COMPATIBLE: &[(u64, &str)] = &[(LAZY, "lazy refcounts")];
const AUTOCLEAR: &[(u64, &str)] = &[(BITMAPS, "bitmaps"), (RAW_DATA, "raw external data")];

/// What the feature bits mean for the rest of the analysis.
pub(crate) struct Features {
    /// Names, in the order of the words and bits.
    pub(crate) names: Vec<String>,
    /// A new incompatible feature is in use: nothing can be understood.
    pub(crate) newer: bool,
}

/// Says what is wrong with the bits.
pub(crate) fn judge(cx: &mut Context<'_>, header: &Header, extensions: &Extensions) -> Features {
    let mut found = Features { names: Vec::new(), newer: false };
    let words = [header.incompatible, header.compatible, header.autoclear];
    for ((index, value), known) in (0u8..).zip(words).zip([INCOMPATIBLE, COMPATIBLE, AUTOCLEAR]) {
        for bit in (0u8..64).filter(|bit| value >> bit & 1 != 0) {
            let known = known.iter().find(|(mask, _)| *mask == 1u64 << bit);
            let name = known.map(|(_, name)| *name).or_else(|| extensions.name(index, bit));
            let kind = ["incompatible", "compatible", "autoclear"].get(usize::from(index)).copied().unwrap_or_default();
            let unnamed = || format!("{kind} bit {bit}");
            found.names.push(name.map_or_else(unnamed, str::to_owned));
            if known.is_none() {
                found.newer |= unknown(cx, index, bit, extensions.name(index, bit));
            }
        }
    }
    if found.newer {
        cx.could_not("anything behind the header: the image uses a feature that is not known here");
    }
    states(cx, header, extensions);
    found
}

/// Whether the bit forbids to go on.
fn unknown(cx: &mut Context<'_>, word: u8, bit: u8, name: Option<&str>) -> bool {
    let host = 72u64.saturating_add(u64::from(word).saturating_mul(8));
    let host = host..host.saturating_add(8);
    let (code, words) = match (word, name) {
        (0, Some(name)) => (codes::FEATURE_NEWER, format!("incompatible feature bit {bit} (\"{name}\") is set")),
        (0, None) => {
            (codes::FEATURE_UNKNOWN, format!("incompatible feature bit {bit} is set and has no name in the image"))
        }
        (1, _) => (codes::FEATURE_OPTIONAL, format!("compatible feature bit {bit} is set")),
        _ => (codes::FEATURE_OPTIONAL, format!("autoclear feature bit {bit} is set")),
    };
    cx.find(Finding::new(code, words).host(host));
    code == codes::FEATURE_NEWER
}

/// What the known bits say about the state of the image.
fn states(cx: &mut Context<'_>, header: &Header, extensions: &Extensions) {
    if header.incompatible & DIRTY != 0 {
        let lazy = if header.compatible & LAZY != 0 {
            "with lazy refcounts: the counts are rebuilt when it is next opened for writing"
        } else {
            "without lazy refcounts: a program that keeps counts up to date was interrupted"
        };
        cx.find(Finding::new(codes::FEATURE_DIRTY, format!("the dirty bit is set, {lazy}")).host(72..80));
    }
    if header.incompatible & CORRUPT != 0 {
        let words = "the corrupt bit is set: a program stopped when it was about to overwrite metadata";
        cx.find(Finding::new(codes::FEATURE_CORRUPT, words).host(72..80));
    }
    if header.autoclear & RAW_DATA != 0 {
        let bit = "autoclear bit 1 (raw external data) is set, but";
        if header.incompatible & EXTERNAL_DATA == 0 {
            // Readers refuse the image.
            let words = format!("{bit} there is no external data file");
            cx.find(Finding::new(codes::FEATURE_RAW, words).severity(Severity::Corruption).host(88..96));
        } else if header.backing_offset != 0 {
            let words = format!("{bit} unallocated clusters are read from a backing file");
            cx.find(Finding::new(codes::FEATURE_RAW, words).host(88..96));
        }
    }
    let has = extensions.bitmaps.is_some();
    // An extension that could not be read is no missing one.
    if header.autoclear & BITMAPS != 0 && !has && extensions.whole && cx.findings.errors_of(codes::EXTENSION_SIZE) == 0
    {
        let words = "autoclear bit 0 (bitmaps) is set, but there is no bitmaps extension";
        cx.find(Finding::new(codes::BITMAP_MISSING, words).host(88..96));
    }
}
