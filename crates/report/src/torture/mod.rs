//! What was found wrong with a driver, for those who have to mend it (CM 12).
//!
//! A [`Case`] is one finding with the least plan that shows it and the run of that plan; every rendering takes one:
//!
//! - [`text`]: the report a person reads, from one sentence down to what was not tested;
//! - [`timeline`]: what was in flight when, as text and as SVG;
//! - [`qemu_io`] and [`rust_test`]: the plan for those who do not have this program;
//! - [`json`] (schema `blkproof.torture/1`), [`junit`], [`github`]: for machines;
//! - [`html`]: all of it as one page that needs nothing else;
//! - [`gallery`]: how well bugs that were planted are found.
//!
//! A [`Suite`] is what a campaign against one target found, and what it did not test.
//!
//! Names of targets, options, panics and file names come from outside; each rendering escapes them in its own way.

pub mod coverage;
pub mod gallery;
pub mod github;
pub mod html;
pub mod json;
pub mod junit;
pub mod neighbours;
pub mod qemu_io;
pub mod rules;
pub mod rust_test;
pub mod summary;
pub mod text;
pub mod timeline;

mod case;
mod crash;
mod history;
mod model;
mod replay;
mod suite;
mod table;

pub use self::case::{Case, Origin};
pub use self::coverage::Coverage;
pub use self::neighbours::Neighbour;
pub use self::replay::{plan_hash, quoted};
pub use self::rules::{Rule, Severity};
pub use self::suite::{Ended, Entry, Suite, known_words};
