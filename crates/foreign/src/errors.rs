//! Errors, there and back.

use std::io;

use blkproof_block::{Errno, IoError};

/// As a crate wants it from its storage: with the number, which is all that its layers look at.
pub(crate) fn down(error: &IoError) -> io::Error {
    io::Error::from_raw_os_error(error.errno.0)
}

/// As a node answers.
pub(crate) fn up(error: &io::Error) -> IoError {
    let errno = match (error.raw_os_error(), error.kind()) {
        (Some(number), _) => Errno(number),
        (None, io::ErrorKind::Unsupported) => Errno::NOTSUP,
        (None, io::ErrorKind::InvalidInput) => Errno::INVAL,
        (None, _) => Errno::IO,
    };
    IoError::new(errno).detail(error.to_string())
}
