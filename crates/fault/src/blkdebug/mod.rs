//! QEMU's blkdebug.

pub mod config;
