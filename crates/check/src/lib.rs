//! The stand-alone reader of disk images: every header, table and pointer, an owner for every host cluster, findings
//! folded into their causes, and a verdict that says what was not checked.
//!
//! ```no_run
//! use blkproof_check::{Options, Verdict, check, source::FileSource, watch::Silent};
//!
//! let image = FileSource::open("disk.qcow2".as_ref())?;
//! let report = check(&image, &Options::default(), &Silent);
//! if report.verdict == Verdict::Damaged {
//!     for finding in &report.findings {
//!         println!("{}: {}", finding.code.name, finding.what);
//!     }
//! }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! What holds everywhere in this crate:
//! - Nothing is written: a [`source::Source`] has no way to. Names found inside an image open nothing.
//! - Bytes of an image are input. Every length, count, offset and shift is checked before it is used, and memory is
//!   asked for only up to [`Options::memory`].
//! - A flawed pointer is still a reference: a cluster that any entry names is never called leaked.
//! - No broken part ends the run: what can still be read is still checked, what can not is listed as not checked.
//!
//! Reading order: [`source`], [`code`], [`finding`], [`map`], [`report`]; then `context`, which an analyser is handed;
//! then one module per format; [`catalogue`] lists the codes of all of them.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

pub mod catalogue;
pub mod checkpoint;
pub mod code;
pub mod diff;
pub mod finding;
pub mod map;
pub mod metadump;
pub mod report;
pub mod source;
pub mod watch;

mod analyse;
mod budget;
mod bytes;
mod context;
mod extents;
mod fold;
mod holes;
mod layout;
mod options;
mod probe;
mod shape;
mod tally;
mod vacant;
mod verdict;
mod writer;

mod parallels;
mod qcow2;
mod qed;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

pub use analyse::check;
pub use options::{Assume, Options};
pub use probe::Format;
pub use report::{Report, Verdict};
