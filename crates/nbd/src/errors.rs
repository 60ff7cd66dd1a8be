//! Error numbers: eight may cross the wire, each with a meaning of its own.
//!
//! | device says | wire |
//! |---|---|
//! | `EPERM`, `EACCES`, `EROFS` | `EPERM` |
//! | `ENOSPC`, `EFBIG`, `EDQUOT` | `ENOSPC` |
//! | `ENOMEM`, `EINVAL` | themselves |
//! | `EOVERFLOW` | itself for a read with DF, else `EINVAL` |
//! | `ENOTSUP` | itself for a fast zero, else `EINVAL` |
//! | anything else | `EIO` |
//!
//! `ESHUTDOWN` tells a client to leave for good. Only a server that shuts down, or takes an export away, means that; a device
//! that says so (an `nbd` node below that lost its own server) has failed, and its clients hear `EIO`. An error of a
//! device that is gone ([`IoError::gone`]) has no number: it ends the connection. `ENOTCONN` by itself, which the host's file
//! system may fail with, is one of the others.

use std::fmt::Write as _;

use blkproof_block::{DeviceError, Errno, IoError};

use crate::wire::{CommandFlags, errno};

const EDQUOT: Errno = Errno(122);

/// The number that stands for `error` on the wire, in reply to a command with these flags.
pub fn to_wire(error: Errno, flags: CommandFlags) -> u32 {
    match error {
        Errno::PERM | Errno::ACCES | Errno::ROFS => errno::EPERM,
        Errno::NOSPC | Errno::FBIG | EDQUOT => errno::ENOSPC,
        Errno::NOMEM => errno::ENOMEM,
        Errno::INVAL => errno::EINVAL,
        Errno::OVERFLOW if flags.contains(CommandFlags::DF) => errno::EOVERFLOW,
        Errno::NOTSUP if flags.contains(CommandFlags::FAST_ZERO) => errno::ENOTSUP,
        Errno::OVERFLOW | Errno::NOTSUP => errno::EINVAL,
        _ => errno::EIO,
    }
}

/// What a number from the wire means here. Unknown ones count as `EINVAL` (section "Error values").
pub fn from_wire(error: u32) -> Errno {
    match error {
        errno::EPERM => Errno::PERM,
        errno::EIO => Errno::IO,
        errno::ENOMEM => Errno::NOMEM,
        errno::ENOSPC => Errno::NOSPC,
        errno::EOVERFLOW => Errno::OVERFLOW,
        errno::ENOTSUP => Errno::NOTSUP,
        errno::ESHUTDOWN => Errno::SHUTDOWN,
        _ => Errno::INVAL,
    }
}

/// Everything an error knows that its number does not say, for the message of an error chunk; empty if that is nothing.
pub fn message(error: &IoError) -> String {
    let mut text = String::new();
    if let Some(detail) = &error.detail {
        text.push_str(detail);
    }
    let mut part = |separator: &str, words: String| {
        if !text.is_empty() {
            text.push_str(separator);
        }
        text.push_str(&words);
    };
    if let Some(device) = error.device {
        part("; ", device_words(device));
    }
    if let Some(rule) = &error.injected_by {
        part(" ", format!("(injected by rule {rule})"));
    }
    let mut end = text.len().min(1024);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.truncate(end);
    text
}

fn device_words(device: DeviceError) -> String {
    let mut words = String::new();
    // Writing to a string does not fail.
    let _ = match device {
        DeviceError::Scsi { key, asc, ascq } => write!(words, "SK={key:X} ASC={asc:02X} ASCQ={ascq:02X}"),
        DeviceError::Nvme { sct, sc, dnr, crd, more } => {
            write!(words, "SCT={sct:X} SC={sc:02X} DNR={} CRD={crd} M={}", u8::from(dnr), u8::from(more))
        }
        DeviceError::Ata { status, error } => write!(words, "ATA status={status:02X} error={error:02X}"),
    };
    words
}
