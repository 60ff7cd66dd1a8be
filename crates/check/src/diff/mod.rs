//! What changed between two states of an image: by owner, folded into runs.
//!
//! qcow2 images are compared by meaning (`qcow2`): fields of the header by name, extensions, L1 entries, what each
//! range of the guest's disk is mapped to, reference counts, snapshots, bitmaps. Two mappings are compared range by
//! range, so images whose clusters differ in size are too. Images of other formats are compared by structure
//! (`structures`): which bytes of which table changed, and of tables of pointers which entries.
//!
//! Nothing is judged: a damaged image is compared as far as its tables can be followed. Changes are handed out as they
//! are found, in the order of the structures and within each in the order of its entries; memory does not grow with the
//! images.

mod qcow2;
mod structures;

use std::fmt;
use std::io;
use std::ops::Range;

use crate::probe::{Probe, probe};
use crate::source::Source;
use crate::watch::Watch;
use crate::{Format, Options};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Has another value.
    Changed,
    /// Is in the second image only.
    Added,
    /// Is in the first image only.
    Removed,
    /// A range of the disk had no place in the file, and has one now.
    Allocated,
    /// A range of the disk had a place in the file, or was zero, and is not allocated now.
    Freed,
    /// A range of the disk is at another place in the file.
    Moved,
    /// A range of the disk reads as zeroes now, by its entry.
    Zeroed,
    /// A range of the disk is compressed now.
    Compressed,
}

impl Kind {
    /// One word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Allocated => "allocated",
            Self::Freed => "freed",
            Self::Moved => "moved",
            Self::Zeroed => "zeroed",
            Self::Compressed => "compressed",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One change, or a run of equal ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it belongs to: `header`, `L1 table`, `mapping`, `refcounts`, …
    pub owner: &'static str,
    /// What happened.
    pub kind: Kind,
    /// Which part: a field's name, a snapshot's, `entries 3..7`.
    pub what: String,
    /// What it was, of the first one of a run; empty if there was nothing.
    pub before: String,
    /// What it is, of the first one of a run; empty if there is nothing.
    pub after: String,
    /// Bytes of the guest's disk it concerns.
    pub guest: Option<Range<u64>>,
    /// How many entries, clusters or fields.
    pub count: u64,
}

impl Change {
    fn new(owner: &'static str, kind: Kind, what: impl Into<String>) -> Self {
        Self { owner, kind, what: what.into(), before: String::new(), after: String::new(), guest: None, count: 1 }
    }

    fn values(mut self, before: impl Into<String>, after: impl Into<String>) -> Self {
        (self.before, self.after) = (before.into(), after.into());
        self
    }

    fn guest(mut self, range: Range<u64>) -> Self {
        self.guest = Some(range);
        self
    }

    fn count(mut self, count: u64) -> Self {
        self.count = count;
        self
    }
}

/// Why two images can not be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// They have nothing in common.
    #[error("'{a}' is {a_format}, '{b}' is {b_format}: only images of one format can be compared")]
    Formats {
        /// The first image.
        a: String,
        /// Its format.
        a_format: String,
        /// The second image.
        b: String,
        /// Its format.
        b_format: String,
    },
    /// A format without structure, or an unknown one.
    #[error("'{name}' is {format}: there is no metadata to compare")]
    Unsupported {
        /// The image.
        name: String,
        /// Its format.
        format: String,
    },
    /// Somebody asked to stop.
    #[error("it was stopped")]
    Stopped,
    /// An image could not be read.
    #[error("reading {len} bytes of '{name}' at {at:#x}")]
    Read {
        /// The image.
        name: String,
        /// First byte.
        at: u64,
        /// Bytes.
        len: usize,
        /// As the operating system says.
        source: io::Error,
    },
    /// The one who takes the changes does not take any more.
    #[error("telling what changed")]
    Tell(#[source] io::Error),
}

/// Takes the changes.
pub trait Sink {
    /// One change.
    ///
    /// # Errors
    /// Ends the comparison.
    fn change(&mut self, change: &Change) -> io::Result<()>;
}

/// Compares two states of an image; how many changes there were. [`Options::format`] states the format of both.
///
/// # Errors
/// [`Error`] says why they can not be compared, or not to the end.
pub fn diff(
    a: &dyn Source,
    b: &dyn Source,
    options: &Options,
    watch: &dyn Watch,
    sink: &mut dyn Sink,
) -> Result<u64, Error> {
    let format = format(a, b, options)?;
    let mut tell = Tell { sink, watch, told: 0 };
    if a.len() != b.len() {
        tell.change(&Change::new("file", Kind::Changed, "length").values(a.len().to_string(), b.len().to_string()))?;
    }
    match format {
        Format::Qcow2 => qcow2::diff(a, b, &mut tell)?,
        _ => structures::diff(a, b, format, options, &mut tell)?,
    }
    Ok(tell.told)
}

fn format(a: &dyn Source, b: &dyn Source, options: &Options) -> Result<Format, Error> {
    let of = |image: &dyn Source| match (options.format, probe(image)) {
        (Some(format), _) | (None, Probe::Known(format)) => (Some(format), format.name().to_owned()),
        (None, Probe::Named(name)) => (None, name.to_owned()),
        (None, Probe::Unknown) => (None, "no image of a known format (state it with -f)".to_owned()),
    };
    let ((one, a_format), (other, b_format)) = (of(a), of(b));
    for (image, known, format) in [(a, one, &a_format), (b, other, &b_format)] {
        if known.is_none_or(|format| format == Format::Raw) {
            return Err(Error::Unsupported { name: image.name(), format: format.clone() });
        }
    }
    match (one, other) {
        (Some(one), Some(other)) if one == other => Ok(one),
        _ => Err(Error::Formats { a: a.name(), a_format, b: b.name(), b_format }),
    }
}

/// Counts what it hands on.
struct Tell<'t> {
    sink: &'t mut dyn Sink,
    watch: &'t dyn Watch,
    told: u64,
}

impl Tell<'_> {
    fn change(&mut self, change: &Change) -> Result<(), Error> {
        self.told = self.told.saturating_add(1);
        self.sink.change(change).map_err(Error::Tell)
    }

    fn stop(&self) -> Result<(), Error> {
        if self.watch.stop() { Err(Error::Stopped) } else { Ok(()) }
    }
}

/// Reads up to `len` bytes from `at`, fewer at the end of the file.
fn get(image: &dyn Source, at: u64, len: u64) -> Result<Vec<u8>, Error> {
    let there = usize::try_from(image.len().saturating_sub(at).min(len)).unwrap_or(0);
    let mut bytes = vec![0u8; there];
    match image.read_at(at, &mut bytes) {
        Ok(read) => {
            bytes.truncate(read);
            Ok(bytes)
        }
        Err(source) => Err(Error::Read { name: image.name(), at, len: there, source }),
    }
}
