//! The streams by letter, the presets, and what each letter selects.

use blkproof_check::map::Class;
use blkproof_check::watch::Wants;

/// Every stream's letter, in the order of qcheck's own list.
pub const LETTERS: &str = "fweshipcdHLlR210MDVFAUE";

/// Range dumps in their order, with their titles.
pub(super) const RANGES: &[(char, &str)] = &[
    ('M', "Metadata"),
    ('D', "Data"),
    ('V', "Vacant"),
    ('F', "Leaked"),
    ('A', "Allocated"),
    ('U', "Unallocated"),
    ('E', "File Map"),
];

/// What a stretch is called, in the order of the cluster counts.
pub(super) const GROUPS: &[&str] = &["Metadata", "Data", "Leaked", "Vacant", "Conflict", "Reserved", "Unknown"];

/// A set of streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streams(u32);

/// A set of streams by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Nothing at all.
    Silent,
    /// `f w`.
    Quiet,
    /// `f w s e h i H L R`.
    Basic,
    /// Basic with `p c`.
    Verbose,
    /// All but `d`.
    Deluge,
}

impl Streams {
    /// The streams of a preset.
    #[must_use]
    pub fn preset(preset: Preset) -> Self {
        Self::empty().with(match preset {
            Preset::Silent => "",
            Preset::Quiet => "fw",
            Preset::Basic => "fwsehiHLR",
            Preset::Verbose => "fwsehiHLRpc",
            Preset::Deluge => "fweshipcHLlR210MDVFAUE",
        })
    }

    fn empty() -> Self {
        Self(0)
    }

    /// Adds letters; letters that are none of ours add nothing.
    #[must_use]
    pub fn with(self, letters: &str) -> Self {
        Self(letters.chars().fold(self.0, |all, letter| all | bit(letter)))
    }

    /// Takes letters away.
    #[must_use]
    pub fn without(self, letters: &str) -> Self {
        Self(letters.chars().fold(self.0, |all, letter| all & !bit(letter)))
    }

    /// The first letter in `letters` that is no stream's.
    #[must_use]
    pub fn unknown(letters: &str) -> Option<char> {
        letters.chars().find(|letter| bit(*letter) == 0)
    }

    /// Whether a stream is chosen.
    #[must_use]
    pub fn has(self, letter: char) -> bool {
        self.0 & bit(letter) != 0
    }

    fn has_any(self, letters: &str) -> bool {
        letters.chars().any(|letter| self.has(letter))
    }

    /// What has to be walked for them.
    pub(super) fn wants(self) -> Wants {
        let mut wants = Wants::empty();
        for (letters, want) in [
            ("H", Wants::HEADER),
            ("L", Wants::L1),
            ("l", Wants::L2),
            ("R", Wants::REFCOUNT_TABLE),
            ("210", Wants::REFCOUNTS),
            ("MDVFAUE", Wants::HOST),
            ("c", Wants::CONFIRM),
            ("hsi", Wants::SECTIONS),
            ("p", Wants::PROBLEMS),
        ] {
            wants.set(want, self.has_any(letters));
        }
        wants
    }

    /// The stream of a table's entry: its own, or `p` for a flawed one whose stream is off.
    pub(super) fn of_entry(self, class: Class, value: u64, flawed: bool) -> char {
        let own = match (class, value) {
            (Class::L1, _) => 'L',
            (Class::L2, _) => 'l',
            (Class::RefcountTable, _) => 'R',
            (_, 0) => '0',
            (_, 1) => '1',
            _ => '2',
        };
        if flawed && !self.has(own) { 'p' } else { own }
    }
}

fn bit(letter: char) -> u32 {
    LETTERS.chars().position(|known| known == letter).map_or(0, |index| 1 << index)
}

/// What a class is called in range dumps and counts.
pub(super) fn group(class: Class) -> &'static str {
    match class {
        Class::Free => "Vacant",
        Class::Leaked => "Leaked",
        Class::Conflict => "Conflict",
        Class::Reserved => "Reserved",
        Class::Unknown => "Unknown",
        class if class.is_data() => "Data",
        _ => "Metadata",
    }
}

/// Whether a range dump shows a class. Allocated and unallocated together are the whole file.
pub(super) fn selects(letter: char, class: Class) -> bool {
    match letter {
        'E' => true,
        'A' => !selects('U', class),
        'U' => matches!(class, Class::Leaked | Class::Free | Class::Reserved | Class::Unknown),
        // What two claim is metadata to one of them more often than not; it is nobody's data.
        'M' => matches!(group(class), "Metadata" | "Conflict"),
        'D' => group(class) == "Data",
        'V' => matches!(group(class), "Vacant" | "Reserved"),
        _ => group(class) == "Leaked",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_the_documented_ones() {
        let has =
            |preset: Preset| LETTERS.chars().filter(|letter| Streams::preset(preset).has(*letter)).collect::<String>();
        assert_eq!(has(Preset::Silent), "");
        assert_eq!(has(Preset::Quiet), "fw");
        assert_eq!(has(Preset::Basic), "fweshiHLR");
        assert_eq!(has(Preset::Verbose), "fweshipcHLR");
        assert_eq!(has(Preset::Deluge), LETTERS.replace('d', ""));
        assert_eq!(Streams::preset(Preset::Deluge).with("d").without(LETTERS), Streams::preset(Preset::Silent));
        assert_eq!(Streams::unknown("fwZ"), Some('Z'));
        assert_eq!(Streams::unknown(LETTERS), None);
    }

    #[test]
    fn every_class_is_in_one_of_allocated_and_unallocated() {
        for class in Class::ALL {
            assert_ne!(selects('A', *class), selects('U', *class), "{class}");
            let single = "MDVF".chars().filter(|letter| selects(*letter, *class)).count();
            assert_eq!(single, usize::from(*class != Class::Unknown), "{class}");
            assert!(GROUPS.contains(&group(*class)), "{class}");
        }
    }
}
