//! What each kind of byte looks like: colours for light and dark, a colour of the terminal, and the rules of what
//! counts as used.
//!
//! Families share a hue: guest data is blue, what maps it green, reference counts orange, snapshots violet, bitmaps
//! brown. Red is for conflict and damage alone.

use blkproof_check::map::{Class, GuestState};

/// How one kind of byte is drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// Its letter.
    pub(crate) letter: char,
    /// Its name.
    pub(crate) name: &'static str,
    /// Whether somebody uses the space; the share of it is the brightness of a cell.
    pub(crate) used: bool,
    /// Metadata is shown by a dot in cells where other things prevail.
    pub(crate) metadata: bool,
    /// Shown wherever there is any, however little.
    pub(crate) alarm: bool,
    /// Colour on a light ground, `#rrggbb`.
    pub(crate) light: &'static str,
    /// Colour on a dark ground, `#rrggbb`.
    pub(crate) dark: &'static str,
    /// Colour of the 256 of a terminal, as background.
    pub(crate) ansi: u8,
}

/// The kinds of the image file, by `Class as usize`.
pub(crate) fn classes() -> Vec<Kind> {
    Class::ALL.iter().map(|class| class_kind(*class)).collect()
}

/// The kinds of the guest's disk, by `GuestState as usize`.
pub(crate) fn states() -> Vec<Kind> {
    GuestState::ALL.iter().map(|state| state_kind(*state)).collect()
}

fn class_kind(class: Class) -> Kind {
    let (light, dark, ansi) = match class {
        Class::Header => ("#111827", "#f9fafb", 255),
        Class::Descriptor => ("#4b5563", "#c3cad5", 250),
        Class::L1 => ("#0b6b3a", "#159a56", 22),
        Class::L2 => ("#2fa85c", "#4fd085", 35),
        Class::BlockMap => ("#5fb130", "#86d64f", 70),
        Class::Copy => ("#93ab3c", "#b6cf5c", 143),
        Class::RefcountTable => ("#b04a08", "#d9691c", 130),
        Class::RefcountBlock => ("#ee8a2a", "#f9a653", 208),
        Class::SnapshotTable => ("#5b1f99", "#a35be6", 54),
        Class::SnapshotL1 => ("#8a35c4", "#b97bf0", 91),
        Class::SnapshotL2 => ("#b46fdc", "#d0a2f5", 134),
        Class::BitmapDirectory => ("#6b3f22", "#a8734c", 94),
        Class::BitmapTable => ("#9a623a", "#c48f66", 137),
        Class::BitmapData => ("#c4966a", "#dbb691", 180),
        Class::Encryption => ("#0d5a70", "#2f9db8", 24),
        Class::Log => ("#b0296b", "#e45c9c", 162),
        Class::Metadata => ("#64748b", "#94a3b8", 103),
        Class::Data => ("#3b7bd4", "#4a8de6", 33),
        Class::Compressed => ("#16a0a3", "#2cc0c0", 37),
        Class::SnapshotData => ("#8577d6", "#9b8ff0", 105),
        Class::VmState => ("#cf86c4", "#e0a0d6", 176),
        Class::Reserved => ("#c4cbd6", "#414957", 246),
        Class::Leaked => ("#eebb1d", "#ffd34d", 220),
        Class::Free => ("#e6eaf0", "#262c37", 236),
        Class::Conflict => ("#d8262f", "#ff5a5f", 196),
        Class::Unknown => ("#8b919d", "#767e8c", 242),
    };
    Kind {
        letter: class.letter(),
        name: class.name(),
        used: class != Class::Free,
        metadata: class.is_metadata(),
        alarm: class == Class::Conflict,
        light,
        dark,
        ansi,
    }
}

fn state_kind(state: GuestState) -> Kind {
    let (light, dark, ansi) = match state {
        GuestState::Unallocated => ("#e6eaf0", "#262c37", 236),
        GuestState::Zero => ("#b9ab8a", "#8f8468", 144),
        GuestState::Data => ("#3b7bd4", "#4a8de6", 33),
        GuestState::Compressed => ("#16a0a3", "#2cc0c0", 37),
        GuestState::Damaged => ("#d8262f", "#ff5a5f", 196),
    };
    Kind {
        letter: state.letter(),
        name: state.name(),
        used: state != GuestState::Unallocated,
        metadata: false,
        alarm: state == GuestState::Damaged,
        light,
        dark,
        ansi,
    }
}

/// Red, green, blue of `#rrggbb`.
pub(crate) fn channels(colour: &str) -> [u32; 3] {
    let part = |from: usize| colour.get(from..from + 2).and_then(|hex| u32::from_str_radix(hex, 16).ok()).unwrap_or(0);
    [part(1), part(3), part(5)]
}

/// A colour at so many hundredths between `ground` and `full`.
pub(crate) fn mix(ground: &str, full: &str, percent: u32) -> String {
    let (ground, full) = (channels(ground), channels(full));
    let mut out = String::from("#");
    for (from, to) in ground.iter().zip(full) {
        let value = (from * (100 - percent.min(100)) + to * percent.min(100)) / 100;
        out.push_str(&format!("{value:02x}"));
    }
    out
}

/// Black or white, whichever is readable on a colour.
pub(crate) fn ink_on(colour: &str) -> &'static str {
    let [red, green, blue] = channels(colour);
    if red * 299 + green * 587 + blue * 114 > 140_000 { "#111827" } else { "#ffffff" }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn kinds_differ_in_letter_and_colour() {
        for kinds in [classes(), states()] {
            for (what, different) in [
                ("letter", kinds.iter().map(|kind| kind.letter.to_string()).collect::<BTreeSet<_>>()),
                ("light colour", kinds.iter().map(|kind| kind.light.to_owned()).collect()),
                ("dark colour", kinds.iter().map(|kind| kind.dark.to_owned()).collect()),
            ] {
                assert_eq!(different.len(), kinds.len(), "a {what} is used twice");
            }
            for kind in &kinds {
                assert!(!['*', '/'].contains(&kind.letter), "'{}' is a mark of the terminal's picture", kind.letter);
            }
        }
    }

    #[test]
    fn colours_mix() {
        assert_eq!(mix("#000000", "#ffffff", 50), "#7f7f7f");
        assert_eq!(mix("#102030", "#ffffff", 0), "#102030");
        assert_eq!(mix("#102030", "#a0b0c0", 100), "#a0b0c0");
        assert_eq!((ink_on("#ffffff"), ink_on("#000000")), ("#111827", "#ffffff"));
    }
}
