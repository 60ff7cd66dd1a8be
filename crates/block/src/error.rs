//! Errors that say where.
//!
//! A request fails with one [`IoError`]: an errno, because every front end can say at least that much, and everything
//! more exact that is known: the first bad byte, how much was done before it, what a real device would have reported,
//! and which rule injected the failure. A filter passes an error on untouched, a format rebases its offset into the
//! guest's address space, a front end renders the most exact thing its protocol can say.

use std::fmt;

use crate::units::ByteOffset;

/// A Linux error number, printed as the C library's text for it ("Input/output error").
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// Operation not permitted: a write to a read-only device.
    pub const PERM: Self = Self(1);
    /// No such file or directory.
    pub const NOENT: Self = Self(2);
    /// Input/output error.
    pub const IO: Self = Self(5);
    /// Resource temporarily unavailable.
    pub const AGAIN: Self = Self(11);
    /// Cannot allocate memory.
    pub const NOMEM: Self = Self(12);
    /// Permission denied.
    pub const ACCES: Self = Self(13);
    /// Invalid argument.
    pub const INVAL: Self = Self(22);
    /// File too large.
    pub const FBIG: Self = Self(27);
    /// No space left on device.
    pub const NOSPC: Self = Self(28);
    /// Read-only file system.
    pub const ROFS: Self = Self(30);
    /// Value too large for defined data type.
    pub const OVERFLOW: Self = Self(75);
    /// Operation not supported.
    pub const NOTSUP: Self = Self(95);
    /// Transport endpoint is not connected: what a device that is [gone](IoError::gone) fails with, and what the host may
    /// fail with for reasons of its own.
    pub const NOTCONN: Self = Self(107);
    /// Cannot send after transport endpoint shutdown.
    pub const SHUTDOWN: Self = Self(108);
    /// Connection timed out.
    pub const TIMEDOUT: Self = Self(110);
    /// No medium found: what QEMU answers for a node it has disabled after finding corruption.
    pub const NOMEDIUM: Self = Self(123);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = std::io::Error::from_raw_os_error(self.0).to_string();
        f.write_str(text.split(" (os error").next().unwrap_or(&text))
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({self})", self.0)
    }
}

/// The rule that injected a failure.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RuleId(pub Box<str>);

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a real device would have reported for a failed request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DeviceError {
    /// SCSI sense data, as `key/asc/ascq`.
    Scsi {
        /// Sense key, 4 bits.
        key: u8,
        /// Additional sense code.
        asc: u8,
        /// Additional sense code qualifier.
        ascq: u8,
    },
    /// NVMe completion status.
    Nvme {
        /// Status code type, 3 bits.
        sct: u8,
        /// Status code.
        sc: u8,
        /// Do not retry.
        dnr: bool,
        /// Command retry delay index, 2 bits.
        crd: u8,
        /// The error information log has an entry for this.
        more: bool,
    },
    /// ATA status and error registers.
    Ata {
        /// Status register.
        status: u8,
        /// Error register.
        error: u8,
    },
}

/// Why a request failed, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IoError {
    /// The error number every protocol can map.
    pub errno: Errno,
    /// The first byte that could not be transferred, in the address space of the node that returned the error.
    pub first_bad: Option<ByteOffset>,
    /// Bytes transferred before the failure, counted from the start of the request.
    pub transferred: u64,
    /// The status a real device would have reported.
    pub device: Option<DeviceError>,
    /// The device is gone for whoever asked, as a host without power is: a server ends that connection without an answer.
    /// Not told by the number, which the host below may fail with for reasons of its own.
    pub gone: bool,
    /// The rule that caused the failure; `None` for a genuine one.
    pub injected_by: Option<RuleId>,
    /// What went wrong in words, lower case, no full stop.
    pub detail: Option<Box<str>>,
}

impl IoError {
    /// An error of which nothing is known but its number.
    pub const fn new(errno: Errno) -> Self {
        Self { errno, first_bad: None, transferred: 0, device: None, gone: false, injected_by: None, detail: None }
    }

    /// The device is gone for whoever asked: its power was cut, or its connection is to be.
    pub const fn gone() -> Self {
        let mut error = Self::new(Errno::NOTCONN);
        error.gone = true;
        error
    }

    /// A request that reaches beyond the end of the device. No part of it is done.
    pub fn past_end(at: u64, len: u64, size: u64) -> Self {
        Self::new(Errno::IO).detail(format!("request {at:#x}+{len:#x} reaches past the end of the device ({size:#x})"))
    }

    /// A write to a read-only device.
    pub fn read_only() -> Self {
        Self::new(Errno::PERM).detail("the device is read-only")
    }

    /// A request this node can not serve at all.
    pub const fn unsupported() -> Self {
        Self::new(Errno::NOTSUP)
    }

    /// Adds the first bad byte, unless one is known already.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.first_bad.get_or_insert(ByteOffset(offset));
        self
    }

    /// Replaces the words.
    #[must_use]
    pub fn detail(mut self, words: impl Into<String>) -> Self {
        self.detail = Some(words.into().into_boxed_str());
        self
    }

    /// Puts `words` in front of the detail, as in `reading L2 table at 0x50000: …`.
    #[must_use]
    pub fn context(self, words: impl fmt::Display) -> Self {
        let detail = match &self.detail {
            Some(detail) => format!("{words}: {detail}"),
            None => words.to_string(),
        };
        self.detail(detail)
    }

    /// Moves the place of the error into the address space of the node above.
    ///
    /// The node below was asked for bytes from `below`; the node above serves them as bytes from `above`. A bad byte
    /// outside the request (a table that could not be loaded) has no place above and becomes `above` itself.
    #[must_use]
    pub fn rebase(mut self, below: u64, above: u64) -> Self {
        if let Some(bad) = self.first_bad {
            let delta = bad.0.saturating_sub(below);
            self.first_bad = Some(ByteOffset(above.saturating_add(delta)));
        }
        self
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.errno)?;
        if let Some(bad) = self.first_bad {
            write!(f, " at {bad}")?;
        }
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        if let Some(rule) = &self.injected_by {
            write!(f, " (injected by rule {rule})")?;
        }
        Ok(())
    }
}

impl std::error::Error for IoError {}

impl From<std::io::Error> for IoError {
    /// Keeps the error number; an error without one becomes `EIO` with its text as detail.
    fn from(error: std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::new(Errno(errno)),
            None => Self::new(Errno::IO).detail(error.to_string()),
        }
    }
}

impl From<rustix::io::Errno> for IoError {
    fn from(error: rustix::io::Errno) -> Self {
        Self::new(Errno(error.raw_os_error()))
    }
}
