//! Drivers to torture, and what they promise.
//!
//! A target makes an image and opens it over a device; everything else has a default. This is the whole of it for a
//! driver that has no image to make and no checker:
//!
//! ```
//! use blkproof_block::graph::OpenError;
//! use blkproof_block::{LocalBoxFuture, Node};
//! use blkproof_torture::plan::TargetSpec;
//! use blkproof_torture::target::{Files, Target};
//!
//! struct Mine;
//!
//! impl Target for Mine {
//!     fn name(&self) -> &str {
//!         "mine"
//!     }
//!     fn open(&self, files: Files, _spec: &TargetSpec) -> LocalBoxFuture<'static, Result<Node, OpenError>> {
//!         Box::pin(async move { Ok(files.image) }) // a real driver puts itself around it
//!     }
//! }
//! ```

mod image;
mod ours;

use blkproof_block::graph::OpenError;
use blkproof_block::{LocalBoxFuture, Node};
use blkproof_sim::disk::Content;

pub use self::image::{Checked, check_image};
pub use self::ours::{Qcow2, Raw, Vdi, find, names};
use crate::oracle;
use crate::plan::TargetSpec;
use crate::stamp;

/// What a driver is opened on.
#[derive(Debug)]
pub struct Files {
    /// The image file.
    pub image: Node,
    /// The disk below it, for an overlay.
    pub base: Option<Node>,
}

/// What a driver promises beyond what every driver does (CM 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Promises {
    /// An image that lost its power opens again, with all that was flushed (CM 5.7).
    pub crash_safe: bool,
    /// The format check may find leaks after an error or a dropped request.
    pub leaks_after_error: bool,
    /// The format check may find leaks after a power cut.
    pub leaks_after_crash: bool,
    /// A flush that failed may be followed by one that succeeds without the data being safe: the driver passes flushes
    /// straight through (CM 4.7 (3)).
    pub forgets_failed_flush: bool,
    /// Once faults have stopped, requests succeed again without the image being opened anew (CM 6 (4)).
    pub recovers: bool,
}

impl Default for Promises {
    fn default() -> Self {
        Self {
            crash_safe: true,
            leaks_after_error: true,
            leaks_after_crash: true,
            forgets_failed_flush: false,
            recovers: true,
        }
    }
}

impl Promises {
    /// What of them the oracle of a client has to know.
    pub(crate) fn of_client(&self) -> oracle::Promises {
        oracle::Promises { failed_flush_forgets: self.forgets_failed_flush, ..oracle::Promises::default() }
    }
}

/// A driver.
pub trait Target: Sync {
    /// Its name in plans.
    fn name(&self) -> &str;

    /// Opens what [`create`](Self::create) made.
    fn open(&self, files: Files, spec: &TargetSpec) -> LocalBoxFuture<'static, Result<Node, OpenError>>;

    /// The image file of a disk as `spec` has it, as a tool would make it. By default a raw one: zeroes.
    ///
    /// # Errors
    /// What is wrong with the options, in words.
    fn create(&self, spec: &TargetSpec) -> Result<Content, String> {
        Ok(Content::new(spec.size))
    }

    /// Whether the image file grows when it is written to beyond its end, as files do.
    fn grows(&self) -> bool {
        false
    }

    /// What the driver promises.
    fn promises(&self, spec: &TargetSpec) -> Promises {
        let _ = spec;
        Promises::default()
    }

    /// Judges an image file that no driver has open.
    fn check(&self, image: &Content) -> Checked {
        let _ = image;
        Checked::Unchecked
    }

    /// Sets of options worth trying, the default first.
    fn variants(&self) -> Vec<Vec<(String, String)>> {
        vec![Vec::new()]
    }

    /// Bytes of an allocation unit, 0 if there is none.
    fn cluster(&self, spec: &TargetSpec) -> u64 {
        let _ = spec;
        0
    }

    /// Whether it can stand over a base image.
    fn takes_base(&self) -> bool {
        false
    }
}

/// A base image of that size, stamped all over (CM 3.3 (3)).
pub fn base_image(size: u64) -> Content {
    let mut content = Content::new(size);
    let mut at = 0;
    let mut buf = vec![0; 64 << 10];
    while at < size {
        let len = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX).min(buf.len());
        let Some(part) = buf.get_mut(..len) else { break };
        stamp::base_fill(part, at);
        content.write(at, part);
        at = at.saturating_add(len as u64);
    }
    content
}
