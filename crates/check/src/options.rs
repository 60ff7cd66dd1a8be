//! What a check is asked to do.

use std::collections::BTreeMap;

use crate::Format;

/// Facts a damaged header can not supply any more, by field name (`cluster_bits`, `size`, …).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assume(BTreeMap<String, u64>);

impl Assume {
    /// Reads `name=value,name=value`; values may be decimal, hexadecimal (`0x`), or take K, M, G, T.
    ///
    /// # Errors
    /// A sentence that names the word at fault. Which names mean something is up to the format.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let (name, value) =
                word.split_once('=').ok_or_else(|| format!("'{word}' is not of the form name=value"))?;
            let number = parse_number(value).ok_or_else(|| format!("'{value}' (for '{name}') is not a number"))?;
            all.insert(name.trim().to_owned(), number);
        }
        Ok(Self(all))
    }

    /// The value of a field, if one is assumed.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// Adds or replaces one.
    #[must_use]
    pub fn with(mut self, name: &str, value: u64) -> Self {
        self.0.insert(name.to_owned(), value);
        self
    }

    /// The names given.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The names that mean something for a format.
    #[must_use]
    pub fn known(format: Format) -> &'static [&'static str] {
        match format {
            Format::Qcow2 => &[
                "version",
                "cluster_bits",
                "size",
                "crypt_method",
                "l1_size",
                "l1_offset",
                "refcount_table_offset",
                "refcount_table_clusters",
                "nb_snapshots",
                "snapshots_offset",
                "refcount_order",
                "compression_type",
                "external_data",
                "extended_l2",
            ],
            Format::Vdi => &["block_size", "blocks", "data_offset", "map_offset", "size"],
            Format::Vmdk => &["capacity", "gd", "grain", "gtes", "rgd"],
            Format::Vhd => &["block_size", "entries", "size", "table_offset"],
            Format::Vhdx => &["block_size", "metadata_offset", "sector_size", "size", "table_length", "table_offset"],
            Format::Parallels => &["data_off", "entries", "size", "tracks"],
            Format::Qed => &["cluster_size", "header_size", "l1_offset", "size", "table_size"],
            Format::Raw => &[],
        }
    }

    /// The first name given that means nothing for a format; to be refused before a check.
    #[must_use]
    pub fn unknown(&self, format: Format) -> Option<&str> {
        self.names().find(|name| !Self::known(format).contains(name))
    }

    /// Whether nothing is assumed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn parse_number(text: &str) -> Option<u64> {
    let text = text.trim();
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    let shift = match text.bytes().last()?.to_ascii_uppercase() {
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        b'T' => 40,
        _ => return text.parse().ok(),
    };
    let digits = text.get(..text.len().checked_sub(1)?)?;
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// What a check is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The format, if the user states it; else it is recognised.
    pub format: Option<Format>,
    /// Inflate compressed clusters and look into data where the format has checks for it.
    pub data: bool,
    /// What the header can not supply.
    pub assume: Assume,
    /// Bytes of memory the analysis may hold, beyond the program itself; more work takes more passes.
    pub memory: u64,
    /// Threads that read and decode; 1 runs everything on the caller's.
    pub threads: usize,
    /// Single findings kept; all are counted.
    pub max_findings: usize,
    /// Cells of each picture; 0 draws none.
    pub cells: usize,
    /// Search the whole file for tables nothing refers to, where tables are missing.
    pub orphans: bool,
    /// Policy for images of unknown origin: names of other files become findings.
    pub untrusted: bool,
    /// Open the files an image names (extents, parents), as far as they lie in its own folder.
    pub allow_backing: bool,
    /// Bytes in the external data file of a qcow2 image, if the caller was allowed to look; no analyser opens it.
    pub data_file_len: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            format: None,
            data: false,
            assume: Assume::default(),
            memory: 64 << 20,
            threads: 1,
            max_findings: 1000,
            cells: 0,
            orphans: true,
            untrusted: false,
            allow_backing: false,
            data_file_len: None,
        }
    }
}
