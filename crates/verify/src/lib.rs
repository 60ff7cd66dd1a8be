//! `blkverify`: mirror every request to a reference and to the device under test, and explain the first wrong sector.
//!
//! [`Verify`] is a node over two nodes. RAW is the reference, a device nobody doubts; TEST is the one under test. Every
//! request goes to both, outcomes and data are compared, and a difference becomes a [`Mismatch`]: a value that says
//! which bytes differ, and what the wrong content *is* ([`Diagnosis`]): an older version of the sector, another
//! sector's content, zeroes, a torn write, flipped bits. The [`History`] of what was written makes that possible.
//!
//! [`compare`] holds two whole images against each other once.
//!
//! The library reports to a [`Sink`]; it never prints and never ends the process.
//!
//! ```
//! use std::cell::Cell;
//! use std::rc::Rc;
//! use blkproof_block::{BlockDevice, WriteFlags, nodes::memory::Memory};
//! use blkproof_verify::{OnMismatch, Verify, VerifyOptions};
//!
//! let test = Rc::new(Memory::new(1 << 20));
//! let seen = Rc::new(Cell::new(0));
//! let options = VerifyOptions::new(OnMismatch::Report).sink({
//!     let seen = seen.clone();
//!     move |mismatch| seen.set(mismatch.first_bad().unwrap_or(0))
//! });
//! let verify = Verify::new(Memory::new(1 << 20), test.clone(), options).unwrap();
//! futures_lite::future::block_on(async {
//!     verify.write(4096, &[1; 512], WriteFlags::empty()).await.unwrap();
//!     test.write(4096 + 7, &[9], WriteFlags::empty()).await.unwrap(); // behind the mirror's back
//!     verify.read(0, &mut [0; 65536]).await.unwrap();
//! });
//! assert_eq!(seen.get(), 4096 + 7);
//! ```

#![forbid(unsafe_code)]

mod mirror;
mod settle;
mod unsettled;

mod diagnose;
pub mod mismatch;

pub mod fingerprint;
pub mod history;

pub mod compare;

mod buffers;
mod driver;
mod policy;
mod request;

pub use driver::VerifyDriver;
pub use fingerprint::Fingerprint;
pub use history::{History, Outcome, Version};
pub use mirror::{Clock, Counters, Sink, Verify, VerifyOptions};
pub use mismatch::{BitFlip, Diagnosis, Difference, Mismatch, Request, Sector};
pub use policy::OnMismatch;
pub use request::RequestKind;

/// Bytes in the unit of comparison, history and diagnosis.
pub const SECTOR: u64 = 512;

/// [`SECTOR`], as a length in memory.
pub(crate) const SECTOR_LEN: usize = 512;

/// The length of something that lies in memory, or is about to.
pub(crate) fn len_of(bytes: u64) -> usize {
    usize::try_from(bytes).expect("ranges held in memory are shorter than the address space")
}
