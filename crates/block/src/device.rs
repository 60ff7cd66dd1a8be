//! The contract every node keeps.
//!
//! # Requests
//! Offsets and lengths are bytes. A request that reaches past [`DeviceInfo::size`] fails whole with
//! [`past_end`](crate::IoError::past_end), unless it writes and the node [`GROWS`](crate::Capabilities::GROWS); an
//! empty one succeeds and does nothing. A node that declares [`Limits`] may
//! rely on being asked accordingly, because whoever builds a graph puts [`Aligned`](crate::align::Aligned) in front of
//! it; a node without limits takes any byte range.
//!
//! Many requests may be in flight on one node. Requests that do not overlap do not influence each other. Overlapping
//! writes in flight together leave, byte by byte, the data of one of them; a read beside a write sees old or new
//! (CM 4.2, 4.4).
//!
//! # Durability
//! [`flush`](BlockDevice::flush) makes durable every write, write zeroes, discard and resize that *completed before the
//! flush was sent*. FUA makes durable the one request that carries it, and everything needed to find its data.
//! Nothing else is promised after a power cut, and nothing else may be relied on.
//!
//! # Cancelling
//! Dropping a future cancels the request. The request may still land afterwards, in whole or in part, inside its own
//! byte range, until [`drain`](BlockDevice::drain) returns. A node survives a drop at every await point: no lock stays
//! held, no neighbour is touched, nothing in memory claims what the disk does not hold. A node that issues writes of
//! its own (metadata) assumes that one it dropped may land late, and drains the node below before it writes to that
//! place, or gives that space to someone else.
//!
//! # Errors
//! After an error a write is, sector by sector, done or not done, and will not change any more. After a failed flush
//! nothing is promised; the next one that succeeds covers those writes too, or keeps failing.

use std::rc::Rc;

use bitflags::bitflags;

use crate::{BlockStatus, Breakpoints, DeviceInfo, Event, Limits, Node, Result};

bitflags! {
    /// How a write is to be done.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct WriteFlags: u32 {
        /// Durable when it completes.
        const FUA = 1;
        /// Store compressed, where the format can; whole clusters only.
        const COMPRESSED = 2;
    }
}

bitflags! {
    /// How a write zeroes is to be done.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct ZeroFlags: u32 {
        /// Durable when it completes.
        const FUA = 1;
        /// The space may be given back, as long as it then reads as zeroes.
        const MAY_UNMAP = 2;
        /// Fail with ENOTSUP, leaving the content as it was, rather than write zero bytes.
        const NO_FALLBACK = 4;
    }
}

/// What happens to the space a device grows by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Preallocation {
    /// Nothing is allocated.
    #[default]
    Off,
    /// Tables are written, data space is not.
    Metadata,
    /// Space is reserved without being written.
    Falloc,
    /// Zeroes are written.
    Full,
}

/// A disk, or something that looks like one. See the [module](self) for what is promised.
///
/// Futures are not required to be `Send`: a graph lives on one thread.
#[allow(async_fn_in_trait, reason = "no Send bound is wanted: drivers of other projects have futures without it")]
pub trait BlockDevice {
    /// Size, limits and capabilities as they are now.
    fn info(&self) -> DeviceInfo;

    /// The limits of [`info`](Self::info) alone, for paths on which a whole chain of those costs too much.
    fn limits(&self) -> Limits {
        self.info().limits
    }

    /// Reads `buf.len()` bytes from `at`.
    ///
    /// # Errors
    /// On failure the content of `buf` before [`IoError::first_bad`](crate::IoError::first_bad) is valid if that is
    /// known; the rest is unspecified.
    async fn read(&self, at: u64, buf: &mut [u8]) -> Result<()>;

    /// Reads at once if that needs no waiting at all (no I/O, no lock): `true` means that `buf` is filled.
    ///
    /// `false` says nothing but "use [`read`](Self::read)", and is the answer to a request past the end; `buf` is then
    /// unspecified. This is the fast path of
    /// servers, free of allocation and of tasks.
    fn read_now(&self, at: u64, buf: &mut [u8]) -> bool {
        let _ = (at, buf);
        false
    }

