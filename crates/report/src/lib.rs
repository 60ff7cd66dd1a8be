//! Renderings: what others found out, as text, JSON, SVG and HTML. Nothing is analysed here, and nothing is printed.
//!
//! - [`human`]: the report a person reads, verdict first;
//! - [`json`]: the same for programs, schema `blkproof.check/1`;
//! - [`qcheck`]: qcheck's sections, chosen by its letters;
//! - [`explain`]: what a finding's code means;
//! - [`ddrescue`]: what the guest's disk has lost, as a map for GNU ddrescue;
//! - [`map`]: the image file by owner and the guest's disk by state, as pictures: HTML, SVG, letters;
//! - [`stats`]: what went through a node, as a table for a terminal and a page of heat maps and latencies;
//! - [`torture`]: what was found wrong with a driver, and how to see it again: text, JSON, JUnit, annotations, SVG, HTML;
//! - [`text`]: the small parts they share.

pub mod ddrescue;
pub mod explain;
pub mod human;
pub mod json;
pub mod map;
pub mod qcheck;
pub mod stats;
pub mod text;
pub mod torture;

mod style;

pub use style::Style;
