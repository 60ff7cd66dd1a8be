//! Drivers that take requests from several threads, and how they are opened.

use std::sync::Arc;

use blkproof_block::{Result, WriteFlags, ZeroFlags};
use blkproof_fault::disk::{FlushError, Profile};

use super::disk::Disk;
use crate::plan::TargetSpec;
use crate::target::{Checked, Content, Promises, variant};
use crate::workload::{Features, TargetInfo, Variant};

/// A driver under requests from several threads. Calls block until they are done; a driver with futures is called through
/// [`block_on`](super::block_on).
pub trait Driver: Send + Sync {
    /// Bytes of the guest's disk.
    fn size(&self) -> u64;

    /// Reads.
    ///
    /// # Errors
    /// Those of the disk below, passed on as they are, and ranges beyond the end.
    fn read(&self, at: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes.
    ///
    /// # Errors
    /// Those of the disk below, passed on as they are, and ranges beyond the end.
    fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()>;

    /// Writes zeroes.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()>;

    /// Discards: what was there, or zeroes.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn discard(&self, at: u64, len: u64) -> Result<()>;

    /// Flushes.
    ///
    /// # Errors
    /// Those of the disk below.
    fn flush(&self) -> Result<()>;

    /// Brings everything to the disk; nothing else is called while it works or after it.
    ///
    /// # Errors
    /// Those of the disk below.
    fn close(&self) -> Result<()>;
}

/// A driver to torture with threads.
///
/// ```
/// use std::sync::Arc;
///
/// use blkproof_block::{Result, WriteFlags, ZeroFlags};
/// use blkproof_torture::plan::TargetSpec;
/// use blkproof_torture::threads::{Disk, Driver, Target, Wanted, campaign};
///
/// struct Passes(Arc<Disk>);
///
/// impl Driver for Passes {
///     fn size(&self) -> u64 {
///         self.0.size()
///     }
///     fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
///         self.0.read(at, buf)
///     }
///     fn write(&self, at: u64, data: &[u8], _flags: WriteFlags) -> Result<()> {
///         self.0.write(at, data)
///     }
///     fn write_zeroes(&self, at: u64, len: u64, _flags: ZeroFlags) -> Result<()> {
///         self.0.write_zeroes(at, len)
///     }
///     fn discard(&self, _at: u64, _len: u64) -> Result<()> {
///         Ok(())
///     }
///     fn flush(&self) -> Result<()> {
///         self.0.flush()
///     }
///     fn close(&self) -> Result<()> {
///         self.0.flush()
///     }
/// }
///
/// struct Mine;
///
/// impl Target for Mine {
///     fn name(&self) -> &str {
///         "mine"
///     }
///     fn open(&self, disk: Arc<Disk>, _spec: &TargetSpec) -> Result<Box<dyn Driver>> {
///         Ok(Box::new(Passes(disk)))
///     }
/// }
///
/// let target: Arc<dyn Target> = Arc::new(Mine);
/// let results = campaign(&Wanted { runs: Some(5), ..Wanted::default() }, &target, &blkproof_torture::campaign::Silent);
/// assert!(results.found.is_empty());
/// ```
pub trait Target: Send + Sync {
    /// Its name in plans.
    fn name(&self) -> &str;

    /// Opens what [`create`](Self::create) made.
    ///
    /// # Errors
    /// Those of the disk, passed on, and what is wrong with the image.
    fn open(&self, disk: Arc<Disk>, spec: &TargetSpec) -> Result<Box<dyn Driver>>;

    /// The image file of a disk as `spec` has it. By default a raw one: zeroes.
    ///
    /// # Errors
    /// What is wrong with the options, in words.
    fn create(&self, spec: &TargetSpec) -> std::result::Result<Content, String> {
        Ok(Content::new(spec.size))
    }

    /// Whether the image file grows when it is written to beyond its end.
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

    /// The images worth trying, and what can be asked of them: of [`FEATURES`], no others. By default one of 256 KiB,
    /// small enough that threads meet.
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: self.name().to_owned(),
            variants: vec![Variant { features: FEATURES, ..variant(&[], 256 << 10, 4096) }],
            profiles: vec![Profile::Block],
            blocks: vec![512],
            flush_errors: vec![FlushError::Keep],
        }
    }
}

/// What threads can ask of a driver.
pub const FEATURES: Features = Features {
    fua: true,
    zeroes: true,
    unmap: true,
    no_fallback: true,
    discard: true,
    reopen: true,
    faults: true,
    ..Features::NONE
};
