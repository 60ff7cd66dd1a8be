//! Drivers to torture, and what they promise.
//!
//! A target makes an image and opens it over a device; everything else has a default. This is the whole of it for a
//! driver that has no image to make and no checker:
//!
//! ```
//! use blkproof_torture::plan::TargetSpec;
//! use blkproof_torture::target::{Files, Opening, Target};
//!
//! struct Mine;
//!
//! impl Target for Mine {
//!     fn name(&self) -> &str {
//!         "mine"
//!     }
//!     fn open(&self, files: Files, _spec: &TargetSpec) -> Opening {
//!         Box::pin(async move { Ok(files.image) }) // a real driver puts itself around it
//!     }
//! }
//! ```

pub mod formats;
mod image;
mod ours;
mod snapshot;

use std::cell::RefCell;
use std::rc::Rc;

use blkproof_block::LocalBoxFuture;
pub use blkproof_block::Node;
use blkproof_block::graph::OpenError;
use blkproof_fault::disk::{FlushError, Profile};
pub use blkproof_sim::disk::Content;

pub use self::image::{Checked, check_image};
pub use self::ours::{Qcow2, Raw, Vdi, find, names};
pub use self::snapshot::add as add_snapshot;
use crate::oracle;
use crate::plan::TargetSpec;
use crate::stamp;
use crate::workload::{Features, TargetInfo, Variant};

/// What a driver is opened on.
#[derive(Debug)]
pub struct Files {
    /// The image file.
    pub image: Node,
    /// The disk below it, for an overlay.
    pub base: Option<Node>,
}

/// An image being opened.
pub type Opening = LocalBoxFuture<'static, Result<Node, OpenError>>;

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
    fn open(&self, files: Files, spec: &TargetSpec) -> Opening;

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

    /// Whether each run is to have a thread of its own.
    ///
    /// For drivers that keep something in the thread. `HashMap` is such a thing: its order follows from numbers that each
    /// thread draws once, and counts up with every map (CM 9.4). That the numbers are drawn alike is up to the program.
    fn own_thread(&self) -> bool {
        false
    }

    /// Whether what nobody may change is as it was (CM 5.7, I9): internal snapshots, say.
    ///
    /// # Errors
    /// What is wrong, in words.
    fn intact(&self, image: &Content, spec: &TargetSpec) -> Result<(), String> {
        let _ = (image, spec);
        Ok(())
    }

    /// The images worth trying, and what can be asked of them. By default one of 8 MiB, of which everything can be asked
    /// that the block contract has, but compression, other sizes and a base.
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: self.name().to_owned(),
            variants: vec![variant(&[], 8 << 20, 64 << 10)],
            profiles: vec![Profile::Ordered, Profile::Request, Profile::Block, Profile::Torn],
            blocks: vec![512, 4096],
            flush_errors: vec![FlushError::Keep],
        }
    }
}

/// An image with these options, of this size and with units of so many bytes, of which everything can be asked but
/// compression and other sizes.
pub fn variant(options: &[(&str, &str)], size: u64, cluster: u64) -> Variant {
    Variant {
        options: options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        size,
        size_alignment: 512,
        alignment: 1,
        cluster,
        spans: Vec::new(),
        hot: Vec::new(),
        base: false,
        features: Features { compressed: false, grow: false, shrink: false, ..Features::ALL },
    }
}

/// A base image of that size, stamped all over (CM 3.3 (3)).
pub fn base_image(size: u64) -> Content {
    let mut content = Content::over(longest(size));
    content.set_size(size);
    content
}

thread_local! {
    static LONGEST: RefCell<Rc<Content>> = RefCell::default();
}

/// The longest base image this thread has made, of `size` bytes at least. All of them begin alike, since what is written
/// on a base tells its place and nothing else; stamping one anew for each run would take longer than most runs.
fn longest(size: u64) -> Rc<Content> {
    LONGEST.with_borrow_mut(|longest| {
        if longest.size() < size {
            let mut content = Rc::unwrap_or_clone(std::mem::take(longest));
            let mut at = content.size();
            let mut buf = vec![0; 64 << 10];
            while at < size {
                stamp::base_fill(&mut buf, at);
                content.write(at, &buf);
                at = content.size();
            }
            *longest = Rc::new(content);
        }
        Rc::clone(longest)
    })
}
