//! `blklogwrites`: every change of a disk, written down in the format of the kernel's dm-log-writes.
//!
//! - [`mod@format`]: what is on the log, byte for byte. [`append`]: how it gets there. [`node`]: the filter. [`driver`]:
//!   how users name it.
//! - [`read`]: a log made by anybody: this node, QEMU's driver of the same name, or the kernel. [`replay`]: the image
//!   at an entry. [`cut`]: the images that a power cut at an entry may leave.
//!
//! # What the log says, and what keeps it true
//! 1. **An entry is a change that the disk below has done.** It is made after the request has completed there. Where a
//!    request failed, or was dropped and may have landed late, the disk is read again, and what is found is logged; a
//!    write that left nothing leaves no entry. Replaying the whole log on the disk as it was at open gives the disk as
//!    it is, as far as discards read as zeroes.
//! 2. **Order is completion order**, as in QEMU's log. Changes that overlap are not in flight below together, so for
//!    them it is also the order of effects. Order of submission is in the *details*, an extension of ours in the
//!    padding behind an entry's header, which other readers skip; it is off by default, and the log is then theirs byte
//!    for byte.
//! 3. **A FLUSH entry is a flush that succeeded**, and stands where it completed. What it covers is what stood in the
//!    log when it was sent (CM 4.6); only the details know that place. FUA stays FUA.
//! 4. **The superblock never counts an entry that is not on the log.** Entries first, then a flush of the log, then the
//!    superblock. It is written at open, with every flush and mark, every `log-super-update-interval` entries, and at
//!    close.
//! 5. **A log whose writer was killed ends with its last complete entry.** Entries are written one behind the other,
//!    never with a gap, and what an earlier log left behind them is cut off, or covered with a zero sector: a header of
//!    zeroes is no entry. So what stands behind the entries the superblock counts can be used.
//! 6. **A request completes when its entry is on the log.** If the log can not be written, the request fails, and its
//!    entry is written before any later one; when too much waits, changes fail before they reach the disk.
//!
//! Source: block-layer.md 3 (the format, QEMU's and the kernel's writers), CM 4.3 to 4.8, 5.1.

pub mod append;
pub mod cut;
pub mod driver;
pub mod format;
pub mod node;
pub mod read;
pub mod replay;
