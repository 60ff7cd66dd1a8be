//! A folder of findings, for the next run, the next day and the next person.
//!
//! ```text
//! DIR/known.toml                    what is known already, until when (see `Known`); written by people
//! DIR/read-07f3…/                   findings with one signature
//!     3c1d….toml                    the plan that shows one of them; its name is the hash of its text
//!     3c1d….json                    what was found with it (see `Record`)
//! ```
//!
//! # Invariants
//! - A file is whole or not there: it is written beside, made durable, renamed, and its folder made durable.
//! - A plan comes before its finding: where there is a `.json` there is a `.toml`.
//! - What is there is never changed: the same plan with the same signature is kept once, as it was first found.

mod date;
mod durable;
mod known;
mod record;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use md5::{Digest as _, Md5};

use crate::finding::Signature;

pub use self::date::{Date, DateError};
pub use self::known::{Issue, Known, KnownError, Standing};
pub use self::record::{Origin, Record, RecordError, SCHEMA};

/// The name of the file of known issues.
pub const KNOWN: &str = "known.toml";

/// A finding that a store holds.
#[derive(Clone, Debug)]
pub struct Kept {
    /// `read-07f3…/3c1d…`: its name in the store.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// What was found.
    pub record: Record,
}

/// Why a store could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system said no.
    #[error("could not {what} '{}'", path.display())]
    Io {
        /// What was tried, such as `read`.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What was answered.
        source: io::Error,
    },
    /// A file is no finding.
    #[error("'{}' is no finding", path.display())]
    Record {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: RecordError,
    },
    /// The known issues can not be read.
    #[error("'{}' can not be used", path.display())]
    Known {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: KnownError,
    },
    /// No finding, or more than one, has that name.
    #[error("{words}")]
    Name {
        /// Which, and what there is.
        words: String,
    },
}

impl StoreError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }
}

/// A folder of findings.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// The store in this folder, which is made if it is not there.
    ///
    /// # Errors
    /// If it can not be made.
    pub fn create(dir: &Path) -> Result<Self, StoreError> {
        durable::folder(dir).map_err(StoreError::io("make", dir))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// The store in this folder.
    ///
    /// # Errors
    /// If there is no such folder.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        fs::read_dir(dir).map_err(StoreError::io("read", dir))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Keeps a finding; its name, and whether it is new.
    ///
    /// # Errors
    /// If it can not be written. Then the store is as it was, but for a file whose name begins with a dot, or a plan
    /// without its finding.
    pub fn put(&self, record: &Record) -> Result<(String, bool), StoreError> {
        let plan = record.plan.to_string();
        let folder = folder_name(&record.finding.signature);
        let name = format!("{folder}/{}", &hash(plan.as_bytes()));
        let path = self.dir.join(&folder);
        durable::folder(&path).map_err(StoreError::io("make", &path))?;
        let (toml, json) = (self.dir.join(format!("{name}.toml")), self.dir.join(format!("{name}.json")));
        if json.exists() {
            return Ok((name, false));
        }
        durable::write(&toml, plan.as_bytes()).map_err(StoreError::io("write", &toml))?;
        let text = format!("{:#}\n", record.json());
        durable::write(&json, text.as_bytes()).map_err(StoreError::io("write", &json))?;
        Ok((name, true))
    }

    /// Where the plan of a finding of this name is.
    pub fn plan_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.toml"))
    }

    /// All findings, by name.
    ///
    /// # Errors
    /// If something can not be read, or is no finding.
    pub fn list(&self) -> Result<Vec<Kept>, StoreError> {
        let mut all = Vec::new();
        for folder in entries(&self.dir)? {
            if !folder.is_dir() {
                continue;
            }
            for path in entries(&folder)? {
                if path.extension().is_some_and(|extension| extension == "json") {
                    all.push(read(&path, &folder)?);
                }
            }
        }
        Ok(all)
    }

    /// The one finding whose name, or the second part of it, begins like this.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn find(&self, name: &str) -> Result<Kept, StoreError> {
        let fits = |kept: &Kept| {
            let own = kept.name.split_once('/').map_or("", |(_, own)| own);
            kept.name.starts_with(name) || own.starts_with(name)
        };
        let mut fitting: Vec<Kept> = self.list()?.into_iter().filter(fits).collect();
        match (fitting.pop(), fitting.is_empty()) {
            (Some(kept), true) => Ok(kept),
            (Some(_), false) => {
                let words = format!("'{name}' is the beginning of {} findings' names", fitting.len().saturating_add(1));
                Err(StoreError::Name { words })
            }
            (None, _) => {
                let words = format!("'{}' has no finding whose name begins with '{name}'", self.dir.display());
                Err(StoreError::Name { words })
            }
        }
    }

    /// What is known already; nothing, if there is no such file.
    ///
    /// # Errors
    /// If it can not be read.
    pub fn known(&self) -> Result<Known, StoreError> {
        let path = self.dir.join(KNOWN);
        match fs::read_to_string(&path) {
            Ok(text) => Known::parse(&text).map_err(|source| StoreError::Known { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Known::default()),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }
}

/// The folder of findings with this signature: its code, for people, and its hash.
fn folder_name(signature: &Signature) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let code: String = signature.code.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    let hash = hash(signature.to_string().as_bytes());
    format!("{code}-{}", hash.get(..16).unwrap_or(&hash))
}

/// In hexadecimal. It tells contents apart and keeps nobody from anything.
fn hash(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is in a folder, by name, without files whose names begin with a dot.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(StoreError::io("read", dir))? {
        let entry = entry.map_err(StoreError::io("read", dir))?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path, folder: &Path) -> Result<Kept, StoreError> {
    let text = fs::read_to_string(path).map_err(StoreError::io("read", path))?;
    let record = Record::parse(&text).map_err(|source| StoreError::Record { path: path.to_owned(), source })?;
    let part = |path: Option<&std::ffi::OsStr>| path.unwrap_or_default().to_string_lossy().into_owned();
    let name = format!("{}/{}", part(folder.file_name()), part(path.file_stem()));
    Ok(Kept { name, path: path.to_owned(), record })
}
