//! What commands need of the process around them.

use blkproof_block::{LocalBoxFuture, Node};

/// The unit in which an overlay is written: where its backing file is not at hand, nothing smaller can be.
pub const OVERLAY_SECTOR: u64 = 512;

/// An image to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewImage<'a> {
    /// Its file, which must not be there yet.
    pub file: &'a str,
    /// Its format, by driver name.
    pub format: &'a str,
    /// Bytes of the disk.
    pub size: u64,
    /// The name and the format of its backing file, as they are to stand in the image. The image is then written in
    /// sectors of [`OVERLAY_SECTOR`] bytes, and nothing but those may be stored of it.
    pub backing: Option<(&'a str, &'a str)>,
}

/// An image in the making. Dropped before it is [kept](Self::keep), its file goes: what is half written looks like a
/// whole image.
pub trait Draft {
    /// The image, open for writing.
    fn node(&self) -> &Node;

    /// It is complete, and closed.
    fn keep(self: Box<Self>);
}

/// The process: it has files and an end, this library has neither.
pub trait Host {
    /// Ends the process as SIGTERM does. Returns at once: the reply goes out first.
    fn quit(&self);

    /// Makes an image and opens it for writing, without its backing file. What is there already is not touched.
    ///
    /// An error is what the client is told.
    fn create<'a>(&'a self, image: NewImage<'a>) -> LocalBoxFuture<'a, Result<Box<dyn Draft>, String>>;
}
