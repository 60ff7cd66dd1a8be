//! Lab files: many exports in one process, each with what stands in front of its image.
//!
//! ```toml
//! listen = ["127.0.0.1:10809", "unix:lab.sock"]
//! control = "lab.ctl"
//! seed = 7
//!
//! [[export]]
//! name = "database"
//! graph = "db.qcow2"
//! disk = "liar:profile=torn"
//! rules = "bad.toml"
//!
//! [[export]]
//! name = "scratch"
//! graph = "scratch.raw"
//! format = "raw"
//! stats = true
//!
//! [[export.rule]]
//! id = "bad-50"
//! on = { op = "read", lba = 50 }
//! do = { fail = "03/1101" }
//! life = "until-rewritten"
//! ```
//!
//! An export takes the fields of a rule file (`lba-size`, `seed`, `state`, `rule`) beside its own. What stands in the
//! file is validated whole; what it names (images, other rule files, addresses) is looked at by whoever opens it.

use blkproof_block::graph::CacheMode;

use super::mistake::{Mistake, Mistakes, Place};
use super::read as reader;
use crate::disk::DiskOptions;
use crate::rule::RuleSet;

/// The published schema of lab files.
pub const SCHEMA: &str = include_str!("../../schema/lab-1.json");

/// Exports of a file.
pub const EXPORTS_MAX: usize = 1000;

/// A value and where it stands, for whoever finds out later that it is wrong.
#[derive(Clone, PartialEq, Debug)]
pub struct Written<T> {
    /// The value.
    pub value: T,
    /// Where.
    pub place: Option<Place>,
    /// The name of its field.
    pub field: String,
}

impl<T> Written<T> {
    /// That it is wrong.
    pub fn mistake(&self, words: impl Into<String>) -> Mistake {
        Mistake { place: self.place, rule: None, field: self.field.clone(), words: words.into() }
    }
}

/// A lab file that makes sense as far as itself is concerned.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct LabFile {
    /// Addresses: `unix:PATH`, `ADDR:PORT`, `PORT`.
    pub listen: Vec<Written<String>>,
    /// Where control clients come in.
    pub control: Option<Written<String>>,
    /// Where statistics can be fetched.
    pub prometheus: Option<Written<String>>,
    /// The seed of all that has none of its own.
    pub seed: Option<u64>,
    /// What a mirror does at a mismatch.
    pub on_mismatch: Option<Written<String>>,
    /// Most connections.
    pub max_connections: Option<u64>,
    /// Most bytes in flight.
    pub max_in_flight: Option<u64>,
    /// The exports, in order. Their names differ.
    pub exports: Vec<ExportEntry>,
    /// What its author hardly meant.
    pub warnings: Vec<Mistake>,
}

/// One export.
#[derive(Clone, PartialEq, Debug)]
pub struct ExportEntry {
    /// Its name.
    pub name: Written<String>,
    /// What it is, for people.
    pub description: Option<String>,
    /// What is served, as on a command line.
    pub graph: Written<String>,
    /// The format of the image.
    pub format: Option<String>,
    /// `graph` is a list of options.
    pub image_opts: bool,
    /// Backing files named inside an image are opened.
    pub allow_backing: bool,
    /// Writes are refused.
    pub read_only: bool,
    /// The image is opened although somebody else has it.
    pub force_share: bool,
    /// The cache mode of the host file.
    pub cache: Option<CacheMode>,
    /// A disk with a write cache in front of it.
    pub disk: Option<DiskOptions>,
    /// The disk's options name a seed.
    pub disk_seeded: bool,
    /// Where its writes are logged. No two logs and traces of a lab have one file.
    pub log: Option<String>,
    /// Where its requests are written down.
    pub trace: Option<String>,
    /// Whether they are counted.
    pub stats: bool,
    /// A file with its rules.
    pub rules_file: Option<Written<String>>,
    /// The rules that stand here.
    pub rules: RuleSet,
    /// They name a seed.
    pub rules_seeded: bool,
}

/// Reads `text`, the content of `file`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read(file: &str, text: &str) -> Result<LabFile, Mistakes> {
    reader::lab_file(file, text)
}