    /// Writes `data` to `at`.
    async fn write(&self, at: u64, data: &[u8], flags: WriteFlags) -> Result<()>;

    /// Reads `buf.len()` bytes of the VM state from `at`.
    ///
    /// The VM state is a second space beside the disk, in formats that have one: what a snapshot of a running machine
    /// keeps of its memory. It begins at 0, is as long as the format allows, and reads as zeroes where nothing was
    /// written. It is no part of the disk: no other request reads or changes it, but [`flush`](Self::flush) makes it
    /// durable, [`drain`](Self::drain) waits for it, and [`resize`](Self::resize) may give it up. A filter passes both
    /// requests on to the device it shows.
    ///
    /// # Errors
    /// [`Errno::NOTSUP`](crate::Errno::NOTSUP), also for an empty request, from a device without one: the default.
    async fn read_vm_state(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let _ = (at, buf);
        Err(crate::IoError::unsupported())
    }

    /// Writes `data` to the VM state at `at`.
    ///
    /// # Errors
    /// As [`read_vm_state`](Self::read_vm_state).
    async fn write_vm_state(&self, at: u64, data: &[u8]) -> Result<()> {
        let _ = (at, data);
        Err(crate::IoError::unsupported())
    }

    /// Makes `len` bytes from `at` read as zeroes.
    async fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<()>;

    /// Says that the content of `len` bytes from `at` is no longer needed.
    ///
    /// Afterwards the range reads, piece by piece, as before or as zeroes, and stays so (CM 4.10, level `image`).
    async fn discard(&self, at: u64, len: u64) -> Result<()>;

    /// Makes everything that completed before durable.
    async fn flush(&self) -> Result<()>;

    /// Describes the extent that begins at `at`, at most `len` bytes of it. `len` is not 0 and the range is inside the
    /// device.
    async fn block_status(&self, at: u64, len: u64) -> Result<BlockStatus>;

    /// Changes the size. New space reads as zeroes; space cut off never comes back.
    async fn resize(&self, size: u64, preallocation: Preallocation) -> Result<()>;

    /// Waits until no dropped request can land any more, here and below.
    async fn drain(&self) -> Result<()>;

    /// Writes back what is held in memory and leaves the medium in a clean state; nothing may be sent afterwards.
    ///
    /// The default flushes. Dropping a node without closing it is a crash of that node: safe, but not clean.
    async fn close(&self) -> Result<()> {
        self.flush().await
    }

    /// Whether [`event`](Self::event) would do anything with `event`; asked first wherever hearing costs something.
    fn listens(&self, event: Event) -> bool {
        let _ = event;
        false
    }

    /// Hears of a step of the layer above. The request that announced it goes on when the future completes.
    async fn event(&self, event: Event) {
        let _ = event;
    }

    /// Where breakpoints on the steps of a driver can be set: at the nearest node that has them, down the primary children.
    /// `None`: nowhere.
    fn breakpoints(&self) -> Option<Rc<dyn Breakpoints>> {
        None
    }

    /// What this format alone has to say of an open image, in QEMU's words and order (`compat`: `1.1`, `lazy
    /// refcounts`: `false`): the "format specific information" of `qemu-img info` and `qemu-io`'s `info`.
    fn format_details(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// The same device as seen by one client, for nodes that tell clients apart (blkverify's history). `None`: no
    /// difference.
    fn for_client(&self, client: &str) -> Option<Node> {
        let _ = client;
        None
    }
}

/// Fails a request of `len` bytes at `at` that is not inside `size` bytes.
///
/// # Errors
/// [`IoError::past_end`](crate::IoError::past_end).
pub fn check_bounds(at: u64, len: u64, size: u64) -> Result<()> {
    match at.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(crate::IoError::past_end(at, len, size)),
    }
}
