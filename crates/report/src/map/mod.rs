//! The maps of a checked image as pictures: the image file by owner, the guest's disk by state, and where the findings
//! lie.
//!
//! Three renderings of one model (`picture`):
//! - [`html()`]: one file that opens offline. Both maps lie on a Hilbert curve; a finding lights up its cells in both,
//!   a cell tells what it is and which findings touch it. Works by mouse and by keyboard, in light and in dark.
//! - [`svg()`]: the same to stand alone in a document: titles on the cells, legend, numbered findings.
//! - [`term()`]: letters in row order, for a terminal with or without colour.
//!
//! What holds in all of them:
//! - The figures of a legend sum to the length of what is mapped; what the check did not reach is a row of its own.
//! - A cell shows its largest owner; conflict and damage show wherever there is any, however small. Brightness is the
//!   share in use. Nothing is said by colour alone: kinds have letters, findings are hatched (`!` in a terminal) and
//!   numbered.
//! - Text from an image is data: markup and control characters in names are escaped, long text is cut.
//! - The size of a picture is bounded by the number of cells, not by the image: see [`CELLS`].
//!
//! The pictures are made of what [`blkproof_check::check`] left in its report; [`blkproof_check::Options::cells`] has
//! to ask for them.

mod hilbert;
mod html;
mod palette;
mod picture;
mod svg;
mod term;
mod text;

pub use html::html;
pub(crate) use html::script_data;
pub use svg::svg;
pub use term::{term, term_maps};
pub(crate) use text::{cut, markup, percent};

/// Cells of each map that the pictures are designed for: 128 × 128. What a caller gives to
/// [`blkproof_check::Options::cells`]; fewer make coarser pictures, more make bigger files.
pub const CELLS: usize = 128 * 128;
